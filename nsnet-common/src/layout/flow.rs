//! Flows: each direction of a connection is an entry of its own, complete enough to forward a packet by one lookup.
//!
//! ```text
//!   inside (a network)                                outside (side 0)
//!   10.1.0.2:4000 > 192.0.2.7:80                      192.0.2.7:80 > 198.51.100.1:4000
//!     becomes 198.51.100.1:4000 > 192.0.2.7:80          becomes 192.0.2.7:80 > 10.1.0.2:4000
//! ```
//!
//! An entry holds the whole translated tuple, so the other direction's key is that tuple turned round: neither entry needs
//! a pointer to the other, and either can take both down.
//!
//! The core sees one form ([`FlowKey`], [`Flow`]) for both families; the tables keep IPv4 in 16 + 56 bytes and
//! IPv6 in 40 + 80, because a million flows are paid for by the entry. Aligned to words, because addresses are else moved a
//! byte at a time.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{NetworkId, PortId};
use crate::wire::{IpAddress, IpProtocol, Macs};

/// Flows on one host with IPv4, both directions counted once. Entries are allocated when they are made.
pub const MAX_FLOWS_V4: u32 = 1 << 20;
/// The same with IPv6.
pub const MAX_FLOWS_V6: u32 = 1 << 18;
/// Entries for flows that have not been answered yet, of each family: the oldest goes when there are more.
pub const MAX_YOUNG_FLOWS: u32 = 1 << 16;

/// Whole seconds of a clock of nanoseconds, up to 17 ms late.
///
/// A 64-bit division takes longer than all else that is done with the clock: 2^24 ns are 72,057,594 / 2^32 of a second, and
/// the product has room for a century.
#[inline(always)]
pub const fn whole_seconds(nanoseconds: u64) -> u32 {
    (((nanoseconds >> 24) * 72_057_594) >> 32) as u32
}

/// The tuple a packet is known by, on the side where it is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(8))]
pub struct FlowKey {
    /// The sender.
    pub source: IpAddress,
    /// The receiver.
    pub destination: IpAddress,
    /// Sender's port, network byte order; the identifier of an ICMP query; 0 for protocols without ports.
    pub source_port: [u8; 2],
    /// Receiver's port, network byte order; the identifier of an ICMP reply.
    pub destination_port: [u8; 2],
    protocol: u8,
    version: u8,
    /// The network the packet comes from; [`NetworkId::OUTSIDE`] for an uplink.
    pub side: NetworkId,
}

impl FlowKey {
    /// The key of packets from `source` to `destination`.
    #[inline(always)]
    pub fn new(
        side: NetworkId,
        protocol: IpProtocol,
        source: (IpAddress, [u8; 2]),
        destination: (IpAddress, [u8; 2]),
        is_v4: bool,
    ) -> Self {
        Self {
            source: source.0,
            destination: destination.0,
            source_port: source.1,
            destination_port: destination.1,
            protocol: protocol.0,
            version: if is_v4 { 4 } else { 6 },
            side,
        }
    }

    /// The protocol over IP.
    #[inline(always)]
    pub fn protocol(&self) -> IpProtocol {
        IpProtocol(self.protocol)
    }

    /// The same tuple of another protocol.
    #[inline(always)]
    #[must_use]
    pub fn with_protocol(&self, protocol: IpProtocol) -> Self {
        Self { protocol: protocol.0, ..*self }
    }

    /// Whether both addresses are IPv4's.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.version == 4
    }

    /// The same tuple the other way, seen on `side`.
    #[inline(always)]
    #[must_use]
    pub fn turned(&self, side: NetworkId) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            side,
            ..*self
        }
    }

    /// What the table of IPv4 flows is keyed by.
    #[inline(always)]
    pub fn to_v4(&self) -> FlowKey4 {
        // In words: a hash that reads a word which was just written in bytes waits until they have left the store buffer.
        let [_, _, _, source, _, _, _, destination, ports, rest]: [u32; 10] = zerocopy::transmute!(*self);
        zerocopy::transmute!([source, destination, ports, rest])
    }
}

/// [`FlowKey`] as the table of IPv4 flows has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(8))]
pub struct FlowKey4 {
    source: [u8; 4],
    destination: [u8; 4],
    source_port: [u8; 2],
    destination_port: [u8; 2],
    protocol: u8,
    version: u8,
    side: NetworkId,
}

