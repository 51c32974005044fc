//! Plots as SVG, drawn for the width of a phone and coloured by the page's style sheet.

use std::fmt::Write as _;

use super::html::escape;

/// Width of every plot, in its own units: about those of a phone's screen.
const WIDTH: f64 = 360.0;
/// Of a bar's row: a line of text, and the bar below it.
const ROW: f64 = 34.0;
const PLOT: f64 = 200.0;
const LEFT: f64 = 34.0;
const TOP: f64 = 8.0;

/// A value with its interval.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) value: String,
    pub(super) middle: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    /// The style's class: the peer's number.
    pub(super) class: usize,
}

/// Bars from 0 with intervals; `reference` is a line and a band around it.
pub(super) fn bars(title: &str, bars: &[Bar], reference: Option<(f64, f64, f64)>) -> String {
    // Single blocks have intervals without end.
    let ends = bars.iter().flat_map(|bar| [bar.middle, bar.high]);
    let ends = ends.chain(reference.into_iter().flat_map(|(middle, _, high)| [middle, high]));
    let most = ends.filter(|end| end.is_finite()).fold(0.0, f64::max).max(1e-9) * 1.03;
    let at = |value: f64| (value / most).clamp(0.0, 1.0) * WIDTH;
    let height = ROW * bars.len() as f64 + 4.0;
    let mut svg = open(title, height);
    if let Some((middle, low, high)) = reference {
        let (from, to) = (at(low), at(high));
        push(
            &mut svg,
            &format!("<rect class=\"band\" x=\"{from:.1}\" y=\"0\" width=\"{:.1}\" height=\"{height}\"/>", to - from),
        );
        let x = at(middle);
        push(&mut svg, &format!("<line class=\"rule\" x1=\"{x:.1}\" y1=\"0\" x2=\"{x:.1}\" y2=\"{height}\"/>"));
    }
    for (number, bar) in bars.iter().enumerate() {
        let y = ROW * number as f64;
        let (x, class) = (at(bar.middle), bar.class);
        push(&mut svg, &format!("<text x=\"0\" y=\"{:.0}\">{}</text>", y + 13.0, escape(&bar.label)));
        push(
            &mut svg,
            &format!("<text class=\"value\" x=\"{WIDTH}\" y=\"{:.0}\">{}</text>", y + 13.0, escape(&bar.value)),
        );
        push(
            &mut svg,
            &format!("<rect class=\"fill p{class}\" x=\"0\" y=\"{:.0}\" width=\"{x:.1}\" height=\"8\"/>", y + 19.0),
        );
        let (from, to, y) = (at(bar.low), at(bar.high), y + 23.0);
        push(&mut svg, &format!("<line class=\"whisker\" x1=\"{from:.1}\" y1=\"{y}\" x2=\"{to:.1}\" y2=\"{y}\"/>"));
    }
    svg + "</svg>"
}

/// One peer's points: how many, and the value there.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) label: String,
    pub(super) points: Vec<(f64, f64)>,
    pub(super) class: usize,
}

