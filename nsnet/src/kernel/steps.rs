//! One step of a plan, done in the kernel. Doing it again, or after it was cut off half way, leads to the same end, and
//! what is as it should be already is left alone: so a step is its own repair.

mod cable;
mod interface;
mod network;
mod port;

use std::collections::HashSet;
use std::path::Path;

use nix::errno::Errno;

use super::error::Result;
use super::host::Host;
use super::link::Link;
use super::netlink::Netlink;
use super::netns::NetNs;
use super::store::BPFFS;
use super::{mounts, named, policy, publish, reserved, route, sockets, strays, uplink};
use crate::model::drift::Stray;
use crate::model::name::Name;
use crate::model::plan::Step;
use crate::model::state::Route;
pub(crate) use interface::with_prefix;
pub(crate) use network::{Overlap, overlap};
pub(crate) use port::{entry, host_entry};

/// Whether a step could be done, as far as can be told without changing anything. `around`: what the others do.
pub(crate) fn check(host: &Host, step: &Step, around: &Around<'_>) -> Result<()> {
    match step.inner() {
        Step::AddNetwork(network) => network::check(host, network, around),
        Step::SetPools(pools, before) => reserved::check(&pools.without(before)),
        Step::Attach(port, _) => port::check(host, port, around),
        Step::AddCable(cable) => cable::check(host, cable, around, matches!(step, Step::Repair(_))),
        Step::AddRoute(route) => around.member(host, &route.ns).map(|_ns| ()),
        // What else has the name is not ours to replace, and undoing would delete it.
        Step::AddNamespace(name) => match NetNs::named(name.as_str()) {
            Err(error) if error.errno() != Some(Errno::ENOENT) => Err(error),
            _ours_or_none => Ok(()),
        },
        Step::DeleteNamespace(_)
        | Step::LoadDataplane
        | Step::UnloadDataplane
        | Step::AddUplink(_)
        | Step::DeleteUplink(_)
        | Step::ReservePorts(_)
        | Step::DeleteNetwork(_)
        | Step::SetPolicy(..)
        | Step::SetMode(..)
        | Step::SetUplinkMode(..)
        | Step::Detach(..)
        | Step::DeleteCable(_)
        | Step::DeleteRoute(_)
        | Step::AddPublish(_)
        | Step::DeletePublish(_)
        | Step::TellLocals
        | Step::RemoveStray(_)
        | Step::Repair(_) => Ok(()),
    }
}

/// What is not there yet, or not for long: what a plan makes before something needs it, and removes before something
/// takes its place.
pub(crate) struct Around<'a> {
    made: HashSet<&'a Name>,
    /// Indexes of the interfaces of ports that go.
    ports: HashSet<u32>,
    /// Ends of cables that go.
    ends: HashSet<(&'a Name, &'a str)>,
}

impl<'a> Around<'a> {
    /// What a plan makes and removes.
    pub(crate) fn of(steps: &'a [Step]) -> Self {
        let mut around = Self { made: HashSet::new(), ports: HashSet::new(), ends: HashSet::new() };
        for step in steps {
            if let Step::AddNamespace(name) = step.inner() {
                around.made.insert(name);
            } else if let Step::Detach(port, _) = step {
                around.ports.insert(port.port().ifindex());
            } else if let Step::DeleteNetwork(network) = step {
                around.ports.insert(network.port().ifindex());
            } else if let Step::DeleteCable(cable) = step {
                around.ends.extend([&cable.a, &cable.b].map(|end| (&end.ns, end.interface.as_str())));
            } else if let Step::RemoveStray(Stray::Interface { index, .. }) = step {
                around.ports.insert(*index);
            }
        }
        around
    }

    /// A member namespace; `None` for one that is yet to be made.
    fn member(&self, host: &Host, name: &Name) -> Result<Option<NetNs>> {
        match host.member(name.as_str()) {
            Err(_not_yet) if self.made.contains(name) => Ok(None),
            there => there.map(Some),
        }
    }

    /// Whether an interface in a member namespace goes, because it is the end of a cable or port that does.
    fn takes_away(&self, ns: &Name, link: &Link) -> bool {
        self.ends.contains(&(ns, link.name.as_str())) || link.peer_index.is_some_and(|peer| self.ports.contains(&peer))
    }
}

