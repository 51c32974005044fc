//! How fast one path is relative to another, measured so that the answer can be trusted on a small noisy machine.
//!
//! Absolute rates of a virtual machine drift by tens of percent within seconds, so they are never compared across time.
//! Each *block* measures every variant once, in random order, close together; only the ratio of two variants inside a
//! block counts, and the median over the blocks is reported with its interval ([`Ratio`]). Listing one path twice under
//! two names gives the noise floor: what [`Ratio::differs`] wants as its measure.
//!
//! **Blocks are short and many**, rather than long and few: the closer the variants stand together, the more of what the
//! machine does meanwhile they share. So that a slot of some 40 ms measures the path and not its setting up, every
//! path's sockets are open and its two threads waiting the whole time (`lane.rs`).
//!
//! **A sleeping receiver is part of what is measured.** Whoever sends a datagram to a receiver that sleeps pays for
//! waking it up, by an interrupt to another CPU, which on a virtual machine costs as much as the path itself. How
//! often the receiver sleeps depends on the rate, so a slower path also wakes up more; and on what else its CPU
//! does, which is why such figures scatter. So small datagrams are measured twice: to a receiver that waits in
//! `recv`, as programs do ([`Workload::UdpSmall`]), and to one that polls, where nothing but the path is left
//! ([`Workload::UdpPolled`]).
//!
//! The rest is held equal: every TCP socket asks for cubic, the sender is pinned to the first allowed CPU and the
//! receiver to the second, a lock file keeps two measurements from overlapping, and a block during which the hypervisor
//! took more than one percent of the CPU time is measured again.

use std::fmt;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::lane::{Lane, two_cpus};
use super::quiet::{CpuTime, lock};
use super::random::Random;
use super::stats::{Ratio, median};

/// Repeats of one block for stolen time.
const MAX_REPEATS: u32 = 2;
/// The share of CPU time that may be stolen during a block's slots of one workload: shorter times are below the
/// resolution of what the kernel tells.
const STEAL_LIMIT: f64 = 0.01;
/// Runs something in a network namespace and returns when it is done. With a type whose `run` takes any closure:
/// `&|work| namespace.run(|| work())`, plus whatever turns its result into this one.
pub type Inside<'a> = &'a (dyn Fn(&mut (dyn FnMut() + Send)) -> Result<()> + Sync);

/// One path from a sending to a receiving namespace.
#[derive(Clone, Copy)]
pub struct Variant<'a> {
    /// Unique among the variants of a comparison.
    pub name: &'a str,
    /// Where the sender sends to: by the first workload of a plan; each further one has the next port.
    pub to: SocketAddr,
    /// The sender's namespace.
    pub sender: Inside<'a>,
    /// The receiver's namespace.
    pub receiver: Inside<'a>,
}

/// Which variant an error is about, as its context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Over(pub(crate) String);

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot measure over {}", self.0)
    }
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// One TCP stream as fast as it goes; in bytes per second.
    TcpStream,
    /// UDP datagrams with 64 bytes of payload, one system call each, to a receiver that waits in `recv`; in datagrams
    /// *received* per second.
    UdpSmall,
    /// The same to a receiver that never sleeps, which leaves out what waking it up costs the sender.
    UdpPolled,
    /// Datagrams of 64 bytes there and back, one at a time; in round trips per second.
    RoundTrips,
    /// Short TCP connections: connect, one byte each way, close, the server first; in connections per second.
    Connections,
}

/// What is measured of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// What arrives per second.
    Rate,
    /// The share that does not arrive.
    Loss,
    /// The sender's CPU time for each unit, in seconds.
    Cpu,
    /// The sender's instructions for each unit.
    Instructions,
    /// The median of round trips, in seconds.
    TripMedian,
    /// The time within which 99 of 100 round trips are over, in seconds.
    TripP99,
}

/// How to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What to send.
    pub workloads: Vec<Workload>,
    /// Blocks: 6 for a quick look, at least 20 for a figure to publish.
    pub blocks: usize,
    /// How long each variant and workload is measured in each block.
    pub slot: Duration,
    /// How long it runs before that, unmeasured.
    pub warm_up: Duration,
    /// Decides the order within blocks and the bootstrap's draws.
    pub seed: u64,
}

