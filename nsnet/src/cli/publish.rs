//! `nsnet publish`.

use std::collections::HashSet;
use std::net::IpAddr;
use std::process::ExitCode;

use serde_json::json;

use super::Answer;
use super::args::PublishVerb;
use super::output::{self, Format, Table};
use crate::kernel::host::{Change, Host};
use crate::kernel::observe::Scope;
use crate::kernel::publish::PublishMaps;
use crate::kernel::{ports, reserved};
use crate::model::Refusal;
use crate::model::drift::Object;
use crate::model::ports::PortRange;
use crate::model::publish::{HostPorts, Publish};
use crate::model::request::PublishArgs;
use crate::model::spec::{Protocol, endpoint};

pub(super) fn run(host: &Host, format: Format, verb: &PublishVerb) -> Answer {
    match verb {
        PublishVerb::Add(args) => add(host, format, args)?,
        PublishVerb::Del { ns, specs } => host.change(|state| {
            for spec in specs {
                state.delete_publish(ns, spec);
            }
            Ok(())
        })?,
        PublishVerb::List => list(host, format)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn add(host: &Host, format: Format, args: &PublishArgs) -> anyhow::Result<()> {
    let change = host.change_and_repair(
        |state| {
            with_host_ports(host, |ports| {
                args.requests()
                    .map(|request| Ok(state.add_publish(&request, ports)?))
                    .collect::<anyhow::Result<Vec<_>>>()
            })
        },
        |_state, made| Scope::these(made.iter().map(Object::publish).chain([Object::Pools, Object::ReservedPorts])),
    )?;
    let mut table = Table::new(&["ns", "host_ip", "host_ports", "target", "protocol", "spec"]);
    for publish in &change.answer {
        let [ns, host_ip, host_ports, target, protocol, spec] = cells(publish);
        table.row([ns, host_ip, host_ports, target, protocol, spec]);
    }
    Ok(output::print_one(format, &table)?)
}

/// Tells of what is published no more, because what it led by is gone.
pub(super) fn tell_lost<T>(change: &Change<T>) {
    /// A note is one line.
    const NAMED: usize = 5;
    let still: HashSet<_> = change.new.publishes.iter().map(|publish| (&publish.ns, &publish.spec)).collect();
    let is_lost = |publish: &&Publish| !still.contains(&(&publish.ns, &publish.spec));
    let lost: Vec<&Publish> = change.old.publishes.iter().filter(is_lost).collect();
    if lost.is_empty() {
        return;
    }
    let named: Vec<_> = lost.iter().take(NAMED).map(|publish| format!("{} for {}", publish.spec, publish.ns)).collect();
    let more = lost.len() - named.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    output::note(&format!("no longer published: {}{more}", named.join(", ")));
}

/// Does `work` with what publishing has to know of the host.
pub(super) fn with_host_ports<T>(
    host: &Host,
    work: impl FnOnce(&HostPorts<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let addresses: Vec<IpAddr> = host.netlink.all_addresses()?.iter().map(|(_, net)| net.addr()).collect();
    let (automatic, reserved) = (ports::automatic()?, reserved::current()?);
    let first_busy = |protocol: Protocol, ip: IpAddr, range: PortRange| {
        ports::first_busy(protocol, ip, range, &addresses).map_err(|error| Refusal(error.to_string()))
    };
    work(&HostPorts { addresses: &addresses, automatic, reserved: &reserved, first_busy: &first_busy })
}

fn list(host: &Host, format: Format) -> anyhow::Result<()> {
    let state = host.state()?;
    let mut table = Table::new(&["ns", "host_ip", "host_ports", "target", "protocol", "hits", "spec"]);
    let maps = if host.dataplane.is_loaded() { Some(PublishMaps::of(&host.maps())?) } else { None };
    for publish in &state.publishes {
        let hits = maps.as_ref().map(|maps| maps.hits(publish)).transpose()?;
        let [ns, host_ip, host_ports, target, protocol, spec] = cells(publish);
        table.row([ns, host_ip, host_ports, target, protocol, json!(hits), spec]);
    }
    Ok(output::print(format, &table)?)
}

/// Namespace, host's addresses and ports, targets, protocol, and what `del` takes.
fn cells(publish: &Publish) -> [serde_json::Value; 6] {
    let host_ips: Vec<IpAddr> = publish.entries.iter().map(|entry| publish.host_ip(entry)).collect();
    let target = publish.spec.target();
    let end = if target.count() == 1 { String::new() } else { format!("-{}", target.last()) };
    let targets = publish.entries.iter().map(|entry| format!("{}{end}", endpoint(entry.target, target.first())));
    [
        json!(publish.ns),
        json!(host_ips),
        json!(publish.host().to_string()),
        json!(targets.collect::<Vec<_>>()),
        json!(publish.spec.protocol().label()),
        json!(publish.spec.to_string()),
    ]
}
