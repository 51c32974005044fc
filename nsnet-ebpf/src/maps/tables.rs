//! The core's view of the maps.

use core::ffi::c_void;

use aya_ebpf::bindings::{__sk_buff, BPF_NOEXIST};
use aya_ebpf::helpers::{
    bpf_for_each_map_elem, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_loop, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::maps::lpm_trie::Key;
use nsnet_common::capture::Moment;
use nsnet_common::layout::{
    AddressKey, DropKey, Flow, FlowKey, ForeignKey, Fragment, FragmentKey, HELD_BYTES, HeldKey, Holding, Mapping,
    MappingKey, Network, NetworkId, Original, OriginalKey, Policy, Port, PortCounters, PortId, Publish, PublishedKey,
    Station, StationKey, SubnetKey, Usage, whole_seconds,
};
use nsnet_common::nat;
use nsnet_common::packet::Packet;
use nsnet_common::tables::{Age, Hop, Inserted, Reclaim, Route, Tables};
use nsnet_common::verdict::DropReason;
use nsnet_common::wire::{Ethernet, IpAddress, IpProtocol, Mac};

use super::flows::{MapFlow, bury4, bury6, insert_flow, remove_flow};
use super::{
    ADDRESSES, COUNTERS, DROPS, FLOOD_CLOCKS, FLOWS4, FLOWS6, FOREIGN, FRAGMENTS, HELD, HELD_HERE, HOLDING, LOCALS,
    LOCKS, MAPPINGS, NETWORKS, ORIGINALS, POLICIES, PORTS, PUBLISH_HITS, PUBLISHED, PUBLISHES, RECLAIMED,
    REFUSAL_CLOCKS, STATIONS, SUBNETS, UPLINKS, USAGE, YOUNG4, YOUNG6,
};
use super::{capture, drops};
use crate::context::refill;
use crate::host;

/// The handle on the tables in the kernel's maps, for the frame that is looked at.
#[derive(Clone, Copy)]
pub(crate) struct Maps {
    pub(crate) skb: *mut __sk_buff,
}

/// What the helpers that insert answer.
#[inline(always)]
pub(super) fn inserted(result: Result<(), i32>) -> Inserted {
    const EEXIST: i32 = -17;
    match result {
        Ok(()) => Inserted::Yes,
        Err(EEXIST) => Inserted::Exists,
        Err(_) => Inserted::Full,
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
    /// The tables for a frame of which they need nothing.
    #[inline(always)]
    pub(crate) fn without_frame() -> Self {
        Self { skb: core::ptr::null_mut() }
    }

    #[inline(always)]
    fn count(port: PortId, change: impl FnOnce(&mut PortCounters)) {
        if let Some(counters) = COUNTERS.get_ptr_mut(u32::from(port.0)) {
            // SAFETY: the value is this CPU's own, and programs on one CPU do not interrupt one another at a hook.
            change(unsafe { &mut *counters });
        }
    }
}

/// A walk over a table that removes what is dead.
pub(super) struct Sweep {
    pub(super) maps: Maps,
    /// Seconds.
    pub(super) now: u32,
    left: u32,
}

impl Sweep {
    /// Entries that one walk removes at most: where much is dead it is short.
    const MOST: u32 = 4096;

    /// One more entry was removed; 1 when that is enough.
    #[inline(always)]
    pub(super) fn has_removed(&mut self) -> i64 {
        self.left = self.left.saturating_sub(1);
        i64::from(self.left == 0)
    }
}

/// What `bpf_for_each_map_elem` calls for each mapping.
unsafe extern "C" fn forget(
    _map: *mut c_void,
    key: *const MappingKey,
    mapping: *const Mapping,
    sweep: *mut Sweep,
) -> i64 {
    // SAFETY: the kernel passes an entry of MAPPINGS, and reclaim() passes the sweep.
    let (key, mapping, sweep) = unsafe { (&*key, &*mapping, &mut *sweep) };
    if mapping.is_alive(sweep.now) {
        return 0;
    }
    nat::forget_dead(key, sweep.maps);
    sweep.has_removed()
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
    is_own: *mut u8,
    search: *mut Search<F>,
) -> i64 {
    // SAFETY: any_local() passes the search, which lives on its caller's stack until the walk is over; `ip` is a key, and
    // `is_own` its value.
    let (search, ip, is_own) = unsafe { (&mut *search, ip.read(), *is_own == 1) };
    search.is_found = is_own && (search.is_it)(ip);
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
    fn count_dropped(&self, port: PortId, reason: DropReason, length: u32, _frame: &impl Packet) {
        drops::count(self.skb, port, reason, length);
        capture::show(self.skb, Moment::Dropped(reason), port);
    }

    #[inline(always)]
    fn show(&self, moment: Moment, _frame: &impl Packet) {
        capture::show(self.skb, moment, PortId::NONE);
    }

    #[inline(always)]
    fn count_passed(&self, uplink: PortId) {
        Self::count(uplink, |counters| counters.passed += 1);
    }

    #[inline(always)]
    fn seconds(&self) -> u32 {
        // SAFETY: takes no pointer.
        whole_seconds(unsafe { bpf_ktime_get_coarse_ns() })
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
        let began = self.now();
        let Some(next) = RECLAIMED.get_ptr_mut(table as u32) else { return };
        // SAFETY: one aligned word; two CPUs that both find it over both sweep, which is harmless.
        unsafe {
            if began < next.read_volatile() {
                return;
            }
            next.write_volatile(began + PAUSE);
        }
        let (map, callback) = match table {
            Reclaim::Flows4 => ((&raw const FLOWS4).cast(), bury4 as *mut c_void),
            Reclaim::Flows6 => ((&raw const FLOWS6).cast(), bury6 as *mut c_void),
            Reclaim::Mappings => ((&raw const MAPPINGS).cast::<c_void>(), forget as *mut c_void),
        };
        let mut sweep = Sweep { maps: *self, now: self.seconds(), left: Sweep::MOST };
        // SAFETY: each callback takes what its map holds, and `sweep` outlives the call.
        unsafe { bpf_for_each_map_elem(map.cast_mut(), callback, (&raw mut sweep).cast(), 0) };
        // A million flows that live take long: never more than a twentieth of the time.
        let ended = self.now();
        let pause = if sweep.left == 0 { 0 } else { PAUSE };
        // SAFETY: as above.
        unsafe { next.write_volatile(ended + pause.max(20 * (ended - began))) };
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
    fn lock(&self, key: &MappingKey) -> bool {
        LOCKS.insert(key, 1, u64::from(BPF_NOEXIST)).is_ok()
    }

    #[inline(always)]
    fn unlock(&self, key: &MappingKey) {
        // It is there: only who has locked it unlocks it.
        let _was_there = LOCKS.remove(key);
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
        if let Some(dropped) = DROPS.get_ptr_mut(DropKey { port, reason: reason.code() }) {
            // SAFETY: as in count().
            unsafe { &mut (*dropped).traffic }.take_back(length);
        }
    }

    #[inline(always)]
    fn uplink(&self, ifindex: u32) -> Option<PortId> {
        // SAFETY: copied out at once; the 2-byte value is read whole.
        unsafe { UPLINKS.get(ifindex) }.copied()
    }

    #[inline(always)]
    fn is_local(&self, ip: IpAddress) -> bool {
        // SAFETY: a byte, copied out at once.
        unsafe { LOCALS.get(ip) }.copied() == Some(1)
    }

    #[inline(always)]
    fn is_broadcast(&self, ip: IpAddress) -> bool {
        // SAFETY: as above.
        unsafe { LOCALS.get(ip) }.copied() == Some(0)
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
