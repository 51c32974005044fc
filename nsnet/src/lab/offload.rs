//! Switches what an interface leaves to its driver: transmit checksums, TCP segmentation, generic segmentation.
//!
//! With offload on, a veth passes packets of up to 64 KB whose checksum is still partial. Without, the sending stack
//! finishes both first. A dataplane has to carry either kind, so tests run with each.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc;

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
    let request = Request::new(ifname)?;
    Ok(TxOffload {
        checksum: request.call(Switch::CHECKSUM.get, 0)? != 0,
        tso: request.call(Switch::TSO.get, 0)? != 0,
        gso: request.call(Switch::GSO.get, 0)? != 0,
    })
}

/// Turns all three switches on or off, and makes sure that they moved.
///
/// # Errors
/// When the kernel refuses (no privilege, no such interface) or the driver keeps one of them as it was.
pub fn set_tx_offload(ifname: &str, on: bool) -> Result<()> {
    let request = Request::new(ifname)?;
    // In this order the kernel has no reason to refuse: TSO depends on the checksum.
    for switch in [Switch::CHECKSUM, Switch::TSO, Switch::GSO] {
        request.call(switch.set, on.into())?;
    }
    let now = tx_offload(ifname)?;
    let wanted = TxOffload { checksum: on, tso: on, gso: on };
    ensure!(now == wanted, "{ifname} did not take the offload settings: asked for {wanted:?}, it has {now:?}");
    Ok(())
}

/// The `ETHTOOL_G...` and `ETHTOOL_S...` commands of one switch (linux/ethtool.h).
struct Switch {
    get: u32,
    set: u32,
}

impl Switch {
    const CHECKSUM: Switch = Switch { get: 0x16, set: 0x17 };
    const TSO: Switch = Switch { get: 0x1e, set: 0x1f };
    const GSO: Switch = Switch { get: 0x23, set: 0x24 };
}

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// An interface by name, and a socket of its namespace to ask through.
struct Request<'a> {
    ifname: &'a str,
    name: [libc::c_char; libc::IFNAMSIZ],
    socket: UdpSocket,
}

impl<'a> Request<'a> {
    fn new(ifname: &'a str) -> Result<Request<'a>> {
        let mut name = [0; libc::IFNAMSIZ];
        ensure!(ifname.len() < name.len() && !ifname.contains('\0'), "{ifname:?} cannot be an interface name");
        for (to, from) in name.iter_mut().zip(ifname.bytes()) {
            *to = from as libc::c_char;
        }
        // Any socket will do: the ioctl only takes the namespace from it.
        let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)).context("cannot open a socket")?;
        Ok(Request { ifname, name, socket })
    }

    fn call(&self, command: u32, data: u32) -> Result<u32> {
        let mut value = EthtoolValue { command, data };
        let mut request = libc::ifreq {
            ifr_name: self.name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut value).cast() },
        };
        // SAFETY: the descriptor is open for as long as `self`; SIOCETHTOOL reads one ifreq, and through its pointer
        // reads and writes one ethtool_value for each of the commands above. Both live on this stack frame.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
        Errno::result(result)
            .with_context(|| format!("ethtool command {command:#x} was refused for interface {}", self.ifname))?;
        Ok(value.data)
    }
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
