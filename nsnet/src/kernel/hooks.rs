//! Where programs sit, and which ones: by a pinned tcx link, or by a clsact filter where there is no tcx.
//!
//! Behind the program of each port stands another, [`names::CLOSED`]. No frame comes to it while the first is there, since
//! that ends each; and when somebody takes the first off, no frame gets past the second. It is a filter in any case, and
//! the last one: the kernel runs filters behind all programs at tcx (`sch_handle_ingress()`, net/core/dev.c), and putting
//! one there does not wait for an RCU grace period, as a second link would.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcHandle, qdisc_add_clsact,
};
use aya::programs::{SchedClassifier, TcAttachType};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nsnet_common::layout::{PortId, names};

use super::bpf;
use super::clsact::BpfFilter;
use super::dataplane::{io_errno, refused};
use super::error::{Doing as _, KernelError, Result};
use super::features::Features;
use super::netlink::Netlink;
use super::pins::Pins;

/// How long taking a program off may take.
const GRACE: Duration = Duration::from_secs(1);

/// Which side of which interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// The host end of a namespace's veth: what the namespace sends.
    Namespace,
    /// The network's own interface: what the host sends.
    Host,
    /// An uplink: what comes from outside.
    Uplink,
}

impl Hook {
    /// The program that belongs there.
    pub fn program(self) -> &'static str {
        match self {
            Self::Namespace => names::FROM_NAMESPACE,
            Self::Host => names::FROM_HOST,
            Self::Uplink => names::FROM_UPLINK,
        }
    }

    fn attach_type(self) -> TcAttachType {
        match self {
            Self::Namespace | Self::Uplink => TcAttachType::Ingress,
            Self::Host => TcAttachType::Egress,
        }
    }
}

/// The place of one program at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(super) port: PortId,
    /// The interface, by its name now.
    pub(super) interface: String,
    hook: Hook,
    is_behind: bool,
}

/// Where among the programs of a hook one is put. (Filters have priorities of their own.)
#[derive(Clone, Copy)]
pub(super) enum Order<'a> {
    /// Behind all that are there.
    Last,
    /// Just behind the one whose link is among these pins.
    After(&'a Pins),
}

/// The priority of the filter behind all others, and its number there. (The kernel gives each new filter a priority
/// before those that are there.)
const LAST: (u16, TcHandle) = (u16::MAX, TcHandle::new(0, 1));

impl Seat {
    /// That of the hook's own program.
    pub(super) fn of(port: PortId, interface: &str, hook: Hook) -> Self {
        Self { port, interface: interface.to_owned(), hook, is_behind: false }
    }

    /// That of the program behind it. An uplink has none: what our program lets pass there is the host's.
    pub(super) fn behind(&self) -> Option<Self> {
        (self.hook != Hook::Uplink).then(|| Self { is_behind: true, ..self.clone() })
    }

