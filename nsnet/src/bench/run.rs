//! Carries a plan out.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};

use super::family::ONLY_V4;
use super::inject::Injector;
use super::outer::{self, Served};
use super::peer::{Peer, Way};
use super::plan::{Curve, Effort, Selection, Task};
use super::result::{Axis, Cell, Figure, LeftOut, Load, Machine, Point, Quantity, Results, VERSION};
use super::scale::{self, What};
use super::site::{Site, Size};
use super::{sockets, tool};
use crate::lab::compare::{Blocks, Over, Sample};
use crate::lab::cost::Meter;
use crate::lab::lane::two_cpus;
use crate::lab::quiet::lock;

/// About what a turn takes beside its slot: a warm-up, and what comes after it.
const AROUND_SLOT: Duration = Duration::from_millis(12);
/// The trial, and the waits of injecting.
const AROUND_INJECTED_SLOT: Duration = Duration::from_millis(80);
/// Starting and ending a program.
const AROUND_OUTER_SLOT: Duration = Duration::from_millis(200);
/// What sockperf waits between its start and its first datagram.
const BEFORE_SOCKPERF: Duration = Duration::from_secs(2);
/// About how long a peer takes to build, and what it has to: a namespace, a published port, a flow.
const BUILD: Duration = Duration::from_millis(600);
const ATTACH: Duration = Duration::from_millis(30);
const PUBLISH: Duration = Duration::from_micros(100);
const ESTABLISH: Duration = Duration::from_micros(20);

/// Of fewer objects the kernel's memory tells nothing: it is counted in pages.
pub(super) const MANY: u64 = 10_000;

/// Who wants to know how far it is.
pub trait Progress {
    /// Something begins; it is `done` of `total` of the work's estimated time. An error ends the run.
    ///
    /// # Errors
    /// When the user wants an end.
    fn at(&mut self, what: &str, done: Duration, total: Duration) -> Result<()>;
    /// Something for the user to know.
    fn note(&mut self, text: &str);
}

/// Measures, and says what was found. What cannot be measured is left out and named; when the user ends it, that is what
/// was measured until then.
///
/// # Errors
/// When another measurement is running, when the kernel refuses the bench's own programs, and when nothing was measured.
pub fn run(effort: Effort, selection: &Selection, progress: &mut dyn Progress) -> Result<Results> {
    let began = Instant::now();
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let _lock = lock(|| progress.at("waiting for another measurement to end", Duration::ZERO, Duration::ZERO))?;
    let (tasks, curves) = (effort.tasks(selection), effort.curves(selection));
    let mut run = Run {
        effort,
        injector: Injector::load()?,
        clock: Clock { done: Duration::ZERO, total: estimate(effort, &tasks, &curves), what: String::new(), progress },
        cells: Vec::new(),
        figures: Vec::new(),
        left_out: Vec::new(),
    };
    run.tell_missing();
    for choice in selection.in_vain(&tasks, &curves) {
        run.leave_out(choice.to_owned(), "no cell or curve has it together with what else was chosen".to_owned());
    }
    // What fails is left out where it does: only the user ends a run before its end.
    let ended = run.tasks(&tasks).and_then(|()| run.curves(&curves));
    let interrupted = ended.is_err();
    ensure_any(&run, ended)?;
    Ok(Results {
        version: VERSION,
        machine: machine(),
        effort: effort.name().to_owned(),
        began: since_1970,
        seconds: began.elapsed().as_secs_f64(),
        cells: run.cells,
        figures: run.figures,
        left_out: run.left_out,
        interrupted,
    })
}

/// A report of nothing helps nobody: the reason does.
fn ensure_any(run: &Run<'_>, ended: Result<()>) -> Result<()> {
    if !run.cells.is_empty() {
        return Ok(());
    }
    ended?;
    let why = run
        .left_out
        .first()
        .map_or_else(|| "no cell is selected".to_owned(), |left| format!("{}: {}", left.what, left.why));
    bail!("nothing was measured: {why}")
}

struct Run<'a> {
    effort: Effort,
    injector: Injector,
    clock: Clock<'a>,
    cells: Vec<Cell>,
    figures: Vec<Figure>,
    left_out: Vec<LeftOut>,
}

