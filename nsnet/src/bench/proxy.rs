//! A port proxy in user space, as small as one can be: what it costs to have a process in the way.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Result;

use crate::kernel::netns::NetNs;

/// One read or write: what a stream's sender writes at once.
const BLOCK: usize = 128 * 1024;
/// How often threads look whether they should end.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// Accepts TCP connections at the host's ports and hands their bytes on, until it is dropped.
#[derive(Debug)]
pub(super) struct Proxy {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Proxy {
    /// Leads `ports` of `host` to the same ports of `to`.
    pub(super) fn start(host: &NetNs, to: Ipv4Addr, ports: RangeInclusive<u16>) -> Result<Proxy> {
        let mut proxy = Proxy { stop: Arc::default(), threads: Vec::new() };
        for port in ports {
            let to = SocketAddr::new(to.into(), port);
            // Threads begin in the namespace of the one that starts them, and what they start does, too.
            let started = host.run(|| {
                let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
                // A timeout on a listening socket ends accept, too.
                socket2::SockRef::from(&listener).set_read_timeout(Some(STOP_INTERVAL))?;
                let stop = Arc::clone(&proxy.stop);
                thread::Builder::new().name("proxy".to_owned()).spawn(move || accept(&listener, to, &stop))
            })??;
            proxy.threads.push(started);
        }
        Ok(proxy)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic shows as connections that come to nothing.
            thread.join().ok();
        }
    }
}

fn accept(listener: &TcpListener, to: SocketAddr, stop: &Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        // Errors are timeouts, or connections that were gone again.
        let Ok((client, _)) = listener.accept() else { continue };
        let stop = Arc::clone(stop);
        let serve = move || {
            // What cannot be served is missed by the client.
            let Ok(server) = TcpStream::connect(to) else { return };
            let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else { return };
            let both_ways = stop.clone();
            let other = thread::Builder::new().spawn(move || copy(from_client, to_server, &both_ways));
            copy(server, client, &stop);
            drop(other.map(JoinHandle::join));
        };
        thread::Builder::new().name("proxied".to_owned()).spawn(serve).ok();
    }
}

/// Until either end is done; then the other one learns of it.
fn copy(mut from: TcpStream, mut to: TcpStream, stop: &AtomicBool) {
    let mut block = vec![0; BLOCK];
    from.set_read_timeout(Some(STOP_INTERVAL)).ok();
    to.set_nodelay(true).ok();
    while !stop.load(Ordering::Relaxed) {
        match from.read(&mut block) {
            Ok(0) => break,
            Ok(len) if to.write_all(&block[..len]).is_ok() => {}
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            _ => break,
        }
    }
    to.shutdown(Shutdown::Write).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_bytes_on_and_the_end_too() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        let stop = Arc::<AtomicBool>::default();
        let front = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket2::SockRef::from(&front).set_read_timeout(Some(STOP_INTERVAL)).unwrap();
        let at = front.local_addr().unwrap();
        let accepting = thread::spawn({
            let stop = Arc::clone(&stop);
            move || accept(&front, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), &stop)
        });
        let mut client = TcpStream::connect(at).unwrap();
        client.write_all(b"there").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let (mut accepted, _) = server.accept().unwrap();
        let mut text = String::new();
        accepted.read_to_string(&mut text).unwrap();
        accepted.write_all(b"back").unwrap();
        drop(accepted);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!((text.as_str(), answer.as_str()), ("there", "back"));
        stop.store(true, Ordering::Relaxed);
        accepting.join().unwrap();
    }
}
