//! iptables-legacy by `getsockopt`: a table is one block of entries, of which each says where the next begins
//! (include/uapi/linux/netfilter_ipv4/ip_tables.h, .../netfilter_ipv6/ip6_tables.h, .../netfilter/x_tables.h).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::super::error::{KernelError, Result};
use super::{Bypassed, Rule, Source, inet_hook, text};

/// What the two families have differently.
#[derive(Clone, Copy, Debug)]
struct Family {
    name: &'static str,
    /// The tables that this namespace has. Asking the kernel for another one would make it.
    tables: &'static str,
    address: AddressFamily,
    level: libc::c_int,
    /// Offset of `target_offset`, which `next_offset` follows.
    offsets: usize,
    /// Size of an entry before its matches.
    entry: usize,
}

const FAMILIES: [Family; 2] = [
    Family {
        name: "ip",
        tables: "/proc/thread-self/net/ip_tables_names",
        address: AddressFamily::Inet,
        level: libc::SOL_IP,
        offsets: 88,
        entry: 112,
    },
    Family {
        name: "ip6",
        tables: "/proc/thread-self/net/ip6_tables_names",
        address: AddressFamily::Inet6,
        level: libc::SOL_IPV6,
        offsets: 140,
        entry: 168,
    },
];

/// The rules of all tables.
pub(super) fn bypassed() -> Result<Vec<Bypassed>> {
    let mut bypassed = Vec::new();
    for family in FAMILIES {
        let tables = match fs::read_to_string(family.tables) {
            Ok(tables) => tables,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(KernelError::new(format!("read {}", family.tables), error)),
        };
        for table in tables.lines() {
            let found = read(family, table).map(|(info, entries)| choose(family, table, &info, &entries));
            bypassed.extend(found.map_err(|errno| KernelError::new(format!("list {} {table}", family.name), errno))?);
        }
    }
    Ok(bypassed)
}

/// `struct ipt_getinfo`, the same for both families.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, zerocopy::FromBytes, zerocopy::IntoBytes)]
struct Info {
    name: [u8; 32],
    valid_hooks: u32,
    /// Offset of the first entry of each hook's chain.
    hook_entry: [u32; 5],
    /// Offset of its last, the policy.
    underflow: [u32; 5],
    entries: u32,
    size: u32,
}

