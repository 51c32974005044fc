//! How each peer's site is built.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;

use super::{Member, Site, Size, Step, UPLINK, ports};
use crate::bench::family::{BOTH, Family};
use crate::bench::memory::Memory;
use crate::bench::peer::Peer;
use crate::bench::proxy::Proxy;
use crate::bench::rules::Rules;
use crate::bench::run::MANY;
use crate::bench::tool;
use crate::kernel::ethtool::{Ethtool, Switch};
use crate::kernel::netlink::Netlink;
use crate::kernel::netns::NetNs;
use crate::kernel::route::Route;
use crate::kernel::sysctl;
use crate::lab::{HOST_IP, Lab, WAN_IP, bridge};

/// The program that acts on nsnet's sites: this one, also when its file is replaced meanwhile.
const OURSELVES: &str = "/proc/self/exe";
/// The network, and the bridge, and the host's interface of either.
const INSIDE: &str = "inside";
/// A network's addresses.
#[derive(Clone, Copy, Debug)]
struct Net {
    subnet: Ipv4Addr,
    bits: u8,
    red: Ipv4Addr,
    blue: Ipv4Addr,
    gateway: Ipv4Addr,
}

const NET: Net = Net {
    subnet: Ipv4Addr::new(192, 168, 15, 0),
    bits: 24,
    red: Ipv4Addr::new(192, 168, 15, 1),
    blue: Ipv4Addr::new(192, 168, 15, 2),
    gateway: Ipv4Addr::new(192, 168, 15, 5),
};
/// With more members than that has.
const WIDE_NET: Net = Net {
    subnet: Ipv4Addr::new(10, 77, 0, 0),
    bits: 16,
    red: Ipv4Addr::new(10, 77, 0, 1),
    blue: Ipv4Addr::new(10, 77, 0, 2),
    gateway: Ipv4Addr::new(10, 77, 0, 5),
};
/// As many flows as one namespace may have here; by default it is a quarter of that.
const FLOWS: u32 = 1 << 20;

impl Size {
    fn net(self) -> Net {
        if self.others > 0 { WIDE_NET } else { NET }
    }
}

/// What publishing takes.
struct Publishing {
    begun: Instant,
    /// Before; of few ports it would tell nothing.
    memory: Option<Memory>,
}

impl Publishing {
    fn begin(size: Size) -> Result<Publishing> {
        let are_many = u64::from(size.published) >= MANY;
        Ok(Publishing { memory: are_many.then(Memory::read).transpose()?, begun: Instant::now() })
    }

    /// Time, and kernel memory of many.
    fn end(self) -> Result<(Duration, Option<Memory>)> {
        let time = self.begun.elapsed();
        let memory = self.memory.map(|before| anyhow::Ok(Memory::read()?.since(before)));
        Ok((time, memory.transpose()?))
    }
}

impl Site {
    fn of(peer: Peer, lab: Lab, red: Member, blue: Member) -> Site {
        let (attached_in, published_in) = (Duration::ZERO, Duration::ZERO);
        Site {
            peer,
            attached_in,
            published_in,
            published_memory: None,
            families: BOTH,
            _proxy: None,
            lab,
            red,
            blue,
            gateway: NET.gateway,
        }
    }
}

/// A site of `peer`'s, not yet tried out.
pub(super) fn build(peer: Peer, size: Size, step: Step<'_>) -> Result<Site> {
    let families = size.families;
    match peer {
        Peer::Direct | Peer::DirectAgain => direct(peer, families),
        Peer::Bridge | Peer::DockerNft | Peer::DockerLegacy | Peer::NftMaps | Peer::Proxy => bridged(peer, size, step),
        Peer::Macvlan => macvlan(families),
        Peer::Routed => routed(size),
        Peer::Nsnet | Peer::NsnetRedirect | Peer::NsnetXdp => nsnet(peer, size, step),
    }
}

/// A host and its outside, with addresses of all of `families`.
fn world(families: &[Family]) -> Result<Lab> {
    let lab = Lab::new(Path::new(OURSELVES))?;
    let ends = [("host", HOST_IP), ("wan", WAN_IP)];
    for (ns, ip) in ends {
        let (ns, ip) = (lab.ns(ns)?, ip.parse()?);
        // The host asks for a neighbour by an address of the link, which it would have a second later.
        ns.run(|| sysctl::write("net/ipv6/conf/default/accept_dad", "0"))??;
        families.iter().try_for_each(|family| give(&ns, UPLINK, family.net(ip, 24)?))?;
    }
    Ok(lab)
}

