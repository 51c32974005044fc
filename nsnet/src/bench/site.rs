//! A peer, built: a host with an outside, and two namespaces behind it.
//!
//! ```text
//!   red .15.1 ---+
//!                +--- host ---- uplink ===== uplink ---- wan
//!   blue .15.2 --+    192.168.1.1                        192.168.1.3
//! ```

mod build;

use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::family::{BOTH, Family};
use super::memory::Memory;
use super::peer::{Peer, Way};
use super::proxy::Proxy;
use super::tool;
use crate::kernel::netlink::Netlink;
use crate::kernel::netns::NetNs;
use crate::lab::ping::answers;
use crate::lab::{HOST_IP, Lab, WAN_IP};

/// Interface of both ends between host and wan.
const UPLINK: &str = "uplink";
/// The first published port, at the host and in blue.
pub(super) const FIRST_PUBLISHED: u16 = 8_000;
/// Ports below it are not published.
pub(super) const FIRST_PLAIN: u16 = 7_000;

/// Whom to tell how far it is.
type Step<'a> = &'a mut dyn FnMut() -> Result<()>;

/// What a site is to have beside red and blue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// Ports published of blue, from [`FIRST_PUBLISHED`] on, TCP and UDP.
    pub(super) published: u16,
    /// Further namespaces.
    pub(super) others: u16,
    /// Of all addresses but those of further namespaces, which are of IPv4.
    pub(super) families: &'static [Family],
}

impl Default for Size {
    fn default() -> Self {
        Self { published: 64, others: 0, families: BOTH }
    }
}

/// A peer's namespaces and what joins them. It is taken down when dropped.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) peer: Peer,
    /// How long it took to put the further namespaces in.
    pub(super) attached_in: Duration,
    /// How long it took to publish.
    pub(super) published_in: Duration,
    /// Kernel memory that it took, of many ports.
    pub(super) published_memory: Option<Memory>,
    /// Of its addresses: what the site was laid out for.
    families: &'static [Family],
    // Before the lab: it ends before the namespaces that it works in.
    _proxy: Option<Proxy>,
    pub(super) lab: Lab,
    red: Member,
    blue: Member,
    gateway: Ipv4Addr,
}

/// A namespace behind the host.
#[derive(Clone, Debug)]
struct Member {
    interface: String,
    ip: Ipv4Addr,
    /// Where what it sends comes out: the namespace and its interface.
    comes_in_by: (&'static str, String),
}

/// Where frames are put in, how they are addressed, and where they come out.
#[derive(Debug)]
pub(super) struct Injection {
    /// Namespace and interface that they seem to come in by.
    pub(super) entry: (NetNs, String),
    /// Whether they leave by it instead, as frames of XDP do that a namespace sends.
    pub(super) leaves: bool,
    pub(super) macs: [[u8; 6]; 2],
    pub(super) ips: [IpAddr; 2],
    /// Namespace and interface that they arrive at.
    pub(super) exit: (NetNs, String),
    /// Where the answers to them arrive.
    pub(super) back: (NetNs, String),
}

impl Site {
    /// Builds what `peer` is, and sees that its ways lead somewhere.
    /// `step` is told of each further namespace when it is made, and when it is attached; its error ends the work.
    pub(super) fn build(peer: Peer, size: Size, step: Step<'_>) -> Result<Site> {
        let families = size.families;
        let built = build::build(peer, size, step).with_context(|| format!("cannot build {}", peer.name()))?;
        let site = Site { families, ..built };
        site.prove().with_context(|| format!("{} does not work", peer.name()))?;
        Ok(site)
    }

    /// Sender's and receiver's namespaces, and the address that is sent to, of IPv4.
    pub(super) fn ends(&self, way: Way) -> Result<(NetNs, NetNs, Ipv4Addr)> {
        let ns = |short| self.lab.ns(short);
        if matches!(self.peer, Peer::Direct | Peer::DirectAgain) {
            return Ok((ns("red")?, ns("blue")?, self.blue.ip));
        }
        Ok(match way {
            Way::NsToNs => (ns("red")?, ns("blue")?, self.blue.ip),
            Way::NsToHost => (ns("red")?, ns("host")?, self.gateway),
            Way::NsToOutside => (ns("red")?, ns("wan")?, WAN_IP.parse()?),
            Way::OutsideToPublished => (ns("wan")?, ns("blue")?, HOST_IP.parse()?),
            Way::HostToPublished => (ns("host")?, ns("blue")?, HOST_IP.parse()?),
            Way::NsToPublished => (ns("red")?, ns("blue")?, HOST_IP.parse()?),
        })
    }

