//! What the agent counts, and what it sweeps.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData};
use nsnet::lab::{UdpEcho, udp};
use nsnet_common::layout::{Fragment, FragmentKey, Mapping, MappingKey, NetworkId, PortId, Usage, names};
use nsnet_common::wire::{IpAddress, IpProtocol};

use super::agent_bed::{Agent, PATIENCE};
use super::agent_drift::pins;
use super::bed::{Bed, DUAL, until};
use super::outside_bed::{End, Outside, far, wan};
use super::packet::Packet;

const SECOND: Duration = Duration::from_secs(1);

/// `stats`, `drops`, `publish list` and the figures say the same.
#[test]
fn figures_are_those_of_the_verbs() -> Result<()> {
    let bed = Outside::with("", &["c1", "c2"], &["g1"])?;
    bed.lab.nsnet("publish add @c1 8080:80/udp 9000-9009:9000-9009")?;
    let agent = Agent::start(&bed.lab, "--interval 1")?;
    let (g1, at_wan) = (bed.end("g1")?, bed.end("wan")?);
    for v6 in [false, true] {
        let echo = bed.at("wan").run(|| UdpEcho::start(SocketAddr::new(wan(v6), 0)))?;
        assert_eq!(bed.at("c1").run(|| udp::exchange(echo.addr(), 200, 20, SECOND))?.echoed, 20);
    }
    assert!(bed.at("c2").reaches(bed.at("c1").v4.into())?);
    // A drop, and a hit that nobody answers.
    spoof(&bed, &g1, &at_wan)?;
    at_wan.send(&Packet::udp(at_wan.endpoint(false, 5000), "192.168.1.1:8080".parse()?, b"knock"))?;
    until(PATIENCE, || Ok(bed.lab.json("publish list")?[0]["hits"] == 1))?;

    // Kernels talk to neighbours at times: what is compared is read until nothing has come between.
    let verbs = || Ok::<_, anyhow::Error>([bed.lab.json("stats")?, bed.lab.json("drops")?]);
    let (mut before, mut figures) = (verbs()?, agent.figures()?);
    until(PATIENCE, || {
        let after = verbs()?;
        let is_same = after == before;
        if !is_same {
            (figures, before) = (agent.figures()?, after);
        }
        Ok(is_same)
    })?;
    let [stats, drops] = &before;
    let number = |value: &serde_json::Value| value.as_f64().context("no number");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let stats = stats.as_array().context("no rows")?;
    assert_eq!(stats.len(), 5);
    for row in stats {
        let (network, port, namespace) = (text(&row["network"]), text(&row["port"]), text(&row["ns"]));
        let labels = [("network", network.as_str()), ("port", &port), ("namespace", &namespace)];
        for (column, name) in [
            ("rx_packets", "receive_packets"),
            ("rx_bytes", "receive_bytes"),
            ("tx_packets", "transmit_packets"),
            ("tx_bytes", "transmit_bytes"),
            ("flooded", "flooded_packets"),
            ("answered", "answered_packets"),
            ("passed", "passed_packets"),
        ] {
            let value = figures.value(&format!("nsnet_port_{name}_total"), &labels)?;
            assert_eq!(value, number(&row[column])?, "{name} {labels:?}");
        }
    }
    let drops = drops.as_array().context("no rows")?;
    assert!(drops.iter().any(|row| row["reason"] == "spoofed-ipv4"), "{drops:?}");
    for row in drops {
        let (port, reason) = (text(&row["port"]), text(&row["reason"]));
        let labels = [("port", port.as_str()), ("reason", &reason)];
        for (column, name) in [("packets", "dropped_packets"), ("bytes", "dropped_bytes")] {
            assert_eq!(
                figures.value(&format!("nsnet_port_{name}_total"), &labels)?,
                number(&row[column])?,
                "{labels:?}"
            );
        }
    }
    let publish = [("namespace", bed.at("c1").ns.name()), ("publish", "8080:80/udp")];
    assert_eq!(figures.value("nsnet_publish_hits_total", &publish)?, 1.0);

    // What is counted by walking is there after the next sweep.
    let flows = bed.flows()?;
    let (of_c1, of_v4): (Vec<_>, Vec<_>) = (
        flows.iter().filter(|flow| flow.ns == bed.at("c1").ns.name()).collect(),
        flows.iter().filter(|flow| flow.source.is_ipv4()).collect(),
    );
    let established = of_v4.iter().filter(|flow| flow.state == "established").count();
    assert!(established > 0, "{flows:?}");
    let counted = |figures: &super::agent_bed::Figures| {
        figures.find("nsnet_flows", &[("family", "ipv4"), ("state", "established")])
    };
    until(PATIENCE, || Ok(counted(&agent.figures()?)? == Some(established as f64)))
        .with_context(|| format!("{:?}, not {established}", counted(&agent.figures().expect("figures"))))?;
    let figures = agent.figures()?;
    let of_port = [("port", bed.at("c1").port.as_str())];
    let grown = of_c1.iter().filter(|flow| flow.state == "established").count();
    assert_eq!(figures.value("nsnet_quota_flows", &of_port)?, grown as f64, "{flows:?}");
    assert_eq!(figures.value("nsnet_quota_flows_limit", &of_port)?, 262_144.0);
    for (table, entries) in [("ports", 5.0), ("networks", 1.0), ("subnets", 2.0), ("uplinks", 1.0), ("publishes", 4.0)]
    {
        assert_eq!(figures.value("nsnet_table_entries", &[("table", table)])?, entries, "{table}");
    }
    assert_eq!(figures.value("nsnet_table_capacity", &[("table", "flows4")])?, 2_097_152.0);
    assert!(figures.value("nsnet_program_verified_instructions", &[("program", "routed")])? > 1000.0);
    Ok(())
}

