//! `nsnet demo`: what nsnet does, shown in a lab of its own with real traffic.
//!
//! Nothing of the machine's own network is touched: the lab's host is a namespace, too, and everything is taken down at
//! the end, after a failure, a panic and Ctrl-C as well.

mod cable;
mod comparison;
mod nat;
mod network;
mod outside;
mod publish;
mod ratios;
mod report;
mod traffic;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use nix::unistd::geteuid;
use serde_json::Value;

use super::Answer;
use super::args::DemoArgs;
use super::interrupt::Interrupt;
use super::output::Format;
use crate::kernel::dataplane::open_object;
use crate::kernel::features::Features;
use crate::kernel::named;
use crate::kernel::place::leave_private_mount_namespace;
use crate::kernel::store::{BPFFS, RUN};
use crate::lab::Lab;
use report::Report;

/// The program that acts in the lab: this one, also if its file is replaced or deleted while the demo runs. By its
/// name, taking down could fail then.
const OURSELVES: &str = "/proc/self/exe";

/// Runs the demo; the exit code is 1 when any step failed.
pub(super) fn demo(format: Format, args: &DemoArgs) -> Answer {
    if !geteuid().is_root() {
        bail!("the demo needs root: it makes network namespaces and loads eBPF programs");
    }
    // First, while there is a single thread. Where it is stuck, the verbs say what they cannot do there.
    leave_private_mount_namespace()?;
    let interrupt = Interrupt::catch()?;
    let start = Instant::now();
    drop(open_object(Features::probe())?);
    let load = start.elapsed();

    let mut report = Report::new(format, interrupt);
    let mut lab = Lab::new(Path::new(OURSELVES))?;
    outside::add_ipv6(&lab)?;
    let traces = Traces::of(&lab)?;
    for ns in network::MEMBERS {
        lab.make(ns)?;
    }
    cable::show(&lab, &mut report)?;
    let peers = network::switch(&lab, &mut report, load)?;
    network::host(&lab, &mut report, &peers)?;
    outside::by_route(&lab, &mut report, &peers)?;
    outside::internet(&lab, &mut report, &peers)?;
    publish::show(&lab, &mut report, &peers)?;
    network::two_servers(&lab, &mut report, &peers)?;
    let (comparison, nat) = if args.no_comparison {
        (Value::Null, Value::Null)
    } else {
        (comparison::show(&mut lab, &mut report)?, nat::show(&mut lab, &mut report)?)
    };
    drop(lab);
    report.scenario("end", "End: the lab is taken down")?;
    report.step("nothing left", || traces.are_gone())?;
    let all_proven = report.finish(&comparison, &nat)?;
    Ok(if all_proven { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// By what the lab could be found after its end.
struct Traces {
    /// What its namespaces' names begin with.
    names: String,
    /// What the names of its host's files and pins begin with.
    files: String,
}

impl Traces {
    fn of(lab: &Lab) -> Result<Self> {
        Ok(Self { names: lab.name(""), files: format!("{:x}", lab.ns("host")?.cookie()?) })
    }

    fn are_gone(&self) -> Result<String> {
        let names: Vec<String> = named::list()?.into_iter().filter(|name| name.starts_with(&self.names)).collect();
        ensure!(names.is_empty(), "namespaces are left: {}", names.join(" "));
        for folder in [RUN, BPFFS] {
            // Without the folder there is nothing in it.
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let name = entry?.file_name().to_string_lossy().into_owned();
                ensure!(!self.is_ours(&name), "{folder}/{name} is left");
            }
        }
        Ok("no namespace, file or pinned program of the lab".to_owned())
    }

    /// The host's key ends with the first character that is no hexadecimal digit.
    fn is_ours(&self, file: &str) -> bool {
        file.strip_prefix(&self.files).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_hexdigit()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_hosts_files_are_not_ours() {
        let traces = Traces { names: "1a2bg-".into(), files: "103f".into() };
        assert!(traces.is_ours("103f_v1") && traces.is_ours("103f.json"));
        assert!(!traces.is_ours("103f0.json") && !traces.is_ours("bpf") && !traces.is_ours("lock"));
    }
}
