//! A cable: a veth pair between two namespaces.

use super::Around;
use super::interface::{set_addresses, set_ipv6, taken};
use crate::kernel::error::Result;
use crate::kernel::host::Host;
use crate::kernel::netlink::Netlink;
use crate::kernel::netns::NetNs;
use crate::kernel::veth::VethSpec;
use crate::model::state::{Cable, CableEnd};

/// `is_known`: there is to be such a cable already, and what has its names is taken for it.
pub(super) fn check(host: &Host, cable: &Cable, around: &Around<'_>, is_known: bool) -> Result<()> {
    let mut members = Vec::new();
    for end in [&cable.a, &cable.b] {
        members.extend(around.member(host, &end.ns)?);
    }
    // Left by a state file that was lost.
    if let [a, b] = members.as_slice()
        && is_standing(cable, &Netlink::inside(a)?, b, &Netlink::inside(b)?)?
    {
        return Ok(());
    }
    [&cable.a, &cable.b].into_iter().try_for_each(|end| {
        let Some(ns) = around.member(host, &end.ns)? else { return Ok(()) };
        let Some(link) = Netlink::inside(&ns)?.link(&end.interface)? else { return Ok(()) };
        if around.takes_away(&end.ns, &link) || (is_known && link.kind.as_deref() == Some("veth")) {
            return Ok(());
        }
        Err(taken(&format!("{} in namespace {}", end.interface, end.ns)))
    })
}

/// Lays the cable, or puts right what is wrong with it: connections go on over what is there.
pub(super) fn add(host: &Host, cable: &Cable) -> Result<()> {
    let (a, b) = (host.member(cable.a.ns.as_str())?, host.member(cable.b.ns.as_str())?);
    let (in_a, in_b) = (Netlink::inside(&a)?, Netlink::inside(&b)?);
    if !is_standing(cable, &in_a, &b, &in_b)? {
        delete(cable)?;
        let end = VethSpec { name: &cable.a.interface, ..VethSpec::default() };
        let peer = VethSpec { name: &cable.b.interface, ..VethSpec::default() };
        in_a.create_veth(&end, &peer, Some(&b))?;
    }
    let first = configure(&a, &in_a, &cable.a)?;
    let second = configure(&b, &in_b, &cable.b)?;
    in_a.wait_until_running(first)?;
    in_b.wait_until_running(second)
}

/// Whether both ends are there, and are each other's.
fn is_standing(cable: &Cable, in_a: &Netlink, b: &NetNs, in_b: &Netlink) -> Result<bool> {
    let (one, other) = (in_a.link(&cable.a.interface)?, in_b.link(&cable.b.interface)?);
    let (Some(one), Some(other)) = (one, other) else { return Ok(false) };
    let are_ends = one.peer_index == Some(other.index) && other.peer_index == Some(one.index);
    Ok(are_ends && one.peer_netnsid == in_a.netns_id(b)?)
}

/// Gives an end what it is to have, and sets it up; its index.
fn configure(ns: &NetNs, netlink: &Netlink, end: &CableEnd) -> Result<u32> {
    let has_ipv6 = end.address.is_some_and(|address| address.addr().is_ipv6());
    ns.run(|| set_ipv6(&end.interface, has_ipv6))??;
    let link = netlink.existing_link(&end.interface)?;
    set_addresses(netlink, link.index, end.address.into_iter().map(Ok))?;
    netlink.set_up(link.index)?;
    Ok(link.index)
}

/// Deleting one end deletes the other; either will do, in case one namespace is gone.
pub(super) fn delete(cable: &Cable) -> Result<()> {
    for end in [&cable.a, &cable.b] {
        let Some(ns) = NetNs::find(end.ns.as_str())? else { continue };
        let netlink = Netlink::inside(&ns)?;
        if let Some(link) = netlink.link(&end.interface)? {
            netlink.delete_link(link.index)?;
        }
    }
    Ok(())
}
