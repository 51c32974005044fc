//! The maps, as the core sees them. Lookups return copies: an entry may change under a reference at any time.

use crate::capture::Moment;
use crate::layout::{
    About, AddressKey, Flow, FlowKey, FlowState, ForeignKey, Fragment, FragmentKey, HeldKey, Holding, Mapping,
    MappingKey, Network, NetworkId, Original, OriginalKey, Policy, Port, PortId, Publish, Station, StationKey,
};
use crate::packet::Packet;
use crate::verdict::DropReason;
use crate::wire::{IpAddress, IpProtocol, Mac};

/// Which of the two tables of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// Not established yet: the oldest go when there are too many.
    Young,
    /// Established: nothing that is alive is ever pushed out.
    Grown,
}

/// A table that fills up with what is dead, until somebody needs the room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reclaim {
    /// Established flows of IPv4.
    Flows4,
    /// Established flows of IPv6.
    Flows6,
    /// Mapped endpoints.
    Mappings,
}

/// What came of an insert that must not replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is in.
    Yes,
    /// There is one already.
    Exists,
    /// The table is full.
    Full,
}

/// An entry of a table of flows, found once and then read and written in place.
///
/// Writes are single aligned words: another CPU sees the old or the new one.
pub trait FlowEntry: Copy {
    /// A copy of all but the addresses.
    fn about(self) -> About;

    /// Copies the entry to `flow`; in place, to spare the stack.
    fn read(self, flow: &mut Flow);

    /// Sets [`About::seen`].
    fn set_seen(self, now: u32);

    /// Sets the state, and how long the flow lives in it.
    fn set_state(self, state: FlowState, timeout: u32);

    /// Sets what TCP has come to in this direction.
    fn set_tcp(self, next: u32, acknowledged: u32);

    /// Sets the way out.
    fn set_hop(self, hop: &Hop);
}

/// The way to a next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Hop {
    /// Index of the interface.
    pub ifindex: u32,
    /// The uplink that this is; [`PortId::NONE`] for another interface.
    pub uplink: PortId,
    /// Longest packet on the way, bytes.
    pub mtu: u16,
    /// MAC of the next hop; zero when the kernel is still to ask for it.
    pub to_mac: Mac,
    /// MAC of the interface.
    pub from_mac: Mac,
    /// The address that the host itself would send from; `::` when it has none.
    pub source: IpAddress,
    /// Whose MAC it is, or would be: the router's, or the destination itself.
    pub next: IpAddress,
}

/// What the host's routes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Route {
    /// By the hop.
    Forward = 0,
    /// The destination is the host.
    Local = 1,
    /// No route, or one that says so.
    Unreachable = 2,
    /// A route that forbids it.
    Prohibited = 3,
    /// A route that drops it without a word.
    Blackhole = 4,
}

impl Route {
    /// Fails with the reason when packets are not to be sent on.
    #[inline(always)]
    pub(crate) fn forward(self) -> Result<(), DropReason> {
        match self {
            Self::Forward => Ok(()),
            Self::Local | Self::Unreachable => Err(DropReason::NoRoute),
            Self::Prohibited => Err(DropReason::ProhibitedRoute),
            Self::Blackhole => Err(DropReason::BlackholeRoute),
        }
    }
}

/// A part of the core, as far as it asks the tables for something of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Is the sender who it says it is?
    Guard,
    /// Which port has the destination?
    Switch,
    /// ARP and neighbour discovery: is it answered here?
    Answer,
    /// Who gets a copy?
    Flood,
    /// What is in the packet?
    Packet,
    /// Which flow is it of?
    Conntrack,
    /// Which packet is the fragment of?
    Fragment,
    /// Which flow is the ICMP error about?
    Related,
    /// Where does it lead, when it is of no flow?
    Lead,
    /// May it open one?
    Open,
    /// Is it to a published port?
    Publish,
    /// Where do the host's routes send it?
    Route,
    /// Which external port does it get, or which endpoint is it to?
    Nat,
    /// May it pass, and what does it become?
    Send,
    /// Which pieces is it cut into?
    Cut,
    /// Is the sender told?
    Refuse,
}

/// A handle on the tables: lookups, inserts, counters and the clock.
///
/// Methods take `&self` because several CPUs share the tables; each single call is atomic, two calls are not.
pub trait Tables: Copy {
    /// A flow that was found.
    type Flow: FlowEntry;

    /// Tells which part of the core asks from here on. Nobody listens in the kernel, and nothing is left of it there;
    /// `nsnet explain` does.
    #[inline(always)]
    fn enter(&self, _stage: Stage) {}

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

    /// When the allowance of errors to a port's senders is used up to: monotonic clock, nanoseconds.
    fn refusal_clock(&self, port: PortId) -> u64;

    /// Sets [`Tables::refusal_clock`].
    fn set_refusal_clock(&self, port: PortId, clock: u64);

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

    /// Counts a dropped frame: at the port it came from or, for one copy of a flooded frame, the port it was for. Shows it,
    /// too, and keeps it as the last one of the reason: some hundred times a second at most, for each port.
    fn count_dropped(&self, port: PortId, reason: DropReason, length: u32, frame: &impl Packet);

    /// Shows the frame to who captures, if anybody does.
    fn show(&self, moment: Moment, frame: &impl Packet);

