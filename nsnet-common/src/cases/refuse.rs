//! Refused packets: who is told by which error, byte for byte, and what is dropped in silence.

use crate::layout::{Policy, REFUSAL_BURST_NS, REFUSAL_NS};
use crate::memory::MemoryTables;
use crate::verdict::{DropReason, Refusal};
use crate::wire::Mac;

use super::frame::{Frame, checksum, group_of, v4, v6};
use super::world::{
    AFAR_V4, AFAR_V6, BLUE, CYAN, End, HOST, HOST_2, HOST_3, ORANGE, RED, ROUTER_MAC, UPLINK, UPLINK_IFINDEX, WHITE,
    stranger,
};
use super::{Case, Hook, from};

/// What an error quotes at most.
const QUOTE: usize = 128;
/// Where the IP header of a frame begins.
const IP: usize = 14;

/// Every reason that is told: type and code in ICMP, and in ICMPv6.
const TOLD: [(DropReason, [u8; 2], [u8; 2]); 9] = [
    (DropReason::TtlExceeded, [11, 0], [3, 0]),
    (DropReason::NoRoute, [3, 0], [1, 0]),
    (DropReason::ProhibitedRoute, [3, 13], [1, 1]),
    (DropReason::FragmentationNeeded, [3, 4], [2, 0]),
    (DropReason::PortsExhausted, [3, 13], [1, 1]),
    (DropReason::FlowQuota, [3, 13], [1, 1]),
    (DropReason::PortQuota, [3, 13], [1, 1]),
    (DropReason::InternalNetwork, [3, 13], [1, 1]),
    (DropReason::TableFull, [3, 13], [1, 1]),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = reasons();
    cases.extend(lengths());
    cases.extend(partial_checksums());
    cases.extend(in_silence_v4());
    cases.extend(in_silence_v6());
    cases.extend(ports());
    cases.extend(limits());
    cases
}

fn case(end: &End, name: impl Into<String>, reason: DropReason, frame: Frame) -> Case {
    let hook = Hook::Refused(Refusal { reason, mtu: 0 });
    let case = Case { hook, ..from(end, format!("refused: {}", name.into()), frame) };
    case.dropped(reason)
}

/// As `case`, of the reason that most tests are about.
fn expired(end: &End, name: impl Into<String>, frame: Frame) -> Case {
    case(end, name, DropReason::TtlExceeded, frame)
}

impl Case {
    fn mtu(mut self, mtu: u16) -> Self {
        if let Hook::Refused(refusal) = &mut self.hook {
            refusal.mtu = mtu;
        }
        self
    }

    /// Its sender gets an error of this type and code from `speaker`, which quotes `quoted`, and goes out at its end.
    pub(super) fn told_of(self, speaker: &End, kind: [u8; 2], rest: u32, quoted: &[u8]) -> Self {
        let bytes = error(&self.frame, speaker, kind, rest, quoted);
        let uplink = self.port == UPLINK.id;
        let port = self.port;
        let mut case = self.outcome(Ok(crate::verdict::Verdict::Deliver(if uplink {
            crate::verdict::Egress::Uplink(UPLINK_IFINDEX)
        } else {
            crate::verdict::Egress::Namespace(port)
        })));
        case.expect.answer = Some(bytes);
        case
    }

    /// Told of an end of hops, with the whole packet, or what of it fits.
    fn told(self, speaker: &End) -> Self {
        let kind = if self.frame[12] == 8 { [11, 0] } else { [3, 0] };
        let quoted = self.frame[IP..].iter().copied().take(QUOTE).collect::<Vec<u8>>();
        self.told_of(speaker, kind, 0, &quoted)
    }
}

/// The error of `speaker` about a frame, with as much of it as is quoted.
pub(super) fn error_about(frame: &[u8], speaker: &End, kind: [u8; 2], rest: u32) -> Vec<u8> {
    let quoted = frame[IP..].iter().copied().take(QUOTE).collect::<Vec<u8>>();
    error(frame, speaker, kind, rest, &quoted)
}

