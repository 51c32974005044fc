//! Who has which address and MAC: given, chosen, learned, and what a port may be allowed to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::sysctl;
use nsnet::lab::ping::ping;
use nsnet::lab::{Frame as Received, RawSocket};
use nsnet_common::cases::frame::Frame;
use nsnet_common::wire::{IpAddress, Mac};

use super::bed::{Bed, DUAL, NETWORK, V4, lab};
use super::shot::{MARK, shoot};

#[test]
fn addresses_are_chosen_in_order_and_used_again() -> Result<()> {
    let mut bed = Bed::new(DUAL, &["red", "blue"])?;
    assert_eq!(bed.at("host").v4, Ipv4Addr::new(192, 168, 15, 254), "the gateway is the last address");
    let v6 = |last| Ipv6Addr::new(0xfd15, 0, 0, 0, 0, 0, 0, last);
    assert_eq!((bed.at("red").v6, bed.at("blue").v6), (v6(1), v6(2)));
    bed.attach(NETWORK, "orange", "--ip 192.168.15.4 fd15::40")?;
    bed.attach(NETWORK, "purple", "")?;
    bed.attach(NETWORK, "green", "")?;
    let last = |bed: &Bed, name: &str| (bed.at(name).v4.octets()[3], bed.at(name).v6.segments()[7]);
    assert_eq!((last(&bed, "purple"), last(&bed, "green")), ((3, 3), (5, 4)));
    // One given, the other chosen; several of one family.
    bed.attach(NETWORK, "white", "--ip fd15::77")?;
    bed.attach(NETWORK, "black", "--ip 192.168.15.50 192.168.15.51")?;
    assert_eq!((last(&bed, "white"), last(&bed, "black")), ((6, 0x77), (50, 5)));
    for ip in [50, 51] {
        assert!(bed.at("red").reaches(Ipv4Addr::new(192, 168, 15, ip).into())?);
    }
    // What is free again is given again, with another MAC.
    let old = bed.at("red").mac;
    bed.lab.nsnet("detach v-net-0 @red")?;
    bed.attach(NETWORK, "again", "")?;
    assert_eq!(last(&bed, "again"), (1, 1));
    assert_ne!(bed.at("again").mac, old);
    assert!(bed.at("blue").reaches(bed.at("again").v4.into())?);
    Ok(())
}

#[test]
fn the_gateway_keeps_its_mac() -> Result<()> {
    let mut bed = Bed::new(DUAL, &["red"])?;
    let gateway = bed.at("host").mac;
    for name in ["a", "b", "c"] {
        bed.attach(NETWORK, name, "")?;
    }
    for name in ["a", "c"] {
        bed.lab.nsnet(&format!("detach v-net-0 @{name}"))?;
    }
    bed.attach(NETWORK, "d", "--mac 02:00:00:00:00:01")?;
    let link = Netlink::inside(&bed.at("host").ns)?.link(NETWORK)?.context("no interface")?;
    assert_eq!(link.mac, Some(gateway.0));
    for name in ["red", "b", "d"] {
        assert!(bed.at(name).reaches(bed.at("host").v4.into())?);
        assert_eq!(bed.at(name).neighbours()?.get(&IpAddr::V4(bed.at("host").v4)), Some(&gateway));
    }
    Ok(())
}

#[test]
fn a_chosen_mac_and_interface() -> Result<()> {
    let mut bed = Bed::new(DUAL, &["red"])?;
    bed.attach(NETWORK, "blue", "--mac 52:54:00:12:34:56 --ifname eth0")?;
    let blue = bed.at("blue");
    assert_eq!((blue.mac, blue.ifname.as_str()), (Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]), "eth0"));
    let link = Netlink::inside(&blue.ns)?.link("eth0")?.context("no eth0")?;
    assert_eq!(link.mac, Some(blue.mac.0));
    super::traffic::exchange_everywhere(&bed, super::traffic::Amount::Little)?;
    bed.check_no_drift()?;
    // It stands in the table until it is detached, and is free then.
    bed.lab.nsnet("detach v-net-0 @blue")?;
    bed.attach(NETWORK, "orange", "--mac 52:54:00:12:34:56")?;
    assert!(bed.at("red").reaches(bed.at("orange").v4.into())?);
    Ok(())
}

