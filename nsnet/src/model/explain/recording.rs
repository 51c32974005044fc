//! Tables that note what they are asked. The core runs over these as over any others.

use std::cell::RefCell;

use nsnet_common::capture::Moment;
use nsnet_common::layout::{
    About, AddressKey, Flow, FlowKey, FlowState, ForeignKey, Fragment, FragmentKey, HeldKey, Holding, Mapping,
    MappingKey, Network, NetworkId, Original, OriginalKey, Policy, Port, PortId, Publish, Station, StationKey, Usage,
};
use nsnet_common::packet::Packet;
use nsnet_common::tables::{Age, FlowEntry, Hop, Inserted, Reclaim, Route, Stage, Tables};
use nsnet_common::verdict::DropReason;
use nsnet_common::wire::{IpAddress, IpProtocol, Mac};

use super::event::{Change, Count, Event, Lookup};

/// `tables`, with every call noted in `events`.
#[derive(Clone, Copy, Debug)]
pub struct Recording<'a, T> {
    tables: T,
    events: &'a RefCell<Vec<Event>>,
}

impl<'a, T> Recording<'a, T> {
    /// Notes in `events` what is done to `tables`.
    pub fn new(tables: T, events: &'a RefCell<Vec<Event>>) -> Self {
        Self { tables, events }
    }

    fn looked(&self, lookup: Lookup) {
        self.events.borrow_mut().push(Event::Lookup(lookup));
    }

    fn changed(&self, change: Change) {
        self.events.borrow_mut().push(Event::Change(change));
    }

    fn counted(&self, count: Count) {
        self.events.borrow_mut().push(Event::Count(count));
    }
}

/// A flow, with what is done to it noted.
#[derive(Clone, Copy, Debug)]
pub struct RecordedFlow<'a, F> {
    entry: F,
    age: Age,
    key: FlowKey,
    events: &'a RefCell<Vec<Event>>,
}

impl<F> RecordedFlow<'_, F> {
    fn changed(&self, change: Change) {
        self.events.borrow_mut().push(Event::Change(change));
    }
}

impl<F: FlowEntry> FlowEntry for RecordedFlow<'_, F> {
    fn about(self) -> About {
        self.entry.about()
    }

    fn read(self, flow: &mut Flow) {
        self.entry.read(flow);
    }

    fn set_seen(self, now: u32) {
        self.changed(Change::Seen(self.age, self.key, now));
        self.entry.set_seen(now);
    }

    fn set_state(self, state: FlowState, timeout: u32) {
        self.changed(Change::State(self.age, self.key, state, timeout));
        self.entry.set_state(state, timeout);
    }

    fn set_tcp(self, next: u32, acknowledged: u32) {
        self.changed(Change::Tcp(self.age, self.key, next, acknowledged));
        self.entry.set_tcp(next, acknowledged);
    }

    fn set_hop(self, hop: &Hop) {
        self.changed(Change::Way(self.age, self.key, *hop));
        self.entry.set_hop(hop);
    }
}

impl<'a, T: Tables> Tables for Recording<'a, T> {
    type Flow = RecordedFlow<'a, T::Flow>;

    fn enter(&self, stage: Stage) {
        self.events.borrow_mut().push(Event::Stage(stage));
    }

    fn port(&self, id: PortId) -> Option<Port> {
        let found = self.tables.port(id);
        self.looked(Lookup::Port(id, found));
        found
    }

    fn network(&self, id: NetworkId) -> Option<Network> {
        let found = self.tables.network(id);
        self.looked(Lookup::Network(id, found));
        found
    }

    fn address(&self, key: &AddressKey) -> Option<PortId> {
        let found = self.tables.address(key);
        self.looked(Lookup::Address(*key, found));
        found
    }

    fn subnet(&self, ip: IpAddress) -> Option<NetworkId> {
        let found = self.tables.subnet(ip);
        self.looked(Lookup::Subnet(ip, found));
        found
    }

    fn station(&self, key: &StationKey) -> Option<Station> {
        let found = self.tables.station(key);
        self.looked(Lookup::Station(*key, found));
        found
    }

    fn set_station(&self, key: &StationKey, station: &Station) -> bool {
        let is_in = self.tables.set_station(key, station);
        self.changed(Change::Station(*key, *station, is_in));
        is_in
    }

    fn remove_station(&self, key: &StationKey) {
        self.changed(Change::NoStation(*key));
        self.tables.remove_station(key);
    }

    fn foreign(&self, key: &ForeignKey) -> Option<Mac> {
        let found = self.tables.foreign(key);
        self.looked(Lookup::Foreign(*key, found));
        found
    }

