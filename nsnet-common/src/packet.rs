//! The frame, as the core sees it.
//!
//! The verifier accepts reads of a fixed size behind one bounds check, and refuses slices and indexes that may panic.
//! So the core reads typed views ([`Wire`]) and never bytes by index. Whatever can move the frame in memory takes
//! `&mut self`: the borrow checker then forces the re-read that the verifier demands.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::layout::Port;

/// A type that is laid out as on the wire: any bytes are a valid value, any address will do.
pub trait Wire: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned {}
impl<T: FromBytes + IntoBytes + KnownLayout + Immutable + Unaligned> Wire for T {}

/// An Ethernet frame, from its destination address on, without preamble and FCS.
pub trait Packet {
    /// Bytes in the frame. More than the MTU for a GSO frame, which is still to be cut into segments.
    fn len(&self) -> u32;

    /// Whether the frame is empty.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `T` that begins `at` bytes into the frame, or `None` when the frame ends before it does.
    fn view<T: Wire>(&self, at: usize) -> Option<&T>;

    /// Writes `value` over the bytes that begin at `at`; `None` when the frame ends before that.
    ///
    /// Not for fields under a transport checksum: a local frame's checksum may be partial, only the kernel knows.
    fn write<T: Wire>(&mut self, at: usize, value: &T) -> Option<()>;

    /// Whether a VLAN tag travels beside the frame (the kernel takes the outer tag out of the bytes).
    fn has_tag_aside(&self) -> bool;

    /// Bytes of payload in each segment of a GSO frame; 0 for a frame that is already one segment.
    fn gso_size(&self) -> u32;

    /// Sends a copy to `port`, leaving the frame as it is.
    fn copy_to(&mut self, port: &Port);
}

/// A frame in plain memory: for host tests, and for asking what would happen.
#[cfg(any(test, feature = "std"))]
#[derive(Clone, Debug, Default)]
pub struct Buffer {
    /// The frame's bytes.
    pub bytes: std::vec::Vec<u8>,
    /// See [`Packet::has_tag_aside`].
    pub tag_aside: bool,
    /// See [`Packet::gso_size`].
    pub gso_size: u32,
    /// The ports that got a copy, in order.
    pub copies: std::vec::Vec<crate::layout::PortId>,
}

#[cfg(any(test, feature = "std"))]
impl Buffer {
    /// A frame of these bytes: no tag aside, no GSO.
    pub fn new(bytes: impl Into<std::vec::Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), ..Self::default() }
    }
}

#[cfg(any(test, feature = "std"))]
impl Packet for Buffer {
    fn len(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn view<T: Wire>(&self, at: usize) -> Option<&T> {
        T::ref_from_prefix(self.bytes.get(at..)?).ok().map(|(view, _rest)| view)
    }

    fn write<T: Wire>(&mut self, at: usize, value: &T) -> Option<()> {
        value.write_to_prefix(self.bytes.get_mut(at..)?).ok()
    }

    fn has_tag_aside(&self) -> bool {
        self.tag_aside
    }

    fn gso_size(&self) -> u32 {
        self.gso_size
    }

    fn copy_to(&mut self, port: &Port) {
        self.copies.push(port.id());
    }
}
