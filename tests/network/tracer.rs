//! Runs a program and stops it at its system calls: one of them kills it, or fails.
//!
//! strace(1) has `--inject` for this, but counts for each thread and each name apart: `when=3` of `setns` is the third of
//! any one thread. `nsnet` enters namespaces on threads that live for a few calls each, so most of what happens there
//! could not be reached. Here calls are numbered over all threads, and only those that matter are.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IoSliceMut, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A system call that changes something, or that could fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// Its name; of bpf(2) and netlink requests with what is asked for.
    pub(crate) name: String,
    /// The path, when it has one.
    pub(crate) path: String,
    /// Whether it leaves something behind.
    pub(crate) changes: bool,
    /// What the kernel may say when it does not do it.
    pub(crate) errors: &'static [Errno],
    /// How many of the same name and path were before it. Answers come in one piece or in several, so that a call's
    /// number among all is not the same each time.
    pub(crate) occurrence: usize,
}

impl Call {
    /// Whether it is the same call of another run.
    pub(crate) fn is(&self, other: &Self) -> bool {
        (&self.name, &self.path, self.occurrence) == (&other.name, &other.path, other.occurrence)
    }
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The program is killed before it.
    Kill,
    /// It is asked to end (SIGTERM) before it.
    Terminate,
    /// It is not done, and fails.
    Fail(Errno),
}

/// How a program ended.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// The exit code; `None` when it was killed.
    pub(crate) code: Option<i32>,
    pub(crate) stderr: String,
    /// The calls up to its end.
    pub(crate) calls: Vec<Call>,
    /// Whether it came to the call with the fault.
    pub(crate) was_hit: bool,
    /// When it exited by itself: how many files it had open, and its largest size in memory in kB.
    pub(crate) at_exit: Option<(usize, u64)>,
}

/// Runs `command`, with faults at calls of earlier runs.
pub(crate) fn run(command: &mut Command, faults: &[(&Call, Fault)]) -> Result<Run> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: between fork and exec only system calls are made: PTRACE_TRACEME and setpgid, which allocate nothing.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    let mut child = command.process_group(0).spawn().with_context(|| format!("run {command:?}"))?;
    let mut tracer = Tracer {
        main: Pid::from_raw(child.id() as i32),
        faults,
        calls: Vec::new(),
        known: BTreeSet::new(),
        failing: BTreeMap::new(),
        opening: BTreeMap::new(),
        families: BTreeMap::new(),
        was_hit: false,
        at_exit: None,
    };
    let code = tracer.follow()?;
    let stderr = outputs(&mut child)?;
    Ok(Run { code, stderr, calls: tracer.calls, was_hit: tracer.was_hit, at_exit: tracer.at_exit })
}

/// What it said. (Its answer is read, too: it must not wait for somebody to do so.)
fn outputs(child: &mut Child) -> Result<String> {
    let (mut stdout, mut stderr) = (String::new(), String::new());
    child.stdout.take().context("no stdout")?.read_to_string(&mut stdout)?;
    child.stderr.take().context("no stderr")?.read_to_string(&mut stderr)?;
    Ok(stderr)
}

#[derive(Debug)]
struct Tracer<'a> {
    main: Pid,
    faults: &'a [(&'a Call, Fault)],
    calls: Vec<Call>,
    /// Threads that have been seen to stop for the first time.
    known: BTreeSet<Pid>,
    /// Threads in the middle of a call that is to fail.
    failing: BTreeMap<Pid, Errno>,
    /// Threads in the middle of opening a socket of this family; and what was opened last as which descriptor.
    opening: BTreeMap<Pid, u64>,
    families: BTreeMap<u64, u64>,
    was_hit: bool,
    at_exit: Option<(usize, u64)>,
}

