//! A conversation between a namespace and a host afar: each of its packets, before and after.

use crate::layout::{FlowKey, NetworkId};
use crate::wire::{IpAddress, IpProtocol};

use super::frame::Frame;
use super::sequence::{Step, from, outside};
use super::world::{AFAR_V4, AFAR_V6, End, HOST, HOST_2, HOST_4, HOST_5, ROUTER_MAC, SECRET, UPLINK};

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 16;

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum L4 {
    /// Flags, sequence, acknowledgement, bytes.
    Tcp(u8, u32, u32, usize),
    Udp,
    Ping,
    Pong,
    Sctp,
    Other,
}

impl L4 {
    pub(super) fn protocol(self, is_v4: bool) -> IpProtocol {
        match self {
            Self::Tcp(..) => IpProtocol::TCP,
            Self::Udp => IpProtocol::UDP,
            Self::Ping | Self::Pong if is_v4 => IpProtocol::ICMP,
            Self::Ping | Self::Pong => IpProtocol::ICMPV6,
            Self::Sctp => IpProtocol::SCTP,
            Self::Other => IpProtocol(253),
        }
    }

    /// What a receiver answers.
    pub(super) fn answer(self) -> Self {
        match self {
            Self::Tcp(SYN, sequence, ..) => Self::Tcp(SYN | ACK, 9000, sequence + 1, 0),
            Self::Ping => Self::Pong,
            Self::Tcp(..) | Self::Udp | Self::Pong | Self::Sctp | Self::Other => self,
        }
    }
}

/// Appends the transport header and something to carry.
pub(super) fn put(frame: Frame, l4: L4, (source, destination): (u16, u16), is_v4: bool) -> Frame {
    let message = |identifier: u16| [&identifier.to_be_bytes()[..], &[0, 7, 1, 2, 3]].concat();
    match l4 {
        L4::Tcp(flags, sequence, acknowledgement, length) => {
            frame.segment((source, destination), flags, (sequence, acknowledgement)).payload(length)
        }
        L4::Udp => frame.udp(source, destination).payload(11),
        L4::Ping if is_v4 => frame.icmp(8, 0, &message(source)),
        L4::Ping => frame.icmpv6(128, 0, &message(source)),
        L4::Pong if is_v4 => frame.icmp(0, 0, &message(destination)),
        L4::Pong => frame.icmpv6(129, 0, &message(destination)),
        L4::Sctp => frame.sctp(source, destination),
        L4::Other => frame.protocol(253, &[1, 2, 3, 4, 5]),
    }
}

/// Who speaks to whom, and what each is called on which side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Talk {
    pub(super) end: &'static End,
    pub(super) is_v4: bool,
    pub(super) afar: ([u8; 4], [u8; 16]),
    /// The namespace's port, as it has it and as it is outside.
    pub(super) near: (u16, u16),
    pub(super) far: u16,
    /// The namespace's address outside, unless it is its own.
    pub(super) outer: ([u8; 4], [u8; 16]),
}

impl Talk {
    /// Red, masqueraded, whose port is kept.
    pub(super) fn red(is_v4: bool, near: u16, far: u16) -> Self {
        Self::masqueraded(&super::world::RED, is_v4, near, far)
    }

    pub(super) fn masqueraded(end: &'static End, is_v4: bool, near: u16, far: u16) -> Self {
        let (afar, outer) = ((AFAR_V4, AFAR_V6), (UPLINK.ipv4, UPLINK.ipv6));
        Self { end, is_v4, afar, near: (near, near), far, outer }
    }

    /// An end whose network is not masqueraded.
    pub(super) fn routed(end: &'static End, is_v4: bool, near: u16, far: u16) -> Self {
        Self { outer: (end.ipv4, end.ipv6), ..Self::masqueraded(end, is_v4, near, far) }
    }

    /// With another host.
    pub(super) fn with(self, v4: [u8; 4], v6: [u8; 16]) -> Self {
        Self { afar: (v4, v6), ..self }
    }

    /// The port outside is the one of this turn of the pool.
    pub(super) fn pooled(self, l4: L4, turn: u32) -> Self {
        let outer = pooled(&self.key(l4), turn, (16384, 32767));
        Self { near: (self.near.0, outer), ..self }
    }

