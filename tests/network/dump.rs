//! Everything in a host's pinned tables, as bytes, to compare before and after.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use aya::maps::{MapData, MapInfo, MapType};
use aya::util::nr_cpus;
use nix::errno::Errno;
use nix::libc;
use nsnet::kernel::netns::NetNs;
use nsnet::kernel::store::BPFFS;
use nsnet_common::layout::{LAYOUT_VERSION, names};

/// The pinned tables of a host, open.
pub(crate) struct Dumper {
    tables: Vec<Table>,
}

/// Of each table, its entries by their keys.
pub(crate) type Dump = BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>;

struct Table {
    name: &'static str,
    data: MapData,
    key: usize,
    value: usize,
}

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

impl Dumper {
    /// All tables of the host's dataplane, but the one of programs, which nothing changes.
    pub(crate) fn open(host: &NetNs) -> Result<Self> {
        let folder = PathBuf::from(format!("{BPFFS}/{:x}_v{LAYOUT_VERSION}/maps", host.cookie()?));
        let cpus = nr_cpus().map_err(|(what, error)| anyhow::anyhow!("read {what}: {error}"))?;
        let mut tables = Vec::new();
        for name in names::MAPS.into_iter().filter(|name| *name != names::STAGES) {
            let path = folder.join(names::pin(name));
            let info = MapInfo::from_pin(&path).with_context(|| format!("look at {name}"))?;
            let kind = info.map_type()?;
            let is_per_cpu = matches!(kind, MapType::PerCpuArray | MapType::PerCpuHash | MapType::LruPerCpuHash);
            let value = info.value_size() as usize;
            let value = if is_per_cpu { value.next_multiple_of(8) * cpus } else { value };
            let data = MapData::from_pin(&path).with_context(|| format!("open {name}"))?;
            tables.push(Table { name, data, key: info.key_size() as usize, value });
        }
        let pinned = fs::read_dir(&folder)?.count();
        anyhow::ensure!(pinned == tables.len() + 1, "{pinned} tables are pinned, {} are known", tables.len() + 1);
        Ok(Self { tables })
    }

    /// What is in them, but for entries of nothing but zeros.
    pub(crate) fn dump(&self) -> Result<Dump> {
        self.tables.iter().map(|table| Ok((table.name, table.read()?))).collect()
    }
}

impl Table {
    fn read(&self) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        /// Entries of one call; more than any bucket has.
        const ENTRIES: usize = 4096;
        const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
        let (mut keys, mut values) = (vec![0u8; ENTRIES * self.key], vec![0u8; ENTRIES * self.value]);
        // A place is as long as a key, or a word.
        let (mut from, mut next) = ([0u8; 64], [0u8; 64]);
        let mut is_first = true;
        let mut entries = BTreeMap::new();
        loop {
            let mut request = Request {
                in_batch: if is_first { 0 } else { from.as_ptr() as u64 },
                out_batch: next.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: ENTRIES as u32,
                map_fd: self.data.fd().as_fd().as_raw_fd() as u32,
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: the request is as the kernel defines it. It points to `count` keys and values of the sizes that the
            // kernel says the map's have, and to places of 64 bytes, which is more than the longest key; all outlive the call.
            let result = unsafe {
                let size = size_of::<Request>() as libc::c_ulong;
                libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut request, size)
            };
            let outcome = Errno::result(result);
            if !matches!(outcome, Ok(_) | Err(Errno::ENOENT)) {
                bail!("cannot read {}: {outcome:?}", self.name);
            }
            let read = keys.chunks_exact(self.key).zip(values.chunks_exact(self.value)).take(request.count as usize);
            entries.extend(
                read.filter(|(_, value)| value.iter().any(|byte| *byte != 0)).map(|(k, v)| (k.to_vec(), v.to_vec())),
            );
            if outcome.is_err() {
                return Ok(entries);
            }
            (from, is_first) = (next, false);
        }
    }
}

/// What differs, a line for each entry.
pub(crate) fn differences(before: &Dump, after: &Dump) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, entries) in before {
        let others = &after[name];
        let keys: std::collections::BTreeSet<_> = entries.keys().chain(others.keys()).collect();
        for key in keys.into_iter().filter(|key| entries.get(*key) != others.get(*key)) {
            lines.push(format!("{name}[{key:02x?}]: {:02x?}, before {:02x?}", others.get(key), entries.get(key)));
        }
    }
    lines
}
