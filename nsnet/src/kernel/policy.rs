//! What the dataplane is told of a network's way out, and the settings of its interface that go with it.

use std::net::IpAddr;

use aya::maps::{Array, Map, MapData};
use nsnet_common::layout::{NetworkId, Policy, names, policy_flags};
use nsnet_common::wire::IpAddress;
use zerocopy::FromZeros as _;

use super::error::Result;
use super::host::Host;
use super::maps::{Maps, get_slot, set_slot};
use super::sysctl;
use crate::model::drift::Difference;
use crate::model::policy::{Filtering, host_policy, policy};
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

/// The same for a network that was another before.
pub(crate) fn change(host: &Host, network: &Network, before: &Network) -> Result<()> {
    set(host, network)?;
    let is_new = network.outside.masquerade && !before.outside.masquerade;
    if is_new && host.dataplane.loaded()? { host.maps().forget_unmasqueraded(network.id()) } else { Ok(()) }
}

/// Where what the dataplane was told is another.
pub(crate) fn differences(host: &Host, network: &Network) -> Result<Vec<Difference>> {
    let (is, should) = (host.maps().policy(network.id())?, told(host, network)?);
    Ok(policy_differences(&is, &should))
}

/// Where settings of its interface are others.
pub(crate) fn setting_differences(network: &Network) -> Result<Vec<Difference>> {
    let mut found = Vec::new();
    for (key, should) in settings(network) {
        if let Some(is) = sysctl::read(&key)? {
            found.extend(Difference::between(key, &is.as_str(), &should));
        }
    }
    Ok(found)
}

/// Tells the dataplane of the ports that flows are given. (One that is not loaded is a finding of `status`.)
pub(crate) fn set_pools(host: &Host, pools: &PortSet) -> Result<()> {
    if host.dataplane.loaded()? { host.maps().set_policy(NetworkId::OUTSIDE, &host_policy(pools)) } else { Ok(()) }
}

/// Where the dataplane knows other pools than those of all networks.
pub(crate) fn pool_differences(host: &Host, state: &State) -> Result<Vec<Difference>> {
    let (is, should) = (host.maps().policy(NetworkId::OUTSIDE)?, host_policy(&state.pools()));
    let span = |policy: &Policy| match policy.has(policy_flags::MASQUERADE) {
        true => format!("{}-{}", policy.first_port, policy.last_port),
        false => "none".to_owned(),
    };
    Ok(Difference::between("span of the pools", &span(&is), &span(&should)).into_iter().collect())
}

/// Where what a network may do is another.
fn policy_differences(is: &Policy, should: &Policy) -> Vec<Difference> {
    let filtering = |policy: &Policy| {
        let flags = policy.flags & (policy_flags::FILTER_BY_ADDRESS | policy_flags::FILTER_NOTHING);
        match flags {
            0 => Filtering::Apdf,
            policy_flags::FILTER_BY_ADDRESS => Filtering::Adf,
            _ => Filtering::Eif,
        }
        .to_string()
    };
    let values = |policy: &Policy| {
        let address =
            |ip: IpAddress| if ip == IpAddress::UNSPECIFIED { "none".to_owned() } else { IpAddr::from(ip).to_string() };
        [
            ("masquerade", policy.has(policy_flags::MASQUERADE).to_string()),
            ("internal", policy.has(policy_flags::INTERNAL).to_string()),
            ("punt", policy.has(policy_flags::PUNT).to_string()),
            ("isolate", (!policy.has(policy_flags::OPEN)).to_string()),
            ("filtering", filtering(policy)),
            ("index of the uplink", policy.uplink.to_string()),
            ("IPv4 snat_source", address(policy.source_v4)),
            ("IPv6 snat_source", address(policy.source_v6)),
            ("snat_ports", format!("{}-{}", policy.first_port, policy.last_port)),
            ("port of the gateway", policy.gateway.0.to_string()),
            ("timeout tcp-established", policy.tcp_established.to_string()),
            ("timeout tcp-transitory", policy.tcp_transitory.to_string()),
            ("timeout udp", policy.udp.to_string()),
            ("timeout dns", policy.dns.to_string()),
            ("timeout icmp", policy.icmp.to_string()),
            ("timeout other", policy.other.to_string()),
            ("flows_per_ns", policy.flows_per_ns.to_string()),
            ("ports_per_ns", policy.ports_per_ns.to_string()),
        ]
    };
    let pairs = values(is).into_iter().zip(values(should));
    let in_dataplane = |name| format!("{name} in the dataplane");
    pairs.filter_map(|((name, is), (_, should))| Difference::between(in_dataplane(name), &is, &should)).collect()
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
    // The host is the router here: it takes no advice from namespaces (CVE-2020-13401).
    settings.push((format!("net/ipv6/conf/{name}/accept_ra"), "0"));
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
