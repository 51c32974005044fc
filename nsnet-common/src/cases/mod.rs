//! One table of frames, each with all that must become of it. `cargo test` runs it on plain memory, the program tests
//! run it in the kernel, and both must find every byte, counter and table entry as it says.
//!
//! ```text
//!   frame    builds frames, and knows nothing of wire::       world    five networks and an uplink: what the tables hold
//!   ethernet ipv4 arp ipv6 nd forward learn host refuse       the cases, by theme; all() is the table
//!   sequence several frames after one another: what a flow is takes more than one
//!   check    runs a case on plain memory; what a state is, and what it should be
//!   accelerated   what the accelerator makes of the same frames
//!   mutate   frames made of the cases' frames by breaking them
//!   oracle   what may get through at all, read from the bytes once more: the judge of what mutate makes
//! ```

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "code for tests: a wrong case is to stop the test"
)]

pub mod accelerated;
mod arp;
pub mod check;
mod errors;
mod ethernet;
mod flows;
mod forward;
mod fragments;
pub mod frame;
mod host;
mod ipv4;
mod ipv6;
mod learn;
#[cfg(test)]
mod many;
pub mod mutate;
mod nd;
#[cfg(test)]
mod oracle;
mod published;
#[cfg(test)]
mod race;
#[cfg(test)]
mod races;
mod refuse;
mod routing;
pub mod sequence;
mod talk;
#[cfg(test)]
mod tests;
pub mod world;

use crate::layout::{ForeignKey, Port, PortId, StationKey, flags};
use crate::memory::MemoryTables;
use crate::verdict::{DropReason, Egress, Outcome, Refusal, Verdict};
use crate::wire::Mac;

use frame::Frame;
use world::End;

/// The side of a port that a frame comes in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// From a namespace.
    Namespace,
    /// From the host.
    Host,
    /// From outside.
    Uplink,
    /// From another program, which has dropped and counted it.
    Refused(Refusal),
}

type Setup = Box<dyn Fn(&mut MemoryTables) + Send + Sync>;

/// A frame, how it arrives, and what must become of it.
pub struct Case {
    /// What the case is about, unique in the table.
    pub name: String,
    /// Where it arrives.
    pub hook: Hook,
    /// The port it arrives at.
    pub port: PortId,
    /// Its bytes.
    pub frame: Vec<u8>,
    /// Whether a VLAN tag travels beside it.
    pub tag_aside: bool,
    /// Payload of each segment, when it is a GSO frame.
    pub gso_size: u32,
    /// What must become of it.
    pub expect: Expect,
    setup: Vec<Setup>,
}

/// What must become of a frame. What is not named here must not happen: any other counter or entry must stay.
#[derive(Debug)]
pub struct Expect {
    /// The way out, or the reason for none.
    pub outcome: Outcome,
    /// The frame's bytes afterwards, when it was answered in place.
    pub answer: Option<Vec<u8>>,
    /// The ports that get a copy, in order.
    pub copies: Vec<PortId>,
    /// The ports that a copy was meant for but must not get.
    pub refused: Vec<(PortId, DropReason)>,
    /// How many ports get no copy because they are kept from the sender's.
    pub kept_away: usize,
    /// What changes in the hashed FDB; `None` for an entry that goes. Learned entries bear the time of the run.
    pub stations: Vec<(StationKey, Option<PortId>)>,
    /// Places of learned MACs that are taken.
    pub places: Vec<(ForeignKey, Mac)>,
    /// Why the frame was dropped, when its sender is told: the answer is the error, and the outcome its way.
    pub told: Option<DropReason>,
    /// Whether the answer is the frame itself, as it was passed on.
    pub is_routed: bool,
}

/// The whole table.
pub fn all() -> Vec<Case> {
    let themes = [ethernet::cases, ipv4::cases, arp::cases, ipv6::cases, nd::cases, forward::cases, learn::cases];
    let mut cases: Vec<Case> = themes.into_iter().flat_map(|theme| theme()).collect();
    cases.extend(host::cases());
    cases.extend(refuse::cases());
    cases
}

/// Every sequence.
pub fn sequences() -> Vec<sequence::Sequence> {
    let themes = [routing::sequences, flows::sequences, published::sequences, errors::sequences, fragments::sequences];
    themes.into_iter().flat_map(|theme| theme()).collect()
}

/// Begins a case: a frame out of the namespace of `end`. It is dropped as from no port until told otherwise.
fn from(end: &End, name: impl Into<String>, frame: Frame) -> Case {
    let expect = Expect {
        outcome: Err(DropReason::UnknownPort),
        answer: None,
        copies: Vec::new(),
        refused: Vec::new(),
        kept_away: 0,
        stations: Vec::new(),
        places: Vec::new(),
        told: None,
        is_routed: false,
    };
    Case {
        name: name.into(),
        hook: Hook::Namespace,
        port: end.id,
        frame: frame.finish(),
        tag_aside: false,
        gso_size: 0,
        expect,
        setup: Vec::new(),
    }
}

