//! How fast masquerade is, next to a Linux bridge with iptables' MASQUERADE, measured in the same lab.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::comparison::{circumstances, inside, show_ratio, with_bar};
use super::report::Report;
use super::traffic::no_checksum_errors;
use crate::lab::compare::compare;
use crate::lab::masquerade::{self, Masquerade};
use crate::lab::stats::median as median_of;
use crate::lab::{Comparison, Lab, Plan, Ratio, Variant, WAN_IP, Workload};

/// The other host, and the namespace behind it: they forward by the kernel, which nsnet's host is not to do.
const HOST: &str = "ipthost";
const MEMBER: &str = "iptable";
/// Interface and address of wan towards the other host.
const WAN_INTERFACE: &str = "uplink2";
const OTHER_WAN_IP: &str = "192.168.2.3";
/// The variants. The peer is measured twice: what differs between the two is noise.
const PEER: &str = "bridge and MASQUERADE";
const PEER_AGAIN: &str = "bridge and MASQUERADE again";
const NSNET: &str = "nsnet";
const PORT: u16 = 7200;
/// About 20 s altogether: see the comparison of switches.
const BLOCKS: usize = 9;
const SLOT: Duration = Duration::from_millis(150);
const WARM_UP: Duration = Duration::from_millis(50);

/// Makes what is to be compared, and compares; the answer is for programs.
pub(super) fn show(lab: &mut Lab, report: &mut Report) -> Result<Value> {
    report
        .scenario("nat comparison", "Comparison: blue to 192.168.1.3 over nsnet, and over a bridge with MASQUERADE")?;
    let mut tool = None;
    report.step("prepared", || {
        let Some(found) = masquerade::tool() else {
            return Ok("left out: there is no `iptables`, which `cargo xtask setup` installs".to_owned());
        };
        for ns in [HOST, MEMBER] {
            lab.make(ns)?;
        }
        let peer = prepare(lab)?;
        // A kernel without such rules is no fault of ours.
        if let Err(error) = masquerade::add_rule(&lab.ns(HOST)?, peer) {
            return Ok(format!("left out: {error:#}"));
        }
        Ok(format!("a namespace behind a Linux bridge, ip_forward and {} in a host of its own", tool.insert(found)))
    })?;
    let Some(tool) = tool else { return Ok(Value::Null) };
    let mut comparison = None;
    let interrupt = report.interrupt();
    report.step("measured", || {
        let measured = with_bar(&interrupt, |progress| measure(lab, progress))?;
        Ok(circumstances(comparison.insert(measured)))
    })?;
    let Some(comparison) = comparison else { return Ok(Value::Null) };
    let mut answer = json!({
        "repeated": comparison.repeated, "disturbed": comparison.disturbed, "pinned": comparison.pinned, "tool": tool,
    });
    for (workload, name, key, unit) in [
        (Workload::TcpStream, "TCP", "tcp_stream", "bytes per second"),
        (Workload::UdpSmall, "UDP, 64 bytes", "udp_64_bytes", "received datagrams per second"),
        (Workload::Connections, "connections", "connections", "connections per second"),
    ] {
        report.step(name, || {
            let to_peer = comparison.ratio(workload, NSNET, PEER)?;
            let noise = comparison.ratio(workload, PEER_AGAIN, PEER)?;
            let ratio = |ratio: &Ratio| {
                let Ratio { median, low, high, .. } = ratio;
                json!({ "median": median, "low": low, "high": high, "differs": ratio.differs(&noise) })
            };
            let loss = |variant| comparison.series(workload, variant).and_then(|series| median_of(&series.losses));
            let median = |variant| comparison.median(workload, variant).unwrap_or_default();
            answer[key] = json!({
                "to_masquerade": ratio(&to_peer), "noise": ratio(&noise), "unit": unit,
                "medians": { PEER: median(PEER), NSNET: median(NSNET) },
                "losses": { PEER: loss(PEER), NSNET: loss(NSNET) },
            });
            let Ratio { median: aa, low, high, .. } = noise;
            let carries = workload.show(median(PEER));
            let shown = show_ratio("bridge and MASQUERADE", &to_peer);
            Ok(format!("{shown}; A/A {aa:.2} [{low:.2}-{high:.2}]; the bridge carries {carries}"))
        })?;
    }
    report.step("checksums", || no_checksum_errors(lab, &["host", "wan", "blue", HOST, MEMBER]))?;
    Ok(answer)
}

/// Everything but the rule; the subnet that it is to be for.
fn prepare(lab: &Lab) -> Result<IpNet> {
    let (host, member, wan) = (lab.ns(HOST)?, lab.ns(MEMBER)?, lab.ns("wan")?);
    let gateway: IpNet = "10.40.0.1/24".parse()?;
    let peer = Masquerade {
        host: &host,
        member: &member,
        wan: &wan,
        wan_interface: WAN_INTERFACE,
        member_address: "10.40.0.2/24".parse()?,
        gateway,
        uplink: "192.168.2.1/24".parse()?,
        wan_address: format!("{OTHER_WAN_IP}/24").parse()?,
    };
    peer.make()?;
    Ok(gateway.trunc())
}

fn measure(lab: &Lab, progress: &mut dyn FnMut(usize, usize) -> Result<()>) -> Result<Comparison> {
    let (blue, member, wan) = (inside(lab.ns("blue")?), inside(lab.ns(MEMBER)?), inside(lab.ns("wan")?));
    let (to, other_to) = (SocketAddr::new(WAN_IP.parse()?, PORT), SocketAddr::new(OTHER_WAN_IP.parse()?, PORT));
    let variants = [
        Variant { name: PEER, to: other_to, listen: PORT, sender: &member, receiver: &wan },
        Variant { name: PEER_AGAIN, to: other_to, listen: PORT, sender: &member, receiver: &wan },
        Variant { name: NSNET, to, listen: PORT, sender: &blue, receiver: &wan },
    ];
    let workloads = vec![Workload::TcpStream, Workload::UdpSmall, Workload::Connections];
    compare(&variants, &Plan { workloads, warm_up: WARM_UP, ..Plan::new(BLOCKS, SLOT) }, progress)
}
