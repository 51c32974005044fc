//! What becomes of each map when other programs take over: most are theirs, too; some are copied while packets go on.
//!
//! A hash is copied in passes around the change of programs:
//! ```text
//!   begin()    every entry, while the old programs use the old map
//!   follow()   what has come into the old map since then comes into the new one, unless the new programs have made it
//!              themselves; what has gone from the old one goes from the new one: just before the programs change,
//!              just after, and when the last run of an old one has ended
//! ```
//! So an entry is lost by neither, nor lives twice. What alone changed *within* an entry after it was copied (the
//! stamp of a flow, a counter) is as the first pass found it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aya::maps::MapType;
use nix::errno::Errno;
use nsnet_common::layout::{names, version_of};

use super::batch::for_each_bytes;
use super::bpf::RawMap;
use super::error::{Doing as _, KernelError, Result};
use super::object::{Definition, Definitions, open_raw};
use super::pins::{Pins, check_map, map_at, map_pin};

/// The way from one version of a map's layout to the next.
#[derive(Clone, Copy, Debug)]
pub struct Conversion {
    /// The map.
    pub map: &'static str,
    /// The version of what is there.
    pub from: u32,
    /// The version of what becomes of it.
    pub to: u32,
    /// Makes a key and value of the new layout of old ones; `None` for an entry that has no place in it. Of a map with a
    /// value for each CPU the value is all of them, each rounded up to 8 bytes.
    pub entry: fn(&[u8], &[u8]) -> Option<Entry>,
}

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// Every way there is. No layout has changed yet since maps have versions.
pub const CONVERSIONS: [Conversion; 0] = [];

/// What becomes of one map.
#[derive(Clone, Copy, Debug)]
pub enum Fate {
    /// The new programs use it, too.
    Kept,
    /// Its entries go into a new one: as they are, when the new one has another size only.
    Copied(Option<Conversion>),
    /// The new one begins empty. What that means for the user.
    Emptied(&'static str),
    /// There was none.
    New,
}

/// What is between programs at one moment, and means nothing to others.
const MOMENTARY: [&str; 3] = [names::STAGES, names::LOCKS, names::CAPTURING];

/// What is lost with maps that begin empty, and whether connections break. Maps that are not here hold what the control
/// plane has said, without which nothing goes on: for those a conversion is needed.
const LOSSES: [Loss; 8] = [
    Loss {
        // They refer to one another, and are counted: one alone cannot begin anew.
        maps: &[names::FLOWS4, names::FLOWS6, names::YOUNG4, names::YOUNG6, names::MAPPINGS, names::USAGE],
        what: "flows and NAT mappings: connections from inside to outside, and to published ports, break",
        is_grave: true,
    },
    Loss {
        maps: &[names::ORIGINALS],
        what: "what the host's sockets asked for: those in use see the namespace's address",
        is_grave: true,
    },
    Loss {
        maps: &[names::FRAGMENTS, names::HELD, names::HOLDING],
        what: "fragments that wait for others",
        is_grave: false,
    },
    Loss { maps: &[names::COUNTERS, names::DROPS], what: "counters, which begin at 0", is_grave: false },
    Loss { maps: &[names::LAST_DROPS], what: "the last packet of each reason", is_grave: false },
    Loss { maps: &[names::CAPTURE, names::RINGS], what: "captures that are under way: they end", is_grave: false },
    Loss { maps: &[names::PUBLISH_HITS], what: "hits of published ports, which begin at 0", is_grave: false },
    Loss { maps: &[names::FLOOD_CLOCKS, names::REFUSAL_CLOCKS], what: "used-up allowances", is_grave: false },
];

struct Loss {
    maps: &'static [&'static str],
    what: &'static str,
    is_grave: bool,
}

/// What becomes of every map.
#[derive(Clone, Debug)]
pub struct Plan {
    /// By name.
    pub fates: BTreeMap<&'static str, Fate>,
}

