//! Tables that are full. Each that packets can fill is filled by them, and then: what there is no room for is refused by
//! name, or goes on in a way that is said here; what there was before goes on; every frame is counted with one end; and
//! there is room again when something has died.
//!
//! Large tables are made smaller: how full one is makes no difference to the program that meets it.

mod site;

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::Map;
use nsnet::kernel::dataplane::open_object_with;
use nsnet::kernel::features::Features;
use nsnet_common::cases::Hook;
use nsnet_common::cases::check::State;
use nsnet_common::cases::frame::Frame;
use nsnet_common::cases::world::{
    AFAR_V4, AFAR_V6, BLUE, CYAN, End, FREE_V4, GOLD, GREEN, HOST, HOST_2, HOST_4, HOST_5, LIME, ORANGE, RED,
    ROUTER_MAC, SECRET, UPLINK, WHITE, stranger,
};
use nsnet_common::layout::{
    AGEING_NS, FOREIGN_PER_PORT, HELD_PER_PORT, MAX_DROP_COUNTERS, MAX_FLOWS_V4, MAX_FLOWS_V6, MAX_FRAGMENTS,
    MAX_PORTS, MAX_REASONS, MAX_STATIONS, MAX_YOUNG_FLOWS, PortId, Station, StationKey, Usage, names,
};
use nsnet_common::memory::MemoryTables;
use nsnet_common::verdict::DropReason;
use nsnet_common::wire::Mac;
use nsnet_tests::scratch::in_new_namespace;

use crate::clock::steady;
use site::Site;

/// What it is about a table that it is full.
enum Filling {
    /// An array: all entries are there from the beginning.
    Never,
    /// Only verbs make entries, and refuse what there is no room for before anything is changed.
    Verbs,
    /// Entries live only while a program runs: one for each CPU.
    Running,
    /// Packets make entries; this fills it.
    Packets(fn() -> Result<()>),
    /// Sockets of the host's make entries: network test `sockets::a_full_table_of_redirected_sockets`.
    Sockets,
}

/// Every table of the object.
const TABLES: [(&str, Filling); 36] = [
    (names::PORTS, Filling::Never),
    (names::NETWORKS, Filling::Never),
    (names::STATIONS, Filling::Packets(stations)),
    (names::FOREIGN, Filling::Packets(foreign)),
    (names::ADDRESSES, Filling::Verbs),
    (names::SUBNETS, Filling::Verbs),
    (names::COUNTERS, Filling::Never),
    (names::DROPS, Filling::Packets(drops)),
    (names::LAST_DROPS, Filling::Never),
    (names::CAPTURE_SECTION, Filling::Never),
    (names::RINGS, Filling::Verbs),
    (names::CAPTURING, Filling::Never),
    (names::FLOOD_CLOCKS, Filling::Never),
    (names::REFUSAL_CLOCKS, Filling::Never),
    (names::UPLINKS, Filling::Verbs),
    (names::POLICIES, Filling::Never),
    (names::FLOWS4, Filling::Packets(|| grown(true))),
    (names::FLOWS6, Filling::Packets(|| grown(false))),
    (names::YOUNG4, Filling::Packets(|| young(true))),
    (names::YOUNG6, Filling::Packets(|| young(false))),
    (names::MAPPINGS, Filling::Packets(mappings)),
    ("LOCKS", Filling::Running),
    (names::USAGE, Filling::Never),
    (names::PUBLISHED, Filling::Verbs),
    (names::PUBLISHES, Filling::Never),
    (names::PUBLISH_HITS, Filling::Never),
    (names::LOCALS, Filling::Verbs),
    (names::ORIGINALS, Filling::Sockets),
    (names::STAGES, Filling::Never),
    (names::FRAGMENTS, Filling::Packets(fragments)),
    (names::HELD, Filling::Packets(held)),
    (names::HOLDING, Filling::Never),
    ("HELD_HERE", Filling::Never),
    (names::XDP_PORTS, Filling::Never),
    (names::ACCELERATED, Filling::Never),
    ("RECLAIMED", Filling::Never),
];

/// What programs have for themselves alone, and the compiler for them.
fn is_own(name: &str) -> bool {
    name == "SCRATCH" || name.starts_with(".rodata") || name.starts_with(".bss")
}

