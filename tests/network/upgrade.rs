//! Other programs in the place of those that are loaded: what must go on, and what happens when it cannot be done.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{NlOptions, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramInfo, SchedClassifier, TcAttachType};
use nsnet::kernel::clsact::BpfFilter;
use nsnet::kernel::dataplane::{open_object, program_in};
use nsnet::kernel::features::Features;
use nsnet::kernel::migrate::{Conversion, Copying};
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::object::{Definition, OBJECT, Object};
use nsnet::kernel::store::BPFFS;
use nsnet::lab::Lab;
use nsnet_common::layout::{LAYOUT_VERSION, names};
use serde_json::{Value, json};

use super::bed::{Bed, Counters, Scratch, V4, text};
use super::outside_bed::{HOST4, Outside, wan};
use super::stream::{Datagrams, Talk};
use super::world::{World, complaint, refused};

/// Where the host's pins are.
pub(crate) fn pins(lab: &Lab) -> Result<PathBuf> {
    Ok(Path::new(BPFFS).join(format!("{:x}_v{LAYOUT_VERSION}", lab.ns("host")?.cookie()?)))
}

/// The numbers of the pinned programs.
fn programs(lab: &Lab) -> Result<BTreeSet<u32>> {
    let folder = pins(lab)?.join("programs");
    let entries = fs::read_dir(folder)?.map(|entry| Ok(ProgramInfo::from_pin(entry?.path())?.id()));
    entries.collect()
}

/// The program of ours on one side of an interface of the host's.
fn program_on(lab: &Lab, interface: &str, side: TcAttachType) -> Result<Vec<u32>> {
    let query = || -> Result<_> {
        let (_revision, programs) = SchedClassifier::query_tcx(interface, side)?;
        Ok(programs.iter().map(ProgramInfo::id).collect())
    };
    lab.within("host", query)?
}

/// Runs a verb with another object than the binary's own.
fn with_object(lab: &Lab, object: &Path, line: &str) -> Result<Output> {
    let words = line.split(' ').map(|word| word.strip_prefix('@').map_or(word.to_owned(), |name| lab.name(name)));
    Ok(lab.command(words).env(OBJECT, object).output()?)
}

/// The same, which must do.
fn done_with(lab: &Lab, object: &Path, line: &str) -> Result<Value> {
    let output = with_object(lab, object, &format!("-o json {line}"))?;
    ensure!(output.status.success(), "`{line}`: {}", String::from_utf8_lossy(&output.stderr));
    if output.stdout.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(&output.stdout)?) }
}

/// The same, which must fail and change nothing; what it complained of.
fn refused_with(lab: &Lab, object: &Path, line: &str) -> Result<String> {
    let (before, ids) = (World::of(lab)?, programs(lab)?);
    let output = with_object(lab, object, line)?;
    ensure!(output.status.code() == Some(1), "`{line}`: {output:?}");
    assert_eq!(World::of(lab)?, before, "`{line}` failed and changed something");
    assert_eq!(programs(lab)?, ids, "`{line}` failed and left other programs");
    complaint(&output)
}

/// An object in a file.
fn object_file(lab: &Lab, name: &str, bytes: &[u8]) -> Result<Scratch> {
    let path = std::env::temp_dir().join(format!("{}.o", lab.name(name)));
    fs::write(&path, bytes)?;
    Ok(Scratch(path))
}

/// The binary's object with something behind its end: the same programs, but another object.
fn other_build(lab: &Lab) -> Result<Scratch> {
    let bytes = [Object::own()?.bytes(), b"another"].concat();
    object_file(lab, "other", &bytes)
}

/// The object with instructions changed: each that is `from` becomes `to`.
fn patched(lab: &Lab, name: &str, from: [u8; 8], to: [u8; 8]) -> Result<Scratch> {
    let mut bytes = Object::own()?.bytes().to_vec();
    let mut count = 0;
    for place in bytes.chunks_exact_mut(8).filter(|place| **place == from) {
        place.copy_from_slice(&to);
        count += 1;
    }
    ensure!(count > 0, "the object has no such instruction");
    object_file(lab, name, &bytes)
}

