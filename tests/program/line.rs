//! Conversations by the million: frames that are built once, and then only given other addresses and ports.

use std::time::Duration;

use anyhow::{Result, ensure};
use nsnet_common::cases::Hook;
use nsnet_common::cases::frame::Frame;
use nsnet_common::cases::world::{End, ROUTER_MAC, UPLINK};
use nsnet_common::checksum::Delta;
use nsnet_common::wire::IpProtocol;

use crate::machine::{Machine, Seen};
use crate::table::REDIRECT;

const SYN: u8 = 2;
const ACK: u8 = 16;
/// Where the addresses of a frame begin, and how long one is.
const ADDRESSES: [(usize, usize); 2] = [(26, 4), (22, 16)];

/// A frame whose endpoints are given anew each time; its checksums follow (RFC 1624).
struct Stamp {
    bytes: Vec<u8>,
    v6: bool,
    checksum_at: usize,
}

impl Stamp {
    fn new(frame: Frame, v6: bool, protocol: IpProtocol) -> Self {
        let transport_at = if v6 { 54 } else { 34 };
        let checksum_at = transport_at + if protocol == IpProtocol::TCP { 16 } else { 6 };
        Self { bytes: frame.finish(), v6, checksum_at }
    }

    /// Puts two bytes, at an even offset, and lets checksums follow.
    fn put(&mut self, at: usize, new: [u8; 2]) {
        let old = [self.bytes[at], self.bytes[at + 1]];
        if old == new {
            return;
        }
        let change = Delta::default().word(old, new);
        self.bytes[at..at + 2].copy_from_slice(&new);
        let header = (!self.v6 && at < 34).then_some(24);
        for checksum_at in header.into_iter().chain([self.checksum_at]) {
            let old = [self.bytes[checksum_at], self.bytes[checksum_at + 1]];
            self.bytes[checksum_at..checksum_at + 2].copy_from_slice(&change.apply(old));
        }
    }

    /// Gives the sender (0) or the receiver (1) this address and port.
    fn set(&mut self, which: usize, address: &[u8], port: u16) {
        let (first, length) = ADDRESSES[usize::from(self.v6)];
        let at = first + which * length;
        for (word, bytes) in address.chunks(2).enumerate() {
            self.put(at + 2 * word, [bytes[0], bytes[1]]);
        }
        self.put(first + 2 * length + 2 * which, port.to_be_bytes());
    }
}

/// An address and a port in a frame.
fn endpoint(bytes: &[u8], v6: bool, which: usize) -> (&[u8], u16) {
    let (first, length) = ADDRESSES[usize::from(v6)];
    let (at, port_at) = (first + which * length, first + 2 * length + 2 * which);
    (&bytes[at..at + length], u16::from_be_bytes([bytes[port_at], bytes[port_at + 1]]))
}

/// Who speaks: the port of a namespace, and somebody afar.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) near: u16,
    pub(crate) far: (Far, u16),
}

/// An address afar, of either family.
pub(crate) type Far = [u8; 16];

/// What is said between a namespace and hosts afar, by one protocol and family.
pub(crate) struct Line<'a> {
    machine: &'a Machine,
    end: &'static End,
    v6: bool,
    is_tcp: bool,
    out: [Stamp; 2],
    back: Stamp,
    room: Vec<u8>,
    /// That the last packet's run took.
    pub(crate) time: Duration,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It left, from this port of the host's address.
    As(u16),
    /// It was dropped, and its sender was told by an ICMP error of this type and code.
    Told([u8; 2]),
    /// It was dropped without a word.
    Dropped,
}

impl<'a> Line<'a> {
    /// Between `end`, whose gateway is `gateway`, and whom it will speak to.
    pub(crate) fn new(machine: &'a Machine, end: &'static End, gateway: &End, v6: bool, is_tcp: bool) -> Self {
        let protocol = if is_tcp { IpProtocol::TCP } else { IpProtocol::UDP };
        let stamp = |frame: Frame, source: ([u8; 4], [u8; 16]), destination: ([u8; 4], [u8; 16]), flags, numbers| {
            let frame = if v6 { frame.ipv6(source.1, destination.1) } else { frame.ipv4(source.0, destination.0) };
            let frame = if is_tcp { frame.segment((1, 1), flags, numbers) } else { frame.udp(1, 1) };
            Stamp::new(frame.payload(10), v6, protocol)
        };
        let nobody = ([0; 4], [0; 16]);
        let (near, host) = ((end.ipv4, end.ipv6), (UPLINK.ipv4, UPLINK.ipv6));
        Self {
            machine,
            end,
            v6,
            is_tcp,
            out: [(SYN, (100, 0)), (ACK, (101, 9001))]
                .map(|(flags, numbers)| stamp(end.to(gateway), near, nobody, flags, numbers)),
            back: stamp(Frame::new(ROUTER_MAC, UPLINK.mac), nobody, host, SYN | ACK, (9000, 101)),
            room: vec![0; 256],
            time: Duration::ZERO,
        }
    }

