//! The way in: published ports packet by packet, and what nobody outside may reach.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nsnet::kernel::netlink::Netlink;
use nsnet::lab::{TcpServer, UdpEcho, tcp, udp};

use super::outside_bed::{End, FAMILIES, Outside, host, remote, wan};
use super::packet::{ACK, Packet, RST, SCTP, SYN, TCP};
use super::world::refused;

const SECOND: Duration = Duration::from_secs(1);

/// What an outside client says to port `port` of the host's, by UDP and TCP.
fn knocks(client: SocketAddr, port: u16) -> [Packet; 2] {
    let to = SocketAddr::new(host(client.is_ipv6()), port);
    [Packet::udp(client, to, b"knock"), Packet::tcp(client, to, SYN, 100, 0, b"")]
}

fn publish(bed: &Outside, ns: &str, ports: &str) -> Result<()> {
    for protocol in ["udp", "tcp"] {
        bed.lab.nsnet(&format!("publish add @{ns} {ports}/{protocol}"))?;
    }
    Ok(())
}

fn unpublish(bed: &Outside, ns: &str, ports: &str) -> Result<()> {
    for protocol in ["udp", "tcp"] {
        bed.lab.nsnet(&format!("publish del @{ns} {ports}/{protocol}"))?;
    }
    Ok(())
}

