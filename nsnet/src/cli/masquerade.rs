//! `nsnet masquerade`.

use std::process::ExitCode;

use super::Answer;
use super::args::MasqueradeVerb;
use super::attach;
use super::network;
use super::output::{self, Format};
use crate::kernel::host::Host;
use crate::kernel::observe::Scope;
use crate::model::drift::Object;

/// Flows that are under way keep their addresses: they are in the dataplane's tables, whatever is said of new ones.
pub(super) fn run(host: &Host, format: Format, verb: &MasqueradeVerb) -> Answer {
    let (name, on) = match verb {
        MasqueradeVerb::On { network } => (network, true),
        MasqueradeVerb::Off { network } => (network, false),
    };
    let change = host.change_and_repair(
        |state| {
            let was_so = state.network(name)?.outside.masquerade == on;
            let network = state.set_masquerade(name, on)?;
            let ports: Vec<_> = state.attachments.iter().filter(|port| port.network == *name).cloned().collect();
            for port in ports.iter().filter(|_| on && !was_so) {
                attach::give_default_routes(host, state, port)?;
            }
            Ok(network)
        },
        |_state, network| Scope::these([Object::Pools, Object::ReservedPorts, Object::network(network)]),
    )?;
    output::print_one(format, &network::table(&change.new, [&change.answer]))?;
    Ok(ExitCode::SUCCESS)
}
