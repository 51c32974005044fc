//! What a run measures, and for how long.

use std::time::Duration;

use super::family::Family;
use super::peer::{Peer, Way};
use super::result::{Axis, Load, Point};

/// How thorough a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// One block of very little: whether everything works.
    Smoke,
    /// Under five minutes.
    Quick,
    /// With all axes and the programs of others; a figure to publish.
    Full,
}

/// Which part of it; everything when left out.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Ways.
    pub ways: Vec<Way>,
    /// Loads.
    pub loads: Vec<Load>,
    /// Peers; the direct veth is always one.
    pub peers: Vec<Peer>,
    /// No scaling curves.
    pub no_curves: bool,
    /// So many blocks for each cell and each point of a curve, at least 1; each has its own number when left out.
    pub blocks: Option<u16>,
}

/// Something to measure.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Task {
    pub(super) way: Way,
    pub(super) load: Load,
    pub(super) peers: Vec<Peer>,
    pub(super) blocks: usize,
}

/// A scaling curve: the same task at several sizes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Curve {
    pub(super) axis: Axis,
    pub(super) way: Way,
    pub(super) load: Load,
    pub(super) peers: Vec<Peer>,
    pub(super) counts: Vec<u32>,
    pub(super) blocks: usize,
}

impl Effort {
    /// As it is written into reports.
    pub fn name(self) -> &'static str {
        match self {
            Effort::Smoke => "smoke",
            Effort::Quick => "quick",
            Effort::Full => "full",
        }
    }

    /// How long a peer's turn in a block is.
    pub(super) fn slot(self) -> Duration {
        Duration::from_millis(if self == Effort::Smoke { 10 } else { 40 })
    }

    /// The same at a point of a scaling curve. With many flows each must be met several times in a turn, and turns be longer
    /// than a second, after which nsnet looks at a flow's way anew: else every packet would be the first in a while.
    pub(super) fn slot_of(self, point: Option<Point>) -> Duration {
        match point {
            Some(Point { axis: Axis::Flows, .. }) => Duration::from_millis(1_500),
            _ => self.slot(),
        }
    }

    /// The same for programs of others, which need longer to get going.
    pub(super) fn outer_slot(self) -> Duration {
        Duration::from_secs(1)
    }

    fn blocks(self) -> usize {
        match self {
            Effort::Smoke => 1,
            Effort::Quick => 8,
            Effort::Full => 24,
        }
    }

    /// The cells, without those that `selection` leaves out.
    pub(super) fn tasks(self, selection: &Selection) -> Vec<Task> {
        let mut tasks = Vec::new();
        for (way, load) in Way::ALL.into_iter().flat_map(|way| self.loads(way).into_iter().map(move |load| (way, load)))
        {
            let peers = Peer::ALL.into_iter().filter(|peer| carries(*peer, way, load)).collect();
            // Those of others take seconds for each peer.
            let blocks = selection.blocks(if load.is_outer() { 3 } else { self.blocks() });
            tasks.push(Task { way, load, peers, blocks });
        }
        tasks.retain(|task| selection.ways.is_empty() || selection.ways.contains(&task.way));
        tasks.retain(|task| selection.loads.is_empty() || selection.loads.contains(&task.load));
        for task in &mut tasks {
            selection.narrow(&mut task.peers);
        }
        tasks
    }

    fn loads(self, way: Way) -> Vec<Load> {
        let mut loads = vec![Load::Tcp, Load::RoundTrips];
        if self == Effort::Smoke {
            return if way == Way::NsToNs { vec![Load::Udp64, Load::Injected64, Load::InjectedV6] } else { Vec::new() };
        }
        if !matches!(way, Way::HostToPublished | Way::NsToPublished) {
            loads.extend([Load::Udp64, Load::Udp64Polled]);
        }
        if way != Way::NsToHost {
            loads.push(Load::Connections);
        }
        if matches!(way, Way::NsToNs | Way::NsToOutside | Way::OutsideToPublished) {
            loads.extend([Load::Injected64, Load::InjectedV6]);
            if way != Way::NsToNs {
                loads.push(Load::NewFlows);
            }
            if self == Effort::Full {
                loads.extend([Load::Injected512, Load::Injected1400, Load::Iperf1, Load::Iperf4]);
                loads.extend([Load::HttpKeepAlive, Load::HttpClose]);
                // Three seconds for each turn: once is enough.
                loads.extend((way == Way::NsToNs).then_some(Load::Sockperf));
            }
        }
        loads
    }

    /// The scaling curves.
    pub(super) fn curves(self, selection: &Selection) -> Vec<Curve> {
        let (namespaces, ports, flows): (&[u32], &[u32], &[u32]) = match self {
            Effort::Smoke => return Vec::new(),
            Effort::Quick => (&[2, 50], &[1, 1_000], &[1, 30_000]),
            Effort::Full => {
                (&[2, 10, 100, 1_000], &[1, 100, 1_000, 10_000, 60_000], &[1, 1_000, 10_000, 100_000, 1_000_000])
            }
        };
        if selection.no_curves {
            return Vec::new();
        }
        // Turns of over a second each, for as many flows.
        let of_flows = if self == Effort::Full { 12 } else { 3 };
        let curve = |axis, way, load, peers: &[Peer], counts: &[u32]| {
            let blocks = selection.blocks(if axis == Axis::Flows { of_flows } else { self.blocks() });
            Curve { axis, way, load, peers: peers.to_vec(), counts: counts.to_vec(), blocks }
        };
        let switches = [Peer::Bridge, Peer::Nsnet];
        let translators = [Peer::DockerNft, Peer::NftMaps, Peer::Routed, Peer::Nsnet];
        let mut curves = vec![
            curve(Axis::Namespaces, Way::NsToNs, Load::Injected64, &switches, namespaces),
            curve(Axis::Namespaces, Way::NsToNs, Load::ArpRequests, &switches, namespaces),
            curve(Axis::Namespaces, Way::NsToNs, Load::UnknownMac, &switches, namespaces),
            curve(Axis::Ports, Way::OutsideToPublished, Load::NewFlows, &translators, ports),
            curve(Axis::Flows, Way::NsToOutside, Load::Injected64, &translators, flows),
        ];
        for curve in &mut curves {
            selection.narrow(&mut curve.peers);
        }
        curves.retain(|curve| selection.ways.is_empty() || selection.ways.contains(&curve.way));
        curves.retain(|curve| selection.loads.is_empty() || selection.loads.contains(&curve.load));
        curves
    }
}

