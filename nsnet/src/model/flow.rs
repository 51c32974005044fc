//! Flows as people see them: one row for both directions, and the filters that choose among them.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use nsnet_common::layout::{About, Flow, FlowKey, FlowState, MappingKey, NetworkId, PortId, flow_flags};
use nsnet_common::wire::{IpAddress, IpProtocol};

use super::name::Name;
use super::state::State;
use super::{Result, refuse};

/// A flow, seen from the side of its opener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The tuple of the opener's packets, where they come in.
    pub opener: FlowKey,
    /// The tuple of the answers, where they come in: what the opener's packets are translated to, turned round.
    pub answers: FlowKey,
    /// What the opener's direction says; that of the answers when the opener's is gone.
    pub about: About,
    /// Whether it is not established yet.
    pub is_young: bool,
    /// Seconds until it ends when nothing more comes; `None` when it has ended and only its entries are left.
    pub expires: Option<u32>,
}

impl Connection {
    /// The flow of which an entry says `key` and `flow`; `other` is the entry of the other direction, when there is
    /// one. `now` is the monotonic clock, seconds.
    pub fn join(key: &FlowKey, flow: &Flow, other: Option<&Flow>, is_young: bool, now: u32) -> Self {
        let (mut about, other_key) = (flow.about, flow.other_key(key));
        let is_reply = about.has(flow_flags::REPLY);
        let (opener, answers) = if is_reply { (other_key, *key) } else { (*key, other_key) };
        about.flags |= other.map_or(0, |other| other.about.flags) & !flow_flags::REPLY;
        // Either direction keeps both alive.
        let expires = left(&about, now).max(other.and_then(|other| left(&other.about, now)));
        Self { opener, answers, about, is_young, expires }
    }

    /// The endpoints inside of networks whose mappings the flow uses; at most one for each end.
    pub fn mapped(&self) -> impl Iterator<Item = MappingKey> {
        let is_mapped = self.about.has(flow_flags::MAPPED);
        let end = |key: &FlowKey, external: IpAddress| {
            MappingKey::inside(key.side, key.protocol(), key.source, key.source_port, external)
        };
        // What one side is called on the other is whom that side sends to.
        [(self.opener, self.answers), (self.answers, self.opener)]
            .into_iter()
            .filter(move |(key, _)| is_mapped && key.side != NetworkId::OUTSIDE)
            .map(move |(key, other)| end(&key, other.destination))
    }
}

/// Seconds that a direction has left.
fn left(about: &About, now: u32) -> Option<u32> {
    about.is_alive(now).then(|| about.seen.saturating_add(about.timeout).saturating_sub(now))
}

/// Which flows are meant: those to which everything applies that is set.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// The protocol over IP.
    pub protocol: Option<IpProtocol>,
    /// Who opened the flow.
    pub source: Option<IpNet>,
    /// To whom.
    pub destination: Option<IpNet>,
    /// The opener's port.
    pub sport: Option<u16>,
    /// The port it was opened to.
    pub dport: Option<u16>,
    /// Who answers.
    pub reply_source: Option<IpNet>,
    /// Where the answers go.
    pub reply_destination: Option<IpNet>,
    /// The port that answers come from.
    pub reply_sport: Option<u16>,
    /// The port that answers go to.
    pub reply_dport: Option<u16>,
    /// How far it has come.
    pub state: Option<FlowState>,
    /// Of a namespace: it owns the flow, or is one of its ends.
    pub party: Option<Party>,
    /// One end is in this network.
    pub network: Option<NetworkId>,
    /// IPv4 only, or IPv6 only.
    pub is_v4: Option<bool>,
    /// It leaves this network for the outside with its own source.
    pub unmasqueraded: Option<NetworkId>,
}

impl Filter {
    /// Whether `flow` is meant.
    pub fn matches(&self, flow: &Connection) -> bool {
        self.state.is_none_or(|state| state == flow.about.state) && self.matches_but_state(flow)
    }

