//! Frames in words: `Frame::new(RED.mac, BLUE.mac).ipv4(RED.ipv4, BLUE.ipv4).udp(1, 2).payload(18)`.
//!
//! Written apart from `wire`, with plain byte vectors: a field that `wire` has in the wrong place is not wrong here too.

use crate::wire::Mac;

/// A frame in the making. Lengths and next-header fields follow what is appended; checksums are filled in by
/// [`Frame::finish`]. [`Frame::set`] and [`Frame::cut`] come last: what they do is not put right again.
#[derive(Clone, Debug)]
pub struct Frame {
    bytes: Vec<u8>,
    /// Where the IP header begins, and its version.
    ip: Option<(usize, u8)>,
    /// Where the protocol of what comes next is to be written.
    next_header_at: Option<usize>,
    /// Where the transport header begins, its protocol, and where in it the checksum is.
    transport: Option<(usize, u8, usize)>,
}

/// The way a message of neighbour discovery carries a MAC: option kind 1, of the sender.
pub const SOURCE_OPTION: u8 = 1;
/// Option kind 2, of the target.
pub const TARGET_OPTION: u8 = 2;

impl Frame {
    /// An Ethernet frame without its type.
    pub fn new(source: Mac, destination: Mac) -> Self {
        let bytes = [destination.0, source.0].concat();
        Self { bytes, ip: None, next_header_at: None, transport: None }
    }

    /// A VLAN tag: its type (0x8100, 0x88a8, ..) and its 16 bits of priority and VLAN.
    #[must_use]
    pub fn tag(self, kind: u16, vlan: u16) -> Self {
        self.ethertype(kind).append(&vlan.to_be_bytes())
    }

    /// An ethertype, or the length of an 802.3 frame.
    #[must_use]
    pub fn ethertype(self, ethertype: u16) -> Self {
        self.append(&ethertype.to_be_bytes())
    }

    /// An 802.3 frame with an LLC header, such as a spanning tree message (DSAP and SSAP 0x42).
    #[must_use]
    pub fn llc(self, service: u8) -> Self {
        self.ethertype(38).append(&[service, service, 3]).payload(35)
    }

    /// An IPv4 header without options. Protocol 253 (RFC 3692: experiments) until a transport header follows.
    #[must_use]
    pub fn ipv4(self, source: [u8; 4], destination: [u8; 4]) -> Self {
        let mut frame = self.ethertype(0x0800);
        let at = frame.bytes.len();
        (frame.ip, frame.next_header_at) = (Some((at, 4)), Some(at + 9));
        let fixed = [0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, 253, 0, 0];
        frame.append(&fixed).append(&source).append(&destination)
    }

    /// Four bytes of options for the IPv4 header that was just appended.
    #[must_use]
    pub fn option_word(mut self, word: [u8; 4]) -> Self {
        if let Some((at, 4)) = self.ip {
            self.bytes[at] += 1;
        }
        self.append(&word)
    }

    /// An IPv6 header. Next header 253 until something follows.
    #[must_use]
    pub fn ipv6(self, source: [u8; 16], destination: [u8; 16]) -> Self {
        let mut frame = self.ethertype(0x86dd);
        let at = frame.bytes.len();
        (frame.ip, frame.next_header_at) = (Some((at, 6)), Some(at + 6));
        frame.append(&[0x60, 0, 0, 0, 0, 0, 253, 64]).append(&source).append(&destination)
    }

    /// Another hop limit (TTL) than 64.
    #[must_use]
    pub fn hops(mut self, hops: u8) -> Self {
        if let Some((at, version)) = self.ip {
            self.bytes[at + if version == 4 { 8 } else { 7 }] = hops;
        }
        self
    }

    /// An IPv6 extension header of `8 + units * 8` bytes (`8 + units * 4` for kind 51, authentication), padded.
    #[must_use]
    pub fn extension(self, kind: u8, units: u8) -> Self {
        let length = 8 + usize::from(units) * if kind == 51 { 4 } else { 8 };
        // An option PadN of 4 bytes, then Pad1 to the end: valid where options are expected.
        let mut header = vec![253, units, 1, 4];
        header.resize(length, 0);
        self.follow(kind, &header)
    }

    /// The fragment header of IPv6. `offset` counts units of 8 bytes.
    #[must_use]
    pub fn fragment_v6(self, offset: u16, more: bool) -> Self {
        let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
        self.follow(44, &[253, 0, high, low, 0, 0, 0, 7])
    }

    /// Makes the IPv4 packet a fragment. `offset` counts units of 8 bytes.
    #[must_use]
    pub fn fragment_v4(mut self, offset: u16, more: bool) -> Self {
        if let Some((at, 4)) = self.ip {
            let field = offset | if more { 0x2000 } else { 0 };
            self.bytes[at + 6..at + 8].copy_from_slice(&field.to_be_bytes());
        }
        self
    }

