//! The way out, from the control plane's side: what is put where, what the dataplane is told, and that all of it goes
//! again while what belongs to others stays.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use aya::programs::tc::{NlOptions, TcAttachOptions, qdisc_add_clsact};
use aya::programs::{SchedClassifier, TcAttachType};
use nsnet::kernel::dataplane::{Dataplane, open_object, program_in};
use nsnet::kernel::features::Features;
use nsnet::kernel::maps::Maps;
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::store::BPFFS;
use nsnet::kernel::sysctl;
use nsnet::kernel::veth::VethSpec;
use nsnet::lab::{HOST_IP, Lab};
use nsnet_common::layout::{LAYOUT_VERSION, NetworkId, Policy, PortId, names, policy_flags};
use serde_json::Value;

use super::bed::{Bed, DUAL, NETWORK, V4, lab, text};
use super::foreign;
use super::object::pins;
use super::races::killed;
use super::world::{World, complaint, refused};

const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
/// The lab's interface to the outside.
const UPLINK: &str = "uplink";
/// What stands for somebody else's program.
const FOREIGN: &str = names::FROM_HOST;

/// The programs on the uplink, as the kernel tells them, by tcx.
fn on_uplink(lab: &Lab) -> Result<Vec<String>> {
    let query = || -> Result<_> {
        let (_revision, programs) = SchedClassifier::query_tcx(UPLINK, TcAttachType::Ingress)?;
        Ok(programs.iter().filter_map(|program| program.name_as_str().map(str::to_owned)).collect())
    };
    lab.within("host", query)?
}

/// The same for filters.
fn filters(lab: &Lab) -> Result<Vec<String>> {
    let netlink = Netlink::inside(&lab.ns("host")?)?;
    let index = netlink.existing_link(UPLINK)?.index;
    Ok(netlink.bpf_filters(index)?.into_iter().map(|filter| filter.name).collect())
}

fn has_clsact(lab: &Lab) -> Result<bool> {
    let netlink = Netlink::inside(&lab.ns("host")?)?;
    Ok(netlink.interfaces_with_clsact()?.contains(&netlink.existing_link(UPLINK)?.index))
}

fn maps(lab: &Lab) -> Result<Maps> {
    let key = format!("{:x}", lab.ns("host")?.cookie()?);
    Ok(Maps::of(&Dataplane::at(Path::new(BPFFS), &key)))
}

fn setting(lab: &Lab, key: &str) -> Result<String> {
    lab.within("host", || sysctl::read(key))??.with_context(|| format!("no setting {key}"))
}

fn set(lab: &Lab, key: &str, value: &str) -> Result<()> {
    ensure!(lab.within("host", || sysctl::write(key, value))??, "no setting {key}");
    Ok(())
}

/// What `status` finds: "object: drift".
fn drift(lab: &Lab) -> Result<Vec<String>> {
    let output = lab.try_nsnet("-o json status")?;
    let status: Value = serde_json::from_slice(&output.stdout)?;
    let rows = status["drift"].as_array().context("no drift")?;
    rows.iter().map(|row| Ok(format!("{}: {}", text(&row["object"])?, text(&row["drift"])?))).collect()
}

