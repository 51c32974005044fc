//! nftables by netlink: chains and rules as the kernel dumps them (include/uapi/linux/netfilter/nf_tables.h), and which
//! of them packets would come to by the hooks that ours pass by.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use nix::errno::Errno;
use rtnetlink::packet_core::NlasIterator;
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

use super::super::error::{KernelError, Result};
use super::{Bypassed, Rule, Source, inet_hook, text};

const GET_CHAIN: u8 = 4;
const GET_RULE: u8 = 7;

/// The rules, in the order in which the kernel lists them, behind the policies that drop.
pub(super) fn bypassed(networks: &[&str]) -> Result<Vec<Bypassed>> {
    let dump = |kind| match dump(kind) {
        // No nfnetlink, no nf_tables, or none that this process may look at: then there are no rules either.
        Err(Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP | Errno::EINVAL) => Ok(Vec::new()),
        other => other.map_err(|errno| KernelError::new("list nftables' rules", errno)),
    };
    let chains: Vec<Chain> = dump(GET_CHAIN)?.iter().filter_map(|message| Chain::parse(message, networks)).collect();
    if chains.iter().all(|chain| chain.hook.is_none()) {
        return Ok(Vec::new());
    }
    let rules: Vec<ChainRule> = dump(GET_RULE)?.iter().filter_map(|message| ChainRule::parse(message)).collect();
    Ok(choose(&chains, &rules))
}

/// A dump of all families' objects: each message from its `nfgenmsg` on. Asked for again when it changed meanwhile.
fn dump(kind: u8) -> nix::Result<Vec<Vec<u8>>> {
    const TRIES: usize = 10;
    for _ in 0..TRIES {
        match dump_once(kind).map_err(|error| errno_of(&error)) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
    Err(Errno::EINTR)
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO))
}

fn dump_once(kind: u8) -> io::Result<Vec<Vec<u8>>> {
    const SUBSYSTEM_NFTABLES: u16 = 10;
    const REQUEST_AND_DUMP: u16 = 0x301;
    const INTERRUPTED: u16 = 0x10;
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = Vec::new();
    request.extend_from_slice(&20u32.to_ne_bytes());
    request.extend_from_slice(&(SUBSYSTEM_NFTABLES << 8 | u16::from(kind)).to_ne_bytes());
    request.extend_from_slice(&REQUEST_AND_DUMP.to_ne_bytes());
    // Sequence, port, and an nfgenmsg of zeros: every family.
    request.extend_from_slice(&[0; 12]);
    socket.send(&request, 0)?;
    let (mut messages, mut is_torn) = (Vec::new(), false);
    loop {
        let (datagram, _kernel) = socket.recv_from_full()?;
        for message in Messages(&datagram) {
            is_torn |= message.flags & INTERRUPTED != 0;
            match message.kind {
                // NLMSG_ERROR and NLMSG_DONE begin with 0 or a negative errno.
                2 | 3 => {
                    return match message.body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code)) {
                        0 if is_torn => Err(Errno::EINTR.into()),
                        0 => Ok(messages),
                        errno => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
                    };
                }
                _ => messages.push(message.body.to_vec()),
            }
        }
    }
}

/// The netlink messages of a datagram (netlink(7)); what is cut short ends it.
struct Messages<'a>(&'a [u8]);

struct Message<'a> {
    kind: u16,
    flags: u16,
    body: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let [a, b, c, d, e, f, g, h] = *self.0.first_chunk()?;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        let body = self.0.get(16..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind: u16::from_ne_bytes([e, f]), flags: u16::from_ne_bytes([g, h]), body })
    }
}

/// The table of a chain: family and name.
type TableName = (u8, String);

/// A chain, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    table: TableName,
    name: String,
    /// Of a base chain: the hook, when it is one that our packets pass by.
    hook: Option<&'static str>,
    /// Whether it is a base chain, of whatever hook.
    is_base: bool,
    /// Whether packets are dropped at its end.
    drops: bool,
}

impl Chain {
    fn parse(message: &[u8], networks: &[&str]) -> Option<Self> {
        let (family, attributes) = (*message.first()?, message.get(4..)?);
        let hook = find(attributes, 4);
        Some(Self {
            table: (family, text(find(attributes, 1)?)),
            name: text(find(attributes, 3)?),
            is_base: hook.is_some(),
            hook: hook.and_then(|hook| hook_of(family, hook, networks)),
            // NF_DROP is 0.
            drops: find(attributes, 5).and_then(number) == Some(0),
        })
    }
}