impl Plan {
    /// From what is pinned to what the object defines. Refused when a map is not what its pin's name says, or holds what
    /// must not be lost and cannot be converted by one of `conversions`.
    pub(super) fn new(old: &Pins, definitions: &Definitions, conversions: &[Conversion]) -> Result<Self> {
        let mut fates = BTreeMap::new();
        for (name, wanted) in definitions {
            // Which program is at which place is the new ones' own affair.
            let fate = if *name == names::STAGES { Fate::New } else { fate(old, name, wanted, conversions)? };
            fates.insert(*name, fate);
        }
        for loss in &LOSSES {
            if loss.maps.iter().any(|name| matches!(fates.get(name), Some(Fate::Emptied(_)))) {
                fates.extend(loss.maps.iter().map(|name| (*name, Fate::Emptied(loss.what))));
            }
        }
        Ok(Self { fates })
    }

    /// How many are kept, and the names of those that are copied, and of those that begin empty.
    pub fn summary(&self) -> (usize, Vec<&'static str>, Vec<&'static str>) {
        let kept = self.names(|fate| matches!(fate, Fate::Kept)).len();
        let copied = self.names(|fate| matches!(fate, Fate::Copied(_)));
        (kept, copied, self.names(|fate| matches!(fate, Fate::Emptied(_))))
    }

    fn names(&self, is_it: impl Fn(&Fate) -> bool) -> Vec<&'static str> {
        self.fates.iter().filter(|(_, fate)| is_it(fate)).map(|(name, _)| *name).collect()
    }

    /// What is lost, each named once.
    pub fn losses(&self) -> Vec<&'static str> {
        let lost = |loss: &&Loss| self.loses(loss);
        LOSSES.iter().filter(lost).map(|loss| loss.what).collect()
    }

    /// The first of them that breaks connections.
    pub fn grave_loss(&self) -> Option<&'static str> {
        LOSSES.iter().find(|loss| loss.is_grave && self.loses(loss)).map(|loss| loss.what)
    }

    fn loses(&self, loss: &Loss) -> bool {
        loss.maps.iter().any(|name| matches!(self.fates.get(name), Some(Fate::Emptied(_))))
    }
}

fn fate(old: &Pins, name: &'static str, wanted: &Definition, conversions: &[Conversion]) -> Result<Fate> {
    let to = version_of(name);
    let Some(from) = old.version_of(name)? else { return Ok(Fate::New) };
    let path = old.maps().join(map_pin(name, from));
    let found = map_at(&path)?.ok_or_else(|| KernelError::new(format!("open map {name}"), Errno::ENOENT))?;
    if from == to {
        check_map(&path, &found, wanted)?;
        return Ok(match found == *wanted {
            true => Fate::Kept,
            false if is_table(wanted.kind) && !MOMENTARY.contains(&name) => Fate::Copied(None),
            false => Fate::New,
        });
    }
    if let Some(way) = conversions.iter().find(|way| (way.map, way.from, way.to) == (name, from, to)) {
        return Ok(Fate::Copied(Some(*way)));
    }
    match LOSSES.iter().find(|loss| loss.maps.contains(&name)) {
        Some(loss) => Ok(Fate::Emptied(loss.what)),
        None if is_table(wanted.kind) && !MOMENTARY.contains(&name) => {
            let why = format!("map {name} has version {from} of its layout, which this nsnet cannot convert to {to}");
            Err(KernelError::refused("upgrade", why).with_remedy("`nsnet down`, and set it up again"))
        }
        None => Ok(Fate::New),
    }
}

/// Whether it has entries under keys, which can be copied.
fn is_table(kind: MapType) -> bool {
    is_hash(kind) || matches!(kind, MapType::Array | MapType::PerCpuArray | MapType::LpmTrie)
}

fn is_hash(kind: MapType) -> bool {
    matches!(kind, MapType::Hash | MapType::LruHash | MapType::PerCpuHash | MapType::LruPerCpuHash)
}