/// Curves over a logarithmic axis of counts, from 0 upwards.
pub(super) fn curves(title: &str, axis: &str, lines: &[Line]) -> String {
    let points = || lines.iter().flat_map(|line| &line.points);
    let (few, many) = points().fold((f64::INFINITY, 1.0_f64), |(few, many), (x, _)| (few.min(*x), many.max(*x)));
    let most = points().map(|(_, y)| *y).fold(1.0, f64::max) * 1.05;
    let span = (many / few).log10().max(1e-9);
    let x_of = |count: f64| LEFT + (count / few).log10() / span * (WIDTH - LEFT - 12.0);
    let y_of = |value: f64| TOP + (1.0 - value / most) * PLOT;
    let height = TOP + PLOT + 34.0 + 15.0 * lines.len() as f64;
    let mut svg = open(title, height);
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let y = y_of(tick);
        push(&mut svg, &format!("<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{WIDTH}\" y2=\"{y:.1}\"/>"));
        push(&mut svg, &format!("<text class=\"tick\" x=\"{:.0}\" y=\"{:.1}\">{tick}</text>", LEFT - 4.0, y + 4.0));
    }
    let mut counts: Vec<f64> = points().map(|(x, _)| *x).collect();
    counts.sort_by(f64::total_cmp);
    counts.dedup();
    for count in counts {
        let x = x_of(count);
        push(
            &mut svg,
            &format!("<text class=\"below\" x=\"{x:.1}\" y=\"{:.0}\">{}</text>", TOP + PLOT + 14.0, short(count)),
        );
    }
    push(
        &mut svg,
        &format!("<text class=\"value\" x=\"{WIDTH}\" y=\"{:.0}\">{}</text>", TOP + PLOT + 28.0, escape(axis)),
    );
    for (number, line) in lines.iter().enumerate() {
        let class = line.class;
        let path: Vec<String> = line.points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_of(*x), y_of(*y))).collect();
        push(&mut svg, &format!("<polyline class=\"curve p{class}\" points=\"{}\"/>", path.join(" ")));
        for (x, y) in &line.points {
            push(
                &mut svg,
                &format!("<circle class=\"fill p{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>", x_of(*x), y_of(*y)),
            );
        }
        let y = TOP + PLOT + 44.0 + 15.0 * number as f64;
        push(
            &mut svg,
            &format!("<rect class=\"fill p{class}\" x=\"0\" y=\"{:.0}\" width=\"10\" height=\"10\"/>", y - 9.0),
        );
        push(&mut svg, &format!("<text x=\"16\" y=\"{y:.0}\">{}</text>", escape(&line.label)));
    }
    svg + "</svg>"
}

/// 1000 as 1k, 1000000 as 1M.
fn short(count: f64) -> String {
    match count {
        c if c >= 1e6 => format!("{}M", c / 1e6),
        c if c >= 1e3 => format!("{}k", c / 1e3),
        c => c.to_string(),
    }
}

fn open(title: &str, height: f64) -> String {
    let title = escape(title);
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>")
}

fn push(svg: &mut String, element: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(svg, "{element}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_values() {
        let bar =
            |middle: f64| Bar { label: "a & b".into(), value: "1".into(), middle, low: middle, high: middle, class: 3 };
        let svg = bars("t", &[bar(1.0), bar(0.5)], Some((1.0, 0.98, 1.02)));
        assert!(
            svg.contains("a &amp; b") && svg.contains("class=\"fill p3\" x=\"0\" y=\"19\" width=\"342.7\""),
            "{svg}"
        );
        assert!(svg.contains("y=\"53\" width=\"171.3\""), "{svg}");
        // Infinite intervals come from single blocks.
        let svg = bars("t", &[Bar { low: 0.0, high: f64::INFINITY, ..bar(1.0) }], None);
        assert!(!svg.contains("inf") && !svg.contains("NaN"), "{svg}");
        let svg = bars("t", &[Bar { low: 0.0, high: f64::INFINITY, ..bar(0.5) }], Some((1.0, 0.0, f64::INFINITY)));
        assert!(svg.contains("width=\"174.8\" height=\"8\""), "{svg}");
    }

    #[test]
    fn curves_begin_left_and_end_right() {
        let line = Line { label: "nsnet".into(), points: vec![(2.0, 1.0), (1000.0, 0.5)], class: 0 };
        let svg = curves("t", "namespaces", &[line]);
        assert!(svg.contains("points=\"34.0,17.5 348.0,112.8\""), "{svg}");
        assert!(svg.contains(">1k<") && svg.contains(">2<"));
        let one = Line { label: "nsnet".into(), points: vec![(1.0, 1.0)], class: 0 };
        assert!(!curves("t", "flows", &[one]).contains("NaN"));
    }
}
