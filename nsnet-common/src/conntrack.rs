//! Flows: found, followed, refreshed, promoted, ended. Both directions live and die together.
//!
//! ```text
//!   opened  ->  young (LRU; a flood can only push out its like)  ->  promoted by the first answer, by the end of the
//!   TCP handshake, or by use from inside for a second  ->  grown (bounded; nothing alive is ever pushed out)  ->  not refreshed for its timeout: dead
//! ```
//!
//! Death is found at lookup, so it needs no process. TCP states follow RFC 6146 section 3.5.2 with RFC 7857 section 2;
//! a RST counts only when it is where the receiver is, so that it is never easier to end a flow than its connection.

use crate::datagram::{Datagram, Kind};
use crate::layout::{
    About, Flow, FlowKey, FlowState, MAPPING_STEP, MAX_FLOWS_V4, MAX_FLOWS_V6, MappingKey, NetworkId, Policy, PortId,
    QUARANTINE, Usage, flow_flags,
};
use crate::nat;
use crate::scratch::Scratch;
use crate::tables::{Age, FlowEntry, Inserted, Tables};
use crate::verdict::DropReason;
use crate::wire::transport::tcp_flags;
use crate::wire::{IpProtocol, Macs};

/// How far a segment may be ahead of what was seen before to count as sent, bytes: one of random number is not.
const LEAP: u32 = 1 << 20;

/// A flow that a packet was found to belong to.
#[derive(Clone, Copy)]
pub struct Found<F> {
    /// Its entry.
    pub entry: F,
    /// Where that stands.
    pub age: Age,
}

/// The flow of packets with this tuple, if it lives at `now`, seconds.
#[inline(always)]
pub fn find<T: Tables>(key: &FlowKey, now: u32, tables: T) -> Option<Found<T::Flow>> {
    let (entry, age) = match tables.flow(Age::Grown, key) {
        Some(entry) => (entry, Age::Grown),
        None => match tables.flow(Age::Young, key) {
            Some(entry) => (entry, Age::Young),
            // Another CPU may have promoted it between the two looks.
            None => (tables.flow(Age::Grown, key)?, Age::Grown),
        },
    };
    if entry.about().is_alive(now) || look(key, age, tables) == Standing::Alive {
        return Some(Found { entry, age });
    }
    end_dead(key, age, tables);
    None
}

/// What stands under a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No flow.
    Free,
    /// One that is dead: for [`bury`].
    Dead,
    /// One that lives.
    Alive,
}

/// What stands under this tuple.
#[inline(never)]
pub fn standing(key: &FlowKey, tables: impl Tables) -> Standing {
    match look(key, Age::Grown, tables) {
        Standing::Free => look(key, Age::Young, tables),
        found @ (Standing::Dead | Standing::Alive) => found,
    }
}

/// What stands under this tuple in the tables of that age. A flow lives as long as one of its directions does.
///
/// Each direction notes its own packets only: with many flows, an entry that is in no cache is most of what a packet costs.
/// That the other one lives is noted here, so that it is asked once in the flow's timeout.
#[inline(never)]
fn look(key: &FlowKey, age: Age, tables: impl Tables) -> Standing {
    let mut flow = Flow::EMPTY;
    let Some(entry) = tables.flow(age, key) else { return Standing::Free };
    entry.read(&mut flow);
    if flow.about.is_alive(tables.seconds()) {
        return Standing::Alive;
    }
    let other_key = flow.other_key(key);
    let Some(other) = tables.flow(age, &other_key) else { return Standing::Dead };
    other.read(&mut flow);
    // What answers come by may be another flow's by now, of one that was given the port after this one's time.
    if flow.other_key(&other_key) != *key || !flow.about.is_alive(tables.seconds()) {
        return Standing::Dead;
    }
    if let Some(entry) = tables.flow(age, key) {
        entry.set_seen(flow.about.seen);
    }
    Standing::Alive
}

/// Whether packets of this tuple belong to a flow that lives.
#[inline(always)]
pub fn is_known(key: &FlowKey, tables: impl Tables) -> bool {
    standing(key, tables) == Standing::Alive
}

