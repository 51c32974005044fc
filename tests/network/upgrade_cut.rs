//! Upgrades that are cut off, at every call of the kernel. They need `strace`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use nsnet::kernel::object::OBJECT;
use nsnet::lab::Lab;

use super::bed::{Bed, Scratch, V4};
use super::object::{check_whole, done_with, other_build, programs};
use super::world::{World, complaint};

/// What an upgrade asks the kernel for, when that changes something.
const CALLS: [&str; 9] = ["bpf", "link", "linkat", "mkdir", "membarrier", "renameat2", "unlink", "unlinkat", "rmdir"];

/// `strace` around an upgrade, with this to do to its calls.
fn traced(lab: &Lab, object: &Path, log: &Path, inject: Option<&str>) -> Result<Output> {
    let upgrade = lab.command(["upgrade", "--force"]);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", &format!("trace={}", CALLS.join(",")), "-o"]).arg(log);
    strace.args(inject.map(|what| ["-e".to_owned(), format!("inject={what}")]).into_iter().flatten());
    strace.arg(upgrade.get_program()).args(upgrade.get_args());
    strace.envs(upgrade.get_envs().filter_map(|(key, value)| Some((key, value?)))).env(OBJECT, object);
    strace.output().context("run strace")
}

/// Calls of an upgrade, each by its name and its number: the last ones of each kind, in which hooks change and folders move,
/// one by one or nearly, and a few of those before.
fn points(lab: &Lab, object: &Path, log: &Path) -> Result<Vec<(String, usize)>> {
    let output = traced(lab, object, log, None)?;
    ensure!(output.status.success(), "{output:?}");
    // "1234  bpf(BPF_LINK_UPDATE, ..." Numbers are those of one thread; the main one makes most of each kind.
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in fs::read_to_string(log)?.lines() {
        let mut words = line.split_whitespace();
        let (Some(thread), Some(call)) = (words.next(), words.next()) else { continue };
        if let Some((name, _)) = call.split_once('(') {
            *counts.entry((thread.to_owned(), name.to_owned())).or_default() += 1;
        }
    }
    let mut points = Vec::new();
    for name in CALLS {
        let most = counts.iter().filter(|((_, call), _)| call == name).map(|(_, count)| *count).max().unwrap_or(0);
        let (late, step) = (most.saturating_sub(75), if name == "bpf" { 4 } else { 15 });
        let early = (1..late).step_by((late / 4).max(1));
        points.extend(early.chain((late.max(1)..=most).step_by(step)).map(|number| (name.to_owned(), number)));
    }
    Ok(points)
}

/// F1 of an upgrade: killed at any call, packets go on, and one more run ends with one set of programs.
#[test]
fn killed_at_every_step() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let (lab, other) = (&bed.lab, other_build(&bed.lab)?);
    let log = Scratch(std::env::temp_dir().join(lab.name("strace")));
    let before = World::of(lab)?;
    let points = points(lab, &other.0, &log.0)?;
    let (mut killed, mut cut_in_two) = (0, 0);
    for (number, (call, at)) in points.iter().enumerate() {
        let what = || format!("killed at {call} {at}");
        // Between two builds, to and fro.
        lab.nsnet("upgrade").with_context(what)?;
        let old = programs(lab)?;
        let output = traced(lab, &other.0, &log.0, Some(&format!("{call}:signal=KILL:when={at}")))?;
        killed += u32::from(!output.status.success());
        ensure!(bed.at("red").reaches(bed.at("blue").v4.into())?, "{}: no packet passes", what());
        let now = programs(lab)?;
        ensure!(now == old || now.is_disjoint(&old), "{}: of two sets", what());
        cut_in_two += u32::from(check_whole(lab).is_err());
        // The same verb once more, or any other that changes something.
        if number % 2 == 0 {
            done_with(lab, &other.0, "upgrade").with_context(what)?;
        } else {
            lab.nsnet("ns add @other").with_context(what)?;
            lab.nsnet("ns del @other").with_context(what)?;
        }
        check_whole(lab).with_context(what)?;
        bed.check_no_drift().with_context(what)?;
        ensure!(bed.at("red").reaches(bed.at("blue").v4.into())?, "{}: no packet passes after it", what());
    }
    println!("{} points, {killed} killed, {cut_in_two} of them with something to settle", points.len());
    ensure!(killed > points.len() as u32 * 3 / 4 && cut_in_two > 10, "{killed} killed, {cut_in_two} in between");
    lab.nsnet("upgrade")?;
    assert_eq!(World::of(lab)?, before);
    Ok(())
}

/// F2 of an upgrade: a call that fails leaves the old programs, or does not matter.
#[test]
fn errors_are_taken_back() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let (lab, other) = (&bed.lab, other_build(&bed.lab)?);
    let log = Scratch(std::env::temp_dir().join(lab.name("strace")));
    let (mut failed, mut done) = (0, 0);
    for (call, at) in points(lab, &other.0, &log.0)? {
        lab.nsnet("upgrade")?;
        let (old, before) = (programs(lab)?, World::of(lab)?);
        let output = traced(lab, &other.0, &log.0, Some(&format!("{call}:error=ENOMEM:when={at}")))?;
        let what = || format!("error at {call} {at}: {output:?}");
        if output.status.success() {
            done += 1;
            ensure!(programs(lab)?.is_disjoint(&old), "{}", what());
            lab.nsnet("ns del @nobody").with_context(what)?;
        } else {
            failed += 1;
            // What the kernel is found able to do may depend on the call, so the cause has many names.
            ensure!(output.status.code() == Some(1) && complaint(&output).is_ok(), "{}", what());
            assert_eq!(programs(lab)?, old, "{}", what());
        }
        assert_eq!(World::of(lab)?, before, "{}", what());
        check_whole(lab).with_context(what)?;
        ensure!(bed.at("red").reaches(bed.at("blue").v4.into())?, "{}", what());
    }
    println!("{failed} failed and were taken back, {done} did all the same");
    ensure!(failed > 20, "only {failed} failed");
    bed.check_no_drift()
}
