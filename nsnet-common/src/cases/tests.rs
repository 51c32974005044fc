//! The table on plain memory, and what holds for frames that are not in it.

use std::collections::{BTreeSet, HashSet};

use crate::memory::MemoryTables;
use crate::packet::Buffer;
use crate::verdict::{DropReason, Egress, Outcome, Verdict};
use crate::wire::Mac;

use super::check::{NOON, State, run};
use super::mutate::{Mutant, Mutants};
use super::oracle::{end_of, objection};
use super::world::{self, BLUE, HOST, RED};
use super::{Hook, all, frame::Frame};

#[test]
fn every_case() {
    let cases = all();
    let failures: Vec<String> = cases.iter().flat_map(|case| case.failures(NOON)).collect();
    assert!(failures.is_empty(), "{} lines:\n{}", failures.len(), failures.join("\n"));
    println!("{} cases", cases.len());
}

#[test]
fn every_name_is_unique() {
    let mut names = HashSet::new();
    for case in all() {
        assert!(names.insert(case.name.clone()), "two cases are called {:?}", case.name);
    }
}

#[test]
fn every_reason_has_a_case() {
    let mut missing: BTreeSet<DropReason> = DropReason::ALL.iter().copied().collect();
    for case in all() {
        if let Err(reason) = case.expect.outcome {
            missing.remove(&reason);
        }
    }
    assert!(missing.is_empty(), "no case for {missing:?}");
}

/// 802.3 lengths and all ethertypes, to one port and to all.
#[test]
fn three_ethertypes_of_65536_pass() {
    let tables = world::tables(NOON);
    let mut passed = Vec::new();
    for ethertype in 0..=u16::MAX {
        // Bytes that are right for none of the three: whoever is told apart by the type alone is found out.
        for to in [BLUE.mac, Mac::BROADCAST] {
            let mut frame = Buffer::new(Frame::new(RED.mac, to).ethertype(ethertype).payload(46).finish());
            let outcome = run(Hook::Namespace, &mut frame, RED.id, &tables);
            match ethertype {
                0x8100 | 0x88a8 | 0x9100 => assert_eq!(outcome, Err(DropReason::Tagged)),
                0x0800 => assert_eq!(outcome, Err(DropReason::BadIpv4)),
                0x0806 => assert_eq!(outcome, Err(DropReason::BadArp)),
                0x86dd => assert_eq!(outcome, Err(DropReason::BadIpv6)),
                _ => assert_eq!(outcome, Err(DropReason::EtherType)),
            }
        }
        let mut frame = Buffer::new(Frame::new(Mac::ZERO, BLUE.mac).ethertype(ethertype).payload(46).finish());
        if run(Hook::Host, &mut frame, HOST.id, &tables).is_ok() {
            passed.push(ethertype);
        }
    }
    assert_eq!(passed, [0x0800, 0x0806, 0x86dd]);
}

/// Each case's frame, cut after every byte.
#[test]
fn every_case_cut_everywhere() {
    let mut count = 0;
    for case in all() {
        let tables = case.tables(NOON);
        for length in 0..case.frame.len().min(130) {
            let frame = case.frame[..length].to_vec();
            let (hook, port, gso_size) = (case.hook, case.port, case.gso_size);
            judge(&Mutant { hook, port, frame, gso_size, parent: case.name.clone() }, &tables);
            count += 1;
        }
    }
    println!("{count} cut frames");
}

#[test]
fn two_hundred_thousand_mutants() {
    const COUNT: u64 = 200_000;
    let mut mutants = Mutants::new(1);
    let (mut through, mut tables) = (0, world::tables(NOON));
    for number in 0..COUNT {
        // Not for each frame, so that what was learned stays for a while.
        if number % 64 == 0 {
            tables = world::tables(NOON + number);
        }
        tables.clock.set(NOON + number * 1_000_000);
        through += u64::from(judge(&mutants.next_mutant(), &tables));
    }
    println!("{COUNT} mutants, {through} got through");
    assert!(through > COUNT / 20, "the mutants are too broken to test what gets through: {through}");
}

