//! What a network's namespaces may do beyond it: the wish, and the dataplane's [`Policy`] that is made of it.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;

use nsnet_common::layout::{Policy, policy_flags};
use nsnet_common::wire::IpAddress;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zerocopy::FromZeros as _;

use super::ports::{PortRange, PortSet};
use super::state::Network;
use super::timeout::{Timeout, TimeoutKind};
use super::{Result, refuse};

/// An interface index that no interface has: what is bound to an uplink that is gone leaves by no other.
pub const NO_INTERFACE: u32 = u32::MAX;

/// The ports that may be chosen for masqueraded flows: below 1024 are the host's own services.
pub const SNAT_PORTS: RangeInclusive<u16> = 1024..=u16::MAX;

/// What a network's namespaces may do beyond it. The default is: routed, not masqueraded, isolated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outside {
    /// What leaves by an uplink gets an address of the host's.
    pub masquerade: bool,
    /// There is no way out, and none in.
    pub internal: bool,
    /// What leaves goes up to the host's own stack, whose forwarding and firewall decide what becomes of it.
    // Not written where it is not so: an nsnet that does not know it can go on with the rest.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub punt: bool,
    /// Namespaces of other networks are not reached, nor do they reach these. Two networks reach each other when
    /// neither is isolated.
    pub isolated: bool,
    /// The uplink, when one was asked for.
    pub uplink: Option<UplinkChoice>,
    /// The ports that masqueraded flows are given when their own is taken; [`Policy::DEFAULT`]'s when `None`.
    pub snat_ports: Option<PortRange>,
    /// Source addresses of masqueraded packets, at most one of each family; that of the uplink otherwise.
    pub snat_sources: Vec<IpAddr>,
    /// Who may answer to a mapped port.
    pub filtering: Filtering,
    /// How long flows live; [`Policy::DEFAULT`]'s where nothing is said.
    pub timeouts: Vec<Timeout>,
    /// Flows that one namespace may have established.
    pub flows_per_ns: Option<u32>,
    /// Ports of the pool that one namespace may hold.
    pub ports_per_ns: Option<u32>,
}

impl Default for Outside {
    fn default() -> Self {
        Self {
            masquerade: false,
            internal: false,
            punt: false,
            isolated: true,
            uplink: None,
            snat_ports: None,
            snat_sources: Vec::new(),
            filtering: Filtering::default(),
            timeouts: Vec::new(),
            flows_per_ns: None,
            ports_per_ns: None,
        }
    }
}

/// Which uplinks a network uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum UplinkChoice {
    /// Those that the host's routes say.
    Auto,
    /// This interface of the host's and no other.
    Named(String),
}

/// Who may answer to a mapped port (RFC 4787 section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Filtering {
    /// The endpoints that were sent to: address and port-dependent filtering.
    #[default]
    Apdf,
    /// The hosts that were sent to: address-dependent filtering.
    Adf,
    /// Everybody: endpoint-independent filtering.
    Eif,
}

impl Outside {
    /// Fails when the wishes contradict each other, or what `families` (IPv4, IPv6) the network has.
    pub(crate) fn check(&self, network: impl fmt::Display, families: (bool, bool)) -> Result<()> {
        if self.internal && (self.masquerade || self.uplink.is_some()) {
            let other = if self.masquerade { "--masquerade" } else { "--uplink" };
            return refuse(format_args!("network {network}: an internal network has no way out, so {other} cannot be"));
        }
        if self.punt && (self.masquerade || self.internal) {
            let other = if self.masquerade { "--masquerade" } else { "--internal" };
            let why = "what leaves it is the affair of the host's own rules";
            return refuse(format_args!("network {network}: with --punt {why}, so {other} cannot be"));
        }
        if let Some(range) = self.snat_ports.filter(|range| !SNAT_PORTS.contains(&range.first())) {
            let least = SNAT_PORTS.start();
            return refuse(format_args!(
                "network {network}: SNAT ports {range} begin below {least}, where the host's own services are; \
                 say {least} or a higher one"
            ));
        }
        for (position, ip) in self.snat_sources.iter().enumerate() {
            if let IpAddr::V6(v6) = ip
                && let Some(v4) = v6.to_ipv4_mapped()
            {
                return refuse(format_args!("network {network}: --snat-source {ip} stands for {v4}; say that"));
            }
            let has_family = if ip.is_ipv4() { families.0 } else { families.1 };
            if !has_family {
                return refuse(format_args!("network {network}: --snat-source {ip}: it has no subnet of this family"));
            }
            if !is_source(*ip) {
                return refuse(format_args!("network {network}: --snat-source {ip} is no unicast address"));
            }
            if self.snat_sources[..position].iter().any(|other| other.is_ipv4() == ip.is_ipv4()) {
                return refuse(format_args!("network {network}: --snat-source {ip} is the second of its family"));
            }
        }
        for (position, timeout) in self.timeouts.iter().enumerate() {
            if self.timeouts[..position].iter().any(|other| other.kind == timeout.kind) {
                return refuse(format_args!("network {network}: --timeout {} is given twice", timeout.kind));
            }
        }
        Ok(())
    }

