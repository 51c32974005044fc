//! What a run has found: the file `report.json`, from which the reports for people are made.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::memory::Memory;
use super::peer::{Peer, Way};
use crate::lab::compare::Sample;
use crate::lab::stats::median;
use crate::lab::{Measure, Ratio};

/// Decides the bootstrap's draws, so that a report can be made again.
pub(super) const SEED: u64 = 1;
/// Of the format of the file.
pub const VERSION: u32 = 1;

/// Everything of one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// [`VERSION`].
    pub version: u32,
    /// Which machine.
    pub machine: Machine,
    /// How thorough: `quick` or `full`.
    pub effort: String,
    /// When it began, in seconds since 1970.
    pub began: u64,
    /// How long it took.
    pub seconds: f64,
    /// What was measured, each with all peers in the same blocks.
    pub cells: Vec<Cell>,
    /// What was measured once.
    pub figures: Vec<Figure>,
    /// What was not measured, and why.
    pub left_out: Vec<LeftOut>,
    /// Whether the user ended it before its end.
    #[serde(default)]
    pub interrupted: bool,
}

/// A machine, as far as it matters.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// Kernel release.
    pub kernel: String,
    /// Model name.
    pub cpu: String,
    /// How many.
    pub cpus: usize,
    /// In GB.
    pub memory: f64,
    /// Whether sender and receiver have a CPU each.
    pub pinned: bool,
    /// Whether instructions were counted.
    pub counts_instructions: bool,
    /// nsnet's version.
    pub nsnet: String,
    /// Tools and their versions.
    pub tools: Vec<String>,
}

/// One load over one way, by several peers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cell {
    /// From where to where.
    pub way: Way,
    /// What is sent.
    pub load: Load,
    /// Where it stands on a scaling curve.
    pub point: Option<Point>,
    /// One for each peer.
    pub rows: Vec<Row>,
    /// Blocks measured again for stolen time.
    pub repeated: u32,
    /// Blocks counted although time was stolen each time.
    pub disturbed: u32,
}

/// A place on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Of what there are many.
    pub axis: Axis,
    /// How many.
    pub count: u64,
}

/// What is scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Axis {
    /// Namespaces in the network.
    Namespaces,
    /// Published ports.
    Ports,
    /// Flows at a time.
    Flows,
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// One TCP stream.
    Tcp,
    /// 64-byte datagrams to a receiver that waits.
    Udp64,
    /// 64-byte datagrams to a receiver that polls.
    Udp64Polled,
    /// Datagrams there and back, one at a time.
    RoundTrips,
    /// Short TCP connections.
    Connections,
    /// iperf3, one stream.
    Iperf1,
    /// iperf3, four streams.
    Iperf4,
    /// nginx and wrk, connections kept.
    HttpKeepAlive,
    /// nginx and wrk, a connection for each request.
    HttpClose,
    /// sockperf, datagrams there and back, one at a time.
    Sockperf,
    /// Injected datagrams, frames of 64 bytes.
    Injected64,
    /// 512 bytes.
    Injected512,
    /// 1400 bytes.
    Injected1400,
    /// 64 bytes of IPv6.
    InjectedV6,
    /// Injected datagrams, each the first of its flow.
    NewFlows,
    /// Injected ARP requests for one who is there.
    ArpRequests,
    /// Injected datagrams to a MAC that nobody has.
    UnknownMac,
}

/// One peer's measurements in a cell, one value for each block.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Whose.
    pub peer: Peer,
    /// Units per second that arrived.
    pub rate: Vec<f64>,
    /// The share that did not.
    pub loss: Vec<f64>,
    /// Seconds of the sender's CPU time for a unit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpu: Vec<f64>,
    /// The sender's instructions for a unit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instructions: Vec<f64>,
    /// Round trips in seconds: median.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trip_median: Vec<f64>,
    /// Round trips in seconds: 99th percentile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trip_p99: Vec<f64>,
}

/// A single measurement: a time, a size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// What of.
    pub of: Quantity,
    /// Whose.
    pub peer: Peer,
    /// How many objects it is about.
    pub count: u64,
    /// In the quantity's unit.
    pub value: f64,
    /// Where that lies at the least and at the most, of a difference between two readings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<[f64; 2]>,
}

/// What a figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quantity {
    /// Seconds to put namespaces into the network.
    AttachTime,
    /// Seconds to publish ports.
    PublishTime,
    /// Bytes of kernel memory for each translated flow.
    FlowMemory,
    /// Bytes of kernel memory for each flow from namespace to namespace.
    SwitchedFlowMemory,
    /// Bytes of kernel memory for each published port.
    PortMemory,
}

/// Something that could not be measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// What.
    pub what: String,
    /// Why, and what to do about it.
    pub why: String,
}

