//! Other programs in the place of those that are loaded: what must go on, and what happens when it cannot be done.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nsnet::kernel::features::Features;
use nsnet::kernel::object::Object;
use nsnet_common::layout::names;
use serde_json::{Value, json};

use super::bed::{Bed, Scratch, V4, text};
use super::object::{
    check_whole, done_with, object_file, other_build, patched, programs, refused_with, resized, with_object,
};
use super::outside_bed::Outside;
use super::stream::Traffic;
use super::world::World;

/// F11: 0 lost, 0 overtaken, 0 not translated (the bed's guard sees what leaves), 0 connections reset. 30 upgrades, or as
/// many as NSNET_UPGRADES says.
#[test]
fn again_and_again_under_traffic() -> Result<()> {
    let upgrades: usize = std::env::var("NSNET_UPGRADES").map_or(Ok(30), |text| text.parse())?;
    let bed = Outside::new()?;
    let traffic = Traffic::start(&bed)?;
    let before = World::of(&bed.lab)?;
    let mut ids = programs(&bed.lab)?;
    for number in 0..upgrades {
        let answer = bed.lab.json("upgrade --force").with_context(|| format!("upgrade {number}"))?;
        // Two for each of two namespaces and the network, the uplink's, and ten at sockets.
        ensure!(answer["hooks"] == json!(7 + names::SOCKET_PROGRAMS.len()), "{answer}");
        let now = programs(&bed.lab)?;
        ensure!(now.len() == ids.len() && now.is_disjoint(&ids), "upgrade {number} kept a program");
        ids = now;
        traffic.go_on()?;
    }
    assert_eq!(World::of(&bed.lab)?, before);
    bed.check_no_drift()?;
    let (datagrams, words) = traffic.finish()?;
    println!("{upgrades} upgrades, {datagrams} datagrams, {words} words by TCP");
    Ok(())
}

/// The same with filters, where there is no tcx.
#[test]
fn under_traffic_with_clsact() -> Result<()> {
    let mut lab = super::bed::lab()?;
    lab.treat_as_missing("tcx");
    let bed = Outside::inside(lab, "--masquerade", &["c1", "c2"])?;
    let traffic = Traffic::start(&bed)?;
    let before = World::of(&bed.lab)?;
    for number in 0..10 {
        let answer = bed.lab.json("upgrade --force").with_context(|| format!("upgrade {number}"))?;
        ensure!(answer["hooks"] == json!(7 + names::SOCKET_PROGRAMS.len()), "{answer}");
        traffic.go_on()?;
    }
    assert_eq!(World::of(&bed.lab)?, before);
    bed.check_no_drift()?;
    let (datagrams, words) = traffic.finish()?;
    println!("10 upgrades, {datagrams} datagrams, {words} words by TCP");
    Ok(())
}

