//! The namespace that acts as host: who we are, and carrying a plan out, or back.

use std::path::Path;
use std::time::{Duration, Instant};

use super::dataplane::Dataplane;
use super::error::{KernelError, Result};
use super::features::Features;
use super::maps::Maps;
use super::mounts;
use super::netlink::Netlink;
use super::netns::NetNs;
use super::observe::{self, Scope};
use super::place::{self, Place};
use super::reserved;
use super::sockets;
use super::steps;
use super::store::{BPFFS, Record, Store, Turn};
use super::uplink;
use crate::model::drift::Drift;
use crate::model::plan::{Step, plan};
use crate::model::state::State;

/// A change of the state, and what it takes.
#[derive(Debug)]
pub struct Change<T> {
    /// What the edit answered.
    pub answer: T,
    /// The state before.
    pub old: State,
    /// The state after.
    pub new: State,
    /// What was not as the state before has it.
    pub drift: Vec<Drift>,
    /// What is done, in this order.
    pub steps: Vec<Step>,
}

/// One host.
#[derive(Debug)]
pub struct Host {
    /// Its namespace, which is the process's own.
    pub ns: NetNs,
    /// Netlink in it.
    pub netlink: Netlink,
    /// Its programs.
    pub dataplane: Dataplane,
    /// What the kernel can do.
    pub features: Features,
    /// The name of its file and pins: the namespace's cookie, which no other namespace has while the machine is up.
    pub key: String,
    /// Told of each step and the time it took.
    pub on_step: fn(&Step, Duration),
    place: Place,
}

impl Host {
    /// Enters the host's namespace: `which` names one under /run/netns, or is a path when it has a slash; else the
    /// current one. To be called before the process has threads.
    pub fn enter(which: Option<&str>) -> Result<Self> {
        let place = place::leave_private_mount_namespace()?;
        let ns = match which {
            None => NetNs::current()?,
            Some(path) if path.contains('/') => NetNs::open(Path::new(path))?,
            Some(name) => NetNs::named(name)?,
        };
        ns.enter()?;
        let key = format!("{:x}", ns.cookie()?);
        Ok(Self {
            netlink: Netlink::here()?,
            dataplane: Dataplane::at(Path::new(BPFFS), &key),
            features: Features::probe(),
            key,
            ns,
            on_step: |_step, _took| (),
            place,
        })
    }

    /// The maps of the loaded dataplane.
    pub fn maps(&self) -> Maps {
        Maps::of(&self.dataplane)
    }

    /// The state as it was left, for a verb that only looks.
    pub fn state(&self) -> Result<State> {
        Ok(self.record()?.state)
    }

    /// The same, with what is under way.
    pub fn record(&self) -> Result<Record> {
        Store::read_only(&self.key)?.load()
    }

    /// A member namespace, which must not be the host's own.
    pub fn member(&self, name: &str) -> Result<NetNs> {
        let ns = NetNs::named(name)?;
        if ns.id() == self.ns.id() {
            return Err(KernelError::refused(format!("use namespace {name}"), "it is the one that acts as host"));
        }
        Ok(ns)
    }

    /// Refuses what would not outlive this command: a mount made in a private mount namespace goes with it.
    pub fn check_mounts_last(&self, verb: &str) -> Result<()> {
        match &self.place {
            Place::Stuck { why } => {
                Err(KernelError::refused(verb, format!("what it mounts would vanish with this command ({why})"))
                    .with_remedy("run it outside, with --host-ns NAME"))
            }
            Place::Home | Place::Entered { .. } => Ok(()),
        }
    }

    /// Changes the state by `edit` and the kernel with it, under the lock. What fails is taken back.
    pub fn change<T>(
        &self,
        edit: impl FnOnce(&mut State) -> std::result::Result<T, anyhow::Error>,
    ) -> std::result::Result<T, anyhow::Error> {
        self.change_and_repair(edit, |_state, _answer| Scope::Nothing).map(|change| change.answer)
    }

    /// The same; and what is in the scope that `look` tells, was there before and is not as it should be in the kernel,
    /// is put right.
    pub fn change_and_repair<T>(
        &self,
        edit: impl FnOnce(&mut State) -> std::result::Result<T, anyhow::Error>,
        look: impl FnOnce(&State, &T) -> Scope,
    ) -> std::result::Result<Change<T>, anyhow::Error> {
        self.change_in(&Store::locked(&self.key)?, edit, look)
    }

    /// The same, for somebody who does not wait longer than `limit`: `None` when other verbs are under way for so long, and
    /// nothing was done.
    pub fn change_in_turn<T>(
        &self,
        turn: &mut Turn,
        limit: Duration,
        edit: impl FnOnce(&mut State) -> std::result::Result<T, anyhow::Error>,
        look: impl FnOnce(&State, &T) -> Scope,
    ) -> std::result::Result<Option<Change<T>>, anyhow::Error> {
        match turn.wait(&self.key, limit)? {
            Some(store) => self.change_in(&store, edit, look).map(Some),
            None => Ok(None),
        }
    }

