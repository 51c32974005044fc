//! Virtual Ethernet pairs: two interfaces, what is sent into one comes out of the other.

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};

use super::error::{KernelError, Result};
use super::link::Link;
use super::netlink::Netlink;
use super::netns::NetNs;

/// One end of a pair that is to be made. It is made down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VethSpec<'a> {
    /// Interface name, 1 to 15 bytes.
    pub name: &'a str,
    /// Interface index; the kernel chooses when `None`. The other end's is obeyed only when our end has one too
    /// (drivers/net/veth.c).
    pub index: Option<u32>,
    /// Ethernet address; the kernel chooses a random one when `None`.
    pub mac: Option<[u8; 6]>,
    /// Largest packet in bytes without the Ethernet header; the kernel's 1500 when `None`.
    pub mtu: Option<u32>,
    /// An end that never speaks by itself: no ARP (IFF_NOARP) and no IPv6 link-local address.
    pub quiet: bool,
}

impl Netlink {
    /// Makes a pair: `end` here, `peer` in `peer_ns` (here when `None`), and describes our end. EEXIST when a name or
    /// an index is taken; nothing is left behind by a failure.
    pub fn create_veth(&self, end: &VethSpec<'_>, peer: &VethSpec<'_>, peer_ns: Option<&NetNs>) -> Result<Link> {
        // Both names: EEXIST may be about either.
        let there = peer_ns.map(|ns| format!(" in {ns}")).unwrap_or_default();
        let what = format_args!("create veth {} with {}{there}", end.name, peer.name);
        let request = RouteNetlinkMessage::NewLink(newlink(end, peer, peer_ns));
        self.ask(request, NLM_F_CREATE | NLM_F_EXCL, what)?;
        let link = self.link(end.name)?.ok_or_else(|| KernelError::new(what, Errno::ENODEV))?;
        let hushed = (|| {
            if end.quiet {
                self.no_link_local(end.name)?;
            }
            match (peer.quiet, peer_ns) {
                (false, _) => Ok(()),
                (true, None) => self.no_link_local(peer.name),
                (true, Some(ns)) => Self::inside(ns)?.no_link_local(peer.name),
            }
        })();
        match hushed {
            Ok(()) => Ok(link),
            Err(error) => {
                // The first error is the one to tell.
                drop(self.delete_link(link.index));
                Err(error)
            }
        }
    }

    /// IPv6 addresses appear when an interface comes up, so this is in time while it is down. It is a request of its
    /// own because RTM_NEWLINK refuses this attribute with EAFNOSUPPORT (measured on Linux 6.18).
    fn no_link_local(&self, name: &str) -> Result<()> {
        let what = format_args!("keep interface {name} free of link-local addresses");
        let link = self.link(name)?.ok_or_else(|| KernelError::new(what, Errno::ENODEV))?;
        let mut request = LinkMessage::default();
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        request.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
        match self.set_link(link.index, request, what) {
            // Without IPv6 there is no such address.
            Err(error) if matches!(error.errno(), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP)) => Ok(()),
            result => result,
        }
    }
}

fn newlink(end: &VethSpec<'_>, peer: &VethSpec<'_>, peer_ns: Option<&NetNs>) -> LinkMessage {
    let mut other = half(peer);
    if let Some(ns) = peer_ns {
        other.attributes.push(LinkAttribute::NetNsFd(ns.as_fd().as_raw_fd()));
    }
    let mut request = half(end);
    request.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
    ]));
    request
}

fn half(spec: &VethSpec<'_>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = spec.index.unwrap_or(0);
    if spec.quiet {
        message.header.flags = LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Noarp;
    }
    let attributes = &mut message.attributes;
    attributes.push(LinkAttribute::IfName(spec.name.to_owned()));
    attributes.extend(spec.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    attributes.extend(spec.mtu.map(LinkAttribute::Mtu));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_in_one_request() {
        let end = VethSpec { name: "a", index: Some(7), mtu: Some(9000), quiet: true, ..VethSpec::default() };
        let peer = VethSpec { name: "b", mac: Some([2, 0, 0, 0, 0, 1]), ..VethSpec::default() };
        let request = newlink(&end, &peer, None);
        assert_eq!(request.header.index, 7);
        assert_eq!(request.header.change_mask, LinkFlags::Noarp);
        assert!(request.attributes.contains(&LinkAttribute::Mtu(9000)));
        let Some(LinkAttribute::LinkInfo(info)) = request.attributes.last() else { panic!("no link info") };
        let Some(LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other)))) = info.last() else { panic!("no peer") };
        assert_eq!(other.header, half(&VethSpec::default()).header);
        let expected = [LinkAttribute::IfName("b".into()), LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1])];
        assert_eq!(other.attributes, expected);
    }
}
