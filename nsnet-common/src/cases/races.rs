//! What two frames at once make of the tables: one flow is made once, a port is given once, what is dead is removed once,
//! and what is held is counted (conformance P7). What leaves has a way back.

use crate::conntrack;
use crate::datagram::Datagram;
use crate::layout::NetworkId;
use crate::memory::MemoryTables;
use crate::packet::Buffer;
use crate::verdict::{DropReason, Egress, Verdict};
use crate::wire::IpProtocol;

use super::check::NOON;
use super::race::{Ended, every_order};
use super::sequence::{Step, flaw};
use super::talk::{ACK, L4, RST, SYN, Talk};
use super::world::{self, BLUE, LIME};

const FIRST_SYN: L4 = L4::Tcp(SYN, 100, 0, 0);
const SECOND: L4 = L4::Tcp(SYN | ACK, 9000, 101, 0);
const THIRD: L4 = L4::Tcp(ACK, 101, 9001, 0);
/// One for each way of holding a port, and each family: IPv4 or not, and what is sent.
const ALL: [(bool, L4); 4] = [(true, FIRST_SYN), (true, L4::Udp), (true, L4::Sctp), (false, L4::Udp)];
const FAMILIES: [bool; 2] = [true, false];
/// Another host afar.
const AFAR_2: ([u8; 4], [u8; 16]) = ([198, 51, 100, 10], [0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa]);
/// When whatever there was is dead, its port's rest over.
const LATER: u32 = 500;

/// Young entries, established ones, and entries of mappings.
type Counts = (usize, usize, usize);

/// Two frames, and what they come upon.
struct Race {
    name: String,
    before: Vec<Step>,
    frames: [Step; 2],
    /// What may be in the tables afterwards.
    left: Vec<Counts>,
    /// Why the second one of the two may be dropped.
    drops: Vec<DropReason>,
}

impl Race {
    fn new(name: impl Into<String>, frames: [Step; 2]) -> Self {
        Self { name: name.into(), before: Vec::new(), frames, left: Vec::new(), drops: Vec::new() }
    }

    /// These frames come first.
    fn after(self, before: impl Into<Vec<Step>>) -> Self {
        Self { before: before.into(), ..self }
    }

    /// One of the two may find the other one at work on what is dead, and be dropped.
    fn busy(mut self) -> Self {
        self.drops.push(DropReason::Busy);
        self
    }

    fn dropped(mut self, reason: DropReason) -> Self {
        self.drops.push(reason);
        self
    }

    /// The tables hold this afterwards.
    fn leaves(mut self, counts: Counts) -> Self {
        self.left.push(counts);
        self
    }

    fn tables(&self) -> MemoryTables {
        let mut tables = world::tables(NOON);
        for step in &self.before {
            step.prepare(&mut tables);
            let (outcome, _) = step.run(&tables);
            assert!(matches!(outcome, Ok(Verdict::Deliver(_))), "{}: {outcome:?}", self.name);
        }
        self.frames.iter().for_each(|step| step.prepare(&mut tables));
        tables
    }

    fn run(&self, changes: usize) -> u32 {
        let [a, b] = &self.frames;
        every_order(
            changes,
            || self.tables(),
            [a, b],
            |order, ended| {
                if let Some(fault) = self.fault(&ended) {
                    panic!(
                        "{}, {order}: {fault}\nyoung {:#?}\nestablished {:#?}\nmappings {:#?}\nusage {:?}",
                        self.name, ended.tables.young, ended.tables.flows, ended.tables.mappings, ended.tables.usage
                    );
                }
            },
        )
    }

    fn fault(&self, ended: &Ended) -> Option<String> {
        let Ended { tables, frames } = ended;
        let counts = (tables.young.borrow().len(), tables.flows.borrow().len(), tables.mappings.borrow().len());
        let dropped: Vec<DropReason> =
            tables.drops.borrow().keys().filter_map(|(_, code)| DropReason::from_code(*code)).collect();
        if let Some(flaw) = flaw(tables) {
            return Some(flaw);
        }
        if !tables.locks.borrow().is_empty() {
            return Some("an endpoint is locked for ever".to_owned());
        }
        if !self.left.contains(&counts) {
            return Some(format!("{counts:?} are left, dropped {dropped:?}"));
        }
        let drops: u64 = tables.drops.borrow().values().map(|traffic| traffic.packets).sum();
        if drops > 1 || dropped.iter().any(|reason| !self.drops.contains(reason)) {
            return Some(format!("dropped: {dropped:?}"));
        }
        frames.iter().find_map(|(outcome, bytes)| match outcome {
            Ok(Verdict::Deliver(Egress::Uplink(_) | Egress::Neighbour(_))) => no_way_back(bytes, tables),
            _ => None,
        })
    }
}

