//! Traffic by programs that everybody knows, so that figures can be set beside those of others: iperf3, nginx and wrk,
//! sockperf.

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::peer::Peer;
use super::plan::{Effort, Task};
use super::result::Load;
use super::site::Site;
use super::sockets::port;
use super::tool;
use crate::kernel::netns::NetNs;
use crate::lab::compare::{Sample, Trips};
use crate::lab::lane::{Cpus, pin};
use crate::lab::load::SMALL;

/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(5);
/// And a turn, which is of a second.
const TURN_PATIENCE: Duration = Duration::from_secs(15);
/// Connections that wrk keeps open at a time.
const CONNECTIONS: u32 = 32;

/// The programs that a load needs.
pub(super) fn tools(load: Load) -> &'static [&'static str] {
    match load {
        Load::Iperf1 | Load::Iperf4 => &[tool::IPERF3],
        Load::HttpKeepAlive | Load::HttpClose => &[tool::NGINX, tool::WRK],
        Load::Sockperf => &[tool::SOCKPERF],
        Load::Tcp
        | Load::Udp64
        | Load::Udp64Polled
        | Load::RoundTrips
        | Load::Connections
        | Load::Injected64
        | Load::Injected512
        | Load::Injected1400
        | Load::InjectedV6
        | Load::NewFlows
        | Load::ArpRequests
        | Load::UnknownMac => &[],
    }
}

/// A peer's way with a server at its end, which stops when this is dropped.
pub(super) struct Served {
    load: Load,
    sender: NetNs,
    receiver: NetNs,
    to: Ipv4Addr,
    port: u16,
    _server: Option<(Server, Option<TempDir>)>,
}

impl Served {
    /// Starts what has to run all the time.
    pub(super) fn start(task: &Task, peer: Peer, site: &Site, cpus: Cpus) -> Result<Served> {
        let (sender, receiver, to) = site.ends(task.way)?;
        // Apart from the ports of the lab's loads, on which connections may still be closing.
        let port = port(task.way, peer) + 10;
        let server = if matches!(task.load, Load::HttpKeepAlive | Load::HttpClose) {
            let (server, folder) = nginx(&receiver, port, cpus)?;
            Some((server, Some(folder)))
        } else if task.load == Load::Sockperf {
            Some((sockperf(&receiver, port, cpus)?, None))
        } else {
            None
        };
        Ok(Served { load: task.load, sender, receiver, to, port, _server: server })
    }

    /// One turn.
    pub(super) fn measure(&self, effort: Effort, cpus: Cpus) -> Result<Sample> {
        let seconds = effort.outer_slot().as_secs();
        let rate = match self.load {
            Load::Iperf1 => self.iperf(1, seconds, cpus)?,
            Load::Iperf4 => self.iperf(4, seconds, cpus)?,
            Load::HttpKeepAlive => self.wrk("", seconds, cpus)?,
            Load::HttpClose => self.wrk("-H Connection:close", seconds, cpus)?,
            Load::Sockperf => return self.sockperf(seconds, cpus),
            Load::Tcp
            | Load::Udp64
            | Load::Udp64Polled
            | Load::RoundTrips
            | Load::Connections
            | Load::Injected64
            | Load::Injected512
            | Load::Injected1400
            | Load::InjectedV6
            | Load::NewFlows
            | Load::ArpRequests
            | Load::UnknownMac => {
                bail!("{:?} has no program of its own", self.load)
            }
        };
        Ok(Sample { rate, ..Sample::default() })
    }

