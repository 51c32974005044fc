//! TCP through source NAT, segment by segment: every valid sequence passes, and nobody ends a connection from aside.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nsnet::lab::{TcpServer, tcp};

use super::bed::until;
use super::outside_bed::{End, FAMILIES, Outside, host, remote, wan};
use super::packet::{ACK, FIN, PSH, Packet, RST, SYN};

/// One end of a conversation: its next sequence number, and what it expects.
#[derive(Clone, Copy)]
struct Side {
    next: u32,
    heard: u32,
}

/// A connection that the ghost inside opens to one outside.
struct Talk<'a> {
    inside: &'a End,
    outside: &'a End,
    client: SocketAddr,
    server: SocketAddr,
    /// The client, as the server sees it.
    external: SocketAddr,
    a: Side,
    b: Side,
}

/// What a segment takes of the sequence numbers.
fn length(flags: u8, payload: &[u8]) -> u32 {
    payload.len() as u32 + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0)
}

impl<'a> Talk<'a> {
    /// Nothing is said yet. The sequence numbers are about to wrap, as every so often.
    fn new(inside: &'a End, outside: &'a End, client: SocketAddr, server: SocketAddr) -> Self {
        let external = SocketAddr::new(host(client.is_ipv6()), client.port());
        let (a, b) = (Side { next: u32::MAX - 2000, heard: 0 }, Side { next: 0x7fff_ff00, heard: 0 });
        Self { inside, outside, client, server, external, a, b }
    }

    /// With the handshake done.
    fn open(inside: &'a End, outside: &'a End, client: SocketAddr, server: SocketAddr) -> Result<Self> {
        let mut talk = Self::new(inside, outside, client, server);
        talk.client(SYN, b"")?;
        talk.server(SYN | ACK, b"")?;
        talk.client(ACK, b"")?;
        Ok(talk)
    }

    /// A segment of the client's, `ahead` of what is next.
    fn client_segment(&self, flags: u8, ahead: i64, payload: &[u8]) -> Packet {
        let seq = self.a.next.wrapping_add(ahead as u32);
        Packet::tcp(self.client, self.server, flags, seq, self.a.heard, payload)
    }

    /// A segment of the server's, as it sends it.
    fn server_segment(&self, flags: u8, ahead: i64, payload: &[u8]) -> Packet {
        let seq = self.b.next.wrapping_add(ahead as u32);
        Packet::tcp(self.server, self.external, flags, seq, self.b.heard, payload)
    }

    /// The client says something, which arrives.
    fn client(&mut self, flags: u8, payload: &[u8]) -> Result<()> {
        let packet = self.client_segment(flags, 0, payload);
        if flags & SYN != 0 {
            // The first segment shows what the client looks like outside.
            self.external = self.inside.carry(&packet, self.outside)?.from();
        } else {
            self.inside.carry_as(&packet, self.outside, self.external, self.server)?;
        }
        self.a.next = self.a.next.wrapping_add(length(flags, payload));
        self.b.heard = self.a.next;
        Ok(())
    }

    /// So does the server.
    fn server(&mut self, flags: u8, payload: &[u8]) -> Result<()> {
        let packet = self.server_segment(flags, 0, payload);
        self.outside.carry_as(&packet, self.inside, self.server, self.client)?;
        self.b.next = self.b.next.wrapping_add(length(flags, payload));
        self.a.heard = self.b.next;
        Ok(())
    }

    /// Both say something.
    fn chat(&mut self) -> Result<()> {
        self.client(ACK | PSH, b"how are you?")?;
        self.server(ACK | PSH, b"fine, and you?")?;
        self.client(ACK, b"")
    }

    fn opener(&self) -> Packet {
        Packet::tcp(self.client, self.server, SYN, 0, 0, b"")
    }
}

/// A bed with one ghost, and its ends.
fn bed(options: &str) -> Result<(Outside, End, End)> {
    let bed = Outside::with(options, &[], &["g1"])?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    Ok((bed, g1, at_wan))
}

