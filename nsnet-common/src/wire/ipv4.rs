//! IPv4 (RFC 791).

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{Delta, Sum};
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
        if header.is_sound(frame) { Ok(header) } else { Err(DropReason::BadIpv4) }
    }

    /// [`Ipv4::read`] of all fields at once, see [`Packet::copy`].
    #[inline(always)]
    pub fn read_whole(frame: &impl Packet) -> Result<Self, DropReason> {
        let header = frame.copy::<Self>(Ethernet::LEN).ok_or(DropReason::Truncated)?;
        if header.is_sound(frame) { Ok(header) } else { Err(DropReason::BadIpv4) }
    }

    #[inline(always)]
    fn is_sound(&self, frame: &impl Packet) -> bool {
        let available = frame.len().saturating_sub(Ethernet::LEN as u32);
        let total = u32::from(self.total_length.get());
        // A GSO frame over 64 KB says 0 (BIG TCP, Linux 6.3): the segments will say the truth.
        let total = if total == 0 && frame.gso_size() != 0 { available } else { total };
        let header_length = self.header_length() as u32;
        self.is_version_4() && header_length >= Self::LEN as u32 && total >= header_length && total <= available
    }

    /// A header without options of a packet that must not be cut. Its identification is 0, which says nothing where
    /// there are no fragments to put together (RFC 6864 section 4.1).
    #[inline(always)]
    pub fn new(
        tos: u8,
        total_length: u16,
        ttl: u8,
        protocol: IpProtocol,
        source: [u8; 4],
        destination: [u8; 4],
    ) -> Self {
        const NO_OPTIONS: u8 = 0x45;
        const DO_NOT_FRAGMENT: u16 = 0x4000;
        let [[a, b, c, d], [e, f, g, h]] = [source, destination];
        let sum = Sum::default().bytes(NO_OPTIONS, tos).word(total_length).word(DO_NOT_FRAGMENT).bytes(ttl, protocol.0);
        let sum = sum.bytes(a, b).bytes(c, d).bytes(e, f).bytes(g, h);
        Self {
            version_ihl: NO_OPTIONS,
            tos,
            total_length: U16::new(total_length),
            identification: U16::ZERO,
            flags_offset: U16::new(DO_NOT_FRAGMENT),
            ttl,
            protocol: protocol.0,
            checksum: U16::new(sum.finish()),
            source,
            destination,
        }
    }

    /// Bytes of the packet; 0 in a GSO frame over 64 KB.
    #[inline(always)]
    pub fn total_length(&self) -> u16 {
        self.total_length.get()
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

    /// Routers the packet may still pass.
    #[inline(always)]
    pub fn ttl(&self) -> u8 {
        self.ttl
    }

    /// Whether routers must not cut it.
    #[inline(always)]
    pub fn dont_fragment(&self) -> bool {
        self.flags_offset.get() & 0x4000 != 0
    }

    /// Whether more fragments follow.
    #[inline(always)]
    pub fn more_fragments(&self) -> bool {
        self.flags_offset.get() & 0x2000 != 0
    }

    /// The number that fragments of one packet have in common.
    #[inline(always)]
    pub fn identification(&self) -> u16 {
        self.identification.get()
    }

    /// Where the fragment begins in the packet that it is of, bytes behind the header.
    #[inline(always)]
    pub fn fragment_offset(&self) -> u16 {
        (self.flags_offset.get() & 0x1fff) * 8
    }

    /// The header with another identification, and the checksum as it has to be then.
    #[inline(always)]
    #[must_use]
    pub fn renumbered(mut self, identification: u16) -> Self {
        let identification = U16::new(identification);
        let change = Delta::default().word(self.identification.to_bytes(), identification.to_bytes());
        self.checksum = U16::from_bytes(change.apply(self.checksum.to_bytes()));
        self.identification = identification;
        self
    }

    /// The header of a part of this packet: `payload` bytes from `offset` on, which is a multiple of 8 (RFC 791 section 3.2).
    #[inline(always)]
    #[must_use]
    pub fn piece(mut self, offset: u16, payload: u16, is_last: bool) -> Self {
        const MORE: u16 = 0x2000;
        let total_length = U16::new(self.header_length() as u16 + payload);
        let more = if is_last { self.flags_offset.get() & MORE } else { MORE };
        let flags_offset = U16::new(more | ((self.fragment_offset() + offset) / 8));
        let change = Delta::default()
            .word(self.total_length.to_bytes(), total_length.to_bytes())
            .word(self.flags_offset.to_bytes(), flags_offset.to_bytes());
        self.checksum = U16::from_bytes(change.apply(self.checksum.to_bytes()));
        (self.total_length, self.flags_offset) = (total_length, flags_offset);
        self
    }

    /// The header after a router has passed it on with these addresses: one hop less, and the checksum as it has to be
    /// when it was right, and wrong when it was wrong (RFC 1624).
    #[inline(always)]
    #[must_use]
    pub fn forwarded(mut self, source: [u8; 4], destination: [u8; 4]) -> Self {
        let ttl = self.ttl.saturating_sub(1);
        let change = Delta::default()
            .word([self.ttl, self.protocol], [ttl, self.protocol])
            .four(self.source, source)
            .four(self.destination, destination);
        self.checksum = U16::from_bytes(change.apply(self.checksum.to_bytes()));
        (self.ttl, self.source, self.destination) = (ttl, source, destination);
        self
    }

    /// The header with other addresses, and the checksum as it has to be then.
    #[inline(always)]
    #[must_use]
    pub fn readdressed(mut self, source: [u8; 4], destination: [u8; 4]) -> Self {
        let change = Delta::default().four(self.source, source).four(self.destination, destination);
        self.checksum = U16::from_bytes(change.apply(self.checksum.to_bytes()));
        (self.source, self.destination) = (source, destination);
        self
    }

    /// Whether it says that it is IPv4.
    #[inline(always)]
    pub fn is_version_4(&self) -> bool {
        self.version_ihl >> 4 == 4
    }

    /// The sum of its fields, without options.
    #[inline(always)]
    pub fn sum(&self) -> Sum {
        let ([a, b, c, d], [e, f, g, h]) = (self.source, self.destination);
        Sum::default()
            .bytes(self.version_ihl, self.tos)
            .word(self.total_length.get())
            .word(self.identification.get())
            .word(self.flags_offset.get())
            .bytes(self.ttl, self.protocol)
            .word(self.checksum.get())
            .bytes(a, b)
            .bytes(c, d)
            .bytes(e, f)
            .bytes(g, h)
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
    fn makes_a_header() {
        let ip = Ipv4::new(0xc0, 84, 64, IpProtocol::ICMP, [192, 168, 15, 1], [192, 168, 15, 2]);
        let expected = [0x45, 0xc0, 0, 84, 0, 0, 0x40, 0, 64, 1, 0x9a, 0x95, 192, 168, 15, 1, 192, 168, 15, 2];
        assert_eq!(ip.as_bytes(), expected);
        assert_eq!(ip.total_length(), 84);
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
