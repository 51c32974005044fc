//! Frames from within the kernel: made by a program of ours, handed to the stack as if an interface had received them,
//! and counted where they come out.
//!
//! No socket and no system call is in between, so what is measured is the path: about a tenth of what a datagram of a
//! process costs. The frames enter at the host's end of a namespace's veth, or at the uplink; the same program counts
//! and drops them at the last interface, for every peer. An XDP program could not: it does not see what
//! `bpf_redirect_peer` delivers.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues};
use aya::programs::tc::SchedClassifierLinkId;
use aya::programs::{SchedClassifier, TcAttachType, TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader};
use nsnet_common::bench::{
    COUNTED, ECHO, GENERATE, HEADER_WORDS, NEXT, NOTHING, SHAPE_FIXED, SHAPE_V4, SHAPE_V6, SINK, TEMPLATE, Template,
};

use super::site::Injection;
use crate::kernel::netlink::Netlink;
use crate::kernel::netns::NetNs;
use crate::lab::compare::Sample;
use crate::lab::cost::Meter;
use crate::lab::lane::{Cpus, pin};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/nsnet-bench-ebpf"));

/// Frames made at once, before the stack's queues are worked off: NAPI's budget.
const BATCH: u32 = 64;
/// Frames that find out how fast it goes: first so many, and the rest where these are no slot's work.
pub(super) const TRIAL: u32 = 4096;
const FIRST_TRIAL: u32 = BATCH;
/// Lengths of headers.
const ETHERNET: usize = 14;
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const UDP: u8 = 17;

/// The programs, loaded.
pub(super) struct Injector {
    ebpf: Ebpf,
    template: Array<MapData, Template>,
    counted: PerCpuArray<MapData, u64>,
    next: PerCpuArray<MapData, u64>,
    /// What is on interfaces, the last one last.
    attached: Vec<(&'static str, SchedClassifierLinkId)>,
}

/// The program that does nothing, loaded: what any program's run costs to begin with.
///
/// # Errors
/// When the kernel refuses it.
pub fn nothing() -> Result<Ebpf> {
    let mut ebpf = EbpfLoader::new().btf(None).load(OBJECT).context("cannot load the bench's programs")?;
    let program: &mut SchedClassifier =
        ebpf.program_mut(NOTHING).context("the object has no such program")?.try_into()?;
    program.load().context("cannot load a program that does nothing")?;
    Ok(ebpf)
}

/// What is injected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Series {
    /// Of the frame, without the checksum at its end.
    pub(super) length: usize,
    pub(super) first_source: u16,
    pub(super) sources: u16,
    pub(super) first_destination: u16,
    pub(super) destinations: u16,
}

/// How a path is filled once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// Of the frames.
    pub(super) length: usize,
    /// About how long.
    pub(super) slot: Duration,
    /// At most this many frames, after the [`TRIAL`].
    pub(super) limit: u32,
    /// Whether they arrive at a sink; else all are taken for arrived.
    pub(super) is_counted: bool,
    /// The first one is used.
    pub(super) cpus: Cpus,
}

