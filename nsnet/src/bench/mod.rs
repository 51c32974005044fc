//! `nsnet bench`: how fast nsnet is next to other ways of joining namespaces, all measured in one run.
//!
//! ```text
//!   plan     which cells (way x load) and which points of the scaling curves, for how long
//!   peer     what is compared with; site builds each in namespaces of its own (family, rules, proxy, tool help)
//!   sockets, inject, outer   what fills a way: the lab's loads, frames from within the kernel, programs of others
//!   run      carries a plan out: random blocks over all peers of a cell; progress; Results
//!   result   what was found, as report.json; goals judges it, loss says where others are better; report makes
//!            report.md and report.html
//! ```
//!
//! How it is measured, and why so, is told in [`crate::lab::compare`]. Nothing of the machine's own network is touched.

mod family;
pub mod goals;
mod inject;
mod loss;
mod memory;
mod outer;
pub mod peer;
mod plan;
mod proxy;
pub mod report;
pub mod result;
mod rules;
mod run;
mod scale;
mod site;
mod sockets;
mod tool;

pub use inject::nothing;
pub use plan::{Effort, Selection};
pub use run::{Progress, run};
