//! One path of a comparison, ready to be filled at any time: both ends wait, connected, for their next slot.
//!
//! Slots of one path are short and come in turn with those of others, so what is slow to set up stays: sockets, the
//! path's neighbours and flows, the growth of TCP's window.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::compare::{Inside, Plan, Sample, Trips, Variant, Workload};
use super::cost::Meter;
use super::{PATIENCE, STOP_INTERVAL, connections, load, tcp, udp};

/// After a slot: nothing has arrived for this long, so the rest is lost.
const SILENCE: Duration = Duration::from_millis(10);
/// And no longer than this for all of it.
const DRAIN_LIMIT: Duration = Duration::from_millis(300);

/// CPUs for the sender and the receiver.
pub(crate) type Cpus = Option<(usize, usize)>;

/// The first two CPUs this process may use, when there are two.
pub(crate) fn two_cpus() -> Cpus {
    let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
    let mut cpus = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    Some((cpus.next()?, cpus.next()?))
}

/// A path with a thread at either end, which end when this is dropped.
pub(super) struct Lane {
    orders: Option<Sender<()>>,
    samples: Receiver<Result<Sample>>,
    ends: Arc<Ends>,
}

/// Shared by the two ends. Each counter has one writer; a cache line each keeps them out of the way.
#[derive(Default)]
pub(super) struct Ends {
    received: OwnLine<AtomicU64>,
    is_busy: OwnLine<AtomicBool>,
    stop: OwnLine<AtomicBool>,
}

#[derive(Default)]
#[repr(align(128))]
struct OwnLine<T>(T);

impl Ends {
    /// Whether the lane is to end.
    pub(super) fn stopped(&self) -> bool {
        self.stop.0.load(Ordering::Relaxed)
    }

    /// Whether a slot is under way.
    pub(super) fn busy(&self) -> bool {
        self.is_busy.0.load(Ordering::Relaxed)
    }

    /// Counts what has arrived.
    pub(super) fn received(&self, units: u64) {
        self.received.0.fetch_add(units, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.received.0.load(Ordering::Relaxed)
    }
}

impl Lane {
    /// Opens the sockets of one path and starts its ends, each on its CPU.
    pub(super) fn open<'scope, 'env: 'scope>(
        scope: &'scope Scope<'scope, 'env>,
        variant: &'env Variant<'env>,
        workload: Workload,
        plan: &'env Plan,
        cpus: Cpus,
    ) -> Result<Lane> {
        let (to, listen) = ports(variant, workload, plan);
        let (orders, to_do) = channel();
        let (results, samples) = channel();
        let ends = Arc::<Ends>::default();
        let lane = Lane { orders: Some(orders), samples, ends: Arc::clone(&ends) };
        let receive = receiver(variant, listen, workload)?;
        let complaints = results.clone();
        thread::Builder::new().name("receiver".into()).spawn_scoped(scope, {
            let ends = Arc::clone(&ends);
            move || {
                let ended = pin(cpus.map(|(_, second)| second)).and_then(|()| receive(&ends));
                // Nobody listens any more when the lane has ended.
                ended.context("the receiver failed").map_err(|error| complaints.send(Err(error))).ok();
            }
        })?;
        thread::Builder::new().name("sender".into()).spawn_scoped(scope, move || {
            let said = &results;
            let ended = inside(variant.sender, move || {
                pin(cpus.map(|(first, _)| first))?;
                let mut send = sender(to, workload, &ends)?;
                let mut meter = Meter::of_this_thread();
                // The first sample says that it is ready.
                said.send(Ok(Sample::default())).ok();
                for () in to_do {
                    said.send(slot(plan, workload, &mut meter, &ends, &mut send)).ok();
                }
                Ok(())
            });
            ended.context("the sender failed").map_err(|error| results.send(Err(error))).ok();
        })?;
        lane.sample()?;
        Ok(lane)
    }

    /// Fills the path for one slot.
    pub(super) fn measure(&self) -> Result<Sample> {
        if let Some(orders) = &self.orders {
            // A sender that has ended has said why.
            orders.send(()).ok();
        }
        self.sample()
    }

    fn sample(&self) -> Result<Sample> {
        self.samples.recv().map_err(|_| anyhow!("the sender and the receiver have ended"))?
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.orders = None;
        self.ends.stop.0.store(true, Ordering::Relaxed);
    }
}

