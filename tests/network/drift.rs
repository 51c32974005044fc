//! What was changed behind nsnet's back: seen by `status` and `plan`, named, and put right by `apply`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, ProgramArray};
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::netns::NetNs;
use nsnet::kernel::store::BPFFS;
use nsnet::kernel::veth::VethSpec;
use nsnet::kernel::{named, sysctl};
use nsnet::lab::Lab;
use nsnet_common::layout::{
    AddressKey, LAYOUT_VERSION, MAPPED_IPV4_BITS, Network, NetworkId, Policy, Port, PortId, Publish, PublishedKey,
    Station, StationKey, SubnetKey, names,
};
use nsnet_common::wire::{IpAddress, IpProtocol, Mac};
use serde_json::Value;

use super::bed::lab;
use super::file::{apply, objects, steps, words};
use super::world::World;

const FILE: &str = r#"
    [[ns]]
    name = "@red"
    [[ns]]
    name = "@blue"
    [[network]]
    name = "v-net-0"
    subnet = ["192.168.15.0/24", "fd15::/64"]
    masquerade = true
    [[attach]]
    network = "v-net-0"
    ns = "@red"
    ip = ["192.168.15.1", "fd15::1"]
    mac = "02:aa:00:00:00:01"
    ifname = "eth0"
    [[attach]]
    network = "v-net-0"
    ns = "@blue"
    ip = ["192.168.15.2", "fd15::2"]
    ifname = "eth0"
    [[route]]
    ns = "@red"
    dest = "10.9.0.0/16"
    via = "192.168.15.254"
    [[publish]]
    ns = "@red"
    port = "8080-8090:80-90"
    [[cable]]
    a = "@red"
    b = "@blue"
    address_a = "10.0.0.1/30"
    address_b = "10.0.0.2/30"
"#;

/// The lab, and what is to be damaged in it.
struct Scene {
    lab: Lab,
    /// The ends of a connection from red to blue.
    near: TcpStream,
    far: TcpStream,
}

impl Scene {
    fn new() -> Result<Self> {
        let lab = lab()?;
        apply(&lab, FILE)?;
        let to: SocketAddr = "192.168.15.2:7000".parse()?;
        let listener = lab.within("blue", || TcpListener::bind(to))??;
        let near = lab.within("red", || TcpStream::connect_timeout(&to, Duration::from_secs(3)))??;
        let (far, _) = listener.accept()?;
        for socket in [&near, &far] {
            socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        }
        Ok(Self { lab, near, far })
    }

    /// The connection goes on.
    fn talks(&mut self) -> Result<()> {
        let mut answer = [0; 4];
        self.near.write_all(b"ping")?;
        self.far.read_exact(&mut answer)?;
        self.far.write_all(&answer)?;
        self.near.read_exact(&mut answer).context("the connection is dead")
    }

    fn netlink(&self, name: &str) -> Result<Netlink> {
        Ok(Netlink::inside(&self.lab.ns(name)?)?)
    }

    /// red's end in the host.
    fn outer(&self, name: &str) -> Result<String> {
        let shown = self.lab.json("network show v-net-0")?;
        let ports = shown["ports"].as_array().context("no ports")?;
        let port = ports.iter().find(|port| port["ns"] == self.lab.name(name)).context("no port")?;
        Ok(port["host_ifname"].as_str().context("no name")?.to_owned())
    }

    fn ip(&self, ns: &str, line: &str) -> Result<()> {
        let mut command = std::process::Command::new("ip");
        let output =
            command.args(["-n", &self.lab.name(ns)]).args(line.split(' ')).output().context("this test needs `ip`")?;
        ensure!(output.status.success(), "`ip {line}`: {}", words(&output));
        Ok(())
    }

    fn pins(&self) -> Result<PathBuf> {
        let key = format!("{:x}", self.lab.ns("host")?.cookie()?);
        Ok(PathBuf::from(BPFFS).join(format!("{key}_v{LAYOUT_VERSION}")))
    }

    fn map(&self, name: &str) -> Result<MapData> {
        Ok(MapData::from_pin(self.pins()?.join("maps").join(name))?)
    }

    fn hash<K: Pod, V: Pod>(&self, name: &str) -> Result<HashMap<MapData, K, V>> {
        Ok(Map::HashMap(self.map(name)?).try_into()?)
    }

    fn array<V: Pod>(&self, name: &str) -> Result<Array<MapData, V>> {
        Ok(Map::Array(self.map(name)?).try_into()?)
    }

