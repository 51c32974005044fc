//! The maps, and the core's view of them. Names and sizes come from `nsnet_common::layout`.

#![expect(unsafe_code, reason = "map values are shared with other CPUs and behind raw pointers")]

use core::ffi::c_void;

use aya_ebpf::bindings::{__sk_buff, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::helpers::{
    bpf_for_each_map_elem, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_loop, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, ProgramArray};
use nsnet_common::conntrack;
use nsnet_common::layout::{
    About, AddressKey, DropKey, Flow, Flow4, FlowKey, FlowKey4, FlowState, ForeignKey, Fragment, FragmentKey,
    HELD_BYTES, Held, HeldKey, Holding, MAX_ADDRESSES, MAX_DROP_COUNTERS, MAX_FLOWS_V4, MAX_FLOWS_V6, MAX_FRAGMENTS,
    MAX_HELD, MAX_LOCALS, MAX_MAPPINGS, MAX_NETWORKS, MAX_ORIGINALS, MAX_PORTS, MAX_PUBLISHED_PREFIXES, MAX_PUBLISHES,
    MAX_STATIONS, MAX_SUBNETS, MAX_UPLINKS, MAX_YOUNG_FLOWS, Mapping, MappingKey, Network, NetworkId, Original,
    OriginalKey, Policy, Port, PortCounters, PortId, Publish, PublishedKey, Station, StationKey, SubnetKey, Traffic,
    Usage, names,
};
use nsnet_common::packet::Packet;
use nsnet_common::scratch::Scratch;
use nsnet_common::tables::{Age, FlowEntry, Hop, Inserted, Reclaim, Route, Tables};
use nsnet_common::verdict::DropReason;
use nsnet_common::wire::{Ethernet, IpAddress, IpProtocol, Mac};

use crate::context::refill;
use crate::host;

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
static DROPS: PerCpuHashMap<DropKey, Traffic> = PerCpuHashMap::with_max_entries(MAX_DROP_COUNTERS, BPF_F_NO_PREALLOC);
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

/// The handle on the tables in the kernel's maps, for the frame that is looked at.
#[derive(Clone, Copy)]
pub(crate) struct Maps {
    pub(crate) skb: *mut __sk_buff,
}

/// A flow in a map: one of the two is null.
///
/// Two pointers rather than one and a flag: the verifier follows which map a pointer is from, and not what a flag meant.
#[derive(Clone, Copy)]
pub(crate) struct MapFlow {
    v4: *mut Flow4,
    v6: *mut Flow,
}

impl MapFlow {
    #[inline(always)]
    fn v4(flow: *mut Flow4) -> Self {
        Self { v4: flow, v6: core::ptr::null_mut() }
    }

    #[inline(always)]
    fn v6(flow: *mut Flow) -> Self {
        Self { v4: core::ptr::null_mut(), v6: flow }
    }

    /// What both families have in common.
    #[inline(always)]
    fn about_mut(self) -> *mut About {
        if self.v4.is_null() { self.v6.cast() } else { self.v4.cast() }
    }
}

impl FlowEntry for MapFlow {
    #[inline(always)]
    fn about(self) -> About {
        // SAFETY: the start of a Flow4 or a Flow in a map (v4(), v6()), which stays allocated while the program runs;
        // fields that change under us are words of their own, and any bytes are a value.
        unsafe { *self.about_mut() }
    }

    #[inline(always)]
    fn read(self, flow: &mut Flow) {
        const ABOUT: usize = size_of::<About>() / 8;
        let to: *mut u64 = core::ptr::from_mut(flow).cast();
        // SAFETY: as in about(). Flow and Flow4 are aligned to words and a whole number of them.
        unsafe {
            if self.v4.is_null() {
                copy_words::<{ size_of::<Flow>() / 8 }>(self.v6.cast(), to);
            } else {
                copy_words::<ABOUT>(self.v4.cast(), to);
                // The two addresses are the last word of one, and two words each of the other.
                let [a, b, c, d, e, f, g, h] = self.v4.cast::<u64>().add(ABOUT).read_volatile().to_ne_bytes();
                to.add(ABOUT).write_volatile(0);
                to.add(ABOUT + 1).write_volatile(u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d]));
                to.add(ABOUT + 2).write_volatile(0);
                to.add(ABOUT + 3).write_volatile(u64::from_ne_bytes([0, 0, 0xff, 0xff, e, f, g, h]));
            }
        }
    }

    #[inline(always)]
    fn set_seen(self, now: u32) {
        // SAFETY: as in about(); one aligned word.
        unsafe { (&raw mut (*self.about_mut()).seen).write_volatile(now) };
    }

    #[inline(always)]
    fn set_state(self, state: FlowState, timeout: u32) {
        let about = self.about_mut();
        // SAFETY: as in about(); a byte and a word, between which a reader may see the state with the other's timeout.
        unsafe {
            (&raw mut (*about).timeout).write_volatile(timeout);
            (&raw mut (*about).state).write_volatile(state);
        }
    }

    #[inline(always)]
    fn set_tcp(self, next: u32, acknowledged: u32) {
        let about = self.about_mut();
        // SAFETY: as in about(); two words that are only compared with, each for itself.
        unsafe {
            (&raw mut (*about).next).write_volatile(next);
            (&raw mut (*about).acknowledged).write_volatile(acknowledged);
        }
    }

    #[inline(always)]
    fn set_hop(self, hop: &Hop) {
        let about = self.about_mut();
        // SAFETY: as in about(). A reader that meets half of two MACs sends one frame to nobody, as on a wire.
        unsafe {
            (*about).out = hop.uplink;
            (*about).mtu = hop.mtu;
            (*about).to_mac = hop.to_mac;
            (*about).from_mac = hop.from_mac;
        }
    }
}

