//! Frames that were recorded: by tcpdump in a file (pcap or pcapng), or as hexadecimal digits.

use pcap_parser::{Linktype, PcapBlockOwned, PcapError, create_reader};

use crate::model::{Result, refuse};

/// The longest block that is read at once; frames of 64 KB and their headers fit several times.
const BUFFER: usize = 1 << 20;

/// The frame with this number, counted from 1, in a pcap or pcapng file. `name` is the file's, for messages.
pub fn frame_of(name: &str, number: usize, bytes: &[u8]) -> Result<Vec<u8>> {
    let broken = |why: &str| refuse(format_args!("cannot read {name}: {why}; a pcap or pcapng file is needed"));
    let Ok(mut reader) = create_reader(BUFFER, bytes) else { return broken("it is no capture") };
    let (mut links, mut at) = (Vec::new(), 0);
    loop {
        match reader.next() {
            Ok((length, block)) => {
                let found = frame_in(&block, &mut links);
                reader.consume(length);
                at += usize::from(found.is_some());
                if let Some(found) = found.filter(|_| at == number) {
                    return frame(name, found);
                }
            }
            Err(PcapError::Eof) => {
                return refuse(format_args!("cannot find frame {number} in {name}: it has {at} frames"));
            }
            Err(PcapError::Incomplete(_)) => {
                if reader.refill().is_err() {
                    return broken("it ends within a frame");
                }
            }
            Err(PcapError::UnexpectedEof) => return broken("it ends within a frame"),
            Err(_) => return broken("it is damaged"),
        }
    }
}

/// A captured frame: its link type, its length on the wire, and what was kept of it.
struct Captured {
    link: Linktype,
    length: u32,
    bytes: Vec<u8>,
}

/// What a block of the file holds. `links` are the interfaces that were described so far.
fn frame_in(block: &PcapBlockOwned<'_>, links: &mut Vec<Linktype>) -> Option<Captured> {
    use pcap_parser::pcapng::Block;
    let captured = |interface: usize, length: u32, kept: u32, data: &[u8]| Captured {
        link: links_at(links, interface),
        length,
        bytes: data.get(..kept as usize).unwrap_or(data).to_vec(),
    };
    match block {
        PcapBlockOwned::LegacyHeader(header) => {
            links.push(header.network);
            None
        }
        PcapBlockOwned::Legacy(packet) => Some(captured(0, packet.origlen, packet.caplen, packet.data)),
        PcapBlockOwned::NG(Block::SectionHeader(_)) => {
            links.clear();
            None
        }
        PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
            links.push(interface.linktype);
            None
        }
        PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
            Some(captured(packet.if_id as usize, packet.origlen, packet.caplen, packet.data))
        }
        PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
            Some(captured(0, packet.origlen, packet.origlen, packet.data))
        }
        PcapBlockOwned::NG(_) => None,
    }
}

fn links_at(links: &[Linktype], interface: usize) -> Linktype {
    links.get(interface).copied().unwrap_or(Linktype(-1))
}

fn frame(name: &str, captured: Captured) -> Result<Vec<u8>> {
    let Captured { link, length, bytes } = captured;
    if link != Linktype::ETHERNET {
        return refuse(format_args!(
            "cannot use the frame in {name}: it has link type {}, not Ethernet (1); capture on the interface itself, \
             not on \"any\"",
            link.0
        ));
    }
    if bytes.len() < length as usize {
        return refuse(format_args!(
            "cannot use the frame in {name}: {} of its {length} bytes were kept; capture with -s 0",
            bytes.len()
        ));
    }
    Ok(bytes)
}

/// The bytes of hexadecimal digits. Whitespace and colons do not count, nor what tcpdump, xxd and Wireshark print
/// in front of a line (`0x0010:`) .
pub fn from_hex(text: &str) -> Result<Vec<u8>> {
    let mut digits = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        // An offset ends with a colon and has more than a byte's two digits before it.
        let line = match line.split_once(':') {
            Some((offset, rest)) if offset.len() > 2 && is_hex(offset.trim_start_matches("0x")) => rest,
            _ => line,
        };
        for c in line.chars().filter(|c| !c.is_whitespace() && *c != ':') {
            match c.to_digit(16) {
                Some(digit) => digits.push(digit as u8),
                None => return refuse(format_args!("cannot read the frame: {c:?} is no hexadecimal digit")),
            }
        }
    }
    if digits.is_empty() || digits.len() % 2 != 0 {
        return refuse(format_args!("cannot read the frame: {} hexadecimal digits make no bytes", digits.len()));
    }
    Ok(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The classic format: link type, and the frames with the length that they had.
    fn pcap(link: u32, frames: &[(&[u8], u32)], big: bool) -> Vec<u8> {
        let word = |number: u32| if big { number.to_be_bytes() } else { number.to_le_bytes() };
        let half = |number: u16| if big { number.to_be_bytes() } else { number.to_le_bytes() };
        let mut file =
            [&word(0xa1b2_c3d4)[..], &half(2), &half(4), &word(0), &word(0), &word(65535), &word(link)].concat();
        for (frame, length) in frames {
            file.extend([word(1), word(2), word(frame.len() as u32), word(*length)].concat());
            file.extend(*frame);
        }
        file
    }

    #[test]
    fn both_byte_orders_and_each_frame() {
        for big in [false, true] {
            let file = pcap(1, &[(&[1; 60], 60), (&[2; 70], 70)], big);
            assert_eq!(frame_of("f", 1, &file).unwrap(), [1; 60]);
            assert_eq!(frame_of("f", 2, &file).unwrap(), [2; 70]);
            let error = frame_of("f", 3, &file).unwrap_err().to_string();
            assert!(error.contains("it has 2"), "{error}");
        }
    }

    #[test]
    fn pcapng() {
        let block = |kind: u32, body: &[u8]| {
            let length = (body.len() + 12) as u32;
            [&kind.to_le_bytes()[..], &length.to_le_bytes(), body, &length.to_le_bytes()].concat()
        };
        let section = block(0x0a0d_0d0a, &[&0x1a2b_3c4du32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat());
        let interface = block(1, &[1, 0, 0, 0, 0, 0, 0, 0]);
        let frame = [7; 64];
        let packet = [[0u32, 0, 0, 64, 64].map(u32::to_le_bytes).concat(), frame.to_vec()].concat();
        let file = [section, interface, block(6, &packet)].concat();
        assert_eq!(frame_of("f", 1, &file).unwrap(), frame);
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let refused = |file: &[u8]| frame_of("f", 1, file).unwrap_err().to_string();
        assert!(refused(&pcap(113, &[(&[0; 60], 60)], false)).contains("link type 113"));
        assert!(refused(&pcap(1, &[(&[0; 60], 1500)], false)).contains("60 of its 1500 bytes"));
        assert!(refused(b"no capture at all, but long enough").contains("no capture"));
        let whole = pcap(1, &[(&[0; 60], 60)], false);
        for length in 0..whole.len() {
            assert!(frame_of("f", 1, &whole[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn hexadecimal_digits_as_tools_print_them() {
        assert_eq!(from_hex("ff:00:a1").unwrap(), [0xff, 0, 0xa1]);
        assert_eq!(from_hex("  0x0000:  4500 0054\n\t0x0010:  c0a8\n").unwrap(), [0x45, 0, 0, 0x54, 0xc0, 0xa8]);
        assert_eq!(from_hex("00000000: 4500\n").unwrap(), [0x45, 0]);
        for bad in ["", "f", "zz", "0x12"] {
            assert!(from_hex(bad).is_err(), "{bad:?}");
        }
    }
}
