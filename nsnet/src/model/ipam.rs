//! Which addresses a subnet has, and choosing a free one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// IPv4-mapped addresses (RFC 4291 2.5.5.2): in the dataplane they are the IPv4 addresses themselves.
const MAPPED: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96);

/// Prefixes with addresses that no interface can have (RFC 6890), and why.
const SPECIAL: [(IpNet, &str); 7] = [
    (v4([0, 0, 0, 0], 8), RESERVED),
    (v4([127, 0, 0, 0], 8), NOT_UNICAST),
    (v4([224, 0, 0, 0], 4), NOT_UNICAST),
    (v4([240, 0, 0, 0], 4), RESERVED),
    (IpNet::V6(MAPPED), "its addresses stand for IPv4's; say them as IPv4"),
    // No address, loopback, and what is deprecated (RFC 4291 2.5.5.1).
    (IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 96)), RESERVED),
    (IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8)), NOT_UNICAST),
];
const RESERVED: &str = "it has addresses that are reserved (RFC 6890)";
const NOT_UNICAST: &str = "it has addresses that are not unicast";

const fn v4([a, b, c, d]: [u8; 4], bits: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits))
}

/// Whether all of `net` stands for IPv4 addresses.
pub fn is_mapped(net: &IpNet) -> bool {
    IpNet::V6(MAPPED).contains(net)
}

/// Whether some address is in both.
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// Why nobody can have `address`, an interface's with its prefix, if nobody can.
pub fn objection_to_address(address: &IpNet) -> Option<&'static str> {
    special(address).or((!is_usable(address, address.addr())).then_some("it is not a host address of its prefix"))
}

fn special(net: &IpNet) -> Option<&'static str> {
    SPECIAL.iter().find(|(special, _)| overlap(special, net)).map(|(_, why)| *why)
}

/// Whether `ip` may be given to an interface of `subnet`: not its network or broadcast address, and no anycast address.
pub fn is_usable(subnet: &IpNet, ip: IpAddr) -> bool {
    subnet.contains(&ip) && (bounds(subnet).0..=bounds(subnet).1).contains(&number(ip))
}

/// The last usable address: the gateway's, when none is given.
pub fn last_usable(subnet: &IpNet) -> IpAddr {
    address(subnet, bounds(subnet).1)
}

/// The lowest usable address for which `is_taken` is false.
pub fn first_free(subnet: &IpNet, is_taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
    let (first, last) = bounds(subnet);
    (first..=last).map(|number| address(subnet, number)).find(|ip| !is_taken(*ip))
}

/// Why `subnet` cannot be a network's, if it cannot: it is to hold a gateway and a namespace, of unicast addresses.
pub fn objection(subnet: &IpNet) -> Option<&'static str> {
    let (first, last) = bounds(subnet);
    let network = subnet.network();
    if subnet.addr() != network {
        Some("it has bits set after the prefix")
    } else if let Some(why) = special(subnet) {
        Some(why)
    } else if matches!(network, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
        Some("link-local addresses are not the network's to give")
    } else if last <= first {
        Some("it has no room for a gateway and a namespace")
    } else {
        None
    }
}

/// The first and the last usable address, as numbers.
fn bounds(subnet: &IpNet) -> (u128, u128) {
    let (network, last) = (number(subnet.network()), number(subnet.broadcast()));
    match subnet {
        // RFC 3021: both addresses of a /31 are hosts'.
        IpNet::V4(net) if net.prefix_len() >= 31 => (network, last),
        IpNet::V4(_) => (network + 1, last - 1),
        // RFC 6164: both addresses of a /127 are hosts'. Else the first is the routers' anycast (RFC 4291 2.6.1).
        IpNet::V6(net) if net.prefix_len() >= 127 => (network, last),
        IpNet::V6(_) => (network + 1, last),
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn address(subnet: &IpNet, number: u128) -> IpAddr {
    match subnet {
        // The number came from an address of this family, so it fits.
        IpNet::V4(Ipv4Net { .. }) => IpAddr::V4(Ipv4Addr::from(number as u32)),
        IpNet::V6(Ipv6Net { .. }) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn usable_addresses() {
        let subnet = net("192.168.15.0/24");
        assert_eq!(last_usable(&subnet), ip("192.168.15.254"));
        assert!(is_usable(&subnet, ip("192.168.15.1")) && is_usable(&subnet, ip("192.168.15.254")));
        for not in ["192.168.15.0", "192.168.15.255", "192.168.16.1", "::1"] {
            assert!(!is_usable(&subnet, ip(not)), "{not}");
        }
        assert_eq!(last_usable(&net("fd15::/64")), ip("fd15::ffff:ffff:ffff:ffff"));
        assert!(!is_usable(&net("fd15::/64"), ip("fd15::")));
        assert!(is_usable(&net("10.0.0.0/31"), ip("10.0.0.0")) && is_usable(&net("10.0.0.0/31"), ip("10.0.0.1")));
    }

    #[test]
    fn the_lowest_free_address() {
        let taken = [ip("10.0.0.1"), ip("10.0.0.2")];
        let subnet = net("10.0.0.0/30");
        assert_eq!(first_free(&subnet, |ip| ip == taken[0]), Some(taken[1]));
        assert_eq!(first_free(&subnet, |ip| taken.contains(&ip)), None);
        assert_eq!(first_free(&net("fd15::/64"), |_| false), Some(ip("fd15::1")));
    }

    #[test]
    fn subnets_that_no_network_can_have() {
        for bad in
            ["10.0.0.1/24", "224.0.0.0/24", "127.0.0.0/8", "10.0.0.1/32", "fe80::/64", "ff02::/64", "240.0.0.0/8"]
        {
            assert!(objection(&net(bad)).is_some(), "{bad}");
        }
        // All that holds such addresses, and not only what begins with one.
        for bad in ["0.0.0.0/0", "126.0.0.0/7", "128.0.0.0/1", "::/0", "::/8", "::1:0/112", "fe00::/7"] {
            assert!(objection(&net(bad)).is_some(), "{bad}");
        }
        for mapped in ["::ffff:192.168.15.0/120", "::ffff:0:0/96", "::fffe:0:0/95"] {
            assert_eq!(objection(&net(mapped)), Some("its addresses stand for IPv4's; say them as IPv4"), "{mapped}");
        }
        for good in ["10.0.0.0/31", "10.0.0.0/8", "fd15::/127", "192.0.2.0/30", "64:ff9b::/96", "::1:0:0:0/96"] {
            assert_eq!(objection(&net(good)), None, "{good}");
        }
    }

    #[test]
    fn addresses_that_no_interface_can_have() {
        for bad in ["10.0.0.0/30", "10.0.0.3/30", "fd15::/64", "::ffff:10.0.0.1/126", "127.0.0.2/8", "10.0.0.1/0"] {
            assert!(objection_to_address(&net(bad)).is_some(), "{bad}");
        }
        for good in ["10.0.0.1/30", "10.0.0.0/31", "10.0.0.1/32", "fd15::1/64", "fe80::1/64", "fd15::1/128"] {
            assert_eq!(objection_to_address(&net(good)), None, "{good}");
        }
        assert!(is_mapped(&net("::ffff:10.0.0.0/104")) && !is_mapped(&net("::/0")) && !is_mapped(&net("10.0.0.0/8")));
    }
}
