//! Packet bytes in words. A header is at any address, which BPF may read a word from and Rust may not: left to the compiler,
//! each byte of it is fetched for itself.

#![expect(unsafe_code, reason = "instructions that the compiler does not make of misaligned accesses")]

use core::arch::asm;
use core::mem::{MaybeUninit, size_of};

use nsnet_common::packet::Wire;

/// Copies a `T` from a packet.
///
/// # Safety
/// There are as many bytes at `from`.
#[inline(always)]
pub(crate) unsafe fn fetch<T: Wire + Copy>(from: *const u8) -> T {
    let mut copy = MaybeUninit::<T>::uninit();
    let to = copy.as_mut_ptr().cast::<u8>();
    let mut at = 0;
    // SAFETY: the caller's, for each of the pieces; the writes need no alignment. All bytes of the copy are written, and any
    // bytes are a T.
    unsafe {
        while at + 4 <= size_of::<T>() {
            let word: u64;
            asm!("{0} = *(u32 *)({1} + 0)", out(reg) word, in(reg) from.add(at), options(pure, readonly, nostack));
            to.add(at).cast::<u32>().write_unaligned(word as u32);
            at += 4;
        }
        if at + 2 <= size_of::<T>() {
            let half: u64;
            asm!("{0} = *(u16 *)({1} + 0)", out(reg) half, in(reg) from.add(at), options(pure, readonly, nostack));
            to.add(at).cast::<u16>().write_unaligned(half as u16);
            at += 2;
        }
        if at < size_of::<T>() {
            to.add(at).write(from.add(at).read());
        }
        copy.assume_init()
    }
}

/// Writes `value` to a packet.
///
/// # Safety
/// There are as many bytes at `to`.
#[inline(always)]
pub(crate) unsafe fn put<T>(value: &T, to: *mut u8) {
    let from = core::ptr::from_ref(value).cast::<u8>();
    let mut at = 0;
    // SAFETY: the caller's, for each of the pieces; the reads need no alignment.
    unsafe {
        while at + 4 <= size_of::<T>() {
            let word = from.add(at).cast::<u32>().read_unaligned();
            asm!("*(u32 *)({0} + 0) = {1}", in(reg) to.add(at), in(reg) u64::from(word), options(nostack));
            at += 4;
        }
        if at + 2 <= size_of::<T>() {
            let half = from.add(at).cast::<u16>().read_unaligned();
            asm!("*(u16 *)({0} + 0) = {1}", in(reg) to.add(at), in(reg) u64::from(half), options(nostack));
            at += 2;
        }
        if at < size_of::<T>() {
            to.add(at).write(from.add(at).read());
        }
    }
}
