//! The packet core of nsnet: everything that is decided about a frame, and every layout both sides share.
//!
//! It is `no_std` and free of `unsafe` (but [`pod`]), and compiled twice: into the eBPF programs, and for the host,
//! where `cargo test` and the program tests run the same functions over the same frames.
//!
//! ```text
//!   nsnet-ebpf: one program per hook            host: cargo test, program tests
//!            |                                           |
//!            v                                           v
//!   path      from_namespace() from_host()      a packet's life, top to bottom: start reading here
//!     guard   is the sender who it says it is?   (MAC, IPv4, IPv6, ARP, ND, RA and DHCP guard)
//!     switch  where does the frame go?           (FDB, flood, MTU, isolation)
//!       arp, nd   answered here, not flooded
//!       learn     foreign MACs, on ports that allow it
//!     wire    what the bytes mean, one file per protocol
//!   packet    trait Packet: the frame            implemented by TcFrame (BPF) and Buffer (host)
//!   tables    trait Tables: the maps             implemented by Maps (BPF) and MemoryTables (host)
//!   verdict   Verdict and DropReason: every way it can end
//!   layout    map keys, values, names, sizes: once, for both sides
//! ```
//!
//! `path` may call everything; `guard` and `switch` call `wire`, `packet`, `tables`; nothing calls back up.
//!
//! RFCs and standards obeyed: 826 and 5227 (ARP), 791 and 8200 (IP), 4861, 6980 and 7113 (ND and RA guard),
//! 1071 (checksum), IEEE 802.1D-2004 (switching). The line that obeys or departs from one cites it.

#![cfg_attr(not(any(test, feature = "std")), no_std)]
#![deny(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        reason = "a test reports by panicking"
    )
)]

pub mod arp;
#[cfg(any(test, feature = "cases"))]
pub mod cases;
pub mod checksum;
pub mod guard;
pub mod layout;
pub mod learn;
#[cfg(any(test, feature = "std"))]
pub mod memory;
pub mod nd;
pub mod packet;
pub mod path;
pub mod pod;
pub mod switch;
pub mod tables;
pub mod verdict;
pub mod wire;
