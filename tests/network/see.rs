//! What is to be seen of a running dataplane: `stats --watch`, `top`, hits of published ports.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nsnet::lab::{HOST_IP, TcpServer, UdpEcho, udp};
use serde_json::{Value, json};

use super::bed::{Bed, V4, text};
use super::terminal::OnTerminal;

/// Has red ask blue, twenty times a second, as long as `work` takes; how often it did.
fn with_traffic<T>(bed: &Bed, work: impl FnOnce() -> Result<T>) -> Result<(T, u64)> {
    let is_over = AtomicBool::new(false);
    let echo = bed.at("blue").run(|| UdpEcho::start("0.0.0.0:7".parse()?))?;
    let to = (bed.at("blue").v4, 7).into();
    scope(|scope| {
        let asking = scope.spawn(|| {
            let mut asked = 0;
            while !is_over.load(Ordering::Relaxed) {
                let outcome = bed.at("red").run(|| udp::exchange(to, 400, 1, Duration::from_millis(500)))?;
                asked += u64::from(outcome.echoed);
                sleep(Duration::from_millis(50));
            }
            anyhow::Ok(asked)
        });
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        let asked = asking.join().expect("the sender has not panicked")?;
        drop(echo);
        Ok((done?, asked))
    })
}

fn bed() -> Result<Bed> {
    Bed::new(V4, &["red", "blue"])
}

#[test]
fn rates_are_those_of_the_traffic_and_end_by_a_signal() -> Result<()> {
    let bed = bed()?;
    let port = bed.at("red").port.clone();
    let before = bed.stats()?[&port];
    let ((lines, status), asked) = with_traffic(&bed, || {
        let mut command = bed.lab.command(["-o", "json", "stats", "--watch", "0.25"]);
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        // The host's port, two namespaces' and an uplink, eight times.
        let lines: Vec<Value> =
            stdout.by_ref().take(32).map(|line| Ok(serde_json::from_str(&line?)?)).collect::<Result<_>>()?;
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
        for line in stdout {
            serde_json::from_str::<Value>(&line?).context("half a line")?;
        }
        Ok((lines, child.wait()?))
    })?;
    assert_eq!(status.code(), Some(0));
    let of_red: Vec<&Value> = lines.iter().filter(|line| line["port"] == port.as_str()).collect();
    assert_eq!(of_red.len(), 8);
    let time = |line: &Value| -> Result<f64> { Ok(text(&line["time"])?.parse()?) };
    let mut frames = 0.0;
    for pair in of_red.windows(2) {
        let took = time(pair[1])? - time(pair[0])?;
        ensure!((0.2..5.0).contains(&took), "a look every 0.25 s came after {took}");
        let (packets, bits) = (pair[1]["rx_pps"].as_f64().context("no rate")?, pair[1]["rx_bit_s"].as_f64());
        frames += packets * took;
        // ARP is shorter, and may be among them.
        let bits = bits.context("no rate")?;
        ensure!(
            bits <= (packets + 0.05) * 442.0 * 8.0 && bits >= (packets - 0.05) * 40.0 * 8.0,
            "{bits} bit/s, {packets} pps"
        );
    }
    let counted = bed.stats()?[&port] - before;
    ensure!(frames > 5.0 && frames <= counted.rx as f64 + 1.0, "{frames} seen, {counted:?}, {asked} asked");
    assert_eq!(of_red[0]["ns"], json!(bed.lab.name("red")));
    Ok(())
}

#[test]
fn a_closed_pipe_ends_the_rates_without_a_word() -> Result<()> {
    let bed = bed()?;
    for format in ["json", "table"] {
        let mut command = bed.lab.command(["-o", format, "stats", "--watch", "0.05"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut first = String::new();
        BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut first)?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success() && output.stderr.is_empty(), "{format}: {output:?}");
        ensure!(first.starts_with(if format == "json" { "{\"time\":" } else { "TIME" }), "{first}");
    }
    let wrong = bed.lab.try_nsnet("stats --watch 0")?;
    assert_eq!(wrong.status.code(), Some(2));
    Ok(())
}

