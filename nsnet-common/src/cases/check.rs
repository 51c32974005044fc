//! Runs a case on plain memory, and says what should have become of the tables.

use std::fmt::Debug;

use crate::layout::{FLOOD_COPY_NS, ForeignKey, HeldKey, Holding, PortId, REFUSAL_NS, Station, whole_seconds};
use crate::memory::MemoryTables;
use crate::packet::Buffer;
use crate::path;
use crate::scratch::Scratch;
pub use crate::state::State;
use crate::verdict::{DropReason, Egress, Outcome, Verdict};

use super::{Case, Expect, Hook};

/// A time at which to run: late enough after the start of the machine for every age in the table.
pub const NOON: u64 = 12 * 3600 * 1_000_000_000;

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
        let Expect { copies, refused, kept_away, .. } = &self.expect;
        state.counters.entry(self.port).or_default().flooded += 1;
        for copy in copies {
            state.counters.entry(*copy).or_default().sent.add(length);
        }
        for (port, reason) in refused {
            state.drops.entry((*port, reason.code())).or_default().add(length);
        }
        // A copy that nobody gets is paid for, too.
        let clock = state.flood_clocks.entry(self.port).or_default();
        *clock = (*clock).max(now) + (copies.len() + refused.len() + kept_away) as u64 * FLOOD_COPY_NS;
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
