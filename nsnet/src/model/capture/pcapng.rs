//! The file: pcapng (draft-ietf-opsawg-pcapng), an interface block for each interface that something is seen at.

use std::borrow::Cow;
use std::collections::HashMap;

use pcap_parser::pcapng::{
    EnhancedPacketBlock, InterfaceDescriptionBlock, InterfaceStatisticsBlock, OptionCode, PcapNGOption,
    SectionHeaderBlock,
};
use pcap_parser::{Linktype, ToVec};

use super::interfaces::Interfaces;
use super::{Fate, Record};
use crate::model::{Result, refuse};

/// Options that the library has no name for (section 4.3 of the draft).
mod options {
    /// Direction, and what is offloaded.
    pub(super) const FLAGS: u16 = 2;
    /// The packet's number, the same at each interface.
    pub(super) const PACKET_ID: u16 = 5;
    /// What became of it.
    pub(super) const VERDICT: u16 = 7;
}

/// Bits of the flags (section 4.3.1).
mod flags {
    pub(super) const INBOUND: u32 = 1;
    pub(super) const OUTBOUND: u32 = 2;
    pub(super) const CHECKSUM_NOT_READY: u32 = 1 << 9;
    pub(super) const SEGMENTATION_OFFLOADED: u32 = 1 << 11;
}

/// The first octet of a verdict that is an action of TC.
const VERDICT_TC: u8 = 1;
/// `TC_ACT_UNSPEC`, `TC_ACT_SHOT`, `TC_ACT_REDIRECT` (include/uapi/linux/pkt_cls.h).
const UNSPEC: i64 = -1;
const SHOT: i64 = 2;
const REDIRECT: i64 = 7;

/// Makes the blocks of a file, one behind the other.
#[derive(Debug, Default)]
pub struct Pcapng {
    /// What is added to a time of the monotonic clock for that of day, nanoseconds.
    clock_offset: u64,
    snaplen: u32,
    /// The number of each interface's block, by its index.
    interfaces: HashMap<u32, u32>,
}

impl Pcapng {
    /// Begins a file: its first block, and what makes the others. `clock_offset` is what the clock of day is ahead of the
    /// monotonic one, nanoseconds.
    pub fn begin(clock_offset: u64, snaplen: u32) -> Result<(Self, Vec<u8>)> {
        let mut section = SectionHeaderBlock {
            block_type: 0,
            block_len1: 0,
            bom: 0,
            major_version: 1,
            minor_version: 0,
            section_len: -1,
            options: vec![
                option(OptionCode::ShbOs.0, "Linux"),
                option(OptionCode::ShbUserAppl.0, concat!("nsnet ", env!("CARGO_PKG_VERSION"))),
            ],
            block_len2: 0,
        };
        let bytes = bytes_of(&mut section)?;
        Ok((Self { clock_offset, snaplen, interfaces: HashMap::new() }, bytes))
    }

    /// A packet, with its interface before it if nothing was seen there yet.
    pub fn packet(&mut self, record: &Record, names: &Interfaces) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let number = match self.interfaces.get(&record.ifindex) {
            Some(number) => *number,
            None => {
                bytes = self.interface(record.ifindex, names)?;
                let number = self.interfaces.len() as u32;
                self.interfaces.insert(record.ifindex, number);
                number
            }
        };
        let shown = &record.shown;
        let direction = if record.is_inbound { flags::INBOUND } else { flags::OUTBOUND };
        let checksum = if shown.headers.has_partial_checksum { flags::CHECKSUM_NOT_READY } else { 0 };
        let segments = if shown.event.gso_size == 0 { 0 } else { flags::SEGMENTATION_OFFLOADED };
        let mut options = vec![
            option(OptionCode::Comment.0, &record.comment),
            option(options::FLAGS, (direction | checksum | segments).to_le_bytes()),
            option(options::PACKET_ID, record.id.to_le_bytes()),
        ];
        let action = match record.fate {
            Fate::Forwarded => Some(REDIRECT),
            Fate::Dropped(_) => Some(SHOT),
            Fate::Passed => Some(UNSPEC),
            Fate::Unknown => None,
        };
        if let Some(action) = action {
            options.push(option(options::VERDICT, [&[VERDICT_TC], action.to_le_bytes().as_slice()].concat()));
        }
        let (ts_high, ts_low) = self.time(shown.event.time);
        let mut packet = EnhancedPacketBlock {
            block_type: 0,
            block_len1: 0,
            if_id: number,
            ts_high,
            ts_low,
            caplen: shown.bytes.len() as u32,
            origlen: shown.headers.length,
            data: &shown.bytes,
            options,
            block_len2: 0,
        };
        bytes.extend(bytes_of(&mut packet)?);
        Ok(bytes)
    }

    /// The end of a file of which events were lost, at `now` of the monotonic clock. They are said at the first interface;
    /// nothing for a file without one, or without a loss.
    pub fn lost(&self, events: u64, now: u64) -> Result<Vec<u8>> {
        if events == 0 || self.interfaces.is_empty() {
            return Ok(Vec::new());
        }
        let (ts_high, ts_low) = self.time(now);
        let mut statistics = InterfaceStatisticsBlock {
            block_type: 0,
            block_len1: 0,
            if_id: 0,
            ts_high,
            ts_low,
            options: vec![
                option(
                    OptionCode::Comment.0,
                    format!("{events} events of all interfaces were lost: no room in the ring"),
                ),
                option(OptionCode::IsbOsDrop.0, events.to_le_bytes()),
            ],
            block_len2: 0,
        };
        bytes_of(&mut statistics)
    }

    fn interface(&self, index: u32, names: &Interfaces) -> Result<Vec<u8>> {
        /// Timestamps are in units of 10^-9 s.
        const NANOSECONDS: u8 = 9;
        let mut options =
            vec![option(OptionCode::IfName.0, names.name(index)), option(OptionCode::IfTsresol.0, [NANOSECONDS])];
        if let Some(interface) = names.get(index) {
            options.push(option(OptionCode::IfDescription.0, interface.to_string()));
        }
        bytes_of(&mut InterfaceDescriptionBlock {
            block_type: 0,
            block_len1: 0,
            linktype: Linktype::ETHERNET,
            reserved: 0,
            snaplen: self.snaplen,
            if_tsresol: NANOSECONDS,
            if_tsoffset: 0,
            options,
            block_len2: 0,
        })
    }

    fn time(&self, monotonic: u64) -> (u32, u32) {
        let time = self.clock_offset.wrapping_add(monotonic);
        ((time >> 32) as u32, time as u32)
    }
}

