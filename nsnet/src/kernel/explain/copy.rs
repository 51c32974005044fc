//! The programs once more, to try a frame on: pinned and attached nowhere, with maps of their own.

use aya::maps::{HashMap, MapData, MapError, PerCpuValues};
use aya::programs::{ProgramInfo, SchedClassifier};
use aya::util::nr_cpus;
use aya::{Ebpf, Pod};
use nsnet_common::layout::{
    DropKey, Dropped, Flow, Flow4, FlowKey, FlowKey4, Holding, Network, Policy, Port, PortCounters, PortId, Publish,
    Traffic, Usage, names,
};
use nsnet_common::memory::MemoryTables;
use nsnet_common::state::State;
use nsnet_common::verdict::{Outcome, Verdict};
use nsnet_common::wire::IpProtocol;
use zerocopy::FromZeros as _;

use super::super::dataplane::{program_in, refused};
use super::super::error::{KernelError, Result};
use super::super::features::Features;
use super::super::maps::{plus, sum_of};
use super::super::object::open_copy;
use super::Confirmed;
use super::ask::Asker;
use super::live::Found;
use super::open::{OpenMaps, published_key, subnet_key};
use super::test_run::{Ran, test_run};
use crate::model::explain::walk::{Arrival, Pass};

/// How much later than the walk the kernel may have run, nanoseconds.
const LATE: u64 = 1_000_000_000;

/// The copy.
pub(super) struct Copy {
    ebpf: Ebpf,
    maps: OpenMaps,
}

impl Copy {
    /// Loads it.
    pub(super) fn load(features: Features, secret: u64) -> Result<Self> {
        let mut ebpf = open_copy(features, secret)?;
        let asks = program_in(&mut ebpf, names::ASK_HOST)?.load();
        asks.map_err(|error| refused(format!("load program {}", names::ASK_HOST), error))?;
        let maps = OpenMaps::by(|name| {
            let missing = || KernelError::refused(format!("find map {name}"), "the eBPF object does not have it");
            ebpf.take_map(name).ok_or_else(missing)
        })?;
        Ok(Self { ebpf, maps })
    }

