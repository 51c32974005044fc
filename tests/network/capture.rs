//! `nsnet capture`, read back by tshark, and the last packets of `nsnet drops`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use nsnet::lab::ping::ping;
use nsnet::lab::{TcpServer, UdpEcho, tcp, udp};
use nsnet_common::verdict::DropReason;
use serde_json::Value;

use super::bed::{Bed, Counters, Scratch, V4, growth, until};
use super::film::{Film, Shot, read, shots, tshark};
use super::outside_bed::{FAMILIES, Outside, host, nobody, wan};
use super::packet::Packet;
use super::traffic::{Amount, exchange, exchange_at};

const SECOND: Duration = Duration::from_secs(1);
/// `TC_ACT_SHOT` and `TC_ACT_REDIRECT`.
const SHOT: i64 = 2;
const REDIRECT: i64 = 7;

/// Both sides of each packet that was changed; every one must have both.
fn pairs(shots: &[Shot]) -> Result<Vec<(&Shot, &Shot)>> {
    let side = |is_it: fn(&Shot) -> bool| -> Result<BTreeMap<u64, &Shot>> {
        let sides: BTreeMap<u64, &Shot> = shots.iter().filter(|shot| is_it(shot)).map(|shot| (shot.id, shot)).collect();
        ensure!(sides.len() == shots.iter().filter(|shot| is_it(shot)).count(), "an id stands for two packets");
        Ok(sides)
    };
    let (before, after) = (side(Shot::is_before)?, side(Shot::is_after)?);
    let ids = |sides: &BTreeMap<u64, &Shot>| sides.keys().copied().collect::<BTreeSet<_>>();
    ensure!(ids(&before) == ids(&after), "one side only: {:?}", ids(&before).symmetric_difference(&ids(&after)));
    Ok(before.into_iter().map(|(id, shot)| (shot, after[&id])).collect())
}

/// What the ports have counted, three times, each with when that was.
fn counted(bed: &Bed) -> Result<Vec<Sample>> {
    let sample = |_| {
        let from = wall()?;
        let stats = bed.stats()?;
        std::thread::sleep(Duration::from_millis(20));
        anyhow::Ok(Sample { from, stats, to: wall()? })
    };
    (0..3).map(sample).collect()
}

/// Counters that were read between two times, nanoseconds since 1970.
struct Sample {
    from: u64,
    stats: Stats,
    to: u64,
}

fn wall() -> Result<u64> {
    Ok(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos() as u64)
}

/// The first sample while which no packet came by: kernels look after their neighbours whenever they like.
fn quiet<'a>(samples: &'a [Sample], shots: &[Shot]) -> Result<&'a Sample> {
    let is_quiet = |sample: &&Sample| shots.iter().all(|shot| shot.time < sample.from || shot.time > sample.to);
    samples.iter().find(is_quiet).context("the network is never quiet")
}

/// Fails when the packets of `--all` are not what these ports have counted. What is not changed is shown once, with where it
/// goes to; what is flooded goes to every other port, and to no uplink.
fn check_counts(shots: &[Shot], before: &[Sample], after: &[Sample], ports: &[&str]) -> Result<()> {
    let (before, after) = (quiet(before, shots)?, quiet(after, shots)?);
    let shots: Vec<&Shot> = shots.iter().filter(|shot| (before.to..after.from).contains(&shot.time)).collect();
    for port in ports {
        let grown = after.stats[*port] - before.stats[*port];
        let here =
            |is_inbound| shots.iter().filter(|shot| shot.interface == *port && shot.is_inbound == is_inbound).count();
        let goes_here = |shot: &&&Shot| match shot.comment.strip_prefix("to ") {
            Some("every port of the network") => shot.interface != *port && *port != "uplink",
            Some(rest) => rest.split([' ', ';']).next() == Some(port),
            None => false,
        };
        let (inbound, sent) = (here(true), here(false) + shots.iter().filter(goes_here).count());
        println!("{port}: {inbound} in, {sent} out");
        ensure!((inbound as u64, sent as u64) == (grown.rx, grown.tx), "{port}: {inbound} in, {sent} out: {grown:?}");
    }
    Ok(())
}

type Stats = BTreeMap<String, Counters>;