    /// The same without regard to the state: whether the flow may be meant sooner or later.
    pub fn matches_but_state(&self, flow: &Connection) -> bool {
        let (opener, answers) = (&flow.opener, &flow.answers);
        is(self.protocol, opener.protocol())
            && is(self.is_v4, opener.is_v4())
            && is(self.sport, u16::from_be_bytes(opener.source_port))
            && is(self.dport, u16::from_be_bytes(opener.destination_port))
            && is(self.reply_sport, u16::from_be_bytes(answers.source_port))
            && is(self.reply_dport, u16::from_be_bytes(answers.destination_port))
            && is_in(self.source.as_ref(), opener.source)
            && is_in(self.destination.as_ref(), opener.destination)
            && is_in(self.reply_source.as_ref(), answers.source)
            && is_in(self.reply_destination.as_ref(), answers.destination)
            && self.network.is_none_or(|id| opener.side == id || answers.side == id)
            && self.party.as_ref().is_none_or(|party| party.has(flow))
            && self.unmasqueraded.is_none_or(|id| {
                opener.side == id && answers.side == NetworkId::OUTSIDE && answers.destination == opener.source
            })
    }
}

fn is<T: Copy + PartialEq>(wanted: Option<T>, value: T) -> bool {
    wanted.is_none_or(|wanted| wanted == value)
}

fn is_in(wanted: Option<&IpNet>, ip: IpAddress) -> bool {
    wanted.is_none_or(|net| net.contains(&IpAddr::from(ip)))
}

/// A namespace, by what flows know it by.
#[derive(Clone, Debug, Default)]
pub struct Party {
    ports: HashSet<PortId>,
    addresses: HashSet<(NetworkId, IpAddress)>,
}

impl Party {
    /// The namespace `ns`.
    pub fn of(state: &State, ns: &Name) -> Result<Self> {
        if !state.namespaces.contains_key(ns) {
            return refuse(format_args!("no namespace {ns} is known to nsnet; `nsnet ns list` lists them"));
        }
        let members = || state.members().into_iter().filter(|member| member.ns == Some(ns));
        let addresses = members().flat_map(|member| {
            let network = member.network.id();
            member.ips.into_iter().map(move |ip| (network, IpAddress::from(ip)))
        });
        Ok(Self { ports: members().map(|member| member.port).collect(), addresses: addresses.collect() })
    }

    /// Whoever has this port, with these addresses.
    pub fn at(port: PortId, network: NetworkId, ips: &[IpAddr]) -> Self {
        let addresses = ips.iter().map(|ip| (network, IpAddress::from(*ip)));
        Self { ports: [port].into(), addresses: addresses.collect() }
    }

    fn has(&self, flow: &Connection) -> bool {
        let is_end = |key: &FlowKey| self.addresses.contains(&(key.side, key.source));
        self.ports.contains(&flow.about.owner) || is_end(&flow.opener) || is_end(&flow.answers)
    }
}

/// The state that a label of [`FlowState::label`] names.
pub fn parse_state(label: &str) -> std::result::Result<FlowState, String> {
    let states =
        [FlowState::UNREPLIED, FlowState::HALF_OPEN, FlowState::ESTABLISHED, FlowState::CLOSING, FlowState::CLOSED];
    let labels = || states.map(FlowState::label).join(", ");
    states.into_iter().find(|state| state.label() == label).ok_or_else(|| format!("a state is one of {}", labels()))
}

const PROTOCOLS: [(&str, IpProtocol); 5] = [
    ("tcp", IpProtocol::TCP),
    ("udp", IpProtocol::UDP),
    ("icmp", IpProtocol::ICMP),
    ("icmpv6", IpProtocol::ICMPV6),
    ("sctp", IpProtocol::SCTP),
];

/// A protocol by its name or number.
pub fn parse_protocol(text: &str) -> std::result::Result<IpProtocol, String> {
    let named = PROTOCOLS.iter().find(|(name, _)| *name == text).map(|(_, protocol)| *protocol);
    let numbered = || text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit())).map(IpProtocol);
    let names = || PROTOCOLS.map(|(name, _)| name).join(", ");
    named.or_else(numbered).ok_or_else(|| format!("a protocol is {} or a number up to 255", names()))
}

