//! What somebody else breaks: repaired by the agent, or only reported.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use nsnet::kernel::named;
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::store::{BPFFS, RUN};
use nsnet_common::layout::{AddressKey, LAYOUT_VERSION, NetworkId, PortId, names};
use nsnet_common::wire::IpAddress;
use serde_json::json;

use super::agent_bed::{Agent, PATIENCE};
use super::bed::{Bed, V4, until};
use super::outside_bed::{Outside, far};
use super::world::World;

const SECOND: Duration = Duration::from_secs(1);

/// The host's pins.
pub(crate) fn pins(bed: &Bed) -> Result<PathBuf> {
    let key = bed.lab.ns("host")?.cookie()?;
    Ok(Path::new(BPFFS).join(format!("{key:x}_v{LAYOUT_VERSION}")))
}

/// Whatever of nsnet's own is broken is repaired within a second or, where no event tells of it, the interval.
#[test]
fn it_is_repaired() -> Result<()> {
    let bed = Outside::new()?;
    bed.lab.nsnet("publish add @c1 8080:80")?;
    let agent = Agent::start(&bed.lab, "--interval 1")?;
    // Two, because what is broken again and again is left alone for a while.
    let (c1, c2) = (bed.at("c1"), bed.at("c2"));
    let whole = World::of(&bed.lab)?;
    let (inside, of_host) = (Netlink::inside(&c1.ns)?, Netlink::inside(&bed.lab.ns("host")?)?);
    let link = || Ok::<_, anyhow::Error>(inside.existing_link(&c1.ifname)?.index);
    let owner = || -> Result<()> {
        let data = MapData::from_pin(pins(&bed)?.join("maps").join(names::ADDRESSES))?;
        let mut owners = HashMap::<_, AddressKey, PortId>::try_from(Map::HashMap(data))?;
        Ok(owners.remove(&AddressKey { network: NetworkId(1), ip: IpAddress::from(std::net::IpAddr::V4(c1.v4)) })?)
    };
    let breaks: [(&str, &dyn Fn() -> Result<()>); 9] = [
        ("an address is removed", &|| Ok(inside.remove_address(link()?, "192.168.15.1/24".parse()?).map(drop)?)),
        ("an interface is down", &|| bed.ip("c2", &format!("link set {} down", c2.ifname))),
        ("a default route is removed", &|| bed.ip("c1", "route del default")),
        ("an MTU is another", &|| c2.set_mtu(1400)),
        ("an interface is deleted", &|| Ok(inside.delete_link(link()?).map(drop)?)),
        ("the network's interface is deleted", &|| {
            Ok(of_host.delete_link(of_host.existing_link("v-net-0")?.index).map(drop)?)
        }),
        ("an entry of the dataplane is removed", &owner),
        ("a hook at the host's sockets is taken off", &|| Ok(fs::remove_file(pins(&bed)?.join("links/connect4"))?)),
        ("a program is taken off", &|| {
            let port = of_host.existing_link(&c2.port)?.index;
            Ok(fs::remove_file(pins(&bed)?.join("links").join(PortId::from_ifindex(port).0.to_string()))?)
        }),
    ];
    for (what, break_it) in breaks {
        agent.wait_for_health().context(what)?;
        break_it().context(what)?;
        let began = Instant::now();
        until(3 * PATIENCE, || Ok(bed.check_no_drift().is_ok() && c1.reaches(far(false))? && c2.reaches(far(true))?))
            .with_context(|| format!("{what}: {:?}; the agent said {}", bed.check_no_drift(), agent.said()))?;
        eprintln!("{what}: repaired after {:?}", began.elapsed());
    }
    let again = World::of(&bed.lab)?;
    assert_eq!(again.pins, whole.pins);
    assert!(agent.figures()?.value("nsnet_agent_repairs_total", &[("outcome", "done")])? >= 9.0);
    Ok(())
}

