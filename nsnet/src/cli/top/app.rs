//! What `nsnet top` shows, and how keys change it.

use std::cmp::Ordering;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// What there is to see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tab {
    #[default]
    Ports,
    Flows,
    Drops,
}

impl Tab {
    pub(super) const ALL: [Self; 3] = [Self::Ports, Self::Flows, Self::Drops];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Ports => "Ports",
            Self::Flows => "Flows",
            Self::Drops => "Drops",
        }
    }

    fn moved(self, by: usize) -> Self {
        Self::ALL[(self as usize + by) % Self::ALL.len()]
    }
}

/// A column of a pane.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) title: &'static str,
    /// Where there is no room for all, those with the highest go first.
    pub(super) rank: u8,
    /// Whether it holds numbers: they are at the right of it, and the largest is first.
    pub(super) is_number: bool,
}

/// A value of a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Text(String),
    /// A number, and how it is shown.
    Number(f64, String),
}

impl Cell {
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Number(_, text) => text,
        }
    }

    /// Texts by the alphabet, numbers from the largest down.
    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Number(one, _), Self::Number(other, _)) => other.total_cmp(one),
            (one, other) => one.text().cmp(other.text()),
        }
    }
}

/// A row of a pane.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// By what it is found again when it has moved.
    pub(super) id: String,
    /// A value for each column.
    pub(super) cells: Vec<Cell>,
    /// What else is known of it.
    pub(super) about: String,
}

/// By which column rows are sorted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    pub(super) column: usize,
    pub(super) is_reversed: bool,
}

impl Order {
    /// Sorts; rows of equal value stay in an order of their own.
    pub(super) fn sort(self, rows: &mut [Row]) {
        rows.sort_by(|one, other| {
            let by_value = one.cells[self.column].compare(&other.cells[self.column]);
            let by_value = if self.is_reversed { by_value.reverse() } else { by_value };
            by_value.then_with(|| one.id.cmp(&other.id))
        });
    }
}

/// What a tab shows.
#[derive(Debug)]
pub(super) struct Pane {
    pub(super) columns: &'static [Column],
    pub(super) rows: Vec<Row>,
    /// All rows in a few words.
    pub(super) summary: String,
    /// When that was so.
    pub(super) taken: String,
}

/// A tab's pane, and where in it the user is.
#[derive(Debug)]
pub(super) struct View {
    pub(super) pane: Pane,
    pub(super) order: Order,
    /// Number of the row that is chosen; 0 when there is none.
    pub(super) selected: usize,
}

impl View {
    fn new(column: usize) -> Self {
        let pane = Pane { columns: &[], rows: Vec::new(), summary: String::new(), taken: String::new() };
        Self { pane, order: Order { column, is_reversed: false }, selected: 0 }
    }

    /// The row that is chosen.
    pub(super) fn row(&self) -> Option<&Row> {
        self.pane.rows.get(self.selected)
    }

    fn sort(&mut self) {
        let chosen = self.row().map(|row| row.id.clone());
        self.order.sort(&mut self.pane.rows);
        self.find(chosen.as_deref());
    }

    /// Chooses the row with this name; where it is gone, the one in its place.
    fn find(&mut self, id: Option<&str>) {
        // Whoever has moved nowhere sees what is first, and not what was.
        let moved = id.filter(|_| self.selected > 0);
        let found = moved.and_then(|id| self.pane.rows.iter().position(|row| row.id == id));
        self.selected = found.unwrap_or(self.selected).min(self.pane.rows.len().saturating_sub(1));
    }

    fn step(&mut self, by: isize) {
        let last = self.pane.rows.len().saturating_sub(1);
        self.selected = self.selected.saturating_add_signed(by).min(last);
    }
}

/// The whole of it.
#[derive(Debug)]
pub(super) struct App {
    pub(super) tab: Tab,
    views: [View; 3],
    pub(super) is_paused: bool,
    pub(super) has_help: bool,
    pub(super) is_over: bool,
    /// Why there is nothing new.
    pub(super) trouble: Option<String>,
    /// Rows on a page.
    pub(super) page: usize,
}