    /// How to inject frames of `family` on `way`.
    pub(super) fn injection(&self, way: Way, family: Family) -> Result<Injection> {
        ensure!(self.families.contains(&family), "it has no {} here", family.name());
        let at = |ns: &str, interface: &str| anyhow::Ok((self.lab.ns(ns)?, interface.to_owned()));
        let red = (at("red", &self.red.interface)?, family.address(self.red.ip));
        let blue = (at("blue", &self.blue.interface)?, family.address(self.blue.ip));
        let wan = (at("wan", UPLINK)?, family.address(WAN_IP.parse()?));
        let entry = |member: &Member| at(member.comes_in_by.0, &member.comes_in_by.1);
        if matches!(self.peer, Peer::Direct | Peer::DirectAgain) {
            let macs = [mac(&red.0)?, mac(&blue.0)?];
            return Ok(Injection {
                entry: entry(&self.red)?,
                macs,
                ips: [red.1, blue.1],
                exit: blue.0,
                back: red.0,
                leaves: false,
            });
        }
        // Where the accelerator is, a sender of frames of XDP is what is measured.
        let leaves = self.peer == Peer::NsnetXdp;
        let entry = if leaves { at("red", &self.red.interface) } else { entry(&self.red) };
        Ok(match way {
            Way::NsToNs | Way::NsToHost | Way::HostToPublished | Way::NsToPublished => {
                // On routed sites the next hop is the host, here too.
                let next = if self.peer == Peer::Routed { self.gateway_mac(family)? } else { mac(&blue.0)? };
                let macs = [mac(&red.0)?, next];
                Injection { entry: entry?, macs, ips: [red.1, blue.1], exit: blue.0, back: red.0, leaves }
            }
            Way::NsToOutside => {
                let macs = [mac(&red.0)?, self.gateway_mac(family)?];
                Injection { entry: entry?, macs, ips: [red.1, wan.1], exit: wan.0, back: red.0, leaves }
            }
            Way::OutsideToPublished => {
                let host = at("host", UPLINK)?;
                let macs = [mac(&wan.0)?, mac(&host)?];
                Injection {
                    entry: host,
                    macs,
                    ips: [wan.1, family.address(HOST_IP.parse()?)],
                    exit: blue.0,
                    back: wan.0,
                    leaves: false,
                }
            }
        })
    }

    /// Has the host forget all flows.
    pub(super) fn forget_flows(&self) -> Result<()> {
        match self.peer {
            Peer::Nsnet | Peer::NsnetRedirect | Peer::NsnetXdp => drop(self.lab.nsnet("ct flush")?),
            Peer::DockerNft | Peer::DockerLegacy | Peer::NftMaps | Peer::Routed => {
                tool::run(&self.lab.ns("host")?, "conntrack -F")?;
            }
            Peer::Direct | Peer::DirectAgain | Peer::Bridge | Peer::Macvlan | Peer::Proxy => {}
        }
        Ok(())
    }

    /// The MAC that red sends to for what is beyond its network.
    fn gateway_mac(&self, family: Family) -> Result<[u8; 6]> {
        // What it has not used for a minute it may have forgotten.
        self.reach(Way::NsToOutside, family)?;
        let gateway = family.address(self.gateway);
        let neighbours = Netlink::inside(&self.lab.ns("red")?)?.neighbours()?;
        let known = neighbours.iter().find(|entry| entry.ip == gateway).and_then(|entry| entry.mac);
        known.context("red does not know its gateway's MAC")
    }

    /// A ping of each family over each way that has one, which also fills the neighbour tables.
    fn prove(&self) -> Result<()> {
        for way in [Way::NsToNs, Way::NsToHost, Way::NsToOutside] {
            // The proxy's namespaces are on a bridge: they reach each other, too.
            if self.peer.has(way) || (way == Way::NsToNs && self.peer == Peer::Proxy) {
                self.families.iter().try_for_each(|family| self.reach(way, *family))?;
            }
        }
        Ok(())
    }

    /// A ping over `way`.
    fn reach(&self, way: Way, family: Family) -> Result<()> {
        let (sender, _, to) = self.ends(way)?;
        let to = family.address(to);
        // The first may wait for a neighbour.
        let answered = sender.run(|| answers(to, 3, Duration::from_secs(1)))??;
        ensure!(answered, "no ping from {} to {to}", way.name());
        Ok(())
    }
}

fn mac((ns, interface): &(NetNs, String)) -> Result<[u8; 6]> {
    let link = Netlink::inside(ns)?.existing_link(interface)?;
    link.mac.with_context(|| format!("{interface} has no MAC"))
}

pub(super) fn ports(count: u16) -> RangeInclusive<u16> {
    // Many begin lower. An empty range when there are none.
    let first = FIRST_PUBLISHED.min((u32::from(u16::MAX) - u32::from(count)) as u16);
    first..=first + count.saturating_sub(1) - u16::from(count == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_many_ports() {
        assert_eq!(ports(2), FIRST_PUBLISHED..=FIRST_PUBLISHED + 1);
        assert_eq!(ports(60_000), 5_535..=65_534);
        assert!(ports(0).is_empty());
    }
}
