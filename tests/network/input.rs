//! What is refused: with which exit code, in one line that names it, and with nothing changed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result};
use nsnet::lab::Lab;
use serde_json::Value;

use super::bed::{Scratch, binary, lab};
use super::world::{World, complaint};

/// Exit codes.
const FAILED: i32 = 1;
const USAGE: i32 = 2;

/// Words of a command line: `@red` is the lab's red, `''` an empty word, `_` a blank inside of one, `\n` a line break.
fn words(lab: &Lab, line: &str) -> Vec<String> {
    let word = |word: &str| match word.strip_prefix('@') {
        Some(short) => lab.name(short),
        None => word.replace("''", "").replace('_', " ").replace("\\n", "\n").replace("\\e", "\x1b"),
    };
    line.split(' ').map(word).collect()
}

/// Runs a refused command line and judges everything about the refusal.
fn judge(lab: &Lab, line: &str, code: i32, named: &str) -> Result<()> {
    let named = named.strip_prefix('@').map_or(named.to_owned(), |short| lab.name(short));
    let words = words(lab, line);
    let before = World::of(lab)?;
    let check = |output: &Output| -> Result<String> {
        assert_eq!(output.status.code(), Some(code), "`{line}`: {output:?}");
        let text = complaint(output).with_context(|| format!("`{line}`"))?;
        let harmless = text.trim_end_matches('\n').chars().all(|c| !c.is_control());
        assert!(harmless, "`{line}`: a control character in {text:?}");
        Ok(text)
    };
    let text = check(&lab.command(&words).output()?)?;
    assert!(text.contains(&named), "`{line}` does not name {named}: {text}");
    let text = check(&lab.command(["-o", "json"].iter().map(ToString::to_string).chain(words)).output()?)?;
    let object: Value = serde_json::from_str(&text).with_context(|| format!("`-o json {line}`: {text}"))?;
    let error = object["error"].as_str().with_context(|| format!("`-o json {line}`: {text}"))?;
    assert!(error.contains(&named), "`-o json {line}` does not name {named}: {text}");
    assert_eq!(World::of(lab)?, before, "`{line}` changed something");
    Ok(())
}

fn set_up() -> Result<Lab> {
    let lab = lab()?;
    lab.nsnet("ns add @red @blue @orange")?;
    lab.nsnet("network add v-net-0 --subnet 192.168.15.0/24 fd15::/64")?;
    lab.nsnet("attach v-net-0 @red --ip 192.168.15.1")?;
    Ok(lab)
}

#[test]
fn names() -> Result<()> {
    let lab = set_up()?;
    let bad = [
        "../x",
        "sixteen-letters-",
        "a/b",
        ".",
        "..",
        "/etc/passwd",
        "ü",
        "a_b",
        "a\\nb",
        "\\e[2Jx",
        "_",
        "''",
        "-x",
        "a:b",
    ];
    for name in bad {
        // Line breaks are shown as blanks; of a terminal's control sequence only what is no part of it.
        let shown = words(&lab, name).concat().replace("\x1b[2J", "").replace('\n', " ");
        for line in [
            format!("ns add {name}"),
            format!("ns del {name}"),
            format!("ns exec {name} -- true"),
            format!("network add {name} --subnet 10.1.0.0/24"),
            format!("network del {name}"),
            format!("network show {name}"),
            format!("attach {name} @blue"),
            format!("attach v-net-0 {name}"),
            format!("attach v-net-0 @blue --ifname {name}"),
            format!("detach v-net-0 {name}"),
            format!("cable add @red {name}"),
            format!("cable del {name} @red"),
            format!("route add {name} default"),
            format!("route list {name}"),
        ] {
            judge(&lab, &line, USAGE, shown.trim())?;
        }
    }
    Ok(())
}

