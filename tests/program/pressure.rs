//! More flows than there is room for: whoever is there stays, whoever comes is told (conformance P1 and P2, RFC 6888 REQ-11).

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nsnet_common::cases::Hook;
use nsnet_common::cases::frame::Frame;
use nsnet_common::cases::world::{
    AFAR_V4, AFAR_V6, BLUE, End, GREEN, HOST, HOST_4, LIME, PURPLE, RED, ROUTER_MAC, UPLINK, tables,
};
use nsnet_common::layout::{MAX_FLOWS_V4, MAX_YOUNG_FLOWS, Policy, PortId, Usage};
use nsnet_common::verdict::DropReason;
use nsnet_tests::scratch::in_new_namespace;

use crate::clock::monotonic;
use crate::line::{Far, Line, Pair, Sent};
use crate::machine::{Machine, Seen};
use crate::table::{REDIRECT, UNSPEC};

/// Who has flows, and the gateway of each.
const OWNERS: [(&End, &End); 4] = [(&RED, &HOST), (&BLUE, &HOST), (&PURPLE, &HOST), (&LIME, &HOST_4)];
/// Established flows of each: half of them TCP, half UDP.
const EACH: u32 = 250_000;
/// The same of IPv6, TCP only.
const EACH_V6: u32 = 5_000;
/// Flows of each that are tried then.
const MORE: u32 = 250_000;
/// Hosts that one port of a namespace speaks to.
const HOSTS: u32 = 250;

/// Speaker number `n` of the owner at `place`, who speaks from a port of its own to one of the hosts.
fn pair(place: usize, n: u32, far: u16, v6: bool) -> Pair {
    let near = 40_000 + 2_000 * place as u16 + (n / HOSTS) as u16;
    let mut ip: Far = AFAR_V6;
    if v6 {
        ip[15] = (n % HOSTS) as u8;
    } else {
        ip[..4].copy_from_slice(&[172, 16, 1, (n % HOSTS) as u8]);
    }
    Pair { near, far: (ip, far) }
}

/// Runs `work` for each owner, on two threads.
fn for_owners<R: Send>(work: impl Fn(usize, &'static End, &'static End) -> Result<R> + Sync) -> Result<Vec<R>> {
    let half = |places: [usize; 2]| -> Result<Vec<R>> {
        places.into_iter().map(|place| work(place, OWNERS[place].0, OWNERS[place].1)).collect()
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| half([2, 3]));
        let mut all = half([0, 1])?;
        all.extend(other.join().expect("no panic")?);
        Ok(all)
    })
}

/// Of the flows that were opened at first, one in `step` takes a packet each way, by the port that it had then.
fn stand(machine: &Machine, step: usize) -> Result<()> {
    for_owners(|place, end, gateway| {
        for (is_tcp, v6, count) in [(true, false, EACH / 2), (false, false, EACH / 2), (true, true, EACH_V6)] {
            let mut line = Line::new(machine, end, gateway, v6, is_tcp);
            for n in (0..count).step_by(step) {
                let pair = pair(place, n, 80, v6);
                line.check(pair, pair.near)?;
            }
        }
        Ok(())
    })
    .map(|_all| ())
}

