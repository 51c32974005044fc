//! What verbs take on the command line, and a file of `nsnet apply` has under the same names: one definition for both.
//!
//! A key of the file is an option's name with `_` for `-`; what may be given several times is a text or an array of texts.
//! What each says is checked where it becomes part of the state (`model::edit`), so both are refused alike.

mod text;

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::str::FromStr;

use clap::Args;
use ipnet::IpNet;
use nsnet_common::wire::Mac;
use schemars::JsonSchema;
use serde::Deserialize;

use super::edit::{MTU_IPV4, default_route};
use super::mode::{Mode, Modes};
use super::name::Name;
use super::policy::{Filtering, Outside, UplinkChoice};
use super::ports::PortRange;
use super::publish::PublishRequest;
use super::spec::Spec;
use super::state::mac_text;
use super::timeout::Timeout;

/// A namespace, visible to `ip netns`. One that is there already is adopted: nsnet will not delete it
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NsRequest {
    /// Its name
    pub name: Name,
}

/// A network: a switch with the host as its gateway
#[derive(Clone, Debug, Args, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkRequest {
    /// The network, and the name of the host's interface in it
    pub name: Name,
    /// Subnets, IPv4 and IPv6
    #[arg(long, required = true, num_args = 1.., value_name = "CIDR", value_parser = prefix)]
    #[serde(deserialize_with = "text::subnets")]
    #[schemars(schema_with = "text::prefixes")]
    pub subnet: Vec<IpNet>,
    /// The host's addresses; the last usable one of each subnet when left out
    #[arg(long, num_args = 1.., value_name = "IP", value_parser = address)]
    #[serde(default, deserialize_with = "text::one_or_more")]
    #[schemars(schema_with = "text::addresses")]
    pub gateway: Vec<IpAddr>,
    /// Longest packet in bytes, without the Ethernet header; that of the default route's interface when left out
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(i64::from(MTU_IPV4)..))]
    pub mtu: Option<u16>,
    /// What leaves the network gets an address of the host's
    #[arg(long)]
    #[serde(default)]
    pub masquerade: bool,
    /// No way out and none in: namespaces reach one another and the gateway
    #[arg(long)]
    #[serde(default)]
    pub internal: bool,
    /// What leaves the network goes up to the host's own stack: its firewall sees it, and its rules translate it or do not
    /// (needs net.ipv4.ip_forward)
    #[arg(long)]
    #[serde(default)]
    pub punt: bool,
    /// Whether other networks' namespaces are kept away; two networks reach each other when neither is isolated
    #[arg(long, value_name = "true|false", default_value_t = true, action = clap::ArgAction::Set)]
    #[serde(default = "yes")]
    pub isolate: bool,
    /// The host's interface that leads out; `auto`, as when left out, follows the host's routes
    #[arg(long, value_name = "IF|auto")]
    pub uplink: Option<UplinkChoice>,
    /// Ports that masqueraded flows are given when their own is taken
    #[arg(long, value_name = "LOW-HIGH")]
    pub snat_ports: Option<PortRange>,
    /// Source addresses of masqueraded packets, one of each family; those of the interface they leave by when left out
    #[arg(long, num_args = 1.., value_name = "IP", value_parser = address)]
    #[serde(default, deserialize_with = "text::one_or_more")]
    #[schemars(schema_with = "text::addresses")]
    pub snat_source: Vec<IpAddr>,
    /// Who may answer to a mapped port: who was sent to (apdf), his whole host (adf), everybody (eif)
    #[arg(long, value_name = "apdf|adf|eif", default_value_t)]
    #[serde(default)]
    pub filtering: Filtering,
    /// Seconds that idle flows live: tcp-established, tcp-transitory, udp, dns, icmp, other
    #[arg(long, num_args = 1.., value_name = "NAME=SECONDS")]
    #[serde(default, deserialize_with = "text::one_or_more")]
    #[schemars(schema_with = "text::timeouts")]
    pub timeout: Vec<Timeout>,
    /// Flows that one namespace may have established
    #[arg(long, value_name = "N")]
    pub flows_per_ns: Option<NonZeroU32>,
    /// Ports that one namespace may hold for its masqueraded flows
    #[arg(long, value_name = "N")]
    pub ports_per_ns: Option<NonZeroU32>,
    /// Where frames of the ports are forwarded: at TC; as far as possible at XDP, for namespaces that have frames of XDP
    /// themselves; or as fits, which is TC
    #[arg(long, value_name = "tc|xdp|auto")]
    pub mode: Option<Mode>,
    /// Where frames of the uplinks are forwarded: at TC; as far as possible at XDP; at XDP where the device is made for it
    #[arg(long, value_name = "tc|xdp|auto")]
    pub uplink_mode: Option<Mode>,
}

