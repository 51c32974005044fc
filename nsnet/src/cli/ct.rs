//! `nsnet ct`: the flows that the dataplane tracks. (`conntrack -L` shows none of them.)

use std::collections::HashMap;
use std::net::IpAddr;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use nsnet_common::layout::{FlowKey, PortId, flow_flags};
use serde_json::{Value, json};

use super::Answer;
use super::args::{CtVerb, FlowArgs, IpFamily};
use super::output::{self, Format, Table};
use super::stream::{Stream, until_closed};
use crate::kernel::flows::{Flushed, Look};
use crate::kernel::host::Host;
use crate::model::flow::{Connection, Filter, Party, has_ports, protocol_name};
use crate::model::state::{Member, Network, State};

/// The columns of `conntrack -L`, in its order, and what it does not know.
const COLUMNS: [&str; 15] = [
    "protocol",
    "expires_s",
    "state",
    "source",
    "sport",
    "destination",
    "dport",
    "reply_source",
    "reply_sport",
    "reply_destination",
    "reply_dport",
    "network",
    "ns",
    "published",
    "flags",
];

/// The same behind what happened.
const EVENT_COLUMNS: [&str; 16] = {
    let mut columns = ["event"; 16];
    let mut at = 0;
    while at < COLUMNS.len() {
        columns[at + 1] = COLUMNS[at];
        at += 1;
    }
    columns
};

pub(super) fn run(host: &Host, format: Format, verb: &CtVerb) -> Answer {
    match verb {
        CtVerb::List { filter, all, limit } => {
            until_closed(list(host, format, filter, *all, limit.unwrap_or(u64::MAX)))
        }
        CtVerb::Flush { filter } => flush(host, format, filter),
        CtVerb::Watch { filter, interval } => until_closed(watch(host, format, filter, *interval)),
    }
}

fn list(host: &Host, format: Format, args: &FlowArgs, all: bool, limit: u64) -> anyhow::Result<()> {
    let state = host.state()?;
    let filter = filter(args, &state)?;
    let names = Owners::of(&state);
    let mut stream = Stream::new(format, &COLUMNS);
    let mut found = 0;
    if host.dataplane.is_loaded() {
        host.maps().flows()?.each(&Look { filter: &filter, halves: all }, |flow| {
            if (all || flow.expires.is_some()) && filter.matches(&flow) {
                found += 1;
                if found <= limit {
                    stream.row(&row(&flow, &names))?;
                }
            }
            anyhow::Ok(())
        })?;
    }
    stream.finish()?;
    if found > limit {
        output::note(&format!("{} more flows are left out by --limit", found - limit));
    }
    Ok(())
}

fn flush(host: &Host, format: Format, args: &FlowArgs) -> Answer {
    let filter = filter(args, &host.state()?)?;
    let flushed = if host.dataplane.is_loaded() { host.maps().flush(&filter)? } else { Flushed::default() };
    let mut table = Table::new(&["flows", "mappings"]);
    table.row([json!(flushed.flows), json!(flushed.mappings)]);
    output::print_one(format, &table)?;
    Ok(ExitCode::SUCCESS)
}

/// Looks again and again, and tells what is different; what began and ended between two looks is not seen.
fn watch(host: &Host, format: Format, args: &FlowArgs, interval: Duration) -> anyhow::Result<()> {
    let mut stream = Stream::endless(format, &EVENT_COLUMNS);
    let mut before = None;
    loop {
        // Names, networks and the dataplane itself may be others by now.
        let state = host.state()?;
        let (filter, names) = (filter(args, &state)?, Owners::of(&state));
        let now = snapshot(host, &filter)?;
        if let Some(before) = before {
            for (event, flow) in events(&before, &now) {
                if filter.matches(flow) {
                    stream.row(&[&[json!(event)], &row(flow, &names)[..]].concat())?;
                }
            }
        }
        stream.flush()?;
        before = Some(now);
        sleep(interval);
    }
}

type Snapshot = HashMap<FlowKey, Connection>;

/// The flows that are alive. A filter's state is left to each event: a flow that leaves the state has not ended.
fn snapshot(host: &Host, filter: &Filter) -> anyhow::Result<Snapshot> {
    let mut flows = Snapshot::new();
    if host.dataplane.is_loaded() {
        host.maps().flows()?.each(&Look { filter, halves: false }, |flow| {
            if flow.expires.is_some() {
                flows.insert(flow.opener, flow);
            }
            anyhow::Ok(())
        })?;
    }
    Ok(flows)
}

/// What happened between two looks, and to which flow.
fn events<'a>(before: &'a Snapshot, now: &'a Snapshot) -> Vec<(&'static str, &'a Connection)> {
    let shown = |flow: &Connection| (flow.about.state, flow.is_young, flow.answers);
    let ended = before.iter().filter(|(key, _)| !now.contains_key(key)).map(|(_, flow)| ("ended", flow));
    let others = now.iter().filter_map(|(key, flow)| match before.get(key) {
        None => Some(("new", flow)),
        Some(old) if shown(old) != shown(flow) => Some(("changed", flow)),
        Some(_) => None,
    });
    ended.chain(others).collect()
}