/// A table's description and its entries. A table that changed between the two is asked for again.
fn read(family: Family, table: &str) -> nix::Result<(Info, Vec<u8>)> {
    const GET_INFO: libc::c_int = 64;
    const GET_ENTRIES: libc::c_int = 65;
    /// `struct ipt_get_entries`: the name, the size, and padding up to the entries' alignment.
    const HEADER: usize = 40;
    const TRIES: usize = 10;
    let socket = socket(family.address, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
        .or_else(|_no_protocol| socket(family.address, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None))?;
    let mut name = [0; 32];
    name.iter_mut().zip(table.bytes()).for_each(|(to, byte)| *to = byte);
    for _ in 0..TRIES {
        let mut info = Info { name, ..Info::default() };
        let bytes = zerocopy::IntoBytes::as_mut_bytes(&mut info);
        get(&socket, family.level, GET_INFO, bytes)?;
        let mut answer = vec![0; HEADER + info.size as usize];
        answer.iter_mut().zip(name).for_each(|(to, byte)| *to = byte);
        answer.iter_mut().skip(name.len()).zip(info.size.to_ne_bytes()).for_each(|(to, byte)| *to = byte);
        match get(&socket, family.level, GET_ENTRIES, &mut answer) {
            // The size is another one by now.
            Err(Errno::EAGAIN | Errno::EINVAL) => {}
            other => return other.map(|()| (info, answer.split_off(HEADER))),
        }
    }
    Err(Errno::EAGAIN)
}

fn get(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, bytes: &mut [u8]) -> nix::Result<()> {
    let mut length = bytes.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, all of which are the slice's.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, bytes.as_mut_ptr().cast(), &raw mut length) };
    Errno::result(result).map(drop)
}

/// The rules of a table that packets come to by the hooks that ours pass by.
fn choose(family: Family, table: &str, info: &Info, entries: &[u8]) -> Vec<Bypassed> {
    let chains = chains(family, info, entries);
    let mut hooks: Vec<Vec<&'static str>> = vec![Vec::new(); chains.len()];
    for (at, chain) in chains.iter().enumerate() {
        let Some(hook) = chain.hook else { continue };
        let mut open = vec![at];
        while let Some(at) = open.pop() {
            let Some(seen) = hooks.get_mut(at).filter(|seen| !seen.contains(&hook)) else { continue };
            seen.push(hook);
            let leads_to = chains.get(at).into_iter().flat_map(|chain| &chain.rules).filter_map(|rule| rule.leads_to);
            // A chain begins at the entry that jumps lead to.
            open.extend(leads_to.filter_map(|offset| chains.iter().position(|chain| chain.start == offset)));
        }
    }
    let name = |offset: u32| chains.iter().find(|chain| chain.start == offset).map(|chain| chain.name.as_str());
    let mut chosen = Vec::new();
    for (chain, hooks) in chains.iter().zip(&hooks).filter(|(_, hooks)| !hooks.is_empty()) {
        let bypassed = |rule, comment: Option<String>, what: String| Bypassed {
            source: Source::Legacy,
            family: family.name,
            table: table.to_owned(),
            chain: chain.name.clone(),
            hooks: hooks.clone(),
            rule,
            comment,
            what,
        };
        if chain.drops {
            chosen.push(bypassed(Rule::Policy, None, "drop".to_owned()));
        }
        for (rule, number) in chain.rules.iter().zip(1..) {
            let jump = rule.leads_to.and_then(name).map(|chain| format!("jump {chain}"));
            chosen.push(bypassed(
                Rule::Number(number),
                rule.comment.clone(),
                jump.unwrap_or_else(|| rule.what.clone()),
            ));
        }
    }
    chosen
}

/// A chain: those of hooks, and the users'.
#[derive(Debug)]
struct Chain {
    name: String,
    hook: Option<&'static str>,
    /// Offset of its first entry.
    start: u32,
    /// Without the last, which is the policy or the return.
    rules: Vec<Entry>,
    drops: bool,
}

/// Cuts a table into its chains.
fn chains(family: Family, info: &Info, entries: &[u8]) -> Vec<Chain> {
    const NAMES: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    let mut chains: Vec<Chain> = Vec::new();
    let chain = |name: String, hook, start| Chain { name, hook, start, rules: Vec::new(), drops: false };
    let mut offset = 0u32;
    while let Some(entry) = Entry::parse(family, entries, offset) {
        let next = offset.saturating_add(entry.length);
        let number = (0..5).find(|hook| info.valid_hooks & (1 << hook) != 0 && info.hook_entry[*hook] == offset);
        if let Some(number) = number {
            chains.push(chain(NAMES[number].to_owned(), inet_hook(number as u32), offset));
        }
        match entry.begins_chain {
            // An entry that holds nothing but the name.
            Some(name) => chains.push(chain(name, None, next)),
            None => chains.last_mut().into_iter().for_each(|chain| chain.rules.push(entry.clone())),
        }
        offset = next;
    }
    // The table's last entry looks like a chain's name, and there is nothing behind it.
    chains.retain(|chain| !chain.rules.is_empty());
    for chain in &mut chains {
        chain.drops = chain.rules.pop().is_some_and(|policy| policy.what == "drop") && chain.hook.is_some();
    }
    chains
}

/// One entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    length: u32,
    /// The name of the user's chain that begins behind it.
    begins_chain: Option<String>,
    leads_to: Option<u32>,
    comment: Option<String>,
    what: String,
}

impl Entry {
    /// The entry at `offset`; `None` at the end, or where the bytes make no sense.
    fn parse(family: Family, entries: &[u8], offset: u32) -> Option<Self> {
        let entry = entries.get(offset as usize..)?;
        let [target, length] = [family.offsets, family.offsets + 2].map(|at| short(entry, at));
        let (target, length) = (usize::from(target?), usize::from(length?));
        if target < family.entry || length < target {
            return None;
        }
        let mut parsed = Self { length: length as u32, ..Self::default() };
        let (mut matches, target) = (entry.get(family.entry..target)?, entry.get(target..length)?);
        // Matches and targets: size (2), name (29), revision (1), data.
        while let Some(size) = short(matches, 0).map(usize::from).filter(|size| (32..=matches.len()).contains(size)) {
            if text(matches.get(2..31)?) == "comment" {
                parsed.comment = Some(text(matches.get(32..size)?)).filter(|text| !text.is_empty());
            }
            matches = matches.get(size..)?;
        }
        match text(target.get(2..31)?).as_str() {
            // XT_ERROR_TARGET holds a name, XT_STANDARD_TARGET a verdict or the place to jump to.
            "ERROR" => parsed.begins_chain = Some(text(target.get(32..)?)),
            "" => {
                let verdict = i32::from_ne_bytes(*target.get(32..)?.first_chunk()?);
                parsed.leads_to = u32::try_from(verdict).ok();
                // -NF_DROP - 1, -NF_ACCEPT - 1, XT_RETURN; a "jump" to what follows is a rule without a target.
                let is_next = parsed.leads_to == Some(offset.saturating_add(parsed.length));
                parsed.leads_to = parsed.leads_to.filter(|_| !is_next);
                parsed.what = match verdict {
                    -1 => "drop",
                    -2 => "accept",
                    -5 => "return",
                    _ => "",
                }
                .to_owned();
            }
            name => name.clone_into(&mut parsed.what),
        }
        Some(parsed)
    }
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP: Family = FAMILIES[0];

