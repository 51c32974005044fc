//! Where the host's routes lead, and what is refused on the way: each reason once.

use crate::layout::policy_flags;
use crate::memory::MemoryTables;
use crate::verdict::DropReason;
use crate::wire::IpAddress;

use super::flows::holds;
use super::frame::{Frame, v4, v6};
use super::sequence::{Sequence, Step, from};
use super::talk::{ACK, L4, SYN, Talk, put};
use super::world::{
    AFAR_V4, AFAR_V6, BLUE, CYAN, End, GOLD, HOST, HOST_2, HOST_3, HOST_4, LIME, NARROW_V4, NARROW_V6, PURPLE, RED,
    SIDE_IFINDEX, UPLINK, WHITE, isolate,
};

const FAMILIES: [(bool, &str); 2] = [(true, "IPv4"), (false, "IPv6")];

pub(super) fn sequences() -> Vec<Sequence> {
    let mut all = no_way();
    all.extend(neighbours());
    all.extend(open_networks());
    all.extend(within_a_network());
    all.extend(punted());
    all.extend(hops());
    all.extend(lengths());
    all.extend(unreadable());
    all
}

fn to_v4(end: &End, gateway: &End, to: [u8; 4]) -> Frame {
    end.to(gateway).ipv4(end.ipv4, to)
}

fn to_v6(end: &End, gateway: &End, to: [u8; 16]) -> Frame {
    end.to(gateway).ipv6(end.ipv6, to)
}

