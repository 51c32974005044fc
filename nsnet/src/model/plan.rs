//! From one state to another: the steps, in an order in which each can be done, each with its undo.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::name::Name;
use super::state::{Attachment, Cable, Network, Route, State};

/// One thing to do. Doing it where it is done already, or half done, is harmless.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Make a namespace.
    AddNamespace(Name),
    /// Delete a namespace that we made.
    DeleteNamespace(Name),
    /// Load and pin the programs.
    LoadDataplane,
    /// Remove programs, maps and links.
    UnloadDataplane,
    /// Make a network's interface in the host, and its entries.
    AddNetwork(Network),
    /// The reverse.
    DeleteNetwork(Network),
    /// Make a port: a veth pair, its program, its addresses, its entries.
    Attach(Attachment, Network),
    /// The reverse.
    Detach(Attachment, Network),
    /// Lay a cable.
    AddCable(Cable),
    /// Take it away.
    DeleteCable(Cable),
    /// Add a route.
    AddRoute(Route),
    /// Remove it.
    DeleteRoute(Route),
}

impl Step {
    /// What takes the step back.
    #[must_use]
    pub fn undo(&self) -> Self {
        match self.clone() {
            Self::AddNamespace(name) => Self::DeleteNamespace(name),
            Self::DeleteNamespace(name) => Self::AddNamespace(name),
            Self::LoadDataplane => Self::UnloadDataplane,
            Self::UnloadDataplane => Self::LoadDataplane,
            Self::AddNetwork(network) => Self::DeleteNetwork(network),
            Self::DeleteNetwork(network) => Self::AddNetwork(network),
            Self::Attach(port, network) => Self::Detach(port, network),
            Self::Detach(port, network) => Self::Attach(port, network),
            Self::AddCable(cable) => Self::DeleteCable(cable),
            Self::DeleteCable(cable) => Self::AddCable(cable),
            Self::AddRoute(route) => Self::DeleteRoute(route),
            Self::DeleteRoute(route) => Self::AddRoute(route),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddNamespace(name) => write!(f, "make namespace {name}"),
            Self::DeleteNamespace(name) => write!(f, "delete namespace {name}"),
            Self::LoadDataplane => write!(f, "load the dataplane"),
            Self::UnloadDataplane => write!(f, "unload the dataplane"),
            Self::AddNetwork(network) => write!(f, "make network {}", network.name),
            Self::DeleteNetwork(network) => write!(f, "delete network {}", network.name),
            Self::Attach(port, _) => write!(f, "attach {} to {}", port.ns, port.network),
            Self::Detach(port, _) => write!(f, "detach {} from {}", port.ns, port.network),
            Self::AddCable(cable) => write!(f, "lay cable {}-{}", cable.a.ns, cable.b.ns),
            Self::DeleteCable(cable) => write!(f, "take cable {}-{} away", cable.a.ns, cable.b.ns),
            Self::AddRoute(route) => write!(f, "add route {} via {} in {}", route.dest, route.via, route.ns),
            Self::DeleteRoute(route) => write!(f, "remove route {} in {}", route.dest, route.ns),
        }
    }
}

/// The steps from `old`, which the kernel is thought to be in, to `new`: first what goes, then what comes.
pub fn plan(old: &State, new: &State) -> Vec<Step> {
    let mut steps = Vec::new();
    // What stands on something goes before it, and comes after it.
    steps.extend(missing(&old.routes, &new.routes).map(Step::DeleteRoute));
    steps.extend(missing(&old.cables, &new.cables).map(Step::DeleteCable));
    steps.extend(missing(&old.attachments, &new.attachments).filter_map(|port| with_network(old, port, Step::Detach)));
    steps.extend(missing(old.networks.values(), new.networks.values().collect::<Vec<_>>()).map(Step::DeleteNetwork));
    if new.networks.is_empty() && !old.networks.is_empty() {
        steps.push(Step::UnloadDataplane);
    }
    steps.extend(made(old).filter(|name| !new.namespaces.contains_key(name)).map(Step::DeleteNamespace));

    steps.extend(made(new).filter(|name| !old.namespaces.contains_key(name)).map(Step::AddNamespace));
    if old.networks.is_empty() && !new.networks.is_empty() {
        steps.push(Step::LoadDataplane);
    }
    steps.extend(missing(new.networks.values(), old.networks.values().collect::<Vec<_>>()).map(Step::AddNetwork));
    steps.extend(missing(&new.attachments, &old.attachments).filter_map(|port| with_network(new, port, Step::Attach)));
    steps.extend(missing(&new.cables, &old.cables).map(Step::AddCable));
    steps.extend(missing(&new.routes, &old.routes).map(Step::AddRoute));
    steps
}

/// What is in `here` and not in `there`.
fn missing<'a, T: Clone + PartialEq + 'a>(
    here: impl IntoIterator<Item = &'a T>,
    there: impl IntoIterator<Item = &'a T>,
) -> impl Iterator<Item = T> {
    let there: Vec<&T> = there.into_iter().collect();
    here.into_iter().filter(move |item| !there.contains(item)).cloned()
}

fn made(state: &State) -> impl Iterator<Item = Name> {
    state.namespaces.iter().filter(|(_, ns)| ns.made).map(|(name, _)| name.clone())
}

fn with_network(state: &State, port: Attachment, step: fn(Attachment, Network) -> Step) -> Option<Step> {
    let network = state.networks.get(&port.network)?.clone();
    Some(step(port, network))
}
