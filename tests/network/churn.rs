//! Namespaces that come and go, many times: nothing grows. 150 times, or as often as NSNET_CHURN says.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapInfo;
use nsnet::lab::Lab;

use super::bed::{Bed, DUAL, lab};
use super::tracer::{self, Run};
use super::world::World;

/// Verbs of one round, which end where they began.
const ROUND: [&str; 4] = ["ns add @c", "attach v-net-0 @c", "publish add @c 8080:80 8081:81/udp", "ns del @c --force"];

/// What could grow.
#[derive(Debug, PartialEq, Eq)]
struct Size {
    /// All that there is, but for the counters in the file.
    world: World,
    /// The numbers of the pinned maps: they are what they were.
    maps: Vec<u32>,
    /// Open files of each verb when it ends.
    files: Vec<usize>,
}

/// A verb that has to be done, under a tracer.
pub(crate) fn traced(lab: &Lab, line: &str) -> Result<Run> {
    let words = line.split(' ').map(|word| word.strip_prefix('@').map_or(word.to_owned(), |name| lab.name(name)));
    let run = tracer::run(&mut lab.command(words), &[])?;
    ensure!(run.code == Some(0), "`{line}`: {}", run.stderr);
    Ok(run)
}

/// One round under a tracer: what there is afterwards, and the most memory that any of its verbs had, in kB.
fn measure(lab: &Lab) -> Result<(Size, u64)> {
    let mut files = Vec::new();
    let mut memory = 0;
    for line in ROUND {
        let (open, peak) = traced(lab, line)?.at_exit.context("the verb was not seen to end")?;
        files.push(open);
        memory = memory.max(peak);
    }
    let mut world = World::of(lab)?;
    world.file = world.file.map(|_text| String::new());
    let pins = world.pins.iter().filter(|path| path.contains("/maps/"));
    let maps = pins.map(|path| Ok(MapInfo::from_pin(path)?.id())).collect::<Result<_>>()?;
    Ok((Size { world, maps, files }, memory))
}

#[test]
fn namespaces_that_come_and_go() -> Result<()> {
    let rounds: usize = std::env::var("NSNET_CHURN").map_or(Ok(150), |text| text.parse())?;
    let bed = Bed::inside(lab()?, &format!("{DUAL} --masquerade"), &["red", "blue"])?;
    let lab = &bed.lab;
    let started = Instant::now();
    let mut first = None;
    for number in 1..=rounds {
        if number == rounds.min(100) {
            first = Some(measure(lab)?);
        } else {
            for line in ROUND {
                lab.nsnet(line).with_context(|| format!("round {number}"))?;
            }
        }
    }
    let (first, memory) = first.context("no round was measured")?;
    let (last, memory_then) = measure(lab)?;
    println!(
        "{rounds} rounds in {:?}: open files of a verb {:?}, then {:?}; peak memory {memory} kB, then {memory_then} kB",
        started.elapsed(),
        first.files,
        last.files
    );
    assert_eq!(first, last);
    // As the allocator and the number of flows have it, and not with the rounds.
    ensure!(memory_then < memory + memory / 10, "the verbs grew from {memory} to {memory_then} kB");
    bed.check_no_drift()?;
    ensure!(bed.at("red").reaches(bed.at("blue").v4.into())?, "blue does not answer");
    Ok(())
}
