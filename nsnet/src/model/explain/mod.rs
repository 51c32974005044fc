//! What would become of a frame: the packet core's own way through it, look-up by look-up, and that in words. No I/O.
//!
//! ```text
//!   compose    a frame from words           capture   one from a pcap file, or from hexadecimal digits
//!   walk       the core, stage by stage, over tables whose look-ups are all noted
//!     recording, event                      what it asked the tables, and what it would change in them
//!   story      the same in words: each stage, what it went by, the verdict, what would change and count
//!     stages, entries, changes, names, fields    how a part of the core, an entry, a change, a port and a frame read
//! ```

pub mod capture;
pub mod changes;
pub mod compose;
pub mod entries;
pub mod event;
pub mod fields;
pub mod names;
pub mod recording;
pub mod stages;
pub mod story;
pub mod walk;
