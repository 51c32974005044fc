//! The desired state of one host, as it is kept in its file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use nsnet_common::layout::{MAX_NETWORKS, MAX_PORTS, NetworkId, PortId, flags, port_mac};
use nsnet_common::wire::{IpAddress, Mac};
use serde::{Deserialize, Serialize};

use super::mode::Modes;
use super::name::Name;
use super::policy::Outside;
use super::ports::PortSet;
use super::publish::Publish;
use super::uplink::Uplink;
use super::{Result, refuse};

/// Everything that is to exist on one host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Namespaces we know.
    #[serde(default)]
    pub namespaces: BTreeMap<Name, Namespace>,
    /// Networks.
    #[serde(default)]
    pub networks: BTreeMap<Name, Network>,
    /// Which namespace is in which network.
    #[serde(default)]
    pub attachments: Vec<Attachment>,
    /// Cables between two namespaces.
    #[serde(default)]
    pub cables: Vec<Cable>,
    /// Routes in namespaces.
    #[serde(default)]
    pub routes: Vec<Route>,
    /// Interfaces of the host by which packets leave.
    #[serde(default)]
    pub uplinks: Vec<Uplink>,
    /// Published ports.
    #[serde(default)]
    pub publishes: Vec<Publish>,
    /// Grows with every entry of a published port, and tells it from what had its place before.
    #[serde(default)]
    pub publish_epoch: u16,
    /// What `net.ipv4.ip_local_reserved_ports` had before we added to it; none while nothing of ours is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reserved_before: Option<PortSet>,
    /// Grows with every port that is made, and is the last byte of its MAC: a port id that is used again gets another
    /// MAC, so that no neighbour takes the new port for the old.
    #[serde(default)]
    pub generation: u8,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Namespace {
    /// Whether we made it, and so may delete it. A foreign one was adopted.
    pub made: bool,
}

/// A network: subnets, and the host's own port in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Its name, which is also the name of the host's interface.
    pub name: Name,
    /// Its number in the dataplane.
    pub id: u16,
    /// The number of the host's port.
    pub port: u16,
    /// MAC of the host's interface: that of the gateway, for as long as the network lives.
    #[serde(with = "mac_text")]
    pub mac: Mac,
    /// Subnets, each with the host's address in it.
    pub subnets: Vec<Subnet>,
    /// Longest packet, bytes without the Ethernet header.
    pub mtu: u16,
    /// What its namespaces may do beyond it.
    #[serde(default)]
    pub outside: Outside,
    /// Where its frames are forwarded.
    #[serde(default, skip_serializing_if = "Modes::are_default")]
    pub modes: Modes,
}

/// A subnet and the host's address in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// The prefix.
    pub net: IpNet,
    /// The host's address.
    pub gateway: IpAddr,
}

/// A namespace in a network: a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// The network.
    pub network: Name,
    /// The namespace.
    pub ns: Name,
    /// The port's number in the dataplane.
    pub port: u16,
    /// MAC of the interface in the namespace.
    #[serde(with = "mac_text")]
    pub mac: Mac,
    /// Whether the user chose the MAC.
    #[serde(default)]
    pub mac_given: bool,
    /// Addresses, in the order given; the first of each family is the port's own in the fast path.
    pub ips: Vec<IpAddr>,
    /// The interface in the namespace.
    pub inner: String,
    /// Its end in the host.
    pub outer: String,
    /// Whether foreign MACs are learned here.
    #[serde(default)]
    pub learn: bool,
    /// Whether senders go unchecked.
    #[serde(default)]
    pub trusted: bool,
    /// Whether nothing passes between it and others that are isolated.
    #[serde(default)]
    pub isolated: bool,
}

/// A veth pair between two namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cable {
    /// One end.
    pub a: CableEnd,
    /// The other.
    pub b: CableEnd,
}

/// One end of a cable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CableEnd {
    /// The namespace.
    pub ns: Name,
    /// The interface there.
    pub interface: String,
    /// Its address and prefix.
    pub address: Option<IpNet>,
}

/// A route in a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The namespace.
    pub ns: Name,
    /// What it leads to; 0.0.0.0/0 and ::/0 are the default routes.
    pub dest: IpNet,
    /// The next hop.
    pub via: IpAddr,
}

