//! rustup's toolchains: a nightly with sources for the BPF target, rustfmt and clippy for the host.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell;

/// Whether a nightly with its sources is installed.
pub(crate) fn has_nightly_source() -> bool {
    has_nightly() && in_nightly("lib/rustlib/src/rust/library/core")
}

/// Installs the nightly, its sources and its clippy unless they are there.
pub(crate) fn ensure_nightly() -> Result<()> {
    if has_nightly_source() && in_nightly("bin/cargo-clippy") {
        return Ok(());
    }
    if shell::find("rustup").is_none() {
        bail!("no BPF toolchain: rustup is not installed; install it, or on Debian set NSNET_BPF_TOOLCHAIN=debian");
    }
    shell::note("installing rustup's nightly with rust-src and clippy");
    if has_nightly() {
        shell::run(rustup().args(["component", "add", "--toolchain", "nightly", "rust-src", "clippy"]))
    } else {
        let arguments = ["--profile", "minimal", "--component", "rust-src", "--component", "clippy"];
        shell::run(rustup().args(["toolchain", "install", "nightly"]).args(arguments))
    }
    .context("cannot install rustup's nightly: check the network, or use NSNET_BPF_TOOLCHAIN=debian")
}

/// Nightly's `rustc -vV`.
pub(crate) fn nightly_version() -> Result<String> {
    shell::ask(rustup().args(["run", "nightly", "rustc", "-vV"])).context("`rustc +nightly -vV` failed")
}

/// Adds rustfmt and clippy to the host's toolchain unless they are there.
pub(crate) fn ensure_components() -> Result<()> {
    let missing: Vec<_> = [("fmt", "rustfmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(verb, _)| shell::ask(shell::cargo(verb).arg("--version")).is_none())
        .map(|(_, component)| component)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    shell::note(format_args!("installing {}", missing.join(" ")));
    // RUSTUP_TOOLCHAIN stays: the components belong to the toolchain that runs us.
    shell::run(shell::command("rustup").args(["component", "add"]).args(&missing))
        .with_context(|| format!("{} missing: add them to this Rust toolchain", missing.join(" and ")))
}

/// rustup, told nothing about the toolchain that runs us.
fn rustup() -> Command {
    let mut command = shell::command("rustup");
    // A question about the nightly must not install it.
    command.env_remove("RUSTUP_TOOLCHAIN").env("RUSTUP_AUTO_INSTALL", "0");
    command
}

fn has_nightly() -> bool {
    shell::ask(rustup().args(["toolchain", "list"])).is_some_and(|list| lists_nightly(&list))
}

fn in_nightly(path: &str) -> bool {
    shell::ask(rustup().args(["run", "nightly", "rustc", "--print", "sysroot"]))
        .is_some_and(|sysroot| Path::new(sysroot.trim()).join(path).exists())
}

/// A dated nightly does not answer to `+nightly`.
fn lists_nightly(list: &str) -> bool {
    let dated = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    list.lines().any(|line| line.strip_prefix("nightly-").is_some_and(|rest| !dated(rest)))
}

#[cfg(test)]
mod tests {
    use super::lists_nightly;

    #[test]
    fn only_the_rolling_nightly_counts() {
        assert!(lists_nightly("stable-x86_64-unknown-linux-gnu (active, default)\nnightly-x86_64-unknown-linux-gnu\n"));
        assert!(!lists_nightly("stable-x86_64-unknown-linux-gnu\nnightly-2026-05-19-x86_64-unknown-linux-gnu\n"));
        assert!(!lists_nightly("no installed toolchains"));
    }
}
