//! Upgrades that are cut off, or fail, at every call of the kernel that matters.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nsnet::kernel::object::OBJECT;
use nsnet::lab::Lab;

use super::bed::{Bed, V4};
use super::crash::{chosen, part};
use super::object::{check_whole, done_with, other_build, programs};
use super::tracer::{self, Call, Fault, Run};
use super::world::World;

/// An upgrade to another object.
fn traced(lab: &Lab, object: &Path, fault: Option<(&Call, Fault)>) -> Result<Run> {
    tracer::run(lab.command(["upgrade", "--force"]).env(OBJECT, object), fault.as_slice())
}

/// Calls at which to cut an upgrade off: some of those that change something from the one on with which the first hook
/// gets another program, and a few before; with NSNET_ALL_POINTS all of them, from the first on (or its part).
fn points(calls: &[Call]) -> Result<Vec<&Call>> {
    if part().is_some() {
        return Ok(chosen(calls.iter().filter(|call| call.changes).collect(), 0));
    }
    let (early, every) = (5, 5);
    let first = calls.iter().position(|call| call.name == "bpf link update").context("no hook was changed")?;
    let (before, late) = calls.split_at(first);
    let changes = |calls: &[Call]| calls.iter().filter(|call| call.changes).count();
    let steps = [(before, changes(before).div_ceil(early)), (late, every)];
    Ok(steps.iter().flat_map(|(calls, step)| calls.iter().filter(|call| call.changes).step_by(*step)).collect())
}

fn ping(bed: &Bed) -> Result<()> {
    ensure!(bed.at("red").reaches(bed.at("blue").v4.into())?, "no packet passes");
    Ok(())
}

/// F1 of an upgrade: killed at any call, packets go on, and one more run ends with one set of programs.
#[test]
fn killed_at_every_step() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let (lab, other) = (&bed.lab, other_build(&bed.lab)?);
    let before = World::of(lab)?;
    let calls = traced(lab, &other.0, None)?.calls;
    let points = points(&calls)?;
    let (mut killed, mut cut_in_two) = (0, 0);
    for (number, call) in points.iter().enumerate() {
        let what = || format!("killed at {} {} {}", call.name, call.path, call.occurrence);
        // Between two builds, to and fro.
        lab.nsnet("upgrade").with_context(what)?;
        let old = programs(lab)?;
        killed += u32::from(traced(lab, &other.0, Some((call, Fault::Kill)))?.code.is_none());
        ping(&bed).with_context(what)?;
        let now = programs(lab)?;
        ensure!(now == old || now.is_disjoint(&old), "{}: of two sets", what());
        if check_whole(lab).is_err() {
            cut_in_two += 1;
            ensure!(!lab.try_nsnet("status")?.status.success(), "{}: `status` sees nothing", what());
        }
        // The same verb once more, or any other that changes something.
        if number % 2 == 0 {
            done_with(lab, &other.0, "upgrade").with_context(what)?;
        } else {
            lab.nsnet("ns add @other").with_context(what)?;
            lab.nsnet("ns del @other").with_context(what)?;
        }
        check_whole(lab).with_context(what)?;
        bed.check_no_drift().with_context(what)?;
        ping(&bed).with_context(what)?;
    }
    println!(
        "{} points of {} calls, {killed} killed, {cut_in_two} with something to settle",
        points.len(),
        calls.len()
    );
    // Of all calls, most come before there is something to settle.
    ensure!(
        killed > points.len() as u32 * 3 / 4 && (cut_in_two > killed / 2 || part().is_some() && cut_in_two > 0),
        "{killed} killed, {cut_in_two} in between"
    );
    lab.nsnet("upgrade")?;
    World::of(lab)?.check_similar(&before)
}

/// F2 of an upgrade: a call that fails leaves the old programs, or does not matter. So does being asked to end.
#[test]
fn errors_are_taken_back() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let (lab, other) = (&bed.lab, other_build(&bed.lab)?);
    let calls = traced(lab, &other.0, None)?.calls;
    let (mut failed, mut done) = (0, 0);
    for (number, call) in points(&calls)?.into_iter().enumerate() {
        lab.nsnet("upgrade")?;
        let (old, before) = (programs(lab)?, World::of(lab)?);
        let fault = match call.errors {
            _ if number % 5 == 0 => Fault::Terminate,
            [] => continue,
            errors => Fault::Fail(errors[number % errors.len()]),
        };
        let run = traced(lab, &other.0, Some((call, fault)))?;
        let what = || format!("{fault:?} at {} {} {}: {} {run:?}", call.name, call.path, call.occurrence, run.stderr);
        if programs(lab)?.is_disjoint(&old) {
            done += 1;
            // What it could not remove is removed by the next verb.
            lab.nsnet("ns del @nobody").with_context(what)?;
        } else {
            failed += 1;
            ensure!(run.code != Some(0) && programs(lab)? == old, "{}", what());
            ensure!(run.code.is_none() || run.stderr.lines().count() == 1, "not one line: {}", run.stderr);
        }
        World::of(lab)?.check_similar(&before).with_context(what)?;
        check_whole(lab).with_context(what)?;
        ping(&bed).with_context(what)?;
    }
    println!("{failed} failed and were taken back, {done} did all the same");
    ensure!(failed > 3, "only {failed} failed");
    bed.check_no_drift()
}
