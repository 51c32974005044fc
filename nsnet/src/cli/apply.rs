//! `nsnet plan`, `nsnet apply`, `nsnet schema`: what is declared in a file, and what it takes.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};

use super::output::{self, Format, with_progress};
use super::{Answer, attach, bypassed, network, publish};
use crate::kernel::host::{Change, Host};
use crate::kernel::netlink::Netlink;
use crate::kernel::netns::NetNs;
use crate::kernel::observe::Scope;
use crate::kernel::upgrade::{self, Allowed, Outcome, Replacement, upgrade};
use crate::model::Refusal;
use crate::model::declaration::Declaration;
use crate::model::declare::Surroundings;
use crate::model::diff::{self, Action, diff};
use crate::model::drift::{Difference, Object};
use crate::model::edit::default_route;
use crate::model::name::Name;
use crate::model::plan::Step;
use crate::model::state::State;

/// No file that people write is longer.
const LONGEST: u64 = 16 << 20;

/// Arguments of `plan` and `apply`.
#[derive(Debug, Args)]
pub(super) struct FileArgs {
    /// What is to be there, in TOML (`nsnet schema` tells its keys); `-` is stdin. A file that declares nothing is
    /// refused: `nsnet down` is for that. When left out: what verbs have made so far, so that only what was changed
    /// behind nsnet's back is put right
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
}

impl FileArgs {
    /// The file's name, and what it says; nothing when there is none.
    pub(super) fn read(&self) -> anyhow::Result<Option<Wanted>> {
        let Some(path) = &self.file else { return Ok(None) };
        let is_stdin = path.as_os_str() == "-";
        let name = if is_stdin { "stdin".to_owned() } else { path.display().to_string() };
        let mut text = String::new();
        let read = if is_stdin {
            io::stdin().take(LONGEST + 1).read_to_string(&mut text)
        } else {
            File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_string(&mut text))
        };
        read.with_context(|| format!("cannot read {name}"))?;
        if text.len() as u64 > LONGEST {
            bail!("cannot read {name}: it has over {} MiB; declare less in one file", LONGEST >> 20);
        }
        let declaration = Declaration::read(&text).map_err(|refusal| anyhow::anyhow!("{name}: {refusal}"))?;
        Ok(Some(Wanted { name, declaration }))
    }
}

/// What a file says.
#[derive(Debug)]
pub(super) struct Wanted {
    name: String,
    declaration: Declaration,
}

impl Wanted {
    /// Makes the state what the file says.
    fn declare(&self, host: &Host, state: &mut State) -> anyhow::Result<()> {
        let refused = |error: anyhow::Error| Refusal(format!("{error:#}"));
        let has_namespace = |name: &Name| match NetNs::named(name.as_str()) {
            // It is to be one of ours: not the host's own.
            Ok(_there) => host.member(name.as_str()).map(|_ns| true).map_err(|error| refused(error.into())),
            Err(_not_there) => Ok(false),
        };
        let default_routes = |name: &Name, v4: bool| default_routes(name, v4).map_err(refused);
        let default_mtu = host.default_mtu()?;
        publish::with_host_ports(host, |ports| {
            let around =
                Surroundings { default_mtu, has_namespace: &has_namespace, default_routes: &default_routes, ports };
            let named = |why: &dyn Display| anyhow::anyhow!("{}: {why}", self.name);
            state.declare(&self.declaration, &around).map_err(|refusal| named(&refusal))?;
            let mut networks = state.networks.keys();
            networks.try_for_each(|network| attach::check_names(state, network)).map_err(|error| named(&error))
        })
    }
}

/// The next hops of a namespace's default routes. One that is not there yet has none.
fn default_routes(name: &Name, v4: bool) -> anyhow::Result<Vec<Option<IpAddr>>> {
    let Ok(ns) = NetNs::named(name.as_str()) else { return Ok(Vec::new()) };
    let routes = Netlink::inside(&ns)?.routes()?;
    Ok(routes.into_iter().filter(|route| route.dest == default_route(v4)).map(|route| route.via).collect())
}

/// What it takes to get from what the kernel has to what the file says.
pub(super) fn plan(host: &Host, format: Format, wanted: Option<&Wanted>) -> Answer {
    let (programs, change) = with_progress("comparing with the kernel", || {
        let programs = upgrade::preview(host)?;
        let change = foresee(host, wanted, programs.is_some())?;
        anyhow::Ok((programs, change))
    })?;
    if let Some(disorder) = host.disorder()? {
        output::note(&disorder);
    }
    if let Some(programs) = &programs {
        programs.plan.losses().iter().for_each(|loss| output::note(&format!("would be lost: {loss}")));
        if host.foreign_pins()?.is_some() {
            output::note("other programs have other maps: what drifted is seen, and put right, when they are replaced");
        }
    }
    print(format, programs.as_ref(), &change, ["nothing to do", "to add", "to change", "to remove"])?;
    Ok(ExitCode::SUCCESS)
}

/// What is to be done once the programs are this nsnet's. What is refused then is refused here.
fn foresee(host: &Host, wanted: Option<&Wanted>, is_upgrade_due: bool) -> anyhow::Result<Change<()>> {
    let edit = |state: &mut State| declare(host, state, wanted);
    if is_upgrade_due && host.foreign_pins()?.is_some() {
        return host.preview_unread(edit);
    }
    let change = host.preview(edit, |_state, ()| Scope::Everything)?;
    host.check(&change.steps)?;
    Ok(change)
}

