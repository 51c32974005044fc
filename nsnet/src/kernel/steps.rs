//! One step of a plan, done in the kernel. Doing it again, or after it was cut off half way, leads to the same end.

use std::path::Path;

use ipnet::IpNet;
use nsnet_common::layout::{Port, PortId, flags};

use super::announce::announce;
use super::dataplane::Hook;
use super::error::{KernelError, Result};
use super::host::Host;
use super::netlink::Netlink;
use super::netns::NetNs;
use super::publish;
use super::reserved;
use super::route;
use super::store::BPFFS;
use super::veth::VethSpec;
use super::{mounts, named, policy, sysctl, uplink};
use crate::model::name::unused_end;
use crate::model::plan::Step;
use crate::model::state::{Attachment, Cable, Network, Route};

/// Whether a step could be done, as far as can be told without changing anything.
pub(crate) fn check(host: &Host, step: &Step) -> Result<()> {
    match step {
        Step::AddNetwork(network) => {
            for name in [network.name.as_str(), &unused_end(&network.name)] {
                check_free(&host.netlink, name, network.port())?;
            }
            check_subnets(host, network)
        }
        Step::SetPools(pools, before) => reserved::check(&pools.without(before)),
        Step::Attach(port, _) => {
            let ns = host.member(port.ns.as_str())?;
            check_free(&host.netlink, &port.outer, port.port())?;
            match Netlink::inside(&ns)?.link(&port.inner)? {
                Some(link) if link.peer_index != Some(port.port().ifindex()) => {
                    Err(taken(&format!("{} in namespace {}", port.inner, port.ns)))
                }
                _ => Ok(()),
            }
        }
        Step::AddCable(cable) => [&cable.a, &cable.b].into_iter().try_for_each(|end| {
            let ns = host.member(end.ns.as_str())?;
            match Netlink::inside(&ns)?.link(&end.interface)? {
                Some(_) => Err(taken(&format!("{} in namespace {}", end.interface, end.ns))),
                None => Ok(()),
            }
        }),
        Step::AddRoute(route) => host.member(route.ns.as_str()).map(|_ns| ()),
        // What else has the name is not ours to replace, and undoing would delete it.
        Step::AddNamespace(name) => match NetNs::named(name.as_str()) {
            Err(error) => if_gone(error),
            Ok(_ours) => Ok(()),
        },
        Step::DeleteNamespace(_)
        | Step::LoadDataplane
        | Step::UnloadDataplane
        | Step::AddUplink(_)
        | Step::DeleteUplink(_)
        | Step::ReservePorts(_)
        | Step::DeleteNetwork(_)
        | Step::SetPolicy(..)
        | Step::Detach(..)
        | Step::DeleteCable(_)
        | Step::DeleteRoute(_)
        | Step::AddPublish(_)
        | Step::DeletePublish(_) => Ok(()),
    }
}

/// Does a step.
pub(crate) fn carry_out(host: &Host, step: &Step) -> Result<()> {
    match step {
        Step::AddNamespace(name) => add_namespace(name.as_str()),
        Step::DeleteNamespace(name) => named::delete(name.as_str()).map(|_was_there| ()),
        Step::LoadDataplane => {
            mounts::ensure_bpffs(Path::new(BPFFS))?;
            host.dataplane.load(host.features)
        }
        Step::UnloadDataplane => host.dataplane.unload(),
        Step::AddUplink(uplink) => uplink::add(host, uplink),
        Step::DeleteUplink(uplink) => uplink::delete(host, uplink),
        Step::SetPools(pools, _before) => policy::set_pools(host, pools),
        Step::AddNetwork(network) => add_network(host, network),
        Step::DeleteNetwork(network) => delete_network(host, network),
        Step::SetPolicy(network, _before) => policy::set(host, network),
        Step::Attach(port, network) => attach(host, port, network),
        Step::Detach(port, network) => detach(host, port, network),
        Step::AddCable(cable) => add_cable(host, cable),
        Step::DeleteCable(cable) => delete_cable(cable),
        Step::AddRoute(route) => {
            let ns = host.member(route.ns.as_str())?;
            Netlink::inside(&ns)?.add_route(&kernel_route(route)).map(|_is_new| ())
        }
        Step::DeleteRoute(route) => match NetNs::named(route.ns.as_str()) {
            Ok(ns) => Netlink::inside(&ns)?.remove_route(&kernel_route(route)).map(|_was_there| ()),
            Err(error) => if_gone(error),
        },
        Step::ReservePorts(change) => reserved::apply(change),
        Step::AddPublish(publish) => publish::add(host, publish),
        Step::DeletePublish(publish) => publish::delete(host, publish),
    }
}

fn add_namespace(name: &str) -> Result<()> {
    let ns = match NetNs::named(name) {
        Ok(ns) => ns,
        Err(_not_there) => named::create(name)?,
    };
    Netlink::inside(&ns)?.set_loopback_up()
}

