//! The programs of `nsnet bench`: what makes frames, and what counts them. No part of the dataplane.

#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "frames and per-CPU slots are behind raw pointers of the kernel's")]

mod object;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::{TcContext, XdpContext};
use nsnet_common::bench::{SHAPE_V4, SHAPE_V6, Template};

#[map]
static TEMPLATE: Array<Template> = Array::with_max_entries(1, 0);
#[map]
static COUNTED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map]
static NEXT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Two bytes each: Ethernet, IPv4 or IPv6, UDP.
const V4_WORDS: usize = 21;
const V6_WORDS: usize = 31;

/// Writes the next frame of the series and hands it to the stack. Run by BPF_PROG_TEST_RUN with live frames.
#[xdp]
#[expect(clippy::needless_pass_by_value, reason = "the macro's function hands its context over")]
pub(crate) fn generate(ctx: XdpContext) -> u32 {
    let Some(template) = TEMPLATE.get(0) else { return xdp_action::XDP_ABORTED };
    let number = count(&NEXT);
    let (source, destination) = template.ports(number);
    let l4 = [source, destination, 0, template.checksum(source, destination)];
    let written = match template.shape {
        SHAPE_V4 => write::<V4_WORDS>(&ctx, template, Some(l4)),
        SHAPE_V6 => write::<V6_WORDS>(&ctx, template, Some(l4)),
        _ => write::<V4_WORDS>(&ctx, template, None),
    };
    match (written, template.leaves) {
        (false, _) => xdp_action::XDP_ABORTED,
        (true, 0) => xdp_action::XDP_PASS,
        (true, _) => xdp_action::XDP_TX,
    }
}

/// The headers, with the UDP header's words at their end: ports and checksum are taken, the length stays.
#[inline(always)]
fn write<const WORDS: usize>(ctx: &XdpContext, template: &Template, l4: Option<[u16; 4]>) -> bool {
    let start = ctx.data();
    if start + WORDS * 2 > ctx.data_end() {
        return false;
    }
    // SAFETY: the frame is at least as long, as the line above has made sure; nothing else refers to it.
    let words = unsafe { &mut *(start as *mut [u16; WORDS]) };
    let mut place = 0;
    while place < WORDS {
        words[place] = template.header[place];
        place += 1;
    }
    if let Some([source, destination, _, checksum]) = l4 {
        words[WORDS - 4] = source.to_be();
        words[WORDS - 3] = destination.to_be();
        words[WORDS - 1] = checksum.to_be();
    }
    true
}

/// Counts UDP datagrams, and drops them.
#[classifier]
#[expect(clippy::needless_pass_by_value, reason = "the macro's function hands its context over")]
pub(crate) fn sink(ctx: TcContext) -> i32 {
    if udp(&ctx).is_none() {
        return TC_ACT_UNSPEC;
    }
    count(&COUNTED);
    TC_ACT_SHOT
}

/// Sends UDP datagrams back. The checksums stay right: what they sum is the same in another order.
#[classifier]
pub(crate) fn echo(mut ctx: TcContext) -> i32 {
    let Some(addresses) = udp(&ctx) else { return TC_ACT_UNSPEC };
    let done = match addresses {
        Addresses::V4 => swap::<6>(&mut ctx, 0).and(swap::<4>(&mut ctx, 26)).and(swap::<2>(&mut ctx, 34)),
        Addresses::V6 => swap::<6>(&mut ctx, 0).and(swap::<16>(&mut ctx, 22)).and(swap::<2>(&mut ctx, 54)),
    };
    if done.is_none() {
        return TC_ACT_SHOT;
    }
    // SAFETY: a read of the context that the program was called with.
    let ifindex = unsafe { (*ctx.skb.skb).ifindex };
    // SAFETY: takes no pointer.
    unsafe { bpf_redirect(ifindex, 0) as i32 }
}

/// Does nothing.
#[classifier]
pub(crate) fn nothing(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

enum Addresses {
    V4,
    V6,
}

/// Of which family a UDP datagram is. Its headers have no options: it is one of ours.
#[inline(always)]
fn udp(ctx: &TcContext) -> Option<Addresses> {
    const UDP: u8 = 17;
    match u16::from_be(ctx.load(12).ok()?) {
        0x0800 => (ctx.load::<u8>(23).ok()? == UDP).then_some(Addresses::V4),
        0x86dd => (ctx.load::<u8>(20).ok()? == UDP).then_some(Addresses::V6),
        _ => None,
    }
}

/// Exchanges the two fields of `N` bytes that begin at `at`.
#[inline(always)]
fn swap<const N: usize>(ctx: &mut TcContext, at: usize) -> Option<()> {
    let (first, second) = (ctx.load::<[u8; N]>(at).ok()?, ctx.load::<[u8; N]>(at + N).ok()?);
    ctx.store(at, &second, 0).ok()?;
    ctx.store(at + N, &first, 0).ok()
}

/// Adds one to this CPU's slot, and says what it was before.
#[inline(always)]
fn count(slots: &PerCpuArray<u64>) -> u64 {
    let Some(slot) = slots.get_ptr_mut(0) else { return 0 };
    // SAFETY: a slot belongs to its CPU, and these programs do not interrupt one another on it.
    let slot = unsafe { &mut *slot };
    let before = *slot;
    *slot = before.wrapping_add(1);
    before
}
