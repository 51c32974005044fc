//! Everything in a host's pinned tables, as bytes, to compare before and after.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use nsnet::kernel::batch;
use nsnet::kernel::netns::NetNs;
use nsnet::kernel::store::BPFFS;
use nsnet_common::layout::{LAYOUT_VERSION, names};

/// The pinned tables of a host, open.
pub(crate) struct Dumper {
    tables: Vec<(&'static str, MapData)>,
}

/// Of each table, its entries by their keys.
pub(crate) type Dump = BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>;

impl Dumper {
    /// All tables of the host's dataplane, but those of programs and of devices, which no packet changes.
    pub(crate) fn open(host: &NetNs) -> Result<Self> {
        let folder = PathBuf::from(format!("{BPFFS}/{:x}_v{LAYOUT_VERSION}/maps", host.cookie()?));
        let names = names::MAPS.into_iter().filter(|name| !matches!(*name, names::STAGES | names::XDP_PORTS));
        let open = |name| {
            let map = MapData::from_pin(folder.join(name));
            Ok((name, map.with_context(|| format!("open {name}"))?))
        };
        let tables = names.map(open).collect::<Result<Vec<_>>>()?;
        let pinned = fs::read_dir(&folder)?.count();
        // Beside these: the tables of programs and of devices, and what tells the build.
        ensure!(pinned == tables.len() + 3, "{pinned} tables are pinned, {} are known", tables.len() + 3);
        Ok(Self { tables })
    }

    /// What is in them, but for entries of nothing but zeros.
    pub(crate) fn dump(&self) -> Result<Dump> {
        let read = |(name, map): &(&'static str, MapData)| -> Result<_> {
            let (mut entries, mut zeros) = (BTreeMap::new(), Vec::new());
            batch::for_each_bytes(map, name, |key, value| {
                zeros.resize(value.len(), 0);
                if value != zeros {
                    entries.insert(key.to_vec(), value.to_vec());
                }
                Ok(())
            })?;
            Ok((*name, entries))
        };
        self.tables.iter().map(read).collect()
    }
}

/// What differs, a line for each entry.
pub(crate) fn differences(before: &Dump, after: &Dump) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, entries) in before {
        let others = &after[name];
        let keys: BTreeSet<_> = entries.keys().chain(others.keys()).collect();
        for key in keys.into_iter().filter(|key| entries.get(*key) != others.get(*key)) {
            lines.push(format!("{name}[{key:02x?}]: {:02x?}, before {:02x?}", others.get(key), entries.get(key)));
        }
    }
    lines
}