/// The object with maps of another size.
fn resized(lab: &Lab, name: &str, sizes: &[(&str, u32)]) -> Result<Scratch> {
    let object = Object::own()?;
    let definitions = object.definitions()?;
    let mut bytes = object.bytes().to_vec();
    for (map, entries) in sizes {
        let Definition { kind, key_size, value_size, max_entries, flags } = definitions[map];
        // `struct bpf_map_def`, of which the symbol table says whose it is. Maps of the same definition change together.
        let found = [kind as u32, key_size, value_size, max_entries, flags].map(u32::to_ne_bytes).concat();
        let places: Vec<usize> =
            object.bytes().windows(20).enumerate().filter(|(_, at)| *at == found).map(|(at, _)| at).collect();
        ensure!(!places.is_empty(), "the object has no definition of {map}");
        for at in places {
            bytes[at + 12..at + 16].copy_from_slice(&entries.to_ne_bytes());
        }
    }
    object_file(lab, name, &bytes)
}

/// Fails when a hook has another program than the pinned one of its name, or something is left over.
fn check_whole(lab: &Lab) -> Result<()> {
    let pins = pins(lab)?;
    let expected = |name: &str| anyhow::Ok(ProgramInfo::from_pin(pins.join("programs").join(name))?.id());
    let (behind, from_namespace) = (expected(names::CLOSED)?, expected(names::FROM_NAMESPACE)?);
    let uplink = expected(names::FROM_UPLINK)?;
    for port in lab.json("stats")?.as_array().context("no ports")? {
        let interface = text(&port["port"])?;
        let (side, wanted) = match (port["network"].as_str(), port["ns"].as_str()) {
            (None, _) => (TcAttachType::Ingress, vec![uplink]),
            (Some(_), Some(_)) => (TcAttachType::Ingress, vec![from_namespace, behind]),
            (Some(_), None) => (TcAttachType::Egress, vec![expected(names::FROM_HOST)?, behind]),
        };
        let found = program_on(lab, interface, side)?;
        ensure!(found == wanted, "{found:?} on {interface}, not {wanted:?}");
    }
    for name in names::SOCKET_PROGRAMS {
        let link = FdLink::from(PinnedLink::from_pin(pins.join("links").join(name))?);
        let (found, wanted) = (link.info()?.program_id(), expected(name)?);
        ensure!(found == wanted, "{found} at {name}, not {wanted}");
    }
    let draft = PathBuf::from(format!("{}_new", pins.display()));
    ensure!(!draft.exists(), "{} is left over", draft.display());
    Ok(())
}

/// Publishes what the streams go to.
fn publish(bed: &Outside) -> Result<()> {
    ["5003:5003/udp", "6003:6003/tcp"]
        .iter()
        .try_for_each(|spec| bed.lab.nsnet(&format!("publish add @c1 {spec}")).map(drop))
}

/// Streams over every kind of way, and an end to them.
struct Traffic {
    datagrams: Vec<(Datagrams, fn(SocketAddr) -> bool)>,
    talks: Vec<Talk>,
}

impl Traffic {
    /// In a bed with c1 and c2, of which c1 has UDP 5003 and TCP 6003 published.
    fn start(bed: &Outside) -> Result<Self> {
        publish(bed)?;
        Self::start_published(bed)
    }

    /// The same when they are published already.
    fn start_published(bed: &Outside) -> Result<Self> {
        let (c1, c2, outside) = (bed.at("c1"), bed.at("c2"), bed.at("wan"));
        let at = |ip, port| SocketAddr::new(ip, port);
        let datagrams: Vec<(Datagrams, fn(SocketAddr) -> bool)> = vec![
            (Datagrams::start("from c1 to c2", c1, at(c2.v4.into(), 5001), c2, 5001)?, |from| from.ip() != HOST4),
            (Datagrams::start("from c2 to outside", c2, at(wan(false), 5002), outside, 5002)?, |from| {
                from.ip() == HOST4
            }),
            (Datagrams::start("from outside to c1", outside, at(HOST4, 5003), c1, 5003)?, |from| {
                from.ip() == wan(false)
            }),
        ];
        let talks = vec![
            Talk::start("TCP from c1 to c2", c1, at(c2.v4.into(), 6001), c2, 6001)?,
            Talk::start("TCP from c2 to outside", c2, at(wan(false), 6002), outside, 6002)?,
            Talk::start("TCP from outside to c1", outside, at(HOST4, 6003), c1, 6003)?,
        ];
        Ok(Self { datagrams, talks })
    }

