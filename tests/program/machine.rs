//! The programs, loaded, with their maps and the interfaces of the world's ports.

mod outside;
mod tables;

use std::collections::HashMap as Wanted;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::time::Duration;

use crate::clock::monotonic;
use anyhow::{Context as _, Result, anyhow, bail};
use aya::Ebpf;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::xdp::DevMap;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap};
use aya::programs::tc::qdisc_add_clsact;
use aya::programs::{SchedClassifier, TcAttachType, TestRun as _, TestRunOptions};
use nsnet::kernel::dataplane::{open_object_with, program_in};
use nsnet::kernel::features::Features;
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::veth::VethSpec;
use nsnet::kernel::xdp::{self, Side};
use nsnet_common::cases::Hook;
use nsnet_common::cases::world::{ENDS, GHOST, SECRET, UPLINK, UPLINK_IFINDEX};
use nsnet_common::layout::{
    AddressKey, DropKey, Dropped, Flow, Flow4, FlowKey, FlowKey4, ForeignKey, Fragment, FragmentKey, Held, HeldKey,
    Holding, MAX_MAPPINGS, Mapping, MappingKey, Network, NetworkId, Policy, Port, PortCounters, PortId, Publish,
    PublishedKey, Station, StationKey, SubnetKey, Usage, names,
};
use nsnet_common::verdict::DropReason;
use nsnet_common::wire::{IpAddress, IpProtocol, Mac};

use self::outside::{Sockets, outside};

/// The index of the interface that every namespace has.
const LOOPBACK: u32 = 1;

/// The same, where the bytes are elsewhere.
pub(crate) struct Seen {
    pub(crate) action: u32,
    pub(crate) length: usize,
    /// That the run took.
    pub(crate) time: Duration,
}

/// Where the kernel tells of an open map.
fn about_of(map: &Map) -> Result<PathBuf> {
    let Map::HashMap(map) = map else { bail!("not a hash") };
    Ok(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()).into())
}

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
    drops: PerCpuHashMap<MapData, DropKey, Dropped>,
    flood_clocks: Array<MapData, u64>,
    refusal_clocks: Array<MapData, u64>,
    policies: Array<MapData, Policy>,
    uplinks: HashMap<MapData, u32, PortId>,
    young_v4: HashMap<MapData, FlowKey4, Flow4>,
    young_v6: HashMap<MapData, FlowKey, Flow>,
    flows_v4: HashMap<MapData, FlowKey4, Flow4>,
    flows_v4_about: PathBuf,
    mappings_about: PathBuf,
    flows_v6: HashMap<MapData, FlowKey, Flow>,
    mappings: HashMap<MapData, MappingKey, Mapping>,
    usage: Array<MapData, Usage>,
    published: LpmTrie<MapData, PublishedKey, u32>,
    publishes: Array<MapData, Publish>,
    publish_hits: PerCpuArray<MapData, u64>,
    fragments: HashMap<MapData, FragmentKey, Fragment>,
    held: HashMap<MapData, HeldKey, Held>,
    holding: Array<MapData, Holding>,
    locals: HashMap<MapData, IpAddress, u8>,
    accelerated: PerCpuArray<MapData, u64>,
    ifindexes: Wanted<PortId, u32>,
    _sockets: Sockets,
}

/// Whether BPF_PROG_TEST_RUN takes a frame. It refuses Ethernet frames that end within their header, and on some kernels
/// (measured on 6.18) IP packets that do, too; and what does not fit into a page beside `struct skb_shared_info`:
/// `bpf_prog_test_run_skb()` and `bpf_test_init()` in net/bpf/test_run.c.
pub(crate) fn is_taken(frame: &[u8]) -> bool {
    const LONGEST: usize = 3600;
    if frame.len() > LONGEST {
        return false;
    }
    match frame.get(12..14) {
        None => false,
        Some([0x08, 0x00]) => frame.len() >= 34,
        Some([0x86, 0xdd]) => frame.len() >= 54,
        Some(_) => true,
    }
}

