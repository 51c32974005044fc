//! Random packets of every kind that a dataplane meets, in a lab of two networks and an outside.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nsnet_common::cases::frame::{Frame, SOURCE_OPTION, TARGET_OPTION};
use nsnet_common::cases::mutate::Random;
use nsnet_common::wire::Mac;

use super::bed::{Bed, Station};
use super::packet::{ACK, FIN, GRE, Packet, RST, SYN};

/// What the outside is called.
pub(crate) const WAN: &str = "wan";

/// Somebody who sends.
#[derive(Clone, Debug)]
pub(crate) struct Someone {
    pub(crate) name: String,
    pub(crate) mac: Mac,
    /// The MAC of the way out.
    pub(crate) gateway: Mac,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

/// Everybody.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    /// Namespaces; the last of them learns.
    people: Vec<Someone>,
    /// The host, in each network.
    hosts: Vec<Someone>,
    /// The router outside, whose way is the uplink.
    pub(crate) wan: Someone,
    /// The interfaces that they are known by in the host.
    pub(crate) ports: BTreeMap<String, String>,
}

impl Scene {
    pub(crate) fn of(bed: &Bed, wan: Mac, uplink: Mac) -> Self {
        let someone = |station: &Station| Someone {
            name: station.name.clone(),
            mac: station.mac,
            gateway: bed.at(&station.network).mac,
            v4: station.v4,
            v6: station.v6,
        };
        let (hosts, people): (Vec<_>, Vec<_>) =
            bed.stations().iter().partition(|station| station.name == station.network);
        let wan = Someone {
            name: WAN.to_owned(),
            mac: wan,
            gateway: uplink,
            v4: Ipv4Addr::new(192, 168, 1, 3),
            v6: Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 3),
        };
        Self {
            people: people.into_iter().map(someone).collect(),
            hosts: hosts.into_iter().map(someone).collect(),
            wan,
            ports: bed.stations().iter().map(|station| (station.name.clone(), station.port.clone())).collect(),
        }
    }
}