impl Injector {
    /// Has the verifier accept them.
    pub(super) fn load() -> Result<Injector> {
        ensure!(!OBJECT.is_empty(), "this nsnet was built without the programs of its bench: run `cargo xtask build`");
        let mut ebpf = EbpfLoader::new().btf(None).load(OBJECT).context("cannot load the bench's programs")?;
        let mut map = |name: &str| ebpf.take_map(name).with_context(|| format!("the object has no map {name}"));
        let (template, counted, next) = (map(TEMPLATE)?, map(COUNTED)?, map(NEXT)?);
        let generate: &mut Xdp = ebpf.program_mut(GENERATE).context("the object has no generator")?.try_into()?;
        generate.load().context("cannot load the generator")?;
        for name in [SINK, ECHO] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).context("the object has no sink")?.try_into()?;
            program.load().with_context(|| format!("cannot load {name}"))?;
        }
        let (template, counted, next) = (template.try_into()?, counted.try_into()?, next.try_into()?);
        Ok(Injector { ebpf, template, counted, next, attached: Vec::new() })
    }

    /// Puts a program on the ingress side of an interface.
    pub(super) fn attach(&mut self, name: &'static str, at: &(NetNs, String)) -> Result<()> {
        let program: &mut SchedClassifier = self.ebpf.program_mut(name).context("no such program")?.try_into()?;
        let (ns, interface) = at;
        let attached = ns.run(|| program.attach(interface, TcAttachType::Ingress))?;
        let link = attached.with_context(|| format!("cannot put {name} on {interface}"))?;
        self.attached.push((name, link));
        Ok(())
    }

    /// How many are on interfaces.
    pub(super) fn attached(&self) -> usize {
        self.attached.len()
    }

    /// Takes the last ones off, until that many are left: what stayed would take the datagrams of later measurements.
    pub(super) fn detach_to(&mut self, left: usize) -> Result<()> {
        while self.attached.len() > left {
            let Some((name, link)) = self.attached.pop() else { break };
            let program: &mut SchedClassifier = self.ebpf.program_mut(name).context("no such program")?.try_into()?;
            program.detach(link)?;
        }
        Ok(())
    }

    /// What the next frames are to be; they begin with the first of the series.
    pub(super) fn set(&mut self, template: &Template) -> Result<()> {
        self.template.set(0, template, 0)?;
        let zeros = PerCpuValues::try_from(vec![0; nr_cpus().map_err(|(_, error)| error)?])?;
        Ok(self.next.set(0, zeros, 0)?)
    }

    /// How many datagrams have arrived at sinks so far.
    fn counted(&self) -> Result<u64> {
        Ok(self.counted.get(&0, 0)?.iter().sum())
    }

    /// Injects `frames` frames of `length` bytes at `at`.
    pub(super) fn send(&mut self, at: &(NetNs, String), length: usize, frames: u32) -> Result<()> {
        let index = ifindex(at)?;
        let generate = self.generator()?;
        at.0.run(|| run(generate, index, length, frames).map(|_seconds| ()))?
    }

    /// Fills the path for about as long as `slot`.
    pub(super) fn measure(&self, at: &(NetNs, String), turn: Turn) -> Result<Sample> {
        let index = ifindex(at)?;
        let Turn { length, slot, limit, is_counted, cpus } = turn;
        let generate = self.generator()?;
        at.0.run(|| {
            pin(cpus.map(|(first, _)| first))?;
            let mut meter = Meter::of_this_thread();
            let mut trial = (FIRST_TRIAL, run(generate, index, length, FIRST_TRIAL)?);
            if trial.1 < slot.as_secs_f64() {
                let rest = TRIAL - FIRST_TRIAL;
                trial = (rest, run(generate, index, length, rest)?);
            }
            let frames = slot.as_secs_f64() / trial.1 * f64::from(trial.0);
            let frames = frames.clamp(f64::from(BATCH.min(limit)), f64::from(limit)) as u32;
            let before = self.counted()?;
            let start = meter.read()?;
            let time = run(generate, index, length, frames)?;
            let spent = meter.read()?.since(start);
            let arrived = if is_counted { (self.counted()? - before) as f64 } else { f64::from(frames) };
            let each = |spent: f64| if arrived > 0.0 { spent / arrived } else { 0.0 };
            Ok(Sample {
                rate: arrived / time,
                loss: (1.0 - arrived / f64::from(frames)).max(0.0),
                cpu: each(spent.cpu),
                instructions: spent.instructions.map(each),
                trips: None,
            })
        })?
    }

    fn generator(&self) -> Result<&Xdp> {
        Ok(self.ebpf.program(GENERATE).context("the object has no generator")?.try_into()?)
    }
}

/// Runs the generator in the calling thread's namespace. Says how many seconds the frames took, as the kernel measured
/// it: the call itself also waits some 30 ms, for its memory to be given back.
fn run(generate: &Xdp, ifindex: u32, length: usize, frames: u32) -> Result<f64> {
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let context = [0, length as u32, 0, ifindex, 0, 0].map(u32::to_ne_bytes).concat();
    let frame = vec![0; length];
    let options = TestRunOptions {
        data_in: Some(&frame),
        ctx_in: Some(&context),
        repeat: frames,
        attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
        ..TestRunOptions::new()
    };
    let result = generate.test_run(options).context("cannot inject frames (needs Linux 5.18)")?;
    // Whole nanoseconds for each frame, and there is none that takes none.
    Ok(result.duration.max(Duration::from_nanos(1)).as_secs_f64() * f64::from(frames))
}

fn ifindex((ns, interface): &(NetNs, String)) -> Result<u32> {
    Ok(Netlink::inside(ns)?.existing_link(interface)?.index)
}

/// Datagrams on the way of `injection`, of the family of its addresses.
pub(super) fn datagrams(injection: &Injection, series: Series) -> Template {
    let Injection { macs: [source_mac, destination_mac], ips: [source, destination], .. } = injection;
    let addresses = [octets(*source), octets(*destination)].concat();
    let is_v6 = source.is_ipv6();
    let (ethertype, shape, ip_length) =
        if is_v6 { (0x86dd_u16, SHAPE_V6, V6_HEADER) } else { (0x0800, SHAPE_V4, V4_HEADER) };
    let udp_length = (series.length - ETHERNET - ip_length) as u16;
    let ip = if is_v6 { v6_header(udp_length, &addresses) } else { v4_header(udp_length, &addresses) };
    let ethernet = [&destination_mac[..], source_mac, &ethertype.to_be_bytes()].concat();
    let udp = [&[0, 0, 0, 0][..], &udp_length.to_be_bytes(), &[0, 0]].concat();
    // The pseudo-header, the length in the header, and a payload of zeros.
    let under_checksum = sum(&addresses) + u32::from(UDP) + 2 * u32::from(udp_length);
    Template {
        header: words(&[ethernet, ip, udp].concat()),
        shape,
        sum: under_checksum,
        first_source: series.first_source.into(),
        sources: series.sources.into(),
        first_destination: series.first_destination.into(),
        destinations: series.destinations.into(),
        leaves: injection.leaves.into(),
    }
}

