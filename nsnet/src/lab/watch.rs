//! Which addresses are seen on an interface: what a translator lets through untranslated shows here.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Result, anyhow};

use super::STOP_INTERVAL;
use super::raw::RawSocket;

/// EtherTypes (IEEE 802).
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// Protocol numbers of ICMP and ICMPv6.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Bytes before an error's quotation (RFC 792, RFC 4443 section 2.4).
const ICMP_HEADER: usize = 8;

/// Reads everything that arrives on an interface of the network namespace it was started in, until asked or dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Seen>>>,
}

/// What arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Frames of IPv4, IPv6 and ARP.
    pub frames: u64,
    /// Who sent them: source addresses, and senders in ARP.
    pub senders: BTreeSet<IpAddr>,
    /// Every address in their headers, also in those that ICMP errors quote.
    pub addresses: BTreeSet<IpAddr>,
}

impl Watch {
    /// Starts watching `ifname`.
    ///
    /// # Errors
    /// As [`RawSocket::open`].
    pub fn start(ifname: &str) -> Result<Watch> {
        let socket = RawSocket::open_promiscuous(ifname)?;
        let stop = Arc::<AtomicBool>::default();
        let thread = thread::Builder::new().name("watch".into()).spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut seen = Seen::default();
                // Looked at before reading: what has arrived by then is still counted.
                loop {
                    let last = stop.load(Ordering::Relaxed);
                    socket.count(STOP_INTERVAL, |frame| {
                        seen.note(&frame.bytes);
                        true
                    })?;
                    if last {
                        return Ok(seen);
                    }
                }
            }
        })?;
        Ok(Watch { stop, thread: Some(thread) })
    }

    /// Ends it, and tells what was seen.
    ///
    /// # Errors
    /// When the interface went down or away meanwhile.
    pub fn end(mut self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or_else(|| anyhow!("the watch has ended before"))?;
        thread.join().map_err(|_| anyhow!("the watch panicked"))?
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Nobody wants to know any more.
            thread.join().ok();
        }
    }
}

impl Seen {
    fn note(&mut self, frame: &[u8]) {
        let Some(kind) = number(frame, 12) else { return };
        let payload = frame.get(14..).unwrap_or_default();
        let (sender, addresses) = match kind {
            // RFC 826, for Ethernet and IPv4: sender and target.
            ARP => (ipv4(payload, 14), [ipv4(payload, 14), ipv4(payload, 24)].into_iter().flatten().collect()),
            IPV4 | IPV6 => packet(payload),
            _ => return,
        };
        self.frames += 1;
        self.senders.extend(sender);
        self.addresses.extend(addresses);
    }
}

/// A packet's source, and every address in it.
fn packet(bytes: &[u8]) -> (Option<IpAddr>, Vec<IpAddr>) {
    let version = bytes.first().map(|byte| byte >> 4);
    // An error's quotation is a packet, and the errors' type is below 128 in ICMPv6, one of these in ICMP.
    let (source, destination, start, is_error): (_, _, _, fn(u8) -> bool) = match version {
        Some(4) => {
            let first = number(bytes, 6).is_some_and(|flags| flags & 0x1fff == 0);
            let start = (first && bytes.get(9) == Some(&ICMP)).then(|| usize::from(bytes[0] & 0xf) * 4);
            (ipv4(bytes, 12), ipv4(bytes, 16), start, |kind| matches!(kind, 3 | 4 | 5 | 11 | 12))
        }
        Some(6) => {
            let start = (bytes.get(6) == Some(&ICMPV6)).then_some(40);
            (ipv6(bytes, 8), ipv6(bytes, 24), start, |kind| kind < 128)
        }
        _ => return (None, Vec::new()),
    };
    let mut addresses: Vec<IpAddr> = [source, destination].into_iter().flatten().collect();
    if let Some(message) = start.and_then(|start| bytes.get(start..))
        && message.first().is_some_and(|kind| is_error(*kind))
        && let Some(quoted) = message.get(ICMP_HEADER..)
    {
        // Errors about errors are never sent, so it is not deep.
        addresses.extend(packet(quoted).1);
    }
    (source, addresses)
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn ipv4(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(Ipv4Addr::from(*bytes.get(at..)?.first_chunk::<4>()?).into())
}

fn ipv6(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(Ipv6Addr::from(*bytes.get(at..)?.first_chunk::<16>()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
        [&[0; 12][..], &kind.to_be_bytes(), payload].concat()
    }

    fn ipv4_packet(protocol: u8, source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
        [&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0][..], &source, &destination, payload].concat()
    }

    fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn notes_quoted_addresses() {
        let quoted = ipv4_packet(17, [10, 0, 0, 1], [10, 0, 0, 2], &[0; 8]);
        let error = [&[3, 3, 0, 0, 0, 0, 0, 0][..], &quoted].concat();
        let echo = [&[8, 0, 0, 0, 0, 0, 0, 0][..], &quoted].concat();
        let mut seen = Seen::default();
        seen.note(&ethernet(IPV4, &ipv4_packet(ICMP, [1, 1, 1, 1], [2, 2, 2, 2], &echo)));
        assert_eq!(seen.addresses, addresses(&["1.1.1.1", "2.2.2.2"]), "the payload of an echo is nobody's address");
        seen.note(&ethernet(IPV4, &ipv4_packet(ICMP, [1, 1, 1, 1], [2, 2, 2, 2], &error)));
        assert_eq!(seen.addresses, addresses(&["1.1.1.1", "2.2.2.2", "10.0.0.1", "10.0.0.2"]));
        assert_eq!((seen.frames, seen.senders), (2, addresses(&["1.1.1.1"])));
    }

    #[test]
    fn notes_ipv6_and_arp() {
        let ip = |last: u8| [&[0xfd][..], &[0; 14], &[last]].concat();
        let header =
            |next: u8, payload: &[u8]| [&[0x60, 0, 0, 0, 0, 0, next, 64][..], &ip(1), &ip(2), payload].concat();
        let quoted = [&[0x60, 0, 0, 0, 0, 0, 17, 64][..], &ip(3), &ip(4)].concat();
        let mut seen = Seen::default();
        seen.note(&ethernet(IPV6, &header(ICMPV6, &[&[1, 4, 0, 0, 0, 0, 0, 0][..], &quoted].concat())));
        assert_eq!(seen.addresses, addresses(&["fd00::1", "fd00::2", "fd00::3", "fd00::4"]));
        assert_eq!(seen.senders, addresses(&["fd00::1"]));

        let mut seen = Seen::default();
        let arp = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &[0; 6], &[10, 0, 0, 1], &[0; 6], &[10, 0, 0, 2]].concat();
        seen.note(&ethernet(ARP, &arp));
        assert_eq!((seen.senders, seen.addresses), (addresses(&["10.0.0.1"]), addresses(&["10.0.0.1", "10.0.0.2"])));
    }

    #[test]
    fn short_frames_are_no_trouble() {
        let mut seen = Seen::default();
        let whole = ethernet(IPV4, &ipv4_packet(ICMP, [1; 4], [2; 4], &[3, 3, 0, 0, 0, 0, 0, 0, 0x45]));
        for len in 0..=whole.len() {
            seen.note(&whole[..len]);
        }
        assert_eq!(seen.addresses.len(), 2);
    }
}
