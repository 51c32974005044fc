//! The accelerator in real namespaces: the same traffic in every mixture of modes, not one wrong checksum; and what it changes
//! is put back, what is not ours is left.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use nsnet::kernel::dataplane::open_object;
use nsnet::kernel::ethtool::{Ethtool, Flag, Switch};
use nsnet::kernel::features::Features;
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::xdp::{self, Side};
use nsnet::lab::{ChecksumErrors, RawSocket, TcpServer, UdpEcho, tcp, udp};
use serde_json::json;

use super::bed::{Bed, DUAL, Station, growth, text};
use super::outside_bed::{FAMILIES, Outside, host, wan};
use super::traffic::{Amount, exchange_at, exchange_everywhere};
use super::world::{World, refused};

const SECOND: Duration = Duration::from_secs(1);

/// Switches of an interface: those that XDP needs otherwise than a veth has them.
#[derive(Debug, PartialEq, Eq)]
struct Switches {
    checksum: bool,
    tso: bool,
    tags: bool,
    gro: bool,
}

const OF_A_VETH: Switches = Switches { checksum: true, tso: true, tags: true, gro: false };
const FOR_XDP: Switches = Switches { checksum: false, tso: false, tags: false, gro: true };

fn switches(station: &Station) -> Result<Switches> {
    station.run(|| {
        let end = Ethtool::of(&station.ifname)?;
        let (checksum, tso) = (end.is_on(Switch::CHECKSUM)?, end.is_on(Switch::TSO)?);
        Ok(Switches { checksum, tso, tags: end.has(Flag::TX_VLAN)?, gro: end.is_on(Switch::GRO)? })
    })
}

/// How many frames of each port the accelerator has forwarded.
fn accelerated(bed: &Bed) -> Result<BTreeMap<String, u64>> {
    let rows = bed.lab.json("stats")?;
    let row = |row: &serde_json::Value| Ok((text(&row["port"])?.to_owned(), row["xdp"].as_u64().context("no count")?));
    rows.as_array().context("`stats` is no array")?.iter().map(row).collect()
}

/// Makes the outside's end of the wire one that sends and takes frames as they are on a wire, as a NIC's does.
fn make_wire_of(bed: &Outside) -> Result<()> {
    let wan = bed.at("wan");
    wan.run(|| {
        let end = Ethtool::of(&wan.ifname)?;
        end.set(Switch::CHECKSUM, false)?;
        Ok(end.set(Switch::GRO, true)?)
    })
}

/// Does `work`; fails when one of `names` saw a wrong checksum meanwhile.
fn with_right_checksums(bed: &Outside, names: &[&str], work: impl FnOnce() -> Result<()>) -> Result<()> {
    let errors = || names.iter().map(|name| bed.at(name).run(ChecksumErrors::read)).collect::<Result<Vec<_>>>();
    let before = errors()?;
    work()?;
    for ((name, after), before) in names.iter().zip(errors()?).zip(before) {
        let new = after - before;
        ensure!(new.total() == 0, "{name}: {new}");
    }
    Ok(())
}

#[test]
fn switched() -> Result<()> {
    for mtu in ["", "--mtu 9000", "--mtu 1280"] {
        let bed = Bed::new(&format!("{DUAL} {mtu} --mode xdp"), &["red", "blue"])?;
        bed.check_no_drift()?;
        exchange_everywhere(&bed, if mtu.is_empty() { Amount::Much } else { Amount::Little })?;
        assert_eq!(bed.drops()?, BTreeMap::new(), "{mtu}");
        let counts = accelerated(&bed)?;
        for name in ["red", "blue"] {
            let count = counts[&bed.at(name).port];
            assert!(count > 100, "{mtu}: of {name} only {count} frames went by XDP: {counts:?}");
        }
    }
    Ok(())
}

