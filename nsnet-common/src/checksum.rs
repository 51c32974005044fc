//! The Internet checksum (RFC 1071), over the fields of messages that are made or checked here.
//!
//! Field by field: the verifier cannot follow a loop over packet bytes whose end is a pointer, which is what the
//! compiler makes of one over a slice.

use crate::wire::{IpAddress, IpProtocol, Mac};

/// A sum in the making. 32 bits hold 65,536 words without overflow, more than one frame has.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct Sum(u32);

impl Sum {
    /// The sum of the pseudo-header of an upper-layer protocol over IPv6 (RFC 8200 section 8.1).
    #[inline(always)]
    pub fn pseudo_header_v6(source: IpAddress, destination: IpAddress, length: u16, protocol: IpProtocol) -> Self {
        Self::default().ip(source).ip(destination).word(length).word(u16::from(protocol.0))
    }

    /// Adds 16 bits.
    #[inline(always)]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u32::from(word))
    }

    /// Adds two bytes in their order on the wire.
    #[inline(always)]
    pub fn bytes(self, first: u8, second: u8) -> Self {
        self.word(u16::from_be_bytes([first, second]))
    }

    /// Adds a MAC.
    #[inline(always)]
    pub fn mac(self, Mac([a, b, c, d, e, f]): Mac) -> Self {
        self.bytes(a, b).bytes(c, d).bytes(e, f)
    }

    /// Adds the 16 bytes of an IPv6 address.
    #[inline(always)]
    pub fn ip(self, ip: IpAddress) -> Self {
        let IpAddress([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]) = ip;
        self.bytes(a, b).bytes(c, d).bytes(e, f).bytes(g, h).bytes(i, j).bytes(k, l).bytes(m, n).bytes(o, p)
    }

    /// The checksum: what the field is to hold or, over a message that has it, 0 when it is right.
    #[inline(always)]
    #[must_use]
    pub fn finish(self) -> u16 {
        let once = (self.0 & 0xffff) + (self.0 >> 16);
        let twice = (once & 0xffff) + (once >> 16);
        !(twice as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        // Section 3: the sum of 0001 f203 f4f5 f6f7 is ddf2.
        let sum = Sum::default().bytes(0x00, 0x01).bytes(0xf2, 0x03).bytes(0xf4, 0xf5).bytes(0xf6, 0xf7);
        assert_eq!(sum.finish(), !0xddf2);
    }

    #[test]
    fn addresses_are_words() {
        assert_eq!(Sum::default().mac(Mac([0, 1, 0, 2, 0xff, 0xff])).finish(), !3);
        let ones = IpAddress([0xff; 16]);
        let sum = Sum::pseudo_header_v6(ones, IpAddress::UNSPECIFIED, 32, IpProtocol::ICMPV6);
        assert_eq!(sum.finish(), !(32 + 58));
    }
}
