//! Published ports, from outside and from namespaces; and what from outside gets in nowhere.

use crate::layout::{FlowKey, FlowState, Publish, QUARANTINE, policy_flags};
use crate::memory::MemoryTables;
use crate::verdict::DropReason;
use crate::wire::{IpAddress, Mac};

use super::flows::holds;
use super::frame::{Frame, v4, v6};
use super::sequence::{Sequence, Step, from, outside};
use super::talk::{ACK, FIN, L4, SYN, Talk, put};
use super::world::{
    AFAR_V4, AFAR_V6, BLUE, CYAN, End, FREE_V4, HOST, HOST_2, HOST_4, LIME, RED, ROUTER_MAC, SECOND_V4, SECRET,
    SIDE_V4, UPLINK,
};

const FIRST_SYN: L4 = L4::Tcp(SYN, 100, 0, 0);
const SECOND: L4 = L4::Tcp(SYN | ACK, 9000, 101, 0);
const THIRD: L4 = L4::Tcp(ACK, 101, 9001, 0);

pub(super) fn sequences() -> Vec<Sequence> {
    let mut all = from_outside();
    all.extend(forged_senders());
    all.extend(not_published());
    all.extend(from_inside());
    all.extend(by_mapping());
    all.extend(nowhere());
    all
}

/// A published port: who gets it, how it is called there and outside.
fn publish(end: &'static End, is_v4: bool, inner: u16, outer: u16) -> Talk {
    let mut talk = Talk::masqueraded(end, is_v4, inner, 5555);
    talk.near.1 = outer;
    talk
}

impl Talk {
    /// The first answer, whose way is asked for.
    fn out_first(&self, l4: L4) -> Step {
        let left = Frame::new(Mac::ZERO, Mac::ZERO);
        let left = if self.is_v4 { left.ipv4(self.outer.0, self.afar.0) } else { left.ipv6(self.outer.1, self.afar.1) };
        self.sends(l4).leaves_by_neighbour(put(left, l4, (self.near.1, self.far), self.is_v4).hops(63))
    }
}

fn hits(place: u32, count: u64) -> impl Fn(&MemoryTables) {
    move |tables| assert_eq!(tables.publish_hits.borrow().get(&place).copied().unwrap_or_default(), count)
}