#[test]
fn the_program_comes_and_goes_with_the_last_network() -> Result<()> {
    let lab = lab()?;
    let empty = World::of(&lab)?;
    lab.nsnet("network add n1 --subnet 10.1.0.0/24 --internal")?;
    assert_eq!(on_uplink(&lab)?, Vec::<String>::new(), "an internal network has no uplink");
    lab.nsnet("network add n2 --subnet 10.2.0.0/24")?;
    assert_eq!(on_uplink(&lab)?, [names::FROM_UPLINK]);
    let netlink = Netlink::inside(&lab.ns("host")?)?;
    let link = netlink.existing_link(UPLINK)?;
    let id = maps(&lab)?.uplink(link.index)?.context("not in UPLINKS")?;
    let port = maps(&lab)?.port(id)?.context("not in PORTS")?;
    assert!(port.is_uplink() && port.ifindex() == link.index && port.network() == NetworkId::OUTSIDE);
    assert_eq!((Some(port.mac().0), port.mtu()), (link.mac, link.mtu));
    assert_eq!(std::net::Ipv4Addr::from(port.ipv4()).to_string(), HOST_IP);
    // It is a row of `stats`, and no port is given its number.
    let stats = lab.json("stats")?;
    let row = stats.as_array().context("no array")?.iter().find(|row| row["port"] == UPLINK);
    let row = row.context("not in stats")?;
    assert!(row["network"].is_null() && row["ns"].is_null() && row["passed"].is_u64(), "{row}");
    lab.nsnet("network add n3 --subnet 10.3.0.0/24 --masquerade")?;
    assert_eq!(maps(&lab)?.uplink(link.index)?, Some(id));
    assert_eq!(lab.json("status")?["drift"], serde_json::json!([]));

    lab.nsnet("network del n2")?;
    assert_eq!(on_uplink(&lab)?, [names::FROM_UPLINK]);
    lab.nsnet("network del n3")?;
    assert_eq!(on_uplink(&lab)?, Vec::<String>::new());
    assert_eq!((maps(&lab)?.uplink(link.index)?, maps(&lab)?.port(id)?), (None, None));
    lab.nsnet("down")?;
    assert_eq!(World::of(&lab)?, empty);
    Ok(())
}

#[test]
fn what_the_dataplane_is_told() -> Result<()> {
    let bed = Bed::new(DUAL, &["red"])?;
    let state = bed.lab.json("status")?;
    assert_eq!(state["uplinks"], 1);
    let (id, gateway) = (NetworkId(1), PortId(1));
    let policy = || maps(&bed.lab)?.policy(id).map_err(anyhow::Error::from);
    assert_eq!(policy()?, Policy { gateway, ..Policy::DEFAULT });
    let before = World::of(&bed.lab)?;
    // Other networks are not concerned, and nothing is made anew.
    for _ in 0..2 {
        let answer = bed.lab.json("masquerade on v-net-0")?;
        assert_eq!(answer["masquerade"], true);
        assert_eq!(policy()?, Policy { gateway, flags: policy_flags::MASQUERADE, ..Policy::DEFAULT });
    }
    bed.lab.nsnet(&format!("network add {NETWORK} {DUAL} --masquerade"))?;
    bed.check_no_drift()?;
    bed.lab.nsnet("masquerade off v-net-0")?;
    assert_eq!(policy()?, Policy { gateway, ..Policy::DEFAULT });
    let red = bed.lab.name("red");
    for family in ["0.0.0.0/0", "::/0"] {
        bed.lab.nsnet(&format!("route del {red} {family}"))?;
    }
    assert_eq!(World::of(&bed.lab)?.pins, before.pins);
    bed.check_no_drift()?;

    bed.lab.nsnet(
        "network add n2 --subnet 10.2.0.0/24 --uplink uplink --isolate false --filtering eif --snat-ports 2000-2999 \
         --snat-source 192.168.1.1 --timeout udp=150 dns=9 --flows-per-ns 7 --ports-per-ns 8",
    )?;
    let told = maps(&bed.lab)?.policy(NetworkId(2))?;
    let index = Netlink::inside(&bed.lab.ns("host")?)?.existing_link(UPLINK)?.index;
    assert_eq!((told.flags, told.uplink), (policy_flags::OPEN | policy_flags::FILTER_NOTHING, index));
    assert_eq!((told.first_port, told.last_port, told.udp, told.dns), (2000, 2999, 150, 9));
    assert_eq!((told.flows_per_ns, told.ports_per_ns), (7, 8));
    let shown = bed.lab.json("network show n2")?;
    for (column, value) in [
        ("uplink", serde_json::json!("uplink")),
        ("masquerade", serde_json::json!(false)),
        ("internal", serde_json::json!(false)),
        ("isolated", serde_json::json!(false)),
        ("filtering", serde_json::json!("eif")),
        ("snat_ports", serde_json::json!("2000-2999")),
        ("snat_source", serde_json::json!(["192.168.1.1"])),
    ] {
        assert_eq!(shown[column], value, "{column}");
    }
    bed.lab.nsnet("network del n2")?;
    assert_eq!(maps(&bed.lab)?.policy(NetworkId(2))?.gateway, PortId::NONE);
    Ok(())
}

