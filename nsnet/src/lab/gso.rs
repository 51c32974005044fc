//! Bursts of UDP datagrams that leave the sender as one packet and are cut on the way (UDP_SEGMENT).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::random::{is_keyed_payload, keyed_payload};
use super::udp::{MAX_PAYLOAD, Service, bind, connect};

/// Segments in one send with UDP_SEGMENT: the limit of kernels before 6.9 (UDP_MAX_SEGMENTS).
const MAX_SEGMENTS: usize = 64;

/// Sends `total` bytes to a [`UdpSink`] at `to` as datagrams of `segment` bytes (the last may be shorter), in large
/// sends that the kernel cuts (UDP_SEGMENT, Linux 4.18). Says how many datagrams that makes.
///
/// # Errors
/// When the segment size is no datagram's, or the kernel refuses a send.
pub fn send_gso(to: SocketAddr, total: usize, segment: u16) -> Result<usize> {
    let size = usize::from(segment);
    ensure!((8..=MAX_PAYLOAD).contains(&size), "a segment has 8 to {MAX_PAYLOAD} bytes, not {segment}");
    let socket = connect(to)?;
    setsockopt(&socket, sockopt::UdpGsoSegment, &i32::from(segment)).context("cannot turn UDP_SEGMENT on")?;
    let per_send = (MAX_PAYLOAD / size).min(MAX_SEGMENTS);
    let datagrams = total.div_ceil(size);
    for first in (0..datagrams).step_by(per_send) {
        let last = (first + per_send).min(datagrams);
        let burst: Vec<u8> = (first..last).flat_map(|n| keyed_payload(n as u64, size.min(total - n * size))).collect();
        let sent = socket.send(&burst).with_context(|| format!("cannot send segments of {segment} bytes to {to}"))?;
        ensure!(sent == burst.len(), "the kernel took {sent} of {} bytes for {to}", burst.len());
    }
    Ok(datagrams)
}

/// Counts the datagrams of [`send_gso`] in the network namespace it was started in.
#[derive(Debug)]
pub struct UdpSink {
    addr: SocketAddr,
    counters: Arc<Counters>,
    _service: Service,
}

/// What a [`UdpSink`] has received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Datagrams.
    pub datagrams: u64,
    /// Their payload.
    pub bytes: u64,
    /// Datagrams whose payload was changed on the way.
    pub damaged: u64,
}

#[derive(Debug, Default)]
struct Counters {
    datagrams: AtomicU64,
    bytes: AtomicU64,
    damaged: AtomicU64,
}

impl UdpSink {
    /// Starts counting.
    ///
    /// # Errors
    /// When it cannot bind `addr`.
    pub fn start(addr: SocketAddr) -> Result<UdpSink> {
        let socket = bind(addr)?;
        let addr = socket.local_addr()?;
        let counters = Arc::<Counters>::default();
        let service = Service::start(socket, {
            let counters = Arc::clone(&counters);
            move |_, payload, _| {
                counters.bytes.fetch_add(payload.len() as u64, Ordering::Relaxed);
                counters.damaged.fetch_add((!is_keyed_payload(payload)).into(), Ordering::Relaxed);
                // Last: who sees this datagram counted also sees its bytes.
                counters.datagrams.fetch_add(1, Ordering::Release);
            }
        })?;
        Ok(UdpSink { addr, counters, _service: service })
    }

    /// Where it is bound; with the port that was chosen when port 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What has arrived so far.
    pub fn received(&self) -> Received {
        Received {
            datagrams: self.counters.datagrams.load(Ordering::Acquire),
            bytes: self.counters.bytes.load(Ordering::Relaxed),
            damaged: self.counters.damaged.load(Ordering::Relaxed),
        }
    }

    /// What has arrived once there are `datagrams`, or when `timeout` is over.
    pub fn wait(&self, datagrams: u64, timeout: Duration) -> Received {
        let deadline = Instant::now() + timeout;
        while self.received().datagrams < datagrams && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
        self.received()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    #[test]
    fn counts_segments_over_loopback() {
        let sink = UdpSink::start(LOOPBACK).unwrap();
        let datagrams = send_gso(sink.addr(), 100_001, 1_000).unwrap();
        let received = sink.wait(datagrams as u64, Duration::from_secs(10));
        assert_eq!(received, Received { datagrams: 101, bytes: 100_001, damaged: 0 });
    }
}
