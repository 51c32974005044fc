//! A program, run on a frame by `BPF_PROG_TEST_RUN` as if it came in by an interface. The frame itself goes nowhere.

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};

use super::super::dataplane::refused;
use super::super::error::Result;
use crate::model::explain::walk::Pass;

/// What a program did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ran {
    /// `TC_ACT_*`.
    pub(super) action: u32,
    /// The frame afterwards.
    pub(super) bytes: Vec<u8>,
}

/// Runs `program`; `ifindex` is the interface, in the calling thread's network namespace.
pub(super) fn test_run(program: &SchedClassifier, ifindex: u32, frame: &[u8], gso_size: u32) -> Result<Ran> {
    // An ICMP error may be longer than what it is about.
    const MORE: usize = 256;
    let context = context(ifindex, frame.len(), gso_size);
    let mut bytes = vec![0; frame.len() + MORE];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut bytes),
        ctx_in: Some(&context),
        ..TestRunOptions::new()
    };
    let ran = program.test_run(options).map_err(|error| refused("try a frame in the kernel", error))?;
    bytes.truncate(ran.data_size_out as usize);
    Ok(Ran { action: ran.return_value, bytes })
}

/// `struct __sk_buff` (linux/bpf.h), of which the kernel takes a few fields: `convert___skb_to_skb()` in
/// net/bpf/test_run.c.
fn context(ifindex: u32, length: usize, gso_size: u32) -> [u8; 192] {
    const IFINDEX: usize = 40;
    const GSO_SEGS: usize = 164;
    const GSO_SIZE: usize = 176;
    let mut context = [0; 192];
    let mut set = |at: usize, value: u32| context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    set(IFINDEX, ifindex);
    if gso_size != 0 {
        set(GSO_SIZE, gso_size);
        set(GSO_SEGS, (length as u32).div_ceil(gso_size));
    }
    context
}

/// Why the kernel takes no such frame, if it does not: `bpf_prog_test_run_skb()` and `bpf_test_init()` in
/// net/bpf/test_run.c want an Ethernet header, an IP header behind it (measured on 6.18), and no more than fits into a page
/// beside `struct skb_shared_info`.
pub(super) fn objection(pass: &Pass) -> Option<&'static str> {
    const LONGEST: usize = 3600;
    let frame = &pass.before;
    let header = match frame.get(12..14) {
        Some([0x08, 0x00]) => 34,
        Some([0x86, 0xdd]) => 54,
        Some(_) | None => 14,
    };
    match frame.len() {
        _ if pass.after.tag_aside => Some("the kernel tries no frame with a VLAN tag"),
        length if length > LONGEST => Some("the kernel tries no frame that is longer than a page"),
        length if length < header => Some("the kernel tries no frame that ends within its headers"),
        _ => None,
    }
}
