//! Who reaches a published port, by which address, and whom the server sees: the table of a user's expectations.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nsnet::lab::{TcpServer, UdpEcho, udp};

use super::outside_bed::{FAMILIES, Outside, host, wan_server};

const TEXT: &str = "published";
const PATIENCE: Duration = Duration::from_millis(1500);

/// From where, to which address of the host, and which sources the server may see.
struct Origin {
    name: &'static str,
    from: &'static str,
    /// By family.
    to: [IpAddr; 2],
    sources: [Vec<IpAddr>; 2],
}

/// The servers in c1: TCP and UDP, of each family, on port 80.
struct Servers {
    tcp: [TcpServer; 2],
    udp: [UdpEcho; 2],
}

impl Servers {
    fn start(bed: &Outside, ns: &str) -> Result<Self> {
        let any = ["0.0.0.0:80".parse()?, "[::]:80".parse()?];
        bed.at(ns).run(|| {
            Ok(Self {
                tcp: [TcpServer::banner(any[0], TEXT)?, TcpServer::banner(any[1], TEXT)?],
                udp: [UdpEcho::start(any[0])?, UdpEcho::start(any[1])?],
            })
        })
    }

    fn peers(&self, protocol: &str, v6: bool) -> Vec<SocketAddr> {
        let family = usize::from(v6);
        if protocol == "tcp" { self.tcp[family].peers() } else { self.udp[family].peers() }
    }
}

/// Asks once, in the calling thread's namespace.
fn ask(protocol: &str, to: SocketAddr) -> Result<()> {
    if protocol == "udp" {
        let outcome = udp::exchange(to, 50, 1, PATIENCE)?;
        ensure!(outcome.echoed == 1, "{outcome}");
        return Ok(());
    }
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut said = String::new();
    stream.read_to_string(&mut said).context("connected")?;
    ensure!(said == TEXT, "it says {said:?}");
    Ok(())
}

/// Fills the table, and fails with its wrong cells.
fn check(bed: &Outside, servers: &Servers, origins: &[Origin], port: u16) -> Result<()> {
    let mut table = String::new();
    let mut wrong = Vec::new();
    for origin in origins {
        for v6 in FAMILIES {
            let (to, allowed) = (SocketAddr::new(origin.to[usize::from(v6)], port), &origin.sources[usize::from(v6)]);
            for protocol in ["tcp", "udp"] {
                let before = servers.peers(protocol, v6).len();
                let asked = bed.at(origin.from).run(|| ask(protocol, to));
                let seen: BTreeSet<IpAddr> = servers.peers(protocol, v6)[before..].iter().map(SocketAddr::ip).collect();
                let verdict = match asked {
                    Err(error) => format!("failed: {error:#}"),
                    Ok(()) if seen.len() != 1 || !seen.iter().all(|ip| allowed.contains(ip)) => {
                        format!("wrong source, not of {allowed:?}")
                    }
                    Ok(()) => "ok".to_owned(),
                };
                let row = format!("{:<34} {protocol} {:<22} {verdict:<8} {seen:?}", origin.name, to.to_string());
                writeln!(table, "{row}")?;
                if verdict != "ok" {
                    wrong.push(row);
                }
            }
        }
    }
    println!("{table}");
    ensure!(wrong.is_empty(), "{} of {} cells are wrong:\n{}", wrong.len(), origins.len() * 4, wrong.join("\n"));
    Ok(())
}

/// The origins of behaviours 1 to 4, for c1 published by every address of the host's.
fn origins(bed: &Outside) -> Result<Vec<Origin>> {
    let ips = |name: &str| -> [IpAddr; 2] { [bed.at(name).v4.into(), bed.at(name).v6.into()] };
    let lan = [host(false), host(true)];
    let loopback = ["127.0.0.1".parse()?, "::1".parse()?];
    let (gateway, other_gateway) = (ips("host"), ips("v-net-1"));
    let each = |sets: &[[IpAddr; 2]]| [0, 1].map(|family| sets.iter().map(|set| set[family]).collect::<Vec<_>>());
    let wire = FAMILIES.map(|v6| (0..3).map(|number| wan_server(v6, number)).collect::<Vec<_>>());
    let origin = |name, from, to, sources| Origin { name, from, to, sources };
    Ok(vec![
        origin("remote, on the wire", "wan", lan, wire),
        origin("remote, behind a router", "far", lan, each(&[ips("far")])),
        origin("host, by loopback", "host", loopback, each(&[gateway])),
        origin("host, by its LAN address", "host", lan, each(&[gateway, lan])),
        origin("host, by the gateway's address", "host", gateway, each(&[gateway])),
        origin("same network, by host IP", "c2", lan, each(&[ips("c2"), gateway, lan])),
        origin("same network, by gateway IP", "c2", gateway, each(&[ips("c2"), gateway, lan])),
        origin("other network, by host IP", "c3", lan, each(&[ips("c3"), gateway, other_gateway, lan])),
        origin("same namespace, by host IP", "c1", lan, each(&[gateway, lan])),
        origin("same namespace, by gateway IP", "c1", gateway, each(&[gateway, lan])),
    ])
}