#[test]
fn a_source_that_the_host_does_not_have_is_told() -> Result<()> {
    let lab = lab()?;
    let line =
        format!("network add n2 --subnet 10.2.0.0/24 fd02::/64 --masquerade --snat-source {HOST_IP} 2001:db8::9");
    let output = lab.try_nsnet(&line)?;
    let expected = "nsnet: network n2: the host has no address 2001:db8::9: answers come only if it is routed here\n";
    ensure!(output.status.success() && output.stderr == expected.as_bytes(), "{output:?}");
    let file = "[[network]]\nname = \"n3\"\nsubnet = \"10.3.0.0/24\"\nmasquerade = true\nsnat_source = \"192.0.2.9\"\n";
    let output = super::file::given(&lab, &["apply", "-f", "-"], file)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.contains("network n3: the host has no address 192.0.2.9"), "{output:?}");
    Ok(())
}

#[test]
fn programs_of_others_stay() -> Result<()> {
    let lab = lab()?;
    let mut ebpf = lab.within("host", || open_object(Features::probe()))??;
    let program = program_in(&mut ebpf, FOREIGN)?;
    let link = lab.within("host", || program.attach(UPLINK, TcAttachType::Ingress))??;
    lab.nsnet("network add v-net-0 --subnet 192.168.15.0/24 --masquerade")?;
    // Theirs was first, and runs first.
    assert_eq!(on_uplink(&lab)?, [FOREIGN, names::FROM_UPLINK]);
    lab.nsnet("network add v-net-0 --subnet 192.168.15.0/24 --masquerade")?;
    lab.nsnet("down")?;
    assert_eq!(on_uplink(&lab)?, [FOREIGN]);
    lab.within("host", || program.detach(link))??;
    Ok(())
}

#[test]
fn filters_and_qdiscs_of_others_stay() -> Result<()> {
    let mut lab = lab()?;
    lab.treat_as_missing("tcx");
    let empty = World::of(&lab)?;
    let (make, remake) = ("network add v-net-0 --subnet 192.168.15.0/24", "network add n2 --subnet 10.2.0.0/24");
    lab.nsnet(make)?;
    lab.nsnet(remake)?;
    assert_eq!(filters(&lab)?, [names::FROM_UPLINK]);
    lab.nsnet(make)?;
    assert_eq!(filters(&lab)?, [names::FROM_UPLINK], "once");
    assert_eq!(lab.json("status")?["drift"], serde_json::json!([]));
    lab.nsnet("down")?;
    assert_eq!(World::of(&lab)?, empty, "our filter or our qdisc was left");

    // An empty one of somebody else's.
    lab.within("host", || qdisc_add_clsact(UPLINK))??;
    lab.nsnet(make)?;
    lab.nsnet("down")?;
    assert!(has_clsact(&lab)?, "a foreign qdisc was removed");

    // And one with a filter in it; then one that somebody used after we made it.
    let mut ebpf = lab.within("host", || open_object(Features::probe()))??;
    let program = program_in(&mut ebpf, FOREIGN)?;
    let options = || TcAttachOptions::Netlink(NlOptions::default());
    let netlink = Netlink::inside(&lab.ns("host")?)?;
    let index = netlink.existing_link(UPLINK)?.index;
    for theirs_is_first in [true, false] {
        if !theirs_is_first {
            lab.nsnet(make)?;
        }
        let link = lab.within("host", || program.attach_with_options(UPLINK, TcAttachType::Ingress, options()))??;
        lab.nsnet(make)?;
        let there = filters(&lab)?;
        assert!(there.len() == 2 && there.iter().any(|name| name == FOREIGN), "{there:?}");
        lab.nsnet("down")?;
        assert_eq!(filters(&lab)?, [FOREIGN]);
        assert!(has_clsact(&lab)?);
        lab.within("host", || program.detach(link))??;
        assert!(netlink.remove_empty_clsact(index)?);
    }
    Ok(())
}

