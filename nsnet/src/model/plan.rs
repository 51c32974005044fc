//! From one state to another: the steps, in an order in which each can be done, each with its undo.

mod step;

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use ipnet::IpNet;
use nsnet_common::layout::Policy;

use super::drift::{Drift, Object};
use super::name::Name;
use super::policy::policy;
use super::ports::PortSet;
use super::state::{Attachment, Cable, Network, Route, State};
use super::uplink::Uplink;
pub use step::{Reservation, Step};

/// The steps from `old` to `new`: first what goes, then what comes.
///
/// The kernel is thought to be in `old`, but for `drift`. What is broken and is in both states, is repaired on the way.
pub fn plan(old: &State, new: &State, drift: &[Drift]) -> Vec<Step> {
    let plan = Plan { old, new, broken: drift.iter().map(|drift| &drift.object).collect() };
    let ports = plan.ports();
    let cables = Moves::between(&old.cables, &new.cables, |cable| (&cable.a.ns, &cable.b.ns));
    let routes = plan.routes(&ports, &cables);
    let publishes = Moves::between(&old.publishes, &new.publishes, |publish| (&publish.ns, &publish.spec));

    let mut steps = Vec::new();
    // What stands on something goes before it, and comes after it.
    steps.extend(publishes.gone.into_iter().cloned().map(Step::DeletePublish));
    steps.extend(routes.gone.into_iter().cloned().map(Step::DeleteRoute));
    steps.extend(cables.gone.into_iter().cloned().map(Step::DeleteCable));
    steps.extend(ports.gone.iter().filter_map(|port| with_network(old, port, Step::Detach)));
    let networks = old.networks.values();
    steps.extend(networks.filter(|network| same(network, new).is_none()).cloned().map(Step::DeleteNetwork));
    plan.take_down_dataplane(&mut steps);
    steps.extend(made(old).filter(|name| !new.namespaces.contains_key(*name)).cloned().map(Step::DeleteNamespace));

    plan.remove_strays(&mut steps);
    // Between what no longer needs a port and what does.
    plan.reserve_ports(&mut steps);

    plan.add_namespaces(&mut steps);
    plan.bring_up_dataplane(&mut steps);
    plan.bring_up_networks(&mut steps);
    steps.extend(ports.come.iter().filter_map(|port| with_network(new, port, Step::Attach)));
    let broken_ports = ports.kept.iter().filter(|port| plan.can_repair(&Object::attachment(port), &[&port.ns]));
    steps.extend(broken_ports.filter_map(|port| with_network(new, port, Step::Attach)).map(Step::repair));
    steps.extend(ports.kept.iter().filter_map(|port| plan.new_mode(port)));
    steps.extend(cables.come.into_iter().cloned().map(Step::AddCable));
    let broken_cables = cables.kept.into_iter().filter(|cable| plan.is_broken_cable(cable));
    steps.extend(broken_cables.cloned().map(Step::AddCable).map(Step::repair));
    steps.extend(routes.come.into_iter().cloned().map(Step::AddRoute));
    steps.extend(routes.lost.into_iter().cloned().map(Step::AddRoute).map(Step::repair));
    steps.extend(publishes.come.into_iter().cloned().map(Step::AddPublish));
    let broken_publishes = publishes.kept.into_iter().filter(|publish| plan.is_broken(&Object::publish(publish)));
    steps.extend(broken_publishes.cloned().map(Step::AddPublish).map(Step::repair));
    if plan.is_broken(&Object::Locals) {
        steps.push(Step::TellLocals);
    }
    steps
}

/// Of one kind of object, what goes, comes, and is the same in both states. What is changed goes and comes.
struct Moves<'a, T> {
    gone: Vec<&'a T>,
    come: Vec<&'a T>,
    kept: Vec<&'a T>,
}

impl<'a, T: PartialEq> Moves<'a, T> {
    /// `key` is what an object is known by. (There may be thousands.)
    fn between<K: Eq + Hash>(old: &'a [T], new: &'a [T], key: impl Fn(&'a T) -> K) -> Self {
        let before: HashMap<K, &T> = old.iter().map(|item| (key(item), item)).collect();
        let after: HashMap<K, &T> = new.iter().map(|item| (key(item), item)).collect();
        let (kept, come) = new.iter().partition(|item| before.get(&key(item)) == Some(item));
        let gone = old.iter().filter(|item| after.get(&key(item)) != Some(item)).collect();
        Self { gone, come, kept }
    }
}

/// Routes as [`Moves`] has them; those that are lost are in both states, and are to be there again.
struct Routes<'a> {
    gone: Vec<&'a Route>,
    come: Vec<&'a Route>,
    lost: Vec<&'a Route>,
}

struct Plan<'a> {
    old: &'a State,
    new: &'a State,
    broken: HashSet<&'a Object>,
}

