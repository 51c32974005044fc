//! Each verb killed and failed at its system calls: see [`super::crash`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::netns::NetNs;
use nsnet::kernel::sysctl;
use nsnet::lab::ping::{answers, ping};
use nsnet::lab::{HOST_IP, Lab, TcpServer, WAN_IP, tcp};

use super::bed::{Scratch, lab};
use super::crash::Verb;

pub(crate) const NETWORK: &str = "network add v-net-0 --subnet 192.168.15.0/24 fd15::/64 --masquerade";
pub(crate) const ATTACH: &str = "attach v-net-0 @red --ip 192.168.15.1 fd15::1";
const PUBLISH: &str = "publish add @red 8080:80/tcp 9000-9003:9000-9003/udp";
const CABLE: &str = "cable add @red @blue --address-a 10.0.0.1/30 --address-b 10.0.0.2/30";
const RED: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 168, 15, 1)), IpAddr::V6(Ipv6Addr::new(0xfd15, 0, 0, 0, 0, 0, 0, 1))];
/// The outside world.
const WAN: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 168, 1, 3)), IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 3))];

/// A host whose uplink has both families, with namespaces red and blue.
pub(crate) fn host() -> Result<Lab> {
    let lab = lab()?;
    for (ns, address) in [("host", "fd01::1/64"), ("wan", "fd01::3/64")] {
        let ns = lab.ns(ns)?;
        ns.run(|| sysctl::write("net/ipv6/conf/uplink/accept_dad", "0"))??;
        let netlink = Netlink::inside(&ns)?;
        netlink.add_address(netlink.existing_link("uplink")?.index, address.parse()?)?;
    }
    lab.nsnet("ns add @red @blue")?;
    Ok(lab)
}

/// Whether `to` answers `from`; lost packets are forgiven to a busy machine.
fn reaches(lab: &Lab, from: &str, to: IpAddr) -> Result<()> {
    let is_reached = lab.within(from, || answers(to, 4, Duration::from_secs(1)))??;
    ensure!(is_reached, "{to} does not answer {from}");
    Ok(())
}

/// red reaches the host and the outside, and the host red.
pub(crate) fn red_is_attached(lab: &Lab) -> Result<()> {
    RED.iter().try_for_each(|ip| reaches(lab, "host", *ip))?;
    WAN.iter().try_for_each(|ip| reaches(lab, "red", *ip))
}

/// Somebody who pings all the time, and is not concerned by what happens beside.
struct Pinging {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(u32, u32)>>>,
}

impl Pinging {
    fn start(lab: &Lab, from: &str, to: IpAddr) -> Result<Self> {
        let (stop, ns) = (Arc::<AtomicBool>::default(), lab.ns(from)?);
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || ping_on(&ns, to, &stop)
        });
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Two namespaces beside red.
    fn beside(lab: &Lab) -> Result<Self> {
        lab.nsnet("ns add @c1 @c2")?;
        lab.nsnet("attach v-net-0 @c1 --ip 192.168.15.101 fd15::101")?;
        lab.nsnet("attach v-net-0 @c2 --ip 192.168.15.102 fd15::102")?;
        Self::start(lab, "c1", Ipv4Addr::new(192, 168, 15, 102).into())
    }

    /// Ends it; not one may be lost.
    fn finish(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it has ended already")?;
        let (sent, received) = thread.join().map_err(|_panic| anyhow::anyhow!("the pinging thread panicked"))??;
        println!("beside: {sent} pings sent, {received} answered");
        ensure!(sent == received && sent > 0, "{} of {sent} pings of bystanders were lost", sent - received);
        Ok(())
    }
}

