//! The maps, as the core sees them. Lookups return copies: an entry may change under a reference at any time.

use crate::layout::{AddressKey, ForeignKey, Network, NetworkId, Port, PortId, Station, StationKey};
use crate::verdict::DropReason;
use crate::wire::{IpAddress, Mac};

/// A handle on the tables: lookups, inserts, counters and the clock.
///
/// Methods take `&self` because several CPUs share the tables; each single call is atomic, two calls are not.
pub trait Tables: Copy {
    /// The port with this number.
    fn port(&self, id: PortId) -> Option<Port>;

    /// The network with this number.
    fn network(&self, id: NetworkId) -> Option<Network>;

    /// The port that has `key.ip` in `key.network`.
    fn address(&self, key: &AddressKey) -> Option<PortId>;

    /// The network whose subnet holds `ip`, by longest prefix.
    fn subnet(&self, ip: IpAddress) -> Option<NetworkId>;

    /// The hashed FDB's entry.
    fn station(&self, key: &StationKey) -> Option<Station>;

    /// Inserts or replaces an entry of the hashed FDB; `false` when the table is full.
    fn set_station(&self, key: &StationKey, station: &Station) -> bool;

    /// Removes an entry of the hashed FDB.
    fn remove_station(&self, key: &StationKey);

    /// The foreign MAC in one of a port's places.
    fn foreign(&self, key: &ForeignKey) -> Option<Mac>;

    /// Puts a foreign MAC into one of a port's places; `false` when the table is full.
    fn set_foreign(&self, key: &ForeignKey, mac: Mac) -> bool;

    /// When the flood allowance of a port is used up to: monotonic clock, nanoseconds.
    fn flood_clock(&self, port: PortId) -> u64;

    /// Sets [`Tables::flood_clock`].
    fn set_flood_clock(&self, port: PortId, clock: u64);

    /// The monotonic clock, nanoseconds.
    fn now(&self) -> u64;

    /// Calls `step` until it returns `false`, at most `times` times.
    ///
    /// Not a `for`: the verifier walks every round of a loop, and refuses one of thousands of rounds. `bpf_loop`
    /// (Linux 5.17, commit e6f2dd0f8067) has it look at the step once.
    fn repeat<F: FnMut() -> bool>(&self, times: u32, step: &mut F);

    /// Counts a frame that came from `port`.
    fn count_received(&self, port: PortId, length: u32);

    /// Counts a frame, or a copy of one, that went to `port`.
    fn count_sent(&self, port: PortId, length: u32);

    /// Counts a frame from `port` that was flooded.
    fn count_flooded(&self, port: PortId);

    /// Counts a question from `port` that was answered here.
    fn count_answered(&self, port: PortId);

    /// Counts a dropped frame: at the port it came from or, for one copy of a flooded frame, the port it was for.
    fn count_dropped(&self, port: PortId, reason: DropReason, length: u32);
}
