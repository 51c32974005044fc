//! Unicast routes of the main table.

#![expect(clippy::wildcard_enum_match_arm, reason = "netlink enums are open: what is not read here is skipped")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteProtocol, RouteScope,
    RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::{Result, unless};
use super::netlink::Netlink;

/// Where packets to `dest` go. A route with several next hops is as many of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Route {
    /// The destination; 0.0.0.0/0 or ::/0 for the default route. Bits behind the prefix do not count.
    pub dest: IpNet,
    /// The gateway; `None` when the destination is on the link.
    pub via: Option<IpAddr>,
    /// The interface's index. When a route is added without it, the kernel finds it from the gateway.
    pub index: Option<u32>,
}

/// Where the kernel would send a packet, as `ip route get` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The interface's index.
    pub index: u32,
    /// The gateway; `None` when the destination is on the link.
    pub via: Option<IpAddr>,
    /// The address that it would send from, when it has one.
    pub source: Option<IpAddr>,
    /// Whether the destination is an address of its own.
    pub is_local: bool,
    /// Whether it is a broadcast address of the link (IPv4).
    pub is_broadcast: bool,
}

impl Netlink {
    /// Where a packet to `dest` would go. `source` is the address it is sent from, `out` the interface, where those are
    /// settled. `None` when there is no route, or one that forbids it.
    pub fn way_to(&self, dest: IpAddr, source: Option<IpAddr>, out: Option<u32>) -> Result<Option<Way>> {
        let mut request = RouteMessage::default();
        let (family, bits) = match dest {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        (request.header.address_family, request.header.destination_prefix_length) = (family, bits);
        request.attributes.push(RouteAttribute::Destination(address(dest)));
        if let Some(source) = source {
            request.header.source_prefix_length = bits;
            request.attributes.push(RouteAttribute::Source(address(source)));
        }
        request.attributes.extend(out.map(RouteAttribute::Oif));
        let answer = self.ask(RouteNetlinkMessage::GetRoute(request), 0, format_args!("look up the route to {dest}"));
        match answer {
            Ok(messages) => Ok(messages.iter().find_map(read_way)),
            Err(error) => match error.errno() {
                // An address to send from that is not the namespace's own has no route, or is invalid.
                Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EINVAL) if source.is_some() => {
                    self.way_to(dest, None, out)
                }
                // EINVAL is a blackhole.
                Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EINVAL) => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Adds a route. `Ok(false)` when there is a route to `dest` already: the same one *or another one*, which
    /// [`routes`](Self::routes) tells apart.
    pub fn add_route(&self, route: &Route) -> Result<bool> {
        unless(self.new_route(route, NLM_F_CREATE | NLM_F_EXCL), &[Errno::EEXIST])
    }

    /// Adds a route in the place of another one to the same destination.
    pub fn replace_route(&self, route: &Route) -> Result<()> {
        self.new_route(route, NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn new_route(&self, route: &Route, flags: u16) -> Result<()> {
        let mut message = describe(route);
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = match (route.via, route.dest) {
            (None, IpNet::V4(_)) => RouteScope::Link,
            (Some(_), _) | (None, IpNet::V6(_)) => RouteScope::Universe,
        };
        let what = format_args!("add route to {}", route.dest);
        self.ask(RouteNetlinkMessage::NewRoute(message), flags, what).map(drop)
    }

    /// Removes a route that agrees in all that is given. `Ok(false)` when there is none.
    pub fn remove_route(&self, route: &Route) -> Result<bool> {
        let mut message = describe(route);
        // As iproute2: with this scope the kernel compares no scope (net/ipv4/fib_trie.c, fib_table_delete).
        message.header.scope = RouteScope::NoWhere;
        let what = format_args!("remove route to {}", route.dest);
        unless(self.ask(RouteNetlinkMessage::DelRoute(message), 0, what), &[Errno::ESRCH, Errno::ENODEV])
    }

    /// The unicast routes of the main table: IPv4, then IPv6, of one destination the preferred one first.
    pub fn routes(&self) -> Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            match self.dump(&RouteNetlinkMessage::GetRoute(request), format_args!("list the routes")) {
                Ok(messages) => routes.extend(messages.iter().flat_map(read_route)),
                // A kernel without IPv6.
                Err(error) if matches!(error.errno(), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(routes)
    }

    /// The interface of the default route the kernel prefers; IPv4's when there is one, else IPv6's.
    pub fn default_route_interface(&self) -> Result<Option<u32>> {
        let routes = self.routes()?;
        Ok(routes.iter().filter(|route| route.dest.prefix_len() == 0).find_map(|route| route.index))
    }
}

fn address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

fn read_way(message: &RouteNetlinkMessage) -> Option<Way> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let (via, index) = next_hop(&message.attributes);
    let source = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(address) => ip(address),
        _ => None,
    });
    let kind = message.header.kind;
    let is_usable = matches!(
        kind,
        RouteType::Unicast | RouteType::Local | RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast
    );
    let (is_local, is_broadcast) = (kind == RouteType::Local, kind == RouteType::Broadcast);
    is_usable.then_some(Way { index: index?, via, source, is_local, is_broadcast })
}

fn describe(route: &Route) -> RouteMessage {
    let dest = route.dest.trunc();
    let mut message = RouteMessage::default();
    message.header.address_family = match dest {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.destination_prefix_length = dest.prefix_len();
    let attributes = &mut message.attributes;
    if dest.prefix_len() > 0 {
        attributes.push(RouteAttribute::Destination(address(dest.addr())));
    }
    attributes.extend(route.via.map(|via| match (via, dest) {
        (IpAddr::V4(ip), _) => RouteAttribute::Gateway(RouteAddress::Inet(ip)),
        (IpAddr::V6(ip), IpNet::V6(_)) => RouteAttribute::Gateway(RouteAddress::Inet6(ip)),
        // RFC 5549: an IPv4 destination behind an IPv6 gateway.
        (IpAddr::V6(ip), IpNet::V4(_)) => RouteAttribute::Via(RouteVia::Inet6(ip)),
    }));
    attributes.extend(route.index.map(RouteAttribute::Oif));
    message
}

fn read_route(message: &RouteNetlinkMessage) -> Vec<Route> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return Vec::new() };
    let header = &message.header;
    let table = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let main = table.unwrap_or_else(|| u32::from(header.table)) == u32::from(RouteHeader::RT_TABLE_MAIN);
    if !main || header.kind != RouteType::Unicast || header.flags.contains(RouteFlags::Cloned) {
        return Vec::new();
    }
    let Some(dest) = destination(message) else { return Vec::new() };
    let (via, index) = next_hop(&message.attributes);
    let several = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    let Some(hops) = several else { return vec![Route { dest, via, index }] };
    let one = |hop: &RouteNextHop| Route { dest, via: next_hop(&hop.attributes).0, index: Some(hop.interface_index) };
    hops.iter().map(one).collect()
}

fn destination(message: &RouteMessage) -> Option<IpNet> {
    let length = message.header.destination_prefix_length;
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    match (address, message.header.address_family) {
        (Some(address), _) => IpNet::new(address, length).ok(),
        (None, AddressFamily::Inet) => Some(Ipv4Net::new(Ipv4Addr::UNSPECIFIED, length).ok()?.into()),
        (None, AddressFamily::Inet6) => Some(Ipv6Net::new(Ipv6Addr::UNSPECIFIED, length).ok()?.into()),
        (None, _) => None,
    }
}

fn next_hop(attributes: &[RouteAttribute]) -> (Option<IpAddr>, Option<u32>) {
    let (mut via, mut index) = (None, None);
    for attribute in attributes {
        match attribute {
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => via = Some(IpAddr::V4(*address)),
            RouteAttribute::Via(RouteVia::Inet6(address)) => via = Some(IpAddr::V6(*address)),
            RouteAttribute::Oif(oif) => index = Some(*oif),
            _ => {}
        }
    }
    (via, index)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(dest: &str, via: Option<&str>, index: Option<u32>) -> Route {
        Route { dest: dest.parse().unwrap(), via: via.map(|via| via.parse().unwrap()), index }
    }

    fn described(route: &Route) -> RouteMessage {
        let mut message = describe(route);
        message.header.kind = RouteType::Unicast;
        message
    }

    #[test]
    fn what_is_described_is_read_back() {
        for route in [
            route("0.0.0.0/0", Some("192.168.15.5"), None),
            route("192.168.1.0/24", Some("192.168.15.5"), Some(3)),
            route("10.0.0.0/8", Some("fe80::1"), Some(3)),
            route("10.0.0.1/32", None, Some(4)),
            route("::/0", Some("fd15::5"), Some(5)),
            route("fd15::/64", None, Some(5)),
        ] {
            assert_eq!(read_route(&RouteNetlinkMessage::NewRoute(described(&route))), [route]);
        }
        let loose = described(&route("192.168.1.7/24", None, Some(1)));
        assert_eq!(read_route(&RouteNetlinkMessage::NewRoute(loose)), [route("192.168.1.0/24", None, Some(1))]);
    }

    #[test]
    fn other_tables_and_kinds_are_left_out() {
        let plain = described(&route("10.0.0.0/8", None, Some(1)));
        let mut local = plain.clone();
        local.header.table = 255;
        let mut blackhole = plain.clone();
        blackhole.header.kind = RouteType::BlackHole;
        let mut big_table = plain;
        big_table.attributes.push(RouteAttribute::Table(1000));
        for message in [local, blackhole, big_table] {
            assert_eq!(read_route(&RouteNetlinkMessage::NewRoute(message)), []);
        }
    }

    #[test]
    fn several_next_hops_are_several_routes() {
        let mut message = described(&route("0.0.0.0/0", None, None));
        let hops = [(2, [10, 0, 0, 1]), (3, [10, 0, 1, 1])].map(|(index, gateway)| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway.into()))];
            hop
        });
        message.attributes.push(RouteAttribute::MultiPath(hops.to_vec()));
        let expected = [route("0.0.0.0/0", Some("10.0.0.1"), Some(2)), route("0.0.0.0/0", Some("10.0.1.1"), Some(3))];
        assert_eq!(read_route(&RouteNetlinkMessage::NewRoute(message)), expected);
    }
}
