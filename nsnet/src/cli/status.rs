//! `nsnet status` and `nsnet down`.

use std::process::ExitCode;

use serde_json::json;

use super::output::{self, Format, Table, with_progress};
use super::{Answer, apply};
use crate::agent;
use crate::kernel::host::{Change, Host};
use crate::kernel::object::Object;
use crate::kernel::observe::Scope;
use crate::kernel::upgrade::is_due;
use crate::model::diff::diff;
use crate::model::drift::Drift;

pub(super) fn status(host: &Host, format: Format) -> Answer {
    let mut table = Table::new(&["object", "drift"]);
    let change = match host.foreign_pins()? {
        None => with_progress("comparing with the kernel", || {
            host.preview(|_state| Ok(()), |_state, ()| Scope::Everything)
        })?,
        // What is not ours to read is not compared.
        Some(error) => {
            table.row([json!("dataplane"), json!(error.to_string())]);
            let state = host.state()?;
            Change { answer: (), old: state.clone(), new: state, drift: Vec::new(), steps: Vec::new() }
        }
    };
    let state = &change.old;
    if let Some(disorder) = host.disorder()? {
        table.row([json!("state"), json!(disorder)]);
    }
    for Drift { object, differences } in &change.drift {
        for difference in differences {
            table.row([json!(object.to_string()), json!(difference.to_string())]);
        }
    }
    let loaded = host.dataplane.is_loaded();
    let dataplane = if loaded { "loaded" } else { "not loaded" };
    let build = if loaded { host.dataplane.build()? } else { None };
    let here = Object::own()?.build(host.features);
    let is_upgrade_due = is_due(host)?;
    let changes = diff(&change.old, &change.new, &change.drift, &change.steps);
    let is_well = table.is_empty() && changes.is_empty();
    match format {
        Format::Json => output::print_json(&json!({
            "networks": state.networks.len(),
            "namespaces": state.namespaces.len(),
            "attachments": state.attachments.len(),
            "cables": state.cables.len(),
            "routes": state.routes.len(),
            "uplinks": state.uplinks.len(),
            "publishes": state.publishes.len(),
            "dataplane": dataplane,
            "build": build.as_ref().map(|build| build.id.to_string()),
            "build_version": build.as_ref().map(|build| build.version.as_str()),
            "build_here": here.to_string(),
            "upgrade_due": is_upgrade_due,
            "drift": table.to_json(),
            "steps": apply::to_json(&changes),
        }))?,
        Format::Table => {
            let counted = [
                (state.networks.len(), "network", "s"),
                (state.namespaces.len(), "namespace", "s"),
                (state.attachments.len(), "attachment", "s"),
                (state.cables.len(), "cable", "s"),
                (state.routes.len(), "route", "s"),
                (state.uplinks.len(), "uplink", "s"),
                (state.publishes.len(), "publish", "es"),
            ]
            .map(|(count, what, more)| format!("{count} {what}{}", if count == 1 { "" } else { more }));
            output::line(&format!(
                "{}; dataplane {dataplane}{}",
                counted.join(", "),
                build.map(|build| format!(" (build {}, nsnet {})", build.id, build.version)).unwrap_or_default(),
            ))?;
            if is_upgrade_due {
                output::note(&format!("other programs are loaded than this nsnet's (build {here}): `nsnet upgrade`"));
            }
            if is_well {
                output::line("no drift: the kernel is as it should be")?;
            }
            if !table.is_empty() {
                output::print(format, &table)?;
            }
            if !changes.is_empty() {
                output::line("`nsnet apply` would:")?;
                let steps = changes.iter().flat_map(|change| &change.steps);
                steps.map(|step| format!("  {step}")).try_for_each(|step| output::line(&step))?;
            }
        }
    }
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn down(host: &Host) -> Answer {
    with_progress("taking everything down", || host.down())?;
    // The next agent replaces what stays of one that is gone.
    agent::clear_away(host).unwrap_or_else(|error| output::note(&format!("{error:#}")));
    Ok(ExitCode::SUCCESS)
}
