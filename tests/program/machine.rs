//! The programs, loaded, with their maps and the interfaces of the world's ports.

use std::borrow::Borrow;
use std::collections::HashMap as Wanted;
use std::hash::Hash;

use anyhow::{Context as _, Result, anyhow};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use aya::programs::tc::qdisc_add_clsact;
use aya::programs::{TcAttachType, TestRun as _, TestRunOptions};
use aya::util::nr_cpus;
use aya::{Ebpf, Pod};
use nix::time::{ClockId, clock_gettime};
use nsnet::kernel::dataplane::{open_object, program_in};
use nsnet::kernel::features::Features;
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::veth::VethSpec;
use nsnet_common::cases::Hook;
use nsnet_common::cases::check::State;
use nsnet_common::cases::world::{ENDS, GHOST};
use nsnet_common::layout::{
    AddressKey, DropKey, ForeignKey, Network, NetworkId, Port, PortCounters, PortId, Station, StationKey, SubnetKey,
    Traffic, names,
};
use nsnet_common::memory::{MemoryTables, mapped_bits};
use nsnet_common::wire::Mac;

/// Stamps of the kernel may be this much later than the time at which the tables were made.
pub(crate) const LATE: u64 = 400_000_000;
/// Ports up to this number are the world's. Entries of higher ones fill a table up.
const LAST_PORT: u16 = GHOST.id.0;
const LAST_NETWORK: u16 = 3;

/// What a program did with a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    /// `TC_ACT_*`.
    pub(crate) action: u32,
    /// The frame afterwards.
    pub(crate) bytes: Vec<u8>,
}

impl Ran {
    /// What differs from `expected`, in short.
    pub(crate) fn difference(&self, expected: &Self) -> Option<String> {
        if self.action != expected.action {
            return Some(format!("action {}, expected {}", self.action, expected.action));
        }
        let (found, wanted) = (&self.bytes, &expected.bytes);
        let at = found.iter().zip(wanted).position(|(found, wanted)| found != wanted);
        let lengths = (found.len() != wanted.len()).then_some(found.len().min(wanted.len()));
        at.or(lengths).map(|at| format!("from byte {at}: {:02x?}, expected {:02x?}", &found[at..], &wanted[at..]))
    }
}

/// Programs, maps, interfaces.
pub(crate) struct Machine {
    ebpf: Ebpf,
    ports: Array<MapData, Port>,
    networks: Array<MapData, Network>,
    stations: HashMap<MapData, StationKey, Station>,
    pub(crate) foreign: HashMap<MapData, ForeignKey, Mac>,
    addresses: HashMap<MapData, AddressKey, PortId>,
    subnets: LpmTrie<MapData, SubnetKey, NetworkId>,
    counters: PerCpuArray<MapData, PortCounters>,
    drops: PerCpuHashMap<MapData, DropKey, Traffic>,
    flood_clocks: Array<MapData, u64>,
}

/// Whether BPF_PROG_TEST_RUN takes a frame. It refuses Ethernet frames that end within their header, and on some kernels
/// (measured on 6.18) IP packets that do, too: `bpf_prog_test_run_skb()` in net/bpf/test_run.c.
pub(crate) fn is_taken(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        None => false,
        Some([0x08, 0x00]) => frame.len() >= 34,
        Some([0x86, 0xdd]) => frame.len() >= 54,
        Some(_) => true,
    }
}

