//! The imperative verbs, as edits of the desired state. Each either leaves a valid state or changes nothing.

mod attachment;
mod network;

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::name::{Name, further_interfaces, inner_interface};
use super::request::{CableRequest, RouteRequest};
use super::state::{Cable, CableEnd, Namespace, Route, State, Subnet};
use super::{Result, ipam, refuse};
pub(super) use attachment::Choice;
pub(super) use network::MTU_IPV4;

impl State {
    /// Takes note of a namespace; `made` when it is ours to delete.
    pub fn add_namespace(&mut self, name: &Name, made: bool) {
        self.namespaces.entry(name.clone()).or_insert(Namespace { made });
    }

    /// Forgets a namespace. What uses it refuses, or goes first with `force`.
    pub fn delete_namespace(&mut self, name: &Name, force: bool) -> Result<()> {
        let ports = self.attachments.iter().filter(|port| port.ns == *name);
        let mut users: Vec<String> = ports.map(|port| format!("network {}", port.network)).collect();
        let cables = self.cables.iter().filter(|cable| cable.a.ns == *name || cable.b.ns == *name);
        users.extend(cables.map(|cable| format!("cable {}-{}", cable.a.ns, cable.b.ns)));
        if !users.is_empty() && !force {
            return refuse(format_args!(
                "namespace {name} is in use by {}; detach it or use --force",
                users.join(", ")
            ));
        }
        self.attachments.retain(|port| port.ns != *name);
        self.cables.retain(|cable| cable.a.ns != *name && cable.b.ns != *name);
        self.routes.retain(|route| route.ns != *name);
        self.publishes.retain(|publish| publish.ns != *name);
        self.namespaces.remove(name);
        Ok(())
    }

    /// Lays a cable, or finds the one that is as asked for.
    pub fn add_cable(&mut self, request: &CableRequest) -> Result<Cable> {
        let CableRequest { a, b, address_a, address_b } = request;
        let (address_a, address_b) = (*address_a, *address_b);
        if a == b {
            return refuse(format_args!("a cable needs two namespaces, {a} is named twice"));
        }
        if let Some(existing) = self.cable(a, b) {
            let (end_a, end_b) =
                if existing.a.ns == *a { (&existing.a, &existing.b) } else { (&existing.b, &existing.a) };
            let same = |had: Option<IpNet>, asked: Option<IpNet>| asked.is_none() || had == asked;
            if same(end_a.address, address_a) && same(end_b.address, address_b) {
                return Ok(existing.clone());
            }
            let show = |address: Option<IpNet>| address.map_or("no address".to_owned(), |address| address.to_string());
            return refuse(format_args!(
                "cable {a}-{b} exists with {} and {}, asked for was {} and {}; delete it first to change it",
                show(end_a.address),
                show(end_b.address),
                show(address_a),
                show(address_b)
            ));
        }
        if address_a.is_some() && address_a.map(|ip| ip.addr()) == address_b.map(|ip| ip.addr()) {
            return refuse(format_args!("cable {a}-{b}: both ends have the same address"));
        }
        for (ns, address) in [(a, address_a), (b, address_b)] {
            let Some(address) = address else { continue };
            if let Some(objection) = ipam::objection_to_address(&address) {
                return refuse(format_args!("cable {a}-{b}: address {address}: {objection}"));
            }
            self.check_reached_once(&format!("cable {a}-{b}"), ns, &address)?;
        }
        let end = |ns: &Name, other: &Name, address| {
            let plain = inner_interface(ns);
            let interface = if self.has_interface(ns, &plain) { further_interfaces(ns, other).0 } else { plain };
            CableEnd { ns: ns.clone(), interface, address }
        };
        let cable = Cable { a: end(a, b, address_a), b: end(b, a, address_b) };
        self.cables.push(cable.clone());
        Ok(cable)
    }

