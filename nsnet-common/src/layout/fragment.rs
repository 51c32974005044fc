//! Fragments: what is remembered of a packet's first one, and the ones that wait for it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{FlowKey, NetworkId, PortId};
use crate::wire::{IpAddress, IpProtocol};

/// Packets whose first fragment is remembered; the one that was not asked for the longest goes when there are more.
pub const MAX_FRAGMENTS: u32 = 1 << 14;
/// How long fragments of one packet are put together, seconds. RFC 791 section 3.2 begins with 15, RFC 1122 section 3.3.2
/// recommends 60 to 120, Linux has 30 (net.ipv4.ipfrag_time).
pub const FRAGMENT_TIMEOUT: u32 = 30;
/// Fragments that may wait for their first one, on the whole host: 2.1 MB, taken when the programs are loaded.
pub const MAX_HELD: u32 = 1 << 10;
/// How many of them may have come by one port or uplink. A packet of 64 KB is 45 of an MTU of 1500.
pub const HELD_PER_PORT: u16 = 64;
/// The longest frame that may wait, a power of two.
pub const HELD_BYTES: usize = 1 << 11;
/// The longest frame that is cut, a power of two.
pub const WHOLE_BYTES: usize = 1 << 14;
/// The longest payload that it is cut into: what a multiple of 8 can be below 2048.
pub const PIECE_BYTES: usize = 2040;

/// What fragments of one packet have in common (RFC 791 section 3.2; RFC 8200 section 4.5, where it is not the protocol).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct FragmentKey {
    /// The sender.
    pub source: IpAddress,
    /// The receiver.
    pub destination: IpAddress,
    /// The packet's number, network byte order; of IPv4 the last two bytes.
    pub identification: [u8; 4],
    /// Where it comes from.
    pub side: NetworkId,
    /// The protocol; 0 with IPv6.
    pub protocol: u8,
    /// 4 or 6.
    pub version: u8,
}

impl FragmentKey {
    /// The key of nothing.
    pub const EMPTY: Self = Self {
        source: IpAddress::UNSPECIFIED,
        destination: IpAddress::UNSPECIFIED,
        identification: [0; 4],
        side: NetworkId::OUTSIDE,
        protocol: 0,
        version: 0,
    };

    /// The key of a packet with this tuple and number.
    #[inline(always)]
    pub fn new(key: &FlowKey, identification: [u8; 4]) -> Self {
        let (protocol, version) = if key.is_v4() { (key.protocol().0, 4) } else { (0, 6) };
        Self { source: key.source, destination: key.destination, identification, side: key.side, protocol, version }
    }
}

/// What a first fragment says about those that follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Fragment {
    /// Source port, network byte order, or what stands for it in a flow's key.
    pub source_port: [u8; 2],
    /// Destination port.
    pub destination_port: [u8; 2],
    /// The protocol.
    pub protocol: u8,
    /// Bytes of the packet, counted as fragments' offsets are, up to the end of the transport header.
    pub header: u8,
    /// 0.
    pub pad: u16,
    /// When it came, seconds of the monotonic clock.
    pub seen: u32,
}

impl Fragment {
    /// The protocol.
    #[inline(always)]
    pub fn protocol(&self) -> IpProtocol {
        IpProtocol(self.protocol)
    }
}

/// Whether fragments that came at `seen` still count at `now`, seconds.
#[inline(always)]
pub fn is_fresh(seen: u32, now: u32) -> bool {
    // Another CPU's clock may be a little ahead.
    now.wrapping_sub(seen) <= FRAGMENT_TIMEOUT || seen.wrapping_sub(now) <= FRAGMENT_TIMEOUT
}

/// Key of `HELD`: the places that a port has. A flood of fragments fills the places of its own port only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct HeldKey {
    /// The port or uplink that the fragment came by.
    pub port: PortId,
    /// 0 to [`HELD_PER_PORT`] - 1.
    pub place: u16,
}

/// A fragment that waits for its packet's first one.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Held {
    /// Its packet.
    pub key: FragmentKey,
    /// When it came, seconds of the monotonic clock.
    pub seen: u32,
    /// Bytes of the frame.
    pub length: u32,
    /// The frame, as it came, and room behind it: its payload is as long as the verifier can be told in bits.
    pub bytes: [u8; HELD_BYTES + 16],
}

/// Value of `HOLDING`: what a port has waiting. One word, for one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(8))]
pub struct Holding {
    /// How many fragments have been held, ever.
    pub count: u32,
    /// When the last one came, seconds of the monotonic clock.
    pub seen: u32,
}

/// A frame that is being cut.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Whole {
    /// Its bytes, and room behind them, so that every piece of full length that begins in it ends in it.
    pub bytes: [u8; WHOLE_BYTES + PIECE_BYTES + 8],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!((size_of::<FragmentKey>(), size_of::<Fragment>(), size_of::<HeldKey>()), (40, 12, 4));
        assert_eq!((size_of::<Held>(), size_of::<Holding>()), (64 + HELD_BYTES, 8));
        // What the kernel takes for a value of which each CPU has one (PCPU_MIN_UNIT_SIZE).
        assert!(size_of::<Whole>() <= 32768);
    }

    #[test]
    fn fragments_are_put_together_for_so_long() {
        assert!(is_fresh(100, 100) && is_fresh(100, 130) && is_fresh(100, 99));
        assert!(!is_fresh(100, 131) && !is_fresh(0, 100));
        assert!(is_fresh(u32::MAX, 3));
    }
}
