//! A network's ports in the dataplane's maps: their entries, their addresses, and the list that floods go along.
//!
//! An entry is in `PORTS` before anything else of its port, and leaves it last: a port that is not there is nowhere.

use std::collections::HashMap;
use std::net::IpAddr;

use aya::maps::{Array, MapData};
use nsnet_common::layout::{
    AddressKey, FOREIGN_PER_PORT, ForeignKey, MAX_PORTS, Network, NetworkId, Port, PortId, Station, StationKey, names,
};
use nsnet_common::wire::IpAddress;

use super::batch;
use super::dataplane::refused;
use super::error::{KernelError, Result};
use super::maps::{Maps, found, get_slot, gone, set_slot};

/// All that the dataplane is told of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortEntry {
    /// Its entry; the next port of the list is not part of it.
    pub port: Port,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether the MAC is one that the user chose: such a one is in `STATIONS`.
    pub mac_given: bool,
}

impl PortEntry {
    fn id(&self) -> PortId {
        self.port.id()
    }

    /// The key of its MAC, if that is in `STATIONS`.
    pub(super) fn station(&self) -> Option<StationKey> {
        self.mac_given.then(|| StationKey { network: self.port.network(), mac: self.port.mac() })
    }

    /// The keys of its addresses.
    pub(super) fn address_keys(&self) -> impl Iterator<Item = AddressKey> {
        let network = self.port.network();
        self.addresses.iter().map(move |ip| AddressKey { network, ip: IpAddress::from(*ip) })
    }
}

impl Maps {
    /// Makes a port known, or what is not yet as it should be of it: from here on it is delivered to.
    pub(crate) fn ensure_port(&self, entry: &PortEntry) -> Result<()> {
        let (id, network) = (entry.id(), entry.port.network());
        let mut ports = self.ports()?;
        // In this order a frame never finds half of it.
        let is_listed = match self.port(id)? {
            Some(known) => {
                set_slot(&mut ports, names::PORTS, u32::from(id.0), entry.port.followed_by(known.next()))?;
                self.list(network)?.contains(&id)
            }
            None => {
                self.reset_counters(id)?;
                let head = self.network(network)?;
                set_slot(&mut ports, names::PORTS, u32::from(id.0), entry.port.followed_by(head.first()))?;
                false
            }
        };
        let mut owners = self.addresses()?;
        for key in entry.address_keys() {
            let entered = owners.insert(key, id, 0);
            entered.map_err(|error| refused(format!("enter address {}", IpAddr::from(key.ip)), error))?;
        }
        if let Some(key) = entry.station() {
            let entered = self.stations_map()?.insert(key, Station::fixed(id), 0);
            entered.map_err(|error| refused(format!("enter MAC {}", key.mac), error))?;
        }
        if is_listed { Ok(()) } else { self.put_into_list(&mut ports, entry) }
    }

    /// Puts an entry in front of its network's list.
    fn put_into_list(&self, ports: &mut Array<MapData, Port>, entry: &PortEntry) -> Result<()> {
        let (id, network) = (entry.id(), entry.port.network());
        let mut networks = self.networks()?;
        let head = get_slot(&networks, names::NETWORKS, u32::from(network.0))?;
        set_slot(ports, names::PORTS, u32::from(id.0), entry.port.followed_by(head.first()))?;
        let learning = head.learning() + u16::from(entry.port.learns());
        set_slot(&mut networks, names::NETWORKS, u32::from(network.0), Network::new(id, head.ports() + 1, learning))
    }

    /// Forgets a port, wherever it is known.
    pub(crate) fn remove_port(&self, entry: &PortEntry) -> Result<()> {
        let id = entry.id();
        let known = self.port(id)?;
        let mut owners = self.addresses()?;
        for key in entry.address_keys() {
            if found(owners.get(&key, 0), names::ADDRESSES)? == Some(id) {
                gone(owners.remove(&key), names::ADDRESSES)?;
            }
        }
        let mut stations = self.stations_map()?;
        let mut behind: Vec<StationKey> = entry.station().into_iter().collect();
        if known.is_some_and(|known| known.learns()) {
            let mut foreign = self.foreign()?;
            for place in 0..FOREIGN_PER_PORT {
                let key = ForeignKey { port: id, place };
                if let Some(mac) = found(foreign.get(&key, 0), names::FOREIGN)? {
                    behind.push(StationKey { network: entry.port.network(), mac });
                    gone(foreign.remove(&key), names::FOREIGN)?;
                }
            }
        }
        for key in behind {
            // A foreign MAC may have moved to another port.
            if found(stations.get(&key, 0), names::STATIONS)?.is_some_and(|station| station.port() == id) {
                gone(stations.remove(&key), names::STATIONS)?;
            }
        }
        if known.is_some() { self.unlink(id, entry.port.network()) } else { Ok(()) }
    }