/// A map that is copied into another.
#[derive(Debug)]
pub struct Copying {
    name: &'static str,
    from: RawMap,
    to: RawMap,
    conversion: Option<Conversion>,
    /// The keys that the last pass found, of a hash, one after the other.
    seen: Vec<u8>,
}

impl Copying {
    /// Of the maps pinned at `from` and `to`.
    pub fn new(name: &'static str, from: &Path, to: &Path, conversion: Option<Conversion>) -> Result<Self> {
        let (from, to) = (open_raw(from)?, open_raw(to)?);
        Ok(Self { name, from, to, conversion, seen: Vec::new() })
    }

    /// Copies everything.
    pub fn begin(&mut self) -> Result<()> {
        let is_hash = is_hash(self.from.definition.kind);
        let is_new_array = !is_hash && self.conversion.is_none() && self.to.definition.kind != MapType::LpmTrie;
        let mut seen = Vec::new();
        for_each_bytes(self.from.data(), self.name, |key, value| {
            if is_hash {
                seen.extend_from_slice(key);
            } else if is_new_array && value.iter().all(|byte| *byte == 0) {
                // As it is there already. The new one may have fewer places, when the last ones are free.
                return Ok(());
            }
            self.put(key, value, false)
        })?;
        self.seen = seen;
        Ok(())
    }

    /// Follows what has changed in the old map since the last pass. (Arrays are copied once: their places stay.)
    pub fn follow(&mut self) -> Result<()> {
        if !is_hash(self.from.definition.kind) {
            return Ok(());
        }
        // A key of the new layout does not depend on the value.
        let nothing = vec![0; self.from.value_size];
        for key in self.seen.chunks_exact(self.from.definition.key_size as usize) {
            if self.from.get(key).doing(|| self.what())?.is_some() {
                continue;
            }
            let gone = match self.conversion {
                Some(way) => (way.entry)(key, &nothing).map(|(key, _)| key),
                None => Some(key.to_vec()),
            };
            if let Some(gone) = gone {
                self.to.remove(&gone).doing(|| self.what())?;
            }
        }
        let mut seen = Vec::with_capacity(self.seen.len());
        for_each_bytes(self.from.data(), self.name, |key, value| {
            seen.extend_from_slice(key);
            self.put(key, value, true)
        })?;
        self.seen = seen;
        Ok(())
    }

    fn put(&self, key: &[u8], value: &[u8], only_new: bool) -> Result<()> {
        let set = match self.conversion {
            Some(way) => match (way.entry)(key, value) {
                Some((key, value)) => self.to.set(&key, &value, only_new),
                None => return Ok(()),
            },
            None => self.to.set(key, value, only_new),
        };
        match set {
            Ok(_whether_it_was_new) => Ok(()),
            Err(Errno::E2BIG) => {
                Err(KernelError::new(self.what(), Errno::E2BIG).with_remedy("it holds more than the new one takes"))
            }
            Err(errno) => Err(KernelError::new(self.what(), errno)),
        }
    }

    fn what(&self) -> String {
        format!("copy map {}", self.name)
    }
}

/// The maps that `plan` keeps, with their pins.
pub(super) fn kept(plan: &Plan, old: &Pins) -> Vec<(&'static str, PathBuf)> {
    plan.names(|fate| matches!(fate, Fate::Kept)).into_iter().map(|name| (name, old.map(name))).collect()
}

/// The maps that it copies.
pub(super) fn copied(plan: &Plan, old: &Pins, new: &Pins) -> Result<Vec<Copying>> {
    let mut copies = Vec::new();
    for (name, fate) in &plan.fates {
        if let Fate::Copied(conversion) = fate {
            let from = conversion.map_or(version_of(name), |way| way.from);
            let from = old.maps().join(map_pin(name, from));
            copies.push(Copying::new(name, &from, &new.map(name), *conversion)?);
        }
    }
    // What is small, and about connections that are just beginning, before what is large.
    copies.sort_by_key(|copy| matches!(copy.name, names::FLOWS4 | names::FLOWS6));
    Ok(copies)
}
