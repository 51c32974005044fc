//! What an interface's driver does for the stack, by `SIOCETHTOOL`: switches, and the driver's name.
//!
//! The old ioctl and not its netlink family: these switches are one number each, on every kernel.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;

use super::error::{Doing as _, KernelError, Result};

/// A switch: the `ETHTOOL_G...` and `ETHTOOL_S...` commands of one feature (linux/ethtool.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    get: u32,
    set: u32,
}

impl Switch {
    /// Checksums of outgoing packets.
    pub const CHECKSUM: Self = Self { get: 0x16, set: 0x17 };
    /// TCP segmentation (TSO); the kernel switches it off together with the checksum.
    pub const TSO: Self = Self { get: 0x1e, set: 0x1f };
    /// Generic segmentation (GSO).
    pub const GSO: Self = Self { get: 0x23, set: 0x24 };
    /// Putting segments together (GRO). A veth has a NAPI, and takes frames of XDP, when it is on.
    pub const GRO: Self = Self { get: 0x2b, set: 0x2c };
    /// Some features in one number, each a bit.
    const FLAGS: Self = Self { get: 0x25, set: 0x26 };
}

/// A bit of the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flag(u32);

impl Flag {
    /// A tag travels beside the frame, and the driver puts it in (ETH_FLAG_TXVLAN).
    pub const TX_VLAN: Self = Self(1 << 7);
    /// The driver takes the tag out of the frame (ETH_FLAG_RXVLAN).
    pub const RX_VLAN: Self = Self(1 << 8);
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}
const _: () = assert!(size_of::<DriverInfo>() == 196);

/// An interface by name, and a socket of its namespace to ask through.
#[derive(Debug)]
pub struct Ethtool<'a> {
    ifname: &'a str,
    name: [libc::c_char; libc::IFNAMSIZ],
    socket: UdpSocket,
}

impl<'a> Ethtool<'a> {
    /// The interface of that name in the calling thread's network namespace.
    pub fn of(ifname: &'a str) -> Result<Self> {
        let mut name = [0; libc::IFNAMSIZ];
        if ifname.len() >= name.len() || ifname.contains('\0') {
            return Err(KernelError::refused(format!("ask interface {ifname}"), "no interface can have this name"));
        }
        for (to, from) in name.iter_mut().zip(ifname.bytes()) {
            *to = from as libc::c_char;
        }
        // Any socket will do: the ioctl only takes the namespace from it.
        let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)).doing(|| "open a socket")?;
        Ok(Self { ifname, name, socket })
    }

    /// Whether a switch is on.
    pub fn is_on(&self, switch: Switch) -> Result<bool> {
        Ok(self.value(switch.get, 0)? != 0)
    }

    /// Turns a switch on or off. A driver may keep it as it was: look.
    pub fn set(&self, switch: Switch, on: bool) -> Result<()> {
        self.value(switch.set, on.into()).map(|_same| ())
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: Flag) -> Result<bool> {
        Ok(self.value(Switch::FLAGS.get, 0)? & flag.0 != 0)
    }

    /// Sets a flag or clears it, and leaves the others.
    pub fn set_flag(&self, flag: Flag, on: bool) -> Result<()> {
        let flags = self.value(Switch::FLAGS.get, 0)?;
        let wanted = if on { flags | flag.0 } else { flags & !flag.0 };
        if wanted == flags { Ok(()) } else { self.value(Switch::FLAGS.set, wanted).map(|_same| ()) }
    }

    /// The name of the driver.
    pub fn driver(&self) -> Result<String> {
        const GET_DRIVER: u32 = 0x03;
        let mut info = DriverInfo { command: GET_DRIVER, driver: [0; 32], rest: [0; 160] };
        self.call(GET_DRIVER, (&raw mut info).cast())?;
        let length = info.driver.iter().position(|byte| *byte == 0).unwrap_or(info.driver.len());
        Ok(String::from_utf8_lossy(info.driver.get(..length).unwrap_or_default()).into_owned())
    }

    fn value(&self, command: u32, data: u32) -> Result<u32> {
        let mut value = Value { command, data };
        self.call(command, (&raw mut value).cast())?;
        Ok(value.data)
    }

    /// `argument` points to what the command takes.
    fn call(&self, command: u32, argument: *mut libc::c_char) -> Result<()> {
        let mut request =
            libc::ifreq { ifr_name: self.name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: argument } };
        // SAFETY: the descriptor is open for as long as `self`; SIOCETHTOOL reads one ifreq, and through its pointer reads
        // and writes the structure of the command, which is on the caller's stack.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
        let what = || format!("use ethtool command {command:#x} with interface {}", self.ifname);
        Errno::result(result).map(|_zero| ()).doing(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_no_interface() {
        for name in ["a-name-that-is-too-long", "a\0b"] {
            assert!(Ethtool::of(name).is_err(), "{name}");
        }
        let error = Ethtool::of("no-such-if").unwrap().is_on(Switch::GRO).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENODEV));
    }

    #[test]
    fn loopback_has_switches() {
        let lo = Ethtool::of("lo").unwrap();
        assert!(lo.is_on(Switch::GSO).is_ok() && lo.has(Flag::RX_VLAN).is_ok());
    }
}
