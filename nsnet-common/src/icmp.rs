//! ICMP errors about packets of a flow: the packet they quote is translated back, with the error around it
//! (RFC 5508 section 4.2, RFC 2663 section 3.3).
//!
//! The quoted packet went the other way than the error: its tuple turned round is the key of the flow that the error goes
//! with, and that flow's entry says how each of the two endpoints is called on the other side.

use crate::capture::Moment;
use crate::checksum::{Delta, Sum};
use crate::conntrack;
use crate::datagram::{Datagram, Query};
use crate::layout::{FlowKey, NetworkId};
use crate::packet::Packet;
use crate::rewrite;
use crate::route::{out_of, way_out};
use crate::scratch::Scratch;
use crate::tables::{FlowEntry, Stage, Tables};
use crate::verdict::{DropReason, Outcome, Verdict};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::transport::{Ports, Tcp, Udp};
use crate::wire::{Ethernet, IpAddress, IpProtocol, Mac};

/// Where an ICMP error's quote begins, from the start of the ICMP header.
const QUOTE_AT: u16 = 8;

/// A quoted packet's tuple, and where its parts are in the frame.
#[derive(Clone, Copy, Debug)]
pub struct Quote {
    key: FlowKey,
    at: u16,
    transport_at: u16,
    is_request: bool,
}

/// Passes on an ICMP error that is about a packet of a flow; [`Verdict::Open`] for one that is not.
#[inline(never)]
pub fn translate(frame: &mut impl Packet, scratch: &mut Scratch, tables: impl Tables) -> Outcome {
    tables.enter(Stage::Related);
    if !scratch.quote.read(frame, &scratch.datagram) || !find_flow(scratch, tables) {
        return Ok(Verdict::Open);
    }
    let out = out_of(&scratch.datagram, &scratch.flow, tables)?;
    // RFC 5508 REQ-3. Of a fragment there is not all that was summed.
    if !scratch.datagram.is_fragment() && !is_undamaged(frame, scratch) {
        return Err(DropReason::IcmpChecksum);
    }
    tables.show(Moment::Before(out.ifindex()), frame);
    let message = write_quote(frame, scratch).ok_or(DropReason::IcmpUnrelated)?;
    write_around(frame, scratch, message).ok_or(DropReason::IcmpUnrelated)?;
    tables.count_sent(out.id(), frame.len());
    // Its way is not the flow's own that could be asked for: it may come from a router.
    scratch.hop.next = IpAddress::UNSPECIFIED;
    Ok(Verdict::Deliver(way_out(&out, scratch.flow.about.macs.to == Mac::ZERO)))
}

/// Whether the error's own checksum is right.
#[inline(never)]
fn is_undamaged(frame: &impl Packet, scratch: &mut Scratch) -> bool {
    let Scratch { datagram, whole, .. } = scratch;
    let key = &datagram.key;
    let at = usize::from(datagram.at);
    let Some(end) = end_of(frame, key.is_v4()) else { return false };
    let pseudo_header = match key.is_v4() {
        true => Sum::default(),
        false => Sum::pseudo_header_v6(key.source, key.destination, (end - at) as u16, IpProtocol::ICMPV6),
    };
    frame.has_right_sum(whole, at, end, pseudo_header)
}

/// Finds the flow that the error goes with.
#[inline(never)]
fn find_flow(scratch: &mut Scratch, tables: impl Tables) -> bool {
    let key = scratch.quote.key.turned(scratch.datagram.key.side);
    let Some(found) = conntrack::find(&key, tables.seconds(), tables) else { return false };
    found.entry.read(&mut scratch.flow);
    true
}

impl Quote {
    /// No packet.
    pub const EMPTY: Self = Self { key: FlowKey::EMPTY, at: 0, transport_at: 0, is_request: false };

    /// Reads the packet that `error` is about. Its header must be right (RFC 5508 REQ-3a); what follows may be cut off,
    /// and its checksum says nothing (REQ-3c).
    #[inline(never)]
    fn read(&mut self, frame: &impl Packet, error: &Datagram) -> bool {
        self.try_read(frame, error).is_some()
    }

    #[inline(always)]
    fn try_read(&mut self, frame: &impl Packet, error: &Datagram) -> Option<()> {
        let at = error.at + QUOTE_AT;
        let start = usize::from(at);
        let (protocol, source, destination, transport_at) = if error.key.is_v4() {
            let ip = *frame.view::<Ipv4>(start)?;
            let header = ip.header_length();
            if !ip.is_version_4()
                || header < Ipv4::LEN
                || !ip.has_transport_header()
                || !has_right_sum(frame, &ip, start)
            {
                return None;
            }
            (ip.protocol(), IpAddress::v4(ip.source()), ip.destination(), at + header as u16)
        } else {
            let ip = *frame.view::<Ipv6>(start)?;
            (ip.next_header(), ip.source(), ip.destination(), at + Ipv6::LEN as u16)
        };
        (self.at, self.transport_at, self.is_request) = (at, transport_at, false);
        self.key = FlowKey::new(error.key.side, protocol, (source, [0; 2]), (destination, [0; 2]), error.key.is_v4());
        let key = &mut self.key;
        match protocol {
            IpProtocol::TCP | IpProtocol::UDP | IpProtocol::SCTP => {
                let ports = *frame.view::<Ports>(usize::from(transport_at))?;
                (key.source_port, key.destination_port) = (ports.source, ports.destination);
            }
            IpProtocol::ICMP | IpProtocol::ICMPV6 => {
                let query = *frame.view::<Query>(usize::from(transport_at))?;
                match query.kind {
                    8 | 128 => {
                        self.is_request = true;
                        key.source_port = query.identifier;
                    }
                    0 | 129 => key.destination_port = query.identifier,
                    _ => return None,
                }
            }
            _ => {}
        }
        Some(())
    }
}