impl Selection {
    /// Choices that lead to no measurement: no task or curve has them together with the others.
    pub(super) fn in_vain(&self, tasks: &[Task], curves: &[Curve]) -> Vec<&'static str> {
        let planned = || {
            let tasks = tasks.iter().map(|task| (task.way, task.load, &task.peers));
            tasks.chain(curves.iter().map(|curve| (curve.way, curve.load, &curve.peers)))
        };
        let ways = self.ways.iter().filter(|chosen| !planned().any(|(way, ..)| way == **chosen)).map(|way| way.name());
        let loads =
            self.loads.iter().filter(|chosen| !planned().any(|(_, load, _)| load == **chosen)).map(|load| load.name());
        let peers = self.peers.iter().filter(|chosen| !planned().any(|(.., peers)| peers.contains(chosen)));
        ways.chain(loads).chain(peers.map(|peer| peer.name())).collect()
    }

    /// How many blocks, where `planned` are when the user does not say.
    fn blocks(&self, planned: usize) -> usize {
        self.blocks.map_or(planned, usize::from)
    }

    fn narrow(&self, peers: &mut Vec<Peer>) {
        let stays = |peer: &Peer| {
            self.peers.is_empty() || self.peers.contains(peer) || matches!(peer, Peer::Direct | Peer::DirectAgain)
        };
        peers.retain(stays);
    }
}

/// Whether a peer can carry this load on this way.
fn carries(peer: Peer, way: Way, load: Load) -> bool {
    let by_load = if load.is_injected() {
        peer.takes_frames()
    } else {
        // The proxy is one of TCP.
        peer != Peer::Proxy || !matches!(load, Load::Udp64 | Load::Udp64Polled | Load::RoundTrips | Load::Sockperf)
    };
    // A namespace's kernel has no frames of XDP: its own sockets are not what that is for.
    let by_xdp = peer != Peer::NsnetXdp || load.is_of_known_flows();
    peer.has(way) && by_load && by_xdp
}

