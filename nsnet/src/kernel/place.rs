//! Whether a mount made by this process outlives the command that started it, and how to get to where it does.
//!
//! `ip netns exec` and `unshare -m` run their command in a private mount namespace. A BPF file system or a name in
//! `/run/netns` mounted there vanishes with the command, and with it the dataplane it should keep alive. So nsnet
//! goes back, before it does anything else, to the mount namespace that the command was started from.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use nix::unistd::fchdir;

use super::error::{Doing, Result};
use super::netns::{NAMES, NetNs};

/// Where [`leave_private_mount_namespace`] has brought us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// No outside was found: a mount made here stays.
    Home,
    /// We were in a private mount namespace and are now in that of the process `pid`.
    Entered {
        /// The ancestor whose mount namespace was entered.
        pid: u32,
    },
    /// No outside was found, but not every ancestor could be looked at: [`why_private`] tells, which takes the longer the
    /// more mounts there are.
    Unknown,
    /// This mount namespace is private and cannot be left: a mount made here is lost with the command.
    Stuck {
        /// Half a sentence for the error message.
        why: String,
    },
}

/// Goes to the mount namespace of the outermost ancestor we may look at, when that has the same root directory and
/// the same `/run`. Call it first in `main`: the kernel allows it only while there is a single thread.
///
/// The outermost one, not the nearest that differs: then commands nested in one another (`ip netns exec` inside
/// `unshare -m`) agree about where the state is. PID 1 is often closed, even to root; the walk ends there. What
/// is known then are the traces in our own mount table: see `private_mounts` below.
///
/// The network namespace, the working directory and every open file stay what they were.
pub fn leave_private_mount_namespace() -> Result<Place> {
    let walk = walk_outwards().doing(|| "find out which mount namespace this is")?;
    let Some((pid, namespace)) = walk.outside else {
        if let Some(why) = walk.other_root {
            return Ok(Place::Stuck { why });
        }
        if walk.reached_the_top {
            return Ok(Place::Home);
        }
        return Ok(Place::Unknown);
    };
    let path = std::env::current_dir().ok();
    let directory = File::open(".").doing(|| "open the working directory")?;
    if let Err(why) = setns(&namespace, CloneFlags::CLONE_NEWNS).map_err(io::Error::from) {
        return Ok(Place::Stuck { why: format!("entering the mount namespace of process {pid} failed: {why}") });
    }
    // setns went to "/". By path when that leads to the same directory, so that ".." is the outside's too.
    let moved = path.filter(|path| {
        let wanted = directory.metadata();
        fs::metadata(path).is_ok_and(|there| wanted.is_ok_and(|here| same(&here, &there)))
    });
    match moved {
        Some(path) => std::env::set_current_dir(path),
        None => fchdir(&directory).map_err(io::Error::from),
    }
    .doing(|| "go back to the working directory")?;
    Ok(Place::Entered { pid })
}

/// Why this mount namespace looks as if it were private, if it does, by its mounts.
pub fn why_private() -> Result<Option<String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").doing(|| "read /proc/self/mountinfo")?;
    Ok(private_mounts(&mounts, is_name))
}

/// What the ancestors say.
#[derive(Default)]
struct Walk {
    /// The outermost ancestor in another mount namespace with our root directory.
    outside: Option<(u32, File)>,
    /// Why the walk ended at an ancestor with another root directory.
    other_root: Option<String>,
    /// Every ancestor was looked at.
    reached_the_top: bool,
}

fn walk_outwards() -> io::Result<Walk> {
    let mut walk = Walk::default();
    let own = fs::metadata("/proc/self/ns/mnt")?;
    let mut status = fs::read_to_string("/proc/self/status")?;
    loop {
        let Some(pid) = parent(&status) else {
            walk.reached_the_top = true;
            return Ok(walk);
        };
        let process = Path::new("/proc").join(pid.to_string());
        let Ok(namespace) = File::open(process.join("ns/mnt")) else { return Ok(walk) };
        if same(&namespace.metadata()?, &own) {
            // Whatever lies between, the outside of it is where we are.
            walk.outside = None;
        } else if same_tree(&process.join("root")) {
            walk.outside = Some((pid, namespace));
        } else {
            walk.other_root = Some(format!("process {pid} outside has another root directory or /run"));
            return Ok(walk);
        }
        let Ok(next) = fs::read_to_string(process.join("status")) else { return Ok(walk) };
        status = next;
    }
}

