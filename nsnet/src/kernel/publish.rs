//! Published ports in the dataplane's maps.

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie, Map, MapData, PerCpuArray, PerCpuValues};
use nsnet_common::layout::{self, PortId, PublishedKey, names, port_prefixes};
use nsnet_common::wire::{IpAddress, IpProtocol};

use super::batch;
use super::dataplane::refused;
use super::error::{KernelError, Result};
use super::host::Host;
use super::maps::{Maps, all, found, get_slot, gone, set_slot};
use crate::model::drift::Difference;
use crate::model::publish::{Entry, Publish};
use crate::model::spec::endpoint;

/// The maps of published ports, open.
pub struct PublishMaps {
    published: LpmTrie<MapData, PublishedKey, u32>,
    publishes: Array<MapData, layout::Publish>,
    hits: PerCpuArray<MapData, u64>,
}

impl PublishMaps {
    /// Those of a loaded dataplane.
    pub fn of(maps: &Maps) -> Result<Self> {
        Ok(Self {
            published: maps.open(names::PUBLISHED, Map::LpmTrie)?,
            publishes: maps.open(names::PUBLISHES, Map::Array)?,
            hits: maps.open(names::PUBLISH_HITS, Map::PerCpuArray)?,
        })
    }

    /// Enters what is published: what a packet finds last is there first.
    pub(crate) fn insert(&mut self, publish: &Publish) -> Result<()> {
        for entry in &publish.entries {
            let (place, slot) = (u32::from(entry.place), slot(publish, entry));
            if get_slot(&self.publishes, names::PUBLISHES, place)? != slot {
                self.reset_hits(entry)?;
                set_slot(&mut self.publishes, names::PUBLISHES, place, slot)?;
            }
            for (key, bits) in prefixes(publish, entry) {
                let inserted = self.published.insert(&Key::new(bits, key), u32::from(entry.place), 0);
                inserted.map_err(|error| refused(format!("publish {}", publish.spec), error))?;
            }
        }
        Ok(())
    }

    /// Removes it. The place keeps the epoch, which is that of flows that are still there.
    pub(crate) fn remove(&mut self, publish: &Publish) -> Result<()> {
        for entry in &publish.entries {
            for (key, bits) in prefixes(publish, entry) {
                self.remove_prefix(key, bits)?;
            }
            let left = layout::Publish { epoch: entry.epoch, ..layout::Publish::default() };
            set_slot(&mut self.publishes, names::PUBLISHES, u32::from(entry.place), left)?;
        }
        Ok(())
    }

    /// What is wrong with it.
    pub(crate) fn differences(&self, publish: &Publish) -> Result<Vec<Difference>> {
        let mut found_differences = Vec::new();
        for entry in &publish.entries {
            let ip = publish.host_ip(entry);
            let (is, should) =
                (get_slot(&self.publishes, names::PUBLISHES, u32::from(entry.place))?, slot(publish, entry));
            if is.owner == PortId::NONE {
                found_differences.push(Difference::missing(format_args!("entry for {ip}")));
            } else if is != should {
                found_differences.push(Difference::other(format_args!("entry for {ip}"), words(&is), words(&should)));
            }
            for (key, bits) in prefixes(publish, entry) {
                let leads_to = found(self.published.get(&Key::new(bits, key), 0), names::PUBLISHED)?;
                if leads_to != Some(u32::from(entry.place)) {
                    found_differences.push(Difference::missing(format_args!("way from ports of {ip} to its entry")));
                    break;
                }
            }
        }
        Ok(found_differences)
    }

    /// Every place that something is in.
    pub(super) fn used_places(&self, maps: &Maps) -> Result<Vec<u16>> {
        let mut places = Vec::new();
        let data = maps.data(names::PUBLISHES)?;
        batch::for_each(&data, names::PUBLISHES, |place: u32, publish: layout::Publish| {
            if publish.owner != PortId::NONE {
                places.push(place as u16);
            }
            Ok::<_, KernelError>(())
        })?;
        Ok(places)
    }

    /// Every prefix of ports that leads to a place, with its length in bits.
    pub(super) fn prefixes(&self) -> Result<Vec<(PublishedKey, u32)>> {
        let keys = all(self.published.keys(), names::PUBLISHED)?;
        Ok(keys.into_iter().map(|key| (key.data(), key.prefix_len())).collect())
    }

    /// Empties a place.
    pub(super) fn clear(&mut self, place: u16) -> Result<()> {
        set_slot(&mut self.publishes, names::PUBLISHES, u32::from(place), layout::Publish::default())
    }

    /// Removes a prefix of ports.
    pub(super) fn remove_prefix(&mut self, key: PublishedKey, bits: u32) -> Result<()> {
        gone(self.published.remove(&Key::new(bits, key)), names::PUBLISHED)
    }

    /// The host's ports that lead to a namespace, with its network.
    pub(super) fn in_use(&self, maps: &Maps) -> Result<Vec<layout::Publish>> {
        let places = self.used_places(maps)?.into_iter();
        places.map(|place| get_slot(&self.publishes, names::PUBLISHES, u32::from(place))).collect()
    }

    /// How many flows were made for it, over all CPUs.
    pub fn hits(&self, publish: &Publish) -> Result<u64> {
        let over_cpus = |entry: &Entry| {
            let values = self.hits.get(&u32::from(entry.place), 0).map_err(|error| refused("read hits", error))?;
            Ok(values.iter().sum::<u64>())
        };
        publish.entries.iter().map(over_cpus).sum()
    }

    fn reset_hits(&mut self, entry: &Entry) -> Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| KernelError::new(format!("read {what}"), error))?;
        let zeros = PerCpuValues::try_from(vec![0; cpus]).map_err(|error| KernelError::new("reset hits", error))?;
        self.hits.set(u32::from(entry.place), zeros, 0).map_err(|error| refused("reset hits", error))
    }
}

/// A family's entry, as the programs have it.
fn slot(publish: &Publish, entry: &Entry) -> layout::Publish {
    layout::Publish {
        target: IpAddress::from(entry.target),
        first: publish.host().first(),
        last: publish.host().last(),
        target_first: publish.spec.target().first(),
        owner: publish.port(),
        network: publish.network_id(),
        epoch: entry.epoch,
        protocol: publish.spec.protocol().number().0,
        pad: [0; 3],
    }
}

/// An entry in words.
fn words(slot: &layout::Publish) -> String {
    let (first, last, target) = (slot.first, slot.last, endpoint(slot.target.into(), slot.target_first));
    let protocol = IpProtocol(slot.protocol);
    format!("{first}-{last} to {target} of port {} ({protocol:?}, epoch {})", slot.owner.0, slot.epoch)
}

/// The prefixes of ports that lead to it, with their lengths in bits.
pub(super) fn prefixes(publish: &Publish, entry: &Entry) -> impl Iterator<Item = (PublishedKey, u32)> {
    let (protocol, ip) = (publish.spec.protocol().number(), IpAddress::from(publish.host_ip(entry)));
    port_prefixes(publish.host().first(), publish.host().last())
        .map(move |(start, bits)| (PublishedKey::new(protocol, ip, start), bits))
}

pub(crate) fn add(host: &Host, publish: &Publish) -> Result<()> {
    PublishMaps::of(&host.maps())?.insert(publish)
}

pub(crate) fn delete(host: &Host, publish: &Publish) -> Result<()> {
    if host.dataplane.loaded()? { PublishMaps::of(&host.maps())?.remove(publish) } else { Ok(()) }
}
