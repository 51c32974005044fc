//! How a change of a table reads.

use nsnet_common::layout::{FlowKey, names};
use nsnet_common::tables::{Age, Inserted, Reclaim};

use super::entries::{Words, flow_table, packet, tuple};
use super::event::{Change, Lookup};

/// A change in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// The table, by its name among the pins.
    pub table: &'static str,
    /// Which entry.
    pub key: String,
    /// What is done to it.
    pub change: String,
}

impl Words<'_> {
    /// What a change does; `None` when it does nothing.
    pub fn change(&self, change: &Change) -> Option<Edit> {
        let edit = |table, key: String, change: String| Some(Edit { table, key, change });
        let entry = |lookup: &Lookup| self.lookup(lookup);
        let of_flow = |age: Age, key: &FlowKey, change: String| edit(flow_table(age, key), tuple(key), change);
        match change {
            Change::Station(key, station, is_in) => {
                let as_is = entry(&Lookup::Station(*key, Some(*station)));
                let change =
                    if *is_in { format!("set: behind {}", self.names.port(station.port())) } else { FULL.to_owned() };
                edit(as_is.table, as_is.key, change)
            }
            Change::NoStation(key) => {
                edit(names::STATIONS, entry(&Lookup::Station(*key, None)).key, REMOVED.to_owned())
            }
            Change::Foreign(key, mac, is_in) => {
                let as_is = entry(&Lookup::Foreign(*key, Some(*mac)));
                edit(as_is.table, as_is.key, if *is_in { format!("set: {mac}") } else { FULL.to_owned() })
            }
            Change::FloodClock(port, clock) => self.clock(&Lookup::FloodClock(*port, *clock)),
            Change::RefusalClock(port, clock) => self.clock(&Lookup::RefusalClock(*port, *clock)),
            Change::Flow(age, key, flow, inserted) => of_flow(*age, key, made(*inserted, || self.flow(key, flow))?),
            Change::NoFlow(age, key, true) => of_flow(*age, key, REMOVED.to_owned()),
            Change::Seen(age, key, _now) => of_flow(*age, key, "noted to be in use".to_owned()),
            Change::State(age, key, state, timeout) => {
                of_flow(*age, key, format!("becomes {}, lives {timeout} s from its last use", state.label()))
            }
            Change::Tcp(age, key, next, acknowledged) => {
                of_flow(*age, key, format!("has come to number {next}, acknowledged {acknowledged}"))
            }
            Change::Way(age, key, hop) => {
                of_flow(*age, key, format!("leaves {}", self.route(nsnet_common::tables::Route::Forward, hop)))
            }
            Change::Reclaim(table) => {
                let table = match table {
                    Reclaim::Flows4 => names::FLOWS4,
                    Reclaim::Flows6 => names::FLOWS6,
                    Reclaim::Mappings => names::MAPPINGS,
                };
                edit(table, "all that is over".to_owned(), "removed, unless that was tried within a second".to_owned())
            }
            Change::Mapping(key, mapping, inserted) => {
                let as_is = entry(&Lookup::Mapping(*key, Some(*mapping)));
                edit(as_is.table, as_is.key, made(*inserted, || as_is.entry)?)
            }
            Change::Refresh(key, until) => {
                let more = until.wrapping_sub(self.seconds());
                edit(names::MAPPINGS, entry(&Lookup::Mapping(*key, None)).key, format!("kept for {more} s"))
            }
            Change::NoMapping(key, true) => {
                edit(names::MAPPINGS, entry(&Lookup::Mapping(*key, None)).key, REMOVED.to_owned())
            }
            Change::Usage(owner, flows, ports) => {
                let key = entry(&Lookup::Usage(*owner, nsnet_common::layout::Usage::default())).key;
                edit(names::USAGE, key, format!("{flows:+} established flows, {ports:+} ports"))
            }
            Change::Fragment(key, _first) => {
                edit(names::FRAGMENTS, packet(key), "remembered, for the fragments that follow".to_owned())
            }
            Change::Holding(port, holding) => {
                edit(names::HOLDING, self.names.port(*port), format!("{} have waited", holding.count))
            }
            Change::Hold(place, key, is_in) => {
                let slot = entry(&Lookup::Held(*place, None)).key;
                let change = if *is_in { format!("waits: {}", packet(key)) } else { "is too long to wait".to_owned() };
                edit(names::HELD, slot, change)
            }
            Change::LetGo(place, true) => {
                edit(names::HELD, entry(&Lookup::Held(*place, None)).key, "comes in again".to_owned())
            }
            Change::Free(place, true) => edit(names::HELD, entry(&Lookup::Held(*place, None)).key, REMOVED.to_owned()),
            Change::NoFlow(_, _, false)
            | Change::NoMapping(_, false)
            | Change::LetGo(_, false)
            | Change::Free(_, false) => None,
        }
    }

    fn clock(&self, lookup: &Lookup) -> Option<Edit> {
        let as_is = self.lookup(lookup);
        Some(Edit { table: as_is.table, key: as_is.key, change: as_is.entry })
    }
}

const FULL: &str = "there is no room for it";
const REMOVED: &str = "removed";

/// What came of an insert. One that was there already is left as it is.
fn made(inserted: Inserted, entry: impl FnOnce() -> String) -> Option<String> {
    match inserted {
        Inserted::Yes => Some(format!("made: {}", entry())),
        Inserted::Exists => None,
        Inserted::Full => Some(FULL.to_owned()),
    }
}
