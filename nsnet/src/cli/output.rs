//! The one printer: every answer is a table for people or JSON for programs, of the same columns.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use serde_json::{Map, Value, json};

use crate::kernel::stderr;

/// How answers are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Rows under named columns.
#[derive(Debug)]
pub(super) struct Table {
    columns: &'static [&'static str],
    rows: Vec<Vec<Value>>,
}

impl Table {
    /// An empty table.
    pub(super) fn new(columns: &'static [&'static str]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row, a value for each column.
    pub(super) fn row<const N: usize>(&mut self, values: [Value; N]) {
        debug_assert_eq!(N, self.columns.len(), "a value for each column");
        self.rows.push(values.into());
    }

    /// The rows as objects, for an answer that is more than one table.
    pub(super) fn to_json(&self) -> Value {
        let object = |row: &Vec<Value>| {
            let fields = self.columns.iter().map(|column| (*column).to_owned()).zip(row.iter().cloned());
            Value::Object(fields.collect::<Map<_, _>>())
        };
        Value::Array(self.rows.iter().map(object).collect())
    }

    /// Whether there is no row.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table for people, without the last end of line.
    pub(super) fn render(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(NOTHING).set_header(self.columns.iter().map(|column| column.to_uppercase()));
        for row in &self.rows {
            table.add_row(row.iter().map(text));
        }
        if let Some(first) = table.column_mut(0) {
            first.set_padding((0, 1));
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n")
    }
}

/// Prints a table as the answer.
pub(super) fn print(format: Format, table: &Table) -> io::Result<()> {
    match format {
        Format::Table => line(&table.render()),
        Format::Json => print_json(&table.to_json()),
    }
}

/// Prints a single object as the answer: a table of one row for people.
pub(super) fn print_one(format: Format, table: &Table) -> io::Result<()> {
    match (format, table.to_json()) {
        (Format::Json, Value::Array(mut rows)) if rows.len() == 1 => print_json(&rows.remove(0)),
        _ => print(format, table),
    }
}

/// Prints JSON.
pub(super) fn print_json(value: &Value) -> io::Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// Something to write to, whose errors say what could not be written.
#[derive(Debug)]
pub(super) struct Named<W> {
    to: W,
    name: String,
}

impl<W: io::Write> Named<W> {
    /// `to`, which is called `name`.
    pub(super) fn new(to: W, name: impl Into<String>) -> Self {
        Self { to, name: name.into() }
    }

    /// An error of the same kind: a closed pipe is known by it.
    fn named(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("cannot write {}: {error}", self.name))
    }
}

impl<W: io::Write> io::Write for Named<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write(bytes).map_err(|error| self.named(&error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush().map_err(|error| self.named(&error))
    }
}

/// Where answers go.
pub(super) fn stdout() -> Named<io::Stdout> {
    Named::new(io::stdout(), "the answer")
}

/// Prints a line of the answer. A reader that has closed its end (`| head`) has read enough: that is no failure.
pub(super) fn line(text: &str) -> io::Result<()> {
    match writeln!(stdout(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Reports a failure on stderr, in one line.
pub(super) fn error(format: Format, message: &str) {
    let message: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    match format {
        Format::Table => note(&message),
        Format::Json => stderr::tell(json!({ "error": message })),
    }
}

/// Tells the user something beside the answer.
pub(super) fn note(message: &str) {
    stderr::tell(format_args!("nsnet: {message}"));
}

/// Does `work`; when it takes over a second and somebody watches, says so.
pub(super) fn with_progress<T>(what: &str, work: impl FnOnce() -> T) -> T {
    if !io::stderr().is_terminal() {
        return work();
    }
    let (done, is_done) = mpsc::channel::<()>();
    let message = what.to_owned();
    let watcher = thread::spawn(move || {
        if is_done.recv_timeout(Duration::from_secs(1)) == Err(mpsc::RecvTimeoutError::Timeout) {
            let spinner = indicatif::ProgressBar::new_spinner().with_message(message);
            spinner.enable_steady_tick(Duration::from_millis(120));
            // Ends when the sender is dropped, with the work.
            let _ended = is_done.recv();
            spinner.finish_and_clear();
        }
    });
    let result = work();
    drop(done);
    // The watcher cannot panic; if it did, the work is done all the same.
    let _joined = watcher.join();
    result
}

/// A value in a table.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(" "),
        Value::Bool(yes) => (if *yes { "yes" } else { "no" }).to_owned(),
        Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_is_named() {
        struct Full(io::ErrorKind);
        impl io::Write for Full {
            fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(self.0.into())
            }
        }
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::BrokenPipe] {
            let mut file = Named::new(Full(kind), "x.pcapng");
            for error in [writeln!(file, "a line").unwrap_err(), file.flush().unwrap_err()] {
                assert_eq!(error.kind(), kind);
                assert_eq!(error.to_string(), format!("cannot write x.pcapng: {kind}"));
            }
        }
    }

    #[test]
    fn a_table_and_its_json_have_the_same_columns() {
        let mut table = Table::new(&["ns", "ips", "learn"]);
        table.row([json!("red"), json!(["10.0.0.1", "fd::1"]), json!(false)]);
        assert_eq!(table.render(), "NS   IPS             LEARN\nred  10.0.0.1 fd::1  no");
        assert_eq!(table.to_json(), json!([{"ns": "red", "ips": ["10.0.0.1", "fd::1"], "learn": false}]));
        assert_eq!(Table::new(&["ns"]).to_json(), json!([]));
    }
}
