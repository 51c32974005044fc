//! The endpoints that NAT holds: which external one stands for which inside a network.

use std::collections::HashSet;

use aya::maps::{self, Map, MapData};
use nsnet_common::layout::{Mapping, MappingKey, NetworkId, PortId, names};
use nsnet_common::wire::IpProtocol;

use super::batch;
use super::clock::seconds;
use super::error::{KernelError, Result};
use super::maps::{Maps, found};

/// A mapping, whose two entries are one here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The endpoint in a network.
    pub inside: MappingKey,
    /// The endpoint that stands for it outside, and the owner.
    pub external: Mapping,
    /// Seconds for which the external port stays its own when nothing more comes; 0 when that is over.
    pub expires: u32,
}

/// Seconds that an entry has left.
fn left(mapping: &Mapping, now: u32) -> u32 {
    if mapping.is_alive(now) { mapping.until.wrapping_sub(now) } else { 0 }
}

impl Maps {
    pub(super) fn mappings_map(&self) -> Result<maps::HashMap<MapData, MappingKey, Mapping>> {
        self.open(names::MAPPINGS, Map::HashMap)
    }

    /// The key of the half that reserves the external endpoint.
    pub(super) fn external(inside: &MappingKey, mapping: &Mapping) -> MappingKey {
        MappingKey::outside(IpProtocol(inside.protocol), mapping.ip, mapping.port)
    }

    /// Every mapping, in the order of the endpoints inside.
    pub fn mappings(&self) -> Result<Vec<Mapped>> {
        let (map, data, now) = (self.mappings_map()?, self.data(names::MAPPINGS)?, seconds()?);
        let mut mappings = Vec::new();
        batch::for_each(&data, names::MAPPINGS, |inside: MappingKey, external: Mapping| {
            if inside.side != NetworkId::OUTSIDE {
                // Flows may refresh either half.
                let other = found(map.get(&Self::external(&inside, &external), 0), names::MAPPINGS)?;
                let expires = left(&external, now).max(other.map_or(0, |other| left(&other, now)));
                mappings.push(Mapped { inside, external, expires });
            }
            Ok::<_, KernelError>(())
        })?;
        mappings.sort_by_key(|mapped| mapped.inside);
        Ok(mappings)
    }

    /// The endpoints inside whose mappings are on the quota of `owner`.
    pub(super) fn mappings_of(&self, owner: PortId) -> Result<HashSet<MappingKey>> {
        let mut endpoints = HashSet::new();
        let data = self.data(names::MAPPINGS)?;
        batch::for_each(&data, names::MAPPINGS, |inside: MappingKey, external: Mapping| {
            if inside.side != NetworkId::OUTSIDE && external.owner == owner {
                endpoints.insert(inside);
            }
            Ok::<_, KernelError>(())
        })?;
        Ok(endpoints)
    }
}