/// Namespaces of two networks, the way out and the way in, with each of them in each mode.
#[test]
fn every_mixture_of_modes() -> Result<()> {
    const EVERYBODY: [&str; 6] = ["c1", "c2", "c3", "host", "wan", "far"];
    let mut bed = Outside::with("--isolate false", &["c1", "c2"], &[])?;
    bed.add_c3("--isolate false --masquerade")?;
    bed.lab.nsnet("publish add @c1 8080:80/tcp 9090:90/udp")?;
    make_wire_of(&bed)?;
    for mixture in 0..8 {
        let mode = |bit: u32| if mixture >> bit & 1 == 1 { "xdp" } else { "tc" };
        let (first, second, uplink) = (mode(0), mode(1), mode(2));
        let what = || format!("v-net-0 {first}, v-net-1 {second}, uplink {uplink}");
        bed.lab.nsnet(&format!("network mode v-net-0 {first} --uplink {uplink}"))?;
        bed.lab.nsnet(&format!("network mode v-net-1 {second} --uplink {uplink}"))?;
        bed.check_no_drift().with_context(what)?;
        let before = accelerated(&bed)?;
        with_right_checksums(&bed, &EVERYBODY, || everything(&bed)).with_context(what)?;
        let after = accelerated(&bed)?;
        // What is switched in v-net-0 needs nothing else in that mode; the others need somewhere to send frames to.
        let by_xdp = |port: &str| after[port] > before[port] + 50;
        let found = [&bed.at("c1").port, &bed.at("c3").port, "uplink"].map(by_xdp);
        let (first, second, uplink) = (first == "xdp", second == "xdp", uplink == "xdp");
        assert_eq!(found, [first, first && second, uplink && first], "{}: {before:?} {after:?}", what());
    }
    bed.check_no_leak()
}

/// Between networks, within one, out and in, in both families.
fn everything(bed: &Outside) -> Result<()> {
    for (from, to) in [("c1", "c2"), ("c1", "c3"), ("c3", "c1")] {
        let (source, target) = (bed.at(from), bed.at(to));
        for ip in target.ips() {
            exchange_at(source, target, ip, Amount::Little).with_context(|| format!("{from} to {to} at {ip}"))?;
        }
    }
    for v6 in FAMILIES {
        exchange_at(bed.at("c1"), bed.at("wan"), wan(v6), Amount::Little).with_context(|| format!("out, IPv6 {v6}"))?;
        let (c1, outside) = (bed.at("c1"), bed.at("wan"));
        let own: IpAddr = if v6 { c1.v6.into() } else { c1.v4.into() };
        let server = c1.run(|| TcpServer::start(SocketAddr::new(own, 80)))?;
        let echo = c1.run(|| UdpEcho::start(SocketAddr::new(own, 90)))?;
        for from in [outside, bed.at("c3")] {
            let what = || format!("{} to what is published, IPv6 {v6}", from.name);
            from.run(|| tcp::transfer(SocketAddr::new(host(v6), 8080), 500_000)).with_context(what)?;
            let outcome = from.run(|| udp::exchange(SocketAddr::new(host(v6), 9090), 1200, 50, SECOND))?;
            ensure!(outcome.echoed == 50, "{}: {outcome}", what());
        }
        drop((server, echo));
    }
    Ok(())
}

/// What is too long is TC's: it tells the sender, or cuts.
#[test]
fn the_way_on_takes_less() -> Result<()> {
    let mut bed = Outside::with("--mode xdp", &["c1"], &[])?;
    bed.add_c3("--masquerade --mtu 1300 --mode xdp")?;
    bed.lab.nsnet("publish add @c3 8080:80/tcp 9090:90/udp")?;
    let (c1, c3) = (bed.at("c1"), bed.at("c3"));
    let before = accelerated(&bed)?;
    with_right_checksums(&bed, &["c1", "c3"], || {
        for v6 in FAMILIES {
            let own: IpAddr = if v6 { c3.v6.into() } else { c3.v4.into() };
            let _server = c3.run(|| TcpServer::start(SocketAddr::new(own, 80)))?;
            c1.run(|| tcp::transfer(SocketAddr::new(host(v6), 8080), 2_000_000))?;
            let _echo = c3.run(|| UdpEcho::start(SocketAddr::new(own, 90)))?;
            let send = |length| c1.run(|| udp::exchange(SocketAddr::new(host(v6), 9090), length, 5, SECOND));
            assert_eq!(send(1200)?.echoed, 5);
            // Its sender is told, which may be its error; then it cuts.
            let _told_or_lost = send(1400);
            assert_eq!(send(1400)?.echoed, 5);
        }
        Ok(())
    })?;
    let after = accelerated(&bed)?;
    for (port, least) in [(&c1.port, 1000), (&c3.port, 100)] {
        assert!(after[port] > before[port] + least, "{before:?} {after:?}");
    }
    let told: u64 = bed.drops()?.iter().filter(|((_, why), _)| why == "fragmentation-needed").map(|(_, n)| n).sum();
    assert!(told > 0, "nothing was too long: {:?}", bed.drops()?);
    Ok(())
}

