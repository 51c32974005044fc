//! What the core decided becomes what the hook does.

use aya_ebpf::bindings::TC_ACT_SHOT;
use nsnet_common::verdict::{Egress, Outcome, Verdict};

use crate::context::TcFrame;

/// The TC action of an outcome. The core has counted it already.
#[inline(always)]
pub(crate) fn act(frame: &mut TcFrame, outcome: Outcome) -> i32 {
    match outcome {
        Ok(Verdict::Deliver(Egress::Namespace(port))) => frame.redirect_to_namespace(port),
        Ok(Verdict::Deliver(Egress::Host(port))) => frame.redirect_to_host(port),
        // The copies are on their way.
        Ok(Verdict::Flooded) => TC_ACT_SHOT,
        Err(_counted) => TC_ACT_SHOT,
    }
}