/// A namespace in a network
#[derive(Clone, Debug, Args, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// The network
    pub network: Name,
    /// The namespace
    pub ns: Name,
    /// Addresses; the lowest free one of each family when left out
    #[arg(long, num_args = 1.., value_name = "IP", value_parser = address)]
    #[serde(default, deserialize_with = "text::one_or_more")]
    #[schemars(schema_with = "text::addresses")]
    pub ip: Vec<IpAddr>,
    /// MAC of the interface in the namespace
    #[arg(long, value_parser = mac_text::parse)]
    #[serde(default, deserialize_with = "text::mac")]
    #[schemars(schema_with = "text::mac_schema")]
    pub mac: Option<Mac>,
    /// Name of the interface in the namespace; veth-NS when left out
    #[arg(long, value_name = "IF")]
    pub ifname: Option<Name>,
    /// Accept and learn foreign MACs, for a bridge or VMs inside the namespace (at most 64)
    #[arg(long)]
    #[serde(default)]
    pub learn: bool,
    /// Check no sender: the namespace may use any address, and be a router or DHCP server
    #[arg(long)]
    #[serde(default)]
    pub trusted: bool,
    /// Let nothing pass between it and the network's other isolated namespaces; the gateway, published ports and those
    /// that are not isolated stay in reach (Docker's icc=false, where all of them are)
    #[arg(long)]
    #[serde(default)]
    pub isolated: bool,
}

/// A cable: a veth pair between two namespaces
#[derive(Clone, Debug, Args, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CableRequest {
    /// One namespace
    #[arg(value_name = "NS_A")]
    pub a: Name,
    /// The other
    #[arg(value_name = "NS_B")]
    pub b: Name,
    /// Address of the first one's end
    #[arg(long, value_name = "CIDR", value_parser = prefix)]
    #[serde(default, deserialize_with = "text::with_prefix")]
    #[schemars(schema_with = "text::prefix")]
    pub address_a: Option<IpNet>,
    /// Address of the second one's end
    #[arg(long, value_name = "CIDR", value_parser = prefix)]
    #[serde(default, deserialize_with = "text::with_prefix")]
    #[schemars(schema_with = "text::prefix")]
    pub address_b: Option<IpNet>,
}

/// A route in a namespace
#[derive(Clone, Debug, Args, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteRequest {
    /// The namespace
    pub ns: Name,
    /// A prefix, an address, or `default`
    pub dest: Dest,
    /// The word `via`, which the command line has before the gateway.
    #[arg(value_name = "via", value_parser = ["via"], hide_possible_values = true, requires = "via")]
    #[serde(skip)]
    pub word: Option<String>,
    /// The next hop; the gateway of the namespace's network when left out
    #[arg(value_name = "GATEWAY", value_parser = address)]
    pub via: Option<IpAddr>,
}

/// Published ports of a namespace
#[derive(Clone, Debug, Args, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishArgs {
    /// The namespace
    pub ns: Name,
    /// `[HOST_IP:][PORT[-END]:]PORT[-END][/tcp|/udp|/sctp]`: the host's address (all when left out), the host's ports (a
    /// free one is chosen when left out, or of a range that leads to one port), the namespace's ports
    #[arg(required = true, value_name = "SPEC")]
    #[serde(deserialize_with = "text::one_or_more")]
    #[schemars(schema_with = "text::specs")]
    pub port: Vec<Spec>,
    /// The network by which it is reached; its first one when left out
    #[arg(long)]
    pub network: Option<Name>,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Dest {
    /// Everywhere that no other route leads.
    Default,
    /// There.
    Net(IpNet),
}

impl Dest {
    /// The destination of one family.
    pub fn of_family(self, v4: bool) -> IpNet {
        match self {
            Self::Net(net) => net,
            Self::Default => default_route(v4),
        }
    }
}

impl FromStr for Dest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "default" {
            return Ok(Self::Default);
        }
        let parsed = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        let net = parsed.ok_or_else(|| "say a prefix such as 192.168.1.0/24, or `default`".to_owned())?;
        match net.trunc() {
            meant if meant == net => Ok(Self::Net(net)),
            meant => Err(format!("it has bits set after the prefix; say {meant}")),
        }
    }
}

impl TryFrom<String> for Dest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl RouteRequest {
    /// The destination, of the next hop's family; `default` alone is IPv4's.
    pub fn dest(&self) -> IpNet {
        self.dest.of_family(self.via.is_none_or(|ip| ip.is_ipv4()))
    }
}