impl Tracer<'_> {
    /// Until its end.
    fn follow(&mut self) -> Result<Option<i32>> {
        // It stops once it has become the program.
        waitpid(self.main, Some(WaitPidFlag::__WALL))?;
        self.known.insert(self.main);
        let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEEXIT;
        ptrace::setoptions(self.main, options | Options::PTRACE_O_EXITKILL)?;
        go_on(self.main, None)?;
        let group = Pid::from_raw(-self.main.as_raw());
        loop {
            match waitpid(group, Some(WaitPidFlag::__WALL))? {
                WaitStatus::Exited(pid, code) if pid == self.main => return Ok(Some(code)),
                WaitStatus::Signaled(pid, ..) if pid == self.main => return Ok(None),
                WaitStatus::PtraceSyscall(pid) => {
                    self.at_syscall(pid)?;
                    go_on(pid, None)?;
                }
                WaitStatus::PtraceEvent(pid, _, event) => {
                    if pid == self.main && event == libc::PTRACE_EVENT_EXIT {
                        self.at_exit = look_at(pid);
                    }
                    go_on(pid, None)?;
                }
                // A new thread begins so.
                WaitStatus::Stopped(pid, Signal::SIGSTOP) if self.known.insert(pid) => go_on(pid, None)?,
                WaitStatus::Stopped(pid, signal) => go_on(pid, Some(signal))?,
                WaitStatus::Exited(..)
                | WaitStatus::Signaled(..)
                | WaitStatus::Continued(_)
                | WaitStatus::StillAlive => {}
            }
        }
    }

    fn at_syscall(&mut self, pid: Pid) -> Result<()> {
        let info = match ptrace::syscall_info(pid) {
            // It has been killed meanwhile.
            Err(Errno::ESRCH) => return Ok(()),
            info => info?,
        };
        if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
            // SAFETY: the kernel has filled in the part that `op` names; all of it is integers.
            let entry = unsafe { info.u.entry };
            if entry.nr as i64 == libc::SYS_socket {
                self.opening.insert(pid, entry.args[0]);
            }
            let Some(mut call) = self.describe(pid, entry.nr as i64, &entry.args) else { return Ok(()) };
            let is_same = |before: &&Call| (&before.name, &before.path) == (&call.name, &call.path);
            call.occurrence = self.calls.iter().filter(is_same).count();
            if let Some((_call, fault)) = self.faults.iter().find(|(at, _fault)| at.is(&call)) {
                self.was_hit = true;
                match fault {
                    Fault::Kill => kill(self.main, Signal::SIGKILL)?,
                    Fault::Terminate => kill(self.main, Signal::SIGTERM)?,
                    Fault::Fail(errno) => {
                        registers::skip_call(pid)?;
                        self.failing.insert(pid, *errno);
                    }
                }
            }
            self.calls.push(call);
        } else if let Some(errno) = self.failing.remove(&pid) {
            registers::set_result(pid, -(errno as i64))?;
        } else if let Some(family) = self.opening.remove(&pid) {
            // SAFETY: as above.
            let descriptor = unsafe { info.u.exit.sval };
            self.families.insert(descriptor as u64, family);
        }
        Ok(())
    }

    /// What a call is, when it is one that changes something or could fail for reasons that are not in its arguments.
    fn describe(&self, pid: Pid, number: i64, arguments: &[u64; 6]) -> Option<Call> {
        if number != libc::SYS_sendto {
            return describe(pid, number, arguments);
        }
        let is_netlink = self.families.get(&arguments[0]) == Some(&(libc::AF_NETLINK as u64));
        let (name, changes) = if is_netlink {
            // The header's second field: RTM_NEW*, RTM_DEL*, RTM_GET*, RTM_SET* take turns (rtnetlink(7)).
            let header = read_bytes(pid, arguments[1], 6)?;
            let kind = u16::from_ne_bytes([*header.get(4)?, *header.get(5)?]);
            (format!("netlink request {kind}"), kind & 3 != 2)
        } else {
            ("send".to_owned(), true)
        };
        Some(Call { name, path: String::new(), changes, errors: &[ENOBUFS, ENOMEM, EPERM], occurrence: 0 })
    }
}

/// Lets a thread run to its next call. One that was killed meanwhile does not.
fn go_on(pid: Pid, signal: Option<Signal>) -> Result<()> {
    match ptrace::syscall(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => bail!("let {pid} go on: {errno}"),
    }
}

/// Files that it has open, and the most memory that it had (VmHWM, in kB).
fn look_at(pid: Pid) -> Option<(usize, u64)> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some((files, peak.trim().trim_end_matches(" kB").parse().ok()?))
}

#[cfg(target_arch = "x86_64")]
mod registers {
    use anyhow::Result;
    use nix::sys::ptrace::{getregs, setregs};
    use nix::unistd::Pid;

    /// At the beginning of a call: it is not done.
    pub(super) fn skip_call(pid: Pid) -> Result<()> {
        let mut registers = getregs(pid)?;
        registers.orig_rax = u64::MAX;
        Ok(setregs(pid, registers)?)
    }

