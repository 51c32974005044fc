//! The grammar of the command line.

use std::net::IpAddr;

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use nsnet_common::wire::Mac;

use super::output::Format;
use crate::model::edit::MTU_IPV4;
use crate::model::name::Name;
use crate::model::state::mac_text;

/// Network namespaces joined by an eBPF dataplane: no Linux bridge, no iptables.
#[derive(Debug, Parser)]
#[command(name = "nsnet", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
pub(super) struct Cli {
    /// How answers are printed
    #[arg(short, long, value_enum, default_value_t, global = true, value_name = "FORMAT")]
    pub output: Format,
    /// The namespace that acts as host: a name known to `ip netns`, or a path; the current one when left out
    #[arg(long, global = true, value_name = "NAME|PATH")]
    pub host_ns: Option<String>,
    /// Tell on stderr what is done, and how long it took
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Namespaces: make, delete, list, run a command in one
    #[command(subcommand)]
    Ns(NsVerb),
    /// Cables: a veth pair between two namespaces
    #[command(subcommand)]
    Cable(CableVerb),
    /// Networks: a switch with the host as its gateway
    #[command(subcommand)]
    Network(NetworkVerb),
    /// Put a namespace into a network
    Attach(AttachArgs),
    /// Take a namespace out of a network
    Detach {
        /// The network
        network: Name,
        /// The namespace
        ns: Name,
    },
    /// Routes in namespaces
    #[command(subcommand)]
    Route(RouteVerb),
    /// The forwarding table: which MAC is behind which port
    #[command(subcommand)]
    Fdb(ListVerb),
    /// The addresses that ARP and neighbour discovery are answered for
    #[command(subcommand)]
    Neigh(ListVerb),
    /// What each port has received, sent and dropped
    Stats,
    /// What was dropped, where and why
    Drops,
    /// What should be, and where the kernel differs (exit code 1 then)
    Status,
    /// Take down everything that nsnet made on this host
    Down,
    /// What this kernel can do, what is missing, and what is used instead
    Doctor,
    /// Print what the programs log, until interrupted (development builds only)
    #[cfg(feature = "log")]
    Log,
    /// Show it at work: the scenarios with real traffic in a lab of its own, and a comparison with the Linux bridge
    Demo(DemoArgs),
}

/// Verbs of `ns`.
#[derive(Debug, Subcommand)]
pub(super) enum NsVerb {
    /// Make namespaces, visible to `ip netns`; one that is there already is adopted
    Add {
        /// Names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
    },
    /// Delete namespaces; one that nsnet did not make is left, without our interfaces
    Del {
        /// Names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
        /// Detach it from its networks and cables first
        #[arg(long)]
        force: bool,
    },
    /// List namespaces
    List,
    /// Run a command in a namespace, as `ip netns exec` does
    Exec {
        /// The namespace
        name: Name,
        /// The command and its arguments
        #[arg(required = true, last = true, value_name = "CMD")]
        command: Vec<std::ffi::OsString>,
    },
}

/// Verbs of `cable`.
#[derive(Debug, Subcommand)]
pub(super) enum CableVerb {
    /// Lay a cable between two namespaces
    Add {
        /// One namespace
        ns_a: Name,
        /// The other
        ns_b: Name,
        /// Address of the first one's end
        #[arg(long, value_name = "CIDR")]
        address_a: Option<IpNet>,
        /// Address of the second one's end
        #[arg(long, value_name = "CIDR")]
        address_b: Option<IpNet>,
    },
    /// Take a cable away
    Del {
        /// One namespace
        ns_a: Name,
        /// The other
        ns_b: Name,
    },
    /// List cables
    List,
}

/// Verbs of `network`.
#[derive(Debug, Subcommand)]
pub(super) enum NetworkVerb {
    /// Make a network
    Add(NetworkArgs),
    /// Delete networks
    Del {
        /// Names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<Name>,
        /// Detach its namespaces first
        #[arg(long)]
        force: bool,
    },
    /// List networks
    List,
    /// Show one network with its ports
    Show {
        /// The network
        name: Name,
    },
}

/// Arguments of `network add`.
#[derive(Debug, Args)]
pub(super) struct NetworkArgs {
    /// The network, and the name of the host's interface in it
    pub name: Name,
    /// Subnets, IPv4 and IPv6
    #[arg(long, required = true, num_args = 1.., value_name = "CIDR")]
    pub subnet: Vec<IpNet>,
    /// The host's addresses; the last usable one of each subnet when left out
    #[arg(long, num_args = 1.., value_name = "IP")]
    pub gateway: Vec<IpAddr>,
    /// Longest packet in bytes, without the Ethernet header; that of the default route's interface when left out
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(i64::from(MTU_IPV4)..))]
    pub mtu: Option<u16>,
}

/// Arguments of `attach`.
#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// The network
    pub network: Name,
    /// The namespace
    pub ns: Name,
    /// Addresses; the lowest free one of each family when left out
    #[arg(long, num_args = 1.., value_name = "IP")]
    pub ip: Vec<IpAddr>,
    /// MAC of the interface in the namespace
    #[arg(long, value_parser = mac_text::parse)]
    pub mac: Option<Mac>,
    /// Name of the interface in the namespace; veth-NS when left out
    #[arg(long, value_name = "IF")]
    pub ifname: Option<Name>,
    /// Accept and learn foreign MACs, for a bridge or VMs inside the namespace (at most 64)
    #[arg(long)]
    pub learn: bool,
    /// Check no sender: the namespace may use any address, and be a router or DHCP server
    #[arg(long)]
    pub trusted: bool,
}

/// Verbs of `route`.
#[derive(Debug, Subcommand)]
pub(super) enum RouteVerb {
    /// Add a route in a namespace
    Add {
        /// The namespace
        ns: Name,
        /// A prefix, or `default`
        dest: String,
        /// `via GATEWAY`; the gateway of the namespace's network when left out
        #[arg(num_args = 0..=2, value_name = "via GATEWAY")]
        via: Vec<String>,
    },
    /// Remove a route
    Del {
        /// The namespace
        ns: Name,
        /// A prefix, or `default`
        dest: String,
    },
    /// List the routes of a namespace
    List {
        /// The namespace
        ns: Name,
    },
}

/// The one verb of tables that the dataplane keeps.
#[derive(Debug, Subcommand)]
pub(super) enum ListVerb {
    /// List the entries
    List,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Leave the comparison with the Linux bridge out
    #[arg(long)]
    pub no_comparison: bool,
}