/// Nanoseconds on the clock that `bpf_ktime_get_ns` reads.
pub(crate) fn monotonic() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("read the clock")?;
    Ok(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

/// The interface behind a port, where what the port is sent comes out: the port's own for the host, which is sent to
/// by `BPF_F_INGRESS`, else the other end of its pair.
pub(crate) fn outlet(port: Port, name: &str) -> String {
    if port.is_host() { name.to_owned() } else { format!("{name}-ns") }
}

impl Machine {
    /// Loads the programs and makes an interface for each port, in the calling thread's network namespace.
    pub(crate) fn new(redirect_peer: bool) -> Result<Self> {
        let netlink = Netlink::here()?;
        for end in ENDS.into_iter().chain([&GHOST]) {
            let index = Some(end.id.ifindex());
            let port = VethSpec { name: end.name, index, quiet: true, ..VethSpec::default() };
            let peer = format!("{}-ns", end.name);
            let peer = VethSpec { name: &peer, quiet: true, ..VethSpec::default() };
            netlink.create_veth(&port, &peer, None)?;
            for name in [port.name, peer.name] {
                let link = netlink.link(name)?.with_context(|| format!("find {name}"))?;
                netlink.set_up(link.index)?;
            }
        }
        let mut ebpf = open_object(Features { tcx: true, redirect_peer })?;
        let mut map = |name: &str| ebpf.take_map(name).ok_or_else(|| anyhow!("the object has no map {name}"));
        Ok(Self {
            ports: map(names::PORTS)?.try_into()?,
            networks: map(names::NETWORKS)?.try_into()?,
            stations: map(names::STATIONS)?.try_into()?,
            foreign: map(names::FOREIGN)?.try_into()?,
            addresses: map(names::ADDRESSES)?.try_into()?,
            subnets: map(names::SUBNETS)?.try_into()?,
            counters: map(names::COUNTERS)?.try_into()?,
            drops: map(names::DROPS)?.try_into()?,
            flood_clocks: map(names::FLOOD_CLOCKS)?.try_into()?,
            ebpf,
        })
    }

    /// Instructions that the verifier walked through, by program.
    pub(crate) fn verified_instructions(&mut self) -> Result<Vec<(&'static str, Option<u32>)>> {
        let mut counts = Vec::new();
        for name in names::PROGRAMS {
            counts.push((name, program_in(&mut self.ebpf, name)?.info()?.verified_instruction_count()));
        }
        Ok(counts)
    }

    /// Puts the program of `hook` where it belongs, on the interface of a port, for as long as the machine exists.
    pub(crate) fn attach(&mut self, hook: Hook, interface: &str) -> Result<()> {
        let side = match hook {
            Hook::Namespace => TcAttachType::Ingress,
            Hook::Host => TcAttachType::Egress,
        };
        // Only kernels without tcx (before 6.6) need it; there is no harm in it.
        qdisc_add_clsact(interface)?;
        program_in(&mut self.ebpf, program_of(hook))?.attach(interface, side)?;
        Ok(())
    }

    /// Makes the maps hold what `tables` hold, and nothing else.
    pub(crate) fn fill(&mut self, tables: &MemoryTables) -> Result<()> {
        for id in 0..=LAST_PORT {
            let port = tables.ports.get(&PortId(id)).copied().unwrap_or_default();
            self.ports.set(id.into(), port, 0)?;
            let zeros = PerCpuValues::try_from(vec![PortCounters::default(); cpus()?])?;
            self.counters.set(id.into(), zeros, 0)?;
            let clock = tables.flood_clocks.borrow().get(&PortId(id)).copied().unwrap_or_default();
            self.flood_clocks.set(id.into(), clock, 0)?;
        }
        for id in 0..=LAST_NETWORK {
            let network = tables.networks.get(&NetworkId(id)).copied().unwrap_or_default();
            self.networks.set(id.into(), network, 0)?;
        }
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
            }
            state.counters.insert(PortId(id), sum);
            state.flood_clocks.insert(PortId(id), self.flood_clocks.get(&id.into(), 0)?);
        }
        for entry in self.drops.iter() {
            let (key, cpus) = entry?;
            let sum = state.drops.entry((key.port, key.reason)).or_default();
            cpus.iter().for_each(|one| add(sum, one));
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
        Ok(state.without_zeros())
    }

    /// Runs the program of `hook` on a frame at a port's interface; the frame is not sent on, but its copies are.
    pub(crate) fn run(&mut self, hook: Hook, port: PortId, frame: &[u8], gso_size: u32) -> Result<Ran> {
        let context = context(port, frame.len(), gso_size);
        let mut bytes = vec![0; frame.len() + 64];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut bytes),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = program_in(&mut self.ebpf, program_of(hook))?.test_run(options)?;
        bytes.truncate(result.data_size_out as usize);
        Ok(Ran { action: result.return_value, bytes })
    }
}

fn program_of(hook: Hook) -> &'static str {
    match hook {
        Hook::Namespace => names::FROM_NAMESPACE,
        Hook::Host => names::FROM_HOST,
    }
}

/// `struct __sk_buff` (linux/bpf.h). The kernel takes only a few of its fields from us: `convert___skb_to_skb()` in
/// net/bpf/test_run.c, which refuses a VLAN tag among others.
fn context(port: PortId, length: usize, gso_size: u32) -> [u8; 192] {
    const IFINDEX: usize = 40;
    const GSO_SEGS: usize = 164;
    const GSO_SIZE: usize = 176;
    const LOOPBACK: u32 = 1;
    let mut context = [0; 192];
    let mut set = |at: usize, value: u32| context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    set(IFINDEX, if port == PortId::NONE { LOOPBACK } else { port.ifindex() });
    if gso_size != 0 {
        set(GSO_SIZE, gso_size);
        set(GSO_SEGS, (length as u32).div_ceil(gso_size));
    }
    context
}

fn cpus() -> Result<usize> {
    nr_cpus().map_err(|(file, error)| anyhow!("read {file}: {error}"))
}

fn is_of_world(key: &ForeignKey) -> bool {
    key.port.0 <= LAST_PORT
}

fn add(sum: &mut Traffic, more: &Traffic) {
    sum.packets += more.packets;
    sum.bytes += more.bytes;
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
