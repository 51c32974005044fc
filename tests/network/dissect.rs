//! Packets read again, with every checksum verified; cut into fragments, and put together.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use nsnet::lab::ping::internet_checksum as checksum;

use super::packet::{FRAGMENT, ICMP, ICMPV6, Packet, SCTP, SYN, TCP, UDP};

impl Packet {
    /// Reads a packet. Fails when the header contradicts itself or its checksum is wrong; bytes behind it are ignored.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        Self::read_part(bytes, true)
    }

    /// The packet that an ICMP error quotes. It may be cut short.
    pub(crate) fn quoted(&self) -> Result<Self> {
        ensure!(self.is_error(), "{self:?} is no ICMP error");
        Self::read_part(self.body.get(8..).context("nothing is quoted")?, false)
    }

    fn read_part(bytes: &[u8], complete: bool) -> Result<Self> {
        let short = || format!("the packet is cut short: {bytes:02x?}");
        let word = |at: usize| bytes.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
        let version = bytes.first().with_context(short)? >> 4;
        let end = |length: usize| -> Result<usize> {
            ensure!(!complete || length <= bytes.len(), "{} of {length} bytes: {bytes:02x?}", bytes.len());
            Ok(length.min(bytes.len()))
        };
        match version {
            4 => {
                let header = usize::from(bytes[0] & 15) * 4;
                let fixed = bytes.get(..header).filter(|fixed| fixed.len() >= 20).with_context(short)?;
                ensure!(checksum(fixed) == 0, "the header checksum is wrong: {fixed:02x?}");
                let end = end(usize::from(word(2).with_context(short)?))?;
                let flags = word(6).with_context(short)?;
                let (offset, more) = (usize::from(flags & 0x1fff) * 8, flags & 0x2000 != 0);
                let address =
                    |at: usize| -> IpAddr { Ipv4Addr::from_octets(fixed[at..at + 4].try_into().unwrap()).into() };
                Ok(Self {
                    source: address(12),
                    destination: address(16),
                    hops: fixed[8],
                    protocol: fixed[9],
                    id: word(4).with_context(short)?.into(),
                    whole: flags & 0x4000 != 0,
                    fragment: (offset > 0 || more).then_some((offset, more)),
                    options: fixed[20..].to_vec(),
                    body: bytes.get(header..end).with_context(short)?.to_vec(),
                })
            }
            6 => {
                let fixed = bytes.get(..40).with_context(short)?;
                let end = end(40 + usize::from(word(4).with_context(short)?))?;
                let address =
                    |at: usize| -> IpAddr { Ipv6Addr::from_octets(fixed[at..at + 16].try_into().unwrap()).into() };
                let mut packet = Self {
                    source: address(8),
                    destination: address(24),
                    hops: fixed[7],
                    protocol: fixed[6],
                    id: 0x1234,
                    whole: true,
                    fragment: None,
                    options: Vec::new(),
                    body: bytes[40..end].to_vec(),
                };
                if packet.protocol == FRAGMENT {
                    let header: [u8; 8] = *packet.body.first_chunk().with_context(short)?;
                    let field = u16::from_be_bytes([header[2], header[3]]);
                    (packet.protocol, packet.whole) = (header[0], false);
                    packet.fragment = Some((usize::from(field & !7), field & 1 != 0));
                    packet.id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                    packet.body.drain(..8);
                }
                Ok(packet)
            }
            other => bail!("IP version {other}"),
        }
    }

    /// Cut at these offsets of the body, which are multiples of 8.
    pub(crate) fn fragments(&self, cuts: &[usize]) -> Vec<Self> {
        let starts = [&[0], cuts].concat();
        let ends = [cuts, &[self.body.len()]].concat();
        let piece = |(start, end): (&usize, &usize)| {
            let fragment = Some((*start, *end < self.body.len()));
            Self { whole: false, fragment, body: self.body[*start..*end].to_vec(), ..self.clone() }
        };
        starts.iter().zip(&ends).map(piece).collect()
    }

    /// The packet that these are the fragments of, in any order; `None` while some are missing.
    pub(crate) fn joined(fragments: &[Self]) -> Option<Self> {
        let mut sorted: Vec<_> = fragments.iter().filter_map(|part| Some((part.fragment?, part))).collect();
        sorted.sort_by_key(|((offset, _), _)| *offset);
        let mut body = Vec::new();
        for ((offset, _), part) in &sorted {
            if *offset != body.len() {
                return None;
            }
            body.extend(&part.body);
        }
        let ((_, more), _) = sorted.last()?;
        (!more).then(|| Self { fragment: None, body, ..sorted[0].1.clone() })
    }
}

