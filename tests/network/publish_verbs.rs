//! Publishing: what is granted and refused, what is entered into the dataplane, and that nothing stays behind.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, LpmTrie, Map, MapData};
use nsnet::kernel::store::BPFFS;
use nsnet::kernel::{reserved, sysctl};
use nsnet::lab::{HOST_IP, Lab};

use nsnet_common::layout::{LAYOUT_VERSION, PortId, Publish, PublishedKey, names};
use nsnet_common::wire::{IpAddress, IpProtocol};
use serde_json::{Value, json};

use super::bed::{Bed, DUAL, V4, text};
use super::world::{World, refused};

/// Reserved with any published port: what namespaces are given that come to it by an address of the host's.
const POOL: &str = "16384-32767";
const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";

fn pin(lab: &Lab, name: &str) -> Result<std::path::PathBuf> {
    let key = format!("{:x}", lab.ns("host")?.cookie()?);
    Ok(Path::new(BPFFS).join(format!("{key}_v{LAYOUT_VERSION}")).join("maps").join(name))
}

fn published(lab: &Lab) -> Result<LpmTrie<MapData, PublishedKey, u32>> {
    Ok(LpmTrie::try_from(Map::LpmTrie(MapData::from_pin(pin(lab, names::PUBLISHED)?)?))?)
}

fn publishes(lab: &Lab) -> Result<Array<MapData, Publish>> {
    Ok(Array::try_from(Map::Array(MapData::from_pin(pin(lab, names::PUBLISHES)?)?))?)
}

/// What the dataplane holds: prefixes, and entries with an owner by their place.
fn entered(lab: &Lab) -> Result<(usize, BTreeMap<u32, Publish>)> {
    let prefixes = published(lab)?.keys().count();
    let table = publishes(lab)?;
    let mut entries = BTreeMap::new();
    for (place, entry) in (0_u32..).zip(table.iter()) {
        let entry = entry?;
        if entry.owner != PortId::NONE {
            entries.insert(place, entry);
        }
    }
    Ok((prefixes, entries))
}

/// What a packet to the host's `ip` and `port` finds under this very address.
fn lookup(lab: &Lab, protocol: IpProtocol, ip: &str, port: u16) -> Result<Option<(u32, Publish)>> {
    let key = PublishedKey::new(protocol, IpAddress::from(ip.parse::<IpAddr>()?), port);
    let Ok(place) = published(lab)?.get(&aya::maps::lpm_trie::Key::new(PublishedKey::BITS, key), 0) else {
        return Ok(None);
    };
    Ok(Some((place, publishes(lab)?.get(&place, 0)?)))
}

fn reserved(lab: &Lab) -> Result<String> {
    Ok(lab.within("host", reserved::current)??.to_string())
}

/// One row for each published port or range.
fn list(lab: &Lab) -> Result<Vec<Value>> {
    Ok(lab.json("publish list")?.as_array().context("`publish list` is no array")?.clone())
}

