//! A network: the host's own interface in it, and its entries.

use ipnet::IpNet;

use super::Around;
use super::interface::{check_free, set_addresses, set_ipv6, set_link, with_prefix};
use super::port::host_entry;
use crate::kernel::dataplane::Hook;
use crate::kernel::error::{KernelError, Result};
use crate::kernel::host::Host;
use crate::kernel::link::Link;
use crate::kernel::policy;
use crate::kernel::route::Route;
use crate::kernel::veth::VethSpec;
use crate::model::name::unused_end;
use crate::model::state::Network;

pub(super) fn check(host: &Host, network: &Network, around: &Around<'_>) -> Result<()> {
    for name in [network.name.as_str(), &unused_end(&network.name)] {
        check_free(&host.netlink, name, network.port(), around)?;
    }
    check_subnets(host, network, around)
}

/// Makes the network, or what is missing of it: connections go on over what is there.
pub(super) fn add(host: &Host, network: &Network) -> Result<()> {
    let name = network.name.as_str();
    let (link, end) = match standing_pair(host, network)? {
        Some(pair) => pair,
        None => {
            host.netlink.delete_link(network.port().ifindex())?;
            make_pair(host, network)?
        }
    };
    set_link(&host.netlink, &link, Some(network.mac), network.mtu)?;
    set_link(&host.netlink, &end, None, network.mtu)?;
    set_ipv6(name, network.has_ipv6())?;
    policy::set(host, network)?;
    // Before the link is up, so that nothing passes by the program.
    host.dataplane.attach(&host.netlink, host.features, network.port(), name, Hook::Host)?;
    let gateways = network.subnets.iter().map(|subnet| with_prefix(subnet.gateway, &subnet.net));
    set_addresses(&host.netlink, link.index, gateways)?;
    let maps = host.maps();
    for subnet in &network.subnets {
        maps.insert_subnet(&subnet.net, network.id())?;
    }
    // Before, too: a router says hello (MLD) as soon as the link is up, which would be of an unknown port.
    maps.mend_list(network.id())?;
    maps.ensure_port(&host_entry(network))?;
    host.netlink.set_up(end.index)?;
    host.netlink.set_up(link.index)
}

/// Both ends of the network's own pair, with their names.
fn standing_pair(host: &Host, network: &Network) -> Result<Option<(Link, Link)>> {
    let Some(link) = host.netlink.link_by_index(network.port().ifindex())? else { return Ok(None) };
    let Some(end) = host.netlink.link(&unused_end(&network.name))? else { return Ok(None) };
    let is_whole =
        link.name == network.name.as_str() && link.peer_index == Some(end.index) && link.peer_netnsid.is_none();
    Ok(is_whole.then_some((link, end)))
}

fn make_pair(host: &Host, network: &Network) -> Result<(Link, Link)> {
    let (name, end) = (network.name.as_str(), unused_end(&network.name));
    let mtu = Some(u32::from(network.mtu));
    let port = VethSpec { name, index: Some(network.port().ifindex()), mac: Some(network.mac.0), mtu, quiet: false };
    let unused = VethSpec { name: &end, mtu, quiet: true, ..VethSpec::default() };
    let link = host.netlink.create_veth(&port, &unused, None)?;
    Ok((link, host.netlink.existing_link(&end)?))
}

pub(super) fn delete(host: &Host, network: &Network) -> Result<()> {
    if host.dataplane.loaded()? {
        let maps = host.maps();
        maps.remove_port(&host_entry(network))?;
        for subnet in &network.subnets {
            maps.remove_subnet(&subnet.net)?;
        }
        maps.clear_policy(network.id())?;
        host.dataplane.detach(network.port())?;
    }
    // Until it is gone, nothing gets past what stands behind its program.
    host.netlink.delete_link(network.port().ifindex()).map(|_was_there| ())
}

/// RFC 4787 REQ-7: addresses of the network must not be ones that the host already reaches otherwise.
fn check_subnets(host: &Host, network: &Network, around: &Around<'_>) -> Result<()> {
    let (mut addresses, mut routes) = (host.netlink.all_addresses()?, host.netlink.routes()?);
    addresses.retain(|(index, _)| !around.ports.contains(index));
    routes.retain(|route| !route.index.is_some_and(|index| around.ports.contains(&index)));
    match overlap(network, &addresses, &routes) {
        Some(Overlap { subnet, other, how }) => {
            let why = format!("subnet {subnet} overlaps {other}, {how}");
            let refused = KernelError::refused(format!("make network {}", network.name), why);
            Err(refused.with_remedy("choose another subnet"))
        }
        None => Ok(()),
    }
}

/// A subnet of a network whose addresses the host reaches otherwise.
pub(crate) struct Overlap {
    pub(crate) subnet: IpNet,
    /// What of the host's it is that overlaps.
    pub(crate) other: IpNet,
    how: &'static str,
}

/// Where the host reaches a network's addresses otherwise: by an address of its own, or by a route.
pub(crate) fn overlap(network: &Network, addresses: &[(u32, IpNet)], routes: &[Route]) -> Option<Overlap> {
    let own = network.port().ifindex();
    let shared = |net: &IpNet, how| {
        let (first, last) = (net.network(), net.broadcast());
        let mut subnets = network.subnets.iter().map(|subnet| subnet.net);
        let subnet = subnets.find(|it| it.contains(&first) || it.contains(&last) || net.contains(&it.network()))?;
        Some(Overlap { subnet, other: *net, how })
    };
    let mut addresses = addresses.iter().filter(|(index, _)| *index != own);
    let by_address = addresses.find_map(|(_, address)| shared(address, "which an interface of the host has"));
    let is_connected = |route: &&Route| route.via.is_none() && route.dest.prefix_len() > 0;
    let mut routes = routes.iter().filter(is_connected).filter(|route| route.index != Some(own));
    by_address.or_else(|| routes.find_map(|route| shared(&route.dest, "to which the host has a route by an interface")))
}
