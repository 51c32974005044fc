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
        Err(error) => return usage(&grammar, &error),
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

/// Help and version are answers; anything else clap says is a usage error, told in one line.
fn usage(grammar: &clap::Command, error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let is_answer = !matches!(error.kind(), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
        // A closed terminal is no reason to fail.
        let _printed = error.print();
        return if is_answer { ExitCode::SUCCESS } else { ExitCode::from(2) };
    }
    // Not all that is typed is UTF-8.
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let asked_for_json = words.iter().any(|word| word == "json" || word.ends_with("=json") || word == "-ojson");
    let message = format!("{}; see `nsnet help{}`", in_one_line(error), verb(grammar, &words));
    output::error(if asked_for_json { Format::Json } else { Format::Table }, &message);
    ExitCode::from(2)
}

/// What clap says, with its tips; where it has none for a word that is too many, with its usage.
fn in_one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("For more information"));
    let mut message = String::new();
    for line in lines {
        match (line.strip_prefix("tip: "), message.is_empty()) {
            (_, true) => message.push_str(line.trim_start_matches("error: ")),
            (Some(tip), false) => message.push_str(&format!("; {tip}")),
            (None, false) => message.push_str(&format!(" {line}")),
        }
    }
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: "));
    match usage.filter(|_| error.kind() == ErrorKind::UnknownArgument && !text.contains("tip: ")) {
        Some(usage) => format!("{message}; usage: {usage}"),
        None => message,
    }
}

/// The verb that `words` begin with, each of its words after a blank.
fn verb(grammar: &clap::Command, words: &[String]) -> String {
    let takes_value = |word: &str| {
        grammar.get_arguments().filter(|option| option.get_action().takes_values()).any(|option| {
            option.get_long().is_some_and(|long| word.strip_prefix("--") == Some(long))
                || option.get_short().is_some_and(|short| word.strip_prefix('-') == Some(short.to_string().as_str()))
        })
    };
    let (mut at, mut verb) = (grammar, String::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if takes_value(word) {
            words.next();
        } else if let Some(below) = at.find_subcommand(word) {
            verb = format!("{verb} {}", below.get_name());
            at = below;
        } else if !word.starts_with('-') {
            break;
        }
    }
    verb
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_error_keeps_its_tip_and_names_the_verb() {
        for (line, expected) in [
            (
                "statu",
                "unrecognized subcommand 'statu'; some similar subcommands exist: 'stats', 'status'; see `nsnet help`",
            ),
            (
                "--host-ns ns ns ad x",
                "unrecognized subcommand 'ad'; a similar subcommand exists: 'add'; see `nsnet help ns`",
            ),
            (
                "ns exec red true",
                "unexpected argument 'true' found; usage: nsnet ns exec [OPTIONS] <NAME> -- <CMD>...; see `nsnet help ns exec`",
            ),
            ("ns add a/b", "invalid value 'a/b' for '<NAME>...': a name is 1 to 15"),
            ("attach n", "the following required arguments were not provided: <NS>; see `nsnet help attach`"),
        ] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let mut grammar = examples::command();
            let error = grammar.try_get_matches_from_mut(["nsnet".to_owned()].iter().chain(&words)).unwrap_err();
            let told = format!("{}; see `nsnet help{}`", in_one_line(&error), verb(&grammar, &words));
            assert!(told.starts_with(expected), "{line}: {told}");
        }
    }
}
