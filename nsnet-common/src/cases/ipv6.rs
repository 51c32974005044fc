//! IPv6: whose address, extension headers, and DHCPv6 servers.

use crate::verdict::DropReason;

use super::frame::{Frame, group_of, v6};
use super::world::{
    BLUE, BLUE_SECOND_V6, CYAN, End, FREE_V6, HOST, HOST_3, ORANGE, PURPLE, RED, STRANGER, WHITE, others, stranger,
};
use super::{Case, from, from_host};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = sources();
    cases.extend(contradictions());
    cases.extend(chains());
    cases.extend(dhcp());
    cases
}

/// The IPv6 header of a frame from `sender` to everybody in the group `to`.
pub(super) fn to_group(sender: &End, source: [u8; 16], to: &str) -> Frame {
    Frame::new(sender.mac, group_of(v6(to))).ipv6(source, v6(to))
}

fn sources() -> Vec<Case> {
    let none = v6("::");
    let mut cases = Vec::new();
    let forged = [
        ("blue's", BLUE.ipv6),
        ("blue's second", BLUE_SECOND_V6),
        ("the gateway's", HOST.ipv6),
        ("blue's link-local", BLUE.link_local()),
        ("nobody's", FREE_V6),
        ("nobody's link-local", v6("fe80::1")),
        ("cyan's of another network", CYAN.ipv6),
        ("of the internet", v6("2001:db8::1")),
        ("loopback", v6("::1")),
        ("multicast", v6("ff02::1")),
        ("unspecified", none),
    ];
    for (whose, source) in forged {
        let frame = RED.to(&BLUE).ipv6(source, BLUE.ipv6).udp(1, 2);
        cases.push(from(&RED, format!("IPv6 source {whose}"), frame).dropped(DropReason::SpoofedIpv6));
        let frame = PURPLE.to(&BLUE).ipv6(source, BLUE.ipv6).tcp(1, 2);
        cases.push(from(&PURPLE, format!("IPv6 source {whose}, from purple"), frame).delivered(&BLUE));
    }
    for (whose, source) in [("first", RED.ipv6), ("link-local", RED.link_local())] {
        let frame = RED.to(&BLUE).ipv6(source, BLUE.ipv6).tcp(1, 2);
        cases.push(from(&RED, format!("IPv6 from the {whose} address"), frame).delivered(&BLUE));
    }
    let frame = BLUE.to(&RED).ipv6(BLUE_SECOND_V6, RED.ipv6).udp(1, 2);
    cases.push(from(&BLUE, "IPv6 from the second address", frame).delivered(&RED));
    // Address autoconfiguration listens to groups before it has an address: router alert, then MLDv2 (RFC 3810).
    let report = to_group(&RED, none, "ff02::16").hops(1).extension(0, 0).icmpv6(143, 0, &[0; 24]);
    cases.push(from(&RED, "IPv6 MLD report without an address", report).flooded(others(&RED)));
    let foreign = |source| Frame::new(stranger(1), RED.mac).ipv6(source, RED.ipv6).udp(1, 2);
    let case = |name: &str, source| from(&ORANGE, format!("IPv6 of a station behind orange: {name}"), foreign(source));
    let learned = |case: Case| case.learned(&ORANGE, 0, stranger(1));
    cases.push(learned(case("nobody's address", FREE_V6).delivered(&RED)));
    cases.push(learned(case("its link-local address", v6("fe80::5054:ff:fe00:1")).delivered(&RED)));
    cases.push(learned(case("red's link-local address", RED.link_local()).dropped(DropReason::SpoofedIpv6)));
    cases.push(learned(case("the gateway's address", HOST.ipv6).dropped(DropReason::SpoofedIpv6)));
    cases.push(learned(case("cyan's address, in another network", CYAN.ipv6).dropped(DropReason::SpoofedIpv6)));
    cases.push(learned(case("no address", none).dropped(DropReason::SpoofedIpv6)));

    // An IPv4 address in IPv6's form is an address of IPv4.
    for (whose, source) in [("the own", v6("::ffff:10.1.0.2")), ("blue's", v6("::ffff:10.1.0.3"))] {
        let frame = RED.to(&BLUE).ipv6(source, BLUE.ipv6).tcp(1, 2);
        cases.push(from(&RED, format!("IPv6 from {whose} IPv4 address"), frame).dropped(DropReason::SpoofedIpv6));
    }

    let off = WHITE.to(&HOST_3).ipv6(WHITE.link_local(), v6("fe80::1")).udp(1, 2);
    cases.push(from(&WHITE, "IPv6 where it is off", off).dropped(DropReason::Ipv6Off));
    let off = to_group(&WHITE, WHITE.link_local(), "ff02::1").router_advertisement();
    cases.push(from(&WHITE, "IPv6 router advertisement where IPv6 is off", off).dropped(DropReason::Ipv6Off));
    cases
}

