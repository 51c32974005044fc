//! Comparing what should be with the kernel, and repairing what is ours.

use std::collections::HashSet;

use anyhow::Result;

use super::work::members;
use crate::kernel::host::Host;
use crate::kernel::observe;
use crate::kernel::store::Store;

/// What to do about differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDrift {
    /// Repair what is ours.
    Repair,
    /// Say so.
    Report,
}

/// What a comparison came to.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// What differs, a line each.
    pub(super) drift: Vec<String>,
    /// What was repaired.
    pub(super) repaired: Vec<String>,
    /// What could not be, and why.
    pub(super) failed: Vec<String>,
    /// The numbers of the members' namespaces.
    pub(super) members: HashSet<i32>,
    /// A verb is under way, or was meanwhile: nothing is known.
    pub(super) is_busy: bool,
}

/// Compares.
#[derive(Debug)]
pub(super) struct Checker {
    on_drift: OnDrift,
}

impl Checker {
    pub(super) fn new(on_drift: OnDrift) -> Self {
        Self { on_drift }
    }

    /// Compares, and repairs if that is wanted.
    pub(super) fn check(&mut self, host: &Host) -> Result<Checked> {
        let mut checked = Checked { members: members(host)?, ..Checked::default() };
        let before = host.record()?;
        if !before.under_way.is_empty() {
            match Store::locked_if_free(&host.key)? {
                None => checked.is_busy = true,
                Some(_held) if self.on_drift == OnDrift::Report => {
                    checked.drift.push("a verb was cut off; the next one takes it back".to_owned());
                }
                Some(_held) => {}
            }
            return Ok(checked);
        }
        let drift = observe::drift(host, &before.state)?;
        if host.record()? != before {
            return Ok(Checked { is_busy: true, ..checked });
        }
        checked.drift = drift.iter().map(|drift| format!("{}: {}", drift.object, drift.what)).collect();
        Ok(checked)
    }
}