/// With `--on-drift report` nothing is touched, and everybody is told.
#[test]
fn it_is_reported() -> Result<()> {
    let bed = Bed::new(V4, &["red"])?;
    let agent = Agent::start(&bed.lab, "--on-drift report --interval 1")?;
    assert!(agent.health()?.0);
    assert_eq!(agent.figures()?.value("nsnet_drift", &[])?, 0.0);
    let red = bed.at("red");
    let netlink = Netlink::inside(&red.ns)?;
    netlink.remove_address(netlink.existing_link(&red.ifname)?.index, "192.168.15.1/24".parse()?)?;
    let broken = World::of(&bed.lab)?;
    agent.wait_for_reason("192.168.15.1/24 is missing")?;
    let figures = agent.figures()?;
    assert_eq!((figures.value("nsnet_drift", &[])?, figures.value("nsnet_healthy", &[])?), (1.0, 0.0));
    std::thread::sleep(3 * SECOND);
    assert_eq!(World::of(&bed.lab)?, broken, "it was to report, and changed something");
    assert_eq!(agent.figures()?.value("nsnet_agent_repairs_total", &[("outcome", "done")])?, 0.0);
    // A verb repairs it, and the agent sees that.
    bed.lab.nsnet("attach v-net-0 @red")?;
    agent.wait_for_health()?;
    agent.wait_for_word("all is as it should be")
}

/// A namespace that is gone is not made anew: its processes would not come back, and nobody would know.
#[test]
fn what_is_not_ours_is_left() -> Result<()> {
    let bed = Bed::new(V4, &["red", "blue"])?;
    let agent = Agent::start(&bed.lab, "--interval 1")?;
    let red = bed.at("red").ns.name().to_owned();
    named::delete(&red)?;
    agent.wait_for_reason(&format!("namespace {red}"))?;
    std::thread::sleep(2 * SECOND);
    ensure!(!named::list()?.contains(&red), "the agent made namespace {red}");
    assert!(bed.at("host").reaches(bed.at("blue").v4.into())?);
    bed.lab.nsnet("ns del --force @red")?;
    agent.wait_for_health()?;
    Ok(())
}

/// Whoever breaks the same thing again and again means it, perhaps: repairs of it become rare.
#[test]
fn a_dispute_is_not_a_loop() -> Result<()> {
    let bed = Bed::new(V4, &["red"])?;
    let agent = Agent::start(&bed.lab, "--interval 1")?;
    let red = bed.at("red");
    let netlink = Netlink::inside(&red.ns)?;
    let (link, address) = (netlink.existing_link(&red.ifname)?.index, "192.168.15.1/24".parse()?);
    let (began, before) = (Instant::now(), agent.processor_seconds()?);
    let mut repaired = 0;
    while began.elapsed() < 10 * SECOND {
        repaired += u32::from(netlink.remove_address(link, address)?);
        std::thread::sleep(SECOND / 20);
    }
    // At once, and after 1, 2 and 4 seconds more.
    ensure!((3..=5).contains(&repaired), "repaired {repaired} times in {:?}", began.elapsed());
    // A tenth of the time for comparing, and a little for all else.
    let busy = agent.processor_seconds()? - before;
    ensure!(busy < 2.5, "the processor was busy with it for {busy} s of 10");
    Ok(())
}

/// A verb that was killed half way is taken back, as the next verb would do it.
#[test]
fn a_verb_that_was_cut_off() -> Result<()> {
    let bed = Bed::new(V4, &["red"])?;
    let key = bed.lab.ns("host")?.cookie()?;
    let file = Path::new(RUN).join(format!("{key:x}.json"));
    let whole = fs::read_to_string(&file)?;
    let half = bed.lab.name("half");
    let cut_off = || -> Result<()> {
        named::create(&half)?;
        let mut record: serde_json::Value = serde_json::from_str(&whole)?;
        record["under_way"] = json!([{ "AddNamespace": half }]);
        let draft = file.with_extension("test");
        fs::write(&draft, serde_json::to_string(&record)?)?;
        Ok(fs::rename(draft, &file)?)
    };
    let mut agent = Agent::start(&bed.lab, "--interval 1 --on-drift report")?;
    cut_off()?;
    agent.wait_for_reason("a verb was cut off")?;
    assert!(named::list()?.contains(&half));
    agent.end_by(nix::sys::signal::Signal::SIGTERM)?;
    let agent = Agent::start(&bed.lab, "--interval 1")?;
    agent.wait_for_word("repaired what a verb did that was cut off")?;
    agent.wait_for_health()?;
    assert!(!named::list()?.contains(&half));
    assert_eq!(fs::read_to_string(&file)?, whole);
    Ok(())
}
