//! What changes in the host's namespace and in those of its members, as the kernel tells it (rtnetlink(7)).

use std::io::{self, IoSliceMut};
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use rtnetlink::packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};
use tokio::io::unix::AsyncFd;

use super::error::{Doing as _, KernelError, Result};
use super::neighbour::{Neighbour, read_neighbour};

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// An interface.
    Link,
    /// An address.
    Address,
    /// A route.
    Route,
    /// A neighbour, as it is now; `None` for one that is gone.
    Neighbour(Option<Neighbour>),
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it was.
    pub subject: Subject,
    /// Where: the number by which the host's namespace knows the other one
    /// ([`Link::peer_netnsid`](super::link::Link::peer_netnsid)); `None` for the host's own.
    pub netnsid: Option<i32>,
}

/// The groups that are listened to.
const GROUPS: [u32; 6] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_NEIGH,
];

/// Bytes that may wait for us. Beyond that the kernel drops messages, and says so.
const BUFFER: usize = 1 << 20;
/// The longest datagram: one message about one object, whose attributes are bounded by a page each.
const LONGEST: usize = 1 << 16;

/// A socket that is told of changes. One for all namespaces: those that the host's knows by a number, as it does all in
/// which its veths end.
pub struct Monitor(Socket);

impl Monitor {
    /// Listens from now on. Needs CAP_NET_ADMIN and, for what is beyond the host's own namespace, CAP_NET_BROADCAST; here and
    /// not later.
    pub fn open() -> Result<Self> {
        let what = || "listen to changes of interfaces, addresses and routes";
        let mut socket = Socket::new(NETLINK_ROUTE).doing(what)?;
        match socket.set_listen_all_namespaces(true) {
            Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => {}
            heard => heard.doing(what)?,
        }
        socket.set_non_blocking(true).doing(what)?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).doing(what)?;
        socket.bind(&SocketAddr::new(0, 0)).doing(what)?;
        GROUPS.into_iter().try_for_each(|group| socket.add_membership(group)).doing(what)?;
        Ok(Self(socket))
    }

    /// The stream of changes. Needs to be called in a tokio runtime.
    pub fn listen(self) -> Result<Changes> {
        // SAFETY: the socket owns its descriptor, gives no other, and closes it when it is dropped, with the AsyncFd.
        let socket = unsafe { AsyncFd::register(self.0) }.map_err(io::Error::from).doing(|| "wait for changes")?;
        Ok(Changes { socket, buffer: vec![0; LONGEST] })
    }
}

/// What changes from now on.
pub struct Changes {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
}

impl Changes {
    /// The next changes; `None` when some were lost, so that everything may be another now.
    ///
    /// May be dropped while it waits: nothing is lost.
    pub async fn next(&mut self) -> Result<Option<Vec<Change>>> {
        loop {
            let mut ready = self.socket.readable().await.doing(|| "wait for changes")?;
            let received = ready.try_io(|socket| receive(socket.get_ref(), &mut self.buffer));
            match received {
                Ok(Ok((length, netnsid))) => {
                    return Ok(Some(read(self.buffer.get(..length).unwrap_or_default(), netnsid)));
                }
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => return Ok(None),
                Ok(Err(error)) => return Err(KernelError::new("hear of changes", error)),
                Err(_would_block) => {}
            }
        }
    }
}

/// One datagram: its length, and whose it is.
fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<(usize, Option<i32>)> {
    let mut numbers = nix::cmsg_space!(i32);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut numbers), MsgFlags::empty())?;
    if message.flags.contains(MsgFlags::MSG_TRUNC) {
        return Err(Errno::ENOBUFS.into());
    }
    let netnsid = message.cmsgs()?.find_map(|part| netnsid_of(&part));
    Ok((message.bytes, netnsid))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "one of many")]
fn netnsid_of(part: &ControlMessageOwned) -> Option<i32> {
    match part {
        ControlMessageOwned::Unknown(part)
            if (part.cmsg_header.cmsg_level, part.cmsg_header.cmsg_type)
                == (libc::SOL_NETLINK, libc::NETLINK_LISTEN_ALL_NSID) =>
        {
            part.data_bytes.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
        }
        _ => None,
    }
}

fn read(mut bytes: &[u8], netnsid: Option<i32>) -> Vec<Change> {
    let mut changes = Vec::new();
    while let Ok(message) = NetlinkBuffer::new_checked(bytes) {
        let length = message.length() as usize;
        let subject = subject_of(message.message_type(), bytes);
        changes.extend(subject.map(|subject| Change { subject, netnsid }));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    changes
}

fn subject_of(kind: u16, bytes: &[u8]) -> Option<Subject> {
    match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => Some(Subject::Link),
        libc::RTM_NEWADDR | libc::RTM_DELADDR => Some(Subject::Address),
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => Some(Subject::Route),
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => Some(Subject::Neighbour(neighbour_of(bytes))),
        _ => None,
    }
}

fn neighbour_of(bytes: &[u8]) -> Option<Neighbour> {
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).ok()?.payload {
        NetlinkPayload::InnerMessage(message) => read_neighbour(&message),
        NetlinkPayload::Done(_) | NetlinkPayload::Error(_) | NetlinkPayload::Noop | NetlinkPayload::Overrun(_) | _ => {
            None
        }
    }
}
