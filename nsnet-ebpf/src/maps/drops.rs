//! Frames that are dropped: counted, and the last one of each reason kept.
//!
//! A frame is kept when none was in the same jiffy: there are a few hundred of them in a second, and all that a flood pays
//! for in between is to look at the number. (The helper that tells it is two instructions since Linux 5.6.)

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_skb_load_bytes};
use nsnet_common::layout::{DropKey, Dropped, KEPT_BYTES, PortId, Traffic};
use nsnet_common::verdict::DropReason;

use super::{DROPS, LAST_DROPS, tag_of};

/// Counts a frame that is dropped, and keeps it if it is time.
#[inline(always)]
pub(super) fn count(skb: *mut __sk_buff, port: PortId, reason: DropReason, length: u32) {
    let key = DropKey { port, reason: reason.code() };
    if let Some(dropped) = DROPS.get_ptr_mut(key) {
        // SAFETY: the value is this CPU's own, and programs on one CPU do not interrupt one another at a hook.
        let dropped = unsafe { &mut *dropped };
        dropped.traffic.add(length);
        // SAFETY: takes no pointer.
        if dropped.jiffy == unsafe { bpf_jiffies64() } {
            return;
        }
    }
    keep_dropped(skb, u64::from(port.0), u64::from(reason.code()), u64::from(length));
}

/// Keeps the frame as the last one of its reason, if none was in this jiffy: there may be thousands of ports. Counts it, if
/// it is the first one of its kind at its port.
///
/// A global function, which the verifier walks through once, and not once for each place that calls it.
#[unsafe(no_mangle)]
#[cold]
#[unsafe(link_section = ".text")]
#[inline(never)]
extern "C" fn keep_dropped(skb: *mut __sk_buff, port: u64, reason: u64, length: u64) -> u64 {
    let (port, reason) = (PortId(port as u16), reason as u16);
    // SAFETY: they take no pointer.
    let (jiffy, seen) = unsafe { (bpf_jiffies64(), bpf_ktime_get_coarse_ns()) };
    let key = DropKey { port, reason };
    if let Some(dropped) = DROPS.get_ptr_mut(key) {
        // SAFETY: as in count().
        unsafe { ((*dropped).jiffy, (*dropped).seen) = (jiffy, seen) };
    } else {
        // The other CPUs' values begin at 0. Out of memory, it goes uncounted.
        let dropped = Dropped { traffic: Traffic { packets: 1, bytes: length }, seen, jiffy };
        let _uncounted = DROPS.insert(key, dropped, 0);
    }
    let Some(last) = LAST_DROPS.get_ptr_mut(u32::from(reason)) else { return 0 };
    // SAFETY: as in count(); to those who read meanwhile a `seen` of 0 says so. The context is valid, and `bytes` has room
    // for KEPT_BYTES.
    unsafe {
        if (*last).jiffy == jiffy {
            return 0;
        }
        (&raw mut (*last).seen).write_volatile(0);
        let length = (*skb).len;
        ((*last).length, (*last).port, (*last).tag, (*last).jiffy) = (length, port, tag_of(skb), jiffy);
        let to = (&raw mut (*last).bytes).cast();
        // In bits: the verifier follows these.
        let kept = if length >= KEPT_BYTES as u32 { KEPT_BYTES as u32 } else { length & (KEPT_BYTES as u32 - 1) };
        let status = if kept == 0 { -1 } else { bpf_skb_load_bytes(skb.cast(), 0, to, kept) };
        (*last).kept = if status == 0 { kept as u16 } else { 0 };
        (&raw mut (*last).seen).write_volatile(seen);
    }
    0
}