/// NFTA_CHAIN_HOOK, when our packets pass by it.
fn hook_of(family: u8, attributes: &[u8], networks: &[&str]) -> Option<&'static str> {
    let number = find(attributes, 1).and_then(number)?;
    let is_bypassed = |device: &String| device != "lo" && !networks.contains(&device.as_str());
    match (family_name(family)?, number) {
        // NF_INET_INGRESS; NF_NETDEV_INGRESS and NF_NETDEV_EGRESS.
        ("inet", 5) | ("netdev", 0) => devices(attributes).iter().any(is_bypassed).then_some("ingress"),
        ("netdev", 1) => devices(attributes).iter().any(is_bypassed).then_some("egress"),
        ("netdev", _) => None,
        (_, number) => inet_hook(number),
    }
}

/// The interfaces of a chain: NFTA_HOOK_DEV, and NFTA_HOOK_DEVS of NFTA_DEVICE_NAME.
fn devices(attributes: &[u8]) -> Vec<String> {
    let several = find(attributes, 4).into_iter().flat_map(each).map(|(_kind, device)| device);
    find(attributes, 3).into_iter().chain(several).map(text).collect()
}

/// The families whose packets could be ours, by `NFPROTO_`.
fn family_name(family: u8) -> Option<&'static str> {
    match family {
        1 => Some("inet"),
        2 => Some("ip"),
        5 => Some("netdev"),
        10 => Some("ip6"),
        _ => None,
    }
}

/// A rule, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ChainRule {
    table: TableName,
    chain: String,
    handle: u64,
    comment: Option<String>,
    what: String,
    /// Where it sends packets by itself.
    leads_to: Option<String>,
    /// Whether a map may tell where packets go.
    asks_map: bool,
}

impl ChainRule {
    fn parse(message: &[u8]) -> Option<Self> {
        let (family, attributes) = (*message.first()?, message.get(4..)?);
        let mut rule = Self {
            table: (family, text(find(attributes, 1)?)),
            chain: text(find(attributes, 2)?),
            handle: find(attributes, 3)?.first_chunk().map(|handle| u64::from_be_bytes(*handle))?,
            comment: find(attributes, 7).and_then(comment),
            what: String::new(),
            leads_to: None,
            asks_map: false,
        };
        for (_list, expression) in find(attributes, 4).into_iter().flat_map(each) {
            rule.read(&text(find(expression, 1)?), find(expression, 2).unwrap_or_default());
        }
        Some(rule)
    }

    /// Reads one expression: its name and attributes.
    fn read(&mut self, name: &str, data: &[u8]) {
        match name {
            "immediate" => {
                // NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT.
                let Some(verdict) = find(data, 2).and_then(|data| find(data, 2)) else { return };
                let (code, chain) = (find(verdict, 1).and_then(number), find(verdict, 2).map(text));
                self.what = words(code.unwrap_or(0) as i32, chain.as_deref());
                self.leads_to = chain.or(self.leads_to.take());
            }
            // NFTA_LOOKUP_DREG is the verdict's register, 0.
            "lookup" => self.asks_map |= find(data, 3).and_then(number) == Some(0),
            // What iptables-nft writes: a match or target of xtables, by name, with its own data.
            "match" if find(data, 1).map(text).as_deref() == Some("comment") => {
                self.comment = find(data, 3).map(text).filter(|text| !text.is_empty()).or(self.comment.take());
            }
            "target" => self.what = find(data, 1).map(text).unwrap_or_default(),
            "masq" => self.what = "masquerade".to_owned(),
            "nat" | "redir" | "tproxy" | "reject" | "queue" | "synproxy" => name.clone_into(&mut self.what),
            // A match, a counter, something computed: not what the rule does in the end.
            _ => {}
        }
    }
}

/// A verdict: `NFT_JUMP` and the like are negative, `NF_DROP` is 0.
fn words(code: i32, chain: Option<&str>) -> String {
    match (code, chain) {
        (-3, Some(chain)) => format!("jump {chain}"),
        (-4, Some(chain)) => format!("goto {chain}"),
        (-5, _) => "return".to_owned(),
        (0, _) => "drop".to_owned(),
        (1, _) => "accept".to_owned(),
        _ => String::new(),
    }
}

/// NFTA_RULE_USERDATA as nft writes it: type, length, value; type 0 is the comment.
fn comment(mut bytes: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = bytes {
        let value = rest.get(..usize::from(*length))?;
        if *kind == 0 {
            return Some(text(value)).filter(|text| !text.is_empty());
        }
        bytes = rest.get(usize::from(*length)..)?;
    }
    None
}

/// The attributes of a message or of another attribute, up to the first that is malformed.
fn each(attributes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(attributes).map_while(std::result::Result::ok).map(|attribute| {
        let (kind, end) = (attribute.kind(), usize::from(attribute.length()));
        // What it hands out goes on to the end of the message.
        (kind, attribute.into_inner().get(4..end).unwrap_or_default())
    })
}

fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    each(attributes).find(|(other, _)| *other == kind).map(|(_, value)| value)
}

/// nftables' numbers are in network byte order.
fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// What is reached from the hooks that our packets pass by.
fn choose(chains: &[Chain], rules: &[ChainRule]) -> Vec<Bypassed> {
    let mut chosen = Vec::new();
    let mut tables: Vec<&TableName> = chains.iter().map(|chain| &chain.table).collect();
    tables.dedup();
    for table in tables {
        let Some(family) = family_name(table.0) else { continue };
        let chains: Vec<&Chain> = chains.iter().filter(|chain| chain.table == *table).collect();
        let rules: Vec<&ChainRule> = rules.iter().filter(|rule| rule.table == *table).collect();
        let hooks = reached(&chains, &rules);
        let bypassed = |chain: &str, rule, comment: Option<String>, what: &str| {
            let hooks = hooks.get(chain)?.iter().copied().collect();
            let (table, chain) = (table.1.clone(), chain.to_owned());
            let (source, what) = (Source::Nftables, what.to_owned());
            Some(Bypassed { source, family, table, chain, hooks, rule, comment, what })
        };
        let policies = chains.iter().filter(|chain| chain.is_base && chain.drops);
        chosen.extend(policies.filter_map(|chain| bypassed(&chain.name, Rule::Policy, None, "drop")));
        let rule =
            |rule: &&ChainRule| bypassed(&rule.chain, Rule::Handle(rule.handle), rule.comment.clone(), &rule.what);
        chosen.extend(rules.iter().filter_map(rule));
    }
    chosen
}

