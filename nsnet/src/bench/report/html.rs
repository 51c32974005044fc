//! The report as one page that needs nothing else: styles and plots are in it, for light and dark, wide and narrow.

use super::super::goals::Judged;
use super::super::loss::Loss;
use super::super::peer::{Peer, Way};
use super::super::result::{Cell, Results};
use super::markdown::{NO_LOSS, capital, cells_of, columns, lost_by, nanoseconds, ratios, show};
use super::plot::{self, Bar, Line};
use super::{blocks, circumstances, machine, summary};
use crate::lab::Measure;

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub fn html(results: &Results, goals: &[Judged]) -> String {
    let mut body = format!(
        "<h1>nsnet bench</h1>\n<p>{}.</p>\n<p class=\"small\">{}.</p>\n",
        escape(&machine(results)),
        escape(&circumstances(results))
    );
    body += &lost(results);
    body += &judged(goals);
    body += &added(results);
    for way in Way::ALL {
        let cells: Vec<&Cell> = results.cells.iter().filter(|cell| cell.way == way && cell.point.is_none()).collect();
        if !cells.is_empty() {
            let plots: String = cells.iter().map(|cell| cell_plot(cell)).collect();
            body += &format!("<h2>{}</h2>\n<div class=\"grid\">\n{plots}</div>\n", escape(&capital(way.name())));
        }
    }
    body += &curves(results);
    body += &figures(results);
    if !results.left_out.is_empty() {
        let items =
            results.left_out.iter().map(|left| format!("<li>{}: {}</li>\n", escape(&left.what), escape(&left.why)));
        body += &format!("<h2>Left out</h2>\n<ul>\n{}</ul>\n", items.collect::<String>());
    }
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
         <title>nsnet bench</title><style>\n{STYLE}</style></head>\n<body><main>\n{body}</main></body></html>\n"
    )
}

fn lost(results: &Results) -> String {
    let losses = results.losses();
    if losses.is_empty() {
        return format!("<h2>Where nsnet loses</h2>\n<p>{NO_LOSS}</p>\n");
    }
    let items = losses.into_iter().map(|Loss { what, to, times, found }| {
        format!("<li>{}: {}</li>\n", escape(&what), escape(&lost_by(&found, times, to)))
    });
    format!("<h2>Where nsnet loses</h2>\n<ul>\n{}</ul>\n", items.collect::<String>())
}

fn judged(goals: &[Judged]) -> String {
    let rows = goals.iter().map(|goal| {
        let (found, met) = cells_of(goal);
        let met = escape(&met);
        let class = match goal.met {
            Some(true) => "met",
            Some(false) => "missed",
            None => "open",
        };
        let (goal, wanted) = (escape(&goal.goal), goal.wanted);
        format!("<tr><td>{goal}</td><td>{wanted}</td><td>{found}</td><td class=\"{class}\">{met}</td></tr>\n")
    });
    format!(
        "<h2>Goals</h2>\n<p>{}.</p>\n<div class=\"wide\"><table><thead><tr><th>goal</th><th>wanted</th><th>found</th>\
         <th></th></tr></thead><tbody>\n{}</tbody></table></div>\n",
        summary(goals),
        rows.collect::<String>()
    )
}

/// Nanoseconds that a packet takes longer than on the direct veth.
fn added(results: &Results) -> String {
    let cells = results.cells.iter().filter(|cell| cell.point.is_none() && cell.load.is_packets());
    let plots: String = cells
        .map(|cell| {
            let bars: Vec<Bar> = others(cell)
                .filter_map(|peer| {
                    let ns = cell.added_ns(peer)?;
                    let value = format!("{} ns", nanoseconds(&ns));
                    Some(bar(peer, value, ns.median, ns.low, ns.high))
                })
                .collect();
            figure(&cell.title(), &plot::bars(&cell.title(), &bars, None), "")
        })
        .collect();
    if plots.is_empty() {
        return String::new();
    }
    format!(
        "<h2>Nanoseconds added to each packet</h2>\n<p>Over a direct veth, measured in the same blocks.</p>\n<div class=\"grid\">\n{plots}</div>\n"
    )
}

/// Every peer but the direct veths.
fn others(cell: &Cell) -> impl Iterator<Item = Peer> {
    cell.rows.iter().map(|row| row.peer).filter(|peer| !matches!(peer, Peer::Direct | Peer::DirectAgain))
}

/// Ratios to the direct veth, with its noise as a band, and all numbers below.
fn cell_plot(cell: &Cell) -> String {
    let bars: Vec<Bar> = others(cell)
        .filter_map(|peer| {
            let ratio = cell.ratio(Measure::Rate, peer, Peer::Direct)?;
            Some(bar(peer, show(&ratio), ratio.median, ratio.low, ratio.high))
        })
        .collect();
    let noise = cell.noise(Measure::Rate).map(|noise| (1.0, noise.low, noise.high));
    let svg = plot::bars(&cell.title(), &bars, noise);
    let rows = cell.rows.iter().map(|row| [&[row.peer.name().to_owned()][..], &columns(cell, row.peer)].concat());
    let names = ["peer", "rate", "to direct veth", "nsnet to it", "added ns", "sender’s cost", "lost"];
    let table = numbers(&format!("numbers, of {}", blocks(cell)), &names, rows);
    figure(&format!("{}, relative to a direct veth", cell.load.name()), &svg, &table)
}

