//! `nsnet ns`.

use std::ffi::OsString;
use std::process::ExitCode;

use serde_json::json;

use super::args::NsVerb;
use super::output::{self, Format, Table};
use super::{Answer, publish};
use crate::kernel::host::Host;
use crate::kernel::netns::NetNs;
use crate::kernel::observe::Scope;
use crate::kernel::{exec, named};
use crate::model::drift::Object;
use crate::model::name::Name;
use crate::model::state::State;

pub(super) fn run(host: &Host, format: Format, verb: &NsVerb) -> Answer {
    match verb {
        NsVerb::Add { names } => add(host, names),
        NsVerb::Del { names, force } => delete(host, names, *force),
        NsVerb::List => list(host, format),
        NsVerb::Exec { name, command } => execute(host, name, command),
    }
}

fn add(host: &Host, names: &[Name]) -> Answer {
    let change = host.change_and_repair(
        |state| {
            // Under the lock: before, another verb, or the undoing of one that was cut off, may still take them away.
            let existing = named::list()?;
            for name in names.iter().filter(|name| existing.iter().any(|other| other == name.as_str())) {
                // It is to be one of ours: not the host's own.
                host.member(name.as_str())?;
            }
            let mut adopted = Vec::new();
            for name in names {
                if state.namespaces.contains_key(name) {
                    continue;
                }
                let is_there = existing.iter().any(|other| other == name.as_str());
                state.add_namespace(name, !is_there);
                if is_there {
                    adopted.push(name.clone());
                }
            }
            Ok(adopted)
        },
        |_state, _adopted| Scope::these(names.iter().cloned().map(Object::Namespace)),
    )?;
    for name in change.answer {
        output::note(&format!("namespace {name} was there already: adopted, it will not be deleted by nsnet"));
    }
    Ok(ExitCode::SUCCESS)
}

fn delete(host: &Host, names: &[Name], force: bool) -> Answer {
    let edit = |state: &mut State| {
        let is_foreign = |name: &&Name| state.namespaces.get(name).is_none_or(|ns| !ns.made);
        let kept: Vec<Name> = names.iter().filter(is_foreign).cloned().collect();
        for name in names {
            state.delete_namespace(name, force)?;
        }
        Ok(kept)
    };
    let change = host.change_and_repair(edit, |_state, _kept| Scope::Nothing)?;
    publish::tell_lost(&change);
    for name in change.answer.iter().filter(|name| NetNs::named(name.as_str()).is_ok()) {
        output::note(&format!("namespace {name} was not made by nsnet: left where it is"));
    }
    Ok(ExitCode::SUCCESS)
}

fn list(host: &Host, format: Format) -> Answer {
    let state = host.state()?;
    let mut table = Table::new(&["name", "made_by", "networks", "ips"]);
    for name in named::list()? {
        let known = state.namespaces.iter().find(|(known, _)| known.as_str() == name);
        let made_by = known.map(|(_, ns)| if ns.made { "nsnet" } else { "other" });
        let ports: Vec<_> = state.attachments.iter().filter(|port| port.ns.as_str() == name).collect();
        let networks: Vec<&str> = ports.iter().map(|port| port.network.as_str()).collect();
        let ips: Vec<_> = ports.iter().flat_map(|port| &port.ips).collect();
        table.row([json!(name), json!(made_by), json!(networks), json!(ips)]);
    }
    output::print(format, &table)?;
    Ok(ExitCode::SUCCESS)
}

fn execute(host: &Host, name: &Name, command: &[OsString]) -> Answer {
    let ns = host.member(name.as_str())?;
    // Becomes the command, so there is no value on success.
    match exec::exec_inside(&ns, name.as_str(), command) {
        Ok(never) => match never {},
        Err(error) => Err(error.into()),
    }
}
