//! What people know a frame by: addresses, protocol and ports, in one line. Frames may be cut short.

use std::fmt;
use std::net::IpAddr;

use nsnet_common::checksum::Sum;
use nsnet_common::memory::MemoryTables;
use nsnet_common::packet::{Buffer, Packet as _};
use nsnet_common::wire::arp::Arp;
use nsnet_common::wire::ipv4::Ipv4;
use nsnet_common::wire::ipv6::Ipv6;
use nsnet_common::wire::transport::{Ports, Tcp, Udp, tcp_flags};
use nsnet_common::wire::{EtherType, Ethernet, IpAddress, IpProtocol, Mac};

use super::flow::protocol_name;

/// The headers of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Sender and receiver; of ARP, the two that it is about.
    pub addresses: Option<(IpAddress, IpAddress)>,
    /// The same on the wire; `None` for less than an Ethernet header.
    pub macs: Option<(Mac, Mac)>,
    /// What the frame carries.
    pub protocol: Protocol,
    /// The sender's and the receiver's port. Only a packet's first fragment has them.
    pub ports: Option<(u16, u16)>,
    /// See [`tcp_flags`].
    pub tcp_flags: Option<u8>,
    /// Whether it is a fragment of a packet.
    pub is_fragment: bool,
    /// Whether its TCP or UDP checksum is that of the pseudo-header only: whoever sends it on is still to fill it in.
    pub has_partial_checksum: bool,
    /// Bytes of the frame.
    pub length: u32,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// IPv4 or IPv6, and this.
    Ip(IpProtocol),
    /// Something else over Ethernet.
    Ethernet(EtherType),
    /// A frame that ends before it says.
    Unknown,
}

impl Headers {
    /// Reads what is there of a frame of `length` bytes.
    pub fn read(bytes: &[u8], length: u32) -> Self {
        let frame = Buffer::new(bytes);
        let mut headers = Self {
            addresses: None,
            macs: None,
            protocol: Protocol::Unknown,
            ports: None,
            tcp_flags: None,
            is_fragment: false,
            has_partial_checksum: false,
            length,
        };
        let Some(eth) = frame.view::<Ethernet>(0) else { return headers };
        headers.macs = Some((eth.source, eth.destination));
        headers.protocol = Protocol::Ethernet(eth.ethertype());
        match eth.ethertype() {
            EtherType::IPV4 => headers.read_v4(&frame),
            EtherType::IPV6 => headers.read_v6(&frame),
            EtherType::ARP => {
                let arp = frame.view::<Arp>(Ethernet::LEN);
                headers.addresses = arp.map(|arp| (IpAddress::v4(arp.sender_ip), IpAddress::v4(arp.target_ip)));
            }
            _ => {}
        }
        headers
    }

    fn read_v4(&mut self, frame: &Buffer) {
        let Some(ip) = frame.view::<Ipv4>(Ethernet::LEN).copied() else { return };
        self.protocol = Protocol::Ip(ip.protocol());
        self.addresses = Some((IpAddress::v4(ip.source()), ip.destination()));
        self.is_fragment = ip.more_fragments() || !ip.has_transport_header();
        if ip.has_transport_header() {
            let end = Ethernet::LEN + usize::from(ip.total_length());
            self.read_transport(frame, ip.protocol(), ip.transport_at(), end);
        }
    }

    fn read_v6(&mut self, frame: &Buffer) {
        let Some(ip) = frame.view::<Ipv6>(Ethernet::LEN).copied() else { return };
        self.protocol = Protocol::Ip(ip.next_header());
        self.addresses = Some((ip.source(), ip.destination()));
        let Ok(upper) = ip.upper_layer(frame, &MemoryTables::default()) else { return };
        self.protocol = Protocol::Ip(upper.protocol);
        self.is_fragment = upper.is_first_fragment || !upper.is_here;
        if upper.is_here {
            let end = Ethernet::LEN + Ipv6::LEN + usize::from(ip.payload_length());
            self.read_transport(frame, upper.protocol, usize::from(upper.at), end);
        }
    }

    fn read_transport(&mut self, frame: &Buffer, protocol: IpProtocol, at: usize, end: usize) {
        let checksum_at = match protocol {
            IpProtocol::TCP => {
                self.tcp_flags = frame.view::<Tcp>(at).map(Tcp::flags);
                Some(Tcp::CHECKSUM_AT)
            }
            IpProtocol::UDP => Some(Udp::CHECKSUM_AT),
            IpProtocol::SCTP => None,
            _ => return,
        };
        let port = u16::from_be_bytes;
        self.ports = frame.view::<Ports>(at).map(|ports| (port(ports.source), port(ports.destination)));
        if let (Some(checksum_at), false) = (checksum_at, self.is_fragment) {
            // A GSO frame over 64 KB says 0.
            let end = if end <= at { self.length as usize } else { end };
            self.has_partial_checksum = self.is_partial(frame, protocol, (at, end), at + checksum_at);
        }
    }

