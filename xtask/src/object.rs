//! `cargo xtask build`: the eBPF object, then the `nsnet` binary that carries it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::{setup, shell};

/// How the host's binary is built.
#[derive(Clone, Copy)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// Builds both; with `log`, their development feature of that name.
pub(crate) fn build(profile: Profile, log: bool) -> Result<()> {
    let toolchain = setup::bpf()?;
    let features: &[&str] = if log { &["--features", "log"] } else { &[] };
    shell::stage("eBPF object", || shell::run(object_command(&toolchain).args(features)))?;
    let mut cargo = shell::cargo("build");
    cargo.args(["--package", "nsnet"]).args(features);
    if matches!(profile, Profile::Release) {
        cargo.arg("--release");
    }
    shell::stage("nsnet", || shell::run(with_object(&mut cargo)))
}

/// Tells nsnet's build script, and tests, where the object is.
pub(crate) fn with_object(command: &mut Command) -> &mut Command {
    command.env("NSNET_EBPF_OBJECT", shell::root().join("target/bpf/bpfel-unknown-none/release/nsnet-ebpf"))
}

/// The binary that `build(Profile::Release)` makes.
pub(crate) fn binary() -> PathBuf {
    shell::target_dir().join("release/nsnet")
}

/// The object has a target folder of its own: another compiler in the same one would make both sides build again
/// each time. It is always a release build: without optimisation no program passes the verifier.
fn object_command(toolchain: &setup::Toolchain) -> Command {
    let mut linker = OsString::from("-Clinker=");
    linker.push(&toolchain.linker);
    // BTF for maps and functions: bpf-to-bpf calls need it, and it makes `bpftool` output readable.
    let flags = [linker, "-Cdebuginfo=2".into(), "-Clink-arg=--btf".into()];
    let mut cargo = toolchain.cargo("build");
    cargo.args(["--release", "--target-dir", "target/bpf"]);
    // Encoded, because a path may hold spaces; this variable also hides RUSTFLAGS, which are meant for the host.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f".as_ref()));
    cargo
}
