//! ARP: answered where the address is known, flooded where it is not, refused where it lies.

use crate::verdict::DropReason;
use crate::wire::Mac;

use super::frame::{Frame, hex};
use super::world::{
    BLUE, BLUE_SECOND_V4, CYAN, End, FREE_V4, HOST, HOST_2, HOST_3, ORANGE, PURPLE, RED, WHITE, others, stranger,
};
use super::{Case, from, from_host};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = answered();
    cases.extend(heard());
    cases.extend(forged());
    cases.extend(broken());
    cases
}

/// "Who has `address`? Tell `asker`."
fn request(asker: &End, address: [u8; 4]) -> Frame {
    Frame::new(asker.mac, Mac::BROADCAST).arp(1, (asker.mac, asker.ipv4), (Mac::ZERO, address))
}

/// Replies as on the wire, written by hand.
fn answered() -> Vec<Case> {
    let blue_to_red = "020001000200 00163e112233 0806 0001 0800 06 04 0002
        00163e112233 0a010003 020001000200 0a010002";
    let host_to_red = "020001000200 020001000100 0806 0001 0800 06 04 0002
        020001000100 0a010001 020001000200 0a010002";
    let blue_second_to_red = "020001000200 00163e112233 0806 0001 0800 06 04 0002
        00163e112233 0a010021 020001000200 0a010002";
    let blue_to_probing_red = "020001000200 00163e112233 0806 0001 0800 06 04 0002
        00163e112233 0a010003 020001000200 00000000";
    let red_to_host = "020001000100 020001000200 0806 0001 0800 06 04 0002
        020001000200 0a010002 020001000100 0a010001";
    let red_to_stranger = "525400000001 020001000200 0806 0001 0800 06 04 0002
        020001000200 0a010002 525400000001 0a010063";
    let host_to_white = "020003000b00 020003000a00 0806 0001 0800 06 04 0002
        020003000a00 0a030001 020003000b00 0a03000b";
    let padded = |reply: &str| [hex(reply), vec![0; 18]].concat();
    let probe = Frame::new(RED.mac, Mac::BROADCAST).arp(1, (RED.mac, [0; 4]), (Mac::ZERO, BLUE.ipv4));
    let foreign = Frame::new(stranger(1), Mac::BROADCAST).arp(1, (stranger(1), FREE_V4), (Mac::ZERO, RED.ipv4));
    // The request went to a group address other than broadcast (RFC 1812 allows receivers to refuse; answered here).
    let group = Frame::new(RED.mac, Mac([0x01, 0, 0x5e, 0, 0, 1]));
    let group = group.arp(1, (RED.mac, RED.ipv4), (Mac::ZERO, BLUE.ipv4));
    let trailing = request(&RED, BLUE.ipv4).append(&[0xee; 18]);
    vec![
        from(&RED, "ARP for blue", request(&RED, BLUE.ipv4).pad()).answered(&RED, padded(blue_to_red)),
        from(&RED, "ARP for blue, not padded", request(&RED, BLUE.ipv4)).answered(&RED, hex(blue_to_red)),
        from(&RED, "ARP for blue, padded with other than zero", trailing)
            .answered(&RED, [hex(blue_to_red), vec![0xee; 18]].concat()),
        from(&RED, "ARP for blue to a group", group).answered(&RED, hex(blue_to_red)),
        from(&RED, "ARP for the gateway", request(&RED, HOST.ipv4).pad()).answered(&RED, padded(host_to_red)),
        from(&RED, "ARP for blue's second address", request(&RED, BLUE_SECOND_V4).pad())
            .answered(&RED, padded(blue_second_to_red)),
        from(&RED, "ARP probe for blue's address: duplicate", probe.pad()).answered(&RED, padded(blue_to_probing_red)),
        from(&ORANGE, "ARP for red by a station behind orange", foreign.pad())
            .answered(&ORANGE, padded(red_to_stranger))
            .learned(&ORANGE, 0, stranger(1)),
        from(&WHITE, "ARP for the gateway, network without IPv6", request(&WHITE, HOST_3.ipv4).pad())
            .answered(&WHITE, padded(host_to_white)),
        from_host(&HOST, "ARP for red", request(&HOST, RED.ipv4)).answered(&HOST, hex(red_to_host)),
    ]
}