fn add_network(host: &Host, network: &Network) -> Result<()> {
    delete_network(host, network)?;
    let (name, end) = (network.name.as_str(), unused_end(&network.name));
    let mtu = Some(u32::from(network.mtu));
    let port = VethSpec { name, index: Some(network.port().ifindex()), mac: Some(network.mac.0), mtu, quiet: false };
    let unused = VethSpec { name: &end, mtu, quiet: true, ..VethSpec::default() };
    let link = host.netlink.create_veth(&port, &unused, None)?;
    set_ipv6(name, network.has_ipv6())?;
    // The host is the router here: it takes no advice from namespaces (CVE-2020-13401).
    sysctl::write(&format!("net/ipv6/conf/{name}/accept_ra"), "0")?;
    policy::set(host, network)?;
    // Before the link is up, so that nothing passes by the program.
    host.dataplane.attach(host.features, network.port(), name, Hook::Host)?;
    for subnet in &network.subnets {
        host.netlink.add_address(link.index, with_prefix(subnet.gateway, &subnet.net)?)?;
    }
    let maps = host.maps();
    for subnet in &network.subnets {
        maps.insert_subnet(&subnet.net, network.id())?;
    }
    // Before, too: a router says hello (MLD) as soon as the link is up, which would be of an unknown port.
    maps.insert_port(&host_port(network), &network.with_link_local(&network.gateways(), network.mac), false)?;
    host.netlink.set_up(host.netlink.existing_link(&end)?.index)?;
    host.netlink.set_up(link.index)
}

fn delete_network(host: &Host, network: &Network) -> Result<()> {
    if host.dataplane.is_loaded() {
        let maps = host.maps();
        maps.remove_port(network.port(), network.id())?;
        for subnet in &network.subnets {
            maps.remove_subnet(&subnet.net)?;
        }
        maps.clear_policy(network.id())?;
        host.dataplane.detach(network.port())?;
    }
    host.netlink.delete_link(network.port().ifindex())?;
    host.dataplane.release(network.port())
}

fn attach(host: &Host, port: &Attachment, network: &Network) -> Result<()> {
    let ns = host.member(port.ns.as_str())?;
    detach(host, port, network)?;
    let mtu = Some(u32::from(network.mtu));
    let outer = VethSpec { name: &port.outer, index: Some(port.port().ifindex()), mtu, quiet: true, mac: None };
    let inner = VethSpec { name: &port.inner, mac: Some(port.mac.0), mtu, ..VethSpec::default() };
    let link = host.netlink.create_veth(&outer, &inner, Some(&ns))?;
    // Before either end is up: what a namespace sends is seen by the program or by nobody.
    host.dataplane.attach(host.features, port.port(), &port.outer, Hook::Namespace)?;
    host.maps().insert_port(
        &namespace_port(port, network),
        &network.with_link_local(&port.ips, port.mac),
        port.mac_given,
    )?;
    host.netlink.set_up(link.index)?;
    configure_inside(&ns, port, network)?;
    ns.run(|| announce(&port.inner, port.mac, &port.ips))?
}

/// The namespace's side: addresses, loopback, IPv6 as the network has it.
fn configure_inside(ns: &NetNs, port: &Attachment, network: &Network) -> Result<()> {
    let netlink = Netlink::inside(ns)?;
    ns.run(|| set_ipv6(&port.inner, network.has_ipv6()))??;
    let link = netlink.existing_link(&port.inner)?;
    for ip in &port.ips {
        if let Some(subnet) = network.subnet_of(*ip) {
            netlink.add_address(link.index, with_prefix(*ip, &subnet.net)?)?;
        }
    }
    netlink.set_loopback_up()?;
    netlink.set_up(link.index)
}

fn detach(host: &Host, port: &Attachment, network: &Network) -> Result<()> {
    if host.dataplane.is_loaded() {
        host.maps().remove_port(port.port(), network.id())?;
        host.dataplane.detach(port.port())?;
        // When nobody can open more.
        host.maps().forget_flows(port.port(), network.id(), &port.ips)?;
    }
    // With the host's end goes the one in the namespace, if that is still there. Until then nothing gets past it.
    host.netlink.delete_link(port.port().ifindex())?;
    host.dataplane.release(port.port())
}

fn add_cable(host: &Host, cable: &Cable) -> Result<()> {
    delete_cable(cable)?;
    let (a, b) = (host.member(cable.a.ns.as_str())?, host.member(cable.b.ns.as_str())?);
    let end = VethSpec { name: &cable.a.interface, ..VethSpec::default() };
    let peer = VethSpec { name: &cable.b.interface, ..VethSpec::default() };
    Netlink::inside(&a)?.create_veth(&end, &peer, Some(&b))?;
    for (ns, end) in [(&a, &cable.a), (&b, &cable.b)] {
        let netlink = Netlink::inside(ns)?;
        let has_ipv6 = end.address.is_some_and(|address| address.addr().is_ipv6());
        ns.run(|| set_ipv6(&end.interface, has_ipv6))??;
        if let Some(link) = netlink.link(&end.interface)? {
            if let Some(address) = end.address {
                netlink.add_address(link.index, address)?;
            }
            netlink.set_up(link.index)?;
        }
    }
    Ok(())
}