#[test]
fn what_is_switched_is_put_back() -> Result<()> {
    let bed = Outside::new()?;
    let (c1, at_wan) = (bed.at("c1"), bed.at("wan"));
    assert_eq!((switches(c1)?, switches(at_wan)?), (OF_A_VETH, OF_A_VETH));
    let before = World::of(&bed.lab)?;
    bed.lab.nsnet("network mode v-net-0 xdp --uplink xdp")?;
    assert_eq!(switches(c1)?, FOR_XDP);
    // That end is nobody's to change; what the kernel does there by itself ends with our program.
    assert_eq!(switches(at_wan)?, Switches { tso: false, ..OF_A_VETH });
    bed.check_no_drift()?;
    bed.lab.nsnet("network mode v-net-0 xdp --uplink xdp")?;
    // Without a mode it is shown, and nothing changes.
    let as_it_is = World::of(&bed.lab)?;
    let shown = bed.lab.json("network mode v-net-0")?;
    let row = |what, why| json!({ "what": what, "mode": "xdp", "at": "xdp", "why": why });
    assert_eq!(shown, json!([row("ports of v-net-0", "as asked for"), row("uplink uplink", "as asked for")]));
    assert_eq!(World::of(&bed.lab)?, as_it_is);
    bed.lab.nsnet("network mode v-net-0 tc --uplink tc")?;
    assert_eq!((switches(c1)?, switches(at_wan)?), (OF_A_VETH, OF_A_VETH));
    World::of(&bed.lab)?.check_similar(&before)?;
    bed.lab.nsnet("network mode v-net-0 xdp --uplink xdp")?;
    bed.lab.nsnet("down")?;
    assert_eq!(switches(at_wan)?, OF_A_VETH);
    let uplink = Netlink::inside(&bed.lab.ns("host")?)?.existing_link("uplink")?;
    assert_eq!(uplink.xdp, None);
    Ok(())
}

/// A namespace may turn its checksums on again: such frames are TC's then, and right.
#[test]
fn a_namespace_that_leaves_checksums_to_others() -> Result<()> {
    let bed = Bed::new(&format!("{DUAL} --mode xdp"), &["red", "blue"])?;
    let red = bed.at("red");
    red.run(|| Ok(Ethtool::of(&red.ifname)?.set(Switch::CHECKSUM, true)?))?;
    let before = accelerated(&bed)?[&red.port];
    exchange_everywhere(&bed, Amount::Little)?;
    let more = accelerated(&bed)?[&red.port] - before;
    // Pings, which a kernel sums up itself, and one in 65,536 others.
    assert!(more < 50, "{more} frames went by XDP");
    let status = bed.lab.try_nsnet("status")?;
    assert!(String::from_utf8(status.stdout)?.contains("tx-checksumming on"), "status says nothing of it");
    bed.lab.nsnet("network add v-net-0 --subnet 192.168.15.0/24 fd15::/64")?;
    bed.check_no_drift()?;
    assert_eq!(switches(red)?, FOR_XDP);
    Ok(())
}