    /// Any protocol, with the first bytes of its message.
    #[must_use]
    pub fn protocol(self, protocol: u8, message: &[u8]) -> Self {
        self.follow(protocol, message)
    }

    /// A UDP header.
    #[must_use]
    pub fn udp(self, source: u16, destination: u16) -> Self {
        let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
        let mut frame = self.mark_transport(17, 6).follow(17, &ports).append(&[0, 8, 0, 0]);
        frame.set_udp_length();
        frame
    }

    /// A TCP header (SYN, ACK) with timestamps: 32 bytes, as in most segments.
    #[must_use]
    pub fn tcp(self, source: u16, destination: u16) -> Self {
        let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
        let frame = self.mark_transport(6, 16).follow(6, &ports);
        let fixed = [0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x10, 1, 0, 0, 0, 0, 0];
        frame.append(&fixed).append(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
    }

    /// A TCP header of 20 bytes with these flags, sequence and acknowledgement.
    #[must_use]
    pub fn segment(self, ports: (u16, u16), flags: u8, numbers: (u32, u32)) -> Self {
        let ports = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        let frame = self.mark_transport(6, 16).follow(6, &ports);
        let frame = frame.append(&numbers.0.to_be_bytes()).append(&numbers.1.to_be_bytes());
        frame.append(&[0x50, flags, 1, 0, 0, 0, 0, 0])
    }

    /// An SCTP header, whose CRC is no business of a NAT, and the beginning of a chunk.
    #[must_use]
    pub fn sctp(self, source: u16, destination: u16) -> Self {
        let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
        self.follow(132, &ports).append(&[0, 0, 0, 1, 0xc5, 0xc5, 0xc5, 0xc5, 1, 0, 0, 4])
    }

    /// An ICMP message: type, code, and what follows the checksum.
    #[must_use]
    pub fn icmp(self, kind: u8, code: u8, rest: &[u8]) -> Self {
        self.mark_transport(1, 2).follow(1, &[kind, code, 0, 0]).append(rest)
    }

    /// An ICMPv6 message: type, code, and what follows the checksum.
    #[must_use]
    pub fn icmpv6(self, kind: u8, code: u8, rest: &[u8]) -> Self {
        self.mark_transport(58, 2).follow(58, &[kind, code, 0, 0]).append(rest)
    }

    /// A message of neighbour discovery about `target`: type 135 asks, type 136 tells (flags: solicited, override).
    #[must_use]
    pub fn neighbour(self, kind: u8, target: [u8; 16]) -> Self {
        let flags = if kind == 136 { 0x60 } else { 0 };
        self.hops(255).icmpv6(kind, 0, &[flags, 0, 0, 0]).append(&target)
    }

    /// A router advertisement without options: hop limit 64, lifetime 1800 s.
    #[must_use]
    pub fn router_advertisement(self) -> Self {
        self.hops(255).icmpv6(134, 0, &[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    /// An option of neighbour discovery with a MAC.
    #[must_use]
    pub fn mac_option(self, kind: u8, mac: Mac) -> Self {
        self.append(&[kind, 1]).append(&mac.0)
    }

    /// An ARP message.
    #[must_use]
    pub fn arp(self, operation: u8, sender: (Mac, [u8; 4]), target: (Mac, [u8; 4])) -> Self {
        let frame = self.ethertype(0x0806).append(&[0, 1, 8, 0, 6, 4, 0, operation]);
        frame.append(&sender.0.0).append(&sender.1).append(&target.0.0).append(&target.1)
    }

    /// `length` bytes that count up, so that moved ones show.
    #[must_use]
    pub fn payload(self, length: usize) -> Self {
        let bytes: Vec<u8> = (0..length).map(|n| n as u8).collect();
        self.append(&bytes)
    }

    /// Bytes at the end of what there is so far, counted by the lengths in the headers.
    #[must_use]
    pub fn append(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        match self.ip {
            Some((at, 4)) => self.set_length(at + 2, self.bytes.len() - at),
            Some((at, _)) => self.set_length(at + 4, self.bytes.len().saturating_sub(at + 40)),
            None => {}
        }
        self.set_udp_length();
        self
    }

    /// Zeros up to the 60 bytes that Ethernet asks for, not counted by the IP header.
    #[must_use]
    pub fn pad(self) -> Self {
        let mut frame = self.sealed();
        frame.bytes.resize(frame.bytes.len().max(60), 0);
        frame
    }

    /// Overwrites what was made so far, checksums included.
    #[must_use]
    pub fn set(self, at: usize, bytes: &[u8]) -> Self {
        let mut frame = self.sealed();
        frame.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    }

    /// Only the first `length` bytes.
    #[must_use]
    pub fn cut(self, length: usize) -> Self {
        let mut frame = self.sealed();
        frame.bytes.truncate(length);
        frame
    }

    /// The frame's bytes.
    pub fn finish(self) -> Vec<u8> {
        self.sealed().bytes
    }

    /// `header` as the next one in the chain. The first byte of an extension header names what comes after it.
    fn follow(mut self, protocol: u8, header: &[u8]) -> Self {
        if let Some(at) = self.next_header_at {
            self.bytes[at] = protocol;
            self.next_header_at = Some(self.bytes.len());
        }
        self.append(header)
    }

    fn mark_transport(mut self, protocol: u8, checksum_at: usize) -> Self {
        self.transport = Some((self.bytes.len(), protocol, checksum_at));
        self
    }

    fn set_length(&mut self, at: usize, length: usize) {
        self.bytes[at..at + 2].copy_from_slice(&(length as u16).to_be_bytes());
    }

    fn set_udp_length(&mut self) {
        if let Some((at, 17, _)) = self.transport
            && self.bytes.len() >= at + 8
        {
            self.set_length(at + 4, self.bytes.len() - at);
        }
    }

    /// Fills in the checksums, once.
    fn sealed(mut self) -> Self {
        let Some((at, version)) = self.ip.take() else { return self };
        let addresses = if version == 4 { at + 12..at + 20 } else { at + 8..at + 40 };
        if let Some((transport, protocol, checksum_at)) = self.transport.take() {
            let message = &self.bytes[transport..];
            let length = (message.len() as u32).to_be_bytes();
            // ICMP has no pseudo-header, ICMPv6 has.
            let pseudo = match protocol {
                1 => message.to_vec(),
                _ => [&self.bytes[addresses], &length, &[0, 0, 0, protocol], message].concat(),
            };
            let sum = match (protocol, checksum(&pseudo)) {
                // UDP's 0 would say that there is none.
                (17, 0) => 0xffff,
                (_, sum) => sum,
            };
            self.set_length(transport + checksum_at, usize::from(sum));
        }
        if version == 4 {
            let end = at + usize::from(self.bytes[at] & 15) * 4;
            let sum = checksum(&self.bytes[at..end]);
            self.set_length(at + 10, usize::from(sum));
        }
        self
    }
}

/// RFC 1071, as in its section 4.1.
pub(super) fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An address as in a book: "10.1.0.2".
pub(super) fn v4(text: &str) -> [u8; 4] {
    text.parse::<core::net::Ipv4Addr>().unwrap().octets()
}

/// An address as in a book: "fd01::2".
pub(super) fn v6(text: &str) -> [u8; 16] {
    text.parse::<core::net::Ipv6Addr>().unwrap().octets()
}

/// The bytes that a run of hexadecimal digits names; spaces are for the reader.
pub(super) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|byte| (byte[0] << 4 | byte[1]) as u8).collect()
}

/// The group MAC of an IPv6 multicast address (RFC 2464 section 7).
pub(super) fn group_of(destination: [u8; 16]) -> Mac {
    let [.., c, d, e, f] = destination;
    Mac([0x33, 0x33, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first packet of RFC 1071-like textbooks: header checksum b861.
    #[test]
    fn an_ipv4_header_with_its_checksum() {
        let frame = Frame::new(Mac::ZERO, Mac::ZERO).ipv4(v4("192.168.0.1"), v4("192.168.0.199"));
        let frame = frame.udp(1, 2).payload(0x5f - 8).finish();
        assert_eq!(frame[14..24], hex("4500 0073 1234 0000 4011"));
        assert_eq!(checksum(&frame[14..34]), 0);
        // The sum over pseudo-header and datagram is right, too.
        let datagram = &frame[34..];
        assert_eq!(datagram[..6], hex("0001 0002 005f"));
        assert_eq!(checksum(&[&frame[26..34], &[0, 17, 0, 0x5f], datagram].concat()), 0);
    }

    #[test]
    fn a_solicitation_byte_for_byte() {
        let red = Mac([2, 0, 1, 0, 2, 0]);
        let to = v6("ff02::1:ff00:3");
        let frame = Frame::new(red, group_of(to)).ipv6(v6("fd01::2"), to);
        let frame = frame.neighbour(135, v6("fd01::3")).mac_option(SOURCE_OPTION, red).finish();
        let expected = "3333ff000003 020001000200 86dd 6000000000203aff fd010000000000000000000000000002
            ff0200000000000000000001ff000003 87007a9300000000 fd010000000000000000000000000003 0101020001000200";
        assert_eq!(frame, hex(expected));
    }

    #[test]
    fn the_chain_of_headers_is_linked() {
        let frame = Frame::new(Mac::ZERO, Mac::ZERO).ipv6([1; 16], [2; 16]);
        let frame = frame.extension(0, 1).fragment_v6(0, true).udp(1, 2).finish();
        assert_eq!((frame[14 + 6], frame[54], frame[70]), (0, 44, 17));
        assert_eq!(frame[18..20], [0, 16 + 8 + 8]);
        assert_eq!(frame.len(), 54 + 16 + 8 + 8);
    }
}
