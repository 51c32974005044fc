//! Flows that leave: what they are translated to, how far they have come, when they end.

use crate::layout::{Flow, FlowState, Policy, PortId, QUARANTINE, flow_flags, policy_flags, whole_seconds};
use crate::memory::MemoryTables;
use crate::tables::Route;
use crate::verdict::DropReason;

use super::sequence::Sequence;
use super::talk::{ACK, FIN, L4, RST, SYN, Talk, pooled};
use super::world::{BLACK, BLUE, CYAN, GOLD, HOST, LIME, RED, SECOND_V4, UPLINK};
use crate::wire::IpAddress;

/// Another host afar.
const AFAR_2: ([u8; 4], [u8; 16]) = ([198, 51, 100, 10], [0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa]);
const FAMILIES: [(bool, &str); 2] = [(true, "IPv4"), (false, "IPv6")];
const FIRST_SYN: L4 = L4::Tcp(SYN, 100, 0, 0);

pub(super) fn sequences() -> Vec<Sequence> {
    let mut all = Vec::new();
    for (is_v4, family) in FAMILIES {
        all.extend(protocols(is_v4, family));
        all.extend(ports(is_v4, family));
        all.extend(limits(is_v4, family));
        all.extend(tcp(is_v4, family));
        all.extend(ages(is_v4, family));
    }
    all
}

/// How many entries and mappings there are.
pub(super) fn holds(young: usize, flows: usize, mappings: usize) -> impl Fn(&MemoryTables) {
    move |tables| {
        let found = (tables.young.borrow().len(), tables.flows.borrow().len(), tables.mappings.borrow().len());
        assert_eq!(found, (young, flows, mappings), "young, established, mappings");
    }
}

/// The state and timeout of the direction that opened the flow, and of its answers.
fn is(opener: (FlowState, u32), answers: (FlowState, u32)) -> impl Fn(&MemoryTables) {
    move |tables| {
        for table in [&tables.young, &tables.flows] {
            for flow in table.borrow().values() {
                let expected = if flow.about.has(flow_flags::REPLY) { answers } else { opener };
                assert_eq!((flow.about.state, flow.about.timeout), expected, "{flow:?}");
            }
        }
    }
}

fn same(state: FlowState, timeout: u32) -> impl Fn(&MemoryTables) {
    is((state, timeout), (state, timeout))
}

/// How many seconds ago all flows were seen, by the direction that was seen last.
fn seen(ago: u32) -> impl Fn(&MemoryTables) {
    move |tables| {
        let now = whole_seconds(tables.clock.get());
        for table in [&tables.young, &tables.flows] {
            let table = table.borrow();
            for (key, flow) in table.iter() {
                let other = table.get(&flow.other_key(key)).map_or(0, |other| other.about.seen);
                assert_eq!(now - flow.about.seen.max(other), ago, "seconds since it was seen");
            }
        }
    }
}

fn protocols(is_v4: bool, family: &str) -> Vec<Sequence> {
    let mut all = Vec::new();
    let udp_like = [
        (L4::Udp, "UDP", 2, 300),
        (L4::Ping, "echo", 2, 60),
        (L4::Sctp, "SCTP", 0, 300),
        (L4::Other, "protocol 253", 0, 300),
    ];
    for (l4, name, mappings, timeout) in udp_like {
        for (talk, how) in [
            (Talk::red(is_v4, 3000, 4000), "masqueraded"),
            (Talk::masqueraded(&LIME, is_v4, 3000, 4000), "masqueraded, open"),
            (Talk::routed(&CYAN, is_v4, 3000, 4000), "routed"),
            (Talk::routed(&GOLD, is_v4, 3000, 4000), "routed, open"),
        ] {
            let mappings = if talk.outer.0 == UPLINK.ipv4 { mappings } else { 0 };
            all.push(
                Sequence::new(format!("{family}, {name}, {how}"))
                    .step(talk.out(l4).then(holds(2, 0, mappings)).then(same(FlowState::UNREPLIED, timeout)))
                    .step(talk.out(l4).then(holds(2, 0, mappings)))
                    .step(
                        talk.back(l4.answer()).then(holds(0, 2, mappings)).then(same(FlowState::ESTABLISHED, timeout)),
                    )
                    .step(talk.out(l4).then(holds(0, 2, mappings)))
                    .step(talk.back(l4.answer()).then(holds(0, 2, mappings))),
            );
        }
    }
    let talk = Talk::red(is_v4, 3000, 53);
    all.push(
        Sequence::new(format!("{family}, UDP to port 53"))
            .step(talk.out(L4::Udp).then(same(FlowState::UNREPLIED, 300)))
            .step(talk.back(L4::Udp).then(same(FlowState::ESTABLISHED, 60))),
    );
    all
}

