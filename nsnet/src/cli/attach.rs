//! `nsnet attach` and `nsnet detach`.

use std::process::ExitCode;

use anyhow::bail;
use serde_json::json;

use super::output::{self, Format, Table};
use super::{Answer, publish};
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
                check_name(state, &port)?;
                give_default_routes(host, state, &port)?;
            }
            Ok(port)
        },
        |state, port| Scope::these(objects(state, port)),
    )?;
    output::print_one(format, &table([&change.answer]))?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses a namespace that is in the network by another name: it would have two ports there. Asked are only those whose
/// interface is in there: a look at all of them would make each attach longer than the last.
fn check_name(state: &State, port: &Attachment) -> anyhow::Result<()> {
    let Some(ns) = NetNs::find(port.ns.as_str())? else { return Ok(()) };
    let links = Netlink::inside(&ns)?.links()?;
    let others = state.attachments.iter().filter(|other| other.network == port.network && other.ns != port.ns);
    let is_in_there = |other: &&Attachment| links.iter().any(|link| link.is_inner_end_of(other));
    refuse_twice(&port.network, others.filter(is_in_there).chain([port]))
}

/// The same for all of a network.
pub(super) fn check_names(state: &State, network: &Name) -> anyhow::Result<()> {
    refuse_twice(network, state.attachments.iter().filter(|port| port.network == *network))
}

fn refuse_twice<'a>(network: &Name, ports: impl Iterator<Item = &'a Attachment>) -> anyhow::Result<()> {
    if let Some((first, again)) = NetNs::same_twice(ports.map(|port| port.ns.as_str())) {
        bail!(
            "attach {again} to {network}: {first} is the same namespace by another name, and in the network already; \
             use one name"
        );
    }
    Ok(())
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
    let edit = |state: &mut State| {
        state.detach(network, ns);
        Ok(())
    };
    publish::tell_lost(&host.change_and_repair(edit, |_state, ()| Scope::Nothing)?);
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
