//! Undoing that fails, too: it is not forgotten, but tried again by the next verb.

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nsnet::lab::Lab;
use serde_json::json;

use super::crash::part;
use super::cut_off::{ATTACH, NETWORK, host, red_is_attached};
use super::tracer::{self, Call, Fault, Run};
use super::world::{World, complaint};

fn traced(lab: &Lab, line: &str, faults: &[(&Call, Fault)]) -> Result<Run> {
    let words = line.split(' ').map(|word| word.strip_prefix('@').map_or(word.to_owned(), |name| lab.name(name)));
    tracer::run(&mut lab.command(words), faults)
}

/// The calls of a verb that fails at one of the last that it makes; and after which of them it is being undone.
fn failing(lab: &Lab, line: &str, last: &str) -> Result<(Call, Vec<Call>)> {
    let done = traced(lab, line, &[])?;
    ensure!(done.code == Some(0), "`{line}`: {}", done.stderr);
    let call =
        done.calls.iter().rfind(|call| call.name == last).with_context(|| format!("no {last} in `{line}`"))?.clone();
    lab.nsnet("detach v-net-0 @red")?;
    let failed = traced(lab, line, &[(&call, Fault::Fail(Errno::ENOMEM))])?;
    ensure!(failed.code == Some(1), "it was done without {last}");
    let at = failed.calls.iter().position(|other| other.is(&call)).context("it did not come to that call")?;
    Ok((call, failed.calls[at + 1..].to_vec()))
}

fn drift(lab: &Lab) -> Result<serde_json::Value> {
    let status = lab.try_nsnet("-o json status")?;
    Ok(serde_json::from_slice::<serde_json::Value>(&status.stdout)?["drift"].clone())
}

#[test]
fn what_could_not_be_undone_is_undone_by_the_next_verb() -> Result<()> {
    let lab = host()?;
    lab.nsnet(NETWORK)?;
    let before = World::of(&lab)?;
    // Announcing the addresses is the last thing, and the first thing to be undone is the interface (RTM_DELLINK = 17).
    let (announcing, undoing) = failing(&lab, ATTACH, "bind")?;
    let deleting = undoing.iter().find(|call| call.name == "netlink request 17").context("no interface was deleted")?;
    let faults = [(&announcing, Fault::Fail(Errno::ENOMEM)), (deleting, Fault::Fail(Errno::EPERM))];
    let run = traced(&lab, ATTACH, &faults)?;
    ensure!(run.code == Some(1) && run.stderr.contains("taking it back failed"), "{}", run.stderr);
    ensure!(run.stderr.contains("next verb tries again"), "no remedy: {}", run.stderr);
    ensure!(drift(&lab)?.to_string().contains("cut off"), "`status` says {}", drift(&lab)?);

    // The next verb fails at it, too: it says so, does nothing of its own, and leaves it to the one after.
    let tried = traced(&lab, "ns add @x", &[])?;
    ensure!(tried.code == Some(0), "{}", tried.stderr);
    lab.nsnet("ns del @x")?;
    World::of(&lab)?.check_similar(&before)?;
    let run = traced(&lab, ATTACH, &faults)?;
    ensure!(run.code == Some(1), "{}", run.stderr);
    let deleting = tried.calls.iter().find(|call| call.name == "netlink request 17").context("nothing was undone")?;
    let run = traced(&lab, "ns add @x", &[(deleting, Fault::Fail(Errno::EPERM))])?;
    ensure!(run.code == Some(1) && run.stderr.contains("nsnet down"), "{:?}: {}", run.code, run.stderr);
    ensure!(drift(&lab)?.to_string().contains("cut off"), "`status` says {}", drift(&lab)?);
    // The verb itself undoes it first, and is done.
    lab.nsnet(ATTACH)?;
    ensure!(drift(&lab)? == json!([]), "{}", drift(&lab)?);
    red_is_attached(&lab)?;
    lab.nsnet("detach v-net-0 @red")?;
    World::of(&lab)?.check_similar(&before)
}

#[test]
fn what_can_never_be_undone_can_be_taken_down() -> Result<()> {
    let lab = host()?;
    lab.nsnet(NETWORK)?;
    let (announcing, undoing) = failing(&lab, ATTACH, "bind")?;
    let deleting = undoing.iter().find(|call| call.name == "netlink request 17").context("no interface was deleted")?;
    let faults = [(&announcing, Fault::Fail(Errno::ENOMEM)), (deleting, Fault::Fail(Errno::EPERM))];
    ensure!(traced(&lab, ATTACH, &faults)?.code == Some(1), "it was undone");
    lab.nsnet("down")?;
    let left = World::of(&lab)?;
    ensure!(left.pins.is_empty() && left.file.is_none() && left.files.is_empty(), "{left:?}");
    Ok(())
}

#[test]
fn any_call_of_undoing_may_fail() -> Result<()> {
    let lab = host()?;
    lab.nsnet(NETWORK)?;
    let before = World::of(&lab)?;
    let (announcing, undoing) = failing(&lab, ATTACH, "bind")?;
    let points: Vec<(&Call, Errno)> =
        undoing.iter().flat_map(|call| call.errors.iter().map(move |e| (call, *e))).collect();
    let step = if part().is_some() { 1 } else { points.len().div_ceil(20) };
    let mut tried = 0;
    for (call, errno) in points.iter().step_by(step) {
        let what = || format!("{errno:?} at {} {} of undoing", call.name, call.path);
        let faults = [(&announcing, Fault::Fail(Errno::ENOMEM)), (*call, Fault::Fail(*errno))];
        let run = traced(&lab, ATTACH, &faults)?;
        ensure!(run.code == Some(1), "{}: {}", what(), run.stderr);
        // The next verb mends it, if it was not done already.
        lab.nsnet("ns del @nobody").with_context(what)?;
        ensure!(drift(&lab)? == json!([]), "{}: {}", what(), drift(&lab)?);
        World::of(&lab)?.check_similar(&before).with_context(what)?;
        tried += 1;
    }
    println!("undoing failed at {tried} of {} pairs of call and error: the next verb undid it each time", points.len());
    Ok(())
}

#[test]
fn a_verb_that_was_cut_off_is_told_by_status() -> Result<()> {
    let lab = host()?;
    lab.nsnet(NETWORK)?;
    let calls = traced(&lab, ATTACH, &[])?.calls;
    lab.nsnet("detach v-net-0 @red")?;
    let binding = calls.iter().rfind(|call| call.name == "bind").context("no bind")?;
    ensure!(traced(&lab, ATTACH, &[(binding, Fault::Kill)])?.code.is_none(), "it was not killed");
    ensure!(drift(&lab)?.to_string().contains("cut off"), "`status` says {}", drift(&lab)?);
    let refused = lab.try_nsnet("attach v-net-9 @red")?;
    complaint(&refused)?;
    // The verb was refused; what was cut off before is undone all the same.
    ensure!(drift(&lab)? == json!([]), "{}", drift(&lab)?);
    Ok(())
}
