//! What the user types: one function for each verb.

mod agent;
mod apply;
mod args;
mod attach;
mod bench;
mod bypassed;
mod cable;
mod capture;
mod ct;
mod demo;
mod doctor;
mod drops;
mod examples;
mod explain;
mod interrupt;
#[cfg(feature = "log")]
mod log;
mod manual;
mod masquerade;
mod mode;
mod namespace;
mod nat;
mod network;
mod output;
mod publish;
mod punted;
mod route;
mod show;
mod stats;
mod status;
mod stream;
mod top;
mod upgrade;

use std::process::ExitCode;

use clap::FromArgMatches as _;
use clap::error::ErrorKind;

use crate::kernel::host::Host;
use args::{Cli, Command};
use output::Format;

/// What a verb ends with: an exit code, or an error to report.
type Answer = anyhow::Result<ExitCode>;

/// The command line's `main`.
pub fn run() -> ExitCode {
    let mut grammar = examples::command();
    let parsed = grammar.try_get_matches_from_mut(std::env::args_os());
    let cli = match parsed.and_then(|words| Cli::from_arg_matches(&words).map_err(|error| error.format(&mut grammar))) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match dispatch(&cli) {
        Ok(code) => code,
        Err(error) => {
            output::error(cli.output, &format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: &Cli) -> Answer {
    let host = || {
        let mut host = Host::enter(cli.host_ns.as_deref())?;
        host.on_note = output::note;
        if cli.verbose {
            host.on_step = |step, took| output::note(&format!("{step}: {:.1} ms", took.as_secs_f64() * 1e3));
        }
        anyhow::Ok(host)
    };
    let format = cli.output;
    match &cli.command {
        Command::Ns(verb) => namespace::run(&host()?, format, verb),
        Command::Cable(verb) => cable::run(&host()?, format, verb),
        Command::Network(verb) => network::run(&host()?, format, verb),
        Command::Masquerade(verb) => masquerade::run(&host()?, format, verb),
        Command::Attach(request) => attach::attach(&host()?, format, request),
        Command::Detach { network, ns } => attach::detach(&host()?, network, ns),
        Command::Route(verb) => route::run(&host()?, format, verb),
        Command::Publish(verb) => publish::run(&host()?, format, verb),
        Command::Fdb(_list) => show::fdb(&host()?, format),
        Command::Neigh(_list) => show::neigh(&host()?, format),
        Command::Ct(verb) => ct::run(&host()?, format, verb),
        Command::Nat(_list) => nat::list(&host()?, format),
        Command::Stats(args) => stats::stats(&host()?, format, args),
        Command::Top(args) => top::top(&host()?, format, args),
        Command::Drops(args) => drops::drops(&host()?, format, args),
        Command::Capture(args) => capture::capture(&host()?, format, args),
        Command::Explain(args) => explain::explain(&host()?, format, args),
        #[cfg(feature = "log")]
        Command::Log => log::log(&host()?),
        // A file is read first, as the caller sees it.
        Command::Plan(args) => {
            let wanted = args.read()?;
            apply::plan(&host()?, format, wanted.as_ref())
        }
        Command::Apply(args) => {
            let wanted = args.read()?;
            apply::apply(&host()?, format, wanted.as_ref())
        }
        Command::Schema => apply::schema(),
        Command::Status => status::status(&host()?, format),
        Command::Down => status::down(&host()?),
        Command::Upgrade(args) => upgrade::run(&host()?, format, args),
        Command::Agent(args) => agent::agent(host()?, format, args),
        // These come without: one looks why there may be no host, the others make one of their own.
        Command::Doctor => doctor::doctor(format, cli.host_ns.as_deref()),
        Command::Bench(args) => bench::bench(format, args),
        Command::Demo(args) => demo::demo(format, args),
        Command::Completions(args) => manual::completions(args),
        Command::Man(args) => manual::man(args),
    }
}

/// Help and version are answers; anything else clap says is a usage error, cut to its first line.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let is_answer = !matches!(error.kind(), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
        // A closed terminal is no reason to fail.
        let _printed = error.print();
        return if is_answer { ExitCode::SUCCESS } else { ExitCode::from(2) };
    }
    let asked_for_json = std::env::args().any(|arg| arg == "json" || arg.ends_with("=json") || arg == "-ojson");
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    let message = lines.join(" ").trim_start_matches("error: ").to_owned();
    output::error(if asked_for_json { Format::Json } else { Format::Table }, &format!("{message}; see `nsnet help`"));
    ExitCode::from(2)
}