fn no_way() -> Vec<Sequence> {
    let mut all = Vec::new();
    // As the kernel answers itself (ip-route(8)).
    for (reason, to_ipv4, kind, to_ipv6, kind_v6) in [
        (DropReason::NoRoute, "198.18.1.1", [3, 0], "2001:db8:c1::1", [1, 0]),
        (DropReason::ProhibitedRoute, "198.18.2.1", [3, 13], "2001:db8:c2::1", [1, 1]),
    ] {
        let step = from(&RED, to_v4(&RED, &HOST, v4(to_ipv4)).udp(1, 2)).told(reason, &HOST, kind, 0);
        all.push(Sequence::new(format!("{}: {to_ipv4}", reason.label())).step(step));
        let step = from(&RED, to_v6(&RED, &HOST, v6(to_ipv6)).udp(1, 2)).told(reason, &HOST, kind_v6, 0);
        all.push(Sequence::new(format!("{}: {to_ipv6}", reason.label())).step(step));
    }
    let blackholes = [to_v4(&RED, &HOST, v4("198.18.3.1")), to_v6(&RED, &HOST, v6("2001:db8:c3::1"))];
    for ((_, family), frame) in FAMILIES.into_iter().zip(blackholes) {
        let step = from(&RED, frame.udp(1, 2)).dropped(DropReason::BlackholeRoute);
        all.push(Sequence::new(format!("{family}, a blackhole")).step(step));
    }
    for to in ["0.0.0.0", "0.1.2.3", "169.254.1.1", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255"] {
        let step = from(&RED, to_v4(&RED, &HOST, v4(to)).udp(1, 2)).dropped(DropReason::Martian);
        all.push(Sequence::new(format!("never routed: {to}")).step(step));
    }
    for to in ["::", "ff02::1", "ff0e::1"] {
        let step = from(&RED, to_v6(&RED, &HOST, v6(to)).udp(1, 2)).dropped(DropReason::Martian);
        all.push(Sequence::new(format!("never routed: {to}")).step(step));
    }
    for (is_v4, family) in FAMILIES {
        let talk = Talk::red(is_v4, 1, 2);
        let aside = talk.with(v4("203.0.113.9"), v6("2001:db8:b::9"));
        all.push(
            Sequence::new(format!("{family}, the way is no uplink"))
                .step(aside.sends(L4::Udp).dropped(DropReason::NoUplink)),
        );
        all.push(
            Sequence::new(format!("{family}, the way is another uplink"))
                .with(|tables| tables.policies.values_mut().for_each(|policy| policy.uplink = SIDE_IFINDEX))
                .step(talk.sends(L4::Udp).dropped(DropReason::NoUplink)),
        );
        for l4 in [L4::Pong, L4::Tcp(ACK, 1, 1, 0)] {
            let reason = if l4 == L4::Pong { DropReason::IcmpUnrelated } else { DropReason::NoConnection };
            all.push(
                Sequence::new(format!("{family}, {l4:?} opens nothing"))
                    .step(talk.sends(l4).dropped(reason).then(holds(0, 0, 0))),
            );
        }
        // The kernel's choice when the uplink has no address: the gateway's, in a network.
        let within = move |tables: &mut MemoryTables| {
            let (ip, bits) = if is_v4 { (IpAddress::v4(UPLINK.ipv4), 32) } else { (IpAddress(UPLINK.ipv6), 128) };
            tables.subnets.push((ip, bits, HOST_2.network));
        };
        let (reason, kind) = (DropReason::NoRoute, if is_v4 { [3, 0] } else { [1, 0] });
        all.push(
            Sequence::new(format!("{family}, the way has no address but a network's"))
                .with(within)
                .step(talk.sends(L4::Udp).told(reason, &HOST, kind, 0).then(holds(0, 0, 0))),
        );
        let masqueraded_as = Talk { outer: (v4("203.0.113.200"), v6("2001:db8:b::200")), ..talk };
        let fixed = Sequence::new(format!("{family}, the policy's own source")).with(|tables| {
            tables.policies.values_mut().for_each(|policy| {
                policy.source_v4 = IpAddress::v4(v4("203.0.113.200"));
                policy.source_v6 = IpAddress(v6("2001:db8:b::200"));
            });
        });
        all.push(fixed.step(masqueraded_as.out(L4::Udp)).step(masqueraded_as.back(L4::Udp)));
    }
    let internal = from(&WHITE, to_v4(&WHITE, &HOST_3, AFAR_V4).udp(1, 2));
    all.push(Sequence::new("internal: out").step(internal.told(DropReason::InternalNetwork, &HOST_3, [3, 13], 0)));
    let unrouted = from(&WHITE, to_v4(&WHITE, &HOST_3, v4("100.64.0.1")).udp(1, 2));
    let told = unrouted.told(DropReason::InternalNetwork, &HOST_3, [3, 13], 0);
    all.push(Sequence::new("internal: out, where there is no route").step(told));
    let gateway = from(&WHITE, to_v4(&WHITE, &HOST_3, HOST_3.ipv4).udp(1, 2)).goes_to_host(&HOST_3);
    all.push(Sequence::new("internal: to the gateway").step(gateway));
    let link_local = from(&RED, to_v6(&RED, &HOST, v6("fe80::99")).udp(1, 2)).goes_to_host(&HOST);
    all.push(Sequence::new("link-local by the gateway's MAC").step(link_local));
    all
}

/// Next hops that the host is still to ask for.
fn neighbours() -> Vec<Sequence> {
    let mut all = Vec::new();
    for (is_v4, family) in FAMILIES {
        let talk = Talk::red(is_v4, 3000, 4000).with(v4("192.0.2.77"), v6("2001:db8:1::77"));
        let left = Frame::new(crate::wire::Mac::ZERO, crate::wire::Mac::ZERO);
        let left = if is_v4 { left.ipv4(UPLINK.ipv4, talk.afar.0) } else { left.ipv6(UPLINK.ipv6, talk.afar.1) };
        let step = || talk.sends(L4::Udp).leaves_by_neighbour(put(left.clone(), L4::Udp, (3000, 4000), is_v4).hops(63));
        all.push(
            Sequence::new(format!("{family}, an unknown neighbour"))
                .step(step())
                .step(step())
                .step(talk.back(L4::Udp))
                .step(step()),
        );
    }
    all
}

