//! Verbs done twice, with other arguments, on two hosts, and undone.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, loaded_programs};
use nsnet::kernel::netlink::Netlink;
use nsnet_common::layout::names;

use super::bed::{Bed, DUAL, NETWORK, V4, binary, lab, until};
use super::traffic::{Amount, exchange, exchange_everywhere};
use super::world::{World, refused};

/// One of each object, in an order in which each can be made; and the same backwards.
const MAKE: [&str; 6] = [
    "ns add @red @blue @orange",
    "network add v-net-0 --subnet 192.168.15.0/24 fd15::/64 --gateway 192.168.15.5",
    "attach v-net-0 @red --ip 192.168.15.1",
    "attach v-net-0 @blue --ifname eth0 --mac 02:aa:00:00:00:01",
    "cable add @red @orange --address-a 10.0.0.1/30 --address-b 10.0.0.2/30",
    "route add @blue 192.168.1.0/24 via 192.168.15.5",
];
const UNMAKE: [&str; 6] = [
    "route del @blue 192.168.1.0/24",
    "cable del @orange @red",
    "detach v-net-0 @blue",
    "detach v-net-0 @red",
    "network del v-net-0",
    "ns del @red @blue @orange",
];

#[test]
fn every_verb_twice() -> Result<()> {
    let lab = lab()?;
    let empty = World::of(&lab)?;
    for line in MAKE.into_iter().chain(UNMAKE) {
        let answer = lab.nsnet(line)?;
        let once = World::of(&lab)?;
        assert_eq!(lab.nsnet(line)?, answer, "`{line}` answers differently the second time");
        assert_eq!(World::of(&lab)?, once, "`{line}` changed something the second time");
        assert_eq!(lab.json("status")?["drift"], serde_json::json!([]), "after `{line}`");
    }
    assert_eq!(World::of(&lab)?, empty);
    // And all of it, once more, when nothing is left.
    for line in UNMAKE.into_iter().chain(["down"]) {
        lab.nsnet(line)?;
    }
    assert_eq!(World::of(&lab)?, empty);
    Ok(())
}

#[test]
fn other_arguments_are_an_error_that_shows_both() -> Result<()> {
    let lab = lab()?;
    MAKE.iter().try_for_each(|line| lab.nsnet(line).map(drop))?;
    for (line, had, asked) in [
        ("network add v-net-0 --subnet 10.1.0.0/24", "192.168.15.0/24", "10.1.0.0/24"),
        ("network add v-net-0 --subnet 192.168.15.0/24", "fd15::/64", "192.168.15.0/24"),
        (
            "network add v-net-0 --subnet 192.168.15.0/24 fd15::/64 --gateway 192.168.15.9",
            "192.168.15.5",
            "192.168.15.9",
        ),
        ("network add v-net-0 --subnet 192.168.15.0/24 fd15::/64 --mtu 9000", "1500", "9000"),
        ("attach v-net-0 @red --ip 192.168.15.7", "192.168.15.1", "192.168.15.7"),
        ("attach v-net-0 @blue --mac 02:aa:00:00:00:02", "02:aa:00:00:00:01", "02:aa:00:00:00:02"),
        ("attach v-net-0 @blue --ifname eth1", "eth0", "eth1"),
        ("attach v-net-0 @blue --learn", "@blue", "v-net-0"),
        ("attach v-net-0 @blue --trusted", "@blue", "v-net-0"),
        ("cable add @red @orange --address-a 10.0.0.5/30", "10.0.0.1/30", "10.0.0.5/30"),
        ("cable add @orange @red --address-a 10.0.0.1/30", "10.0.0.2/30", "10.0.0.1/30"),
        ("route add @blue 192.168.1.0/24 via 192.168.15.6", "192.168.15.5", "192.168.15.6"),
    ] {
        let complaint = refused(&lab, line)?;
        for part in [had, asked] {
            let part = part.strip_prefix('@').map_or(part.to_owned(), |name| lab.name(name));
            assert!(complaint.contains(&part), "`{line}` does not mention {part}: {complaint}");
        }
    }
    Ok(())
}

#[test]
fn deleting_what_is_not_there_is_done_already() -> Result<()> {
    let lab = lab()?;
    lab.nsnet("ns add @red @blue")?;
    lab.nsnet("network add v-net-0 --subnet 192.168.15.0/24")?;
    let before = World::of(&lab)?;
    for line in [
        "ns del @nobody",
        "ns del @nobody --force",
        "network del v-net-9",
        "detach v-net-0 @red",
        "detach v-net-9 @red",
        "detach v-net-0 @nobody",
        "cable del @red @blue",
        "cable del @red @nobody",
        "route del @red default",
        "route del @red 10.0.0.0/8",
        "route del @nobody default",
    ] {
        lab.nsnet(line)?;
        assert_eq!(World::of(&lab)?, before, "`{line}`");
    }
    Ok(())
}

