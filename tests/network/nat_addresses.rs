//! The host's own addresses: those it gets while something is published at all of them, and two that a namespace leaves
//! by in turn.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::veth::VethSpec;
use nsnet::lab::RawSocket;
use nsnet_common::wire::Mac;

use super::end::End;
use super::outside_bed::{FAMILIES, Outside, far, host, remote};
use super::packet::{ACK, Packet, SYN};

/// Beside the uplink's own addresses, and of subnets that nobody has heard of.
const LATER: [[&str; 2]; 2] = [["192.168.1.9/24", "172.30.7.1/24"], ["fd01::9/64", "fd0a::1/64"]];

fn knock(to: IpAddr, port: u16) -> Packet {
    Packet::tcp(remote(to.is_ipv6(), 9, port), SocketAddr::new(to, 8080), SYN, 100, 0, b"")
}

/// Behaviours 1 and 13: what is published at every address of the host's is so at one that it gets later (DHCP), at once
/// and with nobody told; and no longer at one that it has lost.
#[test]
fn an_address_that_comes_later_is_published_at_once() -> Result<()> {
    let bed = Outside::with("", &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    bed.lab.nsnet("publish add @g1 8080:80/tcp")?;
    let netlink = Netlink::inside(&bed.lab.ns("host")?)?;
    let uplink = netlink.existing_link("uplink")?.index;
    for (v6, later) in FAMILIES.into_iter().zip(LATER) {
        for (number, text) in later.into_iter().enumerate() {
            let net: ipnet::IpNet = text.parse()?;
            let port = 50_000 + 10 * number as u16;
            at_wan.send(&knock(net.addr(), port))?;
            g1.assert_silent("a connection to an address that is not the host's")?;
            bed.allow(&[&format!("{}/{}", net.addr(), if v6 { 128 } else { 32 })])?;
            netlink.add_address(uplink, net)?;
            let (client, to) = (remote(v6, 9, port + 1), SocketAddr::new(net.addr(), 8080));
            let got = at_wan.carry_as(&knock(net.addr(), port + 1), &g1, client, g1.endpoint(v6, 80))?;
            let answer = Packet::tcp(got.to(), got.from(), SYN | ACK, 7, 101, b"");
            g1.carry_as(&answer, &at_wan, to, client).with_context(|| format!("from {to}"))?;
            netlink.remove_address(uplink, net)?;
            at_wan.send(&knock(net.addr(), port + 2))?;
            g1.assert_silent("a connection to an address that the host has lost")?;
        }
    }
    Ok(())
}

/// What somebody on the wire sends to the host's MAC, but to nobody's address: no namespace answers for it, whether the host
/// has a route there or none, nor for a broadcast address.
#[test]
fn nobodys_address_is_not_published() -> Result<()> {
    let bed = Outside::with("", &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    bed.lab.nsnet("publish add @g1 8080:80/tcp")?;
    let strangers =
        ["192.168.1.77", "100.64.7.7", "192.168.1.255", "255.255.255.255", "224.0.0.1", "fd01::77", "fdff::7"];
    let netlink = Netlink::inside(&bed.lab.ns("host")?)?;
    for has_default_route in [true, false] {
        if !has_default_route {
            for route in netlink.routes()?.into_iter().filter(|route| route.dest.prefix_len() == 0) {
                netlink.remove_route(&route)?;
            }
        }
        for to in strangers {
            at_wan.send(&knock(to.parse()?, 50_000))?;
            g1.assert_silent(&format!("a connection to {to}, default route {has_default_route}"))?;
        }
        ensure!(bed.flows()?.is_empty(), "{:?}", bed.flows()?);
    }
    // The host's own are, without a default route as well; the way back must be there.
    for v6 in FAMILIES {
        at_wan.carry(&knock(host(v6), 50_001), &g1)?;
    }
    Ok(())
}

/// RFC 4787 REQ-1 and REQ-3: a socket that sends by two uplinks in turn has a port at each, and nobody else gets either.
#[test]
fn two_uplinks_have_a_mapping_each() -> Result<()> {
    let bed = Outside::with("", &[], &["g1", "g2"])?;
    let (g1, g2, at_wan) = (bed.end("g1")?, bed.end("g2")?, bed.end("wan")?);
    let at_back = second_uplink(&bed)?;
    for v6 in FAMILIES {
        let there = SocketAddr::new(far(v6), 443);
        let second: IpAddr = if v6 { at_back.v6.into() } else { at_back.v4.into() };
        let sends =
            |end: &End, to: SocketAddr, at: &End| end.carry(&Packet::udp(end.endpoint(v6, 40_000), to, b"x"), at);
        // By the first one g1's port is another's, so that what it is given is no accident.
        ensure!(sends(&g2, remote(v6, 1, 443), &at_wan)?.from().port() == 40_000);
        let first = sends(&g1, remote(v6, 1, 443), &at_wan)?.from();
        ensure!(first.ip() == host(v6) && first.port() != 40_000, "{first}");
        let other = sends(&g1, there, &at_back)?.from();
        ensure!(other == SocketAddr::new(second, 40_000), "{other}");
        for number in 2..5 {
            ensure!(sends(&g1, remote(v6, number, 443), &at_wan)?.from() == first, "another port by the first uplink");
            ensure!(sends(&g1, SocketAddr::new(there.ip(), 443 + u16::from(number)), &at_back)?.from() == other);
        }
        // Answers come back by either.
        at_wan.carry_as(
            &Packet::udp(remote(v6, 1, 443), first, b"x"),
            &g1,
            remote(v6, 1, 443),
            g1.endpoint(v6, 40_000),
        )?;
        at_back.carry_as(&Packet::udp(there, other, b"x"), &g1, there, g1.endpoint(v6, 40_000))?;
        // At the second one g2 is the one that must give way.
        ensure!(sends(&g2, there, &at_back)?.from().port() != 40_000, "a port was given twice");
    }
    Ok(())
}

/// A second uplink of the host's, by which far is reached; its other end on the wire's side.
fn second_uplink(bed: &Outside) -> Result<End> {
    let (host, wan) = (bed.lab.ns("host")?, bed.lab.ns("wan")?);
    let netlink = Netlink::inside(&host)?;
    let (near, back) =
        (VethSpec { name: "second", ..VethSpec::default() }, VethSpec { name: "back", ..VethSpec::default() });
    netlink.create_veth(&near, &back, Some(&wan))?;
    let outer = Netlink::inside(&wan)?;
    let (near, back) = (netlink.existing_link("second")?, outer.existing_link("back")?);
    for (netlink, link, addresses) in
        [(&netlink, &near, ["192.168.2.1/24", "fd05::1/64"]), (&outer, &back, ["192.168.2.3/24", "fd05::3/64"])]
    {
        for address in addresses {
            netlink.add_address(link.index, address.parse()?)?;
        }
        netlink.set_up(link.index)?;
    }
    bed.ip("host", "route add 203.0.113.0/24 via 192.168.2.3")?;
    bed.ip("host", "-6 route add fd02::/64 via fd05::3")?;
    // A verb that changes something finds it.
    bed.lab.nsnet("masquerade off v-net-0")?;
    bed.lab.nsnet("masquerade on v-net-0")?;
    let socket = wan.run(|| RawSocket::open_promiscuous("back"))??;
    let mac = |mac: Option<[u8; 6]>| mac.map(Mac).context("an uplink without a MAC");
    Ok(End {
        name: "back".to_owned(),
        socket,
        mac: mac(back.mac)?,
        gateway: mac(near.mac)?,
        v4: "192.168.2.1".parse()?,
        v6: "fd05::1".parse()?,
        port: "second".to_owned(),
    })
}
