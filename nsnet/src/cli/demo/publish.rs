//! A published port: who reaches it, whom the server sees, and that there is no other way in.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::outside::{HOST_IP6, UPLINK, WAN_IP6, ip, not_attached, only_the_host};
use super::report::Report;
use super::traffic::{Peer, no_checksum_errors};
use crate::kernel::netlink::Netlink;
use crate::kernel::route::Route;
use crate::kernel::sysctl;
use crate::lab::{HOST_IP, Lab, TcpServer, UdpEcho, WAN_IP, Watch, tcp, udp};
use nsnet_common::verdict::DropReason;

/// The published port, the same outside and inside.
const PORT: u16 = 80;
/// Bytes of a transfer in each direction.
const STREAM: u64 = 512 << 10;
/// Datagrams of an exchange, and their bytes.
const DATAGRAMS: u32 = 3;
const DATAGRAM: usize = 1400;
/// How long to wait for what is to come, and for what is not.
const TIMEOUT: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_millis(250);

/// Port 80 of the host is blue's.
pub(super) fn show(lab: &Lab, report: &mut Report, peers: &[Peer]) -> Result<()> {
    report.scenario("publish", "Publish: port 80 of the host is port 80 of blue")?;
    let Some([_red, blue]) = peers.get(..2) else { return not_attached(report) };
    let watch = lab.within("wan", || Watch::start(UPLINK))??;
    let mut servers = Vec::new();
    let published = report.step("published", || {
        for ip in &blue.ips {
            servers.push(lab.within("blue", || Server::start(SocketAddr::new(*ip, PORT)))??);
        }
        lab.nsnet(&format!("publish add @blue {PORT}:{PORT}/tcp"))?;
        lab.nsnet(&format!("publish add @blue {PORT}:{PORT}/udp"))?;
        Ok(format!("`nsnet publish add blue {PORT}:{PORT}/tcp`, and the same for UDP"))
    })?;
    if published {
        let [outside, outside6] = [ip(HOST_IP)?, ip(HOST_IP6)?];
        report.step("from outside", || {
            let sees = [ip(WAN_IP)?, ip(WAN_IP6)?];
            for (to, client) in [outside, outside6].into_iter().zip(sees) {
                let seen = ask(lab, "wan", to, &servers)?;
                ensure!(seen.iter().all(|ip| *ip == client), "blue sees {seen:?} instead of {client}");
            }
            Ok(format!("{WAN_IP} reaches {HOST_IP} and [{HOST_IP6}], and blue sees the client's own address"))
        })?;
        report.step("from the host", || {
            for to in [outside, outside6, ip("127.0.0.1")?, ip("::1")?] {
                let seen = ask(lab, "host", to, &servers)?;
                ensure!(seen.iter().all(|ip| !ip.is_loopback()), "blue sees {seen:?}, to whom it cannot answer");
            }
            Ok(format!("it reaches {HOST_IP}, [{HOST_IP6}], 127.0.0.1 and [::1]"))
        })?;
        report.step("from red", || {
            for to in [outside, outside6] {
                ask(lab, "red", to, &servers)?;
            }
            Ok(format!("red reaches {HOST_IP} and [{HOST_IP6}]"))
        })?;
    }
    report.step("seen outside", || only_the_host(&watch.end()?))?;
    if published {
        report.step("no other way in", || no_other_way_in(lab, blue))?;
        report.step("unpublished", || {
            lab.nsnet(&format!("publish del @blue {PORT}:{PORT}/tcp"))?;
            lab.nsnet(&format!("publish del @blue {PORT}:{PORT}/udp"))?;
            for to in [HOST_IP, HOST_IP6] {
                let to = SocketAddr::new(ip(to)?, PORT);
                let answer = lab.within("wan", || TcpStream::connect_timeout(&to, TIMEOUT))?;
                let refused = answer.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused);
                ensure!(refused, "{to} is not refused: {answer:?}");
            }
            Ok(format!("{WAN_IP} is refused at once"))
        })?;
    }
    report.step("without the kernel's help", || no_forwarding(lab))?;
    report.step("checksums", || no_checksum_errors(lab, &["host", "wan", "red", "blue"]))?;
    Ok(())
}