    /// The program that belongs there.
    pub(super) fn program(&self) -> &'static str {
        if self.is_behind { names::CLOSED } else { self.hook.program() }
    }

    /// The pin of its link; `None` for what stands behind, which has none.
    pub(super) fn link(&self, pins: &Pins) -> Option<PathBuf> {
        (!self.is_behind).then(|| pins.link(self.port))
    }

    /// Whether it is taken by a link, and not by a filter.
    fn is_by_link(&self, features: Features) -> bool {
        features.tcx && !self.is_behind
    }

    /// Puts the program there, as the last or behind another's link.
    pub(super) fn take(&self, features: Features, pins: &Pins, order: Order<'_>) -> Result<()> {
        let what = || format!("attach {} to {}", self.program(), self.interface);
        let mut program = pins.classifier(self.program())?;
        if !self.is_by_link(features) {
            return self.put_filter(&mut program);
        }
        // An order names a link by its descriptor, which is to be open yet when it is used.
        let neighbour = match order {
            Order::After(pins) => Some(self.open_link(pins)?),
            Order::Last => None,
        };
        let order = || neighbour.as_ref().map_or(Ok(LinkOrder::default()), LinkOrder::after_link);
        let began = Instant::now();
        let link = loop {
            let options = TcAttachOptions::TcxOrder(order().map_err(|error| refused(what(), error))?);
            match put(&mut program, &self.interface, self.hook, options) {
                // A link whose pin is gone is taken off after an RCU grace period, and no program is there twice.
                Err(error) if error.errno() == Some(Errno::EEXIST) && began.elapsed() < GRACE => {
                    thread::sleep(GRACE / 100);
                }
                link => break link?,
            }
        };
        let link = program.take_link(link).map_err(|error| refused(what(), error))?;
        let link = FdLink::try_from(link).map_err(|error| refused(what(), error))?;
        let pin = link.pin(pins.link(self.port));
        pin.map(|_pinned| ()).map_err(|error| refused(format!("pin the link of {}", self.interface), error))
    }

    /// Puts the program there by a filter, which belongs to the interface and goes with it.
    fn put_filter(&self, program: &mut SchedClassifier) -> Result<()> {
        let options = if self.is_behind {
            NlOptions { priority: LAST.0, handle: LAST.1, classid: None }
        } else {
            NlOptions::default()
        };
        match put(program, &self.interface, self.hook, TcAttachOptions::Netlink(options)) {
            // That of a dataplane that was there before.
            Err(error) if error.errno() == Some(Errno::EEXIST) && self.is_behind => {
                self.replace_filter(program, LAST.0, LAST.1)
            }
            link => self.leave_filter(program, link?),
        }
    }

    /// A filter with the number of one that is there takes its place (`cls_bpf_change()`, net/sched/cls_bpf.c).
    fn replace_filter(&self, program: &mut SchedClassifier, priority: u16, handle: TcHandle) -> Result<()> {
        let what = || format!("replace {} on {}", self.program(), self.interface);
        let side = self.hook.attach_type();
        let link = SchedClassifierLink::attached(&self.interface, side, priority, handle, None).doing(what)?;
        let link = program.attach_to_link(link).map_err(|error| refused(what(), error))?;
        self.leave_filter(program, link)
    }

    /// Dropping the link must not take the filter off.
    fn leave_filter(&self, program: &mut SchedClassifier, link: SchedClassifierLinkId) -> Result<()> {
        let what = || format!("attach {} to {}", self.program(), self.interface);
        std::mem::forget(program.take_link(link).map_err(|error| refused(what(), error))?);
        Ok(())
    }

    /// Whether it is at an uplink, by a link.
    pub(super) fn is_uplink_by_link(&self, pins: &Pins) -> bool {
        self.hook == Hook::Uplink && pins.link(self.port).exists()
    }

    fn open_link(&self, pins: &Pins) -> Result<SchedClassifierLink> {
        let what = || format!("open the link of {} to {}", self.program(), self.interface);
        let link = PinnedLink::from_pin(pins.link(self.port)).map_err(|error| refused(what(), error))?;
        SchedClassifierLink::try_from(FdLink::from(link)).map_err(|error| refused(what(), error))
    }

    /// Whether the program of `pins` is there now, as the kernel tells it.
    pub(super) fn is_taken_by(&self, netlink: &Netlink, pins: &Pins) -> Result<bool> {
        if !pins.program(self.program()).exists() {
            return Ok(false);
        }
        let ours = pins.program_id(self.program())?;
        if self.link(pins).is_some_and(|link| link.exists())
            && let Ok((_revision, programs)) = SchedClassifier::query_tcx(&self.interface, self.hook.attach_type())
            && programs.iter().any(|program| program.id() == ours)
        {
            return Ok(true);
        }
        Ok(self.filters(netlink)?.iter().any(|filter| filter.program == ours))
    }

    /// Has the program of `to` take the place of that of `from`, from one frame to the next. `links` has the pins of links.
    /// `Ok(false)` when neither's is there.
    pub(super) fn hand_over(&self, netlink: &Netlink, links: &Pins, from: &Pins, to: &Pins) -> Result<bool> {
        let what = || format!("replace {} on {}", self.program(), self.interface);
        if let Some(link) = self.link(links)
            && hand_over_link(&link, &to.program(self.program())).map_err(|errno| KernelError::new(what(), errno))?
        {
            return Ok(true);
        }
        let known = [from, to].map(|pins| pins.program_id(self.program()).ok());
        let filters = self.filters(netlink)?;
        let ours: Vec<_> = filters.iter().filter(|filter| known.contains(&Some(filter.program))).collect();
        for filter in &ours {
            let (priority, (major, minor)) = filter.place();
            self.replace_filter(&mut to.classifier(self.program())?, priority, TcHandle::new(major, minor))?;
        }
        Ok(!ours.is_empty())
    }

    /// The filters at the hook.
    fn filters(&self, netlink: &Netlink) -> Result<Vec<BpfFilter>> {
        let Ok(index) = if_nametoindex(self.interface.as_str()) else { return Ok(Vec::new()) };
        match self.hook.attach_type() {
            TcAttachType::Egress => netlink.bpf_filters_at_egress(index),
            TcAttachType::Ingress | TcAttachType::Custom(_) => netlink.bpf_filters(index),
        }
    }
}

/// Has the program pinned at `program` take the place of that of the pinned `link`. `Ok(false)` when there is no link, or
/// what it was attached to is gone.
pub(super) fn hand_over_link(link: &Path, program: &Path) -> nix::Result<bool> {
    let link = match bpf::open_pin(link) {
        Err(Errno::ENOENT) => return Ok(false),
        link => link?,
    };
    match bpf::update_link(link.as_fd(), bpf::open_pin(program)?.as_fd()) {
        Err(Errno::ENOLINK) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Puts `program` on the side of `interface` that `hook` says: a tcx link, or a clsact filter where there is no tcx.
pub(crate) fn put_on(
    program: &mut SchedClassifier,
    features: Features,
    interface: &str,
    hook: Hook,
) -> Result<SchedClassifierLinkId> {
    let options = if features.tcx {
        TcAttachOptions::TcxOrder(LinkOrder::default())
    } else {
        TcAttachOptions::Netlink(NlOptions::default())
    };
    put(program, interface, hook, options)
}

fn put(
    program: &mut SchedClassifier,
    interface: &str,
    hook: Hook,
    options: TcAttachOptions,
) -> Result<SchedClassifierLinkId> {
    let what = || format!("attach a program to {interface}");
    if let TcAttachOptions::Netlink(_) = options {
        match qdisc_add_clsact(interface) {
            Err(error) if io_errno(&error) != Some(Errno::EEXIST) => return Err(refused(what(), error)),
            _ => {}
        }
    }
    program.attach_with_options(interface, hook.attach_type(), options).map_err(|error| refused(what(), error))
}
