//! Fragments: each goes the way of its packet's first one, which alone has ports, in whatever order they come; and packets
//! that are too long for their way out, cut into fragments.
//!
//! ```text
//!   the first one   -> remembered, and sent on like any packet
//!   a later one     -> by the first one's flow, or where that went
//!     too early?    -> waits; the first one has it come in again, behind itself
//!   a long packet   -> cut; each piece comes in again, as the fragment that it is now
//! ```
//!
//! What comes in again goes the whole way of a frame from where it first came in, so that there is one way for all.
//! Nothing is put together here: that is for the receiver (RFC 791 section 3.2), and what overlaps is its affair, but for
//! the transport header, which was judged when the first fragment came (RFC 1858 section 4).

use crate::capture::Moment;
use crate::conntrack;
use crate::datagram::Kind;
use crate::layout::{Fragment, FragmentKey, HELD_PER_PORT, HeldKey, Holding, PIECE_BYTES, Port, Whole, is_fresh};
use crate::packet::Packet;
use crate::route;
use crate::scratch::Scratch;
use crate::tables::{FlowEntry, Stage, Tables};
use crate::verdict::{DropReason, Egress, Outcome, Verdict};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::transport::{Tcp, Udp};
use crate::wire::{Ethernet, IpProtocol, Mac};

/// A fragment, as far as that is not in its datagram.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// The packet that it is of.
    key: FragmentKey,
    /// Where it begins in that, bytes.
    offset: u16,
    /// Where the part of the packet that is cut begins in the frame.
    start: u16,
}

impl Piece {
    /// No fragment.
    pub const EMPTY: Self = Self { key: FragmentKey::EMPTY, offset: 0, start: 0 };
}

/// Follows a fragment that was read into `scratch`.
#[inline(always)]
pub fn follow(frame: &mut impl Packet, from: &Port, scratch: &mut Scratch, tables: impl Tables) -> Outcome {
    tables.enter(Stage::Fragment);
    read(frame, scratch, tables)?;
    if scratch.datagram.is_first_fragment {
        remember(frame, scratch, tables);
        if release(frame, from, scratch, tables) {
            return Ok(Verdict::Again);
        }
        route::follow(from, scratch, tables)?;
    } else {
        join(frame, from, scratch, tables)?;
    }
    if scratch.is_known {
        let outcome = route::send_on(frame, scratch, tables);
        renumber(frame, from, scratch, outcome);
        return outcome;
    }
    if scratch.datagram.kind == Kind::IcmpError { Ok(Verdict::Relate) } else { Ok(Verdict::Open) }
}

/// Reads what makes it a fragment.
#[inline(never)]
fn read(frame: &impl Packet, scratch: &mut Scratch, tables: impl Tables) -> Result<(), DropReason> {
    let Scratch { datagram, piece, .. } = scratch;
    let key = &datagram.key;
    let identification = if key.is_v4() {
        let ip = Ipv4::read(frame)?;
        (piece.offset, piece.start) = (ip.fragment_offset(), ip.transport_at() as u16);
        let [high, low] = ip.identification().to_be_bytes();
        [0, 0, high, low]
    } else {
        let at = Ipv6::read(frame)?.fragment_at(frame, tables).ok_or(DropReason::BadIpv6)?;
        let header = *frame.view::<FragmentHeader>(usize::from(at)).ok_or(DropReason::BadIpv6)?;
        piece.offset = u16::from_be_bytes(header.offset) & !7;
        piece.start = at + size_of::<FragmentHeader>() as u16;
        header.identification
    };
    piece.key = FragmentKey::new(key, identification);
    Ok(())
}

/// The fragment header of IPv6 (RFC 8200 section 4.5).
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
struct FragmentHeader {
    next_header: u8,
    zero: u8,
    offset: [u8; 2],
    identification: [u8; 4],
}

/// Remembers a first fragment, for those that follow it.
#[inline(never)]
fn remember(frame: &impl Packet, scratch: &Scratch, tables: impl Tables) {
    let Scratch { datagram, piece, .. } = scratch;
    let at = usize::from(datagram.at);
    let shortest = match datagram.kind {
        Kind::Tcp => Tcp::LEN,
        Kind::Sctp => SCTP,
        Kind::Udp | Kind::EchoRequest | Kind::EchoReply | Kind::IcmpError | Kind::Link => Udp::LEN,
        Kind::Other | Kind::LaterFragment => 0,
    };
    let header = match datagram.kind == Kind::Tcp {
        true => frame.view::<Tcp>(at).map_or(shortest, Tcp::header_length),
        false => shortest,
    };
    let fragment = Fragment {
        source_port: datagram.key.source_port,
        destination_port: datagram.key.destination_port,
        protocol: datagram.key.protocol().0,
        header: (at + header).saturating_sub(usize::from(piece.start)).min(255) as u8,
        pad: 0,
        seen: tables.seconds(),
    };
    tables.set_fragment(&piece.key, &fragment);
}

