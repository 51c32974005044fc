//! A peer, built: a host with an outside, and two namespaces behind it.
//!
//! ```text
//!   red .15.1 ---+
//!                +--- host ---- uplink ===== uplink ---- wan
//!   blue .15.2 --+    192.168.1.1                        192.168.1.3
//! ```

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;

use super::peer::{Peer, Way};
use super::proxy::Proxy;
use super::rules::Rules;
use super::scale::kernel_memory;
use super::tool;
use crate::kernel::ethtool::{Ethtool, Switch};
use crate::kernel::netlink::Netlink;
use crate::kernel::netns::NetNs;
use crate::kernel::route::Route;
use crate::kernel::sysctl;
use crate::lab::ping::ping;
use crate::lab::{HOST_IP, Lab, WAN_IP, bridge};

/// The program that acts on nsnet's sites: this one, also when its file is replaced meanwhile.
const OURSELVES: &str = "/proc/self/exe";
/// The network, and the bridge, and the host's interface of either.
const INSIDE: &str = "inside";
/// A network's addresses.
#[derive(Clone, Copy, Debug)]
struct Net {
    subnet: &'static str,
    bits: u8,
    red: Ipv4Addr,
    blue: Ipv4Addr,
    gateway: Ipv4Addr,
}

const NET: Net = Net {
    subnet: "192.168.15.0/24",
    bits: 24,
    red: Ipv4Addr::new(192, 168, 15, 1),
    blue: Ipv4Addr::new(192, 168, 15, 2),
    gateway: Ipv4Addr::new(192, 168, 15, 5),
};
/// With more members than that has.
const WIDE_NET: Net = Net {
    subnet: "10.77.0.0/16",
    bits: 16,
    red: Ipv4Addr::new(10, 77, 0, 1),
    blue: Ipv4Addr::new(10, 77, 0, 2),
    gateway: Ipv4Addr::new(10, 77, 0, 5),
};
/// Interface of both ends between host and wan.
const UPLINK: &str = "uplink";
/// The first published port, at the host and in blue.
pub(super) const FIRST_PUBLISHED: u16 = 8_000;
/// As many flows as one namespace may have here; by default it is a quarter of that.
const FLOWS: u32 = 1 << 20;
/// Ports below it are not published.
pub(super) const FIRST_PLAIN: u16 = 7_000;

/// Whom to tell how far it is.
type Step<'a> = &'a mut dyn FnMut() -> Result<()>;

/// What a site is to have beside red and blue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// Ports published of blue, from [`FIRST_PUBLISHED`] on, TCP and UDP.
    pub(super) published: u16,
    /// Further namespaces.
    pub(super) others: u16,
}

impl Size {
    fn net(self) -> Net {
        if self.others > 0 { WIDE_NET } else { NET }
    }
}

impl Default for Size {
    fn default() -> Self {
        Self { published: 64, others: 0 }
    }
}

/// A peer's namespaces and what joins them. It is taken down when dropped.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) peer: Peer,
    /// How long it took to put the further namespaces in.
    pub(super) attached_in: Duration,
    /// How long it took to publish.
    pub(super) published_in: Duration,
    /// Bytes of kernel memory that it took.
    pub(super) published_memory: f64,
    // Before the lab: it ends before the namespaces that it works in.
    _proxy: Option<Proxy>,
    pub(super) lab: Lab,
    red: Member,
    blue: Member,
    gateway: Ipv4Addr,
}

/// A namespace behind the host.
#[derive(Clone, Debug)]
struct Member {
    interface: String,
    ip: Ipv4Addr,
    /// Where what it sends comes out: the namespace and its interface.
    comes_in_by: (&'static str, String),
}

/// Where frames are put in, how they are addressed, and where they come out.
#[derive(Debug)]
pub(super) struct Injection {
    /// Namespace and interface that they seem to come in by.
    pub(super) entry: (NetNs, String),
    /// Whether they leave by it instead, as frames of XDP do that a namespace sends.
    pub(super) leaves: bool,
    pub(super) macs: [[u8; 6]; 2],
    pub(super) ips: [Ipv4Addr; 2],
    /// Namespace and interface that they arrive at.
    pub(super) exit: (NetNs, String),
    /// Where the answers to them arrive.
    pub(super) back: (NetNs, String),
}

/// What publishing takes.
struct Publishing {
    begun: Instant,
    memory: u64,
}

impl Publishing {
    fn begin() -> Result<Publishing> {
        Ok(Publishing { memory: kernel_memory()?, begun: Instant::now() })
    }

