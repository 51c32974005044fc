//! Neighbour solicitations for addresses the control plane knows are answered here, like ARP requests.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::capture::Moment;
use crate::checksum::Sum;
use crate::guard::other_owner;
use crate::layout::{Port, PortId};
use crate::packet::Packet;
use crate::tables::Tables;
use crate::verdict::DropReason;
use crate::wire::icmpv6::{Head, MacOption, Neighbour, OVERRIDE, ROUTER, SOLICITED, SOURCE_MAC, TARGET_MAC, Type};
use crate::wire::ipv6::Ipv6;
use crate::wire::{EtherType, Ethernet, IpAddress, IpProtocol, Mac};

/// A solicitation or an advertisement with its one option: what kernels send, and what is answered in place.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Message {
    neighbour: Neighbour,
    option: MacOption,
}

const MESSAGE_AT: usize = Ethernet::LEN + Ipv6::LEN;
const MESSAGE_LEN: u16 = size_of::<Message>() as u16;
const MAX_HOPS: u8 = 255;

/// What [`answer`] did to a frame. Small enough for a register: the verifier refuses a subprogram that returns through
/// a pointer into its caller's stack.
#[derive(Clone, Copy)]
pub enum Answer {
    /// The frame is now the advertisement, for the port it came from.
    Here,
    /// The owner of the target is to answer: the solicitation lacks the option that leaves room for ours, as in
    /// duplicate address detection (RFC 4862 section 5.4.2).
    ByOwner(PortId),
    /// No solicitation, or its target is nobody else's: the network is to hear it.
    No,
}

/// Turns a solicitation for a known address into the advertisement that answers it.
#[inline(never)]
pub fn answer(frame: &mut impl Packet, from: &Port, tables: impl Tables) -> Result<Answer, DropReason> {
    let (Some(ip), Some(asked)) = (frame.view::<Ipv6>(Ethernet::LEN), frame.view::<Neighbour>(MESSAGE_AT)) else {
        return Ok(Answer::No);
    };
    if ip.next_header() != IpProtocol::ICMPV6
        || asked.head.kind != Type::NEIGHBOUR_SOLICITATION
        || ip.hop_limit() != MAX_HOPS
    {
        return Ok(Answer::No);
    }
    let Some(owner) = other_owner(from, asked.target, tables) else { return Ok(Answer::No) };
    if !is_answerable(frame)? {
        return Ok(Answer::ByOwner(owner.id()));
    }
    tables.show(Moment::Before(from.id().ifindex()), frame);
    write_advertisement(frame, owner.mac(), owner.is_host()).ok_or(DropReason::Truncated)?;
    tables.count_answered(from.id());
    Ok(Answer::Here)
}

/// Whether the solicitation has the form of an advertisement, one MAC option included; refused when it is corrupt.
#[inline(never)]
fn is_answerable(frame: &impl Packet) -> Result<bool, DropReason> {
    let (Some(ip), Some(message)) = (frame.view::<Ipv6>(Ethernet::LEN), frame.view::<Message>(MESSAGE_AT)) else {
        return Ok(false);
    };
    if ip.payload_length() != MESSAGE_LEN
        || message.option.head.kind != SOURCE_MAC
        || message.option.head.units != 1
        || ip.source() == IpAddress::UNSPECIFIED
    {
        return Ok(false);
    }
    let Message { neighbour, option } = message;
    let sum = Sum::pseudo_header_v6(ip.source(), ip.destination(), MESSAGE_LEN, IpProtocol::ICMPV6);
    let sum = neighbour.sum(sum).bytes(option.head.kind, option.head.units).mac(option.mac);
    if sum.finish() == 0 { Ok(true) } else { Err(DropReason::BadNd) }
}

/// Rewrites what differs, each field read anew from the frame: whole headers on the stack would not fit beside the
/// callers' variables.
#[inline(never)]
fn write_advertisement(frame: &mut impl Packet, owner: Mac, is_router: bool) -> Option<()> {
    let flags = if is_router { ROUTER | SOLICITED | OVERRIDE } else { SOLICITED | OVERRIDE };
    let checksum = advertised_checksum(frame, owner, flags)?;
    let asker = frame.view::<Ethernet>(0)?.source;
    frame.write(0, &Ethernet::new(asker, owner, EtherType::IPV6))?;
    let source = frame.view::<Ipv6>(Ethernet::LEN)?.source();
    frame.write(Ethernet::LEN + Ipv6::DESTINATION_AT, &source)?;
    let target = frame.view::<Neighbour>(MESSAGE_AT)?.target;
    frame.write(Ethernet::LEN + Ipv6::SOURCE_AT, &target)?;
    frame.write(MESSAGE_AT, &Head::new(Type::NEIGHBOUR_ADVERTISEMENT, flags, checksum))?;
    frame.write(MESSAGE_AT + Neighbour::LEN, &MacOption::new(TARGET_MAC, owner))
}

/// The checksum of the advertisement, from that of the solicitation: RFC 1624, less what goes, plus what comes.
///
/// Source and target stay in the sum: the source becomes the destination, and the target becomes the source.
#[inline(never)]
fn advertised_checksum(frame: &impl Packet, owner: Mac, flags: u8) -> Option<u16> {
    let (ip, message) = (frame.view::<Ipv6>(Ethernet::LEN)?, frame.view::<Message>(MESSAGE_AT)?);
    let gone = Sum::default().ip(ip.destination()).bytes(Type::NEIGHBOUR_SOLICITATION.0, 0);
    let gone = gone.bytes(SOURCE_MAC, 1).mac(message.option.mac);
    let come = Sum::default().word(!message.neighbour.head.checksum.get()).word(gone.finish());
    let come = come.ip(message.neighbour.target).bytes(Type::NEIGHBOUR_ADVERTISEMENT.0, 0).bytes(flags, 0);
    Some(come.bytes(TARGET_MAC, 1).mac(owner).finish())
}
