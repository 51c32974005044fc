//! What differs between what should be and what is, in plain values: found by `kernel::observe`, put right by a plan.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use nsnet_common::wire::Mac;
use serde::{Deserialize, Serialize};

use super::name::Name;
use super::publish::Publish;
use super::spec::Spec;
use super::state::{Attachment, Cable, Network, Route, mac_text};
use super::uplink::Uplink;

/// What can be there, or not, or otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Object {
    /// A namespace.
    Namespace(Name),
    /// Programs and maps.
    Dataplane,
    /// The program on an interface that leads out.
    Uplink(String),
    /// The ports that the dataplane gives to flows.
    Pools,
    /// The ports that the kernel is to give to no socket unasked.
    ReservedPorts,
    /// The addresses of the host that the dataplane knows.
    Locals,
    /// A network: its interface in the host, and its entries.
    Network(Name),
    /// A port: a veth pair, its program, its addresses, its entries.
    Attachment {
        /// The network.
        network: Name,
        /// The namespace.
        ns: Name,
    },
    /// A cable.
    Cable {
        /// The namespace of one end.
        a: Name,
        /// That of the other.
        b: Name,
    },
    /// A route in a namespace.
    Route {
        /// The namespace.
        ns: Name,
        /// Where it leads.
        dest: IpNet,
    },
    /// A published port or range.
    Publish {
        /// The namespace.
        ns: Name,
        /// What is published, with the host's ports decided.
        spec: Spec,
    },
    /// Something of the host's that we need and do not make: an interface, an address.
    OfHost(String),
    /// Something of ours that nobody asks for.
    Stray(Stray),
}

/// A leftover: an entry, a pin or an interface that belongs to nothing in the state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stray {
    /// A port in `PORTS`.
    Port(u16),
    /// An owner of an address in `ADDRESSES`.
    Address {
        /// The network's number.
        network: u16,
        /// The address.
        ip: IpAddr,
    },
    /// A fixed MAC in `STATIONS`.
    Station {
        /// The network's number.
        network: u16,
        /// The MAC.
        #[serde(with = "mac_text")]
        mac: Mac,
    },
    /// A prefix in `SUBNETS`.
    Subnet(IpNet),
    /// What a network that is not there may do, in `POLICIES`.
    Policy(u16),
    /// An interface index in `UPLINKS`.
    Uplink(u32),
    /// A place in `PUBLISHES`.
    Publish(u16),
    /// A prefix of ports in `PUBLISHED`.
    Published {
        /// The protocol's number.
        protocol: u8,
        /// The host's address.
        ip: IpAddr,
        /// The first port.
        port: u16,
        /// Length of the prefix, in bits of the key.
        bits: u32,
    },
    /// The pinned link of a port.
    Link(u16),
    /// An interface with the index of a port.
    Interface {
        /// Its index.
        index: u32,
        /// Its name.
        name: String,
    },
}

/// One thing that is another than it should be. "Missing" is neither.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What differs: "MTU of veth-red".
    pub what: String,
    /// Its value; `None` when there is none.
    pub is: Option<String>,
    /// The value that it should have; `None` when there should be none, or when being there is all.
    pub should: Option<String>,
}

/// An object, and all that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// Which.
    pub object: Object,
    /// At least one.
    pub differences: Vec<Difference>,
}

impl Object {
    /// The object that an attachment is.
    pub fn attachment(port: &Attachment) -> Self {
        Self::Attachment { network: port.network.clone(), ns: port.ns.clone() }
    }

    /// The object that a network is.
    pub fn network(network: &Network) -> Self {
        Self::Network(network.name.clone())
    }

    /// The object that an uplink is.
    pub fn uplink(uplink: &Uplink) -> Self {
        Self::Uplink(uplink.interface.clone())
    }

    /// The object that a cable is.
    pub fn cable(cable: &Cable) -> Self {
        Self::Cable { a: cable.a.ns.clone(), b: cable.b.ns.clone() }
    }