impl From<FlowKey4> for FlowKey {
    fn from(key: FlowKey4) -> Self {
        Self {
            source: IpAddress::v4(key.source),
            destination: IpAddress::v4(key.destination),
            source_port: key.source_port,
            destination_port: key.destination_port,
            protocol: key.protocol,
            version: key.version,
            side: key.side,
        }
    }
}

/// How far a flow has come. RFC 6146 section 3.5, with the states that lead to the same timeout made one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub struct FlowState(pub u8);

impl FlowState {
    /// Only the opener has sent.
    pub const UNREPLIED: Self = Self(0);
    /// TCP: answered, but the opener has not confirmed.
    pub const HALF_OPEN: Self = Self(1);
    /// Both have sent; TCP: the handshake is done.
    pub const ESTABLISHED: Self = Self(2);
    /// TCP: one side has sent a FIN, or both.
    pub const CLOSING: Self = Self(3);
    /// TCP: a RST within the window has come by. Nothing but a new SYN revives the flow (RFC 7857 section 2.2).
    pub const CLOSED: Self = Self(4);

    /// The name that `ct list` prints.
    pub const fn label(self) -> &'static str {
        match self {
            Self::UNREPLIED => "unreplied",
            Self::HALF_OPEN => "half-open",
            Self::ESTABLISHED => "established",
            Self::CLOSING => "closing",
            Self::CLOSED => "closed",
            Self(_) => "unknown",
        }
    }
}

/// Properties of one direction of a flow, or-ed together.
pub mod flow_flags {
    /// This is the direction of the answers; else that of the packet that opened the flow.
    pub const REPLY: u8 = 1 << 0;
    /// Made for a published port: [`Flow::publish`](super::Flow) and `epoch` say which.
    pub const PUBLISHED: u8 = 1 << 1;
    /// Its external port is held by a mapping of the inside endpoint, which the flow keeps alive (UDP, ICMP).
    pub const MAPPED: u8 = 1 << 2;
    /// Between two namespaces, by an address of the host's.
    pub const HAIRPIN: u8 = 1 << 3;
    /// Its external port is one of the pool, on the owner's quota.
    pub const POOLED: u8 = 1 << 4;
}

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(8))]
pub struct Flow {
    /// All but the addresses.
    pub about: About,
    /// The sender that a packet is given.
    pub source: IpAddress,
    /// The receiver that it is given.
    pub destination: IpAddress,
}

/// What a flow's entry holds beside addresses: the same for both families, at the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct About {
    /// When the flow was last refreshed, seconds of the monotonic clock.
    pub seen: u32,
    /// For how long it lives after that, seconds.
    pub timeout: u32,
    /// TCP: the end of the highest segment in this direction.
    pub next: u32,
    /// TCP: the acknowledgement last sent in this direction.
    pub acknowledged: u32,
    /// The MACs that a packet is given.
    pub macs: Macs,
    /// Source port that it is given.
    pub source_port: [u8; 2],
    /// Destination port that it is given.
    pub destination_port: [u8; 2],
    /// How far the flow has come.
    pub state: FlowState,
    /// See [`flow_flags`].
    pub flags: u8,
    /// The namespace's port on whose quota the flow is.
    pub owner: PortId,
    /// The published port it was made for.
    pub publish: u16,
    /// The epoch of that, when it was made.
    pub epoch: u16,
    /// The port or uplink it leaves by.
    pub out: PortId,
    /// The side that answers come from.
    pub other_side: NetworkId,
    /// Longest packet on the way out, bytes; 0 for that of the interface.
    pub mtu: u16,
    /// 0.
    pub pad: u16,
}

impl About {
    /// Nothing but zeros.
    pub const EMPTY: Self = Self {
        seen: 0,
        timeout: 0,
        next: 0,
        acknowledged: 0,
        macs: Macs::NONE,
        source_port: [0; 2],
        destination_port: [0; 2],
        state: FlowState::UNREPLIED,
        flags: 0,
        owner: PortId::NONE,
        publish: 0,
        epoch: 0,
        out: PortId::NONE,
        other_side: NetworkId::OUTSIDE,
        mtu: 0,
        pad: 0,
    };

