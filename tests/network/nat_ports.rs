//! External ports: who gets which, for how many destinations, and what happens when there are none left.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nsnet::lab::udp;

use super::outside_bed::{End, FAMILIES, Outside, host, remote, wan};
use super::packet::{ACK, Packet, SYN};

/// The ports given to flows that cannot keep their own.
const POOL: std::ops::RangeInclusive<u16> = 16384..=32767;

fn datagram(from: SocketAddr, to: SocketAddr) -> Packet {
    Packet::udp(from, to, b"a datagram")
}

fn syn(from: SocketAddr, to: SocketAddr) -> Packet {
    Packet::tcp(from, to, SYN, 1000, 0, b"")
}

/// Behaviours 14: the source port is kept when it is free.
#[test]
fn a_free_port_is_kept() -> Result<()> {
    let bed = Outside::with("", &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    for v6 in FAMILIES {
        for port in [1, 53, 600, 1023, 1024, 16383, 32768, 40000, 65535] {
            let (from, to) = (g1.endpoint(v6, port), remote(v6, 1, 443));
            let external = SocketAddr::new(host(v6), port);
            g1.carry_as(&datagram(from, to), &at_wan, external, to)?;
            g1.carry_as(&syn(from, to), &at_wan, external, to)?;
            g1.carry_as(
                &Packet::ping(from.ip(), to.ip(), port, b"x"),
                &at_wan,
                external,
                SocketAddr::new(to.ip(), port),
            )?;
        }
    }
    Ok(())
}

/// The same for a port of the range that others' are chosen from.
#[test]
fn a_free_port_of_the_pool_is_kept() -> Result<()> {
    let bed = Outside::with("", &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    for port in [16384, 20000, 32767] {
        let (from, to) = (g1.endpoint(false, port), remote(false, 1, 443));
        g1.carry_as(&datagram(from, to), &at_wan, SocketAddr::new(host(false), port), to)?;
        g1.carry_as(&syn(from, to), &at_wan, SocketAddr::new(host(false), port), to)?;
    }
    Ok(())
}

/// RFC 4787 REQ-1 (a mapping does not depend on the destination) and REQ-3 (a port is nobody else's).
#[test]
fn udp_mappings_are_endpoint_independent_and_not_shared() -> Result<()> {
    let bed = Outside::with("", &[], &["g1", "g2"])?;
    let (g1, g2, at_wan) = (bed.end("g1")?, bed.end("g2")?, bed.end("wan")?);
    for v6 in FAMILIES {
        let mut external = [BTreeSet::new(), BTreeSet::new()];
        for (number, port) in [(1, 7000), (1, 7001), (2, 7000), (2, 7001)] {
            let to = remote(v6, number, port);
            for (end, external) in [&g1, &g2].into_iter().zip(&mut external) {
                let from = end.endpoint(v6, 40000);
                let got = end.carry(&datagram(from, to), &at_wan)?;
                external.insert(got.from());
                // Its answer finds its way, and the other one hears nothing.
                at_wan.carry_as(&got.turned(), end, to, from)?;
            }
        }
        for end in [&g1, &g2] {
            end.assert_silent("another one's answer")?;
        }
        let [first, second] = external;
        assert_eq!(first, [SocketAddr::new(host(v6), 40000)].into());
        assert_eq!(second.len(), 1, "g2 has {second:?}");
        ensure!(second.iter().all(|own| own.ip() == host(v6) && POOL.contains(&own.port())), "{second:?}");
    }
    Ok(())
}

/// Behaviours 14; RFC 7857 section 3: TCP may share a port between destinations, and always tells clients apart.
#[test]
fn two_tcp_clients_with_one_port() -> Result<()> {
    let bed = Outside::with("", &[], &["g1", "g2"])?;
    let (g1, g2, at_wan) = (bed.end("g1")?, bed.end("g2")?, bed.end("wan")?);
    for v6 in FAMILIES {
        for number in [1, 2] {
            let to = remote(v6, number, 80);
            let mut external = BTreeSet::new();
            for end in [&g1, &g2] {
                let from = end.endpoint(v6, 40000);
                let got = end.carry(&syn(from, to), &at_wan)?;
                ensure!(external.insert(got.from()), "both clients are {} to {to}", got.from());
                let answer = Packet::tcp(to, got.from(), SYN | ACK, 5000, 1001, b"");
                at_wan.carry_as(&answer, end, to, from)?;
            }
            assert!(external.contains(&SocketAddr::new(host(v6), 40000)), "nobody kept the port: {external:?}");
        }
    }
    Ok(())
}

/// RFC 4787 REQ-3a: what cannot be kept stays in its class, below 1024 or not.
#[test]
fn port_classes_are_kept() -> Result<()> {
    let bed = Outside::with("", &[], &["g1", "g2"])?;
    let (g1, g2, at_wan) = (bed.end("g1")?, bed.end("g2")?, bed.end("wan")?);
    let mut wrong = Vec::new();
    for v6 in FAMILIES {
        for port in [53, 600, 1023, 1024, 50000] {
            let to = remote(v6, 1, 443);
            g1.carry(&datagram(g1.endpoint(v6, port), to), &at_wan)?;
            let other = g2.carry(&datagram(g2.endpoint(v6, port), to), &at_wan)?.from().port();
            ensure!(other != port, "port {port} is shared");
            if (port < 1024) != (other < 1024) {
                wrong.push((port, other));
            }
        }
    }
    assert_eq!(wrong, [], "ports that changed their class");
    Ok(())
}

/// RFC 5508 REQ-1, REQ-1a.
#[test]
fn icmp_identifiers_are_mapped_like_ports() -> Result<()> {
    let bed = Outside::with("", &[], &["g1", "g2"])?;
    let (g1, g2, at_wan) = (bed.end("g1")?, bed.end("g2")?, bed.end("wan")?);
    for v6 in FAMILIES {
        let mut external = [BTreeSet::new(), BTreeSet::new()];
        for number in [1, 2] {
            let to = remote(v6, number, 0).ip();
            for (end, external) in [&g1, &g2].into_iter().zip(&mut external) {
                let got = end.carry(&Packet::ping(end.ip(v6), to, 77, b"payload"), &at_wan)?;
                assert_eq!((got.source, got.destination), (host(v6), to));
                external.insert(got.ports().0);
                let answer = at_wan.carry(&got.pong(), end)?;
                assert_eq!((answer.source, answer.destination, answer.ports().0), (to, end.ip(v6), 77));
                assert_eq!(answer.payload(), b"payload");
            }
        }
        let [first, second] = external;
        assert_eq!(first, [77].into());
        assert!(second.len() == 1 && !second.contains(&77), "g2 has {second:?}");
    }
    Ok(())
}

/// RFC 5508 REQ-8, RFC 6888 REQ-11, behaviours 14: no port left is a named drop, and the sender is told.
#[test]
fn an_empty_pool_is_told() -> Result<()> {
    let bed = Outside::with("--snat-ports 20000-20001", &[], &["g1", "g2"])?;
    let (g1, g2, at_wan) = (bed.end("g1")?, bed.end("g2")?, bed.end("wan")?);
    for v6 in FAMILIES {
        let to = remote(v6, 1, 443);
        let mut given = BTreeSet::new();
        for port in [40000, 40001] {
            g1.carry(&datagram(g1.endpoint(v6, port), to), &at_wan)?;
            given.insert(g2.carry(&datagram(g2.endpoint(v6, port), to), &at_wan)?.from().port());
        }
        assert_eq!(given, [20000, 20001].into());
        g1.carry(&datagram(g1.endpoint(v6, 40002), to), &at_wan)?;
        let third = datagram(g2.endpoint(v6, 40002), to);
        g2.drain()?;
        bed.drops_one(&g2, &third, &[&at_wan], "ports-exhausted")?;
        is_prohibited(&bed, &g2, &third)?;
        // Those that are there go on.
        g2.carry(&datagram(g2.endpoint(v6, 40001), to), &at_wan)?;
        g2.carry(&datagram(g2.endpoint(v6, 50000), to), &at_wan)?;
    }
    Ok(())
}

/// The gateway says: communication administratively prohibited, and quotes the packet.
fn is_prohibited(bed: &Outside, at: &End, packet: &Packet) -> Result<()> {
    let v6 = packet.source.is_ipv6();
    let error = at.expect("ICMP 3/13")?;
    let gateway = bed.at("host").ips()[usize::from(v6)];
    let kind = if v6 { (1, 1) } else { (3, 13) };
    assert_eq!((error.source, error.destination, error.kind()), (gateway, packet.source, kind), "{error:?}");
    let quoted = error.quoted()?;
    assert_eq!((quoted.from(), quoted.to()), (packet.from(), packet.to()));
    Ok(())
}

/// RFC 6888 REQ-4: one namespace cannot use up the ports of all.
#[test]
fn ports_have_a_quota() -> Result<()> {
    let bed = Outside::with("--ports-per-ns 3", &[], &["g1", "g2"])?;
    let (g1, g2, at_wan) = (bed.end("g1")?, bed.end("g2")?, bed.end("wan")?);
    let to = remote(false, 1, 443);
    let from = |end: &End, port: u16| datagram(end.endpoint(false, port), to);
    for port in 40000..40003 {
        g1.carry(&from(&g1, port), &at_wan)?;
    }
    g1.drain()?;
    let fourth = from(&g1, 40003);
    bed.drops_one(&g1, &fourth, &[&at_wan], "port-quota")?;
    is_prohibited(&bed, &g1, &fourth)?;
    // The same endpoint to another destination holds no more.
    g1.carry(&datagram(g1.endpoint(false, 40000), remote(false, 2, 443)), &at_wan)?;
    g2.carry(&from(&g2, 41000), &at_wan)?;
    Ok(())
}

/// RFC 6888 REQ-4, REQ-11; P1: established flows stay, new ones are refused, others are not concerned.
#[test]
fn flows_have_a_quota() -> Result<()> {
    let bed = Outside::with("--flows-per-ns 3", &[], &["g1", "g2"])?;
    let (g1, g2, at_wan) = (bed.end("g1")?, bed.end("g2")?, bed.end("wan")?);
    let answered = |end: &End, port: u16| -> Result<bool> {
        let to = remote(false, 1, 443);
        end.drain()?;
        at_wan.drain()?;
        end.send(&datagram(end.endpoint(false, port), to))?;
        let Some(got) = at_wan.receive(Duration::from_millis(500))? else { return Ok(false) };
        at_wan.send(&got.turned())?;
        let answer = end.receive(Duration::from_millis(500))?;
        Ok(answer.is_some_and(|answer| answer.from() == to))
    };
    let mut open = 0;
    for port in 40000..40006 {
        open += u32::from(answered(&g1, port)?);
    }
    assert_eq!(open, 3);
    let refused: u64 =
        bed.drops()?.iter().filter(|((_, reason), _)| reason == "flow-quota").map(|(_, count)| count).sum();
    assert!(refused >= 3, "{:?}", bed.drops()?);
    for port in 40000..40003 {
        assert!(answered(&g1, port)?, "an established flow was broken");
    }
    assert!(answered(&g2, 40000)?, "g2 pays for g1");
    Ok(())
}

/// Conformance A3, CVE-2021-3773, CVE-2019-9946: a service of the host cannot be shadowed by a namespace's source port.
#[test]
fn the_hosts_own_ports_are_not_taken() -> Result<()> {
    let bed = Outside::with("", &[], &["g1"])?;
    let (g1, at_wan, host_ns) = (bed.end("g1")?, bed.end("wan")?, bed.at("host"));
    for v6 in FAMILIES {
        let any = if v6 { "[::]" } else { "0.0.0.0" };
        let (service, listener) = host_ns.run(|| {
            let service = UdpSocket::bind(format!("{any}:5353"))?;
            service.set_read_timeout(Some(Duration::from_secs(5)))?;
            Ok((service, TcpListener::bind(format!("{any}:8000"))?))
        })?;
        let (server, mut buffer) = (remote(v6, 1, 7), [0; 64]);
        let got = g1.carry(&datagram(g1.endpoint(v6, 5353), server), &at_wan)?;
        assert_ne!(got.from().port(), 5353, "the service's port was given away");
        // What the client's server says to the service, the service hears.
        at_wan.send(&datagram(server, SocketAddr::new(host(v6), 5353)))?;
        let (_, peer) = service.recv_from(&mut buffer).context("the host's service hears nothing")?;
        assert_eq!(peer, server);
        g1.assert_silent("the service's datagram")?;

        let got = g1.carry(&syn(g1.endpoint(v6, 8000), server), &at_wan)?;
        assert_ne!(got.from().port(), 8000);
        let knock = syn(server, SocketAddr::new(host(v6), 8000));
        at_wan.drain()?;
        at_wan.send(&knock)?;
        let answer = at_wan.expect("the listener's SYN, ACK")?;
        assert_eq!((answer.from(), answer.flags()), (knock.to(), SYN | ACK));
        drop((service, listener));

        // A connection of the host's own, to the same server as the namespace's.
        let to = SocketAddr::new(wan(v6), 7777);
        let echo = bed.at("wan").run(|| nsnet::lab::UdpEcho::start(to))?;
        let socket = host_ns.run(|| {
            let socket = UdpSocket::bind(format!("{any}:45000"))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            Ok(socket)
        })?;
        socket.send(b"hello")?;
        assert_eq!(socket.recv(&mut buffer)?, 5);
        at_wan.drain()?;
        let got = g1.carry(&datagram(g1.endpoint(v6, 45000), to), &at_wan)?;
        assert_ne!(got.from().port(), 45000, "the host's connection is shadowed");
        socket.send(b"hello")?;
        assert_eq!(socket.recv(&mut buffer).context("the host's connection is cut")?, 5);
        // The echo of its datagram.
        g1.expect("the echo")?;
        drop(echo);
    }
    Ok(())
}

/// RFC 7857 section 9, RFC 6888 REQ-15: ports that are chosen are hard to guess.
#[test]
fn chosen_ports_do_not_count_up() -> Result<()> {
    let bed = Outside::with("", &[], &["g1", "g2"])?;
    let (g1, g2, at_wan) = (bed.end("g1")?, bed.end("g2")?, bed.end("wan")?);
    let to = remote(false, 1, 443);
    let mut chosen = Vec::new();
    for port in 50000..50060 {
        g1.carry(&datagram(g1.endpoint(false, port), to), &at_wan)?;
        chosen.push(g2.carry(&datagram(g2.endpoint(false, port), to), &at_wan)?.from().port());
    }
    assert!(chosen.iter().all(|port| POOL.contains(port)), "{chosen:?}");
    assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), chosen.len(), "a port was given twice: {chosen:?}");
    let steps = chosen.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) <= 16).count();
    assert!(steps < 5, "{steps} neighbours in {chosen:?}");
    // All over the pool: each quarter has some.
    let quarters: BTreeSet<u16> = chosen.iter().map(|port| (port - 16384) / 4096).collect();
    assert_eq!(quarters.len(), 4, "{chosen:?}");
    Ok(())
}

