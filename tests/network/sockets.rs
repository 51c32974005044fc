//! Published ports as the host's own programs see them: by the hooks at its sockets.
//!
//! A publish is entered in the maps by hand here: what the hooks do with it is what is tested.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData};
use aya::programs::{CgroupSockAddr, CgroupSockAddrAttachType, loaded_programs};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, getpeername, setsockopt, socket, sockopt,
};
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::netns::NetNs;
use nsnet::kernel::store::BPFFS;
use nsnet::lab::{HOST_IP, Lab};
use nsnet_common::layout::{
    LAYOUT_VERSION, MAX_ORIGINALS, Original, OriginalKey, PortId, Publish, PublishedKey, names, port_prefixes,
};
use nsnet_common::wire::{IpAddress, IpProtocol};

use super::bed::{Bed, DUAL, V4, lab, until};

const TCP: IpProtocol = IpProtocol::TCP;
const UDP: IpProtocol = IpProtocol::UDP;
/// The host's published port, and the one in the namespace.
const PORT: u16 = 8080;
const INNER: u16 = 80;
const SECOND: Duration = Duration::from_secs(1);

fn pins(lab: &Lab) -> Result<PathBuf> {
    Ok(Path::new(BPFFS).join(format!("{:x}_v{LAYOUT_VERSION}", lab.ns("host")?.cookie()?)))
}

/// Enters published ports `first` to `last` of the host's address `host`; `place` is one for each call.
fn publish(
    lab: &Lab,
    place: u32,
    protocol: IpProtocol,
    host: &str,
    ports: (u16, u16),
    to: (IpAddr, u16),
) -> Result<()> {
    let maps = pins(lab)?.join("maps");
    let mut places: Array<MapData, Publish> = Map::Array(MapData::from_pin(maps.join(names::PUBLISHES))?).try_into()?;
    let mut published: LpmTrie<MapData, PublishedKey, u32> =
        Map::LpmTrie(MapData::from_pin(maps.join(names::PUBLISHED))?).try_into()?;
    let (first, last) = ports;
    let target = Publish {
        target: IpAddress::from(to.0),
        first,
        last,
        target_first: to.1,
        owner: PortId(2),
        protocol: protocol.0,
        ..Publish::default()
    };
    places.set(place, target, 0)?;
    let host = IpAddress::from(host.parse::<IpAddr>()?);
    for (start, bits) in port_prefixes(first, last) {
        published.insert(&Key::new(bits, PublishedKey::new(protocol, host, start)), place, 0)?;
    }
    Ok(())
}

/// Network v-net-0 with red in it, whose port 80 is published as 8080 of every address.
fn published_everywhere(protocol: IpProtocol) -> Result<Bed> {
    let bed = Bed::new(DUAL, &["red"])?;
    let red = bed.at("red");
    publish(&bed.lab, 0, protocol, "0.0.0.0", (PORT, PORT), (red.v4.into(), INNER))?;
    publish(&bed.lab, 1, protocol, "::", (PORT, PORT), (red.v6.into(), INNER))?;
    Ok(bed)
}

/// Listens in a namespace, and tells each client which address it has.
fn greeter(ns: &NetNs, at: impl Into<IpAddr> + Send, port: u16) -> Result<()> {
    let listener = ns.run(|| TcpListener::bind((at.into(), port)))??;
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let from = client.peer_addr().map_or_else(|error| error.to_string(), |from| from.ip().to_string());
            // A client that has gone misses it, and says so.
            client.write_all(from.as_bytes()).ok();
        }
    });
    Ok(())
}

/// Sends each datagram back, from a namespace.
fn echo(ns: &NetNs, at: impl Into<IpAddr> + Send, port: u16) -> Result<()> {
    let server = ns.run(|| UdpSocket::bind((at.into(), port)))??;
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = server.recv_from(&mut buffer) {
            server.send_to(&buffer[..length], from).ok();
        }
    });
    Ok(())
}

