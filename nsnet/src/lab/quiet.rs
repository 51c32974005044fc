//! Whether the machine is quiet enough to measure: nobody else measures, and the hypervisor takes no CPU time.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;

/// How long to wait for another measurement to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(300);

/// The right to measure, for as long as the returned value lives; the kernel takes it back if the process dies.
/// `waiting` is called now and then while somebody else has it; its error ends the wait.
pub(crate) fn lock(waiting: impl FnMut() -> Result<()>) -> Result<Flock<File>> {
    lock_file(&std::env::temp_dir().join("nsnet-compare.lock"), LOCK_PATIENCE, waiting)
}

fn lock_file(path: &Path, patience: Duration, mut waiting: impl FnMut() -> Result<()>) -> Result<Flock<File>> {
    // The directory may be writable by everybody: a link laid there in advance is not followed.
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(path).with_context(|| format!("cannot open the lock file {}", path.display()))?;
    let deadline = Instant::now() + patience;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = back,
            Err((_, Errno::EWOULDBLOCK)) => {
                bail!("another measurement is running (it holds {}): wait for it to end", path.display())
            }
            Err((_, e)) => return Err(e).with_context(|| format!("cannot lock {}", path.display())),
        }
        waiting()?;
        thread::sleep(Duration::from_millis(100));
    }
}

/// CPU time of the whole machine since it started, in ticks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct CpuTime {
    total: u64,
    stolen: u64,
}

impl CpuTime {
    pub(super) fn read() -> Result<CpuTime> {
        let text = std::fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        CpuTime::parse(&text).context("/proc/stat does not start with CPU times")
    }

    /// The first line: user, nice, system, idle, iowait, irq, softirq, steal. What follows is part of user and nice.
    fn parse(text: &str) -> Option<CpuTime> {
        let ticks = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace().take(8).map(str::parse);
        let ticks: Vec<u64> = ticks.collect::<Result<_, _>>().ok()?;
        Some(CpuTime { total: ticks.iter().sum(), stolen: *ticks.get(7)? })
    }

    pub(super) fn stolen_since(self, earlier: CpuTime) -> f64 {
        let total = self.total.saturating_sub(earlier.total).max(1);
        self.stolen.saturating_sub(earlier.stolen) as f64 / total as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_locked_once() {
        let path = std::env::temp_dir().join(format!("nsnet-lock-test-{}", std::process::id()));
        let lock_now = || lock_file(&path, Duration::ZERO, || Ok(()));
        let held = lock_now().unwrap();
        assert!(lock_now().unwrap_err().to_string().contains("another measurement"));
        let given_up = lock_file(&path, LOCK_PATIENCE, || bail!("given up"));
        assert_eq!(given_up.unwrap_err().to_string(), "given up");
        drop(held);
        drop(lock_now().unwrap());
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn reads_stolen_time() {
        let before = CpuTime::parse("cpu  10 0 10 70 0 0 5 5 3 0\ncpu0 1 1\n").unwrap();
        assert_eq!(before, CpuTime { total: 100, stolen: 5 });
        let after = CpuTime::parse("cpu  60 0 40 90 0 0 5 6 3 0\n").unwrap();
        assert!((after.stolen_since(before) - 1.0 / 101.0).abs() < 1e-9);
        assert_eq!(CpuTime::parse("cpu  1 2 3\n"), None);
        assert_eq!(CpuTime::parse("intr 1\n"), None);
    }
}
