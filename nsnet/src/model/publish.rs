//! Published ports: which of the host's ports lead to which namespace, and who may have which.

use std::net::IpAddr;

use nsnet_common::layout::{MAX_PUBLISHED_PREFIXES, MAX_PUBLISHES, NetworkId, PortId, port_prefixes};
use serde::{Deserialize, Serialize};

use super::name::Name;
use super::ports::{PortRange, PortSet};
use super::spec::{Protocol, Spec, endpoint, unspecified_like};
use super::state::{Attachment, Network, State};
use super::{Result, refuse};

/// A published port or range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// As it was asked for.
    pub asked: Spec,
    /// As it was decided: the host's ports are chosen.
    pub spec: Spec,
    /// The namespace.
    pub ns: Name,
    /// The network by which it is reached.
    pub network: Name,
    /// The number of that network in the dataplane.
    pub network_id: u16,
    /// The number of the namespace's port there.
    pub port: u16,
    /// One entry of the dataplane for each family.
    pub entries: Vec<Entry>,
}

/// What is published of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its place in the dataplane's table, from 1.
    pub place: u16,
    /// Tells it from what had the place before.
    pub epoch: u16,
    /// The namespace's address.
    pub target: IpAddr,
}

/// What `publish add` asks for.
#[derive(Clone, Debug)]
pub struct PublishRequest {
    /// The namespace.
    pub ns: Name,
    /// The network; the first that has addresses of the family when left out.
    pub network: Option<Name>,
    /// What to publish.
    pub spec: Spec,
}

/// What publishing has to know of the host.
#[derive(Clone, Copy)]
pub struct HostPorts<'a> {
    /// Addresses of the host's interfaces.
    pub addresses: &'a [IpAddr],
    /// From where a port is chosen when none is given.
    pub automatic: PortRange,
    /// Ports that are not chosen.
    pub reserved: &'a PortSet,
    /// The first of these ports of an address, or of all addresses of its family, that a socket has.
    pub first_busy: &'a dyn Fn(Protocol, IpAddr, PortRange) -> Result<Option<u16>>,
}

impl Publish {
    /// The host's ports.
    pub fn host(&self) -> PortRange {
        self.spec.host().unwrap_or_else(|| self.spec.target())
    }

    /// The host's address of an entry; 0.0.0.0 and `::` for all.
    pub fn host_ip(&self, entry: &Entry) -> IpAddr {
        self.spec.host_ip().unwrap_or_else(|| unspecified_like(entry.target))
    }

    /// The network's number in the dataplane.
    pub fn network_id(&self) -> NetworkId {
        NetworkId(self.network_id)
    }

    /// The number of the namespace's port there.
    pub fn port(&self) -> PortId {
        PortId(self.port)
    }

    fn host_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.entries.iter().map(|entry| self.host_ip(entry))
    }

    /// How many prefixes of port numbers it takes.
    fn prefixes(&self) -> usize {
        prefixes(self.host()) * self.entries.len()
    }
}

impl State {
    /// Publishes ports, or finds the entry that is as asked for.
    pub fn add_publish(&mut self, request: &PublishRequest, host: &HostPorts<'_>) -> Result<Publish> {
        let PublishRequest { ns, network, spec } = request;
        if let Some(known) = self.published(ns, spec) {
            return match network {
                Some(asked) if *asked != known.network => refuse(format_args!(
                    "publish {spec} for {ns}: it is published by network {}, asked for was {asked}; \
                     delete it first to change it",
                    known.network
                )),
                _ => Ok(known.clone()),
            };
        }
        check_host_ip(ns, spec, host.addresses)?;
        let port = self.way_to(request)?.clone();
        let targets = targets(&port.ips, spec.host_ip());
        let host_ips: Vec<IpAddr> =
            targets.iter().map(|target| spec.host_ip().unwrap_or_else(|| unspecified_like(*target))).collect();
        let decided = match spec.host() {
            Some(asked) => {
                self.check_free(ns, spec, &host_ips, asked, host)?;
                spec.clone()
            }
            None => spec.with_host(self.choose_ports(ns, spec, &host_ips, host)?),
        };
        let network_id = self.network(&port.network)?.id;
        let mut publish = Publish {
            asked: spec.clone(),
            spec: decided,
            ns: ns.clone(),
            network: port.network.clone(),
            network_id,
            port: port.port,
            entries: targets.iter().map(|target| Entry { place: 0, epoch: 0, target: *target }).collect(),
        };
        self.check_room(&publish)?;
        let mut places = self.free_places();
        for entry in &mut publish.entries {
            let Some(place) = places.next() else { return self.no_room(&publish) };
            self.publish_epoch = self.publish_epoch.wrapping_add(1);
            (entry.place, entry.epoch) = (place, self.publish_epoch);
        }
        self.publishes.push(publish.clone());
        Ok(publish)
    }

