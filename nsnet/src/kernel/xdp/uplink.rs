//! An uplink whose frames go by XDP. Nothing about the interface is changed but for our program.

use nsnet_common::layout::flags;

use crate::kernel::error::{KernelError, Result};
use crate::kernel::ethtool::{Ethtool, Flag};
use crate::kernel::host::Host;
use crate::kernel::link::Link;
use crate::kernel::netdev::{XdpFeatures, xdp_features};
use crate::model::drift::Difference;
use crate::model::mode::Mode;
use crate::model::uplink::Uplink;

use super::port::require;
use super::{Side, refused_by};

/// Brings the uplink into its mode. What only may be ([`Mode::Auto`]) is noted where it cannot be.
pub(crate) fn bring(host: &Host, uplink: &Uplink, link: &Link) -> Result<()> {
    let entered = match why_tc(host, uplink, link)? {
        None if is_on(host, uplink, link)? => return enter_map(host, uplink),
        None => enter(host, uplink, link),
        Some(why) => {
            // What was there before does not count: a mode has one state.
            leave(host, uplink)?;
            if uplink.mode == Mode::Tc {
                return Ok(());
            }
            Err(KernelError::refused(format!("use XDP at uplink {}", link.name), why))
        }
    };
    match entered {
        Err(error) if uplink.mode == Mode::Auto => {
            (host.on_note)(&format!("{error}; it stays with TC"));
            Ok(())
        }
        entered => entered,
    }
}

fn enter(host: &Host, uplink: &Uplink, link: &Link) -> Result<()> {
    require(&host.dataplane, &format!("uplink {}", link.name))?;
    if let Some(why) = tags_aside(link)? {
        return Err(KernelError::refused(format!("use XDP at uplink {}", link.name), why)
            .with_remedy("turn that off (ethtool -K IF rxvlan off), or use mode tc"));
    }
    let attached = host.dataplane.attach_xdp(uplink.port(), link.index, Side::Uplink);
    attached.map_err(|error| refused_by(&link.name, error))?;
    enter_map(host, uplink)
}

fn enter_map(host: &Host, uplink: &Uplink) -> Result<()> {
    host.maps().set_xdp_port(uplink.port(), uplink.ifindex)
}

/// Takes the program off. The uplink's entry must be gone, or not say any more that it takes frames of XDP.
pub(crate) fn leave(host: &Host, uplink: &Uplink) -> Result<()> {
    if !host.dataplane.has_xdp_link(uplink.port()) {
        return Ok(());
    }
    if host.dataplane.loaded()? {
        host.maps().clear_xdp_port(uplink.port())?;
    }
    host.dataplane.detach_xdp(uplink.port())
}

/// Whether our program is on the uplink.
pub(crate) fn is_on(host: &Host, uplink: &Uplink, link: &Link) -> Result<bool> {
    let has_link = host.dataplane.has_accelerator() && host.dataplane.has_xdp_link(uplink.port());
    Ok(has_link && link.xdp == Some(host.dataplane.xdp_program_id(Side::Uplink)?))
}

/// Flags of the uplink's entry: which frames of XDP it takes.
pub(crate) fn entry_flags(host: &Host, uplink: &Uplink, link: &Link) -> Result<u16> {
    if !is_on(host, uplink, link)? || why_tc(host, uplink, link)?.is_some() {
        return Ok(0);
    }
    let features = xdp_features(link.index)?.unwrap_or_default();
    Ok(match (features.takes_frames(), features.takes_pieces()) {
        (false, _) => 0,
        (true, false) => flags::XDP,
        (true, true) => flags::XDP | flags::XDP_PIECES,
    })
}

/// What is wrong with the program on an uplink.
pub(crate) fn differences(host: &Host, uplink: &Uplink, link: &Link) -> Result<Vec<Difference>> {
    let (is_on, name) = (is_on(host, uplink, link)?, &link.name);
    let mut found = Vec::new();
    if uplink.mode == Mode::Xdp && !is_on {
        found.push(Difference::missing(format_args!("XDP program on {name}")));
    }
    if host.dataplane.has_xdp_link(uplink.port()) && why_tc(host, uplink, link)?.is_some() {
        found.push(Difference::extra(format_args!("XDP program on {name}"), format_args!("in mode {}", uplink.mode)));
    }
    if is_on && host.maps().xdp_port(uplink.port())? != Some(uplink.ifindex) {
        found.push(Difference::missing("device of the uplink for XDP"));
    }
    Ok(found)
}

/// Why TC is where an uplink's frames belong, as far as that can be told without trying. It does not depend on whether
/// the program is on it now.
pub(crate) fn why_tc(host: &Host, uplink: &Uplink, link: &Link) -> Result<Option<String>> {
    match uplink.mode {
        Mode::Tc => Ok(Some("that was asked for".to_owned())),
        Mode::Xdp => Ok(None),
        Mode::Auto => why_not(host, link),
    }
}

fn why_not(host: &Host, link: &Link) -> Result<Option<String>> {
    if !host.dataplane.has_accelerator() {
        return Ok(Some("this kernel has not taken the programs for it".to_owned()));
    }
    if link.kind.as_deref() == Some("veth") {
        return Ok(Some("it is a veth, whose other end would have to cut all segments itself (no GSO)".to_owned()));
    }
    if let Some(other) = link.xdp
        && other != host.dataplane.xdp_program_id(Side::Uplink)?
    {
        return Ok(Some(format!("another XDP program (number {other}) is on it")));
    }
    if let Some(why) = tags_aside(link)? {
        return Ok(Some(why));
    }
    let driver = Ethtool::of(&link.name)?.driver()?;
    if !xdp_features(link.index)?.is_none_or(XdpFeatures::is_native) {
        return Ok(Some(format!("its driver {driver} has no native XDP")));
    }
    Ok(None)
}

/// Why tags are not in the frames that a program sees, if so.
fn tags_aside(link: &Link) -> Result<Option<String>> {
    // A veth takes nothing out: there a tag is beside the frame when its sender has put it there.
    let takes_out = link.kind.as_deref() != Some("veth") && Ethtool::of(&link.name)?.has(Flag::RX_VLAN)?;
    Ok(takes_out
        .then(|| "it takes VLAN tags out of frames, which a program could not tell from untagged ones".to_owned()))
}
