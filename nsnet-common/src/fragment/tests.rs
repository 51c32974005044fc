//! Fragments through the whole core, in plain memory: a namespace red and its like blue, masqueraded, and a host beyond.

use std::collections::{BTreeMap, VecDeque};
use std::vec::Vec;

use crate::checksum::Sum;
use crate::layout::flags;
use crate::layout::{
    AddressKey, FRAGMENT_TIMEOUT, HELD_PER_PORT, Network, NetworkId, Policy, Port, PortId, Traffic, policy_flags,
};
use crate::memory::MemoryTables;
use crate::packet::{Buffer, Packet};
use crate::path;
use crate::scratch::Scratch;
use crate::tables::{Hop, Route};
use crate::verdict::{DropReason, Egress, Verdict};
use crate::wire::{IpAddress, Mac};

const NETWORK: NetworkId = NetworkId(1);
const GATEWAY: PortId = PortId(1);
const RED: PortId = PortId(2);
const BLUE: PortId = PortId(3);
const UPLINK: PortId = PortId(9);
const UPLINK_IFINDEX: u32 = 7;
const BEYOND_MAC: Mac = Mac([0x02, 0xff, 0, 0, 0, 1]);

/// The six orders of three fragments.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

fn mac(port: PortId) -> Mac {
    Mac([0x02, 0, 1, 0, port.0 as u8, 0])
}

