//! Packets that belong to no flow: may they open one, and where does it lead?

use crate::capture::Moment;
use crate::conntrack::{self, Way};
use crate::datagram::{Datagram, Kind};
use crate::layout::{About, AddressKey, Flow, NetworkId, Policy, Port, PortId, policy_flags};
use crate::nat;
use crate::packet::Packet;
use crate::publish::{self, published, published_since};
use crate::route::fits;
use crate::scratch::Scratch;
use crate::tables::{Hop, Route, Stage, Tables};
use crate::verdict::{DropReason, Egress, Outcome, Verdict};
use crate::wire::{IpAddress, Mac, Macs};

/// Where a packet that belongs to no flow leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    /// Up to the host, as it is.
    Host,
    /// By `scratch.flow`, with nothing to remember.
    Through,
    /// By the new flow in `scratch.pair`, whose tuple is settled.
    Settled,
    /// By the new flow in `scratch.pair`, which still needs a port: the sender's own, or one of the pool.
    KeepOrPool,
    /// The same, always of the pool.
    Pool,
    /// To nobody of ours: from outside, it is the host's.
    Pass,
}

/// From a namespace.
#[inline(never)]
pub(crate) fn leave(from: &Port, scratch: &mut Scratch, tables: impl Tables) -> Result<(), DropReason> {
    tables.enter(Stage::Lead);
    tables.read_policy(from.network(), &mut scratch.policy)?;
    let destination = &scratch.datagram.key.destination;
    if let Some(network) = network_of(destination, tables) {
        return leave_to_network(from, network, scratch, tables);
    }
    if destination.is_link_local_v6() || scratch.datagram.kind == Kind::Link {
        scratch.lead = Lead::Host;
        return Ok(());
    }
    if is_loopback(destination) {
        return Err(DropReason::LoopbackDestination);
    }
    if is_never_routed(destination) {
        return Err(DropReason::Martian);
    }
    let route = find_way(scratch, tables);
    // The routes have one answer for the host's own addresses and for those that they lead nowhere. Only the former may get
    // to its stack, which by a rule that our question does not meet (a mark, a TOS) might forward the others as they are.
    if route == Ok(Route::Local) && is_hosts(&scratch.datagram.key.destination, tables) {
        return leave_to_host(from, scratch, tables);
    }
    if scratch.policy.has(policy_flags::INTERNAL) {
        return Err(DropReason::InternalNetwork);
    }
    if scratch.policy.has(policy_flags::PUNT) {
        scratch.lead = Lead::Host;
        return Ok(());
    }
    route?.forward()?;
    leave_by_uplink(from, scratch, tables)
}

/// To an address in one of the networks: the gateway, a published port of it, or a namespace.
#[inline(always)]
fn leave_to_network(
    from: &Port,
    network: NetworkId,
    scratch: &mut Scratch,
    tables: impl Tables,
) -> Result<(), DropReason> {
    let owner = tables.address(&AddressKey { network, ip: scratch.datagram.key.destination });
    let is_open = scratch.policy.has(policy_flags::OPEN);
    let (gateway, is_theirs_open) = match tables.policy(network) {
        Some(policy) => (policy.gateway, policy.has(policy_flags::OPEN)),
        None => return Err(DropReason::UnknownPort),
    };
    let is_gateway = owner == Some(gateway);
    if network == from.network() {
        if is_gateway {
            return leave_to_host(from, scratch, tables);
        }
    } else if is_gateway || !is_open || !is_theirs_open {
        // The gateways of other networks are the host's, too, but nobody's business.
        return Err(DropReason::OtherNetwork);
    }
    // From namespace to namespace by way of the gateway, with nothing translated, and nothing to remember.
    let to = tables.port(owner.ok_or(DropReason::NoRoute)?).ok_or(DropReason::UnknownDestination)?;
    if to.network() == from.network() && from.is_kept_from(&to) {
        return Err(DropReason::IsolatedPort);
    }
    let Scratch { datagram, flow, .. } = scratch;
    leave_unchanged(flow, datagram);
    (flow.about.out, flow.about.other_side) = (to.id(), to.network());
    (flow.about.macs.to, flow.about.macs.from) = (to.mac(), mac_of(gateway, tables));
    scratch.lead = Lead::Through;
    Ok(())
}

