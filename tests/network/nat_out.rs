//! The way out: scenarios 4 and 5, and real traffic in every form through source NAT.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::route::Route;
use nsnet::lab::ping::{Echo, ping, ping_with};
use nsnet::lab::{ChecksumErrors, Refusal, TcpServer, UdpEcho, set_tx_offload, tcp, udp};

use super::outside_bed::{FAMILIES, Outside, far, host, remote, wan, wan_server};
use super::packet::Packet;
use super::traffic::{Amount, exchange_at};

const SECOND: Duration = Duration::from_secs(1);

/// Everybody whose kernel counts wrong checksums.
const EVERYBODY: [&str; 4] = ["c1", "host", "wan", "far"];

/// Does `work`; fails when anybody saw a wrong checksum meanwhile.
fn with_right_checksums(bed: &Outside, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let errors = || EVERYBODY.iter().map(|name| bed.at(name).run(ChecksumErrors::read)).collect::<Result<Vec<_>>>();
    let before = errors()?;
    work()?;
    for ((name, after), before) in EVERYBODY.iter().zip(errors()?).zip(before) {
        let new = after - before;
        ensure!(new.total() == 0, "{name}: {new}");
    }
    Ok(())
}

fn pings(bed: &Outside, from: &str, to: IpAddr) -> Result<u32> {
    Ok(bed.at(from).run(|| ping(to, 2, 56, SECOND))?.received)
}

/// The addresses that UDP and TCP servers on `name` see when `client` talks to them at `ip`.
fn seen_by_servers(bed: &Outside, client: &str, name: &str, ip: IpAddr) -> Result<BTreeSet<IpAddr>> {
    let (client, server) = (bed.at(client), bed.at(name));
    let listener = server.run(|| TcpServer::start(SocketAddr::new(ip, 0)))?;
    client.run(|| tcp::transfer(listener.addr(), 10_000))?;
    let echo = server.run(|| UdpEcho::start(SocketAddr::new(ip, 0)))?;
    let outcome = client.run(|| udp::exchange(echo.addr(), 100, 2, SECOND))?;
    ensure!(outcome.echoed == 2, "UDP to {ip}: {outcome}");
    Ok([listener.peers(), echo.peers()].concat().into_iter().map(|peer| peer.ip()).collect())
}

/// Scenario 4, without NAT.
#[test]
fn without_nat_the_request_arrives_and_the_answer_does_not() -> Result<()> {
    let bed = Outside::plain("", &["c1"], &[])?;
    bed.allow(&["192.168.15.0/24", "fd15::/64"])?;
    let (c1, gateway, at_wan) = (bed.at("c1"), bed.at("host"), bed.end("wan")?);
    assert!(c1.run(|| ping(wan(false), 1, 56, SECOND)).is_err(), "c1 has a way out that nobody gave it");
    bed.lab.nsnet(&format!("route add @c1 192.168.1.0/24 via {}", gateway.v4))?;
    bed.lab.nsnet(&format!("route add @c1 fd01::/64 via {}", gateway.v6))?;
    for (v6, ip) in FAMILIES.into_iter().zip(c1.ips()) {
        assert_eq!(pings(&bed, "c1", wan(v6))?, 0, "{ip} was answered");
        let request = at_wan.expect_that("the request", |packet| packet.destination == wan(v6))?;
        assert_eq!((request.source, request.hops), (ip, 63));
    }
    // With a way back the answer comes, and still nobody outside can begin.
    let outside = Netlink::inside(&bed.at("wan").ns)?;
    for (v6, subnet) in FAMILIES.into_iter().zip(["192.168.15.0/24", "fd15::/64"]) {
        outside.add_route(&Route { dest: subnet.parse()?, via: Some(host(v6)), index: None })?;
    }
    for (v6, ip) in FAMILIES.into_iter().zip(c1.ips()) {
        assert_eq!(pings(&bed, "c1", wan(v6))?, 2, "{ip} was not answered");
        assert_eq!(seen_by_servers(&bed, "c1", "wan", wan(v6))?, [ip].into());
        let before = bed.dropped("uplink", "direct-access")?;
        assert_eq!(pings(&bed, "wan", ip)?, 0, "{ip} is reached from outside");
        assert!(bed.dropped("uplink", "direct-access")? >= before + 2, "{:?}", bed.drops()?);
    }
    Ok(())
}

