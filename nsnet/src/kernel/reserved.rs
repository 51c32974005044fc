//! Ports that the kernel gives to no socket unasked: `net.ipv4.ip_local_reserved_ports` of the host's namespace.
//!
//! Others have ports there, too. What was there before ours is kept in the state, ours follow from it
//! ([`State::reserved_ports`]), and a change of them is a step ([`Reservation`]).

use std::fs::File;
use std::io::Read as _;

use super::error::{Doing as _, KernelError, Result};
use super::ports;
use super::sysctl;
use crate::model::plan::Reservation;
use crate::model::ports::PortSet;
use crate::model::state::State;

const KEY: &str = "net/ipv4/ip_local_reserved_ports";

/// The longest that the kernel prints: every other port, with a comma.
const LONGEST: usize = (u16::MAX as usize / 2 + 1) * "65535,".len();

/// What is reserved now.
pub fn current() -> Result<PortSet> {
    let what = || format!("read {KEY}");
    let mut file = File::open(sysctl::path_of(KEY)?).doing(what)?;
    // In one read: proc_do_large_bitmap (kernel/sysctl.c) answers with as much as fits, and has no second part.
    let mut text = vec![0; LONGEST];
    let length = file.read(&mut text).doing(what)?;
    let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned();
    text.parse().map_err(|error| KernelError::refused(what(), error))
}

/// Carries a change out.
pub(crate) fn apply(change: &Reservation) -> Result<()> {
    let current = current()?;
    let wanted = change.applied_to(&current);
    if wanted != current {
        // A line break clears the setting, an empty text would leave it.
        sysctl::write(KEY, &format!("{wanted}\n"))?;
    }
    Ok(())
}

/// Notes in the state what was there before the first port of ours, and forgets it with the last.
pub(crate) fn note_before(state: &mut State) -> Result<()> {
    match (state.reserved_ports().is_empty(), &state.reserved_before) {
        (true, _) => state.reserved_before = None,
        (false, None) => state.reserved_before = Some(current()?),
        (false, Some(_)) => {}
    }
    Ok(())
}

/// Those of `ports` that are not reserved.
pub(crate) fn missing(ports: &PortSet) -> Result<PortSet> {
    if ports.is_empty() { Ok(PortSet::default()) } else { Ok(ports.without(&current()?)) }
}

/// Fails when the host gives some of `pools` to its own sockets.
pub(crate) fn check(pools: &PortSet) -> Result<()> {
    if pools.is_empty() {
        return Ok(());
    }
    let automatic = ports::automatic()?;
    match pools.ranges().iter().find(|range| range.overlaps(automatic)) {
        Some(range) => {
            let what = format!("use ports {range} for translated flows");
            let why =
                format!("they overlap {automatic}, which net.ipv4.ip_local_port_range gives to the host's sockets");
            Err(KernelError::refused(what, why)
                .with_remedy("change the setting, or choose others with --snat-ports when the network is made"))
        }
        None => Ok(()),
    }
}
