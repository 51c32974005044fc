//! Who watches that nothing from inside leaves by the uplink as it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, ensure};
use ipnet::IpNet;
use nsnet::kernel::netns::NetNs;
use nsnet::kernel::sysctl;
use nsnet::lab::RawSocket;

use super::bed::Station;
use super::packet::{ICMPV6, Packet};

/// Watches the uplink's wire from the other end.
#[derive(Debug)]
pub(crate) struct LeakGuard {
    host: NetNs,
    stop: Arc<AtomicBool>,
    allowed: Arc<Mutex<Vec<IpNet>>>,
    leaks: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

impl LeakGuard {
    pub(crate) fn start(wan: &Station, host: NetNs) -> Result<Self> {
        let socket = wan.run(|| RawSocket::open_promiscuous(&wan.ifname))?;
        let allowed = ["192.168.1.1/32", "fd01::1/128", "fe80::/10", "::/128", "0.0.0.0/32"];
        let allowed = allowed.iter().map(|text| Ok(text.parse()?)).collect::<Result<Vec<_>>>()?;
        let (stop, allowed) = (Arc::<AtomicBool>::default(), Arc::new(Mutex::new(allowed)));
        let leaks = Arc::<Mutex<Vec<String>>>::default();
        let thread = thread::Builder::new().name("leak guard".to_owned()).spawn({
            let (stop, allowed, leaks) = (Arc::clone(&stop), Arc::clone(&allowed), Arc::clone(&leaks));
            move || {
                loop {
                    // Once more after the end, for what is in the socket yet.
                    let is_last = stop.load(Ordering::Relaxed);
                    let watched = socket.count(Duration::from_millis(20), |frame| {
                        let allowed = allowed.lock().unwrap_or_else(PoisonError::into_inner);
                        let mut leaks = leaks.lock().unwrap_or_else(PoisonError::into_inner);
                        if leaks.len() < 20 {
                            leaks.extend(leak(&frame.bytes, &allowed));
                        }
                        false
                    });
                    if is_last {
                        return;
                    }
                    if watched.is_err() {
                        // A test takes the wire away for a while.
                        thread::sleep(Duration::from_millis(5));
                    }
                }
            }
        })?;
        Ok(Self { host, stop, allowed, leaks, thread: Some(thread) })
    }

    /// Lets packets with such sources pass.
    pub(crate) fn allow(&self, sources: impl IntoIterator<Item = IpNet>) {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner).extend(sources);
    }

    /// No longer.
    pub(crate) fn forbid(&self, source: IpNet) {
        self.allowed.lock().unwrap_or_else(PoisonError::into_inner).retain(|net| *net != source);
    }

    /// Fails when something leaked so far.
    pub(crate) fn check(&self) -> Result<()> {
        let leaks = self.leaks.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(leaks.is_empty(), "leaked to the uplink: {leaks:#?}");
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_panic| anyhow::anyhow!("the leak guard panicked"))?;
        }
        self.check()?;
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            let value = self.host.run(|| sysctl::read(key))??;
            ensure!(value.as_deref() == Some("0"), "the host forwards: {key} is {value:?}");
        }
        Ok(())
    }
}

impl Drop for LeakGuard {
    fn drop(&mut self) {
        match self.finish() {
            Ok(()) => {}
            // A second panic would hide the first.
            Err(error) if thread::panicking() => eprintln!("{error:#}"),
            Err(error) => panic!("{error:#}"),
        }
    }
}

/// What is wrong with a frame on the wire: its sender's address, or one that it quotes.
fn leak(frame: &[u8], allowed: &[IpNet]) -> Option<String> {
    let is_allowed = |ip: IpAddr| allowed.iter().any(|net| net.contains(&ip));
    let v4 = |bytes: &[u8]| -> Option<IpAddr> { Some(Ipv4Addr::from_octets(bytes.try_into().ok()?).into()) };
    let v6 = |bytes: &[u8]| -> Option<IpAddr> { Some(Ipv6Addr::from_octets(bytes.try_into().ok()?).into()) };
    let (source, quoted) = match frame.get(12..14)? {
        [0x08, 0x06] => (v4(frame.get(28..32)?)?, None),
        [0x08, 0x00] => {
            let message = 14 + usize::from(frame.get(14)? & 15) * 4;
            let is_first = u16::from_be_bytes([*frame.get(20)?, *frame.get(21)?]) & 0x1fff == 0;
            let is_error = is_first && frame.get(23) == Some(&1) && matches!(frame.get(message)?, 3 | 4 | 5 | 11 | 12);
            let quoted = if is_error { v4(frame.get(message + 24..message + 28)?) } else { None };
            (v4(frame.get(26..30)?)?, quoted)
        }
        [0x86, 0xdd] => {
            let is_error = frame.get(20) == Some(&ICMPV6) && *frame.get(54)? < 128;
            let quoted = if is_error { v6(frame.get(54 + 8 + 24..54 + 8 + 40)?) } else { None };
            (v6(frame.get(22..38)?)?, quoted)
        }
        _ => return Some(format!("a frame of an unknown type: {frame:02x?}")),
    };
    if !is_allowed(source) {
        return Some(format!("from {source}: {:?}", Packet::read(&frame[14..])));
    }
    let quoted = quoted.filter(|ip| !is_allowed(*ip))?;
    Some(format!("quoting {quoted}: {:?}", Packet::read(&frame[14..])))
}
