//! Network interfaces.

#![expect(clippy::wildcard_enum_match_arm, reason = "netlink enums are open: what is not read here is skipped")]

use std::fmt;
use std::os::fd::{AsFd, AsRawFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nsnet_common::wire::Mac;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoPortKind, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, State,
};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};

use super::error::{KernelError, Result, unless};
use super::netlink::Netlink;
use super::netns::NetNs;
use crate::model::state::Attachment;

/// How long the kernel may take to notice that both ends of a pair are up.
const SETTLING: Duration = Duration::from_millis(500);

/// An interface as the kernel describes it (RTM_NEWLINK).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index, unique in its namespace.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Ethernet address; `None` for devices without one of 6 bytes.
    pub mac: Option<[u8; 6]>,
    /// Largest packet in bytes, without the Ethernet header.
    pub mtu: u32,
    /// Whether it was set up (IFF_UP); whether it has a carrier is another question.
    pub up: bool,
    /// Whether the kernel sends by it (IF_OPER_UP): it is up, and what is at its other end is, too.
    pub runs: bool,
    /// Whether it carries Ethernet frames (ARPHRD_ETHER).
    pub is_ethernet: bool,
    /// Whether what comes in by it goes to another interface: a port of a bridge, bond or team. (A VRF only has it use
    /// other routes.)
    pub is_enslaved: bool,
    /// The driver's kind, such as "veth"; `None` for physical interfaces and `lo`.
    pub kind: Option<String>,
    /// IFLA_LINK: for a veth the index of its other end, in the namespace of that end.
    pub peer_index: Option<u32>,
    /// IFLA_LINK_NETNSID: the other end's namespace, in the numbers of this one (see [`Netlink::netns_id`]); `None`
    /// when the other end is in the same namespace.
    pub peer_netnsid: Option<i32>,
    /// The kernel's number of the XDP program that is on it, native or not.
    pub xdp: Option<u32>,
}

impl Link {
    /// Whether it looks like our end of an attachment, in the namespace. Another host may have one that looks the same.
    pub fn is_inner_end_of(&self, port: &Attachment) -> bool {
        self.peer_index == Some(port.port().ifindex()) && self.mac == Some(port.mac.0)
    }
}

