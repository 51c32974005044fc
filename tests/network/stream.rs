//! Traffic that does not stop, and of which every packet is accounted for.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::bed::Station;
use super::outside_bed::{HOST4, Outside, wan};

/// Between two datagrams of a stream.
const PAUSE: Duration = Duration::from_micros(250);
/// Between two words on a connection.
const BREATH: Duration = Duration::from_millis(5);
/// How long anything may take that must come.
const PATIENCE: Duration = Duration::from_secs(5);

/// Numbered datagrams from one station to another, without end.
#[derive(Debug)]
pub(crate) struct Datagrams {
    what: String,
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<Received>>,
    sent: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Received {
    count: u64,
    lost: u64,
    late: u64,
    senders: BTreeSet<SocketAddr>,
}

impl Datagrams {
    /// Sends from `from` to `to`, where station `at` receives at its own `port`.
    pub(crate) fn start(what: &str, from: &Station, to: SocketAddr, at: &Station, port: u16) -> Result<Self> {
        let receive = at.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
            // What arrives while the thread waits for a CPU must not count as lost.
            setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20))?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            Ok(socket)
        })?;
        let send = from.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(to)?;
            Ok(socket)
        })?;
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let sender = thread::spawn({
            let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
            move || {
                let mut number = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    send.send(&number.to_be_bytes()).with_context(|| format!("send datagram {number}"))?;
                    number += 1;
                    sent.store(number, Ordering::Relaxed);
                    thread::sleep(PAUSE);
                }
                Ok(number)
            }
        });
        let receiver = thread::spawn({
            let stop = Arc::clone(&stop);
            move || receive_all(&receive, &stop)
        });
        Ok(Self { what: what.to_owned(), stop, sender, receiver, sent })
    }

    /// Waits until this many more have been sent.
    pub(crate) fn wait_for(&self, more: u64) -> Result<()> {
        let wanted = self.sent.load(Ordering::Relaxed) + more;
        super::bed::until(PATIENCE, || Ok(self.sent.load(Ordering::Relaxed) >= wanted)).map(|_took| ())
    }

    /// Ends it, and fails when one datagram was lost, came out of order, or from elsewhere than `senders`. How many there were.
    pub(crate) fn finish(self, sender: impl Fn(SocketAddr) -> bool) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let what = self.what;
        let sent = self.sender.join().map_err(|_panic| anyhow!("{what}: the sender panicked"))?;
        let sent = sent.with_context(|| what.clone())?;
        let got = self.receiver.join().map_err(|_panic| anyhow!("{what}: the receiver panicked"))?;
        let got = got.with_context(|| what.clone())?;
        ensure!(got.count == sent && got.lost == 0 && got.late == 0, "{what}: {sent} sent, {got:?}");
        ensure!(got.senders.len() == 1 && got.senders.iter().all(|from| sender(*from)), "{what}: {got:?}");
        Ok(sent)
    }
}

fn receive_all(socket: &UdpSocket, stop: &AtomicBool) -> Result<Received> {
    let (mut received, mut next) = (Received::default(), 0);
    let mut bytes = [0; 8];
    loop {
        // Asked before: what has been sent until then is read yet.
        let is_over = stop.load(Ordering::Relaxed);
        match socket.recv_from(&mut bytes) {
            Ok((_len, from)) => {
                let number = u64::from_be_bytes(bytes);
                received.count += 1;
                received.senders.insert(from);
                if number < next {
                    received.late += 1;
                } else {
                    received.lost += number - next;
                    next = number + 1;
                }
            }
            Err(_timeout) if is_over => return Ok(received),
            Err(_timeout) => {}
        }
    }
}

/// A connection on which words go back and forth without end, and short ones beside it, one after the other.
#[derive(Debug)]
pub(crate) struct Talk {
    what: String,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<u64>>>,
    /// For the server, which goes last: who is connecting must not be refused.
    close: Arc<AtomicBool>,
    server: JoinHandle<()>,
}

