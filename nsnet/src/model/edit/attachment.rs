//! Attachments: which namespace is in which network.

use std::collections::HashSet;
use std::net::IpAddr;

use nsnet_common::wire::Mac;

use super::default_route;
use super::network::listed;
use crate::model::name::{Name, further_interfaces, inner_interface, is_reserved, outer_interface};
use crate::model::request::AttachRequest;
use crate::model::state::{Attachment, Network, Route, State, Subnet};
use crate::model::{Result, ipam, refuse};

/// What addresses are chosen, where none of a family is given.
#[derive(Default)]
pub(in crate::model) struct Choice<'a> {
    /// These first.
    pub(in crate::model) kept: &'a [IpAddr],
    /// None of these.
    pub(in crate::model) avoided: Option<&'a HashSet<IpAddr>>,
}

impl State {
    /// Attaches a namespace, or finds the attachment that is as asked for.
    pub fn attach(&mut self, request: &AttachRequest) -> Result<Attachment> {
        self.network(&request.network)?;
        if let Some(existing) = self.attachment(&request.network, &request.ns) {
            return same_attachment(existing, request);
        }
        let attachment = self.build_attachment(request, None, &Choice::default())?;
        self.attachments.push(attachment.clone());
        Ok(attachment)
    }

    /// An attachment as asked for, which is in the state no more, or not yet. What is not said stays as it `had` it, but
    /// for the addresses.
    pub(in crate::model) fn build_attachment(
        &mut self,
        request: &AttachRequest,
        had: Option<&Attachment>,
        choice: &Choice<'_>,
    ) -> Result<Attachment> {
        let network = self.network(&request.network)?.clone();
        let ips = self.choose_addresses(&network, request, choice)?;
        for subnet in ips.iter().filter_map(|ip| network.subnet_of(*ip)) {
            self.check_reached_once(&format!("attach {} to {}", request.ns, network.name), &request.ns, &subnet.net)?;
        }
        let given = request.mac.map(|mac| self.check_mac(&network, mac)).transpose()?;
        let (inner, outer) = self.choose_interfaces(request, had)?;
        let (port, mac) = match had {
            Some(had) => (had.port(), given.unwrap_or(had.mac)),
            None => {
                let port = self.free_port()?;
                (port, given.unwrap_or_else(|| self.next_mac(network.id(), port)))
            }
        };
        Ok(Attachment {
            network: network.name,
            ns: request.ns.clone(),
            port: port.0,
            mac,
            mac_given: given.is_some() || had.is_some_and(|had| had.mac_given),
            ips,
            inner,
            outer,
            learn: request.learn,
            trusted: request.trusted,
            isolated: request.isolated,
        })
    }

    /// Detaches a namespace; its routes through the network go too, and what it publishes by it.
    pub fn detach(&mut self, network: &Name, ns: &Name) {
        let subnets = self.networks.get(network).map(|network| network.subnets.clone()).unwrap_or_default();
        let leads_there = |via: IpAddr| subnets.iter().any(|subnet| subnet.net.contains(&via));
        self.routes.retain(|route| route.ns != *ns || !leads_there(route.via));
        self.publishes.retain(|publish| publish.network != *network || publish.ns != *ns);
        self.attachments.retain(|port| port.network != *network || port.ns != *ns);
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

    fn choose_addresses(&self, network: &Network, request: &AttachRequest, choice: &Choice<'_>) -> Result<Vec<IpAddr>> {
        let (name, ns) = (&network.name, &request.ns);
        // There may be thousands.
        let ports = self.attachments.iter().filter(|port| port.network == *name);
        let mut taken: HashSet<IpAddr> = ports.flat_map(|port| port.ips.iter().copied()).collect();
        taken.extend(network.subnets.iter().map(|subnet| subnet.gateway));
        for (position, ip) in request.ip.iter().enumerate() {
            let Some(subnet) = network.subnet_of(*ip) else {
                let subnets = listed(&network.subnets);
                return refuse(format_args!("attach {ns}: address {ip} is in no subnet of network {name} ({subnets})"));
            };
            if request.ip[..position].contains(ip) {
                return refuse(format_args!("attach {ns}: address {ip} is given twice; leave one out"));
            }
            if !ipam::is_usable(&subnet.net, *ip) {
                return refuse(format_args!("attach {ns}: address {ip} is not a host address of {}", subnet.net));
            }
            if !taken.insert(*ip) {
                return refuse(format_args!("attach {ns}: address {ip} is in use in network {name}; choose another"));
            }
        }
        let mut ips = request.ip.clone();
        for v4 in [true, false] {
            let mut subnets = network.subnets.iter().filter(|subnet| subnet.net.addr().is_ipv4() == v4).peekable();
            if subnets.peek().is_none() || ips.iter().any(|ip| ip.is_ipv4() == v4) {
                continue;
            }
            let kept: Vec<IpAddr> = choice.kept.iter().copied().filter(|ip| ip.is_ipv4() == v4).collect();
            if !kept.is_empty() {
                ips.extend(kept);
                continue;
            }
            let is_taken = |ip| taken.contains(&ip) || choice.avoided.is_some_and(|avoided| avoided.contains(&ip));
            match subnets.find_map(|subnet| ipam::first_free(&subnet.net, is_taken)) {
                Some(ip) => ips.push(ip),
                None => {
                    return refuse(format_args!("attach {ns}: no address of network {name} is free; detach one first"));
                }
            }
        }
        Ok(ips)
    }

    fn choose_interfaces(&self, request: &AttachRequest, had: Option<&Attachment>) -> Result<(String, String)> {
        let ns = &request.ns;
        let (further_inner, further_outer) = further_interfaces(ns, &request.network);
        let inner = match request.ifname.as_ref().map(Name::as_str).or(had.map(|had| had.inner.as_str())) {
            Some(asked) if is_reserved(asked) => {
                return refuse(format_args!(
                    "attach {ns}: its interface cannot be called {asked}, which the kernel keeps for itself; \
                     choose another --ifname"
                ));
            }
            Some(asked) if self.has_interface(ns, asked) => {
                return refuse(format_args!(
                    "attach {ns}: it has an interface {asked} already; choose another --ifname"
                ));
            }
            Some(asked) => asked.to_owned(),
            None if self.has_interface(ns, &inner_interface(ns)) => further_inner,
            None => inner_interface(ns),
        };
        if let Some(had) = had {
            return Ok((inner, had.outer.clone()));
        }
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

fn same_attachment(existing: &Attachment, request: &AttachRequest) -> Result<Attachment> {
    let (network, ns) = (&request.network, &request.ns);
    let mut differences = Vec::new();
    if request.ip.iter().any(|ip| !existing.ips.contains(ip)) {
        differences.push(format!("{}, asked for was {}", list(&existing.ips), list(&request.ip)));
    }
    if let Some(mac) = request.mac.filter(|mac| *mac != existing.mac) {
        differences.push(format!("MAC {}, asked for was {mac}", existing.mac));
    }
    if let Some(interface) = request.ifname.as_ref().filter(|name| name.as_str() != existing.inner) {
        differences.push(format!("interface {}, asked for was {interface}", existing.inner));
    }
    if request.learn != existing.learn || request.trusted != existing.trusted {
        differences.push("other source checks".to_owned());
    }
    if request.isolated != existing.isolated {
        differences.push((if existing.isolated { "--isolated" } else { "no --isolated" }).to_owned());
    }
    if differences.is_empty() {
        return Ok(existing.clone());
    }
    refuse(format_args!("{ns} is attached to {network} with {}; detach it first to change it", differences.join("; ")))
}

fn list(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
