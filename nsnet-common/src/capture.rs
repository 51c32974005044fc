//! Which frames are shown to who captures, when, and under which number.
//!
//! ```text
//!   Before     just before the frame is changed: translated, routed, turned into the answer to itself, cut
//!   After      it was, and leaves
//!   Again      it was; it is gone, and what was made of it comes in again
//!   Left       it leaves, and was not changed
//!   Flooded    it leaves by every port of its network, and was not changed
//!   Passed     it is the host's own, and was not changed
//!   Dropped    as it was when that was decided
//!   Notice     it was dropped, and has become the ICMP error about itself
//! ```
//!
//! So a frame that is not changed is shown once, and one that is changed twice, with one number. With nobody to look at it
//! that costs a comparison each ([`Tables::show`](crate::tables::Tables::show)).

use crate::layout::capture_modes::{ALL, DROPS, NAT};
use crate::layout::{Capture, Capturing};
use crate::verdict::DropReason;

/// A moment in a frame's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// It is about to be changed, and then to leave by the interface with this index; 0 when it does not leave.
    Before(u32),
    /// It was changed, and leaves.
    After,
    /// It was changed; what was made of it comes in once more.
    Again,
    /// It leaves unchanged by the interface with this index.
    Left(u32),
    /// Every port of the network that should have one has got a copy.
    Flooded,
    /// The host's own stack gets it.
    Passed,
    /// It is dropped.
    Dropped(DropReason),
    /// It was dropped and has become the ICMP error about itself, which goes back.
    Notice,
}

/// The numbers of the moments, for the programs and whoever reads what they tell.
pub mod kinds {
    /// [`Moment::Before`](super::Moment::Before).
    pub const BEFORE: u16 = 1;
    /// [`Moment::After`](super::Moment::After).
    pub const AFTER: u16 = 2;
    /// [`Moment::Again`](super::Moment::Again).
    pub const AGAIN: u16 = 3;
    /// [`Moment::Left`](super::Moment::Left).
    pub const LEFT: u16 = 4;
    /// [`Moment::Flooded`](super::Moment::Flooded).
    pub const FLOODED: u16 = 5;
    /// [`Moment::Passed`](super::Moment::Passed).
    pub const PASSED: u16 = 6;
    /// [`Moment::Dropped`](super::Moment::Dropped).
    pub const DROPPED: u16 = 7;
    /// [`Moment::Notice`](super::Moment::Notice).
    pub const NOTICE: u16 = 8;
}

impl Moment {
    /// Which of [`kinds`] it is.
    #[inline(always)]
    pub const fn kind(self) -> u16 {
        match self {
            Self::Before(_) => kinds::BEFORE,
            Self::After => kinds::AFTER,
            Self::Again => kinds::AGAIN,
            Self::Left(_) => kinds::LEFT,
            Self::Flooded => kinds::FLOODED,
            Self::Passed => kinds::PASSED,
            Self::Dropped(_) => kinds::DROPPED,
            Self::Notice => kinds::NOTICE,
        }
    }

    /// The code of the reason, when the frame is dropped; else 0.
    #[inline(always)]
    pub const fn reason(self) -> u16 {
        match self {
            Self::Dropped(reason) => reason.code(),
            Self::Before(_)
            | Self::After
            | Self::Again
            | Self::Left(_)
            | Self::Flooded
            | Self::Passed
            | Self::Notice => 0,
        }
    }

    /// The index of the interface that the frame leaves by; 0 for none.
    #[inline(always)]
    pub const fn egress(self) -> u32 {
        match self {
            Self::Before(ifindex) | Self::Left(ifindex) => ifindex,
            Self::After | Self::Again | Self::Flooded | Self::Passed | Self::Dropped(_) | Self::Notice => 0,
        }
    }
}

impl Capture {
    /// Nobody captures.
    pub const OFF: Self = Self { until: 0, modes: 0, snaplen: 0, pid: 0, pad: 0 };
}

impl Capturing {
    /// The number under which a frame is told of in a moment of this kind; `None` when nobody asked for it.
    #[inline(always)]
    pub fn number(&mut self, modes: u32, kind: u16) -> Option<u64> {
        if kind == kinds::BEFORE {
            if modes & (NAT | ALL) == 0 {
                return None;
            }
            self.open = self.next();
            return Some(self.open);
        }
        let open = core::mem::take(&mut self.open);
        match kind {
            // Else those who saw it before would wait.
            _ if open != 0 => Some(open),
            kinds::LEFT | kinds::FLOODED | kinds::PASSED if modes & ALL != 0 => Some(self.next()),
            kinds::DROPPED if modes & (DROPS | ALL) != 0 => Some(self.next()),
            kinds::NOTICE if modes & ALL != 0 => Some(self.last),
            _ => None,
        }
    }

    #[inline(always)]
    fn next(&mut self) -> u64 {
        self.last = self.last.wrapping_add(1);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::kinds::{AFTER, AGAIN, BEFORE, DROPPED, FLOODED, LEFT, NOTICE, PASSED};
    use super::*;

    /// The numbers of these moments, one behind the other.
    fn numbers<const N: usize>(modes: u32, kinds: [u16; N]) -> [Option<u64>; N] {
        let mut capturing = Capturing::default();
        kinds.map(|kind| capturing.number(modes, kind))
    }

    #[test]
    fn before_and_after_have_the_same_number() {
        let moments = [BEFORE, AFTER, LEFT, BEFORE, DROPPED, NOTICE, BEFORE, AGAIN, PASSED, FLOODED];
        let told = numbers(ALL, moments);
        assert_eq!(told, [1, 1, 2, 3, 3, 3, 4, 4, 5, 6].map(Some));
    }

    #[test]
    fn only_what_was_asked_for_is_told() {
        let moments = [BEFORE, AFTER, AFTER, LEFT, DROPPED, NOTICE, FLOODED, PASSED, BEFORE, DROPPED];
        let none = None;
        assert_eq!(numbers(0, moments), [none; 10]);
        assert_eq!(numbers(DROPS, moments).map(|number| number.is_some()), moments.map(|kind| kind == DROPPED));
        // The last one ends what began before it.
        let told = [Some(1), Some(1), none, none, none, none, none, none, Some(2), Some(2)];
        assert_eq!(numbers(NAT, moments), told);
        let told = [Some(1), Some(1), none, none, Some(2), none, none, none, Some(3), Some(3)];
        assert_eq!(numbers(DROPS | NAT, moments), told);
    }
}
