//! A program on a terminal of its own, and what is to be seen there.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::num::NonZero;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;

/// More than a screen takes to be drawn, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// The program and its terminal. It ends with this.
pub(crate) struct OnTerminal {
    child: Child,
    pty: OpenptyResult,
    screen: vt100::Parser,
    /// All that was written.
    pub(crate) written: Vec<u8>,
    before: Termios,
}

impl OnTerminal {
    /// Runs `command` on a terminal of so many columns and lines, which is its controlling one.
    pub(crate) fn run(command: &Command, columns: u16, lines: u16) -> Result<Self> {
        let size = Winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None)?;
        fcntl(&pty.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let before = tcgetattr(&pty.slave)?;
        let end = || pty.slave.try_clone();
        let mut wrapped = Command::new("setsid");
        wrapped.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        wrapped.env("TERM", "xterm-256color").stdin(end()?).stdout(end()?).stderr(end()?);
        let child = wrapped.spawn().context("run setsid (of util-linux)")?;
        Ok(Self {
            child,
            pty,
            screen: vt100::Parser::new(some(lines)?, some(columns)?, 0),
            written: Vec::new(),
            before,
        })
    }

    /// Types.
    pub(crate) fn type_in(&mut self, keys: &str) -> Result<()> {
        Ok(File::from(self.pty.master.try_clone()?).write_all(keys.as_bytes())?)
    }

    /// Gives the terminal another size, of which the kernel tells the program.
    pub(crate) fn resize(&mut self, columns: u16, lines: u16) -> Result<()> {
        let size = Winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open, and TIOCSWINSZ reads a winsize (tty_ioctl(4)).
        let set = unsafe { libc::ioctl(self.pty.master.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        nix::errno::Errno::result(set)?;
        self.screen.screen_mut().set_size(some(lines)?, some(columns)?);
        Ok(())
    }

    /// Sends a signal to the program itself.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// What is to be seen now.
    pub(crate) fn seen(&mut self) -> Result<String> {
        let mut bytes = [0; 4096];
        let mut master = File::from(self.pty.master.try_clone()?);
        loop {
            match master.read(&mut bytes) {
                Ok(0) => break,
                Ok(length) => {
                    self.screen.process(&bytes[..length]);
                    self.written.extend_from_slice(&bytes[..length]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Nobody has the other end open.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.screen.screen().contents())
    }

    /// Waits until `is_it` says so of what is to be seen; what that is then.
    pub(crate) fn until(&mut self, what: &str, is_it: impl Fn(&str) -> bool) -> Result<String> {
        let start = Instant::now();
        loop {
            let seen = self.seen()?;
            if is_it(&seen) {
                return Ok(seen);
            }
            if start.elapsed() > PATIENCE {
                bail!("{what} is never seen, but:\n{seen}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the program has ended, and sees that the terminal is as it was.
    pub(crate) fn end(mut self) -> Result<(ExitStatus, String)> {
        let start = Instant::now();
        let status = loop {
            // The program waits, too, when nobody reads what it writes.
            self.seen()?;
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if start.elapsed() > PATIENCE {
                bail!("it does not end");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let seen = self.seen()?;
        if tcgetattr(&self.pty.slave)? != self.before {
            bail!("the terminal is not as it was");
        }
        if self.screen.screen().alternate_screen() || self.screen.screen().hide_cursor() {
            bail!("the screen is not as it was:\n{seen}");
        }
        Ok((status, seen))
    }
}

fn some(length: u16) -> Result<NonZero<u16>> {
    NonZero::new(length).context("a terminal without lines or columns")
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