    fn trie<K: Pod, V: Pod>(&self, name: &str) -> Result<LpmTrie<MapData, K, V>> {
        Ok(Map::LpmTrie(self.map(name)?).try_into()?)
    }

    /// The number of red's port.
    fn red(&self) -> Result<PortId> {
        let link = self.netlink("host")?.existing_link(&self.outer("red")?)?;
        Ok(PortId::from_ifindex(link.index))
    }

    fn uplink(&self) -> Result<u32> {
        Ok(self.netlink("host")?.existing_link("uplink")?.index)
    }
}

/// What is done, the object that it shows at, and words that tell it.
type Damage = (&'static str, &'static str, &'static str, fn(&Scene) -> Result<()>);

fn subnet(v4: [u8; 4]) -> Key<SubnetKey> {
    Key::new(MAPPED_IPV4_BITS + 24, SubnetKey(IpAddress::v4(v4)))
}

fn published(port: u16, bits: u32) -> Key<PublishedKey> {
    Key::new(PublishedKey::ADDRESS_BITS + bits, PublishedKey::new(IpProtocol::TCP, IpAddress::v4([0; 4]), port))
}

const RED: &str = "attachment @red to v-net-0";
const NET: &str = "network v-net-0";

const INTERFACES: &[Damage] = &[
    ("the namespace's end down", RED, "interface eth0 is down, not up", |s| s.ip("red", "link set eth0 down")),
    ("the host's end down", RED, "is down, not up", |s| s.ip("host", &format!("link set {} down", s.outer("red")?))),
    ("the network's interface down", NET, "interface v-net-0 is down, not up", |s| {
        s.ip("host", "link set v-net-0 down")
    }),
    ("its unused end down", NET, "interface v-net-0-end is down", |s| s.ip("host", "link set v-net-0-end down")),
    ("an MTU inside", RED, "MTU of eth0 is 1000, not 1500", |s| s.ip("red", "link set eth0 mtu 1000")),
    ("an MTU outside", RED, "is 9000, not 1500", |s| s.ip("host", &format!("link set {} mtu 9000", s.outer("red")?))),
    ("the network's MTU", NET, "MTU of v-net-0 is 1400, not 1500", |s| s.ip("host", "link set v-net-0 mtu 1400")),
    ("a MAC", RED, "MAC of eth0 is 02:bb:00:00:00:01, not 02:aa:00:00:00:01", |s| {
        s.ip("red", "link set eth0 address 02:bb:00:00:00:01")
    }),
    ("the gateway's MAC", NET, "MAC of v-net-0 is 02:bb", |s| {
        s.ip("host", "link set v-net-0 address 02:bb:00:00:00:02")
    }),
    ("an IPv4 address", RED, "address of eth0 192.168.15.1/24 is missing", |s| {
        s.ip("red", "addr del 192.168.15.1/24 dev eth0")
    }),
    ("an IPv6 address", RED, "address of eth0 fd15::1/64 is missing", |s| s.ip("red", "addr del fd15::1/64 dev eth0")),
    ("a gateway's address", NET, "address of v-net-0 192.168.15.254/24 is missing", |s| {
        s.ip("host", "addr del 192.168.15.254/24 dev v-net-0")
    }),
    ("a prefix length", RED, "address of eth0 is 192.168.15.1/16, not 192.168.15.1/24", |s| {
        s.ip("red", "addr del 192.168.15.1/24 dev eth0")?;
        s.ip("red", "addr add 192.168.15.1/16 dev eth0")
    }),
    ("the namespace's end", RED, "interface eth0 is missing", |s| s.ip("red", "link del eth0")),
    ("the host's end", RED, "is missing", |s| s.ip("host", &format!("link del {}", s.outer("red")?))),
    ("the network's interface", NET, "interface v-net-0 is missing", |s| s.ip("host", "link del v-net-0")),
    ("a name inside", RED, "interface eth0 is missing", |s| {
        s.ip("red", "link set eth0 down")?;
        s.ip("red", "link set eth0 name other")
    }),
    ("a route", "route 10.9.0.0/16 in @red", "next hop 192.168.15.254 is missing", |s| {
        s.ip("red", "route del 10.9.0.0/16")
    }),
    ("where a route leads", "route 10.9.0.0/16 in @red", "next hop is 192.168.15.2, not 192.168.15.254", |s| {
        s.ip("red", "route replace 10.9.0.0/16 via 192.168.15.2")
    }),
    ("a default route", "route 0.0.0.0/0 in @red", "next hop 192.168.15.254 is missing", |s| {
        s.ip("red", "route del default")
    }),
    ("where a default route leads", "route 0.0.0.0/0 in @red", "next hop is 192.168.15.2, not 192.168.15.254", |s| {
        s.ip("red", "route replace default via 192.168.15.2")
    }),
    ("a cable's end down", "cable @red-@blue", "is down, not up", |s| {
        let end = s.lab.json("cable list")?[0]["ifname_a"].as_str().context("no end")?.to_owned();
        s.ip("red", &format!("link set {end} down"))
    }),
    ("a cable's address", "cable @red-@blue", "10.0.0.2/30 is missing", |s| {
        let end = s.lab.json("cable list")?[0]["ifname_b"].as_str().context("no end")?.to_owned();
        s.ip("blue", &format!("addr flush dev {end}"))
    }),
    ("a cable", "cable @red-@blue", "is missing", |s| {
        let end = s.lab.json("cable list")?[0]["ifname_a"].as_str().context("no end")?.to_owned();
        s.ip("red", &format!("link del {end}"))
    }),
    ("forwarding", NET, "net/ipv4/conf/v-net-0/forwarding is 0, not 1", |s| {
        s.lab.within("host", || sysctl::write("net/ipv4/conf/v-net-0/forwarding", "0"))?.map(drop).map_err(Into::into)
    }),
    ("reserved ports", "reserved ports", "8080-8090,16384-32767 is missing", |s| {
        s.lab.within("host", || sysctl::write("net/ipv4/ip_local_reserved_ports", "\n"))?.map(drop).map_err(Into::into)
    }),
];

const TABLES: &[Damage] = &[
    ("a port's program", RED, "program on", |s| {
        Ok(fs::remove_file(s.pins()?.join("links").join(s.red()?.0.to_string()))?)
    }),
    ("the network's program", NET, "program on v-net-0 is missing", |s| {
        Ok(fs::remove_file(s.pins()?.join("links/1"))?)
    }),
    ("the uplink's program", "uplink uplink", "program on uplink is missing", |s| {
        let port = s.hash::<u32, PortId>(names::UPLINKS)?.get(&s.uplink()?, 0)?;
        Ok(fs::remove_file(s.pins()?.join("links").join(port.0.to_string()))?)
    }),
    ("a stage", "dataplane", "program of stage opened is missing", |s| {
        let mut stages: ProgramArray<MapData> = Map::ProgramArray(s.map(names::STAGES)?).try_into()?;
        Ok(stages.clear_index(&names::OPENED_STAGE)?)
    }),
    ("a port's entry", RED, "MTU in the port's entry is 60, not 1500", |s| {
        let (mut ports, red) = (s.array::<Port>(names::PORTS)?, u32::from(s.red()?.0));
        let was = ports.get(&red, 0)?;
        let port = Port::new(was.id(), was.network(), was.mac(), 60, was.flags());
        let port = port.with_addresses(Some(was.ipv4()), Some(was.ipv6())).followed_by(was.next());
        Ok(ports.set(red, port, 0)?)
    }),
    ("a port's whole entry", RED, "entry of the port is missing", |s| {
        Ok(s.array::<Port>(names::PORTS)?.set(u32::from(s.red()?.0), Port::default(), 0)?)
    }),
    ("an address's owner", RED, "port of address 192.168.15.1 is 1, not", |s| {
        let key = AddressKey { network: NetworkId(1), ip: IpAddress::v4([192, 168, 15, 1]) };
        Ok(s.hash::<AddressKey, PortId>(names::ADDRESSES)?.insert(key, PortId(1), 0)?)
    }),
    ("an address", RED, "entry of address 192.168.15.1 is missing", |s| {
        let key = AddressKey { network: NetworkId(1), ip: IpAddress::v4([192, 168, 15, 1]) };
        Ok(s.hash::<AddressKey, PortId>(names::ADDRESSES)?.remove(&key)?)
    }),
    ("an address of nobody's", "leftover address 192.168.15.99 of network 1", "ADDRESSES should not be there", |s| {
        let key = AddressKey { network: NetworkId(1), ip: IpAddress::v4([192, 168, 15, 99]) };
        Ok(s.hash::<AddressKey, PortId>(names::ADDRESSES)?.insert(key, PortId(1), 0)?)
    }),
    ("a given MAC", RED, "entry of MAC 02:aa:00:00:00:01 is missing", |s| {
        let key = StationKey { network: NetworkId(1), mac: Mac([2, 0xaa, 0, 0, 0, 1]) };
        Ok(s.hash::<StationKey, Station>(names::STATIONS)?.remove(&key)?)
    }),
    ("a MAC of nobody's", "leftover MAC 02:cc:00:00:00:01 of network 1", "STATIONS should not be there", |s| {
        let key = StationKey { network: NetworkId(1), mac: Mac([2, 0xcc, 0, 0, 0, 1]) };
        Ok(s.hash::<StationKey, Station>(names::STATIONS)?.insert(key, Station::fixed(PortId(1)), 0)?)
    }),
    ("a subnet", NET, "entry of subnet 192.168.15.0/24 is missing", |s| {
        Ok(s.trie::<SubnetKey, NetworkId>(names::SUBNETS)?.remove(&subnet([192, 168, 15, 0]))?)
    }),
    ("a subnet of nobody's", "leftover subnet 10.66.0.0/24", "SUBNETS should not be there", |s| {
        Ok(s.trie::<SubnetKey, NetworkId>(names::SUBNETS)?.insert(&subnet([10, 66, 0, 0]), NetworkId(9), 0)?)
    }),
    ("what a network may do", NET, "masquerade in the dataplane is false, not true", |s| {
        let mut policies = s.array::<Policy>(names::POLICIES)?;
        let was = policies.get(&1, 0)?;
        Ok(policies.set(1, Policy { flags: 0, ..was }, 0)?)
    }),
    ("what no network may do", "leftover policy of network 7", "POLICIES should not be there", |s| {
        Ok(s.array::<Policy>(names::POLICIES)?.set(7, Policy::DEFAULT, 0)?)
    }),
    ("the pools", "ports of flows", "span of the pools is none, not 16384-32767", |s| {
        let mut policies = s.array::<Policy>(names::POLICIES)?;
        let was = policies.get(&0, 0)?;
        Ok(policies.set(0, Policy { flags: 0, ..was }, 0)?)
    }),
    ("an uplink's index", "uplink uplink", "entry of index", |s| {
        Ok(s.hash::<u32, PortId>(names::UPLINKS)?.remove(&s.uplink()?)?)
    }),
    ("an uplink of nobody's", "leftover uplink with index 4711", "UPLINKS should not be there", |s| {
        Ok(s.hash::<u32, PortId>(names::UPLINKS)?.insert(4711, PortId(1), 0)?)
    }),
    ("a port of nobody's", "leftover port 77", "PORTS should not be there", |s| {
        let port = Port::new(PortId(77), NetworkId(1), Mac([2, 0, 0, 0, 0, 7]), 1500, 0);
        Ok(s.array::<Port>(names::PORTS)?.set(77, port, 0)?)
    }),
    ("the list of ports", NET, "list of ports in the dataplane is broken, not whole", |s| {
        Ok(s.array::<Network>(names::NETWORKS)?.set(1, Network::new(PortId(1), 1, 0), 0)?)
    }),
    ("a circle in it", NET, "list of ports in the dataplane is broken, not whole", |s| {
        let (mut ports, first) =
            (s.array::<Port>(names::PORTS)?, s.array::<Network>(names::NETWORKS)?.get(&1, 0)?.first());
        let port = ports.get(&u32::from(first.0), 0)?;
        Ok(ports.set(u32::from(first.0), port.followed_by(first), 0)?)
    }),
    ("a way to a published port", "publish 8080-8090:80-90/tcp for @red", "way from ports of 0.0.0.0", |s| {
        Ok(s.trie::<PublishedKey, u32>(names::PUBLISHED)?.remove(&published(8080, 13))?)
    }),
    ("a way of nobody's", "leftover entry for port 22", "PUBLISHED should not be there", |s| {
        Ok(s.trie::<PublishedKey, u32>(names::PUBLISHED)?.insert(&published(22, 16), 1, 0)?)
    }),
    ("a published port", "publish 8080-8090:80-90/tcp for @red", "entry for 0.0.0.0 is missing", |s| {
        Ok(s.array::<Publish>(names::PUBLISHES)?.set(1, Publish::default(), 0)?)
    }),
    (
        "where it leads",
        "publish 8080-8090:80-90/tcp for @red",
        "entry for 0.0.0.0 is 8080-8090 to 192.168.15.1:22",
        |s| {
            let mut publishes = s.array::<Publish>(names::PUBLISHES)?;
            let was = publishes.get(&1, 0)?;
            Ok(publishes.set(1, Publish { target_first: 22, ..was }, 0)?)
        },
    ),
    ("a published port of nobody's", "leftover published port at place 9", "PUBLISHES should not be there", |s| {
        Ok(s.array::<Publish>(names::PUBLISHES)?.set(9, Publish { owner: PortId(1), ..Publish::default() }, 0)?)
    }),
    ("the host's addresses", "addresses of the host", "entry of address 192.168.1.1 is missing", |s| {
        Ok(s.hash::<IpAddress, u8>(names::LOCALS)?.remove(&IpAddress::v4([192, 168, 1, 1]))?)
    }),
    ("a link of nobody's", "leftover link of port 78", "links should not be there", |s| {
        let links = s.pins()?.join("links");
        let link = aya::programs::links::PinnedLink::from_pin(links.join(s.red()?.0.to_string()))?;
        let link: aya::programs::links::FdLink = link.into();
        Ok(link.pin(links.join("78")).map(drop)?)
    }),
    ("an interface of nobody's", "leftover interface veth-gone-br", "the host should not be there", |s| {
        let end = VethSpec { name: "veth-gone-br", index: Some(PortId(79).ifindex()), ..VethSpec::default() };
        let peer = VethSpec { name: "gone", ..VethSpec::default() };
        Ok(s.netlink("host")?.create_veth(&end, &peer, None).map(drop)?)
    }),
];

/// Damages, looks, repairs, and sees that it is as before.
fn each(damages: &[Damage], keeps_connections: bool) -> Result<()> {
    let mut scene = Scene::new()?;
    for (what, object, expected, damage) in damages {
        damage(&scene).with_context(|| format!("damaging {what}"))?;
        // Each is told by status, with its own words, and is what apply would mend, with a file or without.
        let status = scene.lab.try_nsnet("-o json status")?;
        assert_eq!(status.status.code(), Some(1), "{what}: {}", words(&status));
        let status: Value = serde_json::from_slice(&status.stdout)?;
        let object = object.replace('@', &scene.lab.name(""));
        let rows = status["drift"].as_array().context("no drift")?;
        let is_told = |row: &Value| {
            row["object"].as_str().is_some_and(|at| at.starts_with(&object))
                && row["drift"].as_str().is_some_and(|words| words.contains(expected))
        };
        ensure!(rows.iter().any(is_told), "{what}: not told as {object}: {expected:?}, but {}", status["drift"]);
        let planned = steps(&scene.lab, "plan", FILE)?;
        assert_eq!(Value::from(planned.clone()), status["steps"], "{what}");
        ensure!(
            planned.iter().any(|step| step["object"].as_str().is_some_and(|at| at.starts_with(&object))),
            "{what}: {planned:?}"
        );

        assert_eq!(steps(&scene.lab, "apply", FILE)?, planned, "{what}");
        let left = scene.lab.json("status").with_context(|| format!("after mending {what}"))?;
        assert_eq!((&left["drift"], &left["steps"]), (&Value::Array(vec![]), &Value::Array(vec![])), "{what}");
        if keeps_connections {
            scene.talks().with_context(|| format!("after mending {what}"))?;
        }
        reach_one_another(&scene.lab).with_context(|| format!("after mending {what}"))?;
    }
    scene.lab.nsnet("down")?;
    let world = World::of(&scene.lab)?;
    assert_eq!((world.pins, world.file), (Vec::new(), None));
    Ok(())
}

fn reach_one_another(lab: &Lab) -> Result<()> {
    for (from, to) in [
        ("red", "192.168.15.2"),
        ("blue", "fd15::1"),
        ("host", "192.168.15.1"),
        ("red", "192.168.1.3"),
        ("red", "10.0.0.2"),
    ] {
        let ping = || nsnet::lab::ping::ping(to.parse()?, 3, 56, Duration::from_millis(700));
        ensure!(lab.within(from, ping)??.received > 0, "{from} does not reach {to}");
    }
    Ok(())
}

#[test]
fn interfaces_addresses_routes_and_settings() -> Result<()> {
    each(INTERFACES, true)
}

#[test]
fn programs_links_and_tables() -> Result<()> {
    each(TABLES, true)
}

#[test]
fn pins_that_are_gone() -> Result<()> {
    // Connections between namespaces go on; the flows of others begin anew.
    each(
        &[
            ("all pins", "dataplane", "every program and map is missing", |s| Ok(fs::remove_dir_all(s.pins()?)?)),
            ("a map's pin", "dataplane", "pin maps/PORTS is missing", |s| {
                Ok(fs::remove_file(s.pins()?.join("maps/PORTS"))?)
            }),
            ("a program's pin", "dataplane", "pin programs/opened is missing", |s| {
                Ok(fs::remove_file(s.pins()?.join("programs/opened"))?)
            }),
            ("a hook at the host's sockets", "dataplane", "pin links/bind4 is missing", |s| {
                Ok(fs::remove_file(s.pins()?.join("links/bind4"))?)
            }),
            ("the program of such a hook", "dataplane", "pin programs/connect4 is missing", |s| {
                Ok(fs::remove_file(s.pins()?.join("programs/connect4"))?)
            }),
        ],
        true,
    )
}

#[test]
fn namespaces_that_are_gone() -> Result<()> {
    // With it goes the other end of its connections.
    each(
        &[("a namespace", "namespace @red", "it is missing", |s| {
            // Whoever holds it open must not keep its interfaces alive.
            let held: NetNs = s.lab.ns("red")?;
            named::delete(&s.lab.name("red"))?;
            let netlink = Netlink::inside(&held)?;
            for link in netlink.links()?.into_iter().filter(|link| link.kind.as_deref() == Some("veth")) {
                netlink.delete_link(link.index)?;
            }
            Ok(())
        })],
        false,
    )
}

#[test]
fn without_a_file_and_by_many_at_once() -> Result<()> {
    let scene = Scene::new()?;
    let lab = &scene.lab;
    for (_, _, _, damage) in TABLES.iter().take(12).chain(INTERFACES.iter().take(6)) {
        damage(&scene)?;
    }
    // For people.
    let status = lab.try_nsnet("status")?;
    let text = words(&status);
    ensure!(
        status.status.code() == Some(1)
            && text.contains("`nsnet apply` would:\n  remove leftover ")
            && text.contains("\n  repair: attach "),
        "{text}"
    );
    let planned = lab.json("plan")?;
    let done = lab.json("apply")?;
    assert_eq!(done, planned);
    let done = objects(lab, done["steps"].as_array().context("no steps")?);
    assert!(
        done.contains(&format!("~ {RED}"))
            && done.contains(&"- leftover address 192.168.15.99 of network 1".to_owned()),
        "{done:?}"
    );
    assert_eq!(lab.json("apply")?["steps"], serde_json::json!([]));
    ensure!(lab.nsnet("status")?.contains("no drift"), "there is drift");
    reach_one_another(lab)
}

#[test]
fn what_nobody_can_mend_is_told_and_stands_in_nobodys_way() -> Result<()> {
    let lab = lab()?;
    lab.nsnet("network add v-net-0 --subnet 192.168.15.0/24")?;
    let mut lab = lab;
    lab.make("theirs")?;
    lab.nsnet("ns add @red")?;
    lab.nsnet("attach v-net-0 @theirs")?;
    lab.nsnet("attach v-net-0 @red --ifname eth0")?;
    lab.nsnet("publish add @red 192.168.1.1:8080:80")?;
    // A foreign namespace goes, and an address of the host's.
    named::delete(&lab.name("theirs"))?;
    let host = Netlink::inside(&lab.ns("host")?)?;
    let uplink = host.existing_link("uplink")?.index;
    host.remove_address(uplink, "192.168.1.1/24".parse()?)?;
    Netlink::inside(&lab.ns("red")?)?.set_mtu(Netlink::inside(&lab.ns("red")?)?.existing_link("eth0")?.index, 1000)?;
    lab.json("apply")?;
    let status = lab.try_nsnet("-o json status")?;
    assert_eq!(status.status.code(), Some(1));
    let status: Value = serde_json::from_slice(&status.stdout)?;
    assert_eq!(status["steps"], serde_json::json!([]), "nothing more can be done");
    let told = status["drift"].to_string();
    let theirs = lab.name("theirs");
    assert!(told.contains(&theirs) && told.contains("address 192.168.1.1") && !told.contains("MTU"), "{told}");
    assert_eq!(lab.json("apply")?["steps"], serde_json::json!([]));
    lab.make("theirs")?;
    host.add_address(uplink, "192.168.1.1/24".parse()?)?;
    lab.json("apply")?;
    assert_eq!(lab.json("status")?["drift"], serde_json::json!([]));
    Ok(())
}
