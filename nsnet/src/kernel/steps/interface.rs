//! What steps do with interfaces: only what is not as it should be is changed.

use std::net::IpAddr;

use ipnet::IpNet;
use nsnet_common::layout::PortId;
use nsnet_common::wire::Mac;

use super::Around;
use crate::kernel::error::{KernelError, Result};
use crate::kernel::link::Link;
use crate::kernel::netlink::Netlink;
use crate::kernel::sysctl;

/// A name that only our own port may have already, left over from a step that was cut off; or one that goes.
pub(super) fn check_free(netlink: &Netlink, name: &str, port: PortId, around: &Around<'_>) -> Result<()> {
    let Some(link) = netlink.link(name)? else { return Ok(()) };
    let is_ours = |index: u32| index == port.ifindex() || around.ports.contains(&index);
    if is_ours(link.index) || link.peer_index.is_some_and(is_ours) { Ok(()) } else { Err(taken(name)) }
}

pub(super) fn taken(name: &str) -> KernelError {
    KernelError::refused(format!("create interface {name}"), "there is one of this name already")
        .with_remedy("choose another name")
}

/// Sets an interface's MTU, and its MAC where that is ours to choose.
pub(super) fn set_link(netlink: &Netlink, link: &Link, mac: Option<Mac>, mtu: u16) -> Result<()> {
    if link.mtu != u32::from(mtu) {
        netlink.set_mtu(link.index, mtu.into())?;
    }
    match mac {
        Some(mac) if link.mac != Some(mac.0) => netlink.set_mac(link.index, mac),
        _ => Ok(()),
    }
}

/// Gives an interface addresses. One that it has with another prefix length gets this one; others stay.
pub(super) fn set_addresses(
    netlink: &Netlink,
    index: u32,
    addresses: impl Iterator<Item = Result<IpNet>>,
) -> Result<()> {
    let existing = netlink.addresses(index)?;
    for address in addresses {
        let address = address?;
        for other in existing.iter().filter(|other| other.addr() == address.addr() && **other != address) {
            netlink.remove_address(index, *other)?;
        }
        if !existing.contains(&address) {
            netlink.add_address(index, address)?;
        }
    }
    Ok(())
}

/// IPv6 on an interface of the calling thread's namespace: off where it is not asked for (CVE-2024-32473), else with
/// addresses that may be used at once (the dataplane knows who has which; duplicates cannot be).
pub(super) fn set_ipv6(interface: &str, on: bool) -> Result<()> {
    let disable = format!("net/ipv6/conf/{interface}/disable_ipv6");
    if sysctl::write(&disable, if on { "0" } else { "1" })? && !on && sysctl::read(&disable)?.as_deref() != Some("1") {
        return Err(KernelError::refused(format!("turn IPv6 off on {interface}"), "the kernel keeps it on"));
    }
    if on {
        sysctl::write(&format!("net/ipv6/conf/{interface}/accept_dad"), "0")?;
        sysctl::write(&format!("net/ipv6/conf/{interface}/addr_gen_mode"), "0")?;
    }
    Ok(())
}

/// An address with the prefix length of its subnet.
pub(crate) fn with_prefix(ip: IpAddr, net: &IpNet) -> Result<IpNet> {
    IpNet::new(ip, net.prefix_len())
        .map_err(|error| KernelError::refused(format!("give {ip} the prefix of {net}"), error))
}
