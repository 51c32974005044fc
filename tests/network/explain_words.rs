//! `nsnet explain` on the command line: packets in words, from files and from stdin, and what is refused.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nsnet_common::cases::frame::Frame;
use nsnet_common::wire::Mac;
use serde_json::Value;

use super::bed::{Bed, DUAL, Scratch, V4, lab, text};
use super::dump::{Dumper, differences};
use super::explain::silence;
use super::world::{World, complaint, refused};

/// A masqueraded network with two namespaces, one of which is published, and a second network.
fn bed() -> Result<Bed> {
    let lab = lab()?;
    // So that the neighbour outside is asked for nothing.
    let status = std::process::Command::new("ip")
        .args(["-n", &lab.name("host"), "route", "add", "default", "via", "192.168.1.3"])
        .status();
    ensure!(status.context("run ip")?.success(), "ip failed");
    let mut bed = Bed::inside(lab, &format!("{DUAL} --masquerade"), &["red", "blue"])?;
    bed.add_network("v-net-1", "--subnet 10.9.0.0/24")?;
    bed.attach("v-net-1", "far", "")?;
    bed.lab.nsnet("publish add @blue 8080:80")?;
    // Nobody is to be counted but by what is explained, which is nobody.
    for ns in ["host", "wan", "red", "blue", "far"] {
        silence(&bed.lab.ns(ns)?)?;
    }
    std::thread::sleep(Duration::from_millis(300));
    Ok(bed)
}

/// Explains, and sees that nothing was changed, that the kernel agrees, and that it is told in words, too.
fn explain(bed: &Bed, line: &str) -> Result<Value> {
    let dumper = Dumper::open(&bed.at("host").ns)?;
    let before = (dumper.dump()?, World::of(&bed.lab)?);
    let mut answer = bed.lab.json(&format!("explain {line}"))?;
    let list = bed.lab.nsnet(&format!("explain {line}"))?;
    let changes = differences(&before.0, &dumper.dump()?);
    ensure!(changes.is_empty(), "`explain {line}` changed the tables: {}", changes.join("\n"));
    assert_eq!(before.1, World::of(&bed.lab)?, "`explain {line}` changed something");
    assert_eq!((&answer["confirmed"], &answer["same_build"]), (&true.into(), &true.into()), "{line}: {answer}");
    let frames = answer["frames"].as_array_mut().context("no frames")?;
    for frame in &*frames {
        let says = text(&frame["says"])?;
        ensure!(list.contains(&format!("VERDICT      {says}")), "{line}: {says:?} is not in {list}");
    }
    Ok(frames.swap_remove(0))
}

/// Explains, and sees that the verdict is this one, by way of these stages.
fn expect(bed: &Bed, line: &str, verdict: &str, leaves_by: &[&str], stages: &[&str]) -> Result<Value> {
    let frame = explain(bed, line)?;
    assert_eq!(frame["verdict"], verdict, "{line}: {frame:#}");
    assert_eq!(frame["leaves_by"], serde_json::json!(leaves_by), "{line}: {frame:#}");
    let went: Vec<&str> =
        frame["stages"].as_array().context("no stages")?.iter().filter_map(|s| s["stage"].as_str()).collect();
    assert_eq!(went, stages, "{line}");
    Ok(frame)
}

/// What a stage went by: table, and entry.
fn by(frame: &Value, stage: &str) -> (String, String) {
    let stages = frame["stages"].as_array().cloned().unwrap_or_default();
    let stage = stages.into_iter().find(|entry| entry["stage"] == stage).unwrap_or_default();
    let of = |key: &str| stage["by"][key].as_str().unwrap_or_default().to_owned();
    (of("table"), of("entry"))
}