fn one_ghost() -> Result<(Outside, End, End)> {
    let bed = Outside::with("", &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    Ok((bed, g1, at_wan))
}

/// Behaviours 1: the server sees the client as it is; the answer comes from where the client asked.
#[test]
fn the_clients_address_is_kept() -> Result<()> {
    let (bed, g1, at_wan) = one_ghost()?;
    publish(&bed, "g1", "8080:80")?;
    for v6 in FAMILIES {
        let client = remote(v6, 9, 50000);
        for knock in knocks(client, 8080) {
            let got = at_wan.carry_as(&knock, &g1, client, g1.endpoint(v6, 80))?;
            assert_eq!(got.hops, 63);
            let mut answer = got.turned();
            if answer.protocol == TCP {
                answer = Packet::tcp(answer.from(), answer.to(), SYN | ACK, 7, 101, b"");
            }
            g1.carry_as(&answer, &at_wan, SocketAddr::new(host(v6), 8080), client)?;
        }
        // TCP goes on.
        let to = SocketAddr::new(host(v6), 8080);
        at_wan.carry(&Packet::tcp(client, to, ACK, 101, 8, b"hello"), &g1)?;
        g1.carry(&Packet::tcp(g1.endpoint(v6, 80), client, ACK, 8, 106, b"hello"), &at_wan)?;
    }
    // SCTP has a checksum over its ports that NAT leaves alone (RFC 9260 section 6.8): the port stays what it is.
    bed.lab.nsnet("publish add @g1 36412:36412/sctp")?;
    for v6 in FAMILIES {
        let (client, to) = (remote(v6, 9, 50000), SocketAddr::new(host(v6), 36412));
        let got = at_wan.carry_as(&Packet::sctp(client, to, b"chunk"), &g1, client, g1.endpoint(v6, 36412))?;
        g1.carry_as(&got.turned(), &at_wan, to, client)?;
    }
    let flows = bed.flows()?;
    assert!(flows.iter().any(|flow| flow.protocol == "tcp" && flow.state == "established"), "{flows:?}");
    assert!(flows.iter().all(|flow| flow.ns == bed.lab.name("g1")), "{flows:?}");
    Ok(())
}

/// A range is as many ports, and not one more.
#[test]
fn ranges_lead_to_ranges() -> Result<()> {
    let (bed, g1, at_wan) = one_ghost()?;
    publish(&bed, "g1", "9001-9006:81-86")?;
    for v6 in FAMILIES {
        for port in 9001..=9006 {
            let client = remote(v6, 9, 40000 + port);
            for knock in knocks(client, port) {
                at_wan.carry_as(&knock, &g1, client, g1.endpoint(v6, port - 9001 + 81))?;
            }
        }
        for port in [9000, 9007] {
            for knock in knocks(remote(v6, 9, 40000 + port), port) {
                at_wan.send(&knock)?;
            }
        }
        g1.assert_silent("a port beside the range")?;
    }
    Ok(())
}

/// A4, moby 41872, 45610, CVE-2020-8558: neither forged sources nor loopback destinations get in by the wire.
#[test]
fn a_loopback_publish_cannot_be_reached_by_forgery() -> Result<()> {
    let (bed, g1, at_wan) = one_ghost()?;
    publish(&bed, "g1", "127.0.0.1:8080:80")?;
    publish(&bed, "g1", "[::1]:8080:80")?;
    for v6 in FAMILIES {
        let loopback = SocketAddr::new(if v6 { "::1".parse()? } else { "127.0.0.1".parse()? }, 8080);
        let mut frames = Vec::new();
        let sources = [
            remote(v6, 9, 50000),
            SocketAddr::new(loopback.ip(), 50000),
            SocketAddr::new(host(v6), 50000),
            SocketAddr::new(wan(v6), 50000),
        ];
        for source in sources {
            for to in [loopback, SocketAddr::new(host(v6), 8080), g1.endpoint(v6, 80), g1.endpoint(v6, 8080)] {
                frames.push(Packet::udp(source, to, b"knock"));
                frames.push(Packet::tcp(source, to, SYN, 1, 0, b""));
                frames.push(Packet::tcp(source, to, ACK, 1, 1, b"data"));
            }
        }
        for packet in &frames {
            at_wan.send(packet)?;
        }
        g1.assert_silent("a forged packet")?;
        assert_eq!(bed.flows()?.len(), 0, "{:?}", bed.flows()?);
        // From inside by way of the gateway.
        bed.drops_one(&g1, &Packet::udp(g1.endpoint(v6, 4000), loopback, b""), &[&at_wan], "loopback-destination")?;
    }
    Ok(())
}

/// Behaviours 20, A4, Docker 28: a namespace's own address is not reached from outside, published ports included.
#[test]
fn namespaces_are_not_reached_directly() -> Result<()> {
    let (bed, g1, at_wan) = one_ghost()?;
    publish(&bed, "g1", "8080:80")?;
    for v6 in FAMILIES {
        let client = remote(v6, 9, 50000);
        for port in [80, 8080, 22, 50000] {
            let to = g1.endpoint(v6, port);
            let ways = [
                Packet::udp(client, to, b"x"),
                Packet::tcp(client, to, SYN, 1, 0, b""),
                Packet::tcp(client, to, ACK, 1, 1, b"x"),
                Packet::new(client.ip(), to.ip(), SCTP, &Packet::sctp(client, to, b"").body),
            ];
            bed.drops_all(&at_wan, &ways, &[&g1, &at_wan], "direct-access")?;
        }
        bed.drops_one(&at_wan, &Packet::ping(client.ip(), g1.ip(v6), 7, b""), &[&g1], "direct-access")?;
        // Nobody's address of the subnet, and the gateway's by the wire.
        let subnet = if v6 { "fd15::77" } else { "192.168.15.77" };
        let to = SocketAddr::new(subnet.parse()?, 80);
        bed.drops_one(&at_wan, &Packet::udp(client, to, b""), &[&g1], "direct-access")?;
    }
    Ok(())
}

/// Behaviours 8: nobody listens in the namespace, and the client is told at once, about the packet that it sent.
#[test]
fn a_server_that_is_not_there_is_told() -> Result<()> {
    let bed = Outside::with("", &["c1"], &[])?;
    publish(&bed, "c1", "8080:80")?;
    let at_wan = bed.end("wan")?;
    for v6 in FAMILIES {
        let to = SocketAddr::new(host(v6), 8080);
        for client in ["wan", "far"] {
            let start = Instant::now();
            let refused = bed.at(client).run(|| tcp::fetch(to)).err().context("somebody answers")?;
            let refused = refused.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
            assert_eq!(refused.map(std::io::Error::kind), Some(ErrorKind::ConnectionRefused));
            assert_eq!(bed.at(client).run(|| udp::exchange(to, 10, 1, SECOND))?.refused, 1);
            assert!(start.elapsed() < 2 * SECOND, "only after {:?}", start.elapsed());
        }
        at_wan.drain()?;
        let [udp, syn] = knocks(remote(v6, 9, 50000), 8080);
        at_wan.send(&udp)?;
        let error = at_wan.expect("port unreachable")?;
        let kind = if v6 { (1, 4) } else { (3, 3) };
        assert_eq!((error.source, error.destination, error.kind()), (host(v6), udp.source, kind));
        let quoted = error.quoted()?;
        assert_eq!((quoted.from(), quoted.to(), quoted.protocol), (udp.from(), udp.to(), udp.protocol));
        quoted.check().context("the quoted datagram")?;
        at_wan.send(&syn)?;
        let reset = at_wan.expect("a reset")?;
        assert_eq!((reset.from(), reset.to(), reset.flags()), (syn.to(), syn.from(), RST | ACK));
    }
    Ok(())
}

/// Behaviours 9: what is not published any more is refused at once, also to those that were there.
#[test]
fn unpublished_is_refused_at_once() -> Result<()> {
    let bed = Outside::with("", &["c1"], &[])?;
    publish(&bed, "c1", "8080:80")?;
    for v6 in FAMILIES {
        let to = SocketAddr::new(host(v6), 8080);
        let any = SocketAddr::new(if v6 { "::".parse()? } else { "0.0.0.0".parse()? }, 80);
        let server = bed.at("c1").run(|| TcpServer::banner(any, "here"))?;
        let echo = bed.at("c1").run(|| UdpEcho::start(any))?;
        let socket = bed.at("wan").run(|| {
            let socket = UdpSocket::bind(SocketAddr::new(wan(v6), 0))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(SECOND))?;
            Ok(socket)
        })?;
        let mut buffer = [0; 16];
        let mut ask = || socket.send(b"are you there?").and_then(|_| socket.recv(&mut buffer));
        assert_eq!(ask()?, 14);
        assert_eq!(bed.at("wan").run(|| tcp::fetch(to))?, "here");
        unpublish(&bed, "c1", "8080:80")?;
        let start = Instant::now();
        assert!(bed.at("wan").run(|| tcp::fetch(to)).is_err() && start.elapsed() < 2 * SECOND, "TCP");
        assert!(ask().is_err(), "the flow that was there goes on");
        assert_eq!((server.peers().len(), echo.peers().len()), (1, 1));
        publish(&bed, "c1", "8080:80")?;
        assert_eq!(bed.at("wan").run(|| tcp::fetch(to))?, "here");
        // A refusal of the time between may still be told once.
        assert!(ask().is_ok() || ask().is_ok());
    }
    Ok(())
}

