//! Raw ends: packets are sent and seen there as they are, whatever the kernel beside them thinks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nsnet::lab::{Frame, RawSocket};
use nsnet_common::wire::Mac;

use super::packet::{ICMPV6, Packet};

/// How long to wait for a packet that must come.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait for one that must not, once it is known what became of it.
const STRAGGLERS: Duration = Duration::from_millis(20);

/// A place where packets are sent and seen as they are.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) name: String,
    pub(crate) socket: RawSocket,
    pub(crate) mac: Mac,
    /// Where its packets go.
    pub(crate) gateway: Mac,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    /// As `drops` calls it.
    pub(crate) port: String,
}

impl End {
    /// Its address.
    pub(crate) fn ip(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }

    /// A port of its own.
    pub(crate) fn endpoint(&self, v6: bool, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(v6), port)
    }

    /// Sends a packet by its gateway.
    pub(crate) fn send(&self, packet: &Packet) -> Result<()> {
        self.socket.send(&packet.frame(self.mac, self.gateway))
    }

    /// The next packet that arrives, with every checksum right. What neighbours and groups tell each other is left out.
    pub(crate) fn receive(&self, limit: Duration) -> Result<Option<Packet>> {
        let Some((packet, is_summed)) = self.receive_unchecked(limit)? else { return Ok(None) };
        if is_summed {
            packet.check().with_context(|| format!("at {}", self.name))?;
        }
        Ok(Some(packet))
    }

    /// The same, whatever its checksum is; and whether it has one yet.
    pub(crate) fn receive_unchecked(&self, limit: Duration) -> Result<Option<(Packet, bool)>> {
        let Some(frame) = self.socket.receive(limit, is_packet)? else { return Ok(None) };
        let packet = Packet::read(&frame.bytes[14..]).with_context(|| format!("at {}", self.name))?;
        Ok(Some((packet, !frame.checksum_pending)))
    }

    /// The next packet, which must come.
    pub(crate) fn expect(&self, what: &str) -> Result<Packet> {
        self.receive(PATIENCE)?.with_context(|| format!("{what} did not arrive at {}", self.name))
    }

    /// The next packet that `filter` takes, which must come.
    pub(crate) fn expect_that(&self, what: &str, mut filter: impl FnMut(&Packet) -> bool) -> Result<Packet> {
        let start = Instant::now();
        loop {
            let left = PATIENCE.saturating_sub(start.elapsed());
            let packet = self.receive(left)?.with_context(|| format!("{what} did not arrive at {}", self.name))?;
            if filter(&packet) {
                return Ok(packet);
            }
        }
    }

    /// Fails when anything has arrived, or does so in a moment.
    pub(crate) fn assert_silent(&self, what: &str) -> Result<()> {
        let arrived = self.receive_unchecked(STRAGGLERS)?;
        ensure!(arrived.is_none(), "{what}: {arrived:?} arrived at {}", self.name);
        Ok(())
    }

    /// All packets until there is silence for a moment.
    pub(crate) fn collect(&self, limit: Duration) -> Result<Vec<Packet>> {
        let mut packets = Vec::new();
        while let Some(packet) = self.receive(if packets.is_empty() { limit } else { STRAGGLERS })? {
            packets.push(packet);
        }
        Ok(packets)
    }

    /// Forgets what has arrived.
    pub(crate) fn drain(&self) -> Result<()> {
        // One by one: a busy machine may not read all of them in any fixed time.
        while self.socket.receive(Duration::from_millis(1), |_| true)?.is_some() {}
        Ok(())
    }

    /// Sends a packet that must arrive: as what it does so.
    pub(crate) fn carry(&self, packet: &Packet, to: &End) -> Result<Packet> {
        to.drain()?;
        self.send(packet)?;
        to.expect(&format!("{packet:?}, sent by {},", self.name))
    }

    /// Sends a packet that must arrive unchanged but for its hops, and these addresses.
    pub(crate) fn carry_as(&self, packet: &Packet, to: &End, from: SocketAddr, dest: SocketAddr) -> Result<Packet> {
        let got = self.carry(packet, to)?;
        let is_same = got.payload() == packet.payload() && got.protocol == packet.protocol;
        let wanted = format!("{from} > {dest}");
        ensure!((got.from(), got.to()) == (from, dest) && is_same, "{packet:?} became {got:?}, not {wanted}");
        Ok(got)
    }
}

/// Whether a frame is an IP packet that somebody meant to send.
fn is_packet(frame: &Frame) -> bool {
    let bytes = &frame.bytes;
    match bytes.get(12..14) {
        Some([0x08, 0x00]) => bytes.get(23) != Some(&2) && bytes.get(30).is_some_and(|first| *first < 224),
        Some([0x86, 0xdd]) => {
            let is_neighbours =
                bytes.get(20) == Some(&ICMPV6) && bytes.get(54).is_some_and(|kind| (130..=137).contains(kind));
            !is_neighbours && bytes.get(38).is_some_and(|first| *first != 0xff)
        }
        _ => false,
    }
}