impl Drop for Pinging {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn ping_on(ns: &NetNs, to: IpAddr, stop: &AtomicBool) -> Result<(u32, u32)> {
    ns.run(|| {
        let (mut sent, mut received) = (0, 0);
        while !stop.load(Ordering::Relaxed) {
            let pings = ping(to, 1, 56, Duration::from_secs(2))?;
            sent += pings.sent;
            received += pings.received;
            // Each has an identifier of its own, of which a namespace has 4,096 at a time: one rests for three minutes.
            thread::sleep(Duration::from_millis(50));
        }
        Ok((sent, received))
    })?
}

#[test]
fn namespaces() -> Result<()> {
    let lab = host()?;
    let works = || ["a", "b"].iter().try_for_each(|name| lab.nsnet(&format!("ns exec @{name} -- true")).map(drop));
    Verb { name: "ns", lab: &lab, make: &["ns add @a @b"], unmake: "ns del @a @b", works: &works, sample: 12 }.try_all()
}

#[test]
fn the_first_network() -> Result<()> {
    let lab = host()?;
    let works = || {
        lab.nsnet(ATTACH)?;
        red_is_attached(&lab)?;
        lab.nsnet("detach v-net-0 @red").map(drop)
    };
    Verb { name: "network", lab: &lab, make: &[NETWORK], unmake: "network del v-net-0", works: &works, sample: 6 }
        .try_all()
}

#[test]
fn a_second_network() -> Result<()> {
    let lab = host()?;
    lab.nsnet(NETWORK)?;
    lab.nsnet(ATTACH)?;
    let bystanders = Pinging::beside(&lab)?;
    let works = || reaches(&lab, "host", Ipv4Addr::new(10, 9, 0, 254).into());
    let make = &["network add v-net-1 --subnet 10.9.0.0/24 fd09::/64 --masquerade --snat-ports 20000-20999"];
    Verb { name: "second network", lab: &lab, make, unmake: "network del v-net-1", works: &works, sample: 10 }
        .try_all()?;
    bystanders.finish()
}

#[test]
fn attachments() -> Result<()> {
    let lab = host()?;
    lab.nsnet(NETWORK)?;
    let bystanders = Pinging::beside(&lab)?;
    let works = || red_is_attached(&lab);
    let unmake = "detach v-net-0 @red";
    Verb { name: "attach", lab: &lab, make: &[ATTACH], unmake, works: &works, sample: 15 }.try_all()?;
    bystanders.finish()
}

#[test]
fn published_ports() -> Result<()> {
    let lab = host()?;
    [NETWORK, ATTACH].iter().try_for_each(|line| lab.nsnet(line).map(drop))?;
    let bystanders = Pinging::beside(&lab)?;
    let all =
        |v6: bool| SocketAddr::new(if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }, 80);
    let _servers = [false, true].map(|v6| lab.within("red", || TcpServer::banner(all(v6), "red")));
    let works = || {
        for host in [HOST_IP, "fd01::1"] {
            let to = SocketAddr::new(host.parse()?, 8080);
            let said = lab.within("wan", || tcp::fetch(to))??;
            ensure!(said == "red", "{to} says {said:?}");
        }
        Ok(())
    };
    let unmake = "publish del @red 8080:80/tcp 9000-9003:9000-9003/udp";
    Verb { name: "publish", lab: &lab, make: &[PUBLISH], unmake, works: &works, sample: 12 }.try_all()?;
    bystanders.finish()
}

#[test]
fn routes() -> Result<()> {
    let lab = host()?;
    [NETWORK, ATTACH, "route del @red default"].iter().try_for_each(|line| lab.nsnet(line).map(drop))?;
    let bystanders = Pinging::beside(&lab)?;
    let works = || reaches(&lab, "red", WAN_IP.parse()?);
    let make = &["route add @red 192.168.1.0/24"];
    Verb { name: "route", lab: &lab, make, unmake: "route del @red 192.168.1.0/24", works: &works, sample: 10 }
        .try_all()?;
    bystanders.finish()
}

#[test]
fn cables() -> Result<()> {
    let lab = host()?;
    let works = || reaches(&lab, "red", Ipv4Addr::new(10, 0, 0, 2).into());
    Verb { name: "cable", lab: &lab, make: &[CABLE], unmake: "cable del @red @blue", works: &works, sample: 15 }
        .try_all()
}

