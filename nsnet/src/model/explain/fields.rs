//! A frame's headers, field by field, as people call them; and what differs between two frames.
//!
//! Reads whatever is there: a header that is cut off ends the list, and what contradicts itself is shown as it is.

use std::fmt::Display;
use std::net::{Ipv4Addr, Ipv6Addr};

use nsnet_common::wire::{EtherType, IpProtocol, Mac};

use crate::model::flow::protocol_name;
use crate::model::headers::Headers;

/// One field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name, unique in the frame.
    pub name: String,
    /// What it says.
    pub value: String,
}

/// A field that is another afterwards, or only before, or only afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Its name.
    pub name: String,
    /// What it said before.
    pub before: Option<String>,
    /// What it says afterwards.
    pub after: Option<String>,
}

/// The fields of a frame, in their order.
pub fn fields(frame: &[u8]) -> Vec<Field> {
    let mut reader = Reader { bytes: frame, prefix: "", fields: Vec::new() };
    if reader.ethernet().is_none() {
        reader.push("cut off after", format_args!("{} bytes", frame.len()));
    }
    reader.fields
}

/// What differs.
pub fn changed(before: &[u8], after: &[u8]) -> Vec<Changed> {
    let (before, after) = (fields(before), fields(after));
    let value =
        |fields: &[Field], name: &str| fields.iter().find(|field| field.name == name).map(|field| field.value.clone());
    let is_new = |field: &&Field| value(&before, &field.name).is_none();
    let all = before.iter().chain(after.iter().filter(is_new));
    let changed = all.map(|Field { name, .. }| Changed {
        name: name.clone(),
        before: value(&before, name),
        after: value(&after, name),
    });
    changed.filter(|changed| changed.before != changed.after).collect()
}

/// The frame in one line: its headers as everywhere, and what else matters to a router.
pub fn summary(frame: &[u8]) -> String {
    let fields = fields(frame);
    let of = |name: &str| fields.iter().find(|field| field.name == name).map(|field| field.value.as_str());
    let mut text = Headers::read(frame, frame.len() as u32).to_string();
    match (of("ARP operation"), of("ARP sender"), of("ARP sender MAC"), of("ARP target")) {
        (Some("request"), _, _, Some(target)) => text.push_str(&format!(", who has {target}?")),
        (Some("reply"), Some(sender), Some(mac), _) => text.push_str(&format!(", {sender} is at {mac}")),
        _ => {}
    }
    let more = [("ICMP message", ""), ("ICMP identifier", "id "), ("fragment", "fragment "), ("TTL", "TTL ")];
    for (name, label) in more {
        if let Some(value) = of(name).filter(|value| *value != "no") {
            text.push_str(&format!(", {label}{value}"));
        }
    }
    text
}

struct Reader<'a> {
    bytes: &'a [u8],
    prefix: &'static str,
    fields: Vec<Field>,
}

