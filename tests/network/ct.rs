//! `ct` and `nat`: flows and mappings made up in the dataplane's tables, seen, chosen and thrown away.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData};
use nix::time::{ClockId, clock_gettime};
use nsnet::kernel::store::BPFFS;
use nsnet_common::layout::{
    About, Flow, Flow4, FlowKey, FlowKey4, FlowState, LAYOUT_VERSION, MAX_PORTS, Mapping, MappingKey, NetworkId,
    PortId, Usage, flow_flags, names, whole_seconds,
};
use nsnet_common::wire::{IpAddress, IpProtocol};
use serde_json::{Value, json};

use super::bed::{Bed, DUAL, text};

/// More than listing a hundred thousand flows takes on the slowest machine, unless it hangs.
const HANG: Duration = Duration::from_secs(60);

/// Where all flows are counted: IPv4, IPv6.
const TOTALS: [u32; 2] = [0, MAX_PORTS - 1];

/// The pinned tables of a bed.
struct Tables {
    folder: PathBuf,
    /// Monotonic clock, seconds.
    now: u32,
}

/// Both entries of a flow.
type Entries = [(FlowKey, Flow); 2];

impl Tables {
    fn of(bed: &Bed) -> Result<Self> {
        let cookie = bed.at("host").ns.cookie()?;
        let folder = format!("{BPFFS}/{cookie:x}_v{LAYOUT_VERSION}/maps").into();
        // As the programs read it: another clock is up to a second ahead.
        let clock = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?;
        let now = whole_seconds(clock.tv_sec() as u64 * 1_000_000_000 + clock.tv_nsec() as u64);
        Ok(Self { folder, now })
    }

    fn data(&self, name: &str) -> Result<MapData> {
        MapData::from_pin(self.folder.join(name)).with_context(|| format!("open {name}"))
    }

    fn hash<K: Pod, V: Pod>(&self, name: &str) -> Result<HashMap<MapData, K, V>> {
        let kind = if name.starts_with("YOUNG") { Map::LruHashMap } else { Map::HashMap };
        Ok(HashMap::try_from(kind(self.data(name)?))?)
    }

    fn usage(&self) -> Result<Array<MapData, Usage>> {
        Ok(Array::try_from(Map::Array(self.data(names::USAGE)?))?)
    }

    /// A flow of the bed's first network, as a masquerade would make it.
    fn flow(&self, protocol: IpProtocol, inside: (&str, u16), external: (&str, u16), remote: (&str, u16)) -> Entries {
        let ip = |text: &str| IpAddress::from(text.parse::<std::net::IpAddr>().expect("an address"));
        let end = |(text, port): (&str, u16)| (ip(text), port.to_be_bytes());
        let (inside, external, remote) = (end(inside), end(external), end(remote));
        let mut about = About::EMPTY;
        (about.seen, about.timeout, about.state) = (self.now, 300, FlowState::ESTABLISHED);
        (about.source_port, about.destination_port) = (external.1, remote.1);
        let there = Flow { about, source: external.0, destination: remote.0 };
        (about.source_port, about.destination_port) = (remote.1, inside.1);
        (about.flags, about.other_side) = (flow_flags::REPLY, NetworkId(1));
        let back = Flow { about, source: remote.0, destination: inside.0 };
        let is_v4 = inside.0.as_v4().is_some();
        let key = FlowKey::new(NetworkId(1), protocol, inside, remote, is_v4);
        [(key, there), (there.other_key(&key), back)]
    }

    fn insert(&self, is_young: bool, entries: &[(FlowKey, Flow)]) -> Result<()> {
        let (v4, v6) = if is_young { (names::YOUNG4, names::YOUNG6) } else { (names::FLOWS4, names::FLOWS6) };
        let (mut v4, mut v6) = (self.hash::<FlowKey4, Flow4>(v4)?, self.hash::<FlowKey, Flow>(v6)?);
        for (key, flow) in entries {
            if key.is_v4() { v4.insert(key.to_v4(), flow.to_v4(), 0)? } else { v6.insert(key, flow, 0)? }
        }
        Ok(())
    }

    fn entries(&self) -> Result<usize> {
        let mut entries = 0;
        for name in [names::YOUNG4, names::FLOWS4] {
            entries += self.hash::<FlowKey4, Flow4>(name)?.keys().count();
        }
        for name in [names::YOUNG6, names::FLOWS6] {
            entries += self.hash::<FlowKey, Flow>(name)?.keys().count();
        }
        Ok(entries)
    }
}

