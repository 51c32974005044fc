//! `nsnet network`.

use std::process::ExitCode;

use nsnet_common::layout::Policy;
use serde_json::json;

use super::args::NetworkVerb;
use super::output::{self, Format, Table, with_progress};
use super::{Answer, attach, bypassed, mode, publish, punted};
use crate::kernel::host::Host;
use crate::kernel::observe::Scope;
use crate::kernel::uplink;
use crate::model::drift::Object;
use crate::model::name::Name;
use crate::model::request::NetworkRequest;
use crate::model::state::{Network, State};
use crate::model::timeout::TimeoutKind;

pub(super) fn run(host: &Host, format: Format, verb: &NetworkVerb) -> Answer {
    match verb {
        NetworkVerb::Add(request) => add(host, format, request),
        NetworkVerb::Del { names, force } => delete(host, names, *force),
        NetworkVerb::List => {
            let state = host.state()?;
            output::print(format, &table(&state, state.networks.values()))?;
            Ok(ExitCode::SUCCESS)
        }
        NetworkVerb::Mode(args) => mode::run(host, format, args),
        NetworkVerb::Show { name } => show(host, format, name),
    }
}

fn add(host: &Host, format: Format, request: &NetworkRequest) -> Answer {
    let default_mtu = host.default_mtu()?;
    let loads = !host.dataplane.is_loaded();
    let change = with_progress(&format!("making network {}", request.name), || {
        host.change_and_repair(
            |state| {
                let was_known = state.networks.contains_key(&request.name);
                let network = state.add_network(request, default_mtu)?;
                if was_known {
                    // Interfaces may have come and gone.
                    uplink::look_around(host, &state.networks.clone(), state)?;
                }
                Ok(network)
            },
            |state, network| Scope::these(objects(state, network)),
        )
    })?;
    let network = change.answer;
    warn(host, &network);
    output::print_one(format, &table(&change.new, [&network]))?;
    if loads {
        bypassed::tell(&change.new);
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells of what was asked for and may not be as it was meant.
pub(super) fn warn(host: &Host, network: &Network) {
    network.outside.warnings().iter().for_each(|warning| output::note(warning));
    punted::tell(network);
    let sources = &network.outside.snat_sources;
    if sources.is_empty() {
        return;
    }
    // What cannot be read is no reason for a word: everything is done already.
    let Ok(addresses) = host.netlink.all_addresses() else { return };
    for source in sources.iter().filter(|source| !addresses.iter().any(|(_, own)| own.addr() == **source)) {
        output::note(&format!(
            "network {}: the host has no address {source}: answers come only if it is routed here",
            network.name
        ));
    }
}

/// A network, what it stands on, and what stands on it.
fn objects(state: &State, network: &Network) -> impl Iterator<Item = Object> {
    let of_host = [Object::Dataplane, Object::Pools, Object::ReservedPorts, Object::Locals, Object::network(network)];
    let ports = state.attachments.iter().filter(|port| port.network == network.name);
    let ports: Vec<Object> = ports.flat_map(|port| attach::objects(state, port)).collect();
    let publishes = state.publishes.iter().filter(|publish| publish.network == network.name).map(Object::publish);
    let uplinks = state.uplinks.iter().map(Object::uplink);
    of_host.into_iter().chain(ports).chain(publishes).chain(uplinks)
}

fn delete(host: &Host, names: &[Name], force: bool) -> Answer {
    let edit = |state: &mut State| {
        names.iter().try_for_each(|name| state.delete_network(name, force))?;
        Ok(())
    };
    publish::tell_lost(&host.change_and_repair(edit, |_state, ()| Scope::Nothing)?);
    Ok(ExitCode::SUCCESS)
}

/// Networks, as `network add` answers and `network list` lists them.
pub(super) fn table<'a>(state: &State, networks: impl IntoIterator<Item = &'a Network>) -> Table {
    let mut table =
        Table::new(&["name", "subnet", "gateway", "mac", "mtu", "ports", "masquerade", "uplink", "internal"]);
    for network in networks {
        let subnets: Vec<_> = network.subnets.iter().map(|subnet| subnet.net).collect();
        let gateways = network.gateways();
        let ports = state.attachments.iter().filter(|port| port.network == network.name).count();
        table.row([
            json!(network.name),
            json!(subnets),
            json!(gateways),
            json!(network.mac.to_string()),
            json!(network.mtu),
            json!(ports),
            json!(network.outside.masquerade),
            json!(network.outside.uplink),
            json!(network.outside.internal),
        ]);
    }
    table
}

/// The rest of what a network's namespaces may do beyond it.
fn outside_table(network: &Network) -> Table {
    let outside = &network.outside;
    let mut table = Table::new(&[
        "isolated",
        "punt",
        "filtering",
        "snat_ports",
        "snat_source",
        "timeouts",
        "flows_per_ns",
        "ports_per_ns",
        "mode",
        "uplink_mode",
    ]);
    let timeouts: Vec<String> =
        TimeoutKind::ALL.into_iter().map(|kind| format!("{kind}={}", outside.timeout(kind))).collect();
    table.row([
        json!(outside.isolated),
        json!(outside.punt),
        json!(outside.filtering),
        json!(outside.pool()),
        json!(outside.snat_sources),
        json!(timeouts),
        json!(outside.flows_per_ns.unwrap_or(Policy::DEFAULT.flows_per_ns)),
        json!(outside.ports_per_ns.unwrap_or(Policy::DEFAULT.ports_per_ns)),
        json!(network.modes.ports),
        json!(network.modes.uplinks),
    ]);
    table
}

fn show(host: &Host, format: Format, name: &Name) -> Answer {
    let state = host.state()?;
    let network = state.network(name)?;
    let ports: Vec<_> = state.attachments.iter().filter(|port| port.network == *name).collect();
    let (about, ports) = (table(&state, [network]), attach::table(ports));
    let outside = outside_table(network);
    match format {
        Format::Table => {
            output::print(format, &about)?;
            output::line("")?;
            output::print(format, &outside)?;
            if !ports.is_empty() {
                output::line("")?;
                output::print(format, &ports)?;
            }
        }
        Format::Json => {
            let mut value = about.to_json()[0].take();
            if let (Some(all), Some(more)) = (value.as_object_mut(), outside.to_json()[0].as_object_mut()) {
                all.append(more);
            }
            value["ports"] = ports.to_json();
            output::print_json(&value)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
