//! The table on plain memory, and what holds for frames that are not in it.

use std::collections::{BTreeSet, HashSet};

use crate::capture::Moment;
use crate::layout::capture_modes;
use crate::memory::{MemoryTables, Shown};
use crate::packet::Buffer;
use crate::path;
use crate::scratch::Scratch;
use crate::verdict::{DropReason, Egress, Outcome, Verdict};
use crate::wire::Mac;

use super::check::{NOON, State, enter, run};
use super::mutate::{Mutant, Mutants};
use super::oracle::{end_of, objection, objection_to_routed};
use super::sequence::{Fate, flaw, is_dropped, miscounted};
use super::world::{self, BLUE, HOST, RED, ROUTER_MAC, UPLINK};
use super::{Hook, accelerated, all, frame::Frame, frame::checksum, sequences};

#[test]
fn every_case() {
    let cases = all();
    let failures: Vec<String> = cases.iter().flat_map(|case| case.failures(NOON)).collect();
    assert!(failures.is_empty(), "{} lines:\n{}", failures.len(), failures.join("\n"));
    println!("{} cases", cases.len());
}

#[test]
fn every_sequence() {
    let mut failures = Vec::new();
    let sequences = sequences();
    for sequence in &sequences {
        if let Err(cause) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sequence.run(NOON))) {
            let cause = cause.downcast_ref::<String>().cloned().unwrap_or_default();
            failures.push(format!("{}: {cause}", sequence.name));
        }
    }
    assert!(failures.is_empty(), "{} sequences:\n{}", failures.len(), failures.join("\n"));
    println!("{} sequences", sequences.len());
}

/// Whatever the accelerator takes goes the way that it would have gone, and whatever it leaves is untouched.
#[test]
fn the_accelerator_takes_alike_or_leaves_alone() {
    let (mut offered, mut taken, mut objections) = (0, 0, Vec::new());
    let mut judge = |name: &str, hook, port, frame: &[u8], tables: &MemoryTables| {
        offered += 1;
        taken += u32::from(accelerated::offer(hook, port, frame, tables).to.is_some());
        let lines = accelerated::objections(hook, port, frame, tables);
        objections.extend(lines.into_iter().map(|line| format!("{name}: {line}")));
    };
    // It never sees a tag beside the frame, nor a frame of several segments.
    for case in all().iter().filter(|case| accelerated::has_one(case.hook) && !case.tag_aside && case.gso_size == 0) {
        let mut tables = case.tables(NOON);
        judge(&case.name, case.hook, case.port, &case.frame, &tables);
        accelerated::open(&mut tables);
        judge(&case.name, case.hook, case.port, &case.frame, &tables);
    }
    for sequence in sequences() {
        let mut tables = sequence.tables(NOON);
        accelerated::open(&mut tables);
        for step in &sequence.steps {
            step.prepare(&mut tables);
            if accelerated::has_one(step.hook) && step.gso_size == 0 {
                judge(&sequence.name, step.hook, step.port, &step.frame, &tables);
            }
            let _as_expected_elsewhere = step.run(&tables);
        }
    }
    for mutant in {
        let mut mutants = Mutants::new(7);
        (0..20_000).map(move |_| mutants.next_mutant())
    } {
        let mut tables = world::tables(NOON);
        accelerated::open(&mut tables);
        if accelerated::has_one(mutant.hook) && mutant.gso_size == 0 {
            judge("a mutant", mutant.hook, mutant.port, &mutant.frame, &tables);
        }
    }
    assert!(objections.is_empty(), "{} lines:\n{}", objections.len(), objections.join("\n"));
    println!("{taken} of {offered} frames taken");
    assert!(taken > 100, "only {taken} of {offered} frames were taken");
}

#[test]
fn every_name_is_unique() {
    let mut names = HashSet::new();
    for sequence in sequences() {
        assert!(names.insert(sequence.name.clone()), "two sequences are called {:?}", sequence.name);
    }
    for case in all() {
        assert!(names.insert(case.name.clone()), "two cases are called {:?}", case.name);
    }
}

