//! The live tables, for one frame: read where they are, and written nowhere but here.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;

use aya::maps::MapData;
use nsnet_common::capture::Moment;
use nsnet_common::hash;
use nsnet_common::layout::{
    AddressKey, Flow, FlowKey, ForeignKey, Fragment, FragmentKey, Held, HeldKey, Holding, Mapping, MappingKey, Network,
    NetworkId, Original, OriginalKey, Policy, Port, PortId, Publish, Station, StationKey, Usage, names,
};
use nsnet_common::memory::{MemoryFlow, MemoryTables};
use nsnet_common::packet::Packet;
use nsnet_common::tables::{Age, Hop, Inserted, Reclaim, Route, Tables};
use nsnet_common::verdict::DropReason;
use nsnet_common::wire::{IpAddress, IpProtocol, Mac};

use super::super::error::{KernelError, Result};
use super::super::maps::found;
use super::ask::Asker;
use super::open::{OpenMaps, slot};

/// The tables for one frame. What the core may write is copied to `memory` before it is first looked at, or written; what
/// it only reads stays in `found`, where everything is that was read, as it was.
pub(super) struct Live<'a> {
    maps: &'a OpenMaps,
    asker: &'a Asker<'a>,
    secret: u64,
    seconds: u32,
    memory: MemoryTables,
    found: Found,
    failed: RefCell<Option<KernelError>>,
}

/// Every entry that was looked for.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) ports: Entries<PortId, Port>,
    pub(super) networks: Entries<NetworkId, Network>,
    pub(super) addresses: Entries<AddressKey, PortId>,
    pub(super) subnets: Entries<IpAddress, NetworkId>,
    pub(super) stations: Entries<StationKey, Station>,
    pub(super) foreign: Entries<ForeignKey, Mac>,
    pub(super) flood_clocks: Entries<PortId, u64>,
    pub(super) refusal_clocks: Entries<PortId, u64>,
    pub(super) policies: Entries<NetworkId, Policy>,
    pub(super) uplinks: Entries<u32, PortId>,
    pub(super) young: Entries<FlowKey, Flow>,
    pub(super) grown: Entries<FlowKey, Flow>,
    pub(super) mappings: Entries<MappingKey, Mapping>,
    pub(super) usage: Entries<PortId, Usage>,
    pub(super) published: Entries<(u8, IpAddress, u16), u32>,
    pub(super) publishes: Entries<u32, Publish>,
    pub(super) fragments: Entries<FragmentKey, Fragment>,
    pub(super) held: Entries<HeldKey, Held>,
    pub(super) holding: Entries<PortId, Holding>,
    pub(super) locals: Entries<IpAddress, u8>,
}

/// Entries of one table, those too that were not there.
pub(super) struct Entries<K, V>(RefCell<HashMap<K, Option<V>>>);

impl<K, V> Default for Entries<K, V> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<K, V> fmt::Debug for Entries<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries", self.0.borrow().len())
    }
}

impl<K: Copy + Eq + Hash, V: Copy> Entries<K, V> {
    /// The entry, which `read` reads when it is looked for the first time; and whether that is so.
    fn get(&self, key: K, read: impl FnOnce() -> Option<V>) -> (Option<V>, bool) {
        if let Some(entry) = self.0.borrow().get(&key) {
            return (*entry, false);
        }
        let entry = read();
        self.0.borrow_mut().insert(key, entry);
        (entry, true)
    }

    /// Those that were there.
    pub(super) fn there(&self) -> Vec<(K, V)> {
        self.0.borrow().iter().filter_map(|(key, entry)| Some((*key, (*entry)?))).collect()
    }
}

impl<'a> Live<'a> {
    /// What is known of an address of the host's: 1 is its own, 0 a broadcast address.
    fn local(&self, ip: IpAddress) -> Option<u8> {
        self.found.locals.get(ip, || self.hash_entry(&self.maps.locals, names::LOCALS, &ip)).0
    }

    /// The tables at a time: the monotonic clock in nanoseconds, and the coarse one in seconds.
    pub(super) fn new(maps: &'a OpenMaps, asker: &'a Asker<'a>, secret: u64, now: u64, seconds: u32) -> Self {
        let memory = MemoryTables::default();
        memory.clock.set(now);
        Self { maps, asker, secret, seconds, memory, found: Found::default(), failed: RefCell::new(None) }
    }