    /// Asks the kernel as for a frame that came in by this interface.
    pub(super) fn asker(&self, ifindex: u32) -> Result<Asker<'_>> {
        Ok(Asker { program: self.program(names::ASK_HOST)?, ifindex })
    }

    pub(super) fn program_info(&self, name: &str) -> Result<ProgramInfo> {
        self.program(name)?.info().map_err(|error| refused(format!("read the description of program {name}"), error))
    }

    fn program(&self, name: &str) -> Result<&SchedClassifier> {
        let missing = || KernelError::refused(format!("find program {name}"), "the eBPF object does not have it");
        self.ebpf.program(name).ok_or_else(missing)?.try_into().map_err(|_other_type| missing())
    }

    /// Runs the frames of `passes` through the programs, over the entries that were found, and compares.
    pub(super) fn confirm(
        &mut self,
        arrival: &Arrival,
        passes: &[Pass],
        found: &Found,
        left: &MemoryTables,
    ) -> Result<Confirmed> {
        self.fill(found, left)?;
        let lines = self.differences(arrival, passes, found, left);
        self.clear(found, left)?;
        let lines = lines?;
        Ok(if lines.is_empty() { Confirmed::Yes } else { Confirmed::No(lines) })
    }

    fn differences(
        &self,
        arrival: &Arrival,
        passes: &[Pass],
        found: &Found,
        left: &MemoryTables,
    ) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let (program, ifindex) = (self.program(arrival.entrance.program())?, arrival.entrance.ifindex());
        for (number, pass) in passes.iter().enumerate() {
            let gso_size = if number == 0 { arrival.gso_size } else { 0 };
            let ran = test_run(program, ifindex, &pass.before, gso_size)?;
            let expected = Ran { action: action(pass.outcome), bytes: pass.after.bytes.clone() };
            if ran.action != expected.action {
                lines.push(format!("frame {number}: action {}, expected {}", ran.action, expected.action));
            } else if ran.bytes != expected.bytes {
                let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
                lines.push(format!("frame {number}: {}, expected {}", hex(&ran.bytes), hex(&expected.bytes)));
            }
        }
        let state = self.state(found, left).map_err(|error| refused("read the maps of the copy", error))?;
        lines.extend(state.differences(&State::of(left), LATE));
        Ok(lines)
    }

    /// Enters what was found.
    fn fill(&mut self, found: &Found, left: &MemoryTables) -> Result<()> {
        let cpus = nr_cpus().map_err(|(what, error)| KernelError::new(format!("read {what}"), error))?;
        let maps = &mut self.maps;
        let set = |result: std::result::Result<(), MapError>| result.map_err(|error| refused("fill a map", error));
        for (id, port) in found.ports.there() {
            set(maps.ports.set(id.0.into(), port, 0))?;
        }
        for (id, network) in found.networks.there() {
            set(maps.networks.set(id.0.into(), network, 0))?;
        }
        for (key, owner) in found.addresses.there() {
            set(maps.addresses.insert(key, owner, 0))?;
        }
        for (ip, network) in found.subnets.there() {
            set(maps.subnets.insert(&subnet_key(ip), network, 0))?;
        }
        for (key, station) in found.stations.there() {
            set(maps.stations.insert(key, station, 0))?;
        }
        for (key, mac) in found.foreign.there() {
            set(maps.foreign.insert(key, mac, 0))?;
        }
        for (id, clock) in found.flood_clocks.there() {
            set(maps.flood_clocks.set(id.0.into(), clock, 0))?;
        }
        for (id, clock) in found.refusal_clocks.there() {
            set(maps.refusal_clocks.set(id.0.into(), clock, 0))?;
        }
        for (id, policy) in found.policies.there() {
            set(maps.policies.set(id.0.into(), policy, 0))?;
        }
        for (index, port) in found.uplinks.there() {
            set(maps.uplinks.insert(index, port, 0))?;
        }
        for (key, flow) in found.young.there() {
            set(insert_flow(&mut maps.young_v4, &mut maps.young_v6, &key, &flow))?;
        }
        for (key, flow) in found.grown.there() {
            set(insert_flow(&mut maps.flows_v4, &mut maps.flows_v6, &key, &flow))?;
        }
        for (key, mapping) in found.mappings.there() {
            set(maps.mappings.insert(key, mapping, 0))?;
        }
        for (id, usage) in found.usage.there() {
            set(maps.usage.set(id.0.into(), usage, 0))?;
        }
        for ((protocol, ip, port), place) in found.published.there() {
            set(maps.published.insert(&published_key(IpProtocol(protocol), ip, port), place, 0))?;
        }
        for (place, entry) in found.publishes.there() {
            set(maps.publishes.set(place, entry, 0))?;
        }
        for (key, first) in found.fragments.there() {
            set(maps.fragments.insert(key, first, 0))?;
        }
        for (place, held) in found.held.there() {
            set(maps.held.insert(place, held, 0))?;
        }
        for (id, holding) in found.holding.there() {
            set(maps.holding.set(id.0.into(), holding, 0))?;
        }
        for (ip, one) in found.locals.there() {
            set(maps.locals.insert(ip, one, 0))?;
        }
        // A drop is taken back only where one was counted.
        for (port, reason) in left.drops.borrow().keys() {
            let key = DropKey { port: *port, reason: *reason };
            let zeros = PerCpuValues::try_from(vec![Dropped::default(); cpus]);
            let zeros = zeros.map_err(|error| KernelError::new("fill a map", error))?;
            set(maps.drops.insert(key, zeros, 0))?;
        }
        Ok(())
    }

    /// The ports whose slots a frame has used, as far as is known.
    fn ports(found: &Found, left: &MemoryTables) -> Vec<PortId> {
        let mut ports: Vec<PortId> = found.ports.there().into_iter().map(|(id, _)| id).collect();
        ports.extend(left.counters.borrow().keys());
        ports.extend(left.usage.borrow().keys());
        ports.extend(left.holding.borrow().keys());
        ports.extend(left.flood_clocks.borrow().keys());
        ports.extend(left.refusal_clocks.borrow().keys());
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// What the maps hold now, of all that a frame can change.
    fn state(&self, found: &Found, left: &MemoryTables) -> std::result::Result<State, MapError> {
        let maps = &self.maps;
        let mut state = State::default();
        for id in Self::ports(found, left) {
            let slot = u32::from(id.0);
            let mut sum = PortCounters::default();
            for one in maps.counters.get(&slot, 0)?.iter() {
                sum = sum_of(sum, *one);
            }
            state.counters.insert(id, sum);
            state.flood_clocks.insert(id, maps.flood_clocks.get(&slot, 0)?);
            state.refusal_clocks.insert(id, maps.refusal_clocks.get(&slot, 0)?);
            state.holding.insert(id, maps.holding.get(&slot, 0)?);
            state.usage.insert(id, maps.usage.get(&slot, 0)?);
        }
        for (place, _) in found.publishes.there() {
            state.publish_hits.insert(place, maps.publish_hits.get(&place, 0)?.iter().sum());
        }
        for entry in maps.drops.iter() {
            let (key, cpus) = entry?;
            let sum = cpus.iter().fold(Traffic::default(), |sum, one| plus(sum, one.traffic));
            state.drops.insert((key.port, key.reason), sum);
        }
        let stations = maps.stations.iter().collect::<std::result::Result<Vec<_>, _>>()?;
        state.stations.extend(stations.into_iter().map(|(key, station)| ((key.network, key.mac), station)));
        let foreign = maps.foreign.iter().collect::<std::result::Result<Vec<_>, _>>()?;
        state.foreign.extend(foreign.into_iter().map(|(key, mac)| ((key.port, key.place), mac)));
        for (into, v4, v6) in
            [(&mut state.young, &maps.young_v4, &maps.young_v6), (&mut state.flows, &maps.flows_v4, &maps.flows_v6)]
        {
            for entry in v4.iter() {
                let (key, flow) = entry?;
                into.insert(FlowKey::from(key), Flow::from(flow));
            }
            into.extend(v6.iter().collect::<std::result::Result<Vec<_>, _>>()?);
        }
        state.mappings.extend(maps.mappings.iter().collect::<std::result::Result<Vec<_>, _>>()?);
        state.fragments.extend(maps.fragments.iter().collect::<std::result::Result<Vec<_>, _>>()?);
        for entry in maps.held.iter() {
            let (place, held) = entry?;
            state.held.insert(place, held.bytes.get(..held.length as usize).unwrap_or_default().to_vec());
        }
        Ok(state.without_zeros())
    }

    /// Makes the maps empty again.
    fn clear(&mut self, found: &Found, left: &MemoryTables) -> Result<()> {
        self.try_clear(found, left).map_err(|error| refused("empty the maps of the copy", error))
    }

    fn try_clear(&mut self, found: &Found, left: &MemoryTables) -> std::result::Result<(), MapError> {
        let ports = Self::ports(found, left);
        let maps = &mut self.maps;
        for id in ports {
            let slot = u32::from(id.0);
            maps.ports.set(slot, Port::default(), 0)?;
            let cpus = maps.counters.get(&slot, 0)?.len();
            maps.counters.set(slot, PerCpuValues::try_from(vec![PortCounters::default(); cpus])?, 0)?;
            maps.flood_clocks.set(slot, 0, 0)?;
            maps.refusal_clocks.set(slot, 0, 0)?;
            maps.holding.set(slot, Holding::default(), 0)?;
            maps.usage.set(slot, Usage::default(), 0)?;
        }
        for (id, _) in found.networks.there() {
            maps.networks.set(id.0.into(), Network::default(), 0)?;
        }
        for (id, _) in found.policies.there() {
            maps.policies.set(id.0.into(), Policy::new_zeroed(), 0)?;
        }
        for (place, _) in found.publishes.there() {
            maps.publishes.set(place, Publish::default(), 0)?;
            let cpus = maps.publish_hits.get(&place, 0)?.len();
            maps.publish_hits.set(place, PerCpuValues::try_from(vec![0; cpus])?, 0)?;
        }
        for (ip, _) in found.subnets.there() {
            maps.subnets.remove(&subnet_key(ip))?;
        }
        for ((protocol, ip, port), _) in found.published.there() {
            maps.published.remove(&published_key(IpProtocol(protocol), ip, port))?;
        }
        for key in maps.drops.keys().collect::<std::result::Result<Vec<_>, _>>()? {
            maps.drops.remove(&key)?;
        }
        empty(&mut maps.addresses)?;
        empty(&mut maps.stations)?;
        empty(&mut maps.foreign)?;
        empty(&mut maps.uplinks)?;
        empty(&mut maps.young_v4)?;
        empty(&mut maps.young_v6)?;
        empty(&mut maps.flows_v4)?;
        empty(&mut maps.flows_v6)?;
        empty(&mut maps.mappings)?;
        empty(&mut maps.fragments)?;
        empty(&mut maps.held)?;
        empty(&mut maps.locals)
    }
}

