//! `cargo xtask lint`: what CI checks before it tests. All checks run, and the end says which failed.

use anyhow::Result;

use crate::shell::Stages;
use crate::{rustup, setup, shell};

/// The eBPF crate builds for BPF only, so the host's clippy and rustdoc leave it out.
const HOST: [&str; 4] = ["--workspace", "--exclude", "nsnet-ebpf", "--locked"];

/// Runs every check.
pub(crate) fn lint() -> Result<()> {
    rustup::ensure_components()?;
    let toolchain = setup::bpf()?;

    let mut stages = Stages::default();
    stages.run("format", || {
        // rustfmt colours its diff even in a file.
        let colour = if shell::colour() { "auto" } else { "never" };
        shell::run(shell::cargo("fmt").args(["--all", "--check", "--", "--color", colour]))
    });
    stages.run("clippy, host", || {
        shell::run(shell::cargo("clippy").args(HOST).args(["--all-targets", "--", "-D", "warnings"]))
    });
    stages.run("clippy, BPF", || {
        let mut clippy = toolchain.cargo("clippy");
        clippy.args(["--locked", "--target-dir", "target/bpf-lint", "--", "-D", "warnings"]);
        // RUSTFLAGS are the host's; this variable, even empty, hides them.
        shell::run(clippy.env("CARGO_ENCODED_RUSTFLAGS", ""))
    });
    stages.run("docs", || {
        let mut doc = shell::cargo("doc");
        doc.args(HOST).args(["--no-deps", "--document-private-items"]);
        shell::run(doc.env("RUSTDOCFLAGS", "-Dwarnings"))
    });
    stages.finish()
}
