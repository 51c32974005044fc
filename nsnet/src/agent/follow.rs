//! Following the host around the dataplane: the addresses it has, and the interfaces by which packets leave.
//!
//! The dataplane itself follows routes, neighbours and the source of each flow. What it cannot find out is which interfaces
//! are uplinks, and which addresses its hooks at sockets are to count as the host's.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::kernel::host::Host;
use crate::kernel::monitor::{Change, Subject};
use crate::kernel::neighbour::{Neighbour, NeighbourState};
use crate::kernel::observe::Scope;
use crate::kernel::{sockets, uplink};
use crate::model::drift::Object;
use crate::model::state::State;
use crate::model::uplink::Uplink;

/// How long an interface stays an uplink by which nothing leads out any more. A link that flaps, or an address that is
/// replaced, is back in seconds; without our program the host would meanwhile answer for namespaces, with resets.
const GRACE: Duration = Duration::from_secs(30);

/// Whether gateways answer, by uplink and address; `None` where nobody has asked.
pub(super) type Gateways = BTreeMap<(String, IpAddr), Option<bool>>;

/// What a look around came to.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// What was changed, a line each.
    pub(super) news: Vec<String>,
    /// What is known of the gateways of default routes.
    pub(super) gateways: Gateways,
    /// A verb is under way: nothing but addresses was looked at.
    pub(super) is_busy: bool,
    /// When an uplink's grace is over.
    pub(super) again: Option<Duration>,
}

/// Looks around.
#[derive(Debug, Default)]
pub(super) struct Follower {
    /// Uplinks by which nothing leads out, by index, and since when.
    idle: HashMap<u32, Instant>,
}

impl Follower {
    /// Brings what the dataplane knows of the host up to date.
    pub(super) fn follow(&mut self, host: &Host) -> Result<Followed> {
        let mut followed = Followed::default();
        if sockets::refresh_locals(host)? {
            followed.news.push("the host's addresses are others now".to_owned());
        }
        let record = host.record()?;
        if !record.under_way.is_empty() {
            return Ok(Followed { is_busy: true, ..followed });
        }
        let kept = self.kept(host, &record.state)?;
        let mut wanted = record.state.clone();
        look_around(host, &mut wanted, &kept)?;
        let is_new = wanted.uplinks != record.state.uplinks;
        if is_new || (host.dataplane.is_loaded() && is_stale(host, &wanted)?) {
            // Once more, now that nobody else changes anything.
            let edit = |state: &mut State| look_around(host, state, &kept);
            let look = |state: &State, (): &()| Scope::these(state.uplinks.iter().map(Object::uplink));
            let change = host.change_if_free(edit, look)?;
            match change {
                Some(change) if change.steps.is_empty() => {}
                Some(change) => followed.news.extend(news(&change.old.uplinks, &change.new.uplinks)),
                None => followed.is_busy = true,
            }
        }
        followed.gateways = gateways(host, &wanted)?;
        followed.again = self.idle.values().map(|since| GRACE.saturating_sub(since.elapsed())).min();
        Ok(followed)
    }

    /// The uplinks that stay for a while, though nothing leads out by them.
    fn kept(&mut self, host: &Host, state: &State) -> Result<HashSet<u32>> {
        let mut fit = state.clone();
        look_around(host, &mut fit, &HashSet::new())?;
        let fit: HashSet<u32> = fit.uplinks.iter().map(|uplink| uplink.ifindex).collect();
        let idle = state.uplinks.iter().map(|uplink| uplink.ifindex).filter(|index| !fit.contains(index));
        let since = |index| (index, self.idle.get(&index).copied().unwrap_or_else(Instant::now));
        self.idle = idle.map(since).filter(|(_, since)| since.elapsed() < GRACE).collect();
        Ok(self.idle.keys().copied().collect())
    }
}

fn look_around(host: &Host, state: &mut State, kept: &HashSet<u32>) -> Result<()> {
    uplink::look_around_keeping(host, &state.networks.clone(), state, kept)
}