    /// What was found, and what the core left of what it may write. Fails when a table could not be read.
    pub(super) fn finish(self) -> Result<(Found, MemoryTables)> {
        match self.failed.into_inner() {
            Some(error) => Err(error),
            None => Ok((self.found, self.memory)),
        }
    }

    /// What a map said. The core has no word for a map that cannot be read: the first error is kept for the end.
    fn ok<V>(&self, entry: Result<Option<V>>) -> Option<V> {
        entry.unwrap_or_else(|error| {
            self.failed.borrow_mut().get_or_insert(error);
            None
        })
    }

    fn hash_entry<K: aya::Pod, V: aya::Pod>(
        &self,
        map: &aya::maps::HashMap<MapData, K, V>,
        name: &str,
        key: &K,
    ) -> Option<V> {
        self.ok(found(map.get(key, 0), name))
    }

    fn slot<V: aya::Pod>(&self, map: &aya::maps::Array<MapData, V>, name: &str, index: u32) -> Option<V> {
        self.ok(slot(map, name, index))
    }

    fn fetch_station(&self, key: &StationKey) {
        let read = || self.hash_entry(&self.maps.stations, names::STATIONS, key);
        if let (Some(station), true) = self.found.stations.get(*key, read) {
            self.memory.stations.borrow_mut().insert(*key, station);
        }
    }

    fn fetch_foreign(&self, key: &ForeignKey) {
        let read = || self.hash_entry(&self.maps.foreign, names::FOREIGN, key);
        if let (Some(mac), true) = self.found.foreign.get(*key, read) {
            self.memory.foreign.borrow_mut().insert(*key, mac);
        }
    }

    fn fetch_flow(&self, age: Age, key: &FlowKey) {
        let (entries, table) = match age {
            Age::Young => (&self.found.young, &self.memory.young),
            Age::Grown => (&self.found.grown, &self.memory.flows),
        };
        if let (Some(flow), true) = entries.get(*key, || self.ok(self.maps.flow(age, key))) {
            table.borrow_mut().insert(*key, flow);
        }
    }

    fn fetch_mapping(&self, key: &MappingKey) {
        let read = || self.hash_entry(&self.maps.mappings, names::MAPPINGS, key);
        if let (Some(mapping), true) = self.found.mappings.get(*key, read) {
            self.memory.mappings.borrow_mut().insert(*key, mapping);
        }
    }

    fn fetch_usage(&self, owner: PortId) {
        let read = || self.slot(&self.maps.usage, names::USAGE, owner.0.into());
        if let (Some(usage), true) = self.found.usage.get(owner, read) {
            self.memory.usage.borrow_mut().insert(owner, usage);
        }
    }

    fn fetch_held(&self, place: HeldKey) {
        let read = || self.hash_entry(&self.maps.held, names::HELD, &place);
        if let (Some(held), true) = self.found.held.get(place, read) {
            let bytes = held.bytes.get(..held.length as usize).unwrap_or_default().to_vec();
            self.memory.held.borrow_mut().insert(place, (held.key, held.seen, bytes));
        }
    }

    fn fetch_fragment(&self, key: &FragmentKey) {
        let read = || self.hash_entry(&self.maps.fragments, names::FRAGMENTS, key);
        if let (Some(first), true) = self.found.fragments.get(*key, read) {
            self.memory.fragments.borrow_mut().insert(*key, first);
        }
    }
}

