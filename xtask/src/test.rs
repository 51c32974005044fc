//! `cargo xtask test`: unit tests, then the tests that load programs and make namespaces.

use std::ffi::OsString;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::shell::Stages;
use crate::{object, setup, shell};

/// One kind of test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Suite {
    /// Packet logic and everything else that needs neither root nor a kernel
    Unit,
    /// The same frame on the host and in the kernel's BPF_PROG_TEST_RUN (root)
    Program,
    /// Real namespaces and real traffic (root)
    Network,
}

/// Runs one suite, or all.
pub(crate) fn test(suite: Option<Suite>, args: &[OsString]) -> Result<()> {
    let wanted = |candidate| suite.is_none_or(|suite| suite == candidate);
    let needs_root = wanted(Suite::Program) || wanted(Suite::Network);
    // Before anything is built, and an error rather than a skip: a run that tested less must not look green.
    if needs_root && !shell::is_root() {
        bail!(
            "program and network tests need root: run `sudo -E env \"PATH=$PATH\" cargo xtask test`, \
             or `cargo xtask test unit` for those that do not"
        );
    }

    let mut stages = Stages::default();
    if wanted(Suite::Unit) {
        stages.run("unit tests", || shell::run_as_answer(shell::cargo("test").arg("--").args(args)));
    }
    if needs_root {
        setup::test_tools()?;
        object::build(object::Profile::Release, false)?;
    }
    if wanted(Suite::Program) {
        stages.run("program tests", || integration("program", args));
    }
    if wanted(Suite::Network) {
        stages.run("network tests", || integration("network", args));
    }
    stages.finish()
}

/// The tests are a dev build; what they test is the release binary that users run.
fn integration(name: &str, args: &[OsString]) -> Result<()> {
    let mut cargo = shell::cargo("test");
    cargo.args(["--package", "nsnet-tests", "--test", name, "--"]).args(args);
    shell::run_as_answer(object::with_object(&mut cargo).env("NSNET_BIN", object::binary()))
}