    fn set_foreign(&self, key: &ForeignKey, mac: Mac) -> bool {
        let is_in = self.tables.set_foreign(key, mac);
        self.changed(Change::Foreign(*key, mac, is_in));
        is_in
    }

    fn flood_clock(&self, port: PortId) -> u64 {
        let clock = self.tables.flood_clock(port);
        self.looked(Lookup::FloodClock(port, clock));
        clock
    }

    fn set_flood_clock(&self, port: PortId, clock: u64) {
        self.changed(Change::FloodClock(port, clock));
        self.tables.set_flood_clock(port, clock);
    }

    fn refusal_clock(&self, port: PortId) -> u64 {
        let clock = self.tables.refusal_clock(port);
        self.looked(Lookup::RefusalClock(port, clock));
        clock
    }

    fn set_refusal_clock(&self, port: PortId, clock: u64) {
        self.changed(Change::RefusalClock(port, clock));
        self.tables.set_refusal_clock(port, clock);
    }

    fn now(&self) -> u64 {
        self.tables.now()
    }

    fn repeat<F: FnMut() -> bool>(&self, times: u32, step: &mut F) {
        self.tables.repeat(times, step);
    }

    fn count_received(&self, port: PortId, length: u32) {
        self.counted(Count::Received(port, length));
        self.tables.count_received(port, length);
    }

    fn count_sent(&self, port: PortId, length: u32) {
        self.counted(Count::Sent(port, length));
        self.tables.count_sent(port, length);
    }

    fn count_flooded(&self, port: PortId) {
        self.counted(Count::Flooded(port));
        self.tables.count_flooded(port);
    }

    fn count_answered(&self, port: PortId) {
        self.counted(Count::Answered(port));
        self.tables.count_answered(port);
    }

    fn count_dropped(&self, port: PortId, reason: DropReason, length: u32, frame: &impl Packet) {
        self.counted(Count::Dropped(port, reason, length));
        self.tables.count_dropped(port, reason, length, frame);
    }

    fn show(&self, moment: Moment, frame: &impl Packet) {
        self.tables.show(moment, frame);
    }

    fn count_passed(&self, uplink: PortId) {
        self.counted(Count::Passed(uplink));
        self.tables.count_passed(uplink);
    }

    fn seconds(&self) -> u32 {
        self.tables.seconds()
    }

    fn policy(&self, id: NetworkId) -> Option<Policy> {
        let found = self.tables.policy(id);
        self.looked(Lookup::Policy(id, found));
        found
    }

    fn read_policy(&self, id: NetworkId, policy: &mut Policy) -> Result<(), DropReason> {
        let outcome = self.tables.read_policy(id, policy);
        self.looked(Lookup::Policy(id, outcome.is_ok().then_some(*policy)));
        outcome
    }

    fn flow(&self, age: Age, key: &FlowKey) -> Option<Self::Flow> {
        let found = self.tables.flow(age, key);
        let flow = found.map(|entry| {
            let mut flow = Flow::EMPTY;
            entry.read(&mut flow);
            flow
        });
        self.looked(Lookup::Flow(age, *key, flow));
        found.map(|entry| RecordedFlow { entry, age, key: *key, events: self.events })
    }

    fn insert_flow(&self, age: Age, key: &FlowKey, flow: &Flow) -> Inserted {
        let inserted = self.tables.insert_flow(age, key, flow);
        self.changed(Change::Flow(age, *key, *flow, inserted));
        inserted
    }

    fn remove_flow(&self, age: Age, key: &FlowKey) -> bool {
        let was_there = self.tables.remove_flow(age, key);
        self.changed(Change::NoFlow(age, *key, was_there));
        was_there
    }

    fn reclaim(&self, table: Reclaim) {
        self.changed(Change::Reclaim(table));
        self.tables.reclaim(table);
    }

    fn mapping(&self, key: &MappingKey) -> Option<Mapping> {
        let found = self.tables.mapping(key);
        self.looked(Lookup::Mapping(*key, found));
        found
    }

    fn insert_mapping(&self, key: &MappingKey, mapping: &Mapping) -> Inserted {
        let inserted = self.tables.insert_mapping(key, mapping);
        self.changed(Change::Mapping(*key, *mapping, inserted));
        inserted
    }

    fn refresh_mapping(&self, key: &MappingKey, until: u32) {
        self.changed(Change::Refresh(*key, until));
        self.tables.refresh_mapping(key, until);
    }

    fn remove_mapping(&self, key: &MappingKey) -> bool {
        let was_there = self.tables.remove_mapping(key);
        self.changed(Change::NoMapping(*key, was_there));
        was_there
    }

    // Of the run alone: what it removes is removed nowhere else.
    fn lock(&self, key: &MappingKey) -> bool {
        self.tables.lock(key)
    }