    /// The same wish in the one way that it is kept: what is the default is not said, and lists are in order.
    #[must_use]
    pub(crate) fn normal(mut self) -> Self {
        self.timeouts.sort_unstable();
        self.timeouts.retain(|timeout| timeout.seconds != timeout.kind.of(&Policy::DEFAULT));
        self.snat_sources.sort_unstable();
        self.snat_ports = self.snat_ports.filter(|range| *range != default_pool());
        self.flows_per_ns = self.flows_per_ns.filter(|flows| *flows != Policy::DEFAULT.flows_per_ns);
        self.ports_per_ns = self.ports_per_ns.filter(|ports| *ports != Policy::DEFAULT.ports_per_ns);
        self
    }

    /// The pool of ports.
    pub fn pool(&self) -> PortRange {
        self.snat_ports.unwrap_or_else(default_pool)
    }

    /// Whether namespaces that are attached get a default route.
    pub fn has_default_route(&self) -> bool {
        self.masquerade || self.punt || self.uplink.is_some()
    }

    /// How long flows of a kind live, seconds.
    pub fn timeout(&self, kind: TimeoutKind) -> u32 {
        let asked = self.timeouts.iter().find(|timeout| timeout.kind == kind);
        asked.map_or_else(|| kind.of(&Policy::DEFAULT), |timeout| timeout.seconds)
    }

    /// What to tell the user of timeouts that break a MUST of an RFC.
    pub fn warnings(&self) -> Vec<String> {
        let low = self.timeouts.iter().filter_map(|timeout| {
            let (least, source) = timeout.kind.least()?;
            let Timeout { kind, seconds } = timeout;
            (*seconds < least).then(|| format!("timeout {kind}={seconds} is below the {least} s of {source}"))
        });
        low.collect()
    }
}

/// The options that ask for this, as they are typed; empty for the default.
impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = Vec::new();
        words.extend(self.masquerade.then(|| "--masquerade".to_owned()));
        words.extend(self.internal.then(|| "--internal".to_owned()));
        words.extend(self.punt.then(|| "--punt".to_owned()));
        words.extend((!self.isolated).then(|| "--isolate false".to_owned()));
        words.extend(self.uplink.as_ref().map(|uplink| format!("--uplink {uplink}")));
        words.extend(self.snat_ports.map(|range| format!("--snat-ports {range}")));
        words.extend(self.snat_sources.iter().map(|ip| format!("--snat-source {ip}")));
        words.extend((self.filtering != Filtering::Apdf).then(|| format!("--filtering {}", self.filtering)));
        words.extend(self.timeouts.iter().map(|timeout| format!("--timeout {timeout}")));
        words.extend(self.flows_per_ns.map(|flows| format!("--flows-per-ns {flows}")));
        words.extend(self.ports_per_ns.map(|ports| format!("--ports-per-ns {ports}")));
        f.write_str(&words.join(" "))
    }
}