/// Sends for the warm-up and the slot, and waits for what is under way. What was sent during the slot counts, less the
/// share that was lost of all: so a receiver that another process held up for a moment is no slower path.
fn slot(plan: &Plan, workload: Workload, meter: &mut Meter, ends: &Ends, send: &mut load::Send<'_>) -> Result<Sample> {
    let before = ends.count();
    ends.is_busy.0.store(true, Ordering::Relaxed);
    let (mut sent, mut measured) = (0, 0);
    let begun = Instant::now();
    while begun.elapsed() < plan.warm_up {
        sent += send()?;
    }
    let mut trips = Vec::new();
    let start = meter.read()?;
    let (mut now, end) = (start.at, start.at + plan.slot);
    while now < end {
        let before = now;
        measured += send()?;
        now = Instant::now();
        if workload == Workload::RoundTrips {
            trips.push((now - before).as_secs_f64());
        }
    }
    let spent = meter.read()?.since(start);
    sent += measured;
    let arrived = drained(ends, before, sent);
    ends.is_busy.0.store(false, Ordering::Relaxed);
    let share = if sent == 0 { 0.0 } else { (arrived as f64 / sent as f64).min(1.0) };
    let delivered = measured as f64 * share;
    let each = |spent: f64| if delivered > 0.0 { spent / delivered } else { 0.0 };
    Ok(Sample {
        rate: delivered / spent.time,
        loss: if sent == 0 { 0.0 } else { 1.0 - share },
        cpu: each(spent.cpu),
        instructions: spent.instructions.map(each),
        trips: spread(&mut trips),
    })
}

/// Median and 99th percentile; `None` of nothing.
fn spread(trips: &mut [f64]) -> Option<Trips> {
    trips.sort_by(f64::total_cmp);
    let at = |hundredths: usize| trips.get((trips.len() * hundredths / 100).min(trips.len().saturating_sub(1)));
    Some(Trips { median: *at(50)?, p99: *at(99)? })
}

/// How many have arrived since the count was `before`, once all `sent` have or nothing comes any more.
fn drained(ends: &Ends, before: u64, sent: u64) -> u64 {
    let begun = Instant::now();
    let mut last = (ends.count(), begun);
    loop {
        let count = ends.count();
        if count != last.0 {
            last = (count, Instant::now());
        }
        // Of what has not begun to arrive nobody knows yet that it is lost: the receiver may have had no CPU.
        let is_silent = count != before && last.1.elapsed() > SILENCE;
        if count - before >= sent || is_silent || begun.elapsed() > DRAIN_LIMIT {
            return count - before;
        }
        thread::sleep(Duration::from_micros(200));
    }
}

/// Where to send and where to listen: each workload of a variant has a port of its own.
fn ports(variant: &Variant<'_>, workload: Workload, plan: &Plan) -> (SocketAddr, SocketAddr) {
    let offset = plan.workloads.iter().position(|other| *other == workload).unwrap_or(0) as u16;
    let any = if variant.to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let to = SocketAddr::new(variant.to.ip(), variant.to.port() + offset);
    (to, SocketAddr::new(any, to.port()))
}

/// What the receiving thread does until its lane ends. Its sockets are open when this returns.
fn receiver(variant: &Variant<'_>, listen: SocketAddr, workload: Workload) -> Result<load::Receive> {
    Ok(match workload {
        Workload::TcpStream => {
            let listener = inside(variant.receiver, || tcp::listen(listen))?;
            listener.set_read_timeout(Some(PATIENCE))?;
            Box::new(move |ends| load::absorb(&listener, ends))
        }
        Workload::UdpSmall | Workload::UdpPolled => {
            let socket = inside(variant.receiver, || udp::bind(listen))?;
            socket.set_read_timeout(Some(STOP_INTERVAL))?;
            let polls = workload == Workload::UdpPolled;
            Box::new(move |ends| load::count(&socket, polls, ends))
        }
        Workload::RoundTrips => {
            let socket = inside(variant.receiver, || udp::bind(listen))?;
            socket.set_read_timeout(Some(STOP_INTERVAL))?;
            Box::new(move |ends| load::answer(&socket, ends))
        }
        Workload::Connections => {
            let listener = inside(variant.receiver, || connections::listen(listen))?;
            Box::new(move |ends| connections::answer(&listener, ends))
        }
    })
}

