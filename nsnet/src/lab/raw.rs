//! Ethernet frames as they are: forged ones go in, and whatever arrives is seen.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, bind, recvmsg, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::{setsockopt_impl, sockopt_impl};

use super::PATIENCE;

/// Larger than any frame: GSO packets reach 64 KB and their headers.
const MAX_FRAME: usize = 128 * 1024;
/// Receive buffer, so that a burst survives until it is read.
const RECEIVE_BUFFER: usize = 8 << 20;
/// The most frames [`RawSocket::collect`] keeps.
const MAX_COLLECTED: usize = 65_536;
/// `struct tpacket_auxdata` (linux/if_packet.h).
const AUXDATA_LEN: usize = 20;

/// A packet socket on one interface of the network namespace it was opened in. It sees every protocol, and not what
/// this machine sends through the interface.
#[derive(Debug)]
pub struct RawSocket {
    fd: OwnedFd,
    ifname: String,
}

/// A received frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// From the destination MAC address on, without a VLAN tag that the kernel took out.
    pub bytes: Vec<u8>,
    /// The VLAN tag that was taken out.
    pub vlan: Option<Vlan>,
    /// Whether the layer 4 checksum is only a part yet, as in packets of the same machine.
    pub checksum_pending: bool,
    /// Whether its destination address is another machine's: only seen in promiscuous mode.
    pub for_other: bool,
}

/// An IEEE 802.1Q tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// Tag protocol identifier: 0x8100, or 0x88a8 for a service tag.
    pub tpid: u16,
    /// Priority, drop eligibility and the VLAN number in the low 12 bits.
    pub tci: u16,
}

impl RawSocket {
    /// Opens a socket that takes what the interface would take.
    ///
    /// # Errors
    /// When there is no such interface in this namespace, or no privilege (CAP_NET_RAW).
    pub fn open(ifname: &str) -> Result<RawSocket> {
        let index = if_nametoindex(ifname).with_context(|| format!("there is no interface {ifname}"))?;
        let address = link_address(index.try_into()?)?;
        // Without a protocol, so that nothing from another interface gets in before it is bound.
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
            .context("cannot open a packet socket (this needs CAP_NET_RAW)")?;
        setsockopt(&fd, IgnoreOutgoing, &true).context("cannot set PACKET_IGNORE_OUTGOING (Linux 4.20)")?;
        setsockopt(&fd, Auxdata, &true).context("cannot set PACKET_AUXDATA")?;
        setsockopt(&fd, sockopt::SendTimeout, &timeval(PATIENCE))?;
        // Needs CAP_NET_ADMIN; the default holds a few hundred frames, enough for most uses.
        setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).ok();
        bind(fd.as_raw_fd(), &address).with_context(|| format!("cannot bind a packet socket to {ifname}"))?;
        Ok(RawSocket { fd, ifname: ifname.to_owned() })
    }

    /// As [`RawSocket::open`], and also takes frames for other destination addresses, for as long as it is open.
    ///
    /// # Errors
    /// As [`RawSocket::open`].
    pub fn open_promiscuous(ifname: &str) -> Result<RawSocket> {
        let socket = RawSocket::open(ifname)?;
        let membership = libc::packet_mreq {
            mr_ifindex: if_nametoindex(ifname)?.try_into()?,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        setsockopt(&socket.fd, AddMembership, &membership)
            .with_context(|| format!("cannot make {ifname} promiscuous"))?;
        Ok(socket)
    }

    /// Sends a frame as it is, from the destination MAC address on.
    ///
    /// # Errors
    /// When it is longer than the interface's MTU allows, or the interface is down.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.fd.as_raw_fd(), frame, MsgFlags::empty())
            .with_context(|| format!("cannot send a frame of {} bytes on {}", frame.len(), self.ifname))?;
        ensure!(sent == frame.len(), "{} took {sent} of a frame's {} bytes", self.ifname, frame.len());
        Ok(())
    }

    /// The next frame that `filter` takes, or `None` when `timeout` is over. Other frames are dropped. What arrived
    /// since the socket was opened, or last read, waits in it.
    ///
    /// # Errors
    /// When the interface went down or away.
    pub fn receive(&self, timeout: Duration, mut filter: impl FnMut(&Frame) -> bool) -> Result<Option<Frame>> {
        let mut found = None;
        self.each(timeout, |frame| {
            let taken = filter(&frame);
            if taken {
                found = Some(frame);
            }
            !taken
        })?;
        Ok(found)
    }

    /// All frames that `filter` takes within `duration`, up to 65,536.
    ///
    /// # Errors
    /// As [`RawSocket::receive`].
    pub fn collect(&self, duration: Duration, mut filter: impl FnMut(&Frame) -> bool) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        self.each(duration, |frame| {
            if filter(&frame) {
                frames.push(frame);
            }
            frames.len() < MAX_COLLECTED
        })?;
        Ok(frames)
    }

    /// How many frames `filter` takes within `duration`.
    ///
    /// # Errors
    /// As [`RawSocket::receive`].
    pub fn count(&self, duration: Duration, mut filter: impl FnMut(&Frame) -> bool) -> Result<u64> {
        let mut count = 0;
        self.each(duration, |frame| {
            count += u64::from(filter(&frame));
            true
        })?;
        Ok(count)
    }

    /// Hands each frame to `take` until it has enough or `duration` is over. What is in the socket by then is read yet: who
    /// gets no time on a busy machine has missed nothing.
    fn each(&self, duration: Duration, mut take: impl FnMut(Frame) -> bool) -> Result<()> {
        let deadline = Instant::now() + duration;
        let mut buffer = vec![0; MAX_FRAME];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // A timeout of zero would mean none.
            let is_over = left < Duration::from_micros(1);
            if !is_over {
                setsockopt(&self.fd, sockopt::ReceiveTimeout, &timeval(left))?;
            } else if deadline.elapsed() > PATIENCE {
                // More comes all the time than is read.
                return Ok(());
            }
            match self.next(&mut buffer, if is_over { MsgFlags::MSG_DONTWAIT } else { MsgFlags::empty() }) {
                Ok(frame) => {
                    if !take(frame) {
                        return Ok(());
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(e) => return Err(e).with_context(|| format!("cannot receive frames on {}", self.ifname)),
            }
        }
    }

    fn next(&self, buffer: &mut [u8], flags: MsgFlags) -> nix::Result<Frame> {
        let mut iov = [IoSliceMut::new(buffer)];
        let mut control = nix::cmsg_space!([u8; AUXDATA_LEN]);
        let message = recvmsg::<LinkAddr>(self.fd.as_raw_fd(), &mut iov, Some(&mut control), flags)?;
        let for_other = message.address.is_some_and(|from| from.pkttype() == libc::PACKET_OTHERHOST);
        let mut status = 0;
        let mut vlan = None;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::Unknown(unknown) = control
                && unknown.cmsg_header.cmsg_level == libc::SOL_PACKET
                && unknown.cmsg_header.cmsg_type == libc::PACKET_AUXDATA
            {
                (status, vlan) = read_auxdata(&unknown.data_bytes);
            }
        }
        let len = message.bytes;
        Ok(Frame {
            bytes: buffer[..len].to_vec(),
            vlan,
            checksum_pending: status & libc::TP_STATUS_CSUMNOTREADY != 0,
            for_other,
        })
    }
}