/// Through source NAT and a published port, in every form: both sides, as many as were counted, with right checksums or
/// ones that are marked.
#[test]
fn both_sides_of_every_translation() -> Result<()> {
    let bed = Outside::new()?;
    bed.lab.nsnet("publish add @c1 8080:80/tcp 8080:80/udp")?;
    let (c1, world) = (bed.at("c1"), bed.at("wan"));
    let film = Film::start(&bed.lab, "--all --snaplen 65535")?;
    let before = counted(&bed)?;
    for v6 in FAMILIES {
        exchange_at(c1, world, wan(v6), Amount::Little)?;
        let inside = SocketAddr::new(c1.ips()[usize::from(v6)], 80);
        let published = SocketAddr::new(host(v6), 8080);
        let server = c1.run(|| TcpServer::start(inside))?;
        world.run(|| tcp::transfer(published, 100_000))?;
        let echo = c1.run(|| UdpEcho::start(inside))?;
        let outcome = world.run(|| udp::exchange(published, 100, 3, SECOND))?;
        ensure!(outcome.echoed == 3, "{outcome}");
        drop((server, echo));
    }
    let after = counted(&bed)?;
    let shots = film.end()?;
    let pairs = pairs(&shots)?;
    let inside: BTreeSet<String> = c1.ips().iter().map(ToString::to_string).collect();
    let outside: BTreeSet<String> = FAMILIES.map(|v6| host(v6).to_string()).into();
    let (mut out, mut back) = (0, 0);
    for (before, after) in &pairs {
        ensure!((before.verdict, after.verdict) == (REDIRECT, REDIRECT), "{before:?} {after:?}");
        ensure!(before.is_inbound && !after.is_inbound && before.time <= after.time, "{before:?} {after:?}");
        // What a namespace asks for its gateway's address is answered, and not translated.
        if after.interface == before.interface {
            ensure!(before.comment.ends_with("asks, and is answered here"), "{before:?}");
            continue;
        }
        let (ports, hidden) = if before.interface == c1.port {
            out += 1;
            ((&c1.port[..], "uplink"), (&before.source, &after.source))
        } else {
            back += 1;
            (("uplink", &c1.port[..]), (&after.destination, &before.destination))
        };
        ensure!((&before.interface[..], &after.interface[..]) == ports, "{before:?} {after:?}");
        ensure!(inside.contains(hidden.0) && outside.contains(hidden.1), "{before:?} {after:?}");
        let became = format!("{} > {}", after.source, after.destination);
        let is_said = before.comment.contains(" becomes ") && after.comment.contains(" was ");
        ensure!(is_said || before.comment.contains("cut"), "{before:?}, not {became}");
    }
    ensure!(out > 200 && back > 200, "only {out} packets out, {back} in");
    check_counts(&shots, &before, &after, &["uplink", &c1.port])?;
    let wrong: Vec<_> = shots.iter().filter(|shot| shot.checksum == Some(0) && !shot.is_partial).collect();
    ensure!(wrong.is_empty(), "checksums are wrong, and nothing says why: {wrong:?}");
    let explained = "checksum not filled in yet (offload)";
    ensure!(shots.iter().all(|shot| shot.is_partial == shot.comment.contains(explained)), "flags and comments differ");
    ensure!(shots.iter().any(|shot| shot.is_partial), "no checksum was offloaded");
    ensure!(shots.iter().any(|shot| shot.comment.contains("segments of")), "nothing was GSO");
    Ok(())
}