/// Address of the namespace, or whatever, behind a port.
fn ip(port: PortId, is_v4: bool) -> IpAddress {
    match (port, is_v4) {
        (UPLINK, true) => IpAddress::v4([198, 51, 100, 1]),
        (UPLINK, false) => IpAddress([0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        (port, true) => IpAddress::v4([10, 1, 0, port.0 as u8]),
        (port, false) => IpAddress([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, port.0 as u8]),
    }
}

/// The host beyond the uplink.
fn beyond(is_v4: bool) -> IpAddress {
    if is_v4 { IpAddress::v4([192, 0, 2, 7]) } else { IpAddress([0x26, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]) }
}

struct World {
    tables: MemoryTables,
    scratch: std::boxed::Box<Scratch>,
    /// Where the next frame came in by last, and what became of frames that went nowhere.
    drops: Vec<DropReason>,
}

impl World {
    fn new() -> Self {
        Self::with_uplink_mtu(1500)
    }

    fn with_uplink_mtu(mtu: u16) -> Self {
        let mut tables = MemoryTables::default();
        for (id, flags) in [(GATEWAY, flags::HOST | flags::IPV6), (RED, flags::IPV6), (BLUE, flags::IPV6)] {
            let port = Port::new(id, NETWORK, mac(id), 1500, flags);
            let port = port.with_addresses(Some(ip(id, true).low()), Some(ip(id, false).0));
            tables.ports.insert(id, port.followed_by(PortId(if id == BLUE { 0 } else { id.0 + 1 })));
            for is_v4 in [true, false] {
                tables.addresses.insert(AddressKey { network: NETWORK, ip: ip(id, is_v4) }, id);
            }
        }
        let uplink = Port::uplink(
            UPLINK,
            UPLINK_IFINDEX,
            mac(UPLINK),
            mtu,
            Some(ip(UPLINK, true).low()),
            Some(ip(UPLINK, false).0),
        );
        tables.ports.insert(UPLINK, uplink);
        tables.uplinks.insert(UPLINK_IFINDEX, UPLINK);
        tables.networks.insert(NETWORK, Network::new(GATEWAY, 3, 0));
        tables.subnets = std::vec![(IpAddress::v4([10, 1, 0, 0]), 24, NETWORK), (ip(PortId(0), false), 64, NETWORK)];
        let policy = Policy { flags: policy_flags::MASQUERADE, gateway: GATEWAY, ..Policy::DEFAULT };
        tables.policies.insert(NETWORK, policy);
        for (any, is_v4) in [(IpAddress::v4([0; 4]), true), (IpAddress::UNSPECIFIED, false)] {
            let hop = Hop {
                ifindex: UPLINK_IFINDEX,
                uplink: UPLINK,
                to_mac: BEYOND_MAC,
                from_mac: mac(UPLINK),
                source: ip(UPLINK, is_v4),
                ..Hop::default()
            };
            tables.routes.push((any, 0, Route::Forward, hop));
        }
        for is_v4 in [true, false] {
            let bits = if is_v4 { 32 } else { 128 };
            tables.routes.push((ip(UPLINK, is_v4), bits, Route::Local, Hop::default()));
            tables.locals.insert(ip(UPLINK, is_v4));
        }
        tables.clock.set(1_000_000_000_000);
        Self { tables, scratch: std::boxed::Box::default(), drops: Vec::new() }
    }

    /// Has a frame come in by `port`; what goes out for it, and where.
    fn send(&mut self, port: PortId, bytes: &[u8]) -> Vec<(Egress, Vec<u8>)> {
        let mut waiting = VecDeque::from([bytes.to_vec()]);
        let mut sent = Vec::new();
        while let Some(bytes) = waiting.pop_front() {
            let mut frame = Buffer::new(bytes);
            let tables = &self.tables;
            let scratch = &mut *self.scratch;
            let mut outcome = if port == UPLINK {
                path::from_uplink(&mut frame, UPLINK_IFINDEX, scratch, tables)
            } else {
                path::from_namespace(&mut frame, port, tables)
            };
            let end = loop {
                outcome = match outcome {
                    Ok(Verdict::Route) => path::routed(&mut frame, port, scratch, tables),
                    Ok(Verdict::Fragment) => path::fragmented(&mut frame, port, scratch, tables),
                    Ok(Verdict::Open) => path::opened(&mut frame, port, scratch, tables),
                    Ok(Verdict::Relate) => path::related(&mut frame, port, scratch, tables),
                    Ok(Verdict::Cut) => path::cut(&mut frame, port, scratch, tables),
                    end => break end,
                };
            };
            match end {
                Ok(Verdict::Deliver(egress)) => sent.push((egress, frame.bytes)),
                Ok(Verdict::Pass) => sent.push((Egress::Host(PortId::NONE), frame.bytes)),
                Ok(Verdict::Again) => waiting.extend(frame.again),
                Ok(Verdict::Refuse(reason)) | Err(reason) => self.drops.push(reason),
                other => panic!("{other:?}"),
            }
        }
        sent
    }

    fn send_all<'a>(&mut self, port: PortId, frames: impl IntoIterator<Item = &'a Vec<u8>>) -> Vec<(Egress, Vec<u8>)> {
        frames.into_iter().flat_map(|frame| self.send(port, frame)).collect()
    }

    fn wait(&self, seconds: u32) {
        self.tables.clock.set(self.tables.clock.get() + u64::from(seconds) * 1_000_000_000);
    }

    fn dropped(&self, port: PortId, reason: DropReason) -> Traffic {
        self.tables.drops.borrow().get(&(port, reason.code())).copied().unwrap_or_default()
    }

    /// Every frame that came in went out, was passed to the host, or was dropped.
    #[track_caller]
    fn adds_up(&self) {
        let counters = self.tables.counters.borrow();
        let of = |pick: fn(&crate::layout::PortCounters) -> u64| counters.values().map(pick).sum::<u64>();
        let drops: u64 = self.tables.drops.borrow().values().map(|traffic| traffic.packets).sum();
        let ends = of(|port| port.sent.packets) + of(|port| port.passed) + drops;
        assert_eq!(of(|port| port.received.packets), ends);
    }
}

/// A packet to be cut up.
#[derive(Clone, Copy)]
struct Sender {
    macs: (Mac, Mac),
    ips: (IpAddress, IpAddress),
    identification: u32,
    protocol: u8,
}

impl Sender {
    fn inside(port: PortId, is_v4: bool) -> Self {
        Self {
            macs: (mac(port), mac(GATEWAY)),
            ips: (ip(port, is_v4), beyond(is_v4)),
            identification: 0x1234,
            protocol: 17,
        }
    }

    fn outside(is_v4: bool) -> Self {
        Self {
            macs: (BEYOND_MAC, mac(UPLINK)),
            ips: (beyond(is_v4), ip(UPLINK, is_v4)),
            identification: 0x4321,
            protocol: 17,
        }
    }

    fn is_v4(&self) -> bool {
        self.ips.0.as_v4().is_some()
    }

    /// A frame with the bytes of `payload` from `from` to `to`.
    fn fragment(&self, payload: &[u8], from: usize, to: usize) -> Vec<u8> {
        let more = to < payload.len();
        let part = &payload[from..to];
        let mut frame = Vec::new();
        frame.extend(self.macs.1.0);
        frame.extend(self.macs.0.0);
        if self.is_v4() {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + part.len() as u16).to_be_bytes());
            frame.extend((self.identification as u16).to_be_bytes());
            frame.extend((u16::from(more) << 13 | (from / 8) as u16).to_be_bytes());
            frame.extend([64, self.protocol, 0, 0]);
            frame.extend(self.ips.0.low());
            frame.extend(self.ips.1.low());
            let sum = sum_of(&frame[14..34]).finish().to_be_bytes();
            frame[24..26].copy_from_slice(&sum);
        } else {
            let is_whole = from == 0 && !more;
            let length = part.len() as u16 + if is_whole { 0 } else { 8 };
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([if is_whole { self.protocol } else { 44 }, 64]);
            frame.extend(self.ips.0.0);
            frame.extend(self.ips.1.0);
            if !is_whole {
                frame.extend([self.protocol, 0]);
                frame.extend((from as u16 | u16::from(more)).to_be_bytes());
                frame.extend(self.identification.to_be_bytes());
            }
        }
        frame.extend(part);
        frame
    }

    /// The packet in three fragments.
    fn fragments(&self, payload: &[u8]) -> [Vec<u8>; 3] {
        let (one, two) = ((payload.len() / 3) & !7, (payload.len() * 2 / 3) & !7);
        [self.fragment(payload, 0, one), self.fragment(payload, one, two), self.fragment(payload, two, payload.len())]
    }

    /// A UDP datagram.
    fn udp(&self, ports: (u16, u16), length: usize) -> Vec<u8> {
        let mut datagram = Vec::new();
        datagram.extend(ports.0.to_be_bytes());
        datagram.extend(ports.1.to_be_bytes());
        datagram.extend((length as u16).to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend((8..length).map(|at| (at * 7) as u8));
        let sum = transport_sum(self.ips, self.is_v4(), &datagram).finish().to_be_bytes();
        datagram[6..8].copy_from_slice(&sum);
        datagram
    }
}

