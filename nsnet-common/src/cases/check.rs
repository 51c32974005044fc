//! Runs a case on plain memory, and compares what has become of the tables with what should have.

use std::collections::BTreeMap;
use std::fmt::Debug;

use crate::layout::{
    FLOOD_COPY_NS, Flow, FlowKey, ForeignKey, Fragment, FragmentKey, HeldKey, Holding, Mapping, MappingKey, NetworkId,
    PortCounters, PortId, REFUSAL_NS, Station, Traffic, Usage, whole_seconds,
};
use crate::memory::MemoryTables;
use crate::packet::Buffer;
use crate::path;
use crate::scratch::Scratch;
use crate::verdict::{DropReason, Egress, Outcome, Verdict};
use crate::wire::Mac;

use super::{Case, Expect, Hook};

/// A time at which to run: late enough after the start of the machine for every age in the table.
pub const NOON: u64 = 12 * 3600 * 1_000_000_000;

/// Everything in the tables that a frame can change. Entries that are all zero are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// By port.
    pub counters: BTreeMap<PortId, PortCounters>,
    /// By port and code of the reason.
    pub drops: BTreeMap<(PortId, u16), Traffic>,
    /// The hashed FDB.
    pub stations: BTreeMap<(NetworkId, Mac), Station>,
    /// By port and place.
    pub foreign: BTreeMap<(PortId, u16), Mac>,
    /// By port.
    pub flood_clocks: BTreeMap<PortId, u64>,
    /// By port.
    pub refusal_clocks: BTreeMap<PortId, u64>,
    /// Flows that are not established.
    pub young: BTreeMap<FlowKey, Flow>,
    /// Flows that are.
    pub flows: BTreeMap<FlowKey, Flow>,
    /// Endpoints that are mapped.
    pub mappings: BTreeMap<MappingKey, Mapping>,
    /// By port.
    pub usage: BTreeMap<PortId, Usage>,
    /// By the place of the published entry.
    pub publish_hits: BTreeMap<u32, u64>,
    /// What first fragments said.
    pub fragments: BTreeMap<FragmentKey, Fragment>,
    /// What each port has waiting.
    pub holding: BTreeMap<PortId, Holding>,
    /// The frames that wait.
    pub held: BTreeMap<HeldKey, Vec<u8>>,
}

impl State {
    /// The state of tables in memory.
    pub fn of(tables: &MemoryTables) -> Self {
        let stations = tables.stations.borrow();
        let foreign = tables.foreign.borrow();
        Self {
            counters: tables.counters.borrow().clone(),
            drops: tables.drops.borrow().clone(),
            stations: stations.iter().map(|(key, station)| ((key.network, key.mac), *station)).collect(),
            foreign: foreign.iter().map(|(key, mac)| ((key.port, key.place), *mac)).collect(),
            flood_clocks: tables.flood_clocks.borrow().iter().map(|(port, clock)| (*port, *clock)).collect(),
            refusal_clocks: tables.refusal_clocks.borrow().iter().map(|(port, clock)| (*port, *clock)).collect(),
            young: tables.young.borrow().clone(),
            flows: tables.flows.borrow().clone(),
            mappings: tables.mappings.borrow().clone(),
            usage: tables.usage.borrow().clone(),
            publish_hits: tables.publish_hits.borrow().clone(),
            fragments: tables.fragments.borrow().clone(),
            holding: tables.holding.borrow().clone(),
            held: tables.held.borrow().iter().map(|(place, (_, _, bytes))| (*place, bytes.clone())).collect(),
        }
        .without_zeros()
    }

    /// The same state without entries that are all zero, which arrays have and maps have not.
    #[must_use]
    pub fn without_zeros(mut self) -> Self {
        self.counters.retain(|_, counters| *counters != PortCounters::default());
        self.flood_clocks.retain(|_, clock| *clock != 0);
        self.refusal_clocks.retain(|_, clock| *clock != 0);
        self.usage.retain(|_, usage| *usage != Usage::default());
        self.publish_hits.retain(|_, hits| *hits != 0);
        self.holding.retain(|_, holding| holding.count != 0);
        // What only waited is taken back.
        self.drops.retain(|_, traffic| *traffic != Traffic::default());
        self
    }

