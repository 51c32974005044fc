//! The files in examples/: each is applied, used, and taken down.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nsnet::kernel::features::Features;
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::route::Route;
use nsnet::lab::{HOST_IP, Lab, TcpServer, WAN_IP, ping, tcp};
use nsnet::model::declaration::Declaration;

use super::bed::lab;
use super::file::apply;
use super::world::World;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

/// An example, with its namespaces' names marked as the lab's.
fn example(name: &str) -> Result<String> {
    let path = folder().join(name);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let lines: Vec<&str> = text.lines().collect();
    let declared = lines.windows(2).filter(|pair| pair[0] == "[[ns]]");
    let names: Vec<&str> = declared.filter_map(|pair| pair[1].strip_prefix("name = ")).collect();
    ensure!(!names.is_empty(), "{name} has no namespaces");
    Ok(names.iter().fold(text.clone(), |text, name| text.replace(name, &name.replacen('"', "\"@", 1))))
}

/// Applies an example twice, uses it, and takes it down.
fn try_out(name: &str, prepare: impl FnOnce(&Lab) -> Result<()>, works: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let lab = lab()?;
    prepare(&lab)?;
    let before = World::of(&lab)?;
    apply(&lab, &example(name)?)?;
    works(&lab).with_context(|| name.to_owned())?;
    lab.nsnet("down")?;
    assert_eq!(World::of(&lab)?, before, "{name} left something");
    Ok(())
}

fn nothing(_: &Lab) -> Result<()> {
    Ok(())
}

fn reaches(lab: &Lab, from: &str, to: &str) -> Result<()> {
    let to: IpAddr = to.parse()?;
    let is_reached = lab.within(from, || ping::answers(to, 3, Duration::from_secs(1)))??;
    ensure!(is_reached, "{from} does not reach {to}");
    Ok(())
}

/// Starts a server that says its name.
fn serve(lab: &Lab, name: &str, port: u16) -> Result<TcpServer> {
    let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
    lab.within(name, || TcpServer::banner(any, name))?
}

/// Who answers.
fn asked(lab: &Lab, from: &str, to: &str) -> Result<String> {
    let to: SocketAddr = to.parse()?;
    lab.within(from, || tcp::fetch(to))?
}

#[test]
fn cable() -> Result<()> {
    try_out("1-cable.toml", nothing, |lab| {
        reaches(lab, "red", "192.168.15.2")?;
        reaches(lab, "blue", "192.168.15.1")
    })
}

#[test]
fn switch() -> Result<()> {
    try_out("2-switch.toml", nothing, |lab| {
        let colours = ["red", "blue", "orange", "purple"];
        for from in colours {
            for last in 1..=4 {
                reaches(lab, from, &format!("192.168.15.{last}"))?;
            }
        }
        Ok(())
    })
}

#[test]
fn host() -> Result<()> {
    try_out("3-host.toml", nothing, |lab| {
        reaches(lab, "host", "192.168.15.1")?;
        reaches(lab, "host", "192.168.15.2")?;
        reaches(lab, "red", "192.168.15.5")
    })
}

#[test]
fn outside_by_route() -> Result<()> {
    try_out("4-outside-by-route.toml", nothing, |lab| {
        reaches(lab, "blue", WAN_IP)?;
        let server = serve(lab, "wan", 7000)?;
        asked(lab, "blue", &format!("{WAN_IP}:7000"))?;
        let seen: Vec<String> = server.peers().iter().map(|peer| peer.ip().to_string()).collect();
        ensure!(seen == [HOST_IP], "it was seen as {seen:?}");
        Ok(())
    })
}

/// Beyond the host's wire, by the host's default route.
fn give_the_host_an_internet(lab: &Lab) -> Result<()> {
    let host = Netlink::inside(&lab.ns("host")?)?;
    host.add_route(&Route { dest: "0.0.0.0/0".parse()?, via: Some(WAN_IP.parse()?), index: None })?;
    let wan = Netlink::inside(&lab.ns("wan")?)?;
    wan.add_address(wan.existing_link("lo")?.index, "203.0.113.7/32".parse()?)?;
    Ok(())
}

#[test]
fn internet() -> Result<()> {
    try_out("5-internet.toml", give_the_host_an_internet, |lab| reaches(lab, "blue", "203.0.113.7"))
}

