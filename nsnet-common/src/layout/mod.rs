//! Map keys, values, names and sizes, and the numbers both sides derive from one another. Stated here only.
//!
//! A change that alters what an existing map means gives the map another version ([`names::VERSIONS`]), which is part of
//! its pin's name: no program reads an older one's map as its own, and `nsnet upgrade` knows what to convert.

mod ask;
mod capture;
mod flow;
mod fragment;
pub mod names;
mod nat;
mod port;
mod socket;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::wire::{IpAddress, Mac};
pub use ask::{Answer, Question};
pub use capture::{
    CAPTURE_LEASE_NS, Capture, Capturing, Dropped, Event, KEPT_BYTES, LastDrop, MAX_REASONS, MAX_SNAPLEN, capture_modes,
};
pub use flow::{
    About, Flow, Flow4, FlowKey, FlowKey4, FlowState, MAX_FLOWS_V4, MAX_FLOWS_V6, MAX_YOUNG_FLOWS, flow_flags,
    whole_seconds,
};
pub use fragment::{
    FRAGMENT_TIMEOUT, Fragment, FragmentKey, HELD_BYTES, HELD_PER_PORT, Held, HeldKey, Holding, MAX_FRAGMENTS,
    MAX_HELD, PIECE_BYTES, WHOLE_BYTES, Whole, is_fresh,
};
pub use nat::{
    MAPPING_STEP, MAX_LOCKS, MAX_MAPPINGS, MAX_PUBLISHED_PREFIXES, MAX_PUBLISHES, MAX_UPLINKS, Mapping, MappingKey,
    Policy, Publish, PublishedKey, QUARANTINE, Usage, mapping_kinds, policy_flags, port_prefixes,
};
pub use port::{Port, flags};
pub use socket::{MAX_LOCALS, MAX_ORIGINALS, Original, OriginalKey};

/// Version of how pins are arranged, part of their path. What is in the maps has versions of its own.
pub const LAYOUT_VERSION: u32 = 4;

/// Ports on one host, over all networks. Port ids run from 1 to `MAX_PORTS - 1`.
pub const MAX_PORTS: u32 = 4096;
/// Networks on one host. Network ids run from 1 to `MAX_NETWORKS - 1`.
pub const MAX_NETWORKS: u32 = 1024;
/// Addresses of namespaces and gateways, over all networks.
pub const MAX_ADDRESSES: u32 = 4 * MAX_PORTS;
/// Subnets, over all networks.
pub const MAX_SUBNETS: u32 = 4 * MAX_NETWORKS;
/// Foreign MACs that one learning port may have at a time.
pub const FOREIGN_PER_PORT: u16 = 64;
/// Entries of the hashed FDB: one user-set MAC and all foreign MACs for each port.
pub const MAX_STATIONS: u32 = MAX_PORTS * (1 + FOREIGN_PER_PORT as u32);
/// Largest number of (port, reason) pairs that can be counted.
pub const MAX_DROP_COUNTERS: u32 = MAX_PORTS * 64;

/// The host's interface of port N has the index `PORT_IFINDEX_BASE + N`: a program knows its port by a subtraction.
/// Far above what the kernel hands out by itself in a namespace's life.
pub const PORT_IFINDEX_BASE: u32 = 1 << 24;

/// A learned MAC that has not been heard for this long is forgotten (802.1D-2004 table 7-5: 300 s).
pub const AGEING_NS: u64 = 300 * 1_000_000_000;
/// How old the stamp of a learned MAC must be before hearing it again writes to the table.
pub const REFRESH_NS: u64 = 1_000_000_000;
/// What one flooded copy costs a port's flood allowance: 200,000 copies a second.
pub const FLOOD_COPY_NS: u64 = 5_000;
/// How far ahead of the clock a port may run: a burst of 40,000 copies.
pub const FLOOD_BURST_NS: u64 = 200_000_000;

