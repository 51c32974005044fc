//! `nsnet explain`: a thousand random packets are explained, then sent, and what happens is what was said. The tables are the
//! same before and after each explanation.
//!
//! Nobody but the test sends: the kernels of the lab are silenced by rules of their own, so that whatever is counted or arrives
//! is the packet's.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nsnet::kernel::explain::{Confirmed, Explainer};
use nsnet::kernel::host::Host;
use nsnet::kernel::maps::Maps;
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::netns::NetNs;
use nsnet::kernel::publish::PublishMaps;
use nsnet::kernel::sysctl;
use nsnet::lab::RawSocket;
use nsnet::model::explain::entries::Words;
use nsnet::model::explain::names::Names;
use nsnet::model::explain::story::Story;
use nsnet::model::explain::walk::{Arrival, Entrance, Pass};
use nsnet::model::state::State;
use nsnet_common::layout::PortId;
use nsnet_common::verdict::{Egress, Verdict};
use nsnet_common::wire::Mac;

use super::bed::{Bed, DUAL, lab};
use super::dump::{Dumper, differences};
use super::explain_frames::{Frames, Scene, WAN};
use super::shot::on_one_cpu;

/// Where frames came out, and what they were.
type Arrivals = Vec<(String, Vec<u8>)>;

/// How many packets.
const COUNT: usize = 1000;
/// What makes the same packets again.
const SEED: u64 = 20;
/// How long a packet may take until it is counted.
const PATIENCE: Duration = Duration::from_secs(2);
/// After so many packets it is seen that nobody got anything that was not said.
const BATCH: usize = 20;

/// Packet sockets and redirects pass by these rules.
const SILENCE: &str = "
table inet silence {
    chain out { type filter hook output priority 0; policy drop; }
}
table arp silence {
    chain out { type filter hook output priority 0; policy drop; }
}
";

/// Counters by port and name: frames and bytes.
type Counts = BTreeMap<(PortId, String), (i64, i64)>;

#[test]
fn a_thousand_random_packets_are_what_was_said() -> Result<()> {
    let (bed, scene) = stage()?;
    let sockets = sockets(&bed)?;
    // From one CPU, so that they arrive in their order.
    let told = bed.lab.within("host", || {
        on_one_cpu(|| {
            let mut run = Run::new(&scene, &sockets)?;
            let mut frames = Frames::new(SEED, scene.clone());
            for number in 0..COUNT {
                let (kind, from, frame) = frames.next_frame();
                let what = format!("packet {number} of seed {SEED}, {kind}, from {from}: {}", hex(&frame));
                let arrivals = run.explain_and_send(&from, frame.clone()).context(what)?;
                for (to, bytes) in arrivals {
                    frames.learn(&from, &frame, &to, &bytes);
                }
                if number % BATCH == BATCH - 1 {
                    run.check_arrivals().with_context(|| format!("up to packet {number} of seed {SEED}"))?;
                }
            }
            run.check_arrivals()?;
            Ok(run.told)
        })
    })??;
    let total: usize = told.values().sum();
    println!("{total} frames came to what was said: {told:#?}");
    let reasons = told.keys().filter(|end| end.starts_with("dropped")).count();
    for end in ["into a namespace", "up to the host", "out by the uplink", "answered", "flooded", "again", "passed"] {
        ensure!(told.contains_key(end), "none went {end}");
    }
    ensure!(total >= COUNT && reasons >= 25, "only {reasons} reasons to drop a packet");
    Ok(())
}

