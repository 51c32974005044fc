//! What the dataplane knows and has counted: `fdb`, `neigh`, `stats`.

use std::process::ExitCode;

use nsnet_common::layout::PortId;
use serde_json::{Value, json};

use super::Answer;
use super::output::{self, Format, Table};
use crate::kernel::capture::monotonic;
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

pub(super) fn stats(host: &Host, format: Format) -> Answer {
    let state = host.state()?;
    let mut table = Table::new(&[
        "network",
        "port",
        "ns",
        "rx_packets",
        "rx_bytes",
        "tx_packets",
        "tx_bytes",
        "flooded",
        "answered",
        "passed",
        "dropped",
        "xdp",
    ]);
    if host.dataplane.is_loaded() {
        let maps = host.maps();
        let drops = maps.drops()?;
        let members = state.members();
        let of_networks =
            members.iter().map(|member| (Some(&member.network.name), member.ns, member.interface, member.port));
        let of_uplinks = state.uplinks.iter().map(|uplink| (None, None, uplink.interface.as_str(), uplink.port()));
        let rows: Vec<_> = of_networks.chain(of_uplinks).collect();
        let counters = maps.counters(rows.iter().map(|(_, _, _, port)| *port))?;
        let accelerated = maps.accelerated(rows.iter().map(|(_, _, _, port)| *port))?;
        for (((network, ns, interface, port), counters), accelerated) in rows.into_iter().zip(counters).zip(accelerated)
        {
            let of_port = drops.range((port, 0)..=(port, u16::MAX));
            let dropped: u64 = of_port.map(|(_, dropped)| dropped.traffic.packets).sum();
            table.row([
                json!(network),
                json!(interface),
                json!(ns),
                json!(counters.received.packets),
                json!(counters.received.bytes),
                json!(counters.sent.packets),
                json!(counters.sent.bytes),
                json!(counters.flooded),
                json!(counters.answered),
                json!(counters.passed),
                json!(dropped),
                json!(accelerated),
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
