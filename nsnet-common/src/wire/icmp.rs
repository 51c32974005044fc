//! ICMP (RFC 792; RFC 1191 for the MTU, RFC 1812 for the codes of routers).

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// An ICMP message type. Not an enum: any value occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(transparent)]
pub struct Type(pub u8);

impl Type {
    /// Echo reply.
    pub const ECHO_REPLY: Self = Self(0);
    /// Destination unreachable.
    pub const UNREACHABLE: Self = Self(3);
    /// Source quench; no longer sent (RFC 6633).
    pub const SOURCE_QUENCH: Self = Self(4);
    /// Redirect.
    pub const REDIRECT: Self = Self(5);
    /// Echo request.
    pub const ECHO: Self = Self(8);
    /// Time exceeded.
    pub const TIME_EXCEEDED: Self = Self(11);
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: Self = Self(12);

    /// Whether it is about another packet, which it quotes.
    #[inline(always)]
    pub const fn is_error(self) -> bool {
        matches!(self.0, 3 | 4 | 5 | 11 | 12)
    }

    /// Whether it is a question or an answer: echo, router discovery (RFC 1256), timestamp, information, address mask
    /// (RFC 950), extended echo (RFC 8335).
    #[inline(always)]
    pub const fn is_query(self) -> bool {
        matches!(self.0, 0 | 8 | 9 | 10 | 13..=18 | 42 | 43)
    }
}

/// Code of [`Type::UNREACHABLE`]: no route to the destination's network.
pub const NET_UNREACHABLE: u8 = 0;
/// Code of [`Type::UNREACHABLE`]: the destination does not answer.
pub const HOST_UNREACHABLE: u8 = 1;
/// Code of [`Type::UNREACHABLE`]: nobody listens at the port.
pub const PORT_UNREACHABLE: u8 = 3;
/// Code of [`Type::UNREACHABLE`]: the packet is too long and must not be cut.
pub const FRAGMENTATION_NEEDED: u8 = 4;
/// Code of [`Type::UNREACHABLE`]: a rule forbids it (RFC 1812 section 5.2.7.1).
pub const PROHIBITED: u8 = 13;
/// Code of [`Type::TIME_EXCEEDED`]: the TTL ended on the way.
pub const TTL_EXCEEDED: u8 = 0;

/// What every message begins with: type, code, checksum, and four bytes that depend on the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Icmp {
    /// What the message is.
    pub kind: Type,
    /// What exactly.
    pub code: u8,
    checksum: U16,
    first: U16,
    second: U16,
}

impl Icmp {
    /// Bytes of the header; the packet that an error is about begins here.
    pub const LEN: usize = size_of::<Self>();
    /// Offset of the checksum in the header.
    pub const CHECKSUM_AT: usize = core::mem::offset_of!(Self, checksum);
    /// Offset of an echo's identifier in the header.
    pub const IDENTIFIER_AT: usize = core::mem::offset_of!(Self, first);

    /// The header of an error. `mtu` is 0 for all but [`FRAGMENTATION_NEEDED`] (RFC 1191 section 4).
    #[inline(always)]
    pub fn error(kind: Type, code: u8, mtu: u16, checksum: u16) -> Self {
        Self { kind, code, checksum: U16::new(checksum), first: U16::new(0), second: U16::new(mtu) }
    }

    /// Over the whole message; without a pseudo-header.
    #[inline(always)]
    pub fn checksum(&self) -> u16 {
        self.checksum.get()
    }

    /// What tells one sender's echoes from another's.
    #[inline(always)]
    pub fn identifier(&self) -> u16 {
        self.first.get()
    }

    /// The MTU that [`FRAGMENTATION_NEEDED`] names; 0 from routers older than RFC 1191.
    #[inline(always)]
    pub fn mtu(&self) -> u16 {
        self.second.get()
    }

    /// Another identifier. The checksum is the caller's to change with it.
    #[inline(always)]
    pub fn set_identifier(&mut self, identifier: u16) {
        self.first = U16::new(identifier);
    }

    /// Another checksum.
    #[inline(always)]
    pub fn set_checksum(&mut self, checksum: u16) {
        self.checksum = U16::new(checksum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_from_the_wire() {
        let mut echo = Icmp::read_from_bytes(&[8, 0, 0xab, 0xcd, 0x12, 0x34, 0, 7]).unwrap();
        assert_eq!((echo.kind, echo.code, echo.checksum(), echo.identifier()), (Type::ECHO, 0, 0xabcd, 0x1234));
        echo.set_identifier(0x5678);
        echo.set_checksum(0x1111);
        assert_eq!(echo.as_bytes(), [8, 0, 0x11, 0x11, 0x56, 0x78, 0, 7]);
        assert_eq!((Icmp::CHECKSUM_AT, Icmp::IDENTIFIER_AT), (2, 4));
    }

    #[test]
    fn an_error_names_the_mtu_in_its_last_two_bytes() {
        let error = Icmp::error(Type::UNREACHABLE, FRAGMENTATION_NEEDED, 1400, 0xbeef);
        assert_eq!(error.as_bytes(), [3, 4, 0xbe, 0xef, 0, 0, 0x05, 0x78]);
        assert_eq!(error.mtu(), 1400);
    }

    #[test]
    fn no_type_is_both_an_error_and_a_query() {
        let errors: std::vec::Vec<u8> = (0..=255).filter(|kind| Type(*kind).is_error()).collect();
        assert_eq!(errors, [3, 4, 5, 11, 12]);
        assert!((0..=255).all(|kind| !(Type(kind).is_error() && Type(kind).is_query())));
        assert!(Type::ECHO.is_query() && Type::ECHO_REPLY.is_query());
    }
}
