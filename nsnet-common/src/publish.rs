//! Published ports (RFC 2663 section 4.4: inbound address translation), from outside and from namespaces.

use crate::conntrack::{self, Pair};
use crate::datagram::Kind;
use crate::layout::{Mapping, Port, flow_flags};
use crate::open::{Lead, begin, check_opens, is_never_routed, mac_of};
use crate::scratch::Scratch;
use crate::tables::{Route, Stage, Tables};
use crate::verdict::DropReason;
use crate::wire::{IpAddress, Mac};

/// The published entry that the packet is to, if it is to one of the host's addresses.
#[inline(never)]
pub(crate) fn published(scratch: &Scratch, tables: impl Tables) -> Option<u32> {
    tables.enter(Stage::Publish);
    let key = &scratch.datagram.key;
    if !matches!(scratch.datagram.kind, Kind::Tcp | Kind::Udp | Kind::Sctp) {
        return None;
    }
    let port = u16::from_be_bytes(key.destination_port);
    // Every address of the host's, and no other: an uplink may bring what the host is to route.
    tables
        .published(key.protocol(), key.destination, port)
        .or_else(|| published_everywhere(scratch, tables).filter(|_| tables.is_local(key.destination)))
}

/// The entry that is published at every address of the host's.
#[inline(always)]
fn published_everywhere(scratch: &Scratch, tables: impl Tables) -> Option<u32> {
    let key = &scratch.datagram.key;
    let any = if key.is_v4() { IpAddress::v4([0; 4]) } else { IpAddress::UNSPECIFIED };
    tables.published(key.protocol(), any, u16::from_be_bytes(key.destination_port))
}

/// The same for a packet from outside, to an address that the host has got since the control plane looked (DHCP).
#[inline(never)]
pub(crate) fn published_since(scratch: &mut Scratch, tables: impl Tables) -> Option<u32> {
    if !matches!(scratch.datagram.kind, Kind::Tcp | Kind::Udp | Kind::Sctp) {
        return None;
    }
    let place = published_everywhere(scratch, tables)?;
    let gateway = tables.port(tables.policy(tables.publish(place)?.network)?.gateway)?;
    is_new_address(gateway.ifindex(), scratch, tables).then_some(place)
}

/// Whether the packet is to an address of the host's that is not in the tables.
///
/// The host's routes know at once, but have one answer for "the host's own", "broadcast" and "no route". Where there is no
/// route to an address, there is none to those beside it; and broadcast addresses are known like the host's own, but for
/// those of subnets that came later.
#[inline(never)]
fn is_new_address(from: u32, scratch: &mut Scratch, tables: impl Tables) -> bool {
    let Scratch { datagram, hop, .. } = scratch;
    let key = &datagram.key;
    if is_never_routed(&key.destination) || tables.is_broadcast(key.destination) {
        return false;
    }
    if tables.route(from, key, hop) != Route::Local {
        return false;
    }
    [1, 2].into_iter().any(|bit| is_forwarded_beside(bit, from, scratch, tables))
}

/// Whether the address that differs from the packet's destination in these bits is one beyond the host.
#[inline(never)]
fn is_forwarded_beside(bits: u8, from: u32, scratch: &mut Scratch, tables: impl Tables) -> bool {
    let Scratch { datagram, hop, .. } = scratch;
    // In place, to spare the stack a tuple.
    let IpAddress([.., last]) = &mut datagram.key.destination;
    *last ^= bits;
    let route = tables.route(from, &datagram.key, hop);
    let IpAddress([.., last]) = &mut datagram.key.destination;
    *last ^= bits;
    route == Route::Forward
}

/// A new flow from an uplink to the published entry at `place`. The namespace sees the client's own address.
#[inline(never)]
pub(crate) fn from_outside(
    uplink: &Port,
    place: u32,
    scratch: &mut Scratch,
    tables: impl Tables,
) -> Result<(), DropReason> {
    check_opens(&scratch.datagram)?;
    let entry = tables.publish(place).ok_or(DropReason::UnknownDestination)?;
    let target = tables.port(entry.owner).ok_or(DropReason::UnknownDestination)?;
    tables.read_policy(entry.network, &mut scratch.policy)?;
    let is_v4 = scratch.datagram.key.is_v4();
    conntrack::check_quota(target.id(), scratch.policy.flows_per_ns, is_v4, tables)?;
    begin(scratch, uplink, Mac::ZERO, tables);
    let Scratch { datagram, pair, policy, .. } = scratch;
    let port = u16::from_be_bytes(datagram.key.destination_port);
    pair.flow.destination = entry.target;
    let about = &mut pair.flow.about;
    about.destination_port = entry.target_port(port).ok_or(DropReason::UnknownDestination)?.to_be_bytes();
    (about.publish, about.epoch) = (place as u16, entry.epoch);
    about.flags |= flow_flags::PUBLISHED;
    (about.owner, about.out, about.other_side) = (target.id(), target.id(), entry.network);
    (about.macs.to, about.macs.from) = (target.mac(), mac_of(policy.gateway, tables));
    tables.count_publish_hit(place);
    scratch.lead = Lead::Settled;
    Ok(())
}

