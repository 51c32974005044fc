//! The only module that does I/O: namespaces, links, addresses, routes, programs, maps, and the state file.

pub mod address;
pub mod announce;
pub mod dataplane;
pub mod error;
pub mod exec;
pub mod features;
pub mod host;
pub mod link;
pub mod maps;
pub mod mounts;
pub mod named;
pub mod neighbour;
pub mod netlink;
pub mod netns;
pub mod observe;
pub mod place;
pub mod route;
mod steps;
pub mod store;
pub mod sysctl;
pub mod trial;
pub mod veth;
