//! IPv4: whose address, headers that contradict themselves, and DHCP servers.

use crate::verdict::DropReason;
use crate::wire::Mac;

use super::frame::{Frame, v4};
use super::world::{
    BLUE, BLUE_SECOND_V4, CYAN, FREE_V4, HOST, HOST_2, ORANGE, PURPLE, RED, STRANGER, WHITE, others, stranger,
};
use super::{Case, from, from_host};

const SHORTEST: u16 = 46;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = sources();
    cases.extend(contradictions());
    cases.extend(fragments());
    cases.extend(dhcp());
    cases
}

fn sources() -> Vec<Case> {
    let mut cases = vec![from(&RED, "IPv4 from the own address", RED.udp4(&BLUE)).delivered(&BLUE)];
    let forged = [
        ("blue's", BLUE.ipv4),
        ("blue's second", BLUE_SECOND_V4),
        ("the gateway's", HOST.ipv4),
        ("nobody's", FREE_V4),
        ("cyan's of another network", CYAN.ipv4),
        ("of the internet", v4("8.8.8.8")),
        ("loopback", v4("127.0.0.1")),
        ("multicast", v4("224.0.0.1")),
        ("reserved", v4("240.0.0.1")),
        ("broadcast", [255; 4]),
        ("of a subnet's broadcast", v4("10.1.0.255")),
        ("unspecified", [0; 4]),
        ("link-local", v4("169.254.1.1")),
    ];
    for (whose, source) in forged {
        let frame = RED.to(&BLUE).ipv4(source, BLUE.ipv4).udp(1, 2).payload(18);
        cases.push(from(&RED, format!("IPv4 source {whose}"), frame).dropped(DropReason::SpoofedIpv4));
        let frame = PURPLE.to(&BLUE).ipv4(source, BLUE.ipv4).udp(1, 2).payload(18);
        cases.push(from(&PURPLE, format!("IPv4 source {whose}, from purple"), frame).delivered(&BLUE));
        let frame = HOST.to(&RED).ipv4(source, RED.ipv4).udp(1, 2).payload(18);
        cases.push(from_host(&HOST, format!("IPv4 source {whose}"), frame).delivered(&RED));
    }
    let second = BLUE.to(&RED).ipv4(BLUE_SECOND_V4, RED.ipv4).udp(1, 2).payload(18);
    cases.push(from(&BLUE, "IPv4 from the second address", second).delivered(&RED));
    let foreign = |source| Frame::new(stranger(1), RED.mac).ipv4(source, RED.ipv4).udp(1, 2).payload(18);
    let case = |name: &str, source| from(&ORANGE, format!("IPv4 of a station behind orange: {name}"), foreign(source));
    let learned = |case: Case| case.learned(&ORANGE, 0, stranger(1));
    cases.push(learned(case("nobody's address", FREE_V4).delivered(&RED)));
    cases.push(learned(case("orange's address", ORANGE.ipv4).delivered(&RED)));
    cases.push(learned(case("red's address", RED.ipv4).dropped(DropReason::SpoofedIpv4)));
    cases.push(learned(case("the gateway's address", HOST.ipv4).dropped(DropReason::SpoofedIpv4)));
    cases.push(learned(case("cyan's address, in another network", CYAN.ipv4).dropped(DropReason::SpoofedIpv4)));
    cases.push(learned(case("an address of the internet", v4("8.8.8.8")).delivered(&RED)));
    // A DHCP client has no address yet, and the addresses behind orange are not ours to give.
    cases.push(learned(case("no address yet", [0; 4]).delivered(&RED)));
    let frame = ORANGE.to(&RED).ipv4(FREE_V4, RED.ipv4).udp(1, 2).payload(18);
    cases.push(from(&ORANGE, "IPv4 of orange itself: nobody's address", frame).dropped(DropReason::SpoofedIpv4));
    // A port without an IPv4 address has none, not 0.0.0.0.
    let nameless = RED.to(&BLUE).ipv4([0; 4], BLUE.ipv4).udp(1, 2).payload(18);
    let case = from(&RED, "IPv4 source unspecified, port without address", nameless);
    let case = case.with(|tables| {
        let port = tables.ports[&RED.id].with_addresses(None, None);
        tables.ports.insert(RED.id, port);
    });
    cases.push(case.dropped(DropReason::SpoofedIpv4));
    cases
}