#[test]
fn every_reason_has_a_case() {
    let mut missing: BTreeSet<DropReason> = DropReason::ALL.iter().copied().collect();
    for case in all().into_iter().filter(|case| !case.is_refused()) {
        if let Err(reason) = case.expect.outcome {
            missing.remove(&reason);
        }
    }
    for step in sequences().into_iter().flat_map(|sequence| sequence.steps) {
        if let Fate::Dropped(reason, _) = step.fate {
            missing.remove(&reason);
        }
    }
    // What `follow` finds out for itself and mends: no packet ends with it.
    missing.remove(&DropReason::AddressChanged);
    // It takes two packets at once: `races` has them.
    missing.remove(&DropReason::Busy);
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
    for case in all().into_iter().filter(|case| !case.is_refused()) {
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

/// Whatever is refused: what comes back is a right error about it, or nothing.
#[test]
fn two_hundred_thousand_refused_mutants() {
    const COUNT: u64 = 200_000;
    let mut mutants = Mutants::refused(3);
    let (mut told, tables) = (0, world::tables(NOON));
    for number in 0..COUNT {
        tables.clock.set(NOON + number * 1_000_000);
        let mutant = mutants.next_mutant();
        let mut frame = Buffer { gso_size: mutant.gso_size, ..Buffer::new(mutant.frame.clone()) };
        if let Ok(verdict) = run(mutant.hook, &mut frame, mutant.port, &tables) {
            assert!(matches!(verdict, Verdict::Deliver(Egress::Namespace(_) | Egress::Uplink(_))), "{verdict:?}");
            assert_eq!(flaw_of_error(&mutant.frame, &frame.bytes), None, "{mutant:02x?}: {:02x?}", frame.bytes);
            told += 1;
        }
    }
    println!("{COUNT} refused mutants, {told} told");
    assert!(told > COUNT / 10, "the mutants are too broken to be told: {told}");
}

/// What is wrong with an error about a packet, read from the bytes alone.
fn flaw_of_error(packet: &[u8], error: &[u8]) -> Option<&'static str> {
    let word = |bytes: &[u8], at: usize| usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1]);
    let is_v4 = packet[12] == 8;
    if error[..6] != packet[6..12] || error[6..12] != packet[..6] || error[12..14] != packet[12..14] {
        return Some("not turned back");
    }
    let (header, pseudo, to, length) = if is_v4 {
        (20, Vec::new(), error[30..34] == packet[26..30], word(error, 16) == error.len() - 14)
    } else {
        let length = error.len() - 54;
        let pseudo = [&error[22..54], &[0, 0, 0, length as u8, 0, 0, 0, 58]].concat();
        (40, pseudo, error[38..54] == packet[22..38], word(error, 18) == length)
    };
    let message = &error[14 + header..];
    let quoted = &message[8..];
    let (is_error, about) = if is_v4 {
        let at = 14 + usize::from(packet[14] & 15) * 4;
        (matches!(message[0], 3 | 11), (packet[23] == 1).then(|| matches!(packet[at], 3 | 4 | 5 | 11 | 12)))
    } else {
        (message[0] < 4, (packet[20] == 58).then(|| packet[54] < 128))
    };
    let differing = (0..quoted.len()).filter(|at| quoted[*at] != packet[14 + at]).collect::<Vec<_>>();
    // Two bytes at most: the field of a partial checksum.
    let is_field = differing.iter().all(|at| *at >= header && *at <= differing[0] + 1);
    let checks = [
        (is_v4 && checksum(&error[14..34]) != 0, "header checksum"),
        (!length, "length"),
        (!to, "destination"),
        (checksum(&[&pseudo, message].concat()) != 0, "checksum"),
        (quoted.len() > 128, "longer than a quotation"),
        (quoted.len() < header, "shorter than a header"),
        (!is_field, "not quoted"),
        (!is_error, "no error"),
        (about == Some(true), "an error about an error"),
        (packet[0] & 1 != 0 && message[0] != 2, "about a frame to a group"),
        (is_v4 && word(packet, 20) & 0x1fff != 0, "about a later fragment"),
    ];
    checks.iter().find(|(is_flaw, _)| *is_flaw).map(|(_, flaw)| *flaw)
}

/// Runs a frame and checks everything that holds for any frame. Tells whether it got through.
fn judge(mutant: &Mutant, tables: &MemoryTables) -> bool {
    let mut frame = Buffer { gso_size: mutant.gso_size, ..Buffer::new(mutant.frame.clone()) };
    let before = State::of(tables);
    let mut scratch = Scratch::default();
    let first = enter(mutant.hook, &mut frame, mutant.port, &mut scratch, tables);
    if mutant.hook == Hook::Uplink || first == Ok(Verdict::Route) {
        let outcome = path::complete(&mut frame, mutant.port, first, &mut scratch, tables);
        if mutant.hook == Hook::Namespace {
            assert_eq!(objection(mutant), None, "was routed: {mutant:02x?}");
        }
        judge_routed(mutant, &frame, outcome, &before, tables);
        return outcome.is_ok();
    }
    let answered = count(&before, &State::of(tables), mutant, first);
    hold(mutant, &frame, first, answered);
    first.is_ok()
}

