//! The way out: by route without and with masquerade, and to the internet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;

use super::report::Report;
use super::traffic::{KINDS, Peer, no_checksum_errors, prove};
use crate::kernel::netlink::Netlink;
use crate::kernel::route::Route;
use crate::lab::ping::{Echo, ping, ping_with};
use crate::lab::watch::Seen;
use crate::lab::{HOST_IP, Lab, UdpEcho, WAN_IP, Watch, udp};

/// The IPv6 addresses of the uplink's ends.
pub(super) const HOST_IP6: &str = "fd01::1";
pub(super) const WAN_IP6: &str = "fd01::3";
/// Interface of both.
pub(super) const UPLINK: &str = "uplink";
/// What only the host reaches, behind wan.
const BEYOND: [&str; 2] = ["203.0.113.7", "2001:db8::7"];
/// Subnets that nobody outside is to see.
const PRIVATE: [&str; 2] = ["192.168.15.0/24", "fd15::/64"];
/// A port where somebody listens, one where nobody does, and one to send from.
const PORT: u16 = 7001;
const CLOSED_PORT: u16 = 7002;
const SOURCE_PORT: u16 = 5000;
/// How long to wait for what is not to come.
const SILENCE: Duration = Duration::from_millis(250);
/// How long to wait for what is to come.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Where blue is sent out: the host's addresses in the network.
const GATEWAYS: [&str; 2] = ["192.168.15.5", "fd15::5"];
/// Time exceeded on the way: type and code of ICMP (RFC 792) and of ICMPv6 (RFC 4443 section 3.3).
const TIME_EXCEEDED: [(u8, u8); 2] = [(11, 0), (3, 0)];

/// Gives both ends of the uplink their IPv6 addresses.
pub(super) fn add_ipv6(lab: &Lab) -> Result<()> {
    for (ns, ip) in [("host", HOST_IP6), ("wan", WAN_IP6)] {
        let netlink = Netlink::inside(&lab.ns(ns)?)?;
        let uplink = netlink.existing_link(UPLINK)?;
        netlink.add_address(uplink.index, format!("{ip}/64").parse()?)?;
    }
    Ok(())
}

/// Blue reaches the host's neighbour, once it is masqueraded.
pub(super) fn by_route(lab: &Lab, report: &mut Report, peers: &[Peer]) -> Result<()> {
    report.scenario("outside", "Outside by route: blue reaches 192.168.1.3, a neighbour of the host's")?;
    let Some([red, blue]) = peers.get(..2) else { return not_attached(report) };
    let targets = [ip(WAN_IP)?, ip(WAN_IP6)?];
    let routed = report.step("routes", || {
        for (subnet, gateway) in ["192.168.1.0/24", "fd01::/64"].into_iter().zip(GATEWAYS) {
            lab.nsnet(&format!("route add @blue {subnet} via {gateway}"))?;
        }
        Ok(format!("blue has one to 192.168.1.0/24 via {} and one to fd01::/64 via {}", GATEWAYS[0], GATEWAYS[1]))
    })?;
    if !routed {
        return Ok(());
    }
    report.step("without NAT", || without_nat(lab, blue, targets))?;
    let watch = lab.within("wan", || Watch::start(UPLINK))??;
    let masqueraded = report.step("masquerade", || {
        lab.nsnet("masquerade on v-net-0")?;
        for target in targets {
            let pings = lab.within("blue", || ping(target, 3, 56, TIMEOUT))??;
            ensure!(pings.received == pings.sent, "ping {target}: {pings}");
        }
        Ok(format!("`nsnet masquerade on v-net-0`, and blue pings {WAN_IP} and {WAN_IP6}"))
    })?;
    if masqueraded {
        let wan = Peer { ns: "wan", interface: UPLINK.to_owned(), ips: targets.to_vec() };
        let peers = [blue.clone(), wan];
        for kind in KINDS {
            report.step(kind.name, || Ok(prove(lab, &peers, from_blue, kind)?.to_string()))?;
        }
        report.step("one source port", || one_source_port(lab, [red, blue], targets))?;
    }
    report.step("seen outside", || only_the_host(&watch.end()?))?;
    report.step("checksums", || no_checksum_errors(lab, &["host", "wan", "red", "blue"]))?;
    Ok(())
}

