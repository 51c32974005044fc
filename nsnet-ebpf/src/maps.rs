//! The maps, and the core's view of them. Names and sizes come from `nsnet_common::layout`.

#![expect(unsafe_code, reason = "map values are shared with other CPUs and behind raw pointers")]

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_loop};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, PerCpuHashMap};
use nsnet_common::layout::{
    AddressKey, DropKey, ForeignKey, MAX_ADDRESSES, MAX_DROP_COUNTERS, MAX_NETWORKS, MAX_PORTS, MAX_STATIONS,
    MAX_SUBNETS, Network, NetworkId, Port, PortCounters, PortId, Station, StationKey, SubnetKey, Traffic,
};
use nsnet_common::tables::Tables;
use nsnet_common::verdict::DropReason;
use nsnet_common::wire::{IpAddress, Mac};

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

/// The handle on the tables in the kernel's maps.
#[derive(Clone, Copy)]
pub(crate) struct Maps;

impl Maps {
    #[inline(always)]
    fn count(port: PortId, change: impl FnOnce(&mut PortCounters)) {
        if let Some(counters) = COUNTERS.get_ptr_mut(u32::from(port.0)) {
            // SAFETY: the value is this CPU's own, and programs on one CPU do not interrupt one another at a hook.
            change(unsafe { &mut *counters });
        }
    }
}

/// What `bpf_loop` calls: runs the closure that `step` points to; 1 ends the loop.
unsafe extern "C" fn call_step<F: FnMut() -> bool>(_round: u64, step: *mut F) -> i64 {
    // SAFETY: repeat() passes the closure, which lives on its caller's stack until bpf_loop has returned.
    i64::from(!unsafe { (*step)() })
}

impl Tables for Maps {
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
}
