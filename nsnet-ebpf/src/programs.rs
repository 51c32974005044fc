//! One program for each hook.

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use nsnet_common::path;

use crate::context::{Hook, TcFrame};
use crate::maps::Maps;
use crate::outcome;

/// Ingress of the host end of a namespace's veth: what a namespace sends.
#[classifier]
pub(crate) fn from_namespace(ctx: TcContext) -> i32 {
    let mut frame = TcFrame::new(ctx, Hook::Ingress);
    let port = frame.port();
    let outcome = path::from_namespace(&mut frame, port, Maps);
    outcome::act(&mut frame, outcome)
}

/// Egress of a network's own interface: what the host sends to the network.
#[classifier]
pub(crate) fn from_host(ctx: TcContext) -> i32 {
    let mut frame = TcFrame::new(ctx, Hook::Egress);
    let port = frame.port();
    let outcome = path::from_host(&mut frame, port, Maps);
    // Never TC_ACT_OK: what this program lets pass would reach the unused end of the interface's veth pair.
    outcome::act(&mut frame, outcome)
}