/// What the dataplane is told of a network. `uplink` is the index of the interface that it named; `None` when that is
/// gone, or when none was named.
pub fn policy(network: &Network, uplink: Option<u32>) -> Policy {
    let outside = &network.outside;
    let filtering = match outside.filtering {
        Filtering::Apdf => 0,
        Filtering::Adf => policy_flags::FILTER_BY_ADDRESS,
        Filtering::Eif => policy_flags::FILTER_NOTHING,
    };
    let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
    let source = |v4: bool| {
        let ip = outside.snat_sources.iter().find(|ip| ip.is_ipv4() == v4);
        ip.map_or(IpAddress::UNSPECIFIED, |ip| IpAddress::from(*ip))
    };
    Policy {
        flags: filtering
            | flag(outside.masquerade, policy_flags::MASQUERADE)
            | flag(outside.internal, policy_flags::INTERNAL)
            | flag(outside.punt, policy_flags::PUNT)
            | flag(!outside.isolated, policy_flags::OPEN),
        uplink: match &outside.uplink {
            None | Some(UplinkChoice::Auto) => 0,
            Some(UplinkChoice::Named(_)) => uplink.unwrap_or(NO_INTERFACE),
        },
        source_v4: source(true),
        source_v6: source(false),
        first_port: outside.pool().first(),
        last_port: outside.pool().last(),
        gateway: network.port(),
        tcp_established: outside.timeout(TimeoutKind::TcpEstablished),
        tcp_transitory: outside.timeout(TimeoutKind::TcpTransitory),
        udp: outside.timeout(TimeoutKind::Udp),
        dns: outside.timeout(TimeoutKind::Dns),
        icmp: outside.timeout(TimeoutKind::Icmp),
        other: outside.timeout(TimeoutKind::Other),
        flows_per_ns: outside.flows_per_ns.unwrap_or(Policy::DEFAULT.flows_per_ns),
        ports_per_ns: outside.ports_per_ns.unwrap_or(Policy::DEFAULT.ports_per_ns),
        ..Policy::DEFAULT
    }
}

/// What the dataplane is told of the host as a whole, under the number of no network: between which ports all pools are.
/// A packet from outside to one of these ports is for a flow of ours or for nobody, unless a socket has it.
pub fn host_policy(pools: &PortSet) -> Policy {
    let told = |pools: PortRange| Policy {
        flags: policy_flags::MASQUERADE,
        first_port: pools.first(),
        last_port: pools.last(),
        ..Policy::new_zeroed()
    };
    pools.span().map_or_else(Policy::new_zeroed, told)
}

fn default_pool() -> PortRange {
    PortRange::spanning(Policy::DEFAULT.first_port, Policy::DEFAULT.last_port)
}

/// Whether packets from `ip` can be answered.
fn is_source(ip: IpAddr) -> bool {
    let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.octets()[0] >= 240 || ip.octets()[0] == 0);
    let is_link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    !ip.is_unspecified() && !ip.is_multicast() && !ip.is_loopback() && !is_broadcast && !is_link_local
}

impl UplinkChoice {
    /// The interface's name, when one was given.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Auto => None,
            Self::Named(name) => Some(name),
        }
    }
}

impl FromStr for UplinkChoice {
    type Err = String;

    /// `auto`, or what can be the name of an interface (dev_valid_name in net/core/dev.c).
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let fits = (1..=super::name::MAX_LEN).contains(&text.len()) && text != "." && text != "..";
        let is_plain = |c: char| c != '/' && c != ':' && !c.is_whitespace() && !c.is_control();
        match text {
            "auto" => Ok(Self::Auto),
            _ if fits && text.chars().all(is_plain) => Ok(Self::Named(text.to_owned())),
            _ => Err("say `auto`, or the name of an interface, which has 1 to 15 characters".to_owned()),
        }
    }
}

impl TryFrom<String> for UplinkChoice {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<UplinkChoice> for String {
    fn from(choice: UplinkChoice) -> Self {
        choice.to_string()
    }
}

impl fmt::Display for UplinkChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name().unwrap_or("auto"))
    }
}

impl FromStr for Filtering {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "apdf" => Ok(Self::Apdf),
            "adf" => Ok(Self::Adf),
            "eif" => Ok(Self::Eif),
            _ => Err("say apdf (address and port), adf (address) or eif (everybody)".to_owned()),
        }
    }
}

impl fmt::Display for Filtering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Apdf => "apdf",
            Self::Adf => "adf",
            Self::Eif => "eif",
        })
    }
}

#[cfg(test)]
mod tests {
    use nsnet_common::layout::PortId;
    use nsnet_common::wire::Mac;

    use super::super::mode::Modes;

    use super::*;

    fn network(outside: Outside) -> Network {
        let (name, subnets, modes) = ("v".parse().unwrap(), Vec::new(), Modes::default());
        Network { name, id: 1, port: 7, mac: Mac::ZERO, subnets, mtu: 1500, outside, modes }
    }

    fn refusal(outside: &Outside) -> String {
        outside.check("v", (true, false)).unwrap_err().to_string()
    }

    #[test]
    fn the_default_is_routed_and_isolated() {
        let told = policy(&network(Outside::default()), None);
        assert_eq!(told, Policy { gateway: PortId(7), ..Policy::DEFAULT });
        assert_eq!(Outside::default().to_string(), "");
        assert_eq!(serde_json::from_str::<Outside>("{}").unwrap(), Outside::default());
    }