/// What the network is to hear.
fn heard() -> Vec<Case> {
    let announcement = Frame::new(RED.mac, Mac::BROADCAST).arp(1, (RED.mac, RED.ipv4), (Mac::ZERO, RED.ipv4));
    let gratuitous = Frame::new(RED.mac, Mac::BROADCAST).arp(2, (RED.mac, RED.ipv4), (RED.mac, RED.ipv4));
    let second = (BLUE.mac, BLUE_SECOND_V4);
    let second = Frame::new(BLUE.mac, Mac::BROADCAST).arp(2, second, second);
    let probe = Frame::new(RED.mac, Mac::BROADCAST).arp(1, (RED.mac, [0; 4]), (Mac::ZERO, RED.ipv4));
    let reply = RED.to(&BLUE).arp(2, (RED.mac, RED.ipv4), (BLUE.mac, BLUE.ipv4));
    let refresh = RED.to(&BLUE).arp(1, (RED.mac, RED.ipv4), (BLUE.mac, BLUE.ipv4));
    let host = Frame::new(HOST.mac, Mac::BROADCAST).arp(2, (HOST.mac, HOST.ipv4), (HOST.mac, HOST.ipv4));
    let free_probe = Frame::new(RED.mac, Mac::BROADCAST).arp(1, (RED.mac, [0; 4]), (Mac::ZERO, FREE_V4));
    let foreign = (stranger(1), FREE_V4);
    let foreign = Frame::new(stranger(1), Mac::BROADCAST).arp(2, foreign, foreign);
    vec![
        from(&RED, "ARP announcement", announcement.pad()).flooded(others(&RED)),
        from(&RED, "ARP announcement as a reply", gratuitous.pad()).flooded(others(&RED)),
        from(&BLUE, "ARP announcement of the second address", second.pad()).flooded(others(&BLUE)),
        from(&RED, "ARP probe for the own address", probe.pad()).flooded(others(&RED)),
        from(&RED, "ARP probe for a free address", free_probe.pad()).flooded(others(&RED)),
        from(&RED, "ARP for a free address", request(&RED, FREE_V4).pad()).flooded(others(&RED)),
        from(&RED, "ARP for cyan of another network", request(&RED, CYAN.ipv4).pad()).flooded(others(&RED)),
        from(&RED, "ARP for another network's gateway", request(&RED, HOST_2.ipv4)).flooded(others(&RED)),
        from(&RED, "ARP for 0.0.0.0", request(&RED, [0; 4])).flooded(others(&RED)),
        from(&RED, "ARP reply", reply.pad()).delivered(&BLUE),
        from(&RED, "ARP request to blue alone", refresh.pad()).delivered(&BLUE),
        from(&ORANGE, "ARP announcement of a station behind orange", foreign.pad()).flooded(others(&ORANGE)).learned(
            &ORANGE,
            0,
            stranger(1),
        ),
        from_host(&HOST, "ARP announcement", host.pad()).flooded(others(&HOST)),
        from_host(&HOST, "ARP for a free address", request(&HOST, FREE_V4)).flooded(others(&HOST)),
    ]
}

