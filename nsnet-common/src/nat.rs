//! External ports for flows that leave (RFC 2663 NAPT): which, and how they are held without a lock.
//!
//! | protocol | what is held | by |
//! |---|---|---|
//! | UDP, ICMP echo | the external endpoint itself: one for each inside endpoint, whoever is spoken to (RFC 4787 REQ-1, RFC 5508 REQ-1) | `MAPPINGS`, inserted if absent |
//! | TCP | the answers' tuple: a port may be shared between destinations (RFC 7857 section 3) | the flow's own entry |
//! | SCTP and others | the answers' tuple, with the port unchanged: it is under a CRC, or there is none | the flow's own entry |
//!
//! The sender's own port is taken when it is free. Else ports come from the pool, in an order that a keyed hash of the tuple
//! gives (RFC 6056 section 3.3.3). Ports below 1024 are exchanged for their like (RFC 4787 REQ-3a).

use crate::conntrack::{self, Pair, first_timeout};
use crate::layout::{
    Flow, FlowKey, Mapping, MappingKey, NetworkId, Policy, PortId, QUARANTINE, flow_flags, policy_flags,
};
use crate::open::Lead;
use crate::scratch::Scratch;
use crate::tables::{Age, FlowEntry, Inserted, Stage, Tables};
use crate::verdict::DropReason;
use crate::wire::{IpAddress, IpProtocol};

/// How many ports are tried for one flow. With a quarter of the pool free, one in ten thousand finds none.
const TURNS: u32 = 32;

/// Ports below this one are for system services, and only exchanged for one another.
const SYSTEM_PORTS: u16 = 1024;
/// Of these the upper half, where fewer services are.
const FIRST_SYSTEM_PORT: u16 = 512;

/// Enters both directions of the flow that is being made, whose opener is in front.
#[inline(always)]
pub fn enter(scratch: &mut Scratch, tables: impl Tables) -> Result<(), DropReason> {
    tables.enter(Stage::Nat);
    let may_keep = scratch.lead == Lead::KeepOrPool;
    match scratch.pair.key.protocol() {
        _ if scratch.lead == Lead::Settled => enter_pair(&mut scratch.pair, tables),
        IpProtocol::UDP | IpProtocol::ICMP | IpProtocol::ICMPV6 if may_keep => {
            map(scratch, tables)?;
            scratch.pair.flow.about.flags |= flow_flags::MAPPED;
            if scratch.policy.has(policy_flags::FILTER_BY_ADDRESS) {
                note_spoken_to(scratch, tables);
            }
            enter_pair(&mut scratch.pair, tables)
        }
        IpProtocol::TCP | IpProtocol::UDP | IpProtocol::ICMP | IpProtocol::ICMPV6 => reserve(scratch, tables),
        _ => enter_pair(&mut scratch.pair, tables).map_err(|_taken| DropReason::Protocol),
    }
}

/// Enters both directions of a flow whose tuple is settled. One that is there already is kept: another CPU's, for the
/// packet before.
#[inline(never)]
pub fn enter_pair(pair: &mut Pair, tables: impl Tables) -> Result<(), DropReason> {
    pair.turn();
    let mut inserted = Inserted::Exists;
    if !conntrack::is_known(&pair.key, tables) {
        conntrack::bury(&pair.key, tables);
        inserted = tables.insert_flow(Age::Young, &pair.key, &pair.flow);
    }
    pair.turn();
    match inserted {
        Inserted::Yes => enter_opener(pair, tables),
        Inserted::Full => Err(DropReason::TableFull),
        // Ours when both halves are there, or the answers' half leads here and the opener's was pushed out.
        Inserted::Exists if conntrack::is_known(&pair.key, tables) => Ok(()),
        Inserted::Exists if leads_here(pair, tables) => enter_opener(pair, tables),
        Inserted::Exists => Err(DropReason::PortsExhausted),
    }
}

/// Whether the answers' half is of this flow, and not of one that differs in which of the host's addresses was asked.
#[inline(never)]
fn leads_here(pair: &Pair, tables: impl Tables) -> bool {
    let answers = pair.flow.other_key(&pair.key);
    let Some(found) = conntrack::find(&answers, tables.seconds(), tables) else { return false };
    let mut flow = Flow::EMPTY;
    found.entry.read(&mut flow);
    // Field by field, to spare the stack a key.
    flow.destination == pair.key.source
        && flow.source == pair.key.destination
        && flow.about.destination_port == pair.key.source_port
        && flow.about.source_port == pair.key.destination_port
}

