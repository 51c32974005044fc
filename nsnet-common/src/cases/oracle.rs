//! What must hold for every frame that gets through, read from its bytes without any of `wire`'s or `guard`'s code.

use crate::layout::PortId;
use crate::verdict::Egress;
use crate::wire::Mac;

use super::frame::checksum;
use super::mutate::Mutant;
use super::world::{BLUE, BLUE_SECOND_V4, BLUE_SECOND_V6, ENDS, End, SECOND_V4, UPLINK};

/// The end of a port.
pub(super) fn end_of(port: PortId) -> Option<&'static End> {
    ENDS.into_iter().find(|end| end.id == port)
}

/// Says what is wrong with letting a namespace's frame through, if anything.
pub(super) fn objection(mutant: &Mutant) -> Option<String> {
    let sender = end_of(mutant.port)?;
    check(&mutant.frame, sender).err()
}

type Verdict = Result<(), String>;

/// What IPv4 addresses begin with in IPv6's form.
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

fn check(frame: &[u8], sender: &End) -> Verdict {
    let trusted = sender.flags & crate::layout::flags::TRUSTED != 0;
    let source = Mac(array(frame, 6)?);
    let is_own = source == sender.mac;
    ensure(frame[0..5] != [1, 0x80, 0xc2, 0, 0] || frame[5] >= 16, "reserved group")?;
    ensure(source.0[0] & 1 == 0 && source.0 != [0; 6], "source is a group or zero")?;
    if !is_own && !trusted {
        ensure(sender.flags & crate::layout::flags::LEARN != 0, "foreign MAC")?;
        ensure(ENDS.into_iter().all(|end| end.mac != source), "somebody's MAC")?;
    }
    let claim = Claim { sender, is_own, trusted };
    match word(frame, 12)? {
        0x0800 => check_ipv4(frame, &claim),
        0x0806 => {
            ensure(frame.len() >= 42, "short ARP")?;
            ensure(matches!(frame[20..22], [0, 1 | 2]), "ARP operation")?;
            let ip: [u8; 4] = array(frame, 28)?;
            ensure(trusted || frame[22..28] == source.0, "ARP sender MAC")?;
            claim.ensure_v4(ip, ip == [0; 4] && frame[21] == 1)
        }
        0x86dd => check_ipv6(frame, source, &claim),
        other => Err(format!("ethertype {other:#x}")),
    }
}

struct Claim<'a> {
    sender: &'a End,
    is_own: bool,
    trusted: bool,
}

impl Claim<'_> {
    /// Whether an address that somebody (or nobody) in the sender's network has is the sender's to use. `subnet` is
    /// the number of the network that the address lies in.
    fn ensure(&self, owner: Option<PortId>, subnet: Option<u8>, ip: &dyn std::fmt::Debug) -> Verdict {
        let is_near = subnet.is_none_or(|number| u16::from(number) == self.sender.network.0);
        let mine = owner == Some(self.sender.id) || (owner.is_none() && !self.is_own && is_near);
        ensure(self.trusted || mine, &format!("address {ip:02x?} belongs to {owner:?} in {subnet:?}"))
    }

    fn ensure_v4(&self, ip: [u8; 4], is_exempt: bool) -> Verdict {
        let own = |end: &&End| end.ipv4 == ip || (end.id == BLUE.id && ip == BLUE_SECOND_V4);
        let subnet = Some(ip[1]).filter(|number| ip[0] == 10 && (1..=5).contains(number) && ip[2] == 0);
        if is_exempt { Ok(()) } else { self.ensure(self.owner(own), subnet, &ip) }
    }

    fn ensure_v6(&self, ip: [u8; 16]) -> Verdict {
        if ip[..12] == MAPPED {
            return self.ensure_v4(array(&ip, 12)?, false);
        }
        let own = |end: &&End| end.ipv6 == ip || end.link_local() == ip || (end.id == BLUE.id && ip == BLUE_SECOND_V6);
        let subnet = Some(ip[1]).filter(|number| ip[0] == 0xfd && [1, 2, 4, 5].contains(number) && ip[2..8] == [0; 6]);
        self.ensure(self.owner(own), subnet, &ip)
    }

    fn owner(&self, own: impl Fn(&&End) -> bool) -> Option<PortId> {
        let neighbours = ENDS.into_iter().filter(|end| end.network == self.sender.network);
        neighbours.into_iter().find(own).map(|end| end.id)
    }
}