#[test]
fn packets_in_words() -> Result<()> {
    let bed = bed()?;
    let port = |name: &str| format!("{} ({})", bed.at(name).port, bed.lab.name(name));
    let (red, blue) = (port("red"), port("blue"));
    let out = ["port", "guard", "switch", "packet", "conntrack", "lead", "route", "open", "nat", "send"];

    let ping = expect(&bed, "--from @red icmp 198.51.100.7", "forwarded", &["uplink"], &out)?;
    assert_eq!(text(&ping["summary"])?.split(',').next(), Some("192.168.15.1 > 198.51.100.7 icmp 98"));
    ensure!(text(&ping["becomes"])?.starts_with("192.168.1.1 > 198.51.100.7 icmp 98"), "{}", ping["becomes"]);
    let made = ping["edits"].as_array().context("no edits")?.iter().filter(|edit| edit["table"] == "YOUNG4").count();
    assert_eq!(made, 2, "a flow has two directions: {:#}", ping["edits"]);
    ensure!(by(&ping, "route").1.starts_with("by uplink"), "{:?}", by(&ping, "route"));

    let near = ["port", "guard", "switch"];
    let syn = expect(&bed, "--from @red tcp 192.168.15.2:80", "forwarded", &[&blue], &near)?;
    ensure!(text(&syn["summary"])?.contains("tcp [S]"), "{}", syn["summary"]);
    ensure!(by(&syn, "switch").1.contains(&bed.at("blue").port), "{:?}", by(&syn, "switch"));
    expect(&bed, "--from @red udp [fd15::2]:53", "forwarded", &[&blue], &near)?;

    let question =
        expect(&bed, "--from @red arp 192.168.15.2", "answered", &[&red], &["port", "guard", "switch", "answer"])?;
    ensure!(
        text(&question["becomes"])?.ends_with(&format!("192.168.15.2 is at {}", bed.at("blue").mac)),
        "{question:#}"
    );
    expect(&bed, "--from @red nd fd15::2", "answered", &[&red], &["port", "guard", "switch", "answer"])?;
    let flood = ["port", "guard", "switch", "answer", "flood"];
    let host = "v-net-0 (the host)";
    expect(&bed, "--from @red arp 192.168.15.99", "flooded", &[&blue, host], &flood)?;

    let up = ["port", "guard", "switch", "packet", "conntrack", "lead", "publish", "nat", "send"];
    expect(&bed, "--from @red udp 192.168.15.254:53", "forwarded", &[host], &up)?;
    let forwarded = expect(
        &bed,
        "--from uplink tcp 192.168.1.3:5000 192.168.1.1:8080",
        "forwarded",
        &[&blue],
        &["port", "packet", "conntrack", "lead", "publish", "nat", "send"],
    )?;
    ensure!(by(&forwarded, "publish").0 == "PUBLISHES", "{:?}", by(&forwarded, "publish"));
    let hits =
        forwarded["counters"].as_array().context("no counters")?.iter().any(|counter| counter["counter"] == "hits");
    ensure!(hits, "the published port's hit is not told: {:#}", forwarded["counters"]);
    expect(
        &bed,
        "--from uplink:uplink udp 192.168.1.3:53 192.168.1.1:53",
        "passed",
        &[],
        &["port", "packet", "conntrack", "lead", "publish", "nat"],
    )?;
    expect(&bed, "--from host udp 192.168.15.1:53", "forwarded", &[&red], &["port", "switch"])?;
    Ok(())
}

#[test]
fn what_is_dropped_and_why() -> Result<()> {
    let bed = bed()?;
    for (line, reason, stage, table) in [
        ("--from @red udp 192.168.15.9 192.168.15.2:53", "spoofed-ipv4", "guard", "ADDRESSES"),
        ("--from @red --from-mac 02:00:00:00:00:99 udp 192.168.15.2:53", "spoofed-mac", "guard", "PORTS"),
        ("--from @red icmp 198.51.100.7 --ttl 1", "ttl-exceeded", "open", "ROUTES"),
        ("--from @red tcp 198.51.100.7:80 --flags ack", "no-connection", "open", ""),
        ("--from @red icmp 10.9.0.1", "other-network", "lead", "POLICIES"),
        ("--from @red icmp 127.0.0.1", "loopback-destination", "lead", "SUBNETS"),
        ("--from uplink icmp 192.168.1.3 192.168.15.1", "direct-access", "lead", "ADDRESSES"),
        ("--from uplink tcp 192.168.1.3:80 192.168.1.1:20000", "no-mapping", "nat", "host's sockets"),
        ("--from @red udp 198.51.100.7:53 --fragment 1480", "fragment-unknown", "fragment", "FRAGMENTS"),
        ("--from @red udp 198.51.100.7:53 --length 1501 --df", "fragmentation-needed", "send", "PORTS"),
        ("--from @red sctp 198.51.100.7:53 --to-mac 02:00:01:00:77:01", "unknown-destination", "flood", "NETWORKS"),
        ("--from @red arp 192.168.15.2 192.168.15.1", "spoofed-arp", "guard", "ADDRESSES"),
    ] {
        let line = if line.contains("127.0.0.1") {
            format!("{line} --to-mac {}", bed.at("host").mac)
        } else {
            line.to_owned()
        };
        let frame = explain(&bed, &line).with_context(|| line.clone())?;
        assert_eq!(frame["reason"], reason, "{line}: {frame:#}");
        assert_eq!(frame["verdict"], "dropped", "{line}");
        let last = frame["stages"].as_array().context("no stages")?;
        let dropped = last.iter().find(|stage| stage["says"].as_str().is_some_and(|says| says.starts_with("dropped")));
        let dropped = dropped.with_context(|| format!("{line}: no stage drops it: {frame:#}"))?;
        assert_eq!(dropped["stage"], stage, "{line}");
        if table != "ROUTES" && !table.is_empty() {
            assert_eq!(dropped["by"]["table"], table, "{line}: {dropped:#}");
        }
        let counted = frame["counters"].as_array().context("no counters")?;
        let name = format!("dropped {reason}");
        ensure!(counted.iter().any(|counter| counter["counter"] == name.as_str()), "{line}: {counted:?}");
    }
    // Who is told, is told by an error that is shown.
    let told = explain(&bed, "--from @red icmp 198.51.100.7 --ttl 1")?;
    ensure!(text(&told["becomes"])?.contains("TTL exceeded"), "{}", told["becomes"]);
    ensure!(text(&told["says"])?.contains("its sender is told"), "{}", told["says"]);
    Ok(())
}

