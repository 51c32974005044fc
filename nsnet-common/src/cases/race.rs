//! Two frames at once, as on two CPUs: their calls on the tables in each order that there is, one order after another.
//!
//! A call on the tables is atomic, two are not ([`Tables`]). Each frame has a thread of its own, which asks before each call
//! whether it is its turn; the turns are given. So an order is the same whenever it is tried, and none is left to luck.

use std::sync::{Condvar, Mutex, MutexGuard};

use crate::capture::Moment;
use crate::layout::{
    About, AddressKey, Flow, FlowKey, FlowState, ForeignKey, Fragment, FragmentKey, HeldKey, Holding, Mapping,
    MappingKey, Network, NetworkId, Original, OriginalKey, Policy, Port, PortId, Publish, Station, StationKey, Usage,
};
use crate::memory::MemoryTables;
use crate::packet::{Buffer, Packet};
use crate::path;
use crate::scratch::Scratch;
use crate::tables::{Age, FlowEntry, Hop, Inserted, Reclaim, Route, Tables};
use crate::verdict::{DropReason, Outcome};
use crate::wire::{IpAddress, IpProtocol, Mac};

use super::Hook;
use super::check::ifindex_of;
use super::sequence::Step;

/// What became of two frames.
pub(super) struct Ended {
    /// The tables afterwards.
    pub(super) tables: MemoryTables,
    /// The end of each, and its bytes then.
    pub(super) frames: [(Outcome, Vec<u8>); 2],
}

/// Has both frames come in in every order of their calls that changes from one to the other up to `changes` times before one
/// of them is over. Returns how many orders there are.
pub(super) fn every_order(
    changes: usize,
    tables: impl Fn() -> MemoryTables,
    steps: [&Step; 2],
    mut judge: impl FnMut(&str, Ended),
) -> u32 {
    let mut orders = 0;
    for first in [0, 1] {
        let mut turns = vec![1; changes];
        loop {
            let (ended, used_up) = run(tables(), steps, first, &turns);
            judge(&format!("{} begins, turns {turns:?}", ["A", "B"][first]), ended);
            orders += 1;
            // The last turn that was used up may be longer. Behind one that was not, all orders are the same.
            let Some(longer) = turns[..used_up].last_mut() else { break };
            *longer += 1;
            turns[used_up..].fill(1);
        }
    }
    orders
}

/// Runs both frames; how many turns they used up.
fn run(tables: MemoryTables, steps: [&Step; 2], first: usize, turns: &[u32]) -> (Ended, usize) {
    let turn = Turn { whose: first, calls: 0, turns: turns.to_vec(), used_up: 0, is_over: [false; 2] };
    let both = Both { tables: Mutex::new(tables), turn: Mutex::new(turn), changed: Condvar::new() };
    let frames = std::thread::scope(|scope| {
        let both = &both;
        let threads = [0, 1].map(|me| {
            scope.spawn(move || {
                let mut frame = Buffer { gso_size: steps[me].gso_size, ..Buffer::new(steps[me].frame.clone()) };
                let outcome = come_in(steps[me], &mut frame, Racer { both, me });
                both.end(me);
                (outcome, frame.bytes)
            })
        });
        threads.map(|thread| thread.join().unwrap())
    });
    let used_up = both.turn.into_inner().unwrap().used_up;
    (Ended { tables: both.tables.into_inner().unwrap(), frames }, used_up)
}

fn come_in(step: &Step, frame: &mut Buffer, tables: Racer<'_>) -> Outcome {
    let mut scratch = Scratch::default();
    let first = match step.hook {
        Hook::Namespace => path::from_namespace(frame, step.port, tables),
        Hook::Uplink => {
            let ifindex = ifindex_of(step.port, &tables.both.lock());
            path::from_uplink(frame, ifindex, &mut scratch, tables)
        }
        Hook::Host | Hook::Refused(_) => panic!("no flow begins there"),
    };
    path::complete(frame, step.port, first, &mut scratch, tables)
}

/// What two frames share.
struct Both {
    tables: Mutex<MemoryTables>,
    turn: Mutex<Turn>,
    changed: Condvar,
}

/// Whose turn it is.
struct Turn {
    whose: usize,
    /// How many calls of this turn were made.
    calls: u32,
    /// How many calls each turn has; after the last one the frames go on to their ends.
    turns: Vec<u32>,
    /// How many turns were used up.
    used_up: usize,
    is_over: [bool; 2],
}