impl<'a> Plan<'a> {
    fn is_broken(&self, object: &Object) -> bool {
        self.broken.contains(object)
    }

    /// Whether something in these namespaces is broken, and they are there or will be: one that is gone and was not
    /// made by us is not ours to make.
    fn can_repair(&self, object: &Object, namespaces: &[&Name]) -> bool {
        let is_made = |name: &Name| self.new.namespaces.get(name).is_some_and(|ns| ns.made);
        let mut gone = namespaces.iter().filter(|name| self.is_broken(&Object::Namespace((**name).clone())));
        self.is_broken(object) && gone.all(|name| is_made(name))
    }

    fn is_broken_cable(&self, cable: &Cable) -> bool {
        self.can_repair(&Object::cable(cable), &[&cable.a.ns, &cable.b.ns])
    }

    /// The attachments. Those of a network that is made anew are made anew.
    fn ports(&self) -> Moves<'a, Attachment> {
        let mut ports = Moves::between(&self.old.attachments, &self.new.attachments, |port| (&port.network, &port.ns));
        let is_same = |port: &&Attachment| {
            self.old.networks.get(&port.network).is_some_and(|network| same(network, self.new).is_some())
        };
        let (kept, anew): (Vec<&Attachment>, Vec<&Attachment>) = ports.kept.into_iter().partition(is_same);
        ports.gone.extend(&anew);
        ports.come.extend(anew);
        ports.kept = kept;
        ports
    }

    /// The routes. Those by an interface that is made anew go with it.
    fn routes(&self, ports: &Moves<'a, Attachment>, cables: &Moves<'a, Cable>) -> Routes<'a> {
        let mut anew = NextHops::default();
        ports.gone.iter().for_each(|port| anew.add_port(self.old, port));
        ports.come.iter().for_each(|port| anew.add_port(self.new, port));
        cables.gone.iter().chain(&cables.come).for_each(|cable| anew.add_cable(cable));
        let mut repaired = NextHops::default();
        let broken = |port: &&&Attachment| self.can_repair(&Object::attachment(port), &[&port.ns]);
        ports.kept.iter().filter(broken).for_each(|port| repaired.add_port(self.new, port));
        let broken = |cable: &&&Cable| self.is_broken_cable(cable);
        cables.kept.iter().filter(broken).for_each(|cable| repaired.add_cable(cable));

        let moves = Moves::between(&self.old.routes, &self.new.routes, |route| (&route.ns, route.dest));
        let (with_it, kept): (Vec<&Route>, Vec<&Route>) = moves.kept.into_iter().partition(|route| anew.have(route));
        let is_lost = |route: &&Route| repaired.have(route) || self.can_repair(&Object::route(route), &[&route.ns]);
        Routes {
            gone: moves.gone.into_iter().chain(with_it.iter().copied()).collect(),
            come: moves.come.into_iter().chain(with_it).collect(),
            lost: kept.into_iter().filter(is_lost).collect(),
        }
    }

    fn take_down_dataplane(&self, steps: &mut Vec<Step>) {
        // While ports are reserved, and there is a dataplane to tell.
        let (before, pools) = self.pools();
        if pools.is_empty() && !before.is_empty() {
            steps.push(Step::SetPools(pools, before));
        }
        steps.extend(missing_uplinks(self.old, self.new).map(Step::DeleteUplink));
        if self.old.networks.is_empty() {
            // What is there belongs to nothing.
            steps.extend(self.is_broken(&Object::Dataplane).then(|| Step::UnloadDataplane.repair()));
        } else if self.new.networks.is_empty() {
            steps.push(Step::UnloadDataplane);
        }
    }

    fn remove_strays(&self, steps: &mut Vec<Step>) {
        let mut strays: Vec<Step> = Vec::new();
        for object in &self.broken {
            if let Object::Stray(stray) = object {
                strays.push(Step::RemoveStray(stray.clone()));
            }
        }
        // A set has no order, and a plan is to be the same each time.
        strays.sort_by_key(ToString::to_string);
        steps.extend(strays);
    }

    fn reserve_ports(&self, steps: &mut Vec<Step>) {
        let (from, to) = (self.old.reserved_ports(), self.new.reserved_ports());
        let is_new = from != to;
        if is_new || self.is_broken(&Object::ReservedPorts) {
            // The new state has forgotten it when it wants none.
            let before = self.new.reserved_before.as_ref().or(self.old.reserved_before.as_ref());
            let step = Step::ReservePorts(Reservation { before: before.cloned().unwrap_or_default(), from, to });
            steps.push(if is_new { step } else { step.repair() });
        }
    }

    fn add_namespaces(&self, steps: &mut Vec<Step>) {
        for name in made(self.new) {
            let step = || Step::AddNamespace(name.clone());
            // One of somebody else's that is gone is made by us.
            if self.old.namespaces.get(name).is_none_or(|known| !known.made) {
                steps.push(step());
            } else if self.is_broken(&Object::Namespace(name.clone())) {
                steps.push(step().repair());
            }
        }
    }

    fn bring_up_dataplane(&self, steps: &mut Vec<Step>) {
        let (old, new) = (self.old, self.new);
        if old.networks.is_empty() && !new.networks.is_empty() {
            steps.push(Step::LoadDataplane);
        } else if !new.networks.is_empty() && self.is_broken(&Object::Dataplane) {
            steps.push(Step::LoadDataplane.repair());
        }
        steps.extend(missing_uplinks(new, old).map(Step::AddUplink));
        let known = new.uplinks.iter().filter(|uplink| {
            // By the name that it had.
            let before = old.uplinks.iter().find(|before| is_same_uplink(before, uplink));
            before.is_some_and(|before| self.is_broken(&Object::uplink(before)))
        });
        steps.extend(known.cloned().map(|uplink| Step::AddUplink(uplink).repair()));
        for uplink in &new.uplinks {
            let before = old.uplinks.iter().find(|before| is_same_uplink(before, uplink));
            if let Some(before) = before.filter(|before| before.mode != uplink.mode) {
                steps.push(Step::SetUplinkMode(uplink.clone(), before.clone()));
            }
        }
        let (before, pools) = self.pools();
        if pools != before {
            steps.extend((!pools.is_empty()).then_some(Step::SetPools(pools, before)));
        } else if self.is_broken(&Object::Pools) {
            steps.push(Step::SetPools(pools, before).repair());
        }
    }

    fn bring_up_networks(&self, steps: &mut Vec<Step>) {
        for network in self.new.networks.values() {
            let Some(before) = same(network, self.old) else {
                steps.push(Step::AddNetwork(network.clone()));
                continue;
            };
            if self.is_broken(&Object::network(network)) {
                steps.push(Step::AddNetwork(network.clone()).repair());
            }
            if told(network, self.new) != told(before, self.old) {
                steps.push(Step::SetPolicy(network.clone(), before.clone()));
            }
        }
    }

    /// What has a port's frames forwarded elsewhere than before, if they are to be.
    fn new_mode(&self, port: &Attachment) -> Option<Step> {
        let (new, old) = (self.new.networks.get(&port.network)?, self.old.networks.get(&port.network)?);
        let is_other = new.is_accelerated() != old.is_accelerated();
        is_other.then(|| Step::SetMode(port.clone(), new.clone(), old.clone()))
    }

    fn pools(&self) -> (PortSet, PortSet) {
        (self.old.pools(), self.new.pools())
    }
}