impl<'a> Tables for &'a Live<'_> {
    type Flow = MemoryFlow<'a>;

    fn port(&self, id: PortId) -> Option<Port> {
        self.found.ports.get(id, || self.slot(&self.maps.ports, names::PORTS, id.0.into())).0
    }

    fn network(&self, id: NetworkId) -> Option<Network> {
        self.found.networks.get(id, || self.slot(&self.maps.networks, names::NETWORKS, id.0.into())).0
    }

    fn address(&self, key: &AddressKey) -> Option<PortId> {
        self.found.addresses.get(*key, || self.hash_entry(&self.maps.addresses, names::ADDRESSES, key)).0
    }

    fn subnet(&self, ip: IpAddress) -> Option<NetworkId> {
        self.found.subnets.get(ip, || self.ok(self.maps.subnet(ip))).0
    }

    fn station(&self, key: &StationKey) -> Option<Station> {
        self.fetch_station(key);
        (&self.memory).station(key)
    }

    fn set_station(&self, key: &StationKey, station: &Station) -> bool {
        self.fetch_station(key);
        (&self.memory).set_station(key, station)
    }

    fn remove_station(&self, key: &StationKey) {
        self.fetch_station(key);
        (&self.memory).remove_station(key);
    }

    fn foreign(&self, key: &ForeignKey) -> Option<Mac> {
        self.fetch_foreign(key);
        (&self.memory).foreign(key)
    }

    fn set_foreign(&self, key: &ForeignKey, mac: Mac) -> bool {
        self.fetch_foreign(key);
        (&self.memory).set_foreign(key, mac)
    }

    fn flood_clock(&self, port: PortId) -> u64 {
        let read = || self.slot(&self.maps.flood_clocks, names::FLOOD_CLOCKS, port.0.into());
        if let (Some(clock), true) = self.found.flood_clocks.get(port, read) {
            (&self.memory).set_flood_clock(port, clock);
        }
        (&self.memory).flood_clock(port)
    }

    fn set_flood_clock(&self, port: PortId, clock: u64) {
        (&self.memory).set_flood_clock(port, clock);
    }

    fn refusal_clock(&self, port: PortId) -> u64 {
        let read = || self.slot(&self.maps.refusal_clocks, names::REFUSAL_CLOCKS, port.0.into());
        if let (Some(clock), true) = self.found.refusal_clocks.get(port, read) {
            (&self.memory).set_refusal_clock(port, clock);
        }
        (&self.memory).refusal_clock(port)
    }

    fn set_refusal_clock(&self, port: PortId, clock: u64) {
        (&self.memory).set_refusal_clock(port, clock);
    }

    fn now(&self) -> u64 {
        (&self.memory).now()
    }

    fn repeat<F: FnMut() -> bool>(&self, times: u32, step: &mut F) {
        (&self.memory).repeat(times, step);
    }

    // Counters begin at 0 here: what they come to is what is counted.

    fn count_received(&self, port: PortId, length: u32) {
        (&self.memory).count_received(port, length);
    }

    fn count_sent(&self, port: PortId, length: u32) {
        (&self.memory).count_sent(port, length);
    }

    fn count_flooded(&self, port: PortId) {
        (&self.memory).count_flooded(port);
    }

    fn count_answered(&self, port: PortId) {
        (&self.memory).count_answered(port);
    }

    fn count_dropped(&self, port: PortId, reason: DropReason, length: u32, frame: &impl Packet) {
        (&self.memory).count_dropped(port, reason, length, frame);
    }

    // Captures see what is, not what would be.
    fn show(&self, _moment: Moment, _frame: &impl Packet) {}

    fn count_passed(&self, uplink: PortId) {
        (&self.memory).count_passed(uplink);
    }

    fn seconds(&self) -> u32 {
        self.seconds
    }

    fn policy(&self, id: NetworkId) -> Option<Policy> {
        self.found.policies.get(id, || self.slot(&self.maps.policies, names::POLICIES, id.0.into())).0
    }

    fn read_policy(&self, id: NetworkId, policy: &mut Policy) -> std::result::Result<(), DropReason> {
        *policy = self.policy(id).ok_or(DropReason::UnknownPort)?;
        Ok(())
    }

    fn flow(&self, age: Age, key: &FlowKey) -> Option<MemoryFlow<'a>> {
        self.fetch_flow(age, key);
        let live: &'a Live<'_> = self;
        (&live.memory).flow(age, key)
    }

    fn insert_flow(&self, age: Age, key: &FlowKey, flow: &Flow) -> Inserted {
        self.fetch_flow(age, key);
        (&self.memory).insert_flow(age, key, flow)
    }

    fn remove_flow(&self, age: Age, key: &FlowKey) -> bool {
        self.fetch_flow(age, key);
        (&self.memory).remove_flow(age, key)
    }

    /// Nothing of what the frame goes by is among what is over.
    fn reclaim(&self, _table: Reclaim) {}

    fn mapping(&self, key: &MappingKey) -> Option<Mapping> {
        self.fetch_mapping(key);
        (&self.memory).mapping(key)
    }

    fn insert_mapping(&self, key: &MappingKey, mapping: &Mapping) -> Inserted {
        self.fetch_mapping(key);
        (&self.memory).insert_mapping(key, mapping)
    }

    fn refresh_mapping(&self, key: &MappingKey, until: u32) {
        self.fetch_mapping(key);
        (&self.memory).refresh_mapping(key, until);
    }

    fn remove_mapping(&self, key: &MappingKey) -> bool {
        self.fetch_mapping(key);
        (&self.memory).remove_mapping(key)
    }

    // Of the run alone: what it removes is removed nowhere else.
    fn lock(&self, key: &MappingKey) -> bool {
        (&self.memory).lock(key)
    }

    fn unlock(&self, key: &MappingKey) {
        (&self.memory).unlock(key);
    }

    fn add_usage(&self, owner: PortId, flows: i64, ports: i64) {
        self.fetch_usage(owner);
        (&self.memory).add_usage(owner, flows, ports);
    }

    fn usage(&self, owner: PortId) -> Usage {
        self.fetch_usage(owner);
        (&self.memory).usage(owner)
    }

    fn published(&self, protocol: IpProtocol, ip: IpAddress, port: u16) -> Option<u32> {
        self.found.published.get((protocol.0, ip, port), || self.ok(self.maps.published(protocol, ip, port))).0
    }

    fn publish(&self, place: u32) -> Option<Publish> {
        self.found.publishes.get(place, || self.slot(&self.maps.publishes, names::PUBLISHES, place)).0
    }

    fn count_publish_hit(&self, place: u32) {
        (&self.memory).count_publish_hit(place);
    }

    fn route(&self, from: u32, key: &FlowKey, hop: &mut Hop) -> Route {
        let answer = self.ok(self.asker.ask(from, key).map(Some));
        let Some((answer, route)) = answer.and_then(|answer| Some((answer, answer.route()?))) else {
            return Route::Unreachable;
        };
        *hop = answer.hop();
        route
    }

    fn has_socket(&self, key: &FlowKey) -> bool {
        self.ok(self.asker.ask(0, key).map(Some)).is_some_and(|answer| answer.has_socket())
    }

    fn keyed_hash(&self, key: &FlowKey, turn: u32) -> u32 {
        hash::keyed_hash(self.secret, key, turn)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.fetch_fragment(key);
        (&self.memory).fragment(key)
    }

    // Only a process that sweeps asks for it.
    fn forget_fragment(&self, key: &FragmentKey) -> bool {
        (&self.memory).forget_fragment(key)
    }

    fn set_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.fetch_fragment(key);
        (&self.memory).set_fragment(key, fragment);
    }

    fn holding(&self, port: PortId) -> Holding {
        let read = || self.slot(&self.maps.holding, names::HOLDING, port.0.into());
        if let (Some(holding), true) = self.found.holding.get(port, read) {
            (&self.memory).set_holding(port, holding);
        }
        (&self.memory).holding(port)
    }

    fn set_holding(&self, port: PortId, holding: Holding) {
        (&self.memory).set_holding(port, holding);
    }

    fn hold(&self, place: HeldKey, key: &FragmentKey, seen: u32, frame: &impl Packet) -> bool {
        self.fetch_held(place);
        (&self.memory).hold(place, key, seen, frame)
    }

    fn held(&self, place: HeldKey) -> Option<(FragmentKey, u32)> {
        self.fetch_held(place);
        (&self.memory).held(place)
    }

    fn let_go(&self, place: HeldKey, frame: &mut impl Packet) -> bool {
        self.fetch_held(place);
        (&self.memory).let_go(place, frame)
    }

    fn free(&self, place: HeldKey) -> bool {
        self.fetch_held(place);
        (&self.memory).free(place)
    }

    fn take_back_received(&self, port: PortId, length: u32) {
        (&self.memory).take_back_received(port, length);
    }

    fn take_back_dropped(&self, port: PortId, reason: DropReason, length: u32) {
        (&self.memory).take_back_dropped(port, reason, length);
    }

    fn uplink(&self, ifindex: u32) -> Option<PortId> {
        self.found.uplinks.get(ifindex, || self.hash_entry(&self.maps.uplinks, names::UPLINKS, &ifindex)).0
    }

    fn is_local(&self, ip: IpAddress) -> bool {
        self.local(ip) == Some(1)
    }

    fn is_broadcast(&self, ip: IpAddress) -> bool {
        self.local(ip) == Some(0)
    }

    // For the hooks at sockets, by which no frame comes: those tables are empty here.

    fn any_local<F: FnMut(IpAddress) -> bool>(&self, is_it: &mut F) -> bool {
        (&self.memory).any_local(is_it)
    }

    fn original(&self, key: &OriginalKey) -> Option<Original> {
        (&self.memory).original(key)
    }

    fn set_original(&self, key: &OriginalKey, original: &Original) {
        (&self.memory).set_original(key, original);
    }

    fn forget_original(&self, key: &OriginalKey) {
        (&self.memory).forget_original(key);
    }
}