/// Ends what is dead under this tuple; `false` when another CPU is about to.
#[inline(never)]
pub fn bury(key: &FlowKey, tables: impl Tables) -> bool {
    end_dead(key, Age::Grown, tables) & end_dead(key, Age::Young, tables)
}

/// By the key alone: an entry's handle is not for passing on, because the verifier would lose which family it is of.
///
/// One CPU at a time, which looks when it is its turn: else another one may have ended the flow since it was found dead, and what is
/// removed is the flow that it has made after that.
#[inline(never)]
pub fn end_dead(key: &FlowKey, age: Age, tables: impl Tables) -> bool {
    let mut lock = MappingKey::EMPTY;
    if !find_lock(key, age, &mut lock, tables) {
        return true;
    }
    let is_ours = tables.lock(&lock);
    if is_ours {
        end_if_dead(key, age, tables);
        tables.unlock(&lock);
    }
    is_ours
}

/// What is locked to end the flow that stands under this tuple: where its answers come to. `false` when there is none, or its
/// entry is not old.
#[inline(never)]
fn find_lock(key: &FlowKey, age: Age, lock: &mut MappingKey, tables: impl Tables) -> bool {
    let mut flow = Flow::EMPTY;
    let Some(entry) = tables.flow(age, key) else { return false };
    entry.read(&mut flow);
    if flow.about.is_alive(tables.seconds()) {
        return false;
    }
    *lock = if flow.about.has(flow_flags::REPLY) {
        MappingKey::flows_of(key.protocol(), key.destination, key.destination_port)
    } else {
        MappingKey::flows_of(key.protocol(), flow.source, flow.about.source_port)
    };
    true
}

/// Ends the flow of packets of this tuple, if it is in the tables of that age and neither direction lives. Whether it was.
#[inline(always)]
pub fn end_if_dead(key: &FlowKey, age: Age, tables: impl Tables) -> bool {
    if look(key, age, tables) != Standing::Dead {
        return false;
    }
    end_at(key, age, tables);
    true
}

/// Ends the flow that stands under this tuple.
#[inline(never)]
fn end_at(key: &FlowKey, age: Age, tables: impl Tables) {
    let mut flow = Flow::EMPTY;
    if let Some(entry) = tables.flow(age, key) {
        entry.read(&mut flow);
        take_out(key, &flow, age, tables);
    }
}

/// Ends a flow, both directions.
#[inline(never)]
pub fn end(key: &FlowKey, flow: &Flow, age: Age, tables: impl Tables) {
    take_out(key, flow, age, tables);
}

/// The same, not a call: those below each other may be eight.
#[inline(always)]
fn take_out(key: &FlowKey, flow: &Flow, age: Age, tables: impl Tables) {
    let other = flow.other_key(key);
    let (owner, is_v4) = (flow.about.owner, key.is_v4());
    // Whoever removes the opener's entry gives its place back, once.
    let openers = if flow.about.has(flow_flags::REPLY) { &other } else { key };
    let answers = if flow.about.has(flow_flags::REPLY) { key } else { &other };
    let was_there = tables.remove_flow(age, openers);
    tables.remove_flow(age, answers);
    if was_there && age == Age::Grown {
        tables.add_usage(owner, -1, if flow.about.has(flow_flags::POOLED) { -1 } else { 0 });
        tables.add_usage(Usage::total(is_v4), -1, 0);
    }
}

/// Whether one more flow may be opened by `owner`.
#[inline(never)]
pub fn check_quota(owner: PortId, limit: u32, is_v4: bool, tables: impl Tables) -> Result<(), DropReason> {
    // Signed: a count that the control plane has corrected at a bad moment may be below zero for a while.
    if tables.usage(owner).flows as i64 >= i64::from(limit) {
        return Err(DropReason::FlowQuota);
    }
    let room = i64::from(if is_v4 { MAX_FLOWS_V4 } else { MAX_FLOWS_V6 });
    if tables.usage(Usage::total(is_v4)).flows as i64 >= room { Err(DropReason::TableFull) } else { Ok(()) }
}