impl Talk {
    /// From `from` to `to`, where station `at` answers at its own `port`.
    pub(crate) fn start(what: &str, from: &Station, to: SocketAddr, at: &Station, port: u16) -> Result<Self> {
        let listener = at.run(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?))?;
        let (stop, close) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let server = thread::spawn({
            let close = Arc::clone(&close);
            move || serve(&listener, &close)
        });
        let long = from.run(|| connect(to))?;
        let long = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let (mut stream, mut words) = (long, 0);
                while !stop.load(Ordering::Relaxed) {
                    exchange(&mut stream, words).with_context(|| format!("word {words} of the long one"))?;
                    words += 1;
                    thread::sleep(BREATH);
                }
                Ok(words)
            }
        });
        let ns = nsnet::kernel::netns::NetNs::named(from.ns.name())?;
        let short = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                ns.run(|| {
                    let mut count = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let mut stream = connect(to).with_context(|| format!("connection {count}"))?;
                        exchange(&mut stream, count).with_context(|| format!("connection {count}"))?;
                        count += 1;
                        thread::sleep(BREATH);
                    }
                    Ok(count)
                })?
            }
        });
        Ok(Self { what: what.to_owned(), stop, threads: vec![long, short], close, server })
    }

    /// Ends it, and fails when a connection was reset or refused, or a word came back as another. How many words there were:
    /// one on each short connection, and those of the long one.
    pub(crate) fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut words = 0;
        for thread in self.threads {
            let done = thread.join().map_err(|_panic| anyhow!("{}: a client panicked", self.what))?;
            words += done.with_context(|| self.what.clone())?;
        }
        self.close.store(true, Ordering::Relaxed);
        self.server.join().map_err(|_panic| anyhow!("{}: the server panicked", self.what))?;
        Ok(words)
    }
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream, word: u64) -> Result<()> {
    stream.write_all(&word.to_be_bytes())?;
    let mut back = [0; 8];
    stream.read_exact(&mut back)?;
    ensure!(u64::from_be_bytes(back) == word, "{word} came back as {}", u64::from_be_bytes(back));
    Ok(())
}

/// Echoes on every connection, each in a thread of its own, until told to stop.
fn serve(listener: &TcpListener, stop: &AtomicBool) {
    listener.set_nonblocking(true).ok();
    while !stop.load(Ordering::Relaxed) {
        let Ok((mut stream, _peer)) = listener.accept() else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        thread::spawn(move || {
            // What goes wrong is the client's to report. It ends when the client does.
            let mut word = [0; 8];
            stream.set_nonblocking(false).ok();
            stream.set_nodelay(true).ok();
            stream.set_read_timeout(Some(PATIENCE)).ok();
            while stream.read_exact(&mut word).is_ok() && stream.write_all(&word).is_ok() {}
        });
    }
}

/// Publishes what the streams go to.
pub(crate) fn publish(bed: &Outside) -> Result<()> {
    ["5003:5003/udp", "6003:6003/tcp"]
        .iter()
        .try_for_each(|spec| bed.lab.nsnet(&format!("publish add @c1 {spec}")).map(drop))
}

/// Whether a sender is the expected one.
type Is = fn(SocketAddr) -> bool;

/// Streams over every kind of way, and an end to them.
pub(crate) struct Traffic {
    datagrams: Vec<(Datagrams, Is)>,
    talks: Vec<Talk>,
}

impl Traffic {
    /// In a bed with c1 and c2, of which c1 has UDP 5003 and TCP 6003 published.
    pub(crate) fn start(bed: &Outside) -> Result<Self> {
        publish(bed)?;
        Self::start_published(bed)
    }

    /// The same when they are published already.
    pub(crate) fn start_published(bed: &Outside) -> Result<Self> {
        let (c1, c2, outside) = (bed.at("c1"), bed.at("c2"), bed.at("wan"));
        let at = |ip, port| SocketAddr::new(ip, port);
        let datagrams: Vec<(Datagrams, Is)> = vec![
            (Datagrams::start("from c1 to c2", c1, at(c2.v4.into(), 5001), c2, 5001)?, |from| from.ip() != HOST4),
            (Datagrams::start("from c2 to outside", c2, at(wan(false), 5002), outside, 5002)?, |from| {
                from.ip() == HOST4
            }),
            (Datagrams::start("from outside to c1", outside, at(HOST4, 5003), c1, 5003)?, |from| {
                from.ip() == wan(false)
            }),
        ];
        let talks = vec![
            Talk::start("TCP from c1 to c2", c1, at(c2.v4.into(), 6001), c2, 6001)?,
            Talk::start("TCP from c2 to outside", c2, at(wan(false), 6002), outside, 6002)?,
            Talk::start("TCP from outside to c1", outside, at(HOST4, 6003), c1, 6003)?,
        ];
        Ok(Self { datagrams, talks })
    }

    /// A few more packets of each.
    pub(crate) fn go_on(&self) -> Result<()> {
        self.datagrams.iter().try_for_each(|(stream, _)| stream.wait_for(20))
    }

    /// Fails when a packet was lost, overtaken or not translated, or a connection broke. How many there were of each.
    pub(crate) fn finish(self) -> Result<(u64, u64)> {
        let datagrams =
            self.datagrams.into_iter().map(|(stream, sender)| stream.finish(sender)).sum::<Result<u64>>()?;
        let words = self.talks.into_iter().map(Talk::finish).sum::<Result<u64>>()?;
        Ok((datagrams, words))
    }
}
