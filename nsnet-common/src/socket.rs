//! What the hooks at the host's sockets decide: published ports for programs of the host itself.
//!
//! A packet to an address of the host's own never leaves it, so no program at an interface sees it. The destination is
//! changed one step earlier, when a program connects or sends:
//!
//! ```text
//!   connect 127.0.0.1:8080      redirect()     10.1.0.2:80, and 127.0.0.1:8080 is remembered
//!   datagram from 10.1.0.2:80   original()     the program reads 127.0.0.1:8080; getpeername() says so, too
//!   bind 0.0.0.0:8080           is_reserved()  refused: EADDRINUSE
//! ```
//!
//! No packet is translated. The kernel routes to the namespace, so its source is the gateway's address.

use crate::layout::{Original, OriginalKey};
use crate::tables::Tables;
use crate::wire::{IpAddress, IpProtocol};

/// Every IPv4 address: 0.0.0.0, mapped.
const ANY_V4: IpAddress = IpAddress::v4([0; 4]);
/// Every IPv6 address.
const ANY_V6: IpAddress = IpAddress::UNSPECIFIED;

/// An address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address.
    pub ip: IpAddress,
    /// The port, host byte order.
    pub port: u16,
}

/// Where the socket with this cookie is led to that connects or sends to `asked`; `None` where it asked for.
///
/// What it asked for is remembered for [`original`].
#[inline(always)]
pub fn redirect<T: Tables>(socket: u64, protocol: IpProtocol, asked: Endpoint, tables: T) -> Option<Endpoint> {
    let asked = Endpoint { ip: meant_by(asked.ip), port: asked.port };
    let target = destination(protocol, asked, tables);
    match target {
        Some(target) => {
            let original = Original { ip: asked.ip, port: asked.port.to_be_bytes() };
            tables.set_original(&key(socket, protocol, target), &original);
        }
        // It may have been led there before, and now goes there by its own name.
        None => tables.forget_original(&key(socket, protocol, asked)),
    }
    target
}

/// Where a published port of the host's leads to: that of the very address, else that of every address of its family.
#[inline(always)]
pub fn destination<T: Tables>(protocol: IpProtocol, asked: Endpoint, tables: T) -> Option<Endpoint> {
    if !is_loopback(asked.ip) && !tables.is_local(asked.ip) {
        return None;
    }
    target(protocol, asked, tables).or_else(|| target(protocol, Endpoint { ip: any_like(asked.ip), ..asked }, tables))
}

/// What the socket asked for, when it was led to `from`: the sender that it is to see, and its peer.
#[inline(always)]
pub fn original<T: Tables>(socket: u64, protocol: IpProtocol, from: Endpoint, tables: T) -> Option<Endpoint> {
    let original = tables.original(&key(socket, protocol, from))?;
    Some(Endpoint { ip: original.ip, port: u16::from_be_bytes(original.port) })
}

/// Whether a bind would take a published port, by the rule that the kernel has for two sockets: an address conflicts
/// with itself and with every address of its family.
///
/// A bind to `::` counts as one of both families: whether the socket takes IPv6 only is not to be seen here, and a refusal is
/// better than half a port stolen. Loopback addresses beside those in `LOCALS` are not looked for under a bind to every
/// address.
#[inline(always)]
pub fn is_reserved<T: Tables>(protocol: IpProtocol, at: Endpoint, tables: T) -> bool {
    // The kernel chooses one.
    if at.port == 0 {
        return false;
    }
    let is_published = |ip| target(protocol, Endpoint { ip, port: at.port }, tables).is_some();
    if at.ip != ANY_V4 && at.ip != ANY_V6 {
        return is_published(at.ip) || is_published(any_like(at.ip));
    }
    let is_both = at.ip == ANY_V6;
    is_published(ANY_V4)
        || (is_both && is_published(ANY_V6))
        || tables.any_local(&mut |ip| (is_both || ip.as_v4().is_some()) && is_published(ip))
}

/// Whether a socket cannot send to a namespace from this address: no packet may carry it on a wire (RFC 1122 section
/// 3.2.1.3, RFC 4291 section 2.5.3).
#[inline(always)]
pub fn is_loopback(ip: IpAddress) -> bool {
    match ip.as_v4() {
        Some([first, ..]) => first == 127,
        None => ip == IpAddress::LOOPBACK,
    }
}

