//! What program tests and network tests share.

pub mod scratch;