fn sum_of(bytes: &[u8]) -> Sum {
    bytes.chunks(2).fold(Sum::default(), |sum, pair| sum.bytes(pair[0], pair.get(1).copied().unwrap_or(0)))
}

fn transport_sum(ips: (IpAddress, IpAddress), is_v4: bool, bytes: &[u8]) -> Sum {
    let skip = if is_v4 { 12 } else { 0 };
    let all: Vec<u8> =
        [&ips.0.0[skip..], &ips.1.0[skip..], &[0, 17], &(bytes.len() as u16).to_be_bytes(), bytes].concat();
    sum_of(&all)
}

/// A packet put together again: addresses, number, transport header and payload.
#[derive(Debug, PartialEq, Eq)]
struct Whole {
    ips: (IpAddress, IpAddress),
    bytes: Vec<u8>,
}

impl Whole {
    fn ports(&self) -> (u16, u16) {
        let port = |at: usize| u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]);
        (port(0), port(2))
    }
}

/// Where a packet ends, once that is known, and its parts by their offsets.
type Parts = (Option<usize>, BTreeMap<usize, Vec<u8>>);

/// Does what the receiver does (RFC 791 section 3.2, RFC 8200 section 4.5), and checks each checksum.
#[track_caller]
fn put_together(frames: &[(Egress, Vec<u8>)]) -> Vec<Whole> {
    let mut packets: BTreeMap<(IpAddress, IpAddress, u32), Parts> = BTreeMap::new();
    for (_, frame) in frames {
        let packet = &frame[14..];
        let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let (ips, number, offset, more, part) = if frame[12..14] == [8, 0] {
            assert_eq!(sum_of(&packet[..20]).finish(), 0, "sum of the header");
            let address = |at: usize| IpAddress::v4(packet[at..at + 4].try_into().unwrap());
            let (number, flags, end) = (u32::from(word(4)), word(6), usize::from(word(2)));
            ((address(12), address(16)), number, usize::from(flags & 0x1fff) * 8, flags & 0x2000 != 0, &packet[20..end])
        } else {
            let address = |at: usize| IpAddress(packet[at..at + 16].try_into().unwrap());
            assert_eq!(packet[6], 44);
            let number = u32::from_be_bytes(packet[44..48].try_into().unwrap());
            let (flags, end) = (word(42), 40 + usize::from(word(4)));
            ((address(8), address(24)), number, usize::from(flags & !7), flags & 1 != 0, &packet[48..end])
        };
        let (end, parts) = packets.entry((ips.0, ips.1, number)).or_default();
        if !more {
            assert_eq!(end.replace(offset + part.len()), None, "two ends");
        }
        assert_eq!(parts.insert(offset, part.to_vec()), None, "two of offset {offset}");
    }
    let mut whole = Vec::new();
    for ((source, destination, _), (end, parts)) in packets {
        let mut bytes = Vec::new();
        for (offset, part) in parts {
            assert_eq!(offset, bytes.len(), "a part is missing");
            bytes.extend(part);
        }
        assert_eq!(end, Some(bytes.len()), "the end is missing");
        assert_eq!(transport_sum((source, destination), source.as_v4().is_some(), &bytes).finish(), 0, "sum of UDP");
        whole.push(Whole { ips: (source, destination), bytes });
    }
    whole
}

