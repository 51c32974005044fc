//! The whole of it: what came of a frame, and of those that came in again because of it.

use std::collections::BTreeMap;

use nsnet_common::layout::PortId;
use nsnet_common::verdict::{DropReason, Egress, Verdict};

use super::changes::Edit;
use super::entries::Words;
use super::event::{Count, Event};
use super::fields::{self, Changed, Field};
use super::stages::{Part, parts, way_out};
use super::walk::Pass;

/// What came of one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    /// The frame as it came in, in one line.
    pub before: String,
    /// What it was in the end.
    pub after: String,
    /// Its fields as it came in.
    pub fields: Vec<Field>,
    /// What was another in the end.
    pub changed: Vec<Changed>,
    /// What it went through.
    pub parts: Vec<Part>,
    /// Its end.
    pub end: End,
    /// What is changed in the tables.
    pub edits: Vec<Edit>,
    /// What is counted.
    pub counters: Vec<Counter>,
}

/// How a frame's life ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// `forwarded`, `answered`, `flooded`, `again`, `passed` or `dropped`.
    pub verdict: &'static str,
    /// Why it was dropped.
    pub reason: Option<DropReason>,
    /// The same in a sentence.
    pub says: String,
    /// Where the frame, what it became, or copies of it leave; ports and interfaces.
    pub leaves_by: Vec<String>,
}

/// What is counted for one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// The port; none for a published one.
    pub port: PortId,
    /// What the port, or what is published, is called.
    pub name: String,
    /// As `nsnet stats` and `nsnet drops` have it: `rx`, `tx`, `flooded`, `answered`, `passed`, `dropped REASON`; of a
    /// published port, `hits`.
    pub counter: String,
    /// Frames; below zero when what was counted is taken back.
    pub packets: i64,
    /// Bytes, where they are counted.
    pub bytes: i64,
}

impl Story {
    /// What came of the frame of `pass`.
    pub fn of(pass: &Pass, words: &Words<'_>) -> Self {
        let events = pass.steps.iter().flat_map(|step| &step.events);
        let edits = events.clone().filter_map(|event| match event {
            Event::Change(change) => words.change(change),
            Event::Stage(_) | Event::Lookup(_) | Event::Count(_) => None,
        });
        let counts = events.filter_map(|event| match event {
            Event::Count(count) => Some(*count),
            Event::Stage(_) | Event::Lookup(_) | Event::Change(_) => None,
        });
        Self {
            before: fields::summary(&pass.before),
            after: fields::summary(&pass.after.bytes),
            fields: fields::fields(&pass.before),
            changed: changed(pass),
            parts: parts(pass, words),
            end: End::of(pass, words),
            edits: edits.collect(),
            counters: counters(counts, words),
        }
    }
}

