//! Locks on files, under which verbs take their turns. A lock ends when its file is closed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::stat::{major, minor};

use super::error::{Doing as _, Result, printable};

/// Who waits longer is told for whom.
const PATIENCE: Duration = Duration::from_secs(1);

/// Held until dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
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
        loop {
            let Some(file) = open(path, sharing)? else { return Ok(None) };
            if !try_lock(&file, sharing).doing(|| format!("lock {}", path.display()))? {
                wait(&file, sharing, path, on_wait).doing(|| format!("lock {}", path.display()))?;
            }
            if is_still(&file, path)? {
                return Ok(Some(Self { _file: file, sharing }));
            }
        }
    }

    /// The same without waiting; `None` too when somebody has it.
    pub(super) fn if_free(path: &Path, sharing: Sharing) -> Result<Option<Self>> {
        let Some(file) = open(path, sharing)? else { return Ok(None) };
        // Else the one who had it took it away just now.
        let is_had = try_lock(&file, sharing).doing(|| format!("lock {}", path.display()))? && is_still(&file, path)?;
        Ok(is_had.then_some(Self { _file: file, sharing }))
    }

    /// Whether nobody shares it.
    pub(super) fn is_alone(&self) -> bool {
        self.sharing == Sharing::Alone
    }
}

fn open(path: &Path, sharing: Sharing) -> Result<Option<File>> {
    let mut options = OpenOptions::new();
    // Nobody but root reads it, and nobody leads us elsewhere.
    options.mode(0o600).custom_flags(libc::O_NOFOLLOW);
    match sharing {
        Sharing::Alone => options.write(true).create(true),
        // Who only looks can do so where nothing can be written.
        Sharing::WithReaders => options.read(true),
    };
    match options.open(path) {
        Err(error) if sharing == Sharing::WithReaders && error.kind() == ErrorKind::NotFound => Ok(None),
        file => file.map(Some).doing(|| format!("open {}", path.display())),
    }
}

fn try_lock(file: &File, sharing: Sharing) -> io::Result<bool> {
    let tried = match sharing {
        Sharing::Alone => file.try_lock(),
        Sharing::WithReaders => file.try_lock_shared(),
    };
    match tried {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Waits for a lock. A signal is no reason to end the wait.
pub(super) fn in_turn(file: &File, sharing: Sharing) -> io::Result<()> {
    loop {
        let locked = match sharing {
            Sharing::Alone => file.lock(),
            Sharing::WithReaders => file.lock_shared(),
        };
        match locked {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

fn wait(file: &File, sharing: Sharing, path: &Path, on_wait: fn(&str)) -> io::Result<()> {
    let (done, is_done) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if is_done.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                on_wait(&format!("waiting for {}", holder(path)));
            }
        });
        let taken = in_turn(file, sharing);
        // The watcher's wait ends with it.
        drop(done);
        taken
    })
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
        let is_free = || Lock::if_free(&path, Sharing::Alone).unwrap().is_some();
        assert!(taken(Sharing::WithReaders).is_none(), "nobody has changed anything yet");
        let alone = taken(Sharing::Alone);
        assert!(alone.is_some() && !is_free());
        drop(alone);
        let readers = [taken(Sharing::WithReaders), taken(Sharing::WithReaders)];
        assert!(readers.iter().all(Option::is_some) && !is_free());
        assert!(Lock::if_free(&path, Sharing::WithReaders).unwrap().is_some());
        drop(readers);
        assert!(is_free());
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
            let is_held = Lock::if_free(&path, Sharing::Alone).unwrap().is_none();
            assert!(second.is_some() && is_held, "it has the file that is there");
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
