//! What a kernel makes of a packet before it leaves: by which interface, from which address and port, to which MAC.

use std::net::{IpAddr, SocketAddr};

use nsnet_common::layout::NetworkId;
use nsnet_common::wire::{IpProtocol, Mac};
use socket2::{Domain, Socket, Type};

use super::super::error::{KernelError, Result};
use super::super::host::Host;
use super::super::link::Link;
use super::super::netlink::Netlink;
use super::super::netns::NetNs;
use super::super::route::Way;
use crate::model::explain::compose::{Endpoint, Ends, What, group_mac, solicited_group};
use crate::model::explain::walk::Entrance;
use crate::model::name::Name;
use crate::model::state::{Attachment, State};
use crate::model::uplink::Uplink;

/// A packet as far as it was said.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// What it is.
    pub what: What,
    /// From whom; the sender's own address when left out.
    pub source: Option<Endpoint>,
    /// To whom.
    pub destination: Endpoint,
    /// MAC of the sender; that of its interface when left out.
    pub from_mac: Option<Mac>,
    /// MAC of the receiver; that of the next hop when left out.
    pub to_mac: Option<Mac>,
}

/// Where a packet comes in, and between whom it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Departure {
    /// Where it comes in.
    pub entrance: Entrance,
    /// Between whom it goes.
    pub ends: Ends,
}

/// A port that is nobody's business.
const PORT: u16 = 40000;
/// A router outside that nobody knows.
const STRANGER: Mac = Mac([0x02, 0, 0, 0, 0, 0x01]);

/// The packet as the kernel of a namespace would send it. `network` is the one it is sent into, where that was said.
pub fn from_namespace(
    host: &Host,
    state: &State,
    name: &Name,
    network: Option<&Name>,
    wish: &Wish,
) -> Result<Departure> {
    let ns = host.member(name.as_str())?;
    let netlink = Netlink::inside(&ns)?;
    let what = || format!("send from namespace {name}");
    let attachments: Vec<&Attachment> = state.attachments.iter().filter(|port| port.ns == *name).collect();
    let only = match (network, attachments.as_slice()) {
        (_, []) => {
            return Err(KernelError::refused(what(), "it is in no network")
                .with_remedy("`nsnet attach NETWORK NS` puts it into one"));
        }
        (Some(network), all) => Some(
            *all.iter()
                .find(|port| port.network == *network)
                .ok_or_else(|| KernelError::refused(what(), format!("it is not in network {network}")))?,
        ),
        (None, [only]) => Some(*only),
        (None, _) => None,
    };
    let interface = match only {
        Some(port) => Some(netlink.existing_link(&port.inner)?),
        None => None,
    };
    let way = way(&netlink, wish, interface.as_ref(), network.is_some())
        .and_then(|way| way.ok_or_else(|| no_route(&what(), wish)))?;
    if way.is_local {
        return Err(KernelError::refused(
            what(),
            format!("{} is an address of its own: nothing leaves it", wish.destination.ip),
        ));
    }
    let link = netlink.link_by_index(way.index)?;
    let link = link.ok_or_else(|| KernelError::refused(what(), "the interface of its route is gone"))?;
    let Some(port) = attachments.into_iter().find(|port| port.inner == link.name) else {
        let why = format!("its route to {} is by {}, which leads into no network", wish.destination.ip, link.name);
        return Err(KernelError::refused(what(), why));
    };
    let id = state.networks.get(&port.network).map_or(NetworkId::OUTSIDE, crate::model::state::Network::id);
    let own = || port.ips.iter().copied().find(|ip| ip.is_ipv4() == wish.destination.ip.is_ipv4());
    let source = wish.source.map(|source| source.ip).or(way.source).or_else(own);
    let source = source.ok_or_else(|| {
        KernelError::refused(what(), format!("it has no address to reach {} from", wish.destination.ip))
    })?;
    let macs = macs(host, &netlink, wish, &way, &link, id)?;
    let source_port = source_port(&ns, wish, source);
    let ends = ends(wish, macs, source, source_port);
    Ok(Departure { entrance: Entrance::Namespace(port.port()), ends })
}

/// The packet as the host would send it into one of its networks.
pub fn from_host(host: &Host, state: &State, wish: &Wish) -> Result<Departure> {
    let what = || "send from the host".to_owned();
    let way = way(&host.netlink, wish, None, false)?.ok_or_else(|| no_route(&what(), wish))?;
    let link = host.netlink.link_by_index(way.index)?;
    let link = link.ok_or_else(|| KernelError::refused(what(), "the interface of its route is gone"))?;
    let network = state.networks.values().find(|network| network.name.as_str() == link.name);
    let Some(network) = network.filter(|_| !way.is_local) else {
        let ip = wish.destination.ip;
        let why = if way.is_local {
            format!(
                "{ip} is an address of its own, which no packet leaves for: a published port is found at the socket"
            )
        } else {
            format!("its route to {ip} is by {}, where what the host itself sends meets no program of ours", link.name)
        };
        return Err(KernelError::refused(what(), why));
    };
    let source = wish.source.map(|source| source.ip).or(way.source);
    let source =
        source.or_else(|| network.gateways().into_iter().find(|ip| ip.is_ipv4() == wish.destination.ip.is_ipv4()));
    let source = source.ok_or_else(|| {
        KernelError::refused(what(), format!("it has no address to reach {} from", wish.destination.ip))
    })?;
    let macs = macs(host, &host.netlink, wish, &way, &link, network.id())?;
    let ends = ends(wish, macs, source, source_port(&host.ns, wish, source));
    Ok(Departure { entrance: Entrance::Host(network.port()), ends })
}

