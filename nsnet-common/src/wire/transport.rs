//! TCP (RFC 9293) and UDP (RFC 768), as far as a switch and a NAT look.

use zerocopy::byteorder::network_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Udp {
    source_port: U16,
    destination_port: U16,
    length: U16,
    checksum: U16,
}

impl Udp {
    /// Bytes of the header.
    pub const LEN: usize = size_of::<Self>();
    /// Offset of the checksum in the header.
    pub const CHECKSUM_AT: usize = core::mem::offset_of!(Self, checksum);

    /// The sender's port.
    #[inline(always)]
    pub fn source_port(&self) -> u16 {
        self.source_port.get()
    }

    /// The receiver's port.
    #[inline(always)]
    pub fn destination_port(&self) -> u16 {
        self.destination_port.get()
    }

    /// Bytes of the header and what follows.
    #[inline(always)]
    pub fn length(&self) -> u16 {
        self.length.get()
    }
}

/// The ports, which TCP, UDP and SCTP have at the same place; network byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ports {
    /// The sender's.
    pub source: [u8; 2],
    /// The receiver's.
    pub destination: [u8; 2],
}

/// Bits of [`Tcp::flags`] (RFC 9293 section 3.1).
pub mod tcp_flags {
    /// The sender has no more to send.
    pub const FIN: u8 = 1 << 0;
    /// Begins a connection.
    pub const SYN: u8 = 1 << 1;
    /// Ends it at once.
    pub const RST: u8 = 1 << 2;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 1 << 4;
}

/// The TCP header, without options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Tcp {
    source_port: U16,
    destination_port: U16,
    sequence: U32,
    acknowledgement: U32,
    data_offset: u8,
    flags: u8,
    window: U16,
    checksum: U16,
    urgent: U16,
}

impl Tcp {
    /// Bytes of the header without options.
    pub const LEN: usize = size_of::<Self>();
    /// Offset of the checksum in the header.
    pub const CHECKSUM_AT: usize = core::mem::offset_of!(Self, checksum);

    /// See [`tcp_flags`].
    #[inline(always)]
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// Number of the first byte.
    #[inline(always)]
    pub fn sequence(&self) -> u32 {
        self.sequence.get()
    }

    /// Number of the next byte that the sender expects.
    #[inline(always)]
    pub fn acknowledgement(&self) -> u32 {
        self.acknowledgement.get()
    }

    /// Bytes of the header with its options.
    #[inline(always)]
    pub fn header_length(&self) -> usize {
        usize::from(self.data_offset >> 4) * 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_headers() {
        let udp = Udp::read_from_bytes(&[0, 67, 0, 68, 0, 8, 0, 0]).unwrap();
        assert_eq!((udp.source_port(), udp.destination_port()), (67, 68));
        let mut tcp = [0; 20];
        tcp[12] = 0x80;
        assert_eq!(Tcp::read_from_bytes(&tcp).unwrap().header_length(), 32);
    }
}
