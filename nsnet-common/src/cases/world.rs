//! The tables that every case begins with: five networks on one host, and the way out.
//!
//! | network | its packets | ports |
//! |---|---|---|
//! | 1 | are masqueraded | host, red, blue, orange, purple, green |
//! | 2 | leave as they are | host-2, cyan, black |
//! | 3, without IPv6 | do not leave: it is internal | host-3, white |
//! | 4 | are masqueraded, and go to other open networks | host-4, lime |
//! | 5 | leave as they are, and go to other open networks | host-5, gold |

use crate::layout::flags::{self, IPV6, ISOLATED, LEARN, TRUSTED};
use crate::layout::{
    AddressKey, ForeignKey, Network, NetworkId, Policy, Port, PortId, Publish, Station, StationKey, policy_flags,
};
use crate::memory::MemoryTables;
use crate::tables::{Hop, Route};
use crate::wire::{IpAddress, IpProtocol, Mac};

use super::frame::Frame;

/// A port, and the namespace (or the host) behind it.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// What it is called.
    pub name: &'static str,
    /// Its port.
    pub id: PortId,
    /// Its network.
    pub network: NetworkId,
    /// Its MAC.
    pub mac: Mac,
    /// Its first IPv4 address.
    pub ipv4: [u8; 4],
    /// Its first IPv6 address; not used in the network without IPv6.
    pub ipv6: [u8; 16],
    /// Properties of the port.
    pub flags: u16,
}

impl End {
    const fn new(name: &'static str, network: u8, id: u8, host_byte: u8, flags: u16) -> Self {
        Self {
            name,
            id: PortId(id as u16),
            network: NetworkId(network as u16),
            mac: Mac([0x02, 0, network, 0, id, 0]),
            ipv4: [10, network, 0, host_byte],
            ipv6: [0xfd, network, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host_byte],
            flags,
        }
    }

    const fn with_mac(self, mac: Mac) -> Self {
        Self { mac, ..self }
    }

    /// The link-local address that the namespace's kernel makes of the MAC.
    pub fn link_local(&self) -> [u8; 16] {
        let [a, b, c, d, e, f] = self.mac.0;
        [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]
    }

    /// An Ethernet header from here to `to`.
    pub fn to(&self, to: &Self) -> Frame {
        Frame::new(self.mac, to.mac)
    }

    /// A UDP datagram over IPv4 to `to`; 60 bytes, the shortest there is on a wire.
    pub fn udp4(&self, to: &Self) -> Frame {
        self.to(to).ipv4(self.ipv4, to.ipv4).udp(1000, 2000).payload(18)
    }

    /// A UDP datagram over IPv6 to `to`; 62 bytes.
    pub fn udp6(&self, to: &Self) -> Frame {
        self.to(to).ipv6(self.ipv6, to.ipv6).udp(1000, 2000)
    }

    /// An IPv4 broadcast of 60 bytes.
    pub fn broadcast(&self) -> Frame {
        Frame::new(self.mac, Mac::BROADCAST).ipv4(self.ipv4, [255; 4]).udp(1000, 2000).payload(18)
    }

    fn port(&self) -> Port {
        let ipv6 = (self.flags & IPV6 != 0).then_some(self.ipv6);
        Port::new(self.id, self.network, self.mac, 1500, self.flags).with_addresses(Some(self.ipv4), ipv6)
    }
}