    /// Time, and bytes of kernel memory.
    fn end(self) -> Result<(Duration, f64)> {
        let time = self.begun.elapsed();
        Ok((time, kernel_memory()?.saturating_sub(self.memory) as f64))
    }
}

impl Site {
    fn of(peer: Peer, lab: Lab, red: Member, blue: Member) -> Site {
        let (attached_in, published_in) = (Duration::ZERO, Duration::ZERO);
        Site {
            peer,
            attached_in,
            published_in,
            published_memory: 0.0,
            _proxy: None,
            lab,
            red,
            blue,
            gateway: NET.gateway,
        }
    }

    /// Builds what `peer` is, and sees that its ways lead somewhere.
    /// `step` is told of each further namespace when it is made, and when it is attached; its error ends the work.
    pub(super) fn build(peer: Peer, size: Size, step: Step<'_>) -> Result<Site> {
        let built = match peer {
            Peer::Direct | Peer::DirectAgain => direct(peer),
            Peer::Bridge | Peer::DockerNft | Peer::DockerLegacy | Peer::NftMaps | Peer::Proxy => {
                bridged(peer, size, step)
            }
            Peer::Macvlan => macvlan(),
            Peer::Routed => routed(size),
            Peer::Nsnet | Peer::NsnetRedirect | Peer::NsnetXdp => nsnet(peer, size, step),
        };
        let site = built.with_context(|| format!("cannot build {}", peer.name()))?;
        site.prove().with_context(|| format!("{} does not work", peer.name()))?;
        Ok(site)
    }

    /// Sender's and receiver's namespaces, and the address that is sent to.
    pub(super) fn ends(&self, way: Way) -> Result<(NetNs, NetNs, Ipv4Addr)> {
        let ns = |short| self.lab.ns(short);
        if matches!(self.peer, Peer::Direct | Peer::DirectAgain) {
            return Ok((ns("red")?, ns("blue")?, self.blue.ip));
        }
        Ok(match way {
            Way::NsToNs => (ns("red")?, ns("blue")?, self.blue.ip),
            Way::NsToHost => (ns("red")?, ns("host")?, self.gateway),
            Way::NsToOutside => (ns("red")?, ns("wan")?, WAN_IP.parse()?),
            Way::OutsideToPublished => (ns("wan")?, ns("blue")?, HOST_IP.parse()?),
            Way::HostToPublished => (ns("host")?, ns("blue")?, HOST_IP.parse()?),
            Way::NsToPublished => (ns("red")?, ns("blue")?, HOST_IP.parse()?),
        })
    }

