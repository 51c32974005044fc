//! What is told beside the answer.

use std::fmt;
use std::io::{self, Write as _};

/// Prints a line on stderr. One that is full or closed has nobody to tell it to: that is no reason to stop half way, as
/// `eprintln!` would.
pub(crate) fn tell(text: impl fmt::Display) {
    let _told = writeln!(io::stderr().lock(), "{text}");
}
