//! Where a packet is worked on: what would be local variables, had a BPF program more than 512 bytes of stack.

use crate::conntrack::Pair;
use crate::datagram::Datagram;
use crate::fragment::Piece;
use crate::icmp::Quote;
use crate::layout::{Flow, Policy, Whole};
use crate::nat::Search;
use crate::open::Lead;
use crate::tables::Hop;

/// One packet's workplace. The programs keep one for each CPU; nothing in it outlives the packet.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    /// The packet.
    pub datagram: Datagram,
    /// The flow it belongs to, as its entry was when it was found.
    pub flow: Flow,
    /// Whether it belongs to one.
    pub is_known: bool,
    /// Whether it makes that an established one.
    pub is_grown_by: bool,
    /// Whether the kernel is to find the neighbour that it goes to.
    pub by_neighbour: bool,
    /// The flow that it opens.
    pub pair: Pair,
    /// The policy of the network that the flow is of.
    pub policy: Policy,
    /// Where it leads, when it belongs to no flow.
    pub lead: Lead,
    /// Where the host's routes send it.
    pub hop: Hop,
    /// The longest packet for the way out, when this one is longer.
    pub longest: u16,
    /// The external port that is looked for.
    pub search: Search,
    /// The packet that it is a fragment of.
    pub piece: Piece,
    /// The packet that it is cut from.
    pub whole: Whole,
    /// The packet that it quotes, when it is an ICMP error.
    pub quote: Quote,
}

#[cfg(any(test, feature = "std"))]
impl Default for Scratch {
    fn default() -> Self {
        Self {
            datagram: Datagram::EMPTY,
            flow: Flow::EMPTY,
            is_known: false,
            is_grown_by: false,
            by_neighbour: false,
            pair: Pair::EMPTY,
            policy: Policy::DEFAULT,
            lead: Lead::Host,
            hop: Hop::default(),
            longest: 0,
            search: Search::EMPTY,
            piece: Piece::EMPTY,
            whole: Whole { bytes: [0; _] },
            quote: Quote::EMPTY,
        }
    }
}
