//! Telling the neighbours that an address has moved: a gratuitous ARP and an unsolicited neighbour advertisement.
//!
//! Sent from inside the namespace, so that they go the way of all its frames and are checked like them.

use std::net::{IpAddr, Ipv6Addr};
use std::thread;

use bytes::{BufMut as _, BytesMut};
use nsnet_common::checksum::Sum;
use nsnet_common::wire::arp::{Arp, REQUEST};
use nsnet_common::wire::icmpv6::{Head, MacOption, Neighbour, OVERRIDE, TARGET_MAC, Type};
use nsnet_common::wire::ipv6::Ipv6;
use nsnet_common::wire::{EtherType, Ethernet, IpAddress, IpProtocol, Mac};
use zerocopy::IntoBytes as _;

use super::error::{KernelError, Result};
use crate::lab::RawSocket;

/// Announces `ips` at `mac` on `interface` of the calling thread's namespace.
pub fn announce(interface: &str, mac: Mac, ips: &[IpAddr]) -> Result<()> {
    let failed = |error: anyhow::Error| {
        KernelError::refused(format!("announce the addresses of {interface}"), format!("{error:#}"))
    };
    let socket = RawSocket::open(interface).map_err(failed)?;
    for ip in ips {
        let frame = match ip {
            IpAddr::V4(ip) => gratuitous_arp(mac, ip.octets()),
            IpAddr::V6(ip) => unsolicited_advertisement(mac, *ip),
        };
        socket.send(&frame).map_err(failed)?;
    }
    // Its end waits until no CPU can be using it (packet_release: 12 ms). Nobody has to wait with it: where no thread is
    // to be had, it ends here.
    let _ended_later = thread::Builder::new().spawn(move || drop(socket));
    Ok(())
}

/// An ARP announcement (RFC 5227 section 3): a request in which sender and target are the same.
fn gratuitous_arp(mac: Mac, ip: [u8; 4]) -> BytesMut {
    let mut frame = BytesMut::new();
    frame.put_slice(Ethernet::new(Mac::BROADCAST, mac, EtherType::ARP).as_bytes());
    frame.put_slice(Arp::new(REQUEST, (mac, ip), (Mac::ZERO, ip)).as_bytes());
    frame
}

/// An unsolicited neighbour advertisement to all nodes (RFC 4861 section 7.2.6).
fn unsolicited_advertisement(mac: Mac, ip: Ipv6Addr) -> BytesMut {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
    const LENGTH: u16 = (Neighbour::LEN + MacOption::LEN) as u16;
    let (source, all_nodes) = (IpAddress(ip.octets()), IpAddress(ALL_NODES.octets()));

    let option = MacOption::new(TARGET_MAC, mac);
    let message =
        |checksum| Neighbour { head: Head::new(Type::NEIGHBOUR_ADVERTISEMENT, OVERRIDE, checksum), target: source };
    let sum = message(0).sum(Sum::pseudo_header_v6(source, all_nodes, LENGTH, IpProtocol::ICMPV6));
    let checksum = sum.bytes(option.head.kind, option.head.units).mac(mac).finish();

    let mut frame = BytesMut::new();
    frame.put_slice(Ethernet::new(ALL_NODES_MAC, mac, EtherType::IPV6).as_bytes());
    frame.put_slice(Ipv6::new(LENGTH, IpProtocol::ICMPV6, 255, source, all_nodes).as_bytes());
    frame.put_slice(message(checksum).as_bytes());
    frame.put_slice(option.as_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements_as_on_the_wire() {
        let mac = Mac([2, 0, 1, 0, 2, 7]);
        let arp = gratuitous_arp(mac, [192, 168, 15, 1]);
        assert_eq!(arp.len(), 42);
        assert_eq!(arp[..14], [255, 255, 255, 255, 255, 255, 2, 0, 1, 0, 2, 7, 8, 6]);
        assert_eq!((&arp[28..32], &arp[38..42]), (&[192, 168, 15, 1][..], &[192, 168, 15, 1][..]));

        let frame = unsolicited_advertisement(mac, "fd15::1".parse().unwrap());
        assert_eq!(frame.len(), 86);
        let words = frame[22..].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
        let sum: u32 = words.sum::<u32>() + 32 + 58;
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "the checksum over pseudo-header and message");
    }
}
