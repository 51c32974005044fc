//! What may go up into the host, and so to all it is joined to: nothing for other networks, nothing for loopback.

use crate::verdict::DropReason;
use crate::wire::Mac;

use super::frame::{Frame, group_of, v4, v6};
use super::world::{
    BLUE, BLUE_SECOND_V4, BLUE_SECOND_V6, CYAN, End, FREE_V4, FREE_V6, HOST, HOST_2, HOST_3, ORANGE, PURPLE, RED,
    UPLINK, WHITE, others, stranger,
};
use super::{Case, from, from_host};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = other_networks();
    cases.extend(loopback());
    cases.extend(allowed());
    cases
}

fn ipv4(sender: &End, to: Mac, destination: [u8; 4]) -> Frame {
    Frame::new(sender.mac, to).ipv4(sender.ipv4, destination).udp(1, 2).payload(18)
}

fn ipv6(sender: &End, to: Mac, destination: [u8; 16]) -> Frame {
    Frame::new(sender.mac, to).ipv6(sender.ipv6, destination).udp(1, 2)
}

/// The host is the gateway of every network, and must not be the way from one to another.
fn other_networks() -> Vec<Case> {
    let bad = DropReason::OtherNetwork;
    let mut cases = Vec::new();
    let in_v4 = [
        ("cyan", CYAN.ipv4),
        ("the other gateway", HOST_2.ipv4),
        ("the other broadcast address", v4("10.2.0.255")),
        ("a free address", v4("10.2.0.77")),
        ("the third gateway", HOST_3.ipv4),
        ("white", WHITE.ipv4),
    ];
    let in_v6 = [
        ("cyan", CYAN.ipv6),
        ("the other gateway", HOST_2.ipv6),
        ("a free address", v6("fd02::77")),
        ("cyan, mapped", v6("::ffff:10.2.0.8")),
    ];
    for sender in [&RED, &BLUE, &ORANGE, &PURPLE] {
        for (whom, to) in in_v4 {
            let name = format!("IPv4 via the gateway to {whom}, from {}", sender.name);
            cases.push(from(sender, name, ipv4(sender, HOST.mac, to)).dropped(bad));
            let name = format!("IPv4 broadcast to {whom}, from {}", sender.name);
            let case = from(sender, name, ipv4(sender, Mac::BROADCAST, to)).flooded(others(sender));
            cases.push(case.but_not(&HOST, bad));
        }
        for (whom, to) in in_v6 {
            let name = format!("IPv6 via the gateway to {whom}, from {}", sender.name);
            cases.push(from(sender, name, ipv6(sender, HOST.mac, to)).dropped(bad));
            let name = format!("IPv6 group MAC to {whom}, from {}", sender.name);
            let case = from(sender, name, ipv6(sender, group_of(v6("ff02::1")), to)).flooded(others(sender));
            cases.push(case.but_not(&HOST, bad));
        }
    }
    cases.push(from(&CYAN, "IPv4 via the second gateway to red", ipv4(&CYAN, HOST_2.mac, RED.ipv4)).dropped(bad));
    cases.push(from(&CYAN, "IPv6 via the second gateway to red", ipv6(&CYAN, HOST_2.mac, RED.ipv6)).dropped(bad));
    cases.push(from(&WHITE, "IPv4 via the third gateway to red", ipv4(&WHITE, HOST_3.mac, RED.ipv4)).dropped(bad));
    // Options move the transport header, not the destination.
    let options = RED.to(&HOST).ipv4(RED.ipv4, CYAN.ipv4).option_word([7, 4, 4, 0]).udp(1, 2);
    cases.push(from(&RED, "IPv4 with options via the gateway to cyan", options).dropped(bad));
    // The first one would have told where its packet goes.
    let unknown = DropReason::FragmentUnknown;
    let fragment = RED.to(&HOST).ipv4(RED.ipv4, CYAN.ipv4).fragment_v4(100, false).payload(40);
    cases.push(from(&RED, "IPv4 fragment via the gateway to cyan", fragment).dropped(unknown));
    let fragment = RED.to(&HOST).ipv6(RED.ipv6, CYAN.ipv6).fragment_v6(100, false).payload(40);
    cases.push(from(&RED, "IPv6 fragment via the gateway to cyan", fragment).dropped(unknown));
    let tcp = RED.to(&HOST).ipv4(RED.ipv4, CYAN.ipv4).tcp(1, 2).payload(2900);
    cases.push(from(&RED, "TCP segments via the gateway to cyan", tcp).gso(1448).dropped(bad));
    let behind = Frame::new(stranger(1), HOST.mac).ipv4(FREE_V4, CYAN.ipv4).udp(1, 2);
    let case = from(&ORANGE, "IPv4 via the gateway to cyan, from a station behind orange", behind);
    cases.push(case.dropped(bad).learned(&ORANGE, 0, stranger(1)));
    cases
}

