//! Which hosts are still there: a namespace that goes takes its mark along.
//!
//! The state and the pins of a host outlive its network namespace when nobody says `nsnet down`. Nothing that could be
//! written down tells whether a namespace is gone: its inode number is given out again, and it may be held open where
//! nobody can look. So each host has a mark among the pins, `alive-<host>`: a map of devices (BPF_MAP_TYPE_DEVMAP, Linux
//! 4.14) that holds the namespace's loopback interface. That one is there from the namespace's first moment to its last
//! and cannot be deleted or moved; when it goes, the kernel takes it out of the map (dev_map_notification in
//! kernel/bpf/devmap.c). An empty mark is a namespace that is gone. No packet meets the map, and it holds nothing alive.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData, MapError, MapType};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_DEVMAP;
use nix::errno::Errno;

use super::dataplane::{self, refused};
use super::error::{Doing as _, KernelError, Result};
use super::file;
use super::lock::{Lock, Sharing};
use super::store::{self, BPFFS, RUN};

const PREFIX: &str = "alive-";

/// Every namespace's `lo` has it (LOOPBACK_IFINDEX).
const LOOPBACK: u32 = 1;

/// Where the mark of `host` is, or will be.
pub fn path_of(host: &str) -> PathBuf {
    Path::new(BPFFS).join(format!("{PREFIX}{host}"))
}

/// Marks `host`, in whose namespace the calling thread is, as alive, unless it is marked.
pub(crate) fn mark(host: &str) -> Result<()> {
    let path = path_of(host);
    if path.try_exists().doing(|| format!("look for {}", path.display()))? {
        return Ok(());
    }
    let what = || format!("make the mark {}", path.display());
    let size = size_of::<u32>() as u32;
    let description = aya_obj::Map::new_from_params(BPF_MAP_TYPE_DEVMAP as u32, size, size, 1, 0);
    let data = MapData::create(description, "nsnet_alive", None).map_err(|error| refused(what(), error))?;
    // To user space it is an array of interface indexes.
    let mut devices = Array::<_, u32>::try_from(Map::Array(data)).map_err(|error| refused(what(), error))?;
    devices.set(0, LOOPBACK, 0).map_err(|error| refused(what(), error))?;
    // Last: a mark that can be found is never an empty one of a living host.
    devices.pin(&path).map_err(|error| refused(what(), error))
}

/// Takes the mark away; there need not be one.
pub(crate) fn unmark(host: &str) -> Result<()> {
    let path = path_of(host);
    file::remove(&path).doing(|| format!("delete {}", path.display())).map(drop)
}

/// Removes what is left of hosts whose namespace is gone, and tells their names. Nothing while somebody else does so.
pub(crate) fn sweep() -> Result<Vec<String>> {
    let Some(_lock) = Lock::if_free(&Path::new(RUN).join("lock"), Sharing::Alone)? else { return Ok(Vec::new()) };
    let what = || format!("list {BPFFS}");
    let entries = match fs::read_dir(BPFFS) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.doing(what)?,
    };
    let mut swept = Vec::new();
    for entry in entries {
        let name = entry.doing(what)?.file_name().to_string_lossy().into_owned();
        let Some(host) = name.strip_prefix(PREFIX) else { continue };
        if is_gone(host)? {
            dataplane::remove_all(Path::new(BPFFS), host)?;
            store::remove_all(host)?;
            // Last: what is cut off here is found again.
            unmark(host)?;
            swept.push(host.to_owned());
        }
    }
    Ok(swept)
}

/// Whether the namespace of a marked host is gone.
fn is_gone(host: &str) -> Result<bool> {
    let path = path_of(host);
    let what = || format!("read the mark {}", path.display());
    let data = match MapData::from_pin(&path).map_err(|error| refused(what(), error)) {
        // Its host has taken it away meanwhile.
        Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(false),
        data => data?,
    };
    let kind = data.info().and_then(|info| info.map_type()).map_err(|error| refused(what(), error))?;
    if kind != MapType::DevMap {
        return Err(KernelError::refused(what(), "it is none of ours").with_remedy("delete it"));
    }
    let devices = Array::<_, u32>::try_from(Map::Array(data)).map_err(|error| refused(what(), error))?;
    match devices.get(&0, 0) {
        Ok(_loopback) => Ok(false),
        Err(MapError::KeyNotFound) => Ok(true),
        Err(error) => Err(refused(what(), error)),
    }
}
