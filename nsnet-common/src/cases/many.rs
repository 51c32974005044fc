//! What is seen only in the many: ports that cannot be guessed, the same behaviour whatever came before, a connection that
//! no guess ends.

use std::collections::{BTreeMap, BTreeSet};

use crate::layout::{FlowState, PortId};
use crate::memory::MemoryTables;
use crate::tables::{Age, FlowEntry, Tables};
use crate::verdict::{Egress, Verdict};

use super::check::NOON;
use super::mutate::Random;
use super::sequence::{Step, flaw};
use super::talk::{ACK, L4, RST, SYN, Talk, pooled};
use super::world::{self, BLUE, End, LIME, RED};

/// Runs a frame; where it went, and as which bytes.
fn run(step: &Step, tables: &MemoryTables) -> Option<(Egress, Vec<u8>)> {
    let (outcome, frame) = step.run(tables);
    match outcome {
        Ok(Verdict::Deliver(egress)) => Some((egress, frame.bytes)),
        _ => None,
    }
}

/// Source port of an IPv4 frame with no options.
fn source_port(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[34], frame[35]])
}

/// RFC 7857 section 9, RFC 6056: of 10,000 ports no two follow one another more often than chance has it, all of the pool is
/// in use, and who knows the ports of one key knows nothing of another's.
#[test]
fn ten_thousand_ports_are_hard_to_guess() {
    const POOL: (u16, u16) = (16384, 32767);
    const COUNT: u32 = 10_000;
    let ports: Vec<u16> = (0..COUNT)
        .map(|n| pooled(&Talk::red(true, 1024 + n as u16, 443).key(L4::Tcp(SYN, 0, 0, 0)), 1, POOL))
        .collect();
    let steps = ports.windows(2).filter(|pair| pair[1].wrapping_sub(pair[0]) == 1).count();
    assert!(steps <= 5, "{steps} times the next one");
    // As many different ones as balls in urns would hit: 16384 * (1 - e^(-10000/16384)), here 7485, give or take 46.
    let different = ports.iter().collect::<BTreeSet<_>>().len();
    assert!((7300..7670).contains(&different), "{different} different ones");
    let mut parts = [0u32; 64];
    for port in &ports {
        assert!((POOL.0..=POOL.1).contains(port));
        parts[usize::from(port - POOL.0) / 256] += 1;
    }
    // 156 of each, give or take 12: in bits, nearly all of six.
    let entropy: f64 = parts.iter().map(|count| f64::from(*count) / f64::from(COUNT)).map(|p| -p * p.log2()).sum();
    assert!(entropy > 5.98, "{entropy} bits of 6: {parts:?}");
    let other = |n: u32| {
        let key = Talk::red(true, 1024 + n as u16, 443).key(L4::Tcp(SYN, 0, 0, 0));
        POOL.0 + (crate::hash::keyed_hash(world::SECRET + 1, &key, 1) % 16384) as u16
    };
    let same = (0..COUNT).zip(&ports).filter(|(n, port)| other(*n) == **port).count();
    assert!(same <= 5, "{same} ports are the same with another key");
}

/// RFC 4787 REQ-11: what a NAT is called does not depend on what came before, nor in which order.
#[test]
fn a_thousand_shuffled_runs_behave_alike() {
    const ENDS: [&End; 3] = [&RED, &BLUE, &LIME];
    // Ports that all three want, a port of the pool and one of the system's.
    const PORTS: [u16; 4] = [3000, 3001, 20_001, 600];
    const HOSTS: [u8; 3] = [9, 10, 11];
    let mut random = Random::new(7);
    let mut clashes = 0;
    for run_number in 0..1000 {
        let tables = world::tables(NOON);
        let mut talks = Vec::new();
        for end in ENDS {
            for near in PORTS {
                for host in HOSTS {
                    for far in [443, 444] {
                        let talk = Talk::masqueraded(end, true, near, far);
                        talks.push(talk.with([198, 51, 100, host], talk.afar.1));
                    }
                }
            }
        }
        for place in (1..talks.len()).rev() {
            talks.swap(place, random.below(place + 1));
        }
        let mut external: BTreeMap<(PortId, u16), BTreeSet<u16>> = BTreeMap::new();
        for talk in &talks {
            let (_, left) = run(&talk.sends(L4::Udp), &tables).expect("it leaves");
            external.entry((talk.end.id, talk.near.0)).or_default().insert(source_port(&left));
        }
        // Endpoint-independent mapping (REQ-1), and no port is shared (REQ-3).
        let all: Vec<u16> = external.values().flatten().copied().collect();
        assert_eq!(all.len(), ENDS.len() * PORTS.len(), "run {run_number}: {external:?}");
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "run {run_number}: {external:?}");
        clashes += external.iter().filter(|((_, own), ports)| !ports.contains(own)).count();
        for talk in &talks {
            let port = external[&(talk.end.id, talk.near.0)].first().copied().unwrap();
            let known = Talk { near: (talk.near.0, port), ..*talk };
            // Address- and port-dependent filtering (REQ-8).
            let (way, _) = run(&known.comes(L4::Udp), &tables).expect("an answer comes in");
            assert_eq!(way, Egress::Namespace(talk.end.id));
            for stranger in [Talk { far: 445, ..known }, known.with([198, 51, 100, 12], known.afar.1)] {
                let way = run(&stranger.comes(L4::Udp), &tables);
                assert!(!matches!(way, Some((Egress::Namespace(_), _))), "run {run_number}: a stranger gets in");
            }
        }
        assert_eq!(flaw(&tables), None);
    }
    // Two of three must give way for each port, in every run.
    assert_eq!(clashes, 1000 * PORTS.len() * (ENDS.len() - 1));
}

/// RFC 5961, RFC 5927: a RST that only guesses does not end what NAT knows of a connection.
#[test]
fn none_of_65536_blind_resets_ends_a_connection() {
    let tables = world::tables(NOON);
    let talk = Talk::red(true, 3000, 80);
    for step in [
        talk.sends(L4::Tcp(SYN, 100, 0, 0)),
        talk.comes(L4::Tcp(SYN | ACK, 9000, 101, 0)),
        talk.sends(L4::Tcp(ACK, 101, 9001, 0)),
    ] {
        run(&step, &tables).expect("a connection");
    }
    let state = || state_of(&talk, &tables);
    for guess in 0..=u16::MAX {
        let number = u32::from(guess) << 16 | 0x1234;
        let (way, _) = run(&talk.comes(L4::Tcp(RST, number, 0, 0)), &tables).expect("the receiver judges for itself");
        assert_eq!(way, Egress::Namespace(RED.id));
        if guess % 1024 == 0 {
            assert_eq!(state(), FlowState::ESTABLISHED, "after {number:#x}");
        }
    }
    assert_eq!(state(), FlowState::ESTABLISHED);
    run(&talk.comes(L4::Tcp(RST, 9001, 0, 0)), &tables).expect("the right one");
    assert_eq!(state(), FlowState::CLOSED);
}

/// How far the flow of what a namespace says has come.
fn state_of(talk: &Talk, tables: &MemoryTables) -> FlowState {
    tables.flow(Age::Grown, &talk.key(L4::Tcp(SYN, 0, 0, 0))).expect("it is there").about().state
}
