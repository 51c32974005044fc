//! The imperative verbs, as edits of the desired state. Each either leaves a valid state or changes nothing.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nsnet_common::wire::Mac;

use super::ipam;
use super::name::{Name, further_interfaces, inner_interface, outer_interface, unused_end};
use super::policy::Outside;
use super::state::{Attachment, Cable, CableEnd, Namespace, Network, Route, State, Subnet};
use super::{Result, refuse};

/// Smallest MTU of IPv4 (RFC 791) and IPv6 (RFC 8200), and the largest a veth takes.
pub const MTU_IPV4: u16 = 68;
const MTU_IPV6: u16 = 1280;

/// What `network add` asks for.
#[derive(Clone, Debug)]
pub struct NetworkRequest {
    /// The name.
    pub name: Name,
    /// Subnets.
    pub subnets: Vec<IpNet>,
    /// The host's addresses; the last usable one of each subnet that has none here.
    pub gateways: Vec<IpAddr>,
    /// The MTU, when given.
    pub mtu: Option<u16>,
    /// The MTU otherwise.
    pub default_mtu: u16,
    /// What its namespaces may do beyond it.
    pub outside: Outside,
}

/// What `attach` asks for.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    /// The network.
    pub network: Name,
    /// The namespace.
    pub ns: Name,
    /// Addresses; one of each family of the network is chosen where none is given.
    pub ips: Vec<IpAddr>,
    /// The MAC, when given.
    pub mac: Option<Mac>,
    /// The interface in the namespace, when given.
    pub interface: Option<Name>,
    /// Learn foreign MACs.
    pub learn: bool,
    /// Check no senders.
    pub trusted: bool,
}

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

    /// Makes a network, or finds the one that is as asked for.
    pub fn add_network(&mut self, request: &NetworkRequest) -> Result<Network> {
        let name = &request.name;
        let subnets = subnets_of(request)?;
        let has_family = |v4| subnets.iter().any(|subnet| subnet.net.addr().is_ipv4() == v4);
        request.outside.check(name, (has_family(true), has_family(false)))?;
        let outside = request.outside.clone().normal();
        if let Some(existing) = self.networks.get(name) {
            let differs = existing.subnets.len() != subnets.len()
                || !existing.subnets.iter().all(|had| {
                    let asked = subnets.iter().find(|subnet| subnet.net == had.net);
                    asked.is_some_and(|asked| asked.gateway == had.gateway || request.gateways.is_empty())
                })
                || request.mtu.is_some_and(|mtu| mtu != existing.mtu)
                || outside != as_comparable(&existing.outside, &outside);
            if !differs {
                return Ok(existing.clone());
            }
            let asked = describe(&subnets, request.mtu, &outside);
            let had = describe(&existing.subnets, Some(existing.mtu), &existing.outside);
            return refuse(format_args!(
                "network {name} exists with {had}, asked for was {asked}; delete it first to change it"
            ));
        }
        let mtu = request.mtu.unwrap_or(request.default_mtu);
        let has_ipv6 = subnets.iter().any(|subnet| subnet.net.addr().is_ipv6());
        let least = if has_ipv6 { MTU_IPV6 } else { MTU_IPV4 };
        if mtu < least {
            return refuse(format_args!("network {name}: MTU {mtu} is below the {least} that its subnets need"));
        }
        for (other, subnet) in self.networks.values().flat_map(|other| other.subnets.iter().map(move |s| (other, s))) {
            if let Some(new) = subnets.iter().find(|new| overlap(&new.net, &subnet.net)) {
                return refuse(format_args!(
                    "network {name}: subnet {} overlaps {} of network {}; choose another",
                    new.net, subnet.net, other.name
                ));
            }
        }
        let end = unused_end(name);
        let (id, port) = (self.free_network()?, self.free_port()?);
        if let Some(clash) =
            self.networks.keys().find(|other| other.as_str() == end || unused_end(other) == name.as_str())
        {
            return refuse(format_args!(
                "network {name} needs the interface {end}, which clashes with network {clash}"
            ));
        }
        let mac = self.next_mac(id, port);
        let network = Network { name: name.clone(), id: id.0, port: port.0, mac, subnets, mtu, outside };
        self.networks.insert(name.clone(), network.clone());
        Ok(network)
    }

    /// Turns masquerade on or off.
    pub fn set_masquerade(&mut self, name: &Name, on: bool) -> Result<Network> {
        let outside = Outside { masquerade: on, ..self.network(name)?.outside.clone() };
        outside.check(name, (true, true))?;
        let mut network = self.network(name)?.clone();
        network.outside = outside;
        self.networks.insert(name.clone(), network.clone());
        Ok(network)
    }

    /// Gives an attached namespace default routes by its network's gateways, where the network has a way out and the
    /// namespace no such route of ours. `has_other`: it has one of somebody else's, of IPv4 (`true`) or IPv6.
    pub fn add_default_routes(&mut self, port: &Attachment, has_other: impl Fn(bool) -> bool) {
        let Some(network) = self.networks.get(&port.network).filter(|network| network.outside.has_default_route())
        else {
            return;
        };
        for v4 in [true, false] {
            let dest = default_route(v4);
            let is_there = self.routes.iter().any(|route| route.ns == port.ns && route.dest == dest);
            let reached = |subnet: &&Subnet| {
                let is_family = subnet.net.addr().is_ipv4() == v4;
                is_family && port.ips.iter().any(|ip| subnet.net.contains(ip))
            };
            let Some(subnet) = network.subnets.iter().find(reached).filter(|_| !is_there && !has_other(v4)) else {
                continue;
            };
            self.routes.push(Route { ns: port.ns.clone(), dest, via: subnet.gateway });
        }
    }

    /// Deletes a network. Its namespaces refuse, or are detached first with `force`.
    pub fn delete_network(&mut self, name: &Name, force: bool) -> Result<()> {
        let ports = self.attachments.iter().filter(|port| port.network == *name);
        let users: Vec<&str> = ports.map(|port| port.ns.as_str()).collect();
        if !users.is_empty() && !force {
            return refuse(format_args!(
                "network {name} is in use by {}; detach them or use --force",
                users.join(", ")
            ));
        }
        let namespaces: Vec<Name> =
            self.attachments.iter().filter(|p| p.network == *name).map(|p| p.ns.clone()).collect();
        for ns in namespaces {
            self.detach(name, &ns);
        }
        self.networks.remove(name);
        Ok(())
    }

    /// Attaches a namespace, or finds the attachment that is as asked for.
    pub fn attach(&mut self, request: &AttachRequest) -> Result<Attachment> {
        let network = self.network(&request.network)?.clone();
        let (name, ns) = (&network.name, &request.ns);
        if let Some(existing) = self.attachment(name, ns) {
            return same_attachment(existing, request);
        }
        let ips = self.choose_addresses(&network, request)?;
        let port = self.free_port()?;
        let (inner, outer) = self.choose_interfaces(request)?;
        let mac = match request.mac {
            Some(mac) => self.check_mac(&network, mac)?,
            None => self.next_mac(network.id(), port),
        };
        let attachment = Attachment {
            network: name.clone(),
            ns: ns.clone(),
            port: port.0,
            mac,
            mac_given: request.mac.is_some(),
            ips,
            inner,
            outer,
            learn: request.learn,
            trusted: request.trusted,
        };
        self.attachments.push(attachment.clone());
        Ok(attachment)
    }

    /// Detaches a namespace; its routes through the network go too, and what it publishes by it.
    pub fn detach(&mut self, network: &Name, ns: &Name) {
        let subnets = self.networks.get(network).map(|network| network.subnets.clone()).unwrap_or_default();
        let leads_there = |via: IpAddr| subnets.iter().any(|subnet| subnet.net.contains(&via));
        self.routes.retain(|route| route.ns != *ns || !leads_there(route.via));
        self.publishes.retain(|publish| publish.network != *network || publish.ns != *ns);
        self.attachments.retain(|port| port.network != *network || port.ns != *ns);
    }

    /// Lays a cable, or finds the one that is as asked for.
    pub fn add_cable(&mut self, ends: [(&Name, Option<IpNet>); 2]) -> Result<Cable> {
        let [(a, address_a), (b, address_b)] = ends;
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
        let end = |ns: &Name, other: &Name, address| {
            let plain = inner_interface(ns);
            let interface = if self.has_interface(ns, &plain) { further_interfaces(ns, other).0 } else { plain };
            CableEnd { ns: ns.clone(), interface, address }
        };
        let cable = Cable { a: end(a, b, address_a), b: end(b, a, address_b) };
        self.cables.push(cable.clone());
        Ok(cable)
    }

    /// Takes a cable away.
    pub fn delete_cable(&mut self, a: &Name, b: &Name) {
        if let Some(cable) = self.cable(a, b).cloned() {
            self.cables.retain(|other| *other != cable);
        }
    }

    /// Adds a route; by the gateway of the namespace's network when no next hop is given.
    pub fn add_route(&mut self, ns: &Name, dest: IpNet, via: Option<IpAddr>) -> Result<Route> {
        let dest = dest.trunc();
        let networks =
            self.attachments.iter().filter(|port| port.ns == *ns).filter_map(|port| self.networks.get(&port.network));
        let reachable: Vec<Subnet> = networks.flat_map(|network| network.subnets.clone()).collect();
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

    fn choose_addresses(&self, network: &Network, request: &AttachRequest) -> Result<Vec<IpAddr>> {
        let (name, ns) = (&network.name, &request.ns);
        for (position, ip) in request.ips.iter().enumerate() {
            let Some(subnet) = network.subnet_of(*ip) else {
                return refuse(format_args!("attach {ns}: address {ip} is in no subnet of network {name}"));
            };
            if !ipam::is_usable(&subnet.net, *ip) {
                return refuse(format_args!("attach {ns}: address {ip} is not a host address of {}", subnet.net));
            }
            if self.is_taken(network, *ip) || request.ips[..position].contains(ip) {
                return refuse(format_args!("attach {ns}: address {ip} is in use in network {name}; choose another"));
            }
        }
        let mut ips = request.ips.clone();
        for v4 in [true, false] {
            let mut subnets = network.subnets.iter().filter(|subnet| subnet.net.addr().is_ipv4() == v4).peekable();
            if subnets.peek().is_none() || ips.iter().any(|ip| ip.is_ipv4() == v4) {
                continue;
            }
            match subnets.find_map(|subnet| ipam::first_free(&subnet.net, |ip| self.is_taken(network, ip))) {
                Some(ip) => ips.push(ip),
                None => {
                    return refuse(format_args!("attach {ns}: no address of network {name} is free; detach one first"));
                }
            }
        }
        Ok(ips)
    }

    fn choose_interfaces(&self, request: &AttachRequest) -> Result<(String, String)> {
        let ns = &request.ns;
        let (further_inner, further_outer) = further_interfaces(ns, &request.network);
        let inner = match &request.interface {
            Some(asked) if self.has_interface(ns, asked.as_str()) => {
                return refuse(format_args!(
                    "attach {ns}: it has an interface {asked} already; choose another --ifname"
                ));
            }
            Some(asked) => asked.as_str().to_owned(),
            None if self.has_interface(ns, &inner_interface(ns)) => further_inner,
            None => inner_interface(ns),
        };
        let is_taken = |outer: &str| self.attachments.iter().any(|port| port.outer == outer);
        let outer = if is_taken(&outer_interface(ns)) { further_outer } else { outer_interface(ns) };
        Ok((inner, outer))
    }

    fn check_mac(&self, network: &Network, mac: Mac) -> Result<Mac> {
        if mac.is_group() || mac == Mac::ZERO {
            return refuse(format_args!("{mac} cannot be an interface's MAC: it names a group or nobody"));
        }
        let ports = self.attachments.iter().filter(|port| port.network == network.name);
        let owner = ports.map(|port| (port.ns.as_str(), port.mac)).chain([("the gateway", network.mac)]);
        match owner.into_iter().find(|(_, taken)| *taken == mac) {
            Some((who, _)) => refuse(format_args!("MAC {mac} is in use by {who} in network {}", network.name)),
            None => Ok(mac),
        }
    }
}