    /// Whether what was published leads where it is asked to lead, as attachments are now.
    pub(super) fn still_leads(&self, request: &PublishRequest, had: &Publish) -> bool {
        let Some(port) = self.attachment(&had.network, &had.ns) else { return false };
        let is_asked = request.network.as_ref().is_none_or(|network| *network == had.network);
        let id = self.networks.get(&had.network).map(|network| network.id);
        let leads_to: Vec<IpAddr> = had.entries.iter().map(|entry| entry.target).collect();
        is_asked
            && !self.is_internal(&had.network)
            && (Some(had.network_id), had.port) == (id, port.port)
            && leads_to == targets(&port.ips, had.spec.host_ip())
    }

    /// Publishes no more what was asked for, or printed, as `spec`.
    pub fn delete_publish(&mut self, ns: &Name, spec: &Spec) {
        self.publishes.retain(|publish| publish.ns != *ns || (publish.asked != *spec && publish.spec != *spec));
    }

    /// What of `ns` was asked for, or printed, as `spec`.
    pub fn published(&self, ns: &Name, spec: &Spec) -> Option<&Publish> {
        self.publishes.iter().find(|publish| (publish.asked == *spec || publish.spec == *spec) && publish.ns == *ns)
    }

    /// The host's ports that no socket is to be given unasked: published ones, and those that flows are given.
    pub fn reserved_ports(&self) -> PortSet {
        self.publishes.iter().map(Publish::host).collect::<PortSet>().with(&self.pools())
    }

    /// The host's ports that flows are given: those of networks that masquerade, and of networks of which something is
    /// published, because a namespace that comes by an address of the host's is given one there.
    pub fn pools(&self) -> PortSet {
        let is_published = |network: &Network| self.publishes.iter().any(|publish| publish.network == network.name);
        let in_use = self.networks.values().filter(|network| network.outside.masquerade || is_published(network));
        in_use.map(|network| network.outside.pool()).collect()
    }

    fn is_internal(&self, network: &Name) -> bool {
        self.networks.get(network).is_some_and(|network| network.outside.internal)
    }

    /// The attachment by which the namespace is reached: the first with an address of the family. By an internal network
    /// nobody comes in.
    fn way_to(&self, request: &PublishRequest) -> Result<&Attachment> {
        let PublishRequest { ns, network, spec } = request;
        let is_meant = |port: &&Attachment| port.ns == *ns && network.as_ref().is_none_or(|name| port.network == *name);
        let is_internal = |port: &&Attachment| self.is_internal(&port.network);
        let (internal, open): (Vec<_>, Vec<_>) = self.attachments.iter().filter(is_meant).partition(is_internal);
        let Some(first) = open.first() else {
            return match (network, internal.first()) {
                (_, Some(port)) => refuse(format_args!(
                    "publish {spec} for {ns}: network {} is internal, so nothing comes in; attach {ns} to another network",
                    port.network
                )),
                (None, None) => refuse(format_args!(
                    "publish {spec} for {ns}: it is in no network; `nsnet attach NETWORK {ns}` puts it into one"
                )),
                (Some(name), None) => refuse(format_args!(
                    "publish {spec} for {ns}: it is not in network {name}; `nsnet attach {name} {ns}` puts it there"
                )),
            };
        };
        let first = first.network.clone();
        let has_family = |port: &&Attachment| !targets(&port.ips, spec.host_ip()).is_empty();
        match (open.iter().copied().find(has_family), spec.host_ip()) {
            (Some(port), _) => Ok(port),
            (None, ip) => {
                let family = if ip.is_none_or(|ip| ip.is_ipv4()) { "IPv4" } else { "IPv6" };
                refuse(format_args!(
                    "publish {spec} for {ns}: it has no {family} address in network {first}; \
                     publish on an address of the other family"
                ))
            }
        }
    }

    /// Refuses ports that are published, or that a socket of the host's has.
    fn check_free(&self, ns: &Name, spec: &Spec, ips: &[IpAddr], ports: PortRange, host: &HostPorts<'_>) -> Result<()> {
        for ip in ips {
            if let Some((other, port)) = self.conflict(spec.protocol(), *ip, ports) {
                return refuse(format_args!(
                    "publish {spec} for {ns}: {}/{} is published for {} ({}); delete that first or choose another port",
                    endpoint(*ip, port),
                    spec.protocol(),
                    other.ns,
                    other.spec
                ));
            }
        }
        for ip in ips {
            if let Some(port) = (host.first_busy)(spec.protocol(), *ip, ports)? {
                return refuse(format_args!(
                    "publish {spec} for {ns}: {}/{} is in use by a socket of the host; stop it or choose another port",
                    endpoint(*ip, port),
                    spec.protocol()
                ));
            }
        }
        Ok(())
    }

