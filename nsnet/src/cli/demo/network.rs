//! One network: its switch, the host in it, and two servers on one port.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::report::Report;
use super::traffic::{KINDS, Peer, no_checksum_errors, prove};
use crate::kernel::named;
use crate::kernel::netlink::Netlink;
use crate::kernel::sysctl;
use crate::lab::{Lab, TcpServer, tcp};

/// The network, and the host's interface in it.
const NETWORK: &str = "v-net-0";
/// The members, with their addresses ending in 1 to 4.
pub(super) const MEMBERS: [&str; 4] = ["red", "blue", "orange", "purple"];
/// The host's addresses.
const GATEWAYS: [&str; 2] = ["192.168.15.5", "fd15::5"];
/// Every namespace of these scenarios.
const ALL: [&str; 6] = ["host", "wan", "red", "blue", "orange", "purple"];

/// Four namespaces on one switch. What was made is wanted by the scenarios after it; `load` is how long the programs
/// took to load.
pub(super) fn switch(lab: &Lab, report: &mut Report, load: Duration) -> Result<Vec<Peer>> {
    report.scenario("switch", "Switch: network v-net-0 joins red, blue, orange and purple")?;
    report.step("programs", || {
        // The host needs neither: what it would forward by itself proves nothing about us.
        lab.within("host", || sysctl::write("net/ipv4/ip_forward", "0"))??;
        let [v4, v6] = GATEWAYS;
        lab.nsnet(&format!("network add {NETWORK} --subnet 192.168.15.0/24 fd15::/64 --gateway {v4} {v6}"))?;
        Ok(format!("verified and loaded by the kernel in {}", milliseconds(load)))
    })?;
    let mut peers = Vec::new();
    let attached = report.step("attached", || {
        let mut took = Vec::new();
        for (n, ns) in (1..).zip(MEMBERS) {
            let start = Instant::now();
            peers.push(attach(lab, ns, n)?);
            took.push(start.elapsed());
        }
        took.sort();
        Ok(format!("one namespace in {} (median of 4, each a command of its own)", milliseconds(took[took.len() / 2])))
    })?;
    if attached {
        report.step("interfaces", || interfaces(lab))?;
        report.step("no bridge", || no_bridge(lab))?;
        for kind in KINDS {
            report.step(kind.name, || Ok(prove(lab, &peers, |_, _| true, kind)?.to_string()))?;
        }
    }
    report.step("checksums", || no_checksum_errors(lab, &ALL))?;
    Ok(peers)
}

/// The host and each namespace reach each other.
pub(super) fn host(lab: &Lab, report: &mut Report, peers: &[Peer]) -> Result<()> {
    report.scenario("host", "Host: it has an address in the network, and they reach each other")?;
    let mut gateway = None;
    report.step("gateway", || {
        let netlink = Netlink::inside(&lab.ns("host")?)?;
        let link = netlink.link(NETWORK)?.with_context(|| format!("the host has no interface {NETWORK}"))?;
        let ips: Vec<IpAddr> = netlink.addresses(link.index)?.iter().map(ipnet::IpNet::addr).collect();
        let wanted = GATEWAYS.iter().map(|ip| Ok(ip.parse()?)).collect::<Result<Vec<IpAddr>>>()?;
        ensure!(wanted.iter().all(|ip| ips.contains(ip)), "{NETWORK} has {ips:?}");
        gateway = Some(Peer { ns: "host", interface: NETWORK.to_owned(), ips: wanted });
        Ok(format!("{} on interface {NETWORK}", GATEWAYS.join(" and ")))
    })?;
    if let Some(gateway) = gateway {
        let all: Vec<Peer> = peers.iter().cloned().chain([gateway]).collect();
        for kind in KINDS {
            let with_host = |a: &Peer, b: &Peer| a.ns == "host" || b.ns == "host";
            report.step(kind.name, || Ok(prove(lab, &all, with_host, kind)?.to_string()))?;
        }
    }
    report.step("checksums", || no_checksum_errors(lab, &ALL))?;
    Ok(())
}

