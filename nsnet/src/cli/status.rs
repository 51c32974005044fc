//! `nsnet status` and `nsnet down`.

use std::process::ExitCode;

use serde_json::json;

use super::output::{self, Format, Table, with_progress};
use super::{Answer, apply};
use crate::agent;
use crate::kernel::host::Host;
use crate::kernel::observe::Scope;
use crate::model::diff::diff;
use crate::model::drift::Drift;

pub(super) fn status(host: &Host, format: Format) -> Answer {
    let change =
        with_progress("comparing with the kernel", || host.preview(|_state| Ok(()), |_state, ()| Scope::Everything))?;
    let state = &change.old;
    let mut table = Table::new(&["object", "drift"]);
    if let Some(disorder) = host.disorder()? {
        table.row([json!("state"), json!(disorder)]);
    }
    for Drift { object, differences } in &change.drift {
        for difference in differences {
            table.row([json!(object.to_string()), json!(difference.to_string())]);
        }
    }
    let changes = diff(&change.old, &change.new, &change.drift, &change.steps);
    let is_well = table.is_empty() && changes.is_empty();
    let dataplane = if host.dataplane.is_loaded() { "loaded" } else { "not loaded" };
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
            "drift": table.to_json(),
            "steps": apply::to_json(&changes),
        }))?,
        Format::Table => {
            output::line(&format!(
                "{} networks, {} namespaces, {} attachments, {} cables, {} routes, {} uplinks, {} publishes; \
                 dataplane {dataplane}",
                state.networks.len(),
                state.namespaces.len(),
                state.attachments.len(),
                state.cables.len(),
                state.routes.len(),
                state.uplinks.len(),
                state.publishes.len(),
            ))?;
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
