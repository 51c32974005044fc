//! Two packets at the same moment on two CPUs, thousands of times (conformance P7): what `races` of nsnet-common tries in
//! every order, in the kernel as it happens.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use nsnet_common::cases::sequence::flaw_of;
use nsnet_common::cases::world::{BLUE, End, HOST, RED, tables};
use nsnet_common::layout::{NetworkId, PortId};
use nsnet_common::verdict::DropReason;
use nsnet_tests::scratch::in_new_namespace;

use crate::clock::monotonic;
use crate::line::{Far, Line, Pair, Sent};
use crate::machine::Machine;

/// Rounds between two looks at all tables. The young flows of all must have room.
const ROUNDS: u32 = 2000;
/// Looks for each kind of race.
const LOOKS: u32 = 5;

/// What both CPUs send in a round: who, and from which port to which host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The same packet.
    Same,
    /// From one port to two hosts.
    TwoHosts,
    /// Two namespaces, from the same port to the same host.
    TwoSenders,
}

impl Kind {
    fn sender(self, cpu: usize) -> &'static End {
        if self == Self::TwoSenders && cpu == 1 { &BLUE } else { &RED }
    }

    fn pair(self, cpu: usize, round: u32) -> Pair {
        let mut far: Far = [0; 16];
        let host = if self == Self::TwoHosts { 9 + cpu as u8 } else { 9 };
        far[..4].copy_from_slice(&[198, 51, 100, host]);
        Pair { near: 40_000 + round as u16, far: (far, 80) }
    }
}

/// Meets the other thread: both go on at once.
struct Start(AtomicU32);

impl Start {
    fn meet(&self, round: u32) {
        self.0.fetch_add(1, Ordering::AcqRel);
        while self.0.load(Ordering::Acquire) < 2 * (round + 1) {
            std::hint::spin_loop();
        }
    }
}

/// The CPUs that the test may have.
fn cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

fn pin_to(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Runs all rounds of one kind on two CPUs; what became of each packet.
fn race(machine: &Machine, kind: Kind, is_tcp: bool, cpus: [usize; 2]) -> Result<[Vec<Sent>; 2]> {
    let start = Start(AtomicU32::new(0));
    let run = |place: usize| -> Result<Vec<Sent>> {
        pin_to(cpus[place])?;
        let mut line = Line::new(machine, kind.sender(place), &HOST, false, is_tcp);
        let rounds = (0..ROUNDS).map(|round| {
            let pair = kind.pair(place, round);
            start.meet(round);
            line.send(pair, false)
        });
        // Every round, so that the other one is not left waiting.
        let sent: Vec<Result<Sent>> = rounds.collect();
        sent.into_iter().collect()
    };
    thread::scope(|scope| {
        let threads = [0, 1].map(|place| scope.spawn(move || run(place)));
        let [first, second] = threads.map(|thread| thread.join().expect("no panic"));
        Ok([first?, second?])
    })
}

#[test]
fn each_flow_is_made_once_and_each_port_given_once() -> Result<()> {
    let all = cpus()?;
    let [first, second, ..] = all[..] else {
        println!("not tried: there is one CPU");
        return Ok(());
    };
    in_new_namespace(|| {
        let mut machine = Machine::new(true)?;
        for is_tcp in [true, false] {
            for kind in [Kind::Same, Kind::TwoHosts, Kind::TwoSenders] {
                let mut kept = [0, 0];
                for _ in 0..LOOKS {
                    machine.fill(&tables(monotonic()?))?;
                    let sent = race(&machine, kind, is_tcp, [first, second])?;
                    judge(&machine, kind, is_tcp, &sent)?;
                    for (kept, sent) in kept.iter_mut().zip(&sent) {
                        let own = |(round, sent): &(usize, &Sent)| **sent == Sent::As(40_000 + *round as u16);
                        *kept += sent.iter().enumerate().filter(own).count();
                    }
                }
                println!("TCP {is_tcp}, {kind:?}: {} rounds, ports kept on each CPU {kept:?}", LOOKS * ROUNDS);
                if kind == Kind::TwoSenders {
                    ensure!(kept.iter().all(|count| *count > 0), "one CPU was always first: no race at all");
                }
            }
        }
        Ok(())
    })
}

fn judge(machine: &Machine, kind: Kind, is_tcp: bool, sent: &[Vec<Sent>; 2]) -> Result<()> {
    let state = machine.state()?;
    if let Some(flaw) = flaw_of(&state, (monotonic()? / 1_000_000_000) as u32) {
        anyhow::bail!("TCP {is_tcp}, {kind:?}: {flaw}");
    }
    let rounds = ROUNDS as usize;
    let senders = if kind == Kind::TwoSenders { 2 } else { 1 };
    let flows = if kind == Kind::Same { rounds } else { 2 * rounds };
    let mappings = if is_tcp { 0 } else { senders * rounds };
    // On a busy machine the second packet may come more than a second after the first: the flow is grown then.
    let found = (state.young.len() + state.flows.len(), state.mappings.len());
    ensure!(found == (2 * flows, 2 * mappings), "TCP {is_tcp}, {kind:?}: {found:?}, dropped {:?}", state.drops);
    let held: u64 = state.usage.values().map(|usage| usage.ports).sum();
    ensure!(held == mappings as u64, "{held} ports are counted, {mappings} held");
    ensure!(state.drops.is_empty(), "dropped: {:?}", named(&state.drops));
    for (round, (first, second)) in sent[0].iter().zip(&sent[1]).enumerate() {
        let is_right = match kind {
            Kind::Same | Kind::TwoHosts if !is_tcp => first == second,
            Kind::Same => first == second,
            // TCP may share a port between two hosts.
            Kind::TwoHosts => true,
            Kind::TwoSenders => first != second,
        };
        ensure!(is_right, "TCP {is_tcp}, {kind:?}, round {round}: {first:?} and {second:?}");
    }
    // What left is what the tables say.
    let outside = state.young.keys().chain(state.flows.keys()).filter(|key| key.side == NetworkId::OUTSIDE);
    let held: BTreeSet<u16> = outside.map(|key| u16::from_be_bytes(key.destination_port)).collect();
    let left = sent.iter().flatten().all(|sent| matches!(sent, Sent::As(port) if held.contains(port)));
    ensure!(left, "something left by a port that no flow has");
    Ok(())
}

fn named<T>(drops: &BTreeMap<(PortId, u16), T>) -> Vec<Option<&'static str>> {
    drops.keys().map(|(_, code)| DropReason::from_code(*code).map(DropReason::label)).collect()
}
