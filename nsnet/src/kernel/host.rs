//! The namespace that acts as host: who we are, and carrying a plan out, or back.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::alive;
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
use super::signals::Uninterrupted;
use super::sockets;
use super::steps::{self, Around};
use super::store::{BPFFS, Record, Store};
use super::upgrade;
use super::uplink;
use crate::model::drift::Drift;
use crate::model::name::Name;
use crate::model::plan::{Step, plan};
use crate::model::state::State;

/// The MTU when neither the user nor a default route gives one.
const ETHERNET_MTU: u16 = 1500;

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
    /// Told what went wrong without making the verb fail, and what it waits for.
    pub on_note: fn(&str),
    /// What of `features` could not be found out.
    doubt: Option<String>,
    place: Place,
    /// Namespaces whose names a verb has deleted: as long as it can be undone, they are open.
    pub(super) deleted: RefCell<BTreeMap<Name, NetNs>>,
}

impl Host {
    /// Enters the host's namespace: `which` names one under /run/netns, or is a path when it has a slash; else the
    /// current one. To be called before the process has threads.
    pub fn enter(which: Option<&str>) -> Result<Self> {
        let place = place::leave_private_mount_namespace()?;
        let ns = match which {
            None => NetNs::current()?,
            Some(path) if path.contains('/') => NetNs::open(Path::new(path))
                .map_err(|error| not_there(error, "say the path of a namespace, such as /proc/PID/ns/net"))?,
            Some(name) => NetNs::named(name)
                .map_err(|error| not_there(error, "`ip netns add NAME` makes it; a path has a slash in it"))?,
        };
        ns.enter()?;
        let key = format!("{:x}", ns.cookie()?);
        let (features, known) = Features::find_out();
        Ok(Self {
            netlink: Netlink::here()?,
            dataplane: Dataplane::at(Path::new(BPFFS), &key),
            features,
            key,
            ns,
            on_step: |_step, _took| (),
            on_note: |_note| (),
            doubt: known.err().map(|error| error.to_string()),
            place,
            deleted: RefCell::default(),
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

    /// The same, with the steps of a verb that is under way or was cut off.
    pub fn record(&self) -> Result<Record> {
        Store::read_only(&self.key)?.load()
    }

    /// What the file has to do with the kernel, when it cannot be believed: a verb was cut off, or the file is gone.
    pub fn disorder(&self) -> Result<Option<String>> {
        let is_so =
            |record: &Record| Ok(!record.under_way.is_empty() || upgrade::is_cut_off(self)? || self.is_lost(record)?);
        if !is_so(&self.record()?)? {
            return Ok(None);
        }
        // It looks the same while a verb is under way.
        let store = Store::shared(&self.key, self.on_note)?;
        let record = store.load()?;
        Ok(if !record.under_way.is_empty() {
            Some("a verb was cut off: the next one that changes something takes back what it did".to_owned())
        } else if upgrade::is_cut_off(self)? {
            Some("an upgrade was cut off: the next verb that changes something takes it back".to_owned())
        } else {
            self.is_lost(&record)?.then(|| format!("{}; {}", Self::LOST, Self::REMEDY))
        })
    }

    const LOST: &str = "a dataplane is loaded, and the file that says what for is gone";
    const REMEDY: &str = "`nsnet down` removes everything of this host that the kernel shows";

    /// Whether there are pins that nobody knows.
    fn is_lost(&self, record: &Record) -> Result<bool> {
        Ok(record.state.is_empty() && record.under_way.is_empty() && self.dataplane.has_pins()?)
    }

    /// A member namespace, which must not be the host's own.
    pub fn member(&self, name: &str) -> Result<NetNs> {
        let ns = NetNs::named(name).map_err(|error| not_there(error, "`nsnet ns add` makes it"))?;
        if ns.id() == self.ns.id() {
            return Err(KernelError::refused(format!("use namespace {name}"), "it is the one that acts as host"));
        }
        Ok(ns)
    }

    /// The MTU of a network for which none is asked for: as netavark does, that of the default route's interface.
    pub fn default_mtu(&self) -> Result<u16> {
        let Some(index) = self.netlink.default_route_interface()? else { return Ok(ETHERNET_MTU) };
        let link = self.netlink.link_by_index(index)?;
        Ok(link.map_or(ETHERNET_MTU, |link| u16::try_from(link.mtu).unwrap_or(u16::MAX)))
    }

    /// Refuses what would not outlive this command: a mount made in a private mount namespace goes with it.
    pub fn check_mounts_last(&self, verb: &str) -> Result<()> {
        let why = match &self.place {
            Place::Stuck { why } => Some(why.clone()),
            Place::Unknown => place::why_private()?,
            Place::Home | Place::Entered { .. } => None,
        };
        match why {
            Some(why) => {
                Err(KernelError::refused(verb, format!("what it mounts would vanish with this command ({why})"))
                    .with_remedy("run it outside, with --host-ns NAME"))
            }
            None => Ok(()),
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
    /// is put right. That is never taken back, as it is to be so before and after.
    pub fn change_and_repair<T>(
        &self,
        edit: impl FnOnce(&mut State) -> std::result::Result<T, anyhow::Error>,
        look: impl FnOnce(&State, &T) -> Scope,
    ) -> std::result::Result<Change<T>, anyhow::Error> {
        self.change_in(Store::locked(&self.key, self.on_note)?, edit, look)
    }

    /// The same without waiting: `None` when another verb is under way, and nothing was done.
    pub fn change_if_free<T>(
        &self,
        edit: impl FnOnce(&mut State) -> std::result::Result<T, anyhow::Error>,
        look: impl FnOnce(&State, &T) -> Scope,
    ) -> std::result::Result<Option<Change<T>>, anyhow::Error> {
        match Store::locked_if_free(&self.key)? {
            Some(store) => self.change_in(store, edit, look).map(Some),
            None => Ok(None),
        }
    }

    fn change_in<T>(
        &self,
        store: Store,
        edit: impl FnOnce(&mut State) -> std::result::Result<T, anyhow::Error>,
        look: impl FnOnce(&State, &T) -> Scope,
    ) -> std::result::Result<Change<T>, anyhow::Error> {
        let _whole = Uninterrupted::begin()?;
        let old = self.settled(&store)?;
        let change = self.prepare(old, edit, look)?;
        self.check(&change.steps)?;
        if !change.new.is_empty() {
            self.mark();
        }
        let outcome = if !change.steps.is_empty() {
            self.replace(&store, &change.old, &change.new, &change.steps)
        } else if change.new != change.old {
            store.save(&change.new)
        } else {
            Ok(())
        };
        self.tidy(&store);
        // A signal that was held back ends us before anything else is dropped.
        drop(store);
        outcome.map(|()| change).map_err(Into::into)
    }

    /// What such a change would do, with no other under way. Nothing is changed, and only what the edit refuses is
    /// refused: see [`Host::check`].
    pub fn preview<T>(
        &self,
        edit: impl FnOnce(&mut State) -> std::result::Result<T, anyhow::Error>,
        look: impl FnOnce(&State, &T) -> Scope,
    ) -> std::result::Result<Change<T>, anyhow::Error> {
        let store = Store::shared(&self.key, self.on_note)?;
        self.prepare(store.load()?.state, edit, look)
    }

    /// The same for pins that another nsnet keeps otherwise: they are not read, and what the kernel has is thought to be
    /// as it was left.
    pub fn preview_unread<T>(
        &self,
        edit: impl FnOnce(&mut State) -> std::result::Result<T, anyhow::Error>,
    ) -> std::result::Result<Change<T>, anyhow::Error> {
        let store = Store::shared(&self.key, self.on_note)?;
        self.compare(store.load()?.state, edit, |_state, _answer| Scope::Nothing)
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
        self.check_pins()?;
        self.compare(old, edit, look)
    }

    fn compare<T>(
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
        Ok(Change { answer, old, new, drift, steps })
    }

    /// Refuses to read or change what others have put among the pins, or what another nsnet keeps otherwise.
    pub fn check_pins(&self) -> Result<()> {
        if self.dataplane.loaded()? { self.dataplane.check(self.features) } else { Ok(()) }
    }

    /// The same with no verb under way: what is to be told, if anything.
    pub fn foreign_pins(&self) -> Result<Option<KernelError>> {
        let _still = Store::shared(&self.key, self.on_note)?;
        Ok(self.check_pins().err())
    }

    /// The state, once what a verb that was cut off has done is taken back. While that fails, nothing else is done.
    pub(super) fn settled(&self, store: &Store) -> Result<State> {
        let record = store.load()?;
        upgrade::settle(self, &record.state)?;
        if self.is_lost(&record)? {
            return Err(KernelError::refused("change this host", Self::LOST).with_remedy(Self::REMEDY));
        }
        if !record.under_way.is_empty() {
            // Nobody knows how far it came. Undoing is harmless for steps that were not begun, so all are undone.
            self.take_back(&record.under_way).map_err(|error| {
                KernelError::refused("take back what a verb that was cut off had done", error)
                    .with_remedy("mend that and run this again, or `nsnet down` takes everything down")
            })?;
            store.save(&record.state)?;
        }
        Ok(record.state)
    }

    /// From one state to another, with a record of it while it is under way. What fails is taken back; should that
    /// fail, too, the record stays, and the next verb tries again.
    fn replace(&self, store: &Store, old: &State, new: &State, steps: &[Step]) -> Result<()> {
        store.begin(old, new, steps)?;
        let mut begun = 0;
        let outcome = self.carry_out(steps, &mut begun).and_then(|()| store.commit(new)).map_err(|error| {
            // The step that failed may be half done; undoing it is harmless.
            let undone = self.take_back(steps.get(..begun).unwrap_or(steps)).and_then(|()| store.abandon(old));
            match undone {
                Ok(()) => error,
                Err(left) => KernelError::refused("finish", format!("{error}; and taking it back failed: {left}"))
                    .with_remedy("the next verb tries again"),
            }
        });
        self.deleted.take();
        outcome
    }

    /// Fails when some step cannot be done, as far as can be told without doing it: then nothing is changed.
    pub fn check(&self, steps: &[Step]) -> Result<()> {
        let has = |is_meant: fn(&Step) -> bool| steps.iter().any(|step| is_meant(step.inner()));
        let loads = has(|step| *step == Step::LoadDataplane);
        if has(needs_the_dataplane) {
            if let Some(doubt) = &self.doubt {
                return Err(KernelError::refused("change the dataplane", doubt));
            }
            if !loads && !self.dataplane.loaded()? {
                let why = "programs and maps are not loaded any more";
                return Err(
                    KernelError::refused("change the dataplane", why).with_remedy("`nsnet apply` brings them back")
                );
            }
        }
        let mounts = has(|step| matches!(step, Step::AddNamespace(_)));
        if mounts || (loads && !mounts::is_bpffs(Path::new(BPFFS))?) {
            self.check_mounts_last(if mounts { "make a namespace" } else { "mount the pins' file system" })?;
        }
        let around = Around::of(steps);
        steps.iter().try_for_each(|step| steps::check(self, step, &around))
    }

    /// Does all steps, counting in `begun` how many it has begun.
    fn carry_out(&self, steps: &[Step], begun: &mut usize) -> Result<()> {
        for step in steps {
            *begun += 1;
            self.carry_out_one(step)?;
        }
        // The steps may have given the host addresses, or taken some.
        sockets::refresh_locals(self).map(|_was_stale| ())
    }

    pub(super) fn carry_out_one(&self, step: &Step) -> Result<()> {
        let began = Instant::now();
        let outcome = steps::carry_out(self, step);
        (self.on_step)(step, began.elapsed());
        outcome
    }

    /// Undoes steps, last first; goes on after an error, and reports the first.
    fn take_back(&self, steps: &[Step]) -> Result<()> {
        let mut first = Ok(());
        for step in steps.iter().rev().filter_map(Step::undo) {
            let undone = steps::bring_back(self, &step);
            if first.is_ok() {
                first = undone;
            }
        }
        first.and_then(|()| sockets::refresh_locals(self).map(|_was_stale| ()))
    }

    /// Sees to it that what we leave can be recognised when the namespace is gone.
    fn mark(&self) {
        let is_ready = match mounts::is_bpffs(Path::new(BPFFS)) {
            // Where a mount would not last, the first network is refused, and there is little to leave.
            Ok(false) if self.check_mounts_last("").is_err() => return,
            Ok(_) => mounts::ensure_bpffs(Path::new(BPFFS)).map(|_was_mounted| ()),
            Err(error) => Err(error),
        };
        if let Err(error) = is_ready.and_then(|()| alive::mark(&self.key)) {
            (self.on_note)(&format!("{error}; without it, what belongs to a namespace that is gone is not removed"));
        }
    }

    /// Removes what is of no use any more: of this host, and of hosts that are gone.
    pub(super) fn tidy(&self, store: &Store) {
        let unmark = || if store.exists()? { Ok(()) } else { alive::unmark(&self.key) };
        let unmarked = unmark().or_else(|_error| unmark());
        match unmarked.and_then(|()| alive::sweep()) {
            Ok(swept) => {
                for host in swept {
                    (self.on_note)(&format!("removed what was left of host {host}, whose namespace is gone"));
                }
            }
            Err(error) => (self.on_note)(&format!("{error}; the next verb tries again")),
        }
    }
}

/// What is to be done about a namespace that is not there.
fn not_there(error: KernelError, remedy: &'static str) -> KernelError {
    if error.errno() == Some(Errno::ENOENT) { error.with_remedy(remedy) } else { error }
}

/// Whether a step enters something into the dataplane, or puts a program somewhere.
fn needs_the_dataplane(step: &Step) -> bool {
    matches!(step, Step::AddNetwork(_) | Step::Attach(..) | Step::AddPublish(_))
}
