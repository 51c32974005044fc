//! How fast masquerade is, next to a Linux bridge with iptables' MASQUERADE, measured in the same lab.

use std::net::SocketAddr;

use anyhow::Result;
use ipnet::IpNet;
use serde_json::Value;

use super::comparison::{SLOT, inside, tell, with_bar};
use super::ratios::{Against, circumstances};
use super::report::Report;
use super::traffic::no_checksum_errors;
use crate::lab::compare::compare;
use crate::lab::masquerade::{self, Masquerade};
use crate::lab::{Comparison, Lab, Plan, Variant, WAN_IP, Workload, bridge};

/// Another host, which forwards by the kernel, as nsnet's host is not to do.
#[derive(Clone, Copy)]
struct Other {
    host: &'static str,
    /// The namespace behind it.
    member: &'static str,
    /// Interface and address of wan towards it, and its own.
    wan_interface: &'static str,
    wan_ip: &'static str,
    uplink_ip: &'static str,
}

/// Packets meet iptables where they are routed.
const PLAIN: Other = Other {
    host: "ipthost",
    member: "iptable",
    wan_interface: "uplink2",
    wan_ip: "192.168.2.3",
    uplink_ip: "192.168.2.1",
};
/// On the bridge, too: br_netfilter.
const FILTERED: Other = Other {
    host: "brnhost",
    member: "brnable",
    wan_interface: "uplink3",
    wan_ip: "192.168.3.3",
    uplink_ip: "192.168.3.1",
};
/// The variants. One peer is measured twice: what differs between the two is noise.
const PEER: &str = "bridge and MASQUERADE";
const PEER_AGAIN: &str = "bridge and MASQUERADE again";
const FILTERED_PEER: &str = "bridge with br_netfilter and MASQUERADE";
const NSNET: &str = "nsnet";
const AGAINST: Against = Against {
    subject: NSNET,
    peers: &[
        (PEER, "bridge and MASQUERADE", "to_masquerade"),
        (FILTERED_PEER, "the same with br_netfilter", "to_masquerade_with_br_netfilter"),
    ],
    twice: [PEER, PEER_AGAIN],
};
const PORT: u16 = 7200;
const PORT_AGAIN: u16 = 7250;
const PORT_NSNET: u16 = 7300;
const PORT_FILTERED: u16 = 7350;
/// About 85 s altogether.
const BLOCKS: usize = 100;

/// Makes what is to be compared, and compares; the answer is for programs.
pub(super) fn show(lab: &mut Lab, report: &mut Report) -> Result<Value> {
    report
        .scenario("nat comparison", "Comparison: blue to 192.168.1.3 over nsnet, and over a bridge with MASQUERADE")?;
    let (mut tool, mut is_filtered) = (None, false);
    report.step("prepared", || {
        let Some(found) = masquerade::tool() else {
            return Ok("left out: there is no `iptables`, which `cargo xtask setup` installs".to_owned());
        };
        for other in [PLAIN, FILTERED] {
            lab.make(other.host)?;
            lab.make(other.member)?;
            let peer = prepare(lab, other)?;
            // A kernel without such rules is no fault of ours.
            if let Err(error) = masquerade::add_rule(&lab.ns(other.host)?, peer) {
                return Ok(format!("left out: {error:#}"));
            }
        }
        is_filtered = bridge::pass_netfilter(&lab.ns(FILTERED.host)?, true)?;
        let more = if is_filtered { ", without and with br_netfilter" } else { "; this kernel has no br_netfilter" };
        let found = tool.insert(found);
        Ok(format!("a namespace behind a Linux bridge, ip_forward and {found} in a host of its own{more}"))
    })?;
    let Some(tool) = tool else { return Ok(Value::Null) };
    let mut comparison = None;
    let interrupt = report.interrupt();
    report.step("measured", || {
        let measured = with_bar(&interrupt, |progress| measure(lab, is_filtered, progress))?;
        Ok(circumstances(comparison.insert(measured)))
    })?;
    let Some(comparison) = comparison else { return Ok(Value::Null) };
    let mut answer = tell(report, &comparison, AGAINST)?;
    answer["tool"] = tool.into();
    report.step("checksums", || {
        no_checksum_errors(lab, &["host", "wan", "blue", PLAIN.host, PLAIN.member, FILTERED.host, FILTERED.member])
    })?;
    Ok(answer)
}

/// Everything but the rule; the subnet that it is to be for.
fn prepare(lab: &Lab, other: Other) -> Result<IpNet> {
    let (host, member, wan) = (lab.ns(other.host)?, lab.ns(other.member)?, lab.ns("wan")?);
    let gateway: IpNet = "10.40.0.1/24".parse()?;
    let peer = Masquerade {
        host: &host,
        member: &member,
        wan: &wan,
        wan_interface: other.wan_interface,
        member_address: "10.40.0.2/24".parse()?,
        gateway,
        uplink: format!("{}/24", other.uplink_ip).parse()?,
        wan_address: format!("{}/24", other.wan_ip).parse()?,
    };
    peer.make()?;
    Ok(gateway.trunc())
}

fn measure(lab: &Lab, is_filtered: bool, progress: &mut dyn FnMut(usize, usize) -> Result<()>) -> Result<Comparison> {
    let (blue, member, wan) = (inside(lab.ns("blue")?), inside(lab.ns(PLAIN.member)?), inside(lab.ns("wan")?));
    let filtered = inside(lab.ns(FILTERED.member)?);
    let to = |ip: &str, port| anyhow::Ok(SocketAddr::new(ip.parse()?, port));
    let mut variants = vec![
        Variant { name: PEER, to: to(PLAIN.wan_ip, PORT)?, sender: &member, receiver: &wan },
        Variant { name: PEER_AGAIN, to: to(PLAIN.wan_ip, PORT_AGAIN)?, sender: &member, receiver: &wan },
        Variant { name: NSNET, to: to(WAN_IP, PORT_NSNET)?, sender: &blue, receiver: &wan },
    ];
    if is_filtered {
        let to = to(FILTERED.wan_ip, PORT_FILTERED)?;
        variants.push(Variant { name: FILTERED_PEER, to, sender: &filtered, receiver: &wan });
    }
    let mut plan = Plan::new(BLOCKS, SLOT);
    plan.workloads.push(Workload::Connections);
    compare(&variants, &plan, progress)
}