#[test]
fn learned_macs() -> Result<()> {
    let mut bed = Bed::new(V4, &["blue", "orange"])?;
    bed.attach(NETWORK, "red", "--learn")?;
    let (red, blue, orange, host) = (bed.at("red"), bed.at("blue"), bed.at("orange"), bed.at("host"));
    let station = |n: u8| Mac([0x52, 0x54, 0, 0, 0, n]);
    let guest = [192, 168, 15, 100];
    let from = |mac: Mac, to: Mac, ip: [u8; 4]| Frame::new(mac, to).ipv4(ip, [192, 168, 15, 99]).append(MARK).finish();

    // A guest behind red speaks with an address that nobody has, and is answered to red alone.
    let hello = from(station(1), blue.mac, guest);
    assert_eq!(shoot(&bed, "red", &[hello])?.receivers(), ["blue"]);
    let to_guest = from(blue.mac, station(1), blue.v4.octets());
    assert_eq!(shoot(&bed, "blue", &[to_guest])?.receivers(), ["red"]);
    // An unknown station can only be there; a port that does not learn hears nothing of it.
    let to_unknown = from(blue.mac, station(200), blue.v4.octets());
    assert_eq!(shoot(&bed, "blue", &[to_unknown])?.receivers(), ["red"]);

    // It is nobody else, whatever it says.
    for (what, mac, ip, reason) in [
        ("blue's MAC", blue.mac, guest, "spoofed-mac"),
        ("the gateway's MAC", host.mac, guest, "spoofed-mac"),
        ("blue's address", station(1), blue.v4.octets(), "spoofed-ipv4"),
        ("the gateway's address", station(1), host.v4.octets(), "spoofed-ipv4"),
        ("no station's MAC", Mac([1, 0, 0x5e, 0, 0, 9]), guest, "invalid-source-mac"),
    ] {
        shoot(&bed, "red", &[from(mac, orange.mac, ip)])?.assert_dropped(what, reason, 1);
    }
    let claim = Frame::new(station(1), Mac::BROADCAST).arp(2, (station(1), host.v4.octets()), (Mac::ZERO, [0; 4]));
    shoot(&bed, "red", &[claim.finish()])?.assert_dropped("the gateway's ARP", "spoofed-arp", 1);

    // 64 of them, and no more; the table of others is not touched.
    let all: Vec<_> = (1..=80).map(|n| from(station(n), blue.mac, guest)).collect();
    let shot = shoot(&bed, "red", &all)?;
    assert_eq!((shot.at("blue").len(), shot.drops.get("mac-limit")), (64, Some(&16)), "{:?}", shot.drops);
    let table = bed.lab.json("fdb list")?;
    let learned = table.as_array().context("no array")?.iter().filter(|row| row["kind"] == "learned").count();
    assert_eq!(learned, 64);
    assert!(red.reaches(blue.v4.into())? && blue.reaches(orange.v4.into())?);

    // What was learned is forgotten with the port.
    bed.lab.nsnet("detach v-net-0 @red")?;
    let table = bed.lab.json("fdb list")?;
    assert!(table.as_array().is_some_and(|rows| rows.iter().all(|row| row["kind"] == "static")), "{table}");
    Ok(())
}

#[test]
fn a_learned_mac_may_move() -> Result<()> {
    let mut bed = Bed::new(V4, &["blue"])?;
    for name in ["red", "orange"] {
        bed.attach(NETWORK, name, "--learn")?;
    }
    let guest = Mac([0x52, 0x54, 0, 0, 0, 1]);
    let blue = bed.at("blue");
    let answer = Frame::new(blue.mac, guest).ipv4(blue.v4.octets(), [192, 168, 15, 99]).append(MARK).finish();
    for place in ["red", "orange", "red"] {
        let hello = Frame::new(guest, blue.mac).ipv4([192, 168, 15, 100], blue.v4.octets()).append(MARK).finish();
        shoot(&bed, place, &[hello])?;
        assert_eq!(shoot(&bed, "blue", std::slice::from_ref(&answer))?.receivers(), [place]);
    }
    Ok(())
}