#[test]
fn subnets_and_gateways() -> Result<()> {
    let lab = set_up()?;
    for (arguments, code, named) in [
        ("--subnet 10.1.0.0", USAGE, "say 10.1.0.0/24"),
        ("--subnet 10.1.0.0/33", USAGE, "10.1.0.0/33"),
        ("--subnet 10.1.0.256/24", USAGE, "10.1.0.256/24"),
        ("--subnet fd00::/129", USAGE, "fd00::/129"),
        ("--subnet x", USAGE, "x"),
        ("--subnet", USAGE, "--subnet"),
        ("--gateway 10.1.0.1", USAGE, "--subnet"),
        ("--subnet 10.1.0.0/24 --gateway x", USAGE, "x"),
        ("--subnet 10.1.0.1/24", FAILED, "10.1.0.1/24: it has bits set after the prefix; say 10.1.0.0/24"),
        ("--subnet 10.1.0.0/32", FAILED, "10.1.0.0/32"),
        ("--subnet fd01::/128", FAILED, "fd01::/128"),
        ("--subnet 127.0.0.0/8", FAILED, "127.0.0.0/8"),
        ("--subnet 224.0.0.0/24", FAILED, "224.0.0.0/24"),
        ("--subnet 240.0.0.0/24", FAILED, "240.0.0.0/24"),
        ("--subnet 0.0.0.0/0", FAILED, "0.0.0.0/0"),
        ("--subnet ::/0", FAILED, "::/0"),
        ("--subnet fe80::/64", FAILED, "fe80::/64"),
        ("--subnet ff02::/64", FAILED, "ff02::/64"),
        ("--subnet 192.168.15.0/24", FAILED, "192.168.15.0/24"),
        ("--subnet 192.168.15.128/25", FAILED, "192.168.15.128/25"),
        ("--subnet 192.168.0.0/16", FAILED, "192.168.0.0/16"),
        ("--subnet fd15::/48", FAILED, "fd15::/48"),
        ("--subnet 192.168.1.0/24", FAILED, "192.168.1.0/24"),
        ("--subnet 10.1.0.0/24 10.1.0.0/25", FAILED, "10.1.0.0/25"),
        ("--subnet 10.1.0.0/24 --gateway 10.2.0.1", FAILED, "10.2.0.1 is in no subnet of it (10.1.0.0/24)"),
        ("--subnet 10.1.0.0/24 --gateway 10.1.0.0", FAILED, "10.1.0.0"),
        ("--subnet 10.1.0.0/24 --gateway 10.1.0.255", FAILED, "10.1.0.255"),
        ("--subnet 10.1.0.0/24 --gateway fd01::1", FAILED, "fd01::1"),
        ("--subnet 10.1.0.0/24 --gateway 10.1.0.1 10.1.0.2", FAILED, "10.1.0.2 is the second of its subnet"),
    ] {
        judge(&lab, &format!("network add n1 {arguments}"), code, named)?;
    }
    Ok(())
}

#[test]
fn mtus() -> Result<()> {
    let lab = set_up()?;
    for (mtu, code, named) in [
        ("0", USAGE, "68"),
        ("67", USAGE, "67 is not in 68..=65535"),
        ("-1", USAGE, "-1"),
        ("65536", USAGE, "65536"),
        ("1e3", USAGE, "1e3"),
        ("1279", FAILED, "1279"),
    ] {
        judge(&lab, &format!("network add n1 --subnet 10.1.0.0/24 fd01::/64 --mtu {mtu}"), code, named)?;
    }
    for mtu in [68, 65535] {
        lab.nsnet(&format!("network add n1 --subnet 10.1.0.0/24 --mtu {mtu}"))?;
        lab.nsnet("network del n1")?;
    }
    Ok(())
}

#[test]
fn attachments() -> Result<()> {
    let lab = set_up()?;
    lab.nsnet("network add tiny --subnet 10.2.0.0/30 --gateway 10.2.0.1")?;
    lab.nsnet("attach tiny @red")?;
    for (line, code, named) in [
        ("attach v-net-9 @blue", FAILED, "v-net-9"),
        ("attach v-net-0 @nobody", FAILED, "@nobody"),
        ("attach v-net-0 @host", FAILED, "@host"),
        ("attach tiny @blue", FAILED, "tiny"),
        ("attach v-net-0 @blue --ip 192.168.15.1", FAILED, "192.168.15.1"),
        ("attach v-net-0 @blue --ip 192.168.15.254", FAILED, "192.168.15.254"),
        ("attach v-net-0 @blue --ip 192.168.15.0", FAILED, "192.168.15.0"),
        ("attach v-net-0 @blue --ip 192.168.15.255", FAILED, "192.168.15.255"),
        ("attach v-net-0 @blue --ip 192.168.16.1", FAILED, "192.168.16.1"),
        ("attach v-net-0 @blue --ip fd15::", FAILED, "fd15::"),
        ("attach v-net-0 @blue --ip fd16::1", FAILED, "fd16::1"),
        ("attach v-net-0 @blue --ip 192.168.15.9 192.168.15.9", FAILED, "192.168.15.9 is given twice"),
        ("attach v-net-0 @blue --ip 192.168.15.9/24", USAGE, "192.168.15.9/24"),
        ("attach v-net-0 @blue --ip 192.168.15.300", USAGE, "192.168.15.300"),
        ("attach v-net-0 @blue --mac 02:00:00:00:00", USAGE, "02:00:00:00:00"),
        ("attach v-net-0 @blue --mac 02:00:00:00:00:0g", USAGE, "02:00:00:00:00:0g"),
        ("attach v-net-0 @blue --mac 01:00:5e:00:00:01", FAILED, "01:00:5e:00:00:01"),
        ("attach v-net-0 @blue --mac 00:00:00:00:00:00", FAILED, "00:00:00:00:00:00"),
        ("attach v-net-0 @blue --mac ff:ff:ff:ff:ff:ff", FAILED, "ff:ff:ff:ff:ff:ff"),
        ("attach v-net-0 @blue --ifname lo", FAILED, "lo"),
        ("attach v-net-0 @blue --ifname all", FAILED, "all"),
        ("attach v-net-0 @blue --ifname default", FAILED, "default, which the kernel keeps for itself"),
        ("network add lo --subnet 10.1.0.0/24", FAILED, "network lo"),
        ("network add default --subnet 10.1.0.0/24", FAILED, "network default"),
        ("attach v-net-0", USAGE, "NS"),
        ("attach", USAGE, "NETWORK"),
    ] {
        judge(&lab, line, code, named)?;
    }
    let show = lab.json("network show v-net-0")?;
    for mac in [&show["mac"], &show["ports"][0]["mac"]] {
        let mac = mac.as_str().context("no MAC")?;
        judge(&lab, &format!("attach v-net-0 @blue --mac {mac}"), FAILED, mac)?;
    }
    Ok(())
}