fn from_outside() -> Vec<Sequence> {
    let mut all = Vec::new();
    let mut second = publish(&BLUE, true, 443, 8443);
    second.outer.0 = SECOND_V4;
    for (name, place, talk) in [
        ("an address and port", 1, publish(&RED, true, 80, 8080)),
        ("every address of IPv6", 3, publish(&BLUE, false, 443, 8443)),
        ("every address of IPv4", 4, publish(&BLUE, true, 443, 8443)),
        ("every address of IPv4, by the second", 4, second),
        ("the first port of a range", 6, publish(&CYAN, true, 9000, 9000)),
        ("the last port of a range", 6, publish(&CYAN, true, 9010, 9010)),
        ("an open network's", 8, publish(&LIME, true, 70, 7000)),
    ] {
        all.push(
            Sequence::new(format!("published TCP, {name}"))
                .step(talk.back(FIRST_SYN).then(holds(2, 0, 0)).then(hits(place, 1)))
                // The way is asked for, and known from then on.
                .step(talk.out_first(SECOND))
                .step(talk.back(THIRD).then(holds(0, 2, 0)))
                .step(talk.out(L4::Tcp(ACK, 9001, 101, 900)))
                .step(talk.out_again(L4::Tcp(ACK, 9901, 101, 900)).after(2))
                .step(talk.out(L4::Tcp(ACK, 10_801, 101, 900)))
                .step(talk.back(L4::Tcp(FIN | ACK, 101, 11_701, 0)).then(hits(place, 1))),
        );
    }
    let sctp = publish(&BLUE, true, 3868, 3868);
    for (name, place, l4, talk) in [
        ("a range of ports", 2, L4::Udp, publish(&RED, true, 6304, 5304)),
        ("an address of IPv6", 5, L4::Udp, publish(&RED, false, 5001, 5000)),
        ("SCTP", 7, L4::Sctp, sctp),
    ] {
        all.push(
            Sequence::new(format!("published, {name}"))
                .step(talk.back(l4).then(holds(2, 0, 0)).then(hits(place, 1)))
                .step(talk.back(l4))
                .step(talk.out_first(l4).then(holds(0, 2, 0)))
                // Both keep it alive.
                .step(talk.back(l4).after(299))
                .step(talk.back(l4).after(299).then(holds(0, 2, 0)))
                .step(talk.out_again(l4).after(1))
                .step(talk.out(l4).then(hits(place, 1)))
                .step(talk.back(l4).after(301).then(holds(2, 0, 0)).then(hits(place, 2))),
        );
    }
    let udp = publish(&RED, true, 6304, 5304);
    let moved = publish(&BLUE, true, 6304, 5304);
    all.push(
        Sequence::new("published UDP goes to the new owner")
            .step(udp.back(L4::Udp))
            .step(udp.out_first(L4::Udp))
            .step(moved.back(L4::Udp).with(|tables| give(tables, 2, &BLUE)).then(holds(2, 0, 0)))
            .step(moved.out_first(L4::Udp)),
    );
    all.push(
        Sequence::new("published UDP is withdrawn").step(udp.back(L4::Udp)).step(udp.out_first(L4::Udp)).step(
            udp.comes(L4::Udp)
                .with(|tables| {
                    tables.publishes[2] = Publish::default();
                    tables.published.retain(|(_, _, place)| *place != 2);
                })
                .then(holds(0, 0, 0)),
        ),
    );
    let mut by_second = udp;
    by_second.outer.0 = SECOND_V4;
    all.push(
        Sequence::new("published UDP, asked by one client at two addresses")
            .step(udp.back(L4::Udp))
            .step(by_second.comes(L4::Udp).told(DropReason::PortsExhausted, &UPLINK, [3, 13], 0).then(holds(2, 0, 0)))
            .step(udp.out_first(L4::Udp)),
    );
    // The host has them, but nsnet has not looked since it got them.
    for (name, is_v4) in [("IPv4", true), ("IPv6", false)] {
        let mut talk = publish(&BLUE, is_v4, 443, 8443);
        talk.outer.0 = SECOND_V4;
        all.push(
            Sequence::new(format!("published TCP, an address of {name} that came later"))
                .with(|tables| tables.locals.clear())
                .step(talk.back(FIRST_SYN).then(holds(2, 0, 0)))
                .step(talk.out_first(SECOND)),
        );
    }
    let tcp = publish(&RED, true, 80, 8080);
    all.push(
        Sequence::new("published TCP goes on with the old owner")
            .step(tcp.back(FIRST_SYN))
            .step(tcp.out_first(SECOND))
            .step(tcp.back(THIRD))
            .step(tcp.back(L4::Tcp(ACK, 101, 9001, 9)).with(|tables| give(tables, 1, &BLUE))),
    );
    all.push(Sequence::new("published TCP, one hop short").step(
        outside(put(tcp.entering(), FIRST_SYN, (5555, 8080), true).hops(1)).told(
            DropReason::TtlExceeded,
            &UPLINK,
            [11, 0],
            0,
        ),
    ));
    all.push(
        Sequence::new("published TCP, no more flows")
            .with(|tables| tables.policies.values_mut().for_each(|policy| policy.flows_per_ns = 0))
            .step(tcp.comes(FIRST_SYN).told(DropReason::FlowQuota, &UPLINK, [3, 13], 0)),
    );
    all
}

/// The published entry becomes somebody else's.
fn give(tables: &mut MemoryTables, place: usize, end: &End) {
    let entry = &mut tables.publishes[place];
    (entry.owner, entry.target) = (end.id, IpAddress::v4(end.ipv4));
    entry.epoch += 1;
}