/// What a packet does to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing but passing by.
    None,
    /// It makes the flow established.
    Promote,
    /// It begins the connection anew: the flow is over.
    Reopen,
}

/// Follows a packet: writes what it changes in the flow's entries, and says what else there is to do.
#[inline(always)]
pub fn follow<T: Tables>(scratch: &Scratch, found: Found<T::Flow>, tables: T) -> Step {
    match scratch.datagram.kind {
        Kind::Tcp => follow_tcp(scratch, found, tables),
        Kind::Udp
        | Kind::Sctp
        | Kind::EchoRequest
        | Kind::EchoReply
        | Kind::Other
        | Kind::IcmpError
        | Kind::Link
        | Kind::LaterFragment => {
            let about = &scratch.flow.about;
            let is_first_answer = about.has(flow_flags::REPLY) && about.state == FlowState::UNREPLIED;
            if is_first_answer { Step::Promote } else { Step::None }
        }
    }
}

#[inline(always)]
fn follow_tcp<T: Tables>(scratch: &Scratch, found: Found<T::Flow>, tables: T) -> Step {
    let Scratch { datagram, flow, .. } = scratch;
    let about = &flow.about;
    if datagram.flags & (tcp_flags::SYN | tcp_flags::RST | tcp_flags::FIN) != 0 {
        return follow_change(scratch, found, tables);
    }
    note_numbers(datagram, flow, found.entry);
    // The opener has confirmed, or the answerer goes on, which it does only then.
    if found.age == Age::Young && about.state == FlowState::HALF_OPEN { Step::Promote } else { Step::None }
}

/// Notes how far this direction has come.
#[inline(always)]
pub(crate) fn note_numbers(datagram: &Datagram, flow: &Flow, entry: impl FlowEntry) {
    let is_ahead = datagram.end.wrapping_sub(flow.about.next) <= LEAP;
    let next = if is_ahead { datagram.end } else { flow.about.next };
    let has_ack = datagram.has(tcp_flags::ACK);
    let acknowledged = if has_ack { datagram.acknowledgement } else { flow.about.acknowledged };
    entry.set_tcp(next, acknowledged);
}

/// A segment with SYN, FIN or RST.
#[inline(never)]
fn follow_change<T: Tables>(scratch: &Scratch, found: Found<T::Flow>, tables: T) -> Step {
    let Scratch { datagram, flow, .. } = scratch;
    let about = &flow.about;
    let transitory = tables.policy(inside_of(&datagram.key, flow)).map_or(240, |policy| policy.tcp_transitory);
    let other = tables.flow(found.age, &flow.other_key(&datagram.key));
    if datagram.has(tcp_flags::RST) {
        let Some(other) = other else { return Step::None };
        if about.state == FlowState::CLOSED || !is_within(datagram, &flow.about, &other.about()) {
            // Passed on as it is: the receiver knows best (RFC 5961), we only do not believe it.
            return Step::None;
        }
        found.entry.set_state(FlowState::CLOSED, transitory);
        other.set_state(FlowState::CLOSED, transitory);
        return Step::None;
    }
    if datagram.is_syn() {
        let is_over = about.state == FlowState::CLOSED
            || about.state == FlowState::CLOSING && other.is_none_or(|other| other.about().state == FlowState::CLOSING);
        if is_over {
            return Step::Reopen;
        }
    }
    if found.age == Age::Young && datagram.has(tcp_flags::SYN) {
        // The first number of this direction; a repeated SYN has the same.
        found.entry.set_tcp(datagram.end, datagram.acknowledgement);
        // Answered by SYN and ACK, or by a SYN: both open (RFC 9293 section 3.5).
        if about.has(flow_flags::REPLY) && about.state == FlowState::UNREPLIED {
            found.entry.set_state(FlowState::HALF_OPEN, transitory);
            if let Some(other) = other {
                other.set_state(FlowState::HALF_OPEN, transitory);
            }
        }
        return Step::None;
    }
    note_numbers(datagram, flow, found.entry);
    if datagram.has(tcp_flags::FIN) && found.age == Age::Grown && about.state == FlowState::ESTABLISHED {
        let Some(other) = other else { return Step::None };
        // Half closed lives on (RFC 5382 REQ-2): only with both FINs the time is short.
        if other.about().state == FlowState::CLOSING {
            found.entry.set_state(FlowState::CLOSING, transitory);
            other.set_state(FlowState::CLOSING, transitory);
        } else {
            found.entry.set_state(FlowState::CLOSING, about.timeout);
        }
    }
    Step::None
}