#[test]
fn what_is_added_is_listed_entered_and_gone_when_deleted() -> Result<()> {
    let bed = Bed::new(DUAL, &["red", "blue"])?;
    let (lab, red) = (&bed.lab, bed.at("red"));
    assert_eq!(lab.json("publish list")?, json!([]));
    let made = lab.json("publish add @red 8080:80")?;
    let expected = json!({
        "ns": lab.name("red"),
        "host_ip": ["0.0.0.0", "::"],
        "host_ports": "8080",
        "target": [format!("{}:80", red.v4), format!("[{}]:80", red.v6)],
        "protocol": "tcp",
        "spec": "8080:80/tcp",
    });
    assert_eq!(made, expected);
    lab.nsnet("publish add @blue 127.0.0.1:8080:80/udp")?;
    lab.nsnet("publish add @blue [::1]:9000-9010:80-90")?;
    let (prefixes, entries) = entered(lab)?;
    // 9000-9007, 9008-9009, 9010.
    assert_eq!((prefixes, entries.len()), (2 + 1 + 3, 4));
    assert!(!entries.contains_key(&0), "place 0 stands for none");
    let mut rows = list(lab)?;
    assert_eq!(rows.iter().map(|row| row["hits"].as_u64()).collect::<Vec<_>>(), [Some(0); 3]);
    rows[0].as_object_mut().context("a row is no object")?.remove("hits");
    assert_eq!(rows[0], expected);

    let (_, v4) = lookup(lab, IpProtocol::TCP, "0.0.0.0", 8080)?.context("8080 is not entered")?;
    let (_, v6) = lookup(lab, IpProtocol::TCP, "::", 8080)?.context("8080 is not entered")?;
    assert_eq!((v4.target, v6.target), (IpAddress::from(IpAddr::V4(red.v4)), IpAddress::from(IpAddr::V6(red.v6))));
    assert_eq!((v4.owner, v4.network, v4.protocol), (v6.owner, v6.network, IpProtocol::TCP.0));
    assert_eq!((v4.first, v4.last, v4.target_first), (8080, 8080, 80));
    for port in 9000..=9010 {
        let (_, range) =
            lookup(lab, IpProtocol::TCP, "::1", port)?.with_context(|| format!("{port} is not entered"))?;
        assert_eq!(range.target_port(port), Some(port - 9000 + 80));
    }
    for (protocol, ip, port) in [
        (IpProtocol::UDP, "0.0.0.0", 8080),
        (IpProtocol::TCP, "127.0.0.1", 8080),
        (IpProtocol::TCP, "0.0.0.0", 8081),
        (IpProtocol::TCP, "::1", 8999),
        (IpProtocol::TCP, "::1", 9011),
        (IpProtocol::TCP, "::", 9000),
    ] {
        assert_eq!(lookup(lab, protocol, ip, port)?, None, "{ip} {port}");
    }
    assert_eq!(reserved(lab)?, format!("8080,9000-9010,{POOL}"));

    // As given, as printed, and what is not there.
    lab.nsnet("publish del @red 8080:80")?;
    assert_eq!(lookup(lab, IpProtocol::TCP, "0.0.0.0", 8080)?, None);
    for line in ["publish del @red 8080:80", "publish del @red [::1]:9000-9010:80-90", "publish del @nobody 80"] {
        lab.nsnet(line)?;
        assert_eq!(list(lab)?.len(), 2, "`{line}`");
    }
    for row in list(lab)? {
        lab.nsnet(&format!("publish del {} {}", text(&row["ns"])?, text(&row["spec"])?))?;
    }
    assert_eq!(entered(lab)?, (0, BTreeMap::new()));
    assert_eq!((list(lab)?, reserved(lab)?), (Vec::new(), String::new()));
    // A place that is used again is told from what it was.
    lab.nsnet("publish add @blue 8080:80")?;
    let (_, again) = lookup(lab, IpProtocol::TCP, "0.0.0.0", 8080)?.context("8080 is not entered")?;
    assert_ne!(again.epoch, v4.epoch);
    bed.check_no_drift()
}

#[test]
fn twice_is_once_and_a_chosen_port_stays() -> Result<()> {
    let bed = Bed::new(DUAL, &["red", "blue"])?;
    let lab = &bed.lab;
    for line in [
        "publish add @red 8080:80",
        "publish add @red :80",
        "publish add @red 8080-8090:80",
        "publish add @blue 8080-8090:80",
    ] {
        let answer = lab.json(line)?;
        let once = (World::of(lab)?, entered(lab)?);
        assert_eq!(lab.json(line)?, answer, "`{line}`");
        let printed = format!("publish add {} {}", text(&answer["ns"])?, text(&answer["spec"])?);
        assert_eq!(lab.json(&printed)?, answer, "`{printed}`");
        assert_eq!((World::of(lab)?, entered(lab)?), once, "`{line}` changed something the second time");
    }
    let ports: Vec<Value> = list(lab)?.into_iter().map(|row| row["host_ports"].clone()).collect();
    assert_eq!((&ports[0], &ports[2], &ports[3]), (&json!("8080"), &json!("8081"), &json!("8082")));
    let range = lab.within("host", || sysctl::read("net/ipv4/ip_local_port_range"))??.unwrap_or_default();
    let first = range.split_whitespace().next().context("no range of automatic ports")?.to_owned();
    assert_eq!(ports[1], json!(first));
    // Several at once are granted together or not at all.
    assert!(refused(lab, "publish add @blue 1:1 2:2 8080:80")?.contains("8080"));
    assert_eq!(lab.json("publish add @blue 1:1 2:2/udp")?.as_array().map(Vec::len), Some(2));
    bed.check_no_drift()
}

