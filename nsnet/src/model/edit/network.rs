//! Networks.

use crate::model::mode::{Mode, Modes};
use crate::model::name::{Name, is_reserved, unused_end};
use crate::model::policy::Outside;
use crate::model::request::NetworkRequest;
use crate::model::state::{Network, State, Subnet};
use crate::model::{Result, ipam, refuse};

/// Smallest MTU of IPv4 (RFC 791) and IPv6 (RFC 8200).
pub(in crate::model) const MTU_IPV4: u16 = 68;
const MTU_IPV6: u16 = 1280;

impl State {
    /// Makes a network, or finds the one that is as asked for. `default_mtu` is its MTU when none is asked for.
    pub fn add_network(&mut self, request: &NetworkRequest, default_mtu: u16) -> Result<Network> {
        if let Some(existing) = self.networks.get(&request.name) {
            return same_network(existing, request);
        }
        let network = self.build_network(request, default_mtu, None)?;
        self.networks.insert(network.name.clone(), network.clone());
        Ok(network)
    }

    /// A network as asked for, which is in the state no more, or not yet. What is not said stays as it `had` it.
    pub(in crate::model) fn build_network(
        &mut self,
        request: &NetworkRequest,
        default_mtu: u16,
        had: Option<&Network>,
    ) -> Result<Network> {
        let name = &request.name;
        if is_reserved(name.as_str()) {
            return refuse(format_args!(
                "network {name}: its interface cannot have this name, which the kernel keeps for itself; choose another"
            ));
        }
        let subnets = subnets_of(request, had)?;
        let outside = outside_of(request, &subnets)?;
        let mtu = request.mtu.or(had.map(|had| had.mtu)).unwrap_or(default_mtu);
        let has_ipv6 = subnets.iter().any(|subnet| subnet.net.addr().is_ipv6());
        let least = if has_ipv6 { MTU_IPV6 } else { MTU_IPV4 };
        if mtu < least {
            return refuse(format_args!("network {name}: MTU {mtu} is below the {least} that its subnets need"));
        }
        for (other, subnet) in self.networks.values().flat_map(|other| other.subnets.iter().map(move |s| (other, s))) {
            if let Some(new) = subnets.iter().find(|new| ipam::overlap(&new.net, &subnet.net)) {
                return refuse(format_args!(
                    "network {name}: subnet {} overlaps {} of network {}; choose another",
                    new.net, subnet.net, other.name
                ));
            }
        }
        let end = unused_end(name);
        if let Some(clash) =
            self.networks.keys().find(|other| other.as_str() == end || unused_end(other) == name.as_str())
        {
            return refuse(format_args!(
                "network {name} needs the interface {end}, which clashes with network {clash}"
            ));
        }
        let (id, port, mac) = match had {
            Some(had) => (had.id(), had.port(), had.mac),
            None => {
                let (id, port) = (self.free_network()?, self.free_port()?);
                (id, port, self.next_mac(id, port))
            }
        };
        let modes = request.modes();
        check_modes(name, modes, &outside)?;
        Ok(Network { name: name.clone(), id: id.0, port: port.0, mac, subnets, mtu, outside, modes })
    }