/// Blue reaches what the host reaches.
pub(super) fn internet(lab: &Lab, report: &mut Report, peers: &[Peer]) -> Result<()> {
    report.scenario("internet", "Internet: blue has a default route, and reaches what the host reaches")?;
    let Some([_red, blue]) = peers.get(..2) else { return not_attached(report) };
    let watch = lab.within("wan", || Watch::start(UPLINK))??;
    let targets = [ip(BEYOND[0])?, ip(BEYOND[1])?];
    let routed = report.step("routes", || {
        lay_beyond(lab, targets)?;
        for gateway in GATEWAYS {
            lab.nsnet(&format!("route add @blue default via {gateway}"))?;
        }
        Ok(format!("blue's default is {}, the host's is {WAN_IP}, behind which is {}", GATEWAYS[0], BEYOND[0]))
    })?;
    if routed {
        let beyond = Peer { ns: "wan", interface: UPLINK.to_owned(), ips: targets.to_vec() };
        let peers = [blue.clone(), beyond];
        for kind in KINDS.iter().filter(|kind| kind.offload) {
            report.step(kind.name, || Ok(prove(lab, &peers, from_blue, *kind)?.to_string()))?;
        }
        report.step("first hop", || first_hop(lab, targets))?;
        report.step("nobody there", || nobody_there(lab, targets))?;
    }
    report.step("seen outside", || only_the_host(&watch.end()?))?;
    report.step("checksums", || no_checksum_errors(lab, &["host", "wan", "red", "blue"]))?;
    Ok(())
}

/// No frame named an address of the network, and all came from the host.
pub(super) fn only_the_host(seen: &Seen) -> Result<String> {
    let private = PRIVATE.iter().map(|net| Ok(net.parse()?)).collect::<Result<Vec<IpNet>>>()?;
    let leaked: Vec<&IpAddr> = seen.addresses.iter().filter(|ip| private.iter().any(|net| net.contains(*ip))).collect();
    ensure!(leaked.is_empty(), "192.168.1.3 saw {leaked:?}");
    let host = [ip(HOST_IP)?, ip(HOST_IP6)?];
    // Neighbour discovery has senders of its own (RFC 4861 section 4).
    let on_link = |ip: &IpAddr| match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_unspecified() || ip.is_unicast_link_local(),
    };
    let strangers: Vec<&IpAddr> = seen.senders.iter().filter(|ip| !host.contains(ip) && !on_link(ip)).collect();
    ensure!(strangers.is_empty(), "192.168.1.3 got packets from {strangers:?}");
    ensure!(host.iter().all(|ip| seen.senders.contains(ip)), "192.168.1.3 saw nothing of {HOST_IP} or {HOST_IP6}");
    let frames = seen.frames;
    Ok(format!("{frames} frames at {WAN_IP}, all from {HOST_IP} or {HOST_IP6}, none with an address of the network"))
}

pub(super) fn ip(text: &str) -> Result<IpAddr> {
    text.parse().with_context(|| format!("{text} is no address"))
}

/// A step that fails, for what cannot be shown.
pub(super) fn not_attached(report: &mut Report) -> Result<()> {
    report.step("begun", || Err(anyhow::anyhow!("red and blue are not attached")))?;
    Ok(())
}

fn from_blue(from: &Peer, _to: &Peer) -> bool {
    from.ns == "blue"
}

/// The request arrives with blue's own address, to which wan has no route.
fn without_nat(lab: &Lab, blue: &Peer, targets: [IpAddr; 2]) -> Result<String> {
    let watch = lab.within("wan", || Watch::start(UPLINK))??;
    for target in targets {
        let to = SocketAddr::new(target, PORT);
        let server = lab.within("wan", || UdpEcho::start(to))??;
        let (pings, datagrams) =
            lab.within("blue", || anyhow::Ok((ping(target, 1, 56, SILENCE)?, udp::exchange(to, 64, 1, SILENCE)?)))??;
        ensure!(pings.received == 0 && datagrams.echoed == 0, "{target} answered: ping {pings}; UDP {datagrams}");
        let from: Vec<IpAddr> = server.peers().iter().map(SocketAddr::ip).collect();
        ensure!(from.len() == 1 && blue.ips.contains(&from[0]), "{target} was asked by {from:?}");
    }
    let seen = watch.end()?;
    ensure!(blue.ips.iter().all(|ip| seen.senders.contains(ip)), "{WAN_IP} saw {:?} only", seen.senders);
    Ok(format!("{WAN_IP} sees ping and UDP from {}, and has no way back; so in IPv6", blue.ips[0]))
}

