//! The tables that every case begins with: three networks on one host.

use crate::layout::flags::{self, IPV6, LEARN, TRUSTED};
use crate::layout::{AddressKey, ForeignKey, Network, NetworkId, Port, PortId, Station, StationKey};
use crate::memory::MemoryTables;
use crate::wire::{IpAddress, Mac};

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

const HOST_V6: u16 = HOST_V4 | IPV6;
const HOST_V4: u16 = flags::HOST;

/// All ports.
pub const ENDS: [&End; 11] = [&HOST, &RED, &BLUE, &ORANGE, &PURPLE, &GREEN, &HOST_2, &CYAN, &BLACK, &HOST_3, &WHITE];

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
    for (first, learning) in [(&HOST, 2), (&HOST_2, 0), (&HOST_3, 0)] {
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
    tables
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