fn filter(args: &FlowArgs, state: &State) -> anyhow::Result<Filter> {
    let family = args.family.map(|family| match family {
        IpFamily::Ipv4 => true,
        IpFamily::Ipv6 => false,
    });
    Ok(Filter {
        protocol: args.protocol,
        source: args.source,
        destination: args.destination,
        sport: args.sport,
        dport: args.dport,
        reply_source: args.reply_source,
        reply_destination: args.reply_destination,
        reply_sport: args.reply_sport,
        reply_dport: args.reply_dport,
        state: args.state,
        party: args.ns.as_ref().map(|ns| Party::of(state, ns)).transpose()?,
        network: args.network.as_ref().map(|name| state.network(name)).transpose()?.map(Network::id),
        is_v4: family.or((args.v4 || args.v6).then_some(args.v4)),
        unmasqueraded: None,
    })
}

/// Network and namespace of each port, as a row has them.
pub(super) struct Owners(HashMap<PortId, (Value, Value)>);

impl Owners {
    pub(super) fn of(state: &State) -> Self {
        let names = |member: &Member<'_>| (json!(member.network.name), json!(member.ns));
        Self(state.members().iter().map(|member| (member.port, names(member))).collect())
    }

    /// Of this port; nothing for one that is gone.
    pub(super) fn of_port(&self, port: PortId) -> (Value, Value) {
        self.0.get(&port).cloned().unwrap_or_default()
    }
}

fn row(flow: &Connection, owners: &Owners) -> [Value; 15] {
    let Connection { opener, answers, about, is_young, expires } = flow;
    let ip = |ip| json!(IpAddr::from(ip));
    let port = |port| if has_ports(opener.protocol()) { json!(u16::from_be_bytes(port)) } else { Value::Null };
    let (network, ns) = owners.of_port(about.owner);
    let is_published = about.has(flow_flags::PUBLISHED);
    [
        json!(protocol_name(opener.protocol())),
        json!(expires.unwrap_or(0)),
        json!(about.state.label()),
        ip(opener.source),
        port(opener.source_port),
        ip(opener.destination),
        port(opener.destination_port),
        ip(answers.source),
        port(answers.source_port),
        ip(answers.destination),
        port(answers.destination_port),
        network,
        ns,
        if is_published { json!(about.publish) } else { Value::Null },
        json!(flags(flow, *is_young)),
    ]
}

pub(super) fn flags(flow: &Connection, is_young: bool) -> Vec<&'static str> {
    let flags = [
        (is_young, "young"),
        (!is_young, "established"),
        (flow.about.has(flow_flags::MAPPED), "mapped"),
        (flow.about.has(flow_flags::HAIRPIN), "hairpin"),
        (flow.expires.is_none(), "ended"),
    ];
    flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use nsnet_common::layout::{About, Flow, FlowState, NetworkId};
    use nsnet_common::wire::{IpAddress, IpProtocol};

    use super::*;

    fn flow(port: u8, state: FlowState) -> Connection {
        let ends = [[10, 1, 0, 2], [192, 0, 2, 7]].map(IpAddress::v4);
        let key = FlowKey::new(NetworkId(1), IpProtocol::TCP, (ends[0], [0, port]), (ends[1], [0, 80]), true);
        let mut about = About::EMPTY;
        (about.seen, about.timeout) = (100, 60);
        (about.source_port, about.destination_port) = ([1, port], [0, 80]);
        (about.state, about.owner) = (state, PortId(7));
        Connection::join(
            &key,
            &Flow { about, source: IpAddress::v4([198, 51, 100, 1]), destination: ends[1] },
            None,
            true,
            130,
        )
    }

    #[test]
    fn a_row_shows_both_directions() {
        let owners = Owners([(PortId(7), (json!("v-net-0"), json!("red")))].into());
        let values = row(&flow(5, FlowState::HALF_OPEN), &owners);
        let expected = json!([
            "tcp",
            30,
            "half-open",
            "10.1.0.2",
            5,
            "192.0.2.7",
            80,
            "192.0.2.7",
            80,
            "198.51.100.1",
            261,
            "v-net-0",
            "red",
            null,
            ["young"]
        ]);
        assert_eq!(json!(values), expected);
    }

    #[test]
    fn what_is_different_is_told() {
        let snapshot = |flows: &[(u8, FlowState)]| -> Snapshot {
            flows.iter().map(|(port, state)| flow(*port, *state)).map(|flow| (flow.opener, flow)).collect()
        };
        let before = snapshot(&[(1, FlowState::UNREPLIED), (2, FlowState::ESTABLISHED), (3, FlowState::ESTABLISHED)]);
        let now = snapshot(&[(2, FlowState::ESTABLISHED), (3, FlowState::CLOSING), (4, FlowState::UNREPLIED)]);
        let mut told: Vec<_> =
            events(&before, &now).iter().map(|(event, flow)| (*event, flow.opener.source_port[1])).collect();
        told.sort_unstable();
        assert_eq!(told, [("changed", 3), ("ended", 1), ("new", 4)]);
        assert!(events(&now, &now).is_empty());
    }
}