/// c1 and c2 in one network, c3 in another, both masqueraded; c1 serves.
fn stage() -> Result<(Outside, Servers)> {
    let mut bed = Outside::new()?;
    bed.add_c3("--masquerade")?;
    let servers = Servers::start(&bed, "c1")?;
    Ok((bed, servers))
}

/// Behaviours 1 to 4, 6, 10; RFC 4787 REQ-9, RFC 5382 REQ-8.
#[test]
fn published_ports_are_reached_from_everywhere() -> Result<()> {
    let (bed, servers) = stage()?;
    bed.lab.nsnet("publish add @c1 8080:80/tcp")?;
    bed.lab.nsnet("publish add @c1 8080:80/udp")?;
    check(&bed, &servers, &origins(&bed)?, 8080)?;
    // Twice, for what the first round left in the tables.
    check(&bed, &servers, &origins(&bed)?, 8080)?;
    bed.check_no_drift()
}

/// Behaviours 3, 19: published ports are reached in a routed network, too.
#[test]
fn published_ports_of_a_routed_network() -> Result<()> {
    let mut bed = Outside::plain("--uplink auto", &["c1", "c2"], &[])?;
    bed.add_c3("--masquerade")?;
    let servers = Servers::start(&bed, "c1")?;
    bed.lab.nsnet("publish add @c1 8080:80/tcp")?;
    bed.lab.nsnet("publish add @c1 8080:80/udp")?;
    check(&bed, &servers, &origins(&bed)?, 8080)
}

/// Behaviours 5: only the address that was given answers.
#[test]
fn an_address_that_is_given_is_the_only_one() -> Result<()> {
    let (bed, servers) = stage()?;
    bed.lab.nsnet("publish add @c1 192.168.1.1:8080:80/tcp")?;
    bed.lab.nsnet("publish add @c1 192.168.1.1:8080:80/udp")?;
    bed.lab.nsnet("publish add @c1 [fd01::1]:8080:80/tcp")?;
    bed.lab.nsnet("publish add @c1 [fd01::1]:8080:80/udp")?;
    let lan = [host(false), host(true)];
    let (answered, refused): (Vec<_>, Vec<_>) = origins(&bed)?.into_iter().partition(|origin| origin.to == lan);
    assert!(!answered.is_empty() && !refused.is_empty());
    check(&bed, &servers, &answered, 8080)?;
    nobody_answers(&bed, &servers, &refused)
}

/// Behaviours 5, A4, moby 45610: by loopback the host reaches it, and nobody else by any address.
#[test]
fn a_loopback_publish_is_the_hosts_own() -> Result<()> {
    let (bed, servers) = stage()?;
    for host_ip in ["127.0.0.1", "[::1]"] {
        for protocol in ["tcp", "udp"] {
            bed.lab.nsnet(&format!("publish add @c1 {host_ip}:8080:80/{protocol}"))?;
        }
    }
    let (own, others): (Vec<_>, Vec<_>) = origins(&bed)?.into_iter().partition(|origin| origin.to[0].is_loopback());
    check(&bed, &servers, &own, 8080)?;
    nobody_answers(&bed, &servers, &others)
}

fn nobody_answers(bed: &Outside, servers: &Servers, origins: &[Origin]) -> Result<()> {
    let mut wrong = Vec::new();
    for origin in origins {
        for v6 in FAMILIES {
            let to = SocketAddr::new(origin.to[usize::from(v6)], 8080);
            for protocol in ["tcp", "udp"] {
                let before = servers.peers(protocol, v6).len();
                let is_answered = bed.at(origin.from).run(|| ask(protocol, to)).is_ok();
                if is_answered || servers.peers(protocol, v6).len() != before {
                    wrong.push(format!("{}: {protocol} {to}", origin.name));
                }
            }
        }
    }
    ensure!(wrong.is_empty(), "it is reached by\n{}", wrong.join("\n"));
    Ok(())
}
