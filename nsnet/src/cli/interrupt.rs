//! Ctrl-C and its like as a flag, so that a verb ends what it began on the way out rather than leave it behind.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SigSet, Signal};

/// Whether the user has asked for an end.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Interrupt(Arc<(Mutex<bool>, Condvar)>);

impl Interrupt {
    /// From now on SIGINT, SIGTERM and SIGHUP set a flag and do nothing else. To be called before the process has
    /// threads: they inherit the blocked signals, as do the commands it runs, which therefore end what they began even
    /// though a terminal sends Ctrl-C to all of them.
    pub(in crate::cli) fn catch() -> Result<Self> {
        let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        signals.thread_block().context("cannot block signals")?;
        let asked = Self(Arc::default());
        thread::Builder::new().name("signals".to_owned()).spawn({
            let asked = asked.clone();
            // Goes on: a second Ctrl-C must not cut the cleaning up short either.
            move || {
                while signals.wait().is_ok() {
                    asked.set();
                }
            }
        })?;
        Ok(asked)
    }

    /// Whether the user has asked for an end.
    pub(in crate::cli) fn is_set(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits this long, or until the user asks for an end; whether that is so.
    pub(in crate::cli) fn comes_within(&self, limit: Duration) -> bool {
        let (asked, told) = &*self.0;
        let guard = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = told.wait_timeout_while(guard, limit, |asked| !*asked);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn set(&self) {
        let (asked, told) = &*self.0;
        *asked.lock().unwrap_or_else(PoisonError::into_inner) = true;
        told.notify_all();
    }

    /// An error once the user has asked for an end.
    pub(in crate::cli) fn check(&self) -> Result<()> {
        if self.is_set() {
            bail!("interrupted: the lab was taken down");
        }
        Ok(())
    }

    #[cfg(test)]
    pub(in crate::cli) fn never() -> Self {
        Self(Arc::default())
    }

    #[cfg(test)]
    pub(in crate::cli) fn now() -> Self {
        let asked = Self::never();
        asked.set();
        asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_when_it_is_asked_for() {
        const LONG: Duration = Duration::from_secs(3600);
        assert!(Interrupt::now().comes_within(LONG));
        assert!(!Interrupt::never().comes_within(Duration::from_millis(1)));
        let interrupt = Interrupt::never();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| interrupt.comes_within(LONG));
            interrupt.set();
            assert!(waiter.join().unwrap());
        });
    }
}
