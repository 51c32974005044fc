//! Where frames go: to one port, to all, to those that learn, or not further than the MTU and the allowance say.

use crate::layout::{AGEING_NS, FLOOD_BURST_NS, Network, PortId, Station};
use crate::memory::MemoryTables;
use crate::verdict::DropReason;
use crate::wire::Mac;

use super::frame::{Frame, v4, v6};
use super::ipv6::to_group;
use super::world::{
    BLACK, BLUE, CYAN, ENDS, End, FREE_V4, GREEN, HOST, HOST_2, HOST_3, ORANGE, PURPLE, RED, STRANGER, WHITE, isolate,
    others, put_station, stranger,
};
use super::{Case, from, from_host};

const SECOND: u64 = 1_000_000_000;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = pairs();
    cases.extend(isolated());
    cases.extend(unknown());
    cases.extend(floods());
    cases.extend(lengths());
    cases.extend(segments());
    cases.extend(allowance());
    cases
}

fn begin(sender: &End, name: String, frame: Frame) -> Case {
    if sender.id == HOST.id || sender.id == HOST_2.id || sender.id == HOST_3.id {
        from_host(sender, name, frame)
    } else {
        from(sender, name, frame)
    }
}

/// Every port to every port.
fn pairs() -> Vec<Case> {
    let mut cases = Vec::new();
    for sender in ENDS {
        for to in ENDS {
            let case = begin(sender, format!("IPv4 from {} to {}", sender.name, to.name), sender.udp4(to));
            cases.push(if sender.id == to.id {
                case.dropped(DropReason::SamePort)
            } else if sender.network == to.network {
                case.delivered(to)
            } else if sender.network == RED.network {
                // In network 1 there are learning ports behind which an unknown MAC may be; its owner is not asked.
                case.flooded([&ORANGE, &GREEN].into_iter().filter(|end| end.id != sender.id))
            } else {
                case.dropped(DropReason::UnknownDestination)
            });
            if sender.network == to.network && sender.id != to.id && sender.network != WHITE.network {
                let case = begin(sender, format!("IPv6 from {} to {}", sender.name, to.name), sender.udp6(to));
                cases.push(case.delivered(to));
            }
        }
    }
    cases
}

/// Between red, blue and orange nothing passes, as it does between any of them and the others.
fn isolated() -> Vec<Case> {
    let kept = DropReason::IsolatedPort;
    let to = |sender: &End, mac| Frame::new(sender.mac, mac).ipv4(sender.ipv4, FREE_V4).udp(1, 2).payload(18);
    let cases = vec![
        from(&RED, "IPv4 between isolated ports", RED.udp4(&BLUE)).dropped(kept),
        from(&BLUE, "IPv6 between isolated ports", BLUE.udp6(&RED)).dropped(kept),
        from(&RED, "from an isolated port", RED.udp4(&PURPLE)).delivered(&PURPLE),
        from(&PURPLE, "to an isolated port", PURPLE.udp6(&RED)).delivered(&RED),
        from_host(&HOST, "from the host to an isolated port", HOST.udp4(&RED)).delivered(&RED),
        from(&RED, "to a station behind an isolated port", to(&RED, stranger(1)))
            .knowing(&ORANGE, 0, stranger(1), 10 * SECOND)
            .dropped(kept),
        from(&RED, "broadcast from an isolated port", RED.broadcast())
            .flooded([&HOST, &PURPLE, &GREEN])
            .keeping_away(2),
        from(&PURPLE, "broadcast to isolated ports", PURPLE.broadcast()).flooded(others(&PURPLE)),
        from(&RED, "unknown unicast from an isolated port", to(&RED, STRANGER)).flooded([&GREEN]).keeping_away(1),
        from(&GREEN, "unknown unicast to an isolated port", to(&GREEN, STRANGER)).flooded([&ORANGE]),
    ];
    cases.into_iter().map(|case| case.with(isolate)).collect()
}