/// The packet as it would come in by an uplink.
pub fn from_outside(host: &Host, uplink: &Uplink, wish: &Wish) -> Result<Departure> {
    let what = || format!("receive by uplink {}", uplink.interface);
    let link = host.netlink.link_by_index(uplink.ifindex)?;
    let link = link.ok_or_else(|| KernelError::refused(what(), "the interface is gone"))?;
    let source = wish.source.ok_or_else(|| {
        KernelError::refused(what(), "a packet from outside needs its sender's address, too")
            .with_remedy("say SOURCE DESTINATION")
    })?;
    let next = host.netlink.way_to(source.ip, None, None)?.and_then(|way| way.via).unwrap_or(source.ip);
    let from = match wish.from_mac {
        Some(mac) => mac,
        None => known_neighbour(&host.netlink, link.index, next)?.unwrap_or(STRANGER),
    };
    let to = wish.to_mac.or_else(|| group_mac(wish.destination.ip)).unwrap_or(Mac(link.mac.unwrap_or_default()));
    let ends = ends(wish, (from, to), source.ip, source.port.unwrap_or(PORT));
    Ok(Departure { entrance: Entrance::Uplink { port: uplink.port(), ifindex: uplink.ifindex }, ends })
}

/// The route. A question who has an address goes out by the interface that has such addresses, whatever the routes say.
fn way(netlink: &Netlink, wish: &Wish, only: Option<&Link>, is_told: bool) -> Result<Option<Way>> {
    let (ip, source) = (wish.destination.ip, wish.source.map(|source| source.ip));
    let on_link =
        |link: &Link| Way { index: link.index, via: None, source: None, is_local: false, is_broadcast: false };
    let is_group = group_mac(ip).is_some();
    match only {
        // Whoever names the receiver's MAC asks for no route either.
        Some(link) if wish.what == What::Neighbour || is_group || wish.to_mac.is_some() => Ok(Some(on_link(link))),
        Some(link) => netlink.way_to(ip, source, is_told.then_some(link.index)),
        None => netlink.way_to(ip, source, None),
    }
}

fn no_route(what: &str, wish: &Wish) -> KernelError {
    let error =
        KernelError::refused(what, format!("it has no route to {}, so its own kernel refuses", wish.destination.ip));
    error.with_remedy("`nsnet route add` gives a namespace one")
}

/// The sender's and the receiver's MAC.
fn macs(host: &Host, netlink: &Netlink, wish: &Wish, way: &Way, link: &Link, network: NetworkId) -> Result<(Mac, Mac)> {
    let from = wish.from_mac.unwrap_or(Mac(link.mac.unwrap_or_default()));
    if let Some(to) = wish.to_mac {
        return Ok((from, to));
    }
    let ip = wish.destination.ip;
    let to = match (wish.what, ip) {
        (What::Neighbour, IpAddr::V4(_)) => Some(Mac::BROADCAST),
        (What::Neighbour, IpAddr::V6(ip)) => group_mac(solicited_group(ip).into()),
        _ if way.is_broadcast => Some(Mac::BROADCAST),
        _ => group_mac(ip),
    };
    if let Some(to) = to {
        return Ok((from, to));
    }
    let next = way.via.unwrap_or(ip);
    if let Some(known) = known_neighbour(netlink, link.index, next)? {
        return Ok((from, known));
    }
    // It would ask, and be answered by the dataplane.
    let owners = host.maps().owners(network, [&next])?;
    let owner = owners.into_iter().find_map(|(_, owner)| owner);
    match owner.map(|id| host.maps().port(id)).transpose()?.flatten() {
        Some(port) => Ok((from, port.mac())),
        None => Err(KernelError::refused(
            format!("find the MAC of {next}"),
            "nobody in the network has that address, so nobody would answer",
        )
        .with_remedy("`nsnet explain arp` shows what becomes of the question; --to-mac names a MAC")),
    }
}

fn known_neighbour(netlink: &Netlink, index: u32, ip: IpAddr) -> Result<Option<Mac>> {
    let neighbours = netlink.neighbours()?;
    Ok(neighbours.into_iter().find(|known| known.index == index && known.ip == ip).and_then(|known| known.mac).map(Mac))
}

fn ends(wish: &Wish, macs: (Mac, Mac), source: IpAddr, source_port: u16) -> Ends {
    let destination = (wish.destination.ip, wish.destination.port.unwrap_or(0));
    Ends { macs, source: (source, source_port), destination }
}

/// The port that was said, or one that a socket would be given; of an echo request, its identifier.
fn source_port(ns: &NetNs, wish: &Wish, source: IpAddr) -> u16 {
    let said = wish.source.and_then(|source| source.port);
    let kind = match wish.what {
        What::Ip(IpProtocol::TCP) => Type::STREAM,
        What::Ip(IpProtocol::UDP | IpProtocol::SCTP) => Type::DGRAM,
        // As ping's, which takes its process's number.
        What::Ip(_) | What::Neighbour => return said.unwrap_or(std::process::id() as u16),
    };
    let given = || -> std::io::Result<u16> {
        let address = SocketAddr::new(source, 0);
        let socket = Socket::new(Domain::for_address(address), kind, None)?;
        socket.bind(&address.into())?;
        Ok(socket.local_addr()?.as_socket().map_or(PORT, |address| address.port()))
    };
    // An address that is not the namespace's gets any port.
    said.unwrap_or_else(|| ns.run(given).ok().and_then(std::result::Result::ok).unwrap_or(PORT))
}
