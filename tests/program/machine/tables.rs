//! The maps of a machine: filled with what the tables in memory hold, and read again.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap as Wanted};
use std::hash::Hash;

use anyhow::{Result, anyhow};
use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, MapData, MapError, PerCpuValues};
use aya::util::nr_cpus;
use nsnet_common::cases::check::{State, ifindex_of};
use nsnet_common::cases::world::UPLINK;
use nsnet_common::layout::{
    DropKey, Dropped, Flow, Flow4, FlowKey, FlowKey4, ForeignKey, HELD_BYTES, Held, MAX_PORTS, NetworkId, Policy,
    PortCounters, PortId, PublishedKey, SubnetKey, Traffic, port_prefixes,
};
use nsnet_common::memory::{MemoryHeld, MemoryTables, mapped_bits};
use nsnet_common::wire::IpProtocol;

use super::Machine;

/// Ports up to this number are the world's. Entries of higher ones fill a table up.
pub(super) const LAST_PORT: u16 = UPLINK.id.0;
const LAST_NETWORK: u16 = 5;
/// Published entries up to this place are the world's.
const LAST_PUBLISH: u32 = 15;
/// The last place in the usage table counts, too: all flows of IPv6.
const TOTAL_V6: u32 = MAX_PORTS - 1;

impl Machine {
    /// Makes the maps hold what `tables` hold, and nothing else.
    pub(crate) fn fill(&mut self, tables: &MemoryTables) -> Result<()> {
        for id in 0..=LAST_PORT {
            let port = tables.ports.get(&PortId(id)).copied().unwrap_or_default();
            self.ports.set(id.into(), port, 0)?;
            let counters = tables.counters.borrow().get(&PortId(id)).copied().unwrap_or_default();
            self.counters.set(id.into(), on_one_cpu(counters)?, 0)?;
            let usage = tables.usage.borrow().get(&PortId(id)).copied().unwrap_or_default();
            self.usage.set(id.into(), usage, 0)?;
            let clock = tables.flood_clocks.borrow().get(&PortId(id)).copied().unwrap_or_default();
            self.flood_clocks.set(id.into(), clock, 0)?;
            let clock = tables.refusal_clocks.borrow().get(&PortId(id)).copied().unwrap_or_default();
            self.refusal_clocks.set(id.into(), clock, 0)?;
            let holding = tables.holding.borrow().get(&PortId(id)).copied().unwrap_or_default();
            self.holding.set(id.into(), holding, 0)?;
        }
        for id in 0..=LAST_NETWORK {
            let network = tables.networks.get(&NetworkId(id)).copied().unwrap_or_default();
            self.networks.set(id.into(), network, 0)?;
            let policy = tables.policies.get(&NetworkId(id)).copied().unwrap_or(Policy::DEFAULT);
            self.policies.set(id.into(), policy, 0)?;
        }
        make_equal(&mut self.uplinks, &tables.uplinks, |_| true)?;
        self.ifindexes = [(UPLINK.id, ifindex_of(UPLINK.id, tables))].into();
        let total = tables.usage.borrow().get(&PortId(TOTAL_V6 as u16)).copied().unwrap_or_default();
        self.usage.set(TOTAL_V6, total, 0)?;
        make_equal(&mut self.young_v4, &of_v4(&tables.young.borrow()), |_| true)?;
        make_equal(&mut self.young_v6, &of_v6(&tables.young.borrow()), |_| true)?;
        make_equal(&mut self.flows_v4, &of_v4(&tables.flows.borrow()), |_| true)?;
        make_equal(&mut self.flows_v6, &of_v6(&tables.flows.borrow()), |_| true)?;
        let mappings = tables.mappings.borrow().iter().map(|(key, mapping)| (*key, *mapping)).collect();
        make_equal(&mut self.mappings, &mappings, |_| true)?;
        let fragments = tables.fragments.borrow().iter().map(|(key, fragment)| (*key, *fragment)).collect();
        make_equal(&mut self.fragments, &fragments, |_| true)?;
        let held = tables.held.borrow().iter().map(|(place, held)| (*place, waiting(held))).collect();
        make_equal(&mut self.held, &held, |_| true)?;
        let broadcasts = tables.broadcasts.iter().map(|ip| (*ip, 0));
        let locals = tables.locals.iter().map(|ip| (*ip, 1)).chain(broadcasts).collect();
        make_equal(&mut self.locals, &locals, |_| true)?;
        self.fill_published(tables)?;
        make_equal(&mut self.stations, &tables.stations.borrow(), |_| true)?;
        make_equal(&mut self.foreign, &tables.foreign.borrow(), is_of_world)?;
        make_equal(&mut self.addresses, &tables.addresses, |_| true)?;
        for key in self.subnets.keys().collect::<Result<Vec<_>, _>>()? {
            self.subnets.remove(&key)?;
        }
        for (prefix, bits, network) in &tables.subnets {
            self.subnets.insert(&Key::new(mapped_bits(*prefix, *bits), SubnetKey(*prefix)), network, 0)?;
        }
        for key in self.drops.keys().collect::<Result<Vec<_>, _>>()? {
            self.drops.remove(&key)?;
        }
        for ((port, reason), traffic) in tables.drops.borrow().iter() {
            let dropped = Dropped { traffic: *traffic, ..Dropped::default() };
            self.drops.insert(DropKey { port: *port, reason: *reason }, on_one_cpu(dropped)?, 0)?;
        }
        Ok(())
    }