/// The port that a station has in the dataplane.
fn port_of(bed: &Bed, name: &str) -> PortId {
    let [_, _, _, high, low, _] = bed.at(name).mac.0;
    PortId(u16::from_be_bytes([high, low]))
}

fn owned(mut entries: Entries, owner: PortId, flags: u8) -> Entries {
    for (_, flow) in &mut entries {
        flow.about.owner = owner;
        flow.about.flags |= flags;
    }
    entries
}

/// The opener's ports of what `ct list FILTERS` shows, in order.
fn listed(bed: &Bed, filters: &str) -> Result<Vec<u64>> {
    let rows = bed.lab.json(&format!("ct list {filters}"))?;
    let rows = rows.as_array().context("`ct list` is no array")?;
    let mut ports: Vec<u64> = rows.iter().filter_map(|row| row["sport"].as_u64()).collect();
    ensure!(ports.len() == rows.len(), "a flow without ports");
    ports.sort_unstable();
    Ok(ports)
}

/// Five flows: 1 and 2 are red's to a web server (2 is young), 3 is blue's UDP, 4 is blue's with IPv6, 5 has ended.
fn bed_with_flows() -> Result<(Bed, Tables)> {
    let bed = Bed::new(DUAL, &["red", "blue"])?;
    let tables = Tables::of(&bed)?;
    let (red, blue) = (bed.at("red").v4.to_string(), bed.at("blue").v4.to_string());
    let blue_v6 = bed.at("blue").v6.to_string();
    let (web, dns, outside) = (("192.0.2.7", 80), ("192.0.2.53", 53), "198.51.100.1");
    let flow = |protocol, inside, external, remote| tables.flow(protocol, inside, external, remote);
    let pooled = flow_flags::POOLED;
    let one = owned(flow(IpProtocol::TCP, (&red, 1), (outside, 20001), web), port_of(&bed, "red"), pooled);
    let mut two = owned(flow(IpProtocol::TCP, (&red, 2), (outside, 20002), web), port_of(&bed, "red"), 0);
    two.iter_mut().for_each(|(_, flow)| flow.about.state = FlowState::UNREPLIED);
    let mapped = flow_flags::MAPPED;
    let three = owned(flow(IpProtocol::UDP, (&blue, 3), (outside, 20003), dns), port_of(&bed, "blue"), mapped);
    let web_v6 = ("2001:db8::7", 80);
    let four = owned(flow(IpProtocol::TCP, (&blue_v6, 4), ("2001:db8:1::1", 4), web_v6), port_of(&bed, "blue"), 0);
    let mut five = owned(flow(IpProtocol::TCP, (&red, 5), (outside, 5), web), port_of(&bed, "red"), 0);
    five.iter_mut().for_each(|(_, flow)| (flow.about.seen, flow.about.timeout) = (tables.now.saturating_sub(9), 5));
    for (is_young, entries) in [(false, one), (true, two), (false, three), (false, four), (false, five)] {
        tables.insert(is_young, &entries)?;
    }
    Ok((bed, tables))
}

#[test]
fn flows_are_listed_once_from_their_openers_side() -> Result<()> {
    let (bed, _tables) = bed_with_flows()?;
    let rows = bed.lab.json("ct list --protocol udp")?;
    let mut row = rows[0].clone();
    let left = row["expires_s"].take().as_u64().context("no expires_s")?;
    assert!((200..=300).contains(&left), "{left}");
    let expected = json!({
        "protocol": "udp", "expires_s": null, "state": "established", "network": "v-net-0", "ns": bed.lab.name("blue"),
        "source": bed.at("blue").v4.to_string(), "sport": 3, "destination": "192.0.2.53", "dport": 53,
        "reply_source": "192.0.2.53", "reply_sport": 53, "reply_destination": "198.51.100.1", "reply_dport": 20003,
        "published": null, "flags": ["established", "mapped"],
    });
    assert_eq!(row, expected);
    let table = bed.lab.nsnet("ct list")?;
    assert_eq!(table.lines().count(), 5, "{table}");
    assert!(table.starts_with("PROTOCOL  EXPIRES_S  STATE"), "{table}");
    Ok(())
}

