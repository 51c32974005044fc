//! The report as Markdown.

use std::fmt::Write as _;

use super::super::goals::{Judged, digits};
use super::super::loss::{Loss, Lost};
use super::super::peer::{Peer, Way};
use super::super::result::{Cell, Results};
use super::{blocks, circumstances, machine, summary};
use crate::lab::{Measure, Ratio};

/// The whole report.
pub fn markdown(results: &Results, goals: &[Judged]) -> String {
    let mut text = format!("# nsnet bench\n\n{}.\n\n{}.\n\n", machine(results), circumstances(results));
    lost(&mut text, results);
    judged(&mut text, goals);
    for way in Way::ALL {
        let cells: Vec<&Cell> = results.cells.iter().filter(|cell| cell.way == way && cell.point.is_none()).collect();
        if !cells.is_empty() {
            line(&mut text, &format!("## {}\n", capital(way.name())));
            cells.into_iter().for_each(|cell| table(&mut text, cell));
        }
    }
    curves(&mut text, results);
    figures(&mut text, results);
    if !results.left_out.is_empty() {
        line(&mut text, "## Left out\n");
        results.left_out.iter().for_each(|left| line(&mut text, &format!("- {}: {}", left.what, left.why)));
    }
    text
}

/// What is said when there are no losses.
pub(super) const NO_LOSS: &str = "In nothing that was measured is another way better than nsnet by more than the noise. The \
                                  direct veth is the limit, not another way.";

fn lost(text: &mut String, results: &Results) {
    line(text, "## Where nsnet loses\n");
    let losses = results.losses();
    if losses.is_empty() {
        line(text, &format!("{NO_LOSS}\n"));
        return;
    }
    for Loss { what, to, times, found } in losses {
        line(text, &format!("- {what}: {}", lost_by(&found, times, to)));
    }
    line(text, "");
}

/// How much is lost, and to whom.
pub(super) fn lost_by(found: &Lost, times: f64, to: Peer) -> String {
    match found {
        Lost::Blocks(ratio) => format!("{} of {}", show(ratio), to.name()),
        Lost::Figures(ours, theirs) => {
            format!("{times:.2} times {}, {ours} to {theirs}, measured once", to.name())
        }
    }
}

fn judged(text: &mut String, goals: &[Judged]) {
    line(text, &format!("## Goals\n\n{}.\n\n| goal | wanted | found | |\n|---|---|---|---|", summary(goals)));
    for goal in goals {
        let (found, met) = cells_of(goal);
        line(text, &format!("| {} | {} | {found} | {met} |", goal.goal, goal.wanted));
    }
    line(text, "");
}

/// What was found, and whether it is enough, in words.
pub(super) fn cells_of(goal: &Judged) -> (String, String) {
    let met = match (goal.met, &goal.obstacle) {
        (Some(true), _) => "met".to_owned(),
        (Some(false), _) => "not met".to_owned(),
        (None, Some(obstacle)) => format!("not measured: {obstacle}"),
        (None, None) => "not measured".to_owned(),
    };
    (goal.found.map_or_else(|| "–".to_owned(), |found| found.to_string()), met)
}

fn table(text: &mut String, cell: &Cell) {
    let noise = cell.noise(Measure::Rate).map_or_else(|| "–".to_owned(), |noise| show(&noise));
    line(text, &format!("### {}\n\n{}; direct veth to itself {noise}\n", cell.load.name(), capital(&blocks(cell))));
    line(
        text,
        "| peer | rate | to direct veth | nsnet to it | added ns | sender's cost to direct | lost |\n|---|---|---|---|---|---|---|",
    );
    for row in &cell.rows {
        let columns = [row.peer.name().to_owned()].into_iter().chain(columns(cell, row.peer));
        line(text, &format!("| {} |", columns.collect::<Vec<_>>().join(" | ")));
    }
    line(text, "");
}

/// Rate, its ratios, added time, cost and loss of a peer.
pub(super) fn columns(cell: &Cell, peer: Peer) -> [String; 6] {
    let none = || "–".to_owned();
    let ratio = |measure, peer, to| cell.ratio(measure, peer, to).map_or_else(none, |ratio| show(&ratio));
    let median = |measure| cell.row(peer).and_then(|row| row.median(measure));
    let rate = median(Measure::Rate).unwrap_or_default();
    let trips = median(Measure::TripMedian).zip(median(Measure::TripP99));
    let shown = match trips {
        Some((half, p99)) => format!("p50 {:.1} µs, p99 {:.1} µs", half * 1e6, p99 * 1e6),
        None => cell.load.show(rate),
    };
    let added = if cell.load.is_packets() { cell.added_ns(peer) } else { None };
    let added = added.map_or_else(none, |ns| nanoseconds(&ns));
    // Instructions where they are counted, else CPU time; of streams the sender does only a part.
    let counted = cell.row(peer).is_some_and(|row| !row.instructions.is_empty());
    let measure = if counted { Measure::Instructions } else { Measure::Cpu };
    let cost = if cell.load.is_packets() { ratio(measure, peer, Peer::Direct) } else { none() };
    let loss = median(Measure::Loss).unwrap_or_default();
    let loss = match loss {
        // Programs of others do not tell it.
        _ if cell.load.is_outer() => none(),
        loss if loss < 0.0005 => "0".to_owned(),
        loss => format!("{:.1} %", loss * 100.0),
    };
    [shown, ratio(Measure::Rate, peer, Peer::Direct), ratio(Measure::Rate, Peer::Nsnet, peer), added, cost, loss]
}