/// Unicast to a MAC that no port has goes to ports that learn: only there can it be.
fn unknown() -> Vec<Case> {
    let to = |sender: &End, mac| Frame::new(sender.mac, mac).ipv4(sender.ipv4, FREE_V4).udp(1, 2).payload(18);
    let aged = AGEING_NS + SECOND;
    // The MAC that the number of blue's port would have, had the user not set another.
    let of_number = Mac([2, 0, 1, 0, 3, 0]);
    let dead = |tables: &mut MemoryTables| {
        put_station(tables, &ORANGE, stranger(1), Station::fixed(PortId(200)));
    };
    let elsewhere = |tables: &mut MemoryTables| {
        put_station(tables, &RED, stranger(1), Station::fixed(CYAN.id));
    };
    vec![
        from(&RED, "unknown unicast", to(&RED, STRANGER)).flooded([&ORANGE, &GREEN]),
        from(&ORANGE, "unknown unicast from a port that learns", to(&ORANGE, STRANGER)).flooded([&GREEN]),
        from(&CYAN, "unknown unicast where no port learns", to(&CYAN, STRANGER))
            .dropped(DropReason::UnknownDestination),
        from_host(&HOST, "unknown unicast", to(&HOST, STRANGER)).flooded([&ORANGE, &GREEN]),
        from_host(&HOST_2, "unknown unicast where no port learns", to(&HOST_2, STRANGER))
            .dropped(DropReason::UnknownDestination),
        from(&RED, "unicast to MAC zero", to(&RED, Mac::ZERO)).flooded([&ORANGE, &GREEN]),
        from(&RED, "unicast to a user-set port's number", to(&RED, of_number)).flooded([&ORANGE, &GREEN]),
        from(&RED, "unicast to a learned station", to(&RED, stranger(1)))
            .knowing(&GREEN, 0, stranger(1), 10 * SECOND)
            .delivered(&GREEN),
        from(&RED, "unicast to a station about to age", to(&RED, stranger(1)))
            .knowing(&GREEN, 0, stranger(1), AGEING_NS - 10 * SECOND)
            .delivered(&GREEN),
        from(&RED, "unicast to an aged station", to(&RED, stranger(1)))
            .knowing(&GREEN, 0, stranger(1), aged)
            .flooded([&ORANGE, &GREEN]),
        from(&GREEN, "unicast to a station behind the same port", to(&GREEN, stranger(1)))
            .knowing(&GREEN, 0, stranger(1), 10 * SECOND)
            .dropped(DropReason::SamePort),
        from(&CYAN, "unicast to a station learned in another network", to(&CYAN, stranger(1)))
            .knowing(&GREEN, 0, stranger(1), 10 * SECOND)
            .dropped(DropReason::UnknownDestination),
        from(&RED, "unicast to a station behind no port", to(&RED, stranger(1))).with(dead).flooded([&ORANGE, &GREEN]),
        from(&RED, "unicast to a station behind another network's port", to(&RED, stranger(1)))
            .with(elsewhere)
            .flooded([&ORANGE, &GREEN]),
    ]
}

fn floods() -> Vec<Case> {
    let mut cases = Vec::new();
    for sender in ENDS {
        let case = begin(sender, format!("broadcast from {}", sender.name), sender.broadcast());
        cases.push(case.flooded(others(sender)));
        let mdns = Frame::new(sender.mac, Mac([1, 0, 0x5e, 0, 0, 0xfb])).ipv4(sender.ipv4, v4("224.0.0.251"));
        let case = begin(sender, format!("multicast from {}", sender.name), mdns.udp(5353, 5353).payload(40));
        cases.push(case.flooded(others(sender)));
        if sender.network != WHITE.network {
            let mdns = to_group(sender, sender.ipv6, "ff02::fb").udp(5353, 5353).payload(40);
            let case = begin(sender, format!("IPv6 multicast from {}", sender.name), mdns);
            cases.push(case.flooded(others(sender)));
        }
    }
    let alone = from(&WHITE, "broadcast to nobody", WHITE.broadcast());
    cases.push(alone.flooded([]).with(|tables| {
        tables.ports.remove(&HOST_3.id);
        tables.networks.insert(WHITE.network, Network::new(WHITE.id, 1, 0));
    }));
    // A port whose list is wrong for a moment never leads into another network.
    let crossed = from(&BLACK, "broadcast along a list that crosses over", BLACK.broadcast());
    cases.push(crossed.flooded([&HOST_2, &CYAN]).with(|tables| {
        let black = tables.ports[&BLACK.id].followed_by(RED.id);
        tables.ports.insert(BLACK.id, black);
    }));
    cases
}

/// An Ethernet header and `mtu` bytes, from red.
fn long(to: Mac, destination: [u8; 4], mtu: usize) -> Frame {
    Frame::new(RED.mac, to).ipv4(RED.ipv4, destination).udp(1, 2).payload(mtu - 28)
}