#[test]
fn a_million_flows_survive_a_million_more() -> Result<()> {
    in_new_namespace(|| {
        let mut machine = Machine::new(true)?;
        machine.fill(&tables(monotonic()?))?;
        let machine = &machine;
        let empty = machine.flow_memory()?;
        let mut began = Instant::now();
        let mut took = |what: &str| {
            println!("{what}: {:.1} s", began.elapsed().as_secs_f32());
            began = Instant::now();
        };
        for_owners(|place, end, gateway| {
            for (is_tcp, v6, count) in [(true, false, EACH / 2), (false, false, EACH / 2), (true, true, EACH_V6)] {
                let mut line = Line::new(machine, end, gateway, v6, is_tcp);
                for n in 0..count {
                    let pair = pair(place, n, 80, v6);
                    let sent = line.open(pair)?;
                    ensure!(sent == Sent::As(pair.near), "{pair:?} of {}: {sent:?}", end.name);
                }
            }
            Ok(())
        })?;
        took("1,000,000 flows of IPv4 and 20,000 of IPv6 established");
        for (end, _) in OWNERS {
            ensure!(machine.usage_of(end.id)?.flows == u64::from(EACH + EACH_V6));
        }
        let all = PortId::NONE;
        ensure!(machine.usage_of(all)?.flows == 4 * u64::from(EACH));
        let full = machine.flow_memory()?;
        let [flow, mappings] = [0, 1].map(|table| (full[table] - empty[table]) as f64 / f64::from(4 * EACH));
        println!("memory for a flow of IPv4: {flow:.1} bytes, and {mappings:.1} of mappings, {HOSTS} flows on each");
        ensure!(flow + mappings <= 320.0, "more than 320 bytes for a flow: {flow} and {mappings}");

        flood(machine)?;
        took("1,000,000 SYNs of as many senders to a published port");
        ensure!(machine.count_young()? <= MAX_YOUNG_FLOWS as usize, "{} young entries", machine.count_young()?);
        ensure!(machine.usage_of(all)?.flows == 4 * u64::from(EACH));
        stand(machine, 7)?;
        took("one flow in seven checked, both ways");

        let refused = for_owners(|place, end, gateway| {
            let mut line = Line::new(machine, end, gateway, false, false);
            let (mut accepted, mut refused, mut told) = (0u32, 0u32, 0u32);
            for n in 0..MORE {
                match line.open(pair(place, n, 81, false))? {
                    Sent::As(_) => accepted += 1,
                    Sent::Told(error) => {
                        ensure!(error == [3, 13], "told {error:?}");
                        (refused, told) = (refused + 1, told + 1);
                    }
                    Sent::Dropped => refused += 1,
                }
            }
            ensure!(accepted == Policy::DEFAULT.flows_per_ns - EACH - EACH_V6, "{}: {accepted} more", end.name);
            ensure!(machine.dropped(end.id, DropReason::FlowQuota)? == u64::from(refused), "{}: {refused}", end.name);
            ensure!(told > 0, "nobody was told");
            Ok((refused, told))
        })?;
        took("1,000,000 more tried");
        println!("refused and told, of each namespace: {refused:?}");

        // Four namespaces' quotas of IPv4 and IPv6 leave some room: another namespace's flows fill that.
        let mut line = Line::new(machine, &GREEN, &HOST, false, false);
        let (mut number, mut ends) = (0, Vec::new());
        let mut longest = Duration::ZERO;
        while ends.len() < 3 {
            let before = Instant::now();
            ends.extend(Some(line.open(pair(4, number, 80, false))?).filter(|sent| !matches!(sent, Sent::As(_))));
            longest = longest.max(before.elapsed());
            number += 1;
            ensure!(number <= MAX_FLOWS_V4, "the table never fills");
        }
        ensure!(ends == [Sent::Told([3, 13]); 3], "{ends:?}");
        ensure!(machine.usage_of(all)?.flows == u64::from(MAX_FLOWS_V4));
        ensure!(machine.dropped(GREEN.id, DropReason::TableFull)? == 3);
        took("the table filled to the last place");
        println!("the longest packet, which had the table swept: {} ms", longest.as_millis());
        stand(machine, 1)?;
        took("each flow checked, both ways");
        Ok(())
    })
}

