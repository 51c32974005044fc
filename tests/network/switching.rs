//! Where frames go, and that they get there as they were: the rules of a switch.

use std::net::IpAddr;

use anyhow::Result;
use nsnet::lab::RawSocket;
use nsnet_common::cases::frame::Frame;
use nsnet_common::wire::Mac;

use super::bed::{Bed, Counters, NETWORK, Station, V4};
use super::shot::{MARK, shoot};

/// An address of the subnet that nobody has: who gets the packet has nothing to answer.
const NOBODY: [u8; 4] = [192, 168, 15, 99];

#[test]
fn reserved_groups_stay_on_the_link() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue", "orange"])?;
    let red = bed.at("red");
    let to = |last| Frame::new(red.mac, Mac([0x01, 0x80, 0xc2, 0, 0, last]));
    let packets = (0..16).map(|last| to(last).ipv4(red.v4.octets(), [224, 0, 0, 1]));
    // Spanning tree, pause frames and LLDP too.
    let others = [to(0).llc(0x42), to(1).ethertype(0x8808), to(0x0e).ethertype(0x88cc)];
    let frames: Vec<_> = packets.chain(others).map(|frame| frame.append(MARK).finish()).collect();
    shoot(&bed, "red", &frames)?.assert_dropped("reserved groups", "reserved-group", frames.len());

    // The next ones are ordinary groups.
    let frames: Vec<_> = [0x10, 0x20, 0x21, 0x2f]
        .map(|last| to(last).ipv4(red.v4.octets(), [224, 0, 0, 1]).append(MARK).finish())
        .to_vec();
    let shot = shoot(&bed, "red", &frames)?;
    for name in ["blue", "orange", "host"] {
        assert_eq!(shot.at(name), frames, "at {name}");
    }
    Ok(())
}

#[test]
fn broadcast_reaches_every_other_port_once() -> Result<()> {
    let mut bed = Bed::new(V4, &["red", "blue", "orange", "purple"])?;
    bed.add_network("v-net-1", "--subnet 10.9.0.0/24")?;
    bed.attach("v-net-1", "green", "")?;
    for from in ["red", "host"] {
        let sender = bed.at(from);
        let group = |destination| Frame::new(sender.mac, destination);
        let frames = [
            group(Mac::BROADCAST).ipv4(sender.v4.octets(), [192, 168, 15, 255]),
            group(Mac([1, 0, 0x5e, 0, 0, 0xfb])).ipv4(sender.v4.octets(), [224, 0, 0, 251]).udp(5353, 5353),
            group(Mac::BROADCAST).arp(1, (sender.mac, sender.v4.octets()), (Mac::ZERO, NOBODY)),
        ];
        let frames: Vec<_> = frames.into_iter().map(|frame| frame.append(MARK).finish()).collect();
        let shot = shoot(&bed, from, &frames)?;
        for station in bed.stations() {
            let expected = if station.network == NETWORK && station.name != sender.name { &frames[..] } else { &[] };
            assert_eq!(shot.at(&station.name), expected, "from {from} at {}", station.name);
        }
        assert!(shot.drops.is_empty(), "{:?}", shot.drops);
    }
    Ok(())
}

#[test]
fn the_host_may_broadcast() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let host = bed.at("host");
    let frame = Frame::new(host.mac, Mac::BROADCAST).arp(1, (host.mac, host.v4.octets()), (Mac::ZERO, NOBODY));
    // As `arping` and a DHCP server do: a frame that was flooded has been sent, and is no error.
    host.run(|| RawSocket::open(&host.ifname)?.send(&frame.finish()))
}

/// A switch does not look at the address of a packet between namespaces. What goes to the gateway's MAC is routed, and
/// stays on the host only with its address.
fn address_at(target: &Station) -> [u8; 4] {
    if target.name == target.network { target.v4.octets() } else { NOBODY }
}

#[test]
fn unicast_reaches_one_port() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue", "orange"])?;
    for (from, to) in [("red", "blue"), ("red", "host"), ("host", "orange")] {
        let (source, target) = (bed.at(from), bed.at(to));
        let frame = Frame::new(source.mac, target.mac).ipv4(source.v4.octets(), address_at(target));
        let frames: Vec<_> =
            (0..3000u16).map(|n| frame.clone().append(MARK).append(&n.to_be_bytes()).finish()).collect();
        let shot = shoot(&bed, from, &frames)?;
        // The host's kernel may refuse the protocol, and quote the packet to its sender.
        let receivers: Vec<&str> = shot.receivers().into_iter().filter(|name| *name != from).collect();
        assert_eq!(receivers, [target.name.as_str()], "from {from} to {to}");
        let arrived = shot.at(to);
        let swapped = arrived.iter().zip(&frames).filter(|(arrived, sent)| arrived != sent).count();
        assert_eq!(arrived.len(), frames.len(), "from {from} to {to}: lost or doubled");
        // All are sent from one CPU; the kernel may move its own work all the same.
        assert!(swapped <= 30, "{swapped} of {} frames from {from} to {to} came out of order", frames.len());
    }

    let (red, blue) = (bed.at("red"), bed.at("blue"));
    let frame = |mac| Frame::new(red.mac, mac).ipv4(red.v4.octets(), NOBODY).append(MARK).finish();
    let stranger = Mac([2, 0, 1, 0x0f, 0xff, 1]);
    shoot(&bed, "red", &[frame(stranger)])?.assert_dropped("to nobody", "unknown-destination", 1);
    shoot(&bed, "red", &[frame(red.mac)])?.assert_dropped("to itself", "same-port", 1);
    assert!(red.reaches(IpAddr::V4(blue.v4))?);
    Ok(())
}