    /// A few more packets of each.
    fn go_on(&self) -> Result<()> {
        self.datagrams.iter().try_for_each(|(stream, _)| stream.wait_for(20))
    }

    /// Fails when a packet was lost, overtaken or not translated, or a connection broke. How many there were of each.
    fn finish(self) -> Result<(u64, u64)> {
        let datagrams =
            self.datagrams.into_iter().map(|(stream, sender)| stream.finish(sender)).sum::<Result<u64>>()?;
        let words = self.talks.into_iter().map(Talk::finish).sum::<Result<u64>>()?;
        Ok((datagrams, words))
    }
}

/// F11: 0 lost, 0 overtaken, 0 not translated (the bed's guard sees what leaves), 0 connections reset.
#[test]
fn a_hundred_times_under_traffic() -> Result<()> {
    let bed = Outside::new()?;
    let traffic = Traffic::start(&bed)?;
    let before = World::of(&bed.lab)?;
    let mut ids = programs(&bed.lab)?;
    for number in 0..100 {
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
    println!("100 upgrades, {datagrams} datagrams, {words} words by TCP");
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
    for number in 0..20 {
        let answer = bed.lab.json("upgrade --force").with_context(|| format!("upgrade {number}"))?;
        ensure!(answer["hooks"] == json!(7 + names::SOCKET_PROGRAMS.len()), "{answer}");
        traffic.go_on()?;
    }
    assert_eq!(World::of(&bed.lab)?, before);
    bed.check_no_drift()?;
    let (datagrams, words) = traffic.finish()?;
    println!("20 upgrades, {datagrams} datagrams, {words} words by TCP");
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

/// Every map but one is of twice the size, and back: all of them are copied, and nothing shows it.
#[test]
fn maps_of_another_size_are_copied() -> Result<()> {
    let bed = Outside::new()?;
    let lab = &bed.lab;
    lab.nsnet("network add v-net-9 --subnet 10.99.0.0/24")?;
    lab.nsnet("ns add @guest")?;
    lab.nsnet("attach v-net-9 @guest --mac 02:aa:00:00:00:09 --learn")?;
    lab.nsnet("publish add @c1 7000-7010:7000-7010/udp")?;
    publish(&bed)?;
    let definitions = Object::own()?.definitions()?;
    let all: Vec<&str> = names::MAPS.into_iter().filter(|name| *name != names::STAGES).collect();
    let sizes: Vec<(&str, u32)> = all.iter().map(|name| (*name, 2 * definitions[name].max_entries)).collect();
    let larger = resized(lab, "larger", &sizes)?;
    let copied = || -> BTreeSet<String> { all.iter().map(|name| (*name).to_owned()).collect() };
    let copied_by =
        |answer: &Value| -> Result<BTreeSet<String>> { Ok(serde_json::from_value(answer["copied"].clone())?) };

    // Flows of both families and in every state, with nothing that would change them meanwhile.
    for v6 in [false, true] {
        assert!(bed.at("c1").reaches(wan(v6))?);
    }
    let server = bed.at("wan").run(|| nsnet::lab::TcpServer::start((wan(false), 8000).into()))?;
    bed.at("c2").run(|| nsnet::lab::tcp::transfer(server.addr(), 1000))?;
    let told = || -> Result<_> {
        let mut flows: Vec<String> = bed
            .flows()?
            .iter()
            .map(|flow| format!("{:?}", (flow.source, flow.destination, &flow.state, &flow.ns)))
            .collect();
        flows.sort();
        Ok((flows, lab.json("nat list")?.as_array().map(Vec::len), lab.json("fdb list")?))
    };
    let (before, counted) = (told()?, bed.stats()?);
    assert!(before.0.len() >= 3, "{before:?}");
    let answer = done_with(lab, &larger.0, "upgrade")?;
    assert_eq!((copied_by(&answer)?, &answer["kept"], &answer["emptied"]), (copied(), &json!(0), &json!([])));
    assert_eq!(told()?, before);
    // Kernels speak to their groups now and then.
    let is_less = |(port, now): (&String, &Counters)| now.rx < counted[port].rx || now.tx < counted[port].tx;
    assert!(!bed.stats()?.iter().any(is_less), "{counted:?} became {:?}", bed.stats()?);
    assert_eq!(done_with(lab, &larger.0, "status")?["drift"], json!([]));

    // The binary's own object has smaller ones: it does not touch them before it has made them its own.
    let world = World::of(lab)?;
    for line in
        ["detach v-net-9 @guest", "publish del @c1 7000-7010:7000-7010/udp", "network add n8 --subnet 10.98.0.0/24"]
    {
        let complaint = refused(lab, line)?;
        assert!(complaint.contains("nsnet upgrade"), "`{line}`: {complaint}");
    }
    let status = lab.try_nsnet("status")?;
    assert!(status.status.code() == Some(1) && String::from_utf8_lossy(&status.stdout).contains("nsnet upgrade"));
    let traffic = Traffic::start_published(&bed)?;
    for number in 0..10 {
        let answer = if number % 2 == 0 { lab.json("upgrade")? } else { done_with(lab, &larger.0, "upgrade")? };
        assert_eq!(copied_by(&answer)?, copied());
        traffic.go_on()?;
    }
    let (datagrams, words) = traffic.finish()?;
    println!("10 upgrades with all maps copied, {datagrams} datagrams, {words} words by TCP");
    lab.nsnet("upgrade")?;
    bed.check_no_drift()?;
    assert_eq!(World::of(lab)?, world);

    // One that would not take what there is.
    let smaller = resized(lab, "smaller", &[(names::ADDRESSES, 4)])?;
    let complaint = refused_with(lab, &smaller.0, "upgrade")?;
    assert!(complaint.contains("ADDRESSES") && complaint.contains("more than"), "{complaint}");
    bed.check_no_drift()
}

/// F12: what has another layout is refused by name, or begins empty when the user has said so; it is never misread.
#[test]
fn another_layout_is_never_misread() -> Result<()> {
    let bed = Outside::new()?;
    let lab = &bed.lab;
    assert!(bed.at("c1").reaches(wan(false))?);
    let maps = pins(lab)?.join("maps");
    let becomes = |from: &str, to: &str| fs::rename(maps.join(from), maps.join(to));
    // As a future nsnet would have left it.
    becomes("FLOWS4", "FLOWS4_v7")?;
    for line in ["detach v-net-0 @c2", "upgrade"] {
        assert!(
            refused(lab, line)?.contains(if line == "upgrade" { "--allow-loss" } else { "nsnet upgrade" }),
            "`{line}`"
        );
    }
    for line in ["ct list", "status"] {
        let output = lab.try_nsnet(line)?;
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("nsnet upgrade"), "`{line}`: {said}");
    }
    assert!(bed.at("c1").reaches(wan(false))?, "the programs know nothing of names");
    let output = lab.try_nsnet("upgrade --allow-loss")?;
    let note = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && note.contains("lost: flows"), "{output:?}");
    assert_eq!((bed.flows()?.len(), lab.json("nat list")?), (0, json!([])), "they belong together");
    assert!(!maps.join("FLOWS4_v7").exists());
    assert!(bed.at("c1").reaches(wan(false))?);
    bed.check_no_drift()?;

    // Counters are no reason to refuse.
    becomes("COUNTERS", "COUNTERS_v2")?;
    let output = lab.try_nsnet("upgrade")?;
    assert!(output.status.success() && String::from_utf8_lossy(&output.stderr).contains("counters"), "{output:?}");
    bed.check_no_drift()?;
    // What the control plane has said cannot be lost.
    becomes("PORTS", "PORTS_v2")?;
    assert!(refused(lab, "upgrade --allow-loss --force")?.contains("PORTS"));
    assert!(bed.at("c1").reaches(wan(false))?);
    lab.nsnet("down")?;
    let left = World::of(lab)?;
    assert_eq!((left.pins, left.file), (Vec::new(), None));
    Ok(())
}

