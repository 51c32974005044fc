//! ICMP echo over raw sockets, IPv4 (RFC 792) and IPv6 (RFC 4443).
//!
//! Raw rather than "ping" sockets: those need `net.ipv4.ping_group_range`, and hide ICMP errors a test wants to see.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use super::random::Random;

/// Echo header: type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;
/// The largest payload that fits an IPv4 packet without options.
const MAX_PAYLOAD: usize = 65_535 - 20 - HEADER;

/// What came of a series of echo requests.
#[derive(Clone, Debug, Default)]
pub struct Pings {
    /// Requests that left.
    pub sent: u32,
    /// Replies from the pinged address with the right identifier, sequence number, payload and checksum, in time.
    pub received: u32,
    /// Replies to one of our requests with a wrong payload or checksum.
    pub damaged: u32,
    /// Round-trip time of each reply, in order.
    pub rtt: Vec<Duration>,
    /// ICMP errors that quote one of our requests, in order.
    pub refused: Vec<Refusal>,
}

/// An ICMP error message about one of our requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Who says so.
    pub from: IpAddr,
    /// ICMP type; the numbers of IPv4 and IPv6 differ.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// The next hop's MTU when the packet was too big.
    pub mtu: Option<u32>,
}

/// Sends `count` echo requests one after the other, each waiting up to `timeout` for its reply.
///
/// # Errors
/// When a request cannot be sent (no route, no privilege). Silence is not an error: see [`Pings::received`].
pub fn ping(to: IpAddr, count: u16, payload_len: usize, timeout: Duration) -> Result<Pings> {
    ping_with(&Echo { to: SocketAddr::new(to, 0), count, payload_len, timeout, hop_limit: None })
}

