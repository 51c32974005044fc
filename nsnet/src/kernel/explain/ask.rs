//! The host's routes and sockets, as our programs see them: a program asks, so that nothing is asked in another way.

use aya::programs::SchedClassifier;
use nsnet_common::layout::{Answer, FlowKey, Question};
use nsnet_common::wire::{EtherType, Ethernet, Mac};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::super::error::{KernelError, Result};
use super::test_run::test_run;

/// Asks as for a frame that came in by one interface: sockets may be bound to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker<'a> {
    pub(super) program: &'a SchedClassifier,
    pub(super) ifindex: u32,
}

impl Asker<'_> {
    /// What routes and sockets say to a packet of this tuple, for routes come in by `from`.
    pub(super) fn ask(&self, from: u32, key: &FlowKey) -> Result<Answer> {
        /// For experiments (IEEE 802): nobody reads such a frame.
        const NOTHING: EtherType = EtherType(0x88b5);
        let header = Ethernet::new(Mac::ZERO, Mac::ZERO, NOTHING);
        let mut frame = [header.as_bytes(), Question::new(from, key).as_bytes()].concat();
        frame.resize(frame.len().max(Ethernet::LEN + size_of::<Answer>()), 0);
        let ran = test_run(self.program, self.ifindex, &frame, 0)?;
        let answer = ran.bytes.get(Ethernet::LEN..).and_then(|bytes| Answer::read_from_prefix(bytes).ok());
        match answer {
            Some((answer, _rest)) => Ok(answer),
            None => Err(KernelError::refused("ask for a route", "the kernel gave no answer")),
        }
    }
}