    /// Changes where frames of a network are forwarded, as far as something is said.
    pub fn set_modes(&mut self, name: &Name, ports: Option<Mode>, uplinks: Option<Mode>) -> Result<Network> {
        let mut network = self.network(name)?.clone();
        let Modes { ports: had_ports, uplinks: had_uplinks } = network.modes;
        network.modes = Modes { ports: ports.unwrap_or(had_ports), uplinks: uplinks.unwrap_or(had_uplinks) };
        check_modes(name, network.modes, &network.outside)?;
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
}

fn check_modes(network: &Name, modes: Modes, outside: &Outside) -> Result<()> {
    if outside.internal && modes.uplinks != Mode::Tc {
        return refuse(format_args!(
            "network {network}: an internal network has no way out, so no uplink goes by {}",
            modes.uplinks
        ));
    }
    Ok(())
}

/// The one that exists, when it is as asked for.
fn same_network(existing: &Network, request: &NetworkRequest) -> Result<Network> {
    let subnets = subnets_of(request, None)?;
    let outside = outside_of(request, &subnets)?;
    let differs = existing.subnets.len() != subnets.len()
        || !existing.subnets.iter().all(|had| {
            let asked = subnets.iter().find(|subnet| subnet.net == had.net);
            asked.is_some_and(|asked| asked.gateway == had.gateway || request.gateway.is_empty())
        })
        || request.mtu.is_some_and(|mtu| mtu != existing.mtu)
        || request.mode.is_some_and(|mode| mode != existing.modes.ports)
        || request.uplink_mode.is_some_and(|mode| mode != existing.modes.uplinks)
        || outside != as_comparable(&existing.outside, &outside);
    if !differs {
        return Ok(existing.clone());
    }
    let asked = describe(&subnets, request.mtu, &outside, request.modes());
    let had = describe(&existing.subnets, Some(existing.mtu), &existing.outside, existing.modes);
    refuse(format_args!(
        "network {} exists with {had}, asked for was {asked}; delete it first to change it",
        existing.name
    ))
}

/// What is asked for of what is beyond the network, if it can be.
fn outside_of(request: &NetworkRequest, subnets: &[Subnet]) -> Result<Outside> {
    let has_family = |v4| subnets.iter().any(|subnet| subnet.net.addr().is_ipv4() == v4);
    let outside = request.outside();
    outside.check(&request.name, (has_family(true), has_family(false)))?;
    Ok(outside.normal())
}

/// The subnets asked for, each with its gateway: the one that is given, or that it `had`, or the last usable address.
fn subnets_of(request: &NetworkRequest, had: Option<&Network>) -> Result<Vec<Subnet>> {
    let name = &request.name;
    let mut gateways = request.gateway.clone();
    let mut subnets: Vec<Subnet> = Vec::new();
    for net in &request.subnet {
        if let Some(objection) = ipam::objection(net) {
            let meant = if net.trunc() == *net { String::new() } else { format!("; say {}", net.trunc()) };
            return refuse(format_args!("network {name}: subnet {net}: {objection}{meant}"));
        }
        if let Some(other) = subnets.iter().find(|other| ipam::overlap(&other.net, net)) {
            return refuse(format_args!("network {name}: subnets {} and {net} overlap", other.net));
        }
        let given = gateways.iter().position(|ip| net.contains(ip)).map(|position| gateways.remove(position));
        let known = had.and_then(|had| had.subnets.iter().find(|subnet| subnet.net == *net));
        let gateway = given.or(known.map(|subnet| subnet.gateway)).unwrap_or_else(|| ipam::last_usable(net));
        if !ipam::is_usable(net, gateway) {
            return refuse(format_args!("network {name}: gateway {gateway} is not a host address of {net}"));
        }
        subnets.push(Subnet { net: *net, gateway });
    }
    if subnets.is_empty() {
        return refuse(format_args!("network {name} needs a subnet; give it one, such as 192.168.15.0/24"));
    }
    match gateways.first() {
        Some(stray) if subnets.iter().any(|subnet| subnet.net.contains(stray)) => {
            refuse(format_args!("network {name}: gateway {stray} is the second of its subnet; leave one out"))
        }
        Some(stray) => {
            refuse(format_args!("network {name}: gateway {stray} is in no subnet of it ({})", listed(&subnets)))
        }
        None => Ok(subnets),
    }
}

/// What is there, as far as it is compared with what is asked for: who says nothing of masquerade, which has a verb of
/// its own, has no objection to it.
fn as_comparable(had: &Outside, asked: &Outside) -> Outside {
    Outside { masquerade: had.masquerade && asked.masquerade, ..had.clone() }
}

/// Subnets, for a message.
pub(super) fn listed(subnets: &[Subnet]) -> String {
    subnets.iter().map(|subnet| subnet.net.to_string()).collect::<Vec<_>>().join(", ")
}

fn describe(subnets: &[Subnet], mtu: Option<u16>, outside: &Outside, modes: Modes) -> String {
    let subnets: Vec<String> = subnets.iter().map(|s| format!("{} (gateway {})", s.net, s.gateway)).collect();
    let mtu = mtu.map(|mtu| format!(", MTU {mtu}")).unwrap_or_default();
    let options = [outside.to_string(), modes.to_string()].into_iter().filter(|words| !words.is_empty());
    let options: String = options.map(|words| format!(", {words}")).collect();
    format!("{}{mtu}{options}", subnets.join(", "))
}
