//! A route netlink socket with blocking calls. The calls themselves are in [`super::link`], [`super::veth`],
//! [`super::address`], [`super::route`] and [`super::neighbour`].

use std::fmt::{self, Debug};
use std::io;
use std::sync::{Mutex, PoisonError};

use futures_util::StreamExt as _;
use nix::errno::Errno;
use rtnetlink::Handle;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::runtime::{self, Runtime};

use super::error::{Doing, KernelError, Result};
use super::netns::NetNs;

/// A netlink socket. It acts on the network namespace it was made in, whatever thread uses it later.
pub struct Netlink {
    runtime: Runtime,
    handle: Mutex<Handle>,
    /// Where to open another one when this one has failed: what was done has to be taken back.
    ns: NetNs,
}

impl Netlink {
    /// A socket in the calling thread's network namespace.
    pub fn here() -> Result<Self> {
        Self::open(NetNs::current()?)
    }

    /// A socket in `ns`.
    pub fn inside(ns: &NetNs) -> Result<Self> {
        Self::open(ns.try_clone()?)
    }

    fn open(ns: NetNs) -> Result<Self> {
        let runtime =
            runtime::Builder::new_current_thread().enable_io().build().doing(|| "start the netlink runtime")?;
        let handle = Mutex::new(connect(&runtime, &ns)?);
        Ok(Self { runtime, handle, ns })
    }

    /// Sends a request and waits for the kernel's answer: what it replied, or its errno. `what` is the action, for
    /// the error.
    pub(crate) fn ask(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        what: fmt::Arguments<'_>,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        self.exchange(message, flags | NLM_F_ACK, what).map(|reply| reply.messages)
    }

    /// Asks for a whole table. A table that changed while the kernel wrote it out is asked for again.
    pub(crate) fn dump(
        &self,
        message: &RouteNetlinkMessage,
        what: fmt::Arguments<'_>,
    ) -> Result<Vec<RouteNetlinkMessage>> {
        const TRIES: usize = 10;
        for _ in 0..TRIES {
            let reply = self.exchange(message.clone(), NLM_F_DUMP, what)?;
            if !reply.torn {
                return Ok(reply.messages);
            }
        }
        Err(KernelError::new(what, Errno::EINTR).with_remedy("the table changes all the time: try again"))
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "netlink enums are open: what is not read here is skipped")]
    fn exchange(&self, message: RouteNetlinkMessage, flags: u16, what: fmt::Arguments<'_>) -> Result<Reply> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut reply = Reply { messages: Vec::new(), torn: false };
        self.runtime.block_on(async {
            let closed = || KernelError::refused(what, "the netlink socket was closed");
            let mut answers = {
                let mut handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
                match handle.request(request.clone()) {
                    Ok(answers) => answers,
                    // It failed the last time, and nothing has been sent now.
                    Err(_closed) => {
                        *handle = connect(&self.runtime, &self.ns)?;
                        handle.request(request).map_err(|_| closed())?
                    }
                }
            };
            while let Some(answer) = answers.next().await {
                reply.torn |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => reply.messages.push(message),
                    NetlinkPayload::Error(error) => {
                        let text = error.header.get(HEADER..).and_then(extended_ack);
                        return finish(error.raw_code(), text, what);
                    }
                    NetlinkPayload::Done(done) => return finish(done.code, extended_ack(&done.extended_ack), what),
                    NetlinkPayload::Overrun(_) => return Err(KernelError::new(what, Errno::ENOBUFS)),
                    _ => {}
                }
            }
            // Every exchange ends with an acknowledgement, an error or the end of a dump.
            Err(closed())
        })?;
        Ok(reply)
    }
}

impl Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Netlink")
    }
}

struct Reply {
    messages: Vec<RouteNetlinkMessage>,
    /// NLM_F_DUMP_INTR: entries may be missing or twice.
    torn: bool,
}

fn connect(runtime: &Runtime, ns: &NetNs) -> Result<Handle> {
    let runtime = runtime.handle();
    let what = || format!("open a netlink socket in network namespace {ns}");
    if ns.is_here() { connect_here(runtime).doing(what) } else { ns.run(|| connect_here(runtime))?.doing(what) }
}

/// The connection runs as a task of `runtime` and gets on whenever somebody waits for an answer.
fn connect_here(runtime: &runtime::Handle) -> io::Result<Handle> {
    let _entered = runtime.enter();
    // Strict: the kernel filters dumps for us and refuses what it does not understand (Linux 4.20).
    let (mut connection, handle, _unsolicited) = rtnetlink::new_connection_with_strict_check()?;
    // We want to see the end of each exchange, or a socket that closed would look like success.
    connection.set_forward_ack(true);
    connection.set_forward_done(true);
    let socket = rtnetlink::sys::AsyncSocket::socket_ref(connection.socket_mut());
    socket.set_ext_ack(true)?;
    socket.set_cap_ack(true)?;
    runtime.spawn(connection);
    Ok(handle)
}

/// The request's header, which an error repeats in front of its attributes (NETLINK_CAP_ACK leaves out the rest).
const HEADER: usize = 16;

/// NLMSGERR_ATTR_MSG of the extended acknowledgement: the kernel's own sentence about the errno.
fn extended_ack(attributes: &[u8]) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let attribute =
        NlasIterator::new(attributes).map_while(std::result::Result::ok).find(|nla| nla.kind() == NLMSGERR_ATTR_MSG)?;
    let text = String::from_utf8_lossy(attribute.value());
    Some(text.trim_end_matches(['\0', '.']).to_owned()).filter(|text| !text.is_empty())
}

/// `code` is 0 or a negative errno (netlink(7)).
fn finish(code: i32, said: Option<String>, what: fmt::Arguments<'_>) -> Result<()> {
    match code {
        0 => Ok(()),
        errno => Err(KernelError::new(what, Errno::from_raw(errno.saturating_neg())).with_said(said)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_sentence_is_found() {
        // NLMSGERR_ATTR_OFFS = 12, then NLMSGERR_ATTR_MSG = "No", in host byte order.
        let mut bytes = Vec::new();
        for (length, kind, value) in [(8u16, 2u16, &[12, 0, 0, 0][..]), (7, 1, b"No\0\0")] {
            bytes.extend_from_slice(&length.to_ne_bytes());
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(value);
        }
        assert_eq!(extended_ack(&bytes).as_deref(), Some("No"));
        assert_eq!(extended_ack(&[]), None);
        assert_eq!(extended_ack(&[1, 2, 3]), None);
    }

    #[test]
    fn codes() {
        assert!(finish(0, None, format_args!("x")).is_ok());
        let error = finish(-17, Some("taken".into()), format_args!("create veth a")).unwrap_err();
        assert_eq!(error.to_string(), "cannot create veth a: File exists (os error 17): taken");
    }
}