fn ports(is_v4: bool, family: &str) -> Vec<Sequence> {
    let mut all = Vec::new();
    let red = Talk::red(is_v4, 3000, 4000);
    let blue = Talk::masqueraded(&BLUE, is_v4, 3000, 4000);
    let lime = Talk::masqueraded(&LIME, is_v4, 3000, 4000);
    for (l4, name) in [(L4::Udp, "UDP"), (L4::Ping, "echo"), (FIRST_SYN, "TCP")] {
        let (blue, lime) = (blue.pooled(l4, 1), lime.pooled(l4, 1));
        all.push(
            Sequence::new(format!("{family}, {name}, a port that is taken"))
                .step(red.out(l4))
                .step(blue.out(l4))
                .step(lime.out(l4))
                .step(red.back(l4.answer()))
                .step(blue.back(l4.answer()))
                .step(lime.back(l4.answer()))
                .step(blue.out(if l4 == FIRST_SYN { L4::Tcp(ACK, 101, 9001, 0) } else { l4 })),
        );
    }
    // Endpoint-independent mapping: one external port, whoever is spoken to. TCP shares a port between destinations.
    for (l4, name) in [(L4::Udp, "UDP"), (L4::Ping, "echo")] {
        let blue = blue.pooled(l4, 1);
        let other = blue.with(AFAR_2.0, AFAR_2.1);
        let kept = red.with(AFAR_2.0, AFAR_2.1);
        let first = Sequence::new(format!("{family}, {name}, the same port for two destinations"))
            .step(red.out(l4))
            .step(kept.out(l4).then(holds(4, 0, 2)))
            .step(blue.out(l4).then(holds(6, 0, 4)));
        all.push(
            first.step(other.out(l4).then(holds(8, 0, 4))).step(other.back(l4.answer())).step(kept.back(l4.answer())),
        );
    }
    // A socket that sends by two addresses of the host's in turn keeps its port at both.
    let second = (SECOND_V4, UPLINK.ipv6);
    if is_v4 {
        let elsewhere = Talk { outer: second, ..red.with(AFAR_2.0, AFAR_2.1) };
        let source = |ip: [u8; 4]| {
            move |tables: &mut MemoryTables| {
                tables.policies.values_mut().for_each(|policy| policy.source_v4 = IpAddress::v4(ip));
            }
        };
        all.push(
            Sequence::new("IPv4, UDP, by two addresses in turn")
                .step(red.out(L4::Udp).then(holds(2, 0, 2)))
                .step(elsewhere.out(L4::Udp).with(source(SECOND_V4)).then(holds(4, 0, 4)))
                .step(blue.pooled(L4::Udp, 1).out(L4::Udp).with(source(UPLINK.ipv4)).then(holds(6, 0, 6)))
                .step(red.back(L4::Udp))
                .step(elsewhere.back(L4::Udp)),
        );
    }
    // Who may send to a mapped endpoint (RFC 4787 section 5): by default, whom it has sent to.
    let filtered = |name: &str, filter: u32| {
        let setup = move |tables: &mut MemoryTables| {
            tables.policies.values_mut().for_each(|policy| policy.flags |= filter);
        };
        Sequence::new(format!("{family}, UDP, {name}")).with(setup).step(red.out(L4::Udp))
    };
    let other = red.with(AFAR_2.0, AFAR_2.1);
    let other_port = Talk { far: 4001, ..red };
    all.push(filtered("whom it has sent to gets in", 0).step(other.comes(L4::Udp)).step(other_port.comes(L4::Udp)));
    all.push(
        filtered("every port of whom it has sent to gets in", policy_flags::FILTER_BY_ADDRESS)
            .step(other.comes(L4::Udp).then(holds(2, 0, 3)))
            .step(other_port.back(L4::Udp).then(holds(4, 0, 3))),
    );
    all.push(
        filtered("everybody gets in", policy_flags::FILTER_NOTHING)
            .step(other.back(L4::Udp).then(holds(4, 0, 2)))
            .step(other_port.back(L4::Udp).then(holds(6, 0, 2))),
    );
    all.push(
        Sequence::new(format!("{family}, TCP, the same port for two destinations")).step(red.out(FIRST_SYN)).step(
            Talk::masqueraded(&BLUE, is_v4, 3000, 4000).with(AFAR_2.0, AFAR_2.1).out(FIRST_SYN).then(holds(4, 0, 0)),
        ),
    );
    for (l4, name) in [(L4::Sctp, "SCTP"), (L4::Other, "protocol 253")] {
        all.push(
            Sequence::new(format!("{family}, {name} of two namespaces"))
                .step(red.out(l4))
                .step(Talk::masqueraded(&BLUE, is_v4, 3000, 4000).sends(l4).dropped(DropReason::Protocol))
                .step(Talk::masqueraded(&BLUE, is_v4, 3000, 4000).with(AFAR_2.0, AFAR_2.1).out(l4))
                .step(red.back(l4)),
        );
    }
    // Ports of the host's sockets, and what is published, are not kept.
    for (l4, name) in [(L4::Udp, "UDP"), (FIRST_SYN, "TCP")] {
        let published = match (l4, is_v4) {
            (L4::Udp, true) => 5300,
            (L4::Udp, false) => 5000,
            (_, true) => 8080,
            (_, false) => 8443,
        };
        for (port, what) in [(4001, "of a socket"), (published, "that is published")] {
            let talk = Talk::red(is_v4, port, 4000).pooled(l4, 1);
            all.push(
                Sequence::new(format!("{family}, {name}, a port {what}"))
                    .step(talk.out(l4))
                    .step(talk.back(l4.answer())),
            );
        }
        let talk = Talk::red(is_v4, 17_000, 4000);
        all.push(
            Sequence::new(format!("{family}, {name}, a port of the pool is kept"))
                .step(talk.out(l4).then(|tables: &MemoryTables| {
                    let is_pooled = |flow: &Flow| flow.about.has(flow_flags::POOLED);
                    let is_tcp = tables.mappings.borrow().is_empty();
                    assert!(tables.young.borrow().values().all(|flow| is_pooled(flow) == is_tcp));
                }))
                .step(talk.back(l4.answer())),
        );
        // The system's ports are exchanged for their like.
        let taken = Talk::masqueraded(&BLUE, is_v4, 500, 4000);
        let mut talk = Talk::red(is_v4, 500, 4000);
        talk.near.1 = pooled(&talk.key(l4), 1, (512, 1023));
        all.push(Sequence::new(format!("{family}, {name}, a system port")).step(taken.out(l4)).step(talk.out(l4)));
        // To a port of the pool that no flow has.
        let mut stray = Talk::red(is_v4, 3000, 4000);
        stray.near.1 = 17000;
        all.push(
            Sequence::new(format!("{family}, {name}, a stray to the pool"))
                .step(stray.comes(l4).dropped(DropReason::NoMapping)),
        );
        stray.near.1 = 3000;
        all.push(Sequence::new(format!("{family}, {name}, a stray to the host")).step(stray.comes(l4)));
    }
    if is_v4 {
        let mut talk = Talk::red(true, 3000, 4000);
        talk.near.1 = 20_000;
        all.push(Sequence::new("IPv4, UDP, a socket in the pool").step(talk.comes(L4::Udp)));
        all.push(Sequence::new("IPv4, TCP, a socket in the pool").step(talk.comes(FIRST_SYN)));
    }
    all
}

