//! A packet is given the addresses, ports and MACs of its flow, one hop less, and the checksums that go with them.

use crate::checksum::Delta;
use crate::datagram::{Datagram, Kind, Query};
use crate::layout::Flow;
use crate::packet::Packet;
use crate::scratch::Scratch;
use crate::verdict::DropReason;
use crate::wire::Ethernet;
use crate::wire::ipv4::Ipv4;
use crate::wire::ipv6::Ipv6;
use crate::wire::transport::{Ports, Tcp, Udp};

/// Passes the packet on as `scratch.flow` says.
#[inline(always)]
pub fn pass_on(frame: &mut impl Packet, scratch: &Scratch) -> Result<(), DropReason> {
    write_transport(frame, &scratch.datagram, &scratch.flow).ok_or(DropReason::Truncated)?;
    write_network(frame, scratch).ok_or(DropReason::Truncated)
}

/// MACs and IP header.
#[inline(always)]
pub(crate) fn write_network(frame: &mut impl Packet, scratch: &Scratch) -> Option<()> {
    let Scratch { datagram, flow, .. } = scratch;
    frame.overwrite(0, &flow.about.macs)?;
    if datagram.key.is_v4() {
        let ip = frame.copy::<Ipv4>(Ethernet::LEN)?.forwarded(flow.source.low(), flow.destination.low());
        frame.overwrite(Ethernet::LEN, &ip)
    } else {
        let ip = frame.copy::<Ipv6>(Ethernet::LEN)?.forwarded(flow.source, flow.destination);
        frame.overwrite(Ethernet::LEN, &ip)
    }
}

#[inline(always)]
fn write_transport(frame: &mut impl Packet, datagram: &Datagram, flow: &Flow) -> Option<()> {
    let at = usize::from(datagram.at);
    let key = &datagram.key;
    let old = Ports { source: key.source_port, destination: key.destination_port };
    let new = Ports { source: flow.about.source_port, destination: flow.about.destination_port };
    let ports = Delta::default().word(old.source, new.source).word(old.destination, new.destination);
    let pseudo = Delta::default().address(key.source, flow.source, key.is_v4()).address(
        key.destination,
        flow.destination,
        key.is_v4(),
    );
    match datagram.kind {
        Kind::Tcp => {
            frame.change_checksum(at + Tcp::CHECKSUM_AT, pseudo, ports, false)?;
            if old != new { frame.overwrite(at, &new) } else { Some(()) }
        }
        Kind::Udp => {
            frame.change_checksum(at + Udp::CHECKSUM_AT, pseudo, ports, true)?;
            if old != new { frame.overwrite(at, &new) } else { Some(()) }
        }
        Kind::EchoRequest | Kind::EchoReply => write_echo(frame, datagram, flow),
        // A CRC without pseudo-header over SCTP; nothing that we know of over the others.
        Kind::Sctp | Kind::Other | Kind::LaterFragment | Kind::IcmpError | Kind::Link => Some(()),
    }
}

#[inline(never)]
fn write_echo(frame: &mut impl Packet, datagram: &Datagram, flow: &Flow) -> Option<()> {
    let Datagram { key, kind, at, .. } = datagram;
    let (old, new) = match *kind == Kind::EchoRequest {
        true => (key.source_port, flow.about.source_port),
        false => (key.destination_port, flow.about.destination_port),
    };
    // The pseudo-header is under the checksum of ICMPv6 only (RFC 4443 section 2.3).
    let pseudo_header = match key.is_v4() {
        true => Delta::default(),
        false => {
            Delta::default().address(key.source, flow.source, false).address(key.destination, flow.destination, false)
        }
    };
    let at = usize::from(*at);
    frame.change_checksum(at + Query::CHECKSUM_AT, pseudo_header, Delta::default().word(old, new), false)?;
    if old != new { frame.write(at + Query::IDENTIFIER_AT, &new) } else { Some(()) }
}
