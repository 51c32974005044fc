//! The neighbour tables: which Ethernet address an IP address on a link has (ARP and IPv6 neighbour discovery).

#![expect(clippy::wildcard_enum_match_arm, reason = "netlink enums are open: what is not read here is skipped")]

use std::net::IpAddr;

use nix::errno::Errno;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

pub use rtnetlink::packet_route::neighbour::NeighbourState;

use super::error::{Result, unless};
use super::netlink::Netlink;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The neighbour's IP address.
    pub ip: IpAddr,
    /// Its Ethernet address; `None` while it is unknown (incomplete, failed).
    pub mac: Option<[u8; 6]>,
    /// The index of the interface it was found on.
    pub index: u32,
    /// What the kernel thinks of the entry.
    pub state: NeighbourState,
}

impl Netlink {
    /// Both tables, without the entries that need no resolution (NUD_NOARP), as `ip neighbour` shows them.
    pub fn neighbours(&self) -> Result<Vec<Neighbour>> {
        let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        let messages = self.dump(&request, format_args!("list the neighbours"))?;
        Ok(messages.iter().filter_map(read_neighbour).collect())
    }

    /// Forgets a neighbour. `Ok(false)` when it is not known or the interface is not there.
    pub fn delete_neighbour(&self, index: u32, ip: IpAddr) -> Result<bool> {
        let mut message = NeighbourMessage::default();
        message.header.family = match ip {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        message.header.ifindex = index;
        message.attributes.push(NeighbourAttribute::Destination(ip.into()));
        let what = format_args!("delete neighbour {ip} of interface {index}");
        unless(self.ask(RouteNetlinkMessage::DelNeighbour(message), 0, what), &[Errno::ENOENT, Errno::ENODEV])
    }
}

pub(super) fn read_neighbour(message: &RouteNetlinkMessage) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(address) => mac = address.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let state = message.header.state;
    (state != NeighbourState::Noarp).then_some(())?;
    Some(Neighbour { ip: ip?, mac, index: message.header.ifindex, state })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read() {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 3;
        message.header.state = NeighbourState::Reachable;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet([192, 168, 15, 2].into())),
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1]),
        ];
        let found = read_neighbour(&RouteNetlinkMessage::NewNeighbour(message.clone())).unwrap();
        assert_eq!((found.ip, found.index), ([192, 168, 15, 2].into(), 3));
        assert_eq!(found.mac, Some([2, 0, 0, 0, 0, 1]));
        message.header.state = NeighbourState::Noarp;
        assert_eq!(read_neighbour(&RouteNetlinkMessage::NewNeighbour(message)), None);
    }
}
