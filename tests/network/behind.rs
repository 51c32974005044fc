//! What somebody changes behind our back: it is told, put right, and in nobody's way when it is taken down.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nsnet::kernel::named;
use nsnet::kernel::netlink::Netlink;
use nsnet::lab::Lab;
use serde_json::json;

use super::bed::lab;
use super::cut_off::{ATTACH, NETWORK, host, red_is_attached};
use super::world::World;

/// Red's interface, and its end in the host.
struct Port {
    inner: String,
    outer: String,
}

/// Runs `ip` of iproute2; `@red` stands for the lab's namespace red.
fn ip(lab: &Lab, line: &str) -> Result<()> {
    let words = line.split(' ').map(|word| word.strip_prefix('@').map_or(word.to_owned(), |name| lab.name(name)));
    let output = Command::new("ip").args(words).output().context("this test needs `ip` of iproute2")?;
    ensure!(output.status.success(), "`ip {line}`: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

type Damage = (&'static str, fn(&Lab, &Port) -> Result<()>);

/// Each concerns red's port.
const DAMAGES: [Damage; 12] = [
    ("inner renamed", |lab, port| ip(lab, &format!("-n @red link set {} name eth9", port.inner))),
    ("inner moved", |lab, port| ip(lab, &format!("-n @red link set {} netns @blue", port.inner))),
    ("inner down", |lab, port| ip(lab, &format!("-n @red link set {} down", port.inner))),
    ("inner MTU", |lab, port| ip(lab, &format!("-n @red link set {} mtu 1280", port.inner))),
    ("inner deleted", |lab, port| ip(lab, &format!("-n @red link del {}", port.inner))),
    ("outer renamed", |lab, port| ip(lab, &format!("-n @host link set {} name eth9", port.outer))),
    ("outer moved", |lab, port| ip(lab, &format!("-n @host link set {} netns @blue", port.outer))),
    ("outer down", |lab, port| ip(lab, &format!("-n @host link set {} down", port.outer))),
    ("outer MTU", |lab, port| ip(lab, &format!("-n @host link set {} mtu 1280", port.outer))),
    ("network renamed", |lab, _port| {
        ip(lab, "-n @host link set v-net-0 down")?;
        ip(lab, "-n @host link set v-net-0 name eth9")
    }),
    ("network deleted", |lab, _port| ip(lab, "-n @host link del v-net-0")),
    ("network's end deleted", |lab, _port| ip(lab, "-n @host link del v-net-0-end")),
];

const AGAIN: [&str; 2] = [NETWORK, ATTACH];

fn drift(lab: &Lab) -> Result<serde_json::Value> {
    let output = lab.try_nsnet("-o json status")?;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(output.status.success() == (status["drift"] == json!([])), "{output:?}");
    Ok(status["drift"].clone())
}

fn attached(lab: &Lab) -> Result<Port> {
    lab.nsnet(NETWORK)?;
    let port = lab.json(ATTACH)?;
    let name = |column: &str| port[column].as_str().map(str::to_owned).context("no such column");
    Ok(Port { inner: name("ifname")?, outer: name("host_ifname")? })
}

#[test]
fn a_port_that_was_changed_is_told_and_put_right_by_saying_it_again() -> Result<()> {
    let lab = host()?;
    let port = attached(&lab)?;
    for (what, damage) in DAMAGES {
        damage(&lab, &port)?;
        ensure!(drift(&lab)? != json!([]), "{what}: nothing is told");
        for line in AGAIN {
            lab.nsnet(line).with_context(|| what.to_owned())?;
        }
        ensure!(drift(&lab)? == json!([]), "{what}: {}", drift(&lab)?);
        red_is_attached(&lab).with_context(|| what.to_owned())?;
    }
    Ok(())
}

#[test]
fn a_port_that_was_changed_can_be_taken_away() -> Result<()> {
    let lab = host()?;
    lab.nsnet(NETWORK)?;
    let without = World::of(&lab)?;
    for (what, damage) in DAMAGES {
        let port = attached(&lab)?;
        damage(&lab, &port)?;
        lab.nsnet("detach v-net-0 @red").with_context(|| what.to_owned())?;
        lab.nsnet(NETWORK).with_context(|| what.to_owned())?;
        World::of(&lab)?
            .shape()
            .check_similar(&without.clone().shape())
            .with_context(|| format!("{what}, detached"))?;
    }
    for (what, damage) in DAMAGES {
        let port = attached(&lab)?;
        damage(&lab, &port)?;
        lab.nsnet("ns del @red --force").with_context(|| what.to_owned())?;
        lab.nsnet("ns add @red")?;
        lab.nsnet(NETWORK).with_context(|| what.to_owned())?;
        World::of(&lab)?.shape().check_similar(&without.clone().shape()).with_context(|| format!("{what}, deleted"))?;
    }
    Ok(())
}

#[test]
fn everything_that_was_changed_can_be_taken_down() -> Result<()> {
    let lab = lab()?;
    let before = World::of(&lab)?;
    for (what, damage) in DAMAGES {
        lab.nsnet("ns add @red @blue")?;
        let port = attached(&lab)?;
        damage(&lab, &port)?;
        lab.nsnet("down").with_context(|| what.to_owned())?;
        World::of(&lab)?.check_similar(&before).with_context(|| what.to_owned())?;
    }
    Ok(())
}

#[test]
fn an_uplink_that_was_deleted_or_replaced() -> Result<()> {
    for end in ["detach v-net-0 @red", "ns del @red --force", "network del v-net-0 --force", "down"] {
        let lab = host()?;
        attached(&lab)?;
        ip(&lab, "-n @host link del uplink")?;
        ensure!(drift(&lab)? != json!([]), "nothing is told of an uplink that is gone");
        // What does not need it goes on, and what was said can be said again.
        lab.nsnet("attach v-net-0 @blue")?;
        lab.nsnet(NETWORK)?;
        ensure!(drift(&lab)? == json!([]), "{}", drift(&lab)?);
        // Another one of its name comes: it is taken for the way out.
        ip(&lab, "-n @host link add uplink type veth peer name uplink netns @wan")?;
        for (ns, v4, v6) in [("host", "192.168.1.1/24", "fd01::1/64"), ("wan", "192.168.1.3/24", "fd01::3/64")] {
            for address in [v4, v6] {
                let nodad = if address == v6 { " nodad" } else { "" };
                ip(&lab, &format!("-n @{ns} addr add {address} dev uplink{nodad}"))?;
            }
            ip(&lab, &format!("-n @{ns} link set uplink up"))?;
        }
        lab.nsnet(NETWORK)?;
        ensure!(drift(&lab)? == json!([]), "{}", drift(&lab)?);
        red_is_attached(&lab)?;
        ip(&lab, "-n @host link del uplink")?;
        lab.nsnet(end).with_context(|| format!("`{end}` without an uplink"))?;
        lab.nsnet("down")?;
        let left = World::of(&lab)?;
        ensure!(left.pins.is_empty() && left.file.is_none() && left.files.is_empty(), "after `{end}`: {left:?}");
    }
    Ok(())
}

#[test]
fn a_namespace_that_was_deleted_or_is_another_now() -> Result<()> {
    for end in ["detach v-net-0 @red", "ns del @red --force", "network del v-net-0 --force", "down"] {
        for is_another in [false, true] {
            let lab = host()?;
            let before = World::of(&lab)?;
            attached(&lab)?;
            let red = lab.name("red");
            named::delete(&red)?;
            if is_another {
                named::create(&red)?;
            }
            ensure!(drift(&lab)? != json!([]), "nothing is told");
            lab.nsnet(end).with_context(|| format!("`{end}`, another: {is_another}"))?;
            lab.nsnet("down")?;
            let left = World::of(&lab)?;
            ensure!(left.pins.is_empty() && left.file.is_none() && left.maps.is_empty(), "after `{end}`: {left:?}");
            ensure!(left.reserved == before.reserved, "reserved: {}", left.reserved);
            let links = Netlink::inside(&lab.ns("host")?)?.links()?;
            ensure!(links.len() == 2, "loopback and uplink: {links:?}");
        }
    }
    Ok(())
}
