//! Where frames are forwarded: at TC, which does all of it, or as far as possible at XDP, in front of it.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where frames of some interfaces are forwarded. In order: of several wishes for one uplink the last one counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Mode {
    /// At TC.
    #[default]
    Tc,
    /// At XDP where the interface is made for it, else at TC.
    Auto,
    /// At XDP, natively; what that leaves, at TC.
    Xdp,
}

/// The modes of a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Modes {
    /// Of its namespaces' ports.
    pub ports: Mode,
    /// Of its uplinks.
    pub uplinks: Mode,
}

impl Modes {
    /// Whether nothing but TC is asked for.
    pub fn are_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether ports are accelerated.
    ///
    /// [`Mode::Auto`] is TC for them: a namespace's end of a veth would have to cut all segments itself (no GSO), which costs
    /// its bulk traffic more than XDP gains. Who has frames of XDP inside namespaces says so.
    pub fn accelerate_ports(&self) -> bool {
        self.ports == Mode::Xdp
    }
}

/// The options that ask for this, as they are typed; empty for the default.
impl fmt::Display for Modes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |option: &str, mode: Mode| (mode != Mode::Tc).then(|| format!("{option} {mode}"));
        let words: Vec<String> =
            [word("--mode", self.ports), word("--uplink-mode", self.uplinks)].into_iter().flatten().collect();
        f.write_str(&words.join(" "))
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tc" => Ok(Self::Tc),
            "xdp" => Ok(Self::Xdp),
            "auto" => Ok(Self::Auto),
            _ => Err("say tc, xdp or auto".to_owned()),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tc => "tc",
            Self::Auto => "auto",
            Self::Xdp => "xdp",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_read() {
        for mode in [Mode::Tc, Mode::Auto, Mode::Xdp] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.to_string());
        }
        assert!("native".parse::<Mode>().is_err());
        let modes = Modes { ports: Mode::Xdp, uplinks: Mode::Auto };
        assert_eq!(modes.to_string(), "--mode xdp --uplink-mode auto");
        assert!(Modes::default().to_string().is_empty() && Modes::default().are_default());
        assert!(modes.accelerate_ports() && !Modes { ports: Mode::Auto, ..modes }.accelerate_ports());
    }
}