/// An option of a block. A value is at most 64 KB long, which no comment of ours is.
fn option(code: u16, value: impl AsRef<[u8]>) -> PcapNGOption<'static> {
    let value = value.as_ref();
    PcapNGOption { code: OptionCode(code), len: value.len() as u16, value: Cow::Owned(value.to_vec()) }
}

fn bytes_of(block: &mut impl ToVec) -> Result<Vec<u8>> {
    block.to_vec().or_else(|error| refuse(format_args!("cannot write a block of the capture: {error:?}")))
}

#[cfg(test)]
mod tests {
    use nsnet_common::layout::Event;
    use pcap_parser::pcapng::Block;
    use pcap_parser::{PcapBlockOwned, PcapError, create_reader};

    use super::super::tests::shown;
    use super::super::{Shown, Side};
    use super::*;

    fn record(shown: Shown, ifindex: u32) -> Record {
        let comment = "id 17 before: a change".to_owned();
        Record { id: 17, side: Side::Before, ifindex, is_inbound: true, fate: Fate::Dropped(None), comment, shown }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let (mut pcapng, mut file) = Pcapng::begin(1_000_000_000_000_000_000, 100).unwrap();
        let event = Event { time: 42, gso_size: 1448, ..Event::default() };
        for ifindex in [7, 8, 7] {
            file.extend(pcapng.packet(&record(shown(event), ifindex), &Interfaces::default()).unwrap());
        }
        file.extend(pcapng.lost(3, 43).unwrap());
        let mut reader = create_reader(1 << 16, &file[..]).unwrap();
        let mut blocks = Vec::new();
        loop {
            match reader.next() {
                Ok((length, PcapBlockOwned::NG(block))) => {
                    blocks.push(match block {
                        Block::SectionHeader(_) => "section".to_owned(),
                        Block::InterfaceDescription(interface) => {
                            format!("interface, resolution {}", interface.if_tsresol)
                        }
                        Block::EnhancedPacket(packet) => {
                            let ts = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                            let codes: Vec<u16> = packet.options.iter().map(|option| option.code.0).collect();
                            let flags = u32::from_le_bytes(packet.options[1].value[..4].try_into().unwrap());
                            format!("packet at {} {ts} {codes:?} {flags:#x} {}", packet.if_id, packet.caplen)
                        }
                        Block::InterfaceStatistics(_) => "statistics".to_owned(),
                        Block::SimplePacket(_)
                        | Block::NameResolution(_)
                        | Block::SystemdJournalExport(_)
                        | Block::DecryptionSecrets(_)
                        | Block::ProcessInformation(_)
                        | Block::Custom(_)
                        | Block::Unknown(_) => format!("not written by us: {block:?}"),
                    });
                    reader.consume(length);
                }
                Err(PcapError::Eof) => break,
                Err(PcapError::Incomplete(_)) => reader.refill().unwrap(),
                Err(error) => panic!("{error:?}"),
                Ok(_) => panic!("this is no pcapng"),
            }
        }
        let packet = |interface| format!("packet at {interface} 1000000000000000042 [1, 2, 5, 7, 0] 0x801 42");
        let expected = [
            "section".to_owned(),
            "interface, resolution 9".to_owned(),
            packet(0),
            "interface, resolution 9".to_owned(),
            packet(1),
            packet(0),
            "statistics".to_owned(),
        ];
        assert_eq!(blocks, expected);
    }

    #[test]
    fn only_a_loss_is_told() {
        let (pcapng, _) = Pcapng::begin(0, 100).unwrap();
        assert!(pcapng.lost(3, 1).unwrap().is_empty(), "there is no interface to tell it at");
        let mut pcapng = pcapng;
        pcapng.packet(&record(shown(Event::default()), 7), &Interfaces::default()).unwrap();
        assert!(pcapng.lost(0, 1).unwrap().is_empty() && !pcapng.lost(1, 1).unwrap().is_empty());
    }
}
