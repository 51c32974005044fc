//! The programs that other programs call: which one stands at which place of the program array.

use aya::maps::{Array, Map, MapData, ProgramArray};
use nsnet_common::layout::names;

use super::dataplane::{Dataplane, refused};
use super::error::Result;
use super::maps::{Maps, found};
use crate::model::drift::Difference;

/// Places that hold another program than the pinned one, or none.
pub(super) fn differences(dataplane: &Dataplane) -> Result<Vec<Difference>> {
    // A program array tells the numbers of its programs, as an array of numbers does (bpf_fd_array_map_lookup_elem).
    let stages: Array<MapData, u32> = Maps::of(dataplane).open(names::STAGES, Map::Array)?;
    let mut differences = Vec::new();
    for (place, name) in names::CALLED.into_iter().enumerate() {
        let (should, what) = (dataplane.program_id(name)?, format!("program of stage {name}"));
        match found(stages.get(&(place as u32), 0), names::STAGES)? {
            Some(is) => differences.extend(Difference::between(what, &is, &should)),
            None => differences.push(Difference::missing(what)),
        }
    }
    Ok(differences)
}

/// Enters the pinned programs where others look for them.
pub(super) fn mend(dataplane: &Dataplane) -> Result<()> {
    let mut stages: ProgramArray<MapData> = Maps::of(dataplane).open(names::STAGES, Map::ProgramArray)?;
    for (place, name) in names::CALLED.into_iter().enumerate() {
        let what = |error| refused(format!("enter program {name} into {}", names::STAGES), error);
        let program = dataplane.pinned(name)?;
        let fd = program.fd().map_err(|error| refused(format!("use program {name}"), error))?;
        stages.set(place as u32, fd, 0).map_err(what)?;
    }
    Ok(())
}
