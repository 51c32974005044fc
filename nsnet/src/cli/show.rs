//! What the dataplane knows: `fdb`, `neigh`.

use std::process::ExitCode;

use nsnet_common::layout::PortId;
use serde_json::{Value, json};

use super::Answer;
use super::output::{self, Format, Table};
use crate::kernel::clock::monotonic;
use crate::kernel::host::Host;
use crate::model::state::Member;

pub(super) fn fdb(host: &Host, format: Format) -> Answer {
    let state = host.state()?;
    let mut table = Table::new(&["network", "mac", "port", "kind", "age_s"]);
    for member in state.members() {
        table.row([
            json!(member.network.name),
            json!(member.mac.to_string()),
            json!(member.interface),
            json!("static"),
            Value::Null,
        ]);
    }
    if host.dataplane.is_loaded() {
        let (now, members) = (monotonic()?, state.members());
        let mut learned: Vec<_> = host.maps().stations()?;
        learned.retain(|(_, station)| !station.is_fixed() && station.is_alive(now));
        learned.sort_by_key(|(key, _)| (key.network, key.mac));
        for (key, station) in learned {
            let network = state.networks.values().find(|network| network.id() == key.network);
            let name = network.map(|network| network.name.to_string());
            let age = station.age(now) / 1_000_000_000;
            let port = port_name(&members, station.port());
            table.row([json!(name), json!(key.mac.to_string()), json!(port), json!("learned"), json!(age)]);
        }
    }
    output::print(format, &table)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn neigh(host: &Host, format: Format) -> Answer {
    let state = host.state()?;
    let mut table = Table::new(&["network", "ip", "mac", "port", "ns"]);
    // Only what the dataplane really answers for.
    let members = if host.dataplane.is_loaded() { state.members() } else { Vec::new() };
    for member in members {
        let owners = host.maps().owners(member.network.id(), &member.ips)?;
        for (ip, _) in owners.iter().filter(|(_, owner)| *owner == Some(member.port)) {
            table.row([
                json!(member.network.name),
                json!(ip),
                json!(member.mac.to_string()),
                json!(member.interface),
                json!(member.ns),
            ]);
        }
    }
    output::print(format, &table)?;
    Ok(ExitCode::SUCCESS)
}

/// The interface of a port; its number for one that is gone, and nothing for what was no port.
fn port_name(members: &[Member<'_>], id: PortId) -> Option<String> {
    let member = members.iter().find(|member| member.port == id).map(|member| member.interface.to_owned());
    member.or_else(|| (id != PortId::NONE).then(|| format!("port-{}", id.0)))
}
