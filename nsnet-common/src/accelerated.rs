//! The short way: what most frames of a busy port are, decided before the kernel makes a buffer of them.
//!
//! It is no second dataplane. It asks the same tables by the same functions as [`path`](crate::path), in the same order, and
//! answers `None` wherever those would do more than forward: then the frame is as it came, nothing is counted, and
//! [`path`](crate::path) decides and counts. What it takes has the bytes, the counters and the entries that it would have there.
//!
//! ```text
//!   taken: TCP, UDP and pings, whole, that go
//!            to a known MAC of the network               or by an established flow, whose stamp is fresh
//!          and fit, and whose way out takes frames that are not yet buffers (flags::XDP)
//!   left:  all else. A flow's first packets, its SYN, FIN and RST, and one packet a second, which keeps it alive;
//!          fragments, ICMP errors, ARP, neighbour discovery, floods, what is for the host, what is to be dropped
//! ```

use crate::checksum::Sum;
use crate::conntrack;
use crate::datagram::Kind;
use crate::guard;
use crate::layout::{FlowState, Port, PortId, flags, flow_flags};
use crate::packet::Packet;
use crate::path::read_untagged;
use crate::rewrite;
use crate::route;
use crate::scratch::Scratch;
use crate::switch;
use crate::tables::{Age, FlowEntry, Tables};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::transport::{Tcp, Udp, tcp_flags};
use crate::wire::{EtherType, Ethernet, IpProtocol, Mac};

/// The port that a frame goes to that left a namespace through `id`, if it is taken.
#[inline(always)]
pub fn from_namespace(
    frame: &mut impl Packet,
    id: PortId,
    scratch: &mut Scratch,
    tables: impl Tables,
) -> Option<PortId> {
    let from = tables.port(id)?;
    if !is_admitted(frame, &from, tables) {
        return None;
    }
    match switched(frame, &from, tables) {
        Ahead::Left => None,
        Ahead::Port(to) => Some(to),
        Ahead::Gateway => by_flow(frame, &from, scratch, tables),
    }
}

/// Whether a frame is of the kind that is taken at all, and its sender who it says it is.
///
/// A function of its own, like the two that follow it: together they would need more stack than there is.
#[inline(never)]
fn is_admitted(frame: &impl Packet, from: &Port, tables: impl Tables) -> bool {
    let Ok(eth) = read_untagged(frame) else { return false };
    // A foreign MAC may be to be learned.
    let is_own = from.id() != PortId::NONE && eth.source == from.mac();
    is_own && !eth.destination.is_group() && is_plain(frame) && guard::check_sender(frame, &eth, from, tables).is_ok()
}

/// What is ahead of a frame in its network.
#[derive(Clone, Copy)]
enum Ahead {
    /// More than is done here.
    Left,
    /// A namespace's port. The frame is counted.
    Port(PortId),
    /// The gateway: its flow knows more.
    Gateway,
}

#[inline(never)]
fn switched(frame: &impl Packet, from: &Port, tables: impl Tables) -> Ahead {
    let Ok(eth) = Ethernet::read(frame) else { return Ahead::Left };
    match switch::port_of(eth.destination, from, tables) {
        Some(to) if to.is_host() => Ahead::Gateway,
        Some(to)
            if to.id() != from.id()
                && !from.is_kept_from(&to)
                && takes(&to, frame)
                && frame.len() <= switch::longest(&to) =>
        {
            tables.count_received(from.id(), frame.len());
            tables.count_sent(to.id(), frame.len());
            Ahead::Port(to.id())
        }
        Some(_) | None => Ahead::Left,
    }
}

/// The port that a frame goes to that came in by the uplink `id`, if it is taken.
#[inline(always)]
pub fn from_uplink(frame: &mut impl Packet, id: PortId, scratch: &mut Scratch, tables: impl Tables) -> Option<PortId> {
    let uplink = tables.port(id).filter(Port::is_uplink)?;
    let eth = read_untagged(frame).ok()?;
    if eth.destination != uplink.mac() || !is_plain(frame) {
        return None;
    }
    by_flow(frame, &uplink, scratch, tables)
}