impl Plan {
    /// A TCP stream and small datagrams, with a warm-up of 10 ms: more than the ports' caches and TCP's queues need.
    pub fn new(blocks: usize, slot: Duration) -> Plan {
        Plan {
            workloads: vec![Workload::TcpStream, Workload::UdpSmall, Workload::UdpPolled],
            blocks,
            slot,
            warm_up: Duration::from_millis(10),
            seed: 1,
        }
    }
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// One for each workload and variant, in the order they were given.
    pub series: Vec<Series>,
    /// Blocks that were measured again because time was stolen.
    pub repeated: u32,
    /// Blocks that are counted although time was stolen in every attempt.
    pub disturbed: u32,
    /// Whether sender and receiver had a CPU each.
    pub pinned: bool,
    seed: u64,
}

/// The measurements of one variant under one workload.
#[derive(Clone, Debug)]
pub struct Series {
    /// What was sent.
    pub workload: Workload,
    /// The variant's name.
    pub variant: String,
    /// The rate in each block, in the workload's unit.
    pub rates: Vec<f64>,
    /// The share of what was sent that did not arrive, in each block.
    pub losses: Vec<f64>,
    /// Seconds of the sender's CPU time for each unit that arrived, in each block.
    pub cpu: Vec<f64>,
    /// The sender's instructions for each unit that arrived, in each block; empty where the machine does not count them.
    pub instructions: Vec<f64>,
    /// How long round trips took, in each block; empty for other workloads.
    pub trips: Vec<Trips>,
}

/// What one slot gave, per unit of the workload: a byte, a datagram, a connection or a round trip.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Units per second that arrived, or will have when the receiver's queue is read.
    pub rate: f64,
    /// Share of what was sent that did not arrive.
    pub loss: f64,
    /// Seconds of the sender's CPU time for each unit that arrived.
    pub cpu: f64,
    /// Instructions of the sender for each unit that arrived, where the machine counts them.
    pub instructions: Option<f64>,
    /// How long they took, where each is one round trip.
    pub trips: Option<Trips>,
}

/// How long round trips took, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Trips {
    /// Half of them took no longer.
    pub median: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
}

/// Measures every variant under every workload of the plan. `progress` is told after each slot how many are done and
/// how many there are; the latter grows when a block is repeated. It is also called while another measurement is waited
/// for. Its error ends the comparison.
///
/// # Errors
/// When a variant cannot connect, when the plan is out of bounds, or when another measurement does not end. A path that
/// connects and carries nothing is not an error: its rate is zero.
pub fn compare(
    variants: &[Variant],
    plan: &Plan,
    mut progress: impl FnMut(usize, usize) -> Result<()>,
) -> Result<Comparison> {
    check(variants, plan)?;
    let total = variants.len() * plan.workloads.len() * plan.blocks;
    let _lock = lock(|| progress(0, total))?;
    compare_locked(variants, plan, progress)
}

/// The same for who has the right to measure already.
pub(crate) fn compare_locked(
    variants: &[Variant],
    plan: &Plan,
    mut progress: impl FnMut(usize, usize) -> Result<()>,
) -> Result<Comparison> {
    let (mut done, mut total) = (0, variants.len() * plan.workloads.len() * plan.blocks);
    let cpus = two_cpus();
    let mut blocks = Blocks::new(plan.seed);
    let mut comparison = Comparison::empty(variants, plan, cpus.is_some());
    thread::scope(|scope| {
        let over = |place: usize| Over(variants[place].name.to_owned());
        let open = |workload: Workload, (place, variant)| {
            Lane::open(scope, variant, workload, plan, cpus)
                .with_context(|| format!("{workload:?}"))
                .with_context(|| over(place))
        };
        let all = |workload| {
            variants.iter().enumerate().map(move |variant| open(workload, variant)).collect::<Result<Vec<_>>>()
        };
        let lanes = plan.workloads.iter().map(|workload| all(*workload)).collect::<Result<Vec<_>>>()?;
        for _ in 0..plan.blocks {
            // What is compared is measured close together: all variants under one workload, then the next.
            for (workload, lanes) in lanes.iter().enumerate() {
                let measure = |place: usize| lanes[place].measure().with_context(|| over(place));
                let samples = blocks.once(lanes.len(), measure, |repeats| {
                    done += 1;
                    total += usize::from(repeats);
                    progress(done, total)
                })?;
                comparison.add(workload * lanes.len(), &samples);
            }
        }
        anyhow::Ok(())
    })?;
    (comparison.repeated, comparison.disturbed) = (blocks.repeated, blocks.disturbed);
    Ok(comparison)
}

/// Takes samples of what is to be compared, in random order, again when the hypervisor disturbed them.
#[derive(Debug)]
pub(crate) struct Blocks {
    random: Random,
    /// Parts of blocks that were measured again because time was stolen.
    pub(crate) repeated: u32,
    /// Those that are counted although time was stolen in every attempt.
    pub(crate) disturbed: u32,
}

