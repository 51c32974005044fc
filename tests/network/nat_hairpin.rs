//! Published ports asked from inside: errors and path MTU on the way round; and what travels in packets is not looked at.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use super::outside_bed::{FAMILIES, Outside, host, remote};
use super::packet::{ACK, Packet, SYN};

/// RFC 5508 REQ-7: an error about a hairpinned packet comes from where the packet was sent to, and quotes it as it was sent.
#[test]
fn errors_come_from_where_was_asked() -> Result<()> {
    let bed = Outside::with("", &[], &["g1", "g2"])?;
    let (g1, g2, at_wan) = (bed.end("g1")?, bed.end("g2")?, bed.end("wan")?);
    bed.lab.nsnet("publish add @g1 8080:80/udp")?;
    bed.lab.nsnet("publish add @g1 8080:80/tcp")?;
    for v6 in FAMILIES {
        let (client, to) = (g2.endpoint(v6, 41_000), SocketAddr::new(host(v6), 8080));
        for ask in [Packet::udp(client, to, b"anybody?"), Packet::tcp(client, to, SYN, 1, 0, b"")] {
            let got = g2.carry(&ask, &g1)?;
            let error = g1.carry(&got.port_unreachable(), &g2)?;
            ensure!((error.source, error.destination) == (to.ip(), client.ip()), "{error:?}");
            let quoted = error.quoted()?;
            ensure!((quoted.from(), quoted.to()) == (client, to), "{quoted:?}");
            ensure!(error.is_error() && quoted.protocol == ask.protocol);
        }
    }
    at_wan.assert_silent("a hairpin's packet")
}

/// RFC 1191, RFC 8201 across a hairpin: the narrower network's MTU is told to who asks by the host's address.
#[test]
fn the_narrower_networks_mtu_is_told() -> Result<()> {
    let mut bed = Outside::with("", &[], &["g1"])?;
    bed.add_network("v-net-1", "--subnet 10.9.0.0/24 fd09::/64 --masquerade --mtu 1280")?;
    bed.add_ghost("v-net-1", "g3")?;
    bed.lab.nsnet("publish add @g3 8080:80/udp")?;
    let (g1, g3) = (bed.end("g1")?, bed.end("g3")?);
    for v6 in FAMILIES {
        let (client, to) = (g1.endpoint(v6, 41_000), SocketAddr::new(host(v6), 8080));
        let headers = if v6 { 48 } else { 28 };
        let asks = |length: usize| Packet::udp(client, to, &vec![9; length - headers]);
        let got = g1.carry(&asks(1280), &g3)?;
        for length in [1281, 1500] {
            g1.drain()?;
            g1.send(&asks(length))?;
            let error = g1.expect("packet too big")?;
            let kind = if v6 { (2, 0) } else { (3, 4) };
            ensure!((error.kind(), error.rest() & 0xffff) == (kind, 1280), "{error:?}");
            let quoted = error.quoted()?;
            ensure!((quoted.from(), quoted.to()) == (client, to), "{quoted:?}");
            g3.assert_silent("what is too long")?;
        }
        // The other way there is room.
        g3.carry(&got.turned(), &g1)?;
    }
    Ok(())
}

/// RFC 4787 REQ-10, RFC 5382 REQ-6, NAT slipstreaming (A8): addresses and ports in what SIP and FTP say stay as they are, and
/// open nothing.
#[test]
fn what_packets_carry_is_not_looked_at() -> Result<()> {
    let bed = Outside::with("", &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    let inside = g1.ip(false);
    let sip = format!(
        "REGISTER sip:example.net SIP/2.0\r\nVia: SIP/2.0/TCP {inside}:5061;branch=z9hG4bK1\r\n\
         Contact: <sip:red@{inside}:5061>\r\nContent-Length: 0\r\n\r\n"
    );
    let ftp = format!("PORT {},{},{}\r\n", inside.to_string().replace('.', ","), 5061 / 256, 5061 % 256);
    for (port, text) in [(5060, sip.as_bytes()), (21, ftp.as_bytes())] {
        let (client, server) = (g1.endpoint(false, 40_000), remote(false, 1, port));
        let external = SocketAddr::new(host(false), 40_000);
        let got = g1.carry_as(&Packet::udp(client, server, text), &at_wan, external, server)?;
        ensure!(got.payload() == text, "UDP to {port}: {got:?}");
        g1.carry(&Packet::tcp(client, server, SYN, 100, 0, b""), &at_wan)?;
        at_wan.carry(&Packet::tcp(server, external, SYN | ACK, 900, 101, b""), &g1)?;
        let said = g1.carry_as(&Packet::tcp(client, server, ACK, 101, 901, text), &at_wan, external, server)?;
        ensure!(said.payload() == text, "TCP to {port}: {said:?}");
        let echoed = at_wan.carry(&Packet::tcp(server, external, ACK, 901, 101 + text.len() as u32, text), &g1)?;
        ensure!(echoed.payload() == text, "TCP from {port}: {echoed:?}");
        // The port that was spoken of is nobody's.
        let before = bed.flows()?.len();
        for stranger in [server, remote(false, 1, 5061), remote(false, 2, 20)] {
            at_wan.send(&Packet::tcp(stranger, SocketAddr::new(host(false), 5061), SYN, 1, 0, b""))?;
            at_wan.send(&Packet::udp(stranger, SocketAddr::new(host(false), 5061), b"let me in"))?;
        }
        g1.assert_silent("a packet to a port that was only spoken of")?;
        ensure!(bed.flows()?.len() == before, "{:?}", bed.flows()?);
    }
    Ok(())
}