/// Where the entry of this very address leads to.
#[inline(always)]
fn target<T: Tables>(protocol: IpProtocol, at: Endpoint, tables: T) -> Option<Endpoint> {
    let publish = tables.publish(tables.published(protocol, at.ip, at.port)?)?;
    Some(Endpoint { ip: publish.target, port: publish.target_port(at.port)? })
}

/// The address that stands for all of the family.
#[inline(always)]
fn any_like(ip: IpAddress) -> IpAddress {
    if ip.as_v4().is_some() { ANY_V4 } else { ANY_V6 }
}

/// Linux takes a connection to 0.0.0.0 or :: for one to loopback.
#[inline(always)]
fn meant_by(ip: IpAddress) -> IpAddress {
    if ip == ANY_V4 {
        IpAddress::v4([127, 0, 0, 1])
    } else if ip == ANY_V6 {
        IpAddress::LOOPBACK
    } else {
        ip
    }
}

#[inline(always)]
fn key(socket: u64, protocol: IpProtocol, at: Endpoint) -> OriginalKey {
    OriginalKey::new(socket, protocol, at.ip, at.port.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::layout::{PortId, Publish};
    use crate::memory::MemoryTables;

    const SOCKET: u64 = 7;
    const TCP: IpProtocol = IpProtocol::TCP;
    const UDP: IpProtocol = IpProtocol::UDP;

    fn ip(text: &str) -> IpAddress {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn at(text: &str, port: u16) -> Endpoint {
        Endpoint { ip: ip(text), port }
    }

    /// The host has 192.168.1.1, 10.1.0.1 and fd01::1 beside loopback.
    struct World(MemoryTables);

    impl World {
        fn new() -> Self {
            let locals = ["127.0.0.1", "::1", "192.168.1.1", "10.1.0.1", "fd01::1"].map(ip);
            Self(MemoryTables { locals: locals.into(), ..MemoryTables::default() })
        }

        fn publish(mut self, protocol: IpProtocol, host: &str, first: u16, last: u16, target: Endpoint) -> Self {
            let place = self.0.publishes.len() as u32;
            self.0.published.push((protocol.0, ip(host), place));
            let (owner, target_first) = (PortId(2), target.port);
            let publish = Publish { target: target.ip, first, last, target_first, owner, ..Publish::default() };
            self.0.publishes.push(publish);
            self
        }

        fn goes(&self, asked: Endpoint) -> Option<Endpoint> {
            destination(TCP, asked, &self.0)
        }

        fn refuses(&self, bind: Endpoint) -> bool {
            is_reserved(TCP, bind, &self.0)
        }
    }

    fn everywhere() -> World {
        let world = World::new().publish(TCP, "0.0.0.0", 8080, 8080, at("10.1.0.2", 80));
        world.publish(TCP, "::", 8080, 8080, at("fd01::2", 80))
    }

    #[test]
    fn every_address_of_the_host_leads_to_the_namespace() {
        let world = everywhere();
        for host in ["127.0.0.1", "127.9.9.9", "192.168.1.1", "10.1.0.1"] {
            assert_eq!(world.goes(at(host, 8080)), Some(at("10.1.0.2", 80)), "{host}");
        }
        for host in ["::1", "fd01::1"] {
            assert_eq!(world.goes(at(host, 8080)), Some(at("fd01::2", 80)), "{host}");
        }
    }

    #[test]
    fn other_addresses_ports_and_protocols_are_left_alone() {
        let world = everywhere();
        for asked in [at("192.168.1.3", 8080), at("fd01::3", 8080), at("127.0.0.1", 8081), at("127.0.0.1", 0)] {
            assert_eq!(world.goes(asked), None, "{asked:?}");
        }
        assert_eq!(destination(UDP, at("127.0.0.1", 8080), &world.0), None);
    }

    #[test]
    fn the_very_address_comes_before_all_of_them() {
        let world = everywhere().publish(TCP, "127.0.0.1", 8080, 8080, at("10.1.0.9", 90));
        assert_eq!(world.goes(at("127.0.0.1", 8080)), Some(at("10.1.0.9", 90)));
        assert_eq!(world.goes(at("192.168.1.1", 8080)), Some(at("10.1.0.2", 80)));
    }

    #[test]
    fn published_at_one_address_only_that_one_answers() {
        let world = World::new().publish(TCP, "127.0.0.1", 8080, 8080, at("10.1.0.2", 80));
        assert!(world.goes(at("127.0.0.1", 8080)).is_some());
        assert_eq!(world.goes(at("192.168.1.1", 8080)), None);
        assert_eq!(world.goes(at("::1", 8080)), None);
    }

    #[test]
    fn a_range_leads_to_a_range() {
        let world = World::new().publish(TCP, "0.0.0.0", 8000, 8010, at("10.1.0.2", 80));
        assert_eq!(world.goes(at("127.0.0.1", 8003)), Some(at("10.1.0.2", 83)));
        assert_eq!(world.goes(at("127.0.0.1", 8011)), None);
        assert!(world.refuses(at("0.0.0.0", 8010)) && !world.refuses(at("0.0.0.0", 8011)));
    }

    #[test]
    fn a_free_slot_leads_nowhere() {
        let mut world = everywhere();
        world.0.publishes[0].owner = PortId::NONE;
        assert_eq!(world.goes(at("127.0.0.1", 8080)), None);
        assert!(!world.refuses(at("127.0.0.1", 8080)));
    }

    #[test]
    fn the_socket_sees_what_it_asked_for() {
        let world = everywhere();
        let (asked, target) = (at("192.168.1.1", 8080), at("10.1.0.2", 80));
        assert_eq!(redirect(SOCKET, TCP, asked, &world.0), Some(target));
        assert_eq!(original(SOCKET, TCP, target, &world.0), Some(asked));
        // Another socket, another protocol, another port: not.
        assert_eq!(original(SOCKET + 1, TCP, target, &world.0), None);
        assert_eq!(original(SOCKET, UDP, target, &world.0), None);
        assert_eq!(original(SOCKET, TCP, at("10.1.0.2", 81), &world.0), None);
    }

    #[test]
    fn nowhere_is_loopback() {
        let world = everywhere();
        for (asked, meant) in [("0.0.0.0", "127.0.0.1"), ("::", "::1")] {
            let target = redirect(SOCKET, TCP, at(asked, 8080), &world.0).unwrap();
            assert_eq!(original(SOCKET, TCP, target, &world.0), Some(at(meant, 8080)));
        }
    }

    #[test]
    fn a_socket_that_then_goes_there_by_its_own_name_sees_that() {
        let world = everywhere();
        let target = redirect(SOCKET, TCP, at("127.0.0.1", 8080), &world.0).unwrap();
        assert_eq!(redirect(SOCKET, TCP, target, &world.0), None);
        assert_eq!(original(SOCKET, TCP, target, &world.0), None);
    }

    #[test]
    fn a_port_published_everywhere_cannot_be_bound() {
        let world = everywhere();
        for host in ["0.0.0.0", "::", "127.0.0.1", "192.168.1.1", "::1", "fd01::1"] {
            assert!(world.refuses(at(host, 8080)), "{host}");
            assert!(!world.refuses(at(host, 8081)) && !world.refuses(at(host, 0)), "{host}");
        }
        assert!(!is_reserved(UDP, at("0.0.0.0", 8080), &world.0));
    }

    #[test]
    fn a_port_published_at_one_address_cannot_be_bound_there_nor_everywhere() {
        let world = World::new().publish(TCP, "192.168.1.1", 8080, 8080, at("10.1.0.2", 80));
        for (host, is_refused) in
            [("192.168.1.1", true), ("0.0.0.0", true), ("::", true), ("127.0.0.1", false), ("10.1.0.1", false)]
        {
            assert_eq!(world.refuses(at(host, 8080)), is_refused, "{host}");
        }
        let world = World::new().publish(TCP, "::1", 8080, 8080, at("fd01::2", 80));
        for (host, is_refused) in [("::1", true), ("::", true), ("fd01::1", false), ("0.0.0.0", false)] {
            assert_eq!(world.refuses(at(host, 8080)), is_refused, "{host}");
        }
    }

    #[test]
    fn loopback() {
        for text in ["127.0.0.1", "127.255.0.9", "::1"] {
            assert!(is_loopback(ip(text)), "{text}");
        }
        for text in ["126.0.0.1", "0.0.0.0", "::", "::2", "fd01::1"] {
            assert!(!is_loopback(ip(text)), "{text}");
        }
    }
}