/// What one ICMP error costs a port's allowance: 1,000 errors a second, Linux's own limit (net.ipv4.icmp_msgs_per_sec)
/// until 6.12. Enough for every traceroute; as a flood it is less than what a namespace may send to begin with.
pub const REFUSAL_NS: u64 = 1_000_000;
/// How far ahead of the clock a port's errors may run: a burst of 50, as Linux's (net.ipv4.icmp_msgs_burst).
pub const REFUSAL_BURST_NS: u64 = 50 * REFUSAL_NS;

/// The version of a map's keys and values.
pub fn version_of(map: &str) -> u32 {
    names::VERSIONS.iter().find(|(name, _)| *name == map).map_or(1, |(_, version)| *version)
}

/// A port's number on this host, 1 to `MAX_PORTS - 1`. 0 is "no port".
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(transparent)]
pub struct PortId(pub u16);

impl PortId {
    /// No port: the end of a list.
    pub const NONE: Self = Self(0);

    /// The index of this port's interface in the host's namespace.
    #[inline(always)]
    pub const fn ifindex(self) -> u32 {
        PORT_IFINDEX_BASE + self.0 as u32
    }

    /// The port of an interface index; [`PortId::NONE`] for an interface that is no port of ours.
    #[inline(always)]
    pub const fn from_ifindex(ifindex: u32) -> Self {
        let id = ifindex.wrapping_sub(PORT_IFINDEX_BASE);
        if id < MAX_PORTS { Self(id as u16) } else { Self::NONE }
    }
}

/// A network's number on this host, 1 to `MAX_NETWORKS - 1`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(transparent)]
pub struct NetworkId(pub u16);

impl NetworkId {
    /// No network: what is beyond an uplink.
    pub const OUTSIDE: Self = Self(0);
}

/// One network: the head of its list of ports.
///
/// A list through the ports themselves, because taking a port out is then one 16-bit store: a flood that runs at the
/// same time neither misses nor repeats another port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Network {
    first: PortId,
    ports: u16,
    learning: u16,
    pad: u16,
}

impl Network {
    /// A network whose list begins with `first`, has `ports` members, of which `learning` learn foreign MACs.
    pub fn new(first: PortId, ports: u16, learning: u16) -> Self {
        Self { first, ports, learning, pad: 0 }
    }

    /// The first port of the list.
    #[inline(always)]
    pub fn first(&self) -> PortId {
        self.first
    }

    /// How many ports the list has.
    #[inline(always)]
    pub fn ports(&self) -> u16 {
        self.ports
    }

    /// How many of them learn foreign MACs.
    #[inline(always)]
    pub fn learning(&self) -> u16 {
        self.learning
    }
}

/// Key of the hashed FDB: MACs that the array FDB cannot hold (foreign ones, and ones set by the user).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct StationKey {
    /// The network: one MAC may stand in several.
    pub network: NetworkId,
    /// The station's MAC.
    pub mac: Mac,
}

/// Value of the hashed FDB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Station {
    heard: u64,
    port: PortId,
    fixed: u16,
    pad: u32,
}

impl Station {
    /// A station set by the control plane: never moves, never ages.
    pub fn fixed(port: PortId) -> Self {
        Self { heard: 0, port, fixed: 1, pad: 0 }
    }

    /// A station heard behind `port` at `now` (monotonic clock, nanoseconds).
    #[inline(always)]
    pub fn learned(port: PortId, now: u64) -> Self {
        Self { heard: now, port, fixed: 0, pad: 0 }
    }

    /// The port that the station is behind.
    #[inline(always)]
    pub fn port(&self) -> PortId {
        self.port
    }

    /// Whether the control plane set it.
    #[inline(always)]
    pub fn is_fixed(&self) -> bool {
        self.fixed != 0
    }

    /// Nanoseconds since the station was last heard.
    #[inline(always)]
    pub fn age(&self, now: u64) -> u64 {
        now.saturating_sub(self.heard)
    }

    /// Whether the entry still counts at `now`.
    #[inline(always)]
    pub fn is_alive(&self, now: u64) -> bool {
        self.is_fixed() || self.age(now) < AGEING_NS
    }
}