/// Red and blue send from one port to one server: it sees two, and each gets its own answers.
fn one_source_port(lab: &Lab, peers: [&Peer; 2], targets: [IpAddr; 2]) -> Result<String> {
    for target in targets {
        let to = SocketAddr::new(target, PORT);
        let server = lab.within("wan", || UdpEcho::start(to))??;
        let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        for peer in peers {
            let outcome =
                lab.within(peer.ns, || udp::exchange_from(SocketAddr::new(any, SOURCE_PORT), to, 64, 1, TIMEOUT))??;
            ensure!(outcome.echoed == 1, "{} to {target}: {outcome}", peer.ns);
        }
        let seen = server.peers();
        ensure!(seen.len() == 2, "{target} saw {seen:?}");
    }
    Ok(format!("red and blue both send from port {SOURCE_PORT} to one server, and both are answered"))
}

/// Addresses behind wan, and the host's way to them.
fn lay_beyond(lab: &Lab, targets: [IpAddr; 2]) -> Result<()> {
    let (host, wan) = (Netlink::inside(&lab.ns("host")?)?, Netlink::inside(&lab.ns("wan")?)?);
    let loopback = wan.existing_link("lo")?;
    for (target, via) in targets.into_iter().zip([WAN_IP, WAN_IP6]) {
        wan.add_address(loopback.index, IpNet::from(target))?;
        let everything = if target.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
        host.add_route(&Route { dest: everything.parse()?, via: Some(ip(via)?), index: None })?;
    }
    Ok(())
}

/// What dies on the way dies at the gateway, as `traceroute` shows.
fn first_hop(lab: &Lab, targets: [IpAddr; 2]) -> Result<String> {
    for ((target, gateway), exceeded) in targets.into_iter().zip(GATEWAYS).zip(TIME_EXCEEDED) {
        let to = SocketAddr::new(target, 0);
        let echo = Echo { to, count: 1, payload_len: 56, timeout: TIMEOUT, hop_limit: Some(1) };
        let pings = lab.within("blue", || ping_with(&echo))??;
        let said = pings.refused.first().map(|refusal| (refusal.from, (refusal.kind, refusal.code)));
        ensure!(said == Some((ip(gateway)?, exceeded)), "a ping of {target} with one hop to go: {pings}, {said:?}");
    }
    Ok(format!("with one hop to go, {} and {} say that time is exceeded", GATEWAYS[0], GATEWAYS[1]))
}

/// An ICMP error from outside finds its way to the socket that it is about.
fn nobody_there(lab: &Lab, targets: [IpAddr; 2]) -> Result<String> {
    for target in targets {
        let outcome = lab.within("blue", || udp::exchange(SocketAddr::new(target, CLOSED_PORT), 64, 1, TIMEOUT))??;
        ensure!(outcome.refused == 1 && outcome.echoed == 0, "UDP to a closed port of {target}: {outcome}");
    }
    Ok("UDP to a closed port is refused at once: the ICMP error is translated back".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(senders: &[&str], others: &[&str]) -> Seen {
        let senders: Vec<IpAddr> = senders.iter().map(|ip| ip.parse().unwrap()).collect();
        let others = others.iter().map(|ip| ip.parse().unwrap());
        Seen {
            frames: 5,
            senders: senders.iter().copied().collect(),
            addresses: senders.iter().copied().chain(others).collect(),
        }
    }

    #[test]
    fn what_is_seen_outside() {
        let fine = ["192.168.1.1", "fd01::1", "fe80::1", "::"];
        assert!(only_the_host(&seen(&fine, &["192.168.1.3"])).is_ok());
        assert!(only_the_host(&seen(&fine, &["fd15::2"])).is_err(), "quoted in an error");
        assert!(only_the_host(&seen(&[&fine[..], &["192.168.15.2"]].concat(), &[])).is_err());
        assert!(only_the_host(&seen(&[&fine[..], &["10.0.0.1"]].concat(), &[])).is_err(), "a stranger");
        assert!(only_the_host(&seen(&["192.168.1.1"], &[])).is_err(), "nothing was seen of IPv6");
    }
}