/// To an address of the host's: a published port, a mapped one, or the host itself.
#[inline(never)]
fn leave_to_host(from: &Port, scratch: &mut Scratch, tables: impl Tables) -> Result<(), DropReason> {
    if let Some(place) = published(scratch, tables) {
        return publish::from_inside(from, place, scratch, tables);
    }
    let Some(mapping) = nat::mapped(&scratch.datagram.key, tables) else {
        scratch.lead = Lead::Host;
        return Ok(());
    };
    let target = tables.port(mapping.owner).ok_or(DropReason::UnknownDestination)?;
    if target.network() != from.network() {
        let is_theirs_open = tables.policy(target.network()).is_some_and(|policy| policy.has(policy_flags::OPEN));
        if !is_theirs_open || !scratch.policy.has(policy_flags::OPEN) {
            return Err(DropReason::OtherNetwork);
        }
    }
    (scratch.flow.destination, scratch.flow.about.destination_port) = (mapping.ip, mapping.port);
    (scratch.flow.about.publish, scratch.flow.about.epoch) = (0, 0);
    publish::hairpin(from, &target, scratch, tables)?;
    // Unlike to a published port, the receiver sees the sender's external endpoint (RFC 4787 REQ-9a).
    tables.read_policy(from.network(), &mut scratch.policy)?;
    if scratch.policy.has(policy_flags::MASQUERADE) {
        scratch.pair.flow.source = scratch.datagram.key.destination;
        scratch.lead = Lead::KeepOrPool;
    }
    Ok(())
}

/// Up to the host, as it is.
#[inline(always)]
pub(crate) fn to_host(frame: &impl Packet, scratch: &Scratch, gateway: PortId, tables: impl Tables) -> Outcome {
    tables.enter(Stage::Send);
    let gateway = tables.port(gateway).ok_or(DropReason::UnknownPort)?;
    if !fits(frame, &scratch.datagram, gateway.mtu()) {
        return Err(DropReason::TooLong);
    }
    tables.count_sent(gateway.id(), frame.len());
    tables.show(Moment::Left(gateway.id().ifindex()), frame);
    Ok(Verdict::Deliver(Egress::Host(gateway.id())))
}

/// Out of an uplink: masqueraded, or as it is.
#[inline(never)]
fn leave_by_uplink(from: &Port, scratch: &mut Scratch, tables: impl Tables) -> Result<(), DropReason> {
    tables.enter(Stage::Open);
    check_opens(&scratch.datagram)?;
    let is_v4 = scratch.datagram.key.is_v4();
    conntrack::check_quota(from.id(), scratch.policy.flows_per_ns, is_v4, tables)?;
    let from_mac = mac_of(scratch.policy.gateway, tables);
    begin(scratch, from, from_mac, tables);
    let Scratch { pair, policy, hop, .. } = scratch;
    let about = &mut pair.flow.about;
    (about.owner, about.out, about.mtu) = (from.id(), hop.uplink, hop.mtu);
    (about.macs.to, about.macs.from) = (hop.to_mac, hop.from_mac);
    if !policy.has(policy_flags::MASQUERADE) {
        scratch.lead = Lead::Settled;
        return Ok(());
    }
    pair.flow.source = source_of(policy, hop, is_v4);
    scratch.lead = Lead::KeepOrPool;
    if pair.flow.source == IpAddress::UNSPECIFIED { Err(DropReason::NoRoute) } else { Ok(()) }
}