    fn change_in<T>(
        &self,
        store: &Store,
        edit: impl FnOnce(&mut State) -> std::result::Result<T, anyhow::Error>,
        look: impl FnOnce(&State, &T) -> Scope,
    ) -> std::result::Result<Change<T>, anyhow::Error> {
        let record = store.load()?;
        if !record.under_way.is_empty() {
            // Undoing is harmless for steps that were not begun, so all are undone.
            let undone = self.take_back(&record.under_way);
            store.save(&record.state, &[])?;
            undone?;
        }
        let change = self.prepare(record.state, edit, look)?;
        if change.steps.is_empty() {
            if change.new != change.old {
                store.save(&change.new, &[])?;
            }
            return Ok(change);
        }
        store.save(&change.old, &change.steps)?;
        let outcome = self.carry_out(&change.steps);
        store.save(if outcome.is_ok() { &change.new } else { &change.old }, &[])?;
        outcome.map(|()| change).map_err(Into::into)
    }

    /// What such a change would do. Nothing is changed; what would be refused is refused.
    pub fn preview<T>(
        &self,
        edit: impl FnOnce(&mut State) -> std::result::Result<T, anyhow::Error>,
        look: impl FnOnce(&State, &T) -> Scope,
    ) -> std::result::Result<Change<T>, anyhow::Error> {
        self.prepare(self.state()?, edit, look)
    }

    /// Puts right whatever of the state is not as it should be in the kernel, and says what it was. Nothing is changed
    /// when nothing differs. What cannot be put right is told by `status` again.
    pub fn repair(&self) -> std::result::Result<Change<()>, anyhow::Error> {
        self.change_and_repair(|_state| Ok(()), |_state, ()| Scope::Everything)
    }

    fn prepare<T>(
        &self,
        old: State,
        edit: impl FnOnce(&mut State) -> std::result::Result<T, anyhow::Error>,
        look: impl FnOnce(&State, &T) -> Scope,
    ) -> std::result::Result<Change<T>, anyhow::Error> {
        let mut new = old.clone();
        let answer = edit(&mut new)?;
        let scope = look(&new, &answer);
        // Interfaces of the host's may have come and gone.
        if new.networks != old.networks || matches!(scope, Scope::Everything) {
            uplink::look_around(self, &old.networks, &mut new)?;
        }
        reserved::note_before(&mut new)?;
        let drift = observe::drift(self, &old, &scope)?;
        let steps = plan(&old, &new, &drift);
        self.check_possible(&steps)?;
        Ok(Change { answer, old, new, drift, steps })
    }

    /// Nothing is changed before it is known that it can be done.
    fn check_possible(&self, steps: &[Step]) -> Result<()> {
        let has = |is_meant: fn(&Step) -> bool| steps.iter().any(|step| is_meant(step.inner()));
        let loads = has(|step| *step == Step::LoadDataplane);
        if !loads && !self.dataplane.is_loaded() && has(needs_the_dataplane) {
            let why = "programs and maps are not loaded any more";
            return Err(KernelError::refused("change the dataplane", why).with_remedy("`nsnet apply` brings them back"));
        }
        let loads = loads && !mounts::is_bpffs(Path::new(BPFFS)).unwrap_or(false);
        let mounts = has(|step| matches!(step, Step::AddNamespace(_)));
        if loads || mounts {
            self.check_mounts_last(if mounts { "make a namespace" } else { "mount the pins' file system" })?;
        }
        steps.iter().try_for_each(|step| steps::check(self, step))
    }

    fn carry_out(&self, steps: &[Step]) -> Result<()> {
        for (position, step) in steps.iter().enumerate() {
            let began = Instant::now();
            let outcome = steps::carry_out(self, step);
            (self.on_step)(step, began.elapsed());
            if let Err(error) = outcome {
                // The step that failed may be half done; undoing it is harmless.
                let done = steps.get(..=position).unwrap_or(steps);
                return match self.take_back(done) {
                    Ok(()) => Err(error),
                    Err(left) => Err(KernelError::refused(step, format!("{error}; and taking it back: {left}"))),
                };
            }
        }
        // The steps may have given the host addresses, or taken some.
        sockets::refresh_locals(self).map(|_was_stale| ()).or_else(|error| self.take_back(steps).and(Err(error)))
    }

    /// Undoes steps, last first; goes on after an error, and reports the first.
    fn take_back(&self, steps: &[Step]) -> Result<()> {
        let mut first = Ok(());
        for step in steps.iter().rev() {
            let undone = step.undo().map_or(Ok(()), |undo| steps::carry_out(self, &undo));
            if first.is_ok() {
                first = undone;
            }
        }
        first
    }
}

/// Whether a step enters something into the dataplane, or puts a program somewhere.
fn needs_the_dataplane(step: &Step) -> bool {
    matches!(step, Step::AddNetwork(_) | Step::Attach(..) | Step::AddPublish(_))
}
