//! Comparing what should be with the kernel, and repairing what is nsnet's own.
//!
//! Repaired is what nsnet made and somebody else broke: interfaces, addresses, routes, programs, entries. Not repaired, but
//! reported, is what was never ours (the host's own interfaces and addresses), and a namespace that is gone: its processes went
//! with it, and an empty one of the same name would only hide that.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use nsnet_common::layout::names;

use super::work::members;
use crate::kernel::host::Host;
use crate::kernel::mounts::is_bpffs;
use crate::kernel::observe::{self, Scope};
use crate::kernel::store::BPFFS;
use crate::kernel::upgrade;
use crate::model::drift::{Drift, Object};
use crate::model::name::Name;

/// What to do about differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDrift {
    /// Repair what is ours.
    Repair,
    /// Say so.
    Report,
}

/// Objects that are repaired at a time: the lock is held for so long.
const AT_A_TIME: usize = 16;
/// How long to wait before an object is repaired again. It doubles each time: whoever breaks it means it, perhaps.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

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
    /// A verb is under way, or was meanwhile: what it changes is not known, or nothing could be changed.
    pub(super) is_busy: bool,
    /// Whether what differs is known.
    pub(super) is_known: bool,
    /// When something may be repaired again.
    pub(super) again: Option<Duration>,
}

/// Compares.
#[derive(Debug)]
pub(super) struct Checker {
    on_drift: OnDrift,
    tries: HashMap<Object, Try>,
}

/// Repairs of one object.
#[derive(Clone, Copy, Debug)]
struct Try {
    last: Instant,
    pause: Duration,
}

impl Try {
    /// How long it still rests.
    fn rest(&self) -> Duration {
        self.pause.saturating_sub(self.last.elapsed())
    }
}

impl Checker {
    pub(super) fn new(on_drift: OnDrift) -> Self {
        Self { on_drift, tries: HashMap::new() }
    }

    /// Compares, and repairs if that is wanted.
    pub(super) fn check(&mut self, host: &Host) -> Result<Checked> {
        let mut checked = Checked { members: members(host)?, ..Checked::default() };
        let Some(mut drift) = self.compare(host, &mut checked)? else {
            return Ok(Checked { is_busy: true, ..checked });
        };
        // An object that has stayed as it should be for long is not in dispute any more.
        self.tries.retain(|_, tried| tried.last.elapsed() < 2 * LONGEST_PAUSE);
        if self.on_drift == OnDrift::Repair {
            let due: Vec<Object> = ours(&drift).into_iter().filter(|object| self.rest(object).is_zero()).collect();
            for objects in due.chunks(AT_A_TIME) {
                if !self.repair(host, objects, &mut checked)? {
                    checked.is_busy = true;
                    break;
                }
            }
            if !checked.repaired.is_empty() {
                let Some(left) = self.compare(host, &mut checked)? else {
                    return Ok(Checked { is_busy: true, ..checked });
                };
                drift = left;
            }
            checked.again = ours(&drift).iter().map(|object| self.rest(object)).min();
        }
        checked.drift.extend(drift.iter().flat_map(lines));
        let is_left = |line: &mut String| checked.drift.contains(line);
        checked.failed.extend(checked.repaired.extract_if(.., is_left));
        checked.is_known = true;
        Ok(checked)
    }

    /// How long an object is still to be left alone.
    fn rest(&self, object: &Object) -> Duration {
        self.tries.get(object).map_or(Duration::ZERO, Try::rest)
    }

