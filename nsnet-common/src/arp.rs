//! ARP requests for addresses the control plane knows are answered here: a bridge would copy each to every port.

use crate::capture::Moment;
use crate::guard::other_owner;
use crate::layout::Port;
use crate::packet::Packet;
use crate::tables::Tables;
use crate::verdict::DropReason;
use crate::wire::arp::{Arp, REPLY};
use crate::wire::{EtherType, Ethernet, IpAddress};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Reply {
    eth: Ethernet,
    arp: Arp,
}

/// Turns a request into the reply to it; `false` when the address is nobody else's, so that the network is to hear it:
/// announcements (RFC 5227 section 2.3) and probes for the sender's own address are such.
///
/// A probe for an address that another port has is answered, which is what makes `arping -D` tell the truth.
#[inline(never)]
pub fn answer(frame: &mut impl Packet, from: &Port, tables: impl Tables) -> Result<bool, DropReason> {
    let request = Arp::read(frame)?;
    if !request.is_request() {
        return Ok(false);
    }
    let Some(owner) = other_owner(from, IpAddress::v4(request.target_ip), tables) else { return Ok(false) };
    let reply = Reply {
        eth: Ethernet::new(request.sender_mac, owner.mac(), EtherType::ARP),
        arp: Arp::new(REPLY, (owner.mac(), request.target_ip), (request.sender_mac, request.sender_ip)),
    };
    tables.show(Moment::Before(from.id().ifindex()), frame);
    frame.write(0, &reply).ok_or(DropReason::Truncated)?;
    tables.count_answered(from.id());
    Ok(true)
}