/// The lab: a network that is masqueraded, one that is routed, published ports; and nobody talks.
fn stage() -> Result<(Bed, Scene)> {
    let lab = lab()?;
    let times = ["udp", "icmp", "other", "tcp-transitory", "dns"].map(|name| format!("{name}=3000")).join(" ");
    let ip = |ns: &str, lines: &str| ip_batch(&lab.name(ns), lines);
    ip(
        "host",
        "address add fd01::1/64 dev uplink nodad\nroute add default via 192.168.1.3\nroute add default via fd01::3 dev uplink\n\
                route add 198.51.101.0/24 via 192.168.1.3 mtu lock 1000\nroute add unreachable 203.0.113.0/24\nroute add prohibit 203.0.114.0/24\n\
                route add blackhole 203.0.115.0/24",
    )?;
    let mut bed = Bed::inside(lab, &format!("{DUAL} --masquerade --timeout {times}"), &["red", "blue", "green"])?;
    bed.add_network("v-net-1", &format!("--subnet 10.9.0.0/24 fd09::/64 --timeout {times}"))?;
    bed.attach("v-net-1", "plain", "")?;
    bed.attach("v-net-1", "learns", "--learn")?;
    for spec in ["8080:80/tcp", "5353:53/udp", "9000-9010:7000-7010/udp", "192.168.1.1:8443:443/tcp"] {
        bed.lab.nsnet(&format!("publish add @blue {spec}"))?;
    }
    // The neighbours outside are known, so that what leaves does not wait for an answer.
    let wan = Netlink::inside(&bed.lab.ns("wan")?)?.existing_link("uplink")?;
    let wan = Mac(wan.mac.context("an uplink without a MAC")?);
    let known = ["192.168.1.3", "192.168.1.77", "fd01::3"];
    let known = known.map(|ip| format!("neighbour replace {ip} lladdr {wan} dev uplink nud permanent")).join("\n");
    ip_batch(&bed.lab.name("host"), &known)?;
    bed.lab.within("host", || -> Result<()> {
        for key in [
            "net/ipv4/conf/uplink/accept_redirects",
            "net/ipv6/conf/uplink/accept_redirects",
            "net/ipv6/conf/uplink/accept_ra",
        ] {
            sysctl::write(key, "0")?;
        }
        Ok(())
    })??;
    for ns in ["host", "wan", "red", "blue", "green", "plain", "learns"] {
        silence(&bed.lab.ns(ns)?)?;
    }
    let uplink = Netlink::inside(&bed.lab.ns("host")?)?.existing_link("uplink")?;
    let uplink_mac = Mac(uplink.mac.context("an uplink without a MAC")?);
    let scene = Scene::of(&bed, wan, uplink_mac);
    // What was under way when the rules came has gone by then.
    std::thread::sleep(Duration::from_millis(300));
    Ok((bed, scene))
}

fn ip_batch(ns: &str, lines: &str) -> Result<()> {
    let mut ip = Command::new("ip").args(["-n", ns, "-batch", "-"]).stdin(Stdio::piped()).spawn().context("run ip")?;
    ip.stdin.take().context("write to ip")?.write_all(lines.as_bytes())?;
    ensure!(ip.wait()?.success(), "ip failed: {lines}");
    Ok(())
}

/// Keeps a namespace's kernel from sending anything of its own.
pub(crate) fn silence(ns: &NetNs) -> Result<()> {
    ns.run(|| {
        let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("run nft")?;
        nft.stdin.take().context("write to nft")?.write_all(SILENCE.as_bytes())?;
        ensure!(nft.wait()?.success(), "nft failed");
        Ok(())
    })?
}

/// A packet socket at each end: of each namespace, of the host in each network, and outside.
fn sockets(bed: &Bed) -> Result<BTreeMap<String, RawSocket>> {
    let mut sockets = BTreeMap::new();
    for station in bed.stations() {
        let socket = station.run(|| RawSocket::open_promiscuous(&station.ifname))?;
        sockets.insert(station.name.clone(), socket);
    }
    sockets.insert(WAN.to_owned(), bed.lab.within("wan", || RawSocket::open_promiscuous("uplink"))??);
    for socket in sockets.values() {
        socket.collect(Duration::from_millis(5), |_| true)?;
    }
    Ok(sockets)
}

/// What goes on between explanations and the packets themselves.
struct Run<'a> {
    explainer: Explainer,
    state: State,
    maps: Maps,
    dumper: Dumper,
    scene: &'a Scene,
    sockets: &'a BTreeMap<String, RawSocket>,
    /// What every counter must be by now.
    counts: Counts,
    /// What must have arrived since it was last looked, and where.
    expected: BTreeMap<String, Vec<Vec<u8>>>,
    /// How often each end was met.
    told: BTreeMap<String, usize>,
}

impl<'a> Run<'a> {
    fn new(scene: &'a Scene, sockets: &'a BTreeMap<String, RawSocket>) -> Result<Self> {
        let host = Host::enter(None)?;
        let (state, maps) = (host.state()?, host.maps());
        let counts = counts(&maps, &state)?;
        Ok(Self {
            explainer: Explainer::open(&host)?,
            dumper: Dumper::open(&host.ns)?,
            state,
            maps,
            scene,
            sockets,
            counts,
            expected: BTreeMap::new(),
            told: BTreeMap::new(),
        })
    }

