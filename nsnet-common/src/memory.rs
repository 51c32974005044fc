//! The tables in plain memory: for host tests, and for asking what the dataplane would do.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};

use crate::capture::Moment;
use crate::layout::{
    About, AddressKey, Capturing, DropKey, Flow, FlowKey, FlowState, ForeignKey, Fragment, FragmentKey, HELD_BYTES,
    HeldKey, Holding, MAPPED_IPV4_BITS, MAX_HELD, Mapping, MappingKey, Network, NetworkId, Original, OriginalKey,
    Policy, Port, PortCounters, PortId, Publish, Station, StationKey, Traffic, Usage, Whole, flow_flags, whole_seconds,
};
use crate::packet::Packet;
use crate::tables::{Age, FlowEntry, Hop, Inserted, Reclaim, Route, Tables};
use crate::verdict::DropReason;
use crate::wire::{IpAddress, IpProtocol, Mac};

/// When a frame was dropped, where it came in, and its bytes.
type LastFrame = (u64, PortId, Vec<u8>);

/// Every table of the dataplane, and a clock that stands still until told otherwise.
#[derive(Clone, Default)]
pub struct MemoryTables {
    /// By port id.
    pub ports: HashMap<PortId, Port>,
    /// By network id.
    pub networks: HashMap<NetworkId, Network>,
    /// Who has an address.
    pub addresses: HashMap<AddressKey, PortId>,
    /// Subnets, prefix length in bits of the address itself.
    pub subnets: Vec<(IpAddress, u32, NetworkId)>,
    /// The hashed FDB.
    pub stations: RefCell<HashMap<StationKey, Station>>,
    /// What ports have learned.
    pub foreign: RefCell<HashMap<ForeignKey, Mac>>,
    /// Flood clocks.
    pub flood_clocks: RefCell<HashMap<PortId, u64>>,
    /// Clocks of refusals.
    pub refusal_clocks: RefCell<HashMap<PortId, u64>>,
    /// Counters of each port.
    pub counters: RefCell<BTreeMap<PortId, PortCounters>>,
    /// Counters of each port and reason.
    pub drops: RefCell<BTreeMap<(PortId, u16), Traffic>>,
    /// The last frame that was dropped for each reason: when, where, its bytes.
    pub last_drops: RefCell<BTreeMap<u16, LastFrame>>,
    /// What is captured, see [`capture_modes`](crate::layout::capture_modes).
    pub capture_modes: Cell<u32>,
    /// As the dataplane has it for each CPU.
    pub capturing: RefCell<Capturing>,
    /// What was shown to who captures, in order.
    pub shown: RefCell<Vec<Shown>>,
    /// The clock, nanoseconds.
    pub clock: Cell<u64>,
    /// How often a table was looked up: most of what a packet costs in the kernel. Counters do not count.
    pub lookups: Cell<u32>,
    /// Whether inserts fail.
    pub is_full: Cell<bool>,
    /// By network id.
    pub policies: HashMap<NetworkId, Policy>,
    /// Uplinks by interface index.
    pub uplinks: HashMap<u32, PortId>,
    /// Flows that are not established yet.
    pub young: RefCell<BTreeMap<FlowKey, Flow>>,
    /// Established flows.
    pub flows: RefCell<BTreeMap<FlowKey, Flow>>,
    /// Mapped endpoints.
    pub mappings: RefCell<BTreeMap<MappingKey, Mapping>>,
    /// Endpoints that are locked.
    pub locks: RefCell<HashSet<MappingKey>>,
    /// What each port holds.
    pub usage: RefCell<BTreeMap<PortId, Usage>>,
    /// Published entries by their place.
    pub publishes: Vec<Publish>,
    /// Protocol, address and place of each published entry.
    pub published: Vec<(u8, IpAddress, u32)>,
    /// Flows made, by place.
    pub publish_hits: RefCell<BTreeMap<u32, u64>>,
    /// What first fragments said.
    pub fragments: RefCell<BTreeMap<FragmentKey, Fragment>>,
    /// What waits for a first fragment.
    pub held: RefCell<BTreeMap<HeldKey, MemoryHeld>>,
    /// What each port has waiting.
    pub holding: RefCell<BTreeMap<PortId, Holding>>,
    /// The host's routes: prefix, its length in bits of the address itself, what they say.
    pub routes: Vec<(IpAddress, u32, Route, Hop)>,
    /// Endpoints of the host's sockets.
    pub sockets: HashSet<(u8, IpAddress, [u8; 2])>,
    /// The key of the hash by which ports are chosen.
    pub secret: u64,
    /// Addresses of the host.
    pub locals: HashSet<IpAddress>,
    /// Broadcast addresses of the host's subnets.
    pub broadcasts: HashSet<IpAddress>,
    /// What redirected sockets asked for.
    pub originals: RefCell<BTreeMap<OriginalKey, Original>>,
}

