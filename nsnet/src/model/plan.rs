//! From one state to another: the steps, in an order in which each can be done, each with its undo.

use std::collections::HashMap;
use std::fmt;

use nsnet_common::layout::Policy;
use serde::{Deserialize, Serialize};

use super::name::Name;
use super::policy::policy;
use super::ports::PortSet;
use super::publish::Publish;
use super::state::{Attachment, Cable, Network, Route, State};
use super::uplink::Uplink;

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
    /// Put the program on an uplink, and make its entries.
    AddUplink(Uplink),
    /// The reverse.
    DeleteUplink(Uplink),
    /// Tell the dataplane that flows are given ports of the first set; before, it was the second.
    SetPools(PortSet, PortSet),
    /// Make a network's interface in the host, and its entries.
    AddNetwork(Network),
    /// The reverse.
    DeleteNetwork(Network),
    /// Tell the dataplane what the first may do beyond it; before, it was the second.
    SetPolicy(Network, Network),
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
    /// Keep the kernel from giving ports to sockets unasked.
    ReservePorts(Reservation),
    /// Publish ports.
    AddPublish(Publish),
    /// Publish them no more.
    DeletePublish(Publish),
}

/// A change of `net.ipv4.ip_local_reserved_ports`, in which others have ports, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// What it had before we added to it.
    pub before: PortSet,
    /// What of it we wanted until now.
    pub from: PortSet,
    /// What of it we want.
    pub to: PortSet,
}

impl Reservation {
    /// What the setting, found as `current`, is to be. The same whether the change was made already or not, and what
    /// others have put in or taken out meanwhile stays as they have it.
    pub fn applied_to(&self, current: &PortSet) -> PortSet {
        let ours_alone = self.from.with(&self.to).without(&self.before);
        current.without(&ours_alone).with(&self.to)
    }
}

impl Step {
    /// Whether it can only be done when the dataplane is loaded.
    pub(crate) fn needs_dataplane(&self) -> bool {
        matches!(self, Self::AddNetwork(_) | Self::Attach(..) | Self::AddPublish(_))
    }

    /// Whether it takes something away that another step makes.
    pub(crate) fn is_removal(&self) -> bool {
        match self {
            Self::DeleteNamespace(_)
            | Self::UnloadDataplane
            | Self::DeleteUplink(_)
            | Self::DeleteNetwork(_)
            | Self::Detach(..)
            | Self::DeleteCable(_)
            | Self::DeleteRoute(_)
            | Self::DeletePublish(_) => true,
            Self::AddNamespace(_)
            | Self::LoadDataplane
            | Self::AddUplink(_)
            | Self::AddNetwork(_)
            | Self::Attach(..)
            | Self::AddCable(_)
            | Self::AddRoute(_)
            | Self::AddPublish(_) => false,
            // These are as good as what they lead to.
            Self::SetPools(..) | Self::SetPolicy(..) | Self::ReservePorts(_) => true,
        }
    }

    /// What takes the step back.
    #[must_use]
    pub fn undo(&self) -> Self {
        match self.clone() {
            Self::AddNamespace(name) => Self::DeleteNamespace(name),
            Self::DeleteNamespace(name) => Self::AddNamespace(name),
            Self::LoadDataplane => Self::UnloadDataplane,
            Self::UnloadDataplane => Self::LoadDataplane,
            Self::AddUplink(uplink) => Self::DeleteUplink(uplink),
            Self::DeleteUplink(uplink) => Self::AddUplink(uplink),
            Self::SetPools(to, from) => Self::SetPools(from, to),
            Self::AddNetwork(network) => Self::DeleteNetwork(network),
            Self::DeleteNetwork(network) => Self::AddNetwork(network),
            Self::SetPolicy(to, from) => Self::SetPolicy(from, to),
            Self::Attach(port, network) => Self::Detach(port, network),
            Self::Detach(port, network) => Self::Attach(port, network),
            Self::AddCable(cable) => Self::DeleteCable(cable),
            Self::DeleteCable(cable) => Self::AddCable(cable),
            Self::AddRoute(route) => Self::DeleteRoute(route),
            Self::DeleteRoute(route) => Self::AddRoute(route),
            Self::ReservePorts(Reservation { before, from, to }) => {
                Self::ReservePorts(Reservation { before, from: to, to: from })
            }
            Self::AddPublish(publish) => Self::DeletePublish(publish),
            Self::DeletePublish(publish) => Self::AddPublish(publish),
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
            Self::AddUplink(uplink) => write!(f, "put the program on uplink {}", uplink.interface),
            Self::DeleteUplink(uplink) => write!(f, "take the program off uplink {}", uplink.interface),
            Self::SetPools(ports, _) if ports.is_empty() => write!(f, "give flows no ports any more"),
            Self::SetPools(ports, _) => write!(f, "give flows ports {ports}"),
            Self::AddNetwork(network) => write!(f, "make network {}", network.name),
            Self::DeleteNetwork(network) => write!(f, "delete network {}", network.name),
            Self::SetPolicy(network, _) => write!(f, "change what {} may do beyond it", network.name),
            Self::Attach(port, _) => write!(f, "attach {} to {}", port.ns, port.network),
            Self::Detach(port, _) => write!(f, "detach {} from {}", port.ns, port.network),
            Self::AddCable(cable) => write!(f, "lay cable {}-{}", cable.a.ns, cable.b.ns),
            Self::DeleteCable(cable) => write!(f, "take cable {}-{} away", cable.a.ns, cable.b.ns),
            Self::AddRoute(route) => write!(f, "add route {} via {} in {}", route.dest, route.via, route.ns),
            Self::DeleteRoute(route) => write!(f, "remove route {} in {}", route.dest, route.ns),
            Self::ReservePorts(_) => write!(f, "change the reserved ports"),
            Self::AddPublish(publish) => write!(f, "publish {} for {}", publish.spec, publish.ns),
            Self::DeletePublish(publish) => write!(f, "publish {} for {} no more", publish.spec, publish.ns),
        }
    }
}

