//! `nsnet doctor`: what this kernel can do, what is missing, and what is used instead.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};
use caps::Capability;
use serde_json::json;

use super::mode::{self, Forwarded};
use super::output::{self, Format, Table, with_progress};
use super::{Answer, bypassed};
use crate::kernel::capabilities::{self, NEEDED};
use crate::kernel::cgroup;
use crate::kernel::error::Result;
use crate::kernel::features::{Features, WITHOUT};
use crate::kernel::host::Host;
use crate::kernel::mounts::is_bpffs;
use crate::kernel::netfilter::{self, Bypassed};
use crate::kernel::store::BPFFS;
use crate::kernel::trial::{Trial, trial};
use crate::model::mode::Mode;

/// How a check came out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Finding {
    Ok,
    /// To be known, but nothing is missing.
    Note,
    /// Something else is used instead.
    Fallback,
    /// nsnet cannot work so.
    Missing,
}

impl Finding {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Fallback => "fallback",
            Self::Missing => "missing",
        }
    }
}

type Check = (&'static str, Finding, String);

pub(super) fn doctor(format: Format, host_ns: Option<&str>) -> Answer {
    let mut checks = vec![kernel(), capabilities()];
    let entered = Host::enter(host_ns);
    checks.push(match &entered {
        Ok(host) => ("host namespace", Finding::Ok, host.ns.to_string()),
        Err(error) => ("host namespace", Finding::Missing, error.to_string()),
    });
    if let Ok(host) = &entered {
        checks.push(match host.check_mounts_last("keep pins") {
            Ok(()) => ("mount namespace", Finding::Ok, "mounts made here last".to_owned()),
            Err(error) => ("mount namespace", Finding::Missing, error.to_string()),
        });
    }
    checks.push(bpffs());
    checks.extend([jit(), ipv6()]);
    // Trying needs the capabilities: without them every feature would look missing.
    if checks.iter().all(|(check, finding, _)| *check != "capabilities" || *finding == Finding::Ok) {
        let features = Features::probe();
        checks.extend([tcx(features), redirect_peer(features), helper("bpf_loop", BpfHelper::BPF_FUNC_loop, "5.17")]);
        let tried = with_progress("trying the dataplane", || trial(features));
        checks.push(cgroup_hooks(features, entered.as_ref().ok(), tried.as_ref().ok()));
        checks.extend(tried.as_ref().ok().map(xdp));
        checks.extend(entered.as_ref().map_or_else(|_no_host| Vec::new(), modes));
        checks.push(dataplane(tried));
    }

    let bypassed = entered.as_ref().map_or_else(
        |_no_host| Ok(Vec::new()),
        |host| netfilter::bypassed(&bypassed::networks(&host.state().unwrap_or_default())),
    );
    checks.push(netfilter_check(&bypassed));
    let bypassed = bypassed.unwrap_or_default();
    if format == Format::Table {
        checks.extend(bypassed.iter().map(|rule| ("netfilter", Finding::Note, rule.to_string())));
    }

    let mut table = Table::new(&["check", "finding", "detail"]);
    let is_well = checks.iter().all(|(_, finding, _)| *finding != Finding::Missing);
    for (check, finding, detail) in checks {
        table.row([json!(check), json!(finding.word()), json!(detail)]);
    }
    match format {
        Format::Table => output::print(format, &table)?,
        Format::Json => {
            let mut rows = table.to_json();
            if let Some(row) = rows.as_array_mut().and_then(|rows| rows.last_mut()) {
                row["bypassed"] = bypassed::table(&bypassed).to_json();
            }
            output::print_json(&rows)?;
        }
    }
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn kernel() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    ("kernel", Finding::Ok, release.trim().to_owned())
}

fn capabilities() -> Check {
    let names =
        |some: &[(Capability, &str)]| some.iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>().join(" ");
    match capabilities::missing() {
        Ok(missing) if missing.is_empty() => ("capabilities", Finding::Ok, names(&NEEDED)),
        Ok(missing) => ("capabilities", Finding::Missing, format!("{}; run as root", names(&missing))),
        Err(error) => ("capabilities", Finding::Missing, error.to_string()),
    }
}

fn bpffs() -> Check {
    match is_bpffs(Path::new(BPFFS)) {
        Ok(true) => ("bpffs", Finding::Ok, format!("mounted on {BPFFS}")),
        Ok(false) => ("bpffs", Finding::Ok, format!("will be mounted on {BPFFS} by the first network")),
        Err(error) => ("bpffs", Finding::Missing, error.to_string()),
    }
}

fn tcx(features: Features) -> Check {
    if features.tcx {
        ("tcx", Finding::Ok, "programs are attached by pinned links".to_owned())
    } else {
        ("tcx", Finding::Fallback, format!("clsact filters; tcx is in Linux 6.6 and later{}", forced("tcx")))
    }
}

fn redirect_peer(features: Features) -> Check {
    if features.redirect_peer {
        // What it spares a frame is what tcpdump and the interface's counters live on.
        let detail = "frames enter a namespace without passing a queue; at the host's end of its veth tcpdump sees only what \
                      the namespace sends, `nsnet capture --all` sees both";
        ("bpf_redirect_peer", Finding::Ok, detail.to_owned())
    } else {
        let detail = format!("bpf_redirect, a queue longer; Linux 5.10 and later has it{}", forced("redirect_peer"));
        ("bpf_redirect_peer", Finding::Fallback, detail)
    }
}

fn forced(feature: &str) -> &'static str {
    let without = std::env::var(WITHOUT).unwrap_or_default();
    if without.split(',').any(|name| name.trim() == feature) { " (turned off by NSNET_WITHOUT)" } else { "" }
}