/// A frame that was shown to who captures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The frame's number.
    pub number: u64,
    /// When.
    pub moment: Moment,
    /// The frame then.
    pub bytes: Vec<u8>,
}

/// A fragment that waits: its packet, when it came, and its bytes.
pub type MemoryHeld = (FragmentKey, u32, Vec<u8>);

/// A flow in memory.
#[derive(Clone, Copy)]
pub struct MemoryFlow<'a> {
    table: &'a RefCell<BTreeMap<FlowKey, Flow>>,
    key: FlowKey,
}

impl MemoryFlow<'_> {
    fn change(self, change: impl FnOnce(&mut Flow)) {
        if let Some(flow) = self.table.borrow_mut().get_mut(&self.key) {
            change(flow);
        }
    }
}

impl FlowEntry for MemoryFlow<'_> {
    fn about(self) -> About {
        self.table.borrow().get(&self.key).map_or(About::EMPTY, |flow| flow.about)
    }

    fn read(self, flow: &mut Flow) {
        *flow = self.table.borrow().get(&self.key).copied().unwrap_or(Flow::EMPTY);
    }

    fn set_seen(self, now: u32) {
        self.change(|flow| flow.about.seen = now);
    }

    fn set_state(self, state: FlowState, timeout: u32) {
        self.change(|flow| (flow.about.state, flow.about.timeout) = (state, timeout));
    }

    fn set_tcp(self, next: u32, acknowledged: u32) {
        self.change(|flow| (flow.about.next, flow.about.acknowledged) = (next, acknowledged));
    }

    fn set_hop(self, hop: &Hop) {
        self.change(|flow| {
            let about = &mut flow.about;
            (about.out, about.mtu, about.macs.to, about.macs.from) = (hop.uplink, hop.mtu, hop.to_mac, hop.from_mac);
        });
    }
}

impl MemoryTables {
    fn count(&self, port: PortId, change: impl FnOnce(&mut PortCounters)) {
        change(self.counters.borrow_mut().entry(port).or_default());
    }

    fn flows_of(&self, age: Age) -> &RefCell<BTreeMap<FlowKey, Flow>> {
        match age {
            Age::Young => &self.young,
            Age::Grown => &self.flows,
        }
    }

    fn look_up(&self) {
        self.lookups.set(self.lookups.get() + 1);
    }

    fn insert<K: Ord, V>(&self, table: &RefCell<BTreeMap<K, V>>, key: K, value: V) -> Inserted {
        if table.borrow().contains_key(&key) {
            return Inserted::Exists;
        }
        if self.is_full.get() {
            return Inserted::Full;
        }
        table.borrow_mut().insert(key, value);
        Inserted::Yes
    }
}

/// `bits` in the mapped form, in which `SUBNETS` counts them.
pub fn mapped_bits(ip: IpAddress, bits: u32) -> u32 {
    if ip.as_v4().is_some() { bits + MAPPED_IPV4_BITS } else { bits }
}

impl<'a> Tables for &'a MemoryTables {
    type Flow = MemoryFlow<'a>;

    fn port(&self, id: PortId) -> Option<Port> {
        self.look_up();
        self.ports.get(&id).copied()
    }

    fn network(&self, id: NetworkId) -> Option<Network> {
        self.look_up();
        self.networks.get(&id).copied()
    }

    fn address(&self, key: &AddressKey) -> Option<PortId> {
        self.look_up();
        self.addresses.get(key).copied()
    }

