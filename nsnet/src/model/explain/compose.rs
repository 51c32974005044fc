//! A frame from words: `udp 10.1.0.2:4000 192.0.2.7:53`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nsnet_common::checksum::Sum;
use nsnet_common::wire::arp::{Arp, REQUEST};
use nsnet_common::wire::icmpv6::{MacOption, SOURCE_MAC, Type};
use nsnet_common::wire::transport::tcp_flags;
use nsnet_common::wire::{EtherType, Ethernet, IpAddress, IpProtocol, Mac};
use zerocopy::IntoBytes as _;

use crate::model::flow::{parse_protocol, protocol_name};
use crate::model::{Result, refuse};

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A packet of this protocol over IP; an echo request, when that is ICMP of either version.
    Ip(IpProtocol),
    /// Who has the destination? Asked by ARP, or by neighbour discovery.
    Neighbour,
}

impl What {
    /// `arp`, `nd`, or a protocol by its name or number.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        match text {
            "arp" | "nd" => Ok(Self::Neighbour),
            other => parse_protocol(other).map(Self::Ip).map_err(|why| format!("say arp, nd, or a protocol: {why}")),
        }
    }

    /// Whether endpoints have ports.
    pub fn has_ports(self) -> bool {
        matches!(self, Self::Ip(IpProtocol::TCP | IpProtocol::UDP | IpProtocol::SCTP))
    }

    fn name(self) -> String {
        match self {
            Self::Ip(protocol) => protocol_name(protocol),
            Self::Neighbour => "arp".to_owned(),
        }
    }
}

/// One end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub ip: IpAddr,
    /// The port, when one was given.
    pub port: Option<u16>,
}

impl Endpoint {
    /// An address, or an address and a port: `10.1.0.2`, `10.1.0.2:80`, `fd00::1`, `[fd00::1]:80`.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let with_port = text.parse::<SocketAddr>().map(|at| Self { ip: at.ip(), port: Some(at.port()) });
        let bare = || text.trim_start_matches('[').trim_end_matches(']').parse().map(|ip| Self { ip, port: None });
        with_port.or_else(|_| bare()).map_err(|_| "say IP, IP:PORT or [IP]:PORT".to_owned())
    }
}

/// A part of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Where it begins, bytes behind the IP header.
    pub offset: u16,
    /// Whether more follow.
    pub more: bool,
}

impl Fragment {
    /// The offset in bytes; with a `+` behind it when more follow.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let (number, more) = text.strip_suffix('+').map_or((text, false), |number| (number, true));
        let offset = number.parse().ok().filter(|offset: &u16| offset.is_multiple_of(8) && (*offset > 0 || more));
        let offset =
            offset.ok_or("say the offset in bytes, a multiple of 8, with + behind it when more follow: 0+, 1480")?;
        Ok(Self { offset, more })
    }
}

/// TCP flags by their names, separated by commas.
pub fn parse_flags(text: &str) -> std::result::Result<u8, String> {
    const NAMES: [(&str, u8); 6] = [
        ("fin", tcp_flags::FIN),
        ("syn", tcp_flags::SYN),
        ("rst", tcp_flags::RST),
        ("psh", 1 << 3),
        ("ack", tcp_flags::ACK),
        ("urg", 1 << 5),
    ];
    let flag = |name: &str| NAMES.iter().find(|(known, _)| *known == name).map(|(_, flag)| *flag);
    let flags = text.split(',').map(|name| flag(name.trim()));
    flags.sum::<Option<u8>>().ok_or_else(|| "say fin, syn, rst, psh, ack or urg, with commas between".to_owned())
}

/// A packet in words, as far as it is not between whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What it is.
    pub what: What,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Bytes from the IP header on; what the protocol needs, when left out.
    pub length: Option<u16>,
    /// Whether it must not be cut (IPv4).
    pub whole: bool,
    /// Which part of a packet it is.
    pub fragment: Option<Fragment>,
    /// The number that the parts have in common.
    pub id: u16,
    /// Flags of a TCP segment, see [`tcp_flags`].
    pub flags: u8,
    /// TCP: sequence number and acknowledgement.
    pub numbers: (u32, u32),
}

