//! Port numbers: a range, and a set as `net.ipv4.ip_local_reserved_ports` has it: `1-3,7`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Ports from one to another, both in it; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// Why a text is no [`PortRange`].
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotAPortRange {
    /// What stands where a port should.
    #[error("a port is a number up to 65535, and a range of ports is written LOW-HIGH")]
    Port,
    /// 90-80.
    #[error("a range of ports begins with its lowest port")]
    Order,
}

impl PortRange {
    /// From `first` to `last`; `None` when they are the wrong way round.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The ports between the two, whichever is lower.
    pub fn spanning(one: u16, other: u16) -> Self {
        Self { first: one.min(other), last: one.max(other) }
    }

    /// The lowest port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    pub fn last(self) -> u16 {
        self.last
    }

    /// How many ports it has.
    pub fn count(self) -> u32 {
        u32::from(self.last - self.first) + 1
    }

    /// Every port.
    pub fn ports(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }

    /// Whether `port` is one of it.
    pub fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// Whether some port is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl FromStr for PortRange {
    type Err = NotAPortRange;

    /// `16384-32767`, or one port.
    fn from_str(text: &str) -> Result<Self, NotAPortRange> {
        let port = |text: &str| {
            let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u16>().ok().filter(|_| is_plain).ok_or(NotAPortRange::Port)
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Self::new(port(first)?, port(last)?).ok_or(NotAPortRange::Order)
    }
}

impl TryFrom<String> for PortRange {
    type Error = NotAPortRange;

    fn try_from(text: String) -> Result<Self, NotAPortRange> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// Any set of ports, as ranges in order that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortSet(Vec<PortRange>);

impl PortSet {
    /// The ranges.
    pub fn ranges(&self) -> &[PortRange] {
        &self.0
    }

    /// Whether there is no port in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `port` is in it.
    pub fn contains(&self, port: u16) -> bool {
        let after = self.0.partition_point(|range| range.first <= port);
        after.checked_sub(1).and_then(|at| self.0.get(at)).is_some_and(|range| range.contains(port))
    }

    /// The ports from the lowest to the highest, whether in it or not.
    pub fn span(&self) -> Option<PortRange> {
        PortRange::new(self.0.first()?.first, self.0.last()?.last)
    }

    /// What is in either.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        self.0.iter().chain(&other.0).copied().collect()
    }

    /// What is here and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = self.0.clone();
        for hole in &other.0 {
            left = left.into_iter().flat_map(|range| cut(range, *hole)).collect();
        }
        Self(left)
    }
}

/// What is left of `range` below and above `hole`.
fn cut(range: PortRange, hole: PortRange) -> impl Iterator<Item = PortRange> {
    let below = hole.first.checked_sub(1).map(|last| last.min(range.last)).filter(|last| *last >= range.first);
    let above = hole.last.checked_add(1).map(|first| first.max(range.first)).filter(|first| *first <= range.last);
    let below = below.map(|last| PortRange { last, ..range });
    below.into_iter().chain(above.map(|first| PortRange { first, ..range }))
}

impl FromIterator<PortRange> for PortSet {
    fn from_iter<I: IntoIterator<Item = PortRange>>(ranges: I) -> Self {
        let mut ranges: Vec<PortRange> = ranges.into_iter().collect();
        ranges.sort_unstable();
        let mut merged: Vec<PortRange> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(before) if u32::from(range.first) <= u32::from(before.last) + 1 => {
                    before.last = before.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }
}

impl FromStr for PortSet {
    type Err = NotAPortRange;

    /// `8080,9148-9150`, or nothing; as the kernel prints it, with a line break.
    fn from_str(text: &str) -> Result<Self, NotAPortRange> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(Self::default());
        }
        text.split(',').map(PortRange::from_str).collect()
    }
}

impl TryFrom<String> for PortSet {
    type Error = NotAPortRange;

    fn try_from(text: String) -> Result<Self, NotAPortRange> {
        text.parse()
    }
}

impl From<PortSet> for String {
    fn from(set: PortSet) -> Self {
        set.to_string()
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if position == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> PortSet {
        text.parse().unwrap()
    }

    #[test]
    fn ranges() {
        for bad in ["", "-", "1-", "-1", "2-1", "65536", "1-65536", "+1", "1-2-3", "a"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
        assert_eq!("2-1".parse::<PortRange>(), Err(NotAPortRange::Order));
        for good in ["0", "80", "1-65535"] {
            assert_eq!(good.parse::<PortRange>().unwrap().to_string(), good);
        }
        let range = |text: &str| text.parse::<PortRange>().unwrap();
        assert!(range("10-20").overlaps(range("20-30")) && range("10-20").overlaps(range("12")));
        assert!(!range("10-20").overlaps(range("21-30")));
        assert_eq!(PortRange::spanning(9, 3), range("3-9"));
        assert_eq!((range("0-65535").count(), range("7").count()), (65536, 1));
        assert!(range("3-5").ports().eq([3, 4, 5]) && range("3-5").contains(5) && !range("3-5").contains(6));
    }

    #[test]
    fn sets_are_kept_in_one_way() {
        assert_eq!(set("9,1-3,4,2-5").to_string(), "1-5,9");
        assert_eq!(set("").to_string(), "");
        assert_eq!(set("65535,65534").to_string(), "65534-65535");
        for text in ["", "7", "1-3,7", "0-65535", "0,2,65535", "63-64", "8080,9148-9150"] {
            assert_eq!(set(text).to_string(), text);
        }
        assert_eq!(set("1-3,7\n"), set("7,1,2,3"));
        for bad in ["-", "1-", "-1", "3-1", "65536", "1,,2", ",", "1 2", "+1", "1-+2", "x", "1-2-3", "99999999999"] {
            assert!(bad.parse::<PortSet>().is_err(), "{bad}");
        }
        assert_eq!(serde_json::to_string(&set("1-3,7")).unwrap(), r#""1-3,7""#);
        assert!(serde_json::from_str::<PortSet>(r#""7-1""#).is_err());
    }

    #[test]
    fn what_is_in_it() {
        let ports = set("0,5-7,65535");
        let inside: Vec<u16> = (0..=u16::MAX).filter(|port| ports.contains(*port)).collect();
        assert_eq!(inside, [0, 5, 6, 7, 65535]);
        assert_eq!(ports.span(), PortRange::new(0, 65535));
        assert!(!set("").contains(0) && set("").span().is_none() && set("").is_empty());
    }

    #[test]
    fn adding_and_taking_away() {
        assert_eq!(set("1-10").with(&set("11,20")), set("1-11,20"));
        assert_eq!(set("1-10").without(&set("3-4,10-20")), set("1-2,5-9"));
        assert_eq!(set("0-65535").without(&set("0,65535")), set("1-65534"));
        assert_eq!(set("5").without(&set("0-65535")), set(""));
        // What others had reserved is theirs when ours is taken away again.
        let (theirs, wanted) = (set("8080,16000-17000"), set("16384-32767"));
        let ours = wanted.without(&theirs);
        assert_eq!(theirs.with(&ours).without(&ours), theirs);
    }
}