fn check_ipv4(frame: &[u8], claim: &Claim<'_>) -> Verdict {
    let header = usize::from(byte(frame, 14)? & 15) * 4;
    let total = usize::from(word(frame, 16)?);
    ensure(byte(frame, 14)? >> 4 == 4 && header >= 20, "IPv4 version or header length")?;
    // Only a GSO frame may say 0; the callers' GSO frames do not matter here, so 0 passes.
    ensure(total == 0 || (total >= header && 14 + total <= frame.len()), "IPv4 total length")?;
    claim.ensure_v4(array(frame, 26)?, false)?;
    let is_first = word(frame, 20)? & 0x1fff == 0;
    if byte(frame, 23)? == 17 && is_first {
        ensure_no_dhcp(frame, 14 + header, (67, 68), claim)?;
    }
    Ok(())
}

fn ensure_no_dhcp(frame: &[u8], at: usize, ports: (u16, u16), claim: &Claim<'_>) -> Verdict {
    let found = (word(frame, at)?, word(frame, at + 2)?);
    ensure(claim.trusted || found != ports, "DHCP server")
}

fn check_ipv6(frame: &[u8], source: Mac, claim: &Claim<'_>) -> Verdict {
    ensure(claim.sender.flags & crate::layout::flags::IPV6 != 0, "IPv6 is off")?;
    ensure(byte(frame, 14)? >> 4 == 6, "IPv6 version")?;
    ensure(54 + usize::from(word(frame, 18)?) <= frame.len(), "IPv6 payload length")?;
    let from: [u8; 16] = array(frame, 22)?;
    ensure(from[..12] != MAPPED, "IPv4 address in IPv6")?;
    if !(from == [0; 16] && byte(frame, 38)? == 0xff) {
        ensure(claim.trusted || from != [0; 16], "unspecified source")?;
        claim.ensure_v6(from)?;
    }
    let (mut protocol, mut at, mut headers) = (byte(frame, 20)?, 54, 0);
    while matches!(protocol, 0 | 43 | 44 | 51 | 60) {
        let (next, units) = (byte(frame, at)?, usize::from(byte(frame, at + 1)?));
        let is_later_fragment = protocol == 44 && word(frame, at + 2)? >> 3 != 0;
        at += match protocol {
            44 => 8,
            51 => 8 + units * 4,
            _ => 8 + units * 8,
        };
        (protocol, headers) = (next, headers + 1);
        if is_later_fragment {
            return Ok(());
        }
    }
    match protocol {
        17 => ensure_no_dhcp(frame, at, (547, 546), claim),
        58 if !claim.trusted => check_discovery(&frame[at..], headers, byte(frame, 21)?, source, claim),
        _ => Ok(()),
    }
}

fn check_discovery(message: &[u8], headers: usize, hops: u8, source: Mac, claim: &Claim<'_>) -> Verdict {
    let kind = byte(message, 0)?;
    ensure(kind != 134 && kind != 137, "router")?;
    if !(133..=136).contains(&kind) {
        return Ok(());
    }
    ensure(headers == 0 && hops == 255, "discovery behind headers or from afar")?;
    if kind == 133 {
        return Ok(());
    }
    let target = array(message, 8)?;
    if kind == 136 {
        claim.ensure_v6(target)?;
    }
    let mut options = &message[24..];
    while options.len() >= 2 && options[1] != 0 {
        if matches!(options[0], 1 | 2) {
            ensure(options.get(2..8) == Some(&source.0), "MAC in an option")?;
        }
        options = options.get(usize::from(options[1]) * 8..).unwrap_or_default();
    }
    Ok(())
}

fn ensure(holds: bool, what: &str) -> Verdict {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], String> {
    let found = bytes.get(at..at + N).and_then(|bytes| bytes.try_into().ok());
    found.ok_or_else(|| format!("ends before byte {at}"))
}

fn byte(bytes: &[u8], at: usize) -> Result<u8, String> {
    array(bytes, at).map(|[byte]| byte)
}

fn word(bytes: &[u8], at: usize) -> Result<u16, String> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// Says what is wrong with a packet that was passed on by routing, if anything.
pub(super) fn objection_to_routed(mutant: &Mutant, after: &[u8], egress: Egress) -> Option<String> {
    check_routed(mutant, after, egress).err()
}

