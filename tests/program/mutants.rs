//! Broken frames: memory and kernel must agree on each, whatever they make of it.

use anyhow::{Result, ensure};
use nsnet_common::cases::check::{State, run};
use nsnet_common::cases::mutate::{Mutant, Mutants};
use nsnet_common::cases::world;
use nsnet_common::memory::MemoryTables;
use nsnet_common::packet::Buffer;
use nsnet_tests::scratch::in_new_namespace;

use crate::clock::{LATE, in_time, monotonic};
use crate::machine::{Machine, Ran, is_taken};
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
            let (batch_of, others): (Vec<Mutant>, Vec<Mutant>) =
                (0..BATCH).map(|_| mutants.next_mutant()).partition(|mutant| is_taken(&mutant.frame));
            short += others.len();
            let (passed, lines) = in_time(|now| {
                let tables = tables_at(now);
                machine.fill(&tables)?;
                let mut passed = 0;
                for mutant in &batch_of {
                    tables.clock.set(monotonic()?);
                    let mut frame = Buffer { gso_size: mutant.gso_size, ..Buffer::new(mutant.frame.clone()) };
                    let outcome = run(mutant.hook, &mut frame, mutant.port, &tables);
                    let found = machine.run(mutant.hook, mutant.port, &mutant.frame, mutant.gso_size)?;
                    let expected = Ran { action: action(outcome), bytes: frame.bytes };
                    ensure!(found == expected, "{mutant:02x?}:\n{found:02x?}, in memory {outcome:?}");
                    passed += usize::from(outcome.is_ok());
                }
                Ok((passed, machine.state()?.differences(&State::of(&tables), LATE)))
            })?;
            ensure!(lines.is_empty(), "after batch {batch}, of {BATCH} frames:\n{}", lines.join("\n"));
            through += passed;
        }
        println!("{COUNT} mutants, {through} got through; {short} were too short or too long for BPF_PROG_TEST_RUN");
        Ok(())
    })
}