fn error(frame: &[u8], speaker: &End, kind: [u8; 2], rest: u32, quoted: &[u8]) -> Vec<u8> {
    let is_v4 = frame[12] == 8;
    let swapped = Frame::new(Mac(frame[..6].try_into().unwrap()), Mac(frame[6..12].try_into().unwrap()));
    let message = [&kind, &[0; 2], &rest.to_be_bytes()[..], quoted].concat();
    let bytes = if is_v4 {
        let length = (20 + message.len() as u16).to_be_bytes();
        let header = [0x45, 0xc0, length[0], length[1], 0, 0, 0x40, 0, 64, 1, 0, 0];
        let mut header = [&header[..], &speaker.ipv4, &frame[IP + 12..IP + 16]].concat();
        fill_in(&mut header, 10, &[]);
        let mut message = message;
        fill_in(&mut message, 2, &[]);
        swapped.ethertype(0x0800).append(&header).append(&message)
    } else {
        let length = (message.len() as u16).to_be_bytes();
        let header = [0x60, 0, 0, 0, length[0], length[1], 58, 64];
        let addresses = [&speaker.ipv6[..], &frame[IP + 8..IP + 24]].concat();
        let pseudo = [&addresses[..], &[0, 0, length[0], length[1], 0, 0, 0, 58]].concat();
        let mut message = message;
        fill_in(&mut message, 2, &pseudo);
        swapped.ethertype(0x86dd).append(&header).append(&addresses).append(&message)
    };
    bytes.finish()
}

