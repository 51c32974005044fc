//! `nsnet nat`: which endpoint outside stands for which inside.

use std::net::IpAddr;
use std::process::ExitCode;

use nsnet_common::wire::IpProtocol;
use serde_json::json;

use super::Answer;
use super::output::{self, Format, Table};
use crate::kernel::host::Host;
use crate::model::flow::protocol_name;

pub(super) fn list(host: &Host, format: Format) -> Answer {
    let state = host.state()?;
    let mut table =
        Table::new(&["protocol", "inside", "inside_port", "external", "external_port", "network", "ns", "expires_s"]);
    let mappings = if host.dataplane.is_loaded() { host.maps().mappings()? } else { Vec::new() };
    let members = state.members();
    for mapped in mappings {
        let (inside, external) = (mapped.inside, mapped.external);
        let network = state.networks.values().find(|network| network.id() == inside.side);
        let owner = members.iter().find(|member| member.port == external.owner);
        table.row([
            json!(protocol_name(IpProtocol(inside.protocol))),
            json!(IpAddr::from(inside.ip)),
            json!(u16::from_be_bytes(inside.port)),
            json!(IpAddr::from(external.ip)),
            json!(u16::from_be_bytes(external.port)),
            json!(network.map(|network| &network.name)),
            json!(owner.and_then(|owner| owner.ns)),
            json!(mapped.expires),
        ]);
    }
    output::print(format, &table)?;
    Ok(ExitCode::SUCCESS)
}
