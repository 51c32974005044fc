//! An agent on a lab's host, and what it answers.

use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nsnet::lab::Lab;
use prometheus_parse::{Scrape, Value};

use super::bed::{Scratch, text, until};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// An agent that runs; ended when dropped.
#[derive(Debug)]
pub(crate) struct Agent {
    child: Child,
    /// Where it answers.
    pub(crate) socket: PathBuf,
    /// Where else.
    pub(crate) listen: Option<SocketAddr>,
    log: Scratch,
}

impl Agent {
    /// Starts one with more options, and waits until it has looked at everything once.
    pub(crate) fn start(lab: &Lab, options: &str) -> Result<Self> {
        Self::run(lab, options, |_command| {})
    }

    /// The same, started otherwise.
    pub(crate) fn run(lab: &Lab, options: &str, change: impl FnOnce(&mut Command)) -> Result<Self> {
        static AGENTS: AtomicU32 = AtomicU32::new(0);
        let number = AGENTS.fetch_add(1, Ordering::Relaxed);
        let log = std::env::temp_dir().join(format!("nsnet-agent-test-{}-{number}", std::process::id()));
        let words = ["-o", "json", "agent"].into_iter().chain(options.split_whitespace());
        let mut command = lab.command(words);
        command.stdout(Stdio::piped()).stderr(fs::File::create(&log)?);
        change(&mut command);
        let mut child = command.spawn().context("start the agent")?;
        let log = Scratch(log);
        let mut answer = String::new();
        for line in BufReader::new(child.stdout.take().context("no stdout")?).lines() {
            answer.push_str(&line?);
            if answer.ends_with('}') {
                break;
            }
        }
        let mut agent = Self { child, socket: PathBuf::new(), listen: None, log };
        let place: serde_json::Value =
            serde_json::from_str(&answer).with_context(|| format!("{answer:?}; {}", agent.said()))?;
        agent.listen = place["listen"].as_str().map(str::parse).transpose()?;
        agent.socket = text(&place["socket"])?.into();
        until(PATIENCE, || Ok(agent.get("/healthz")?.1.contains("\"checked_s_ago\": 0"))).context("the first look")?;
        Ok(agent)
    }

    /// Its number.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// What it has said on stderr.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log.0).unwrap_or_default()
    }

    /// Waits until it has said this.
    pub(crate) fn wait_for_word(&self, word: &str) -> Result<()> {
        let said = until(PATIENCE, || Ok(self.said().contains(word)));
        said.map(drop).with_context(|| format!("{word:?} is not in {:?}; {}", self.said(), self.troubles()))
    }

    /// What explains why something did not come about.
    fn troubles(&self) -> String {
        let figures = self.get("/metrics").map_or_else(|error| error.to_string(), |(_, text)| text);
        let own: Vec<&str> = figures.lines().filter(|line| line.starts_with("nsnet_agent_")).collect();
        own.join(", ")
    }

    /// Status and body of an answer.
    pub(crate) fn get(&self, path: &str) -> Result<(u16, String)> {
        ask(UnixStream::connect(&self.socket)?, &format!("GET {path} HTTP/1.0"))
    }

    /// Whether it says that all is well, and why not.
    pub(crate) fn health(&self) -> Result<(bool, Vec<String>)> {
        let (status, body) = self.get("/healthz")?;
        let value: serde_json::Value = serde_json::from_str(&body)?;
        let reasons: Vec<String> = serde_json::from_value(value["reasons"].clone())?;
        ensure!(status == if reasons.is_empty() { 200 } else { 503 }, "{status} with {body}");
        ensure!(value["status"] == if reasons.is_empty() { "ok" } else { "failing" }, "{body}");
        Ok((reasons.is_empty(), reasons))
    }

    /// Waits until it says that all is well.
    pub(crate) fn wait_for_health(&self) -> Result<Duration> {
        let waited = until(PATIENCE, || Ok(self.health()?.0));
        waited.with_context(|| format!("{:?}; it said {}; {}", self.health(), self.said(), self.troubles()))
    }

    /// Waits until a reason why not all is well has these words in it.
    pub(crate) fn wait_for_reason(&self, words: &str) -> Result<()> {
        let waited = until(PATIENCE, || Ok(self.health()?.1.iter().any(|reason| reason.contains(words))));
        waited.map(drop).with_context(|| format!("{words:?} is not in {:?}; {}", self.health(), self.troubles()))
    }

    /// Its figures.
    pub(crate) fn figures(&self) -> Result<Figures> {
        let (status, body) = self.get("/metrics")?;
        ensure!(status == 200, "{status}: {body}");
        Figures::read(body)
    }

    /// How long it has kept a processor busy: utime and stime of proc_pid_stat(5), in hundredths.
    pub(crate) fn processor_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let (_, fields) = stat.rsplit_once(") ").context("no name")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
    }

    /// Sends it a signal, and waits for its end.
    pub(crate) fn end_by(&mut self, signal: Signal) -> Result<ExitStatus> {
        kill(self.pid(), signal)?;
        let mut ended = None;
        until(PATIENCE, || {
            ended = self.child.try_wait()?;
            Ok(ended.is_some())
        })
        .with_context(|| format!("it does not end by {signal}; it said {}", self.said()))?;
        ended.context("no status")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.end_by(Signal::SIGTERM).is_err() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
        if std::thread::panicking() {
            eprintln!("the agent said: {}", self.said());
        }
    }
}

/// Asks by HTTP/1.0: status and body of the answer.
pub(crate) fn ask(mut stream: impl Read + Write, request: &str) -> Result<(u16, String)> {
    write!(stream, "{request}\r\nHost: agent\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no answer: {answer:?}"))?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// Figures, as a parser of Prometheus's text format reads them.
#[derive(Debug)]
pub(crate) struct Figures {
    scrape: Scrape,
    /// The text itself.
    pub(crate) text: String,
}

impl Figures {
    fn read(text: String) -> Result<Self> {
        let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned())))?;
        let samples = text.lines().filter(|line| !line.starts_with('#')).count();
        ensure!(scrape.samples.len() == samples, "{} of {samples} samples can be read", scrape.samples.len());
        ensure!(text.ends_with("# EOF\n"), "no end: {text}");
        Ok(Self { scrape, text })
    }

    /// Names of all samples.
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.scrape.samples.iter().map(|sample| sample.metric.as_str()).collect();
        names.dedup();
        names
    }

    /// The value of the one sample with these labels; `None` when there is none.
    pub(crate) fn find(&self, name: &str, labels: &[(&str, &str)]) -> Result<Option<f64>> {
        let is_it = |sample: &&prometheus_parse::Sample| {
            sample.metric == name && labels.iter().all(|(label, value)| sample.labels.get(label) == Some(value))
        };
        let mut found = self.scrape.samples.iter().filter(is_it);
        let Some(sample) = found.next() else { return Ok(None) };
        ensure!(found.next().is_none(), "{name} {labels:?} is more than one sample");
        match sample.value {
            Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value) => Ok(Some(value)),
            Value::Histogram(_) | Value::Summary(_) => anyhow::bail!("{name} is no single value"),
        }
    }

    /// The same, which must be there.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        self.find(name, labels)?.with_context(|| format!("no {name} {labels:?} in {}", self.text))
    }
}

/// A line of /proc/PID/status, of a thread.
pub(crate) fn status_line(status: &Path, key: &str) -> Result<String> {
    let text = fs::read_to_string(status)?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key} in {text}"))?;
    Ok(line.trim_start_matches(':').trim().to_owned())
}
