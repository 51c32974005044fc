//! Names of namespaces and networks, and the interface names made of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name of a network interface in bytes (IFNAMSIZ less its NUL), and so of everything we name.
pub const MAX_LEN: usize = 15;

/// A name that is safe in a path, in a message and as an interface's name: `[A-Za-z0-9][A-Za-z0-9_.-]{0,14}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is no [`Name`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a name is 1 to 15 of the characters A-Z a-z 0-9 _ . - and begins with a letter or digit")]
pub struct NotAName;

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let begins_well = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if begins_well && text.len() <= MAX_LEN && text.bytes().all(is_safe) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAName)
        }
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error: NotAName| format!("{text:?}: {error}"))
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Whether the kernel has this name for something else: every namespace's loopback, and the folders for all and for new
/// interfaces in /proc/sys/net/ipv4/conf.
pub fn is_reserved(interface: &str) -> bool {
    matches!(interface, "lo" | "all" | "default")
}

/// The interface in namespace `ns`: `veth-red`.
pub fn inner_interface(ns: &Name) -> String {
    fitting(format!("veth-{ns}"), || format!("veth-{}", short_hash(ns.as_str())))
}

/// The host's end of it: `veth-red-br`.
pub fn outer_interface(ns: &Name) -> String {
    fitting(format!("veth-{ns}-br"), || format!("veth-{}-br", short_hash(ns.as_str())))
}

/// The same two for an attachment or cable whose plain names are taken; `with` tells it from the others of `ns`.
pub fn further_interfaces(ns: &Name, with: &Name) -> (String, String) {
    let hash = short_hash(&format!("{ns}/{with}"));
    (format!("veth-{hash}"), format!("veth-{hash}-br"))
}

/// The unused end of a network's own interface.
pub fn unused_end(network: &Name) -> String {
    fitting(format!("{network}-end"), || format!("nsnet-{}-e", short_hash(network.as_str())))
}

fn fitting(plain: String, hashed: impl FnOnce() -> String) -> String {
    if plain.len() <= MAX_LEN { plain } else { hashed() }
}

/// Seven hexadecimal digits that depend on `text` alone (FNV-1a).
fn short_hash(text: &str) -> String {
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("{:07x}", hash & 0x0fff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::random::Random;

    #[test]
    fn what_is_a_name() {
        for good in ["a", "red", "v-net-0", "A.b_c-9", "0", "fifteen-letters"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "../x", "/", "a/b", "-a", "_a", "sixteen-letters-", "a b", "a\0", "rot\u{e9}", "a\n"]
        {
            assert_eq!(bad.parse::<Name>(), Err(NotAName), "{bad:?}");
        }
    }

    /// The rule once more, said otherwise.
    fn is_safe(text: &[u8]) -> bool {
        let Some((first, rest)) = text.split_first() else { return false };
        let is_letter_or_digit = |byte: &u8| matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9');
        rest.len() < MAX_LEN
            && is_letter_or_digit(first)
            && rest.iter().all(|byte| is_letter_or_digit(byte) || matches!(byte, b'_' | b'.' | b'-'))
    }

    #[test]
    fn a_million_random_names() {
        const LIKELY: &[u8] = b"abzAZ09_.-/\0 \n\\~*$@:\x7f\xc3\xa9";
        let mut random = Random::new(0x6e61_6d65);
        let (mut accepted, mut text) = (0, Vec::new());
        for number in 0..1_000_000 {
            text.clear();
            // Of what names are made of, of what they are not, and of anything.
            let from = match number % 3 {
                0 => &LIKELY[..9],
                1 => LIKELY,
                _ => &[],
            };
            for _ in 0..random.below(MAX_LEN + 4) {
                text.push(from.get(random.below(from.len())).copied().unwrap_or_else(|| random.below(256) as u8));
            }
            let Ok(text) = std::str::from_utf8(&text) else { continue };
            let name = text.parse::<Name>();
            assert_eq!(name.is_ok(), is_safe(text.as_bytes()), "{text:?}");
            let Ok(name) = name else { continue };
            accepted += 1;
            assert!(!matches!(name.as_str(), "." | ".."));
            let (inner, outer) = further_interfaces(&name, &name);
            for interface in [inner_interface(&name), outer_interface(&name), unused_end(&name), inner, outer] {
                assert!(interface.len() <= MAX_LEN && !interface.contains(['/', '\0', ' ']), "{text:?}: {interface:?}");
            }
        }
        assert!((50_000..500_000).contains(&accepted), "{accepted} were names");
    }

    #[test]
    fn interfaces_fit() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        assert_eq!(inner_interface(&name("red")), "veth-red");
        assert_eq!(outer_interface(&name("purple")), "veth-purple-br");
        assert_eq!(unused_end(&name("v-net-0")), "v-net-0-end");
        let long = name("a-very-long-one");
        for interface in [inner_interface(&long), outer_interface(&long), unused_end(&long)] {
            assert!(interface.len() <= MAX_LEN, "{interface}");
        }
        assert_ne!(outer_interface(&long), outer_interface(&name("a-very-long-two")));
        assert_ne!(further_interfaces(&long, &name("x")), further_interfaces(&long, &name("y")));
    }
}