    /// Whether the flow still counts at `now`, seconds.
    #[inline(always)]
    pub fn is_alive(&self, now: u32) -> bool {
        now.wrapping_sub(self.seen) <= self.timeout || self.seen > now
    }

    /// Whether the flag is set.
    #[inline(always)]
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// [`Flow`] as the table of IPv4 flows has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(8))]
pub struct Flow4 {
    /// All but the addresses.
    pub about: About,
    /// The sender that a packet is given.
    pub source: [u8; 4],
    /// The receiver that it is given.
    pub destination: [u8; 4],
}

impl FlowKey {
    /// The key of nothing.
    pub const EMPTY: Self = Self {
        source: IpAddress::UNSPECIFIED,
        destination: IpAddress::UNSPECIFIED,
        source_port: [0; 2],
        destination_port: [0; 2],
        protocol: 0,
        version: 6,
        side: NetworkId::OUTSIDE,
    };
}

impl Flow {
    /// Nothing but zeros.
    pub const EMPTY: Self =
        Self { about: About::EMPTY, source: IpAddress::UNSPECIFIED, destination: IpAddress::UNSPECIFIED };

    /// The key under which the other direction of the flow stands: the translated tuple turned round.
    #[inline(always)]
    pub fn other_key(&self, key: &FlowKey) -> FlowKey {
        FlowKey {
            source: self.destination,
            destination: self.source,
            source_port: self.about.destination_port,
            destination_port: self.about.source_port,
            side: self.about.other_side,
            ..*key
        }
    }

    /// What the table of IPv4 flows holds.
    #[inline(always)]
    pub fn to_v4(&self) -> Flow4 {
        Flow4 { about: self.about, source: self.source.low(), destination: self.destination.low() }
    }
}

impl From<Flow4> for Flow {
    #[inline(always)]
    fn from(flow: Flow4) -> Self {
        Self { about: flow.about, source: IpAddress::v4(flow.source), destination: IpAddress::v4(flow.destination) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_size_they_are_paid_by() {
        assert_eq!((size_of::<FlowKey4>(), size_of::<Flow4>()), (16, 56));
        assert_eq!((size_of::<FlowKey>(), size_of::<Flow>()), (40, 80));
    }

    #[test]
    fn the_other_direction_is_the_translated_tuple_turned_round() {
        let (inside, outside, remote) = (IpAddress::v4([10, 1, 0, 2]), IpAddress::v4([9; 4]), IpAddress::v4([8; 4]));
        let key = FlowKey::new(NetworkId(1), IpProtocol::TCP, (inside, [1, 2]), (remote, [0, 80]), true);
        let about = About { source_port: [3, 4], destination_port: [0, 80], ..About::EMPTY };
        let flow = Flow { about, source: outside, destination: remote };
        let other = flow.other_key(&key);
        assert_eq!((other.source, other.source_port), (remote, [0, 80]));
        assert_eq!((other.destination, other.destination_port), (outside, [3, 4]));
        assert_eq!((other.side, other.protocol()), (NetworkId::OUTSIDE, IpProtocol::TCP));
        assert_eq!(FlowKey::from(key.to_v4()), key);
        assert_eq!(Flow::from(flow.to_v4()), flow);
    }

    #[test]
    fn seconds_are_a_little_late_and_never_early() {
        const SECOND: u64 = 1_000_000_000;
        for second in [1, 2, 59, 86_400, 365 * 86_400, 30 * 365 * 86_400] {
            let begins = second * SECOND;
            assert_eq!(u64::from(whole_seconds(begins - 1)), second - 1);
            // In 30 years half a second is lost to rounding, by all who ask alike.
            let late = begins + 17_000_000 + begins / 1_800_000_000;
            assert_eq!(u64::from(whole_seconds(late)), second, "{late}");
        }
        assert!(whole_seconds(100 * 365 * 86_400 * SECOND) > 99 * 365 * 86_400);
    }

    #[test]
    fn a_flow_lives_as_long_as_it_was_told() {
        let about = About { seen: 100, timeout: 60, ..About::EMPTY };
        assert!(about.is_alive(100) && about.is_alive(160) && !about.is_alive(161));
        // Another CPU's clock may be a little ahead.
        assert!(about.is_alive(99));
    }
}
