//! IPv6 (RFC 8200) and its chain of extension headers.

use zerocopy::byteorder::network_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::packet::Packet;
use crate::tables::Tables;
use crate::verdict::DropReason;
use crate::wire::{Ethernet, IpAddress, IpProtocol};

/// The IPv6 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Ipv6 {
    version_class: [u8; 4],
    payload_length: U16,
    next_header: u8,
    hop_limit: u8,
    source: IpAddress,
    destination: IpAddress,
}

/// Where the chain of extension headers ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpperLayer {
    /// The protocol found there.
    pub protocol: IpProtocol,
    /// Its offset from the start of the frame. 16 bits, which bound it for the verifier however it is passed on.
    pub at: u16,
    /// Whether extension headers came before it.
    pub extended: bool,
    /// Whether it is here: false for all fragments but the first.
    pub is_here: bool,
    /// Whether it is in the first of several fragments.
    pub is_first_fragment: bool,
}

/// The first bytes that all extension headers have in common.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Extension {
    next_header: u8,
    length: u8,
    fragment_offset: U16,
}

/// Extension headers looked through. RFC 8504 section 5.3 lets a node refuse longer chains; 8 is the number it names.
const MAX_EXTENSIONS: usize = 8;

impl Ipv6 {
    /// Bytes of the header.
    pub const LEN: usize = size_of::<Self>();
    /// Offset of the source address in the header.
    pub const SOURCE_AT: usize = core::mem::offset_of!(Self, source);
    /// Offset of the destination address in the header.
    pub const DESTINATION_AT: usize = core::mem::offset_of!(Self, destination);

    /// A header of these fields, traffic class and flow label 0.
    #[inline(always)]
    pub fn new(
        payload_length: u16,
        protocol: IpProtocol,
        hop_limit: u8,
        source: IpAddress,
        destination: IpAddress,
    ) -> Self {
        let version_class = [0x60, 0, 0, 0];
        let payload_length = U16::new(payload_length);
        Self { version_class, payload_length, next_header: protocol.0, hop_limit, source, destination }
    }

    /// The header after the Ethernet header, found to agree with the frame's length.
    #[inline(always)]
    pub fn read(frame: &impl Packet) -> Result<&Self, DropReason> {
        let header = frame.view::<Self>(Ethernet::LEN).ok_or(DropReason::Truncated)?;
        let available = frame.len().saturating_sub((Ethernet::LEN + Self::LEN) as u32);
        let [version_class, ..] = header.version_class;
        // A payload length of 0 on a GSO frame over 64 KB (BIG TCP, Linux 5.19) needs no exception: 0 <= available.
        if version_class >> 4 != 6 || u32::from(header.payload_length.get()) > available {
            return Err(DropReason::BadIpv6);
        }
        Ok(header)
    }

    /// Walks the extension headers of `frame` to the upper layer.
    ///
    /// A chain that does not end within the frame, or within eight headers, is refused: RFC 7113 section 3 asks that of
    /// a guard, which else could be passed by hiding what it looks for.
    #[inline(always)]
    pub fn upper_layer(&self, frame: &impl Packet, tables: impl Tables) -> Result<UpperLayer, DropReason> {
        let protocol = IpProtocol(self.next_header);
        let at = (Ethernet::LEN + Self::LEN) as u16;
        let upper = UpperLayer { protocol, at, extended: false, is_here: true, is_first_fragment: false };
        if unit_of(protocol).is_none() { Ok(upper) } else { walk(upper, frame, tables) }
    }

    /// Offset of the fragment header from the start of `frame`, if there is one. Apart from [`Ipv6::upper_layer`], whose
    /// callers have no stack for it.
    #[inline(always)]
    pub fn fragment_at(&self, frame: &impl Packet, tables: impl Tables) -> Option<u16> {
        let mut protocol = IpProtocol(self.next_header);
        let mut at = (Ethernet::LEN + Self::LEN) as u16;
        let mut is_found = false;
        tables.repeat(MAX_EXTENSIONS as u32, &mut || {
            is_found = protocol == IpProtocol::FRAGMENT;
            let (Some(unit), false) = (unit_of(protocol), is_found) else { return false };
            let Some(extension) = frame.view::<Extension>(usize::from(at)) else { return false };
            protocol = IpProtocol(extension.next_header);
            at = at.saturating_add(8 + u16::from(extension.length) * unit);
            true
        });
        is_found.then_some(at)
    }

    /// The header that follows.
    #[inline(always)]
    pub fn next_header(&self) -> IpProtocol {
        IpProtocol(self.next_header)
    }

    /// Bytes after the header.
    #[inline(always)]
    pub fn payload_length(&self) -> u16 {
        self.payload_length.get()
    }

    /// Routers the packet may still pass.
    #[inline(always)]
    pub fn hop_limit(&self) -> u8 {
        self.hop_limit
    }

    /// The header after a router has passed it on with these addresses: one hop less.
    #[inline(always)]
    #[must_use]
    pub fn forwarded(mut self, source: IpAddress, destination: IpAddress) -> Self {
        self.hop_limit = self.hop_limit.saturating_sub(1);
        (self.source, self.destination) = (source, destination);
        self
    }

    /// The sender.
    #[inline(always)]
    pub fn source(&self) -> IpAddress {
        self.source
    }