/// Which next hops are reached by some interfaces of each namespace.
#[derive(Default)]
struct NextHops<'a>(HashMap<&'a Name, Vec<IpNet>>);

impl<'a> NextHops<'a> {
    fn add_port(&mut self, state: &State, port: &'a Attachment) {
        let subnets = state.networks.get(&port.network).into_iter().flat_map(|network| &network.subnets);
        self.0.entry(&port.ns).or_default().extend(subnets.map(|subnet| subnet.net));
    }

    fn add_cable(&mut self, cable: &'a Cable) {
        for end in [&cable.a, &cable.b] {
            self.0.entry(&end.ns).or_default().extend(end.address);
        }
    }

    fn have(&self, route: &Route) -> bool {
        self.0.get(&route.ns).is_some_and(|nets| nets.iter().any(|net| net.contains(&route.via)))
    }
}

/// The same network in another state, whatever its namespaces may do beyond it there, and wherever its frames are forwarded.
fn same<'a>(network: &Network, there: &'a State) -> Option<&'a Network> {
    let other = there.networks.get(&network.name)?;
    let adapted = Network { outside: network.outside.clone(), modes: network.modes, ..other.clone() };
    (adapted == *network).then_some(other)
}

/// What the dataplane is told of a network.
fn told(network: &Network, state: &State) -> Policy {
    policy(network, state.named_uplink(network.outside.uplink.as_ref()))
}

fn missing_uplinks(here: &State, there: &State) -> impl Iterator<Item = Uplink> {
    let is_there = |uplink: &&Uplink| there.uplinks.iter().any(|other| is_same_uplink(other, uplink));
    here.uplinks.iter().filter(move |uplink| !is_there(uplink)).cloned()
}

/// One that was given another name is the same.
fn is_same_uplink(one: &Uplink, other: &Uplink) -> bool {
    (one.port, one.ifindex) == (other.port, other.ifindex)
}

fn made(state: &State) -> impl Iterator<Item = &Name> {
    state.namespaces.iter().filter(|(_, ns)| ns.made).map(|(name, _)| name)
}

fn with_network(state: &State, port: &Attachment, step: fn(Attachment, Network) -> Step) -> Option<Step> {
    let network = state.networks.get(&port.network)?.clone();
    Some(step(port.clone(), network))
}
