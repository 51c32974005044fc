//! Is the sender who it says it is? Source addresses, ARP and ND senders, and who may not be a router or DHCP server.
//!
//! BCP 38 at every port: what passes here bears the port's own MAC and addresses. A port that learns may also send
//! from foreign MACs, but never from a MAC or an address that the control plane gave to somebody else.

use crate::layout::{AddressKey, Port, PortId};
use crate::learn;
use crate::packet::Packet;
use crate::tables::Tables;
use crate::verdict::DropReason;
use crate::wire::arp::Arp;
use crate::wire::icmpv6::{Head, MacOption, Neighbour, OptionHead, Type};
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::{Ipv6, UpperLayer};
use crate::wire::transport::Udp;
use crate::wire::{EtherType, Ethernet, IpAddress, IpProtocol, Mac};

/// Refuses a frame that the station behind `port` has no right to send.
#[inline(always)]
pub fn check_sender(frame: &impl Packet, eth: &Ethernet, port: &Port, tables: impl Tables) -> Result<(), DropReason> {
    // Most frames: nothing of them needs to be in memory then.
    if eth.source == port.mac() && eth.ethertype() == EtherType::IPV4 {
        let ip = Ipv4::read(frame)?;
        if ip.source() == port.ipv4() && ip.source() != [0; 4] {
            return check_dhcp_v4(frame, &ip, port);
        }
    }
    check_any_sender(frame, port, tables)
}

/// The same for every frame. Reads the header again: a reference to it would force it onto the callers' stack.
#[inline(never)]
fn check_any_sender(frame: &impl Packet, port: &Port, tables: impl Tables) -> Result<(), DropReason> {
    let eth = Ethernet::read(frame)?;
    let sender = Sender { mac: eth.source, is_own: eth.source == port.mac(), port };
    if !sender.is_own {
        sender.check_foreign_mac(tables)?;
    }
    match eth.ethertype() {
        EtherType::IPV4 => sender.check_ipv4(frame, tables),
        EtherType::ARP => sender.check_arp(frame, tables),
        EtherType::IPV6 => sender.check_ipv6(frame, tables),
        // Said by the switch, unless the destination is reserved, which names the frame better.
        _ => Ok(()),
    }
}

/// The station that sent the frame: the port's own, or one behind it.
struct Sender<'a> {
    mac: Mac,
    is_own: bool,
    port: &'a Port,
}