/// What kind it is, who sends it, and the frame.
type Sent = (&'static str, String, Vec<u8>);

/// Makes packets without end.
pub(crate) struct Frames {
    random: Random,
    scene: Scene,
    /// What is to be sent next, because it belongs together.
    next: VecDeque<Sent>,
    /// Packets from inside that got out: who sent them, as they were sent, and as they were on the wire.
    out: Vec<(String, Packet, Packet)>,
    /// Packets that came into a namespace: whose, and as what.
    inside: Vec<(String, Packet)>,
    id: u16,
}

/// No more are remembered.
const REMEMBERED: usize = 40;

impl Frames {
    /// The packets that belong to `seed`.
    pub(crate) fn new(seed: u64, scene: Scene) -> Self {
        Self { random: Random::new(seed), scene, next: VecDeque::new(), out: Vec::new(), inside: Vec::new(), id: 1 }
    }

    /// The next one.
    pub(crate) fn next_frame(&mut self) -> Sent {
        if let Some(next) = self.next.pop_front() {
            return next;
        }
        loop {
            let kind = self.random.below(KINDS.len());
            let (name, make) = KINDS[kind];
            if let Some((from, frame)) = make(self) {
                // Anything may come damaged.
                let is_damaged = self.random.below(12) == 0;
                let frame = if is_damaged { self.damaged(frame) } else { frame };
                return (name, from, frame);
            }
        }
    }

    /// Notes that a frame of `from` arrived at `to`, as these bytes.
    pub(crate) fn learn(&mut self, from: &str, sent: &[u8], to: &str, arrived: &[u8]) {
        let is_ip = |frame: &[u8]| matches!(frame.get(12..14), Some([0x08, 0x00] | [0x86, 0xdd]));
        if !is_ip(sent) || !is_ip(arrived) {
            return;
        }
        let (Ok(sent), Ok(arrived)) = (Packet::read(&sent[14..]), Packet::read(&arrived[14..])) else { return };
        if sent.fragment.is_some() || arrived.fragment.is_some() || arrived.body.len() < 8 {
            return;
        }
        if to == WAN && from != WAN {
            self.out.push((from.to_owned(), sent, arrived));
            if self.out.len() > REMEMBERED {
                self.out.remove(0);
            }
        } else if self.scene.people.iter().any(|someone| someone.name == to) && to != from {
            self.inside.push((to.to_owned(), arrived));
            if self.inside.len() > REMEMBERED {
                self.inside.remove(0);
            }
        }
    }

    fn chance(&mut self, one_in: usize) -> bool {
        self.random.below(one_in) == 0
    }

    fn someone(&mut self) -> Someone {
        self.random.pick(&self.scene.people).clone()
    }

    fn ip(someone: &Someone, v6: bool) -> IpAddr {
        if v6 { someone.v6.into() } else { someone.v4.into() }
    }

    /// Outside, where nobody is.
    fn far(&mut self, v6: bool) -> IpAddr {
        let last = self.random.below(4) as u8 + 1;
        if v6 {
            Ipv6Addr::new(0xfd03, 0, 0, 0, 0, 0, 0, last.into()).into()
        } else {
            (*self.random.pick(&[Ipv4Addr::new(198, 51, 100, last), Ipv4Addr::new(192, 168, 1, 77)])).into()
        }
    }

    /// One of the host's addresses; `network` is the number of a network, for a gateway.
    fn hosts(&mut self, v6: bool) -> IpAddr {
        let host = self.random.pick(&self.scene.hosts).clone();
        let uplink: IpAddr =
            if v6 { Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 1).into() } else { Ipv4Addr::new(192, 168, 1, 1).into() };
        if self.chance(2) { uplink } else { Self::ip(&host, v6) }
    }

    fn payload(&mut self) -> Vec<u8> {
        vec![self.random.bits() as u8; self.random.below(60)]
    }

    /// A datagram, segment or ping, between these; ports among few, so that flows are met again.
    fn packet(&mut self, from: IpAddr, to: IpAddr, port: u16) -> Packet {
        let source = SocketAddr::new(from, 40000 + self.random.below(4) as u16);
        let (to, payload) = (SocketAddr::new(to, port), self.payload());
        match self.random.below(4) {
            0 => Packet::udp(source, to, &payload),
            1 | 2 => Packet::tcp(source, to, SYN, 1000, 0, &[]),
            _ => Packet::ping(from, to.ip(), source.port(), &payload),
        }
    }

    fn v6(&mut self) -> bool {
        self.chance(3)
    }

    fn to_gateway(someone: &Someone, packet: &Packet) -> (String, Vec<u8>) {
        (someone.name.clone(), packet.frame(someone.mac, someone.gateway))
    }

    fn damaged(&mut self, mut frame: Vec<u8>) -> Vec<u8> {
        for _ in 0..=self.random.below(2) {
            let headers = frame.len().min(60);
            let at = self.random.below(headers);
            match self.random.below(4) {
                0 => frame.truncate(at.max(14)),
                1 => frame[at] ^= 1 << self.random.below(8),
                2 => frame[at] = *self.random.pick(&[0, 1, 4, 6, 17, 44, 58, 0x45, 0x60, 0x81, 0x86, 0xff]),
                _ => frame[at] = self.random.bits() as u8,
            }
        }
        frame
    }
}

type Make = fn(&mut Frames) -> Option<(String, Vec<u8>)>;

/// The kinds, each as likely as the others.
const KINDS: [(&str, Make); 22] = [
    ("between namespaces", neighbours),
    ("out", out),
    ("out", out),
    ("out again", out_again),
    ("answered from outside", answer),
    ("answered from outside", answer),
    ("to a published port", published),
    ("to a published port from inside", hairpin),
    ("answered by a published port", published_answer),
    ("from the host", from_host),
    ("spoofed", spoofed),
    ("martian", martian),
    ("ARP", arp),
    ("neighbour discovery", nd),
    ("fragments", fragments),
    ("ICMP error", error),
    ("short of hops", short),
    ("stray", stray),
    ("long", long),
    ("odd", odd),
    ("to the host", to_host),
    ("foreign", foreign),
];

fn neighbours(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    let (a, b, v6) = (all.someone(), all.someone(), all.v6());
    let packet = all.packet(Frames::ip(&a, v6), Frames::ip(&b, v6), 80);
    // By the gateway, too, which is the only way between networks.
    let to = if all.chance(3) { a.gateway } else { b.mac };
    Some((a.name, packet.frame(a.mac, to)))
}

fn out(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    let (someone, v6) = (all.someone(), all.v6());
    let to = all.far(v6);
    let port = *all.random.pick(&[53, 80, 443]);
    let packet = all.packet(Frames::ip(&someone, v6), to, port);
    Some(Frames::to_gateway(&someone, &packet))
}

