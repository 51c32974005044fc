//! `nsnet route`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use serde_json::json;

use super::Answer;
use super::args::RouteVerb;
use super::output::{self, Format, Table};
use crate::kernel::host::Host;
use crate::kernel::netlink::Netlink;
use crate::kernel::observe::Scope;
use crate::model::drift::Object;
use crate::model::name::Name;

pub(super) fn run(host: &Host, format: Format, verb: &RouteVerb) -> Answer {
    match verb {
        RouteVerb::Add { ns, dest, via } => add(host, format, ns, dest, via),
        RouteVerb::Del { ns, dest } => {
            let (v4, v6) = (parse_dest(dest, true)?, parse_dest(dest, false)?);
            host.change(|state| {
                state.delete_route(ns, v4);
                // `default` is the default route of either family.
                state.delete_route(ns, v6);
                Ok(())
            })?;
            Ok(ExitCode::SUCCESS)
        }
        RouteVerb::List { ns } => list(host, format, ns),
    }
}

fn add(host: &Host, format: Format, ns: &Name, dest: &str, via: &[String]) -> Answer {
    host.member(ns.as_str())?;
    let via: Option<IpAddr> = match via {
        [] => None,
        [word, gateway] if word == "via" => {
            Some(gateway.parse().with_context(|| format!("route to {dest}: gateway {gateway:?}"))?)
        }
        _ => bail!("route to {dest}: after the destination comes nothing, or `via GATEWAY`"),
    };
    let dest = parse_dest(dest, via.is_none_or(|ip| ip.is_ipv4()))?;
    let change = host.change_and_repair(
        |state| Ok(state.add_route(ns, dest, via)?),
        |_state, route| Scope::these([Object::route(route)]),
    )?;
    let route = change.answer;
    let mut table = Table::new(&["ns", "dest", "via"]);
    table.row([json!(ns), json!(route.dest), json!(route.via)]);
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

/// A prefix, a single address, or `default`.
fn parse_dest(text: &str, v4: bool) -> anyhow::Result<IpNet> {
    if text == "default" {
        let any = if v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        return Ok(IpNet::new(any, 0)?);
    }
    let parsed = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    parsed.with_context(|| format!("{text:?} is no destination; say a prefix such as 192.168.1.0/24, or `default`"))
}
