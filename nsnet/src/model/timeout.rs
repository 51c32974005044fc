//! How long flows live.

use std::fmt;
use std::str::FromStr;

use nsnet_common::layout::Policy;
use serde::{Deserialize, Serialize};

/// What a timeout is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeoutKind {
    /// An established TCP connection that is idle.
    TcpEstablished,
    /// A TCP connection that is being opened or closed.
    TcpTransitory,
    /// An idle UDP flow.
    Udp,
    /// An idle UDP flow to port 53 that was answered.
    Dns,
    /// An ICMP query.
    Icmp,
    /// An idle flow of another protocol.
    Other,
}

/// How long one kind of flow lives without a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeout {
    /// What it is for.
    pub kind: TimeoutKind,
    /// Seconds, at least 1.
    pub seconds: u32,
}

impl TimeoutKind {
    /// Every kind, in the order in which they are shown.
    pub const ALL: [Self; 6] =
        [Self::TcpEstablished, Self::TcpTransitory, Self::Udp, Self::Dns, Self::Icmp, Self::Other];

    /// What a policy says of it: seconds.
    pub(super) fn of(self, policy: &Policy) -> u32 {
        match self {
            Self::TcpEstablished => policy.tcp_established,
            Self::TcpTransitory => policy.tcp_transitory,
            Self::Udp => policy.udp,
            Self::Dns => policy.dns,
            Self::Icmp => policy.icmp,
            Self::Other => policy.other,
        }
    }

    /// The least that an RFC allows, and which. (RFC 4787 REQ-5a: shorter for well-known ports.)
    pub(super) fn least(self) -> Option<(u32, &'static str)> {
        match self {
            Self::TcpEstablished => Some((7440, "RFC 5382 REQ-5")),
            Self::TcpTransitory => Some((240, "RFC 5382 REQ-5")),
            Self::Udp => Some((120, "RFC 4787 REQ-5")),
            Self::Icmp => Some((60, "RFC 5508 REQ-2")),
            Self::Dns | Self::Other => None,
        }
    }
}

impl fmt::Display for TimeoutKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TcpEstablished => "tcp-established",
            Self::TcpTransitory => "tcp-transitory",
            Self::Udp => "udp",
            Self::Dns => "dns",
            Self::Icmp => "icmp",
            Self::Other => "other",
        })
    }
}

impl FromStr for Timeout {
    type Err = String;

    /// `udp=300`.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (name, seconds) = text.split_once('=').ok_or("say NAME=SECONDS, such as udp=300")?;
        let Some(kind) = TimeoutKind::ALL.into_iter().find(|kind| kind.to_string() == name) else {
            let names: Vec<String> = TimeoutKind::ALL.iter().map(ToString::to_string).collect();
            return Err(format!("there is no timeout {name:?}, but {}", names.join(", ")));
        };
        match seconds.parse() {
            Ok(seconds) if seconds > 0 && !text.contains('+') => Ok(Self { kind, seconds }),
            _ => Err(format!("{seconds:?} is no number of seconds from 1 on")),
        }
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_timeout() {
        for bad in ["udp", "udp=", "udp=0", "udp=-1", "udp=+1", "tcp=9", "=9", "udp=4294967296"] {
            assert!(bad.parse::<Timeout>().is_err(), "{bad}");
        }
    }
}