    fn fill_published(&mut self, tables: &MemoryTables) -> Result<()> {
        for key in self.published.keys().collect::<Result<Vec<_>, _>>()? {
            self.published.remove(&key)?;
        }
        for place in 0..=LAST_PUBLISH {
            let entry = tables.publishes.get(place as usize).copied().unwrap_or_default();
            self.publishes.set(place, entry, 0)?;
            let hits = tables.publish_hits.borrow().get(&place).copied().unwrap_or_default();
            self.publish_hits.set(place, on_one_cpu(hits)?, 0)?;
        }
        for (protocol, ip, place) in &tables.published {
            let entry = &tables.publishes[*place as usize];
            for (port, bits) in port_prefixes(entry.first, entry.last) {
                let key = PublishedKey::new(IpProtocol(*protocol), *ip, port);
                self.published.insert(&Key::new(bits, key), place, 0)?;
            }
        }
        Ok(())
    }

    /// What the maps hold now, of all that a frame can change.
    pub(crate) fn state(&self) -> Result<State> {
        let mut state = State::default();
        for id in 0..=LAST_PORT {
            let mut sum = PortCounters::default();
            for one in self.counters.get(&id.into(), 0)?.iter() {
                add(&mut sum.received, &one.received);
                add(&mut sum.sent, &one.sent);
                sum.flooded += one.flooded;
                sum.answered += one.answered;
                sum.passed += one.passed;
            }
            state.counters.insert(PortId(id), sum);
            state.flood_clocks.insert(PortId(id), self.flood_clocks.get(&id.into(), 0)?);
            state.refusal_clocks.insert(PortId(id), self.refusal_clocks.get(&id.into(), 0)?);
            state.holding.insert(PortId(id), self.holding.get(&id.into(), 0)?);
        }
        for entry in self.drops.iter() {
            let (key, cpus) = entry?;
            let sum = state.drops.entry((key.port, key.reason)).or_default();
            cpus.iter().for_each(|one| add(sum, &one.traffic));
        }
        for entry in self.stations.iter() {
            let (key, station) = entry?;
            state.stations.insert((key.network, key.mac), station);
        }
        for key in self.foreign.keys() {
            let key = key?;
            if is_of_world(&key) {
                state.foreign.insert((key.port, key.place), self.foreign.get(&key, 0)?);
            }
        }
        for entry in self.young_v4.iter() {
            let (key, flow) = entry?;
            state.young.insert(key.into(), flow.into());
        }
        for entry in self.flows_v4.iter() {
            let (key, flow) = entry?;
            state.flows.insert(key.into(), flow.into());
        }
        state.young.extend(self.young_v6.iter().collect::<Result<Vec<_>, _>>()?);
        state.flows.extend(self.flows_v6.iter().collect::<Result<Vec<_>, _>>()?);
        state.fragments.extend(self.fragments.iter().collect::<Result<Vec<_>, _>>()?);
        for entry in self.held.iter() {
            let (place, held) = entry?;
            state.held.insert(place, held.bytes[..held.length as usize].to_vec());
        }
        state.mappings.extend(self.mappings.iter().collect::<Result<Vec<_>, _>>()?);
        for id in (0..=LAST_PORT.into()).chain([TOTAL_V6]) {
            state.usage.insert(PortId(id as u16), self.usage.get(&id, 0)?);
        }
        for place in 0..=LAST_PUBLISH {
            state.publish_hits.insert(place, self.publish_hits.get(&place, 0)?.iter().sum());
        }
        Ok(state.without_zeros())
    }
}

/// A fragment that waits, as the map has it.
fn waiting((key, seen, frame): &MemoryHeld) -> Held {
    let mut bytes = [0; HELD_BYTES + 16];
    bytes[..frame.len()].copy_from_slice(frame);
    Held { key: *key, seen: *seen, length: frame.len() as u32, bytes }
}

/// The same flows as the table of IPv4 has them.
fn of_v4(flows: &BTreeMap<FlowKey, Flow>) -> Wanted<FlowKey4, Flow4> {
    flows.iter().filter(|(key, _)| key.is_v4()).map(|(key, flow)| (key.to_v4(), flow.to_v4())).collect()
}

fn of_v6(flows: &BTreeMap<FlowKey, Flow>) -> Wanted<FlowKey, Flow> {
    flows.iter().filter(|(key, _)| !key.is_v4()).map(|(key, flow)| (*key, *flow)).collect()
}

/// A value that the first CPU has, and the others none.
fn on_one_cpu<V: Pod + Default>(value: V) -> Result<PerCpuValues<V>> {
    let mut values = vec![V::default(); cpus()?];
    values[0] = value;
    Ok(PerCpuValues::try_from(values)?)
}

fn cpus() -> Result<usize> {
    nr_cpus().map_err(|(file, error)| anyhow!("read {file}: {error}"))
}

fn is_of_world(key: &ForeignKey) -> bool {
    key.port.0 <= LAST_PORT
}

fn add(sum: &mut Traffic, more: &Traffic) {
    // What was counted on one CPU may be taken back on another.
    sum.packets = sum.packets.wrapping_add(more.packets);
    sum.bytes = sum.bytes.wrapping_add(more.bytes);
}

fn make_equal<K: Pod + Hash + Eq, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    wanted: &Wanted<K, V>,
    mine: impl Fn(&K) -> bool,
) -> Result<()> {
    let keys: Vec<K> = map.keys().collect::<Result<_, MapError>>()?;
    for key in keys.iter().filter(|key| mine(key) && !wanted.contains_key(key)) {
        map.remove(key)?;
    }
    for (key, value) in wanted {
        map.insert(key.borrow(), value, 0)?;
    }
    Ok(())
}