fn contradictions() -> Vec<Case> {
    let mut cases = Vec::new();
    // 20 + 8 + 40 bytes: every header length from 20 to 60 leaves room for a UDP header.
    let roomy = RED.to(&BLUE).ipv4(RED.ipv4, BLUE.ipv4).udp(1000, 2000).payload(40);
    for words in 0..16u8 {
        let frame = roomy.clone().set(14, &[0x40 | words]);
        let case = from(&RED, format!("IPv4 header of {words} words"), frame);
        cases.push(if words < 5 { case.dropped(DropReason::BadIpv4) } else { case.delivered(&BLUE) });
    }
    for version in 0..16u8 {
        let frame = roomy.clone().set(14, &[version << 4 | 5]);
        let case = from(&RED, format!("IPv4 with version {version}"), frame);
        cases.push(if version == 4 { case.delivered(&BLUE) } else { case.dropped(DropReason::BadIpv4) });
    }
    for total in [0, 1, 19, 20, 27, 28, SHORTEST, SHORTEST + 1, 1500, u16::MAX] {
        let frame = RED.udp4(&BLUE).set(16, &total.to_be_bytes());
        let case = from(&RED, format!("IPv4 total length {total} in {SHORTEST} bytes"), frame);
        let is_true = (20..=SHORTEST).contains(&total);
        cases.push(if is_true { case.delivered(&BLUE) } else { case.dropped(DropReason::BadIpv4) });
    }
    let frame = RED.udp4(&BLUE).set(14, &[0x4f]);
    cases.push(from(&RED, "IPv4 header longer than the packet", frame).dropped(DropReason::BadIpv4));
    let no_udp = RED.to(&BLUE).ipv4(RED.ipv4, BLUE.ipv4).protocol(17, &[0, 67, 0, 68, 0, 8, 0]);
    cases.push(from(&RED, "IPv4 that ends within the UDP header", no_udp).dropped(DropReason::Truncated));
    let router_alert = RED.to(&BLUE).ipv4(RED.ipv4, BLUE.ipv4).option_word([0x94, 4, 0, 0]).protocol(2, &[0x11; 8]);
    cases.push(from(&RED, "IPv4 with an option", router_alert).delivered(&BLUE));
    let wrong_sum = RED.udp4(&BLUE).set(24, &[0xde, 0xad]);
    cases.push(from(&RED, "IPv4 with a wrong checksum, for blue to see", wrong_sum).delivered(&BLUE));
    let spoofed = RED.to(&BLUE).ipv4(RED.ipv4, BLUE.ipv4).set(14, &[0x41]);
    cases.push(from(&PURPLE, "IPv4 header of 1 word, from purple", spoofed).dropped(DropReason::BadIpv4));
    let unread = HOST.udp4(&RED).set(14, &[0x41]);
    cases.push(from_host(&HOST, "IPv4 header of 1 word", unread).delivered(&RED));
    cases
}

fn fragments() -> Vec<Case> {
    let later = RED.to(&BLUE).ipv4(RED.ipv4, BLUE.ipv4).fragment_v4(185, false).protocol(17, &[0, 67, 0, 68]);
    let first = RED.to(&BLUE).ipv4(RED.ipv4, BLUE.ipv4).fragment_v4(0, true).udp(67, 68).payload(16);
    let tiny = RED.to(&BLUE).ipv4(RED.ipv4, BLUE.ipv4).fragment_v4(0, true).protocol(17, &[0, 67, 0, 68]);
    let forged = RED.to(&BLUE).ipv4(BLUE.ipv4, BLUE.ipv4).fragment_v4(185, false).protocol(17, &[0; 8]);
    vec![
        from(&RED, "IPv4 later fragment", later).delivered(&BLUE),
        from(&RED, "IPv4 later fragment, forged source", forged).dropped(DropReason::SpoofedIpv4),
        from(&RED, "IPv4 first fragment of a DHCP answer", first).dropped(DropReason::DhcpServer),
        from(&RED, "IPv4 first fragment without the UDP header", tiny).dropped(DropReason::Truncated),
    ]
}

fn dhcp() -> Vec<Case> {
    let offer = |from: u16, to: u16| RED.to(&BLUE).ipv4(RED.ipv4, BLUE.ipv4).udp(from, to).payload(240);
    let server = Frame::new(RED.mac, Mac::BROADCAST).ipv4(RED.ipv4, [255; 4]).udp(67, 68).payload(240);
    let trusted = Frame::new(PURPLE.mac, Mac::BROADCAST).ipv4(PURPLE.ipv4, [255; 4]).udp(67, 68).payload(240);
    let hidden = RED.to(&BLUE).ipv4(RED.ipv4, BLUE.ipv4).option_word([1; 4]).option_word([1; 4]);
    let behind = Frame::new(STRANGER, RED.mac).ipv4(FREE_V4, RED.ipv4).udp(67, 68).payload(240);
    let discover = Frame::new(RED.mac, Mac::BROADCAST).ipv4(RED.ipv4, [255; 4]).udp(68, 67).payload(240);
    let other = Frame::new(WHITE.mac, Mac::BROADCAST).ipv4(WHITE.ipv4, [255; 4]).udp(67, 68).payload(240);
    let tcp = RED.to(&BLUE).ipv4(RED.ipv4, BLUE.ipv4).tcp(67, 68);
    let host = Frame::new(HOST.mac, Mac::BROADCAST).ipv4(HOST.ipv4, [255; 4]).udp(67, 68).payload(240);
    let renewal = Frame::new(CYAN.mac, HOST_2.mac).ipv4(CYAN.ipv4, HOST_2.ipv4).udp(68, 67).payload(240);
    vec![
        from(&RED, "DHCP offer, unicast", offer(67, 68)).dropped(DropReason::DhcpServer),
        from(&RED, "DHCP offer, broadcast", server).dropped(DropReason::DhcpServer),
        from(&RED, "DHCP offer behind IPv4 options", hidden.udp(67, 68)).dropped(DropReason::DhcpServer),
        from(&WHITE, "DHCP offer in a network without IPv6", other).dropped(DropReason::DhcpServer),
        from(&ORANGE, "DHCP offer from a station behind orange", behind)
            .dropped(DropReason::DhcpServer)
            .learned(&ORANGE, 0, STRANGER),
        from(&PURPLE, "DHCP offer from purple", trusted).flooded(others(&PURPLE)),
        from_host(&HOST, "DHCP offer", host).flooded(others(&HOST)),
        from(&RED, "DHCP request", discover).flooded(others(&RED)),
        from(&CYAN, "DHCP renewal", renewal).delivered(&HOST_2),
        from(&RED, "DHCP relay to relay", offer(67, 67)).delivered(&BLUE),
        from(&RED, "TCP with the ports of DHCP", tcp).delivered(&BLUE),
    ]
}