/// Between whom a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// MACs: sender, receiver.
    pub macs: (Mac, Mac),
    /// The sender; the port is the identifier of an echo request.
    pub source: (IpAddr, u16),
    /// The receiver.
    pub destination: (IpAddr, u16),
}

impl Packet {
    /// Refuses what makes no packet: two families, a port too many or too few.
    pub fn check(&self, source: Option<Endpoint>, destination: Endpoint) -> Result<()> {
        let name = self.what.name();
        if let Some(source) = source
            && source.ip.is_ipv4() != destination.ip.is_ipv4()
        {
            return refuse(format_args!("{} and {} are of two families", source.ip, destination.ip));
        }
        let is_later = self.fragment.is_some_and(|fragment| fragment.offset > 0);
        if self.what.has_ports() && destination.port.is_none() && !is_later {
            return refuse(format_args!("{name} needs a port to go to: {}", socket(destination.ip, 80)));
        }
        if !self.what.has_ports() && (destination.port.is_some() || source.is_some_and(|source| source.port.is_some()))
        {
            return refuse(format_args!("{name} has no ports: say the address alone"));
        }
        if self.whole && !destination.ip.is_ipv4() {
            return refuse(format_args!(
                "--df is for IPv4: a packet of IPv6, as to {}, is never cut on its way",
                destination.ip
            ));
        }
        if self.flags != tcp_flags::SYN && self.what != What::Ip(IpProtocol::TCP) {
            return refuse(format_args!("{name} has no flags: --flags is for tcp"));
        }
        Ok(())
    }

    /// The frame.
    pub fn frame(&self, ends: &Ends) -> Result<Vec<u8>> {
        let (from, to) = ends.macs;
        let is_v4 = ends.source.0.is_ipv4();
        let ethertype = match (self.what, is_v4) {
            (What::Neighbour, true) => EtherType::ARP,
            (_, true) => EtherType::IPV4,
            (_, false) => EtherType::IPV6,
        };
        let header = Ethernet::new(to, from, ethertype);
        let packet = match (self.what, ends.source.0, ends.destination.0) {
            (What::Neighbour, IpAddr::V4(sender), IpAddr::V4(target)) => {
                Arp::new(REQUEST, (from, sender.octets()), (Mac::ZERO, target.octets())).as_bytes().to_vec()
            }
            (What::Neighbour, _, IpAddr::V6(target)) => {
                let question = [&[0; 4][..], &target.octets(), MacOption::new(SOURCE_MAC, from).as_bytes()].concat();
                let group = (IpAddr::V6(solicited_group(target)), 0);
                let body = icmp(Type::NEIGHBOUR_SOLICITATION.0, &question, ends.source.0, group.0);
                let packet = Self { ttl: 255, fragment: None, length: None, ..*self };
                packet.ip(IpProtocol::ICMPV6, &body, &Ends { destination: group, ..*ends })?
            }
            (What::Ip(protocol), ..) => {
                let protocol = match protocol {
                    IpProtocol::ICMP if !is_v4 => IpProtocol::ICMPV6,
                    IpProtocol::ICMPV6 if is_v4 => IpProtocol::ICMP,
                    other => other,
                };
                self.ip(protocol, &self.body(protocol, ends)?, ends)?
            }
            (What::Neighbour, IpAddr::V6(_), IpAddr::V4(_)) => return refuse("two families"),
        };
        Ok([header.as_bytes(), &packet].concat())
    }