#[test]
fn what_goes_with_something_else_is_told() -> Result<()> {
    let bed = Bed::new(DUAL, &["red", "blue", "green"])?;
    let (lab, name) = (&bed.lab, |ns: &str| bed.lab.name(ns));
    let specs = (1..=7).map(|port| format!("{port}:80")).collect::<Vec<_>>().join(" ");
    lab.nsnet(&format!("publish add @red {specs}"))?;
    lab.nsnet("publish add @blue 8080:80/udp")?;
    lab.nsnet("publish add @green 9090:80")?;
    let told = |line: &str| -> Result<String> {
        let output = lab.try_nsnet(line)?;
        ensure!(output.status.success() && output.stdout.is_empty(), "`{line}`: {output:?}");
        Ok(String::from_utf8(output.stderr)?)
    };
    let five = (1..=5).map(|port| format!("{port}:80/tcp for {}", name("red"))).collect::<Vec<_>>().join(", ");
    assert_eq!(told("detach v-net-0 @red")?, format!("nsnet: no longer published: {five} and 2 more\n"));
    assert_eq!(told("detach v-net-0 @red")?, "");
    let of = |what: &str| format!("nsnet: no longer published: {what}\n");
    assert_eq!(told("ns del --force @blue")?, of(&format!("8080:80/udp for {}", name("blue"))));
    assert_eq!(told("network del --force v-net-0")?, of(&format!("9090:80/tcp for {}", name("green"))));
    assert_eq!(told("network del --force v-net-0")?, "");
    Ok(())
}

#[test]
fn an_internal_network_lets_nothing_in() -> Result<()> {
    let bed = Bed::new("--subnet 192.168.15.0/24 --internal", &["red"])?;
    let complaint = refused(&bed.lab, "publish add @red 8080:80")?;
    assert!(complaint.contains("v-net-0 is internal") && complaint.contains("another network"), "{complaint}");
    Ok(())
}

#[test]
fn refusals_name_what_is_in_the_way() -> Result<()> {
    let bed = Bed::new(DUAL, &["red", "blue"])?;
    let lab = &bed.lab;
    lab.nsnet("ns add @green")?;
    lab.nsnet("publish add @blue 8000-8010:80-90")?;
    lab.nsnet(&format!("publish add @blue {HOST_IP}:9000:80"))?;
    let before = entered(lab)?;
    let address = format!("{HOST_IP}:9000/tcp");
    for (line, words) in [
        ("publish add @green 80:80", &["green", "attach"][..]),
        ("publish add @nobody 80:80", &["nobody"]),
        ("publish add @red 80:80 --network v-net-9", &["v-net-9", "attach"]),
        ("publish add @red 192.168.1.77:80:80", &["192.168.1.77", "does not have"]),
        ("publish add @red 192.168.15.1:80:80", &["192.168.15.1", "does not have"]),
        ("publish add @red 224.0.0.1:80:80", &["224.0.0.1"]),
        ("publish add @red [fe80::1]:80:80", &["fe80::1", "link-local"]),
        ("publish add @red 8010:80", &["0.0.0.0:8010/tcp", "blue", "8000-8010:80-90/tcp"]),
        ("publish add @blue 8010:80", &["0.0.0.0:8010/tcp", "blue", "8000-8010:80-90/tcp"]),
        ("publish add @red 9000:80", &["0.0.0.0:9000/tcp", "blue", "192.168.1.1:9000:80/tcp"]),
        ("publish add @red 192.168.1.1:9000:80", &[&address, "blue"]),
        ("publish add @red 127.0.0.1:8000:80", &["127.0.0.1:8000/tcp", "blue"]),
    ] {
        let complaint = refused(lab, line)?;
        assert!(words.iter().all(|word| complaint.contains(word)), "`{line}`: {complaint}");
        assert_eq!(entered(lab)?, before, "`{line}`");
    }
    for line in ["publish add @red 8000-8001:80-90", "publish add @red 0:80", "publish add @red 81:80/sctp"] {
        let output = lab.try_nsnet(line)?;
        ensure!(output.status.code() == Some(2), "`{line}`: {output:?}");
    }
    // What only looks alike.
    for line in ["127.0.0.1:9000:80", "[::]:9000:80", "8000:80/udp", "8000:8000/sctp", "192.168.15.254:80:80"] {
        lab.nsnet(&format!("publish add @red {line}"))?;
    }
    bed.check_no_drift()
}