/// Connects from the calling thread's namespace: the peer that the socket names, and what the greeter saw.
fn greeted(to: SocketAddr) -> Result<(SocketAddr, IpAddr)> {
    let mut stream = TcpStream::connect_timeout(&to, SECOND).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(SECOND))?;
    let mut seen = String::new();
    stream.read_to_string(&mut seen)?;
    Ok((stream.peer_addr()?, seen.parse()?))
}

/// A socket's own echo.
fn echoed(client: &UdpSocket, to: Option<SocketAddr>) -> Result<SocketAddr> {
    client.set_read_timeout(Some(SECOND))?;
    match to {
        Some(to) => client.send_to(b"hello", to).with_context(|| format!("send to {to}"))?,
        None => client.send(b"hello")?,
    };
    let mut buffer = [0; 64];
    let (length, from) = client.recv_from(&mut buffer).with_context(|| format!("no echo from {to:?}"))?;
    ensure!(&buffer[..length] == b"hello", "a damaged echo");
    Ok(from)
}

fn is_in_use(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::AddrInUse
}

/// Addresses by which the host's programs ask for a published port, and the source that red sees.
fn asked(bed: &Bed) -> Vec<(IpAddr, IpAddr)> {
    let (host, gateway4, gateway6) = (HOST_IP, bed.at("host").v4, bed.at("host").v6);
    let v4 = ["127.0.0.1", "127.8.8.8", host, &gateway4.to_string()].map(|ip| (ip.to_owned(), IpAddr::V4(gateway4)));
    let v6 = ["::1", &gateway6.to_string()].map(|ip| (ip.to_owned(), IpAddr::V6(gateway6)));
    v4.into_iter().chain(v6).map(|(ip, seen)| (ip.parse().expect("an address"), seen)).collect()
}

#[test]
fn a_connection_to_any_address_of_the_host() -> Result<()> {
    let bed = published_everywhere(TCP)?;
    let (red, host) = (bed.at("red"), bed.at("host"));
    greeter(&red.ns, red.v4, INNER)?;
    greeter(&red.ns, red.v6, INNER)?;
    for (ip, seen) in asked(&bed) {
        let to = SocketAddr::new(ip, PORT);
        assert_eq!(host.run(|| greeted(to))?, (to, seen));
    }
    // By its own address it is there as before, and names itself.
    let to = SocketAddr::new(red.v4.into(), INNER);
    assert_eq!(host.run(|| greeted(to))?, (to, host.v4.into()));
    // Linux takes nowhere for here.
    assert_eq!(host.run(|| greeted(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT)))?.1, IpAddr::V4(host.v4));
    // An IPv6 socket to a mapped address.
    let mapped: SocketAddr = "[::ffff:127.0.0.1]:8080".parse()?;
    assert_eq!(host.run(|| greeted(mapped))?, (mapped, host.v4.into()));
    // What is not published is not there.
    let other = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT + 1);
    assert!(host.run(|| greeted(other)).is_err());
    Ok(())
}

#[test]
fn datagrams_to_any_address_of_the_host() -> Result<()> {
    let bed = published_everywhere(UDP)?;
    let (red, host) = (bed.at("red"), bed.at("host"));
    echo(&red.ns, red.v4, INNER)?;
    echo(&red.ns, red.v6, INNER)?;
    for (ip, _) in asked(&bed) {
        let to = SocketAddr::new(ip, PORT);
        host.run(|| {
            let any = || UdpSocket::bind((if ip.is_ipv4() { "0.0.0.0" } else { "::" }, 0));
            assert_eq!(echoed(&any()?, Some(to))?, to, "unconnected");
            let connected = any()?;
            connected.connect(to)?;
            assert_eq!((connected.peer_addr()?, echoed(&connected, None)?), (to, to), "connected");
            Ok(())
        })?;
    }
    host.run(|| {
        let mapped: SocketAddr = "[::ffff:127.0.0.1]:8080".parse()?;
        let client = UdpSocket::bind(("::", 0))?;
        assert_eq!(echoed(&client, Some(mapped))?, mapped);
        client.connect(mapped)?;
        assert_eq!((echoed(&client, None)?, client.peer_addr()?), (mapped, mapped), "connected to a mapped address");
        // One socket, several addresses, in turn; and red by its own.
        let client = UdpSocket::bind(("0.0.0.0", 0))?;
        let direct = SocketAddr::new(red.v4.into(), INNER);
        for to in ["127.0.0.1:8080".parse()?, SocketAddr::new(host.v4.into(), PORT), direct, "127.0.0.2:8080".parse()?]
        {
            assert_eq!(echoed(&client, Some(to))?, to);
        }
        Ok(())
    })
}

