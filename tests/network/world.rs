//! Everything of a lab that a verb could change, to compare before and after.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData};
use aya::programs::{SchedClassifier, TcAttachType};
use ipnet::IpNet;
use nsnet::kernel::alive;
use nsnet::kernel::named;
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::netns::NetNs;
use nsnet::kernel::reserved;
use nsnet::kernel::store::{BPFFS, RUN};
use nsnet::kernel::sysctl;
use nsnet::lab::Lab;
use nsnet_common::layout::{
    AddressKey, NetworkId, Policy, Port, PortId, PublishedKey, Station, StationKey, SubnetKey, names,
};
use nsnet_common::wire::{IpAddress, Mac};
use zerocopy::FromZeros as _;

/// What exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct World {
    /// Interfaces, addresses and routes in each namespace of the lab, the host's and the foreign ones too.
    namespaces: BTreeMap<String, Vec<String>>,
    /// What the host's own uplink and settings have to do with us.
    outside: Vec<String>,
    /// Other files among the names of namespaces.
    leftovers: Vec<String>,
    /// Paths of the host's pins.
    pub(crate) pins: Vec<String>,
    /// What its maps say: who is where, and may do what.
    pub(crate) maps: Vec<String>,
    /// Names of its files beside the one below.
    pub(crate) files: Vec<String>,
    /// The host's file.
    pub(crate) file: Option<String>,
    /// The ports that the host's kernel gives to nobody unasked.
    pub(crate) reserved: String,
}

impl World {
    /// As it is now.
    pub(crate) fn of(lab: &Lab) -> Result<Self> {
        let mine = lab.name("");
        let mut namespaces = BTreeMap::new();
        for name in named::list()?.into_iter().filter(|name| name.starts_with(&mine)) {
            let ns = NetNs::named(&name)?;
            namespaces.insert(name, describe(&ns)?);
        }
        let files = fs::read_dir("/run/netns")?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let files = files.collect::<Result<Vec<_>>>()?;
        let leftovers = files.into_iter().filter(|name| name.starts_with(&mine) && !namespaces.contains_key(name));
        let leftovers = leftovers.collect();
        let key = format!("{:x}", lab.ns("host")?.cookie()?);
        let mut pins = Vec::new();
        for entry in fs::read_dir(BPFFS).into_iter().flatten() {
            let path = entry?.path();
            let name = path.file_name().context("an entry without a name")?.to_string_lossy().into_owned();
            if name.split('_').next() == Some(&key) || path == alive::path_of(&key) {
                list_into(&path, &mut pins)?;
            }
        }
        pins.sort();
        let maps = describe_maps(&pins)?;
        let mut files = Vec::new();
        for entry in fs::read_dir(RUN).into_iter().flatten() {
            files.push(entry?.file_name().to_string_lossy().into_owned());
        }
        // The lock comes with a verb that waits, and goes with the last state.
        let known = ["json", "lock"].map(|kind| format!("{key}.{kind}"));
        files.retain(|name| name.split('.').next() == Some(&key) && !known.contains(name));
        let file = fs::read_to_string(Path::new(RUN).join(format!("{key}.json"))).ok();
        let outside = describe_outside(&lab.ns("host")?)?;
        let reserved = lab.within("host", reserved::current)??.to_string();
        Ok(Self { namespaces, outside, leftovers, pins, maps, files, file, reserved })
    }

    /// Fails when something else than the counters in the file, which tell new things from old ones, is not as `before`.
    pub(crate) fn check_similar(&self, before: &Self) -> Result<()> {
        let (file, was) = (&self.file, &before.file);
        ensure!(file.is_some() == was.is_some(), "the file was {was:?}, and is {file:?}");
        let is_same = Self { file: None, ..self.clone() } == Self { file: None, ..before.clone() };
        ensure!(is_same, "something is left, or lost:\n{}", before.difference(self));
        Ok(())
    }

    /// What is here and not in `other`, and the reverse, line by line.
    pub(crate) fn difference(&self, other: &Self) -> String {
        let (here, there) = (format!("{self:#?}"), format!("{other:#?}"));
        let only = |one: &str, other: &str, sign: &str| -> String {
            one.lines()
                .filter(|line| !other.lines().any(|there| there == *line))
                .map(|line| format!("{sign}{line}\n"))
                .collect()
        };
        only(&here, &there, "-") + &only(&there, &here, "+")
    }

    /// The same without what the kernel chooses anew for things that are made again: indexes, and MACs where we give none.
    pub(crate) fn shape(mut self) -> Self {
        for line in self.namespaces.values_mut().flatten() {
            let is_given = |word: &&str| !word.starts_with("index-") && !word.starts_with("random-");
            *line = line.split(' ').filter(is_given).collect::<Vec<_>>().join(" ");
        }
        self.namespaces.values_mut().for_each(|lines| lines.sort());
        self
    }
}

/// Runs a verb that is to fail, says what it complained of, and sees that it changed nothing.
pub(crate) fn refused(lab: &Lab, line: &str) -> Result<String> {
    let before = World::of(lab)?;
    let output = lab.try_nsnet(line)?;
    assert_eq!(output.status.code(), Some(1), "`{line}`: {output:?}");
    assert_eq!(World::of(lab)?, before, "`{line}` failed and changed something");
    complaint(&output)
}

