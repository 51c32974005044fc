//! `nsnet status` and `nsnet down`.

use std::process::ExitCode;

use serde_json::json;

use super::Answer;
use super::output::{self, Format, Table, with_progress};
use crate::kernel::host::Host;
use crate::kernel::object::Object;
use crate::kernel::observe::{self, Scope};

pub(super) fn status(host: &Host, format: Format) -> Answer {
    let state = host.state()?;
    let mut table = Table::new(&["object", "drift"]);
    // What is not ours to read is not compared.
    let drift = match host.check_pins() {
        Ok(()) => with_progress("comparing with the kernel", || observe::drift(host, &state, &Scope::Everything))?,
        Err(error) => {
            table.row([json!("dataplane"), json!(error.to_string())]);
            Vec::new()
        }
    };
    if let Some(disorder) = host.disorder()? {
        table.row([json!("state"), json!(disorder)]);
    }
    for (object, difference) in drift.iter().flat_map(|drift| drift.differences.iter().map(|d| (&drift.object, d))) {
        table.row([json!(object.to_string()), json!(difference.to_string())]);
    }
    let loaded = host.dataplane.is_loaded();
    let word = if loaded { "loaded" } else { "not loaded" };
    let build = if loaded { host.dataplane.build()? } else { None };
    let here = Object::own()?.build(host.features);
    let is_due = loaded && build.as_ref().is_none_or(|build| build.id != here);
    match format {
        Format::Json => output::print_json(&json!({
            "networks": state.networks.len(),
            "namespaces": state.namespaces.len(),
            "attachments": state.attachments.len(),
            "cables": state.cables.len(),
            "routes": state.routes.len(),
            "uplinks": state.uplinks.len(),
            "publishes": state.publishes.len(),
            "dataplane": word,
            "build": build.as_ref().map(|build| build.id.to_string()),
            "build_version": build.as_ref().map(|build| build.version.as_str()),
            "build_here": here.to_string(),
            "upgrade_due": is_due,
            "drift": table.to_json(),
        }))?,
        Format::Table => {
            output::line(&format!(
                "{} networks, {} namespaces, {} attachments, {} cables, {} routes, {} uplinks, {} publishes; dataplane {word}{}",
                state.networks.len(),
                state.namespaces.len(),
                state.attachments.len(),
                state.cables.len(),
                state.routes.len(),
                state.uplinks.len(),
                state.publishes.len(),
                build.map(|build| format!(" (build {}, nsnet {})", build.id, build.version)).unwrap_or_default(),
            ))?;
            if is_due {
                output::note(&format!("other programs are loaded than this nsnet's (build {here}): `nsnet upgrade`"));
            }
            if table.is_empty() {
                output::line("no drift: the kernel is as it should be")?;
            } else {
                output::print(format, &table)?;
                output::note("adding the object again with its arguments repairs it");
            }
        }
    }
    Ok(if table.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn down(host: &Host) -> Answer {
    with_progress("taking everything down", || host.down())?;
    Ok(ExitCode::SUCCESS)
}
