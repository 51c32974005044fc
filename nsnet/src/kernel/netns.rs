//! One network namespace, held open by a descriptor: what its name means later cannot change under us.

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::mem::size_of_val;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::{panic, thread};

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use super::error::{Doing, KernelError, Result};

/// Where `ip netns` keeps its names.
pub const NAMES: &str = "/run/netns";

const OF_THIS_THREAD: &str = "/proc/thread-self/ns/net";

/// Identity of a namespace while somebody holds it open; afterwards the kernel may give the number to another one.
/// [`NetNs::cookie`] is the identity to write down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetNsId {
    /// Device of nsfs.
    pub dev: u64,
    /// Inode in nsfs, the number in `net:[4026531840]`.
    pub ino: u64,
}

impl NetNsId {
    fn of(metadata: &Metadata) -> Self {
        Self { dev: metadata.dev(), ino: metadata.ino() }
    }

    /// The namespace the calling thread is in.
    fn of_this_thread() -> io::Result<Self> {
        std::fs::metadata(OF_THIS_THREAD).map(|metadata| Self::of(&metadata))
    }
}

/// A network namespace, open.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
    name: String,
    id: NetNsId,
}

impl NetNs {
    /// The namespace of the calling thread.
    pub fn current() -> Result<Self> {
        Self::check("the current one".to_owned(), Path::new(OF_THIS_THREAD), 0)
    }

    /// The namespace `/run/netns/NAME`. ENOENT when there is none; a symbolic link is refused (ELOOP).
    pub fn named(name: &str) -> Result<Self> {
        Self::check(name.to_owned(), &path_of(name)?, libc::O_NOFOLLOW)
    }