/// Each drop with its reason and its bytes; as many as are counted.
#[test]
fn drops_with_their_reason() -> Result<()> {
    let bed = Outside::with("", &["c1", "c2"], &["g1"])?;
    let (g1, c1) = (bed.end("g1")?, bed.at("c1"));
    let (mut frames, mut reasons) = (Vec::new(), BTreeSet::new());
    let remote = nobody(false, 7);
    let mut add = |reason: DropReason, frame: Vec<u8>| {
        reasons.insert(reason.label());
        frames.push((reason.label(), frame));
    };
    let frame = |packet: Packet| packet.frame(g1.mac, g1.gateway);
    let udp = || Packet::udp(g1.endpoint(false, 4000), SocketAddr::new(remote, 53), b"who is it");
    let spoofed = Packet::udp(SocketAddr::new(c1.v4.into(), 1), SocketAddr::new(remote, 53), b"somebody else");
    add(DropReason::SpoofedIpv4, frame(spoofed));
    add(DropReason::SpoofedMac, udp().frame(c1.mac, g1.gateway));
    add(DropReason::TtlExceeded, frame(Packet { hops: 1, ..udp() }));
    add(DropReason::NoConnection, frame(Packet::tcp(g1.endpoint(false, 4000), (remote, 80).into(), 0x10, 1, 1, b"")));
    add(DropReason::UnknownDestination, udp().frame(g1.mac, nsnet_common::wire::Mac([2, 9, 9, 9, 9, 9])));
    add(DropReason::EtherType, [&g1.gateway.0, &g1.mac.0, &[0x88, 0xcc, 1, 2, 3][..]].concat());
    add(DropReason::BadIpv4, [&frame(udp())[..16], &[0xff; 40]].concat());
    add(DropReason::Martian, frame(Packet::udp(g1.endpoint(false, 1), "240.0.0.1:53".parse()?, b"")));
    add(DropReason::Tagged, [&frame(udp())[..12], &[0x81, 0x00, 0x00, 0x05], &frame(udp())[12..]].concat());
    let film = Film::start(&bed.lab, "--drops")?;
    let before = bed.drops()?;
    for (_, frame) in &frames {
        g1.socket.send(frame)?;
    }
    let count = || Ok(growth(&before, &bed.drops()?).values().sum::<u64>() >= frames.len() as u64);
    until(5 * SECOND, count).ok();
    let counted = growth(&before, &bed.drops()?);
    let shots = film.end()?;
    let mut told: BTreeMap<(String, String), u64> = BTreeMap::new();
    for shot in &shots {
        let reason = shot.comment.strip_prefix("dropped, ").and_then(|rest| rest.split(':').next());
        let reason = reason.with_context(|| format!("{shot:?} is no drop"))?;
        *told.entry((shot.interface.clone(), reason.to_owned())).or_default() += 1;
        let sentence = DropReason::ALL.iter().find(|one| one.label() == reason).map(|one| one.sentence());
        ensure!(sentence.is_some_and(|sentence| shot.comment.contains(sentence)), "{shot:?}");
        ensure!(shot.verdict == SHOT && shot.is_inbound && shot.interface == g1.port, "{shot:?}");
    }
    assert_eq!(told, counted, "what is told, and what is counted");
    assert_eq!(told.keys().map(|(_, reason)| &reason[..]).collect::<BTreeSet<_>>(), reasons);
    for (reason, frame) in &frames {
        let is_it = |shot: &&Shot| shot.comment.starts_with(&format!("dropped, {reason}:"));
        let shot = shots.iter().find(is_it).with_context(|| format!("no {reason}"))?;
        assert_eq!((shot.length, shot.kept), (frame.len(), frame.len()), "{reason}");
    }
    last_packets(&bed, &frames)
}

/// `nsnet drops` shows the last packet of each reason.
fn last_packets(bed: &Outside, frames: &[(&str, Vec<u8>)]) -> Result<()> {
    let g1 = bed.at("g1");
    let rows = bed.lab.json("drops")?;
    for (reason, frame) in frames {
        let row = rows.as_array().context("no rows")?.iter().find(|row| row["reason"] == **reason);
        let row = row.with_context(|| format!("no row of {reason}"))?;
        assert_eq!((&row["port"], &row["ns"]), (&Value::from(&g1.port[..]), &Value::from(bed.lab.name("g1"))), "{row}");
        ensure!(row["age_s"].as_u64().is_some_and(|age| age < 20), "{row}");
        let last = bed.lab.json(&format!("drops --last {reason}"))?;
        let hex: String = frame.iter().take(128).map(|byte| format!("{byte:02x}")).collect();
        // Several reasons, one frame each: what was kept is it.
        assert_eq!((&last["hex"], &last["length"]), (&Value::from(hex), &Value::from(frame.len())), "{reason}");
        assert_eq!(last["packet"], row["last"], "{reason}");
    }
    let text = bed.lab.nsnet("drops --last spoofed-ipv4")?;
    ensure!(text.contains("The IPv4 source is not an address of the port.") && text.contains("  0000  "), "{text}");
    let none = bed.lab.json("drops --last own-source")?;
    ensure!(none.is_null(), "{none}");
    let unknown = bed.lab.try_nsnet("drops --last no-such-reason")?;
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    Ok(())
}

/// Everything, as often as the ports have counted it; no more of each than was asked for.
#[test]
fn all_packets_of_the_switch() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let film = Film::start(&bed.lab, "--all --snaplen 100")?;
    let before = counted(&bed)?;
    exchange(&bed, "red", "blue", Amount::Little)?;
    exchange(&bed, "blue", "host", Amount::Little)?;
    let after = counted(&bed)?;
    let shots = film.end()?;
    let ports: Vec<&str> = before[0].stats.keys().map(String::as_str).collect();
    check_counts(&shots, &before, &after, &ports)?;
    assert!(shots.iter().any(|shot| shot.length > 20_000), "nothing was GSO");
    assert!(shots.iter().all(|shot| shot.kept == shot.length.min(100)), "--snaplen is not kept to");
    assert!(shots.is_sorted_by_key(|shot| shot.time / 1_000_000), "not in their order, to the millisecond");
    let age = wall()?.saturating_sub(shots.last().context("nothing was captured")?.time);
    assert!(age < 60_000_000_000, "the last packet was {age} ns ago");
    pairs(&shots).map(|_| ())
}