/// The one line on stderr.
pub(crate) fn complaint(output: &Output) -> Result<String> {
    let text = String::from_utf8(output.stderr.clone())?;
    ensure!(text.lines().count() == 1 && text.ends_with('\n'), "not one line: {text:?}");
    ensure!(output.stdout.is_empty(), "an answer beside an error: {output:?}");
    Ok(text)
}

/// One line for each thing in a namespace; indexes too, so that what was made anew shows.
fn describe(ns: &NetNs) -> Result<Vec<String>> {
    let netlink = Netlink::inside(ns)?;
    let mut lines = Vec::new();
    for link in netlink.links()? {
        // Link-local addresses come and go with the carrier, and nobody gave them.
        let mut addresses = netlink.addresses(link.index)?;
        addresses.retain(|address| !is_link_local(address));
        let mac = Mac(link.mac.unwrap_or_default());
        // The control plane's own begin so, and those of these tests.
        let chosen = if matches!(mac.0, [2, 0 | 0xaa, ..]) { "" } else { "random-" };
        lines.push(format!(
            "{} index-{} {chosen}{mac} mtu {} up {} peer index-{:?} {addresses:?}",
            link.name, link.index, link.mtu, link.up, link.peer_index
        ));
    }
    let routes = netlink.routes()?.into_iter().filter(|route| !is_link_local(&route.dest));
    lines.extend(routes.map(|route| format!("route {} via {:?} index-{:?}", route.dest, route.via, route.index)));
    lines.sort();
    Ok(lines)
}

/// The entries of the host's maps that verbs make, one line each.
fn describe_maps(pins: &[String]) -> Result<Vec<String>> {
    /// Numbers are given out from the lowest, and no lab has more.
    const MANY: u32 = 64;
    let Some(folder) = pins.iter().find(|path| path.ends_with("/maps")) else { return Ok(Vec::new()) };
    let open = |name: &str| MapData::from_pin(format!("{folder}/{name}"));
    let mut lines = Vec::new();
    let ports = Array::<_, Port>::try_from(Map::Array(open(names::PORTS)?))?;
    let policies = Array::<_, Policy>::try_from(Map::Array(open(names::POLICIES)?))?;
    for at in 0..MANY {
        let (port, policy) = (ports.get(&at, 0)?, policies.get(&at, 0)?);
        if port.id() != PortId::NONE {
            lines.push(format!("port {at}"));
        }
        if policy != Policy::new_zeroed() {
            lines.push(format!("policy {at} {policy:?}"));
        }
    }
    let addresses = HashMap::<_, AddressKey, PortId>::try_from(Map::HashMap(open(names::ADDRESSES)?))?;
    let stations = HashMap::<_, StationKey, Station>::try_from(Map::HashMap(open(names::STATIONS)?))?;
    let uplinks = HashMap::<_, u32, PortId>::try_from(Map::HashMap(open(names::UPLINKS)?))?;
    let locals = HashMap::<_, IpAddress, u8>::try_from(Map::HashMap(open(names::LOCALS)?))?;
    let subnets = LpmTrie::<_, SubnetKey, NetworkId>::try_from(Map::LpmTrie(open(names::SUBNETS)?))?;
    let published = LpmTrie::<_, PublishedKey, u32>::try_from(Map::LpmTrie(open(names::PUBLISHED)?))?;
    lines.extend(addresses.iter().flatten().map(|entry| format!("address {entry:?}")));
    let fixed = stations.iter().flatten().filter(|(_, station)| station.is_fixed());
    lines.extend(fixed.map(|entry| format!("station {entry:?}")));
    lines.extend(uplinks.iter().flatten().map(|entry| format!("uplink {entry:?}")));
    lines.extend(locals.keys().flatten().map(|ip| format!("local {ip:?}")));
    lines.extend(subnets.iter().flatten().map(|(key, id)| format!("subnet {:?} {id:?}", key.data())));
    lines.extend(published.iter().flatten().map(|(key, at)| format!("published {:?} {at}", key.data())));
    lines.sort();
    Ok(lines)
}

/// Programs, filters and qdiscs on the uplink, and the ports that sockets may not choose.
fn describe_outside(host: &NetNs) -> Result<Vec<String>> {
    let netlink = Netlink::inside(host)?;
    let mut lines = Vec::new();
    if let Some(link) = netlink.link("uplink")? {
        let query = || SchedClassifier::query_tcx("uplink", TcAttachType::Ingress);
        let (_revision, programs) = host.run(query)??;
        lines.extend(programs.iter().map(|program| format!("program {:?}", program.name_as_str())));
        lines.extend(netlink.bpf_filters(link.index)?.iter().map(|filter| format!("filter {}", filter.name)));
        lines.push(format!("clsact {}", netlink.interfaces_with_clsact()?.contains(&link.index)));
    }
    lines.push(format!("reserved {:?}", host.run(|| sysctl::read("net/ipv4/ip_local_reserved_ports"))??));
    Ok(lines)
}

fn is_link_local(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local())
}

fn list_into(path: &Path, found: &mut Vec<String>) -> Result<()> {
    found.push(path.display().to_string());
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            list_into(&entry?.path(), found)?;
        }
    }
    Ok(())
}