/// Nobody outside has an address of the host's, nor a broadcast address: such packets get to no published port, and to no
/// mapped one.
fn forged_senders() -> Vec<Sequence> {
    let mut all = Vec::new();
    for (name, v4_sender) in [
        ("the host", UPLINK.ipv4),
        ("the host's second address", SECOND_V4),
        ("the host's address elsewhere", SIDE_V4),
        ("a broadcast address", v4("192.0.2.255")),
    ] {
        let forged = publish(&RED, true, 80, 8080).with(v4_sender, UPLINK.ipv6);
        let step = forged.comes(FIRST_SYN).dropped(DropReason::Martian);
        all.push(Sequence::new(format!("published, in the name of {name}")).step(step));
        let open = |tables: &mut MemoryTables| {
            tables.policies.values_mut().for_each(|policy| policy.flags |= policy_flags::FILTER_NOTHING);
        };
        let (talk, forged) = (Talk::red(true, 3000, 4000), Talk::red(true, 3000, 4000).with(v4_sender, UPLINK.ipv6));
        let mapped = Sequence::new(format!("mapped, in the name of {name}")).with(open).step(talk.out(L4::Udp));
        all.push(mapped.step(forged.comes(L4::Udp).dropped(DropReason::Martian)).step(talk.back(L4::Udp)));
    }
    let forged = publish(&BLUE, false, 443, 8443).with(UPLINK.ipv4, UPLINK.ipv6);
    let step = forged.comes(FIRST_SYN).dropped(DropReason::Martian);
    all.push(Sequence::new("published, IPv6, in the name of the host").step(step));
    all
}

fn not_published() -> Vec<Sequence> {
    let talk = publish(&RED, true, 80, 8080);
    let mut second = talk;
    second.outer.0 = SECOND_V4;
    let mut through = publish(&BLUE, true, 443, 8443);
    through.outer.0 = v4("172.16.5.5");
    let mut unrouted = through;
    unrouted.outer.0 = v4("100.64.0.1");
    let [mut broadcast, mut to_all, mut to_group, mut aside] = [through; 4];
    broadcast.outer.0 = v4("192.0.2.255");
    to_all.outer.0 = v4("255.255.255.255");
    to_group.outer.0 = v4("224.0.0.1");
    aside.outer.0 = v4("192.168.77.9");
    let [mut unrouted_v6, mut to_group_v6] = [publish(&BLUE, false, 443, 8443); 2];
    unrouted_v6.outer.1 = v6("2001:db8:ff::1");
    to_group_v6.outer.1 = v6("ff02::1");
    let mut all = vec![
        Sequence::new("not published: the host's other address").step(second.comes(FIRST_SYN)),
        Sequence::new("not published: an address that is not the host's").step(through.comes(FIRST_SYN)),
        Sequence::new("not published: an address without a route, asked from inside").step(
            from(&RED, put(RED.to(&HOST).ipv4(RED.ipv4, unrouted.outer.0), FIRST_SYN, (3000, 8443), true)).told(
                DropReason::NoRoute,
                &HOST,
                [3, 0],
                0,
            ),
        ),
        Sequence::new("not published: an address without a route").step(unrouted.comes(FIRST_SYN)),
        Sequence::new("not published: the same, which nsnet has not seen since")
            .with(|tables| tables.locals.clear())
            .step(unrouted.comes(FIRST_SYN)),
        Sequence::new("not published: a broadcast address").step(broadcast.comes(FIRST_SYN)),
        Sequence::new("not published: the broadcast of all").step(to_all.comes(FIRST_SYN)),
        Sequence::new("not published: a group").step(to_group.comes(FIRST_SYN)),
        Sequence::new("not published: a group of IPv6").step(to_group_v6.comes(FIRST_SYN)),
        Sequence::new("not published: an address of IPv6 without a route").step(unrouted_v6.comes(FIRST_SYN)),
        Sequence::new("not published: an address behind another interface").step(aside.comes(FIRST_SYN)),
        Sequence::new("not published: the other family").step(publish(&RED, false, 80, 8080).comes(FIRST_SYN)),
        Sequence::new("not published: the other protocol").step(talk.comes(L4::Udp)),
        Sequence::new("not published: the port before").step(publish(&CYAN, true, 8999, 8999).comes(FIRST_SYN)),
        Sequence::new("not published: the port after").step(publish(&CYAN, true, 9011, 9011).comes(FIRST_SYN)),
        Sequence::new("not published: a segment of no connection").step(talk.comes(THIRD)),
        Sequence::new("not published: an echo").step(talk.comes(L4::Ping)),
        Sequence::new("not published: an echo reply").step(talk.comes(L4::Pong)),
        Sequence::new("not published: another protocol").step(talk.comes(L4::Other)),
    ];
    let later = talk.entering().fragment_v4(10, false).payload(30);
    all.push(
        Sequence::new("from outside: a fragment of nothing").step(outside(later).dropped(DropReason::FragmentUnknown)),
    );
    let bad = talk.entering().protocol(6, &[0; 12]);
    all.push(Sequence::new("from outside: a TCP header that is cut off").step(outside(bad)));
    all
}

