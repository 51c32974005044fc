//! Reading a large hash map: whole buckets at a time, by `BPF_MAP_LOOKUP_BATCH` (Linux 5.6, commit cb4d03ab499d).
//!
//! aya reads a map by its keys: two calls for an entry, and back to the start when the last key has gone meanwhile. A
//! million flows that come and go need neither: a bucket is read once, under its lock.

use std::borrow::Borrow;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::MapData;
use nix::errno::Errno;
use nix::libc;
use zerocopy::FromBytes;

use super::dataplane::refused;
use super::error::{Doing as _, KernelError, Result};
use super::object::Definition;

/// Entries of one call, at most.
const ENTRIES: usize = 4096;
/// Bytes of one call, about.
const BYTES: usize = 1 << 19;

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
/// Entries that come or go meanwhile are seen or not; all others are seen once.
pub(super) fn for_each<K: FromBytes, V: FromBytes, E: From<KernelError>>(
    map: &MapData,
    name: &str,
    mut each: impl FnMut(K, V) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let mut reader = Reader::of::<K, V>(map, name)?;
    loop {
        let is_more = reader.read_on().doing(|| format!("read map {name}"))?;
        for (key, value) in reader.entries() {
            each(key, value)?;
        }
        if !is_more {
            return Ok(());
        }
    }
}

/// Calls `each` with every entry of a map, of whatever kind, as bytes: its key, and its value, or those of all CPUs one behind
/// the other.
pub fn for_each_bytes(map: &MapData, name: &str, mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
    let mut reader = Reader::new(map, name)?;
    loop {
        let is_more = reader.read_on().doing(|| format!("read map {name}"))?;
        for (key, value) in reader.raw() {
            each(key, value)?;
        }
        if !is_more {
            return Ok(());
        }
    }
}

/// How many entries a map has, and may have: a hash, also one with a value for each CPU, or a trie. `None` where the
/// kernel does not read such maps in batches.
pub(super) fn count(map: &MapData, name: &str) -> Result<Option<(u64, u64)>> {
    let mut reader = Reader::new(map, name)?;
    let mut entries = 0;
    loop {
        let is_more = match reader.read_on() {
            // ENOTSUPP, which is the kernel's own and unknown to libc, or what older ones say.
            Err(Errno::UnknownErrno | Errno::EINVAL) if entries == 0 => return Ok(None),
            outcome => outcome.doing(|| format!("read map {name}"))?,
        };
        entries += reader.filled as u64;
        // A trie that changes meanwhile is read from the start again.
        if !is_more || entries >= reader.capacity {
            return Ok(Some((entries.min(reader.capacity), reader.capacity)));
        }
    }
}

/// Reads a map on from where it stopped. It has the map, whose entries are as large as its room for them.
#[derive(Debug)]
pub(super) struct Reader<M> {
    map: M,
    key_size: usize,
    value_size: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
    filled: usize,
    /// Entries that the map may have.
    pub(super) capacity: u64,
    /// The kernel's own note of where it was: of a hash the next bucket (4 bytes), of others a key.
    at: Vec<u8>,
    is_under_way: bool,
}

impl<M: Borrow<MapData>> Reader<M> {
    /// At the start of a map, whatever it holds.
    pub(super) fn new(map: M, name: &str) -> Result<Self> {
        let info = map.borrow().info().map_err(|error| refused(format!("look at map {name}"), error))?;
        let (key_size, value_size) = (info.key_size() as usize, Definition::of_loaded(&info)?.whole_value_size()?);
        // The fewer, the longer they are: some values are whole frames.
        let entries = (BYTES / (key_size + value_size).max(1)).clamp(16, ENTRIES);
        let (keys, values) = (vec![0; key_size * entries], vec![0; value_size * entries]);
        let at = vec![0; key_size.max(size_of::<u32>())];
        let capacity = u64::from(info.max_entries());
        Ok(Self { map, key_size, value_size, keys, values, filled: 0, capacity, at, is_under_way: false })
    }

    /// At the start of a map whose keys are `K` and values `V`.
    pub(super) fn of<K, V>(map: M, name: &str) -> Result<Self> {
        let reader = Self::new(map, name)?;
        if (reader.key_size, reader.value_size) != (size_of::<K>(), size_of::<V>()) {
            return Err(KernelError::refused(
                format!("read map {name}"),
                "its entries are not of the size they should be",
            ));
        }
        Ok(reader)
    }

    /// Reads the next entries, which are in [`Reader::entries`] then. `false` when these were the last: it is at the start
    /// again.
    pub(super) fn read_on(&mut self) -> nix::Result<bool> {
        loop {
            match self.read() {
                Ok(()) => self.is_under_way = true,
                Err(Errno::ENOENT) => self.is_under_way = false,
                // A bucket with more entries than there is room for.
                Err(Errno::ENOSPC) => {
                    self.keys.resize(2 * self.keys.len(), 0);
                    self.values.resize(2 * self.values.len(), 0);
                    continue;
                }
                Err(errno) => return Err(errno),
            }
            return Ok(self.is_under_way);
        }
    }

    /// What was read last.
    pub(super) fn entries<K: FromBytes, V: FromBytes>(&self) -> impl Iterator<Item = (K, V)> {
        // The sizes are those of the types, or there is no entry.
        self.raw().filter_map(|(key, value)| Some((K::read_from_bytes(key).ok()?, V::read_from_bytes(value).ok()?)))
    }

    /// The same as bytes.
    fn raw(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let keys = self.keys.chunks_exact(self.key_size);
        keys.zip(self.values.chunks_exact(self.value_size)).take(self.filled)
    }

    fn read(&mut self) -> nix::Result<()> {
        const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
        let mut next = vec![0u8; self.at.len()];
        let mut request = Request {
            in_batch: if self.is_under_way { self.at.as_ptr() as u64 } else { 0 },
            out_batch: next.as_mut_ptr() as u64,
            keys: self.keys.as_mut_ptr() as u64,
            values: self.values.as_mut_ptr() as u64,
            count: (self.keys.len() / self.key_size) as u32,
            map_fd: self.map.borrow().fd().as_fd().as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        self.filled = 0;
        // SAFETY: the request is as the kernel defines it. It points to `count` keys and values, which are as large as
        // the map's, which is the one that new() has asked, and to two places, which are as large as the kernel's; all outlive the
        // call.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut request, size_of::<Request>() as libc::c_ulong)
        };
        let outcome = Errno::result(result).map(|_zero| ());
        // After other errors the kernel may not have set the count.
        if matches!(outcome, Ok(()) | Err(Errno::ENOENT)) {
            self.filled = (self.keys.len() / self.key_size).min(request.count as usize);
        }
        if outcome.is_ok() {
            self.at = next;
        }
        outcome
    }
}
