//! `nsnet network mode`, and what `nsnet doctor` says of modes.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::Answer;
use super::output::{self, Format, Table, with_progress};
use crate::kernel::error::Result;
use crate::kernel::host::Host;
use crate::kernel::observe::Scope;
use crate::kernel::uplink;
use crate::model::mode::Mode;
use crate::model::name::Name;
use crate::model::state::State;

/// Which network, and where.
#[derive(Debug, Args)]
pub(super) struct ModeArgs {
    /// The network
    name: Name,
    /// What its namespaces send: at TC, at XDP as far as possible, or as fits, which is TC. With neither this nor
    /// --uplink it is told what is so now
    #[arg(value_name = "tc|xdp|auto")]
    mode: Option<Mode>,
    /// What comes in by its uplinks: at TC, at XDP as far as possible, or at XDP where the device is made for it
    #[arg(long, value_name = "tc|xdp|auto")]
    uplink: Option<Mode>,
}

pub(super) fn run(host: &Host, format: Format, args: &ModeArgs) -> Answer {
    let state = if args.mode.is_none() && args.uplink.is_none() {
        let state = host.state()?;
        state.network(&args.name)?;
        state
    } else {
        let change = with_progress(&format!("changing the mode of {}", args.name), || {
            host.change_and_repair(
                |state| Ok(state.set_modes(&args.name, args.mode, args.uplink)?),
                |_state, _network| Scope::Nothing,
            )
        });
        change?.new
    };
    output::print(format, &table(host, &state, &args.name)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Where frames of a network's ports and of the uplinks are forwarded, and why.
fn table(host: &Host, state: &State, name: &Name) -> Result<Table> {
    let mut table = Table::new(&["what", "mode", "at", "why"]);
    for Forwarded { what, mode, at, why } in reasons(host, state, |network| network == name)? {
        table.row([json!(what), json!(mode), json!(at), json!(why)]);
    }
    Ok(table)
}

/// Where something is forwarded.
pub(super) struct Forwarded {
    /// Ports of a network, or an uplink.
    pub(super) what: String,
    /// As asked for.
    pub(super) mode: Mode,
    /// In fact.
    pub(super) at: Mode,
    /// Why there.
    pub(super) why: String,
}

/// What is forwarded where, and why; of networks that `is_meant` and of all uplinks.
pub(super) fn reasons(host: &Host, state: &State, is_meant: impl Fn(&Name) -> bool) -> Result<Vec<Forwarded>> {
    let mut reasons = Vec::new();
    for network in state.networks.values().filter(|network| is_meant(&network.name)) {
        let mode = network.modes.ports;
        let (at, why) = match mode {
            Mode::Tc | Mode::Xdp => (mode, "as asked for".to_owned()),
            Mode::Auto => {
                (Mode::Tc, "its ports are veths, whose namespaces would have to cut all segments (no GSO)".to_owned())
            }
        };
        reasons.push(Forwarded { what: format!("ports of {}", network.name), mode, at, why });
    }
    for uplink in &state.uplinks {
        let (at, why) = uplink::mode_of(host, uplink)?;
        reasons.push(Forwarded { what: format!("uplink {}", uplink.interface), mode: uplink.mode, at, why });
    }
    Ok(reasons)
}
