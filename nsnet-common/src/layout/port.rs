//! A port's entry in `PORTS`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{NetworkId, PortId};
use crate::wire::Mac;

/// Properties of a port, or-ed together.
pub mod flags {
    /// The network's own interface in the host.
    pub const HOST: u16 = 1 << 0;
    /// Frames from foreign MACs are accepted, and the MACs learned.
    pub const LEARN: u16 = 1 << 1;
    /// Senders are not checked: neither MAC nor addresses.
    pub const TRUSTED: u16 = 1 << 2;
    /// The network has an IPv6 subnet.
    pub const IPV6: u16 = 1 << 3;
    /// An uplink: an interface of the host's that is no port of a network, with an index of the kernel's choosing.
    pub const UPLINK: u16 = 1 << 4;
    /// Frames that are no buffers yet may be sent there (XDP).
    pub const XDP: u16 = 1 << 5;
    /// Those of several pieces, too.
    pub const XDP_PIECES: u16 = 1 << 6;
    /// Between two such ports of a network nothing passes (the kernel's BR_ISOLATED).
    pub const ISOLATED: u16 = 1 << 7;
}

/// One port: all that is needed to judge a frame from it and to deliver a frame to it.
///
/// Kept in words of 8 bytes, because a frame copies two ports: as single fields the compiler moves them two bytes at a
/// time, through the stack, twice (20 moves for 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Port {
    /// MAC (6 bytes), flags (2).
    who: u64,
    /// IPv4 address (4), network (2), next port (2).
    place: u64,
    /// IPv6 address.
    ipv6: [u64; 2],
    /// Id (2), MTU (2), interface index (4) of an uplink.
    size: u64,
}

impl Port {
    /// A port with no address and no neighbour in the network's list. `mtu` counts the bytes after the Ethernet header.
    pub fn new(id: PortId, network: NetworkId, mac: Mac, mtu: u16, flags: u16) -> Self {
        let Mac([a, b, c, d, e, f]) = mac;
        let [g, h] = flags.to_ne_bytes();
        let ([i, j], [k, l]) = (id.0.to_ne_bytes(), mtu.to_ne_bytes());
        let who = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        let size = u64::from_ne_bytes([i, j, k, l, 0, 0, 0, 0]);
        Self { who, size, ..Self::default() }.placed([0; 4], network, PortId::NONE)
    }

    /// The same port with its first IPv4 and IPv6 address (the others are in `ADDRESSES` only).
    #[must_use]
    pub fn with_addresses(self, ipv4: Option<[u8; 4]>, ipv6: Option<[u8; 16]>) -> Self {
        let ipv6 = zerocopy::transmute!(ipv6.unwrap_or_default());
        Self { ipv6, ..self.placed(ipv4.unwrap_or_default(), self.network(), self.next()) }
    }

    /// An uplink: the interface `ifindex`, with its first addresses.
    pub fn uplink(id: PortId, ifindex: u32, mac: Mac, mtu: u16, ipv4: Option<[u8; 4]>, ipv6: Option<[u8; 16]>) -> Self {
        let port = Self::new(id, NetworkId::OUTSIDE, mac, mtu, flags::UPLINK).with_addresses(ipv4, ipv6);
        let ([i, j], [k, l], [m, n, o, p]) = (id.0.to_ne_bytes(), mtu.to_ne_bytes(), ifindex.to_ne_bytes());
        Self { size: u64::from_ne_bytes([i, j, k, l, m, n, o, p]), ..port }
    }

    /// The same port with these flags besides its own.
    #[must_use]
    pub fn with(self, more: u16) -> Self {
        let [a, b, c, d, e, f, ..] = self.who.to_ne_bytes();
        let [g, h] = (self.flags() | more).to_ne_bytes();
        Self { who: u64::from_ne_bytes([a, b, c, d, e, f, g, h]), ..self }
    }

    fn placed(self, ipv4: [u8; 4], network: NetworkId, next: PortId) -> Self {
        let [a, b, c, d] = ipv4;
        let ([e, f], [g, h]) = (network.0.to_ne_bytes(), next.0.to_ne_bytes());
        Self { place: u64::from_ne_bytes([a, b, c, d, e, f, g, h]), ..self }
    }

    /// The same port, followed by `next` in its network's list.
    #[must_use]
    pub fn followed_by(self, next: PortId) -> Self {
        self.placed(self.ipv4(), self.network(), next)
    }

    /// What is left in the array when a port is taken out: no port, but the way to the next for a flood that has just
    /// come by.
    #[must_use]
    pub fn removed(self) -> Self {
        Self::default().placed([0; 4], self.network(), self.next())
    }