#[test]
fn fragments_leave_and_come_back_in_every_order() {
    for is_v4 in [true, false] {
        for order in ORDERS {
            for length in [40, 3000, 3001, 4100] {
                let mut world = World::new();
                let red = Sender::inside(RED, is_v4);
                let datagram = red.udp((5000, 9000), length);
                let fragments = red.fragments(&datagram);
                let sent = world.send_all(RED, order.map(|place| &fragments[place]));
                assert!(sent.iter().all(|(egress, _)| *egress == Egress::Uplink(UPLINK_IFINDEX)));
                let out = put_together(&sent);
                assert_eq!(out.len(), 1, "{order:?}");
                assert_eq!(out[0].ips, (ip(UPLINK, is_v4), beyond(is_v4)));
                assert_eq!((out[0].ports().1, &out[0].bytes[8..]), (9000, &datagram[8..]));

                let other = Sender::outside(is_v4);
                let answer = other.udp((9000, out[0].ports().0), length);
                let fragments = other.fragments(&answer);
                let sent = world.send_all(UPLINK, order.map(|place| &fragments[place]));
                assert!(sent.iter().all(|(egress, _)| *egress == Egress::Namespace(RED)));
                let back = put_together(&sent);
                assert_eq!(back.len(), 1);
                assert_eq!(back[0].ips, (beyond(is_v4), ip(RED, is_v4)));
                assert_eq!((back[0].ports(), &back[0].bytes[8..]), ((9000, 5000), &answer[8..]));
                assert!(world.tables.held.borrow().is_empty());
                world.adds_up();
                assert_eq!(world.dropped(RED, DropReason::FragmentUnknown), Traffic::default());
            }
        }
    }
}

#[test]
fn what_is_for_the_host_reaches_it_in_every_order() {
    for is_v4 in [true, false] {
        for order in ORDERS {
            let mut world = World::new();
            let red = Sender { ips: (ip(RED, is_v4), ip(UPLINK, is_v4)), ..Sender::inside(RED, is_v4) };
            let fragments = red.fragments(&red.udp((5000, 53), 3000));
            let sent = world.send_all(RED, order.map(|place| &fragments[place]));
            assert!(sent.iter().all(|(egress, _)| *egress == Egress::Host(GATEWAY)), "{sent:?}");
            assert_eq!(put_together(&sent)[0].ports(), (5000, 53));

            let other = Sender::outside(is_v4);
            let fragments = other.fragments(&other.udp((5000, 53), 3000));
            let sent = world.send_all(UPLINK, order.map(|place| &fragments[place]));
            let mut expected = order.map(|place| fragments[place].clone());
            let mut passed: Vec<_> = sent.iter().map(|(_, bytes)| bytes.clone()).collect();
            expected.sort();
            passed.sort();
            assert_eq!(passed, expected, "as they came");
            assert!(sent.iter().all(|(egress, _)| *egress == Egress::Host(PortId::NONE)));
            world.adds_up();
        }
    }
}

