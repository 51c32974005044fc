//! What this kernel can do, found by trying, and what is used instead where it cannot.

use aya::programs::{ProgramType, SchedClassifier, TcAttachType};
use aya::sys::{BpfHelper, is_helper_supported};

use nix::errno::Errno;

use super::cgroup;
use super::dataplane::refused;
use super::error::{KernelError, Result};

/// The kernel's abilities that change what we do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// tcx links (Linux 6.6); else clsact filters.
    pub tcx: bool,
    /// `bpf_redirect_peer` (Linux 5.10); else `bpf_redirect`, a queue longer.
    pub redirect_peer: bool,
    /// `bpf_redirect_peer` makes the frame the namespace's own (Linux 6.16); else the programs set its type.
    pub peer_scrubs: bool,
    /// `BPF_FIB_LOOKUP_SRC` (Linux 6.7); else the source of masqueraded packets is the uplink's first address, as the
    /// control plane last saw it.
    pub fib_source: bool,
    /// The root cgroup can be opened, for the hooks at sockets; else programs of the host reach no published port.
    pub cgroup: bool,
    /// `bpf_set_retval` (Linux 5.18); else what these hooks refuse fails with EPERM.
    pub set_retval: bool,
}

/// Features named here, separated by commas, are treated as missing: that is how the fall-backs are tested.
pub const WITHOUT: &str = "NSNET_WITHOUT";

/// What can be named.
const SWITCHES: [&str; 6] = ["tcx", "redirect_peer", "peer_scrubs", "fib_source", "cgroup", "set_retval"];

impl Features {
    /// What the kernel has, less what [`WITHOUT`] names. What cannot be found out counts as missing.
    pub fn probe() -> Self {
        Self::find_out().0
    }

    /// The same, and the first thing that could not be found out, which no fall-back may be chosen by.
    pub(crate) fn find_out() -> (Self, Result<()>) {
        let mut doubt = Ok(());
        let mut settled = |found: Result<bool>| {
            found.unwrap_or_else(|error| {
                if doubt.is_ok() {
                    doubt = Err(error);
                }
                false
            })
        };
        let without = std::env::var(WITHOUT).unwrap_or_default();
        let without: Vec<&str> = without.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
        if let Some(unknown) = without.iter().find(|name| !SWITCHES.contains(name)) {
            let why = format!("there is no {unknown:?} to do without, but {}", SWITCHES.join(", "));
            settled(Err(KernelError::refused(format!("read {WITHOUT}"), why)));
        }
        let allowed = |name: &str| !without.contains(&name);
        let found = Self {
            tcx: allowed("tcx") && settled(has_tcx()),
            redirect_peer: allowed("redirect_peer")
                && settled(has_helper(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_redirect_peer)),
            peer_scrubs: allowed("peer_scrubs") && kernel_is_at_least(6, 16),
            fib_source: allowed("fib_source") && kernel_is_at_least(6, 7),
            cgroup: allowed("cgroup") && settled(cgroup::is_there()),
            set_retval: allowed("set_retval")
                && settled(has_helper(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval)),
        };
        (found, doubt)
    }
}

fn has_tcx() -> Result<bool> {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_programs) => Ok(true),
        Err(error) => {
            let error = refused("find out whether this kernel has tcx", error);
            // What a kernel without it says of an attach type that it does not know.
            let is_unknown = matches!(error.errno(), Some(Errno::EINVAL | Errno::EOPNOTSUPP));
            if is_unknown { Ok(false) } else { Err(error) }
        }
    }
}

fn has_helper(kind: ProgramType, helper: BpfHelper) -> Result<bool> {
    is_helper_supported(kind, helper)
        .map_err(|error| refused(format!("find out whether this kernel has {helper:?}"), error))
}

/// By version, because a flag of a helper shows only when a program with it runs.
fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (major, minor)
}