/// RFC 5382 REQ-2, RFC 7857 section 2: each state in its turn, one FIN at a time, half closed for as long as one likes.
#[test]
fn from_handshake_to_last_word() -> Result<()> {
    let (bed, g1, at_wan) = bed("")?;
    for v6 in FAMILIES {
        let mut talk = Talk::new(&g1, &at_wan, g1.endpoint(v6, 40000), remote(v6, 1, 80));
        let opener = talk.opener();
        talk.client(SYN, b"")?;
        bed.wait_for_state(&opener, "unreplied")?;
        talk.server(SYN | ACK, b"")?;
        bed.wait_for_state(&opener, "half-open")?;
        talk.client(ACK, b"")?;
        bed.wait_for_state(&opener, "established")?;
        talk.chat()?;
        talk.client(FIN | ACK, b"")?;
        bed.wait_for_state(&opener, "closing")?;
        // Half closed: the server goes on.
        for _ in 0..3 {
            talk.server(ACK | PSH, &[7; 1000])?;
            talk.client(ACK, b"")?;
        }
        talk.server(FIN | ACK, b"the end")?;
        talk.client(ACK, b"")?;
        // A copy of the last FIN is answered again: TIME_WAIT.
        let again = Packet::tcp(talk.server, talk.external, FIN | ACK, talk.b.next.wrapping_sub(1), talk.b.heard, b"");
        at_wan.carry(&again, &g1)?;
        talk.client(ACK, b"")?;
        bed.wait_for_state(&opener, "closing")?;
        let flow = bed.flow_of(&opener)?.context("the flow")?;
        assert_eq!(
            (flow.protocol.as_str(), flow.reply_source, flow.reply_destination),
            ("tcp", talk.server, talk.external)
        );
        assert!((200..=240).contains(&flow.expires), "{flow:?}");
    }
    Ok(())
}

/// RFC 5382 REQ-2: both ends open at once, through the mapping that the inner SYN made.
#[test]
fn simultaneous_open() -> Result<()> {
    let (bed, g1, at_wan) = bed("")?;
    for v6 in FAMILIES {
        let mut talk = Talk::new(&g1, &at_wan, g1.endpoint(v6, 40000), remote(v6, 1, 80));
        let opener = talk.opener();
        talk.client(SYN, b"")?;
        talk.b.heard = 0;
        talk.server(SYN, b"")?;
        talk.b.heard = talk.a.next;
        // Each confirms the other's SYN; its own is repeated with it.
        let (client, server) = (talk.client_segment(SYN | ACK, -1, b""), talk.server_segment(SYN | ACK, -1, b""));
        g1.carry_as(&client, &at_wan, talk.external, talk.server)?;
        at_wan.carry_as(&server, &g1, talk.server, talk.client)?;
        talk.client(ACK, b"")?;
        talk.server(ACK, b"")?;
        talk.chat()?;
        bed.wait_for_state(&opener, "established")?;
    }
    Ok(())
}

/// RFC 5382 REQ-4: a SYN that nobody asked for gets no answer, and does no harm to one that follows from inside.
#[test]
fn an_unsolicited_syn_gets_no_answer() -> Result<()> {
    let (bed, g1, at_wan) = bed("")?;
    for v6 in FAMILIES {
        let server = remote(v6, 1, 80);
        let pool = SocketAddr::new(host(v6), 20000);
        bed.drops_one(&at_wan, &Packet::tcp(server, pool, SYN, 1, 0, b""), &[&g1, &at_wan], "no-mapping")?;
        bed.drops_one(&at_wan, &Packet::tcp(server, pool, ACK, 1, 1, b"x"), &[&g1, &at_wan], "no-mapping")?;
        bed.drops_one(&at_wan, &Packet::udp(server, pool, b"x"), &[&g1, &at_wan], "no-mapping")?;
        // The same port, then from inside.
        let mut talk = Talk::new(&g1, &at_wan, g1.endpoint(v6, 20000), server);
        talk.client(SYN, b"")?;
        talk.server(SYN | ACK, b"")?;
        talk.client(ACK, b"")?;
        talk.chat()?;
    }
    Ok(())
}

/// RFC 7857 section 2.2: a RST within the window passes, either way, and nothing but a SYN revives the connection.
#[test]
fn a_reset_ends_a_connection() -> Result<()> {
    let (bed, g1, at_wan) = bed("")?;
    for v6 in FAMILIES {
        for (port, by_client) in [(40000, true), (40001, false)] {
            let mut talk = Talk::open(&g1, &at_wan, g1.endpoint(v6, port), remote(v6, 1, 80))?;
            let opener = talk.opener();
            talk.chat()?;
            if by_client {
                talk.client(RST, b"")?;
            } else {
                talk.server(RST, b"")?;
            }
            bed.wait_for_state(&opener, "closed")?;
            // Late segments change nothing. Whether they pass is nobody's concern: the ends know.
            g1.send(&talk.client_segment(ACK, 0, b"late"))?;
            at_wan.send(&talk.server_segment(ACK, 0, b"late"))?;
            at_wan.receive(Duration::from_millis(20))?;
            assert_eq!(bed.state_of(&opener)?, "closed");
            // A new connection of the same two endpoints: the port is the same.
            talk.a = Side { next: talk.a.next.wrapping_add(100_000), heard: 0 };
            talk.b = Side { next: 77, heard: 0 };
            talk.client(SYN, b"")?;
            talk.server(SYN | ACK, b"")?;
            talk.client(ACK, b"")?;
            talk.chat()?;
            bed.wait_for_state(&opener, "established")?;
        }
    }
    Ok(())
}

