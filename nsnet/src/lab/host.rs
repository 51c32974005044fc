//! A host to try things on: a namespace that acts as one, with an uplink to another that acts as the outside world.
//!
//! ```text
//!   host ---- uplink ===== uplink ---- wan
//!   192.168.1.1/24                     192.168.1.3/24
//! ```

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::kernel::features::WITHOUT;
use crate::kernel::named;
use crate::kernel::netlink::Netlink;
use crate::kernel::netns::NetNs;
use crate::kernel::stderr;
use crate::kernel::sysctl;
use crate::kernel::veth::VethSpec;

/// Address of the host's uplink.
pub const HOST_IP: &str = "192.168.1.1";
/// Address of the outside world.
pub const WAN_IP: &str = "192.168.1.3";

/// A lab of its own: unique names, so that labs run side by side; taken down when dropped, after a panic too.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    nsnet: PathBuf,
    missing: Option<String>,
    made: Vec<String>,
}

impl Lab {
    /// A host and its outside world. `nsnet` is the program that will act there.
    pub fn new(nsnet: &Path) -> Result<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{:x}{}", std::process::id() & 0xf_ffff, letters(number));
        let mut lab = Self { prefix, nsnet: nsnet.to_owned(), missing: None, made: Vec::new() };
        let (host, wan) = (lab.make("host")?, lab.make("wan")?);
        let end = VethSpec { name: "uplink", ..VethSpec::default() };
        let outside = Netlink::inside(&wan)?;
        Netlink::inside(&host)?.create_veth(&end, &end, Some(&wan))?;
        for (netlink, ip) in [(&Netlink::inside(&host)?, HOST_IP), (&outside, WAN_IP)] {
            let uplink = netlink.existing_link("uplink")?;
            netlink.add_address(uplink.index, format!("{ip}/24").parse()?)?;
            netlink.set_up(uplink.index)?;
        }
        Ok(lab)
    }

    /// Makes a namespace of the lab's, with loopback up and bbr (which some machines default to) replaced.
    pub fn make(&mut self, short: &str) -> Result<NetNs> {
        let name = self.name(short);
        let ns = named::create(&name)?;
        self.made.push(name);
        Netlink::inside(&ns)?.set_loopback_up()?;
        ns.run(|| sysctl::write("net/ipv4/tcp_congestion_control", "reno"))??;
        Ok(ns)
    }

    /// The full name of the lab's namespace `short`.
    pub fn name(&self, short: &str) -> String {
        format!("{}-{short}", self.prefix)
    }

    /// The lab's namespace `short`.
    pub fn ns(&self, short: &str) -> Result<NetNs> {
        Ok(NetNs::named(&self.name(short))?)
    }

    /// Does `work` in the lab's namespace `short`.
    pub fn within<T: Send>(&self, short: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(self.ns(short)?.run(work)?)
    }

    /// Has `nsnet` do without these kernel features, separated by commas: see [`WITHOUT`].
    pub fn treat_as_missing(&mut self, features: &str) {
        self.missing = Some(features.to_owned());
    }

    /// `nsnet --host-ns HOST ARGS`, not yet run.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.nsnet);
        command.arg("--host-ns").arg(self.name("host")).args(args);
        command.envs(self.missing.iter().map(|features| (WITHOUT, features)));
        command
    }

    /// Runs `nsnet` with the words of `line`; a word `@red` stands for the lab's namespace red. Fails when it fails.
    pub fn nsnet(&self, line: &str) -> Result<String> {
        let output = self.try_nsnet(line)?;
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            bail!("`nsnet {line}` ended with {}: {}{}", output.status, stdout.trim(), stderr.trim());
        }
        Ok(stdout.into_owned())
    }

    /// The same with `-o json`, parsed.
    pub fn json(&self, line: &str) -> Result<Value> {
        let text = self.nsnet(&format!("-o json {line}"))?;
        serde_json::from_str(&text).with_context(|| format!("`nsnet {line}` printed no JSON: {text}"))
    }

    /// The same, whatever it ends with.
    pub fn try_nsnet(&self, line: &str) -> Result<Output> {
        let words = line.split_whitespace().map(|word| match word.strip_prefix('@') {
            Some(short) => self.name(short),
            None => word.to_owned(),
        });
        self.command(words).output().with_context(|| format!("run {}", self.nsnet.display()))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.nsnet("down") {
            stderr::tell(format_args!("lab {}: {error:#}", self.prefix));
        }
        for name in self.made.iter().rev() {
            if let Err(error) = named::delete(name) {
                stderr::tell(format_args!("lab {}: {error}", self.prefix));
            }
        }
    }
}

/// a, b, ... z, ba, bb ...: short, and no digits that would run into the process's number.
fn letters(mut number: u32) -> String {
    let mut text = String::new();
    loop {
        text.insert(0, char::from(b'g' + (number % 20) as u8));
        number /= 20;
        if number == 0 {
            return text;
        }
    }
}