impl Sender<'_> {
    /// A MAC that is not the port's own.
    #[inline(never)]
    fn check_foreign_mac(&self, tables: impl Tables) -> Result<(), DropReason> {
        if self.mac.is_group() || self.mac == Mac::ZERO {
            return Err(DropReason::InvalidSourceMac);
        }
        if self.port.learns() {
            return learn::learn(self.mac, self.port, tables);
        }
        if self.port.is_trusted() { Ok(()) } else { Err(DropReason::SpoofedMac) }
    }

    /// Whether `ip` is the sender's to use.
    #[inline(always)]
    fn may_use(&self, ip: IpAddress, tables: impl Tables) -> bool {
        if self.port.is_trusted() {
            return true;
        }
        let key = AddressKey { network: self.port.network(), ip };
        match tables.address(&key) {
            Some(owner) => owner == self.port.id(),
            None => !self.is_own && ip != IpAddress::UNSPECIFIED && !self.is_elsewhere(ip, tables),
        }
    }

    /// Whether `ip` is in another network's subnet: a station behind the port may bear any address but such.
    #[inline(always)]
    fn is_elsewhere(&self, ip: IpAddress, tables: impl Tables) -> bool {
        tables.subnet(ip).is_some_and(|network| network != self.port.network())
    }

    #[inline(always)]
    fn check_ipv4(&self, frame: &impl Packet, tables: impl Tables) -> Result<(), DropReason> {
        let ip = Ipv4::read(frame)?;
        if !self.may_use(IpAddress::v4(ip.source()), tables) {
            return Err(DropReason::SpoofedIpv4);
        }
        check_dhcp_v4(frame, &ip, self.port)
    }

    #[inline(never)]
    fn check_arp(&self, frame: &impl Packet, tables: impl Tables) -> Result<(), DropReason> {
        let arp = Arp::read(frame)?;
        if self.port.is_trusted() {
            return Ok(());
        }
        // A probe (RFC 5227 section 2.1.1) has no sender address yet; a reply always has one.
        let is_probe = arp.is_request() && arp.sender_ip == [0; 4];
        if arp.sender_mac != self.mac || !(is_probe || self.may_use(IpAddress::v4(arp.sender_ip), tables)) {
            return Err(DropReason::SpoofedArp);
        }
        Ok(())
    }

    #[inline(never)]
    fn check_ipv6(&self, frame: &impl Packet, tables: impl Tables) -> Result<(), DropReason> {
        if !self.port.has_ipv6() {
            return Err(DropReason::Ipv6Off);
        }
        let ip = Ipv6::read(frame)?;
        let is_first = self.is_own && ip.source().0 == self.port.ipv6() && ip.source() != IpAddress::UNSPECIFIED;
        // Without an address one may look for a free one and join groups (RFC 4862 section 5.4.2, RFC 3590).
        let is_joining = ip.source() == IpAddress::UNSPECIFIED && ip.destination().is_multicast_v6();
        // A mapped IPv4 address is in the tables, but is none of IPv6 (RFC 4291 section 2.5.5.2).
        let is_mapped = ip.source().as_v4().is_some();
        if is_mapped || !is_first && !is_joining && !self.may_use(ip.source(), tables) {
            return Err(DropReason::SpoofedIpv6);
        }
        if ip.next_header() == IpProtocol::TCP {
            return Ok(());
        }
        let upper = ip.upper_layer(frame, tables)?;
        match upper.protocol {
            _ if !upper.is_here => Ok(()),
            IpProtocol::UDP => check_dhcp(frame, usize::from(upper.at), (547, 546), self.port),
            IpProtocol::ICMPV6 => self.check_icmpv6(frame, ip, upper, tables),
            _ => Ok(()),
        }
    }

    #[inline(never)]
    fn check_icmpv6(
        &self,
        frame: &impl Packet,
        ip: &Ipv6,
        upper: UpperLayer,
        tables: impl Tables,
    ) -> Result<(), DropReason> {
        // A first fragment that ends before the type could hide a router advertisement (RFC 7113 section 3).
        let kind = frame.view::<Head>(usize::from(upper.at)).ok_or(DropReason::BadIpv6)?.kind;
        if !kind.is_neighbour_discovery() || self.port.is_trusted() {
            return Ok(());
        }
        // RFC 4861 section 7.1: hop limit 255. RFC 6980 section 5: no fragments; no other extension is ever needed.
        if ip.hop_limit() != 255 || upper.extended {
            return Err(DropReason::BadNd);
        }
        match kind {
            Type::ROUTER_ADVERTISEMENT | Type::REDIRECT => Err(DropReason::RouterGuard),
            Type::NEIGHBOUR_SOLICITATION => self.check_neighbour(frame, tables, false),
            Type::NEIGHBOUR_ADVERTISEMENT => self.check_neighbour(frame, tables, true),
            _ => Ok(()),
        }
    }

    /// A neighbour solicitation or advertisement: an advertised target must be the sender's, and so must every MAC.
    #[inline(always)]
    fn check_neighbour(&self, frame: &impl Packet, tables: impl Tables, advertises: bool) -> Result<(), DropReason> {
        const AT: usize = Ethernet::LEN + Ipv6::LEN;
        let message = *frame.view::<Neighbour>(AT).ok_or(DropReason::BadNd)?;
        if message.head.code != 0 || message.target.is_multicast_v6() {
            return Err(DropReason::BadNd);
        }
        if advertises && !self.may_use(message.target, tables) {
            return Err(DropReason::SpoofedNd);
        }
        // Kernels send one option; RFC 4861 and 3971 define few. More than three are not looked through, but refused.
        let mut at = AT + Neighbour::LEN;
        for _ in 0..3 {
            let Some(head) = frame.view::<OptionHead>(at).copied() else { return Ok(()) };
            if head.units == 0 {
                // The rest is Ethernet padding, or an error that the receiver drops (section 4.6).
                return if head.kind == 0 { Ok(()) } else { Err(DropReason::BadNd) };
            }
            if matches!(head.kind, crate::wire::icmpv6::SOURCE_MAC | crate::wire::icmpv6::TARGET_MAC) {
                let option = frame.view::<MacOption>(at).ok_or(DropReason::BadNd)?;
                if option.mac != self.mac {
                    return Err(DropReason::SpoofedNd);
                }
            }
            at += usize::from(head.units) * 8;
        }
        if frame.view::<OptionHead>(at).is_some() { Err(DropReason::BadNd) } else { Ok(()) }
    }
}

#[inline(always)]
fn check_dhcp_v4(frame: &impl Packet, ip: &Ipv4, port: &Port) -> Result<(), DropReason> {
    if ip.protocol() == IpProtocol::UDP && ip.has_transport_header() {
        return check_dhcp(frame, ip.transport_at(), (67, 68), port);
    }
    Ok(())
}

/// Nobody but the network's own services may answer DHCP: `server` and `client` are the protocol's ports.
#[inline(always)]
fn check_dhcp(frame: &impl Packet, at: usize, (server, client): (u16, u16), port: &Port) -> Result<(), DropReason> {
    let udp = frame.view::<Udp>(at).ok_or(DropReason::Truncated)?;
    if udp.source_port() == server && udp.destination_port() == client && !port.is_trusted() {
        return Err(DropReason::DhcpServer);
    }
    Ok(())
}

/// The owner of an address in the sender's network, when it is not the sender.
#[inline(always)]
pub(crate) fn other_owner(from: &Port, ip: IpAddress, tables: impl Tables) -> Option<Port> {
    let owner = tables.address(&AddressKey { network: from.network(), ip })?;
    if owner == from.id() || owner == PortId::NONE {
        return None;
    }
    tables.port(owner).filter(|port| port.network() == from.network())
}
