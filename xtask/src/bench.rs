//! `cargo xtask bench`: builds everything, then becomes `nsnet bench`; or runs the gate, which is a program test.

use std::ffi::OsString;

use anyhow::{Result, bail};

use crate::{object, run, setup, shell};

/// Measures what `nsnet bench` measures; with `gate`, what one packet costs.
pub(crate) fn bench(gate: bool, args: &[OsString]) -> Result<()> {
    if !shell::is_root() {
        bail!("the bench needs root: run `sudo -E env \"PATH=$PATH\" cargo xtask bench`");
    }
    if gate {
        object::build(object::Profile::Release, false)?;
        let mut cargo = shell::cargo("test");
        cargo.args(["--package", "nsnet-tests", "--test", "program", "gate::", "--", "--nocapture"]).args(args);
        return shell::run_as_answer(object::with_object(&mut cargo));
    }
    setup::bench_tools()?;
    let args: Vec<OsString> = [OsString::from("bench")].into_iter().chain(args.iter().cloned()).collect();
    run::run(&args)
}
