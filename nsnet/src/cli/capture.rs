//! `nsnet capture`: packets with what became of them, to a file that Wireshark reads, or in lines.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use ipnet::IpNet;
use nsnet_common::layout::{MAX_SNAPLEN, capture_modes};
use nsnet_common::verdict::DropReason;
use serde_json::{Value, json};

use super::Answer;
use super::args::{prefix, seconds};
use super::interrupt::Interrupt;
use super::output::{self, Format, Named};
use super::stream::{Stream, until_closed};
use crate::kernel::capture::{Request, Session};
use crate::kernel::clock::{clock_offset, monotonic};
use crate::kernel::host::Host;
use crate::model::capture::interfaces::Interfaces;
use crate::model::capture::join::Joiner;
use crate::model::capture::pcapng::Pcapng;
use crate::model::capture::{Fate, Filter, Record, Shown, Side, parse_capture_protocol};
use crate::model::headers::Protocol;
use crate::model::name::Name;

/// How often the ring is emptied.
const INTERVAL: Duration = Duration::from_millis(10);
/// How many events are read before what came of them is written.
const BATCH: usize = 1024;
/// How often it is looked which ports there are.
const RENEWAL: Duration = Duration::from_secs(1);
/// Bytes of the ring: some 2,000 packets of full length, or 13,000 short ones.
const RING: u32 = 1 << 22;

/// Arguments of `capture`.
#[derive(Debug, Args)]
pub(super) struct CaptureArgs {
    /// Write pcapng, which Wireshark and tshark read, to a file or (-) to stdout; lines of text when left out
    #[arg(short, long, value_name = "FILE|-")]
    pub write: Option<PathBuf>,
    /// What is dropped, with the reason in the packet's comment; with --nat this is what is captured by default
    #[arg(long)]
    pub drops: bool,
    /// What is translated or routed, before and after, with the same number
    #[arg(long)]
    pub nat: bool,
    /// Every packet that comes in at a port or an uplink
    #[arg(long)]
    pub all: bool,
    /// At this network's ports only
    #[arg(long)]
    pub network: Option<Name>,
    /// At this namespace's ports only
    #[arg(long, value_name = "NS")]
    pub ns: Option<Name>,
    /// From or to this address only; before or after a translation
    #[arg(long, value_name = "IP[/LEN]", value_parser = prefix)]
    pub host: Option<IpNet>,
    /// From or to this port only
    #[arg(long)]
    pub port: Option<u16>,
    /// tcp, udp, icmp, icmpv6, sctp, arp, or a number
    #[arg(long, alias = "protocol", value_parser = parse_capture_protocol)]
    pub proto: Option<Protocol>,
    /// End after this many packets; the two sides of one that is changed count once
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after this time
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub duration: Option<Duration>,
    /// Bytes of each packet
    #[arg(short, long, value_name = "BYTES", default_value_t = 2047, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SNAPLEN)))]
    pub snaplen: u32,
}

pub(super) fn capture(host: &Host, format: Format, args: &CaptureArgs) -> Answer {
    // The entry is renewed by a thread, which is to have these signals blocked.
    let interrupt = Interrupt::catch()?;
    let names = Interfaces::of(&host.state()?);
    let filter = args.filter(&names)?;
    let request = Request { modes: args.modes(), snaplen: args.snaplen, ring: RING };
    let session = Session::begin(host, request)?;
    // Not before: a file is not to be emptied for nothing.
    let sink = Sink::open(format, args.writer()?, args.snaplen)?;
    output::note("capturing; Ctrl-C ends it");
    let deadline = args.duration.map(|duration| Instant::now() + duration);
    let joiner = Joiner::default();
    let mut run = Run { host, args, session, joiner, filter, names, sink, captured: 0, written: 0, last: None };
    let outcome = run.until(|| interrupt.is_set() || deadline.is_some_and(|deadline| Instant::now() >= deadline));
    run.session.stop();
    let lost = run.session.lost()?;
    let outcome = outcome.and_then(|()| run.sink.finish(lost));
    match &outcome {
        Ok(()) => output::note(&summary(run.captured, lost)),
        // What lies in a buffer is not told from what is on its way.
        Err(_) => output::note(&format!("at least {} written before it ended", packets(run.written))),
    }
    until_closed(outcome)
}

