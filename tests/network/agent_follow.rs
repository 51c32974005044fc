//! What the agent follows: addresses and uplinks of the host.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::route::Route;
use nsnet::kernel::veth::VethSpec;
use nsnet::lab::{TcpServer, UdpEcho, udp};
use serde_json::json;

use super::agent_bed::Agent;
use super::bed::until;
use super::outside_bed::{Outside, far, host, wan};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);

/// The default routes of the host lead by this interface, via these.
fn set_default(bed: &Outside, interface: &str, gateways: &[IpAddr]) -> Result<()> {
    let netlink = Netlink::inside(&bed.lab.ns("host")?)?;
    let index = netlink.existing_link(interface)?.index;
    for route in netlink.routes()?.iter().filter(|route| route.dest.prefix_len() == 0) {
        netlink.remove_route(route)?;
    }
    for via in gateways {
        let dest: IpNet = if via.is_ipv4() { "0.0.0.0/0" } else { "::/0" }.parse()?;
        ensure!(netlink.add_route(&Route { dest, via: Some(*via), index: Some(index) })?);
    }
    Ok(())
}

/// One more wire between the host and wan: 192.168.7.1 and .3, fd07::1 and ::3.
fn add_wire(bed: &Outside, name: &str) -> Result<[IpAddr; 2]> {
    let (of_host, of_wan) = (bed.lab.ns("host")?, bed.lab.ns("wan")?);
    let end = VethSpec { name, ..VethSpec::default() };
    Netlink::inside(&of_host)?.create_veth(&end, &end, Some(&of_wan))?;
    for (ns, number) in [(&of_host, 1), (&of_wan, 3)] {
        let netlink = Netlink::inside(ns)?;
        let link = netlink.existing_link(name)?;
        for address in [format!("192.168.7.{number}/24"), format!("fd07::{number}/64")] {
            netlink.add_address(link.index, address.parse()?)?;
        }
        netlink.set_up(link.index)?;
    }
    Ok(["192.168.7.3".parse()?, "fd07::3".parse()?])
}

/// How many interfaces our program is on; whether `status` finds that right or not.
fn uplinks(bed: &Outside) -> Result<u64> {
    let status = bed.lab.try_nsnet("-o json status")?;
    let status: serde_json::Value = serde_json::from_slice(&status.stdout)?;
    status["uplinks"].as_u64().context("no uplinks in `status`")
}

