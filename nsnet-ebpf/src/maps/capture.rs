//! What is told about frames to who captures.
//!
//! All of it is off the way of a frame while nobody captures: there it is one word that is looked at ([`show`]).

use core::arch::asm;
use core::cell::UnsafeCell;

use aya_ebpf::bindings::{__sk_buff, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::{
    bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_ringbuf_reserve, bpf_ringbuf_submit, bpf_skb_load_bytes,
};
use nsnet_common::capture::Moment;
use nsnet_common::layout::{Capture, Event, MAX_SNAPLEN, PortId, names};

use super::{CAPTURING, RINGS, tag_of};

/// What is captured; user space writes it while the programs run.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".data.capture")]
static CAPTURE: Shared = Shared(UnsafeCell::new(Capture::OFF));
const _: () = assert!(matches!(names::CAPTURE_SECTION.as_bytes(), b".data.capture"));

#[repr(transparent)]
struct Shared(UnsafeCell<Capture>);

// SAFETY: its words are read and written one by one, volatile, and any mixture of two values is one.
unsafe impl Sync for Shared {}

/// Reads or writes a word of [`CAPTURE`].
macro_rules! word {
    ($field:ident) => {
        // SAFETY: an aligned word of our own static.
        unsafe { (&raw const (*CAPTURE.0.get()).$field).read_volatile() }
    };
    ($field:ident = $value:expr) => {
        // SAFETY: as above.
        unsafe { (&raw mut (*CAPTURE.0.get()).$field).write_volatile($value) }
    };
}

/// Whether somebody captures, or was killed while he did and nothing was to be shown since.
#[inline(always)]
pub(super) fn is_on() -> bool {
    word!(until) != 0
}

/// Shows the frame to who captures; `port` is where it is counted, if that is not where it came in.
#[inline(always)]
pub(super) fn show(skb: *mut __sk_buff, moment: Moment, port: PortId) {
    if word!(until) != 0 {
        // In two words: the stack on the way to here is nearly full.
        let what = u64::from(moment.kind()) | u64::from(moment.reason()) << 16 | u64::from(port.0) << 32;
        tell(skb, what, moment.egress());
    }
}

/// Tells who captures of a frame: `what` is the moment's kind, the reason in the second 16 bits, the port in the third.
///
/// A global function, which the verifier walks through once, and not once for each place that calls it.
#[unsafe(no_mangle)]
#[cold]
#[unsafe(link_section = ".text")]
#[inline(never)]
extern "C" fn tell(skb: *mut __sk_buff, what: u64, egress: u32) -> u64 {
    // SAFETY: takes no pointer.
    let time = unsafe { bpf_ktime_get_ns() };
    if time >= word!(until) {
        // Whoever captured was killed. Should he be renewing it just now, that is lost, but not the next time.
        word!(until = 0);
        return 0;
    }
    let Some(capturing) = CAPTURING.get_ptr_mut(0) else { return 0 };
    // SAFETY: the value is this CPU's own, and programs on one CPU do not interrupt one another at a hook.
    let capturing = unsafe { &mut *capturing };
    let Some(number) = capturing.number(word!(modes), what as u16) else { return 0 };
    let Some(event) = write(skb) else {
        capturing.lost = capturing.lost.wrapping_add(1);
        // What was not shown before is not shown after.
        capturing.open = 0;
        return 0;
    };
    // SAFETY: write() has reserved an event at least, and submit() gives it away.
    unsafe {
        (*event).time = time;
        (*event).number = number;
        (*event).egress = egress;
        (*event).kind = what as u16;
        (*event).reason = (what >> 16) as u16;
        (*event).port = PortId((what >> 32) as u16);
        bpf_ringbuf_submit(event.cast(), u64::from(BPF_RB_NO_WAKEUP));
    }
    0
}

/// Takes room in the ring and writes what is said of the frame itself, and its first bytes; `None` when there is no room.
#[inline(always)]
fn write(skb: *mut __sk_buff) -> Option<*mut Event> {
    // SAFETY: the context is valid.
    let length = unsafe { (*skb).len };
    let wanted = u64::from(length.min(word!(snaplen)).min(MAX_SNAPLEN));
    // How much is taken must be known to the verifier: to it each of these is a way of its own.
    let room = if wanted <= ROOMS[0] {
        ROOMS[0]
    } else if wanted <= ROOMS[1] {
        ROOMS[1]
    } else if wanted <= ROOMS[2] {
        ROOMS[2]
    } else {
        u64::from(MAX_SNAPLEN)
    };
    // In bits, and by hand: the verifier looks at the number that is passed on, and the compiler would compare another one
    // that it knows to be equal.
    let mut captured = wanted;
    // SAFETY: the instruction changes this number and nothing else.
    unsafe { asm!("{0} &= {1}", inlateout(reg) captured, in(reg) room, options(pure, nomem, nostack)) };
    if captured == 0 {
        return None;
    }
    // SAFETY: a map that is in the map stays until the program has ended.
    let ring = core::ptr::from_ref(unsafe { RINGS.get(&0) }?).cast_mut().cast();
    // SAFETY: the ring is one of ours.
    let event: *mut Event = unsafe { bpf_ringbuf_reserve(ring, size_of::<Event>() as u64 + 1 + room, 0) }.cast();
    if event.is_null() {
        return None;
    }
    // SAFETY: there is room for an event and as many bytes. The context is valid, and so is what it says.
    unsafe {
        (*event).length = length;
        (*event).ifindex = (*skb).ifindex;
        (*event).tag = tag_of(skb);
        (*event).cpu = bpf_get_smp_processor_id() as u32;
        (*event).gso_size = (*skb).gso_size as u16;
        let status = bpf_skb_load_bytes(skb.cast(), 0, event.add(1).cast(), captured as u32);
        (*event).captured = if status == 0 { captured as u32 } else { 0 };
    }
    Some(event)
}

/// For how many bytes of a frame room is taken, if not for all that may be asked for. Powers of two less one.
const ROOMS: [u64; 3] = [(1 << 8) - 1, (1 << 11) - 1, (1 << 14) - 1];
const _: () = assert!((MAX_SNAPLEN + 1).is_power_of_two());
