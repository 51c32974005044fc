//! What no namespace may do: be another, be the gateway, be a router, leave its network.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use nsnet::lab::{RawSocket, TcpServer, tcp};
use nsnet_common::cases::frame::{Frame, SOURCE_OPTION, TARGET_OPTION};
use nsnet_common::wire::Mac;

use super::bed::{Bed, DUAL, NETWORK, Station, V4, growth};
use super::shot::{MARK, shoot};
use super::traffic;

const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
/// Long enough for what was sent just before.
const STRAGGLERS: Duration = Duration::from_millis(300);
const STRANGER: Mac = Mac([0x02, 0xab, 0xcd, 0xef, 0x01, 0x02]);

/// red is the villain, blue the victim, orange and the host look on; green is in another network.
struct Cast {
    bed: Bed,
}

/// What is forged, the frames, and the reason they must be dropped for.
type Crime = (&'static str, Vec<Vec<u8>>, &'static str);

impl Cast {
    fn new() -> Result<Self> {
        let mut bed = Bed::new(DUAL, &["red", "blue", "orange"])?;
        bed.add_network("v-net-1", "--subnet 10.9.0.0/24 fd09::/64")?;
        bed.attach("v-net-1", "green", "")?;
        Ok(Self { bed })
    }

    fn at(&self, name: &str) -> &Station {
        self.bed.at(name)
    }

    /// Commits each crime: no frame arrives anywhere, each is counted for its reason, and blue's and the host's
    /// neighbour tables are as before.
    fn commit(&self, crimes: Vec<Crime>) -> Result<()> {
        let (blue, host) = (self.at("blue"), self.at("host"));
        for ip in self.at("orange").ips().into_iter().chain(host.ips()) {
            assert!(blue.reaches(ip)?, "blue cannot reach {ip} to begin with");
        }
        let known = (blue.neighbours()?, host.neighbours()?);
        for (what, frames, reason) in crimes {
            shoot(&self.bed, "red", &frames)?.assert_dropped(what, reason, frames.len());
        }
        for (station, known) in [(blue, known.0), (host, known.1)] {
            let now = station.neighbours()?;
            for (ip, mac) in known {
                assert_eq!(now.get(&ip), Some(&mac), "{}: its entry for {ip} was changed", station.name);
            }
        }
        for ip in [self.at("orange").ips(), host.ips()].concat() {
            assert!(blue.reaches(ip)?, "blue cannot reach {ip} any more");
        }
        Ok(())
    }
}

/// The bytes of frames, each marked.
fn marked(frames: impl IntoIterator<Item = Frame>) -> Vec<Vec<u8>> {
    frames.into_iter().map(|frame| frame.append(MARK).finish()).collect()
}

#[test]
fn macs_cannot_be_stolen() -> Result<()> {
    let cast = Cast::new()?;
    let (red, blue, orange, host) = (cast.at("red"), cast.at("blue"), cast.at("orange"), cast.at("host"));
    let as_mac = |mac, to| Frame::new(mac, to).ipv4(red.v4.octets(), orange.v4.octets());
    let bad = [Mac::ZERO, Mac::BROADCAST, Mac([1, 0, 0x5e, 0, 0, 1])];
    cast.commit(vec![
        ("blue's MAC", marked([as_mac(blue.mac, orange.mac), as_mac(blue.mac, Mac::BROADCAST)]), "spoofed-mac"),
        ("the gateway's MAC", marked([as_mac(host.mac, orange.mac), as_mac(host.mac, Mac::BROADCAST)]), "spoofed-mac"),
        ("nobody's MAC", marked([as_mac(STRANGER, orange.mac), as_mac(STRANGER, host.mac)]), "spoofed-mac"),
        ("no station's MAC", marked(bad.map(|mac| as_mac(mac, orange.mac))), "invalid-source-mac"),
    ])?;
    // What is for blue still goes to blue, and to blue alone.
    let frame = Frame::new(orange.mac, blue.mac).ipv4(orange.v4.octets(), [192, 168, 15, 99]).append(MARK).finish();
    assert_eq!(shoot(&cast.bed, "orange", &[frame])?.receivers(), ["blue"]);
    Ok(())
}