/// Behaviours 13, F9: an address is replaced under traffic. Nothing leaves with the old one, new flows have the new one,
/// and programs of the host reach what is published at it.
#[test]
fn an_address_that_is_replaced() -> Result<()> {
    let bed = Outside::new()?;
    bed.lab.nsnet("publish add @c1 8080:80")?;
    let agent = Agent::start(&bed.lab, "")?;
    let netlink = Netlink::inside(&bed.lab.ns("host")?)?;
    let uplink = netlink.existing_link("uplink")?.index;
    for (v6, old, new) in [(false, "192.168.1.1/24", "192.168.1.7/24"), (true, "fd01::1/64", "fd01::7/64")] {
        let echo = bed.at("wan").run(|| UdpEcho::start(SocketAddr::new(wan(v6), 0)))?;
        let c1 = bed.at("c1");
        let own = if v6 { c1.v6.into() } else { c1.v4.into() };
        let server = c1.run(|| TcpServer::banner(SocketAddr::new(own, 80), "hello"))?;
        let (old, new): (IpNet, IpNet) = (old.parse()?, new.parse()?);
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| -> Result<()> {
            let talk = scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    // While there is no address there is no way: that is no failure here.
                    bed.at("c2").run(|| udp::exchange(echo.addr(), 64, 5, 50 * MILLISECOND)).ok();
                    // Each exchange takes a port of its namespace's quota.
                    thread::sleep(5 * MILLISECOND);
                }
            });
            thread::sleep(300 * MILLISECOND);
            bed.allow(&[&format!("{}/{}", new.addr(), new.max_prefix_len())])?;
            netlink.remove_address(uplink, old)?;
            netlink.add_address(uplink, new)?;
            let gateways = [wan(false), wan(true)];
            let known = netlink.routes()?.iter().any(|route| route.dest == "0.0.0.0/0".parse().expect("a prefix"));
            if !known || v6 {
                set_default(&bed, "uplink", &gateways)?;
            }
            // Programs of the host reach it at once.
            let published = SocketAddr::new(new.addr(), 8080);
            let waited = until(5 * SECOND, || {
                bed.lab.within("host", || Ok(TcpStream::connect_timeout(&published, SECOND).is_ok()))?
            });
            let waited = waited.with_context(|| format!("{published}; the agent said {}", agent.said()))?;
            // At once, but that a verb elsewhere on this machine may be in the way.
            eprintln!("the host's own programs waited {waited:?} for {published}");
            // A flow asks for its way once a second.
            thread::sleep(1100 * MILLISECOND);
            bed.forbid(&format!("{}/{}", old.addr(), old.max_prefix_len()))?;
            thread::sleep(SECOND);
            is_over.store(true, Ordering::Relaxed);
            talk.join().expect("no panic");
            Ok(())
        })?;
        let outcome = bed.at("c2").run(|| udp::exchange(echo.addr(), 64, 5, SECOND))?;
        assert_eq!(outcome.echoed, 5, "{outcome}; dropped: {:?}; the agent said {}", bed.drops(), agent.said());
        assert!(echo.peers().iter().any(|peer| peer.ip() == new.addr()), "{:?}", echo.peers());
        // The old address is the host's no more.
        assert_eq!(old.addr(), host(v6));
        let gone = SocketAddr::new(old.addr(), 8080);
        let fails = || bed.lab.within("host", || TcpStream::connect_timeout(&gone, SECOND / 2).is_err());
        assert!(fails()?, "{gone} still leads to the namespace");
        drop(server);
        agent.wait_for_health()?;
        bed.check_no_drift()?;
    }
    bed.check_no_leak()
}

/// The default route moves to an interface that was not there when the network was made, and back.
#[test]
fn an_uplink_that_comes_and_goes() -> Result<()> {
    let bed = Outside::new()?;
    let agent = Agent::start(&bed.lab, "")?;
    let c1 = bed.at("c1");
    assert!(c1.reaches(far(false))? && c1.reaches(far(true))?);
    let gateways = add_wire(&bed, "second")?;
    agent.wait_for_word("second is an uplink now")?;
    set_default(&bed, "second", &gateways)?;
    for v6 in [false, true] {
        let waited = until(10 * SECOND, || c1.reaches(far(v6)));
        waited.with_context(|| format!("v6 {v6}: {:?}; the agent said {}", bed.drops(), agent.said()))?;
    }
    let echo = bed.at("wan").run(|| UdpEcho::start(SocketAddr::new(gateways[0], 0)))?;
    assert_eq!(c1.run(|| udp::exchange(echo.addr(), 64, 3, SECOND))?.echoed, 3);
    assert_eq!(echo.peers()[0].ip(), "192.168.7.1".parse::<IpAddr>()?);
    assert_eq!(uplinks(&bed)?, 2);
    agent.wait_for_health()?;

    let netlink = Netlink::inside(&bed.lab.ns("host")?)?;
    netlink.delete_link(netlink.existing_link("second")?.index)?;
    agent.wait_for_word("second is no uplink any more")?;
    set_default(&bed, "uplink", &[wan(false), wan(true)])?;
    for v6 in [false, true] {
        until(10 * SECOND, || c1.reaches(far(v6)))?;
    }
    assert_eq!(uplinks(&bed)?, 1);
    agent.wait_for_health()?;
    bed.check_no_drift()
}

