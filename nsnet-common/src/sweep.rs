//! Ending what is dead before somebody meets it: hygiene, on behalf of a process that has the time.
//!
//! User space finds dead entries but cannot remove them safely: between its look and its removal an entry may be
//! another's, and it has no atomic addition to give an owner's quota back. So it only names an entry, in a frame that never
//! was on a wire, and this looks again and ends it as a packet that met it would.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::conntrack;
use crate::layout::{FlowKey, Fragment, FragmentKey, HeldKey, MappingKey, is_fresh};
use crate::nat;
use crate::packet::Packet;
use crate::tables::{Age, Tables};
use crate::wire::Ethernet;

/// Bytes of the longer key.
const KEY_BYTES: usize = size_of::<FlowKey>();

/// An entry that was found dead. A frame that names it has this behind an Ethernet header, whose content is not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Named {
    kind: u8,
    zero: u8,
    key: [u8; KEY_BYTES],
}

impl Named {
    const FLOW: u8 = 1;
    const MAPPING: u8 = 2;
    const FRAGMENT: u8 = 3;
    const HELD: u8 = 4;

    /// One direction of a flow, young or grown.
    pub fn flow(key: &FlowKey) -> Self {
        Self::new(Self::FLOW, key)
    }

    /// One half of a mapping, or the note that a host was spoken to.
    pub fn mapping(key: &MappingKey) -> Self {
        Self::new(Self::MAPPING, key)
    }

    /// What a first fragment said.
    pub fn fragment(key: &FragmentKey) -> Self {
        Self::new(Self::FRAGMENT, key)
    }

    /// A fragment that waits for its first one.
    pub fn held(place: &HeldKey) -> Self {
        Self::new(Self::HELD, place)
    }

    fn new(kind: u8, key: &(impl IntoBytes + Immutable)) -> Self {
        let mut named = Self { kind, zero: 0, key: [0; KEY_BYTES] };
        // It fits: the keys of both kinds are known.
        let _fits = key.write_to_prefix(&mut named.key);
        named
    }

    fn key<K: FromBytes>(&self) -> Option<K> {
        K::read_from_prefix(&self.key).ok().map(|(key, _rest)| key)
    }

    /// The frame that names the entry.
    #[cfg(any(test, feature = "std"))]
    pub fn frame(&self) -> std::vec::Vec<u8> {
        let mut frame = std::vec![0; Ethernet::LEN];
        frame.extend_from_slice(self.as_bytes());
        frame
    }
}