/// Why the answer to a frame that has left would not come back to a namespace.
fn no_way_back(frame: &[u8], tables: &MemoryTables) -> Option<String> {
    let mut left = Datagram::EMPTY;
    left.read(&Buffer::new(frame), NetworkId::OUTSIDE, tables).unwrap();
    // An answer to an echo is read as one: its identifier is the receiver's.
    let mut key = left.key.turned(NetworkId::OUTSIDE);
    if matches!(key.protocol(), IpProtocol::ICMP | IpProtocol::ICMPV6) {
        (key.source_port, key.destination_port) = ([0; 2], left.key.source_port);
    }
    (!conntrack::is_known(&key, tables)).then(|| format!("it left, and no flow that lives has its answer: {key:?}"))
}

/// Runs races, and says how many orders there were.
fn run(races: impl IntoIterator<Item = Race>, changes: usize) {
    let (mut count, mut orders) = (0, 0);
    for race in races {
        orders += race.run(changes);
        count += 1;
    }
    println!("{count} races, {orders} orders");
    assert!(orders > 100 * count, "too few to have been tried one by one");
}

fn red(is_v4: bool) -> Talk {
    Talk::red(is_v4, 3000, 4000)
}

fn is_mapped(l4: L4) -> bool {
    matches!(l4, L4::Udp | L4::Ping)
}

fn each(make: impl Fn(bool, L4) -> Vec<Race>) -> Vec<Race> {
    ALL.into_iter().flat_map(|(is_v4, l4)| make(is_v4, l4)).collect()
}

/// Two packets of one new flow, or of one socket to two hosts.
#[test]
fn one_flow_and_one_mapping_are_made() {
    let mut races = each(|is_v4, l4| {
        let (red, other) = (red(is_v4), red(is_v4).with(AFAR_2.0, AFAR_2.1));
        let mappings = if is_mapped(l4) { 2 } else { 0 };
        vec![
            Race::new(format!("IPv4 {is_v4}, {l4:?} twice"), [red.sends(l4), red.sends(l4)]).leaves((2, 0, mappings)),
            Race::new(format!("IPv4 {is_v4}, {l4:?} to two hosts"), [red.sends(l4), other.sends(l4)])
                .leaves((4, 0, mappings)),
        ]
    });
    for is_v4 in FAMILIES {
        let mut talk = Talk::masqueraded(&BLUE, is_v4, 443, 5555);
        talk.near.1 = 8443;
        let name = format!("IPv4 {is_v4}, published");
        races.push(Race::new(name, [talk.comes(FIRST_SYN), talk.comes(FIRST_SYN)]).leaves((2, 0, 0)));
    }
    run(races, 2);
}

/// Two namespaces that want the same port: each gets one of its own. Where ports are not changed the second is refused.
#[test]
fn a_port_is_given_once() {
    let races = each(|is_v4, l4| {
        let (red, blue) = (red(is_v4), Talk::masqueraded(&BLUE, is_v4, 3000, 4000));
        let lime = Talk::masqueraded(&LIME, is_v4, 3000, 4000);
        let keeps = matches!(l4, L4::Sctp | L4::Other);
        let mapped = is_mapped(l4);
        let judged = |race: Race| {
            let rests = usize::from(mapped && !race.before.is_empty());
            match keeps {
                true => race.dropped(DropReason::Protocol).leaves((2, 0, 0)),
                false if mapped => race.leaves((4, 0, 4 + rests)).leaves((4, 0, 4)),
                false => race.leaves((4, 0, 0)),
            }
        };
        // The port was red's, and is free again; its old entries are in the way.
        let dead = |race: Race| {
            let race = judged(race.after([red.sends(l4)]).busy());
            if mapped { race.leaves((2, 0, 4)).leaves((2, 0, 3)) } else { race.leaves((2, 0, 0)) }
        };
        vec![
            judged(Race::new(format!("IPv4 {is_v4}, {l4:?} of two"), [red.sends(l4), blue.sends(l4)])),
            dead(Race::new(
                format!("IPv4 {is_v4}, {l4:?} of its last owner and another"),
                [red.sends(l4).after(LATER), blue.sends(l4)],
            )),
            dead(Race::new(
                format!("IPv4 {is_v4}, {l4:?} of two others"),
                [lime.sends(l4).after(LATER), blue.sends(l4)],
            )),
        ]
    });
    run(races, 2);
}