/// For a new socket what is remembered of one that was never heard of again is forgotten: that one then sees the namespace's
/// address, and works.
#[test]
fn a_full_table_of_redirected_sockets() -> Result<()> {
    let bed = published_everywhere(UDP)?;
    let (red, host) = (bed.at("red"), bed.at("host"));
    echo(&red.ns, red.v4, INNER)?;
    host.run(|| {
        let to = SocketAddr::new(HOST_IP.parse()?, PORT);
        let connected = || -> Result<UdpSocket> {
            let client = UdpSocket::bind(("0.0.0.0", 0))?;
            client.connect(to)?;
            Ok(client)
        };
        let used = connected()?;
        assert_eq!(echoed(&used, None)?, to);
        // More than a CPU keeps for itself (128), which others' new ones do not push out.
        let idle = (0..500).map(|_| connected()).collect::<Result<Vec<_>>>()?;
        // One after the other, as a resolver does it.
        for _ in 0..MAX_ORIGINALS + MAX_ORIGINALS / 8 {
            connected()?;
        }
        let inner = SocketAddr::new(red.v4.into(), INNER);
        let mut forgotten = 0;
        for client in idle {
            let peer = client.peer_addr()?;
            ensure!([to, inner].contains(&peer) && echoed(&client, None)? == peer, "{peer}");
            forgotten += u32::from(peer == inner);
        }
        ensure!(forgotten > 0, "it was not full");
        assert_eq!((used.peer_addr()?, echoed(&used, None)?), (to, to));
        let last = connected()?;
        assert_eq!((last.peer_addr()?, echoed(&last, None)?), (to, to));
        Ok(())
    })?;
    let table = MapData::from_pin(pins(&bed.lab)?.join("maps").join(names::ORIGINALS))?;
    let table = HashMap::<_, OriginalKey, Original>::try_from(Map::LruHashMap(table))?;
    let entries = table.keys().count();
    ensure!(entries <= MAX_ORIGINALS as usize && entries > MAX_ORIGINALS as usize * 9 / 10, "{entries} entries");
    Ok(())
}

#[test]
fn a_published_port_cannot_be_bound() -> Result<()> {
    let bed = published_everywhere(TCP)?;
    let host = bed.at("host");
    host.run(|| {
        for ip in ["0.0.0.0", "127.0.0.1", HOST_IP, "::", "::1"] {
            let error = TcpListener::bind((ip, PORT)).expect_err("a bind of a published port");
            assert!(is_in_use(&error), "{ip}: {error}");
            TcpListener::bind((ip, PORT + 1)).with_context(|| format!("{ip}, another port"))?;
            TcpListener::bind((ip, 0)).with_context(|| format!("{ip}, any port"))?;
            UdpSocket::bind((ip, PORT)).with_context(|| format!("{ip}, another protocol"))?;
        }
        Ok(())
    })?;
    // A range, at one address.
    publish(&bed.lab, 2, UDP, HOST_IP, (9000, 9010), (bed.at("red").v4.into(), 90))?;
    host.run(|| {
        for ip in ["0.0.0.0", "::", HOST_IP] {
            let error = UdpSocket::bind((ip, 9007)).expect_err("a bind of a published port");
            assert!(is_in_use(&error), "{ip}: {error}");
            UdpSocket::bind((ip, 9011))?;
        }
        for ip in ["127.0.0.1", "::1", &host.v4.to_string()] {
            UdpSocket::bind((ip, 9007)).with_context(|| format!("{ip} is another address"))?;
        }
        Ok(())
    })
}

