//! What must be allowed us: capabilities(7).

use caps::{CapSet, Capability};

use super::error::{KernelError, Result};

/// What nothing can be changed without, each with what it is for. (CAP_SYS_ADMIN stands in for CAP_BPF: `bpf_capable()`
/// in include/linux/capability.h.)
pub const NEEDED: [(Capability, &str); 2] = [
    (Capability::CAP_SYS_ADMIN, "enter network namespaces, look at programs and links by their number"),
    (Capability::CAP_NET_ADMIN, "change interfaces, addresses, routes and their settings, attach programs"),
];

/// Those of them that are not effective.
pub fn missing() -> Result<Vec<(Capability, &'static str)>> {
    let effective = caps::read(None, CapSet::Effective);
    let effective = effective.map_err(|error| KernelError::refused("read our capabilities", error))?;
    Ok(NEEDED.into_iter().filter(|(capability, _)| !effective.contains(capability)).collect())
}

/// Refuses to begin what would fail half way, and could not be taken back then either.
pub(crate) fn check() -> Result<()> {
    match missing()?.first() {
        Some((capability, reason)) => {
            let refused = KernelError::refused("change anything", format!("{capability} is missing ({reason})"));
            Err(refused.with_remedy("run as root, with this capability"))
        }
        None => Ok(()),
    }
}