/// Network 1 in the host.
pub const HOST: End = End::new("host", 1, 1, 1, HOST_V6);
/// A plain namespace.
pub const RED: End = End::new("red", 1, 2, 2, IPV6);
/// A plain namespace whose MAC the user has set, with a second address of each family.
pub const BLUE: End = End::new("blue", 1, 3, 3, IPV6).with_mac(Mac([0x00, 0x16, 0x3e, 0x11, 0x22, 0x33]));
/// A namespace with stations behind it, which are learned.
pub const ORANGE: End = End::new("orange", 1, 4, 4, IPV6 | LEARN);
/// A trusted namespace.
pub const PURPLE: End = End::new("purple", 1, 5, 5, IPV6 | TRUSTED);
/// A second namespace with stations behind it.
pub const GREEN: End = End::new("green", 1, 6, 6, IPV6 | LEARN);
/// Network 2 in the host.
pub const HOST_2: End = End::new("host-2", 2, 7, 1, HOST_V6);
/// A namespace of network 2.
pub const CYAN: End = End::new("cyan", 2, 8, 8, IPV6);
/// Another namespace of network 2.
pub const BLACK: End = End::new("black", 2, 9, 9, IPV6);
/// Network 3 in the host; the network has no IPv6.
pub const HOST_3: End = End::new("host-3", 3, 10, 1, HOST_V4);
/// The namespace of network 3.
pub const WHITE: End = End::new("white", 3, 11, 11, 0);
/// A number that no port has.
pub const GHOST: End = End::new("ghost", 1, 12, 12, IPV6);

/// Network 4 in the host.
pub const HOST_4: End = End::new("host-4", 4, 13, 1, HOST_V6);
/// The namespace of network 4.
pub const LIME: End = End::new("lime", 4, 14, 14, IPV6);
/// Network 5 in the host.
pub const HOST_5: End = End::new("host-5", 5, 15, 1, HOST_V6);
/// The namespace of network 5.
pub const GOLD: End = End::new("gold", 5, 16, 16, IPV6);
/// The uplink: the host's interface to the outside, and the host's own addresses there.
pub const UPLINK: End = End {
    name: "uplink",
    id: PortId(17),
    network: NetworkId::OUTSIDE,
    mac: Mac([0x52, 0x54, 0, 0, 0xff, 1]),
    ipv4: [192, 0, 2, 1],
    ipv6: [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    flags: flags::UPLINK,
};
/// The uplink's interface index: no port's.
pub const UPLINK_IFINDEX: u32 = 700;
/// An interface of the host's that is no uplink, to which routes lead, too.
pub const SIDE_IFINDEX: u32 = 701;
/// The host's second address at the uplink.
pub const SECOND_V4: [u8; 4] = [192, 0, 2, 2];
/// The host's address at the interface that is no uplink.
pub const SIDE_V4: [u8; 4] = [192, 168, 77, 1];
/// The router beyond the uplink, which is in the host's table of neighbours.
pub const ROUTER_MAC: Mac = Mac([0x52, 0x54, 0, 0, 0xff, 2]);
/// The router's address.
pub const ROUTER_V4: [u8; 4] = [192, 0, 2, 254];
/// The router's address.
pub const ROUTER_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfe];
/// A host beyond the router.
pub const AFAR_V4: [u8; 4] = [198, 51, 100, 9];
/// A host beyond the router.
pub const AFAR_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
/// A host beyond a way that takes 1400 bytes.
pub const NARROW_V4: [u8; 4] = [198, 51, 101, 9];
/// A host beyond a way that takes 1400 bytes.
pub const NARROW_V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0xa, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
/// The key of the hash by which ports are chosen.
pub const SECRET: u64 = 0x6e73_6e65_7421;

