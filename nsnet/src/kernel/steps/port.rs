//! A namespace's port, and the port of a network's own interface.

use std::net::IpAddr;

use nsnet_common::layout::{Port, flags};

use super::Around;
use super::interface::{check_free, set_addresses, set_ipv6, set_link, taken, with_prefix};
use crate::kernel::announce::announce;
use crate::kernel::dataplane::Hook;
use crate::kernel::error::Result;
use crate::kernel::host::Host;
use crate::kernel::link::Link;
use crate::kernel::members::PortEntry;
use crate::kernel::netlink::Netlink;
use crate::kernel::netns::NetNs;
use crate::kernel::veth::VethSpec;
use crate::kernel::xdp;
use crate::model::state::{Attachment, Network};

pub(super) fn check(host: &Host, port: &Attachment, around: &Around<'_>) -> Result<()> {
    check_free(&host.netlink, &port.outer, port.port(), around)?;
    let Some(ns) = around.member(host, &port.ns)? else { return Ok(()) };
    match Netlink::inside(&ns)?.link(&port.inner)? {
        Some(link) if link.peer_index != Some(port.port().ifindex()) && !around.takes_away(&port.ns, &link) => {
            Err(taken(&format!("{} in namespace {}", port.inner, port.ns)))
        }
        _ => Ok(()),
    }
}

/// Makes the port, or what is missing of it: connections go on over what is there.
pub(super) fn attach(host: &Host, port: &Attachment, network: &Network) -> Result<()> {
    let ns = host.member(port.ns.as_str())?;
    let inside = Netlink::inside(&ns)?;
    let (outer, inner) = match standing_pair(host, &ns, &inside, port)? {
        Some(pair) => pair,
        None => {
            host.netlink.delete_link(port.port().ifindex())?;
            delete_inner(&inside, port)?;
            make_pair(host, &ns, &inside, port, network)?
        }
    };
    set_link(&host.netlink, &outer, None, network.mtu)?;
    set_link(&inside, &inner, Some(port.mac), network.mtu)?;
    // Before either end is up: what a namespace sends is seen by the program or by nobody.
    host.dataplane.attach(&host.netlink, host.features, port.port(), &port.outer, Hook::Namespace)?;
    switch(host, port, network, &ns)?;
    host.netlink.set_up(outer.index)?;
    ns.run(|| set_ipv6(&port.inner, network.has_ipv6()))??;
    let addresses = port.ips.iter().filter_map(|ip| Some(with_prefix(*ip, &network.subnet_of(*ip)?.net)));
    set_addresses(&inside, inner.index, addresses)?;
    inside.set_loopback_up()?;
    inside.set_up(inner.index)?;
    host.netlink.wait_until_running(outer.index)?;
    inside.wait_until_running(inner.index)?;
    ns.run(|| announce(&port.inner, port.mac, &port.ips))?
}

/// Has the port's frames go as its network's mode says, and makes its entry.
fn switch(host: &Host, port: &Attachment, network: &Network, ns: &NetNs) -> Result<()> {
    if network.is_accelerated() {
        xdp::port::enter(host, port, ns)?;
    }
    host.maps().ensure_port(&entry(port, network))?;
    if network.is_accelerated() { Ok(()) } else { xdp::port::leave(host, port, ns) }
}

/// The same for a port that is there. (One whose namespace or dataplane is gone is a finding of `status`.)
pub(super) fn set_mode(host: &Host, port: &Attachment, network: &Network) -> Result<()> {
    match NetNs::find(port.ns.as_str())? {
        Some(ns) if host.dataplane.loaded()? => switch(host, port, network, &ns),
        _ => Ok(()),
    }
}

