//! What the accelerator makes of a frame, and that it is what the whole way would have made of it, or nothing.

use crate::accelerated;
use crate::layout::{PortId, flags};
use crate::memory::MemoryTables;
use crate::packet::Buffer;
use crate::scratch::Scratch;
use crate::verdict::{Egress, Verdict};

use super::Hook;
use super::check::{State, ifindex_of, run};

/// A frame that was offered to the accelerator.
#[derive(Debug)]
pub struct Offered {
    /// Where it goes; `None` when it is left to the whole way.
    pub to: Option<PortId>,
    /// Its bytes afterwards.
    pub bytes: Vec<u8>,
    /// The tables afterwards.
    pub state: State,
}

/// Whether there is an accelerator at the hook.
pub fn has_one(hook: Hook) -> bool {
    match hook {
        Hook::Namespace | Hook::Uplink => true,
        Hook::Host | Hook::Refused(_) => false,
    }
}

/// Has all ports but the host's, and all uplinks, take frames that are no buffers yet.
pub fn open(tables: &mut MemoryTables) {
    for port in tables.ports.values_mut().filter(|port| !port.is_host() && port.id() != PortId::NONE) {
        *port = port.with(flags::XDP | flags::XDP_PIECES);
    }
}

/// Offers a frame to the accelerator at the hook, with copies of the tables.
///
/// # Panics
/// Where there is none.
pub fn offer(hook: Hook, port: PortId, frame: &[u8], tables: &MemoryTables) -> Offered {
    let (tables, mut scratch) = (tables.clone(), Scratch::default());
    let mut buffer = Buffer::new(frame);
    let to = match hook {
        Hook::Namespace => accelerated::from_namespace(&mut buffer, port, &mut scratch, &tables),
        Hook::Uplink => accelerated::from_uplink(&mut buffer, port, &mut scratch, &tables),
        Hook::Host | Hook::Refused(_) => panic!("no accelerator at {hook:?}"),
    };
    Offered { to, bytes: buffer.bytes, state: State::of(&tables) }
}

/// What the whole way makes otherwise of a frame that was taken, or what has happened to one that was not; empty when all is
/// well.
pub fn objections(hook: Hook, port: PortId, frame: &[u8], tables: &MemoryTables) -> Vec<String> {
    let offered = offer(hook, port, frame, tables);
    let Some(to) = offered.to else {
        let mut lines = offered.state.differences(&State::of(tables), 0);
        lines.extend((offered.bytes != frame).then(|| "it was left, but is written".to_owned()));
        return lines;
    };
    let (whole, mut buffer) = (tables.clone(), Buffer::new(frame));
    let outcome = run(hook, &mut buffer, port, &whole);
    let mut lines = offered.state.differences(&State::of(&whole), 0);
    let is_same_way = match outcome {
        Ok(Verdict::Deliver(Egress::Namespace(port))) => port == to,
        Ok(Verdict::Deliver(Egress::Uplink(ifindex))) => ifindex == ifindex_of(to, tables),
        _ => false,
    };
    lines.extend((!is_same_way).then(|| format!("it went to port {}, else {outcome:?}", to.0)));
    lines
        .extend((buffer.bytes != offered.bytes).then(|| format!("{:02x?}, else {:02x?}", offered.bytes, buffer.bytes)));
    lines
}