#[test]
fn filters_choose() -> Result<()> {
    let (bed, _tables) = bed_with_flows()?;
    let red = bed.at("red").v4;
    let cases: [(&str, &[u64]); 22] = [
        ("", &[1, 2, 3, 4]),
        ("--all", &[1, 2, 3, 4, 5]),
        ("--protocol tcp", &[1, 2, 4]),
        ("-p 17", &[3]),
        ("--protocol sctp", &[]),
        (&format!("--source {red}"), &[1, 2]),
        ("--source 192.168.15.0/24 --destination 192.0.2.53", &[3]),
        ("--destination 2001:db8::/32", &[4]),
        ("--sport 2", &[2]),
        ("--dport 80", &[1, 2, 4]),
        ("--reply-source 192.0.2.7", &[1, 2]),
        ("--reply-destination 198.51.100.1", &[1, 2, 3]),
        ("--reply-dport 20003", &[3]),
        ("--reply-sport 53", &[3]),
        ("--state unreplied", &[2]),
        ("--ns @red", &[1, 2]),
        ("--ns @blue --network v-net-0", &[3, 4]),
        ("--network v-net-0", &[1, 2, 3, 4]),
        ("-4", &[1, 2, 3]),
        ("-6", &[4]),
        ("--family ipv6", &[4]),
        ("--src 192.168.15.0/24 --proto udp --orig-port-dst 53", &[3]),
    ];
    for (filters, expected) in cases {
        assert_eq!(listed(&bed, filters)?, expected, "ct list {filters}");
    }
    let output = bed.lab.try_nsnet("ct list --limit 1")?;
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 2);
    assert!(String::from_utf8_lossy(&output.stderr).contains("3 more flows"), "{output:?}");
    for (wrong, code) in [
        ("--ns nobody", 1),
        ("--network nothing", 1),
        ("-4 -6", 2),
        ("--state open", 2),
        ("--protocol 256", 2),
        ("--source 10.0.0.0/33", 2),
    ] {
        assert_eq!(bed.lab.try_nsnet(&format!("ct list {wrong}"))?.status.code(), Some(code), "{wrong}");
    }
    Ok(())
}

#[test]
fn a_flush_takes_both_directions_and_what_is_left_of_them() -> Result<()> {
    let (bed, tables) = bed_with_flows()?;
    let (red, blue) = (port_of(&bed, "red"), port_of(&bed, "blue"));
    let mut usage = tables.usage()?;
    usage.set(u32::from(red.0), Usage { flows: 2, ports: 5 }, 0)?;
    usage.set(u32::from(blue.0), Usage { flows: 2, ports: 1 }, 0)?;
    for total in TOTALS {
        usage.set(total, Usage { flows: 9, ports: 0 }, 0)?;
    }
    // blue's mapping: used by flow 3 and one more.
    let protocol = IpProtocol::UDP;
    let (inside, external) =
        (IpAddress::from(std::net::IpAddr::V4(bed.at("blue").v4)), IpAddress::v4([198, 51, 100, 1]));
    let keys = [
        MappingKey::inside(NetworkId(1), protocol, inside, 3u16.to_be_bytes(), external),
        MappingKey::outside(protocol, external, 20003u16.to_be_bytes()),
    ];
    let mut mappings = tables.hash::<MappingKey, Mapping>(names::MAPPINGS)?;
    for (key, other) in [(keys[0], keys[1]), (keys[1], keys[0])] {
        let until = tables.now + 7;
        mappings.insert(key, Mapping { ip: other.ip, port: other.port, owner: blue, until }, 0)?;
    }
    let blue_ip = bed.at("blue").v4.to_string();
    let other = tables.flow(protocol, (&blue_ip, 3), ("198.51.100.1", 20003), ("192.0.2.54", 53));
    tables.insert(true, &owned(other, blue, flow_flags::MAPPED))?;

    let nat = bed.lab.json("nat list")?;
    assert_eq!(nat.as_array().map(Vec::len), Some(1), "{nat}");
    assert_eq!(
        (&nat[0]["protocol"], &nat[0]["inside"], &nat[0]["inside_port"]),
        (&json!("udp"), &json!(blue_ip), &json!(3))
    );
    assert_eq!((&nat[0]["external"], &nat[0]["external_port"]), (&json!("198.51.100.1"), &json!(20003)));
    assert_eq!((text(&nat[0]["ns"])?, text(&nat[0]["network"])?), (bed.lab.name("blue").as_str(), "v-net-0"));
    assert!((1..=7).contains(&nat[0]["expires_s"].as_u64().context("no expires_s")?));

    let flush = |filters: &str| -> Result<(Value, Value)> {
        let flushed = bed.lab.json(&format!("ct flush {filters}"))?;
        Ok((flushed["flows"].clone(), flushed["mappings"].clone()))
    };
    assert_eq!(flush("--sport 999")?, (json!(0), json!(0)));
    assert_eq!(flush("--destination 192.0.2.53")?, (json!(1), json!(0)));
    assert_eq!(bed.lab.json("nat list")?.as_array().map(Vec::len), Some(1), "a mapping went that a flow uses");
    assert_eq!(flush("--destination 192.0.2.54")?, (json!(1), json!(1)));
    assert_eq!((bed.lab.json("nat list")?, mappings.keys().count()), (json!([]), 0));
    // Young flows were not counted.
    assert_eq!(
        (usage.get(&u32::from(red.0), 0)?, usage.get(&u32::from(blue.0), 0)?),
        (Usage { flows: 2, ports: 5 }, Usage { flows: 1, ports: 0 },)
    );
    assert_eq!(listed(&bed, "")?, [1, 2, 4]);
    assert_eq!(flush("--ns @red --state unreplied")?, (json!(1), json!(0)));
    assert_eq!(flush("")?, (json!(3), json!(0)));
    assert_eq!((listed(&bed, "--all")?, tables.entries()?), (Vec::new(), 0));
    assert_eq!(
        (usage.get(&u32::from(red.0), 0)?, usage.get(&u32::from(blue.0), 0)?),
        (Usage { flows: 0, ports: 4 }, Usage { flows: 0, ports: 0 },)
    );
    assert_eq!([usage.get(&TOTALS[0], 0)?.flows, usage.get(&TOTALS[1], 0)?.flows], [6, 8]);
    Ok(())
}