/// What is too long is cut, and each piece is explained.
#[test]
fn pieces_are_followed() -> Result<()> {
    let bed = bed()?;
    let answer = bed.lab.json("explain --from @red udp 198.51.100.7:53 --length 3200")?;
    let frames = answer["frames"].as_array().context("no frames")?;
    let verdicts: Vec<_> = frames.iter().filter_map(|frame| frame["verdict"].as_str()).collect();
    assert_eq!(verdicts, ["again", "forwarded", "forwarded", "forwarded"], "{answer:#}");
    assert_eq!(answer["confirmed"], true);
    Ok(())
}

/// The classic format, of Ethernet frames.
fn pcap(frames: &[&[u8]]) -> Vec<u8> {
    let word = |number: usize| (number as u32).to_le_bytes();
    let mut file = [&[0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0][..], &[0; 8], &word(65535), &word(1)].concat();
    for frame in frames {
        file.extend([word(0), word(0), word(frame.len()), word(frame.len())].concat());
        file.extend(*frame);
    }
    file
}

fn with_stdin(bed: &Bed, line: &str, stdin: &[u8]) -> Result<Output> {
    let words =
        line.split_whitespace().map(|word| word.strip_prefix('@').map_or(word.to_owned(), |name| bed.lab.name(name)));
    let mut command = bed.lab.command(words);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(stdin)?;
    Ok(child.wait_with_output()?)
}

