//! The eBPF programs of nsnet. Each is a hook around one function of `nsnet_common::path`: read that first.
//!
//! Unsafe code is in `context.rs` (the frame) and `maps.rs` (the tables) only.

#![no_std]
#![no_main]
#![deny(unsafe_code)]

mod context;
mod maps;
mod outcome;

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use nsnet_common::path;

use crate::context::{Hook, TcFrame};
use crate::maps::Maps;

/// Ingress of the host end of a namespace's veth: what a namespace sends.
#[classifier]
pub fn from_namespace(ctx: TcContext) -> i32 {
    let mut frame = TcFrame::new(&ctx, Hook::Ingress);
    let port = frame.port();
    let outcome = path::from_namespace(&mut frame, port, Maps);
    outcome::act(&mut frame, outcome)
}

/// Egress of a network's own interface: what the host sends to the network.
#[classifier]
pub fn from_host(ctx: TcContext) -> i32 {
    let mut frame = TcFrame::new(&ctx, Hook::Egress);
    let port = frame.port();
    let outcome = path::from_host(&mut frame, port, Maps);
    // Never TC_ACT_OK: what this program lets pass would reach the unused end of the interface's veth pair.
    outcome::act(&mut frame, outcome)
}

/// Helpers such as `bpf_redirect_peer` are for programs under a GPL-compatible licence.
#[expect(unsafe_code, reason = "a link section is the only way to state a program's licence")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// No code here can panic: the verifier refuses a program that could get to this loop.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
