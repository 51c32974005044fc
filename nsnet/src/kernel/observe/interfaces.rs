//! The interfaces of one namespace, and what is wrong with one of them.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;
use nsnet_common::wire::Mac;

use crate::kernel::error::Result;
use crate::kernel::link::Link;
use crate::kernel::netlink::Netlink;
use crate::model::drift::Difference;

/// Links by their names, and addresses by the links' indexes.
pub(super) struct Interfaces {
    links: HashMap<String, Link>,
    addresses: HashMap<u32, Vec<IpNet>>,
}

/// What an interface should be; `None` where that does not matter. It is to be up.
#[derive(Default)]
pub(super) struct Expected<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// Its index.
    pub(super) index: Option<u32>,
    /// The index of a veth's other end.
    pub(super) peer: Option<u32>,
    /// Its MAC.
    pub(super) mac: Option<Mac>,
    /// Its MTU.
    pub(super) mtu: Option<u16>,
    /// The addresses that it must have, with their prefix lengths.
    pub(super) addresses: Vec<IpNet>,
}

impl<'a> Expected<'a> {
    /// An interface with this name, of which nothing else is expected.
    pub(super) fn named(name: &'a str) -> Self {
        Self { name, ..Self::default() }
    }
}

impl Interfaces {
    /// Those of a socket's namespace.
    pub(super) fn of(netlink: &Netlink) -> Result<Self> {
        let mut addresses: HashMap<u32, Vec<IpNet>> = HashMap::new();
        for (index, address) in netlink.all_addresses()? {
            addresses.entry(index).or_default().push(address);
        }
        let links = netlink.links()?.into_iter().map(|link| (link.name.clone(), link)).collect();
        Ok(Self { links, addresses })
    }

    /// Whether there is one of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.links.contains_key(name)
    }

    /// Whether some interface has this address.
    pub(super) fn have(&self, ip: IpAddr) -> bool {
        self.addresses.values().flatten().any(|address| address.addr() == ip)
    }

    /// The index of the one of this name.
    pub(super) fn index(&self, name: &str) -> Option<u32> {
        self.links.get(name).map(|link| link.index)
    }

    /// The number of the XDP program that is on the one of this name.
    pub(super) fn xdp(&self, name: &str) -> Option<u32> {
        self.links.get(name).and_then(|link| link.xdp)
    }

    /// What is wrong with one.
    pub(super) fn differences(&self, expected: &Expected<'_>) -> Vec<Difference> {
        let name = expected.name;
        let Some(link) = self.links.get(name) else {
            return vec![Difference::missing(format_args!("interface {name}"))];
        };
        let state = |is_up| if is_up { "up" } else { "down" };
        let mut found: Vec<Difference> = Vec::new();
        found.extend(Difference::between(format_args!("interface {name}"), &state(link.up), &state(true)));
        let index = expected.index.unwrap_or(link.index);
        found.extend(Difference::between(format_args!("index of {name}"), &link.index, &index));
        if let Some(peer) = expected.peer.filter(|peer| link.peer_index != Some(*peer)) {
            let is = link.peer_index.map_or("none".to_owned(), |index| index.to_string());
            found.push(Difference::other(format_args!("index of the other end of {name}"), is, peer));
        }
        let mtu = expected.mtu.map_or(link.mtu, u32::from);
        found.extend(Difference::between(format_args!("MTU of {name}"), &link.mtu, &mtu));
        let mac = Mac(link.mac.unwrap_or_default());
        found.extend(Difference::between(format_args!("MAC of {name}"), &mac, &expected.mac.unwrap_or(mac)));
        let has = self.addresses.get(&link.index).map(Vec::as_slice).unwrap_or_default();
        for address in expected.addresses.iter().filter(|address| !has.contains(address)) {
            let what = format_args!("address of {name}");
            found.push(match has.iter().find(|other| other.addr() == address.addr()) {
                Some(other) => Difference::other(what, other, address),
                None => Difference::lacks(what, address),
            });
        }
        found
    }
}
