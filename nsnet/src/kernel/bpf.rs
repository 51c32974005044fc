//! The commands of bpf(2) that aya has no function for, or none for a map whose types are not known when this is
//! compiled; and the wait until every program run has ended. (Reading whole maps is in batch.rs.)

use std::ffi::CString;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use aya::maps::MapData;
use nix::errno::Errno;
use nix::libc;

use super::dataplane::refused;
use super::error::Result;
use super::object::Definition;

/// Commands, `enum bpf_cmd` (include/uapi/linux/bpf.h).
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const OBJ_GET: libc::c_long = 7;
const LINK_UPDATE: libc::c_long = 29;

/// Flag of an update: the key must not be there.
const NOEXIST: u64 = 1;

/// `BPF_OBJ_GET`: what is pinned at `path`, of whatever kind.
pub(super) fn open_pin(path: &Path) -> nix::Result<OwnedFd> {
    #[repr(C)]
    struct Request {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_nul| Errno::EINVAL)?;
    let mut request = Request { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: the request is the part of `union bpf_attr` of this command, and points to a C string that outlives the call.
    let fd = unsafe { call(OBJ_GET, &mut request) }?;
    // SAFETY: the system call has just opened it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `BPF_LINK_UPDATE` (Linux 5.7; of tcx links 6.6): from one run to the next the link has another program.
///
/// `ENOLINK` when what it was attached to is gone.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> nix::Result<()> {
    #[repr(C)]
    struct Request {
        link: u32,
        program: u32,
        flags: u32,
        old_program: u32,
    }
    let (link, program) = (link.as_raw_fd() as u32, program.as_raw_fd() as u32);
    let mut request = Request { link, program, flags: 0, old_program: 0 };
    // SAFETY: the request is the part of `union bpf_attr` of this command; it holds numbers only.
    unsafe { call(LINK_UPDATE, &mut request) }.map(|_zero| ())
}

/// The request of the commands for one entry.
#[repr(C)]
struct Entry {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A map whose keys and values are bytes.
#[derive(Debug)]
pub(super) struct RawMap {
    data: MapData,
    /// What it is.
    pub(super) definition: Definition,
    /// Bytes of a value; of all CPUs, where each has its own.
    pub(super) value_size: usize,
}

impl RawMap {
    /// The map behind `data`.
    pub(super) fn new(data: MapData) -> Result<Self> {
        let info = data.info().map_err(|error| refused("read a map's description", error))?;
        let definition = Definition::of_loaded(&info)?;
        let value_size = definition.whole_value_size()?;
        Ok(Self { data, definition, value_size })
    }

    /// The map itself.
    pub(super) fn data(&self) -> &MapData {
        &self.data
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &[u8]) -> nix::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.value_size];
        let is_there = found(self.entry(MAP_LOOKUP_ELEM, key, value.as_mut_ptr() as u64, 0))?;
        Ok(is_there.then_some(value))
    }

    /// Sets an entry, or with `only_new` makes it: `Ok(false)` when it is there already.
    pub(super) fn set(&self, key: &[u8], value: &[u8], only_new: bool) -> nix::Result<bool> {
        if value.len() != self.value_size {
            return Err(Errno::EINVAL);
        }
        match self.entry(MAP_UPDATE_ELEM, key, value.as_ptr() as u64, if only_new { NOEXIST } else { 0 }) {
            Err(Errno::EEXIST) if only_new => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Removes an entry. `Ok(false)` when it is not there.
    pub(super) fn remove(&self, key: &[u8]) -> nix::Result<bool> {
        found(self.entry(MAP_DELETE_ELEM, key, 0, 0))
    }

    /// `value` points to as many bytes as a value has, which the command reads or writes; or is 0 where it takes none.
    fn entry(&self, command: libc::c_long, key: &[u8], value: u64, flags: u64) -> nix::Result<()> {
        if key.len() != self.definition.key_size as usize {
            return Err(Errno::EINVAL);
        }
        let map = self.data.fd().as_fd().as_raw_fd() as u32;
        let mut request = Entry { map, pad: 0, key: key.as_ptr() as u64, value, flags };
        // SAFETY: the request is the part of `union bpf_attr` of these commands. The key is as long as the map's (checked
        // above), and what `value` points to as a value of the map's, by the kernel's own account (the three callers).
        unsafe { call(command, &mut request) }.map(|_zero| ())
    }
}

/// Waits until every run of a program that has begun has ended: a grace period of RCU, by membarrier(2) (Linux 4.3).
pub(super) fn wait_for_runs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes numbers only.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if done != 0 {
        // Where it is refused (nohz_full), a run of a packet through our programs takes microseconds.
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn found(result: nix::Result<()>) -> nix::Result<bool> {
    match result {
        Err(Errno::ENOENT) => Ok(false),
        other => other.map(|()| true),
    }
}

/// # Safety
/// `request` is what the kernel takes for `command`, and all that it points to is as large as the command has it.
unsafe fn call<T>(command: libc::c_long, request: &mut T) -> nix::Result<i32> {
    // SAFETY: the caller's.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(request), size_of::<T>() as libc::c_ulong) };
    Errno::result(result).map(|number| number as i32)
}
