//! `cargo xtask lint`: what CI checks before it tests. All checks run, and the end says which failed.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

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
    stages.run("tests named in docs/conformance.md", conformance);
    stages.finish()
}

/// Every `module::function` of docs/conformance.md must be there: in module.rs, or in module/tests.rs.
fn conformance() -> Result<()> {
    let page = fs::read_to_string(shell::root().join("docs/conformance.md")).context("read docs/conformance.md")?;
    let mut sources = Vec::new();
    ["tests", "nsnet", "nsnet-common"].iter().try_for_each(|name| collect(&shell::root().join(name), &mut sources))?;
    let is_name =
        |text: &str| !text.is_empty() && text.chars().all(|c| c == '_' || c.is_ascii_digit() || c.is_ascii_lowercase());
    let named = page.split('`').filter_map(|text| text.split_once("::"));
    let mut missing = Vec::new();
    for (module, function) in named.filter(|(module, function)| is_name(module) && is_name(function)) {
        let ends = [format!("/{module}.rs"), format!("/{module}/tests.rs")];
        let of_module = |path: &str| ends.iter().any(|end| path.ends_with(end));
        if !sources.iter().any(|(path, text)| of_module(path) && text.contains(&format!("fn {function}("))) {
            missing.push(format!("{module}::{function}"));
        }
    }
    ensure!(missing.is_empty(), "there is no {}; name the test that shows it now", missing.join(", "));
    Ok(())
}

/// All Rust files below `folder`: path and text.
fn collect(folder: &Path, sources: &mut Vec<(String, String)>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push((path.display().to_string(), fs::read_to_string(&path)?));
        }
    }
    Ok(())
}
