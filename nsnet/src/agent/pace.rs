//! When to do a thing again: soon after there was a reason, together with what comes shortly after, and not all the time.

use std::time::Duration;

use tokio::time::Instant;

/// How much longer a thing rests than it kept a processor busy: that is a tenth of the time at most, however many reasons
/// there are.
const REST: u32 = 9;

/// When one thing is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    due: Instant,
    rests_until: Instant,
}

impl Pace {
    /// At once.
    pub(super) fn new(now: Instant) -> Self {
        Self { due: now, rests_until: now }
    }

    /// There is a reason: it is due after `delay`, unless it is due before.
    pub(super) fn ask(&mut self, now: Instant, delay: Duration) {
        self.due = self.due.min((now + delay).max(self.rests_until));
    }

    /// It begins. What is asked for meanwhile is done once more.
    pub(super) fn begin(&mut self, now: Instant, next: Duration) {
        self.due = now + next;
    }

    /// It has ended.
    pub(super) fn end(&mut self, now: Instant, cost: Duration) {
        self.rests_until = now + cost * REST;
        self.due = self.due.max(self.rests_until);
    }

    /// When it is due.
    pub(super) fn due(&self) -> Instant {
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn reasons_that_come_together_are_one() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.begin(start, 1000 * MS);
        pace.end(start, Duration::ZERO);
        assert_eq!(pace.due(), start + 1000 * MS);
        for at in 0..40 {
            pace.ask(start + at * MS, 50 * MS);
        }
        assert_eq!(pace.due(), start + 50 * MS, "later ones do not put it off");
    }

    #[test]
    fn what_takes_long_is_done_rarely() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.begin(start, 30 * MS);
        pace.ask(start + MS, 5 * MS);
        pace.end(start + 20 * MS, 20 * MS);
        assert_eq!(pace.due(), start + 200 * MS);
        pace.ask(start + 21 * MS, 5 * MS);
        assert_eq!(pace.due(), start + 200 * MS);
    }

    #[test]
    fn a_reason_meanwhile_is_not_lost() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.begin(start, 30_000 * MS);
        pace.ask(start + MS, 50 * MS);
        pace.end(start + 2 * MS, 2 * MS);
        assert_eq!(pace.due(), start + 51 * MS);
    }
}
