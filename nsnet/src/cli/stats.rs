//! `nsnet stats`: what each port has seen, and with `--watch` how much a second.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use ratatui::crossterm::cursor::MoveToPreviousLine;
use ratatui::crossterm::terminal::{Clear, ClearType, size};
use ratatui::crossterm::{QueueableCommand as _, queue};
use serde_json::{Value, json};

use super::Answer;
use super::args::seconds;
use super::capture::time;
use super::interrupt::Interrupt;
use super::output::{self, Format, Table};
use super::stream::{Stream, until_closed};
use crate::kernel::clock::{clock_offset, monotonic};
use crate::kernel::host::Host;
use crate::model::traffic::{Look, PortName, Rates, short};

/// Arguments of `stats`.
#[derive(Debug, Args)]
pub(super) struct StatsArgs {
    /// Print how much a second, again and again until interrupted: in place on a terminal, else a line for each port and
    /// time. Bits are those of whole Ethernet frames
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = seconds)]
    pub watch: Option<Duration>,
}

pub(super) fn stats(host: &Host, format: Format, args: &StatsArgs) -> Answer {
    match args.watch {
        Some(interval) if format == Format::Table && io::stdout().is_terminal() => until_closed(redraw(host, interval)),
        Some(interval) => until_closed(print_lines(host, format, interval)),
        None => totals(host, format),
    }
}

fn totals(host: &Host, format: Format) -> Answer {
    let mut table = Table::new(&[
        "network",
        "port",
        "ns",
        "rx_packets",
        "rx_bytes",
        "tx_packets",
        "tx_bytes",
        "flooded",
        "answered",
        "passed",
        "dropped",
        "xdp",
    ]);
    let look = look(host)?;
    let accelerated = match look.ports.is_empty() {
        true => Vec::new(),
        false => host.maps().accelerated(look.ports.iter().map(|(name, _)| name.port))?,
    };
    for ((PortName { network, interface, ns, port }, counters), accelerated) in look.ports.iter().zip(accelerated) {
        table.row([
            json!(network),
            json!(interface),
            json!(ns),
            json!(counters.received.packets),
            json!(counters.received.bytes),
            json!(counters.sent.packets),
            json!(counters.sent.bytes),
            json!(counters.flooded),
            json!(counters.answered),
            json!(counters.passed),
            json!(look.dropped(*port)),
            json!(accelerated),
        ]);
    }
    output::print(format, &table)?;
    Ok(ExitCode::SUCCESS)
}

/// What ports have seen up to now; nothing when there is no dataplane.
pub(super) fn look(host: &Host) -> anyhow::Result<Look> {
    if !host.dataplane.is_loaded() {
        return Ok(Look { at: monotonic()?, ..Look::default() });
    }
    Ok(host.maps().look(&host.state()?)?)
}

/// Looks every `interval` until interrupted, and calls `each` with what is new and what was before.
fn watch(
    host: &Host,
    interval: Duration,
    mut each: impl FnMut(&Look, &[Rates]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let interrupt = Interrupt::catch()?;
    let mut before = look(host)?;
    while !interrupt.comes_within(interval) {
        let now = look(host)?;
        each(&now, &now.since(&before))?;
        before = now;
    }
    Ok(())
}

/// The same for programs, and for people who keep it.
fn print_lines(host: &Host, format: Format, interval: Duration) -> anyhow::Result<()> {
    const COLUMNS: [&str; 9] =
        ["time", "network", "port", "ns", "rx_pps", "rx_bit_s", "tx_pps", "tx_bit_s", "dropped_pps"];
    let clock_offset = clock_offset()?;
    let mut stream = Stream::endless(format, &COLUMNS);
    watch(host, interval, |look, rates| {
        let now = time(clock_offset.wrapping_add(look.at), format);
        for ((PortName { network, interface, ns, .. }, _), rates) in look.ports.iter().zip(rates) {
            let Rates { received, sent, dropped } = rates;
            let numbers = [received.packets, received.bits, sent.packets, sent.bits, *dropped].map(number);
            let name = [json!(now), json!(network), json!(interface), json!(ns)];
            stream.row(&[&name[..], &numbers[..]].concat())?;
        }
        Ok(stream.flush()?)
    })
}

/// To a tenth, and whole where that is all of it.
fn number(number: f64) -> Value {
    let tenths = (number * 10.0).round();
    if tenths % 10.0 == 0.0 { json!((tenths / 10.0) as u64) } else { json!(tenths / 10.0) }
}

/// The same for people who look.
fn redraw(host: &Host, interval: Duration) -> anyhow::Result<()> {
    let mut place = Place::default();
    watch(host, interval, |look, rates| {
        let mut table = Table::new(&["network", "port", "ns", "rx_pps", "rx_bit/s", "tx_pps", "tx_bit/s", "dropped/s"]);
        for ((PortName { network, interface, ns, .. }, _), rates) in look.ports.iter().zip(rates) {
            let Rates { received, sent, dropped } = rates;
            let numbers = [received.packets, received.bits, sent.packets, sent.bits, *dropped];
            let [a, b, c, d, e] = numbers.map(|number| json!(short(number)));
            table.row([json!(network), json!(interface), json!(ns), a, b, c, d, e]);
        }
        Ok(place.print(&table.render())?)
    })
}

/// Lines of a terminal that are printed over again. What came before them, and the last of them, stay.
#[derive(Debug, Default)]
struct Place {
    /// How many lines were printed.
    lines: u16,
}

impl Place {
    fn print(&mut self, text: &str) -> io::Result<()> {
        // A line that does not fit would become two, and what does not fit below would scroll away.
        let (columns, rows) = size()?;
        let lines = fitting(text, columns.into(), usize::from(rows).saturating_sub(1));
        let mut stdout = output::stdout();
        if self.lines > 0 {
            stdout.queue(MoveToPreviousLine(self.lines.min(rows.saturating_sub(1))))?;
        }
        for line in &lines {
            queue!(stdout, Clear(ClearType::CurrentLine))?;
            writeln!(stdout, "{line}")?;
        }
        queue!(stdout, Clear(ClearType::FromCursorDown))?;
        self.lines = lines.len() as u16;
        stdout.flush()
    }
}

/// As much of a text as fits; what is left out is told.
fn fitting(text: &str, columns: usize, rows: usize) -> Vec<String> {
    let all: Vec<&str> = text.lines().collect();
    let cut = |line: &str| line.chars().take(columns).collect();
    if all.len() <= rows {
        return all.into_iter().map(cut).collect();
    }
    let shown = rows.saturating_sub(1);
    let more = format!("and {} more; without --watch all are listed", all.len() - shown);
    all.into_iter().take(shown).chain([more.as_str()].into_iter().take(rows)).map(cut).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told() {
        let text = "PORT  RX\na     1\nb     2\nc     3";
        assert_eq!(fitting(text, 80, 4).len(), 4);
        assert_eq!(fitting(text, 4, 10), ["PORT", "a   ", "b   ", "c   "]);
        assert_eq!(fitting(text, 10, 3), ["PORT  RX", "a     1", "and 2 more"]);
        assert_eq!(fitting(text, 10, 1), ["and 4 more"]);
        assert!(fitting(text, 10, 0).is_empty());
    }

    #[test]
    fn numbers_are_whole_or_have_tenths() {
        assert_eq!([0.0, 12.04, 12.06, 1e12].map(number), [json!(0), json!(12), json!(12.1), json!(1e12 as u64)]);
    }
}
