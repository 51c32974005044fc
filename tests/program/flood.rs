//! Who really gets a copy of a flooded frame: packet sockets behind every port count.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nsnet::lab::RawSocket;
use nsnet_common::cases::check::NOON;
use nsnet_common::cases::world::{ENDS, tables};
use nsnet_common::cases::{Case, all};
use nsnet_common::layout::PortId;
use nsnet_common::verdict::Verdict;
use nsnet_tests::scratch::in_new_namespace;

use crate::clock::monotonic;
use crate::machine::{Machine, outlet};

/// For a copy that must arrive: a busy machine takes its time for what is queued behind a port.
const PATIENCE: Duration = Duration::from_secs(2);
/// For one that must not.
const STRAGGLERS: Duration = Duration::from_millis(100);

#[test]
fn every_flooded_case_comes_out_where_it_should() -> Result<()> {
    in_new_namespace(|| {
        let mut machine = Machine::new(true)?;
        let ports = tables(NOON).ports;
        let mut sockets = Vec::new();
        for end in ENDS {
            sockets.push((end, RawSocket::open_promiscuous(&outlet(ports[&end.id], end.name))?));
        }
        let flooded = |case: &Case| case.expect.outcome == Ok(Verdict::Flooded);
        // bpf_clone_redirect() refuses the GSO frames of BPF_PROG_TEST_RUN, which have a size but no type (EBADMSG).
        let (cases, segments): (Vec<Case>, Vec<Case>) =
            all().into_iter().filter(flooded).partition(|case| case.gso_size == 0);
        let mut expected: BTreeMap<PortId, Vec<&Case>> = BTreeMap::new();
        for case in &cases {
            machine.fill(&case.tables(monotonic()?))?;
            machine.run(case.hook, case.port, &case.frame, case.gso_size)?;
            for port in &case.expect.copies {
                expected.entry(*port).or_default().push(case);
            }
        }
        let mut count = 0;
        for (end, socket) in sockets {
            let cases = expected.remove(&end.id).unwrap_or_default();
            let mut arrived = Vec::new();
            while arrived.len() < cases.len() {
                let Some(frame) = socket.receive(PATIENCE, |_| true)? else { break };
                arrived.push(frame);
            }
            arrived.extend(socket.collect(STRAGGLERS, |_| true)?);
            count += arrived.len();
            let mut arrived: Vec<&[u8]> = arrived.iter().map(|frame| frame.bytes.as_slice()).collect();
            // Taken out one by one: frames of two CPUs may overtake each other, and two cases may have the same frame.
            for case in cases {
                let position = arrived.iter().position(|frame| *frame == case.frame);
                let position = position.with_context(|| format!("{}: no copy of \"{}\"", end.name, case.name))?;
                arrived.swap_remove(position);
            }
            ensure!(arrived.is_empty(), "{}: came, and should not have: {arrived:02x?}", end.name);
        }
        println!("{} flooded frames, {count} copies; not GSO: {}", cases.len(), segments.len());
        Ok(())
    })
}
