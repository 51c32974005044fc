//! TCP streams whose every byte is accounted for, in both directions.
//!
//! Writes are large, so that the sending stack hands 64 KB segments with partial checksums to the path under test: the
//! case that a packet rewriter gets wrong first.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::digest::Digest;
use super::random::Random;
use super::{PATIENCE, STOP_INTERVAL};

/// One write: as large as a segment before segmentation offload cuts it. A multiple of eight, see [`Random::fill`].
const BLOCK: usize = 64 * 1024;
/// Connections served at once; more are closed unanswered.
const MAX_CONNECTIONS: usize = 256;
/// Peers remembered.
const MAX_PEERS: usize = 4_096;
/// How long one [`transfer`] may take altogether.
const TRANSFER_LIMIT: Duration = Duration::from_secs(60);
/// The longest text [`fetch`] reads.
const MAX_BANNER: u64 = 64 * 1024;

/// A server in the network namespace it was started in. Dropping it closes its connections and ends its threads.
#[derive(Debug)]
pub struct TcpServer {
    addr: SocketAddr,
    listener: Arc<TcpListener>,
    stop: Arc<AtomicBool>,
    peers: Arc<Mutex<Vec<SocketAddr>>>,
    thread: Option<JoinHandle<()>>,
}

impl TcpServer {
    /// The server for [`transfer`]: reads each connection to its end, answers with length and digest of what it read,
    /// then sends as many bytes back, which follow from the digest.
    ///
    /// # Errors
    /// When it cannot listen on `addr`.
    pub fn start(addr: SocketAddr) -> Result<TcpServer> {
        TcpServer::serve(addr, Arc::new(serve_digest))
    }

    /// The server for [`fetch`]: says `text` to each connection and closes it.
    ///
    /// # Errors
    /// When it cannot listen on `addr`.
    pub fn banner(addr: SocketAddr, text: &str) -> Result<TcpServer> {
        let text = text.to_owned();
        TcpServer::serve(addr, Arc::new(move |stream| stream.write_all(text.as_bytes())))
    }

    /// Where it listens; with the port that was chosen when port 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The far ends of all connections so far, as the server sees them: after source NAT, the translator's.
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn serve(addr: SocketAddr, service: Arc<Service>) -> Result<TcpServer> {
        let listener = listen(addr)?;
        // Also the accepted sockets inherit it.
        ask_cubic(&listener).ok();
        let listener = Arc::new(TcpListener::from(listener));
        let addr = listener.local_addr()?;
        let (stop, peers) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<SocketAddr>>>::default());
        let thread = thread::Builder::new().name("tcp server".into()).spawn({
            let (listener, stop, peers) = (Arc::clone(&listener), Arc::clone(&stop), Arc::clone(&peers));
            move || accept(&listener, &stop, &peers, &service)
        })?;
        Ok(TcpServer { addr, listener, stop, peers, thread: Some(thread) })
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the accept; should that fail, its timeout ends it.
        SockRef::from(&*self.listener).shutdown(Shutdown::Both).ok();
        if let Some(thread) = self.thread.take() {
            // A panic of the server's thread shows as a failed transfer.
            thread.join().ok();
        }
    }
}

type Service = dyn Fn(&mut TcpStream) -> io::Result<()> + Send + Sync;

/// Sends `bytes` pseudo-random bytes to a [`TcpServer::start`] at `to`, and checks that it received exactly those and
/// that exactly the expected ones come back.
///
/// # Errors
/// When the connection fails, stalls, ends early, or any byte differs; the message says which.
pub fn transfer(to: SocketAddr, bytes: u64) -> Result<()> {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let seed = CALLS.fetch_add(1, Ordering::Relaxed);
    let mut stream = connect(to)?;
    let deadline = Instant::now() + TRANSFER_LIMIT;
    let mut digest = Digest::default();
    stream_out(&mut stream, seed, bytes, Some(deadline), &mut digest)
        .with_context(|| format!("sending {bytes} bytes to {to} stopped after {}", digest.len))?;
    stream.shutdown(Shutdown::Write).with_context(|| format!("cannot end the stream to {to}"))?;

    let mut answer = [0; 16];
    stream.read_exact(&mut answer).with_context(|| format!("{to} gave no answer to {bytes} bytes"))?;
    let (len, sum) = answer.split_at(8);
    ensure!(len == bytes.to_be_bytes(), "{to} received {} of {bytes} bytes", number(len));
    ensure!(sum == digest.sum.to_be_bytes(), "{to} received {bytes} bytes, but not those that were sent");

    let mut random = Random::new(digest.sum);
    let (mut expected, mut got) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut left = bytes;
    while left > 0 {
        ensure!(Instant::now() < deadline, "{to} is too slow: {left} of {bytes} bytes are missing");
        let len = left.min(BLOCK as u64) as usize;
        random.fill(&mut expected[..len]);
        stream
            .read_exact(&mut got[..len])
            .with_context(|| format!("{to} stopped with {left} of {bytes} bytes still to come"))?;
        ensure!(got[..len] == expected[..len], "{to} sent {bytes} bytes back, but not the right ones");
        left -= len as u64;
    }
    ensure!(stream.read(&mut got)? == 0, "{to} sent more than {bytes} bytes back");
    Ok(())
}

/// What the server at `to` says on a new connection, up to its end.
///
/// # Errors
/// When nobody answers there, the connection breaks, or the text is not UTF-8.
pub fn fetch(to: SocketAddr) -> Result<String> {
    let mut text = String::new();
    let stream = connect(to)?;
    stream.take(MAX_BANNER).read_to_string(&mut text).with_context(|| format!("reading from {to} failed"))?;
    Ok(text)
}

