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
use super::place::{self, Place};
use super::reserved;
use super::sockets;
use super::steps;
use super::store::{BPFFS, Store};
use super::upgrade;
use super::uplink;
use crate::model::plan::{Step, plan};
use crate::model::state::State;

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
        Ok(Store::read_only(&self.key)?.load()?.state)
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
        self.change_and_repair(edit, |_host, _state, _answer| Ok(Vec::new()))
    }

    /// The same, for a verb that also mends what it finds broken.
    ///
    /// `repair` tells of objects that are in both states but not as they should be in the kernel: they are made anew.
    pub fn change_and_repair<T>(
        &self,
        edit: impl FnOnce(&mut State) -> std::result::Result<T, anyhow::Error>,
        repair: impl FnOnce(&Self, &State, &T) -> Result<Vec<Step>>,
    ) -> std::result::Result<T, anyhow::Error> {
        let store = Store::locked(&self.key)?;
        let old = self.recover(&store)?;
        let mut new = old.clone();
        let answer = edit(&mut new)?;
        if new.networks != old.networks {
            uplink::look_around(self, &old.networks, &mut new)?;
        }
        reserved::note_before(&mut new)?;
        let mut steps = plan(&old, &new);
        steps.extend(repair(self, &new, &answer)?);
        if steps.is_empty() {
            if new != old {
                store.save(&new, &[])?;
            }
            return Ok(answer);
        }
        self.check_possible(&steps)?;
        self.check_pins(&steps)?;
        store.save(&old, &steps)?;
        let outcome = self.carry_out(&steps);
        store.save(if outcome.is_ok() { &new } else { &old }, &[])?;
        outcome.map(|()| answer).map_err(Into::into)
    }

    /// The state that the host is in, when what was cut off has been undone.
    pub(super) fn recover(&self, store: &Store) -> Result<State> {
        let record = store.load()?;
        upgrade::settle(self, &record.state)?;
        if !record.under_way.is_empty() {
            // Undoing is harmless for steps that were not begun, so all are undone.
            let undone = self.take_back(&record.under_way);
            store.save(&record.state, &[])?;
            undone?;
        }
        Ok(record.state)
    }

    /// Refuses to work with pins that are not what this nsnet knows, unless that is to take all of them down.
    fn check_pins(&self, steps: &[Step]) -> Result<()> {
        if !self.dataplane.is_loaded() {
            return Ok(());
        }
        match self.dataplane.check() {
            Err(_whatever_it_is) if steps.contains(&Step::UnloadDataplane) && !steps.contains(&Step::LoadDataplane) => {
                self.dataplane.abandon()
            }
            other => other,
        }
    }

    /// Nothing is changed before it is known that it can be done.
    fn check_possible(&self, steps: &[Step]) -> Result<()> {
        let loads = steps.contains(&Step::LoadDataplane) && !mounts::is_bpffs(Path::new(BPFFS)).unwrap_or(false);
        let mounts = steps.iter().any(|step| matches!(step, Step::AddNamespace(_)));
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
        sockets::refresh_locals(self).or_else(|error| self.take_back(steps).and(Err(error)))
    }

    /// Undoes steps, last first; goes on after an error, and reports the first.
    fn take_back(&self, steps: &[Step]) -> Result<()> {
        let mut first = Ok(());
        for step in steps.iter().rev() {
            let undone = steps::carry_out(self, &step.undo());
            if first.is_ok() {
                first = undone;
            }
        }
        first
    }
}
