//! The frame of an XDP program: what came in, before the kernel has made a buffer of it.

#![expect(unsafe_code, reason = "the frame is behind a raw pointer of the kernel's")]

use aya_ebpf::helpers::bpf_xdp_get_buff_len;
use aya_ebpf::programs::XdpContext;
use nsnet_common::checksum::Sum;
use nsnet_common::layout::{Port, PortId, Whole};
use nsnet_common::packet::{Packet, Wire};

use crate::maps::Maps;
use crate::words;

/// A frame at an XDP hook.
pub(crate) struct XdpFrame {
    ctx: XdpContext,
}

impl XdpFrame {
    #[inline(always)]
    pub(crate) fn new(ctx: XdpContext) -> Self {
        Self { ctx }
    }

    /// The tables. They have nothing of the frame: what needs that is no way for a frame that is taken here, and the verifier
    /// refuses a program in which it is.
    #[inline(always)]
    pub(crate) fn maps(&self) -> Maps {
        Maps::without_frame()
    }

    /// The interface that the frame came in by.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        // SAFETY: the kernel passes a valid context, which outlives the program's run.
        unsafe { (*self.ctx.ctx).ingress_ifindex }
    }

    /// The port whose interface the frame came in by.
    #[inline(always)]
    pub(crate) fn port(&self) -> PortId {
        PortId::from_ifindex(self.ifindex())
    }

    /// The first piece of the frame, as addresses. Volatile for the same reason as in `TcFrame`.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: as in ifindex().
        unsafe {
            let data = core::ptr::read_volatile(&raw const (*self.ctx.ctx).data);
            let data_end = core::ptr::read_volatile(&raw const (*self.ctx.ctx).data_end);
            (data as usize, data_end as usize)
        }
    }

    /// Where the `T` is that begins `at` bytes into the frame, if all of it is in the first piece.
    #[inline(always)]
    fn place<T>(&self, at: usize) -> Option<*mut u8> {
        // As for TcFrame: the verifier takes no offset near 64 KB.
        const FARTHEST: usize = 0x3fff;
        if at > FARTHEST {
            return None;
        }
        let (data, data_end) = self.bounds();
        let start = data + at;
        (start + size_of::<T>() <= data_end).then_some(start as *mut u8)
    }
}

impl Packet for XdpFrame {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context is valid.
        unsafe { bpf_xdp_get_buff_len(self.ctx.ctx) as u32 }
    }

    #[inline(always)]
    fn is_in_one_piece(&self) -> bool {
        let (data, data_end) = self.bounds();
        (data_end - data) as u32 >= self.len()
    }

    #[inline(always)]
    fn view<T: Wire>(&self, at: usize) -> Option<&T> {
        // SAFETY: the bytes are in the first piece. T: Wire has no alignment and no invalid values. What writes them takes
        // &mut self, so the view cannot outlive it.
        Some(unsafe { &*self.place::<T>(at)?.cast::<T>() })
    }

    #[inline(always)]
    fn copy<T: Wire + Copy>(&self, at: usize) -> Option<T> {
        let from = self.place::<T>(at)?;
        // SAFETY: the place is of this many bytes.
        Some(unsafe { words::fetch(from) })
    }

    #[inline(always)]
    fn write<T: Wire>(&mut self, at: usize, value: &T) -> Option<()> {
        let to = self.place::<T>(at)?;
        // SAFETY: the bytes are in the first piece, which is the program's to write, and nobody holds a view (&mut self).
        unsafe { words::put(value, to) };
        Some(())
    }

    /// It is in the bytes: where a device takes it out of them, there is no program of ours for XDP.
    #[inline(always)]
    fn has_tag_aside(&self) -> bool {
        false
    }

    /// Nothing is put together yet.
    #[inline(always)]
    fn gso_size(&self) -> u32 {
        0
    }

    // The rest makes other frames of this one, which is left to TC.

    #[inline(always)]
    fn cut(&mut self, _length: u32) -> Option<()> {
        None
    }

    #[inline(always)]
    fn make_room(&mut self, _room: u32) -> Option<()> {
        None
    }

    #[inline(always)]
    fn copy_out(&self, _whole: &mut Whole) -> Option<()> {
        None
    }

    #[inline(always)]
    fn has_right_sum(&self, _whole: &mut Whole, _at: usize, _end: usize, _more: Sum) -> bool {
        false
    }

    #[inline(always)]
    fn give_up(&mut self, _whole: &mut Whole, _at: usize, _checksum_at: usize) -> Option<()> {
        None
    }

    #[inline(always)]
    fn refill(&mut self, _header: usize, _whole: &Whole, _at: u16, _length: u16) -> Option<()> {
        None
    }

    #[inline(always)]
    fn come_again(&mut self) -> bool {
        false
    }

    #[inline(always)]
    fn copy_to(&mut self, _port: &Port) {}
}
