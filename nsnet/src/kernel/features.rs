//! What this kernel can do, found by trying, and what is used instead where it cannot.

use aya::programs::{ProgramType, SchedClassifier, TcAttachType};
use aya::sys::{BpfHelper, is_helper_supported};

/// The kernel's abilities that change what we do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// tcx links (Linux 6.6); else clsact filters.
    pub tcx: bool,
    /// `bpf_redirect_peer` (Linux 5.10); else `bpf_redirect`, a queue longer.
    pub redirect_peer: bool,
}

/// Features named here, separated by commas, are treated as missing: that is how the fall-backs are tested.
pub const WITHOUT: &str = "NSNET_WITHOUT";

impl Features {
    /// What the kernel has, less what [`WITHOUT`] names.
    pub fn probe() -> Self {
        let without = std::env::var(WITHOUT).unwrap_or_default();
        let allowed = |name: &str| !without.split(',').any(|missing| missing.trim() == name);
        Self {
            tcx: allowed("tcx") && SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok(),
            redirect_peer: allowed("redirect_peer")
                && is_helper_supported(ProgramType::SchedClassifier, BpfHelper::BPF_FUNC_redirect_peer)
                    .unwrap_or(false),
        }
    }
}