    /// What differs from `expected`, a line for each entry. Stamps may be up to `late` nanoseconds later than expected:
    /// the kernel's clock does not stand still.
    pub fn differences(&self, expected: &Self, late: u64) -> Vec<String> {
        let in_time = |found: u64, expected: u64| (expected..=expected + late).contains(&found);
        let same_station = |found: &Station, expected: &Station| {
            (found.port(), found.is_fixed()) == (expected.port(), expected.is_fixed())
                && in_time(u64::MAX - found.age(u64::MAX), u64::MAX - expected.age(u64::MAX))
        };
        let mut lines = Vec::new();
        compare(&mut lines, "counters", &self.counters, &expected.counters, PartialEq::eq);
        compare(&mut lines, "drops", &self.drops, &expected.drops, PartialEq::eq);
        compare(&mut lines, "stations", &self.stations, &expected.stations, same_station);
        compare(&mut lines, "foreign", &self.foreign, &expected.foreign, PartialEq::eq);
        let clocks = (&self.flood_clocks, &expected.flood_clocks);
        compare(&mut lines, "flood clocks", clocks.0, clocks.1, |found, expected| in_time(*found, *expected));
        let clocks = (&self.refusal_clocks, &expected.refusal_clocks);
        compare(&mut lines, "refusal clocks", clocks.0, clocks.1, |found, expected| in_time(*found, *expected));
        // In seconds, of which a new one may begin at any time.
        let seconds = late.div_ceil(1_000_000_000) as u32;
        let same_second = |found: u32, expected: u32| expected.wrapping_sub(found).wrapping_add(seconds) <= 2 * seconds;
        let same_flow = |found: &Flow, expected: &Flow| {
            let mut about = found.about;
            about.seen = expected.about.seen;
            let found_at = found.about.seen;
            Flow { about, ..*found } == *expected && same_second(found_at, expected.about.seen)
        };
        let same_mapping = |found: &Mapping, expected: &Mapping| {
            Mapping { until: expected.until, ..*found } == *expected && same_second(found.until, expected.until)
        };
        compare(&mut lines, "young", &self.young, &expected.young, same_flow);
        compare(&mut lines, "flows", &self.flows, &expected.flows, same_flow);
        compare(&mut lines, "mappings", &self.mappings, &expected.mappings, same_mapping);
        compare(&mut lines, "usage", &self.usage, &expected.usage, PartialEq::eq);
        let same_fragment = |found: &Fragment, expected: &Fragment| {
            Fragment { seen: expected.seen, ..*found } == *expected && same_second(found.seen, expected.seen)
        };
        let same_holding = |found: &Holding, expected: &Holding| {
            found.count == expected.count && same_second(found.seen, expected.seen)
        };
        compare(&mut lines, "fragments", &self.fragments, &expected.fragments, same_fragment);
        compare(&mut lines, "holding", &self.holding, &expected.holding, same_holding);
        compare(&mut lines, "held", &self.held, &expected.held, PartialEq::eq);
        compare(&mut lines, "publish hits", &self.publish_hits, &expected.publish_hits, PartialEq::eq);
        lines
    }
}

fn compare<K: Ord + Debug, V: Debug>(
    lines: &mut Vec<String>,
    what: &str,
    found: &BTreeMap<K, V>,
    expected: &BTreeMap<K, V>,
    same: impl Fn(&V, &V) -> bool,
) {
    for (key, value) in found {
        match expected.get(key) {
            Some(expected) if same(value, expected) => {}
            expected => lines.push(format!("{what}[{key:?}]: {value:?}, expected {expected:?}")),
        }
    }
    for (key, value) in expected.iter().filter(|(key, _)| !found.contains_key(key)) {
        lines.push(format!("{what}[{key:?}]: none, expected {value:?}"));
    }
}

impl Case {
    /// The frame as [`crate::packet::Packet`].
    pub fn buffer(&self) -> Buffer {
        Buffer { tag_aside: self.tag_aside, gso_size: self.gso_size, ..Buffer::new(self.frame.clone()) }
    }

    /// The bytes that the frame must have afterwards.
    pub fn expected_bytes(&self) -> &[u8] {
        self.expect.answer.as_ref().unwrap_or(&self.frame)
    }