    /// What differs; `None` while a verb is under way.
    fn compare(&self, host: &Host, checked: &mut Checked) -> Result<Option<Vec<Drift>>> {
        let before = host.record()?;
        let is_cut_off = upgrade::is_cut_off(host)?;
        let is_half = !before.under_way.is_empty() || is_cut_off;
        let programs = || host.dataplane.program_id(names::FROM_NAMESPACE).ok();
        let loaded = programs();
        match host.disorder()? {
            // Whoever is at it has the lock, or has come to its end meanwhile.
            None if is_half => return Ok(None),
            None => {}
            Some(_) if is_half && self.on_drift == OnDrift::Repair => {
                // Any change takes back what a verb did that was cut off.
                if host.change_if_free(|_state| Ok(()), |_state, ()| Scope::Nothing)?.is_some() {
                    checked.repaired.push("what a verb did that was cut off: it is taken back".to_owned());
                }
                return Ok(None);
            }
            Some(disorder) => checked.drift.push(format!("state: {disorder}")),
        }
        let drift = observe::drift(host, &before.state, &Scope::Everything)?;
        // An upgrade changes nothing of the record.
        let is_still = host.record()? == before && programs() == loaded && upgrade::is_cut_off(host)? == is_cut_off;
        Ok(is_still.then_some(drift))
    }

    /// Repairs some objects; all of them, or each for itself. `false`: a verb is under way.
    fn repair(&mut self, host: &Host, objects: &[Object], checked: &mut Checked) -> Result<bool> {
        let scope = || Scope::these(objects.iter().cloned());
        match host.change_if_free(|_state| Ok(()), |_state, ()| scope()) {
            Ok(None) => return Ok(false),
            Ok(Some(change)) => checked.repaired.extend(change.drift.iter().flat_map(lines)),
            Err(error) => {
                if let [object] = objects {
                    checked.failed.push(format!("{object}: {error:#}"));
                } else {
                    for object in objects {
                        if !self.repair(host, std::slice::from_ref(object), checked)? {
                            return Ok(false);
                        }
                    }
                    return Ok(true);
                }
            }
        }
        for object in objects {
            let pause = self.tries.get(object).map_or(FIRST_PAUSE, |tried| (2 * tried.pause).min(LONGEST_PAUSE));
            self.tries.insert(object.clone(), Try { last: Instant::now(), pause });
        }
        Ok(true)
    }
}

fn lines(drift: &Drift) -> impl Iterator<Item = String> {
    drift.differences.iter().map(|difference| format!("{}: {difference}", drift.object))
}

/// The objects that are ours to repair, and can be.
fn ours(drift: &[Drift]) -> Vec<Object> {
    let objects = || drift.iter().map(|drift| &drift.object);
    let gone: HashSet<&Name> =
        objects().filter_map(|object| if let Object::Namespace(name) = object { Some(name) } else { None }).collect();
    // A mount of ours might be seen by nobody else: systemd gives services mount namespaces of their own.
    let can_load = || is_bpffs(Path::new(BPFFS)).unwrap_or(false);
    let is_ours = |object: &&Object| match object {
        // Uplinks and the host's addresses are the follower's, who does not only repair them.
        Object::Namespace(_) | Object::OfHost(_) | Object::Uplink(_) | Object::Locals => false,
        Object::Dataplane => can_load(),
        Object::Attachment { ns, .. } | Object::Route { ns, .. } | Object::Publish { ns, .. } => !gone.contains(ns),
        Object::Cable { a, b } => !gone.contains(a) && !gone.contains(b),
        Object::Pools | Object::ReservedPorts | Object::Network(_) | Object::Stray(_) => true,
    };
    objects().filter(is_ours).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::drift::Difference;

    fn drift(object: Object) -> Drift {
        Drift { object, differences: vec![Difference::missing("it")] }
    }

    #[test]
    fn what_is_not_ours_is_left() {
        let name = |name: &str| name.parse::<Name>().unwrap();
        let attachment = |ns: &str| Object::Attachment { network: name("v-net-0"), ns: name(ns) };
        let found = [
            Object::Namespace(name("red")),
            Object::OfHost("address 192.0.2.1".to_owned()),
            Object::Network(name("v-net-0")),
            attachment("red"),
            attachment("blue"),
            Object::Cable { a: name("blue"), b: name("red") },
        ];
        let ours = ours(&found.map(drift));
        assert_eq!(ours, [Object::Network(name("v-net-0")), attachment("blue")]);
    }
}