    /// The receiver.
    #[inline(always)]
    pub fn destination(&self) -> IpAddress {
        self.destination
    }
}

/// In what units the length of an extension header counts; 0 for the fragment header, whose length is known.
#[inline(always)]
fn unit_of(protocol: IpProtocol) -> Option<u16> {
    match protocol {
        IpProtocol::HOP_BY_HOP | IpProtocol::ROUTING | IpProtocol::DESTINATION_OPTIONS => Some(8),
        IpProtocol::AUTHENTICATION => Some(4),
        IpProtocol::FRAGMENT => Some(0),
        _ => None,
    }
}

/// Walks the chain that begins at `upper`. By `repeat`, because the verifier walks each round of a plain loop.
#[inline(always)]
fn walk(mut upper: UpperLayer, frame: &impl Packet, tables: impl Tables) -> Result<UpperLayer, DropReason> {
    let (mut ended, mut is_source_routed) = (false, false);
    // One round more than there may be headers, which finds that the chain is at its end.
    tables.repeat(MAX_EXTENSIONS as u32 + 1, &mut || {
        let Some(unit) = unit_of(upper.protocol) else {
            ended = true;
            return false;
        };
        let Some(extension) = frame.view::<Extension>(usize::from(upper.at)) else { return false };
        // RFC 5095: a routing header of type 0 is not obeyed by anybody, nor passed on to who might.
        if upper.protocol == IpProtocol::ROUTING && extension.fragment_offset.get() >> 8 == 0 {
            is_source_routed = true;
            return false;
        }
        upper.protocol = IpProtocol(extension.next_header);
        upper.at = upper.at.saturating_add(8 + u16::from(extension.length) * unit);
        upper.extended = true;
        if unit != 0 {
            return true;
        }
        // The offset in units of 8 bytes, and the last bit says that more follow (RFC 8200 section 4.5). A packet may be
        // one fragment only (RFC 6946).
        let field = extension.fragment_offset.get();
        if field & !7 != 0 {
            (upper.is_here, ended) = (false, true);
            return false;
        }
        upper.is_first_fragment = field & 1 != 0;
        true
    });
    match (ended, is_source_routed) {
        (true, _) => Ok(upper),
        (false, true) => Err(DropReason::SourceRoute),
        (false, false) => Err(DropReason::BadIpv6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MemoryTables;
    use crate::packet::Buffer;

    fn frame(next_header: u8, payload: &[u8]) -> Buffer {
        let mut bytes = std::vec![0; 14];
        bytes.extend([0x60, 0, 0, 0, 0, payload.len() as u8, next_header, 64]);
        bytes.extend([0xfd; 16]);
        bytes.extend([0xfe; 16]);
        bytes.extend(payload);
        Buffer::new(bytes)
    }

    fn upper(next_header: u8, payload: &[u8]) -> Result<UpperLayer, DropReason> {
        let frame = frame(next_header, payload);
        Ipv6::read(&frame)?.upper_layer(&frame, &MemoryTables::default())
    }

    #[test]
    fn reads_a_header() {
        let frame = frame(17, &[0; 8]);
        let ip = Ipv6::read(&frame).unwrap();
        assert_eq!((ip.payload_length(), ip.next_header(), ip.hop_limit()), (8, IpProtocol::UDP, 64));
        assert_eq!((ip.source().0, ip.destination().0), ([0xfd; 16], [0xfe; 16]));
    }

    #[test]
    fn refuses_contradictions() {
        let mut long = frame(17, &[0; 8]);
        long.bytes[14 + 5] = 9;
        assert_eq!(Ipv6::read(&long).err(), Some(DropReason::BadIpv6));
        let mut old = frame(17, &[0; 8]);
        old.bytes[14] = 0x40;
        assert_eq!(Ipv6::read(&old).err(), Some(DropReason::BadIpv6));
        assert_eq!(Ipv6::read(&Buffer::new([0; 53])).err(), Some(DropReason::Truncated));
    }

    #[test]
    fn walks_the_chain() {
        let plain = upper(17, &[0; 8]).unwrap();
        assert_eq!((plain.protocol, plain.at, plain.extended, plain.is_here), (IpProtocol::UDP, 54, false, true));
        let hop = upper(0, &[58, 0, 0, 0, 0, 0, 0, 0, 143, 0]).unwrap();
        assert_eq!((hop.protocol, hop.at, hop.extended), (IpProtocol::ICMPV6, 62, true));
        let first = upper(44, &[58, 0, 0, 1, 0, 0, 0, 0, 134, 0]).unwrap();
        assert_eq!((first.protocol, first.at, first.is_here), (IpProtocol::ICMPV6, 62, true));
        let later = upper(44, &[58, 0, 0, 8, 0, 0, 0, 0, 134, 0]).unwrap();
        assert!(!later.is_here);
    }

    #[test]
    fn refuses_chains_that_hide_their_end() {
        assert_eq!(upper(0, &[58, 0]), Err(DropReason::BadIpv6));
        let long: std::vec::Vec<u8> = [60, 0, 0, 0, 0, 0, 0, 0].repeat(9);
        assert_eq!(upper(60, &long), Err(DropReason::BadIpv6));
    }
}
