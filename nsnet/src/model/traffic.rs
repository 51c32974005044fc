//! What ports have seen up to a moment, and from two such looks: how much a second.

use std::collections::BTreeMap;

use nsnet_common::layout::{Dropped, PortCounters, PortId, Traffic};

use super::name::Name;
use super::state::State;

/// A port, and whom it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortName {
    /// Its number in the dataplane.
    pub port: PortId,
    /// Its network; `None` for an uplink.
    pub network: Option<Name>,
    /// The namespace behind it; `None` for the host's own and for an uplink.
    pub ns: Option<Name>,
    /// Its interface in the host.
    pub interface: String,
}

impl PortName {
    /// Every port of a state: networks one after the other, each beginning with the host's own, and uplinks.
    pub fn all(state: &State) -> Vec<Self> {
        let of_networks = state.members().into_iter().map(|member| Self {
            port: member.port,
            network: Some(member.network.name.clone()),
            ns: member.ns.cloned(),
            interface: member.interface.to_owned(),
        });
        let of_uplinks = state.uplinks.iter().map(|uplink| Self {
            port: uplink.port(),
            network: None,
            ns: None,
            interface: uplink.interface.clone(),
        });
        of_networks.chain(of_uplinks).collect()
    }
}

/// What was counted up to a moment.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// When: monotonic clock, nanoseconds.
    pub at: u64,
    /// By port, in the order in which they are shown.
    pub ports: Vec<(PortName, PortCounters)>,
    /// By port and code of the reason; also of ports that are gone, and of none.
    pub drops: BTreeMap<(PortId, u16), Dropped>,
}

/// Frames in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// Frames.
    pub packets: f64,
    /// Bits of them, Ethernet header included, frame check sequence not.
    pub bits: f64,
}

/// What a port has seen in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// From the namespace, the host or the wire.
    pub received: Rate,
    /// To the namespace, the host or the wire.
    pub sent: Rate,
    /// Frames that were dropped.
    pub dropped: f64,
}

impl Look {
    /// How many frames of a port were dropped, for whatever reason.
    pub fn dropped(&self, port: PortId) -> u64 {
        let of_port = self.drops.range((port, 0)..=(port, u16::MAX));
        of_port.fold(0, |sum, (_, dropped)| sum.wrapping_add(dropped.traffic.packets))
    }

    /// What each port has seen since an earlier look, in the order of [`Look::ports`].
    pub fn since(&self, before: &Self) -> Vec<Rates> {
        let seconds = self.seconds_since(before);
        let rates = |(name, counters): &(PortName, PortCounters)| {
            // A port that is new counts from nothing.
            let known = before.ports.iter().find(|(other, _)| other == name);
            let (was, dropped) = known.map_or_else(Default::default, |(_, was)| (*was, before.dropped(name.port)));
            Rates {
                received: rate(was.received, counters.received, seconds),
                sent: rate(was.sent, counters.sent, seconds),
                dropped: growth(dropped, self.dropped(name.port)) / seconds,
            }
        };
        self.ports.iter().map(rates).collect()
    }

    /// Frames a second that were dropped since an earlier look, at a port for a reason.
    pub fn dropped_since(&self, before: &Self, key: &(PortId, u16)) -> f64 {
        let count = |look: &Self| look.drops.get(key).map_or(0, |dropped| dropped.traffic.packets);
        growth(count(before), count(self)) / self.seconds_since(before)
    }

    /// Infinite when no time has passed: then nothing has come in a second.
    fn seconds_since(&self, before: &Self) -> f64 {
        match self.at.saturating_sub(before.at) {
            0 => f64::INFINITY,
            nanoseconds => nanoseconds as f64 / 1e9,
        }
    }
}

fn rate(was: Traffic, is: Traffic, seconds: f64) -> Rate {
    Rate { packets: growth(was.packets, is.packets) / seconds, bits: growth(was.bytes, is.bytes) * 8.0 / seconds }
}