/// How much of the estimated time is over.
struct Clock<'a> {
    done: Duration,
    total: Duration,
    what: String,
    progress: &'a mut dyn Progress,
}

impl Clock<'_> {
    fn begin(&mut self, what: String) -> Result<()> {
        self.what = what;
        self.advance(Duration::ZERO)
    }

    fn advance(&mut self, by: Duration) -> Result<()> {
        self.done += by;
        self.total = self.total.max(self.done);
        self.progress.at(&self.what, self.done, self.total)
    }
}

impl Run<'_> {
    fn tell_missing(&mut self) {
        for (program, package) in tool::missing() {
            let why = format!("`{program}` is not installed: `apt-get install {package}`, or `cargo xtask setup`");
            self.clock.progress.note(&why);
        }
    }

    /// Leaves something out, and says so at once.
    fn leave_out(&mut self, what: String, why: String) {
        let left = LeftOut { what, why };
        if !self.left_out.contains(&left) {
            self.clock.progress.note(&format!("left out: {}: {}", left.what, left.why));
            self.left_out.push(left);
        }
    }

    /// The same, but for an error that is the user's own wish to end it.
    fn leave_out_unless_ended(&mut self, what: String, error: &anyhow::Error) -> Result<()> {
        self.clock.advance(Duration::ZERO)?;
        self.leave_out(what, format!("{error:#}"));
        Ok(())
    }

    /// Builds the peers' sites; those that cannot be are left out, unless there is no comparing without them.
    fn build(&mut self, peers: &[Peer], size: Size) -> Result<BTreeMap<Peer, Site>> {
        let mut sites = BTreeMap::new();
        for peer in peers.iter().copied().filter(|peer| *peer != Peer::DirectAgain) {
            self.clock.begin(format!("building {}", peer.name()))?;
            let missing: Vec<&str> = peer.tools().iter().copied().filter(|tool| tool::find(tool).is_none()).collect();
            let built = if missing.is_empty() { self.site(peer, size) } else { Err(missing_tools(&missing)) };
            match built {
                Ok(site) => drop(sites.insert(peer, site)),
                Err(error) if matches!(peer, Peer::Direct | Peer::Nsnet) => return Err(error),
                Err(error) => self.leave_out_unless_ended(peer.name().to_owned(), &error)?,
            }
            self.clock.advance(BUILD + PUBLISH * u32::from(size.published))?;
        }
        Ok(sites)
    }

    /// Builds a site; without IPv6, when it cannot be built with it.
    fn site(&mut self, peer: Peer, size: Size) -> Result<Site> {
        // Twice for each namespace: when it is made, and when it is attached.
        let mut build = |size| Site::build(peer, size, &mut || self.clock.advance(ATTACH / 2));
        let error = match build(size) {
            Err(error) if size.families != ONLY_V4 => error,
            built => return built,
        };
        let site = build(Size { families: ONLY_V4, ..size })?;
        self.leave_out_unless_ended(format!("{}, IPv6", peer.name()), &error)?;
        Ok(site)
    }

    fn tasks(&mut self, tasks: &[Task]) -> Result<()> {
        let wanted = |peer: &Peer| tasks.iter().any(|task| task.peers.contains(peer));
        let peers: Vec<Peer> = Peer::ALL.into_iter().filter(wanted).collect();
        let sites = match self.build(&peers, Size::default()) {
            Ok(sites) => sites,
            Err(error) => return self.leave_out_unless_ended("all that is on no scaling curve".to_owned(), &error),
        };
        for task in tasks {
            self.clock.begin(format!("{}: {}", task.way.name(), task.load.name()))?;
            let missing: Vec<&str> =
                outer::tools(task.load).iter().copied().filter(|program| tool::find(program).is_none()).collect();
            let cell = if missing.is_empty() { self.task(task, &sites) } else { Err(missing_tools(&missing)) };
            match cell {
                Ok(cell) => self.cells.push(cell),
                Err(error) => self.leave_out_unless_ended(self.clock.what.clone(), &error)?,
            }
        }
        Ok(())
    }

    fn task(&mut self, task: &Task, sites: &BTreeMap<Peer, Site>) -> Result<Cell> {
        let turn = turn(self.effort, task.load);
        self.cell(chosen(&task.peers, sites), |run, sites| {
            let Self { effort, injector, clock, .. } = run;
            if task.load.is_outer() {
                served(task, sites, *effort, || clock.advance(turn))
            } else if task.load.is_injected() {
                let what = What { way: task.way, load: task.load, point: None, blocks: task.blocks };
                scale::measure(&what, sites, injector, *effort, || clock.advance(turn))
            } else {
                sockets::measure(task, sites, *effort, || clock.advance(turn))
            }
        })
    }

    /// Measures a cell over the peers that can be measured.
    fn cell(
        &mut self,
        sites: Vec<(Peer, &Site)>,
        measure: impl FnMut(&mut Self, &[(Peer, &Site)]) -> Result<Cell>,
    ) -> Result<Cell> {
        let leave_out = |run: &mut Self, error: &anyhow::Error| {
            let what = run.clock.what.clone();
            run.leave_out_unless_ended(what, error)
        };
        without_failing(self, sites, measure, leave_out)
    }

    fn curves(&mut self, curves: &[Curve]) -> Result<()> {
        // Curves over the same sites are measured together: building a thousand namespaces takes longer than filling them.
        let mut points: Vec<(Axis, u32)> = Vec::new();
        for curve in curves {
            points.extend(curve.counts.iter().map(|count| (curve.axis, *count)));
        }
        points.sort_unstable();
        points.dedup();
        for (axis, count) in points {
            let here: Vec<&Curve> =
                curves.iter().filter(|curve| curve.axis == axis && curve.counts.contains(&count)).collect();
            if let Err(error) = self.point(Point { axis, count: count.into() }, &here) {
                self.leave_out_unless_ended(format!("{count} {}", axis.name()), &error)?;
            }
        }
        Ok(())
    }

    fn point(&mut self, point: Point, curves: &[&Curve]) -> Result<()> {
        let mut peers: Vec<Peer> = curves.iter().flat_map(|curve| curve.peers.iter().copied()).collect();
        peers.extend([Peer::Direct, Peer::DirectAgain]);
        peers.sort_unstable();
        peers.dedup();
        self.leave_out_full_trackers(point, &mut peers);
        let size = scale::size(Some(point));
        let sites = self.build(&peers, size)?;
        for (peer, site) in &sites {
            let mut figure =
                |of, count, value| self.figures.push(Figure { of, peer: *peer, count, value, range: None });
            if size.others > 0 && *peer != Peer::Direct {
                figure(Quantity::AttachTime, size.others.into(), site.attached_in.as_secs_f64());
            }
            if point.axis == Axis::Ports && *peer != Peer::Direct {
                figure(Quantity::PublishTime, point.count, site.published_in.as_secs_f64());
                let memory = site
                    .published_memory
                    .map(|memory| Figure::memory(Quantity::PortMemory, *peer, point.count, memory));
                self.figures.extend(memory);
            }
        }
        // Before anything else, since what the kernel has been given back it keeps for the next flows.
        if point.axis == Axis::Flows && point.count >= MANY {
            for (peer, site) in sites.iter().filter(|(peer, _)| **peer != Peer::Direct) {
                self.flow_memory(*peer, site, point.count)?;
            }
        }
        for curve in curves {
            self.clock.begin(format!("{} {}: {}", point.count, point.axis.name(), curve.load.name()))?;
            let what = What { way: curve.way, load: curve.load, point: Some(point), blocks: curve.blocks };
            let all: Vec<Peer> = [Peer::Direct, Peer::DirectAgain].into_iter().chain(curve.peers.clone()).collect();
            let turn = turn_at(self.effort, point);
            let measured = self.cell(chosen(&all, &sites), |run, sites| {
                let Self { effort, injector, clock, .. } = run;
                scale::measure(&what, sites, injector, *effort, || clock.advance(turn))
            });
            match measured {
                Ok(cell) => self.cells.push(cell),
                Err(error) => self.leave_out_unless_ended(self.clock.what.clone(), &error)?,
            }
        }
        Ok(())
    }

    /// What flows take of the kernel's memory: translated ones, and of nsnet also switched ones.
    fn flow_memory(&mut self, peer: Peer, site: &Site, flows: u64) -> Result<()> {
        for (of, way) in [(Quantity::SwitchedFlowMemory, Way::NsToNs), (Quantity::FlowMemory, Way::NsToOutside)] {
            if of == Quantity::SwitchedFlowMemory && peer != Peer::Nsnet {
                continue;
            }
            self.clock.begin(format!("{flows} flows: {}, {}", of.name(), peer.name()))?;
            self.clock.advance(ESTABLISH * flows as u32)?;
            match scale::flow_memory(site, way, &mut self.injector, flows as u32) {
                Ok(memory) => self.figures.push(Figure::memory(of, peer, flows, memory)),
                Err(error) => self.leave_out_unless_ended(self.clock.what.clone(), &error)?,
            }
        }
        Ok(())
    }

    /// nf_conntrack has a limit for the whole machine, which is not ours to change: beyond it packets are dropped, and what
    /// is left is no rate of a flow table.
    fn leave_out_full_trackers(&mut self, point: Point, peers: &mut Vec<Peer>) {
        const LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
        let limit = fs::read_to_string(LIMIT).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let Some(limit) = limit.filter(|limit| point.axis == Axis::Flows && point.count >= *limit) else {
            return;
        };
        for peer in peers.extract_if(.., |peer| peer.tracks_by_kernel()) {
            let why =
                format!("net.netfilter.nf_conntrack_max is {limit}; set it higher than {} to have it", point.count);
            self.leave_out(point.of(peer), why);
        }
    }
}