/// Bytes of SCTP's common header (RFC 9260 section 3.1).
const SCTP: usize = 12;

/// Has the fragments come in again that wait for this first one, behind itself; `false` when none does.
#[inline(never)]
fn release(frame: &mut impl Packet, from: &Port, scratch: &Scratch, tables: impl Tables) -> bool {
    let port = from.id();
    let now = tables.seconds();
    let holding = tables.holding(port);
    if holding.count == 0 || !is_fresh(holding.seen, now) {
        return false;
    }
    let mut place = 0;
    let mut released = false;
    let awaited = &scratch.piece.key;
    tables.repeat(u32::from(HELD_PER_PORT), &mut || {
        let held = HeldKey { port, place };
        place += 1;
        if !tables.held(held).is_some_and(|(key, seen)| key == *awaited && is_fresh(seen, now)) {
            return true;
        }
        if !released {
            let length = frame.len();
            if !frame.come_again() {
                return false;
            }
            tables.take_back_received(port, length);
            released = true;
        }
        if tables.let_go(held, frame) {
            let length = frame.len();
            if frame.come_again() {
                tables.take_back_received(port, length);
                tables.take_back_dropped(port, DropReason::FragmentUnknown, length);
            }
        }
        true
    });
    released
}

/// Finds the flow of a later fragment by what its first one said.
#[inline(never)]
fn join(frame: &impl Packet, from: &Port, scratch: &mut Scratch, tables: impl Tables) -> Result<(), DropReason> {
    // What overlaps a transport header (RFC 1858 section 4, RFC 3128) need not wait to be found out.
    let least = match scratch.datagram.key.protocol() {
        IpProtocol::TCP => Tcp::LEN,
        IpProtocol::SCTP => SCTP,
        _ => 0,
    };
    let offset = scratch.piece.offset;
    if usize::from(offset) < least {
        return Err(DropReason::FragmentTiny);
    }
    let first = match first_of(&scratch.piece.key, tables) {
        Some(first) => first,
        None => wait(frame, from, scratch, tables)?,
    };
    if offset < u16::from(first.header) {
        return Err(DropReason::FragmentTiny);
    }
    let key = scratch.datagram.key.with_protocol(first.protocol());
    scratch.datagram.key = key;
    scratch.datagram.key.source_port = first.source_port;
    scratch.datagram.key.destination_port = first.destination_port;
    (scratch.is_known, scratch.is_grown_by) = (false, false);
    if let Some(found) = conntrack::find(&scratch.datagram.key, tables.seconds(), tables) {
        found.entry.read(&mut scratch.flow);
        scratch.is_known = true;
        scratch.by_neighbour = scratch.flow.about.macs.to == Mac::ZERO;
        if scratch.by_neighbour {
            return route::find_neighbour(from, scratch, found.age, tables);
        }
    }
    Ok(())
}

/// What the first fragment said, if it came and not too long ago.
#[inline(never)]
fn first_of(key: &FragmentKey, tables: impl Tables) -> Option<Fragment> {
    tables.fragment(key).filter(|first| is_fresh(first.seen, tables.seconds()))
}

/// Has a fragment wait for its first one. It counts as dropped until that comes: most of those that wait never go on.
///
/// Another CPU may have brought the first one meanwhile. It remembers that before it looks who waits, and we look for that
/// once we wait, so that one of us finds the other.
#[inline(never)]
fn wait(frame: &impl Packet, from: &Port, scratch: &Scratch, tables: impl Tables) -> Result<Fragment, DropReason> {
    let port = from.id();
    let seen = tables.seconds();
    let Holding { count, .. } = tables.holding(port);
    let place = HeldKey { port, place: count as u16 % HELD_PER_PORT };
    if !tables.hold(place, &scratch.piece.key, seen, frame) {
        return Err(DropReason::FragmentUnknown);
    }
    tables.set_holding(port, Holding { count: count.wrapping_add(1).max(1), seen });
    let first = first_of(&scratch.piece.key, tables).ok_or(DropReason::FragmentUnknown)?;
    // Whoever frees the place sees to the fragment.
    if tables.free(place) { Ok(first) } else { Err(DropReason::FragmentUnknown) }
}

