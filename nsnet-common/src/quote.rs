//! Turns a packet into the ICMP error about itself: cuts it to what is quoted, and writes the error's headers before it.
//!
//! ```text
//!   before  Ethernet | IP, options | transport header | payload ......
//!   after   Ethernet | IP | ICMP | IP, options | transport header | pay
//! ```

use core::num::NonZero;

use zerocopy::byteorder::network_endian::U16;

use crate::checksum::Sum;
use crate::layout::PortId;
use crate::packet::Packet;
use crate::tables::Tables;
use crate::wire::icmp::{self, Icmp};
use crate::wire::icmpv6::{self, Head};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::{EtherType, Ethernet, IpAddress, IpProtocol};

/// The longest quotation, bytes from the packet's IP header on.
///
/// It holds every header of IPv4 and TCP (60 + 60 bytes), more than any host needs to find the socket (8 bytes after the
/// IP header). RFC 1812 section 4.3.2.3 would have as much as makes a packet of 576 bytes, and RFC 4443 section 2.4 (c)
/// of 1280: here the checksum is summed word by word before the verifier, and each word costs.
pub const MAX_QUOTE: u16 = 128;

/// What comes before the quotation, bytes.
const HEADERS_V4: usize = Ipv4::LEN + Icmp::LEN;
const HEADERS_V6: usize = Ipv6::LEN + Head::LEN;
/// The hop limit of errors (RFC 1812 section 4.2.2.9: the default of RFC 1700).
const HOPS: u8 = 64;
/// Precedence "internetwork control" for errors (RFC 1812 section 4.3.2.5 allows 6 or 7; Linux: 0xc0, 6).
const TOS: u8 = 0xc0;
/// No link of IPv6 takes less (RFC 8200 section 5), so no sender need believe less.
const MIN_MTU_V6: u16 = 1280;

/// What to quote of an IP packet that says it has `length` bytes.
#[inline(always)]
pub fn bounded(frame: &impl Packet, length: u32) -> u16 {
    // A GSO frame over 64 KB does not say (BIG TCP).
    let length = if frame.gso_size() == 0 { length } else { frame.len().saturating_sub(Ethernet::LEN as u32) };
    if length < u32::from(MAX_QUOTE) { length as u16 } else { MAX_QUOTE }
}

/// Cuts the frame to an IP packet's first `length` bytes. Returns their sum.
///
/// `None` when that fails; then the frame is good for nothing.
#[inline(always)]
pub fn cut(frame: &mut impl Packet, is_v4: bool, length: NonZero<u16>, tables: impl Tables) -> Option<Sum> {
    frame.cut(Ethernet::LEN as u32 + u32::from(length.get()))?;
    Some(if is_v4 { settle_v4(frame, tables) } else { settle_v6(frame, tables) })
}

/// Makes of what is quoted of an IPv4 packet, which has this sum, an error of this type and code, from the port `speaker`
/// to the packet's sender. `None` when that fails, as above.
#[inline(always)]
pub fn turn_v4(
    frame: &mut impl Packet,
    sum: Sum,
    (kind, code): (icmp::Type, u8),
    mtu: u16,
    speaker: PortId,
    tables: impl Tables,
) -> Option<()> {
    frame.make_room(HEADERS_V4 as u32)?;
    turn_around(frame, EtherType::IPV4)?;
    write_v4(frame, speaker, tables)?;
    let checksum = sum.bytes(kind.0, code).word(mtu).finish();
    frame.write(Ethernet::LEN + Ipv4::LEN, &Icmp::error(kind, code, mtu, checksum))
}