/// In the bytes, as the namespace's end is set to have it, a tag is no way past the check.
#[test]
fn a_tagged_frame_does_not_pass_for_an_untagged_one() -> Result<()> {
    let bed = Bed::new("--subnet 192.168.15.0/24 --mode xdp", &["red", "blue"])?;
    let (red, blue) = (bed.at("red"), bed.at("blue"));
    assert!(red.reaches(blue.v4.into())?);
    let (from, to) = (red.run(|| RawSocket::open(&red.ifname))?, blue.run(|| RawSocket::open(&blue.ifname))?);
    let before = bed.drops()?;
    for tag in [&[][..], &[0x81, 0, 0, 5], &[0x88, 0xa8, 0, 5]] {
        let mut frame = [&blue.mac.0[..], &red.mac.0, tag, &[0x08, 0x00]].concat();
        let udp = [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
        frame.extend([&udp[..], &red.v4.octets(), &blue.v4.octets(), &[1, 2, 3, 4, 0, 8, 0, 0]].concat());
        from.send(&frame)?;
        let patience = if tag.is_empty() { 3 * SECOND } else { SECOND / 3 };
        let arrived = to.receive(patience, |frame| frame.bytes.ends_with(&[1, 2, 3, 4, 0, 8, 0, 0]))?;
        assert_eq!(arrived.is_some(), tag.is_empty(), "{tag:02x?}");
    }
    let dropped = growth(&before, &bed.drops()?);
    assert_eq!(dropped, [((red.port.clone(), "tagged".to_owned()), 2)].into());
    Ok(())
}

/// Somebody else's program, on the uplink.
fn put_on_uplink(bed: &Outside) -> Result<(Ebpf, u32)> {
    bed.lab.within("host", || -> Result<_> {
        let uplink = Netlink::here()?.existing_link("uplink")?;
        let mut ebpf = open_object(Features::probe())?;
        let program = xdp::program_in(&mut ebpf, Side::Uplink.program())?;
        program.attach_to_if_index(uplink.index, aya::programs::xdp::XdpMode::Driver)?;
        let id = program.info()?.id();
        Ok((ebpf, id))
    })?
}

#[test]
fn a_program_of_somebody_elses_stays() -> Result<()> {
    let bed = Outside::new()?;
    let on_uplink = || Ok::<_, anyhow::Error>(Netlink::inside(&bed.lab.ns("host")?)?.existing_link("uplink")?.xdp);
    let (theirs, id) = put_on_uplink(&bed)?;
    let told = refused(&bed.lab, "network mode v-net-0 --uplink xdp")?;
    assert!(told.contains("uplink") && told.contains("another XDP program"), "{told}");
    assert_eq!(on_uplink()?, Some(id));
    bed.lab.nsnet("network mode v-net-0 --uplink auto")?;
    bed.check_no_drift()?;
    let told = bed.lab.nsnet("network mode v-net-0 --uplink auto")?;
    assert!(told.contains("veth"), "{told}");
    bed.lab.nsnet("down")?;
    assert_eq!(on_uplink()?, Some(id));
    drop(theirs);
    Ok(())
}

/// The mode that is asked for decides, not the one before: the wire is a veth, which `auto` leaves to TC.
#[test]
fn auto_is_the_same_whatever_was_before() -> Result<()> {
    let bed = Outside::new()?;
    for before in ["tc", "xdp"] {
        bed.lab.nsnet(&format!("network mode v-net-0 --uplink {before}"))?;
        let told = bed.lab.nsnet("network mode v-net-0 --uplink auto")?;
        ensure!(told.contains("it is a veth"), "after {before}: {told}");
        let on_it = Netlink::inside(&bed.lab.ns("host")?)?.existing_link("uplink")?.xdp;
        ensure!(on_it.is_none(), "after {before} program {on_it:?} is on it");
        bed.check_no_drift()?;
    }
    Ok(())
}

#[test]
fn what_cannot_be_is_refused() -> Result<()> {
    let bed = Bed::new("--subnet 192.168.15.0/24 --internal", &["red"])?;
    let told = refused(&bed.lab, "network mode v-net-0 --uplink xdp")?;
    assert!(told.contains("internal"), "{told}");
    let told = refused(&bed.lab, "network add v-net-0 --subnet 192.168.15.0/24 --internal --mode xdp")?;
    assert!(told.contains("--mode xdp"), "{told}");
    for line in ["network mode v-net-9 xdp", "network mode v-net-9"] {
        let told = refused(&bed.lab, line)?;
        assert!(told.contains("no network v-net-9"), "{told}");
    }
    let usage = bed.lab.try_nsnet("network mode v-net-0 fast")?;
    assert_eq!(usage.status.code(), Some(2));
    Ok(())
}