fn contradictions() -> Vec<Case> {
    let mut cases = Vec::new();
    for version in 0..16u8 {
        let frame = RED.udp6(&BLUE).set(14, &[version << 4]);
        let case = from(&RED, format!("IPv6 with version {version}"), frame);
        cases.push(if version == 6 { case.delivered(&BLUE) } else { case.dropped(DropReason::BadIpv6) });
    }
    for length in [0, 7, 8, 9, 40, 1500, u16::MAX] {
        let frame = RED.udp6(&BLUE).set(18, &length.to_be_bytes());
        let case = from(&RED, format!("IPv6 payload length {length} in 8 bytes"), frame);
        cases.push(if length <= 8 { case.delivered(&BLUE) } else { case.dropped(DropReason::BadIpv6) });
    }
    let frame = RED.to(&BLUE).ipv6(RED.ipv6, BLUE.ipv6).protocol(17, &[0, 1, 0, 2, 0, 8, 0]);
    cases.push(from(&RED, "IPv6 that ends within the UDP header", frame).dropped(DropReason::Truncated));
    let frame = RED.to(&BLUE).ipv6(RED.ipv6, BLUE.ipv6).protocol(58, &[128, 0, 0, 0, 0, 0, 0]);
    cases.push(from(&RED, "IPv6 that ends within the ICMPv6 header", frame).dropped(DropReason::BadIpv6));
    let frame = RED.to(&BLUE).ipv6(RED.ipv6, BLUE.ipv6).icmpv6(128, 0, &[0, 1, 0, 1]).payload(56);
    cases.push(from(&RED, "IPv6 echo request", frame).delivered(&BLUE));
    let frame = RED.to(&BLUE).ipv6(RED.ipv6, BLUE.ipv6).protocol(132, &[0; 12]);
    cases.push(from(&RED, "IPv6 with SCTP", frame).delivered(&BLUE));
    let frame = RED.to(&BLUE).ipv6(RED.ipv6, BLUE.ipv6).protocol(59, &[]);
    cases.push(from(&RED, "IPv6 with no next header", frame).delivered(&BLUE));
    let frame = HOST.udp6(&RED).set(14, &[0x40]);
    cases.push(from_host(&HOST, "IPv6 with version 4", frame).delivered(&RED));
    cases
}

fn chains() -> Vec<Case> {
    let ip = || RED.to(&BLUE).ipv6(RED.ipv6, BLUE.ipv6);
    let long = |count: usize| (0..count).fold(ip(), |frame, _| frame.extension(60, 0)).udp(1, 2);
    let all_kinds = ip().extension(0, 0).extension(60, 1).extension(43, 2).fragment_v6(0, true).extension(51, 4);
    let bad = DropReason::BadIpv6;
    let mut cases = vec![
        from(&RED, "IPv6 with one header of each kind", all_kinds.udp(1, 2)).delivered(&BLUE),
        from(&RED, "IPv6 with 8 extension headers", long(8)).delivered(&BLUE),
        from(&RED, "IPv6 with 9 extension headers", long(9)).dropped(bad),
        from(&RED, "IPv6 with a header of 1400 bytes", ip().extension(60, 174).udp(1, 2)).delivered(&BLUE),
        from(&RED, "IPv6 later fragment", ip().fragment_v6(100, false).protocol(58, &[134; 16])).delivered(&BLUE),
        from(&RED, "IPv6 later fragment without payload", ip().fragment_v6(100, false)).delivered(&BLUE),
        from(&RED, "IPv6 fragment header cut", ip().protocol(44, &[58, 0])).dropped(bad),
        from(&RED, "IPv6 extension header beyond the end", ip().protocol(60, &[58, 200, 0, 0, 0, 0, 0, 0]))
            .dropped(bad),
        from(&RED, "IPv6 AH beyond the end", ip().protocol(51, &[58, 9, 0, 0, 0, 0, 0, 0])).dropped(bad),
    ];
    // Type and segments left of the routing header.
    let by_way_of = |kind: u8, left: u8| ip().extension(43, 2).udp(1, 2).set(56, &[kind, left]);
    for left in [0, 1] {
        let case = from(&RED, format!("IPv6 source route, {left} left"), by_way_of(0, left));
        cases.push(case.dropped(DropReason::SourceRoute));
    }
    cases.push(from(&RED, "IPv6 home address", by_way_of(2, 1)).delivered(&BLUE));
    for kind in [0, 43, 51, 60] {
        let frame = ip().protocol(kind, &[]);
        cases.push(from(&RED, format!("IPv6 that ends where header {kind} should begin"), frame).dropped(bad));
        let frame = ip().extension(kind, 2).protocol(6, &[0; 20]);
        cases.push(from(&RED, format!("IPv6 TCP behind header {kind}"), frame).delivered(&BLUE));
    }
    cases
}

fn dhcp() -> Vec<Case> {
    let answer = |frame: Frame| frame.udp(547, 546).payload(60);
    let ip = || RED.to(&BLUE).ipv6(RED.link_local(), BLUE.link_local());
    let behind = Frame::new(STRANGER, RED.mac).ipv6(FREE_V6, RED.ipv6);
    let solicit = to_group(&RED, RED.link_local(), "ff02::1:2").udp(546, 547).payload(60);
    let bad = DropReason::DhcpServer;
    vec![
        from(&RED, "DHCPv6 answer", answer(ip())).dropped(bad),
        from(&RED, "DHCPv6 answer behind options", answer(ip().extension(60, 0))).dropped(bad),
        from(&RED, "DHCPv6 answer behind 8 headers", answer((0..8).fold(ip(), |f, _| f.extension(60, 1)))).dropped(bad),
        from(&RED, "DHCPv6 answer in a first fragment", answer(ip().fragment_v6(0, true))).dropped(bad),
        from(&ORANGE, "DHCPv6 answer from a station behind orange", answer(behind))
            .dropped(bad)
            .learned(&ORANGE, 0, STRANGER),
        from(&PURPLE, "DHCPv6 answer from purple", answer(PURPLE.to(&RED).ipv6(PURPLE.ipv6, RED.ipv6))).delivered(&RED),
        from(&RED, "DHCPv6 request", solicit).flooded(others(&RED)),
    ]
}
