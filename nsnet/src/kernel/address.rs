//! IP addresses of interfaces.

#![expect(clippy::wildcard_enum_match_arm, reason = "netlink enums are open: what is not read here is skipped")]

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::{Result, unless};
use super::netlink::Netlink;

impl Netlink {
    /// Gives `address` (with its prefix length) to an interface. `Ok(false)` when it has it already; an IPv6 address
    /// counts as the same whatever its prefix length is.
    ///
    /// IPv6 addresses are usable at once: without duplicate address detection (RFC 4862, 5.4), as what is given here
    /// was chosen to be unique.
    pub fn add_address(&self, index: u32, address: IpNet) -> Result<bool> {
        let mut message = describe(index, address);
        match address {
            IpNet::V4(v4) => {
                if v4.addr().is_loopback() {
                    message.header.scope = AddressScope::Host;
                }
                // RFC 3021: a /31 has no broadcast address, and a /32 nobody to broadcast to.
                if v4.prefix_len() < 31 {
                    message.attributes.push(AddressAttribute::Broadcast(v4.broadcast()));
                }
            }
            IpNet::V6(_) => message.header.flags = AddressHeaderFlags::Nodad,
        }
        let what = format_args!("add address {address} to interface {index}");
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        unless(self.ask(RouteNetlinkMessage::NewAddress(message), flags, what), &[Errno::EEXIST])
    }

    /// Takes an address away. `Ok(false)` when the interface does not have it or is not there itself. Routes that
    /// use the address as their source go with it; so do, unless `promote_secondaries` is set, the further IPv4
    /// addresses of its subnet when it was the first of them.
    pub fn remove_address(&self, index: u32, address: IpNet) -> Result<bool> {
        let message = RouteNetlinkMessage::DelAddress(describe(index, address));
        let what = format_args!("remove address {address} from interface {index}");
        unless(self.ask(message, 0, what), &[Errno::EADDRNOTAVAIL, Errno::ENODEV])
    }

    /// The addresses of one interface; none when it is not there.
    pub fn addresses(&self, index: u32) -> Result<Vec<IpNet>> {
        let found = match self.dump_addresses(index, format_args!("list the addresses of interface {index}")) {
            Err(error) if error.errno() == Some(Errno::ENODEV) => return Ok(Vec::new()),
            found => found?,
        };
        // A kernel without strict checking (before 4.20) sends those of every interface.
        Ok(found.into_iter().filter(|&(at, _)| at == index).map(|(_, address)| address).collect())
    }

    /// Every address of the namespace, with the index of its interface.
    pub fn all_addresses(&self) -> Result<Vec<(u32, IpNet)>> {
        self.dump_addresses(0, format_args!("list the addresses"))
    }

    fn dump_addresses(&self, index: u32, what: fmt::Arguments<'_>) -> Result<Vec<(u32, IpNet)>> {
        let mut request = AddressMessage::default();
        request.header.index = index;
        let messages = self.dump(&RouteNetlinkMessage::GetAddress(request), what)?;
        Ok(messages.iter().filter_map(read_address).collect())
    }
}

fn describe(index: u32, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = match address {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.prefix_len = address.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
    message
}

fn read_address(message: &RouteNetlinkMessage) -> Option<(u32, IpNet)> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let mut local: Option<IpAddr> = None;
    let mut address: Option<IpAddr> = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    // Where both are there, IFA_ADDRESS is the other end of a point-to-point link (linux/if_addr.h).
    let net = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some((message.header.index, net))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_described_is_read_back() {
        for text in ["192.168.15.1/24", "10.0.0.1/32", "fd15::1/64"] {
            let address: IpNet = text.parse().unwrap();
            let message = RouteNetlinkMessage::NewAddress(describe(7, address));
            assert_eq!(read_address(&message), Some((7, address)));
        }
    }

    #[test]
    fn an_unknown_interface_has_no_addresses() {
        let netlink = Netlink::here().unwrap();
        assert_eq!(netlink.addresses(u32::MAX >> 1).unwrap(), []);
        netlink.all_addresses().unwrap();
    }
}
