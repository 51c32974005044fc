//! The dataplane's maps, from the control plane's side: typed, opened from their pins.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use ipnet::IpNet;
use nix::errno::Errno;
use nsnet_common::layout::{
    AddressKey, DropKey, Dropped, ForeignKey, LastDrop, MAPPED_IPV4_BITS, MAX_REASONS, Network, NetworkId, Port,
    PortCounters, PortId, Station, StationKey, SubnetKey, Traffic, Usage, names,
};
use nsnet_common::verdict::DropReason;
use nsnet_common::wire::{IpAddress, Mac};

use super::clock::monotonic;
use super::dataplane::{Dataplane, refused};
use super::error::{KernelError, Result};
use super::pins::{CLEAR, Pins, UPGRADE, wrong};
use crate::model::state::State;
use crate::model::traffic::{Look, PortName};

/// What all CPUs together have counted, by port and reason.
pub type Drops = BTreeMap<(PortId, u16), Dropped>;

/// The pinned maps of one host.
#[derive(Debug)]
pub struct Maps {
    pins: Pins,
}

impl Maps {
    /// The maps of a loaded dataplane.
    pub fn of(dataplane: &Dataplane) -> Self {
        Self { pins: dataplane.pins().clone() }
    }

    pub(super) fn open<M: TryFrom<Map, Error = MapError>>(&self, name: &str, kind: fn(MapData) -> Map) -> Result<M> {
        // aya compares the kind of map, and the sizes of keys and values.
        M::try_from(kind(self.data(name)?)).map_err(|error| wrong(&self.pins.map(name), error).with_remedy(CLEAR))
    }

    /// A map without its types.
    pub(super) fn data(&self, name: &str) -> Result<MapData> {
        MapData::from_pin(self.pins.map(name)).map_err(|error| {
            let error = refused(format!("open map {name}"), error);
            // Of another version, or of an nsnet that knew it not.
            if error.errno() == Some(Errno::ENOENT) { error.with_remedy(UPGRADE) } else { error }
        })
    }

    pub(super) fn ports(&self) -> Result<Array<MapData, Port>> {
        self.open(names::PORTS, Map::Array)
    }

    pub(super) fn networks(&self) -> Result<Array<MapData, Network>> {
        self.open(names::NETWORKS, Map::Array)
    }

    pub(super) fn addresses(&self) -> Result<HashMap<MapData, AddressKey, PortId>> {
        self.open(names::ADDRESSES, Map::HashMap)
    }

    pub(super) fn stations_map(&self) -> Result<HashMap<MapData, StationKey, Station>> {
        self.open(names::STATIONS, Map::HashMap)
    }

    pub(super) fn foreign(&self) -> Result<HashMap<MapData, ForeignKey, Mac>> {
        self.open(names::FOREIGN, Map::HashMap)
    }

    pub(super) fn subnets(&self) -> Result<LpmTrie<MapData, SubnetKey, NetworkId>> {
        self.open(names::SUBNETS, Map::LpmTrie)
    }

    fn drops_map(&self) -> Result<PerCpuHashMap<MapData, DropKey, Dropped>> {
        self.open(names::DROPS, Map::PerCpuHashMap)
    }

    fn counters_map(&self) -> Result<PerCpuArray<MapData, PortCounters>> {
        self.open(names::COUNTERS, Map::PerCpuArray)
    }

    /// The port `id`, if the dataplane has it.
    pub fn port(&self, id: PortId) -> Result<Option<Port>> {
        let port = get_slot(&self.ports()?, names::PORTS, u32::from(id.0))?;
        Ok((port.id() == id && id != PortId::NONE).then_some(port))
    }

    /// The head of a network's list of ports.
    pub fn network(&self, id: NetworkId) -> Result<Network> {
        get_slot(&self.networks()?, names::NETWORKS, u32::from(id.0))
    }

    /// Writes a port's entry, outside of any network's list.
    pub(super) fn set_port(&self, port: &Port) -> Result<()> {
        set_slot(&mut self.ports()?, names::PORTS, u32::from(port.id().0), *port)
    }

    /// Empties a port's entry, which is in no network's list.
    pub(super) fn clear_port(&self, id: PortId) -> Result<()> {
        set_slot(&mut self.ports()?, names::PORTS, u32::from(id.0), Port::default())
    }

