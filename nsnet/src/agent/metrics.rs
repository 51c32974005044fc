//! Figures for Prometheus, in its text format as OpenMetrics 1.0 has it. Their list, for users, is in docs/agent.md.
//!
//! Those of the dataplane are read when somebody asks; what only a walk through the tables can tell is of the last sweep.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use anyhow::Result;
use nix::errno::Errno;
use nsnet_common::layout::{LAYOUT_VERSION, MAX_FLOWS_V4, MAX_FLOWS_V6, MAX_NETWORKS, MAX_PORTS, MAX_PUBLISHES};
use nsnet_common::layout::{Policy, PortCounters, PortId, names};
use nsnet_common::verdict::DropReason;
use prometheus_client::registry::Unit;
use tokio::time::Instant;

use super::figures::{Families, Labels};
use super::report::{Report, Runs, Task};
use crate::kernel::dataplane::Dataplane;
use crate::kernel::host::Host;
use crate::kernel::maps::Maps;
use crate::kernel::publish::PublishMaps;
use crate::kernel::store::Store;
use crate::kernel::sweep::Tally;
use crate::model::state::State;

/// Where the dataplane's figures are read. Apart from the host that the agent works on, so that nobody who asks for them
/// waits for that work.
#[derive(Clone, Debug)]
pub(super) struct Source {
    key: String,
    dataplane: Dataplane,
}

impl Source {
    pub(super) fn of(host: &Host) -> Self {
        Self { key: host.key.clone(), dataplane: host.dataplane.clone() }
    }

    /// The dataplane's figures, as they are now.
    pub(super) fn read(&self) -> Result<Families> {
        let state = Store::read_only(&self.key)?.load()?.state;
        let mut families = Families::default();
        let is_loaded = self.dataplane.is_loaded();
        families.gauge(
            "dataplane_loaded",
            "Whether programs and maps are there",
            None,
            [(vec![], u64::from(is_loaded))],
        );
        of_state(&mut families, &state);
        if is_loaded {
            let (maps, owners) = (Maps::of(&self.dataplane), Owners::of(&state));
            of_ports(&mut families, &maps, &owners)?;
            of_drops(&mut families, &maps, &owners)?;
            of_quotas(&mut families, &maps, &state, &owners)?;
            of_publishes(&mut families, &maps, &state)?;
            of_programs(&mut families, &self.dataplane)?;
        }
        Ok(families)
    }
}

/// Who a port is, by its number.
struct Owners(BTreeMap<PortId, Labels>);

impl Owners {
    fn of(state: &State) -> Self {
        let labels = |network: String, port: &str, ns: String| {
            vec![("network", network), ("port", port.to_owned()), ("namespace", ns)]
        };
        let members = state.members().into_iter().map(|member| {
            let ns = member.ns.map(ToString::to_string).unwrap_or_default();
            (member.port, labels(member.network.name.to_string(), member.interface, ns))
        });
        let uplinks =
            state.uplinks.iter().map(|uplink| (uplink.port(), labels(String::new(), &uplink.interface, String::new())));
        Self(members.chain(uplinks).collect())
    }

    fn labels(&self, port: PortId) -> Labels {
        let name = if port == PortId::NONE { String::new() } else { format!("port-{}", port.0) };
        let unknown = || vec![("network", String::new()), ("port", name), ("namespace", String::new())];
        self.0.get(&port).cloned().unwrap_or_else(unknown)
    }
}

fn of_state(families: &mut Families, state: &State) {
    let entries: usize = state.publishes.iter().map(|publish| publish.entries.len()).sum();
    let ports = state.members().len() + state.uplinks.len();
    let objects = [
        ("namespace", state.namespaces.len()),
        ("network", state.networks.len()),
        ("attachment", state.attachments.len()),
        ("cable", state.cables.len()),
        ("route", state.routes.len()),
        ("uplink", state.uplinks.len()),
        ("publish", state.publishes.len()),
    ];
    let objects = objects.map(|(kind, count)| (vec![("kind", kind.to_owned())], count as u64));
    families.gauge("objects", "What is to exist", None, objects);
    // Arrays have all their entries at any time: what counts is how many are in use. One number of each is nobody's.
    let arrays = [
        (names::PORTS, ports, MAX_PORTS - 2),
        (names::NETWORKS, state.networks.len(), MAX_NETWORKS - 1),
        (names::PUBLISHES, entries, MAX_PUBLISHES),
    ];
    families.tables(arrays.map(|(name, used, capacity)| (name, used as u64, u64::from(capacity))));
}