/// Ends what `frame` names, if it is dead. Whether it was.
#[inline(always)]
pub fn end(frame: &impl Packet, tables: impl Tables) -> bool {
    let Some(named) = frame.view::<Named>(Ethernet::LEN) else { return false };
    match named.kind {
        Named::FLOW => named.key().is_some_and(|key| {
            conntrack::end_if_dead(&key, Age::Grown, tables) || conntrack::end_if_dead(&key, Age::Young, tables)
        }),
        Named::MAPPING => named.key().is_some_and(|key| nat::end_dead(&key, tables)),
        Named::FRAGMENT => named.key().is_some_and(|key: FragmentKey| {
            let is_stale = |first: Fragment| !is_fresh(first.seen, tables.seconds());
            tables.fragment(&key).is_some_and(is_stale) && tables.forget_fragment(&key)
        }),
        Named::HELD => named.key().is_some_and(|place: HeldKey| {
            let is_stale = |(_packet, seen)| !is_fresh(seen, tables.seconds());
            tables.held(place).is_some_and(is_stale) && tables.free(place)
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros as _;

    use super::*;
    use crate::layout::{Flow, Mapping, NetworkId, Port, PortId, Usage, flow_flags};
    use crate::memory::MemoryTables;
    use crate::packet::Buffer;
    use crate::wire::{IpAddress, IpProtocol, Mac};

    const OWNER: PortId = PortId(3);
    const INSIDE: NetworkId = NetworkId(1);

    fn sweep(named: Named, tables: &MemoryTables) -> bool {
        end(&Buffer::new(named.frame()), tables)
    }

    fn key() -> FlowKey {
        let (client, server) = (IpAddress::v4([10, 1, 0, 2]), IpAddress::v4([192, 0, 2, 7]));
        FlowKey::new(INSIDE, IpProtocol::UDP, (client, [1, 2]), (server, [0, 80]), true)
    }

    /// A flow both directions of which were seen at 100 and live for 60 seconds; the answers' at `answered`.
    fn with_flow(tables: &MemoryTables, answered: u32) -> FlowKey {
        let key = key();
        let mut flow = Flow { source: IpAddress::v4([198, 51, 100, 1]), destination: key.destination, ..Flow::EMPTY };
        (flow.about.seen, flow.about.timeout, flow.about.owner) = (100, 60, OWNER);
        (flow.about.source_port, flow.about.destination_port) = ([9, 9], [0, 80]);
        flow.about.flags = flow_flags::POOLED;
        let answers = flow.other_key(&key);
        let mut back = Flow { source: key.destination, destination: key.source, ..flow };
        (back.about.source_port, back.about.destination_port) = ([0, 80], [1, 2]);
        (back.about.flags, back.about.other_side) = (flow_flags::POOLED | flow_flags::REPLY, INSIDE);
        back.about.seen = answered;
        tables.flows.borrow_mut().extend([(key, flow), (answers, back)]);
        tables.usage.borrow_mut().insert(OWNER, Usage { flows: 5, ports: 5 });
        answers
    }

    fn at(seconds: u32) -> MemoryTables {
        let mut tables = MemoryTables::default();
        tables.ports.insert(OWNER, Port::new(OWNER, INSIDE, Mac([2; 6]), 1500, 0));
        // In the middle of it: whole_seconds() is a little late.
        tables.clock.set(u64::from(seconds) * 1_000_000_000 + 500_000_000);
        tables
    }

    #[test]
    fn a_dead_flow_ends_by_either_direction_and_its_quota_is_given_back_once() {
        for by_answers in [false, true] {
            let tables = at(161);
            let answers = with_flow(&tables, 100);
            let (first, second) = if by_answers { (answers, key()) } else { (key(), answers) };
            assert!(sweep(Named::flow(&first), &tables));
            assert!(tables.flows.borrow().is_empty());
            assert!(!sweep(Named::flow(&second), &tables));
            assert_eq!(tables.usage.borrow()[&OWNER], Usage { flows: 4, ports: 4 });
        }
    }

    #[test]
    fn either_direction_keeps_a_flow() {
        for (now, answered) in [(160, 100), (161, 140)] {
            let tables = at(now);
            let answers = with_flow(&tables, answered);
            assert!(!sweep(Named::flow(&key()), &tables) && !sweep(Named::flow(&answers), &tables));
            assert_eq!(tables.flows.borrow().len(), 2);
            assert_eq!(tables.usage.borrow()[&OWNER], Usage { flows: 5, ports: 5 });
        }
    }

    /// Both halves of a mapping of one endpoint, until these seconds.
    fn with_mapping(tables: &MemoryTables, inner: u32, outer: u32) -> [MappingKey; 2] {
        let (ip, external) = (IpAddress::v4([10, 1, 0, 2]), IpAddress::v4([198, 51, 100, 1]));
        let inside = MappingKey::inside(INSIDE, IpProtocol::UDP, ip, [1, 2], external);
        let outside = MappingKey::outside(IpProtocol::UDP, external, [9, 9]);
        let halves = [
            (inside, Mapping { ip: external, port: [9, 9], owner: OWNER, until: inner }),
            (outside, Mapping { ip, port: [1, 2], owner: OWNER, until: outer }),
        ];
        tables.mappings.borrow_mut().extend(halves);
        tables.usage.borrow_mut().insert(OWNER, Usage { flows: 0, ports: 5 });
        [inside, outside]
    }

    #[test]
    fn a_dead_mapping_ends_whole() {
        for by in [0, 1] {
            let tables = at(200);
            let halves = with_mapping(&tables, 199, 199);
            assert!(sweep(Named::mapping(&halves[by]), &tables));
            assert!(tables.mappings.borrow().is_empty());
            assert!(!sweep(Named::mapping(&halves[1 - by]), &tables));
            assert_eq!(tables.usage.borrow()[&OWNER].ports, 4);
        }
    }

    #[test]
    fn either_half_keeps_a_mapping() {
        for (inner, outer) in [(300, 199), (199, 300), (300, 300)] {
            let tables = at(200);
            for key in with_mapping(&tables, inner, outer) {
                assert!(!sweep(Named::mapping(&key), &tables), "{inner} {outer} {key:?}");
            }
            assert_eq!((tables.mappings.borrow().len(), tables.usage.borrow()[&OWNER].ports), (2, 5));
        }
    }

    #[test]
    fn what_is_left_of_a_mapping_ends() {
        // The outer half is what counts against the quota.
        for (kept, ports) in [(0, 5), (1, 4)] {
            let tables = at(200);
            let halves = with_mapping(&tables, 199, 199);
            tables.mappings.borrow_mut().remove(&halves[1 - kept]);
            assert!(sweep(Named::mapping(&halves[kept]), &tables));
            assert_eq!((tables.mappings.borrow().len(), tables.usage.borrow()[&OWNER].ports), (0, ports));
        }
    }

    #[test]
    fn a_note_ends_without_a_quota() {
        let tables = at(200);
        let note = MappingKey::spoken_to(IpProtocol::UDP, IpAddress::v4([192, 0, 2, 7]), [9, 9]);
        for (until, ends) in [(300, false), (199, true)] {
            tables.mappings.borrow_mut().insert(note, Mapping { until, ..Mapping::EMPTY });
            assert_eq!(sweep(Named::mapping(&note), &tables), ends);
        }
        assert!(tables.usage.borrow().is_empty());
    }

    #[test]
    fn stale_fragments_end() {
        let (packet, place) = (FragmentKey::new(&key(), [0, 0, 0, 7]), HeldKey { port: OWNER, place: 5 });
        let first = Fragment { seen: 100, ..Fragment::new_zeroed() };
        for (now, ends) in [(130, false), (131, true)] {
            let tables = at(now);
            tables.fragments.borrow_mut().insert(packet, first);
            tables.held.borrow_mut().insert(place, (packet, 100, std::vec![0; 60]));
            assert_eq!(sweep(Named::fragment(&packet), &tables), ends);
            assert_eq!(sweep(Named::held(&place), &tables), ends);
            assert_eq!((tables.fragments.borrow().is_empty(), tables.held.borrow().is_empty()), (ends, ends));
        }
    }

    #[test]
    fn what_is_not_there_or_not_named_is_nothing() {
        let tables = at(200);
        assert!(!sweep(Named::flow(&key()), &tables));
        assert!(!end(&Buffer::new([0; 20]), &tables));
    }
}