/// From an uplink.
#[inline(never)]
pub(crate) fn enter(uplink: &Port, scratch: &mut Scratch, tables: impl Tables) -> Result<(), DropReason> {
    tables.enter(Stage::Lead);
    scratch.lead = Lead::Pass;
    if scratch.datagram.kind == Kind::Link {
        return Ok(());
    }
    check_from_outside(&scratch.datagram, tables)?;
    let may_open = scratch.datagram.kind != Kind::Tcp || scratch.datagram.is_syn();
    if may_open
        && !is_never_routed(&scratch.datagram.key.source)
        && let Some(place) = published(scratch, tables).or_else(|| published_since(scratch, tables))
    {
        check_sender_outside(&scratch.datagram.key.source, tables)?;
        return publish::from_outside(uplink, place, scratch, tables);
    }
    if let Some(mapping) = nat::admitted(&scratch.datagram.key, tables) {
        check_sender_outside(&scratch.datagram.key.source, tables)?;
        return publish::to_mapped(uplink, &mapping, scratch, tables);
    }
    // The host would answer RST to a port of which it knows nothing (RFC 5382 REQ-4).
    let is_lost = is_pooled(&scratch.datagram, tables) && !tables.has_socket(&scratch.datagram.key);
    if is_lost { Err(DropReason::NoMapping) } else { Ok(()) }
}

/// Whether such addresses may come from outside.
#[inline(never)]
fn check_from_outside(datagram: &Datagram, tables: impl Tables) -> Result<(), DropReason> {
    let key = &datagram.key;
    if network_of(&key.source, tables).is_some() {
        return Err(DropReason::OwnSource);
    }
    if let Some(network) = network_of(&key.destination, tables)
        && !is_gateway(network, &key.destination, tables)
    {
        return Err(DropReason::DirectAccess);
    }
    if is_loopback(&key.destination) || is_loopback(&key.source) { Err(DropReason::Martian) } else { Ok(()) }
}

/// Whether an address may be a sender's out there that opens a flow to a namespace: no packet of the host's own comes in by an
/// uplink, and none from a broadcast address (RFC 1812 section 5.3.7).
#[inline(never)]
fn check_sender_outside(source: &IpAddress, tables: impl Tables) -> Result<(), DropReason> {
    if is_hosts(source, tables) || is_never_routed(source) { Err(DropReason::Martian) } else { Ok(()) }
}

/// Whether the host's stack takes packets to the address for its own.
#[inline(never)]
fn is_hosts(ip: &IpAddress, tables: impl Tables) -> bool {
    tables.is_local(*ip) || tables.is_broadcast(*ip)
}

/// The network in whose subnet the address is.
#[inline(never)]
fn network_of(ip: &IpAddress, tables: impl Tables) -> Option<NetworkId> {
    tables.subnet(*ip)
}

/// Whether the packet is to a port from which masqueraded flows are given theirs. The pools of all networks are under the
/// number of no network.
#[inline(always)]
fn is_pooled(datagram: &Datagram, tables: impl Tables) -> bool {
    let Some(host) = tables.policy(NetworkId::OUTSIDE) else { return false };
    let port = u16::from_be_bytes(datagram.key.destination_port);
    let has_ports = matches!(datagram.kind, Kind::Tcp | Kind::Udp | Kind::Sctp);
    has_ports && host.has(policy_flags::MASQUERADE) && port >= host.first_port && port <= host.last_port
}

/// Begins the flow that the packet opens, with nothing translated; its answers leave by `from`.
#[inline(never)]
pub(crate) fn begin(scratch: &mut Scratch, from: &Port, from_mac: Mac, tables: impl Tables) {
    let Scratch { datagram, pair, policy, .. } = scratch;
    pair.key = datagram.key;
    leave_unchanged(&mut pair.flow, datagram);
    // By an uplink the way back is asked for when there is something to send.
    let to_mac = if from.is_uplink() { Mac::ZERO } else { from.mac() };
    pair.back = Way { out: from.id(), mtu: 0, macs: Macs { to: to_mac, from: from_mac } };
    pair.flow.about.seen = tables.seconds();
    pair.flow.about.timeout = conntrack::first_timeout(datagram.key.protocol(), policy);
    (pair.flow.about.next, pair.flow.about.acknowledged) = (datagram.end, datagram.acknowledgement);
}

/// Makes `flow` one that leaves the packet as it is.
#[inline(always)]
fn leave_unchanged(flow: &mut Flow, datagram: &Datagram) {
    flow.about = About::EMPTY;
    (flow.source, flow.destination) = (datagram.key.source, datagram.key.destination);
    let about = &mut flow.about;
    (about.source_port, about.destination_port) = (datagram.key.source_port, datagram.key.destination_port);
}