/// What the sending thread does again and again. To be called in its namespace.
fn sender(to: SocketAddr, workload: Workload, ends: &Ends) -> Result<load::Send<'_>> {
    Ok(match workload {
        Workload::TcpStream => load::stream(to)?,
        Workload::UdpSmall | Workload::UdpPolled => load::datagrams(to)?,
        Workload::RoundTrips => load::round_trips(to, ends)?,
        Workload::Connections => Box::new(move || connections::ask(to, ends)),
    })
}

/// Runs `f` through a namespace's runner, and carries its result out.
fn inside<T: std::marker::Send>(namespace: Inside<'_>, f: impl FnOnce() -> Result<T> + std::marker::Send) -> Result<T> {
    let mut f = Some(f);
    let mut result = None;
    namespace(&mut || result = f.take().map(|f| f()))?;
    result.context("the namespace's runner returned without running anything")?
}

/// Keeps the calling thread on one CPU; does nothing when there is only one.
pub(crate) fn pin(cpu: Option<usize>) -> Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &only).with_context(|| format!("cannot pin a thread to CPU {cpu}"))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    fn here(work: &mut (dyn FnMut() + std::marker::Send)) -> Result<()> {
        work();
        Ok(())
    }

    /// A port that was free a moment ago, and is none of those that the kernel gives to other tests meanwhile.
    fn free_port() -> u16 {
        let first = 20_000 + (std::process::id() % 10_000) as u16;
        let is_free = |port: &u16| {
            let any = (Ipv4Addr::UNSPECIFIED, *port);
            UdpSocket::bind(any).is_ok() && std::net::TcpListener::bind(any).is_ok()
        };
        (first..32_000).find(is_free).unwrap()
    }

    #[test]
    fn fills_loopback_again_and_again() {
        let plan = Plan { warm_up: Duration::from_millis(5), ..Plan::new(1, Duration::from_millis(30)) };
        let workloads = [Workload::TcpStream, Workload::UdpSmall, Workload::UdpPolled];
        for workload in workloads.into_iter().chain([Workload::RoundTrips, Workload::Connections]) {
            let port = free_port();
            let to = SocketAddr::from(([127, 0, 0, 1], port));
            let variant = Variant { name: "loopback", to, sender: &here, receiver: &here };
            thread::scope(|scope| {
                let lane = Lane::open(scope, &variant, workload, &plan, None).unwrap();
                for _ in 0..2 {
                    let sample = lane.measure().unwrap();
                    assert!(sample.rate > 0.0 && sample.cpu > 0.0, "{workload:?} carried nothing");
                    assert!((0.0..1.0).contains(&sample.loss), "{workload:?} lost {}", sample.loss);
                    assert_eq!(sample.trips.is_some(), workload == Workload::RoundTrips);
                }
            });
        }
    }

    #[test]
    fn spreads() {
        assert_eq!(spread(&mut []), None);
        assert_eq!(spread(&mut [2.0]), Some(Trips { median: 2.0, p99: 2.0 }));
        let mut trips: Vec<f64> = (0..200).rev().map(f64::from).collect();
        assert_eq!(spread(&mut trips), Some(Trips { median: 100.0, p99: 198.0 }));
    }

    #[test]
    fn says_what_is_in_the_way() {
        let plan = Plan::new(1, Duration::from_millis(30));
        let taken = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, free_port())).unwrap();
        let to = SocketAddr::from(([127, 0, 0, 1], taken.local_addr().unwrap().port()));
        let nowhere = |_: &mut (dyn FnMut() + std::marker::Send)| Err(anyhow!("no namespace"));
        let variant = Variant { name: "nowhere", to, sender: &nowhere, receiver: &here };
        thread::scope(|scope| {
            let open = |workload| Lane::open(scope, &variant, workload, &plan, None).err().unwrap();
            assert_eq!(format!("{:#}", open(Workload::UdpSmall)), "the sender failed: no namespace");
            let error = format!("{:#}", open(Workload::TcpStream));
            assert!(error.contains("Address already in use"), "{error}");
        });
    }

    #[test]
    fn carries_results_out_of_a_namespace() {
        assert_eq!(inside(&here, || Ok(5)).unwrap(), 5);
        assert!(inside::<()>(&here, || Err(anyhow!("no"))).is_err());
        assert!(inside(&|_| Ok(()), || Ok(5)).is_err());
    }
}