#[test]
fn every_table_is_known_here() -> Result<()> {
    in_new_namespace(|| {
        let ebpf = open_object_with(Features::probe(), SECRET, &[])?;
        let mut found = BTreeSet::new();
        for (name, map) in ebpf.maps().filter(|(name, _)| !is_own(name)) {
            let filling = TABLES.iter().find(|(known, _)| *known == name).map(|(_, filling)| filling);
            let filling = filling.with_context(|| format!("nobody has said what happens when {name} is full"))?;
            let is_array = matches!(map, Map::Array(_) | Map::PerCpuArray(_) | Map::ProgramArray(_) | Map::DevMap(_));
            ensure!(is_array == matches!(filling, Filling::Never), "{name}: array or not?");
            found.insert(name);
        }
        for name in names::MAPS.map(names::in_object).into_iter().chain(TABLES.map(|(name, _)| name)) {
            ensure!(found.contains(name), "the object has no {name}");
        }
        Ok(())
    })
}

#[test]
fn every_table_that_packets_fill() -> Result<()> {
    let mut flaws = Vec::new();
    let mut filled = 0;
    for (name, filling) in TABLES {
        if let Filling::Packets(fill) = filling {
            flaws.extend(in_new_namespace(fill).err().map(|error| format!("{name} is full: {error:#}")));
            filled += 1;
        }
    }
    println!("{filled} tables filled");
    ensure!(flaws.is_empty(), "{}", flaws.join("\n"));
    Ok(())
}

/// A datagram out of a namespace to a server afar.
fn asks(end: &End, host: &End, is_v4: bool, from: u16, to: u16) -> Frame {
    let frame = end.to(host);
    let frame = if is_v4 { frame.ipv4(end.ipv4, AFAR_V4) } else { frame.ipv6(end.ipv6, AFAR_V6) };
    frame.udp(from, to).payload(18)
}

/// The server's answer, to a namespace whose packets leave as they are.
fn answers(end: &End, is_v4: bool, from: u16, to: u16) -> Frame {
    let frame = Frame::new(ROUTER_MAC, UPLINK.mac);
    let frame = if is_v4 { frame.ipv4(AFAR_V4, end.ipv4) } else { frame.ipv6(AFAR_V6, end.ipv6) };
    frame.udp(from, to).payload(18)
}

/// Sweeping is tried once a second at most.
const PAUSE: Duration = Duration::from_millis(1100);

/// The last flows that fit are established; one more stays young, and goes on so. New ones are refused until some die.
fn grown(is_v4: bool) -> Result<()> {
    const FLOWS: u16 = 32;
    let (name, limit, total) = match is_v4 {
        true => (names::FLOWS4, MAX_FLOWS_V4, PortId::NONE),
        false => (names::FLOWS6, MAX_FLOWS_V6, PortId(MAX_PORTS as u16 - 1)),
    };
    // The others of the million are not there, but counted.
    let others = u64::from(limit) - u64::from(FLOWS);
    let mut site = Site::new(&[(name, 2 * u32::from(FLOWS))], |tables| {
        tables.usage.borrow_mut().insert(total, Usage { flows: others, ports: 0 });
    })?;
    let ask = |from| asks(&CYAN, &HOST_2, is_v4, from, 4000);
    let answer = |to| answers(&CYAN, is_v4, 4000, to);
    let refused = vec![(CYAN.id, DropReason::TableFull, 1)];
    for port in 1000..=1000 + FLOWS {
        site.leaves(&CYAN, ask(port))?;
    }
    for port in 1000..=1000 + FLOWS {
        site.comes(answer(port))?;
    }
    let last = 1000 + FLOWS;
    let (state, dropped, passed) = site.look()?;
    ensure!(dropped.is_empty() && passed == 2 * (u64::from(FLOWS) + 1), "{dropped:?}, {passed} passed");
    ensure!((state.flows.len(), state.young.len()) == (2 * usize::from(FLOWS), 2), "not one flow is left young");
    site.leaves(&CYAN, ask(last))?;
    site.comes(answer(last))?;
    site.leaves(&CYAN, ask(1000))?;
    ensure!(site.look()?.1.is_empty(), "a flow that there was does not go on");
    site.leaves(&CYAN, ask(2000))?;
    ensure!(site.look()?.1 == refused, "a flow that there is no room for is not refused");
    site.check((total, others))?;

    let die = |tables: &mut MemoryTables| {
        tables.flows.get_mut().values_mut().for_each(|flow| (flow.about.seen, flow.about.timeout) = (1, 1));
    };
    site.change(die)?;
    sleep(PAUSE);
    // This one sweeps, and comes too early itself.
    site.leaves(&CYAN, ask(2001))?;
    let (state, dropped, _) = site.look()?;
    ensure!(dropped == refused && state.flows.is_empty(), "{dropped:?}, {} entries", state.flows.len());
    site.leaves(&CYAN, ask(2002))?;
    site.comes(answer(2002))?;
    site.comes(answer(last))?;
    let (state, dropped, _) = site.look()?;
    ensure!(dropped.is_empty() && state.flows.len() == 4, "{dropped:?}, {} entries", state.flows.len());
    ensure!(state.usage.get(&total).map(|usage| usage.flows) == Some(others + 2), "{:?}", state.usage);
    Ok(())
}