/// The subnets asked for, each with its gateway.
fn subnets_of(request: &NetworkRequest) -> Result<Vec<Subnet>> {
    let name = &request.name;
    let mut gateways = request.gateways.clone();
    let mut subnets: Vec<Subnet> = Vec::new();
    for net in &request.subnets {
        if let Some(objection) = ipam::objection(net) {
            return refuse(format_args!("network {name}: subnet {net}: {objection}"));
        }
        if let Some(other) = subnets.iter().find(|other| overlap(&other.net, net)) {
            return refuse(format_args!("network {name}: subnets {} and {net} overlap", other.net));
        }
        let given = gateways.iter().position(|ip| net.contains(ip)).map(|position| gateways.remove(position));
        let gateway = given.unwrap_or_else(|| ipam::last_usable(net));
        if !ipam::is_usable(net, gateway) {
            return refuse(format_args!("network {name}: gateway {gateway} is not a host address of {net}"));
        }
        subnets.push(Subnet { net: *net, gateway });
    }
    if subnets.is_empty() {
        return refuse(format_args!("network {name} needs a subnet; say --subnet CIDR"));
    }
    match gateways.first() {
        Some(stray) => refuse(format_args!("network {name}: gateway {stray} is outside the subnet")),
        None => Ok(subnets),
    }
}

