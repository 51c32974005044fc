//! Packets that leave their network, or come into one: by a known flow, or opening one.
//!
//! ```text
//!   from a namespace, to the gateway's MAC            from an uplink
//!     of a known flow?   -> as that says                of a known flow?   -> as that says
//!     to the gateway?    -> the host, or published      to a published port?   -> its namespace
//!     to another network? -> dropped, unless both open  to a namespace itself, or a port of the pool?   -> dropped
//!     by an uplink?      -> masqueraded, or as it is    else   -> the host
//! ```

use crate::capture::Moment;
use crate::conntrack::{self, Step};
use crate::datagram::{Datagram, Kind};
use crate::layout::{Flow, FlowState, NetworkId, Port, PortId, flow_flags};
use crate::open::{find_way, source_of};
use crate::packet::Packet;
use crate::rewrite;
use crate::scratch::Scratch;
use crate::tables::{Age, FlowEntry, Stage, Tables};
use crate::verdict::{DropReason, Egress, Outcome, Verdict};
use crate::wire::transport::{Tcp, Udp, tcp_flags};
use crate::wire::{Ethernet, IpAddress, Mac};

/// A packet that a namespace sent to the gateway's MAC.
#[inline(always)]
pub fn leave(frame: &mut impl Packet, from: &Port, scratch: &mut Scratch, tables: impl Tables) -> Outcome {
    scratch.datagram.read(frame, from.network(), tables)?;
    if scratch.datagram.is_fragment() {
        return Ok(Verdict::Fragment);
    }
    follow(from, scratch, tables)?;
    if scratch.is_known {
        return send_on(frame, scratch, tables);
    }
    match scratch.datagram.kind {
        Kind::IcmpError => Ok(Verdict::Relate),
        Kind::Link
        | Kind::Tcp
        | Kind::Udp
        | Kind::Sctp
        | Kind::EchoRequest
        | Kind::EchoReply
        | Kind::Other
        | Kind::LaterFragment => Ok(Verdict::Open),
    }
}

/// A packet that came in by an uplink.
#[inline(always)]
pub fn enter(frame: &mut impl Packet, uplink: &Port, scratch: &mut Scratch, tables: impl Tables) -> Outcome {
    if scratch.datagram.read(frame, NetworkId::OUTSIDE, tables).is_err() {
        // What cannot be read cannot be ours; the host's stack counts it, like what is for the link.
        scratch.datagram.kind = Kind::Link;
        return Ok(Verdict::Open);
    }
    if scratch.datagram.is_fragment() {
        return Ok(Verdict::Fragment);
    }
    follow(uplink, scratch, tables)?;
    if scratch.is_known {
        return send_on(frame, scratch, tables);
    }
    match scratch.datagram.kind {
        Kind::IcmpError => Ok(Verdict::Relate),
        Kind::Link
        | Kind::LaterFragment
        | Kind::Tcp
        | Kind::Udp
        | Kind::Sctp
        | Kind::EchoRequest
        | Kind::EchoReply
        | Kind::Other => Ok(Verdict::Open),
    }
}

/// Finds the flow of a packet, and does to it what the packet does. What is to become of the packet is in `scratch` then.
///
/// A function of its own, as is what goes before and after it: at a call the verifier meets the ways again that it walked
/// apart, and 145,000 instructions become a quarter of that.
#[inline(never)]
pub(crate) fn follow(from: &Port, scratch: &mut Scratch, tables: impl Tables) -> Result<(), DropReason> {
    tables.enter(Stage::Conntrack);
    scratch.is_known = false;
    // An error has no ports, which an echo of identifier 0 has not either: it would pass as one, untranslated.
    if matches!(scratch.datagram.kind, Kind::IcmpError | Kind::Link) {
        return Ok(());
    }
    let now = tables.seconds();
    let Some(found) = conntrack::find(&scratch.datagram.key, now, tables) else { return Ok(()) };
    found.entry.read(&mut scratch.flow);
    let step = if is_outdated(scratch, tables) { Step::Reopen } else { conntrack::follow(scratch, found, tables) };
    if step == Step::Reopen {
        conntrack::end(&scratch.datagram.key, &scratch.flow, found.age, tables);
        return Ok(());
    }
    (scratch.is_known, scratch.is_grown_by) = (true, step == Step::Promote);
    scratch.by_neighbour = scratch.flow.about.macs.to == Mac::ZERO;
    if now != scratch.flow.about.seen && may_refresh(scratch) {
        return refresh(from, scratch, found.age, now, tables);
    }
    if scratch.by_neighbour {
        return find_neighbour(from, scratch, found.age, tables);
    }
    Ok(())
}

