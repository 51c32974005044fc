//! Traffic between namespaces of the lab that proves a path: every byte of it is checked.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::AddAssign;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::lab::ping::ping;
use crate::lab::{ChecksumErrors, Lab, TcpServer, UdpEcho, set_tx_offload, tcp, udp};

/// Where the servers of [`Peer::serve`] listen.
const PORT: u16 = 7000;
/// Longer than any path in a lab takes, also when its first packet has to wait for an address resolution.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of an echo: small, and as large as fits an MTU of 1500 over IPv6.
const ECHO_SIZES: [usize; 2] = [56, 1400];
/// Bytes of a datagram, the last in fragments.
const DATAGRAM_SIZES: [usize; 3] = [64, 1400, 4000];
/// Datagrams of each size.
const DATAGRAMS: u32 = 3;
/// Bytes of a TCP transfer in each direction.
const STREAM: u64 = 512 << 10;

/// A namespace that takes part.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// Its name in the lab.
    pub(super) ns: &'static str,
    /// Its interface.
    pub(super) interface: String,
    /// Its addresses.
    pub(super) ips: Vec<IpAddr>,
}

impl Peer {
    /// Answers on its addresses of one family, until dropped.
    fn serve(&self, lab: &Lab, family: fn(&IpAddr) -> bool) -> Result<Vec<(TcpServer, UdpEcho)>> {
        let start = |ip: &IpAddr| {
            let at = SocketAddr::new(*ip, PORT);
            Ok((TcpServer::start(at)?, UdpEcho::start(at)?))
        };
        let servers: Result<_> =
            lab.within(self.ns, || self.ips.iter().filter(|ip| family(ip)).map(start).collect())?;
        servers.with_context(|| format!("start servers in {}", self.ns))
    }

    /// Leaves checksums and segmentation to its interface's driver, or not.
    fn set_offload(&self, lab: &Lab, on: bool) -> Result<()> {
        lab.within(self.ns, || set_tx_offload(&self.interface, on))?.with_context(|| format!("in {}", self.ns))
    }
}

/// What arrived and came back unchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Proof {
    paths: usize,
    echoes: u32,
    stream: u64,
    datagrams: u32,
}

/// Traffic of one kind from each of `peers` to each other one, where `chosen` takes the two. It ends at the first that
/// fails.
pub(super) fn prove(lab: &Lab, peers: &[Peer], chosen: fn(&Peer, &Peer) -> bool, kind: Kind) -> Result<Proof> {
    let Kind { family, offload, .. } = kind;
    let set_offload = |on| peers.iter().try_for_each(|peer| peer.set_offload(lab, on));
    if !offload {
        set_offload(false)?;
    }
    let servers: Result<Vec<_>> = peers.iter().map(|peer| peer.serve(lab, family)).collect();
    let proof = servers.and_then(|_running| {
        let pairs = peers.iter().flat_map(|from| peers.iter().map(move |to| (from, to)));
        exchange_all(lab, pairs.filter(|(from, to)| from.ns != to.ns && chosen(from, to)), family)
    });
    if !offload {
        set_offload(true)?;
    }
    proof
}

/// The kinds of traffic that are shown.
pub(super) const KINDS: [Kind; 4] = [
    Kind { name: "IPv4", family: IpAddr::is_ipv4, offload: true },
    Kind { name: "IPv4 without TX offload", family: IpAddr::is_ipv4, offload: false },
    Kind { name: "IPv6", family: IpAddr::is_ipv6, offload: true },
    Kind { name: "IPv6 without TX offload", family: IpAddr::is_ipv6, offload: false },
];

/// One kind of traffic.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    /// For the step that shows it.
    pub(super) name: &'static str,
    /// Which addresses it goes to.
    pub(super) family: fn(&IpAddr) -> bool,
    /// Whether checksums and segmentation are left to the interface's driver.
    pub(super) offload: bool,
}

/// No namespace has seen a wrong checksum since it was made.
pub(super) fn no_checksum_errors(lab: &Lab, namespaces: &[&str]) -> Result<String> {
    for ns in namespaces {
        let errors = lab.within(ns, ChecksumErrors::read)??;
        ensure!(errors.total() == 0, "{ns}: {errors}");
    }
    Ok(format!("the kernel counted no wrong one in {} namespaces", namespaces.len()))
}

fn exchange_all<'a>(
    lab: &Lab,
    pairs: impl Iterator<Item = (&'a Peer, &'a Peer)>,
    family: fn(&IpAddr) -> bool,
) -> Result<Proof> {
    let mut proof = Proof::default();
    for (from, to) in pairs {
        for ip in to.ips.iter().filter(|ip| family(ip)) {
            let exchanged = lab.within(from.ns, || exchange(*ip))?;
            proof += exchanged.with_context(|| format!("{} to {} at {ip}", from.ns, to.ns))?;
        }
    }
    ensure!(proof.paths > 0, "there was nothing to send to");
    Ok(proof)
}

/// From the calling thread's namespace to the servers at `to`.
fn exchange(to: IpAddr) -> Result<Proof> {
    let mut proof = Proof { paths: 1, ..Proof::default() };
    for size in ECHO_SIZES {
        let pings = ping(to, 1, size, TIMEOUT)?;
        ensure!(pings.received == pings.sent, "ICMP echo of {size} bytes: {pings}");
        proof.echoes += pings.received;
    }
    let to = SocketAddr::new(to, PORT);
    tcp::transfer(to, STREAM).context("TCP")?;
    proof.stream = 2 * STREAM;
    for size in DATAGRAM_SIZES {
        let outcome = udp::exchange(to, size, DATAGRAMS, TIMEOUT)?;
        ensure!(outcome.echoed == DATAGRAMS, "UDP echo of {size} bytes: {outcome}");
        proof.datagrams += outcome.echoed;
    }
    Ok(proof)
}

impl AddAssign for Proof {
    fn add_assign(&mut self, other: Proof) {
        self.paths += other.paths;
        self.echoes += other.echoes;
        self.stream += other.stream;
        self.datagrams += other.datagrams;
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Proof { paths, echoes, stream, datagrams } = self;
        let mib = *stream as f64 / f64::from(1 << 20);
        let s = if *paths == 1 { "" } else { "s" };
        write!(f, "{paths} path{s}; {echoes} ICMP echoes, {mib} MiB of TCP, {datagrams} UDP datagrams, each checked")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_add_up() {
        let mut proof = Proof::default();
        for _ in 0..2 {
            proof += Proof { paths: 1, echoes: 2, stream: 512 << 10, datagrams: 9 };
        }
        let text = "2 paths; 4 ICMP echoes, 1 MiB of TCP, 18 UDP datagrams, each checked";
        assert_eq!(proof.to_string(), text);
    }
}