    /// How to inject frames on `way`.
    pub(super) fn injection(&self, way: Way) -> Result<Injection> {
        let at = |ns: &str, interface: &str| anyhow::Ok((self.lab.ns(ns)?, interface.to_owned()));
        let red = (at("red", &self.red.interface)?, self.red.ip);
        let blue = (at("blue", &self.blue.interface)?, self.blue.ip);
        let wan = (at("wan", UPLINK)?, WAN_IP.parse()?);
        let entry = |member: &Member| at(member.comes_in_by.0, &member.comes_in_by.1);
        if matches!(self.peer, Peer::Direct | Peer::DirectAgain) {
            let macs = [mac(&red.0)?, mac(&blue.0)?];
            return Ok(Injection {
                entry: entry(&self.red)?,
                macs,
                ips: [red.1, blue.1],
                exit: blue.0,
                back: red.0,
                leaves: false,
            });
        }
        // Where the accelerator is, a sender of frames of XDP is what is measured.
        let leaves = self.peer == Peer::NsnetXdp;
        let entry = if leaves { at("red", &self.red.interface) } else { entry(&self.red) };
        Ok(match way {
            Way::NsToNs | Way::NsToHost | Way::HostToPublished | Way::NsToPublished => {
                // On routed sites the next hop is the host, here too.
                let next = if self.peer == Peer::Routed { self.gateway_mac()? } else { mac(&blue.0)? };
                let macs = [mac(&red.0)?, next];
                Injection { entry: entry?, macs, ips: [red.1, blue.1], exit: blue.0, back: red.0, leaves }
            }
            Way::NsToOutside => {
                let macs = [mac(&red.0)?, self.gateway_mac()?];
                Injection { entry: entry?, macs, ips: [red.1, wan.1], exit: wan.0, back: red.0, leaves }
            }
            Way::OutsideToPublished => {
                let host = at("host", UPLINK)?;
                let macs = [mac(&wan.0)?, mac(&host)?];
                Injection {
                    entry: host,
                    macs,
                    ips: [wan.1, HOST_IP.parse()?],
                    exit: blue.0,
                    back: wan.0,
                    leaves: false,
                }
            }
        })
    }

    /// Has the host forget all flows.
    pub(super) fn forget_flows(&self) -> Result<()> {
        match self.peer {
            Peer::Nsnet | Peer::NsnetRedirect | Peer::NsnetXdp => drop(self.lab.nsnet("ct flush")?),
            Peer::DockerNft | Peer::DockerLegacy | Peer::NftMaps | Peer::Routed => {
                tool::run(&self.lab.ns("host")?, "conntrack -F")?;
            }
            Peer::Direct | Peer::DirectAgain | Peer::Bridge | Peer::Macvlan | Peer::Proxy => {}
        }
        Ok(())
    }

    /// The MAC that red sends to for what is beyond its network. Known once it has.
    fn gateway_mac(&self) -> Result<[u8; 6]> {
        let gateway = IpAddr::from(self.gateway);
        let neighbours = Netlink::inside(&self.lab.ns("red")?)?.neighbours()?;
        let known = neighbours.iter().find(|entry| entry.ip == gateway).and_then(|entry| entry.mac);
        known.context("red does not know its gateway's MAC")
    }

