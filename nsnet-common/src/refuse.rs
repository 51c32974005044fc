//! Who is told that a packet was dropped: which reasons are told, about which packets, how often, and by whom.
//!
//! The frame becomes the ICMP error about itself ([`quote`]) and goes back by the port that it came in by.

use core::num::NonZero;

use crate::layout::{NetworkId, PortId, REFUSAL_BURST_NS, REFUSAL_NS};
use crate::packet::Packet;
use crate::quote;
use crate::tables::{Stage, Tables};
use crate::verdict::{DropReason, Egress, Outcome, Refusal, Verdict};
use crate::wire::icmp::{self, Icmp};
use crate::wire::icmpv6::{self, Head};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::{EtherType, Ethernet, IpAddress, IpProtocol};

/// What a sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The TTL or hop limit ended here.
    TtlExceeded,
    /// There is no way to the destination.
    NoRoute,
    /// The packet is too long, and a shorter one would pass.
    TooBig,
    /// A rule or a limit forbids it.
    Prohibited,
}

impl Notice {
    /// Type and code in ICMP (RFC 792, RFC 1812 section 5.2.7).
    #[inline(always)]
    pub const fn icmp(self) -> (icmp::Type, u8) {
        match self {
            Self::TtlExceeded => (icmp::Type::TIME_EXCEEDED, icmp::TTL_EXCEEDED),
            Self::NoRoute => (icmp::Type::UNREACHABLE, icmp::NET_UNREACHABLE),
            Self::TooBig => (icmp::Type::UNREACHABLE, icmp::FRAGMENTATION_NEEDED),
            Self::Prohibited => (icmp::Type::UNREACHABLE, icmp::PROHIBITED),
        }
    }

    /// Type and code in ICMPv6 (RFC 4443 section 3).
    #[inline(always)]
    pub const fn icmpv6(self) -> (icmpv6::Type, u8) {
        match self {
            Self::TtlExceeded => (icmpv6::Type::TIME_EXCEEDED, icmpv6::HOP_LIMIT_EXCEEDED),
            Self::NoRoute => (icmpv6::Type::UNREACHABLE, icmpv6::NO_ROUTE),
            Self::TooBig => (icmpv6::Type::TOO_BIG, 0),
            Self::Prohibited => (icmpv6::Type::UNREACHABLE, icmpv6::PROHIBITED),
        }
    }
}

impl DropReason {
    /// What the sender is told of it; `None` for what is dropped in silence.
    pub const fn notice(self) -> Option<Notice> {
        match self {
            Self::TtlExceeded => Some(Notice::TtlExceeded),
            Self::NoRoute => Some(Notice::NoRoute),
            Self::FragmentationNeeded => Some(Notice::TooBig),
            // The limits: RFC 5508 REQ-8, RFC 6888 REQ-11.
            Self::InternalNetwork
            | Self::ProhibitedRoute
            | Self::PortsExhausted
            | Self::FlowQuota
            | Self::PortQuota
            | Self::TableFull => Some(Notice::Prohibited),
            // The switch is no node that could speak. And no answer mends the others, some of which are attacks that it
            // would help.
            Self::UnknownPort
            | Self::Truncated
            | Self::Tagged
            | Self::InvalidSourceMac
            | Self::SpoofedMac
            | Self::MacLimit
            | Self::ReservedGroup
            | Self::EtherType
            | Self::BadIpv4
            | Self::SpoofedIpv4
            | Self::BadArp
            | Self::SpoofedArp
            | Self::Ipv6Off
            | Self::BadIpv6
            | Self::SpoofedIpv6
            | Self::BadNd
            | Self::SpoofedNd
            | Self::RouterGuard
            | Self::DhcpServer
            | Self::UnknownDestination
            | Self::SamePort
            | Self::TooLong
            | Self::OtherNetwork
            | Self::LoopbackDestination
            | Self::FloodLimit
            | Self::Martian
            | Self::SourceRoute
            | Self::NoConnection
            | Self::NoMapping
            | Self::DirectAccess
            | Self::BadTransport
            | Self::IcmpUnrelated
            | Self::IcmpType
            | Self::FragmentUnknown
            | Self::FragmentTiny
            | Self::Protocol
            | Self::NoUplink
            | Self::AddressChanged
            | Self::OwnSource
            | Self::Busy
            | Self::BlackholeRoute
            | Self::IcmpChecksum
            | Self::IsolatedPort => None,
        }
    }
}

/// Tells the sender of a frame that came in by `at`, where that is allowed. The drop itself is counted already, and is
/// the outcome when nothing is told.
#[inline(always)]
pub fn tell(frame: &mut impl Packet, at: PortId, refusal: Refusal, tables: impl Tables) -> Outcome {
    tables.enter(Stage::Refuse);
    match turn_back(frame, at, refusal, tables) {
        Some(egress) => Ok(Verdict::Deliver(egress)),
        None => Err(refusal.reason),
    }
}

