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
mod object;
mod outcome;
mod programs;
mod sockets;
mod words;
mod xdp;
