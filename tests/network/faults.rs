//! What stands in the way, and what was changed behind our back.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use nsnet::kernel::named;
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::veth::VethSpec;

use super::bed::{Bed, DUAL, NETWORK, Scratch, Station, lab};
use super::traffic::{Amount, exchange};
use super::world::{World, refused};

#[test]
fn a_verb_that_cannot_be_done_changes_nothing() -> Result<()> {
    let mut lab = lab()?;
    lab.nsnet("ns add @red")?;
    lab.nsnet("network add v-net-0 --subnet 192.168.15.0/24")?;
    let (host, red) = (lab.ns("host")?, lab.ns("red")?);
    let taken = |name| VethSpec { name, ..VethSpec::default() };
    // Interfaces of others stand where ours should go.
    let inside = Netlink::inside(&red)?.create_veth(&taken("eth0"), &taken("other"), None)?;
    assert!(refused(&lab, "attach v-net-0 @red --ifname eth0")?.contains("eth0"));
    let wanted = lab.json("attach v-net-0 @red")?;
    let outer = wanted["host_ifname"].as_str().context("no host_ifname")?.to_owned();
    lab.nsnet("detach v-net-0 @red")?;
    let outside = Netlink::inside(&host)?;
    let link = outside.create_veth(&taken(&outer), &taken("other"), None)?;
    assert!(refused(&lab, "attach v-net-0 @red")?.contains(&outer));
    assert!(refused(&lab, "network add uplink --subnet 10.1.0.0/24")?.contains("uplink"));
    assert!(refused(&lab, "network add other --subnet 10.1.0.0/24")?.contains("other"));
    outside.delete_link(link.index)?;
    outside.create_veth(&taken("n1-end"), &taken("other"), None)?;
    assert!(refused(&lab, "network add n1 --subnet 10.1.0.0/24")?.contains("n1-end"));
    // What the host reaches otherwise.
    for subnet in ["192.168.1.0/24", "192.168.0.0/16", "192.168.1.1/32", "192.168.1.0/30"] {
        refused(&lab, &format!("network add n2 --subnet {subnet}"))?;
    }
    // A cable's end.
    lab.make("blue")?;
    let end = format!("veth-{}", lab.name("red"));
    Netlink::inside(&red)?.create_veth(&taken(&end), &taken("third"), None)?;
    assert!(refused(&lab, "cable add @red @blue")?.contains(&end));
    Netlink::inside(&red)?.delete_link(inside.index)?;
    lab.nsnet("attach v-net-0 @red --ifname eth0")?;
    assert_eq!(lab.json("status")?["drift"], serde_json::json!([]));
    Ok(())
}

#[test]
fn what_is_no_namespace_is_refused() -> Result<()> {
    let lab = lab()?;
    lab.nsnet("network add v-net-0 --subnet 192.168.15.0/24")?;
    let names = Path::new("/run/netns");
    let (file, link) = (Scratch(names.join(lab.name("file"))), Scratch(names.join(lab.name("link"))));
    fs::write(&file.0, "not ours")?;
    std::os::unix::fs::symlink(names.join(lab.name("wan")), &link.0)?;
    for line in ["ns add @file", "attach v-net-0 @file", "ns add @link", "attach v-net-0 @link"] {
        let complaint = refused(&lab, line)?;
        let name = lab.name(if line.ends_with("file") { "file" } else { "link" });
        assert!(complaint.contains(&name), "`{line}`: {complaint}");
    }
    lab.nsnet("ns del @file")?;
    assert_eq!(fs::read_to_string(&file.0)?, "not ours", "a foreign file was deleted");
    Ok(())
}

#[test]
fn a_namespace_deleted_behind_our_back() -> Result<()> {
    for remedy in ["ns del @red --force", "detach v-net-0 @red", "down"] {
        let bed = Bed::new(DUAL, &["red", "blue"])?;
        bed.lab.nsnet("cable add @red @blue")?;
        bed.lab.nsnet("route add @red default")?;
        let red = bed.lab.name("red");
        named::delete(&red)?;
        let output = bed.lab.try_nsnet("status")?;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(&red), "{output:?}");
        // blue is not concerned.
        assert!(bed.at("blue").reaches(bed.at("host").v4.into())?);
        bed.lab.nsnet(remedy)?;
        if remedy.starts_with("ns del") {
            bed.check_no_drift()?;
        }
        bed.lab.nsnet("down")?;
        let left = World::of(&bed.lab)?;
        assert_eq!((left.pins, left.file), (Vec::new(), None), "after `{remedy}` and `down`");
    }
    Ok(())
}

#[test]
fn drift_is_seen_and_repaired() -> Result<()> {
    let bed = Bed::new(DUAL, &["red", "blue"])?;
    let (red, host) = (bed.at("red"), bed.at("host"));
    let netlink = Netlink::inside(&red.ns)?;
    let again = ["attach v-net-0 @red", "network add v-net-0 --subnet 192.168.15.0/24 fd15::/64"];
    let delete = |station: &Station, name: &str| -> Result<()> {
        let netlink = Netlink::inside(&station.ns)?;
        let link = netlink.link(name)?.context("it is gone already")?;
        Ok(netlink.delete_link(link.index).map(drop)?)
    };
    let damages: [(&str, &dyn Fn() -> Result<()>); 5] = [
        ("an MTU", &|| red.set_mtu(1000)),
        ("an address", &|| {
            let link = netlink.link(&red.ifname)?.context("no interface")?;
            Ok(netlink.remove_address(link.index, format!("{}/24", red.v4).parse()?).map(drop)?)
        }),
        ("the interface in the namespace", &|| delete(red, &red.ifname)),
        ("the interface in the host", &|| delete(host, &red.port)),
        ("the network's interface", &|| delete(host, NETWORK)),
    ];
    for (what, damage) in damages {
        damage()?;
        assert_eq!(bed.lab.try_nsnet("status")?.status.code(), Some(1), "{what}: not seen");
        for line in again {
            bed.lab.nsnet(line).with_context(|| what.to_owned())?;
        }
        bed.check_no_drift().with_context(|| what.to_owned())?;
        exchange(&bed, "red", "blue", Amount::Little)?;
        exchange(&bed, "red", "host", Amount::Little)?;
    }
    Ok(())
}
