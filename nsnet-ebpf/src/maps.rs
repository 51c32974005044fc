//! The maps. Names and sizes come from `nsnet_common::layout`.

#![expect(unsafe_code, reason = "map values are shared with other CPUs and behind raw pointers")]

mod capture;
mod drops;
mod flows;
mod tables;

use aya_ebpf::bindings::xdp_action::XDP_DROP;
use aya_ebpf::bindings::{__sk_buff, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{HashOfMaps, RingBuf};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, DevMap, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray};
use nsnet_common::layout::{
    AddressKey, Capturing, DropKey, Dropped, Event, Flow, Flow4, FlowKey, FlowKey4, ForeignKey, Fragment, FragmentKey,
    Held, HeldKey, Holding, LastDrop, MAX_ADDRESSES, MAX_DROP_COUNTERS, MAX_FLOWS_V4, MAX_FLOWS_V6, MAX_FRAGMENTS,
    MAX_HELD, MAX_LOCALS, MAX_LOCKS, MAX_MAPPINGS, MAX_NETWORKS, MAX_ORIGINALS, MAX_PORTS, MAX_PUBLISHED_PREFIXES,
    MAX_PUBLISHES, MAX_REASONS, MAX_STATIONS, MAX_SUBNETS, MAX_UPLINKS, MAX_YOUNG_FLOWS, Mapping, MappingKey, Network,
    NetworkId, Original, OriginalKey, Policy, Port, PortCounters, PortId, Publish, PublishedKey, Station, StationKey,
    SubnetKey, Usage, names,
};
use nsnet_common::scratch::Scratch;
use nsnet_common::wire::{IpAddress, Mac};

pub(crate) use self::tables::Maps;

// Hashes allocate an entry when it is made: their limits are for thousands of ports, most hosts have tens.
#[map]
static PORTS: Array<Port> = Array::with_max_entries(MAX_PORTS, 0);
#[map]
static NETWORKS: Array<Network> = Array::with_max_entries(MAX_NETWORKS, 0);
#[map]
static STATIONS: HashMap<StationKey, Station> = HashMap::with_max_entries(MAX_STATIONS, BPF_F_NO_PREALLOC);
#[map]
static FOREIGN: HashMap<ForeignKey, Mac> = HashMap::with_max_entries(MAX_STATIONS, BPF_F_NO_PREALLOC);
#[map]
static ADDRESSES: HashMap<AddressKey, PortId> = HashMap::with_max_entries(MAX_ADDRESSES, BPF_F_NO_PREALLOC);
#[map]
static SUBNETS: LpmTrie<SubnetKey, NetworkId> = LpmTrie::with_max_entries(MAX_SUBNETS, BPF_F_NO_PREALLOC);
#[map]
static COUNTERS: PerCpuArray<PortCounters> = PerCpuArray::with_max_entries(MAX_PORTS, 0);
#[map]
static DROPS: PerCpuHashMap<DropKey, Dropped> = PerCpuHashMap::with_max_entries(MAX_DROP_COUNTERS, BPF_F_NO_PREALLOC);
#[map]
static LAST_DROPS: PerCpuArray<LastDrop> = PerCpuArray::with_max_entries(MAX_REASONS, 0);
/// The rings are made by those who capture: no memory is taken for them before.
#[btf_map]
static RINGS: HashOfMaps<u32, RingBuf<Event, 4096>, 1> = HashOfMaps::new();
#[map]
static CAPTURING: PerCpuArray<Capturing> = PerCpuArray::with_max_entries(1, 0);
#[map]
static FLOOD_CLOCKS: Array<u64> = Array::with_max_entries(MAX_PORTS, 0);
#[map]
static REFUSAL_CLOCKS: Array<u64> = Array::with_max_entries(MAX_PORTS, 0);

