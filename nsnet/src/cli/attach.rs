//! `nsnet attach` and `nsnet detach`.

use std::process::ExitCode;

use serde_json::json;

use super::Answer;
use super::output::{self, Format, Table};
use crate::kernel::host::Host;
use crate::kernel::netlink::Netlink;
use crate::kernel::netns::NetNs;
use crate::kernel::observe::Scope;
use crate::model::drift::Object;
use crate::model::edit::default_route;
use crate::model::name::Name;
use crate::model::request::AttachRequest;
use crate::model::state::{Attachment, State};

pub(super) fn attach(host: &Host, format: Format, request: &AttachRequest) -> Answer {
    host.member(request.ns.as_str())?;
    let change = host.change_and_repair(
        |state| {
            let was_known = state.attachment(&request.network, &request.ns).is_some();
            let port = state.attach(request)?;
            if !was_known {
                give_default_routes(host, state, &port)?;
            }
            Ok(port)
        },
        |state, port| Scope::these(objects(state, port)),
    )?;
    output::print_one(format, &table([&change.answer]))?;
    Ok(ExitCode::SUCCESS)
}

/// An attachment, and the routes that go by it.
pub(super) fn objects<'a>(state: &'a State, port: &'a Attachment) -> impl Iterator<Item = Object> + 'a {
    let routes = state.routes.iter().filter(|route| route.ns == port.ns);
    [Object::attachment(port)].into_iter().chain(routes.map(Object::route))
}

/// Gives a namespace default routes where its network has a way out, and somebody else has not given it one before.
pub(super) fn give_default_routes(host: &Host, state: &mut State, port: &Attachment) -> anyhow::Result<()> {
    if NetNs::find(port.ns.as_str())?.is_none() {
        return Ok(());
    }
    let ns = host.member(port.ns.as_str())?;
    let routes = Netlink::inside(&ns)?.routes()?;
    state.add_default_routes(port, |v4| routes.iter().any(|route| route.dest == default_route(v4)));
    Ok(())
}

pub(super) fn detach(host: &Host, network: &Name, ns: &Name) -> Answer {
    host.change(|state| {
        state.detach(network, ns);
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Ports, as `attach` answers and `network show` lists them.
pub(super) fn table<'a>(ports: impl IntoIterator<Item = &'a Attachment>) -> Table {
    let mut table = Table::new(&["network", "ns", "ip", "mac", "ifname", "host_ifname"]);
    for port in ports {
        table.row([
            json!(port.network),
            json!(port.ns),
            json!(port.ips),
            json!(port.mac.to_string()),
            json!(port.inner),
            json!(port.outer),
        ]);
    }
    table
}
