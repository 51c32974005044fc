//! How a frame's life can end. Both sides print and count from these enums; there is no second list.

use crate::layout::{Port, PortId};

/// What becomes of a frame, or the reason why it was dropped.
pub type Outcome = Result<Verdict, DropReason>;

/// The good ends.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The frame goes to one port.
    Deliver(Egress),
    /// Every port of the network that should have one has got a copy; the original is done with.
    Flooded,
    /// It goes to the gateway: [`routed`](crate::path::routed) says what becomes of it.
    Route,
    /// It is an ICMP error: [`related`](crate::path::related) finds the flow that it is about.
    Relate,
    /// It belongs to no flow: [`opened`](crate::path::opened) says whether it opens one.
    Open,
    /// It is a fragment: [`fragmented`](crate::path::fragmented) finds what its packet's first one did.
    Fragment,
    /// It is too long for the way out, but may be cut: [`cut`](crate::path::cut) does.
    Cut,
    /// It, or what it was made of, will come in once more. The frame at hand is done with.
    Again,
    /// It is dropped and counted, and the sender is to be told: [`refused`](crate::path::refused) does.
    Refuse(DropReason),
    /// It is none of ours: the host's own stack gets it.
    Pass,
}

/// A packet that is dropped with an ICMP error to its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: DropReason,
    /// The longest packet that would pass, when that is the reason.
    pub mtu: u16,
}

impl Refusal {
    /// The refusal as a number, for a place that holds but a number.
    #[inline(always)]
    pub fn as_word(self) -> u32 {
        u32::from(self.reason.code()) | u32::from(self.mtu) << 16
    }

    /// The refusal of a number.
    #[inline(always)]
    pub fn from_word(word: u32) -> Option<Self> {
        Some(Self { reason: DropReason::from_code(word as u16)?, mtu: (word >> 16) as u16 })
    }
}

/// The way out to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Into the namespace behind this port.
    Namespace(PortId),
    /// Up into the host, as if received on the network's own interface.
    Host(PortId),
    /// Out of the uplink with this interface index; the Ethernet header is written.
    Uplink(u32),
    /// Out of the uplink with this interface index; the kernel is to find the neighbour.
    Neighbour(u32),
}

impl Egress {
    /// The way to `port`.
    #[inline(always)]
    pub fn to(port: &Port) -> Self {
        if port.is_host() { Self::Host(port.id()) } else { Self::Namespace(port.id()) }
    }
}

macro_rules! drop_reasons {
    ($($name:ident = $code:literal, $label:literal, $sentence:literal;)*) => {
        /// Why a frame was dropped: one variant for each check, counted for each port.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum DropReason {
            $(#[doc = $sentence] $name = $code,)*
        }

        impl DropReason {
            /// Every reason, in the order of the codes.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The short name that `nsnet drops` prints; stable.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// What happened, in a sentence for the operator.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$name => $sentence,)* }
            }
        }
    };
}

