//! Loaded programs run on a few frames whose fate is known, with maps of their own: what an object must be able to do
//! before it carries anybody's packets.

use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapError};
use aya::programs::{TestRun as _, TestRunOptions};
use nsnet_common::layout::{
    AddressKey, MAPPED_IPV4_BITS, Network, NetworkId, Policy, Port, PortId, SubnetKey, flags, names, port_mac,
};
use nsnet_common::wire::{IpAddress, Mac};

use super::dataplane::{program_in, refused};
use super::error::{KernelError, Result};
use super::object::missing;

const NETWORK: NetworkId = NetworkId(1);
/// The gateway. Interfaces with the index of this port and the next must be there: frames come in by them.
pub(super) const HOST: PortId = PortId(1);
/// A namespace.
pub(super) const NAMESPACE: PortId = PortId(2);
const RED: PortId = NAMESPACE;
const BLUE: PortId = PortId(3);

/// `TC_ACT_UNSPEC`, `TC_ACT_SHOT`, `TC_ACT_REDIRECT` (linux/pkt_cls.h).
const PASS: u32 = u32::MAX;
const DROP: u32 = 2;
const REDIRECT: u32 = 7;

/// A frame, and what must become of it.
struct Probe {
    what: &'static str,
    program: &'static str,
    ifindex: u32,
    frame: Vec<u8>,
    action: u32,
    /// What must be found where in the frame afterwards. Nothing: it must be as it was.
    bytes: Vec<(usize, Vec<u8>)>,
}

