//! Running a command in a namespace, with everything `ip netns exec` does around it.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::error::{Doing, KernelError, Result};
use super::netns::{NetNs, path_of};
use super::stderr;

const NONE: Option<&str> = None;

/// Replaces this process by `argv`, in `ns` and in a mount namespace of its own where `/sys` shows that network
/// namespace and the files of `/etc/netns/NAME` lie over those of `/etc` (ip-netns(8)). Comes back only with an
/// error; the process is then somewhere in between and should end.
pub fn exec_inside(ns: &NetNs, name: &str, argv: &[OsString]) -> Result<Infallible> {
    path_of(name)?;
    let (program, arguments) = argv
        .split_first()
        .ok_or_else(|| KernelError::refused(format_args!("run a command in {name}"), "no command was given"))?;
    ns.enter()?;
    unshare(CloneFlags::CLONE_NEWNS).doing(|| "make a mount namespace")?;
    // Mounts of the outside still arrive here; ours do not leave.
    mount(NONE, "/", NONE, MsFlags::MS_SLAVE | MsFlags::MS_REC, NONE).doing(|| "detach the mounts from the outside")?;
    remount_sys(name)?;
    bind_etc(&Path::new("/etc/netns").join(name))?;
    // `Command` rather than execvp: it gives SIGPIPE and the signal mask back, which Rust programs change.
    let why = Command::new(program).args(arguments).exec();
    Err(KernelError::new(format_args!("run {}", program.display()), why))
}

/// sysfs shows the network namespace of whoever mounted it. The mount's source is the namespace's name, as with
/// iproute2; [`super::place`] recognises a mount namespace of this kind by it.
fn remount_sys(name: &str) -> Result<()> {
    let mut flags = MsFlags::empty();
    if umount2("/sys", MntFlags::MNT_DETACH).is_err()
        && statvfs("/sys").is_ok_and(|sys| sys.flags().contains(FsFlags::ST_RDONLY))
    {
        // A read-only sysfs that could not be unmounted cannot be covered by a writable one.
        flags = MsFlags::MS_RDONLY;
    }
    mount(Some(name), "/sys", Some("sysfs"), flags, NONE).doing(|| format!("mount /sys for {name}"))
}

fn bind_etc(files: &Path) -> Result<()> {
    let what = || format!("list {}", files.display());
    let entries = match fs::read_dir(files) {
        Err(why) if why.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.doing(what)?,
    };
    for entry in entries {
        let entry = entry.doing(what)?;
        let over = Path::new("/etc").join(entry.file_name());
        // As iproute2: a file that cannot be laid over another is told and left out.
        if let Err(why) = mount(Some(&entry.path()), &over, NONE, MsFlags::MS_BIND, NONE) {
            let what = format!("bind {} over {}", entry.path().display(), over.display());
            stderr::tell(format_args!("warning: {}", KernelError::new(what, why)));
        }
    }
    Ok(())
}
