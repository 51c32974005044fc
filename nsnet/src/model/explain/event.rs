//! What the core does to the tables, call by call.

use nsnet_common::layout::{
    AddressKey, Flow, FlowKey, FlowState, ForeignKey, Fragment, FragmentKey, HeldKey, Holding, Mapping, MappingKey,
    Network, NetworkId, Policy, Port, PortId, Publish, Station, StationKey, Usage,
};
use nsnet_common::tables::{Age, Hop, Inserted, Reclaim, Route, Stage};
use nsnet_common::verdict::DropReason;
use nsnet_common::wire::{IpAddress, IpProtocol, Mac};

/// One call.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Another part of the core is at work from here on.
    Stage(Stage),
    /// Something was looked up.
    Lookup(Lookup),
    /// Something was changed.
    Change(Change),
    /// Something was counted.
    Count(Count),
}

/// What was looked up, and what was found.
#[derive(Clone, Debug, PartialEq)]
pub enum Lookup {
    /// A port by its number.
    Port(PortId, Option<Port>),
    /// The head of a network's list of ports.
    Network(NetworkId, Option<Network>),
    /// Who has an address in a network.
    Address(AddressKey, Option<PortId>),
    /// In which network's subnet an address is.
    Subnet(IpAddress, Option<NetworkId>),
    /// The hashed FDB.
    Station(StationKey, Option<Station>),
    /// One of a port's places for foreign MACs.
    Foreign(ForeignKey, Option<Mac>),
    /// Until when a port's flood allowance is used up, nanoseconds.
    FloodClock(PortId, u64),
    /// Until when a port's allowance of ICMP errors is used up, nanoseconds.
    RefusalClock(PortId, u64),
    /// A network's policy.
    Policy(NetworkId, Option<Policy>),
    /// A flow.
    Flow(Age, FlowKey, Option<Flow>),
    /// A mapped endpoint.
    Mapping(MappingKey, Option<Mapping>),
    /// What a port holds of what is limited.
    Usage(PortId, Usage),
    /// The place of a published port.
    Published(IpProtocol, IpAddress, u16, Option<u32>),
    /// A published entry by its place.
    Publish(u32, Option<Publish>),
    /// What the host's routes say to packets that came in by an interface.
    Route(u32, FlowKey, Route, Hop),
    /// Whether a socket of the host's takes such packets.
    Socket(FlowKey, bool),
    /// What a first fragment said.
    Fragment(FragmentKey, Option<Fragment>),
    /// What a port has waiting.
    Holding(PortId, Holding),
    /// A fragment that waits: its packet, and when it came.
    Held(HeldKey, Option<(FragmentKey, u32)>),
    /// The uplink of an interface.
    Uplink(u32, Option<PortId>),
    /// Whether an address is the host's.
    Local(IpAddress, bool),
    /// Whether an address is a broadcast address of the host's subnets.
    Broadcast(IpAddress, bool),
}

/// What was changed, and whether that could be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// An entry of the hashed FDB was written.
    Station(StationKey, Station, bool),
    /// One was removed.
    NoStation(StationKey),
    /// A place for a foreign MAC was taken.
    Foreign(ForeignKey, Mac, bool),
    /// Something was taken from a port's flood allowance.
    FloodClock(PortId, u64),
    /// An ICMP error was taken from a port's allowance.
    RefusalClock(PortId, u64),
    /// One direction of a flow was entered.
    Flow(Age, FlowKey, Flow, Inserted),
    /// One was removed, if it was there.
    NoFlow(Age, FlowKey, bool),
    /// A flow was noted to be in use, at this second.
    Seen(Age, FlowKey, u32),
    /// It has come to this state, with this timeout.
    State(Age, FlowKey, FlowState, u32),
    /// TCP has come to these numbers.
    Tcp(Age, FlowKey, u32, u32),
    /// It was given another way out.
    Way(Age, FlowKey, Hop),
    /// What is dead in a table was cleared away, unless that was done just before.
    Reclaim(Reclaim),
    /// Half of a mapping was entered.
    Mapping(MappingKey, Mapping, Inserted),
    /// One was kept until this second.
    Refresh(MappingKey, u32),
    /// One was removed, if it was there.
    NoMapping(MappingKey, bool),
    /// A port holds so many flows and ports more.
    Usage(PortId, i64, i64),
    /// What a first fragment says was remembered.
    Fragment(FragmentKey, Fragment),
    /// A port has this waiting.
    Holding(PortId, Holding),
    /// A fragment was put into a place.
    Hold(HeldKey, FragmentKey, bool),
    /// One was taken out, to come in again, if it was there.
    LetGo(HeldKey, bool),
    /// One was taken out, if it was there.
    Free(HeldKey, bool),
}

/// What was counted. Lengths are bytes of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// A frame from a port.
    Received(PortId, u32),
    /// That was taken back: it comes in once more.
    NotReceived(PortId, u32),
    /// A frame to a port.
    Sent(PortId, u32),
    /// A frame from a port that was flooded.
    Flooded(PortId),
    /// A question from a port that was answered.
    Answered(PortId),
    /// A frame from an uplink that was left to the host.
    Passed(PortId),
    /// A frame that was dropped.
    Dropped(PortId, DropReason, u32),
    /// That was taken back: it only waited.
    NotDropped(PortId, DropReason, u32),
    /// A flow was made for a published entry.
    PublishHit(u32),
}
