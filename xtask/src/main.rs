//! The project's own commands: `cargo xtask setup`, `build`, `run`, `test`, `bench` and `lint`.
//!
//! Each command first does the set-up it needs, so a clean machine needs nothing but Cargo and a C linker.
//! What is installed, and from where, is decided in [`way`]; the rest of the crate only carries that out.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`way`] | pure: which of the two BPF toolchains to use, and why |
//! | [`rustup`], [`debian`], [`linker`] | look for and install one part each |
//! | [`setup`] | puts them together: a ready [`setup::Toolchain`] |
//! | [`object`] | builds the eBPF object and the `nsnet` binary around it |
//! | [`run`], [`mod@test`], [`mod@bench`], [`lint`] | one command each |
//! | [`shell`] | runs programs; what they inherit, where they print, how a failure reads |

mod bench;
mod debian;
mod linker;
mod lint;
mod object;
mod run;
mod rustup;
mod setup;
mod shell;
mod test;
mod way;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what the other commands need: a compiler and a linker for BPF, rustfmt, clippy, ip
    ///
    /// Chooses between a rustup nightly and Debian's packages by itself and says which and why;
    /// NSNET_BPF_TOOLCHAIN=rustup or =debian decides instead. Running it again changes nothing.
    Setup,
    /// Build the eBPF object and the nsnet binary
    Build {
        /// Build nsnet with the dev profile (the eBPF object is always optimised: the verifier needs it)
        #[arg(long)]
        debug: bool,
        /// Have the programs log each drop, for `nsnet log` (never for a release)
        #[arg(long)]
        log: bool,
    },
    /// Build everything, then run `nsnet ARGS`, or `nsnet demo` without arguments
    Run {
        /// What to run instead of `demo`, for example `ns list`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
    /// Run the tests; program and network tests need root
    Test {
        /// One kind of test only
        suite: Option<test::Suite>,
        /// Arguments for the test binaries, for example a name to filter by
        #[arg(last = true)]
        args: Vec<std::ffi::OsString>,
    },
    /// Build everything, then run `nsnet bench ARGS`, for example `--full`; needs root
    Bench {
        /// Instead: what one packet costs in time, lookups and instructions; fails when any of it has doubled
        #[arg(long)]
        gate: bool,
        /// Arguments for `nsnet bench`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
    /// Check formatting, lints and docs: exactly what CI checks
    Lint,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Verb::Setup => setup::everything(),
        Verb::Build { debug, log } => {
            object::build(if debug { object::Profile::Dev } else { object::Profile::Release }, log)
        }
        Verb::Run { args } => run::run(&args),
        Verb::Test { suite, args } => test::test(suite, &args),
        Verb::Bench { gate, args } => bench::bench(gate, &args),
        Verb::Lint => lint::lint(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            shell::error(&error);
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Cli, Verb};

    #[test]
    fn bench_takes_its_own_option_and_hands_on_the_rest() {
        let parse = |line: &[&str]| {
            let Verb::Bench { gate, args } = Cli::parse_from(line).command else { panic!("not a bench: {line:?}") };
            (gate, args.len())
        };
        assert_eq!(parse(&["xtask", "bench"]), (false, 0));
        assert_eq!(parse(&["xtask", "bench", "--gate"]), (true, 0));
        assert_eq!(parse(&["xtask", "bench", "--full", "--report", "here"]), (false, 3));
    }

    fn run_args(line: &[&str]) -> Vec<String> {
        let Verb::Run { args } = Cli::parse_from(line).command else { panic!("not a run: {line:?}") };
        args.into_iter().map(|arg| arg.into_string().expect("the test's arguments are UTF-8")).collect()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_arguments_with_and_without_a_separator() {
        assert!(run_args(&["xtask", "run"]).is_empty());
        assert_eq!(run_args(&["xtask", "run", "ns", "list", "-o", "json"]), ["ns", "list", "-o", "json"]);
        assert_eq!(run_args(&["xtask", "run", "--", "--version"]), ["--version"]);
        assert_eq!(run_args(&["xtask", "run", "ns", "exec", "red", "--", "ip", "link"])[3..], ["--", "ip", "link"]);
    }
}
