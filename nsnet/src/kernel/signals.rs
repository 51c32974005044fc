//! A verb that has begun to change something ends what it began, or takes it back.

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use super::error::{Doing as _, Result};

/// While it lives, what asks a program to end has to wait: SIGINT, SIGTERM, SIGHUP and SIGQUIT. Threads that are started
/// meanwhile hold them back, too. What came is delivered when it is dropped.
#[derive(Debug)]
pub(crate) struct Uninterrupted(SigSet);

impl Uninterrupted {
    /// From now on.
    pub(crate) fn begin() -> Result<Self> {
        let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT].into_iter().collect();
        signals.thread_swap_mask(SigmaskHow::SIG_BLOCK).map(Self).doing(|| "hold back signals")
    }
}

impl Drop for Uninterrupted {
    fn drop(&mut self) {
        // Setting a mask that was read before cannot fail; if it did, the signals would wait until the program's end.
        let _set = self.0.thread_set_mask();
    }
}