impl PublishArgs {
    /// One request for each of the ports.
    pub fn requests(&self) -> impl Iterator<Item = PublishRequest> {
        let Self { ns, port, network } = self;
        port.iter().map(|spec| PublishRequest { ns: ns.clone(), network: network.clone(), spec: spec.clone() })
    }
}

impl NetworkRequest {
    /// A network of which nothing more is said.
    pub fn new(name: Name, subnet: Vec<IpNet>) -> Self {
        Self {
            name,
            subnet,
            gateway: Vec::new(),
            mtu: None,
            masquerade: false,
            internal: false,
            punt: false,
            isolate: yes(),
            uplink: None,
            snat_ports: None,
            snat_source: Vec::new(),
            filtering: Filtering::default(),
            timeout: Vec::new(),
            flows_per_ns: None,
            ports_per_ns: None,
            mode: None,
            uplink_mode: None,
        }
    }

    /// Where it says that frames are forwarded; where it says nothing, it is TC.
    pub fn modes(&self) -> Modes {
        Modes { ports: self.mode.unwrap_or_default(), uplinks: self.uplink_mode.unwrap_or_default() }
    }

    /// What it says of what is beyond the network.
    pub fn outside(&self) -> Outside {
        Outside {
            masquerade: self.masquerade,
            internal: self.internal,
            punt: self.punt,
            isolated: self.isolate,
            uplink: self.uplink.clone(),
            snat_ports: self.snat_ports,
            snat_sources: self.snat_source.clone(),
            filtering: self.filtering,
            timeouts: self.timeout.clone(),
            flows_per_ns: self.flows_per_ns.map(NonZeroU32::get),
            ports_per_ns: self.ports_per_ns.map(NonZeroU32::get),
        }
    }
}

impl AttachRequest {
    /// An attachment of which nothing more is said.
    pub fn new(network: Name, ns: Name) -> Self {
        Self { network, ns, ip: Vec::new(), mac: None, ifname: None, learn: false, trusted: false, isolated: false }
    }
}

/// An address with a prefix length.
fn prefix(text: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_not_one| {
        let (ip, length) = text.split_once('/').map_or((text, None), |(ip, length)| (ip, Some(length)));
        match (ip.parse::<IpAddr>(), length) {
            (Err(_), _) => "say an address and a prefix length, such as 192.168.15.0/24".to_owned(),
            (Ok(ip), None) => format!("the prefix length is missing; say {ip}/{}", if ip.is_ipv4() { 24 } else { 64 }),
            (Ok(ip), Some(_)) => format!("a prefix length is 0 to {}", if ip.is_ipv4() { 32 } else { 128 }),
        }
    })
}

/// An address without one.
fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_not_one| match text.parse::<IpNet>() {
        Ok(net) => format!("an address has no prefix length here; say {}", net.addr()),
        Err(_) => "say an address, such as 192.168.15.1 or fd15::1".to_owned(),
    })
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lacks_of_a_prefix_is_said() {
        for (text, told) in [
            ("10.1.0.0", "the prefix length is missing; say 10.1.0.0/24"),
            ("fd00::1", "the prefix length is missing; say fd00::1/64"),
            ("10.1.0.0/33", "a prefix length is 0 to 32"),
            ("10.1.0.0/", "a prefix length is 0 to 32"),
            ("fd00::/129", "a prefix length is 0 to 128"),
            ("x/24", "say an address and a prefix length, such as 192.168.15.0/24"),
        ] {
            assert_eq!(prefix(text), Err(told.to_owned()), "{text}");
        }
        assert!(prefix("10.1.0.1/24").is_ok(), "an end of a cable has such an address");
    }

    #[test]
    fn what_is_too_much_of_an_address_is_said() {
        assert_eq!(address("fd15::1"), Ok("fd15::1".parse().unwrap()));
        assert_eq!(address("10.1.0.1/24"), Err("an address has no prefix length here; say 10.1.0.1".to_owned()));
        assert!(address("10.1.0").is_err_and(|told| told.starts_with("say an address")));
    }

    #[test]
    fn a_destination_is_a_prefix_and_nothing_more() {
        assert_eq!(
            "10.60.1.1/16".parse::<Dest>(),
            Err("it has bits set after the prefix; say 10.60.0.0/16".to_owned())
        );
        for good in ["10.60.0.0/16", "10.60.1.1", "10.60.1.1/32", "::/0", "default"] {
            assert!(good.parse::<Dest>().is_ok(), "{good}");
        }
    }
}