/// Whether the header checksum of the quoted packet is right. Options are summed by words, like the rest.
#[inline(always)]
fn has_right_sum(frame: &impl Packet, ip: &Ipv4, start: usize) -> bool {
    let mut sum = ip.sum();
    // At most 40 bytes of options.
    for word in 0..10 {
        let at = Ipv4::LEN + word * 4;
        if at < ip.header_length() {
            let Some([a, b, c, d]) = frame.view::<[u8; 4]>(start + at).copied() else { return false };
            sum = sum.bytes(a, b).bytes(c, d);
        }
    }
    sum.finish() == 0
}

/// Writes the quoted packet as it was on the other side; what the error's checksum changes by.
///
/// It came from where the error goes: its sender is the flow's destination.
#[inline(never)]
fn write_quote(frame: &mut impl Packet, scratch: &Scratch) -> Option<Delta> {
    let Scratch { quote, flow, .. } = scratch;
    let key = &quote.key;
    let is_v4 = key.is_v4();
    let addresses =
        Delta::default().address(key.source, flow.destination, is_v4).address(key.destination, flow.source, is_v4);
    let new = Ports { source: flow.about.destination_port, destination: flow.about.source_port };
    let ports = Delta::default().word(key.source_port, new.source).word(key.destination_port, new.destination);
    let at = usize::from(quote.at);
    let transport_at = usize::from(quote.transport_at);
    let mut message = if is_v4 {
        let ip = frame.view::<Ipv4>(at)?.readdressed(flow.destination.low(), flow.source.low());
        frame.write(at, &ip)?;
        // Addresses and header checksum change by the same, against each other.
        Delta::default()
    } else {
        frame.write(at + Ipv6::SOURCE_AT, &flow.destination)?;
        frame.write(at + Ipv6::DESTINATION_AT, &flow.source)?;
        addresses
    };
    match key.protocol() {
        IpProtocol::SCTP => {
            frame.write(transport_at, &new)?;
            message = message.and(ports);
        }
        IpProtocol::TCP => {
            frame.write(transport_at, &new)?;
            message = message.and(ports);
            // Most often cut off. What the frame has at its place then is no part of the packet.
            let checksum_at = transport_at + Tcp::CHECKSUM_AT;
            if checksum_at + 2 <= end_of(frame, is_v4)? {
                let old = *frame.view::<[u8; 2]>(checksum_at)?;
                let sum = addresses.and(ports).apply(old);
                frame.write(checksum_at, &sum)?;
                message = message.word(old, sum);
            }
        }
        IpProtocol::UDP => {
            frame.write(transport_at, &new)?;
            let checksum_at = transport_at + Udp::CHECKSUM_AT;
            let old = *frame.view::<[u8; 2]>(checksum_at)?;
            let sum = addresses.and(ports).apply_udp(old);
            frame.write(checksum_at, &sum)?;
            message = message.and(ports).word(old, sum);
        }
        IpProtocol::ICMP | IpProtocol::ICMPV6 => {
            let identifier = if quote.is_request { new.source } else { new.destination };
            frame.write(transport_at + Query::IDENTIFIER_AT, &identifier)?;
            let checksum_at = transport_at + Query::CHECKSUM_AT;
            let old = *frame.view::<[u8; 2]>(checksum_at)?;
            let pseudo_header = if is_v4 { Delta::default() } else { addresses };
            let sum = pseudo_header.and(ports).apply(old);
            frame.write(checksum_at, &sum)?;
            message = message.and(ports).word(old, sum);
        }
        _ => {}
    }
    Some(message)
}

/// Where the packet ends in the frame.
#[inline(always)]
fn end_of(frame: &impl Packet, is_v4: bool) -> Option<usize> {
    Some(if is_v4 {
        Ethernet::LEN + usize::from(frame.view::<Ipv4>(Ethernet::LEN)?.total_length())
    } else {
        Ethernet::LEN + Ipv6::LEN + usize::from(frame.view::<Ipv6>(Ethernet::LEN)?.payload_length())
    })
}

/// Writes the headers around the quote: to the endpoint as it is called there. From whom: the other endpoint itself, or a
/// router on the way, which keeps its name, unless that is a namespace's.
#[inline(never)]
fn write_around(frame: &mut impl Packet, scratch: &mut Scratch, message: Delta) -> Option<()> {
    let Scratch { datagram, quote, flow, .. } = scratch;
    let key = &datagram.key;
    let is_router = key.source != quote.key.destination && key.side == NetworkId::OUTSIDE;
    if is_router {
        flow.source = key.source;
    }
    let pseudo_header = match key.is_v4() {
        true => Delta::default(),
        false => {
            Delta::default().address(key.source, flow.source, false).address(key.destination, flow.destination, false)
        }
    };
    frame.change_checksum(usize::from(datagram.at) + Query::CHECKSUM_AT, pseudo_header, message, false)?;
    rewrite::write_network(frame, scratch)
}