    /// A ping over each way that has one, which also fills the neighbour tables.
    fn prove(&self) -> Result<()> {
        for way in [Way::NsToNs, Way::NsToHost, Way::NsToOutside] {
            // The proxy's namespaces are on a bridge: they reach each other, too.
            if self.peer.has(way) || (way == Way::NsToNs && self.peer == Peer::Proxy) {
                let (sender, _, to) = self.ends(way)?;
                // The first may wait for a neighbour.
                let pings = sender.run(|| ping(to.into(), 3, 56, Duration::from_secs(1)))??;
                ensure!(pings.received > 0, "no ping from {} to {to}", way.name());
            }
        }
        Ok(())
    }
}

fn mac((ns, interface): &(NetNs, String)) -> Result<[u8; 6]> {
    let link = Netlink::inside(ns)?.existing_link(interface)?;
    link.mac.with_context(|| format!("{interface} has no MAC"))
}

fn direct(peer: Peer) -> Result<Site> {
    let mut lab = Lab::new(Path::new(OURSELVES))?;
    for ns in ["red", "blue"] {
        lab.make(ns)?;
    }
    let Net { bits, red, blue, .. } = NET;
    lab.nsnet(&format!("cable add @red @blue --address-a {red}/{bits} --address-b {blue}/{bits}"))?;
    let [red_end, blue_end] = ["red", "blue"].map(|ns| lab.ns(ns).and_then(|ns| only_veth(&ns)));
    let (red_end, blue_end) = (red_end?, blue_end?);
    let red = Member { interface: red_end.clone(), ip: red, comes_in_by: ("blue", blue_end.clone()) };
    let blue = Member { interface: blue_end, ip: blue, comes_in_by: ("red", red_end) };
    Ok(Site::of(peer, lab, red, blue))
}

/// The one interface of a namespace beside loopback.
fn only_veth(ns: &NetNs) -> Result<String> {
    let links = Netlink::inside(ns)?.links()?;
    links.into_iter().find(|link| link.is_ethernet).map(|link| link.name).context("there is no interface")
}

fn bridged(peer: Peer, size: Size, step: Step<'_>) -> Result<Site> {
    let mut lab = Lab::new(Path::new(OURSELVES))?;
    let (host, red, blue) = (lab.ns("host")?, lab.make("red")?, lab.make("blue")?);
    let net = size.net();
    let address = |ip: Ipv4Addr| anyhow::Ok(IpNet::new(ip.into(), net.bits)?);
    bridge::make(&host, INSIDE, &[(&red, address(net.red)?), (&blue, address(net.blue)?)])?;
    let netlink = Netlink::inside(&host)?;
    let link = netlink.existing_link(INSIDE)?;
    netlink.add_address(link.index, address(net.gateway)?)?;
    netlink.set_up(link.index)?;
    for member in [&red, &blue] {
        default_route(member, net.gateway)?;
    }
    forward(&host)?;
    if matches!(peer, Peer::DockerNft | Peer::DockerLegacy) {
        // As on Docker's hosts, where its own rules rely on it.
        host.run(|| sysctl::write("net/bridge/bridge-nf-call-iptables", "1"))??;
    }
    let attached_in = more_on_bridge(&mut lab, size.others, step)?;
    let rules = Rules { inside: INSIDE, subnet: net.subnet, to: net.blue, ports: ports(size.published) };
    let publishing = Publishing::begin()?;
    match peer {
        Peer::DockerNft => drop(tool::feed(&host, tool::IPTABLES_NFT, &rules.docker())?),
        Peer::DockerLegacy => drop(tool::feed(&host, tool::IPTABLES_LEGACY, &rules.docker())?),
        Peer::NftMaps => drop(tool::feed(&host, "nft -f -", &rules.nft())?),
        Peer::Direct
        | Peer::DirectAgain
        | Peer::Bridge
        | Peer::Macvlan
        | Peer::Routed
        | Peer::Proxy
        | Peer::Nsnet
        | Peer::NsnetRedirect
        | Peer::NsnetXdp => {}
    }
    let (published_in, published_memory) = publishing.end()?;
    let _proxy = if peer == Peer::Proxy { Some(Proxy::start(&host, net.blue, ports(size.published))?) } else { None };
    let member = |number: u8, ip| Member {
        interface: bridge::MEMBER_INTERFACE.to_owned(),
        ip,
        comes_in_by: ("host", format!("{INSIDE}-{number}")),
    };
    let site = Site::of(peer, lab, member(0, net.red), member(1, net.blue));
    Ok(Site { attached_in, published_in, published_memory, _proxy, gateway: net.gateway, ..site })
}

/// Further members by `ip -batch`, as scripts do it; the namespaces are there before.
fn more_on_bridge(lab: &mut Lab, others: u16, step: Step<'_>) -> Result<Duration> {
    use std::fmt::Write as _;
    let mut namespaces = Vec::new();
    for number in 0..others {
        namespaces.push((lab.make(&format!("n{number}"))?, lab.name(&format!("n{number}")), other(number)));
        step()?;
    }
    let bits = WIDE_NET.bits;
    let begun = Instant::now();
    let mut batch = String::new();
    for (number, (_, name, _)) in namespaces.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = writeln!(batch, "link add x{number} type veth peer name eth0 netns {name}");
        let _ = writeln!(batch, "link set x{number} master {INSIDE} up");
    }
    if !namespaces.is_empty() {
        tool::feed(&lab.ns("host")?, "ip -batch -", &batch)?;
    }
    for (ns, _, ip) in &namespaces {
        tool::feed(ns, "ip -batch -", &format!("address add {ip}/{bits} dev eth0\nlink set eth0 up\n"))?;
        step()?;
    }
    Ok(begun.elapsed())
}

