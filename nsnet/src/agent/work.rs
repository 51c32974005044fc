//! The agent's one hand: a thread that has the host, and does one thing after another.
//!
//! Work on the kernel waits for answers; the loop that orders it, answers questions and gives signs of life never does.

use std::collections::HashSet;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc as to_loop;

use super::follow::{Followed, Follower};
use super::repair::{Checked, Checker};
use super::report::Task;
use crate::kernel::host::Host;
use crate::kernel::sweep::{Sweep, Tally};
use nsnet_common::layout::PortId;

/// Entries of one piece of a sweep: some tens of milliseconds.
const PIECE: usize = 1 << 16;

/// What came of a task.
#[derive(Debug)]
pub(super) enum Done {
    /// Of [`Task::Follow`].
    Followed(Followed),
    /// Of [`Task::Check`].
    Checked(Checked),
    /// Of [`Task::Sweep`]: a whole one is over, or there is more to do.
    Swept(Option<Tally>),
}

/// A task that is over.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) task: Task,
    /// From its order to its end.
    pub(super) took: Duration,
    /// Of that, what it has kept a processor busy.
    pub(super) cost: Duration,
    pub(super) done: Result<Done>,
}

/// The loop's side of the thread.
#[derive(Debug)]
pub(super) struct Worker {
    orders: mpsc::Sender<Task>,
    outcomes: to_loop::UnboundedReceiver<Outcome>,
}

impl Worker {
    /// Starts the thread.
    pub(super) fn start(host: Host, checker: Checker) -> Result<Self> {
        let (orders, tasks) = mpsc::channel();
        let (tell, outcomes) = to_loop::unbounded_channel();
        let mut hand = Hand { host, checker, follower: Follower::default(), sweep: Sweep::default() };
        let work = move || {
            // Until the loop is gone.
            while let Ok(task) = tasks.recv() {
                let (began, cost) = (Instant::now(), processor_time());
                let done = hand.work(task);
                let cost = processor_time().saturating_sub(cost);
                if tell.send(Outcome { task, took: began.elapsed(), cost, done }).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("kernel".to_owned()).spawn(work).context("cannot start a thread")?;
        Ok(Self { orders, outcomes })
    }

    /// Has it do a task; its outcome comes by [`Worker::outcome`].
    pub(super) fn order(&self, task: Task) -> Result<()> {
        self.orders.send(task).ok().context("the thread that works on the kernel has ended")
    }

    /// The next outcome.
    pub(super) async fn outcome(&mut self) -> Result<Outcome> {
        self.outcomes.recv().await.context("the thread that works on the kernel has ended")
    }
}

/// What this process has kept a processor busy; namespaces are looked into by threads of their own.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

struct Hand {
    host: Host,
    checker: Checker,
    follower: Follower,
    sweep: Sweep,
}

impl Hand {
    fn work(&mut self, task: Task) -> Result<Done> {
        match task {
            Task::Follow => self.follower.follow(&self.host).map(Done::Followed),
            Task::Check => self.checker.check(&self.host).map(Done::Checked),
            Task::Sweep | Task::Scrape => self.sweep_on().map(Done::Swept),
        }
    }

    fn sweep_on(&mut self) -> Result<Option<Tally>> {
        if !self.host.dataplane.is_loaded() {
            self.sweep = Sweep::default();
            return Ok(Some(Tally::default()));
        }
        let done = self.sweep.go_on(&self.host.dataplane, PIECE);
        if done.is_err() {
            // Tables that are others by now are begun anew.
            self.sweep = Sweep::default();
        }
        Ok(done?)
    }
}

/// The numbers by which the host's namespace knows those of its members.
pub(super) fn members(host: &Host) -> Result<HashSet<i32>> {
    let links = host.netlink.links()?;
    let ports = links.iter().filter(|link| PortId::from_ifindex(link.index) != PortId::NONE);
    Ok(ports.filter_map(|port| port.peer_netnsid).collect())
}