/// From namespaces to the host's addresses: the receiver sees its own gateway, by a port of the pool.
fn from_inside() -> Vec<Sequence> {
    let mut all = Vec::new();
    for (name, sender, gateway) in [
        ("the same network", &BLUE, &HOST),
        ("itself", &RED, &HOST),
        ("another network", &CYAN, &HOST_2),
        ("an open network", &LIME, &HOST_4),
    ] {
        for (to, port, inner, l4) in
            [(UPLINK.ipv4, 8080, 80, FIRST_SYN), (SECOND_V4, 5301, 6301, L4::Udp), (gateway.ipv4, 5301, 6301, L4::Udp)]
        {
            let source = (IpAddress::v4(sender.ipv4), 3000u16.to_be_bytes());
            let destination = (IpAddress::v4(to), u16::to_be_bytes(port));
            let key = FlowKey::new(sender.network, l4.protocol(true), source, destination, true);
            let given = 16384 + (crate::hash::keyed_hash(SECRET, &key, 1) % 16384) as u16;
            let asks = put(sender.to(gateway).ipv4(sender.ipv4, to), l4, (3000, port), true);
            let asked = put(HOST.to(&RED).ipv4(HOST.ipv4, RED.ipv4), l4, (given, inner), true).hops(63);
            let tells = put(RED.to(&HOST).ipv4(RED.ipv4, HOST.ipv4), l4.answer(), (inner, given), true);
            let told = put(gateway.to(sender).ipv4(to, sender.ipv4), l4.answer(), (port, 3000), true).hops(63);
            let of = to.map(|byte| byte.to_string()).join(".");
            all.push(
                Sequence::new(format!("published, asked from {name}, at {of}"))
                    .step(from(sender, asks.clone()).enters(&RED, asked.clone()).then(holds(2, 0, 0)))
                    .step(from(&RED, tells.clone()).enters(sender, told.clone()))
                    .step(from(sender, asks).enters(&RED, asked))
                    .step(from(&RED, tells).enters(sender, told)),
            );
        }
    }
    let host = RED.to(&HOST).ipv4(RED.ipv4, UPLINK.ipv4);
    all.push(
        Sequence::new("to a socket of the host")
            .step(from(&RED, put(host.clone(), FIRST_SYN, (1, 22), true)).goes_to_host(&HOST)),
    );
    all.push(
        Sequence::new("an echo to the host")
            .step(from(&RED, put(host.clone(), L4::Ping, (1, 0), true)).goes_to_host(&HOST)),
    );
    let short = put(host, FIRST_SYN, (1, 8080), true).hops(1);
    all.push(Sequence::new("published, asked one hop short").step(from(&RED, short).told(
        DropReason::TtlExceeded,
        &HOST,
        [11, 0],
        0,
    )));
    all
}

/// To an external endpoint that a namespace of ours has (RFC 4787 REQ-9).
fn by_mapping() -> Vec<Sequence> {
    let red = Talk::red(true, 3000, 4000);
    let asks = |sender: &'static End, gateway: &End| {
        from(sender, put(sender.to(gateway).ipv4(sender.ipv4, UPLINK.ipv4), L4::Udp, (7777, 3000), true))
    };
    // Each sees the other's external endpoint.
    let asked = put(HOST.to(&RED).ipv4(UPLINK.ipv4, RED.ipv4), L4::Udp, (7777, 3000), true).hops(63);
    let tells = put(RED.to(&HOST).ipv4(RED.ipv4, UPLINK.ipv4), L4::Udp, (3000, 7777), true);
    let told = put(HOST.to(&BLUE).ipv4(UPLINK.ipv4, BLUE.ipv4), L4::Udp, (3000, 7777), true).hops(63);
    let begin = |name: &str| Sequence::new(format!("to a mapped port, {name}")).step(red.out(L4::Udp));
    vec![
        begin("from the same network")
            .step(asks(&BLUE, &HOST).enters(&RED, asked))
            .step(from(&RED, tells).enters(&BLUE, told)),
        begin("from another network").step(asks(&CYAN, &HOST_2).dropped(DropReason::OtherNetwork)),
        begin("from an open network").step(asks(&LIME, &HOST_4).dropped(DropReason::OtherNetwork)),
        begin("from another host").step(red.with(FREE_AFAR.0, FREE_AFAR.1).comes(L4::Udp)),
        begin("after its time").step(asks(&BLUE, &HOST).after(301 + QUARANTINE).goes_to_host(&HOST)),
    ]
}

