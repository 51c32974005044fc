//! Fragments through NAT: in any order, of every protocol, and what hostile ones may not do.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nsnet::lab::ping::ping;
use nsnet::lab::{UdpEcho, udp};

use super::outside_bed::{End, FAMILIES, Outside, host, remote, wan};
use super::packet::{Packet, SYN};

const SECOND: Duration = Duration::from_secs(1);
/// Every order that three pieces can come in.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

fn ghosts() -> Result<(Outside, End, End, End)> {
    let bed = Outside::with("", &[], &["g1", "g2"])?;
    let (g1, g2, at_wan) = (bed.end("g1")?, bed.end("g2")?, bed.end("wan")?);
    Ok((bed, g1, g2, at_wan))
}

/// Sends the pieces of `packet` in this order; what they make up at the other end.
fn carry_pieces(from: &End, packet: &Packet, order: [usize; 3], to: &End) -> Result<Packet> {
    let pieces = packet.fragments(&[504, 1000]);
    to.drain()?;
    for at in order {
        from.send(&pieces[at])?;
    }
    let mut parts = Vec::new();
    loop {
        let part = to.receive(3 * SECOND)?.with_context(|| format!("order {order:?}: only {parts:?} arrived"))?;
        // A kernel may have put it together on the way.
        let whole = if part.fragment.is_none() { Some(part.clone()) } else { None };
        parts.push(part);
        if let Some(whole) = whole.or_else(|| Packet::joined(&parts)) {
            whole.check()?;
            return Ok(whole);
        }
    }
}