    /// Sets everything counted for a port to 0.
    pub(super) fn reset_counters(&self, id: PortId) -> Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| KernelError::new(format!("read {what}"), error))?;
        let zeros = PerCpuValues::try_from(vec![PortCounters::default(); cpus])
            .map_err(|error| KernelError::new("reset counters", error))?;
        let reset = self.counters_map()?.set(u32::from(id.0), zeros, 0);
        reset.map_err(|error| refused("reset counters", error))?;
        self.reset_accelerated(id)?;
        let mut drops = self.drops_map()?;
        for reason in DropReason::ALL {
            gone(drops.remove(&DropKey { port: id, reason: reason.code() }), names::DROPS)?;
        }
        let mut usage: Array<MapData, Usage> = self.open(names::USAGE, Map::Array)?;
        set_slot(&mut usage, names::USAGE, u32::from(id.0), Usage::default())?;
        let mut clocks: Array<MapData, u64> = self.open(names::FLOOD_CLOCKS, Map::Array)?;
        set_slot(&mut clocks, names::FLOOD_CLOCKS, u32::from(id.0), 0)
    }

    /// Makes a subnet known as a network's.
    pub fn insert_subnet(&self, subnet: &IpNet, network: NetworkId) -> Result<()> {
        let inserted = self.subnets()?.insert(&subnet_key(subnet), network, 0);
        inserted.map_err(|error| refused(format!("enter subnet {subnet}"), error))
    }

    /// Forgets a subnet.
    pub fn remove_subnet(&self, subnet: &IpNet) -> Result<()> {
        gone(self.subnets()?.remove(&subnet_key(subnet)), names::SUBNETS)
    }

    /// The network that a subnet is known as belonging to.
    pub fn subnet(&self, subnet: &IpNet) -> Result<Option<NetworkId>> {
        found(self.subnets()?.get(&subnet_key(subnet), 0), names::SUBNETS)
    }

    /// The port that each of `ips` is known to be behind.
    pub fn owners<'a>(
        &self,
        network: NetworkId,
        ips: impl IntoIterator<Item = &'a IpAddr>,
    ) -> Result<Vec<(IpAddr, Option<PortId>)>> {
        let owners = self.addresses()?;
        let owner = |ip: &IpAddr| {
            let key = AddressKey { network, ip: IpAddress::from(*ip) };
            Ok((*ip, found(owners.get(&key, 0), names::ADDRESSES)?))
        };
        ips.into_iter().map(owner).collect()
    }

    /// One station of the hashed FDB.
    pub fn station(&self, key: &StationKey) -> Result<Option<Station>> {
        found(self.stations_map()?.get(key, 0), names::STATIONS)
    }

    /// Every station of the hashed FDB.
    pub fn stations(&self) -> Result<Vec<(StationKey, Station)>> {
        Ok(self.stations_map()?.iter().flatten().collect())
    }

    /// What each of these ports has seen, over all CPUs, in their order.
    pub fn counters(&self, ids: impl IntoIterator<Item = PortId>) -> Result<Vec<PortCounters>> {
        let counters = self.counters_map()?;
        let over_cpus = |id: PortId| {
            let values = counters.get(&u32::from(id.0), 0).map_err(|error| refused("read counters", error))?;
            Ok(values.iter().fold(PortCounters::default(), |sum, cpu| sum_of(sum, *cpu)))
        };
        ids.into_iter().map(over_cpus).collect()
    }

    /// What the ports of a state have seen up to now.
    pub fn look(&self, state: &State) -> Result<Look> {
        let names = PortName::all(state);
        let at = monotonic()?;
        let counters = self.counters(names.iter().map(|name| name.port))?;
        Ok(Look { at, ports: names.into_iter().zip(counters).collect(), drops: self.drops()? })
    }

    /// Everything that was dropped, over all CPUs.
    pub fn drops(&self) -> Result<Drops> {
        let mut drops = Drops::new();
        for (key, values) in self.drops_map()?.iter().flatten() {
            let sum = values.iter().fold(Dropped::default(), |sum, cpu| Dropped {
                traffic: plus(sum.traffic, cpu.traffic),
                seen: sum.seen.max(cpu.seen),
                jiffy: 0,
            });
            // Fragments that waited have been taken back.
            if sum.traffic != Traffic::default() {
                drops.insert((key.port, key.reason), sum);
            }
        }
        Ok(drops)
    }
}

impl Maps {
    /// The last frames that were dropped for the reason of this code, one for each CPU that has dropped any.
    pub fn last_drops(&self, reason: u16) -> Result<Vec<LastDrop>> {
        if u32::from(reason) >= MAX_REASONS {
            return Ok(Vec::new());
        }
        let last: PerCpuArray<MapData, LastDrop> = self.open(names::LAST_DROPS, Map::PerCpuArray)?;
        let cpus = last.get(&u32::from(reason), 0).map_err(|error| refused("read the last drops", error))?;
        // 0: none, or one is being written.
        Ok(cpus.iter().copied().filter(|last| last.seen != 0).collect())
    }
}

/// What two CPUs have counted.
pub(super) fn sum_of(one: PortCounters, other: PortCounters) -> PortCounters {
    PortCounters {
        received: plus(one.received, other.received),
        sent: plus(one.sent, other.sent),
        flooded: one.flooded + other.flooded,
        answered: one.answered + other.answered,
        passed: one.passed + other.passed,
    }
}

/// The same of frames.
pub(super) fn plus(one: Traffic, other: Traffic) -> Traffic {
    // One CPU may have taken back what another has counted.
    Traffic { packets: one.packets.wrapping_add(other.packets), bytes: one.bytes.wrapping_add(other.bytes) }
}

fn subnet_key(subnet: &IpNet) -> Key<SubnetKey> {
    let bits = u32::from(subnet.prefix_len()) + if subnet.addr().is_ipv4() { MAPPED_IPV4_BITS } else { 0 };
    Key::new(bits, SubnetKey(IpAddress::from(subnet.network())))
}

pub(super) fn get_slot<V: Pod>(map: &Array<MapData, V>, name: &str, index: u32) -> Result<V> {
    map.get(&index, 0).map_err(|error| refused(format!("read map {name}"), error))
}

pub(super) fn set_slot<V: Pod>(map: &mut Array<MapData, V>, name: &str, index: u32, value: V) -> Result<()> {
    map.set(index, value, 0).map_err(|error| refused(format!("write map {name}"), error))
}

/// Every entry of a map, or the first error.
pub(super) fn all<T>(entries: impl Iterator<Item = std::result::Result<T, MapError>>, name: &str) -> Result<Vec<T>> {
    entries.map(|entry| entry.map_err(|error| refused(format!("read map {name}"), error))).collect()
}

/// A removal, for which "not there" is as good.
pub(super) fn gone(result: std::result::Result<(), MapError>, name: &str) -> Result<()> {
    found(result, name).map(|_removed| ())
}

pub(super) fn found<T>(result: std::result::Result<T, MapError>, name: &str) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
        Err(error) => {
            let error = refused(format!("use map {name}"), error);
            if error.errno() == Some(nix::errno::Errno::ENOENT) { Ok(None) } else { Err(error) }
        }
    }
}
