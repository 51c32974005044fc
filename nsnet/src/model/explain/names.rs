//! What people call what the dataplane knows by numbers.

use std::collections::HashMap;

use nsnet_common::layout::{NetworkId, PortId};

use crate::model::state::State;

/// Names of ports, networks, interfaces and published ports.
#[derive(Clone, Debug, Default)]
pub struct Names {
    ports: HashMap<PortId, String>,
    networks: HashMap<NetworkId, String>,
    interfaces: HashMap<u32, String>,
    published: HashMap<u32, String>,
}

impl Names {
    /// The names in `state`, and of the host's interfaces by their index.
    pub fn of(state: &State, interfaces: impl IntoIterator<Item = (u32, String)>) -> Self {
        let of_members = state.members().into_iter().map(|member| {
            let who = member.ns.map_or("the host", |ns| ns.as_str());
            (member.port, format!("{} ({who})", member.interface))
        });
        let of_uplinks = state.uplinks.iter().map(|uplink| (uplink.port(), format!("{} (uplink)", uplink.interface)));
        let published = state.publishes.iter().flat_map(|publish| {
            let name = format!("{} for {}", publish.spec, publish.ns);
            publish.entries.iter().map(move |entry| (u32::from(entry.place), name.clone()))
        });
        Self {
            ports: of_members.chain(of_uplinks).collect(),
            networks: state.networks.values().map(|network| (network.id(), network.name.to_string())).collect(),
            interfaces: interfaces.into_iter().collect(),
            published: published.collect(),
        }
    }

    /// A port: its interface, and whose it is.
    pub fn port(&self, id: PortId) -> String {
        match self.ports.get(&id) {
            Some(name) => name.clone(),
            None if id == PortId::NONE => "no port".to_owned(),
            None => format!("port {}", id.0),
        }
    }

    /// A network.
    pub fn network(&self, id: NetworkId) -> String {
        match self.networks.get(&id) {
            Some(name) => name.clone(),
            None if id == NetworkId::OUTSIDE => "outside".to_owned(),
            None => format!("network {}", id.0),
        }
    }

    /// An interface of the host's; of a port, as [`Names::port`] has it.
    pub fn interface(&self, index: u32) -> String {
        match (PortId::from_ifindex(index), self.interfaces.get(&index)) {
            (PortId::NONE, Some(name)) => name.clone(),
            (PortId::NONE, None) => format!("interface {index}"),
            (port, _) => self.port(port),
        }
    }

    /// What is published at a place.
    pub fn published(&self, place: u32) -> String {
        self.published.get(&place).cloned().unwrap_or_else(|| format!("place {place}"))
    }
}