impl Blocks {
    /// None yet.
    pub(crate) fn new(seed: u64) -> Blocks {
        Blocks { random: Random::new(seed), repeated: 0, disturbed: 0 }
    }

    /// One sample of each of `count` things. `progress` is told after each sample whether it repeats one.
    pub(crate) fn once(
        &mut self,
        count: usize,
        mut measure: impl FnMut(usize) -> Result<Sample>,
        mut progress: impl FnMut(bool) -> Result<()>,
    ) -> Result<Vec<Sample>> {
        let mut order: Vec<usize> = (0..count).collect();
        let mut samples = vec![Sample::default(); count];
        for attempt in 0..=MAX_REPEATS {
            self.random.shuffle(&mut order);
            let before = CpuTime::read()?;
            for &place in &order {
                samples[place] = measure(place)?;
                progress(attempt > 0)?;
            }
            if CpuTime::read()?.stolen_since(before) <= STEAL_LIMIT {
                return Ok(samples);
            }
            self.repeated += u32::from(attempt < MAX_REPEATS);
        }
        self.disturbed += 1;
        Ok(samples)
    }
}

impl Comparison {
    /// The measurements of one variant.
    pub fn series(&self, workload: Workload, variant: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.workload == workload && series.variant == variant)
    }

    /// The middle of a variant's measurements; `None` when there are none.
    pub fn median(&self, workload: Workload, variant: &str, measure: Measure) -> Option<f64> {
        median(&self.series(workload, variant)?.of(measure))
    }

    /// `variant` relative to `baseline`, block by block.
    ///
    /// # Errors
    /// When one of them was not measured.
    pub fn ratio(&self, workload: Workload, variant: &str, baseline: &str, measure: Measure) -> Result<Ratio> {
        let find =
            |name| self.series(workload, name).with_context(|| format!("{workload:?} over {name} was not measured"));
        let (above, below) = (find(variant)?.of(measure), find(baseline)?.of(measure));
        // A block in which the baseline carried nothing is no measure; one in which the variant did not is a zero.
        let pairs = above.iter().zip(below).filter(|(_, below)| *below > 0.0);
        let ratios: Vec<f64> = pairs.map(|(above, below)| above / below).collect();
        Ratio::of(&ratios, self.seed)
            .with_context(|| format!("there is no {measure:?} of {workload:?} over {baseline}"))
    }

    /// One that holds these measurements.
    #[cfg(test)]
    pub(crate) fn of(series: Vec<Series>) -> Comparison {
        Comparison { series, repeated: 0, disturbed: 0, pinned: true, seed: 1 }
    }

    fn empty(variants: &[Variant], plan: &Plan, pinned: bool) -> Comparison {
        let cells = plan.workloads.iter().flat_map(|workload| variants.iter().map(move |variant| (workload, variant)));
        let series = cells.map(|(workload, variant)| Series::new(*workload, variant.name));
        Comparison { series: series.collect(), repeated: 0, disturbed: 0, pinned, seed: plan.seed }
    }

    /// Enters one sample into each series from `first` on.
    fn add(&mut self, first: usize, samples: &[Sample]) {
        for (series, sample) in self.series[first..].iter_mut().zip(samples) {
            series.add(sample);
        }
    }
}

impl Series {
    /// Without measurements.
    pub(crate) fn new(workload: Workload, variant: &str) -> Series {
        let (rates, losses, cpu, instructions, trips) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Series { workload, variant: variant.to_owned(), rates, losses, cpu, instructions, trips }
    }

    /// Enters a block's sample.
    pub(crate) fn add(&mut self, sample: &Sample) {
        self.rates.push(sample.rate);
        self.losses.push(sample.loss);
        self.cpu.push(sample.cpu);
        self.instructions.extend(sample.instructions);
        self.trips.extend(sample.trips);
    }

    /// Block by block.
    pub(crate) fn samples(&self) -> impl Iterator<Item = Sample> {
        let blocks = self.rates.iter().zip(&self.losses).zip(&self.cpu).enumerate();
        blocks.map(|(block, ((rate, loss), cpu))| Sample {
            rate: *rate,
            loss: *loss,
            cpu: *cpu,
            instructions: self.instructions.get(block).copied(),
            trips: self.trips.get(block).copied(),
        })
    }