    /// Explains a frame, sends it, and waits until everything is counted that was said; what is to arrive, and where.
    fn explain_and_send(&mut self, from: &str, frame: Vec<u8>) -> Result<Vec<(String, Vec<u8>)>> {
        let arrival = Arrival { entrance: self.entrance(from)?, frame, gso_size: 0 };
        let before = self.dumper.dump()?;
        let explained = self.explainer.explain(&arrival)?;
        let changes = differences(&before, &self.dumper.dump()?);
        ensure!(changes.is_empty(), "explaining it changed the tables: {}", changes.join("\n"));
        ensure!(!matches!(explained.confirmed, Confirmed::No(_)), "not confirmed: {:?}", explained.confirmed);

        let names = Names::of(&self.state, []);
        let words = Words { names: &names, now: explained.now };
        let mut arrivals = Vec::new();
        for pass in &explained.passes {
            let story = Story::of(pass, &words);
            for counter in &story.counters {
                let name = match counter.counter.as_str() {
                    "hits" => format!("hits {}", counter.name),
                    other => other.to_owned(),
                };
                let sum = self.counts.entry((counter.port, name)).or_default();
                *sum = (sum.0 + counter.packets, sum.1 + counter.bytes);
            }
            let (end, to) = self.arrivals(pass)?;
            let end = story.end.reason.map_or(end, |reason| format!("dropped, {}", reason.label()));
            *self.told.entry(if story.end.verdict == "answered" { "answered".to_owned() } else { end }).or_default() +=
                1;
            arrivals.extend(to);
        }
        self.counts.retain(|_, sum| *sum != (0, 0));
        for (to, bytes) in &arrivals {
            self.expected.entry(to.clone()).or_default().push(bytes.clone());
        }
        match self.sockets[from].send(&arrival.frame) {
            // The host is told when its own frame is dropped.
            Err(error) if error.downcast_ref() == Some(&Errno::ENOBUFS) => {}
            sent => sent?,
        }
        self.wait_for_counts()?;
        Ok(arrivals)
    }

    fn entrance(&self, from: &str) -> Result<Entrance> {
        if from == WAN {
            let uplink = self.state.uplinks.first().context("no uplink")?;
            return Ok(Entrance::Uplink { port: uplink.port(), ifindex: uplink.ifindex });
        }
        let interface = self.scene.ports.get(from).context("nobody of that name")?;
        let members = self.state.members();
        let port = members.iter().find(|member| member.interface == interface).context("no such port")?;
        Ok(if port.ns.is_some() { Entrance::Namespace(port.port) } else { Entrance::Host(port.port) })
    }

    /// How the frame ends, and what arrives where.
    fn arrivals(&self, pass: &Pass) -> Result<(String, Arrivals)> {
        let at = |port: PortId| -> Result<String> {
            let members = self.state.members();
            let member = members.iter().find(|member| member.port == port).context("a port that nobody has")?;
            let name = self.scene.ports.iter().find(|(_, port)| **port == member.interface);
            Ok(name.context("an interface that nobody has")?.0.clone())
        };
        let bytes = || pass.after.bytes.clone();
        Ok(match pass.outcome {
            Ok(Verdict::Deliver(Egress::Namespace(port))) => {
                ("into a namespace".to_owned(), vec![(at(port)?, bytes())])
            }
            Ok(Verdict::Deliver(Egress::Host(port))) => ("up to the host".to_owned(), vec![(at(port)?, bytes())]),
            Ok(Verdict::Deliver(Egress::Uplink(_))) => {
                ("out by the uplink".to_owned(), vec![(WAN.to_owned(), bytes())])
            }
            Ok(Verdict::Deliver(Egress::Neighbour(_))) => {
                // The kernel writes the MACs, when it knows the neighbour.
                let macs = [self.scene.wan.mac.0, self.scene.wan.gateway.0].concat();
                let frame = [&macs[..], &pass.after.bytes[12..]].concat();
                let arrives = is_known_neighbour(&frame);
                ("out by the uplink".to_owned(), arrives.then(|| (WAN.to_owned(), frame)).into_iter().collect())
            }
            Ok(Verdict::Flooded) => {
                let copies = pass.after.copies.iter().map(|port| Ok((at(*port)?, bytes())));
                ("flooded".to_owned(), copies.collect::<Result<_>>()?)
            }
            Ok(Verdict::Again) => ("again".to_owned(), Vec::new()),
            Ok(Verdict::Pass) => ("passed".to_owned(), Vec::new()),
            Err(_) => ("dropped".to_owned(), Vec::new()),
            Ok(other) => anyhow::bail!("{other:?} is no end"),
        })
    }