/// Writes the checksum of `prefix` and `bytes` into `bytes`.
fn fill_in(bytes: &mut [u8], at: usize, prefix: &[u8]) {
    let sum = checksum(&[prefix, bytes].concat());
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// From red to cyan, by way of the gateway.
fn to_cyan_v4() -> Frame {
    RED.to(&HOST).ipv4(RED.ipv4, CYAN.ipv4)
}

fn to_cyan_v6() -> Frame {
    RED.to(&HOST).ipv6(RED.ipv6, CYAN.ipv6)
}

/// From afar to the uplink.
fn from_afar_v4() -> Frame {
    Frame::new(ROUTER_MAC, UPLINK.mac).ipv4(AFAR_V4, UPLINK.ipv4)
}

fn from_afar_v6() -> Frame {
    Frame::new(ROUTER_MAC, UPLINK.mac).ipv6(AFAR_V6, UPLINK.ipv6)
}

fn reasons() -> Vec<Case> {
    let mut cases = Vec::new();
    for reason in DropReason::ALL.iter().copied() {
        let in_v4 = to_cyan_v4().udp(1000, 2000).payload(18);
        let in_v6 = to_cyan_v6().udp(1000, 2000).payload(18);
        let (of_v4, of_v6) = (in_v4.clone().finish(), in_v6.clone().finish());
        // An MTU is only for those whom it concerns.
        let in_v4 = case(&RED, format!("IPv4, {}", reason.label()), reason, in_v4).mtu(1400);
        let in_v6 = case(&RED, format!("IPv6, {}", reason.label()), reason, in_v6).mtu(1400);
        let mtu = if reason == DropReason::FragmentationNeeded { 1400 } else { 0 };
        match TOLD.into_iter().find(|(told, ..)| *told == reason) {
            Some((_, kind_v4, kind_v6)) => {
                cases.push(in_v4.told_of(&HOST, kind_v4, mtu, &of_v4[IP..]));
                cases.push(in_v6.told_of(&HOST, kind_v6, mtu, &of_v6[IP..]));
            }
            None => cases.extend([in_v4, in_v6]),
        }
    }
    // Not 0: in the kernel that stands for what routing has left elsewhere.
    for mtu in [68, 1279, 1280, 1281, 9000, u16::MAX] {
        let reason = DropReason::FragmentationNeeded;
        let in_v4 = case(&RED, format!("IPv4, MTU {mtu}"), reason, to_cyan_v4().udp(1, 2)).mtu(mtu);
        let in_v6 = case(&RED, format!("IPv6, MTU {mtu}"), reason, to_cyan_v6().udp(1, 2)).mtu(mtu);
        let (of_v4, of_v6) = (in_v4.frame[IP..].to_vec(), in_v6.frame[IP..].to_vec());
        cases.push(in_v4.told_of(&HOST, [3, 4], mtu.into(), &of_v4));
        cases.push(in_v6.told_of(&HOST, [2, 0], mtu.max(1280).into(), &of_v6));
    }
    cases
}

/// Every length around what is quoted, odd ones too, and what Ethernet pads.
fn lengths() -> Vec<Case> {
    let mut cases = Vec::new();
    for payload in (0..=110).chain([500, 1472]) {
        let frame = to_cyan_v4().udp(1, 2).payload(payload);
        cases.push(expired(&RED, format!("IPv4, {payload} bytes"), frame).told(&HOST));
        let frame = to_cyan_v6().udp(1, 2).payload(payload.min(1452));
        cases.push(expired(&RED, format!("IPv6, {payload} bytes"), frame).told(&HOST));
    }
    for length in 0..10 {
        let bytes = vec![0xa5; length];
        let frame = to_cyan_v4().protocol(253, &bytes);
        cases.push(expired(&RED, format!("IPv4, {length} bytes of protocol 253"), frame).told(&HOST));
        let frame = to_cyan_v4().protocol(253, &bytes).pad();
        let case = expired(&RED, format!("IPv4, {length} bytes and padding"), frame);
        let quoted = case.frame[IP..IP + 20 + length].to_vec();
        cases.push(case.told_of(&HOST, [11, 0], 0, &quoted));
        let frame = to_cyan_v6().protocol(253, &bytes).pad();
        let case = expired(&RED, format!("IPv6, {length} bytes and padding"), frame);
        let quoted = case.frame[IP..IP + 40 + length].to_vec();
        cases.push(case.told_of(&HOST, [3, 0], 0, &quoted));
    }
    let mut options = to_cyan_v4();
    for words in 1..=10 {
        options = options.option_word([1, 1, 1, words]);
        let frame = options.clone().tcp(1, 2).payload(100);
        cases.push(expired(&RED, format!("IPv4 with {words} words of options"), frame).told(&HOST));
    }
    for units in [0, 1, 4, 11] {
        let frame = to_cyan_v6().extension(60, units).udp(1, 2).payload(100);
        cases.push(expired(&RED, format!("IPv6 with an extension of {units} units"), frame).told(&HOST));
    }
    let segments = to_cyan_v4().tcp(1, 2).payload(2900);
    cases.push(expired(&RED, "IPv4, TCP segments", segments).gso(1000).told(&HOST));
    let segments = to_cyan_v6().tcp(1, 2).payload(2900);
    cases.push(expired(&RED, "IPv6, TCP segments", segments).gso(1000).told(&HOST));
    let segments = to_cyan_v4().udp(1, 2).payload(2900);
    cases.push(expired(&RED, "IPv4, UDP segments", segments).gso(1000).told(&HOST));
    cases
}

/// As a local sender leaves it: the sum of the pseudo-header, where the checksum will be.
fn partial(frame: Frame, protocol: u8, checksum_at: usize) -> Frame {
    let bytes = frame.clone().finish();
    let (addresses, transport) = if bytes[12] == 8 { (26..34, 34) } else { (22..54, 54) };
    let length = (bytes.len() - transport) as u16;
    let pseudo = [&bytes[addresses], &length.to_be_bytes(), &[0, protocol]].concat();
    frame.set(transport + checksum_at, &(!checksum(&pseudo)).to_be_bytes())
}

/// A checksum that is filled in on the way out of the machine must not spoil the error's.
fn partial_checksums() -> Vec<Case> {
    let mut cases = Vec::new();
    for payload in [0, 1, 18, 63, 100, 1000] {
        let frames = [
            ("IPv4, UDP", to_cyan_v4().udp(1, 2), 17, 6),
            ("IPv4, TCP", to_cyan_v4().tcp(1, 2), 6, 16),
            ("IPv6, UDP", to_cyan_v6().udp(1, 2), 17, 6),
            ("IPv6, TCP", to_cyan_v6().tcp(1, 2), 6, 16),
        ];
        for (name, frame, protocol, at) in frames {
            let frame = partial(frame.payload(payload), protocol, at);
            let case = expired(&RED, format!("{name} with a partial checksum, {payload} bytes"), frame);
            let is_v4 = case.frame[12] == 8;
            let mut quoted: Vec<u8> = case.frame[IP..].iter().copied().take(QUOTE).collect();
            let transport = if is_v4 { 20 } else { 40 };
            let field = transport + at..transport + at + 2;
            quoted[field.clone()].fill(0);
            let others = u32::from(!checksum(&quoted[transport..]));
            let sum = (1..=u16::MAX).find(|sum| (others + 2 * u32::from(*sum)) % 0xffff == 0).unwrap();
            quoted[field].copy_from_slice(&sum.to_be_bytes());
            // What skb_checksum_help() would write there.
            assert_eq!(checksum(&quoted[transport..]), sum, "{name}");
            cases.push(case.told_of(&HOST, if is_v4 { [11, 0] } else { [3, 0] }, 0, &quoted));
        }
    }
    cases
}

fn in_silence_v4() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in 0..=255u8 {
        let frame = to_cyan_v4().protocol(1, &[kind, 0, 0, 0, 0, 0, 0, 1, 2, 3]);
        let case = expired(&RED, format!("ICMP type {kind}"), frame);
        let is_query = matches!(kind, 0 | 8 | 9 | 10 | 13..=18 | 42 | 43);
        cases.push(if is_query { case.told(&HOST) } else { case });
    }
    cases.push(expired(&RED, "ICMP of 7 bytes", to_cyan_v4().protocol(1, &[8, 0, 0, 0, 0, 0, 0])));
    cases.push(expired(&RED, "IPv4 later fragment", to_cyan_v4().fragment_v4(1, false).payload(40)));
    cases.push(expired(&RED, "IPv4 middle fragment", to_cyan_v4().fragment_v4(1, true).payload(40)));
    let first = to_cyan_v4().fragment_v4(0, true).udp(1, 2).payload(40);
    cases.push(expired(&RED, "IPv4 first fragment", first).told(&HOST));
    for (to, is_told) in [
        ("224.0.0.1", false),
        ("239.255.255.255", false),
        ("255.255.255.255", false),
        ("223.255.255.255", true),
        ("240.0.0.1", true),
        ("0.0.0.0", true),
    ] {
        let case = expired(&RED, format!("IPv4 to {to}"), RED.to(&HOST).ipv4(RED.ipv4, v4(to)).udp(1, 2));
        cases.push(if is_told { case.told(&HOST) } else { case });
    }
    for (source, is_told) in [
        ("0.0.0.0", false),
        ("0.1.2.3", false),
        ("127.0.0.1", false),
        ("224.0.0.1", false),
        ("240.0.0.1", false),
        ("255.255.255.255", false),
        ("1.0.0.1", true),
        ("223.1.1.1", true),
    ] {
        let case = expired(&RED, format!("IPv4 from {source}"), RED.to(&HOST).ipv4(v4(source), CYAN.ipv4).udp(1, 2));
        cases.push(if is_told { case.told(&HOST) } else { case });
    }
    let broadcast = Frame::new(RED.mac, Mac::BROADCAST).ipv4(RED.ipv4, CYAN.ipv4).udp(1, 2);
    cases.push(expired(&RED, "IPv4 to the broadcast MAC", broadcast));
    let from_group = Frame::new(group_of(AFAR_V6), HOST.mac).ipv4(RED.ipv4, CYAN.ipv4).udp(1, 2);
    cases.push(expired(&RED, "IPv4 from a group MAC", from_group));
    let bad = to_cyan_v4().udp(1, 2).set(14, &[0x44]);
    cases.push(expired(&RED, "IPv4 that contradicts itself", bad));
    let arp = RED.to(&HOST).arp(1, (RED.mac, RED.ipv4), (Mac::ZERO, HOST.ipv4));
    cases.push(expired(&RED, "ARP", arp));
    cases
}

