//! Forged frames: sent from one station, and seen wherever they arrive.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use nsnet::lab::RawSocket;
use nsnet_common::cases::frame::Frame;
use nsnet_common::wire::Mac;

use super::bed::{Bed, Station, growth};

/// Stands in the payload of forged frames, so that a copy is known even when it was changed on the way.
pub(crate) const MARK: &[u8] = b"nsnet network test";
/// In the payload of the frame that is sent last.
const END: &[u8] = b"nsnet end of shot ";
/// How long to wait for the last frame.
const PATIENCE: Duration = Duration::from_secs(3);
/// And then for a straggler: frames sent on two CPUs may overtake each other.
const STRAGGLERS: Duration = Duration::from_millis(15);

/// Where the frames of a shot arrived.
#[derive(Debug)]
pub(crate) struct Shot {
    /// By station, in the order of arrival.
    copies: BTreeMap<String, Vec<Vec<u8>>>,
    /// What the sender's port dropped, by reason.
    pub(crate) drops: BTreeMap<String, u64>,
}

impl Shot {
    /// The frames that arrived at a station.
    pub(crate) fn at(&self, name: &str) -> &[Vec<u8>] {
        let name = if name == "host" { super::bed::NETWORK } else { name };
        self.copies.get(name).map_or(&[], Vec::as_slice)
    }

    /// The stations that got any of the frames.
    pub(crate) fn receivers(&self) -> Vec<&str> {
        self.copies.iter().filter(|(_, frames)| !frames.is_empty()).map(|(name, _)| name.as_str()).collect()
    }

    /// Asserts that nobody got anything, and that each frame was dropped for this reason and no other.
    pub(crate) fn assert_dropped(&self, what: &str, reason: &str, frames: usize) {
        assert_eq!(self.receivers(), Vec::<&str>::new(), "{what}: it arrived");
        let expected = BTreeMap::from([(reason.to_owned(), frames as u64)]);
        assert_eq!(self.drops, expected, "{what}: dropped for what reason?");
    }
}

/// Sends `frames` as they are from the station `from`, and a broadcast after them that tells when all have come.
/// Every station of the bed listens, the sender too.
pub(crate) fn shoot(bed: &Bed, from: &str, frames: &[Vec<u8>]) -> Result<Shot> {
    static SHOTS: AtomicU32 = AtomicU32::new(0);
    let from = bed.at(from);
    let before = bed.drops()?;
    let listen = |station: &Station| station.run(|| RawSocket::open_promiscuous(&station.ifname));
    let sockets = bed.stations().iter().map(listen).collect::<Result<Vec<_>>>()?;

    let number = SHOTS.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let end = [END, &std::process::id().to_be_bytes(), &number].concat();
    let last = Frame::new(from.mac, Mac::BROADCAST).ipv4(from.v4.octets(), [255; 4]).udp(9, 9).append(&end).finish();
    let socket = from.run(|| RawSocket::open(&from.ifname))?;
    on_one_cpu(|| {
        frames.iter().chain([&last]).try_for_each(|frame| match socket.send(frame) {
            // The host is told when its own frame is dropped. What became of it is seen below.
            Err(error) if from.name == from.network && error.downcast_ref() == Some(&Errno::ENOBUFS) => Ok(()),
            sent => sent,
        })
    })?;

    let mut copies = BTreeMap::new();
    // Who is to hear the last frame first, so that there is nothing to wait for at the others.
    let is_audience = |station: &Station| station.network == from.network && station.name != from.name;
    let mut order: Vec<_> = bed.stations().iter().zip(&sockets).collect();
    order.sort_by_key(|(station, _)| !is_audience(station));
    for (station, socket) in order {
        let mut arrived = Vec::new();
        let is_ours = |bytes: &Vec<u8>| frames.contains(bytes) || contains(bytes, MARK);
        if is_audience(station) {
            let ended = socket.receive(PATIENCE, |frame| {
                arrived.extend(Some(frame.on_wire()).filter(is_ours));
                frame.bytes == last
            })?;
            ended.with_context(|| format!("{} never got the broadcast that ends the shot", station.name))?;
        }
        let stragglers = socket.collect(STRAGGLERS, |_| true)?;
        arrived.extend(stragglers.iter().map(nsnet::lab::Frame::on_wire).filter(is_ours));
        if !is_audience(station) {
            let heard = stragglers.iter().any(|frame| frame.bytes == last);
            assert!(!heard, "{} heard the broadcast of {} in {}", station.name, from.name, from.network);
        }
        copies.insert(station.name.clone(), arrived);
    }
    let drops = growth(&before, &bed.drops()?);
    let drops = drops.into_iter().filter(|((port, _), _)| *port == from.port);
    Ok(Shot { copies, drops: drops.map(|((_, reason), count)| (reason, count)).collect() })
}

/// Does `work` on one CPU: what is sent from another one meanwhile overtakes what waits at the first.
pub(crate) fn on_one_cpu<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let mut here = CpuSet::new();
    here.set(sched_getcpu()?)?;
    sched_setaffinity(this, &here)?;
    let done = work();
    sched_setaffinity(this, &allowed)?;
    done
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