/// In one line, as tcpdump does.
impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} > {}, ", self.source, self.destination)?;
        let starts_here = self.fragment.is_none_or(|(offset, _)| offset == 0);
        match self.protocol {
            TCP | UDP | SCTP if starts_here && self.body.len() >= 4 => {
                let name =
                    ["UDP", "TCP", "SCTP"][usize::from(self.protocol == TCP) + 2 * usize::from(self.protocol == SCTP)];
                let (source, destination) = self.ports();
                write!(f, "{name} {source} > {destination}")?;
                if self.protocol == TCP && self.body.len() >= 20 {
                    write!(f, " flags {:#x}", self.flags())?;
                }
            }
            ICMP | ICMPV6 if starts_here && self.body.len() >= 8 => {
                let (kind, code) = self.kind();
                write!(f, "ICMP {kind}/{code} {:#x}", self.rest())?;
                if self.is_error() {
                    match self.quoted() {
                        Ok(quoted) => write!(f, " about {quoted:?}")?,
                        Err(error) => write!(f, " about ({error})")?,
                    }
                }
            }
            protocol => write!(f, "protocol {protocol}")?,
        }
        write!(f, ", {} bytes, hops {}", self.body.len(), self.hops)?;
        if let Some((offset, more)) = self.fragment {
            write!(f, ", fragment {:#x} at {offset}{}", self.id, if more { "+" } else { "" })?;
        }
        write!(f, "]")
    }
}

#[test]
fn what_is_made_is_read_again() -> Result<()> {
    let (v4, v6): ([IpAddr; 2], [IpAddr; 2]) =
        (["10.0.0.1".parse()?, "10.0.0.2".parse()?], ["fd00::1".parse()?, "fd00::2".parse()?]);
    for [a, b] in [v4, v6] {
        let (from, to) = (SocketAddr::new(a, 1000), SocketAddr::new(b, 2000));
        let udp = Packet::udp(from, to, &[7; 81]);
        let made = [
            Packet::tcp(from, to, SYN, 1, 2, b"x"),
            Packet::ping(a, b, 77, &[3; 20]),
            udp.port_unreachable(),
            udp.clone(),
        ];
        for packet in made {
            let read = Packet::read(&packet.bytes())?;
            assert_eq!(read, packet);
            read.check()?;
            assert!(Packet::read(&packet.bytes()[..20]).is_err());
            let fragments = packet.fragments(&[8, 16]);
            let mut read = fragments.iter().map(|part| Packet::read(&part.bytes())).collect::<Result<Vec<_>>>()?;
            assert_eq!(read, fragments);
            read.rotate_left(1);
            assert_eq!(Packet::joined(&read).context("not whole")?.body, packet.body);
            assert_eq!(Packet::joined(&read[1..]), None);
        }
        assert_eq!(udp.port_unreachable().quoted()?, udp);
        assert!(udp.damaged(|body| body[9] ^= 1).check().is_err());
    }
    let options = Packet::udp("10.0.0.1:1".parse()?, "10.0.0.2:2".parse()?, b"").options(&[7, 3, 4, 0]);
    assert_eq!(Packet::read(&options.bytes())?, options);
    Ok(())
}
