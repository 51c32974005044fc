//! A Linux bridge, to compare with: what nsnet replaces. Nothing but the lab ever makes one.

use anyhow::Result;
use ipnet::IpNet;
use rtnetlink::LinkBridge;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};

use crate::kernel::netlink::Netlink;
use crate::kernel::netns::NetNs;
use crate::kernel::sysctl;
use crate::kernel::veth::VethSpec;

/// The interface of each member in its own namespace.
pub const MEMBER_INTERFACE: &str = "veth-bridge";

/// Makes the bridge `name` in `host` and joins each member to it with an address, as `ip link add type bridge` and
/// `ip link set master` do. It goes with the host's namespace. Spanning tree stays off, as is the kernel's default, so
/// the ports forward at once.
///
/// # Errors
/// When the kernel refuses a step, mostly because a name is taken or it has no bridge.
pub fn make(host: &NetNs, name: &str, members: &[(&NetNs, IpNet)]) -> Result<()> {
    // A cost that the bridge itself does not have: who wants it says so.
    pass_netfilter(host, false)?;
    let netlink = Netlink::inside(host)?;
    let request = RouteNetlinkMessage::NewLink(LinkBridge::new(name).build());
    netlink.ask(request, NLM_F_CREATE | NLM_F_EXCL, format_args!("create bridge {name}"))?;
    let bridge = netlink.existing_link(name)?;
    for (number, (member, address)) in members.iter().enumerate() {
        let port = VethSpec { name: &format!("{name}-{number}"), ..VethSpec::default() };
        let inner = VethSpec { name: MEMBER_INTERFACE, ..VethSpec::default() };
        let port = netlink.create_veth(&port, &inner, Some(member))?;
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::Controller(bridge.index));
        netlink.set_link(port.index, request, format_args!("join {} to bridge {name}", port.name))?;
        netlink.set_up(port.index)?;

        let inside = Netlink::inside(member)?;
        let inner = inside.existing_link(MEMBER_INTERFACE)?;
        inside.add_address(inner.index, *address)?;
        inside.set_up(inner.index)?;
    }
    Ok(())
}

/// Whether packets go through iptables on bridges, too, as Docker and Kubernetes ask for, and as is the default of a kernel
/// with br_netfilter. `false` when this one has none, and nothing to choose.
///
/// # Errors
/// When the kernel refuses to set it.
pub fn pass_netfilter(host: &NetNs, passes: bool) -> Result<bool> {
    host.run(|| {
        let mut is_there = true;
        for table in ["iptables", "ip6tables", "arptables"] {
            let value = if passes { "1" } else { "0" };
            is_there &= sysctl::write(&format!("net/bridge/bridge-nf-call-{table}"), value)?;
        }
        Ok(is_there)
    })?
}
