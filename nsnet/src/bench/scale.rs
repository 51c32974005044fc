//! Injected loads, at any point of the scaling curves.

use anyhow::{Context as _, Result};
use nsnet_common::bench::{ECHO, SINK, Template};

use super::family::ONLY_V4;
use super::inject::{self, Injector, Series, TRIAL, Turn};
use super::memory::Memory;
use super::peer::{Peer, Way};
use super::plan::Effort;
use super::result::{Axis, Cell, Load, Point};
use super::run::over;
use super::site::{FIRST_PUBLISHED, Injection, Site, Size, ports};
use crate::lab::compare::{Blocks, Sample};
use crate::lab::lane::two_cpus;

/// Frames of a turn are no more than this.
const FRAMES: u32 = 4_000_000;
/// Flows that the load of new flows goes through, in two rounds over the source ports: a namespace may hold no more than
/// 12,288 ports.
const NEW_FLOWS: u32 = 20_000;
/// Source ports, where flows differ by both ports.
const SOURCES: u32 = 1_000;
const FIRST_SOURCE: u16 = 40_000;
/// Where datagrams go on ways without published ports.
const PLAIN_PORT: u16 = 7_000;
/// A MAC of one who is not there.
const NOBODY: [u8; 6] = [2, 0, 0, 0xff, 0xff, 0xff];
/// An ARP request.
const ARP_LENGTH: usize = 60;

/// What to inject, and where.
#[derive(Clone, Debug)]
pub(super) struct What {
    pub(super) way: Way,
    pub(super) load: Load,
    pub(super) point: Option<Point>,
    pub(super) blocks: usize,
}

/// A peer's way, with sinks at its ends.
struct Filled<'a> {
    site: &'a Site,
    injection: Injection,
    template: Template,
    length: usize,
}

/// How large a site must be for a point.
pub(super) fn size(point: Option<Point>) -> Size {
    let size = match point {
        Some(_) => Size { families: ONLY_V4, ..Size::default() },
        None => Size::default(),
    };
    match point {
        Some(Point { axis: Axis::Namespaces, count }) => Size { others: count.saturating_sub(2) as u16, ..size },
        Some(Point { axis: Axis::Ports, count }) => Size { published: count as u16, ..size },
        Some(Point { axis: Axis::Flows, .. }) | None => size,
    }
}

/// Measures a cell over the sites given.
pub(super) fn measure(
    what: &What,
    sites: &[(Peer, &Site)],
    injector: &mut Injector,
    effort: Effort,
    progress: impl FnMut() -> Result<()>,
) -> Result<Cell> {
    let attached = injector.attached();
    let cell =
        filled(what, sites, injector).and_then(|filled| in_turn(what, sites, &filled, injector, effort, progress));
    injector.detach_to(attached)?;
    cell
}

/// Makes all ways ready.
fn filled<'a>(what: &What, sites: &[(Peer, &'a Site)], injector: &mut Injector) -> Result<Vec<Filled<'a>>> {
    // The direct veth's site has its sinks already when it comes again.
    let once = sites.iter().filter(|(peer, _)| *peer != Peer::DirectAgain);
    once.map(|(peer, site)| fill(what, site, injector).with_context(|| over(*peer))).collect()
}

