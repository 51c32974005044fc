//! `nsnet top` on so many columns and lines.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph, Row as TableRow, Table, TableState, Wrap};

use super::app::{App, Tab, View};

/// Columns are this far apart.
const GAP: u16 = 1;
/// From this height on there are two lines for what is known of a row.
const HIGH: u16 = 16;

const HELP: [(&str, &str); 9] = [
    ("Tab, 1-3", "ports, flows, drops"),
    ("Up, Down", "choose a row"),
    ("PgUp, PgDn", "a page"),
    ("s, S", "sort by next, last column"),
    ("r", "the other way round"),
    ("p, space", "pause, go on"),
    ("h, ?", "this"),
    ("q, Esc", "quit"),
    ("any key", "closes this"),
];

/// Draws all of it, and notes how many rows there is room for.
pub(super) fn draw(frame: &mut Frame<'_>, app: &mut App) {
    let details = if frame.area().height >= HIGH { 2 } else { 1 };
    let parts = [Constraint::Length(1), Constraint::Min(2), Constraint::Length(details), Constraint::Length(1)];
    let [head, middle, about, foot] = Layout::vertical(parts).areas(frame.area());
    // The first line of a table is its header.
    app.page = usize::from(middle.height.saturating_sub(1));
    head_line(frame, head, app);
    table(frame, middle, app.view());
    let known = app.trouble.as_deref().or(app.view().row().map(|row| row.about.as_str()));
    let style = if app.trouble.is_some() { Modifier::BOLD } else { Modifier::DIM };
    let known = Paragraph::new(known.unwrap_or_default()).wrap(Wrap { trim: true });
    frame.render_widget(known.style(style), about);
    let keys = ["q quit", "Tab pane", "s sort", "p pause", "h help", "r reverse", "Up/Down choose"];
    frame.render_widget(Paragraph::new(fitting(&keys, foot.width.into())).style(Modifier::REVERSED), foot);
    if app.has_help {
        help(frame);
    }
}

/// As many of the words as fit whole.
fn fitting(words: &[&str], width: usize) -> String {
    let mut line = String::new();
    for word in words {
        let longer = format!("{line}{}{word}", if line.is_empty() { " " } else { "  " });
        if longer.len() > width {
            break;
        }
        line = longer;
    }
    line
}

/// The tabs, and how it is as a whole.
fn head_line(frame: &mut Frame<'_>, area: Rect, app: &App) {
    let mut spans = Vec::new();
    for tab in Tab::ALL {
        let style = if tab == app.tab { Modifier::REVERSED | Modifier::BOLD } else { Modifier::empty() };
        spans.push(Span::styled(format!(" {} ", tab.title()), Style::new().add_modifier(style)));
    }
    let tabs = Line::from(spans);
    let taken = tabs.width() as u16 + GAP;
    frame.render_widget(tabs, area);
    let rest = Rect { x: area.x + taken.min(area.width), width: area.width.saturating_sub(taken), ..area };
    let pane = &app.view().pane;
    let state = if app.is_paused { "paused " } else { "" };
    let all = [
        format!("{}  {state}{}", pane.summary, pane.taken),
        format!("{state}{}", pane.taken),
        state.trim_end().to_owned(),
    ];
    let fits = all.into_iter().find(|text| text.chars().count() <= rest.width.into());
    frame.render_widget(Paragraph::new(fits.unwrap_or_default()).alignment(Alignment::Right), rest);
}

fn table(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let pane = &view.pane;
    if pane.rows.is_empty() {
        frame.render_widget(Paragraph::new("nothing yet").style(Modifier::DIM), area);
        return;
    }
    let shown = columns(view, area.width.into());
    let title = |column: usize| {
        let sign = match (column == view.order.column, view.order.is_reversed == pane.columns[column].is_number) {
            (false, _) => "",
            (true, false) => "v",
            (true, true) => "^",
        };
        format!("{}{sign}", pane.columns[column].title)
    };
    let aligned = |column: usize, text: String| {
        let alignment = if pane.columns[column].is_number { Alignment::Right } else { Alignment::Left };
        Line::from(text).alignment(alignment)
    };
    let header = TableRow::new(shown.iter().map(|(column, _)| aligned(*column, title(*column))));
    // Only what can be seen is made; the state would count on all of it.
    let page = usize::from(area.height.saturating_sub(1));
    let first = view.selected.saturating_sub(page.saturating_sub(1));
    let rows = pane.rows.iter().skip(first).take(page).map(|row| {
        TableRow::new(shown.iter().map(|(column, _)| aligned(*column, row.cells[*column].text().to_owned())))
    });
    let widths = shown.iter().map(|(_, width)| Constraint::Length(*width as u16));
    let table = Table::new(rows, widths)
        .header(header.style(Modifier::BOLD))
        .column_spacing(GAP)
        .row_highlight_style(Modifier::REVERSED);
    let mut state = TableState::new().with_selected(view.selected - first);
    frame.render_stateful_widget(table, area, &mut state);
}

