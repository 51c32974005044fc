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
    /// Destination unreachable, RFC 4443 section 3.1.
    pub const UNREACHABLE: Self = Self(1);
    /// Packet too big, RFC 4443 section 3.2.
    pub const TOO_BIG: Self = Self(2);
    /// Time exceeded, RFC 4443 section 3.3.
    pub const TIME_EXCEEDED: Self = Self(3);
    /// Parameter problem, RFC 4443 section 3.4.
    pub const PARAMETER_PROBLEM: Self = Self(4);
    /// Echo request, RFC 4443 section 4.1.
    pub const ECHO: Self = Self(128);
    /// Echo reply, RFC 4443 section 4.2.
    pub const ECHO_REPLY: Self = Self(129);
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

    /// Whether it is about another packet, which it quotes: the types below 128 (RFC 4443 section 2.1).
    #[inline(always)]
    pub const fn is_error(self) -> bool {
        self.0 < 128
    }
}

/// Code of [`Type::UNREACHABLE`]: no route to the destination.
pub const NO_ROUTE: u8 = 0;
/// Code of [`Type::UNREACHABLE`]: a rule forbids it.
pub const PROHIBITED: u8 = 1;
/// Code of [`Type::UNREACHABLE`]: the destination does not answer.
pub const ADDRESS_UNREACHABLE: u8 = 3;
/// Code of [`Type::UNREACHABLE`]: nobody listens at the port.
pub const PORT_UNREACHABLE: u8 = 4;
/// Code of [`Type::TIME_EXCEEDED`]: the hop limit ended on the way.
pub const HOP_LIMIT_EXCEEDED: u8 = 0;

/// What every message of ours begins with: type, code, checksum, and four bytes that depend on the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Head {
    /// What the message is.
    pub kind: Type,
    /// What exactly; 0 in every valid message of neighbour discovery.
    pub code: u8,
    /// Over the pseudo-header and the whole message.
    pub checksum: U16,
    flags: [u8; 4],
}

impl Head {
    /// Bytes of the head; the packet that an error is about begins here.
    pub const LEN: usize = size_of::<Self>();
    /// Offset of the checksum in the head.
    pub const CHECKSUM_AT: usize = core::mem::offset_of!(Self, checksum);
    /// Offset of an echo's identifier in the head.
    pub const IDENTIFIER_AT: usize = core::mem::offset_of!(Self, flags);

    /// The head of a message with these flags (only advertisements have any).
    #[inline(always)]
    pub fn new(kind: Type, flags: u8, checksum: u16) -> Self {
        Self { kind, code: 0, checksum: U16::new(checksum), flags: [flags, 0, 0, 0] }
    }

    /// The head of an error. `mtu` is 0 for all but [`Type::TOO_BIG`].
    #[inline(always)]
    pub fn error(kind: Type, code: u8, mtu: u32, checksum: u16) -> Self {
        Self { kind, code, checksum: U16::new(checksum), flags: mtu.to_be_bytes() }
    }

    /// What tells one sender's echoes from another's.
    #[inline(always)]
    pub fn identifier(&self) -> u16 {
        let [a, b, ..] = self.flags;
        u16::from_be_bytes([a, b])
    }

    /// The MTU that [`Type::TOO_BIG`] names.
    #[inline(always)]
    pub fn mtu(&self) -> u32 {
        u32::from_be_bytes(self.flags)
    }

    /// Another identifier. The checksum is the caller's to change with it.
    #[inline(always)]
    pub fn set_identifier(&mut self, identifier: u16) {
        let [_, _, c, d] = self.flags;
        let [a, b] = identifier.to_be_bytes();
        self.flags = [a, b, c, d];
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
    fn an_error_and_an_echo_as_on_the_wire() {
        let error = Head::error(Type::TOO_BIG, 0, 0x0001_0500, 0xbeef);
        assert_eq!(error.as_bytes(), [2, 0, 0xbe, 0xef, 0, 1, 5, 0]);
        assert!(error.mtu() == 0x0001_0500 && error.kind.is_error());
        let mut echo = Head::read_from_bytes(&[128, 0, 0xab, 0xcd, 0x12, 0x34, 0, 7]).unwrap();
        assert!(echo.identifier() == 0x1234 && !echo.kind.is_error());
        echo.set_identifier(0x5678);
        assert_eq!(echo.as_bytes(), [128, 0, 0xab, 0xcd, 0x56, 0x78, 0, 7]);
        assert_eq!((Head::CHECKSUM_AT, Head::IDENTIFIER_AT), (2, 4));
    }

    #[test]
    fn discovery_is_five_types() {
        let count = (0..=255).filter(|kind| Type(*kind).is_neighbour_discovery()).count();
        assert_eq!(count, 5);
    }
}
