//! Frames that are captured: what the programs tell of each, and that they do with it what they do else.

use anyhow::{Context as _, Result, ensure};
use aya::maps::of_maps::HashOfMaps;
use aya::maps::{Array, MapData, PerCpuArray, PerCpuValues, RingBuf};
use nsnet::kernel::capture::new_ring;
use nsnet_common::cases::check::{State, run};
use nsnet_common::cases::sequence::grow_old;
use nsnet_common::cases::{Hook, all, sequences};
use nsnet_common::layout::{Capture, Event, KEPT_BYTES, LastDrop, MAX_SNAPLEN, PortId, capture_modes, names};
use nsnet_common::memory::{MemoryTables, Shown};
use nsnet_common::packet::Buffer;
use nsnet_common::verdict::Outcome;
use nsnet_tests::scratch::in_new_namespace;
use zerocopy::FromBytes as _;

use crate::clock::{LATE, coarse, in_time, monotonic, steady};
use crate::machine::{Machine, Ran};
use crate::table::{action, why_not, why_not_all};

/// What the ring has room for.
const RING: u32 = 1 << 20;

/// A capture of what a machine does.
struct Camera {
    control: Array<MapData, Capture>,
    last_drops: PerCpuArray<MapData, LastDrop>,
    ring: RingBuf<MapData>,
    /// Kept, because the ring goes with it.
    _rings: HashOfMaps<MapData, u32, RingBuf<MapData>>,
}

impl Camera {
    fn new(machine: &mut Machine) -> Result<Self> {
        let ring = new_ring(RING)?;
        let mut rings: HashOfMaps<MapData, u32, RingBuf<MapData>> = machine.take_map(names::RINGS)?.try_into()?;
        rings.insert(0, &ring, 0)?;
        let control = machine.take_map(names::CAPTURE)?.try_into()?;
        let last_drops = machine.take_map(names::LAST_DROPS)?.try_into()?;
        Ok(Self { control, last_drops, ring, _rings: rings })
    }

    fn set(&mut self, modes: u32, snaplen: u32, until: u64) -> Result<()> {
        Ok(self.control.set(0, Capture { until, modes, snaplen, pid: 0, pad: 0 }, 0)?)
    }

    /// The events, each with the bytes behind it.
    fn events(&mut self) -> Result<Vec<(Event, Vec<u8>)>> {
        let mut events = Vec::new();
        while let Some(item) = self.ring.next() {
            let (event, bytes) = Event::read_from_prefix(&item).ok().context("an event is cut short")?;
            let bytes = bytes.get(..event.captured as usize).context("an event has not all its bytes")?;
            events.push((event, bytes.to_vec()));
        }
        Ok(events)
    }

    fn forget_drops(&mut self, tables: &MemoryTables) -> Result<()> {
        let cpus = self.last_drops.get(&0, 0)?.len();
        for reason in tables.last_drops.borrow().keys() {
            let none = PerCpuValues::try_from(vec![LastDrop::NONE; cpus])?;
            self.last_drops.set(u32::from(*reason), none, 0)?;
        }
        Ok(())
    }

    /// What of the last drops is not as in memory.
    fn other_drops(&self, tables: &MemoryTables, since: u64) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for (reason, (_, port, bytes)) in tables.last_drops.borrow().iter() {
            let cpus = self.last_drops.get(&u32::from(*reason), 0)?;
            let kept: Vec<LastDrop> = cpus.iter().copied().filter(|last| last.seen != 0).collect();
            let [last] = kept[..] else {
                lines.push(format!("{} CPUs have kept a drop of reason {reason}", kept.len()));
                continue;
            };
            let first = &bytes[..bytes.len().min(KEPT_BYTES)];
            let found = (last.port, last.length, &last.bytes[..usize::from(last.kept)]);
            // Copies for several ports may be dropped in the same moment: the first is kept, and memory has the last.
            if (found.1, found.2) != (bytes.len() as u32, first) || (found.0 == PortId::NONE) != (*port == PortId::NONE)
            {
                lines.push(format!("last drop: {found:02x?}, expected {port:?}, {} bytes: {first:02x?}", bytes.len()));
            }
            if !(since..since + LATE).contains(&last.seen) {
                lines.push(format!("last drop: seen at {}, expected {since}", last.seen));
            }
        }
        Ok(lines)
    }
}

/// What is told of a frame: its number, less that of the first; kind, reason and way out; its bytes.
type Told = (u64, u16, u16, u32, Vec<u8>);

fn in_kernel(events: &[(Event, Vec<u8>)]) -> Vec<Told> {
    let first = events.first().map_or(0, |(event, _)| event.number);
    let told = |(event, bytes): &(Event, Vec<u8>)| {
        (event.number - first, event.kind, event.reason, event.egress, bytes.clone())
    };
    events.iter().map(told).collect()
}