fn of_ports(families: &mut Families, maps: &Maps, owners: &Owners) -> Result<()> {
    let counters = maps.counters(owners.0.keys().copied())?;
    let rows: Vec<(&Labels, PortCounters)> = owners.0.values().zip(counters).collect();
    let mut counter = |name, help, unit: Unit, value: fn(&PortCounters) -> u64| {
        let rows = rows.iter().map(|(labels, counters)| ((*labels).clone(), value(counters)));
        families.counter(name, help, Some(unit), rows);
    };
    let packets = || Unit::Other("packets".to_owned());
    counter("port_receive", "Frames from a namespace, the host or the wire", packets(), |port| port.received.packets);
    counter("port_receive", "Bytes of them, Ethernet header included", Unit::Bytes, |port| port.received.bytes);
    counter("port_transmit", "Frames to a namespace, the host or the wire", packets(), |port| port.sent.packets);
    counter("port_transmit", "Bytes of them, Ethernet header included", Unit::Bytes, |port| port.sent.bytes);
    counter("port_flooded", "Received frames that went to every port of the network", packets(), |port| port.flooded);
    counter("port_answered", "Received ARP and ND questions that were answered", packets(), |port| port.answered);
    counter("port_passed", "Frames received on an uplink and left to the host", packets(), |port| port.passed);
    Ok(())
}

fn of_drops(families: &mut Families, maps: &Maps, owners: &Owners) -> Result<()> {
    let drops = maps.drops()?;
    let rows = |value: fn(&nsnet_common::layout::Traffic) -> u64| {
        let row = move |((port, code), dropped): (&(PortId, u16), &nsnet_common::layout::Dropped)| {
            let reason =
                DropReason::from_code(*code).map_or_else(|| format!("code-{code}"), |it| it.label().to_owned());
            let mut labels = owners.labels(*port);
            labels.push(("reason", reason));
            (labels, value(&dropped.traffic))
        };
        drops.iter().map(row).collect::<Vec<_>>()
    };
    let packets = Some(Unit::Other("packets".to_owned()));
    families.counter("port_dropped", "Frames dropped, by reason", packets, rows(|traffic| traffic.packets));
    families.counter("port_dropped", "Bytes of them", Some(Unit::Bytes), rows(|traffic| traffic.bytes));
    Ok(())
}

fn of_quotas(families: &mut Families, maps: &Maps, state: &State, owners: &Owners) -> Result<()> {
    let [v4, v6] = maps.established_flows()?;
    let family = |name: &str| vec![("family", name.to_owned())];
    families.gauge("flows_established", "Established flows", None, [(family("ipv4"), v4), (family("ipv6"), v6)]);
    let limits = [(family("ipv4"), u64::from(MAX_FLOWS_V4)), (family("ipv6"), u64::from(MAX_FLOWS_V6))];
    families.gauge("flows_limit", "Established flows that the host may have", None, limits);
    let ports: Vec<_> = state
        .attachments
        .iter()
        .filter_map(|port| Some((owners.labels(port.port()), port.port(), &state.networks.get(&port.network)?.outside)))
        .collect();
    let usage = maps.usage(ports.iter().map(|(_, port, _)| *port))?;
    let mut gauge = |name, help, values: Vec<u64>| {
        families.gauge(name, help, None, ports.iter().map(|(labels, _, _)| labels.clone()).zip(values));
    };
    gauge("quota_flows", "Established flows of a namespace", usage.iter().map(|usage| usage.flows).collect());
    gauge("quota_ports", "External ports that a namespace holds", usage.iter().map(|usage| usage.ports).collect());
    let flows = ports.iter().map(|(_, _, outside)| outside.flows_per_ns.unwrap_or(Policy::DEFAULT.flows_per_ns).into());
    gauge("quota_flows_limit", "Established flows that a namespace may have", flows.collect());
    let held = ports.iter().map(|(_, _, outside)| outside.ports_per_ns.unwrap_or(Policy::DEFAULT.ports_per_ns).into());
    gauge("quota_ports_limit", "External ports that a namespace may hold", held.collect());
    Ok(())
}

fn of_publishes(families: &mut Families, maps: &Maps, state: &State) -> Result<()> {
    let maps = PublishMaps::of(maps)?;
    let mut rows = Vec::new();
    for publish in &state.publishes {
        let labels = vec![("namespace", publish.ns.to_string()), ("publish", publish.spec.to_string())];
        rows.push((labels, maps.hits(publish)?));
    }
    families.counter("publish_hits", "Flows made for a published port", None, rows);
    Ok(())
}