/// Measures a cell; a peer over which it fails is left out, and the others are measured without it. `run` is handed to
/// both closures.
fn without_failing<R, S>(
    run: &mut R,
    mut sites: Vec<(Peer, S)>,
    mut measure: impl FnMut(&mut R, &[(Peer, S)]) -> Result<Cell>,
    mut leave_out: impl FnMut(&mut R, &anyhow::Error) -> Result<()>,
) -> Result<Cell> {
    loop {
        let error = match measure(run, &sites) {
            Ok(cell) => return Ok(cell),
            Err(error) => error,
        };
        let failed = error.downcast_ref::<Over>().and_then(|Over(name)| Peer::named(name));
        let Some(failed) = failed.filter(|peer| !matches!(peer, Peer::Direct | Peer::DirectAgain | Peer::Nsnet)) else {
            return Err(error);
        };
        leave_out(run, &error)?;
        sites.retain(|(peer, _)| *peer != failed);
    }
}

/// Peers with their sites, as far as there are any; both direct ones share theirs.
fn chosen<'a>(peers: &[Peer], sites: &'a BTreeMap<Peer, Site>) -> Vec<(Peer, &'a Site)> {
    let site_of = |peer: Peer| sites.get(&if peer == Peer::DirectAgain { Peer::Direct } else { peer });
    peers.iter().filter_map(|peer| Some((*peer, site_of(*peer)?))).collect()
}