/// New flows push out the oldest of those that nobody has answered; established ones are none of them.
fn young(is_v4: bool) -> Result<()> {
    let mut site = Site::new(&[], |_| {})?;
    let ask = |from| asks(&CYAN, &HOST_2, is_v4, from, 4000);
    let answer = |to| answers(&CYAN, is_v4, 4000, to);
    site.leaves(&CYAN, ask(500))?;
    site.comes(answer(500))?;
    // Two entries each: half as many as this fill it.
    let (first, last) = (1000, 51_000);
    for port in first..=last {
        site.leaves(&CYAN, ask(port))?;
    }
    let (state, dropped, passed) = site.look()?;
    ensure!(dropped.is_empty() && passed == u64::from(last - first) + 3, "{dropped:?}, {passed} passed");
    ensure!(state.young.len() <= MAX_YOUNG_FLOWS as usize, "{} entries", state.young.len());
    ensure!(state.young.len() > MAX_YOUNG_FLOWS as usize * 9 / 10, "it was not full: {}", state.young.len());
    // Kept: the established one, and the last.
    site.comes(answer(500))?;
    site.comes(answer(last))?;
    let (state, dropped, _) = site.look()?;
    ensure!(dropped.is_empty() && state.flows.len() == 4, "{dropped:?}, {} established", state.flows.len());
    // Forgotten: an answer to it comes unasked. Asked again, it is a flow again.
    site.comes(answer(first))?;
    ensure!(site.look()?.1 == [(UPLINK.id, DropReason::DirectAccess, 1)], "an answer to what was forgotten");
    site.leaves(&CYAN, ask(first))?;
    site.comes(answer(first))?;
    ensure!(site.look()?.1.is_empty(), "what was forgotten cannot begin anew");
    Ok(())
}

/// An endpoint that there is no room for is refused, and half of it is not left; those that have a port keep it.
fn mappings() -> Result<()> {
    const ENDPOINTS: u16 = 32;
    // One entry too few for one more.
    let mut site = Site::new(&[(names::MAPPINGS, 2 * u32::from(ENDPOINTS) + 1)], |_| {})?;
    let ask = |number: u16, to| asks(&RED, &HOST, number.is_multiple_of(2), 1000 + number, to);
    let refused = vec![(RED.id, DropReason::TableFull, 1)];
    for number in 0..ENDPOINTS {
        site.leaves(&RED, ask(number, 4000))?;
    }
    let (state, dropped, _) = site.look()?;
    ensure!(dropped.is_empty() && state.mappings.len() == 2 * usize::from(ENDPOINTS), "{dropped:?}");
    for number in [ENDPOINTS, ENDPOINTS + 1] {
        site.leaves(&RED, ask(number, 4000))?;
        let (state, dropped, _) = site.look()?;
        ensure!(dropped == refused && state.mappings.len() == 2 * usize::from(ENDPOINTS), "{dropped:?}");
    }
    site.leaves(&RED, ask(0, 4001))?;
    site.leaves(&RED, ask(1, 4001))?;
    ensure!(site.look()?.1.is_empty(), "an endpoint that has a port gets no further");
    site.check((PortId::NONE, 0))?;

    site.change(|tables| tables.mappings.get_mut().values_mut().for_each(|mapping| mapping.until = 1))?;
    sleep(PAUSE);
    site.leaves(&RED, ask(100, 4000))?;
    let (state, dropped, _) = site.look()?;
    ensure!(dropped == refused && state.mappings.is_empty(), "{dropped:?}, {} entries", state.mappings.len());
    site.leaves(&RED, ask(100, 4000))?;
    let (state, dropped, _) = site.look()?;
    ensure!(dropped.is_empty() && state.mappings.len() == 2, "{dropped:?}, {} entries", state.mappings.len());
    Ok(())
}

