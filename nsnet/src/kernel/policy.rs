//! What the dataplane is told of a network's way out, and the settings of its interface that go with it.

use aya::maps::{Array, Map, MapData};
use nsnet_common::layout::{NetworkId, Policy, names};
use zerocopy::FromZeros as _;

use super::error::Result;
use super::host::Host;
use super::maps::{Maps, get_slot, set_slot};
use super::reserved;
use super::sysctl;
use crate::model::plan::Step;
use crate::model::policy::{host_policy, policy};
use crate::model::ports::PortSet;
use crate::model::state::{Network, State};

/// Tells the dataplane what a network may do. (One that is not loaded is a finding of `status`.)
pub(crate) fn set(host: &Host, network: &Network) -> Result<()> {
    for (key, value) in settings(network) {
        sysctl::write(&key, value)?;
    }
    if !host.dataplane.loaded()? {
        return Ok(());
    }
    host.maps().set_policy(network.id(), &told(host, network)?)
}

/// What is wrong with it.
pub(crate) fn faults(host: &Host, network: &Network) -> Result<Vec<String>> {
    if !host.dataplane.loaded()? {
        return Ok(vec!["the dataplane is not loaded".to_owned()]);
    }
    let mut faults = Vec::new();
    if let Some(name) = network.outside.uplink.as_ref().and_then(|choice| choice.name())
        && host.netlink.link(name)?.is_none()
    {
        faults.push(format!("its uplink {name} is gone"));
    }
    if host.maps().policy(network.id())? != told(host, network)? {
        faults.push("what it may do beyond it is another in the dataplane".to_owned());
    }
    for (key, value) in settings(network) {
        if sysctl::read(&key)?.is_some_and(|is| is != value) {
            faults.push(format!("setting {key} is not {value}"));
        }
    }
    Ok(faults)
}

/// Tells the dataplane of the ports that flows are given. (One that is not loaded is a finding of `status`.)
pub(crate) fn set_pools(host: &Host, pools: &PortSet) -> Result<()> {
    if host.dataplane.loaded()? { host.maps().set_policy(NetworkId::OUTSIDE, &host_policy(pools)) } else { Ok(()) }
}

/// What is wrong with the pools of all networks, as an object and a fault each.
pub(crate) fn pool_faults(host: &Host, state: &State) -> Result<Vec<(String, String)>> {
    let mut faults = Vec::new();
    let pools = state.pools();
    let lost = reserved::missing(&pools)?;
    if !lost.is_empty() {
        faults.push((format!("ports {lost}"), "they are not in net.ipv4.ip_local_reserved_ports any more".to_owned()));
    }
    if host.dataplane.loaded()? && host.maps().policy(NetworkId::OUTSIDE)? != host_policy(&pools) {
        let object = if pools.is_empty() { "pools".to_owned() } else { format!("ports {pools}") };
        faults.push((object, "the dataplane knows other pools".to_owned()));
    }
    Ok(faults)
}

/// What puts back what is broken of the pools, and of the ports reserved. `is_new`: the dataplane is about to be loaded.
pub(crate) fn mending(host: &Host, state: &State, is_new: bool) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = reserved::mending(state)?.map(Step::ReservePorts).into_iter().collect();
    let pools = state.pools();
    let is_loaded = host.dataplane.loaded()?;
    if (is_new && !pools.is_empty()) || (is_loaded && host.maps().policy(NetworkId::OUTSIDE)? != host_policy(&pools)) {
        steps.push(Step::SetPools(pools.clone(), pools));
    }
    Ok(steps)
}

fn told(host: &Host, network: &Network) -> Result<Policy> {
    let named = network.outside.uplink.as_ref().and_then(|choice| choice.name());
    let link = named.map(|name| host.netlink.link(name)).transpose()?.flatten();
    Ok(policy(network, link.map(|link| link.index)))
}

/// Settings of the network's own interface, and of no other.
///
/// `bpf_fib_lookup` asks whether the interface that a packet came in by may forward (BPF_FIB_LKUP_RET_FWD_DISABLED).
/// The host's own `ip_forward` is not needed. A redirect would tell a namespace to send past its gateway.
fn settings(network: &Network) -> Vec<(String, &'static str)> {
    let name = &network.name;
    let mut settings =
        vec![(format!("net/ipv4/conf/{name}/forwarding"), "1"), (format!("net/ipv4/conf/{name}/send_redirects"), "0")];
    if network.has_ipv6() {
        settings.push((format!("net/ipv6/conf/{name}/forwarding"), "1"));
    }
    settings
}

impl Maps {
    fn policies(&self) -> Result<Array<MapData, Policy>> {
        self.open(names::POLICIES, Map::Array)
    }

    /// What a network may do, as the dataplane has it.
    pub fn policy(&self, id: NetworkId) -> Result<Policy> {
        get_slot(&self.policies()?, names::POLICIES, u32::from(id.0))
    }

    /// Sets what a network may do.
    pub(crate) fn set_policy(&self, id: NetworkId, policy: &Policy) -> Result<()> {
        set_slot(&mut self.policies()?, names::POLICIES, u32::from(id.0), *policy)
    }

    /// Leaves nothing of a network's policy: there is no way out.
    pub(crate) fn clear_policy(&self, id: NetworkId) -> Result<()> {
        self.set_policy(id, &Policy::new_zeroed())
    }
}