/// A listening socket, not yet used for anything; IPv6 ones take IPv6 only.
pub(super) fn listen(addr: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?; // a test that runs twice meets its own TIME_WAIT
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_read_timeout(Some(STOP_INTERVAL))?;
    socket.bind(&addr.into()).with_context(|| format!("cannot bind TCP {addr}"))?;
    socket.listen(128).with_context(|| format!("cannot listen on TCP {addr}"))?;
    Ok(socket)
}

/// A connection with timeouts; cubic where the kernel has it.
pub(super) fn connect(to: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    // What is transferred is the same under any algorithm; only a measurement insists.
    ask_cubic(&socket).ok();
    socket.connect_timeout(&to.into(), PATIENCE).with_context(|| format!("cannot connect to {to}"))?;
    set_timeouts(&socket, PATIENCE)?;
    Ok(socket.into())
}

/// Asks for cubic on this socket: a namespace may default to bbr, whose pacing hides what a path could carry, and may
/// not allow cubic as its default.
pub(super) fn ask_cubic(socket: &Socket) -> Result<()> {
    socket.set_tcp_congestion(b"cubic").context("cannot use cubic congestion control on a socket")
}

pub(super) fn set_timeouts(socket: &Socket, timeout: Duration) -> io::Result<()> {
    socket.set_read_timeout(Some(timeout))?;
    socket.set_write_timeout(Some(timeout))
}

/// Accepts until told to stop, each connection in a thread of its own, then ends those too.
fn accept(listener: &TcpListener, stop: &AtomicBool, peers: &Mutex<Vec<SocketAddr>>, service: &Arc<Service>) {
    let mut open: VecDeque<(TcpStream, JoinHandle<()>)> = VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        let accepted = listener.accept();
        open.retain(|(_, thread)| !thread.is_finished());
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) if e.kind() == ErrorKind::WouldBlock => continue,
            // A connection that broke before it was accepted, or the shutdown in `drop`.
            Err(_) => {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
        };
        let mut seen = peers.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < MAX_PEERS {
            seen.push(peer);
        }
        drop(seen);
        if open.len() < MAX_CONNECTIONS
            && let Ok(connection) = spawn(stream, Arc::clone(service))
        {
            open.push_back(connection);
        }
    }
    for (stream, thread) in open {
        stream.shutdown(Shutdown::Both).ok();
        thread.join().ok();
    }
}

fn spawn(mut stream: TcpStream, service: Arc<Service>) -> io::Result<(TcpStream, JoinHandle<()>)> {
    set_timeouts(&SockRef::from(&stream), PATIENCE)?;
    let handle = stream.try_clone()?;
    let thread = thread::Builder::new().name("tcp connection".into()).spawn(move || {
        // A broken connection is the client's to report: it knows what it expected.
        service(&mut stream).ok();
        // The other handle still holds the connection open.
        stream.shutdown(Shutdown::Both).ok();
    })?;
    Ok((handle, thread))
}

fn serve_digest(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BLOCK];
    let mut received = Digest::default();
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            len => received.update(&buffer[..len]),
        }
    }
    let mut answer = [0; 16];
    answer[..8].copy_from_slice(&received.len.to_be_bytes());
    answer[8..].copy_from_slice(&received.sum.to_be_bytes());
    stream.write_all(&answer)?;
    stream_out(stream, received.sum, received.len, None, &mut Digest::default()).map_err(io::Error::other)
}

/// Writes the first `bytes` bytes of a seed's sequence, and adds each written block to `sent`.
fn stream_out(
    stream: &mut TcpStream,
    seed: u64,
    bytes: u64,
    deadline: Option<Instant>,
    sent: &mut Digest,
) -> Result<()> {
    let mut random = Random::new(seed);
    let mut block = vec![0; BLOCK];
    while sent.len < bytes {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            bail!("it took longer than {} s", TRANSFER_LIMIT.as_secs());
        }
        let len = (bytes - sent.len).min(BLOCK as u64) as usize;
        random.fill(&mut block[..len]);
        stream.write_all(&block[..len])?;
        sent.update(&block[..len]);
    }
    Ok(())
}

fn number(bytes: &[u8]) -> impl fmt::Display {
    bytes.iter().fold(0_u64, |n, byte| (n << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    #[test]
    fn transfers_over_loopback() {
        let server = TcpServer::start(LOOPBACK).unwrap();
        for bytes in [0, 1, 100_000, 1_000_000] {
            transfer(server.addr(), bytes).unwrap();
        }
        assert_eq!(server.peers().len(), 4);
    }

    #[test]
    fn notices_a_server_that_answers_wrongly() {
        let server = TcpServer::banner(LOOPBACK, "sixteen bytes or more").unwrap();
        assert_eq!(fetch(server.addr()).unwrap(), "sixteen bytes or more");
        // Either the answer is seen to be wrong, or the connection is reset first for the bytes that nobody read.
        assert!(transfer(server.addr(), 10).is_err());
    }

    #[test]
    fn stops_with_a_connection_open() {
        let server = TcpServer::start(LOOPBACK).unwrap();
        let addr = server.addr();
        let idle = connect(addr).unwrap();
        let start = Instant::now();
        drop(server);
        assert!(start.elapsed() < PATIENCE / 2, "an idle connection held the server up");
        assert!(fetch(addr).is_err());
        drop(idle);
    }
}