/// The host's routes and the addresses they are about: prefix, its length, what they say. The first eight characters tell
/// which. The programs' tests make the same ones in the kernel.
pub const ROUTES: [(&str, u32, Kind); 29] = [
    ("192.0.2.0", 24, Kind::Near),
    ("192.0.2.254", 32, Kind::Far(1500)),
    ("192.0.2.1", 32, Kind::Is(Route::Local)),
    ("192.0.2.2", 32, Kind::Is(Route::Local)),
    ("192.0.2.255", 32, Kind::Is(Route::Local)),
    ("198.51.100.0", 24, Kind::Far(1500)),
    ("198.51.101.0", 24, Kind::Far(1400)),
    ("203.0.113.0", 24, Kind::Aside),
    ("192.168.77.0", 24, Kind::Aside),
    ("192.168.77.1", 32, Kind::Is(Route::Local)),
    ("192.168.77.255", 32, Kind::Is(Route::Local)),
    ("198.18.1.0", 24, Kind::Is(Route::Unreachable)),
    ("198.18.2.0", 24, Kind::Is(Route::Prohibited)),
    ("198.18.3.0", 24, Kind::Is(Route::Blackhole)),
    ("172.16.0.0", 12, Kind::Far(1500)),
    ("2001:db8:1::", 64, Kind::Near),
    ("2001:db8:1::fe", 128, Kind::Far(1500)),
    ("2001:db8:1::1", 128, Kind::Is(Route::Local)),
    ("2001:db8:9::", 48, Kind::Far(1500)),
    ("2001:db8:a::", 48, Kind::Far(1400)),
    ("2001:db8:b::", 48, Kind::Aside),
    ("2001:db8:c1::", 48, Kind::Is(Route::Unreachable)),
    ("2001:db8:c2::", 48, Kind::Is(Route::Prohibited)),
    ("2001:db8:c3::", 48, Kind::Is(Route::Blackhole)),
    ("127.0.0.0", 8, Kind::Is(Route::Local)),
    ("::1", 128, Kind::Is(Route::Local)),
    ("224.0.0.0", 4, Kind::Is(Route::Local)),
    ("ff00::", 8, Kind::Is(Route::Local)),
    ("fe80::", 10, Kind::Is(Route::Local)),
];

/// What a route says.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// By the uplink, to neighbours that the host has not asked for yet.
    Near,
    /// By the router, for packets of this length.
    Far(u16),
    /// By an interface that is no uplink.
    Aside,
    /// No way.
    Is(Route),
}

impl Kind {
    fn route(self, is_v4: bool) -> (Route, Hop) {
        let source = if is_v4 { IpAddress::v4(UPLINK.ipv4) } else { IpAddress(UPLINK.ipv6) };
        let hop = Hop { ifindex: UPLINK_IFINDEX, source, ..Hop::default() };
        match self {
            Self::Near => (Route::Forward, hop),
            Self::Far(mtu) => (Route::Forward, Hop { mtu, to_mac: ROUTER_MAC, from_mac: UPLINK.mac, ..hop }),
            Self::Aside => (Route::Forward, Hop { ifindex: SIDE_IFINDEX, ..hop }),
            Self::Is(route) => (route, Hop::default()),
        }
    }
}

/// The host's own sockets: protocol, address, port.
pub const SOCKETS: [(IpProtocol, IpAddress, u16); 6] = [
    (IpProtocol::TCP, IpAddress::v4(UPLINK.ipv4), 4001),
    (IpProtocol::UDP, IpAddress::v4(UPLINK.ipv4), 4001),
    (IpProtocol::TCP, IpAddress(UPLINK.ipv6), 4001),
    (IpProtocol::UDP, IpAddress(UPLINK.ipv6), 4001),
    // In the pool.
    (IpProtocol::TCP, IpAddress::v4(UPLINK.ipv4), 20_000),
    (IpProtocol::UDP, IpAddress::v4(UPLINK.ipv4), 20_000),
];

/// What is published: protocol, the host's address and first port, how many ports, whose they are, and the first port there.
/// Entry 0 is none: a flow of no entry says 0.
pub const PUBLISHED: [(IpProtocol, IpAddress, u16, u16, &End, u16); 9] = [
    (IpProtocol::TCP, IpAddress::v4(UPLINK.ipv4), 8080, 1, &RED, 80),
    (IpProtocol::UDP, IpAddress::v4([0; 4]), 5300, 10, &RED, 6300),
    (IpProtocol::TCP, IpAddress::UNSPECIFIED, 8443, 1, &BLUE, 443),
    (IpProtocol::TCP, IpAddress::v4([0; 4]), 8443, 1, &BLUE, 443),
    (IpProtocol::UDP, IpAddress(UPLINK.ipv6), 5000, 1, &RED, 5001),
    (IpProtocol::TCP, IpAddress::v4([0; 4]), 9000, 11, &CYAN, 9000),
    (IpProtocol::SCTP, IpAddress::v4([0; 4]), 3868, 1, &BLUE, 3868),
    (IpProtocol::TCP, IpAddress::v4([0; 4]), 7000, 1, &LIME, 70),
    (IpProtocol::UDP, IpAddress::v4(SECOND_V4), 53, 1, &RED, 5353),
];