/// A layout of two-byte values becomes one of four, in which odd keys have no place; while entries come and go.
#[test]
fn a_conversion_takes_entries_along() -> Result<()> {
    type Old = HashMap<MapData, [u8; 4], [u8; 2]>;
    type New = HashMap<MapData, [u8; 4], [u8; 4]>;
    let bed = Bed::new(V4, &[])?;
    let folder = PathBuf::from(format!("{}_test", pins(&bed.lab)?.display()));
    fs::create_dir(&folder)?;
    let conversion = Conversion {
        map: names::FLOWS4,
        from: 1,
        to: 2,
        entry: |key, value| (key[0] % 2 == 0).then(|| (key.to_vec(), [value, value].concat())),
    };
    let (old_pin, new_pin) = (folder.join("old"), folder.join("new"));
    Old::create(100_000, 0)?.pin(&old_pin)?;
    New::create(50_000, 0)?.pin(&new_pin)?;
    let mut old = Old::try_from(Map::HashMap(MapData::from_pin(&old_pin)?))?;
    let mut new = New::try_from(Map::HashMap(MapData::from_pin(&new_pin)?))?;
    let key = |number: u32| number.to_le_bytes();
    for number in 0..50_000 {
        old.insert(key(number), [1, 2], 0)?;
    }
    let mut copying = Copying::new(names::FLOWS4, &old_pin, &new_pin, Some(conversion))?;
    copying.begin()?;
    let entries = |new: &New| -> Result<BTreeMap<u32, [u8; 4]>> {
        new.iter().map(|entry| entry.map(|(key, value)| (u32::from_le_bytes(key), value)).map_err(Into::into)).collect()
    };
    let even = |range: std::ops::Range<u32>| range.step_by(2).map(|number| (number, [1, 2, 1, 2]));
    assert_eq!(entries(&new)?, even(0..50_000).collect());
    // Meanwhile some went, some came, and the new programs have made one of these themselves.
    (0..1000).try_for_each(|number| old.remove(&key(number)))?;
    (50_000..50_100).try_for_each(|number| old.insert(key(number), [1, 2], 0))?;
    new.insert(key(50_000), [9; 4], 0)?;
    copying.follow()?;
    (50_050..50_100).try_for_each(|number| old.remove(&key(number)))?;
    copying.follow()?;
    let mut expected: BTreeMap<u32, [u8; 4]> = even(1000..50_050).collect();
    expected.insert(50_000, [9; 4]);
    assert_eq!(entries(&new)?, expected);
    Ok(())
}

