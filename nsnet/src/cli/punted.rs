//! What the host's own stack must do for a network whose traffic goes there.

use super::output;
use crate::kernel::sysctl;
use crate::model::state::Network;

/// Tells of forwarding that is switched off: what is punted ends in the host then.
pub(super) fn tell(network: &Network) {
    if !network.outside.punt {
        return;
    }
    let has_ipv4 = network.subnets.iter().any(|subnet| subnet.net.addr().is_ipv4());
    let families = [(has_ipv4, "net/ipv4/ip_forward"), (network.has_ipv6(), "net/ipv6/conf/all/forwarding")];
    for (_, key) in families.into_iter().filter(|(is_spoken, _)| *is_spoken) {
        // What cannot be read is no reason for a word: everything is done already.
        if sysctl::read(key).is_ok_and(|value| value.as_deref() == Some("0")) {
            let (name, setting) = (&network.name, key.replace('/', "."));
            output::note(&format!(
                "network {name}: {setting} is 0, so the host forwards nothing of what is punted to it; \
                 `sysctl -w {setting}=1`"
            ));
        }
    }
}