/// Deleting one end deletes the other; either will do, in case one namespace is gone.
fn delete_cable(cable: &Cable) -> Result<()> {
    for end in [&cable.a, &cable.b] {
        let Ok(ns) = NetNs::named(end.ns.as_str()) else { continue };
        let netlink = Netlink::inside(&ns)?;
        if let Some(link) = netlink.link(&end.interface)? {
            netlink.delete_link(link.index)?;
        }
    }
    Ok(())
}

/// The port of the network's own interface.
pub(crate) fn host_port(network: &Network) -> Port {
    let flags = flags::HOST | network.port_flags();
    let (ipv4, ipv6) = first_of_each(&network.gateways());
    Port::new(network.port(), network.id(), network.mac, network.mtu, flags).with_addresses(ipv4, ipv6)
}

/// The port of an attached namespace.
pub(crate) fn namespace_port(port: &Attachment, network: &Network) -> Port {
    let learn = if port.learn { flags::LEARN } else { 0 };
    let trusted = if port.trusted { flags::TRUSTED } else { 0 };
    let flags = learn | trusted | network.port_flags();
    let (ipv4, ipv6) = first_of_each(&port.ips);
    Port::new(port.port(), network.id(), port.mac, network.mtu, flags).with_addresses(ipv4, ipv6)
}

fn first_of_each(ips: &[std::net::IpAddr]) -> (Option<[u8; 4]>, Option<[u8; 16]>) {
    use std::net::IpAddr::{V4, V6};
    let v4 = ips.iter().find_map(|ip| if let V4(ip) = ip { Some(ip.octets()) } else { None });
    let v6 = ips.iter().find_map(|ip| if let V6(ip) = ip { Some(ip.octets()) } else { None });
    (v4, v6)
}

/// IPv6 on an interface of the calling thread's namespace: off where it is not asked for (CVE-2024-32473), else with
/// addresses that may be used at once (the dataplane knows who has which; duplicates cannot be).
fn set_ipv6(interface: &str, on: bool) -> Result<()> {
    let disable = format!("net/ipv6/conf/{interface}/disable_ipv6");
    if sysctl::write(&disable, if on { "0" } else { "1" })? && !on && sysctl::read(&disable)?.as_deref() != Some("1") {
        return Err(KernelError::refused(format!("turn IPv6 off on {interface}"), "the kernel keeps it on"));
    }
    if on {
        sysctl::write(&format!("net/ipv6/conf/{interface}/accept_dad"), "0")?;
        sysctl::write(&format!("net/ipv6/conf/{interface}/addr_gen_mode"), "0")?;
    }
    Ok(())
}

fn kernel_route(route: &Route) -> route::Route {
    route::Route { dest: route.dest, via: Some(route.via), index: None }
}

fn with_prefix(ip: std::net::IpAddr, net: &IpNet) -> Result<IpNet> {
    IpNet::new(ip, net.prefix_len())
        .map_err(|error| KernelError::refused(format!("give {ip} the prefix of {net}"), error))
}

/// A name that only our own port may have already, left over from a step that was cut off.
fn check_free(netlink: &Netlink, name: &str, port: PortId) -> Result<()> {
    match netlink.link(name)? {
        Some(link) if link.index != port.ifindex() && link.peer_index != Some(port.ifindex()) => Err(taken(name)),
        _ => Ok(()),
    }
}

fn taken(name: &str) -> KernelError {
    KernelError::refused(format!("create interface {name}"), "there is one of this name that is not ours")
        .with_remedy("rename or delete it, or choose another name")
}

/// RFC 4787 REQ-7: addresses of the network must not be ones that the host already reaches otherwise.
fn check_subnets(host: &Host, network: &Network) -> Result<()> {
    for (index, address) in host.netlink.all_addresses()? {
        let ours =
            network.subnets.iter().find(|s| s.net.contains(&address.addr()) || address.contains(&s.net.network()));
        if let Some(subnet) = ours.filter(|_| index != network.port().ifindex()) {
            return Err(overlaps(network, &subnet.net, format_args!("{address}, which an interface of the host has")));
        }
    }
    for route in host.netlink.routes()? {
        let is_connected = route.via.is_none() && route.dest.prefix_len() > 0;
        let (first, last) = (route.dest.network(), route.dest.broadcast());
        let ours = network
            .subnets
            .iter()
            .find(|s| s.net.contains(&first) || s.net.contains(&last) || route.dest.contains(&s.net.network()));
        let is_other = is_connected && route.index != Some(network.port().ifindex());
        if let Some(subnet) = ours.filter(|_| is_other) {
            let other = format_args!("{}, to which the host has a route by an interface", route.dest);
            return Err(overlaps(network, &subnet.net, other));
        }
    }
    Ok(())
}

fn overlaps(network: &Network, subnet: &IpNet, other: std::fmt::Arguments<'_>) -> KernelError {
    let why = format!("subnet {subnet} overlaps {other}");
    KernelError::refused(format!("make network {}", network.name), why).with_remedy("choose another subnet")
}

/// A namespace that is gone has taken with it what was to be removed.
fn if_gone(error: KernelError) -> Result<()> {
    if error.errno() == Some(nix::errno::Errno::ENOENT) { Ok(()) } else { Err(error) }
}