fn same_tree(root: &Path) -> bool {
    let equal = |theirs: &Path, ours: &str| {
        fs::metadata(theirs).is_ok_and(|theirs| fs::metadata(ours).is_ok_and(|ours| same(&theirs, &ours)))
    };
    equal(root, "/") && equal(&root.join("run"), "/run")
}

fn same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// The parent's process id in `/proc/PID/status`; `None` for the first process of a PID namespace.
fn parent(status: &str) -> Option<u32> {
    let value = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    value.trim().parse().ok().filter(|&pid| pid != 0)
}

fn is_name(name: &str) -> bool {
    Path::new(NAMES).join(name).exists() && NetNs::named(name).is_ok()
}

/// What in `/proc/self/mountinfo` (proc_pid_mountinfo(5)) shows that this is a private mount namespace:
/// - `/` or `/run` only receives mounts (`master:` without `shared:`), as `unshare -m` and `ip netns exec` leave it
///   where the outside shares its mounts;
/// - `/sys` was mounted with the name of a network namespace as its source, as `ip netns exec` does.
fn private_mounts(mountinfo: &str, is_name: impl Fn(&str) -> bool) -> Option<String> {
    // Of several mounts at one place the last one is on top.
    let at = |place: &str| mountinfo.lines().rfind(|line| line.split(' ').nth(4) == Some(place));
    for place in ["/", "/run"] {
        let Some((fields, _)) = at(place).and_then(|line| line.split_once(" - ")) else { continue };
        let optional = || fields.split(' ').skip(6);
        if optional().any(|field| field.starts_with("master:")) && !optional().any(|field| field.starts_with("shared:"))
        {
            return Some(format!("this mount namespace is private ({place} is a slave mount)"));
        }
    }
    let (_, sysfs) = at("/sys")?.split_once(" - ")?;
    let source = sysfs.split(' ').nth(1)?;
    is_name(source).then(|| format!("this mount namespace is that of `ip netns exec {source}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED: &str = "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                          23 27 0:22 / /sys rw,relatime shared:7 - sysfs sysfs rw\n";

    #[test]
    fn parents() {
        assert_eq!(parent("Name:\tsh\nPPid:\t8349\nTracerPid:\t0\n"), Some(8349));
        assert_eq!(parent("PPid:\t0\n"), None);
        assert_eq!(parent("Name:\tsh\n"), None);
    }

    #[test]
    fn an_ordinary_mount_table() {
        assert_eq!(private_mounts(SHARED, |_| false), None);
        assert_eq!(private_mounts("", |_| true), None);
        let service = SHARED.replace("shared:1", "shared:9 master:1");
        assert_eq!(private_mounts(&service, |_| false), None, "a systemd service hands its mounts on");
    }

    #[test]
    fn slaves_are_private() {
        let slave = SHARED.replace("shared:1", "master:1");
        assert!(private_mounts(&slave, |_| false).unwrap().contains("/ is a slave"));
        let run = format!("{SHARED}30 27 0:9 / /run rw master:3 - tmpfs tmpfs rw\n");
        assert!(private_mounts(&run, |_| false).unwrap().contains("/run is a slave"));
        let covered = format!("{run}31 30 0:10 / /run rw shared:4 - tmpfs tmpfs rw\n");
        assert_eq!(private_mounts(&covered, |_| false), None, "only the topmost mount counts");
    }

    #[test]
    fn the_sys_of_ip_netns_exec() {
        let exec = format!("{SHARED}99 27 0:40 / /sys rw,relatime - sysfs red rw\n");
        assert!(private_mounts(&exec, |name| name == "red").unwrap().contains("`ip netns exec red`"));
        assert_eq!(private_mounts(&exec, |_| false), None);
    }
}