impl Reader<'_> {
    fn push(&mut self, name: &str, value: impl Display) {
        self.fields.push(Field { name: format!("{}{name}", self.prefix), value: value.to_string() });
    }

    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.bytes.get(at..at + N)?.try_into().ok()
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.bytes.get(at).copied()
    }

    fn word(&self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_be_bytes)
    }

    fn long(&self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_be_bytes)
    }

    fn payload(&mut self, at: usize) -> Option<()> {
        const SHOWN: usize = 16;
        let payload = self.bytes.get(at..)?;
        let shown: String = payload.iter().take(SHOWN).map(|byte| format!("{byte:02x}")).collect();
        let more = if payload.len() > SHOWN { "..." } else { "" };
        let length = payload.len();
        self.push("payload", format_args!("{length} bytes{}{shown}{more}", if shown.is_empty() { "" } else { ": " }));
        Some(())
    }

    fn ethernet(&mut self) -> Option<()> {
        self.push("MAC destination", Mac(self.array(0)?));
        self.push("MAC source", Mac(self.array(6)?));
        let mut at = 12;
        let mut kind = EtherType(self.word(at)?);
        while kind.is_tag() {
            self.push("VLAN", self.word(at + 2)? & 0xfff);
            at += 4;
            kind = EtherType(self.word(at)?);
        }
        let name = match kind {
            EtherType::IPV4 => "IPv4".to_owned(),
            EtherType::IPV6 => "IPv6".to_owned(),
            EtherType::ARP => "ARP".to_owned(),
            EtherType(number) => format!("{number:#06x}"),
        };
        self.push("type", name);
        match kind {
            EtherType::IPV4 => self.ipv4(at + 2),
            EtherType::IPV6 => self.ipv6(at + 2),
            EtherType::ARP => self.arp(at + 2),
            _ => self.payload(at + 2),
        }
    }

    fn arp(&mut self, at: usize) -> Option<()> {
        let operation = match self.word(at + 6)? {
            1 => "request".to_owned(),
            2 => "reply".to_owned(),
            other => other.to_string(),
        };
        self.push("ARP operation", operation);
        self.push("ARP sender MAC", Mac(self.array(at + 8)?));
        self.push("ARP sender", Ipv4Addr::from(self.array::<4>(at + 14)?));
        self.push("ARP target MAC", Mac(self.array(at + 18)?));
        self.push("ARP target", Ipv4Addr::from(self.array::<4>(at + 24)?));
        Some(())
    }

    fn ipv4(&mut self, at: usize) -> Option<()> {
        let header = usize::from(self.byte(at)? & 15) * 4;
        self.push("service", format_args!("{:#04x}", self.byte(at + 1)?));
        self.push("length", self.word(at + 2)?);
        self.push("identification", format_args!("{:#06x}", self.word(at + 4)?));
        let flags = self.word(at + 6)?;
        self.push("must not be cut", if flags & 0x4000 != 0 { "yes" } else { "no" });
        let (offset, more) = (u32::from(flags & 0x1fff) * 8, flags & 0x2000 != 0);
        self.push("fragment", fragment(offset, more));
        self.push("TTL", self.byte(at + 8)?);
        let protocol = IpProtocol(self.byte(at + 9)?);
        self.push("protocol", protocol_name(protocol));
        self.push("header checksum", format_args!("{:#06x}", self.word(at + 10)?));
        self.push("source", Ipv4Addr::from(self.array::<4>(at + 12)?));
        self.push("destination", Ipv4Addr::from(self.array::<4>(at + 16)?));
        if header > 20 {
            let options: String = self.bytes.get(at + 20..at + header)?.iter().map(|b| format!("{b:02x}")).collect();
            self.push("options", options);
        }
        self.transport(at + header.max(20), protocol, offset == 0)
    }

    fn ipv6(&mut self, at: usize) -> Option<()> {
        let first = self.long(at)?;
        self.push("service", format_args!("{:#04x}", first >> 20 & 0xff));
        self.push("flow label", format_args!("{:#07x}", first & 0xf_ffff));
        self.push("length", self.word(at + 4)?);
        self.push("TTL", self.byte(at + 7)?);
        let (mut next, mut end) = (IpProtocol(self.byte(at + 6)?), at + 40);
        let (source, destination) = (self.array::<16>(at + 8)?, self.array::<16>(at + 24)?);
        let mut is_first = true;
        let mut extensions = Vec::new();
        loop {
            let length = match next {
                IpProtocol::HOP_BY_HOP | IpProtocol::ROUTING | IpProtocol::DESTINATION_OPTIONS => {
                    usize::from(self.byte(end + 1)?) * 8 + 8
                }
                IpProtocol::AUTHENTICATION => usize::from(self.byte(end + 1)?) * 4 + 8,
                IpProtocol::FRAGMENT => {
                    let field = self.word(end + 2)?;
                    self.push("identification", format_args!("{:#010x}", self.long(end + 4)?));
                    self.push("fragment", fragment(u32::from(field & !7), field & 1 != 0));
                    is_first = field & !7 == 0;
                    8
                }
                _ => break,
            };
            extensions.push(next.0.to_string());
            next = IpProtocol(self.byte(end)?);
            end += length;
            if !is_first {
                break;
            }
        }
        if !extensions.is_empty() {
            self.push("extension headers", extensions.join(" "));
        }
        self.push("protocol", protocol_name(next));
        self.push("source", Ipv6Addr::from(source));
        self.push("destination", Ipv6Addr::from(destination));
        self.transport(end, next, is_first)
    }

    fn transport(&mut self, at: usize, protocol: IpProtocol, is_here: bool) -> Option<()> {
        match protocol {
            _ if !is_here => self.payload(at),
            IpProtocol::TCP => self.tcp(at),
            IpProtocol::UDP => {
                self.ports(at)?;
                self.push("UDP length", self.word(at + 4)?);
                self.push("UDP checksum", format_args!("{:#06x}", self.word(at + 6)?));
                self.payload(at + 8)
            }
            IpProtocol::SCTP => {
                self.ports(at)?;
                self.push("SCTP checksum", format_args!("{:#010x}", self.long(at + 8)?));
                self.payload(at + 12)
            }
            IpProtocol::ICMP | IpProtocol::ICMPV6 => self.icmp(at, protocol == IpProtocol::ICMP),
            _ => self.payload(at),
        }
    }

    fn ports(&mut self, at: usize) -> Option<()> {
        self.push("source port", self.word(at)?);
        self.push("destination port", self.word(at + 2)?);
        Some(())
    }

    fn tcp(&mut self, at: usize) -> Option<()> {
        const FLAGS: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];
        self.ports(at)?;
        self.push("TCP sequence", self.long(at + 4)?);
        self.push("TCP acknowledgement", self.long(at + 8)?);
        let (header, flags) = (usize::from(self.byte(at + 12)? >> 4) * 4, self.byte(at + 13)?);
        let set = FLAGS.iter().enumerate().filter(|(bit, _)| flags & (1 << bit) != 0);
        let set: Vec<&str> = set.map(|(_, name)| *name).collect();
        self.push("TCP flags", if set.is_empty() { "none".to_owned() } else { set.join(",") });
        self.push("TCP window", self.word(at + 14)?);
        self.push("TCP checksum", format_args!("{:#06x}", self.word(at + 16)?));
        self.payload(at + header.max(20))
    }

    fn icmp(&mut self, at: usize, is_v4: bool) -> Option<()> {
        let (kind, code) = (self.byte(at)?, self.byte(at + 1)?);
        let name = icmp_name(is_v4, kind, code);
        self.push("ICMP message", name.map_or_else(|| format!("type {kind} code {code}"), str::to_owned));
        self.push("ICMP checksum", format_args!("{:#06x}", self.word(at + 2)?));
        let is_error = if is_v4 { matches!(kind, 3 | 4 | 5 | 11 | 12) } else { kind < 128 };
        match (is_v4, kind) {
            (true, 0 | 8) | (false, 128 | 129) => {
                self.push("ICMP identifier", self.word(at + 4)?);
                self.push("ICMP sequence", self.word(at + 6)?);
            }
            (false, 135 | 136) => {
                self.push("ND flags", format_args!("{:#010x}", self.long(at + 4)?));
                self.push("ND target", Ipv6Addr::from(self.array::<16>(at + 8)?));
                return self.payload(at + 24);
            }
            (true, 3) if code == 4 => self.push("ICMP MTU", self.word(at + 6)?),
            (false, 2) => self.push("ICMP MTU", self.long(at + 4)?),
            _ => self.push("ICMP rest", format_args!("{:#010x}", self.long(at + 4)?)),
        }
        if !is_error || !self.prefix.is_empty() {
            return self.payload(at + 8);
        }
        self.prefix = "quoted ";
        let quoted = if is_v4 { self.ipv4(at + 8) } else { self.ipv6(at + 8) };
        if quoted.is_none() {
            self.push("packet", "is cut off");
        }
        self.prefix = "";
        Some(())
    }
}