#[test]
fn busy_ports_are_named_and_left_alone() -> Result<()> {
    let bed = Bed::new(DUAL, &["red"])?;
    let lab = &bed.lab;
    let (listener, socket, _other_family) = lab.within("host", || -> Result<_> {
        let other_family = UdpSocket::bind("0.0.0.0:5001")?;
        Ok((TcpListener::bind((HOST_IP, 5000))?, UdpSocket::bind((Ipv6Addr::LOCALHOST, 5000))?, other_family))
    })??;
    let local = format!("{HOST_IP}:5000/tcp");
    for (line, words) in [
        ("5000:80", "0.0.0.0:5000/tcp"),
        ("192.168.1.1:5000:80", &local),
        ("4999-5009:4999-5009", "0.0.0.0:5000/tcp"),
        // Long ranges are looked up in /proc.
        ("1024-61023:1024-61023", "0.0.0.0:5000/tcp"),
        ("5000:80/udp", "[::]:5000/udp"),
        ("[::1]:5000:80/udp", "[::1]:5000/udp"),
        ("[::]:1024-61023:1024-61023/udp", "[::]:5000/udp"),
    ] {
        let complaint = refused(lab, &format!("publish add @red {line}"))?;
        assert!(complaint.contains(words), "`{line}`: {complaint}");
        assert_eq!(entered(lab)?.0, 0, "`{line}`");
    }
    // Another address, family or protocol; and a choice goes round it.
    for line in ["127.0.0.1:5000:80", "[::]:5000:80", "0.0.0.0:5000:80/udp", "[::]:5001:80/udp"] {
        lab.nsnet(&format!("publish add @red {line}"))?;
        lab.nsnet(&format!("publish del @red {line}"))?;
    }
    assert_eq!(lab.json("publish add @red 5000-5002:80")?["host_ports"], json!("5001"));
    drop((listener, socket));
    for line in ["5000:80", "5000:80/udp"] {
        lab.nsnet(&format!("publish add @red {line}"))?;
    }
    Ok(())
}

#[test]
fn published_ports_are_not_given_away_and_others_reservations_stay() -> Result<()> {
    let bed = Bed::new(V4, &["red"])?;
    let lab = &bed.lab;
    let set = |ports: &str| -> Result<bool> { Ok(lab.within("host", || sysctl::write(RESERVED, ports))??) };
    set("7,8080-8081")?;
    lab.nsnet("publish add @red 8080:80")?;
    lab.nsnet("publish add @red 9000-9009:80-89/udp")?;
    assert_eq!(reserved(lab)?, format!("7,8080-8081,9000-9009,{POOL}"));
    // Somebody adds to it.
    set(&format!("7,500,8080-8081,9000-9009,{POOL}"))?;
    lab.nsnet("publish del @red 9000-9009:80-89/udp")?;
    assert_eq!(reserved(lab)?, format!("7,500,8080-8081,{POOL}"));
    lab.nsnet("publish del @red 8080:80")?;
    assert_eq!(reserved(lab)?, "7,500,8080-8081");

    // All but one of the ports that a socket may be given: it is given that one.
    lab.within("host", || sysctl::write("net/ipv4/ip_local_port_range", "40000 40009"))??;
    lab.nsnet("publish add @red 40000-40008:1-9/udp")?;
    let given: SocketAddr = lab.within("host", || UdpSocket::bind("0.0.0.0:0")?.local_addr())??;
    assert_eq!(given.port(), 40009);
    // More than a page of the setting's text, which the kernel takes and gives only in one piece.
    let specs: Vec<String> = (10001..12000).step_by(2).map(|port| format!("{port}:{port}")).collect();
    let start = Instant::now();
    lab.nsnet(&format!("publish add @red {}", specs.join(" ")))?;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "1,000 ports took {took:?}");
    let ours = reserved(lab)?;
    assert!(
        ours.starts_with("7,500,8080-8081,10001,10003,") && ours.ends_with(&format!("11999,{POOL},40000-40008")),
        "{ours}"
    );
    bed.check_no_drift()?;
    lab.nsnet("down")?;
    assert_eq!(reserved(lab)?, "7,500,8080-8081");
    Ok(())
}

#[test]
fn sixty_thousand_ports_are_one_range() -> Result<()> {
    let bed = Bed::new(DUAL, &["red"])?;
    let lab = &bed.lab;
    let start = Instant::now();
    lab.nsnet("publish add @red 1024-61023:1024-61023/udp")?;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    let (prefixes, entries) = entered(lab)?;
    assert!(prefixes <= 2 * 30 && entries.len() == 2, "{prefixes} prefixes, {} entries", entries.len());
    for port in [1024, 1025, 32768, 61023] {
        let (_, entry) = lookup(lab, IpProtocol::UDP, "::", port)?.with_context(|| format!("{port} is not entered"))?;
        assert_eq!(entry.target_port(port), Some(port));
    }
    assert_eq!(lookup(lab, IpProtocol::UDP, "::", 61024)?, None);
    lab.nsnet("publish del @red 1024-61023:1024-61023/udp")?;
    assert_eq!(entered(lab)?, (0, BTreeMap::new()));
    Ok(())
}

