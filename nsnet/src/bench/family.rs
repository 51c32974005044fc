//! The two families of addresses. What a site is made of is laid out in IPv4, and stands there in IPv6 once more.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use ipnet::IpNet;

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// What has no IPv6.
pub(super) const ONLY_V4: &[Family] = &[Family::V4];
pub(super) const BOTH: &[Family] = &[Family::V4, Family::V6];

/// Addresses of IPv6 are fd00::/96 and the 32 bits of their counterpart.
const PREFIX: u128 = 0xfd00 << 112;
const PREFIX_BITS: u8 = 96;

impl Family {
    /// As people call it.
    pub(super) fn name(self) -> &'static str {
        self.choose(["IPv4", "IPv6"])
    }

    /// The first for IPv4, the second for IPv6.
    pub(super) fn choose<T>(self, [v4, v6]: [T; 2]) -> T {
        match self {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    /// The address that stands in for `ip`.
    pub(super) fn address(self, ip: Ipv4Addr) -> IpAddr {
        match self {
            Family::V4 => ip.into(),
            Family::V6 => Ipv6Addr::from_bits(PREFIX | u128::from(ip.to_bits())).into(),
        }
    }

    /// The same with the length of its prefix, which is `bits` in IPv4.
    ///
    /// # Errors
    /// When that is more than 32.
    pub(super) fn net(self, ip: Ipv4Addr, bits: u8) -> Result<IpNet> {
        Ok(IpNet::new(self.address(ip), bits + self.choose([0, PREFIX_BITS]))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_a_counterpart() {
        let ip = Ipv4Addr::new(192, 168, 15, 1);
        assert_eq!(Family::V4.net(ip, 24).unwrap().to_string(), "192.168.15.1/24");
        assert_eq!(Family::V6.net(ip, 24).unwrap().to_string(), "fd00::c0a8:f01/120");
        assert!(Family::V4.net(ip, 33).is_err() && Family::V6.net(ip, 33).is_err());
    }
}
