//! Neighbour discovery: answered where the address is known, refused where it lies, and routers guarded against.

use crate::verdict::DropReason;

use super::frame::{Frame, SOURCE_OPTION, TARGET_OPTION, group_of, hex, v6};
use super::ipv6::to_group;
use super::world::{BLUE, BLUE_SECOND_V6, CYAN, End, FREE_V6, HOST, ORANGE, PURPLE, RED, others, stranger};
use super::{Case, from, from_host};

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = answered();
    cases.extend(heard());
    cases.extend(forged());
    cases.extend(options());
    cases.extend(broken());
    cases.extend(routers());
    cases
}

/// "Who has `target`? Tell `asker` at `source`", without an option.
fn question(asker: &End, source: [u8; 16], target: [u8; 16]) -> Frame {
    let mut group = v6("ff02::1:ff00:0");
    group[13..].copy_from_slice(&target[13..]);
    Frame::new(asker.mac, group_of(group)).ipv6(source, group).neighbour(SOLICITATION, target)
}

/// The same, as kernels ask.
fn ask(asker: &End, target: [u8; 16]) -> Frame {
    question(asker, asker.ipv6, target).mac_option(SOURCE_OPTION, asker.mac)
}

/// "`target` is mine", to everybody.
fn tell(sender: &End, target: [u8; 16]) -> Frame {
    to_group(sender, sender.ipv6, "ff02::1").neighbour(ADVERTISEMENT, target)
}

/// Advertisements as on the wire; checksums computed by hand, apart from the code.
fn answered() -> Vec<Case> {
    let blue_to_red = "020001000200 00163e112233 86dd 60000000 0020 3a ff
        fd010000000000000000000000000003 fd010000000000000000000000000002
        8800 be3b 60000000 fd010000000000000000000000000003 0201 00163e112233";
    let host_to_red = "020001000200 020001000100 86dd 60000000 0020 3a ff
        fd010000000000000000000000000001 fd010000000000000000000000000002
        8800 9a99 e0000000 fd010000000000000000000000000001 0201 020001000100";
    let blue_second_to_red = "020001000200 00163e112233 86dd 60000000 0020 3a ff
        fd010000000000000000000000000033 fd010000000000000000000000000002
        8800 bddb 60000000 fd010000000000000000000000000033 0201 00163e112233";
    let red_to_host = "020001000100 020001000200 86dd 60000000 0020 3a ff
        fd010000000000000000000000000002 fd010000000000000000000000000001
        8800 1999 60000000 fd010000000000000000000000000002 0201 020001000200";
    let blue_link_local = "020001000200 00163e112233 86dd 60000000 0020 3a ff
        fe8000000000000002163efffe112233 fe80000000000000000001fffe000200
        8800 f511 60000000 fe8000000000000002163efffe112233 0201 00163e112233";
    let red_to_stranger = "525400000001 020001000200 86dd 60000000 0020 3a ff
        fd010000000000000000000000000002 fd010000000000000000000000000099
        8800 1901 60000000 fd010000000000000000000000000002 0201 020001000200";
    let link_local = question(&RED, RED.link_local(), BLUE.link_local()).mac_option(SOURCE_OPTION, RED.mac);
    let foreign = End { mac: stranger(1), ipv6: FREE_V6, ..ORANGE };
    vec![
        from(&RED, "solicitation for blue", ask(&RED, BLUE.ipv6)).answered(&RED, hex(blue_to_red)),
        from(&RED, "solicitation for the gateway, a router", ask(&RED, HOST.ipv6)).answered(&RED, hex(host_to_red)),
        from(&RED, "solicitation for blue's second address", ask(&RED, BLUE_SECOND_V6))
            .answered(&RED, hex(blue_second_to_red)),
        from(&RED, "solicitation for blue's link-local address", link_local).answered(&RED, hex(blue_link_local)),
        from(&ORANGE, "solicitation for red by a station behind orange", ask(&foreign, RED.ipv6))
            .answered(&ORANGE, hex(red_to_stranger))
            .learned(&ORANGE, 0, stranger(1)),
        from_host(&HOST, "solicitation for red", ask(&HOST, RED.ipv6)).answered(&HOST, hex(red_to_host)),
    ]
}

