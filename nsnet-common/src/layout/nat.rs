//! What the control plane tells the programs about routing and NAT, and the endpoints that NAT holds.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{MAX_PORTS, NetworkId, PortId};
use crate::wire::{IpAddress, IpProtocol};

/// Endpoints that CPUs may have locked at a time: at most one of each kind for a CPU.
pub const MAX_LOCKS: u32 = 4096;
/// Endpoints with a mapping (RFC 4787 section 4.1) on one host; each has two entries.
pub const MAX_MAPPINGS: u32 = 1 << 18;
/// Published entries on one host; a range of ports is one for each family.
pub const MAX_PUBLISHES: u32 = 1 << 14;
/// Ranges are kept as prefixes of port numbers; the worst range has 30.
pub const MAX_PUBLISHED_PREFIXES: u32 = 4 * MAX_PUBLISHES;
/// Uplinks of one host.
pub const MAX_UPLINKS: u32 = 256;

/// Properties of a network, or-ed together.
pub mod policy_flags {
    /// Packets that leave by an uplink get an address of the host's.
    pub const MASQUERADE: u32 = 1 << 0;
    /// There is no way out, and none in.
    pub const INTERNAL: u32 = 1 << 1;
    /// Namespaces of other such networks are reached by their addresses.
    pub const OPEN: u32 = 1 << 2;
    /// A mapped port takes packets from every host that was sent to (RFC 4787 section 5: address-dependent filtering).
    pub const FILTER_BY_ADDRESS: u32 = 1 << 3;
    /// A mapped port takes packets from everybody (endpoint-independent filtering).
    pub const FILTER_NOTHING: u32 = 1 << 4;
    /// What leaves goes up to the host's stack, whose rules decide what becomes of it.
    pub const PUNT: u32 = 1 << 5;
}

/// What a network's packets may do beyond it. Times are in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Policy {
    /// See [`policy_flags`].
    pub flags: u32,
    /// Index of the only interface by which packets may leave; 0 for the one that the host's routes say.
    pub uplink: u32,
    /// Source address of masqueraded packets; `::` for that of the interface they leave by.
    pub source_v4: IpAddress,
    /// The same for IPv6.
    pub source_v6: IpAddress,
    /// First port that a masqueraded flow is given when its own is taken.
    pub first_port: u16,
    /// Last such port.
    pub last_port: u16,
    /// The host's port in the network, which is the gateway.
    pub gateway: PortId,
    /// 0.
    pub pad: u16,
    /// How long an established TCP connection may be idle.
    pub tcp_established: u32,
    /// How long one may be that is being opened or closed.
    pub tcp_transitory: u32,
    /// How long a UDP flow may be idle.
    pub udp: u32,
    /// How long an answered UDP flow to port 53 may be.
    pub dns: u32,
    /// How long an ICMP query may go unanswered.
    pub icmp: u32,
    /// How long flows of other protocols may be idle.
    pub other: u32,
    /// Flows that one namespace may have established.
    pub flows_per_ns: u32,
    /// Ports of the pool, and mapped endpoints, that one namespace may hold.
    pub ports_per_ns: u32,
}

impl Policy {
    /// What a network has when nothing is asked for: routed, not masqueraded.
    ///
    /// Times: RFC 5382 REQ-5 (2 h 4 min, 4 min), RFC 4787 REQ-5 (300 s; shorter for well-known ports), RFC 5508 REQ-2.
    /// Ports: below the range from which Linux gives ports to its own sockets (32768 to 60999).
    pub const DEFAULT: Self = Self {
        flags: 0,
        uplink: 0,
        source_v4: IpAddress::UNSPECIFIED,
        source_v6: IpAddress::UNSPECIFIED,
        first_port: 16384,
        last_port: 32767,
        gateway: PortId::NONE,
        pad: 0,
        tcp_established: 7440,
        tcp_transitory: 240,
        udp: 300,
        dns: 60,
        icmp: 60,
        other: 300,
        flows_per_ns: 1 << 18,
        ports_per_ns: 12288,
    };

