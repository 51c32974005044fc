//! Several frames after one another on the same tables: what a flow is takes more than one.
//!
//! Time passes by making entries older, not by moving the clock: the kernel's clock cannot be moved.

use std::collections::{BTreeMap, BTreeSet};

use crate::layout::{FlowKey, Mapping, MappingKey, NetworkId, PortCounters, PortId, Usage, flow_flags};
use crate::memory::MemoryTables;
use crate::packet::Buffer;
use crate::verdict::{DropReason, Egress, Outcome, Verdict};

use super::check::{State, run};
use super::frame::Frame;
use super::world::{self, End, UPLINK};
use super::{Hook, Setup};

/// Where the IP header of a frame begins.
const IP: usize = 14;

type Check = Box<dyn Fn(&MemoryTables) + Send + Sync>;

/// Frames, and what must become of each.
pub struct Sequence {
    /// What it is about, unique.
    pub name: String,
    /// The frames, in order.
    pub steps: Vec<Step>,
    setup: Vec<Setup>,
}

/// One frame of a sequence.
pub struct Step {
    /// Where it arrives.
    pub hook: Hook,
    /// The port it arrives at.
    pub port: PortId,
    /// Its bytes.
    pub frame: Vec<u8>,
    /// Payload of each segment, when it is a GSO frame.
    pub gso_size: u32,
    /// Seconds that pass before it.
    pub wait: u32,
    /// What must become of it.
    pub fate: Fate,
    /// Whether the host's routes are others before it, which the tests in the kernel cannot do.
    pub reroutes: bool,
    change: Vec<Setup>,
    then: Vec<Check>,
}

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It leaves that way, as these bytes.
    Sent(Egress, Vec<u8>),
    /// It is dropped, and its sender is told by this error, unless that is empty.
    Dropped(DropReason, Vec<u8>),
    /// It is left to the host.
    Passed,
    /// It is no more, but these come in where it came in. They are the next frames of the sequence.
    Again(Vec<Vec<u8>>),
}

impl Sequence {
    /// A sequence without frames.
    pub(super) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), steps: Vec::new(), setup: Vec::new() }
    }

    /// The tables are other than the world's.
    pub(super) fn with(mut self, setup: impl Fn(&mut MemoryTables) + Send + Sync + 'static) -> Self {
        self.setup.push(Box::new(setup));
        self
    }

    /// The next frame.
    pub(super) fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// The tables before the first frame, at `now`.
    pub fn tables(&self, now: u64) -> MemoryTables {
        let mut tables = world::tables(now);
        for setup in &self.setup {
            setup(&mut tables);
        }
        tables
    }

    /// Seconds from the first frame to the last.
    pub fn duration(&self) -> u32 {
        self.steps.iter().map(|step| step.wait).sum()
    }

    /// Runs the sequence on plain memory.
    ///
    /// # Panics
    /// When something is not as expected.
    pub fn run(&self, now: u64) {
        let mut tables = self.tables(now);
        for (number, step) in self.steps.iter().enumerate() {
            let name = format!("{}, frame {number}", self.name);
            step.prepare(&mut tables);
            let before = State::of(&tables);
            let (outcome, frame) = step.run(&tables);
            step.judge(&name, &before, &tables, outcome, &frame);
        }
    }
}

impl Step {
    fn new(hook: Hook, port: PortId, frame: Frame) -> Self {
        Self {
            hook,
            port,
            frame: frame.finish(),
            gso_size: 0,
            wait: 0,
            fate: Fate::Passed,
            reroutes: false,
            change: Vec::new(),
            then: Vec::new(),
        }
    }

    /// What must be so afterwards.
    pub(super) fn then(mut self, check: impl Fn(&MemoryTables) + Send + Sync + 'static) -> Self {
        self.then.push(Box::new(check));
        self
    }

    /// What changes in the tables before.
    pub(super) fn with(mut self, change: impl Fn(&mut MemoryTables) + Send + Sync + 'static) -> Self {
        self.change.push(Box::new(change));
        self
    }

    /// The host's routes change before.
    pub(super) fn rerouted(self, change: impl Fn(&mut MemoryTables) + Send + Sync + 'static) -> Self {
        Self { reroutes: true, ..self.with(change) }
    }