#[test]
fn a_trusted_port_is_not_checked() -> Result<()> {
    let mut bed = Bed::new(DUAL, &["blue"])?;
    bed.attach(NETWORK, "red", "--trusted")?;
    let (red, blue) = (bed.at("red"), bed.at("blue"));
    let other = Mac([0x52, 0x54, 0, 0, 0, 1]);
    let to_all = Mac([0x33, 0x33, 0, 0, 0, 1]);
    let all_nodes = "ff02::1".parse::<Ipv6Addr>()?.octets();
    let link_local = IpAddress::link_local_of(red.mac).0;
    let frames = [
        Frame::new(other, blue.mac).ipv4([8, 8, 8, 8], [192, 168, 15, 99]).append(MARK),
        Frame::new(red.mac, blue.mac).ipv4([8, 8, 8, 8], [192, 168, 15, 99]).udp(67, 68).append(MARK),
        Frame::new(red.mac, blue.mac).arp(2, (red.mac, [192, 168, 15, 77]), (blue.mac, blue.v4.octets())),
        Frame::new(red.mac, to_all).ipv6(link_local, all_nodes).router_advertisement(),
    ];
    let frames = frames.map(Frame::finish);
    let shot = shoot(&bed, "red", &frames)?;
    assert_eq!(shot.at("blue"), frames, "{:?}", shot.drops);
    assert_eq!(shot.at("host"), &frames[3..]);
    // It is still no way into the host or past a tag.
    let host = bed.at("host");
    for (frame, reason) in [
        (Frame::new(red.mac, host.mac).ipv4([8, 8, 8, 8], [127, 0, 0, 1]), "loopback-destination"),
        (Frame::new(red.mac, blue.mac).tag(0x8100, 5).ipv4(red.v4.octets(), blue.v4.octets()), "tagged"),
        (Frame::new(Mac::BROADCAST, blue.mac).ipv4(red.v4.octets(), blue.v4.octets()), "invalid-source-mac"),
    ] {
        shoot(&bed, "red", &[frame.append(MARK).finish()])?.assert_dropped(reason, reason, 1);
    }
    Ok(())
}

#[test]
fn routes_in_a_namespace() -> Result<()> {
    let lab = lab()?;
    lab.within("host", || sysctl::write("net/ipv4/ip_forward", "1"))??;
    let bed = Bed::inside(lab, V4, &["blue"])?;
    let (blue, wan) = (bed.at("blue"), nsnet::lab::WAN_IP.parse::<Ipv4Addr>()?);
    assert!(blue.run(|| ping(wan.into(), 1, 56, Duration::from_millis(200))).is_err(), "there is a route already");
    bed.lab.nsnet("route add @blue 192.168.1.0/24")?;
    bed.check_no_drift()?;
    // The request gets there, and the outside has no way back: no address of ours is translated or leaked otherwise.
    let socket = bed.lab.within("wan", || RawSocket::open("uplink"))??;
    assert_eq!(blue.run(|| ping(wan.into(), 1, 56, Duration::from_millis(200)))?.received, 0);
    let is_request = |frame: &Received| frame.bytes.get(26..34) == Some(&[blue.v4.octets(), wan.octets()].concat());
    assert!(socket.receive(Duration::from_secs(1), is_request)?.is_some());
    let routes = bed.lab.json("route list @blue")?;
    assert!(routes.as_array().is_some_and(|rows| rows.iter().any(|row| row["dest"] == "192.168.1.0/24")), "{routes}");
    bed.lab.nsnet("route del @blue 192.168.1.0/24")?;
    assert!(blue.run(|| ping(wan.into(), 1, 56, Duration::from_millis(200))).is_err(), "the route is still there");
    Ok(())
}
