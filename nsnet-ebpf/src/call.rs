//! A system call of a socket, as the hooks at the root cgroup see it: the address it is about, in the context.

#![expect(unsafe_code, reason = "helpers and the context take raw pointers")]

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::{bpf_bind, bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::programs::SockAddrContext;
use nsnet_common::socket::{Endpoint, is_loopback};
use nsnet_common::wire::{IpAddress, IpProtocol};

use crate::maps::Maps;

/// The cookie of the host's network namespace; set by the loader.
#[unsafe(no_mangle)]
static HOST_COOKIE: u64 = 0;

/// Whether `bpf_set_retval` may be used (Linux 5.18); set by the loader.
#[unsafe(no_mangle)]
static USE_SET_RETVAL: u8 = 1;

/// The system call goes on.
pub(crate) const PROCEED: i32 = 1;
/// It fails.
const REFUSE: i32 = 0;

/// What a call is refused with (include/uapi/asm-generic/errno.h).
#[derive(Clone, Copy)]
#[repr(i32)]
pub(crate) enum Errno {
    AddressInUse = 98,
    AddressNotAvailable = 99,
}

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const IPPROTO_MPTCP: u32 = 262;

/// A call of a socket of the host's, over TCP or UDP. `V4` says which half of the context the verifier lets us see.
///
/// Every field is read and written whole, four bytes at a time: what the verifier allows (`sock_addr_is_valid_access`).
pub(crate) struct Call<const V4: bool> {
    ctx: *mut bpf_sock_addr,
    /// The socket's protocol.
    pub(crate) protocol: IpProtocol,
}

/// Reads a field of a structure of the kernel's.
macro_rules! read {
    ($place:expr) => {
        // SAFETY: the pointer is the context, or the socket that the context names: both are valid while the program
        // runs, and the verifier checks the place and size. Volatile: neighbouring fields must not be read as one.
        unsafe { (&raw const $place).read_volatile() }
    };
}

/// Reads the four words of an IPv6 address: each by itself, as the verifier wants it.
macro_rules! read_v6 {
    ($place:expr) => {
        joined([read!($place[0]), read!($place[1]), read!($place[2]), read!($place[3])])
    };
}

/// Writes a field of the context.
macro_rules! write {
    ($place:expr, $value:expr) => {
        // SAFETY: as in `read!`; the field is writable in this hook, or the verifier refuses the program.
        unsafe { (&raw mut $place).write_volatile($value) }
    };
}

impl<const V4: bool> Call<V4> {
    /// `None` for a socket in another network namespace, or of another protocol.
    #[inline(always)]
    #[expect(clippy::needless_pass_by_value, reason = "the macro's function hands its context over")]
    pub(crate) fn of_host(ctx: SockAddrContext) -> Option<Self> {
        let ctx = ctx.sock_addr;
        // SAFETY: a read of our own static; volatile, because the loader changes it after compilation.
        let host = unsafe { (&raw const HOST_COOKIE).read_volatile() };
        // SAFETY: the context is the one this program was called with.
        if unsafe { bpf_get_netns_cookie(ctx.cast()) } != host {
            return None;
        }
        // SCTP's own connect and bind pass by these hooks.
        let protocol = match read!((*ctx).protocol) {
            IPPROTO_MPTCP => IpProtocol::TCP,
            number if number == u32::from(IpProtocol::TCP.0) => IpProtocol::TCP,
            number if number == u32::from(IpProtocol::UDP.0) => IpProtocol::UDP,
            _ => return None,
        };
        Some(Self { ctx, protocol })
    }

    /// The socket's cookie.
    #[inline(always)]
    pub(crate) fn socket(&self) -> u64 {
        // SAFETY: the context is the one this program was called with.
        unsafe { bpf_get_socket_cookie(self.ctx.cast()) }
    }

    /// The maps.
    #[inline(always)]
    pub(crate) fn maps(&self) -> Maps {
        // What asks the frame is not for these hooks: there is none.
        Maps { skb: core::ptr::null_mut() }
    }

    /// The address and port that the call is about.
    #[inline(always)]
    pub(crate) fn endpoint(&self) -> Endpoint {
        let ctx = self.ctx;
        let ip = if V4 { IpAddress::v4(read!((*ctx).user_ip4).to_ne_bytes()) } else { read_v6!((*ctx).user_ip6) };
        // Network byte order in the first two bytes.
        Endpoint { ip, port: u16::from_be(read!((*ctx).user_port) as u16) }
    }

    /// Makes the call one about this address and port. The family stays: an IPv4 address in an IPv6 call is mapped.
    #[inline(always)]
    pub(crate) fn set_endpoint(&self, to: Endpoint) {
        let ctx = self.ctx;
        if V4 {
            write!((*ctx).user_ip4, u32::from_ne_bytes(to.ip.low()));
        } else {
            let [a, b, c, d] = words(to.ip);
            write!((*ctx).user_ip6[0], a);
            write!((*ctx).user_ip6[1], b);
            write!((*ctx).user_ip6[2], c);
            write!((*ctx).user_ip6[3], d);
        }
        write!((*ctx).user_port, u32::from(to.port.to_be()));
    }

    /// Whether the socket is bound to a loopback address, from which no packet gets to a namespace.
    #[inline(always)]
    pub(crate) fn is_bound_to_loopback(&self) -> bool {
        let ctx = self.ctx;
        let socket: *mut bpf_sock = read!((*ctx).__bindgen_anon_1.sk);
        // The verifier knows that it is not null; the compiler does not, and does not ask.
        is_loopback(if V4 {
            IpAddress::v4(read!((*socket).src_ip4).to_ne_bytes())
        } else {
            read_v6!((*socket).src_ip6)
        })
    }

    /// Whether the socket is connected to this endpoint; `peer` has a port.
    #[inline(always)]
    pub(crate) fn is_connected_to(&self, peer: Endpoint) -> bool {
        let ctx = self.ctx;
        let socket: *mut bpf_sock = read!((*ctx).__bindgen_anon_1.sk);
        let ip = if V4 { IpAddress::v4(read!((*socket).dst_ip4).to_ne_bytes()) } else { read_v6!((*socket).dst_ip6) };
        ip == peer.ip && u16::from_be(read!((*socket).dst_port)) == peer.port
    }

    /// Lets the kernel choose the source address again; `false` when the socket has a port already, and keeps both.
    /// In a connect hook only.
    #[inline(always)]
    pub(crate) fn unbind(&self) -> bool {
        // struct sockaddr_in and sockaddr_in6: the family, and nothing but zeros.
        let mut any = [0u32; 7];
        let (family, length) = if V4 { (AF_INET, 16) } else { (AF_INET6, 28) };
        any[0] = family;
        // SAFETY: the context is the one this program was called with, and `any` is at least as long as we say.
        unsafe { bpf_bind(self.ctx, any.as_mut_ptr().cast(), length) == 0 }
    }

    /// Lets the kernel choose the source address of a datagram for which a loopback address was given.
    /// In a sendmsg hook only.
    #[inline(always)]
    pub(crate) fn free_source(&self) {
        let ctx = self.ctx;
        if V4 {
            if is_loopback(IpAddress::v4(read!((*ctx).msg_src_ip4).to_ne_bytes())) {
                write!((*ctx).msg_src_ip4, 0);
            }
        } else {
            let source = read_v6!((*ctx).msg_src_ip6);
            if is_loopback(source) {
                // All but the last word are 0 already.
                write!((*ctx).msg_src_ip6[3], 0);
            }
        }
    }

    /// Has the call fail with `errno`; EPERM before Linux 5.18. Not in a recvmsg or getpeername hook: they cannot.
    #[inline(always)]
    pub(crate) fn refuse(&self, errno: Errno) -> i32 {
        // SAFETY: a read of our own static; volatile, because the loader changes it after compilation.
        if unsafe { (&raw const USE_SET_RETVAL).read_volatile() } != 0 {
            // SAFETY: takes no pointer. It fails for numbers that are no errno only.
            unsafe { bpf_set_retval(-(errno as i32)) };
        }
        REFUSE
    }
}

#[inline(always)]
fn joined([a, b, c, d]: [u32; 4]) -> IpAddress {
    let high = u64::from(a) | u64::from(b) << 32;
    let low = u64::from(c) | u64::from(d) << 32;
    let ([a, b, c, d, e, f, g, h], [i, j, k, l, m, n, o, p]) = (high.to_ne_bytes(), low.to_ne_bytes());
    IpAddress([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p])
}

#[inline(always)]
fn words(ip: IpAddress) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = ip.0;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes)
}