#[map]
static UPLINKS: HashMap<u32, PortId> = HashMap::with_max_entries(MAX_UPLINKS, BPF_F_NO_PREALLOC);
#[map]
static POLICIES: Array<Policy> = Array::with_max_entries(MAX_NETWORKS, 0);
#[map]
static FLOWS4: HashMap<FlowKey4, Flow4> = HashMap::with_max_entries(2 * MAX_FLOWS_V4, BPF_F_NO_PREALLOC);
#[map]
static FLOWS6: HashMap<FlowKey, Flow> = HashMap::with_max_entries(2 * MAX_FLOWS_V6, BPF_F_NO_PREALLOC);
#[map]
static YOUNG4: LruHashMap<FlowKey4, Flow4> = LruHashMap::with_max_entries(MAX_YOUNG_FLOWS, 0);
#[map]
static YOUNG6: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(MAX_YOUNG_FLOWS, 0);
#[map]
static MAPPINGS: HashMap<MappingKey, Mapping> = HashMap::with_max_entries(2 * MAX_MAPPINGS, BPF_F_NO_PREALLOC);
/// Made at load: it must never be without room.
#[map]
static LOCKS: HashMap<MappingKey, u8> = HashMap::with_max_entries(MAX_LOCKS, 0);
#[map]
static USAGE: Array<Usage> = Array::with_max_entries(MAX_PORTS, 0);
#[map]
pub(crate) static PUBLISHED: LpmTrie<PublishedKey, u32> =
    LpmTrie::with_max_entries(MAX_PUBLISHED_PREFIXES, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static PUBLISHES: Array<Publish> = Array::with_max_entries(MAX_PUBLISHES, 0);
#[map]
static PUBLISH_HITS: PerCpuArray<u64> = PerCpuArray::with_max_entries(MAX_PUBLISHES, 0);
#[map]
static LOCALS: HashMap<IpAddress, u8> = HashMap::with_max_entries(MAX_LOCALS, BPF_F_NO_PREALLOC);
#[map]
static ORIGINALS: LruHashMap<OriginalKey, Original> = LruHashMap::with_max_entries(MAX_ORIGINALS, 0);
#[map]
pub(crate) static STAGES: ProgramArray = ProgramArray::with_max_entries(names::CALLED.len() as u32, 0);

#[map]
static FRAGMENTS: LruHashMap<FragmentKey, Fragment> = LruHashMap::with_max_entries(MAX_FRAGMENTS, 0);
#[map]
static HELD: LruHashMap<HeldKey, Held> = LruHashMap::with_max_entries(MAX_HELD, 0);
#[map]
static HOLDING: Array<Holding> = Array::with_max_entries(MAX_PORTS, 0);
/// Where an entry of `HELD` is made: it is replaced whole, so that nobody finds half of one.
#[map]
static HELD_HERE: PerCpuArray<Held> = PerCpuArray::with_max_entries(1, 0);
/// The interfaces of ports and uplinks, by their numbers, as far as they take frames of XDP.
#[map]
static XDP_PORTS: DevMap = DevMap::with_max_entries(MAX_PORTS, 0);
#[map]
static ACCELERATED: PerCpuArray<u64> = PerCpuArray::with_max_entries(MAX_PORTS, 0);
#[map]
static RECLAIMED: Array<u64> = Array::with_max_entries(3, 0);
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's workplace, for the frame that is looked at.
#[inline(always)]
pub(crate) fn scratch<'a>() -> Option<&'a mut Scratch> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: programs on one CPU do not interrupt one another at a hook, and each asks once. All zeros, as which the
    // kernel makes it, is a value of every field, and only values are ever written.
    Some(unsafe { &mut *scratch })
}

/// Sends a frame of XDP to a port or uplink.
#[inline(always)]
pub(crate) fn send(to: PortId) -> u32 {
    // Where a port is just leaving the map, the frame is lost like on any wire: it may be written already.
    XDP_PORTS.redirect(u32::from(to.0), u64::from(XDP_DROP)).unwrap_or(XDP_DROP)
}

/// Counts a frame from `port` that TC will not see.
#[inline(always)]
pub(crate) fn count_accelerated(port: PortId) {
    if let Some(count) = ACCELERATED.get_ptr_mut(u32::from(port.0)) {
        // SAFETY: the value is this CPU's own, and programs on one CPU do not interrupt one another at a hook.
        unsafe { *count += 1 };
    }
}

/// Whether somebody captures: every frame is for TC then, which shows it.
#[inline(always)]
pub(crate) fn is_captured() -> bool {
    capture::is_on()
}

/// The VLAN tag that the kernel has taken out of the frame, as on the wire; zeros for none.
///
/// # Safety
/// The context is valid.
#[inline(always)]
unsafe fn tag_of(skb: *mut __sk_buff) -> [u8; 4] {
    // SAFETY: the caller's.
    let (is_present, protocol, tag) = unsafe { ((*skb).vlan_present, (*skb).vlan_proto, (*skb).vlan_tci) };
    if is_present == 0 {
        return [0; 4];
    }
    // The protocol in network byte order, as `skb->vlan_proto` has it; the tag in the host's.
    let ([a, b, ..], [c, d]) = (protocol.to_ne_bytes(), (tag as u16).to_be_bytes());
    [a, b, c, d]
}
