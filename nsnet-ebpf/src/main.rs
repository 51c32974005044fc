//! The eBPF programs of nsnet. Each is a hook around one function of `nsnet_common::path`: read that first.
//!
//! Unsafe code is in `context.rs` and `xdp.rs` (the frame), `maps.rs` and below it (the tables), `host.rs` (routes and sockets) and
//! `call.rs` (what a socket asks for) only.

#![no_std]
#![no_main]
// For one instruction, in maps/tables.rs. The compilers that build this crate are nightly, or act like it.
#![feature(asm_experimental_arch)]
#![deny(unsafe_code)]

mod call;
mod context;
mod host;
mod maps;
mod outcome;
mod programs;
mod sockets;
mod words;
mod xdp;

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