#[test]
fn what_is_detached_leaves_no_flows_to_the_next() -> Result<()> {
    let (bed, tables) = bed_with_flows()?;
    let (red, blue) = (port_of(&bed, "red"), port_of(&bed, "blue"));
    let mut usage = tables.usage()?;
    usage.set(u32::from(red.0), Usage { flows: 2, ports: 1 }, 0)?;
    for total in TOTALS {
        usage.set(total, Usage { flows: 9, ports: 0 }, 0)?;
    }
    // To blue, on red's quota; and a port of blue's that no flow uses any more.
    let (from, to) = (bed.at("red").v4.to_string(), bed.at("blue").v4.to_string());
    let hairpin = tables.flow(IpProtocol::TCP, (&from, 6), ("192.168.15.5", 20006), (&to, 80));
    let mut hairpin = owned(hairpin, red, flow_flags::HAIRPIN);
    hairpin[0].1.about.other_side = NetworkId(1);
    hairpin[1].0 = hairpin[0].1.other_key(&hairpin[0].0);
    tables.insert(true, &hairpin)?;
    let (inside, external) = (IpAddress::v4(bed.at("blue").v4.octets()), IpAddress::v4([198, 51, 100, 1]));
    let keys = [
        MappingKey::inside(NetworkId(1), IpProtocol::UDP, inside, 9u16.to_be_bytes(), external),
        MappingKey::outside(IpProtocol::UDP, external, 20009u16.to_be_bytes()),
    ];
    let mut mappings = tables.hash::<MappingKey, Mapping>(names::MAPPINGS)?;
    for (key, other) in [(keys[0], keys[1]), (keys[1], keys[0])] {
        mappings.insert(key, Mapping { ip: other.ip, port: other.port, owner: blue, until: tables.now + 60 }, 0)?;
    }
    assert_eq!(listed(&bed, "")?, [1, 2, 3, 4, 6]);
    bed.lab.nsnet("detach v-net-0 @blue")?;
    assert_eq!((listed(&bed, "")?, tables.entries()?, mappings.keys().count()), (vec![1, 2], 6, 0));
    assert_eq!([usage.get(&TOTALS[0], 0)?.flows, usage.get(&TOTALS[1], 0)?.flows], [8, 8]);
    assert_eq!(usage.get(&u32::from(red.0), 0)?, Usage { flows: 2, ports: 1 });
    bed.lab.nsnet("network del v-net-0 --force")?;
    bed.lab.nsnet("status").map(drop)
}

