//! What `publish` takes: `[HOST_IP:]PORT[-END]:PORT[-END][/tcp|/udp|/sctp]`, read and printed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use nsnet_common::wire::IpProtocol;
use serde::{Deserialize, Serialize};

use super::ports::{NotAPortRange, PortRange};

/// Longer than the longest: an IPv6 address in brackets, two ranges, a protocol.
const MAX_LEN: usize = 80;

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// What to publish, as it was asked for or, with `host` of the target's length, as it was decided.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Spec {
    host: Option<PortRange>,
    target: PortRange,
    protocol: Protocol,
    host_ip: Option<IpAddr>,
}

/// Why a text is no [`Spec`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotASpec {
    /// Another number of parts.
    #[error("it is not [HOST_IP:]PORT[-END]:PORT[-END][/tcp|/udp|/sctp], such as 8080:80")]
    Shape,
    /// An IPv6 address that cannot be told from ports.
    #[error("an IPv6 address is written in brackets and followed by both ports, as in [::1]:8080:80")]
    Brackets,
    /// What stands where an address should.
    #[error("the host's address is no IP address")]
    Address,
    /// An IPv4 address in IPv6's clothes.
    #[error("an IPv4 address is written without ::ffff: and brackets")]
    Mapped,
    /// What stands where a port should.
    #[error("a port is a number from 1 to 65535")]
    Port,
    /// 90-80.
    #[error("a range begins with its lowest port")]
    Order,
    /// 8000-8010:80-81, 8000:80-90.
    #[error("a range leads to a range of the same length, or to one port, for which one of the range is chosen")]
    Length,
    /// What stands where a protocol should.
    #[error("the protocol is tcp, udp or sctp")]
    Protocol,
    /// RFC 9260 section 6.8: the CRC32c covers the common header, where the ports are.
    #[error(
        "an SCTP port keeps its number, because its checksum covers the ports and is not rewritten: \
         say the same twice, as in 80:80/sctp"
    )]
    Sctp,
}

impl Protocol {
    /// Its number over IP.
    pub fn number(self) -> IpProtocol {
        match self {
            Self::Tcp => IpProtocol::TCP,
            Self::Udp => IpProtocol::UDP,
            Self::Sctp => IpProtocol::SCTP,
        }
    }

