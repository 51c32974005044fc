//! A namespace's port whose frames go by XDP.
//!
//! The accelerator works on frames as they are on a wire: a checksum that is still to be filled in, segments that are still to
//! be cut and a tag that travels beside the frame are not. So the namespace's end does all that itself. (While there is a
//! program at our end, the kernel cuts segments by itself.) And a frame that is sent there needs a NAPI to receive it.

use crate::kernel::dataplane::Dataplane;
use crate::kernel::error::{KernelError, Result};
use crate::kernel::ethtool::{Ethtool, Flag, Switch};
use crate::kernel::host::Host;
use crate::kernel::netns::NetNs;
use crate::model::drift::Difference;
use crate::model::state::Attachment;

use super::{Side, refused_by};

/// What the namespace's end is to be, and what a new veth is.
struct Ends {
    checksum: bool,
    tags: bool,
    gro: bool,
}

const FOR_XDP: Ends = Ends { checksum: false, tags: false, gro: true };
const OF_A_VETH: Ends = Ends { checksum: true, tags: true, gro: false };

/// Has the port's frames go by XDP, and frames of XDP go to it. Its entry may say so afterwards, and not before.
pub(crate) fn enter(host: &Host, port: &Attachment, ns: &NetNs) -> Result<()> {
    let (id, index) = (port.port(), port.port().ifindex());
    require(&host.dataplane, &format!("port {}", port.outer))?;
    ns.run(|| set(&port.inner, &FOR_XDP))??;
    if !is_on(host, port)? {
        host.dataplane.attach_xdp(id, index, Side::Namespace).map_err(|error| refused_by(&port.outer, error))?;
    }
    host.maps().set_xdp_port(id, index)?;
    ns.run(|| check(&port.inner))?
}

/// The reverse, where there is something to take back. Its entry must not say so any more.
pub(crate) fn leave(host: &Host, port: &Attachment, ns: &NetNs) -> Result<()> {
    if !host.dataplane.has_xdp_link(port.port()) {
        return Ok(());
    }
    host.maps().clear_xdp_port(port.port())?;
    // The other way round than before: should this be cut off, the link tells that there is more to take back.
    ns.run(|| set(&port.inner, &OF_A_VETH))??;
    host.dataplane.detach_xdp(port.port())
}

/// Fails when the kernel has not taken the accelerator's programs.
pub(super) fn require(dataplane: &Dataplane, what: &str) -> Result<()> {
    if dataplane.has_accelerator() {
        return Ok(());
    }
    Err(KernelError::refused(format!("use XDP at {what}"), "this kernel has not taken the programs for it")
        .with_remedy("`nsnet doctor` tells why; use mode tc"))
}

fn is_on(host: &Host, port: &Attachment) -> Result<bool> {
    let on = host.netlink.link_by_index(port.port().ifindex())?.and_then(|link| link.xdp);
    Ok(host.dataplane.has_xdp_link(port.port()) && on == Some(host.dataplane.xdp_program_id(Side::Namespace)?))
}

fn set(interface: &str, ends: &Ends) -> Result<()> {
    let interface = Ethtool::of(interface)?;
    interface.set(Switch::CHECKSUM, ends.checksum)?;
    interface.set_flag(Flag::TX_VLAN, ends.tags)?;
    interface.set(Switch::GRO, ends.gro)
}

fn check(interface: &str) -> Result<()> {
    match wrong(interface)? {
        Some(what) => Err(KernelError::refused(format!("use XDP at {interface}"), format!("its driver keeps {what}"))
            .with_remedy("use mode tc")),
        None => Ok(()),
    }
}

/// What at a namespace's end is not as XDP needs it.
fn wrong(interface: &str) -> Result<Option<&'static str>> {
    let end = Ethtool::of(interface)?;
    Ok(if end.is_on(Switch::CHECKSUM)? {
        Some("tx-checksumming on")
    } else if end.is_on(Switch::TSO)? {
        Some("tcp-segmentation-offload on")
    } else if end.has(Flag::TX_VLAN)? {
        Some("tx-vlan-offload on")
    } else if !end.is_on(Switch::GRO)? {
        Some("generic-receive-offload off")
    } else {
        None
    })
}

/// What is wrong with a port that is, or is not, `accelerated`; `program` is the number of the XDP program on it.
pub(crate) fn differences(
    host: &Host,
    port: &Attachment,
    accelerated: bool,
    program: Option<u32>,
    ns: &NetNs,
) -> Result<Vec<Difference>> {
    let mut found = Vec::new();
    if !accelerated {
        let is_left = host.dataplane.has_xdp_link(port.port());
        found.extend(is_left.then(|| Difference::extra(format_args!("XDP program on {}", port.outer), "in mode tc")));
        return Ok(found);
    }
    let ours = host.dataplane.xdp_program_id(Side::Namespace)?;
    if program != Some(ours) || !host.dataplane.has_xdp_link(port.port()) {
        found.push(Difference::missing(format_args!("XDP program on {}", port.outer)));
    }
    if host.maps().xdp_port(port.port())? != Some(port.port().ifindex()) {
        found.push(Difference::missing("device of the port for XDP"));
    }
    if let Some(wrong) = ns.run(|| wrong(&port.inner))?? {
        found.push(Difference::extra(format_args!("at {}:", port.inner), wrong));
    }
    Ok(found)
}
