//! The Ethernet header: short frames, tags, reserved groups, source MACs, ethertypes.

use crate::layout::{Network, PortId};
use crate::memory::MemoryTables;
use crate::verdict::DropReason;
use crate::wire::Mac;

use super::frame::Frame;
use super::world::{BLUE, CYAN, End, FREE_V4, GHOST, GREEN, HOST, ORANGE, PURPLE, RED, STRANGER, others};
use super::{Case, from, from_host};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = runts();
    cases.extend(tags());
    cases.extend(groups());
    cases.extend(source_macs());
    cases.extend(ethertypes());
    cases.extend(strangers());
    cases
}

/// The first 0 to 60 bytes of a frame of each kind. Its headers tell how much of it is needed.
fn runts() -> Vec<Case> {
    let ipv4 = RED.udp4(&BLUE);
    let ipv6 = RED.udp6(&BLUE);
    let mut cases = Vec::new();
    for length in 0..=60 {
        let runt = from(&RED, format!("IPv4 cut to {length} bytes"), ipv4.clone().cut(length));
        cases.push(match length {
            0..34 => runt.dropped(DropReason::Truncated),
            34..60 => runt.dropped(DropReason::BadIpv4),
            _ => runt.delivered(&BLUE),
        });
        let runt = from(&RED, format!("IPv6 cut to {length} bytes"), ipv6.clone().cut(length));
        let reason = if length < 54 { DropReason::Truncated } else { DropReason::BadIpv6 };
        cases.push(runt.dropped(reason));
        let arp = RED.to(&BLUE).arp(1, (RED.mac, RED.ipv4), (Mac::ZERO, BLUE.ipv4)).pad();
        let runt = from(&RED, format!("unicast ARP cut to {length} bytes"), arp.cut(length));
        cases.push(if length < 42 { runt.dropped(DropReason::Truncated) } else { runt.delivered(&BLUE) });
        // What the host sends is only switched: the Ethernet header is all that is needed of a unicast frame.
        let runt = from_host(&HOST, format!("IPv4 cut to {length} bytes"), HOST.udp4(&RED).cut(length));
        cases.push(if length < 14 { runt.dropped(DropReason::Truncated) } else { runt.delivered(&RED) });
    }
    cases.push(from(&RED, "IPv6, the shortest datagram", ipv6).delivered(&BLUE));
    cases
}

fn tags() -> Vec<Case> {
    let mut cases = Vec::new();
    let tagged = |vlan| RED.to(&BLUE).tag(0x8100, vlan);
    let with_ip = |frame: Frame| frame.ipv4(RED.ipv4, BLUE.ipv4).udp(1, 2).payload(18);
    for vlan in [0, 1, 100, 4095] {
        let frame = with_ip(tagged(vlan));
        cases.push(from(&RED, format!("802.1Q tag {vlan}"), frame).dropped(DropReason::Tagged));
        let aside = from(&RED, format!("tag beside the frame, VLAN {vlan}"), RED.udp4(&BLUE));
        cases.push(Case { tag_aside: true, ..aside }.dropped(DropReason::Tagged));
    }
    for kind in [0x88a8, 0x9100] {
        let frame = with_ip(RED.to(&BLUE).tag(kind, 100));
        cases.push(from(&RED, format!("service tag {kind:#x}"), frame).dropped(DropReason::Tagged));
        let frame = with_ip(RED.to(&BLUE).tag(kind, 100).tag(0x8100, 200));
        cases.push(from(&RED, format!("QinQ {kind:#x}"), frame).dropped(DropReason::Tagged));
    }
    let frame = with_ip(tagged(100).tag(0x8100, 200));
    cases.push(from(&RED, "two customer tags", frame).dropped(DropReason::Tagged));
    let frame = Frame::new(RED.mac, Mac::BROADCAST).tag(0x8100, 100);
    let frame = frame.arp(1, (RED.mac, RED.ipv4), (Mac::ZERO, BLUE.ipv4));
    cases.push(from(&RED, "tagged ARP broadcast", frame).dropped(DropReason::Tagged));
    let frame = with_ip(PURPLE.to(&BLUE).tag(0x8100, 100));
    cases.push(from(&PURPLE, "tag from a trusted port", frame).dropped(DropReason::Tagged));
    let frame = HOST.to(&RED).tag(0x8100, 100).ipv4(HOST.ipv4, RED.ipv4);
    cases.push(from_host(&HOST, "802.1Q tag", frame).dropped(DropReason::Tagged));
    cases
}

