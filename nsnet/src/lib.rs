//! nsnet: Linux network namespaces joined by an eBPF dataplane.

pub mod kernel;
