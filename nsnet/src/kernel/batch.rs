//! Reading a large map: whole buckets at a time, by `BPF_MAP_LOOKUP_BATCH`.
//!
//! aya reads a map by its keys: two calls for an entry, and back to the start when the last key has gone meanwhile. A
//! million flows that come and go need neither: a bucket is read once, under its lock.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use zerocopy::FromBytes;

use super::bpf::{Page, RawMap};
use super::error::KernelError;

/// Entries of one call.
const ENTRIES: usize = 4096;

/// Calls `each` with every entry of the map, whose keys are `K` and values `V`; its first error ends it.
///
/// Entries that come or go meanwhile are seen or not; all others are seen once. The map's keys and values must have the
/// size of `K` and `V`, as the `try_from` of aya's typed maps checks.
pub(super) fn for_each<K: FromBytes, V: FromBytes, E: From<KernelError>>(
    map: BorrowedFd<'_>,
    name: &str,
    mut each: impl FnMut(K, V) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    // SAFETY: the caller has checked the sizes; the maps read so have one value for all CPUs.
    let map = unsafe { RawMap::new(map, size_of::<K>(), size_of::<V>()) };
    for_each_raw(map, name, |key, value| {
        let (Ok(key), Ok(value)) = (K::read_from_bytes(key), V::read_from_bytes(value)) else {
            return Err(KernelError::new(format!("read map {name}"), Errno::EINVAL).into());
        };
        each(key, value)
    })
}

/// The same with bytes.
pub(super) fn for_each_raw<E: From<KernelError>>(
    map: RawMap<'_>,
    name: &str,
    mut each: impl FnMut(&[u8], &[u8]) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let mut page = Page::of(ENTRIES);
    loop {
        let outcome = map.read(&mut page);
        // What was read before the end is in the page; after an error there is nothing in it.
        for (key, value) in map.entries(&page) {
            each(key, value)?;
        }
        match outcome {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(Errno::ENOSPC) => page.grow(),
            Err(errno) => return Err(KernelError::new(format!("read map {name}"), errno).into()),
        }
    }
}