#[test]
fn a_namespace_in_use() -> Result<()> {
    let lab = host()?;
    lab.nsnet(NETWORK)?;
    let bystanders = Pinging::beside(&lab)?;
    lab.nsnet("ns del @red")?;
    let works = || red_is_attached(&lab);
    let make = &["ns add @red", ATTACH, PUBLISH, CABLE];
    Verb { name: "ns --force", lab: &lab, make, unmake: "ns del @red --force", works: &works, sample: 10 }.try_all()?;
    bystanders.finish()
}

#[test]
fn everything() -> Result<()> {
    let lab = lab()?;
    let works = || reaches(&lab, "host", RED[0]);
    let make = &["ns add @red @blue", NETWORK, ATTACH, PUBLISH, CABLE];
    Verb { name: "down", lab: &lab, make, unmake: "down", works: &works, sample: 6 }.try_all()
}

/// What `apply` is given: red with a port of its own, and with `more` a second network, a cable, and another route.
fn declared(lab: &Lab, more: bool) -> Result<Scratch> {
    let (red, blue) = (lab.name("red"), lab.name("blue"));
    let mut text = format!(
        r#"
        [[ns]]
        name = "{red}"
        [[ns]]
        name = "{blue}"
        [[network]]
        name = "v-net-0"
        subnet = ["192.168.15.0/24", "fd15::/64"]
        masquerade = true
        [[attach]]
        network = "v-net-0"
        ns = "{red}"
        ip = ["192.168.15.1", "fd15::1"]
        [[publish]]
        ns = "{red}"
        port = "8080:80"
        [[route]]
        ns = "{red}"
        dest = "198.51.100.0/24"
        via = "{}"
        "#,
        if more { "192.168.15.254" } else { "192.168.15.253" }
    );
    if more {
        text += &format!(
            r#"
            [[network]]
            name = "v-net-1"
            subnet = ["10.9.0.0/24"]
            masquerade = true
            snat_ports = "12000-12999"
            [[attach]]
            network = "v-net-1"
            ns = "{blue}"
            ip = ["10.9.0.1"]
            [[publish]]
            ns = "{blue}"
            port = "9000-9003:9000-9003/udp"
            [[cable]]
            a = "{red}"
            b = "{blue}"
            address_a = "10.0.0.1/30"
            address_b = "10.0.0.2/30"
            "#
        );
    }
    let file = Scratch(std::env::temp_dir().join(lab.name(if more { "more.toml" } else { "some.toml" })));
    std::fs::write(&file.0, text)?;
    Ok(file)
}

#[test]
fn a_declared_host() -> Result<()> {
    let lab = host()?;
    lab.nsnet("ns del @red @blue")?;
    let file = declared(&lab, true)?;
    let works = || {
        red_is_attached(&lab)?;
        reaches(&lab, "host", Ipv4Addr::new(10, 9, 0, 1).into())?;
        reaches(&lab, "red", Ipv4Addr::new(10, 0, 0, 2).into())
    };
    let make = format!("apply -f {}", file.0.display());
    Verb { name: "apply", lab: &lab, make: &[&make], unmake: "down", works: &works, sample: 5 }.try_all()
}

#[test]
fn a_host_that_is_declared_otherwise() -> Result<()> {
    let lab = host()?;
    let (some, more) = (declared(&lab, false)?, declared(&lab, true)?);
    let (make, unmake) = (format!("apply -f {}", more.0.display()), format!("apply -f {}", some.0.display()));
    lab.nsnet(&unmake)?;
    let works = || {
        reaches(&lab, "host", Ipv4Addr::new(10, 9, 0, 1).into())?;
        reaches(&lab, "red", Ipv4Addr::new(10, 0, 0, 2).into())
    };
    let pinging = Pinging::start(&lab, "red", WAN[0])?;
    Verb { name: "apply otherwise", lab: &lab, make: &[&make], unmake: &unmake, works: &works, sample: 8 }.try_all()?;
    pinging.finish()
}
