//! What the sending thread spends: CPU time, and instructions where the machine counts them.
//!
//! A rate suffers from everything else that the machine does; these two do much less. A veth delivers within the
//! sender's own system call, so for datagrams they cover the whole path up to the receiver's socket.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use perf_event::events::Hardware;
use perf_event::{Builder, Counter};

/// Reads both for the thread that made it.
pub(crate) struct Meter {
    /// `None` where the machine has no such counter, as many virtual machines, or does not let us have it.
    instructions: Option<Counter>,
}

/// A reading.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub(crate) at: Instant,
    cpu: Duration,
    instructions: Option<u64>,
}

/// The difference of two readings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spent {
    /// Seconds.
    pub(crate) time: f64,
    /// Seconds of CPU time, less what the hypervisor took.
    pub(crate) cpu: f64,
    /// Of user and kernel.
    pub(crate) instructions: Option<f64>,
}

impl Meter {
    pub(crate) fn of_this_thread() -> Meter {
        let counter = Builder::new(Hardware::INSTRUCTIONS).exclude_kernel(false).build().ok();
        let instructions = counter.and_then(|mut counter| counter.enable().is_ok().then_some(counter));
        Meter { instructions }
    }

    pub(crate) fn read(&mut self) -> Result<Reading> {
        let cpu = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("cannot read the thread's CPU time")?;
        let instructions = self.instructions.as_mut().and_then(|counter| counter.read().ok());
        Ok(Reading { at: Instant::now(), cpu: cpu.into(), instructions })
    }
}

impl Reading {
    /// Whether there are instructions in it.
    pub(crate) fn counts_instructions(&self) -> bool {
        self.instructions.is_some()
    }

    pub(crate) fn since(self, earlier: Reading) -> Spent {
        let counted = self.instructions.zip(earlier.instructions);
        Spent {
            time: (self.at - earlier.at).as_secs_f64(),
            cpu: self.cpu.saturating_sub(earlier.cpu).as_secs_f64(),
            instructions: counted.map(|(now, then)| now.saturating_sub(then) as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_costs_cpu_time_and_sleep_does_not() {
        let mut meter = Meter::of_this_thread();
        let start = meter.read().unwrap();
        let mut sum = 0u64;
        while meter.read().unwrap().since(start).cpu < 0.005 {
            sum = std::hint::black_box(sum.wrapping_mul(3) + 1);
        }
        let worked = meter.read().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let slept = meter.read().unwrap().since(worked);
        assert!(slept.time >= 0.02 && slept.cpu < 0.01, "{slept:?}");
        match worked.since(start).instructions {
            // 5 ms at one instruction for each thousand cycles or so would be 15,000.
            Some(instructions) => assert!(instructions > 15_000.0),
            None => println!("this machine counts no instructions: that part was not tested"),
        }
    }
}