#[test]
fn at_one_address_only_that_one_answers() -> Result<()> {
    let bed = Bed::new(V4, &["red"])?;
    let (red, host) = (bed.at("red"), bed.at("host"));
    greeter(&red.ns, red.v4, INNER)?;
    publish(&bed.lab, 0, TCP, "127.0.0.1", (PORT, PORT), (red.v4.into(), INNER))?;
    host.run(|| {
        greeted("127.0.0.1:8080".parse()?)?;
        for ip in [HOST_IP, "127.0.0.2", &host.v4.to_string()] {
            let outcome = greeted(SocketAddr::new(ip.parse()?, PORT));
            ensure!(outcome.is_err(), "{ip} answered: {outcome:?}");
        }
        Ok(())
    })
}

#[test]
fn sockets_of_other_namespaces_are_left_alone() -> Result<()> {
    let bed = published_everywhere(TCP)?;
    let red = bed.at("red");
    greeter(&red.ns, red.v4, INNER)?;
    // The same addresses and port, in the outside world and in a member: of the same cgroup, but not the host.
    for name in ["wan", "red"] {
        let ns = bed.lab.ns(name)?;
        greeter(&ns, Ipv4Addr::LOCALHOST, PORT).with_context(|| format!("bind in {name}"))?;
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT);
        let seen = ns.run(|| greeted(to))??;
        assert_eq!(seen, (to, Ipv4Addr::LOCALHOST.into()), "in {name}");
    }
    Ok(())
}

/// A socket with an address of its own: another of the host's is kept, loopback cannot be.
#[test]
fn bound_sockets() -> Result<()> {
    let bed = published_everywhere(TCP)?;
    let (red, host) = (bed.at("red"), bed.at("host"));
    greeter(&red.ns, red.v4, INNER)?;
    publish(&bed.lab, 2, UDP, "0.0.0.0", (PORT, PORT), (red.v4.into(), INNER))?;
    host.run(|| {
        let to = SockaddrIn::new(127, 0, 0, 1, PORT);
        let make = || socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
        // With a port it cannot be moved, and the error says what is wrong.
        let client = make()?;
        bind(client.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
        assert_eq!(connect(client.as_raw_fd(), &to), Err(Errno::EADDRNOTAVAIL));
        // Without one (`curl --interface 127.0.0.1`) the kernel chooses again.
        let client = make()?;
        setsockopt(&client, sockopt::IpBindAddressNoPort, &true)?;
        bind(client.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0))?;
        connect(client.as_raw_fd(), &to)?;
        assert_eq!(getpeername::<SockaddrIn>(client.as_raw_fd())?, to);
        let mut seen = String::new();
        TcpStream::from(client).read_to_string(&mut seen)?;
        assert_eq!(seen, host.v4.to_string());
        let error = UdpSocket::bind("127.0.0.1:0")?.send_to(b"hello", "127.0.0.1:8080").expect_err("a martian");
        assert_eq!(error.raw_os_error(), Some(Errno::EADDRNOTAVAIL as i32));
        Ok(())
    })
}

#[test]
fn addresses_that_the_host_gets_later() -> Result<()> {
    let bed = published_everywhere(TCP)?;
    let (red, host) = (bed.at("red"), bed.at("host"));
    greeter(&red.ns, red.v4, INNER)?;
    let netlink = Netlink::inside(&host.ns)?;
    let uplink = netlink.link("uplink")?.context("no uplink")?;
    netlink.add_address(uplink.index, "192.168.7.7/24".parse()?)?;
    bed.lab.nsnet("ns add @green")?;
    let to: SocketAddr = "192.168.7.7:8080".parse()?;
    assert_eq!(host.run(|| greeted(to))?, (to, host.v4.into()));
    netlink.remove_address(uplink.index, "192.168.7.7/24".parse()?)?;
    bed.lab.nsnet("ns del @green")?;
    assert!(host.run(|| greeted(to)).is_err(), "the host has lost the address");
    Ok(())
}

