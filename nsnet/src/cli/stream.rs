//! Answers that are too long, or take too long, to be held as a [`Table`](super::output::Table): printed row by row,
//! with the same columns and the same look.

use std::io::{self, BufWriter, Stdout};
use std::process::ExitCode;

use serde_json::Value;

use super::Answer;
use super::output::{self, Format, Named, text};

/// Rows that are held back to see how wide the columns are.
const HELD: usize = 500;

/// Rows on their way out.
#[derive(Debug)]
pub(super) struct Stream<W: io::Write = BufWriter<Named<Stdout>>> {
    to: W,
    shape: Shape,
    columns: &'static [&'static str],
    printed: u64,
    /// Width of each column, in characters: that of its widest value so far.
    widths: Vec<usize>,
    /// The header and the first rows of a table.
    held: Vec<Vec<String>>,
}

/// What the rows become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Table,
    /// One array.
    Array,
    /// An object on each line (JSON lines), for answers without an end.
    Lines,
}

impl Stream {
    /// To stdout.
    pub(super) fn new(format: Format, columns: &'static [&'static str]) -> Self {
        let shape = match format {
            Format::Table => Shape::Table,
            Format::Json => Shape::Array,
        };
        Self::to(BufWriter::new(output::stdout()), shape, columns)
    }

    /// The same for an answer without an end.
    pub(super) fn endless(format: Format, columns: &'static [&'static str]) -> Self {
        let stream = Self::new(format, columns);
        let shape = if stream.shape == Shape::Array { Shape::Lines } else { stream.shape };
        Self { shape, ..stream }
    }
}

impl<W: io::Write> Stream<W> {
    fn to(to: W, shape: Shape, columns: &'static [&'static str]) -> Self {
        let header: Vec<String> = columns.iter().map(|column| column.to_uppercase()).collect();
        let widths = header.iter().map(String::len).collect();
        Self { to, shape, columns, printed: 0, widths, held: vec![header] }
    }

    /// Prints a row, a value for each column.
    pub(super) fn row(&mut self, values: &[Value]) -> io::Result<()> {
        debug_assert_eq!(values.len(), self.columns.len(), "a value for each column");
        self.printed += 1;
        match self.shape {
            Shape::Table => {
                let cells = values.iter().map(text).collect::<Vec<_>>();
                for (width, cell) in self.widths.iter_mut().zip(&cells) {
                    *width = cell.chars().count().max(*width);
                }
                self.held.push(cells);
                if self.held.len() > HELD { self.release() } else { Ok(()) }
            }
            Shape::Array => {
                self.to.write_all(if self.printed == 1 { b"[\n  " } else { b",\n  " })?;
                self.object(values)
            }
            Shape::Lines => {
                self.object(values)?;
                self.to.write_all(b"\n")
            }
        }
    }

    /// Prints what was held back.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.release()?;
        self.to.flush()
    }

    /// Ends the answer.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.shape == Shape::Array {
            self.to.write_all(if self.printed == 0 { b"[]\n" } else { b"\n]\n" })?;
        }
        self.flush()
    }

    fn object(&mut self, values: &[Value]) -> io::Result<()> {
        for (position, (column, value)) in self.columns.iter().zip(values).enumerate() {
            write!(self.to, "{}\"{column}\":", if position == 0 { '{' } else { ',' })?;
            serde_json::to_writer(&mut self.to, value)?;
        }
        self.to.write_all(b"}")
    }

    fn release(&mut self) -> io::Result<()> {
        if self.shape != Shape::Table {
            return Ok(());
        }
        for cells in self.held.drain(..) {
            let mut line = String::new();
            for (cell, width) in cells.iter().zip(&self.widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(self.to, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A reader that has closed its end (`| head`) has read enough: that is no failure.
pub(super) fn until_closed(outcome: anyhow::Result<()>) -> Answer {
    let is_closed = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    match outcome {
        Err(error) if error.downcast_ref().is_some_and(is_closed) => Ok(ExitCode::SUCCESS),
        other => other.map(|()| ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn printed(shape: Shape, rows: u64) -> String {
        let mut bytes = Vec::new();
        let mut stream = Stream::to(&mut bytes, shape, &["ns", "flows"]);
        for row in 0..rows {
            stream.row(&[json!(if row == 0 { "red" } else { "a-longer-one" }), json!(row)]).unwrap();
        }
        stream.finish().unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_table_looks_as_others_do() {
        assert_eq!(printed(Shape::Table, 2), "NS            FLOWS\nred           0\na-longer-one  1\n");
        assert_eq!(printed(Shape::Table, 0), "NS  FLOWS\n");
        let long = printed(Shape::Table, 3 * HELD as u64);
        assert_eq!(long.lines().count(), 3 * HELD + 1);
        assert!(long.lines().skip(2).all(|line| line.starts_with("a-longer-one  ")));
    }

    #[test]
    fn json_can_be_read() {
        for rows in [0, 1, 2] {
            let array: Value = serde_json::from_str(&printed(Shape::Array, rows)).unwrap();
            assert_eq!(array.as_array().unwrap().len() as u64, rows);
        }
        assert_eq!(printed(Shape::Lines, 2), "{\"ns\":\"red\",\"flows\":0}\n{\"ns\":\"a-longer-one\",\"flows\":1}\n");
        assert_eq!(printed(Shape::Lines, 0), "");
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let closed = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(until_closed(Err(anyhow::Error::from(closed))).is_ok());
        assert!(until_closed(Err(anyhow::Error::from(io::Error::from(io::ErrorKind::StorageFull)))).is_err());
    }
}
