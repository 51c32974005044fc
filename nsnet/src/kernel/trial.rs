//! Trying the whole dataplane in a namespace that exists for this only: what `nsnet doctor` goes by.

use std::thread;
use std::time::{Duration, Instant};

use aya::Ebpf;
use nix::sched::{CloneFlags, unshare};
use nsnet_common::layout::names;

use super::dataplane::{Hook, open_object, program_in};
use super::error::{Doing as _, KernelError, Result};
use super::features::Features;
use super::hooks::put_on;
use super::netlink::Netlink;
use super::selfcheck::{self, HOST, NAMESPACE};
use super::sockets;
use super::veth::VethSpec;
use super::xdp::{self, Side};

/// What the trial found.
#[derive(Clone, Debug)]
pub struct Trial {
    /// How long the verifier took over all programs.
    pub load: Duration,
    /// Instructions the verifier walked through, by program. Empty where the kernel does not tell (before 5.16).
    pub instructions: Vec<(&'static str, u32)>,
    /// Why the programs at the host's sockets were not accepted, or not attached.
    pub sockets: Option<String>,
    /// Why the accelerator's programs were not accepted, or not attached natively.
    pub xdp: Option<String>,
}

/// Makes veth pairs, loads the programs, runs them on a few frames and attaches one, all in a namespace that goes with the thread.
pub fn trial(features: Features) -> Result<Trial> {
    let thread = thread::Builder::new().name("trial".to_owned());
    let trial = thread.spawn(move || in_scratch(features)).doing(|| "start a thread")?;
    trial.join().unwrap_or_else(|_panic| Err(KernelError::refused("try the dataplane", "the trial itself failed")))
}

fn in_scratch(features: Features) -> Result<Trial> {
    unshare(CloneFlags::CLONE_NEWNET).doing(|| "make a network namespace")?;
    let netlink = Netlink::here()?;
    let interface = |name, index| VethSpec { name, index, ..VethSpec::default() };
    for (name, peer, port) in [("trial-host", "peer-host", HOST), ("trial", "peer", NAMESPACE)] {
        netlink.create_veth(&interface(name, Some(port.ifindex())), &interface(peer, None), None)?;
    }

    let began = Instant::now();
    let mut ebpf = open_object(features)?;
    let load = began.elapsed();
    let mut instructions = Vec::new();
    for name in names::PROGRAMS {
        let info = program_in(&mut ebpf, name)?.info();
        let count = info.ok().and_then(|info| info.verified_instruction_count());
        instructions.extend(count.map(|count| (name, count)));
    }
    selfcheck::check(&mut ebpf, netlink.existing_link("peer")?.index)?;
    put_on(program_in(&mut ebpf, names::FROM_NAMESPACE)?, features, "trial", Hook::Namespace)?;
    // What stands behind it is a filter everywhere.
    let filters = Features { tcx: false, ..features };
    put_on(program_in(&mut ebpf, names::CLOSED)?, filters, "trial", Hook::Namespace)?;
    let sockets = if features.cgroup { sockets::try_out(&mut ebpf).err() } else { None };
    let sockets = sockets.map(|error| error.to_string());
    let xdp = try_xdp(&mut ebpf, netlink.existing_link("trial")?.index).err().map(|error| error.to_string());
    Ok(Trial { load, instructions, sockets, xdp })
}

fn try_xdp(ebpf: &mut Ebpf, ifindex: u32) -> Result<()> {
    xdp::load(ebpf)?;
    let program = xdp::program_in(ebpf, Side::Namespace.program())?;
    xdp::put_on(program, ifindex).map(|_link_of_the_program| ())
}
