//! `nsnet route`.

use std::process::ExitCode;

use serde_json::json;

use super::Answer;
use super::args::RouteVerb;
use super::output::{self, Format, Table};
use crate::kernel::host::Host;
use crate::kernel::netlink::Netlink;
use crate::kernel::observe::Scope;
use crate::model::drift::Object;
use crate::model::name::Name;
use crate::model::request::RouteRequest;

pub(super) fn run(host: &Host, format: Format, verb: &RouteVerb) -> Answer {
    match verb {
        RouteVerb::Add(request) => add(host, format, request),
        RouteVerb::Del { ns, dest } => {
            host.change(|state| {
                // `default` is the default route of either family.
                [true, false].into_iter().for_each(|v4| state.delete_route(ns, dest.of_family(v4)));
                Ok(())
            })?;
            Ok(ExitCode::SUCCESS)
        }
        RouteVerb::List { ns } => list(host, format, ns),
    }
}

fn add(host: &Host, format: Format, request: &RouteRequest) -> Answer {
    host.member(request.ns.as_str())?;
    let change = host.change_and_repair(
        |state| Ok(state.add_route(request)?),
        |_state, route| Scope::these([Object::route(route)]),
    )?;
    let route = change.answer;
    let mut table = Table::new(&["ns", "dest", "via"]);
    table.row([json!(route.ns), json!(route.dest), json!(route.via)]);
    output::print_one(format, &table)?;
    Ok(ExitCode::SUCCESS)
}

fn list(host: &Host, format: Format, ns: &Name) -> Answer {
    let netlink = Netlink::inside(&host.member(ns.as_str())?)?;
    let links = netlink.links()?;
    let mut table = Table::new(&["dest", "via", "ifname"]);
    for route in netlink.routes()? {
        let ifname = links.iter().find(|link| Some(link.index) == route.index).map(|link| link.name.clone());
        table.row([json!(route.dest), json!(route.via), json!(ifname)]);
    }
    output::print(format, &table)?;
    Ok(ExitCode::SUCCESS)
}
