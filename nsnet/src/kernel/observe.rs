//! What is really there, against what should be.

mod interfaces;

use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use nsnet_common::layout::{Port, PortId};

use super::dataplane::Hook;
use super::error::Result;
use super::host::Host;
use super::members::PortEntry;
use super::netlink::Netlink;
use super::netns::NetNs;
use super::publish::PublishMaps;
use super::route::Route as KernelRoute;
use super::steps::{Overlap, entry, host_entry, overlap, with_prefix};
use super::{policy, reserved, sockets, stages, strays, uplink, xdp};
use crate::model::drift::{Difference, Drift, Object};
use crate::model::name::{Name, unused_end};
use crate::model::state::{Attachment, Cable, CableEnd, Network, Route, State};
use interfaces::{Expected, Interfaces};

/// What is looked at.
#[derive(Clone, Debug)]
pub enum Scope {
    /// Nothing: the kernel is thought to be as it was left.
    Nothing,
    /// These objects, as far as they are in the state, or left over beside it.
    These(HashSet<Object>),
    /// All that is in the state, and what is left over beside it.
    Everything,
}

impl Scope {
    /// These objects.
    pub fn these(objects: impl IntoIterator<Item = Object>) -> Self {
        Self::These(objects.into_iter().collect())
    }

    /// Whether it has something that is left over.
    fn has_strays(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::These(objects) => objects.iter().any(|object| matches!(object, Object::Stray(_))),
            Self::Everything => true,
        }
    }

    fn has(&self, object: &Object) -> bool {
        match self {
            Self::Nothing => false,
            Self::These(objects) => objects.contains(object),
            Self::Everything => true,
        }
    }
}

/// Every difference between the kernel and what `state` has of `scope`, in the order in which things stand on others.
pub fn drift(host: &Host, state: &State, scope: &Scope) -> Result<Vec<Drift>> {
    if matches!(scope, Scope::Nothing) {
        return Ok(Vec::new());
    }
    let missing = host.dataplane.missing_pins()?;
    let mut look = Look {
        host,
        scope,
        is_whole: missing.is_empty(),
        of_host: OnceCell::new(),
        namespaces: RefCell::default(),
        found: Vec::new(),
    };
    for name in state.used_namespaces() {
        look.at(Object::Namespace(name.clone()), |_look| namespace(name))?;
    }
    look.at(Object::Dataplane, |look| look.dataplane(state, &missing))?;
    look.at_host(state)?;
    for network in state.networks.values() {
        look.at(Object::network(network), |look| look.network(network))?;
    }
    for port in &state.attachments {
        if let Some(network) = state.networks.get(&port.network) {
            look.at(Object::attachment(port), |look| look.attachment(port, network))?;
        }
    }
    for cable in &state.cables {
        look.at(Object::cable(cable), |look| look.cable(cable))?;
    }
    for route in &state.routes {
        look.at(Object::route(route), |look| look.route(route))?;
    }
    look.at_publishes(state)?;
    if scope.has_strays() {
        for (stray, difference) in strays::find(host, state, look.is_whole)? {
            look.at(Object::Stray(stray), |_look| Ok(vec![difference]))?;
        }
    }
    Ok(look.found)
}

/// A look at the kernel: what several objects need of it is asked for once.
struct Look<'a> {
    host: &'a Host,
    scope: &'a Scope,
    /// Whether programs and maps are there. What belongs in them is missing otherwise.
    is_whole: bool,
    of_host: OnceCell<Interfaces>,
    namespaces: RefCell<HashMap<Name, Option<Rc<Inside>>>>,
    found: Vec<Drift>,
}

/// What there is in a namespace.
struct Inside {
    interfaces: Interfaces,
    routes: Vec<KernelRoute>,
}