#[test]
fn cables_routes_and_namespaces() -> Result<()> {
    let lab = set_up()?;
    for (line, code, named) in [
        ("cable add @red @red", FAILED, "@red"),
        ("cable add @red @nobody", FAILED, "@nobody"),
        ("cable add @red @blue --address-a 10.0.0.1/30 --address-b 10.0.0.1/30", FAILED, "@blue"),
        ("cable add @red @blue --address-a 10.0.0.1/33", USAGE, "10.0.0.1/33"),
        ("cable add @red @blue --address-a 10.0.0.1", USAGE, "10.0.0.1"),
        ("cable add @red", USAGE, "NS_B"),
        ("route add @red x", USAGE, "x"),
        ("route add @red 10.60.1.1/16", USAGE, "say 10.60.0.0/16"),
        ("route add @red 10.0.0.0/8 via", USAGE, "GATEWAY"),
        ("route add @red 10.0.0.0/8 by 192.168.15.254", USAGE, "by"),
        ("route add @red 10.0.0.0/8 via x", USAGE, "x"),
        ("route add @red 10.0.0.0/8 via 10.9.9.9", FAILED, "10.9.9.9"),
        ("route add @red 10.0.0.0/8 via fd15::1", FAILED, "fd15::1"),
        ("route add @blue default", FAILED, "@blue"),
        ("route add @nobody default", FAILED, "@nobody"),
        ("route del @red x", USAGE, "x"),
        ("route list @nobody", FAILED, "@nobody"),
        ("ns exec @nobody -- true", FAILED, "@nobody"),
        ("ns exec @red -- /no/such/program", FAILED, "/no/such/program"),
        ("ns exec @red", USAGE, "CMD"),
        ("ns add", USAGE, "NAME"),
        ("network show v-net-9", FAILED, "v-net-9"),
    ] {
        judge(&lab, line, code, named)?;
    }
    Ok(())
}

#[test]
fn the_command_line() -> Result<()> {
    let lab = set_up()?;
    for (line, named) in [
        ("attatch v-net-0 @blue", "'attach'; see `nsnet help`"),
        ("network ad n1", "'add'; see `nsnet help network`"),
        ("ns exec @red true", "-- <CMD>..."),
        ("network add n1 --subnet 10.1.0.0/24 --colour red", "--colour"),
        ("status now", "now"),
        ("network list --verbose=yes", "--verbose"),
    ] {
        judge(&lab, line, USAGE, named)?;
    }
    let run = |args: &[&str]| Command::new(binary()).args(args).output();
    for (args, named) in [(["-o", "yaml", "status"], "yaml"), (["--host-ns", "", "status"], "--host-ns")] {
        let output = run(&args)?;
        let code = output.status.code();
        assert!(code == Some(USAGE) || code == Some(FAILED), "{args:?}: {output:?}");
        let text = complaint(&output).with_context(|| format!("{args:?}"))?;
        assert!(args[1].is_empty() || text.contains(named), "{args:?}: {text}");
    }
    for host in ["no-such-host", "../x", "/etc/passwd", "/no/such/file", "/proc/self/ns/mnt"] {
        let output = run(&["--host-ns", host, "status"])?;
        assert_eq!(output.status.code(), Some(FAILED), "{host}: {output:?}");
        assert!(complaint(&output)?.contains(host), "{host}: {output:?}");
    }
    // Global options may follow the verb.
    assert!(lab.command(["network", "list", "-o", "json"]).output()?.stdout.starts_with(b"["));
    Ok(())
}

