//! Real traffic, and a verdict on it: what the built-in demo and the project's own tests share.
//!
//! A ping alone proves little about a dataplane. Local packets carry *partial* checksums and segments of up to 64 KB,
//! so a packet path can forward every ping and still corrupt TCP, or lose every UDP datagram. The tools here therefore
//! move bytes that can be verified, in both directions, and read the kernel's own error counters afterwards:
//!
//! | module | question it answers |
//! |---|---|
//! | [`ping`] | does an ICMP echo come back unchanged, and which ICMP errors came instead? |
//! | [`tcp`] | does a stream arrive complete and unchanged, both ways, with segmentation offload in use? |
//! | [`udp`] | does every datagram come back unchanged, also large ones? |
//! | [`gso`] | do datagrams arrive that were cut from one large packet on the way? |
//! | [`raw`] | what exactly arrives on an interface, and what happens to a forged frame? |
//! | [`watch`] | which addresses are seen on an interface? |
//! | [`checksum`] | did the kernel see a wrong checksum anywhere? |
//! | [`offload`] | does it still work when the sender computes checksums and segments itself? |
//! | [`compare`] | how fast is one path relative to another, and is the difference real? |
//!
//! # Which network namespace
//! Nothing here knows how namespaces are made or entered. A function opens its sockets in the network namespace of the
//! *calling thread*, and a server keeps the namespace it was started in. [`compare`], which needs two at a time,
//! takes closures that run something inside each.
//!
//! # Bounds
//! Nothing waits without end: every socket has a timeout, every loop a deadline or a count, and a server stops and
//! joins its threads when it is dropped. No function but those of [`masquerade`]
//! runs an external program.

use std::time::Duration;

pub mod bridge;
pub mod checksum;
pub mod compare;
mod connections;
pub(crate) mod cost;
mod digest;
pub mod gso;
mod host;
pub(crate) mod lane;
pub(crate) mod load;
pub mod masquerade;
pub mod offload;
pub mod ping;
pub(crate) mod quiet;
pub mod random;
pub mod raw;
pub mod stats;
pub mod tcp;
pub mod udp;
pub mod watch;

pub use checksum::ChecksumErrors;
pub use compare::{Comparison, Inside, Measure, Plan, Variant, Workload};
pub use gso::UdpSink;
pub use host::{HOST_IP, Lab, WAN_IP};
pub use offload::{TxOffload, set_tx_offload, tx_offload};
pub use ping::{Pings, Refusal};
pub use raw::{Frame, RawSocket};
pub use stats::Ratio;
pub use tcp::TcpServer;
pub use udp::{UdpEcho, UdpOutcome};
pub use watch::Watch;

/// How long a single connect, read or write may take before it counts as failed: room for the retransmission of a first
/// packet that was lost (RFC 6298: after 1 s), and no more, since a lab has no distance.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often a server's thread looks whether it should stop.
const STOP_INTERVAL: Duration = Duration::from_millis(50);
