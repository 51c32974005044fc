//! The frame of a TC program.

#![expect(unsafe_code, reason = "the frame is behind a raw pointer of the kernel's")]

use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, bpf_redir_neigh,
};
use aya_ebpf::helpers::{
    bpf_clone_redirect, bpf_csum_diff, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
    bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_load_bytes, bpf_skb_pull_data,
    bpf_skb_store_bytes, bpf_tail_call,
};
use aya_ebpf::programs::TcContext;
use nsnet_common::checksum::{Delta, Sum};
use nsnet_common::layout::{PIECE_BYTES, Port, PortId, WHOLE_BYTES, Whole};
use nsnet_common::packet::{Packet, Wire};
use nsnet_common::tables::Tables;
use nsnet_common::verdict::{DropReason, Refusal};
use nsnet_common::wire::ipv4::Ipv4;
use nsnet_common::wire::ipv6::Ipv6;
use nsnet_common::wire::transport::{Tcp, Udp};
use nsnet_common::wire::{EtherType, Ethernet, IpAddress, IpProtocol};

use crate::host::{AF_INET, AF_INET6};
use crate::maps::{Maps, STAGES, scratch};
use crate::outcome::DROP;
use crate::words;

/// Whether `bpf_redirect_peer` may be used; set by the loader. The verifier removes the branch not taken, so a kernel
/// without the helper (before 5.10) never sees the call.
#[unsafe(no_mangle)]
static USE_REDIRECT_PEER: u8 = 1;

/// Whether a redirected frame's type is ours to set; set by the loader. Since Linux 6.16 `bpf_redirect_peer` does it
/// (commit c43272299488, "bpf: Scrub packet on bpf_redirect_peer").
#[unsafe(no_mangle)]
static SET_PACKET_TYPE: u8 = 1;