impl Both {
    fn lock(&self) -> MutexGuard<'_, MemoryTables> {
        self.tables.lock().unwrap()
    }

    /// Waits until the next call is `me`'s.
    fn wait(&self, me: usize) {
        let mut turn = self.turn.lock().unwrap();
        loop {
            if turn.whose != me {
                turn = self.changed.wait(turn).unwrap();
                continue;
            }
            let is_used_up = turn.turns.get(turn.used_up).is_some_and(|calls| turn.calls == *calls);
            if !is_used_up {
                turn.calls += 1;
                return;
            }
            turn.used_up += 1;
            turn.calls = 0;
            if !turn.is_over[1 - me] {
                turn.whose = 1 - me;
                self.changed.notify_all();
            }
        }
    }

    /// `me` makes no more calls.
    fn end(&self, me: usize) {
        let mut turn = self.turn.lock().unwrap();
        turn.is_over[me] = true;
        turn.whose = 1 - me;
        // The other one is not held up any more.
        let used_up = turn.used_up;
        turn.turns.truncate(used_up);
        self.changed.notify_all();
    }
}

/// The tables, as one of the frames has them.
#[derive(Clone, Copy)]
struct Racer<'a> {
    both: &'a Both,
    me: usize,
}

impl Racer<'_> {
    /// A call that the other frame may come before or behind.
    fn shared<R>(self, call: impl FnOnce(&MemoryTables) -> R) -> R {
        self.both.wait(self.me);
        call(&self.both.lock())
    }

    /// One that is the same at any time: of what only the control plane writes, and of what each CPU has for itself.
    fn settled<R>(self, call: impl FnOnce(&MemoryTables) -> R) -> R {
        call(&self.both.lock())
    }
}

/// A flow that was found. One that is gone meanwhile reads as it was, and what is written to it is lost.
#[derive(Clone, Copy)]
struct RacerFlow<'a> {
    tables: Racer<'a>,
    age: Age,
    key: FlowKey,
    was: Flow,
}

impl RacerFlow<'_> {
    fn read_now(self) -> Flow {
        self.tables.shared(|tables| {
            let mut flow = self.was;
            if let Some(entry) = tables.flow(self.age, &self.key) {
                entry.read(&mut flow);
            }
            flow
        })
    }

    fn change(self, change: impl FnOnce(crate::memory::MemoryFlow<'_>)) {
        self.tables.shared(|tables| tables.flow(self.age, &self.key).map(change));
    }
}

impl FlowEntry for RacerFlow<'_> {
    fn about(self) -> About {
        self.read_now().about
    }

    fn read(self, flow: &mut Flow) {
        *flow = self.read_now();
    }

    fn set_seen(self, now: u32) {
        self.change(|entry| entry.set_seen(now));
    }

    fn set_state(self, state: FlowState, timeout: u32) {
        self.change(|entry| entry.set_state(state, timeout));
    }

    fn set_tcp(self, next: u32, acknowledged: u32) {
        self.change(|entry| entry.set_tcp(next, acknowledged));
    }

    fn set_hop(self, hop: &Hop) {
        self.change(|entry| entry.set_hop(hop));
    }
}