/// Before `payload` bytes of UDP; without options, not to be fragmented.
fn v4_header(payload: u16, addresses: &[u8]) -> Vec<u8> {
    let length = V4_HEADER as u16 + payload;
    let mut header = [&[0x45, 0][..], &length.to_be_bytes(), &[0, 0, 0x40, 0, 64, UDP, 0, 0], addresses].concat();
    let checksum = !fold(sum(&header));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

/// The same of IPv6.
fn v6_header(payload: u16, addresses: &[u8]) -> Vec<u8> {
    [&[0x60, 0, 0, 0][..], &payload.to_be_bytes(), &[UDP, 64], addresses].concat()
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Broadcast ARP requests of the sender for the receiver's address.
pub(super) fn arp_requests(injection: &Injection) -> Template {
    let Injection { macs: [mac, _], ips: [source, destination], .. } = injection;
    let head = [&[0xff; 6][..], mac, &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1], mac].concat();
    let bytes = [&head[..], &octets(*source), &[0; 6], &octets(*destination)].concat();
    Template {
        header: words(&bytes),
        shape: SHAPE_FIXED,
        sum: 0,
        first_source: 0,
        sources: 1,
        first_destination: 0,
        destinations: 1,
        leaves: injection.leaves.into(),
    }
}

fn words(bytes: &[u8]) -> [u16; HEADER_WORDS] {
    let mut words = [0; HEADER_WORDS];
    for (word, pair) in words.iter_mut().zip(bytes.chunks(2)) {
        *word = u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
    }
    words
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum()
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn injection(ips: [IpAddr; 2]) -> Injection {
        let here = || (NetNs::current().unwrap(), "lo".to_owned());
        Injection {
            entry: here(),
            macs: [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]],
            ips,
            exit: here(),
            back: here(),
            leaves: false,
        }
    }

    fn of_v4() -> Injection {
        injection([1, 2].map(|host| Ipv4Addr::new(10, 0, 0, host).into()))
    }

    fn of_v6() -> Injection {
        injection([1, 2].map(|host| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0xffff, 0xc0a8, host).into()))
    }

    /// The frame as the program writes it, whose UDP header begins at `udp`.
    fn frame(template: &Template, number: u64, udp: usize, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = template.header.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.truncate(udp + 8);
        bytes.resize(length, 0);
        let (source, destination) = template.ports(number);
        bytes[udp..udp + 2].copy_from_slice(&source.to_be_bytes());
        bytes[udp + 2..udp + 4].copy_from_slice(&destination.to_be_bytes());
        bytes[udp + 6..udp + 8].copy_from_slice(&template.checksum(source, destination).to_be_bytes());
        bytes
    }

    #[test]
    fn checksums_are_right() {
        let series = Series { length: 64, first_source: 1000, sources: 10, first_destination: 53, destinations: 3 };
        for (injection, udp) in [(of_v4(), 34), (of_v6(), 54)] {
            let template = datagrams(&injection, series);
            let addresses = 2 * octets(injection.ips[0]).len();
            for number in [0, 7, 29] {
                let frame = frame(&template, number, udp, 64);
                let pseudo = sum(&frame[udp - addresses..udp]) + u32::from(UDP) + sum(&frame[udp + 4..udp + 6]);
                assert_eq!(fold(pseudo + sum(&frame[udp..])), 0xffff, "of the datagram");
            }
        }
    }

    #[test]
    fn headers_are_as_they_should_be() {
        let series = Series { length: 64, first_source: 1000, sources: 1, first_destination: 53, destinations: 1 };
        let v4 = frame(&datagrams(&of_v4(), series), 0, 34, 64);
        assert_eq!((v4[12..16].to_vec(), v4[16..18].to_vec(), v4[23]), (vec![8, 0, 0x45, 0], vec![0, 50], UDP));
        assert_eq!(fold(sum(&v4[14..34])), 0xffff, "the checksum of the header");
        assert_eq!(v4[38..40], [0, 30]);
        let v6 = frame(&datagrams(&of_v6(), series), 0, 54, 64);
        assert_eq!((v6[12..15].to_vec(), v6[18..22].to_vec()), (vec![0x86, 0xdd, 0x60], vec![0, 10, UDP, 64]));
        assert_eq!((v6[22..24].to_vec(), v6[34..38].to_vec()), (vec![0xfd, 0], vec![0xc0, 0xa8, 0, 1]));
        assert_eq!(v6[58..60], [0, 10]);
    }

    #[test]
    fn asks_everybody_for_the_receiver() {
        let frame = frame(&Template { shape: SHAPE_FIXED, ..arp_requests(&of_v4()) }, 0, 34, 42);
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[12..14], [8, 6]);
        assert_eq!(frame[28..32], [10, 0, 0, 1]);
    }
}
