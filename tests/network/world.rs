//! Everything of a lab that a verb could change, to compare before and after.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use ipnet::IpNet;
use nsnet::kernel::named;
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::netns::NetNs;
use nsnet::kernel::reserved;
use nsnet::kernel::store::{BPFFS, RUN};
use nsnet::kernel::sysctl;
use nsnet::lab::Lab;

/// What exists.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct World {
    /// Interfaces, addresses and routes in each namespace of the lab, the host's and the foreign ones too.
    namespaces: BTreeMap<String, Vec<String>>,
    /// What the host's own uplink and settings have to do with us.
    outside: Vec<String>,
    /// Other files among the names of namespaces.
    leftovers: Vec<String>,
    /// Paths of the host's pins.
    pub(crate) pins: Vec<String>,
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
            if name.split('_').next() == Some(&key) {
                list_into(&path, &mut pins)?;
            }
        }
        pins.sort();
        let file = fs::read_to_string(Path::new(RUN).join(format!("{key}.json"))).ok();
        let outside = describe_outside(&lab.ns("host")?)?;
        let reserved = lab.within("host", reserved::current)??.to_string();
        Ok(Self { namespaces, outside, leftovers, pins, file, reserved })
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
        lines.push(format!(
            "{} {} {:?} mtu {} up {} peer {:?} {addresses:?}",
            link.index, link.name, link.mac, link.mtu, link.up, link.peer_index
        ));
    }
    let routes = netlink.routes()?.into_iter().filter(|route| !is_link_local(&route.dest));
    lines.extend(routes.map(|route| format!("{route:?}")));
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
