//! The desired state's file: one for each host, replaced atomically, under a lock.
//!
//! ```text
//! /run/nsnet/<host>.lock     held by a verb from its first look at the state to its last change
//! /run/nsnet/<host>.json     the state, and the steps of a verb that is under way
//! ```

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{Doing as _, KernelError, Result};
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

/// The file of one host, locked.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    boot: String,
    lock: Option<Lock>,
}

impl Store {
    /// The file of `host`, for reading only: readers see the state before or after a verb, never between.
    pub fn read_only(host: &str) -> Result<Self> {
        Self::with(host, None)
    }

    fn with(host: &str, lock: Option<Lock>) -> Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").doing(|| "read the boot id")?;
        Ok(Self { path: Path::new(RUN).join(format!("{host}.json")), boot: boot.trim().to_owned(), lock })
    }

    /// The file of `host`, held against all other verbs until dropped. `on_wait` is told when that takes long.
    pub fn locked(host: &str, on_wait: fn(&str)) -> Result<Self> {
        prepare_folder()?;
        Self::with(host, Lock::taken(&lock_path(host), Sharing::Alone, on_wait)?)
    }

    /// The same without waiting: `None` when another verb holds it.
    pub fn locked_if_free(host: &str) -> Result<Option<Self>> {
        prepare_folder()?;
        let lock = Lock::if_free(&lock_path(host))?;
        lock.map(|lock| Self::with(host, Some(lock))).transpose()
    }

    /// The file of `host`, held against verbs that change something, so that the kernel is as the file says.
    pub fn shared(host: &str, on_wait: fn(&str)) -> Result<Self> {
        Self::with(host, Lock::taken(&lock_path(host), Sharing::WithReaders, on_wait)?)
    }

    /// What the file says. An empty state when there is none, or when it is of an earlier boot.
    pub fn load(&self) -> Result<Record> {
        let what = || format!("read {}", self.path.display());
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(self.empty()),
            Err(error) => return Err(error).doing(what),
        };
        let record: Record = serde_json::from_str(&text).map_err(|error| {
            KernelError::refused(what(), error)
                .with_remedy("delete the file and what is left of the state, or restore it")
        })?;
        Ok(if record.boot == self.boot { record } else { self.empty() })
    }

    /// Replaces the file; an empty state removes it.
    pub fn save(&self, state: &State, under_way: &[Step]) -> Result<()> {
        let what = || format!("write {}", self.path.display());
        let is_empty = State { generation: 0, publish_epoch: 0, ..state.clone() } == State::default();
        if is_empty && under_way.is_empty() {
            return match fs::remove_file(&self.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).doing(what),
                _ => Ok(()),
            };
        }
        let record = Record { state: state.clone(), under_way: under_way.to_vec(), ..self.empty() };
        let mut file = tempfile::NamedTempFile::new_in(RUN).doing(what)?;
        let text = serde_json::to_string(&record).map_err(|error| KernelError::refused(what(), error))?;
        file.write_all(text.as_bytes()).doing(what)?;
        // Not synced: /run is memory, and what it describes is gone with the power, too.
        file.persist(&self.path).map_err(|error| error.error).doing(what)?;
        Ok(())
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

fn lock_path(host: &str) -> PathBuf {
    Path::new(RUN).join(format!("{host}.lock"))
}

/// Root alone may look in: the pins below are the dataplane.
fn prepare_folder() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::create_dir_all(RUN).doing(|| format!("create {RUN}"))?;
    fs::set_permissions(RUN, fs::Permissions::from_mode(0o700)).doing(|| format!("set the mode of {RUN}"))
}