/// A name is anybody's: what tells ours, when the pins are gone, is the maps.
#[test]
fn a_filter_of_others_with_the_name_of_ours_stays() -> Result<()> {
    let mut lab = lab()?;
    lab.treat_as_missing("tcx");
    let make = "network add v-net-0 --subnet 192.168.15.0/24 --masquerade";
    let netlink = Netlink::inside(&lab.ns("host")?)?;
    let index = netlink.existing_link(UPLINK)?.index;
    let programs = || -> Result<Vec<u32>> {
        let filters = netlink.bpf_filters(index)?;
        ensure!(filters.iter().all(|filter| filter.name == names::FROM_UPLINK), "{filters:?}");
        Ok(filters.iter().map(|filter| filter.program).collect())
    };
    let theirs = lab.within("host", || foreign::filter(UPLINK, names::FROM_UPLINK))??;
    assert_eq!(programs()?, [theirs]);
    let pins = pins(&lab)?;
    for pins_are_lost in [false, true] {
        lab.nsnet(make)?;
        let there = programs()?;
        assert!(there.len() == 2 && there.contains(&theirs), "{there:?}");
        if pins_are_lost {
            std::fs::remove_dir_all(&pins)?;
            // Loaded anew, it does not leave the old one beside the new one.
            lab.nsnet("apply")?;
            let now = programs()?;
            assert!(now.len() == 2 && now.contains(&theirs) && now != there, "{there:?} became {now:?}");
            std::fs::remove_dir_all(&pins)?;
        }
        let down = lab.try_nsnet("down")?;
        let told = String::from_utf8_lossy(&down.stderr).into_owned();
        assert!(down.status.success() && told.contains("uplink is not nsnet's"), "{told}");
        assert_eq!(programs()?, [theirs]);
    }
    Ok(())
}

#[test]
fn ports_are_reserved_beside_those_of_others() -> Result<()> {
    let lab = lab()?;
    set(&lab, RESERVED, "8080,16000-17000\n")?;
    let theirs = setting(&lab, RESERVED)?;
    lab.nsnet("network add n1 --subnet 10.1.0.0/24")?;
    assert_eq!(setting(&lab, RESERVED)?, theirs);
    lab.nsnet("masquerade on n1")?;
    assert_eq!(setting(&lab, RESERVED)?, "8080,16000-32767");
    lab.nsnet("network add n2 --subnet 10.2.0.0/24 --masquerade --snat-ports 5000-5999")?;
    assert_eq!(setting(&lab, RESERVED)?, "5000-5999,8080,16000-32767");
    // Somebody else takes one more, and ours away.
    set(&lab, RESERVED, "5000-5999,8080,9090,16000-17000\n")?;
    assert!(drift(&lab)?.iter().any(|line| line.contains("17001-32767")), "{:?}", drift(&lab)?);
    lab.nsnet("network add n1 --subnet 10.1.0.0/24 --masquerade")?;
    assert_eq!(drift(&lab)?, Vec::<String>::new());
    lab.nsnet("network del n2")?;
    assert_eq!(setting(&lab, RESERVED)?, "8080,9090,16000-32767");
    lab.nsnet("masquerade off n1")?;
    assert_eq!(setting(&lab, RESERVED)?, "8080,9090,16000-17000");
    lab.nsnet("masquerade on n1")?;
    lab.nsnet("down")?;
    assert_eq!(setting(&lab, RESERVED)?, "8080,9090,16000-17000");

    set(&lab, RESERVED, "\n")?;
    let refusal = refused(&lab, "network add n3 --subnet 10.3.0.0/24 --masquerade --snat-ports 30000-40000")?;
    assert!(refusal.contains("30000-40000") && refusal.contains("32768-60999"), "{refusal}");
    assert_eq!(setting(&lab, RESERVED)?, "");
    Ok(())
}

