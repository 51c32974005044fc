//! The maps that the core's tables are in, open: the pinned ones, or those of the copy.

use std::cell::RefCell;

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap};
use nsnet_common::layout::{
    AddressKey, DropKey, Dropped, Flow, Flow4, FlowKey, FlowKey4, ForeignKey, Fragment, FragmentKey, Held, HeldKey,
    Holding, Mapping, MappingKey, Network, NetworkId, Policy, Port, PortCounters, PortId, Publish, PublishedKey,
    Station, StationKey, SubnetKey, Usage, names,
};
use nsnet_common::tables::Age;
use nsnet_common::wire::{IpAddress, IpProtocol, Mac};

use super::super::dataplane::refused;
use super::super::error::Result;
use super::super::maps::{Maps, found};
use super::super::pins::CLEAR;

/// The maps.
pub(super) struct OpenMaps {
    pub(super) ports: Array<MapData, Port>,
    pub(super) networks: Array<MapData, Network>,
    pub(super) stations: HashMap<MapData, StationKey, Station>,
    pub(super) foreign: HashMap<MapData, ForeignKey, Mac>,
    pub(super) addresses: HashMap<MapData, AddressKey, PortId>,
    pub(super) subnets: LpmTrie<MapData, SubnetKey, NetworkId>,
    pub(super) counters: PerCpuArray<MapData, PortCounters>,
    pub(super) drops: PerCpuHashMap<MapData, DropKey, Dropped>,
    pub(super) flood_clocks: Array<MapData, u64>,
    pub(super) refusal_clocks: Array<MapData, u64>,
    pub(super) policies: Array<MapData, Policy>,
    pub(super) uplinks: HashMap<MapData, u32, PortId>,
    pub(super) young_v4: HashMap<MapData, FlowKey4, Flow4>,
    pub(super) young_v6: HashMap<MapData, FlowKey, Flow>,
    pub(super) flows_v4: HashMap<MapData, FlowKey4, Flow4>,
    pub(super) flows_v6: HashMap<MapData, FlowKey, Flow>,
    pub(super) mappings: HashMap<MapData, MappingKey, Mapping>,
    pub(super) usage: Array<MapData, Usage>,
    pub(super) published: LpmTrie<MapData, PublishedKey, u32>,
    pub(super) publishes: Array<MapData, Publish>,
    pub(super) publish_hits: PerCpuArray<MapData, u64>,
    pub(super) fragments: HashMap<MapData, FragmentKey, Fragment>,
    pub(super) held: HashMap<MapData, HeldKey, Held>,
    pub(super) holding: Array<MapData, Holding>,
    pub(super) locals: HashMap<MapData, IpAddress, u8>,
}

impl OpenMaps {
    /// The pinned ones.
    pub(super) fn pinned(maps: &Maps) -> Result<Self> {
        Self::by(|name| {
            Map::from_map_data(maps.data(name)?).map_err(|error| refused(format!("open map {name}"), error))
        })
    }

    /// The maps that `open` opens by their names.
    pub(super) fn by(open: impl FnMut(&str) -> Result<Map>) -> Result<Self> {
        let open = RefCell::new(open);
        Ok(Self {
            ports: typed(&open, names::PORTS)?,
            networks: typed(&open, names::NETWORKS)?,
            stations: typed(&open, names::STATIONS)?,
            foreign: typed(&open, names::FOREIGN)?,
            addresses: typed(&open, names::ADDRESSES)?,
            subnets: typed(&open, names::SUBNETS)?,
            counters: typed(&open, names::COUNTERS)?,
            drops: typed(&open, names::DROPS)?,
            flood_clocks: typed(&open, names::FLOOD_CLOCKS)?,
            refusal_clocks: typed(&open, names::REFUSAL_CLOCKS)?,
            policies: typed(&open, names::POLICIES)?,
            uplinks: typed(&open, names::UPLINKS)?,
            young_v4: typed(&open, names::YOUNG4)?,
            young_v6: typed(&open, names::YOUNG6)?,
            flows_v4: typed(&open, names::FLOWS4)?,
            flows_v6: typed(&open, names::FLOWS6)?,
            mappings: typed(&open, names::MAPPINGS)?,
            usage: typed(&open, names::USAGE)?,
            published: typed(&open, names::PUBLISHED)?,
            publishes: typed(&open, names::PUBLISHES)?,
            publish_hits: typed(&open, names::PUBLISH_HITS)?,
            fragments: typed(&open, names::FRAGMENTS)?,
            held: typed(&open, names::HELD)?,
            holding: typed(&open, names::HOLDING)?,
            locals: typed(&open, names::LOCALS)?,
        })
    }

    /// A flow.
    pub(super) fn flow(&self, age: Age, key: &FlowKey) -> Result<Option<Flow>> {
        let name = crate::model::explain::entries::flow_table(age, key);
        match (age, key.is_v4()) {
            (Age::Young, true) => Ok(found(self.young_v4.get(&key.to_v4(), 0), name)?.map(Flow::from)),
            (Age::Grown, true) => Ok(found(self.flows_v4.get(&key.to_v4(), 0), name)?.map(Flow::from)),
            (Age::Young, false) => found(self.young_v6.get(key, 0), name),
            (Age::Grown, false) => found(self.flows_v6.get(key, 0), name),
        }
    }

    /// The network whose subnet holds an address.
    pub(super) fn subnet(&self, ip: IpAddress) -> Result<Option<NetworkId>> {
        found(self.subnets.get(&subnet_key(ip), 0), names::SUBNETS)
    }

    /// The place of what is published at an endpoint.
    pub(super) fn published(&self, protocol: IpProtocol, ip: IpAddress, port: u16) -> Result<Option<u32>> {
        found(self.published.get(&published_key(protocol, ip, port), 0), names::PUBLISHED)
    }
}

/// The whole address.
pub(super) fn subnet_key(ip: IpAddress) -> Key<SubnetKey> {
    Key::new(128, SubnetKey(ip))
}

/// The whole endpoint.
pub(super) fn published_key(protocol: IpProtocol, ip: IpAddress, port: u16) -> Key<PublishedKey> {
    Key::new(PublishedKey::BITS, PublishedKey::new(protocol, ip, port))
}

/// An entry of an array, which has all that are in its range.
pub(super) fn slot<V: Pod>(map: &Array<MapData, V>, name: &str, index: u32) -> Result<Option<V>> {
    match map.get(&index, 0) {
        Err(MapError::OutOfBounds { .. }) => Ok(None),
        found_or_not => found(found_or_not, name),
    }
}

fn typed<M: TryFrom<Map, Error = MapError>>(open: &RefCell<impl FnMut(&str) -> Result<Map>>, name: &str) -> Result<M> {
    let map = open.borrow_mut()(name)?;
    M::try_from(map).map_err(|error| refused(format!("open map {name}"), error).with_remedy(CLEAR))
}
