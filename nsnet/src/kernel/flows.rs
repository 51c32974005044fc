//! The flows that the dataplane tracks: read, and thrown away.
//!
//! ```text
//!   YOUNG4 YOUNG6   not established      each flow is two entries in one of these tables,
//!   FLOWS4 FLOWS6   established          one for each direction
//! ```
//!
//! Tables are read while packets change them. Young ones come first: a flow that is promoted meanwhile is then seen twice,
//! not never.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData};
use nsnet_common::layout::{Flow, Flow4, FlowKey, FlowKey4, MappingKey, NetworkId, PortId, Usage, flow_flags, names};
use zerocopy::FromBytes;

use super::batch;
use super::bpf::wait_for_runs;
use super::clock::seconds;
use super::error::{KernelError, Result};
use super::maps::{Maps, found, get_slot, set_slot};
use crate::model::flow::{Connection, Filter, Party};

/// What a flush took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Flows, those too that had ended and waited to be cleared away.
    pub flows: u64,
    /// Mappings that no other flow uses.
    pub mappings: u64,
}

impl Maps {
    /// The tables of flows.
    pub fn flows(&self) -> Result<Flows> {
        Ok(Flows {
            v4: Family { young: Table::open(self, names::YOUNG4)?, grown: Table::open(self, names::FLOWS4)? },
            v6: Family { young: Table::open(self, names::YOUNG6)?, grown: Table::open(self, names::FLOWS6)? },
        })
    }

    /// Removes the flows that `filter` means, with the mappings that nothing else uses.
    ///
    /// What the owners hold is lowered accordingly by reading and writing, since user space has no atomic addition: a
    /// flow that a packet makes or ends between the two is not counted. It is done once for each owner, at the end.
    pub fn flush(&self, filter: &Filter) -> Result<Flushed> {
        let mut flushed = Flushed::default();
        let mut freed = Freed::default();
        let mut endpoints = HashSet::new();
        let mut writer = self.flows()?;
        self.flows()?.each(&Look { filter, halves: true }, |flow| {
            if filter.matches(&flow) {
                let removed = writer.remove(&flow)?;
                flushed.flows += u64::from(removed.any);
                freed.count(&flow, removed);
                endpoints.extend(flow.mapped());
            }
            Ok::<_, KernelError>(())
        })?;
        if !endpoints.is_empty() {
            self.flows()?.each(&Look { filter: &Filter::default(), halves: false }, |flow| {
                if flow.expires.is_some() {
                    for endpoint in flow.mapped() {
                        endpoints.remove(&endpoint);
                    }
                }
                Ok::<_, KernelError>(())
            })?;
            flushed.mappings = self.remove_mappings(&endpoints, &mut freed)?;
        }
        self.lower_usage(&freed)?;
        Ok(flushed)
    }

    /// Removes both halves of each mapping that is there.
    fn remove_mappings(&self, endpoints: &HashSet<MappingKey>, freed: &mut Freed) -> Result<u64> {
        let mut mappings = self.mappings_map()?;
        let mut removed = 0;
        for inside in endpoints {
            let Some(mapping) = found(mappings.get(inside, 0), names::MAPPINGS)? else { continue };
            // The inside first: a flow that begins between the two makes a mapping of its own, rather than use a port
            // that is about to be free.
            if found(mappings.remove(inside), names::MAPPINGS)?.is_some() {
                freed.of(mapping.owner).ports += 1;
                removed += 1;
            }
            found(mappings.remove(&Self::external(inside, &mapping)), names::MAPPINGS)?;
        }
        Ok(removed)
    }

    fn usage_map(&self) -> Result<Array<MapData, Usage>> {
        self.open(names::USAGE, Map::Array)
    }

    /// What each of these ports holds, in their order.
    pub fn usage(&self, ids: impl IntoIterator<Item = PortId>) -> Result<Vec<Usage>> {
        let usage = self.usage_map()?;
        // A count that was lowered at a bad moment is below zero for a while, and then a huge one.
        let held = |id: PortId| {
            let held = get_slot(&usage, names::USAGE, u32::from(id.0))?;
            Ok(Usage { flows: less(held.flows, 0), ports: less(held.ports, 0) })
        };
        ids.into_iter().map(held).collect()
    }

