//! What the core decided becomes what the hook does.

use aya_ebpf::bindings::TC_ACT_SHOT;
use nsnet_common::verdict::{DropReason, Egress, Outcome, Verdict};

use crate::context::TcFrame;

/// The TC action of an outcome. The core has counted it already.
#[inline(always)]
pub(crate) fn act(frame: &mut TcFrame, outcome: Outcome) -> i32 {
    match outcome {
        Ok(Verdict::Deliver(Egress::Namespace(port))) => frame.redirect_to_namespace(port),
        Ok(Verdict::Deliver(Egress::Host(port))) => frame.redirect_to_host(port),
        Ok(Verdict::Flooded) => frame.consume(),
        Err(reason) => {
            log_drop(frame, reason);
            TC_ACT_SHOT
        }
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
