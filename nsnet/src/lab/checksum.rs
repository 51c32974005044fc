//! The kernel's counters of packets it refused for a wrong checksum.
//!
//! They must not move while a dataplane rewrites traffic: a ping or a handshake can succeed by luck (ICMP is not
//! offloaded, a retransmission may differ), these counters do not forget.

use std::fmt;
use std::fs;
use std::ops::Sub;

use anyhow::{Context, Result};

/// Wrong checksums seen by one network namespace since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChecksumErrors {
    /// IPv4 headers.
    pub ip: u64,
    /// ICMP over IPv4.
    pub icmp: u64,
    /// TCP over IPv4 and IPv6; the kernel counts them together.
    pub tcp: u64,
    /// UDP over IPv4.
    pub udp: u64,
    /// UDP over IPv6.
    pub udp6: u64,
    /// ICMP over IPv6.
    pub icmp6: u64,
}

impl ChecksumErrors {
    /// Reads the counters of the calling thread's network namespace.
    ///
    /// # Errors
    /// When /proc is not mounted or lacks a counter.
    pub fn read() -> Result<ChecksumErrors> {
        // /proc/net follows the process's main thread, which may sit in another namespace than this one.
        let file = |name: &str| {
            let path = format!("/proc/thread-self/net/{name}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let (snmp, netstat) = (file("snmp")?, file("netstat")?);
        // A kernel booted with ipv6.disable=1 has no such file, and no such packets.
        let snmp6 = file("snmp6").unwrap_or_default();
        let v4 = |text: &str, protocol: &str| {
            table_counter(text, protocol, "InCsumErrors")
                .with_context(|| format!("/proc/thread-self/net has no {protocol} InCsumErrors"))
        };
        Ok(ChecksumErrors {
            ip: v4(&netstat, "IpExt")?,
            icmp: v4(&snmp, "Icmp")?,
            tcp: v4(&snmp, "Tcp")?,
            udp: v4(&snmp, "Udp")?,
            udp6: line_counter(&snmp6, "Udp6InCsumErrors").unwrap_or(0),
            icmp6: line_counter(&snmp6, "Icmp6InCsumErrors").unwrap_or(0),
        })
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, count)| count).sum()
    }

    fn parts(&self) -> [(&'static str, u64); 6] {
        [
            ("IPv4 header", self.ip),
            ("ICMP", self.icmp),
            ("TCP", self.tcp),
            ("UDP", self.udp),
            ("UDP over IPv6", self.udp6),
            ("ICMPv6", self.icmp6),
        ]
    }
}

/// What was added since an earlier reading.
impl Sub for ChecksumErrors {
    type Output = ChecksumErrors;

    fn sub(self, earlier: ChecksumErrors) -> ChecksumErrors {
        ChecksumErrors {
            ip: self.ip.saturating_sub(earlier.ip),
            icmp: self.icmp.saturating_sub(earlier.icmp),
            tcp: self.tcp.saturating_sub(earlier.tcp),
            udp: self.udp.saturating_sub(earlier.udp),
            udp6: self.udp6.saturating_sub(earlier.udp6),
            icmp6: self.icmp6.saturating_sub(earlier.icmp6),
        }
    }
}

impl fmt::Display for ChecksumErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wrong: Vec<String> =
            self.parts().iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name} {n}")).collect();
        if wrong.is_empty() {
            f.write_str("no checksum errors")
        } else {
            write!(f, "checksum errors: {}", wrong.join(", "))
        }
    }
}

/// A counter of `snmp` or `netstat`: a line of names, then a line of values, both starting with `PROTOCOL:`.
fn table_counter(text: &str, protocol: &str, counter: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| *name == protocol);
    let (names, values) = (lines.next()?.1, lines.next()?.1);
    let (_, value) = names.split_whitespace().zip(values.split_whitespace()).find(|(name, _)| *name == counter)?;
    value.parse().ok()
}

/// A counter of `snmp6`: one name and value on each line.
fn line_counter(text: &str, counter: &str) -> Option<u64> {
    let value = text.lines().filter_map(|line| line.split_once(char::is_whitespace)).find(|(name, _)| *name == counter);
    value?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SNMP: &str = "\
Icmp: InMsgs InErrors InCsumErrors InDestUnreachs
Icmp: 5 4 3 2
IcmpMsg: InType3
IcmpMsg: 7
Tcp: RtoAlgorithm MaxConn InCsumErrors
Tcp: 1 -1 11
Udp: InDatagrams NoPorts
Udp: 0 1
UdpLite: InDatagrams InCsumErrors
UdpLite: 0 99
";

    #[test]
    fn finds_counters_by_protocol_and_name() {
        assert_eq!(table_counter(SNMP, "Icmp", "InCsumErrors"), Some(3));
        assert_eq!(table_counter(SNMP, "Tcp", "InCsumErrors"), Some(11));
        assert_eq!(table_counter(SNMP, "Udp", "InCsumErrors"), None);
        assert_eq!(table_counter(SNMP, "Sctp", "InCsumErrors"), None);
        let snmp6 = "Udp6InErrors                    \t0\nUdp6InCsumErrors                \t8\n";
        assert_eq!(line_counter(snmp6, "Udp6InCsumErrors"), Some(8));
        assert_eq!(line_counter(snmp6, "Icmp6InCsumErrors"), None);
    }

    #[test]
    fn reads_this_namespace() {
        let now = ChecksumErrors::read().unwrap();
        assert_eq!((now - now).total(), 0);
    }

    #[test]
    fn names_only_what_is_wrong() {
        assert_eq!(ChecksumErrors::default().to_string(), "no checksum errors");
        let errors = ChecksumErrors { tcp: 2, udp6: 1, ..ChecksumErrors::default() };
        assert_eq!(errors.to_string(), "checksum errors: TCP 2, UDP over IPv6 1");
        assert_eq!(errors.total(), 3);
    }
}