impl Cell {
    /// Without measurements.
    pub fn new(way: Way, load: Load, point: Option<Point>, peers: impl IntoIterator<Item = Peer>) -> Cell {
        Cell { way, load, point, rows: peers.into_iter().map(Row::new).collect(), repeated: 0, disturbed: 0 }
    }

    /// The measurements of a peer.
    pub fn row(&self, peer: Peer) -> Option<&Row> {
        self.rows.iter().find(|row| row.peer == peer)
    }

    /// `peer` relative to `to`, block by block.
    pub fn ratio(&self, measure: Measure, peer: Peer, to: Peer) -> Option<Ratio> {
        let (above, below) = (self.row(peer)?.of(measure), self.row(to)?.of(measure));
        let pairs = above.iter().zip(below).filter(|(_, below)| **below > 0.0);
        Ratio::of(&pairs.map(|(above, below)| above / below).collect::<Vec<_>>(), SEED)
    }

    /// The baseline to itself: what a difference must exceed.
    pub fn noise(&self, measure: Measure) -> Option<Ratio> {
        self.ratio(measure, Peer::DirectAgain, Peer::Direct)
    }

    /// Nanoseconds that a unit takes longer than on the direct veth, block by block, as median and interval.
    pub fn added_ns(&self, peer: Peer) -> Option<Ratio> {
        let (rates, direct) = (&self.row(peer)?.rate, &self.row(Peer::Direct)?.rate);
        let pairs = rates.iter().zip(direct).filter(|(rate, direct)| **rate > 0.0 && **direct > 0.0);
        Ratio::of(&pairs.map(|(rate, direct)| 1e9 / rate - 1e9 / direct).collect::<Vec<_>>(), SEED)
    }

    /// What a peer adds relative to what another adds, block by block.
    pub fn added_ratio(&self, peer: Peer, to: Peer) -> Option<Ratio> {
        let (ours, theirs, direct) = (&self.row(peer)?.rate, &self.row(to)?.rate, &self.row(Peer::Direct)?.rate);
        let blocks = ours
            .iter()
            .zip(theirs)
            .zip(direct)
            .filter(|((ours, theirs), direct)| **ours > 0.0 && **theirs > 0.0 && **direct > 0.0);
        let added = |rate: f64, direct: f64| 1.0 / rate - 1.0 / direct;
        let ratios = blocks.map(|((ours, theirs), direct)| added(*ours, *direct) / added(*theirs, *direct));
        // Where the other one adds nothing there is no ratio.
        Ratio::of(&ratios.filter(|ratio| ratio.is_finite()).collect::<Vec<_>>(), SEED)
    }

    /// What tells cells apart, for people.
    pub fn title(&self) -> String {
        let point = self.point.map(|point| format!(", {} {}", point.count, point.axis.name())).unwrap_or_default();
        format!("{}: {}{point}", self.way.name(), self.load.name())
    }
}

impl Row {
    fn new(peer: Peer) -> Row {
        let none = Vec::new;
        let (rate, loss, cpu, instructions, trip_median, trip_p99) = (none(), none(), none(), none(), none(), none());
        Row { peer, rate, loss, cpu, instructions, trip_median, trip_p99 }
    }

    /// Enters a block's sample.
    pub fn add(&mut self, sample: &Sample) {
        self.rate.push(sample.rate);
        self.loss.push(sample.loss);
        self.cpu.push(sample.cpu);
        self.instructions.extend(sample.instructions);
        self.trip_median.extend(sample.trips.map(|trips| trips.median));
        self.trip_p99.extend(sample.trips.map(|trips| trips.p99));
    }

    /// What was measured in each block.
    pub fn of(&self, measure: Measure) -> &[f64] {
        match measure {
            Measure::Rate => &self.rate,
            Measure::Loss => &self.loss,
            Measure::Cpu => &self.cpu,
            Measure::Instructions => &self.instructions,
            Measure::TripMedian => &self.trip_median,
            Measure::TripP99 => &self.trip_p99,
        }
    }

    /// The middle of it.
    pub fn median(&self, measure: Measure) -> Option<f64> {
        median(self.of(measure))
    }
}

