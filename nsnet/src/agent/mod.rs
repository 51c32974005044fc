//! `nsnet agent`: a process that looks after the dataplane while it is there. Nothing depends on it: without it, or when it
//! dies, everything that is configured goes on, since the kernel forwards by itself.
//!
//! ```text
//!   kernel ---- monitor ----> the loop (run) ----- orders ----> work: follow, repair, sweep    one thread, one host
//!   systemd <-- notify ------    |    ^  <-------- outcomes ---
//!                                v    |
//!                              report ----> serve: /healthz /metrics (metrics, figures)
//! ```
//!
//! The loop never waits for the kernel: what does is `work`. It never waits for the lock of the state either, so a verb and
//! the agent cannot hold each other up.

mod figures;
mod follow;
mod metrics;
mod notify;
mod pace;
mod privileges;
mod repair;
mod report;
mod serve;
mod work;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep_until};

use crate::kernel::host::Host;
use crate::kernel::monitor::{Change, Changes, Monitor};
pub use privileges::USEFUL;
pub use repair::OnDrift;

use follow::judge;
use pace::Pace;
use repair::Checker;
use report::{Report, Task};
use serve::{Answers, Door, locked};
use work::{Done, Outcome, Worker};

/// How long to wait for what comes together with a change.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// How long to wait for a verb that is under way.
const BUSY: Duration = Duration::from_millis(200);
/// How long a sweep rests between two pieces; a whole one is begun as often as is compared.
const BETWEEN_PIECES: Duration = Duration::from_millis(100);
/// How long a task may take before the watchdog hears no more of us.
const STUCK: Duration = Duration::from_secs(120);
/// How long a task may take that is under way when the agent is to end.
const LAST: Duration = Duration::from_secs(10);

/// What the agent is to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to do about differences.
    pub on_drift: OnDrift,
    /// How often to compare at least.
    pub interval: Duration,
    /// Where on loopback to answer, beside the socket.
    pub listen: Option<SocketAddr>,
    /// Told what happens, a line at a time.
    pub say: fn(&str),
}

/// Where the agent answers.
#[derive(Clone, Debug)]
pub struct Place {
    /// The socket in the file system.
    pub socket: PathBuf,
    /// The address on loopback.
    pub address: Option<SocketAddr>,
}

/// Runs the agent of `host` until it is told to end (SIGTERM, SIGINT). `started` hears where it answers.
///
/// To be called before the process has threads: it drops capabilities for all of them.
pub fn run(host: Host, options: &Options, started: impl FnOnce(&Place) -> Result<()>) -> Result<()> {
    let door = Door::open(&host.key, options.listen)?;
    let monitor = Monitor::open()?;
    privileges::drop_the_rest()?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let mut agent = Agent::new(host, options)?;
    let place = Place { socket: door.path().to_owned(), address: door.address() };
    LocalSet::new().block_on(&runtime, async {
        door.serve(&agent.answers)?;
        let changes = monitor.listen()?;
        started(&place)?;
        agent.run(changes).await
    })
}

/// Removes what an agent of the host has left behind that was killed.
pub fn clear_away(host: &Host) -> Result<()> {
    serve::clear_away(&host.key).map(drop)
}

/// The loop.
struct Agent {
    options: Options,
    report: Arc<Mutex<Report>>,
    answers: Rc<Answers>,
    worker: Worker,
    /// What the worker does now, and since when.
    at_work: Option<(Task, Instant)>,
    follow: Pace,
    check: Pace,
    sweep: Pace,
    members: HashSet<i32>,
    is_ready: bool,
}

impl Agent {
    fn new(host: Host, options: &Options) -> Result<Self> {
        let report = Arc::new(Mutex::new(Report::new(&host.key, options.interval)));
        let answers = Rc::new(Answers::new(Arc::clone(&report), metrics::Source::of(&host)));
        let worker = Worker::start(host, Checker::new(options.on_drift))?;
        let now = Instant::now();
        let (follow, check, sweep) = (Pace::new(now), Pace::new(now), Pace::new(now));
        let (options, members) = (options.clone(), HashSet::new());
        Ok(Self { options, report, answers, worker, at_work: None, follow, check, sweep, members, is_ready: false })
    }

    async fn run(&mut self, mut changes: Changes) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
        let watchdog = notify::interval();
        let mut next_sign = Instant::now();
        loop {
            let next = self.begin_what_is_due()?;
            // Without a watchdog nobody waits for a sign.
            let wake = watchdog.map_or(next, |_| next.min(next_sign));
            let mut asleep = pin!(sleep_until(wake));
            tokio::select! {
                heard = changes.next() => self.hear(heard?),
                outcome = self.worker.outcome() => self.finish(outcome?),
                () = &mut asleep => {}
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
            if let Some(interval) = watchdog.filter(|_| Instant::now() >= next_sign && !self.is_stuck()) {
                notify::alive();
                next_sign = Instant::now() + interval;
            }
        }
        self.end().await
    }