#[test]
fn hooks_that_are_gone_come_back() -> Result<()> {
    let bed = Bed::new(V4, &["red"])?;
    let (lab, red, host) = (&bed.lab, bed.at("red"), bed.at("host"));
    lab.nsnet("publish add @red 8080:80")?;
    greeter(&red.ns, red.v4, INNER)?;
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT);
    let works = || -> Result<bool> {
        let is_refused = host.run(|| Ok(TcpListener::bind(to).is_err_and(|error| is_in_use(&error))))?;
        Ok(is_refused && host.run(|| greeted(to)).is_ok())
    };
    assert!(works()?);
    for pin in ["links/connect4", "links/bind4", "programs/connect4"] {
        std::fs::remove_file(pins(lab)?.join(pin))?;
        // A program without its pin is at its place, but could not be replaced. A link goes some time after its pin.
        if pin.starts_with("links") {
            until(SECOND, || Ok(!works()?)).with_context(|| format!("{pin} is of no use"))?;
        }
        let status = lab.try_nsnet("status")?;
        let said = String::from_utf8_lossy(&status.stdout);
        assert!(status.status.code() == Some(1) && said.contains(&format!("pin {pin} is missing")), "{said}");
        assert!(lab.nsnet("doctor")?.contains(&format!("pin {pin} is missing; `nsnet apply`")), "{pin}");
        lab.nsnet("apply")?;
        assert!(works()?, "{pin} did not come back");
        bed.check_no_drift()?;
    }
    // Where they could not be had, there is nothing to mend until the programs are replaced.
    let root = pins(lab)?;
    std::fs::create_dir(root.join("without_sockets"))?;
    for name in names::SOCKET_PROGRAMS {
        std::fs::remove_file(root.join("links").join(name))?;
        std::fs::remove_file(root.join("programs").join(name))?;
    }
    bed.check_no_drift()?;
    until(SECOND, || Ok(!works()?))?;
    assert!(lab.nsnet("doctor")?.contains("loaded without them"));
    lab.nsnet("upgrade --force")?;
    assert!(works()?);
    bed.check_no_drift()
}

#[test]
fn down_takes_the_hooks_off() -> Result<()> {
    let bed = published_everywhere(TCP)?;
    let folder = pins(&bed.lab)?;
    let mut ids = Vec::new();
    for name in names::SOCKET_PROGRAMS {
        ensure!(folder.join("links").join(name).exists(), "no link {name}");
        // The type of attachment is not asked for.
        let program = CgroupSockAddr::from_pin(folder.join("programs").join(name), CgroupSockAddrAttachType::Bind4)?;
        ids.push(program.info()?.id());
    }
    bed.lab.nsnet("down")?;
    assert!(!folder.exists());
    // Links release their programs in the background.
    let gone = || Ok(!loaded_programs().flatten().any(|program| ids.contains(&program.id())));
    until(10 * SECOND, gone).context("a program is still loaded")?;
    bed.at("host").run(|| Ok(TcpListener::bind(("0.0.0.0", PORT)).map(drop)?))
}

#[test]
fn without_cgroup2_the_network_works() -> Result<()> {
    let mut lab = lab()?;
    lab.treat_as_missing("cgroup");
    let bed = Bed::inside(lab, V4, &["red"])?;
    let (red, host) = (bed.at("red"), bed.at("host"));
    bed.check_no_drift()?;
    // Entered by hand, which `status` calls drift.
    publish(&bed.lab, 0, TCP, "0.0.0.0", (PORT, PORT), (red.v4.into(), INNER))?;
    greeter(&red.ns, red.v4, INNER)?;
    host.run(|| greeted(SocketAddr::new(red.v4.into(), INNER)))?;
    host.run(|| Ok(TcpListener::bind(("127.0.0.1", PORT))?))?;
    let checks = bed.lab.json("doctor")?;
    let Some(check) = checks.as_array().and_then(|all| all.iter().find(|row| row["check"] == "cgroup hooks")) else {
        bail!("doctor does not tell of it: {checks}");
    };
    assert_eq!(check["finding"], "fallback");
    Ok(())
}
