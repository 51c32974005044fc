//! Networks among themselves: apart unless they are opened, and internal ones.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use nsnet::lab::{TcpServer, UdpEcho, tcp, udp};

use super::outside_bed::{FAMILIES, Outside, far, host, remote, wan};
use super::packet::{ACK, Packet, SYN};

const SECOND: Duration = Duration::from_secs(1);

/// UDP and TCP from one station to another's address; the sources that the servers see.
fn talk(bed: &Outside, from: &str, to: &str, ip: IpAddr) -> Result<Vec<IpAddr>> {
    let (client, server) = (bed.at(from), bed.at(to));
    let listener = server.run(|| TcpServer::start(SocketAddr::new(ip, 0)))?;
    let echo = server.run(|| UdpEcho::start(SocketAddr::new(ip, 0)))?;
    client.run(|| tcp::transfer(listener.addr(), 10_000))?;
    let outcome = client.run(|| udp::exchange(echo.addr(), 3000, 1, SECOND))?;
    ensure!(outcome.echoed == 1, "{outcome}");
    Ok([listener.peers(), echo.peers()].concat().into_iter().map(|peer| peer.ip()).collect())
}

/// Behaviours 19, conformance 3: nothing of any kind crosses, whoever asks, and by whichever gateway.
#[test]
fn networks_are_apart() -> Result<()> {
    let mut bed = Outside::with("", &["c1"], &["g1"])?;
    bed.add_c3("--masquerade")?;
    bed.add_ghost("v-net-1", "g3")?;
    let (g1, g3, at_wan) = (bed.end("g1")?, bed.end("g3")?, bed.end("wan")?);
    for v6 in FAMILIES {
        for (from, to, target) in [(&g1, &g3, "c3"), (&g3, &g1, "c1")] {
            let other = bed.at(target);
            let gateway = bed.at(&other.network);
            for ip in [to.ip(v6), other.ips()[usize::from(v6)], gateway.ips()[usize::from(v6)]] {
                let (source, dest) = (from.endpoint(v6, 4000), SocketAddr::new(ip, 80));
                let ways = [
                    Packet::udp(source, dest, b"x"),
                    Packet::tcp(source, dest, SYN, 1, 0, b""),
                    Packet::tcp(source, dest, ACK, 1, 1, b"x"),
                    Packet::sctp(source, dest, b""),
                    Packet::ping(source.ip(), ip, 7, b""),
                    Packet::new(source.ip(), ip, super::packet::GRE, b"\0\0\x08\0"),
                ];
                bed.drops_all(from, &ways, &[to, &at_wan], "other-network")?;
            }
        }
        for (from, to) in [("c1", "c3"), ("c3", "c1")] {
            let ip = bed.at(to).ips()[usize::from(v6)];
            assert!(!bed.at(from).reaches(ip)?, "{from} reaches {to} at {ip}");
        }
    }
    assert_eq!(bed.flows()?.len(), 0);
    // A fragment is no way either.
    let pieces = Packet::udp(g1.endpoint(false, 4000), g3.endpoint(false, 80), &[0; 1200]).fragments(&[504]);
    for piece in [&pieces[1], &pieces[0]] {
        g1.send(piece)?;
    }
    g3.assert_silent("a fragment for another network")
}

/// Behaviours 19: two networks that are both opened reach each other, with their own addresses.
#[test]
fn opened_networks_reach_each_other() -> Result<()> {
    let mut bed = Outside::with("--isolate false", &["c1"], &[])?;
    bed.add_c3("--masquerade --isolate false")?;
    bed.add_network("v-net-2", "--subnet 10.8.0.0/24 fd08::/64 --masquerade")?;
    bed.attach("v-net-2", "c4")?;
    for family in [0, 1] {
        for (from, to) in [("c1", "c3"), ("c3", "c1")] {
            let (own, ip) = (bed.at(from).ips()[family], bed.at(to).ips()[family]);
            assert!(bed.at(from).reaches(ip)?, "{from} does not reach {to}");
            assert!(talk(&bed, from, to, ip)?.iter().all(|source| *source == own), "{from} to {to}");
        }
        // One side's consent is not enough.
        for (from, to) in [("c1", "c4"), ("c4", "c1"), ("c3", "c4"), ("c4", "c3")] {
            assert!(!bed.at(from).reaches(bed.at(to).ips()[family])?, "{from} reaches {to}");
        }
    }
    Ok(())
}