/// Scenario 4, with NAT, and without it again. Behaviours 12, 13, 16.
#[test]
fn with_masquerade_the_outside_sees_only_the_host() -> Result<()> {
    let bed = Outside::plain("", &["c1"], &[])?;
    let (c1, gateway) = (bed.at("c1"), bed.at("host"));
    bed.lab.nsnet("masquerade on v-net-0")?;
    // It may have come with masquerading; then this is another one.
    bed.lab.nsnet(&format!("route add @c1 192.168.1.0/24 via {}", gateway.v4))?;
    bed.lab.nsnet(&format!("route add @c1 fd01::/64 via {}", gateway.v6))?;
    for v6 in FAMILIES {
        assert_eq!(pings(&bed, "c1", wan(v6))?, 2, "{}", wan(v6));
        assert_eq!(seen_by_servers(&bed, "c1", "wan", wan(v6))?, [host(v6)].into());
    }
    bed.check_no_leak()?;
    bed.lab.nsnet("masquerade on v-net-0")?;
    bed.lab.nsnet("masquerade off v-net-0")?;
    bed.allow(&["192.168.15.0/24", "fd15::/64"])?;
    let at_wan = bed.end("wan")?;
    for (v6, ip) in FAMILIES.into_iter().zip(c1.ips()) {
        assert_eq!(pings(&bed, "c1", wan(v6))?, 0);
        assert_eq!(at_wan.expect_that("the request", |packet| packet.destination == wan(v6))?.source, ip);
    }
    Ok(())
}

