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

    /// The sum of the pseudo-header of TCP or UDP over IPv4 (RFC 9293 section 3.1, RFC 768).
    #[inline(always)]
    pub fn pseudo_header_v4(source: [u8; 4], destination: [u8; 4], length: u16, protocol: IpProtocol) -> Self {
        let [[a, b, c, d], [e, f, g, h]] = [source, destination];
        let addresses = Self::default().bytes(a, b).bytes(c, d).bytes(e, f).bytes(g, h);
        addresses.word(length).word(u16::from(protocol.0))
    }

    /// Adds 16 bits.
    #[inline(always)]
    pub fn word(self, word: u16) -> Self {
        Self(self.0 + u32::from(word))
    }

    /// Adds another sum.
    #[inline(always)]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
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

/// What bytes under a checksum change by: new minus old, in ones' complement (RFC 1624 equation 3).
///
/// Words are added as they lie in memory, in whatever byte order the machine has (RFC 1071 section 2(B)): that is how the
/// kernel's helpers take it, too. The carries are kept until the end: 64 bits have room for those of 2^32 additions.
#[derive(Clone, Copy, Debug, Default)]
#[must_use]
pub struct Delta(u64);

impl Delta {
    /// Two bytes at an even offset have changed.
    #[inline(always)]
    pub fn word(self, old: [u8; 2], new: [u8; 2]) -> Self {
        self.add(!u32::from(u16::from_ne_bytes(old))).add(u32::from(u16::from_ne_bytes(new)))
    }

    /// Four bytes have changed.
    #[inline(always)]
    pub fn four(self, old: [u8; 4], new: [u8; 4]) -> Self {
        self.add(!u32::from_ne_bytes(old)).add(u32::from_ne_bytes(new))
    }

    /// An address has changed; of an IPv4 address only the four bytes that are in packets count.
    #[inline(always)]
    pub fn address(self, old: IpAddress, new: IpAddress, is_v4: bool) -> Self {
        if is_v4 {
            return self.four(old.low(), new.low());
        }
        let IpAddress([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]) = old;
        let IpAddress([aa, bb, cc, dd, ee, ff, gg, hh, ii, jj, kk, ll, mm, nn, oo, pp]) = new;
        self.four([a, b, c, d], [aa, bb, cc, dd])
            .four([e, f, g, h], [ee, ff, gg, hh])
            .four([i, j, k, l], [ii, jj, kk, ll])
            .four([m, n, o, p], [mm, nn, oo, pp])
    }

    /// Both changes.
    #[inline(always)]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The number that the kernel's checksum helpers take as a difference.
    #[inline(always)]
    #[must_use]
    pub fn as_difference(self) -> u32 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let twice = (once & 0xffff_ffff) + (once >> 32);
        twice as u32
    }

    /// Whether it changes nothing; ones' complement has two zeros.
    #[inline(always)]
    #[must_use]
    pub fn is_zero(self) -> bool {
        matches!(self.as_difference(), 0 | u32::MAX)
    }

    /// The checksum field after the change.
    #[inline(always)]
    #[must_use]
    pub fn apply(self, checksum: [u8; 2]) -> [u8; 2] {
        let sum = self.add(u32::from(!u16::from_ne_bytes(checksum))).as_difference();
        let once = (sum & 0xffff) + (sum >> 16);
        let twice = (once & 0xffff) + (once >> 16);
        (!(twice as u16)).to_ne_bytes()
    }

    /// The checksum field of UDP after the change: 0 says that there is none, and stays; a 0 that was computed is sent as
    /// its other form (RFC 768).
    #[inline(always)]
    #[must_use]
    pub fn apply_udp(self, checksum: [u8; 2]) -> [u8; 2] {
        if checksum == [0; 2] {
            return checksum;
        }
        match self.apply(checksum) {
            [0, 0] => [0xff; 2],
            sum => sum,
        }
    }

    #[inline(always)]
    fn add(self, word: u32) -> Self {
        Self(self.0 + u64::from(word))
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

    fn sum_of(words: &[[u8; 2]]) -> [u8; 2] {
        let sum = words.iter().fold(Sum::default(), |sum, [a, b]| sum.bytes(*a, *b));
        sum.finish().to_be_bytes()
    }

    /// The update must end with what summing all anew ends with, for every old and new word.
    #[test]
    fn an_update_is_as_good_as_a_new_sum() {
        let rest = [[0x12, 0x34], [0xff, 0xff], [0x00, 0x01]];
        for new in 0..=u16::MAX {
            let new = new.to_be_bytes();
            for old in [[0, 0], [0xff, 0xff], [0x12, 0x35], [0x80, 0]] {
                let before = sum_of(&[rest[0], rest[1], rest[2], old]);
                let after = Delta::default().word(old, new).apply(before);
                let anew = sum_of(&[rest[0], rest[1], rest[2], new]);
                // Both zeros of ones' complement are the same sum; of all-zero data there is none here.
                assert!(
                    after == anew || (after, anew) == ([0xff; 2], [0; 2]),
                    "{old:?} to {new:?}: {after:?} {anew:?}"
                );
            }
        }
    }

    #[test]
    fn the_zero_of_udp() {
        assert_eq!(Delta::default().word([1, 2], [3, 4]).apply_udp([0, 0]), [0, 0]);
        // A sum that becomes 0 is written as ffff.
        let delta = Delta::default().word([0, 1], [0, 2]);
        assert_eq!(delta.apply([0, 1]), [0, 0]);
        assert_eq!(delta.apply_udp([0, 1]), [0xff, 0xff]);
        assert!(Delta::default().word([1, 2], [1, 2]).is_zero());
    }

    #[test]
    fn addresses_change_as_their_words_do() {
        let (old, new) = (IpAddress::v4([10, 1, 0, 2]), IpAddress::v4([198, 51, 100, 1]));
        let by_words = Delta::default().word([10, 1], [198, 51]).word([0, 2], [100, 1]);
        assert_eq!(Delta::default().address(old, new, true).apply([0x12, 0x34]), by_words.apply([0x12, 0x34]));
        assert_eq!(Delta::default().address(old, new, false).apply([0x12, 0x34]), by_words.apply([0x12, 0x34]));
    }
}
