//! What is in the kernel and belongs to nothing in the state: entries, pins and interfaces of ours.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use nsnet_common::layout::{
    AddressKey, MAPPED_IPV4_BITS, MAX_NETWORKS, NetworkId, Policy, PortId, PublishedKey, Station, StationKey, names,
};
use nsnet_common::wire::{IpAddress, IpProtocol};
use zerocopy::FromZeros as _;

use super::batch;
use super::error::{KernelError, Result};
use super::host::Host;
use super::maps::{all, gone};
use super::publish::{self, PublishMaps};
use super::steps::{entry, host_entry};
use crate::model::drift::{Difference, Stray};
use crate::model::name::unused_end;
use crate::model::state::State;

/// Everything that is left over, with where it was found. `is_whole`: the maps are there to be read.
pub(super) fn find(host: &Host, state: &State, is_whole: bool) -> Result<Vec<(Stray, Difference)>> {
    let known = Known::of(state);
    let mut strays = Vec::new();
    if is_whole {
        known.ports(host, &mut strays)?;
        known.addresses(host, &mut strays)?;
        known.networks(host, &mut strays)?;
        known.publishes(host, state, &mut strays)?;
    }
    known.links(host, &mut strays)?;
    known.interfaces(host, &mut strays)?;
    let is_in = |(stray, place): (Stray, &str)| (stray, Difference::extra("what is in", place));
    Ok(strays.into_iter().map(is_in).collect())
}

