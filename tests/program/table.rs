//! Every case of the table, in the kernel.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
pub(crate) use nsnet::kernel::explain::action;
use nsnet_common::cases::check::{NOON, State};
use nsnet_common::cases::sequence::{Sequence, grow_old};
use nsnet_common::cases::{Case, all, sequences};
use nsnet_common::layout::{ForeignKey, MAX_STATIONS, PortId, whole_seconds};
use nsnet_common::wire::Mac;
use nsnet_tests::scratch::in_new_namespace;

use crate::clock::{LATE, in_time, monotonic, steady};
use crate::machine::{Machine, Ran, is_taken};

/// `TC_ACT_REDIRECT`, and `TC_ACT_UNSPEC`, -1 (linux/pkt_cls.h).
pub(crate) const REDIRECT: u32 = 7;
pub(crate) const UNSPEC: u32 = u32::MAX;

#[test]
fn every_case() -> Result<()> {
    in_new_namespace(|| table(Machine::new(true)?))
}

#[test]
fn every_case_without_redirect_peer() -> Result<()> {
    in_new_namespace(|| table(Machine::new(false)?))
}

#[test]
fn every_sequence() -> Result<()> {
    in_new_namespace(|| {
        let mut machine = Machine::new(true)?;
        let (mut lines, mut ran, mut frames) = (Vec::new(), 0, 0);
        let mut skipped: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for sequence in sequences() {
            if let Some(reason) = why_not_all(&sequence)? {
                skipped.entry(reason).or_default().push(sequence.name);
                continue;
            }
            let mut tables = sequence.tables(steady()?);
            for (number, step) in sequence.steps.iter().enumerate() {
                step.prepare(&mut tables);
                let name = format!("{}, frame {number}", sequence.name);
                let found = in_time(|now| {
                    let was = tables.clock.replace(now);
                    grow_old(&mut tables, -((whole_seconds(now) - whole_seconds(was)) as i32));
                    machine.fill(&tables)?;
                    machine.run(step.hook, step.port, &step.frame, step.gso_size)
                })?;
                let before = State::of(&tables);
                let (outcome, frame) = step.run(&tables);
                step.judge(&name, &before, &tables, outcome, &frame);
                let expected = Ran { action: action(outcome), bytes: frame.bytes };
                let differences = machine.state()?.differences(&State::of(&tables), LATE);
                let differing = found.difference(&expected).into_iter().chain(differences);
                lines.extend(differing.map(|line| format!("{name}: {line}")));
                frames += 1;
            }
            ran += 1;
        }
        println!("{ran} sequences, {frames} frames in the kernel");
        for (reason, names) in skipped {
            println!("{} not by BPF_PROG_TEST_RUN: {reason}: {}", names.len(), names.join("; "));
        }
        ensure!(lines.is_empty(), "{} lines:\n{}", lines.len(), lines.join("\n"));
        Ok(())
    })
}

/// A table with no room for a foreign MAC: its last entry is taken before the frame comes.
#[test]
fn every_case_of_a_full_table() -> Result<()> {
    in_new_namespace(|| {
        let mut machine = Machine::new(true)?;
        let full = |case: &Case| case.tables(NOON).is_full.get();
        let cases: Vec<Case> = all().into_iter().filter(full).collect();
        ensure!(!cases.is_empty(), "no case has a full table");
        for case in &cases {
            fill_up(&mut machine);
            // Not to be done in a moment, with so many entries; but nothing is entered that could be stamped late.
            let now = monotonic()?;
            machine.fill(&case.tables(now))?;
            let found = machine.run(case.hook, case.port, &case.frame, case.gso_size);
            let lines = differences(&machine, case, now, found)?;
            ensure!(lines.is_empty(), "{}", lines.join("\n"));
        }
        Ok(())
    })
}