/// Methods that are those of the tables in memory, in their turn (`shared`) or at once (`settled`).
macro_rules! as_in_memory {
    ($($how:ident fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(fn $name(&self, $($argument: $type),*) $(-> $result)? {
            self.$how(|tables| tables.$name($($argument),*))
        })*
    };
}

impl<'a> Tables for Racer<'a> {
    type Flow = RacerFlow<'a>;

    fn flow(&self, age: Age, key: &FlowKey) -> Option<Self::Flow> {
        self.shared(|tables| {
            let mut was = Flow::EMPTY;
            tables.flow(age, key)?.read(&mut was);
            Some(RacerFlow { tables: *self, age, key: *key, was })
        })
    }

    fn repeat<F: FnMut() -> bool>(&self, times: u32, step: &mut F) {
        let _ended_at = (0..times).find(|_| !step());
    }

    fn any_local<F: FnMut(IpAddress) -> bool>(&self, is_it: &mut F) -> bool {
        self.settled(|tables| tables.any_local(is_it))
    }

    fn hold(&self, place: HeldKey, key: &FragmentKey, seen: u32, frame: &impl Packet) -> bool {
        self.shared(|tables| tables.hold(place, key, seen, frame))
    }

    fn let_go(&self, place: HeldKey, frame: &mut impl Packet) -> bool {
        self.shared(|tables| tables.let_go(place, frame))
    }

    fn count_dropped(&self, port: PortId, reason: DropReason, length: u32, frame: &impl Packet) {
        self.settled(|tables| tables.count_dropped(port, reason, length, frame));
    }

    fn show(&self, moment: Moment, frame: &impl Packet) {
        self.settled(|tables| tables.show(moment, frame));
    }

    as_in_memory! {
        shared fn insert_flow(age: Age, key: &FlowKey, flow: &Flow) -> Inserted;
        shared fn remove_flow(age: Age, key: &FlowKey) -> bool;
        shared fn mapping(key: &MappingKey) -> Option<Mapping>;
        shared fn insert_mapping(key: &MappingKey, mapping: &Mapping) -> Inserted;
        shared fn refresh_mapping(key: &MappingKey, until: u32);
        shared fn remove_mapping(key: &MappingKey) -> bool;
        shared fn lock(key: &MappingKey) -> bool;
        shared fn unlock(key: &MappingKey);
        shared fn add_usage(owner: PortId, flows: i64, ports: i64);
        shared fn usage(owner: PortId) -> Usage;
        shared fn fragment(key: &FragmentKey) -> Option<Fragment>;
        shared fn set_fragment(key: &FragmentKey, fragment: &Fragment);
        shared fn holding(port: PortId) -> Holding;
        shared fn set_holding(port: PortId, holding: Holding);
        shared fn held(place: HeldKey) -> Option<(FragmentKey, u32)>;
        shared fn free(place: HeldKey) -> bool;
        shared fn reclaim(table: Reclaim);
        settled fn port(id: PortId) -> Option<Port>;
        settled fn network(id: NetworkId) -> Option<Network>;
        settled fn address(key: &AddressKey) -> Option<PortId>;
        settled fn subnet(ip: IpAddress) -> Option<NetworkId>;
        settled fn station(key: &StationKey) -> Option<Station>;
        settled fn set_station(key: &StationKey, station: &Station) -> bool;
        settled fn remove_station(key: &StationKey);
        settled fn foreign(key: &ForeignKey) -> Option<Mac>;
        settled fn set_foreign(key: &ForeignKey, mac: Mac) -> bool;
        settled fn flood_clock(port: PortId) -> u64;
        settled fn set_flood_clock(port: PortId, clock: u64);
        settled fn refusal_clock(port: PortId) -> u64;
        shared fn forget_fragment(key: &FragmentKey) -> bool;
        settled fn set_refusal_clock(port: PortId, clock: u64);
        settled fn now() -> u64;
        settled fn count_received(port: PortId, length: u32);
        settled fn count_sent(port: PortId, length: u32);
        settled fn count_flooded(port: PortId);
        settled fn count_answered(port: PortId);
        settled fn count_passed(uplink: PortId);
        settled fn seconds() -> u32;
        settled fn policy(id: NetworkId) -> Option<Policy>;
        settled fn read_policy(id: NetworkId, policy: &mut Policy) -> Result<(), DropReason>;
        settled fn published(protocol: IpProtocol, ip: IpAddress, port: u16) -> Option<u32>;
        settled fn publish(place: u32) -> Option<Publish>;
        settled fn count_publish_hit(place: u32);
        settled fn route(from: u32, key: &FlowKey, hop: &mut Hop) -> Route;
        settled fn has_socket(key: &FlowKey) -> bool;
        settled fn keyed_hash(key: &FlowKey, turn: u32) -> u32;
        settled fn take_back_received(port: PortId, length: u32);
        settled fn take_back_dropped(port: PortId, reason: DropReason, length: u32);
        settled fn uplink(ifindex: u32) -> Option<PortId>;
        settled fn is_local(ip: IpAddress) -> bool;
        settled fn is_broadcast(ip: IpAddress) -> bool;
        settled fn original(key: &OriginalKey) -> Option<Original>;
        settled fn set_original(key: &OriginalKey, original: &Original);
        settled fn forget_original(key: &OriginalKey);
    }
}
