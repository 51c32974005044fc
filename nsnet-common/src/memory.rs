//! The tables in plain memory: for host tests, and for asking what the dataplane would do.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

use crate::layout::{
    AddressKey, DropKey, ForeignKey, MAPPED_IPV4_BITS, Network, NetworkId, Port, PortCounters, PortId, Station,
    StationKey, Traffic,
};
use crate::tables::Tables;
use crate::verdict::DropReason;
use crate::wire::{IpAddress, Mac};

/// Every table of the dataplane, and a clock that stands still until told otherwise.
#[derive(Default)]
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
    /// Counters of each port.
    pub counters: RefCell<BTreeMap<PortId, PortCounters>>,
    /// Counters of each port and reason.
    pub drops: RefCell<BTreeMap<(PortId, u16), Traffic>>,
    /// The clock, nanoseconds.
    pub clock: Cell<u64>,
    /// Whether inserts fail.
    pub is_full: Cell<bool>,
}

impl MemoryTables {
    fn count(&self, port: PortId, change: impl FnOnce(&mut PortCounters)) {
        change(self.counters.borrow_mut().entry(port).or_default());
    }
}

/// `bits` in the mapped form, in which `SUBNETS` counts them.
pub fn mapped_bits(ip: IpAddress, bits: u32) -> u32 {
    if ip.as_v4().is_some() { bits + MAPPED_IPV4_BITS } else { bits }
}

impl Tables for &MemoryTables {
    fn port(&self, id: PortId) -> Option<Port> {
        self.ports.get(&id).copied()
    }

    fn network(&self, id: NetworkId) -> Option<Network> {
        self.networks.get(&id).copied()
    }

    fn address(&self, key: &AddressKey) -> Option<PortId> {
        self.addresses.get(key).copied()
    }

    fn subnet(&self, ip: IpAddress) -> Option<NetworkId> {
        let matches = |(prefix, bits, _): &&(IpAddress, u32, NetworkId)| {
            let differing = u128::from_be_bytes(prefix.0) ^ u128::from_be_bytes(ip.0);
            differing.leading_zeros() >= mapped_bits(*prefix, *bits)
        };
        let best = self.subnets.iter().filter(matches).max_by_key(|(prefix, bits, _)| mapped_bits(*prefix, *bits));
        best.map(|(_, _, network)| *network)
    }

    fn station(&self, key: &StationKey) -> Option<Station> {
        self.stations.borrow().get(key).copied()
    }

    fn set_station(&self, key: &StationKey, station: &Station) -> bool {
        if self.is_full.get() {
            return false;
        }
        self.stations.borrow_mut().insert(*key, *station);
        true
    }

    fn remove_station(&self, key: &StationKey) {
        self.stations.borrow_mut().remove(key);
    }

    fn foreign(&self, key: &ForeignKey) -> Option<Mac> {
        self.foreign.borrow().get(key).copied()
    }

    fn set_foreign(&self, key: &ForeignKey, mac: Mac) -> bool {
        if self.is_full.get() {
            return false;
        }
        self.foreign.borrow_mut().insert(*key, mac);
        true
    }

    fn flood_clock(&self, port: PortId) -> u64 {
        self.flood_clocks.borrow().get(&port).copied().unwrap_or(0)
    }

    fn set_flood_clock(&self, port: PortId, clock: u64) {
        self.flood_clocks.borrow_mut().insert(port, clock);
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

    fn count_dropped(&self, port: PortId, reason: DropReason, length: u32) {
        let key = DropKey { port, reason: reason.code() };
        self.drops.borrow_mut().entry((key.port, key.reason)).or_default().add(length);
    }
}
