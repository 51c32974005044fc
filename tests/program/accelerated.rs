//! The accelerator in the kernel: of every frame it must make what it makes in plain memory, where `cargo test` finds that to be
//! what the whole way makes, or nothing at all.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use nsnet::kernel::xdp::Side;
use nsnet_common::cases::accelerated::{has_one, offer, open};
use nsnet_common::cases::check::State;
use nsnet_common::cases::mutate::Mutants;
use nsnet_common::cases::sequence::grow_old;
use nsnet_common::cases::{Hook, all, sequences, world};
use nsnet_common::layout::{PortId, whole_seconds};
use nsnet_common::memory::MemoryTables;
use nsnet_tests::scratch::in_new_namespace;

use crate::clock::{LATE, in_time, steady};
use crate::machine::{Machine, Ran, is_taken};
use crate::table::{why_not, why_not_all};

/// `XDP_PASS`, `XDP_REDIRECT` (`linux/bpf.h`).
const PASS: u32 = 2;
const REDIRECT: u32 = 4;

/// Frames, and how many of them were taken.
#[derive(Default)]
struct Tally {
    frames: u32,
    taken: BTreeMap<Side, u64>,
    lines: Vec<String>,
}

/// The program at a hook.
fn side_of(hook: Hook) -> Option<Side> {
    match hook {
        Hook::Namespace => Some(Side::Namespace),
        Hook::Uplink => Some(Side::Uplink),
        Hook::Host | Hook::Refused(_) => None,
    }
}

impl Tally {
    /// Offers a frame in the kernel and in memory, each with the tables that `tables_at` makes of a time.
    fn offer(
        &mut self,
        machine: &mut Machine,
        name: &str,
        (side, hook, port): (Side, Hook, PortId),
        frame: &[u8],
        mut tables_at: impl FnMut(u64) -> MemoryTables,
    ) -> Result<()> {
        let (tables, found, taken) = in_time(|now| {
            let tables = tables_at(now);
            machine.fill(&tables)?;
            let before = machine.accelerated()?;
            let found = machine.accelerate(side, port, frame)?;
            Ok((tables, found, machine.accelerated()? - before))
        })?;
        let offered = offer(hook, port, frame, &tables);
        let expected = Ran { action: if offered.to.is_some() { REDIRECT } else { PASS }, bytes: offered.bytes };
        let mut lines = machine.state()?.differences(&offered.state, LATE);
        lines.extend(found.difference(&expected));
        let counted = u64::from(offered.to.is_some());
        lines.extend((taken != counted).then(|| format!("counted {taken} as taken, expected {counted}")));
        self.lines.extend(lines.into_iter().map(|line| format!("{name}: {line}")));
        self.frames += 1;
        *self.taken.entry(side).or_default() += counted;
        Ok(())
    }

    fn judge(self, least: &[(Side, u64)]) -> Result<()> {
        println!("{} frames offered, taken: {:?}", self.frames, self.taken);
        ensure!(self.lines.is_empty(), "{} lines:\n{}", self.lines.len(), self.lines.join("\n"));
        for (side, least) in least {
            let taken = self.taken.get(side).copied().unwrap_or_default();
            ensure!(taken >= *least, "of {side:?} only {taken} frames were taken");
        }
        Ok(())
    }
}

#[test]
fn every_case() -> Result<()> {
    in_new_namespace(|| {
        let (mut machine, mut tally) = (Machine::new(true)?, Tally::default());
        for case in all().into_iter().filter(|case| case.gso_size == 0) {
            if let (Some(side), None) = (side_of(case.hook), why_not(&case)?) {
                let tables_at = |now| {
                    let mut tables = case.tables(now);
                    open(&mut tables);
                    tables
                };
                tally.offer(&mut machine, &case.name, (side, case.hook, case.port), &case.frame, tables_at)?;
            }
        }
        tally.judge(&[(Side::Namespace, 20)])
    })
}

#[test]
fn every_sequence() -> Result<()> {
    in_new_namespace(|| {
        let (mut machine, mut tally) = (Machine::new(true)?, Tally::default());
        for sequence in sequences() {
            if why_not_all(&sequence)?.is_some() {
                continue;
            }
            let mut tables = sequence.tables(steady()?);
            open(&mut tables);
            for (number, step) in sequence.steps.iter().enumerate() {
                step.prepare(&mut tables);
                let side = side_of(step.hook).filter(|_side| step.gso_size == 0);
                if let Some(side) = side {
                    let name = format!("{}, frame {number}", sequence.name);
                    let at = |now| {
                        let was = tables.clock.replace(now);
                        grow_old(&mut tables, -((whole_seconds(now) - whole_seconds(was)) as i32));
                        tables.clone()
                    };
                    tally.offer(&mut machine, &name, (side, step.hook, step.port), &step.frame, at)?;
                }
                let _as_expected_elsewhere = step.run(&tables);
            }
        }
        tally.judge(&[(Side::Namespace, 20), (Side::Uplink, 10)])
    })
}

#[test]
fn five_thousand_mutants() -> Result<()> {
    const COUNT: usize = 5_000;
    in_new_namespace(|| {
        let (mut machine, mut mutants) = (Machine::new(true)?, Mutants::new(11));
        let (mut offered, mut taken) = (0, 0);
        let mut tables = world::tables(steady()?);
        open(&mut tables);
        machine.fill(&tables)?;
        let before = State::of(&tables);
        for mutant in (0..COUNT).map(|_| mutants.next_mutant()) {
            let Some(side) = side_of(mutant.hook).filter(|_side| has_one(mutant.hook) && is_taken(&mutant.frame))
            else {
                continue;
            };
            let found = machine.accelerate(side, mutant.port, &mutant.frame)?;
            let in_memory = offer(mutant.hook, mutant.port, &mutant.frame, &tables);
            let action = if in_memory.to.is_some() { REDIRECT } else { PASS };
            let expected = Ran { action, bytes: in_memory.bytes };
            ensure!(found == expected, "{mutant:02x?}:\n{found:02x?}, in memory {expected:02x?}");
            offered += 1;
            if in_memory.to.is_some() {
                taken += 1;
                machine.fill(&tables)?;
            }
        }
        // What was left has changed nothing.
        let lines = machine.state()?.differences(&before, LATE);
        let after_a_frame = lines.iter().filter(|line| !line.starts_with("counters")).count();
        ensure!(after_a_frame == 0, "{}", lines.join("\n"));
        println!("{offered} mutants, {taken} taken");
        ensure!(taken > 10, "only {taken} of {offered} were taken");
        Ok(())
    })
}