#[test]
fn a_flood_of_macs_learns_nothing() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let (red, blue) = (bed.at("red"), bed.at("blue"));
    let table = bed.lab.json("fdb list")?;
    let frame = |n: u32| {
        let [_, a, b, c] = n.to_be_bytes();
        Frame::new(Mac([2, 0, 1, a, b, c]), Mac::BROADCAST).ipv4(red.v4.octets(), [255; 4]).append(MARK).finish()
    };
    let frames: Vec<_> = (0x10_0000..0x10_2000).map(frame).collect();
    shoot(&bed, "red", &frames)?.assert_dropped("a flood of MACs", "spoofed-mac", frames.len());
    assert_eq!(bed.lab.json("fdb list")?, table);
    assert!(red.reaches(IpAddr::V4(blue.v4))?);
    Ok(())
}

#[test]
fn ip_addresses_cannot_be_stolen() -> Result<()> {
    let cast = Cast::new()?;
    let (red, blue, orange, host) = (cast.at("red"), cast.at("blue"), cast.at("orange"), cast.at("host"));
    let v4 = |source: [u8; 4]| Frame::new(red.mac, orange.mac).ipv4(source, orange.v4.octets()).udp(7, 7);
    let v6 = |source: [u8; 16]| Frame::new(red.mac, orange.mac).ipv6(source, orange.v6.octets()).udp(7, 7);
    let address = |text: &str| text.parse::<std::net::Ipv6Addr>().map(|ip| ip.octets());
    let specials = [[127, 0, 0, 1], [0; 4], [224, 0, 0, 1], [255; 4], [240, 0, 0, 1], [169, 254, 0, 1]];
    let link_local_of_blue = nsnet_common::wire::IpAddress::link_local_of(blue.mac).0;
    let mut specials6 = vec![[0; 16], link_local_of_blue];
    for text in ["::1", "2001:db8::1", "ff02::1"] {
        specials6.push(address(text)?);
    }
    cast.commit(vec![
        ("blue's IPv4", marked([v4(blue.v4.octets())]), "spoofed-ipv4"),
        ("the gateway's IPv4", marked([v4(host.v4.octets())]), "spoofed-ipv4"),
        ("a free IPv4 of the subnet", marked([v4([192, 168, 15, 77])]), "spoofed-ipv4"),
        ("an IPv4 of elsewhere", marked([v4([8, 8, 8, 8]), v4([10, 9, 0, 1])]), "spoofed-ipv4"),
        ("an IPv4 that is no sender's", marked(specials.map(v4)), "spoofed-ipv4"),
        ("blue's IPv6", marked([v6(blue.v6.octets())]), "spoofed-ipv6"),
        ("the gateway's IPv6", marked([v6(host.v6.octets())]), "spoofed-ipv6"),
        ("its own IPv4 as IPv6", marked([v6(red.v4.to_ipv6_mapped().octets())]), "spoofed-ipv6"),
        ("other IPv6", marked(specials6.into_iter().map(v6)), "spoofed-ipv6"),
    ])
}

#[test]
fn arp_cannot_be_forged() -> Result<()> {
    let cast = Cast::new()?;
    let (red, blue, host) = (cast.at("red"), cast.at("blue"), cast.at("host"));
    let (to, nobody) = ((blue.mac, blue.v4.octets()), (Mac::ZERO, blue.v4.octets()));
    let gateway = (red.mac, host.v4.octets());
    let arp = |destination, operation, sender, target| Frame::new(red.mac, destination).arp(operation, sender, target);
    let everybody = Mac::BROADCAST;
    cast.commit(vec![
        ("a request as the gateway", marked([arp(everybody, 1, gateway, nobody)]), "spoofed-arp"),
        ("a reply as the gateway", marked([arp(blue.mac, 2, gateway, to)]), "spoofed-arp"),
        (
            "an announcement as the gateway",
            marked([arp(everybody, 1, gateway, gateway), arp(everybody, 2, gateway, gateway)]),
            "spoofed-arp",
        ),
        ("an announcement as blue", marked([arp(everybody, 1, (red.mac, to.1), (red.mac, to.1))]), "spoofed-arp"),
        (
            "another MAC inside",
            marked([
                arp(blue.mac, 2, (host.mac, red.v4.octets()), to),
                arp(everybody, 1, (STRANGER, red.v4.octets()), nobody),
                arp(blue.mac, 2, (Mac::ZERO, red.v4.octets()), to),
            ]),
            "spoofed-arp",
        ),
        ("a reply from nowhere", marked([arp(blue.mac, 2, (red.mac, [0; 4]), to)]), "spoofed-arp"),
        ("an operation that is none", marked([arp(blue.mac, 3, (red.mac, red.v4.octets()), to)]), "bad-arp"),
    ])
}

