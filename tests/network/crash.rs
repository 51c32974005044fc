//! Every system call of a verb, cut off and failed.
//!
//! The verb runs under a tracer, which tells its calls. Then, for each call that changes something, it is killed there,
//! run again, and has to be done, whole, with nothing left over; it is asked to end there, and has to be done or undone
//! without being run again; and for each call that could fail, it fails there, and everything has to be as before, or the
//! verb be done all the same. Meanwhile two namespaces that are not concerned ping each other and may lose nothing.
//!
//! A kill at a call that only looks is a kill at the next one that changes, and there is one more: after the last.
//!
//! By default some calls are taken, evenly; all of them, and every error of each, with NSNET_ALL_POINTS=1, which takes
//! hours (or part of them: NSNET_ALL_POINTS=3/8 is the third eighth; NSNET_ALL_POINTS=kills is all kills, and the errors
//! of every day).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nsnet::lab::Lab;
use serde_json::json;

use super::bed::until;
use super::tracer::{self, Call, Fault, Run};
use super::world::World;

/// All kills are wanted, and no more errors than usual.
const KILLS: &str = "kills";

/// A verb and the one that undoes it.
pub(crate) struct Verb<'a> {
    pub(crate) name: &'a str,
    pub(crate) lab: &'a Lab,
    pub(crate) make: &'a [&'a str],
    pub(crate) unmake: &'a str,
    /// Fails when what the verb makes does not work.
    pub(crate) works: &'a dyn Fn() -> Result<()>,
    /// How many calls to take of each kind, unless all are.
    pub(crate) sample: usize,
}

/// What was tried.
#[derive(Debug, Default)]
struct Tally {
    killed: usize,
    ended: usize,
    kill_points: usize,
    failed: usize,
    error_points: usize,
    /// Calls without which the verb was done all the same.
    harmless: BTreeMap<String, usize>,
    /// The longest that a verb took that was run again after a kill.
    worst: Duration,
    /// Calls that the verb did not come to this time.
    missed: usize,
    wrong: Vec<String>,
}

/// A call, and what becomes of it.
type Point<'a> = (&'a Call, Fault);

/// How a verb with a fault ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Killed,
    /// It was asked to end, and did.
    Ended,
    /// The call that failed was not needed.
    Done,
    /// It said why.
    Refused,
}

impl Tally {
    fn note(&mut self, line: &str, calls: &[Call], point: Point<'_>, tried: Result<()>) {
        if let Err(error) = tried {
            self.wrong.push(format!("{}: {error:#}", describe(line, calls, point)));
        }
    }
}

fn describe(line: &str, calls: &[Call], (call, fault): Point<'_>) -> String {
    let at = calls.iter().position(|other| std::ptr::eq(other, call)).unwrap_or_default();
    let Call { name, path, .. } = call;
    format!("`{line}`, {fault:?} at call {at} of {} ({name} {path})", calls.len())
}