#[test]
fn equal_numbers_of_two_senders_are_never_mixed() {
    for is_v4 in [true, false] {
        for order in ORDERS {
            let mut world = World::new();
            let (red, blue) = (Sender::inside(RED, is_v4), Sender::inside(BLUE, is_v4));
            let datagrams = [red.udp((5000, 9000), 3000), blue.udp((5000, 9000), 3100)];
            let (of_red, of_blue) = (red.fragments(&datagrams[0]), blue.fragments(&datagrams[1]));
            let mut sent = Vec::new();
            for place in order {
                sent.extend(world.send(RED, &of_red[place]));
                sent.extend(world.send(BLUE, &of_blue[2 - place]));
            }
            let mut lengths: Vec<_> = put_together(&sent).iter().map(|whole| whole.bytes.len()).collect();
            lengths.sort_unstable();
            assert_eq!(lengths, [3000, 3100]);
        }
    }
}

#[test]
fn orphans_fill_the_places_of_their_own_port_only() {
    let mut world = World::new();
    for number in 0..1000 {
        let red = Sender { identification: number, ..Sender::inside(RED, true) };
        let [_, later, last] = red.fragments(&red.udp((5000, 9000), 3000));
        assert_eq!(world.send(RED, if number % 2 == 0 { &later } else { &last }), []);
    }
    assert_eq!(world.tables.held.borrow().len(), usize::from(HELD_PER_PORT));
    assert_eq!(world.dropped(RED, DropReason::FragmentUnknown).packets, 1000);
    world.adds_up();
    // Nobody else is hindered, nor is red itself.
    for port in [BLUE, RED] {
        let sender = Sender { identification: 0xffff, ..Sender::inside(port, true) };
        let [first, later, last] = sender.fragments(&sender.udp((5001, 9000), 3000));
        assert_eq!(put_together(&world.send_all(port, [&last, &later, &first])).len(), 1);
    }
    world.adds_up();
    assert_eq!(world.dropped(RED, DropReason::FragmentUnknown).packets, 1000);
}

#[test]
fn nothing_is_put_together_after_the_time_for_it() {
    for is_v4 in [true, false] {
        let red = Sender::inside(RED, is_v4);
        let [first, later, last] = red.fragments(&red.udp((5000, 9000), 3000));
        for (pause, expected) in [(FRAGMENT_TIMEOUT, 3), (FRAGMENT_TIMEOUT + 1, 1)] {
            let mut world = World::new();
            assert_eq!(world.send_all(RED, [&last, &later]), []);
            world.wait(pause);
            // One that is young does not make the others so.
            let young = Sender { identification: 1, ..red };
            assert_eq!(world.send(RED, &young.fragments(&red.udp((5000, 9000), 3000))[1]), []);
            assert_eq!(world.send(RED, &first).len(), expected);
            let mut world = World::new();
            assert_eq!(world.send(RED, &first).len(), 1);
            world.wait(pause);
            assert_eq!(world.send_all(RED, [&later, &last]).len(), expected - 1);
            world.adds_up();
        }
    }
}

#[test]
fn what_overlaps_a_transport_header_is_dropped() {
    for is_v4 in [true, false] {
        let mut tcp = std::vec![0; 80];
        tcp[..4].copy_from_slice(&[0x13, 0x88, 0, 80]);
        // 40 bytes of header: the last 20 are options.
        (tcp[12], tcp[13]) = (0xa0, 2);
        let red = Sender { protocol: 6, ..Sender::inside(RED, is_v4) };
        let mut world = World::new();
        // The header in two, and a later fragment over its end, with nothing before it (RFC 1858 sections 3 and 4).
        assert_eq!(world.send(RED, &red.fragment(&tcp, 0, 8)), []);
        assert_eq!(world.send(RED, &red.fragment(&tcp, 0, 32)), []);
        assert_eq!(world.send(RED, &red.fragment(&tcp, 8, 80)), []);
        assert_eq!(world.send(RED, &red.fragment(&tcp, 16, 80)), []);
        assert_eq!(world.drops, [DropReason::FragmentTiny; 4]);
        assert!(world.tables.held.borrow().is_empty());
        // Over the options is found out when the first one is known.
        assert_eq!(world.send(RED, &red.fragment(&tcp, 0, 40)).len(), 1);
        assert_eq!(world.send(RED, &red.fragment(&tcp, 24, 80)), []);
        assert_eq!(world.drops.last(), Some(&DropReason::FragmentTiny));
        assert_eq!(world.send(RED, &red.fragment(&tcp, 40, 80)).len(), 1);
        world.adds_up();
    }
}

