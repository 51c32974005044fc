//! Two namespaces on one cable.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;

use super::report::Report;
use super::traffic::{KINDS, Peer, no_checksum_errors, prove};
use crate::kernel::netlink::Netlink;
use crate::kernel::route::Route;
use crate::lab::Lab;

/// Addresses of red and blue; a cable end has one, so the cable is laid once for each family.
const IPV4: [&str; 2] = ["192.168.15.1", "192.168.15.2"];
const IPV6: [&str; 2] = ["fd15::1", "fd15::2"];

pub(super) fn show(lab: &Lab, report: &mut Report) -> Result<()> {
    report.scenario("cable", "Cable: red and blue joined by one veth pair")?;
    let before = HostTables::read(lab)?;
    if let Some(ends) = lay(lab, report, IPV4, 24)? {
        show_traffic(lab, report, &ends)?;
        report.step("neighbours", || neighbours_see_each_other(lab, &ends))?;
        report.step("host's tables", || before.knows_nothing(lab))?;
        report.step("one end deleted", || delete_one_end(lab, &ends))?;
    }
    take_away(lab, report, &before)?;
    if let Some(ends) = lay(lab, report, IPV6, 64)? {
        show_traffic(lab, report, &ends)?;
        report.step("neighbours", || neighbours_see_each_other(lab, &ends))?;
    }
    take_away(lab, report, &before)?;
    report.step("checksums", || no_checksum_errors(lab, &["host", "red", "blue"]))?;
    Ok(())
}

/// The cable's ends; `None` when it could not be laid.
fn lay(lab: &Lab, report: &mut Report, ips: [&str; 2], prefix: u8) -> Result<Option<[Peer; 2]>> {
    let [a, b] = ips;
    let mut ends = None;
    report.step("laid", || {
        let line = format!("cable add @red @blue --address-a {a}/{prefix} --address-b {b}/{prefix}");
        let cable = lab.json(&line)?;
        let end = |ns, ifname: &str, ip: &str| {
            let interface = cable[ifname].as_str().context("the answer names no interface")?.to_owned();
            anyhow::Ok(Peer { ns, interface, ips: vec![ip.parse()?] })
        };
        let (red, blue) = (end("red", "ifname_a", a)?, end("blue", "ifname_b", b)?);
        let told = format!("{} with {a} in red, {} with {b} in blue", red.interface, blue.interface);
        ends = Some([red, blue]);
        Ok(told)
    })?;
    Ok(ends)
}

fn take_away(lab: &Lab, report: &mut Report, before: &HostTables) -> Result<()> {
    report.step("taken away", || {
        lab.nsnet("cable del @red @blue")?;
        ensure!(HostTables::read(lab)?.links == before.links, "the host's links are not what they were");
        for ns in ["red", "blue"] {
            let left = Netlink::inside(&lab.ns(ns)?)?.links()?.len();
            ensure!(left == 1, "{ns} has {left} interfaces, not `lo` alone");
        }
        Ok("nothing of it is left".to_owned())
    })?;
    Ok(())
}

fn show_traffic(lab: &Lab, report: &mut Report, ends: &[Peer; 2]) -> Result<()> {
    let [red, _blue] = ends;
    for kind in KINDS.iter().filter(|kind| red.ips.iter().any(kind.family)) {
        report.step(kind.name, || Ok(prove(lab, ends, |_, _| true, *kind)?.to_string()))?;
    }
    Ok(())
}

/// Each has the other's MAC in its neighbour table.
fn neighbours_see_each_other(lab: &Lab, ends: &[Peer; 2]) -> Result<String> {
    let [red, blue] = ends;
    for (one, other) in [(red, blue), (blue, red)] {
        let mac = Netlink::inside(&lab.ns(other.ns)?)?.link(&other.interface)?.and_then(|link| link.mac);
        let known = Netlink::inside(&lab.ns(one.ns)?)?.neighbours()?;
        let entry = known.iter().find(|entry| other.ips.contains(&entry.ip));
        let entry = entry.with_context(|| format!("{} has no entry for {}", one.ns, other.ns))?;
        ensure!(mac.is_some() && entry.mac == mac, "{} has another MAC for {}", one.ns, other.ns);
    }
    Ok("each has the other's address and MAC in its table".to_owned())
}

fn delete_one_end(lab: &Lab, ends: &[Peer; 2]) -> Result<String> {
    let [red, blue] = ends;
    let (inside_red, inside_blue) = (Netlink::inside(&lab.ns("red")?)?, Netlink::inside(&lab.ns("blue")?)?);
    let end = inside_red.link(&red.interface)?.context("red's end is not there")?;
    inside_red.delete_link(end.index)?;
    ensure!(inside_blue.link(&blue.interface)?.is_none(), "blue's end is still there");
    Ok("blue's end went with red's".to_owned())
}

/// What the host could know of a cable.
struct HostTables {
    links: Vec<(u32, String)>,
    routes: Vec<Route>,
    neighbours: Vec<IpAddr>,
}

impl HostTables {
    fn read(lab: &Lab) -> Result<Self> {
        let netlink = Netlink::inside(&lab.ns("host")?)?;
        Ok(Self {
            links: netlink.links()?.into_iter().map(|link| (link.index, link.name)).collect(),
            routes: netlink.routes()?,
            neighbours: netlink.neighbours()?.into_iter().map(|neighbour| neighbour.ip).collect(),
        })
    }

    /// Only the cable's own subnet is looked for in routes and neighbours: those of the uplink come and go.
    fn knows_nothing(&self, lab: &Lab) -> Result<String> {
        let now = Self::read(lab)?;
        let subnet: IpNet = "192.168.15.0/24".parse()?;
        ensure!(now.links == self.links, "the host got a link: {:?}", now.links);
        ensure!(!now.routes.iter().any(|route| subnet.contains(&route.dest)), "the host has a route to {subnet}");
        ensure!(!now.neighbours.iter().any(|ip| subnet.contains(ip)), "the host has a neighbour in {subnet}");
        Ok("no link, route or neighbour of it in the host's tables".to_owned())
    }
}