/// What an upgrade asks the kernel for, when that changes something.
const CALLS: [&str; 9] = ["bpf", "link", "linkat", "mkdir", "membarrier", "renameat2", "unlink", "unlinkat", "rmdir"];

/// `strace` around an upgrade, with this to do to its calls.
fn traced(lab: &Lab, object: &Path, log: &Path, inject: Option<&str>) -> Result<Output> {
    let upgrade = lab.command(["upgrade", "--force"]);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", &format!("trace={}", CALLS.join(",")), "-o"]).arg(log);
    strace.args(inject.map(|what| ["-e".to_owned(), format!("inject={what}")]).into_iter().flatten());
    strace.arg(upgrade.get_program()).args(upgrade.get_args());
    strace.envs(upgrade.get_envs().filter_map(|(key, value)| Some((key, value?)))).env(OBJECT, object);
    strace.output().context("run strace")
}

/// Calls of an upgrade, each by its name and its number: the last ones of each kind, in which hooks change and folders move,
/// one by one or nearly, and a few of those before.
fn points(lab: &Lab, object: &Path, log: &Path) -> Result<Vec<(String, usize)>> {
    let output = traced(lab, object, log, None)?;
    ensure!(output.status.success(), "{output:?}");
    // "1234  bpf(BPF_LINK_UPDATE, ..." Numbers are those of one thread; the main one makes most of each kind.
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in fs::read_to_string(log)?.lines() {
        let mut words = line.split_whitespace();
        let (Some(thread), Some(call)) = (words.next(), words.next()) else { continue };
        if let Some((name, _)) = call.split_once('(') {
            *counts.entry((thread.to_owned(), name.to_owned())).or_default() += 1;
        }
    }
    let mut points = Vec::new();
    for name in CALLS {
        let most = counts.iter().filter(|((_, call), _)| call == name).map(|(_, count)| *count).max().unwrap_or(0);
        let (late, step) = (most.saturating_sub(75), if name == "bpf" { 4 } else { 15 });
        let early = (1..late).step_by((late / 4).max(1));
        points.extend(early.chain((late.max(1)..=most).step_by(step)).map(|number| (name.to_owned(), number)));
    }
    Ok(points)
}