fn limits(is_v4: bool, family: &str) -> Vec<Sequence> {
    let limited = |tables: &mut MemoryTables, change: fn(&mut Policy)| {
        tables.policies.values_mut().for_each(change);
    };
    let prohibited = if is_v4 { [3, 13] } else { [1, 1] };
    let mut all = Vec::new();
    let red = Talk::red(is_v4, 3000, 4000);
    let second = Talk::red(is_v4, 3001, 4000);
    for (l4, name) in [(L4::Udp, "UDP"), (L4::Ping, "echo")] {
        all.push(
            Sequence::new(format!("{family}, {name}, as many flows as allowed"))
                .with(move |tables| limited(tables, |policy| policy.flows_per_ns = 1))
                .step(red.out(l4))
                .step(second.out(l4))
                .step(red.back(l4.answer()))
                .step(red.with(AFAR_2.0, AFAR_2.1).sends(l4).told(DropReason::FlowQuota, &HOST, prohibited, 0))
                .step(Talk::masqueraded(&BLUE, is_v4, 3002, 4000).out(l4))
                // What was opened before may still be answered.
                .step(second.back(l4.answer()).then(holds(2, 4, 6)))
                .step(red.out(l4)),
        );
        all.push(
            Sequence::new(format!("{family}, {name}, as many ports as allowed"))
                .with(move |tables| limited(tables, |policy| policy.ports_per_ns = 1))
                .step(red.out(l4))
                .step(red.with(AFAR_2.0, AFAR_2.1).out(l4))
                .step(second.sends(l4).told(DropReason::PortQuota, &HOST, prohibited, 0))
                .step(Talk::masqueraded(&BLUE, is_v4, 3001, 4000).out(l4)),
        );
    }
    for (l4, name) in [(L4::Udp, "UDP"), (L4::Ping, "echo"), (FIRST_SYN, "TCP")] {
        let mut only = Talk::masqueraded(&BLUE, is_v4, 3000, 4000);
        only.near.1 = 30_000;
        all.push(
            Sequence::new(format!("{family}, {name}, no port is left"))
                .with(move |tables| limited(tables, |policy| (policy.first_port, policy.last_port) = (30_000, 30_000)))
                .step(red.out(l4))
                .step(only.out(l4))
                .step(Talk::masqueraded(&LIME, is_v4, 3000, 4000).sends(l4).told(
                    DropReason::PortsExhausted,
                    &super::world::HOST_4,
                    prohibited,
                    0,
                ))
                .step(only.back(l4.answer())),
        );
    }
    // TCP's ports of the pool count when the connection stands.
    let pooled = Talk::red(is_v4, 17_000, 4000);
    let next = Talk::red(is_v4, 17_001, 4000);
    all.push(
        Sequence::new(format!("{family}, TCP, as many ports as allowed"))
            .with(move |tables| limited(tables, |policy| policy.ports_per_ns = 1))
            .step(pooled.out(FIRST_SYN))
            .step(pooled.back(FIRST_SYN.answer()))
            .step(pooled.out(L4::Tcp(ACK, 101, 9001, 0)).then(holds(0, 2, 0)))
            .step(next.sends(FIRST_SYN).told(DropReason::PortQuota, &HOST, prohibited, 0))
            // Its own port is none of the pool.
            .step(red.out(FIRST_SYN)),
    );
    all
}

