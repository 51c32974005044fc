//! What a device can do with XDP, as the kernel tells it: family "netdev" of generic netlink (Linux 6.3).

use std::io::Read as _;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::error::{Doing as _, KernelError, Result};

/// Features of a device (`enum netdev_xdp_act`, linux/netdev.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures(u64);

impl XdpFeatures {
    /// The driver runs programs: native XDP.
    pub fn is_native(self) -> bool {
        self.0 & 1 != 0
    }

    /// Frames may be redirected to it, as it is set up now (`ndo_xdp_xmit`).
    pub fn takes_frames(self) -> bool {
        self.0 & (1 << 2) != 0
    }

    /// Those of several pieces, too.
    pub fn takes_pieces(self) -> bool {
        self.0 & (1 << 6) != 0
    }
}

/// Of an interface in the calling thread's namespace; `None` where the kernel does not tell.
pub fn xdp_features(ifindex: u32) -> Result<Option<XdpFeatures>> {
    const DEV_GET: u8 = 1;
    const A_IFINDEX: u16 = 1;
    const A_XDP_FEATURES: u16 = 3;
    let mut talk = Talk::open()?;
    let Some(family) = talk.family(c"netdev".to_bytes_with_nul())? else { return Ok(None) };
    let what = || format!("ask for the XDP features of interface {ifindex}");
    let answer = talk.ask(family, DEV_GET, (A_IFINDEX, &ifindex.to_ne_bytes())).doing(what)?;
    let features = attribute(&answer, A_XDP_FEATURES).and_then(|value| value.try_into().ok());
    match features {
        Some(features) => Ok(Some(XdpFeatures(u64::from_ne_bytes(features)))),
        None => Err(KernelError::refused(what(), "the answer was not understood")),
    }
}

/// A socket of generic netlink.
struct Talk {
    socket: Socket,
}

/// Bytes of `struct nlmsghdr` and `struct genlmsghdr`.
const HEADERS: usize = 20;

impl Talk {
    fn open() -> Result<Self> {
        let what = || "open a generic netlink socket";
        let (domain, protocol) = (Domain::from(libc::AF_NETLINK), Protocol::from(libc::NETLINK_GENERIC));
        let socket = Socket::new(domain, Type::RAW.cloexec(), Some(protocol)).doing(what)?;
        socket.set_read_timeout(Some(Duration::from_secs(5))).doing(what)?;
        Ok(Self { socket })
    }

    /// The number of a family; `None` when there is none of this name.
    fn family(&mut self, name: &[u8]) -> Result<Option<u16>> {
        const CONTROL: u16 = 0x10;
        const GET_FAMILY: u8 = 3;
        const A_ID: u16 = 1;
        const A_NAME: u16 = 2;
        match self.ask(CONTROL, GET_FAMILY, (A_NAME, name)) {
            Ok(answer) => {
                let id = attribute(&answer, A_ID).and_then(|value| value.try_into().ok());
                Ok(id.map(u16::from_ne_bytes))
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno).doing(|| "look for a family of generic netlink"),
        }
    }

    /// Sends a command with one attribute; the attributes of the answer.
    fn ask(&mut self, family: u16, command: u8, (kind, value): (u16, &[u8])) -> std::result::Result<Vec<u8>, Errno> {
        const ERROR: u16 = 2;
        let errno_of = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
        let padded = value.len().next_multiple_of(4);
        let mut request = Vec::with_capacity(HEADERS + 4 + padded);
        request.extend(((HEADERS + 4 + padded) as u32).to_ne_bytes());
        request.extend(family.to_ne_bytes());
        request.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
        // Sequence number and sender's port, which nobody else could answer to.
        request.extend([0; 8]);
        request.extend([command, 1, 0, 0]);
        request.extend((4 + value.len() as u16).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend(value);
        request.resize(HEADERS + 4 + padded, 0);
        self.socket.send(&request).map_err(errno_of)?;
        let mut answer = vec![0; 16 << 10];
        let length = self.socket.read(&mut answer).map_err(errno_of)?;
        answer.truncate(length);
        let (Some(kind), Some(first)) = (answer.get(4..6), answer.get(16..20)) else { return Err(Errno::EBADMSG) };
        if kind == ERROR.to_ne_bytes() {
            let errno = i32::from_ne_bytes(first.try_into().map_err(|_| Errno::EBADMSG)?);
            return Err(Errno::from_raw(-errno));
        }
        Ok(answer.split_off(HEADERS))
    }
}

/// The value of an attribute among others.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    const KIND: u16 = 0x3fff;
    loop {
        let (length, kind) = (attributes.get(..2)?, attributes.get(2..4)?);
        let length = usize::from(u16::from_ne_bytes(length.try_into().ok()?));
        if u16::from_ne_bytes(kind.try_into().ok()?) & KIND == wanted {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.next_multiple_of(4).max(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_by_their_kind() {
        let bytes: Vec<u8> = [&5u16.to_ne_bytes()[..], &1u16.to_ne_bytes(), &[7, 0, 0, 0], &6u16.to_ne_bytes()]
            .into_iter()
            .chain([&3u16.to_ne_bytes()[..], &[8, 9, 0, 0]])
            .flatten()
            .copied()
            .collect();
        assert_eq!(attribute(&bytes, 1), Some(&[7][..]));
        assert_eq!(attribute(&bytes, 3), Some(&[8, 9][..]));
        assert_eq!(attribute(&bytes, 2), None);
        assert_eq!(attribute(&[1, 0], 2), None);
        assert_eq!(attribute(&[0; 8], 1), None);
    }

    #[test]
    fn loopback_has_no_native_xdp() {
        if let Some(features) = xdp_features(1).unwrap() {
            assert!(!features.is_native() && !features.takes_frames());
        }
        assert!(xdp_features(u32::MAX >> 1).is_err());
    }
}