#[test]
fn empty_lists_are_empty_arrays() -> Result<()> {
    let lab = lab()?;
    for line in ["cable list", "network list", "fdb list", "neigh list", "stats", "drops"] {
        assert_eq!(lab.json(line)?, serde_json::json!([]), "{line}");
    }
    assert_eq!(lab.json("status")?["drift"], serde_json::json!([]));
    assert!(lab.json("ns list")?.is_array());
    Ok(())
}

/// A disk that is full behind `>` or `2>`.
fn full() -> Result<Stdio> {
    Ok(File::options().write(true).open("/dev/full")?.into())
}

/// Whoever cannot be told: what is done is done all the same, with the exit code that it has.
#[test]
fn a_broken_stderr_breaks_nothing() -> Result<()> {
    let lab = lab()?;
    let run = |line: &str| -> Result<Output> { Ok(lab.command(words(&lab, line)).stderr(full()?).output()?) };
    for (line, code) in [
        ("-v ns add @red", 0),
        ("-v network add v-net-0 --subnet 192.168.15.0/24 --masquerade", 0),
        ("-v attach v-net-0 @red", 0),
        ("network show nope", FAILED),
        ("-o json network show nope", FAILED),
        ("no-such-verb", USAGE),
    ] {
        let output = run(line)?;
        assert_eq!(output.status.code(), Some(code), "`{line}`: {output:?}");
    }
    let status = lab.json("status")?;
    assert!(status["attachments"] == 1 && status["drift"] == serde_json::json!([]), "{status}");
    Ok(())
}

#[test]
fn an_answer_that_cannot_be_written_is_an_error() -> Result<()> {
    let lab = set_up()?;
    for line in [
        "status",
        "network list",
        "-o json network list",
        "plan",
        "stats",
        "ct list",
        "-o json ct list",
        "schema",
        "man",
        "completions bash",
    ] {
        let output = lab.command(words(&lab, line)).stdout(full()?).output()?;
        assert_eq!(output.status.code(), Some(FAILED), "`{line}`: {output:?}");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("cannot write the answer: No space left"), "`{line}`: {told}");
        // A reader that has read enough is another matter.
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let output = lab.command(words(&lab, line)).stdout(writer).output()?;
        assert!(output.status.success() && output.stderr.is_empty(), "`{line}`: {output:?}");
    }
    Ok(())
}

#[test]
fn what_is_no_text() -> Result<()> {
    let lab = lab()?;
    let word = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    for (words, code) in [
        (vec![word(b"ns"), word(b"add"), word(b"\xff\xfe")], USAGE),
        (vec![word(b"--host-ns"), word(b"\xff"), word(b"status")], USAGE),
        (vec![word(b"plan"), word(b"-f"), word(b"/no\xff")], FAILED),
    ] {
        for format in ["table", "json"] {
            let output = lab.command(["-o", format]).args(&words).output()?;
            assert_eq!(output.status.code(), Some(code), "{words:?}: {output:?}");
            assert_eq!(complaint(&output)?.starts_with('{'), format == "json", "{words:?}: {output:?}");
        }
    }
    Ok(())
}

#[test]
fn without_root() -> Result<()> {
    const NOBODY: u32 = 65534;
    let lab = lab()?;
    // A copy that anybody may run: the build folder may be closed to others.
    let folder = Scratch(std::env::temp_dir().join(lab.name("rootless")));
    fs::create_dir(&folder.0)?;
    let program = folder.0.join("nsnet");
    fs::copy(binary(), &program)?;
    let run = |args: &[&str]| Command::new(&program).args(args).uid(NOBODY).gid(NOBODY).current_dir("/").output();
    for args in [&["--version"][..], &["help"], &["network", "--help"]] {
        let output = run(args)?;
        assert!(output.status.success() && !output.stdout.is_empty(), "{args:?}: {output:?}");
    }
    let (host, wan) = (lab.name("host"), lab.name("wan"));
    let before = World::of(&lab)?;
    for verb in [
        &["ns", "add", "x"][..],
        &["network", "add", "n1", "--subnet", "10.1.0.0/24"],
        &["attach", "n1", &wan],
        &["status"],
        &["network", "list"],
        &["drops"],
        &["down"],
    ] {
        for args in [verb.to_vec(), [&["--host-ns", &host], verb].concat()] {
            let output = run(&args)?;
            assert_eq!(output.status.code(), Some(FAILED), "{args:?}: {output:?}");
            let text = complaint(&output).with_context(|| format!("{args:?}"))?;
            assert!(text.contains("root"), "{args:?} does not say what is missing: {text}");
        }
    }
    assert_eq!(World::of(&lab)?, before);
    Ok(())
}
