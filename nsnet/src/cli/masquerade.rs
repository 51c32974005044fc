//! `nsnet masquerade`.

use std::process::ExitCode;

use super::Answer;
use super::args::MasqueradeVerb;
use super::attach;
use super::network;
use super::output::{self, Format};
use crate::kernel::host::Host;
use crate::kernel::policy;
use crate::model::plan::Step;

/// Flows that are under way keep their addresses: they are in the dataplane's tables, whatever is said of new ones.
pub(super) fn run(host: &Host, format: Format, verb: &MasqueradeVerb) -> Answer {
    let (name, on) = match verb {
        MasqueradeVerb::On { network } => (network, true),
        MasqueradeVerb::Off { network } => (network, false),
    };
    let (network, _was_so) = host.change_and_repair(
        |state| {
            let was_so = state.network(name)?.outside.masquerade == on;
            let network = state.set_masquerade(name, on)?;
            let ports: Vec<_> = state.attachments.iter().filter(|port| port.network == *name).cloned().collect();
            for port in ports.iter().filter(|_| on && !was_so) {
                attach::give_default_routes(host, state, port)?;
            }
            Ok((network, was_so))
        },
        |host, state, (network, was_so)| {
            let mut steps = if *was_so { policy::mending(host, state, false)? } else { Vec::new() };
            if *was_so && !policy::faults(host, network)?.is_empty() {
                steps.push(Step::SetPolicy(network.clone(), network.clone()));
            }
            Ok(steps)
        },
    )?;
    let state = host.state()?;
    output::print_one(format, &network::table(&state, [&network]))?;
    Ok(ExitCode::SUCCESS)
}