impl Network {
    /// Its number in the dataplane.
    pub fn id(&self) -> NetworkId {
        NetworkId(self.id)
    }

    /// The number of the host's port.
    pub fn port(&self) -> PortId {
        PortId(self.port)
    }

    /// The subnet that holds `ip`.
    pub fn subnet_of(&self, ip: IpAddr) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.net.contains(&ip))
    }

    /// Whether IPv6 is asked for.
    pub fn has_ipv6(&self) -> bool {
        self.subnets.iter().any(|subnet| subnet.net.addr().is_ipv6())
    }

    /// The host's addresses.
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.subnets.iter().map(|subnet| subnet.gateway).collect()
    }

    /// Addresses of one of its ports, with the link-local one that a kernel makes of the MAC.
    pub fn with_link_local(&self, ips: &[IpAddr], mac: Mac) -> Vec<IpAddr> {
        let link_local = self.has_ipv6().then(|| IpAddress::link_local_of(mac).into());
        ips.iter().copied().chain(link_local).collect()
    }

    /// Whether frames of its namespaces' ports go by XDP.
    pub fn is_accelerated(&self) -> bool {
        self.modes.accelerate_ports()
    }

    /// The flags that all its ports have.
    pub fn port_flags(&self) -> u16 {
        if self.has_ipv6() { flags::IPV6 } else { 0 }
    }
}

/// One port of a network, the host's or a namespace's.
#[derive(Clone, Debug)]
pub struct Member<'a> {
    /// The network.
    pub network: &'a Network,
    /// The namespace; `None` for the host's port.
    pub ns: Option<&'a Name>,
    /// The port's number in the dataplane.
    pub port: PortId,
    /// Its MAC.
    pub mac: Mac,
    /// Its interface in the host.
    pub interface: &'a str,
    /// Its addresses, with the link-local one.
    pub ips: Vec<IpAddr>,
}

impl Attachment {
    /// The port's number in the dataplane.
    pub fn port(&self) -> PortId {
        PortId(self.port)
    }
}

impl State {
    /// Whether nothing is to exist. What tells new objects from old ones does not count.
    pub fn is_empty(&self) -> bool {
        Self { generation: 0, publish_epoch: 0, ..self.clone() } == Self::default()
    }

    /// The network `name`.
    pub fn network(&self, name: &Name) -> Result<&Network> {
        match self.networks.get(name) {
            Some(network) => Ok(network),
            None => refuse(format_args!("no network {name}; `nsnet network add {name} --subnet CIDR` makes it")),
        }
    }

    /// The attachment of `ns` to `network`.
    pub fn attachment(&self, network: &Name, ns: &Name) -> Option<&Attachment> {
        self.attachments.iter().find(|attachment| attachment.network == *network && attachment.ns == *ns)
    }

    /// The cable between two namespaces, whichever was named first.
    pub fn cable(&self, one: &Name, other: &Name) -> Option<&Cable> {
        self.cables
            .iter()
            .find(|cable| (cable.a.ns == *one && cable.b.ns == *other) || (cable.a.ns == *other && cable.b.ns == *one))
    }

    /// Every namespace that is known or used.
    pub fn used_namespaces(&self) -> BTreeSet<&Name> {
        let ports = self.attachments.iter().map(|port| &port.ns);
        let ends = self.cables.iter().flat_map(|cable| [&cable.a.ns, &cable.b.ns]);
        self.namespaces.keys().chain(ports).chain(ends).chain(self.routes.iter().map(|route| &route.ns)).collect()
    }

    /// Whether an interface `name` of ours is in `ns` already.
    pub fn has_interface(&self, ns: &Name, name: &str) -> bool {
        self.attachments.iter().any(|port| port.ns == *ns && port.inner == name)
            || self
                .cables
                .iter()
                .flat_map(|cable| [&cable.a, &cable.b])
                .any(|end| end.ns == *ns && end.interface == name)
    }