/// From a station behind a learning port to red.
fn of_station(mac: Mac) -> Frame {
    Frame::new(mac, RED.mac).ipv4(FREE_V4, RED.ipv4).udp(1, 2).payload(18)
}

/// Whether a station can have been silent for long enough.
fn can_age() -> Result<bool> {
    let is_long = steady()? > 2 * AGEING_NS;
    if !is_long {
        println!("the machine was started too lately for a station to have aged: that is left out");
    }
    Ok(is_long)
}

/// Makes the station number `n` of `end` one that was last heard long ago.
fn age(tables: &mut MemoryTables, end: &End, n: u8) {
    let heard = tables.clock.get() - 2 * AGEING_NS;
    let key = StationKey { network: end.network, mac: stranger(n) };
    tables.stations.get_mut().insert(key, Station::learned(end.id, heard));
}

/// A station that there is no room for is refused; one that is silent for long makes room behind its port.
fn stations() -> Result<()> {
    // One more is blue's, which the user has set.
    let mut site = Site::new(&[(names::STATIONS, 33)], |_| {})?;
    ensure!(site.before.stations.len() == 1);
    overflow(&mut site, (&ORANGE, 0, 32), (&ORANGE, 32))
}

/// The same of the places that stations have. As many as all ports together may have there are.
fn foreign() -> Result<()> {
    const _: () = assert!(MAX_STATIONS >= MAX_PORTS * (1 + FOREIGN_PER_PORT as u32));
    let mut site = Site::new(&[(names::FOREIGN, 48)], |_| {})?;
    for n in 0..40 {
        site.leaves(&ORANGE, of_station(stranger(n)))?;
    }
    overflow(&mut site, (&GREEN, 40, 48), (&GREEN, 48))
}

/// Stations of these numbers are heard, for which there is room, and then one for which there is none.
fn overflow(site: &mut Site, (end, first, past): (&End, u8, u8), (late, n): (&End, u8)) -> Result<()> {
    for n in first..past {
        site.leaves(end, of_station(stranger(n)))?;
    }
    ensure!(site.look()?.1.is_empty(), "a station for which there is room is refused");
    for n in [n, n + 1] {
        site.leaves(late, of_station(stranger(n)))?;
        ensure!(site.look()?.1 == [(late.id, DropReason::TableFull, 1)], "a station too many");
    }
    site.leaves(end, of_station(stranger(first)))?;
    site.leaves(&RED, RED.to(&BLUE).ipv4(RED.ipv4, BLUE.ipv4).udp(1, 2).payload(18))?;
    ensure!(site.look()?.1.is_empty(), "who was there is refused");
    if can_age()? {
        site.change(|tables| age(tables, end, first))?;
        site.leaves(end, of_station(stranger(n)))?;
        let (state, dropped, _) = site.look()?;
        ensure!(dropped.is_empty() && state.stations.contains_key(&(end.network, stranger(n))), "{dropped:?}");
    }
    Ok(())
}

/// There is room for every reason at every port. Were there none, frames would be dropped as ever, and not be counted.
fn drops() -> Result<()> {
    const _: () = assert!(MAX_DROP_COUNTERS >= MAX_PORTS * MAX_REASONS);
    ensure!(DropReason::ALL.iter().all(|reason| u32::from(reason.code()) < MAX_REASONS));
    let mut site = Site::new(&[(names::DROPS, 4)], |_| {})?;
    let forged = |end: &End| Frame::new(stranger(1), HOST.mac).ipv4(end.ipv4, HOST.ipv4).udp(1, 2).payload(18).finish();
    let mut actions = BTreeSet::new();
    for end in [&RED, &BLUE, &CYAN, &WHITE, &LIME, &GOLD] {
        actions.insert(site.machine.run(Hook::Namespace, end.id, &forged(end), 0)?.action);
    }
    let state = site.machine.state()?;
    ensure!(actions.len() == 1 && state.drops.len() == 4, "{actions:?}, {} counters", state.drops.len());
    let first = site.machine.run(Hook::Namespace, RED.id, &forged(&RED), 0)?.action;
    ensure!(actions.contains(&first));
    site.machine.run(Hook::Namespace, RED.id, &RED.udp4(&BLUE).finish(), 0)?;
    let state = site.machine.state()?;
    let code = DropReason::SpoofedMac.code();
    ensure!(state.drops.get(&(RED.id, code)).map(|traffic| traffic.packets) == Some(2), "{:?}", state.drops);
    ensure!(state.counters.get(&BLUE.id).map(|port| port.sent.packets) == Some(1), "what is no drop is one now");
    // As when a port goes: `reset_counters`.
    site.change(|tables| tables.drops.get_mut().retain(|key, _| *key != (RED.id, code)))?;
    site.machine.run(Hook::Namespace, GOLD.id, &forged(&GOLD), 0)?;
    ensure!(site.machine.state()?.drops.contains_key(&(GOLD.id, code)), "there is room, and it is not counted");
    Ok(())
}

