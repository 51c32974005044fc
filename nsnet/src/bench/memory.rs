//! The kernel's memory: what a peer's flows and ports take of it can only be seen in the whole machine's.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::Result;

/// Of the memory at one time.
const READINGS: usize = 3;
/// Long enough to see whether others use it: what was torn down before is given back bit by bit.
const BETWEEN: Duration = Duration::from_millis(300);

/// Bytes of kernel memory, or how many more: others use it meanwhile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Memory {
    low: f64,
    middle: f64,
    high: f64,
}

impl Memory {
    /// That is neither a process's nor given back on demand, now.
    pub(super) fn read() -> Result<Memory> {
        let mut readings = [0.0; READINGS];
        for (number, reading) in readings.iter_mut().enumerate() {
            if number > 0 {
                thread::sleep(BETWEEN);
            }
            *reading = bytes(&fs::read_to_string("/proc/meminfo")?) as f64;
        }
        Ok(Memory::of(readings))
    }

    fn of(mut readings: [f64; READINGS]) -> Memory {
        readings.sort_by(f64::total_cmp);
        let [low, middle, high] = readings;
        Memory { low, middle, high }
    }

    /// How much more it is than before, at the least and at the most; less than nothing when others gave back more than
    /// was taken.
    pub(super) fn since(self, before: Memory) -> Memory {
        Memory { low: self.low - before.high, middle: self.middle - before.middle, high: self.high - before.low }
    }

    /// For each of `count`: the middle, and from where to where.
    pub(super) fn for_each_of(self, count: u64) -> (f64, [f64; 2]) {
        let each = |bytes: f64| bytes / count as f64;
        (each(self.middle), [each(self.low), each(self.high)])
    }
}

fn bytes(meminfo: &str) -> u64 {
    let of = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    of("SUnreclaim") + of("VmallocUsed") + of("Percpu")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_lies_between_the_readings() {
        let (before, after) = (Memory::of([100.0, 96.0, 104.0]), Memory::of([500.0, 512.0, 492.0]));
        assert_eq!(after.since(before).for_each_of(4), (100.0, [97.0, 104.0]));
        assert_eq!(before.since(after).for_each_of(4), (-100.0, [-104.0, -97.0]), "not cut off at nothing");
    }

    #[test]
    fn reads_what_is_the_kernels() {
        assert_eq!(bytes("MemFree: 9 kB\nSUnreclaim:    3 kB\nVmallocUsed: 2 kB\nPercpu:  1 kB\n"), 6 * 1024);
        assert_eq!(bytes("SUnreclaimable: 3 kB\n"), 0);
    }
}