fn groups() -> Vec<Case> {
    let mut cases = Vec::new();
    for last in 0..=0x2f {
        let group = Mac([0x01, 0x80, 0xc2, 0, 0, last]);
        let frame = |end: &End| Frame::new(end.mac, group).ipv4(end.ipv4, [224, 0, 0, 1]).udp(1, 2).payload(18);
        for sender in [&RED, &PURPLE] {
            let case = from(sender, format!("group 01-80-c2-00-00-{last:02x} from {}", sender.name), frame(sender));
            cases.push(match last {
                0..16 => case.dropped(DropReason::ReservedGroup),
                _ => case.flooded(others(sender)),
            });
        }
        let case = from_host(&HOST, format!("group 01-80-c2-00-00-{last:02x}"), frame(&HOST));
        cases.push(match last {
            0..16 => case.dropped(DropReason::ReservedGroup),
            _ => case.flooded(others(&HOST)),
        });
    }
    let spanning_tree = Frame::new(RED.mac, Mac([0x01, 0x80, 0xc2, 0, 0, 0])).llc(0x42);
    cases.push(from(&RED, "spanning tree", spanning_tree).dropped(DropReason::ReservedGroup));
    let neighbours = Frame::new(RED.mac, Mac([0x01, 0x80, 0xc2, 0, 0, 0x0e])).ethertype(0x88cc).payload(46);
    cases.push(from(&RED, "LLDP", neighbours).dropped(DropReason::ReservedGroup));
    cases
}

fn source_macs() -> Vec<Case> {
    let mut cases = Vec::new();
    let sent_as = |end: &End, mac: Mac| Frame::new(mac, BLUE.mac).ipv4(end.ipv4, BLUE.ipv4).udp(1, 2).payload(18);
    let groups = [
        ("zero", Mac::ZERO),
        ("broadcast", Mac::BROADCAST),
        ("IPv4 group", Mac([0x01, 0, 0x5e, 0, 0, 1])),
        ("IPv6 group", Mac([0x33, 0x33, 0, 0, 0, 1])),
        ("own MAC with the group bit", Mac([0x03, 0, 1, 0, 2, 0])),
    ];
    for sender in [&RED, &ORANGE, &PURPLE] {
        for (what, mac) in groups {
            let case = from(sender, format!("source MAC {what}, from {}", sender.name), sent_as(sender, mac));
            cases.push(case.dropped(DropReason::InvalidSourceMac));
        }
    }
    let stolen = [
        ("the gateway's", HOST.mac),
        ("purple's", PURPLE.mac),
        ("blue's, which the user has set", BLUE.mac),
        ("cyan's of another network", CYAN.mac),
    ];
    for sender in [&RED, &ORANGE] {
        for (whose, mac) in stolen {
            let frame = Frame::new(mac, HOST.mac).ipv4(sender.ipv4, HOST.ipv4).udp(1, 2).payload(18);
            let case = from(sender, format!("source MAC {whose}, from {}", sender.name), frame);
            cases.push(case.dropped(DropReason::SpoofedMac));
        }
    }
    let case = from(&RED, "source MAC of nobody", sent_as(&RED, STRANGER));
    cases.push(case.dropped(DropReason::SpoofedMac));
    let frame = Frame::new(RED.mac, BLUE.mac).ipv4(RED.ipv4, BLUE.ipv4);
    cases.push(from(&BLUE, "source MAC red's, to oneself", frame).dropped(DropReason::SpoofedMac));
    // The port's own MAC with another last byte: the FDB looks at the number in it, and must compare all of it.
    let nearly = Mac([0x02, 0, 1, 0, 2, 1]);
    cases.push(from(&RED, "source MAC nearly the own", sent_as(&RED, nearly)).dropped(DropReason::SpoofedMac));
    let case = from(&PURPLE, "source MAC of nobody, from purple", sent_as(&PURPLE, STRANGER));
    cases.push(case.delivered(&BLUE));
    let case = from(&PURPLE, "source MAC red's, from purple", sent_as(&RED, RED.mac));
    cases.push(case.delivered(&BLUE));
    let frame = Frame::new(STRANGER, RED.mac).ipv4(FREE_V4, RED.ipv4).udp(1, 2).payload(18);
    cases.push(from_host(&HOST, "source MAC of nobody", frame).delivered(&RED));
    cases
}