    /// Bytes per second that arrived.
    fn iperf(&self, streams: u32, seconds: u64, cpus: Cpus) -> Result<f64> {
        let (to, port) = (self.to, self.port);
        let line = format!("iperf3 -s -1 -p {port}");
        let server = spawn(&self.receiver, tool::command(&line)?, cpus.map(|(_, second)| second))?;
        until_listening(&self.receiver, port, TCP)?;
        let line = format!("iperf3 -c {to} -p {port} -t {seconds} -P {streams} -C cubic -J");
        let client = spawn(&self.sender, tool::command(&line)?, cpus.map(|(first, _)| first))?;
        let output = client.finish()?;
        drop(server);
        let answer: serde_json::Value = serde_json::from_str(&output).context("iperf3 printed no JSON")?;
        if let Some(error) = answer["error"].as_str() {
            bail!("iperf3: {error}");
        }
        let bits = answer["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(bits.context("iperf3 tells no rate")? / 8.0)
    }

    /// Requests per second.
    fn wrk(&self, header: &str, seconds: u64, cpus: Cpus) -> Result<f64> {
        let (to, port) = (self.to, self.port);
        let line = format!("wrk -t 1 -c {CONNECTIONS} -d {seconds}s {header} http://{to}:{port}/");
        let output = spawn(&self.sender, tool::command(&line)?, cpus.map(|(first, _)| first))?.finish()?;
        let rate = output.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
        rate.and_then(|rate| rate.trim().parse().ok()).context("wrk tells no rate")
    }

    /// Round trips of datagrams as long as those of the lab's own load.
    fn sockperf(&self, seconds: u64, cpus: Cpus) -> Result<Sample> {
        let (to, port) = (self.to, self.port);
        let line = format!("sockperf ping-pong -i {to} -p {port} -t {seconds} -m {SMALL} --full-rtt");
        let output = spawn(&self.sender, tool::command(&line)?, cpus.map(|(first, _)| first))?.finish()?;
        sockperf_sample(&output).context("sockperf tells no round trips")
    }
}

/// What sockperf says of its round trips, which it was asked not to halve.
fn sockperf_sample(output: &str) -> Option<Sample> {
    // Without those at the beginning and the end, which the percentiles leave out, too.
    let counted = output.lines().find_map(|line| line.split_once("[Valid Duration] RunTime=").map(|(_, rest)| rest))?;
    let seconds: f64 = counted.split_once(" sec")?.0.parse().ok()?;
    let trips: f64 = counted.split_once("ReceivedMessages=")?.1.trim().parse().ok()?;
    // In microseconds.
    let percentile = |which: &str| -> Option<f64> {
        let rest = output.lines().find_map(|line| line.split_once(&format!("percentile {which} =")))?.1;
        Some(rest.trim().parse::<f64>().ok()? / 1e6)
    };
    let each = Trips { median: percentile("50.000")?, p99: percentile("99.000")? };
    Some(Sample { rate: trips / seconds, trips: Some(each), ..Sample::default() })
}

/// A process, ended when dropped.
struct Server {
    process: Child,
    /// Which it has to end itself.
    has_children: bool,
}

impl Server {
    /// What it prints until it ends by itself, which it has to.
    fn finish(mut self) -> Result<String> {
        let begun = Instant::now();
        // What it prints is less than a pipe holds.
        while self.process.try_wait()?.is_none() {
            ensure!(begun.elapsed() < TURN_PATIENCE, "no end after {TURN_PATIENCE:?}");
            sleep(Duration::from_millis(2));
        }
        let mut text = String::new();
        if let Some(stdout) = &mut self.process.stdout {
            std::io::Read::read_to_string(stdout, &mut text)?;
        }
        self.process.wait()?;
        Ok(text)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It inherits that SIGTERM waits, as all threads here have it. One with children looks for it nevertheless.
        let signal = if self.has_children { Signal::SIGTERM } else { Signal::SIGKILL };
        // It may have ended already.
        if matches!(self.process.try_wait(), Ok(None)) {
            kill(Pid::from_raw(self.process.id() as i32), signal).ok();
        }
        self.process.wait().ok();
    }
}

fn spawn(ns: &NetNs, mut command: Command, cpu: Option<usize>) -> Result<Server> {
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    // A child inherits the namespace and the CPUs of the thread that starts it.
    let child = ns.run(|| pin(cpu).and_then(|()| Ok(command.spawn()?)))?;
    let process = child.with_context(|| format!("cannot run {}", command.get_program().display()))?;
    Ok(Server { process, has_children: false })
}

/// Where a namespace lists its sockets, and the state of those that wait for the first packet of somebody.
type Listed = ([&'static str; 2], &'static str);
const TCP: Listed = (["tcp", "tcp6"], "0A");
const UDP: Listed = (["udp", "udp6"], "07");

fn until_listening(ns: &NetNs, port: u16, (names, state): Listed) -> Result<()> {
    let begun = Instant::now();
    // Looked up rather than tried: a connection would be the one that the server waits for.
    let ends = [8, 32].map(|digits| format!(":{port:04X} {:0>digits$}:0000 {state}", ""));
    while begun.elapsed() < PATIENCE {
        let read = || names.map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")));
        let listens = |text: &String| ends.iter().any(|end| text.contains(end));
        if ns.run(read)?.iter().flatten().any(listens) {
            return Ok(());
        }
        sleep(Duration::from_millis(2));
    }
    bail!("no server listens at port {port} after {PATIENCE:?}")
}

fn sockperf(ns: &NetNs, port: u16, cpus: Cpus) -> Result<Server> {
    let line = format!("sockperf server -p {port}");
    let server = spawn(ns, tool::command(&line)?, cpus.map(|(_, second)| second))?;
    until_listening(ns, port, UDP)?;
    Ok(server)
}

fn nginx(ns: &NetNs, port: u16, cpus: Cpus) -> Result<(Server, TempDir)> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let path = folder.path().display();
    let configuration = format!(
        "daemon off;\nworker_processes 1;\npid {path}/pid;\nerror_log stderr crit;\nevents {{ worker_connections 1024; }}\n\
         http {{\naccess_log off;\nclient_body_temp_path {path}/a;\nproxy_temp_path {path}/b;\nfastcgi_temp_path {path}/c;\n\
         uwsgi_temp_path {path}/d;\nscgi_temp_path {path}/e;\nkeepalive_requests 1000000;\n\
         server {{ listen {port}; location / {{ return 200 \"nsnet\\n\"; }} }}\n}}\n"
    );
    let file = folder.path().join("nginx.conf");
    fs::write(&file, configuration).with_context(|| format!("cannot write {}", file.display()))?;
    let line = format!("nginx -p {path} -e stderr -c {}", file.display());
    let mut server = spawn(ns, tool::command(&line)?, cpus.map(|(_, second)| second))?;
    server.has_children = true;
    until_listening(ns, port, TCP)?;
    Ok((server, folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_sockperf_says() {
        let output = "sockperf: [Total Run] RunTime=1.000 sec; Warm up time=400 msec; SentMessages=49816; ReceivedMessages=49815\n\
            sockperf: [Valid Duration] RunTime=0.500 sec; SentMessages=28371; ReceivedMessages=28370\n\
            sockperf: Summary: Round trip is 18.119 usec\n\
            sockperf: ---> percentile 99.900 = 1831.530\n\
            sockperf: ---> percentile 99.000 =   16.600\n\
            sockperf: ---> percentile 50.000 =   12.100\n";
        let sample = sockperf_sample(output).unwrap();
        assert!((sample.rate - 56_740.0).abs() < 0.1, "{sample:?}");
        let trips = sample.trips.unwrap();
        assert!((trips.median - 12.1e-6).abs() < 1e-9 && (trips.p99 - 16.6e-6).abs() < 1e-9, "{trips:?}");
        assert_eq!(sockperf_sample("sockperf: No valid observations found\n").map(|sample| sample.rate), None);
    }
}
