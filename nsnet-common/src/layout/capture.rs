//! What is kept of dropped frames, and what is told about frames to who captures.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{PortId, Traffic};

/// Reasons to drop a frame that there is room for.
pub const MAX_REASONS: u32 = 64;
/// Bytes that are kept of the last frame that was dropped for a reason.
pub const KEPT_BYTES: usize = 128;

/// Value of `DROPS`, on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Dropped {
    /// What was dropped.
    pub traffic: Traffic,
    /// When the last one was, to the jiffy: monotonic clock, nanoseconds. 0 for never.
    pub seen: u64,
    /// The same on the clock that programs read without a call.
    pub jiffy: u64,
}

/// Value of `LAST_DROPS`: the last frame that was dropped for a reason, on one CPU.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct LastDrop {
    /// When: monotonic clock, nanoseconds. 0 for never, and while the others are written.
    pub seen: u64,
    /// The same on the clock that programs read without a call.
    pub jiffy: u64,
    /// Bytes of the frame.
    pub length: u32,
    /// The port it was counted at.
    pub port: PortId,
    /// How many of `bytes` are the frame's.
    pub kept: u16,
    /// The VLAN tag that the kernel had taken out of it, as on the wire; zeros for none.
    pub tag: [u8; 4],
    /// 0.
    pub pad: u32,
    /// The frame's first bytes.
    pub bytes: [u8; KEPT_BYTES],
}

impl LastDrop {
    /// No frame.
    pub const NONE: Self =
        Self { seen: 0, jiffy: 0, length: 0, port: PortId::NONE, kept: 0, tag: [0; 4], pad: 0, bytes: [0; KEPT_BYTES] };
}

/// What a capture wants to be told, or-ed together.
pub mod capture_modes {
    /// What is dropped.
    pub const DROPS: u32 = 1 << 0;
    /// What is translated or routed, before and after.
    pub const NAT: u32 = 1 << 1;
    /// Every frame.
    pub const ALL: u32 = 1 << 2;
}

/// The longest part of a frame that can be captured, bytes.
pub const MAX_SNAPLEN: u32 = (1 << 16) - 1;
/// For how long a capture is on without being renewed, nanoseconds: it may have been killed.
pub const CAPTURE_LEASE_NS: u64 = 3_000_000_000;

/// Value of `CAPTURE`: what is captured. User space writes it, programs read it with every frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Capture {
    /// Until when: monotonic clock, nanoseconds. 0: nothing is.
    pub until: u64,
    /// See [`capture_modes`].
    pub modes: u32,
    /// Bytes of each frame, 1 to [`MAX_SNAPLEN`].
    pub snaplen: u32,
    /// The process that captures, for user space.
    pub pid: u32,
    /// 0.
    pub pad: u32,
}

/// Value of `CAPTURING`: what one CPU remembers from one frame to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Capturing {
    /// The number of the last frame that was told of.
    pub last: u64,
    /// The number of the frame that was shown before it was changed, and has not been since; 0 for none.
    pub open: u64,
    /// Events for which the ring had no room, ever.
    pub lost: u64,
}

/// The head of an event: behind it are [`Event::captured`] bytes of the frame, and then bytes without meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Event {
    /// Monotonic clock, nanoseconds.
    pub time: u64,
    /// The frame's number on this CPU: the same before and after it was changed.
    pub number: u64,
    /// Bytes of the frame.
    pub length: u32,
    /// Bytes that follow.
    pub captured: u32,
    /// Index of the interface that the frame came in by.
    pub ifindex: u32,
    /// Index of the interface that it leaves by; 0 for none.
    pub egress: u32,
    /// The VLAN tag that the kernel had taken out of it, as on the wire; zeros for none.
    pub tag: [u8; 4],
    /// The CPU.
    pub cpu: u32,
    /// Bytes of payload in each segment of a GSO frame; 0 for a frame that is one segment.
    pub gso_size: u16,
    /// [`DropReason::code`](crate::verdict::DropReason::code), or 0.
    pub reason: u16,
    /// The port at which the frame is counted.
    pub port: PortId,
    /// [`Moment::kind`](crate::capture::Moment::kind).
    pub kind: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::DropReason;

    #[test]
    fn sizes() {
        assert_eq!((size_of::<Dropped>(), size_of::<LastDrop>()), (32, 32 + KEPT_BYTES));
        assert_eq!((size_of::<Capture>(), size_of::<Capturing>(), size_of::<Event>()), (24, 24, 48));
    }

    #[test]
    fn there_is_room_for_every_reason() {
        assert!(DropReason::ALL.iter().all(|reason| u32::from(reason.code()) < MAX_REASONS));
    }
}