fn in_turn(
    what: &What,
    sites: &[(Peer, &Site)],
    filled: &[Filled<'_>],
    injector: &mut Injector,
    effort: Effort,
    mut progress: impl FnMut() -> Result<()>,
) -> Result<Cell> {
    let place_of = |peer: Peer| {
        let peer = if peer == Peer::DirectAgain { Peer::Direct } else { peer };
        filled.iter().position(|filled| filled.site.peer == peer)
    };
    let places: Vec<usize> = sites.iter().filter_map(|(peer, _)| place_of(*peer)).collect();
    let cpus = two_cpus();
    let mut cell = Cell::new(what.way, what.load, what.point, sites.iter().map(|(peer, _)| *peer));
    let mut blocks = Blocks::new(what.blocks as u64);
    for _ in 0..what.blocks {
        let measure_one = |place: usize| -> Result<Sample> {
            let Filled { site, injection, template, length } = &filled[places[place]];
            if what.load == Load::NewFlows {
                site.forget_flows().with_context(|| over(site.peer))?;
            }
            injector.set(template)?;
            // New flows are new once only.
            let limit = if what.load == Load::NewFlows { template.flows() as u32 - TRIAL } else { FRAMES };
            let turn = Turn {
                length: *length,
                slot: effort.slot_of(what.point),
                limit,
                is_counted: what.load.arrives(),
                cpus,
            };
            injector.measure(&injection.entry, turn).with_context(|| over(site.peer))
        };
        let samples = blocks.once(places.len(), measure_one, |_repeats| progress())?;
        cell.rows.iter_mut().zip(&samples).for_each(|(row, sample)| row.add(sample));
    }
    (cell.repeated, cell.disturbed) = (blocks.repeated, blocks.disturbed);
    Ok(cell)
}

/// Makes a peer's way ready: sinks at both ends, and its flows established.
fn fill<'a>(what: &What, site: &'a Site, injector: &mut Injector) -> Result<Filled<'a>> {
    let mut injection = site.injection(what.way, what.load.family())?;
    if what.load == Load::UnknownMac {
        injection.macs[1] = NOBODY;
    }
    let (length, template) = if what.load == Load::ArpRequests {
        (ARP_LENGTH, inject::arp_requests(&injection))
    } else {
        let series = series(what, length(what.load));
        (series.length, inject::datagrams(&injection, series))
    };
    injector.attach(SINK, &injection.back)?;
    if what.load.is_of_known_flows() {
        let attached = injector.attached();
        injector.attach(ECHO, &injection.exit)?;
        injector.set(&template)?;
        // Twice: a tracker takes a flow for established once it has seen both directions.
        for _ in 0..2 {
            injector.send(&injection.entry, length, template.flows() as u32)?;
        }
        injector.detach_to(attached)?;
    }
    injector.attach(SINK, &injection.exit)?;
    injector.set(&template)?;
    Ok(Filled { site, injection, template, length })
}

fn length(load: Load) -> usize {
    if load == Load::Injected512 {
        512
    } else if load == Load::Injected1400 {
        1400
    } else {
        64
    }
}

/// Which flows.
fn series(what: &What, length: usize) -> Series {
    let published = what.way == Way::OutsideToPublished;
    let first_destination = if published { FIRST_PUBLISHED } else { PLAIN_PORT };
    let one = Series { length, first_source: FIRST_SOURCE, sources: 1, first_destination, destinations: 1 };
    match (what.load, what.point) {
        (Load::NewFlows, Some(Point { axis: Axis::Ports, count })) => Series {
            sources: (NEW_FLOWS / count as u32).max(1) as u16,
            first_destination: *ports(count as u16).start(),
            destinations: count as u16,
            ..one
        },
        (Load::NewFlows, _) if !published => Series { sources: (NEW_FLOWS / 2) as u16, destinations: 2, ..one },
        (Load::NewFlows, _) => Series { sources: NEW_FLOWS as u16, ..one },
        (_, Some(Point { axis: Axis::Flows, count })) => {
            let sources = (count as u32).min(SOURCES);
            Series { sources: sources as u16, destinations: (count as u32).div_ceil(sources) as u16, ..one }
        }
        _ => one,
    }
}

/// How much kernel memory `flows` established flows on `way` take.
pub(super) fn flow_memory(site: &Site, way: Way, injector: &mut Injector, flows: u32) -> Result<Memory> {
    let what =
        What { way, load: Load::Injected64, point: Some(Point { axis: Axis::Flows, count: flows.into() }), blocks: 0 };
    let attached = injector.attached();
    let before = Memory::read()?;
    let filled = fill(&what, site, injector);
    let after = Memory::read()?;
    injector.detach_to(attached)?;
    filled?;
    Ok(after.since(before))
}
