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

use crate::conntrack::{self, Pair, Standing, first_timeout};
use crate::layout::{
    Flow, FlowKey, Mapping, MappingKey, NetworkId, Policy, PortId, QUARANTINE, flow_flags, mapping_kinds, policy_flags,
};
use crate::open::Lead;
use crate::scratch::Scratch;
use crate::tables::{Age, FlowEntry, Inserted, Stage, Tables};
use crate::verdict::DropReason;
use crate::wire::{IpAddress, IpProtocol};

/// How many ports are tried for one flow. With a quarter of the pool free, one in a hundred million finds none.
const TURNS: u32 = 64;

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
        _ => enter_pair(&mut scratch.pair, tables).map_err(|reason| {
            let is_taken = reason == DropReason::PortsExhausted;
            if is_taken { DropReason::Protocol } else { reason }
        }),
    }
}

/// Enters both directions of a flow whose tuple is settled. One that is there already is kept: another CPU's, for the
/// packet before.
#[inline(never)]
pub fn enter_pair(pair: &mut Pair, tables: impl Tables) -> Result<(), DropReason> {
    pair.turn();
    let standing = conntrack::standing(&pair.key, tables);
    let is_free = standing != Standing::Dead || conntrack::bury(&pair.key, tables);
    let inserted = match standing {
        Standing::Alive => Inserted::Exists,
        Standing::Free | Standing::Dead => tables.insert_flow(Age::Young, &pair.key, &pair.flow),
    };
    pair.turn();
    if !is_free && inserted != Inserted::Yes {
        return Err(DropReason::Busy);
    }
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
    let entry = tables.flow(Age::Grown, &answers).or_else(|| tables.flow(Age::Young, &answers));
    let Some(entry) = entry else { return false };
    let mut flow = Flow::EMPTY;
    entry.read(&mut flow);
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
        Inserted::Exists => adopt(pair, tables),
        Inserted::Full => {
            tables.remove_flow(Age::Young, &pair.flow.other_key(&pair.key));
            Err(DropReason::TableFull)
        }
    }
}

/// Two packets of one flow on two CPUs: the first one's entry leads to the first one's port, and ours goes.
#[inline(never)]
fn adopt(pair: &mut Pair, tables: impl Tables) -> Result<(), DropReason> {
    let ours = pair.flow.other_key(&pair.key);
    let Some(winner) = tables.flow(Age::Young, &pair.key).or_else(|| tables.flow(Age::Grown, &pair.key)) else {
        // Gone again already.
        tables.remove_flow(Age::Young, &ours);
        return Err(DropReason::Busy);
    };
    winner.read(&mut pair.flow);
    let is_dead = !pair.flow.about.is_alive(tables.seconds());
    if is_dead || pair.flow.other_key(&pair.key) != ours {
        tables.remove_flow(Age::Young, &ours);
    }
    if is_dead { Err(DropReason::Busy) } else { Ok(()) }
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
    if is_hosts(&pair.key, tables) {
        return None;
    }
    match conntrack::standing(&pair.key, tables) {
        Standing::Alive => return None,
        Standing::Dead if !conntrack::bury(&pair.key, tables) => return None,
        Standing::Free | Standing::Dead => {}
    }
    let flags = pair.flow.about.flags & !flow_flags::POOLED;
    pair.flow.about.flags = if is_pooled { flags | flow_flags::POOLED } else { flags };
    match tables.insert_flow(Age::Young, &pair.key, &pair.flow) {
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
    search.inside = MappingKey::inside(key.side, key.protocol(), key.source, key.source_port, pair.flow.source);
    if find_own(pair, search, tables) {
        pair.flow.about.source_port = search.mapping.port;
        return Ok(());
    }
    if !unmap(&search.inside, pair.flow.source, tables) {
        return Err(DropReason::Busy);
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
                pair.flow.about.source_port = search.mapping.port;
                outcome = Ok(());
            }
            Inserted::Full => outcome = Err(DropReason::TableFull),
        }
        false
    });
    outcome
}

/// Whether the inside endpoint has a mapping that lives, which is in `search` then, and in use again.
#[inline(never)]
fn find_own(pair: &Pair, search: &mut Search, tables: impl Tables) -> bool {
    let Some(known) = tables.mapping(&search.inside) else { return false };
    if known.ip != pair.flow.source || !known.is_alive(tables.seconds()) {
        return false;
    }
    search.mapping = known;
    refresh(&search.inside, (known.ip, known.port), search.until, tables);
    true
}

/// Has both halves of a mapping live until then, seconds.
#[inline(always)]
pub(crate) fn refresh(inside: &MappingKey, external: (IpAddress, [u8; 2]), until: u32, tables: impl Tables) {
    tables.refresh_mapping(inside, until);
    tables.refresh_mapping(&outside_of(inside, external), until);
}

#[inline(always)]
fn outside_of(inside: &MappingKey, external: (IpAddress, [u8; 2])) -> MappingKey {
    MappingKey::outside(IpProtocol(inside.protocol), external.0, external.1)
}