#[test]
fn publish() -> Result<()> {
    try_out("6-publish.toml", nothing, |lab| {
        let _server = serve(lab, "blue", 80)?;
        assert_eq!(asked(lab, "wan", &format!("{HOST_IP}:80"))?, "blue");
        // Its own address is not reached, even by who has a route to it.
        let wan = Netlink::inside(&lab.ns("wan")?)?;
        let route = Route { dest: "192.168.15.0/24".parse()?, via: Some(HOST_IP.parse()?), index: None };
        wan.add_route(&route)?;
        ensure!(asked(lab, "wan", "192.168.15.2:80").is_err(), "192.168.15.2 is reached from outside");
        wan.remove_route(&route)?;
        Ok(())
    })
}

#[test]
fn two_servers() -> Result<()> {
    try_out("7-two-servers.toml", nothing, |lab| {
        let _servers = [serve(lab, "red", 8080)?, serve(lab, "blue", 8080)?];
        for (to, name) in [("192.168.15.1:8080", "red"), ("192.168.15.2:8080", "blue")] {
            assert_eq!(asked(lab, "host", to)?, name);
        }
        for (port, name) in [(8081, "red"), (8082, "blue")] {
            assert_eq!(asked(lab, "wan", &format!("{HOST_IP}:{port}"))?, name);
        }
        Ok(())
    })
}

#[test]
fn a_whole_host() -> Result<()> {
    try_out("host.toml", give_the_host_an_internet, |lab| {
        let _servers = [
            serve(lab, "proxy", 8080)?,
            serve(lab, "proxy", 8443)?,
            serve(lab, "app1", 8000)?,
            serve(lab, "db", 5432)?,
        ];
        // From outside to the proxy, from there to an application, from there to the database.
        assert_eq!(asked(lab, "wan", &format!("{HOST_IP}:80"))?, "proxy");
        assert_eq!(asked(lab, "wan", &format!("{HOST_IP}:443"))?, "proxy");
        assert_eq!(asked(lab, "proxy", "10.20.0.11:8000")?, "app1");
        assert_eq!(asked(lab, "app2", "10.30.0.10:5432")?, "db");
        reaches(lab, "app1", "10.50.0.2")?;
        // Out: those in front and the job, not the database. Others' networks are out of reach.
        for from in ["proxy", "app2", "batch"] {
            reaches(lab, from, "203.0.113.7")?;
        }
        ensure!(asked(lab, "batch", "10.20.0.11:8000").is_err(), "batch reaches app1");
        ensure!(asked(lab, "proxy", "10.30.0.10:5432").is_err(), "the proxy reaches the database");
        ensure!(reaches(lab, "db", "203.0.113.7").is_err(), "the database reaches the outside");
        // The proxy's statistics are the host's alone.
        let _statistics = serve(lab, "proxy", 9090)?;
        if Features::probe().cgroup {
            assert_eq!(asked(lab, "host", "127.0.0.1:9090")?, "proxy");
        } else {
            println!("not tried, as there is no cgroup2: 127.0.0.1:9090");
        }
        ensure!(asked(lab, "wan", &format!("{HOST_IP}:9090")).is_err(), "the outside reaches what is the host's alone");
        Ok(())
    })
}

/// Every example is one of the above, and the schema in docs/ is the one that is printed.
#[test]
fn what_is_shipped_is_current() -> Result<()> {
    let mut names: Vec<String> = Vec::new();
    for entry in fs::read_dir(folder())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let numbered =
        ["1-cable", "2-switch", "3-host", "4-outside-by-route", "5-internet", "6-publish", "7-two-servers", "host"];
    assert_eq!(names, numbered.map(|name| format!("{name}.toml")), "an example without a test, or the other way round");
    for name in names {
        Declaration::read(&fs::read_to_string(folder().join(&name))?).with_context(|| name)?;
    }
    let printed = lab()?.nsnet("schema")?;
    let shipped = fs::read_to_string(folder().join("../docs/schema.json"))?;
    ensure!(
        printed == shipped,
        "docs/schema.json is not what `nsnet schema` prints: `nsnet schema > docs/schema.json`"
    );
    Ok(())
}