/// A named uplink that is made anew has another index, and is the uplink again.
#[test]
fn a_named_uplink_that_is_replaced() -> Result<()> {
    let mut bed = Outside::new()?;
    let gateways = add_wire(&bed, "named")?;
    bed.add_c3("--masquerade --uplink named")?;
    set_default(&bed, "named", &gateways)?;
    let agent = Agent::start(&bed.lab, "")?;
    assert!(bed.at("c3").reaches(far(false))?);
    let netlink = Netlink::inside(&bed.lab.ns("host")?)?;
    let index = netlink.existing_link("named")?.index;
    netlink.delete_link(index)?;
    agent.wait_for_reason("named")?;
    add_wire(&bed, "named")?;
    assert_ne!(netlink.existing_link("named")?.index, index);
    set_default(&bed, "named", &gateways)?;
    let waited = until(10 * SECOND, || bed.at("c3").reaches(far(false)));
    waited.with_context(|| format!("{:?}; the agent said {}", bed.drops(), agent.said()))?;
    agent.wait_for_health()?;
    bed.check_no_drift()
}

/// A link that flaps stays an uplink: without our program the host would answer for namespaces meanwhile.
#[test]
fn an_uplink_that_flaps() -> Result<()> {
    let bed = Outside::new()?;
    let agent = Agent::start(&bed.lab, "")?;
    for change in ["link set uplink down", "link set uplink up", "addr flush dev uplink"] {
        bed.ip("host", change)?;
        let heard = agent.figures()?.value("nsnet_agent_runs_total", &[("task", "follow")])?;
        until(5 * SECOND, || Ok(agent.figures()?.value("nsnet_agent_runs_total", &[("task", "follow")])? > heard))?;
        assert_eq!(uplinks(&bed)?, 1, "after `{change}`: {}", agent.said());
    }
    assert!(!agent.said().contains("no uplink any more"), "{}", agent.said());
    Ok(())
}

/// A subnet that overlaps with what the host has come to reach otherwise is reported, and by `status` too.
#[test]
fn an_overlap_that_comes_later() -> Result<()> {
    let bed = Outside::new()?;
    let agent = Agent::start(&bed.lab, "")?;
    bed.ip("host", "addr add 192.168.15.77/32 dev uplink")?;
    agent.wait_for_reason("overlap of subnet 192.168.15.0/24 with 192.168.15.77/32")?;
    let status = bed.lab.try_nsnet("-o json status")?;
    assert_eq!(status.status.code(), Some(1));
    let status: serde_json::Value = serde_json::from_slice(&status.stdout)?;
    assert_eq!(status["drift"][0]["object"], json!("host's way to network v-net-0"));
    bed.ip("host", "addr del 192.168.15.77/32 dev uplink")?;
    agent.wait_for_health()?;
    Ok(())
}

/// A gateway that answers no more is told, and so is that it does again.
#[test]
fn a_gateway_that_is_silent() -> Result<()> {
    let bed = Outside::with("", &["c1"], &[])?;
    let agent = Agent::start(&bed.lab, "")?;
    assert!(bed.at("c1").reaches(far(false))?);
    let answers =
        || agent.figures()?.find("nsnet_gateway_answers", &[("uplink", "uplink"), ("gateway", "192.168.1.3")]);
    bed.ip("wan", "link set uplink arp off")?;
    bed.ip("wan", "addr del 192.168.1.3/24 dev uplink")?;
    bed.ip("host", "neigh flush dev uplink")?;
    let waited = until(10 * SECOND, || {
        bed.at("c1").reaches(far(false))?;
        Ok(answers()? == Some(0.0))
    });
    waited.with_context(|| format!("{:?}; the agent said {}", answers(), agent.said()))?;
    agent.wait_for_word("gateway 192.168.1.3 behind uplink does not answer")?;
    assert!(agent.health()?.0, "that is the wire's matter");
    bed.ip("wan", "addr add 192.168.1.3/24 dev uplink")?;
    bed.ip("wan", "link set uplink arp on")?;
    until(10 * SECOND, || {
        bed.at("c1").reaches(far(false))?;
        Ok(answers()? == Some(1.0))
    })?;
    agent.wait_for_word("gateway 192.168.1.3 behind uplink answers again")
}