    #[test]
    fn what_is_asked_for_is_told() {
        let outside = Outside {
            masquerade: true,
            isolated: false,
            uplink: Some("eth1".parse().unwrap()),
            snat_ports: Some("2000-2999".parse().unwrap()),
            snat_sources: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            filtering: Filtering::Adf,
            timeouts: vec!["udp=10".parse().unwrap(), "dns=5".parse().unwrap()],
            flows_per_ns: Some(100),
            ports_per_ns: Some(50),
            ..Outside::default()
        };
        let told = policy(&network(outside.clone()), Some(3));
        assert_eq!(told.flags, policy_flags::MASQUERADE | policy_flags::OPEN | policy_flags::FILTER_BY_ADDRESS);
        assert_eq!((told.uplink, told.first_port, told.last_port), (3, 2000, 2999));
        assert_eq!(told.source_v4, IpAddress::v4([192, 0, 2, 1]));
        assert_eq!(IpAddr::from(told.source_v6), "2001:db8::1".parse::<IpAddr>().unwrap());
        assert_eq!((told.udp, told.dns, told.icmp), (10, 5, Policy::DEFAULT.icmp));
        assert_eq!((told.flows_per_ns, told.ports_per_ns), (100, 50));
        assert_eq!(policy(&network(outside.clone()), None).uplink, NO_INTERFACE, "it leaves by no other");

        assert_eq!(
            outside.to_string(),
            "--masquerade --isolate false --uplink eth1 --snat-ports 2000-2999 --snat-source 192.0.2.1 \
             --snat-source 2001:db8::1 --filtering adf --timeout udp=10 --timeout dns=5 --flows-per-ns 100 \
             --ports-per-ns 50"
        );
        let text = serde_json::to_string(&outside).unwrap();
        assert_eq!(serde_json::from_str::<Outside>(&text).unwrap(), outside);
        assert_eq!(outside.warnings(), ["timeout udp=10 is below the 120 s of RFC 4787 REQ-5"]);
    }

    #[test]
    fn all_pools_of_the_host_in_one() {
        let told = host_policy(&"2000-2999,16384-32767".parse().unwrap());
        assert!(told.has(policy_flags::MASQUERADE));
        assert_eq!((told.first_port, told.last_port), (2000, 32767));
        assert_eq!(host_policy(&PortSet::default()), Policy::new_zeroed());
    }

    #[test]
    fn what_is_the_default_is_not_kept() {
        let said = Outside {
            snat_ports: Some("16384-32767".parse().unwrap()),
            timeouts: vec!["udp=300".parse().unwrap()],
            flows_per_ns: Some(Policy::DEFAULT.flows_per_ns),
            ports_per_ns: Some(Policy::DEFAULT.ports_per_ns),
            ..Outside::default()
        };
        assert_eq!(said.normal(), Outside::default());
    }

    #[test]
    fn contradictions() {
        let internal = Outside { internal: true, ..Outside::default() };
        assert!(internal.check("v", (true, true)).is_ok());
        assert!(refusal(&Outside { masquerade: true, ..internal.clone() }).contains("--masquerade"));
        assert!(refusal(&Outside { uplink: Some(UplinkChoice::Auto), ..internal }).contains("--uplink"));
        let ports = |text: &str| Outside { snat_ports: Some(text.parse().unwrap()), ..Outside::default() };
        assert!(refusal(&ports("1023-2000")).contains("1024"));
        assert!(ports("1024-65535").check("v", (true, false)).is_ok());
        let sources = |list: &[&str]| Outside {
            snat_sources: list.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..Outside::default()
        };
        assert!(refusal(&sources(&["2001:db8::1"])).contains("family"));
        assert!(refusal(&sources(&["192.0.2.1", "192.0.2.2"])).contains("192.0.2.2"));
        for bad in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
            assert!(refusal(&sources(&[bad])).contains(bad));
        }
        let twice =
            Outside { timeouts: vec!["udp=200".parse().unwrap(), "udp=201".parse().unwrap()], ..Outside::default() };
        assert!(refusal(&twice).contains("udp"));
    }

    #[test]
    fn words() {
        for bad in ["", ".", "..", "a/b", "a b", "sixteen-letters-", "a\n"] {
            assert!(bad.parse::<UplinkChoice>().is_err(), "{bad}");
        }
        for good in ["eth0", "eth0.100", "wan@1", "_x", "auto"] {
            assert_eq!(good.parse::<UplinkChoice>().unwrap().to_string(), good);
        }
        assert!("APDF".parse::<Filtering>().is_err());
    }
}
