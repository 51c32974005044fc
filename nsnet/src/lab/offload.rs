//! Switches what an interface leaves to its driver: transmit checksums, TCP segmentation, generic segmentation.
//!
//! With offload on, a veth passes packets of up to 64 KB whose checksum is still partial. Without, the sending stack
//! finishes both first. A dataplane has to carry either kind, so tests run with each.

use anyhow::{Result, ensure};

use crate::kernel::ethtool::{Ethtool, Switch};

/// What an interface's driver does for the sending stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxOffload {
    /// Checksums of outgoing packets.
    pub checksum: bool,
    /// TCP segmentation (TSO); the kernel switches it off together with the checksum.
    pub tso: bool,
    /// Generic segmentation (GSO).
    pub gso: bool,
}

/// Reads the three switches of an interface in the calling thread's network namespace.
///
/// # Errors
/// When there is no such interface or it has no such switches.
pub fn tx_offload(ifname: &str) -> Result<TxOffload> {
    let interface = Ethtool::of(ifname)?;
    Ok(TxOffload {
        checksum: interface.is_on(Switch::CHECKSUM)?,
        tso: interface.is_on(Switch::TSO)?,
        gso: interface.is_on(Switch::GSO)?,
    })
}

/// Turns all three switches on or off, and makes sure that they moved.
///
/// # Errors
/// When the kernel refuses (no privilege, no such interface) or the driver keeps one of them as it was.
pub fn set_tx_offload(ifname: &str, on: bool) -> Result<()> {
    let interface = Ethtool::of(ifname)?;
    // In this order the kernel has no reason to refuse: TSO depends on the checksum.
    for switch in [Switch::CHECKSUM, Switch::TSO, Switch::GSO] {
        interface.set(switch, on)?;
    }
    let now = tx_offload(ifname)?;
    let wanted = TxOffload { checksum: on, tso: on, gso: on };
    ensure!(now == wanted, "{ifname} did not take the offload settings: asked for {wanted:?}, it has {now:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_interface() {
        assert!(tx_offload("").is_err());
        assert!(tx_offload("a-name-that-is-too-long").is_err());
        assert!(tx_offload("no-such-if").unwrap_err().to_string().contains("no-such-if"));
    }
}