fn of_programs(families: &mut Families, dataplane: &Dataplane) -> Result<()> {
    let (mut builds, mut instructions) = (Vec::new(), Vec::new());
    for name in names::PROGRAMS {
        let info = match dataplane.program_info(name) {
            // Another nsnet's programs may be fewer.
            Err(error) if error.errno() == Some(Errno::ENOENT) => continue,
            info => info?,
        };
        let program = || vec![("program", name.to_owned())];
        builds.push(([program(), vec![("tag", format!("{:016x}", info.tag()))]].concat(), 1));
        instructions.extend(info.verified_instruction_count().map(|count| (program(), u64::from(count))));
    }
    families.gauge("program_info", "Loaded programs; the tag is the kernel's hash of the code", None, builds);
    let instructions_help = "Instructions that the verifier walked";
    families.gauge("program_verified_instructions", instructions_help, None, instructions);
    Ok(())
}

/// The agent's own figures.
pub(super) fn of_agent(report: &Report, now: Instant) -> Families {
    let mut families = Families::default();
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("layout", LAYOUT_VERSION.to_string())];
    families.gauge("build_info", "This nsnet", None, [(version, 1)]);
    let reasons = report.reasons(now);
    families.gauge("healthy", "Whether /healthz says so", None, [(vec![], u64::from(reasons.is_empty()))]);
    families.gauge(
        "drift",
        "Differences between what should be and the kernel",
        None,
        [(vec![], report.drift.len() as u64)],
    );
    families.reals("agent_check_age", "Since the kernel was compared last", Unit::Seconds, {
        report.checked.map(|(at, _)| (vec![], now.duration_since(at).as_secs_f64()))
    });
    let gateways = report.gateways.iter().filter_map(|((uplink, ip), answers)| {
        Some((vec![("uplink", uplink.clone()), ("gateway", ip.to_string())], u64::from((*answers)?)))
    });
    families.gauge("gateway_answers", "Whether a default route's gateway answers, as far as known", None, gateways);
    if let Some(tally) = &report.tally {
        of_tally(&mut families, tally);
    }

    let counts = &report.counts;
    let changes = counts.changes.iter().map(|((subject, place), count)| {
        (vec![("subject", (*subject).to_owned()), ("place", (*place).to_owned())], *count)
    });
    families.counter("agent_changes", "Changes heard of", None, changes);
    families.counter("agent_overruns", "Times that changes were missed", None, [(vec![], counts.overruns)]);
    families.counter(
        "agent_repairs",
        "Objects repaired",
        None,
        [
            (vec![("outcome", "done".to_owned())], counts.repaired),
            (vec![("outcome", "failed".to_owned())], counts.not_repaired),
        ],
    );
    families.counter("agent_busy", "Times that a verb was under way", None, [(vec![], counts.busy)]);
    let runs = Task::ALL.map(|task| {
        let runs = counts.runs.get(&task).copied().unwrap_or_default();
        (vec![("task", task.to_string())], runs)
    });
    let of_runs = |value: fn(&Runs) -> u64| runs.clone().map(|(labels, runs)| (labels, value(&runs)));
    families.counter("agent_runs", "How often a task was done", None, of_runs(|runs| runs.done));
    families.counter("agent_errors", "How often it failed", None, of_runs(|runs| runs.failed));
    let seconds = runs.map(|(labels, runs)| (labels, runs.took.as_secs_f64()));
    families.real_counter("agent_run", "How long it took", Unit::Seconds, seconds);
    let ended = counts.ended.iter().map(|(table, count)| (vec![("table", table.to_ascii_lowercase())], *count));
    families.counter("agent_swept", "Dead entries ended", None, ended);
    let began = report.began.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    families.reals("agent_start_time", "When the agent began, Unix time", Unit::Seconds, [(vec![], began)]);
    let resident = resident_bytes().map(|bytes| (vec![], bytes));
    families.gauge("agent_resident_memory", "Memory of the agent", Some(Unit::Bytes), resident);
    families
}

fn of_tally(families: &mut Families, tally: &Tally) {
    let family = |is_v4| if is_v4 { "ipv4" } else { "ipv6" };
    let flows = tally.flows.iter().map(|((is_v4, state), count)| {
        (vec![("family", family(*is_v4).to_owned()), ("state", state.label().to_owned())], *count)
    });
    families.gauge("flows", "Flows that lived at the last sweep", None, flows);
    families.gauge("mappings", "Mapped endpoints that lived at the last sweep", None, [(vec![], tally.mappings)]);
    families.tables(tally.tables.iter().map(|(name, fill)| (*name, fill.entries, fill.capacity)));
}

/// VmRSS of /proc/self/status (proc_pid_status(5)).
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