impl End {
    fn of(pass: &Pass, words: &Words<'_>) -> Self {
        let port = |id| words.names.port(id);
        let refused = pass.steps.iter().find_map(|step| match step.outcome {
            Ok(Verdict::Refuse(reason)) => Some(reason),
            Ok(_) | Err(_) => None,
        });
        let leaves_by = match pass.outcome {
            Ok(Verdict::Deliver(egress)) => vec![outlet(egress, words)],
            Ok(Verdict::Flooded) => pass.after.copies.iter().map(|id| port(*id)).collect(),
            Ok(_) | Err(_) => Vec::new(),
        };
        let is_answered = pass
            .steps
            .iter()
            .flat_map(|step| &step.events)
            .any(|event| matches!(event, Event::Count(Count::Answered(_))));
        let end = |verdict, says: String| Self { verdict, reason: None, says, leaves_by: leaves_by.clone() };
        match pass.outcome {
            outcome if refused.is_some() => {
                let reason = refused.unwrap_or(DropReason::UnknownPort);
                let told =
                    if outcome.is_ok() { "; its sender is told by an ICMP error" } else { "; its sender is not told" };
                let says = format!("dropped, {}: {}{told}", reason.label(), reason.sentence().trim_end_matches('.'));
                Self { reason: Some(reason), ..end("dropped", says) }
            }
            Err(reason) => {
                let says = format!("dropped, {}: {}", reason.label(), reason.sentence().trim_end_matches('.'));
                Self { reason: Some(reason), ..end("dropped", says) }
            }
            Ok(Verdict::Deliver(egress)) if is_answered => {
                end("answered", format!("answered, {}", way_out(egress, words)))
            }
            Ok(Verdict::Deliver(egress)) => end("forwarded", format!("forwarded, {}", way_out(egress, words))),
            Ok(Verdict::Flooded) => end("flooded", format!("flooded, a copy each to {} ports", leaves_by.len())),
            Ok(Verdict::Again) => {
                let count = pass.after.again.len();
                end("again", format!("done with: {count} frames come in in its stead"))
            }
            Ok(Verdict::Pass) => end("passed", "passed, to the host's own stack".to_owned()),
            // The walk goes on from these.
            Ok(
                Verdict::Route
                | Verdict::Relate
                | Verdict::Open
                | Verdict::Fragment
                | Verdict::Cut
                | Verdict::Refuse(_),
            ) => end("unfinished", "not followed to its end".to_owned()),
        }
    }
}

/// What is another when the frame leaves.
fn changed(pass: &Pass) -> Vec<Changed> {
    if pass.outcome == Ok(Verdict::Again) {
        // What is left of it is the last of those that come in instead.
        return Vec::new();
    }
    let mut changed = fields::changed(&pass.before, &pass.after.bytes);
    if let Ok(Verdict::Deliver(Egress::Neighbour(_))) = pass.outcome {
        changed.retain(|field| !field.name.starts_with("MAC "));
        for name in ["MAC destination", "MAC source"] {
            let before = fields::fields(&pass.before).into_iter().find(|field| field.name == name);
            let after = Some("written by the kernel, which finds the neighbour".to_owned());
            changed.insert(0, Changed { name: name.to_owned(), before: before.map(|field| field.value), after });
        }
    }
    changed
}

/// Where a frame leaves.
fn outlet(egress: Egress, words: &Words<'_>) -> String {
    match egress {
        Egress::Namespace(port) | Egress::Host(port) => words.names.port(port),
        Egress::Uplink(index) | Egress::Neighbour(index) => words.names.interface(index),
    }
}

/// All that is counted, each counter once.
pub fn counters(counts: impl Iterator<Item = Count>, words: &Words<'_>) -> Vec<Counter> {
    let mut sums: BTreeMap<(PortId, String, String), (i64, i64)> = BTreeMap::new();
    for count in counts {
        let (port, counter, sign, length) = match count {
            Count::Received(port, length) => (port, "rx".to_owned(), 1, length),
            Count::NotReceived(port, length) => (port, "rx".to_owned(), -1, length),
            Count::Sent(port, length) => (port, "tx".to_owned(), 1, length),
            Count::Flooded(port) => (port, "flooded".to_owned(), 1, 0),
            Count::Answered(port) => (port, "answered".to_owned(), 1, 0),
            Count::Passed(port) => (port, "passed".to_owned(), 1, 0),
            Count::Dropped(port, reason, length) => (port, format!("dropped {}", reason.label()), 1, length),
            Count::NotDropped(port, reason, length) => (port, format!("dropped {}", reason.label()), -1, length),
            Count::PublishHit(_) => (PortId::NONE, "hits".to_owned(), 1, 0),
        };
        let name =
            if let Count::PublishHit(place) = count { words.names.published(place) } else { words.names.port(port) };
        let sum = sums.entry((port, name, counter)).or_default();
        *sum = (sum.0 + sign, sum.1 + sign * i64::from(length));
    }
    sums.into_iter()
        .filter(|(_, sum)| *sum != (0, 0))
        .map(|((port, name, counter), (packets, bytes))| Counter { port, name, counter, packets, bytes })
        .collect()
}