/// What somebody else is to answer, or the network to hear.
fn heard() -> Vec<Case> {
    let none = v6("::");
    let probe = |target| question(&RED, none, target);
    let unicast = RED.to(&BLUE).ipv6(RED.ipv6, BLUE.ipv6).neighbour(SOLICITATION, BLUE.ipv6);
    let own = tell(&RED, RED.ipv6).mac_option(TARGET_OPTION, RED.mac);
    let second = tell(&BLUE, BLUE_SECOND_V6).mac_option(TARGET_OPTION, BLUE.mac);
    let reply = RED.to(&BLUE).ipv6(RED.ipv6, BLUE.ipv6).neighbour(ADVERTISEMENT, RED.ipv6);
    let foreign = End { mac: stranger(1), ipv6: FREE_V6, ..ORANGE };
    let foreign = tell(&foreign, FREE_V6).mac_option(TARGET_OPTION, stranger(1));
    let solicitation = to_group(&RED, RED.link_local(), "ff02::2").hops(255).icmpv6(133, 0, &[0; 4]);
    let nonce = probe(BLUE.ipv6).append(&[14, 1, 1, 2, 3, 4, 5, 6]);
    let two_options = ask(&RED, BLUE.ipv6).append(&[14, 1, 1, 2, 3, 4, 5, 6]);
    vec![
        from(&RED, "solicitation without option: blue answers", question(&RED, RED.ipv6, BLUE.ipv6)).delivered(&BLUE),
        from(&RED, "solicitation with two options: blue answers", two_options).delivered(&BLUE),
        from(&RED, "duplicate address detection, blue's address", probe(BLUE.ipv6)).delivered(&BLUE),
        from(&RED, "duplicate address detection, the gateway's address", probe(HOST.ipv6)).delivered(&HOST),
        from(&RED, "duplicate address detection with a nonce (RFC 7527)", nonce).delivered(&BLUE),
        from(&RED, "duplicate address detection, the own address", probe(RED.ipv6)).flooded(others(&RED)),
        from(&RED, "duplicate address detection, a free address", probe(FREE_V6)).flooded(others(&RED)),
        from(&RED, "solicitation for a free address", ask(&RED, FREE_V6)).flooded(others(&RED)),
        from(&RED, "solicitation for cyan of another network", ask(&RED, CYAN.ipv6)).flooded(others(&RED)),
        from(&RED, "solicitation to blue alone", unicast.mac_option(SOURCE_OPTION, RED.mac)).delivered(&BLUE),
        from(&RED, "advertisement of the own address", own).flooded(others(&RED)),
        from(&BLUE, "advertisement of the second address", second).flooded(others(&BLUE)),
        from(&RED, "advertisement to blue", reply.mac_option(TARGET_OPTION, RED.mac)).delivered(&BLUE),
        from(&RED, "router solicitation", solicitation).flooded(others(&RED)),
        from(&ORANGE, "advertisement of a station behind orange", foreign).flooded(others(&ORANGE)).learned(
            &ORANGE,
            0,
            stranger(1),
        ),
        from_host(&HOST, "solicitation with hop limit 64", ask_with_hops(&HOST, RED.ipv6)).flooded(others(&HOST)),
        from_host(&HOST, "advertisement", tell(&HOST, HOST.ipv6).mac_option(TARGET_OPTION, HOST.mac))
            .flooded(others(&HOST)),
    ]
}

fn ask_with_hops(asker: &End, target: [u8; 16]) -> Frame {
    ask(asker, target).hops(64)
}

fn forged() -> Vec<Case> {
    let mut cases = Vec::new();
    let victims = [
        ("blue's", BLUE.ipv6),
        ("blue's second", BLUE_SECOND_V6),
        ("the gateway's", HOST.ipv6),
        ("blue's link-local", BLUE.link_local()),
        ("a free", FREE_V6),
    ];
    for (whose, target) in victims {
        let frame = tell(&RED, target).mac_option(TARGET_OPTION, RED.mac);
        cases.push(from(&RED, format!("advertisement of {whose} address"), frame).dropped(DropReason::SpoofedNd));
        let frame = RED.to(&HOST).ipv6(RED.ipv6, HOST.ipv6).neighbour(ADVERTISEMENT, target);
        let case = from(&RED, format!("advertisement of {whose} address to the gateway"), frame);
        cases.push(case.dropped(DropReason::SpoofedNd));
        let frame = to_group(&RED, target, "ff02::1").neighbour(ADVERTISEMENT, target);
        let case = from(&RED, format!("advertisement of and from {whose} address"), frame);
        cases.push(case.dropped(DropReason::SpoofedIpv6));
    }
    let frame = question(&RED, BLUE.ipv6, ORANGE.ipv6).mac_option(SOURCE_OPTION, RED.mac);
    cases.push(from(&RED, "solicitation from blue's address", frame).dropped(DropReason::SpoofedIpv6));
    let foreign = End { mac: stranger(1), ipv6: FREE_V6, ..ORANGE };
    let case = from(&ORANGE, "advertisement of blue's address by a station behind orange", tell(&foreign, BLUE.ipv6));
    cases.push(case.dropped(DropReason::SpoofedNd).learned(&ORANGE, 0, stranger(1)));
    let frame = tell(&PURPLE, BLUE.ipv6).mac_option(TARGET_OPTION, PURPLE.mac);
    cases.push(from(&PURPLE, "advertisement of blue's address by purple, which may", frame).flooded(others(&PURPLE)));
    cases
}