#[test]
fn a_first_fragment_that_is_refused_takes_the_others_with_it() {
    let mut world = World::new();
    let red = Sender { ips: (ip(RED, true), IpAddress::v4([169, 254, 1, 1])), ..Sender::inside(RED, true) };
    let fragments = red.fragments(&red.udp((5000, 9000), 3000));
    assert_eq!(world.send_all(RED, [&fragments[2], &fragments[0], &fragments[1]]), []);
    assert!(world.tables.held.borrow().is_empty());
    world.adds_up();
}

#[test]
fn long_packets_are_cut_in_order() {
    for (mtu, pieces) in [(1280, 2), (600, 3), (576, 3), (1419, 2)] {
        let mut world = World::with_uplink_mtu(mtu);
        let red = Sender::inside(RED, true);
        let datagram = red.udp((5000, 9000), 1400);
        let sent = world.send(RED, &red.fragment(&datagram, 0, 1400));
        assert_eq!(sent.len(), pieces, "mtu {mtu}");
        assert!(sent.iter().all(|(_, frame)| frame.len() <= usize::from(mtu) + 14));
        let offset = |frame: &[u8]| u16::from_be_bytes([frame[20], frame[21]]) & 0x1fff;
        assert!(sent.is_sorted_by_key(|(_, frame)| offset(frame)), "in order (RFC 4787 REQ-13a)");
        assert_eq!(put_together(&sent)[0].bytes[8..], datagram[8..]);
        world.adds_up();
    }
    // As it is when it fits.
    let mut world = World::with_uplink_mtu(1420);
    let red = Sender::inside(RED, true);
    assert_eq!(world.send(RED, &red.fragment(&red.udp((5000, 9000), 1400), 0, 1400)).len(), 1);
}

#[test]
fn fragments_are_cut_again() {
    for order in ORDERS {
        let mut world = World::with_uplink_mtu(576);
        let red = Sender::inside(RED, true);
        let datagram = red.udp((5000, 9000), 4100);
        let fragments = red.fragments(&datagram);
        let sent = world.send_all(RED, order.map(|place| &fragments[place]));
        assert!(sent.iter().all(|(_, frame)| frame.len() <= 576 + 14));
        assert_eq!(put_together(&sent)[0].bytes[8..], datagram[8..]);
        world.adds_up();
    }
}

#[test]
fn what_must_not_be_cut_is_refused() {
    let refused = |frame: &[u8]| {
        let mut world = World::with_uplink_mtu(1280);
        assert_eq!(world.send(RED, frame), []);
        world.adds_up();
        world.drops
    };
    let red = Sender::inside(RED, true);
    let mut frame = red.fragment(&red.udp((5000, 9000), 1400), 0, 1400);
    frame[20] |= 0x40;
    assert_eq!(refused(&frame), [DropReason::FragmentationNeeded]);
    // Four bytes of options, which say nothing.
    frame[20] &= !0x40;
    frame[14] = 0x46;
    frame[16..18].copy_from_slice(&1424u16.to_be_bytes());
    frame.splice(34..34, [1; 4]);
    assert_eq!(refused(&frame), [DropReason::FragmentationNeeded]);
    // IPv6 is never cut on its way (RFC 8200 section 4.5).
    let red = Sender::inside(RED, false);
    assert_eq!(refused(&red.fragment(&red.udp((5000, 9000), 1400), 0, 1400)), [DropReason::FragmentationNeeded]);
    let [first, ..] = red.fragments(&red.udp((5000, 9000), 4000));
    assert_eq!(refused(&first), [DropReason::FragmentationNeeded]);
}

#[test]
fn a_frame_is_copied_out_with_zeros_behind_it() {
    let mut whole = crate::layout::Whole { bytes: [1; _] };
    assert!(Buffer::new([7; 20]).copy_out(&mut whole).is_some());
    assert_eq!(whole.bytes[18..24], [7, 7, 0, 0, 0, 1]);
    assert!(Buffer::new([7; crate::layout::WHOLE_BYTES + 1]).copy_out(&mut whole).is_none());
}