/// Enters the opener's half; the answers' half is in.
#[inline(never)]
fn enter_opener(pair: &mut Pair, tables: impl Tables) -> Result<(), DropReason> {
    match tables.insert_flow(Age::Young, &pair.key, &pair.flow) {
        Inserted::Yes => Ok(()),
        Inserted::Exists => {
            adopt(pair, tables);
            Ok(())
        }
        Inserted::Full => {
            tables.remove_flow(Age::Young, &pair.flow.other_key(&pair.key));
            Err(DropReason::TableFull)
        }
    }
}

/// Two packets of one flow on two CPUs: the first one's entry leads to the first one's port, and ours goes.
#[inline(never)]
fn adopt(pair: &mut Pair, tables: impl Tables) {
    let ours = pair.flow.other_key(&pair.key);
    let Some(winner) = tables.flow(Age::Young, &pair.key) else { return };
    winner.read(&mut pair.flow);
    if pair.flow.other_key(&pair.key) != ours {
        tables.remove_flow(Age::Young, &ours);
    }
}

/// What is remembered while ports are tried.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    /// The tuple that the order of ports is made from.
    seed: FlowKey,
    /// The tuple of the answers, with the port that is tried.
    answers: FlowKey,
    inside: MappingKey,
    outside: MappingKey,
    mapping: Mapping,
    turn: u32,
    until: u32,
    may_keep: bool,
    may_pool: bool,
}

impl Search {
    /// Nothing looked for.
    pub const EMPTY: Self = Self {
        seed: FlowKey::EMPTY,
        answers: FlowKey::EMPTY,
        inside: MappingKey::EMPTY,
        outside: MappingKey::EMPTY,
        mapping: Mapping::EMPTY,
        turn: 0,
        until: 0,
        may_keep: false,
        may_pool: false,
    };

    /// The port of the next turn: the first one the sender's own, if it may be kept.
    #[inline(never)]
    fn next(&mut self, policy: &Policy, tables: impl Tables) -> Option<[u8; 2]> {
        let turn = self.turn;
        self.turn += 1;
        let own = u16::from_be_bytes(self.seed.source_port);
        let protocol = self.seed.protocol();
        // Identifiers of queries are no ports: nobody on the host listens there, and all of them will do.
        let is_query = protocol != IpProtocol::TCP && protocol != IpProtocol::UDP;
        if turn == 0 {
            return (self.may_keep && (is_query || own != 0)).then_some(self.seed.source_port);
        }
        let is_system = own < SYSTEM_PORTS && !is_query && self.may_keep;
        let (first, last) = match is_system {
            true => (FIRST_SYSTEM_PORT, SYSTEM_PORTS - 1),
            false => (policy.first_port, policy.last_port),
        };
        let size = u32::from(last.wrapping_sub(first)) + 1;
        Some(first.wrapping_add((tables.keyed_hash(&self.seed, turn) % size) as u16).to_be_bytes())
    }
}

/// Finds a port for the answers' tuple, and enters both halves.
#[inline(never)]
fn reserve(scratch: &mut Scratch, tables: impl Tables) -> Result<(), DropReason> {
    let Scratch { pair, policy, search, lead, .. } = scratch;
    search.may_keep = *lead == Lead::KeepOrPool;
    search.seed = pair.key;
    search.turn = 0;
    search.may_pool = (tables.usage(pair.flow.about.owner).ports as i64) < i64::from(policy.ports_per_ns);
    let mut outcome = Err(if search.may_pool { DropReason::PortsExhausted } else { DropReason::PortQuota });
    pair.turn();
    tables.repeat(TURNS, &mut || match try_port(pair, policy, search, tables) {
        None => true,
        Some(found) => {
            outcome = found;
            false
        }
    });
    pair.turn();
    outcome?;
    enter_opener(pair, tables)
}

