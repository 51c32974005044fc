//! Puts together what was shown before and after a change, and says what became of each packet.
//!
//! Records come out in the order in which the frames were shown; so one that waits for its other side holds back those
//! behind it, but not for long: the two are microseconds apart, or the second one was lost.

use std::collections::{HashMap, VecDeque};

use nsnet_common::capture::kinds;
use nsnet_common::verdict::DropReason;
use nsnet_common::wire::{EtherType, IpProtocol};

use super::interfaces::Interfaces;
use super::{Fate, Filter, Record, Shown, Side};
use crate::model::headers::Protocol;

/// For how long a side is waited for, nanoseconds.
const PATIENCE: u64 = 1_000_000_000;

/// What has been shown and is not complete yet.
#[derive(Debug, Default)]
pub struct Joiner {
    waiting: VecDeque<Waiting>,
    /// The place of each frame that was shown before a change, by CPU and its number there.
    open: HashMap<(u32, u64), u64>,
    /// The place of the first one that waits.
    first: u64,
    /// How many packets have got an id.
    ids: u64,
    /// The id of the last frame that was dropped on each CPU, and its number there.
    dropped: HashMap<u32, (u64, u64)>,
}

/// A record, or what is to become one.
#[derive(Debug)]
enum Waiting {
    /// Nobody wants it.
    Unwanted,
    /// It is complete.
    Ready(Box<Record>),
    /// The other side is to come.
    Before(Box<Shown>),
}

impl Joiner {
    /// Takes what was shown next.
    pub fn push(&mut self, shown: Shown, filter: &Filter, names: &Interfaces) {
        let key = (shown.event.cpu, shown.event.number);
        if shown.event.kind == kinds::BEFORE {
            self.open.insert(key, self.first + self.waiting.len() as u64);
            return self.waiting.push_back(Waiting::Before(Box::new(shown)));
        }
        let before = self.open.remove(&key).and_then(|place| self.take(place));
        match before {
            Some((place, before)) => self.push_pair(place, before, shown, filter, names),
            // The first side was before the capture began, or is lost.
            None if matches!(shown.event.kind, kinds::AFTER | kinds::AGAIN) => {}
            None => self.push_alone(shown, filter, names),
        }
    }

    /// The next record that is complete, or has waited for its other side until `now`, nanoseconds.
    pub fn pop(&mut self, now: u64, filter: &Filter, names: &Interfaces) -> Option<Record> {
        loop {
            if let Some(Waiting::Before(shown)) = self.waiting.front()
                && now.saturating_sub(shown.event.time) < PATIENCE
            {
                return None;
            }
            let next = self.waiting.pop_front()?;
            self.first += 1;
            match next {
                Waiting::Unwanted => {}
                Waiting::Ready(record) => return Some(*record),
                Waiting::Before(shown) => {
                    self.open.remove(&(shown.event.cpu, shown.event.number));
                    if filter.wants(&[&shown], names) {
                        let id = self.next_id();
                        let comment = format!("id {id} before a change; what became of it was lost");
                        return Some(record(id, Side::Before, Fate::Unknown, comment, *shown, names));
                    }
                }
            }
        }
    }

    /// What was shown before a change, and its place, which is left to be filled.
    fn take(&mut self, place: u64) -> Option<(usize, Shown)> {
        let at = usize::try_from(place.checked_sub(self.first)?).ok()?;
        let slot = self.waiting.get_mut(at)?;
        match std::mem::replace(slot, Waiting::Unwanted) {
            Waiting::Before(shown) => Some((at, *shown)),
            other @ (Waiting::Unwanted | Waiting::Ready(_)) => {
                *slot = other;
                None
            }
        }
    }