    /// At its end: what it returns.
    pub(super) fn set_result(pid: Pid, result: i64) -> Result<()> {
        let mut registers = getregs(pid)?;
        registers.rax = result as u64;
        Ok(setregs(pid, registers)?)
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod registers {
    use anyhow::{Result, bail};
    use nix::unistd::Pid;

    pub(super) fn skip_call(_pid: Pid) -> Result<()> {
        bail!("calls can be made to fail on x86_64 only, as yet")
    }

    pub(super) fn set_result(_pid: Pid, _result: i64) -> Result<()> {
        bail!("calls can be made to fail on x86_64 only, as yet")
    }
}

use Errno::{EACCES, EAGAIN, EBUSY, EINTR, EIO, EMFILE, ENFILE, ENOBUFS, ENOLCK, ENOMEM, ENOSPC, EPERM, EROFS};

/// The same for all calls but those of sockets.
fn describe(pid: Pid, number: i64, arguments: &[u64; 6]) -> Option<Call> {
    let [first, second, third, fourth, ..] = *arguments;
    let path_at = |address| without_numbers(&read_text(pid, address));
    let call = |name: &str, path: String, changes, errors| {
        Some(Call { name: name.to_owned(), path, changes, errors, occurrence: 0 })
    };
    match number {
        libc::SYS_openat => {
            let path = path_at(second);
            // What the loader and the C library look for is not ours.
            let is_ours = ["/run", "/proc", "/sys", "."].iter().any(|prefix| path.starts_with(prefix));
            if !is_ours || path == "/proc/self/maps" {
                return None;
            }
            let writes = third as i32 & (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT) != 0;
            let errors: &[Errno] =
                if writes { &[ENOSPC, EROFS, EMFILE, EINTR, EACCES] } else { &[EMFILE, ENOMEM, ENFILE, EACCES] };
            call(if writes { "open for writing" } else { "open" }, path, writes, errors)
        }
        libc::SYS_write => {
            let target = std::fs::read_link(format!("/proc/{pid}/fd/{first}")).ok()?;
            let target = target.display().to_string();
            let is_file = first > 2 && target.starts_with('/');
            if is_file { call("write", target, true, &[ENOSPC, EIO, EINTR, EPERM]) } else { None }
        }
        libc::SYS_recvfrom => call("receive", String::new(), false, &[ENOBUFS, ENOMEM]),
        libc::SYS_bpf => {
            let (name, changes, errors) = bpf(first)?;
            let path = if matches!(first, 6 | 7) { read_word(pid, second).map(path_at) } else { None };
            call(name, path.unwrap_or_default(), changes, errors)
        }
        libc::SYS_mount => call("mount", path_at(second), true, &[ENOMEM, EPERM, EBUSY, ENOSPC]),
        libc::SYS_umount2 => call("umount", path_at(first), true, &[EBUSY, EPERM, ENOMEM]),
        libc::SYS_mkdir => call("mkdir", path_at(first), true, &[ENOSPC, ENOMEM, EROFS]),
        libc::SYS_mkdirat => call("mkdir", path_at(second), true, &[ENOSPC, ENOMEM, EROFS]),
        libc::SYS_rename => call("rename", path_at(second), true, &[ENOSPC, ENOMEM, EBUSY, EIO]),
        libc::SYS_renameat | libc::SYS_renameat2 => {
            call("rename", path_at(fourth), true, &[ENOSPC, ENOMEM, EBUSY, EIO])
        }
        libc::SYS_link => call("link", path_at(second), true, &[ENOSPC, ENOMEM, EROFS]),
        libc::SYS_linkat => call("link", path_at(fourth), true, &[ENOSPC, ENOMEM, EROFS]),
        libc::SYS_membarrier => call("membarrier", String::new(), false, &[EPERM]),
        libc::SYS_unlink => call("unlink", path_at(first), true, &[EBUSY, ENOMEM, EROFS, EPERM]),
        libc::SYS_rmdir => call("rmdir", path_at(first), true, &[EBUSY, ENOMEM, EROFS]),
        libc::SYS_unlinkat => call("unlink", path_at(second), true, &[EBUSY, ENOMEM, EROFS, EPERM]),
        libc::SYS_chmod | libc::SYS_fchmodat => call("chmod", path_at(first), true, &[EPERM, EROFS]),
        libc::SYS_fsync => call("fsync", String::new(), false, &[EIO, ENOSPC, EINTR]),
        libc::SYS_flock => call("flock", String::new(), false, &[EINTR, ENOLCK, ENOMEM]),
        libc::SYS_setns => call("setns", String::new(), false, &[EPERM, ENOMEM]),
        libc::SYS_unshare => call("unshare", String::new(), false, &[ENOSPC, ENOMEM, EPERM]),
        libc::SYS_clone | libc::SYS_clone3 => call("clone", String::new(), false, &[EAGAIN]),
        libc::SYS_socket => call("socket", String::new(), false, &[EMFILE, ENOBUFS, ENOMEM, EPERM]),
        libc::SYS_setsockopt => call("setsockopt", String::new(), false, &[ENOMEM, EPERM]),
        libc::SYS_getsockopt => call("getsockopt", String::new(), false, &[ENOMEM]),
        libc::SYS_bind => call("bind", String::new(), false, &[ENOMEM, EACCES]),
        libc::SYS_epoll_create1 | libc::SYS_eventfd2 => call("epoll", String::new(), false, &[EMFILE, ENOMEM]),
        libc::SYS_ioctl => call("ioctl", String::new(), false, &[ENOMEM, EPERM]),
        libc::SYS_getdents64 => call("list", String::new(), false, &[ENOMEM, EIO]),
        libc::SYS_fstatfs => call("fstatfs", String::new(), false, &[ENOMEM, EIO]),
        libc::SYS_statfs => call("statfs", path_at(first), false, &[ENOMEM, EIO, EACCES]),
        libc::SYS_statx => {
            let path = path_at(second);
            if path.starts_with("/run") { call("stat", path, false, &[ENOMEM, EACCES]) } else { None }
        }
        _ => None,
    }
}

/// A command of bpf(2) (include/uapi/linux/bpf.h).
fn bpf(command: u64) -> Option<(&'static str, bool, &'static [Errno])> {
    let looks: &[Errno] = &[ENOMEM, EPERM];
    Some(match command {
        0 => ("bpf map create", false, &[ENOMEM, EPERM, ENOSPC]),
        1 => ("bpf map lookup", false, looks),
        2 => ("bpf map update", true, &[ENOMEM, ENOSPC, EBUSY, EPERM]),
        3 => ("bpf map delete", true, &[ENOMEM, EBUSY, EPERM]),
        4 => ("bpf map next key", false, looks),
        5 => ("bpf program load", false, &[ENOMEM, EPERM, EAGAIN]),
        6 => ("bpf pin", true, &[ENOMEM, ENOSPC, EPERM, EROFS]),
        7 => ("bpf open pin", false, &[ENOMEM, EMFILE, EACCES]),
        13 | 14 | 30 => ("bpf by id", false, looks),
        15 => ("bpf info", false, looks),
        16 => ("bpf query", false, looks),
        18 => ("bpf btf load", false, looks),
        24 => ("bpf map read", false, &[ENOMEM, EINTR]),
        28 => ("bpf link create", true, &[ENOMEM, EPERM, EBUSY]),
        29 => ("bpf link update", true, &[ENOMEM, EPERM, EBUSY]),
        _ => return None,
    })
}

fn read_bytes(pid: Pid, address: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    let remote = [RemoteIoVec { base: address as usize, len: length }];
    let read = process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes)], &remote).ok()?;
    bytes.truncate(read);
    Some(bytes)
}

fn read_word(pid: Pid, address: u64) -> Option<u64> {
    Some(u64::from_ne_bytes(read_bytes(pid, address, 8)?.try_into().ok()?))
}

/// Numbers of processes are others each time.
fn without_numbers(path: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    path.split('/').map(|part| if is_number(part) { "N" } else { part }).collect::<Vec<_>>().join("/")
}

/// The text at `address`, up to its NUL; by pieces that do not cross into a page that may not be there.
fn read_text(pid: Pid, address: u64) -> String {
    const PAGE: u64 = 4096;
    let (mut text, mut at) = (Vec::new(), address);
    while let Some(bytes) = read_bytes(pid, at, (PAGE - at % PAGE).min(256) as usize) {
        at += bytes.len() as u64;
        match bytes.iter().position(|byte| *byte == 0) {
            Some(end) => {
                text.extend_from_slice(&bytes[..end]);
                break;
            }
            None if bytes.is_empty() => break,
            None => text.extend(bytes),
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}