/// RFC 5382 REQ-2: a port in TIME_WAIT is used again by the same client for the same server.
#[test]
fn a_closed_connection_is_opened_again() -> Result<()> {
    let (bed, g1, at_wan) = bed("")?;
    for v6 in FAMILIES {
        let mut talk = Talk::open(&g1, &at_wan, g1.endpoint(v6, 40000), remote(v6, 1, 80))?;
        let opener = talk.opener();
        for _ in 0..3 {
            talk.chat()?;
            talk.client(FIN | ACK, b"")?;
            talk.server(FIN | ACK, b"")?;
            talk.client(ACK, b"")?;
            bed.wait_for_state(&opener, "closing")?;
            talk.a = Side { next: talk.a.next.wrapping_add(70_000), heard: 0 };
            talk.b = Side { next: talk.b.next.wrapping_add(123), heard: 0 };
            talk.client(SYN, b"")?;
            talk.server(SYN | ACK, b"")?;
            talk.client(ACK, b"")?;
            bed.wait_for_state(&opener, "established")?;
        }
        talk.chat()?;
    }
    Ok(())
}

/// RFC 5961, RFC 7857 section 2.2, A6: a RST that is not in the window ends nothing.
#[test]
fn a_blind_reset_ends_nothing() -> Result<()> {
    let (bed, g1, at_wan) = bed("")?;
    for v6 in FAMILIES {
        let mut talk = Talk::open(&g1, &at_wan, g1.endpoint(v6, 40000), remote(v6, 1, 80))?;
        talk.chat()?;
        let opener = talk.opener();
        // Old, and far ahead of a window of 8192 bytes; and a sweep over all numbers.
        let aside = [-1, -1000, -100_000, 70_000_000, 1 << 31];
        let sweep = (1..64).map(|n| n << 26);
        for ahead in aside.into_iter().chain(sweep) {
            at_wan.send(&talk.server_segment(RST, ahead, b""))?;
            at_wan.send(&talk.server_segment(RST | ACK, ahead, b""))?;
        }
        // And from elsewhere, and for elsewhere.
        at_wan.send(&Packet::tcp(remote(v6, 2, 80), talk.external, RST, talk.b.next, talk.b.heard, b""))?;
        at_wan.send(&Packet::tcp(remote(v6, 1, 81), talk.external, RST, talk.b.next, talk.b.heard, b""))?;
        // A SYN for a connection that lives is the end's to refuse, and opens nothing.
        at_wan.send(&talk.server_segment(SYN, 9_000_000, b""))?;
        until(Duration::from_secs(1), || Ok(g1.receive(Duration::from_millis(20))?.is_none()))?;
        assert_eq!(bed.state_of(&opener)?, "established");
        talk.chat()?;
    }
    Ok(())
}

/// RFC 5382 REQ-10, RFC 4787 REQ-12, RFC 5508 REQ-6: no ICMP error ends a connection, nor makes it live longer.
#[test]
fn no_icmp_error_ends_a_connection() -> Result<()> {
    let (bed, g1, at_wan) = bed("")?;
    for v6 in FAMILIES {
        let mut talk = Talk::open(&g1, &at_wan, g1.endpoint(v6, 40000), remote(v6, 1, 80))?;
        talk.chat()?;
        let opener = talk.opener();
        let seen = Packet::tcp(talk.external, talk.server, ACK, talk.a.next.wrapping_sub(1), talk.a.heard, b"x");
        let errors: Vec<(u8, u8)> = if v6 {
            (0..8).map(|code| (1, code)).chain([(3, 0), (4, 0), (4, 1)]).collect()
        } else {
            (0..16).map(|code| (3, code)).chain([(4, 0), (5, 1), (11, 0), (12, 0)]).collect()
        };
        for (kind, code) in errors {
            for from in [talk.server.ip(), wan(v6), remote(v6, 99, 0).ip()] {
                at_wan.send(&seen.error(from, kind, code, 0, 28 + 40))?;
            }
        }
        until(Duration::from_secs(1), || Ok(g1.receive(Duration::from_millis(20))?.is_none()))?;
        assert_eq!(bed.state_of(&opener)?, "established");
        talk.chat()?;
    }
    Ok(())
}