/// The same of an IPv6 packet.
#[inline(always)]
pub fn turn_v6(
    frame: &mut impl Packet,
    sum: Sum,
    (kind, code): (icmpv6::Type, u8),
    mtu: u16,
    speaker: PortId,
    tables: impl Tables,
) -> Option<()> {
    frame.make_room(HEADERS_V6 as u32)?;
    turn_around(frame, EtherType::IPV6)?;
    write_v6(frame, speaker, tables)?;
    let mtu = if kind == icmpv6::Type::TOO_BIG { mtu.max(MIN_MTU_V6) } else { 0 };
    let checksum = sum.and(pseudo_v6(frame)).bytes(kind.0, code).word(mtu).finish();
    frame.write(Ethernet::LEN + Ipv6::LEN, &Head::error(kind, code, u32::from(mtu), checksum))
}

/// Back to where it came from.
#[inline(never)]
fn turn_around(frame: &mut impl Packet, ethertype: EtherType) -> Option<()> {
    let eth = *frame.view::<Ethernet>(0)?;
    frame.write(0, &Ethernet::new(eth.source, eth.destination, ethertype))
}

/// The error's IPv4 header, to the sender of the quoted packet.
#[inline(never)]
fn write_v4(frame: &mut impl Packet, speaker: PortId, tables: impl Tables) -> Option<()> {
    let source = tables.port(speaker)?.ipv4();
    let length = frame.len() as u16 - Ethernet::LEN as u16;
    let to = frame.view::<Ipv4>(Ethernet::LEN + HEADERS_V4)?.source();
    frame.write(Ethernet::LEN, &Ipv4::new(TOS, length, HOPS, IpProtocol::ICMP, source, to))
}

/// The error's IPv6 header.
#[inline(never)]
fn write_v6(frame: &mut impl Packet, speaker: PortId, tables: impl Tables) -> Option<()> {
    let source = IpAddress(tables.port(speaker)?.ipv6());
    let length = frame.len() as u16 - (Ethernet::LEN + Ipv6::LEN) as u16;
    let to = frame.view::<Ipv6>(Ethernet::LEN + HEADERS_V6)?.source();
    frame.write(Ethernet::LEN, &Ipv6::new(length, IpProtocol::ICMPV6, HOPS, source, to))
}

/// The sum of the pseudo-header that belongs to the error's IPv6 header.
#[inline(never)]
fn pseudo_v6(frame: &impl Packet) -> Sum {
    let Some(ip) = frame.view::<Ipv6>(Ethernet::LEN) else { return Sum::default() };
    Sum::pseudo_header_v6(ip.source(), ip.destination(), ip.payload_length(), IpProtocol::ICMPV6)
}

/// Sums the quotation, still at its old place, with a transport checksum that is settled.
#[inline(never)]
fn settle_v4(frame: &mut impl Packet, tables: impl Tables) -> Sum {
    let whole = sum_from(frame, Ethernet::LEN as u8, tables);
    let Some(ip) = frame.view::<Ipv4>(Ethernet::LEN) else { return whole };
    let (protocol, at) = (ip.protocol(), ip.transport_at() as u8);
    let length = ip.total_length().wrapping_sub(ip.header_length() as u16);
    let [[a, b, c, d], [e, f, g, h]] = [ip.source(), ip.destination().low()];
    let pseudo = Sum::default().bytes(a, b).bytes(c, d).bytes(e, f).bytes(g, h).word(length);
    let pseudo = pseudo.word(u16::from(protocol.0)).finish();
    settle(frame, whole, (protocol, at, pseudo), tables)
}

/// The same for IPv6.
#[inline(never)]
fn settle_v6(frame: &mut impl Packet, tables: impl Tables) -> Sum {
    let whole = sum_from(frame, Ethernet::LEN as u8, tables);
    let Some(ip) = frame.view::<Ipv6>(Ethernet::LEN) else { return whole };
    let Ok(upper) = ip.upper_layer(frame, tables) else { return whole };
    let end = (Ethernet::LEN + Ipv6::LEN) as u16 + ip.payload_length();
    let Ok(at) = u8::try_from(upper.at) else { return whole };
    let length = end.wrapping_sub(upper.at);
    let pseudo = Sum::pseudo_header_v6(ip.source(), ip.destination(), length, upper.protocol).finish();
    settle(frame, whole, (upper.protocol, at, pseudo), tables)
}

