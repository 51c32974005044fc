//! The desired state's file: one for each host, replaced atomically, under a lock.
//!
//! ```text
//! /run/nsnet/<host>.lock     held by a verb from its first look at the state to its last change
//! /run/nsnet/lock            held by whoever removes what is left of hosts that are gone
//! /run/nsnet/<host>.json     the state, and the steps of a verb that is under way
//! /run/nsnet/<host>.draft    the same while it is written; /run/nsnet/<host>.next  the state that these steps lead to
//! ```

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use serde::{Deserialize, Serialize};

use super::capabilities;
use super::error::{Doing as _, KernelError, Result};
use super::file;
use super::lock::{Lock, Sharing};
use crate::model::plan::Step;
use crate::model::state::State;

/// Where everything of ours is.
pub const RUN: &str = "/run/nsnet";
/// Where the pins are.
pub const BPFFS: &str = "/run/nsnet/bpf";

/// What the file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The boot that it was written in: links, programs and namespaces do not outlive one.
    pub boot: String,
    /// The state that the kernel was brought to.
    pub state: State,
    /// The steps of a verb that is under way: found by the next verb, they were cut off, and are undone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub under_way: Vec<Step>,
}

/// The files of one host, locked.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    boot: String,
    lock: Option<Lock>,
}

impl Store {
    /// The files of `host`, for reading only: readers see the state before or after a verb, never between.
    pub fn read_only(host: &str) -> Result<Self> {
        Self::with(host, None)
    }

    fn with(host: &str, lock: Option<Lock>) -> Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").doing(|| "read the boot id")?;
        Ok(Self { path: Path::new(RUN).join(format!("{host}.json")), boot: boot.trim().to_owned(), lock })
    }

    /// The files of `host`, held against all other verbs until dropped. `on_wait` is told when that takes over a second.
    pub fn locked(host: &str, on_wait: fn(&str)) -> Result<Self> {
        capabilities::check()?;
        prepare_folder()?;
        let lock = Lock::taken(&lock_path(host), Sharing::Alone, on_wait).map_err(not_writable)?;
        Self::swept(Self::with(host, lock)?)
    }

    /// The same without waiting: `None` when another verb holds it.
    pub fn locked_if_free(host: &str) -> Result<Option<Self>> {
        capabilities::check()?;
        prepare_folder()?;
        let lock = Lock::if_free(&lock_path(host), Sharing::Alone).map_err(not_writable)?;
        lock.map(|lock| Self::with(host, Some(lock)).and_then(Self::swept)).transpose()
    }

    /// The files of `host`, held against verbs that change something, so that the kernel is as the file says.
    pub fn shared(host: &str, on_wait: fn(&str)) -> Result<Self> {
        Self::with(host, Lock::taken(&lock_path(host), Sharing::WithReaders, on_wait)?)
    }

    /// Without what a verb that was killed has left.
    fn swept(self) -> Result<Self> {
        remove(&self.draft())?;
        remove(&self.next())?;
        Ok(self)
    }

    /// What the file says. An empty state when there is none, or when it is of an earlier boot.
    pub fn load(&self) -> Result<Record> {
        let what = || format!("read {}", self.path.display());
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(self.empty()),
            Err(error) => return Err(error).doing(what),
        };
        let record: Record = serde_json::from_str(&text).map_err(|error| unreadable(&what(), &error))?;
        Ok(if record.boot == self.boot { record } else { self.empty() })
    }

    /// Whether there is a file.
    pub fn exists(&self) -> Result<bool> {
        self.path.try_exists().doing(|| format!("look for {}", self.path.display()))
    }

    /// Replaces the file; an empty state removes it.
    pub fn save(&self, state: &State) -> Result<()> {
        if state.is_empty() { remove(&self.path) } else { self.replace(state, &[]) }
    }

    /// Notes that `steps` lead from `old` to `new`, and makes sure that there is room for what is to be noted at their
    /// end. Fails before anything is changed.
    pub fn begin(&self, old: &State, new: &State, steps: &[Step]) -> Result<()> {
        if !new.is_empty() {
            self.write(&self.next(), new, &[])?;
        }
        self.replace(old, steps).inspect_err(|_| drop(remove(&self.next())))
    }

    /// The steps are done.
    pub fn commit(&self, new: &State) -> Result<()> {
        if new.is_empty() {
            return remove(&self.path);
        }
        fs::rename(self.next(), &self.path).doing(|| format!("write {}", self.path.display()))
    }

    /// The steps are undone.
    pub fn abandon(&self, old: &State) -> Result<()> {
        self.save(old)?;
        remove(&self.next())
    }

    fn draft(&self) -> PathBuf {
        self.path.with_extension("draft")
    }

    fn next(&self) -> PathBuf {
        self.path.with_extension("next")
    }

    fn replace(&self, state: &State, under_way: &[Step]) -> Result<()> {
        let draft = self.draft();
        self.write(&draft, state, under_way)?;
        fs::rename(&draft, &self.path).doing(|| format!("write {}", self.path.display())).inspect_err(|_| {
            // The first error is the one to tell; the next verb removes it.
            drop(remove(&draft));
        })
    }

    fn write(&self, path: &Path, state: &State, under_way: &[Step]) -> Result<()> {
        let what = || format!("write {}", path.display());
        let record = Record { state: state.clone(), under_way: under_way.to_vec(), ..self.empty() };
        let text = serde_json::to_string(&record).map_err(|error| KernelError::refused(what(), error))?;
        let mut options = private();
        let written = options.create_new(true).open(path).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            // /run is memory, where this is for nothing. Where it is not, the name must not outrun what it names.
            file.sync_all()
        });
        written.doing(what).map_err(not_writable).inspect_err(|_| drop(remove(path)))
    }

    fn empty(&self) -> Record {
        Record { boot: self.boot.clone(), ..Record::default() }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Nothing is left of a host that has nothing. One that only reads leaves it to who changes something.
        if self.lock.as_ref().is_some_and(Lock::is_alone) && !self.path.exists() {
            let _left_for_the_next = fs::remove_file(self.path.with_extension("lock"));
        }
    }
}