fn open_networks() -> Vec<Sequence> {
    let mut all = Vec::new();
    for (is_v4, family) in FAMILIES {
        let way = |from_end: &'static End, gateway: &End, to: &'static End, by: &End| -> (Step, Frame) {
            let (before, after) = if is_v4 {
                (to_v4(from_end, gateway, to.ipv4), by.to(to).ipv4(from_end.ipv4, to.ipv4))
            } else {
                (to_v6(from_end, gateway, to.ipv6), by.to(to).ipv6(from_end.ipv6, to.ipv6))
            };
            (from(from_end, before.udp(1, 2)), after.udp(1, 2).hops(63))
        };
        let (asks, asked) = way(&LIME, &HOST_4, &GOLD, &super::world::HOST_5);
        let (tells, told) = way(&GOLD, &super::world::HOST_5, &LIME, &HOST_4);
        all.push(
            Sequence::new(format!("{family}, between open networks"))
                .step(asks.enters(&GOLD, asked).then(holds(0, 0, 0)))
                .step(tells.enters(&LIME, told).then(holds(0, 0, 0))),
        );
        for (sender, gateway, to) in
            [(&LIME, &HOST_4, &RED), (&RED, &HOST, &LIME), (&LIME, &HOST_4, &CYAN), (&CYAN, &HOST_2, &GOLD)]
        {
            let (asks, _) = way(sender, gateway, to, gateway);
            let name = format!("{family}, from {} to {}, not both open", sender.name, to.name);
            all.push(Sequence::new(name).step(asks.dropped(DropReason::OtherNetwork)));
        }
        let (asks, _) = way(&LIME, &HOST_4, &super::world::HOST_5, &HOST_4);
        all.push(
            Sequence::new(format!("{family}, to an open network's gateway"))
                .step(asks.dropped(DropReason::OtherNetwork)),
        );
        let free = if is_v4 { to_v4(&LIME, &HOST_4, v4("10.5.0.77")) } else { to_v6(&LIME, &HOST_4, v6("fd05::77")) };
        let kind = if is_v4 { [3, 0] } else { [1, 0] };
        all.push(
            Sequence::new(format!("{family}, to nobody in an open network")).step(from(&LIME, free.udp(1, 2)).told(
                DropReason::NoRoute,
                &HOST_4,
                kind,
                0,
            )),
        );
    }
    all
}

/// By the gateway's MAC to a namespace of the same network: no way around what keeps ports apart.
fn within_a_network() -> Vec<Sequence> {
    let mut all = Vec::new();
    for (is_v4, family) in FAMILIES {
        let asks = |to: &End| {
            let frame = if is_v4 { to_v4(&RED, &HOST, to.ipv4) } else { to_v6(&RED, &HOST, to.ipv6) };
            from(&RED, frame.udp(1, 2))
        };
        let arrives = |to: &End| {
            let frame = HOST.to(to);
            let frame = if is_v4 { frame.ipv4(RED.ipv4, to.ipv4) } else { frame.ipv6(RED.ipv6, to.ipv6) };
            frame.udp(1, 2).hops(63)
        };
        let name = |what| format!("{family}, by the gateway, {what}");
        all.push(Sequence::new(name("within a network")).step(asks(&BLUE).enters(&BLUE, arrives(&BLUE))));
        let apart = Sequence::new(name("between isolated ports")).with(isolate);
        all.push(
            apart
                .step(asks(&BLUE).dropped(DropReason::IsolatedPort))
                .step(asks(&PURPLE).enters(&PURPLE, arrives(&PURPLE))),
        );
    }
    all
}

/// What leaves a network whose packets are the host's to forward: all kinds, those of no connection, too, and those that
/// were translated before only as long as their flow lives.
fn punted() -> Vec<Sequence> {
    let punt = |tables: &mut MemoryTables| {
        tables.policies.values_mut().for_each(|policy| policy.flags = policy_flags::PUNT);
    };
    let mut all = Vec::new();
    for (is_v4, family) in FAMILIES {
        let talk = Talk::red(is_v4, 3000, 4000);
        let mut sequence = Sequence::new(format!("{family}, punted")).with(punt);
        for l4 in [L4::Udp, L4::Tcp(SYN, 1, 0, 0), L4::Tcp(ACK, 1, 1, 0), L4::Ping, L4::Pong] {
            sequence = sequence.step(talk.sends(l4).goes_to_host(&HOST).then(holds(0, 0, 0)));
        }
        let last_hop = talk.sends(L4::Udp).with_hops(is_v4, 1);
        all.push(sequence.step(last_hop.goes_to_host(&HOST)));
        let began = Sequence::new(format!("{family}, punted after it began")).step(talk.out(L4::Udp));
        all.push(began.step(talk.out(L4::Udp).with(punt)).step(talk.back(L4::Udp)));
    }
    all
}