    fn subnet(&self, ip: IpAddress) -> Option<NetworkId> {
        self.look_up();
        let matches = |(prefix, bits, _): &&(IpAddress, u32, NetworkId)| is_within(ip, *prefix, *bits);
        let best = self.subnets.iter().filter(matches).max_by_key(|(prefix, bits, _)| mapped_bits(*prefix, *bits));
        best.map(|(_, _, network)| *network)
    }

    fn station(&self, key: &StationKey) -> Option<Station> {
        self.look_up();
        self.stations.borrow().get(key).copied()
    }

    fn set_station(&self, key: &StationKey, station: &Station) -> bool {
        self.look_up();
        if self.is_full.get() {
            return false;
        }
        self.stations.borrow_mut().insert(*key, *station);
        true
    }

    fn remove_station(&self, key: &StationKey) {
        self.look_up();
        self.stations.borrow_mut().remove(key);
    }

    fn foreign(&self, key: &ForeignKey) -> Option<Mac> {
        self.look_up();
        self.foreign.borrow().get(key).copied()
    }

    fn set_foreign(&self, key: &ForeignKey, mac: Mac) -> bool {
        self.look_up();
        if self.is_full.get() {
            return false;
        }
        self.foreign.borrow_mut().insert(*key, mac);
        true
    }

    fn flood_clock(&self, port: PortId) -> u64 {
        self.look_up();
        self.flood_clocks.borrow().get(&port).copied().unwrap_or(0)
    }

    fn set_flood_clock(&self, port: PortId, clock: u64) {
        self.look_up();
        self.flood_clocks.borrow_mut().insert(port, clock);
    }

    fn refusal_clock(&self, port: PortId) -> u64 {
        self.look_up();
        self.refusal_clocks.borrow().get(&port).copied().unwrap_or(0)
    }

    fn set_refusal_clock(&self, port: PortId, clock: u64) {
        self.look_up();
        self.refusal_clocks.borrow_mut().insert(port, clock);
    }

    fn now(&self) -> u64 {
        self.clock.get()
    }

    fn repeat<F: FnMut() -> bool>(&self, times: u32, step: &mut F) {
        let _ended_at = (0..times).find(|_| !step());
    }

    fn count_received(&self, port: PortId, length: u32) {
        self.count(port, |counters| counters.received.add(length));
    }

    fn count_sent(&self, port: PortId, length: u32) {
        self.count(port, |counters| counters.sent.add(length));
    }

    fn count_flooded(&self, port: PortId) {
        self.count(port, |counters| counters.flooded += 1);
    }

    fn count_answered(&self, port: PortId) {
        self.count(port, |counters| counters.answered += 1);
    }

    fn count_dropped(&self, port: PortId, reason: DropReason, length: u32, frame: &impl Packet) {
        let key = DropKey { port, reason: reason.code() };
        self.drops.borrow_mut().entry((key.port, key.reason)).or_default().add(length);
        self.last_drops.borrow_mut().insert(key.reason, (self.clock.get(), port, bytes_of(frame)));
        self.show(Moment::Dropped(reason), frame);
    }

    fn show(&self, moment: Moment, frame: &impl Packet) {
        if let Some(number) = self.capturing.borrow_mut().number(self.capture_modes.get(), moment.kind()) {
            self.shown.borrow_mut().push(Shown { number, moment, bytes: bytes_of(frame) });
        }
    }

    fn count_passed(&self, uplink: PortId) {
        self.count(uplink, |counters| counters.passed += 1);
    }

    fn seconds(&self) -> u32 {
        whole_seconds(self.clock.get())
    }

    fn policy(&self, id: NetworkId) -> Option<Policy> {
        self.look_up();
        self.policies.get(&id).copied()
    }

    fn read_policy(&self, id: NetworkId, policy: &mut Policy) -> Result<(), DropReason> {
        *policy = self.policy(id).ok_or(DropReason::UnknownPort)?;
        Ok(())
    }