/// Behaviours 12: a flow that began while the network was not masqueraded does not go on with its private source.
#[test]
fn what_was_open_before_masquerading_does_not_leak() -> Result<()> {
    const ACK: u8 = 0x10;
    let bed = Outside::plain("", &[], &["g1"])?;
    bed.allow(&["192.168.15.0/24", "fd15::/64"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    let hello = |v6| Packet::udp(g1.endpoint(v6, 4000), remote(v6, 1, 9), b"hello");
    let segment = |v6, flags| Packet::tcp(g1.endpoint(v6, 4000), remote(v6, 1, 9), flags, 1, 0, b"");
    for v6 in FAMILIES {
        for packet in [hello(v6), segment(v6, super::packet::SYN)] {
            assert_eq!(g1.carry(&packet, &at_wan)?.source, g1.ip(v6));
        }
    }
    // Its kernel has no address that the default routes of masquerading could go by.
    bed.ip("g1", "route add default dev lo")?;
    bed.ip("g1", "-6 route add default dev lo")?;
    bed.lab.nsnet("masquerade on v-net-0")?;
    for v6 in FAMILIES {
        assert_eq!(g1.carry(&hello(v6), &at_wan)?.source, host(v6));
        bed.drops_one(&g1, &segment(v6, ACK), &[&at_wan], "no-connection")?;
    }
    Ok(())
}

/// Scenario 5: a default route comes with masquerading, and leads everywhere the host gets.
#[test]
fn the_internet_is_reached_by_a_default_route() -> Result<()> {
    let mut bed = Outside::new()?;
    bed.add_c3("--masquerade")?;
    for client in ["c1", "c2", "c3"] {
        for v6 in FAMILIES {
            assert_eq!(pings(&bed, client, far(v6))?, 2, "{client} to {}", far(v6));
            assert_eq!(seen_by_servers(&bed, client, "far", far(v6))?, [host(v6)].into());
            for number in 0..3 {
                let ip = wan_server(v6, number);
                assert_eq!(seen_by_servers(&bed, client, "wan", ip)?, [host(v6)].into(), "{client} to {ip}");
            }
        }
    }
    assert_eq!(bed.drops()?, std::collections::BTreeMap::new());
    bed.check_no_drift()
}

/// Conformance 2.5, checksums; M7. Behaviours 15.
#[test]
fn every_protocol_with_and_without_offload() -> Result<()> {
    let bed = Outside::with("", &["c1"], &[])?;
    let off = |names: &'static [&'static str]| -> Result<()> {
        names.iter().try_for_each(|name| {
            let station = bed.at(name);
            let interface = if *name == "host" { "uplink" } else { &station.ifname };
            station.run(|| set_tx_offload(interface, false))
        })
    };
    for without in [&[][..], &["c1"], &["wan"], &["host", "far"]] {
        off(without)?;
        with_right_checksums(&bed, || {
            for v6 in FAMILIES {
                exchange_at(bed.at("c1"), bed.at("wan"), wan(v6), Amount::Little)?;
                exchange_at(bed.at("c1"), bed.at("far"), far(v6), Amount::Little)?;
            }
            Ok(())
        })
        .with_context(|| format!("without offload at {without:?}"))?;
    }
    assert_eq!(bed.drops()?, std::collections::BTreeMap::new());
    Ok(())
}

#[test]
fn much_traffic() -> Result<()> {
    let bed = Outside::with("", &["c1"], &[])?;
    with_right_checksums(&bed, || {
        FAMILIES.into_iter().try_for_each(|v6| exchange_at(bed.at("c1"), bed.at("wan"), wan(v6), Amount::Much))
    })?;
    assert_eq!(bed.drops()?, std::collections::BTreeMap::new());
    Ok(())
}

/// Behaviours 15; RFC 5508 REQ-9, REQ-10; RFC 1812 section 5.3.1.
#[test]
fn traceroute_shows_the_gateway_first() -> Result<()> {
    let bed = Outside::with("", &["c1"], &["g1"])?;
    let (c1, gateway) = (bed.at("c1"), bed.at("host"));
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    for (v6, own) in FAMILIES.into_iter().zip(gateway.ips()) {
        let to = SocketAddr::new(far(v6), 0);
        let hop = |limit: u8| {
            c1.run(|| ping_with(&Echo { to, count: 1, payload_len: 56, timeout: SECOND, hop_limit: Some(limit) }))
        };
        let kind = if v6 { 3 } else { 11 };
        assert_eq!(hop(1)?.refused, [Refusal { from: own, kind, code: 0, mtu: None }]);
        assert_eq!(hop(2)?.refused, [Refusal { from: wan(v6), kind, code: 0, mtu: None }]);
        assert_eq!(hop(3)?.received, 1);
        // As traceroute does it with UDP and TCP.
        let (from, to) = (g1.endpoint(v6, 33000), remote(v6, 1, 33434));
        for packet in [Packet::udp(from, to, b"trace"), Packet::tcp(from, to, super::packet::SYN, 1, 0, b"")] {
            let packet = packet.hops(1);
            at_wan.drain()?;
            g1.send(&packet)?;
            let error = g1.expect("the gateway's answer")?;
            assert_eq!((error.source, error.destination, error.kind()), (own, g1.ip(v6), (kind, 0)));
            let quoted = error.quoted()?;
            assert_eq!((quoted.from(), quoted.to()), (from, to));
            at_wan.assert_silent("a packet with one hop left")?;
            // The next router's answer comes back to who asked.
            assert_eq!(g1.carry(&packet.hops(2), &at_wan)?.hops, 1);
            let error = g1.expect("the router's answer")?;
            assert_eq!((error.source, error.destination, error.kind()), (wan(v6), g1.ip(v6), (kind, 0)));
            let quoted = error.quoted()?;
            assert_eq!((quoted.from(), quoted.to()), (from, to));
        }
    }
    assert_eq!(bed.dropped(&g1.port, "ttl-exceeded")?, 4);
    Ok(())
}

/// Behaviours 12: not between namespaces of one network, not to the host, not to groups.
#[test]
fn only_what_leaves_is_masqueraded() -> Result<()> {
    let bed = Outside::new()?;
    let c1 = bed.at("c1");
    for (v6, ip) in FAMILIES.into_iter().zip(c1.ips()) {
        assert_eq!(seen_by_servers(&bed, "c1", "c2", bed.at("c2").ips()[usize::from(v6)])?, [ip].into());
        assert_eq!(seen_by_servers(&bed, "c1", "host", bed.at("host").ips()[usize::from(v6)])?, [ip].into());
        assert_eq!(seen_by_servers(&bed, "c1", "host", host(v6))?, [ip].into(), "the host's other address");
    }
    let at_wan = bed.end("wan")?;
    c1.run(|| {
        let socket = UdpSocket::bind((c1.v4, 5353))?;
        for group in ["224.0.0.251:5353", "239.1.2.3:5353", "192.168.15.255:5353", "255.255.255.255:5353"] {
            socket.set_broadcast(true)?;
            socket.send_to(b"to a group", group)?;
        }
        let socket = UdpSocket::bind((c1.v6, 5353))?;
        socket
            .send_to(b"to a group", "[ff02::fb%0]:5353".parse::<SocketAddr>().unwrap_or("[ff05::fb]:5353".parse()?))?;
        Ok(())
    })?;
    let is_group = |frame: &nsnet::lab::Frame| {
        frame.bytes.get(30).is_some_and(|first| *first >= 224) || frame.bytes.get(38) == Some(&0xff)
    };
    let is_ours = |frame: &nsnet::lab::Frame| frame.bytes.windows(10).any(|window| window == b"to a group");
    let heard = at_wan.socket.collect(Duration::from_millis(50), |frame| is_group(frame) && is_ours(frame))?;
    assert_eq!(heard, [], "a group's datagram left the network");
    Ok(())
}

/// What the host says and hears itself is none of NAT's business; conformance A3 (port shadow) has a test of its own.
#[test]
fn the_host_goes_on_as_before() -> Result<()> {
    let bed = Outside::new()?;
    for v6 in FAMILIES {
        assert_eq!(pings(&bed, "host", wan(v6))?, 2);
        assert_eq!(pings(&bed, "wan", host(v6))?, 2);
        assert_eq!(seen_by_servers(&bed, "host", "far", far(v6))?, [host(v6)].into());
        assert_eq!(seen_by_servers(&bed, "wan", "host", host(v6))?, [wan(v6)].into());
        // A port that nobody has: at once, and by the host.
        let closed = SocketAddr::new(host(v6), 9);
        let start = std::time::Instant::now();
        assert!(bed.at("wan").run(|| tcp::fetch(closed)).is_err() && start.elapsed() < 2 * SECOND);
        assert_eq!(bed.at("wan").run(|| udp::exchange(closed, 10, 1, SECOND))?.refused, 1);
    }
    assert_eq!(bed.flows()?.len(), 0, "the host's own connections are tracked");
    assert_eq!(bed.drops()?, std::collections::BTreeMap::new());
    Ok(())
}

/// Conformance 2.5, martians and BCP 38 (RFC 2827): both ways, each by its name.
#[test]
fn impossible_addresses_are_dropped() -> Result<()> {
    let bed = Outside::with("", &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    let v4 = |text: &str| -> Result<SocketAddr> { Ok(SocketAddr::new(text.parse()?, 4000)) };
    let from_g1 =
        |text: &str| -> Result<Packet> { Ok(Packet::udp(v4(text)?, remote(text.contains(':'), 1, 7), b"spoof")) };
    for text in
        ["8.8.8.8", "192.168.15.77", "192.168.1.1", "240.0.0.1", "127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"]
    {
        bed.drops_one(&g1, &from_g1(text)?, &[&at_wan], "spoofed-ipv4")?;
    }
    for text in ["2001:db8::1", "fd15::77", "fd01::1", "::1", "ff02::1", "::"] {
        bed.drops_one(&g1, &from_g1(text)?, &[&at_wan], "spoofed-ipv6")?;
    }
    let to = |text: &str| -> Result<Packet> {
        Ok(Packet::udp(g1.endpoint(text.contains(':'), 4000), v4(text)?, b"martian"))
    };
    for text in ["0.0.0.0", "0.1.2.3", "240.0.0.1", "255.255.255.255", "::"] {
        bed.drops_one(&g1, &to(text)?, &[&at_wan], "martian")?;
    }
    for text in ["127.0.0.1", "127.1.2.3", "::1"] {
        bed.drops_one(&g1, &to(text)?, &[&at_wan], "loopback-destination")?;
    }
    // Link-local addresses are for the link (RFC 3927 section 2.7, RFC 4291 section 2.5.6); the gateway is on it.
    bed.drops_one(&g1, &to("169.254.1.1")?, &[&at_wan], "martian")?;
    g1.send(&to("fe80::1234")?)?;
    at_wan.assert_silent("a link-local destination")?;
    // From outside: to the subnet, as one of the subnet, and from addresses that nobody has.
    let inside = g1.endpoint(false, 4000);
    let inward = |from: &str| -> Result<Packet> { Ok(Packet::udp(v4(from)?, inside, b"from outside")) };
    for text in ["192.168.15.1", "192.168.15.254"] {
        bed.drops_one(&at_wan, &inward(text)?, &[&g1], "own-source")?;
    }
    for text in ["127.0.0.1", "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255"] {
        bed.drops_one(&at_wan, &inward(text)?, &[&g1], "martian direct-access").with_context(|| text.to_owned())?;
    }
    bed.drops_one(&at_wan, &inward("198.51.100.9")?, &[&g1], "direct-access")?;
    bed.drops_one(&at_wan, &Packet::udp(remote(true, 9, 7), g1.endpoint(true, 4000), b""), &[&g1], "direct-access")?;
    Ok(())
}

/// Conformance 2.5, IP options; RFC 7126 section 4: a source route is refused, others pass and are not mistaken for ports.
#[test]
fn options_do_not_hide_ports() -> Result<()> {
    let bed = Outside::with("", &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    let (from, to) = (g1.endpoint(false, 4000), remote(false, 1, 7));
    // Header lengths of 24 to 60 bytes, with an option that nobody knows (RFC 4727 section 3.2).
    for words in 1..=10 {
        let mut options = vec![30, 4 * words - 1];
        options.resize(usize::from(4 * words), 0);
        let packet = Packet::udp(from, to, b"with options").options(&options);
        let got = g1.carry_as(&packet, &at_wan, SocketAddr::new(host(false), 4000), to)?;
        assert_eq!(got.options, packet.options);
        let answer = got.turned();
        at_wan.carry_as(&answer, &g1, to, from)?;
    }
    for kind in [131, 137] {
        // Loose and strict source route by way of 192.168.1.10.
        let options = [kind, 7, 4, 192, 168, 1, 10, 0];
        bed.drops_one(&g1, &Packet::udp(from, to, b"").options(&options), &[&at_wan], "source-route")?;
    }
    // Lengths that lead nowhere.
    for options in [[7, 0, 0, 0], [7, 1, 0, 0], [7, 200, 4, 0]] {
        bed.drops_one(&g1, &Packet::udp(from, to, b"").options(&options), &[&at_wan], "source-route")?;
    }
    Ok(())
}

/// Conformance M3, M5, M6: what is malformed is dropped or stays visibly so, and never passes untranslated.
#[test]
fn malformed_transport_headers_do_not_leak() -> Result<()> {
    let bed = Outside::with("", &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    for v6 in FAMILIES {
        let (from, to) = (g1.endpoint(v6, 4000), remote(v6, 1, 7));
        let external = SocketAddr::new(host(v6), 4000);
        let udp = Packet::udp(from, to, b"payload");
        g1.carry_as(&udp, &at_wan, external, to)?;
        // Too short for its header, or contradicting it.
        let cut = |length: usize| udp.clone().damaged(|body| body.truncate(length));
        let says = |length: u16| udp.clone().damaged(|body| body[4..6].copy_from_slice(&length.to_be_bytes()));
        let short_tcp = Packet::new(g1.ip(v6), to.ip(), super::packet::TCP, &[0x0f, 0xa0, 0, 7, 0, 0, 0, 1]);
        let offset = |words: u8| Packet::tcp(from, to, 2, 1, 0, b"").damaged(|body| body[12] = words << 4);
        let bad = [cut(0), cut(4), cut(7), says(0), says(7), says(16), short_tcp, offset(4), offset(15)];
        for packet in bad {
            bed.drops_one(&g1, &packet, &[&at_wan], "bad-transport truncated")?;
        }
        // A wrong checksum is not made right on the way.
        let wrong = udp.clone().damaged(|body| body[10] ^= 0x55);
        at_wan.drain()?;
        g1.send(&wrong)?;
        if let Some((got, _)) = at_wan.receive_unchecked(Duration::from_millis(100))? {
            assert!(got.check().is_err(), "{got:?} was repaired");
            assert_eq!(got.from(), external);
        }
        // Flags that no connection begins with.
        for flags in [0, 0x29, 3, 6, 0x3f] {
            let packet = Packet::tcp(g1.endpoint(v6, 4100), to, flags, 1, 0, b"");
            let before = bed.drops()?;
            at_wan.drain()?;
            g1.send(&packet)?;
            at_wan.assert_silent(&format!("flags {flags:#x}"))?;
            super::bed::until(5 * SECOND, || Ok(bed.drops()? != before))
                .with_context(|| format!("flags {flags:#x}"))?;
            assert_eq!(bed.state_of(&packet)?, "none", "flags {flags:#x}");
        }
    }
    // IPv4: no checksum stays no checksum (RFC 768).
    let none = Packet::udp(g1.endpoint(false, 4000), remote(false, 1, 7), b"x").damaged(|body| body[6..8].fill(0));
    let got = g1.carry(&none, &at_wan)?;
    assert_eq!(got.body[6..8], [0, 0]);
    assert_eq!(at_wan.carry(&got.turned(), &g1)?.body[6..8], [0, 0]);
    // One that is computed to be 0 is sent as ffff.
    for v6 in FAMILIES {
        for n in 0..=u16::MAX {
            let packet = Packet::udp(SocketAddr::new(host(v6), 4000), remote(v6, 1, 7), &n.to_be_bytes());
            if packet.body[6..8] == [0xff, 0xff] {
                let inside = Packet::udp(g1.endpoint(v6, 4000), remote(v6, 1, 7), &n.to_be_bytes());
                assert_eq!(g1.carry(&inside, &at_wan)?.body[6..8], [0xff, 0xff]);
                break;
            }
        }
    }
    Ok(())
}

/// Protocols without ports belong to one namespace for each destination at a time; SCTP has ports.
#[test]
fn other_protocols_pass() -> Result<()> {
    let bed = Outside::with("", &[], &["g1", "g2"])?;
    let (g1, g2, at_wan) = (bed.end("g1")?, bed.end("g2")?, bed.end("wan")?);
    for v6 in FAMILIES {
        let gre = |end: &super::outside_bed::End, to: u8| {
            Packet::new(end.ip(v6), remote(v6, to, 0).ip(), super::packet::GRE, b"\0\0\x08\0payload")
        };
        let got = g1.carry(&gre(&g1, 1), &at_wan)?;
        assert_eq!((got.source, &got.body), (host(v6), &gre(&g1, 1).body));
        assert_eq!(at_wan.carry(&got.turned(), &g1)?.destination, g1.ip(v6));
        bed.drops_one(&g2, &gre(&g2, 1), &[&at_wan], "protocol")?;
        let got = g2.carry(&gre(&g2, 2), &at_wan)?;
        assert_eq!(at_wan.carry(&got.turned(), &g2)?.destination, g2.ip(v6));
        g1.assert_silent("an answer to g2")?;
        // SCTP keeps its port, as its checksum covers it and not the address.
        let sctp = Packet::sctp(g1.endpoint(v6, 4000), remote(v6, 1, 36412), b"chunk");
        let got = g1.carry_as(&sctp, &at_wan, SocketAddr::new(host(v6), 4000), remote(v6, 1, 36412))?;
        at_wan.carry(&got.turned(), &g1)?;
    }
    Ok(())
}

/// Behaviours 13; scenario: what leaves by another interface has that one's address, and the table may say which.
#[test]
fn the_route_decides_interface_and_address() -> Result<()> {
    let bed = Outside::new()?;
    // A second uplink to wan.
    let (on_host, wan_ns) = (Netlink::inside(&bed.lab.ns("host")?)?, bed.lab.ns("wan")?);
    let end = nsnet::kernel::veth::VethSpec { name: "uplink2", ..Default::default() };
    on_host.create_veth(&end, &end, Some(&wan_ns))?;
    let on_wan = Netlink::inside(&wan_ns)?;
    for (netlink, addresses) in
        [(&on_host, ["192.168.2.1/24", "fd04::1/64"]), (&on_wan, ["192.168.2.3/24", "fd04::3/64"])]
    {
        let link = netlink.existing_link("uplink2")?;
        for address in addresses {
            netlink.add_address(link.index, address.parse()?)?;
        }
        netlink.set_up(link.index)?;
    }
    let second: [IpAddr; 2] = ["192.168.2.1".parse()?, "fd04::1".parse()?];
    // By destination.
    on_host.add_route(&Route { dest: "203.0.113.0/24".parse()?, via: Some("192.168.2.3".parse()?), index: None })?;
    on_host.add_route(&Route { dest: "fd02::/64".parse()?, via: Some("fd04::3".parse()?), index: None })?;
    // An uplink that came later is found when the network is asked for again.
    bed.lab.nsnet("network add v-net-0 --subnet 192.168.15.0/24 fd15::/64 --masquerade")?;
    for v6 in FAMILIES {
        assert_eq!(seen_by_servers(&bed, "c1", "far", far(v6))?, [second[usize::from(v6)]].into());
        assert_eq!(seen_by_servers(&bed, "c1", "wan", wan(v6))?, [host(v6)].into());
    }
    // By source: policy routing.
    let c2 = bed.at("c2");
    bed.ip("host", &format!("rule add from {} table 100", c2.v4))?;
    bed.ip("host", "route add default via 192.168.2.3 table 100")?;
    assert_eq!(seen_by_servers(&bed, "c2", "wan", wan_server(false, 1))?, [second[0]].into(), "ip rule from c2");
    assert_eq!(seen_by_servers(&bed, "c1", "wan", wan_server(false, 1))?, [host(false)].into());
    // The same to a router whose MAC the host does not know yet: it asks for that one, and not for the destination, or for the
    // router that a packet of its own would take.
    bed.ip("host", "route del 203.0.113.0/24")?;
    bed.ip("host", "-6 route del fd02::/64")?;
    bed.ip("host", &format!("-6 rule add from {} table 100", c2.v6))?;
    bed.ip("host", "-6 route add default via fd04::3 table 100")?;
    for v6 in FAMILIES {
        bed.ip("host", "neigh flush dev uplink2")?;
        assert_eq!(seen_by_servers(&bed, "c2", "far", far(v6))?, [second[usize::from(v6)]].into(), "ip rule from c2");
    }
    Ok(())
}

/// Conformance 2.5, BCP 38: no random source gets out, whatever it pretends.
#[test]
fn ten_thousand_spoofed_sources() -> Result<()> {
    let bed = Outside::with("", &["c1"], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    // A walk through all addresses: the step is odd, so that it comes by every one.
    let mut source = 0x0a00_0001_u32;
    let frames: Vec<Vec<u8>> = (0..10_000)
        .map(|n| {
            source = source.wrapping_add(0x9e37_79b1);
            let from = SocketAddr::new(Ipv4Addr::from_bits(source).into(), 4000);
            let packet = match n % 3 {
                0 => Packet::udp(from, remote(false, 1, 7), b"spoof"),
                1 => Packet::tcp(from, remote(false, 1, 7), super::packet::SYN, 1, 0, b""),
                _ => Packet::ping(from.ip(), remote(false, 1, 7).ip(), 7, b"spoof"),
            };
            packet.frame(g1.mac, g1.gateway)
        })
        .collect();
    bed.drops_frames(&g1, &frames, &[&at_wan], "spoofed-ipv4")?;
    assert_eq!(pings(&bed, "c1", wan(false))?, 2);
    Ok(())
}