/// Takes the external endpoint with this port for the inside one, if nobody has it.
#[inline(never)]
fn take_endpoint(pair: &Pair, search: &mut Search, port: [u8; 2], tables: impl Tables) -> Inserted {
    let protocol = pair.key.protocol();
    search.outside = MappingKey::outside(protocol, pair.flow.source, port);
    if let Some(holder) = tables.mapping(&search.outside) {
        if holder.is_alive(tables.seconds()) {
            return Inserted::Exists;
        }
        // Its network is not known here; the inside half is found dead by its own endpoint's next packet.
        release(&search.outside, None, tables);
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
        return entered;
    }
    // Another CPU has mapped the endpoint meanwhile, or there is no room for this half.
    tables.remove_mapping(outside);
    if find_own(pair, search, tables) { Inserted::Yes } else { entered }
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

/// Gives up an endpoint's mapping that is dead, or to another address than `source`: both halves. `false` when another CPU
/// is about to.
#[inline(never)]
fn unmap(inside: &MappingKey, source: IpAddress, tables: impl Tables) -> bool {
    let now = tables.seconds();
    // Twice: who had locked the endpoint may have made a new one since we looked.
    let outdated = || tables.mapping(inside).filter(|known| known.ip != source || !known.is_alive(now));
    if outdated().is_none() {
        return true;
    }
    if !tables.lock(inside) {
        return false;
    }
    if let Some(known) = outdated() {
        // The outer half first: while the inner one is there, nobody makes a new mapping of the endpoint.
        release(&outside_of(inside, (known.ip, known.port)), Some(inside), tables);
        tables.remove_mapping(inside);
    }
    tables.unlock(inside);
    true
}

/// Frees an external endpoint whose mapping is dead, or of `inside`. One CPU at a time, which looks once more: else what is
/// removed may be another namespace's, that was given the port since.
#[inline(never)]
fn release(outside: &MappingKey, inside: Option<&MappingKey>, tables: impl Tables) {
    if !tables.lock(outside) {
        return;
    }
    if let Some(holder) = tables.mapping(outside) {
        let is_over = match inside {
            Some(inside) => (holder.ip, holder.port) == (inside.ip, inside.port),
            None => !holder.is_alive(tables.seconds()),
        };
        if is_over && tables.remove_mapping(outside) {
            tables.add_usage(holder.owner, 0, -1);
        }
    }
    tables.unlock(outside);
}

/// Removes an entry of the mappings, if it is dead.
#[inline(never)]
pub fn forget_dead(key: &MappingKey, tables: impl Tables) {
    if key.side == NetworkId::OUTSIDE && key.kind == mapping_kinds::ENDPOINT {
        return release(key, None, tables);
    }
    if tables.lock(key) {
        if tables.mapping(key).is_some_and(|mapping| !mapping.is_alive(tables.seconds())) {
            tables.remove_mapping(key);
        }
        tables.unlock(key);
    }
}

/// Ends a mapping of which `key` is a half, unless one of the halves lives; or a note that is dead. Whether it did.
#[inline(never)]
pub fn end_dead(key: &MappingKey, tables: impl Tables) -> bool {
    let now = tables.seconds();
    let Some(known) = tables.mapping(key).filter(|known| !known.is_alive(now)) else { return false };
    if key.kind != mapping_kinds::ENDPOINT {
        return tables.remove_mapping(key);
    }
    let is_outer = key.side == NetworkId::OUTSIDE;
    // An owner that is gone has left nothing inside.
    let inside = if is_outer { tables.port(known.owner).map(|owner| owner.network()) } else { None };
    let side = inside.unwrap_or(NetworkId::OUTSIDE);
    let protocol = IpProtocol(key.protocol);
    let other_key = match is_outer {
        true => MappingKey::inside(side, protocol, known.ip, known.port, key.ip),
        false => MappingKey::outside(protocol, known.ip, known.port),
    };
    let other = tables.mapping(&other_key).filter(|other| (other.ip, other.port) == (key.ip, key.port));
    if other.is_some_and(|other| other.is_alive(now)) {
        return false;
    }
    let (inner, outer) = if is_outer { (&other_key, key) } else { (key, &other_key) };
    let has_inner = !is_outer || other.is_some();
    let has_outer = is_outer || other.is_some();
    // The inner half first: a flow that begins meanwhile makes a mapping of its own, rather than use a port that is about
    // to be free.
    let was_inside = has_inner && tables.remove_mapping(inner);
    let was_outside = has_outer && tables.remove_mapping(outer);
    if was_outside {
        tables.add_usage(known.owner, 0, -1);
    }
    was_inside || was_outside
}

/// The inside endpoint that the receiver of such packets is mapped to.
#[inline(always)]
pub fn mapped(key: &FlowKey, tables: impl Tables) -> Option<Mapping> {
    tables.enter(Stage::Nat);
    let outside = MappingKey::outside(key.protocol(), key.destination, key.destination_port);
    tables.mapping(&outside).filter(|mapping| mapping.is_alive(tables.seconds()))
}
