//! UDP datagrams that can be verified one by one; [`super::gso`] sends them in bursts.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::random::{is_keyed_payload, keyed_payload};
use super::{PATIENCE, STOP_INTERVAL};

/// The largest payload of a UDP datagram over IPv4.
pub(super) const MAX_PAYLOAD: usize = 65_507;
/// Peers remembered.
const MAX_PEERS: usize = 4_096;
/// Receive buffer: holds a burst of a few thousand small datagrams while the reading thread waits for a CPU.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What came of a series of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpOutcome {
    /// Datagrams that left.
    pub sent: u32,
    /// Datagrams that came back unchanged, from the address they were sent to.
    pub echoed: u32,
    /// Datagrams that came back changed.
    pub damaged: u32,
    /// Times an ICMP error came instead (nobody listens, or a filter rejects).
    pub refused: u32,
}

/// Sends `count` datagrams one after the other to a [`UdpEcho`] at `to`, each waiting up to `timeout` for its echo.
///
/// The socket is connected: an answer from any other address is not seen, which is what a client behind NAT needs.
///
/// # Errors
/// When a datagram cannot be sent (no route). Silence is not an error: see [`UdpOutcome::echoed`].
pub fn exchange(to: SocketAddr, payload_len: usize, count: u32, timeout: Duration) -> Result<UdpOutcome> {
    exchange_from(unspecified(to), to, payload_len, count, timeout)
}

/// [`exchange`] from an address or port of one's own; zeros leave it to the kernel.
///
/// # Errors
/// As [`exchange`], and when `from` is taken.
pub fn exchange_from(
    from: SocketAddr,
    to: SocketAddr,
    payload_len: usize,
    count: u32,
    timeout: Duration,
) -> Result<UdpOutcome> {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let first_seed = CALLS.fetch_add(1, Ordering::Relaxed) << 32;
    ensure!(payload_len <= MAX_PAYLOAD, "a UDP datagram carries at most {MAX_PAYLOAD} bytes");
    let socket = connect_from(from, to)?;
    let mut outcome = UdpOutcome::default();
    let mut got = vec![0; MAX_PAYLOAD];
    for n in 0..count {
        let payload = keyed_payload(first_seed | u64::from(n), payload_len);
        let deadline = Instant::now() + timeout;
        match socket.send(&payload) {
            // An ICMP error about the datagram before: this one did not leave.
            Err(e) if is_refusal(&e) => {
                outcome.refused += 1;
                continue;
            }
            sent => sent.with_context(|| format!("cannot send a datagram of {payload_len} bytes to {to}"))?,
        };
        outcome.sent += 1;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            match socket.recv(&mut got) {
                Ok(len) if got[..len] == payload => outcome.echoed += 1,
                // The late echo of an earlier datagram is unchanged too, and not the one waited for.
                Ok(len) if len >= 8 && is_keyed_payload(&got[..len]) => continue,
                Ok(_) => outcome.damaged += 1,
                Err(e) if is_timeout(&e) => continue,
                Err(e) if is_refusal(&e) => outcome.refused += 1,
                Err(e) => return Err(e).with_context(|| format!("cannot receive from {to}")),
            }
            break;
        }
    }
    Ok(outcome)
}

/// Sends every datagram back to where it came from, from the network namespace it was started in. Bound to an
/// unspecified address, the route decides the answer's source: name the address where that matters.
#[derive(Debug)]
pub struct UdpEcho {
    addr: SocketAddr,
    peers: Arc<Mutex<Vec<SocketAddr>>>,
    _service: Service,
}

impl UdpEcho {
    /// Starts answering.
    ///
    /// # Errors
    /// When it cannot bind `addr`.
    pub fn start(addr: SocketAddr) -> Result<UdpEcho> {
        let socket = bind(addr)?;
        let addr = socket.local_addr()?;
        let peers = Arc::<Mutex<Vec<SocketAddr>>>::default();
        let service = Service::start(socket, {
            let peers = Arc::clone(&peers);
            move |socket, payload, from| {
                let mut seen = peers.lock().unwrap_or_else(PoisonError::into_inner);
                if seen.len() < MAX_PEERS && !seen.contains(&from) {
                    seen.push(from);
                }
                drop(seen);
                // What cannot be answered is missing at the client, which reports it.
                socket.send_to(payload, from).ok();
            }
        })?;
        Ok(UdpEcho { addr, peers, _service: service })
    }

    /// Where it is bound; with the port that was chosen when port 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The different senders so far, as the server sees them: after source NAT, the translator's.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A thread that reads a socket until it is dropped.
#[derive(Debug)]
pub(super) struct Service {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    pub(super) fn start(
        socket: UdpSocket,
        mut on_datagram: impl FnMut(&UdpSocket, &[u8], SocketAddr) + Send + 'static,
    ) -> Result<Service> {
        socket.set_read_timeout(Some(STOP_INTERVAL))?;
        let stop = Arc::<AtomicBool>::default();
        let thread = thread::Builder::new().name("udp server".into()).spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut buffer = vec![0; 65_535];
                while !stop.load(Ordering::Relaxed) {
                    // Errors are timeouts, or ICMP about an earlier answer: neither ends the service.
                    if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                        on_datagram(&socket, &buffer[..len], from);
                    }
                }
            }
        })?;
        Ok(Service { stop, thread: Some(thread) })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread shows as missing datagrams.
            thread.join().ok();
        }
    }
}

/// A bound socket with a large receive buffer; IPv6 ones take IPv6 only.
pub(super) fn bind(addr: SocketAddr) -> Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Beyond net.core.rmem_max with CAP_NET_ADMIN; without, what the system allows must do.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.bind(&addr.into()).with_context(|| format!("cannot bind UDP {addr}"))?;
    Ok(socket.into())
}

/// A socket that sends to, and receives from, `to` only.
pub(super) fn connect(to: SocketAddr) -> Result<UdpSocket> {
    connect_from(unspecified(to), to)
}

fn connect_from(from: SocketAddr, to: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(from).with_context(|| format!("cannot open a UDP socket at {from}"))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.connect(to).with_context(|| format!("no way to {to}"))?;
    Ok(socket)
}

/// Any address and port of the same family.
fn unspecified(to: SocketAddr) -> SocketAddr {
    let any = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    SocketAddr::new(any, 0)
}

pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Whether this is an ICMP error for a connected socket rather than trouble of our own.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::PermissionDenied)
}

impl fmt::Display for UdpOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sent, {} echoed", self.sent, self.echoed)?;
        for (count, what) in [(self.damaged, "damaged"), (self.refused, "refused")] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn exchanges_over_loopback() {
        let server = UdpEcho::start(LOOPBACK).unwrap();
        for len in [0, 1, 64, MAX_PAYLOAD] {
            let outcome = exchange(server.addr(), len, 3, PATIENCE).unwrap();
            assert_eq!(outcome, UdpOutcome { sent: 3, echoed: 3, ..UdpOutcome::default() });
        }
        assert_eq!(server.peers().len(), 4);
        assert!(exchange(server.addr(), MAX_PAYLOAD + 1, 1, PATIENCE).is_err());
    }

    #[test]
    fn reports_that_nobody_listens() {
        let gone = UdpEcho::start(LOOPBACK).unwrap().addr();
        let outcome = exchange(gone, 10, 2, PATIENCE).unwrap();
        assert_eq!((outcome.echoed, outcome.refused), (0, 2));
    }
}