/// Red and blue both listen on port 8080, and each answers on its own address.
pub(super) fn two_servers(lab: &Lab, report: &mut Report, peers: &[Peer]) -> Result<()> {
    const PORT: u16 = 8080;
    report.scenario("two servers", "Two servers on one port: red and blue both listen on port 8080")?;
    let Some(servers @ [_red, _blue]) = peers.get(..2) else {
        report.step("answers", || Err(anyhow::anyhow!("red and blue are not attached")))?;
        return Ok(());
    };
    report.step("answers", || {
        let mut running = Vec::new();
        for peer in servers {
            for any in ["0.0.0.0", "::"] {
                let at = SocketAddr::new(any.parse()?, PORT);
                running.push(lab.within(peer.ns, || TcpServer::banner(at, &format!("this is {}", peer.ns)))??);
            }
        }
        let mut said = Vec::new();
        for peer in servers {
            for ip in &peer.ips {
                for client in ["orange", "host"] {
                    let banner = lab.within(client, || tcp::fetch(SocketAddr::new(*ip, PORT)))?;
                    let banner = banner.with_context(|| format!("{client} to {}", peer.ns))?;
                    ensure!(banner == format!("this is {}", peer.ns), "{client} asked {ip}, which said {banner:?}");
                }
                said.push(format!("{ip} says {:?}", format!("this is {}", peer.ns)));
            }
        }
        Ok(format!("asked by orange and by the host, {}", said.join(", ")))
    })?;
    Ok(())
}

fn attach(lab: &Lab, ns: &'static str, number: usize) -> Result<Peer> {
    let ips = [format!("192.168.15.{number}"), format!("fd15::{number}")];
    let line = format!("attach {NETWORK} @{ns} --ip {} --ifname veth-{ns}", ips.join(" "));
    let port = lab.json(&line)?;
    let interface = port["ifname"].as_str().context("the answer names no interface")?.to_owned();
    let ips = ips.iter().map(|ip| Ok(ip.parse()?)).collect::<Result<_>>()?;
    Ok(Peer { ns, interface, ips })
}

/// Everything is where `ip netns` and `ip link` look for it.
fn interfaces(lab: &Lab) -> Result<String> {
    let names = named::list()?;
    let on_host = Netlink::inside(&lab.ns("host")?)?;
    let shown = lab.json(&format!("network show {NETWORK}"))?;
    let ports = shown["ports"].as_array().context("the network has no list of ports")?;
    let mut pairs = Vec::new();
    for ns in MEMBERS {
        let name = lab.name(ns);
        ensure!(names.contains(&name), "`ip netns` does not list {name}");
        let port = ports.iter().find(|port| port["ns"] == name.as_str());
        let port = port.with_context(|| format!("`network show` does not list {name}"))?;
        let (inner, outer) = (port["ifname"].as_str().unwrap_or(""), port["host_ifname"].as_str().unwrap_or(""));
        for (netlink, interface) in [(&Netlink::inside(&lab.ns(ns)?)?, inner), (&on_host, outer)] {
            let link = netlink.link(interface)?.with_context(|| format!("there is no interface {interface}"))?;
            ensure!(link.up, "interface {interface} is down");
        }
        pairs.push(format!("{inner} - {outer}"));
    }
    let example = pairs.first().map_or("", String::as_str);
    Ok(format!(
        "`ip netns` lists {} and the others, `ip link` shows {example} (a hash on the host, as the lab's names are long)",
        lab.name(MEMBERS[0])
    ))
}

fn no_bridge(lab: &Lab) -> Result<String> {
    let links = Netlink::inside(&lab.ns("host")?)?.links()?;
    let bridge = links.iter().find(|link| link.kind.as_deref() == Some("bridge"));
    ensure!(bridge.is_none(), "the host has a bridge: {bridge:?}");
    let forward = lab.within("host", || sysctl::read("net/ipv4/ip_forward"))??;
    ensure!(forward.as_deref() == Some("0"), "net.ipv4.ip_forward is {forward:?}");
    Ok("the host has no bridge device, and net.ipv4.ip_forward is 0".to_owned())
}

fn milliseconds(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_milliseconds() {
        assert_eq!(milliseconds(Duration::from_micros(27_400)), "27 ms");
    }
}