#[test]
fn what_is_due_is_told_and_done_once() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let other = other_build(&bed.lab)?;
    let own = Object::own()?.build(Features::probe()).to_string();
    let status = bed.lab.json("status")?;
    assert_eq!((&status["upgrade_due"], text(&status["build"])?), (&json!(false), own.as_str()));
    assert_eq!(status["build_version"], env!("CARGO_PKG_VERSION"));
    let (before, ids) = (World::of(&bed.lab)?, programs(&bed.lab)?);
    assert_eq!(bed.lab.json("upgrade")?["result"], "current");
    assert_eq!((World::of(&bed.lab)?, programs(&bed.lab)?), (before, ids.clone()), "nothing was to be done");

    // Another build finds the older programs, and works with them.
    let status = done_with(&bed.lab, &other.0, "status")?;
    assert_eq!(
        (&status["upgrade_due"], &status["drift"], text(&status["build"])?),
        (&json!(true), &json!([]), own.as_str())
    );
    let note = with_object(&bed.lab, &other.0, "status")?;
    assert!(String::from_utf8_lossy(&note.stderr).contains("nsnet upgrade"), "{note:?}");
    done_with(&bed.lab, &other.0, "ns add @green")?;
    done_with(&bed.lab, &other.0, "attach v-net-0 @green")?;
    assert_eq!(programs(&bed.lab)?, ids);
    let green = bed.lab.json("attach v-net-0 @green")?;
    assert!(bed.at("red").reaches(text(&green["ip"][0])?.parse()?)?);

    let answer = done_with(&bed.lab, &other.0, "upgrade")?;
    assert_eq!((text(&answer["result"])?, text(&answer["before"])?), ("upgraded", own.as_str()));
    assert_eq!(done_with(&bed.lab, &other.0, "status")?["build"], answer["build"]);
    assert!(programs(&bed.lab)?.is_disjoint(&ids));
    assert_eq!(done_with(&bed.lab, &other.0, "upgrade")?["result"], "current");
    // And back, which is an upgrade like any other.
    assert_eq!(bed.lab.json("status")?["upgrade_due"], json!(true));
    assert_eq!(bed.lab.json("upgrade")?["result"], "upgraded");
    bed.check_no_drift()?;
    assert!(bed.at("red").reaches(bed.at("blue").v4.into())?);
    let empty = super::bed::lab()?;
    let before = World::of(&empty)?;
    assert_eq!(empty.json("upgrade")?["result"], "not loaded");
    assert_eq!(World::of(&empty)?, before);
    Ok(())
}

/// `apply` brings its own programs along; when it is refused, or they are no good, the others stay.
#[test]
fn apply_replaces_the_programs_first() -> Result<()> {
    let bed = Outside::new()?;
    let traffic = Traffic::start(&bed)?;
    let lab = &bed.lab;
    let (other, ids) = (other_build(lab)?, programs(lab)?);
    lab.nsnet("apply")?;
    assert_eq!(programs(lab)?, ids, "its own programs are there");
    let build = |object: &Object| object.build(Features::probe()).to_string();
    let planned = |object: &Path, line: &str| -> Result<Value> {
        let (before, ids) = (World::of(lab)?, programs(lab)?);
        let plan = done_with(lab, object, line)?;
        assert_eq!((World::of(lab)?, programs(lab)?), (before, ids), "`{line}` changed something");
        Ok(plan["steps"].clone())
    };
    let first = planned(&other.0, "plan")?[0].clone();
    assert_eq!((&first["action"], &first["object"]), (&json!("change"), &json!("dataplane")));
    let from = &first["differences"][0];
    assert_eq!((text(&from["what"])?, text(&from["is"])?), ("build", build(Object::own()?).as_str()));
    assert_eq!(planned(&other.0, "plan")?.as_array().map(Vec::len), Some(1), "there is no other drift");

    let twice = ["a", "b"].map(|name| format!("[[network]]\nname = \"{name}\"\nsubnet = \"10.50.0.0/24\"\n")).concat();
    let file = object_file(lab, "declared", twice.as_bytes())?;
    let broken = object_file(lab, "noise", b"no object at all")?;
    for verb in ["plan", "apply"] {
        refused_with(lab, &other.0, &format!("{verb} -f {}", file.0.display()))?;
        refused_with(lab, &broken.0, verb)?;
    }
    traffic.go_on()?;

    let answer = with_object(lab, &other.0, "apply")?;
    assert!(answer.status.success() && String::from_utf8_lossy(&answer.stderr).contains("replaced"), "{answer:?}");
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    let lines: Vec<&str> = answer.lines().collect();
    assert!(matches!(lines[..], ["~ dataplane", _, "0 added, 1 changed, 0 removed"]), "{answer}");
    assert!(programs(lab)?.is_disjoint(&ids));
    assert_eq!(done_with(lab, &other.0, "status")?["upgrade_due"], json!(false));
    check_whole(lab)?;
    traffic.go_on()?;
    // And from programs whose maps are others, which nothing else touches.
    let stations = Object::own()?.definitions()?[names::STATIONS].max_entries;
    let larger = resized(lab, "larger", &[(names::STATIONS, 2 * stations)])?;
    assert!(refused_with(lab, &larger.0, "ns add @never")?.contains("nsnet upgrade"));
    let more = "[[ns]]\nname = \"@more\"\n[[network]]\nname = \"more\"\nsubnet = \"10.51.0.0/24\"\n";
    let more = object_file(lab, "more", more.replace("@more", &lab.name("more")).as_bytes())?;
    let line = format!("plan -f {}", more.0.display());
    let plan = planned(&larger.0, &line)?;
    assert!(plan[0]["does"].to_string().contains("copy STATIONS"), "{plan}");
    // Of the rest it tells what the file changes: all that is not in it goes.
    let rest: Vec<String> = plan.as_array().context("no steps")?[1..]
        .iter()
        .map(|step| Ok(format!("{} {}", text(&step["action"])?, text(&step["object"])?)))
        .collect::<Result<_>>()?;
    for wanted in ["remove network v-net-0".to_owned(), format!("add namespace {}", lab.name("more"))] {
        assert!(rest.contains(&wanted), "no {wanted}: {rest:?}");
    }
    done_with(lab, &larger.0, "apply")?;
    assert_eq!(done_with(lab, &larger.0, "status")?["upgrade_due"], json!(false));
    lab.nsnet("apply")?;
    bed.check_no_drift()?;
    traffic.finish()?;
    Ok(())
}