const HOST_V6: u16 = HOST_V4 | IPV6;
const HOST_V4: u16 = flags::HOST;

/// All ports.
pub const ENDS: [&End; 15] = [
    &HOST, &RED, &BLUE, &ORANGE, &PURPLE, &GREEN, &HOST_2, &CYAN, &BLACK, &HOST_3, &WHITE, &HOST_4, &LIME, &HOST_5,
    &GOLD,
];

/// Blue's second IPv4 address.
pub const BLUE_SECOND_V4: [u8; 4] = [10, 1, 0, 33];
/// Blue's second IPv6 address.
pub const BLUE_SECOND_V6: [u8; 16] = [0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x33];
/// An address of network 1 that nobody has.
pub const FREE_V4: [u8; 4] = [10, 1, 0, 99];
/// An address of network 1 that nobody has.
pub const FREE_V6: [u8; 16] = [0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x99];
/// The MAC of a station that is in no table.
pub const STRANGER: Mac = Mac([0x52, 0x54, 0, 0xaa, 0xbb, 0xcc]);

/// Every other port of `sender`'s network, in the order of its list.
pub fn others(sender: &End) -> Vec<&'static End> {
    ENDS.into_iter().filter(|end| end.network == sender.network && end.id != sender.id).collect()
}

/// Makes red, blue and orange ports between which nothing passes.
pub(super) fn isolate(tables: &mut MemoryTables) {
    for end in [RED, BLUE, ORANGE] {
        let port = tables.ports[&end.id].with(ISOLATED);
        tables.ports.insert(end.id, port);
    }
}

/// The tables of the world at `now`. Cases that learned something long ago need a `now` that is later than that.
pub fn tables(now: u64) -> MemoryTables {
    let mut tables = MemoryTables::default();
    tables.clock.set(now);
    for end in ENDS {
        let next = ENDS.into_iter().find(|next| next.network == end.network && next.id > end.id);
        let port = end.port().followed_by(next.map_or(PortId::NONE, |next| next.id));
        tables.ports.insert(end.id, port);
        own(&mut tables, end, IpAddress::v4(end.ipv4));
        if end.flags & IPV6 != 0 {
            own(&mut tables, end, IpAddress(end.ipv6));
            own(&mut tables, end, IpAddress(end.link_local()));
        }
    }
    own(&mut tables, &BLUE, IpAddress::v4(BLUE_SECOND_V4));
    own(&mut tables, &BLUE, IpAddress(BLUE_SECOND_V6));
    put_station(&tables, &BLUE, BLUE.mac, Station::fixed(BLUE.id));
    for (first, learning) in [(&HOST, 2), (&HOST_2, 0), (&HOST_3, 0), (&HOST_4, 0), (&HOST_5, 0)] {
        let network = Network::new(first.id, others(first).len() as u16 + 1, learning);
        tables.networks.insert(first.network, network);
        let NetworkId(number) = first.network;
        tables.subnets.push((IpAddress::v4([10, number as u8, 0, 0]), 24, first.network));
        if first.flags & IPV6 != 0 {
            let mut prefix = [0; 16];
            [prefix[0], prefix[1]] = [0xfd, number as u8];
            tables.subnets.push((IpAddress(prefix), 64, first.network));
        }
    }
    add_way_out(&mut tables);
    tables
}

