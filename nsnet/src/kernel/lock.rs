//! The lock under which verbs take their turns.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{major, minor};

use super::error::{Doing as _, KernelError, Result};
use super::store::RUN;

/// Who waits longer is told for whom.
const PATIENCE: Duration = Duration::from_secs(1);

/// Held until dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: Flock<File>,
}

/// With whom the lock is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// With nobody: something is changed.
    Alone,
    /// With others that change nothing either.
    WithReaders,
}

impl Lock {
    /// Waits until it is to be had. `on_wait` is told, once, when that takes over a second.
    pub(super) fn taken(sharing: Sharing, on_wait: fn(&str)) -> Result<Self> {
        let path = path();
        let what = || format!("lock {}", path.display());
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path).doing(what)?;
        let (at_once, in_turn) = match sharing {
            Sharing::Alone => (FlockArg::LockExclusiveNonblock, FlockArg::LockExclusive),
            Sharing::WithReaders => (FlockArg::LockSharedNonblock, FlockArg::LockShared),
        };
        let file = match Flock::lock(file, at_once) {
            Ok(lock) => return Ok(Self { _file: lock }),
            Err((file, Errno::EWOULDBLOCK)) => file,
            Err((_file, errno)) => return Err(KernelError::new(what(), errno)),
        };
        let (done, is_done) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                if is_done.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    on_wait(&format!("waiting for {}", holder()));
                }
            });
            let taken = Flock::lock(file, in_turn);
            // The watcher's wait ends with it.
            drop(done);
            taken.map(|lock| Self { _file: lock }).map_err(|(_file, errno)| KernelError::new(what(), errno))
        })
    }
}

fn path() -> PathBuf {
    Path::new(RUN).join("lock")
}

/// Who has the lock, in words.
fn holder() -> String {
    let found = || {
        let metadata = fs::metadata(path()).ok()?;
        let (device, locks) = (metadata.dev(), fs::read_to_string("/proc/locks").ok()?);
        let pid = owner(&locks, major(device), minor(device), metadata.ino())?;
        let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<_> = words.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let command: String =
            words.join(" ").trim().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        Some(format!("process {pid} ({command}), which has {}", path().display()))
    };
    found().unwrap_or_else(|| format!("who has {}", path().display()))
}

/// The process that has the lock on a file, in the words of proc_locks(5):
/// `1: FLOCK  ADVISORY  WRITE 15056 00:1a:2713 0 EOF`. Those that wait have an arrow before the kind.
fn owner(locks: &str, major: u64, minor: u64, inode: u64) -> Option<u32> {
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [_, "FLOCK", _, _, pid, at, ..] if *at == file => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_told_from_those_that_wait() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 00:1a:9 0 EOF\n2: FLOCK  ADVISORY  WRITE 8 00:1a:77 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 9 00:1a:9 0 EOF\n3: FLOCK  ADVISORY  WRITE 10 00:1a:9 0 EOF\n";
        assert_eq!((owner(locks, 0, 26, 9), owner(locks, 0, 26, 77)), (Some(10), Some(8)));
        assert_eq!((owner(locks, 0, 26, 1), owner("", 0, 26, 9), owner("1: FLOCK x", 0, 26, 9)), (None, None, None));
    }
}