    /// Whether the flag is set.
    #[inline(always)]
    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// A published port, or range of ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Publish {
    /// The namespace's address.
    pub target: IpAddress,
    /// The host's first port.
    pub first: u16,
    /// The host's last port.
    pub last: u16,
    /// The port in the namespace that the first one leads to; the others follow.
    pub target_first: u16,
    /// The namespace's port in the dataplane; [`PortId::NONE`] in a free slot.
    pub owner: PortId,
    /// Its network.
    pub network: NetworkId,
    /// Changes whenever the slot is used again: flows made before are not continued.
    pub epoch: u16,
    /// The protocol.
    pub protocol: u8,
    /// 0.
    pub pad: [u8; 3],
}

impl Publish {
    /// The port in the namespace for `port` of the host, when it is one of ours.
    #[inline(always)]
    pub fn target_port(&self, port: u16) -> Option<u16> {
        if self.owner == PortId::NONE || port < self.first || port > self.last {
            return None;
        }
        Some(self.target_first.wrapping_add(port - self.first))
    }
}

/// Key of `PUBLISHED`, a trie: protocol and address whole, of the port as many bits as a range has in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct PublishedKey {
    protocol: u8,
    zero: u8,
    ip: IpAddress,
    port: [u8; 2],
}

impl PublishedKey {
    /// Bits before the port.
    pub const ADDRESS_BITS: u32 = 8 + 8 + 128;
    /// Bits of a whole key.
    pub const BITS: u32 = Self::ADDRESS_BITS + 16;

    /// The key for `port` of the host's address `ip`; 0.0.0.0 (mapped) and :: stand for every address of a family.
    #[inline(always)]
    pub fn new(protocol: IpProtocol, ip: IpAddress, port: u16) -> Self {
        Self { protocol: protocol.0, zero: 0, ip, port: port.to_be_bytes() }
    }

    /// The protocol.
    pub fn protocol(&self) -> IpProtocol {
        IpProtocol(self.protocol)
    }

    /// The host's address.
    pub fn ip(&self) -> IpAddress {
        self.ip
    }

    /// The first port.
    pub fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }
}

/// What an entry of `MAPPINGS` keeps.
pub mod mapping_kinds {
    /// Which endpoint is which on the other side.
    pub const ENDPOINT: u8 = 0;
    /// That the host with this address was sent to from this external port: it may answer from any of its ports, where
    /// the network filters by address only.
    pub const SPOKEN_TO: u8 = 1;
    /// Of no entry: what is locked to end flows whose answers come to this endpoint.
    pub const FLOWS: u8 = 2;
}

/// Key of `MAPPINGS`: an endpoint, on its side.
///
/// A mapping has two entries: inside endpoint to external endpoint, and back. The second one reserves the external port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct MappingKey {
    /// The address.
    pub ip: IpAddress,
    /// The port, network byte order.
    pub port: [u8; 2],
    /// The protocol.
    pub protocol: u8,
    /// What is kept: see [`mapping_kinds`].
    pub kind: u8,
    /// The network of an inside endpoint; [`NetworkId::OUTSIDE`] for an external one.
    pub side: NetworkId,
    /// Of an inside endpoint: which external address it is mapped to, in short. One that sends by two uplinks has two
    /// mappings. Where the short forms of two addresses are the same, they take turns.
    pub external: u16,
}

impl MappingKey {
    /// The key of nothing.
    pub const EMPTY: Self =
        Self { ip: IpAddress::UNSPECIFIED, port: [0; 2], protocol: 0, kind: 0, side: NetworkId::OUTSIDE, external: 0 };

    /// The key of an endpoint outside.
    #[inline(always)]
    pub fn outside(protocol: IpProtocol, ip: IpAddress, port: [u8; 2]) -> Self {
        let (kind, side) = (mapping_kinds::ENDPOINT, NetworkId::OUTSIDE);
        Self { ip, port, protocol: protocol.0, kind, side, external: 0 }
    }

    /// The key of an endpoint in a network that is mapped to the address `external`.
    #[inline(always)]
    pub fn inside(side: NetworkId, protocol: IpProtocol, ip: IpAddress, port: [u8; 2], external: IpAddress) -> Self {
        let IpAddress([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]) = external;
        let external = u16::from_be_bytes([a ^ c ^ e ^ g ^ i ^ k ^ m ^ o, b ^ d ^ f ^ h ^ j ^ l ^ n ^ p]);
        Self { side, external, ..Self::outside(protocol, ip, port) }
    }
}

