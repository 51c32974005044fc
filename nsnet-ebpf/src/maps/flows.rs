//! Flows in the maps: one of IPv4 in 56 bytes, one of IPv6 in 80, both read as one.

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_NOEXIST;
use nsnet_common::conntrack;
use nsnet_common::layout::{About, Flow, Flow4, FlowKey, FlowKey4, FlowState, flow_flags};
use nsnet_common::tables::{Age, FlowEntry, Hop, Inserted};

use super::tables::{Sweep, inserted};
use super::{FLOWS4, FLOWS6, YOUNG4, YOUNG6};

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
    pub(super) fn v4(flow: *mut Flow4) -> Self {
        Self { v4: flow, v6: core::ptr::null_mut() }
    }

    #[inline(always)]
    pub(super) fn v6(flow: *mut Flow) -> Self {
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
            (*about).macs.to = hop.to_mac;
            (*about).macs.from = hop.from_mac;
        }
    }
}

/// Not inlined: the compact forms of key and flow are on the stack only while they are needed.
#[inline(never)]
pub(super) fn insert_flow(age: Age, key: &FlowKey, flow: &Flow) -> Inserted {
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
pub(super) fn remove_flow(age: Age, key: &FlowKey) -> bool {
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

/// Whether a sweep leaves an entry alone. One of answers goes with its opener's: it may be old and the flow alive, and to ask
/// the opener's for each of a million takes long.
#[inline(always)]
fn is_left(about: &About, now: u32) -> bool {
    about.has(flow_flags::REPLY) || about.is_alive(now)
}

/// What `bpf_for_each_map_elem` calls for each flow: ends a dead one. 1 ends the walk.
pub(super) unsafe extern "C" fn bury4(
    _map: *mut c_void,
    key: *const FlowKey4,
    flow: *const Flow4,
    sweep: *mut Sweep,
) -> i64 {
    // SAFETY: the kernel passes an entry of FLOWS4, and reclaim() passes the sweep.
    let (key, flow, sweep) = unsafe { (&*key, &*flow, &mut *sweep) };
    if is_left(&flow.about, sweep.now) {
        return 0;
    }
    let mut wide = FlowKey::EMPTY;
    widen(key, &mut wide);
    conntrack::end_dead(&wide, Age::Grown, sweep.maps);
    sweep.has_removed()
}

/// Not inlined: the bytes that it moves are on the stack only while they are needed.
#[inline(never)]
fn widen(key: &FlowKey4, to: &mut FlowKey) {
    *to = FlowKey::from(*key);
}

/// The same for IPv6.
pub(super) unsafe extern "C" fn bury6(
    _map: *mut c_void,
    key: *const FlowKey,
    flow: *const Flow,
    sweep: *mut Sweep,
) -> i64 {
    // SAFETY: as above, of FLOWS6.
    let (key, flow, sweep) = unsafe { (&*key, &*flow, &mut *sweep) };
    if is_left(&flow.about, sweep.now) {
        return 0;
    }
    conntrack::end_dead(key, Age::Grown, sweep.maps);
    sweep.has_removed()
}