/// F1 of an upgrade: killed at any call, packets go on, and one more run ends with one set of programs.
#[test]
fn killed_at_every_step() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let (lab, other) = (&bed.lab, other_build(&bed.lab)?);
    let log = Scratch(std::env::temp_dir().join(lab.name("strace")));
    let before = World::of(lab)?;
    let points = points(lab, &other.0, &log.0)?;
    let (mut killed, mut cut_in_two) = (0, 0);
    for (number, (call, at)) in points.iter().enumerate() {
        let what = || format!("killed at {call} {at}");
        // Between two builds, to and fro.
        lab.nsnet("upgrade").with_context(what)?;
        let old = programs(lab)?;
        let output = traced(lab, &other.0, &log.0, Some(&format!("{call}:signal=KILL:when={at}")))?;
        killed += u32::from(!output.status.success());
        ensure!(bed.at("red").reaches(bed.at("blue").v4.into())?, "{}: no packet passes", what());
        let now = programs(lab)?;
        ensure!(now == old || now.is_disjoint(&old), "{}: of two sets", what());
        cut_in_two += u32::from(check_whole(lab).is_err());
        // The same verb once more, or any other that changes something.
        if number % 2 == 0 {
            done_with(lab, &other.0, "upgrade").with_context(what)?;
        } else {
            lab.nsnet("ns add @other").with_context(what)?;
            lab.nsnet("ns del @other").with_context(what)?;
        }
        check_whole(lab).with_context(what)?;
        bed.check_no_drift().with_context(what)?;
        ensure!(bed.at("red").reaches(bed.at("blue").v4.into())?, "{}: no packet passes after it", what());
    }
    println!("{} points, {killed} killed, {cut_in_two} of them with something to settle", points.len());
    ensure!(killed > points.len() as u32 * 3 / 4 && cut_in_two > 10, "{killed} killed, {cut_in_two} in between");
    lab.nsnet("upgrade")?;
    assert_eq!(World::of(lab)?, before);
    Ok(())
}

/// F2 of an upgrade: a call that fails leaves the old programs, or does not matter.
#[test]
fn errors_are_taken_back() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let (lab, other) = (&bed.lab, other_build(&bed.lab)?);
    let log = Scratch(std::env::temp_dir().join(lab.name("strace")));
    let (mut failed, mut done) = (0, 0);
    for (call, at) in points(lab, &other.0, &log.0)? {
        lab.nsnet("upgrade")?;
        let (old, before) = (programs(lab)?, World::of(lab)?);
        let output = traced(lab, &other.0, &log.0, Some(&format!("{call}:error=ENOMEM:when={at}")))?;
        let what = || format!("error at {call} {at}: {output:?}");
        if output.status.success() {
            done += 1;
            ensure!(programs(lab)?.is_disjoint(&old), "{}", what());
            lab.nsnet("ns del @nobody").with_context(what)?;
        } else {
            failed += 1;
            // What the kernel is found able to do may depend on the call, so the cause has many names.
            ensure!(output.status.code() == Some(1) && complaint(&output).is_ok(), "{}", what());
            assert_eq!(programs(lab)?, old, "{}", what());
        }
        assert_eq!(World::of(lab)?, before, "{}", what());
        check_whole(lab).with_context(what)?;
        ensure!(bed.at("red").reaches(bed.at("blue").v4.into())?, "{}", what());
    }
    println!("{failed} failed and were taken back, {done} did all the same");
    ensure!(failed > 20, "only {failed} failed");
    bed.check_no_drift()
}