/// Has a packet dropped.
fn spoof(bed: &Outside, from: &End, to: &End) -> Result<()> {
    let mut spoofed = Packet::udp(from.endpoint(false, 4000), SocketAddr::new(far(false), 53), b"?");
    spoofed.source = "192.168.15.99".parse()?;
    bed.drops_one(from, &spoofed, &[to], "spoofed-ipv4")
}

/// docs/agent.md names every figure there is, and none that there is not.
#[test]
fn every_figure_is_documented() -> Result<()> {
    let bed = Outside::with("--timeout udp=1", &["c1"], &["g1"])?;
    bed.lab.nsnet("publish add @c1 8080:80")?;
    let agent = Agent::start(&bed.lab, "--interval 1")?;
    // A flow that ends, one that lives, and a drop.
    let echo = bed.at("wan").run(|| UdpEcho::start(SocketAddr::new(wan(false), 0)))?;
    bed.at("c1").run(|| udp::exchange(echo.addr(), 20, 1, SECOND))?;
    let listener = bed.at("wan").run(|| Ok(TcpListener::bind((wan(false), 0))?))?;
    let address = listener.local_addr()?;
    let _lives = bed.at("c1").run(|| Ok(TcpStream::connect(address)?))?;
    spoof(&bed, &bed.end("g1")?, &bed.end("wan")?)?;
    // Once there was something to sweep, there is a value of each.
    let swept = || agent.figures()?.find("nsnet_agent_swept_total", &[("table", "flows4")]);
    until(PATIENCE, || Ok(swept()?.is_some()))?;
    let figures = agent.figures()?;
    let names = figures.names().into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    let docs = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/agent.md"))?;
    let documented = docs.lines().filter_map(|line| line.strip_prefix("| `nsnet_"));
    let documented = documented.filter_map(|rest| Some(format!("nsnet_{}", rest.split(['`', '{']).next()?)));
    assert_eq!(documented.collect::<BTreeSet<_>>(), names);
    Ok(())
}

/// An entry of a map that no verb makes.
fn insert<K: Pod, V: Pod>(bed: &Bed, name: &str, kind: fn(MapData) -> Map, key: K, value: V) -> Result<()> {
    let data = MapData::from_pin(pins(bed)?.join("maps").join(name))?;
    let mut map = HashMap::<_, K, V>::try_from(kind(data))?;
    Ok(map.insert(key, value, 0)?)
}