/// A flow whose time is over, of which two packets come at once.
#[test]
fn what_is_dead_is_removed_once() {
    let races = each(|is_v4, l4| {
        let red = red(is_v4);
        let left = if is_mapped(l4) { (2, 0, 2) } else { (2, 0, 0) };
        let again = || [red.sends(l4).after(LATER), red.sends(l4)];
        let mut races = vec![
            Race::new(format!("IPv4 {is_v4}, {l4:?} after an unanswered one"), again()).after([red.sends(l4)]).busy(),
        ];
        if l4 != FIRST_SYN {
            let answered = || [red.sends(l4), red.comes(l4.answer())];
            races.push(
                Race::new(format!("IPv4 {is_v4}, {l4:?} after an answered one"), again()).after(answered()).busy(),
            );
        }
        races.into_iter().map(|race| race.leaves(left)).collect()
    });
    run(races, 2);
}

/// Two packets that both make a flow an established one: it is one once, and at no moment none.
#[test]
fn a_flow_is_promoted_once_and_never_lost() {
    let mut races = each(|is_v4, l4| {
        if l4 == FIRST_SYN {
            return Vec::new();
        }
        let red = red(is_v4);
        let left = if is_mapped(l4) { (0, 2, 2) } else { (0, 2, 0) };
        let answer = || red.comes(l4.answer());
        vec![
            Race::new(format!("IPv4 {is_v4}, {l4:?}, two answers"), [answer(), answer()]).after([red.sends(l4)]),
            Race::new(format!("IPv4 {is_v4}, {l4:?}, an answer and one more"), [answer(), red.sends(l4)])
                .after([red.sends(l4)]),
        ]
        .into_iter()
        .map(|race| race.leaves(left))
        .collect()
    });
    for is_v4 in FAMILIES {
        let red = red(is_v4);
        let answered = || [red.sends(FIRST_SYN), red.comes(SECOND)];
        races.push(
            Race::new(format!("IPv4 {is_v4}, the last step twice"), [red.sends(THIRD), red.sends(THIRD)])
                .after(answered())
                .leaves((0, 2, 0)),
        );
        let data = red.comes(L4::Tcp(ACK, 9001, 101, 10));
        races.push(
            Race::new(format!("IPv4 {is_v4}, the last step and data"), [red.sends(THIRD), data])
                .after(answered())
                .leaves((0, 2, 0))
                // Each met the other's half, and both took theirs back: the next one promotes it.
                .leaves((2, 0, 0)),
        );
    }
    run(races, 3);
}

/// A connection that a RST has ended, and a SYN that begins it anew.
#[test]
fn a_connection_is_reopened_once() {
    let mut races = Vec::new();
    for is_v4 in FAMILIES {
        let (red, blue) = (red(is_v4), Talk::masqueraded(&BLUE, is_v4, 3000, 4000));
        let reset = || [red.sends(FIRST_SYN), red.comes(SECOND), red.sends(THIRD), red.comes(L4::Tcp(RST, 9001, 0, 0))];
        let refused = || [red.sends(FIRST_SYN), red.comes(L4::Tcp(RST | ACK, 0, 101, 0))];
        let syn = || red.sends(L4::Tcp(SYN, 5000, 0, 0));
        races.extend([
            Race::new("two SYNs after a RST", [syn(), syn()]).after(reset()).leaves((2, 0, 0)),
            Race::new("two SYNs after a refusal", [syn(), syn()]).after(refused()).leaves((2, 0, 0)),
            Race::new("a SYN, and another namespace's", [syn(), blue.sends(FIRST_SYN)])
                .after(reset())
                .leaves((4, 0, 0)),
            Race::new("a SYN, and what was under way", [syn(), red.comes(L4::Tcp(ACK, 9001, 101, 10))])
                .after(reset())
                .leaves((2, 0, 0)),
            Race::new("a RST and an answer", [red.comes(L4::Tcp(RST | ACK, 0, 101, 0)), red.comes(SECOND)])
                .after([red.sends(FIRST_SYN)])
                .leaves((2, 0, 0)),
        ]);
    }
    run(races, 2);
}

/// What a race that is lost would look like: the judge sees it.
#[test]
fn the_judge_sees_what_is_wrong() {
    let race = Race::new("one", [red(true).sends(L4::Udp), red(true).sends(L4::Udp)]).leaves((1, 0, 2));
    let tables = race.tables();
    let (outcome, frame) = race.frames[0].run(&tables);
    let end = (outcome, frame.bytes);
    let key = *tables.young.borrow().keys().find(|key| key.side == NetworkId::OUTSIDE).unwrap();
    tables.young.borrow_mut().remove(&key);
    let ended = Ended { tables, frames: [end.clone(), end] };
    assert!(race.fault(&ended).unwrap().contains("without its other direction"));
    assert!(no_way_back(&ended.frames[0].1, &ended.tables).is_some());
}
