//! One thing to do in the kernel, and what takes it back.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::drift::{Object, Stray};
use crate::model::name::Name;
use crate::model::ports::PortSet;
use crate::model::publish::Publish;
use crate::model::state::{Attachment, Cable, Network, Route};
use crate::model::uplink::Uplink;

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
    /// Have a port's frames forwarded where the first network's mode says; before, it was the second's.
    SetMode(Attachment, Network, Network),
    /// The same of an uplink.
    SetUplinkMode(Uplink, Uplink),
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
    /// Tell the dataplane which addresses the host has.
    TellLocals,
    /// Remove what belongs to nothing.
    RemoveStray(Stray),
    /// Do a step whose end is thought to be there already, so that it is: what is as it should be stays. Nothing takes
    /// that back.
    Repair(Box<Step>),
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
    /// The same, to put right what should be there already.
    #[must_use]
    pub fn repair(self) -> Self {
        Self::Repair(Box::new(self))
    }

    /// What is done, whether for the first time or to put it right.
    pub fn inner(&self) -> &Self {
        if let Self::Repair(step) = self { step.inner() } else { self }
    }

    /// What takes the step back; `None` for a repair, which leads to what is thought to be there anyway.
    pub fn undo(&self) -> Option<Self> {
        Some(match self.clone() {
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
            Self::SetMode(port, to, from) => Self::SetMode(port, from, to),
            Self::SetUplinkMode(to, from) => Self::SetUplinkMode(from, to),
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
            Self::TellLocals | Self::RemoveStray(_) | Self::Repair(_) => return None,
        })
    }

    /// Whether it takes something away, or leads to what is right whatever was before.
    pub(crate) fn is_removal(&self) -> bool {
        match self {
            Self::DeleteNamespace(_)
            | Self::UnloadDataplane
            | Self::DeleteUplink(_)
            | Self::SetPools(..)
            | Self::DeleteNetwork(_)
            | Self::SetPolicy(..)
            | Self::SetMode(..)
            | Self::SetUplinkMode(..)
            | Self::Detach(..)
            | Self::DeleteCable(_)
            | Self::DeleteRoute(_)
            | Self::ReservePorts(_)
            | Self::DeletePublish(_)
            | Self::RemoveStray(_) => true,
            Self::AddNamespace(_)
            | Self::LoadDataplane
            | Self::AddUplink(_)
            | Self::AddNetwork(_)
            | Self::Attach(..)
            | Self::AddCable(_)
            | Self::AddRoute(_)
            | Self::AddPublish(_)
            | Self::TellLocals
            | Self::Repair(_) => false,
        }
    }

    /// What it is about.
    pub fn object(&self) -> Object {
        match self {
            Self::AddNamespace(name) | Self::DeleteNamespace(name) => Object::Namespace(name.clone()),
            Self::LoadDataplane | Self::UnloadDataplane => Object::Dataplane,
            Self::AddUplink(uplink) | Self::DeleteUplink(uplink) | Self::SetUplinkMode(uplink, _) => {
                Object::uplink(uplink)
            }
            Self::SetPools(..) => Object::Pools,
            Self::AddNetwork(network) | Self::DeleteNetwork(network) | Self::SetPolicy(network, _) => {
                Object::network(network)
            }
            Self::Attach(port, _) | Self::Detach(port, _) | Self::SetMode(port, ..) => Object::attachment(port),
            Self::AddCable(cable) | Self::DeleteCable(cable) => Object::cable(cable),
            Self::AddRoute(route) | Self::DeleteRoute(route) => Object::route(route),
            Self::ReservePorts(_) => Object::ReservedPorts,
            Self::AddPublish(publish) | Self::DeletePublish(publish) => Object::publish(publish),
            Self::TellLocals => Object::Locals,
            Self::RemoveStray(stray) => Object::Stray(stray.clone()),
            Self::Repair(step) => step.object(),
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
            Self::SetMode(port, network, _) => {
                write!(f, "forward what {} sends in {} at {}", port.ns, port.network, network.modes.ports)
            }
            Self::SetUplinkMode(uplink, _) => {
                write!(f, "forward what comes in by {} at {}", uplink.interface, uplink.mode)
            }
            Self::Attach(port, _) => write!(f, "attach {} to {}", port.ns, port.network),
            Self::Detach(port, _) => write!(f, "detach {} from {}", port.ns, port.network),
            Self::AddCable(cable) => write!(f, "lay cable {}-{}", cable.a.ns, cable.b.ns),
            Self::DeleteCable(cable) => write!(f, "take cable {}-{} away", cable.a.ns, cable.b.ns),
            Self::AddRoute(route) => write!(f, "add route {} via {} in {}", route.dest, route.via, route.ns),
            Self::DeleteRoute(route) => write!(f, "remove route {} in {}", route.dest, route.ns),
            Self::ReservePorts(_) => write!(f, "change the reserved ports"),
            Self::AddPublish(publish) => write!(f, "publish {} for {}", publish.spec, publish.ns),
            Self::DeletePublish(publish) => write!(f, "publish {} for {} no more", publish.spec, publish.ns),
            Self::TellLocals => write!(f, "tell the dataplane the host's addresses"),
            Self::RemoveStray(stray) => write!(f, "remove leftover {stray}"),
            Self::Repair(step) => write!(f, "repair: {step}"),
        }
    }
}
