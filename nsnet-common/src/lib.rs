//! The packet core of nsnet: everything that is decided about a frame, and every layout both sides share.
//!
//! It is `no_std` and free of `unsafe` (but [`pod`]), and compiled twice: into the eBPF programs, and for the host,
//! where `cargo test` and the program tests run the same functions over the same frames.
//!
//! ```text
//!   nsnet-ebpf: one program per hook            host: cargo test, program tests
//!            |                                           |
//!            v                                           v
//!   path      from_namespace() from_host() from_uplink(), and the stages: start reading here
//!     guard   is the sender who it says it is?   (MAC, IPv4, IPv6, ARP, ND, RA and DHCP guard)
//!     switch  where does the frame go?           (FDB, flood, MTU, isolation)
//!       arp, nd   answered here, not flooded
//!       learn     foreign MACs, on ports that allow it
//!     route   out of the network and in again: by a known flow, or
//!       open      may the packet open one, and where to?    publish   a published port    nat   an external port
//!       conntrack the flows themselves      rewrite   a packet becomes what its flow says     icmp   errors about flows
//!       fragment  those without ports follow the one that has them; long packets are cut
//!       refuse, quote   what is dropped and better told      datagram, scratch   a packet's tuple, and its workplace
//!     wire    what the bytes mean, one file per protocol
//!   accelerated   the same for the frames that most are, before there is a buffer: else it leaves them to `path`
//!   socket    redirect() original() is_reserved()  published ports for the host's own sockets
//!   capture   which frames are shown to who captures, and when
//!   sweep     end()              what a process found dead ends as if a packet had met it
//!   packet    trait Packet: the frame            implemented by TcFrame (BPF) and Buffer (host)
//!   tables    trait Tables: the maps             implemented by Maps (BPF) and MemoryTables (host)
//!   verdict   Verdict and DropReason: every way it can end
//!   layout    map keys, values, names, sizes: once, for both sides
//! ```
//!
//! `path` and `accelerated` may call everything; the others call `wire`, `packet`, `tables` and what stands below them; nothing calls back up.
//!
//! RFCs and standards obeyed: 826 and 5227 (ARP), 791 and 8200 (IP), 792, 1812 and 4443 (ICMP errors), 4861, 6980 and 7113 (ND and RA guard),
//! 1071 and 1624 (checksum), 4787, 5382, 5508, 6146, 7857 (NAT), 1812 and 4443 (router, ICMP), IEEE 802.1D-2004 (switching). The line that obeys or departs from one cites it.

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

pub mod accelerated;
pub mod arp;
pub mod bench;
pub mod capture;
#[cfg(any(test, feature = "cases"))]
pub mod cases;
pub mod checksum;
pub mod conntrack;
pub mod datagram;
pub mod fragment;
pub mod guard;
pub mod hash;
pub mod icmp;
pub mod layout;
pub mod learn;
#[cfg(any(test, feature = "std"))]
pub mod memory;
pub mod nat;
pub mod nd;
pub mod open;
pub mod packet;
pub mod path;
pub mod pod;
pub mod publish;
pub mod quote;
pub mod refuse;
pub mod rewrite;
pub mod route;
pub mod scratch;
pub mod socket;
#[cfg(any(test, feature = "std"))]
pub mod state;
pub mod sweep;
pub mod switch;
pub mod tables;
pub mod verdict;
pub mod wire;
