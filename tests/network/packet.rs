//! IP packets in plain fields, and how they are made. How they are read: `dissect`.
//!
//! Written apart from `wire` and from the frames of the cases: what is wrong there is not wrong here too.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use nsnet::lab::ping::internet_checksum as checksum;
use nsnet_common::wire::Mac;

/// Protocol numbers.
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const GRE: u8 = 47;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const SCTP: u8 = 132;
/// The fragment header of IPv6.
pub(crate) const FRAGMENT: u8 = 44;

/// TCP flags.
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;

/// One IP packet, or one fragment of one.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// TTL or hop limit.
    pub(crate) hops: u8,
    /// Of the body.
    pub(crate) protocol: u8,
    /// Identification, in IPv6 that of the fragment header.
    pub(crate) id: u32,
    /// IPv4: it must not be cut.
    pub(crate) whole: bool,
    /// Of a fragment: its offset in bytes, and whether more follow. IPv6 has a fragment header then.
    pub(crate) fragment: Option<(usize, bool)>,
    /// IPv4 options, a multiple of 4 bytes.
    pub(crate) options: Vec<u8>,
    /// What comes after the IP header, transport header and checksum included.
    pub(crate) body: Vec<u8>,
}

impl Packet {
    /// A packet of any protocol.
    pub(crate) fn new(source: IpAddr, destination: IpAddr, protocol: u8, body: &[u8]) -> Self {
        assert_eq!(source.is_ipv4(), destination.is_ipv4(), "two families");
        let (whole, options, body) = (true, Vec::new(), body.to_vec());
        Self { source, destination, hops: 64, protocol, id: 0x1234, whole, fragment: None, options, body }
    }

    /// A UDP datagram.
    pub(crate) fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Self {
        let length = (8 + payload.len()) as u16;
        let header = [from.port(), to.port(), length, 0].map(u16::to_be_bytes).concat();
        Self::new(from.ip(), to.ip(), UDP, &[&header, payload].concat()).summed()
    }

