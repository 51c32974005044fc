//! How fast the switch is, next to a direct veth pair and to the Linux bridge, measured in the same lab.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::report::Report;
use super::traffic::no_checksum_errors;
use crate::cli::interrupt::Interrupt;
use crate::kernel::netns::NetNs;
use crate::lab::compare::compare;
use crate::lab::{Comparison, Lab, Plan, Ratio, Variant, Workload, bridge};

/// Namespaces on the cable and on the bridge: the networks' members are not to have more interfaces than in real use.
const CABLED: [&str; 2] = ["left", "right"];
const BRIDGED: [&str; 2] = ["east", "west"];
/// Their addresses, and those of red and blue in the network.
const CABLE_IPS: [&str; 2] = ["10.20.0.1", "10.20.0.2"];
const BRIDGE_IPS: [&str; 2] = ["10.30.0.1", "10.30.0.2"];
const NETWORK_IP: &str = "192.168.15.2";
/// The variants. The cable is measured twice: what differs between the two is noise.
const DIRECT: &str = "direct veth";
const DIRECT_AGAIN: &str = "direct veth again";
const BRIDGE: &str = "Linux bridge";
const NSNET: &str = "nsnet";
const PORT: u16 = 7100;
/// About 25 s altogether. Many short blocks rather than few long ones: what else the machine does comes and goes in
/// seconds, and 12 blocks of 0.18 s gave half the interval of 6 of 0.35 s.
const BLOCKS: usize = 12;
const SLOT: Duration = Duration::from_millis(180);
const WARM_UP: Duration = Duration::from_millis(50);

/// Makes what is to be compared, and compares; the answer is for programs.
pub(super) fn show(lab: &mut Lab, report: &mut Report) -> Result<Value> {
    report.scenario("comparison", "Comparison: red to blue over nsnet, a direct veth pair, and the Linux bridge")?;
    let namespaces = [CABLED, BRIDGED].concat();
    let prepared = report.step("prepared", || {
        for ns in &namespaces {
            lab.make(ns)?;
        }
        prepare(lab)
    })?;
    if !prepared {
        return Ok(Value::Null);
    }
    let mut comparison = None;
    let interrupt = report.interrupt();
    report.step("measured", || {
        let measured = with_bar(&interrupt, |progress| measure(lab, progress))?;
        Ok(circumstances(comparison.insert(measured)))
    })?;
    let Some(comparison) = comparison else { return Ok(Value::Null) };
    let mut answer =
        json!({ "repeated": comparison.repeated, "disturbed": comparison.disturbed, "pinned": comparison.pinned });
    for (workload, name, key) in
        [(Workload::TcpStream, "TCP", "tcp_stream"), (Workload::UdpSmall, "UDP, 64 bytes", "udp_64_bytes")]
    {
        report.step(name, || {
            let ratios = Ratios::of(&comparison, workload)?;
            answer[key] = ratios.to_json(&comparison, workload);
            let rate = comparison.median(workload, DIRECT).unwrap_or_default();
            Ok(format!("{ratios}; the direct veth carries {}", workload.show(rate)))
        })?;
    }
    report.step("checksums", || no_checksum_errors(lab, &["host", "red", "blue", "left", "right", "east", "west"]))?;
    Ok(answer)
}

fn prepare(lab: &Lab) -> Result<String> {
    let ([left, right], [a, b]) = (CABLED, CABLE_IPS);
    lab.nsnet(&format!("cable add @{left} @{right} --address-a {a}/24 --address-b {b}/24"))?;
    let ([east, west], [a, b]) = (BRIDGED, BRIDGE_IPS);
    let (east, west) = (lab.ns(east)?, lab.ns(west)?);
    let members = [(&east, format!("{a}/24").parse()?), (&west, format!("{b}/24").parse()?)];
    bridge::make(&lab.ns("host")?, "bridge", &members)?;
    Ok("a cable between two namespaces, and a Linux bridge with two more".to_owned())
}

