//! The desired state's file: one for each host, replaced atomically, under a lock.
//!
//! ```text
//! /run/nsnet/lock            held by a verb from its first look at the state to its last change
//! /run/nsnet/<host>.json     the state, and the steps of a verb that is under way
//! ```

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::error::{Doing as _, KernelError, Result};
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
    _lock: Option<Flock<File>>,
}

impl Store {
    /// The file of `host`, for reading only: readers see the state before or after a verb, never between.
    pub fn read_only(host: &str) -> Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").doing(|| "read the boot id")?;
        Ok(Self { path: Path::new(RUN).join(format!("{host}.json")), boot: boot.trim().to_owned(), _lock: None })
    }

    /// The file of `host`, held against all other verbs until dropped.
    pub fn locked(host: &str) -> Result<Self> {
        let lock = lock()?;
        Ok(Self { _lock: Some(lock), ..Self::read_only(host)? })
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

/// A place among those who wait for the lock, for somebody who has other things to do meanwhile.
///
/// Whoever only tries now and then has no chance while others wait: the next of them has it at once.
#[derive(Debug, Default)]
pub struct Turn(Option<Receiver<Result<Flock<File>>>>);

impl Turn {
    /// The file of `host`, held like [`Store::locked`]; `None` when others were first for all of `limit`.
    pub fn wait(&mut self, host: &str, limit: Duration) -> Result<Option<Store>> {
        let place = match self.0.take() {
            Some(place) => place,
            None => line_up()?,
        };
        match place.recv_timeout(limit) {
            Ok(lock) => Ok(Some(Store { _lock: Some(lock?), ..Store::read_only(host)? })),
            Err(RecvTimeoutError::Timeout) => {
                self.0 = Some(place);
                Ok(None)
            }
            // Its turn came when nobody was here.
            Err(RecvTimeoutError::Disconnected) => Ok(None),
        }
    }
}

/// Waits for the lock on a thread of its own. Nobody holds it that nobody waits for: it is handed over or given up.
fn line_up() -> Result<Receiver<Result<Flock<File>>>> {
    let (give, place) = mpsc::sync_channel(0);
    let wait = move || drop(give.try_send(lock()));
    thread::Builder::new().name("lock".to_owned()).spawn(wait).doing(|| "start a thread")?;
    Ok(place)
}

fn lock() -> Result<Flock<File>> {
    fs::create_dir_all(RUN).doing(|| format!("create {RUN}"))?;
    set_private(Path::new(RUN))?;
    let path = Path::new(RUN).join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.doing(|| format!("open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_file, errno)| KernelError::new(format!("lock {}", path.display()), errno))
}

/// Root alone may look in: the pins below are the dataplane.
fn set_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let permissions = fs::Permissions::from_mode(0o700);
    fs::set_permissions(path, permissions).doing(|| format!("set the mode of {}", path.display()))
}
