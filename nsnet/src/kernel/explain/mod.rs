//! What would become of a frame, here and now: the packet core, run in this process over the live tables, without a change.
//!
//! ```text
//!   live     the tables: each entry that the core asks for is read from its pinned map, once; what it writes stays here
//!   ask      the host's routes and sockets, asked by a program in the kernel as all our programs ask them
//!   copy     the programs once more, pinned and attached nowhere, with maps of their own, which get the entries that were
//!            read: the same frame is run through them, and must come out the same
//!   globals  with what the pinned programs were loaded: the secret by which ports are chosen, the kernel's abilities
//!   sender   what a kernel would make of a packet before it leaves: route, source address, next hop
//! ```

mod ask;
mod copy;
mod globals;
mod live;
mod open;
mod sender;
mod test_run;

use self::copy::Copy;
pub use self::copy::action;
use self::globals::Globals;
use self::live::Live;
use self::open::OpenMaps;
pub use self::sender::{Departure, Wish, from_host, from_namespace, from_outside};
use super::clock;
use super::error::{KernelError, Result};
use super::host::Host;
use crate::model::explain::walk::{Arrival, Pass, walk};

/// Explains frames on one host.
pub struct Explainer {
    live: OpenMaps,
    copy: Copy,
    secret: u64,
    is_same_build: bool,
}

/// What would become of a frame.
#[derive(Clone, Debug)]
pub struct Explained {
    /// Its way; and those of the frames that would come in again because of it.
    pub passes: Vec<Pass>,
    /// When, on the monotonic clock, nanoseconds.
    pub now: u64,
    /// Whether the programs in the kernel agree.
    pub confirmed: Confirmed,
}

/// What the programs in the kernel make of the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confirmed {
    /// The same.
    Yes,
    /// Something else, which is a bug: what differs.
    No(Vec<String>),
    /// The kernel cannot be asked.
    Untried(&'static str),
}

/// How often it is tried when the kernel's programs differ: a second may begin, or a route change, between the two.
const TRIES: usize = 4;

impl Explainer {
    /// Of a host whose dataplane is loaded. Takes some tenths of a second: a copy of the programs is loaded.
    pub fn open(host: &Host) -> Result<Self> {
        if !host.dataplane.is_loaded() {
            return Err(KernelError::refused(
                "explain what becomes of a packet",
                "no dataplane is loaded on this host",
            )
            .with_remedy("`nsnet network add` loads it"));
        }
        let globals = Globals::of(&host.dataplane, host.features)?;
        let copy = Copy::load(globals.features, globals.secret)?;
        let is_same_build = globals::is_same_build(&host.dataplane, &copy)?;
        Ok(Self { live: OpenMaps::pinned(&host.maps())?, copy, secret: globals.secret, is_same_build })
    }

    /// Whether the programs on the interfaces are those of this nsnet. If not, the explanation is this nsnet's, and theirs
    /// may be another.
    pub fn is_same_build(&self) -> bool {
        self.is_same_build
    }

    /// What would become of a frame. Nothing that packets go by is changed.
    pub fn explain(&mut self, arrival: &Arrival) -> Result<Explained> {
        let mut tries = 0;
        loop {
            tries += 1;
            let (now, seconds) = (clock::monotonic()?, clock::seconds()?);
            let asker = self.copy.asker(arrival.entrance.ifindex())?;
            let live = Live::new(&self.live, &asker, self.secret, now, seconds);
            let passes = walk(arrival, &live);
            let (found, left) = live.finish()?;
            let confirmed = match passes.iter().find_map(test_run::objection) {
                Some(why) => Confirmed::Untried(why),
                None => self.copy.confirm(arrival, &passes, &found, &left)?,
            };
            if tries == TRIES || !matches!(confirmed, Confirmed::No(_)) {
                return Ok(Explained { passes, now, confirmed });
            }
        }
    }
}
