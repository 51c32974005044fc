//! What the bytes of a frame mean: one file per protocol, each with its fields, view, getters, setters, tests.
//!
//! Views are structs of the wire's own layout (zerocopy), so reading one is a bounds check and no copy.
//! Multi-byte fields are in network byte order behind their types; getters give numbers.

pub mod arp;
pub mod ethernet;
pub mod icmp;
pub mod icmpv6;
pub mod ip;
pub mod ipv4;
pub mod ipv6;
pub mod transport;

pub use ethernet::{EtherType, Ethernet, Mac, Macs};
pub use ip::{IpAddress, IpProtocol};