/// A table that is unfolded on demand.
fn numbers(summary: &str, names: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let names: String = names.iter().map(|name| format!("<th>{}</th>", escape(name))).collect();
    let row = |row: Vec<String>| row.iter().map(|text| format!("<td>{}</td>", escape(text))).collect::<String>();
    let rows: String = rows.map(|texts| format!("<tr>{}</tr>\n", row(texts))).collect();
    format!(
        "<details><summary>{summary}</summary><div class=\"wide\"><table><thead><tr>{names}</tr></thead>\
         <tbody>\n{rows}</tbody></table></div></details>"
    )
}

fn curves(results: &Results) -> String {
    let plots: String = results
        .curves()
        .into_iter()
        .filter_map(|curve| {
            let (first, axis) = curve.first().and_then(|cell| Some((*cell, cell.point?.axis)))?;
            let lines: Vec<Line> = others(first)
                .map(|peer| {
                    let point = |cell: &&Cell| {
                        Some((cell.point?.count as f64, cell.ratio(Measure::Rate, peer, Peer::Direct)?.median))
                    };
                    let points = curve.iter().filter_map(point).collect();
                    Line { label: peer.name().to_owned(), points, class: class(peer) }
                })
                .collect();
            let title = format!("{}: {}, by {}", first.way.name(), first.load.name(), axis.name());
            let (names, rows) = ratios(&curve);
            let rows = rows.into_iter().map(|(count, ratios)| [vec![count.to_string()], ratios].concat());
            let table = numbers("numbers", &[&[axis.name()], &names[..]].concat(), rows);
            Some(figure(&title, &plot::curves(&title, axis.name(), &lines), &table))
        })
        .collect();
    if plots.is_empty() {
        return String::new();
    }
    format!(
        "<h2>Scaling</h2>\n<p>Rates relative to the direct veth of the same blocks.</p>\n<div class=\"grid\">\n{plots}</div>\n"
    )
}

fn figures(results: &Results) -> String {
    if results.figures.is_empty() {
        return String::new();
    }
    let rows = results.figures.iter().map(|figure| {
        let (name, value) = (figure.of.name(), figure.show());
        let peer = escape(figure.peer.name());
        format!("<tr><td>{name}</td><td>{}</td><td>{peer}</td><td>{value}</td></tr>\n", figure.count)
    });
    format!(
        "<h2>Time to set up, and memory</h2>\n<div class=\"wide\"><table><thead><tr><th>what</th><th>how many</th>\
         <th>peer</th><th>value</th></tr></thead><tbody>\n{}</tbody></table></div>\n",
        rows.collect::<String>()
    )
}

fn bar(peer: Peer, value: String, middle: f64, low: f64, high: f64) -> Bar {
    Bar { label: peer.name().to_owned(), value, middle, low, high, class: class(peer) }
}

/// The peer's number: its colour in the style sheet.
fn class(peer: Peer) -> usize {
    Peer::ALL.iter().position(|other| *other == peer).unwrap_or(0)
}

fn figure(caption: &str, svg: &str, below: &str) -> String {
    format!("<figure><figcaption>{}</figcaption>\n{svg}\n{below}</figure>\n", escape(caption))
}

/// Text as HTML has it.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::example;
    use super::*;
    use crate::bench::goals::judge;

    fn page() -> String {
        let results = example();
        html(&results, &judge(&results))
    }

    /// Every element that begins ends, in its place; ours are all written so, those without content too.
    fn check_elements(page: &str) -> Vec<String> {
        let (mut open, mut seen) = (Vec::new(), Vec::new());
        let text = page.replace("<!DOCTYPE html>", "");
        for piece in text.split('<').skip(1) {
            let (tag, rest) = piece.split_once('>').expect("a tag has an end");
            assert!(!rest.contains('>'), "a bare > in {rest:?}");
            let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or_default().to_owned();
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "in {piece:?}");
            } else {
                assert_eq!(tag.matches('"').count() % 2, 0, "quotes of {tag:?}");
                seen.push(name.clone());
                if !tag.ends_with('/') {
                    open.push(name);
                }
            }
        }
        assert_eq!(open, [""; 0]);
        seen
    }

    #[test]
    fn the_page_is_well_formed() {
        let seen = check_elements(&page());
        let count = |name: &str| seen.iter().filter(|other| *other == name).count();
        // Added time and ratios of one cell, and one curve.
        assert_eq!(count("svg"), 3);
        assert!(count("polyline") == 2 && count("tr") > 20);
        let row = "<tr><td>1000</td><td>1.00 [1.00–1.00]</td><td>0.50 [0.50–0.50]</td><td>0.90 [0.90–0.90]</td></tr>";
        assert!(page().contains(row), "a curve's intervals can be read");
    }

    #[test]
    fn the_page_needs_nothing_else() {
        let page = page();
        for reference in ["http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link"] {
            assert!(!page.contains(reference), "{reference}");
        }
        assert!(page.contains("prefers-color-scheme: dark") && page.contains("name=\"viewport\""));
        assert!(page.contains("A &lt;fast&gt; &amp; &quot;new&quot; one"));
    }

    #[test]
    fn every_peer_has_a_colour() {
        assert!((0..Peer::ALL.len()).all(|number| STYLE.contains(&format!(".p{number} "))));
    }
}