/// Behaviours 9, F13, moby 8795: the very next datagram of an unchanged sender goes to the new namespace.
#[test]
fn republishing_moves_the_next_datagram() -> Result<()> {
    let bed = Outside::with("", &[], &["g1", "g2"])?;
    let (g1, g2, at_wan) = (bed.end("g1")?, bed.end("g2")?, bed.end("wan")?);
    for v6 in FAMILIES {
        let client = remote(v6, 9, 50000);
        let [knock, ..] = knocks(client, 8080);
        for _ in 0..3 {
            for (owner, other, end, bystander) in [("g1", "g2", &g1, &g2), ("g2", "g1", &g2, &g1)] {
                bed.lab.nsnet(&format!("publish del @{other} 8080:80/udp"))?;
                bed.lab.nsnet(&format!("publish add @{owner} 8080:80/udp"))?;
                bystander.drain()?;
                let got = at_wan.carry_as(&knock, end, client, end.endpoint(v6, 80))?;
                end.carry_as(&got.turned(), &at_wan, SocketAddr::new(host(v6), 8080), client)?;
                bystander.assert_silent("a datagram for the other one")?;
            }
        }
        bed.lab.nsnet("publish del @g2 8080:80/udp")?;
    }
    // The namespace dies: refused, and free for the next.
    bed.lab.nsnet("publish add @g1 8080:80/udp")?;
    bed.lab.nsnet("ns del @g1 --force")?;
    let knock = knocks(remote(false, 9, 50000), 8080)[0].clone();
    at_wan.drain()?;
    at_wan.send(&knock)?;
    assert_eq!(at_wan.expect("port unreachable")?.kind(), (3, 3));
    bed.lab.nsnet("publish add @g2 8080:80/udp")?;
    at_wan.carry(&knock, &g2)?;
    Ok(())
}