impl Verb<'_> {
    /// Does all of it, and prints what was done. `make` is one verb, or several that are not tried themselves.
    pub(crate) fn try_all(&self) -> Result<()> {
        let started = Instant::now();
        let before = World::of(self.lab)?;
        let mut tally = Tally::default();
        if let [make] = self.make {
            self.try_making(make, &before, &mut tally)?;
        }
        self.try_unmaking(&before, &mut tally)?;
        self.report(&tally, started);
        ensure!(tally.wrong.is_empty(), "{} went wrong:\n{}", tally.wrong.len(), tally.wrong.join("\n"));
        Ok(())
    }

    fn try_making(&self, make: &str, before: &World, tally: &mut Tally) -> Result<()> {
        let calls = self.calls(make)?;
        self.check_made()?;
        self.undo(before)?;
        for point in self.points(&calls, tally) {
            let tried = self.faulty(make, point, tally).and_then(|outcome| match outcome {
                Outcome::Killed => self.again(make, tally).and_then(|()| self.check_made()),
                Outcome::Done => self.check_made(),
                Outcome::Refused => self.check_as(before),
                Outcome::Ended => World::of(self.lab)?.check_similar(before).or_else(|_it_was_done| self.check_made()),
            });
            tally.note(make, &calls, point, tried);
            self.undo(before).with_context(|| describe(make, &calls, point))?;
        }
        Ok(())
    }

    fn try_unmaking(&self, before: &World, tally: &mut Tally) -> Result<()> {
        self.make_all()?;
        let calls = self.calls(self.unmake)?;
        self.check_gone(before)?;
        self.make_all()?;
        for point in self.points(&calls, tally) {
            let as_before = World::of(self.lab)?.shape();
            let tried = self.faulty(self.unmake, point, tally).and_then(|outcome| match outcome {
                Outcome::Killed => self.again(self.unmake, tally).and_then(|()| self.check_gone(before)),
                Outcome::Done => self.check_gone(before),
                Outcome::Ended => self.check_made().or_else(|_it_was_done| self.check_gone(before)),
                Outcome::Refused => {
                    let now = World::of(self.lab)?.shape();
                    ensure!(now == as_before, "not as before:\n{}", as_before.difference(&now));
                    self.check_made()
                }
            });
            let was_refused = tried.is_ok() && World::of(self.lab)?.shape() == as_before;
            tally.note(self.unmake, &calls, point, tried);
            if !was_refused {
                self.undo(before)
                    .and_then(|()| self.make_all())
                    .with_context(|| describe(self.unmake, &calls, point))?;
            }
        }
        self.undo(before)
    }

    fn make_all(&self) -> Result<()> {
        self.make.iter().try_for_each(|line| self.lab.nsnet(line).map(drop))?;
        self.check_made()
    }

    /// The calls of a verb that is done.
    fn calls(&self, line: &str) -> Result<Vec<Call>> {
        let run = self.traced(line, &[])?;
        ensure!(run.code == Some(0), "`{line}`: {}", run.stderr);
        Ok(run.calls)
    }

    fn report(&self, tally: &Tally, started: Instant) {
        let Tally { killed, ended, kill_points, failed, error_points, harmless, worst, missed, wrong } = tally;
        println!(
            "{}: killed at {killed} and ended at {ended} of {kill_points} calls, failed at {failed} of {error_points} pairs \
             of call and error, {missed} not met; {} leaks or halves; longest run after a kill {worst:?}; {:?}",
            self.name,
            wrong.len(),
            started.elapsed()
        );
        for (call, times) in harmless {
            println!("{}: done without {call}, {times} times", self.name);
        }
    }

    fn traced(&self, line: &str, faults: &[(&Call, Fault)]) -> Result<Run> {
        let words =
            line.split(' ').map(|word| word.strip_prefix('@').map_or(word.to_owned(), |name| self.lab.name(name)));
        tracer::run(&mut self.lab.command(words), faults)
    }

    /// Runs a verb with a fault, and tells what came of it.
    fn faulty(&self, line: &str, (call, fault): Point<'_>, tally: &mut Tally) -> Result<Outcome> {
        let run = self.traced(line, &[(call, fault)])?;
        match (fault, run.code) {
            (Fault::Kill, None) => Ok(Outcome::Killed),
            (Fault::Terminate, None) => Ok(Outcome::Ended),
            // How many flows there are to forget is not the same each time.
            (_, Some(0)) if !run.was_hit => {
                tally.missed += 1;
                Ok(Outcome::Done)
            }
            (Fault::Fail(_), Some(0)) => {
                *tally.harmless.entry(format!("{} {}", call.name, call.path)).or_default() += 1;
                Ok(Outcome::Done)
            }
            // It says in one line why.
            (Fault::Fail(errno), Some(1)) => {
                let why = run.stderr.lines().last().unwrap_or_default();
                ensure!(why.starts_with("nsnet: "), "no reason was given: {:?}", run.stderr);
                // A socket that fails is closed by the library that reads it, which keeps the reason to itself.
                let names =
                    [format!("(os error {})", errno as i32), format!("{errno:?}: "), "netlink socket".to_owned()];
                let is_named = names.iter().any(|name| why.contains(name));
                // The loader tries what the kernel can do, and is misled.
                let is_trial = ["bpf btf load", "bpf program load"].contains(&call.name.as_str())
                    || why.contains("when the loader tried");
                ensure!(is_named || is_trial, "{errno} is not named: {why}");
                ensure!(!why.contains("taking it back"), "it could not be taken back: {why}");
                ensure!(!why.contains(".rs") && !why.contains("0x"), "it tells what is nobody's business: {why}");
                Ok(Outcome::Refused)
            }
            _ => bail!("it ended with {:?}: {}", run.code, run.stderr),
        }
    }

    /// Where to kill the verb, then where to fail which call.
    fn points<'b>(&self, calls: &'b [Call], tally: &mut Tally) -> Vec<Point<'b>> {
        let changing = || calls.iter().filter(|call| call.changes);
        let kills: Vec<Point<'_>> = changing().map(|call| (call, Fault::Kill)).collect();
        let ends: Vec<Point<'_>> = changing().map(|call| (call, Fault::Terminate)).collect();
        let errors = |call: &'b Call| call.errors.iter().map(move |errno| (call, Fault::Fail(*errno)));
        let errors: Vec<Point<'_>> = calls.iter().flat_map(errors).collect();
        tally.kill_points += kills.len();
        tally.error_points += errors.len();
        let kills = if wanted().as_deref() == Some(KILLS) { kills } else { chosen(kills, self.sample) };
        let (ends, errors) = (chosen(ends, self.sample / 4), chosen(errors, self.sample));
        tally.killed += kills.len();
        tally.ended += ends.len();
        tally.failed += errors.len();
        [kills, ends, errors].concat()
    }

    /// After a kill.
    fn again(&self, line: &str, tally: &mut Tally) -> Result<()> {
        let started = Instant::now();
        self.lab.nsnet(line)?;
        tally.worst = tally.worst.max(started.elapsed());
        Ok(())
    }

    fn check_made(&self) -> Result<()> {
        check_no_drift(self.lab)?;
        (self.works)()
    }

    fn check_gone(&self, before: &World) -> Result<()> {
        check_no_drift(self.lab)?;
        self.check_as(before)
    }

    /// What is as it was before, or will be in a moment: the kernel takes a program off some time after its link's end.
    fn check_as(&self, before: &World) -> Result<()> {
        let is_as_before = || Ok(World::of(self.lab)?.check_similar(before).is_ok());
        match until(Duration::from_secs(10), is_as_before) {
            Ok(_after) => Ok(()),
            Err(_late) => World::of(self.lab)?.check_similar(before),
        }
    }

    fn undo(&self, before: &World) -> Result<()> {
        self.lab.nsnet(self.unmake)?;
        self.check_gone(before)
    }
}