/// A new flow from an uplink to an endpoint whose mapping lets others in than those it has sent to (RFC 4787 section 5).
#[inline(never)]
pub(crate) fn to_mapped(
    uplink: &Port,
    mapping: &Mapping,
    scratch: &mut Scratch,
    tables: impl Tables,
) -> Result<(), DropReason> {
    check_opens(&scratch.datagram)?;
    let target = tables.port(mapping.owner).ok_or(DropReason::UnknownDestination)?;
    tables.read_policy(target.network(), &mut scratch.policy)?;
    let is_v4 = scratch.datagram.key.is_v4();
    conntrack::check_quota(target.id(), scratch.policy.flows_per_ns, is_v4, tables)?;
    begin(scratch, uplink, Mac::ZERO, tables);
    let Scratch { pair, policy, .. } = scratch;
    pair.flow.destination = mapping.ip;
    let about = &mut pair.flow.about;
    about.destination_port = mapping.port;
    (about.owner, about.out, about.other_side) = (target.id(), target.id(), target.network());
    (about.macs.to, about.macs.from) = (target.mac(), mac_of(policy.gateway, tables));
    scratch.lead = Lead::Settled;
    Ok(())
}

/// A new flow from a namespace to the published entry at `place`.
#[inline(always)]
pub(crate) fn from_inside(
    from: &Port,
    place: u32,
    scratch: &mut Scratch,
    tables: impl Tables,
) -> Result<(), DropReason> {
    let entry = tables.publish(place).ok_or(DropReason::UnknownDestination)?;
    let port = u16::from_be_bytes(scratch.datagram.key.destination_port);
    let target_port = entry.target_port(port).ok_or(DropReason::UnknownDestination)?;
    scratch.flow.destination = entry.target;
    let about = &mut scratch.flow.about;
    about.destination_port = target_port.to_be_bytes();
    (about.publish, about.epoch) = (place as u16, entry.epoch);
    let target = tables.port(entry.owner).ok_or(DropReason::UnknownDestination)?;
    tables.count_publish_hit(place);
    hairpin(from, &target, scratch, tables)
}

/// A new flow from namespace to namespace by an address of the host's (RFC 4787 section 6), to the destination that is in
/// `scratch.flow`. The receiver sees the gateway of its own network, so that its answers come back this way.
#[inline(never)]
pub(crate) fn hairpin(
    from: &Port,
    target: &Port,
    scratch: &mut Scratch,
    tables: impl Tables,
) -> Result<(), DropReason> {
    check_opens(&scratch.datagram)?;
    // So far it is the policy of the sender's network.
    let from_mac = mac_of(scratch.policy.gateway, tables);
    tables.read_policy(target.network(), &mut scratch.policy)?;
    conntrack::check_quota(from.id(), scratch.policy.flows_per_ns, scratch.datagram.key.is_v4(), tables)?;
    begin(scratch, from, from_mac, tables);
    come_from_gateway(scratch, tables)?;
    let Scratch { pair, flow, .. } = scratch;
    pair.flow.destination = flow.destination;
    let about = &mut pair.flow.about;
    about.destination_port = flow.about.destination_port;
    (about.publish, about.epoch) = (flow.about.publish, flow.about.epoch);
    about.flags |= flow_flags::PUBLISHED | flow_flags::HAIRPIN;
    (about.owner, about.out, about.other_side) = (from.id(), target.id(), target.network());
    about.macs.to = target.mac();
    scratch.lead = Lead::Pool;
    Ok(())
}

/// The opener is given the address and MAC of the gateway.
#[inline(never)]
fn come_from_gateway(scratch: &mut Scratch, tables: impl Tables) -> Result<(), DropReason> {
    let Scratch { pair: Pair { key, flow, .. }, policy, .. } = scratch;
    let gateway = tables.port(policy.gateway).ok_or(DropReason::UnknownPort)?;
    flow.source = if key.is_v4() { IpAddress::v4(gateway.ipv4()) } else { IpAddress(gateway.ipv6()) };
    flow.about.macs.from = gateway.mac();
    Ok(())
}