/// Who is asked for, and nobody else.
#[test]
fn filters() -> Result<()> {
    let mut bed = Outside::new()?;
    bed.add_c3("--masquerade")?;
    let traffic = || -> Result<()> {
        for name in ["c1", "c2", "c3"] {
            let station = bed.at(name);
            ensure!(station.reaches(wan(false))?, "{name} is not answered");
            let echo = bed.at("wan").run(|| UdpEcho::start(SocketAddr::new(wan(false), 0)))?;
            station.run(|| udp::exchange(echo.addr(), 10, 1, SECOND))?;
        }
        Ok(())
    };
    let run = |arguments: &str| -> Result<Vec<Shot>> {
        let film = Film::start(&bed.lab, arguments)?;
        traffic()?;
        film.end()
    };
    let of = |name: &str| {
        let station = bed.at(name);
        let ip = station.v4.to_string();
        move |shot: &Shot| shot.source == ip || shot.destination == ip || shot.interface == station.port
    };
    // Of a packet that is changed both sides are shown, if one is meant.
    let involved = |shots: &[Shot], name: &str| -> BTreeSet<u64> {
        shots.iter().filter(|shot| of(name)(shot)).map(|shot| shot.id).collect()
    };
    for arguments in ["--all --ns @c1", "--nat --host C1"] {
        let shots = run(&arguments.replace("C1", &bed.at("c1").v4.to_string()))?;
        let ids: BTreeSet<u64> = shots.iter().map(|shot| shot.id).collect();
        ensure!(!ids.is_empty() && ids == involved(&shots, "c1"), "{arguments}: {shots:?}");
        pairs(&shots)?;
    }
    let shots = run("--nat --network v-net-1")?;
    ensure!(!shots.is_empty() && involved(&shots, "c3").len() == pairs(&shots)?.len(), "{shots:?}");
    let icmp = run("--nat --proto icmp")?;
    ensure!(icmp.len() >= 12 && icmp.iter().all(|shot| shot.checksum.is_none()), "{icmp:?}");
    let none = run("--all --host 10.99.99.99")?;
    ensure!(none.is_empty(), "{none:?}");
    let none = run("--all --port 1")?;
    ensure!(none.is_empty(), "{none:?}");
    for (arguments, why) in [("--ns nobody", "in no network"), ("--network nothing", "there is no network nothing")] {
        let failed = Film::start(&bed.lab, arguments).map(|_| ()).map_err(|error| error.to_string());
        ensure!(failed.as_ref().is_err_and(|error| error.contains(why)), "{failed:?}");
    }
    Ok(())
}

/// So many, or so long.
#[test]
fn an_end_is_found() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let (red, blue) = (bed.at("red"), bed.at("blue"));
    let mut film = Film::start(&bed.lab, "--all --proto icmp --count 3")?;
    red.run(|| ping(blue.v4.into(), 4, 56, SECOND))?;
    let (status, told) = film.wait()?;
    ensure!(status.success() && told.contains("3 packets captured"), "{status}: {told}");
    assert_eq!(shots(film.path())?.len(), 3);

    let began = Instant::now();
    let mut film = Film::start(&bed.lab, "--duration 0.5")?;
    let (status, told) = film.wait()?;
    ensure!(status.success() && told.contains("0 packets captured, nothing lost"), "{status}: {told}");
    ensure!(began.elapsed() >= Duration::from_millis(500), "after {:?}", began.elapsed());
    assert_eq!(shots(film.path())?.len(), 0);
    Ok(())
}

