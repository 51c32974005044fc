//! One slot of a comparison: a path is filled for a while, and what arrives is counted.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, Socket, Type};

use super::compare::{Inside, Plan, Variant, Workload};
use super::connections;
use super::udp::{is_refusal, is_timeout};
use super::{PATIENCE, STOP_INTERVAL, tcp, udp};

/// One read or write of the stream: what iperf3 uses, so that figures can be set side by side.
const STREAM_BLOCK: usize = 128 * 1024;
/// Payload of a small datagram.
const SMALL: usize = 64;

/// What one slot gave.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sample {
    /// Bytes, datagrams or connections per second.
    pub(super) rate: f64,
    /// Share of the datagrams sent that did not arrive.
    pub(super) loss: f64,
}

/// CPUs for the sender and the receiver.
pub(super) type Cpus = Option<(usize, usize)>;

/// The first two CPUs this process may use, when there are two.
pub(super) fn two_cpus() -> Cpus {
    let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    Some((cpus.next()?, cpus.next()?))
}

/// Opens the sockets of one variant, fills the path, and closes them again.
pub(super) fn measure(variant: &Variant, workload: Workload, plan: &Plan, cpus: Cpus) -> Result<Sample> {
    let any = if variant.to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let listen = SocketAddr::new(any, variant.listen);
    let counters = Counters::default();
    match workload {
        Workload::TcpStream => {
            let listener = inside(variant.receiver, || tcp::listen(listen))?;
            listener.set_read_timeout(Some(PATIENCE))?;
            let sender = inside(variant.sender, || connect_cubic(variant.to))?;
            let (receiver, _) = listener.accept().context("the receiver saw no connection")?;
            tcp::set_timeouts(&receiver, STOP_INTERVAL)?;
            let receiver = TcpStream::from(receiver);
            run(plan, cpus, &counters, || stream(&sender, &counters), || absorb(&receiver, &counters))
        }
        Workload::UdpSmall => {
            let receiver = inside(variant.receiver, || udp::bind(listen))?;
            receiver.set_read_timeout(Some(STOP_INTERVAL))?;
            let sender = inside(variant.sender, || udp::connect(variant.to))?;
            run(plan, cpus, &counters, || datagrams(&sender, &counters), || count(&receiver, &counters))
        }
        Workload::Connections => {
            let listener = inside(variant.receiver, || connections::listen(listen))?;
            let ask = || inside(variant.sender, || connections::ask(variant.to, &counters));
            run(plan, cpus, &counters, ask, || connections::answer(&listener, &counters))
        }
    }
}

/// Shared by the two ends of a slot. Each counter has one writer; a cache line each keeps them out of the way.
#[derive(Default)]
pub(super) struct Counters {
    sent: OwnLine<AtomicU64>,
    received: OwnLine<AtomicU64>,
    stop: OwnLine<AtomicBool>,
}

#[derive(Default)]
#[repr(align(128))]
struct OwnLine<T>(T);

impl Counters {
    pub(super) fn stopped(&self) -> bool {
        self.stop.0.load(Ordering::Relaxed)
    }