fn add_way_out(tables: &mut MemoryTables) {
    const MASQUERADE: u32 = policy_flags::MASQUERADE;
    const OPEN: u32 = policy_flags::OPEN;
    for (host, flags) in
        [(HOST, MASQUERADE), (HOST_2, 0), (HOST_3, policy_flags::INTERNAL), (HOST_4, MASQUERADE | OPEN), (HOST_5, OPEN)]
    {
        tables.policies.insert(host.network, Policy { gateway: host.id, flags, ..Policy::DEFAULT });
    }
    tables.policies.insert(NetworkId::OUTSIDE, Policy { flags: MASQUERADE, ..Policy::DEFAULT });
    let (ipv4, ipv6) = (Some(UPLINK.ipv4), Some(UPLINK.ipv6));
    tables.ports.insert(UPLINK.id, Port::uplink(UPLINK.id, UPLINK_IFINDEX, UPLINK.mac, 1500, ipv4, ipv6));
    tables.uplinks.insert(UPLINK_IFINDEX, UPLINK.id);
    tables.secret = SECRET;
    let own = [IpAddress::v4(UPLINK.ipv4), IpAddress::v4(SECOND_V4), IpAddress(UPLINK.ipv6), IpAddress::v4(SIDE_V4)];
    tables.locals.extend(own);
    tables.broadcasts.extend([IpAddress::v4([192, 0, 2, 255]), IpAddress::v4([192, 168, 77, 255])]);
    for host in [HOST, HOST_2, HOST_3, HOST_4, HOST_5] {
        tables.locals.insert(IpAddress::v4(host.ipv4));
        if host.flags & IPV6 != 0 {
            tables.locals.insert(IpAddress(host.ipv6));
        }
    }
    for (prefix, bits, kind) in ROUTES {
        let prefix = match prefix.parse::<core::net::IpAddr>().unwrap() {
            core::net::IpAddr::V4(ip) => IpAddress::v4(ip.octets()),
            core::net::IpAddr::V6(ip) => IpAddress(ip.octets()),
        };
        let (route, hop) = kind.route(prefix.as_v4().is_some());
        tables.routes.push((prefix, bits, route, hop));
    }
    for (protocol, ip, port) in SOCKETS {
        tables.sockets.insert((protocol.0, ip, port.to_be_bytes()));
    }
    tables.publishes.push(Publish::default());
    for (protocol, ip, first, count, end, target_first) in PUBLISHED {
        let target = if is_v4(ip) { IpAddress::v4(end.ipv4) } else { IpAddress(end.ipv6) };
        let place = tables.publishes.len() as u32;
        tables.published.push((protocol.0, ip, place));
        let last = first + count - 1;
        let (owner, network) = (end.id, end.network);
        let protocol = protocol.0;
        tables.publishes.push(Publish {
            target,
            first,
            last,
            target_first,
            owner,
            network,
            epoch: 1,
            protocol,
            pad: [0; 3],
        });
    }
}

fn is_v4(ip: IpAddress) -> bool {
    ip.as_v4().is_some()
}

fn own(tables: &mut MemoryTables, end: &End, ip: IpAddress) {
    tables.addresses.insert(AddressKey { network: end.network, ip }, end.id);
}

/// Puts an entry into the hashed FDB of `end`'s network.
pub fn put_station(tables: &MemoryTables, end: &End, mac: Mac, station: Station) {
    tables.stations.borrow_mut().insert(StationKey { network: end.network, mac }, station);
}

/// Has `end` have learned `mac` in one of its places, `age` nanoseconds ago.
pub fn put_learned(tables: &MemoryTables, end: &End, place: u16, mac: Mac, age: u64) {
    put_station(tables, end, mac, Station::learned(end.id, tables.clock.get() - age));
    tables.foreign.borrow_mut().insert(ForeignKey { port: end.id, place }, mac);
}

/// The station number `n` behind a learning port.
pub const fn stranger(n: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, n])
}