/// The name of a protocol; its number where we have none.
pub fn protocol_name(protocol: IpProtocol) -> String {
    let named = PROTOCOLS.iter().find(|(_, known)| *known == protocol).map(|(name, _)| (*name).to_owned());
    named.unwrap_or_else(|| protocol.0.to_string())
}

/// Whether flows of the protocol are told apart by ports, or by what is in their place (the identifier of a query).
pub fn has_ports(protocol: IpProtocol) -> bool {
    PROTOCOLS.iter().any(|(_, known)| *known == protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 1000;

    fn v4(text: &str) -> IpAddress {
        IpAddress::from(text.parse::<IpAddr>().unwrap())
    }

    /// 10.1.0.2:4000 in network 1 to 192.0.2.7:80, as 198.51.100.1:16384.
    fn masqueraded(protocol: IpProtocol) -> (FlowKey, Flow, FlowKey, Flow) {
        let remote = (v4("192.0.2.7"), 80u16.to_be_bytes());
        let (inside, outside) = (v4("10.1.0.2"), v4("198.51.100.1"));
        let key = FlowKey::new(NetworkId(1), protocol, (inside, 4000u16.to_be_bytes()), remote, true);
        let mut about = About::EMPTY;
        (about.seen, about.timeout) = (NOW - 50, 100);
        (about.source_port, about.destination_port) = (16384u16.to_be_bytes(), remote.1);
        (about.owner, about.state) = (PortId(7), FlowState::ESTABLISHED);
        let there = Flow { about, source: outside, destination: remote.0 };
        (about.seen, about.flags, about.other_side) = (NOW - 10, flow_flags::REPLY, NetworkId(1));
        (about.source_port, about.destination_port) = (remote.1, 4000u16.to_be_bytes());
        let back = Flow { about, source: remote.0, destination: inside };
        (key, there, there.other_key(&key), back)
    }

    fn connection(protocol: IpProtocol) -> Connection {
        let (key, there, _, back) = masqueraded(protocol);
        Connection::join(&key, &there, Some(&back), false, NOW)
    }

    #[test]
    fn both_entries_tell_the_same_flow() {
        let (key, there, back_key, back) = masqueraded(IpProtocol::TCP);
        let one = Connection::join(&key, &there, Some(&back), false, NOW);
        let other = Connection::join(&back_key, &back, Some(&there), false, NOW);
        assert_eq!((one.opener, one.answers), (key, back_key));
        assert_eq!((other.opener, other.answers), (key, back_key));
        // The answers came later.
        assert_eq!((one.expires, other.expires), (Some(90), Some(90)));
        assert_eq!(Connection::join(&key, &there, None, false, NOW).expires, Some(50));
    }

    #[test]
    fn a_flow_has_ended_when_both_directions_have() {
        let (key, there, _, back) = masqueraded(IpProtocol::TCP);
        let expires = |now| Connection::join(&key, &there, Some(&back), true, now).expires;
        assert_eq!((expires(NOW + 60), expires(NOW + 90), expires(NOW + 91)), (Some(30), Some(0), None));
        // Seen by a CPU whose clock is ahead.
        assert_eq!(expires(NOW - 20), Some(110));
    }

    #[test]
    fn each_filter_says_yes_and_no() {
        let flow = connection(IpProtocol::TCP);
        let party = |ports: &[u16], addresses: &[(u16, &str)]| {
            let addresses = addresses.iter().map(|(network, ip)| (NetworkId(*network), v4(ip)));
            Some(Party { ports: ports.iter().map(|port| PortId(*port)).collect(), addresses: addresses.collect() })
        };
        let net = |text: &str| Some(text.parse().unwrap());
        let any = Filter::default;
        let yes = [
            any(),
            Filter { protocol: Some(IpProtocol::TCP), ..any() },
            Filter { source: net("10.1.0.0/16"), ..any() },
            Filter { destination: net("192.0.2.7/32"), sport: Some(4000), dport: Some(80), ..any() },
            Filter { reply_source: net("192.0.2.0/24"), reply_destination: net("198.51.100.1/32"), ..any() },
            Filter { reply_sport: Some(80), reply_dport: Some(16384), ..any() },
            Filter { state: Some(FlowState::ESTABLISHED), ..any() },
            Filter { party: party(&[7], &[]), ..any() },
            Filter { party: party(&[], &[(1, "10.1.0.2")]), ..any() },
            Filter { network: Some(NetworkId(1)), is_v4: Some(true), ..any() },
        ];
        for filter in yes {
            assert!(filter.matches(&flow), "{filter:?}");
        }
        let no = [
            Filter { protocol: Some(IpProtocol::UDP), ..any() },
            Filter { source: net("10.2.0.0/16"), ..any() },
            Filter { source: net("::/0"), ..any() },
            Filter { destination: net("10.1.0.0/16"), ..any() },
            Filter { sport: Some(80), ..any() },
            Filter { dport: Some(4000), ..any() },
            Filter { reply_source: net("10.0.0.0/8"), ..any() },
            Filter { reply_destination: net("10.0.0.0/8"), ..any() },
            Filter { reply_sport: Some(4000), ..any() },
            Filter { reply_dport: Some(4000), ..any() },
            Filter { party: party(&[1], &[(2, "10.1.0.2"), (0, "10.1.0.2")]), ..any() },
            Filter { network: Some(NetworkId(2)), ..any() },
            Filter { is_v4: Some(false), ..any() },
        ];
        for filter in no {
            assert!(!filter.matches(&flow) && !filter.matches_but_state(&flow), "{filter:?}");
        }
        let closing = Filter { state: Some(FlowState::CLOSING), ..any() };
        assert!(!closing.matches(&flow) && closing.matches_but_state(&flow));
    }

    #[test]
    fn a_mapping_is_that_of_the_end_inside() {
        let mut flow = connection(IpProtocol::UDP);
        assert_eq!(flow.mapped().count(), 0);
        flow.about.flags |= flow_flags::MAPPED;
        let (port, external) = (4000u16.to_be_bytes(), flow.answers.destination);
        let inside = MappingKey::inside(NetworkId(1), IpProtocol::UDP, v4("10.1.0.2"), port, external);
        assert_eq!(flow.mapped().collect::<Vec<_>>(), [inside]);
        // Opened from outside, by the same mapping.
        let from_outside = Connection { opener: flow.answers, answers: flow.opener, ..flow };
        assert_eq!(from_outside.mapped().collect::<Vec<_>>(), [inside]);
    }

    #[test]
    fn words() {
        for (name, protocol) in PROTOCOLS {
            assert_eq!((parse_protocol(name), protocol_name(protocol).as_str()), (Ok(protocol), name));
        }
        assert_eq!((parse_protocol("47"), protocol_name(IpProtocol(47))), (Ok(IpProtocol(47)), "47".to_owned()));
        for bad in ["", "+6", "256", "TCP", "-1"] {
            assert!(parse_protocol(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_state("half-open"), Ok(FlowState::HALF_OPEN));
        assert!(parse_state("unknown").unwrap_err().contains("unreplied, half-open"));
    }

    #[test]
    fn a_namespace_is_known_by_its_ports_and_addresses() {
        let text = r#"{"namespaces":{"red":{"made":true},"blue":{"made":true}},
            "networks":{"v-net-0":{"name":"v-net-0","id":1,"port":1,"mac":"02:00:01:00:01:07",
            "subnets":[{"net":"10.1.0.0/24","gateway":"10.1.0.1"}],"mtu":1500}},
            "attachments":[{"network":"v-net-0","ns":"red","port":2,"mac":"02:00:01:00:02:08","ips":["10.1.0.2"],
            "inner":"veth-red","outer":"veth-red-br"}]}"#;
        let state: State = serde_json::from_str(text).unwrap();
        let flow = connection(IpProtocol::TCP);
        assert!(Party::of(&state, &"red".parse().unwrap()).unwrap().has(&flow));
        assert!(!Party::of(&state, &"blue".parse().unwrap()).unwrap().has(&flow));
        assert!(Party::of(&state, &"grey".parse().unwrap()).is_err());
    }
}
