//! Ethernet II (IEEE 802.3 clause 3) and 802.1Q tags, as far as to recognise them.

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::packet::Packet;
use crate::verdict::DropReason;

/// A MAC address.
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
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// No station.
    pub const ZERO: Self = Self([0; 6]);

    /// Whether the address names a group (the I/G bit; the broadcast address is a group too).
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        let Self([first, ..]) = self;
        first & 1 != 0
    }

    /// Whether no bridge may forward to it: 01-80-C2-00-00-00 to -0F (802.1D-2004 table 7-10, 802.1Q table 8-1).
    #[inline(always)]
    pub const fn is_reserved(self) -> bool {
        let Self([a, b, c, d, e, last]) = self;
        matches!([a, b, c, d, e], [0x01, 0x80, 0xc2, 0, 0]) && last & 0xf0 == 0
    }
}

impl core::fmt::Display for Mac {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self([a, b, c, d, e, last]) = self;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{last:02x}")
    }
}

/// The two MACs that an Ethernet header begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Macs {
    /// Where the frame goes; zero when the neighbour is still to be asked for.
    pub to: Mac,
    /// Who sends it.
    pub from: Mac,
}

impl Macs {
    /// Of nobody.
    pub const NONE: Self = Self { to: Mac::ZERO, from: Mac::ZERO };
}

/// The protocol inside; a number below 1536 is a length (802.3 LLC). Not an enum: any value occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EtherType(pub u16);

impl EtherType {
    /// IPv4.
    pub const IPV4: Self = Self(0x0800);
    /// ARP.
    pub const ARP: Self = Self(0x0806);
    /// 802.1Q customer tag.
    pub const VLAN: Self = Self(0x8100);
    /// 802.1ad service tag.
    pub const SERVICE_VLAN: Self = Self(0x88a8);
    /// The service tag of switches older than 802.1ad.
    pub const OLD_SERVICE_VLAN: Self = Self(0x9100);
    /// IPv6.
    pub const IPV6: Self = Self(0x86dd);

    /// Whether a VLAN tag follows.
    #[inline(always)]
    pub const fn is_tag(self) -> bool {
        matches!(self, Self::VLAN | Self::SERVICE_VLAN | Self::OLD_SERVICE_VLAN)
    }
}

/// The Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ethernet {
    /// Where the frame goes.
    pub destination: Mac,
    /// Who sent it.
    pub source: Mac,
    ethertype: U16,
}

impl Ethernet {
    /// Bytes of the header; what follows begins here.
    pub const LEN: usize = size_of::<Self>();

    /// A header of these fields.
    #[inline(always)]
    pub fn new(destination: Mac, source: Mac, ethertype: EtherType) -> Self {
        Self { destination, source, ethertype: U16::new(ethertype.0) }
    }

    /// The header of `frame`.
    #[inline(always)]
    pub fn read(frame: &impl Packet) -> Result<Self, DropReason> {
        frame.view::<Self>(0).copied().ok_or(DropReason::Truncated)
    }

    /// The protocol inside.
    #[inline(always)]
    pub fn ethertype(&self) -> EtherType {
        EtherType(self.ethertype.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Buffer;

    #[test]
    fn reads_a_header() {
        let frame = Buffer::new([2, 0, 1, 0, 1, 0, 2, 0, 1, 0, 2, 0, 0x86, 0xdd]);
        let eth = Ethernet::read(&frame).unwrap();
        assert_eq!(eth.destination, Mac([2, 0, 1, 0, 1, 0]));
        assert_eq!(eth.source, Mac([2, 0, 1, 0, 2, 0]));
        assert_eq!(eth.ethertype(), EtherType::IPV6);
        assert_eq!(Ethernet::read(&Buffer::new([0; 13])), Err(DropReason::Truncated));
    }

    #[test]
    fn the_sixteen_reserved_groups_and_no_other() {
        for last in 0..=255 {
            assert_eq!(Mac([0x01, 0x80, 0xc2, 0, 0, last]).is_reserved(), last < 16);
        }
        assert!(!Mac([0x01, 0x80, 0xc2, 0, 1, 0]).is_reserved());
        assert!(!Mac::BROADCAST.is_reserved() && Mac::BROADCAST.is_group());
    }
}