fn in_silence_v6() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in 0..=255u8 {
        let frame = to_cyan_v6().icmpv6(kind, 0, &[0, 0, 0, 1, 2, 3]);
        let case = expired(&RED, format!("ICMPv6 type {kind}"), frame);
        cases.push(if kind < 128 || kind == 137 { case } else { case.told(&HOST) });
    }
    cases.push(expired(&RED, "ICMPv6 of 7 bytes", to_cyan_v6().protocol(58, &[128, 0, 0, 0, 0, 0, 0])));
    let hidden = to_cyan_v6().extension(60, 1).icmpv6(1, 0, &[0; 20]);
    cases.push(expired(&RED, "ICMPv6 error behind an extension header", hidden));
    let query = to_cyan_v6().extension(60, 1).icmpv6(128, 0, &[0; 20]);
    cases.push(expired(&RED, "ICMPv6 echo behind an extension header", query).told(&HOST));
    cases.push(expired(&RED, "IPv6 later fragment", to_cyan_v6().fragment_v6(1, false).payload(40)));
    let first = to_cyan_v6().fragment_v6(0, true).udp(1, 2).payload(40);
    cases.push(expired(&RED, "IPv6 first fragment", first).told(&HOST));
    for (source, is_told) in
        [("::", false), ("::1", false), ("ff02::1", false), ("::ffff:10.1.0.2", false), ("fe80::5", true)]
    {
        let case = expired(&RED, format!("IPv6 from {source}"), RED.to(&HOST).ipv6(v6(source), CYAN.ipv6).udp(1, 2));
        cases.push(if is_told { case.told(&HOST) } else { case });
    }
    let group = v6("ff0e::5");
    let frame = RED.to(&HOST).ipv6(RED.ipv6, group).udp(1, 2);
    cases.push(expired(&RED, "IPv6 to a group", frame));
    let frame = Frame::new(RED.mac, group_of(group)).ipv6(RED.ipv6, CYAN.ipv6).udp(1, 2);
    cases.push(expired(&RED, "IPv6 to a group MAC", frame));
    // Path MTU discovery works for groups, too: and it is the router that answers, not the group.
    let frame = RED.to(&HOST).ipv6(RED.ipv6, group).udp(1, 2);
    let case = case(&RED, "IPv6 to a group, too big", DropReason::FragmentationNeeded, frame).mtu(1300);
    let quoted = case.frame[IP..].to_vec();
    cases.push(case.told_of(&HOST, [2, 0], 1300, &quoted));
    cases
}

