//! What went wrong with one object of the kernel, in one line.

use std::fmt;
use std::io;

use nix::errno::Errno;
use nix::unistd::geteuid;

/// The result of everything in `kernel`.
pub type Result<T> = std::result::Result<T, KernelError>;

/// A refusal: what was attempted, why it failed, and what the user can do about it.
///
/// It prints as one line: `cannot create veth veth-red-br: File exists (os error 17)`.
#[derive(Debug, thiserror::Error)]
pub struct KernelError {
    what: String,
    // Not a `source`: it is part of the one line already, and whoever prints causes would say it twice.
    why: io::Error,
    said: Option<String>,
    remedy: Option<&'static str>,
}

impl KernelError {
    /// `what` names the action and its object ("create veth veth-red-br"); `why` is an [`io::Error`] or an [`Errno`].
    /// `EPERM` brings its remedy with it, and so does `EACCES` without root.
    pub fn new(what: impl fmt::Display, why: impl Into<io::Error>) -> Self {
        let why = why.into();
        let is_denied = match why.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM) => true,
            // Of root it is not a matter of privilege: the verifier says so, too.
            Some(Errno::EACCES) => !geteuid().is_root(),
            _ => false,
        };
        let remedy = is_denied.then_some("run as root (CAP_SYS_ADMIN and CAP_NET_ADMIN are needed)");
        Self { what: printable(&what.to_string()), why, said: None, remedy }
    }

    /// A refusal of our own, without an errno: `cannot {what}: {why}`.
    pub fn refused(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::new(what, io::Error::other(printable(&why.to_string())))
    }

    /// The same with a hint what to do.
    #[must_use]
    pub fn with_remedy(mut self, remedy: &'static str) -> Self {
        self.remedy = Some(remedy);
        self
    }

    /// The same with the sentence the kernel sent along (netlink's extended acknowledgement).
    #[must_use]
    pub(crate) fn with_said(mut self, said: Option<String>) -> Self {
        self.said = said.map(|text| printable(&text));
        self
    }

    /// The errno behind it, so that a caller can tell EEXIST, ENOENT or EPERM from the rest.
    pub fn errno(&self) -> Option<Errno> {
        self.why.raw_os_error().map(Errno::from_raw)
    }

    /// What the user can do, when that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        self.remedy
    }
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.what, self.why)?;
        if let Some(said) = &self.said {
            write!(f, ": {said}")?;
        }
        if let Some(remedy) = self.remedy {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

/// `.doing(|| "open x")` turns an I/O error or an errno into a [`KernelError`].
pub(crate) trait Doing<T> {
    /// `what` is made only when there is an error to report.
    fn doing<W: fmt::Display>(self, what: impl FnOnce() -> W) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing<W: fmt::Display>(self, what: impl FnOnce() -> W) -> Result<T> {
        self.map_err(|why| KernelError::new(what(), why))
    }
}

/// `Ok(true)` when it was done, `Ok(false)` when one of `harmless` says that there was nothing to do.
pub(crate) fn unless<T>(result: Result<T>, harmless: &[Errno]) -> Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.errno().is_some_and(|errno| harmless.contains(&errno)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Names come from users, files and the kernel: no control character reaches a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line() {
        let error = KernelError::new("create veth veth-red-br", Errno::EEXIST);
        assert_eq!(error.to_string(), "cannot create veth veth-red-br: File exists (os error 17)");
        assert_eq!(error.errno(), Some(Errno::EEXIST));
        let error = error.with_said(Some("Interface already exists".into())).with_remedy("choose another name");
        assert_eq!(
            error.to_string(),
            "cannot create veth veth-red-br: File exists (os error 17): Interface already exists; choose another name"
        );
    }

    #[test]
    fn no_control_characters_and_no_errno_of_its_own() {
        let error = KernelError::refused("open a\x1b[2Jb", "it is\nno namespace");
        assert_eq!(error.to_string(), "cannot open a\u{fffd}[2Jb: it is\u{fffd}no namespace");
        assert_eq!(error.errno(), None);
    }

    #[test]
    fn permission_brings_its_remedy() {
        assert!(KernelError::new("x", Errno::EPERM).remedy().is_some());
        assert!(KernelError::new("x", Errno::ENOENT).remedy().is_none());
    }

    #[test]
    fn nothing_to_do_is_not_an_error() {
        let fail = |errno| Err::<(), _>(KernelError::new("x", errno));
        assert!(unless(Ok(()), &[]).unwrap());
        assert!(!unless(fail(Errno::EEXIST), &[Errno::EEXIST]).unwrap());
        assert!(unless(fail(Errno::EINVAL), &[Errno::EEXIST]).is_err());
    }
}
