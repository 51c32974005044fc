//! What people do by hand with ip, brctl and iptables, done with nsnet.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nsnet::kernel::named;
use nsnet::kernel::netlink::Netlink;
use nsnet::lab::{Lab, TcpServer, ping, tcp};
use nsnet_common::wire::Mac;

use super::bed::{Bed, lab, text};

const COLOURS: [&str; 4] = ["red", "blue", "orange", "purple"];

/// 192.168.15.N, as in every scenario.
fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 15, last)
}

fn pings(lab: &Lab, from: &str, to: Ipv4Addr) -> Result<u32> {
    Ok(lab.within(from, || ping::ping(to.into(), 3, 56, Duration::from_secs(1)))??.received)
}

/// What the neighbour table of `from` says about an address.
fn neighbour(lab: &Lab, from: &str, to: Ipv4Addr) -> Result<Option<Mac>> {
    let entries = Netlink::inside(&lab.ns(from)?)?.neighbours()?;
    Ok(entries.into_iter().find(|entry| entry.ip == IpAddr::V4(to)).and_then(|entry| entry.mac).map(Mac))
}

/// Whether an interface in a namespace is called as people do by hand, where that fits.
fn has_plain_name(lab: &Lab, ns: &str, interface: &str) -> bool {
    let plain = format!("veth-{}", lab.name(ns));
    if plain.len() <= 15 { interface == plain } else { interface.starts_with("veth-") && interface.len() <= 15 }
}

#[test]
fn cable() -> Result<()> {
    let lab = lab()?;
    lab.nsnet("ns add @red @blue")?;
    let cable = lab.json("cable add @red @blue --address-a 192.168.15.1/24 --address-b 192.168.15.2/24")?;
    let (end_a, end_b) = (text(&cable["ifname_a"])?, text(&cable["ifname_b"])?);
    assert!(has_plain_name(&lab, "red", end_a) && has_plain_name(&lab, "blue", end_b), "{cable}");
    assert_eq!((pings(&lab, "red", ip(2))?, pings(&lab, "blue", ip(1))?), (3, 3));
    // Each knows the other, and the host knows nobody.
    let mac_in = |name: &str, end: &str| -> Result<Option<Mac>> {
        Ok(Netlink::inside(&lab.ns(name)?)?.link(end)?.and_then(|link| link.mac).map(Mac))
    };
    assert_eq!(neighbour(&lab, "red", ip(2))?, mac_in("blue", end_b)?);
    assert_eq!(neighbour(&lab, "blue", ip(1))?, mac_in("red", end_a)?);
    let host = Netlink::inside(&lab.ns("host")?)?;
    let of_subnet = |ip: &IpAddr| matches!(ip, IpAddr::V4(ip) if ip.octets()[..3] == [192, 168, 15]);
    assert!(!host.neighbours()?.iter().any(|entry| of_subnet(&entry.ip)));
    assert_eq!(host.links()?.len(), 2, "loopback and uplink");
    assert!(!host.routes()?.iter().any(|route| of_subnet(&route.dest.addr())));

    // Deleting one end deletes the other, which status sees, and adding the cable again repairs.
    let red = Netlink::inside(&lab.ns("red")?)?;
    red.delete_link(red.link(end_a)?.context("no end in red")?.index)?;
    assert_eq!(mac_in("blue", end_b)?, None);
    assert_eq!(lab.try_nsnet("status")?.status.code(), Some(1));
    lab.nsnet("cable del @blue @red")?;
    lab.nsnet("cable add @red @blue --address-a 192.168.15.1/24 --address-b 192.168.15.2/24")?;
    // It carries when the verb has returned, from the first packet on.
    assert_eq!(pings(&lab, "red", ip(2))?, 3);
    lab.nsnet("cable del @blue @red")?;
    assert_eq!((mac_in("red", end_a)?, mac_in("blue", end_b)?), (None, None));
    Ok(())
}