/// The columns for which there is room, and how wide each is.
fn columns(view: &View, width: usize) -> Vec<(usize, usize)> {
    let pane = &view.pane;
    let widest = |column: usize| {
        let cells = pane.rows.iter().map(|row| row.cells[column].text().chars().count());
        // With the sign of the one that is sorted by.
        cells.max().unwrap_or(0).max(pane.columns[column].title.len() + 1)
    };
    let mut shown: Vec<(usize, usize)> = (0..pane.columns.len()).map(|column| (column, widest(column))).collect();
    let needed = |shown: &[(usize, usize)]| {
        shown.iter().map(|(_, width)| width + usize::from(GAP)).sum::<usize>().saturating_sub(usize::from(GAP))
    };
    let rank = |column: usize| pane.columns[column].rank;
    while needed(&shown) > width {
        let last = shown.iter().map(|(column, _)| rank(*column)).max().unwrap_or(0);
        match shown.iter().rposition(|(column, _)| rank(*column) == last && last > 0) {
            // What is left is what a row is known by: of the widest of it the end is cut off.
            None => {
                let Some((_, widest)) = shown.iter_mut().max_by_key(|(_, width)| *width).filter(|(_, w)| *w > 1) else {
                    break;
                };
                *widest -= 1;
            }
            Some(position) => drop(shown.remove(position)),
        }
    }
    shown
}

fn help(frame: &mut Frame<'_>) {
    let area = frame.area();
    let width = 40.min(area.width);
    let height = (HELP.len() as u16 + 2).min(area.height);
    let place = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    let lines: Vec<Line<'_>> = HELP.iter().map(|(keys, what)| Line::from(format!("{keys:>10}  {what}"))).collect();
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" Keys ")), place);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyCode;

    use super::super::app::tests::{ports, press};
    use super::*;

    fn app() -> App {
        let mut app = App::default();
        let many: Vec<String> = (0..40).map(|number| format!("veth-{number}")).collect();
        let rows: Vec<(&str, f64)> = many.iter().enumerate().map(|(bits, name)| (name.as_str(), bits as f64)).collect();
        app.show(Ok(ports(&rows)));
        app
    }

    fn drawn(app: &mut App, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, app)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(line).collect()
    }

    #[test]
    fn everything_fits_a_common_terminal() {
        let lines = drawn(&mut app(), 80, 24);
        assert_eq!(lines[0], " Ports  Flows  Drops                                         40 ports  12:00:00Z");
        assert_eq!(lines[1], "PORT    NS   RX pps RX bit/sv  TX pps  TX bit/s  DROP/s NETWORK");
        assert_eq!(lines[2], "veth-39 red    0.04        39       1         0       0 v-net-0");
        assert_eq!(lines[20].split_whitespace().next(), Some("veth-21"));
        assert_eq!(lines[21], "all about veth-39");
        assert_eq!(lines[23], " q quit  Tab pane  s sort  p pause  h help  r reverse  Up/Down choose");
    }

    #[test]
    fn a_small_terminal_shows_what_counts() {
        let mut app = app();
        let lines = drawn(&mut app, 40, 12);
        assert_eq!(lines[0], " Ports  Flows  Drops           12:00:00Z");
        assert_eq!(lines[1], "PORT    NS  RX bit/sv  TX bit/s  DROP/s");
        assert_eq!(lines[2], "veth-39 red        39         0       0");
        assert_eq!((lines[9].split(' ').next(), app.page), (Some("veth-32"), 8));
        assert_eq!(lines[10], "all about veth-39");
        assert_eq!(lines[11], " q quit  Tab pane  s sort  p pause");
    }

    #[test]
    fn the_chosen_row_is_in_sight() {
        let mut app = app();
        drawn(&mut app, 40, 12);
        press(&mut app, KeyCode::End);
        let lines = drawn(&mut app, 40, 12);
        assert_eq!((lines[9].split(' ').next(), lines[10].as_str()), (Some("veth-0"), "all about veth-0"));
    }

    #[test]
    fn no_size_is_too_small() {
        for (width, height) in [(1, 1), (2, 3), (10, 4), (200, 2), (3, 60), (300, 100)] {
            for keys in ["", "?", "pr", "2", "3s"] {
                let mut app = app();
                keys.chars().for_each(|key| press(&mut app, KeyCode::Char(key)));
                drawn(&mut app, width, height);
            }
        }
    }

    #[test]
    fn help_pause_and_trouble_are_seen() {
        let mut app = app();
        press(&mut app, KeyCode::Char('p'));
        app.trouble = Some("open map PORTS: no such file".to_owned());
        let lines = drawn(&mut app, 80, 24);
        assert!(lines[0].ends_with("40 ports  paused 12:00:00Z"), "{lines:?}");
        assert_eq!(lines[21], "open map PORTS: no such file");
        press(&mut app, KeyCode::Char('h'));
        for (width, height) in [(80, 24), (40, 12)] {
            let all = drawn(&mut app, width, height).join("\n");
            assert!(HELP.iter().all(|(keys, what)| all.contains(keys) && all.contains(what)), "{all}");
        }
        press(&mut app, KeyCode::Tab);
        press(&mut app, KeyCode::Tab);
        assert!(drawn(&mut app, 40, 12).join("\n").contains("nothing yet"));
    }

    #[test]
    fn long_values_are_cut_and_nothing_else_is_lost() {
        let mut app = App::default();
        app.show(Ok(ports(&[("an-interface-with-a-name-of-many-many-letters", 7.0)])));
        let lines = drawn(&mut app, 30, 8);
        assert_eq!(lines[1].split_whitespace().collect::<Vec<_>>(), ["PORT"]);
        assert_eq!(lines[2], "an-interface-with-a-name-of-ma");
    }
}