    fn far<'b>(&self, far: &'b Far) -> &'b [u8] {
        if self.v6 { far } else { &far[..4] }
    }

    fn near(&self) -> Vec<u8> {
        if self.v6 { self.end.ipv6.to_vec() } else { self.end.ipv4.to_vec() }
    }

    /// One of the packets after the first, as the namespace sends it.
    pub(crate) fn frame(&mut self, pair: Pair) -> Vec<u8> {
        let (near, far) = (self.near(), self.far(&pair.far.0));
        let stamp = &mut self.out[1];
        stamp.set(0, &near, pair.near);
        stamp.set(1, far, pair.far.1);
        stamp.bytes.clone()
    }

    /// The namespace sends: the first packet of a connection, or (`later`) one of those after it.
    pub(crate) fn send(&mut self, pair: Pair, later: bool) -> Result<Sent> {
        let (near, far) = (self.near(), self.far(&pair.far.0));
        let stamp = &mut self.out[usize::from(later)];
        stamp.set(0, &near, pair.near);
        stamp.set(1, far, pair.far.1);
        let Seen { action, length, time } =
            self.machine.run_into(Hook::Namespace, self.end.id, &stamp.bytes, 0, &mut self.room)?;
        self.time = time;
        let got = &self.room[..length];
        if action != REDIRECT {
            return Ok(Sent::Dropped);
        }
        let is_error = got[if self.v6 { 20 } else { 23 }] == if self.v6 { 58 } else { 1 };
        if is_error {
            let at = if self.v6 { 54 } else { 34 };
            return Ok(Sent::Told([got[at], got[at + 1]]));
        }
        let host: &[u8] = if self.v6 { &UPLINK.ipv6 } else { &UPLINK.ipv4 };
        let (source, destination) = (endpoint(got, self.v6, 0), endpoint(got, self.v6, 1));
        ensure!(source.0 == host && destination == (far, pair.far.1), "{pair:?} left as {got:02x?}");
        Ok(Sent::As(source.1))
    }

    /// The host afar answers to the host's port `external`; `false` when it does not get to the namespace.
    pub(crate) fn answer(&mut self, pair: Pair, external: u16) -> Result<bool> {
        let (near, far) = (self.near(), self.far(&pair.far.0));
        let host: &[u8] = if self.v6 { &UPLINK.ipv6 } else { &UPLINK.ipv4 };
        self.back.set(0, far, pair.far.1);
        self.back.set(1, host, external);
        let Seen { action, length, time } =
            self.machine.run_into(Hook::Uplink, UPLINK.id, &self.back.bytes, 0, &mut self.room)?;
        self.time = time;
        let got = &self.room[..length];
        let arrived = (endpoint(got, self.v6, 0), endpoint(got, self.v6, 1));
        Ok(action == REDIRECT && arrived == ((far, pair.far.1), (&near, pair.near)))
    }

    /// Makes an established flow; what became of its first packet.
    pub(crate) fn open(&mut self, pair: Pair) -> Result<Sent> {
        let sent = self.send(pair, false)?;
        if let Sent::As(external) = sent {
            ensure!(self.answer(pair, external)?, "{pair:?}: its answer to {external} does not arrive");
            if self.is_tcp {
                let last = self.send(pair, true)?;
                ensure!(last == sent, "{pair:?}: {sent:?}, then {last:?}");
            }
        }
        Ok(sent)
    }

    /// A flow that stands takes a packet each way, by the port that it has.
    pub(crate) fn check(&mut self, pair: Pair, external: u16) -> Result<()> {
        let sent = self.send(pair, true)?;
        ensure!(sent == Sent::As(external), "{pair:?} of {}: {sent:?}, not as {external}", self.end.name);
        ensure!(self.answer(pair, external)?, "{pair:?} of {}: no answer arrives", self.end.name);
        Ok(())
    }
}
