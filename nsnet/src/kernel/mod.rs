//! The only module that does I/O: namespaces, links, addresses, routes, programs, maps, and the state file.

pub mod address;
pub mod dataplane;
pub mod error;
pub mod exec;
pub mod features;
pub mod link;
pub mod mounts;
pub mod named;
pub mod neighbour;
pub mod netlink;
pub mod netns;
pub mod place;
pub mod route;
pub mod sysctl;
pub mod veth;
