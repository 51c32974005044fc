//! Real traffic in every form a kernel sends it, and not one wrong checksum anywhere.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nsnet::lab::{ChecksumErrors, TcpServer, UdpEcho, UdpSink, gso, ping, set_tx_offload, tcp, udp};

use super::bed::{Bed, DUAL, Station, V4};

const TIMEOUT: Duration = Duration::from_secs(2);

/// How much traffic.
#[derive(Clone, Copy)]
pub(crate) enum Amount {
    /// A sample of each kind.
    Little,
    /// Enough for windows to open and for 64 KB segments to be the rule.
    Much,
}

/// Wrong checksums so far, by station.
type Errors = BTreeMap<String, ChecksumErrors>;

fn checksum_errors(bed: &Bed) -> Result<Errors> {
    bed.stations().iter().map(|station| Ok((station.name.clone(), station.run(ChecksumErrors::read)?))).collect()
}

/// Does `work`; fails when anybody in the bed saw a wrong checksum meanwhile.
fn with_right_checksums(bed: &Bed, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = checksum_errors(bed)?;
    work()?;
    for (name, errors) in checksum_errors(bed)? {
        let new = errors - before[&name];
        ensure!(new.total() == 0, "{name}: {new}");
    }
    Ok(())
}

/// TCP, UDP and ICMP between two stations, by every address that the second has.
pub(crate) fn exchange(bed: &Bed, from: &str, to: &str, amount: Amount) -> Result<()> {
    let (source, target) = (bed.at(from), bed.at(to));
    with_right_checksums(bed, || {
        target.ips().into_iter().try_for_each(|ip| {
            let what = || format!("{from} to {to} at {ip}");
            exchange_at(source, target, ip, amount).with_context(what)
        })
    })
}

pub(crate) fn exchange_at(source: &Station, target: &Station, ip: IpAddr, amount: Amount) -> Result<()> {
    let any = SocketAddr::new(ip, 0);
    let (bytes, rounds) = match amount {
        Amount::Little => (200_000, 1),
        Amount::Much => (8_000_000, 5),
    };
    let server = target.run(|| TcpServer::start(any))?;
    source.run(|| tcp::transfer(server.addr(), bytes))?;

    let echo = target.run(|| UdpEcho::start(any))?;
    for length in [1, 18, 1400, 8000, 60_000] {
        let outcome = source.run(|| udp::exchange(echo.addr(), length, rounds, TIMEOUT))?;
        ensure!(outcome.echoed == rounds, "UDP with {length} bytes: {outcome}");
    }

    let sink = target.run(|| UdpSink::start(any))?;
    for segment in [100, 1200] {
        // Ends with a short datagram, and is not more than the sink's buffer takes at once.
        let total = 50 * usize::from(segment) + 13;
        let so_far = sink.received().datagrams;
        let datagrams = source.run(|| gso::send_gso(sink.addr(), total, segment))? as u64;
        let received = sink.wait(so_far + datagrams, TIMEOUT);
        ensure!(
            received.datagrams == so_far + datagrams && received.damaged == 0,
            "UDP_SEGMENT {segment}: {received:?}"
        );
    }

    for length in [0, 56, 1400, 8000, 60_000] {
        let pings = source.run(|| ping::ping(ip, rounds as u16, length, TIMEOUT))?;
        ensure!(pings.received == rounds && pings.damaged == 0, "ping with {length} bytes: {pings}");
    }
    Ok(())
}

/// Both directions between namespaces, and both between a namespace and the host.
pub(crate) fn exchange_everywhere(bed: &Bed, amount: Amount) -> Result<()> {
    for (from, to) in [("red", "blue"), ("blue", "red"), ("red", "host"), ("host", "red")] {
        exchange(bed, from, to, amount)?;
    }
    Ok(())
}

#[test]
fn with_offload() -> Result<()> {
    let bed = Bed::new(DUAL, &["red", "blue"])?;
    exchange_everywhere(&bed, Amount::Much)?;
    assert_eq!(bed.drops()?, BTreeMap::new());
    Ok(())
}

#[test]
fn without_offload() -> Result<()> {
    let bed = Bed::new(DUAL, &["red", "blue"])?;
    for off in [vec!["red"], vec!["red", "blue"], vec!["red", "blue", "host"]] {
        for name in off {
            let station = bed.at(name);
            station.run(|| set_tx_offload(&station.ifname, false))?;
        }
        exchange_everywhere(&bed, Amount::Little)?;
    }
    assert_eq!(bed.drops()?, BTreeMap::new());
    Ok(())
}

#[test]
fn four_namespaces_each_with_each() -> Result<()> {
    let names = ["red", "blue", "orange", "purple"];
    let bed = Bed::new(DUAL, &names)?;
    for from in names {
        for to in names.into_iter().filter(|to| *to != from) {
            exchange(&bed, from, to, Amount::Little)?;
        }
    }
    assert_eq!(bed.drops()?, BTreeMap::new());
    Ok(())
}

#[test]
fn jumbo_frames() -> Result<()> {
    let bed = Bed::new(&format!("{DUAL} --mtu 9000"), &["red", "blue"])?;
    exchange_everywhere(&bed, Amount::Much)?;
    // In one piece.
    let (red, blue) = (bed.at("red"), bed.at("blue"));
    let before = bed.stats()?;
    red.run(|| ping::ping(IpAddr::V4(blue.v4), 3, 8972, TIMEOUT))?;
    let grown = bed.stats()?[&red.port] - before[&red.port];
    assert!((3..6).contains(&grown.rx), "three packets of 9000 bytes were {} frames", grown.rx);
    Ok(())
}

#[test]
fn the_smallest_mtu_of_ipv6() -> Result<()> {
    let bed = Bed::new(&format!("{DUAL} --mtu 1280"), &["red", "blue"])?;
    exchange_everywhere(&bed, Amount::Little)
}

#[test]
fn the_uplink_decides_the_mtu() -> Result<()> {
    let lab = super::bed::lab()?;
    let netlink = nsnet::kernel::netlink::Netlink::inside(&lab.ns("host")?)?;
    let uplink = netlink.link("uplink")?.context("no uplink")?;
    netlink.set_mtu(uplink.index, 1400)?;
    let route =
        nsnet::kernel::route::Route { dest: "0.0.0.0/0".parse()?, via: Some(nsnet::lab::WAN_IP.parse()?), index: None };
    netlink.add_route(&route)?;
    let bed = Bed::inside(lab, V4, &["red"])?;
    let red = bed.at("red");
    let link = nsnet::kernel::netlink::Netlink::inside(&red.ns)?.link(&red.ifname)?.context("no interface")?;
    assert_eq!(link.mtu, 1400);
    Ok(())
}

/// Every fall-back carries the same traffic.
fn without(features: &str) -> Result<()> {
    let mut lab = super::bed::lab()?;
    lab.treat_as_missing(features);
    let bed = Bed::inside(lab, DUAL, &["red", "blue"])?;
    bed.check_no_drift()?;
    exchange_everywhere(&bed, Amount::Much)?;
    let red = bed.at("red");
    red.run(|| set_tx_offload(&red.ifname, false))?;
    exchange_everywhere(&bed, Amount::Little)?;
    assert_eq!(bed.drops()?, BTreeMap::new());
    bed.check_no_drift()
}

#[test]
fn without_tcx() -> Result<()> {
    without("tcx")
}

#[test]
fn without_redirect_peer() -> Result<()> {
    without("redirect_peer")
}

#[test]
fn without_both() -> Result<()> {
    without("tcx,redirect_peer")
}
