//! ARP and neighbour discovery: who answers for an address, who hears the question, how soon others know.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::sysctl;
use nsnet::lab::ping::{Echo, ping, ping_with};
use nsnet::lab::{Frame as Received, RawSocket};
use nsnet_common::cases::frame::{Frame, SOURCE_OPTION};
use nsnet_common::wire::{IpAddress, Mac};

use super::bed::{Bed, DUAL, NETWORK, Station, V4};
use super::shot::{MARK, shoot};

const ARP: [u8; 2] = [0x08, 0x06];
const IPV6: [u8; 2] = [0x86, 0xdd];

fn is_arp(frame: &Received) -> bool {
    frame.bytes.get(12..14) == Some(&ARP)
}

/// A neighbour solicitation.
fn is_solicitation(frame: &Received) -> bool {
    frame.bytes.get(12..14) == Some(&IPV6) && frame.bytes.get(20) == Some(&58) && frame.bytes.get(54) == Some(&135)
}

fn listen(station: &Station) -> Result<RawSocket> {
    station.run(|| RawSocket::open_promiscuous(&station.ifname))
}

#[test]
fn a_probe_is_answered_for_addresses_in_use() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let (red, blue, host) = (bed.at("red"), bed.at("blue"), bed.at("host"));
    let (at_red, at_blue) = (listen(red)?, listen(blue)?);
    // As `arping -D` asks (RFC 5227 section 2.1.1).
    let probe =
        |ip: Ipv4Addr| Frame::new(red.mac, Mac::BROADCAST).arp(1, (red.mac, [0; 4]), (Mac::ZERO, ip.octets())).finish();
    for (ip, owner) in [(blue.v4, Some(blue)), (host.v4, Some(host)), (Ipv4Addr::new(192, 168, 15, 9), None)] {
        at_red.send(&probe(ip))?;
        let patience = Duration::from_millis(if owner.is_some() { 1000 } else { 100 });
        let answer = at_red.receive(patience, |frame| is_arp(frame) && frame.bytes.get(21) == Some(&2))?;
        let Some(owner) = owner else {
            assert_eq!(answer, None, "somebody answers for {ip}");
            continue;
        };
        let expected = Frame::new(owner.mac, red.mac).arp(2, (owner.mac, ip.octets()), (red.mac, [0; 4])).finish();
        assert_eq!(answer.with_context(|| format!("nobody answers for {ip}"))?.bytes[..42], expected[..42]);
    }
    // Only the probe for nobody's address was flooded.
    let heard = at_blue.collect(Duration::from_millis(50), is_arp)?;
    assert_eq!(heard.len(), 1, "{heard:?}");
    // Nobody answers for the sender's own address: the kernel probes it so before it uses it.
    at_red.send(&probe(red.v4))?;
    assert_eq!(at_red.receive(Duration::from_millis(100), is_arp)?, None);
    Ok(())
}

#[test]
fn the_dataplane_answers_arp_and_nd() -> Result<()> {
    let bed = Bed::new(DUAL, &["red", "blue", "orange"])?;
    let red = bed.at("red");
    for to in ["blue", "host"] {
        let target = bed.at(to);
        let sockets = bed.stations().iter().filter(|station| station.name != red.name).map(listen);
        let sockets = sockets.collect::<Result<Vec<_>>>()?;
        let before = bed.stats()?[&red.port];
        for ip in target.ips() {
            assert!(red.reaches(ip)?, "{ip}");
            assert_eq!(red.neighbours()?.get(&ip), Some(&target.mac), "{ip}");
        }
        let grown = bed.stats()?[&red.port] - before;
        assert!(grown.answered >= 2, "{grown:?}");
        for socket in sockets {
            // The target may ask back, which is answered as well: none of it gets to anybody.
            let is_question =
                |frame: &Received| (is_arp(frame) && frame.bytes.get(21) == Some(&1)) || is_solicitation(frame);
            let questions = socket.collect(Duration::from_millis(20), is_question)?;
            assert_eq!(questions, [], "asked although the dataplane knows");
        }
    }
    Ok(())
}

#[test]
fn an_address_that_moved_is_reachable_at_once() -> Result<()> {
    let mut bed = Bed::new(DUAL, &["red", "blue", "orange"])?;
    let ips = bed.at("red").ips();
    for from in ["blue", "orange", "host"] {
        for ip in &ips {
            assert!(bed.at(from).reaches(*ip)?);
        }
    }
    bed.lab.nsnet("ns add @heir")?;
    bed.lab.nsnet("detach v-net-0 @red")?;
    let start = Instant::now();
    bed.attach(NETWORK, "heir", &format!("--ip {} {}", ips[0], ips[1]))?;
    for from in ["blue", "orange", "host"] {
        for ip in &ips {
            let station = bed.at(from);
            // From the first packet on: an entry of the old one would be used for many seconds.
            assert!(station.reaches(*ip)?, "{from} to {ip}");
        }
    }
    println!("reachable after {:?}", start.elapsed());
    for from in ["blue", "orange", "host"] {
        for ip in &ips {
            assert_eq!(bed.at(from).neighbours()?.get(ip), Some(&bed.at("heir").mac), "{from} about {ip}");
        }
    }
    Ok(())
}