/// The same for a frame that was for the gateway, or came from outside.
fn judge_routed(mutant: &Mutant, frame: &Buffer, outcome: Outcome, before: &State, tables: &MemoryTables) {
    let after = State::of(tables);
    if mutant.hook == Hook::Uplink && *before == after && outcome != Ok(Verdict::Again) {
        assert_eq!((outcome, &frame.bytes), (Ok(Verdict::Pass), &mutant.frame), "not for us: {mutant:02x?}");
        return;
    }
    if let Some(flaw) = miscounted(before, &after, mutant.port).or_else(|| flaw(tables)) {
        panic!("{flaw}: {mutant:02x?}");
    }
    if matches!(outcome, Ok(Verdict::Deliver(_))) && is_dropped(before, &after, mutant.port) {
        assert_eq!(flaw_of_error(&mutant.frame, &frame.bytes), None, "{mutant:02x?}: {:02x?}", frame.bytes);
        return;
    }
    match outcome {
        Ok(Verdict::Pass | Verdict::Deliver(Egress::Host(_))) | Err(_) => {
            assert_eq!(frame.bytes, mutant.frame, "changed: {mutant:02x?}");
        }
        Ok(Verdict::Deliver(egress)) => {
            let objection = objection_to_routed(mutant, &frame.bytes, egress);
            assert_eq!(objection, None, "{mutant:02x?} to {egress:?}: {:02x?}", frame.bytes);
            if matches!(egress, Egress::Uplink(_) | Egress::Neighbour(_)) {
                judge_answer(mutant, &frame.bytes, tables);
            }
        }
        Ok(Verdict::Again) => {
            assert!(!frame.again.is_empty(), "gone without a trace: {mutant:02x?}");
            for piece in &frame.again {
                judge(&Mutant { frame: piece.clone(), gso_size: 0, ..mutant.clone() }, tables);
            }
        }
        Ok(
            Verdict::Flooded
            | Verdict::Route
            | Verdict::Relate
            | Verdict::Open
            | Verdict::Fragment
            | Verdict::Cut
            | Verdict::Refuse(_),
        ) => {
            panic!("{outcome:?} is no end: {mutant:02x?}")
        }
    }
}

/// What was translated on its way out is translated back on the answer's way in.
fn judge_answer(mutant: &Mutant, left: &[u8], tables: &MemoryTables) {
    let Some(answer) = answer_to(left) else { return };
    let mut frame = Buffer { gso_size: mutant.gso_size, ..Buffer::new(answer.clone()) };
    let outcome = run(Hook::Uplink, &mut frame, UPLINK.id, tables);
    let expected = Ok(Verdict::Deliver(Egress::Namespace(mutant.port)));
    assert_eq!(outcome, expected, "the answer {answer:02x?} to {mutant:02x?}");
    let expected = answer_to(&mutant.frame).expect("it was read before");
    let (ip, transport) = if left[12] == 8 { (26..34, 34) } else { (22..54, 54) };
    assert_eq!(frame.bytes[ip.clone()], expected[ip], "addresses of the answer to {mutant:02x?}");
    let (protocol, answer) = (left[if left[12] == 8 { 23 } else { 20 }], frame.bytes);
    // All but the checksums, which answer_to() leaves wrong.
    let is_left_out = |at: usize| match protocol {
        6 => matches!(at, 16 | 17),
        17 => matches!(at, 6 | 7),
        1 | 58 => matches!(at, 2 | 3),
        _ => false,
    };
    for (at, (found, expected)) in answer.iter().zip(&expected).skip(transport).enumerate() {
        assert!(is_left_out(at) || found == expected, "byte {at} of the answer to {mutant:02x?}");
    }
}