/// Whether a RST is where its receiver is: not before what that has acknowledged, nor after what the sender has sent.
#[inline(always)]
fn is_within(datagram: &Datagram, ours: &About, other: &About) -> bool {
    let from = other.acknowledged;
    if other.state == FlowState::UNREPLIED && ours.has(flow_flags::REPLY) {
        // The answer to a SYN: it acknowledges exactly that (RFC 9293 section 3.10.7.3).
        return datagram.has(tcp_flags::ACK) && datagram.acknowledgement == other.next;
    }
    // One number further than what was sent: a RST that comes right after it.
    datagram.sequence.wrapping_sub(from) <= ours.next.wrapping_sub(from)
}

/// The network that a flow is of; one of the two when it is between networks.
#[inline(always)]
pub fn inside_of(key: &FlowKey, flow: &Flow) -> NetworkId {
    if key.side == NetworkId::OUTSIDE { flow.about.other_side } else { key.side }
}

/// Whether a young flow grows without an answer: a namespace of ours has used it for longer than a second, as senders of
/// logs, metrics and media do. Such a one is found by one lookup, too, and is not pushed out by scans. It counts on its
/// opener's quota.
#[inline(always)]
pub fn is_settled(scratch: &Scratch, age: Age) -> bool {
    let Scratch { datagram, flow, .. } = scratch;
    let is_opener = !flow.about.has(flow_flags::REPLY) && datagram.key.side != NetworkId::OUTSIDE;
    age == Age::Young && is_opener && datagram.kind != Kind::Tcp
}

/// Makes a young flow a grown one. When there is no room it stays young, which is no loss until others push it out.
#[inline(never)]
pub fn promote(scratch: &mut Scratch, tables: impl Tables) {
    let Scratch { datagram, flow, .. } = scratch;
    let key = &datagram.key;
    let Some(entry) = tables.flow(Age::Young, key) else { return note_answer(key, flow, tables) };
    entry.read(flow);
    let other_key = flow.other_key(key);
    let Some(policy) = tables.policy(inside_of(key, flow)) else { return };
    let is_dns = key.protocol() == IpProtocol::UDP && (key.source_port == DNS || key.destination_port == DNS);
    flow.about.timeout = match key.protocol() {
        IpProtocol::TCP => policy.tcp_established,
        IpProtocol::UDP if is_dns => policy.dns,
        protocol => first_timeout(protocol, &policy),
    };
    let is_answered = key.protocol() == IpProtocol::TCP || flow.about.has(flow_flags::REPLY);
    flow.about.state = if is_answered { FlowState::ESTABLISHED } else { FlowState::UNREPLIED };
    let (state, timeout) = (flow.about.state, flow.about.timeout);
    if tables.insert_flow(Age::Grown, key, flow) != Inserted::Yes {
        return;
    }
    let Some(other) = tables.flow(Age::Young, &other_key) else {
        tables.remove_flow(Age::Grown, key);
        return;
    };
    let owner = flow.about.owner;
    other.read(flow);
    (flow.about.timeout, flow.about.state) = (timeout, state);
    if tables.insert_flow(Age::Grown, &other_key, flow) != Inserted::Yes {
        tables.remove_flow(Age::Grown, key);
        return;
    }
    tables.add_usage(owner, 1, if flow.about.has(flow_flags::POOLED) { 1 } else { 0 });
    tables.add_usage(Usage::total(key.is_v4()), 1, 0);
    tables.remove_flow(Age::Young, key);
    tables.remove_flow(Age::Young, &other_key);
}