/// What answers in blue.
struct Server {
    tcp: TcpServer,
    udp: UdpEcho,
}

impl Server {
    fn start(at: SocketAddr) -> Result<Self> {
        Ok(Self { tcp: TcpServer::start(at)?, udp: UdpEcho::start(at)? })
    }
}

/// TCP and UDP from `client` to port 80 of `to`, every byte checked. Answers whom the servers saw.
fn ask(lab: &Lab, client: &str, to: IpAddr, servers: &[Server]) -> Result<Vec<IpAddr>> {
    let before: Vec<usize> = servers.iter().map(|server| server.tcp.peers().len()).collect();
    let at = SocketAddr::new(to, PORT);
    let exchange = || {
        tcp::transfer(at, STREAM).context("TCP")?;
        let outcome = udp::exchange(at, DATAGRAM, DATAGRAMS, TIMEOUT)?;
        ensure!(outcome.echoed == DATAGRAMS, "UDP: {outcome}");
        Ok(())
    };
    lab.within(client, exchange)?.with_context(|| format!("{client} to {at}"))?;
    let tcp = servers.iter().zip(before).flat_map(|(server, before)| server.tcp.peers().split_off(before));
    let udp = servers.iter().filter_map(|server| server.udp.peers().last().copied());
    // A server of the other family did not hear of it.
    let seen: Vec<IpAddr> = tcp.chain(udp).map(|peer| peer.ip()).filter(|ip| ip.is_ipv4() == to.is_ipv4()).collect();
    ensure!(seen.len() >= 2, "{at} answered {client}, but blue's servers saw only {seen:?}");
    Ok(seen)
}

/// Wan gets a route to the network and asks blue itself.
fn no_other_way_in(lab: &Lab, blue: &Peer) -> Result<String> {
    let wan = Netlink::inside(&lab.ns("wan")?)?;
    for (subnet, via) in [("192.168.15.0/24", HOST_IP), ("fd15::/64", HOST_IP6)] {
        wan.add_route(&Route { dest: subnet.parse()?, via: Some(ip(via)?), index: None })?;
    }
    let before = direct_access(lab)?;
    for ip in &blue.ips {
        let to = SocketAddr::new(*ip, PORT);
        if lab.within("wan", || TcpStream::connect_timeout(&to, SILENCE))?.is_ok() {
            bail!("{WAN_IP} reaches {to} over TCP");
        }
        let outcome = lab.within("wan", || udp::exchange(to, 64, 1, SILENCE))??;
        ensure!(outcome.echoed == 0, "{WAN_IP} reaches {to} over UDP: {outcome}");
    }
    let dropped = direct_access(lab)?.saturating_sub(before);
    let label = DropReason::DirectAccess.label();
    ensure!(dropped >= 4, "of four packets to blue itself {dropped} were dropped as {label}");
    Ok(format!("with a route to it, {WAN_IP} cannot reach {}: {dropped} packets dropped as {label}", blue.ips[0]))
}

/// Packets that `nsnet drops` shows for this reason.
fn direct_access(lab: &Lab) -> Result<u64> {
    let rows = lab.json("drops")?;
    let label = DropReason::DirectAccess.label();
    let rows = rows.as_array().context("`drops` printed no list")?.iter().filter(|row| row["reason"] == label);
    Ok(rows.filter_map(|row| row["packets"].as_u64()).sum())
}

fn no_forwarding(lab: &Lab) -> Result<String> {
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        let value = lab.within("host", || sysctl::read(key))??;
        ensure!(matches!(value.as_deref(), Some("0") | None), "{key} is {value:?}");
    }
    Ok("after all this net.ipv4.ip_forward is 0 on the host, and so is IPv6's forwarding".to_owned())
}
