//! bpf-linker: the linker that turns LLVM bitcode into one eBPF object.
//!
//! It reads bitcode with an LLVM of its own, which must not be older than the compiler's: an older one refuses the
//! bitcode. So it is built against the compiler's LLVM and kept in `target/tools`, and is built again when that changes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{debian, shell};

const VERSION: &str = "0.13.0";

/// The linker in `target/tools`, if it is of our version and can read what a compiler with this LLVM writes.
pub(crate) fn installed(llvm: u32) -> Option<PathBuf> {
    let record = fs::read_to_string(tools().join(".crates2.json")).unwrap_or_default();
    if built_for(&record).is_some_and(|built_for| built_for < llvm) {
        return None;
    }
    let linker = tools().join("bin/bpf-linker");
    let version = shell::ask(shell::command(&linker).arg("--version"))?;
    (version.trim() == format!("bpf-linker {VERSION}")).then_some(linker)
}

/// Builds the linker against LLVM's development files, which it installs first where apt can.
pub(crate) fn install(llvm: u32) -> Result<PathBuf> {
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if !prefix.join("lib/libLLVM.so").exists() {
        debian::install(&[&format!("llvm-{llvm}-dev")]).with_context(|| {
            format!(
                "bpf-linker must be built with LLVM {llvm}, or a prebuilt one put on PATH (`cargo binstall bpf-linker`)"
            )
        })?;
    }
    shell::note(format_args!("installing bpf-linker {VERSION} for LLVM {llvm} into {}", tools().display()));
    let mut cargo = shell::cargo("install");
    cargo.args(["bpf-linker", "--version", VERSION, "--locked", "--no-default-features", "--force"]);
    cargo.args(["--features", &format!("llvm-{llvm}")]).arg("--root").arg(tools());
    // Its build script looks in /usr/lib64 otherwise. Flags that the user set for nsnet are not meant for it.
    cargo.env("LLVM_PREFIX", &prefix).env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    shell::run(&mut cargo).context("cannot build bpf-linker")?;
    installed(llvm).context("bpf-linker was built but does not run: remove target/tools and try again")
}

/// The major version in the `LLVM version:` line of `rustc -vV`.
pub(crate) fn llvm_major(rustc_version: &str) -> Result<u32> {
    rustc_version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version:")?.trim().split('.').next()?.parse().ok())
        .context("`rustc -vV` names no LLVM version: this compiler cannot build for BPF")
}

fn tools() -> PathBuf {
    shell::root().join(Path::new("target/tools"))
}

/// The LLVM that Cargo's record of installed binaries says the linker was built for.
fn built_for(record: &str) -> Option<u32> {
    let (_, rest) = record.split_once("\"bpf-linker ")?;
    let (_, rest) = rest.split_once("\"llvm-")?;
    rest.split('"').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{built_for, llvm_major};

    #[test]
    fn the_llvm_of_a_compiler() {
        let version = "rustc 1.96.0 (ac68faa20 2026-05-25)\nhost: x86_64-unknown-linux-gnu\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_major(version).ok(), Some(22));
        assert!(llvm_major("rustc 1.96.0\nrelease: 1.96.0\n").is_err());
        assert!(llvm_major("LLVM version: unknown\n").is_err());
    }

    #[test]
    fn the_llvm_of_an_installed_linker() {
        let record =
            r#"{"installs":{"bpf-linker 0.13.0 (registry+x)":{"bins":["bpf-linker"],"features":["llvm-22"]}}}"#;
        assert_eq!(built_for(record), Some(22));
        assert_eq!(built_for(r#"{"installs":{"bpf-linker 0.13.0 (registry+x)":{"features":[]}}}"#), None);
        assert_eq!(built_for(""), None);
    }
}