    /// A TCP segment without options.
    pub(crate) fn tcp(from: SocketAddr, to: SocketAddr, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Self {
        let ports = [from.port(), to.port()].map(u16::to_be_bytes).concat();
        let numbers = [seq, ack].map(u32::to_be_bytes).concat();
        let rest = [0x50, flags, 0x20, 0, 0, 0, 0, 0];
        Self::new(from.ip(), to.ip(), TCP, &[&ports, &numbers, &rest[..], payload].concat()).summed()
    }

    /// An SCTP packet with a chunk that says nothing (a checksum that no NAT touches is not looked at).
    pub(crate) fn sctp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Self {
        let ports = [from.port(), to.port()].map(u16::to_be_bytes).concat();
        Self::new(from.ip(), to.ip(), SCTP, &[&ports, &[0, 0, 0, 1, 0, 0, 0, 0][..], payload].concat())
    }

    /// An echo request.
    pub(crate) fn ping(source: IpAddr, destination: IpAddr, id: u16, payload: &[u8]) -> Self {
        let kind = if source.is_ipv4() { 8 } else { 128 };
        Self::icmp(source, destination, kind, 0, u32::from(id) << 16 | 1, payload)
    }

    /// The answer to an echo request.
    pub(crate) fn pong(&self) -> Self {
        let mut pong = self.turned();
        pong.body[0] = if self.source.is_ipv4() { 0 } else { 129 };
        pong.summed()
    }

    /// Any ICMP message; `rest` is what follows the checksum.
    pub(crate) fn icmp(source: IpAddr, destination: IpAddr, kind: u8, code: u8, rest: u32, payload: &[u8]) -> Self {
        let protocol = if source.is_ipv4() { ICMP } else { ICMPV6 };
        let body = [&[kind, code, 0, 0], &rest.to_be_bytes()[..], payload].concat();
        Self::new(source, destination, protocol, &body).summed()
    }

    /// An ICMP error of `source`'s about this packet, which is quoted up to `quote` bytes.
    pub(crate) fn error(&self, source: IpAddr, kind: u8, code: u8, rest: u32, quote: usize) -> Self {
        let mut bytes = self.bytes();
        bytes.truncate(quote);
        Self::icmp(source, self.source, kind, code, rest, &bytes)
    }

    /// "Nobody listens there", by whom it was sent to.
    pub(crate) fn port_unreachable(&self) -> Self {
        let (kind, code) = if self.source.is_ipv4() { (3, 3) } else { (1, 4) };
        self.error(self.destination, kind, code, 0, 500)
    }

    /// The same the other way, addresses and ports: an answer, in UDP with the same payload.
    pub(crate) fn turned(&self) -> Self {
        let mut turned = self.clone();
        (turned.source, turned.destination, turned.hops) = (self.destination, self.source, 64);
        if matches!(self.protocol, TCP | UDP | SCTP) {
            turned.body[..4].rotate_left(2);
        }
        turned
    }

    /// The same with another hop limit.
    pub(crate) fn hops(mut self, hops: u8) -> Self {
        self.hops = hops;
        self
    }

    /// The same with IPv4 options.
    pub(crate) fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// The same, which routers may cut.
    pub(crate) fn may_be_cut(mut self) -> Self {
        self.whole = false;
        self
    }

    /// The body with its checksum made right.
    pub(crate) fn summed(mut self) -> Self {
        if let Some(at) = self.checksum_at() {
            self.body[at..at + 2].fill(0);
            let sum = match self.body_sum() {
                0 if self.protocol == UDP => 0xffff,
                sum => sum,
            };
            self.body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        self
    }

    /// The body after this was done to it; the checksum stays as it was.
    pub(crate) fn damaged(mut self, how: impl FnOnce(&mut Vec<u8>)) -> Self {
        how(&mut self.body);
        self
    }

    fn checksum_at(&self) -> Option<usize> {
        match self.protocol {
            TCP => Some(16),
            UDP => Some(6),
            ICMP | ICMPV6 => Some(2),
            _ => None,
        }
    }

    /// What the checksum ought to be when its field is 0; 0 when the checksum is right.
    fn body_sum(&self) -> u16 {
        if self.protocol == ICMP {
            return checksum(&self.body);
        }
        let length = (self.body.len() as u32).to_be_bytes();
        let pseudo = [&octets(self.source)[..], &octets(self.destination), &length, &[0, 0, 0, self.protocol]];
        checksum(&[&pseudo.concat()[..], &self.body].concat())
    }

    /// Fails when the body's checksum is wrong. Fragments and protocols without one pass.
    pub(crate) fn check(&self) -> Result<()> {
        let Some(at) = self.checksum_at().filter(|_| self.fragment.is_none()) else { return Ok(()) };
        let field = self.body.get(at..at + 2).with_context(|| format!("{self:?} is cut short"))?;
        let is_unused = self.protocol == UDP && self.source.is_ipv4() && field == [0, 0];
        ensure!(is_unused || self.body_sum() == 0, "the checksum of {self:?} is wrong");
        Ok(())
    }

    /// The wire's form, with a right header checksum.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let (offset, more) = self.fragment.unwrap_or((0, false));
        assert_eq!(offset % 8, 0, "an offset that no fragment can have");
        let mut header = match self.source {
            IpAddr::V4(_) => {
                let words = 5 + self.options.len() / 4;
                let length = (words * 4 + self.body.len()) as u16;
                let flags = (u16::from(self.whole) << 14) | (u16::from(more) << 13) | (offset / 8) as u16;
                let mut header = vec![0x40 | words as u8, 0];
                header.extend([length, self.id as u16, flags].map(u16::to_be_bytes).concat());
                header.extend([self.hops, self.protocol, 0, 0]);
                header
            }
            IpAddr::V6(_) => {
                let extra = if self.fragment.is_some() { 8 } else { 0 };
                let [high, low] = ((extra + self.body.len()) as u16).to_be_bytes();
                let next = if self.fragment.is_some() { FRAGMENT } else { self.protocol };
                vec![0x60, 0, 0, 0, high, low, next, self.hops]
            }
        };
        header.extend(octets(self.source));
        header.extend(octets(self.destination));
        if self.source.is_ipv4() {
            header.extend(&self.options);
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        } else if self.fragment.is_some() {
            header.extend([self.protocol, 0]);
            header.extend((offset as u16 | u16::from(more)).to_be_bytes());
            header.extend(self.id.to_be_bytes());
        }
        [header, self.body.clone()].concat()
    }

    /// In an Ethernet frame.
    pub(crate) fn frame(&self, source: Mac, destination: Mac) -> Vec<u8> {
        let ethertype = if self.source.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        [&destination.0, &source.0, &ethertype[..], &self.bytes()].concat()
    }

    /// Whether it is an ICMP error.
    pub(crate) fn is_error(&self) -> bool {
        let kind = self.body.first().copied().unwrap_or(255);
        match self.protocol {
            ICMP => matches!(kind, 3 | 4 | 5 | 11 | 12),
            ICMPV6 => kind < 128,
            _ => false,
        }
    }

    /// ICMP type and code.
    pub(crate) fn kind(&self) -> (u8, u8) {
        (self.body[0], self.body[1])
    }

    /// What follows an ICMP message's checksum.
    pub(crate) fn rest(&self) -> u32 {
        u32::from_be_bytes([self.body[4], self.body[5], self.body[6], self.body[7]])
    }

    /// Source and destination port; of an echo, the identifier twice.
    pub(crate) fn ports(&self) -> (u16, u16) {
        let word = |at: usize| u16::from_be_bytes([self.body[at], self.body[at + 1]]);
        match self.protocol {
            ICMP | ICMPV6 => (word(4), word(4)),
            TCP | UDP | SCTP => (word(0), word(2)),
            _ => (0, 0),
        }
    }

    /// Sender's address and port.
    pub(crate) fn from(&self) -> SocketAddr {
        SocketAddr::new(self.source, self.ports().0)
    }

    /// Receiver's address and port.
    pub(crate) fn to(&self) -> SocketAddr {
        SocketAddr::new(self.destination, self.ports().1)
    }

    /// TCP flags.
    pub(crate) fn flags(&self) -> u8 {
        self.body[13]
    }

    /// What is behind the transport header.
    pub(crate) fn payload(&self) -> &[u8] {
        match self.protocol {
            TCP => &self.body[usize::from(self.body[12] >> 4) * 4..],
            UDP | ICMP | ICMPV6 => &self.body[8..],
            SCTP => &self.body[12..],
            _ => &self.body,
        }
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
