//! Published ports in the dataplane's maps.

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie, Map, MapData, PerCpuArray, PerCpuValues};
use nsnet_common::layout::{self, PortId, PublishedKey, names, port_prefixes};
use nsnet_common::wire::IpAddress;

use super::dataplane::refused;
use super::error::{KernelError, Result};
use super::host::Host;
use super::maps::{Maps, found, get_slot, gone, set_slot};
use super::observe::Drift;
use super::policy;
use super::reserved;
use crate::model::plan::Step;
use crate::model::publish::{Entry, Publish};
use crate::model::state::State;

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
            self.reset_hits(entry)?;
            set_slot(&mut self.publishes, names::PUBLISHES, u32::from(entry.place), slot(publish, entry))?;
            for key in keys(publish, entry) {
                let inserted = self.published.insert(&key, u32::from(entry.place), 0);
                inserted.map_err(|error| refused(format!("publish {}", publish.spec), error))?;
            }
        }
        Ok(())
    }

    /// Removes it. The place keeps the epoch, which is that of flows that are still there.
    pub(crate) fn remove(&mut self, publish: &Publish) -> Result<()> {
        for entry in &publish.entries {
            for key in keys(publish, entry) {
                gone(self.published.remove(&key), names::PUBLISHED)?;
            }
            let left = layout::Publish { epoch: entry.epoch, ..layout::Publish::default() };
            set_slot(&mut self.publishes, names::PUBLISHES, u32::from(entry.place), left)?;
        }
        Ok(())
    }

    /// What is wrong with it.
    pub fn faults(&self, publish: &Publish) -> Result<Vec<String>> {
        let mut faults = Vec::new();
        for entry in &publish.entries {
            let ip = publish.host_ip(entry);
            let found_slot = get_slot(&self.publishes, names::PUBLISHES, u32::from(entry.place))?;
            if found_slot.owner == PortId::NONE {
                faults.push(format!("its entry for {ip} is not in the dataplane"));
            } else if found_slot != slot(publish, entry) {
                faults.push(format!("its entry for {ip} in the dataplane is another"));
            }
            for key in keys(publish, entry) {
                if found(self.published.get(&key, 0), names::PUBLISHED)? != Some(u32::from(entry.place)) {
                    faults.push(format!("ports of {ip} do not lead to it"));
                    break;
                }
            }
        }
        Ok(faults)
    }

    /// Every entry that something leads to.
    pub(crate) fn in_use(&self) -> Result<Vec<layout::Publish>> {
        let mut slots = Vec::new();
        for entry in self.published.iter() {
            let (_key, place) = entry.map_err(|error| refused(format!("read map {}", names::PUBLISHED), error))?;
            slots.push(get_slot(&self.publishes, names::PUBLISHES, place)?);
        }
        Ok(slots)
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

/// The prefixes that lead to it.
fn keys(publish: &Publish, entry: &Entry) -> impl Iterator<Item = Key<PublishedKey>> {
    let (protocol, ip) = (publish.spec.protocol().number(), IpAddress::from(publish.host_ip(entry)));
    port_prefixes(publish.host().first(), publish.host().last())
        .map(move |(start, bits)| Key::new(bits, PublishedKey::new(protocol, ip, start)))
}

pub(crate) fn add(host: &Host, publish: &Publish) -> Result<()> {
    PublishMaps::of(&host.maps())?.insert(publish)
}

pub(crate) fn delete(host: &Host, publish: &Publish) -> Result<()> {
    if host.dataplane.loaded()? { PublishMaps::of(&host.maps())?.remove(publish) } else { Ok(()) }
}

/// What puts back what is broken of these published ports, and of the ports reserved for any.
pub fn mending<'a>(host: &Host, state: &State, publishes: impl IntoIterator<Item = &'a Publish>) -> Result<Vec<Step>> {
    let mut steps = policy::mending(host, state, false)?;
    if host.dataplane.loaded()? {
        let maps = PublishMaps::of(&host.maps())?;
        for publish in publishes {
            if !maps.faults(publish)?.is_empty() {
                steps.push(Step::AddPublish(publish.clone()));
            }
        }
    }
    Ok(steps)
}

/// Every difference between what is to be published and the kernel.
pub fn drift(host: &Host, state: &State) -> Result<Vec<Drift>> {
    let mut found = Vec::new();
    if state.publishes.is_empty() {
        return Ok(found);
    }
    let maps = if host.dataplane.loaded()? { Some(PublishMaps::of(&host.maps())?) } else { None };
    let addresses = host.netlink.all_addresses()?;
    let reserved = reserved::current()?;
    for publish in &state.publishes {
        let mut faults = match &maps {
            Some(maps) => maps.faults(publish)?,
            None => vec!["the dataplane is not loaded".to_owned()],
        };
        let ip = publish.spec.host_ip().filter(|ip| !ip.is_unspecified() && !ip.is_loopback());
        if let Some(ip) = ip.filter(|ip| addresses.iter().all(|(_, address)| address.addr() != *ip)) {
            faults.push(format!("the host has lost address {ip}"));
        }
        if publish.host().ports().any(|port| !reserved.contains(port)) {
            faults.push("its ports are not in net.ipv4.ip_local_reserved_ports".to_owned());
        }
        let object = format!("publish {} for {}", publish.spec, publish.ns);
        found.extend(faults.into_iter().map(|what| Drift { object: object.clone(), what }));
    }
    Ok(found)
}
