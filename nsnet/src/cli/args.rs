//! The grammar of the command line.

use std::net::IpAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use nsnet_common::layout::FlowState;
use nsnet_common::wire::IpProtocol;

use super::agent::AgentArgs;
use super::apply::FileArgs;
use super::capture::CaptureArgs;
use super::drops::DropsArgs;
use super::explain::ExplainArgs;
use super::manual::{CompletionsArgs, ManArgs};
use super::output::Format;
use super::stats::StatsArgs;
use super::top::TopArgs;
use super::upgrade::UpgradeArgs;
use crate::model::flow::{parse_protocol, parse_state};
use crate::model::name::Name;
use crate::model::request::{AttachRequest, CableRequest, Dest, NetworkRequest, PublishArgs, RouteRequest};
use crate::model::spec::Spec;

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
    /// Masquerade: what leaves a network gets an address of the host's
    #[command(subcommand)]
    Masquerade(MasqueradeVerb),
    /// Put a namespace into a network
    Attach(AttachRequest),
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
    /// Published ports: ports of the host that lead to a namespace
    #[command(subcommand)]
    Publish(PublishVerb),
    /// The forwarding table: which MAC is behind which port
    #[command(subcommand)]
    Fdb(ListVerb),
    /// The addresses that ARP and neighbour discovery are answered for
    #[command(subcommand)]
    Neigh(ListVerb),
    /// Flows between networks and beyond: list, flush, watch
    #[command(subcommand)]
    Ct(CtVerb),
    /// Which address and port outside stands for which inside
    #[command(subcommand)]
    Nat(NatVerb),
    /// What each port has received, sent and dropped; with --watch, how much a second
    Stats(StatsArgs),
    /// Ports, flows and drops on a terminal, as they are now; `h` tells the keys
    Top(TopArgs),
    /// What was dropped, where and why, and the last packet of each reason
    Drops(DropsArgs),
    /// Capture packets with what became of them: drops with their reason, both sides of NAT
    Capture(CaptureArgs),
    /// Show what `apply` would do: what comes (+), becomes another or is put right (~), and goes (-)
    Plan(FileArgs),
    /// Make the kernel what a file says: what is not in it is taken away, what fails is taken back
    Apply(FileArgs),
    /// Print the JSON schema of the file of `plan` and `apply`
    Schema,
    /// What would become of a packet, and why: each stage, what it goes by, the verdict. Nothing is changed
    Explain(ExplainArgs),
    /// What should be, and where the kernel differs (exit code 1 then)
    Status,
    /// Take down everything that nsnet made on this host
    Down,
    /// Replace the loaded programs by this nsnet's while packets go on: no packet, flow or connection is lost
    Upgrade(UpgradeArgs),
    /// Look after the dataplane: follow uplinks, repair, sweep, serve metrics and health; nothing depends on it
    Agent(AgentArgs),
    /// What this kernel can do, what is missing, and what is used instead
    Doctor,
    /// Print what the programs log, until interrupted (development builds only)
    #[cfg(feature = "log")]
    Log,
    /// Measure it beside bridges, rules and other ways, in labs of its own, and write a report
    Bench(super::bench::BenchArgs),
    /// Show it at work: the scenarios with real traffic in a lab of its own, and a comparison with the Linux bridge
    Demo(DemoArgs),
    /// Print what has a shell complete verbs and options
    Completions(CompletionsArgs),
    /// Print the manual's page, or write those of all verbs into a folder
    Man(ManArgs),
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
    Add(CableRequest),
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
    Add(NetworkRequest),
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
    /// Show where frames are forwarded and why, or change it: at TC, or at XDP in front of it
    Mode(super::mode::ModeArgs),
    /// Show one network with its ports
    Show {
        /// The network
        name: Name,
    },
}

/// Verbs of `masquerade`.
#[derive(Debug, Subcommand)]
pub(super) enum MasqueradeVerb {
    /// From now on what leaves the network gets an address of the host's; flows that left with their own end
    On {
        /// The network
        network: Name,
    },
    /// From now on new flows leave with their own addresses; existing flows go on as they are
    Off {
        /// The network
        network: Name,
    },
}

/// Verbs of `route`.
#[derive(Debug, Subcommand)]
pub(super) enum RouteVerb {
    /// Add a route in a namespace
    Add(RouteRequest),
    /// Remove a route
    Del {
        /// The namespace
        ns: Name,
        /// A prefix, an address, or `default`
        dest: Dest,
    },
    /// List the routes of a namespace
    List {
        /// The namespace
        ns: Name,
    },
}