fn macvlan() -> Result<Site> {
    let mut lab = Lab::new(Path::new(OURSELVES))?;
    let host = lab.ns("host")?;
    tool::run(&host, "ip link add lower type veth peer name lower-end")?;
    for end in ["lower", "lower-end"] {
        tool::run(&host, &format!("ip link set {end} up"))?;
    }
    for (ns, ip) in [("red", NET.red), ("blue", NET.blue)] {
        let namespace = lab.make(ns)?;
        let name = lab.name(ns);
        tool::run(&host, &format!("ip link add link lower name mv-{ns} netns {name} type macvlan mode bridge"))?;
        tool::feed(&namespace, "ip -batch -", &format!("address add {ip}/24 dev mv-{ns}\nlink set mv-{ns} up\n"))?;
    }
    let member = |ns: &str, ip| Member { interface: format!("mv-{ns}"), ip, comes_in_by: ("host", "lower".to_owned()) };
    let (red, blue) = (member("red", NET.red), member("blue", NET.blue));
    Ok(Site::of(Peer::Macvlan, lab, red, blue))
}

/// Namespaces with a /31 each, and the host's end of it for a gateway.
fn routed(size: Size) -> Result<Site> {
    let mut lab = Lab::new(Path::new(OURSELVES))?;
    let host = lab.ns("host")?;
    forward(&host)?;
    let mut members = Vec::new();
    for (ns, ip) in [("red", Ipv4Addr::new(192, 168, 15, 17)), ("blue", Ipv4Addr::new(192, 168, 15, 19))] {
        let namespace = lab.make(ns)?;
        let name = lab.name(ns);
        let gateway = gateway_of(ip);
        let batch = format!(
            "link add to-{ns} type veth peer name eth0 netns {name}\naddress add {gateway}/31 dev to-{ns}\nlink set to-{ns} up\n"
        );
        tool::feed(&host, "ip -batch -", &batch)?;
        let batch = format!("address add {ip}/31 dev eth0\nlink set eth0 up\nroute add default via {gateway}\n");
        tool::feed(&namespace, "ip -batch -", &batch)?;
        members.push(Member { interface: "eth0".to_owned(), ip, comes_in_by: ("host", format!("to-{ns}")) });
    }
    let [red, blue] = <[Member; 2]>::try_from(members).ok().context("two members")?;
    let rules = Rules { inside: "to-+", subnet: NET.subnet, to: blue.ip, ports: ports(size.published) };
    let publishing = Publishing::begin()?;
    tool::feed(&host, tool::IPTABLES_NFT, &rules.masquerade())?;
    let (published_in, published_memory) = publishing.end()?;
    let gateway = gateway_of(red.ip);
    Ok(Site { published_in, published_memory, gateway, ..Site::of(Peer::Routed, lab, red, blue) })
}

/// Further members by `nsnet apply`: one file, as `ip -batch` has it; the namespaces are there before.
fn more_in_network(lab: &mut Lab, size: Size, step: Step<'_>) -> Result<Duration> {
    use std::fmt::Write as _;
    if size.others == 0 {
        return Ok(Duration::ZERO);
    }
    let Net { subnet, red, blue, gateway, .. } = size.net();
    let mut members = vec![(lab.name("red"), red), (lab.name("blue"), blue)];
    for number in 0..size.others {
        lab.make(&format!("n{number}"))?;
        members.push((lab.name(&format!("n{number}")), other(number)));
        step()?;
    }
    let begun = Instant::now();
    let mut file = format!(
        "[[network]]\nname = \"{INSIDE}\"\nsubnet = \"{subnet}\"\ngateway = \"{gateway}\"\nmasquerade = true\n\
         uplink = \"{UPLINK}\"\nflows_per_ns = {FLOWS}\n"
    );
    for (name, ip) in &members {
        // Writing to a String cannot fail.
        let _ = writeln!(
            file,
            "[[ns]]\nname = \"{name}\"\n[[attach]]\nnetwork = \"{INSIDE}\"\nns = \"{name}\"\nip = \"{ip}\""
        );
    }
    let written = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    std::fs::write(&written, file).with_context(|| format!("cannot write {}", written.path().display()))?;
    lab.nsnet(&format!("apply -f {}", written.path().display()))?;
    let attached_in = begun.elapsed();
    (0..size.others).try_for_each(|_attached| step())?;
    Ok(attached_in)
}