/// A frame the other way: addresses and ports exchanged, an echo replied to. `None` for what has no such simple answer.
fn answer_to(frame: &[u8]) -> Option<Vec<u8>> {
    let is_v4 = frame[12] == 8;
    let (protocol, at) = if is_v4 { (frame[23], 34) } else { (frame[20], 54) };
    let is_fragment = is_v4 && (frame[20] & 0x3f != 0 || frame[21] != 0);
    if is_v4 && frame[14] != 0x45 || is_fragment || frame.len() > 1400 {
        return None;
    }
    let mut answer = [&ROUTER_MAC.0[..], &UPLINK.mac.0].concat();
    answer = [&answer[6..12], &answer[..6], &frame[12..]].concat();
    if is_v4 {
        answer[22] = 64;
        answer[26..30].copy_from_slice(&frame[30..34]);
        answer[30..34].copy_from_slice(&frame[26..30]);
    } else {
        answer[21] = 64;
        answer[22..38].copy_from_slice(&frame[38..54]);
        answer[38..54].copy_from_slice(&frame[22..38]);
    }
    match protocol {
        6 | 17 | 132 => {
            answer[at..at + 2].copy_from_slice(&frame[at + 2..at + 4]);
            answer[at + 2..at + 4].copy_from_slice(&frame[at..at + 2]);
            if protocol == 6 {
                answer[at + 13] = 0x10;
            }
        }
        1 if is_v4 && frame[at] == 8 => answer[at] = 0,
        58 if !is_v4 && frame[at] == 128 => answer[at] = 129,
        _ => return None,
    }
    Some(answer)
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
        // To no port of a network, or not to an end yet.
        Ok(
            Verdict::Deliver(Egress::Uplink(_) | Egress::Neighbour(_))
            | Verdict::Route
            | Verdict::Fragment
            | Verdict::Cut
            | Verdict::Again
            | Verdict::Relate
            | Verdict::Open
            | Verdict::Refuse(_)
            | Verdict::Pass,
        ) => Vec::new(),
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

/// What is wrong with what was shown of a frame, if anything: `sent` is the frame as it came in, `left` as it was left.
fn misshown(shown: &[Shown], tables: &MemoryTables, before: &State, sent: &[u8], left: &[u8]) -> Option<String> {
    let after = State::of(tables);
    let dropped = |state: &State| state.drops.values().fold(0u64, |sum, one| sum.wrapping_add(one.packets));
    let drops = shown.iter().filter(|shown| matches!(shown.moment, Moment::Dropped(_))).count() as u64;
    if drops != dropped(&after).wrapping_sub(dropped(before)) {
        return Some(format!("{drops} drops are shown"));
    }
    for (at, one) in shown.iter().enumerate() {
        let (earlier, later) = shown.split_at(at);
        let begins = |other: &Shown| other.number == one.number && matches!(other.moment, Moment::Before(_));
        let ends = |other: &Shown| {
            let ends = matches!(other.moment, Moment::After | Moment::Again | Moment::Dropped(_));
            other.number == one.number && ends
        };
        let is_right = match one.moment {
            Moment::Before(_) => one.bytes == sent && later.iter().any(ends),
            Moment::After => one.bytes == left && earlier.iter().any(begins),
            Moment::Again => earlier.iter().any(begins),
            Moment::Notice => one.bytes == left,
            // One that is told is dropped before it is changed into what tells it.
            Moment::Left(_) | Moment::Flooded | Moment::Passed | Moment::Dropped(_) => one.bytes == sent,
        };
        if !is_right {
            return Some(format!("wrong in {:?}: {one:02x?}", shown.iter().map(|s| s.moment).collect::<Vec<_>>()));
        }
    }
    None
}

#[test]
fn every_frame_is_shown_as_it_was() {
    let mut failures = Vec::new();
    let mut moments: BTreeSet<u16> = BTreeSet::new();
    let mut look = |name: &str, tables: &MemoryTables, before: &State, sent: &[u8], left: &Buffer, is_again: bool| {
        let shown = tables.shown.take();
        moments.extend(shown.iter().map(|shown| shown.moment.kind()));
        // What is said of a frame that is gone, or was another before, is for the sequences to judge.
        let flaw = if is_again { None } else { misshown(&shown, tables, before, sent, &left.bytes) };
        failures.extend(flaw.map(|flaw| format!("{name}: {flaw}")));
        if shown.is_empty() && !is_again {
            failures.push(format!("{name}: nothing was shown"));
        }
    };
    for case in all() {
        let tables = case.tables(NOON);
        tables.capture_modes.set(capture_modes::ALL);
        let (before, mut frame) = (State::of(&tables), case.buffer());
        let outcome = run(case.hook, &mut frame, case.port, &tables);
        // Another program has shown that one already, and nobody is told of it.
        let is_silent = case.is_refused() && outcome.is_err();
        look(&case.name, &tables, &before, &case.frame, &frame, is_silent || outcome == Ok(Verdict::Again));
    }
    for sequence in sequences() {
        let mut tables = sequence.tables(NOON);
        for (number, step) in sequence.steps.iter().enumerate() {
            step.prepare(&mut tables);
            tables.capture_modes.set(capture_modes::ALL);
            let before = State::of(&tables);
            let (outcome, frame) = step.run(&tables);
            let name = format!("{}, frame {number}", sequence.name);
            look(&name, &tables, &before, &step.frame, &frame, outcome == Ok(Verdict::Again));
        }
    }
    assert!(failures.is_empty(), "{} lines:\n{}", failures.len(), failures.join("\n"));
    assert_eq!(moments.len(), 8, "every moment is met");
}