/// The steps from `old`, which the kernel is thought to be in, to `new`: first what goes, then what comes.
pub fn plan(old: &State, new: &State) -> Vec<Step> {
    let mut steps = Vec::new();
    // What stands on something goes before it, and comes after it.
    steps.extend(missing_publishes(&old.publishes, &new.publishes).map(Step::DeletePublish));
    steps.extend(missing(&old.routes, &new.routes).map(Step::DeleteRoute));
    steps.extend(missing(&old.cables, &new.cables).map(Step::DeleteCable));
    steps.extend(missing(&old.attachments, &new.attachments).filter_map(|port| with_network(old, port, Step::Detach)));
    steps
        .extend(old.networks.values().filter(|network| same(network, new).is_none()).cloned().map(Step::DeleteNetwork));
    // While they are reserved, and there is a dataplane to tell.
    let (pools_before, pools) = (old.pools(), new.pools());
    if pools.is_empty() && !pools_before.is_empty() {
        steps.push(Step::SetPools(pools.clone(), pools_before.clone()));
    }
    steps.extend(missing_uplinks(old, new).map(Step::DeleteUplink));
    if new.networks.is_empty() && !old.networks.is_empty() {
        steps.push(Step::UnloadDataplane);
    }
    steps.extend(made(old).filter(|name| !new.namespaces.contains_key(name)).map(Step::DeleteNamespace));

    // Between what no longer needs a port and what does.
    let (from, to) = (old.reserved_ports(), new.reserved_ports());
    if from != to {
        steps.push(Step::ReservePorts(Reservation { before: reserved_before(old, new), from, to }));
    }

    steps.extend(made(new).filter(|name| !old.namespaces.contains_key(name)).map(Step::AddNamespace));
    if old.networks.is_empty() && !new.networks.is_empty() {
        steps.push(Step::LoadDataplane);
    }
    steps.extend(missing_uplinks(new, old).map(Step::AddUplink));
    if !pools.is_empty() && pools != pools_before {
        steps.push(Step::SetPools(pools, pools_before));
    }
    steps.extend(new.networks.values().filter(|network| same(network, old).is_none()).cloned().map(Step::AddNetwork));
    steps.extend(new.networks.values().filter_map(|network| {
        let before = same(network, old)?;
        (told(network, new) != told(before, old)).then(|| Step::SetPolicy(network.clone(), before.clone()))
    }));
    steps.extend(missing(&new.attachments, &old.attachments).filter_map(|port| with_network(new, port, Step::Attach)));
    steps.extend(missing(&new.cables, &old.cables).map(Step::AddCable));
    steps.extend(missing(&new.routes, &old.routes).map(Step::AddRoute));
    steps.extend(missing_publishes(&new.publishes, &old.publishes).map(Step::AddPublish));
    steps
}

/// What the host had reserved before the first port of ours: the new state has forgotten it when it wants none.
fn reserved_before(old: &State, new: &State) -> PortSet {
    new.reserved_before.as_ref().or(old.reserved_before.as_ref()).cloned().unwrap_or_default()
}

/// [`missing`] for thousands: what is the same is at the same place of the dataplane.
fn missing_publishes(here: &[Publish], there: &[Publish]) -> impl Iterator<Item = Publish> {
    let place = |publish: &Publish| publish.entries.first().map(|entry| entry.place);
    let there: HashMap<Option<u16>, &Publish> = there.iter().map(|publish| (place(publish), publish)).collect();
    here.iter().filter(move |publish| there.get(&place(publish)) != Some(publish)).cloned()
}

/// What is in `here` and not in `there`.
fn missing<'a, T: Clone + PartialEq + 'a>(
    here: impl IntoIterator<Item = &'a T>,
    there: impl IntoIterator<Item = &'a T>,
) -> impl Iterator<Item = T> {
    let there: Vec<&T> = there.into_iter().collect();
    here.into_iter().filter(move |item| !there.contains(item)).cloned()
}

/// The same network in another state, whatever its namespaces may do beyond it there.
fn same<'a>(network: &Network, there: &'a State) -> Option<&'a Network> {
    let other = there.networks.get(&network.name)?;
    (Network { outside: network.outside.clone(), ..other.clone() } == *network).then_some(other)
}

/// What the dataplane is told of a network.
fn told(network: &Network, state: &State) -> Policy {
    policy(network, state.named_uplink(network.outside.uplink.as_ref()))
}

fn missing_uplinks(here: &State, there: &State) -> impl Iterator<Item = Uplink> {
    // One that was given another name is the same.
    let is_there = |uplink: &&Uplink| there.uplink(uplink.port()).is_some_and(|other| other.ifindex == uplink.ifindex);
    here.uplinks.iter().filter(move |uplink| !is_there(uplink)).cloned()
}

fn made(state: &State) -> impl Iterator<Item = Name> {
    state.namespaces.iter().filter(|(_, ns)| ns.made).map(|(name, _)| name.clone())
}

fn with_network(state: &State, port: Attachment, step: fn(Attachment, Network) -> Step) -> Option<Step> {
    let network = state.networks.get(&port.network)?.clone();
    Some(step(port, network))
}
