//! One program for each hook, and one for each stage that a hook's program may go on to.
//!
//! A stage is a program of its own, entered by a tail call, because the 512 bytes of stack are for each program: the way
//! of a frame that is only switched pays nothing for what routing needs.

use aya_ebpf::bindings::xdp_action::XDP_PASS;
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use nsnet_common::accelerated;
use nsnet_common::layout::{Answer, PortId, Question};
use nsnet_common::packet::Packet as _;
use nsnet_common::path;
use nsnet_common::scratch::Scratch;
use nsnet_common::sweep;
use nsnet_common::tables::{Hop, Tables as _};
use nsnet_common::verdict::Outcome;
use nsnet_common::wire::Ethernet;

use crate::context::{Hook, TcFrame};
use crate::maps::{Maps, is_captured, scratch};
use crate::outcome;
use crate::xdp::XdpFrame;

/// Ingress of the host end of a namespace's veth: what a namespace sends.
#[classifier]
pub(crate) fn from_namespace(ctx: TcContext) -> i32 {
    let mut frame = TcFrame::new(ctx, Hook::Ingress);
    let maps = frame.maps();
    let port = frame.port();
    let outcome = path::from_namespace(&mut frame, port, maps);
    outcome::act(&mut frame, outcome)
}

/// Egress of a network's own interface: what the host sends to the network.
#[classifier]
pub(crate) fn from_host(ctx: TcContext) -> i32 {
    let mut frame = TcFrame::new(ctx, Hook::Egress);
    let maps = frame.maps();
    let port = frame.port();
    let outcome = path::from_host(&mut frame, port, maps);
    // Never TC_ACT_OK: what this program lets pass would reach the unused end of the interface's veth pair.
    outcome::act(&mut frame, outcome)
}

/// Ingress of an uplink: what comes from outside.
#[classifier]
pub(crate) fn from_uplink(ctx: TcContext) -> i32 {
    let mut frame = TcFrame::new(ctx, Hook::Ingress);
    let maps = frame.maps();
    let ifindex = frame.ifindex();
    let Some(scratch) = scratch() else { return outcome::DROP };
    let outcome = path::from_uplink(&mut frame, ifindex, scratch, maps);
    outcome::act(&mut frame, outcome)
}

/// XDP of the host end of a namespace's veth: what most frames need, before the kernel has made a buffer of them.
#[xdp(frags)]
pub(crate) fn xdp_from_namespace(ctx: XdpContext) -> u32 {
    let mut frame = XdpFrame::new(ctx);
    let (maps, port) = (frame.maps(), frame.port());
    let Some(scratch) = scratch().filter(|_scratch| !is_captured()) else { return XDP_PASS };
    let to = accelerated::from_namespace(&mut frame, port, scratch, maps);
    outcome::accelerate(port, to)
}

/// XDP of an uplink, likewise.
#[xdp(frags)]
pub(crate) fn xdp_from_uplink(ctx: XdpContext) -> u32 {
    let mut frame = XdpFrame::new(ctx);
    let (maps, ifindex) = (frame.maps(), frame.ifindex());
    let Some(scratch) = scratch().filter(|_scratch| !is_captured()) else { return XDP_PASS };
    let Some(uplink) = maps.uplink(ifindex) else { return XDP_PASS };
    let to = accelerated::from_uplink(&mut frame, uplink, scratch, maps);
    outcome::accelerate(uplink, to)
}

/// Behind `from_namespace` and `from_host` on the hooks of each port: a frame that comes here has passed no program of
/// ours, because somebody took that off. It touches no map, so that nothing can make it fail.
#[classifier]
pub(crate) fn closed(_ctx: TcContext) -> i32 {
    outcome::DROP
}

/// Goes on from `from_namespace` with what is for the gateway.
#[classifier]
pub(crate) fn routed(ctx: TcContext) -> i32 {
    let mut frame = TcFrame::again(ctx, Hook::Ingress);
    let maps = frame.maps();
    let port = frame.port();
    let Some(scratch) = scratch() else { return outcome::DROP };
    let outcome = path::routed(&mut frame, port, scratch, maps);
    outcome::act(&mut frame, outcome)
}

/// Goes on from `routed` or `from_uplink` with ICMP errors.
#[classifier]
pub(crate) fn related(ctx: TcContext) -> i32 {
    stage(ctx, path::related)
}

/// Goes on from `routed` or `from_uplink` with what belongs to no flow.
#[classifier]
pub(crate) fn opened(ctx: TcContext) -> i32 {
    stage(ctx, path::opened)
}

/// Goes on from `routed` or `from_uplink` with fragments.
#[classifier]
pub(crate) fn fragmented(ctx: TcContext) -> i32 {
    stage(ctx, path::fragmented)
}

/// Goes on with a packet that is too long for its way out, but may be cut.
#[classifier]
pub(crate) fn cut(ctx: TcContext) -> i32 {
    stage(ctx, path::cut)
}

/// Goes on with what was dropped, to tell its sender.
#[classifier]
pub(crate) fn refused(ctx: TcContext) -> i32 {
    let mut frame = TcFrame::again(ctx, Hook::Ingress);
    let maps = frame.maps();
    let Some((at, refusal)) = frame.refusal() else { return outcome::DROP };
    let outcome = path::refused(&mut frame, at, refusal, maps);
    outcome::act(&mut frame, outcome)
}

/// At no hook: the frame is a question, and becomes what the kernel answers.
#[classifier]
pub(crate) fn ask_host(ctx: TcContext) -> i32 {
    let mut frame = TcFrame::again(ctx, Hook::Ingress);
    let maps = frame.maps();
    let Some(question) = frame.view::<Question>(Ethernet::LEN).copied() else { return outcome::DROP };
    let (key, mut hop) = (question.key(), Hop::default());
    let route = maps.route(question.from(), &key, &mut hop);
    let has_socket = maps.has_socket(&key);
    frame.write(Ethernet::LEN, &Answer::new(route, &hop, has_socket));
    outcome::DROP
}

/// At no hook: run by a process (BPF_PROG_TEST_RUN) to end what it has found dead. 1 when it was.
#[classifier]
pub(crate) fn swept(ctx: TcContext) -> i32 {
    let frame = TcFrame::new(ctx, Hook::Ingress);
    i32::from(sweep::end(&frame, frame.maps()))
}

/// What the stages have in common that go on from either side: the frame, where it came in, and its workplace.
#[inline(always)]
fn stage(ctx: TcContext, run: impl FnOnce(&mut TcFrame, PortId, &mut Scratch, Maps) -> Outcome) -> i32 {
    let mut frame = TcFrame::again(ctx, Hook::Ingress);
    let maps = frame.maps();
    let (Some(port), Some(scratch)) = (frame.came_by(), scratch()) else { return outcome::DROP };
    let outcome = run(&mut frame, port, scratch, maps);
    outcome::act(&mut frame, outcome)
}