fn packets(count: u64) -> String {
    if count == 1 { "1 packet".to_owned() } else { format!("{count} packets") }
}

fn summary(captured: u64, lost: u64) -> String {
    let packets = packets(captured);
    match lost {
        0 => format!("{packets} captured, nothing lost"),
        _ => format!("{packets} captured, {lost} events lost: too many for the ring; a smaller --snaplen makes room"),
    }
}

impl CaptureArgs {
    fn modes(&self) -> u32 {
        let chosen =
            [(self.drops, capture_modes::DROPS), (self.nat, capture_modes::NAT), (self.all, capture_modes::ALL)];
        let modes = chosen.iter().filter(|(is_chosen, _)| *is_chosen).fold(0, |modes, (_, mode)| modes | mode);
        if modes == 0 { capture_modes::DROPS | capture_modes::NAT } else { modes }
    }

    fn filter(&self, names: &Interfaces) -> anyhow::Result<Filter> {
        let (ns, network) = (self.ns.as_ref(), self.network.as_ref());
        let is_chosen = ns.is_some() || network.is_some();
        let interfaces = is_chosen.then(|| names.chosen(ns, network)).transpose()?;
        let interfaces = interfaces.map(|chosen| chosen.into_iter().collect());
        Ok(Filter { interfaces, host: self.host, port: self.port, protocol: self.proto })
    }

    /// Where pcapng goes, if anywhere.
    fn writer(&self) -> anyhow::Result<Option<Box<dyn Write>>> {
        let Some(path) = &self.write else { return Ok(None) };
        if path != Path::new("-") {
            // What others said is nobody's business.
            let file = File::options().create(true).truncate(true).write(true).mode(0o600).open(path);
            let file = file.with_context(|| format!("cannot write {}", path.display()))?;
            return Ok(Some(Box::new(Named::new(file, path.display().to_string()))));
        }
        if io::stdout().is_terminal() {
            bail!("cannot write pcapng to a terminal; say -w FILE, or pipe it: `nsnet capture -w - | tshark -r -`");
        }
        Ok(Some(Box::new(output::stdout())))
    }
}

/// A capture under way.
struct Run<'a> {
    host: &'a Host,
    args: &'a CaptureArgs,
    session: Session,
    joiner: Joiner,
    filter: Filter,
    names: Interfaces,
    sink: Sink,
    captured: u64,
    /// Those of them that are out of our hands.
    written: u64,
    /// The id of the last packet that is wanted, whose other side is to come.
    last: Option<u64>,
}

impl Run<'_> {
    /// Writes what is told until `is_over` says so, enough has been captured, or the dataplane is gone.
    fn until(&mut self, is_over: impl Fn() -> bool) -> anyhow::Result<()> {
        let mut looked = Instant::now();
        loop {
            let (is_over, is_on) = (is_over(), self.session.is_on());
            if is_over || !is_on {
                // What has been told by now is still written.
                self.session.stop();
            }
            if looked.elapsed() > RENEWAL {
                looked = Instant::now();
                self.look_again();
            }
            if self.write_all(is_over || !is_on)? || is_over {
                return Ok(());
            }
            if !is_on {
                bail!("the capture has ended: the dataplane was taken down");
            }
            sleep(INTERVAL);
        }
    }

    /// Ports may have come and gone. One that is gone meanwhile is still the one that was chosen.
    fn look_again(&mut self) {
        if let Ok(state) = self.host.state() {
            self.names = Interfaces::of(&state);
            self.filter = self.args.filter(&self.names).unwrap_or_else(|_gone| self.filter.clone());
        }
    }

    /// Writes all that is in the ring; `true` when that is enough. At the end, too, what waits for its other side.
    fn write_all(&mut self, is_end: bool) -> anyhow::Result<bool> {
        loop {
            let Self { session, joiner, filter, names, .. } = self;
            let read = session.read(BATCH, |event, bytes| joiner.push(Shown::new(event, bytes), filter, names));
            let is_empty = read < BATCH;
            let now = if is_end && is_empty { u64::MAX } else { monotonic()? };
            while let Some(record) = self.joiner.pop(now, &self.filter, &self.names) {
                if self.write(&record)? {
                    return self.flush().map(|()| true);
                }
            }
            if is_empty {
                self.flush()?;
                return Ok(self.last.is_some());
            }
        }
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.sink.flush()?;
        self.written = self.captured;
        Ok(())
    }

    /// Writes a record, if it is wanted; `true` when it was the last.
    fn write(&mut self, record: &Record) -> anyhow::Result<bool> {
        if let Some(last) = self.last {
            let is_other_side = record.id == last;
            return if is_other_side { self.sink.write(record, &self.names).map(|()| true) } else { Ok(false) };
        }
        self.sink.write(record, &self.names)?;
        self.captured += u64::from(record.is_new());
        if self.args.count != Some(self.captured) {
            return Ok(false);
        }
        if record.side == Side::Before {
            self.last = Some(record.id);
        }
        Ok(record.side != Side::Before)
    }
}