    /// What follows the IP header.
    fn body(&self, protocol: IpProtocol, ends: &Ends) -> Result<Vec<u8>> {
        let room = self.room(ends.source.0.is_ipv4())?;
        if self.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return Ok(vec![0; room.unwrap_or(64)]);
        }
        let ports = [ends.source.1, ends.destination.1].map(u16::to_be_bytes).concat();
        // A ping has 56 bytes; others need none.
        let (head, payload): (Vec<u8>, usize) = match protocol {
            IpProtocol::TCP => {
                let numbers = [self.numbers.0, self.numbers.1].map(u32::to_be_bytes).concat();
                ([&ports, &numbers, &[0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0][..]].concat(), 0)
            }
            IpProtocol::UDP => ([&ports[..], &[0; 4]].concat(), 0),
            IpProtocol::SCTP => ([&ports[..], &[0, 0, 0, 1, 0, 0, 0, 0]].concat(), 0),
            IpProtocol::ICMP | IpProtocol::ICMPV6 => (vec![0; 8], 56),
            _ => (Vec::new(), 8),
        };
        let length = room.unwrap_or(head.len() + payload);
        if length < head.len() {
            let least = head.len() + self.header(ends.source.0.is_ipv4());
            return refuse(format_args!("--length is too short: {} needs {least} bytes", self.what.name()));
        }
        let mut body = [head.clone(), vec![0; length - head.len()]].concat();
        let (source, destination) = (ends.source.0, ends.destination.0);
        match protocol {
            IpProtocol::TCP => {
                let sum = checksum(&body, pseudo_header(source, destination, body.len(), protocol));
                body[16..18].copy_from_slice(&sum.to_be_bytes());
            }
            IpProtocol::UDP => {
                body[4..6].copy_from_slice(&(length as u16).to_be_bytes());
                let sum = match checksum(&body, pseudo_header(source, destination, body.len(), protocol)) {
                    0 => 0xffff,
                    sum => sum,
                };
                body[6..8].copy_from_slice(&sum.to_be_bytes());
            }
            IpProtocol::ICMP | IpProtocol::ICMPV6 => {
                let kind = if protocol == IpProtocol::ICMP { 8 } else { 128 };
                let rest = [&ends.source.1.to_be_bytes()[..], &[0, 1], &body[8..]].concat();
                body = icmp(kind, &rest, source, destination);
            }
            _ => {}
        }
        Ok(body)
    }

    /// Bytes of the IP header and what is between it and the body.
    fn header(&self, is_v4: bool) -> usize {
        match (is_v4, self.fragment) {
            (true, _) => 20,
            (false, None) => 40,
            (false, Some(_)) => 48,
        }
    }

    /// Bytes for the body.
    fn room(&self, is_v4: bool) -> Result<Option<usize>> {
        let header = self.header(is_v4);
        match self.length.map(usize::from) {
            Some(length) if length < header => {
                refuse(format_args!("--length is too short: an IP header has {header} bytes"))
            }
            length => Ok(length.map(|length| length - header)),
        }
    }

    fn ip(&self, protocol: IpProtocol, body: &[u8], ends: &Ends) -> Result<Vec<u8>> {
        let Fragment { offset, more } = self.fragment.unwrap_or(Fragment { offset: 0, more: false });
        let length = self.header(ends.source.0.is_ipv4()) + body.len();
        let header = match (ends.source.0, ends.destination.0) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let flags = u16::from(self.whole) << 14 | u16::from(more) << 13 | (offset / 8);
                let words = [length as u16, self.id, flags].map(u16::to_be_bytes).concat();
                let mut header = [&[0x45, 0][..], &words, &[self.ttl, protocol.0, 0, 0]].concat();
                header.extend(source.octets());
                header.extend(destination.octets());
                let sum = checksum(&header, Sum::default());
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                header
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let payload = ((length - 40) as u16).to_be_bytes();
                let next = if self.fragment.is_some() { IpProtocol::FRAGMENT } else { protocol };
                let mut header = [&[0x60, 0, 0, 0][..], &payload, &[next.0, self.ttl]].concat();
                header.extend(source.octets());
                header.extend(destination.octets());
                if self.fragment.is_some() {
                    header.extend([protocol.0, 0]);
                    header.extend((offset | u16::from(more)).to_be_bytes());
                    header.extend([[0; 2], self.id.to_be_bytes()].concat());
                }
                header
            }
            _ => return refuse("the two ends are of two families"),
        };
        Ok([&header, body].concat())
    }
}

