//! What is really there, against what should be.

use std::net::IpAddr;

use super::dataplane::Hook;
use super::error::Result;
use super::host::Host;
use super::netlink::Netlink;
use super::netns::NetNs;
use super::publish;
use super::steps::{host_port, namespace_port};
use super::{policy, uplink};
use crate::model::state::{Attachment, Cable, Network, Route, State};
use nsnet_common::layout::{NetworkId, Port, PortId};

/// One difference between the desired state and the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// The object: "network v-net-0", "attachment red to v-net-0".
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// Every difference.
pub fn drift(host: &Host, state: &State) -> Result<Vec<Drift>> {
    let mut found = Vec::new();
    if host.dataplane.is_loaded()
        && let Err(error) = host.dataplane.check()
    {
        // Nothing that depends on it can be told.
        return Ok(vec![Drift { object: "dataplane".to_owned(), what: error.to_string() }]);
    }
    let mut note = |object: String, faults: Vec<String>| {
        found.extend(faults.into_iter().map(|what| Drift { object: object.clone(), what }));
    };
    for name in state.namespaces.keys() {
        let gone = NetNs::named(name.as_str()).is_err();
        note(format!("namespace {name}"), gone.then(|| "it is gone".to_owned()).into_iter().collect());
    }
    for network in state.networks.values() {
        let mut faults = network_faults(host, network)?;
        faults.extend(
            policy::faults(host, network)?.into_iter().filter(|what| !faults.contains(what)).collect::<Vec<_>>(),
        );
        note(format!("network {}", network.name), faults);
    }
    for uplink in &state.uplinks {
        note(format!("uplink {}", uplink.interface), uplink::faults(host, uplink)?);
    }
    for (object, what) in policy::pool_faults(host, state)? {
        note(object, vec![what]);
    }
    for port in &state.attachments {
        if let Some(network) = state.networks.get(&port.network) {
            note(format!("attachment {} to {}", port.ns, port.network), attachment_faults(host, port, network)?);
        }
    }
    for cable in &state.cables {
        note(format!("cable {}-{}", cable.a.ns, cable.b.ns), cable_faults(cable)?);
    }
    for route in &state.routes {
        note(format!("route {} in {}", route.dest, route.ns), route_faults(route)?);
    }
    found.extend(publish::drift(host, state)?);
    Ok(found)
}

/// What is wrong with a network.
pub fn network_faults(host: &Host, network: &Network) -> Result<Vec<String>> {
    if !host.dataplane.is_loaded() {
        return Ok(vec!["the dataplane is not loaded".to_owned()]);
    }
    let mut faults = Vec::new();
    let addresses = network.gateways();
    let expected =
        Interface { name: network.name.as_str(), mac: Some(network.mac.0), mtu: network.mtu, addresses: &addresses };
    faults.extend(interface_faults(&host.netlink, &expected)?);
    faults.extend(hook_faults(host, network.port(), network.name.as_str(), Hook::Host)?);
    for subnet in &network.subnets {
        if host.maps().subnet(&subnet.net)? != Some(network.id()) {
            faults.push(format!("subnet {} is not in the dataplane", subnet.net));
        }
    }
    faults.extend(port_faults(
        host,
        &host_port(network),
        &network.with_link_local(&addresses, network.mac),
        network.id(),
    )?);
    Ok(faults)
}

/// What is wrong with an attachment.
pub fn attachment_faults(host: &Host, port: &Attachment, network: &Network) -> Result<Vec<String>> {
    if !host.dataplane.is_loaded() {
        return Ok(vec!["the dataplane is not loaded".to_owned()]);
    }
    let Ok(ns) = NetNs::named(port.ns.as_str()) else { return Ok(vec!["its namespace is gone".to_owned()]) };
    let mut faults = Vec::new();
    let outer = Interface { name: &port.outer, mac: None, mtu: network.mtu, addresses: &[] };
    faults.extend(interface_faults(&host.netlink, &outer)?);
    let inner = Interface { name: &port.inner, mac: Some(port.mac.0), mtu: network.mtu, addresses: &port.ips };
    faults.extend(interface_faults(&Netlink::inside(&ns)?, &inner)?);
    faults.extend(hook_faults(host, port.port(), &port.outer, Hook::Namespace)?);
    let addresses = network.with_link_local(&port.ips, port.mac);
    faults.extend(port_faults(host, &namespace_port(port, network), &addresses, network.id())?);
    Ok(faults)
}