/// Where the established flow leads that the packet is of: a port of a network, or an uplink.
#[inline(never)]
fn by_flow(frame: &mut impl Packet, from: &Port, scratch: &mut Scratch, tables: impl Tables) -> Option<PortId> {
    scratch.datagram.read(frame, from.network(), tables).ok()?;
    let datagram = &scratch.datagram;
    if datagram.is_fragment() || datagram.has(tcp_flags::SYN | tcp_flags::RST | tcp_flags::FIN) {
        return None;
    }
    match datagram.kind {
        Kind::Tcp | Kind::Udp | Kind::EchoRequest | Kind::EchoReply => {}
        Kind::Sctp | Kind::IcmpError | Kind::Link | Kind::LaterFragment | Kind::Other => return None,
    }
    let now = tables.seconds();
    tables.flow(Age::Grown, &datagram.key)?.read(&mut scratch.flow);
    let about = &scratch.flow.about;
    let is_due = now != about.seen && route::may_refresh(scratch);
    let is_first_answer = about.has(flow_flags::REPLY) && about.state == FlowState::UNREPLIED;
    if is_due
        || is_first_answer
        || !about.is_alive(now)
        || about.macs.to == Mac::ZERO
        || route::is_outdated(scratch, tables)
    {
        return None;
    }
    let out = route::out_of(&scratch.datagram, &scratch.flow, tables).ok()?;
    let longest = route::longest(&out, about.mtu);
    if !takes(&out, frame) || !route::fits(frame, &scratch.datagram, longest) {
        return None;
    }
    if scratch.datagram.kind == Kind::Tcp {
        // Looked up once more: a handle that is kept over the whole path has the verifier walk it once for each table.
        let entry = tables.flow(Age::Grown, &scratch.datagram.key)?;
        conntrack::note_numbers(&scratch.datagram, &scratch.flow, entry);
    }
    // Nothing is half written: all that is written was read before.
    rewrite::pass_on(frame, scratch).ok()?;
    tables.count_received(from.id(), frame.len());
    tables.count_sent(out.id(), frame.len());
    Some(out.id())
}

/// Whether frames that are no buffers yet may be sent there, and this one.
#[inline(always)]
fn takes(to: &Port, frame: &impl Packet) -> bool {
    to.flags() & flags::XDP != 0 && (frame.is_in_one_piece() || to.flags() & flags::XDP_PIECES != 0)
}

/// Whether it is a whole TCP segment, UDP datagram or ping whose checksum nobody else is to fill in.
#[inline(never)]
fn is_plain(frame: &impl Packet) -> bool {
    let Ok(eth) = Ethernet::read(frame) else { return false };
    match eth.ethertype() {
        EtherType::IPV4 => is_plain_v4(frame),
        EtherType::IPV6 => is_plain_v6(frame),
        _ => false,
    }
}

#[inline(always)]
fn is_plain_v4(frame: &impl Packet) -> bool {
    const AT: usize = Ethernet::LEN + Ipv4::LEN;
    let Ok(ip) = Ipv4::read_whole(frame) else { return false };
    if ip.header_length() != Ipv4::LEN || ip.more_fragments() || ip.fragment_offset() != 0 {
        return false;
    }
    let length = ip.total_length().saturating_sub(Ipv4::LEN as u16);
    let pseudo_header = Sum::pseudo_header_v4(ip.source(), ip.destination().low(), length, ip.protocol());
    match ip.protocol() {
        IpProtocol::TCP => frame.view(AT + Tcp::CHECKSUM_AT).is_some_and(|sum| is_complete(*sum, pseudo_header)),
        IpProtocol::UDP => frame.view(AT + Udp::CHECKSUM_AT).is_some_and(|sum| is_complete(*sum, pseudo_header)),
        IpProtocol::ICMP => frame.view::<[u8; 1]>(AT).is_some_and(|kind| matches!(kind, [0 | 8])),
        _ => false,
    }
}

#[inline(always)]
fn is_plain_v6(frame: &impl Packet) -> bool {
    const AT: usize = Ethernet::LEN + Ipv6::LEN;
    let Ok(ip) = Ipv6::read(frame) else { return false };
    let pseudo_header = Sum::pseudo_header_v6(ip.source(), ip.destination(), ip.payload_length(), ip.next_header());
    match ip.next_header() {
        IpProtocol::TCP => frame.view(AT + Tcp::CHECKSUM_AT).is_some_and(|sum| is_complete(*sum, pseudo_header)),
        IpProtocol::UDP => frame.view(AT + Udp::CHECKSUM_AT).is_some_and(|sum| is_complete(*sum, pseudo_header)),
        IpProtocol::ICMPV6 => frame.view::<[u8; 1]>(AT).is_some_and(|kind| matches!(kind, [128 | 129])),
        _ => false,
    }
}

