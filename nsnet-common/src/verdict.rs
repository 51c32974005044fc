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
}

/// The way out to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// Into the namespace behind this port.
    Namespace(PortId),
    /// Up into the host, as if received on the network's own interface.
    Host(PortId),
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
}

impl DropReason {
    /// The code that the programs count under.
    #[inline(always)]
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// The reason of a code, if there is such a reason.
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.code() == code)
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