fn in_memory(shown: &[Shown]) -> Vec<Told> {
    let first = shown.first().map_or(0, |shown| shown.number);
    let told = |Shown { number, moment, bytes }: &Shown| {
        (number - first, moment.kind(), moment.reason(), moment.egress(), bytes.clone())
    };
    shown.iter().map(told).collect()
}

/// A frame, and what has become of it in memory.
struct Expected<'a> {
    hook: Hook,
    port: PortId,
    frame: &'a [u8],
    gso_size: u32,
    outcome: Outcome,
    left: Buffer,
}

/// Runs the frame and says what is not as in memory, whose `tables` are as they were left there.
fn differences(
    machine: &mut Machine,
    camera: &mut Camera,
    expected: &Expected<'_>,
    tables: &MemoryTables,
) -> Result<Vec<String>> {
    camera.forget_drops(tables)?;
    // Drops are dated by the coarse clock, which is late by as much as the machine's timer is.
    let (since, coarse_since) = (monotonic()?, coarse()?);
    let found = machine.run(expected.hook, expected.port, expected.frame, expected.gso_size)?;
    let mut lines = machine.state()?.differences(&State::of(tables), LATE);
    lines.extend(found.difference(&Ran { action: action(expected.outcome), bytes: expected.left.bytes.clone() }));
    let events = camera.events()?;
    let (told, wanted) = (in_kernel(&events), in_memory(&tables.shown.borrow()));
    if told != wanted {
        lines.push(format!("told: {told:02x?}, expected {wanted:02x?}"));
    }
    let ifindex = machine.ifindex(expected.port);
    for (event, bytes) in &events {
        let is_whole = event.length as usize == bytes.len() && u32::from(event.gso_size) == expected.gso_size;
        // What is made of a GSO frame may be none.
        if event.ifindex != ifindex || !(is_whole || event.gso_size == 0) || event.tag != [0; 4] {
            lines.push(format!("{event:?} is not of this frame"));
        }
        if !(since..since + LATE).contains(&event.time) {
            lines.push(format!("{event:?}, expected at {since}"));
        }
    }
    lines.extend(camera.other_drops(tables, coarse_since)?);
    Ok(lines)
}

#[test]
fn every_case_captured() -> Result<()> {
    in_new_namespace(|| {
        let mut machine = Machine::new(true)?;
        let mut camera = Camera::new(&mut machine)?;
        let (mut lines, mut frames, mut events) = (Vec::new(), 0, 0);
        for modes in [capture_modes::ALL, capture_modes::DROPS | capture_modes::NAT] {
            camera.set(modes, MAX_SNAPLEN, u64::MAX)?;
            for case in all() {
                if why_not(&case)?.is_some() {
                    continue;
                }
                let (told, found) = in_time(|now| {
                    let tables = case.tables(now);
                    machine.fill(&tables)?;
                    tables.capture_modes.set(modes);
                    let mut left = case.buffer();
                    let outcome = run(case.hook, &mut left, case.port, &tables);
                    let (hook, port, gso_size) = (case.hook, case.port, case.gso_size);
                    let expected = Expected { hook, port, frame: &case.frame, gso_size, outcome, left };
                    let found = differences(&mut machine, &mut camera, &expected, &tables)?;
                    Ok((tables.shown.borrow().len(), found))
                })?;
                events += told;
                lines.extend(found.into_iter().map(|line| format!("{}: {line}", case.name)));
                frames += 1;
            }
        }
        println!("{frames} frames, {events} events");
        ensure!(lines.is_empty(), "{} lines:\n{}", lines.len(), lines.join("\n"));
        Ok(())
    })
}

#[test]
fn every_sequence_captured() -> Result<()> {
    in_new_namespace(|| {
        let mut machine = Machine::new(true)?;
        let mut camera = Camera::new(&mut machine)?;
        let (mut lines, mut frames, mut events) = (Vec::new(), 0, 0);
        for (number, sequence) in sequences().into_iter().enumerate() {
            if why_not_all(&sequence)?.is_some() {
                continue;
            }
            let modes = if number % 2 == 0 { capture_modes::ALL } else { capture_modes::NAT };
            camera.set(modes, MAX_SNAPLEN, u64::MAX)?;
            let mut tables = sequence.tables(steady()?);
            for (number, step) in sequence.steps.iter().enumerate() {
                // Each attempt begins with what the step before has left.
                let (next, found) = in_time(|now| {
                    let mut tables = tables.clone();
                    let was = tables.clock.replace(now);
                    grow_old(&mut tables, -((now / 1_000_000_000 - was / 1_000_000_000) as i32));
                    step.prepare(&mut tables);
                    machine.fill(&tables)?;
                    tables.capture_modes.set(modes);
                    tables.shown.take();
                    tables.last_drops.take();
                    let (outcome, left) = step.run(&tables);
                    let (hook, port, gso_size) = (step.hook, step.port, step.gso_size);
                    let expected = Expected { hook, port, frame: &step.frame, gso_size, outcome, left };
                    let found = differences(&mut machine, &mut camera, &expected, &tables)?;
                    Ok((tables, found))
                })?;
                tables = next;
                events += tables.shown.borrow().len();
                lines.extend(found.into_iter().map(|line| format!("{}, frame {number}: {line}", sequence.name)));
                frames += 1;
            }
        }
        println!("{frames} frames, {events} events");
        ensure!(lines.is_empty(), "{} lines:\n{}", lines.len(), lines.join("\n"));
        Ok(())
    })
}