    /// Established flows of IPv4, and of IPv6; dead ones too that nobody has met.
    pub fn established_flows(&self) -> Result<[u64; 2]> {
        let totals = self.usage([true, false].map(Usage::total))?;
        let mut flows = totals.iter().map(|total| total.flows);
        Ok([flows.next().unwrap_or(0), flows.next().unwrap_or(0)])
    }

    fn lower_usage(&self, freed: &Freed) -> Result<()> {
        let mut usage = self.usage_map()?;
        for (owner, freed) in freed.0.iter().filter(|(_, freed)| **freed != Usage::default()) {
            let place = u32::from(owner.0);
            let held = get_slot(&usage, names::USAGE, place)?;
            let left = Usage { flows: less(held.flows, freed.flows), ports: less(held.ports, freed.ports) };
            set_slot(&mut usage, names::USAGE, place, left)?;
        }
        Ok(())
    }

    /// Removes the flows that were opened while their network was not masqueraded: what is known is not judged again, and would
    /// take its addresses out for as long as it goes on.
    pub(super) fn forget_unmasqueraded(&self, network: NetworkId) -> Result<()> {
        // A packet that has read the policy before may still open one.
        wait_for_runs();
        if self.flows()?.are_there() {
            self.flush(&Filter { unmasqueraded: Some(network), ..Filter::default() })?;
        }
        Ok(())
    }

    /// Removes what is left of a port that is gone: flows that it has part in, and mappings. Its number may be another's
    /// next, which must neither get its packets nor have its quota lowered when they end.
    pub(super) fn forget_flows(&self, port: PortId, network: NetworkId, ips: &[IpAddr]) -> Result<()> {
        if self.flows()?.are_there() {
            let party = Some(Party::at(port, network, ips));
            self.flush(&Filter { party, ..Filter::default() })?;
        }
        // Ports are held for a while after the last flow.
        let endpoints = self.mappings_of(port)?;
        self.remove_mappings(&endpoints, &mut Freed::default()).map(|_removed| ())
    }
}

/// What each owner holds no longer, and where the dataplane counts all flows of a family: in the places of the numbers
/// that no port has.
#[derive(Debug, Default)]
struct Freed(BTreeMap<PortId, Usage>);

impl Freed {
    fn of(&mut self, owner: PortId) -> &mut Usage {
        self.0.entry(owner).or_default()
    }

    /// Notes a flow of which `removed` was removed.
    fn count(&mut self, flow: &Connection, removed: Removed) {
        if !removed.grown {
            return;
        }
        self.of(Usage::total(flow.opener.is_v4())).flows += 1;
        if flow.about.owner != PortId::NONE {
            let usage = self.of(flow.about.owner);
            usage.flows += 1;
            usage.ports += u64::from(flow.about.has(flow_flags::POOLED));
        }
    }
}

/// A count lowered. One below zero, which is a huge one, has lost additions meanwhile, and begins anew.
fn less(held: u64, freed: u64) -> u64 {
    held.cast_signed().saturating_sub_unsigned(freed).max(0).cast_unsigned()
}

/// The tables of flows of one host.
#[derive(Debug)]
pub struct Flows {
    v4: Family<FlowKey4, Flow4>,
    v6: Family<FlowKey, Flow>,
}

/// What was removed of a flow.
#[derive(Clone, Copy, Debug)]
struct Removed {
    any: bool,
    /// Of what counts against the owner's quota.
    grown: bool,
}

/// Which flows to look for. The fewer, the faster: a flow that is wanted costs a look at its other entry.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// Those that it means, whatever their state: what came of a flow is known when both entries are.
    pub filter: &'a Filter,
    /// Of established flows, those too of which only the direction of the answers is left. (Young ones lose entries to
    /// newer ones, so of them these are always looked for.)
    pub halves: bool,
}

impl Flows {
    /// Calls `each` with every flow that is looked for; its first error ends it.
    pub fn each<E: From<KernelError>>(
        &self,
        look: &Look<'_>,
        mut each: impl FnMut(Connection) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let (now, is_v4) = (seconds()?, look.filter.is_v4);
        if is_v4 != Some(false) {
            self.v4.each(look, now, &mut each)?;
        }
        if is_v4 != Some(true) {
            self.v6.each(look, now, &mut each)?;
        }
        Ok(())
    }

