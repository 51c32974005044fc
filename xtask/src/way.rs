//! Which toolchain builds the eBPF object: a pure choice from facts, so that it can be tested without a machine.
//!
//! The host side needs stable Rust only. The object needs `core` for `bpfel-unknown-none`, which rustup does not ship:
//! it is either compiled from nightly's sources or taken precompiled from Debian. What is already installed wins;
//! then Debian's packages, because they pin a compiler and a linker that fit each other; then rustup.

use anyhow::{Result, bail};

/// Where `core` for the BPF target, and the compiler it belongs to, come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// rustup's nightly compiles `core` from `rust-src` with `-Z build-std`.
    Rustup,
    /// Debian's stable compiler with its precompiled `core`.
    Debian,
}

impl Way {
    /// Reads the value of `NSNET_BPF_TOOLCHAIN`.
    pub(crate) fn parse(value: &str) -> Result<Option<Self>> {
        match value {
            "" => Ok(None),
            "rustup" => Ok(Some(Self::Rustup)),
            "debian" => Ok(Some(Self::Debian)),
            other => bail!("NSNET_BPF_TOOLCHAIN is `{other}`: set it to `rustup` or `debian`, or unset it"),
        }
    }
}

/// Debian's names for the three packages: releases that backport a new compiler for browsers call it `rustc-web`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// `rustc-web` and its companions, in stable releases.
    Web,
    /// `rustc` and its companions, once the release's own compiler is new enough.
    Plain,
}

impl Flavour {
    /// Compiler, precompiled `core` for BPF, clippy.
    pub(crate) const fn packages(self) -> [&'static str; 3] {
        match self {
            Self::Web => ["rustc-web", "libstd-rust-web-dev-bpf", "rust-web-clippy"],
            Self::Plain => ["rustc", "libstd-rust-dev-bpf", "rust-clippy"],
        }
    }
}

/// What is on the machine before anything is installed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Installed {
    /// The user's own decision.
    pub(crate) forced: Option<Way>,
    /// rustup has a nightly with `rust-src`.
    pub(crate) nightly_source: bool,
    /// Debian's compiler has its `core` for BPF.
    pub(crate) debian_core: bool,
}

/// A way, and the reason to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) way: Way,
    pub(crate) reason: &'static str,
}

/// Chooses by what is there; `None` means that apt must be asked.
pub(crate) fn from_installed(installed: Installed) -> Option<Choice> {
    if let Some(way) = installed.forced {
        Some(Choice { way, reason: "NSNET_BPF_TOOLCHAIN says so" })
    } else if installed.nightly_source {
        Some(Choice { way: Way::Rustup, reason: "a nightly with rust-src is installed" })
    } else if installed.debian_core {
        Some(Choice { way: Way::Debian, reason: "core for bpfel-unknown-none is installed with /usr/bin/rustc" })
    } else {
        None
    }
}

/// Chooses by what apt could install.
pub(crate) fn from_packages(available: Option<Flavour>) -> Choice {
    match available {
        Some(Flavour::Web) => Choice { way: Way::Debian, reason: "apt has libstd-rust-web-dev-bpf" },
        Some(Flavour::Plain) => Choice { way: Way::Debian, reason: "apt has libstd-rust-dev-bpf and a recent rustc" },
        None => Choice { way: Way::Rustup, reason: "no package has core for bpfel-unknown-none" },
    }
}

#[cfg(test)]
mod tests {
    use super::{Flavour, Installed, Way, from_installed, from_packages};

    fn way(installed: Installed) -> Option<Way> {
        from_installed(installed).map(|choice| choice.way)
    }

    #[test]
    fn what_is_installed_decides_and_nightly_comes_first() {
        assert_eq!(way(Installed::default()), None);
        assert_eq!(way(Installed { debian_core: true, ..Installed::default() }), Some(Way::Debian));
        assert_eq!(way(Installed { nightly_source: true, ..Installed::default() }), Some(Way::Rustup));
        assert_eq!(way(Installed { nightly_source: true, debian_core: true, forced: None }), Some(Way::Rustup));
    }

    #[test]
    fn the_user_overrules_what_is_installed() {
        let both = Installed { forced: Some(Way::Debian), nightly_source: true, debian_core: true };
        assert_eq!(way(both), Some(Way::Debian));
        assert_eq!(way(Installed { forced: Some(Way::Rustup), ..both }), Some(Way::Rustup));
        assert_eq!(way(Installed { forced: Some(Way::Debian), ..Installed::default() }), Some(Way::Debian));
    }

    #[test]
    fn packages_decide_when_nothing_is_installed() {
        assert_eq!(from_packages(Some(Flavour::Web)).way, Way::Debian);
        assert_eq!(from_packages(Some(Flavour::Plain)).way, Way::Debian);
        assert_eq!(from_packages(None).way, Way::Rustup);
    }

    #[test]
    fn the_variable_takes_two_values() {
        assert_eq!(Way::parse("").ok(), Some(None));
        assert_eq!(Way::parse("rustup").ok(), Some(Some(Way::Rustup)));
        assert_eq!(Way::parse("debian").ok(), Some(Some(Way::Debian)));
        assert!(Way::parse("Debian").is_err_and(|error| error.to_string().contains("`rustup` or `debian`")));
    }
}