/// Tries one port for the answers of `pair`, which are in front; `None` when it is taken.
#[inline(never)]
fn try_port(
    pair: &mut Pair,
    policy: &Policy,
    search: &mut Search,
    tables: impl Tables,
) -> Option<Result<(), DropReason>> {
    pair.key.destination_port = search.next(policy, tables)?;
    let port = u16::from_be_bytes(pair.key.destination_port);
    let is_pooled = port >= policy.first_port && port <= policy.last_port;
    if is_pooled && !search.may_pool {
        // Its own port may be one of the pool; then the first turn is no reason to give up.
        return if search.turn == 1 { None } else { Some(Err(DropReason::PortQuota)) };
    }
    if is_hosts(&pair.key, tables) || conntrack::is_known(&pair.key, tables) {
        return None;
    }
    let flags = pair.flow.about.flags & !flow_flags::POOLED;
    pair.flow.about.flags = if is_pooled { flags | flow_flags::POOLED } else { flags };
    let mut inserted = tables.insert_flow(Age::Young, &pair.key, &pair.flow);
    if inserted == Inserted::Exists {
        conntrack::bury(&pair.key, tables);
        inserted = tables.insert_flow(Age::Young, &pair.key, &pair.flow);
    }
    match inserted {
        Inserted::Exists => None,
        Inserted::Full => Some(Err(DropReason::TableFull)),
        // It may have grown up between the look and the insert.
        Inserted::Yes if tables.flow(Age::Grown, &pair.key).is_some() => {
            tables.remove_flow(Age::Young, &pair.key);
            None
        }
        Inserted::Yes => Some(Ok(())),
    }
}

/// Whether answers of this tuple would be the host's own: one of its sockets has the port, or it is published.
#[inline(always)]
fn is_hosts(answers: &FlowKey, tables: impl Tables) -> bool {
    tables.has_socket(answers) || is_published(answers, tables)
}

/// Whether the receiver of such packets is a published port.
#[inline(never)]
fn is_published(key: &FlowKey, tables: impl Tables) -> bool {
    let (protocol, port) = (key.protocol(), u16::from_be_bytes(key.destination_port));
    let any = if key.is_v4() { IpAddress::v4([0; 4]) } else { IpAddress::UNSPECIFIED };
    tables.published(protocol, key.destination, port).is_some() || tables.published(protocol, any, port).is_some()
}

/// Gives the flow the external port of the inside endpoint that opens it: the one it has, or a new one.
#[inline(never)]
fn map(scratch: &mut Scratch, tables: impl Tables) -> Result<(), DropReason> {
    let Scratch { pair, policy, search, .. } = scratch;
    let key = &pair.key;
    let now = tables.seconds();
    search.until = now.wrapping_add(first_timeout(key.protocol(), policy) + QUARANTINE);
    search.inside = MappingKey::new(key.side, key.protocol(), key.source, key.source_port);
    if let Some(known) = tables.mapping(&search.inside) {
        if known.ip == pair.flow.source && known.is_alive(now) {
            tables.refresh_mapping(&search.inside, search.until);
            pair.flow.about.source_port = known.port;
            return Ok(());
        }
        unmap(&search.inside, &known, tables);
    }
    if tables.usage(pair.flow.about.owner).ports as i64 >= i64::from(policy.ports_per_ns) {
        return Err(DropReason::PortQuota);
    }
    // The same order of ports for every destination.
    search.seed = *key;
    (search.seed.destination, search.seed.destination_port) = (IpAddress::UNSPECIFIED, [0; 2]);
    (search.turn, search.may_keep) = (0, true);
    let mut outcome = Err(DropReason::PortsExhausted);
    tables.repeat(TURNS, &mut || {
        let Some(port) = search.next(policy, tables) else { return true };
        match take_endpoint(pair, search, port, tables) {
            Inserted::Exists => return true,
            Inserted::Yes => {
                pair.flow.about.source_port = port;
                outcome = Ok(());
            }
            Inserted::Full => outcome = Err(DropReason::TableFull),
        }
        false
    });
    outcome
}