#[test]
fn ipv6_is_off_where_nobody_asked_for_it() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let (red, blue, host) = (bed.at("red"), bed.at("blue"), bed.at("host"));
    for station in [red, blue, host] {
        let key = format!("net/ipv6/conf/{}/disable_ipv6", station.ifname);
        assert_eq!(station.run(|| Ok(sysctl::read(&key)?))?.as_deref(), Some("1"), "{}", station.name);
    }
    // A namespace that turns it on again is alone with it.
    let key = format!("net/ipv6/conf/{}/disable_ipv6", red.ifname);
    let sockets = [listen(blue)?, listen(host)?];
    red.run(|| Ok(sysctl::write(&key, "0")?))?;
    let link_local = |mac| IpAddress::link_local_of(mac).0;
    let frames = [
        Frame::new(red.mac, blue.mac).ipv6(link_local(red.mac), link_local(blue.mac)).udp(7, 7),
        Frame::new(red.mac, Mac([0x33, 0x33, 0, 0, 0, 1])).ipv6(link_local(red.mac), [0xff; 16]).udp(7, 7),
        Frame::new(red.mac, host.mac).ipv6([0xfd; 16], link_local(host.mac)).udp(7, 7),
    ];
    let shot = shoot(&bed, "red", &frames.map(|frame| frame.append(MARK).finish()))?;
    assert_eq!(shot.receivers(), Vec::<&str>::new());
    assert!(shot.drops.get("ipv6-off").is_some_and(|count| *count >= 3), "{:?}", shot.drops);
    for socket in sockets {
        let heard = socket.collect(Duration::from_millis(100), |frame| frame.bytes.get(12..14) == Some(&IPV6))?;
        assert_eq!(heard, []);
    }
    Ok(())
}

#[test]
fn nothing_waits_for_duplicate_address_detection() -> Result<()> {
    /// Shorter than it takes (RFC 4862 section 5.4: a second or two).
    const DETECTION: Duration = Duration::from_millis(900);
    let mut bed = Bed::new(DUAL, &["red"])?;
    for name in ["blue", "orange", "purple"] {
        bed.attach(NETWORK, name, "")?;
        let start = Instant::now();
        let (station, red, host) = (bed.at(name), bed.at("red"), bed.at("host"));
        for to in [red, host] {
            let pings = station.run(|| ping(to.v6.into(), 1, 56, DETECTION))?;
            assert_eq!(pings.received, 1, "{name} to {}: {pings}", to.name);
        }
        let pings = red.run(|| ping(station.v6.into(), 1, 56, DETECTION))?;
        assert_eq!(pings.received, 1, "red to {name}: {pings}");
        println!("{name}: {:?}", start.elapsed());
    }
    Ok(())
}

#[test]
fn link_local_addresses_work() -> Result<()> {
    let bed = Bed::new(DUAL, &["red", "blue"])?;
    for (from, to) in [("red", "blue"), ("blue", "host"), ("host", "red")] {
        let (source, target) = (bed.at(from), bed.at(to));
        let index = Netlink::inside(&source.ns)?.link(&source.ifname)?.context("no interface")?.index;
        let ip = Ipv6Addr::from(IpAddress::link_local_of(target.mac).0);
        let echo = Echo {
            to: SocketAddr::V6(SocketAddrV6::new(ip, 0, 0, index)),
            count: 2,
            payload_len: 1400,
            timeout: Duration::from_secs(1),
            hop_limit: None,
        };
        let pings = source.run(|| ping_with(&echo))?;
        assert_eq!(pings.received, 2, "{from} to {to} at {ip}: {pings}");
        // All nodes hear it, and answer from their own addresses.
        let all = Echo { to: SocketAddr::V6(SocketAddrV6::new("ff02::1".parse()?, 0, 0, index)), count: 1, ..echo };
        let socket = listen(target)?;
        source.run(|| ping_with(&Echo { timeout: Duration::from_millis(50), ..all }))?;
        let request =
            |frame: &Received| frame.bytes.get(6..12) == Some(&source.mac.0) && frame.bytes.get(54) == Some(&128);
        assert!(socket.receive(Duration::from_secs(1), request)?.is_some(), "{from} to all nodes at {to}");
    }
    Ok(())
}

#[test]
fn a_solicitation_of_any_form_finds_the_owner() -> Result<()> {
    let bed = Bed::new(DUAL, &["red", "blue"])?;
    let (red, blue) = (bed.at("red"), bed.at("blue"));
    let [.., a, b, c] = blue.v6.octets();
    let group = [[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff].as_slice(), &[a, b, c]].concat();
    let group: [u8; 16] = group.try_into().map_err(|_| anyhow::anyhow!("no address"))?;
    let group_mac = Mac([0x33, 0x33, 0xff, a, b, c]);
    let ask = |source: [u8; 16]| Frame::new(red.mac, group_mac).ipv6(source, group).neighbour(135, blue.v6.octets());
    let is_answer = |frame: &Received| {
        frame.bytes.get(6..12) == Some(&blue.mac.0)
            && frame.bytes.get(20) == Some(&58)
            && frame.bytes.get(54) == Some(&136)
    };
    // Without the option it is for the owner alone. (A kernel answers only whom it knows: RFC 4861 section 7.1.1.)
    let bare = ask(red.v6.octets()).finish();
    assert_eq!(shoot(&bed, "red", std::slice::from_ref(&bare))?.receivers(), ["blue"]);
    // With it, it is answered in place; and in duplicate address detection, the owner answers.
    let socket = listen(red)?;
    for (what, frame) in [
        ("ordinary", ask(red.v6.octets()).mac_option(SOURCE_OPTION, red.mac)),
        ("duplicate address detection", ask([0; 16])),
    ] {
        socket.send(&frame.finish())?;
        let answer = socket.receive(Duration::from_secs(1), is_answer)?.with_context(|| what.to_owned())?;
        let target = answer.bytes.get(62..78).context("a short answer")?;
        assert_eq!(target, blue.v6.octets(), "{what}");
    }
    Ok(())
}