/// A cell whose load is a program's.
fn served(
    task: &Task,
    sites: &[(Peer, &Site)],
    effort: Effort,
    mut progress: impl FnMut() -> Result<()>,
) -> Result<Cell> {
    let cpus = two_cpus();
    let start = |(peer, site): &(Peer, &Site)| Served::start(task, *peer, site, cpus).with_context(|| over(*peer));
    let served = sites.iter().map(start).collect::<Result<Vec<Served>>>()?;
    let mut cell = Cell::new(task.way, task.load, None, sites.iter().map(|(peer, _)| *peer));
    let mut blocks = Blocks::new(task.blocks as u64);
    for _ in 0..task.blocks {
        let measure = |place: usize| -> Result<Sample> {
            served[place].measure(effort, cpus).with_context(|| over(sites[place].0))
        };
        let samples = blocks.once(served.len(), measure, |_repeats| progress())?;
        cell.rows.iter_mut().zip(&samples).for_each(|(row, sample)| row.add(sample));
    }
    (cell.repeated, cell.disturbed) = (blocks.repeated, blocks.disturbed);
    Ok(cell)
}

/// What a peer's error says first.
pub(super) fn over(peer: Peer) -> Over {
    Over(peer.name().to_owned())
}

fn missing_tools(missing: &[&str]) -> anyhow::Error {
    anyhow::anyhow!("there is no {}: `cargo xtask setup` installs it", missing.join(", "))
}

