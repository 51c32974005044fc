//! What `nsnet explain` asks the program `ask_host`, which asks the kernel as all programs do: its routes and its sockets.
//! Both travel in a frame, behind an Ethernet header that says nothing.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{FlowKey, PortId};
use crate::tables::{Hop, Route};
use crate::wire::{IpAddress, Mac};

/// A packet of this tuple, come in by this interface: where does it go, and does a socket take it?
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Question {
    from: [u8; 4],
    key: [u8; size_of::<FlowKey>()],
}

impl Question {
    /// The question about packets of `key` that came in by the interface with the index `from`.
    pub fn new(from: u32, key: &FlowKey) -> Self {
        Self { from: from.to_ne_bytes(), key: zerocopy::transmute!(*key) }
    }

    /// The index of the interface.
    #[inline(always)]
    pub fn from(&self) -> u32 {
        u32::from_ne_bytes(self.from)
    }

    /// The tuple.
    #[inline(always)]
    pub fn key(&self) -> FlowKey {
        zerocopy::transmute!(self.key)
    }
}

/// What the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Answer {
    route: u8,
    has_socket: u8,
    mtu: [u8; 2],
    ifindex: [u8; 4],
    to_mac: Mac,
    from_mac: Mac,
    source: IpAddress,
    next: IpAddress,
}

impl Answer {
    /// The answer.
    #[inline(always)]
    pub fn new(route: Route, hop: &Hop, has_socket: bool) -> Self {
        Self {
            route: route as u8,
            has_socket: u8::from(has_socket),
            mtu: hop.mtu.to_ne_bytes(),
            ifindex: hop.ifindex.to_ne_bytes(),
            to_mac: hop.to_mac,
            from_mac: hop.from_mac,
            source: hop.source,
            next: hop.next,
        }
    }

    /// What the routes say; `None` for a number that is none of ours.
    pub fn route(&self) -> Option<Route> {
        let routes = [Route::Forward, Route::Local, Route::Unreachable, Route::Prohibited, Route::Blackhole];
        routes.into_iter().find(|route| *route as u8 == self.route)
    }

    /// The way, as the routes gave it.
    pub fn hop(&self) -> Hop {
        Hop {
            ifindex: u32::from_ne_bytes(self.ifindex),
            uplink: PortId::NONE,
            mtu: u16::from_ne_bytes(self.mtu),
            to_mac: self.to_mac,
            from_mac: self.from_mac,
            source: self.source,
            next: self.next,
        }
    }

    /// Whether a socket of the host's would take the packet.
    pub fn has_socket(&self) -> bool {
        self.has_socket != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::NetworkId;
    use crate::wire::IpProtocol;

    #[test]
    fn both_come_out_as_they_went_in() {
        let ends = (IpAddress::v4([10, 1, 0, 2]), IpAddress::v4([192, 0, 2, 7]));
        let key = FlowKey::new(NetworkId(3), IpProtocol::UDP, (ends.0, [1, 2]), (ends.1, [0, 53]), true);
        let question = Question::new(77, &key);
        assert_eq!((question.from(), question.key()), (77, key));
        let (to_mac, from_mac) = (Mac([2; 6]), Mac([4; 6]));
        let hop = Hop { ifindex: 5, uplink: PortId::NONE, mtu: 1400, to_mac, from_mac, source: ends.0, next: ends.1 };
        for route in [Route::Forward, Route::Blackhole] {
            let answer = Answer::new(route, &hop, true);
            assert_eq!((answer.route(), answer.hop(), answer.has_socket()), (Some(route), hop, true));
        }
        let unknown = Answer { route: 9, ..Answer::new(Route::Local, &hop, false) };
        assert_eq!(unknown.route(), None);
    }
}