/// MACs in options must be the sender's, wherever they stand.
fn options() -> Vec<Case> {
    let other = [14, 1, 1, 2, 3, 4, 5, 6];
    let long = [14, 2, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];
    let free = || question(&RED, RED.ipv6, FREE_V6);
    let own = || tell(&RED, RED.ipv6);
    let bad = DropReason::BadNd;
    let forged = DropReason::SpoofedNd;
    let three = free().mac_option(SOURCE_OPTION, RED.mac).append(&other).append(&other);
    vec![
        from(&RED, "solicitation, option: blue's MAC", free().mac_option(SOURCE_OPTION, BLUE.mac)).dropped(forged),
        from(
            &RED,
            "solicitation for blue, option: orange's MAC",
            question(&RED, RED.ipv6, BLUE.ipv6).mac_option(SOURCE_OPTION, ORANGE.mac),
        )
        .dropped(forged),
        from(&RED, "solicitation, second option: blue's MAC", ask(&RED, FREE_V6).mac_option(SOURCE_OPTION, BLUE.mac))
            .dropped(forged),
        from(
            &RED,
            "solicitation, MAC of another after a long option",
            free().append(&long).mac_option(SOURCE_OPTION, BLUE.mac),
        )
        .dropped(forged),
        from(
            &RED,
            "solicitation, third option: blue's MAC",
            free().append(&other).append(&other).mac_option(TARGET_OPTION, BLUE.mac),
        )
        .dropped(forged),
        from(
            &RED,
            "solicitation, fourth option: blue's MAC",
            free().append(&other).append(&other).append(&other).mac_option(SOURCE_OPTION, BLUE.mac),
        )
        .dropped(bad),
        from(&RED, "solicitation with three options", three).flooded(others(&RED)),
        from(&RED, "advertisement, option: blue's MAC", own().mac_option(TARGET_OPTION, BLUE.mac)).dropped(forged),
        from(&RED, "advertisement, option of the other kind", own().mac_option(SOURCE_OPTION, BLUE.mac))
            .dropped(forged),
        from(
            &RED,
            "advertisement, second option: the gateway's MAC",
            own().mac_option(TARGET_OPTION, RED.mac).mac_option(TARGET_OPTION, HOST.mac),
        )
        .dropped(forged),
        from(&RED, "option of length 0", free().append(&[1, 0, 0, 0, 0, 0, 0, 0])).dropped(bad),
        from(&RED, "option that ends after the frame", free().append(&[1, 1, 2, 0, 1])).dropped(bad),
        from(
            &RED,
            "MAC option of 16 bytes with blue's MAC",
            free().append(&[2, 2]).append(&BLUE.mac.0).append(&[0; 8]),
        )
        .dropped(forged),
        from(&RED, "padding after a solicitation", free().append(&[0; 8])).flooded(others(&RED)),
    ]
}

