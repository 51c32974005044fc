//! The kernel's clock goes on while a test is busy, or not on a CPU at all: what a frame met is known only when the time
//! at which the maps were filled was still the time when it ran.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::time::{ClockId, clock_gettime};

/// Stamps of the kernel may be this much later than the time at which the tables were made.
pub(crate) const LATE: u64 = 400_000_000;
const SECOND: u64 = 1_000_000_000;

/// Nanoseconds on the clock that `bpf_ktime_get_ns` reads.
pub(crate) fn monotonic() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("read the clock")?;
    Ok(now.tv_sec() as u64 * SECOND + now.tv_nsec() as u64)
}

/// Waits until the next second is far enough away: flows are stamped with seconds, and live to the second.
pub(crate) fn steady() -> Result<u64> {
    loop {
        let now = monotonic()?;
        match now % SECOND {
            // The coarse clock may be 10 ms late, and whole_seconds() 17 ms.
            40_000_000..900_000_000 => return Ok(now),
            _ => std::thread::sleep(Duration::from_millis(10)),
        }
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