/// Not inlined: the compact forms of key and flow are on the stack only while they are needed.
#[inline(never)]
fn insert_flow(age: Age, key: &FlowKey, flow: &Flow) -> Inserted {
    let flags = u64::from(BPF_NOEXIST);
    inserted(if key.is_v4() {
        let (key, flow) = (key.to_v4(), flow.to_v4());
        match age {
            Age::Grown => FLOWS4.insert(key, flow, flags),
            Age::Young => YOUNG4.insert(key, flow, flags),
        }
    } else {
        match age {
            Age::Grown => FLOWS6.insert(key, flow, flags),
            Age::Young => YOUNG6.insert(key, flow, flags),
        }
    })
}

#[inline(never)]
fn remove_flow(age: Age, key: &FlowKey) -> bool {
    if key.is_v4() {
        let key = key.to_v4();
        match age {
            Age::Grown => FLOWS4.remove(key),
            Age::Young => YOUNG4.remove(key),
        }
    } else {
        match age {
            Age::Grown => FLOWS6.remove(key),
            Age::Young => YOUNG6.remove(key),
        }
    }
    .is_ok()
}

/// What the helpers that insert answer.
#[inline(always)]
fn inserted(result: Result<(), i32>) -> Inserted {
    const EEXIST: i32 = -17;
    match result {
        Ok(()) => Inserted::Yes,
        Err(EEXIST) => Inserted::Exists,
        Err(_) => Inserted::Full,
    }
}

/// Copies `N` words. One by one and volatile: else the compiler calls `memmove`, which for BPF is a loop over bytes.
///
/// # Safety
/// Both are aligned, and hold `N` words.
#[inline(always)]
unsafe fn copy_words<const N: usize>(from: *const u64, to: *mut u64) {
    for n in 0..N {
        // SAFETY: the caller's.
        unsafe { to.add(n).write_volatile(from.add(n).read_volatile()) };
    }
}

/// Adds to a word that other CPUs add to.
///
/// By hand, because `core` has no read-modify-write atomics for BPF; the instruction is as old as eBPF.
///
/// # Safety
/// `word` is aligned, in a map, and only ever added to like this.
#[inline(always)]
unsafe fn atomic_add(word: *mut u64, number: i64) {
    // SAFETY: the caller's; the instruction writes these 8 bytes and nothing else.
    unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) word, in(reg) number) };
}

impl Maps {
    #[inline(always)]
    fn count(port: PortId, change: impl FnOnce(&mut PortCounters)) {
        if let Some(counters) = COUNTERS.get_ptr_mut(u32::from(port.0)) {
            // SAFETY: the value is this CPU's own, and programs on one CPU do not interrupt one another at a hook.
            change(unsafe { &mut *counters });
        }
    }
}

