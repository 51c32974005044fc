//! `nsnet network`.

use std::process::ExitCode;

use serde_json::json;

use super::Answer;
use super::args::{NetworkArgs, NetworkVerb};
use super::attach;
use super::output::{self, Format, Table, with_progress};
use crate::kernel::host::Host;
use crate::kernel::observe;
use crate::model::edit::NetworkRequest;
use crate::model::name::Name;
use crate::model::plan::Step;
use crate::model::state::{Network, State};

/// The MTU when neither the user nor a default route gives one.
const ETHERNET_MTU: u16 = 1500;

pub(super) fn run(host: &Host, format: Format, verb: &NetworkVerb) -> Answer {
    match verb {
        NetworkVerb::Add(args) => add(host, format, args),
        NetworkVerb::Del { names, force } => delete(host, names, *force),
        NetworkVerb::List => {
            let state = host.state()?;
            output::print(format, &table(&state, state.networks.values()))?;
            Ok(ExitCode::SUCCESS)
        }
        NetworkVerb::Show { name } => show(host, format, name),
    }
}

fn add(host: &Host, format: Format, args: &NetworkArgs) -> Answer {
    let request = NetworkRequest {
        name: args.name.clone(),
        subnets: args.subnet.clone(),
        gateways: args.gateway.clone(),
        mtu: args.mtu,
        default_mtu: default_mtu(host)?,
    };
    let (network, _was_known) = with_progress(&format!("making network {}", args.name), || {
        host.change_and_repair(
            |state| {
                let was_known = state.networks.contains_key(&request.name);
                Ok((state.add_network(&request)?, was_known))
            },
            |host, state, (network, was_known)| {
                // One that stands already is looked at, and made anew if something is wrong with it.
                if !was_known || observe::network_faults(host, network)?.is_empty() {
                    return Ok(Vec::new());
                }
                let ports = state.attachments.iter().filter(|port| port.network == network.name);
                let attach = ports.map(|port| Step::Attach(port.clone(), network.clone()));
                Ok([Step::LoadDataplane, Step::AddNetwork(network.clone())].into_iter().chain(attach).collect())
            },
        )
    })?;
    let state = host.state()?;
    output::print_one(format, &table(&state, [&network]))?;
    Ok(ExitCode::SUCCESS)
}

/// As netavark does: that of the default route's interface.
fn default_mtu(host: &Host) -> anyhow::Result<u16> {
    let Some(index) = host.netlink.default_route_interface()? else { return Ok(ETHERNET_MTU) };
    let link = host.netlink.link_by_index(index)?;
    Ok(link.map_or(ETHERNET_MTU, |link| u16::try_from(link.mtu).unwrap_or(u16::MAX)))
}

fn delete(host: &Host, names: &[Name], force: bool) -> Answer {
    host.change(|state| {
        for name in names {
            state.delete_network(name, force)?;
        }
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

fn table<'a>(state: &State, networks: impl IntoIterator<Item = &'a Network>) -> Table {
    let mut table = Table::new(&["name", "subnet", "gateway", "mac", "mtu", "ports"]);
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
        ]);
    }
    table
}

fn show(host: &Host, format: Format, name: &Name) -> Answer {
    let state = host.state()?;
    let network = state.network(name)?;
    let ports: Vec<_> = state.attachments.iter().filter(|port| port.network == *name).collect();
    let (about, ports) = (table(&state, [network]), attach::table(ports));
    match format {
        Format::Table => {
            output::print(format, &about)?;
            if !ports.is_empty() {
                output::line("")?;
                output::print(format, &ports)?;
            }
        }
        Format::Json => {
            let mut value = about.to_json()[0].take();
            value["ports"] = ports.to_json();
            output::print_json(&value)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
