//! Many at once, and some killed on the way.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nsnet::kernel::netns::NetNs;
use nsnet::lab::Lab;
use nsnet::lab::ping;
use nsnet::lab::random::Random;

use super::bed::{Bed, V4, lab};
use super::world::World;

/// Starts a verb.
pub(crate) fn start(lab: &Lab, line: &str) -> Result<Child> {
    let words = line.split(' ').map(|word| word.strip_prefix('@').map_or(word.to_owned(), |name| lab.name(name)));
    let mut command = lab.command(words);
    Ok(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// As many verbs as there are `names`, at once; how long the slowest took.
fn at_once(lab: &Lab, names: &[String], verb: &dyn Fn(&str) -> String) -> Result<Duration> {
    let started = Instant::now();
    let children = names.iter().map(|name| start(lab, &verb(name))).collect::<Result<Vec<_>>>()?;
    for child in children {
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(started.elapsed())
}

#[test]
fn two_hundred_at_once() -> Result<()> {
    let lab = lab()?;
    let names: Vec<String> = (0..200).map(|n| format!("n{n}")).collect();
    lab.nsnet("network add v-net-0 --subnet 192.168.15.0/24 fd15::/64")?;
    let made = at_once(&lab, &names, &|name| format!("ns add @{name}"))?;
    let attached = at_once(&lab, &names, &|name| format!("attach v-net-0 @{name}"))?;
    println!("200 namespaces made at once in {made:?}, attached at once in {attached:?}");
    let shown = lab.json("network show v-net-0")?;
    let ports = shown["ports"].as_array().context("no ports")?;
    assert_eq!(ports.len(), names.len());
    let ips: BTreeSet<IpAddr> = ports
        .iter()
        .flat_map(|port| port["ip"].as_array().into_iter().flatten())
        .map(|ip| Ok(ip.as_str().context("no address")?.parse()?))
        .collect::<Result<_>>()?;
    let column = |name: &str| ports.iter().filter_map(|port| port[name].as_str()).collect::<BTreeSet<_>>().len();
    assert_eq!((ips.len(), column("mac"), column("host_ifname")), (400, 200, 200), "something is there twice");
    assert_eq!(lab.json("status")?["drift"], serde_json::json!([]));
    // Each answers the host, and its neighbour.
    lab.within("host", || ips.iter().try_for_each(|ip| answers(*ip)))??;
    let v4: Vec<IpAddr> = ips.iter().copied().filter(IpAddr::is_ipv4).collect();
    for (port, other) in ports.iter().zip(v4.iter().rev()) {
        let ns = port["ns"].as_str().context("no ns")?;
        NetNs::named(ns)?.run(|| answers(*other))??;
    }
    let detached = at_once(&lab, &names, &|name| format!("detach v-net-0 @{name}"))?;
    println!("detached at once in {detached:?}");
    assert_eq!(lab.json("network show v-net-0")?["ports"], serde_json::json!([]));
    assert_eq!(lab.json("status")?["drift"], serde_json::json!([]));
    Ok(())
}

/// One lost packet is forgiven to a busy machine.
fn answers(ip: IpAddr) -> Result<()> {
    ensure!(ping::answers(ip, 2, Duration::from_secs(1))?, "{ip} does not answer");
    Ok(())
}

#[test]
fn contrary_verbs_at_once() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let before = bed.stats()?.len();
    for _ in 0..5 {
        let verbs = ["attach v-net-0 @red", "detach v-net-0 @red", "attach v-net-0 @red", "detach v-net-0 @red"];
        let started = verbs.iter().map(|line| start(&bed.lab, line)).collect::<Result<Vec<_>>>()?;
        for child in started {
            let output = child.wait_with_output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        bed.check_no_drift()?;
    }
    bed.lab.nsnet("attach v-net-0 @red")?;
    assert_eq!(bed.stats()?.len(), before);
    assert!(bed.at("blue").reaches(bed.at("host").v4.into())?);
    Ok(())
}

/// Kills `line` after random delays, `tries` times; each time `line` is done again and must do, and is `undone`.
pub(crate) fn killed(lab: &Lab, line: &str, undo: &str, tries: u32, works: &dyn Fn() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    lab.nsnet(line)?;
    let mut whole = started.elapsed();
    lab.nsnet(undo)?;
    let before = World::of(lab)?;
    let mut random = Random::new(7);
    let mut cut = 0;
    for number in 0..tries {
        let mut child = start(lab, line)?;
        // From before it begins to a little after it ends.
        let delay = Duration::from_micros(random.below(whole.as_micros() as usize * 5 / 4) as u64);
        thread::sleep(delay);
        child.kill()?;
        if child.wait()?.success() {
            // Too late: what the machine did beside has passed, and the verb takes less time than it took first.
            whole = whole * 4 / 5;
        } else {
            cut += 1;
        }
        let what = || format!("try {number}, killed after {delay:?}");
        lab.nsnet(line).with_context(what)?;
        let status = lab.json("status").with_context(what)?;
        ensure!(status["drift"] == serde_json::json!([]), "{}: {}", what(), status["drift"]);
        works().with_context(what)?;
        lab.nsnet(undo).with_context(what)?;
        let mut after = World::of(lab)?;
        // The counter in the file that tells ports apart has gone on.
        ensure!(after.file.is_some() == before.file.is_some(), "{}: {:?}", what(), after.file);
        after.file.clone_from(&before.file);
        assert_eq!(after, before, "{}", what());
    }
    ensure!(cut > tries / 4, "only {cut} of {tries} were killed before their end");
    Ok(())
}