/// CVE-2020-8558: services that listen on loopback only are reached by a frame to 127.0.0.1.
fn loopback() -> Vec<Case> {
    let bad = DropReason::LoopbackDestination;
    let mut cases = Vec::new();
    for address in ["127.0.0.1", "127.0.0.53", "127.255.255.254", "127.0.0.0"] {
        let frame = ipv4(&RED, HOST.mac, v4(address));
        cases.push(from(&RED, format!("IPv4 to {address} of the host"), frame).dropped(bad));
        let frame = ipv4(&RED, Mac::BROADCAST, v4(address));
        let case = from(&RED, format!("IPv4 broadcast to {address}"), frame);
        cases.push(case.flooded(others(&RED)).but_not(&HOST, bad));
    }
    let frame = ipv4(&PURPLE, HOST.mac, v4("127.0.0.1"));
    cases.push(from(&PURPLE, "IPv4 to 127.0.0.1 of the host, from purple", frame).dropped(bad));
    cases.push(from(&RED, "IPv6 to ::1 of the host", ipv6(&RED, HOST.mac, v6("::1"))).dropped(bad));
    let frame = ipv6(&RED, group_of(v6("ff02::1")), v6("::1"));
    cases.push(from(&RED, "IPv6 group MAC to ::1", frame).flooded(others(&RED)).but_not(&HOST, bad));
    // A namespace's kernel drops it by itself; it is not the host.
    cases.push(from(&RED, "IPv4 to 127.0.0.1 of blue", ipv4(&RED, BLUE.mac, v4("127.0.0.1"))).delivered(&BLUE));
    cases
}

fn allowed() -> Vec<Case> {
    let mut cases = Vec::new();
    let broadcast = v4("192.0.2.255");
    for (whom, to) in
        [("the gateway", HOST.ipv4), ("the host's address outside", UPLINK.ipv4), ("a broadcast address", broadcast)]
    {
        cases.push(from(&RED, format!("IPv4 via the gateway to {whom}"), ipv4(&RED, HOST.mac, to)).delivered(&HOST));
    }
    for (whom, to) in [("the gateway", HOST.ipv6), ("the host's address outside", UPLINK.ipv6)] {
        cases.push(from(&RED, format!("IPv6 via the gateway to {whom}"), ipv6(&RED, HOST.mac, to)).delivered(&HOST));
    }
    // Within the network by way of the gateway: one hop more, and the gateway's MAC.
    for (whom, to) in [("blue", BLUE.ipv4), ("blue's second address", BLUE_SECOND_V4)] {
        let passed_on = HOST.to(&BLUE).ipv4(RED.ipv4, to).udp(1, 2).payload(18).hops(63);
        let case = from(&RED, format!("IPv4 via the gateway to {whom}"), ipv4(&RED, HOST.mac, to));
        cases.push(case.routed(&BLUE, passed_on));
    }
    let passed_on = HOST.to(&BLUE).ipv6(RED.ipv6, BLUE_SECOND_V6).udp(1, 2).hops(63);
    let case = from(&RED, "IPv6 via the gateway to blue's second address", ipv6(&RED, HOST.mac, BLUE_SECOND_V6));
    cases.push(case.routed(&BLUE, passed_on));
    // Where there is no route, the programs say so: the host's stack might know one, by rules that they do not see.
    let nowhere = [
        ("the subnet's broadcast address", v4("10.1.0.255")),
        ("a free address", FREE_V4),
        ("the internet", v4("8.8.8.8")),
        ("the neighbour of the subnets", v4("10.1.1.1")),
        ("128.0.0.1", v4("128.0.0.1")),
    ];
    for (whom, to) in nowhere {
        let case = from(&RED, format!("IPv4 via the gateway to {whom}"), ipv4(&RED, HOST.mac, to));
        let quoted = case.frame[14..].to_vec();
        cases.push(case.told_of(&HOST, [3, 0], 0, &quoted).because(DropReason::NoRoute));
    }
    let nowhere = [
        ("a free address", FREE_V6),
        ("the internet", v6("2001:db8::1")),
        ("the neighbour of the subnets", v6("fd02:0:0:1::1")),
        ("::2", v6("::2")),
    ];
    for (whom, to) in nowhere {
        let case = from(&RED, format!("IPv6 via the gateway to {whom}"), ipv6(&RED, HOST.mac, to));
        let quoted = case.frame[14..].to_vec();
        cases.push(case.told_of(&HOST, [1, 0], 0, &quoted).because(DropReason::NoRoute));
    }
    // The host may: it routes from one network to another only when it is told to.
    cases.push(from_host(&HOST, "IPv4 of cyan to red", HOST.to(&RED).ipv4(CYAN.ipv4, RED.ipv4)).delivered(&RED));
    cases.push(from_host(&HOST, "IPv4 to cyan by red's MAC", HOST.to(&RED).ipv4(HOST.ipv4, CYAN.ipv4)).delivered(&RED));
    cases.push(from_host(&HOST, "IPv4 to loopback", HOST.to(&RED).ipv4(HOST.ipv4, v4("127.0.0.1"))).delivered(&RED));
    cases
}