/// Where the packet came in, and who speaks.
fn ports() -> Vec<Case> {
    let mut cases = vec![
        expired(&UPLINK, "IPv4 from an uplink", from_afar_v4().udp(1, 2).payload(200)).told(&UPLINK),
        expired(&UPLINK, "IPv6 from an uplink", from_afar_v6().udp(1, 2).payload(200)).told(&UPLINK),
        expired(&UPLINK, "IPv4 from an uplink, odd", from_afar_v4().udp(1, 2).payload(5)).told(&UPLINK),
        expired(&CYAN, "IPv4 in the second network", CYAN.to(&HOST_2).ipv4(CYAN.ipv4, RED.ipv4).udp(1, 2))
            .told(&HOST_2),
        expired(&WHITE, "IPv4 in the third network", WHITE.to(&HOST_3).ipv4(WHITE.ipv4, RED.ipv4).udp(1, 2))
            .told(&HOST_3),
        expired(&WHITE, "IPv6 where the gateway has none", WHITE.to(&HOST_3).ipv6(WHITE.ipv6, RED.ipv6).udp(1, 2)),
        expired(&HOST, "IPv4 from the host", HOST.to(&RED).ipv4(HOST.ipv4, BLUE.ipv4).udp(1, 2)),
    ];
    let behind = Frame::new(stranger(1), HOST.mac).ipv4(ORANGE.ipv4, CYAN.ipv4).udp(1, 2);
    cases.push(expired(&ORANGE, "IPv4 from a station behind orange", behind).told(&HOST));
    let without = |name: &str, frame: Frame, change: fn(&mut MemoryTables)| {
        expired(&RED, format!("{name} without a policy or gateway"), frame).with(change)
    };
    cases.push(without("IPv4", to_cyan_v4().udp(1, 2), |tables| {
        let none = Policy { gateway: crate::layout::PortId::NONE, ..Policy::DEFAULT };
        tables.policies.insert(RED.network, none);
    }));
    cases.push(without("IPv6", to_cyan_v6().udp(1, 2), |tables| {
        let gone = Policy { gateway: crate::layout::PortId(4000), ..Policy::DEFAULT };
        tables.policies.insert(RED.network, gone);
    }));
    cases
}

fn limits() -> Vec<Case> {
    let used = |name: &str, ahead: u64| {
        let frame = to_cyan_v4().udp(1, 2);
        expired(&RED, format!("IPv4, {name}"), frame).with(move |tables| {
            let clock = tables.clock.get() + ahead;
            tables.refusal_clocks.borrow_mut().insert(RED.id, clock);
        })
    };
    vec![
        used("in a burst", REFUSAL_BURST_NS - REFUSAL_NS).told(&HOST),
        // By more than a run of the test takes in the kernel, whose clock goes on.
        used("after a burst", REFUSAL_BURST_NS + 1_000_000_000),
        expired(&RED, "IPv4, after another's burst", to_cyan_v4().udp(1, 2)).told(&HOST).with(|tables| {
            let clock = tables.clock.get() + 2 * REFUSAL_BURST_NS;
            tables.refusal_clocks.borrow_mut().insert(BLUE.id, clock);
        }),
    ]
}
