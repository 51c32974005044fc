//! The root of the cgroup2 hierarchy: the one place that every socket of the machine passes.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::libc;
use nix::sys::stat::Mode;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use super::error::{Doing as _, KernelError, Result};

/// Opens the root cgroup: by a mount of ours, else by one of the first process's (`ip netns exec` hides ours), else by a
/// mount that nobody else sees and that ends with the descriptor.
///
/// In a container with a cgroup namespace of its own it is the root of that: the container's sockets.
pub fn root() -> Result<File> {
    by_mount_of_ours()?.map_or_else(elsewhere, Ok)
}

/// Whether it can be opened. Fails when our mounts cannot be read, which says nothing of it.
pub(super) fn is_there() -> Result<bool> {
    Ok(by_mount_of_ours()?.is_some() || elsewhere().is_ok())
}

fn by_mount_of_ours() -> Result<Option<File>> {
    by_mount_of("self").doing(|| "read /proc/self/mountinfo")
}

fn elsewhere() -> Result<File> {
    if let Ok(Some(file)) = by_mount_of("1") {
        return Ok(file);
    }
    // A further mount sets the options of all (`nsdelegate`), so there must be none: that is for PID 1's table to say.
    match fs::read_to_string("/proc/1/mountinfo") {
        Ok(mounts) if !mounts.lines().any(is_cgroup2) => mount_unseen().doing(|| "mount a cgroup2 file system"),
        _ => Err(KernelError::refused("open the root cgroup", "no cgroup2 file system is mounted here")
            .with_remedy("run it outside of `ip netns exec`, with --host-ns NAME")),
    }
}

fn by_mount_of(process: &str) -> io::Result<Option<File>> {
    let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo"))?;
    let open = |place: PathBuf| {
        let file = File::open(format!("/proc/{process}/root{}", place.display())).ok()?;
        // Something else may be mounted over it.
        let is_it = fstatfs(&file).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
        is_it.then_some(file)
    };
    Ok(mounts.lines().filter_map(whole_cgroup2).find_map(open))
}

/// Whether a line of /proc/PID/mountinfo (proc_pid_mountinfo(5)) is about a cgroup2 file system.
fn is_cgroup2(line: &str) -> bool {
    line.split_once(" - ").is_some_and(|(_, about)| about.split(' ').next() == Some("cgroup2"))
}

/// Where a line of mountinfo says that the whole of cgroup2 is mounted, not a part of it.
fn whole_cgroup2(line: &str) -> Option<PathBuf> {
    let mut fields = line.split(' ').skip(3);
    let (root, place) = (fields.next()?, fields.next()?);
    (is_cgroup2(line) && root == "/").then(|| unescaped(place).into())
}

/// Spaces, tabs, newlines and backslashes stand as octal numbers in mountinfo.
fn unescaped(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(field.to_owned(), |text, (escape, meant)| text.replace(escape, meant))
}

/// A mount without a place (fsopen(2), fsmount(2); Linux 5.2): it goes with its last descriptor.
fn mount_unseen() -> io::Result<File> {
    const KIND: &CStr = c"cgroup2";
    const FSOPEN_CLOEXEC: u32 = 1;
    const FSMOUNT_CLOEXEC: u32 = 1;
    const FSCONFIG_CMD_CREATE: u32 = 6;
    // SAFETY: `KIND` is a C string that outlives the call; nothing else is read or written.
    let context = descriptor(unsafe { libc::syscall(libc::SYS_fsopen, KIND.as_ptr(), FSOPEN_CLOEXEC) })?;
    let none = std::ptr::null::<u8>();
    // SAFETY: the descriptor is open while `context` is, and this command takes neither key nor value.
    let made = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), FSCONFIG_CMD_CREATE, none, none, 0) };
    Errno::result(made)?;
    // SAFETY: takes numbers only; the descriptor is open while `context` is.
    let mount = unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) };
    let mount = descriptor(mount)?;
    // What fsmount gives is a path alone (O_PATH).
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(openat(&mount, ".", flags, Mode::empty())?.into())
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = Errno::result(result)?;
    // SAFETY: the system call has just opened it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "22 27 0:21 / /proc rw,relatime - proc proc rw\n\
                         32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n\
                         33 31 0:38 /user.slice /mnt/part rw,relatime - cgroup2 cgroup2 rw\n\
                         41 31 0:38 / /sys/fs/cgroup/my\\040own rw,relatime shared:4 master:1 - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_mount_that_shows_the_root() {
        let found: Vec<_> = TABLE.lines().filter_map(whole_cgroup2).collect();
        assert_eq!(found, [PathBuf::from("/sys/fs/cgroup/my own")]);
        assert_eq!(TABLE.lines().filter(|line| is_cgroup2(line)).count(), 2);
    }

    #[test]
    fn lines_that_are_none() {
        for line in ["", " - ", "1 2 3", "a b c / /x - ", "41 31 0:38 / cgroup2"] {
            assert_eq!(whole_cgroup2(line), None, "{line:?}");
        }
    }
}
