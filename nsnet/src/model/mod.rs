//! What the user wants: a state that is valid by construction, edits of it, and the plan to get there. No I/O.

pub mod capture;
pub mod declaration;
pub mod declare;
pub mod diff;
pub mod drift;
pub mod edit;
pub mod explain;
pub mod flow;
pub mod headers;
pub mod ipam;
pub mod mode;
pub mod name;
pub mod plan;
pub mod policy;
pub mod ports;
pub mod publish;
pub mod request;
pub mod spec;
pub mod state;
pub mod timeout;
pub mod traffic;
pub mod uplink;

/// A wish that cannot be granted: names the object, the cause, and what to do. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// The result of an edit.
pub type Result<T> = std::result::Result<T, Refusal>;

/// A refusal of these words.
pub(crate) fn refuse<T>(words: impl std::fmt::Display) -> Result<T> {
    Err(Refusal(words.to_string()))
}
