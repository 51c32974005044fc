//! Reading a large hash map: whole buckets at a time, by `BPF_MAP_LOOKUP_BATCH` (Linux 5.6, commit cb4d03ab499d).
//!
//! aya reads a map by its keys: two calls for an entry, and back to the start when the last key has gone meanwhile. A
//! million flows that come and go need neither: a bucket is read once, under its lock.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::errno::Errno;
use nix::libc;
use zerocopy::FromBytes;

use super::error::KernelError;

/// Entries of one call.
const ENTRIES: usize = 4096;

/// The part of `union bpf_attr` that batch commands use (include/uapi/linux/bpf.h).
#[repr(C)]
struct Request {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Calls `each` with every entry of the hash map `map`, whose keys are `K` and values `V`; its first error ends it.
///
/// Entries that come or go meanwhile are seen or not; all others are seen once. The map's keys and values must have the
/// size of `K` and `V`, as the `try_from` of aya's typed maps checks.
pub(super) fn for_each<K: FromBytes + Copy, V: FromBytes + Copy, E: From<KernelError>>(
    map: BorrowedFd<'_>,
    name: &str,
    mut each: impl FnMut(K, V) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let mut from = None;
    let mut page = Page::new(ENTRIES);
    loop {
        let outcome = page.read(map, from);
        // What was read before the end, or before an error, is in the page.
        for (key, value) in page.entries() {
            each(key, value)?;
        }
        match outcome {
            Ok(next) => from = Some(next),
            Err(Errno::ENOENT) => return Ok(()),
            // A bucket with more entries than the page has room for.
            Err(Errno::ENOSPC) => page = Page::new(2 * page.keys.len()),
            Err(errno) => return Err(KernelError::new(format!("read map {name}"), errno).into()),
        }
    }
}

/// Room for the entries of one call.
struct Page<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
    filled: usize,
}

impl<K: FromBytes + Copy, V: FromBytes + Copy> Page<K, V> {
    fn new(entries: usize) -> Self {
        Self { keys: vec![K::new_zeroed(); entries], values: vec![V::new_zeroed(); entries], filled: 0 }
    }

    /// Fills the page from the bucket `from`, and tells where the next one begins. `ENOENT` after the last.
    fn read(&mut self, map: BorrowedFd<'_>, from: Option<u32>) -> nix::Result<u32> {
        const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
        let (from, mut next) = (from.as_ref(), 0u32);
        let mut request = Request {
            in_batch: from.map_or(0, |from| std::ptr::from_ref(from) as u64),
            out_batch: &raw mut next as u64,
            keys: self.keys.as_mut_ptr() as u64,
            values: self.values.as_mut_ptr() as u64,
            count: self.keys.len() as u32,
            map_fd: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        self.filled = 0;
        // SAFETY: the request is as the kernel defines it. It points to `count` keys and values, which are as large as
        // the map's (the caller has checked), and to two words for the hash map's places; all outlive the call.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut request, size_of::<Request>() as libc::c_ulong)
        };
        let outcome = Errno::result(result).map(|_zero| next);
        // After other errors the kernel may not have set the count.
        if matches!(outcome, Ok(_) | Err(Errno::ENOENT)) {
            self.filled = self.keys.len().min(request.count as usize);
        }
        outcome
    }

    fn entries(&self) -> impl Iterator<Item = (K, V)> {
        self.keys.iter().copied().zip(self.values.iter().copied()).take(self.filled)
    }
}