fn measure(lab: &Lab, progress: &mut dyn FnMut(usize, usize) -> Result<()>) -> Result<Comparison> {
    let ends = |[sender, receiver]: [&str; 2]| anyhow::Ok((inside(lab.ns(sender)?), inside(lab.ns(receiver)?)));
    let (cable, bridge, network) = (ends(CABLED)?, ends(BRIDGED)?, ends(["red", "blue"])?);
    let to = |ip: &str| anyhow::Ok(SocketAddr::new(ip.parse()?, PORT));
    let (cable_to, bridge_to, network_to) = (to(CABLE_IPS[1])?, to(BRIDGE_IPS[1])?, to(NETWORK_IP)?);
    let variants = [
        Variant { name: DIRECT, to: cable_to, listen: PORT, sender: &cable.0, receiver: &cable.1 },
        Variant { name: DIRECT_AGAIN, to: cable_to, listen: PORT, sender: &cable.0, receiver: &cable.1 },
        Variant { name: BRIDGE, to: bridge_to, listen: PORT, sender: &bridge.0, receiver: &bridge.1 },
        Variant { name: NSNET, to: network_to, listen: PORT, sender: &network.0, receiver: &network.1 },
    ];
    compare(&variants, &Plan { warm_up: WARM_UP, ..Plan::new(BLOCKS, SLOT) }, progress)
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

/// How far the measurement is to be trusted.
pub(super) fn circumstances(comparison: &Comparison) -> String {
    let blocks = comparison.series.first().map_or(0, |series| series.rates.len());
    let mut text = format!("{blocks} blocks in random order, ratios within a block; [95 % interval]");
    if !comparison.pinned {
        text += "; with one CPU for both ends, which hides differences";
    }
    if comparison.disturbed > 0 {
        text += &format!("; the hypervisor disturbed {} of the blocks", comparison.disturbed);
    }
    text
}

/// A ratio with its interval.
pub(super) fn show_ratio(to: &str, ratio: &Ratio) -> String {
    format!("{:.2}x {to} [{:.2}-{:.2}]", ratio.median, ratio.low, ratio.high)
}

/// What a workload is judged by.
struct Ratios {
    to_bridge: Ratio,
    to_direct: Ratio,
    /// The direct veth to itself.
    noise: Ratio,
}

impl Ratios {
    fn of(comparison: &Comparison, workload: Workload) -> Result<Self> {
        Ok(Self {
            to_bridge: comparison.ratio(workload, NSNET, BRIDGE)?,
            to_direct: comparison.ratio(workload, NSNET, DIRECT)?,
            noise: comparison.ratio(workload, DIRECT_AGAIN, DIRECT)?,
        })
    }

    fn to_json(&self, comparison: &Comparison, workload: Workload) -> Value {
        let ratio = |ratio: &Ratio| json!({ "median": ratio.median, "low": ratio.low, "high": ratio.high, "differs": ratio.differs(&self.noise) });
        let medians: Map<String, Value> = [DIRECT, BRIDGE, NSNET]
            .map(|variant| (variant.to_owned(), json!(comparison.median(workload, variant))))
            .into_iter()
            .collect();
        json!({
            "to_linux_bridge": ratio(&self.to_bridge),
            "to_direct_veth": ratio(&self.to_direct),
            "noise": ratio(&self.noise),
            "unit": match workload {
                Workload::TcpStream => "bytes per second",
                Workload::UdpSmall => "received datagrams per second",
                Workload::Connections => "connections per second",
            },
            "medians": medians,
        })
    }
}

impl std::fmt::Display for Ratios {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (bridge, direct) =
            (show_ratio("the Linux bridge", &self.to_bridge), show_ratio("a direct veth", &self.to_direct));
        let Ratio { median, low, high, .. } = self.noise;
        write!(f, "{bridge}, {direct}; A/A {median:.2} [{low:.2}-{high:.2}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_workload() {
        let ratio = |median: f64| Ratio { median, low: median - 0.04, high: median + 0.05, blocks: 6 };
        let ratios = Ratios { to_bridge: ratio(1.14), to_direct: ratio(0.97), noise: ratio(1.0) };
        let text = "1.14x the Linux bridge [1.10-1.19], 0.97x a direct veth [0.93-1.02]; A/A 1.00 [0.96-1.05]";
        assert_eq!(ratios.to_string(), text);
    }
}
