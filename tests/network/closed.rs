//! A port whose program is gone: nothing that its namespace sends gets anywhere.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::sysctl;
use nsnet::lab::{HOST_IP, RawSocket, WAN_IP};
use nsnet_common::cases::frame::Frame;
use nsnet_common::layout::{PORT_IFINDEX_BASE, names};
use nsnet_common::wire::Mac;
use serde_json::Value;

use super::bed::{Bed, DUAL, lab, text, until};
use super::object::pins;
use super::packet::Packet;
use super::shot::MARK;

/// A host that forwards whatever it gets and believes every sender: the worst one to hang on.
fn trusting_bed(missing: Option<&str>) -> Result<Bed> {
    let mut lab = lab()?;
    missing.into_iter().for_each(|features| lab.treat_as_missing(features));
    let bed = Bed::inside(lab, DUAL, &["red", "blue"])?;
    bed.at("host").run(|| {
        let red = &bed.at("red").port;
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            sysctl::write(key, "1")?;
        }
        for interface in ["all", red] {
            sysctl::write(&format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
        }
        // Even one that somebody gave addresses to.
        sysctl::write(&format!("net/ipv6/conf/{red}/disable_ipv6"), "0")?;
        Ok(())
    })?;
    Ok(bed)
}

/// Everything that red can think of, and where any of it, or an answer, arrived.
fn escapes(bed: &Bed) -> Result<Vec<&'static str>> {
    let (red, host) = (bed.at("red"), bed.at("host"));
    let netlink = Netlink::inside(&host.ns)?;
    let outer = Mac(netlink.existing_link(&red.port)?.mac.context("no MAC")?);
    let servers = host.run(|| {
        let bind = |any: IpAddr| -> Result<UdpSocket> {
            let socket = UdpSocket::bind((any, 7777))?;
            socket.set_read_timeout(Some(Duration::from_millis(300)))?;
            Ok(socket)
        };
        // The IPv6 socket takes IPv4, too.
        Ok([bind(Ipv6Addr::UNSPECIFIED.into())?])
    })?;
    let wan = bed.lab.ns("wan")?.run(|| RawSocket::open_promiscuous("uplink"))??;
    let blue = bed.at("blue").run(|| RawSocket::open_promiscuous(&bed.at("blue").ifname))?;
    let back = red.run(|| RawSocket::open_promiscuous(&red.ifname))?;

    let stranger = Ipv4Addr::new(203, 0, 113, 9);
    let v4: [Ipv4Addr; 4] = [HOST_IP.parse()?, WAN_IP.parse()?, host.v4, bed.at("blue").v4];
    let v6 = [host.v6, bed.at("blue").v6];
    for to in [outer, Mac::BROADCAST, host.mac, bed.at("blue").mac] {
        for source in [red.v4, stranger] {
            for destination in v4 {
                let packet = Packet::udp((source, 1).into(), (destination, 7777).into(), MARK);
                back.send(&packet.frame(red.mac, to))?;
            }
        }
        for destination in v6 {
            let from = SocketAddr::new(red.v6.into(), 1);
            back.send(&Packet::udp(from, (destination, 7777).into(), MARK).frame(red.mac, to))?;
        }
        let address: Ipv4Addr = HOST_IP.parse()?;
        back.send(&Frame::new(red.mac, to).arp(1, (red.mac, red.v4.octets()), (Mac::ZERO, address.octets())).finish())?;
    }

    let mut arrived = Vec::new();
    let mut bytes = [0; 2048];
    if servers.iter().any(|server| server.recv(&mut bytes).is_ok()) {
        arrived.push("at the host");
    }
    let is_ours = |bytes: &[u8]| bytes.windows(MARK.len()).any(|part| part == MARK);
    let moment = Duration::from_millis(300);
    for (place, socket) in [("at wan", &wan), ("at blue", &blue)] {
        if socket.receive(moment, |frame| is_ours(&frame.bytes))?.is_some() {
            arrived.push(place);
        }
    }
    let is_answer = |bytes: &[u8]| bytes.get(12..14) == Some(&[8, 6]) && bytes.get(21) == Some(&2);
    if back.receive(moment, |frame| is_answer(&frame.bytes) || is_ours(&frame.bytes))?.is_some() {
        arrived.push("back at red");
    }
    Ok(arrived)
}

/// What `status` says of red.
fn drift(bed: &Bed) -> Result<Vec<String>> {
    let status: Value = serde_json::from_slice(&bed.lab.try_nsnet("-o json status")?.stdout)?;
    let rows = status["drift"].as_array().context("no drift")?;
    rows.iter().map(|row| Ok(text(&row["drift"])?.to_owned())).collect()
}

/// Takes the program of that name off red's port, as somebody might.
fn take_off(bed: &Bed, name: &str) -> Result<()> {
    let (red, host) = (bed.at("red"), &bed.at("host").ns);
    let netlink = Netlink::inside(host)?;
    let index = netlink.existing_link(&red.port)?.index;
    let filters = netlink.bpf_filters(index)?;
    if let Some(filter) = filters.iter().find(|filter| filter.name == name) {
        ensure!(netlink.remove_filter(index, filter)?, "the filter is gone already");
        return Ok(());
    }
    let port = index - PORT_IFINDEX_BASE;
    fs::remove_file(pins(&bed.lab)?.join("links").join(port.to_string()))?;
    let is_on = || -> Result<bool> {
        let (_revision, programs) = SchedClassifier::query_tcx(&red.port, TcAttachType::Ingress)?;
        Ok(programs.iter().filter_map(ProgramInfo::name_as_str).any(|other| other == name))
    };
    until(Duration::from_secs(10), || Ok(!host.run(is_on)??)).map(|_took| ())
}

fn fails_closed(missing: Option<&str>) -> Result<()> {
    let bed = trusting_bed(missing)?;
    let reaches = |bed: &Bed| bed.at("red").reaches(bed.at("blue").v4.into());
    ensure!(reaches(&bed)? && drift(&bed)?.is_empty(), "it must work to begin with: {:?}", drift(&bed)?);

    take_off(&bed, names::FROM_NAMESPACE)?;
    assert_eq!(escapes(&bed)?, Vec::<&str>::new(), "with its program gone");
    ensure!(!reaches(&bed)?, "red reaches blue without its program");
    assert_eq!(drift(&bed)?, [format!("program on {} is missing", bed.at("red").port)]);
    bed.lab.nsnet("attach v-net-0 @red")?;
    bed.check_no_drift()?;
    ensure!(reaches(&bed)?, "attaching it again repairs it");

    // Without what stands behind it, it would have got out: this is what the other half of the test is worth.
    take_off(&bed, names::CLOSED)?;
    assert_eq!(drift(&bed)?, [format!("what closes {} behind its program is missing", bed.at("red").port)]);
    ensure!(reaches(&bed)?, "nothing passes there while its program is there");
    let trusting = trusting_bed(missing)?;
    take_off(&trusting, names::CLOSED)?;
    take_off(&trusting, names::FROM_NAMESPACE)?;
    assert_eq!(escapes(&trusting)?, ["at the host", "at wan", "at blue", "back at red"], "with nothing at all there");
    bed.lab.nsnet("attach v-net-0 @red")?;
    bed.check_no_drift()
}

#[test]
fn a_port_without_its_program() -> Result<()> {
    fails_closed(None)
}

#[test]
fn a_port_without_its_filter() -> Result<()> {
    fails_closed(Some("tcx"))
}