/// What is to be done where nothing can be written.
fn not_writable(error: KernelError) -> KernelError {
    match error.errno() {
        Some(Errno::ENOSPC | Errno::EDQUOT) => error.with_remedy("make room in /run"),
        Some(Errno::EROFS) => error.with_remedy("mount /run/nsnet for writing"),
        _ => error,
    }
}

/// What is whole but has something unknown in it is of an nsnet that knows more; it is nothing to throw away.
fn unreadable(what: &str, error: &serde_json::Error) -> KernelError {
    let said = error.to_string();
    if error.is_data() && said.starts_with("unknown ") {
        let unknown = said.split(',').next().unwrap_or_default();
        return KernelError::refused(what, format_args!("it was written by a newer nsnet ({unknown})"))
            .with_remedy("use that one");
    }
    KernelError::refused(what, format_args!("it is damaged ({said})"))
        .with_remedy("`nsnet down` removes everything of this host that the kernel shows")
}

fn lock_path(host: &str) -> PathBuf {
    Path::new(RUN).join(format!("{host}.lock"))
}

fn prepare_folder() -> Result<()> {
    match DirBuilder::new().mode(0o700).create(RUN) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error).doing(|| format!("create {RUN}")),
        _ => check_private(Path::new(RUN)),
    }
}

/// For files that nobody but root reads.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options
}

/// Refuses a directory that others can look or write into: the pins in it are the dataplane.
pub(crate) fn check_private(path: &Path) -> Result<()> {
    let what = || format!("use {}", path.display());
    let found = fs::symlink_metadata(path).doing(what)?;
    let why = if !found.is_dir() {
        "it is no directory"
    } else if found.uid() != 0 {
        "it is not root's"
    } else if found.mode() & 0o077 != 0 {
        "others than root have access to it"
    } else {
        return Ok(());
    };
    Err(KernelError::refused(what(), why)
        .with_remedy("see who made it and what is in it; then delete it, or make it root's with mode 0700"))
}

/// Deletes a file; there need not be one.
fn remove(path: &Path) -> Result<()> {
    file::remove(path).doing(|| format!("delete {}", path.display())).map(drop)
}

/// Deletes every file of the host `host`: of one that is gone.
pub(crate) fn remove_all(host: &str) -> Result<()> {
    let what = || format!("list {RUN}");
    let prefix = format!("{host}.");
    for entry in fs::read_dir(RUN).doing(what)? {
        let entry: io::Result<fs::DirEntry> = entry;
        let entry = entry.doing(what)?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_newer_one_wrote_is_told_from_what_is_damaged() {
        let state = r#"{"boot":"b","state":{"namespaces":{"red":{"made":true}}}}"#;
        assert!(serde_json::from_str::<Record>(state).is_ok());
        let told = |text: &str| unreadable("read x", &serde_json::from_str::<Record>(text).unwrap_err()).to_string();
        assert_eq!(
            told(&state.replace("true}", "true,\"shared\":true}")),
            "cannot read x: it was written by a newer nsnet (unknown field `shared`); use that one"
        );
        let step = state.replace("}}}}", "}}},\"under_way\":[{\"Levitate\":1}]}");
        assert!(told(&step).contains("newer nsnet (unknown variant `Levitate`)"), "{}", told(&step));
        for torn in [&state[..state.len() - 9], "", "\0\0\0\0", r#"{"boot":"b"}"#, &state.replace("red", "../x")] {
            assert!(told(torn).contains("it is damaged") && told(torn).contains("`nsnet down`"), "{}", told(torn));
        }
    }
}
