//! `nsnet bench`: measures, and writes the report.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, value_parser};
use indicatif::{ProgressBar, ProgressStyle};
use nix::unistd::geteuid;
use serde_json::json;

use super::Answer;
use super::interrupt::Interrupt;
use super::output::{self, Format};
use crate::bench::goals::judge;
use crate::bench::peer::{Peer, Way};
use crate::bench::report;
use crate::bench::result::Load;
use crate::bench::{Effort, Progress, Selection, run};
use crate::kernel::place::leave_private_mount_namespace;

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// Under five minutes: fewer blocks, short curves, no programs of others; the default
    #[arg(long, conflicts_with = "full")]
    pub quick: bool,
    /// Everything, with enough blocks for figures to publish: about 40 minutes
    #[arg(long)]
    pub full: bool,
    /// One block of very little, to see that it works; its figures mean nothing
    #[arg(long, hide = true, conflicts_with_all = ["full", "quick"])]
    pub smoke: bool,
    /// Where report.json, report.md and report.html go
    #[arg(long, value_name = "FOLDER", default_value = "nsnet-bench")]
    pub report: PathBuf,
    /// Only these ways, for example ns-to-ns
    #[arg(long, num_args = 1.., value_name = "WAY", value_parser = parse::<Way>)]
    pub ways: Vec<Way>,
    /// Only these loads, for example udp64 or injected64
    #[arg(long, num_args = 1.., value_name = "LOAD", value_parser = parse::<Load>)]
    pub loads: Vec<Load>,
    /// Only these peers beside the direct veth, for example bridge nsnet
    #[arg(long, num_args = 1.., value_name = "PEER", value_parser = parse::<Peer>)]
    pub peers: Vec<Peer>,
    /// No scaling curves
    #[arg(long)]
    pub no_curves: bool,
    /// Blocks for each cell, and for each point of a curve; a report with fewer than 20 says so
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=1000))]
    pub blocks: Option<u16>,
}

/// The names are those of report.json; an unknown one is answered with all.
fn parse<T: serde::de::DeserializeOwned>(name: &str) -> Result<T, String> {
    serde_json::from_value(json!(name)).map_err(|error| error.to_string().replace("unknown variant ", ""))
}

/// Measures; the exit code is 0 also when goals are missed. What was measured is reported after Ctrl-C, too.
pub(super) fn bench(format: Format, args: &BenchArgs) -> Answer {
    if !geteuid().is_root() {
        bail!("the bench needs root: it makes network namespaces and loads eBPF programs");
    }
    // First, while there is a single thread, as in the demo.
    leave_private_mount_namespace()?;
    let interrupt = Interrupt::catch()?;
    // A folder that cannot be written is better known before.
    let is_new = !args.report.exists();
    std::fs::create_dir_all(&args.report).map_err(|error| {
        anyhow::anyhow!("cannot create {}: {error}; name another by --report", args.report.display())
    })?;
    let effort = match (args.full, args.smoke) {
        (true, _) => Effort::Full,
        (_, true) => Effort::Smoke,
        _ => Effort::Quick,
    };
    let mut peers = args.peers.clone();
    if !peers.is_empty() {
        peers.push(Peer::Nsnet);
    }
    let selection = Selection {
        ways: args.ways.clone(),
        loads: args.loads.clone(),
        peers,
        no_curves: args.no_curves,
        blocks: args.blocks,
    };
    let mut bar = Bar::new(interrupt)?;
    let results = run(effort, &selection, &mut bar);
    bar.bar.finish_and_clear();
    if results.is_err() && is_new {
        // There is nothing to put into it. It stays when somebody else has put something there.
        std::fs::remove_dir(&args.report).ok();
    }
    let results = results?;
    let page = report::write(&results, &args.report)?;
    match format {
        Format::Table => {
            output::line(&report::markdown(&results, &judge(&results)))?;
            output::note(&format!("the report with plots is {}", page.display()));
        }
        Format::Json => output::print_json(&json!({
            "report": page,
            "goals": judge(&results),
            "left_out": results.left_out,
        }))?,
    }
    if results.interrupted {
        bail!("interrupted: the report has what was measured until then, and the lab was taken down");
    }
    Ok(ExitCode::SUCCESS)
}

/// A bar with the time left on a terminal; a line for each thing begun elsewhere.
struct Bar {
    bar: ProgressBar,
    interrupt: Interrupt,
    last: String,
}

impl Bar {
    fn new(interrupt: Interrupt) -> Result<Self> {
        let style = ProgressStyle::with_template("{wide_bar} {percent:>3} %{prefix}\n{wide_msg}")?;
        Ok(Self { bar: ProgressBar::new(1).with_style(style), interrupt, last: String::new() })
    }
}

impl Progress for Bar {
    fn at(&mut self, what: &str, done: Duration, total: Duration) -> Result<()> {
        // While another measurement is waited for nothing is planned yet.
        let is_planned = !total.is_zero();
        if !is_planned && self.interrupt.is_set() {
            bail!("interrupted: nothing was begun");
        }
        self.interrupt.check()?;
        // By the plan's own estimate, which is in seconds: the bar's would go by how many steps are done.
        let left = if is_planned { format!(", {} left", time(total.saturating_sub(done))) } else { String::new() };
        if what != self.last {
            what.clone_into(&mut self.last);
            self.bar.set_message(what.to_owned());
            if !std::io::stderr().is_terminal() {
                output::note(&format!("{what}{left}"));
            }
        }
        self.bar.set_prefix(left);
        self.bar.set_length(total.as_millis().max(1) as u64);
        self.bar.set_position(done.as_millis() as u64);
        Ok(())
    }

    fn note(&mut self, text: &str) {
        self.bar.suspend(|| output::note(text));
    }
}

fn time(left: Duration) -> String {
    let seconds = left.as_secs();
    if seconds < 90 { format!("{seconds} s") } else { format!("{} min", seconds.div_ceil(60)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_report() {
        assert_eq!(parse::<Way>("ns-to-ns"), Ok(Way::NsToNs));
        assert_eq!(parse::<Load>("udp64-polled"), Ok(Load::Udp64Polled));
        assert_eq!(parse::<Peer>("docker-nft"), Ok(Peer::DockerNft));
        assert!(parse::<Peer>("ovs").unwrap_err().contains("macvlan"));
    }

    #[test]
    fn who_ends_a_wait_has_no_lab() {
        let end =
            |total| Bar::new(Interrupt::now()).unwrap().at("waiting", Duration::ZERO, total).unwrap_err().to_string();
        assert_eq!(end(Duration::ZERO), "interrupted: nothing was begun");
        assert!(end(Duration::from_secs(1)).contains("the lab was taken down"));
    }

    #[test]
    fn time_left() {
        assert_eq!(time(Duration::from_secs(89)), "89 s");
        assert_eq!(time(Duration::from_secs(91)), "2 min");
    }
}