#[test]
fn frames_arrive_as_they_were() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    for (from, to) in [("red", "blue"), ("red", "host"), ("host", "red")] {
        let (source, target) = (bed.at(from), bed.at(to));
        let packet = || Frame::new(source.mac, target.mac).ipv4(source.v4.octets(), address_at(target));
        // From the shortest that has an IPv4 header, over what Ethernet would pad, to the longest.
        let lengths = [34, 35, 42, 59, 60, 61, 63, 64, 65, 128, 577, 1000, 1499, 1513, 1514];
        let mut frames: Vec<_> = lengths.map(|length| packet().payload(length - 34).finish()).to_vec();
        // Wrong checksums are the receiver's to find, and what trails the packet goes along.
        frames.push(packet().udp(7, 7).payload(40).set(24, &[0xba, 0xd0]).finish());
        frames.push(packet().udp(7, 7).payload(40).set(40, &[0xba, 0xd0]).finish());
        frames.push([packet().udp(7, 7).finish(), vec![0xa5; 30]].concat());
        frames.push(packet().option_word([7, 4, 4, 0]).udp(7, 7).finish());
        frames.push(packet().fragment_v4(0, true).payload(64).finish());
        frames.push(packet().fragment_v4(8, false).payload(64).finish());
        frames.push(
            Frame::new(source.mac, target.mac).arp(2, (source.mac, source.v4.octets()), (target.mac, NOBODY)).finish(),
        );
        let shot = shoot(&bed, from, &frames)?;
        assert_eq!(shot.at(to), frames, "from {from} to {to}");
        assert!(shot.drops.is_empty(), "{:?}", shot.drops);
    }
    Ok(())
}

#[test]
fn runts_are_dropped() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let (red, blue) = (bed.at("red"), bed.at("blue"));
    let packet = || Frame::new(red.mac, blue.mac).ipv4(red.v4.octets(), NOBODY);
    let arp = || Frame::new(red.mac, blue.mac).arp(2, (red.mac, red.v4.octets()), (blue.mac, blue.v4.octets()));
    let cut: Vec<_> = (14..34).map(|length| packet().cut(length).finish()).collect();
    shoot(&bed, "red", &cut)?.assert_dropped("IPv4 without its header", "truncated", cut.len());
    let cut: Vec<_> = (14..42).map(|length| arp().cut(length).finish()).collect();
    shoot(&bed, "red", &cut)?.assert_dropped("ARP without its end", "truncated", cut.len());
    let long = packet().udp(7, 7).payload(20).cut(50).finish();
    shoot(&bed, "red", &[long])?.assert_dropped("IPv4 without its end", "bad-ipv4", 1);
    let versions: Vec<_> =
        [0x05, 0x35, 0x65, 0xf5, 0x44, 0x40].map(|byte| packet().payload(20).set(14, &[byte]).finish()).to_vec();
    shoot(&bed, "red", &versions)?.assert_dropped("no IPv4", "bad-ipv4", versions.len());
    let ipv6 = Frame::new(red.mac, blue.mac).ipv6([0xfd; 16], [0xfe; 16]).append(MARK).finish();
    shoot(&bed, "red", &[ipv6])?.assert_dropped("IPv6 where there is none", "ipv6-off", 1);
    Ok(())
}

#[test]
fn counters_add_up() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue", "orange"])?;
    let (red, blue) = (bed.at("red"), bed.at("blue"));
    let packet = |from: Mac, to: Mac| Frame::new(from, to).ipv4(red.v4.octets(), NOBODY).append(MARK).finish();
    let question =
        Frame::new(red.mac, Mac::BROADCAST).arp(1, (red.mac, red.v4.octets()), (Mac::ZERO, blue.v4.octets()));
    let mut frames = vec![packet(red.mac, blue.mac); 5];
    frames.extend(vec![packet(red.mac, Mac::BROADCAST); 3]);
    frames.extend(vec![question.finish(); 2]);
    frames.extend(vec![packet(blue.mac, blue.mac); 4]);
    let before = bed.stats()?;
    let shot = shoot(&bed, "red", &frames)?;
    assert_eq!((shot.at("blue").len(), shot.at("orange").len(), shot.at("host").len()), (8, 3, 3));
    let after = bed.stats()?;
    let grown = |name: &str| after[&bed.at(name).port] - before[&bed.at(name).port];
    // The frame that ends a shot is one broadcast more. What was answered came back to red.
    assert_eq!(grown("red"), Counters { rx: 15, tx: 2, flooded: 4, answered: 2, dropped: 4 });
    assert_eq!(grown("blue"), Counters { tx: 9, ..Counters::default() });
    assert_eq!(grown("orange"), Counters { tx: 4, ..Counters::default() });
    assert_eq!(grown("host"), Counters { tx: 4, ..Counters::default() });

    // The same over all traffic: what came in went to one port, to all, back as an answer, or nowhere.
    let socket = red.run(|| RawSocket::open(&red.ifname))?;
    for _ in 0..500 {
        socket.send(&packet(red.mac, blue.mac))?;
    }
    assert!(red.reaches(IpAddr::V4(blue.v4))? && blue.reaches(IpAddr::V4(bed.at("host").v4))?);
    let all: Vec<Counters> = bed.stats()?.into_iter().map(|(port, now)| now - before[&port]).collect();
    let sum = |part: fn(&Counters) -> u64| all.iter().map(part).sum::<u64>();
    let copies = sum(|c| c.flooded) * 3;
    let to_one = sum(|c| c.rx) - sum(|c| c.flooded) - sum(|c| c.answered) - sum(|c| c.dropped);
    assert_eq!(sum(|c| c.tx), copies + to_one + sum(|c| c.answered), "{all:?}");
    Ok(())
}
