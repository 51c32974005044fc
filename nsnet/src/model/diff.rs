//! A plan as people read it: object by object, what it is and what it becomes.

use std::collections::HashMap;

use super::drift::{Difference, Drift, Object};
use super::mode::Mode;
use super::plan::Step;
use super::policy::Outside;
use super::state::{CableEnd, Network, State};

/// What becomes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It comes.
    Add,
    /// It becomes another, or is put right.
    Change,
    /// It goes.
    Remove,
}

/// One object of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What becomes of it.
    pub action: Action,
    /// Which.
    pub object: Object,
    /// What differs: of what comes, all that it will be. Empty for what is made anew with something else.
    pub differences: Vec<Difference>,
    /// The steps about it, in words.
    pub steps: Vec<String>,
}

/// What `steps` do to each object, in the order in which they are done with it.
///
/// `drift` is what the kernel has otherwise than `old`.
pub fn diff(old: &State, new: &State, drift: &[Drift], steps: &[Step]) -> Vec<Change> {
    let drift: HashMap<&Object, &Drift> = drift.iter().map(|drift| (&drift.object, drift)).collect();
    let mut changes: HashMap<Object, (usize, Change)> = HashMap::new();
    for (place, step) in steps.iter().enumerate() {
        let object = step.object();
        let found = || change(old, new, object.clone(), drift.get(&object).copied());
        let (last, change) = changes.entry(object.clone()).or_insert_with(|| (place, found()));
        *last = place;
        change.steps.push(step.to_string());
    }
    let mut changes: Vec<(usize, Change)> = changes.into_values().collect();
    changes.sort_by_key(|(last, _)| *last);
    changes.into_iter().map(|(_, change)| change).collect()
}

fn change(old: &State, new: &State, object: Object, drift: Option<&Drift>) -> Change {
    let drifted = drift.map(|drift| drift.differences.clone()).unwrap_or_default();
    let (action, differences) = match (values(old, &object), values(new, &object)) {
        (None, Some(values)) => {
            let added = values.into_iter().map(|(name, value)| Difference::lacks(name, value));
            (Action::Add, added.collect())
        }
        (Some(before), Some(after)) => {
            let pairs = before.iter().zip(&after);
            let changed = pairs.filter_map(|((name, is), (_, should))| Difference::between(name, is, should));
            (Action::Change, changed.chain(drifted).collect())
        }
        (Some(_), None) => (Action::Remove, Vec::new()),
        // A leftover.
        (None, None) => (Action::Remove, drifted),
    };
    Change { action, object, differences, steps: Vec::new() }
}

type Values = Vec<(&'static str, String)>;

/// What an object is in a state, with the names that a file has for it; `None` when it is not there.
fn values(state: &State, object: &Object) -> Option<Values> {
    match object {
        Object::Namespace(name) => state.namespaces.get(name).map(|_ns| Vec::new()),
        Object::Dataplane | Object::Locals => (!state.networks.is_empty()).then(Vec::new),
        Object::Uplink(interface) => {
            let uplink = state.uplinks.iter().find(|uplink| uplink.interface == *interface)?;
            Some(vec![("index", uplink.ifindex.to_string()), ("mode", uplink.mode.to_string())])
        }
        Object::Pools => {
            Some(state.pools()).filter(|pools| !pools.is_empty()).map(|pools| vec![("ports", pools.to_string())])
        }
        Object::ReservedPorts => {
            let ports = state.reserved_ports();
            (!ports.is_empty()).then(|| vec![("ports", ports.to_string())])
        }
        Object::Network(name) => state.networks.get(name).map(network),
        Object::Attachment { network, ns } => {
            let port = state.attachment(network, ns)?;
            Some(vec![
                ("ip", list(&port.ips)),
                ("mac", port.mac.to_string()),
                ("ifname", port.inner.clone()),
                ("learn", port.learn.to_string()),
                ("trusted", port.trusted.to_string()),
                ("isolated", port.isolated.to_string()),
                ("mode", state.networks.get(network).map_or(Mode::Tc, |network| network.modes.ports).to_string()),
            ])
        }
        Object::Cable { a, b } => {
            let cable = state.cable(a, b)?;
            let address = |end: &CableEnd| end.address.map_or("none".to_owned(), |address| address.to_string());
            Some(vec![("address_a", address(&cable.a)), ("address_b", address(&cable.b))])
        }
        Object::Route { ns, dest } => {
            let route = state.routes.iter().find(|route| route.ns == *ns && route.dest == *dest)?;
            Some(vec![("via", route.via.to_string())])
        }
        Object::Publish { ns, spec } => {
            let publish = state.published(ns, spec)?;
            let targets: Vec<_> = publish.entries.iter().map(|entry| entry.target).collect();
            Some(vec![("network", publish.network.to_string()), ("to", list(&targets))])
        }
        Object::OfHost(_) | Object::Stray(_) => None,
    }
}

fn network(network: &Network) -> Values {
    let subnets: Vec<_> = network.subnets.iter().map(|subnet| subnet.net).collect();
    let mut values =
        vec![("subnet", list(&subnets)), ("gateway", list(&network.gateways())), ("mtu", network.mtu.to_string())];
    values.extend(outside(&network.outside));
    values.extend([("mode", network.modes.ports.to_string()), ("uplink_mode", network.modes.uplinks.to_string())]);
    values
}

fn outside(outside: &Outside) -> Values {
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
    vec![
        ("masquerade", outside.masquerade.to_string()),
        ("internal", outside.internal.to_string()),
        ("punt", outside.punt.to_string()),
        ("isolate", outside.isolated.to_string()),
        ("uplink", or_none(outside.uplink.as_ref().map(ToString::to_string))),
        ("snat_ports", outside.pool().to_string()),
        ("snat_source", list(&outside.snat_sources)),
        ("filtering", outside.filtering.to_string()),
        ("timeout", list(&outside.timeouts)),
        ("flows_per_ns", or_none(outside.flows_per_ns.map(|flows| flows.to_string()))),
        ("ports_per_ns", or_none(outside.ports_per_ns.map(|ports| ports.to_string()))),
    ]
}

fn list<T: ToString>(items: &[T]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.iter().map(T::to_string).collect::<Vec<_>>().join(" ") }
}