fn out_again(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    if all.out.is_empty() {
        return None;
    }
    let (from, sent, _) = all.random.pick(&all.out).clone();
    let someone = all.scene.people.iter().find(|someone| someone.name == from)?.clone();
    let again = match sent.protocol {
        6 => {
            let flags = *all.random.pick(&[ACK, ACK, ACK | FIN, RST, SYN]);
            Packet::tcp(sent.from(), sent.to(), flags, 1001, 5001, &all.payload())
        }
        _ => sent,
    };
    Some(Frames::to_gateway(&someone, &again))
}

fn answer(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    if all.out.is_empty() {
        return None;
    }
    let (_, _, wire) = all.random.pick(&all.out).clone();
    let answer = match wire.protocol {
        6 => {
            let flags = *all.random.pick(&[SYN | ACK, SYN | ACK, ACK, FIN | ACK, RST | ACK]);
            Packet::tcp(wire.to(), wire.from(), flags, 5000, 1001, &[])
        }
        1 | 58 if !wire.is_error() => wire.pong(),
        1 | 58 => return None,
        _ => wire.turned(),
    };
    let wan = &all.scene.wan;
    Some((WAN.to_owned(), answer.frame(wan.mac, wan.gateway)))
}

fn published(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    let v6 = all.v6();
    let (from, to) = (all.far(v6), all.hosts(v6));
    let port = *all.random.pick(&[8080, 5353, 9000, 9007, 8443, 81]);
    let packet = all.packet(from, to, port);
    let wan = &all.scene.wan;
    Some((WAN.to_owned(), packet.frame(wan.mac, wan.gateway)))
}

fn hairpin(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    let (someone, v6) = (all.someone(), all.v6());
    let to = all.hosts(v6);
    let port = *all.random.pick(&[8080, 5353, 9000, 9007, 8443]);
    let packet = all.packet(Frames::ip(&someone, v6), to, port);
    Some(Frames::to_gateway(&someone, &packet))
}

fn published_answer(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    if all.inside.is_empty() {
        return None;
    }
    let (at, packet) = all.random.pick(&all.inside).clone();
    let someone = all.scene.people.iter().find(|someone| someone.name == at)?.clone();
    let answer = match packet.protocol {
        6 => Packet::tcp(packet.to(), packet.from(), *all.random.pick(&[SYN | ACK, ACK, RST | ACK]), 7000, 1001, &[]),
        1 | 58 if !packet.is_error() => packet.pong(),
        1 | 58 => return None,
        _ => packet.turned(),
    };
    Some(Frames::to_gateway(&someone, &answer))
}

fn from_host(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    let (host, someone, v6) = (all.random.pick(&all.scene.hosts).clone(), all.someone(), all.v6());
    let packet = all.packet(Frames::ip(&host, v6), Frames::ip(&someone, v6), 80);
    let to = *all.random.pick(&[someone.mac, someone.mac, Mac([2, 0, 1, 0, 99, 9]), Mac::BROADCAST]);
    Some((host.name, packet.frame(host.mac, to)))
}

fn spoofed(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    let (a, b, v6) = (all.someone(), all.someone(), all.v6());
    let far = all.far(v6);
    let ip = Frames::ip(if all.chance(2) { &a } else { &b }, v6);
    let packet = all.packet(ip, far, 80);
    let mac = *all.random.pick(&[b.mac, a.mac, Mac([0x52, 1, 2, 3, 4, 5]), Mac::ZERO, Mac::BROADCAST]);
    Some((a.name, packet.frame(mac, a.gateway)))
}

fn martian(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    let (someone, v6) = (all.someone(), all.v6());
    let never = match v6 {
        false => {
            *all.random.pick(&["127.0.0.1", "169.254.1.1", "240.0.0.1", "0.0.0.0", "224.0.0.251", "255.255.255.255"])
        }
        true => *all.random.pick(&["::1", "fe80::99", "ff02::fb", "ff0e::1", "::"]),
    };
    let never: IpAddr = never.parse().ok()?;
    if all.chance(2) {
        let packet = all.packet(Frames::ip(&someone, v6), never, 80);
        return Some(Frames::to_gateway(&someone, &packet));
    }
    let inside = Frames::ip(&someone, v6);
    let to = all.hosts(v6);
    let (from, to) = *all.random.pick(&[(never, to), (inside, to), (all.scene.wan.v4.into(), inside)]);
    if from.is_ipv4() != to.is_ipv4() {
        return None;
    }
    let packet = all.packet(from, to, 8080);
    let wan = &all.scene.wan;
    Some((WAN.to_owned(), packet.frame(wan.mac, wan.gateway)))
}