fn helper(name: &'static str, helper: BpfHelper, since: &str) -> Check {
    match is_helper_supported(ProgramType::SchedClassifier, helper) {
        Ok(true) => (name, Finding::Ok, String::new()),
        Ok(false) => (name, Finding::Missing, format!("needs Linux {since} or later")),
        Err(error) => (name, Finding::Missing, format!("cannot be tried: {error}")),
    }
}

fn jit() -> Check {
    match fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").as_deref().map(str::trim) {
        Ok("0") => ("jit", Finding::Fallback, "programs are interpreted; set net.core.bpf_jit_enable=1".to_owned()),
        Ok(_) => ("jit", Finding::Ok, String::new()),
        Err(_hidden) => ("jit", Finding::Ok, "always on, or not visible here".to_owned()),
    }
}

fn ipv6() -> Check {
    if Path::new("/proc/sys/net/ipv6").exists() {
        ("ipv6", Finding::Ok, String::new())
    } else {
        ("ipv6", Finding::Fallback, "this kernel has no IPv6: networks can have IPv4 subnets only".to_owned())
    }
}

/// The last check: in JSON it has the rules, in the table they follow.
fn netfilter_check(bypassed: &Result<Vec<Bypassed>>) -> Check {
    match bypassed {
        Ok(rules) if rules.is_empty() => ("netfilter", Finding::Ok, "no rules are bypassed".to_owned()),
        Ok(rules) => ("netfilter", Finding::Note, bypassed::summary(rules)),
        Err(error) => ("netfilter", Finding::Note, error.to_string()),
    }
}

/// The programs at the host's sockets: an extra, so that what is missing is never more than a fallback.
fn cgroup_hooks(features: Features, host: Option<&Host>, tried: Option<&Trial>) -> Check {
    let refused = || tried.and_then(|trial| trial.sockets.clone());
    let lacking = || {
        let dataplane = &host.filter(|host| host.dataplane.is_loaded())?.dataplane;
        match dataplane.missing_socket_pins().map(|lost| lost.into_iter().next()) {
            Ok(Some(pin)) => Some(format!("pin {pin} is missing; `nsnet apply` brings it back")),
            Ok(None) => (!dataplane.has_socket_hooks()).then(|| "the dataplane was loaded without them".to_owned()),
            Err(error) => Some(error.to_string()),
        }
    };
    let why = if !features.cgroup {
        cgroup::root().err().map(|error| error.to_string()).or_else(|| Some("turned off by NSNET_WITHOUT".to_owned()))
    } else {
        refused().or_else(lacking)
    };
    let (finding, detail) = match why {
        Some(why) => {
            (Finding::Fallback, format!("programs of the host reach no published port, and may bind it: {why}"))
        }
        None if !features.set_retval => {
            let detail = "a bind of a published port fails with EPERM; with EADDRINUSE on Linux 5.18 and later";
            (Finding::Fallback, format!("{detail}{}", forced("set_retval")))
        }
        None => (Finding::Ok, "programs of the host reach published ports, and cannot bind them".to_owned()),
    };
    ("cgroup hooks", finding, detail)
}

/// The accelerator: an extra, too.
fn xdp(tried: &Trial) -> Check {
    match &tried.xdp {
        None => ("xdp", Finding::Ok, "ports and uplinks may go by native XDP (--mode, --uplink-mode)".to_owned()),
        Some(why) => ("xdp", Finding::Fallback, format!("TC forwards everything: {why}")),
    }
}

/// Where frames are forwarded of what is not simply left to TC.
fn modes(host: &Host) -> Vec<Check> {
    let state = host.state().unwrap_or_default();
    match mode::reasons(host, &state, |_network| true) {
        Ok(reasons) => {
            let asked = reasons.into_iter().filter(|forwarded| forwarded.mode != Mode::Tc);
            asked
                .map(|Forwarded { what, mode, at, why }| {
                    ("mode", Finding::Note, format!("{what} ({mode}): {at}, {why}"))
                })
                .collect()
        }
        Err(error) => vec![("mode", Finding::Note, error.to_string())],
    }
}

fn dataplane(tried: Result<Trial>) -> Check {
    match tried {
        Ok(trial) => {
            let programs: Vec<String> =
                trial.instructions.iter().map(|(name, count)| format!("{name} {count}")).collect();
            let detail =
                format!("loaded, tried on frames and attached in a scratch namespace; {} ms", trial.load.as_millis());
            let verified =
                if programs.is_empty() { String::new() } else { format!("; verified {}", programs.join(", ")) };
            ("dataplane", Finding::Ok, format!("{detail}{verified}"))
        }
        Err(error) => ("dataplane", Finding::Missing, error.to_string()),
    }
}