/// Gives a fragment whose sender is hidden behind another address a number of its own: two senders that chose the same one
/// must not be mixed up by the receiver (RFC 6864 section 4.3, RFC 7857 section 10).
///
/// The sender's number and its port's are put together so that for two ports it is never the same.
#[inline(never)]
pub fn renumber(frame: &mut impl Packet, from: &Port, scratch: &Scratch, outcome: Outcome) {
    let Scratch { datagram, piece, flow, .. } = scratch;
    let is_sent =
        matches!(outcome, Ok(Verdict::Deliver(Egress::Namespace(_) | Egress::Uplink(_) | Egress::Neighbour(_))));
    if !is_sent || !datagram.is_fragment() || from.is_uplink() || flow.source == datagram.key.source {
        return;
    }
    // Odd numbers: such a product has an inverse, so that two ports have never the same.
    const SPREAD: u32 = 0x9e37_79b1;
    let own = u32::from(from.id().0).wrapping_mul(SPREAD);
    let number = u32::from_be_bytes(piece.key.identification) ^ own;
    if datagram.key.is_v4() {
        if let Some(ip) = frame.view::<Ipv4>(Ethernet::LEN).copied() {
            frame.write(Ethernet::LEN, &ip.renumbered(number as u16));
        }
    } else {
        const IDENTIFICATION_AT: usize = core::mem::offset_of!(FragmentHeader, identification);
        let header = usize::from(piece.start).saturating_sub(size_of::<FragmentHeader>());
        frame.write(header + IDENTIFICATION_AT, &number.to_be_bytes());
    }
}

/// Pieces that one packet is cut into at most: 16 KB by the smallest MTU of IPv4 that anybody uses, 576.
const MAX_PIECES: u32 = 32;
/// The shortest frame that is cut. What a way out takes that has no room for this is no way.
const SHORTEST: u32 = 256;

/// Cuts a packet for the way out that was found for it (RFC 791 section 3.2, RFC 4787 REQ-13): each piece comes in again.
#[inline(always)]
pub fn cut(frame: &mut impl Packet, from: &Port, scratch: &mut Scratch, tables: impl Tables) -> Outcome {
    tables.enter(Stage::Cut);
    let length = frame.len();
    let (eth, ip) = (Ethernet::read(frame)?, Ipv4::read(frame)?);
    tables.show(Moment::Before(0), frame);
    let step = prepare(frame, &ip, scratch).ok_or(DropReason::FragmentationNeeded)?;
    let whole = &scratch.whole;
    let end = ip.total_length().saturating_sub(Ipv4::LEN as u16);
    let mut offset = 0;
    tables.repeat(MAX_PIECES, &mut || {
        let left = end.saturating_sub(offset);
        let payload = left.min(step);
        let header = ip.piece(offset, payload, payload == left);
        if left == 0 || write_piece(frame, whole, &eth, &header, offset, payload).is_none() {
            return false;
        }
        // One that is lost is lost like on any wire.
        frame.come_again();
        offset += payload;
        true
    });
    tables.take_back_received(from.id(), length);
    Ok(Verdict::Again)
}

/// Makes the frame ready to be cut; how many bytes go into each piece. `None` for a frame that is not cut, and as it was:
/// with options, which not every piece would have (RFC 791 section 3.1), or too long.
#[inline(never)]
fn prepare(frame: &mut impl Packet, ip: &Ipv4, scratch: &mut Scratch) -> Option<u16> {
    let Scratch { datagram, longest, whole, .. } = scratch;
    let step = (longest.saturating_sub(Ipv4::LEN as u16) & !7).min(PIECE_BYTES as u16);
    let payload = u32::from(ip.total_length()).saturating_sub(Ipv4::LEN as u32);
    let fits = payload <= u32::from(step) * MAX_PIECES;
    if ip.header_length() != Ipv4::LEN || ip.dont_fragment() || frame.len() < SHORTEST || step < 8 || !fits {
        return None;
    }
    frame.copy_out(whole)?;
    let at = usize::from(datagram.at);
    let checksum_at = match datagram.kind {
        Kind::Tcp => at + Tcp::CHECKSUM_AT,
        Kind::Udp => at + Udp::CHECKSUM_AT,
        Kind::Sctp
        | Kind::EchoRequest
        | Kind::EchoReply
        | Kind::IcmpError
        | Kind::Link
        | Kind::LaterFragment
        | Kind::Other => 0,
    };
    frame.give_up(whole, at, checksum_at)?;
    Some(step)
}

/// Makes the frame the piece whose header this is.
#[inline(always)]
fn write_piece(
    frame: &mut impl Packet,
    whole: &Whole,
    eth: &Ethernet,
    header: &Ipv4,
    offset: u16,
    payload: u16,
) -> Option<()> {
    const HEADERS: usize = Ethernet::LEN + Ipv4::LEN;
    frame.refill(HEADERS, whole, offset + HEADERS as u16, payload)?;
    frame.write(0, eth)?;
    frame.write(Ethernet::LEN, header)
}

#[cfg(test)]
mod tests;
