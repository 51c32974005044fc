//! What the core decided becomes what the hook does.

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use nsnet_common::layout::{PortId, names};
use nsnet_common::verdict::{DropReason, Egress, Outcome, Verdict};

use crate::context::TcFrame;
use crate::maps;

/// The action that ends a frame.
pub(crate) const DROP: i32 = TC_ACT_SHOT;

/// The TC action of an outcome. The core has counted it already.
#[inline(always)]
pub(crate) fn act(frame: &mut TcFrame, outcome: Outcome) -> i32 {
    match outcome {
        Ok(Verdict::Deliver(Egress::Namespace(port))) => frame.redirect_to_namespace(port),
        Ok(Verdict::Deliver(Egress::Host(port))) => frame.redirect_to_host(port),
        Ok(Verdict::Deliver(Egress::Uplink(ifindex))) => frame.redirect_to_uplink(ifindex),
        Ok(Verdict::Deliver(Egress::Neighbour(ifindex))) => frame.redirect_to_neighbour(ifindex),
        Ok(Verdict::Flooded | Verdict::Again) => frame.consume(),
        // To the next program on this hook, and then to the host's stack.
        Ok(Verdict::Pass) => TC_ACT_UNSPEC,
        // These only come back when the called program is missing: then the frame ends here.
        Ok(Verdict::Route) => frame.go_on(names::ROUTED_STAGE),
        Ok(Verdict::Relate) => frame.go_on(names::RELATED_STAGE),
        Ok(Verdict::Open) => frame.go_on(names::OPENED_STAGE),
        Ok(Verdict::Fragment) => frame.go_on(names::FRAGMENTED_STAGE),
        Ok(Verdict::Cut) => frame.go_on(names::CUT_STAGE),
        Ok(Verdict::Refuse(reason)) => {
            frame.keep(reason);
            frame.go_on(names::REFUSED_STAGE)
        }
        Err(reason) => {
            log_drop(frame, reason);
            DROP
        }
    }
}

/// The XDP action for a frame from `from` that goes to port `to`; `None` leaves it to TC on the same interface.
#[inline(always)]
pub(crate) fn accelerate(from: PortId, to: Option<PortId>) -> u32 {
    match to {
        Some(to) => {
            maps::count_accelerated(from);
            maps::send(to)
        }
        None => XDP_PASS,
    }
}

/// Tells a developer which frame was dropped. Not in a release: there the counters tell (`nsnet drops`).
///
/// Not inlined, nor are its two numbers taken from the frame: the stack of the path to here is nearly full.
#[cfg(feature = "log")]
#[inline(never)]
fn log_drop(frame: &TcFrame, reason: DropReason) {
    aya_log_ebpf::info!(frame, "port {} drop {}", frame.port().0, reason.code());
}

#[cfg(not(feature = "log"))]
#[inline(always)]
fn log_drop(_frame: &TcFrame, _reason: DropReason) {}