    /// Some time passes before.
    pub(super) fn after(self, wait: u32) -> Self {
        Self { wait, ..self }
    }

    /// It is a GSO frame.
    pub(super) fn gso(self, size: u32) -> Self {
        Self { gso_size: size, ..self }
    }

    fn fate(self, fate: Fate) -> Self {
        Self { fate, ..self }
    }

    /// It leaves by the uplink to a neighbour whose MAC is known.
    pub(super) fn leaves(self, frame: Frame) -> Self {
        self.fate(Fate::Sent(Egress::Uplink(world::UPLINK_IFINDEX), frame.finish()))
    }

    /// It leaves by the uplink, and the kernel is to see to the neighbour.
    pub(super) fn leaves_by_neighbour(self, frame: Frame) -> Self {
        self.fate(Fate::Sent(Egress::Neighbour(world::UPLINK_IFINDEX), frame.finish()))
    }

    /// It gets into a namespace.
    pub(super) fn enters(self, end: &End, frame: Frame) -> Self {
        self.fate(Fate::Sent(Egress::Namespace(end.id), frame.finish()))
    }

    /// It goes up to the host as it is.
    pub(super) fn goes_to_host(self, end: &End) -> Self {
        let frame = self.frame.clone();
        self.fate(Fate::Sent(Egress::Host(end.id), frame))
    }

    /// These come in in its stead.
    pub(super) fn comes_again(self, frames: Vec<Vec<u8>>) -> Self {
        self.fate(Fate::Again(frames))
    }

    /// It is dropped without a word.
    pub(super) fn dropped(self, reason: DropReason) -> Self {
        self.fate(Fate::Dropped(reason, Vec::new()))
    }

    /// It is dropped, and `speaker` tells with an error of this type and code.
    pub(super) fn told(self, reason: DropReason, speaker: &End, kind: [u8; 2], rest: u32) -> Self {
        let error = super::refuse::error_about(&self.frame, speaker, kind, rest);
        self.fate(Fate::Dropped(reason, error))
    }

    /// These bytes are behind the packet, and stay there.
    pub(super) fn trail(&mut self, bytes: &[u8]) {
        self.frame.extend(bytes);
        if let Fate::Sent(_, sent) = &mut self.fate {
            sent.extend(bytes);
        }
    }