/// Conformance 2.5, first row; k8s 74839, libnetwork 2275: what belongs to no connection is dropped, not passed as it is.
#[test]
fn a_segment_of_no_connection_is_dropped() -> Result<()> {
    let (bed, g1, at_wan) = bed("")?;
    for v6 in FAMILIES {
        let (from, to) = (g1.endpoint(v6, 40000), remote(v6, 1, 80));
        for flags in [ACK, ACK | PSH, FIN | ACK, SYN | ACK, FIN, PSH] {
            bed.drops_one(&g1, &Packet::tcp(from, to, flags, 5, 5, b"data"), &[&at_wan], "no-connection")?;
        }
        bed.drops_one(&g1, &Packet::tcp(from, to, RST, 5, 5, b""), &[&at_wan], "no-connection")?;
        // Far out of the window of one that there is: never untranslated (the guard sees), never its end.
        let mut talk = Talk::open(&g1, &at_wan, from, to)?;
        talk.chat()?;
        for ahead in [-200_000_000, 200_000_000] {
            g1.send(&talk.client_segment(ACK, ahead, b"out of the window"))?;
            g1.send(&talk.client_segment(FIN | ACK, ahead, b"out of the window"))?;
            g1.send(&talk.client_segment(RST, ahead, b""))?;
        }
        until(Duration::from_secs(1), || Ok(at_wan.receive(Duration::from_millis(20))?.is_none()))?;
        talk.chat()?;
    }
    Ok(())
}

/// RFC 7857 section 2, VPP's lesson: a SYN alone, even when it is acknowledged, holds no place of an established one.
#[test]
fn a_handshake_needs_three_steps() -> Result<()> {
    let (bed, g1, at_wan) = bed("--flows-per-ns 1")?;
    let server = remote(false, 1, 80);
    for port in 40000..40010 {
        let mut talk = Talk::new(&g1, &at_wan, g1.endpoint(false, port), server);
        talk.client(SYN, b"")?;
        talk.server(SYN | ACK, b"")?;
    }
    // Ten half-open ones, and yet:
    let mut talk = Talk::open(&g1, &at_wan, g1.endpoint(false, 41000), server)?;
    talk.chat()?;
    bed.wait_for_state(&talk.opener(), "established")?;
    assert_eq!(bed.dropped(&g1.port, "flow-quota")?, 0);
    Ok(())
}

/// RFC 5382 REQ-5: how long each state lasts, as `ct list` tells.
#[test]
fn timeouts_are_those_of_the_rfc() -> Result<()> {
    let (bed, g1, at_wan) = bed("")?;
    let server = remote(false, 1, 80);
    let expires = |packet: &Packet| -> Result<u64> { Ok(bed.flow_of(packet)?.context("no flow")?.expires) };
    let mut talk = Talk::new(&g1, &at_wan, g1.endpoint(false, 40000), server);
    talk.client(SYN, b"")?;
    assert!((230..=240).contains(&expires(&talk.opener())?));
    talk.server(SYN | ACK, b"")?;
    assert!((230..=240).contains(&expires(&talk.opener())?));
    talk.client(ACK, b"")?;
    talk.chat()?;
    assert!((7430..=7440).contains(&expires(&talk.opener())?));
    // Half closed lives on (RFC 6146 section 3.5.2.2); with both FINs the time is short.
    talk.server(FIN | ACK, b"")?;
    assert!((7430..=7440).contains(&expires(&talk.opener())?));
    talk.client(FIN | ACK, b"")?;
    talk.server(ACK, b"")?;
    assert!((230..=240).contains(&expires(&talk.opener())?));
    let udp = Packet::udp(g1.endpoint(false, 40000), remote(false, 1, 443), b"x");
    g1.carry(&udp, &at_wan)?;
    assert!((290..=300).contains(&expires(&udp)?), "RFC 4787 REQ-5");
    // RFC 4787 REQ-5a: shorter for a well-known port, once it is answered.
    let dns = Packet::udp(g1.endpoint(false, 40001), remote(false, 1, 53), b"x");
    let got = g1.carry(&dns, &at_wan)?;
    at_wan.carry(&got.turned(), &g1)?;
    assert!((50..=60).contains(&expires(&dns)?));
    let ping = Packet::ping(g1.ip(false), remote(false, 1, 0).ip(), 9, b"");
    g1.carry(&ping, &at_wan)?;
    assert!((50..=60).contains(&expires(&ping)?), "RFC 5508 REQ-2");
    Ok(())
}

/// The kernels' own TCP: many short connections from one port range, each closed by a different side.
#[test]
fn many_short_connections() -> Result<()> {
    let bed = Outside::new()?;
    for v6 in FAMILIES {
        let server = bed.at("wan").run(|| TcpServer::banner(SocketAddr::new(wan(v6), 0), "short"))?;
        let fetch = |name: &str| {
            bed.at(name).run(|| {
                (0..100).try_for_each(|n| -> Result<()> {
                    let said = tcp::fetch(server.addr()).with_context(|| format!("connection {n}"))?;
                    ensure!(said == "short", "{said}");
                    Ok(())
                })
            })
        };
        std::thread::scope(|scope| {
            let threads = ["c1", "c2"].map(|name| scope.spawn(move || fetch(name)));
            threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
        })?;
        assert!(server.peers().iter().all(|peer| peer.ip() == host(v6)));
    }
    Ok(())
}