    /// The tuple of what leaves the namespace.
    pub(super) fn key(&self, l4: L4) -> FlowKey {
        let (near, far) = match self.is_v4 {
            true => (IpAddress::v4(self.end.ipv4), IpAddress::v4(self.afar.0)),
            false => (IpAddress(self.end.ipv6), IpAddress(self.afar.1)),
        };
        let far_port = if matches!(l4, L4::Ping | L4::Pong) { 0 } else { self.far };
        let (near, far) = ((near, self.near.0.to_be_bytes()), (far, far_port.to_be_bytes()));
        FlowKey::new(self.end.network, l4.protocol(self.is_v4), near, far, self.is_v4)
    }

    pub(super) fn gateway(&self) -> &'static End {
        let gateways = [&HOST, &HOST_2, &HOST_4, &HOST_5];
        gateways.into_iter().find(|gateway| gateway.network == self.end.network).unwrap()
    }

    fn ip(&self, frame: Frame, v4: ([u8; 4], [u8; 4]), v6: ([u8; 16], [u8; 16])) -> Frame {
        if self.is_v4 { frame.ipv4(v4.0, v4.1) } else { frame.ipv6(v6.0, v6.1) }
    }

    /// A packet as the namespace sends it, up to its IP header.
    pub(super) fn leaving(&self) -> Frame {
        let frame = self.end.to(self.gateway());
        self.ip(frame, (self.end.ipv4, self.afar.0), (self.end.ipv6, self.afar.1))
    }

    /// The same outside.
    pub(super) fn left(&self) -> Frame {
        let frame = Frame::new(UPLINK.mac, ROUTER_MAC);
        self.ip(frame, (self.outer.0, self.afar.0), (self.outer.1, self.afar.1))
    }

    /// A packet from afar.
    pub(super) fn entering(&self) -> Frame {
        let frame = Frame::new(ROUTER_MAC, UPLINK.mac);
        self.ip(frame, (self.afar.0, self.outer.0), (self.afar.1, self.outer.1))
    }

    /// The same as the namespace gets it.
    pub(super) fn entered(&self) -> Frame {
        let frame = self.gateway().to(self.end);
        self.ip(frame, (self.afar.0, self.end.ipv4), (self.afar.1, self.end.ipv6))
    }

    /// The namespace sends.
    pub(super) fn out(&self, l4: L4) -> Step {
        let after = put(self.left(), l4, (self.near.1, self.far), self.is_v4).hops(63);
        self.sends(l4).leaves(after)
    }

    /// The same when the way is asked for again, which has the kernel see to the neighbour.
    pub(super) fn out_again(&self, l4: L4) -> Step {
        let after = put(self.left(), l4, (self.near.1, self.far), self.is_v4).hops(63);
        self.sends(l4).leaves_by_neighbour(after)
    }

    /// The namespace sends, whatever becomes of it.
    pub(super) fn sends(&self, l4: L4) -> Step {
        from(self.end, put(self.leaving(), l4, (self.near.0, self.far), self.is_v4))
    }

    /// The host afar sends.
    pub(super) fn back(&self, l4: L4) -> Step {
        let after = put(self.entered(), l4, (self.far, self.near.0), self.is_v4).hops(63);
        self.comes(l4).enters(self.end, after)
    }

    /// The host afar sends, whatever becomes of it.
    pub(super) fn comes(&self, l4: L4) -> Step {
        outside(put(self.entering(), l4, (self.far, self.near.1), self.is_v4))
    }
}

/// The port that NAT tries in this turn.
pub(super) fn pooled(key: &FlowKey, turn: u32, (first, last): (u16, u16)) -> u16 {
    let mut seed = *key;
    // A mapping is the same for every destination.
    if key.protocol() != IpProtocol::TCP && key.side != NetworkId::OUTSIDE {
        (seed.destination, seed.destination_port) = (IpAddress::UNSPECIFIED, [0; 2]);
    }
    first + (crate::hash::keyed_hash(SECRET, &seed, turn) % (u32::from(last - first) + 1)) as u16
}