/// What a count grew by. It may shrink: fragments that waited are taken back, and a port that is made anew begins at 0.
fn growth(was: u64, is: u64) -> f64 {
    is.saturating_sub(was) as f64
}

/// A number for people, in four or five characters: `999`, `1.5k`, `12M`, `0.25`.
pub fn short(number: f64) -> String {
    const UNITS: [&str; 6] = ["", "k", "M", "G", "T", "P"];
    let (mut scaled, mut unit) = (number, 0);
    // What rounds to 1000 belongs to the next unit.
    while scaled >= 999.5 && unit + 1 < UNITS.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    let is_whole = scaled >= 9.95 || (scaled - scaled.round()).abs() < 0.005;
    let digits = usize::from(!is_whole) + usize::from(!is_whole && unit == 0 && scaled < 0.995);
    format!("{scaled:.digits$}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn look(at: u64, ports: &[(u16, &str, u64)], drops: &[(u16, u16, u64)]) -> Look {
        let traffic = |packets| Traffic { packets, bytes: packets * 100 };
        let port = |&(number, interface, packets): &(u16, &str, u64)| {
            let interface = interface.to_owned();
            let name = PortName { port: PortId(number), network: None, ns: None, interface };
            let counters =
                PortCounters { received: traffic(packets), sent: traffic(2 * packets), ..Default::default() };
            (name, counters)
        };
        let drop = |&(port, code, packets): &(u16, u16, u64)| {
            ((PortId(port), code), Dropped { traffic: traffic(packets), ..Dropped::default() })
        };
        Look { at, ports: ports.iter().map(port).collect(), drops: drops.iter().map(drop).collect() }
    }

    #[test]
    fn rates_are_growth_over_time() {
        let before = look(SECOND, &[(1, "a", 100), (2, "b", 7)], &[(1, 3, 10), (1, 4, 1), (2, 3, 5)]);
        let now = look(3 * SECOND, &[(1, "a", 300), (2, "b", 7)], &[(1, 3, 14), (1, 4, 3), (2, 3, 5)]);
        let received = Rate { packets: 100.0, bits: 80_000.0 };
        let sent = Rate { packets: 200.0, bits: 160_000.0 };
        assert_eq!(now.since(&before), [Rates { received, sent, dropped: 3.0 }, Rates::default()]);
        assert_eq!(now.dropped_since(&before, &(PortId(1), 3)), 2.0);
        assert_eq!(now.dropped_since(&before, &(PortId(9), 3)), 0.0);
    }

    #[test]
    fn a_new_port_counts_from_nothing_and_a_count_that_shrank_is_no_traffic() {
        let before = look(SECOND, &[(1, "a", 100), (2, "b", 50)], &[(1, 3, 9)]);
        let now = look(2 * SECOND, &[(1, "c", 40), (2, "b", 20)], &[(1, 3, 4)]);
        let rates = now.since(&before);
        assert_eq!((rates[0].received.packets, rates[0].dropped), (40.0, 4.0));
        assert_eq!((rates[1].received.packets, rates[1].sent.bits), (0.0, 0.0));
        assert_eq!(now.dropped_since(&before, &(PortId(1), 3)), 0.0);
    }

    #[test]
    fn no_time_is_no_traffic() {
        let (before, now) = (look(SECOND, &[(1, "a", 1)], &[]), look(SECOND, &[(1, "a", 9)], &[]));
        assert_eq!(now.since(&before), [Rates::default()]);
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (0.25, "0.25"),
            (1.0, "1"),
            (1.46, "1.5"),
            (9.96, "10"),
            (999.4, "999"),
            (999.6, "1k"),
            (1500.0, "1.5k"),
            (12_340.0, "12k"),
            (999_700.0, "1M"),
            (9_940_000_000.0, "9.9G"),
        ];
        for (number, expected) in cases {
            assert_eq!(short(number), expected, "{number}");
        }
    }
}