/// Who captures decides how much of a frame he gets, whatever that is for the ring.
#[test]
fn any_length_is_captured() -> Result<()> {
    in_new_namespace(|| {
        let mut machine = Machine::new(true)?;
        let mut camera = Camera::new(&mut machine)?;
        let longest = all().into_iter().filter(|case| matches!(why_not(case), Ok(None)));
        let case = longest.max_by_key(|case| case.frame.len()).context("there is no case")?;
        machine.fill(&case.tables(steady()?))?;
        let whole = case.frame.len() as u32;
        ensure!(whole > 2048, "the longest frame is only {whole} bytes long");
        for snaplen in [1, 2, 14, 254, 255, 256, 257, 2046, 2047, 2048, 2049, whole - 1, whole, whole + 1, MAX_SNAPLEN]
        {
            camera.set(capture_modes::ALL, snaplen, u64::MAX)?;
            machine.run(case.hook, case.port, &case.frame, case.gso_size)?;
            let events = camera.events()?;
            let (event, bytes) = events.first().with_context(|| format!("nothing is told with {snaplen}"))?;
            ensure!(event.length == whole, "{event:?} of {whole} bytes");
            ensure!(bytes[..] == case.frame[..snaplen.min(whole) as usize], "{} bytes of {snaplen}", bytes.len());
        }
        Ok(())
    })
}

/// A lease that is not renewed ends, and with the first frame after it all that a capture costs.
#[test]
fn a_killed_capture_ends_by_itself() -> Result<()> {
    in_new_namespace(|| {
        let mut machine = Machine::new(true)?;
        let mut camera = Camera::new(&mut machine)?;
        let case = all().into_iter().find(|case| matches!(why_not(case), Ok(None))).context("there is no case")?;
        machine.fill(&case.tables(steady()?))?;
        let until = monotonic()? + 3_600_000_000_000;
        camera.set(capture_modes::ALL, 64, until)?;
        machine.run(case.hook, case.port, &case.frame, case.gso_size)?;
        ensure!(!camera.events()?.is_empty(), "nothing is told");
        ensure!(camera.control.get(&0, 0)?.until == until, "the lease was changed");
        // An hour later, as it were: no frame has to be in time.
        let until = monotonic()?;
        camera.set(capture_modes::ALL, 64, until)?;
        while coarse()? <= until {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        machine.run(case.hook, case.port, &case.frame, case.gso_size)?;
        ensure!(camera.events()?.is_empty(), "it goes on after its end");
        ensure!(camera.control.get(&0, 0)?.until == 0, "the frames still pay for it");
        Ok(())
    })
}

/// What has no room is counted, and a frame whose first side is lost is not told of at all.
#[test]
fn a_full_ring_is_told() -> Result<()> {
    in_new_namespace(|| {
        let mut machine = Machine::new(true)?;
        let mut camera = Camera::new(&mut machine)?;
        let mut capturing: PerCpuArray<MapData, nsnet_common::layout::Capturing> =
            machine.take_map(names::CAPTURING)?.try_into()?;
        let is_answered = |outcome: &[Shown]| outcome.len() == 2;
        let case = all().into_iter().filter(|case| matches!(why_not(case), Ok(None))).find(|case| {
            let tables = case.tables(nsnet_common::cases::check::NOON);
            tables.capture_modes.set(capture_modes::ALL);
            let _outcome = run(case.hook, &mut case.buffer(), case.port, &tables);
            is_answered(&tables.shown.borrow())
        });
        let case = case.context("no case is shown twice")?;
        machine.fill(&case.tables(steady()?))?;
        camera.set(capture_modes::ALL, 64, u64::MAX)?;
        const FRAMES: u64 = 4000;
        for _ in 0..FRAMES {
            machine.run(case.hook, case.port, &case.frame, case.gso_size)?;
        }
        let events = camera.events()?;
        let lost: u64 = capturing.get(&0, 0)?.iter().map(|cpu| cpu.lost).sum();
        let (pairs, rest) = (events.len() as u64 / 2, events.len() % 2);
        println!("{pairs} pairs, {lost} events lost");
        // One event is lost for each frame, because its second is not tried; for one that may be the second.
        ensure!(lost > 0 && pairs + lost == FRAMES, "{pairs} and {lost} of {FRAMES}, {rest} alone");
        capturing.set(0, PerCpuValues::try_from(vec![Default::default(); capturing.get(&0, 0)?.len()])?, 0)?;
        Ok(())
    })
}
