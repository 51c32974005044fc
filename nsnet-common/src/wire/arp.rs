//! ARP for IPv4 over Ethernet (RFC 826).

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::packet::Packet;
use crate::verdict::DropReason;
use crate::wire::{EtherType, Ethernet, Mac};

/// An ARP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Arp {
    hardware: U16,
    protocol: U16,
    hardware_length: u8,
    protocol_length: u8,
    operation: U16,
    /// MAC of the sender.
    pub sender_mac: Mac,
    /// IPv4 address of the sender; 0.0.0.0 in a probe (RFC 5227 section 2.1.1).
    pub sender_ip: [u8; 4],
    /// MAC of the target; of no meaning in a request.
    pub target_mac: Mac,
    /// IPv4 address of the target.
    pub target_ip: [u8; 4],
}

/// "Who has the target address?"
pub const REQUEST: u16 = 1;
/// "I have the sender address."
pub const REPLY: u16 = 2;
const HARDWARE_ETHERNET: u16 = 1;

impl Arp {
    /// A message of these fields.
    #[inline(always)]
    pub fn new(operation: u16, sender: (Mac, [u8; 4]), target: (Mac, [u8; 4])) -> Self {
        Self {
            hardware: U16::new(HARDWARE_ETHERNET),
            protocol: U16::new(EtherType::IPV4.0),
            hardware_length: 6,
            protocol_length: 4,
            operation: U16::new(operation),
            sender_mac: sender.0,
            sender_ip: sender.1,
            target_mac: target.0,
            target_ip: target.1,
        }
    }

    /// The message after the Ethernet header: a request or a reply for IPv4 over Ethernet.
    #[inline(always)]
    pub fn read(frame: &impl Packet) -> Result<Self, DropReason> {
        let arp = *frame.view::<Self>(Ethernet::LEN).ok_or(DropReason::Truncated)?;
        let expected = arp.hardware.get() == HARDWARE_ETHERNET
            && arp.protocol.get() == EtherType::IPV4.0
            && arp.hardware_length == 6
            && arp.protocol_length == 4
            && matches!(arp.operation.get(), REQUEST | REPLY);
        if expected { Ok(arp) } else { Err(DropReason::BadArp) }
    }

    /// Whether it asks, [`REQUEST`].
    #[inline(always)]
    pub fn is_request(&self) -> bool {
        self.operation.get() == REQUEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Buffer;

    #[rustfmt::skip]
    const REQUEST_BYTES: [u8; 28] = [
        0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 1, 0, 2, 0, 192, 168, 15, 1, 0, 0, 0, 0, 0, 0, 192, 168, 15, 2,
    ];

    fn frame(change: impl FnOnce(&mut [u8])) -> Buffer {
        let mut bytes = std::vec![0; 14];
        bytes.extend(REQUEST_BYTES);
        change(&mut bytes[14..]);
        Buffer::new(bytes)
    }

    #[test]
    fn reads_and_writes_a_request() {
        let arp = Arp::read(&frame(|_| ())).unwrap();
        assert!(arp.is_request());
        assert_eq!((arp.sender_ip, arp.target_ip), ([192, 168, 15, 1], [192, 168, 15, 2]));
        let written = Arp::new(REQUEST, (arp.sender_mac, arp.sender_ip), (Mac::ZERO, arp.target_ip));
        assert_eq!(written.as_bytes(), REQUEST_BYTES);
    }

    #[test]
    fn refuses_what_is_no_ipv4_over_ethernet() {
        for (at, value) in [(1, 6), (2, 0x86), (4, 8), (5, 16), (7, 3), (7, 0)] {
            assert_eq!(Arp::read(&frame(|arp| arp[at] = value)), Err(DropReason::BadArp), "byte {at}");
        }
        assert_eq!(Arp::read(&Buffer::new([0; 41])), Err(DropReason::Truncated));
    }
}