/// RFC 6888 REQ-8: a port that was freed is nobody else's for 120 seconds.
#[test]
fn a_freed_port_rests() -> Result<()> {
    let bed = Outside::with("--timeout udp=1", &[], &["g1", "g2"])?;
    let (g1, g2, at_wan) = (bed.end("g1")?, bed.end("g2")?, bed.end("wan")?);
    let to = remote(false, 1, 443);
    let first = datagram(g1.endpoint(false, 40000), to);
    g1.carry(&first, &at_wan)?;
    super::bed::until(Duration::from_secs(4), || Ok(bed.flow_of(&first)?.is_none())).context("the flow ends")?;
    let got = g2.carry(&datagram(g2.endpoint(false, 40000), to), &at_wan)?;
    assert_ne!(got.from().port(), 40000, "g2 was given g1's port at once");
    // Its owner finds it as it was.
    g1.carry_as(&first, &at_wan, SocketAddr::new(host(false), 40000), to)?;
    Ok(())
}

/// RFC 7857 sections 5 and 6: a mapping is one protocol's.
#[test]
fn a_mapping_admits_no_other_protocol() -> Result<()> {
    let bed = Outside::with("--filtering eif", &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    for v6 in FAMILIES {
        let to = remote(v6, 1, 443);
        let got = g1.carry(&datagram(g1.endpoint(v6, 40000), to), &at_wan)?;
        at_wan.send(&Packet::tcp(to, got.from(), SYN, 1, 0, b""))?;
        at_wan.send(&Packet::sctp(to, got.from(), b""))?;
        let mut request = Packet::ping(to.ip(), got.from().ip(), got.from().port(), b"");
        at_wan.send(&request)?;
        request.body[0] = if v6 { 129 } else { 0 };
        at_wan.send(&request.summed())?;
        g1.assert_silent("another protocol")?;
        at_wan.carry(&got.turned(), &g1)?;
    }
    Ok(())
}

/// RFC 4787 REQ-8, RFC 5382 REQ-3: who may send to a mapped port, in each mode. REQ-11: and always the same.
#[test]
fn filtering_is_as_chosen() -> Result<()> {
    // (option, same host from another port passes, another host passes)
    for (option, other_port, other_host) in [
        ("", false, false),
        ("--filtering apdf", false, false),
        ("--filtering adf", true, false),
        ("--filtering eif", true, true),
    ] {
        let bed = Outside::with(option, &[], &["g1", "g2"])?;
        let (g1, g2, at_wan) = (bed.end("g1")?, bed.end("g2")?, bed.end("wan")?);
        for v6 in FAMILIES {
            let (from, to) = (g1.endpoint(v6, 40000), remote(v6, 1, 443));
            // The clash gives g1 a port of the pool, as if it had not been first.
            g2.carry(&datagram(g2.endpoint(v6, 40000), to), &at_wan)?;
            let external = g1.carry(&datagram(from, to), &at_wan)?.from();
            for _twice in 0..2 {
                for (sender, passes) in [
                    (to, true),
                    (remote(v6, 1, 444), other_port),
                    (remote(v6, 2, 443), other_host),
                    (remote(v6, 3, 9), other_host),
                ] {
                    let packet = datagram(sender, external);
                    let what = || format!("{option:?}: {packet:?}");
                    if passes {
                        at_wan.carry_as(&packet, &g1, sender, from).with_context(what)?;
                        let answer = datagram(from, sender);
                        g1.carry_as(&answer, &at_wan, external, sender).with_context(what)?;
                    } else {
                        bed.drops_one(&at_wan, &packet, &[&g1, &g2], "no-mapping").with_context(what)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// RFC 4787 REQ-9 and 9a, RFC 5508 REQ-7: by way of an external endpoint, with the sender's external endpoint.
#[test]
fn hairpin_between_mapped_ports() -> Result<()> {
    let bed = Outside::with("--filtering eif", &[], &["g1", "g2"])?;
    let (g1, g2, at_wan) = (bed.end("g1")?, bed.end("g2")?, bed.end("wan")?);
    for v6 in FAMILIES {
        let (first, second) = (g1.endpoint(v6, 40000), g2.endpoint(v6, 41000));
        let external = g1.carry(&datagram(first, remote(v6, 1, 443)), &at_wan)?.from();
        let own = SocketAddr::new(host(v6), 41000);
        let got = g2.carry_as(&datagram(second, external), &g1, own, first)?;
        g1.carry_as(&got.turned(), &g2, external, second)?;
        // Errors too.
        let got = g2.carry(&datagram(second, external), &g1)?;
        let error = g1.carry(&got.port_unreachable(), &g2)?;
        assert_eq!((error.source, error.destination), (external.ip(), second.ip()));
        let quoted = error.quoted()?;
        assert_eq!((quoted.from(), quoted.to()), (second, external));
        at_wan.assert_silent("a hairpin's packet")?;
    }
    Ok(())
}

/// Behaviours 14: many flows at once, and every answer comes back to the socket that asked.
#[test]
fn many_flows_of_two_clients() -> Result<()> {
    let bed = Outside::new()?;
    let echo = bed.at("wan").run(|| nsnet::lab::UdpEcho::start(SocketAddr::new(wan(false), 7000)))?;
    let ask = |name: &str| {
        bed.at(name).run(|| {
            (0..200).try_for_each(|n| -> Result<()> {
                let outcome = udp::exchange(echo.addr(), 20 + n, 1, Duration::from_secs(3))?;
                ensure!(outcome.echoed == 1, "datagram {n}: {outcome}");
                Ok(())
            })
        })
    };
    std::thread::scope(|scope| {
        let threads = ["c1", "c2"].map(|name| scope.spawn(move || ask(name)));
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    let peers = echo.peers();
    assert_eq!(peers.len(), peers.iter().collect::<BTreeSet<_>>().len());
    assert!(peers.iter().all(|peer| peer.ip() == host(false)) && peers.len() > 380, "{}", peers.len());
    Ok(())
}

/// P6, RFC 4787 REQ-11: one socket, many servers at once; each answer is right, and the port is one and the same.
#[test]
fn one_socket_to_many_servers() -> Result<()> {
    let bed = Outside::new()?;
    for v6 in FAMILIES {
        let mut servers = Vec::new();
        for number in 0..3 {
            let ip = super::outside_bed::wan_server(v6, number);
            for _ in 0..20 {
                servers.push(bed.at("wan").run(|| nsnet::lab::UdpEcho::start(SocketAddr::new(ip, 0)))?);
            }
        }
        let any = SocketAddr::new(if v6 { "::".parse()? } else { "0.0.0.0".parse()? }, 40000);
        let (first, second) = (bed.at("c1"), bed.at("c2"));
        let sockets = [first, second].map(|client| client.run(|| Ok(UdpSocket::bind(any)?)));
        let mut answered = [BTreeSet::new(), BTreeSet::new()];
        let sockets = sockets.into_iter().collect::<Result<Vec<_>>>()?;
        std::thread::scope(|scope| -> Result<()> {
            let send = |socket: &UdpSocket| {
                servers.iter().try_for_each(|server| socket.send_to(b"hello", server.addr()).map(|_| ()))
            };
            let threads: Vec<_> = sockets.iter().map(|socket| scope.spawn(move || send(socket))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))?;
            Ok(())
        })?;
        for (socket, answered) in sockets.iter().zip(&mut answered) {
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            while answered.len() < servers.len() {
                let (_, from) =
                    socket.recv_from(&mut [0; 16]).with_context(|| format!("{} answers", answered.len()))?;
                ensure!(answered.insert(from), "{from} answered twice");
            }
        }
        let peers: BTreeSet<SocketAddr> = servers.iter().flat_map(nsnet::lab::UdpEcho::peers).collect();
        assert_eq!(peers.len(), 2, "one port for each client, not {peers:?}");
    }
    Ok(())
}