    /// Whether there is any flow.
    fn are_there(&self) -> bool {
        self.v4.is_there() || self.v6.is_there()
    }

    fn remove(&mut self, flow: &Connection) -> Result<Removed> {
        if flow.opener.is_v4() { self.v4.remove(flow) } else { self.v6.remove(flow) }
    }
}

/// The flows of one family.
#[derive(Debug)]
struct Family<K, V> {
    young: Table<K, V>,
    grown: Table<K, V>,
}

impl<K: Key, V: Pod + FromBytes + Into<Flow>> Family<K, V> {
    fn each<E: From<KernelError>>(
        &self,
        look: &Look<'_>,
        now: u32,
        each: &mut impl FnMut(Connection) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        for (table, is_young) in [(&self.young, true), (&self.grown, false)] {
            batch::for_each(&table.data, table.name, |key: K, flow: V| {
                let (key, flow) = (key.into(), flow.into());
                let alone = Connection::join(&key, &flow, None, is_young, now);
                let is_reply = flow.about.has(flow_flags::REPLY);
                if !look.filter.matches_but_state(&alone) || (is_reply && !is_young && !look.halves) {
                    return Ok(());
                }
                let other = self.other(table, &flow.other_key(&key))?;
                // Told already, or about to be, from its opener's side; unless that is gone.
                if is_reply && other.is_some() {
                    return Ok(());
                }
                each(Connection::join(&key, &flow, other.as_ref(), is_young, now))
            })?;
        }
        Ok(())
    }

    /// The other direction: of a flow that is being promoted it is in the other table.
    fn other(&self, table: &Table<K, V>, key: &FlowKey) -> Result<Option<Flow>> {
        let sibling = if std::ptr::eq(table, &raw const self.young) { &self.grown } else { &self.young };
        match table.get(key)? {
            Some(flow) => Ok(Some(flow)),
            None => sibling.get(key),
        }
    }

    fn remove(&mut self, flow: &Connection) -> Result<Removed> {
        let mut remove = |key| Ok((self.young.remove(key)?, self.grown.remove(key)?));
        let (opener, answers): ((bool, bool), (bool, bool)) = (remove(&flow.opener)?, remove(&flow.answers)?);
        // As the dataplane has it: whoever removes the opener's entry gives the place back.
        Ok(Removed { any: opener.0 || opener.1 || answers.0 || answers.1, grown: opener.1 })
    }

    fn is_there(&self) -> bool {
        [&self.young, &self.grown].into_iter().any(|table| table.map.keys().next().is_some())
    }
}

/// One table.
#[derive(Debug)]
struct Table<K, V> {
    name: &'static str,
    data: MapData,
    map: HashMap<MapData, K, V>,
}

impl<K: Key, V: Pod + Into<Flow>> Table<K, V> {
    /// Opens the pin twice: the typed map does not show its descriptor, but it checks the size of keys and values.
    fn open(maps: &Maps, name: &'static str) -> Result<Self> {
        let kind = if matches!(name, names::YOUNG4 | names::YOUNG6) { Map::LruHashMap } else { Map::HashMap };
        Ok(Self { name, map: maps.open(name, kind)?, data: maps.data(name)? })
    }

    fn get(&self, key: &FlowKey) -> Result<Option<Flow>> {
        Ok(found(self.map.get(&K::of(key), 0), self.name)?.map(Into::into))
    }

    /// `false` when it was not there.
    fn remove(&mut self, key: &FlowKey) -> Result<bool> {
        Ok(found(self.map.remove(&K::of(key)), self.name)?.is_some())
    }
}

/// How a table keeps the tuple.
trait Key: Pod + FromBytes + Into<FlowKey> {
    fn of(key: &FlowKey) -> Self;
}

impl Key for FlowKey4 {
    fn of(key: &FlowKey) -> Self {
        key.to_v4()
    }
}

impl Key for FlowKey {
    fn of(key: &FlowKey) -> Self {
        *key
    }
}