fn arp(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    let (a, b) = (all.someone(), all.someone());
    let gateway = all.scene.hosts[0].v4;
    let target = *all.random.pick(&[b.v4, b.v4, gateway, a.v4, Ipv4Addr::new(192, 168, 15, 77)]);
    let sender = *all.random.pick(&[a.v4, a.v4, a.v4, b.v4, Ipv4Addr::UNSPECIFIED]);
    let operation = *all.random.pick(&[1, 1, 1, 2, 3]);
    let to = if all.chance(5) { b.mac } else { Mac::BROADCAST };
    let frame = Frame::new(a.mac, to).arp(operation, (a.mac, sender.octets()), (Mac::ZERO, target.octets()));
    Some((a.name, frame.finish()))
}

fn nd(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    let (a, b) = (all.someone(), all.someone());
    let target =
        *all.random.pick(&[b.v6, b.v6, all.scene.hosts[0].v6, a.v6, Ipv6Addr::new(0xfd15, 0, 0, 0, 0, 0, 0, 0x77)]);
    let source = *all.random.pick(&[a.v6, a.v6, a.v6, b.v6, Ipv6Addr::UNSPECIFIED]);
    let group = nsnet::model::explain::compose::solicited_group(target);
    let mac = nsnet::model::explain::compose::group_mac(group.into())?;
    let (kind, option) = *all.random.pick(&[(135, SOURCE_OPTION), (135, SOURCE_OPTION), (136, TARGET_OPTION)]);
    let frame = Frame::new(a.mac, mac).ipv6(source.octets(), group.octets()).hops(if all.chance(8) { 64 } else { 255 });
    if all.chance(10) {
        return Some((a.name, frame.router_advertisement().finish()));
    }
    let frame = frame.neighbour(kind, target.octets());
    let frame = if all.chance(4) { frame } else { frame.mac_option(option, if all.chance(6) { b.mac } else { a.mac }) };
    Some((a.name, frame.finish()))
}

fn fragments(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    let (someone, v6) = (all.someone(), all.v6());
    let to = all.far(v6);
    let payload = vec![7; 1000];
    let (from, number) = (Frames::ip(&someone, v6), 40000 + all.random.below(3) as u16);
    let mut packet = match all.chance(2) {
        true => Packet::udp(SocketAddr::new(from, number), SocketAddr::new(to, 443), &payload),
        false => Packet::ping(from, to, number, &payload),
    };
    all.id += 1;
    packet.id = all.id.into();
    let mut pieces = packet.fragments(&[400, 800]);
    match all.random.below(4) {
        0 => pieces.rotate_left(1),
        1 => pieces.swap(0, 2),
        2 => drop(pieces.remove(0)),
        _ => {}
    }
    let mut pieces = pieces.into_iter().map(|piece| Frames::to_gateway(&someone, &piece));
    let first = pieces.next()?;
    all.next.extend(pieces.map(|(from, frame)| ("fragments", from, frame)));
    Some(first)
}

fn error(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    let about_v4 = [(3, 3), (3, 1), (11, 0), (3, 4)];
    let about_v6 = [(1, 4), (1, 0), (3, 0), (2, 0)];
    if all.chance(3) {
        if all.inside.is_empty() {
            return None;
        }
        let (at, packet) = all.random.pick(&all.inside).clone();
        let someone = all.scene.people.iter().find(|someone| someone.name == at)?.clone();
        if packet.is_error() {
            return None;
        }
        return Some(Frames::to_gateway(&someone, &packet.port_unreachable()));
    }
    if all.out.is_empty() {
        return None;
    }
    let (_, _, wire) = all.random.pick(&all.out).clone();
    let v6 = wire.source.is_ipv6();
    let (kind, code) = *all.random.pick(if v6 { &about_v6 } else { &about_v4 });
    let rest = if matches!((kind, code), (3, 4) | (2, 0)) { 1280 } else { 0 };
    let by = if all.chance(2) { wire.destination } else { Frames::ip(&all.scene.wan, v6) };
    let mut error = wire.error(by, kind, code, rest, 200);
    if all.chance(5) {
        // About nothing that anybody sent.
        error = error.damaged(|body| body[8 + if v6 { 40 } else { 20 }] ^= 0x55).summed();
    }
    let wan = &all.scene.wan;
    Some((WAN.to_owned(), error.frame(wan.mac, wan.gateway)))
}

fn short(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    let (someone, v6) = (all.someone(), all.v6());
    let to = if all.chance(4) { all.hosts(v6) } else { all.far(v6) };
    let hops = all.random.below(3) as u8;
    let packet = all.packet(Frames::ip(&someone, v6), to, 80).hops(hops);
    Some(Frames::to_gateway(&someone, &packet))
}