/// Takes the external endpoint with this port for the inside one, if nobody has it.
#[inline(never)]
fn take_endpoint(pair: &Pair, search: &mut Search, port: [u8; 2], tables: impl Tables) -> Inserted {
    let protocol = pair.key.protocol();
    search.outside = MappingKey::new(NetworkId::OUTSIDE, protocol, pair.flow.source, port);
    if let Some(holder) = tables.mapping(&search.outside) {
        if holder.is_alive(tables.seconds()) {
            return Inserted::Exists;
        }
        // Its network is not known here; the inside half is found dead by its own endpoint's next packet.
        if tables.remove_mapping(&search.outside) {
            tables.add_usage(holder.owner, 0, -1);
        }
    }
    search.answers = pair.key.turned(NetworkId::OUTSIDE);
    (search.answers.destination, search.answers.destination_port) = (pair.flow.source, port);
    if protocol == IpProtocol::UDP && is_hosts(&search.answers, tables) {
        return Inserted::Exists;
    }
    enter_mapping(pair, search, port, tables)
}

/// Enters both halves of a mapping: the outer one first, which reserves the port.
#[inline(never)]
fn enter_mapping(pair: &Pair, search: &mut Search, port: [u8; 2], tables: impl Tables) -> Inserted {
    let Search { inside, outside, mapping, until, .. } = search;
    let owner = pair.flow.about.owner;
    *mapping = Mapping { ip: inside.ip, port: inside.port, owner, until: *until };
    let taken = tables.insert_mapping(outside, mapping);
    if taken != Inserted::Yes {
        return taken;
    }
    *mapping = Mapping { ip: pair.flow.source, port, owner, until: *until };
    let entered = tables.insert_mapping(inside, mapping);
    if entered == Inserted::Yes {
        tables.add_usage(owner, 0, 1);
    } else {
        // Another CPU has mapped the endpoint meanwhile, or there is no room for this half.
        tables.remove_mapping(outside);
    }
    entered
}

/// Notes whom the flow speaks to, for a network that filters by address. Without room the filter is stricter.
#[inline(never)]
fn note_spoken_to(scratch: &mut Scratch, tables: impl Tables) {
    let Scratch { pair, search: Search { outside, mapping, until, .. }, .. } = scratch;
    *outside = MappingKey::spoken_to(pair.key.protocol(), pair.key.destination, pair.flow.about.source_port);
    *mapping = Mapping { ip: pair.flow.source, port: pair.flow.about.source_port, owner: PortId::NONE, until: *until };
    if tables.insert_mapping(outside, mapping) == Inserted::Exists {
        tables.refresh_mapping(outside, *until);
    }
}

/// The inside endpoint that a packet from outside is to, when it belongs to no flow but its network lets it in.
#[inline(never)]
pub fn admitted(key: &FlowKey, tables: impl Tables) -> Option<Mapping> {
    let mapping = mapped(key, tables)?;
    let network = tables.port(mapping.owner)?.network();
    let policy = tables.policy(network)?;
    if policy.has(policy_flags::FILTER_NOTHING) {
        return Some(mapping);
    }
    if !policy.has(policy_flags::FILTER_BY_ADDRESS) {
        return None;
    }
    let spoken_to = MappingKey::spoken_to(key.protocol(), key.source, key.destination_port);
    tables.mapping(&spoken_to).filter(|known| known.is_alive(tables.seconds())).map(|_| mapping)
}

/// Gives up a mapping, both halves.
#[inline(never)]
fn unmap(inside: &MappingKey, known: &Mapping, tables: impl Tables) {
    tables.remove_mapping(inside);
    let outside = MappingKey::new(NetworkId::OUTSIDE, IpProtocol(inside.protocol), known.ip, known.port);
    let is_its = tables.mapping(&outside).is_some_and(|other| (other.ip, other.port) == (inside.ip, inside.port));
    if is_its && tables.remove_mapping(&outside) {
        tables.add_usage(known.owner, 0, -1);
    }
}

/// The inside endpoint that the receiver of such packets is mapped to.
#[inline(always)]
pub fn mapped(key: &FlowKey, tables: impl Tables) -> Option<Mapping> {
    tables.enter(Stage::Nat);
    let outside = MappingKey::new(NetworkId::OUTSIDE, key.protocol(), key.destination, key.destination_port);
    tables.mapping(&outside).filter(|mapping| mapping.is_alive(tables.seconds()))
}
