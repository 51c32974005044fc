//! The goals, each judged by what a run has found: by the end of the interval that speaks against us.

use serde::Serialize;

use super::peer::{Peer, Way};
use super::result::{Axis, Cell, Figure, Load, Point, Quantity, Results};
use super::run::MANY;
use crate::lab::{Measure, Ratio};

/// A goal and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    /// What is wanted, for people.
    pub goal: String,
    /// `>=` or `<=`, and the number.
    pub wanted: Bound,
    /// Median and interval; `None` when this run did not measure it.
    pub found: Option<Found>,
    /// Whether it is met; `None` when it was not measured.
    pub met: Option<bool>,
    /// What of this machine keeps it from being measured, if anything does.
    pub obstacle: Option<String>,
}

/// What a number should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// No less than this.
    AtLeast(f64),
    /// No more than this.
    AtMost(f64),
}

/// A number with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Found {
    /// The middle.
    pub median: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl Bound {
    /// Whether all of the interval is on the right side.
    pub fn is_met(self, found: Found) -> bool {
        match self {
            Bound::AtLeast(least) => found.low >= least,
            Bound::AtMost(most) => found.high <= most,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bound::AtLeast(least) => write!(f, "≥ {least}"),
            Bound::AtMost(most) => write!(f, "≤ {most}"),
        }
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Found { median, low, high } = self;
        let digits = if *median >= 20.0 { 0 } else { digits(*median) };
        // One block gives no interval.
        if low == high || high.is_infinite() {
            return write!(f, "{median:.digits$}");
        }
        write!(f, "{median:.digits$} [{low:.digits$}–{high:.digits$}]")
    }
}

/// Behind the point: two, and four where two would say little.
pub(super) fn digits(value: f64) -> usize {
    if (0.0..0.1).contains(&value) && value > 0.0 { 4 } else { 2 }
}

impl From<Ratio> for Found {
    fn from(Ratio { median, low, high, .. }: Ratio) -> Found {
        Found { median, low, high }
    }
}

impl From<&Figure> for Found {
    fn from(figure: &Figure) -> Found {
        let [low, high] = figure.range.unwrap_or([figure.value; 2]);
        Found { median: figure.value, low, high }
    }
}

impl From<f64> for Found {
    fn from(value: f64) -> Found {
        Found { median: value, low: value, high: value }
    }
}

/// Judges all goals.
pub fn judge(results: &Results) -> Vec<Judged> {
    let mut goals = Goals { results, judged: Vec::new() };
    goals.switching();
    goals.translating();
    goals.published();
    goals.scaling();
    goals.costs();
    goals.judged
}

struct Goals<'a> {
    results: &'a Results,
    judged: Vec<Judged>,
}

