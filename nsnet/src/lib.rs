//! nsnet: Linux network namespaces joined by an eBPF dataplane, without the bridge and without iptables.
//!
//! ```text
//!   cli     what the user types, and what is printed            (main.rs calls cli::run)
//!    |
//!   agent   what looks after the dataplane while it runs
//!    |
//!   model   what is wanted: State, edits of it, plan(old, new)   pure: no I/O
//!    |
//!   kernel  what is: namespaces, links, programs, maps, files    the only I/O
//!
//!   lab     real traffic and its judgement, for `nsnet demo` and the project's tests
//!   bench   lab's comparisons over many peers, loads and sizes, and the report: `nsnet bench`
//! ```
//!
//! Calls go down this list and never back up. Packets are not handled here but in `nsnet-common`, by programs that go
//! on without any process of ours.

pub mod agent;
pub mod bench;
pub mod cli;
pub mod kernel;
pub mod lab;
pub mod model;
