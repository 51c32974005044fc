//! The frame, as the core sees it.
//!
//! The verifier accepts reads of a fixed size behind one bounds check, and refuses slices and indexes that may panic.
//! So the core reads typed views ([`Wire`]) and never bytes by index. Whatever can move the frame in memory takes
//! `&mut self`: the borrow checker then forces the re-read that the verifier demands.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{Delta, Sum};
#[cfg(any(test, feature = "std"))]
use crate::layout::WHOLE_BYTES;
use crate::layout::{Port, Whole};

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

    /// Whether all of it lies in one piece of memory, where it matters: a frame of XDP may be in several.
    fn is_in_one_piece(&self) -> bool {
        true
    }

    /// The `T` that begins `at` bytes into the frame, or `None` when the frame ends before it does.
    fn view<T: Wire>(&self, at: usize) -> Option<&T>;

    /// A copy of it. Where more than a few bytes are looked at this is faster than a view: they are fetched in words.
    fn copy<T: Wire + Copy>(&self, at: usize) -> Option<T> {
        self.view(at).copied()
    }

    /// Writes `value` over the bytes that begin at `at`; `None` when the frame ends before that.
    ///
    /// Not for fields under a transport checksum: a local frame's checksum may be partial, only the kernel knows.
    fn write<T: Wire>(&mut self, at: usize, value: &T) -> Option<()>;

    /// The same in the programs that hardly let a frame by unwritten: there the way to write may have a price for all.
    fn overwrite<T: Wire>(&mut self, at: usize, value: &T) -> Option<()> {
        self.write(at, value)
    }

    /// Changes the transport checksum `at` by what changed under it: addresses of the pseudo-header, and bytes of the
    /// message itself. A local frame's checksum may be partial, which covers the pseudo-header only: the two are apart
    /// because of that.
    /// In place, where it never is (RFC 1624).
    fn change_checksum(&mut self, at: usize, pseudo_header: Delta, message: Delta, is_udp: bool) -> Option<()> {
        let old = *self.view::<[u8; 2]>(at)?;
        let change = pseudo_header.and(message);
        let new = if is_udp { change.apply_udp(old) } else { change.apply(old) };
        self.overwrite(at, &new)
    }

    /// Whether a VLAN tag travels beside the frame (the kernel takes the outer tag out of the bytes).
    fn has_tag_aside(&self) -> bool;

    /// Bytes of payload in each segment of a GSO frame; 0 for a frame that is already one segment.
    fn gso_size(&self) -> u32;

    /// Cuts the frame to its first `length` bytes, which must not be more than it has. It is one segment afterwards.
    ///
    /// `None` when that cannot be done; the headers that the core reads can be read again then.
    fn cut(&mut self, length: u32) -> Option<()>;

    /// Makes room between the Ethernet header and what follows: `room` bytes, whose value is not said.
    fn make_room(&mut self, room: u32) -> Option<()>;

    /// Copies the frame to the start of `whole`, with at least three zeros behind it; `None` when it is too long.
    fn copy_out(&self, whole: &mut Whole) -> Option<()>;

    /// Whether the bytes from `at` to `end`, with `more`, have a right checksum among them (RFC 1071); by way of `whole`.
    /// `false` for a frame that is too long for that.
    fn has_right_sum(&self, whole: &mut Whole, at: usize, end: usize, more: Sum) -> bool;

    /// Makes the frame one whose content is ours to write: what is in `whole` is all that is left of it. When the kernel was
    /// to fill in a transport checksum, that is done in `whole`: its header is at `at`, the field at `checksum_at`, or 0
    /// where it is not known.
    ///
    /// `None` when that cannot be done; the frame is as it was.
    fn give_up(&mut self, whole: &mut Whole, at: usize, checksum_at: usize) -> Option<()>;

    /// Makes the frame one of `header` bytes, whose value is not said, and `length` bytes of `whole` from `at` on, at least
    /// one and not more than [`PIECE_BYTES`](crate::layout::PIECE_BYTES).
    fn refill(&mut self, header: usize, whole: &Whole, at: u16, length: u16) -> Option<()>;

    /// Has a copy of the frame come in where the frame came in; `false` when it is lost.
    fn come_again(&mut self) -> bool;

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
    /// The frames that are to come in again, in order.
    pub again: std::vec::Vec<std::vec::Vec<u8>>,
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

    fn cut(&mut self, length: u32) -> Option<()> {
        self.bytes.get(..length as usize)?;
        self.bytes.truncate(length as usize);
        self.gso_size = 0;
        Some(())
    }

    fn make_room(&mut self, room: u32) -> Option<()> {
        const AT: usize = crate::wire::Ethernet::LEN;
        self.bytes.get(..AT)?;
        self.bytes.splice(AT..AT, (0..room).map(|_| 0));
        Some(())
    }

    fn copy_out(&self, whole: &mut Whole) -> Option<()> {
        let length = self.bytes.len();
        if length > WHOLE_BYTES {
            return None;
        }
        whole.bytes.get_mut(..length)?.copy_from_slice(&self.bytes);
        whole.bytes.get_mut(length..length + 3)?.fill(0);
        Some(())
    }

    fn has_right_sum(&self, whole: &mut Whole, at: usize, end: usize, more: Sum) -> bool {
        if self.copy_out(whole).is_none() {
            return false;
        }
        let Some(bytes) = self.bytes.get(at..end) else { return false };
        let words = bytes.chunks(2).map(|word| match word {
            [first, second] => (*first, *second),
            // The last one, of an odd number.
            other => (other.iter().sum(), 0),
        });
        words.fold(more, |sum, (first, second)| sum.bytes(first, second)).finish() == 0
    }

    fn give_up(&mut self, _whole: &mut Whole, _at: usize, _checksum_at: usize) -> Option<()> {
        // No checksum is partial here.
        Some(())
    }

    fn refill(&mut self, header: usize, whole: &Whole, at: u16, length: u16) -> Option<()> {
        let at = usize::from(at);
        self.bytes.resize(header, 0);
        self.bytes.extend_from_slice(whole.bytes.get(at..at + usize::from(length))?);
        Some(())
    }

    fn come_again(&mut self) -> bool {
        self.again.push(self.bytes.clone());
        true
    }

    fn copy_to(&mut self, port: &Port) {
        self.copies.push(port.id());
    }
}