/// Does a step.
pub(crate) fn carry_out(host: &Host, step: &Step) -> Result<()> {
    match step {
        Step::AddNamespace(name) => add_namespace(host, name),
        Step::DeleteNamespace(name) => delete_namespace(host, name),
        Step::LoadDataplane => load(host),
        Step::UnloadDataplane => host.dataplane.unload(),
        Step::AddUplink(uplink) => uplink::add(host, uplink),
        Step::DeleteUplink(uplink) => uplink::delete(host, uplink),
        Step::SetPools(pools, _before) => policy::set_pools(host, pools),
        Step::AddNetwork(network) => network::add(host, network),
        Step::DeleteNetwork(network) => network::delete(host, network),
        Step::SetPolicy(network, before) => policy::change(host, network, before),
        Step::SetMode(port, network, _before) => port::set_mode(host, port, network),
        Step::SetUplinkMode(uplink, _before) => uplink::add(host, uplink),
        Step::Attach(port, network) => port::attach(host, port, network),
        Step::Detach(port, network) => port::detach(host, port, network),
        Step::AddCable(cable) => cable::add(host, cable),
        Step::DeleteCable(cable) => cable::delete(cable),
        Step::AddRoute(route) => {
            let ns = host.member(route.ns.as_str())?;
            Netlink::inside(&ns)?.add_route(&kernel_route(route)).map(|_is_new| ())
        }
        Step::DeleteRoute(route) => match NetNs::find(route.ns.as_str())? {
            Some(ns) => Netlink::inside(&ns)?.remove_route(&kernel_route(route)).map(|_was_there| ()),
            // It has taken its routes with it.
            None => Ok(()),
        },
        Step::ReservePorts(change) => reserved::apply(change),
        Step::AddPublish(publish) => publish::add(host, publish),
        Step::DeletePublish(publish) => publish::delete(host, publish),
        Step::TellLocals => sockets::refresh_locals(host).map(|_was_stale| ()),
        Step::RemoveStray(stray) => strays::remove(host, stray),
        Step::Repair(step) => {
            if let Step::AddRoute(route) = step.as_ref() {
                return repair_route(host, route);
            }
            carry_out(host, step)
        }
    }
}

/// Does a step that undoes another. What belongs to a namespace that is gone cannot come back, which `status` tells.
pub(crate) fn bring_back(host: &Host, step: &Step) -> Result<()> {
    let in_namespaces: &[&Name] = if let Step::Attach(port, _) = step {
        &[&port.ns]
    } else if let Step::AddRoute(route) = step {
        &[&route.ns]
    } else if let Step::AddCable(cable) = step {
        &[&cable.a.ns, &cable.b.ns]
    } else {
        &[]
    };
    for name in in_namespaces {
        if NetNs::find(name.as_str())?.is_none() {
            return Ok(());
        }
    }
    carry_out(host, step)
}

fn load(host: &Host) -> Result<()> {
    mounts::ensure_bpffs(Path::new(BPFFS))?;
    if let Some(why) = host.dataplane.load(host.features)? {
        (host.on_note)(&format!("programs of the host reach no published port, and may bind it: {why}"));
    }
    Ok(())
}

fn add_namespace(host: &Host, name: &Name) -> Result<()> {
    let ns = match (NetNs::find(name.as_str())?, host.deleted.borrow_mut().remove(name)) {
        (Some(ns), _) => ns,
        (None, deleted) => {
            // Of making or deleting it half.
            named::delete_leftover(name.as_str())?;
            match deleted {
                Some(ns) => return named::restore(name.as_str(), &ns),
                None => named::create(name.as_str())?,
            }
        }
    };
    Netlink::inside(&ns)?.set_loopback_up()
}

fn delete_namespace(host: &Host, name: &Name) -> Result<()> {
    if let Some(ns) = NetNs::find(name.as_str())? {
        // Undoing brings back this one, with all that is in it.
        host.deleted.borrow_mut().insert(name.clone(), ns);
    }
    named::delete(name.as_str()).map(|_was_there| ())
}

/// One that somebody made lead elsewhere leads again where it should.
fn repair_route(host: &Host, route: &Route) -> Result<()> {
    let netlink = Netlink::inside(&host.member(route.ns.as_str())?)?;
    let routes = netlink.routes()?;
    let mut there = routes.iter().filter(|other| other.dest == route.dest);
    if there.any(|other| other.via == Some(route.via)) {
        return Ok(());
    }
    netlink.replace_route(&kernel_route(route))
}

fn kernel_route(route: &Route) -> route::Route {
    route::Route { dest: route.dest, via: Some(route.via), index: None }
}
