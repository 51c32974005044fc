//! Broken frames: memory and kernel must agree on each, whatever they make of it.

use anyhow::{Result, ensure};
use nsnet_common::cases::check::{State, run};
use nsnet_common::cases::{mutate::Mutants, world};
use nsnet_common::memory::MemoryTables;
use nsnet_common::packet::Buffer;
use nsnet_tests::scratch::in_new_namespace;

use crate::machine::{LATE, Machine, Ran, is_taken, monotonic, steady};
use crate::table::action;

/// Frames between two looks at all tables.
const BATCH: usize = 50;

#[test]
fn twenty_thousand_mutants() -> Result<()> {
    agree(Mutants::new(2), world::tables)
}

/// A batch is as many as a port may be told of at once.
#[test]
fn twenty_thousand_refused_mutants() -> Result<()> {
    agree(Mutants::refused(4), world::tables)
}

fn agree(mut mutants: Mutants, tables_at: fn(u64) -> MemoryTables) -> Result<()> {
    const COUNT: usize = 20_000;
    in_new_namespace(move || {
        let mut machine = Machine::new(true)?;
        let (mut short, mut through) = (0, 0);
        for batch in 0..COUNT / BATCH {
            let tables = tables_at(monotonic()?);
            machine.fill(&tables)?;
            for _ in 0..BATCH {
                let mutant = mutants.next_mutant();
                if !is_taken(&mutant.frame) {
                    short += 1;
                    continue;
                }
                tables.clock.set(steady()?);
                let mut frame = Buffer { gso_size: mutant.gso_size, ..Buffer::new(mutant.frame.clone()) };
                let outcome = run(mutant.hook, &mut frame, mutant.port, &tables);
                let found = machine.run(mutant.hook, mutant.port, &mutant.frame, mutant.gso_size)?;
                let expected = Ran { action: action(outcome), bytes: frame.bytes };
                ensure!(found == expected, "{mutant:02x?}:\n{found:02x?}, in memory {outcome:?}");
                through += usize::from(outcome.is_ok());
            }
            let lines = machine.state()?.differences(&State::of(&tables), LATE);
            ensure!(lines.is_empty(), "after batch {batch}, of {BATCH} frames:\n{}", lines.join("\n"));
        }
        println!("{COUNT} mutants, {through} got through; {short} were too short or too long for BPF_PROG_TEST_RUN");
        Ok(())
    })
}