impl Default for App {
    fn default() -> Self {
        // By what comes in; by who spoke last; by how many.
        let views = [3, 5, 3].map(View::new);
        let tab = Tab::default();
        Self { tab, views, is_paused: false, has_help: false, is_over: false, trouble: None, page: 1 }
    }
}

impl App {
    /// What the chosen tab shows.
    pub(super) fn view(&self) -> &View {
        &self.views[self.tab as usize]
    }

    fn view_mut(&mut self) -> &mut View {
        &mut self.views[self.tab as usize]
    }

    /// Has the chosen tab show this, or why there is nothing new.
    pub(super) fn show(&mut self, pane: anyhow::Result<Pane>) {
        match pane {
            Ok(pane) => {
                let view = self.view_mut();
                let chosen = view.row().map(|row| row.id.clone());
                view.pane = pane;
                view.order.sort(&mut view.pane.rows);
                view.find(chosen.as_deref());
                self.trouble = None;
            }
            Err(error) => self.trouble = Some(format!("{error:#}")),
        }
    }

    /// A key was pressed.
    #[expect(clippy::wildcard_enum_match_arm, reason = "a keyboard has many keys, of which a few mean something here")]
    pub(super) fn press(&mut self, key: KeyEvent) {
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        if self.has_help && !(is_control && key.code == KeyCode::Char('c')) {
            // Any key.
            self.has_help = false;
            return;
        }
        let page = self.page.max(1) as isize;
        match key.code {
            KeyCode::Char('c') if is_control => self.is_over = true,
            KeyCode::Char('q') | KeyCode::Esc => self.is_over = true,
            KeyCode::Tab | KeyCode::Right => self.tab = self.tab.moved(1),
            KeyCode::BackTab | KeyCode::Left => self.tab = self.tab.moved(Tab::ALL.len() - 1),
            KeyCode::Char(number @ '1'..='3') => self.tab = Tab::ALL[number as usize - '1' as usize],
            KeyCode::Up | KeyCode::Char('k') => self.view_mut().step(-1),
            KeyCode::Down | KeyCode::Char('j') => self.view_mut().step(1),
            KeyCode::PageUp => self.view_mut().step(-page),
            KeyCode::PageDown => self.view_mut().step(page),
            KeyCode::Home => self.view_mut().step(isize::MIN),
            KeyCode::End => self.view_mut().step(isize::MAX),
            KeyCode::Char('s') => self.sort_by_next(1),
            KeyCode::Char('S') => self.sort_by_next(self.view().pane.columns.len().saturating_sub(1)),
            KeyCode::Char('r') => {
                let view = self.view_mut();
                view.order.is_reversed = !view.order.is_reversed;
                view.sort();
            }
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('h' | '?') | KeyCode::F(1) => self.has_help = true,
            _ => {}
        }
    }