/// A connection that stands, after three frames.
fn handshake(name: String, talk: Talk) -> Sequence {
    Sequence::new(name)
        .step(talk.out(FIRST_SYN).then(holds(2, 0, 0)).then(same(FlowState::UNREPLIED, 240)))
        .step(talk.back(L4::Tcp(SYN | ACK, 9000, 101, 0)).then(holds(2, 0, 0)).then(same(FlowState::HALF_OPEN, 240)))
        .step(talk.out(L4::Tcp(ACK, 101, 9001, 0)).then(holds(0, 2, 0)).then(same(FlowState::ESTABLISHED, 7440)))
}

fn tcp(is_v4: bool, family: &str) -> Vec<Sequence> {
    let talk = Talk::red(is_v4, 3000, 80);
    let routed = Talk::routed(&BLACK, is_v4, 3000, 80);
    let begin = |name: &str| handshake(format!("{family}, TCP, {name}"), talk);
    let (out, back) = (|f, s, a, l| talk.out(L4::Tcp(f, s, a, l)), |f, s, a, l| talk.back(L4::Tcp(f, s, a, l)));
    let established = (FlowState::ESTABLISHED, 7440);
    let closing = (FlowState::CLOSING, 7440);
    let mut all = vec![
        begin("data both ways")
            .step(out(ACK, 101, 9001, 500))
            .step(back(ACK, 9001, 601, 1400))
            .step(out(ACK, 601, 10401, 1))
            .step(back(ACK, 10401, 602, 0)),
        handshake(format!("{family}, TCP, routed"), routed).step(routed.back(L4::Tcp(ACK, 9001, 101, 7))),
        begin("both sides close")
            .step(out(FIN | ACK, 101, 9001, 0).then(is(closing, established)))
            .step(back(ACK, 9001, 102, 800).then(is(closing, established)))
            .step(back(FIN | ACK, 9801, 102, 0).then(same(FlowState::CLOSING, 240)))
            .step(out(ACK, 102, 9802, 0).then(same(FlowState::CLOSING, 240)))
            .step(back(ACK, 9802, 102, 0).after(200))
            .step(
                talk.sends(L4::Tcp(ACK, 102, 9802, 0)).after(41).dropped(DropReason::NoConnection).then(holds(0, 0, 0)),
            ),
        begin("the other side closes first")
            .step(back(FIN | ACK, 9001, 101, 10).then(is(established, closing)))
            .step(talk.out_again(L4::Tcp(ACK, 101, 9012, 100)).after(3600).then(is(established, closing)))
            .step(out(FIN | ACK, 201, 9012, 0).then(same(FlowState::CLOSING, 240))),
        begin("a new connection after both have closed")
            .step(out(FIN | ACK, 101, 9001, 0))
            .step(back(FIN | ACK, 9001, 102, 0))
            .step(out(SYN, 777, 0, 0).then(holds(2, 0, 0)).then(same(FlowState::UNREPLIED, 240)))
            .step(back(SYN | ACK, 888, 778, 0)),
        begin("a SYN in the midst of a connection").step(out(SYN, 777, 0, 0).then(same(FlowState::ESTABLISHED, 7440))),
        begin("a SYN after one side has closed")
            .step(out(FIN | ACK, 101, 9001, 0))
            .step(out(SYN, 777, 0, 0).then(is(closing, established))),
        begin("a RST where it belongs, from afar").step(back(RST, 9001, 0, 0).then(same(FlowState::CLOSED, 240))),
        begin("a RST where it belongs, from near")
            .step(out(RST | ACK, 101, 9001, 0).then(same(FlowState::CLOSED, 240))),
        begin("a RST before it").step(back(RST, 9000, 0, 0).then(same(FlowState::ESTABLISHED, 7440))),
        begin("a RST behind it").step(back(RST, 9002, 0, 0).then(same(FlowState::ESTABLISHED, 7440))),
        begin("a RST far away").step(back(RST, 0x8000_0000, 0, 0).then(same(FlowState::ESTABLISHED, 7440))),
        begin("a RST within what is not acknowledged")
            .step(back(ACK, 9001, 101, 1000))
            .step(back(RST, 9500, 0, 0).then(same(FlowState::CLOSED, 240))),
        begin("a RST for what is acknowledged")
            .step(back(ACK, 9001, 101, 1000))
            .step(out(ACK, 101, 10_001, 0))
            .step(back(RST, 9500, 0, 0).then(same(FlowState::ESTABLISHED, 7440))),
        begin("nothing revives what a RST has ended")
            .step(back(RST, 9001, 0, 0))
            .step(out(ACK, 101, 9001, 5).after(100).then(seen(100)))
            .step(back(ACK, 9001, 101, 5).then(same(FlowState::CLOSED, 240)))
            .step(
                talk.sends(L4::Tcp(ACK, 106, 9001, 5))
                    .after(141)
                    .dropped(DropReason::NoConnection)
                    .then(holds(0, 0, 0)),
            ),
        begin("a new connection after a RST")
            .step(back(RST, 9001, 0, 0))
            .step(out(SYN, 5000, 0, 0).then(holds(2, 0, 0)))
            .step(back(SYN | ACK, 6000, 5001, 0).then(same(FlowState::HALF_OPEN, 240))),
        begin("a segment ahead of all that was sent does not widen the window")
            .step(back(ACK, 0x4000_0000, 101, 10))
            .step(back(RST, 0x4000_000a, 0, 0).then(same(FlowState::ESTABLISHED, 7440))),
    ];
    let opening = |name: &str| Sequence::new(format!("{family}, TCP, {name}")).step(talk.out(FIRST_SYN));
    all.extend([
        opening("refused").step(back(RST | ACK, 0, 101, 0).then(same(FlowState::CLOSED, 240)).then(holds(2, 0, 0))),
        opening("refused by a guess").step(back(RST | ACK, 0, 102, 0).then(same(FlowState::UNREPLIED, 240))),
        opening("refused without an acknowledgement").step(back(RST, 0, 0, 0).then(same(FlowState::UNREPLIED, 240))),
        opening("the SYN comes twice")
            .step(out(SYN, 100, 0, 0).then(holds(2, 0, 0)))
            .step(back(SYN | ACK, 9000, 101, 0))
            .step(back(SYN | ACK, 9000, 101, 0).then(same(FlowState::HALF_OPEN, 240)))
            .step(out(ACK, 101, 9001, 0).then(holds(0, 2, 0))),
        opening("both open")
            .step(back(SYN, 9000, 0, 0).then(same(FlowState::HALF_OPEN, 240)))
            .step(out(SYN | ACK, 100, 9001, 0))
            .step(back(SYN | ACK, 9000, 101, 0))
            .step(out(ACK, 101, 9001, 0).then(holds(0, 2, 0))),
        opening("an ACK without a SYN is no answer").step(back(ACK, 1, 101, 0).then(same(FlowState::UNREPLIED, 240))),
        opening("it is not answered in time")
            .step(talk.comes(L4::Tcp(SYN | ACK, 9000, 101, 0)).after(241).then(holds(0, 0, 0))),
    ]);
    for flags in [0, ACK, FIN, RST, SYN | ACK, SYN | FIN, SYN | RST, FIN | ACK, RST | ACK, 0xff] {
        let sequence = Sequence::new(format!("{family}, TCP, flags {flags:#04x} open nothing"));
        all.push(
            sequence.step(talk.sends(L4::Tcp(flags, 1, 1, 0)).dropped(DropReason::NoConnection).then(holds(0, 0, 0))),
        );
    }
    // With the bits of ECN (RFC 3168), and urgent data: a SYN as any.
    all.push(
        Sequence::new(format!("{family}, TCP, a SYN with ECN")).step(out(SYN | 0xc0, 1, 0, 0).then(holds(2, 0, 0))),
    );
    all
}

