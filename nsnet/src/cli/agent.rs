//! `nsnet agent`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::Answer;
use super::output::{self, Format, Table};
use crate::agent::{self, OnDrift, Options};
use crate::kernel::host::Host;

/// Arguments of `agent`.
#[derive(Debug, Args)]
pub(super) struct AgentArgs {
    /// What to do when the kernel is not as it should be: repair what is nsnet's own, or only report it
    #[arg(long, value_enum, default_value_t, value_name = "repair|report")]
    pub on_drift: DriftPolicy,
    /// How often to compare with the kernel when nothing seems to happen
    #[arg(long, default_value = "30", value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub interval: u32,
    /// Answer /metrics and /healthz at this address, too, which must be loopback's
    #[arg(long, value_name = "IP:PORT", value_parser = loopback)]
    pub listen: Option<SocketAddr>,
}

/// Names of [`OnDrift`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum DriftPolicy {
    /// Repair it
    #[default]
    Repair,
    /// Report it
    Report,
}

/// Figures tell who talks to whom, and have no password.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| "say an address and a port, such as 127.0.0.1:9119 or [::1]:9119".to_owned())?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(format!("{} is no loopback address; have a proxy that knows whom to let in answer there", address.ip()))
    }
}

pub(super) fn agent(host: Host, format: Format, args: &AgentArgs) -> Answer {
    let on_drift = match args.on_drift {
        DriftPolicy::Repair => OnDrift::Repair,
        DriftPolicy::Report => OnDrift::Report,
    };
    let interval = Duration::from_secs(args.interval.into());
    let options = Options { on_drift, interval, listen: args.listen, say: output::note };
    agent::run(host, &options, |place| {
        let mut table = Table::new(&["pid", "socket", "listen"]);
        table.row([json!(std::process::id()), json!(place.socket), json!(place.address)]);
        Ok(output::print_one(format, &table)?)
    })?;
    Ok(ExitCode::SUCCESS)
}