    /// An entry with a target, and a comment when there is one.
    fn entry(comment: &str, target: &str, data: &[u8]) -> Vec<u8> {
        let part = |name: &str, data: &[u8]| {
            let mut part = vec![0; 32];
            part.extend_from_slice(data);
            part.resize(part.len().next_multiple_of(8), 0);
            let size = (part.len() as u16).to_ne_bytes();
            part[..2].copy_from_slice(&size);
            part[2..2 + name.len()].copy_from_slice(name.as_bytes());
            part
        };
        let mut entry = vec![0; IP.entry];
        if !comment.is_empty() {
            entry.extend(part("comment", comment.as_bytes()));
        }
        let target_at = (entry.len() as u16).to_ne_bytes();
        entry.extend(part(target, data));
        let length = (entry.len() as u16).to_ne_bytes();
        entry[IP.offsets..IP.offsets + 2].copy_from_slice(&target_at);
        entry[IP.offsets + 2..IP.offsets + 4].copy_from_slice(&length);
        entry
    }

    fn verdict(number: i32) -> Vec<u8> {
        entry("", "", &number.to_ne_bytes())
    }

    /// INPUT with a rule, FORWARD that jumps to MINE and drops, MINE with a rule.
    fn table() -> (Info, Vec<u8>) {
        let size = verdict(0).len() as u32;
        let mine = 6 * size;
        let entries = [
            verdict(-2),
            verdict(-2),
            entry("", "", &(mine as i32).to_ne_bytes()),
            // Without a target: on to the next.
            verdict(4 * size as i32),
            verdict(-1),
        ];
        let mut bytes = entries.concat();
        let mut head = entry("", "ERROR", b"MINE");
        head.truncate(size as usize);
        bytes.extend(head);
        assert_eq!(bytes.len() as u32, mine);
        bytes.extend(entry("let in", "LOG", &[]));
        bytes.extend(verdict(-5));
        bytes.extend(entry("", "ERROR", b"ERROR"));
        let info = Info {
            valid_hooks: 1 << 1 | 1 << 2,
            hook_entry: [0, 0, 2 * size, 0, 0],
            underflow: [0, size, 4 * size, 0, 0],
            ..Info::default()
        };
        (info, bytes)
    }

    #[test]
    fn what_is_reached_from_a_hook_is_chosen() {
        let (info, entries) = table();
        let chosen = choose(IP, "filter", &info, &entries);
        let lines: Vec<String> = chosen.iter().map(ToString::to_string).collect();
        let expected = [
            "legacy ip filter FORWARD: policy drop is not seen by packets of nsnet",
            "legacy ip filter FORWARD: rule 1 jump MINE is not seen by packets of nsnet",
            "legacy ip filter FORWARD: rule 2 is not seen by packets of nsnet",
            "legacy ip filter MINE: rule 1 LOG (let in) is not seen by packets of nsnet",
        ];
        assert_eq!(lines, expected);
        assert!(chosen.iter().all(|rule| rule.hooks == ["forward"]));
    }

    #[test]
    fn nonsense_is_skipped() {
        let (info, entries) = table();
        for length in 0..entries.len() {
            // Whatever is missing, it comes back.
            let _chosen = choose(IP, "filter", &info, &entries[..length]);
        }
        assert!(choose(IP, "filter", &info, &[0; 4096]).is_empty());
        assert!(choose(IP, "filter", &info, &[0xff; 4096]).is_empty());
    }

    #[test]
    fn the_description_has_the_kernels_size() {
        assert_eq!(size_of::<Info>(), 84);
    }
}