impl Load {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Load::Tcp => "TCP, 1 stream",
            Load::Udp64 => "UDP 64 B, receiver waits",
            Load::Udp64Polled => "UDP 64 B, receiver polls",
            Load::RoundTrips => "UDP round trips",
            Load::Connections => "TCP connections",
            Load::Iperf1 => "iperf3, 1 stream",
            Load::Iperf4 => "iperf3, 4 streams",
            Load::HttpKeepAlive => "nginx and wrk, keep-alive",
            Load::HttpClose => "nginx and wrk, Connection: close",
            Load::Sockperf => "sockperf, UDP round trips",
            Load::Injected64 => "injected, 64 B",
            Load::Injected512 => "injected, 512 B",
            Load::Injected1400 => "injected, 1400 B",
            Load::InjectedV6 => "injected, IPv6, 64 B",
            Load::NewFlows => "injected, new flows",
            Load::ArpRequests => "injected ARP requests",
            Load::UnknownMac => "injected, unknown MAC",
        }
    }

    /// A rate in words.
    pub fn show(self, rate: f64) -> String {
        match self {
            Load::Tcp | Load::Iperf1 | Load::Iperf4 => format!("{:.2} Gbit/s", rate * 8.0 / 1e9),
            Load::RoundTrips
            | Load::Connections
            | Load::HttpKeepAlive
            | Load::HttpClose
            | Load::Sockperf
            | Load::NewFlows
            | Load::ArpRequests => format!("{:.1} k/s", rate / 1e3),
            Load::Udp64
            | Load::Udp64Polled
            | Load::Injected64
            | Load::Injected512
            | Load::Injected1400
            | Load::InjectedV6
            | Load::UnknownMac => {
                format!("{:.1} kpps", rate / 1e3)
            }
        }
    }

    /// Whether a unit is a packet, so that nanoseconds for each say something.
    pub fn is_packets(self) -> bool {
        match self {
            Load::Udp64
            | Load::Udp64Polled
            | Load::Injected64
            | Load::Injected512
            | Load::Injected1400
            | Load::InjectedV6
            | Load::NewFlows
            | Load::ArpRequests
            | Load::UnknownMac => true,
            Load::Tcp
            | Load::RoundTrips
            | Load::Connections
            | Load::Iperf1
            | Load::Iperf4
            | Load::HttpKeepAlive
            | Load::HttpClose
            | Load::Sockperf => false,
        }
    }
}

impl Point {
    /// Of a peer that has no place there, for [`LeftOut`].
    pub(super) fn of(self, peer: Peer) -> String {
        format!("{} {}: {}", self.count, self.axis.name(), peer.name())
    }
}

impl Axis {
    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Axis::Namespaces => "namespaces",
            Axis::Ports => "published ports",
            Axis::Flows => "flows",
        }
    }
}

impl Quantity {
    /// As people call it, with its unit.
    pub fn name(self) -> &'static str {
        match self {
            Quantity::AttachTime => "time to attach namespaces, ms",
            Quantity::PublishTime => "time to publish ports, ms",
            Quantity::FlowMemory => "kernel memory for a translated flow, bytes",
            Quantity::SwitchedFlowMemory => "kernel memory for a switched flow, bytes",
            Quantity::PortMemory => "kernel memory for a published port, bytes",
        }
    }

    /// The value as that name has it.
    pub fn show(self, value: f64) -> String {
        match self {
            Quantity::AttachTime | Quantity::PublishTime => format!("{:.1}", value * 1e3),
            Quantity::FlowMemory | Quantity::SwitchedFlowMemory | Quantity::PortMemory if value.abs() >= 10.0 => {
                format!("{value:.0}")
            }
            Quantity::FlowMemory | Quantity::SwitchedFlowMemory | Quantity::PortMemory => format!("{value:.1}"),
        }
    }
}

impl Figure {
    /// What `count` objects took of the kernel's memory, for each of them.
    pub(super) fn memory(of: Quantity, peer: Peer, count: u64, memory: Memory) -> Figure {
        let (value, range) = memory.for_each_of(count);
        Figure { of, peer, count, value, range: Some(range) }
    }

    /// The value, and its range, as the quantity's name has it.
    pub(super) fn show(&self) -> String {
        let value = self.of.show(self.value);
        match self.range {
            Some([low, high]) if low < high => format!("{value} [{}, {}]", self.of.show(low), self.of.show(high)),
            _ => value,
        }
    }

    /// Whether nothing was seen of what should be there: what others gave back was more, or as much. Reports of old have no
    /// range, and nothing where there was less than nothing.
    pub(super) fn is_hidden(&self) -> bool {
        self.range.map_or(self.value <= 0.0, |[_, high]| high < 0.0)
    }
}

impl Results {
    /// The cell of a way and load that is on no scaling curve.
    pub fn cell(&self, way: Way, load: Load) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.way == way && cell.load == load && cell.point.is_none())
    }

    /// The scaling curves: their cells by count.
    pub fn curves(&self) -> Vec<Vec<&Cell>> {
        let mut curves: BTreeMap<_, Vec<&Cell>> = BTreeMap::new();
        for cell in &self.cells {
            if let Some(point) = cell.point {
                curves.entry((point.axis, cell.way, cell.load)).or_default().push(cell);
            }
        }
        for cells in curves.values_mut() {
            cells.sort_by_key(|cell| cell.point.map(|point| point.count));
        }
        curves.into_values().collect()
    }

    /// A figure of a peer, the one with the largest count.
    pub fn figure(&self, of: Quantity, peer: Peer) -> Option<&Figure> {
        let figures = self.figures.iter().filter(|figure| figure.of == of && figure.peer == peer);
        figures.max_by_key(|figure| figure.count)
    }
}
