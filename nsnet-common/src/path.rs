//! A packet's life, from the hook it arrives at to its verdict. No word here knows which hook that is.

use crate::capture::Moment;
use crate::fragment;
use crate::guard;
use crate::icmp;
use crate::layout::{Port, PortId};
use crate::nat;
use crate::open::{self, Lead};
use crate::packet::Packet;
use crate::refuse;
use crate::route;
use crate::scratch::Scratch;
use crate::switch;
use crate::tables::{Reclaim, Stage, Tables};
use crate::verdict::{DropReason, Outcome, Refusal, Verdict};
use crate::wire::{EtherType, Ethernet};

/// A frame that left a namespace through `port`.
#[inline(always)]
pub fn from_namespace(frame: &mut impl Packet, port: PortId, tables: impl Tables) -> Outcome {
    counted(frame, port, tables, |frame, eth, from| {
        tables.enter(Stage::Guard);
        guard::check_sender(frame, eth, from, tables)?;
        switch::forward(frame, eth, from, tables)
    })
}

/// A frame that the host sends out of a network's own interface, which is `port`. The host is trusted.
#[inline(always)]
pub fn from_host(frame: &mut impl Packet, port: PortId, tables: impl Tables) -> Outcome {
    counted(frame, port, tables, |frame, eth, from| switch::forward(frame, eth, from, tables))
}

/// A frame that [`from_namespace`] found to be for the gateway. It is counted already.
#[inline(always)]
pub fn routed(frame: &mut impl Packet, id: PortId, scratch: &mut Scratch, tables: impl Tables) -> Outcome {
    let length = frame.len();
    let Some(port) = tables.port(id) else { return Err(DropReason::UnknownPort) };
    let outcome = route::leave(frame, &port, scratch, tables);
    told(frame, &port, length, outcome, tables)
}

/// A frame that came in by the uplink with this interface index.
#[inline(always)]
pub fn from_uplink(frame: &mut impl Packet, ifindex: u32, scratch: &mut Scratch, tables: impl Tables) -> Outcome {
    // Not (or no longer) an uplink, tagged, or for others: the host's affair.
    let Some(uplink) = tables.uplink(ifindex).and_then(|id| tables.port(id)) else { return Ok(Verdict::Pass) };
    let Ok(eth) = Ethernet::read(frame) else { return Ok(Verdict::Pass) };
    let is_ip = matches!(eth.ethertype(), EtherType::IPV4 | EtherType::IPV6);
    if !is_ip || eth.destination != uplink.mac() || frame.has_tag_aside() {
        return Ok(Verdict::Pass);
    }
    let length = frame.len();
    tables.count_received(uplink.id(), length);
    let outcome = route::enter(frame, &uplink, scratch, tables);
    told(frame, &uplink, length, outcome, tables)
}

/// An ICMP error, which [`routed`] or [`from_uplink`] has read into `scratch`: passed on with the packet that it is about.
#[inline(always)]
pub fn related(frame: &mut impl Packet, id: PortId, scratch: &mut Scratch, tables: impl Tables) -> Outcome {
    let length = frame.len();
    let Some(port) = tables.port(id) else { return Err(DropReason::UnknownPort) };
    let outcome = icmp::translate(frame, scratch, tables);
    told(frame, &port, length, outcome, tables)
}

/// A fragment, which [`routed`] or [`from_uplink`] has read into `scratch`.
#[inline(always)]
pub fn fragmented(frame: &mut impl Packet, id: PortId, scratch: &mut Scratch, tables: impl Tables) -> Outcome {
    let length = frame.len();
    let Some(port) = tables.port(id) else { return Err(DropReason::UnknownPort) };
    let outcome = fragment::follow(frame, &port, scratch, tables);
    told(frame, &port, length, outcome, tables)
}

/// A packet that is longer than its way out takes, but may be cut.
#[inline(always)]
pub fn cut(frame: &mut impl Packet, id: PortId, scratch: &mut Scratch, tables: impl Tables) -> Outcome {
    let length = frame.len();
    let Some(port) = tables.port(id) else { return Err(DropReason::UnknownPort) };
    let outcome = fragment::cut(frame, &port, scratch, tables);
    told(frame, &port, length, outcome, tables)
}