/// Begins a case: a frame that the host sends out of the network's interface `end`.
fn from_host(end: &End, name: impl Into<String>, frame: Frame) -> Case {
    Case { hook: Hook::Host, ..from(end, format!("host: {}", name.into()), frame) }
}

impl Case {
    /// The tables before the frame, at `now`.
    pub fn tables(&self, now: u64) -> MemoryTables {
        let mut tables = world::tables(now);
        for setup in &self.setup {
            setup(&mut tables);
        }
        tables
    }

    /// Whether another program has dropped the frame already.
    pub fn is_refused(&self) -> bool {
        matches!(self.hook, Hook::Refused(_))
    }

    /// The only way out is to `end`, unchanged.
    fn delivered(self, end: &End) -> Self {
        let is_host = end.flags & flags::HOST != 0;
        let egress = if is_host { Egress::Host(end.id) } else { Egress::Namespace(end.id) };
        self.outcome(Ok(Verdict::Deliver(egress)))
    }

    /// It is dropped for `reason`.
    fn dropped(self, reason: DropReason) -> Self {
        self.outcome(Err(reason))
    }

    /// It goes back to `sender` as these bytes.
    fn answered(self, sender: &End, bytes: Vec<u8>) -> Self {
        let mut case = self.delivered(sender);
        case.expect.answer = Some(bytes);
        case
    }

    /// It is passed on to `end` as these bytes.
    fn routed(self, end: &End, frame: Frame) -> Self {
        let mut case = self.answered(end, frame.finish());
        case.expect.is_routed = true;
        case
    }

    /// It was dropped for `reason` before its sender was told.
    fn because(mut self, reason: DropReason) -> Self {
        self.expect.told = Some(reason);
        self
    }

    /// These ports get a copy.
    fn flooded<'a>(self, ends: impl IntoIterator<Item = &'a End>) -> Self {
        let mut case = self.outcome(Ok(Verdict::Flooded));
        case.expect.copies = ends.into_iter().map(|end| end.id).collect();
        case
    }

    /// Of the copies, the one for `end` is dropped instead.
    fn but_not(mut self, end: &End, reason: DropReason) -> Self {
        self.expect.copies.retain(|copy| *copy != end.id);
        self.expect.refused.push((end.id, reason));
        self
    }

    /// So many ports get no copy, and are not counted: they are kept from the sender's.
    fn keeping_away(mut self, ports: usize) -> Self {
        self.expect.kept_away = ports;
        self
    }

    /// `mac` is learned behind `end`, in one of its places.
    fn learned(mut self, end: &End, place: u16, mac: Mac) -> Self {
        self.expect.places.push((ForeignKey { port: end.id, place }, mac));
        self.heard(end, mac)
    }

    /// The stamp of a MAC that is known behind `end` becomes new.
    fn heard(mut self, end: &End, mac: Mac) -> Self {
        self.expect.stations.push((StationKey { network: end.network, mac }, Some(end.id)));
        self
    }

    /// A MAC that was known behind `end` is forgotten.
    fn forgotten(mut self, end: &End, mac: Mac) -> Self {
        self.expect.stations.push((StationKey { network: end.network, mac }, None));
        self
    }

    /// The tables are other than the world's.
    fn with(mut self, setup: impl Fn(&mut MemoryTables) + Send + Sync + 'static) -> Self {
        self.setup.push(Box::new(setup));
        self
    }

    /// Before the frame, `end` has learned `mac` in this place, `age` nanoseconds ago.
    fn knowing(self, end: &'static End, place: u16, mac: Mac, age: u64) -> Self {
        self.with(move |tables| world::put_learned(tables, end, place, mac, age))
    }

    /// `end` takes frames of `mtu` bytes after the Ethernet header.
    fn with_mtu(self, end: &'static End, mtu: u16) -> Self {
        self.with(move |tables| {
            let old = tables.ports[&end.id];
            let new = Port::new(end.id, end.network, end.mac, mtu, end.flags);
            let new = new.with_addresses(Some(old.ipv4()), Some(old.ipv6())).followed_by(old.next());
            tables.ports.insert(end.id, new);
        })
    }

    /// It is a GSO frame, whose segments carry `size` bytes.
    fn gso(self, size: u32) -> Self {
        Self { gso_size: size, ..self }
    }

    fn outcome(mut self, outcome: Outcome) -> Self {
        self.expect.outcome = outcome;
        self
    }
}
