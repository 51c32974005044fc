//! A capture that runs, and its file as tshark reads it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nsnet::lab::Lab;

use super::bed::Scratch;

/// A packet of a file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shot {
    pub(crate) interface: String,
    pub(crate) id: u64,
    /// Whether it came in there; else it left.
    pub(crate) is_inbound: bool,
    /// Whether its checksum is marked as one that is still to be filled in.
    pub(crate) is_partial: bool,
    /// `TC_ACT_*`.
    pub(crate) verdict: i64,
    /// Bytes on the wire, and in the file.
    pub(crate) length: usize,
    pub(crate) kept: usize,
    pub(crate) comment: String,
    pub(crate) source: String,
    pub(crate) destination: String,
    /// As tshark judges its transport checksum: 0 is wrong, 1 is right.
    pub(crate) checksum: Option<u8>,
    /// Nanoseconds since 1970.
    pub(crate) time: u64,
}

impl Shot {
    pub(crate) fn is_before(&self) -> bool {
        self.comment.starts_with(&format!("id {} before: ", self.id))
    }

    pub(crate) fn is_after(&self) -> bool {
        self.comment.starts_with(&format!("id {} after: ", self.id))
    }
}

/// A capture under way.
#[derive(Debug)]
pub(crate) struct Film {
    child: Child,
    stderr: BufReader<ChildStderr>,
    file: Scratch,
}

impl Film {
    /// Starts `nsnet capture` with these arguments, into a file, and waits until it captures.
    pub(crate) fn start(lab: &Lab, arguments: &str) -> Result<Self> {
        static FILMS: AtomicU32 = AtomicU32::new(0);
        let name = format!("nsnet-film-{}-{}", lab.name("x"), FILMS.fetch_add(1, Ordering::Relaxed));
        let file = Scratch(std::env::temp_dir().join(name));
        let path = file.0.to_str().context("a path of text")?;
        let words = ["capture", "-w", path].into_iter().chain(arguments.split_whitespace());
        // @red is the lab's namespace red.
        let words = words.map(|word| word.strip_prefix('@').map_or_else(|| word.to_owned(), |short| lab.name(short)));
        let mut child = lab.command(words).stderr(Stdio::piped()).spawn().context("run nsnet")?;
        let mut stderr = BufReader::new(child.stderr.take().context("no stderr")?);
        let mut line = String::new();
        stderr.read_line(&mut line)?;
        if !line.contains("capturing") {
            child.wait()?;
            bail!("`nsnet capture {arguments}`: {line}");
        }
        Ok(Self { child, stderr, file })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.file.0
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }

    /// Waits for its end; how it ended, and the rest of what it told.
    pub(crate) fn wait(&mut self) -> Result<(ExitStatus, String)> {
        let mut told = String::new();
        self.stderr.read_to_string(&mut told)?;
        Ok((self.child.wait()?, told))
    }

    /// Ends it, once what was sent has been told of: its packets. Nothing may be lost.
    pub(crate) fn end(mut self) -> Result<Vec<Shot>> {
        // Events are in the ring when the packet leaves; what a kernel sends by itself may be a moment later.
        std::thread::sleep(std::time::Duration::from_millis(100));
        self.signal(Signal::SIGINT)?;
        let (status, told) = self.wait()?;
        ensure!(status.success() && told.contains("nothing lost"), "{status}: {told}");
        shots(&self.file.0)
    }
}

impl Drop for Film {
    fn drop(&mut self) {
        // It has ended when the test went well.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Fields of a packet, in this order.
const FIELDS: [&str; 15] = [
    "frame.interface_name",
    "frame.packet_id",
    "frame.packet_flags",
    "frame.verdict.ebpf_tc",
    "frame.len",
    "frame.cap_len",
    "frame.comment",
    "ip.src",
    "ip.dst",
    "ipv6.src",
    "ipv6.dst",
    "arp.src.proto_ipv4",
    "tcp.checksum.status",
    "udp.checksum.status",
    "frame.time_epoch",
];

/// tshark, asked for the fields, with what is to be read still to be said.
pub(crate) fn tshark() -> Command {
    let mut command = Command::new("tshark");
    // Fragments as they are; checksums judged, and IPv4's too.
    for option in ["tcp.check_checksum:TRUE", "udp.check_checksum:TRUE", "ip.defragment:FALSE", "ipv6.defragment:FALSE"]
    {
        command.args(["-o", option]);
    }
    command.args(["-n", "-T", "fields", "-E", "separator=/t", "-E", "occurrence=f"]);
    for field in FIELDS {
        command.args(["-e", field]);
    }
    command
}

/// The packets of a file.
pub(crate) fn shots(file: &Path) -> Result<Vec<Shot>> {
    let output = tshark().arg("-r").arg(file).output().context("run tshark (cargo xtask setup installs it)")?;
    ensure!(output.status.success(), "tshark: {}", String::from_utf8_lossy(&output.stderr));
    read(&String::from_utf8(output.stdout)?)
}

/// The packets that tshark has printed.
pub(crate) fn read(text: &str) -> Result<Vec<Shot>> {
    text.lines().map(|line| shot(line).with_context(|| format!("tshark printed {line:?}"))).collect()
}

fn shot(line: &str) -> Result<Shot> {
    let values: Vec<&str> = line.split('\t').collect();
    let [
        interface,
        id,
        flags,
        verdict,
        length,
        kept,
        comment,
        v4_source,
        v4_destination,
        v6_source,
        v6_destination,
        arp,
        tcp,
        udp,
        time,
    ] = values[..]
    else {
        bail!("{} fields", values.len());
    };
    let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16)?;
    let first = |values: &[&str]| values.iter().find(|value| !value.is_empty()).unwrap_or(&"").to_string();
    let (seconds, rest) = time.split_once('.').context("a time without a fraction")?;
    ensure!(rest.len() == 9, "a time of {} digits", rest.len());
    Ok(Shot {
        interface: interface.to_owned(),
        id: id.parse()?,
        is_inbound: flags & 3 == 1,
        is_partial: flags & 1 << 9 != 0,
        verdict: if verdict.is_empty() { i64::MIN } else { verdict.parse()? },
        length: length.parse()?,
        kept: kept.parse()?,
        comment: comment.to_owned(),
        source: first(&[v4_source, v6_source, arp]),
        destination: first(&[v4_destination, v6_destination]),
        checksum: first(&[tcp, udp]).parse().ok(),
        time: seconds.parse::<u64>()? * 1_000_000_000 + rest.parse::<u64>()?,
    })
}
