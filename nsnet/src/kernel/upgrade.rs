//! Other programs in the place of those that are loaded, while packets go on.
//!
//! ```text
//!   the object tried on maps of its own      selfcheck.rs
//!   <host>_v2_new/   made beside <host>_v2/  programs; maps, most of them the same ones; links, which are the same ones
//!   maps of another size copied              migrate.rs
//!   each hook's program replaced             from one frame to the next; a frame that is under way ends where it began,
//!                                            since each set of programs has its own STAGES
//!   the two folders exchanged                the one moment from which on the new ones are *the* programs
//!   the old folder removed
//! ```
//! Whatever fails before the exchange is undone by giving each hook the program of the folder `<host>_v2/`, and so is
//! what was killed: that is `settle`, with which the next verb begins.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use aya::Ebpf;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nsnet_common::layout::names;

use super::bpf;
use super::cgroup;
use super::error::{Doing as _, KernelError, Result};
use super::hooks::{Hook, Order, Seat, hand_over_link};
use super::host::Host;
use super::migrate::{self, CONVERSIONS, Copying, Plan};
use super::netlink::Netlink;
use super::object::{BuildId, Object, random};
use super::pins::{Build, Pins, check_link};
use super::signals::Uninterrupted;
use super::sockets;
use super::store::Store;
use super::trial::trial;
use super::xdp;
use crate::model::state::State;

/// What the user allows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowed {
    /// To replace programs by the same ones.
    pub same: bool,
    /// To lose what breaks connections.
    pub loss: bool,
}

/// How it ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// There is nothing to replace.
    NotLoaded,
    /// The programs are this nsnet's already.
    Current(BuildId),
    /// They are now.
    Upgraded(Upgraded),
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Upgraded {
    /// Which programs came for which.
    pub programs: Replacement,
    /// Programs at hooks that were replaced.
    pub hooks: usize,
}

/// Programs in the place of others.
#[derive(Clone, Debug)]
pub struct Replacement {
    /// What was there; `None` when it did not tell.
    pub from: Option<Build>,
    /// What comes.
    pub to: BuildId,
    /// What becomes of the maps.
    pub plan: Plan,
}

impl Replacement {
    /// Of what is loaded, by `object`. What cannot be replaced is refused: nothing is changed here.
    fn of(host: &Host, object: &Object, allowed: Allowed) -> Result<Self> {
        let old = host.dataplane.pins();
        old.check_owner()?;
        // Others than these may be missing: what is there is about to go, but what is to be taken back must be what it
        // seems.
        old.check_programs(&[names::FROM_NAMESPACE, names::FROM_HOST, names::FROM_UPLINK])?;
        let plan = Plan::new(old, object.definitions()?, &CONVERSIONS)?;
        old.check_use()?;
        if let Some(loss) = plan.grave_loss().filter(|_| !allowed.loss) {
            let why = format!("this nsnet keeps them in another form, and what is there would be lost: {loss}");
            return Err(
                KernelError::refused("upgrade", why).with_remedy("`nsnet upgrade --allow-loss` does it all the same")
            );
        }
        Ok(Self { from: old.build()?, to: object.build(host.features), plan })
    }
}

/// Whether other programs than this nsnet's are loaded.
pub fn is_due(host: &Host) -> Result<bool> {
    if !host.dataplane.loaded()? {
        return Ok(false);
    }
    let here = Object::own()?.build(host.features);
    Ok(host.dataplane.build()?.is_none_or(|build| build.id != here))
}

/// What [`upgrade`] would do to other programs than this nsnet's; `None` when there are none. What it would refuse is
/// refused, programs that are no good among it, and nothing is changed.
pub fn preview(host: &Host) -> Result<Option<Replacement>> {
    let _still = Store::shared(&host.key, host.on_note)?;
    if !is_due(host)? {
        return Ok(None);
    }
    let programs = Replacement::of(host, Object::own()?, Allowed::default())?;
    trial(host.features)?;
    Ok(Some(programs))
}

/// Replaces the programs of `host` by this nsnet's.
pub fn upgrade(host: &Host, allowed: Allowed) -> Result<Outcome> {
    let store = Store::locked(&host.key, host.on_note)?;
    let _whole = Uninterrupted::begin()?;
    let state = host.settled(&store)?;
    if !host.dataplane.loaded()? {
        return Ok(Outcome::NotLoaded);
    }
    let (old, object) = (host.dataplane.pins(), Object::own()?);
    let programs = Replacement::of(host, object, allowed)?;
    let (from, to, plan) = (&programs.from, programs.to, &programs.plan);
    if !allowed.same && from.as_ref().is_some_and(|from| from.id == to) && old.check(object, to).is_ok() {
        return Ok(Outcome::Current(to));
    }
    trial(host.features)?;
    let seats = seats(host, &state)?;
    let new = host.dataplane.draft().pins().clone();
    let secret = from.as_ref().map_or_else(random, |build| Ok(build.secret))?;
    let prepared = prepare(host, &seats, object, secret, plan);
    let mut ebpf = prepared.or_else(|error| taken_back(error, new.remove()))?;
    let replaced = replace(host, &seats, plan, &mut ebpf).or_else(|error| taken_back(error, settle(host, &state)))?;
    finish(&new, &seats, replaced.copies)?;
    Ok(Outcome::Upgraded(Upgraded { hooks: replaced.hooks, programs }))
}

