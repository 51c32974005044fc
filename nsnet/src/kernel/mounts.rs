//! The BPF file system that holds our pins.

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::error::{Doing, KernelError, Result};
use super::lock::{Sharing, in_turn};
use super::store::check_private;

/// Whether `path` is in a BPF file system; `Ok(false)` too when it does not exist.
pub fn is_bpffs(path: &Path) -> Result<bool> {
    match statfs(path) {
        Ok(found) => Ok(found.filesystem_type() == BPF_FS_MAGIC),
        Err(Errno::ENOENT) => Ok(false),
        Err(why) => Err(KernelError::new(format_args!("look at {}", path.display()), why)),
    }
}

/// Makes sure that a BPF file system is mounted at `path`, readable by root only. Missing directories on the way are
/// made with mode 0700. `Ok(true)` when it had to be mounted, `Ok(false)` when it was there.
///
/// The mount lives as long as the mount namespace it is made in: call
/// [`leave_private_mount_namespace`](super::place::leave_private_mount_namespace) first.
pub fn ensure_bpffs(path: &Path) -> Result<bool> {
    if is_bpffs(path)? {
        return check_private(path).map(|()| false);
    }
    let what = || format!("mount a BPF file system at {}", path.display());
    match DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Err(why) if why.kind() != ErrorKind::AlreadyExists => {
            return Err(KernelError::new(format_args!("create directory {}", path.display()), why));
        }
        Ok(()) | Err(_) => {}
    }
    // Of two hosts that mount it at once, the second would hide the pins of the first.
    let parent = File::open(path.parent().unwrap_or(path)).doing(what)?;
    in_turn(&parent, Sharing::Alone).doing(what)?;
    if is_bpffs(path)? {
        return Ok(false);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Without mode= the root directory is 1777 (kernel/bpf/inode.c, bpf_init_fs_context).
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700")).doing(what).map_err(|error| {
        match error.errno() {
            Some(Errno::ENODEV) => error.with_remedy("this kernel has no BPF file system (CONFIG_BPF_SYSCALL)"),
            _ => error,
        }
    })?;
    // A mount that did not end up in the place we look at would lose every pin.
    if is_bpffs(path)? {
        Ok(true)
    } else {
        Err(KernelError::refused(what(), "it was mounted, but the directory does not show it")
            .with_remedy("something is mounted over it or over a directory above it: unmount that"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_file_systems_are_not_bpf() {
        assert!(!is_bpffs(Path::new("/proc")).unwrap());
        assert!(!is_bpffs(Path::new("/no/such/directory")).unwrap());
    }
}