/// A packet of no flow, which [`routed`] or [`from_uplink`] has read into `scratch`: where does it lead, may it open one?
#[inline(always)]
pub fn opened(frame: &mut impl Packet, id: PortId, scratch: &mut Scratch, tables: impl Tables) -> Outcome {
    let length = frame.len();
    let Some(port) = tables.port(id) else { return Err(DropReason::UnknownPort) };
    let outcome = open_and_send(frame, &port, scratch, tables);
    fragment::renumber(frame, &port, scratch, outcome);
    if outcome == Err(DropReason::TableFull) {
        // Full of what, perhaps? The next flow finds the room that this one had no time for.
        tables.reclaim(if scratch.datagram.key.is_v4() { Reclaim::Flows4 } else { Reclaim::Flows6 });
        tables.reclaim(Reclaim::Mappings);
    }
    told(frame, &port, length, outcome, tables)
}

#[inline(always)]
fn open_and_send(frame: &mut impl Packet, from: &Port, scratch: &mut Scratch, tables: impl Tables) -> Outcome {
    if from.is_uplink() {
        open::enter(from, scratch, tables)?;
    } else {
        open::leave(from, scratch, tables)?;
    }
    match scratch.lead {
        Lead::Pass => return Ok(Verdict::Pass),
        Lead::Host => return open::to_host(frame, scratch, scratch.policy.gateway, tables),
        Lead::Through => {}
        Lead::Settled | Lead::KeepOrPool | Lead::Pool => {
            nat::enter(scratch, tables)?;
            scratch.flow = scratch.pair.flow;
        }
    }
    route::send_first(frame, scratch, tables)
}

/// Counts what was dropped or passed, and has the sender told where that is of use to it.
#[inline(always)]
fn told(frame: &impl Packet, from: &Port, length: u32, outcome: Outcome, tables: impl Tables) -> Outcome {
    match outcome {
        Err(reason) => {
            tables.count_dropped(from.id(), reason, length, frame);
            return if refuse::is_told(reason) { Ok(Verdict::Refuse(reason)) } else { outcome };
        }
        Ok(Verdict::Deliver(_)) => tables.show(Moment::After, frame),
        Ok(Verdict::Pass) => {
            tables.count_passed(from.id());
            tables.show(Moment::Passed, frame);
        }
        Ok(Verdict::Again) => tables.show(Moment::Again, frame),
        Ok(
            Verdict::Flooded
            | Verdict::Route
            | Verdict::Relate
            | Verdict::Open
            | Verdict::Fragment
            | Verdict::Cut
            | Verdict::Refuse(_),
        ) => {}
    }
    outcome
}

/// A frame that was dropped, but whose sender is to know: turns it into the ICMP error about itself.
#[inline(always)]
pub fn refused(frame: &mut impl Packet, at: PortId, refusal: Refusal, tables: impl Tables) -> Outcome {
    let outcome = refuse::tell(frame, at, refusal, tables);
    if outcome.is_ok() {
        tables.show(Moment::Notice, frame);
    }
    outcome
}

/// Follows a frame from a hook's outcome to its end, as the programs do by calling one another.
#[cfg(any(test, feature = "std"))]
pub fn complete(
    frame: &mut impl Packet,
    at: PortId,
    mut outcome: Outcome,
    scratch: &mut Scratch,
    tables: impl Tables,
) -> Outcome {
    while let Some(next) = proceed(frame, at, outcome, scratch, tables) {
        outcome = next;
    }
    outcome
}

/// Goes on with a frame by the one stage that `outcome` leads to; `None` when that is its end.
#[cfg(any(test, feature = "std"))]
pub fn proceed(
    frame: &mut impl Packet,
    at: PortId,
    outcome: Outcome,
    scratch: &mut Scratch,
    tables: impl Tables,
) -> Option<Outcome> {
    Some(match outcome {
        Ok(Verdict::Route) => routed(frame, at, scratch, tables),
        Ok(Verdict::Relate) => related(frame, at, scratch, tables),
        Ok(Verdict::Open) => opened(frame, at, scratch, tables),
        Ok(Verdict::Fragment) => fragmented(frame, at, scratch, tables),
        Ok(Verdict::Cut) => cut(frame, at, scratch, tables),
        Ok(Verdict::Refuse(reason)) => refused(frame, at, Refusal { reason, mtu: scratch.longest }, tables),
        Ok(Verdict::Deliver(_) | Verdict::Flooded | Verdict::Again | Verdict::Pass) | Err(_) => return None,
    })
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
        tables.count_dropped(id, reason, length, frame);
    }
    outcome
}

#[inline(always)]
pub(crate) fn read_untagged(frame: &impl Packet) -> Result<Ethernet, DropReason> {
    let eth = Ethernet::read(frame)?;
    // Priority tags (VLAN 0) too: no port is a trunk, and a tag must not reach a receiver that would act on it.
    if frame.has_tag_aside() || eth.ethertype().is_tag() {
        return Err(DropReason::Tagged);
    }
    Ok(eth)
}
