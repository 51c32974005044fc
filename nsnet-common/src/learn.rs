//! Foreign MACs: stations behind a port that are not the port's own, such as a bridge or VMs inside a namespace.
//!
//! Learned only on ports that allow it. Each port has places of its own for what it learns, so a flood of MACs on one
//! port cannot push out what another has learned; entries age without any process running, by being found old.

use crate::layout::{FOREIGN_PER_PORT, ForeignKey, Port, REFRESH_NS, Station, StationKey, port_of_mac};
use crate::tables::Tables;
use crate::verdict::DropReason;
use crate::wire::Mac;

/// Notes that `mac` is behind `port`, a port that learns.
#[inline(never)]
pub fn learn(mac: Mac, port: &Port, tables: impl Tables) -> Result<(), DropReason> {
    if tables.port(port_of_mac(mac)).is_some_and(|owner| owner.mac() == mac) {
        return Err(DropReason::SpoofedMac);
    }
    let now = tables.now();
    let key = StationKey { network: port.network(), mac };
    match tables.station(&key) {
        Some(known) if known.is_fixed() => {
            return if known.port() == port.id() { Ok(()) } else { Err(DropReason::SpoofedMac) };
        }
        Some(known) if known.port() == port.id() => {
            // Written once a second at most: the entry is shared by all CPUs.
            if known.age(now) > REFRESH_NS && !tables.set_station(&key, &Station::learned(port.id(), now)) {
                return Err(DropReason::TableFull);
            }
            return Ok(());
        }
        _ => {}
    }
    take_place(mac, port, tables, now)?;
    if tables.set_station(&key, &Station::learned(port.id(), now)) { Ok(()) } else { Err(DropReason::TableFull) }
}

/// Finds a place for `mac`: an empty one, or one whose station has aged or moved to another port.
#[inline(always)]
fn take_place(mac: Mac, port: &Port, tables: impl Tables, now: u64) -> Result<(), DropReason> {
    let mut place = 0;
    let mut result = Err(DropReason::MacLimit);
    tables.repeat(u32::from(FOREIGN_PER_PORT), &mut || {
        let key = ForeignKey { port: port.id(), place };
        place += 1;
        if let Some(held) = tables.foreign(&key) {
            let station = StationKey { network: port.network(), mac: held };
            match tables.station(&station) {
                Some(holder) if holder.port() == port.id() && holder.is_alive(now) => {
                    if held == mac {
                        // Another CPU has learned it since we looked.
                        result = Ok(());
                    }
                    return held != mac;
                }
                Some(holder) if holder.port() == port.id() => tables.remove_station(&station),
                _ => {}
            }
        }
        result = if tables.set_foreign(&key, mac) { Ok(()) } else { Err(DropReason::TableFull) };
        false
    });
    result
}