    fn sort_by_next(&mut self, by: usize) {
        let view = self.view_mut();
        let columns = view.pane.columns.len().max(1);
        view.order = Order { column: (view.order.column + by) % columns, is_reversed: false };
        view.sort();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::panes::PORT_COLUMNS;
    use super::*;

    /// Ports of these names, which receive as many bits a second.
    pub(crate) fn ports(rows: &[(&str, f64)]) -> Pane {
        let row = |&(name, bits): &(&str, f64)| {
            let number = |number: f64| Cell::Number(number, crate::model::traffic::short(number));
            let text = |text: &str| Cell::Text(text.to_owned());
            let cells = vec![
                text(name),
                text("red"),
                number(bits / 1000.0),
                number(bits),
                number(1.0),
                number(0.0),
                number(0.0),
                text("v-net-0"),
            ];
            Row { id: name.to_owned(), cells, about: format!("all about {name}") }
        };
        let rows: Vec<Row> = rows.iter().map(row).collect();
        let summary = format!("{} ports", rows.len());
        Pane { columns: &PORT_COLUMNS, rows, summary, taken: "12:00:00Z".to_owned() }
    }

    fn app() -> App {
        let mut app = App::default();
        app.show(Ok(ports(&[("a", 1.0), ("b", 9e9), ("c", 50.0)])));
        app
    }

    pub(crate) fn press(app: &mut App, code: KeyCode) {
        app.press(KeyEvent::new(code, KeyModifiers::NONE));
    }

    fn names(app: &App) -> Vec<&str> {
        app.view().pane.rows.iter().map(|row| row.id.as_str()).collect()
    }

    #[test]
    fn most_is_first_and_s_sorts_by_the_next_column() {
        let mut app = app();
        assert_eq!(names(&app), ["b", "c", "a"]);
        press(&mut app, KeyCode::Char('r'));
        assert_eq!(names(&app), ["a", "c", "b"]);
        // All equal in the next column, and in the one before by the rate of frames.
        press(&mut app, KeyCode::Char('s'));
        assert_eq!(names(&app), ["a", "b", "c"]);
        press(&mut app, KeyCode::Char('S'));
        press(&mut app, KeyCode::Char('S'));
        assert_eq!((app.view().order.column, names(&app)), (2, vec!["b", "c", "a"]));
        for _ in 0..PORT_COLUMNS.len() {
            press(&mut app, KeyCode::Char('s'));
        }
        assert_eq!(app.view().order.column, 2);
    }

    #[test]
    fn a_chosen_row_stays_chosen_when_it_moves() {
        let mut app = app();
        press(&mut app, KeyCode::Down);
        assert_eq!(app.view().row().unwrap().id, "c");
        app.show(Ok(ports(&[("a", 1.0), ("b", 9.0), ("c", 50.0)])));
        assert_eq!((names(&app), app.view().selected), (vec!["c", "b", "a"], 0));
        app.show(Ok(ports(&[("b", 9.0), ("c", 5.0)])));
        assert_eq!((names(&app), app.view().selected), (vec!["b", "c"], 0), "the first is the first");
        press(&mut app, KeyCode::End);
        app.show(Ok(ports(&[("b", 9.0)])));
        assert_eq!(app.view().selected, 0, "what is gone has the last in its place");
        app.show(Ok(ports(&[])));
        assert!(app.view().row().is_none());
    }

    #[test]
    fn keys_move_within_the_rows() {
        let mut app = app();
        app.page = 2;
        for (code, at) in [
            (KeyCode::Up, 0),
            (KeyCode::PageDown, 2),
            (KeyCode::Down, 2),
            (KeyCode::Char('k'), 1),
            (KeyCode::Home, 0),
            (KeyCode::End, 2),
            (KeyCode::PageUp, 0),
        ] {
            press(&mut app, code);
            assert_eq!(app.view().selected, at, "{code:?}");
        }
    }

    #[test]
    fn tabs_go_round_and_keep_their_place() {
        let mut app = app();
        press(&mut app, KeyCode::End);
        let mut seen = Vec::new();
        for code in [KeyCode::Tab, KeyCode::Right, KeyCode::Tab, KeyCode::BackTab, KeyCode::Left, KeyCode::Char('1')] {
            press(&mut app, code);
            seen.push(app.tab);
        }
        assert_eq!(seen, [Tab::Flows, Tab::Drops, Tab::Ports, Tab::Drops, Tab::Flows, Tab::Ports]);
        assert_eq!(app.view().selected, 2);
    }

    #[test]
    fn help_goes_by_any_key_and_the_end_comes_by_three() {
        let mut app = app();
        press(&mut app, KeyCode::Char('?'));
        assert!(app.has_help);
        press(&mut app, KeyCode::Char('q'));
        assert!(!app.has_help && !app.is_over);
        press(&mut app, KeyCode::Char('p'));
        assert!(app.is_paused);
        for code in [KeyCode::Char('q'), KeyCode::Esc] {
            let mut app = self::app();
            press(&mut app, code);
            assert!(app.is_over);
        }
        press(&mut app, KeyCode::Char('h'));
        app.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(app.is_over);
    }

    #[test]
    fn what_went_wrong_leaves_what_was_seen() {
        let mut app = app();
        app.show(Err(anyhow::anyhow!("open map PORTS").context("look")));
        assert_eq!((app.trouble.as_deref(), names(&app).len()), (Some("look: open map PORTS"), 3));
        app.show(Ok(ports(&[])));
        assert!(app.trouble.is_none());
    }
}
