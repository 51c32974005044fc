//! Frames that BPF_PROG_TEST_RUN does not take, sent through the programs at their hooks: packets that end within their
//! header, and VLAN tags, which the kernel takes out of a frame before the program sees it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nsnet::kernel::sysctl;
use nsnet::lab::RawSocket;
use nsnet_common::cases::world::{HOST, RED};
use nsnet_common::cases::{Case, Hook, all};
use nsnet_tests::scratch::in_new_namespace;

use crate::clock::{LATE, is_in_time, steady};
use crate::machine::{Machine, is_taken};

#[test]
fn short_packets_and_tags() -> Result<()> {
    in_new_namespace(|| {
        let mut machine = Machine::new(true)?;
        // Else the kernel reports its multicast groups at any time (MLD), which is a frame more.
        for interface in [HOST.name, RED.name, "red-ns"] {
            sysctl::write(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "1")?;
        }
        machine.attach(Hook::Namespace, RED.name)?;
        machine.attach(Hook::Host, HOST.name)?;
        // What is sent into the other end of a pair comes in by the port; what is sent out of the port itself, the host
        // has sent.
        let from_namespace = RawSocket::open("red-ns")?;
        let from_host = RawSocket::open(HOST.name)?;
        let (mut short, mut tagged) = (0, 0);
        for case in all().iter().filter(|case| case.frame.len() >= 14) {
            let socket = match (case.hook, case.port) {
                (Hook::Namespace, port) if port == RED.id => &from_namespace,
                (Hook::Host, port) if port == HOST.id => &from_host,
                _ => continue,
            };
            let frame = if case.tag_aside {
                tagged += 1;
                with_tag(&case.frame, tagged)
            } else if is_taken(&case.frame) {
                continue;
            } else {
                short += 1;
                case.frame.clone()
            };
            check(&mut machine, case, || socket.send(&frame))?;
        }
        println!("{short} short packets, {tagged} tags");
        ensure!(short > 0 && tagged > 0, "nothing was sent");
        Ok(())
    })
}

/// The frame with an 802.1Q tag in it. The kernel will put it beside the frame, and its length is then as before.
fn with_tag(frame: &[u8], vlan: u8) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, vlan], &frame[12..]].concat()
}

/// Sends, and waits until all is as the case says. When the time went on before the frame was sent, once more.
fn check(machine: &mut Machine, case: &Case, send: impl Fn() -> Result<()>) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(2);
    loop {
        let now = steady()?;
        machine.fill(&case.tables(now))?;
        send()?;
        let (was_in_time, sent) = (is_in_time(now)?, Instant::now());
        loop {
            let lines = machine.state()?.differences(&case.expected_state(now), LATE);
            if lines.is_empty() {
                return Ok(());
            }
            if sent.elapsed() > PATIENCE {
                ensure!(!was_in_time, "{}: {}", case.name, lines.join("\n"));
                break;
            }
            sleep(Duration::from_millis(1));
        }
    }
}