/// The switch of scenarios 2, 3 and 7: red, blue, orange and purple at .1 to .4, the host at .5.
fn switch() -> Result<Bed> {
    let lab = lab()?;
    for colour in COLOURS {
        lab.nsnet(&format!("ns add @{colour}"))?;
    }
    lab.nsnet("network add v-net-0 --subnet 192.168.15.0/24 --gateway 192.168.15.5")?;
    Bed::inside(lab, "--subnet 192.168.15.0/24 --gateway 192.168.15.5", &COLOURS)
}

#[test]
fn switch_of_four() -> Result<()> {
    let bed = switch()?;
    let names = named::list()?;
    for (position, colour) in COLOURS.into_iter().enumerate() {
        let station = bed.at(colour);
        assert_eq!(station.v4, ip(position as u8 + 1), "the addresses are given in order");
        assert!(names.contains(&bed.lab.name(colour)));
        assert!(has_plain_name(&bed.lab, colour, &station.ifname), "{}", station.ifname);
        assert!(station.port.starts_with("veth-") && station.port.ends_with("-br") && station.port.len() <= 15);
        assert!(Netlink::inside(&station.ns)?.link(&station.ifname)?.is_some_and(|link| link.up));
    }
    for from in COLOURS {
        for to in COLOURS.into_iter().filter(|to| *to != from) {
            assert_eq!(pings(&bed.lab, from, bed.at(to).v4)?, 3, "{from} to {to}");
            assert_eq!(neighbour(&bed.lab, from, bed.at(to).v4)?, Some(bed.at(to).mac));
        }
    }
    // No bridge, no forwarding, and no network but their own.
    let host = Netlink::inside(&bed.lab.ns("host")?)?;
    assert!(host.links()?.iter().all(|link| link.kind.as_deref() != Some("bridge")));
    let forwards = bed.lab.within("host", || nsnet::kernel::sysctl::read("net/ipv4/ip_forward"))??;
    assert_eq!(forwards.as_deref(), Some("0"));
    assert!(pings(&bed.lab, "red", Ipv4Addr::new(192, 168, 1, 3)).is_err(), "red has a route to the outside");
    Ok(())
}

#[test]
fn host() -> Result<()> {
    let bed = switch()?;
    let host = Netlink::inside(&bed.lab.ns("host")?)?;
    let link = host.link("v-net-0")?.context("the host has no interface v-net-0")?;
    assert!(host.addresses(link.index)?.contains(&"192.168.15.5/24".parse()?));
    for colour in COLOURS {
        assert_eq!(pings(&bed.lab, "host", bed.at(colour).v4)?, 3, "host to {colour}");
        assert_eq!(pings(&bed.lab, colour, ip(5))?, 3, "{colour} to host");
    }
    Ok(())
}

#[test]
fn two_servers_on_one_port() -> Result<()> {
    let bed = switch()?;
    let port = 8080;
    let serve = |name: &str| {
        let station = bed.at(name);
        station.run(|| TcpServer::banner((Ipv4Addr::UNSPECIFIED, port).into(), &format!("this is {name}")))
    };
    let _servers = [serve("red")?, serve("blue")?];
    for client in ["host", "orange", "red", "blue"] {
        for server in ["red", "blue"] {
            let to = SocketAddr::new(bed.at(server).v4.into(), port);
            let said = bed.at(client).run(|| tcp::fetch(to))?;
            assert_eq!(said, format!("this is {server}"), "asked by {client}");
        }
    }
    // Nobody else listens there.
    let to = SocketAddr::new(bed.at("orange").v4.into(), port);
    assert!(bed.at("host").run(|| tcp::fetch(to)).is_err());
    Ok(())
}

#[test]
fn commands_in_a_namespace() -> Result<()> {
    let bed = switch()?;
    // As `ip netns exec`: its network, its /sys, and the command's own exit code.
    let ls = bed.lab.nsnet("ns exec @red -- ls /sys/class/net")?;
    assert!(ls.contains(&bed.at("red").ifname) && !ls.contains("v-net-0"), "{ls}");
    assert_eq!(
        bed.lab.command(["ns", "exec", &bed.lab.name("red"), "--", "sh", "-c", "exit 7"]).status()?.code(),
        Some(7)
    );
    Ok(())
}
