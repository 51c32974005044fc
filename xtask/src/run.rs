//! `cargo xtask run`: builds everything, then becomes `nsnet`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{object, shell};

/// Replaces this process, so that exit code, signals and terminal are nsnet's own.
pub(crate) fn run(args: &[OsString]) -> Result<()> {
    object::build(object::Profile::Release, false)?;
    let binary = object::binary();
    // Not in the repository's root: file names in the arguments are relative to where the user is.
    let mut command = Command::new(&binary);
    shell::forget_outer_cargo(&mut command);
    if args.is_empty() {
        command.arg("demo");
    } else {
        command.args(args);
    }
    Err(command.exec()).with_context(|| format!("cannot run {}", binary.display()))
}
