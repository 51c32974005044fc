//! A network namespace without a name, which ends with the thread that is in it: a test that panics or is killed
//! leaves nothing behind.

use std::{panic, thread};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a new network namespace, on a thread of its own. A panic goes on in the caller.
pub fn in_new_namespace<T: Send>(test: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace (this needs root)")?;
        test()
    };
    thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|cause| panic::resume_unwind(cause)))
}