    /// Refuses an address on a new link of `ns` whose prefix is that of a link already: of two routes to the same addresses,
    /// the namespace would use one. (A link-local prefix is each link's own.)
    fn check_reached_once(&self, what: &str, ns: &Name, address: &IpNet) -> Result<()> {
        if matches!(address, IpNet::V6(net) if net.addr().is_unicast_link_local()) {
            return Ok(());
        }
        let ports = self.attachments.iter().filter(|port| port.ns == *ns);
        for (port, network) in ports.filter_map(|port| Some((port, self.networks.get(&port.network)?))) {
            let mut subnets = port.ips.iter().filter_map(|ip| network.subnet_of(*ip));
            if let Some(subnet) = subnets.find(|subnet| ipam::overlap(&subnet.net, address)) {
                return refuse(format_args!(
                    "{what}: address {address} overlaps subnet {} of network {}, in which {ns} is; choose another",
                    subnet.net, network.name
                ));
            }
        }
        let ends = self.cables.iter().flat_map(|cable| [(cable, &cable.a), (cable, &cable.b)]);
        for (cable, had) in ends.filter(|(_, end)| end.ns == *ns).filter_map(|(cable, end)| Some((cable, end.address?)))
        {
            if ipam::overlap(&had, address) {
                return refuse(format_args!(
                    "{what}: address {address} overlaps {had}, which {ns} has by cable {}-{}; choose another",
                    cable.a.ns, cable.b.ns
                ));
            }
        }
        Ok(())
    }

    /// Takes a cable away.
    pub fn delete_cable(&mut self, a: &Name, b: &Name) {
        if let Some(cable) = self.cable(a, b).cloned() {
            self.cables.retain(|other| *other != cable);
        }
    }

    /// Adds a route; by the gateway of the namespace's network when no next hop is given.
    pub fn add_route(&mut self, request: &RouteRequest) -> Result<Route> {
        let (ns, dest, via) = (&request.ns, request.dest().trunc(), request.via);
        let networks =
            self.attachments.iter().filter(|port| port.ns == *ns).filter_map(|port| self.networks.get(&port.network));
        let reachable: Vec<Subnet> = networks.flat_map(|network| network.subnets.clone()).collect();
        if ipam::is_mapped(&dest) {
            return refuse(format_args!("route to {dest}: it stands for IPv4 addresses; say them as IPv4"));
        }
        let of_family = |ip: &IpAddr| ip.is_ipv4() == dest.addr().is_ipv4();
        let via = match via {
            Some(via) if !of_family(&via) => {
                return refuse(format_args!("route to {dest}: next hop {via} is of the other family"));
            }
            Some(via) => via,
            None => {
                let gateways: Vec<IpAddr> = reachable.iter().map(|subnet| subnet.gateway).filter(of_family).collect();
                match gateways.as_slice() {
                    [only] => *only,
                    [] => return refuse(format_args!("route to {dest}: {ns} has no gateway; say `via GATEWAY`")),
                    _ => return refuse(format_args!("route to {dest}: {ns} has several gateways; say `via GATEWAY`")),
                }
            }
        };
        let cables = self.cables.iter().flat_map(|cable| [&cable.a, &cable.b]).filter(|end| end.ns == *ns);
        let on_cable = cables.filter_map(|end| end.address).any(|address| address.contains(&via));
        if !on_cable && !reachable.iter().any(|subnet| subnet.net.contains(&via)) {
            return refuse(format_args!("route to {dest}: gateway {via} is in no subnet of {ns}; attach it first"));
        }
        if let Some(existing) = self.routes.iter().find(|route| route.ns == *ns && route.dest == dest) {
            if existing.via == via {
                return Ok(existing.clone());
            }
            return refuse(format_args!(
                "route to {dest} in {ns} exists via {}, asked for was via {via}; delete it first to change it",
                existing.via
            ));
        }
        let route = Route { ns: ns.clone(), dest, via };
        self.routes.push(route.clone());
        Ok(route)
    }

    /// Removes a route.
    pub fn delete_route(&mut self, ns: &Name, dest: IpNet) {
        self.routes.retain(|route| route.ns != *ns || route.dest != dest.trunc());
    }
}

/// The destination of a family's default route.
pub fn default_route(v4: bool) -> IpNet {
    if v4 { Ipv4Net::default().into() } else { Ipv6Net::default().into() }
}