/// Key of `FOREIGN`: the places a port has for learned MACs. A flood of MACs fills the places of its own port only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ForeignKey {
    /// The port.
    pub port: PortId,
    /// 0 to [`FOREIGN_PER_PORT`] - 1.
    pub place: u16,
}

/// Key of `ADDRESSES`: who has an address in a network. IPv4 as ::ffff:a.b.c.d, so that both families are one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct AddressKey {
    /// The network.
    pub network: NetworkId,
    /// The address, network byte order.
    pub ip: IpAddress,
}

/// Bits of a prefix in `SUBNETS` are counted in the mapped form: an IPv4 /24 is a /120 there.
pub const MAPPED_IPV4_BITS: u32 = 96;

/// Key of `DROPS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DropKey {
    /// The port that the frame came from; [`PortId::NONE`] when it is no port.
    pub port: PortId,
    /// [`DropReason::code`](crate::verdict::DropReason::code).
    pub reason: u16,
}

/// Frames and their bytes, Ethernet header included. A GSO frame counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Traffic {
    /// Frames.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Traffic {
    /// One more frame of `length` bytes.
    #[inline(always)]
    pub fn add(&mut self, length: u32) {
        self.packets = self.packets.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(u64::from(length));
    }

    /// Takes back a frame of `length` bytes. Another CPU may have counted it: only the sum over all CPUs is a number.
    #[inline(always)]
    pub fn take_back(&mut self, length: u32) {
        self.packets = self.packets.wrapping_sub(1);
        self.bytes = self.bytes.wrapping_sub(u64::from(length));
    }
}

/// What one port has seen, on one CPU: `received.packets` = forwarded + `flooded` + `answered` + `passed` + drops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct PortCounters {
    /// From the namespace (or the host) into the switch.
    pub received: Traffic,
    /// Out of the switch to the namespace (or the host).
    pub sent: Traffic,
    /// Received frames that were flooded.
    pub flooded: u64,
    /// Received ARP requests and neighbour solicitations that were answered. A packet that is refused with an ICMP error is
    /// among the drops and not here; the error is among what was sent.
    pub answered: u64,
    /// Received on an uplink and left to the host.
    pub passed: u64,
}

/// The MAC of a port: `02:NN:NN:PP:PP:xx`, network, port, and a byte that changes when a port id is used again.
/// The FDB of such MACs is an array lookup.
pub fn port_mac(network: NetworkId, port: PortId, generation: u8) -> Mac {
    let [n1, n0] = network.0.to_be_bytes();
    let [p1, p0] = port.0.to_be_bytes();
    Mac([0x02, n1, n0, p1, p0, generation])
}

/// The port that a MAC of [`port_mac`]'s form names. The caller checks that the port really has this MAC.
#[inline(always)]
pub fn port_of_mac(mac: Mac) -> PortId {
    let Mac([kind, _, _, p1, p0, _]) = mac;
    if kind == 0x02 { PortId(u16::from_be_bytes([p1, p0])) } else { PortId::NONE }
}

/// Keys of the trie have no padding and any alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(transparent)]
pub struct SubnetKey(pub IpAddress);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_known_by_its_interface_index_and_by_its_mac() {
        let port = PortId(0x0abc);
        assert_eq!(PortId::from_ifindex(port.ifindex()), port);
        assert_eq!(PortId::from_ifindex(2), PortId::NONE);
        assert_eq!(PortId::from_ifindex(PORT_IFINDEX_BASE + MAX_PORTS), PortId::NONE);
        let mac = port_mac(NetworkId(0x0102), port, 7);
        assert_eq!(mac, Mac([2, 1, 2, 0x0a, 0xbc, 7]));
        assert_eq!(port_of_mac(mac), port);
        assert_eq!(port_of_mac(Mac([0, 1, 2, 0, 1, 7])), PortId::NONE);
    }

    #[test]
    fn values_have_the_size_the_maps_were_designed_for() {
        assert_eq!(size_of::<Port>(), 40);
        assert_eq!(size_of::<StationKey>(), 8);
        assert_eq!(size_of::<Station>(), 16);
        assert_eq!(size_of::<PortCounters>(), 56);
    }
}
