//! Linux bridge and iptables' MASQUERADE, to compare with: what nsnet replaces. Nothing but the lab ever makes them.
//!
//! ```text
//!   member ---- bridge in a host of its own ---- uplink ===== wan
//!               ip_forward, MASQUERADE
//! ```

use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;

use super::bridge;
use crate::kernel::netlink::Netlink;
use crate::kernel::netns::NetNs;
use crate::kernel::route::Route;
use crate::kernel::sysctl;
use crate::kernel::veth::VethSpec;

/// The bridge.
const BRIDGE: &str = "bridge";
/// The host's interface to the outside.
const UPLINK: &str = "uplink";
/// The tool for the rule; its rules are nftables' or the older ones, as the system has it.
const TOOL: &str = "iptables";

/// What is to be made, of IPv4 only.
#[derive(Clone, Copy, Debug)]
pub struct Masquerade<'a> {
    /// The namespace that forwards and translates; nothing else may be in it, as its settings are changed.
    pub host: &'a NetNs,
    /// The namespace behind it.
    pub member: &'a NetNs,
    /// The outside world.
    pub wan: &'a NetNs,
    /// The interface made in `wan`.
    pub wan_interface: &'a str,
    /// The member's address.
    pub member_address: IpNet,
    /// The bridge's address: the member's gateway.
    pub gateway: IpNet,
    /// The host's address on the uplink.
    pub uplink: IpNet,
    /// The address of `wan_interface`.
    pub wan_address: IpNet,
}

/// What the tool calls itself, as `iptables v1.8.11 (nf_tables)`; `None` when it is not installed.
pub fn tool() -> Option<String> {
    let output = Command::new(TOOL).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

impl Masquerade<'_> {
    /// Makes all but the rule, as `ip` and `sysctl` do by hand. It goes with its namespaces.
    ///
    /// # Errors
    /// When the kernel refuses a step.
    pub fn make(&self) -> Result<()> {
        bridge::make(self.host, BRIDGE, &[(self.member, self.member_address)])?;
        let (host, member, wan) =
            (Netlink::inside(self.host)?, Netlink::inside(self.member)?, Netlink::inside(self.wan)?);
        let bridge = host.existing_link(BRIDGE)?;
        host.add_address(bridge.index, self.gateway)?;
        host.set_up(bridge.index)?;

        let uplink = VethSpec { name: UPLINK, ..VethSpec::default() };
        let outside = VethSpec { name: self.wan_interface, ..VethSpec::default() };
        let uplink = host.create_veth(&uplink, &outside, Some(self.wan))?;
        let outside = wan.existing_link(self.wan_interface)?;
        for (netlink, index, address) in [(&host, uplink.index, self.uplink), (&wan, outside.index, self.wan_address)] {
            netlink.add_address(index, address)?;
            netlink.set_up(index)?;
        }
        let everything: IpNet = "0.0.0.0/0".parse()?;
        let via: IpAddr = self.gateway.addr();
        member.add_route(&Route { dest: everything, via: Some(via), index: None })?;

        let forwards = self.host.run(|| sysctl::write("net/ipv4/ip_forward", "1"))??;
        ensure!(forwards, "this kernel has no IPv4");
        Ok(())
    }
}

/// Adds the rule in `host`, for what comes from `subnet`.
///
/// # Errors
/// When the tool is not installed, and when the kernel has no such rules.
pub fn add_rule(host: &NetNs, subnet: IpNet) -> Result<()> {
    let subnet = subnet.to_string();
    let rule = ["-t", "nat", "-A", "POSTROUTING", "-s", &subnet, "-o", UPLINK, "-j", "MASQUERADE"];
    // A child begins in the namespace of the thread that starts it.
    let output = host.run(|| Command::new(TOOL).arg("--wait").args(rule).output())?;
    let output = output.with_context(|| format!("cannot run {TOOL}"))?;
    if !output.status.success() {
        bail!("`{TOOL} {}` failed: {}", rule.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
