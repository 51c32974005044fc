//! How flows and mappings end, and what changes around them: clocks, `ct flush`, the uplink's address.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nsnet::kernel::netlink::Netlink;
use nsnet::lab::{UdpEcho, udp};

use super::bed::until;
use super::outside_bed::{End, FAMILIES, Outside, host, remote, wan};
use super::packet::{ACK, FIN, Packet, RST, SYN};

const MILLISECOND: Duration = Duration::from_millis(1);

fn datagram(end: &End, v6: bool, port: u16) -> Packet {
    Packet::udp(end.endpoint(v6, port), remote(v6, 1, 443), b"a datagram")
}

/// Waits until the flow is over by its own clock.
fn wait_for_end(bed: &Outside, packet: &Packet) -> Result<()> {
    until(Duration::from_secs(15), || Ok(bed.flow_of(packet)?.is_none())).context("the flow does not end")?;
    Ok(())
}

/// RFC 4787 REQ-5 and REQ-6 with a scaled clock, F3: a flow ends though nothing runs; until then answers pass.
#[test]
fn an_idle_flow_ends() -> Result<()> {
    let bed = Outside::with("--timeout udp=2", &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    for v6 in FAMILIES {
        // A port of the pool, so that late answers are not the host's.
        let packet = datagram(&g1, v6, 20000);
        let got = g1.carry(&packet, &at_wan)?;
        at_wan.carry(&got.turned(), &g1)?;
        wait_for_end(&bed, &packet)?;
        bed.drops_one(&at_wan, &got.turned(), &[&g1], "no-mapping")?;
        // And is made again, with the same port.
        assert_eq!(g1.carry(&packet, &at_wan)?.from(), got.from());
    }
    Ok(())
}

/// RFC 4787 REQ-6: packets from inside refresh, packets from outside do not.
#[test]
fn only_the_inside_refreshes() -> Result<()> {
    let bed = Outside::with("--timeout udp=2", &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    let (kept, left) = (datagram(&g1, false, 20000), datagram(&g1, false, 20001));
    let got = [&kept, &left].map(|packet| g1.carry(packet, &at_wan));
    let [got_kept, got_left] = [&got[0], &got[1]].map(|got| got.as_ref().expect("it arrived").turned());
    let start = Instant::now();
    // Both are answered all the time, one speaks itself.
    while start.elapsed() < Duration::from_millis(4500) {
        at_wan.send(&got_left)?;
        at_wan.send(&got_kept)?;
        g1.send(&kept)?;
        std::thread::sleep(100 * MILLISECOND);
    }
    g1.drain()?;
    at_wan.carry(&got_kept, &g1).context("the flow that was kept alive")?;
    bed.drops_one(&at_wan, &got_left, &[&g1], "no-mapping").context("the flow that was only answered")?;
    Ok(())
}

/// RFC 5508 REQ-6, RFC 7857 section 7.1: errors refresh nothing, whichever way they go.
#[test]
fn errors_refresh_nothing() -> Result<()> {
    let bed = Outside::with("--timeout udp=3", &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    let packet = datagram(&g1, false, 20000);
    let got = g1.carry(&packet, &at_wan)?;
    let answer = at_wan.carry(&got.turned(), &g1)?;
    let start = Instant::now();
    let mut is_over = false;
    while !is_over && start.elapsed() < Duration::from_secs(6) {
        at_wan.send(&got.port_unreachable())?;
        g1.send(&answer.port_unreachable())?;
        std::thread::sleep(100 * MILLISECOND);
        is_over = bed.flow_of(&packet)?.is_none();
    }
    assert!(is_over, "errors kept the flow alive");
    Ok(())
}

/// RFC 5382 REQ-5, RFC 5508 REQ-2 with scaled clocks: each protocol has its own.
#[test]
fn every_protocol_has_its_clock() -> Result<()> {
    let options = "--timeout tcp-established=3 tcp-transitory=1 dns=1 icmp=2 other=1";
    let bed = Outside::with(options, &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    let (client, server) = (g1.endpoint(false, 20000), remote(false, 1, 80));
    // Established, and only begun.
    let syn = Packet::tcp(client, server, SYN, 1, 0, b"");
    let external = g1.carry(&syn, &at_wan)?.from();
    at_wan.carry(&Packet::tcp(server, external, SYN | ACK, 7, 2, b""), &g1)?;
    g1.carry(&Packet::tcp(client, server, ACK, 2, 8, b""), &at_wan)?;
    let begun = Packet::tcp(g1.endpoint(false, 20001), server, SYN, 1, 0, b"");
    g1.carry(&begun, &at_wan)?;
    let dns = Packet::udp(client, remote(false, 1, 53), b"?");
    let got = g1.carry(&dns, &at_wan)?;
    at_wan.carry(&got.turned(), &g1)?;
    let ping = Packet::ping(client.ip(), server.ip(), 20000, b"");
    g1.carry(&ping, &at_wan)?;
    let gre = Packet::new(client.ip(), server.ip(), super::packet::GRE, b"\0\0\x08\0");
    g1.carry(&gre, &at_wan)?;

    let expires = |packet: &Packet, protocol: &str| -> Result<u64> {
        let mut flows = bed.flows()?.into_iter();
        let flow = flows
            .find(|flow| flow.source.ip() == client.ip() && flow.protocol == protocol && flow.source == packet.from());
        Ok(flow.with_context(|| format!("no flow of {packet:?}"))?.expires)
    };
    assert!(expires(&syn, "tcp")? <= 3 && expires(&ping, "icmp")? <= 2);
    // What ends after one second is gone while the others still live.
    until(Duration::from_secs(15), || {
        let flows = bed.flows()?;
        let lives =
            |packet: &Packet| flows.iter().any(|flow| flow.source == packet.from() && flow.destination == packet.to());
        Ok(!lives(&begun) && !lives(&dns))
    })
    .context("those of one second")?;
    until(Duration::from_secs(15), || Ok(bed.flows()?.is_empty())).context("all")?;
    bed.drops_one(&g1, &Packet::tcp(client, server, ACK, 2, 8, b"late"), &[&at_wan], "no-connection")?;
    bed.drops_one(&at_wan, &Packet::tcp(server, external, ACK, 8, 2, b"late"), &[&g1, &at_wan], "no-mapping")?;
    Ok(())
}

/// P5, conformance 2.5: after a flush late packets of both directions are dropped or begin anew; none leaks.
#[test]
fn a_flush_forgets_and_leaks_nothing() -> Result<()> {
    let bed = Outside::with("", &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    for v6 in FAMILIES {
        let (client, server) = (g1.endpoint(v6, 20000), remote(v6, 1, 80));
        let external = g1.carry(&Packet::tcp(client, server, SYN, 1, 0, b""), &at_wan)?.from();
        at_wan.carry(&Packet::tcp(server, external, SYN | ACK, 7, 2, b""), &g1)?;
        g1.carry(&Packet::tcp(client, server, ACK, 2, 8, b""), &at_wan)?;
        let udp = datagram(&g1, v6, 20000);
        let got = g1.carry(&udp, &at_wan)?;
        assert!(!bed.flows()?.is_empty());
        bed.lab.nsnet("ct flush")?;
        assert!(bed.flows()?.is_empty());

        for flags in [ACK, FIN | ACK, RST] {
            bed.drops_one(&g1, &Packet::tcp(client, server, flags, 2, 8, b""), &[&at_wan], "no-connection")?;
        }
        for late in [Packet::tcp(server, external, ACK, 8, 2, b"late"), got.turned()] {
            bed.drops_one(&at_wan, &late, &[&g1, &at_wan], "no-mapping")?;
        }
        bed.drops_one(
            &g1,
            &got.turned().error(g1.ip(v6), if v6 { 1 } else { 3 }, 3, 0, 64),
            &[&at_wan],
            "icmp-unrelated",
        )?;
        g1.carry(&udp, &at_wan)?;
        g1.carry(&Packet::tcp(client, server, SYN, 9, 0, b""), &at_wan)?;
    }
    Ok(())
}

/// Behaviours 13, F9: a change of the uplink's address is followed at once, and the old one is never seen again.
#[test]
fn a_new_address_is_followed() -> Result<()> {
    let bed = Outside::with("", &["c1"], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    let netlink = Netlink::inside(&bed.lab.ns("host")?)?;
    let uplink = netlink.existing_link("uplink")?.index;
    for (v6, old, new) in [(false, "192.168.1.1/24", "192.168.1.7/24"), (true, "fd01::1/64", "fd01::7/64")] {
        let echo = bed.at("wan").run(|| UdpEcho::start(SocketAddr::new(wan(v6), 0)))?;
        let talk = || bed.at("c1").run(|| udp::exchange(echo.addr(), 50, 1, Duration::from_secs(3)));
        assert_eq!(talk()?.echoed, 1);
        let (client, server) = (g1.endpoint(v6, 20000), remote(v6, 1, 80));
        let external = g1.carry(&Packet::tcp(client, server, SYN, 1, 0, b""), &at_wan)?.from();
        at_wan.carry(&Packet::tcp(server, external, SYN | ACK, 7, 2, b""), &g1)?;
        g1.carry(&Packet::tcp(client, server, ACK, 2, 8, b""), &at_wan)?;
        let udp = datagram(&g1, v6, 20000);
        assert_eq!(g1.carry(&udp, &at_wan)?.source, host(v6));

        let new_ip = new.parse::<ipnet::IpNet>()?.addr();
        bed.allow(&[&format!("{new_ip}/{}", if v6 { 128 } else { 32 })])?;
        netlink.add_address(uplink, new.parse()?)?;
        // The kernel takes the other addresses of a subnet away with the first.
        let routes = netlink.routes()?;
        netlink.remove_address(uplink, old.parse()?)?;
        netlink.add_address(uplink, new.parse()?)?;
        for route in routes.iter().filter(|route| route.dest.prefix_len() == 0) {
            netlink.add_route(route)?;
        }
        // A flow asks for its way once a second.
        std::thread::sleep(1100 * MILLISECOND);
        bed.forbid(&format!("{}/{}", host(v6), if v6 { 128 } else { 32 }))?;

        // An old connection cannot go on: its server knows another address.
        let late = Packet::tcp(client, server, ACK, 2, 8, b"still there?");
        bed.drops_one(&g1, &late, &[&at_wan], "address-changed no-connection")?;
        // A datagram of an old flow has the new address, now or with the next one.
        let mut seen = None;
        until(Duration::from_secs(5), || {
            g1.send(&udp)?;
            seen = at_wan.receive(100 * MILLISECOND)?.filter(|packet| packet.protocol == super::packet::UDP);
            Ok(seen.is_some())
        })?;
        assert_eq!(seen.context("nothing")?.source, new_ip);
        // So has everything new.
        assert_eq!(talk()?.echoed, 1);
        assert!(echo.peers().iter().any(|peer| peer.ip() == new_ip), "{:?}", echo.peers());
    }
    Ok(())
}

/// Behaviours 13: the uplink can be named; what the routes send elsewhere is then dropped.
#[test]
fn a_named_uplink_is_the_only_one() -> Result<()> {
    let mut bed = Outside::with("--uplink uplink", &["c1"], &[])?;
    let far = super::outside_bed::far(false);
    assert!(bed.at("c1").reaches(far)?);
    bed.add_network("v-net-1", "--subnet 10.9.0.0/24 --masquerade --uplink link9")
        .err()
        .map_or_else(|| anyhow::bail!("an uplink that is not there is taken"), |_| Ok(()))?;
    // An interface that the route does not lead to.
    let host_ns = Netlink::inside(&bed.lab.ns("host")?)?;
    let end = nsnet::kernel::veth::VethSpec { name: "other0", ..Default::default() };
    let peer = nsnet::kernel::veth::VethSpec { name: "other1", ..Default::default() };
    host_ns.create_veth(&end, &peer, None)?;
    host_ns.set_up(host_ns.existing_link("other0")?.index)?;
    bed.add_network("v-net-1", "--subnet 10.9.0.0/24 --masquerade --uplink other0")?;
    bed.attach("v-net-1", "c3")?;
    assert!(!bed.at("c3").reaches(far)?);
    let c3 = &bed.at("c3").port;
    assert!(bed.dropped(c3, "no-uplink")? > 0, "{:?}", bed.drops()?);
    Ok(())
}

/// A destination that the host has no route to is told to be unreachable, by the gateway.
#[test]
fn no_route_is_told() -> Result<()> {
    let bed = Outside::with("", &[], &["g1"])?;
    let (g1, at_wan, gateway) = (bed.end("g1")?, bed.end("wan")?, bed.at("host"));
    let netlink = Netlink::inside(&bed.lab.ns("host")?)?;
    for route in netlink.routes()?.into_iter().filter(|route| route.dest.prefix_len() == 0) {
        netlink.remove_route(&route)?;
    }
    for (v6, own) in FAMILIES.into_iter().zip(gateway.ips()) {
        let packet = datagram(&g1, v6, 40000);
        g1.drain()?;
        g1.send(&packet)?;
        let error = g1.expect("unreachable")?;
        at_wan.assert_silent("a packet without a way")?;
        assert_eq!((error.source, error.kind()), (own, if v6 { (1, 0) } else { (3, 0) }));
        assert_eq!(error.quoted()?.from(), packet.from());
    }
    Ok(())
}

/// Behaviours 13: a fixed source, as netavark's outbound_addr and Docker's host_ipv4.
#[test]
fn a_source_can_be_fixed() -> Result<()> {
    let lab_address = ["192.168.1.77/24", "fd01::77/64"];
    let mut bed = Outside::with("", &["c1"], &[])?;
    bed.allow(&["192.168.1.77/32", "fd01::77/128"])?;
    let netlink = Netlink::inside(&bed.lab.ns("host")?)?;
    for address in lab_address {
        netlink.add_address(netlink.existing_link("uplink")?.index, address.parse()?)?;
    }
    bed.add_network("v-net-1", "--subnet 10.9.0.0/24 fd09::/64 --masquerade --snat-source 192.168.1.77 fd01::77")?;
    bed.attach("v-net-1", "c3")?;
    for (v6, address) in FAMILIES.into_iter().zip(lab_address) {
        let fixed = address.parse::<ipnet::IpNet>()?.addr();
        // c1 has what the route says: with two addresses of a subnet, either.
        for (client, sources) in [("c1", vec![host(v6), fixed]), ("c3", vec![fixed])] {
            let echo = bed.at("wan").run(|| UdpEcho::start(SocketAddr::new(wan(v6), 0)))?;
            let outcome = bed.at(client).run(|| udp::exchange(echo.addr(), 100, 2, Duration::from_secs(1)))?;
            assert_eq!(outcome.echoed, 2, "{client}: {outcome}");
            assert!(echo.peers().iter().all(|peer| sources.contains(&peer.ip())), "{client}: {:?}", echo.peers());
        }
    }
    Ok(())
}