    fn push_pair(&mut self, place: usize, before: Shown, after: Shown, filter: &Filter, names: &Interfaces) {
        let is_wanted = match after.event.kind {
            // It is no frame any more.
            kinds::AGAIN => filter.wants(&[&before], names),
            _ => filter.wants(&[&before, &after], names),
        };
        if !is_wanted {
            return;
        }
        let id = self.next_id();
        let (was, becomes) = (before.headers.ends(), after.headers.ends());
        let egress = before.event.egress;
        let (first, second) = match after.event.kind {
            kinds::AGAIN => ("is cut; each piece comes in again".to_owned(), None),
            kinds::DROPPED => ("is dropped meanwhile".to_owned(), Some(dropped(&after, names))),
            _ if is_answer(&before, &after) => {
                ("asks, and is answered here".to_owned(), Some("the answer, made here".to_owned()))
            }
            _ if was == becomes => {
                let way = format!("routed to {}", names.label(egress));
                (way, Some(format!("routed from {}", names.label(before.event.ifindex))))
            }
            _ => {
                let first = format!("{was} becomes {becomes}, to {}", names.label(egress));
                (first, Some(format!("{becomes} was {was}, from {}", names.label(before.event.ifindex))))
            }
        };
        let fate = if after.event.kind == kinds::DROPPED { fate_of(&after) } else { Fate::Forwarded };
        let first = record(id, Side::Before, fate, format!("id {id} before: {first}"), before, names);
        if let Some(slot) = self.waiting.get_mut(place) {
            *slot = Waiting::Ready(Box::new(first));
        }
        if let Some(second) = second {
            let mut second = record(id, Side::After, fate, format!("id {id} after: {second}"), after, names);
            if fate == Fate::Forwarded {
                second.ifindex = egress;
            } else {
                self.dropped.insert(second.shown.event.cpu, (id, second.shown.event.number));
            }
            self.waiting.push_back(Waiting::Ready(Box::new(second)));
        }
    }

    fn push_alone(&mut self, shown: Shown, filter: &Filter, names: &Interfaces) {
        if !filter.wants(&[&shown], names) {
            return;
        }
        let last_dropped = self.dropped.get(&shown.event.cpu).filter(|(_, number)| *number == shown.event.number);
        let (id, comment) = match (shown.event.kind, last_dropped) {
            (kinds::NOTICE, Some((id, _))) => (*id, format!("id {id}: the ICMP error about it")),
            (kinds::NOTICE, None) => (self.next_id(), "the ICMP error about a packet that was dropped".to_owned()),
            (kinds::LEFT, _) => (self.next_id(), format!("to {}", names.label(shown.event.egress))),
            (kinds::FLOODED, _) => (self.next_id(), "to every port of the network".to_owned()),
            (kinds::PASSED, _) => (self.next_id(), "left to the host".to_owned()),
            (kinds::DROPPED, _) => (self.next_id(), dropped(&shown, names)),
            (kind, _) => (self.next_id(), format!("shown in an unknown moment ({kind})")),
        };
        let fate = fate_of(&shown);
        if matches!(fate, Fate::Dropped(_)) {
            self.dropped.insert(shown.event.cpu, (id, shown.event.number));
        }
        self.waiting.push_back(Waiting::Ready(Box::new(record(id, Side::Only, fate, comment, shown, names))));
    }

    fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }
}

/// A record; to the comment is added what explains the frame's look.
fn record(id: u64, side: Side, fate: Fate, comment: String, shown: Shown, names: &Interfaces) -> Record {
    let mut comment = comment;
    if shown.headers.has_partial_checksum {
        comment.push_str("; checksum not filled in yet (offload)");
    }
    if shown.event.gso_size != 0 {
        comment.push_str(&format!("; to be cut into segments of {} bytes (GSO)", shown.event.gso_size));
    }
    // One copy of a flooded frame is dropped at the port that it was for.
    let at = Some(shown.event.ifindex).filter(|_| shown.event.kind != kinds::DROPPED);
    let ifindex = at.or_else(|| names.index_of(shown.event.port)).unwrap_or(shown.event.ifindex);
    let is_inbound = side != Side::After && shown.event.kind != kinds::NOTICE && ifindex == shown.event.ifindex;
    Record { id, side, ifindex, is_inbound, fate, comment, shown }
}

fn fate_of(shown: &Shown) -> Fate {
    match shown.event.kind {
        kinds::DROPPED => Fate::Dropped(DropReason::from_code(shown.event.reason)),
        kinds::PASSED => Fate::Passed,
        _ => Fate::Forwarded,
    }
}

/// Why a frame was dropped.
fn dropped(shown: &Shown, names: &Interfaces) -> String {
    let copy = match names.index_of(shown.event.port) {
        Some(index) if index != shown.event.ifindex => format!("the copy for {} ", names.label(index)),
        _ => String::new(),
    };
    let again = match DropReason::from_code(shown.event.reason) {
        Some(DropReason::FragmentUnknown) => " It is kept for a while, and goes on when that comes.",
        _ => "",
    };
    match DropReason::from_code(shown.event.reason) {
        Some(reason) => format!("{copy}dropped, {}: {}{again}", reason.label(), reason.sentence()),
        None => format!("{copy}dropped, code-{}", shown.event.reason),
    }
}

