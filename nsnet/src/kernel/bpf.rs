//! The commands of bpf(2) that aya has no function for, or none for a map whose types are not known when this is
//! compiled; and the wait until every program run has ended.

use std::ffi::CString;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;

/// Commands, `enum bpf_cmd` (include/uapi/linux/bpf.h).
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const OBJ_GET: libc::c_long = 7;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
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
#[derive(Clone, Copy, Debug)]
pub(super) struct RawMap<'a> {
    fd: BorrowedFd<'a>,
    key_size: usize,
    /// Of all CPUs, where each has its own.
    value_size: usize,
}

impl<'a> RawMap<'a> {
    /// The map behind `fd`.
    ///
    /// # Safety
    /// Its keys and values have these sizes; with a value for each CPU, `value_size` is that of all of them as the kernel
    /// hands them over, each rounded up to 8 bytes.
    pub(super) unsafe fn new(fd: BorrowedFd<'a>, key_size: usize, value_size: usize) -> Self {
        Self { fd, key_size, value_size }
    }

    /// Whether it has this key.
    pub(super) fn has(&self, key: &[u8]) -> nix::Result<bool> {
        let mut value = vec![0; self.value_size];
        found(self.entry(MAP_LOOKUP_ELEM, key, value.as_mut_ptr() as u64, 0))
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
        if key.len() != self.key_size {
            return Err(Errno::EINVAL);
        }
        let mut request = Entry { map: self.fd.as_raw_fd() as u32, pad: 0, key: key.as_ptr() as u64, value, flags };
        // SAFETY: the request is the part of `union bpf_attr` of these commands. The key is as long as the map's (checked
        // above), and so is what `value` points to (the three callers).
        unsafe { call(command, &mut request) }.map(|_zero| ())
    }

    /// `BPF_MAP_LOOKUP_BATCH` (Linux 5.6, commit cb4d03ab499d): fills `page` from the place `page.from` on, and notes there
    /// where it goes on. Of a hash, whole buckets, each under its lock.
    ///
    /// `Ok(false)` after the last entry; `ENOSPC` when a bucket has more entries than the page has room for.
    pub(super) fn read(&self, page: &mut Page) -> nix::Result<bool> {
        #[repr(C)]
        struct Request {
            from: u64,
            next: u64,
            keys: u64,
            values: u64,
            count: u32,
            map: u32,
            elem_flags: u64,
            flags: u64,
        }
        let mut next = vec![0; self.key_size.max(size_of::<u32>())];
        page.keys.resize(page.room * self.key_size, 0);
        page.values.resize(page.room * self.value_size, 0);
        page.filled = 0;
        let mut request = Request {
            from: page.from.as_ref().map_or(0, |from| from.as_ptr() as u64),
            next: next.as_mut_ptr() as u64,
            keys: page.keys.as_mut_ptr() as u64,
            values: page.values.as_mut_ptr() as u64,
            count: page.room as u32,
            map: self.fd.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the request is the part of `union bpf_attr` of this command. It points to room for `count` keys and values
        // of the map's sizes (`new`), and to two places, which are a word of a hash and a key of other maps.
        let outcome = unsafe { call(MAP_LOOKUP_BATCH, &mut request) };
        // After other errors the kernel may not have set the count.
        if matches!(outcome, Ok(_) | Err(Errno::ENOENT)) {
            page.filled = page.room.min(request.count as usize);
        }
        page.keys.truncate(page.filled * self.key_size);
        page.values.truncate(page.filled * self.value_size);
        match outcome {
            Ok(_) => {
                page.from = Some(next);
                Ok(true)
            }
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// The entries of a page that was read.
    pub(super) fn entries<'p>(&self, page: &'p Page) -> impl Iterator<Item = (&'p [u8], &'p [u8])> + use<'p> {
        page.keys.chunks_exact(self.key_size).zip(page.values.chunks_exact(self.value_size))
    }
}

/// Room for the entries of one [`RawMap::read`], and where the next one begins.
#[derive(Debug)]
pub(super) struct Page {
    from: Option<Vec<u8>>,
    keys: Vec<u8>,
    values: Vec<u8>,
    filled: usize,
    room: usize,
}

impl Page {
    /// Before the first entry.
    pub(super) fn of(entries: usize) -> Self {
        Self { from: None, keys: Vec::new(), values: Vec::new(), filled: 0, room: entries }
    }

    /// Twice the room, at the same place.
    pub(super) fn grow(&mut self) {
        self.room *= 2;
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