    fn unlock(&self, key: &MappingKey) {
        self.tables.unlock(key);
    }

    fn add_usage(&self, owner: PortId, flows: i64, ports: i64) {
        self.changed(Change::Usage(owner, flows, ports));
        self.tables.add_usage(owner, flows, ports);
    }

    fn usage(&self, owner: PortId) -> Usage {
        let usage = self.tables.usage(owner);
        self.looked(Lookup::Usage(owner, usage));
        usage
    }

    fn published(&self, protocol: IpProtocol, ip: IpAddress, port: u16) -> Option<u32> {
        let found = self.tables.published(protocol, ip, port);
        self.looked(Lookup::Published(protocol, ip, port, found));
        found
    }

    fn publish(&self, place: u32) -> Option<Publish> {
        let found = self.tables.publish(place);
        self.looked(Lookup::Publish(place, found));
        found
    }

    fn count_publish_hit(&self, place: u32) {
        self.counted(Count::PublishHit(place));
        self.tables.count_publish_hit(place);
    }

    fn route(&self, from: u32, key: &FlowKey, hop: &mut Hop) -> Route {
        let route = self.tables.route(from, key, hop);
        self.looked(Lookup::Route(from, *key, route, *hop));
        route
    }

    fn has_socket(&self, key: &FlowKey) -> bool {
        let has_socket = self.tables.has_socket(key);
        self.looked(Lookup::Socket(*key, has_socket));
        has_socket
    }

    fn keyed_hash(&self, key: &FlowKey, turn: u32) -> u32 {
        self.tables.keyed_hash(key, turn)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        let found = self.tables.fragment(key);
        self.looked(Lookup::Fragment(*key, found));
        found
    }

    fn forget_fragment(&self, key: &FragmentKey) -> bool {
        self.tables.forget_fragment(key)
    }

    fn set_fragment(&self, key: &FragmentKey, fragment: &Fragment) {
        self.changed(Change::Fragment(*key, *fragment));
        self.tables.set_fragment(key, fragment);
    }

    fn holding(&self, port: PortId) -> Holding {
        let holding = self.tables.holding(port);
        self.looked(Lookup::Holding(port, holding));
        holding
    }

    fn set_holding(&self, port: PortId, holding: Holding) {
        self.changed(Change::Holding(port, holding));
        self.tables.set_holding(port, holding);
    }

    fn hold(&self, place: HeldKey, key: &FragmentKey, seen: u32, frame: &impl Packet) -> bool {
        let is_in = self.tables.hold(place, key, seen, frame);
        self.changed(Change::Hold(place, *key, is_in));
        is_in
    }

    fn held(&self, place: HeldKey) -> Option<(FragmentKey, u32)> {
        let found = self.tables.held(place);
        self.looked(Lookup::Held(place, found));
        found
    }

    fn let_go(&self, place: HeldKey, frame: &mut impl Packet) -> bool {
        let was_there = self.tables.let_go(place, frame);
        self.changed(Change::LetGo(place, was_there));
        was_there
    }

    fn free(&self, place: HeldKey) -> bool {
        let was_there = self.tables.free(place);
        self.changed(Change::Free(place, was_there));
        was_there
    }

    fn take_back_received(&self, port: PortId, length: u32) {
        self.counted(Count::NotReceived(port, length));
        self.tables.take_back_received(port, length);
    }

    fn take_back_dropped(&self, port: PortId, reason: DropReason, length: u32) {
        self.counted(Count::NotDropped(port, reason, length));
        self.tables.take_back_dropped(port, reason, length);
    }

    fn uplink(&self, ifindex: u32) -> Option<PortId> {
        let found = self.tables.uplink(ifindex);
        self.looked(Lookup::Uplink(ifindex, found));
        found
    }

    fn is_local(&self, ip: IpAddress) -> bool {
        let is_local = self.tables.is_local(ip);
        self.looked(Lookup::Local(ip, is_local));
        is_local
    }

    fn is_broadcast(&self, ip: IpAddress) -> bool {
        let is_broadcast = self.tables.is_broadcast(ip);
        self.looked(Lookup::Broadcast(ip, is_broadcast));
        is_broadcast
    }

    // What follows is for the hooks at sockets, where no frame comes by.

    fn any_local<F: FnMut(IpAddress) -> bool>(&self, is_it: &mut F) -> bool {
        self.tables.any_local(is_it)
    }

    fn original(&self, key: &OriginalKey) -> Option<Original> {
        self.tables.original(key)
    }

    fn set_original(&self, key: &OriginalKey, original: &Original) {
        self.tables.set_original(key, original);
    }

    fn forget_original(&self, key: &OriginalKey) {
        self.tables.forget_original(key);
    }
}