fn lengths() -> Vec<Case> {
    let to_blue = |mtu| long(BLUE.mac, BLUE.ipv4, mtu);
    let all = |mtu| long(Mac::BROADCAST, [255; 4], mtu);
    let from_cyan = Frame::new(CYAN.mac, BLACK.mac).ipv6(CYAN.ipv6, BLACK.ipv6).udp(1, 2).payload(1281 - 48);
    let from_host_1 = HOST.to(&RED).ipv4(HOST.ipv4, RED.ipv4).udp(1, 2).payload(1473);
    let too_long = DropReason::TooLong;
    let mut nobody = from(&RED, "broadcast of 1501 bytes: for nobody", all(1501)).flooded(others(&RED));
    for end in others(&RED) {
        nobody = nobody.but_not(end, too_long);
    }
    vec![
        from(&RED, "1500 bytes to MTU 1500", to_blue(1500)).delivered(&BLUE),
        from(&RED, "1501 bytes to MTU 1500", to_blue(1501)).dropped(too_long),
        from(&RED, "1280 bytes to MTU 1280", to_blue(1280)).with_mtu(&BLUE, 1280).delivered(&BLUE),
        from(&RED, "1281 bytes to MTU 1280", to_blue(1281)).with_mtu(&BLUE, 1280).dropped(too_long),
        from(&CYAN, "1281 bytes of IPv6 to MTU 1280", from_cyan).with_mtu(&BLACK, 1280).dropped(too_long),
        from(&RED, "1501 bytes to MTU 9000", to_blue(1501)).with_mtu(&BLUE, 9000).delivered(&BLUE),
        from(&RED, "1281 bytes from MTU 1280", to_blue(1281)).with_mtu(&RED, 1280).delivered(&BLUE),
        from(&RED, "1501 bytes to the gateway", long(HOST.mac, HOST.ipv4, 1501)).dropped(too_long),
        from_host(&HOST, "1501 bytes to MTU 1500", from_host_1).dropped(too_long),
        from(&RED, "broadcast of 1280 bytes", all(1280)).with_mtu(&BLUE, 1280).flooded(others(&RED)),
        from(&RED, "broadcast of 1281 bytes", all(1281))
            .with_mtu(&BLUE, 1280)
            .flooded(others(&RED))
            .but_not(&BLUE, too_long),
        from(&RED, "broadcast of 1500 bytes to two short ports", all(1500))
            .with_mtu(&HOST, 1280)
            .with_mtu(&GREEN, 1499)
            .flooded(others(&RED))
            .but_not(&HOST, too_long)
            .but_not(&GREEN, too_long),
        from(&RED, "unknown unicast of 1281 bytes", long(STRANGER, FREE_V4, 1281))
            .with_mtu(&ORANGE, 1280)
            .flooded([&ORANGE, &GREEN])
            .but_not(&ORANGE, too_long),
        nobody,
    ]
}