impl Load {
    /// Whether a program of others makes it.
    pub(super) fn is_outer(self) -> bool {
        matches!(self, Load::Iperf1 | Load::Iperf4 | Load::HttpKeepAlive | Load::HttpClose | Load::Sockperf)
    }

    /// Whether it is injected in the kernel.
    pub(super) fn is_injected(self) -> bool {
        self.is_of_known_flows() || matches!(self, Load::NewFlows) || !self.arrives()
    }

    /// Whether it is for a sink. What is not is answered, dropped or sent to everybody: what counts is how long that takes.
    pub(super) fn arrives(self) -> bool {
        !matches!(self, Load::ArpRequests | Load::UnknownMac)
    }

    /// Whether it is injected once its flows are established.
    pub(super) fn is_of_known_flows(self) -> bool {
        matches!(self, Load::Injected64 | Load::Injected512 | Load::Injected1400 | Load::InjectedV6)
    }

    /// Of its packets.
    pub(super) fn family(self) -> Family {
        if self == Load::InjectedV6 { Family::V6 } else { Family::V4 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_run_takes_less_than_five_minutes() {
        let everything = Selection::default();
        let (tasks, curves) = (Effort::Quick.tasks(&everything), Effort::Quick.curves(&everything));
        let seconds = super::super::run::estimate(Effort::Quick, &tasks, &curves).as_secs_f64();
        assert!(seconds < 290.0, "{seconds} s");
    }

    #[test]
    fn a_selection_leaves_the_rest_out() {
        let selection = Selection {
            ways: vec![Way::NsToNs],
            loads: vec![Load::Tcp],
            peers: vec![Peer::Nsnet],
            no_curves: true,
            blocks: None,
        };
        let peers = vec![Peer::Direct, Peer::DirectAgain, Peer::Nsnet];
        let task = Task { way: Way::NsToNs, load: Load::Tcp, peers, blocks: 24 };
        assert_eq!(Effort::Full.tasks(&selection), [task]);
        assert!(Effort::Full.curves(&selection).is_empty());
    }

    #[test]
    fn what_is_chosen_in_vain_is_known() {
        let in_vain = |selection: Selection, effort: Effort| {
            selection.in_vain(&effort.tasks(&selection), &effort.curves(&selection)).join("; ")
        };
        let peers = vec![Peer::Macvlan, Peer::Bridge, Peer::Nsnet];
        let frames = Selection { loads: vec![Load::Injected64], peers, ..Selection::default() };
        assert_eq!(in_vain(frames, Effort::Full), "macvlan bridge mode");
        let of_curves = Selection { loads: vec![Load::ArpRequests], ..Selection::default() };
        assert_eq!(in_vain(of_curves.clone(), Effort::Quick), "");
        assert_eq!(in_vain(Selection { no_curves: true, ..of_curves }, Effort::Quick), "injected ARP requests");
        let loads = vec![Load::Tcp, Load::Injected64];
        let host = Selection { ways: vec![Way::NsToHost], loads, ..Selection::default() };
        assert_eq!(in_vain(host, Effort::Full), "injected, 64 B");
        assert_eq!(in_vain(Selection::default(), Effort::Quick), "");
    }

    #[test]
    fn blocks_are_as_many_as_asked_for() {
        let selection = Selection { blocks: Some(2), ..Selection::default() };
        assert!(Effort::Full.tasks(&selection).iter().all(|task| task.blocks == 2));
        assert!(Effort::Full.curves(&selection).iter().all(|curve| curve.blocks == 2));
        let few = |task: &Task| task.blocks < 20;
        let planned = Effort::Full.tasks(&Selection::default());
        assert!(planned.iter().all(|task| few(task) == task.load.is_outer()), "a figure to publish needs 20");
    }

    #[test]
    fn no_peer_is_asked_for_what_it_has_not() {
        for task in Effort::Full.tasks(&Selection::default()) {
            assert!(task.peers.starts_with(&[Peer::Direct, Peer::DirectAgain]), "{task:?}");
            assert!(task.peers.contains(&Peer::Nsnet), "{task:?}");
            assert!(!(task.load == Load::Udp64 && task.peers.contains(&Peer::Proxy)));
            assert!(!(task.load == Load::Injected64 && task.peers.contains(&Peer::Macvlan)));
        }
    }
}