    /// The same, `None` when nothing of this name is a namespace: it was never made, or deleted, or a file is left of it.
    /// Everything else that stands in the way is an error, and no reason to take it for gone.
    pub fn find(name: &str) -> Result<Option<Self>> {
        match Self::named(name) {
            Ok(ns) => Ok(Some(ns)),
            Err(error) if matches!(error.errno(), None | Some(Errno::ENOENT | Errno::ELOOP)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Two of these names that are of one namespace. Those of none are no one's. (A `stat` for each: there may be thousands.)
    pub fn same_twice<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<(&'a str, &'a str)> {
        let mut seen = HashMap::new();
        names.into_iter().find_map(|name| {
            let metadata = path_of(name).ok()?.symlink_metadata().ok()?;
            seen.insert(NetNsId::of(&metadata), name).map(|first| (first, name))
        })
    }

    /// A namespace by any path, such as `/proc/PID/ns/net`.
    pub fn open(path: &Path) -> Result<Self> {
        Self::check(path.display().to_string(), path, 0)
    }

    fn check(name: String, path: &Path, flags: i32) -> Result<Self> {
        let what = || format!("open network namespace {name}");
        // std adds O_CLOEXEC. O_NONBLOCK: a FIFO put in the place of a namespace must not hang us.
        let file = OpenOptions::new().read(true).custom_flags(flags | libc::O_NONBLOCK).open(path).doing(what)?;
        let id = NetNsId::of(&file.metadata().doing(what)?);
        if !is_network_namespace(&file).doing(what)? {
            return Err(KernelError::refused(what(), format_args!("{} is no network namespace", path.display()))
                .with_remedy("if it is the leftover of one, delete it by its name"));
        }
        Ok(Self { fd: file.into(), name, id })
    }

    /// Another handle of it.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().doing(|| format!("keep network namespace {} open", self.name))?;
        Ok(Self { fd, name: self.name.clone(), id: self.id })
    }

    /// Whether the calling thread is in it.
    pub(crate) fn is_here(&self) -> bool {
        NetNsId::of_this_thread().is_ok_and(|id| id == self.id)
    }

    /// The name it was opened by, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Device and inode: equal for two handles of one namespace, however they were opened.
    pub fn id(&self) -> NetNsId {
        self.id
    }

    /// The namespace's cookie: unique until the machine is restarted, never given out twice.
    ///
    /// `SO_NETNS_COOKIE`, Linux 5.14 (commit e8b9eab99232); older kernels answer ENOPROTOOPT.
    pub fn cookie(&self) -> Result<u64> {
        let what = || format!("read the cookie of network namespace {}", self.name);
        self.run(|| netns_cookie(UnixDatagram::unbound()?.as_fd()))?.doing(what)
    }

    /// Runs `f` inside the namespace, on a thread of its own which ends with it: there is no way back to forget.
    /// A panic in `f` goes on in the caller. Files, mounts and the working directory stay those of the process.
    ///
    /// Needs CAP_SYS_ADMIN, unless the caller is in this namespace already.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || self.enter().map(|()| f()))
                .doing(|| "start a thread")?
                .join()
                .unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into the namespace, for good. Threads started afterwards begin there too, so a
    /// program that calls it first in `main` is in the namespace as a whole.
    pub fn enter(&self) -> Result<()> {
        if self.is_here() {
            return Ok(());
        }
        setns(&self.fd, CloneFlags::CLONE_NEWNET).doing(|| format!("enter network namespace {}", self.name))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Display for NetNs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// `/run/netns/NAME`, for any name that stays in that directory (the rule of iproute2's `invalid_name`).
pub(crate) fn path_of(name: &str) -> Result<PathBuf> {
    let fits = (1..=255).contains(&name.len()) && !name.contains(['/', '\0']) && name != "." && name != "..";
    if !fits {
        return Err(KernelError::refused(
            format_args!("use the network namespace name {name:?}"),
            "a name is 1 to 255 bytes long, has no '/' and is not '.' or '..'",
        ));
    }
    Ok(Path::new(NAMES).join(name))
}

fn is_network_namespace(file: &File) -> io::Result<bool> {
    if fstatfs(file)?.filesystem_type() != NSFS_MAGIC {
        return Ok(false);
    }
    // SAFETY: the descriptor is open while `file` is borrowed, and NS_GET_NSTYPE takes no argument: it only returns
    // the CLONE_NEW* number of the namespace (ioctl_ns(2)).
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) };
    Ok(Errno::result(kind)? == libc::CLONE_NEWNET)
}

fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: `cookie` and `length` are live locals that nothing else refers to, and the kernel writes at most
    // `length` = 8 bytes to `cookie`, for which every bit pattern is a u64.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    Errno::result(result)?;
    Ok(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_namespace_is_one() {
        let a = NetNs::current().unwrap();
        let b = NetNs::open(Path::new("/proc/self/ns/net")).unwrap();
        assert_eq!(a.id(), b.id());
        assert_eq!(a.cookie().unwrap(), b.cookie().unwrap());
        assert_eq!(b.to_string(), "/proc/self/ns/net");
    }

    #[test]
    fn other_files_are_not() {
        for path in ["/proc/self/ns/mnt", "/proc/self/status", "/dev/null", "/"] {
            let error = NetNs::open(Path::new(path)).unwrap_err();
            assert!(error.to_string().contains("is no network namespace"), "{error}");
        }
        assert_eq!(NetNs::named("no such name").unwrap_err().errno(), Some(Errno::ENOENT));
    }

    #[test]
    fn names_stay_in_their_directory() {
        for name in ["", ".", "..", "a/b", "/etc/passwd", "a\0b", &"x".repeat(256)] {
            assert!(path_of(name).is_err(), "{name:?}");
        }
        assert_eq!(path_of("red").unwrap(), Path::new("/run/netns/red"));
    }

    #[test]
    fn run_hands_back_the_value_or_the_panic() {
        let here = NetNs::current().unwrap();
        assert_eq!(here.run(|| 7).unwrap(), 7);
        let caught = panic::catch_unwind(|| here.run(|| panic::resume_unwind(Box::new("inside"))));
        assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"inside"));
    }
}
