//! The host's firewall rules that our packets do not pass.
//!
//! A packet between two namespaces, or between one and an uplink, goes from hook to hook of TC. It never comes to
//! netfilter's prerouting, forward and postrouting of the host. Nor does it come to chains at an interface: ingress
//! comes after TC, and egress is left out for what TC has redirected (`nf_skip_egress`, Linux 5.16, commit 42df6e1d221d;
//! both were tried on Linux 6.18). What people have put there, or had put there by Docker, ufw, fail2ban or kube-proxy,
//! does not hold for these packets. What the host itself sends and receives passes its chains as ever.

mod legacy;
mod nft;

use std::fmt;

use super::error::Result;

/// A rule that packets of ours do not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bypassed {
    /// Whose rule it is.
    pub source: Source,
    /// `ip`, `ip6`, `inet` or `netdev`.
    pub family: &'static str,
    /// The table.
    pub table: String,
    /// The chain that has the rule.
    pub chain: String,
    /// The hooks by which packets come to the chain.
    pub hooks: Vec<&'static str>,
    /// Which rule of the chain.
    pub rule: Rule,
    /// What its author has written to it.
    pub comment: Option<String>,
    /// What it does, as far as that can be told in a word or two: `drop`, `jump DOCKER`, `MASQUERADE`.
    pub what: String,
}

/// Which of the kernel's two firewalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// nftables; iptables-nft and firewalld write there, too.
    Nftables,
    /// iptables-legacy.
    Legacy,
}

/// How a rule is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// By its handle, as `nft --handle list ruleset` shows it.
    Handle(u64),
    /// By its number in the chain, as `iptables --line-numbers` shows it.
    Number(u32),
    /// What becomes of packets at the end of the chain.
    Policy,
}

/// Every such rule in the calling thread's network namespace. A kernel without one of the firewalls has none there.
///
/// `networks` are the networks' own interfaces: packets from and to the host do pass the chains there.
pub fn bypassed(networks: &[&str]) -> Result<Vec<Bypassed>> {
    let mut bypassed = nft::bypassed(networks)?;
    bypassed.extend(legacy::bypassed()?);
    Ok(bypassed)
}

impl Source {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Legacy => "iptables-legacy",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handle(handle) => write!(f, "rule handle {handle}"),
            Self::Number(number) => write!(f, "rule {number}"),
            Self::Policy => f.write_str("policy"),
        }
    }
}

impl fmt::Display for Bypassed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let legacy = if self.source == Source::Legacy { "legacy " } else { "" };
        write!(f, "{legacy}{} {} {}: {}", self.family, self.table, self.chain, self.rule)?;
        if !self.what.is_empty() {
            write!(f, " {}", self.what)?;
        }
        if let Some(comment) = &self.comment {
            write!(f, " ({comment})")?;
        }
        f.write_str(" is not seen by packets of nsnet")
    }
}

/// Text up to the first NUL, without control characters: it goes to terminals.
fn text(bytes: &[u8]) -> String {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The hooks that our packets pass by, by their number (include/uapi/linux/netfilter.h: `nf_inet_hooks`).
fn inet_hook(number: u32) -> Option<&'static str> {
    match number {
        0 => Some("prerouting"),
        2 => Some("forward"),
        4 => Some("postrouting"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_says_which_rule() {
        let mut rule = Bypassed {
            source: Source::Nftables,
            family: "ip",
            table: "filter".into(),
            chain: "DOCKER-USER".into(),
            hooks: vec!["forward"],
            rule: Rule::Handle(12),
            comment: Some("no guests".into()),
            what: "drop".into(),
        };
        let line = "ip filter DOCKER-USER: rule handle 12 drop (no guests) is not seen by packets of nsnet";
        assert_eq!(rule.to_string(), line);
        (rule.source, rule.rule, rule.comment) = (Source::Legacy, Rule::Policy, None);
        assert_eq!(rule.to_string(), "legacy ip filter DOCKER-USER: policy drop is not seen by packets of nsnet");
    }

    #[test]
    fn text_is_cut_and_cleaned() {
        assert_eq!(text(b"FORWARD\0\0rest"), "FORWARD");
        assert_eq!(text(b"a\x1b[2J"), "a\u{fffd}[2J");
        assert_eq!(text(b""), "");
    }
}