impl Look<'_> {
    /// Looks at an object, if it is in scope.
    fn at(&mut self, object: Object, differences: impl FnOnce(&Self) -> Result<Vec<Difference>>) -> Result<()> {
        if self.scope.has(&object) {
            let differences = differences(self)?;
            if !differences.is_empty() {
                self.found.push(Drift { object, differences });
            }
        }
        Ok(())
    }

    /// What concerns the host as a whole.
    fn at_host(&mut self, state: &State) -> Result<()> {
        let host = self.host;
        self.at(Object::ReservedPorts, |_look| {
            let lost = reserved::missing(&state.reserved_ports())?;
            let what = "net.ipv4.ip_local_reserved_ports entry";
            Ok((!lost.is_empty()).then(|| Difference::lacks(what, lost)).into_iter().collect())
        })?;
        for uplink in &state.uplinks {
            self.at(Object::uplink(uplink), |look| {
                if look.is_whole { uplink::differences(host, uplink) } else { Ok(vec![lost_with_the_dataplane()]) }
            })?;
        }
        for name in state.networks.values().filter_map(|network| network.outside.uplink.as_ref()?.name()) {
            self.at(Object::OfHost(format!("interface {name}")), |look| {
                let is_there = look.of_host()?.has(name);
                Ok((!is_there).then(|| Difference::missing("an uplink that a network names")).into_iter().collect())
            })?;
        }
        self.overlaps(state)?;
        if self.is_whole {
            self.at(Object::Pools, |_look| policy::pool_differences(host, state))?;
            self.at(Object::Locals, |_look| sockets::local_differences(host))?;
        } else if !state.pools().is_empty() {
            self.at(Object::Pools, |_look| Ok(vec![lost_with_the_dataplane()]))?;
        }
        Ok(())
    }

    /// What the host has come to reach otherwise since a network was made, which was checked then.
    fn overlaps(&mut self, state: &State) -> Result<()> {
        if state.networks.is_empty() {
            return Ok(());
        }
        let (addresses, routes) = (self.host.netlink.all_addresses()?, self.host.netlink.routes()?);
        for network in state.networks.values() {
            self.at(Object::OfHost(format!("way to network {}", network.name)), |_look| {
                let overlap = overlap(network, &addresses, &routes);
                let what =
                    |it: Overlap| Difference::extra(format_args!("overlap of subnet {} with", it.subnet), it.other);
                Ok(overlap.map(what).into_iter().collect())
            })?;
        }
        Ok(())
    }

    fn dataplane(&self, state: &State, missing: &[String]) -> Result<Vec<Difference>> {
        if state.networks.is_empty() {
            // Without any state, it is the file that is missing ([`Host::disorder`]).
            let is_there = !state.is_empty() && self.host.dataplane.loaded()?;
            return Ok(is_there.then(|| Difference::extra("programs", "without a network")).into_iter().collect());
        }
        if !self.host.dataplane.loaded()? {
            return Ok(vec![Difference::missing("every program and map")]);
        }
        if !missing.is_empty() {
            return Ok(missing.iter().map(|pin| Difference::lacks("pin", pin)).collect());
        }
        let mut found = stages::differences(&self.host.dataplane)?;
        if self.host.features.cgroup {
            let lost = self.host.dataplane.missing_socket_pins()?;
            found.extend(lost.iter().map(|pin| Difference::lacks("pin", pin)));
        }
        Ok(found)
    }

    fn network(&self, network: &Network) -> Result<Vec<Difference>> {
        let (name, end) = (network.name.as_str(), unused_end(&network.name));
        let addresses = network.subnets.iter().map(|subnet| with_prefix(subnet.gateway, &subnet.net));
        let interfaces = self.of_host()?;
        let mut found = interfaces.differences(&Expected {
            index: Some(network.port().ifindex()),
            peer: interfaces.index(&end),
            mac: Some(network.mac),
            mtu: Some(network.mtu),
            addresses: addresses.collect::<Result<_>>()?,
            ..Expected::named(name)
        });
        found.extend(interfaces.differences(&Expected { mtu: Some(network.mtu), ..Expected::named(&end) }));
        found.extend(policy::setting_differences(network)?);
        if !self.is_whole {
            found.push(lost_with_the_dataplane());
            return Ok(found);
        }
        found.extend(self.program(network.port(), name, Hook::Host)?);
        found.extend(policy::differences(self.host, network)?);
        let maps = self.host.maps();
        for subnet in &network.subnets {
            if maps.subnet(&subnet.net)? != Some(network.id()) {
                found.push(Difference::lacks("entry of subnet", subnet.net));
            }
        }
        if !maps.list_is_whole(network.id())? {
            found.push(Difference::other("list of ports in the dataplane", "broken", "whole"));
        }
        found.extend(self.entry(&host_entry(network))?);
        Ok(found)
    }

    fn attachment(&self, port: &Attachment, network: &Network) -> Result<Vec<Difference>> {
        let Some(inside) = self.inside(&port.ns)? else { return Ok(vec![Difference::missing("its namespace")]) };
        let of_host = self.of_host()?;
        let index = port.port().ifindex();
        let mut found = of_host.differences(&Expected {
            index: Some(index),
            peer: inside.interfaces.index(&port.inner),
            mtu: Some(network.mtu),
            ..Expected::named(&port.outer)
        });
        let addresses = port.ips.iter().filter_map(|ip| Some(with_prefix(*ip, &network.subnet_of(*ip)?.net)));
        found.extend(inside.interfaces.differences(&Expected {
            peer: Some(index),
            mac: Some(port.mac),
            mtu: Some(network.mtu),
            addresses: addresses.collect::<Result<_>>()?,
            ..Expected::named(&port.inner)
        }));
        if self.is_whole {
            found.extend(self.program(port.port(), &port.outer, Hook::Namespace)?);
            found.extend(self.entry(&entry(port, network))?);
            if let Some(ns) = NetNs::find(port.ns.as_str())?
                && found.is_empty()
            {
                let (wanted, program) = (network.is_accelerated(), of_host.xdp(&port.outer));
                found.extend(xdp::port::differences(self.host, port, wanted, program, &ns)?);
            }
        } else {
            found.push(lost_with_the_dataplane());
        }
        Ok(found)
    }

    fn program(&self, port: PortId, interface: &str, hook: Hook) -> Result<Vec<Difference>> {
        let Host { dataplane, netlink, .. } = self.host;
        let is_attached = dataplane.is_attached(netlink, port, interface, hook)?;
        let lost = (!is_attached).then(|| Difference::missing(format_args!("program on {interface}")));
        let is_closed = dataplane.is_closed(netlink, port, interface, hook)?;
        let open =
            (!is_closed).then(|| Difference::missing(format_args!("what closes {interface} behind its program")));
        Ok(lost.into_iter().chain(open).collect())
    }

    /// A port's entries.
    fn entry(&self, expected: &PortEntry) -> Result<Vec<Difference>> {
        let (maps, should) = (self.host.maps(), &expected.port);
        let mut found = Vec::new();
        match maps.port(should.id())? {
            None => found.push(Difference::missing("entry of the port")),
            Some(is) => found.extend(port_differences(&is, should)),
        }
        for (ip, owner) in maps.owners(should.network(), &expected.addresses)? {
            match owner {
                Some(owner) => {
                    found.extend(Difference::between(format_args!("port of address {ip}"), &owner.0, &should.id().0));
                }
                None => found.push(Difference::lacks("entry of address", ip)),
            }
        }
        if let Some(key) = expected.station()
            && !maps.station(&key)?.is_some_and(|station| station.is_fixed() && station.port() == should.id())
        {
            found.push(Difference::lacks("entry of MAC", key.mac));
        }
        Ok(found)
    }

    fn cable(&self, cable: &Cable) -> Result<Vec<Difference>> {
        let mut found = Vec::new();
        let ends = [(&cable.a, &cable.b), (&cable.b, &cable.a)];
        for (end, other) in ends {
            let Some(inside) = self.inside(&end.ns)? else {
                found.push(Difference::missing(format_args!("namespace {}", end.ns)));
                continue;
            };
            let peer =
                |end: &CableEnd| Ok(self.inside(&end.ns)?.and_then(|inside| inside.interfaces.index(&end.interface)));
            let expected = Expected {
                peer: peer(other)?,
                addresses: end.address.into_iter().collect(),
                ..Expected::named(&end.interface)
            };
            found.extend(inside.interfaces.differences(&expected));
        }
        Ok(found)
    }

    fn route(&self, route: &Route) -> Result<Vec<Difference>> {
        let Some(inside) = self.inside(&route.ns)? else { return Ok(vec![Difference::missing("its namespace")]) };
        let there: Vec<_> = inside.routes.iter().filter(|other| other.dest == route.dest).collect();
        if there.iter().any(|other| other.via == Some(route.via)) {
            return Ok(Vec::new());
        }
        let other = there.iter().find_map(|other| other.via);
        Ok(vec![match other {
            Some(via) => Difference::other("next hop", via, route.via),
            None => Difference::lacks("next hop", route.via),
        }])
    }

    fn at_publishes(&mut self, state: &State) -> Result<()> {
        if state.publishes.is_empty() {
            return Ok(());
        }
        let maps = if self.is_whole { Some(PublishMaps::of(&self.host.maps())?) } else { None };
        for publish in &state.publishes {
            self.at(Object::publish(publish), |_look| match &maps {
                Some(maps) => maps.differences(publish),
                None => Ok(vec![lost_with_the_dataplane()]),
            })?;
            let ip = publish.spec.host_ip().filter(|ip| !ip.is_unspecified() && !ip.is_loopback());
            if let Some(ip) = ip {
                self.at(Object::OfHost(format!("address {ip}")), |look| {
                    let what = format!("what {} is published at", publish.spec);
                    Ok((!look.of_host()?.have(ip)).then(|| Difference::missing(what)).into_iter().collect())
                })?;
            }
        }
        Ok(())
    }

    fn of_host(&self) -> Result<&Interfaces> {
        if let Some(known) = self.of_host.get() {
            return Ok(known);
        }
        let interfaces = Interfaces::of(&self.host.netlink)?;
        Ok(self.of_host.get_or_init(|| interfaces))
    }

    /// What there is in a namespace; `None` when that is gone.
    fn inside(&self, name: &Name) -> Result<Option<Rc<Inside>>> {
        if let Some(known) = self.namespaces.borrow().get(name) {
            return Ok(known.clone());
        }
        let inside = match NetNs::find(name.as_str())? {
            Some(ns) => {
                let netlink = Netlink::inside(&ns)?;
                Some(Rc::new(Inside { interfaces: Interfaces::of(&netlink)?, routes: netlink.routes()? }))
            }
            None => None,
        };
        self.namespaces.borrow_mut().insert(name.clone(), inside.clone());
        Ok(inside)
    }
}

