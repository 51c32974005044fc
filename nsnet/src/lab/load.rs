//! What fills a path: a TCP stream and small datagrams. Short connections are in [`super::connections`].

use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream, UdpSocket};

use anyhow::{Context, Result};
use nix::libc;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::lane::Ends;
use super::udp::{is_refusal, is_timeout};
use super::{PATIENCE, STOP_INTERVAL, tcp, udp};

/// One read or write of the stream: what iperf3 uses, so that figures can be set side by side.
const STREAM_BLOCK: usize = 128 * 1024;
/// Payload of a small datagram.
pub(crate) const SMALL: usize = 64;
/// Datagrams sent between two looks at the clock; each is a system call of its own.
const BURST: u64 = 16;

/// Sends a little, and says how many units: bytes, datagrams or connections.
pub(super) type Send<'a> = Box<dyn FnMut() -> Result<u64> + 'a>;
/// Receives until the lane ends.
pub(super) type Receive = Box<dyn FnOnce(&Ends) -> Result<()> + std::marker::Send>;

/// A TCP stream to `to`.
pub(super) fn stream(to: SocketAddr) -> Result<Send<'static>> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    tcp::ask_cubic(&socket)?;
    socket.connect_timeout(&to.into(), PATIENCE).with_context(|| format!("cannot connect to {to}"))?;
    tcp::set_timeouts(&socket, STOP_INTERVAL)?;
    let mut stream = TcpStream::from(socket);
    let block = vec![0x5a; STREAM_BLOCK];
    Ok(Box::new(move || match stream.write(&block) {
        Ok(len) => Ok(len as u64),
        Err(e) if is_timeout(&e) => Ok(0),
        Err(e) => Err(e.into()),
    }))
}

/// The other end of [`stream`].
pub(super) fn absorb(listener: &Socket, ends: &Ends) -> Result<()> {
    let (socket, _) = listener.accept().context("there came no connection")?;
    tcp::set_timeouts(&socket, STOP_INTERVAL)?;
    let mut stream = TcpStream::from(socket);
    let mut block = vec![0; STREAM_BLOCK];
    while !ends.stopped() {
        match stream.read(&mut block) {
            Ok(0) => break,
            Ok(len) => ends.received(len as u64),
            Err(e) if is_timeout(&e) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Datagrams with 64 bytes of payload to `to`.
pub(super) fn datagrams(to: SocketAddr) -> Result<Send<'static>> {
    let socket = udp::connect(to)?;
    let payload = [0x5a; SMALL];
    Ok(Box::new(move || {
        let mut sent = 0;
        for _ in 0..BURST {
            match socket.send(&payload) {
                Ok(_) => sent += 1,
                // A path that answers with ICMP errors, or whose queue is full, shows in what is received.
                Err(e) if is_timeout(&e) || is_refusal(&e) || e.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(sent)
    }))
}

/// The other end of [`datagrams`]. With `polls` it does not sleep during a slot.
pub(super) fn count(from: &UdpSocket, polls: bool, ends: &Ends) -> Result<()> {
    let from = SockRef::from(from);
    let mut buffer = [MaybeUninit::uninit(); 2 * SMALL];
    while !ends.stopped() {
        let flags = if polls && ends.busy() { libc::MSG_DONTWAIT } else { 0 };
        match from.recv_with_flags(&mut buffer, flags) {
            Ok(_) => ends.received(1),
            Err(e) if is_timeout(&e) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Datagrams to `to`, each sent when the one before has come back. One that does not come is lost.
pub(super) fn round_trips(to: SocketAddr, ends: &Ends) -> Result<Send<'_>> {
    let socket = udp::connect(to)?;
    socket.set_read_timeout(Some(STOP_INTERVAL))?;
    let mut buffer = [0; 2 * SMALL];
    let mut number = 0u64;
    Ok(Box::new(move || {
        number += 1;
        let mut payload = [0x5a; SMALL];
        payload[..8].copy_from_slice(&number.to_be_bytes());
        match socket.send(&payload) {
            Ok(_) => {}
            Err(e) if is_timeout(&e) || is_refusal(&e) => return Ok(1),
            Err(e) => return Err(e.into()),
        }
        loop {
            match socket.recv(&mut buffer) {
                Ok(len) if buffer[..len] == payload => ends.received(1),
                // The late answer to one that was given up.
                Ok(_) => continue,
                Err(e) if is_timeout(&e) || is_refusal(&e) => {}
                Err(e) => return Err(e.into()),
            }
            return Ok(1);
        }
    }))
}

/// The other end of [`round_trips`].
pub(super) fn answer(socket: &UdpSocket, ends: &Ends) -> Result<()> {
    let mut buffer = [0; 2 * SMALL];
    while !ends.stopped() {
        match socket.recv_from(&mut buffer) {
            // What cannot be answered is missed by the one who waits for it.
            Ok((len, from)) => _ = socket.send_to(&buffer[..len], from),
            Err(e) if is_timeout(&e) || is_refusal(&e) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