/// Where records go.
enum Sink {
    /// A line for each.
    Lines { stream: Stream, format: Format, clock_offset: u64 },
    /// A block for each.
    Blocks { pcapng: Pcapng, writer: BufWriter<Box<dyn Write>> },
}

/// The columns of the lines.
const COLUMNS: [&str; 8] = ["time", "id", "side", "interface", "direction", "packet", "reason", "what"];

impl Sink {
    fn open(format: Format, writer: Option<Box<dyn Write>>, snaplen: u32) -> anyhow::Result<Self> {
        let clock_offset = clock_offset()?;
        let Some(writer) = writer else {
            return Ok(Self::Lines { stream: Stream::endless(format, &COLUMNS), format, clock_offset });
        };
        let mut writer = BufWriter::new(writer);
        let (pcapng, head) = Pcapng::begin(clock_offset, snaplen)?;
        writer.write_all(&head)?;
        writer.flush()?;
        Ok(Self::Blocks { pcapng, writer })
    }

    fn write(&mut self, record: &Record, names: &Interfaces) -> anyhow::Result<()> {
        match self {
            Self::Blocks { pcapng, writer } => writer.write_all(&pcapng.packet(record, names)?)?,
            Self::Lines { stream, format, clock_offset } => {
                stream.row(&row(record, names, *format, *clock_offset))?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Blocks { writer, .. } => writer.flush()?,
            Self::Lines { stream, .. } => stream.flush()?,
        }
        Ok(())
    }

    fn finish(&mut self, lost: u64) -> anyhow::Result<()> {
        if let Self::Blocks { pcapng, writer } = self {
            writer.write_all(&pcapng.lost(lost, monotonic()?)?)?;
        }
        self.flush()
    }
}

fn row(record: &Record, names: &Interfaces, format: Format, clock_offset: u64) -> [Value; COLUMNS.len()] {
    let side = match record.side {
        Side::Only => Value::Null,
        Side::Before => json!("before"),
        Side::After => json!("after"),
    };
    let reason = match record.fate {
        Fate::Dropped(reason) => json!(reason.map(DropReason::label)),
        Fate::Forwarded | Fate::Passed | Fate::Unknown => Value::Null,
    };
    [
        json!(time(clock_offset.wrapping_add(record.shown.event.time), format)),
        json!(record.id),
        side,
        json!(names.name(record.ifindex)),
        json!(if record.is_inbound { "in" } else { "out" }),
        json!(record.shown.headers.to_string()),
        reason,
        json!(record.comment),
    ]
}

/// A time of day for people, in UTC; for programs, seconds since 1970.
pub(super) fn time(nanoseconds: u64, format: Format) -> String {
    let (seconds, rest) = (nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000);
    match format {
        Format::Json => format!("{seconds}.{rest:09}"),
        Format::Table => {
            let (minutes, hours) = (seconds / 60 % 60, seconds / 3600 % 24);
            format!("{hours:02}:{minutes:02}:{:02}.{:06}Z", seconds % 60, rest / 1000)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_can_be_read() {
        let noon = (1_700_000_000 - 1_700_000_000 % 86_400 + 12 * 3600 + 61) * 1_000_000_000 + 2_345_678;
        assert_eq!(time(noon, Format::Table), "12:01:01.002345Z");
        assert_eq!(time(1_700_000_000_000_000_042, Format::Json), "1700000000.000000042");
    }

    #[test]
    fn the_end_is_told() {
        assert_eq!(summary(1, 0), "1 packet captured, nothing lost");
        assert!(summary(2, 5).starts_with("2 packets captured, 5 events lost: "));
    }
}