fn forged() -> Vec<Case> {
    let mut cases = Vec::new();
    let victims = [("blue's address", BLUE.ipv4), ("the gateway's address", HOST.ipv4), ("a free address", FREE_V4)];
    for (what, ip) in victims {
        let claim = (RED.mac, ip);
        let forms = [
            ("request", Frame::new(RED.mac, Mac::BROADCAST).arp(1, claim, (Mac::ZERO, ORANGE.ipv4))),
            ("announcement", Frame::new(RED.mac, Mac::BROADCAST).arp(1, claim, (Mac::ZERO, ip))),
            ("gratuitous reply", Frame::new(RED.mac, Mac::BROADCAST).arp(2, claim, claim)),
            ("reply", RED.to(&ORANGE).arp(2, claim, (ORANGE.mac, ORANGE.ipv4))),
            ("reply to the gateway", RED.to(&HOST).arp(2, claim, (HOST.mac, HOST.ipv4))),
        ];
        for (form, frame) in forms {
            let case = from(&RED, format!("ARP {form} that claims {what}"), frame.pad());
            cases.push(case.dropped(DropReason::SpoofedArp));
        }
    }
    let other_mac = RED.to(&BLUE).arp(2, (ORANGE.mac, RED.ipv4), (BLUE.mac, BLUE.ipv4));
    cases.push(from(&RED, "ARP sender MAC is not the frame's", other_mac).dropped(DropReason::SpoofedArp));
    let probe_mac = Frame::new(RED.mac, Mac::BROADCAST).arp(1, (BLUE.mac, [0; 4]), (Mac::ZERO, FREE_V4));
    cases.push(from(&RED, "ARP probe with another's MAC", probe_mac).dropped(DropReason::SpoofedArp));
    let no_address = RED.to(&BLUE).arp(2, (RED.mac, [0; 4]), (BLUE.mac, BLUE.ipv4));
    cases.push(from(&RED, "ARP reply without an address", no_address).dropped(DropReason::SpoofedArp));
    let foreign = Frame::new(stranger(1), RED.mac).arp(2, (stranger(1), BLUE.ipv4), (RED.mac, RED.ipv4));
    let case = from(&ORANGE, "ARP of a station behind orange that claims blue's address", foreign);
    cases.push(case.dropped(DropReason::SpoofedArp).learned(&ORANGE, 0, stranger(1)));
    let own = ORANGE.to(&RED).arp(2, (ORANGE.mac, FREE_V4), (RED.mac, RED.ipv4));
    cases.push(from(&ORANGE, "ARP of orange that claims a free address", own).dropped(DropReason::SpoofedArp));
    let proxy = PURPLE.to(&RED).arp(2, (PURPLE.mac, BLUE.ipv4), (RED.mac, RED.ipv4));
    cases.push(from(&PURPLE, "ARP of purple, which may", proxy).delivered(&RED));
    cases
}

fn broken() -> Vec<Case> {
    let mut cases = Vec::new();
    let fields = [
        (15, 6, "hardware 6 (802)"),
        (16, 0x86, "protocol 0x8600"),
        (18, 8, "hardware length 8"),
        (19, 16, "protocol length 16"),
        (21, 0, "operation 0"),
        (21, 3, "operation 3 (RARP)"),
        (20, 1, "operation 257"),
    ];
    for (at, byte, what) in fields {
        let frame = request(&RED, BLUE.ipv4).pad().set(at, &[byte]);
        cases.push(from(&RED, format!("ARP {what}"), frame).dropped(DropReason::BadArp));
    }
    let frame = request(&PURPLE, BLUE.ipv4).set(21, &[9]);
    cases.push(from(&PURPLE, "ARP operation 9, from purple", frame).dropped(DropReason::BadArp));
    let frame = request(&HOST, RED.ipv4).set(21, &[9]);
    cases.push(from_host(&HOST, "ARP operation 9", frame).dropped(DropReason::BadArp));
    let frame = request(&HOST, RED.ipv4).cut(41);
    cases.push(from_host(&HOST, "ARP cut to 41 bytes", frame).dropped(DropReason::Truncated));
    let frame = request(&RED, BLUE.ipv4).cut(41);
    cases.push(from(&RED, "ARP for blue cut to 41 bytes", frame).dropped(DropReason::Truncated));
    cases
}