#[test]
fn the_dataplane_is_told_between_which_ports_all_pools_are() -> Result<()> {
    let bed = Bed::new(V4, &["red"])?;
    let lab = &bed.lab;
    let folder = format!("{BPFFS}/{:x}_v{LAYOUT_VERSION}/maps", lab.ns("host")?.cookie()?);
    let pin = Path::new(&folder).join(names::POLICIES);
    let mut policies: Array<MapData, Policy> = Map::Array(MapData::from_pin(pin)?).try_into()?;
    let told = |policies: &Array<MapData, Policy>| -> Result<Option<(u16, u16)>> {
        let host = policies.get(&u32::from(NetworkId::OUTSIDE.0), 0)?;
        Ok(host.has(policy_flags::MASQUERADE).then_some((host.first_port, host.last_port)))
    };
    assert_eq!(told(&policies)?, None);
    lab.nsnet("publish add @red 8080:80")?;
    assert_eq!(told(&policies)?, Some((16384, 32767)));
    let broad = "network add n2 --subnet 10.2.0.0/24 --masquerade --snat-ports 5000-5999";
    lab.nsnet(broad)?;
    assert_eq!(told(&policies)?, Some((5000, 32767)));
    bed.check_no_drift()?;
    // Lost, it is missed, and comes back by any verb that mends.
    for mend in [broad, "publish add @red 8080:80", "masquerade on n2"] {
        policies.set(u32::from(NetworkId::OUTSIDE.0), Policy::DEFAULT, 0)?;
        assert!(drift(lab)?.iter().any(|line| line.contains("pools")), "{:?}", drift(lab)?);
        lab.nsnet(mend)?;
        assert_eq!((told(&policies)?, drift(lab)?), (Some((5000, 32767)), Vec::new()), "{mend}");
    }
    lab.nsnet("publish del @red 8080:80")?;
    assert_eq!(told(&policies)?, Some((5000, 5999)));
    lab.nsnet("masquerade off n2")?;
    assert_eq!((told(&policies)?, drift(lab)?), (None, Vec::new()));
    Ok(())
}