/// Programs of others at our hooks, with the names of ours: a first and a last one.
#[test]
fn programs_of_others_stay() -> Result<()> {
    let bed = Outside::new()?;
    let lab = &bed.lab;
    let interfaces = ["uplink", &bed.at("c1").port];
    // With nothing in its maps it lets everything pass.
    let open = || lab.within("host", || open_object(Features::probe()));
    let (mut first, mut last) = (open()??, open()??);
    let mut ids = Vec::new();
    for (object, order) in [(&mut first, LinkOrder::first as fn() -> LinkOrder), (&mut last, LinkOrder::last)] {
        let program = program_in(object, names::FROM_UPLINK)?;
        ids.push(program.info()?.id());
        for interface in interfaces {
            let options = TcAttachOptions::TcxOrder(order());
            lab.within("host", || program.attach_with_options(interface, TcAttachType::Ingress, options))??;
        }
    }
    let around = |interface: &str| -> Result<Vec<u32>> { program_on(lab, interface, TcAttachType::Ingress) };
    let before = interfaces.iter().map(|interface| around(interface)).collect::<Result<Vec<_>>>()?;
    let traffic = Traffic::start(&bed)?;
    for _ in 0..3 {
        lab.nsnet("upgrade --force")?;
        traffic.go_on()?;
        for (interface, before) in interfaces.iter().zip(&before) {
            let after = around(interface)?;
            assert_eq!(
                (after.len(), after.first(), after.last()),
                (before.len(), ids.first(), ids.last()),
                "{interface}"
            );
            assert!(after[1..after.len() - 1].iter().all(|id| !before.contains(id)), "{before:?} became {after:?}");
        }
    }
    traffic.finish()?;
    lab.nsnet("down")?;
    assert_eq!(around("uplink")?, ids);
    Ok(())
}

/// The same with filters.
#[test]
fn filters_of_others_stay() -> Result<()> {
    let mut lab = super::bed::lab()?;
    lab.treat_as_missing("tcx");
    let bed = Outside::inside(lab, "--masquerade", &["c1", "c2"])?;
    let lab = &bed.lab;
    let interfaces = ["uplink", &bed.at("c1").port];
    let netlink = Netlink::inside(&lab.ns("host")?)?;
    let mut theirs = lab.within("host", || open_object(Features::probe()))??;
    let program = program_in(&mut theirs, names::FROM_UPLINK)?;
    let id = program.info()?.id();
    for interface in interfaces {
        let options = TcAttachOptions::Netlink(NlOptions::default());
        lab.within("host", || program.attach_with_options(interface, TcAttachType::Ingress, options))??;
    }
    let filters = |interface: &str| anyhow::Ok(netlink.bpf_filters(netlink.existing_link(interface)?.index)?);
    let of = |interface: &str, ours: bool| -> Result<Vec<BpfFilter>> {
        Ok(filters(interface)?.into_iter().filter(|filter| (filter.program != id) == ours).collect())
    };
    let before = interfaces.iter().map(|interface| anyhow::Ok((of(interface, false)?, of(interface, true)?)));
    let before = before.collect::<Result<Vec<_>>>()?;
    let traffic = Traffic::start(&bed)?;
    for _ in 0..3 {
        lab.nsnet("upgrade --force")?;
        traffic.go_on()?;
        for (interface, (theirs, ours)) in interfaces.iter().zip(&before) {
            assert_eq!(&of(interface, false)?, theirs, "{interface}");
            let now = of(interface, true)?;
            // In the same places, with other programs.
            let numbers = |filters: &[BpfFilter]| -> Vec<u32> { filters.iter().map(|filter| filter.program).collect() };
            assert!(now.len() == ours.len() && numbers(&now).iter().all(|id| !numbers(ours).contains(id)), "{now:?}");
        }
    }
    traffic.finish()?;
    lab.nsnet("down")?;
    let left = filters("uplink")?;
    assert_eq!(left.iter().map(|filter| filter.program).collect::<Vec<_>>(), [id], "{left:?}");
    assert!(netlink.interfaces_with_clsact()?.contains(&netlink.existing_link("uplink")?.index));
    Ok(())
}
