//! How fast the switch is, next to a direct veth pair and to the Linux bridge, measured in the same lab.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::super::interrupt::Interrupt;
use super::ratios::{Against, Ratios, WORKLOADS, circumstances};
use super::report::Report;
use super::traffic::no_checksum_errors;
use crate::kernel::netns::NetNs;
use crate::lab::compare::compare;
use crate::lab::{Comparison, Lab, Plan, Variant, bridge};

/// Namespaces on the cable and on the bridge: the networks' members are not to have more interfaces than in real use.
const CABLED: [&str; 2] = ["left", "right"];
const BRIDGED: [&str; 2] = ["east", "west"];
/// The same again, on a bridge in a host of its own, as br_netfilter is chosen for a whole namespace.
const FILTER_HOST: &str = "brhost";
const FILTERED: [&str; 2] = ["north", "south"];
/// Their addresses, and those of red and blue in the network.
const CABLE_IPS: [&str; 2] = ["10.20.0.1", "10.20.0.2"];
const BRIDGE_IPS: [&str; 2] = ["10.30.0.1", "10.30.0.2"];
const NETWORK_IP: &str = "192.168.15.2";
/// The variants. The cable is measured twice: what differs between the two is noise.
const DIRECT: &str = "direct veth";
const DIRECT_AGAIN: &str = "direct veth again";
const BRIDGE: &str = "Linux bridge";
const FILTERED_BRIDGE: &str = "Linux bridge with br_netfilter";
const NSNET: &str = "nsnet";
const AGAINST: Against = Against {
    subject: NSNET,
    peers: &[
        (BRIDGE, "the Linux bridge", "to_linux_bridge"),
        (FILTERED_BRIDGE, "the same with br_netfilter", "to_linux_bridge_with_br_netfilter"),
        (DIRECT, "a direct veth", "to_direct_veth"),
    ],
    twice: [DIRECT, DIRECT_AGAIN],
};
const PORT: u16 = 7100;
const PORT_AGAIN: u16 = 7150;
/// About 80 s altogether.
const BLOCKS: usize = 100;
/// See the module [`crate::lab::compare`] for why it is short.
pub(super) const SLOT: Duration = Duration::from_millis(40);

/// Makes what is to be compared, and compares; the answer is for programs.
pub(super) fn show(lab: &mut Lab, report: &mut Report) -> Result<Value> {
    report.scenario("comparison", "Comparison: red to blue over nsnet, a direct veth pair, and the Linux bridge")?;
    let mut is_filtered = false;
    let prepared = report.step("prepared", || {
        for ns in [CABLED, BRIDGED, FILTERED].concat().into_iter().chain([FILTER_HOST]) {
            lab.make(ns)?;
        }
        is_filtered = prepare(lab)?;
        let more =
            if is_filtered { " each, without and with br_netfilter" } else { "; this kernel has no br_netfilter" };
        Ok(format!("a cable between two namespaces, and Linux bridges with two more{more}"))
    })?;
    if !prepared {
        return Ok(Value::Null);
    }
    let mut comparison = None;
    let interrupt = report.interrupt();
    report.step("measured", || {
        let measured = with_bar(&interrupt, |progress| measure(lab, is_filtered, progress))?;
        Ok(circumstances(comparison.insert(measured)))
    })?;
    let Some(comparison) = comparison else { return Ok(Value::Null) };
    let answer = tell(report, &comparison, AGAINST)?;
    report.step("checksums", || {
        no_checksum_errors(lab, &["host", "red", "blue", "left", "right", "east", "west", "north", "south"])
    })?;
    Ok(answer)
}

/// A step for each workload; the whole for programs.
pub(super) fn tell(report: &mut Report, comparison: &Comparison, against: Against) -> Result<Value> {
    let mut answer =
        json!({ "repeated": comparison.repeated, "disturbed": comparison.disturbed, "pinned": comparison.pinned });
    for (workload, name, key) in WORKLOADS {
        if comparison.series(workload, against.subject).is_some() {
            report.step(name, || {
                let ratios = Ratios::of(comparison, workload, against)?;
                answer[key] = ratios.to_json();
                Ok(ratios.to_string())
            })?;
        }
    }
    Ok(answer)
}

/// Whether there is a bridge with br_netfilter.
fn prepare(lab: &Lab) -> Result<bool> {
    let ([left, right], [a, b]) = (CABLED, CABLE_IPS);
    lab.nsnet(&format!("cable add @{left} @{right} --address-a {a}/24 --address-b {b}/24"))?;
    for (host, [east, west]) in [("host", BRIDGED), (FILTER_HOST, FILTERED)] {
        let [a, b] = BRIDGE_IPS;
        let (east, west) = (lab.ns(east)?, lab.ns(west)?);
        let members = [(&east, format!("{a}/24").parse()?), (&west, format!("{b}/24").parse()?)];
        bridge::make(&lab.ns(host)?, "bridge", &members)?;
    }
    bridge::pass_netfilter(&lab.ns(FILTER_HOST)?, true)
}

fn measure(lab: &Lab, is_filtered: bool, progress: &mut dyn FnMut(usize, usize) -> Result<()>) -> Result<Comparison> {
    let ends = |[sender, receiver]: [&str; 2]| anyhow::Ok((inside(lab.ns(sender)?), inside(lab.ns(receiver)?)));
    let (cable, bridge, network) = (ends(CABLED)?, ends(BRIDGED)?, ends(["red", "blue"])?);
    let filtered = ends(FILTERED)?;
    let to = |ip: &str, port| anyhow::Ok(SocketAddr::new(ip.parse()?, port));
    let cable_to = |port| to(CABLE_IPS[1], port);
    let (bridge_to, network_to) = (to(BRIDGE_IPS[1], PORT)?, to(NETWORK_IP, PORT)?);
    let mut variants = vec![
        Variant { name: DIRECT, to: cable_to(PORT)?, sender: &cable.0, receiver: &cable.1 },
        Variant { name: DIRECT_AGAIN, to: cable_to(PORT_AGAIN)?, sender: &cable.0, receiver: &cable.1 },
        Variant { name: BRIDGE, to: bridge_to, sender: &bridge.0, receiver: &bridge.1 },
        Variant { name: NSNET, to: network_to, sender: &network.0, receiver: &network.1 },
    ];
    if is_filtered {
        let (sender, receiver) = &filtered;
        variants.push(Variant { name: FILTERED_BRIDGE, to: bridge_to, sender, receiver });
    }
    compare(&variants, &Plan::new(BLOCKS, SLOT), progress)
}

/// Measures with a bar that shows how far it is, and ends when the user wants an end.
pub(super) fn with_bar(
    interrupt: &Interrupt,
    measure: impl FnOnce(&mut dyn FnMut(usize, usize) -> Result<()>) -> Result<Comparison>,
) -> Result<Comparison> {
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}, {eta}")?);
    bar.set_message("measuring");
    let measured = measure(&mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        interrupt.check()
    });
    bar.finish_and_clear();
    measured
}

/// Runs something in `ns`, as a comparison wants it.
pub(super) fn inside(ns: NetNs) -> impl Fn(&mut (dyn FnMut() + Send)) -> Result<()> + Sync {
    move |work| Ok(ns.run(work)?)
}
