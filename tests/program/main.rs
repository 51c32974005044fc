//! Program tests: the table of cases that `cargo test -p nsnet-common` runs on plain memory, in the kernel. They need
//! root and the built programs (`cargo xtask test program`), and leave nothing behind.
//!
//! ```text
//!   machine  the programs with their maps and one interface for each port, in a namespace of their own
//!   clock    what a frame met depends on the time: it is run again when that went on meanwhile
//!   table    every case by BPF_PROG_TEST_RUN: action, bytes, counters and entries must be as the case says
//!   mutants  broken frames: memory and kernel must agree on all of it
//!   live     what BPF_PROG_TEST_RUN does not take: sent by packet sockets, through the programs at their hooks
//!   gate     what a packet costs: time, lookups and instructions, beside what they were
//!   flood    every case that is flooded: who really gets a copy, and which bytes
//!   accelerated  every case and sequence offered to XDP: taken as memory takes it, or untouched
//!   full     tables without room: what is refused, what goes on, and when there is room again
//!   capture  every case with somebody who captures: what he is told is what memory says, and nothing else differs
//! ```

mod accelerated;
mod capture;
mod clock;
mod flood;
mod full;
mod gate;
mod line;
mod live;
mod machine;
mod mutants;
mod pressure;
mod table;
mod two_cpus;