/// What `bpf_for_each_map_elem` calls for each flow: ends a dead one.
unsafe extern "C" fn bury4(_map: *mut c_void, key: *const FlowKey4, flow: *const Flow4, maps: *const Maps) -> i64 {
    // SAFETY: the kernel passes an entry of FLOWS4, and reclaim() passes the handle.
    unsafe { bury(&FlowKey::from(*key), &Flow::from(*flow), *maps) }
}

unsafe extern "C" fn bury6(_map: *mut c_void, key: *const FlowKey, flow: *const Flow, maps: *const Maps) -> i64 {
    // SAFETY: the kernel passes an entry of FLOWS6, and reclaim() passes the handle.
    unsafe { bury(&*key, &*flow, *maps) }
}

#[inline(always)]
fn bury(key: &FlowKey, flow: &Flow, maps: Maps) -> i64 {
    if !flow.about.is_alive(maps.seconds()) {
        conntrack::end(key, flow, Age::Grown, maps);
    }
    0
}

/// The same for each mapping.
unsafe extern "C" fn forget(
    _map: *mut c_void,
    key: *const MappingKey,
    mapping: *const Mapping,
    maps: *const Maps,
) -> i64 {
    // SAFETY: the kernel passes an entry of MAPPINGS, and reclaim() passes the handle.
    let (key, mapping, maps) = unsafe { (&*key, &*mapping, *maps) };
    if !mapping.is_alive(maps.seconds()) && maps.remove_mapping(key) && key.side == NetworkId::OUTSIDE {
        maps.add_usage(mapping.owner, 0, -1);
    }
    0
}

/// What `bpf_loop` calls: runs the closure that `step` points to; 1 ends the loop.
unsafe extern "C" fn call_step<F: FnMut() -> bool>(_round: u64, step: *mut F) -> i64 {
    // SAFETY: repeat() passes the closure, which lives on its caller's stack until bpf_loop has returned.
    i64::from(!unsafe { (*step)() })
}

/// What `bpf_for_each_map_elem` calls for each of `LOCALS`: runs the closure behind `search`; 1 ends the walk.
unsafe extern "C" fn call_search<F: FnMut(IpAddress) -> bool>(
    _map: *mut c_void,
    ip: *const IpAddress,
    _one: *mut u8,
    search: *mut Search<F>,
) -> i64 {
    // SAFETY: any_local() passes the search, which lives on its caller's stack until the walk is over; `ip` is a key.
    let (search, ip) = unsafe { (&mut *search, ip.read()) };
    search.is_found = (search.is_it)(ip);
    i64::from(search.is_found)
}

/// A walk over `LOCALS`.
struct Search<F> {
    is_it: F,
    is_found: bool,
}

impl Tables for Maps {
    type Flow = MapFlow;

    #[inline(always)]
    fn port(&self, id: PortId) -> Option<Port> {
        PORTS.get(u32::from(id.0)).copied()
    }

    #[inline(always)]
    fn network(&self, id: NetworkId) -> Option<Network> {
        NETWORKS.get(u32::from(id.0)).copied()
    }

    #[inline(always)]
    fn address(&self, key: &AddressKey) -> Option<PortId> {
        // SAFETY: copied out at once; the 2-byte value is read whole.
        unsafe { ADDRESSES.get(key) }.copied()
    }

    #[inline(always)]
    fn subnet(&self, ip: IpAddress) -> Option<NetworkId> {
        SUBNETS.get(Key::new(128, SubnetKey(ip))).copied()
    }

    #[inline(always)]
    fn station(&self, key: &StationKey) -> Option<Station> {
        // SAFETY: copied out at once. An entry that is replaced meanwhile is freed after a grace period.
        unsafe { STATIONS.get(key) }.copied()
    }

    #[inline(always)]
    fn set_station(&self, key: &StationKey, station: &Station) -> bool {
        STATIONS.insert(key, station, 0).is_ok()
    }

    #[inline(always)]
    fn remove_station(&self, key: &StationKey) {
        // An entry that another CPU has removed first is what was wanted.
        let _gone_already = STATIONS.remove(key);
    }

    #[inline(always)]
    fn foreign(&self, key: &ForeignKey) -> Option<Mac> {
        // SAFETY: copied out at once.
        unsafe { FOREIGN.get(key) }.copied()
    }

    #[inline(always)]
    fn set_foreign(&self, key: &ForeignKey, mac: Mac) -> bool {
        FOREIGN.insert(key, mac, 0).is_ok()
    }

