//! The kernel's clock goes on while a test is busy, or not on a CPU at all: what a frame met is known only when the time
//! at which the maps were filled was still the time when it ran.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::time::{ClockId, clock_gettime};
use nsnet_common::layout::whole_seconds;

/// Stamps of the kernel may be this much later than the time at which the tables were made.
pub(crate) const LATE: u64 = 400_000_000;
const SECOND: u64 = 1_000_000_000;

/// Nanoseconds on the clock that `bpf_ktime_get_ns` reads.
pub(crate) fn monotonic() -> Result<u64> {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Nanoseconds on the clock that `bpf_ktime_get_coarse_ns` reads.
pub(crate) fn coarse() -> Result<u64> {
    read(ClockId::CLOCK_MONOTONIC_COARSE)
}

fn read(clock: ClockId) -> Result<u64> {
    let now = clock_gettime(clock).context("read the clock")?;
    Ok(now.tv_sec() as u64 * SECOND + now.tv_nsec() as u64)
}

/// Waits until the next second is far enough away: flows are stamped with seconds, and live to the second.
pub(crate) fn steady() -> Result<u64> {
    loop {
        let now = monotonic()?;
        // The programs' clock is late by what whole_seconds() is, and the timer of a busy machine.
        if now % SECOND < 900_000_000 && u64::from(whole_seconds(coarse()?)) == now / SECOND {
            return Ok(now);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether what has run since `began` met the second that it was made for, and stamped no later than it may.
pub(crate) fn is_in_time(began: u64) -> Result<bool> {
    let now = monotonic()?;
    Ok(now / SECOND == began / SECOND && now - began <= LATE)
}

/// Fills maps and runs frames, as `attempt` does it, for the time it is told; again when it took too long, so that what
/// comes of it does not depend on how busy the machine is.
pub(crate) fn in_time<T>(mut attempt: impl FnMut(u64) -> Result<T>) -> Result<T> {
    const ATTEMPTS: u32 = 100;
    for _ in 0..ATTEMPTS {
        let now = steady()?;
        let outcome = attempt(now);
        if is_in_time(now)? {
            return outcome;
        }
    }
    bail!("{ATTEMPTS} times, a few milliseconds' work was not done within {LATE} ns: the machine is too busy")
}
