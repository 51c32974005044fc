//! Explanations over tables in memory: the way that is told is the core's own, and every frame has a story. No kernel here.

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::collections::BTreeSet;

use nsnet::model::explain::entries::Words;
use nsnet::model::explain::names::Names;
use nsnet::model::explain::story::Story;
use nsnet::model::explain::walk::{Arrival, Entrance, walk};
use nsnet_common::cases::check::{NOON, State, ifindex_of, run};
use nsnet_common::cases::{Hook, all, sequences};
use nsnet_common::layout::PortId;
use nsnet_common::memory::MemoryTables;
use nsnet_common::packet::Buffer;
use nsnet_common::verdict::{DropReason, Outcome, Verdict};

/// The frame as it comes in; `None` for one that another program has dropped already.
fn arrival(hook: Hook, port: PortId, frame: &[u8], gso_size: u32, tables: &MemoryTables) -> Option<Arrival> {
    let entrance = match hook {
        Hook::Namespace => Entrance::Namespace(port),
        Hook::Host => Entrance::Host(port),
        Hook::Uplink => Entrance::Uplink { port, ifindex: ifindex_of(port, tables) },
        Hook::Refused(_) => return None,
    };
    Some(Arrival { entrance, frame: frame.to_vec(), gso_size })
}

/// Walks a frame over `tables`, and tells of it: the outcome of the first pass, and its bytes.
fn tell(arrival: &Arrival, tables: &MemoryTables, name: &str, parts: &mut BTreeSet<&'static str>) -> (Outcome, Buffer) {
    let names = Names::default();
    let words = Words { names: &names, now: tables.clock.get() };
    let mut passes = walk(arrival, tables);
    for pass in &passes {
        let story = Story::of(pass, &words);
        assert!(!story.parts.is_empty(), "{name}: no part of the core was at work");
        for part in &story.parts {
            parts.insert(part.name);
            assert!(!part.says.is_empty(), "{name}: {} says nothing", part.name);
            let is_among =
                part.by.as_ref().is_none_or(|by| part.is_drop || part.name == "guard" || part.lookups.contains(by));
            assert!(is_among, "{name}: {} goes by what it did not look up", part.name);
        }
        let dropped: Vec<&str> =
            story.counters.iter().filter_map(|counter| counter.counter.strip_prefix("dropped ")).collect();
        match (story.end.verdict, story.end.reason) {
            ("dropped", Some(reason)) => {
                assert!(story.end.says.contains(reason.label()), "{name}: {}", story.end.says);
                let is_counted = dropped.contains(&reason.label()) || reason == DropReason::UnknownPort;
                assert!(is_counted, "{name}: dropped for {}, counted {dropped:?}", reason.label());
            }
            ("forwarded" | "answered", None) => assert_eq!(story.end.leaves_by.len(), 1, "{name}"),
            ("flooded" | "again" | "passed", None) => {}
            other => panic!("{name}: an end of {other:?}"),
        }
    }
    let first = passes.swap_remove(0);
    (first.outcome, first.after)
}

#[test]
fn the_way_that_is_told_is_the_cores() {
    let (mut told, mut parts) = (0, BTreeSet::new());
    // A tag that is in the bytes is taken aside on the way in, which the core run by itself does not do.
    let is_tagged = |frame: &[u8]| matches!(frame.get(12..14), Some([0x81, 0x00] | [0x88, 0xa8]));
    for case in all().iter().filter(|case| !case.tag_aside && !is_tagged(&case.frame)) {
        let (tables, alike) = (case.tables(NOON), case.tables(NOON));
        let Some(arrival) = arrival(case.hook, case.port, &case.frame, case.gso_size, &tables) else { continue };
        let (outcome, frame) = tell(&arrival, &tables, &case.name, &mut parts);
        let mut expected = case.buffer();
        assert_eq!(outcome, run(case.hook, &mut expected, case.port, &alike), "{}", case.name);
        assert_eq!((frame.bytes, frame.copies), (expected.bytes, expected.copies), "{}", case.name);
        let lines = State::of(&tables).differences(&State::of(&alike), 0);
        assert!(lines.is_empty(), "{}: {lines:?}", case.name);
        told += 1;
    }
    assert!(told > 200, "only {told} cases were told");
    for name in ["port", "guard", "switch", "answer", "flood"] {
        assert!(parts.contains(name), "no case shows {name}");
    }
}

#[test]
fn every_part_of_the_way_out_and_in_is_told() {
    let mut parts = BTreeSet::new();
    let mut delivered = 0;
    for sequence in sequences() {
        let mut tables = sequence.tables(NOON);
        for step in &sequence.steps {
            step.prepare(&mut tables);
            let arrival = arrival(step.hook, step.port, &step.frame, step.gso_size, &tables).unwrap();
            let (outcome, _) = tell(&arrival, &tables, &sequence.name, &mut parts);
            delivered += usize::from(matches!(outcome, Ok(Verdict::Deliver(_))));
        }
    }
    assert!(delivered > 50, "only {delivered} frames got through");
    let expected = [
        "port",
        "guard",
        "switch",
        "packet",
        "conntrack",
        "fragment",
        "icmp error",
        "lead",
        "open",
        "publish",
        "route",
        "nat",
        "send",
        "cut",
        "refuse",
    ];
    for name in expected {
        assert!(parts.contains(name), "no sequence shows {name}");
    }
}
