//! What the pinned programs were loaded with: constants in a map that only they have.

use aya::maps::{MapData, MapInfo};
use nsnet_common::layout::names;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use super::super::batch;
use super::super::dataplane::{Dataplane, Hook, Object, refused};
use super::super::error::{KernelError, Result};
use super::super::features::Features;
use super::copy::Copy;

/// The section of constants, and the map that it becomes.
const SECTION: &str = ".rodata";

/// The globals that matter to what becomes of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Globals {
    pub(super) features: Features,
    pub(super) secret: u64,
}

impl Globals {
    /// Those of the pinned programs. `probed` is for what they do not tell: programs of another build may keep them elsewhere.
    pub(super) fn of(dataplane: &Dataplane, probed: Features) -> Result<Self> {
        let bytes = constants(dataplane)?;
        let section = Section::of_object()?;
        if bytes.len() != section.length {
            return Ok(Self { features: probed, secret: 0 });
        }
        let flag = |name| Ok::<_, KernelError>(section.read::<1>(&bytes, name)? != [0]);
        let features = Features {
            redirect_peer: flag(names::USE_REDIRECT_PEER)?,
            peer_scrubs: !flag(names::SET_PACKET_TYPE)?,
            fib_source: flag(names::USE_FIB_SOURCE)?,
            set_retval: flag(names::USE_SET_RETVAL)?,
            ..probed
        };
        Ok(Self { features, secret: u64::from_ne_bytes(section.read(&bytes, names::SECRET)?) })
    }
}

/// Whether the pinned programs have the same instructions as the copy's.
pub(super) fn is_same_build(dataplane: &Dataplane, copy: &Copy) -> Result<bool> {
    for name in names::PROGRAMS {
        if dataplane.program_info(name)?.tag() != copy.program_info(name)?.tag() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The bytes of the map of constants that the pinned programs use.
fn constants(dataplane: &Dataplane) -> Result<Vec<u8>> {
    let missing = || KernelError::refused("read the programs' constants", "they have no map of the name .rodata");
    let info = dataplane.program_info(Hook::Namespace.program())?;
    let ids = info.map_ids().map_err(|error| refused("list a program's maps", error))?;
    for id in ids.unwrap_or_default() {
        let map = MapInfo::from_id(id).map_err(|error| refused("look at a program's map", error))?;
        if map.name_as_str() == Some(SECTION) {
            let map = MapData::from_id(id).map_err(|error| refused("open a program's map", error))?;
            let mut constants = Vec::new();
            // An array of one entry.
            batch::for_each_bytes(&map, SECTION, |_key, value| {
                constants = value.to_vec();
                Ok(())
            })?;
            return Ok(constants);
        }
    }
    Err(missing())
}

/// Where globals are in the section of constants, as this binary's object has it.
struct Section {
    length: usize,
    places: Vec<(String, usize)>,
}

impl Section {
    fn of_object() -> Result<Self> {
        let what = "read this nsnet's eBPF object";
        let own = Object::own()?;
        let file = object::File::parse(own.bytes()).map_err(|error| KernelError::refused(what, error))?;
        let section = file.section_by_name(SECTION);
        let section = section.ok_or_else(|| KernelError::refused(what, "it has no constants"))?;
        let symbols = file.symbols().filter(|symbol| symbol.section_index() == Some(section.index()));
        let places = symbols.filter_map(|symbol| Some((symbol.name().ok()?.to_owned(), symbol.address() as usize)));
        Ok(Self { length: section.size() as usize, places: places.collect() })
    }

    fn read<const N: usize>(&self, bytes: &[u8], name: &str) -> Result<[u8; N]> {
        let place = self.places.iter().find(|(known, _)| known == name).map(|(_, place)| *place);
        let found = place.and_then(|place| bytes.get(place..place + N)?.try_into().ok());
        found.ok_or_else(|| {
            KernelError::refused(format!("read the programs' {name}"), "the eBPF object does not have it")
        })
    }
}