fn same_attachment(existing: &Attachment, request: &AttachRequest) -> Result<Attachment> {
    let (network, ns) = (&request.network, &request.ns);
    let mut differences = Vec::new();
    if request.ips.iter().any(|ip| !existing.ips.contains(ip)) {
        differences.push(format!("{}, asked for was {}", list(&existing.ips), list(&request.ips)));
    }
    if let Some(mac) = request.mac.filter(|mac| *mac != existing.mac) {
        differences.push(format!("MAC {}, asked for was {mac}", existing.mac));
    }
    if let Some(interface) = request.interface.as_ref().filter(|name| name.as_str() != existing.inner) {
        differences.push(format!("interface {}, asked for was {interface}", existing.inner));
    }
    if request.learn != existing.learn || request.trusted != existing.trusted {
        differences.push("other source checks".to_owned());
    }
    if differences.is_empty() {
        return Ok(existing.clone());
    }
    refuse(format_args!("{ns} is attached to {network} with {}; detach it first to change it", differences.join("; ")))
}

/// What is there, as far as it is compared with what is asked for: who says nothing of masquerade, which has a verb of
/// its own, has no objection to it.
fn as_comparable(had: &Outside, asked: &Outside) -> Outside {
    Outside { masquerade: had.masquerade && asked.masquerade, ..had.clone() }
}

/// The destination of a family's default route.
pub fn default_route(v4: bool) -> IpNet {
    if v4 { Ipv4Net::default().into() } else { Ipv6Net::default().into() }
}

fn describe(subnets: &[Subnet], mtu: Option<u16>, outside: &Outside) -> String {
    let subnets: Vec<String> = subnets.iter().map(|s| format!("{} (gateway {})", s.net, s.gateway)).collect();
    let mtu = mtu.map(|mtu| format!(", MTU {mtu}")).unwrap_or_default();
    let outside = Some(outside.to_string()).filter(|words| !words.is_empty());
    format!("{}{mtu}{}", subnets.join(", "), outside.map(|words| format!(", {words}")).unwrap_or_default())
}

fn list(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}
