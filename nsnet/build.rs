//! Takes the eBPF object into the binary, so that `nsnet` can be copied to another host and run alone.
//!
//! Without the object the crate still builds (stable Rust, no BPF toolchain): loading then says what to run.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Where `cargo xtask build` puts the object, below the workspace.
const OBJECT: &str = "target/bpf/bpfel-unknown-none/release/nsnet-ebpf";

fn main() {
    println!("cargo::rerun-if-env-changed=NSNET_EBPF_OBJECT");
    let workspace = Path::new(&env::var("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..");
    let object = env::var_os("NSNET_EBPF_OBJECT").map_or_else(|| workspace.join(OBJECT), PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());

    let bytes = fs::read(&object).unwrap_or_default();
    if bytes.is_empty() {
        println!(
            "cargo::warning=the eBPF object is missing, so this nsnet cannot load programs: run `cargo xtask build`"
        );
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("nsnet-ebpf");
    if let Err(error) = fs::write(&out, bytes) {
        println!("cargo::error=cannot write {}: {error}", out.display());
    }
}
