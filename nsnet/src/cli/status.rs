//! `nsnet status` and `nsnet down`.

use std::process::ExitCode;

use serde_json::json;

use super::Answer;
use super::output::{self, Format, Table, with_progress};
use crate::agent;
use crate::kernel::host::Host;
use crate::kernel::observe::{self, Scope};
use crate::model::state::State;

pub(super) fn status(host: &Host, format: Format) -> Answer {
    let state = host.state()?;
    let drift = with_progress("comparing with the kernel", || observe::drift(host, &state, &Scope::Everything))?;
    let mut table = Table::new(&["object", "drift"]);
    for (object, difference) in drift.iter().flat_map(|drift| drift.differences.iter().map(|d| (&drift.object, d))) {
        table.row([json!(object.to_string()), json!(difference.to_string())]);
    }
    let loaded = host.dataplane.is_loaded();
    match format {
        Format::Json => output::print_json(&json!({
            "networks": state.networks.len(),
            "namespaces": state.namespaces.len(),
            "attachments": state.attachments.len(),
            "cables": state.cables.len(),
            "routes": state.routes.len(),
            "uplinks": state.uplinks.len(),
            "publishes": state.publishes.len(),
            "dataplane": if loaded { "loaded" } else { "not loaded" },
            "drift": table.to_json(),
        }))?,
        Format::Table => {
            output::line(&format!(
                "{} networks, {} namespaces, {} attachments, {} cables, {} routes, {} uplinks, {} publishes; dataplane {}",
                state.networks.len(),
                state.namespaces.len(),
                state.attachments.len(),
                state.cables.len(),
                state.routes.len(),
                state.uplinks.len(),
                state.publishes.len(),
                if loaded { "loaded" } else { "not loaded" },
            ))?;
            if drift.is_empty() {
                output::line("no drift: the kernel is as it should be")?;
            } else {
                output::print(format, &table)?;
                output::note("adding the object again with its arguments repairs it");
            }
        }
    }
    Ok(if drift.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn down(host: &Host) -> Answer {
    with_progress("taking everything down", || {
        host.change(|state| {
            *state = State::default();
            Ok(())
        })
    })?;
    agent::clear_away(host)?;
    Ok(ExitCode::SUCCESS)
}