fn ages(is_v4: bool, family: &str) -> Vec<Sequence> {
    let talk = Talk::red(is_v4, 3000, 4000);
    let blue = Talk::masqueraded(&BLUE, is_v4, 3000, 4000);
    let udp = || (talk.out(L4::Udp), talk.back(L4::Udp));
    let begin = |name: &str| {
        let (out, back) = udp();
        Sequence::new(format!("{family}, UDP, {name}")).step(out).step(back)
    };
    vec![
        begin("kept alive from inside")
            .step(talk.out_again(L4::Udp).after(5).then(seen(0)))
            .step(talk.out(L4::Udp).then(seen(0)))
            .step(talk.out_again(L4::Udp).after(299).then(seen(0)))
            .step(talk.out_again(L4::Udp).after(299).then(holds(0, 2, 2)))
            // The answers' entry is as old as the first one: it lives by the opener's, and no longer than that.
            .step(talk.back(L4::Udp).after(250).then(holds(0, 2, 2)))
            .step(talk.back(L4::Udp).after(50).then(holds(0, 2, 2)))
            .step(talk.comes(L4::Udp).after(1).then(holds(0, 0, 2))),
        begin("not kept alive from outside")
            .step(talk.back(L4::Udp).after(200).then(seen(200)))
            .step(talk.back(L4::Udp).after(100).then(seen(300)))
            .step(talk.comes(L4::Udp).after(1).then(holds(0, 0, 2))),
        begin("over")
            .step(talk.out(L4::Udp).after(301).then(holds(2, 0, 2)))
            .step(talk.back(L4::Udp).then(holds(0, 2, 2))),
        // One-way senders: found by one lookup, too, and still known as unanswered.
        Sequence::new(format!("{family}, UDP, used for a second without an answer"))
            .step(talk.out(L4::Udp))
            .step(talk.out(L4::Udp).then(holds(2, 0, 2)))
            .step(talk.out_again(L4::Udp).after(2).then(holds(0, 2, 2)).then(same(FlowState::UNREPLIED, 300)))
            .step(talk.out(L4::Udp).then(holds(0, 2, 2)))
            .step(talk.back(L4::Udp).after(1).then(holds(0, 2, 2)).then(same(FlowState::ESTABLISHED, 300)))
            .step(talk.back(L4::Udp).then(same(FlowState::ESTABLISHED, 300))),
        Sequence::new(format!("{family}, TCP, a first segment that is repeated makes nothing grow"))
            .step(talk.out(FIRST_SYN))
            .step(talk.out_again(FIRST_SYN).after(2).then(holds(2, 0, 0))),
        Sequence::new(format!("{family}, UDP, each flow keeps the port that they share"))
            .step(talk.out(L4::Udp))
            .step(talk.with(AFAR_2.0, AFAR_2.1).out(L4::Udp).after(250))
            .step(blue.pooled(L4::Udp, 1).out(L4::Udp).after(250)),
        Sequence::new(format!("{family}, UDP, the way back was pushed out"))
            .step(talk.out(L4::Udp))
            .step(talk.out(L4::Udp).after(1).with(forget_answers).then(holds(2, 0, 2)))
            .step(talk.back(L4::Udp).then(holds(0, 2, 2))),
        Sequence::new(format!("{family}, TCP, the way back was pushed out"))
            .step(talk.out(FIRST_SYN))
            .step(talk.out(FIRST_SYN).after(1).with(forget_answers).then(holds(2, 0, 0)))
            .step(talk.back(L4::Tcp(SYN | ACK, 9000, 101, 0))),
        begin("its port rests before it is another's")
            .step(blue.pooled(L4::Udp, 1).out(L4::Udp).after(419).then(holds(2, 2, 4))),
        begin("its port is another's after that")
            .step(blue.out(L4::Udp).after(301 + QUARANTINE))
            .step(blue.back(L4::Udp)),
        Sequence::new(format!("{family}, echo, over"))
            .step(talk.out(L4::Ping))
            .step(talk.back(L4::Pong).after(60))
            .step(talk.comes(L4::Pong).after(1).then(holds(0, 0, 2))),
        handshake(format!("{family}, TCP, idle for two hours"), talk)
            .step(talk.back(L4::Tcp(ACK, 9001, 101, 1)).after(7440))
            .step(talk.out_again(L4::Tcp(ACK, 101, 9002, 1)).then(seen(0)))
            .step(
                talk.sends(L4::Tcp(ACK, 102, 9002, 1))
                    .after(7441)
                    .dropped(DropReason::NoConnection)
                    .then(holds(0, 0, 0)),
            ),
        begin("the address is no longer the host's").step(
            talk.sends(L4::Udp).after(2).rerouted(|tables| new_source(tables, [192, 0, 2, 2])).leaves_moved(&talk),
        ),
        begin("the owner is gone").step(
            talk.comes(L4::Udp)
                .with(|tables| {
                    tables.ports.remove(&RED.id);
                })
                .dropped(DropReason::UnknownDestination),
        ),
        begin("the way is gone").step(talk.sends(L4::Udp).after(2).rerouted(unreachable).told(
            DropReason::NoRoute,
            &HOST,
            if is_v4 { [3, 0] } else { [1, 0] },
            0,
        )),
        begin("the uplink is gone")
            .step(talk.sends(L4::Udp).after(2).with(|tables| tables.uplinks.clear()).dropped(DropReason::NoUplink)),
        begin("the uplink's port is gone").step(
            talk.sends(L4::Udp)
                .with(|tables| {
                    tables.ports.remove(&PortId(UPLINK.id.0));
                })
                .dropped(DropReason::UnknownDestination),
        ),
    ]
}