fn socket(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// The MAC that packets to a group go to (RFC 1112 section 6.4, RFC 2464 section 7); `None` for an address of one station.
pub fn group_mac(ip: IpAddr) -> Option<Mac> {
    match ip {
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some(Mac::BROADCAST),
        IpAddr::V4(ip) if ip.is_multicast() => {
            let [_, b, c, d] = ip.octets();
            Some(Mac([0x01, 0x00, 0x5e, b & 0x7f, c, d]))
        }
        IpAddr::V6(ip) if ip.is_multicast() => {
            let [.., a, b, c, d] = ip.octets();
            Some(Mac([0x33, 0x33, a, b, c, d]))
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// The group that neighbours of an address listen to (RFC 4291 section 2.7.1).
pub fn solicited_group(target: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = target.octets();
    Ipv6Addr::from([0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

fn icmp(kind: u8, rest: &[u8], source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0][..], rest].concat();
    let pseudo = match source {
        IpAddr::V4(_) => Sum::default(),
        IpAddr::V6(_) => pseudo_header(source, destination, message.len(), IpProtocol::ICMPV6),
    };
    let sum = checksum(&message, pseudo);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

fn pseudo_header(source: IpAddr, destination: IpAddr, length: usize, protocol: IpProtocol) -> Sum {
    let (source, destination) = (IpAddress::from(source), IpAddress::from(destination));
    // Mapped, an IPv4 address brings ff:ff along, which is the other zero.
    Sum::pseudo_header_v6(source, destination, length as u16, protocol)
}

fn checksum(bytes: &[u8], sum: Sum) -> u16 {
    let add = |sum: Sum, pair: &[u8]| sum.bytes(pair[0], pair.get(1).copied().unwrap_or(0));
    bytes.chunks(2).fold(sum, add).finish()
}

#[cfg(test)]
mod tests {
    use super::super::fields::summary;
    use super::*;

    const MACS: (Mac, Mac) = (Mac([2, 0, 1, 0, 2, 3]), Mac([2, 0, 1, 0, 1, 7]));

    fn packet(what: &str) -> Packet {
        Packet {
            what: What::parse(what).unwrap(),
            ttl: 64,
            length: None,
            whole: false,
            fragment: None,
            id: 0x1234,
            flags: tcp_flags::SYN,
            numbers: (1, 0),
        }
    }

    fn ends(source: &str, destination: &str) -> Ends {
        let end = |text| {
            let Endpoint { ip, port } = Endpoint::parse(text).unwrap();
            (ip, port.unwrap_or(7))
        };
        Ends { macs: MACS, source: end(source), destination: end(destination) }
    }

    /// Over the header, and over the rest with its pseudo-header.
    fn sums_are_right(frame: &[u8]) -> bool {
        let is_v4 = frame[12..14] == [8, 0];
        let header = if is_v4 { 20 } else { 40 };
        let protocol = IpProtocol(if is_v4 { frame[23] } else { frame[20] });
        let (a, b) = if is_v4 { (26, 30) } else { (22, 38) };
        let ip = |at: usize| -> IpAddr {
            if is_v4 {
                Ipv4Addr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap()).into()
            } else {
                Ipv6Addr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap()).into()
            }
        };
        let body = &frame[14 + header..];
        let pseudo = match protocol {
            IpProtocol::ICMP => Sum::default(),
            protocol => pseudo_header(ip(a), ip(b), body.len(), protocol),
        };
        (!is_v4 || checksum(&frame[14..34], Sum::default()) == 0) && checksum(body, pseudo) == 0
    }

    #[test]
    fn what_is_said_is_what_is_in_the_frame() {
        for (what, source, destination, expected) in [
            ("icmp", "192.168.15.1", "192.0.2.7", "192.168.15.1 > 192.0.2.7 icmp 98, echo request, id 7, TTL 64"),
            ("icmp", "fd15::1", "fd02::2", "fd15::1 > fd02::2 icmpv6 118, echo request, id 7, TTL 64"),
            ("udp", "10.0.0.2:5000", "192.0.2.7:53", "10.0.0.2:5000 > 192.0.2.7:53 udp 42, TTL 64"),
            ("tcp", "10.0.0.2:5000", "192.0.2.7:80", "10.0.0.2:5000 > 192.0.2.7:80 tcp [S] 54, TTL 64"),
            ("tcp", "[fd15::1]:5", "[fd02::2]:80", "[fd15::1]:5 > [fd02::2]:80 tcp [S] 74, TTL 64"),
        ] {
            let frame = packet(what).frame(&ends(source, destination)).unwrap();
            assert_eq!(summary(&frame), expected);
            assert!(sums_are_right(&frame), "{expected}: {frame:02x?}");
        }
        let arp = packet("arp").frame(&ends("192.168.15.1", "192.168.15.2")).unwrap();
        assert_eq!(summary(&arp), "192.168.15.1 > 192.168.15.2 arp 42, who has 192.168.15.2?");
        let nd = packet("nd").frame(&ends("fd15::1", "fd15::2")).unwrap();
        assert_eq!(summary(&nd), "fd15::1 > ff02::1:ff00:2 icmpv6 86, neighbour solicitation, TTL 255");
        assert!(sums_are_right(&nd));
    }

    #[test]
    fn lengths_and_fragments() {
        let long = Packet { length: Some(1400), ttl: 3, ..packet("udp") };
        let frame = long.frame(&ends("10.0.0.2:5000", "192.0.2.7:53")).unwrap();
        assert_eq!((frame.len(), frame[22]), (1414, 3));
        let later = Packet { fragment: Some(Fragment::parse("1480").unwrap()), length: Some(500), ..packet("udp") };
        for (a, b) in [("10.0.0.2", "192.0.2.7"), ("fd15::1", "fd02::2")] {
            let frame = later.frame(&ends(a, b)).unwrap();
            assert_eq!(frame.len(), 514);
            assert!(summary(&frame).contains("fragment from byte 1480, the last"), "{}", summary(&frame));
        }
        for short in [10, 22] {
            let short = Packet { length: Some(short), ..packet("udp") };
            assert!(short.frame(&ends("10.0.0.2:5000", "192.0.2.7:53")).is_err());
        }
        for bad in ["0", "7+", "1481", "x", "65536+"] {
            assert!(Fragment::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_makes_no_packet_is_refused() {
        let end = |text: &str| Endpoint::parse(text).unwrap();
        let refused = |what: &str, source: &str, destination: &str| {
            packet(what).check(Some(end(source)), end(destination)).unwrap_err().to_string()
        };
        assert!(refused("udp", "10.0.0.2:1", "fd00::1").contains("two families"));
        assert!(refused("udp", "10.0.0.2:1", "10.0.0.3").contains("needs a port"));
        assert!(refused("icmp", "10.0.0.2", "10.0.0.3:80").contains("has no ports"));
        let flags = Packet { flags: tcp_flags::ACK, ..packet("udp") };
        assert!(flags.check(None, end("10.0.0.3:80")).is_err());
        let whole = Packet { whole: true, ..packet("icmp") };
        assert!(whole.check(None, end("fd15::1")).unwrap_err().to_string().starts_with("--df is for IPv4"));
        assert!(whole.check(None, end("10.0.0.3")).is_ok());
        assert!(packet("tcp").check(None, end("10.0.0.3:80")).is_ok());
        assert_eq!(parse_flags("syn,ack"), Ok(tcp_flags::SYN | tcp_flags::ACK));
        assert!(parse_flags("sin").is_err());
        assert!(What::parse("tpc").is_err() && Endpoint::parse("10.0.0").is_err());
    }

    #[test]
    fn groups() {
        let mac = |text: &str| group_mac(text.parse().unwrap()).map(|mac| mac.to_string());
        assert_eq!(mac("224.0.0.251").as_deref(), Some("01:00:5e:00:00:fb"));
        assert_eq!(mac("ff02::1").as_deref(), Some("33:33:00:00:00:01"));
        assert_eq!(mac("255.255.255.255").as_deref(), Some("ff:ff:ff:ff:ff:ff"));
        assert_eq!(mac("192.0.2.7"), None);
    }
}
