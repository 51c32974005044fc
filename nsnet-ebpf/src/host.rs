//! What the host knows and the programs ask: its routes, its sockets; and the hash that nobody outside can guess.

#![expect(unsafe_code, reason = "helpers take raw pointers")]

use core::mem::size_of;

use aya_ebpf::bindings::{
    __sk_buff, BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED,
    BPF_FIB_LKUP_RET_PROHIBIT, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_SRC, bpf_fib_lookup as FibLookup,
    bpf_sock_tuple,
};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use nsnet_common::hash;
use nsnet_common::layout::{FlowKey, PortId};
use nsnet_common::tables::{Hop, Route};
use nsnet_common::wire::{IpAddress, IpProtocol, Mac};

/// Whether `BPF_FIB_LOOKUP_SRC` may be used (Linux 6.7); set by the loader.
#[unsafe(no_mangle)]
static USE_FIB_SOURCE: u8 = 1;

/// The key of [`keyed_hash`]; set by the loader to a random number.
#[unsafe(no_mangle)]
static SECRET: u64 = 0;

pub(crate) const AF_INET: u8 = 2;
pub(crate) const AF_INET6: u8 = 10;

/// Asks the routes. Not inlined: the kernel's structure is 64 bytes of stack.
#[inline(never)]
pub(crate) fn route(skb: *mut __sk_buff, from: u32, key: &FlowKey, hop: &mut Hop) -> Route {
    // SAFETY: all zeros is a value of this plain C structure.
    let mut ask: FibLookup = unsafe { core::mem::zeroed() };
    ask.ifindex = from;
    ask.l4_protocol = key.protocol().0;
    ask.sport = u16::from_ne_bytes(key.source_port);
    ask.dport = u16::from_ne_bytes(key.destination_port);
    // One byte fits everywhere: the answer is then the MTU of the route, in the same field.
    ask.__bindgen_anon_1.tot_len = 1;
    if key.is_v4() {
        ask.family = AF_INET;
        ask.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(key.source.low());
        ask.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(key.destination.low());
    } else {
        ask.family = AF_INET6;
        // SAFETY: 16 bytes either way.
        unsafe {
            ask.__bindgen_anon_3.ipv6_src = core::mem::transmute::<[u8; 16], [u32; 4]>(key.source.0);
            ask.__bindgen_anon_4.ipv6_dst = core::mem::transmute::<[u8; 16], [u32; 4]>(key.destination.0);
        }
    }
    // SAFETY: a read of our own static; volatile, because the loader changes it after compilation.
    let use_source = unsafe { core::ptr::read_volatile(&raw const USE_FIB_SOURCE) } != 0;
    let flags = if use_source { BPF_FIB_LOOKUP_SRC } else { 0 };
    // SAFETY: the context is valid and `ask` is as long as we say.
    let answer = unsafe { bpf_fib_lookup(skb.cast(), &raw mut ask, size_of::<FibLookup>() as i32, flags) };
    // SAFETY: reading plain numbers of a C union, all of whose members the kernel leaves initialised.
    unsafe {
        hop.ifindex = ask.ifindex;
        hop.mtu = 0;
        hop.uplink = PortId::NONE;
        hop.source = IpAddress::UNSPECIFIED;
        if use_source {
            hop.source = if key.is_v4() {
                IpAddress::v4(ask.__bindgen_anon_3.ipv4_src.to_ne_bytes())
            } else {
                IpAddress(core::mem::transmute::<[u32; 4], [u8; 16]>(ask.__bindgen_anon_3.ipv6_src))
            };
        }
        // The router, if there is one, in the destination's place; a route of IPv4 may have one of IPv6 (RFC 5549).
        hop.next = if ask.family == AF_INET {
            IpAddress::v4(ask.__bindgen_anon_4.ipv4_dst.to_ne_bytes())
        } else {
            IpAddress(core::mem::transmute::<[u32; 4], [u8; 16]>(ask.__bindgen_anon_4.ipv6_dst))
        };
    }
    match answer as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => {
            hop.to_mac = Mac(ask.dmac);
            hop.from_mac = Mac(ask.smac);
            // SAFETY: as above. Set with the MACs only: without a neighbour the field still holds the question.
            hop.mtu = unsafe { ask.__bindgen_anon_1.mtu_result };
            Route::Forward
        }
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            hop.to_mac = Mac::ZERO;
            hop.from_mac = Mac::ZERO;
            Route::Forward
        }
        BPF_FIB_LKUP_RET_NOT_FWDED => Route::Local,
        BPF_FIB_LKUP_RET_PROHIBIT => Route::Prohibited,
        BPF_FIB_LKUP_RET_BLACKHOLE => Route::Blackhole,
        _ => Route::Unreachable,
    }
}

/// Whether one of the host's sockets would take a packet of this tuple.
#[inline(never)]
pub(crate) fn has_socket(skb: *mut __sk_buff, key: &FlowKey) -> bool {
    /// The namespace of the interface, which is the host's (BPF_F_CURRENT_NETNS).
    const HERE: u64 = u64::MAX;
    // SAFETY: all zeros is a value of this plain C structure.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let (sport, dport) = (u16::from_ne_bytes(key.source_port), u16::from_ne_bytes(key.destination_port));
    let size = if key.is_v4() {
        // SAFETY: writing members of a C union.
        let ipv4 = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
        ipv4.saddr = u32::from_ne_bytes(key.source.low());
        ipv4.daddr = u32::from_ne_bytes(key.destination.low());
        (ipv4.sport, ipv4.dport) = (sport, dport);
        12
    } else {
        // SAFETY: as above; 16 bytes either way.
        unsafe {
            let ipv6 = &mut tuple.__bindgen_anon_1.ipv6;
            ipv6.saddr = core::mem::transmute::<[u8; 16], [u32; 4]>(key.source.0);
            ipv6.daddr = core::mem::transmute::<[u8; 16], [u32; 4]>(key.destination.0);
            (ipv6.sport, ipv6.dport) = (sport, dport);
        }
        36
    };
    // SAFETY: the context and the tuple are valid; what is found is given back.
    unsafe {
        let socket = match key.protocol() {
            IpProtocol::TCP => bpf_skc_lookup_tcp(skb.cast(), &raw mut tuple, size, HERE, 0).cast(),
            IpProtocol::UDP => bpf_sk_lookup_udp(skb.cast(), &raw mut tuple, size, HERE, 0),
            _ => core::ptr::null_mut(),
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
        true
    }
}

/// See [`hash::keyed_hash`].
#[inline(never)]
pub(crate) fn keyed_hash(key: &FlowKey, turn: u32) -> u32 {
    // SAFETY: a read of our own static; volatile, because the loader changes it after compilation.
    let secret = unsafe { core::ptr::read_volatile(&raw const SECRET) };
    hash::keyed_hash(secret, key, turn)
}