fn curves(text: &mut String, results: &Results) {
    let curves = results.curves();
    if curves.is_empty() {
        return;
    }
    line(text, "## Scaling\n\nRates relative to the direct veth of the same blocks.\n");
    for curve in curves {
        let Some((first, point)) = curve.first().and_then(|cell| Some((cell, cell.point?))) else { continue };
        line(text, &format!("### {}: {}, by {}\n", first.way.name(), first.load.name(), point.axis.name()));
        let (names, rows) = ratios(&curve);
        line(text, &format!("| {} | {} |", point.axis.name(), names.join(" | ")));
        line(text, &format!("|---|{}", "---|".repeat(names.len())));
        rows.iter().for_each(|(count, ratios)| line(text, &format!("| {count} | {} |", ratios.join(" | "))));
        line(text, "");
    }
}

/// A curve in numbers: its peers, and their ratios to the direct veth at each count.
pub(super) fn ratios(curve: &[&Cell]) -> (Vec<&'static str>, Vec<(u64, Vec<String>)>) {
    let all = curve.first().map_or(&[][..], |cell| &cell.rows);
    let peers: Vec<Peer> = all.iter().map(|row| row.peer).filter(|peer| *peer != Peer::Direct).collect();
    let rows = curve.iter().map(|cell| {
        let ratio = |peer: &Peer| cell.ratio(Measure::Rate, *peer, Peer::Direct);
        let ratios = peers.iter().map(|peer| ratio(peer).map_or_else(|| "–".to_owned(), |ratio| show(&ratio)));
        (cell.point.map_or(0, |point| point.count), ratios.collect())
    });
    (peers.iter().map(|peer| peer.name()).collect(), rows.collect())
}

fn figures(text: &mut String, results: &Results) {
    if results.figures.is_empty() {
        return;
    }
    line(text, "## Time to set up, and memory\n\n| what | how many | peer | value |\n|---|---|---|---|");
    for figure in &results.figures {
        let (name, value) = (figure.of.name(), figure.show());
        line(text, &format!("| {name} | {} | {} | {value} |", figure.count, figure.peer.name()));
    }
    line(text, "");
}

/// Nanoseconds with their interval, which may reach below 0.
pub(super) fn nanoseconds(ns: &Ratio) -> String {
    if ns.high.is_infinite() {
        return format!("{:.0}", ns.median);
    }
    format!("{:.0} [{:.0}, {:.0}]", ns.median, ns.low, ns.high)
}

/// A ratio with its interval.
pub(super) fn show(ratio: &Ratio) -> String {
    let Ratio { median, low, high, .. } = ratio;
    let digits = digits(*median);
    if high.is_infinite() {
        // One block gives none.
        return format!("{median:.digits$}");
    }
    format!("{median:.digits$} [{low:.digits$}–{high:.digits$}]")
}

pub(super) fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn line(text: &mut String, line: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;
    use crate::bench::goals::judge;

    #[test]
    fn what_was_measured_once_can_be_lost_too() {
        use super::super::super::result::{Figure, Quantity};
        let attached = |peer, count, value| Figure { of: Quantity::AttachTime, peer, count, value, range: None };
        let mut results = example();
        results.cells.truncate(1);
        results.cells[0].rows.retain(|row| row.peer != Peer::Macvlan);
        let told = |results: &Results| markdown(results, &judge(results)).split("## Goals").next().unwrap().to_owned();
        assert!(told(&results).contains(NO_LOSS));
        results.figures.extend([attached(Peer::Nsnet, 998, 19.18), attached(Peer::Bridge, 998, 3.98)]);
        // Nobody to compare with, and less than the other.
        results.figures.extend([attached(Peer::Nsnet, 8, 0.1), attached(Peer::Nsnet, 98, 0.1)]);
        results.figures.push(attached(Peer::Bridge, 98, 0.2));
        let text = told(&results);
        let loss = "- time to attach namespaces, ms, 998: 4.82 times Linux bridge, 19180.0 to 3980.0, measured once\n";
        assert!(text.contains(loss) && !text.contains(NO_LOSS) && text.matches("\n- ").count() == 1, "{text}");
        results = Results { figures: results.figures, ..example() };
        let text = told(&results);
        assert!(text.find(loss) < text.find("0.97 [0.97–0.97] of macvlan bridge mode"), "the largest first: {text}");
    }

    #[test]
    fn losses_come_first() {
        let results = example();
        let text = markdown(&results, &judge(&results));
        let loss = "- namespace to namespace: UDP 64 B, receiver waits: 0.97 [0.97–0.97] of macvlan bridge mode";
        let (lost, goals) = (text.find(loss), text.find("## Goals"));
        assert!(lost.is_some() && lost < goals, "{text}");
        assert!(text.contains("| UDP 64 B, receiver waits, vs Linux bridge | ≥ 1.35 | 1.36 | met |"), "{text}");
        assert!(text.contains("| nsnet | 256.5 kpps | 0.95 [0.95–0.95] | 1.00 [1.00–1.00] | 195 ["), "{text}");
        assert!(text.contains("| 1000 | 1.00 [1.00–1.00] | 0.50 [0.50–0.50] | 0.90 [0.90–0.90] |"), "{text}");
        assert!(text.contains("- iperf3: there is no iperf3"));
    }
}
