//! The frame of a TC program.

#![expect(unsafe_code, reason = "the frame is behind a raw pointer of the kernel's")]

use aya_ebpf::bindings::{__sk_buff, BPF_F_INGRESS};
use aya_ebpf::helpers::{
    bpf_clone_redirect, bpf_redirect, bpf_redirect_peer, bpf_skb_change_type, bpf_skb_pull_data, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use nsnet_common::layout::{Port, PortId};
use nsnet_common::packet::{Packet, Wire};
use nsnet_common::wire::ipv4::Ipv4;
use nsnet_common::wire::ipv6::Ipv6;
use nsnet_common::wire::transport::{Tcp, Udp};
use nsnet_common::wire::{EtherType, Ethernet, IpProtocol};

/// Whether `bpf_redirect_peer` may be used; set by the loader. The verifier removes the branch not taken, so a kernel
/// without the helper (before 5.10) never sees the call.
#[unsafe(no_mangle)]
static USE_REDIRECT_PEER: u8 = 1;

const PACKET_HOST: u32 = 0;

/// Which side of an interface a program is at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Ingress,
    Egress,
}

/// A frame at a TC hook.
pub(crate) struct TcFrame {
    skb: *mut __sk_buff,
    hook: Hook,
}

impl TcFrame {
    /// The frame of `ctx`, with all headers that the core reads in the linear part of the buffer.
    #[inline(always)]
    pub(crate) fn new(ctx: TcContext, hook: Hook) -> Self {
        let TcContext { skb } = ctx;
        let frame = Self { skb: skb.skb, hook };
        frame.pull_headers();
        frame
    }

    #[inline(always)]
    fn skb(&self) -> &__sk_buff {
        // SAFETY: the kernel passes a valid context, which outlives the program's run; nothing writes it meanwhile but
        // helpers, which are only called through `&mut self`, or through pull_headers() before any view exists.
        unsafe { &*self.skb }
    }

    /// The linear part of the frame, as addresses.
    ///
    /// Volatile, because these two are no numbers to the verifier: were they hoisted into the arguments of a
    /// subprogram, as the compiler does with plain reads, they would be cut to the 32 bits of their type there.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: as in skb().
        unsafe {
            let data = core::ptr::read_volatile(&raw const (*self.skb).data);
            let data_end = core::ptr::read_volatile(&raw const (*self.skb).data_end);
            (data as usize, data_end as usize)
        }
    }

    /// The port whose interface the frame is at.
    #[inline(always)]
    pub(crate) fn port(&self) -> PortId {
        PortId::from_ifindex(self.skb().ifindex)
    }

    /// Local senders build headers in the linear part. Others (packet sockets, a NIC inside the namespace) may not:
    /// pull then, but never for the payload of a local TCP segment, which would be copied.
    #[inline(always)]
    fn pull_headers(&self) {
        const ALL_HEADERS: u32 = 192;
        let (data, data_end) = self.bounds();
        let linear = (data_end - data) as u32;
        let length = self.skb().len;
        if linear >= length || linear >= ALL_HEADERS {
            return;
        }
        let needed = self.transport_end().unwrap_or(ALL_HEADERS).min(length);
        if linear < needed {
            // SAFETY: the context is valid, and no view into the frame exists yet. When the kernel has no memory the
            // headers stay where they are and the core finds the frame truncated.
            unsafe { bpf_skb_pull_data(self.skb, ALL_HEADERS.min(length)) };
        }
    }

    /// Where the fixed part of the transport header ends, for the frames that most are.
    #[inline(always)]
    fn transport_end(&self) -> Option<u32> {
        const NO_OPTIONS: usize = Ipv4::LEN;
        let (protocol, at) = match self.view::<Ethernet>(0)?.ethertype() {
            EtherType::IPV4 => {
                let ip = self.view::<Ipv4>(Ethernet::LEN)?;
                if ip.header_length() != NO_OPTIONS {
                    return None;
                }
                (ip.protocol(), Ethernet::LEN + Ipv4::LEN)
            }
            EtherType::IPV6 => (self.view::<Ipv6>(Ethernet::LEN)?.next_header(), Ethernet::LEN + Ipv6::LEN),
            _ => return None,
        };
        match protocol {
            IpProtocol::TCP => Some((at + size_of::<Tcp>()) as u32),
            IpProtocol::UDP => Some((at + size_of::<Udp>()) as u32),
            _ => None,
        }
    }

    /// Sends the frame into the namespace behind `port`.
    #[inline(always)]
    pub(crate) fn redirect_to_namespace(&mut self, port: PortId) -> i32 {
        // SAFETY: a read of our own static; volatile, because the loader changes it after compilation.
        let use_peer = unsafe { core::ptr::read_volatile(&raw const USE_REDIRECT_PEER) } != 0;
        // redirect_peer exists at ingress only (skb_do_redirect(), Linux 5.10).
        if use_peer && self.hook == Hook::Ingress {
            // SAFETY: the context is valid and no view is held (&mut self).
            unsafe {
                // The type was set for the host's end of the veth, to which the frame is another host's.
                bpf_skb_change_type(self.skb, PACKET_HOST);
                // Not cleared by redirect_peer: a mark set by another program on this hook is the host's affair.
                (*self.skb).mark = 0;
                return bpf_redirect_peer(port.ifindex(), 0) as i32;
            }
        }
        // SAFETY: takes no pointer.
        unsafe { bpf_redirect(port.ifindex(), 0) as i32 }
    }

    /// Ends a frame whose copies are on their way. At egress TC_ACT_SHOT is reported to the sender as ENOBUFS, and tcx
    /// knows no other end; a redirect to no interface is a success that frees the frame (sch_handle_egress()).
    #[inline(always)]
    pub(crate) fn consume(&mut self) -> i32 {
        // SAFETY: takes no pointer.
        unsafe { bpf_redirect(0, 0) as i32 }
    }

    /// Hands the frame up to the host, as if it came in by `port`.
    #[inline(always)]
    pub(crate) fn redirect_to_host(&mut self, port: PortId) -> i32 {
        // SAFETY: takes no pointer.
        unsafe { bpf_redirect(port.ifindex(), u64::from(BPF_F_INGRESS)) as i32 }
    }
}

