//! What is measured beside nsnet, over which ways, and what each needs to be there.

use serde::{Deserialize, Serialize};

use super::tool;

/// A way to join namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// A veth pair between sender and receiver: the limit, and the baseline of every ratio.
    Direct,
    /// The same pair once more: what differs from the first is noise.
    DirectAgain,
    /// A Linux bridge without any rule.
    Bridge,
    /// A bridge, and the rules that Docker makes, by iptables-nft; bridged frames pass them, too (br_netfilter).
    DockerNft,
    /// The same rules by iptables-legacy.
    DockerLegacy,
    /// A bridge, and nftables rules that find published ports in a map.
    NftMaps,
    /// macvlan interfaces in bridge mode.
    Macvlan,
    /// A veth pair and a route for each namespace, and MASQUERADE.
    Routed,
    /// A bridge, and a process that accepts connections and opens its own to the namespace.
    Proxy,
    /// nsnet as it is.
    Nsnet,
    /// nsnet on a kernel without `bpf_redirect_peer`.
    NsnetRedirect,
    /// nsnet with its accelerator, for a namespace that sends frames of XDP.
    NsnetXdp,
}

/// From where to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// One namespace to another.
    NsToNs,
    /// A namespace to the host.
    NsToHost,
    /// A namespace to the outside, by an address of the host's.
    NsToOutside,
    /// The outside to a published port.
    OutsideToPublished,
    /// The host to its own published port.
    HostToPublished,
    /// A namespace to its own host's published port.
    NsToPublished,
}

impl Peer {
    /// All of them, in the order of reports.
    pub const ALL: [Peer; 12] = [
        Peer::Direct,
        Peer::DirectAgain,
        Peer::Bridge,
        Peer::DockerNft,
        Peer::DockerLegacy,
        Peer::NftMaps,
        Peer::Macvlan,
        Peer::Routed,
        Peer::Proxy,
        Peer::Nsnet,
        Peer::NsnetRedirect,
        Peer::NsnetXdp,
    ];

    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Peer::Direct => "direct veth",
            Peer::DirectAgain => "direct veth again",
            Peer::Bridge => "Linux bridge",
            Peer::DockerNft => "bridge, Docker's iptables-nft rules",
            Peer::DockerLegacy => "bridge, Docker's iptables-legacy rules",
            Peer::NftMaps => "bridge, nft maps",
            Peer::Macvlan => "macvlan bridge mode",
            Peer::Routed => "routed veth, MASQUERADE",
            Peer::Proxy => "userland proxy",
            Peer::Nsnet => "nsnet",
            Peer::NsnetRedirect => "nsnet without redirect_peer",
            Peer::NsnetXdp => "nsnet, XDP",
        }
    }

    /// The one with that name.
    pub(super) fn named(name: &str) -> Option<Peer> {
        Peer::ALL.into_iter().find(|peer| peer.name() == name)
    }

    /// Whether its flows are entries of nf_conntrack.
    pub(super) fn tracks_by_kernel(self) -> bool {
        matches!(self, Peer::DockerNft | Peer::DockerLegacy | Peer::NftMaps | Peer::Routed)
    }

    /// Whether it is one of ours.
    pub fn is_nsnet(self) -> bool {
        matches!(self, Peer::Nsnet | Peer::NsnetRedirect | Peer::NsnetXdp)
    }

    /// Whether it is another way to do what nsnet does: the direct veth is the limit of all.
    pub(super) fn is_another_way(self) -> bool {
        !self.is_nsnet() && !matches!(self, Peer::Direct | Peer::DirectAgain)
    }

    /// Whether it has this way. The direct veth stands for the limit on each.
    pub fn has(self, way: Way) -> bool {
        match self {
            Peer::Direct | Peer::DirectAgain | Peer::Nsnet | Peer::NsnetRedirect => true,
            Peer::Bridge => matches!(way, Way::NsToNs | Way::NsToHost),
            // On these, what namespaces ask of the host's port is for its own socket.
            Peer::Routed => !matches!(way, Way::HostToPublished | Way::NsToPublished),
            Peer::DockerNft | Peer::DockerLegacy | Peer::NftMaps => !matches!(way, Way::NsToHost),
            Peer::Macvlan => way == Way::NsToNs,
            // Between those who have frames of XDP: what comes from outside here is a kernel's.
            Peer::NsnetXdp => matches!(way, Way::NsToNs | Way::NsToOutside),
            Peer::Proxy => matches!(way, Way::OutsideToPublished | Way::HostToPublished | Way::NsToPublished),
        }
    }

    /// Whether frames can be injected where its namespaces' frames come in: macvlan has no such place, and a proxy no
    /// frames that pass.
    pub fn takes_frames(self) -> bool {
        !matches!(self, Peer::Macvlan | Peer::Proxy)
    }

    /// The programs that it is made with.
    pub(super) fn tools(self) -> &'static [&'static str] {
        match self {
            Peer::DockerNft => &[tool::IPTABLES_NFT, tool::IP6TABLES_NFT, tool::CONNTRACK],
            Peer::DockerLegacy => &[tool::IPTABLES_LEGACY, tool::IP6TABLES_LEGACY, tool::CONNTRACK],
            Peer::Routed => &[tool::IPTABLES_NFT, tool::IP6TABLES_NFT, tool::IP, tool::CONNTRACK],
            Peer::NftMaps => &[tool::NFT, tool::CONNTRACK],
            Peer::Macvlan => &[tool::IP],
            Peer::Direct
            | Peer::DirectAgain
            | Peer::Bridge
            | Peer::Proxy
            | Peer::Nsnet
            | Peer::NsnetRedirect
            | Peer::NsnetXdp => &[],
        }
    }
}

impl Way {
    /// All of them, in the order of reports.
    pub const ALL: [Way; 6] = [
        Way::NsToNs,
        Way::NsToHost,
        Way::NsToOutside,
        Way::OutsideToPublished,
        Way::HostToPublished,
        Way::NsToPublished,
    ];

    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Way::NsToNs => "namespace to namespace",
            Way::NsToHost => "namespace to host",
            Way::NsToOutside => "namespace to outside (SNAT)",
            Way::OutsideToPublished => "outside to published port (DNAT)",
            Way::HostToPublished => "host to its published port",
            Way::NsToPublished => "namespace to the host's published port",
        }
    }

    /// Whether it needs published ports.
    pub(super) fn is_published(self) -> bool {
        matches!(self, Way::OutsideToPublished | Way::HostToPublished | Way::NsToPublished)
    }
}
