//! What the agent may do: the capabilities it needs, and no others from here on.

use anyhow::{Context as _, Result, bail};
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;

use crate::kernel::capabilities::NEEDED;

/// What it keeps beside [`NEEDED`], if it has it.
pub const USEFUL: [(Capability, &str); 3] = [
    (Capability::CAP_BPF, "read and write maps"),
    (Capability::CAP_PERFMON, "load programs as the verifier takes them from root"),
    // For repairs.
    (Capability::CAP_NET_RAW, "announce the addresses of a port that was made anew"),
];

/// Drops every other capability, from all sets, and the way to get any back. For the calling thread and those that it
/// starts afterwards: call it before there are others.
pub(super) fn drop_the_rest() -> Result<()> {
    let has = read(CapSet::Permitted)?;
    if let Some((missing, reason)) = NEEDED.iter().find(|(capability, _)| !has.contains(capability)) {
        bail!("cannot start the agent: {missing} is missing ({reason}); run as root");
    }
    let kept = NEEDED.iter().chain(&USEFUL).map(|(capability, _)| *capability);
    let kept: CapsHashSet = kept.filter(|capability| has.contains(capability)).collect();
    prctl::set_no_new_privs().context("cannot renounce privileges of programs that are started")?;
    // Without CAP_SETPCAP the bounding set stays; then no_new_privs alone keeps it from being of use.
    if has.contains(&Capability::CAP_SETPCAP) {
        for capability in read(CapSet::Bounding)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability).with_context(|| format!("cannot drop {capability}"))?;
        }
    }
    // What is ambient must be inheritable, what is effective must be permitted: in this order none is refused.
    for (set, kept) in [
        (CapSet::Ambient, &CapsHashSet::new()),
        (CapSet::Inheritable, &CapsHashSet::new()),
        (CapSet::Effective, &kept),
        (CapSet::Permitted, &kept),
    ] {
        caps::set(None, set, kept).with_context(|| format!("cannot drop capabilities ({set:?})"))?;
    }
    Ok(())
}

fn read(set: CapSet) -> Result<CapsHashSet> {
    caps::read(None, set).with_context(|| format!("cannot read capabilities ({set:?})"))
}
