//! What is in the tables that a frame can change: to compare what became of them with what should have.

use std::collections::BTreeMap;
use std::fmt::Debug;

use crate::layout::{
    Flow, FlowKey, Fragment, FragmentKey, HeldKey, Holding, Mapping, MappingKey, NetworkId, PortCounters, PortId,
    Station, Traffic, Usage,
};
use crate::memory::MemoryTables;
use crate::wire::Mac;

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
