//! The lab's own loads, over all peers that have a way.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use super::peer::{Peer, Way};
use super::plan::{Effort, Task};
use super::result::{Cell, Load};
use super::site::{FIRST_PLAIN, FIRST_PUBLISHED, Site};
use crate::kernel::netns::NetNs;
use crate::lab::compare::compare_locked;
use crate::lab::{Plan, Variant, Workload};

/// Two namespaces and an address.
type Ends = (NetNs, NetNs, SocketAddr);

/// Measures a cell over the sites given, of which the direct veth's stands for both of its peers.
pub(super) fn measure(
    task: &Task,
    sites: &[(Peer, &Site)],
    effort: Effort,
    mut progress: impl FnMut() -> Result<()>,
) -> Result<Cell> {
    let workload = workload(task.load).context("this load is none of sockets")?;
    let ends = sites.iter().map(|(peer, site)| ends(*peer, site, task)).collect::<Result<Vec<Ends>>>()?;
    let run = |ns: &NetNs, work: &mut (dyn FnMut() + Send)| Ok(ns.run(work)?);
    let runners: Vec<_> = ends
        .iter()
        .map(|(sender, receiver, _)| {
            (
                move |work: &mut (dyn FnMut() + Send)| run(sender, work),
                move |work: &mut (dyn FnMut() + Send)| run(receiver, work),
            )
        })
        .collect();
    let variants: Vec<Variant<'_>> = sites
        .iter()
        .zip(&ends)
        .zip(&runners)
        .map(|(((peer, _), (.., to)), (sender, receiver))| Variant { name: peer.name(), to: *to, sender, receiver })
        .collect();
    let plan = Plan { workloads: vec![workload], ..Plan::new(task.blocks, effort.slot()) };
    let comparison = compare_locked(&variants, &plan, |_done, _total| progress())?;
    let mut cell = Cell::new(task.way, task.load, None, sites.iter().map(|(peer, _)| *peer));
    (cell.repeated, cell.disturbed) = (comparison.repeated, comparison.disturbed);
    for row in &mut cell.rows {
        let series = comparison.series(workload, row.peer.name()).context("a peer was not measured")?;
        for sample in series.samples() {
            row.add(&sample);
        }
    }
    Ok(cell)
}

fn ends(peer: Peer, site: &Site, task: &Task) -> Result<Ends> {
    let (sender, receiver, ip) = site.ends(task.way)?;
    Ok((sender, receiver, SocketAddr::new(ip.into(), port(task.way, peer))))
}

/// One port for each cell: a published one where it must be. The second of two equal peers needs another.
pub(super) fn port(way: Way, peer: Peer) -> u16 {
    let first = if way.is_published() { FIRST_PUBLISHED } else { FIRST_PLAIN };
    first + u16::from(peer == Peer::DirectAgain)
}

fn workload(load: Load) -> Option<Workload> {
    match load {
        Load::Tcp => Some(Workload::TcpStream),
        Load::Udp64 => Some(Workload::UdpSmall),
        Load::Udp64Polled => Some(Workload::UdpPolled),
        Load::RoundTrips => Some(Workload::RoundTrips),
        Load::Connections => Some(Workload::Connections),
        Load::Iperf1
        | Load::Iperf4
        | Load::HttpKeepAlive
        | Load::HttpClose
        | Load::Sockperf
        | Load::Injected64
        | Load::Injected512
        | Load::Injected1400
        | Load::InjectedV6
        | Load::NewFlows
        | Load::ArpRequests
        | Load::UnknownMac => None,
    }
}