/// GSO frames: what counts is the segments that they will be cut into.
fn segments() -> Vec<Case> {
    const PAYLOAD: usize = 2900;
    let v4 = || RED.to(&BLUE).ipv4(RED.ipv4, BLUE.ipv4);
    let v6 = || RED.to(&BLUE).ipv6(RED.ipv6, BLUE.ipv6);
    let kinds = [
        ("TCP over IPv4", v4().tcp(1, 2), 20 + 32),
        ("TCP over IPv6", v6().tcp(1, 2), 40 + 32),
        ("UDP over IPv4", v4().udp(1, 2), 20 + 8),
        ("UDP over IPv6", v6().udp(1, 2), 40 + 8),
        ("TCP over IPv4 with an option", v4().option_word([1; 4]).tcp(1, 2), 24 + 32),
    ];
    let mut cases = Vec::new();
    for (name, frame, headers) in kinds {
        for mtu in [1280u16, 1500] {
            let fits = u32::from(mtu) - headers;
            let begin = |size: u32| {
                let frame = frame.clone().payload(PAYLOAD);
                let name = format!("{name} in segments of {size} bytes to MTU {mtu}");
                from(&RED, name, frame).gso(size).with_mtu(&BLUE, mtu)
            };
            cases.push(begin(fits).delivered(&BLUE));
            cases.push(begin(fits + 1).dropped(DropReason::TooLong));
        }
    }
    // Not followed to their transport header: as long as the sender's MTU allows.
    let unclear = [
        ("SCTP", v4().protocol(132, &[0; 12]), 1452),
        ("SCTP cut where chunks end", v4().protocol(132, &[0; 12]), 0xffff),
        ("TCP behind an extension header", v6().extension(60, 0).tcp(1, 2), 1420),
        ("TCP cut where packets ended", v4().tcp(1, 2), 0xffff),
    ];
    for (name, frame, size) in unclear {
        let begin = |name: String| from(&RED, name, frame.clone().payload(PAYLOAD)).gso(size);
        cases.push(begin(format!("{name}, to the same MTU")).delivered(&BLUE));
        cases.push(begin(format!("{name}, to MTU 1499")).with_mtu(&BLUE, 1499).dropped(DropReason::TooLong));
        cases.push(
            begin(format!("{name}, from MTU 1280 to 1499")).with_mtu(&RED, 1280).with_mtu(&BLUE, 1499).delivered(&BLUE),
        );
    }
    let big = v4().tcp(1, 2).payload(PAYLOAD).set(16, &[0, 0]);
    cases.push(from(&RED, "BIG TCP over IPv4: total length 0", big).gso(1448).delivered(&BLUE));
    let big = v6().tcp(1, 2).payload(PAYLOAD).set(18, &[0, 0]);
    cases.push(from(&RED, "BIG TCP over IPv6: payload length 0", big).gso(1428).delivered(&BLUE));
    let multicast = Frame::new(RED.mac, Mac([1, 0, 0x5e, 0, 0, 0xfb])).ipv4(RED.ipv4, [224, 0, 0, 251]);
    let case = from(&RED, "multicast in segments of 1472 bytes", multicast.udp(1, 2).payload(PAYLOAD)).gso(1472);
    cases.push(case.with_mtu(&BLUE, 1499).flooded(others(&RED)).but_not(&BLUE, DropReason::TooLong));
    cases
}

/// A port may have only so many copies made. What is not flooded is not limited.
fn allowance() -> Vec<Case> {
    let ahead = |end: &'static End, by: u64| {
        move |tables: &mut MemoryTables| {
            tables.flood_clocks.borrow_mut().insert(end.id, tables.clock.get() + by);
        }
    };
    // The kernel's clock goes on between the setup and the frame, so neither case is close to the limit.
    let spent = FLOOD_BURST_NS + 10 * SECOND;
    let left = FLOOD_BURST_NS / 2;
    let unknown = Frame::new(RED.mac, STRANGER).ipv4(RED.ipv4, FREE_V4);
    let question = Frame::new(RED.mac, Mac::BROADCAST).arp(1, (RED.mac, RED.ipv4), (Mac::ZERO, FREE_V4));
    let limit = DropReason::FloodLimit;
    let group = to_group(&RED, RED.ipv6, "ff02::fb").udp(5353, 5353);
    let behind = Frame::new(stranger(1), Mac::BROADCAST).ipv4(FREE_V4, [255; 4]);
    vec![
        from(&RED, "broadcast over the allowance", RED.broadcast()).with(ahead(&RED, spent)).dropped(limit),
        from(&RED, "multicast over the allowance", group).with(ahead(&RED, spent)).dropped(limit),
        from(&RED, "unknown unicast over the allowance", unknown).with(ahead(&RED, spent)).dropped(limit),
        from(&RED, "ARP over the allowance", question).with(ahead(&RED, spent)).dropped(limit),
        from(&ORANGE, "broadcast of a station behind orange over the allowance", behind)
            .with(ahead(&ORANGE, spent))
            .dropped(limit)
            .learned(&ORANGE, 0, stranger(1)),
        from_host(&HOST, "broadcast over the allowance", HOST.broadcast()).with(ahead(&HOST, spent)).dropped(limit),
        from(&RED, "broadcast within the allowance", RED.broadcast()).with(ahead(&RED, left)).flooded(others(&RED)),
        from(&RED, "broadcast long after the last", RED.broadcast())
            .with(|tables| {
                tables.flood_clocks.borrow_mut().insert(RED.id, 5);
            })
            .flooded(others(&RED)),
        from(&RED, "broadcast, another port is over its allowance", RED.broadcast())
            .with(ahead(&BLUE, spent))
            .flooded(others(&RED)),
        from(&RED, "unicast over the allowance", RED.udp4(&PURPLE)).with(ahead(&RED, spent)).delivered(&PURPLE),
        from(&RED, "IPv6 unicast over the allowance", Frame::new(RED.mac, BLUE.mac).ipv6(RED.ipv6, v6("2001:db8::1")))
            .with(ahead(&RED, spent))
            .delivered(&BLUE),
    ]
}