    /// Orders what is due, unless something is under way; when to look again.
    fn begin_what_is_due(&mut self) -> Result<Instant> {
        let now = Instant::now();
        let far = now + STUCK;
        if self.at_work.is_some() {
            return Ok(far);
        }
        // In the order of what others wait for.
        let paces = [(Task::Follow, self.follow), (Task::Check, self.check), (Task::Sweep, self.sweep)];
        if let Some((task, _)) = paces.iter().find(|(_, pace)| pace.due() <= now) {
            let (task, interval) = (*task, self.options.interval);
            self.pace(task).begin(now, interval);
            self.worker.order(task)?;
            self.at_work = Some((task, now));
            return Ok(far);
        }
        Ok(paces.iter().map(|(_, pace)| pace.due()).min().unwrap_or(far))
    }

    fn pace(&mut self, task: Task) -> &mut Pace {
        match task {
            Task::Follow => &mut self.follow,
            Task::Check => &mut self.check,
            Task::Sweep | Task::Scrape => &mut self.sweep,
        }
    }

    fn is_stuck(&self) -> bool {
        self.at_work.is_some_and(|(_, since)| since.elapsed() > STUCK)
    }

    /// Takes note of changes; `None`: some were lost.
    fn hear(&mut self, changes: Option<Vec<Change>>) {
        let now = Instant::now();
        let mut report = locked(&self.report);
        let Some(changes) = changes else {
            report.counts.overruns += 1;
            self.follow.ask(now, DEBOUNCE);
            self.check.ask(now, DEBOUNCE);
            return;
        };
        for change in &changes {
            let Some((subject, place, reason)) = judge(change, &self.members, &report.gateways) else { continue };
            *report.counts.changes.entry((subject, place)).or_default() += 1;
            if reason.to_follow {
                self.follow.ask(now, DEBOUNCE);
            }
            if reason.to_check {
                self.check.ask(now, DEBOUNCE);
            }
        }
    }

    /// Takes note of what came of a task.
    fn finish(&mut self, outcome: Outcome) {
        let Outcome { task, took, cost, done } = outcome;
        let now = Instant::now();
        self.at_work = None;
        self.pace(task).end(now, cost);
        let report = Arc::clone(&self.report);
        let mut report = locked(&report);
        let before = report.reasons(now);
        let error = done.as_ref().err().map(|error| format!("{error:#}"));
        report.note(task, took, error);
        match done {
            Ok(Done::Followed(followed)) => {
                followed.news.iter().for_each(|news| self.say(news));
                if followed.is_busy {
                    report.counts.busy += 1;
                    self.follow.ask(now, BUSY);
                }
                if let Some(delay) = followed.again {
                    self.follow.ask(now, delay + DEBOUNCE);
                }
                for ((uplink, gateway), answers) in &followed.gateways {
                    let known = report.gateways.get(&(uplink.clone(), *gateway)).copied().flatten();
                    match (known, answers) {
                        (Some(true) | None, Some(false)) => {
                            self.say(&format!("gateway {gateway} behind {uplink} does not answer"));
                        }
                        (Some(false), Some(true)) => {
                            self.say(&format!("gateway {gateway} behind {uplink} answers again"));
                        }
                        _ => {}
                    }
                }
                report.gateways = followed.gateways;
            }
            Ok(Done::Checked(checked)) => {
                self.members = checked.members;
                report.counts.repaired += checked.repaired.len() as u64;
                report.counts.not_repaired += checked.failed.len() as u64;
                checked.repaired.iter().for_each(|what| self.say(&format!("repaired {what}")));
                if let Some(delay) = checked.again {
                    self.check.ask(now, delay + BUSY);
                }
                checked.failed.iter().for_each(|what| self.say(&format!("cannot repair {what}")));
                if checked.is_busy {
                    report.counts.busy += 1;
                    self.check.ask(now, BUSY);
                }
                if checked.is_known {
                    report.checked = Some((now, took));
                    report.drift = checked.drift;
                }
            }
            Ok(Done::Swept(None)) => self.sweep.ask(now, BETWEEN_PIECES),
            Ok(Done::Swept(Some(tally))) => {
                for (table, fill) in tally.tables.iter().filter(|(_, fill)| fill.ended > 0) {
                    *report.counts.ended.entry(table).or_default() += fill.ended;
                }
                report.tally = Some(tally);
            }
            Err(_noted) => {}
        }
        self.tell(&before, &report, now);
    }

    /// Says what is news about how things stand.
    fn tell(&mut self, before: &[String], report: &Report, now: Instant) {
        let after = report.reasons(now);
        if !self.is_ready {
            if report.checked.is_some() {
                self.is_ready = true;
                notify::ready(&report.summary(now));
                after.iter().for_each(|reason| self.say(reason));
            }
            return;
        }
        if before != after {
            notify::status(&report.summary(now));
            after.iter().filter(|reason| !before.contains(reason)).for_each(|reason| self.say(reason));
            if after.is_empty() {
                self.say("all is as it should be");
            }
        }
    }

    fn say(&self, line: &str) {
        (self.options.say)(line);
    }

    /// Lets what is under way come to its end: it may hold the lock.
    async fn end(&mut self) -> Result<()> {
        notify::stopping();
        if self.at_work.is_some() && tokio::time::timeout(LAST, self.worker.outcome()).await.is_err() {
            bail!("the agent ends in the middle of its work, which takes too long");
        }
        Ok(())
    }
}
