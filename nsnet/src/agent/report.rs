//! What the agent knows of the host and of itself: written by its loop, read by whoever asks.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::follow::Gateways;
use crate::kernel::sweep::Tally;

/// What the agent does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Task {
    /// Follows the host around the dataplane: its addresses and uplinks.
    Follow,
    /// Compares what should be with the kernel, and repairs.
    Check,
    /// Ends what is dead in the tables.
    Sweep,
    /// Collects figures for somebody who asked.
    Scrape,
}

impl Task {
    /// Every task.
    pub(super) const ALL: [Self; 4] = [Self::Follow, Self::Check, Self::Sweep, Self::Scrape];

    /// Its name, also in figures.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Follow => "follow",
            Self::Check => "check",
            Self::Sweep => "sweep",
            Self::Scrape => "scrape",
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How often something was done since the agent began, and how long it took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Runs {
    pub(super) done: u64,
    pub(super) failed: u64,
    pub(super) took: Duration,
}

/// What has been counted since the agent began.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// Changes heard of: of what, and whether in the host's namespace or a member's.
    pub(super) changes: BTreeMap<(&'static str, &'static str), u64>,
    /// Times that changes were missed, because there were too many at once.
    pub(super) overruns: u64,
    /// By task.
    pub(super) runs: BTreeMap<Task, Runs>,
    /// Repairs.
    pub(super) repaired: u64,
    /// Repairs that failed.
    pub(super) not_repaired: u64,
    /// Times that a verb was under way when the agent wanted to change something.
    pub(super) busy: u64,
    /// Entries that were found dead and ended, by table.
    pub(super) ended: BTreeMap<&'static str, u64>,
}

/// What the agent knows.
#[derive(Debug)]
pub(super) struct Report {
    /// The host's name, as its files have it.
    pub(super) host: String,
    /// When the agent began.
    pub(super) began: SystemTime,
    /// How often it compares at least.
    pub(super) interval: Duration,
    /// When it compared last, and how long that took.
    pub(super) checked: Option<(Instant, Duration)>,
    /// What differed then.
    pub(super) drift: Vec<String>,
    /// What each task failed with, when it was done last.
    pub(super) errors: BTreeMap<Task, String>,
    /// What is known of the gateways of default routes.
    pub(super) gateways: Gateways,
    /// What the last whole sweep has found.
    pub(super) tally: Option<Tally>,
    /// What was counted.
    pub(super) counts: Counts,
}

impl Report {
    /// Nothing is known yet.
    pub(super) fn new(host: &str, interval: Duration) -> Self {
        Self {
            host: host.to_owned(),
            began: SystemTime::now(),
            interval,
            checked: None,
            drift: Vec::new(),
            errors: BTreeMap::new(),
            gateways: Gateways::new(),
            tally: None,
            counts: Counts::default(),
        }
    }

    /// Notes how a task went.
    pub(super) fn note(&mut self, task: Task, took: Duration, error: Option<String>) {
        let runs = self.counts.runs.entry(task).or_default();
        runs.done += 1;
        runs.failed += u64::from(error.is_some());
        runs.took += took;
        match error {
            Some(error) => self.errors.insert(task, error),
            None => self.errors.remove(&task),
        };
    }

    /// Why all is not well; nothing when it is.
    pub(super) fn reasons(&self, now: Instant) -> Vec<String> {
        let mut reasons = self.drift.clone();
        reasons.extend(self.errors.iter().map(|(task, error)| format!("{task}: {error}")));
        match self.checked {
            None => reasons.push("the kernel was not looked at yet".to_owned()),
            Some((at, took)) => {
                // As long as it may rest, and then some.
                let limit = 3 * self.interval + 20 * took;
                let age = now.duration_since(at);
                if age > limit {
                    reasons.push(format!("the kernel was not looked at for {} s", age.as_secs()));
                }
            }
        }
        reasons
    }

    /// The answer to the question how it is.
    pub(super) fn health(&self, now: Instant) -> (bool, Value) {
        let reasons = self.reasons(now);
        let is_well = reasons.is_empty();
        let age = self.checked.map(|(at, _)| now.duration_since(at).as_secs());
        let status = if is_well { "ok" } else { "failing" };
        (is_well, json!({ "status": status, "host": self.host, "checked_s_ago": age, "reasons": reasons }))
    }

    /// The same in half a line.
    pub(super) fn summary(&self, now: Instant) -> String {
        match self.reasons(now).as_slice() {
            [] => "all is as it should be".to_owned(),
            [only] => only.clone(),
            [first, rest @ ..] => format!("{first}; and {} more", rest.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn health_needs_a_look_that_found_nothing_and_is_not_old() {
        let (mut report, start) = (Report::new("5", 30 * SECOND), Instant::now());
        assert_eq!(report.reasons(start), ["the kernel was not looked at yet"]);
        report.checked = Some((start, SECOND));
        assert!(report.health(start).0);
        assert!(report.reasons(start + 109 * SECOND).is_empty());
        assert_eq!(report.reasons(start + 111 * SECOND), ["the kernel was not looked at for 111 s"]);

        report.drift = vec!["network v-net-0: gone".to_owned()];
        report.note(Task::Sweep, SECOND, Some("cannot read map FLOWS4".to_owned()));
        let (is_well, value) = report.health(start);
        assert!(!is_well);
        assert_eq!(value["reasons"], json!(["network v-net-0: gone", "sweep: cannot read map FLOWS4"]));
        assert_eq!(report.summary(start), "network v-net-0: gone; and 1 more");
        report.note(Task::Sweep, SECOND, None);
        assert_eq!(report.counts.runs[&Task::Sweep].failed, 1);
        assert_eq!(report.reasons(start).len(), 1, "what went well the next time is over");
    }
}