    /// Every port, the host's first in each network.
    pub fn members(&self) -> Vec<Member<'_>> {
        let of_network = |network| {
            let of_host = Member {
                network,
                ns: None,
                port: network.port(),
                mac: network.mac,
                interface: network.name.as_str(),
                ips: network.with_link_local(&network.gateways(), network.mac),
            };
            let ports = self.attachments.iter().filter(|port| port.network == network.name);
            let of_namespaces = ports.map(|port| Member {
                network,
                ns: Some(&port.ns),
                port: port.port(),
                mac: port.mac,
                interface: &port.outer,
                ips: network.with_link_local(&port.ips, port.mac),
            });
            [of_host].into_iter().chain(of_namespaces.collect::<Vec<_>>())
        };
        self.networks.values().flat_map(of_network).collect()
    }

    /// A port number that nobody has.
    pub(crate) fn free_port(&self) -> Result<PortId> {
        let mut taken = vec![false; MAX_PORTS as usize];
        let ports = self.networks.values().map(|network| network.port);
        let ports = ports.chain(self.attachments.iter().map(|attachment| attachment.port));
        for port in ports.chain(self.uplinks.iter().map(|uplink| uplink.port)) {
            taken[usize::from(port)] = true;
        }
        // The last number is nobody's: in its place the dataplane counts all flows with IPv6.
        match (1..taken.len() - 1).find(|port| !taken[*port]) {
            Some(port) => Ok(PortId(port as u16)),
            None => refuse(format_args!("all {} ports of this host are in use; detach one first", MAX_PORTS - 2)),
        }
    }

    /// A network number that nobody has.
    pub(crate) fn free_network(&self) -> Result<NetworkId> {
        let is_free = |id: &u16| self.networks.values().all(|network| network.id != *id);
        match (1..MAX_NETWORKS as u16).find(is_free) {
            Some(id) => Ok(NetworkId(id)),
            None => refuse(format_args!("all {} networks of this host are in use; delete one first", MAX_NETWORKS - 1)),
        }
    }

    /// A MAC for a port that is being made.
    pub(crate) fn next_mac(&mut self, network: NetworkId, port: PortId) -> Mac {
        self.generation = self.generation.wrapping_add(1);
        port_mac(network, port, self.generation)
    }
}

/// A MAC is kept as text, as people write it.
pub mod mac_text {
    use nsnet_common::wire::Mac;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(in crate::model) fn serialize<S: Serializer>(mac: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(mac)
    }

    pub(in crate::model) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }

    /// Six pairs of hexadecimal digits, separated by colons.
    pub fn parse(text: &str) -> Result<Mac, String> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()));
            let value = part.and_then(|part| u8::from_str_radix(part, 16).ok());
            *byte = value.ok_or("a MAC is six pairs of hexadecimal digits, such as 02:00:00:00:00:01")?;
        }
        if parts.next().is_some() {
            return Err("a MAC has six bytes".to_owned());
        }
        Ok(Mac(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_there_and_back() {
        let text = r#"{"networks":{"v-net-0":{"name":"v-net-0","id":1,"port":1,"mac":"02:00:01:00:01:07",
            "subnets":[{"net":"192.168.15.0/24","gateway":"192.168.15.5"}],"mtu":1500}}}"#;
        let state: State = serde_json::from_str(text).unwrap();
        let again: State = serde_json::from_str(&serde_json::to_string(&state).unwrap()).unwrap();
        assert_eq!(state, again);
        assert_eq!(state.networks.values().next().unwrap().mac, Mac([2, 0, 1, 0, 1, 7]));
        assert_eq!(state.networks.values().next().unwrap().outside, Outside::default(), "of an older version");
        assert!(serde_json::from_str::<State>(r#"{"surprise":1}"#).is_err());
        assert!(serde_json::from_str::<State>(r#"{"namespaces":{"../x":{"made":true}}}"#).is_err());
    }

    #[test]
    fn macs() {
        assert_eq!(mac_text::parse("02:00:01:00:01:ff"), Ok(Mac([2, 0, 1, 0, 1, 255])));
        for bad in ["", "02", "02:00:01:00:01", "02:00:01:00:01:ff:00", "2:0:1:0:1:f", "+2:00:01:00:01:00"] {
            assert!(mac_text::parse(bad).is_err(), "{bad}");
        }
    }
}