fn broken() -> Vec<Case> {
    let bad = DropReason::BadNd;
    let mut cases = vec![
        from(&RED, "solicitation with a wrong checksum", ask(&RED, BLUE.ipv6).set(56, &[0xde, 0xad])).dropped(bad),
        from(&RED, "solicitation with code 1", ask(&RED, FREE_V6).set(55, &[1])).dropped(bad),
        from(&RED, "advertisement with code 1", tell(&RED, RED.ipv6).set(55, &[1])).dropped(bad),
        from(&RED, "solicitation for a group", ask(&RED, v6("ff02::1"))).dropped(bad),
        from(&RED, "advertisement of a group", tell(&RED, v6("ff02::1"))).dropped(bad),
        from_host(&HOST, "solicitation with a wrong checksum", ask(&HOST, RED.ipv6).set(57, &[0xee])).dropped(bad),
    ];
    let messages = [
        ("router solicitation", to_group(&RED, RED.link_local(), "ff02::2").hops(255).icmpv6(133, 0, &[0; 4])),
        ("solicitation", ask(&RED, BLUE.ipv6)),
        ("advertisement", tell(&RED, RED.ipv6)),
    ];
    for (what, frame) in messages {
        for hops in [0, 1, 64, 254] {
            let case = from(&RED, format!("{what} with hop limit {hops}"), frame.clone().hops(hops));
            cases.push(case.dropped(bad));
        }
    }
    let short = to_group(&RED, RED.ipv6, "ff02::1").hops(255).icmpv6(SOLICITATION, 0, &[0; 19]);
    cases.push(from(&RED, "solicitation that ends within the target", short).dropped(bad));
    let behind = to_group(&RED, RED.ipv6, "ff02::1").extension(60, 0).neighbour(ADVERTISEMENT, RED.ipv6);
    cases.push(from(&RED, "advertisement behind an extension header", behind).dropped(bad));
    let fragment = to_group(&RED, RED.ipv6, "ff02::1").fragment_v6(0, false).neighbour(ADVERTISEMENT, RED.ipv6);
    cases.push(from(&RED, "advertisement in an atomic fragment (RFC 6980)", fragment).dropped(bad));
    cases
}

/// RFC 6105 and 7113: nobody but the gateway is a router.
fn routers() -> Vec<Case> {
    let guard = DropReason::RouterGuard;
    let bad = DropReason::BadNd;
    let ip = || to_group(&RED, RED.link_local(), "ff02::1");
    let redirect = |frame: Frame| frame.hops(255).icmpv6(137, 0, &[0; 36]);
    let foreign = End { mac: stranger(1), ..ORANGE };
    let foreign = to_group(&foreign, v6("fe80::5054:ff:fe00:1"), "ff02::1").router_advertisement();
    let deep = (0..8).fold(ip(), |frame, _| frame.extension(60, 0)).router_advertisement();
    let spoofed = to_group(&RED, HOST.link_local(), "ff02::1").router_advertisement();
    let unicast = RED.to(&BLUE).ipv6(RED.ipv6, BLUE.ipv6);
    let later = ip().fragment_v6(1, false).protocol(58, &[134, 0, 0, 0, 64, 0, 7, 8]);
    let trusted = to_group(&PURPLE, PURPLE.link_local(), "ff02::1").router_advertisement();
    let host = to_group(&HOST, HOST.link_local(), "ff02::1").router_advertisement();
    let mut cases = vec![
        from(&RED, "router advertisement", ip().router_advertisement()).dropped(guard),
        from(&RED, "router advertisement to blue", unicast.clone().router_advertisement()).dropped(guard),
        from(&RED, "router advertisement from the gateway's address", spoofed).dropped(DropReason::SpoofedIpv6),
        from(&RED, "router advertisement with hop limit 64", ip().router_advertisement().hops(64)).dropped(bad),
        from(&RED, "router advertisement behind 8 headers", deep).dropped(bad),
        from(&RED, "redirect", redirect(ip())).dropped(guard),
        from(&RED, "redirect to blue", redirect(unicast)).dropped(guard),
        from(&RED, "redirect behind a header", redirect(ip().extension(60, 0))).dropped(bad),
        from(&ORANGE, "router advertisement by a station behind orange", foreign).dropped(guard).learned(
            &ORANGE,
            0,
            stranger(1),
        ),
        from(&RED, "first fragment that ends before the ICMPv6 type", ip().fragment_v6(0, true).protocol(58, &[]))
            .dropped(DropReason::BadIpv6),
        // Its first fragment did not pass.
        from(&RED, "router advertisement, a later fragment", later).flooded(others(&RED)),
        from(&PURPLE, "router advertisement by purple, which may", trusted).flooded(others(&PURPLE)),
        from_host(&HOST, "router advertisement", host).flooded(others(&HOST)),
    ];
    for kind in [0, 43, 51, 60] {
        let frame = ip().extension(kind, 2).router_advertisement();
        cases.push(from(&RED, format!("router advertisement behind header {kind}"), frame).dropped(bad));
    }
    for (what, more) in [("first", true), ("only", false)] {
        let frame = ip().fragment_v6(0, more).router_advertisement();
        cases.push(from(&RED, format!("router advertisement in the {what} fragment"), frame).dropped(bad));
        let frame = ip().extension(60, 3).fragment_v6(0, more).extension(60, 0).router_advertisement();
        let case = from(&RED, format!("router advertisement in the {what} fragment, behind headers"), frame);
        cases.push(case.dropped(bad));
    }
    cases
}