    /// Takes a port out of its network's list, then out of the array.
    pub(super) fn unlink(&self, id: PortId, network: NetworkId) -> Result<()> {
        let all = self.all_ports()?;
        let list = walk(&all, self.network(network)?.first());
        let mut ports = self.ports()?;
        if let Some(position) = list.iter().position(|member| *member == id) {
            let mut networks = self.networks()?;
            let head = get_slot(&networks, names::NETWORKS, u32::from(network.0))?;
            let port = get_slot(&ports, names::PORTS, u32::from(id.0))?;
            let learning = head.learning().saturating_sub(u16::from(port.learns()));
            let before = position.checked_sub(1).and_then(|before| list.get(before));
            let first = if before.is_none() { port.next() } else { head.first() };
            if let Some(before) = before {
                let previous = get_slot(&ports, names::PORTS, u32::from(before.0))?;
                set_slot(&mut ports, names::PORTS, u32::from(before.0), previous.followed_by(port.next()))?;
            }
            let head = Network::new(first, head.ports().saturating_sub(1), learning);
            set_slot(&mut networks, names::NETWORKS, u32::from(network.0), head)?;
        }
        let port = get_slot(&ports, names::PORTS, u32::from(id.0))?;
        set_slot(&mut ports, names::PORTS, u32::from(id.0), port.removed())
    }

    /// The ports of a network in the order in which a flood meets them.
    pub(super) fn list(&self, network: NetworkId) -> Result<Vec<PortId>> {
        let first = self.network(network)?.first();
        Ok(walk(&self.all_ports()?, first))
    }

    /// What is wrong with a network's list: whether each of its ports is in it once, and nothing else.
    pub(super) fn list_is_whole(&self, network: NetworkId) -> Result<bool> {
        let (all, head) = (self.all_ports()?, self.network(network)?);
        let mut list = walk(&all, head.first());
        list.sort_unstable();
        let members = members(&all, network);
        let learning = members.iter().filter(|port| port.learns()).count();
        let counts = (usize::from(head.ports()), usize::from(head.learning()));
        Ok(list.iter().copied().eq(members.iter().map(Port::id)) && counts == (members.len(), learning))
    }

    /// Makes a network's list anew from the ports that belong to it, unless it is whole.
    pub(super) fn mend_list(&self, network: NetworkId) -> Result<()> {
        if self.list_is_whole(network)? {
            return Ok(());
        }
        let all = self.all_ports()?;
        let members = members(&all, network);
        let (mut ports, mut networks) = (self.ports()?, self.networks()?);
        // From the end, so that a flood that runs meanwhile finds an end.
        let mut next = PortId::NONE;
        for port in members.iter().rev() {
            set_slot(&mut ports, names::PORTS, u32::from(port.id().0), port.followed_by(next))?;
            next = port.id();
        }
        let learning = members.iter().filter(|port| port.learns()).count();
        let head = Network::new(next, members.len() as u16, learning as u16);
        set_slot(&mut networks, names::NETWORKS, u32::from(network.0), head)
    }

    /// All of `PORTS`, in order.
    pub(super) fn all_ports(&self) -> Result<Vec<Port>> {
        let mut all = vec![Port::default(); MAX_PORTS as usize];
        let data = self.data(names::PORTS)?;
        batch::for_each(&data, names::PORTS, |index: u32, port: Port| {
            if let Some(slot) = all.get_mut(index as usize) {
                *slot = port;
            }
            Ok::<_, KernelError>(())
        })?;
        Ok(all)
    }

    /// Every owner of an address.
    pub(super) fn all_owners(&self) -> Result<HashMap<AddressKey, PortId>> {
        let mut owners = HashMap::new();
        let data = self.data(names::ADDRESSES)?;
        batch::for_each(&data, names::ADDRESSES, |key: AddressKey, port: PortId| {
            owners.insert(key, port);
            Ok::<_, KernelError>(())
        })?;
        Ok(owners)
    }
}

/// The list from `first` on; of one that was damaged, as much as there is without going in a circle.
fn walk(all: &[Port], first: PortId) -> Vec<PortId> {
    let mut list = Vec::new();
    let mut at = first;
    while at != PortId::NONE && list.len() < all.len() {
        list.push(at);
        at = all.get(usize::from(at.0)).map_or(PortId::NONE, Port::next);
    }
    list
}

/// The ports that belong to a network, by their numbers.
fn members(all: &[Port], network: NetworkId) -> Vec<Port> {
    let is_member = |(index, port): &(usize, &Port)| {
        port.id() != PortId::NONE
            && usize::from(port.id().0) == *index
            && !port.is_uplink()
            && port.network() == network
    };
    all.iter().enumerate().filter(is_member).map(|(_, port)| *port).collect()
}

#[cfg(test)]
mod tests {
    use nsnet_common::wire::Mac;

    use super::*;

    fn port(id: u16, network: u16, next: u16) -> Port {
        Port::new(PortId(id), NetworkId(network), Mac::ZERO, 1500, 0).followed_by(PortId(next))
    }

    #[test]
    fn a_list_is_walked_to_its_end_and_a_damaged_one_too() {
        let mut all = vec![Port::default(), port(1, 1, 3), port(2, 2, 0), port(3, 1, 0)];
        assert_eq!(walk(&all, PortId(1)), [PortId(1), PortId(3)]);
        assert_eq!(walk(&all, PortId::NONE), []);
        all[3] = port(3, 1, 1);
        assert_eq!(walk(&all, PortId(1)).len(), all.len(), "a circle");
        all[3] = port(3, 1, 4000);
        assert_eq!(walk(&all, PortId(1)), [PortId(1), PortId(3), PortId(4000)]);
        let ids = |network| members(&all, NetworkId(network)).iter().map(Port::id).collect::<Vec<_>>();
        assert_eq!((ids(1), ids(2), ids(3)), (vec![PortId(1), PortId(3)], vec![PortId(2)], vec![]));
    }
}
