//! The programs at the root cgroup: what the host's own sockets ask for. Read `nsnet_common::socket` first.
//!
//! Every socket of the machine passes here; [`Call::of_host`] leaves those of other network namespaces alone.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use nsnet_common::socket;

use crate::call::{Call, Errno, PROCEED};

/// connect() of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    connect::<true>(ctx)
}

/// connect() of an IPv6 socket, to a mapped IPv4 address too.
#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    connect::<false>(ctx)
}

/// An IPv4 datagram with an address of its own.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    send::<true>(ctx)
}

/// An IPv6 datagram with an address of its own. One to a mapped address passes `sendmsg4`.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    send::<false>(ctx)
}

/// The sender of a datagram that an IPv4 socket receives.
#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn recvmsg4(ctx: SockAddrContext) -> i32 {
    name::<true>(ctx)
}

/// The sender of a datagram that an IPv6 socket receives.
#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn recvmsg6(ctx: SockAddrContext) -> i32 {
    name::<false>(ctx)
}

/// getpeername() of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    name::<true>(ctx)
}

/// getpeername() of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    name::<false>(ctx)
}

/// bind() of an IPv4 socket.
#[cgroup_sock_addr(bind4)]
pub(crate) fn bind4(ctx: SockAddrContext) -> i32 {
    bind::<true>(ctx)
}

/// bind() of an IPv6 socket.
#[cgroup_sock_addr(bind6)]
pub(crate) fn bind6(ctx: SockAddrContext) -> i32 {
    bind::<false>(ctx)
}

#[inline(always)]
fn connect<const V4: bool>(ctx: SockAddrContext) -> i32 {
    let Some(call) = Call::<V4>::of_host(ctx) else { return PROCEED };
    let target = socket::redirect(call.socket(), call.protocol, call.endpoint(), call.maps());
    let Some(target) = target else { return PROCEED };
    if call.is_bound_to_loopback() && !call.unbind() {
        return call.refuse(Errno::AddressNotAvailable);
    }
    call.set_endpoint(target);
    PROCEED
}

#[inline(always)]
fn send<const V4: bool>(ctx: SockAddrContext) -> i32 {
    let Some(call) = Call::<V4>::of_host(ctx) else { return PROCEED };
    // An IPv6 socket that is connected to a mapped address names it anew with each datagram. Where that leads was decided
    // when it connected, and what it asked for then stays remembered.
    if call.is_connected_to(call.endpoint()) {
        return PROCEED;
    }
    let target = socket::redirect(call.socket(), call.protocol, call.endpoint(), call.maps());
    let Some(target) = target else { return PROCEED };
    if call.is_bound_to_loopback() {
        return call.refuse(Errno::AddressNotAvailable);
    }
    call.free_source();
    call.set_endpoint(target);
    PROCEED
}

#[inline(always)]
fn name<const V4: bool>(ctx: SockAddrContext) -> i32 {
    let Some(call) = Call::<V4>::of_host(ctx) else { return PROCEED };
    let asked = socket::original(call.socket(), call.protocol, call.endpoint(), call.maps());
    if let Some(asked) = asked {
        call.set_endpoint(asked);
    }
    PROCEED
}

#[inline(always)]
fn bind<const V4: bool>(ctx: SockAddrContext) -> i32 {
    let Some(call) = Call::<V4>::of_host(ctx) else { return PROCEED };
    if socket::is_reserved(call.protocol, call.endpoint(), call.maps()) {
        return call.refuse(Errno::AddressInUse);
    }
    PROCEED
}