/// Whether a question about an address (ARP, neighbour discovery) has become its answer.
fn is_answer(before: &Shown, after: &Shown) -> bool {
    let of = |shown: &Shown| shown.headers.protocol;
    let is_question = matches!(of(before), Protocol::Ethernet(EtherType::ARP) | Protocol::Ip(IpProtocol::ICMPV6));
    is_question && of(after) == of(before) && before.event.egress == before.event.ifindex
}

#[cfg(test)]
mod tests {
    use nsnet_common::layout::Event;

    use super::super::tests::shown;
    use super::*;

    fn event(kind: u16, number: u64, cpu: u32) -> Shown {
        shown(Event { kind, number, cpu, time: 1000, egress: 8, ..Event::default() })
    }

    /// The id, the side and the start of the comment of each record that these make.
    fn records(events: &[Shown], filter: &Filter) -> Vec<(u64, Side, String)> {
        let (mut joiner, names) = (Joiner::default(), Interfaces::default());
        events.iter().for_each(|event| joiner.push(event.clone(), filter, &names));
        let popped = std::iter::from_fn(|| joiner.pop(u64::MAX, filter, &names));
        let words = |record: &Record| record.comment.split([':', ',', ';']).next().unwrap_or_default().to_owned();
        popped.map(|record| (record.id, record.side, words(&record))).collect()
    }

    fn side(id: u64, side: Side, comment: &str) -> (u64, Side, String) {
        (id, side, comment.to_owned())
    }

    #[test]
    fn the_sides_are_told_by_cpu_and_number_and_keep_their_order() {
        let events = [
            event(kinds::BEFORE, 1, 0),
            event(kinds::BEFORE, 1, 1),
            event(kinds::LEFT, 2, 1),
            event(kinds::AFTER, 1, 1),
            event(kinds::AFTER, 1, 0),
        ];
        let expected = [
            side(3, Side::Before, "id 3 before"),
            side(2, Side::Before, "id 2 before"),
            side(1, Side::Only, "to interface-8"),
            side(2, Side::After, "id 2 after"),
            side(3, Side::After, "id 3 after"),
        ];
        assert_eq!(records(&events, &Filter::default()), expected);
    }

    #[test]
    fn a_side_alone_waits_and_then_says_so() {
        let (mut joiner, names, all) = (Joiner::default(), Interfaces::default(), Filter::default());
        joiner.push(event(kinds::BEFORE, 1, 0), &all, &names);
        joiner.push(event(kinds::LEFT, 2, 0), &all, &names);
        assert!(joiner.pop(1000 + PATIENCE - 1, &all, &names).is_none());
        let lost = joiner.pop(1000 + PATIENCE, &all, &names).unwrap();
        assert_eq!((lost.side, lost.fate), (Side::Before, Fate::Unknown));
        assert!(joiner.pop(1000 + PATIENCE, &all, &names).is_some());
        // The other one may come still, or be of a frame from before the capture.
        assert!(records(&[event(kinds::AFTER, 1, 0)], &all).is_empty());
    }

    #[test]
    fn an_error_is_told_with_the_packet_that_it_is_about() {
        let dropped = |number| {
            let reason = DropReason::TtlExceeded.code();
            shown(Event { kind: kinds::DROPPED, number, reason, ..Event::default() })
        };
        let events = [dropped(5), event(kinds::NOTICE, 5, 0), event(kinds::NOTICE, 6, 0)];
        let expected = [
            side(1, Side::Only, "dropped"),
            side(1, Side::Only, "id 1"),
            side(2, Side::Only, "the ICMP error about a packet that was dropped"),
        ];
        assert_eq!(records(&events, &Filter::default()), expected);
        // Changed half-way: both sides, and the reason at the second.
        let expected = [side(1, Side::Before, "id 1 before"), side(1, Side::After, "id 1 after")];
        assert_eq!(records(&[event(kinds::BEFORE, 5, 0), dropped(5)], &Filter::default()), expected);
    }

    #[test]
    fn what_is_cut_is_told_once_and_what_is_not_wanted_is_not() {
        let events = [event(kinds::BEFORE, 1, 0), event(kinds::AGAIN, 1, 0)];
        assert_eq!(records(&events, &Filter::default()), [side(1, Side::Before, "id 1 before")]);
        let nobody = Filter { port: Some(1), ..Filter::default() };
        let events = [event(kinds::BEFORE, 1, 0), event(kinds::AFTER, 1, 0), event(kinds::BEFORE, 2, 0)];
        assert!(records(&events, &nobody).is_empty());
    }
}
