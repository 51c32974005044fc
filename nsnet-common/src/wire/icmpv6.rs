//! ICMPv6 (RFC 4443) and neighbour discovery (RFC 4861).

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::Sum;
use crate::wire::{IpAddress, Mac};

/// An ICMPv6 message type. Not an enum: any value occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(transparent)]
pub struct Type(pub u8);

impl Type {
    /// Router solicitation, RFC 4861 section 4.1.
    pub const ROUTER_SOLICITATION: Self = Self(133);
    /// Router advertisement, section 4.2.
    pub const ROUTER_ADVERTISEMENT: Self = Self(134);
    /// Neighbour solicitation, section 4.3.
    pub const NEIGHBOUR_SOLICITATION: Self = Self(135);
    /// Neighbour advertisement, section 4.4.
    pub const NEIGHBOUR_ADVERTISEMENT: Self = Self(136);
    /// Redirect, section 4.5.
    pub const REDIRECT: Self = Self(137);

    /// Whether it is a message of neighbour discovery.
    #[inline(always)]
    pub const fn is_neighbour_discovery(self) -> bool {
        matches!(self.0, 133..=137)
    }
}

/// What every message of ours begins with: type, code, checksum, and four bytes that depend on the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Head {
    /// What the message is.
    pub kind: Type,
    /// 0 in every valid message of neighbour discovery.
    pub code: u8,
    /// Over the pseudo-header and the whole message.
    pub checksum: U16,
    flags: [u8; 4],
}

impl Head {
    /// The head of a message with these flags (only advertisements have any).
    #[inline(always)]
    pub fn new(kind: Type, flags: u8, checksum: u16) -> Self {
        Self { kind, code: 0, checksum: U16::new(checksum), flags: [flags, 0, 0, 0] }
    }
}

/// A neighbour solicitation or advertisement, without options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Neighbour {
    /// Of kind [`Type::NEIGHBOUR_SOLICITATION`] or [`Type::NEIGHBOUR_ADVERTISEMENT`].
    pub head: Head,
    /// The address asked for, or spoken for.
    pub target: IpAddress,
}

/// Flags of an advertisement (section 4.4): the sender is a router.
pub const ROUTER: u8 = 0x80;
/// It answers a solicitation.
pub const SOLICITED: u8 = 0x40;
/// It replaces what the receiver knows.
pub const OVERRIDE: u8 = 0x20;

impl Neighbour {
    /// Bytes without options.
    pub const LEN: usize = size_of::<Self>();

    /// Adds the message to a checksum's sum.
    #[inline(always)]
    pub fn sum(&self, sum: Sum) -> Sum {
        let Head { kind, code, checksum, flags: [a, b, c, d] } = self.head;
        sum.bytes(kind.0, code).word(checksum.get()).bytes(a, b).bytes(c, d).ip(self.target)
    }
}

/// The head of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OptionHead {
    /// What it is.
    pub kind: u8,
    /// Its length in units of 8 bytes; 0 is an error (section 4.6).
    pub units: u8,
}

/// The option that names the MAC of the sender or the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct MacOption {
    /// Kind and length.
    pub head: OptionHead,
    /// The MAC.
    pub mac: Mac,
}

/// Option kind: MAC of the sender.
pub const SOURCE_MAC: u8 = 1;
/// Option kind: MAC of the target.
pub const TARGET_MAC: u8 = 2;

impl MacOption {
    /// Bytes of the option.
    pub const LEN: usize = size_of::<Self>();

    /// An option of this kind.
    #[inline(always)]
    pub fn new(kind: u8, mac: Mac) -> Self {
        Self { head: OptionHead { kind, units: 1 }, mac }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertisement_as_on_the_wire() {
        let target = IpAddress([0xfd, 0x15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        let head = Head::new(Type::NEIGHBOUR_ADVERTISEMENT, SOLICITED | OVERRIDE, 0);
        let message = Neighbour { head, target };
        let mut expected = std::vec![136, 0, 0, 0, 0x60, 0, 0, 0];
        expected.extend(target.0);
        assert_eq!(message.as_bytes(), expected);
        assert_eq!(MacOption::new(TARGET_MAC, Mac([2, 0, 1, 0, 2, 0])).as_bytes(), [2, 1, 2, 0, 1, 0, 2, 0]);
    }

    #[test]
    fn discovery_is_five_types() {
        let count = (0..=255).filter(|kind| Type(*kind).is_neighbour_discovery()).count();
        assert_eq!(count, 5);
    }
}