/// The table of young flows keeps each direction for itself: one may be pushed out and the other one stay.
fn forget_answers(tables: &mut MemoryTables) {
    tables.young.borrow_mut().retain(|_, flow| !flow.about.has(flow_flags::REPLY));
}

fn unreachable(tables: &mut MemoryTables) {
    for (_, _, route, _) in &mut tables.routes {
        *route = Route::Unreachable;
    }
}

fn new_source(tables: &mut MemoryTables, v4: [u8; 4]) {
    let mut v6 = UPLINK.ipv6;
    v6[15] = 2;
    for (_, _, _, hop) in &mut tables.routes {
        let is_v4 = hop.source.as_v4().is_some();
        hop.source = if is_v4 { crate::wire::IpAddress::v4(v4) } else { crate::wire::IpAddress(v6) };
    }
}

impl super::sequence::Step {
    /// It leaves with the host's new address, by a new flow.
    fn leaves_moved(self, talk: &Talk) -> Self {
        let mut v6 = UPLINK.ipv6;
        v6[15] = 2;
        let moved = Talk { outer: ([192, 0, 2, 2], v6), ..*talk };
        let frame = super::talk::put(moved.left(), L4::Udp, (moved.near.1, moved.far), moved.is_v4).hops(63);
        self.leaves(frame)
    }
}
