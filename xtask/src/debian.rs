//! Debian's packages: what apt could give, what is installed, and installing the difference.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::shell;
use crate::way::Flavour;

/// Debian's compiler. rustup's comes first on PATH, so this one is always named in full.
pub(crate) const RUSTC: &str = "/usr/bin/rustc";
/// The front end of its clippy, which calls the driver beside it.
pub(crate) const CARGO_CLIPPY: &str = "/usr/bin/cargo-clippy";

/// The oldest compiler whose LLVM bpf-linker supports and whose `core` aya-ebpf accepts.
const OLDEST: (u32, u32) = (1, 92);

/// Whether Debian's compiler has `core` for the BPF target.
pub(crate) fn has_core() -> bool {
    let sysroot = shell::ask(shell::command(RUSTC).args(["--print", "sysroot"]));
    sysroot.is_some_and(|sysroot| Path::new(sysroot.trim()).join("lib/rustlib/bpfel-unknown-none/lib").is_dir())
}

/// The flavour apt can install. A machine that never ran `apt-get update`, or long ago, does not know: then it is run.
pub(crate) fn available() -> Option<Flavour> {
    shell::find("apt-cache")?;
    offered().or_else(|| {
        if !shell::is_root() {
            return None;
        }
        update();
        offered()
    })
}

/// Installs compiler, `core` and clippy unless they are there. `flavour`: what apt offers, when it was asked already.
pub(crate) fn ensure(flavour: Option<Flavour>) -> Result<()> {
    if has_core() && Path::new(CARGO_CLIPPY).exists() {
        return Ok(());
    }
    let flavour = flavour.or_else(installed).or_else(available).context(
        "apt knows no package with core for bpfel-unknown-none: run `sudo apt-get update`, \
         or use NSNET_BPF_TOOLCHAIN=rustup",
    )?;
    install(&flavour.packages())
}

/// Installs packages; without root it says how.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let arguments = [&["install", "-y", "--no-install-recommends"], packages].concat();
    if shell::find("apt-get").is_none() {
        bail!("{} missing and there is no apt-get: install it with this system's package manager", packages.join(" "));
    }
    if !shell::is_root() {
        let arguments = arguments.join(" ");
        bail!("{} missing: run `sudo apt-get {arguments}`, then this command again", packages.join(" "));
    }
    shell::note(format_args!("installing {}", packages.join(" ")));
    let attempt = || shell::run(apt_get().args(&arguments));
    // Old lists name versions that the mirror has since replaced.
    attempt().or_else(|_| {
        update();
        attempt()
    })
}

/// The flavour that is installed in part.
fn installed() -> Option<Flavour> {
    if Path::new("/usr/share/doc/rustc-web").exists() {
        Some(Flavour::Web)
    } else {
        has_core().then_some(Flavour::Plain)
    }
}

/// The flavour that apt's present lists offer.
fn offered() -> Option<Flavour> {
    let packages = [Flavour::Web, Flavour::Plain].map(Flavour::packages).concat();
    let policy = shell::ask(shell::command("apt-cache").env("LC_ALL", "C").arg("policy").args(packages))?;
    flavour(&policy)
}

/// A failure is no error: one unreachable source of many is common, and the candidates tell what is missing.
fn update() {
    if let Err(error) = shell::run(apt_get().arg("update")) {
        shell::note(format_args!("warning: {error:#}"));
    }
}

fn apt_get() -> std::process::Command {
    let mut command = shell::command("apt-get");
    // A question would wait for ever; a lock is let go of when the machine's own updater is done.
    command.env("DEBIAN_FRONTEND", "noninteractive");
    // invoke-rc.d(8) starts no service in this runlevel: nginx is installed to be run by the bench, not by the system.
    command.env("RUNLEVEL", "1");
    command.args(["-qq", "-o", "Dpkg::Use-Pty=0", "-o", "DPkg::Lock::Timeout=300"]);
    command
}

/// Reads `apt-cache policy`: the first flavour whose three packages are there and whose compiler is recent.
fn flavour(policy: &str) -> Option<Flavour> {
    [Flavour::Web, Flavour::Plain].into_iter().find(|flavour| {
        let packages = flavour.packages();
        let all = packages.iter().all(|package| candidate(policy, package).is_some());
        all && candidate(policy, packages[0]).and_then(release).is_some_and(|release| release >= OLDEST)
    })
}

/// The version that apt would install.
fn candidate<'a>(policy: &'a str, package: &str) -> Option<&'a str> {
    let mut lines = policy.lines();
    lines.find(|line| line.strip_suffix(':') == Some(package))?;
    let version = lines
        .take_while(|line| line.starts_with(' '))
        .find_map(|line| line.trim_start().strip_prefix("Candidate: "))?
        .trim();
    (version != "(none)").then_some(version)
}

/// `1.96` of `1.96.0+dfsg1-1~deb12u2`, without an epoch.
fn release(version: &str) -> Option<(u32, u32)> {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    let mut numbers = upstream.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::{candidate, flavour, release};
    use crate::way::Flavour;

    fn policy(packages: &[(&str, &str)]) -> String {
        let entry = |(name, version): &(&str, &str)| {
            format!(
                "{name}:\n  Installed: (none)\n  Candidate: {version}\n  Version table:\n     9.9 500\n        500 a\n"
            )
        };
        packages.iter().map(entry).collect()
    }

    #[test]
    fn a_candidate_belongs_to_its_package() {
        let policy = policy(&[("rustc", "(none)"), ("rustc-web", "1.96.0+dfsg1-1~deb12u2")]);
        assert_eq!(candidate(&policy, "rustc"), None);
        assert_eq!(candidate(&policy, "rustc-web"), Some("1.96.0+dfsg1-1~deb12u2"));
        assert_eq!(candidate(&policy, "rust-web"), None);
    }

    #[test]
    fn a_release_is_two_numbers() {
        assert_eq!(release("1.96.0+dfsg1-1~deb12u2"), Some((1, 96)));
        assert_eq!(release("2:1.100ubuntu1"), Some((1, 100)));
        assert_eq!(release("unknown"), None);
    }

    #[test]
    fn stable_debian_offers_the_backported_compiler() {
        let web = [("rustc-web", "1.96.0-1"), ("libstd-rust-web-dev-bpf", "1.96.0-1"), ("rust-web-clippy", "1.96.0-1")];
        assert_eq!(flavour(&policy(&web)), Some(Flavour::Web));
        assert_eq!(flavour(&policy(&web[..1])), None);
    }

    #[test]
    fn an_old_compiler_is_no_offer() {
        let plain = |version| [("rustc", version), ("libstd-rust-dev-bpf", version), ("rust-clippy", version)];
        assert_eq!(flavour(&policy(&plain("1.92.0-1"))), Some(Flavour::Plain));
        assert_eq!(flavour(&policy(&plain("1.91.1-1"))), None);
        assert_eq!(flavour(&policy(&plain("(none)"))), None);
        assert_eq!(flavour(""), None);
    }
}