fn ethertypes() -> Vec<Case> {
    let mut cases = Vec::new();
    let kinds = [
        (0x0000, "length 0"),
        (0x0026, "length 38"),
        (0x05dc, "length 1500"),
        (0x05ff, "neither length nor type"),
        (0x0600, "XNS"),
        (0x0801, "X.75"),
        (0x8035, "RARP"),
        (0x8137, "IPX"),
        (0x8847, "MPLS"),
        (0x8863, "PPPoE"),
        (0x888e, "802.1X"),
        (0x88cc, "LLDP"),
        (0x88e5, "MACsec"),
        (0x88f7, "PTP"),
        (0x9000, "loopback"),
        (0xffff, "reserved"),
    ];
    for (ethertype, name) in kinds {
        for (what, to) in [("unicast", BLUE.mac), ("broadcast", Mac::BROADCAST), ("unknown", STRANGER)] {
            let frame = Frame::new(RED.mac, to).ethertype(ethertype).payload(46);
            let case = from(&RED, format!("ethertype {ethertype:#06x} ({name}), {what}"), frame);
            cases.push(case.dropped(DropReason::EtherType));
        }
        let frame = HOST.to(&RED).ethertype(ethertype).payload(46);
        let case = from_host(&HOST, format!("ethertype {ethertype:#06x}"), frame);
        cases.push(case.dropped(DropReason::EtherType));
    }
    let frame = RED.to(&BLUE).llc(0xaa);
    cases.push(from(&RED, "802.3 with LLC", frame).dropped(DropReason::EtherType));
    let frame = PURPLE.to(&BLUE).ethertype(0x88cc).payload(46);
    cases.push(from(&PURPLE, "LLDP from a trusted port", frame).dropped(DropReason::EtherType));
    cases
}

/// Interfaces that are no ports.
fn strangers() -> Vec<Case> {
    let mut no_port = from(&RED, "from an interface that is no port", RED.udp4(&BLUE));
    no_port.port = PortId::NONE;
    let mut no_port_host = from_host(&HOST, "out of an interface that is no port", HOST.udp4(&RED));
    no_port_host.port = PortId::NONE;
    // What is left of a port that was taken out leads a flood on, but is no port.
    let take_out = |tables: &mut MemoryTables| {
        let removed = tables.ports[&RED.id].removed();
        tables.ports.insert(RED.id, removed);
    };
    vec![
        no_port.dropped(DropReason::UnknownPort),
        no_port_host.dropped(DropReason::UnknownPort),
        from(&GHOST, "from a number without a port", GHOST.udp4(&BLUE)).dropped(DropReason::UnknownPort),
        from(&RED, "from a port taken out", RED.udp4(&BLUE)).with(take_out).dropped(DropReason::UnknownPort),
        from(&BLUE, "flooded past a port taken out", BLUE.broadcast())
            .with(take_out)
            .with(|tables| {
                // The count goes down first; the list still leads through what is left.
                let first = tables.networks[&BLUE.network].first();
                tables.networks.insert(BLUE.network, Network::new(first, 5, 2));
            })
            .flooded([&HOST, &ORANGE, &PURPLE, &GREEN]),
    ]
}
