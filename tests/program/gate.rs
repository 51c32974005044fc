//! What a packet costs, beside what it did cost when that was last written down here.
//!
//! It reports everything and fails only when something has doubled: machines differ, and so do their days. Time is
//! taken as a ratio to a program that does nothing, run in turn with ours: both suffer alike.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::programs::SchedClassifier;
use nsnet::lab::stats::median;
use nsnet_common::bench::NOTHING;
use nsnet_common::cases::check;
use nsnet_common::cases::world::{HOST, RED, tables};
use nsnet_common::cases::{Hook, all, sequences};
use nsnet_common::layout::PortId;
use nsnet_common::memory::MemoryTables;
use nsnet_common::packet::Buffer;
use nsnet_tests::scratch::in_new_namespace;

use crate::clock::{monotonic, steady};
use crate::line::{Far, Line, Pair, Sent};
use crate::machine::{Machine, is_taken};
use crate::table::REDIRECT;

/// How much more is a regression.
const GROSS: f64 = 2.0;
/// Of each program, in turn with the other.
const RUNS: usize = 500;
/// Rounds of them: a neighbour that fills the caches for a while costs a large program more than a small one. What is really
/// slower is so in every round, so the best of them counts.
const ROUNDS: usize = 20;

/// What a packet cost on Linux 6.18.
struct Packet {
    name: &'static str,
    source: Source,
    /// Of its run to that of a program that does nothing. `None` where a run makes the next one another packet: the first
    /// of a flow is the first once only, and then meets cold caches.
    time: Option<f64>,
    /// In tables.
    lookups: u32,
}