const FREE_AFAR: ([u8; 4], [u8; 16]) =
    ([198, 51, 100, 77], [0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x77]);

/// What no packet from outside may say.
fn nowhere() -> Vec<Sequence> {
    let mut all = Vec::new();
    let enter = |source: [u8; 4], destination: [u8; 4]| {
        outside(Frame::new(ROUTER_MAC, UPLINK.mac).ipv4(source, destination).segment((5555, 8080), SYN, (1, 0)))
    };
    let enter6 = |source: [u8; 16], destination: [u8; 16]| {
        outside(Frame::new(ROUTER_MAC, UPLINK.mac).ipv6(source, destination).segment((5555, 8443), SYN, (1, 0)))
    };
    for (name, source) in [("red", RED.ipv4), ("nobody", FREE_V4), ("a gateway", HOST_2.ipv4)] {
        let sequence = Sequence::new(format!("from outside in the name of {name}"));
        all.push(sequence.step(enter(source, UPLINK.ipv4).dropped(DropReason::OwnSource)));
    }
    all.push(
        Sequence::new("from outside in the name of red, IPv6")
            .step(enter6(RED.ipv6, UPLINK.ipv6).dropped(DropReason::OwnSource)),
    );
    for (name, destination) in [("red", RED.ipv4), ("cyan", CYAN.ipv4), ("nobody", FREE_V4)] {
        let sequence = Sequence::new(format!("from outside to {name} itself"));
        all.push(sequence.step(enter(AFAR_V4, destination).dropped(DropReason::DirectAccess)));
    }
    all.push(
        Sequence::new("from outside to red itself, IPv6")
            .step(enter6(AFAR_V6, RED.ipv6).dropped(DropReason::DirectAccess)),
    );
    // The gateways are the host's: its own rules say who may.
    all.push(Sequence::new("from outside to a gateway").step(enter(AFAR_V4, HOST_2.ipv4)));
    for (source, destination) in [("127.0.0.1", "192.0.2.1"), ("198.51.100.9", "127.0.0.1"), ("127.9.9.9", "192.0.2.1")]
    {
        let sequence = Sequence::new(format!("from outside, {source} to {destination}"));
        all.push(sequence.step(enter(v4(source), v4(destination)).dropped(DropReason::Martian)));
    }
    for (source, destination) in [("::1", "2001:db8:1::1"), ("2001:db8:9::9", "::1")] {
        let sequence = Sequence::new(format!("from outside, {source} to {destination}"));
        all.push(sequence.step(enter6(v6(source), v6(destination)).dropped(DropReason::Martian)));
    }
    // Never a client: the host's stack knows what to do with these.
    for source in ["0.0.0.0", "0.1.2.3", "169.254.1.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"] {
        let sequence = Sequence::new(format!("published TCP, from {source}"));
        all.push(sequence.step(enter(v4(source), UPLINK.ipv4).then(holds(0, 0, 0))));
    }
    let talk = publish(&RED, true, 80, 8080);
    let opened = talk.back(FIRST_SYN).then(|tables: &MemoryTables| {
        assert!(tables.young.borrow().values().all(|flow| flow.about.state == FlowState::UNREPLIED));
    });
    all.push(
        Sequence::new("published TCP, twice the same SYN").step(opened).step(talk.back(FIRST_SYN).then(hits(1, 1))),
    );
    all
}
