//! Programs of others: the peers are made with them, and some traffic. Never nsnet itself.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::kernel::netns::NetNs;

pub(super) const IP: &str = "ip";
pub(super) const IPTABLES_NFT: &str = "iptables-nft-restore";
pub(super) const IP6TABLES_NFT: &str = "ip6tables-nft-restore";
pub(super) const IPTABLES_LEGACY: &str = "iptables-legacy-restore";
pub(super) const IP6TABLES_LEGACY: &str = "ip6tables-legacy-restore";
pub(super) const NFT: &str = "nft";
pub(super) const CONNTRACK: &str = "conntrack";
pub(super) const IPERF3: &str = "iperf3";
pub(super) const NGINX: &str = "nginx";
pub(super) const WRK: &str = "wrk";
pub(super) const SOCKPERF: &str = "sockperf";

/// All of them, with the package that has each on Debian: `cargo xtask setup` installs these.
pub(super) const ALL: [(&str, &str); 11] = [
    (IP, "iproute2"),
    (IPTABLES_NFT, "iptables"),
    (IP6TABLES_NFT, "iptables"),
    (IPTABLES_LEGACY, "iptables"),
    (IP6TABLES_LEGACY, "iptables"),
    (NFT, "nftables"),
    (CONNTRACK, "conntrack"),
    (IPERF3, "iperf3"),
    (NGINX, "nginx-light"),
    (WRK, "wrk"),
    (SOCKPERF, "sockperf"),
];

/// Finds a program on PATH, and where Debian keeps root's.
pub(super) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Those that are not there.
pub(super) fn missing() -> Vec<(&'static str, &'static str)> {
    ALL.into_iter().filter(|(program, _)| find(program).is_none()).collect()
}

/// `line` as a command in `ns`, not yet run.
pub(super) fn command(line: &str) -> Result<Command> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty command")?;
    let path = find(program).with_context(|| format!("there is no `{program}`"))?;
    let mut command = Command::new(path);
    command.args(words).stdin(Stdio::null());
    Ok(command)
}

/// Runs `line` in `ns`; an exit code other than 0 is an error with what it said.
pub(super) fn run(ns: &NetNs, line: &str) -> Result<String> {
    let mut command = command(line)?;
    // A child begins in the namespace of the thread that starts it.
    said(line, &ns.run(|| command.output())?.with_context(|| format!("cannot run `{line}`"))?)
}

/// The same with `input` on its stdin.
pub(super) fn feed(ns: &NetNs, line: &str, input: &str) -> Result<String> {
    let mut command = command(line)?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = ns.run(|| command.spawn())?;
    let mut child = child.with_context(|| format!("cannot run `{line}`"))?;
    // It reads all of its input before it says anything, but for errors, which are short.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().with_context(|| format!("cannot wait for `{line}`"))?;
    let text = said(line, &output)?;
    written.with_context(|| format!("`{line}` did not read its input"))?;
    Ok(text)
}

fn said(line: &str, output: &Output) -> Result<String> {
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        let first = error.lines().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        bail!("`{line}` failed: {}", first.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_feeds() {
        let here = NetNs::current().unwrap();
        assert_eq!(run(&here, "echo a b").unwrap(), "a b\n");
        assert_eq!(feed(&here, "cat", "input").unwrap(), "input");
        assert!(run(&here, "nsnet-no-such-program").unwrap_err().to_string().contains("there is no"));
        let error = run(&here, "ls /nsnet-no-such-folder").unwrap_err().to_string();
        assert!(error.contains("`ls /nsnet-no-such-folder` failed: "), "{error}");
    }
}