    /// Its name.
    pub fn label(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl Spec {
    /// The host's address; `None` for all, of both families.
    pub fn host_ip(&self) -> Option<IpAddr> {
        self.host_ip
    }

    /// The ports in the namespace.
    pub fn target(&self) -> PortRange {
        self.target
    }

    /// The protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The host's ports, when they are decided.
    pub fn host(&self) -> Option<PortRange> {
        self.host.filter(|host| host.count() == self.target.count())
    }

    /// The host's ports of which as many are to be chosen as the target has, in a row; `None` for any.
    pub fn choice(&self) -> Option<PortRange> {
        self.host
    }

    /// The same with the host's ports decided.
    #[must_use]
    pub fn with_host(&self, host: PortRange) -> Self {
        Self { host: Some(host), ..self.clone() }
    }
}

/// An address and a port as people write them: `1.2.3.4:80`, `[::]:80`.
pub fn endpoint(ip: IpAddr, port: u16) -> String {
    SocketAddr::new(ip, port).to_string()
}

/// 0.0.0.0 for IPv4, `::` for IPv6.
pub fn unspecified_like(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

impl FromStr for Spec {
    type Err = NotASpec;

    fn from_str(text: &str) -> Result<Self, NotASpec> {
        if text.len() > MAX_LEN {
            return Err(NotASpec::Shape);
        }
        let (text, protocol) = match text.split_once('/') {
            Some((text, protocol)) => (text, parse_protocol(protocol)?),
            None => (text, Protocol::Tcp),
        };
        let (host_ip, ports) = split_address(text)?;
        let (host, target) = match ports.split_once(':') {
            Some(("", target)) => (None, target),
            Some((host, target)) => (Some(parse_ports(host)?), target),
            None => (None, ports),
        };
        let target = parse_ports(target)?;
        if host.is_some_and(|host| host.count() != target.count() && target.count() != 1) {
            return Err(NotASpec::Length);
        }
        if protocol == Protocol::Sctp && host != Some(target) {
            return Err(NotASpec::Sctp);
        }
        Ok(Self { host, target, protocol, host_ip })
    }
}

/// The address, and what comes after it.
fn split_address(text: &str) -> Result<(Option<IpAddr>, &str), NotASpec> {
    if let Some(text) = text.strip_prefix('[') {
        let (ip, ports) = text.split_once(']').ok_or(NotASpec::Brackets)?;
        let ip: Ipv6Addr = ip.parse().map_err(|_not_ipv6| NotASpec::Address)?;
        let ports = ports.strip_prefix(':').filter(|ports| colons(ports) == 1).ok_or(NotASpec::Brackets)?;
        return match ip.to_ipv4_mapped() {
            None => Ok((Some(IpAddr::V6(ip)), ports)),
            Some(_) => Err(NotASpec::Mapped),
        };
    }
    match (colons(text), text.split_once(':')) {
        (0 | 1, _) => Ok((None, text)),
        (2, Some((ip, ports))) => {
            let ip: Ipv4Addr = ip.parse().map_err(|_not_ipv4| NotASpec::Address)?;
            Ok((Some(IpAddr::V4(ip)), ports))
        }
        _ => Err(NotASpec::Brackets),
    }
}

fn colons(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b':').count()
}

/// No packet is for port 0.
fn parse_ports(text: &str) -> Result<PortRange, NotASpec> {
    match text.parse::<PortRange>() {
        Ok(ports) if ports.first() == 0 => Err(NotASpec::Port),
        Ok(ports) => Ok(ports),
        Err(NotAPortRange::Port) => Err(NotASpec::Port),
        Err(NotAPortRange::Order) => Err(NotASpec::Order),
    }
}

fn parse_protocol(text: &str) -> Result<Protocol, NotASpec> {
    let named = |protocol: &Protocol| protocol.label().eq_ignore_ascii_case(text);
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(named).ok_or(NotASpec::Protocol)
}

impl TryFrom<String> for Spec {
    type Error = NotASpec;

    fn try_from(text: String) -> Result<Self, NotASpec> {
        text.parse()
    }
}

impl From<Spec> for String {
    fn from(spec: Spec) -> Self {
        spec.to_string()
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
            None => {}
        }
        if let Some(host) = self.host {
            write!(f, "{host}")?;
        }
        write!(f, ":{}/{}", self.target, self.protocol)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_spec_and_how_it_is_printed() {
        for (text, printed) in [
            ("8080:80", "8080:80/tcp"),
            ("8080:80/udp", "8080:80/udp"),
            ("80:80/SCTP", "80:80/sctp"),
            ("1.2.3.4:8080:80", "1.2.3.4:8080:80/tcp"),
            ("0.0.0.0:1:65535", "0.0.0.0:1:65535/tcp"),
            ("[::1]:8080:80/tcp", "[::1]:8080:80/tcp"),
            ("[::]:8080:80", "[::]:8080:80/tcp"),
            ("[FD00:0::1]::80", "[fd00::1]::80/tcp"),
            ("8000-8010:80-90", "8000-8010:80-90/tcp"),
            ("8000-8010:80", "8000-8010:80/tcp"),
            ("1-65535:1-65535/sctp", "1-65535:1-65535/sctp"),
            ("80-80:80-80", "80:80/tcp"),
            ("080:0080", "80:80/tcp"),
            (":80", ":80/tcp"),
            ("80", ":80/tcp"),
            ("80-90/udp", ":80-90/udp"),
            ("127.0.0.1::80", "127.0.0.1::80/tcp"),
        ] {
            let spec: Spec = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(spec.to_string(), printed, "{text}");
            assert_eq!(printed.parse(), Ok(spec), "{text} printed and read again");
        }
    }

    #[test]
    fn what_is_none_and_why() {
        use NotASpec::*;
        for (text, why) in [
            ("", Port),
            (":", Port),
            ("::", Address),
            ("/tcp", Port),
            ("80:", Port),
            ("x:80", Port),
            ("80:x", Port),
            ("0:80", Port),
            ("80:0", Port),
            ("65536:80", Port),
            ("99999999999999999999:80", Port),
            ("+80:80", Port),
            ("-80:80", Port),
            ("80-:80", Port),
            ("80:-", Port),
            (" 80:80", Port),
            ("80:80 ", Port),
            ("8\u{0660}:80", Port),
            ("1-2-3:80", Port),
            ("90-80:90-80", Order),
            ("8000:80-90", Length),
            ("8000-8001:80-90", Length),
            ("8000-8010:80-81", Length),
            ("80:80/icmp", Protocol),
            ("80:80/", Protocol),
            ("80:80/tcp/udp", Protocol),
            ("8080:80/sctp", Sctp),
            (":80/sctp", Sctp),
            ("80-90:80/sctp", Sctp),
            ("1.2.3:8080:80", Address),
            ("1.2.3.4.5:8080:80", Address),
            ("1.2.3.4:80", Port),
            ("red:8080:80", Address),
            (":8080:80", Address),
            ("::1:8080:80", Brackets),
            ("1:2:3:4", Brackets),
            ("[::1:8080:80", Brackets),
            ("[::1]8080:80", Brackets),
            ("[::1]:80", Brackets),
            ("[::1]", Brackets),
            ("[]:8080:80", Address),
            ("[1.2.3.4]:8080:80", Address),
            ("[fe80::1%eth0]:8080:80", Address),
            ("[::ffff:1.2.3.4]:8080:80", Mapped),
            ("[::1]:1:2:3", Brackets),
        ] {
            assert_eq!(text.parse::<Spec>(), Err(why), "{text:?}");
        }
        assert_eq!("8".repeat(MAX_LEN + 1).parse::<Spec>(), Err(Shape));
    }

    #[test]
    fn decided_or_to_be_chosen() {
        let spec = |text: &str| text.parse::<Spec>().unwrap();
        assert_eq!(spec("8080:80").host(), PortRange::new(8080, 8080));
        assert_eq!(spec("1-9:11-19").host(), PortRange::new(1, 9));
        assert_eq!((spec("8000-8010:80").host(), spec("8000-8010:80").choice()), (None, PortRange::new(8000, 8010)));
        assert_eq!((spec(":80").host(), spec(":80").choice()), (None, None));
        let chosen = PortRange::new(8003, 8003).unwrap();
        assert_eq!(spec("8000-8010:80").with_host(chosen), spec("8003:80"));
    }
}