/// Once a second: keeps the flow alive, asks for its way again, and makes the kernel see to its neighbour.
#[inline(never)]
fn refresh(from: &Port, scratch: &mut Scratch, age: Age, now: u32, tables: impl Tables) -> Result<(), DropReason> {
    if !conntrack::refresh(scratch, age, now, tables) {
        // Half of a flow would live on as long as somebody speaks, unheard: it is made anew.
        conntrack::end(&scratch.datagram.key, &scratch.flow, age, tables);
        scratch.is_known = false;
        return Ok(());
    }
    scratch.is_grown_by |= conntrack::is_settled(scratch, age);
    find_neighbour(from, scratch, age, tables)
}

/// Asks for the way of a flow that leaves by an uplink: the kernel is to send this packet to the next hop, and to see to that
/// neighbour. It would route the packet anew if it were not told which (`bpf_redirect_neigh`), as one of the host's own:
/// without the interface that it came in by, and with the address and port that it has been given.
#[inline(never)]
pub(crate) fn find_neighbour(
    from: &Port,
    scratch: &mut Scratch,
    age: Age,
    tables: impl Tables,
) -> Result<(), DropReason> {
    scratch.hop.next = IpAddress::UNSPECIFIED;
    if from.is_uplink() || scratch.flow.about.other_side != NetworkId::OUTSIDE {
        return Ok(());
    }
    match find_way_again(from, scratch, tables) {
        Ok(()) => conntrack::set_way(scratch, age, tables),
        Err(DropReason::AddressChanged) => {
            conntrack::end(&scratch.datagram.key, &scratch.flow, age, tables);
            scratch.is_known = false;
        }
        Err(reason) => return Err(reason),
    }
    scratch.by_neighbour = true;
    Ok(())
}

/// Sends on a packet of a known flow.
#[inline(always)]
pub(crate) fn send_on(frame: &mut impl Packet, scratch: &mut Scratch, tables: impl Tables) -> Outcome {
    let outcome = send(frame, scratch, tables);
    if scratch.is_grown_by && outcome.is_ok() {
        conntrack::promote(scratch, tables);
    }
    outcome
}

/// Whether the flow was made for a published port that is somebody else's by now. A TCP connection goes on with whom it
/// began; the next datagram of an unchanged sender goes to the new one.
#[inline(always)]
pub(crate) fn is_outdated(scratch: &Scratch, tables: impl Tables) -> bool {
    let Scratch { datagram, flow: Flow { about, .. }, .. } = scratch;
    let goes_on = datagram.kind == Kind::Tcp && !datagram.is_syn();
    if about.publish == 0 || about.has(flow_flags::REPLY) || goes_on {
        return false;
    }
    let entry = tables.publish(u32::from(about.publish));
    entry.is_none_or(|entry| entry.owner == PortId::NONE || entry.epoch != about.epoch)
}

/// Whether the packet keeps its flow alive: from inside always, from outside only for what is published (RFC 4787
/// REQ-6); never a RST, or anything after one (RFC 7857 sections 2.2 and 7.1).
#[inline(always)]
pub(crate) fn may_refresh(scratch: &Scratch) -> bool {
    let Scratch { datagram, flow: Flow { about, .. }, .. } = scratch;
    let is_inside = datagram.key.side != NetworkId::OUTSIDE || about.has(flow_flags::PUBLISHED);
    is_inside && about.state != FlowState::CLOSED && !datagram.has(tcp_flags::RST)
}