/// A fragment of red's packet number `n`: each goes to another host.
fn fragment(n: u16, is_first: bool) -> Frame {
    let [high, low] = n.to_be_bytes();
    let frame = RED.to(&HOST).ipv4(RED.ipv4, [172, 16, high, low]).fragment_v4(if is_first { 0 } else { 6 }, is_first);
    if is_first { frame.udp(3000, 4000).payload(40) } else { frame.protocol(17, &[0; 8]).payload(40) }
}

/// New first fragments push out the oldest, whose later ones wait in vain from then on, as after a loss on a wire.
fn fragments() -> Result<()> {
    let mut site = Site::new(&[], |_| {})?;
    let last = MAX_FRAGMENTS as u16 + 4000;
    for n in 0..=last {
        site.leaves(&RED, fragment(n, true))?;
    }
    let (state, dropped, passed) = site.look()?;
    ensure!(dropped.is_empty() && passed == u64::from(last) + 1, "{dropped:?}, {passed} passed");
    let entries = state.fragments.len();
    ensure!((MAX_FRAGMENTS as usize * 9 / 10..=MAX_FRAGMENTS as usize).contains(&entries), "{entries} entries");
    site.leaves(&RED, fragment(last, false))?;
    ensure!(site.look()?.1.is_empty(), "the last packet's next fragment has nobody to follow");
    site.leaves(&RED, fragment(0, false))?;
    ensure!(site.look()?.1 == [(RED.id, DropReason::FragmentUnknown, 1)], "the first packet's next fragment");
    Ok(())
}

/// Fragments that wait push out the oldest of their port, and of all ports when there are too many; that was counted as
/// dropped when it began to wait.
fn held() -> Result<()> {
    const PLACES: usize = 128;
    let mut site = Site::new(&[(names::HELD, PLACES as u32)], |_| {})?;
    let many = 3 * HELD_PER_PORT;
    for n in 0..many {
        site.leaves(&RED, fragment(n, false))?;
    }
    let (state, dropped, _) = site.look()?;
    ensure!(dropped == [(RED.id, DropReason::FragmentUnknown, u64::from(many))], "{dropped:?}");
    ensure!(state.held.len() <= usize::from(HELD_PER_PORT), "{} wait for one port", state.held.len());
    for (end, host) in [(&CYAN, &HOST_2), (&LIME, &HOST_4), (&GOLD, &HOST_5)] {
        for n in 0..many {
            let frame = Frame::new(end.mac, host.mac).ipv4(end.ipv4, [172, 16, 0, n as u8]).fragment_v4(6, false);
            site.leaves(end, frame.protocol(17, &[0; 8]).payload(40))?;
        }
        let (state, dropped, _) = site.look()?;
        ensure!(dropped == [(end.id, DropReason::FragmentUnknown, u64::from(many))], "{dropped:?}");
        ensure!(state.held.len() <= PLACES, "{} wait", state.held.len());
    }
    // What waits still goes on behind its first one: both come in again, and count as if they had not been there.
    site.leaves(&RED, fragment(1000, false))?;
    ensure!(site.look()?.1 == [(RED.id, DropReason::FragmentUnknown, 1)]);
    let before = site.machine.state()?;
    site.leaves(&RED, fragment(1000, true))?;
    let after = site.machine.state()?;
    let dropped = |state: &State| state.drops[&(RED.id, DropReason::FragmentUnknown.code())].packets;
    ensure!(dropped(&before) - dropped(&after) == 1, "what waited is still counted as dropped");
    let received = |state: &State| state.counters[&RED.id].received.packets;
    ensure!(received(&before) - received(&after) == 1, "what comes in again was counted twice");
    ensure!(before.held.len() - after.held.len() == 1);
    Ok(())
}