    /// The object that a route is.
    pub fn route(route: &Route) -> Self {
        Self::Route { ns: route.ns.clone(), dest: route.dest }
    }

    /// The object that a published port is.
    pub fn publish(publish: &Publish) -> Self {
        Self::Publish { ns: publish.ns.clone(), spec: publish.spec.clone() }
    }
}

impl Difference {
    /// Something that is not there.
    pub fn missing(what: impl fmt::Display) -> Self {
        Self { what: what.to_string(), is: None, should: None }
    }

    /// Something that is not there, with the value that it should have.
    pub fn lacks(what: impl fmt::Display, should: impl fmt::Display) -> Self {
        Self { what: what.to_string(), is: None, should: Some(should.to_string()) }
    }

    /// Something that should not be there.
    pub fn extra(what: impl fmt::Display, is: impl fmt::Display) -> Self {
        Self { what: what.to_string(), is: Some(is.to_string()), should: None }
    }

    /// Something that has another value.
    pub fn other(what: impl fmt::Display, is: impl fmt::Display, should: impl fmt::Display) -> Self {
        Self { what: what.to_string(), is: Some(is.to_string()), should: Some(should.to_string()) }
    }

    /// The same when the values differ, and nothing when they do not.
    pub fn between<T: PartialEq + fmt::Display>(what: impl fmt::Display, is: &T, should: &T) -> Option<Self> {
        (is != should).then(|| Self::other(what, is, should))
    }
}

/// A sentence: "MTU of veth-red is 1000, not 1500".
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { what, is: None, should: None } => write!(f, "{what} is missing"),
            Self { what, is: None, should: Some(should) } => write!(f, "{what} {should} is missing"),
            Self { what, is: Some(is), should: None } => write!(f, "{what} {is} should not be there"),
            Self { what, is: Some(is), should: Some(should) } => write!(f, "{what} is {is}, not {should}"),
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(name) => write!(f, "namespace {name}"),
            Self::Dataplane => write!(f, "dataplane"),
            Self::Uplink(interface) => write!(f, "uplink {interface}"),
            Self::Pools => write!(f, "ports of flows"),
            Self::ReservedPorts => write!(f, "reserved ports"),
            Self::Locals => write!(f, "addresses of the host"),
            Self::Network(name) => write!(f, "network {name}"),
            Self::Attachment { network, ns } => write!(f, "attachment {ns} to {network}"),
            Self::Cable { a, b } => write!(f, "cable {a}-{b}"),
            Self::Route { ns, dest } => write!(f, "route {dest} in {ns}"),
            Self::Publish { ns, spec } => write!(f, "publish {spec} for {ns}"),
            Self::OfHost(what) => write!(f, "host's {what}"),
            Self::Stray(stray) => write!(f, "leftover {stray}"),
        }
    }
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "port {port}"),
            Self::Address { network, ip } => write!(f, "address {ip} of network {network}"),
            Self::Station { network, mac } => write!(f, "MAC {mac} of network {network}"),
            Self::Subnet(net) => write!(f, "subnet {net}"),
            Self::Policy(network) => write!(f, "policy of network {network}"),
            Self::Uplink(index) => write!(f, "uplink with index {index}"),
            Self::Publish(place) => write!(f, "published port at place {place}"),
            Self::Published { protocol, ip, port, bits } => {
                write!(f, "entry for port {port} of {ip}, protocol {protocol}, {bits} bits")
            }
            Self::Link(port) => write!(f, "link of port {port}"),
            Self::Interface { name, .. } => write!(f, "interface {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences() {
        assert_eq!(Difference::missing("interface veth-red").to_string(), "interface veth-red is missing");
        assert_eq!(Difference::lacks("address", "10.0.0.1").to_string(), "address 10.0.0.1 is missing");
        assert_eq!(Difference::extra("address", "10.0.0.1").to_string(), "address 10.0.0.1 should not be there");
        assert_eq!(Difference::between("MTU", &1000, &1500).unwrap().to_string(), "MTU is 1000, not 1500");
        assert_eq!(Difference::between("MTU", &1500, &1500), None);
    }
}