fn empty<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>) -> std::result::Result<(), MapError> {
    for key in map.keys().collect::<std::result::Result<Vec<K>, _>>()? {
        map.remove(&key)?;
    }
    Ok(())
}

fn insert_flow(
    v4: &mut HashMap<MapData, FlowKey4, Flow4>,
    v6: &mut HashMap<MapData, FlowKey, Flow>,
    key: &FlowKey,
    flow: &Flow,
) -> std::result::Result<(), MapError> {
    if key.is_v4() { v4.insert(key.to_v4(), flow.to_v4(), 0) } else { v6.insert(key, flow, 0) }
}

/// The TC action that an outcome becomes (linux/pkt_cls.h).
pub fn action(outcome: Outcome) -> u32 {
    const SHOT: u32 = 2;
    const REDIRECT: u32 = 7;
    /// -1.
    const UNSPEC: u32 = u32::MAX;
    match outcome {
        // What is flooded, or comes in again, ends in a redirect to nowhere.
        Ok(Verdict::Deliver(_) | Verdict::Flooded | Verdict::Again) => REDIRECT,
        Ok(Verdict::Pass) => UNSPEC,
        Ok(
            Verdict::Route | Verdict::Relate | Verdict::Open | Verdict::Fragment | Verdict::Cut | Verdict::Refuse(_),
        )
        | Err(_) => SHOT,
    }
}
