//! Where does a frame go? Known unicast to one port; ARP and ND answered; other groups flooded; all else dropped.

use crate::arp;
use crate::capture::Moment;
use crate::layout::{FLOOD_BURST_NS, FLOOD_COPY_NS, MAX_PORTS, Port, PortId, StationKey, port_of_mac};
use crate::nd::{self, Answer};
use crate::packet::Packet;
use crate::tables::{Stage, Tables};
use crate::verdict::{DropReason, Egress, Outcome, Verdict};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::transport::{Tcp, Udp};
use crate::wire::{EtherType, Ethernet, IpAddress, IpProtocol, Mac};

/// Sends a frame that came in by `from` where its destination says.
#[inline(always)]
pub fn forward(frame: &mut impl Packet, eth: &Ethernet, from: &Port, tables: impl Tables) -> Outcome {
    tables.enter(Stage::Switch);
    if eth.destination.is_group() {
        return forward_group(frame, from, tables);
    }
    check_ethertype(eth)?;
    match port_of(eth.destination, from, tables) {
        Some(to) if to.id() == from.id() => Err(DropReason::SamePort),
        Some(to) if to.is_host() && is_ip(eth) => Ok(Verdict::Route),
        Some(to) => deliver(frame, from, &to, tables),
        None => flood(frame, from, Audience::Learning, tables),
    }
}

/// A frame to a group address.
#[inline(never)]
fn forward_group(frame: &mut impl Packet, from: &Port, tables: impl Tables) -> Outcome {
    let eth = Ethernet::read(frame)?;
    if eth.destination.is_reserved() {
        return Err(DropReason::ReservedGroup);
    }
    check_ethertype(&eth)?;
    tables.enter(Stage::Answer);
    match eth.ethertype() {
        EtherType::ARP if arp::answer(frame, from, tables)? => return reply(frame, from, tables),
        EtherType::IPV6 => match nd::answer(frame, from, tables)? {
            Answer::Here => return reply(frame, from, tables),
            Answer::ByOwner(owner) => return deliver_to(frame, from, owner, tables),
            Answer::No => {}
        },
        _ => {}
    }
    flood(frame, from, Audience::All, tables)
}

/// The allow-list: everything else, 802.3 length frames included, has no business on a container network.
#[inline(always)]
fn check_ethertype(eth: &Ethernet) -> Result<(), DropReason> {
    match eth.ethertype() {
        EtherType::IPV4 | EtherType::ARP | EtherType::IPV6 => Ok(()),
        _ => Err(DropReason::EtherType),
    }
}

#[inline(always)]
fn is_ip(eth: &Ethernet) -> bool {
    matches!(eth.ethertype(), EtherType::IPV4 | EtherType::IPV6)
}

/// The port of the same network that has this MAC: by the number in the MAC (an array lookup), else by the hashed FDB.
#[inline(always)]
pub(crate) fn port_of(mac: Mac, from: &Port, tables: impl Tables) -> Option<Port> {
    if let Some(port) = tables.port(port_of_mac(mac))
        && port.mac() == mac
        && port.network() == from.network()
    {
        return Some(port);
    }
    let station = tables.station(&StationKey { network: from.network(), mac })?;
    if !station.is_fixed() && !station.is_alive(tables.now()) {
        return None;
    }
    tables.port(station.port()).filter(|port| port.network() == from.network())
}

/// To one port.
#[inline(always)]
fn deliver(frame: &impl Packet, from: &Port, to: &Port, tables: impl Tables) -> Outcome {
    if from.is_kept_from(to) {
        return Err(DropReason::IsolatedPort);
    }
    if frame.len() > longest(to) && wire_length(frame, from) > longest(to) {
        return Err(DropReason::TooLong);
    }
    if to.is_host() {
        check_host_destination(frame, from, tables)?;
    }
    tables.count_sent(to.id(), frame.len());
    tables.show(Moment::Left(to.id().ifindex()), frame);
    Ok(Verdict::Deliver(Egress::to(to)))
}

/// To the port with this number. Apart from its callers, whose stack has no room for another port.
#[inline(never)]
fn deliver_to(frame: &impl Packet, from: &Port, to: PortId, tables: impl Tables) -> Outcome {
    let to = tables.port(to).ok_or(DropReason::UnknownDestination)?;
    deliver(frame, from, &to, tables)
}

/// Back to where it came from: the frame has become the answer.
#[inline(always)]
fn reply(frame: &impl Packet, from: &Port, tables: impl Tables) -> Outcome {
    tables.count_sent(from.id(), frame.len());
    tables.show(Moment::After, frame);
    Ok(Verdict::Deliver(Egress::to(from)))
}

/// Who gets a copy of a flooded frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Audience {
    /// Every other port of the network: broadcast and multicast.
    All,
    /// The other ports that learn, because an unknown station can only be behind one of those.
    Learning,
}

