//! What routing and NAT read of a packet: its tuple, and where its transport header is.

use crate::layout::{FlowKey, NetworkId};
use crate::packet::Packet;
use crate::tables::{Stage, Tables};
use crate::verdict::DropReason;
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::transport::{Ports, Tcp, Udp, tcp_flags};
use crate::wire::{EtherType, Ethernet, IpAddress, IpProtocol};

/// What is in the packet, as far as that decides what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP segment.
    Tcp,
    /// A UDP datagram.
    Udp,
    /// An SCTP packet: has ports, but they must not change (a CRC covers them, RFC 9260 section 6.8).
    Sctp,
    /// An ICMP echo request: its identifier is the sender's port.
    EchoRequest,
    /// An ICMP echo reply: its identifier is the receiver's port.
    EchoReply,
    /// An ICMP error: about the packet that it quotes.
    IcmpError,
    /// Neighbour discovery, multicast listeners: for the link only.
    Link,
    /// A fragment but the first: no transport header is here.
    LaterFragment,
    /// Another protocol: addresses are all there is.
    Other,
}

/// A packet's tuple, and where its parts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// The tuple.
    pub key: FlowKey,
    /// What it is.
    pub kind: Kind,
    /// Offset of the transport header in the frame. 16 bits, which bound it for the verifier.
    pub at: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TCP flags, see [`tcp_flags`]; 0 for others.
    pub flags: u8,
    /// Whether a router may not cut it: DF, and IPv6 always.
    pub whole: bool,
    /// Whether it is a first fragment, which others follow.
    pub is_first_fragment: bool,
    /// TCP: number of the first byte.
    pub sequence: u32,
    /// TCP: number of the byte after the last, SYN and FIN counted.
    pub end: u32,
    /// TCP: the acknowledgement.
    pub acknowledgement: u32,
}

/// The head of every ICMP and ICMPv6 message; the identifier where there is one.
#[derive(
    Clone,
    Copy,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::KnownLayout,
    zerocopy::Immutable,
    zerocopy::Unaligned,
)]
#[repr(C)]
pub(crate) struct Query {
    pub(crate) kind: u8,
    pub(crate) code: u8,
    pub(crate) checksum: [u8; 2],
    pub(crate) identifier: [u8; 2],
    pub(crate) sequence: [u8; 2],
}

impl Query {
    /// Offset of the checksum in the message.
    pub(crate) const CHECKSUM_AT: usize = 2;
    /// Offset of the identifier.
    pub(crate) const IDENTIFIER_AT: usize = 4;
}

impl Datagram {
    /// No packet.
    pub const EMPTY: Self = Self {
        key: FlowKey::EMPTY,
        kind: Kind::Other,
        at: 0,
        ttl: 0,
        flags: 0,
        whole: false,
        is_first_fragment: false,
        sequence: 0,
        end: 0,
        acknowledgement: 0,
    };

    /// Reads the packet in `frame`, which is IPv4 or IPv6, on `side`; in place, to spare the stack.
    #[inline(never)]
    pub fn read(&mut self, frame: &impl Packet, side: NetworkId, tables: impl Tables) -> Result<(), DropReason> {
        tables.enter(Stage::Packet);
        match Ethernet::read(frame)?.ethertype() {
            EtherType::IPV4 => self.read_v4(frame, side, tables),
            EtherType::IPV6 => self.read_v6(frame, side, tables),
            _ => Err(DropReason::EtherType),
        }
    }

    #[inline(always)]
    fn read_v4(&mut self, frame: &impl Packet, side: NetworkId, tables: impl Tables) -> Result<(), DropReason> {
        let ip = Ipv4::read_whole(frame)?;
        let (source, destination) = (IpAddress::v4(ip.source()), ip.destination());
        self.begin(side, ip.protocol(), source, destination, true);
        self.at = ip.transport_at() as u16;
        self.ttl = ip.ttl();
        self.whole = ip.dont_fragment();
        self.is_first_fragment = ip.more_fragments() && ip.has_transport_header();
        if ip.header_length() > Ipv4::LEN {
            check_options(frame, self.at, tables)?;
        }
        if !ip.has_transport_header() {
            self.kind = Kind::LaterFragment;
            return Ok(());
        }
        let end = ip.total_length();
        let available = if end == 0 { u32::from(u16::MAX) } else { u32::from(end) + Ethernet::LEN as u32 };
        self.read_transport(frame, available)
    }

