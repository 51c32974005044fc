//! Ctrl-C and its like as a flag, so that a verb ends what it began on the way out rather than leave it behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SigSet, Signal};

/// Whether the user has asked for an end.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on SIGINT, SIGTERM and SIGHUP set a flag and do nothing else. To be called before the process has
    /// threads: they inherit the blocked signals, as do the commands it runs, which therefore end what they began even
    /// though a terminal sends Ctrl-C to all of them.
    pub(in crate::cli) fn catch() -> Result<Self> {
        let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        signals.thread_block().context("cannot block signals")?;
        let flag = Arc::<AtomicBool>::default();
        thread::Builder::new().name("signals".to_owned()).spawn({
            let flag = Arc::clone(&flag);
            // Goes on: a second Ctrl-C must not cut the cleaning up short either.
            move || {
                while signals.wait().is_ok() {
                    flag.store(true, Ordering::Relaxed);
                }
            }
        })?;
        Ok(Self(flag))
    }

    /// Whether the user has asked for an end.
    pub(in crate::cli) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
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
        Self(Arc::new(AtomicBool::new(true)))
    }
}