#[test]
fn neighbour_discovery_cannot_be_forged() -> Result<()> {
    let cast = Cast::new()?;
    let (red, blue, host) = (cast.at("red"), cast.at("blue"), cast.at("host"));
    let link_local = |station: &Station| nsnet_common::wire::IpAddress::link_local_of(station.mac).0;
    let own = |to: Mac, ip: [u8; 16]| Frame::new(red.mac, to).ipv6(red.v6.octets(), ip);
    let to_all = || own(ALL_NODES_MAC, ALL_NODES);
    let to_blue = || own(blue.mac, blue.v6.octets());
    // Not marked: what is appended to a message of neighbour discovery is read as an option.
    let crimes = [
        ("an advertisement as the gateway", to_all().neighbour(136, host.v6.octets()), "spoofed-nd"),
        ("an advertisement as blue", to_all().neighbour(136, blue.v6.octets()), "spoofed-nd"),
        ("the gateway's link-local address", to_blue().neighbour(136, link_local(host)), "spoofed-nd"),
        (
            "another MAC in an advertisement",
            to_blue().neighbour(136, red.v6.octets()).mac_option(TARGET_OPTION, host.mac),
            "spoofed-nd",
        ),
        (
            "another MAC in a solicitation",
            to_blue().neighbour(135, blue.v6.octets()).mac_option(SOURCE_OPTION, host.mac),
            "spoofed-nd",
        ),
        ("an advertisement from afar", to_blue().neighbour(136, red.v6.octets()).hops(64), "bad-nd"),
        ("a router", to_all().router_advertisement(), "router-guard"),
        ("a router behind an extension", to_all().extension(60, 0).router_advertisement(), "bad-nd"),
        ("a router in a fragment", to_all().fragment_v6(0, false).router_advertisement(), "bad-nd"),
        ("a redirect", to_blue().hops(255).icmpv6(137, 0, &[0; 36]), "router-guard"),
    ];
    cast.commit(crimes.into_iter().map(|(what, frame, reason)| (what, vec![frame.finish()], reason)).collect())
}

#[test]
fn nobody_serves_dhcp() -> Result<()> {
    let cast = Cast::new()?;
    let (red, blue) = (cast.at("red"), cast.at("blue"));
    let v4 = |to: Mac, ip: [u8; 4]| Frame::new(red.mac, to).ipv4(red.v4.octets(), ip).udp(67, 68);
    let v6 = Frame::new(red.mac, blue.mac).ipv6(red.v6.octets(), blue.v6.octets());
    let offers = vec![v4(blue.mac, blue.v4.octets()), v4(Mac::BROADCAST, [255; 4])];
    cast.commit(vec![
        ("an offer", marked(offers), "dhcp-server"),
        ("an advertisement", marked([v6.udp(547, 546)]), "dhcp-server"),
    ])
}

#[test]
fn only_ip_and_arp_without_tags() -> Result<()> {
    let cast = Cast::new()?;
    let (red, blue) = (cast.at("red"), cast.at("blue"));
    let to = |destination| Frame::new(red.mac, destination);
    let tagged = |kind, vlan| to(blue.mac).tag(kind, vlan).ipv4(red.v4.octets(), blue.v4.octets());
    let mut tags: Vec<Frame> = [0, 1, 100, 0x6001, 4095].into_iter().map(|vlan| tagged(0x8100, vlan)).collect();
    tags.extend([0x88a8, 0x9100].map(|kind| tagged(kind, 1)));
    tags.push(to(Mac::BROADCAST).tag(0x88a8, 1).tag(0x8100, 100).ipv4(red.v4.octets(), [255; 4]));
    let types = [0, 46, 1500, 1536, 0x0842, 0x22f0, 0x6003, 0x8035, 0x8847, 0x8863, 0x88b5, 0x88cc, 0x88f7, 0xffff];
    let others = types.into_iter().flat_map(|kind| [blue.mac, Mac::BROADCAST].map(|mac| to(mac).ethertype(kind)));
    cast.commit(vec![
        ("VLAN tags", marked(tags), "tagged"),
        ("LLC frames", marked([to(blue.mac).llc(0x42), to(Mac([1, 0x80, 0xc2, 0, 0, 0x10])).llc(0xaa)]), "ethertype"),
        ("other ethertypes", marked(others), "ethertype"),
    ])
}