fn check_routed(mutant: &Mutant, after: &[u8], egress: Egress) -> Verdict {
    let before = &mutant.frame;
    ensure(before.len() == after.len(), "length")?;
    ensure(before[12..14] == after[12..14], "ethertype")?;
    let is_v4 = after[12] == 8;
    let (source, destination, hops, protocol, at) = if is_v4 {
        (26..30, 30..34, 22, after[23], 14 + usize::from(after[14] & 15) * 4)
    } else {
        (22..38, 38..54, 21, after[20], 54)
    };
    ensure(before[hops] >= 2 && after[hops] == before[hops] - 1, "hops")?;
    let has_source = |end: &End| after[source.clone()] == *if is_v4 { &end.ipv4[..] } else { &end.ipv6[..] };
    let is_of = |end: &End| {
        let own = after[destination.clone()] == *if is_v4 { &end.ipv4[..] } else { &end.ipv6[..] };
        let second = after[destination.clone()] == *if is_v4 { &BLUE_SECOND_V4[..] } else { &BLUE_SECOND_V6[..] };
        own || end.id == BLUE.id && second || !is_v4 && after[destination.clone()] == end.link_local()
    };
    match egress {
        Egress::Uplink(_) | Egress::Neighbour(_) => {
            let sender = end_of(mutant.port).ok_or("from outside to outside")?;
            // What is published is, where there is no route, at every address; those of namespaces begin like this.
            let is_private = after[source.start] == if is_v4 { 10 } else { 0xfd };
            // A gateway's address: there somebody from outside has asked a published port.
            let is_gateway = |end: &&End| end.flags & crate::layout::flags::HOST != 0 && has_source(end);
            let is_masqueraded = matches!(sender.network.0, 1 | 4);
            let is_asked = ENDS.iter().any(is_gateway);
            ensure(!is_private || is_asked || !is_masqueraded, "a private source leaves")?;
            ensure(sender.network.0 != 3, "out of the internal network")?;
        }
        Egress::Namespace(to) => {
            let to = end_of(to).ok_or("to no port")?;
            ensure(after[..6] == to.mac.0, "MAC of the receiver")?;
            ensure(is_of(to), "not the receiver's address")?;
            if let Some(sender) = end_of(mutant.port) {
                let gateway = ENDS.into_iter().find(|end| end.network == to.network).ok_or("no gateway")?;
                let is_near = sender.network == to.network;
                let both_open = sender.network.0 >= 4 && to.network.0 >= 4;
                // By an address of the host's: the receiver sees its gateway, or gets the answer of who was asked.
                let asked = has_source(gateway) || has_source(&UPLINK) || is_v4 && after[source.clone()] == SECOND_V4;
                let hosts = ENDS.into_iter().filter(|end| end.flags & crate::layout::flags::HOST != 0);
                ensure(is_near || both_open || asked || hosts.into_iter().any(has_source), "to another network")?;
            }
        }
        Egress::Host(_) => return Err("to the host".to_owned()),
    }
    if is_v4 {
        let header = |bytes: &[u8]| sum_of(&bytes[14..at]);
        ensure(header(before) == header(after), "header checksum repaired or spoiled")?;
    }
    let end = 14 + if is_v4 { usize::from(word(after, 16)?) } else { 40 + usize::from(word(after, 18)?) };
    let end = if end > after.len() || end < at { after.len() } else { end };
    let is_later = is_v4 && word(after, 20)? & 0x1fff != 0;
    if is_later || !matches!((protocol, is_v4), (6 | 17, _) | (1, true) | (58, false)) {
        return Ok(());
    }
    let is_error = matches!((protocol, after[at]), (1, 3 | 11 | 12) | (58, 1..=4));
    if is_error && end != after.len() {
        // A quotation is read on to the frame's end, whatever is padding there.
        return Ok(());
    }
    let no_checksum = protocol == 17 && word(before, at + 6)? == 0;
    if no_checksum {
        ensure(word(after, at + 6)? == 0, "a checksum where there was none")?;
    } else {
        let message = |bytes: &[u8]| {
            let pseudo =
                if protocol == 1 { Vec::new() } else { [&bytes[source.clone()], &bytes[destination.clone()]].concat() };
            sum_of(&[&pseudo, &bytes[at..end]].concat())
        };
        ensure(message(before) == message(after), "checksum repaired or spoiled")?;
    }
    // Ports or identifier, and checksum.
    let changed: &[core::ops::Range<usize>] = match protocol {
        6 => &[0..4, 16..18],
        17 => &[0..4, 6..8],
        // An error: all that is quoted.
        _ if is_error => return Ok(()),
        _ => &[2..4, 4..6],
    };
    for position in at..after.len() {
        let is_field = changed.iter().any(|range| range.contains(&(position - at)));
        ensure(is_field || before[position] == after[position], "payload changed")?;
    }
    Ok(())
}

/// The sum of bytes, in which both zeros are one.
fn sum_of(bytes: &[u8]) -> u16 {
    checksum(bytes) % 0xffff
}