    /// It must not be cut.
    pub(super) fn whole(mut self) -> Self {
        if self.frame[12] == 8 {
            self.frame[20] |= 0x40;
            self.frame[24..26].fill(0);
            let end = IP + usize::from(self.frame[IP] & 15) * 4;
            let sum = super::frame::checksum(&self.frame[IP..end]);
            self.frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        self
    }

    /// It comes in with so many hops left.
    pub(super) fn with_hops(mut self, is_v4: bool, hops: u8) -> Self {
        if is_v4 {
            let old = self.frame[22];
            self.frame[22] = hops;
            // The header's checksum goes the other way (RFC 1624).
            let sum = u32::from(self.frame[24]) << 8 | u32::from(self.frame[25]);
            let sum = sum + (u32::from(old.wrapping_sub(hops)) << 8);
            let sum = (sum & 0xffff) + (sum >> 16);
            self.frame[24..26].copy_from_slice(&(sum as u16).to_be_bytes());
        } else {
            self.frame[21] = hops;
        }
        self
    }

    /// Has time pass and changes made before the frame comes in.
    pub fn prepare(&self, tables: &mut MemoryTables) {
        grow_old(tables, self.wait as i32);
        for change in &self.change {
            change(tables);
        }
    }

    /// Runs the frame on plain memory.
    pub fn run(&self, tables: &MemoryTables) -> (Outcome, Buffer) {
        let mut frame = Buffer { gso_size: self.gso_size, ..Buffer::new(self.frame.clone()) };
        let outcome = run(self.hook, &mut frame, self.port, tables);
        (outcome, frame)
    }

    /// Compares what has become of the frame, and of the tables.
    ///
    /// # Panics
    /// When something is not as expected.
    pub fn judge(&self, name: &str, before: &State, tables: &MemoryTables, outcome: Outcome, frame: &Buffer) {
        let after = State::of(tables);
        let found = fate_of(before, &after, outcome, frame);
        if found != self.fate {
            panic!("{name}: {}\nexpected {}", show(&found), show(&self.fate));
        }
        if let Some(flaw) = flaw(tables) {
            panic!("{name}: {flaw}");
        }
        if outcome != Ok(Verdict::Again) {
            let came = |state: &State| state.counters.get(&self.port).map_or(0, |counters| counters.received.packets);
            assert_eq!(came(&after), came(before) + 1, "{name}: counted once");
        }
        if let Some(flaw) = miscounted(before, &after, self.port) {
            panic!("{name}: {flaw}");
        }
        for check in &self.then {
            check(tables);
        }
    }
}

fn show(fate: &Fate) -> String {
    match fate {
        Fate::Sent(egress, bytes) => format!("Sent({egress:?}, {bytes:02x?})"),
        Fate::Dropped(reason, bytes) => format!("Dropped({reason:?}, {bytes:02x?})"),
        Fate::Passed => "Passed".to_owned(),
        Fate::Again(frames) => format!("Again({frames:02x?})"),
    }
}

/// A frame out of the namespace of `end`.
pub(super) fn from(end: &End, frame: Frame) -> Step {
    Step::new(Hook::Namespace, end.id, frame)
}

/// A frame from outside.
pub(super) fn outside(frame: Frame) -> Step {
    Step::new(Hook::Uplink, UPLINK.id, frame)
}

fn fate_of(before: &State, after: &State, outcome: Outcome, frame: &Buffer) -> Fate {
    let counts = |state: &State, key: &(PortId, u16)| state.drops.get(key).copied().unwrap_or_default().packets;
    let dropped = after.drops.keys().find(|key| counts(after, key) != counts(before, key));
    let dropped = dropped.and_then(|(_, code)| DropReason::from_code(*code));
    match (outcome, dropped) {
        // What has waited is no longer among the drops.
        (Ok(Verdict::Again), _) => Fate::Again(frame.again.clone()),
        (Ok(Verdict::Deliver(_)), Some(reason)) => Fate::Dropped(reason, frame.bytes.clone()),
        (Ok(Verdict::Deliver(egress)), None) => Fate::Sent(egress, frame.bytes.clone()),
        (Ok(Verdict::Pass), None) => Fate::Passed,
        (Err(reason), Some(counted)) if reason == counted => Fate::Dropped(reason, Vec::new()),
        other => panic!("{other:?} is no end"),
    }
}

/// Drops at `port`: all of them, and those whose senders may be told.
fn drops(state: &State, port: PortId) -> (u64, u64) {
    let own = state.drops.iter().filter(|((at, _), _)| *at == port);
    own.fold((0, 0), |(all, told), ((_, code), traffic)| {
        let is_told = DropReason::from_code(*code).is_some_and(|reason| reason.notice().is_some());
        (all + traffic.packets, told + if is_told { traffic.packets } else { 0 })
    })
}

/// Whether a frame that came in by `port` was dropped.
#[cfg(test)]
pub(super) fn is_dropped(before: &State, after: &State, port: PortId) -> bool {
    drops(after, port).0 > drops(before, port).0
}

/// Every frame that came in by `port` had one end. Those that come in again had none, and count as if they never came.
pub(super) fn miscounted(before: &State, after: &State, port: PortId) -> Option<String> {
    let of = |state: &State| state.counters.get(&port).copied().unwrap_or_default();
    let all_sent = |state: &State| state.counters.values().map(|counters| counters.sent.packets).sum::<u64>();
    let grown = |was: u64, is: u64| is.wrapping_sub(was) as i64;
    let (was, is): (PortCounters, PortCounters) = (of(before), of(after));
    if is.flooded != was.flooded {
        return None;
    }
    let received = grown(was.received.packets, is.received.packets);
    let (passed, answered) = (grown(was.passed, is.passed), grown(was.answered, is.answered));
    let dropped = grown(drops(before, port).0, drops(after, port).0);
    let sent = grown(all_sent(before), all_sent(after));
    // An error about a frame is sent, but the frame itself was dropped.
    let told = sent.min(grown(drops(before, port).1, drops(after, port).1));
    (received != sent - told + passed + dropped).then(|| {
        format!("{received} in, but {sent} sent, {told} told, {passed} passed, {dropped} dropped, {answered} answered")
    })
}

/// Makes everything `seconds` older; younger when that is negative, as is right when the clock has gone on.
pub fn grow_old(tables: &mut MemoryTables, seconds: i32) {
    for table in [&tables.young, &tables.flows] {
        for flow in table.borrow_mut().values_mut() {
            flow.about.seen = flow.about.seen.saturating_add_signed(-seconds);
        }
    }
    for mapping in tables.mappings.borrow_mut().values_mut() {
        mapping.until = mapping.until.saturating_add_signed(-seconds);
    }
    for fragment in tables.fragments.borrow_mut().values_mut() {
        fragment.seen = fragment.seen.saturating_add_signed(-seconds);
    }
    for (_, seen, _) in tables.held.borrow_mut().values_mut() {
        *seen = seen.saturating_add_signed(-seconds);
    }
    for holding in tables.holding.borrow_mut().values_mut() {
        holding.seen = holding.seen.saturating_add_signed(-seconds);
    }
    for clocks in [&tables.flood_clocks, &tables.refusal_clocks] {
        for clock in clocks.borrow_mut().values_mut() {
            *clock = clock.saturating_add_signed(-i64::from(seconds) * 1_000_000_000);
        }
    }
}

/// What is wrong with the tables, whatever came in: both directions of a flow live and die together, and what is held is
/// counted.
pub fn flaw(tables: &MemoryTables) -> Option<String> {
    flaw_of(&State::of(tables), (tables.clock.get() / 1_000_000_000) as u32)
}

/// The same of a state at `now`, seconds.
pub fn flaw_of(state: &State, now: u32) -> Option<String> {
    for (what, table) in [("young", &state.young), ("established", &state.flows)] {
        for (key, flow) in table {
            let other_key = flow.other_key(key);
            let Some(other) = table.get(&other_key) else {
                return Some(format!("{what} {key:?} without its other direction"));
            };
            if other.other_key(&other_key) != *key {
                return Some(format!(
                    "{what} {key:?} leads to a direction that does not lead back: {flow:?} {other:?}"
                ));
            }
            let of = |flow: &crate::layout::Flow| (flow.about.owner, flow.about.flags | flow_flags::REPLY);
            if of(flow) != of(other) || flow.about.has(flow_flags::REPLY) == other.about.has(flow_flags::REPLY) {
                return Some(format!("{what} {key:?}: {flow:?} and {other:?} are not the same flow's"));
            }
        }
    }
    let mut held: BTreeMap<PortId, Usage> = BTreeMap::new();
    for (key, flow) in state.flows.iter().filter(|(_, flow)| !flow.about.has(flow_flags::REPLY)) {
        let owner = held.entry(flow.about.owner).or_default();
        owner.flows += 1;
        owner.ports += u64::from(flow.about.has(flow_flags::POOLED));
        held.entry(total(key)).or_default().flows += 1;
    }
    // Both endpoints of each mapping, as either half tells them.
    let ends = |key: &MappingKey, mapping: &Mapping| (key.protocol, (key.ip, key.port), (mapping.ip, mapping.port));
    let turned = |(protocol, near, far)| (protocol, far, near);
    let (mut inner, mut outer) = (BTreeSet::new(), BTreeSet::new());
    for (key, mapping) in &state.mappings {
        if key.side != NetworkId::OUTSIDE {
            inner.insert(ends(key, mapping));
        } else if mapping.owner != PortId::NONE {
            // What says whom a port has sent to is no mapping of its own.
            held.entry(mapping.owner).or_default().ports += 1;
            outer.insert(turned(ends(key, mapping)));
        }
    }
    if let Some(alone) = outer.iter().find(|ends| !inner.contains(*ends)) {
        return Some(format!("mapping {alone:?} without its inside"));
    }
    for (key, mapping) in state.mappings.iter().filter(|(key, _)| key.side != NetworkId::OUTSIDE) {
        if mapping.is_alive(now) && !outer.contains(&ends(key, mapping)) {
            return Some(format!("mapping {key:?} has a port that is not held for it"));
        }
    }
    (held != state.usage).then(|| format!("held {held:?}, counted {:?}", state.usage))
}

fn total(key: &FlowKey) -> PortId {
    if key.is_v4() { PortId::NONE } else { PortId(crate::layout::MAX_PORTS as u16 - 1) }
}