type Strays = Vec<(Stray, &'static str)>;

/// What belongs to something.
struct Known {
    ports: HashSet<PortId>,
    networks: HashSet<NetworkId>,
    subnets: HashSet<IpNet>,
    uplinks: HashSet<u32>,
    addresses: HashSet<AddressKey>,
    stations: HashSet<StationKey>,
    interfaces: HashSet<String>,
}

impl Known {
    fn of(state: &State) -> Self {
        let attached = state.attachments.iter().filter_map(|port| Some((port, state.networks.get(&port.network)?)));
        let mut entries: Vec<_> = state.networks.values().map(host_entry).collect();
        entries.extend(attached.map(|(port, network)| entry(port, network)));
        let of_networks =
            state.networks.values().flat_map(|network| [network.name.to_string(), unused_end(&network.name)]);
        let of_ports = state.attachments.iter().map(|port| port.outer.clone());
        Self {
            ports: entries
                .iter()
                .map(|entry| entry.port.id())
                .chain(state.uplinks.iter().map(super::super::model::uplink::Uplink::port))
                .collect(),
            networks: state.networks.values().map(super::super::model::state::Network::id).collect(),
            subnets: state.networks.values().flat_map(|network| &network.subnets).map(|subnet| subnet.net).collect(),
            uplinks: state.uplinks.iter().map(|uplink| uplink.ifindex).collect(),
            addresses: entries.iter().flat_map(super::members::PortEntry::address_keys).collect(),
            stations: entries.iter().filter_map(super::members::PortEntry::station).collect(),
            interfaces: of_networks.chain(of_ports).collect(),
        }
    }

    fn ports(&self, host: &Host, strays: &mut Strays) -> Result<()> {
        let maps = host.maps();
        for (index, port) in maps.all_ports()?.iter().enumerate() {
            let id = PortId(index as u16);
            if port.id() != PortId::NONE && !self.ports.contains(&id) {
                strays.push((Stray::Port(id.0), names::PORTS));
            }
        }
        for ifindex in
            all(maps.uplinks()?.keys(), names::UPLINKS)?.into_iter().filter(|ifindex| !self.uplinks.contains(ifindex))
        {
            strays.push((Stray::Uplink(ifindex), names::UPLINKS));
        }
        Ok(())
    }

    fn addresses(&self, host: &Host, strays: &mut Strays) -> Result<()> {
        let maps = host.maps();
        for key in maps.all_owners()?.keys().filter(|key| !self.addresses.contains(key)) {
            strays.push((Stray::Address { network: key.network.0, ip: IpAddr::from(key.ip) }, names::ADDRESSES));
        }
        let data = maps.data(names::STATIONS)?;
        batch::for_each(&data, names::STATIONS, |key: StationKey, station: Station| {
            if station.is_fixed() && !self.stations.contains(&key) {
                strays.push((Stray::Station { network: key.network.0, mac: key.mac }, names::STATIONS));
            }
            Ok::<_, KernelError>(())
        })
    }

    fn networks(&self, host: &Host, strays: &mut Strays) -> Result<()> {
        let maps = host.maps();
        for key in all(maps.subnets()?.keys(), names::SUBNETS)? {
            let ip = IpAddr::from(key.data().0);
            let bits = key.prefix_len().saturating_sub(if ip.is_ipv4() { MAPPED_IPV4_BITS } else { 0 });
            let net = u8::try_from(bits).ok().and_then(|bits| IpNet::new(ip, bits).ok());
            strays
                .extend(net.filter(|net| !self.subnets.contains(net)).map(|net| (Stray::Subnet(net), names::SUBNETS)));
        }
        let data = maps.data(names::POLICIES)?;
        batch::for_each(&data, names::POLICIES, |index: u32, policy: Policy| {
            let id = NetworkId(index as u16);
            // That of no network is the host's, which has an object of its own.
            let is_ours = id == NetworkId::OUTSIDE || self.networks.contains(&id) || index >= MAX_NETWORKS;
            if !is_ours && policy != Policy::new_zeroed() {
                strays.push((Stray::Policy(id.0), names::POLICIES));
            }
            Ok::<_, KernelError>(())
        })
    }

    fn publishes(&self, host: &Host, state: &State, strays: &mut Strays) -> Result<()> {
        let maps = PublishMaps::of(&host.maps())?;
        let entries = || state.publishes.iter().flat_map(|publish| publish.entries.iter().map(move |e| (publish, e)));
        let places: HashSet<u16> = entries().map(|(_, entry)| entry.place).collect();
        let keys: HashSet<(PublishedKey, u32)> =
            entries().flat_map(|(publish, entry)| publish::prefixes(publish, entry)).collect();
        for place in maps.used_places(&host.maps())?.into_iter().filter(|place| !places.contains(place)) {
            strays.push((Stray::Publish(place), names::PUBLISHES));
        }
        for (key, bits) in maps.prefixes()?.into_iter().filter(|prefix| !keys.contains(prefix)) {
            let (protocol, ip) = (key.protocol().0, IpAddr::from(key.ip()));
            strays.push((Stray::Published { protocol, ip, port: key.port(), bits }, names::PUBLISHED));
        }
        Ok(())
    }

    fn links(&self, host: &Host, strays: &mut Strays) -> Result<()> {
        for port in host.dataplane.linked_ports()?.into_iter().filter(|port| !self.ports.contains(port)) {
            strays.push((Stray::Link(port.0), "links"));
        }
        Ok(())
    }

    /// Only we give interfaces such an index; but what has another kind of name may be somebody's who does it, too.
    fn interfaces(&self, host: &Host, strays: &mut Strays) -> Result<()> {
        for link in host.netlink.links()? {
            let is_port = PortId::from_ifindex(link.index) != PortId::NONE && link.kind.as_deref() == Some("veth");
            let is_named_so = link.name.starts_with("veth-") && link.name.ends_with("-br");
            if is_port && is_named_so && !self.interfaces.contains(&link.name) {
                strays.push((Stray::Interface { index: link.index, name: link.name }, "the host"));
            }
        }
        Ok(())
    }
}

/// Removes a leftover.
pub(super) fn remove(host: &Host, stray: &Stray) -> Result<()> {
    if let Stray::Interface { index, .. } = stray {
        return host.netlink.delete_link(*index).map(|_was_there| ());
    }
    if let Stray::Link(port) = stray {
        return host.dataplane.detach(PortId(*port));
    }
    if !host.dataplane.loaded()? {
        return Ok(());
    }
    let maps = host.maps();
    match stray {
        Stray::Port(id) => {
            let network = maps.port(PortId(*id))?.map(|port| port.network());
            match network.filter(|network| *network != NetworkId::OUTSIDE) {
                Some(network) => maps.unlink(PortId(*id), network),
                None => maps.clear_port(PortId(*id)),
            }
        }
        Stray::Address { network, ip } => {
            let key = AddressKey { network: NetworkId(*network), ip: IpAddress::from(*ip) };
            gone(maps.addresses()?.remove(&key), names::ADDRESSES)
        }
        Stray::Station { network, mac } => {
            let key = StationKey { network: NetworkId(*network), mac: *mac };
            gone(maps.stations_map()?.remove(&key), names::STATIONS)
        }
        Stray::Subnet(net) => maps.remove_subnet(net),
        Stray::Policy(network) => maps.clear_policy(NetworkId(*network)),
        Stray::Uplink(ifindex) => gone(maps.uplinks()?.remove(ifindex), names::UPLINKS),
        Stray::Publish(place) => PublishMaps::of(&maps)?.clear(*place),
        Stray::Published { protocol, ip, port, bits } => {
            let key = PublishedKey::new(IpProtocol(*protocol), IpAddress::from(*ip), *port);
            PublishMaps::of(&maps)?.remove_prefix(key, *bits)
        }
        Stray::Link(_) | Stray::Interface { .. } => Ok(()),
    }
}