fn hook_faults(host: &Host, port: PortId, interface: &str, hook: Hook) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    if !host.dataplane.is_attached(port, interface, hook)? {
        faults.push(format!("its program is not on {interface}"));
    }
    if !host.dataplane.is_closed(port, interface, hook)? {
        faults.push(format!("nothing on {interface} stops frames should its program go"));
    }
    Ok(faults)
}

fn cable_faults(cable: &Cable) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for end in [&cable.a, &cable.b] {
        let Ok(ns) = NetNs::named(end.ns.as_str()) else {
            faults.push(format!("namespace {} is gone", end.ns));
            continue;
        };
        let addresses: Vec<_> = end.address.iter().map(ipnet::IpNet::addr).collect();
        let netlink = Netlink::inside(&ns)?;
        let mtu = netlink.link(&end.interface)?.map_or(0, |link| link.mtu as u16);
        let expected = Interface { name: &end.interface, mac: None, mtu, addresses: &addresses };
        faults.extend(interface_faults(&netlink, &expected)?.into_iter().map(|what| format!("{what} in {}", end.ns)));
    }
    Ok(faults)
}

/// What is wrong with a route.
pub fn route_faults(route: &Route) -> Result<Vec<String>> {
    let Ok(ns) = NetNs::named(route.ns.as_str()) else { return Ok(vec!["its namespace is gone".to_owned()]) };
    let routes = Netlink::inside(&ns)?.routes()?;
    let is_there = routes.iter().any(|other| other.dest == route.dest && other.via == Some(route.via));
    Ok(if is_there { Vec::new() } else { vec![format!("it does not lead via {}", route.via)] })
}

/// What an interface should be.
struct Interface<'a> {
    name: &'a str,
    mac: Option<[u8; 6]>,
    mtu: u16,
    addresses: &'a [IpAddr],
}

fn interface_faults(netlink: &Netlink, expected: &Interface<'_>) -> Result<Vec<String>> {
    let name = expected.name;
    let Some(link) = netlink.link(name)? else { return Ok(vec![format!("interface {name} is gone")]) };
    let mut faults = Vec::new();
    if !link.up {
        faults.push(format!("interface {name} is down"));
    }
    if link.mtu != u32::from(expected.mtu) {
        faults.push(format!("interface {name} has MTU {}, not {}", link.mtu, expected.mtu));
    }
    if expected.mac.is_some() && link.mac != expected.mac {
        faults.push(format!("interface {name} has another MAC"));
    }
    let has: Vec<IpAddr> = netlink.addresses(link.index)?.iter().map(ipnet::IpNet::addr).collect();
    let missing = expected.addresses.iter().filter(|ip| !has.contains(ip));
    faults.extend(missing.map(|ip| format!("interface {name} lacks address {ip}")));
    Ok(faults)
}

fn port_faults(host: &Host, expected: &Port, addresses: &[IpAddr], network: NetworkId) -> Result<Vec<String>> {
    let maps = host.maps();
    let mut faults = Vec::new();
    match maps.port(expected.id())? {
        Some(port) if port == expected.followed_by(port.next()) => {}
        Some(_) => faults.push("its port in the dataplane is another".to_owned()),
        None => faults.push("its port is not in the dataplane".to_owned()),
    }
    let owners = maps.owners(network, addresses)?;
    let lost = owners.iter().filter(|(_, owner)| *owner != Some(expected.id()));
    faults.extend(lost.map(|(ip, _)| format!("address {ip} is not in the dataplane")));
    Ok(faults)
}