    /// The port's number; [`PortId::NONE`] in an array slot that holds no port.
    #[inline(always)]
    pub fn id(&self) -> PortId {
        let [a, b, ..] = self.size.to_ne_bytes();
        PortId(u16::from_ne_bytes([a, b]))
    }

    /// The index of its interface in the host.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        let [.., a, b, c, d] = self.size.to_ne_bytes();
        if self.is_uplink() { u32::from_ne_bytes([a, b, c, d]) } else { self.id().ifindex() }
    }

    /// Whether it is an uplink and no port of a network.
    #[inline(always)]
    pub fn is_uplink(&self) -> bool {
        self.flags() & flags::UPLINK != 0
    }

    /// The network that the port belongs to.
    #[inline(always)]
    pub fn network(&self) -> NetworkId {
        let [.., a, b, _, _] = self.place.to_ne_bytes();
        NetworkId(u16::from_ne_bytes([a, b]))
    }

    /// The MAC of the interface behind the port.
    #[inline(always)]
    pub fn mac(&self) -> Mac {
        let [a, b, c, d, e, f, ..] = self.who.to_ne_bytes();
        Mac([a, b, c, d, e, f])
    }

    /// The first IPv4 address; 0.0.0.0 for none.
    #[inline(always)]
    pub fn ipv4(&self) -> [u8; 4] {
        let [a, b, c, d, ..] = self.place.to_ne_bytes();
        [a, b, c, d]
    }

    /// The first IPv6 address; `::` for none.
    #[inline(always)]
    pub fn ipv6(&self) -> [u8; 16] {
        zerocopy::transmute!(self.ipv6)
    }

    /// The longest frame the port takes, without the Ethernet header, bytes.
    #[inline(always)]
    pub fn mtu(&self) -> u32 {
        let [_, _, a, b, ..] = self.size.to_ne_bytes();
        u32::from(u16::from_ne_bytes([a, b]))
    }

    /// The next port of the same network; [`PortId::NONE`] for the last.
    #[inline(always)]
    pub fn next(&self) -> PortId {
        let [.., a, b] = self.place.to_ne_bytes();
        PortId(u16::from_ne_bytes([a, b]))
    }

    /// Whether this is the network's own interface in the host.
    #[inline(always)]
    pub fn is_host(&self) -> bool {
        self.flags() & flags::HOST != 0
    }

    /// Whether foreign MACs are learned here.
    #[inline(always)]
    pub fn learns(&self) -> bool {
        self.flags() & flags::LEARN != 0
    }

    /// Whether the sender's addresses go unchecked.
    #[inline(always)]
    pub fn is_trusted(&self) -> bool {
        self.flags() & flags::TRUSTED != 0
    }

    /// Whether nothing passes between this port and others that are isolated, too.
    #[inline(always)]
    pub fn is_isolated(&self) -> bool {
        self.flags() & flags::ISOLATED != 0
    }

    /// Whether nothing may pass between this port and `other`, of the same network.
    #[inline(always)]
    pub fn is_kept_from(&self, other: &Self) -> bool {
        self.is_isolated() && other.is_isolated()
    }

    /// Whether IPv6 is spoken here.
    #[inline(always)]
    pub fn has_ipv6(&self) -> bool {
        self.flags() & flags::IPV6 != 0
    }

    /// The flags, see [`flags`].
    #[inline(always)]
    pub fn flags(&self) -> u16 {
        let [.., a, b] = self.who.to_ne_bytes();
        u16::from_ne_bytes([a, b])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_keeps_what_it_is_made_of() {
        let port = Port::new(PortId(3), NetworkId(2), Mac([2, 0, 2, 0, 3, 9]), 1400, flags::LEARN | flags::IPV6)
            .with_addresses(Some([10, 0, 0, 1]), Some([0xfd; 16]))
            .followed_by(PortId(7));
        assert_eq!((port.id(), port.network(), port.next()), (PortId(3), NetworkId(2), PortId(7)));
        assert_eq!((port.mac(), port.mtu()), (Mac([2, 0, 2, 0, 3, 9]), 1400));
        assert_eq!((port.ipv4(), port.ipv6()), ([10, 0, 0, 1], [0xfd; 16]));
        assert!(port.learns() && port.has_ipv6() && !port.is_host() && !port.is_trusted());
        let left = port.removed();
        assert_eq!((left.id(), left.network(), left.next()), (PortId::NONE, NetworkId(2), PortId(7)));
    }
}