    #[inline(always)]
    fn read_v6(&mut self, frame: &impl Packet, side: NetworkId, tables: impl Tables) -> Result<(), DropReason> {
        let ip = Ipv6::read(frame)?;
        let (source, destination) = (ip.source(), ip.destination());
        let (ttl, payload, next) = (ip.hop_limit(), ip.payload_length(), ip.next_header());
        self.begin(side, next, source, destination, false);
        self.at = (Ethernet::LEN + Ipv6::LEN) as u16;
        self.ttl = ttl;
        self.whole = true;
        if !matches!(next, IpProtocol::TCP | IpProtocol::UDP | IpProtocol::ICMPV6) {
            self.read_chain(frame, tables)?;
            if self.kind == Kind::LaterFragment {
                return Ok(());
            }
        }
        let available = match payload {
            // A GSO frame over 64 KB does not say (BIG TCP). Others with 0 end here.
            0 if frame.gso_size() != 0 => u32::from(u16::MAX),
            payload => u32::from(payload) + (Ethernet::LEN + Ipv6::LEN) as u32,
        };
        self.read_transport(frame, available)
    }

    /// Walks the extension headers.
    #[inline(never)]
    fn read_chain(&mut self, frame: &impl Packet, tables: impl Tables) -> Result<(), DropReason> {
        let upper = Ipv6::read(frame)?.upper_layer(frame, tables)?;
        self.key = self.key.with_protocol(upper.protocol);
        self.at = upper.at;
        self.is_first_fragment = upper.is_first_fragment;
        if !upper.is_here {
            self.kind = Kind::LaterFragment;
        }
        Ok(())
    }

    #[inline(always)]
    fn begin(&mut self, side: NetworkId, protocol: IpProtocol, source: IpAddress, destination: IpAddress, is_v4: bool) {
        self.key = FlowKey::new(side, protocol, (source, [0; 2]), (destination, [0; 2]), is_v4);
        self.kind = Kind::Other;
        self.flags = 0;
        self.is_first_fragment = false;
        (self.sequence, self.end, self.acknowledgement) = (0, 0, 0);
    }

    /// Reads what follows the IP header. `available` is where the packet ends in the frame, as its IP header says.
    ///
    /// A transport header that is cut off by a fragment's end, or contradicts itself, is refused: it could not be
    /// translated, and untranslated it must not pass (RFC 1858 section 3, RFC 3128).
    #[inline(always)]
    fn read_transport(&mut self, frame: &impl Packet, available: u32) -> Result<(), DropReason> {
        let bad = if self.is_first_fragment { DropReason::FragmentTiny } else { DropReason::BadTransport };
        let at = usize::from(self.at);
        let room = available.saturating_sub(u32::from(self.at));
        match self.key.protocol() {
            IpProtocol::TCP => {
                let tcp = frame.copy::<Tcp>(at).ok_or(bad)?;
                let header = tcp.header_length() as u32;
                if header < Tcp::LEN as u32 || header > room {
                    return Err(bad);
                }
                let flags = tcp.flags();
                let counted = u32::from(flags & tcp_flags::SYN != 0) + u32::from(flags & tcp_flags::FIN != 0);
                self.kind = Kind::Tcp;
                self.flags = flags;
                self.sequence = tcp.sequence();
                self.end = tcp.sequence().wrapping_add(room - header).wrapping_add(counted);
                self.acknowledgement = tcp.acknowledgement();
                self.read_ports(frame, at, bad)
            }
            IpProtocol::UDP => {
                let udp = frame.copy::<Udp>(at).ok_or(bad)?;
                let length = u32::from(udp.length());
                // A GSO datagram longer than 64 KB says 0; the length of a fragment's datagram exceeds the fragment.
                let is_whole = !self.is_first_fragment && frame.gso_size() == 0;
                if room < Udp::LEN as u32 || is_whole && (length < Udp::LEN as u32 || length > room) {
                    return Err(bad);
                }
                self.kind = Kind::Udp;
                self.read_ports(frame, at, bad)
            }
            _ => self.read_other(frame, room, bad),
        }
    }

