//! Traffic by programs that everybody knows, so that figures can be set beside those of others: iperf3, nginx and wrk.

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use super::peer::Peer;
use super::plan::{Effort, Task};
use super::result::Load;
use super::site::Site;
use super::sockets::port;
use super::tool;
use crate::kernel::netns::NetNs;
use crate::lab::compare::Sample;
use crate::lab::lane::{Cpus, pin};

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
        | Load::ArpRequests => &[],
    }
}

/// A peer's way with a server at its end, which stops when this is dropped.
pub(super) struct Served {
    load: Load,
    sender: NetNs,
    receiver: NetNs,
    to: Ipv4Addr,
    port: u16,
    _server: Option<(Server, TempDir)>,
}

impl Served {
    /// Starts what has to run all the time.
    pub(super) fn start(task: &Task, peer: Peer, site: &Site, cpus: Cpus) -> Result<Served> {
        let (sender, receiver, to) = site.ends(task.way)?;
        // Apart from the ports of the lab's loads, on which connections may still be closing.
        let port = port(task.way, peer) + 10;
        let is_http = matches!(task.load, Load::HttpKeepAlive | Load::HttpClose);
        let server = if is_http { Some(nginx(&receiver, port, cpus)?) } else { None };
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
            | Load::ArpRequests => {
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
        until_listening(&self.receiver, port)?;
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
}

/// A process, ended when dropped.
struct Server(Child);

impl Server {
    /// What it prints until it ends by itself, which it has to.
    fn finish(mut self) -> Result<String> {
        let begun = Instant::now();
        // What it prints is less than a pipe holds.
        while self.0.try_wait()?.is_none() {
            ensure!(begun.elapsed() < TURN_PATIENCE, "no end after {TURN_PATIENCE:?}");
            sleep(Duration::from_millis(2));
        }
        let mut text = String::new();
        if let Some(stdout) = &mut self.0.stdout {
            std::io::Read::read_to_string(stdout, &mut text)?;
        }
        self.0.wait()?;
        Ok(text)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGTERM, so that it ends its own children; it may have ended already.
        let process = nix::unistd::Pid::from_raw(self.0.id() as i32);
        if matches!(self.0.try_wait(), Ok(None)) {
            nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGTERM).ok();
        }
        self.0.wait().ok();
    }
}

fn spawn(ns: &NetNs, mut command: Command, cpu: Option<usize>) -> Result<Server> {
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    // A child inherits the namespace and the CPUs of the thread that starts it.
    let child = ns.run(|| pin(cpu).and_then(|()| Ok(command.spawn()?)))?;
    Ok(Server(child.with_context(|| format!("cannot run {}", command.get_program().display()))?))
}

fn until_listening(ns: &NetNs, port: u16) -> Result<()> {
    let begun = Instant::now();
    // Looked up rather than tried: a connection would be the one that the server waits for.
    let ends =
        [format!(":{port:04X} 00000000:0000 0A"), format!(":{port:04X} 00000000000000000000000000000000:0000 0A")];
    while begun.elapsed() < PATIENCE {
        let read = || ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")));
        let listens = |text: &String| ends.iter().any(|end| text.contains(end));
        if ns.run(read)?.iter().flatten().any(listens) {
            return Ok(());
        }
        sleep(Duration::from_millis(2));
    }
    bail!("no server listens at port {port} after {PATIENCE:?}")
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
    let server = spawn(ns, tool::command(&line)?, cpus.map(|(_, second)| second))?;
    until_listening(ns, port)?;
    Ok((server, folder))
}