/// Gives an interface an address, if it has not got it. One of IPv6 is usable at once.
fn give(ns: &NetNs, interface: &str, address: IpNet) -> Result<()> {
    let netlink = Netlink::inside(ns)?;
    netlink.add_address(netlink.existing_link(interface)?.index, address)?;
    Ok(())
}

fn direct(peer: Peer, families: &'static [Family]) -> Result<Site> {
    let mut lab = world(families)?;
    for ns in ["red", "blue"] {
        lab.make(ns)?;
    }
    let Net { bits, red, blue, .. } = NET;
    lab.nsnet(&format!("cable add @red @blue --address-a {red}/{bits} --address-b {blue}/{bits}"))?;
    let [red_end, blue_end] = ["red", "blue"].map(|ns| lab.ns(ns).and_then(|ns| only_veth(&ns)));
    let (red_end, blue_end) = (red_end?, blue_end?);
    for (ns, end, ip) in [("red", &red_end, red), ("blue", &blue_end, blue)] {
        let ns = lab.ns(ns)?;
        // A cable that was given no address of IPv6 has none.
        ns.run(|| sysctl::write(&format!("net/ipv6/conf/{end}/disable_ipv6"), "0"))??;
        families.iter().try_for_each(|family| give(&ns, end, family.net(ip, bits)?))?;
    }
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
    let mut lab = world(size.families)?;
    let (host, red, blue) = (lab.ns("host")?, lab.make("red")?, lab.make("blue")?);
    let net = size.net();
    let members = [(&red, net.red), (&blue, net.blue)];
    let [first, second] = members.map(|(member, ip)| Family::V4.net(ip, net.bits).map(|address| (member, address)));
    bridge::make(&host, INSIDE, &[first?, second?])?;
    let netlink = Netlink::inside(&host)?;
    netlink.set_up(netlink.existing_link(INSIDE)?.index)?;
    for family in size.families {
        give(&host, INSIDE, family.net(net.gateway, net.bits)?)?;
        for (member, ip) in members {
            give(member, bridge::MEMBER_INTERFACE, family.net(ip, net.bits)?)?;
            default_route(member, family.address(net.gateway))?;
        }
        forward(&host, *family)?;
        if matches!(peer, Peer::DockerNft | Peer::DockerLegacy) {
            // As on Docker's hosts, where its own rules rely on it.
            let table = family.choose(["iptables", "ip6tables"]);
            host.run(|| sysctl::write(&format!("net/bridge/bridge-nf-call-{table}"), "1"))??;
        }
    }
    let attached_in = more_on_bridge(&mut lab, size.others, step)?;
    let publishing = Publishing::begin(size)?;
    for family in size.families {
        let rules = rules(*family, INSIDE, net, net.blue, size);
        match peer {
            Peer::DockerNft => load_nft(&host, *family, &rules?.docker())?,
            Peer::DockerLegacy => {
                let restore = family.choose([tool::IPTABLES_LEGACY, tool::IP6TABLES_LEGACY]);
                tool::feed(&host, restore, &rules?.docker())?;
            }
            Peer::NftMaps => drop(tool::feed(&host, "nft -f -", &rules?.nft())?),
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

/// Rules that publish `to`'s ports of a `net` behind `inside`.
fn rules(family: Family, inside: &'static str, net: Net, to: Ipv4Addr, size: Size) -> Result<Rules> {
    let (subnet, to) = (family.net(net.subnet, net.bits)?, family.address(to));
    Ok(Rules { family, inside, subnet, to, ports: ports(size.published) })
}

/// Has the iptables of nftables take rules.
fn load_nft(host: &NetNs, family: Family, rules: &str) -> Result<()> {
    tool::feed(host, family.choose([tool::IPTABLES_NFT, tool::IP6TABLES_NFT]), rules)?;
    Ok(())
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

fn macvlan(families: &[Family]) -> Result<Site> {
    let mut lab = world(families)?;
    let host = lab.ns("host")?;
    tool::run(&host, "ip link add lower type veth peer name lower-end")?;
    for end in ["lower", "lower-end"] {
        tool::run(&host, &format!("ip link set {end} up"))?;
    }
    for (ns, ip) in [("red", NET.red), ("blue", NET.blue)] {
        let namespace = lab.make(ns)?;
        let name = lab.name(ns);
        tool::run(&host, &format!("ip link add link lower name mv-{ns} netns {name} type macvlan mode bridge"))?;
        tool::run(&namespace, &format!("ip link set mv-{ns} up"))?;
        families.iter().try_for_each(|family| give(&namespace, &format!("mv-{ns}"), family.net(ip, NET.bits)?))?;
    }
    let member = |ns: &str, ip| Member { interface: format!("mv-{ns}"), ip, comes_in_by: ("host", "lower".to_owned()) };
    let (red, blue) = (member("red", NET.red), member("blue", NET.blue));
    Ok(Site::of(Peer::Macvlan, lab, red, blue))
}

/// Namespaces with a /31 each (a /127 of IPv6), and the host's end of it for a gateway.
fn routed(size: Size) -> Result<Site> {
    let mut lab = world(size.families)?;
    let host = lab.ns("host")?;
    size.families.iter().try_for_each(|family| forward(&host, *family))?;
    let mut members = Vec::new();
    for (ns, ip) in [("red", Ipv4Addr::new(192, 168, 15, 17)), ("blue", Ipv4Addr::new(192, 168, 15, 19))] {
        let namespace = lab.make(ns)?;
        let name = lab.name(ns);
        let gateway = gateway_of(ip);
        let batch = format!("link add to-{ns} type veth peer name eth0 netns {name}\nlink set to-{ns} up\n");
        tool::feed(&host, "ip -batch -", &batch)?;
        tool::run(&namespace, "ip link set eth0 up")?;
        for family in size.families {
            give(&host, &format!("to-{ns}"), family.net(gateway, 31)?)?;
            give(&namespace, "eth0", family.net(ip, 31)?)?;
            default_route(&namespace, family.address(gateway))?;
        }
        members.push(Member { interface: "eth0".to_owned(), ip, comes_in_by: ("host", format!("to-{ns}")) });
    }
    let [red, blue] = <[Member; 2]>::try_from(members).ok().context("two members")?;
    let publishing = Publishing::begin(size)?;
    for family in size.families {
        load_nft(&host, *family, &rules(*family, "to-+", NET, blue.ip, size)?.masquerade())?;
    }
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
    let Net { subnet, bits, red, blue, gateway } = size.net();
    let subnet = Family::V4.net(subnet, bits)?;
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
    let mut lab = world(size.families)?;
    if peer == Peer::NsnetRedirect {
        lab.treat_as_missing("redirect_peer");
    }
    let Net { subnet, bits, red, blue, gateway } = size.net();
    let each = |ip| size.families.iter().map(|family| family.address(ip).to_string()).collect::<Vec<_>>().join(" ");
    let subnets = size.families.iter().map(|family| Ok(family.net(subnet, bits)?.to_string()));
    let (subnets, gateways) = (subnets.collect::<Result<Vec<_>>>()?.join(" "), each(gateway));
    let mode = if peer == Peer::NsnetXdp { "--mode xdp --uplink-mode xdp" } else { "" };
    if peer == Peer::NsnetXdp {
        // As a NIC does, the outside takes frames as they are on a wire.
        lab.within("wan", || Ethtool::of(UPLINK)?.set(Switch::GRO, true))??;
    }
    lab.nsnet(&format!("network add {INSIDE} --subnet {subnets} --gateway {gateways} --masquerade --uplink {UPLINK} --flows-per-ns {FLOWS} {mode}"))?;
    let mut member = |short: &str, ip: Ipv4Addr| -> Result<Member> {
        lab.make(short)?;
        lab.nsnet(&format!("ns add @{short}"))?;
        let made = lab.json(&format!("attach {INSIDE} @{short} --ip {}", each(ip)))?;
        let text = |key: &str| Ok(made[key].as_str().with_context(|| format!("`attach` tells no {key}"))?.to_owned());
        let (interface, host_end): (Result<String>, Result<String>) = (text("ifname"), text("host_ifname"));
        Ok(Member { interface: interface?, ip, comes_in_by: ("host", host_end?) })
    };
    let (red, blue) = (member("red", red)?, member("blue", blue)?);
    let attached_in = more_in_network(&mut lab, size, step)?;
    let publishing = Publishing::begin(size)?;
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

fn default_route(ns: &NetNs, via: IpAddr) -> Result<()> {
    let everything = if via.is_ipv6() { "::/0" } else { "0.0.0.0/0" };
    Netlink::inside(ns)?.add_route(&Route { dest: everything.parse()?, via: Some(via), index: None })?;
    Ok(())
}

fn forward(host: &NetNs, family: Family) -> Result<()> {
    let setting = family.choose(["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"]);
    ensure!(host.run(|| sysctl::write(setting, "1"))??, "this kernel has no {}", family.name());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(other(0), Ipv4Addr::new(10, 77, 16, 1));
        assert_eq!(other(249), Ipv4Addr::new(10, 77, 16, 250));
        assert_eq!(other(1000), Ipv4Addr::new(10, 77, 20, 1));
        assert_eq!(gateway_of(Ipv4Addr::new(192, 168, 15, 17)), Ipv4Addr::new(192, 168, 15, 16));
    }
}