/// Behaviours 10: the answer leaves from the address that was asked.
#[test]
fn a_multihomed_host_answers_from_where_it_was_asked() -> Result<()> {
    let bed = Outside::with("", &["c1"], &[])?;
    bed.allow(&["192.168.1.2/32", "192.168.1.200/32", "fd01::2/128", "203.0.113.77/32"])?;
    let netlink = Netlink::inside(&bed.lab.ns("host")?)?;
    let (uplink, lo) = (netlink.existing_link("uplink")?.index, netlink.existing_link("lo")?.index);
    for (index, address) in
        [(uplink, "192.168.1.2/24"), (uplink, "192.168.1.200/32"), (uplink, "fd01::2/64"), (lo, "203.0.113.77/32")]
    {
        netlink.add_address(index, address.parse()?)?;
    }
    bed.ip("wan", "route add 203.0.113.77/32 via 192.168.1.1")?;
    publish(&bed, "c1", "8080:80")?;
    let echoes =
        bed.at("c1").run(|| Ok([UdpEcho::start("0.0.0.0:80".parse()?)?, UdpEcho::start("[::]:80".parse()?)?]))?;
    for ip in ["192.168.1.1", "192.168.1.2", "192.168.1.200", "203.0.113.77", "fd01::1", "fd01::2"] {
        let outcome = bed.at("wan").run(|| udp::exchange(SocketAddr::new(ip.parse()?, 8080), 20, 2, SECOND))?;
        assert_eq!(outcome.echoed, 2, "{ip}: {outcome}");
    }
    assert!(echoes.iter().flat_map(UdpEcho::peers).all(|peer| peer.ip() == wan(peer.is_ipv6())));
    Ok(())
}

/// Behaviours 7, 11: neither takes a port from the other.
#[test]
fn a_port_has_one_owner() -> Result<()> {
    let bed = Outside::with("", &["c1", "c2"], &[])?;
    let taken = bed.at("host").run(|| Ok(TcpListener::bind("0.0.0.0:8080")?))?;
    let complaint = refused(&bed.lab, "publish add @c1 8080:80/tcp")?;
    assert!(complaint.contains("8080") && complaint.contains("tcp"), "{complaint}");
    drop(taken);
    bed.lab.nsnet("publish add @c1 8080:80/tcp")?;
    // Again is nothing new; somebody else is refused, by whatever address.
    bed.lab.nsnet("publish add @c1 8080:80/tcp")?;
    for spec in
        ["8080:80/tcp", "8080:81/tcp", "192.168.1.1:8080:80/tcp", "127.0.0.1:8080:80/tcp", "8000-8100:8000-8100/tcp"]
    {
        refused(&bed.lab, &format!("publish add @c2 {spec}")).with_context(|| spec.to_owned())?;
    }
    let error = bed.at("host").run(|| Ok(TcpListener::bind("0.0.0.0:8080").err().map(|error| error.kind())))?;
    assert_eq!(error, Some(ErrorKind::AddrInUse), "the host binds a published port");
    // The other protocol is free, for both.
    bed.at("host").run(|| Ok(UdpSocket::bind("0.0.0.0:8080")?))?;
    bed.lab.nsnet("publish add @c2 8080:80/udp")?;
    bed.lab.nsnet("publish del @c1 8080:80/tcp")?;
    bed.at("host").run(|| Ok(TcpListener::bind("0.0.0.0:8080")?))?;
    Ok(())
}

/// CVE-2020-8554: what the host does not hold is not published.
#[test]
fn foreign_addresses_are_not_published() -> Result<()> {
    let bed = Outside::with("", &["c1"], &[])?;
    for ip in ["192.168.1.3", "8.8.8.8", "192.168.15.1", "[fd01::3]", "224.0.0.1", "255.255.255.255"] {
        let complaint = refused(&bed.lab, &format!("publish add @c1 {ip}:8080:80/tcp"))?;
        assert!(complaint.contains(ip.trim_matches(['[', ']'])), "{complaint}");
    }
    Ok(())
}

/// A published port's own outgoing traffic keeps apart from its visitors': the port is nobody's source.
#[test]
fn a_published_port_is_not_given_to_a_flow() -> Result<()> {
    let bed = Outside::with("", &[], &["g1", "g2"])?;
    let (g1, g2, at_wan) = (bed.end("g1")?, bed.end("g2")?, bed.end("wan")?);
    publish(&bed, "g1", "20000:80")?;
    for v6 in FAMILIES {
        let server = remote(v6, 1, 443);
        let got = g2.carry(&Packet::udp(g2.endpoint(v6, 20000), server, b"x"), &at_wan)?;
        assert_ne!(got.from().port(), 20000, "UDP");
        let got = g2.carry(&Packet::tcp(g2.endpoint(v6, 20000), server, SYN, 1, 0, b""), &at_wan)?;
        assert_ne!(got.from().port(), 20000, "TCP");
        // The server is a visitor like others.
        let [knock, ..] = knocks(server, 20000);
        at_wan.carry_as(&knock, &g1, server, g1.endpoint(v6, 80))?;
        g2.assert_silent("a visitor of g1's")?;
    }
    Ok(())
}