/// Verbs of `publish`.
#[derive(Debug, Subcommand)]
pub(super) enum PublishVerb {
    /// Publish ports of a namespace
    Add(PublishArgs),
    /// Publish them no more
    Del {
        /// The namespace
        ns: Name,
        /// What was published, as it was given or as it was printed
        #[arg(required = true, value_name = "SPEC")]
        specs: Vec<Spec>,
    },
    /// List what is published
    List,
}

/// The one verb of tables that the dataplane keeps.
#[derive(Debug, Subcommand)]
pub(super) enum ListVerb {
    /// List the entries
    List,
}

/// Verbs of `ct`.
#[derive(Debug, Subcommand)]
pub(super) enum CtVerb {
    /// List flows, one row for both directions
    List {
        /// Which flows; all when left out
        #[command(flatten)]
        filter: FlowArgs,
        /// Those too that have ended and wait to be cleared away
        #[arg(long)]
        all: bool,
        /// Print no more than this many
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
    },
    /// Forget flows: their next packet is judged anew
    Flush {
        /// Which flows; all when left out
        #[command(flatten)]
        filter: FlowArgs,
    },
    /// Print flows as they begin, change their state and end, until interrupted
    Watch {
        /// Which flows; all when left out
        #[command(flatten)]
        filter: FlowArgs,
        /// How often to look
        #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
        interval: Duration,
    },
}

/// Which flows are meant. Aliases are those of conntrack(8).
#[derive(Debug, Args)]
#[group(skip)]
pub(super) struct FlowArgs {
    /// tcp, udp, icmp, icmpv6, sctp, or a number
    #[arg(short, long, alias = "proto", value_parser = parse_protocol)]
    pub protocol: Option<IpProtocol>,
    /// Who opened the flow
    #[arg(short, long, aliases = ["src", "orig-src"], value_name = "IP[/LEN]", value_parser = prefix)]
    pub source: Option<IpNet>,
    /// To whom
    #[arg(short, long, aliases = ["dst", "orig-dst"], value_name = "IP[/LEN]", value_parser = prefix)]
    pub destination: Option<IpNet>,
    /// The opener's port; of an ICMP query, its identifier
    #[arg(long, alias = "orig-port-src", value_name = "PORT")]
    pub sport: Option<u16>,
    /// The port it was opened to
    #[arg(long, alias = "orig-port-dst", value_name = "PORT")]
    pub dport: Option<u16>,
    /// Who answers
    #[arg(short, long, alias = "reply-src", value_name = "IP[/LEN]", value_parser = prefix)]
    pub reply_source: Option<IpNet>,
    /// Where answers go
    #[arg(short = 'q', long, alias = "reply-dst", value_name = "IP[/LEN]", value_parser = prefix)]
    pub reply_destination: Option<IpNet>,
    /// The port that answers come from
    #[arg(long, alias = "reply-port-src", value_name = "PORT")]
    pub reply_sport: Option<u16>,
    /// The port that answers go to
    #[arg(long, alias = "reply-port-dst", value_name = "PORT")]
    pub reply_dport: Option<u16>,
    /// unreplied, half-open, established, closing or closed
    #[arg(long, value_parser = parse_state)]
    pub state: Option<FlowState>,
    /// Flows of this namespace, or to it
    #[arg(long, value_name = "NS")]
    pub ns: Option<Name>,
    /// Flows that begin or end in this network
    #[arg(long)]
    pub network: Option<Name>,
    /// IPv4 only
    #[arg(short = '4', group = "one_family")]
    pub v4: bool,
    /// IPv6 only
    #[arg(short = '6', group = "one_family")]
    pub v6: bool,
    /// One family only
    #[arg(short, long, value_enum, group = "one_family")]
    pub family: Option<IpFamily>,
}

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum IpFamily {
    /// IPv4
    Ipv4,
    /// IPv6
    Ipv6,
}

/// Verbs of `nat`.
#[derive(Debug, Subcommand)]
pub(super) enum NatVerb {
    /// List the endpoints that hold a port outside
    List,
}

/// A prefix, or one address.
pub(super) fn prefix(text: &str) -> Result<IpNet, String> {
    let parsed = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    parsed.ok_or_else(|| "say an address, or a prefix such as 192.168.1.0/24".to_owned())
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: Option<f64> = text.parse().ok().filter(|seconds| (0.05..=86400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "say seconds, 0.05 to 86400".to_owned())
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Leave the comparison with the Linux bridge out
    #[arg(long)]
    pub no_comparison: bool,
}