/// Both ends of the port's pair, where they belong.
fn standing_pair(host: &Host, ns: &NetNs, inside: &Netlink, port: &Attachment) -> Result<Option<(Link, Link)>> {
    let Some(outer) = host.netlink.link_by_index(port.port().ifindex())? else { return Ok(None) };
    let Some(inner) = inside.link(&port.inner)? else { return Ok(None) };
    // The namespace may be another one of the same name, in which somebody's interface happens to have the index.
    let are_ends = outer.peer_index == Some(inner.index) && inner.peer_index == Some(outer.index);
    let is_whole = outer.name == port.outer && are_ends && outer.peer_netnsid == host.netlink.netns_id(ns)?;
    Ok(is_whole.then_some((outer, inner)))
}

fn make_pair(host: &Host, ns: &NetNs, inside: &Netlink, port: &Attachment, network: &Network) -> Result<(Link, Link)> {
    let mtu = Some(u32::from(network.mtu));
    let outer = VethSpec { name: &port.outer, index: Some(port.port().ifindex()), mtu, quiet: true, mac: None };
    let inner = VethSpec { name: &port.inner, mac: Some(port.mac.0), mtu, ..VethSpec::default() };
    let outer = host.netlink.create_veth(&outer, &inner, Some(ns))?;
    Ok((outer, inside.existing_link(&port.inner)?))
}

/// Takes away what there is of the port.
pub(super) fn detach(host: &Host, port: &Attachment, network: &Network) -> Result<()> {
    if host.dataplane.loaded()? {
        host.maps().remove_port(&entry(port, network))?;
        host.dataplane.detach(port.port())?;
        host.dataplane.detach_xdp(port.port())?;
        // When nobody can open more.
        host.maps().forget_flows(port.port(), network.id(), &port.ips)?;
    }
    // With the host's end goes the one in the namespace, if that is still there. Until then, nothing gets past what stands
    // behind the program.
    if !host.netlink.delete_link(port.port().ifindex())?
        && let Some(ns) = NetNs::find(port.ns.as_str())?
    {
        delete_inner(&Netlink::inside(&ns)?, port)?;
    }
    Ok(())
}

/// Deletes our end in the namespace, whose other end somebody has moved out of the host.
fn delete_inner(inside: &Netlink, port: &Attachment) -> Result<()> {
    match inside.link(&port.inner)?.filter(|link| link.is_inner_end_of(port)) {
        Some(link) => inside.delete_link(link.index).map(|_was_there| ()),
        None => Ok(()),
    }
}

/// What the dataplane is told of an attached namespace.
pub(crate) fn entry(port: &Attachment, network: &Network) -> PortEntry {
    let learn = if port.learn { flags::LEARN } else { 0 };
    let trusted = if port.trusted { flags::TRUSTED } else { 0 };
    let isolated = if port.isolated { flags::ISOLATED } else { 0 };
    let takes = if network.is_accelerated() { flags::XDP | flags::XDP_PIECES } else { 0 };
    let flags = learn | trusted | isolated | takes | network.port_flags();
    let (ipv4, ipv6) = first_of_each(&port.ips);
    let entry = Port::new(port.port(), network.id(), port.mac, network.mtu, flags).with_addresses(ipv4, ipv6);
    PortEntry { port: entry, addresses: network.with_link_local(&port.ips, port.mac), mac_given: port.mac_given }
}

/// What the dataplane is told of a network's own interface.
pub(crate) fn host_entry(network: &Network) -> PortEntry {
    let flags = flags::HOST | network.port_flags();
    let gateways = network.gateways();
    let (ipv4, ipv6) = first_of_each(&gateways);
    let entry = Port::new(network.port(), network.id(), network.mac, network.mtu, flags).with_addresses(ipv4, ipv6);
    PortEntry { port: entry, addresses: network.with_link_local(&gateways, network.mac), mac_given: false }
}

fn first_of_each(ips: &[IpAddr]) -> (Option<[u8; 4]>, Option<[u8; 16]>) {
    use std::net::IpAddr::{V4, V6};
    let v4 = ips.iter().find_map(|ip| if let V4(ip) = ip { Some(ip.octets()) } else { None });
    let v6 = ips.iter().find_map(|ip| if let V6(ip) = ip { Some(ip.octets()) } else { None });
    (v4, v6)
}