/// Behaviours 20, CVE-2024-29018: an internal network has no way out and none in; the gateway answers.
#[test]
fn an_internal_network_has_no_way_out() -> Result<()> {
    let mut bed = Outside::plain("--internal", &["c1", "c2"], &["g1"])?;
    bed.add_c3("--masquerade")?;
    let (g1, at_wan, gateway) = (bed.end("g1")?, bed.end("wan")?, bed.at("host"));
    for (v6, own) in FAMILIES.into_iter().zip(gateway.ips()) {
        let c1 = bed.at("c1");
        assert!(c1.run(|| nsnet::lab::ping::ping(wan(v6), 1, 56, SECOND)).is_err(), "c1 has a default route");
        assert!(c1.reaches(own)? && c1.reaches(bed.at("c2").ips()[usize::from(v6)])?);
        talk(&bed, "c1", "host", own)?;
        assert!(gateway.reaches(c1.ips()[usize::from(v6)])?, "the host does not reach c1");
        // Though it makes itself a route.
        for to in [SocketAddr::new(wan(v6), 53), SocketAddr::new(far(v6), 53), remote(v6, 1, 53)] {
            let from = g1.endpoint(v6, 4000);
            let ways = [
                Packet::udp(from, to, b"?"),
                Packet::tcp(from, to, SYN, 1, 0, b""),
                Packet::ping(from.ip(), to.ip(), 7, b""),
            ];
            bed.drops_all(&g1, &ways, &[&at_wan], "internal-network")?;
        }
        bed.drops_one(&at_wan, &Packet::udp(remote(v6, 1, 53), g1.endpoint(v6, 4000), b""), &[&g1], "direct-access")?;
    }
    assert_eq!(bed.flows()?.len(), 0);
    super::world::refused(&bed.lab, "network add v-net-9 --subnet 10.7.0.0/24 --internal --masquerade")?;
    Ok(())
}

/// The host's stack knows ways that the programs' question does not meet, here by TOS: what has no route for them must not
/// get there, as it would leave as it is.
#[test]
fn a_rule_that_the_programs_do_not_see_is_no_way_out() -> Result<()> {
    const TOS: u8 = 0x10;
    let mut bed = Outside::with("", &[], &["g1"])?;
    bed.add_network("v-net-1", "--subnet 10.9.0.0/24 --internal")?;
    bed.add_ghost("v-net-1", "g3")?;
    bed.ip("host", "route del default")?;
    bed.ip("host", &format!("route add default via {} table 77", wan(false)))?;
    bed.ip("host", &format!("rule add tos {TOS:#x} table 77"))?;
    let at_wan = bed.end("wan")?;
    for (name, reason) in [("g1", "no-route"), ("g3", "internal-network")] {
        let end = bed.end(name)?;
        let packet = Packet::udp(end.endpoint(false, 4000), remote(false, 1, 53), b"?");
        let mut frame = packet.frame(end.mac, end.gateway);
        // Ethernet header, version and length, TOS; the header's checksum is ten bytes into it.
        frame[15] = TOS;
        let checksum = u16::from_be_bytes([frame[24], frame[25]]);
        let (sum, carry) = (!checksum).overflowing_add(u16::from(TOS));
        frame[24..26].copy_from_slice(&(!(sum + u16::from(carry))).to_be_bytes());
        bed.drops_frames(&end, &[frame], &[&at_wan], reason)?;
    }
    bed.check_no_leak()
}

/// Behaviours 2, 21: the host is reached at its addresses, and reaches everybody.
#[test]
fn the_host_is_reached_and_reaches() -> Result<()> {
    let mut bed = Outside::new()?;
    bed.add_c3("--masquerade")?;
    for (v6, own) in FAMILIES.into_iter().zip(bed.at("host").ips()) {
        for client in ["c1", "c2"] {
            talk(&bed, client, "host", own)?;
            talk(&bed, client, "host", host(v6))?;
            talk(&bed, "host", client, bed.at(client).ips()[usize::from(v6)])?;
        }
        talk(&bed, "c3", "host", host(v6))?;
        talk(&bed, "host", "c3", bed.at("c3").ips()[usize::from(v6)])?;
    }
    Ok(())
}

/// RFC 4787 REQ-7: a subnet inside cannot be one outside.
#[test]
fn a_subnet_of_the_uplink_is_refused() -> Result<()> {
    let bed = Outside::new()?;
    for subnet in ["192.168.1.0/24", "192.168.0.0/16", "192.168.1.128/25", "fd01::/64", "fd01::/32"] {
        super::world::refused(&bed.lab, &format!("network add v-net-9 --subnet {subnet} --masquerade"))?;
    }
    Ok(())
}

/// A5: metadata services and other link-local addresses are not reached by way of the host.
#[test]
fn link_local_services_are_not_reached() -> Result<()> {
    let bed = Outside::with("", &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    bed.ip("host", "route add 169.254.0.0/16 dev uplink")?;
    for text in ["169.254.169.254:80", "[fe80::a9fe:a9fe]:80"] {
        let to: SocketAddr = text.parse()?;
        let from = g1.endpoint(to.is_ipv6(), 4000);
        g1.send(&Packet::tcp(from, to, SYN, 1, 0, b""))?;
        g1.send(&Packet::udp(from, to, b""))?;
        at_wan.assert_silent(text)?;
    }
    Ok(())
}