/// Gives a packet that bears a partial checksum one that nobody will change. Returns `whole`, kept right.
///
/// A local sender leaves the sum of the pseudo-header in the field, and whoever sends the frame out of the machine fills
/// in the checksum from there to the frame's end (`skb_checksum_help()`, or the NIC). The kernel does not let us take
/// back this order, so it would be carried out in the midst of the error, whose own checksum it would make wrong. But
/// there is one value that it leaves as it is: f = -(s + f), of the sum s of all other words; so f = -s / 2. What is
/// lost was no checksum, and hosts do not look at a quoted one.
#[inline(always)]
fn settle(
    frame: &mut impl Packet,
    whole: Sum,
    (protocol, at, pseudo): (IpProtocol, u8, u16),
    tables: impl Tables,
) -> Sum {
    const IN_TCP: usize = 16;
    const IN_UDP: usize = 6;
    let field = match protocol {
        IpProtocol::TCP => usize::from(at) + IN_TCP,
        IpProtocol::UDP => usize::from(at) + IN_UDP,
        _ => return whole,
    };
    let Some(found) = frame.view::<U16>(field).map(|found| found.get()) else { return whole };
    if found != !pseudo {
        return whole;
    }
    let settled = half(sum_from(frame, at, tables).word(!found).finish());
    if frame.write(field, &U16::new(settled)).is_none() {
        return whole;
    }
    whole.word(!found).word(settled)
}

/// Half of a number in one's complement arithmetic, modulo 65535, where odd ones have a half too. Never 0, which in UDP
/// says that there is no checksum.
const fn half(number: u16) -> u16 {
    match number {
        0 => u16::MAX,
        even if even % 2 == 0 => even / 2,
        odd => odd / 2 + 0x8000,
    }
}

/// The sum of the frame's bytes from `start`, which is even, to its end, as far as a quotation goes.
///
/// From the end backwards: the end is unknown to the verifier, which so is done with the loop after one round. A start
/// that it knows it would follow through all of them. Offsets are of 8 bits, because that bounds them, too.
#[inline(never)]
fn sum_from(frame: &impl Packet, start: u8, tables: impl Tables) -> Sum {
    let length = frame.len() as u8;
    let mut sum = Sum::default();
    // An odd byte at the end counts as if a zero followed (RFC 1071 section 1). Seen as the second of two.
    if length & 1 != 0
        && let Some([_, last]) = frame.view::<[u8; 2]>(usize::from(length.wrapping_sub(2)))
    {
        sum = sum.bytes(*last, 0);
    }
    let mut at = length & !1;
    tables.repeat(u32::from(MAX_QUOTE) / 2, &mut || {
        at = at.wrapping_sub(2);
        if at < start {
            return false;
        }
        let Some(word) = frame.view::<U16>(usize::from(at)) else { return false };
        sum = sum.word(word.get());
        true
    });
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryTables;
    use crate::packet::Buffer;

    #[test]
    fn a_half_doubled_is_the_whole() {
        for number in 0..=u16::MAX {
            let twice = Sum::default().word(half(number)).word(half(number)).finish();
            assert_eq!(u32::from(!twice) % 0xffff, u32::from(number) % 0xffff);
            assert_ne!(half(number), 0);
        }
    }

    #[test]
    fn sums_words_and_an_odd_byte() {
        let frame = Buffer::new([0xff, 0xff, 0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum_from(&frame, 2, &MemoryTables::default()).finish(), !0xddf2);
        let odd = Buffer::new([0xff, 0xff, 0, 1, 0xf2]);
        assert_eq!(sum_from(&odd, 2, &MemoryTables::default()).finish(), !0xf201);
    }
}