/// P2: a flood of half-open connections costs the established one nothing.
#[test]
fn a_syn_flood_does_not_reach_the_established() -> Result<()> {
    let bed = Outside::with("--flows-per-ns 50", &["c1"], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    bed.lab.nsnet("publish add @g1 8080:80/tcp")?;
    bed.lab.nsnet("publish add @c1 8081:80/tcp")?;
    let to = SocketAddr::new(host(false), 8080);
    let client = remote(false, 9, 50000);
    at_wan.carry(&Packet::tcp(client, to, SYN, 100, 0, b""), &g1)?;
    g1.carry(&Packet::tcp(g1.endpoint(false, 80), client, SYN | ACK, 7, 101, b""), &at_wan)?;
    at_wan.carry(&Packet::tcp(client, to, ACK, 101, 8, b""), &g1)?;
    for n in 0..20_000_u16 {
        let source = SocketAddr::new(remote(false, (n % 200) as u8 + 10, 0).ip(), 1024 + n);
        at_wan.send(&Packet::tcp(source, to, SYN, n.into(), 0, b""))?;
    }
    g1.socket.count(Duration::from_millis(300), |_| true)?;
    at_wan.carry(&Packet::tcp(client, to, ACK, 101, 8, b"still here"), &g1)?;
    g1.carry(&Packet::tcp(g1.endpoint(false, 80), client, ACK, 8, 111, b"so am I"), &at_wan)?;
    let server = bed.at("c1").run(|| TcpServer::start("0.0.0.0:80".parse()?))?;
    bed.at("wan").run(|| tcp::transfer(SocketAddr::new(host(false), 8081), 100_000))?;
    assert_eq!(server.peers().len(), 1);
    Ok(())
}

/// Scenario 6: port 80 of the host leads to port 80 in blue, and blue itself is not reached.
#[test]
fn port_80_of_the_host() -> Result<()> {
    let bed = Outside::with("", &["c1"], &[])?;
    let web = bed.at("c1").run(|| TcpServer::banner("0.0.0.0:80".parse()?, "this is c1"))?;
    let (port_80, direct) = (SocketAddr::new(host(false), 80), SocketAddr::new(bed.at("c1").v4.into(), 80));
    assert!(bed.at("wan").run(|| tcp::fetch(port_80)).is_err(), "reached before it is published");
    bed.lab.nsnet("publish add @c1 80:80")?;
    assert_eq!(bed.at("wan").run(|| tcp::fetch(port_80))?, "this is c1");
    bed.ip("wan", "route add 192.168.15.0/24 via 192.168.1.1")?;
    let knock = || Ok(std::net::TcpStream::connect_timeout(&direct, Duration::from_millis(200)).is_ok());
    assert!(!bed.at("wan").run(knock)?, "{direct} is reached from outside");
    assert!(bed.dropped("uplink", "direct-access")? > 0);
    assert!(web.peers().iter().all(|peer| peer.ip() == wan(false)));
    Ok(())
}

/// A7: scans with whatever flags see what is published and what the host has, and nothing of the namespace.
#[test]
fn a_scan_sees_only_published_ports() -> Result<()> {
    let (bed, g1, at_wan) = one_ghost()?;
    publish(&bed, "g1", "80:80")?;
    for v6 in FAMILIES {
        for port in (70..90).chain(20000..20010) {
            let to = SocketAddr::new(host(v6), port);
            for (number, flags) in [0, SYN, ACK, 1, 0x29, SYN | 1, RST, SYN | ACK].into_iter().enumerate() {
                // Each from another port: what follows a SYN from the same one belongs to its flow.
                at_wan.send(&Packet::tcp(remote(v6, 9, 50000 + number as u16), to, flags, 1, 1, b""))?;
            }
            let from = remote(v6, 9, 60000);
            // As nmap -f and --badsum.
            let syn = Packet::tcp(from, to, SYN, 1, 1, b"12345678");
            at_wan.send(&syn.fragments(&[8, 16])[0])?;
            at_wan.send(&syn.damaged(|body| body[16] ^= 0x55))?;
            at_wan.send(&Packet::udp(from, to, b"scan"))?;
        }
        while let Some((packet, _)) = g1.receive_unchecked(Duration::from_millis(30))? {
            assert_eq!(packet.to(), g1.endpoint(v6, 80), "{packet:?}");
            assert!(packet.protocol != TCP || packet.flags() & SYN != 0, "{packet:?} opens no connection");
        }
    }
    Ok(())
}
