//! ICMP through NAT: errors in both directions with what they quote, and the errors that the gateway sends itself.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nsnet::kernel::netlink::Netlink;
use nsnet::lab::{TcpServer, UdpEcho, tcp, udp};

use super::bed::until;
use super::outside_bed::{End, FAMILIES, Outside, far, host, remote, wan};
use super::packet::{ACK, ICMP, Packet, SYN, UDP};

const SECOND: Duration = Duration::from_secs(1);

/// Type, code, and what follows the checksum, of every error that is translated.
fn errors(v6: bool) -> Vec<(u8, u8, u32)> {
    if v6 {
        let unreachable = (0..8).map(|code| (1, code, 0));
        unreachable.chain([(2, 0, 1280), (3, 0, 0), (3, 1, 0), (4, 0, 40), (4, 1, 6), (4, 2, 8)]).collect()
    } else {
        let unreachable = (0..16).map(|code| (3, code, if code == 4 { 1280 } else { 0 }));
        unreachable.chain([(11, 0, 0), (11, 1, 0), (12, 0, 0x1400_0000), (12, 1, 0), (12, 2, 0)]).collect()
    }
}

fn ghost() -> Result<(Outside, End, End)> {
    let bed = Outside::with("", &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    Ok((bed, g1, at_wan))
}

/// A flow of each kind: what g1 sent, and how it looked outside.
fn flows(g1: &End, at_wan: &End, v6: bool, port: u16) -> Result<Vec<(Packet, Packet)>> {
    let (from, to) = (g1.endpoint(v6, port), remote(v6, 1, 443));
    let packets = [
        Packet::udp(from, to, &[5; 60]),
        Packet::tcp(from, to, SYN, 1, 0, b""),
        Packet::ping(from.ip(), to.ip(), port, &[6; 30]),
    ];
    packets.into_iter().map(|sent| Ok((sent.clone(), g1.carry(&sent, at_wan)?))).collect()
}

/// Fails unless `error` is what `source` said, about `about` as its sender knows it.
fn is_about(error: &Packet, source: std::net::IpAddr, kind: (u8, u8), rest: u32, about: &Packet) -> Result<()> {
    ensure!(
        (error.source, error.destination) == (source, about.source),
        "{error:?} should be {source} > {}",
        about.source
    );
    ensure!((error.kind(), error.rest()) == (kind, rest), "{error:?} should be {kind:?} {rest:#x}");
    let quoted = error.quoted()?;
    let same = (quoted.from(), quoted.to(), quoted.protocol) == (about.from(), about.to(), about.protocol);
    ensure!(same, "{error:?} should be about {about:?}");
    // The header that everybody needs, and when all of it is there, a right checksum over it (RFC 5508 section 4.2).
    ensure!(quoted.body.len() >= 8, "{} bytes are quoted", quoted.body.len());
    if quoted.body.len() == about.body.len() {
        quoted.check().context("the quoted packet")?;
        ensure!(quoted.payload() == about.payload(), "the quoted payload was changed");
    }
    Ok(())
}

/// RFC 5508 REQ-4, RFC 5382 REQ-9: outer, inner and both checksums (every packet that is received is summed up).
#[test]
fn errors_from_outside_are_translated() -> Result<()> {
    let (bed, g1, at_wan) = ghost()?;
    for v6 in FAMILIES {
        for (sent, seen) in flows(&g1, &at_wan, v6, 40000)? {
            for (kind, code, rest) in errors(v6) {
                // The host itself, the router before it, and one in the middle that nobody was sent to (REQ-12a).
                for source in [sent.destination, wan(v6), remote(v6, 200, 0).ip()] {
                    let error = at_wan.carry(&seen.error(source, kind, code, rest, 200), &g1)?;
                    is_about(&error, source, (kind, code), rest, &sent).with_context(|| format!("about {sent:?}"))?;
                    assert_eq!(error.hops, 63);
                }
            }
        }
        // The mappings are what they were.
        flows(&g1, &at_wan, v6, 40000)?;
    }
    assert_eq!(bed.drops()?, std::collections::BTreeMap::new());
    Ok(())
}

/// The same by real routers and real sockets: a socket behind NAT learns that nobody listens far away.
#[test]
fn sockets_hear_of_refusals() -> Result<()> {
    let bed = Outside::with("", &["c1"], &[])?;
    for v6 in FAMILIES {
        for server in [wan(v6), far(v6)] {
            let closed = SocketAddr::new(server, 9);
            assert_eq!(bed.at("c1").run(|| udp::exchange(closed, 10, 1, SECOND))?.refused, 1, "{closed}");
            let start = std::time::Instant::now();
            assert!(bed.at("c1").run(|| tcp::fetch(closed)).is_err() && start.elapsed() < 2 * SECOND);
        }
        // No such host: the router says so (or nobody: then it is silence, and no answer of another kind).
        let nobody = SocketAddr::new(if v6 { "fd02::99".parse()? } else { "203.0.113.99".parse()? }, 9);
        assert_eq!(bed.at("c1").run(|| udp::exchange(nobody, 10, 1, Duration::from_millis(100)))?.echoed, 0);
    }
    Ok(())
}

/// RFC 5508 REQ-5: what a namespace says about packets from outside, leaves as the host's, with what it quotes.
#[test]
fn errors_from_inside_are_translated() -> Result<()> {
    let (_bed, g1, at_wan) = ghost()?;
    for v6 in FAMILIES {
        for (_, seen) in flows(&g1, &at_wan, v6, 40000)? {
            let answer =
                if seen.protocol == UDP || seen.protocol == super::packet::TCP { seen.turned() } else { seen.pong() };
            let answer = match answer.protocol {
                super::packet::TCP => Packet::tcp(answer.from(), answer.to(), SYN | ACK, 7, 2, b""),
                _ => answer,
            };
            let heard = at_wan.carry(&answer, &g1)?;
            for (kind, code, rest) in errors(v6) {
                let error = g1.carry(&heard.error(g1.ip(v6), kind, code, rest, 200), &at_wan)?;
                is_about(&error, host(v6), (kind, code), rest, &answer).with_context(|| format!("about {heard:?}"))?;
            }
        }
    }
    Ok(())
}

/// Both ways for a published port: RFC 5508 REQ-4, REQ-5.
#[test]
fn errors_about_published_ports() -> Result<()> {
    let (bed, g1, at_wan) = ghost()?;
    bed.lab.nsnet("publish add @g1 8080:80/udp")?;
    for v6 in FAMILIES {
        let (client, to) = (remote(v6, 9, 50000), SocketAddr::new(host(v6), 8080));
        let knock = Packet::udp(client, to, &[1; 50]);
        let heard = at_wan.carry(&knock, &g1)?;
        let answer = g1.carry(&heard.turned(), &at_wan)?;
        for (kind, code, rest) in errors(v6) {
            let error = g1.carry(&heard.error(g1.ip(v6), kind, code, rest, 200), &at_wan)?;
            is_about(&error, host(v6), (kind, code), rest, &knock)?;
            let error = at_wan.carry(&answer.error(wan(v6), kind, code, rest, 200), &g1)?;
            is_about(&error, wan(v6), (kind, code), rest, &heard.turned())?;
        }
    }
    Ok(())
}

/// RFC 5508 REQ-3, 3a, 3b, 3c, 3d: damaged errors are dropped; options, cuts and extensions are nothing wrong.
#[test]
fn damaged_errors_are_not_repaired() -> Result<()> {
    let (_bed, g1, at_wan) = ghost()?;
    let mut wrong = Vec::new();
    for v6 in FAMILIES {
        let (sent, seen) = flows(&g1, &at_wan, v6, 20000)?.swap_remove(0);
        let (kind, code) = if v6 { (1, 4) } else { (3, 3) };
        let inner = if v6 { 8 + 40 } else { 8 + 20 };
        let error = |quote: usize| seen.error(wan(v6), kind, code, 0, quote);
        // One bit of the message: type, code, and what is quoted; then the quoted header's own checksum, with the outer
        // one right. (A wrong byte of a quoted port would be another flow's.)
        let mut damaged: Vec<(usize, Packet)> =
            [1, 2, 5, inner + 2, inner + 20].map(|at| (at, error(200).damaged(|body| body[at] ^= 0x10))).into();
        if !v6 {
            damaged.push((8 + 10, error(200).damaged(|body| body[8 + 10] ^= 0x10).summed()));
        }
        for (at, packet) in damaged {
            at_wan.send(&packet)?;
            // Whether the host gets it instead is its own affair.
            if let Some((got, _)) = g1.receive_unchecked(Duration::from_millis(20))? {
                // What is still detectably wrong is left to the receiver (RFC 5508 REQ-3 has SHOULD; docs/conformance.md).
                if got.check().is_err() && at != 8 + 10 {
                    continue;
                }
                let what = if got.check().is_ok() { "repaired" } else { "passed on" };
                wrong.push(format!("{what}, a bit of byte {at}: {got:?}"));
            }
        }
        // The quoted datagram's checksum is not ours to judge.
        let odd = error(200).damaged(|body| body[inner + 6] ^= 0x55).summed();
        at_wan.send(&odd)?;
        let got = g1.receive(SECOND)?.context("an error with a wrong inner UDP checksum")?;
        ensure!(got.quoted()?.check().is_err(), "the inner checksum was repaired");
        // As little as RFC 792 asks for, and much.
        for quote in [inner - 8 + 8, inner - 8 + 9, 500] {
            is_about(&at_wan.carry(&error(quote), &g1)?, wan(v6), (kind, code), 0, &sent)?;
        }
        // Less than a port.
        for quote in [inner - 8 + 3, 10, 0] {
            at_wan.send(&error(quote))?;
        }
        g1.assert_silent("an error about nothing")?;
        // RFC 4884: the quote's length in words of 4 (IPv4) or 8 bytes (IPv6), padded to 128, and an extension behind.
        let mut padded = seen.bytes();
        padded.resize(128, 0);
        padded.extend([0x20, 0, 0xdf, 0xff, 0, 8, 1, 1, 0, 0, 0x10, 1]);
        let rest = if v6 { 16 << 24 } else { 32 << 16 };
        let (kind, code) = if v6 { (3, 0) } else { (11, 0) };
        let extended = Packet::icmp(wan(v6), host(v6), kind, code, rest, &padded);
        let got = at_wan.carry(&extended, &g1)?;
        is_about(&got, wan(v6), (kind, code), rest, &sent)?;
        assert_eq!(got.body[8 + 128..], extended.body[8 + 128..], "the extension");
    }
    // Options in the quoted header: IHL 6 to 15.
    let (sent, seen) = flows(&g1, &at_wan, false, 20001)?.swap_remove(0);
    for words in 1..=10 {
        let with_options = seen.clone().options(&vec![1; 4 * words]);
        let got = at_wan.carry(&with_options.error(wan(false), 3, 1, 0, 200), &g1)?;
        is_about(&got, wan(false), (3, 1), 0, &sent)?;
        assert_eq!(got.quoted()?.options.len(), 4 * words);
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    Ok(())
}

/// RFC 5508 REQ-4, A6: an error about a packet that nobody sent goes nowhere.
#[test]
fn forged_errors_are_dropped() -> Result<()> {
    let (bed, g1, at_wan) = ghost()?;
    for v6 in FAMILIES {
        let (_, seen) = flows(&g1, &at_wan, v6, 20000)?.swap_remove(0);
        let port = seen.from().port();
        let own = |port: u16| SocketAddr::new(host(v6), port);
        let to = seen.to();
        let forged = [
            ("another remote", Packet::udp(own(port), remote(v6, 2, 443), b"12345678")),
            ("another remote port", Packet::udp(own(port), remote(v6, 1, 444), b"12345678")),
            ("another port of ours", Packet::udp(own(port + 1), to, b"12345678")),
            ("another protocol", Packet::tcp(own(port), remote(v6, 2, 443), ACK, 1, 1, b"")),
            ("the inner address", Packet::udp(g1.endpoint(v6, 20000), to, b"12345678")),
            ("the other direction", Packet::udp(to, own(port), b"12345678")),
        ];
        let kind = if v6 { (1, 4) } else { (3, 3) };
        for (what, about) in forged {
            let error = Packet::icmp(wan(v6), host(v6), kind.0, kind.1, 0, &about.bytes());
            at_wan.send(&error)?;
            g1.assert_silent(what)?;
            // To the namespace itself.
            let error = Packet::icmp(wan(v6), g1.ip(v6), kind.0, kind.1, 0, &about.bytes());
            at_wan.send(&error)?;
            g1.assert_silent(what)?;
        }
        // From inside, about what was never received, and about another one's.
        let at_g1 = Packet::udp(remote(v6, 7, 1), g1.endpoint(v6, 20000), b"12345678");
        let other =
            Packet::udp(remote(v6, 1, 443), SocketAddr::new(bed.at("host").ips()[usize::from(v6)], 20000), b"12345678");
        for about in [at_g1, other] {
            let error = Packet::icmp(g1.ip(v6), about.source, kind.0, kind.1, 0, &about.bytes());
            bed.drops_one(&g1, &error, &[&at_wan], "icmp-unrelated")?;
        }
    }
    Ok(())
}

/// RFC 5508 REQ-11, RFC 6633, RFC 1812 section 5.2.7.2: of all types only queries and errors cross.
#[test]
fn other_types_do_not_cross() -> Result<()> {
    let (bed, g1, at_wan) = ghost()?;
    for v6 in FAMILIES {
        let (_, seen) = flows(&g1, &at_wan, v6, 20000)?.swap_remove(0);
        // Redirect and source quench, though about a live flow. They may be for the host.
        if !v6 {
            for kind in [4, 5] {
                at_wan.send(&seen.error(wan(false), kind, 0, 0xc0a8_0103, 200))?;
            }
        } else {
            at_wan.send(&seen.error(wan(true), 137, 0, 0, 200))?;
        }
        g1.assert_silent("a redirect or source quench")?;
        let passing: &[u8] = if v6 { &[1, 2, 3, 4, 128, 129] } else { &[0, 3, 8, 11, 12, 13, 14] };
        // Group and neighbour messages of IPv6 have rules of their own.
        let others: Vec<u8> =
            (0..=255).filter(|kind| !(passing.contains(kind) || v6 && (130..=154).contains(kind))).collect();
        let packets: Vec<Packet> = others
            .iter()
            .map(|kind| Packet::icmp(g1.ip(v6), remote(v6, 1, 0).ip(), *kind, 0, 77 << 16, b"12345678"))
            .collect();
        bed.drops_all(&g1, &packets, &[&at_wan], "icmp-type")?;
        // An answer that nobody waits for.
        let pong = Packet::ping(g1.ip(v6), remote(v6, 1, 0).ip(), 77, b"").turned().pong();
        at_wan.drain()?;
        g1.send(&pong)?;
        at_wan.assert_silent("an answer that nobody asked for")?;
    }
    Ok(())
}

/// RFC 1812 section 5.3.1, RFC 5508 REQ-9: TTL runs out on the way in, too.
#[test]
fn traceroute_from_outside() -> Result<()> {
    let (bed, g1, at_wan) = ghost()?;
    bed.lab.nsnet("publish add @g1 8080:80/udp")?;
    for v6 in FAMILIES {
        let kind = if v6 { (3, 0) } else { (11, 0) };
        let knock = Packet::udp(remote(v6, 9, 50000), SocketAddr::new(host(v6), 8080), &[1; 40]);
        let (_, seen) = flows(&g1, &at_wan, v6, 20000)?.swap_remove(0);
        for packet in [knock, seen.turned()] {
            at_wan.drain()?;
            at_wan.send(&packet.clone().hops(1))?;
            let error = at_wan.expect("time exceeded")?;
            is_about(&error, host(v6), kind, 0, &packet)?;
            g1.assert_silent("a packet with one hop left")?;
            assert_eq!(at_wan.carry(&packet.hops(2), &g1)?.hops, 1);
        }
    }
    Ok(())
}

/// RFC 1812 section 4.3.2.7, RFC 4443 section 2.4(e): no errors about errors, groups, or later fragments.
#[test]
fn no_errors_about_errors() -> Result<()> {
    let (_bed, g1, at_wan) = ghost()?;
    for v6 in FAMILIES {
        let (_, seen) = flows(&g1, &at_wan, v6, 20000)?.swap_remove(0);
        let heard = at_wan.carry(&seen.turned(), &g1)?;
        let later = Packet::udp(g1.endpoint(v6, 20000), remote(v6, 1, 443), &[0; 100]).fragments(&[48]).swap_remove(1);
        let to_group = SocketAddr::new(if v6 { "ff0e::1".parse()? } else { "239.1.2.3".parse()? }, 9);
        let quiet = [
            heard.error(g1.ip(v6), if v6 { 1 } else { 3 }, 3, 0, 200).hops(1),
            later.hops(1),
            Packet::udp(g1.endpoint(v6, 20000), to_group, b"x").hops(1),
        ];
        g1.drain()?;
        for packet in quiet {
            g1.send(&packet)?;
            g1.assert_silent("an error")?;
        }
        at_wan.assert_silent("a packet with one hop left")?;
        // From outside, too.
        at_wan.drain()?;
        at_wan.send(&seen.error(wan(v6), if v6 { 1 } else { 3 }, 3, 0, 200).hops(1))?;
        at_wan.send(&seen.turned().fragments(&[48]).swap_remove(1).hops(1))?;
        at_wan.assert_silent("an error about an error")?;
        g1.drain()?;
    }
    Ok(())
}

/// RFC 4787 REQ-13: what the uplink cannot take, and must not be cut, is told.
#[test]
fn the_uplinks_mtu_is_told() -> Result<()> {
    let bed = Outside::plain("--masquerade --mtu 1500", &[], &["g1"])?;
    let (g1, at_wan, gateway) = (bed.end("g1")?, bed.end("wan")?, bed.at("host"));
    let netlink = Netlink::inside(&bed.lab.ns("host")?)?;
    // The kernel tells the MTU of a way with its neighbour.
    FAMILIES.into_iter().try_for_each(|v6| flows(&g1, &at_wan, v6, 20000).map(|_| ()))?;
    for mtu in [1400, 1280] {
        netlink.set_mtu(netlink.existing_link("uplink")?.index, mtu)?;
        // Other ports than before: a flow asks for its way, and the MTU of that, once a second.
        let port = 40_000 + mtu as u16;
        for (v6, own) in FAMILIES.into_iter().zip(gateway.ips()) {
            let (from, to) = (g1.endpoint(v6, port), remote(v6, 1, 443));
            let headers = if v6 { 48 } else { 28 };
            let fits = Packet::udp(from, to, &vec![3; mtu as usize - headers]);
            assert_eq!(g1.carry(&fits, &at_wan)?.body.len(), fits.body.len());
            for more in [1, 50] {
                let large = Packet::udp(from, to, &vec![3; mtu as usize - headers + more]);
                g1.drain()?;
                bed.drops_one(&g1, &large, &[&at_wan], "fragmentation-needed")?;
                let kind = if v6 { (2, 0) } else { (3, 4) };
                is_about(&g1.expect("packet too big")?, own, kind, mtu, &large)?;
            }
        }
    }
    Ok(())
}

/// RFC 4787 REQ-13a, RFC 791: what may be cut is cut, in order, and nobody is told.
#[test]
fn what_may_be_cut_is_cut() -> Result<()> {
    let bed = Outside::plain("--masquerade --mtu 1500", &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    let netlink = Netlink::inside(&bed.lab.ns("host")?)?;
    flows(&g1, &at_wan, false, 20000)?;
    netlink.set_mtu(netlink.existing_link("uplink")?.index, 1280)?;
    let (from, to) = (g1.endpoint(false, 40000), remote(false, 1, 443));
    for length in [1280 - 28 + 1, 1500 - 28] {
        let large = Packet::udp(from, to, &vec![3; length]).may_be_cut();
        at_wan.drain()?;
        g1.send(&large)?;
        let parts = at_wan.collect(SECOND)?;
        let whole = Packet::joined(&parts).with_context(|| format!("it came as {parts:?}"))?;
        whole.check()?;
        assert_eq!((whole.from(), whole.to()), (SocketAddr::new(host(false), 40000), to));
        assert!(whole.payload() == large.payload() && parts[0].fragment.is_some_and(|(offset, _)| offset == 0));
        g1.assert_silent("an error about what was cut")?;
    }
    Ok(())
}

/// The same on the way in, where the network's MTU is the smaller one; and what is quoted is what the sender sent.
#[test]
fn the_networks_mtu_is_told_outside() -> Result<()> {
    let bed = Outside::plain("--masquerade --mtu 1280", &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    bed.lab.nsnet("publish add @g1 8080:80/udp")?;
    for v6 in FAMILIES {
        let (_, seen) = flows(&g1, &at_wan, v6, 20000)?.swap_remove(0);
        let answer = |length: usize| Packet::udp(seen.to(), seen.from(), &vec![9; length]);
        let knock =
            |length: usize| Packet::udp(remote(v6, 9, 50000), SocketAddr::new(host(v6), 8080), &vec![9; length]);
        let headers = if v6 { 48 } else { 28 };
        for make in [&answer as &dyn Fn(usize) -> Packet, &knock] {
            at_wan.carry(&make(1280 - headers), &g1)?;
            for length in [1281 - headers, 1500 - headers] {
                let large = make(length);
                at_wan.drain()?;
                at_wan.send(&large)?;
                let kind = if v6 { (2, 0) } else { (3, 4) };
                is_about(&at_wan.expect("packet too big")?, host(v6), kind, 1280, &large)?;
                g1.assert_silent("what is too long")?;
            }
        }
    }
    assert!(bed.dropped("uplink", "fragmentation-needed")? >= 8, "{:?}", bed.drops()?);
    Ok(())
}

/// Behaviours 15, RFC 1191, RFC 8201: path MTU discovery works in both directions, by real sockets over real routers.
#[test]
fn path_mtu_is_discovered() -> Result<()> {
    let bed = Outside::with("", &["c1"], &[])?;
    bed.lab.nsnet("publish add @c1 8080:80/tcp")?;
    let servers =
        bed.at("c1").run(|| Ok([TcpServer::start("0.0.0.0:80".parse()?)?, TcpServer::start("[::]:80".parse()?)?]))?;
    for mtu in [1400, 1280, 576] {
        // Of the route, not of the link: a packet that the router's link cannot take would be lost without a word.
        bed.ip(
            "wan",
            &format!("route replace 203.0.113.0/24 dev link src 203.0.113.1 proto kernel scope link mtu {mtu}"),
        )?;
        bed.ip("wan", &format!("-6 route replace fd02::/64 dev link metric 256 mtu {}", mtu.max(1280)))?;
        for v6 in FAMILIES.into_iter().filter(|v6| !v6 || mtu >= 1280) {
            let what = || format!("MTU {mtu} to {}", far(v6));
            let server = bed.at("far").run(|| TcpServer::start(SocketAddr::new(far(v6), 0)))?;
            bed.at("c1").run(|| tcp::transfer(server.addr(), 300_000)).with_context(what)?;
            bed.at("far").run(|| tcp::transfer(SocketAddr::new(host(v6), 8080), 300_000)).with_context(what)?;
            let echo = bed.at("far").run(|| UdpEcho::start(SocketAddr::new(far(v6), 0)))?;
            // The first one is lost, and the socket may be told (EMSGSIZE).
            let all_pass = || bed.at("c1").run(|| udp::exchange(echo.addr(), 1450, 4, Duration::from_millis(200)));
            until(Duration::from_secs(10), || Ok(all_pass().is_ok_and(|outcome| outcome.echoed == 4)))
                .with_context(|| format!("UDP, {}", what()))?;
        }
    }
    assert_eq!(servers.iter().map(|server| server.peers().len()).sum::<usize>(), 5);
    Ok(())
}

/// RFC 1812 section 4.3.2.8, A12: a flood of hopeless packets is not answered by as many errors.
#[test]
fn errors_are_limited() -> Result<()> {
    let (bed, g1, at_wan) = ghost()?;
    let packet = Packet::udp(g1.endpoint(false, 20000), remote(false, 1, 443), b"x").hops(1);
    let sent = 20_000;
    for _ in 0..sent {
        g1.send(&packet)?;
    }
    until(Duration::from_secs(10), || Ok(bed.dropped(&g1.port, "ttl-exceeded")? >= sent))?;
    let answers = g1.socket.count(Duration::from_millis(50), |frame| frame.bytes.get(23) == Some(&ICMP))?;
    assert!(answers > 0, "none at all");
    assert!(answers < sent / 2, "{answers} errors for {sent} packets");
    at_wan.assert_silent("a packet with one hop left")?;
    Ok(())
}
