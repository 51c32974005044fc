//! The clocks that the programs read.

use nix::time::{ClockId, clock_gettime};
use nsnet_common::layout::whole_seconds;

use super::error::{Doing as _, Result};

/// That of `bpf_ktime_get_ns`, nanoseconds.
pub fn monotonic() -> Result<u64> {
    read(ClockId::CLOCK_MONOTONIC)
}

/// That of [`About::seen`](nsnet_common::layout::About), seconds. It is late by a tick of the kernel's and by what
/// [`whole_seconds`] is: by another clock a flow would be over here that the programs still know.
pub(super) fn seconds() -> Result<u32> {
    Ok(whole_seconds(read(ClockId::CLOCK_MONOTONIC_COARSE)?))
}

/// What the clock of day is ahead of [`monotonic`], nanoseconds.
pub fn clock_offset() -> Result<u64> {
    Ok(read(ClockId::CLOCK_REALTIME)?.wrapping_sub(monotonic()?))
}

fn read(clock: ClockId) -> Result<u64> {
    let now = clock_gettime(clock).doing(|| "read the clock")?;
    Ok(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}