// A macro, so that code, label and sentence of a reason stand on one line and cannot drift apart.
drop_reasons! {
    UnknownPort = 1, "unknown-port", "The interface is not (or no longer) a port of any network.";
    Truncated = 2, "truncated", "The frame ends before the headers that it announces.";
    Tagged = 3, "tagged", "The frame carries a VLAN tag; ports are untagged.";
    InvalidSourceMac = 4, "invalid-source-mac", "The source MAC is zero or a group address.";
    SpoofedMac = 5, "spoofed-mac", "The source MAC is not the port's own.";
    MacLimit = 6, "mac-limit", "The port has learned as many foreign MACs as it may.";
    TableFull = 7, "table-full", "A table of the dataplane has no room for a new entry.";
    ReservedGroup = 8, "reserved-group", "The destination is a group address that no bridge forwards (01-80-C2-00-00-0x).";
    EtherType = 9, "ethertype", "The ethertype is none of IPv4, ARP and IPv6.";
    BadIpv4 = 10, "bad-ipv4", "The IPv4 header contradicts itself or the frame's length.";
    SpoofedIpv4 = 11, "spoofed-ipv4", "The IPv4 source is not an address of the port.";
    BadArp = 12, "bad-arp", "The ARP message is not an Ethernet and IPv4 request or reply.";
    SpoofedArp = 13, "spoofed-arp", "The ARP sender is not an address of the port.";
    Ipv6Off = 14, "ipv6-off", "The network has no IPv6 subnet.";
    BadIpv6 = 15, "bad-ipv6", "The IPv6 header contradicts itself, or hides its upper-layer header.";
    SpoofedIpv6 = 16, "spoofed-ipv6", "The IPv6 source is not an address of the port.";
    BadNd = 17, "bad-nd", "The neighbour discovery message breaks RFC 4861 or RFC 6980.";
    SpoofedNd = 18, "spoofed-nd", "The neighbour discovery message speaks for an address or a MAC that is not the port's.";
    RouterGuard = 19, "router-guard", "Only the gateway may send router advertisements and redirects.";
    DhcpServer = 20, "dhcp-server", "No DHCP server may run behind this port.";
    UnknownDestination = 21, "unknown-destination", "No port of the network has the destination MAC.";
    SamePort = 22, "same-port", "The destination is behind the port that the frame came from.";
    TooLong = 23, "too-long", "The frame is longer than the MTU of the port that it should leave by.";
    OtherNetwork = 24, "other-network", "The destination belongs to another network.";
    LoopbackDestination = 25, "loopback-destination", "The destination is a loopback address.";
    FloodLimit = 26, "flood-limit", "The port has had more frames flooded than it may in this time.";
    TtlExceeded = 27, "ttl-exceeded", "The TTL or hop limit does not reach beyond the gateway.";
    NoRoute = 28, "no-route", "The host has no route to the destination.";
    InternalNetwork = 29, "internal-network", "The network is internal: nothing leaves it.";
    Martian = 30, "martian", "The source or destination is an address that is never routed.";
    SourceRoute = 31, "source-route", "The packet has a source route option, or options that cannot be read.";
    NoConnection = 32, "no-connection", "The TCP segment belongs to no connection and opens none.";
    PortsExhausted = 33, "ports-exhausted", "No external port is free for a new flow.";
    FlowQuota = 34, "flow-quota", "The namespace has as many established flows as it may.";
    PortQuota = 35, "port-quota", "The namespace holds as many external ports as it may.";
    NoMapping = 36, "no-mapping", "The packet is to a port of the NAT pool that no flow has.";
    DirectAccess = 37, "direct-access", "A packet from outside is to a namespace's own address and belongs to no flow.";
    BadTransport = 38, "bad-transport", "The transport header contradicts itself or the packet's length.";
    IcmpUnrelated = 39, "icmp-unrelated", "The ICMP error is about a packet of no flow, or is damaged.";
    IcmpType = 40, "icmp-type", "The ICMP message is of a type that is not routed.";
    FragmentUnknown = 41, "fragment-unknown", "The fragment's first part never came, or came too late.";
    FragmentTiny = 42, "fragment-tiny", "The first fragment does not hold the whole transport header, or a later one overlaps it.";
    Protocol = 43, "protocol", "The protocol cannot be translated for a second namespace to the same destination.";
    FragmentationNeeded = 44, "fragmentation-needed", "The packet is longer than the way on takes, and must not be cut.";
    NoUplink = 45, "no-uplink", "The route leads out of an interface that is no uplink of the network.";
    AddressChanged = 46, "address-changed", "The host no longer has the address that the flow was given.";
    OwnSource = 47, "own-source", "A packet from outside claims to come from a namespace.";
    Busy = 48, "busy", "Another CPU was removing what stood in the way of the new flow; the next packet finds it gone.";
    IcmpChecksum = 49, "icmp-checksum", "The ICMP error about a flow's packet has a wrong checksum, or is too long to be summed.";
    IsolatedPort = 50, "isolated-port", "Sender and receiver are both on isolated ports of the network.";
    ProhibitedRoute = 51, "prohibited-route", "The host's route to the destination prohibits it.";
    BlackholeRoute = 52, "blackhole-route", "The host's route to the destination is a blackhole.";
}

impl DropReason {
    /// The code that the programs count under.
    #[inline(always)]
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The reason of a code, if there is such a reason.
    ///
    /// By its place, not by a search: to the verifier each comparison of a search is a way of its own.
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.get(usize::from(code).wrapping_sub(1)).copied().filter(|reason| reason.code() == code)
    }
}

#[cfg(test)]
mod tests {
    use super::DropReason;

    #[test]
    fn codes_and_labels_are_unique() {
        for (position, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(DropReason::from_code(reason.code()), Some(*reason));
            for other in &DropReason::ALL[..position] {
                assert_ne!(reason.label(), other.label());
                assert_ne!(reason.code(), other.code());
            }
            assert!(reason.sentence().ends_with('.'));
        }
    }
}