    #[inline(always)]
    fn flood_clock(&self, port: PortId) -> u64 {
        FLOOD_CLOCKS.get(u32::from(port.0)).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn set_flood_clock(&self, port: PortId, clock: u64) {
        if let Some(slot) = FLOOD_CLOCKS.get_ptr_mut(u32::from(port.0)) {
            // SAFETY: one aligned 8-byte store; other CPUs see the old or the new value.
            unsafe { slot.write(clock) };
        }
    }

    #[inline(always)]
    fn refusal_clock(&self, port: PortId) -> u64 {
        REFUSAL_CLOCKS.get(u32::from(port.0)).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn set_refusal_clock(&self, port: PortId, clock: u64) {
        if let Some(slot) = REFUSAL_CLOCKS.get_ptr_mut(u32::from(port.0)) {
            // SAFETY: as in set_flood_clock().
            unsafe { slot.write(clock) };
        }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: takes no pointer.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn repeat<F: FnMut() -> bool>(&self, times: u32, step: &mut F) {
        let callback = call_step::<F> as *mut c_void;
        // SAFETY: callback takes what is passed here, and step outlives the call.
        unsafe { bpf_loop(times, callback, core::ptr::from_mut(step).cast(), 0) };
    }

    #[inline(always)]
    fn count_received(&self, port: PortId, length: u32) {
        Self::count(port, |counters| counters.received.add(length));
    }

    #[inline(always)]
    fn count_sent(&self, port: PortId, length: u32) {
        Self::count(port, |counters| counters.sent.add(length));
    }

    #[inline(always)]
    fn count_flooded(&self, port: PortId) {
        Self::count(port, |counters| counters.flooded += 1);
    }

    #[inline(always)]
    fn count_answered(&self, port: PortId) {
        Self::count(port, |counters| counters.answered += 1);
    }

    #[inline(always)]
    fn count_dropped(&self, port: PortId, reason: DropReason, length: u32) {
        let key = DropKey { port, reason: reason.code() };
        if let Some(traffic) = DROPS.get_ptr_mut(key) {
            // SAFETY: as in count().
            unsafe { &mut *traffic }.add(length);
        } else {
            // The first drop of its kind at this port: the other CPUs' values begin at 0. Out of memory, it goes uncounted.
            let _uncounted = DROPS.insert(key, Traffic { packets: 1, bytes: u64::from(length) }, 0);
        }
    }

    #[inline(always)]
    fn count_passed(&self, uplink: PortId) {
        Self::count(uplink, |counters| counters.passed += 1);
    }

    #[inline(always)]
    fn seconds(&self) -> u32 {
        // SAFETY: takes no pointer.
        (unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000_000) as u32
    }

    #[inline(always)]
    fn policy(&self, id: NetworkId) -> Option<Policy> {
        POLICIES.get(u32::from(id.0)).copied()
    }

    #[inline(always)]
    fn read_policy(&self, id: NetworkId, policy: &mut Policy) -> Result<(), DropReason> {
        *policy = *POLICIES.get(u32::from(id.0)).ok_or(DropReason::UnknownPort)?;
        Ok(())
    }

    #[inline(always)]
    fn flow(&self, age: Age, key: &FlowKey) -> Option<MapFlow> {
        if key.is_v4() {
            let key = key.to_v4();
            match age {
                Age::Grown => FLOWS4.get_ptr_mut(key),
                Age::Young => YOUNG4.get_ptr_mut(key),
            }
            .map(MapFlow::v4)
        } else {
            match age {
                Age::Grown => FLOWS6.get_ptr_mut(key),
                Age::Young => YOUNG6.get_ptr_mut(key),
            }
            .map(MapFlow::v6)
        }
    }

    #[inline(always)]
    fn insert_flow(&self, age: Age, key: &FlowKey, flow: &Flow) -> Inserted {
        insert_flow(age, key, flow)
    }

    #[inline(always)]
    fn remove_flow(&self, age: Age, key: &FlowKey) -> bool {
        remove_flow(age, key)
    }

    #[inline(never)]
    fn reclaim(&self, table: Reclaim) {
        const PAUSE: u64 = 1_000_000_000;
        let now = self.now();
        let Some(last) = RECLAIMED.get_ptr_mut(table as u32) else { return };
        // SAFETY: one aligned word; two CPUs that both find it old both sweep, which is harmless.
        unsafe {
            if now - last.read_volatile() < PAUSE {
                return;
            }
            last.write_volatile(now);
        }
        let (map, callback) = match table {
            Reclaim::Flows4 => ((&raw const FLOWS4).cast(), bury4 as *mut c_void),
            Reclaim::Flows6 => ((&raw const FLOWS6).cast(), bury6 as *mut c_void),
            Reclaim::Mappings => ((&raw const MAPPINGS).cast::<c_void>(), forget as *mut c_void),
        };
        let mut maps = *self;
        // SAFETY: each callback takes what its map holds, and `maps` outlives the call.
        unsafe { bpf_for_each_map_elem(map.cast_mut(), callback, (&raw mut maps).cast(), 0) };
    }

    #[inline(always)]
    fn mapping(&self, key: &MappingKey) -> Option<Mapping> {
        // SAFETY: copied out at once.
        unsafe { MAPPINGS.get(key) }.copied()
    }

    #[inline(always)]
    fn insert_mapping(&self, key: &MappingKey, mapping: &Mapping) -> Inserted {
        inserted(MAPPINGS.insert(key, mapping, u64::from(BPF_NOEXIST)))
    }

    #[inline(always)]
    fn refresh_mapping(&self, key: &MappingKey, until: u32) {
        if let Some(mapping) = MAPPINGS.get_ptr_mut(key) {
            // SAFETY: one aligned word of a value that stays allocated while the program runs.
            unsafe { (&raw mut (*mapping).until).write_volatile(until) };
        }
    }

    #[inline(always)]
    fn remove_mapping(&self, key: &MappingKey) -> bool {
        MAPPINGS.remove(key).is_ok()
    }

    #[inline(always)]
    fn add_usage(&self, owner: PortId, flows: i64, ports: i64) {
        if let Some(usage) = USAGE.get_ptr_mut(u32::from(owner.0)) {
            // SAFETY: aligned words of a value that lives as long as the map; other CPUs only add to them, too.
            unsafe {
                atomic_add(&raw mut (*usage).flows, flows);
                atomic_add(&raw mut (*usage).ports, ports);
            }
        }
    }

    #[inline(always)]
    fn usage(&self, owner: PortId) -> Usage {
        USAGE.get(u32::from(owner.0)).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn published(&self, protocol: IpProtocol, ip: IpAddress, port: u16) -> Option<u32> {
        PUBLISHED.get(Key::new(PublishedKey::BITS, PublishedKey::new(protocol, ip, port))).copied()
    }

    #[inline(always)]
    fn publish(&self, place: u32) -> Option<Publish> {
        PUBLISHES.get(place).copied()
    }

    #[inline(always)]
    fn count_publish_hit(&self, place: u32) {
        if let Some(hits) = PUBLISH_HITS.get_ptr_mut(place) {
            // SAFETY: the value is this CPU's own.
            unsafe { *hits += 1 };
        }
    }

    #[inline(always)]
    fn route(&self, from: u32, key: &FlowKey, hop: &mut Hop) -> Route {
        host::route(self.skb, from, key, hop)
    }

    #[inline(always)]
    fn has_socket(&self, key: &FlowKey) -> bool {
        host::has_socket(self.skb, key)
    }

    #[inline(always)]
    fn keyed_hash(&self, key: &FlowKey, turn: u32) -> u32 {
        host::keyed_hash(key, turn)
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: copied out at once.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn set_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        // Without it the others wait in vain, as after a loss on a wire.
        let _forgotten = FRAGMENTS.insert(key, fragment, 0);
    }

    #[inline(always)]
    fn forget_fragment(&self, key: &FragmentKey) -> bool {
        FRAGMENTS.remove(key).is_ok()
    }

    #[inline(always)]
    fn holding(&self, port: PortId) -> Holding {
        HOLDING.get(u32::from(port.0)).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn set_holding(&self, port: PortId, holding: Holding) {
        if let Some(slot) = HOLDING.get_ptr_mut(u32::from(port.0)) {
            // SAFETY: an aligned word; two CPUs that write at once have one fragment take the other's place.
            unsafe { slot.write(holding) };
        }
    }

    #[inline(never)]
    fn hold(&self, place: HeldKey, key: &FragmentKey, seen: u32, _frame: &impl Packet) -> bool {
        let Some(held) = HELD_HERE.get_ptr_mut(0) else { return false };
        // SAFETY: this CPU's own, and programs on one CPU do not interrupt one another at a hook.
        let held = unsafe { &mut *held };
        // SAFETY: the context is valid.
        let length = unsafe { (*self.skb).len };
        if length <= Ethernet::LEN as u32 || length > HELD_BYTES as u32 {
            return false;
        }
        (held.key, held.seen, held.length) = (*key, seen, length);
        let to = held.bytes.as_mut_ptr().cast();
        // SAFETY: `to` has room for HELD_BYTES, which `length` does not exceed.
        let status = unsafe { bpf_skb_load_bytes(self.skb.cast(), 0, to, length) };
        status == 0 && HELD.insert(place, held, 0).is_ok()
    }

    #[inline(always)]
    fn held(&self, place: HeldKey) -> Option<(FragmentKey, u32)> {
        // SAFETY: copied out at once.
        unsafe { HELD.get(place) }.map(|held| (held.key, held.seen))
    }

    #[inline(never)]
    fn let_go(&self, place: HeldKey, _frame: &mut impl Packet) -> bool {
        // SAFETY: an entry that is replaced meanwhile is a frame as well, whole or half; its receiver's checksum tells.
        let Some(held) = (unsafe { HELD.get(place) }) else { return false };
        let headers = Ethernet::LEN as u32;
        // In bits: the verifier follows these through all that the compiler makes of a comparison.
        let length = (held.length.wrapping_sub(headers + 1) & (HELD_BYTES as u32 - 1)) + 1;
        let bytes = held.bytes.as_ptr();
        // SAFETY: the context is valid, and `bytes` are HELD_BYTES and Ethernet's header.
        let is_written = unsafe {
            refill(self.skb, headers, bytes.add(Ethernet::LEN), length)
                && bpf_skb_store_bytes(self.skb, 0, bytes.cast(), headers, 0) == 0
        };
        is_written && HELD.remove(place).is_ok()
    }

    #[inline(always)]
    fn free(&self, place: HeldKey) -> bool {
        HELD.remove(place).is_ok()
    }

    #[inline(always)]
    fn take_back_received(&self, port: PortId, length: u32) {
        Self::count(port, |counters| counters.received.take_back(length));
    }

    #[inline(always)]
    fn take_back_dropped(&self, port: PortId, reason: DropReason, length: u32) {
        if let Some(traffic) = DROPS.get_ptr_mut(DropKey { port, reason: reason.code() }) {
            // SAFETY: as in count().
            unsafe { &mut *traffic }.take_back(length);
        }
    }

    #[inline(always)]
    fn uplink(&self, ifindex: u32) -> Option<PortId> {
        // SAFETY: copied out at once; the 2-byte value is read whole.
        unsafe { UPLINKS.get(ifindex) }.copied()
    }

    #[inline(always)]
    fn is_local(&self, ip: IpAddress) -> bool {
        LOCALS.get_ptr(ip).is_some()
    }

    #[inline(always)]
    fn any_local<F: FnMut(IpAddress) -> bool>(&self, is_it: &mut F) -> bool {
        let mut search = Search { is_it, is_found: false };
        let callback = call_search::<&mut F> as *mut c_void;
        let map = (&raw const LOCALS).cast_mut().cast();
        // SAFETY: callback takes the keys of this map and what is passed here, and search outlives the call.
        unsafe { bpf_for_each_map_elem(map, callback, (&raw mut search).cast(), 0) };
        search.is_found
    }

    #[inline(always)]
    fn original(&self, key: &OriginalKey) -> Option<Original> {
        // SAFETY: copied out at once. An entry that is used again meanwhile is one of 32,768, for another socket.
        unsafe { ORIGINALS.get(key) }.copied()
    }

    #[inline(always)]
    fn set_original(&self, key: &OriginalKey, original: &Original) {
        if self.original(key).as_ref() != Some(original) {
            // Forgotten, the socket sees the namespace's address, and works.
            let _forgotten = ORIGINALS.insert(key, original, 0);
        }
    }

    #[inline(always)]
    fn forget_original(&self, key: &OriginalKey) {
        // Looking takes no lock, and there is hardly ever one.
        if ORIGINALS.get_ptr(key).is_some() {
            let _gone_already = ORIGINALS.remove(key);
        }
    }
}