    /// The lowest free ports of those that may be chosen, as many as the target has.
    fn choose_ports(&self, ns: &Name, spec: &Spec, ips: &[IpAddr], host: &HostPorts<'_>) -> Result<PortRange> {
        let among = spec.choice().unwrap_or(host.automatic);
        let mut first = among.first();
        while let Some(ports) = range_from(first, spec.target().count()).filter(|ports| ports.last() <= among.last()) {
            match self.first_taken(spec, ips, ports, host)? {
                None => return Ok(ports),
                Some(taken) => match taken.checked_add(1) {
                    Some(next) => first = next,
                    None => break,
                },
            }
        }
        let ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
        refuse(format_args!(
            "publish {spec} for {ns}: of ports {among}, {} {} not free on {}; delete a publish or choose other ports",
            spec.target().count(),
            if spec.target().count() == 1 { "is" } else { "in a row are" },
            ips.join(" and ")
        ))
    }

    /// A port of `ports` that cannot be chosen; none before it in a row can hold one that can.
    fn first_taken(&self, spec: &Spec, ips: &[IpAddr], ports: PortRange, host: &HostPorts<'_>) -> Result<Option<u16>> {
        if spec.choice().is_none()
            && let Some(reserved) = ports.ports().find(|port| host.reserved.contains(*port))
        {
            return Ok(Some(reserved));
        }
        for ip in ips {
            if let Some((_, port)) = self.conflict(spec.protocol(), *ip, ports) {
                return Ok(Some(port));
            }
            if let Some(port) = (host.first_busy)(spec.protocol(), *ip, ports)? {
                return Ok(Some(port));
            }
        }
        Ok(None)
    }

    /// What is published of these ports, and the first such port. As the kernel's bind has it: an address meets itself
    /// and "all addresses", and the families do not meet.
    fn conflict(&self, protocol: Protocol, ip: IpAddr, ports: PortRange) -> Option<(&Publish, u16)> {
        let meets = |other: IpAddr| {
            other.is_ipv4() == ip.is_ipv4() && (other == ip || other.is_unspecified() || ip.is_unspecified())
        };
        let other = self.publishes.iter().find(|other| {
            other.host().overlaps(ports) && other.spec.protocol() == protocol && other.host_ips().any(meets)
        })?;
        Some((other, other.host().first().max(ports.first())))
    }

    fn check_room(&self, publish: &Publish) -> Result<()> {
        let taken: usize = self.publishes.iter().map(Publish::prefixes).sum();
        if taken + publish.prefixes() > MAX_PUBLISHED_PREFIXES as usize { self.no_room(publish) } else { Ok(()) }
    }

    fn no_room<T>(&self, publish: &Publish) -> Result<T> {
        refuse(format_args!(
            "publish {} for {}: the table of published ports is full with {}; delete one first",
            publish.asked,
            publish.ns,
            self.publishes.len()
        ))
    }

    /// Places that nobody has, lowest first. 0 is none: a flow that was made for no published port has it.
    fn free_places(&self) -> impl Iterator<Item = u16> + use<> {
        let mut taken = vec![false; MAX_PUBLISHES as usize];
        for entry in self.publishes.iter().flat_map(|publish| &publish.entries) {
            if let Some(slot) = taken.get_mut(usize::from(entry.place)) {
                *slot = true;
            }
        }
        (1..MAX_PUBLISHES as u16).filter(move |place| !taken[usize::from(*place)])
    }
}

/// The first address of each family, or of that of `like`.
fn targets(ips: &[IpAddr], like: Option<IpAddr>) -> Vec<IpAddr> {
    let wanted = [true, false].into_iter().filter(|v4| like.is_none_or(|like| like.is_ipv4() == *v4));
    wanted.filter_map(|v4| ips.iter().copied().find(|ip| ip.is_ipv4() == v4)).collect()
}

fn range_from(first: u16, count: u32) -> Option<PortRange> {
    let last = u32::from(first) + count - 1;
    PortRange::new(first, u16::try_from(last).ok()?)
}

fn prefixes(ports: PortRange) -> usize {
    port_prefixes(ports.first(), ports.last()).count()
}

/// Refuses an address of the host's that is none, or that others cannot reach it by.
fn check_host_ip(ns: &Name, spec: &Spec, addresses: &[IpAddr]) -> Result<()> {
    let Some(ip) = spec.host_ip() else { return Ok(()) };
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    if is_link_local || is_broadcast || ip.is_multicast() {
        let kind = if is_link_local { "link-local" } else { "group" };
        return refuse(format_args!(
            "publish {spec} for {ns}: {ip} is a {kind} address; choose another address of the host's"
        ));
    }
    // 127.0.0.1/8 makes all of 127.0.0.0/8 the host's.
    let is_same = |own: &IpAddr| *own == ip || (own.is_loopback() && ip.is_loopback() && own.is_ipv4() == ip.is_ipv4());
    if ip.is_unspecified() || addresses.iter().any(is_same) {
        return Ok(());
    }
    refuse(format_args!(
        "publish {spec} for {ns}: the host does not have the address {ip}; give it to an interface or choose another"
    ))
}

#[cfg(test)]
mod tests;