fn taken_back<T>(error: KernelError, outcome: Result<()>) -> Result<T> {
    match outcome {
        Ok(()) => Err(error),
        Err(left) => Err(KernelError::refused("upgrade", format!("{error}; and taking it back: {left}"))),
    }
}

/// Whether there is something to settle, or an upgrade is under way.
pub fn is_cut_off(host: &Host) -> Result<bool> {
    let draft = host.dataplane.draft();
    let root = &draft.pins().root;
    root.try_exists().doing(|| format!("look for {}", root.display()))
}

/// Ends an upgrade that was cut off: what the folder of the dataplane has is right.
pub(super) fn settle(host: &Host, state: &State) -> Result<()> {
    let draft = host.dataplane.draft();
    let (old, new) = (host.dataplane.pins(), draft.pins());
    if !is_cut_off(host)? {
        return Ok(());
    }
    let seats = if host.dataplane.loaded()? { seats(host, state)? } else { Vec::new() };
    let settled = hand_over(&host.netlink, &seats, old, new, old);
    // What goes with the folder may be in use by a frame yet.
    bpf::wait_for_runs();
    // In any case, so that no verb finds the same again.
    new.remove().and(settled.map(|_replaced| ()))
}

/// Makes the new folder, and touches nothing that is there.
fn prepare(host: &Host, seats: &[Seat], object: &Object, secret: u64, plan: &Plan) -> Result<Ebpf> {
    let draft = host.dataplane.draft();
    let (old, new) = (host.dataplane.pins(), draft.pins());
    let mut ebpf = draft.fill(host.features, object, secret, &migrate::kept(plan, old))?;
    let pinned = sockets::load(&mut ebpf).and_then(|()| {
        names::SOCKET_PROGRAMS.into_iter().try_for_each(|name| sockets::pin_program(&mut ebpf, name, &new.root))
    });
    // They are an extra, but what is there is not taken away.
    if host.dataplane.has_socket_hooks() {
        pinned?;
    }
    keep_links(seats, old, new)?;
    Ok(ebpf)
}

/// What is left to do when the new programs are in place.
struct Replaced {
    hooks: usize,
    copies: Vec<Copying>,
}

/// Gives each hook its new program, and makes the new folder the dataplane's.
///
/// When maps are copied, the two sets of programs do not know each other's new flows for a moment. A namespace's packet of
/// such a flow is dropped, and sent again. But one from outside would be the host's, which would answer with a reset: at
/// uplinks the new program stands behind the old one then, until the flows of both are known to both.
fn replace(host: &Host, seats: &[Seat], plan: &Plan, ebpf: &mut Ebpf) -> Result<Replaced> {
    let draft = host.dataplane.draft();
    let (old, new) = (host.dataplane.pins(), draft.pins());
    let mut copies = migrate::copied(plan, old, new)?;
    copies.iter_mut().try_for_each(Copying::begin)?;
    let (joined, replaced): (Vec<_>, Vec<_>) =
        seats.iter().partition(|seat| !copies.is_empty() && host.features.tcx && seat.is_uplink_by_link(old));
    for seat in &joined {
        fs::remove_file(new.link(seat.port)).doing(|| format!("replace the link of {}", seat.interface))?;
        seat.take(host.features, new, Order::After(old))?;
    }
    copies.iter_mut().try_for_each(Copying::follow)?;
    let replaced = hand_over(&host.netlink, replaced, old, old, new)?;
    for seat in replaced.seats.iter().chain(&joined) {
        if !seat.is_taken_by(&host.netlink, new)? {
            let why = "another program is there than was put there";
            return Err(KernelError::refused(format!("upgrade {}", seat.interface), why));
        }
    }
    let hooks = joined.len() + replaced.seats.len() + replaced.sockets;
    copies.iter_mut().try_for_each(Copying::follow)?;
    add_missing(host, seats, new)?;
    if host.features.cgroup && !sockets::are_installed(&new.root) {
        // As when a dataplane is loaded: `nsnet doctor` tells.
        if add_sockets(ebpf, new).is_err() {
            sockets::set_refused(&new.root)?;
        }
    }
    exchange(&new.root, &old.root)?;
    Ok(Replaced { hooks, copies })
}

