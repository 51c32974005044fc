//! IPv4 (RFC 791).

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::packet::Packet;
use crate::verdict::DropReason;
use crate::wire::{Ethernet, IpAddress, IpProtocol};

/// The IPv4 header, without options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ipv4 {
    version_ihl: u8,
    tos: u8,
    total_length: U16,
    identification: U16,
    flags_offset: U16,
    ttl: u8,
    protocol: u8,
    checksum: U16,
    source: [u8; 4],
    destination: [u8; 4],
}

impl Ipv4 {
    /// Bytes of the header without options.
    pub const LEN: usize = size_of::<Self>();

    /// The header after the Ethernet header, found to agree with itself and with the frame's length.
    ///
    /// The header checksum is left to the receiver: the frame is only switched (802.1D forwards it unread).
    #[inline(always)]
    pub fn read(frame: &impl Packet) -> Result<Self, DropReason> {
        let header = *frame.view::<Self>(Ethernet::LEN).ok_or(DropReason::Truncated)?;
        let available = frame.len().saturating_sub(Ethernet::LEN as u32);
        let total = u32::from(header.total_length.get());
        // A GSO frame over 64 KB says 0 (BIG TCP, Linux 6.3): the segments will say the truth.
        let total = if total == 0 && frame.gso_size() != 0 { available } else { total };
        let header_length = header.header_length() as u32;
        if header.version_ihl >> 4 != 4
            || header_length < Self::LEN as u32
            || total < header_length
            || total > available
        {
            return Err(DropReason::BadIpv4);
        }
        Ok(header)
    }

    /// Bytes of the header with its options.
    #[inline(always)]
    pub fn header_length(&self) -> usize {
        usize::from(self.version_ihl & 0x0f) * 4
    }

    /// Offset of the transport header from the start of the frame.
    #[inline(always)]
    pub fn transport_at(&self) -> usize {
        Ethernet::LEN + self.header_length()
    }

    /// The protocol inside.
    #[inline(always)]
    pub fn protocol(&self) -> IpProtocol {
        IpProtocol(self.protocol)
    }

    /// Whether the transport header is here: false for all fragments but the first.
    #[inline(always)]
    pub fn has_transport_header(&self) -> bool {
        self.flags_offset.get() & 0x1fff == 0
    }

    /// The sender.
    #[inline(always)]
    pub fn source(&self) -> [u8; 4] {
        self.source
    }

    /// The receiver.
    #[inline(always)]
    pub fn destination(&self) -> IpAddress {
        IpAddress::v4(self.destination)
    }

    /// Whether the receiver is a loopback address, 127.0.0.0/8 (RFC 1122 section 3.2.1.3: never on a wire).
    #[inline(always)]
    pub fn is_to_loopback(&self) -> bool {
        let [first, ..] = self.destination;
        first == 127
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Buffer;

    const HEADER: [u8; 20] = [0x45, 0, 0, 28, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0, 192, 168, 15, 1, 192, 168, 15, 2];

    fn frame(change: impl FnOnce(&mut [u8])) -> Buffer {
        let mut bytes = std::vec![0; 14];
        bytes.extend(HEADER);
        bytes.extend([0; 8]);
        change(&mut bytes[14..]);
        Buffer::new(bytes)
    }

    #[test]
    fn reads_a_header() {
        let ip = Ipv4::read(&frame(|_| ())).unwrap();
        assert_eq!(ip.source(), [192, 168, 15, 1]);
        assert_eq!(ip.destination(), IpAddress::v4([192, 168, 15, 2]));
        assert_eq!(ip.protocol(), IpProtocol::UDP);
        assert_eq!(ip.transport_at(), 34);
        assert!(ip.has_transport_header() && !ip.is_to_loopback());
    }

    #[test]
    fn refuses_contradictions() {
        let bad = Err(DropReason::BadIpv4);
        for version_ihl in [0x44, 0x40, 0x65, 0x05, 0xf5, 0x4f] {
            assert_eq!(Ipv4::read(&frame(|ip| ip[0] = version_ihl)), bad, "{version_ihl:#x}");
        }
        assert_eq!(Ipv4::read(&frame(|ip| ip[3] = 19)), bad);
        assert_eq!(Ipv4::read(&frame(|ip| ip[3] = 29)), bad);
        assert_eq!(Ipv4::read(&frame(|ip| ip[3] = 0)), bad);
        assert_eq!(Ipv4::read(&Buffer::new([0; 33])), Err(DropReason::Truncated));
        assert!(Ipv4::read(&frame(|ip| ip[0] = 0x47)).is_ok());
    }

    #[test]
    fn a_gso_frame_may_leave_its_length_out() {
        let big = Buffer { gso_size: 1448, ..frame(|ip| ip[3] = 0) };
        assert!(Ipv4::read(&big).is_ok());
    }
}