/// To every other port of the network, within the sender's allowance.
#[inline(never)]
fn flood(frame: &mut impl Packet, from: &Port, audience: Audience, tables: impl Tables) -> Outcome {
    tables.enter(Stage::Flood);
    let network = tables.network(from.network()).ok_or(DropReason::UnknownPort)?;
    let copies = match audience {
        Audience::All => network.ports().saturating_sub(1),
        Audience::Learning => network.learning().saturating_sub(u16::from(from.learns())),
    };
    if copies == 0 && audience == Audience::Learning {
        return Err(DropReason::UnknownDestination);
    }
    take_allowance(from.id(), copies, tables)?;
    tables.count_flooded(from.id());
    tables.show(Moment::Flooded, frame);

    // All that the frame alone decides is decided once, not for each copy.
    let length = frame.len();
    let on_wire = wire_length(frame, from);
    let host_refuses = check_host_destination(frame, from, tables).err();
    let mut next = network.first();
    let (network, is_isolated, from) = (from.network(), from.is_isolated(), from.id());
    // Moved in, because a closure by reference holds each value and a pointer to it, and the stack is small.
    let mut step = move || {
        let Some(port) = tables.port(next) else { return false };
        if port.network() != network || next == PortId::NONE {
            return false;
        }
        next = port.next();
        // A port that is just being taken out has no id any more, but still leads to the next.
        if port.id() == from || port.id() == PortId::NONE || (audience == Audience::Learning && !port.learns()) {
            return true;
        }
        if is_isolated && port.is_isolated() {
            return true;
        }
        let refused = if on_wire > longest(&port) { Some(DropReason::TooLong) } else { None };
        let refused = if port.is_host() && refused.is_none() { host_refuses } else { refused };
        if let Some(reason) = refused {
            tables.count_dropped(port.id(), reason, length, frame);
        } else {
            tables.count_sent(port.id(), length);
            frame.copy_to(&port);
        }
        true
    };
    tables.repeat(MAX_PORTS, &mut step);
    Ok(Verdict::Flooded)
}

/// Takes `copies` from what `port` may have flooded: GCRA with one clock for each port, in nanoseconds.
///
/// One word, so CPUs that race on it can be off by a frame but never see half of a value.
#[inline(always)]
fn take_allowance(port: PortId, copies: u16, tables: impl Tables) -> Result<(), DropReason> {
    let now = tables.now();
    let clock = tables.flood_clock(port).max(now);
    if clock - now > FLOOD_BURST_NS {
        return Err(DropReason::FloodLimit);
    }
    tables.set_flood_clock(port, clock + u64::from(copies) * FLOOD_COPY_NS);
    Ok(())
}

/// The longest frame that `port` takes, Ethernet header included.
#[inline(always)]
pub(crate) fn longest(port: &Port) -> u32 {
    port.mtu() + Ethernet::LEN as u32
}

/// Bytes of the frame on the wire, or of its longest segment when it is a GSO frame.
///
/// `bpf_redirect_peer` passes by the MTU checks of the stack, so they are made here.
#[inline(never)]
fn wire_length(frame: &impl Packet, from: &Port) -> u32 {
    // SCTP frames are cut where the sender's chunks end (GSO_BY_FRAGS): no longer than the sender's MTU.
    const BY_FRAGMENTS: u32 = 0xffff;
    let payload = frame.gso_size();
    if payload == 0 {
        return frame.len();
    }
    let headers = match Ethernet::read(frame).map_or(EtherType(0), |eth| eth.ethertype()) {
        EtherType::IPV4 => Ipv4::read(frame).ok().map(|ip| (ip.protocol(), ip.transport_at())),
        // A GSO frame with extension headers is judged by the sender's MTU, below.
        EtherType::IPV6 => Ipv6::read(frame).ok().map(|ip| (ip.next_header(), Ethernet::LEN + Ipv6::LEN)),
        _ => None,
    };
    let headers = match headers {
        Some((IpProtocol::TCP, at)) => frame.view::<Tcp>(at).map(|tcp| at + tcp.header_length()),
        Some((IpProtocol::UDP, at)) => Some(at + Udp::LEN),
        _ => None,
    };
    match headers {
        Some(headers) if payload != BY_FRAGMENTS => headers as u32 + payload,
        _ => longest(from),
    }
}

/// What a namespace may not send up into the host: traffic for another network, whose gateway the host is too, and for
/// loopback addresses (CVE-2020-8558).
#[inline(never)]
fn check_host_destination(frame: &impl Packet, from: &Port, tables: impl Tables) -> Result<(), DropReason> {
    let eth = Ethernet::read(frame)?;
    let destination = match eth.ethertype() {
        EtherType::IPV4 => {
            let ip = Ipv4::read(frame)?;
            if ip.is_to_loopback() {
                return Err(DropReason::LoopbackDestination);
            }
            ip.destination()
        }
        EtherType::IPV6 => {
            let ip = Ipv6::read(frame)?;
            if ip.destination() == IpAddress::LOOPBACK {
                return Err(DropReason::LoopbackDestination);
            }
            ip.destination()
        }
        _ => return Ok(()),
    };
    match tables.subnet(destination) {
        Some(network) if network != from.network() => Err(DropReason::OtherNetwork),
        _ => Ok(()),
    }
}