/// Fills the maps of `ebpf`, whose programs are loaded and nowhere attached, and runs them. `uplink` is the index of an
/// interface that is no port of ours. An error says which frame came to what other end.
pub(super) fn check(ebpf: &mut Ebpf, uplink: u32) -> Result<()> {
    fill(ebpf, uplink)?;
    for probe in probes(uplink) {
        let mut bytes = vec![0; probe.frame.len() + 128];
        let context = context(probe.ifindex);
        let options = TestRunOptions {
            data_in: Some(&probe.frame),
            data_out: Some(&mut bytes),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let ran = program_in(ebpf, probe.program)?.test_run(options);
        let ran = ran.map_err(|error| refused(format!("run program {} on a frame", probe.program), error))?;
        bytes.truncate(ran.data_size_out as usize);
        let is_there = |(at, wanted): &(usize, Vec<u8>)| bytes.get(*at..*at + wanted.len()) == Some(wanted);
        let is_right = if probe.bytes.is_empty() { bytes == probe.frame } else { probe.bytes.iter().all(is_there) };
        let why = match (ran.return_value == probe.action, is_right) {
            (true, true) => continue,
            (false, _) => {
                format!("in its self-check {} ended with action {}, not {}", probe.what, ran.return_value, probe.action)
            }
            (true, false) => format!("in its self-check {} came out with other bytes than it must", probe.what),
        };
        return Err(KernelError::refused(format!("trust program {}", probe.program), why)
            .with_remedy("this nsnet's programs are broken, or do not fit this kernel: use another nsnet"));
    }
    Ok(())
}

fn mac(port: PortId) -> Mac {
    port_mac(NETWORK, port, 1)
}

fn ip(last: u8) -> [u8; 4] {
    [10, 0, 0, last]
}

fn fill(ebpf: &mut Ebpf, uplink: u32) -> Result<()> {
    const UPLINK: PortId = PortId(4);
    let full = |error: MapError| refused("fill the maps of a trial", error);
    let port = |id, last, flags| Port::new(id, NETWORK, mac(id), 1500, flags).with_addresses(Some(ip(last)), None);
    let ports = [
        port(HOST, 1, flags::HOST).followed_by(RED),
        port(RED, 2, 0).followed_by(BLUE),
        port(BLUE, 3, 0),
        Port::uplink(UPLINK, uplink, Mac([2, 0, 0, 0, 0, 9]), 1500, Some([192, 0, 2, 1]), None),
    ];
    let mut known = Array::<_, Port>::try_from(map(ebpf, names::PORTS)?).map_err(full)?;
    for port in ports {
        known.set(port.id().0.into(), port, 0).map_err(full)?;
    }
    let mut networks = Array::<_, Network>::try_from(map(ebpf, names::NETWORKS)?).map_err(full)?;
    networks.set(NETWORK.0.into(), Network::new(HOST, 3, 0), 0).map_err(full)?;
    let mut policies = Array::<_, Policy>::try_from(map(ebpf, names::POLICIES)?).map_err(full)?;
    policies.set(NETWORK.0.into(), Policy { gateway: HOST, ..Policy::DEFAULT }, 0).map_err(full)?;
    let mut owners = HashMap::<_, AddressKey, PortId>::try_from(map(ebpf, names::ADDRESSES)?).map_err(full)?;
    for (id, last) in [(HOST, 1), (RED, 2), (BLUE, 3)] {
        owners.insert(AddressKey { network: NETWORK, ip: IpAddress::v4(ip(last)) }, id, 0).map_err(full)?;
    }
    let mut subnets = LpmTrie::<_, SubnetKey, NetworkId>::try_from(map(ebpf, names::SUBNETS)?).map_err(full)?;
    let subnet = Key::new(MAPPED_IPV4_BITS + 24, SubnetKey(IpAddress::v4(ip(0))));
    subnets.insert(&subnet, NETWORK, 0).map_err(full)?;
    let mut uplinks = HashMap::<_, u32, PortId>::try_from(map(ebpf, names::UPLINKS)?).map_err(full)?;
    uplinks.insert(uplink, UPLINK, 0).map_err(full)
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::maps::Map> {
    ebpf.map_mut(name).ok_or_else(|| missing("map", name))
}

fn probes(uplink: u32) -> Vec<Probe> {
    let probe =
        |what, program, ifindex, frame, action| Probe { what, program, ifindex, frame, action, bytes: Vec::new() };
    let from_red = |what, frame, action| probe(what, names::FROM_NAMESPACE, RED.ifindex(), frame, action);
    let (red, blue, host) = (mac(RED), mac(BLUE), mac(HOST));
    let within = datagram(red, blue, ip(2), ip(3), 64);
    let nowhere = datagram(red, host, ip(2), ip(99), 64);
    vec![
        Probe {
            bytes: vec![(0, arp(2, red, blue, (blue, ip(3)), (red, ip(2))))],
            ..from_red("an ARP request", arp(1, Mac([0xff; 6]), red, (red, ip(2)), (Mac::ZERO, ip(3))), REDIRECT)
        },
        from_red("a datagram to a neighbour", within, REDIRECT),
        from_red("a datagram with another's address", datagram(red, blue, ip(3), ip(3), 64), DROP),
        from_red("a datagram with another's MAC", datagram(blue, red, ip(2), ip(3), 64), DROP),
        // By way of two other programs.
        from_red("a datagram to the gateway", datagram(red, host, ip(2), ip(1), 64), REDIRECT),
        Probe {
            // ICMP from the gateway to red: destination unreachable.
            bytes: vec![(0, [red.0, host.0].concat()), (23, vec![1]), (26, [ip(1), ip(2)].concat()), (34, vec![3])],
            ..from_red("a datagram to nobody", nowhere, REDIRECT)
        },
        probe("the host's datagram", names::FROM_HOST, HOST.ifindex(), datagram(host, red, ip(1), ip(2), 64), REDIRECT),
        probe(
            "a datagram to the host from outside",
            names::FROM_UPLINK,
            uplink,
            datagram(Mac([2, 0, 0, 0, 0, 7]), Mac([2, 0, 0, 0, 0, 9]), [192, 0, 2, 7], [192, 0, 2, 1], 64),
            PASS,
        ),
        probe(
            "a frame that passed no program",
            names::CLOSED,
            RED.ifindex(),
            datagram(red, host, ip(2), ip(1), 64),
            DROP,
        ),
    ]
}

/// An ARP frame (RFC 826).
fn arp(operation: u8, to: Mac, from: Mac, sender: (Mac, [u8; 4]), target: (Mac, [u8; 4])) -> Vec<u8> {
    let header = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, operation];
    [&to.0[..], &from.0, &header, &sender.0.0, &sender.1, &target.0.0, &target.1].concat()
}

/// A UDP datagram of four bytes from port 4000 to 7.
fn datagram(from: Mac, to: Mac, source: [u8; 4], destination: [u8; 4], ttl: u8) -> Vec<u8> {
    let mut ip = [&[0x45, 0, 0, 32, 0, 1, 0x40, 0, ttl, 17, 0, 0][..], &source, &destination].concat();
    let sum = ip.chunks_exact(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!(((sum & 0xffff) + (sum >> 16)) as u16)).to_be_bytes());
    // No UDP checksum (RFC 768).
    let udp = [0x0f, 0xa0, 0, 7, 0, 12, 0, 0, b'n', b's', b'n', b'e'];
    [&to.0[..], &from.0, &[0x08, 0], &ip, &udp].concat()
}

/// `struct __sk_buff` (linux/bpf.h) with the interface in it.
fn context(ifindex: u32) -> [u8; 192] {
    const IFINDEX: usize = 40;
    let mut context = [0; 192];
    context[IFINDEX..IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
    context
}
