//! The interfaces that frames are seen at: by index, with whom they belong to.

use std::collections::HashMap;
use std::fmt;

use nsnet_common::layout::PortId;

use crate::model::name::Name;
use crate::model::state::State;
use crate::model::{Result, refuse};

/// An interface of the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The port that it is.
    pub port: PortId,
    /// The namespace behind it; `None` for the host's own and for an uplink.
    pub ns: Option<Name>,
    /// The network that it is in; `None` for an uplink.
    pub network: Option<Name>,
}

impl fmt::Display for Interface {
    /// Whose it is, in words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.ns, &self.network) {
            (Some(ns), Some(network)) => write!(f, "namespace {ns} in network {network}"),
            (None, Some(network)) => write!(f, "the host in network {network}"),
            (_, None) => f.write_str("uplink"),
        }
    }
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct Interfaces {
    by_index: HashMap<u32, Interface>,
    indexes: HashMap<PortId, u32>,
}

impl Interfaces {
    /// Those of a state.
    pub fn of(state: &State) -> Self {
        let ports = state.members().into_iter().map(|member| {
            let (name, ns) = (member.interface.to_owned(), member.ns.cloned());
            let network = Some(member.network.name.clone());
            (member.port.ifindex(), Interface { name, port: member.port, ns, network })
        });
        let uplinks = state.uplinks.iter().map(|uplink| {
            let (name, port) = (uplink.interface.clone(), uplink.port());
            (uplink.ifindex, Interface { name, port, ns: None, network: None })
        });
        let by_index: HashMap<u32, Interface> = ports.chain(uplinks).collect();
        Self { indexes: by_index.iter().map(|(index, interface)| (interface.port, *index)).collect(), by_index }
    }

    /// The interface with this index.
    pub fn get(&self, index: u32) -> Option<&Interface> {
        self.by_index.get(&index)
    }

    /// The index of a port's interface.
    pub fn index_of(&self, port: PortId) -> Option<u32> {
        self.indexes.get(&port).copied()
    }

    /// Its name; its number, for one that is gone.
    pub fn name(&self, index: u32) -> String {
        match (self.get(index), PortId::from_ifindex(index)) {
            (Some(interface), _) => interface.name.clone(),
            (None, PortId::NONE) => format!("interface-{index}"),
            (None, port) => format!("port-{}", port.0),
        }
    }

    /// Its name, and the namespace behind it.
    pub fn label(&self, index: u32) -> String {
        match self.get(index).and_then(|interface| interface.ns.as_ref()) {
            Some(ns) => format!("{} ({ns})", self.name(index)),
            None => self.name(index),
        }
    }

    /// The indexes of those that belong to `ns` and to `network`, as far as these are said.
    pub fn chosen(&self, ns: Option<&Name>, network: Option<&Name>) -> Result<Vec<u32>> {
        let is_known = |wanted: Option<&Name>, of: fn(&Interface) -> Option<&Name>| {
            wanted.is_none_or(|name| self.by_index.values().any(|interface| of(interface) == Some(name)))
        };
        if let Some(name) = network.filter(|_| !is_known(network, |interface| interface.network.as_ref())) {
            return refuse(format_args!("there is no network {name}; `nsnet network list` lists them"));
        }
        if let Some(name) = ns.filter(|_| !is_known(ns, |interface| interface.ns.as_ref())) {
            return refuse(format_args!("namespace {name} is in no network; `nsnet network show` tells who is"));
        }
        let is_meant = |interface: &Interface| {
            ns.is_none_or(|ns| interface.ns.as_ref() == Some(ns))
                && network.is_none_or(|network| interface.network.as_ref() == Some(network))
        };
        let chosen: Vec<u32> =
            self.by_index.iter().filter(|(_, interface)| is_meant(interface)).map(|(index, _)| *index).collect();
        match (ns, network) {
            (Some(ns), Some(network)) if chosen.is_empty() => {
                refuse(format_args!("namespace {ns} is not in network {network}"))
            }
            _ => Ok(chosen),
        }
    }
}