fn namespace(name: &Name) -> Result<Vec<Difference>> {
    Ok(NetNs::find(name.as_str())?.is_none().then(|| Difference::missing("it")).into_iter().collect())
}

fn lost_with_the_dataplane() -> Difference {
    Difference::missing("what it has in the dataplane")
}

/// Where a port's entry is another.
pub(super) fn port_differences(is: &Port, should: &Port) -> Vec<Difference> {
    let flags = |port: &Port| format!("{:#06x}", port.flags());
    let ipv4 = |port: &Port| std::net::Ipv4Addr::from(port.ipv4());
    let ipv6 = |port: &Port| std::net::Ipv6Addr::from(port.ipv6());
    [
        Difference::between("MAC in the port's entry", &is.mac(), &should.mac()),
        Difference::between("MTU in the port's entry", &is.mtu(), &should.mtu()),
        Difference::between("network in the port's entry", &is.network().0, &should.network().0),
        Difference::between("interface in the port's entry", &is.ifindex(), &should.ifindex()),
        Difference::between("flags in the port's entry", &flags(is), &flags(should)),
        Difference::between("IPv4 address in the port's entry", &ipv4(is), &ipv4(should)),
        Difference::between("IPv6 address in the port's entry", &ipv6(is), &ipv6(should)),
    ]
    .into_iter()
    .flatten()
    .collect()
}
