//! Namespaces with a name, as `ip netns` makes, lists and deletes them: a bind mount in `/run/netns` holds each alive.
//!
//! Such a mount belongs to the mount namespace it was made in: see [`super::place`].

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::{panic, thread};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::error::{Doing, KernelError, Result};
use super::file;
use super::lock::{Sharing, in_turn};
use super::netns::{NAMES, NetNs, path_of};

const NONE: Option<&str> = None;

/// Makes the network namespace `name`. Its `lo` is down. EEXIST when the name is taken, by a namespace or by a
/// leftover file; nothing is left behind by a failure.
pub fn create(name: &str) -> Result<NetNs> {
    let path = path_of(name)?;
    let what = || format!("create network namespace {name}");
    make_place(&path).doing(what)?;
    pin_new_namespace(&path).doing(what).and_then(|()| NetNs::named(name)).inspect_err(|_| drop(delete(name)))
}

/// Gives a namespace that is still open its name back. EEXIST when the name is taken.
pub(crate) fn restore(name: &str, ns: &NetNs) -> Result<()> {
    let path = path_of(name)?;
    let what = || format!("give network namespace {name} its name back");
    make_place(&path).doing(what)?;
    let open = format!("/proc/self/fd/{}", ns.as_fd().as_raw_fd());
    mount(Some(open.as_str()), &path, NONE, MsFlags::MS_BIND, NONE).doing(what).inspect_err(|_| drop(delete(name)))
}

/// Deletes what is left where a name was made or deleted half: an empty file. Anything else stays.
pub(crate) fn delete_leftover(name: &str) -> Result<()> {
    let path = path_of(name)?;
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_file() && found.len() == 0 => delete(name).map(|_was_there| ()),
        Ok(_) => Ok(()),
        Err(why) if why.kind() == ErrorKind::NotFound => Ok(()),
        Err(why) => Err(why).doing(|| format!("look at {}", path.display())),
    }
}

/// The file to mount a namespace on.
fn make_place(path: &Path) -> io::Result<()> {
    prepare_directory()?;
    let mut file = OpenOptions::new();
    file.read(true).write(true).create_new(true).mode(0o0).custom_flags(nix::libc::O_NOFOLLOW);
    file.open(path).map(drop)
}

/// Removes the name; `Ok(false)` when there is none. The namespace itself goes when its last user does.
pub fn delete(name: &str) -> Result<bool> {
    let path = path_of(name)?;
    match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // EINVAL: a plain file, such as the leftover of a mount made in another mount namespace.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(why) => return Err(KernelError::new(format_args!("unmount network namespace {name}"), why)),
    }
    file::remove(&path).doing(|| format!("delete network namespace {name}"))
}

/// The names in `/run/netns` behind which there really is a network namespace, sorted.
pub fn list() -> Result<Vec<String>> {
    let what = || format!("list {NAMES}");
    let entries = match fs::read_dir(NAMES) {
        Err(why) if why.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.doing(what)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.doing(what)?.file_name();
        let Some(name) = name.to_str() else { continue };
        if NetNs::find(name)?.is_some() {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Makes `/run/netns` a shared mount, exactly as iproute2's `netns_add` does, so that a name made or deleted in one
/// mount namespace is made or deleted in its copies too. The lock is the one iproute2 takes.
fn prepare_directory() -> io::Result<()> {
    match DirBuilder::new().mode(0o755).create(NAMES) {
        Err(why) if why.kind() != ErrorKind::AlreadyExists => return Err(why),
        Ok(()) | Err(_) => {}
    }
    let lock = File::open(NAMES)?;
    in_turn(&lock, Sharing::Alone)?;
    let share = || mount(NONE, NAMES, NONE, MsFlags::MS_SHARED | MsFlags::MS_REC, NONE);
    match share() {
        Err(Errno::EINVAL) => {
            // Not a mount point yet.
            mount(Some(NAMES), NAMES, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
            share()?;
        }
        result => result?,
    }
    Ok(())
}

/// A thread of its own makes the namespace and pins it: the rest of the process stays where it is.
fn pin_new_namespace(path: &Path) -> io::Result<()> {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(mount(Some("/proc/thread-self/ns/net"), path, NONE, MsFlags::MS_BIND, NONE)?)
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("namespace".to_owned()).spawn_scoped(scope, make)?;
        thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listing_needs_no_privilege_and_is_sorted() {
        let names = list().unwrap();
        assert!(names.is_sorted());
    }

    #[test]
    fn bad_names_are_refused_before_anything_happens() {
        for name in ["", "..", "a/b"] {
            assert!(create(name).is_err());
            assert!(delete(name).is_err());
        }
    }
}