/// The interface behind a port, where what the port is sent comes out: the port's own for the host, which is sent to
/// by `BPF_F_INGRESS`, else the other end of its pair.
pub(crate) fn outlet(port: Port, name: &str) -> String {
    if port.is_host() { name.to_owned() } else { format!("{name}-ns") }
}

impl Machine {
    /// Loads the programs and makes an interface for each port, in the calling thread's network namespace.
    pub(crate) fn new(redirect_peer: bool) -> Result<Self> {
        Self::with_sizes(redirect_peer, &[])
    }

    /// The same, with these maps of another size.
    pub(crate) fn with_sizes(redirect_peer: bool, sizes: &[(&str, u32)]) -> Result<Self> {
        // The router advertisements of the cases are not for us.
        std::fs::write("/proc/sys/net/ipv6/conf/default/accept_ra", "0")?;
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
        let features =
            Features { tcx: true, redirect_peer, peer_scrubs: true, fib_source: true, cgroup: false, set_retval: true };
        let sockets = outside()?;
        let mut ebpf = open_object_with(features, SECRET, sizes)?;
        xdp::load(&mut ebpf)?;
        let mut devices: DevMap<_> =
            ebpf.map_mut(names::XDP_PORTS).context("the object has no map of devices")?.try_into()?;
        let ports = ENDS.into_iter().filter(|end| end.network != NetworkId::OUTSIDE);
        for (port, ifindex) in ports.map(|end| (end.id, end.id.ifindex())).chain([(UPLINK.id, UPLINK_IFINDEX)]) {
            devices.set(u32::from(port.0), ifindex, None, 0)?;
        }
        let mut map = |name: &str| ebpf.take_map(name).ok_or_else(|| anyhow!("the object has no map {name}"));
        let (flows_v4, mappings) = (map(names::FLOWS4)?, map(names::MAPPINGS)?);
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
            refusal_clocks: map(names::REFUSAL_CLOCKS)?.try_into()?,
            policies: map(names::POLICIES)?.try_into()?,
            uplinks: map(names::UPLINKS)?.try_into()?,
            young_v4: map(names::YOUNG4)?.try_into()?,
            young_v6: map(names::YOUNG6)?.try_into()?,
            flows_v4_about: about_of(&flows_v4)?,
            flows_v4: flows_v4.try_into()?,
            flows_v6: map(names::FLOWS6)?.try_into()?,
            mappings_about: about_of(&mappings)?,
            mappings: mappings.try_into()?,
            usage: map(names::USAGE)?.try_into()?,
            published: map(names::PUBLISHED)?.try_into()?,
            publishes: map(names::PUBLISHES)?.try_into()?,
            publish_hits: map(names::PUBLISH_HITS)?.try_into()?,
            fragments: map(names::FRAGMENTS)?.try_into()?,
            held: map(names::HELD)?.try_into()?,
            holding: map(names::HOLDING)?.try_into()?,
            locals: map(names::LOCALS)?.try_into()?,
            accelerated: map(names::ACCELERATED)?.try_into()?,
            ifindexes: Wanted::new(),
            _sockets: sockets,
            ebpf,
        })
    }

    /// A map that is not among those that are filled and compared.
    pub(crate) fn take_map(&mut self, name: &str) -> Result<Map> {
        self.ebpf.take_map(names::in_object(name)).with_context(|| format!("the object has no map {name}"))
    }

    /// The index of the interface at which [`Machine::run`] has a frame of this port come in.
    pub(crate) fn ifindex(&self, port: PortId) -> u32 {
        let ifindex = self.ifindexes.get(&port).copied().unwrap_or(port.ifindex());
        if port == PortId::NONE { LOOPBACK } else { ifindex }
    }

    /// Instructions that the verifier walked through, by program.
    pub(crate) fn verified_instructions(&mut self) -> Result<Vec<(&'static str, Option<u32>)>> {
        let mut counts = Vec::new();
        for name in names::PROGRAMS {
            counts.push((name, program_in(&mut self.ebpf, name)?.info()?.verified_instruction_count()));
        }
        for name in names::XDP_PROGRAMS {
            counts.push((name, xdp::program_in(&mut self.ebpf, name)?.info()?.verified_instruction_count()));
        }
        Ok(counts)
    }

    /// Puts the program of `hook` where it belongs, on the interface of a port, for as long as the machine exists.
    pub(crate) fn attach(&mut self, hook: Hook, interface: &str) -> Result<()> {
        let side = match hook {
            Hook::Namespace | Hook::Uplink | Hook::Refused(_) => TcAttachType::Ingress,
            Hook::Host => TcAttachType::Egress,
        };
        // Only kernels without tcx (before 6.6) need it; there is no harm in it.
        qdisc_add_clsact(interface)?;
        program_in(&mut self.ebpf, program_of(hook))?.attach(interface, side)?;
        Ok(())
    }

    /// Runs the accelerator's program of `side` on a frame at a port's interface; the frame is not sent on.
    pub(crate) fn accelerate(&mut self, side: Side, port: PortId, frame: &[u8]) -> Result<Ran> {
        let context = xdp_context(self.ifindex(port), frame.len());
        let mut bytes = vec![0; frame.len() + 64];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut bytes),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let result = xdp::program_in(&mut self.ebpf, side.program())?.test_run(options)?;
        bytes.truncate(result.data_size_out as usize);
        Ok(Ran { action: result.return_value, bytes })
    }

    /// How many frames the accelerator has taken of all ports and uplinks.
    pub(crate) fn accelerated(&self) -> Result<u64> {
        let of_port = |id: u16| Ok(self.accelerated.get(&id.into(), 0)?.iter().sum::<u64>());
        (0..=tables::LAST_PORT).map(of_port).sum()
    }

    /// Runs the program of `hook` on a frame, and one that does nothing, in turn; how long each took, in nanoseconds. Each
    /// run is one of its own, since what is sent on is not the same frame any more.
    pub(crate) fn times(
        &mut self,
        hook: Hook,
        port: PortId,
        frame: &[u8],
        nothing: &SchedClassifier,
        runs: usize,
    ) -> Result<Vec<(u64, u64)>> {
        let ifindex = self.ifindexes.get(&port).copied().unwrap_or(port.ifindex());
        let context = context(hook, ifindex, frame.len(), 0);
        let program = program_in(&mut self.ebpf, program_of(hook))?;
        let time = |program: &SchedClassifier| -> Result<u64> {
            let options = TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), ..TestRunOptions::new() };
            Ok(program.test_run(options)?.duration.as_nanos() as u64)
        };
        (0..runs).map(|_| Ok((time(program)?, time(nothing)?))).collect()
    }

    /// Runs the program of `hook` on a frame at a port's interface; the frame is not sent on, but its copies are.
    pub(crate) fn run(&self, hook: Hook, port: PortId, frame: &[u8], gso_size: u32) -> Result<Ran> {
        let mut bytes = vec![0; frame.len() + 64];
        let Seen { action, length, .. } = self.run_into(hook, port, frame, gso_size, &mut bytes)?;
        bytes.truncate(length);
        Ok(Ran { action, bytes })
    }

    /// The same; what has become of the frame is in the first bytes of `room` then.
    pub(crate) fn run_into(
        &self,
        hook: Hook,
        port: PortId,
        frame: &[u8],
        gso_size: u32,
        room: &mut [u8],
    ) -> Result<Seen> {
        let context = context(hook, self.ifindex(port), frame.len(), gso_size);
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(room),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let name = program_of(hook);
        let program = self.ebpf.program(name).with_context(|| format!("the object has no program {name}"))?;
        let program: &SchedClassifier = program.try_into()?;
        let result = program.test_run(options)?;
        Ok(Seen { action: result.return_value, length: result.data_size_out as usize, time: result.duration })
    }

    /// Bytes that the tables of established IPv4 flows and of mappings take, as the kernel counts them.
    pub(crate) fn flow_memory(&self) -> Result<[u64; 2]> {
        let bytes = |about: &PathBuf| -> Result<u64> {
            let text = std::fs::read_to_string(about)?;
            let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
            Ok(line.with_context(|| format!("no memlock in {}", about.display()))?.trim().parse()?)
        };
        Ok([bytes(&self.flows_v4_about)?, bytes(&self.mappings_about)?])
    }

    /// What a port holds; port 0 stands for all flows of IPv4.
    pub(crate) fn usage_of(&self, port: PortId) -> Result<Usage> {
        Ok(self.usage.get(&u32::from(port.0), 0)?)
    }

    /// How many frames of a port were dropped for this reason.
    pub(crate) fn dropped(&self, port: PortId, reason: DropReason) -> Result<u64> {
        match self.drops.get(&DropKey { port, reason: reason.code() }, 0) {
            Ok(cpus) => Ok(cpus.iter().map(|dropped| dropped.traffic.packets).sum()),
            Err(MapError::KeyNotFound) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Sets what a port holds.
    pub(crate) fn set_usage(&mut self, port: PortId, usage: Usage) -> Result<()> {
        Ok(self.usage.set(u32::from(port.0), usage, 0)?)
    }

    /// Has the time of all established flows of IPv4 be over.
    pub(crate) fn kill_flows(&mut self) -> Result<()> {
        for (key, mut flow) in self.flows_v4.iter().collect::<Result<Vec<_>, _>>()? {
            (flow.about.seen, flow.about.timeout) = (flow.about.seen - 2, 0);
            self.flows_v4.insert(key, flow, 0)?;
        }
        Ok(())
    }

    /// Takes every free entry of the mappings, for endpoints of no network that is here.
    pub(crate) fn fill_mappings(&mut self) -> Result<()> {
        let until = (monotonic()? / 1_000_000_000) as u32 + 3600;
        let mapping = Mapping { until, ..Mapping::EMPTY };
        for number in 0..4 * MAX_MAPPINGS {
            let [a, b, c, d] = number.to_be_bytes();
            let endpoint = MappingKey::outside(IpProtocol::UDP, IpAddress::v4([10, 99, a, b]), [c, d]);
            let key = MappingKey { side: NetworkId(99), ..endpoint };
            match self.mappings.insert(key, mapping, 0) {
                Ok(()) => {}
                Err(_no_room) => return Ok(()),
            }
        }
        bail!("the table takes twice the entries that it was made for")
    }

    /// How many entries there are of young flows of IPv4.
    pub(crate) fn count_young(&self) -> Result<usize> {
        Ok(self.young_v4.keys().collect::<Result<Vec<_>, _>>()?.len())
    }
}

fn program_of(hook: Hook) -> &'static str {
    match hook {
        Hook::Namespace => names::FROM_NAMESPACE,
        Hook::Host => names::FROM_HOST,
        Hook::Uplink => names::FROM_UPLINK,
        Hook::Refused(_) => names::REFUSED,
    }
}

/// `struct __sk_buff` (linux/bpf.h). The kernel takes only a few of its fields from us: `convert___skb_to_skb()` in
/// net/bpf/test_run.c, which refuses a VLAN tag among others.
fn context(hook: Hook, ifindex: u32, length: usize, gso_size: u32) -> [u8; 192] {
    const IFINDEX: usize = 40;
    const CONTROL_BLOCK: usize = 48;
    const GSO_SEGS: usize = 164;
    const GSO_SIZE: usize = 176;
    let mut context = [0; 192];
    let mut set = |at: usize, value: u32| context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    set(IFINDEX, ifindex);
    if let Hook::Refused(refusal) = hook {
        set(CONTROL_BLOCK, refusal.as_word());
    }
    if gso_size != 0 {
        set(GSO_SIZE, gso_size);
        set(GSO_SEGS, (length as u32).div_ceil(gso_size));
    }
    context
}

/// `struct xdp_md` (linux/bpf.h).
fn xdp_context(ifindex: u32, length: usize) -> [u8; 24] {
    const DATA_END: usize = 4;
    const IFINDEX: usize = 12;
    let mut context = [0; 24];
    context[DATA_END..DATA_END + 4].copy_from_slice(&(length as u32).to_ne_bytes());
    context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}
