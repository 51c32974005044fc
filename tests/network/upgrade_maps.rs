//! Upgrades to programs whose maps are others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use aya::maps::{HashMap, Map, MapData};
use nsnet::kernel::migrate::{Conversion, Copying};
use nsnet::kernel::object::Object;
use nsnet_common::layout::names;
use serde_json::{Value, json};

use super::bed::{Bed, Counters, V4};
use super::object::{done_with, pins, refused_with, resized};
use super::outside_bed::{Outside, wan};
use super::stream::{Traffic, publish};
use super::world::{World, refused};

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
    // Those of one moment, of captures, and of devices are not copied.
    let kept = [names::CAPTURE, names::RINGS, names::CAPTURING, names::LOCKS, names::XDP_PORTS];
    let all = names::MAPS.into_iter().filter(|name| *name != names::STAGES && !kept.contains(name));
    let all: Vec<&str> = all.collect();
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
    assert_eq!((copied_by(&answer)?, &answer["kept"], &answer["emptied"]), (copied(), &json!(kept.len()), &json!([])));
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
    becomes("NETWORKS", "NETWORKS_v2")?;
    assert!(refused(lab, "upgrade --allow-loss --force")?.contains("NETWORKS"));
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