/// Whether copies are sent; set by the loader. Not where a frame is only tried, whose own end the kernel takes care of.
#[unsafe(no_mangle)]
static SENDS_COPIES: u8 = 1;

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

    /// The same for a frame that another program has looked at already.
    #[inline(always)]
    pub(crate) fn again(ctx: TcContext, hook: Hook) -> Self {
        let TcContext { skb } = ctx;
        Self { skb: skb.skb, hook }
    }

    /// The tables, as seen with this frame.
    #[inline(always)]
    pub(crate) fn maps(&self) -> Maps {
        Maps { skb: self.skb }
    }

    /// The interface that the frame is at.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        self.skb().ifindex
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
                if core::ptr::read_volatile(&raw const SET_PACKET_TYPE) != 0 {
                    bpf_skb_change_type(self.skb, PACKET_HOST);
                }
                // Not cleared by redirect_peer: a mark set by another program on this hook is the host's affair.
                (*self.skb).mark = 0;
                return bpf_redirect_peer(port.ifindex(), 0) as i32;
            }
        }
        // SAFETY: takes no pointer.
        unsafe { bpf_redirect(port.ifindex(), 0) as i32 }
    }

    /// Sends the frame out of an uplink as it is.
    #[inline(always)]
    pub(crate) fn redirect_to_uplink(&mut self, ifindex: u32) -> i32 {
        // SAFETY: takes no pointer.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }

    /// Sends the packet out of an uplink to the next hop that was found, whose MAC the kernel asks for if need be; or to the
    /// one that it finds itself, where none was looked for.
    #[inline(always)]
    pub(crate) fn redirect_to_neighbour(&mut self, ifindex: u32) -> i32 {
        redirect_to_next_hop(ifindex)
    }

    /// Goes on with the program at `stage`. Comes back only when there is none.
    #[inline(always)]
    pub(crate) fn go_on(&mut self, stage: u32) -> i32 {
        // SAFETY: the context and the map are valid.
        unsafe { bpf_tail_call(self.skb.cast(), (&raw const STAGES).cast_mut().cast(), stage) };
        DROP
    }

    /// Notes why the frame is refused where the called program finds it: the frame's control block, which is ours
    /// between programs.
    #[inline(always)]
    pub(crate) fn keep(&mut self, reason: DropReason) {
        // SAFETY: the context is valid; nothing reads it meanwhile.
        unsafe { (*self.skb).cb[0] = Refusal { reason, mtu: 0 }.as_word() };
    }

    /// The port or uplink that the frame came in by.
    #[inline(always)]
    pub(crate) fn came_by(&self) -> Option<PortId> {
        match self.port() {
            PortId::NONE => self.maps().uplink(self.ifindex()),
            port => Some(port),
        }
    }

    /// What [`TcFrame::keep`] noted, and where the frame came in.
    #[inline(always)]
    pub(crate) fn refusal(&self) -> Option<(PortId, Refusal)> {
        let mut refusal = Refusal::from_word(self.skb().cb[0])?;
        if refusal.mtu == 0 {
            // A test says it with the reason; else it is as route::send() left it.
            refusal.mtu = scratch()?.longest;
        }
        Some((self.came_by()?, refusal))
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

/// Not inlined: the kernel's structure is 20 bytes of stack.
#[inline(never)]
fn redirect_to_next_hop(ifindex: u32) -> i32 {
    let Some(next) = scratch().map(|scratch| scratch.hop.next) else { return DROP };
    // SAFETY: all zeros is a value of this plain C structure.
    let mut to: bpf_redir_neigh = unsafe { core::mem::zeroed() };
    if let Some(ipv4) = next.as_v4() {
        to.nh_family = AF_INET.into();
        to.__bindgen_anon_1.ipv4_nh = u32::from_ne_bytes(ipv4);
    } else {
        to.nh_family = AF_INET6.into();
        // SAFETY: 16 bytes either way.
        to.__bindgen_anon_1.ipv6_nh = unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(next.0) };
    }
    let length = if next == IpAddress::UNSPECIFIED { 0 } else { size_of::<bpf_redir_neigh>() };
    // SAFETY: `to` is as long as we say; of length 0 the kernel reads nothing.
    unsafe { bpf_redirect_neigh(ifindex, &raw mut to, length as i32, 0) as i32 }
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
        // The verifier knows an offset's bound only from a comparison, and takes none near 64 KB (MAX_PACKET_OFF).
        // Headers end long before. A constant offset costs nothing here.
        const FARTHEST: usize = 0x3fff;
        if at > FARTHEST {
            return None;
        }
        let (data, data_end) = self.bounds();
        let start = data + at;
        if start + size_of::<T>() > data_end {
            return None;
        }
        // SAFETY: the bytes are within data..data_end (just checked, and the verifier checks it again). T: Wire has no
        // alignment and no invalid values. Helpers that move the data take &mut self, so the view cannot outlive it.
        Some(unsafe { &*(start as *const T) })
    }

    #[inline(always)]
    fn copy<T: Wire + Copy>(&self, at: usize) -> Option<T> {
        let from = core::ptr::from_ref(self.view::<T>(at)?).cast::<u8>();
        // SAFETY: the view is of this many bytes.
        Some(unsafe { words::fetch(from) })
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

    /// A direct write: see [`Packet::write`] for what it costs the program that it is in.
    #[inline(always)]
    fn overwrite<T: Wire>(&mut self, at: usize, value: &T) -> Option<()> {
        let to = core::ptr::from_ref(self.view::<T>(at)?).cast_mut().cast::<u8>();
        // SAFETY: the bytes are in the frame, nobody holds a view (&mut self), and the kernel has unshared the frame
        // before the program began.
        unsafe { words::put(value, to) };
        Some(())
    }

    /// By the helper that knows whether the sum is partial (inet_proto_csum_replace_by_diff()), and how UDP's zero is meant.
    #[inline(always)]
    fn change_checksum(&mut self, at: usize, pseudo_header: Delta, message: Delta, is_udp: bool) -> Option<()> {
        let kind = if is_udp { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        let mut status = 0;
        // With 0 for the old value and for the size, the new value is a difference.
        if !pseudo_header.is_zero() {
            let (difference, flags) = (u64::from(pseudo_header.as_difference()), kind | u64::from(BPF_F_PSEUDO_HDR));
            // SAFETY: the context is valid and no view is held (&mut self); the helper checks the frame's length.
            status |= unsafe { bpf_l4_csum_replace(self.skb, at as u32, 0, difference, flags) };
        }
        if !message.is_zero() {
            // SAFETY: as above.
            status |= unsafe { bpf_l4_csum_replace(self.skb, at as u32, 0, u64::from(message.as_difference()), kind) };
        }
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

    /// By the helper that is made for "replies with control messages": it brings the whole frame into the linear part, to
    /// which the verifier has access, and takes it out of GSO. It refuses to cut into a partial checksum's field.
    #[inline(always)]
    fn cut(&mut self, length: u32) -> Option<()> {
        // SAFETY: the context is valid and no view is held (&mut self).
        let status = unsafe { bpf_skb_change_tail(self.skb, length, 0) };
        (status == 0).then_some(())
    }

    #[inline(always)]
    fn make_room(&mut self, room: u32) -> Option<()> {
        // SAFETY: the context is valid and no view is held (&mut self).
        let status = unsafe { bpf_skb_adjust_room(self.skb, room as i32, BPF_ADJ_ROOM_MAC, 0) };
        (status == 0).then_some(())
    }

    #[inline(never)]
    fn copy_out(&self, whole: &mut Whole) -> Option<()> {
        let length = self.len();
        if length == 0 || length >= WHOLE_BYTES as u32 {
            return None;
        }
        // SAFETY: `whole` has room for WHOLE_BYTES, which `length` does not exceed.
        let status = unsafe { bpf_skb_load_bytes(self.skb.cast(), 0, whole.bytes.as_mut_ptr().cast(), length) };
        let end = length as usize & (WHOLE_BYTES - 1);
        whole.bytes.get_mut(end..end + 3)?.fill(0);
        (status == 0).then_some(())
    }

    #[inline(never)]
    fn has_right_sum(&self, whole: &mut Whole, at: usize, end: usize, more: Sum) -> bool {
        let end = end & (WHOLE_BYTES - 1);
        if self.copy_out(whole).is_none() || end > self.len() as usize {
            return false;
        }
        // What is behind the packet is no part of it.
        let Some(behind) = whole.bytes.get_mut(end..end + 3) else { return false };
        behind.fill(0);
        let sum = folded(sum_of(whole, at, end as u32));
        more.word(u16::from_be(sum)).finish() == 0
    }

    /// Whether a checksum is partial no helper tells. But the kernel does not cut a frame into its field: one that can be
    /// cut behind the first byte of the transport header has none.
    ///
    /// Nor is there a helper to say that it is filled in. But a frame from whose front everything is taken up to where the
    /// sum begins has none to fill in any more: the kernel notes that when the next bytes are taken (skb_postpull_rcsum()).
    #[inline(never)]
    fn give_up(&mut self, whole: &mut Whole, at: usize, checksum_at: usize) -> Option<()> {
        // SAFETY: the context is valid and no view is held (&mut self).
        if unsafe { bpf_skb_change_tail(self.skb, at as u32 + 1, 0) } == 0 {
            return Some(());
        }
        if checksum_at == 0 {
            return None;
        }
        fill_in(whole, at, checksum_at, self.len())?;
        // More than what is in front of a sum: Ethernet's, IPv4's and a part of the transport header.
        const FRONT: i32 = -64;
        // SAFETY: as above. Where the first one can be taken away the second one can: the frame is long enough.
        let status = unsafe {
            bpf_skb_adjust_room(self.skb, FRONT, BPF_ADJ_ROOM_MAC, 0)
                | bpf_skb_adjust_room(self.skb, FRONT, BPF_ADJ_ROOM_MAC, 0)
        };
        (status == 0).then_some(())
    }

    #[inline(never)]
    fn refill(&mut self, header: usize, whole: &Whole, at: u16, length: u16) -> Option<()> {
        let (at, length) = (usize::from(at) & (WHOLE_BYTES - 1), u32::from(length) & LONGEST_PIECE);
        if length == 0 {
            return None;
        }
        // SAFETY: the context is valid, no view is held (&mut self), and what begins below WHOLE_BYTES has room for the
        // longest piece.
        unsafe { refill(self.skb, header as u32, whole.bytes.as_ptr().add(at), length) }.then_some(())
    }

    /// By the backlog of this CPU, behind what is in it already.
    #[inline(always)]
    fn come_again(&mut self) -> bool {
        if !sends_copies() {
            return true;
        }
        // SAFETY: the context is valid and no view is held (&mut self).
        unsafe { bpf_clone_redirect(self.skb, (*self.skb).ifindex, u64::from(BPF_F_INGRESS)) == 0 }
    }

    #[inline(always)]
    fn copy_to(&mut self, port: &Port) {
        if !sends_copies() {
            return;
        }
        let flags = if port.is_host() { u64::from(BPF_F_INGRESS) } else { 0 };
        // SAFETY: the context is valid and no view is held (&mut self). A copy that cannot be made (no memory, a port
        // just going down) is lost like on any wire.
        unsafe { bpf_clone_redirect(self.skb, port.id().ifindex(), flags) };
    }
}

#[inline(always)]
fn sends_copies() -> bool {
    // SAFETY: a read of our own static; volatile, because the loader changes it after compilation.
    unsafe { core::ptr::read_volatile(&raw const SENDS_COPIES) != 0 }
}

/// What bounds the length of a piece, for the verifier.
const LONGEST_PIECE: u32 = 2047;
const _: () =
    assert!(PIECE_BYTES <= LONGEST_PIECE as usize && size_of::<Whole>() >= WHOLE_BYTES + LONGEST_PIECE as usize);

/// Makes the frame one of `header` bytes, as they happen to be, and the `length` bytes at `from`.
///
/// # Safety
/// The context is valid and no view is held; the bytes are there, and at least one.
#[inline(always)]
pub(crate) unsafe fn refill(skb: *mut __sk_buff, header: u32, from: *const u8, length: u32) -> bool {
    // The sum over the whole frame that a NIC has made goes with the bytes.
    let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
    // SAFETY: the caller's.
    unsafe {
        bpf_skb_change_tail(skb, header + length, 0) == 0
            && bpf_skb_store_bytes(skb, header, from.cast(), length, flags) == 0
    }
}

/// Fills in the checksum at `checksum_at` of the frame in `whole`, which is `length` long: the field holds the sum over the
/// pseudo-header, and what is to be summed begins at `at` (skb_checksum_help(), net/core/dev.c).
#[inline(always)]
fn fill_in(whole: &mut Whole, at: usize, checksum_at: usize, length: u32) -> Option<()> {
    let checksum = match !folded(sum_of(whole, at, length)) {
        0 => 0xffff,
        checksum => checksum,
    };
    whole.bytes.get_mut(checksum_at..checksum_at + 2)?.copy_from_slice(&checksum.to_ne_bytes());
    Some(())
}

/// Sums what is in `whole` from `at` to `end`, behind which there are three zeros.
#[inline(always)]
fn sum_of(whole: &mut Whole, at: usize, end: u32) -> u32 {
    // As much as the helper took at a time before Linux 6.13.
    const CHUNK: u32 = 512;
    let mut sum = 0;
    let mut from = at as u32;
    for _ in 0..=WHOLE_BYTES as u32 / CHUNK {
        if from >= end {
            break;
        }
        // In words.
        let size = ((end - from + 3) & !3).min(CHUNK);
        let start = from as usize & (WHOLE_BYTES - 1);
        // SAFETY: what begins below WHOLE_BYTES has room for a chunk.
        sum = unsafe {
            let chunk = whole.bytes.as_mut_ptr().add(start).cast();
            bpf_csum_diff(core::ptr::null_mut(), 0, chunk, size, sum)
        } as u32;
        from += CHUNK;
    }
    sum
}

/// A sum in 16 bits, in the byte order in which it was summed.
#[inline(always)]
fn folded(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    twice as u16
}