/// The chains of one table that packets come to by our hooks, and by which.
///
/// Where a map says where to go, its entries are not looked at: it may lead to any chain that no rule names.
fn reached<'a>(chains: &[&'a Chain], rules: &[&'a ChainRule]) -> BTreeMap<&'a str, BTreeSet<&'static str>> {
    let named: BTreeSet<&str> = rules.iter().filter_map(|rule| rule.leads_to.as_deref()).collect();
    let is_unnamed = |chain: &&&Chain| !chain.is_base && !named.contains(chain.name.as_str());
    let unnamed: Vec<&str> = chains.iter().filter(is_unnamed).map(|chain| chain.name.as_str()).collect();
    let mut by_chain: BTreeMap<&str, Vec<&ChainRule>> = BTreeMap::new();
    for rule in rules {
        by_chain.entry(&rule.chain).or_default().push(rule);
    }
    let mut reached: BTreeMap<&str, BTreeSet<&'static str>> = BTreeMap::new();
    let mut open: Vec<(&str, &'static str)> =
        chains.iter().filter_map(|chain| Some((chain.name.as_str(), chain.hook?))).collect();
    while let Some((chain, hook)) = open.pop() {
        if !reached.entry(chain).or_default().insert(hook) {
            continue;
        }
        for rule in by_chain.get(chain).into_iter().flatten() {
            open.extend(rule.leads_to.as_deref().map(|next| (next, hook)));
            if rule.asks_map {
                open.extend(unnamed.iter().map(|next| (*next, hook)));
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(family: u8, attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let attributes = attributes.iter().flat_map(|(kind, value)| attribute(*kind, value));
        [family, 0, 0, 0].into_iter().chain(attributes).collect()
    }

    fn hook(number: u32, device: &[u8]) -> Vec<u8> {
        let hook = attribute(1, &number.to_be_bytes());
        if device.is_empty() { hook } else { [hook, attribute(3, device)].concat() }
    }

    fn chain(family: u8, name: &[u8], base: Option<(Vec<u8>, u32)>) -> Chain {
        let mut attributes = vec![(1, b"t\0".to_vec()), (3, name.to_vec())];
        if let Some((hook, policy)) = base {
            attributes.extend([(4, hook), (5, policy.to_be_bytes().to_vec())]);
        }
        Chain::parse(&message(family, &attributes), &["v-net-0"]).unwrap()
    }

    fn expression(name: &[u8], data: &[u8]) -> Vec<u8> {
        attribute(1, &[attribute(1, name), attribute(2, data)].concat())
    }

    fn verdict(code: i32, chain: &[u8]) -> Vec<u8> {
        let mut verdict = attribute(1, &code.to_be_bytes());
        if !chain.is_empty() {
            verdict.extend(attribute(2, chain));
        }
        expression(b"immediate\0", &[attribute(1, &[0; 4]), attribute(2, &attribute(2, &verdict))].concat())
    }

    fn rule(family: u8, chain: &[u8], handle: u64, expressions: &[Vec<u8>], userdata: &[u8]) -> ChainRule {
        let attributes = [
            (1, b"t\0".to_vec()),
            (2, chain.to_vec()),
            (3, handle.to_be_bytes().to_vec()),
            (4, expressions.concat()),
            (7, userdata.to_vec()),
        ];
        ChainRule::parse(&message(family, &attributes)).unwrap()
    }

    #[test]
    fn hooks_that_our_packets_pass_by() {
        let hook_of = |family, number, device: &[u8]| chain(family, b"c", Some((hook(number, device), 1))).hook;
        assert_eq!(
            [0, 1, 2, 3, 4].map(|number| hook_of(2, number, b"")),
            [Some("prerouting"), None, Some("forward"), None, Some("postrouting")]
        );
        assert_eq!((hook_of(10, 2, b""), hook_of(1, 2, b"")), (Some("forward"), Some("forward")));
        // ARP and bridges.
        assert_eq!((hook_of(3, 0, b""), hook_of(7, 2, b"")), (None, None));
        let at = |device: &[u8]| (hook_of(5, 0, device), hook_of(5, 1, device), hook_of(1, 5, device));
        assert_eq!(at(b"eth0\0"), (Some("ingress"), Some("egress"), Some("ingress")));
        assert_eq!((at(b"lo\0"), at(b"v-net-0\0")), ((None, None, None), (None, None, None)));
    }

    #[test]
    fn what_a_rule_says() {
        let said = rule(2, b"c\0", 7, &[verdict(-3, b"next\0")], b"\x01\x02ab\x00\x03hi\0");
        assert_eq!((said.handle, said.comment.as_deref(), said.what.as_str()), (7, Some("hi"), "jump next"));
        assert_eq!(said.leads_to.as_deref(), Some("next"));
        let compat = [attribute(1, b"comment\0"), attribute(3, b"by iptables\0\0\0\0")].concat();
        let expressions = [expression(b"match\0", &compat), expression(b"target\0", &attribute(1, b"MARK\0"))];
        let said = rule(2, b"c\0", 8, &expressions, b"");
        assert_eq!((said.comment.as_deref(), said.what.as_str()), (Some("by iptables"), "MARK"));
        let lookup = [attribute(2, &1u32.to_be_bytes()), attribute(3, &0u32.to_be_bytes())].concat();
        assert!(rule(2, b"c\0", 9, &[expression(b"lookup\0", &lookup)], b"").asks_map);
    }

    #[test]
    fn what_is_reached_is_chosen() {
        let chains = [
            chain(2, b"FORWARD", Some((hook(2, b""), 0))),
            chain(2, b"INPUT", Some((hook(1, b""), 0))),
            chain(2, b"one", None),
            chain(2, b"two", None),
            chain(2, b"other", None),
            // Another table of the same name.
            chain(10, b"INPUT", Some((hook(1, b""), 1))),
        ];
        let rules = [
            rule(2, b"FORWARD\0", 1, &[verdict(-3, b"one\0")], b""),
            rule(2, b"one\0", 2, &[verdict(-4, b"two\0")], b""),
            rule(2, b"two\0", 3, &[verdict(-3, b"one\0")], b""),
            rule(2, b"INPUT\0", 4, &[verdict(-3, b"other\0")], b""),
            rule(2, b"other\0", 5, &[verdict(0, b"")], b""),
            rule(10, b"one\0", 6, &[], b""),
        ];
        let named = |chosen: Vec<Bypassed>| chosen.into_iter().map(|rule| (rule.chain, rule.rule)).collect::<Vec<_>>();
        let expected = [
            ("FORWARD", Rule::Policy),
            ("FORWARD", Rule::Handle(1)),
            ("one", Rule::Handle(2)),
            ("two", Rule::Handle(3)),
        ];
        assert_eq!(named(choose(&chains, &rules)), expected.map(|(chain, rule)| (chain.to_owned(), rule)));
        // A map may lead to what no rule names.
        let mut asks = rule(2, b"two\0", 7, &[], b"");
        asks.asks_map = true;
        let chosen = named(choose(&chains, &[rules[0].clone(), rules[1].clone(), asks, rules[4].clone()]));
        assert!(chosen.contains(&("other".to_owned(), Rule::Handle(5))), "{chosen:?}");
    }

    #[test]
    fn nonsense_is_skipped() {
        let good = message(2, &[(1, b"t\0".to_vec()), (2, b"c\0".to_vec()), (3, vec![0; 8]), (4, verdict(-3, b"x\0"))]);
        for length in 0..good.len() {
            // Whatever it says, it comes back.
            let _parsed = (ChainRule::parse(&good[..length]), Chain::parse(&good[..length], &[]));
            let _messages = Messages(&good[..length]).count();
        }
        assert_eq!(comment(&[0, 9, b'x']), None);
        assert_eq!(Messages(&[0; 32]).count(), 0);
    }
}