/// Runs a frame and checks everything that holds for any frame. Tells whether it got through.
fn judge(mutant: &Mutant, tables: &MemoryTables) -> bool {
    let mut frame = Buffer { gso_size: mutant.gso_size, ..Buffer::new(mutant.frame.clone()) };
    let before = State::of(tables);
    let outcome = run(mutant.hook, &mut frame, mutant.port, tables);
    let answered = count(&before, &State::of(tables), mutant, outcome);
    hold(mutant, &frame, outcome, answered);
    outcome.is_ok()
}

/// One frame came in and had one end: forwarded, flooded, answered or dropped. Tells whether it was answered.
fn count(before: &State, after: &State, mutant: &Mutant, outcome: Outcome) -> bool {
    let of = |state: &State| state.counters.get(&mutant.port).copied().unwrap_or_default();
    let drops = |state: &State| {
        let own = state.drops.iter().filter(|((port, _), _)| *port == mutant.port);
        own.map(|(_, traffic)| traffic.packets).sum::<u64>()
    };
    let sent = |state: &State| state.counters.values().map(|counters| counters.sent.packets).sum::<u64>();
    let (was, is) = (of(before), of(after));
    let received = is.received.packets - was.received.packets;
    let (flooded, answered) = (is.flooded - was.flooded, is.answered - was.answered);
    let dropped = drops(after) - drops(before);
    let delivered = u64::from(matches!(outcome, Ok(Verdict::Deliver(_))));
    if outcome == Err(DropReason::UnknownPort) {
        assert_eq!((received, dropped), (0, 1), "{mutant:02x?}");
        return false;
    }
    assert_eq!(received, 1, "{mutant:02x?}");
    assert_eq!(is.received.bytes - was.received.bytes, mutant.frame.len() as u64, "{mutant:02x?}");
    assert_eq!(flooded, u64::from(outcome == Ok(Verdict::Flooded)), "{mutant:02x?}");
    assert_eq!(dropped, u64::from(outcome.is_err()), "{mutant:02x?}");
    assert!(answered <= delivered, "{mutant:02x?}");
    let forwarded = delivered - answered;
    assert_eq!(received, forwarded + flooded + answered + dropped, "{mutant:02x?}");
    if flooded == 0 {
        assert_eq!(sent(after) - sent(before), delivered, "{mutant:02x?}");
    }
    answered == 1
}

/// Where a frame may go and what may get there, whatever its bytes.
fn hold(mutant: &Mutant, after: &Buffer, outcome: Outcome, answered: bool) {
    assert!(answered || after.bytes == mutant.frame, "changed without being answered: {mutant:02x?}");
    assert_eq!(after.bytes.len(), mutant.frame.len(), "{mutant:02x?}");
    let Some(sender) = end_of(mutant.port) else { return };
    let targets = match outcome {
        Ok(Verdict::Deliver(Egress::Namespace(to) | Egress::Host(to))) => vec![to],
        Ok(Verdict::Flooded) | Err(_) => after.copies.clone(),
    };
    assert!(outcome.is_ok() || targets.is_empty(), "dropped, and copied: {mutant:02x?}");
    for (position, to) in targets.iter().enumerate() {
        let end = end_of(*to).expect("a target is a port");
        assert_eq!(end.network, sender.network, "left its network: {mutant:02x?}");
        assert_eq!(end.id == sender.id, answered, "only an answer goes back: {mutant:02x?}");
        assert!(!targets[..position].contains(to), "two copies for one port: {mutant:02x?}");
    }
    if outcome.is_ok() && mutant.hook == Hook::Namespace {
        assert_eq!(objection(mutant), None, "got through: {mutant:02x?}");
    }
}