    fn flow(&self, age: Age, key: &FlowKey) -> Option<MemoryFlow<'a>> {
        self.look_up();
        let tables: &'a MemoryTables = self;
        let table = tables.flows_of(age);
        table.borrow().contains_key(key).then_some(MemoryFlow { table, key: *key })
    }

    fn insert_flow(&self, age: Age, key: &FlowKey, flow: &Flow) -> Inserted {
        self.look_up();
        self.insert(self.flows_of(age), *key, *flow)
    }

    fn remove_flow(&self, age: Age, key: &FlowKey) -> bool {
        self.look_up();
        self.flows_of(age).borrow_mut().remove(key).is_some()
    }

    fn reclaim(&self, table: Reclaim) {
        if table == Reclaim::Mappings {
            let keys: Vec<MappingKey> = self.mappings.borrow().keys().copied().collect();
            keys.iter().for_each(|key| crate::nat::forget_dead(key, *self));
            return;
        }
        let is_of_it = |(key, flow): &(&FlowKey, &Flow)| {
            key.is_v4() == (table == Reclaim::Flows4) && !flow.about.has(flow_flags::REPLY)
        };
        let keys: Vec<FlowKey> = self.flows.borrow().iter().filter(is_of_it).map(|(key, _)| *key).collect();
        for key in keys {
            crate::conntrack::end_dead(&key, Age::Grown, *self);
        }
    }

    fn mapping(&self, key: &MappingKey) -> Option<Mapping> {
        self.look_up();
        self.mappings.borrow().get(key).copied()
    }

    fn insert_mapping(&self, key: &MappingKey, mapping: &Mapping) -> Inserted {
        self.look_up();
        self.insert(&self.mappings, *key, *mapping)
    }

    fn refresh_mapping(&self, key: &MappingKey, until: u32) {
        self.look_up();
        if let Some(mapping) = self.mappings.borrow_mut().get_mut(key) {
            mapping.until = until;
        }
    }

    fn remove_mapping(&self, key: &MappingKey) -> bool {
        self.look_up();
        self.mappings.borrow_mut().remove(key).is_some()
    }

    fn lock(&self, key: &MappingKey) -> bool {
        self.locks.borrow_mut().insert(*key)
    }

    fn unlock(&self, key: &MappingKey) {
        self.locks.borrow_mut().remove(key);
    }

    fn add_usage(&self, owner: PortId, flows: i64, ports: i64) {
        self.look_up();
        let mut usage = self.usage.borrow_mut();
        let held = usage.entry(owner).or_default();
        held.flows = held.flows.wrapping_add_signed(flows);
        held.ports = held.ports.wrapping_add_signed(ports);
    }

    fn usage(&self, owner: PortId) -> Usage {
        self.look_up();
        self.usage.borrow().get(&owner).copied().unwrap_or_default()
    }

    fn published(&self, protocol: IpProtocol, ip: IpAddress, port: u16) -> Option<u32> {
        self.look_up();
        let fits = |(of_protocol, at, place): &&(u8, IpAddress, u32)| {
            *of_protocol == protocol.0
                && *at == ip
                && self.publishes.get(*place as usize).is_some_and(|entry| entry.target_port(port).is_some())
        };
        self.published.iter().find(fits).map(|(_, _, place)| *place)
    }

    fn publish(&self, place: u32) -> Option<Publish> {
        self.look_up();
        self.publishes.get(place as usize).copied()
    }

    fn count_publish_hit(&self, place: u32) {
        *self.publish_hits.borrow_mut().entry(place).or_default() += 1;
    }

    fn route(&self, _from: u32, key: &FlowKey, hop: &mut Hop) -> Route {
        // An IPv4 address in an IPv6 packet is none (RFC 4291 section 2.5.5.2), and finds no route of IPv4.
        let matches = |(prefix, bits, ..): &&(IpAddress, u32, Route, Hop)| {
            prefix.as_v4().is_some() == key.is_v4() && is_within(key.destination, *prefix, *bits)
        };
        let best = self.routes.iter().filter(matches).max_by_key(|(prefix, bits, ..)| mapped_bits(*prefix, *bits));
        let Some((_, _, route, found)) = best else {
            // As bpf_fib_lookup() has it: no route at all is the same answer as "it is the host's own"
            // (BPF_FIB_LKUP_RET_NOT_FWDED, bpf_ipv4_fib_lookup() in net/core/filter.c).
            return Route::Local;
        };
        *hop = *found;
        *route
    }

    fn has_socket(&self, key: &FlowKey) -> bool {
        self.sockets.contains(&(key.protocol().0, key.destination, key.destination_port))
    }

    fn keyed_hash(&self, key: &FlowKey, turn: u32) -> u32 {
        crate::hash::keyed_hash(self.secret, key, turn)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.look_up();
        self.fragments.borrow().get(key).copied()
    }

    fn set_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.look_up();
        self.fragments.borrow_mut().insert(*key, *fragment);
    }

    fn forget_fragment(&self, key: &FragmentKey) -> bool {
        self.fragments.borrow_mut().remove(key).is_some()
    }

    fn holding(&self, port: PortId) -> Holding {
        self.look_up();
        self.holding.borrow().get(&port).copied().unwrap_or_default()
    }

    fn set_holding(&self, port: PortId, holding: Holding) {
        self.look_up();
        self.holding.borrow_mut().insert(port, holding);
    }

    fn hold(&self, place: HeldKey, key: &FragmentKey, seen: u32, frame: &impl Packet) -> bool {
        let mut held = self.held.borrow_mut();
        let has_room = frame.len() as usize <= HELD_BYTES && held.len() < MAX_HELD as usize;
        if has_room {
            held.insert(place, (*key, seen, bytes_of(frame)));
        }
        has_room
    }

    fn held(&self, place: HeldKey) -> Option<(FragmentKey, u32)> {
        self.look_up();
        self.held.borrow().get(&place).map(|(key, seen, _)| (*key, *seen))
    }

    fn let_go(&self, place: HeldKey, frame: &mut impl Packet) -> bool {
        let Some((_, _, bytes)) = self.held.borrow_mut().remove(&place) else { return false };
        let mut whole = Whole { bytes: [0; _] };
        let Some(room) = whole.bytes.get_mut(..bytes.len()) else { return false };
        room.copy_from_slice(&bytes);
        frame.refill(0, &whole, 0, bytes.len() as u16).is_some()
    }

    fn free(&self, place: HeldKey) -> bool {
        self.held.borrow_mut().remove(&place).is_some()
    }

    fn take_back_received(&self, port: PortId, length: u32) {
        self.count(port, |counters| counters.received.take_back(length));
    }

    fn take_back_dropped(&self, port: PortId, reason: DropReason, length: u32) {
        self.drops.borrow_mut().entry((port, reason.code())).or_default().take_back(length);
    }

    fn uplink(&self, ifindex: u32) -> Option<PortId> {
        self.look_up();
        self.uplinks.get(&ifindex).copied()
    }

    fn is_local(&self, ip: IpAddress) -> bool {
        self.look_up();
        self.locals.contains(&ip)
    }

    fn is_broadcast(&self, ip: IpAddress) -> bool {
        self.broadcasts.contains(&ip)
    }

    fn any_local<F: FnMut(IpAddress) -> bool>(&self, is_it: &mut F) -> bool {
        self.locals.iter().any(|ip| is_it(*ip))
    }

    fn original(&self, key: &OriginalKey) -> Option<Original> {
        self.look_up();
        self.originals.borrow().get(key).copied()
    }

    fn set_original(&self, key: &OriginalKey, original: &Original) {
        self.look_up();
        self.originals.borrow_mut().insert(*key, *original);
    }

    fn forget_original(&self, key: &OriginalKey) {
        self.look_up();
        self.originals.borrow_mut().remove(key);
    }
}

/// A frame, whole.
fn bytes_of(frame: &impl Packet) -> Vec<u8> {
    (0..frame.len() as usize).map_while(|at| frame.view::<u8>(at).copied()).collect()
}

fn is_within(ip: IpAddress, prefix: IpAddress, bits: u32) -> bool {
    let differing = u128::from_be_bytes(prefix.0) ^ u128::from_be_bytes(ip.0);
    differing.leading_zeros() >= mapped_bits(prefix, bits)
}