/// The endpoint on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Mapping {
    /// Its address.
    pub ip: IpAddress,
    /// Its port, network byte order.
    pub port: [u8; 2],
    /// The namespace's port on whose quota it is.
    pub owner: PortId,
    /// Until when the port is its endpoint's alone, seconds of the monotonic clock: the timeout after the last use, and
    /// [`QUARANTINE`].
    pub until: u32,
}

impl MappingKey {
    /// The key that says that the host `ip` was sent to from the external port `port`.
    #[inline(always)]
    pub fn spoken_to(protocol: IpProtocol, ip: IpAddress, port: [u8; 2]) -> Self {
        Self { kind: mapping_kinds::SPOKEN_TO, ..Self::outside(protocol, ip, port) }
    }

    /// What is locked to end flows whose answers come to this endpoint.
    #[inline(always)]
    pub fn flows_of(protocol: IpProtocol, ip: IpAddress, port: [u8; 2]) -> Self {
        Self { kind: mapping_kinds::FLOWS, ..Self::outside(protocol, ip, port) }
    }
}

impl Mapping {
    /// Nobody's.
    pub const EMPTY: Self = Self { ip: IpAddress::UNSPECIFIED, port: [0; 2], owner: PortId::NONE, until: 0 };

    /// Whether the port is still held at `now`.
    #[inline(always)]
    pub fn is_alive(&self, now: u32) -> bool {
        // A difference: the clock may turn over.
        self.until.wrapping_sub(now) <= u32::MAX / 2
    }
}

/// A mapping is refreshed when a flow of it is in use in the next step of this many seconds.
pub const MAPPING_STEP: u32 = 8;
/// How long a mapping's port stays with its endpoint after the last flow's end: the 120 s of RFC 6888 REQ-8, and as much as a
/// flow may have been in use without a note of it in its mapping.
pub const QUARANTINE: u32 = 120 + MAPPING_STEP;

/// What a namespace holds of what is limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Usage {
    /// Established flows.
    pub flows: u64,
    /// Ports.
    pub ports: u64,
}

impl Usage {
    /// Where all established flows of a family are counted: places of the table that no port has.
    #[inline(always)]
    pub const fn total(is_v4: bool) -> PortId {
        if is_v4 { PortId::NONE } else { PortId(MAX_PORTS as u16 - 1) }
    }
}

/// The prefix lengths (in the key's bits) and first ports of the prefixes that make up a range.
pub fn port_prefixes(first: u16, last: u16) -> impl Iterator<Item = (u16, u32)> {
    let mut next = Some(u32::from(first));
    core::iter::from_fn(move || {
        let start = next?;
        let left = u32::from(last) + 1 - start;
        // The largest block that begins here and fits.
        let aligned = if start == 0 { 16 } else { start.trailing_zeros().min(16) };
        let bits = aligned.min(31 - left.leading_zeros());
        let end = start + (1 << bits);
        next = (end <= u32::from(last)).then_some(end);
        Some((start as u16, PublishedKey::ADDRESS_BITS + 16 - bits))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!((size_of::<Policy>(), size_of::<Publish>(), size_of::<PublishedKey>()), (80, 32, 20));
        assert_eq!((size_of::<MappingKey>(), size_of::<Mapping>()), (24, 24));
    }

    #[test]
    fn a_range_is_cut_into_prefixes_that_cover_it_and_nothing_else() {
        for (first, last) in [(80, 80), (8000, 8010), (1, 65535), (0, 65535), (1024, 61023), (65535, 65535)] {
            let mut covered = std::vec::Vec::new();
            for (start, bits) in port_prefixes(first, last) {
                let size = 1u32 << (PublishedKey::BITS - bits);
                covered.extend(u32::from(start)..u32::from(start) + size);
            }
            let wanted: std::vec::Vec<u32> = (u32::from(first)..=u32::from(last)).collect();
            assert_eq!(covered, wanted, "{first}-{last}");
            assert!(port_prefixes(first, last).count() <= 30);
        }
    }

    #[test]
    fn a_range_leads_to_a_range() {
        let publish = Publish { first: 8000, last: 8010, target_first: 80, owner: PortId(2), ..Publish::default() };
        assert_eq!(publish.target_port(8003), Some(83));
        assert_eq!((publish.target_port(7999), publish.target_port(8011)), (None, None));
        assert_eq!(Publish::default().target_port(0), None);
    }
}