impl Netlink {
    /// The interface of that name; `None` when there is none.
    pub fn link(&self, name: &str) -> Result<Option<Link>> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.get_link(request, format_args!("look up interface {name}"))
    }

    /// The interface of that name, which must be there (ENODEV).
    pub fn existing_link(&self, name: &str) -> Result<Link> {
        self.link(name)?.ok_or_else(|| KernelError::new(format_args!("find interface {name}"), Errno::ENODEV))
    }

    /// Sets loopback up, which every namespace has.
    pub fn set_loopback_up(&self) -> Result<()> {
        self.set_up(self.existing_link("lo")?.index)
    }

    /// The interface of that index; `None` when there is none.
    pub fn link_by_index(&self, index: u32) -> Result<Option<Link>> {
        let mut request = LinkMessage::default();
        request.header.index = index;
        self.get_link(request, format_args!("look up interface {index}"))
    }

    /// All interfaces of the namespace.
    pub fn links(&self) -> Result<Vec<Link>> {
        let request = RouteNetlinkMessage::GetLink(without_statistics(LinkMessage::default()));
        let messages = self.dump(&request, format_args!("list the interfaces"))?;
        Ok(messages.iter().filter_map(read_link).collect())
    }

    /// Deletes an interface, and with it a veth's other end. `Ok(false)` when it is not there.
    pub fn delete_link(&self, index: u32) -> Result<bool> {
        let mut request = LinkMessage::default();
        request.header.index = index;
        let request = RouteNetlinkMessage::DelLink(request);
        unless(self.ask(request, 0, format_args!("delete interface {index}")), &[Errno::ENODEV])
    }

    /// Sets an interface up.
    pub fn set_up(&self, index: u32) -> Result<()> {
        let mut request = LinkMessage::default();
        request.header.flags = LinkFlags::Up;
        request.header.change_mask = LinkFlags::Up;
        self.set_link(index, request, format_args!("set interface {index} up"))
    }

    /// Waits until the kernel sends by an interface that is up. Of a veth that came up before its other end it is told by a
    /// worker of its own, and what is sent before that is lost; since Linux 6.8 it is enough to ask. Where it does not
    /// come about, as when somebody has set the other end down again, it goes on after half a second.
    pub fn wait_until_running(&self, index: u32) -> Result<()> {
        let asked = Instant::now();
        while self.link_by_index(index)?.is_some_and(|link| !link.runs) && asked.elapsed() < SETTLING {
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Sets the largest packet, in bytes without the Ethernet header.
    pub fn set_mtu(&self, index: u32, mtu: u32) -> Result<()> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::Mtu(mtu));
        self.set_link(index, request, format_args!("set the MTU of interface {index} to {mtu}"))
    }

    /// Sets the Ethernet address.
    pub fn set_mac(&self, index: u32, mac: Mac) -> Result<()> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        self.set_link(index, request, format_args!("set the MAC of interface {index} to {mac}"))
    }

    /// Renames an interface. Before Linux 6.2 it has to be down (EBUSY).
    pub fn rename(&self, index: u32, name: &str) -> Result<()> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.set_link(index, request, format_args!("rename interface {index} to {name}"))
    }

    /// The number by which this namespace knows `ns` (RTM_GETNSID), as in [`Link::peer_netnsid`]; `None` when it has
    /// none yet.
    pub fn netns_id(&self, ns: &NetNs) -> Result<Option<i32>> {
        let mut request = NsidMessage::default();
        request.attributes.push(NsidAttribute::Fd(ns.as_fd().as_raw_fd().unsigned_abs()));
        let what = format_args!("look up the number of network namespace {ns}");
        let messages = self.ask(RouteNetlinkMessage::GetNsId(request), 0, what)?;
        let mut attributes = messages.iter().flat_map(|message| match message {
            RouteNetlinkMessage::NewNsId(found) => found.attributes.as_slice(),
            _ => &[],
        });
        Ok(attributes.find_map(|attribute| match attribute {
            NsidAttribute::Id(id) => Some(*id).filter(|&id| id >= 0),
            _ => None,
        }))
    }

    pub(crate) fn set_link(&self, index: u32, mut request: LinkMessage, what: fmt::Arguments<'_>) -> Result<()> {
        request.header.index = index;
        self.ask(RouteNetlinkMessage::SetLink(request), 0, what).map(drop)
    }

    fn get_link(&self, request: LinkMessage, what: fmt::Arguments<'_>) -> Result<Option<Link>> {
        match self.ask(RouteNetlinkMessage::GetLink(without_statistics(request)), 0, what) {
            Ok(messages) => match messages.iter().find_map(read_link) {
                Some(link) => Ok(Some(link)),
                None => Err(KernelError::refused(what, "the kernel's description of it was not understood")),
            },
            // ERANGE: no interface can have a name that long.
            Err(error) if matches!(error.errno(), Some(Errno::ENODEV | Errno::ERANGE)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Statistics are most of a description, and nothing here reads them.
fn without_statistics(mut request: LinkMessage) -> LinkMessage {
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    request
}

fn read_link(message: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        runs: false,
        is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        is_enslaved: false,
        kind: None,
        peer_index: None,
        peer_netnsid: None,
        xdp: None,
    };
    let (mut has_controller, mut is_in_vrf) = (false, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Controller(index) => has_controller = *index != 0,
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(address) => link.mac = address.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::OperState(state) => link.runs = *state == State::Up,
            LinkAttribute::Link(peer) => link.peer_index = Some(*peer).filter(|&peer| peer != 0),
            LinkAttribute::LinkNetNsId(id) => link.peer_netnsid = Some(*id).filter(|&id| id >= 0),
            LinkAttribute::Xdp(about) => {
                link.xdp = about.iter().find_map(|one| if let LinkXdp::ProgId(id) = one { Some(*id) } else { None });
            }
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(kind);
                is_in_vrf = infos.contains(&LinkInfo::PortKind(InfoPortKind::Vrf));
            }
            _ => {}
        }
    }
    link.is_enslaved = has_controller && !is_in_vrf;
    Some(link)
}

fn kind(info: &LinkInfo) -> Option<String> {
    if let LinkInfo::Kind(kind) = info { Some(kind.to_string()) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_namespace_has_lo() {
        let netlink = Netlink::here().unwrap();
        let lo = netlink.link("lo").unwrap().unwrap();
        assert_eq!((lo.index, lo.kind.as_deref(), lo.peer_index), (1, None, None));
        assert_eq!(netlink.link_by_index(1).unwrap(), Some(lo.clone()));
        assert!(netlink.links().unwrap().contains(&lo));
        assert_eq!(netlink.link("no-such-if").unwrap(), None);
        assert_eq!(netlink.link("longer-than-15-bytes").unwrap(), None);
        assert_eq!(netlink.link_by_index(u32::MAX >> 1).unwrap(), None);
    }
}
