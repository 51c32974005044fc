//! Taking everything down, whatever state it is in: half made, half undone, or without the file that tells of it.

use nsnet_common::layout::{MAX_NETWORKS, NetworkId, PortId, names, policy_flags};

use super::error::{KernelError, Result};
use super::host::Host;
use super::publish::PublishMaps;
use super::reserved;
use super::signals::Uninterrupted;
use super::store::Store;
use super::uplink;
use crate::model::plan::{Reservation, Step, plan};
use crate::model::ports::{PortRange, PortSet};
use crate::model::state::State;

impl Host {
    /// Removes everything of this host: what its file tells of, and what the kernel shows beside.
    ///
    /// Unlike other verbs it goes on after an error, and tries again what failed: half a host is no use to anybody. What
    /// fails twice is left for the next time.
    pub fn down(&self) -> Result<()> {
        let store = Store::locked(&self.key, self.on_note)?;
        let _whole = Uninterrupted::begin()?;
        if let Err(error) = self.check_pins() {
            // Nothing of it can be taken back, nor be read: it goes as a whole.
            (self.on_note)(&format!("{error}; it goes unread"));
            self.dataplane.abandon()?;
        }
        let old = match store.load() {
            Ok(record) => {
                self.take_down(&store, &record.state, &record.under_way)?;
                record.state
            }
            // Without an errno: it could be read, and was not understood.
            Err(error) if error.errno().is_none() => {
                let left = "namespaces that it made, and cables between them, are left: only the file knew which";
                (self.on_note)(&format!("{error}; {left}"));
                State::default()
            }
            Err(error) => return Err(error),
        };
        self.again(|| self.remove_what_is_left(old.is_empty()))?;
        self.again(|| store.save(&State::default()))?;
        self.deleted.take();
        self.tidy(&store);
        // A signal that was held back ends us before anything else is dropped.
        drop(store);
        Ok(())
    }

    /// Takes down what the file tells of: `old`, and what a verb that was cut off had added to it.
    fn take_down(&self, store: &Store, old: &State, under_way: &[Step]) -> Result<()> {
        let added = under_way.iter().rev().filter_map(Step::undo);
        let steps: Vec<Step> = added.chain(plan(old, &State::default(), &[])).filter(Step::is_removal).collect();
        if steps.is_empty() {
            return Ok(());
        }
        if let Err(error) = store.begin(old, &State::default(), &steps) {
            // It is only for a verb that comes after one that was killed here.
            (self.on_note)(&error.to_string());
        }
        let mut failed = self.try_each(steps);
        for (_step, error) in &failed {
            self.note_again(error);
        }
        failed = self.try_each(failed.into_iter().map(|(step, _error)| step).collect());
        match failed.first() {
            None => Ok(()),
            Some((_step, error)) => {
                let what = format!("take everything down ({} steps are left)", failed.len());
                Err(KernelError::refused(what, error).with_remedy("mend that and run it again"))
            }
        }
    }

    /// Does it a second time when it fails.
    fn again(&self, act: impl Fn() -> Result<()>) -> Result<()> {
        act().or_else(|error| {
            self.note_again(&error);
            act()
        })
    }

    fn note_again(&self, error: &KernelError) {
        (self.on_note)(&format!("{error}; trying again"));
    }

    /// The steps that failed, and why.
    fn try_each(&self, steps: Vec<Step>) -> Vec<(Step, KernelError)> {
        steps.into_iter().filter_map(|step| self.carry_out_one(&step).err().map(|error| (step, error))).collect()
    }

    /// Removes what is ours by the kernel's own account. `nobody_knows`: there was no file that told of anything.
    fn remove_what_is_left(&self, nobody_knows: bool) -> Result<()> {
        if nobody_knows && self.dataplane.loaded()? {
            let ours = self.ports_in_maps()?;
            reserved::apply(&Reservation { before: PortSet::default(), from: ours, to: PortSet::default() })?;
        }
        for link in self.netlink.links()? {
            if PortId::from_ifindex(link.index) != PortId::NONE {
                // One end of a pair takes the other along.
                self.netlink.delete_link(link.index)?;
                continue;
            }
            if uplink::remove_filters(self, link.index)? {
                let what = format!("the filter {} on {} is not nsnet's", names::FROM_UPLINK, link.name);
                (self.on_note)(&format!("{what}: it is left as it is"));
            }
        }
        self.dataplane.unload()
    }

    /// The host's ports that the dataplane uses: published ones, and those that flows are given.
    fn ports_in_maps(&self) -> Result<PortSet> {
        let maps = self.maps();
        let published = PublishMaps::of(&maps)?.in_use(&maps)?;
        let mut ranges: Vec<PortRange> = Vec::new();
        for slot in &published {
            ranges.extend(PortRange::new(slot.first, slot.last));
        }
        for id in (1..MAX_NETWORKS as u16).map(NetworkId) {
            let policy = maps.policy(id)?;
            if policy.has(policy_flags::MASQUERADE) || published.iter().any(|slot| slot.network == id) {
                ranges.extend(PortRange::new(policy.first_port, policy.last_port));
            }
        }
        Ok(ranges.into_iter().collect())
    }
}