    /// Whether the field at `checksum_at` holds the sum over the pseudo-header (net/ipv4/tcp_ipv4.c, `__tcp_v4_send_check()`),
    /// and is not by chance the right one.
    fn is_partial(&self, frame: &Buffer, protocol: IpProtocol, message: (usize, usize), checksum_at: usize) -> bool {
        let (Some((source, destination)), (at, end)) = (self.addresses, message) else { return false };
        let Some(field) = frame.view::<[u8; 2]>(checksum_at).map(|field| u16::from_be_bytes(*field)) else {
            return false;
        };
        let sum_of = |ip: IpAddress| match ip.as_v4() {
            Some([a, b, c, d]) => Sum::default().bytes(a, b).bytes(c, d),
            None => Sum::default().ip(ip),
        };
        let length = (end - at) as u32;
        let pseudo = sum_of(source).and(sum_of(destination)).word(u16::from(protocol.0));
        let pseudo = pseudo.word(length as u16).word((length >> 16) as u16);
        if field != !pseudo.finish() {
            return false;
        }
        let Some(message) = frame.bytes.get(at..end) else { return true };
        let words = message.chunks(2).map(|word| (word.first().copied(), word.get(1).copied()));
        let whole = words.fold(pseudo, |sum, (a, b)| sum.bytes(a.unwrap_or(0), b.unwrap_or(0)));
        whole.finish() != 0
    }
}

impl Headers {
    /// `source > destination`.
    pub fn ends(&self) -> String {
        let end = |ip: IpAddress, port: Option<u16>| match (IpAddr::from(ip), port) {
            (ip, None) => ip.to_string(),
            (IpAddr::V4(ip), Some(port)) => format!("{ip}:{port}"),
            (IpAddr::V6(ip), Some(port)) => format!("[{ip}]:{port}"),
        };
        let (from, to) = (self.ports.map(|ports| ports.0), self.ports.map(|ports| ports.1));
        match (self.addresses, self.macs) {
            (Some(ips), _) => format!("{} > {}", end(ips.0, from), end(ips.1, to)),
            (None, Some(macs)) => format!("{} > {}", macs.0, macs.1),
            (None, None) => "? > ?".to_owned(),
        }
    }
}

impl fmt::Display for Headers {
    /// `source > destination protocol length`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.ends(), self.protocol)?;
        if let Some(flags) = self.tcp_flags {
            let letters = [(tcp_flags::SYN, "S"), (tcp_flags::FIN, "F"), (tcp_flags::RST, "R"), (tcp_flags::ACK, ".")];
            let set = letters.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, letter)| *letter);
            write!(f, " [{}]", set.collect::<String>())?;
        }
        if self.is_fragment {
            f.write_str(" fragment")?;
        }
        write!(f, " {}", self.length)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(protocol) => f.write_str(&protocol_name(*protocol)),
            Self::Ethernet(EtherType::ARP) => f.write_str("arp"),
            Self::Ethernet(EtherType::IPV4) => f.write_str("ipv4"),
            Self::Ethernet(EtherType::IPV6) => f.write_str("ipv6"),
            Self::Ethernet(EtherType(number)) => write!(f, "ethertype-{number:#06x}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ethernet and IPv4 from 10.0.0.1 to 10.0.0.2 before `message`.
    fn ipv4(protocol: u8, flags: u16, message: &[u8]) -> Vec<u8> {
        let total = (20 + message.len()) as u16;
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
        frame.extend(total.to_be_bytes());
        frame.extend([0, 0]);
        frame.extend(flags.to_be_bytes());
        frame.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(message);
        frame
    }

    fn line(frame: &[u8]) -> String {
        Headers::read(frame, frame.len() as u32).to_string()
    }

    #[test]
    fn one_line_says_who_and_what() {
        let udp = ipv4(17, 0, &[0x0f, 0xa0, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
        assert_eq!(line(&udp), "10.0.0.1:4000 > 10.0.0.2:53 udp 46");
        let mut syn = [0; 20];
        (syn[1], syn[3], syn[12], syn[13]) = (7, 80, 0x50, 0x12);
        assert_eq!(line(&ipv4(6, 0, &syn)), "10.0.0.1:7 > 10.0.0.2:80 tcp [S.] 54");
        assert_eq!(line(&ipv4(1, 0, &[8, 0, 0, 0, 0, 0, 0, 0])), "10.0.0.1 > 10.0.0.2 icmp 42");
        assert_eq!(line(&ipv4(17, 5, &[1; 16])), "10.0.0.1 > 10.0.0.2 udp fragment 50");
        // Cut short, wherever.
        assert_eq!(Headers::read(&udp[..36], 46).to_string(), "10.0.0.1 > 10.0.0.2 udp 46");
        assert_eq!(Headers::read(&udp[..30], 46).to_string(), "02:00:00:00:00:01 > 02:00:00:00:00:02 ipv4 46");
        assert_eq!(line(&udp[..5]), "? > ? unknown 5");
        assert_eq!(
            line(&[[0; 12].as_slice(), &[0x81, 0, 0, 5]].concat()),
            "00:00:00:00:00:00 > 00:00:00:00:00:00 ethertype-0x8100 16"
        );
    }

    #[test]
    fn a_partial_checksum_is_known() {
        // 10.0.0.1 + 10.0.0.2 + 17 + 12 = 1403 + 1d.
        let message = |checksum: u16| {
            let [a, b] = checksum.to_be_bytes();
            ipv4(17, 0, &[0x0f, 0xa0, 0, 53, 0, 12, a, b, 1, 2, 3, 4])
        };
        let is_partial = |frame: &[u8], length| Headers::read(frame, length).has_partial_checksum;
        let pseudo = 0x0a00 + 0x0001 + 0x0a00 + 0x0002 + 17 + 12;
        assert!(is_partial(&message(pseudo), 46));
        assert!(is_partial(&message(pseudo)[..42], 46), "cut short, but the header is there");
        assert!(!is_partial(&message(0), 46) && !is_partial(&message(!pseudo), 46));
    }
}
