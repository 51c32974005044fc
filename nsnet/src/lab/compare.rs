//! How fast one path is relative to another, measured so that the answer can be trusted on a small noisy machine.
//!
//! Absolute rates of a virtual machine drift by tens of percent within minutes, so they are never compared across time.
//! Each *block* measures every variant once, in random order, close together; only the ratio of two variants inside a
//! block counts, and the median over the blocks is reported with its interval ([`Ratio`]). Listing one path twice under
//! two names gives the noise floor: what [`Ratio::differs`] wants as its measure.
//!
//! The rest is held equal: every TCP socket asks for cubic, the sender is pinned to the first allowed CPU and the
//! receiver to the second, a lock file keeps two measurements from overlapping, and a block during which the hypervisor
//! took more than one percent of a slot's CPU time is measured again.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::quiet::{CpuTime, lock};
use super::random::Random;
use super::stats::{Ratio, median};
use super::throughput::{self, Sample};

/// Repeats of one block for stolen time.
const MAX_REPEATS: u32 = 2;
/// The share of CPU time that may be stolen during a slot.
const STEAL_LIMIT: f64 = 0.01;
/// Runs something in a network namespace and returns when it is done. With a type whose `run` takes any closure:
/// `&|work| namespace.run(|| work())`, plus whatever turns its result into this one.
///
/// Only sockets are opened that way, not traffic sent: a socket stays in its namespace whichever thread uses it.
pub type Inside<'a> = &'a (dyn Fn(&mut (dyn FnMut() + Send)) -> Result<()> + Sync);

/// One path from a sending to a receiving namespace.
#[derive(Clone, Copy)]
pub struct Variant<'a> {
    /// Unique among the variants of a comparison.
    pub name: &'a str,
    /// Where the sender sends to.
    pub to: SocketAddr,
    /// The port to listen on in the receiver's namespace: that of `to`, unless the path translates it.
    pub listen: u16,
    /// The sender's namespace.
    pub sender: Inside<'a>,
    /// The receiver's namespace.
    pub receiver: Inside<'a>,
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// One TCP stream as fast as it goes; in bytes per second.
    TcpStream,
    /// UDP datagrams with 64 bytes of payload, one system call each; in datagrams *received* per second.
    UdpSmall,
    /// Short TCP connections: connect, one byte each way, close, the server first; in connections per second.
    Connections,
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
    /// A TCP stream and small datagrams, with a warm-up of 0.2 s.
    pub fn new(blocks: usize, slot: Duration) -> Plan {
        Plan {
            workloads: vec![Workload::TcpStream, Workload::UdpSmall],
            blocks,
            slot,
            warm_up: Duration::from_millis(200),
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
    /// The share of what was sent that did not arrive, in each block; zero for a TCP
    /// stream. With connections it is up to a batch of them more or less, which were under way.
    pub losses: Vec<f64>,
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
    let per_block = variants.len() * plan.workloads.len();
    let (mut done, mut total) = (0, per_block * plan.blocks);
    let _lock = lock(|| progress(done, total))?;
    let cpus = throughput::two_cpus();
    let mut random = Random::new(plan.seed);
    let mut comparison = Comparison::empty(variants, plan, cpus.is_some());
    for _ in 0..plan.blocks {
        for attempt in 0..=MAX_REPEATS {
            // What is compared is measured close together: all variants under one workload, then the next.
            let order = (0..plan.workloads.len()).flat_map(|workload| {
                let mut variants: Vec<usize> = (0..variants.len()).collect();
                random.shuffle(&mut variants);
                variants.into_iter().map(move |variant| (workload, variant))
            });
            let mut samples = vec![Sample::default(); per_block];
            let mut disturbed = false;
            for (w, v) in order {
                let before = CpuTime::read()?;
                samples[w * variants.len() + v] = throughput::measure(&variants[v], plan.workloads[w], plan, cpus)
                    .with_context(|| format!("cannot measure {:?} over {}", plan.workloads[w], variants[v].name))?;
                disturbed |= CpuTime::read()?.stolen_since(before) > STEAL_LIMIT;
                done += 1;
                progress(done, total)?;
            }
            if disturbed && attempt < MAX_REPEATS {
                comparison.repeated += 1;
                total += per_block;
                continue;
            }
            comparison.disturbed += u32::from(disturbed);
            for (series, sample) in comparison.series.iter_mut().zip(samples) {
                series.rates.push(sample.rate);
                series.losses.push(sample.loss);
            }
            break;
        }
    }
    Ok(comparison)
}

impl Comparison {
    /// The measurements of one variant.
    pub fn series(&self, workload: Workload, variant: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.workload == workload && series.variant == variant)
    }

    /// The middle rate of a variant.
    pub fn median(&self, workload: Workload, variant: &str) -> Option<f64> {
        median(&self.series(workload, variant)?.rates)
    }

    /// `variant` relative to `baseline`, block by block.
    ///
    /// # Errors
    /// When one of them was not measured, or the baseline carried nothing in some block.
    pub fn ratio(&self, workload: Workload, variant: &str, baseline: &str) -> Result<Ratio> {
        let find =
            |name| self.series(workload, name).with_context(|| format!("{workload:?} over {name} was not measured"));
        let (above, below) = (&find(variant)?.rates, &find(baseline)?.rates);
        ensure!(below.iter().all(|rate| *rate > 0.0), "{baseline} carried nothing in some block: no baseline");
        let ratios: Vec<f64> = above.iter().zip(below).map(|(above, below)| above / below).collect();
        Ratio::of(&ratios, self.seed).context("no block was measured")
    }

    fn empty(variants: &[Variant], plan: &Plan, pinned: bool) -> Comparison {
        let cells = plan.workloads.iter().flat_map(|workload| variants.iter().map(move |variant| (workload, variant)));
        let series = cells.map(|(workload, variant)| Series {
            workload: *workload,
            variant: variant.name.to_owned(),
            rates: Vec::new(),
            losses: Vec::new(),
        });
        Comparison { series: series.collect(), repeated: 0, disturbed: 0, pinned, seed: plan.seed }
    }
}

impl Workload {
    /// A rate in words: `22.9 Gbit/s`, `146 kpps`.
    pub fn show(self, rate: f64) -> String {
        match self {
            Workload::TcpStream => format!("{:.2} Gbit/s", rate * 8.0 / 1e9),
            Workload::UdpSmall => format!("{:.1} kpps", rate / 1e3),
            Workload::Connections => format!("{:.1} thousand connections/s", rate / 1e3),
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
        ensure!(variant.to.port() != 0 && variant.listen != 0, "{} needs a fixed port", variant.name);
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
        Variant { name, to: SocketAddr::from(([127, 0, 0, 1], port)), listen: port, sender: &here, receiver: &here }
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
        let ratio = comparison.ratio(Workload::UdpSmall, "b", "a").unwrap();
        assert_eq!((ratio.median, ratio.low, ratio.high), (2.0, 2.0, 2.0));
        assert!(comparison.ratio(Workload::TcpStream, "b", "a").is_err());
        comparison.series[0].rates[1] = 0.0;
        assert!(comparison.ratio(Workload::UdpSmall, "b", "a").is_err());
    }
}