/// Whether such a packet may open a flow: an answer never does, nor a TCP segment but the first.
#[inline(always)]
pub(crate) fn check_opens(datagram: &Datagram) -> Result<(), DropReason> {
    match datagram.kind {
        _ if datagram.ttl <= 1 => Err(DropReason::TtlExceeded),
        Kind::Tcp if !datagram.is_syn() => Err(DropReason::NoConnection),
        Kind::EchoReply | Kind::IcmpError => Err(DropReason::IcmpUnrelated),
        Kind::LaterFragment => Err(DropReason::FragmentUnknown),
        Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::EchoRequest | Kind::Other | Kind::Link => Ok(()),
    }
}

/// Asks the host's routes, as far as the policy allows to go by them.
#[inline(never)]
pub(crate) fn find_way(scratch: &mut Scratch, tables: impl Tables) -> Result<Route, DropReason> {
    tables.enter(Stage::Route);
    let Scratch { datagram, policy, hop, .. } = scratch;
    let gateway = tables.port(policy.gateway).ok_or(DropReason::UnknownPort)?;
    let route = tables.route(gateway.ifindex(), &datagram.key, hop);
    if route != Route::Forward || policy.has(policy_flags::INTERNAL) {
        return Ok(route);
    }
    if policy.uplink != 0 && policy.uplink != hop.ifindex {
        return Err(DropReason::NoUplink);
    }
    hop.uplink = tables.uplink(hop.ifindex).ok_or(DropReason::NoUplink)?;
    if hop.source == IpAddress::UNSPECIFIED {
        // A kernel that does not tell the source with the route.
        let uplink = tables.port(hop.uplink).ok_or(DropReason::NoUplink)?;
        hop.source = if datagram.key.is_v4() { IpAddress::v4(uplink.ipv4()) } else { IpAddress(uplink.ipv6()) };
    }
    if tables.subnet(hop.source).is_some() {
        // Where the uplink has no address of the family, the kernel would send from a gateway's. Nobody outside knows that.
        hop.source = IpAddress::UNSPECIFIED;
    }
    Ok(route)
}

/// The address that masqueraded packets get; `::` when there is none of the family.
#[inline(always)]
pub(crate) fn source_of(policy: &Policy, hop: &Hop, is_v4: bool) -> IpAddress {
    let fixed = if is_v4 { policy.source_v4 } else { policy.source_v6 };
    let found = if fixed == IpAddress::UNSPECIFIED { hop.source } else { fixed };
    if found == IpAddress::v4([0; 4]) { IpAddress::UNSPECIFIED } else { found }
}

#[inline(always)]
pub(crate) fn mac_of(port: PortId, tables: impl Tables) -> Mac {
    tables.port(port).map_or(Mac::ZERO, |port| port.mac())
}

/// Whether the address is the host's own in that network.
#[inline(never)]
fn is_gateway(network: NetworkId, ip: &IpAddress, tables: impl Tables) -> bool {
    let gateway = tables.policy(network).map(|policy| policy.gateway);
    gateway.is_some() && tables.address(&AddressKey { network, ip: *ip }) == gateway
}

/// 127.0.0.0/8 and ::1.
#[inline(always)]
fn is_loopback(ip: &IpAddress) -> bool {
    match ip.as_v4() {
        Some([first, ..]) => first == 127,
        None => *ip == IpAddress::LOOPBACK,
    }
}

/// Addresses that no router passes on, as source or destination: RFC 1812 section 5.3.7, RFC 6890, RFC 4291 section 2.5.
#[inline(never)]
pub(crate) fn is_never_routed(ip: &IpAddress) -> bool {
    match ip.as_v4() {
        // This network, loopback, link-local, multicast, reserved and broadcast.
        Some([0 | 127 | 224..=255, ..] | [169, 254, ..]) => true,
        Some(_) => false,
        None => {
            let IpAddress([first, ..]) = *ip;
            *ip == IpAddress::UNSPECIFIED || *ip == IpAddress::LOOPBACK || first == 0xff || ip.is_link_local_v6()
        }
    }
}