#[test]
fn networks_are_apart() -> Result<()> {
    let cast = Cast::new()?;
    let (red, green, host, other) = (cast.at("red"), cast.at("green"), cast.at("host"), cast.at("v-net-1"));
    let v4 = |mac, ip: std::net::Ipv4Addr| Frame::new(red.mac, mac).ipv4(red.v4.octets(), ip.octets()).udp(7, 7);
    let v6 = |mac, ip: std::net::Ipv6Addr| Frame::new(red.mac, mac).ipv6(red.v6.octets(), ip.octets()).udp(7, 7);
    let strangers = [green.mac, other.mac, STRANGER];
    cast.commit(vec![
        ("its MACs", marked(strangers.map(|mac| v4(mac, green.v4))), "unknown-destination"),
        ("its MACs, IPv6", marked(strangers.map(|mac| v6(mac, green.v6))), "unknown-destination"),
        ("by way of the gateway", marked([v4(host.mac, green.v4), v6(host.mac, green.v6)]), "other-network"),
        ("its gateway by way of ours", marked([v4(host.mac, other.v4), v6(host.mac, other.v6)]), "other-network"),
        (
            "the host's loopback",
            marked([v4(host.mac, [127, 0, 0, 1].into()), v6(host.mac, std::net::Ipv6Addr::LOCALHOST)]),
            "loopback-destination",
        ),
    ])?;
    // Also with a route, and with the host forwarding.
    cast.bed.lab.within("host", || nsnet::kernel::sysctl::write("net/ipv4/ip_forward", "1"))??;
    cast.bed.lab.nsnet(&format!("route add @red default via {}", host.v4))?;
    cast.bed.lab.nsnet(&format!("route add @green default via {}", other.v4))?;
    assert!(!red.reaches(IpAddr::V4(green.v4))? && !green.reaches(IpAddr::V4(red.v4))?);
    assert_eq!(red.network, NETWORK);
    Ok(())
}

/// Behaviours 19 (icc=false), the kernel's isolated ports: nothing passes between two of them, by no way but a published
/// port; everybody else is reached as ever.
#[test]
fn isolated_ports_are_apart() -> Result<()> {
    let mut bed = Bed::new(DUAL, &["orange"])?;
    for name in ["red", "blue"] {
        bed.attach(NETWORK, name, "--isolated")?;
    }
    let (red, blue, orange, host) = (bed.at("red"), bed.at("blue"), bed.at("orange"), bed.at("host"));
    for (from, to) in [("red", "orange"), ("orange", "red"), ("red", "host"), ("host", "blue")] {
        traffic::exchange(&bed, from, to, traffic::Amount::Little)?;
    }
    for (from, to) in [(red, blue), (blue, red)] {
        for ip in to.ips() {
            assert!(!from.reaches(ip)?, "{} reaches {} at {ip}", from.name, to.name);
        }
    }

    // Of each kind, by the MAC itself and by the gateway's.
    let v4 = |to| Frame::new(red.mac, to).ipv4(red.v4.octets(), blue.v4.octets()).udp(7, 7);
    let v6 = |to| Frame::new(red.mac, to).ipv6(red.v6.octets(), blue.v6.octets()).udp(7, 7);
    let frames = marked([v4(blue.mac), v6(blue.mac), v4(host.mac), v6(host.mac)]);
    let groups = marked([v4(Mac::BROADCAST), v6(ALL_NODES_MAC)]);
    let before = bed.drops()?;
    let ears = [blue, orange].map(|station| station.run(|| RawSocket::open_promiscuous(&station.ifname)));
    let [at_blue, at_orange] = ears;
    let socket = red.run(|| RawSocket::open(&red.ifname))?;
    frames.iter().chain(&groups).try_for_each(|frame| socket.send(frame))?;
    let is_marked = |frame: &nsnet::lab::Frame| frame.on_wire().windows(MARK.len()).any(|bytes| bytes == MARK);
    let heard = at_orange?.collect(STRAGGLERS, is_marked)?;
    assert_eq!(heard.len(), groups.len(), "orange hears what is for all");
    assert!(at_blue?.collect(STRAGGLERS, is_marked)?.is_empty(), "blue hears red");
    let dropped = growth(&before, &bed.drops()?);
    let reason = (red.port.clone(), "isolated-port".to_owned());
    assert_eq!(dropped.get(&reason), Some(&(frames.len() as u64)), "{dropped:?}");

    bed.lab.nsnet("publish add @blue 8080:80")?;
    let server = blue.run(|| TcpServer::banner(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 80), "blue"))?;
    let published = SocketAddr::new(IpAddr::V4(host.v4), 8080);
    assert_eq!(red.run(|| tcp::fetch(published))?, "blue", "the published port is everybody's");
    drop(server);

    // What it is now is not changed by the way.
    let refused = bed.lab.try_nsnet(&format!("attach {NETWORK} @red"))?;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--isolated"), "{refused:?}");
    bed.check_no_drift()
}
