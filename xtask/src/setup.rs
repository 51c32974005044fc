//! Makes the machine ready: looks first, installs what is missing, and says what it does.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::way::{self, Choice, Installed, Way};
use crate::{debian, linker, rustup, shell};

/// A compiler and a linker for BPF that fit each other.
pub(crate) struct Toolchain {
    way: Way,
    /// Absolute path of bpf-linker.
    pub(crate) linker: PathBuf,
}

impl Toolchain {
    /// `cargo VERB` for the eBPF crate, with the way's compiler and `core`.
    pub(crate) fn cargo(&self, verb: &str) -> Command {
        let mut command = match (self.way, verb) {
            // Debian's clippy has to match Debian's compiler; rustup's Cargo below it is as good as any.
            (Way::Debian, "clippy") => shell::command(debian::CARGO_CLIPPY),
            (Way::Debian, _) => shell::command("cargo"),
            (Way::Rustup, _) => {
                let mut command = shell::command("cargo");
                command.env_remove("RUSTUP_TOOLCHAIN").arg("+nightly");
                command
            }
        };
        command.args([verb, "--package", "nsnet-ebpf", "--target", "bpfel-unknown-none"]);
        match self.way {
            Way::Rustup => command.args(["-Z", "build-std=core"]),
            // aya-ebpf turns feature gates on, which a stable compiler accepts only for this build.
            Way::Debian => command.env("RUSTC", debian::RUSTC).env("RUSTC_BOOTSTRAP", "1"),
        };
        command
    }
}

/// `cargo xtask setup`: everything any other command needs.
pub(crate) fn everything() -> Result<()> {
    let toolchain = bpf()?;
    shell::note(format_args!("bpf-linker: {}", toolchain.linker.display()));
    rustup::ensure_components()?;
    test_tools()?;
    bench_tools()?;
    shell::note("ready: nothing else is needed for `cargo xtask build`, `run`, `test`, `bench` and `lint`");
    Ok(())
}

/// What building for BPF needs.
pub(crate) fn bpf() -> Result<Toolchain> {
    let (choice, flavour) = choose()?;
    let name = match choice.way {
        Way::Rustup => "rustup's nightly, building core",
        Way::Debian => "Debian's rustc with its core",
    };
    shell::note(format_args!("BPF toolchain: {name} ({})", choice.reason));
    let linker = match choice.way {
        Way::Rustup => {
            rustup::ensure_nightly()?;
            match shell::find("bpf-linker") {
                Some(linker) => linker,
                None => own_linker(&rustup::nightly_version()?)?,
            }
        }
        Way::Debian => {
            debian::ensure(flavour)?;
            let version = shell::ask(shell::command(debian::RUSTC).arg("-vV"));
            own_linker(&version.context("`/usr/bin/rustc -vV` failed: is Debian's rustc package complete?")?)?
        }
    };
    Ok(Toolchain { way: choice.way, linker })
}

/// What the program and network tests call at run time.
pub(crate) fn test_tools() -> Result<()> {
    if shell::find("ip").is_none() {
        debian::install(&["iproute2"])?;
    }
    // What the demo compares masquerade with; nothing else uses it.
    if shell::find("iptables").is_none() {
        debian::install(&["iptables"])?;
    }
    // What the tests of captures read them by.
    if shell::find("tshark").is_none() {
        debian::install(&["tshark"])?;
    }
    Ok(())
}

/// What the bench makes its peers and some of its traffic with, and the packages of these programs.
const BENCH_TOOLS: [(&str, &str); 11] = [
    ("ip", "iproute2"),
    ("iptables-nft-restore", "iptables"),
    ("ip6tables-nft-restore", "iptables"),
    ("iptables-legacy-restore", "iptables"),
    ("ip6tables-legacy-restore", "iptables"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("iperf3", "iperf3"),
    ("nginx", "nginx-light"),
    ("wrk", "wrk"),
    ("sockperf", "sockperf"),
];

/// What the bench calls at run time. It measures without them, too, and says what it leaves out: so a machine without
/// apt, or one where a package is not to be had, is no error.
pub(crate) fn bench_tools() -> Result<()> {
    let missing = |tool: &&(&str, &str)| shell::find(tool.0).is_none();
    let mut packages: Vec<&str> = BENCH_TOOLS.iter().filter(missing).map(|(_, package)| *package).collect();
    packages.dedup();
    if !packages.is_empty()
        && let Err(error) = debian::install(&packages)
    {
        shell::note(format_args!("warning: the bench will leave out what needs these: {error:#}"));
    }
    Ok(())
}

/// The way to go and, if apt had to be asked for it, what apt offers.
fn choose() -> Result<(Choice, Option<way::Flavour>)> {
    let forced = Way::parse(&env::var("NSNET_BPF_TOOLCHAIN").unwrap_or_default())?;
    let nightly_source = forced.is_none() && rustup::has_nightly_source();
    let debian_core = forced.is_none() && !nightly_source && debian::has_core();
    if let Some(choice) = way::from_installed(Installed { forced, nightly_source, debian_core }) {
        return Ok((choice, None));
    }
    let available = debian::available();
    Ok((way::from_packages(available), available))
}

/// The linker in `target/tools`, built if it is not there or too old for this compiler.
fn own_linker(rustc_version: &str) -> Result<PathBuf> {
    let llvm = linker::llvm_major(rustc_version)?;
    match linker::installed(llvm) {
        Some(linker) => Ok(linker),
        None => linker::install(llvm),
    }
}

#[cfg(test)]
mod tests {
    use super::BENCH_TOOLS;

    /// The bench names them to who has no xtask.
    #[test]
    fn the_bench_names_the_same_tools() {
        let source = include_str!("../../nsnet/src/bench/tool.rs");
        for (program, package) in BENCH_TOOLS {
            assert!(
                source.contains(&format!("\"{program}\"")) && source.contains(&format!("\"{package}\"")),
                "{program}"
            );
        }
        assert!(source.contains(&format!("; {}] = [", BENCH_TOOLS.len())));
    }
}