/// The reason, which is one of many, is looked at last: the verifier walks through all that follows a branch once for each
/// of its ways, but forgets what a function of its own has found.
#[inline(always)]
fn turn_back(frame: &mut impl Packet, at: PortId, refusal: Refusal, tables: impl Tables) -> Option<Egress> {
    if !is_told(refusal.reason) {
        return None;
    }
    let is_v4 = Ethernet::read(frame).ok()?.ethertype() == EtherType::IPV4;
    let speaker = speaker(at, is_v4, tables);
    if speaker == PortId::NONE {
        return None;
    }
    let length = if is_v4 { quotable_v4(frame)? } else { quotable_v6(frame, refusal.reason, tables)? };
    take_allowance(at, tables)?;
    let sum = quote::cut(frame, is_v4, length, tables)?;
    let notice = refusal.reason.notice()?;
    let mtu = if notice == Notice::TooBig { refusal.mtu } else { 0 };
    if is_v4 {
        quote::turn_v4(frame, sum, notice.icmp(), mtu, speaker, tables)?;
    } else {
        quote::turn_v6(frame, sum, notice.icmpv6(), mtu, speaker, tables)?;
    }
    tables.count_sent(at, frame.len());
    let port = tables.port(at)?;
    Some(if port.is_uplink() { Egress::Uplink(port.ifindex()) } else { Egress::Namespace(at) })
}

#[inline(never)]
pub(crate) fn is_told(reason: DropReason) -> bool {
    reason.notice().is_some()
}

/// The port whose address an error to the senders behind `at` comes from: an uplink's own, a network's gateway.
/// [`PortId::NONE`] when it has no address of the family.
#[inline(never)]
fn speaker(at: PortId, is_v4: bool, tables: impl Tables) -> PortId {
    let Some(port) = tables.port(at) else { return PortId::NONE };
    // The host knows its routes by itself.
    if port.id() == PortId::NONE || port.is_host() {
        return PortId::NONE;
    }
    let id = if port.is_uplink() { at } else { gateway(port.network(), tables) };
    let Some(speaker) = tables.port(id) else { return PortId::NONE };
    let has_address = if is_v4 { speaker.ipv4() != [0; 4] } else { speaker.ipv6() != [0; 16] };
    if has_address { id } else { PortId::NONE }
}

/// The host's port in a network. Not inlined: a copy of the policy would not fit on the stack beside the rest.
#[inline(never)]
fn gateway(network: NetworkId, tables: impl Tables) -> PortId {
    tables.policy(network).map_or(PortId::NONE, |policy| policy.gateway)
}

/// Bytes to quote of an IPv4 packet; `None` for one that no error may be about (RFC 1812 section 4.3.2.7).
#[inline(never)]
fn quotable_v4(frame: &impl Packet) -> Option<NonZero<u16>> {
    let eth = Ethernet::read(frame).ok()?;
    let ip = Ipv4::read(frame).ok()?;
    if eth.source.is_group() || eth.destination.is_group() || !ip.has_transport_header() {
        return None;
    }
    if !is_one_host_v4(ip.source()) || is_group_v4(ip.destination().low()) {
        return None;
    }
    if ip.protocol() == IpProtocol::ICMP && !frame.view::<Icmp>(ip.transport_at())?.kind.is_query() {
        // A type that nobody knows might be an error.
        return None;
    }
    NonZero::new(quote::bounded(frame, u32::from(ip.total_length())))
}

/// The same of an IPv6 packet (RFC 4443 section 2.4 (e)).
#[inline(never)]
fn quotable_v6(frame: &impl Packet, reason: DropReason, tables: impl Tables) -> Option<NonZero<u16>> {
    let eth = Ethernet::read(frame).ok()?;
    let ip = Ipv6::read(frame).ok()?;
    if eth.ethertype() != EtherType::IPV6 || eth.source.is_group() {
        return None;
    }
    // Path MTU discovery works for groups, too (e.3).
    let is_to_group = eth.destination.is_group() || ip.destination().is_multicast_v6();
    if is_to_group && reason != DropReason::FragmentationNeeded {
        return None;
    }
    let source = ip.source();
    if source.is_multicast_v6()
        || source == IpAddress::UNSPECIFIED
        || source == IpAddress::LOOPBACK
        || source.as_v4().is_some()
    {
        return None;
    }
    let upper = ip.upper_layer(frame, tables).ok()?;
    // RFC 4443 would allow it about later fragments. But one may be of an error, and the first one is told.
    if !upper.is_here {
        return None;
    }
    if upper.protocol == IpProtocol::ICMPV6 {
        let kind = frame.view::<Head>(usize::from(upper.at))?.kind;
        if kind.is_error() || kind == icmpv6::Type::REDIRECT {
            return None;
        }
    }
    let payload = frame.view::<Ipv6>(Ethernet::LEN)?.payload_length();
    NonZero::new(quote::bounded(frame, Ipv6::LEN as u32 + u32::from(payload)))
}

/// Whether a packet from this address has a sender that an answer would reach: RFC 1812 section 5.3.7 names the others.
#[inline(always)]
const fn is_one_host_v4([first, ..]: [u8; 4]) -> bool {
    !matches!(first, 0 | 127 | 224..)
}

/// Multicast and broadcast. Of a distant subnet's broadcast address only its own routers know.
#[inline(always)]
const fn is_group_v4(ip: [u8; 4]) -> bool {
    matches!(ip, [224..=239, ..] | [255, 255, 255, 255])
}

/// Takes one error from what a port may be told: a token bucket (RFC 4443 section 2.4 (f), RFC 1812 section 4.3.2.8), as
/// GCRA with one clock for each port, in nanoseconds.
///
/// For each port, so that one namespace can neither use up another's errors nor learn from its own what another does
/// (CVE-2020-25705). Senders beyond an uplink share theirs.
#[inline(never)]
fn take_allowance(port: PortId, tables: impl Tables) -> Option<()> {
    let now = tables.now();
    let clock = tables.refusal_clock(port).max(now);
    if clock - now >= REFUSAL_BURST_NS {
        return None;
    }
    tables.set_refusal_clock(port, clock + REFUSAL_NS);
    Some(())
}