#[test]
fn what_is_in_use_stays_unless_forced() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    bed.lab.nsnet("ns add @orange")?;
    bed.lab.nsnet("cable add @orange @blue")?;
    assert!(refused(&bed.lab, "ns del @red")?.contains(NETWORK));
    assert!(refused(&bed.lab, "ns del @orange")?.contains(&bed.lab.name("blue")));
    assert!(refused(&bed.lab, "network del v-net-0")?.contains(&bed.lab.name("red")));
    // One that could go is not deleted when its neighbour cannot.
    bed.lab.nsnet("ns add @free")?;
    refused(&bed.lab, "ns del @free @red")?;

    bed.lab.nsnet("ns del @red --force")?;
    assert!(bed.lab.ns("red").is_err());
    bed.check_no_drift()?;
    bed.lab.nsnet("network del v-net-0 --force")?;
    bed.check_no_drift()?;
    let left = Netlink::inside(&bed.lab.ns("blue")?)?.links()?;
    assert_eq!(left.len(), 2, "loopback and the cable: {left:?}");
    bed.lab.nsnet("ns del @blue --force")?;
    assert_eq!(Netlink::inside(&bed.lab.ns("orange")?)?.links()?.len(), 1);
    bed.check_no_drift()
}

#[test]
fn a_foreign_namespace_is_adopted_and_left() -> Result<()> {
    let mut lab = lab()?;
    lab.make("foreign")?;
    let before = World::of(&lab)?;
    let output = lab.try_nsnet("ns add @foreign")?;
    assert!(output.status.success());
    let note = String::from_utf8(output.stderr)?;
    assert!(note.contains(&lab.name("foreign")) && note.contains("adopted"), "{note}");
    let host = lab.name("host");
    assert!(refused(&lab, "ns add @host")?.contains(&host));
    for end in ["ns del @foreign --force", "down"] {
        lab.nsnet("ns add @foreign @mine")?;
        lab.nsnet("network add v-net-0 --subnet 192.168.15.0/24")?;
        lab.nsnet("attach v-net-0 @foreign")?;
        lab.nsnet("cable add @foreign @mine")?;
        lab.nsnet(end)?;
        lab.nsnet("down")?;
        assert_eq!(World::of(&lab)?, before, "after `{end}`");
    }
    Ok(())
}

#[test]
fn down_leaves_nothing() -> Result<()> {
    let lab = lab()?;
    let before = World::of(&lab)?;
    assert_eq!((&before.file, before.pins.len()), (&None, 0));
    MAKE.iter().try_for_each(|line| lab.nsnet(line).map(drop))?;
    let full = World::of(&lab)?;
    assert!(full.file.is_some() && full.pins.len() > 10, "{:?}", full.pins);
    let programs = full.pins.iter().filter(|path| path.contains("/programs/"));
    let ids = programs.map(|path| Ok(SchedClassifier::from_pin(path)?.info()?.id())).collect::<Result<Vec<_>>>()?;
    assert_eq!(ids.len(), names::PROGRAMS.len() + names::SOCKET_PROGRAMS.len() + names::XDP_PROGRAMS.len());
    lab.nsnet("down")?;
    assert_eq!(World::of(&lab)?, before);
    // The kernel frees programs a grace period later.
    let is_loaded = || loaded_programs().flatten().any(|program| ids.contains(&program.id()));
    until(Duration::from_secs(10), || Ok(!is_loaded())).context("the programs are still loaded")?;
    Ok(())
}

#[test]
fn two_hosts_do_not_see_each_other() -> Result<()> {
    let (one, other) = (Bed::new(DUAL, &["red", "blue"])?, Bed::new(DUAL, &["red"])?);
    let (here, there) = (World::of(&one.lab)?, other.at("red"));
    assert!(!there.reaches(one.at("blue").v4.into())?, "the other host's blue answers");
    assert_eq!(one.lab.json("network list")?[0]["ports"], 2);
    assert_eq!(other.lab.json("network list")?[0]["ports"], 1);
    assert_eq!(other.stats()?.len(), 3, "the host, red and the uplink");
    assert!(there.reaches(other.at("host").v4.into())?);
    other.lab.nsnet("down")?;
    assert_eq!(World::of(&one.lab)?, here);
    one.check_no_drift()?;
    exchange(&one, "red", "blue", Amount::Little)
}

#[test]
fn inside_ip_netns_exec() -> Result<()> {
    let lab = lab()?;
    let run = |line: &str| -> Result<()> {
        let words = line.split(' ').map(|word| word.strip_prefix('@').map_or(word.to_owned(), |name| lab.name(name)));
        // No --host-ns: the current namespace is the host. Its mount namespace ends with the command.
        let mut ip = Command::new("ip");
        ip.args(["netns", "exec", &lab.name("host")]).arg(fs::canonicalize(binary())?).args(words);
        let output = ip.output().context("this test needs `ip` of iproute2")?;
        ensure!(output.status.success(), "`{line}`: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    run("ns add @red @blue")?;
    run("network add v-net-0 --subnet 192.168.15.0/24 fd15::/64")?;
    run("attach v-net-0 @red")?;
    run("attach v-net-0 @blue")?;
    // Seen from outside it is all there, and adding it again finds it as it is.
    let before = World::of(&lab)?;
    let bed = Bed::inside(lab, DUAL, &["red", "blue"])?;
    assert_eq!(World::of(&bed.lab)?, before);
    bed.check_no_drift()?;
    exchange_everywhere(&bed, Amount::Little)
}