#[test]
fn on_a_terminal_rates_stay_in_their_place() -> Result<()> {
    let bed = bed()?;
    let (seen, _asked) = with_traffic(&bed, || {
        let mut terminal = OnTerminal::run(&bed.lab.command(["stats", "--watch", "0.2"]), 100, 10)?;
        let is_busy =
            |line: &str| line.contains("-red") && line.split_whitespace().nth(3).is_some_and(|pps| pps != "0");
        terminal.until("a rate", |seen| seen.lines().any(is_busy))?;
        let written = terminal.written.len();
        terminal.until("one more time", |_| true)?;
        let start = Instant::now();
        while terminal.written.len() < 4 * written && start.elapsed() < Duration::from_secs(10) {
            terminal.seen()?;
            sleep(Duration::from_millis(50));
        }
        // As from a keyboard.
        terminal.type_in("\x03")?;
        let (status, seen) = terminal.end()?;
        ensure!(status.code() == Some(0), "{status}: {seen}");
        Ok(seen)
    })?;
    // Header and three ports, once.
    assert_eq!(seen.matches("NETWORK").count(), 1, "{seen}");
    assert_eq!(seen.lines().filter(|line| line.starts_with("v-net-0")).count(), 3, "{seen}");
    Ok(())
}

#[test]
fn the_view_shows_ports_flows_and_drops() -> Result<()> {
    let bed = bed()?;
    let mac = bed.at("blue").mac;
    // A frame that red may not send, as it is blue's.
    bed.at("red").run(|| {
        let socket = nsnet::lab::RawSocket::open(&bed.at("red").ifname)?;
        let mut frame = vec![0xff; 6];
        frame.extend(mac.0);
        frame.extend([0x88, 0xb5]);
        frame.resize(60, 0);
        socket.send(&frame)
    })?;
    let ((), _asked) = with_traffic(&bed, || {
        let mut terminal = OnTerminal::run(&bed.lab.command(["top", "--interval", "0.3"]), 80, 24)?;
        let red = bed.lab.name("red");
        let is_busy =
            |line: &str| line.contains(&red) && line.split_whitespace().nth(3).is_some_and(|bits| bits != "0");
        terminal.until("red's rate", |seen| seen.lines().any(is_busy))?;
        terminal.type_in("h")?;
        terminal.until("help", |seen| seen.contains("sort by next"))?;
        terminal.type_in("x3")?;
        let seen = terminal.until("red's drop", |seen| seen.contains("spoofed-mac"))?;
        ensure!(seen.contains("REASON") && seen.contains(&bed.at("red").port), "{seen}");
        terminal.type_in("p")?;
        terminal.until("the pause", |seen| seen.contains("paused"))?;
        terminal.type_in("\t")?;
        terminal.resize(40, 12)?;
        let seen = terminal.until("a narrow screen", |seen| seen.contains("p pause") && !seen.contains("h help"))?;
        ensure!(seen.lines().count() <= 12 && seen.contains("RX bit/s"), "{seen}");
        terminal.type_in("q")?;
        let (status, seen) = terminal.end()?;
        ensure!(status.code() == Some(0), "{status}: {seen}");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn the_view_shows_flows() -> Result<()> {
    let mut bed = Bed::new("--subnet 192.168.15.0/24 --masquerade", &["red"])?;
    let mut terminal = OnTerminal::run(&bed.lab.command(["top", "--interval", "0.2"]), 100, 20)?;
    terminal.type_in("2")?;
    terminal.until("no flow", |seen| seen.contains("nothing yet") && seen.contains("0 flows"))?;
    ensure!(bed.at("red").reaches(nsnet::lab::WAN_IP.parse()?)?, "red does not get out");
    let seen = terminal.until("a flow", |seen| seen.contains("1 flow, 1 established"))?;
    ensure!(seen.contains(nsnet::lab::WAN_IP) && seen.contains("icmp"), "{seen}");
    // What goes away below it is told, or gone; it does not end.
    bed.lab.nsnet("network del v-net-0 --force")?;
    terminal.until("no flow any more", |seen| seen.contains("0 flows"))?;
    terminal.type_in("\x1b")?;
    assert_eq!(terminal.end()?.0.code(), Some(0));
    bed.add_network("v-net-0", V4)
}

#[test]
fn signals_leave_the_terminal_as_it_was() -> Result<()> {
    let bed = bed()?;
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut terminal = OnTerminal::run(&bed.lab.command(["top"]), 80, 24)?;
        terminal.until("the view", |seen| seen.contains("q quit"))?;
        terminal.signal(signal)?;
        let (status, seen) = terminal.end()?;
        ensure!(status.code() == Some(0), "{signal}: {status} {seen}");
    }
    Ok(())
}

#[test]
fn the_view_wants_a_terminal() -> Result<()> {
    let bed = bed()?;
    for line in ["top", "-o json top"] {
        let output = bed.lab.try_nsnet(line)?;
        let complaint = super::world::complaint(&output)?;
        ensure!(output.status.code() == Some(1) && complaint.contains("stats --watch"), "{line}: {complaint}");
    }
    // And one that can draw.
    let top = bed.lab.command(["top"]);
    let mut dumb = Command::new("env");
    dumb.arg("TERM=dumb").arg(top.get_program()).args(top.get_args());
    let (status, told) = OnTerminal::run(&dumb, 200, 24)?.end()?;
    ensure!(status.code() == Some(1) && told.contains("(TERM=dumb)") && !told.contains('\x1b'), "{status}: {told}");
    Ok(())
}

/// The hits of each published port, by what it was given as.
fn hits(bed: &Bed) -> Result<Vec<(String, u64)>> {
    let rows = bed.lab.json("publish list")?;
    let rows = rows.as_array().context("`publish list` is no array")?;
    let row = |row: &Value| Ok((text(&row["host_ports"])?.to_owned(), row["hits"].as_u64().context("no hits")?));
    rows.iter().map(row).collect()
}

#[test]
fn hits_are_the_flows_that_came_of_a_published_port() -> Result<()> {
    let bed = Bed::new("--subnet 192.168.15.0/24 --masquerade", &["red", "blue"])?;
    bed.lab.nsnet("publish add @red 5300-5301:53-54/udp 8080:80")?;
    let expected = |udp: u64, tcp: u64| vec![("5300-5301".to_owned(), udp), ("8080".to_owned(), tcp)];
    assert_eq!(hits(&bed)?, expected(0, 0));
    let red = bed.at("red");
    let _echoes = red.run(|| Ok([UdpEcho::start("0.0.0.0:53".parse()?)?, UdpEcho::start("0.0.0.0:54".parse()?)?]))?;
    let _server = red.run(|| TcpServer::banner("0.0.0.0:80".parse()?, "hello"))?;
    let host: std::net::IpAddr = HOST_IP.parse()?;
    // Five datagrams of one port are one flow; the next call is from another.
    let ask = |port| -> Result<()> {
        let outcome = udp::exchange((host, port).into(), 50, 5, Duration::from_secs(2))?;
        ensure!(outcome.echoed == 5, "{outcome}");
        Ok(())
    };
    let connect = || -> Result<()> {
        let mut said = String::new();
        std::net::TcpStream::connect((host, 8080))?.read_to_string(&mut said)?;
        ensure!(said == "hello", "{said}");
        Ok(())
    };
    bed.lab.within("wan", || ask(5300))??;
    assert_eq!(hits(&bed)?, expected(1, 0));
    // Of a range, ports count together.
    bed.lab.within("wan", || ask(5301).and_then(|()| connect()))??;
    assert_eq!(hits(&bed)?, expected(2, 1));
    bed.at("blue").run(|| ask(5300).and_then(|()| connect()))?;
    assert_eq!(hits(&bed)?, expected(3, 2));
    // The host's own are led there at the socket, and are no flows.
    bed.lab.within("host", connect)??;
    assert_eq!(hits(&bed)?, expected(3, 2));
    bed.lab.nsnet("publish del @red 8080:80")?;
    bed.lab.nsnet("publish add @red 8080:80")?;
    assert_eq!(hits(&bed)?, expected(3, 0), "what is published anew begins at 0");
    Ok(())
}
