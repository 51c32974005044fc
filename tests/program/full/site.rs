//! The world with its programs loaded, and an eye on every frame's end.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use nsnet_common::cases::Hook;
use nsnet_common::cases::check::State;
use nsnet_common::cases::frame::Frame;
use nsnet_common::cases::sequence::flaw;
use nsnet_common::cases::world::{End, UPLINK, tables};
use nsnet_common::layout::{ForeignKey, MappingKey, PortCounters, PortId, StationKey, Usage};
use nsnet_common::memory::MemoryTables;
use nsnet_common::verdict::DropReason;

use crate::clock::steady;
use crate::machine::Machine;

/// How many frames were dropped at a port for a reason.
pub(super) type Drops = Vec<(PortId, DropReason, u64)>;

/// The programs, and what has been in their tables since the last look.
pub(super) struct Site {
    pub(super) machine: Machine,
    pub(super) before: State,
}

impl Site {
    /// The world, with tables of these sizes and what `setup` makes of it.
    pub(super) fn new(sizes: &[(&str, u32)], setup: impl Fn(&mut MemoryTables)) -> Result<Self> {
        let mut machine = Machine::with_sizes(true, sizes)?;
        let mut tables = tables(steady()?);
        setup(&mut tables);
        machine.fill(&tables)?;
        let before = machine.state()?;
        Ok(Self { machine, before })
    }

    pub(super) fn leaves(&mut self, end: &End, frame: Frame) -> Result<()> {
        self.machine.run(Hook::Namespace, end.id, &frame.finish(), 0).map(drop)
    }

    pub(super) fn comes(&mut self, frame: Frame) -> Result<()> {
        self.machine.run(Hook::Uplink, UPLINK.id, &frame.finish(), 0).map(drop)
    }

    /// What was dropped since the last look, and how many frames were not. Fails when a frame has had no end, or two.
    pub(super) fn look(&mut self) -> Result<(State, Drops, u64)> {
        let now = self.machine.state()?;
        let sum = |state: &State, of: fn(&PortCounters) -> u64| -> u64 { state.counters.values().map(of).sum() };
        let grown = |of: fn(&PortCounters) -> u64| sum(&now, of) - sum(&self.before, of);
        let mut dropped = Vec::new();
        for ((port, code), traffic) in &now.drops {
            let was = self.before.drops.get(&(*port, *code)).map_or(0, |traffic| traffic.packets);
            let reason = DropReason::from_code(*code).context("a reason that nobody knows")?;
            if traffic.packets != was {
                dropped.push((*port, reason, traffic.packets - was));
            }
        }
        let received = grown(|port| port.received.packets);
        let all_dropped: u64 = dropped.iter().map(|(_, _, count)| count).sum();
        let told: u64 = dropped.iter().filter(|(_, reason, _)| reason.notice().is_some()).map(|(_, _, n)| n).sum();
        let passed = received.checked_sub(all_dropped).context("more was dropped than came")?;
        let sent = grown(|port| port.sent.packets) + grown(|port| port.passed);
        ensure!(grown(|port| port.flooded) == 0, "something was flooded");
        // Some senders were told, of those that may be.
        ensure!((passed..=passed + told).contains(&sent), "{received} in, {all_dropped} dropped, {sent} sent");
        self.before = now.clone();
        Ok((now, dropped, passed))
    }

    /// Puts into the tables what `change` makes of what is in them.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut MemoryTables)) -> Result<()> {
        let mut tables = memory(self.machine.state()?, tables(steady()?));
        change(&mut tables);
        self.machine.fill(&tables)?;
        self.before = self.machine.state()?;
        Ok(())
    }

    /// Both directions of each flow are there, and quotas are what is held; `more` is counted and not there.
    pub(super) fn check(&mut self, more: (PortId, u64)) -> Result<()> {
        let mut tables = memory(self.machine.state()?, tables(steady()?));
        if let Some(usage) = tables.usage.get_mut().get_mut(&more.0) {
            usage.flows -= more.1;
        }
        tables.usage.get_mut().retain(|_, usage| *usage != Usage::default());
        let Map::HashMap(locks) = self.machine.take_map("LOCKS")? else { bail!("LOCKS is no hash") };
        let locks = HashMap::<MapData, MappingKey, u8>::try_from(Map::HashMap(locks))?;
        ensure!(locks.keys().next().is_none(), "a lock was never given back");
        flaw(&tables).map_or(Ok(()), |flaw| Err(anyhow!(flaw)))
    }
}

/// Tables with what a frame can change as it was found. What waits for first fragments is left out.
fn memory(found: State, tables: MemoryTables) -> MemoryTables {
    *tables.counters.borrow_mut() = found.counters;
    *tables.drops.borrow_mut() = found.drops;
    for ((network, mac), station) in found.stations {
        tables.stations.borrow_mut().insert(StationKey { network, mac }, station);
    }
    for ((port, place), mac) in found.foreign {
        tables.foreign.borrow_mut().insert(ForeignKey { port, place }, mac);
    }
    *tables.young.borrow_mut() = found.young;
    *tables.flows.borrow_mut() = found.flows;
    *tables.mappings.borrow_mut() = found.mappings;
    *tables.usage.borrow_mut() = found.usage;
    *tables.fragments.borrow_mut() = found.fragments;
    tables
}