    /// The state that the tables must be in after the frame came in at `now`.
    pub fn expected_state(&self, now: u64) -> State {
        let mut state = State::of(&self.tables(now));
        if let Hook::Refused(_) = self.hook {
            self.expect_error(&mut state, now);
            return state;
        }
        let length = self.frame.len() as u32;
        if self.expect.outcome != Err(DropReason::UnknownPort) {
            state.counters.entry(self.port).or_default().received.add(length);
        }
        if let Some(reason) = self.expect.told {
            state.drops.entry((self.port, reason.code())).or_default().add(length);
            self.expect_error(&mut state, now);
            return state;
        }
        match self.expect.outcome {
            Ok(Verdict::Deliver(Egress::Namespace(to) | Egress::Host(to))) => {
                state.counters.entry(to).or_default().sent.add(length);
                if self.expect.answer.is_some() && !self.expect.is_routed {
                    state.counters.entry(self.port).or_default().answered += 1;
                }
            }
            Ok(
                Verdict::Deliver(Egress::Uplink(_) | Egress::Neighbour(_))
                | Verdict::Route
                | Verdict::Fragment
                | Verdict::Cut
                | Verdict::Again
                | Verdict::Relate
                | Verdict::Open
                | Verdict::Pass,
            ) => {}
            Ok(Verdict::Refuse(reason)) => {
                state.drops.entry((self.port, reason.code())).or_default().add(length);
            }
            Ok(Verdict::Flooded) => self.expect_flood(&mut state, now, length),
            Err(reason) => state.drops.entry((self.port, reason.code())).or_default().add(length),
        }
        for (key, port) in &self.expect.stations {
            let key = (key.network, key.mac);
            match port {
                Some(port) => drop(state.stations.insert(key, Station::learned(*port, now))),
                None => drop(state.stations.remove(&key)),
            }
        }
        if self.expect.outcome == Err(DropReason::FragmentUnknown) {
            state.holding.insert(self.port, Holding { count: 1, seen: whole_seconds(now) });
            state.held.insert(HeldKey { port: self.port, place: 0 }, self.frame.clone());
        }
        let places = self.expect.places.iter();
        state.foreign.extend(places.map(|(ForeignKey { port, place }, mac)| ((*port, *place), *mac)));
        state
    }

    /// The drop was counted before; only an error counts.
    fn expect_error(&self, state: &mut State, now: u64) {
        if let Some(error) = &self.expect.answer {
            let counters = state.counters.entry(self.port).or_default();
            counters.sent.add(error.len() as u32);
            let clock = state.refusal_clocks.entry(self.port).or_default();
            *clock = (*clock).max(now) + REFUSAL_NS;
        }
    }

    fn expect_flood(&self, state: &mut State, now: u64, length: u32) {
        let Expect { copies, refused, .. } = &self.expect;
        state.counters.entry(self.port).or_default().flooded += 1;
        for copy in copies {
            state.counters.entry(*copy).or_default().sent.add(length);
        }
        for (port, reason) in refused {
            state.drops.entry((*port, reason.code())).or_default().add(length);
        }
        // A refused copy is paid for, too.
        let clock = state.flood_clocks.entry(self.port).or_default();
        *clock = (*clock).max(now) + (copies.len() + refused.len()) as u64 * FLOOD_COPY_NS;
    }

    /// Runs the case on plain memory and says what is not as expected.
    pub fn failures(&self, now: u64) -> Vec<String> {
        let tables = self.tables(now);
        let mut frame = self.buffer();
        let outcome = run(self.hook, &mut frame, self.port, &tables);
        let mut lines = State::of(&tables).differences(&self.expected_state(now), 0);
        let mut check = |what: &str, found: &dyn Debug, expected: &dyn Debug| {
            let (found, expected) = (format!("{found:02x?}"), format!("{expected:02x?}"));
            if found != expected {
                lines.push(format!("{what}: {found}, expected {expected}"));
            }
        };
        check("outcome", &outcome, &self.expect.outcome);
        check("bytes", &frame.bytes, &self.expected_bytes());
        check("copies", &frame.copies, &self.expect.copies);
        lines.into_iter().map(|line| format!("{}: {line}", self.name)).collect()
    }
}

/// What the program at `hook` does, and the programs that it calls.
pub fn run(hook: Hook, frame: &mut Buffer, port: PortId, tables: &MemoryTables) -> Outcome {
    let mut scratch = Scratch::default();
    let first = enter(hook, frame, port, &mut scratch, tables);
    path::complete(frame, port, first, &mut scratch, tables)
}

/// What the program at `hook` does alone.
pub fn enter(hook: Hook, frame: &mut Buffer, port: PortId, scratch: &mut Scratch, tables: &MemoryTables) -> Outcome {
    match hook {
        Hook::Namespace => path::from_namespace(frame, port, tables),
        Hook::Host => path::from_host(frame, port, tables),
        Hook::Uplink => path::from_uplink(frame, ifindex_of(port, tables), scratch, tables),
        Hook::Refused(refusal) => path::refused(frame, port, refusal, tables),
    }
}

/// The index of a port's interface.
pub fn ifindex_of(port: PortId, tables: &MemoryTables) -> u32 {
    let uplink = tables.uplinks.iter().find(|(_, uplink)| **uplink == port);
    uplink.map_or(port.ifindex(), |(ifindex, _)| *ifindex)
}