    fn wait_for_counts(&self) -> Result<()> {
        let sent = Instant::now();
        loop {
            let counts = counts(&self.maps, &self.state)?;
            if counts == self.counts {
                return Ok(());
            }
            if sent.elapsed() > PATIENCE {
                let all = counts.keys().chain(self.counts.keys());
                let differing = all.filter(|key| counts.get(*key) != self.counts.get(*key));
                let lines: Vec<String> = differing
                    .map(|key| format!("{key:?}: {:?}, as was said {:?}", counts.get(key), self.counts.get(key)))
                    .collect();
                anyhow::bail!("counted otherwise: {}", lines.join("; "));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Sees that everything arrived that was said, in that order, and nothing else.
    fn check_arrivals(&mut self) -> Result<()> {
        for (name, socket) in self.sockets {
            let expected = self.expected.remove(name).unwrap_or_default();
            let mut arrived = Vec::new();
            while arrived.len() < expected.len() {
                let Some(frame) = socket.receive(PATIENCE, |_| true)? else { break };
                arrived.push(frame.on_wire());
            }
            arrived.extend(socket.collect(Duration::from_millis(2), |_| true)?.iter().map(nsnet::lab::Frame::on_wire));
            let differs = arrived.iter().zip(&expected).position(|(one, other)| one != other);
            let differs = differs.or((arrived.len() != expected.len()).then_some(arrived.len().min(expected.len())));
            if let Some(at) = differs {
                let (arrived, expected) = (arrived.get(at), expected.get(at));
                let text = |frame: Option<&Vec<u8>>| frame.map_or("nothing".to_owned(), |frame| hex(frame));
                anyhow::bail!("at {name}, frame {at}: {}, as was said {}", text(arrived), text(expected));
            }
        }
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether the kernel knows whom to send a frame to that leaves by the uplink: the routers, and 192.168.1.77.
fn is_known_neighbour(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => !matches!(frame.get(30..34), Some([192, 168, 1, last]) if !matches!(last, 3 | 77)),
        Some([0x86, 0xdd]) => frame.get(38..46) != Some(&[0xfd, 1, 0, 0, 0, 0, 0, 0]) || frame.get(53) == Some(&3),
        _ => false,
    }
}

/// What is counted, as an explanation has it.
fn counts(maps: &Maps, state: &State) -> Result<Counts> {
    let mut counts = Counts::new();
    let members = state.members();
    let ports: Vec<PortId> = members
        .iter()
        .map(|member| member.port)
        .chain(state.uplinks.iter().map(nsnet::model::uplink::Uplink::port))
        .collect();
    let of_traffic = |traffic: nsnet_common::layout::Traffic| (traffic.packets as i64, traffic.bytes as i64);
    for (port, counters) in ports.iter().zip(maps.counters(ports.iter().copied())?) {
        let of_events = |events: u64| (events as i64, 0);
        counts.insert((*port, "rx".to_owned()), of_traffic(counters.received));
        counts.insert((*port, "tx".to_owned()), of_traffic(counters.sent));
        counts.insert((*port, "flooded".to_owned()), of_events(counters.flooded));
        counts.insert((*port, "answered".to_owned()), of_events(counters.answered));
        counts.insert((*port, "passed".to_owned()), of_events(counters.passed));
    }
    for ((port, code), dropped) in maps.drops()? {
        let reason = nsnet_common::verdict::DropReason::from_code(code).context("an unknown reason")?;
        counts.insert((port, format!("dropped {}", reason.label())), of_traffic(dropped.traffic));
    }
    let published = PublishMaps::of(maps)?;
    for publish in &state.publishes {
        let name = format!("hits {} for {}", publish.spec, publish.ns);
        counts.insert((PortId::NONE, name), (published.hits(publish)? as i64, 0));
    }
    counts.retain(|_, sum| *sum != (0, 0));
    Ok(counts)
}