/// Asks the routes for the way of a flow that leaves by an uplink.
#[inline(never)]
fn find_way_again(from: &Port, scratch: &mut Scratch, tables: impl Tables) -> Result<(), DropReason> {
    tables.read_policy(from.network(), &mut scratch.policy)?;
    find_way(scratch, tables)?.forward()?;
    let Scratch { datagram, flow, policy, hop, .. } = scratch;
    let is_masqueraded = flow.source != datagram.key.source && !flow.about.has(flow_flags::PUBLISHED);
    if is_masqueraded && source_of(policy, hop, datagram.key.is_v4()) != flow.source {
        return Err(DropReason::AddressChanged);
    }
    (flow.about.out, flow.about.mtu) = (hop.uplink, hop.mtu);
    Ok(())
}

/// Sends the packet on as `scratch.flow` says.
#[inline(always)]
pub(crate) fn send(frame: &mut impl Packet, scratch: &mut Scratch, tables: impl Tables) -> Outcome {
    tables.enter(Stage::Send);
    let Scratch { datagram, flow, .. } = scratch;
    let out = out_of(datagram, flow, tables)?;
    let longest = longest(&out, flow.about.mtu);
    if !fits(frame, datagram, longest) {
        scratch.longest = longest as u16;
        let may_cut = !datagram.whole && frame.gso_size() == 0;
        return if may_cut { Ok(Verdict::Cut) } else { Err(DropReason::FragmentationNeeded) };
    }
    tables.show(Moment::Before(out.ifindex()), frame);
    rewrite::pass_on(frame, scratch)?;
    tables.count_sent(out.id(), frame.len());
    Ok(Verdict::Deliver(way_out(&out, scratch.by_neighbour)))
}

/// The same for the packet that has just opened its flow.
#[inline(always)]
pub(crate) fn send_first(frame: &mut impl Packet, scratch: &mut Scratch, tables: impl Tables) -> Outcome {
    scratch.by_neighbour = scratch.flow.about.macs.to == Mac::ZERO;
    send(frame, scratch, tables)
}

/// Where the packet leaves by its flow, if it may still pass a router.
#[inline(always)]
pub(crate) fn out_of(datagram: &Datagram, flow: &Flow, tables: impl Tables) -> Result<Port, DropReason> {
    let out = tables.port(flow.about.out).ok_or(DropReason::UnknownDestination)?;
    if !out.is_uplink() && out.mac() != flow.about.macs.to {
        // The port number is somebody else's by now.
        return Err(DropReason::UnknownDestination);
    }
    if datagram.ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    Ok(out)
}

/// How a packet gets out there.
#[inline(always)]
pub(crate) fn way_out(out: &Port, by_neighbour: bool) -> Egress {
    match (out.is_uplink(), by_neighbour) {
        (false, _) => Egress::Namespace(out.id()),
        (true, false) => Egress::Uplink(out.ifindex()),
        (true, true) => Egress::Neighbour(out.ifindex()),
    }
}

/// The longest packet for the way out; `mtu` is that of the route, or 0.
#[inline(always)]
pub(crate) fn longest(out: &Port, mtu: u16) -> u32 {
    if mtu != 0 { u32::from(mtu).min(out.mtu()) } else { out.mtu() }
}

/// Whether the packet, or its longest segment, is short enough.
#[inline(always)]
pub(crate) fn fits(frame: &impl Packet, datagram: &Datagram, longest: u32) -> bool {
    frame.len() <= longest + Ethernet::LEN as u32 || wire_length(frame, datagram) <= longest
}

/// Bytes of the longest packet that the frame will be on the wire, from the IP header on.
#[inline(never)]
fn wire_length(frame: &impl Packet, datagram: &Datagram) -> u32 {
    let ethernet = Ethernet::LEN as u32;
    let payload = frame.gso_size();
    if payload == 0 {
        return frame.len().saturating_sub(ethernet);
    }
    let header = match datagram.kind {
        Kind::Tcp => frame.view::<Tcp>(usize::from(datagram.at)).map_or(0, |tcp| tcp.header_length() as u32),
        Kind::Udp => Udp::LEN as u32,
        Kind::Sctp
        | Kind::EchoRequest
        | Kind::EchoReply
        | Kind::IcmpError
        | Kind::Link
        | Kind::LaterFragment
        | Kind::Other => 0,
    };
    u32::from(datagram.at) + header + payload - ethernet
}