impl Goals<'_> {
    fn add(&mut self, goal: impl Into<String>, wanted: Bound, found: Option<impl Into<Found>>) {
        let found = found.map(Into::into);
        let met = found.map(|found: Found| wanted.is_met(found));
        self.judged.push(Judged { goal: goal.into(), wanted, found, met, obstacle: None });
        let has_no_interval = found.is_some_and(|found| found.high.is_infinite());
        self.withdraw(has_no_interval.then(|| "one block has no interval".to_owned()));
    }

    /// Why the goal added last could not be measured here. It says nothing when it was.
    fn unless(&mut self, obstacle: Option<String>) {
        if let Some(goal) = self.judged.last_mut().filter(|goal| goal.found.is_none()) {
            goal.obstacle = obstacle;
        }
    }

    /// Why what was found for the goal added last is no measurement of it, if so.
    fn withdraw(&mut self, why: Option<String>) {
        if let Some((goal, why)) = self.judged.last_mut().filter(|goal| goal.found.is_some()).zip(why) {
            (goal.met, goal.obstacle) = (None, Some(why));
        }
    }

    /// nsnet's rate over another's.
    fn rate(&self, way: Way, load: Load, to: Peer) -> Option<Ratio> {
        self.of(way, load, to, Measure::Rate)
    }

    fn of(&self, way: Way, load: Load, to: Peer, measure: Measure) -> Option<Ratio> {
        self.results.cell(way, load)?.ratio(measure, Peer::Nsnet, to)
    }

    fn switching(&mut self) {
        use Bound::{AtLeast, AtMost};
        let way = Way::NsToNs;
        for (load, veth, bridge) in [(Load::Tcp, 0.98, 1.15), (Load::Udp64, 0.97, 1.35)] {
            let name = load.name();
            self.add(format!("{name}, vs direct veth"), AtLeast(veth), self.rate(way, load, Peer::Direct));
            self.add(format!("{name}, vs Linux bridge"), AtLeast(bridge), self.rate(way, load, Peer::Bridge));
        }
        // To a receiver that polls: what waking one costs is no part of a path, and can be less on a slower one.
        let cell = self.results.cell(way, Load::Udp64Polled);
        let added = cell.and_then(|cell| cell.added_ratio(Peer::Nsnet, Peer::Bridge));
        self.add("nanoseconds added to a 64-byte datagram, receiver polls, vs the bridge's", AtMost(0.1), added);
        let quicker = [Peer::Nsnet, Peer::Bridge].into_iter().find(|peer| {
            let added = cell.and_then(|cell| cell.added_ns(*peer));
            added.is_some_and(|added| added.low < 0.0)
        });
        self.withdraw(
            quicker.map(|peer| format!("{} may have been quicker than its limit, the direct veth", peer.name())),
        );
        let injected = self.rate(way, Load::Injected64, Peer::Bridge);
        self.add("injected frames, switched, vs Linux bridge", AtLeast(2.0), injected);
        let cell = self.results.cell(way, Load::Injected64);
        let by_xdp = cell.and_then(|cell| cell.ratio(Measure::Rate, Peer::NsnetXdp, Peer::Bridge));
        self.add("injected frames, switched by XDP, vs Linux bridge", AtLeast(4.0), by_xdp);
        let instructions = self.of(way, Load::Udp64, Peer::Direct, Measure::Instructions);
        self.add("instructions for a 64-byte datagram, vs direct veth", AtMost(1.04), instructions);
        let counts = self.results.machine.counts_instructions;
        self.unless((!counts).then(|| "this machine counts no instructions".to_owned()));
        for (measure, name, most) in [(Measure::TripMedian, "median", 1.02), (Measure::TripP99, "p99", 1.05)] {
            let trips = self.of(way, Load::RoundTrips, Peer::Direct, measure);
            self.add(format!("round trip, {name}, vs direct veth"), AtMost(most), trips);
        }
    }

    fn translating(&mut self) {
        let peers = [
            (Peer::DockerNft, "bridge + iptables-nft", 4.0),
            (Peer::NftMaps, "bridge + nft maps", 3.5),
            (Peer::Routed, "routed MASQUERADE", 2.0),
        ];
        for (way, name) in [(Way::NsToOutside, "SNAT"), (Way::OutsideToPublished, "DNAT")] {
            for (peer, label, least) in peers {
                let rate = self.rate(way, Load::Injected64, peer);
                self.add(format!("injected frames, {name}, vs {label}"), Bound::AtLeast(least), rate);
            }
        }
        let connections = self.rate(Way::NsToOutside, Load::Connections, Peer::Routed);
        self.add("connections through NAT, vs routed MASQUERADE", Bound::AtLeast(1.3), connections);
        let flows = self.rate(Way::NsToOutside, Load::NewFlows, Peer::Routed);
        self.add("new flows through NAT, vs routed MASQUERADE", Bound::AtLeast(1.5), flows);
    }

    fn published(&mut self) {
        for (peer, name, least) in [(Peer::Proxy, "userland proxy", 1.7), (Peer::Direct, "direct veth", 0.98)] {
            let rate = self.rate(Way::HostToPublished, Load::Tcp, peer);
            self.add(format!("published port from the host, TCP, vs {name}"), Bound::AtLeast(least), rate);
        }
    }

    fn scaling(&mut self) {
        use Bound::{AtLeast, AtMost};
        // 1/rate is the cost: it may grow by 5 %.
        let ports = self.kept(Axis::Ports, Load::NewFlows, 60_000);
        self.add("first packets kept, published ports 1 to 60,000", AtLeast(0.952), ports);
        let publish = self.results.figure(Quantity::PublishTime, Peer::Nsnet).filter(|figure| figure.count >= 60_000);
        self.add("milliseconds to publish 60,000 ports", AtMost(150.0), publish.map(|figure| figure.value * 1e3));
        let namespaces = self.kept(Axis::Namespaces, Load::Injected64, 1_000);
        self.add("frames kept, namespaces 2 to 1,000", AtLeast(0.97), namespaces);
        let arp = self.at(Axis::Namespaces, Load::ArpRequests, 1_000);
        let arp = arp.and_then(|cell| cell.ratio(Measure::Cpu, Peer::Nsnet, Peer::Bridge));
        self.add("CPU time for an ARP request at 1,000 namespaces, vs Linux bridge", AtMost(0.01), arp);
        for (count, name, least) in [(100_000, "100,000", 0.85), (1_000_000, "1,000,000", 0.65)] {
            let kept = self.kept(Axis::Flows, Load::Injected64, count);
            self.add(format!("frames kept, flows 1 to {name}"), AtLeast(least), kept);
        }
        let tracked = self.at(Axis::Flows, Load::Injected64, 1_000_000);
        let tracked = tracked.and_then(|cell| cell.ratio(Measure::Rate, Peer::Nsnet, Peer::Routed));
        self.add("frames at 1,000,000 flows, vs nf_conntrack", AtLeast(1.3), tracked);
        let point = Point { axis: Axis::Flows, count: 1_000_000 };
        let left = self.results.left_out.iter().find(|left| left.what == point.of(Peer::Routed));
        self.unless(left.map(|left| left.why.clone()));
    }

    fn costs(&mut self) {
        use Bound::AtMost;
        self.memory("bytes of kernel memory for a NAT flow", AtMost(288.0), Quantity::FlowMemory);
        // Nothing, to the whole byte: something else of the kernel's moves meanwhile.
        self.memory("bytes of kernel memory for a switched flow", AtMost(0.5), Quantity::SwitchedFlowMemory);
        self.memory("bytes of kernel memory for a published port", AtMost(32.0), Quantity::PortMemory);
        let attach = |peer| self.results.figure(Quantity::AttachTime, peer).filter(|figure| figure.count >= 990);
        let attach = attach(Peer::Nsnet).zip(attach(Peer::Bridge)).map(|(ours, theirs)| (ours.value, theirs.value));
        let ratio = attach.map(|(ours, theirs)| ours / theirs);
        self.add("time to attach 1,000 namespaces, vs `ip -batch` and a bridge", AtMost(1.0), ratio);
    }

    fn memory(&mut self, goal: &str, wanted: Bound, of: Quantity) {
        let figure = self.results.figure(of, Peer::Nsnet).filter(|figure| figure.count >= MANY);
        self.add(goal, wanted, figure);
        let hidden = figure.filter(|figure| figure.is_hidden());
        self.withdraw(hidden.map(|_| {
            "the machine's kernel memory did not grow meanwhile: what others gave back may hide it".to_owned()
        }));
    }

    /// A point of a curve.
    fn at(&self, axis: Axis, load: Load, count: u64) -> Option<&Cell> {
        self.results.cells.iter().find(|cell| cell.load == load && cell.point == Some(Point { axis, count }))
    }

    /// nsnet's rate at `count` relative to the one at the fewest. Both are taken relative to the direct veth of their own
    /// blocks, as they were not measured in the same ones.
    fn kept(&self, axis: Axis, load: Load, count: u64) -> Option<Ratio> {
        let many = self.at(axis, load, count)?;
        let curves = self.results.curves();
        let few = *curves
            .iter()
            .find(|curve| curve.iter().any(|cell| cell.point == many.point && cell.load == load))?
            .first()?;
        let relative = |cell: &Cell| -> Option<Vec<f64>> {
            let (rates, direct) = (&cell.row(Peer::Nsnet)?.rate, &cell.row(Peer::Direct)?.rate);
            Some(rates.iter().zip(direct).filter(|(_, direct)| **direct > 0.0).map(|(a, b)| a / b).collect())
        };
        let ratios: Vec<f64> = relative(many)?.iter().zip(relative(few)?).map(|(many, few)| many / few).collect();
        Ratio::of(&ratios, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_decides() {
        let found = Found { median: 1.0, low: 0.97, high: 1.03 };
        assert!(Bound::AtLeast(0.97).is_met(found) && !Bound::AtLeast(0.98).is_met(found));
        assert!(Bound::AtMost(1.03).is_met(found) && !Bound::AtMost(1.02).is_met(found));
        assert_eq!(found.to_string(), "1.00 [0.97–1.03]");
        assert_eq!(Found::from(140.2).to_string(), "140");
        assert_eq!(Found { median: 0.002, low: 0.001, high: 0.0033 }.to_string(), "0.0020 [0.0010–0.0033]");
        assert_eq!(Found::from(0.0).to_string(), "0.00");
        assert_eq!(Bound::AtLeast(1.35).to_string(), "≥ 1.35");
    }

    #[test]
    fn who_beats_the_limit_has_not_met_a_goal() {
        let judged = |nsnet: f64| {
            let mut results = crate::bench::report::example();
            let cell = &mut results.cells[0];
            cell.load = Load::Udp64Polled;
            for (row, rate) in cell.rows.iter_mut().zip([200e3, 200e3, 140e3, 196e3, nsnet]) {
                row.rate.fill(rate);
            }
            let judged = judge(&results);
            judged.into_iter().find(|goal| goal.goal.starts_with("nanoseconds added")).unwrap()
        };
        let met = |nsnet| judged(nsnet).met;
        assert_eq!((met(199e3), met(190e3)), (Some(true), Some(false)));
        let beaten = judged(210e3);
        assert!(beaten.found.is_some_and(|found| found.high < 0.0) && beaten.met.is_none(), "{beaten:?}");
        assert!(beaten.obstacle.is_some_and(|why| why.starts_with("nsnet may have been quicker")));
    }

    #[test]
    fn no_memory_at_all_is_not_a_little() {
        let judged = |value, range| {
            let mut results = crate::bench::report::example();
            results.figures[0] = Figure { value, range, ..results.figures[0].clone() };
            judge(&results).into_iter().find(|goal| goal.goal.ends_with("memory for a NAT flow")).unwrap()
        };
        let met = |value, range| judged(value, range).met;
        assert_eq!(met(0.0, None), None, "it was cut off at nothing");
        assert_eq!((met(-3.0, Some([-4.0, -2.0])), met(0.0, Some([-1.0, 1.0]))), (None, Some(true)));
        assert_eq!((met(280.0, Some([270.0, 288.0])), met(280.0, Some([270.0, 290.0]))), (Some(true), Some(false)));
        assert!(judged(0.0, None).obstacle.is_some_and(|why| why.contains("did not grow")));
    }

    #[test]
    fn one_block_meets_and_misses_nothing() {
        let mut results = crate::bench::report::example();
        results.cells.iter_mut().flat_map(|cell| &mut cell.rows).for_each(|row| row.rate.truncate(1));
        let judged = judge(&results);
        let goal = judged.iter().find(|goal| goal.goal == "UDP 64 B, receiver waits, vs direct veth").unwrap();
        assert_eq!((goal.met, goal.found.map(|found| found.median)), (None, Some(0.95)));
        assert_eq!(goal.obstacle.as_deref(), Some("one block has no interval"));
    }

    #[test]
    fn judges_what_was_measured_and_leaves_the_rest_open() {
        let judged = judge(&crate::bench::report::example());
        let by_name = |name: &str| judged.iter().find(|goal| goal.goal == name).unwrap_or_else(|| panic!("{name}"));
        let veth = by_name("UDP 64 B, receiver waits, vs direct veth");
        assert_eq!((veth.met, veth.found.map(|found| found.median)), (Some(false), Some(0.95)));
        assert_eq!(by_name("UDP 64 B, receiver waits, vs Linux bridge").met, Some(true));
        assert_eq!(by_name("frames kept, namespaces 2 to 1,000").met, Some(true));
        assert_eq!(by_name("round trip, p99, vs direct veth").met, None);
        let instructions = by_name("instructions for a 64-byte datagram, vs direct veth");
        assert_eq!(instructions.obstacle.as_deref(), Some("this machine counts no instructions"));
        assert_eq!(by_name("round trip, p99, vs direct veth").obstacle, None);
        let memory = by_name("bytes of kernel memory for a NAT flow");
        assert_eq!((memory.met, memory.found), (Some(true), Some(Found::from(256.0))));
    }
}
