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
use crate::lab::{Comparison, Lab, Plan, Variant, WAN_IP, Workload};

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
const AGAINST: Against =
    Against { subject: NSNET, peers: &[(PEER, "bridge and MASQUERADE", "to_masquerade")], twice: [PEER, PEER_AGAIN] };
const PORT: u16 = 7200;
const PORT_AGAIN: u16 = 7250;
const PORT_NSNET: u16 = 7300;
/// About 65 s altogether.
const BLOCKS: usize = 100;

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
    let mut answer = tell(report, &comparison, AGAINST)?;
    answer["tool"] = tool.into();
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
    let to = |ip: &str, port| anyhow::Ok(SocketAddr::new(ip.parse()?, port));
    let variants = [
        Variant { name: PEER, to: to(OTHER_WAN_IP, PORT)?, sender: &member, receiver: &wan },
        Variant { name: PEER_AGAIN, to: to(OTHER_WAN_IP, PORT_AGAIN)?, sender: &member, receiver: &wan },
        Variant { name: NSNET, to: to(WAN_IP, PORT_NSNET)?, sender: &blue, receiver: &wan },
    ];
    let mut plan = Plan::new(BLOCKS, SLOT);
    plan.workloads.push(Workload::Connections);
    compare(&variants, &plan, progress)
}
