//! Running other programs: what they inherit, where they print, and how a failure reads.
//!
//! Everything this crate says goes to stderr, and so does the output of every step: stdout belongs to the answer,
//! which is what `nsnet` prints under `run` and the test reports under `test`.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{env, fs};

use anyhow::{Context, Result, bail};

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate's folder lies in the repository's root")
}

/// Where Cargo puts the host's artifacts.
pub(crate) fn target_dir() -> PathBuf {
    root().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// A command in the repository's root which does not notice that Cargo started us.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    forget_outer_cargo(&mut command);
    command
}

/// The toolchain's Cargo; which toolchain, `cargo xtask` was told already.
pub(crate) fn cargo(verb: &str) -> Command {
    let mut command = command("cargo");
    command.arg(verb);
    command
}

/// `cargo run` describes itself to its child. A Cargo or a compiler below it would take that for the user's wish:
/// CARGO makes `cargo +nightly clippy` call stable's Cargo, LD_LIBRARY_PATH points Debian's tools at rustup's
/// libraries, and a default target moves the binaries to another folder.
pub(crate) fn forget_outer_cargo(command: &mut Command) {
    for name in ["CARGO", "LD_LIBRARY_PATH", "CARGO_BUILD_TARGET"] {
        command.env_remove(name);
    }
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
}

/// Runs a step with its output on stderr; an exit code other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    run_as_answer(command.stdout(Stdio::from(io::stderr())))
}

/// Like [`run`], but the step's stdout is our answer.
pub(crate) fn run_as_answer(command: &mut Command) -> Result<()> {
    let line = line(command);
    eprintln!("{}", paint("2", &format!("$ {line}")));
    let status = command.status().with_context(|| format!("cannot run `{line}`: is it installed and on PATH?"))?;
    if !status.success() {
        bail!("`{line}` failed ({status}): its output is above");
    }
    Ok(())
}

/// Asks a program something: its stdout, or `None` if it is not there or fails.
pub(crate) fn ask(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Does one stage under a heading, and prints how long it took.
pub(crate) fn stage<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("{}", paint("1", &format!("==> {name}")));
    let start = Instant::now();
    let done = work();
    let (verdict, colour) = if done.is_ok() { ("ok", "1;32") } else { ("FAILED", "1;31") };
    eprintln!("{}", paint(colour, &format!("==> {name}: {verdict}, {:.1} s", start.elapsed().as_secs_f64())));
    done
}

/// Stages that do not need each other: all of them run, and the end says which failed.
#[derive(Default)]
pub(crate) struct Stages {
    failed: Vec<&'static str>,
}

impl Stages {
    /// Runs one stage and remembers a failure.
    pub(crate) fn run(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) {
        if let Err(failure) = stage(name, work) {
            error(&failure);
            self.failed.push(name);
        }
    }

    /// The error that names the failed stages.
    pub(crate) fn finish(self) -> Result<()> {
        if !self.failed.is_empty() {
            bail!("failed: {}; the reasons are above", self.failed.join(", "));
        }
        Ok(())
    }
}

/// Says something to the user.
pub(crate) fn note(text: impl Display) {
    eprintln!("{text}");
}

/// Prints an error and its causes in one line.
pub(crate) fn error(error: &anyhow::Error) {
    eprintln!("{} {error:#}", paint("1;31", "error:"));
}

/// Whether we are root: the owner of a process's own entry in /proc is its effective user.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0)
}

/// Finds a program on PATH, and where Debian keeps root's tools, which a user's PATH lacks.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// The command as a user would type it.
fn line(command: &Command) -> String {
    let words: Vec<_> =
        [command.get_program()].into_iter().chain(command.get_args()).map(OsStr::to_string_lossy).collect();
    words.join(" ")
}

/// Whether what we print may be coloured.
pub(crate) fn colour() -> bool {
    io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none()
}

fn paint(code: &str, text: &str) -> String {
    if colour() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::{Stages, command, find, line, root, run};

    #[test]
    fn the_root_is_the_workspace() {
        assert!(root().join("Cargo.lock").is_file());
    }

    #[test]
    fn a_failure_names_the_command_and_its_exit_code() {
        let failure = run(command("false").arg("now")).map_err(|error| error.to_string());
        assert_eq!(failure, Err("`false now` failed (exit status: 1): its output is above".to_owned()));
    }

    #[test]
    fn every_stage_runs_and_the_end_names_the_failed_ones() {
        let mut stages = Stages::default();
        let mut ran = 0;
        stages.run("first", || Err(anyhow!("broken")));
        stages.run("second", || {
            ran += 1;
            Ok(())
        });
        assert_eq!(ran, 1);
        assert!(stages.finish().is_err_and(|error| error.to_string().contains("failed: first;")));
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(find("sh").is_some());
        assert!(find("nsnet-no-such-program").is_none());
        assert_eq!(line(command("ip").args(["-n", "red", "link"])), "ip -n red link");
    }
}