/// About how long one peer's turn takes.
fn turn(effort: Effort, load: Load) -> Duration {
    if load.is_outer() {
        let before = if load == Load::Sockperf { BEFORE_SOCKPERF } else { Duration::ZERO };
        return effort.outer_slot() + AROUND_OUTER_SLOT + before;
    }
    effort.slot() + if load.is_injected() { AROUND_INJECTED_SLOT } else { AROUND_SLOT }
}

/// The same at a point of a scaling curve, where all is injected.
fn turn_at(effort: Effort, point: Point) -> Duration {
    effort.slot_of(Some(point)) + AROUND_INJECTED_SLOT
}

/// What a peer takes for each object of an axis before anything is measured.
fn around(axis: Axis) -> Duration {
    match axis {
        Axis::Namespaces => ATTACH,
        Axis::Ports => PUBLISH,
        Axis::Flows => ESTABLISH,
    }
}

pub(super) fn estimate(effort: Effort, tasks: &[Task], curves: &[Curve]) -> Duration {
    let turns = |peers: usize, blocks: usize| (peers * blocks) as u32;
    let tasks = tasks.iter().map(|task| turn(effort, task.load) * turns(task.peers.len(), task.blocks));
    let curves = curves.iter().flat_map(|curve| {
        curve.counts.iter().map(|count| {
            (BUILD + around(curve.axis) * *count) * curve.peers.len() as u32
                + turn_at(effort, Point { axis: curve.axis, count: (*count).into() })
                    * turns(curve.peers.len() + 2, curve.blocks)
        })
    });
    BUILD * Peer::ALL.len() as u32 + tasks.sum::<Duration>() + curves.sum::<Duration>()
}

/// What this machine is.
fn machine() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let of = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let (cpus, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let kilobytes = of(&memory, "MemTotal").trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0);
    let mut meter = Meter::of_this_thread();
    let present = tool::ALL.into_iter().filter(|(program, _)| tool::find(program).is_some());
    Machine {
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        cpu: of(&cpus, "model name"),
        cpus: cpus.lines().filter(|line| line.starts_with("processor")).count(),
        memory: kilobytes / 1e6,
        pinned: two_cpus().is_some(),
        counts_instructions: meter.read().is_ok_and(|reading| reading.counts_instructions()),
        nsnet: env!("CARGO_PKG_VERSION").to_owned(),
        tools: present.map(|(program, _)| program.to_owned()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(broken: &[Peer]) -> (Result<Cell>, Vec<String>) {
        let peers = [Peer::Direct, Peer::DirectAgain, Peer::Bridge, Peer::Macvlan, Peer::Nsnet];
        let mut left_out = Vec::new();
        let measure = |_run: &mut Vec<String>, sites: &[(Peer, ())]| {
            if let Some((peer, ())) = sites.iter().find(|(peer, ())| broken.contains(peer)) {
                return Err(anyhow::anyhow!("it is broken")).with_context(|| over(*peer));
            }
            Ok(Cell::new(Way::NsToNs, Load::Tcp, None, sites.iter().map(|(peer, ())| *peer)))
        };
        let leave_out = |run: &mut Vec<String>, error: &anyhow::Error| {
            run.push(format!("{error:#}"));
            Ok(())
        };
        let sites = peers.map(|peer| (peer, ())).to_vec();
        (without_failing(&mut left_out, sites, measure, leave_out), left_out)
    }

    #[test]
    fn a_peer_that_fails_is_left_out_of_its_cell() {
        let (cell, left_out) = measured(&[Peer::Bridge, Peer::Macvlan]);
        let peers: Vec<Peer> = cell.unwrap().rows.iter().map(|row| row.peer).collect();
        assert_eq!(peers, [Peer::Direct, Peer::DirectAgain, Peer::Nsnet]);
        assert_eq!(
            left_out,
            ["cannot measure over Linux bridge: it is broken", "cannot measure over macvlan bridge mode: it is broken",]
        );
    }

    #[test]
    fn without_the_direct_veth_and_nsnet_there_is_no_cell() {
        for peer in [Peer::Direct, Peer::DirectAgain, Peer::Nsnet] {
            let (cell, left_out) = measured(&[peer]);
            assert!(cell.is_err() && left_out.is_empty(), "{left_out:?}");
        }
    }
}
