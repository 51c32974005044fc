//! Ending what is dead in the dataplane's tables before somebody meets it, and counting what lives while at it.
//!
//! The dataplane decides at each lookup whether an entry is dead, and needs no sweep. But a dead entry keeps its memory, and
//! its place in its owner's quota, until somebody meets it or the table is full. A sweep goes through the tables in bounded
//! pieces; what it finds dead it only names, and the dataplane ends it ([`nsnet_common::sweep`]).

use std::collections::BTreeMap;

use aya::maps::MapData;
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use nsnet_common::layout::{
    Flow, Flow4, FlowKey, FlowKey4, FlowState, Fragment, FragmentKey, Held, HeldKey, Mapping, MappingKey, NetworkId,
    flow_flags, is_fresh, mapping_kinds, names,
};
use nsnet_common::sweep::Named;
use zerocopy::FromBytes;

use super::batch::{self, Reader};
use super::clock::seconds;
use super::dataplane::{Dataplane, refused};
use super::error::{Doing as _, Result};
use super::maps::Maps;

/// The tables in which entries die.
const MORTAL: [&str; 7] =
    [names::FLOWS4, names::FLOWS6, names::YOUNG4, names::YOUNG6, names::MAPPINGS, names::FRAGMENTS, names::HELD];

/// The other tables that can fill up.
const OTHERS: [&str; 9] = [
    names::STATIONS,
    names::FOREIGN,
    names::ADDRESSES,
    names::SUBNETS,
    names::DROPS,
    names::UPLINKS,
    names::PUBLISHED,
    names::LOCALS,
    names::ORIGINALS,
];

/// What a whole sweep has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Flows that live, by whether they are IPv4's, and by state.
    pub flows: BTreeMap<(bool, FlowState), u64>,
    /// Mappings that live.
    pub mappings: u64,
    /// How full each table was when it was read.
    pub tables: BTreeMap<&'static str, Fill>,
}

/// How full a table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Its entries, dead ones too.
    pub entries: u64,
    /// How many it may have.
    pub capacity: u64,
    /// Entries that were found dead and ended.
    pub ended: u64,
}

/// A sweep that is under way, or about to begin.
#[derive(Debug, Default)]
pub struct Sweep {
    /// The place of the table that is read, in [`MORTAL`] and [`OTHERS`] behind it.
    table: usize,
    reader: Option<Reader<MapData>>,
    tally: Tally,
}

impl Sweep {
    /// Looks at the next entries, about `limit` of them. What was found when that were the last ones.
    pub fn go_on(&mut self, dataplane: &Dataplane, limit: usize) -> Result<Option<Tally>> {
        let tables = Tables { maps: Maps::of(dataplane), broom: Broom::of(dataplane), now: seconds()? };
        let mut seen = 0;
        while seen < limit {
            let Some(name) = MORTAL.iter().chain(&OTHERS).nth(self.table).copied() else {
                let done = std::mem::take(self);
                return Ok(Some(done.tally));
            };
            if self.table < MORTAL.len() {
                seen += self.read_piece(&tables, name)?;
            } else {
                if let Some((entries, capacity)) = batch::count(&tables.maps.data(name)?, name)? {
                    self.tally.tables.insert(name, Fill { entries, capacity, ended: 0 });
                    seen += entries as usize;
                }
                self.table += 1;
            }
        }
        Ok(None)
    }

    /// Reads the next piece of a table whose entries die; how many entries that were.
    fn read_piece(&mut self, tables: &Tables, name: &'static str) -> Result<usize> {
        let (maps, now, tally) = (&tables.maps, tables.now, &mut self.tally);
        let mut piece = Piece { name, maps, reader: self.reader.take(), seen: 0, capacity: 0, dead: Vec::new() };
        let is_more = match name {
            names::FLOWS4 | names::YOUNG4 => {
                piece.read(|key: FlowKey4, flow: Flow4| flow_at(&key.into(), &flow.into(), now, tally))?
            }
            names::FLOWS6 | names::YOUNG6 => piece.read(|key: FlowKey, flow: Flow| flow_at(&key, &flow, now, tally))?,
            names::MAPPINGS => piece.read(|key: MappingKey, mapping: Mapping| {
                let lives = mapping.is_alive(now);
                let is_inner = key.kind == mapping_kinds::ENDPOINT && key.side != NetworkId::OUTSIDE;
                tally.mappings += u64::from(lives && is_inner);
                (!lives).then(|| Named::mapping(&key))
            })?,
            names::FRAGMENTS => piece.read(|key: FragmentKey, first: Fragment| {
                (!is_fresh(first.seen, now)).then(|| Named::fragment(&key))
            })?,
            _ => piece.read(|key: HeldKey, held: Held| (!is_fresh(held.seen, now)).then(|| Named::held(&key)))?,
        };
        let Piece { reader, seen, capacity, dead, .. } = piece;
        let fill = self.tally.tables.entry(name).or_default();
        fill.entries += seen as u64;
        fill.capacity = capacity;
        for named in &dead {
            fill.ended += u64::from(tables.broom.end(named)?);
        }
        self.reader = reader;
        self.table += usize::from(!is_more);
        Ok(seen)
    }
}

struct Tables {
    maps: Maps,
    broom: Broom,
    now: u32,
}

/// Some entries of one table.
struct Piece<'a> {
    name: &'static str,
    maps: &'a Maps,
    reader: Option<Reader<MapData>>,
    seen: usize,
    capacity: u64,
    dead: Vec<Named>,
}

impl Piece<'_> {
    /// Reads it; `judge` names the entries that are dead. Whether there are more.
    fn read<K: FromBytes, V: FromBytes>(&mut self, mut judge: impl FnMut(K, V) -> Option<Named>) -> Result<bool> {
        let mut reader = match self.reader.take() {
            Some(reader) => reader,
            None => Reader::of::<K, V>(self.maps.data(self.name)?, self.name)?,
        };
        let is_more = reader.read_on().doing(|| format!("read map {}", self.name))?;
        for (key, value) in reader.entries() {
            self.seen += 1;
            self.dead.extend(judge(key, value));
        }
        self.capacity = reader.capacity;
        self.reader = is_more.then_some(reader);
        Ok(is_more)
    }
}

/// Counts the flow that an entry is a direction of, once for both; names the entry when it is dead.
fn flow_at(key: &FlowKey, flow: &Flow, now: u32, tally: &mut Tally) -> Option<Named> {
    if !flow.about.is_alive(now) {
        return Some(Named::flow(key));
    }
    if !flow.about.has(flow_flags::REPLY) {
        *tally.flows.entry((key.is_v4(), flow.about.state)).or_default() += 1;
    }
    None
}

/// The program that ends what it is named.
struct Broom(Option<SchedClassifier>);

impl Broom {
    /// That of a loaded dataplane; one that was loaded by an older nsnet may have none.
    fn of(dataplane: &Dataplane) -> Self {
        Self(dataplane.pinned(names::SWEPT).ok())
    }

    /// Whether it was dead still, and is ended.
    fn end(&self, named: &Named) -> Result<bool> {
        let Some(program) = &self.0 else { return Ok(false) };
        let frame = named.frame();
        let run = TestRunOptions { data_in: Some(&frame), repeat: 1, ..TestRunOptions::new() };
        let result = program.test_run(run).map_err(|error| refused("end what is dead", error))?;
        Ok(result.return_value == 1)
    }
}