/// Ends what is left of the old programs, whose pins are at `old` now: nothing of this can be taken back.
fn finish(old: &Pins, seats: &[Seat], mut copies: Vec<Copying>) -> Result<()> {
    if !copies.is_empty() {
        // Those at uplinks, where the new ones are, too. Closing the last descriptor waits until they are off.
        for seat in seats.iter().filter(|seat| seat.is_uplink_by_link(old)) {
            let path = old.link(seat.port);
            let link = bpf::open_pin(&path).ok();
            fs::remove_file(path).doing(|| format!("take the old program off {}", seat.interface))?;
            drop(link);
        }
    }
    // From here on nobody runs the old programs, and the old maps stay as they are.
    bpf::wait_for_runs();
    copies.iter_mut().try_for_each(Copying::follow)?;
    // What cannot be removed is removed by the next verb.
    let _removed_later = old.remove();
    Ok(())
}

/// Everywhere that a program of ours is, or should be.
fn seats(host: &Host, state: &State) -> Result<Vec<Seat>> {
    let names: HashMap<u32, String> = host.netlink.links()?.into_iter().map(|link| (link.index, link.name)).collect();
    let networks = state.networks.values().map(|network| (network.port(), network.port().ifindex(), Hook::Host));
    let ports = state.attachments.iter().map(|port| (port.port(), port.port().ifindex(), Hook::Namespace));
    let uplinks = state.uplinks.iter().map(|uplink| (uplink.port(), uplink.ifindex, Hook::Uplink));
    let all = ports.chain(networks).chain(uplinks);
    let seat = |(port, index, hook)| names.get(&index).map(|interface| Seat::of(port, interface, hook));
    Ok(all.filter_map(seat).flat_map(|seat| seat.behind().into_iter().chain([seat]).collect::<Vec<_>>()).collect())
}

/// Where programs were replaced.
struct HandedOver<'a> {
    seats: Vec<&'a Seat>,
    /// How many at sockets.
    sockets: usize,
}

/// Has the programs of `to` take the places of those of `from`. `links` has the pins of the links. Goes on after an error,
/// and reports the first.
fn hand_over<'a>(
    netlink: &Netlink,
    seats: impl IntoIterator<Item = &'a Seat>,
    links: &Pins,
    from: &Pins,
    to: &Pins,
) -> Result<HandedOver<'a>> {
    let mut done = HandedOver { seats: Vec::new(), sockets: 0 };
    let mut first = Ok(());
    for seat in seats.into_iter().filter(|seat| to.program(seat.program()).exists()) {
        match seat.hand_over(netlink, links, from, to) {
            Ok(true) => done.seats.push(seat),
            Ok(false) => {}
            Err(error) => first = first.and(Err(error)),
        }
    }
    for name in names::SOCKET_PROGRAMS.into_iter().filter(|name| to.program(name).exists()) {
        match hand_over_link(&links.links().join(name), &to.program(name)) {
            Ok(is_there) => done.sockets += usize::from(is_there),
            Err(errno) => first = first.and(Err(KernelError::new(format!("replace program {name}"), errno))),
        }
    }
    for (name, side) in xdp::links_at(links)? {
        let program = to.program(side.program());
        if program.exists()
            && let Err(errno) = hand_over_link(&links.links().join(&name), &program)
        {
            first = first.and(Err(KernelError::new(format!("replace program {}", side.program()), errno)));
        }
    }
    first.map(|()| done)
}

/// Gives the links that are there another pin. Refuses what is no link.
fn keep_links(seats: &[Seat], old: &Pins, new: &Pins) -> Result<()> {
    let of_seats = seats.iter().filter_map(|seat| Some((seat.link(old)?, seat.link(new)?)));
    let of_sockets = names::SOCKET_PROGRAMS.into_iter().map(|name| (old.links().join(name), new.links().join(name)));
    let accelerated = xdp::links_at(old)?.into_iter();
    let of_xdp = accelerated.map(|(name, _side)| (old.links().join(&name), new.links().join(&name)));
    for (from, to) in of_seats.chain(of_sockets).chain(of_xdp).filter(|(from, _)| from.exists()) {
        check_link(&from)?;
        fs::hard_link(&from, &to).doing(|| format!("pin the link {}", to.display()))?;
    }
    Ok(())
}

/// Puts behind each port's program what an older dataplane did not have there.
fn add_missing(host: &Host, seats: &[Seat], new: &Pins) -> Result<()> {
    for seat in seats {
        if let Some(behind) = seat.behind().filter(|behind| behind != seat)
            && seat.is_taken_by(&host.netlink, new)?
            && !behind.is_taken_by(&host.netlink, new)?
        {
            behind.take(host.features, new, Order::Last)?;
        }
    }
    Ok(())
}

fn add_sockets(ebpf: &mut Ebpf, new: &Pins) -> Result<()> {
    let cgroup = cgroup::root()?;
    let missing = names::SOCKET_PROGRAMS.into_iter().filter(|name| !new.links().join(name).exists());
    missing.into_iter().try_for_each(|name| sockets::install_link(ebpf, name, &cgroup, &new.root))
}

/// One takes the other's name (Linux 5.17, commit 6429e46304ac).
fn exchange(one: &Path, other: &Path) -> Result<()> {
    let exchanged = renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE);
    exchanged.map_err(|errno: Errno| KernelError::new(format!("move the pins to {}", other.display()), errno))
}