/// Whether it answers one of `tries` echo requests; what a busy machine loses or delays is forgiven.
///
/// # Errors
/// As [`ping`].
pub fn answers(to: IpAddr, tries: u16, timeout: Duration) -> Result<bool> {
    for _ in 0..tries {
        if ping(to, 1, 56, timeout)?.received > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Everything that can be chosen about a series of echo requests.
#[derive(Clone, Copy, Debug)]
pub struct Echo {
    /// The address; the port is ignored. A link-local IPv6 address needs its scope id.
    pub to: SocketAddr,
    /// How many requests.
    pub count: u16,
    /// Bytes after the ICMP header.
    pub payload_len: usize,
    /// How long to wait for each reply.
    pub timeout: Duration,
    /// TTL or hop limit; the namespace's default when `None`.
    pub hop_limit: Option<u8>,
}

/// [`ping`] with every choice open.
///
/// # Errors
/// As [`ping`].
pub fn ping_with(echo: &Echo) -> Result<Pings> {
    ensure!(echo.payload_len <= MAX_PAYLOAD, "an echo request carries at most {MAX_PAYLOAD} bytes");
    let mut to = echo.to;
    to.set_port(0); // a raw IPv6 socket refuses a "port" that is not its protocol
    let socket = open(to, echo.hop_limit)?;
    let identifier = next_identifier();
    let mut pings = Pings::default();
    for sequence in 1..=echo.count {
        let request = request(to.is_ipv6(), identifier, sequence, echo.payload_len);
        let start = Instant::now();
        socket.send_to(&request, to).with_context(|| format!("cannot send an echo request to {}", to.ip()))?;
        pings.sent += 1;
        wait(&socket, to.ip(), &request, start, echo.timeout, &mut pings)?;
    }
    Ok(pings)
}

/// A raw socket dressed as std's `UdpSocket`, whose `send_to` and `recv_from` are plain `sendto` and `recvfrom`: the
/// safe way to them.
fn open(to: SocketAddr, hop_limit: Option<u8>) -> Result<UdpSocket> {
    let (domain, protocol) =
        if to.is_ipv6() { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))
        .context("cannot open a raw ICMP socket (this needs CAP_NET_RAW)")?;
    if let Some(limit) = hop_limit {
        if to.is_ipv6() {
            socket.set_unicast_hops_v6(limit.into())?;
        } else {
            socket.set_ttl_v4(limit.into())?;
        }
    }
    Ok(socket.into())
}

/// Differs for every call of this process and, mostly, between processes: every raw socket in a namespace sees every
/// reply.
fn next_identifier() -> u16 {
    static CALLS: AtomicU16 = AtomicU16::new(0);
    (std::process::id() as u16).wrapping_mul(257).wrapping_add(CALLS.fetch_add(1, Ordering::Relaxed))
}

fn request(v6: bool, identifier: u16, sequence: u16, payload_len: usize) -> Vec<u8> {
    let mut message = vec![0; HEADER + payload_len];
    message[0] = if v6 { 128 } else { 8 };
    message[4..6].copy_from_slice(&identifier.to_be_bytes());
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    Random::new((u64::from(identifier) << 16) | u64::from(sequence)).fill(&mut message[HEADER..]);
    if !v6 {
        // The kernel fills in the ICMPv6 checksum (RFC 3542, section 3.1), not this one.
        let checksum = internet_checksum(&message);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    message
}

/// Reads until the reply to `request` or its time is up.
fn wait(
    socket: &UdpSocket,
    to: IpAddr,
    request: &[u8],
    start: Instant,
    timeout: Duration,
    p: &mut Pings,
) -> Result<()> {
    let mut packet = vec![0; 65_535];
    loop {
        let left = timeout.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        socket.set_read_timeout(Some(left))?;
        let (len, from) = match socket.recv_from(&mut packet) {
            Ok(received) => received,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => continue,
            Err(e) => return Err(e).context("cannot read from the raw ICMP socket"),
        };
        let elapsed = start.elapsed();
        match judge(&packet[..len], from.ip(), to, request) {
            Answer::Unrelated => {}
            Answer::Reply => {
                p.received += 1;
                p.rtt.push(elapsed);
                return Ok(());
            }
            Answer::Damaged => p.damaged += 1,
            Answer::Refused(refusal) => {
                p.refused.push(refusal);
                return Ok(());
            }
        }
    }
}

#[derive(Debug, PartialEq)]
enum Answer {
    Unrelated,
    Reply,
    Damaged,
    Refused(Refusal),
}

/// What a received packet means for `request`. IPv4 raw sockets deliver the IP header too, IPv6 ones do not.
fn judge(packet: &[u8], from: IpAddr, to: IpAddr, request: &[u8]) -> Answer {
    let v6 = to.is_ipv6();
    let Some(message) = (if v6 { Some(packet) } else { after_ipv4_header(packet) }) else { return Answer::Unrelated };
    if message.len() < HEADER {
        return Answer::Unrelated;
    }
    let (reply, is_error) =
        if v6 { (129, matches!(message[0], 1..=4)) } else { (0, matches!(message[0], 3 | 4 | 5 | 11 | 12)) };
    if message[0] == reply && message[4..HEADER] == request[4..HEADER] && from == to {
        // A raw IPv4 socket is served before the kernel's ICMP code verifies anything.
        let intact = message[HEADER..] == request[HEADER..] && (v6 || internet_checksum(message) == 0);
        return if intact { Answer::Reply } else { Answer::Damaged };
    }
    if is_error && quotes(&message[HEADER..], v6, request) {
        let (kind, code) = (message[0], message[1]);
        let mtu = match (v6, kind, code) {
            (false, 3, 4) => Some(u32::from(u16::from_be_bytes([message[6], message[7]]))),
            (true, 2, _) => Some(u32::from_be_bytes([message[4], message[5], message[6], message[7]])),
            _ => None,
        };
        return Answer::Refused(Refusal { from, kind, code, mtu });
    }
    Answer::Unrelated
}

/// Whether the packet inside an ICMP error is ours. Its checksum may have been changed on the way, so type, identifier
/// and sequence number decide.
fn quotes(inner: &[u8], v6: bool, request: &[u8]) -> bool {
    let echo = if v6 { inner.get(40..) } else { after_ipv4_header(inner) };
    echo.and_then(|e| e.get(..HEADER)).is_some_and(|e| e[0] == request[0] && e[4..HEADER] == request[4..HEADER])
}

fn after_ipv4_header(packet: &[u8]) -> Option<&[u8]> {
    packet.get(usize::from(packet.first()? & 0x0f) * 4..)
}

/// The Internet checksum of `bytes` (RFC 1071); zero when they contain their own correct checksum.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let mut sum: u64 = words.map(u64::from).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

impl fmt::Display for Pings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sent, {} received", self.sent, self.received)?;
        if self.damaged > 0 {
            write!(f, ", {} damaged", self.damaged)?;
        }
        if let Some(Refusal { from, kind, code, .. }) = self.refused.first() {
            write!(f, ", {} refused (first by {from}: ICMP type {kind} code {code})", self.refused.len())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
    const ROUTER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn with_ipv4_header(message: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45; 20];
        packet.extend_from_slice(message);
        packet
    }

    fn reply_to(request: &[u8]) -> Vec<u8> {
        let mut reply = request.to_vec();
        reply[0] = 0;
        reply[2..4].fill(0);
        let checksum = internet_checksum(&reply);
        reply[2..4].copy_from_slice(&checksum.to_be_bytes());
        reply
    }

    #[test]
    fn checksum_of_the_rfc_1071_example() {
        assert_eq!(internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(internet_checksum(&[0x12]), !0x1200);
        assert_eq!(internet_checksum(&request(false, 1, 2, 57)), 0);
    }

    #[test]
    fn accepts_only_the_reply_to_this_request() {
        let request = request(false, 9, 1, 40);
        let reply = reply_to(&request);
        assert_eq!(judge(&with_ipv4_header(&reply), TO, TO, &request), Answer::Reply);
        assert_eq!(judge(&with_ipv4_header(&reply), ROUTER, TO, &request), Answer::Unrelated);
        assert_eq!(judge(&with_ipv4_header(&request), TO, TO, &request), Answer::Unrelated);
        assert_eq!(judge(&[0x4f; 20], TO, TO, &request), Answer::Unrelated);
        let mut damaged = reply;
        damaged[20] ^= 0x80;
        assert_eq!(judge(&with_ipv4_header(&damaged), TO, TO, &request), Answer::Damaged);
    }

    #[test]
    fn reads_an_error_about_this_request() {
        let request = request(false, 9, 1, 40);
        let mut error = vec![3, 4, 0, 0, 0, 0, 0x05, 0x78];
        error.extend_from_slice(&with_ipv4_header(&request)[..28]);
        let refusal = Refusal { from: ROUTER, kind: 3, code: 4, mtu: Some(1400) };
        assert_eq!(judge(&with_ipv4_header(&error), ROUTER, TO, &request), Answer::Refused(refusal));
        error.truncate(20);
        assert_eq!(judge(&with_ipv4_header(&error), ROUTER, TO, &request), Answer::Unrelated);
    }
}