/// Which points are wanted beside those of every day.
fn wanted() -> Option<String> {
    std::env::var("NSNET_ALL_POINTS").ok()
}

/// Of all points, of kills and of errors, which part is wanted.
pub(crate) fn part() -> Option<String> {
    wanted().filter(|wanted| wanted != KILLS)
}

/// All of them, or some, evenly.
pub(crate) fn chosen<T>(points: Vec<T>, sample: usize) -> Vec<T> {
    let (total, points) = (points.len(), points.into_iter().enumerate());
    let is_chosen: Box<dyn Fn(usize) -> bool> = match part() {
        // A part of all: K/N is each Nth, from the Kth on.
        Some(part) => {
            match part.split_once('/').and_then(|(k, n)| Some((k.parse::<usize>().ok()?, n.parse::<usize>().ok()?))) {
                Some((k, n)) => Box::new(move |at| at % n == (k + n - 1) % n),
                None => Box::new(|_at| true),
            }
        }
        None if total <= sample => Box::new(|_at| true),
        None => Box::new(move |at| at * sample / total != (at + 1) * sample / total),
    };
    points.filter(|(at, _)| is_chosen(*at)).map(|(_, point)| point).collect()
}

fn check_no_drift(lab: &Lab) -> Result<()> {
    let output = lab.try_nsnet("-o json status")?;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("`status` said {}", String::from_utf8_lossy(&output.stderr)))?;
    ensure!(status["drift"] == json!([]), "there is drift: {}", status["drift"]);
    Ok(())
}