#[test]
fn what_goes_takes_its_ports_along() -> Result<()> {
    let mut bed = Bed::new(DUAL, &["red", "blue"])?;
    bed.add_network("v-net-1", "--subnet 192.168.16.0/24")?;
    bed.lab.nsnet("attach v-net-1 @red")?;
    let lab = &bed.lab;
    let publish = || -> Result<()> {
        lab.nsnet("publish add @red 1:1")?;
        lab.nsnet("publish add @red 2:2 --network v-net-1")?;
        lab.nsnet("publish add @blue 3:3").map(drop)
    };
    let left = || -> Result<String> {
        bed.check_no_drift()?;
        ensure!(entered(lab)?.1.len() == entered(lab)?.0, "entries and prefixes differ");
        reserved(lab)
    };
    publish()?;
    assert_eq!(left()?, format!("1-3,{POOL}"));
    lab.nsnet("detach v-net-0 @red")?;
    assert_eq!(left()?, format!("2-3,{POOL}"));
    lab.nsnet("attach v-net-0 @red")?;
    assert_eq!(left()?, format!("2-3,{POOL}"));
    assert!(refused(lab, "ns del @red")?.contains("v-net-1"));
    lab.nsnet("network del v-net-1 --force")?;
    assert_eq!(left()?, format!("3,{POOL}"));
    lab.nsnet("ns del @blue --force")?;
    assert_eq!(left()?, "");
    assert_eq!(entered(lab)?, (0, BTreeMap::new()));
    lab.nsnet("publish add @red 1:1")?;
    lab.nsnet("down")?;
    assert_eq!(lab.json("publish list")?, json!([]));
    assert_eq!(World::of(lab)?.file, None);
    Ok(())
}

#[test]
fn status_sees_what_is_missing_and_add_mends_it() -> Result<()> {
    let bed = Bed::new(DUAL, &["red"])?;
    let lab = &bed.lab;
    lab.nsnet("publish add @red 8080-8090:80-90")?;
    let whole = entered(lab)?;
    let key = |port| {
        let key = PublishedKey::new(IpProtocol::TCP, IpAddress::v4([0; 4]), port);
        aya::maps::lpm_trie::Key::new(PublishedKey::ADDRESS_BITS + 13, key)
    };
    let damages: [(&str, &dyn Fn() -> Result<()>); 4] = [
        ("way from ports of 0.0.0.0", &|| Ok(published(lab)?.remove(&key(8080))?)),
        ("entry for 0.0.0.0 is missing", &|| Ok(publishes(lab)?.set(1, Publish::default(), 0)?)),
        ("entry for :: is 8080-8090 to [fd15::1]:81", &|| {
            let entry = publishes(lab)?.get(&2, 0)?;
            Ok(publishes(lab)?.set(2, Publish { target_first: 81, ..entry }, 0)?)
        }),
        (RESERVED_BY_NAME, &|| lab.within("host", || sysctl::write(RESERVED, "\n"))?.map(drop).map_err(Into::into)),
    ];
    for (words, damage) in damages {
        bed.check_no_drift()?;
        damage()?;
        let status = lab.try_nsnet("-o json status")?;
        assert_eq!(status.status.code(), Some(1), "{words}");
        let drift = serde_json::from_slice::<Value>(&status.stdout)?["drift"].to_string();
        let object = if words == RESERVED_BY_NAME { "reserved ports" } else { "publish 8080-8090:80-90/tcp" };
        assert!(drift.contains(words) && drift.contains(object), "{drift}");
        lab.nsnet("publish add @red 8080-8090:80-90")?;
        assert_eq!(entered(lab)?, whole, "{words}");
    }
    assert_eq!(reserved(lab)?, format!("8080-8090,{POOL}"));
    bed.check_no_drift()
}

const RESERVED_BY_NAME: &str = "ip_local_reserved_ports";

#[test]
fn a_failed_add_takes_back_what_it_did() -> Result<()> {
    let bed = Bed::new(V4, &["red"])?;
    let lab = &bed.lab;
    lab.nsnet("publish add @red 80:80")?;
    let before = (World::of(lab)?, entered(lab)?);
    // Its last table is not to be had.
    let hits = pin(lab, names::PUBLISH_HITS)?;
    let map = MapData::from_pin(&hits)?;
    std::fs::remove_file(&hits)?;
    let output = lab.try_nsnet("publish add @red 443:443")?;
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && complaint.contains(names::PUBLISH_HITS), "{output:?}");
    map.pin(&hits)?;
    // Without the table it could not be taken back either: the next verb does that.
    lab.nsnet("ns add @red")?;
    assert_eq!((World::of(lab)?, entered(lab)?), before);
    lab.nsnet("publish add @red 443:443")?;
    assert_eq!(reserved(lab)?, format!("80,443,{POOL}"));
    bed.check_no_drift()
}
