//! What IPv4 and IPv6 share: an address of either family, and protocol numbers.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// An IP address of either family; IPv4 in its mapped form, ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(transparent)]
pub struct IpAddress(pub [u8; 16]);

impl IpAddress {
    /// `::`, which is no address.
    pub const UNSPECIFIED: Self = Self([0; 16]);
    /// `::1`.
    pub const LOOPBACK: Self = Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    /// An IPv4 address.
    #[inline(always)]
    pub const fn v4(bytes: [u8; 4]) -> Self {
        // In words: for a row of bytes that are 0 the compiler calls `memset`, which for BPF is a loop over bytes.
        zerocopy::transmute!([0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), u32::from_ne_bytes(bytes)])
    }

    /// The four bytes of an IPv4 address.
    #[inline(always)]
    pub const fn as_v4(self) -> Option<[u8; 4]> {
        match self.0 {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([a, b, c, d]),
            _ => None,
        }
    }

    /// The last four bytes: the whole of an IPv4 address.
    #[inline(always)]
    pub const fn low(self) -> [u8; 4] {
        let [.., a, b, c, d] = self.0;
        [a, b, c, d]
    }

    /// Whether it is an IPv6 multicast address, ff00::/8.
    #[inline(always)]
    pub const fn is_multicast_v6(self) -> bool {
        let Self([first, ..]) = self;
        first == 0xff
    }

    /// Whether it is an IPv6 link-local address, fe80::/10.
    #[inline(always)]
    pub const fn is_link_local_v6(self) -> bool {
        let Self([first, second, ..]) = self;
        first == 0xfe && second & 0xc0 == 0x80
    }

    /// The link-local address that a station makes of its MAC (RFC 4291 appendix A: modified EUI-64).
    #[inline(always)]
    pub const fn link_local_of(mac: crate::wire::Mac) -> Self {
        let [a, b, c, d, e, f] = mac.0;
        Self([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 0x02, b, c, 0xff, 0xfe, d, e, f])
    }
}

impl From<core::net::IpAddr> for IpAddress {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(ip) => Self::v4(ip.octets()),
            core::net::IpAddr::V6(ip) => Self(ip.octets()),
        }
    }
}

impl From<IpAddress> for core::net::IpAddr {
    fn from(ip: IpAddress) -> Self {
        match ip.as_v4() {
            Some(v4) => Self::V4(v4.into()),
            None => Self::V6(ip.0.into()),
        }
    }
}

/// The protocol after an IP header, or an IPv6 extension header. Not an enum: any value occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpProtocol(pub u8);

impl IpProtocol {
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: Self = Self(0);
    /// ICMP.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// IPv6 routing header.
    pub const ROUTING: Self = Self(43);
    /// IPv6 fragment header.
    pub const FRAGMENT: Self = Self(44);
    /// Authentication header.
    pub const AUTHENTICATION: Self = Self(51);
    /// ICMPv6.
    pub const ICMPV6: Self = Self(58);
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: Self = Self(60);
    /// SCTP.
    pub const SCTP: Self = Self(132);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Mac;
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    #[test]
    fn both_families_there_and_back() {
        for ip in [IpAddr::V4(Ipv4Addr::new(192, 168, 15, 1)), IpAddr::V6("fd15::1".parse().unwrap())] {
            assert_eq!(IpAddr::from(IpAddress::from(ip)), ip);
        }
        assert_eq!(IpAddress::from(IpAddr::V6(Ipv6Addr::LOCALHOST)), IpAddress::LOOPBACK);
    }

    #[test]
    fn link_local_of_a_mac() {
        let ip = IpAddress::link_local_of(Mac([0x02, 0, 1, 0, 2, 7]));
        assert_eq!(IpAddr::from(ip), "fe80::1ff:fe00:207".parse::<IpAddr>().unwrap());
        assert!(ip.is_link_local_v6() && !ip.is_multicast_v6());
    }
}
