//! What a run has found, for people: `report.md` for the terminal and the repository, `report.html` with plots; and
//! `report.json`, from which both can be made again.

mod html;
mod markdown;
mod plot;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::goals::{Judged, judge};
use super::result::{Cell, Results};

pub use html::html;
pub use markdown::markdown;

/// A figure to publish has no fewer blocks.
const ENOUGH_BLOCKS: usize = 20;

/// Writes all three into `folder`, which is made; says where the page is.
///
/// # Errors
/// When a file cannot be written.
pub fn write(results: &Results, folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let goals = judge(results);
    let mut json = serde_json::to_value(results)?;
    json["goals"] = serde_json::to_value(&goals)?;
    let page = folder.join("report.html");
    for (file, text) in [
        (folder.join("report.json"), serde_json::to_string(&json)?),
        (folder.join("report.md"), markdown(results, &goals)),
        (page.clone(), html(results, &goals)),
    ] {
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(page)
}

/// Goals met, not met, and not measured, in one line.
fn summary(goals: &[Judged]) -> String {
    let count = |met: Option<bool>| goals.iter().filter(|goal| goal.met == met).count();
    let (met, missed, open) = (count(Some(true)), count(Some(false)), count(None));
    let open = if open == 0 { String::new() } else { format!("; {open} were not measured in this run") };
    format!("{met} of {} measured goals are met{open}", met + missed)
}

/// The machine in one line.
fn machine(results: &Results) -> String {
    let machine = &results.machine;
    let instructions = if machine.counts_instructions { "" } else { ", counts no instructions" };
    let pinned = if machine.pinned { "" } else { ", one CPU for both ends" };
    format!(
        "nsnet {}, Linux {}, {} × {}, {:.0} GB{instructions}{pinned}; {} run, {}",
        machine.nsnet,
        machine.kernel,
        machine.cpus,
        machine.cpu,
        machine.memory,
        results.effort,
        took(results.seconds)
    )
}

fn took(seconds: f64) -> String {
    if seconds < 90.0 { format!("{seconds:.0} seconds") } else { format!("{:.0} minutes", seconds / 60.0) }
}

/// How far it is to be trusted, in one line.
fn circumstances(results: &Results) -> String {
    let sum = |of: fn(&Cell) -> u32| results.cells.iter().map(of).sum::<u32>();
    let blocks = results.cells.iter().flat_map(|cell| cell.rows.first()).map(|row| row.rate.len());
    let (fewest, most) = (blocks.clone().min().unwrap_or(0), blocks.max().unwrap_or(0));
    let blocks = if fewest == most { in_blocks(most) } else { format!("{fewest} to {}", in_blocks(most)) };
    let few = if fewest < ENOUGH_BLOCKS {
        format!(". Where they are fewer than {ENOUGH_BLOCKS} it is a quick look, and no figure to publish")
    } else {
        String::new()
    };
    let interrupted =
        if results.interrupted { ". The run was interrupted: this is what was measured until then" } else { "" };
    format!(
        "{blocks} for each cell, in each of which every peer is measured once, in random order; ratios within a \
         block, their median, and a 95 % bootstrap interval; {} blocks measured again for stolen CPU time, {} counted \
         in spite of it{few}{interrupted}",
        sum(|cell| cell.repeated),
        sum(|cell| cell.disturbed)
    )
}

/// How many blocks a cell has, in words.
fn blocks(cell: &Cell) -> String {
    in_blocks(cell.rows.first().map_or(0, |row| row.rate.len()))
}

fn in_blocks(count: usize) -> String {
    if count == 1 { "1 block".to_owned() } else { format!("{count} blocks") }
}

/// Fixed results for tests.
#[cfg(test)]
pub(in crate::bench) fn example() -> Results {
    use super::peer::{Peer, Way};
    use super::result::{Axis, Figure, LeftOut, Load, Machine, Point, Quantity, VERSION};
    use crate::lab::compare::Sample;

    let cell = |way, load, point, rates: &[(Peer, f64)]| {
        let mut cell = Cell::new(way, load, point, rates.iter().map(|(peer, _)| *peer));
        for block in 0..8 {
            for (row, (_, rate)) in cell.rows.iter_mut().zip(rates) {
                // The machine drifts, and with it all peers.
                let rate = rate * (1.0 + f64::from(block) / 10.0);
                row.add(&Sample { rate, cpu: 1.0 / rate, ..Sample::default() });
            }
        }
        cell
    };
    let direct = [(Peer::Direct, 200e3), (Peer::DirectAgain, 200e3)];
    let with = |others: &[(Peer, f64)]| [&direct[..], others].concat();
    let scaled = |count, bridge, nsnet| {
        let point = Some(Point { axis: Axis::Namespaces, count });
        let rates = with(&[(Peer::Bridge, bridge), (Peer::Nsnet, nsnet)]);
        cell(Way::NsToNs, Load::Injected64, point, &rates)
    };
    let switched = with(&[(Peer::Bridge, 140e3), (Peer::Macvlan, 196e3), (Peer::Nsnet, 190e3)]);
    Results {
        version: VERSION,
        machine: Machine { kernel: "6.18".into(), cpu: "A <fast> & \"new\" one".into(), cpus: 2, ..Machine::default() },
        effort: "quick".into(),
        began: 1_700_000_000,
        seconds: 240.0,
        cells: vec![
            cell(Way::NsToNs, Load::Udp64, None, &switched),
            scaled(2, 100e3, 180e3),
            scaled(1_000, 100e3, 179e3),
        ],
        figures: vec![Figure {
            of: Quantity::FlowMemory,
            peer: Peer::Nsnet,
            count: 100_000,
            value: 256.0,
            range: None,
        }],
        left_out: vec![LeftOut { what: "iperf3".into(), why: "there is no iperf3".into() }],
        interrupted: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_can_be_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let page = write(&example(), folder.path()).unwrap();
        assert!(fs::read_to_string(page).unwrap().starts_with("<!DOCTYPE html>"));
        let json = fs::read_to_string(folder.path().join("report.json")).unwrap();
        let again: Results = serde_json::from_str(&json).unwrap();
        assert_eq!(markdown(&again, &judge(&again)), fs::read_to_string(folder.path().join("report.md")).unwrap());
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["goals"][2]["wanted"]["at-least"], 0.97);
    }

    #[test]
    fn says_how_far_to_trust_it() {
        let text = circumstances(&example());
        assert!(
            text.starts_with("8 blocks for each cell") && text.contains("fewer than 20 it is a quick look"),
            "{text}"
        );
        assert!(!text.contains("interrupted"), "{text}");
        let mut more = Results { interrupted: true, ..example() };
        for row in more.cells.iter_mut().flat_map(|cell| &mut cell.rows) {
            row.rate.resize(20, 1.0);
        }
        let text = circumstances(&more);
        assert!(text.starts_with("20 blocks") && !text.contains("quick look"), "{text}");
        assert!(text.ends_with("interrupted: this is what was measured until then"), "{text}");
        assert!(machine(&example()).contains("counts no instructions, one CPU for both ends; quick run, 4 minutes"));
        assert_eq!(took(8.6), "9 seconds");
    }
}