/// The other address of a /31.
fn gateway_of(ip: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(ip.to_bits() ^ 1)
}

fn nsnet(peer: Peer, size: Size, step: Step<'_>) -> Result<Site> {
    let mut lab = Lab::new(Path::new(OURSELVES))?;
    if peer == Peer::NsnetRedirect {
        lab.treat_as_missing("redirect_peer");
    }
    let Net { subnet, red, blue, gateway, .. } = size.net();
    let mode = if peer == Peer::NsnetXdp { "--mode xdp --uplink-mode xdp" } else { "" };
    if peer == Peer::NsnetXdp {
        // As a NIC does, the outside takes frames as they are on a wire.
        lab.within("wan", || Ethtool::of(UPLINK)?.set(Switch::GRO, true))??;
    }
    lab.nsnet(&format!("network add {INSIDE} --subnet {subnet} --gateway {gateway} --masquerade --uplink {UPLINK} --flows-per-ns {FLOWS} {mode}"))?;
    let mut member = |short: &str, ip: Ipv4Addr| -> Result<Member> {
        lab.make(short)?;
        lab.nsnet(&format!("ns add @{short}"))?;
        let made = lab.json(&format!("attach {INSIDE} @{short} --ip {ip}"))?;
        let text = |key: &str| Ok(made[key].as_str().with_context(|| format!("`attach` tells no {key}"))?.to_owned());
        let (interface, host_end): (Result<String>, Result<String>) = (text("ifname"), text("host_ifname"));
        Ok(Member { interface: interface?, ip, comes_in_by: ("host", host_end?) })
    };
    let (red, blue) = (member("red", red)?, member("blue", blue)?);
    let attached_in = more_in_network(&mut lab, size, step)?;
    let publishing = Publishing::begin()?;
    if size.published > 0 {
        let (first, last) = (*ports(size.published).start(), *ports(size.published).end());
        let range = format!("{first}-{last}:{first}-{last}");
        lab.nsnet(&format!("publish add @blue {range}/tcp {range}/udp"))?;
    }
    let (published_in, published_memory) = publishing.end()?;
    Ok(Site { attached_in, published_in, published_memory, gateway, ..Site::of(peer, lab, red, blue) })
}

/// The address of a further namespace: from 10.77.16.1 on.
fn other(number: u16) -> Ipv4Addr {
    let [_, _, high, low] = (u32::from(number) / 250 * 256 + u32::from(number) % 250 + 1).to_be_bytes();
    Ipv4Addr::new(10, 77, 16 + high, low)
}

pub(super) fn ports(count: u16) -> RangeInclusive<u16> {
    // Many begin lower. An empty range when there are none.
    let first = FIRST_PUBLISHED.min((u32::from(u16::MAX) - u32::from(count)) as u16);
    first..=first + count.saturating_sub(1) - u16::from(count == 0)
}

fn default_route(ns: &NetNs, via: Ipv4Addr) -> Result<()> {
    let dest: IpNet = "0.0.0.0/0".parse()?;
    Netlink::inside(ns)?.add_route(&Route { dest, via: Some(via.into()), index: None })?;
    Ok(())
}

fn forward(host: &NetNs) -> Result<()> {
    ensure!(host.run(|| sysctl::write("net/ipv4/ip_forward", "1"))??, "this kernel has no IPv4");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ports() {
        assert_eq!(other(0), Ipv4Addr::new(10, 77, 16, 1));
        assert_eq!(other(249), Ipv4Addr::new(10, 77, 16, 250));
        assert_eq!(other(1000), Ipv4Addr::new(10, 77, 20, 1));
        assert_eq!(gateway_of(Ipv4Addr::new(192, 168, 15, 17)), Ipv4Addr::new(192, 168, 15, 16));
        assert_eq!(ports(2), FIRST_PUBLISHED..=FIRST_PUBLISHED + 1);
        assert_eq!(ports(60_000), 5_535..=65_534);
        assert!(ports(0).is_empty());
    }
}
