//! The core's way through a frame, stage by stage, as the programs call one another.

use std::cell::RefCell;
use std::collections::VecDeque;

use nsnet_common::datagram::Datagram;
use nsnet_common::layout::{PortId, names};
use nsnet_common::open::Lead;
use nsnet_common::packet::Buffer;
use nsnet_common::path;
use nsnet_common::scratch::Scratch;
use nsnet_common::tables::Tables;
use nsnet_common::verdict::{Outcome, Verdict};

use super::event::Event;
use super::recording::Recording;

/// Where a frame comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entrance {
    /// Out of the namespace behind this port.
    Namespace(PortId),
    /// Out of the host, by a network's own interface, which is this port.
    Host(PortId),
    /// By an uplink.
    Uplink {
        /// Its number in the dataplane.
        port: PortId,
        /// Its index.
        ifindex: u32,
    },
}

impl Entrance {
    /// The number in the dataplane.
    pub fn port(self) -> PortId {
        match self {
            Self::Namespace(port) | Self::Host(port) | Self::Uplink { port, .. } => port,
        }
    }

    /// The index of the interface in the host.
    pub fn ifindex(self) -> u32 {
        match self {
            Self::Namespace(port) | Self::Host(port) => port.ifindex(),
            Self::Uplink { ifindex, .. } => ifindex,
        }
    }

    /// The program at this hook.
    pub fn program(self) -> &'static str {
        match self {
            Self::Namespace(_) => names::FROM_NAMESPACE,
            Self::Host(_) => names::FROM_HOST,
            Self::Uplink { .. } => names::FROM_UPLINK,
        }
    }
}

/// A frame that comes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Where.
    pub entrance: Entrance,
    /// Its bytes, from the destination MAC on.
    pub frame: Vec<u8>,
    /// Bytes of payload in each segment, of a frame that is still to be cut into segments; else 0.
    pub gso_size: u32,
}

/// One frame's way, from where it came in to its end.
#[derive(Clone, Debug)]
pub struct Pass {
    /// The frame as it came in.
    pub before: Vec<u8>,
    /// The programs that it went through.
    pub steps: Vec<Step>,
    /// Its end.
    pub outcome: Outcome,
    /// What the frame was in the end.
    pub after: Buffer,
}

/// What one program did.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its name.
    pub program: &'static str,
    /// What it did to the tables, in order.
    pub events: Vec<Event>,
    /// What it came to.
    pub outcome: Outcome,
    /// The frame after it.
    pub frame: Vec<u8>,
    /// The packet as it was read, from the program `routed` or `from_uplink` on.
    pub datagram: Datagram,
    /// Whether the packet belongs to a flow.
    pub is_known: bool,
    /// Where it leads when it does not: after the program `opened`.
    pub lead: Lead,
}

/// A packet is cut into at most 32 pieces, and 64 fragments may wait at a port.
const MOST_PASSES: usize = 128;

/// Walks a frame through the core; and then those that come in again because of it.
pub fn walk<T: Tables>(arrival: &Arrival, tables: T) -> Vec<Pass> {
    let mut waiting = VecDeque::from([(arrival.frame.clone(), arrival.gso_size)]);
    let mut passes = Vec::new();
    while let Some((frame, gso_size)) = waiting.pop_front()
        && passes.len() < MOST_PASSES
    {
        let pass = pass(arrival.entrance, frame, gso_size, tables);
        waiting.extend(pass.after.again.iter().map(|frame| (frame.clone(), 0)));
        passes.push(pass);
    }
    passes
}

fn pass<T: Tables>(entrance: Entrance, before: Vec<u8>, gso_size: u32, tables: T) -> Pass {
    let events = RefCell::new(Vec::new());
    let tables = Recording::new(tables, &events);
    let mut scratch = Box::new(Scratch::default());
    let mut frame = Buffer { gso_size, ..Buffer::new(before.clone()) };
    let tag = if matches!(entrance, Entrance::Host(_)) { None } else { take_tag_aside(&mut frame) };
    let mut steps = Vec::new();

    let mut program = entrance.program();
    let mut outcome = match entrance {
        Entrance::Namespace(port) => path::from_namespace(&mut frame, port, tables),
        Entrance::Host(port) => path::from_host(&mut frame, port, tables),
        Entrance::Uplink { ifindex, .. } => path::from_uplink(&mut frame, ifindex, &mut scratch, tables),
    };
    loop {
        steps.push(Step {
            program,
            events: events.take(),
            outcome,
            frame: frame.bytes.clone(),
            datagram: scratch.datagram,
            is_known: scratch.is_known,
            lead: scratch.lead,
        });
        let next = path::proceed(&mut frame, entrance.port(), outcome, &mut scratch, tables);
        let (Some(name), Some(next)) = (called(outcome), next) else { break };
        (program, outcome) = (name, next);
    }
    if let Some(tag) = tag {
        frame.bytes.splice(TAG, tag);
    }
    Pass { before, steps, outcome, after: frame }
}

/// Where a VLAN tag is.
const TAG: std::ops::Range<usize> = 12..12;

/// Takes the outer VLAN tag out of the bytes, as the kernel does where a frame comes in (`skb_vlan_untag()`, net/core/skbuff.c).
fn take_tag_aside(frame: &mut Buffer) -> Option<[u8; 4]> {
    let tag: [u8; 4] = frame.bytes.get(12..16)?.try_into().ok()?;
    let is_tag = matches!(tag, [0x81, 0x00, ..] | [0x88, 0xa8, ..]) && frame.bytes.len() >= 18;
    if is_tag {
        frame.bytes.drain(12..16);
        frame.tag_aside = true;
    }
    is_tag.then_some(tag)
}

/// The program that is called after this outcome.
fn called(outcome: Outcome) -> Option<&'static str> {
    match outcome {
        Ok(Verdict::Route) => Some(names::ROUTED),
        Ok(Verdict::Relate) => Some(names::RELATED),
        Ok(Verdict::Open) => Some(names::OPENED),
        Ok(Verdict::Fragment) => Some(names::FRAGMENTED),
        Ok(Verdict::Cut) => Some(names::CUT),
        Ok(Verdict::Refuse(_)) => Some(names::REFUSED),
        Ok(Verdict::Deliver(_) | Verdict::Flooded | Verdict::Again | Verdict::Pass) | Err(_) => None,
    }
}