    /// Reads what is neither TCP nor UDP. Apart, to spare the stack of those.
    #[inline(never)]
    fn read_other(&mut self, frame: &impl Packet, room: u32, bad: DropReason) -> Result<(), DropReason> {
        let at = usize::from(self.at);
        match self.key.protocol() {
            // What follows the packet in the frame is no part of it.
            IpProtocol::SCTP | IpProtocol::ICMP | IpProtocol::ICMPV6 if room < size_of::<Query>() as u32 => Err(bad),
            IpProtocol::SCTP => {
                self.kind = Kind::Sctp;
                self.read_ports(frame, at, bad)
            }
            IpProtocol::ICMP if self.key.is_v4() => {
                let query = *frame.view::<Query>(at).ok_or(bad)?;
                self.kind = match query.kind {
                    8 => Kind::EchoRequest,
                    0 => Kind::EchoReply,
                    // Destination unreachable, time exceeded, parameter problem. Source quench is dead (RFC 6633).
                    3 | 11 | 12 => Kind::IcmpError,
                    _ => return Err(DropReason::IcmpType),
                };
                self.take_identifier(query.identifier);
                Ok(())
            }
            IpProtocol::ICMPV6 if !self.key.is_v4() => {
                let query = *frame.view::<Query>(at).ok_or(bad)?;
                self.kind = match query.kind {
                    128 => Kind::EchoRequest,
                    129 => Kind::EchoReply,
                    1..=4 => Kind::IcmpError,
                    130..=137 | 143 => Kind::Link,
                    _ => return Err(DropReason::IcmpType),
                };
                self.take_identifier(query.identifier);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    #[inline(always)]
    fn read_ports(&mut self, frame: &impl Packet, at: usize, bad: DropReason) -> Result<(), DropReason> {
        let ports = frame.copy::<Ports>(at).ok_or(bad)?;
        (self.key.source_port, self.key.destination_port) = (ports.source, ports.destination);
        Ok(())
    }

    #[inline(always)]
    fn take_identifier(&mut self, identifier: [u8; 2]) {
        match self.kind {
            Kind::EchoRequest => self.key.source_port = identifier,
            Kind::EchoReply => self.key.destination_port = identifier,
            Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::IcmpError | Kind::Link | Kind::LaterFragment | Kind::Other => {}
        }
    }

    /// Whether it begins a TCP connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.flags & (tcp_flags::SYN | tcp_flags::ACK | tcp_flags::RST | tcp_flags::FIN) == tcp_flags::SYN
    }

    /// Whether it is one of several parts of a packet.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        self.is_first_fragment || self.kind == Kind::LaterFragment
    }

    /// Whether the flag is set.
    #[inline(always)]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Refuses source routes (RFC 791 section 3.1: loose and strict), by which a packet would name its own way. Other options
/// pass as they are. `end` is where they end in the frame.
#[inline(never)]
fn check_options(frame: &impl Packet, end: u16, tables: impl Tables) -> Result<(), DropReason> {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const LOOSE_ROUTE: u8 = 131;
    const STRICT_ROUTE: u8 = 137;
    let mut at = (Ethernet::LEN + Ipv4::LEN) as u16;
    let mut outcome = Ok(());
    // 40 bytes at most, of which each option takes one or more. What follows them is always there: a transport header.
    tables.repeat(40, &mut || {
        if at >= end {
            return false;
        }
        let length = match frame.view::<[u8; 2]>(usize::from(at)).copied() {
            Some([END, _]) => return false,
            Some([NOTHING, _]) => 1,
            Some([kind, length])
                if kind != LOOSE_ROUTE && kind != STRICT_ROUTE && length >= 2 && at + u16::from(length) <= end =>
            {
                u16::from(length)
            }
            Some(_) | None => {
                outcome = Err(DropReason::SourceRoute);
                return false;
            }
        };
        at += length;
        true
    });
    outcome
}