fn hops() -> Vec<Sequence> {
    let mut all = Vec::new();
    for (is_v4, family) in FAMILIES {
        let talk = Talk::red(is_v4, 3000, 4000);
        let kind = if is_v4 { [11, 0] } else { [3, 0] };
        for hops in [0, 1] {
            let frame = put(talk.leaving(), L4::Udp, (3000, 4000), is_v4).hops(hops);
            let step = |frame: Frame| from(&RED, frame).told(DropReason::TtlExceeded, &HOST, kind, 0);
            let name = format!("{family}, {hops} hops left");
            all.push(Sequence::new(format!("{name}, new")).step(step(frame.clone()).then(holds(0, 0, 0))));
            all.push(Sequence::new(format!("{name}, of a flow")).step(talk.out(L4::Udp)).step(step(frame)));
        }
        let last = put(talk.leaving(), L4::Udp, (3000, 4000), is_v4).hops(2);
        let left = put(talk.left(), L4::Udp, (3000, 4000), is_v4).hops(1);
        all.push(Sequence::new(format!("{family}, 2 hops left")).step(from(&RED, last).leaves(left)));
        let entering = put(talk.entering(), L4::Udp, (4000, 3000), is_v4).hops(1);
        let step = super::sequence::outside(entering).told(DropReason::TtlExceeded, &UPLINK, kind, 0);
        all.push(
            Sequence::new(format!("{family}, the answer has 1 hop left"))
                .step(talk.out(L4::Udp))
                .step(step.then(holds(2, 0, 2))),
        );
    }
    all
}

/// The longest packet of each way: the uplink takes 1500 bytes, the narrow way 1400.
fn lengths() -> Vec<Sequence> {
    let mut all = Vec::new();
    for (is_v4, family) in FAMILIES {
        let (ip, kind) = if is_v4 { (20, [3, 4]) } else { (40, [2, 0]) };
        for (way, longest, afar) in
            [("the uplink", 1500, (AFAR_V4, AFAR_V6)), ("a narrow way", 1400, (NARROW_V4, NARROW_V6))]
        {
            let talk = Talk::red(is_v4, 3000, 4000).with(afar.0, afar.1);
            let fits = L4::Tcp(ACK, 101, 9001, longest - ip - 20);
            let exceeds = L4::Tcp(ACK, 101, 9001, longest - ip - 20 + 1);
            let begin = |what: &str| {
                Sequence::new(format!("{family}, {what} for {way}"))
                    .step(talk.out(L4::Tcp(SYN, 100, 0, 0)))
                    .step(talk.back(L4::Tcp(SYN | ACK, 9000, 101, 0)))
                    .step(talk.out(L4::Tcp(ACK, 101, 9001, 0)))
            };
            let refused = |step: Step| step.whole().told(DropReason::FragmentationNeeded, &HOST, kind, longest as u32);
            all.push(begin("as long as is allowed").step(talk.out(fits)));
            all.push(begin("longer by a byte").step(refused(talk.sends(exceeds))));
            let segments = L4::Tcp(ACK, 101, 9001, 2900);
            all.push(begin("segments as long as is allowed").step(talk.out(segments).gso((longest - ip - 20) as u32)));
            all.push(
                begin("segments longer by a byte")
                    .step(refused(talk.sends(segments).gso((longest - ip - 20 + 1) as u32))),
            );
            let new = put(talk.leaving(), L4::Udp, (3000, 4000), is_v4).payload(longest);
            all.push(
                Sequence::new(format!("{family}, the first is too long for {way}")).step(refused(from(&RED, new))),
            );
        }
    }
    all
}