    /// What was measured in each block.
    pub fn of(&self, measure: Measure) -> Vec<f64> {
        let trips = |of: fn(&Trips) -> f64| self.trips.iter().map(of).collect();
        match measure {
            Measure::Rate => self.rates.clone(),
            Measure::Loss => self.losses.clone(),
            Measure::Cpu => self.cpu.clone(),
            Measure::Instructions => self.instructions.clone(),
            Measure::TripMedian => trips(|trips| trips.median),
            Measure::TripP99 => trips(|trips| trips.p99),
        }
    }
}

impl Workload {
    /// A rate in words: `22.9 Gbit/s`, `146 kpps`.
    pub fn show(self, rate: f64) -> String {
        match self {
            Workload::TcpStream => format!("{:.2} Gbit/s", rate * 8.0 / 1e9),
            Workload::UdpSmall | Workload::UdpPolled => format!("{:.1} kpps", rate / 1e3),
            Workload::RoundTrips => format!("{:.1} us", 1e6 / rate),
            Workload::Connections => format!("{:.1} thousand connections/s", rate / 1e3),
        }
    }

    /// What its rates count, in words.
    pub fn unit(self) -> &'static str {
        match self {
            Workload::TcpStream => "bytes per second",
            Workload::UdpSmall | Workload::UdpPolled => "received datagrams per second",
            Workload::RoundTrips => "round trips per second",
            Workload::Connections => "connections per second",
        }
    }
}

fn check(variants: &[Variant], plan: &Plan) -> Result<()> {
    ensure!(!variants.is_empty() && !plan.workloads.is_empty(), "there is nothing to measure");
    ensure!((1..=1_000).contains(&plan.blocks), "a measurement has 1 to 1000 blocks, not {}", plan.blocks);
    let (shortest, longest) = (Duration::from_millis(10), Duration::from_secs(60));
    ensure!((shortest..=longest).contains(&plan.slot), "a slot takes 10 ms to 60 s, not {:?}", plan.slot);
    ensure!(plan.warm_up <= longest, "a warm-up takes at most 60 s, not {:?}", plan.warm_up);
    for (n, variant) in variants.iter().enumerate() {
        ensure!(variants[..n].iter().all(|v| v.name != variant.name), "two variants are called {}", variant.name);
        ensure!(variant.to.port() != 0, "{} needs a fixed port", variant.name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here(work: &mut (dyn FnMut() + Send)) -> Result<()> {
        work();
        Ok(())
    }

    fn variant(name: &str, port: u16) -> Variant<'_> {
        Variant { name, to: SocketAddr::from(([127, 0, 0, 1], port)), sender: &here, receiver: &here }
    }

    #[test]
    fn refuses_a_plan_that_makes_no_sense() {
        let plan = Plan::new(1, Duration::from_millis(20));
        assert!(check(&[], &plan).is_err());
        assert!(check(&[variant("a", 1), variant("a", 1)], &plan).is_err());
        assert!(check(&[variant("a", 0)], &plan).is_err());
        assert!(check(&[variant("a", 1)], &Plan { blocks: 0, ..plan.clone() }).is_err());
        assert!(check(&[variant("a", 1)], &Plan { slot: Duration::ZERO, ..plan }).is_err());
    }

    #[test]
    fn takes_ratios_block_by_block() {
        let plan = Plan { workloads: vec![Workload::UdpSmall], ..Plan::new(3, Duration::from_millis(20)) };
        let mut comparison = Comparison::empty(&[variant("a", 1), variant("b", 1)], &plan, true);
        // The machine became ten times slower; the ratio did not change.
        comparison.series[0].rates = vec![100.0, 10.0, 1.0];
        comparison.series[1].rates = vec![200.0, 20.0, 2.0];
        let ratio = |a, b| comparison.ratio(Workload::UdpSmall, a, b, Measure::Rate);
        let slower = ratio("b", "a").unwrap();
        assert_eq!((slower.median, slower.low, slower.high), (2.0, 2.0, 2.0));
        assert!(comparison.ratio(Workload::TcpStream, "b", "a", Measure::Rate).is_err());
        assert!(comparison.ratio(Workload::UdpSmall, "b", "a", Measure::Instructions).is_err());
        // A block without a baseline says nothing; one without the variant counts against it.
        comparison.series[0].rates[1] = 0.0;
        let ratio = |a, b| comparison.ratio(Workload::UdpSmall, a, b, Measure::Rate).unwrap();
        assert_eq!((ratio("b", "a").median, ratio("b", "a").blocks), (2.0, 2));
        assert_eq!((ratio("a", "b").low, ratio("a", "b").blocks), (0.0, 3));
    }
}