#[test]
fn half_a_flow_is_seen_and_flushed() -> Result<()> {
    let bed = Bed::new(DUAL, &["red"])?;
    let tables = Tables::of(&bed)?;
    // The table of young flows pushes out entries, not flows.
    let [_, answers] = tables.flow(IpProtocol::TCP, ("192.168.15.1", 6), ("198.51.100.1", 6), ("192.0.2.7", 80));
    tables.insert(true, &[answers])?;
    // Being promoted: one direction is in each table.
    let [opener, answers] = tables.flow(IpProtocol::TCP, ("192.168.15.1", 7), ("198.51.100.1", 7), ("192.0.2.7", 80));
    tables.insert(false, &[opener])?;
    tables.insert(true, &[answers])?;
    assert_eq!(listed(&bed, "")?, [6, 7]);
    assert_eq!(bed.lab.json("ct flush")?["flows"], json!(2));
    assert_eq!(tables.entries()?, 0);
    Ok(())
}

/// A command that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn watch_tells_of_each_change() -> Result<()> {
    let (bed, tables) = bed_with_flows()?;
    let arguments = ["-o", "json", "ct", "watch", "--interval", "0.1", "--protocol", "tcp"];
    let mut running = Running(bed.lab.command(arguments).stdout(Stdio::piped()).spawn()?);
    let mut lines = BufReader::new(running.0.stdout.take().context("no stdout")?).lines();
    let mut next = || -> Result<Value> { Ok(serde_json::from_str(&lines.next().context("it ended")??)?) };
    // It tells nothing of what was there when it began, so it is to have begun.
    std::thread::sleep(Duration::from_secs(3));
    let red = bed.at("red").v4.to_string();
    let mut flow = tables.flow(IpProtocol::TCP, (&red, 8), ("198.51.100.1", 8), ("192.0.2.7", 80));
    tables.insert(false, &flow)?;
    let event = next()?;
    assert_eq!((text(&event["event"])?, &event["sport"], text(&event["state"])?), ("new", &json!(8), "established"));
    flow.iter_mut().for_each(|(_, flow)| flow.about.state = FlowState::CLOSING);
    tables.insert(false, &flow)?;
    let event = next()?;
    assert_eq!((text(&event["event"])?, &event["sport"], text(&event["state"])?), ("changed", &json!(8), "closing"));
    bed.lab.nsnet("ct flush --sport 8")?;
    let event = next()?;
    assert_eq!((text(&event["event"])?, &event["sport"]), ("ended", &json!(8)));
    Ok(())
}

#[test]
fn no_dataplane_has_no_flows() -> Result<()> {
    let lab = super::bed::lab()?;
    assert_eq!((lab.json("ct list")?, lab.json("nat list")?), (json!([]), json!([])));
    assert_eq!(lab.json("ct flush")?, json!({"flows": 0, "mappings": 0}));
    Ok(())
}

#[test]
fn a_hundred_thousand_flows() -> Result<()> {
    const FLOWS: u32 = 100_000;
    let bed = Bed::new(DUAL, &["red"])?;
    let tables = Tables::of(&bed)?;
    let owner = port_of(&bed, "red");
    let [(mut key, mut there), (_, mut back)] =
        owned(tables.flow(IpProtocol::TCP, ("192.168.15.1", 1), ("198.51.100.1", 1), ("10.0.0.0", 443)), owner, 0);
    let mut table = tables.hash::<FlowKey4, Flow4>(names::FLOWS4)?;
    for number in 0..FLOWS {
        let [_, a, b, c] = number.to_be_bytes();
        let remote = IpAddress::v4([10, a, b, c]);
        (key.destination, there.destination, back.source) = (remote, remote, remote);
        table.insert(key.to_v4(), there.to_v4(), 0)?;
        table.insert(there.other_key(&key).to_v4(), back.to_v4(), 0)?;
    }
    let mut usage = tables.usage()?;
    usage.set(u32::from(owner.0), Usage { flows: u64::from(FLOWS), ports: 0 }, 0)?;
    let began = Instant::now();
    let rows = bed.lab.json("ct list")?;
    let json_took = began.elapsed();
    assert_eq!(rows.as_array().map(Vec::len), Some(FLOWS as usize));
    let began = Instant::now();
    assert_eq!(bed.lab.nsnet("ct list --destination 10.0.0.0/24")?.lines().count(), 257);
    let table_took = began.elapsed();
    let began = Instant::now();
    assert_eq!(bed.lab.json("ct flush")?["flows"], json!(FLOWS));
    let flush_took = began.elapsed();
    println!("{FLOWS} flows: listed in {json_took:?}, filtered in {table_took:?}, flushed in {flush_took:?}");
    assert_eq!((tables.entries()?, usage.get(&u32::from(owner.0), 0)?), (0, Usage::default()));
    assert!(json_took.max(table_took).max(flush_took) < HANG);
    Ok(())
}