#[test]
fn settings_of_our_own_interface_and_of_no_other() -> Result<()> {
    let lab = lab()?;
    let others = ["net/ipv4/ip_forward", "net/ipv4/conf/uplink/forwarding", "net/ipv6/conf/all/forwarding"];
    let before = others.map(|key| setting(&lab, key).unwrap_or_default());
    lab.nsnet(&format!("network add {NETWORK} {DUAL} --masquerade"))?;
    assert_eq!(setting(&lab, "net/ipv4/conf/v-net-0/forwarding")?, "1");
    assert_eq!(setting(&lab, "net/ipv6/conf/v-net-0/forwarding")?, "1");
    assert_eq!(setting(&lab, "net/ipv4/conf/v-net-0/send_redirects")?, "0");
    assert_eq!(others.map(|key| setting(&lab, key).unwrap_or_default()), before);
    // Who writes ip_forward, writes ours, too.
    set(&lab, "net/ipv4/conf/v-net-0/forwarding", "0")?;
    assert!(drift(&lab)?.iter().any(|line| line.contains("forwarding")));
    lab.nsnet(&format!("network add {NETWORK} {DUAL} --masquerade"))?;
    assert_eq!(drift(&lab)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn default_routes() -> Result<()> {
    let mut bed = Bed::new(&format!("{DUAL} --masquerade"), &["red"])?;
    let defaults = |bed: &Bed, name: &str| -> Result<usize> {
        let routes = Netlink::inside(&bed.lab.ns(name)?)?.routes()?;
        Ok(routes.iter().filter(|route| route.dest.prefix_len() == 0 && route.via.is_some()).count())
    };
    assert_eq!(defaults(&bed, "red")?, 2);
    // One that is lost is missed, and comes back.
    let netlink = Netlink::inside(&bed.at("red").ns)?;
    let lost = netlink.routes()?.into_iter().find(|route| route.dest.prefix_len() == 0).context("no default route")?;
    netlink.remove_route(&lost)?;
    assert!(drift(&bed.lab)?.iter().any(|line| line.contains("0.0.0.0/0")), "{:?}", drift(&bed.lab)?);
    bed.lab.nsnet("attach v-net-0 @red")?;
    assert_eq!((defaults(&bed, "red")?, drift(&bed.lab)?), (2, Vec::new()));
    bed.lab.nsnet("route del @red default")?;
    assert_eq!((defaults(&bed, "red")?, drift(&bed.lab)?), (0, Vec::new()));
    bed.lab.nsnet("route add @red default")?;
    bed.lab.nsnet("detach v-net-0 @red")?;
    assert_eq!(bed.lab.json("route list @red")?, serde_json::json!([]));

    // A network without a way out gives none; one that gets it later does.
    bed.add_network("n2", "--subnet 10.2.0.0/24")?;
    bed.attach("n2", "blue", "")?;
    assert_eq!(defaults(&bed, "blue")?, 0);
    bed.lab.nsnet("masquerade on n2")?;
    assert_eq!(defaults(&bed, "blue")?, 1);
    // Somebody else's stays, and is no drift.
    let host = bed.lab.make("green")?;
    let green = Netlink::inside(&host)?;
    let pair = [VethSpec { name: "other", ..VethSpec::default() }, VethSpec { name: "end", ..VethSpec::default() }];
    let link = green.create_veth(&pair[0], &pair[1], None)?;
    green.set_up(link.index)?;
    green.add_route(&nsnet::kernel::route::Route { dest: "0.0.0.0/0".parse()?, via: None, index: Some(link.index) })?;
    bed.lab.nsnet("ns add @green")?;
    bed.lab.nsnet("attach n2 @green")?;
    assert_eq!((defaults(&bed, "green")?, drift(&bed.lab)?), (0, Vec::new()));
    Ok(())
}

#[test]
fn uplinks_that_change() -> Result<()> {
    let bed = Bed::new(V4, &["red"])?;
    let (lab, host) = (&bed.lab, bed.lab.ns("host")?);
    let again = format!("network add {NETWORK} {V4}");
    // The program is taken off behind our back.
    let links = World::of(lab)?.pins.into_iter().filter(|path| path.contains("/links/"));
    let id = maps(lab)?.uplink(Netlink::inside(&host)?.existing_link(UPLINK)?.index)?.context("no uplink")?;
    let pin = links.into_iter().find(|path| path.ends_with(&format!("/{}", id.0))).context("no pinned link")?;
    std::fs::remove_file(pin)?;
    assert!(drift(lab)?.iter().any(|line| line.starts_with("uplink uplink: program on uplink")), "{:?}", drift(lab)?);
    lab.nsnet(&again)?;
    assert_eq!((drift(lab)?, on_uplink(lab)?), (Vec::new(), vec![names::FROM_UPLINK.to_owned()]));

    // Another interface comes up: verbs that change networks find it.
    let netlink = Netlink::inside(&host)?;
    let pair =
        [VethSpec { name: "second", ..VethSpec::default() }, VethSpec { name: "its-end", ..VethSpec::default() }];
    let second = netlink.create_veth(&pair[0], &pair[1], None)?;
    netlink.set_up(second.index)?;
    lab.nsnet(&again)?;
    assert_eq!(maps(lab)?.uplink(second.index)?, None, "it leads nowhere");
    netlink.add_address(second.index, "203.0.113.1/24".parse()?)?;
    lab.nsnet("masquerade on v-net-0")?;
    assert!(maps(lab)?.uplink(second.index)?.is_some());
    lab.nsnet("masquerade off v-net-0")?;
    netlink.set_mtu(second.index, 1400)?;
    assert!(drift(lab)?.iter().any(|line| line.contains("MTU")));
    lab.nsnet(&again)?;
    let id = maps(lab)?.uplink(second.index)?.context("forgotten")?;
    assert_eq!(maps(lab)?.port(id)?.context("forgotten")?.mtu(), 1400);

    // And goes.
    netlink.delete_link(second.index)?;
    assert!(
        drift(lab)?.iter().any(|line| line.starts_with("uplink second: the interface is missing")),
        "{:?}",
        drift(lab)?
    );
    lab.nsnet(&again)?;
    assert_eq!((maps(lab)?.uplink(second.index)?, drift(lab)?), (None, Vec::new()));
    lab.nsnet("down")?;
    assert_eq!(on_uplink(lab)?, Vec::<String>::new());
    Ok(())
}

#[test]
fn what_is_refused() -> Result<()> {
    let lab = lab()?;
    lab.nsnet("network add n1 --subnet 10.1.0.0/24 --internal")?;
    let host = Netlink::inside(&lab.ns("host")?)?;
    let index = host.existing_link(UPLINK)?.index;
    let connected = nsnet::kernel::route::Route { dest: "10.66.0.0/16".parse()?, via: None, index: Some(index) };
    host.add_route(&connected)?;
    for (line, words) in [
        ("network add n2 --subnet 10.2.0.0/24 --internal --masquerade", &["n2", "--masquerade"][..]),
        ("network add n2 --subnet 10.2.0.0/24 --internal --uplink auto", &["n2", "--uplink"]),
        ("network add n2 --subnet 10.2.0.0/24 --uplink nowhere", &["nowhere"]),
        ("network add n2 --subnet 10.2.0.0/24 --uplink lo", &["lo"]),
        ("network add n2 --subnet 10.2.0.0/24 --uplink n1", &["n1"]),
        ("network add n2 --subnet 10.2.0.0/24 --snat-ports 80-2000", &["80-2000", "1024"]),
        ("network add n2 --subnet 10.2.0.0/24 --snat-source 2001:db8::1", &["2001:db8::1"]),
        ("network add n2 --subnet 10.2.0.0/24 --snat-source 192.0.2.1 192.0.2.2", &["192.0.2.2"]),
        ("network add n2 --subnet 10.66.7.0/24", &["10.66.7.0/24", "10.66.0.0/16"]),
        ("network add n2 --subnet 10.0.0.0/9", &["10.0.0.0/9"]),
        ("network add n1 --subnet 10.1.0.0/24", &["--internal"]),
        ("network add n1 --subnet 10.1.0.0/24 --internal --filtering adf", &["--filtering adf", "--internal"]),
        ("masquerade on n1", &["n1"]),
        ("masquerade on n9", &["n9"]),
    ] {
        let refusal = refused(&lab, line)?;
        assert!(words.iter().all(|word| refusal.contains(word)), "`{line}`: {refusal}");
    }
    for line in [
        "masquerade n1",
        "masquerade maybe n1",
        "network add n2 --subnet 10.2.0.0/24 --snat-ports 3000-2000",
        "network add n2 --subnet 10.2.0.0/24 --filtering none",
        "network add n2 --subnet 10.2.0.0/24 --timeout udp=0",
        "network add n2 --subnet 10.2.0.0/24 --timeout sctp=9",
        "network add n2 --subnet 10.2.0.0/24 --flows-per-ns 0",
        "network add n2 --subnet 10.2.0.0/24 --isolate perhaps",
        "network add n2 --subnet 10.2.0.0/24 --uplink a/b",
    ] {
        let output = lab.try_nsnet(line)?;
        assert_eq!(output.status.code(), Some(2), "`{line}`: {output:?}");
        complaint(&output)?;
    }
    Ok(())
}

#[test]
fn killed_with_and_without_tcx() -> Result<()> {
    let make = "network add v-net-0 --subnet 192.168.15.0/24 --masquerade";
    for missing in ["", "tcx"] {
        let mut lab = lab()?;
        lab.treat_as_missing(missing);
        killed(&lab, make, "network del v-net-0", 15, &|| Ok(()))?;
        lab.nsnet("network add v-net-0 --subnet 192.168.15.0/24")?;
        killed(&lab, "masquerade on v-net-0", "masquerade off v-net-0", 15, &|| Ok(()))?;
    }
    Ok(())
}