/// Behaviours 14: 60,000 flows of one namespace to one address and port, each by the port it asked for; the next one is
/// refused, told and counted, and another namespace is not concerned.
#[test]
fn sixty_thousand_flows_to_one_port() -> Result<()> {
    const COUNT: usize = 60_000;
    /// By another namespace: more than the pool has left.
    const ASKED: usize = 6_000;
    const ELSEWHERE: Far = [198, 51, 100, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let server = |near: u16| {
        let mut ip: Far = AFAR_V6;
        ip[..4].copy_from_slice(&AFAR_V4);
        Pair { near, far: (ip, 443) }
    };
    let pool = Policy::DEFAULT.first_port..=Policy::DEFAULT.last_port;
    // Of the pool's ports a namespace may hold three quarters. Their neighbours are the host's sockets, and published ports.
    let quota = Policy::DEFAULT.ports_per_ns as usize;
    let is_hosts = |port: u16| matches!(port, 4001 | 20_000 | 5300..=5309 | 7000 | 8080 | 8443 | 9000..=9010);
    let own = (1024..=u16::MAX).filter(|port| !pool.contains(port) && !is_hosts(*port));
    let pooled = pool.clone().filter(|port| !is_hosts(*port)).take(quota);
    let ports: Vec<u16> = own.take(COUNT - quota).chain(pooled).collect();
    for (is_tcp, quota) in [(true, quota as u32), (false, COUNT as u32)] {
        in_new_namespace(|| {
            let mut machine = Machine::new(true)?;
            let mut tables = tables(monotonic()?);
            for policy in tables.policies.values_mut() {
                policy.ports_per_ns = quota;
            }
            machine.fill(&tables)?;
            let mut line = Line::new(&machine, &RED, &HOST, false, is_tcp);
            for port in &ports {
                let sent = line.open(server(*port))?;
                ensure!(sent == Sent::As(*port), "TCP {is_tcp}, from {port}: {sent:?}");
            }
            ensure!(machine.usage_of(RED.id)?.flows == COUNT as u64 && ports.len() == COUNT);
            // One more, that would need a port of the pool.
            let next = pool.clone().find(|port| !ports.contains(port) && !is_hosts(*port)).context("a free port")?;
            let sent = line.open(server(next))?;
            ensure!(sent == Sent::Told([3, 13]), "TCP {is_tcp}, one more: {sent:?}");
            ensure!(machine.dropped(RED.id, DropReason::PortQuota)? == 1);
            let mut other = Line::new(&machine, &BLUE, &HOST, false, is_tcp);
            // Another namespace asks for the same ports, until the pool is as good as empty.
            let (mut given, mut refused, mut told) = (BTreeSet::new(), 0, 0);
            for port in &ports[..ASKED] {
                match other.open(server(*port))? {
                    Sent::As(port) => ensure!(pool.contains(&port) && given.insert(port), "{port} is given twice"),
                    Sent::Told(error) => {
                        ensure!(error == [3, 13], "told {error:?}");
                        (refused, told) = (refused + 1, told + 1);
                    }
                    Sent::Dropped => refused += 1,
                }
                ensure!(refused == 0 || given.len() > 100, "refused with thousands of free ports");
            }
            let free = pool.clone().filter(|port| !ports.contains(port) && !is_hosts(*port)).count();
            let named = machine.dropped(BLUE.id, DropReason::PortsExhausted)?;
            println!(
                "{COUNT} flows to one port, TCP {is_tcp}; of {free} ports left {} were given, {refused} refused, {told} told",
                given.len()
            );
            ensure!(named == refused && told > 0 && given.len() > free * 3 / 4, "{named} counted");
            // To another server TCP may use what it uses to this one (RFC 7857 section 3); UDP may not.
            let elsewhere = |near| Pair { near, far: (ELSEWHERE, 443) };
            for port in ports[ASKED..].iter().filter(|port| !pool.contains(port)).take(100) {
                let sent = other.open(elsewhere(*port))?;
                ensure!((sent == Sent::As(*port)) == is_tcp, "TCP {is_tcp}, {port} to another server: {sent:?}");
            }
            for port in &ports {
                line.check(server(*port), *port)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// A table that is full of what is dead makes room, a part at a time: who found it full was refused, the next one is not.
#[test]
fn a_full_table_of_dead_flows_makes_room() -> Result<()> {
    const COUNT: u16 = 10_000;
    /// As many as one walk over the table removes.
    const AT_ONCE: u64 = 4096;
    in_new_namespace(|| {
        let mut machine = Machine::new(true)?;
        machine.fill(&tables(monotonic()?))?;
        let pair = |near| Pair { near, far: ([198, 51, 100, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 80) };
        let mut line = Line::new(&machine, &RED, &HOST, false, true);
        for near in 0..COUNT {
            ensure!(line.open(pair(40_000 + near))? == Sent::As(40_000 + near));
        }
        drop(line);
        machine.kill_flows()?;
        // As if the rest were there, too.
        let (all, room) = (PortId::NONE, u64::from(MAX_FLOWS_V4));
        machine.set_usage(all, Usage { flows: room, ports: 0 })?;
        let mut line = Line::new(&machine, &BLUE, &HOST, false, true);
        ensure!(line.open(pair(3000))? == Sent::Told([3, 13]));
        ensure!(machine.dropped(BLUE.id, DropReason::TableFull)? == 1);
        let (left, of_red) = (machine.usage_of(all)?.flows, machine.usage_of(RED.id)?.flows);
        ensure!(left == room - AT_ONCE && of_red == u64::from(COUNT) - AT_ONCE, "{left}, {of_red} of red");
        ensure!(line.open(pair(3000))? == Sent::As(3000));
        Ok(())
    })
}

/// No room for mappings: what needs one is refused, told and counted; everything else goes on (conformance P4).
#[test]
fn a_full_table_of_mappings_is_told() -> Result<()> {
    in_new_namespace(|| {
        let mut machine = Machine::new(true)?;
        machine.fill(&tables(monotonic()?))?;
        let pair = |near, far| Pair { near, far: ([198, 51, 100, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], far) };
        let mut udp = Line::new(&machine, &RED, &HOST, false, false);
        ensure!(udp.open(pair(3000, 53))? == Sent::As(3000));
        drop(udp);
        machine.fill_mappings()?;
        let machine = &machine;
        let mut udp = Line::new(machine, &RED, &HOST, false, false);
        for port in 3001..3004 {
            let sent = udp.open(pair(port, 53))?;
            ensure!(sent == Sent::Told([3, 13]), "a new endpoint: {sent:?}");
        }
        ensure!(machine.dropped(RED.id, DropReason::TableFull)? == 3);
        // Endpoints that are mapped speak on, to others too; TCP needs no mapping.
        udp.check(pair(3000, 53), 3000)?;
        ensure!(udp.open(pair(3000, 54))? == Sent::As(3000));
        let mut tcp = Line::new(machine, &RED, &HOST, false, true);
        ensure!(tcp.open(pair(3001, 80))? == Sent::As(3001));
        // The host's own traffic, by the uplink and with its namespaces.
        let to_host = Frame::new(ROUTER_MAC, UPLINK.mac).ipv4(AFAR_V4, UPLINK.ipv4).udp(53, 4001).finish();
        ensure!(machine.run(Hook::Uplink, UPLINK.id, &to_host, 0)?.action == UNSPEC);
        ensure!(machine.run(Hook::Host, HOST.id, &HOST.udp4(&RED).finish(), 0)?.action == REDIRECT);
        ensure!(machine.run(Hook::Namespace, RED.id, &RED.udp4(&HOST).finish(), 0)?.action == REDIRECT);
        Ok(())
    })
}

/// A million senders, a quarter of whom the namespace answers.
fn flood(machine: &Machine) -> Result<()> {
    let half = |first: u32| -> Result<()> {
        let syn = Frame::new(ROUTER_MAC, UPLINK.mac).ipv4([172, 16, 0, 0], UPLINK.ipv4);
        let syn = syn.segment((5555, 8080), 2, (1, 0)).finish();
        let answer = RED.to(&HOST).ipv4(RED.ipv4, [172, 16, 0, 0]).segment((80, 5555), 18, (9, 2)).finish();
        let mut room = [0; 256];
        let mut frames = [syn, answer];
        for number in (first..1_000_000).step_by(2) {
            let [_, b, c, d] = number.to_be_bytes();
            for (frame, at) in frames.iter_mut().zip([26, 30]) {
                // The address's low 20 bits; checksums go the other way.
                readdress(frame, at, [172, 16 | b, c, d]);
            }
            let Seen { action, length, .. } = machine.run_into(Hook::Uplink, UPLINK.id, &frames[0], 0, &mut room)?;
            ensure!(action == REDIRECT && room[30..34] == RED.ipv4, "SYN {number}: {:02x?}", &room[..length]);
            if number % 4 == 0 {
                let Seen { action, length, .. } =
                    machine.run_into(Hook::Namespace, RED.id, &frames[1], 0, &mut room)?;
                ensure!(action == REDIRECT && room[26..30] == UPLINK.ipv4, "answer {number}: {:02x?}", &room[..length]);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| half(1));
        half(0)?;
        other.join().expect("no panic").context("on the second thread")
    })
}

/// Writes an IPv4 address, and corrects the checksums of header and TCP.
fn readdress(frame: &mut [u8], at: usize, new: [u8; 4]) {
    use nsnet_common::checksum::Delta;
    let old = [frame[at], frame[at + 1], frame[at + 2], frame[at + 3]];
    let change = Delta::default().four(old, new);
    frame[at..at + 4].copy_from_slice(&new);
    for checksum_at in [24, 50] {
        let new = change.apply([frame[checksum_at], frame[checksum_at + 1]]);
        frame[checksum_at..checksum_at + 2].copy_from_slice(&new);
    }
}