fn fragment(offset: u32, more: bool) -> String {
    match (offset, more) {
        (0, false) => "no".to_owned(),
        (offset, true) => format!("from byte {offset}, more follow"),
        (offset, false) => format!("from byte {offset}, the last"),
    }
}

/// What a message is called.
pub fn icmp_name(is_v4: bool, kind: u8, code: u8) -> Option<&'static str> {
    Some(match (is_v4, kind, code) {
        (true, 0, 0) | (false, 129, 0) => "echo reply",
        (true, 8, 0) | (false, 128, 0) => "echo request",
        (true, 3, 0) | (false, 1, 0) => "no route to the destination",
        (true, 3, 1) | (false, 1, 3) => "host unreachable",
        (true, 3, 3) | (false, 1, 4) => "port unreachable",
        (true, 3, 4) | (false, 2, 0) => "packet too big",
        (true, 3, 13) | (false, 1, 1) => "prohibited",
        (true, 11, 0) | (false, 3, 0) => "TTL exceeded",
        (true, 11, 1) | (false, 3, 1) => "fragments missing",
        (false, 133, 0) => "router solicitation",
        (false, 134, 0) => "router advertisement",
        (false, 135, 0) => "neighbour solicitation",
        (false, 136, 0) => "neighbour advertisement",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        super::super::capture::from_hex(text).unwrap()
    }

    /// 192.168.15.1:4000 > 192.0.2.7:53, and as it leaves.
    const BEFORE: &str = "020001000107 020001000203 0800 4500 0020 1234 4000 4011 9d74 c0a80f01 c0000207
                          0fa0 0035 000c 0000 61626364";
    const AFTER: &str = "020000000001 020000000002 0800 4500 0020 1234 4000 3f11 6c4d c0a80101 c0000207
                         0fa0 0035 000c 0000 61626364";

    #[test]
    fn what_a_router_changes() {
        let names = |pairs: &[Changed]| pairs.iter().map(|changed| changed.name.clone()).collect::<Vec<_>>();
        let pairs = changed(&hex(BEFORE), &hex(AFTER));
        assert_eq!(names(&pairs), ["MAC destination", "MAC source", "TTL", "header checksum", "source"]);
        let ttl = pairs.iter().find(|changed| changed.name == "TTL").unwrap();
        assert_eq!((ttl.before.as_deref(), ttl.after.as_deref()), (Some("64"), Some("63")));
        assert_eq!(changed(&hex(BEFORE), &hex(BEFORE)), []);
    }

    #[test]
    fn one_line() {
        assert_eq!(summary(&hex(BEFORE)), "192.168.15.1:4000 > 192.0.2.7:53 udp 46, TTL 64");
        let arp = "ffffffffffff 020001000203 0806 0001 0800 0604 0001 020001000203 c0a80f01 000000000000 c0a80f02";
        assert_eq!(summary(&hex(arp)), "192.168.15.1 > 192.168.15.2 arp 42, who has 192.168.15.2?");
        assert_eq!(
            summary(&hex("ffffffffffff 020001000203 88cc 00")),
            "02:00:01:00:02:03 > ff:ff:ff:ff:ff:ff ethertype-0x88cc 15"
        );
    }

    /// A TTL exceeded about the datagram, and its first 8 bytes after the header.
    #[test]
    fn an_error_shows_what_it_is_about() {
        let quote = &hex(BEFORE)[14..];
        let mut error =
            hex("020001000203 020001000107 0800 45000038 0000 0000 40 01 0000 c0a80f05 c0a80f01 0b00 0000 00000000");
        error.extend(&quote[..28]);
        let fields = fields(&error);
        let of = |name: &str| fields.iter().find(|field| field.name == name).unwrap().value.clone();
        assert_eq!(
            (of("ICMP message"), of("quoted destination"), of("quoted destination port")),
            ("TTL exceeded".into(), "192.0.2.7".into(), "53".into())
        );
        assert_eq!(of("source"), "192.168.15.5");
    }

    #[test]
    fn whatever_is_cut_off_or_broken_is_no_panic() {
        let whole = hex(BEFORE);
        for length in 0..whole.len() {
            let shown = fields(&whole[..length]);
            assert!(!shown.is_empty());
            let _line = summary(&whole[..length]);
        }
        for at in 0..whole.len() {
            for byte in [0, 0xff, 44, 58, 60, 0x81] {
                let mut frame = whole.clone();
                frame[at] = byte;
                let _shown = fields(&frame);
            }
        }
    }
}
