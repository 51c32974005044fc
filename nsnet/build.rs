//! Takes the eBPF objects into the binary, so that `nsnet` can be copied to another host and run alone: the dataplane's,
//! and the one of `nsnet bench`, which lies beside it.
//!
//! Without them the crate still builds (stable Rust, no BPF toolchain): loading then says what to run.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// What the programs of `nsnet bench` are called, in the dataplane's folder and in ours.
const BENCH_OBJECT: &str = "nsnet-bench-ebpf";
/// Where `cargo xtask build` puts the object, below the workspace.
const OBJECT: &str = "target/bpf/bpfel-unknown-none/release/nsnet-ebpf";

fn main() {
    println!("cargo::rerun-if-env-changed=NSNET_EBPF_OBJECT");
    let workspace = Path::new(&env::var("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..");
    let object = env::var_os("NSNET_EBPF_OBJECT").map_or_else(|| workspace.join(OBJECT), PathBuf::from);
    if embed(&object, "nsnet-ebpf") == 0 {
        println!(
            "cargo::warning=the eBPF object is missing, so this nsnet cannot load programs: run `cargo xtask build`"
        );
    }
    // Its absence needs no warning of its own: both are built by one command.
    embed(&object.with_file_name(BENCH_OBJECT), BENCH_OBJECT);
}

/// Copies an object to where the sources include it from; an empty file where there is none. Says how long it is.
fn embed(object: &Path, name: &str) -> usize {
    println!("cargo::rerun-if-changed={}", object.display());
    let bytes = fs::read(object).unwrap_or_default();
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join(name);
    if let Err(error) = fs::write(&out, &bytes) {
        println!("cargo::error=cannot write {}: {error}", out.display());
    }
    bytes.len()
}