    /// Counts one that was sent, or begun.
    pub(super) fn sent(&self) {
        self.sent.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one that was received, or is done.
    pub(super) fn received(&self) {
        self.received.0.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> (u64, u64, Instant) {
        (self.sent.0.load(Ordering::Relaxed), self.received.0.load(Ordering::Relaxed), Instant::now())
    }
}

/// Runs both ends, each on its CPU, and takes the difference of two readings between warm-up and end. The time between
/// them is measured, not assumed: with both CPUs busy this thread wakes late.
fn run(
    plan: &Plan,
    cpus: Cpus,
    counters: &Counters,
    send: impl FnOnce() -> Result<()> + Send,
    receive: impl FnOnce() -> Result<()> + Send,
) -> Result<Sample> {
    thread::scope(|scope| {
        let receiver = scope.spawn(|| pin(cpus.map(|(_, second)| second)).and_then(|()| receive()));
        let sender = scope.spawn(|| pin(cpus.map(|(first, _)| first)).and_then(|()| send()));
        thread::sleep(plan.warm_up);
        let (sent_before, received_before, start) = counters.read();
        thread::sleep(plan.slot);
        let (sent, received, end) = counters.read();
        counters.stop.0.store(true, Ordering::Relaxed);
        for (end, thread) in [("sender", sender), ("receiver", receiver)] {
            thread.join().map_err(|_| anyhow!("the {end} panicked"))?.with_context(|| format!("the {end} failed"))?;
        }
        let (sent, received) = (sent - sent_before, received - received_before);
        // What was under way at the first reading can make it negative.
        let loss = if sent == 0 { 0.0 } else { (1.0 - received as f64 / sent as f64).max(0.0) };
        Ok(Sample { rate: received as f64 / (end - start).as_secs_f64(), loss })
    })
}

fn stream(mut to: &TcpStream, counters: &Counters) -> Result<()> {
    let block = vec![0x5a; STREAM_BLOCK];
    while !counters.stopped() {
        match to.write(&block) {
            Ok(_) => {}
            Err(e) if is_timeout(&e) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn absorb(mut from: &TcpStream, counters: &Counters) -> Result<()> {
    let mut block = vec![0; STREAM_BLOCK];
    while !counters.stopped() {
        match from.read(&mut block) {
            Ok(0) => break,
            Ok(len) => _ = counters.received.0.fetch_add(len as u64, Ordering::Relaxed),
            Err(e) if is_timeout(&e) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn datagrams(to: &UdpSocket, counters: &Counters) -> Result<()> {
    let payload = [0x5a; SMALL];
    while !counters.stopped() {
        match to.send(&payload) {
            Ok(_) => _ = counters.sent.0.fetch_add(1, Ordering::Relaxed),
            // A path that answers with ICMP errors, or whose queue is full, shows in what is received.
            Err(e) if is_timeout(&e) || is_refusal(&e) || e.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn count(from: &UdpSocket, counters: &Counters) -> Result<()> {
    let mut buffer = [0; 2 * SMALL];
    while !counters.stopped() {
        match from.recv(&mut buffer) {
            Ok(_) => _ = counters.received.0.fetch_add(1, Ordering::Relaxed),
            Err(e) if is_timeout(&e) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn connect_cubic(to: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    tcp::ask_cubic(&socket)?;
    socket.connect_timeout(&to.into(), PATIENCE).with_context(|| format!("cannot connect to {to}"))?;
    tcp::set_timeouts(&socket, STOP_INTERVAL)?;
    Ok(socket.into())
}

/// Runs `f` through a namespace's runner, and carries its result out.
fn inside<T: Send>(namespace: Inside<'_>, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let mut f = Some(f);
    let mut result = None;
    namespace(&mut || result = f.take().map(|f| f()))?;
    result.context("the namespace's runner returned without running anything")?
}

/// Keeps the calling thread on one CPU; does nothing when there is only one.
fn pin(cpu: Option<usize>) -> Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &only).with_context(|| format!("cannot pin a thread to CPU {cpu}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn here(work: &mut (dyn FnMut() + Send)) -> Result<()> {
        work();
        Ok(())
    }

    /// A port that was free a moment ago.
    fn free_port() -> u16 {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn fills_loopback() {
        let port = free_port();
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        let variant = Variant { name: "loopback", to, listen: port, sender: &here, receiver: &here };
        let plan = Plan { warm_up: Duration::from_millis(5), ..Plan::new(1, Duration::from_millis(30)) };
        for workload in [Workload::TcpStream, Workload::UdpSmall, Workload::Connections] {
            let sample = measure(&variant, workload, &plan, None).unwrap();
            assert!(sample.rate > 0.0, "{workload:?} carried nothing");
        }
    }

    #[test]
    fn carries_results_out_of_a_namespace() {
        assert_eq!(inside(&here, || Ok(5)).unwrap(), 5);
        assert!(inside::<()>(&here, || Err(anyhow!("no"))).is_err());
        assert!(inside(&|_| Ok(()), || Ok(5)).is_err());
    }
}
