//! Short TCP connections, one after the other, for [`compare`](super::compare).

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::lane::Ends;
use super::udp::is_timeout;
use super::{STOP_INTERVAL, tcp};

/// Connections that are open at a time: so many that neither end waits for the other to be woken up.
const BATCH: usize = 32;

/// A listening socket for [`answer`].
pub(super) fn listen(at: SocketAddr) -> Result<TcpListener> {
    Ok(tcp::listen(at)?.into())
}

/// Opens a batch of connections to `to`: a byte there, a byte back, and the server's end. Those that come to nothing
/// are only counted, as they belong to what a path is judged by.
pub(super) fn ask(to: SocketAddr, ends: &Ends) -> Result<u64> {
    let mut open = Vec::with_capacity(BATCH);
    for _ in 0..BATCH {
        open.extend(begin(to)?);
    }
    ends.received(open.into_iter().filter(end).count() as u64);
    Ok(BATCH as u64)
}

/// Answers them.
pub(super) fn answer(listener: &TcpListener, ends: &Ends) -> Result<()> {
    let mut byte = [0];
    while !ends.stopped() {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_read_timeout(Some(STOP_INTERVAL))?;
                // What breaks is missed by the client. The server closes first, as HTTP's do: it then keeps the
                // connection's remains (TIME_WAIT), and the client may use its port again.
                if stream.read_exact(&mut byte).is_ok() {
                    stream.write_all(&byte).ok();
                }
            }
            Err(e) if is_timeout(&e) || e.kind() == ErrorKind::ConnectionAborted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// A connection that has sent its byte; `None` when there was no answer in time.
fn begin(to: SocketAddr) -> Result<Option<TcpStream>> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    tcp::set_timeouts(&socket, STOP_INTERVAL)?;
    // In a lab the answer comes at once; a timeout of the socket's serves connect, too, and costs no calls.
    match socket.connect(&to.into()) {
        Ok(()) => {}
        Err(e) if is_timeout(&e) || e.kind() == ErrorKind::ConnectionReset => return Ok(None),
        Err(e) if e.raw_os_error() == Some(nix::libc::EINPROGRESS) => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("cannot connect to {to}")),
    }
    let mut stream = TcpStream::from(socket);
    Ok(stream.write_all(&[0x5a]).is_ok().then_some(stream))
}

/// Whether the byte came back, and then the end.
fn end(mut stream: &TcpStream) -> bool {
    let mut byte = [0; 2];
    matches!(stream.read(&mut byte), Ok(1)) && matches!(stream.read(&mut byte), Ok(0))
}
