//! Which ports the sockets of the calling thread's network namespace have.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

use super::error::{Doing as _, KernelError, Result};
use super::sysctl;
use crate::model::ports::PortRange;
use crate::model::spec::Protocol;

/// Up to so many ports each is tried. Of longer ranges only those that `/proc` has sockets for, which misses a TCP
/// socket that was bound and neither listens nor is connected.
const TRIED: u32 = 64;

/// What Linux takes when nobody says otherwise (inet_init_net).
const DEFAULT_AUTOMATIC: (u16, u16) = (32768, 60999);

/// The first of `ports` that a new socket could not be bound to, at `ip` or, for 0.0.0.0 and `::`, at every address of
/// that family. `own` are the host's addresses.
pub fn first_busy(protocol: Protocol, ip: IpAddr, ports: PortRange, own: &[IpAddr]) -> Result<Option<u16>> {
    let is_long = ports.count() > TRIED || matches!(protocol, Protocol::Sctp);
    let candidates: Vec<u16> = if is_long {
        known(protocol)?.range(ports.first()..=ports.last()).copied().collect()
    } else {
        ports.ports().collect()
    };
    for port in candidates {
        let is_busy = |ip| {
            let address = SocketAddr::new(ip, port);
            is_busy(protocol, address).doing(|| format!("try whether {address}/{protocol} is free"))
        };
        // Our own hook takes a bind to `::` for one of both families, and refuses it when the port is published of IPv4.
        // Addresses of their own are refused by sockets only.
        let is_taken = match ip {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) if is_busy(ip)? => {
                let mut own = own.iter().filter(|own| matches!(own, IpAddr::V6(own) if !own.is_unicast_link_local()));
                own.try_fold(false, |is_taken, own| Ok::<_, KernelError>(is_taken || is_busy(*own)?))?
            }
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => false,
            IpAddr::V4(_) | IpAddr::V6(_) => is_busy(ip)?,
        };
        if is_taken {
            return Ok(Some(port));
        }
    }
    Ok(None)
}

/// The ports that sockets are given when they ask for none.
pub fn automatic() -> Result<PortRange> {
    let text = sysctl::read("net/ipv4/ip_local_port_range")?.unwrap_or_default();
    let mut numbers = text.split_whitespace().map(str::parse);
    let range = match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => (first, last),
        _ => DEFAULT_AUTOMATIC,
    };
    PortRange::new(range.0, range.1)
        .ok_or_else(|| KernelError::refused("choose a port", format_args!("the kernel's range {text:?} is none")))
}

/// Whether the kernel refuses to bind, and to listen, there. The address need not be there (yet).
fn is_busy(protocol: Protocol, address: SocketAddr) -> io::Result<bool> {
    let kind = match protocol {
        Protocol::Tcp | Protocol::Sctp => Type::STREAM,
        Protocol::Udp => Type::DGRAM,
    };
    let number = socket2::Protocol::from(i32::from(protocol.number().0));
    let socket = match Socket::new(Domain::for_address(address), kind, Some(number)) {
        Ok(socket) => socket,
        // Without the protocol or the family there is nobody who could have the port.
        Err(error) if is(&error, &[Errno::EPROTONOSUPPORT, Errno::EAFNOSUPPORT]) => return Ok(false),
        Err(error) => return Err(error),
    };
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_freebind_v6(true)?;
            socket.set_only_v6(true)?;
        }
    }
    // What a server of the host's would do. For TCP, connections of the past are then no obstacle.
    if protocol == Protocol::Tcp {
        socket.set_reuse_address(true)?;
    }
    let taken = match socket.bind(&address.into()) {
        Ok(()) if protocol == Protocol::Tcp => socket.listen(1),
        bound => bound,
    };
    match taken {
        // Without bpf_set_retval, a hook's refusal is EPERM.
        Err(error) if is(&error, &[Errno::EADDRINUSE, Errno::EPERM]) => Ok(true),
        other => other.map(|()| false),
    }
}

fn is(error: &io::Error, errnos: &[Errno]) -> bool {
    error.raw_os_error().is_some_and(|number| errnos.contains(&Errno::from_raw(number)))
}

/// Every port that a socket of the protocol has, at whatever address.
fn known(protocol: Protocol) -> Result<BTreeSet<u16>> {
    let files: &[&str] = match protocol {
        Protocol::Tcp => &["tcp", "tcp6"],
        Protocol::Udp => &["udp", "udp6"],
        Protocol::Sctp => &["sctp/eps"],
    };
    let mut ports = BTreeSet::new();
    for file in files {
        let path = format!("/proc/thread-self/net/{file}");
        match fs::read_to_string(&path) {
            Ok(table) => ports.extend(table.lines().skip(1).filter_map(|line| local_port(protocol, line))),
            // The protocol or the family is not there, and so is no socket of it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).doing(|| format!("read {path}")),
        }
    }
    Ok(ports)
}

/// The local port in a line of `/proc/net/tcp` (hexadecimal, after the address) or `/proc/net/sctp/eps` (sixth column).
fn local_port(protocol: Protocol, line: &str) -> Option<u16> {
    let mut columns = line.split_whitespace();
    match protocol {
        Protocol::Tcp | Protocol::Udp => u16::from_str_radix(columns.nth(1)?.rsplit_once(':')?.1, 16).ok(),
        Protocol::Sctp => columns.nth(5)?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};

    const OWN: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

    fn one(port: u16) -> PortRange {
        PortRange::new(port, port).unwrap()
    }

    #[test]
    fn lines_of_proc() {
        let tcp = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0";
        let udp6 = "  12: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 0:0 0:0 0";
        let sctp = "ffff88 ffff89 2   10  29   9899   0    12345 127.0.0.1";
        assert_eq!(local_port(Protocol::Tcp, tcp), Some(8080));
        assert_eq!(local_port(Protocol::Udp, udp6), Some(53));
        assert_eq!(local_port(Protocol::Sctp, sctp), Some(9899));
        for line in ["", "0:", "0: x:y", "0: 0100007F"] {
            assert_eq!(local_port(Protocol::Tcp, line), None, "{line:?}");
        }
    }

    #[test]
    fn a_listener_is_found_by_its_address_and_by_all() {
        let (any, localhost): (IpAddr, IpAddr) = (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into());
        let listener = TcpListener::bind((localhost, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let all = PortRange::new(1, u16::MAX).unwrap();
        for ip in [any, localhost] {
            assert_eq!(first_busy(Protocol::Tcp, ip, one(port), &OWN).unwrap(), Some(port));
            assert!(first_busy(Protocol::Tcp, ip, all, &OWN).unwrap().is_some_and(|first| first <= port));
        }
        drop(listener);
        assert_eq!(first_busy(Protocol::Tcp, any, one(port), &OWN).unwrap(), None);
    }

    #[test]
    fn the_families_do_not_meet() {
        let any: IpAddr = Ipv6Addr::UNSPECIFIED.into();
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(first_busy(Protocol::Udp, Ipv4Addr::LOCALHOST.into(), one(port), &OWN).unwrap(), Some(port));
        assert_eq!(first_busy(Protocol::Udp, any, one(port), &OWN).unwrap(), None);
        assert_eq!(first_busy(Protocol::Tcp, any, one(port), &OWN).unwrap(), None);
        let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(first_busy(Protocol::Udp, any, one(port), &OWN).unwrap(), Some(port));
    }

    #[test]
    fn ports_are_chosen_from_where_the_kernel_does() {
        assert!(automatic().unwrap().count() > 1);
    }
}