/// Does it, with this nsnet's programs.
pub(super) fn apply(host: &Host, format: Format, wanted: Option<&Wanted>) -> Answer {
    let mut replaced = None;
    if upgrade::is_due(host)? {
        // What is refused is refused before anything is changed.
        foresee(host, wanted, true)?;
        let outcome = with_progress("replacing the programs", || upgrade(host, Allowed::default()))?;
        if let Outcome::Upgraded(done) = outcome {
            output::note(&format!("the programs were replaced by this nsnet's (build {})", done.programs.to));
            done.programs.plan.losses().iter().for_each(|loss| output::note(&format!("lost: {loss}")));
            replaced = Some(done.programs);
        }
    }
    let change = with_progress("making it so", || {
        host.change_and_repair(|state| declare(host, state, wanted), |_state, ()| Scope::Everything)
    })?;
    for network in change.new.networks.values().filter(|network| !change.old.networks.contains_key(&network.name)) {
        network::warn(host, network);
    }
    print(format, replaced.as_ref(), &change, ["nothing was to be done", "added", "changed", "removed"])?;
    if change.steps.contains(&Step::LoadDataplane) {
        bypassed::tell(&change.new);
    }
    Ok(ExitCode::SUCCESS)
}

fn declare(host: &Host, state: &mut State, wanted: Option<&Wanted>) -> anyhow::Result<()> {
    wanted.map_or(Ok(()), |wanted| wanted.declare(host, state))
}

/// Prints the JSON schema of a file.
pub(super) fn schema() -> Answer {
    output::print_json(&Declaration::schema())?;
    Ok(ExitCode::SUCCESS)
}

fn print(format: Format, programs: Option<&Replacement>, change: &Change<()>, words: [&str; 4]) -> io::Result<()> {
    let [nothing, added, changed, removed] = words;
    let mut changes: Vec<_> = programs.into_iter().map(replacement).collect();
    changes.extend(diff(&change.old, &change.new, &change.drift, &change.steps));
    match format {
        Format::Json => output::print_json(&json!({ "steps": to_json(&changes) })),
        Format::Table if changes.is_empty() => output::line(nothing),
        Format::Table => {
            changes.iter().flat_map(lines).try_for_each(|line| output::line(&line))?;
            let count = |action| changes.iter().filter(|change| change.action == action).count();
            let [add, change, remove] = [Action::Add, Action::Change, Action::Remove].map(count);
            output::line(&format!("{add} {added}, {change} {changed}, {remove} {removed}"))
        }
    }
}

/// Other programs, which come before everything else.
fn replacement(programs: &Replacement) -> diff::Change {
    let from = programs.from.as_ref().map_or_else(|| "unknown".to_owned(), |build| build.id.to_string());
    let (_kept, copied, emptied) = programs.plan.summary();
    let of_maps = |what: &str, maps: &[&str]| (!maps.is_empty()).then(|| format!("{what} {}", maps.join(", ")));
    let maps = [of_maps("copy", &copied), of_maps("empty", &emptied)];
    let steps = ["replace the programs while packets go on".to_owned()].into_iter().chain(maps.into_iter().flatten());
    diff::Change {
        action: Action::Change,
        object: Object::Dataplane,
        differences: vec![Difference::other("build", from, programs.to)],
        steps: steps.collect(),
    }
}

/// A plan for programs.
pub(super) fn to_json(changes: &[diff::Change]) -> Value {
    let difference = |difference: &Difference| {
        let Difference { what, is, should } = difference;
        json!({ "what": what, "is": is, "should": should })
    };
    let one = |change: &diff::Change| {
        json!({
            "action": match change.action {
                Action::Add => "add",
                Action::Change => "change",
                Action::Remove => "remove",
            },
            "object": change.object.to_string(),
            "differences": change.differences.iter().map(difference).collect::<Vec<_>>(),
            "does": change.steps,
        })
    };
    changes.iter().map(one).collect()
}

/// A change for people.
pub(super) fn lines(change: &diff::Change) -> Vec<String> {
    let object = &change.object;
    let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".to_owned());
    match change.action {
        Action::Remove => vec![format!("- {object}")],
        Action::Add => {
            let values = change.differences.iter().filter(|difference| is_worth_telling(difference));
            let values: Vec<String> =
                values.map(|difference| format!("{} {}", difference.what, value(&difference.should))).collect();
            let colon = if values.is_empty() { "" } else { ": " };
            vec![format!("+ {object}{colon}{}", values.join(", "))]
        }
        Action::Change => {
            let anew = if change.differences.is_empty() { " (made anew)" } else { "" };
            let difference = |difference: &Difference| match (&difference.is, &difference.should) {
                (None, None) => format!("    {} is missing", difference.what),
                (is, should) => format!("    {}: {} -> {}", difference.what, value(is), value(should)),
            };
            [format!("~ {object}{anew}")].into_iter().chain(change.differences.iter().map(difference)).collect()
        }
    }
}

/// Of what comes, what is not as it mostly is.
fn is_worth_telling(difference: &Difference) -> bool {
    !matches!(difference.should.as_deref(), Some("false" | "none" | "tc"))
}