/// What cannot be read cannot be translated.
fn unreadable() -> Vec<Sequence> {
    let mut all = Vec::new();
    let mut push = |name: String, frame: Frame, reason: DropReason| {
        all.push(Sequence::new(name).step(from(&RED, frame).dropped(reason)));
    };
    for (name, word) in [
        ("a loose source route", [131, 3, 4, 0]),
        ("a strict source route", [137, 3, 4, 0]),
        ("a source route behind another option", [1, 131, 3, 4]),
        ("an option longer than the header", [7, 5, 4, 0]),
        ("an option of length 1", [7, 1, 0, 0]),
    ] {
        let frame = put(Talk::red(true, 1, 2).leaving().option_word(word), L4::Udp, (1, 2), true);
        push(format!("IPv4, {name}"), frame, DropReason::SourceRoute);
    }
    let empty = put(Talk::red(false, 1, 2).leaving(), L4::Udp, (1, 2), false).set(18, &[0, 0]);
    push("IPv6, UDP, no payload".to_owned(), empty, DropReason::BadTransport);
    for (is_v4, family) in FAMILIES {
        let talk = Talk::red(is_v4, 3000, 4000);
        let at = if is_v4 { 34 } else { 54 };
        let bad = DropReason::BadTransport;
        let tcp = || put(talk.leaving(), L4::Tcp(SYN, 1, 0, 20), (1, 2), is_v4);
        for offset in [0, 0x40, 0xf0] {
            push(format!("{family}, TCP offset {offset:#04x}"), tcp().set(at + 12, &[offset]), bad);
        }
        let udp = || put(talk.leaving(), L4::Udp, (1, 2), is_v4);
        for length in [0u16, 7, 20, 0xffff] {
            push(format!("{family}, UDP length {length}"), udp().set(at + 4, &length.to_be_bytes()), bad);
        }
        for (protocol, length) in [(6, 19), (17, 7), (132, 3)] {
            let frame = talk.leaving().protocol(protocol, &vec![0; length]);
            // What ends within the ports that a guard looks at is dropped as truncated there.
            let reason = if protocol == 17 { DropReason::Truncated } else { bad };
            push(format!("{family}, protocol {protocol} of {length} bytes"), frame, reason);
        }
        let frame = if is_v4 { talk.leaving().protocol(1, &[8; 7]) } else { talk.leaving().protocol(58, &[128; 7]) };
        // The guard against false routers looks for the type, too.
        push(format!("{family}, an echo of 7 bytes"), frame, if is_v4 { bad } else { DropReason::BadIpv6 });
        let length: &[u8] = if is_v4 { &[0, 27] } else { &[0, 7] };
        let frame = put(talk.leaving(), L4::Ping, (1, 2), is_v4).set(if is_v4 { 16 } else { 18 }, length);
        push(format!("{family}, an echo that ends after 7 bytes"), frame, bad);
        let kinds: &[u8] =
            if is_v4 { &[4, 5, 9, 10, 13, 14, 15, 17, 42, 200] } else { &[0, 5, 100, 127, 138, 144, 200, 255] };
        for kind in kinds {
            let frame =
                if is_v4 { talk.leaving().icmp(*kind, 0, &[0; 8]) } else { talk.leaving().icmpv6(*kind, 0, &[0; 8]) };
            push(format!("{family}, ICMP type {kind}"), frame, DropReason::IcmpType);
        }
        let first = |frame: Frame| if is_v4 { frame.fragment_v4(0, true) } else { frame.fragment_v6(0, true) };
        let later = if is_v4 { talk.leaving().fragment_v4(9, true) } else { talk.leaving().fragment_v6(9, true) };
        push(format!("{family}, a later fragment of nothing"), later.payload(40), DropReason::FragmentUnknown);
        push(
            format!("{family}, a first fragment with half a TCP header"),
            first(talk.leaving()).protocol(6, &[0; 16]),
            DropReason::FragmentTiny,
        );
    }
    all
}