/// What cannot be written ends it: with the file's name, and no word of nothing being lost.
#[test]
fn a_file_that_cannot_grow() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let (red, blue) = (bed.at("red"), bed.at("blue"));
    let file = Scratch(std::env::temp_dir().join(bed.lab.name("short.pcapng")));
    let capture = bed.lab.command(["capture", "--all", "--duration", "10", "-w"]);
    let mut limited = std::process::Command::new("sh");
    // 4 KiB; without the trap the signal would end it.
    limited.args(["-c", "ulimit -f 8; trap '' XFSZ; exec \"$@\"", "sh"]).arg(capture.get_program());
    limited.args(capture.get_args()).arg(&file.0).stderr(Stdio::piped());
    let mut capture = limited.spawn()?;
    let pinging = || {
        red.run(|| ping(blue.v4.into(), 1, 56, SECOND))?;
        Ok(capture.try_wait()?.is_some())
    };
    until(10 * SECOND, pinging)?;
    let output = capture.wait_with_output()?;
    let told = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(1) && !told.contains("nothing lost"), "{}: {told}", output.status);
    ensure!(told.contains(&format!("cannot write {}: File too large", file.0.display())), "{told}");
    ensure!(told.contains("at least ") && !told.contains("at least 0 "), "{told}");
    Ok(())
}

/// As people use it, and to a reader that has read enough.
#[test]
fn to_a_pipe() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let (red, blue) = (bed.at("red"), bed.at("blue"));
    let words = ["capture", "--all", "--proto", "icmp", "--count", "4", "-w", "-"];
    let mut capture = bed.lab.command(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let pipe = capture.stdout.take().context("no stdout")?;
    let reader = tshark().args(["-r", "-"]).stdin(pipe).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    // One line after the other is told while it happens, but when it begins is not.
    let pinging =
        || Ok(red.run(|| ping(blue.v4.into(), 1, 56, SECOND))?.received == 1 && capture.try_wait()?.is_some());
    until(10 * SECOND, pinging)?;
    let output = reader.wait_with_output()?;
    assert_eq!(read(&String::from_utf8(output.stdout)?)?.len(), 4);
    assert!(capture.wait()?.success());

    // `| head` reads one line, in JSON.
    let words = ["-o", "json", "capture", "--all"];
    let mut capture = bed.lab.command(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let pipe = capture.stdout.take().context("no stdout")?;
    let mut head = std::process::Command::new("head").arg("-n1").stdin(pipe).stdout(Stdio::piped()).spawn()?;
    let pinging = || {
        red.run(|| ping(blue.v4.into(), 1, 56, SECOND))?;
        Ok(capture.try_wait()?.is_some())
    };
    until(10 * SECOND, pinging)?;
    assert!(capture.wait()?.success(), "a closed pipe is no failure");
    head.wait()?;
    let line = std::io::read_to_string(head.stdout.take().context("no output")?)?;
    let row: Value = serde_json::from_str(&line)?;
    assert!(row["packet"].is_string() && row["id"] == 1 && row["direction"] == "in", "{row}");
    Ok(())
}

/// One at a time; and one that is killed leaves nothing that costs anything.
#[test]
fn two_at_once_and_one_that_is_killed() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let (red, blue) = (bed.at("red"), bed.at("blue"));
    let talk = || red.run(|| ping(blue.v4.into(), 2, 56, SECOND));
    let mut film = Film::start(&bed.lab, "--all --proto icmp")?;
    let second = Film::start(&bed.lab, "--all").map(|_| ()).map_err(|error| error.to_string());
    let pid = film.pid();
    let is_refused = |error: &String| error.contains(&format!("another capture is on, by process {pid}"));
    ensure!(second.as_ref().is_err_and(is_refused), "{second:?}");
    talk()?;
    film.signal(Signal::SIGKILL)?;
    ensure!(!film.wait()?.0.success(), "it was not killed");
    // A lease, which the programs take back when it has run out.
    let now = || nsnet::kernel::clock::monotonic();
    let host = bed.lab.ns("host")?;
    let lease = || nsnet::kernel::capture::lease(&host);
    ensure!(lease()? > now()?, "it is not on");
    // What was written is whole, up to the last packet.
    shots(film.path())?;
    talk()?;
    until(10 * SECOND, || {
        talk()?;
        Ok(lease()? == 0)
    })?;
    // Another can begin while the lease of one that is dead runs, too.
    let mut film = Film::start(&bed.lab, "--all")?;
    film.signal(Signal::SIGKILL)?;
    film.wait()?;
    let film = Film::start(&bed.lab, "--all --proto icmp")?;
    talk()?;
    assert_eq!(film.end()?.len(), 4);
    ensure!(lease()? == 0, "an end is no end");
    // With the dataplane the capture ends.
    let mut film = Film::start(&bed.lab, "--all")?;
    bed.lab.nsnet("down")?;
    let (status, told) = film.wait()?;
    ensure!(!status.success() && told.contains("the dataplane was taken down"), "{status}: {told}");
    Ok(())
}