/// RFC 4787 REQ-14, RFC 6146 section 3.4: all orders, both directions, UDP and ICMP, IPv4 and IPv6.
#[test]
fn fragments_pass_in_any_order() -> Result<()> {
    let (_bed, g1, _g2, at_wan) = ghosts()?;
    let payload: Vec<u8> = (0..1400_u32).map(|n| (n % 251) as u8).collect();
    let mut wrong = Vec::new();
    let mut id = 0x0100;
    for v6 in FAMILIES {
        let (from, to) = (g1.endpoint(v6, 40000), remote(v6, 1, 443));
        let external = SocketAddr::new(host(v6), 40000);
        let cases =
            [("UDP", Packet::udp(from, to, &payload)), ("ICMP", Packet::ping(from.ip(), to.ip(), 40000, &payload))];
        for (name, packet) in cases {
            for order in ORDERS {
                let mut passes =
                    |packet: &Packet, from: &End, to: &End, ends: (SocketAddr, SocketAddr)| -> Result<Packet> {
                        id += 1;
                        let packet = Packet { id, whole: false, ..packet.clone() };
                        let got = carry_pieces(from, &packet, order, to)?;
                        let addresses = (got.source, got.destination) == (ends.0.ip(), ends.1.ip());
                        ensure!(
                            addresses && got.ports().0 == ends.0.port() && got.payload() == payload,
                            "it became {got:?}"
                        );
                        Ok(got)
                    };
                let out_ends = (external, to);
                let got = match passes(&packet, &g1, &at_wan, out_ends) {
                    Ok(got) => got,
                    Err(error) => {
                        wrong.push(format!("{name}, out, IPv6 {v6}, {order:?}: {error:#}"));
                        g1.carry(
                            &Packet { body: packet.clone().damaged(|body| body.truncate(8)).body, ..packet.clone() },
                            &at_wan,
                        )
                        .ok();
                        continue;
                    }
                };
                let (answer, ends) = if name == "UDP" {
                    (got.turned(), (to, from))
                } else {
                    (got.pong(), (SocketAddr::new(to.ip(), 40000), from))
                };
                if let Err(error) = passes(&answer, &at_wan, &g1, ends) {
                    wrong.push(format!("{name}, in, IPv6 {v6}, {order:?}: {error:#}"));
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "{} of 48 failed:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// The same to a published port, whose first packet is a fragment.
#[test]
fn a_published_port_takes_fragments_in_any_order() -> Result<()> {
    let (bed, g1, _g2, at_wan) = ghosts()?;
    bed.lab.nsnet("publish add @g1 8080:80/udp")?;
    for v6 in FAMILIES {
        for (number, order) in ORDERS.into_iter().enumerate() {
            let client = remote(v6, 9, 50000 + number as u16);
            let mut knock = Packet::udp(client, SocketAddr::new(host(v6), 8080), &[9; 1400]);
            knock.id = 0x700 + number as u32;
            let got = carry_pieces(&at_wan, &knock, order, &g1).with_context(|| format!("IPv6 {v6}"))?;
            assert_eq!((got.from(), got.to()), (client, g1.endpoint(v6, 80)));
            let answer = carry_pieces(&g1, &got.turned(), order, &at_wan)?;
            assert_eq!((answer.from(), answer.to()), (SocketAddr::new(host(v6), 8080), client));
        }
    }
    Ok(())
}

/// RFC 7857 section 10, RFC 6864: two namespaces' fragments with one identification to one host are not mixed.
#[test]
fn equal_identifications_are_not_mixed() -> Result<()> {
    let (_bed, g1, g2, at_wan) = ghosts()?;
    for v6 in FAMILIES {
        let to = remote(v6, 1, 443);
        let pieces = |end: &End, byte: u8| {
            let packet = Packet::udp(end.endpoint(v6, 40000 + u16::from(byte)), to, &[byte; 1400]);
            packet.fragments(&[504, 1000])
        };
        let (ones, twos) = (pieces(&g1, 1), pieces(&g2, 2));
        at_wan.drain()?;
        for (one, two) in ones.iter().zip(&twos) {
            g1.send(one)?;
            g2.send(two)?;
        }
        let parts = at_wan.collect(SECOND)?;
        // As a host would put them together: by addresses, protocol and identification.
        let mut wholes: Vec<Packet> = parts.iter().filter(|part| part.fragment.is_none()).cloned().collect();
        let mut ids: Vec<u32> = parts.iter().filter(|part| part.fragment.is_some()).map(|part| part.id).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let of_id: Vec<Packet> =
                parts.iter().filter(|part| part.fragment.is_some() && part.id == id).cloned().collect();
            ensure!(of_id.len() == 3, "IPv6 {v6}: {} fragments have one identification: {of_id:?}", of_id.len());
            wholes.extend(Packet::joined(&of_id));
        }
        assert_eq!(wholes.len(), 2, "{parts:?}");
        for whole in wholes {
            whole.check()?;
            let byte = (whole.ports().0 - 40000) as u8;
            assert!(whole.payload().iter().all(|each| *each == byte), "mixed");
        }
    }
    Ok(())
}

/// RFC 1858, RFC 3128: a transport header in two pieces, and one that is written over, get nowhere.
#[test]
fn tiny_and_overlapping_fragments_are_dropped() -> Result<()> {
    let (bed, g1, _g2, at_wan) = ghosts()?;
    for v6 in FAMILIES {
        let (from, to) = (g1.endpoint(v6, 20000), remote(v6, 1, 80));
        let syn = Packet::tcp(from, to, SYN, 1, 0, &[0; 64]);
        let [tiny, ..] = &syn.fragments(&[8, 24])[..] else { unreachable!() };
        bed.drops_one(&g1, tiny, &[&at_wan], "fragment-tiny")?;
        // A later one that begins within the header of the first (offset 8, RFC 3128 section 4).
        let overlap = Packet { fragment: Some((8, false)), ..syn.fragments(&[16])[1].clone() };
        bed.drops_one(&g1, &overlap, &[&at_wan], "fragment-tiny fragment-unknown")?;
        let from_outside = Packet::tcp(to, SocketAddr::new(host(v6), 20000), SYN, 1, 0, &[0; 64]);
        at_wan.send(&from_outside.fragments(&[8, 24])[0])?;
        at_wan.send(&Packet { fragment: Some((8, false)), ..from_outside.fragments(&[16])[1].clone() })?;
        g1.assert_silent("a piece of a header")?;
        // Whatever becomes of overlapping data, nobody receives a datagram made of both.
        let datagram = Packet::udp(from, to, &[1; 1000]);
        let pieces = datagram.fragments(&[504]);
        let mut lie = pieces[1].clone();
        lie.fragment = Some((496, true));
        lie.body = vec![2; 256];
        at_wan.drain()?;
        for piece in [&pieces[0], &lie, &pieces[1]] {
            g1.send(piece)?;
        }
        let parts = at_wan.collect(Duration::from_millis(100))?;
        ensure!(parts.iter().all(|part| part.fragment.is_some()), "{parts:?} was put together");
    }
    Ok(())
}

/// P8, RFC 4787 REQ-14a: orphans from either side cost others nothing, and are not kept for ever.
#[test]
fn a_flood_of_orphans_costs_others_nothing() -> Result<()> {
    let bed = Outside::with("", &["c1"], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    let echo = bed.at("wan").run(|| UdpEcho::start(SocketAddr::new(wan(false), 0)))?;
    let normal = || -> Result<()> {
        let outcome = bed.at("c1").run(|| udp::exchange(echo.addr(), 8000, 5, SECOND))?;
        ensure!(outcome.echoed == 5, "{outcome}");
        let pings = bed.at("c1").run(|| ping(wan(false), 3, 8000, SECOND))?;
        ensure!(pings.received == 3, "{pings}");
        Ok(())
    };
    normal()?;
    for v6 in FAMILIES {
        let out = Packet::udp(g1.endpoint(v6, 20000), remote(v6, 1, 443), &[0; 200]).fragments(&[104]).swap_remove(1);
        let inward = Packet::udp(remote(v6, 1, 443), SocketAddr::new(host(v6), 20000), &[0; 200])
            .fragments(&[104])
            .swap_remove(1);
        for id in 0..10_000 {
            g1.send(&Packet { id, ..out.clone() })?;
            at_wan.send(&Packet { id, ..inward.clone() })?;
        }
        normal().with_context(|| format!("IPv6 {v6}"))?;
    }
    Ok(())
}

/// What belongs to no flow does not get in by being cut.
#[test]
fn fragments_are_no_way_in() -> Result<()> {
    let (bed, g1, _g2, at_wan) = ghosts()?;
    for v6 in FAMILIES {
        for to in [g1.endpoint(v6, 80), SocketAddr::new(host(v6), 20000)] {
            let packet = Packet::udp(remote(v6, 9, 50000), to, &[0; 1200]);
            for order in [[0, 1, 2], [2, 1, 0]] {
                let pieces = packet.fragments(&[504, 1000]);
                for at in order {
                    at_wan.send(&pieces[at])?;
                }
            }
            g1.assert_silent("a fragment of nobody's")?;
        }
    }
    assert_eq!(bed.flows()?.len(), 0);
    Ok(())
}