#[cfg(feature = "log")]
impl aya_ebpf::EbpfContext for TcFrame {
    fn as_ptr(&self) -> *mut core::ffi::c_void {
        self.skb.cast()
    }
}

impl Packet for TcFrame {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.skb().len
    }

    #[inline(always)]
    fn view<T: Wire>(&self, at: usize) -> Option<&T> {
        let (data, data_end) = self.bounds();
        let start = data + at;
        if start + size_of::<T>() > data_end {
            return None;
        }
        // SAFETY: the bytes are within data..data_end (just checked, and the verifier checks it again). T: Wire has no
        // alignment and no invalid values. Helpers that move the data take &mut self, so the view cannot outlive it.
        Some(unsafe { &*(start as *const T) })
    }

    /// By a helper, not by a direct write: a program with a direct write begins with a call that unshares every cloned
    /// frame, and every TCP segment that is switched is a clone (bpf_unclone_prologue(), net/core/filter.c).
    #[inline(always)]
    fn write<T: Wire>(&mut self, at: usize, value: &T) -> Option<()> {
        let from = core::ptr::from_ref(value).cast();
        // SAFETY: `value` is size_of::<T>() initialised bytes (T: IntoBytes); the helper checks the frame's length.
        let status = unsafe { bpf_skb_store_bytes(self.skb, at as u32, from, size_of::<T>() as u32, 0) };
        (status == 0).then_some(())
    }

    #[inline(always)]
    fn has_tag_aside(&self) -> bool {
        self.skb().vlan_present != 0
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        self.skb().gso_size
    }

    #[inline(always)]
    fn copy_to(&mut self, port: &Port) {
        let flags = if port.is_host() { u64::from(BPF_F_INGRESS) } else { 0 };
        // SAFETY: the context is valid and no view is held (&mut self). A copy that cannot be made (no memory, a port
        // just going down) is lost like on any wire.
        unsafe { bpf_clone_redirect(self.skb, port.id().ifindex(), flags) };
    }
}