#[test]
fn frames_from_files_and_from_stdin() -> Result<()> {
    let bed = bed()?;
    let (red, blue) = (bed.at("red"), bed.at("blue"));
    let udp = |port| {
        Frame::new(red.mac, blue.mac).ipv4(red.v4.octets(), blue.v4.octets()).udp(1000, port).payload(20).finish()
    };
    let tagged = Frame::new(red.mac, Mac::BROADCAST).tag(0x8100, 7).ethertype(0x0800).payload(60).finish();
    let path = std::env::temp_dir().join(format!("nsnet-explain-{}.pcap", std::process::id()));
    let file = Scratch(path.clone());
    std::fs::write(&file.0, pcap(&[&udp(1), &udp(2), &tagged]))?;
    for (frame, port) in [("", 1), ("--frame 2", 2)] {
        let answer = explain(&bed, &format!("--from @red --pcap {} {frame}", path.display()))?;
        ensure!(text(&answer["summary"])?.contains(&format!(":{port} udp ")), "{}", answer["summary"]);
        assert_eq!(answer["verdict"], "forwarded");
    }
    // A tag is taken out of the frame before a program sees it, and BPF_PROG_TEST_RUN cannot say that.
    let answer = bed.lab.json(&format!("explain --from @red --pcap {} --frame 3", path.display()))?;
    assert_eq!((&answer["frames"][0]["reason"], &answer["confirmed"]), (&"tagged".into(), &Value::Null), "{answer:#}");
    ensure!(answer["not_tried"].is_string());

    let hex: String = udp(7).iter().map(|byte| format!("{byte:02x} ")).collect();
    for (line, stdin) in [
        ("-o json explain --from @red --hex", hex.into_bytes()),
        ("-o json explain --from @red --pcap -", pcap(&[&udp(7)])),
    ] {
        let output = with_stdin(&bed, line, &stdin)?;
        ensure!(output.status.success(), "{line}: {output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout)?;
        assert_eq!(answer["frames"][0]["fields"]["destination port"], "7", "{line}");
        assert_eq!(answer["confirmed"], true);
    }
    let output = with_stdin(&bed, "explain --from @red --hex", b"no frame")?;
    assert_eq!(output.status.code(), Some(1));
    ensure!(complaint(&output)?.contains("hexadecimal"), "{output:?}");
    Ok(())
}

#[test]
fn what_cannot_be_explained_is_refused() -> Result<()> {
    let bed = bed()?;
    let file = Scratch(std::env::temp_dir().join(format!("nsnet-explain-{}.txt", std::process::id())));
    std::fs::write(&file.0, "this is no capture, whatever it is called")?;
    let file: &PathBuf = &file.0;
    for (line, words) in [
        ("explain --from @nobody icmp 192.168.15.2", "No such file"),
        ("explain --from @wan icmp 192.168.15.2", "in no network"),
        ("explain --from @far icmp 198.51.100.7", "no route to 198.51.100.7"),
        ("explain --from @red icmp 192.168.15.1", "an address of its own"),
        ("explain --from @red icmp 192.168.15.77", "nobody in the network has that address"),
        ("explain --from @red --network v-net-1 icmp 10.9.0.1", "not in network v-net-1"),
        ("explain --from @red udp 192.168.15.2", "needs a port"),
        ("explain --from @red icmp 192.168.15.2:80", "has no ports"),
        ("explain --from @red icmp fd15::1 192.168.15.2", "two families"),
        ("explain --from @red udp 192.168.15.2:53 --flags ack", "no flags"),
        ("explain --from @red udp 192.168.15.2:53 --length 20", "too short"),
        ("explain --from host icmp 192.168.1.3", "meets no program of ours"),
        ("explain --from host tcp 192.168.1.1:8080", "at the socket"),
        ("explain --from uplink icmp 192.168.1.1", "sender's address"),
        ("explain --from uplink:eth9 icmp 192.168.1.3 192.168.1.1", "eth9 is no uplink"),
        ("explain --from @red --pcap /nowhere", "cannot read /nowhere"),
        (&format!("explain --from @red --pcap {}", file.display()), "no capture"),
        (&format!("explain --from host --pcap {}", file.display()), "no capture"),
    ] {
        let said = refused(&bed.lab, line)?;
        ensure!(said.contains(words), "`{line}`: {said}");
    }
    // Of two networks, by a whole frame.
    bed.lab.nsnet("attach v-net-1 @red")?;
    let output = with_stdin(&bed, "explain --from @red --hex", b"ffffffffffff 020000000001 0806")?;
    ensure!(complaint(&output)?.contains("--network NAME"), "{output:?}");
    for line in [
        "explain icmp 192.168.15.2",
        "explain --from @red",
        "explain --from @red icmp 1.2.3",
        "explain --from @red --frame 2 icmp 192.168.15.2",
        "explain --from a/b icmp 192.168.15.2",
    ] {
        assert_eq!(bed.lab.try_nsnet(line)?.status.code(), Some(2), "`{line}`");
    }
    Ok(())
}

#[test]
fn without_a_dataplane_there_is_nothing_to_explain() -> Result<()> {
    let lab = lab()?;
    let said = refused(&lab, "explain --from host icmp 192.168.1.3")?;
    ensure!(said.contains("no dataplane is loaded") && said.contains("nsnet network add"), "{said}");
    Ok(())
}

/// What is told of a port whose program is gone does not hold, and that is said, too.
#[test]
fn a_program_that_is_gone_is_told() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let line = "explain --from @red icmp 192.168.15.2";
    let output = bed.lab.try_nsnet(line)?;
    ensure!(output.stderr.is_empty(), "{output:?}");
    let links = World::of(&bed.lab)?.pins.into_iter().filter(|path| path.contains("/links/"));
    for link in links.collect::<Vec<_>>() {
        std::fs::remove_file(link)?;
    }
    let output = bed.lab.try_nsnet(line)?;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = String::from_utf8(output.stderr)?;
    ensure!(said.contains(&format!("no program is on {}", bed.at("red").port)), "{said}");
    Ok(())
}