/// The first answer to a flow that has grown without one.
#[inline(always)]
fn note_answer(key: &FlowKey, flow: &Flow, tables: impl Tables) {
    let timeout = flow.about.timeout;
    for key in [*key, flow.other_key(key)] {
        if let Some(entry) = tables.flow(Age::Grown, &key) {
            entry.set_state(FlowState::ESTABLISHED, timeout);
        }
    }
}

const DNS: [u8; 2] = 53u16.to_be_bytes();

/// Notes that the flow is in use, in this direction's entry, and every few seconds in its mapping. `false` when the opener's
/// answers have no entry any more: young flows' are pushed out one by one.
///
/// Looks the entry up once more: a handle that is kept over the whole path has the verifier walk it once for each table.
#[inline(never)]
pub fn refresh(scratch: &Scratch, age: Age, now: u32, tables: impl Tables) -> bool {
    let Scratch { datagram: Datagram { key, .. }, flow, .. } = scratch;
    if let Some(entry) = tables.flow(age, key) {
        entry.set_seen(now);
    }
    if age == Age::Young {
        match tables.flow(age, &flow.other_key(key)) {
            Some(other) => other.set_seen(now),
            None if !flow.about.has(flow_flags::REPLY) => return false,
            None => {}
        }
    }
    let is_due = now / MAPPING_STEP != flow.about.seen / MAPPING_STEP;
    if is_due && flow.about.has(flow_flags::MAPPED) && !flow.about.has(flow_flags::REPLY) {
        let Some(policy) = tables.policy(key.side) else { return true };
        let until = now.wrapping_add(first_timeout(key.protocol(), &policy) + QUARANTINE);
        let inside = MappingKey::inside(key.side, key.protocol(), key.source, key.source_port, flow.source);
        nat::refresh(&inside, (flow.source, flow.about.source_port), until, tables);
    }
    true
}

/// Notes the way that was found for the flow.
#[inline(never)]
pub fn set_way(scratch: &Scratch, age: Age, tables: impl Tables) {
    if let Some(entry) = tables.flow(age, &scratch.datagram.key) {
        entry.set_hop(&scratch.hop);
    }
}

/// How long a flow lives that was opened just now, seconds.
#[inline(always)]
pub fn first_timeout(protocol: IpProtocol, policy: &Policy) -> u32 {
    match protocol {
        IpProtocol::TCP => policy.tcp_transitory,
        IpProtocol::UDP => policy.udp,
        IpProtocol::ICMP | IpProtocol::ICMPV6 => policy.icmp,
        _ => policy.other,
    }
}

/// Both directions of a flow that is being made, in the storage of one: [`Pair::turn`] goes from one to the other.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The key of the direction that is in front.
    pub key: FlowKey,
    /// Its entry.
    pub flow: Flow,
    /// The way out of the other direction.
    pub back: Way,
}

/// Where one direction leaves.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// The port or uplink.
    pub out: PortId,
    /// The longest packet, bytes.
    pub mtu: u16,
    /// The MACs that a packet is given.
    pub macs: Macs,
}

impl Pair {
    /// No flow.
    pub const EMPTY: Self =
        Self { key: FlowKey::EMPTY, flow: Flow::EMPTY, back: Way { out: PortId::NONE, mtu: 0, macs: Macs::NONE } };

    /// Puts the other direction in front.
    #[inline(never)]
    pub fn turn(&mut self) {
        let other = self.flow.other_key(&self.key);
        let about = &mut self.flow.about;
        let way = Way { out: about.out, mtu: about.mtu, macs: about.macs };
        (about.out, about.mtu) = (self.back.out, self.back.mtu);
        about.macs = self.back.macs;
        self.back = way;
        about.flags ^= flow_flags::REPLY;
        about.other_side = self.key.side;
        (about.source_port, about.destination_port) = (self.key.destination_port, self.key.source_port);
        (self.flow.source, self.flow.destination) = (self.key.destination, self.key.source);
        self.key = other;
    }
}