impl Frame {
    /// The frame as it was on the wire: with its VLAN tag back in place.
    pub fn on_wire(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if let Some(Vlan { tpid, tci }) = self.vlan
            && bytes.len() >= 12
        {
            let tag = [tpid.to_be_bytes(), tci.to_be_bytes()].concat();
            bytes.splice(12..12, tag);
        }
        bytes
    }
}

sockopt_impl!(
    /// Do not show what this machine sends.
    IgnoreOutgoing, SetOnly, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, bool
);
sockopt_impl!(
    /// Report VLAN tags and the checksum's state.
    Auxdata, SetOnly, libc::SOL_PACKET, libc::PACKET_AUXDATA, bool
);
sockopt_impl!(
    /// Join the interface's promiscuous listeners until the socket closes.
    AddMembership, SetOnly, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, libc::packet_mreq
);

/// The status word and the VLAN tag in a `struct tpacket_auxdata`, whose numbers are in the machine's byte order.
fn read_auxdata(data: &[u8]) -> (u32, Option<Vlan>) {
    let Some(data) = data.first_chunk::<AUXDATA_LEN>() else { return (0, None) };
    let status = u32::from_ne_bytes([data[0], data[1], data[2], data[3]]);
    let (tci, tpid) = (u16::from_ne_bytes([data[16], data[17]]), u16::from_ne_bytes([data[18], data[19]]));
    let tagged = status & libc::TP_STATUS_VLAN_VALID != 0;
    (status, tagged.then_some(Vlan { tpid, tci }))
}

/// The address to bind to: every protocol of one interface.
fn link_address(ifindex: i32) -> Result<LinkAddr> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: ifindex,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the pointer is to a whole sockaddr_ll on this stack frame, of the family and length that it says.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(size_of_val(&address) as u32)) };
    address.context("the C library's sockaddr_ll is not what nix expects")
}

fn timeval(duration: Duration) -> TimeVal {
    TimeVal::microseconds(duration.as_micros().try_into().unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_tag_the_kernel_took_out() {
        let mut data = [0; AUXDATA_LEN];
        data[16..18].copy_from_slice(&7_u16.to_ne_bytes());
        data[18..20].copy_from_slice(&0x8100_u16.to_ne_bytes());
        assert_eq!(read_auxdata(&data), (0, None), "not valid by its status");
        data[..4].copy_from_slice(&libc::TP_STATUS_VLAN_VALID.to_ne_bytes());
        assert_eq!(read_auxdata(&data).1, Some(Vlan { tpid: 0x8100, tci: 7 }));
        assert_eq!(read_auxdata(&data[..19]), (0, None));
    }

    #[test]
    fn puts_the_tag_back() {
        let mut frame = Frame { bytes: (0..16).collect(), vlan: None, checksum_pending: false, for_other: false };
        assert_eq!(frame.on_wire(), frame.bytes);
        frame.vlan = Some(Vlan { tpid: 0x8100, tci: 0x2005 });
        assert_eq!(frame.on_wire()[10..18], [10, 11, 0x81, 0x00, 0x20, 0x05, 12, 13]);
        frame.bytes.truncate(5);
        assert_eq!(frame.on_wire(), frame.bytes);
    }
}
