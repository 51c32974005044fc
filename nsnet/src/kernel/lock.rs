//! Locks on files, under which verbs take their turns.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{major, minor};

use super::error::{Doing as _, KernelError, Result, printable};

/// Who waits longer is told for whom.
const PATIENCE: Duration = Duration::from_secs(1);

/// Held until dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: Flock<File>,
    sharing: Sharing,
}

/// With whom a lock is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// With nobody: something is changed.
    Alone,
    /// With others that change nothing either.
    WithReaders,
}

impl Lock {
    /// Waits until it is to be had; `None` when it is shared and there is no such file: nobody has changed anything yet.
    /// `on_wait` is told, once, when that takes over a second.
    pub(super) fn taken(path: &Path, sharing: Sharing, on_wait: fn(&str)) -> Result<Option<Self>> {
        let (at_once, in_turn) = match sharing {
            Sharing::Alone => (FlockArg::LockExclusiveNonblock, FlockArg::LockExclusive),
            Sharing::WithReaders => (FlockArg::LockSharedNonblock, FlockArg::LockShared),
        };
        loop {
            let Some(file) = open(path, sharing)? else { return Ok(None) };
            let file = match Flock::lock(file, at_once) {
                Ok(file) => file,
                Err((file, Errno::EWOULDBLOCK)) => wait(file, in_turn, path, on_wait)?,
                Err((_file, errno)) => return Err(failed(path, errno)),
            };
            if is_still(&file, path)? {
                return Ok(Some(Self { _file: file, sharing }));
            }
        }
    }

    /// The lock alone, without waiting; `None` when somebody has it.
    pub(super) fn if_free(path: &Path) -> Result<Option<Self>> {
        let Some(file) = open(path, Sharing::Alone)? else { return Ok(None) };
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            // The one who had it took it away just now.
            Ok(file) => Ok(is_still(&file, path)?.then_some(Self { _file: file, sharing: Sharing::Alone })),
            Err((_file, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_file, errno)) => Err(failed(path, errno)),
        }
    }

    /// Whether nobody shares it.
    pub(super) fn is_alone(&self) -> bool {
        self.sharing == Sharing::Alone
    }
}

fn open(path: &Path, sharing: Sharing) -> Result<Option<File>> {
    let file = File::options().read(true).write(true).create(sharing == Sharing::Alone).truncate(false).open(path);
    match file {
        Err(error) if sharing == Sharing::WithReaders && error.kind() == ErrorKind::NotFound => Ok(None),
        file => file.map(Some).doing(|| format!("open {}", path.display())),
    }
}

/// Whether the file that is locked is the one of that name: the last owner may have removed it.
fn is_still(file: &File, path: &Path) -> Result<bool> {
    let what = || format!("look at {}", path.display());
    let ours = file.metadata().doing(what)?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).doing(what),
    }
}

fn wait(file: File, in_turn: FlockArg, path: &Path, on_wait: fn(&str)) -> Result<Flock<File>> {
    let (done, is_done) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if is_done.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                on_wait(&format!("waiting for {}", holder(path)));
            }
        });
        let taken = Flock::lock(file, in_turn);
        // The watcher's wait ends with it.
        drop(done);
        taken.map_err(|(_file, errno)| failed(path, errno))
    })
}

fn failed(path: &Path, errno: Errno) -> KernelError {
    KernelError::new(format!("lock {}", path.display()), errno)
}

/// Who has the lock, in words.
fn holder(path: &Path) -> String {
    let found = || {
        let metadata = fs::metadata(path).ok()?;
        let (device, locks) = (metadata.dev(), fs::read_to_string("/proc/locks").ok()?);
        let pid = owner(&locks, major(device), minor(device), metadata.ino())?;
        let words = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<_> = words.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let command = printable(words.join(" ").trim());
        Some(format!("process {pid} ({command}), which has {}", path.display()))
    };
    found().unwrap_or_else(|| format!("whoever has {}", path.display()))
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
    fn one_has_it_or_several_readers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let taken = |sharing| Lock::taken(&path, sharing, |_what| ()).unwrap();
        assert!(taken(Sharing::WithReaders).is_none(), "nobody has changed anything yet");
        let alone = taken(Sharing::Alone);
        assert!(alone.is_some() && Lock::if_free(&path).unwrap().is_none());
        drop(alone);
        let readers = [taken(Sharing::WithReaders), taken(Sharing::WithReaders)];
        assert!(readers.iter().all(Option::is_some) && Lock::if_free(&path).unwrap().is_none());
        drop(readers);
        assert!(Lock::if_free(&path).unwrap().is_some());
    }

    #[test]
    fn a_file_that_was_removed_is_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Lock::taken(&path, Sharing::Alone, |_what| ()).unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| Lock::taken(&path, Sharing::Alone, |_what| ()).unwrap());
            thread::sleep(Duration::from_millis(50));
            fs::remove_file(&path).unwrap();
            drop(first);
            let second = waiting.join().unwrap();
            assert!(second.is_some() && Lock::if_free(&path).unwrap().is_none(), "it has the file that is there");
        });
    }

    #[test]
    fn the_owner_is_told_from_those_that_wait() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 00:1a:9 0 EOF\n2: FLOCK  ADVISORY  WRITE 8 00:1a:77 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 9 00:1a:9 0 EOF\n3: FLOCK  ADVISORY  WRITE 10 00:1a:9 0 EOF\n";
        assert_eq!((owner(locks, 0, 26, 9), owner(locks, 0, 26, 77)), (Some(10), Some(8)));
        assert_eq!((owner(locks, 0, 26, 1), owner("", 0, 26, 9), owner("1: FLOCK x", 0, 26, 9)), (None, None, None));
    }
}