    /// Counts a frame that came in by an uplink and is left to the host.
    fn count_passed(&self, uplink: PortId);

    /// The monotonic clock, seconds; may be a few milliseconds late.
    fn seconds(&self) -> u32;

    /// What a network's packets may do beyond it.
    fn policy(&self, id: NetworkId) -> Option<Policy>;

    /// Copies what a network's packets may do beyond it to `policy`; in place, to spare the stack.
    fn read_policy(&self, id: NetworkId, policy: &mut Policy) -> Result<(), DropReason>;

    /// The flow of packets with this tuple.
    fn flow(&self, age: Age, key: &FlowKey) -> Option<Self::Flow>;

    /// Enters one direction of a flow, unless there is one with this key.
    fn insert_flow(&self, age: Age, key: &FlowKey, flow: &Flow) -> Inserted;

    /// Removes one direction of a flow; `false` when it was gone.
    fn remove_flow(&self, age: Age, key: &FlowKey) -> bool;

    /// Makes room in a table by removing what is dead, if that was not tried just now.
    fn reclaim(&self, table: Reclaim);

    /// The endpoint that this one is mapped to.
    fn mapping(&self, key: &MappingKey) -> Option<Mapping>;

    /// Enters one half of a mapping, unless there is one.
    fn insert_mapping(&self, key: &MappingKey, mapping: &Mapping) -> Inserted;

    /// Has a mapping live until then, seconds.
    fn refresh_mapping(&self, key: &MappingKey, until: u32);

    /// Removes one half of a mapping; `false` when it was gone.
    fn remove_mapping(&self, key: &MappingKey) -> bool;

    /// Takes an endpoint for oneself, to remove what is dead of it; `false` while another CPU has it.
    fn lock(&self, key: &MappingKey) -> bool;

    /// Gives it back.
    fn unlock(&self, key: &MappingKey);

    /// Adds to what `owner` holds, flows and ports. Negative numbers give back.
    fn add_usage(&self, owner: PortId, flows: i64, ports: i64);

    /// What `owner` holds.
    fn usage(&self, owner: PortId) -> crate::layout::Usage;

    /// The place in the table of published entries of one for this very address; `::` and 0.0.0.0 are addresses here.
    fn published(&self, protocol: IpProtocol, ip: IpAddress, port: u16) -> Option<u32>;

    /// A published entry.
    fn publish(&self, place: u32) -> Option<Publish>;

    /// Counts a flow that was made for a published entry.
    fn count_publish_hit(&self, place: u32);

    /// Asks the host's routes where a packet of this tuple, come in by the interface `from`, goes.
    fn route(&self, from: u32, key: &FlowKey, hop: &mut Hop) -> Route;

    /// Whether a socket of the host's would take a packet of this tuple.
    fn has_socket(&self, key: &FlowKey) -> bool;

    /// A number that cannot be guessed and is always the same for the same tuple and `turn`.
    fn keyed_hash(&self, key: &FlowKey, turn: u32) -> u32;

    /// What the first fragment of a packet said.
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;

    /// Remembers what the first fragment of a packet says.
    fn set_fragment(&self, key: &FragmentKey, fragment: &Fragment);

    /// Forgets what the first fragment of a packet said; `false` when it was forgotten already.
    fn forget_fragment(&self, key: &FragmentKey) -> bool;

    /// What has come by a port and waits for a first fragment.
    fn holding(&self, port: PortId) -> Holding;

    /// Sets [`Tables::holding`].
    fn set_holding(&self, port: PortId, holding: Holding);

    /// Has the frame wait in one of a port's places, in the stead of what is there; `false` when it is too long for that.
    fn hold(&self, place: HeldKey, key: &FragmentKey, seen: u32, frame: &impl Packet) -> bool;

    /// The packet and the time of the fragment in one of a port's places.
    fn held(&self, place: HeldKey) -> Option<(FragmentKey, u32)>;

    /// Makes of `frame` the one that waits in a place, which is free then; `false` when that cannot be done.
    fn let_go(&self, place: HeldKey, frame: &mut impl Packet) -> bool;

    /// Frees one of a port's places; `false` when it was free already.
    fn free(&self, place: HeldKey) -> bool;

    /// Takes back that a frame came from `port`: it comes once more.
    fn take_back_received(&self, port: PortId, length: u32);

    /// Takes back that a frame was dropped: it only waited.
    fn take_back_dropped(&self, port: PortId, reason: DropReason, length: u32);

    /// The uplink with this interface index.
    fn uplink(&self, ifindex: u32) -> Option<PortId>;

    /// Whether an address is the host's own.
    fn is_local(&self, ip: IpAddress) -> bool;

    /// Whether an address is the broadcast address of one of the host's subnets.
    fn is_broadcast(&self, ip: IpAddress) -> bool;

    /// Whether `is_it` says so of any of the host's addresses.
    fn any_local<F: FnMut(IpAddress) -> bool>(&self, is_it: &mut F) -> bool;

    /// What a socket asked for that was led elsewhere.
    fn original(&self, key: &OriginalKey) -> Option<Original>;

    /// Remembers what a socket asked for.
    fn set_original(&self, key: &OriginalKey, original: &Original);

    /// Forgets it, if it was remembered.
    fn forget_original(&self, key: &OriginalKey);
}