fn stray(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    let (someone, v6) = (all.someone(), all.v6());
    let (far, host) = (all.far(v6), all.hosts(v6));
    let port = *all.random.pick(&[80, 20000, 30000]);
    if all.chance(2) {
        let from = SocketAddr::new(Frames::ip(&someone, v6), 45000);
        let packet = Packet::tcp(from, SocketAddr::new(far, port), *all.random.pick(&[ACK, RST, FIN | ACK]), 1, 1, &[]);
        let to = if all.chance(4) { Mac([2, 0, 1, 0, 99, 9]) } else { someone.gateway };
        return Some((someone.name, packet.frame(someone.mac, to)));
    }
    let packet = Packet::tcp(
        SocketAddr::new(far, 443),
        SocketAddr::new(host, port),
        *all.random.pick(&[SYN, ACK, SYN | ACK]),
        1,
        1,
        &[],
    );
    let wan = &all.scene.wan;
    Some((WAN.to_owned(), packet.frame(wan.mac, wan.gateway)))
}

/// By a way that takes 1,000 bytes.
fn long(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    let someone = all.someone();
    let to = SocketAddr::new(Ipv4Addr::new(198, 51, 101, all.random.below(3) as u8 + 1).into(), 443);
    let payload = vec![3; 900 + all.random.below(560)];
    let from = SocketAddr::new(someone.v4.into(), 40000 + all.random.below(3) as u16);
    let mut packet =
        if all.chance(3) { Packet::ping(from.ip(), to.ip(), 7, &payload) } else { Packet::udp(from, to, &payload) };
    all.id += 1;
    packet.id = all.id.into();
    let packet = if all.chance(3) { packet } else { packet.may_be_cut() };
    Some(Frames::to_gateway(&someone, &packet))
}

fn odd(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    let (someone, v6) = (all.someone(), all.v6());
    let to = all.far(v6);
    let from = Frames::ip(&someone, v6);
    let packet = match all.random.below(5) {
        0 => Packet::new(from, to, GRE, &[0; 40]),
        1 => Packet::sctp(SocketAddr::new(from, 40000), SocketAddr::new(to, 5000), &[1; 20]),
        2 if !v6 => Packet::udp(SocketAddr::new(from, 40000), SocketAddr::new(to, 53), &[1; 20]).options(&[7, 3, 4, 0]),
        3 if !v6 => {
            Packet::udp(SocketAddr::new(from, 40000), SocketAddr::new(to, 53), &[1; 20]).options(&[131, 3, 4, 0])
        }
        _ => {
            let kind = *all.random.pick(&[0x88cc, 0x0026, 0x8847, 0x8100]);
            let to = *all.random.pick(&[someone.gateway, Mac([1, 0x80, 0xc2, 0, 0, 3]), Mac::BROADCAST]);
            return Some((someone.name, Frame::new(someone.mac, to).ethertype(kind).payload(46).finish()));
        }
    };
    Some(Frames::to_gateway(&someone, &packet))
}

fn to_host(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    let (someone, v6) = (all.someone(), all.v6());
    let unroutable = ["203.0.113.1", "203.0.114.1", "203.0.115.1"];
    let to = match all.chance(3) && !v6 {
        true => all.random.pick(&unroutable).parse().ok()?,
        false => all.hosts(v6),
    };
    let port = *all.random.pick(&[22, 53]);
    let packet = all.packet(Frames::ip(&someone, v6), to, port);
    Some(Frames::to_gateway(&someone, &packet))
}

/// From stations behind a port that learns, and to them.
fn foreign(all: &mut Frames) -> Option<(String, Vec<u8>)> {
    let learns = all.scene.people.last()?.clone();
    let mac = Mac([0x52, 0, 0, 0, 0, all.random.below(3) as u8]);
    let other = all.random.pick(&all.scene.people).clone();
    let packet = all.packet(IpAddr::V4(Ipv4Addr::new(10, 9, 0, 200)), IpAddr::V4(other.v4), 80);
    if all.chance(3) {
        let packet = all.packet(IpAddr::V4(other.v4), IpAddr::V4(Ipv4Addr::new(10, 9, 0, 200)), 80);
        return Some((other.name, packet.frame(other.mac, mac)));
    }
    Some((learns.name, packet.frame(mac, *all.random.pick(&[other.mac, learns.gateway, Mac::BROADCAST]))))
}