/// What is dead goes without anybody meeting it, its owner's quota is given back, and what lives stays.
#[test]
fn what_is_dead_is_swept() -> Result<()> {
    let bed = Outside::with("--timeout udp=1 --flows-per-ns 40", &["c1"], &[])?;
    let c1 = bed.at("c1");
    let listener = bed.at("wan").run(|| Ok(TcpListener::bind((wan(false), 0))?))?;
    let address = listener.local_addr()?;
    let mut stream = c1.run(|| Ok(TcpStream::connect(address)?))?;
    let (mut other, _) = listener.accept()?;
    let echo = bed.at("wan").run(|| UdpEcho::start(SocketAddr::new(wan(false), 0)))?;
    for _ in 0..30 {
        assert_eq!(c1.run(|| udp::exchange(echo.addr(), 20, 1, SECOND))?.echoed, 1);
    }
    let all = || Ok::<_, anyhow::Error>(bed.lab.json("ct list --all")?.as_array().context("no rows")?.len());
    until(5 * SECOND, || Ok(bed.flows()?.len() == 1))?;
    assert_eq!(all()?, 31, "dead flows stay while nobody sweeps");

    // A mapping outlives its flow by two minutes: here are dead ones.
    let of_host = nsnet::kernel::netlink::Netlink::inside(&bed.lab.ns("host")?)?;
    let owner = PortId::from_ifindex(of_host.existing_link(&c1.port)?.index);
    let (inside, outside) = (IpAddress::v4([192, 168, 15, 1]), IpAddress::v4([192, 168, 1, 1]));
    let halves = [
        (MappingKey::inside(NetworkId(1), IpProtocol::UDP, inside, [1, 1], outside), outside, [2, 2]),
        (MappingKey::outside(IpProtocol::UDP, outside, [2, 2]), inside, [1, 1]),
    ];
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?.tv_sec() as u32;
    for (key, ip, port) in halves {
        insert(&bed, names::MAPPINGS, Map::HashMap, key, Mapping { ip, port, owner, until: now - 10 })?;
    }
    let key = FragmentKey::EMPTY;
    let first = Fragment {
        source_port: [0; 2],
        destination_port: [0; 2],
        protocol: 17,
        header: 8,
        pad: 0,
        seen: now.saturating_sub(60),
    };
    insert(&bed, names::FRAGMENTS, Map::LruHashMap, key, first)?;
    let usage = |value: Option<Usage>| -> Result<Usage> {
        let data = MapData::from_pin(pins(&bed)?.join("maps").join(names::USAGE))?;
        let mut map = Array::<_, Usage>::try_from(Map::Array(data))?;
        let before = map.get(&u32::from(owner.0), 0)?;
        value.map(|value| map.set(u32::from(owner.0), value, 0)).transpose()?;
        Ok(before)
    };
    let held = usage(None)?;
    assert_eq!(held.flows, 31);
    usage(Some(Usage { ports: held.ports + 1, ..held }))?;

    let agent = Agent::start(&bed.lab, "--interval 1")?;
    let swept = |table: &str| -> Result<f64> {
        Ok(agent.figures()?.find("nsnet_agent_swept_total", &[("table", table)])?.unwrap_or(0.0))
    };
    until(PATIENCE, || Ok(swept("flows4")? >= 30.0 && swept("mappings")? >= 1.0 && swept("fragments")? >= 1.0))
        .with_context(|| agent.figures().map_or_else(|error| error.to_string(), |figures| figures.text))?;
    assert_eq!(all()?, 1);
    assert_eq!(usage(None)?, Usage { flows: 1, ports: held.ports });
    assert_eq!(bed.flows()?[0].protocol, "tcp");

    // The connection goes on, and there is room for new flows.
    use std::io::{Read as _, Write as _};
    stream.write_all(b"still there")?;
    let mut heard = [0; 11];
    other.read_exact(&mut heard)?;
    assert_eq!(&heard, b"still there");
    for _ in 0..30 {
        assert_eq!(c1.run(|| udp::exchange(echo.addr(), 20, 1, SECOND))?.echoed, 1);
    }
    Ok(())
}

/// Modest, with a host of some size.
#[test]
fn it_takes_little_memory() -> Result<()> {
    let names: Vec<String> = (0..60).map(|number| format!("n{number}")).collect();
    let bed = Bed::new(DUAL, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
    let agent = Agent::start(&bed.lab, "--interval 1")?;
    let runs = || agent.figures()?.value("nsnet_agent_runs_total", &[("task", "check")]);
    until(3 * PATIENCE, || Ok(runs()? >= 5.0))?;
    let figures = agent.figures()?;
    let resident = figures.value("nsnet_agent_resident_memory_bytes", &[])?;
    let checks = figures.value("nsnet_agent_run_seconds_total", &[("task", "check")])?;
    eprintln!("{} MB for {} namespaces; a look takes {:.0} ms", resident / 1e6, names.len(), checks / runs()? * 1e3);
    ensure!(resident < 64e6, "{resident} bytes");
    // The host's own, and the uplink's.
    assert_eq!(figures.value("nsnet_table_entries", &[("table", "ports")])?, names.len() as f64 + 2.0);
    Ok(())
}