/// Whether the dataplane knows something else of an uplink than is. One that is gone is not brought up to date.
fn is_stale(host: &Host, state: &State) -> Result<bool> {
    for uplink in &state.uplinks {
        let is_there = host.netlink.link_by_index(uplink.ifindex)?.is_some();
        if is_there && !uplink::differences(host, uplink)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn news(before: &[Uplink], after: &[Uplink]) -> Vec<String> {
    let is_in = |uplinks: &[Uplink], index| uplinks.iter().any(|uplink| uplink.ifindex == index);
    let left = before.iter().filter(|uplink| !is_in(after, uplink.ifindex));
    let left = left.map(|uplink| format!("{} is no uplink any more", uplink.interface));
    let new = after.iter().filter(|uplink| !is_in(before, uplink.ifindex));
    let news: Vec<String> = left.chain(new.map(|uplink| format!("{} is an uplink now", uplink.interface))).collect();
    if news.is_empty() { vec!["an uplink is another now".to_owned()] } else { news }
}

/// Whether the gateways of default routes by uplinks answer.
fn gateways(host: &Host, state: &State) -> Result<Gateways> {
    let mut gateways = Gateways::new();
    let neighbours = host.netlink.neighbours()?;
    for route in host.netlink.routes()?.iter().filter(|route| route.dest.prefix_len() == 0) {
        let (Some(via), Some(index)) = (route.via, route.index) else { continue };
        let neighbour = neighbours.iter().find(|neighbour| (neighbour.index, neighbour.ip) == (index, via));
        if let Some(uplink) = state.uplinks.iter().find(|uplink| uplink.ifindex == index) {
            gateways.insert((uplink.interface.clone(), via), neighbour.map(answers));
        }
    }
    Ok(gateways)
}

/// Whether the kernel has not given up asking for it.
fn answers(neighbour: &Neighbour) -> bool {
    neighbour.state != NeighbourState::Failed
}

/// What a change is a reason for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reason {
    /// To look around the host.
    pub(super) to_follow: bool,
    /// To compare with the kernel.
    pub(super) to_check: bool,
}

/// Judges a change. `members` are the numbers of the namespaces that matter; `gateways` what is known of gateways.
pub(super) fn judge(
    change: &Change,
    members: &HashSet<i32>,
    gateways: &Gateways,
) -> Option<(&'static str, &'static str, Reason)> {
    let place = match change.netnsid {
        None => "host",
        Some(number) if members.contains(&number) => "member",
        // Namespaces of others.
        Some(_) => return None,
    };
    let is_host = change.netnsid.is_none();
    let (subject, to_follow, to_check) = match &change.subject {
        Subject::Link => ("link", is_host, true),
        Subject::Address => ("address", is_host, true),
        Subject::Route => ("route", is_host, true),
        // Neighbours come and go all the time: of interest is whether a gateway answers.
        Subject::Neighbour(neighbour) => {
            let is_news = |neighbour: &Neighbour| {
                let known = gateways.iter().find(|((_, ip), _)| *ip == neighbour.ip);
                known.is_some_and(|(_, answered)| *answered != Some(answers(neighbour)))
            };
            ("neighbour", is_host && neighbour.as_ref().is_some_and(is_news), false)
        }
    };
    Some((subject, place, Reason { to_follow, to_check }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(subject: Subject, netnsid: Option<i32>) -> Change {
        Change { subject, netnsid }
    }

    #[test]
    fn changes_elsewhere_do_not_matter() {
        let (members, gateways) = (HashSet::from([7]), Gateways::new());
        let reason = |change: &Change| judge(change, &members, &gateways);
        let both = Reason { to_follow: true, to_check: true };
        assert_eq!(reason(&change(Subject::Address, None)), Some(("address", "host", both)));
        let check = Reason { to_check: true, ..Reason::default() };
        assert_eq!(reason(&change(Subject::Link, Some(7))), Some(("link", "member", check)));
        assert_eq!(reason(&change(Subject::Link, Some(8))), None);
    }

    #[test]
    fn of_neighbours_a_gateway_matters_that_answers_no_more_or_again() {
        let ip: IpAddr = [192, 168, 1, 3].into();
        let heard = |ip, state| {
            let neighbour = Neighbour { ip, mac: None, index: 2, state };
            change(Subject::Neighbour(Some(neighbour)), None)
        };
        for (answered, state, matters) in [
            (Some(true), NeighbourState::Failed, true),
            (Some(true), NeighbourState::Stale, false),
            (Some(false), NeighbourState::Reachable, true),
            (Some(false), NeighbourState::Failed, false),
            (None, NeighbourState::Failed, true),
        ] {
            let gateways = Gateways::from([(("eth0".to_owned(), ip), answered)]);
            let (_, _, reason) = judge(&heard(ip, state), &HashSet::new(), &gateways).unwrap();
            assert_eq!((reason.to_follow, reason.to_check), (matters, false), "{answered:?} {state:?}");
            let (_, _, reason) = judge(&heard([192, 168, 1, 4].into(), state), &HashSet::new(), &gateways).unwrap();
            assert_eq!(reason, Reason::default());
        }
    }
}