/// Whether a transport checksum is more than the pseudo-header's sum.
///
/// That sum is what stands in a local packet whose checksum the kernel is still to fill in, and the note that says so is lost
/// when the frame becomes one of XDP: whoever got it would find it wrong. Of complete ones one in 65,536 looks the same.
#[inline(always)]
fn is_complete(checksum: [u8; 2], pseudo_header: Sum) -> bool {
    checksum != (!pseudo_header.finish()).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases::accelerated::{offer, open};
    use crate::cases::check::NOON;
    use crate::cases::world::{self, BLUE, CYAN, HOST, RED};
    use crate::cases::{Hook, frame::Frame};
    use crate::memory::MemoryTables;

    fn tables() -> MemoryTables {
        let mut tables = world::tables(NOON);
        open(&mut tables);
        tables
    }

    fn taken_to(frame: &[u8], tables: &MemoryTables) -> Option<PortId> {
        offer(Hook::Namespace, RED.id, frame, tables).to
    }

    /// The place of a transport checksum, and the sum of the pseudo-header, counted from the bytes.
    fn partial(mut frame: Vec<u8>, protocol: u8) -> Vec<u8> {
        let is_v4 = frame[12..14] == [8, 0];
        let (addresses, at) = if is_v4 { (26..34, 34) } else { (22..54, 54) };
        let length = (frame.len() - at) as u32;
        let words = frame[addresses].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
        let mut sum = words.sum::<u32>() + length + u32::from(protocol);
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let at = at + if protocol == 6 { 16 } else { 6 };
        frame[at..at + 2].copy_from_slice(&(sum as u16).to_be_bytes());
        frame
    }

    #[test]
    fn a_checksum_that_is_still_to_be_filled_in_is_left() {
        let tables = tables();
        let frames: [(Frame, u8); 4] = [
            (RED.udp4(&BLUE), 17),
            (RED.udp6(&BLUE), 17),
            (RED.to(&BLUE).ipv4(RED.ipv4, BLUE.ipv4).tcp(1000, 80), 6),
            (RED.to(&BLUE).ipv6(RED.ipv6, BLUE.ipv6).tcp(1000, 80), 6),
        ];
        for (frame, protocol) in frames {
            let frame = frame.finish();
            assert_eq!(taken_to(&frame, &tables), Some(BLUE.id), "{frame:02x?}");
            let partial = partial(frame, protocol);
            assert_eq!(taken_to(&partial, &tables), None, "{partial:02x?}");
        }
    }

    #[test]
    fn only_to_where_frames_of_xdp_are_taken() {
        let frame = RED.udp4(&BLUE).finish();
        let mut tables = world::tables(NOON);
        assert_eq!(taken_to(&frame, &tables), None);
        let blue = tables.ports[&BLUE.id];
        tables.ports.insert(BLUE.id, blue.with(flags::XDP));
        assert_eq!(taken_to(&frame, &tables), Some(BLUE.id));
    }

    #[test]
    fn what_is_not_for_a_namespace_of_the_network_is_left() {
        let tables = tables();
        let own = RED.to(&RED).ipv4(RED.ipv4, RED.ipv4).udp(1, 2);
        let spoofed = RED.to(&BLUE).ipv4(BLUE.ipv4, BLUE.ipv4).udp(1, 2);
        for frame in [RED.broadcast(), RED.udp4(&HOST), RED.udp4(&CYAN), own, spoofed] {
            let frame = frame.finish();
            assert_eq!(taken_to(&frame, &tables), None, "{frame:02x?}");
        }
        let longest = RED.udp4(&BLUE).payload(1500 - 46);
        assert_eq!(taken_to(&longest.finish(), &tables), Some(BLUE.id));
        let longer = RED.udp4(&BLUE).payload(1500 - 45);
        assert_eq!(taken_to(&longer.finish(), &tables), None);
    }
}