/// Behaviour 23 of an upgrade: the key by which NAT chooses ports stays, too.
#[test]
fn nat_goes_on_choosing_the_same_ports() -> Result<()> {
    let bed = Outside::with("--snat-ports 20000-29999", &[], &["g1", "g2"])?;
    let (g1, g2, at_wan) = (bed.end("g1")?, bed.end("g2")?, bed.end("wan")?);
    let datagram = |end: &super::outside_bed::End| {
        super::packet::Packet::udp(end.endpoint(false, 4000), super::outside_bed::remote(false, 1, 443), b"x")
    };
    // The first keeps its port, the second gets another.
    let kept = g1.carry(&datagram(&g1), &at_wan)?.from();
    let chosen = g2.carry(&datagram(&g2), &at_wan)?.from();
    assert_eq!((kept.port(), chosen.port() == 4000), (4000, false));
    bed.lab.nsnet("upgrade --force")?;
    assert_eq!(g2.carry(&datagram(&g2), &at_wan)?.from(), chosen, "of the same flow");
    bed.lab.nsnet("ct flush")?;
    g1.carry(&datagram(&g1), &at_wan)?;
    assert_eq!(g2.carry(&datagram(&g2), &at_wan)?.from(), chosen, "of a new one");
    Ok(())
}

/// Whatever is wrong with the new programs, the old ones stay.
#[test]
fn broken_objects_change_nothing() -> Result<()> {
    const DROP: [u8; 8] = [0xb7, 0, 0, 0, 2, 0, 0, 0];
    let bed = Outside::new()?;
    let traffic = Traffic::start(&bed)?;
    let lab = &bed.lab;
    let cases = [
        // r0 = 2, with which `closed` and others drop, becomes r0 = 0: everything may pass.
        (patched(lab, "open", DROP, [0xb7, 0, 0, 0, 0, 0, 0, 0])?, "ended with action 0, not 2"),
        // ... or r0 += 2, of a register that holds nothing: the verifier refuses it.
        (patched(lab, "refused", DROP, [0x07, 0, 0, 0, 2, 0, 0, 0])?, "load program"),
        (object_file(lab, "noise", b"no object at all")?, "read the eBPF object"),
        (object_file(lab, "cut", &Object::own()?.bytes()[..100_000])?, "read the eBPF object"),
        (Scratch("/no/such/file".into()), "/no/such/file"),
    ];
    for (file, cause) in &cases {
        let complaint = refused_with(lab, &file.0, "upgrade")?;
        assert!(complaint.contains(cause), "{cause}: {complaint}");
        traffic.go_on()?;
    }
    bed.check_no_drift()?;
    traffic.finish()?;
    Ok(())
}
