//! A packet's life, from the hook it arrives at to its verdict. No word here knows which hook that is.

use crate::guard;
use crate::layout::{Port, PortId};
use crate::packet::Packet;
use crate::switch;
use crate::tables::Tables;
use crate::verdict::{DropReason, Outcome};
use crate::wire::Ethernet;

/// A frame that left a namespace through `port`.
#[inline(always)]
pub fn from_namespace(frame: &mut impl Packet, port: PortId, tables: impl Tables) -> Outcome {
    counted(frame, port, tables, |frame, eth, from| {
        guard::check_sender(frame, eth, from, tables)?;
        switch::forward(frame, eth, from, tables)
    })
}

/// A frame that the host sends out of a network's own interface, which is `port`. The host is trusted.
#[inline(always)]
pub fn from_host(frame: &mut impl Packet, port: PortId, tables: impl Tables) -> Outcome {
    counted(frame, port, tables, |frame, eth, from| switch::forward(frame, eth, from, tables))
}

/// What is common to all ways in: the frame is an untagged Ethernet frame from a port that exists, and it is counted.
#[inline(always)]
fn counted<P: Packet>(
    frame: &mut P,
    id: PortId,
    tables: impl Tables,
    then: impl FnOnce(&mut P, &Ethernet, &Port) -> Outcome,
) -> Outcome {
    let length = frame.len();
    let outcome = match tables.port(id) {
        // Not a guard of the arm: the compiler would copy the port once more.
        Some(port) => {
            if port.id() == PortId::NONE {
                Err(DropReason::UnknownPort)
            } else {
                tables.count_received(id, length);
                match read_untagged(frame) {
                    Ok(eth) => then(frame, &eth, &port),
                    Err(reason) => Err(reason),
                }
            }
        }
        None => Err(DropReason::UnknownPort),
    };
    if let Err(reason) = outcome {
        tables.count_dropped(id, reason, length);
    }
    outcome
}

#[inline(always)]
fn read_untagged(frame: &impl Packet) -> Result<Ethernet, DropReason> {
    let eth = Ethernet::read(frame)?;
    // Priority tags (VLAN 0) too: no port is a trunk, and a tag must not reach a receiver that would act on it.
    if frame.has_tag_aside() || eth.ethertype().is_tag() {
        return Err(DropReason::Tagged);
    }
    Ok(eth)
}