/// Takes every entry of `FOREIGN` that is free for ports that do not exist. (Where tables begin to be full depends on
/// the kernel: some count each CPU's entries in batches.)
fn fill_up(machine: &mut Machine) {
    let keys = (1000..).flat_map(|port| (0..=u16::MAX).map(move |place| ForeignKey { port: PortId(port), place }));
    let refused = keys.take(2 * MAX_STATIONS as usize).find(|key| machine.foreign.insert(key, Mac::ZERO, 0).is_err());
    assert!(refused.is_some(), "the table takes twice the entries it was made for");
}

#[test]
fn the_verifier_walks_through_this_many_instructions() -> Result<()> {
    in_new_namespace(|| {
        for (program, count) in Machine::new(true)?.verified_instructions()? {
            let count = count.map_or("a number this kernel does not tell".to_owned(), |count| count.to_string());
            println!("{program}: {count}");
        }
        Ok(())
    })
}

fn table(mut machine: Machine) -> Result<()> {
    let mut lines = Vec::new();
    let mut host_only: BTreeMap<&str, u32> = BTreeMap::new();
    let mut ran = 0;
    for case in all() {
        if let Some(reason) = why_not(&case)? {
            *host_only.entry(reason).or_default() += 1;
            continue;
        }
        lines.extend(failures(&mut machine, &case)?);
        ran += 1;
    }
    println!("{ran} cases in the kernel");
    for (reason, count) in host_only {
        println!("{count} not by BPF_PROG_TEST_RUN: {reason}");
    }
    ensure!(lines.is_empty(), "{} lines:\n{}", lines.len(), lines.join("\n"));
    Ok(())
}

/// Why a case cannot be run by BPF_PROG_TEST_RUN, if it cannot.
pub(crate) fn why_not(case: &Case) -> Result<Option<&'static str>> {
    let tables = case.tables(NOON);
    let oldest = tables.stations.borrow().values().filter(|station| !station.is_fixed()).map(|s| s.age(NOON)).max();
    Ok(if case.tag_aside {
        Some("BPF_PROG_TEST_RUN takes no VLAN tag beside the frame; live has them")
    } else if case.frame.len() < 14 {
        Some("no interface takes less than an Ethernet header")
    } else if !is_taken(&case.frame) {
        Some("BPF_PROG_TEST_RUN takes no packet that ends within its IP header; live has them")
    } else if tables.is_full.get() {
        Some("every_case_of_a_full_table has them")
    } else if oldest.is_some_and(|age| monotonic().is_ok_and(|now| now <= age)) {
        Some("the machine was started after what the case says has happened")
    } else {
        None
    })
}

/// Why a sequence cannot be run by BPF_PROG_TEST_RUN, if it cannot.
pub(crate) fn why_not_all(sequence: &Sequence) -> Result<Option<&'static str>> {
    Ok(if u64::from(sequence.duration()) * 1_000_000_000 > monotonic()? {
        Some("the machine was started after what the sequence says has happened")
    } else if sequence.steps.iter().any(|step| step.reroutes) {
        Some("the host's routes are the same for all")
    } else if sequence.steps.iter().any(|step| !is_taken(&step.frame)) {
        Some("BPF_PROG_TEST_RUN takes no packet that ends within its IP header, or is longer than a page")
    } else {
        None
    })
}

/// Runs a case and says what is not as expected.
fn failures(machine: &mut Machine, case: &Case) -> Result<Vec<String>> {
    let (now, found) = in_time(|now| {
        machine.fill(&case.tables(now))?;
        Ok((now, machine.run(case.hook, case.port, &case.frame, case.gso_size)))
    })?;
    differences(machine, case, now, found)
}

/// What has become of a case that ran at `now`, and should not have.
fn differences(machine: &Machine, case: &Case, now: u64, found: Result<Ran>) -> Result<Vec<String>> {
    let mut lines = machine.state()?.differences(&case.expected_state(now), LATE);
    let expected = Ran { action: action(case.expect.outcome), bytes: case.expected_bytes().to_vec() };
    match found {
        Ok(found) => lines.extend(found.difference(&expected)),
        Err(error) => lines.push(format!("{error:#}")),
    }
    Ok(lines.into_iter().map(|line| format!("{}: {line}", case.name)).collect())
}