/// Where a packet is described.
#[derive(Clone, Copy)]
enum Source {
    /// A case of this name.
    Case(&'static str),
    /// This step of a sequence of this name.
    Step(&'static str, usize),
}

const PACKETS: [Packet; 7] = [
    Packet { name: "switched", source: Source::Case("IPv4 from red to blue"), time: Some(1.9), lookups: 4 },
    Packet { name: "ARP answered", source: Source::Case("ARP for blue"), time: Some(4.2), lookups: 4 },
    Packet { name: "masqueraded, the first", source: Source::Step(TALK, 0), time: None, lookups: 29 },
    Packet { name: "its answer", source: Source::Step(TALK, 1), time: None, lookups: 6 },
    Packet { name: "masqueraded, a later one", source: Source::Step(TALK, 2), time: Some(5.4), lookups: 14 },
    Packet { name: "masqueraded, the first in a second", source: Source::Step(KEPT, 2), time: None, lookups: 11 },
    Packet {
        name: "published, the first",
        source: Source::Step("published TCP, an address and port", 0),
        time: None,
        lookups: 21,
    },
];
const TALK: &str = "IPv4, UDP, masqueraded";
const KEPT: &str = "IPv4, UDP, kept alive from inside";

/// Instructions that the verifier walked through on Linux 6.18, by program: every one of them.
const VERIFIED: [(&str, u32); 13] = [
    ("from_namespace", 19_857),
    ("from_host", 9_042),
    ("from_uplink", 30_924),
    ("routed", 31_037),
    ("related", 18_998),
    ("opened", 91_546),
    ("refused", 14_657),
    ("fragmented", 37_609),
    ("cut", 9_466),
    ("swept", 3_014),
    ("closed", 2),
    ("xdp_from_namespace", 31_783),
    ("xdp_from_uplink", 5_491),
];

#[test]
fn a_packet_costs_no_more_than_twice_what_it_did() -> Result<()> {
    in_new_namespace(|| {
        let mut machine = Machine::new(true)?;
        let mut ebpf = nsnet::bench::nothing()?;
        let nothing: &mut SchedClassifier = ebpf.program_mut(NOTHING).context("no such program")?.try_into()?;
        let mut regressions = Vec::new();
        for packet in PACKETS {
            let (tables, hook, port, frame) = packet.source.find(steady()?)?;
            ensure!(is_taken(&frame), "{}: BPF_PROG_TEST_RUN does not take it", packet.name);
            let (name, lookups) = (packet.name, lookups(hook, port, &frame, &tables));
            let mut has_doubled = f64::from(lookups) > GROSS * f64::from(packet.lookups);
            print!("{name}: {lookups} lookups ({})", packet.lookups);
            if let Some(was) = packet.time {
                machine.fill(&tables)?;
                let mut best = f64::INFINITY;
                for _ in 0..ROUNDS {
                    let times = machine.times(hook, port, &frame, nothing, RUNS)?;
                    let of = |of: fn(&(u64, u64)) -> u64| {
                        median(&times.iter().map(|time| of(time) as f64).collect::<Vec<_>>())
                    };
                    let (ours, theirs) = (of(|time| time.0).context("no runs")?, of(|time| time.1).context("no runs")?);
                    let time = ours / theirs.max(1.0);
                    print!(", {ours} ns, {time:.2} of a program that does nothing ({was:.2})");
                    best = best.min(time);
                    if best <= GROSS * was {
                        break;
                    }
                }
                has_doubled |= best > GROSS * was;
            }
            println!();
            if has_doubled {
                regressions.push(name);
            }
        }
        ensure!(regressions.is_empty(), "costs more than twice what it did: {}", regressions.join("; "));
        Ok(())
    })
}

#[test]
fn the_verifier_walks_no_more_than_twice_as_far() -> Result<()> {
    in_new_namespace(|| {
        let (mut regressions, mut unknown) = (Vec::new(), Vec::new());
        for (program, count) in Machine::new(true)?.verified_instructions()? {
            let Some(count) = count else {
                println!("{program}: this kernel tells no number: not compared");
                continue;
            };
            let Some((_, was)) = VERIFIED.iter().find(|(name, _)| *name == program) else {
                println!("{program}: {count} instructions (new)");
                unknown.push(program);
                continue;
            };
            println!("{program}: {count} instructions ({was})");
            if f64::from(count) > GROSS * f64::from(*was) {
                regressions.push(program);
            }
        }
        ensure!(unknown.is_empty(), "write down in VERIFIED what it is now: {}", unknown.join("; "));
        ensure!(regressions.is_empty(), "more than twice as many: {}", regressions.join("; "));
        Ok(())
    })
}

/// What a packet costs that is one of many flows': how much of it is that the entries are in no cache, and how much that it is
/// the first of its flow in a second, which looks at the way anew.
#[test]
fn a_packet_of_many_flows_costs_no_more_than_twice_what_it_did() -> Result<()> {
    const PORTS: u16 = 1_000;
    const SERVERS: u16 = 30;
    /// Of the time of one flow's packet, and of one of many.
    const WAS: [f64; 2] = [2.2, 1.7];
    in_new_namespace(|| {
        let mut machine = Machine::new(true)?;
        machine.fill(&tables(steady()?))?;
        let mut line = Line::new(&machine, &RED, &HOST, false, false);
        let mut frames = Vec::new();
        for (server, port) in (0..SERVERS).flat_map(|server| (0..PORTS).map(move |port| (server, port))) {
            let pair = Pair { near: 40_000 + port, far: (SERVER, 53 + 1_000 * server) };
            ensure!(line.open(pair)? == Sent::As(pair.near), "{pair:?}");
            frames.push(line.frame(pair));
        }
        let mut room = [0; 256];
        let mut time = |frames: &mut dyn Iterator<Item = &Vec<u8>>| -> Result<f64> {
            let mut times = Vec::new();
            for frame in frames {
                let seen = machine.run_into(Hook::Namespace, RED.id, frame, 0, &mut room)?;
                ensure!(seen.action == REDIRECT, "{frame:02x?}");
                times.push(seen.time.as_nanos() as f64);
            }
            median(&times).context("no runs")
        };
        // Both rounds within a second, and the first one in another second than whatever was before.
        let (mut one, mut many, mut first) = (Vec::new(), Vec::new(), Vec::new());
        let least = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
        let ratios = |one: &[f64], many: &[f64], first: &[f64]| {
            let [one, many, first] = [one, many, first].map(least);
            [(many / one, WAS[0]), (first / many, WAS[1])]
        };
        let is_fine = |one: &[f64], many: &[f64], first: &[f64]| {
            !one.is_empty() && ratios(one, many, first).iter().all(|(is, was)| *is <= GROSS * was)
        };
        // More turns where neighbours are in the way.
        while one.len() < TURNS || (one.len() < MOST_TURNS && !is_fine(&one, &many, &first)) {
            std::thread::sleep(Duration::from_secs(1));
            steady_from_the_start()?;
            first.push(time(&mut frames.iter().step_by(3))?);
            many.push(time(&mut frames.iter().step_by(3))?);
            one.push(time(&mut frames[..1].iter().cycle().take(RUNS))?);
        }
        println!(
            "one flow {} ns; {} flows {} ns, the first in a second {} ns",
            least(&one),
            frames.len(),
            least(&many),
            least(&first)
        );
        for (is, was) in ratios(&one, &many, &first) {
            ensure!(is <= GROSS * was, "{is:.2} times as much, and it was {was:.2}");
        }
        Ok(())
    })
}

/// Waits for a second to begin: the coarse clock may be 10 ms late, and whole_seconds() 17 ms.
fn steady_from_the_start() -> Result<()> {
    const START: u64 = 50_000_000;
    let over = monotonic()? % 1_000_000_000;
    std::thread::sleep(Duration::from_nanos(1_000_000_000 + START - over));
    Ok(())
}

/// Of the rounds over many flows; the quickest counts.
const TURNS: usize = 4;
/// When these do not do.
const MOST_TURNS: usize = 16;
/// Somebody afar, and nothing behind it.
const SERVER: Far = [198, 51, 100, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

type Found = (MemoryTables, Hook, PortId, Vec<u8>);

impl Source {
    /// The packet, and the tables that it meets.
    fn find(self, now: u64) -> Result<Found> {
        match self {
            Source::Case(name) => {
                let case = all().into_iter().find(|case| case.name == name);
                let case = case.with_context(|| format!("there is no case {name}"))?;
                Ok((case.tables(now), case.hook, case.port, case.frame))
            }
            Source::Step(name, number) => {
                let sequence = sequences().into_iter().find(|sequence| sequence.name == name);
                let sequence = sequence.with_context(|| format!("there is no sequence {name}"))?;
                let mut tables = sequence.tables(now);
                for step in sequence.steps.iter().take(number) {
                    step.prepare(&mut tables);
                    let (outcome, _frame) = step.run(&tables);
                    ensure!(outcome.is_ok(), "{name}: {outcome:?}");
                }
                let step = sequence.steps.into_iter().nth(number);
                let step = step.with_context(|| format!("{name} has fewer frames"))?;
                step.prepare(&mut tables);
                Ok((tables, step.hook, step.port, step.frame))
            }
        }
    }
}

/// How often tables are looked up for a packet: counted in memory, where the same code runs.
fn lookups(hook: Hook, port: PortId, frame: &[u8], tables: &MemoryTables) -> u32 {
    let before = tables.lookups.get();
    // Whatever becomes of it: the cases look at that.
    let _outcome = check::run(hook, &mut Buffer::new(frame.to_vec()), port, tables);
    tables.lookups.get() - before
}
