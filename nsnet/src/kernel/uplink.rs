//! Uplinks: interfaces of the host's that our program sits on, and that are otherwise left as they are.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use aya::maps::{HashMap, Map, MapData};
use nsnet_common::layout::{Port, PortId, names};
use nsnet_common::wire::Mac;

use super::dataplane::{Hook, refused};
use super::error::Result;
use super::host::Host;
use super::link::Link;
use super::maps::{Maps, found, gone};
use super::object::has_our_maps;
use super::observe::port_differences;
use super::xdp;
use crate::model::drift::Difference;
use crate::model::mode::Mode;
use crate::model::name::Name;
use crate::model::state::{Network, State};
use crate::model::uplink::{Candidate, Uplink};

/// Brings what `state` holds of the host around it up to date: its uplinks. A network that is not among
/// `known` is being made: the uplink that it names must be there.
pub fn look_around(host: &Host, known: &BTreeMap<Name, Network>, state: &mut State) -> anyhow::Result<()> {
    look_around_keeping(host, known, state, &HashSet::new())
}

/// The same; uplinks with the indexes `kept` stay, though nothing may lead out by them just now.
pub(crate) fn look_around_keeping(
    host: &Host,
    known: &BTreeMap<Name, Network>,
    state: &mut State,
    kept: &HashSet<u32>,
) -> anyhow::Result<()> {
    let mut with_a_way_out = state.networks.values().filter(|network| !network.outside.internal).peekable();
    if with_a_way_out.peek().is_none() {
        state.uplinks.clear();
    } else {
        let candidates = candidates(host, kept)?;
        for network in with_a_way_out.filter(|network| !known.contains_key(&network.name)) {
            state.check_uplink(network, &candidates)?;
        }
        state.choose_uplinks(&candidates, !host.features.tcx)?;
    }
    Ok(())
}

/// Every interface of the host.
fn candidates(host: &Host, kept: &HashSet<u32>) -> Result<Vec<Candidate>> {
    let (addresses, routes) = (host.netlink.all_addresses()?, host.netlink.routes()?);
    let with_qdisc = if host.features.tcx { Vec::new() } else { host.netlink.interfaces_with_clsact()? };
    let candidate = |link: Link| {
        let index = link.index;
        Candidate {
            name: link.name,
            ifindex: index,
            is_ethernet: link.is_ethernet && link.mac.is_some(),
            is_up: link.up,
            is_enslaved: link.is_enslaved,
            addresses: addresses.iter().filter(|(at, _)| *at == index).map(|(_, address)| *address).collect(),
            routes: routes.iter().filter(|route| route.index == Some(index)).map(|route| route.dest).collect(),
            has_qdisc: with_qdisc.contains(&index),
            stays: kept.contains(&index),
        }
    };
    Ok(host.netlink.links()?.into_iter().map(candidate).collect())
}

/// Puts the program on an uplink and makes its entries, or brings them up to date.
///
/// One that is gone by now, or a dataplane that is not loaded, is a finding of `status` and no reason to fail.
pub(crate) fn add(host: &Host, uplink: &Uplink) -> Result<()> {
    let Some(link) = host.netlink.link_by_index(uplink.ifindex)? else { return Ok(()) };
    if !host.dataplane.loaded()? {
        return Ok(());
    }
    if !host.dataplane.is_attached(&host.netlink, uplink.port(), &link.name, Hook::Uplink)? {
        take_off(host, uplink)?;
        host.dataplane.attach(&host.netlink, host.features, uplink.port(), &link.name, Hook::Uplink)?;
    }
    // After the program: packets leave by an uplink only when answers find their way back.
    if xdp::uplink::why_tc(host, uplink, &link)?.is_some() {
        host.maps().set_uplink(&entry(host, uplink, &link)?)?;
        return xdp::uplink::bring(host, uplink, &link);
    }
    xdp::uplink::bring(host, uplink, &link)?;
    let link = host.netlink.link_by_index(uplink.ifindex)?.unwrap_or(link);
    host.maps().set_uplink(&entry(host, uplink, &link)?)
}

/// Takes the program off, and removes the entries. Nothing of ours is left on the interface.
pub(crate) fn delete(host: &Host, uplink: &Uplink) -> Result<()> {
    if host.dataplane.loaded()? {
        host.maps().remove_uplink(uplink.port(), uplink.ifindex)?;
    }
    xdp::uplink::leave(host, uplink)?;
    take_off(host, uplink)
}

fn take_off(host: &Host, uplink: &Uplink) -> Result<()> {
    host.dataplane.detach_and_wait(uplink.port())?;
    remove_filters(host, uplink.ifindex)?;
    if uplink.made_qdisc {
        host.netlink.remove_empty_clsact(uplink.ifindex)?;
    }
    Ok(())
}

/// Removes our filters from an interface, also those of a dataplane whose pins are gone. `Ok(true)` when there is one of
/// somebody else's that has the name of ours: it stays.
pub(crate) fn remove_filters(host: &Host, ifindex: u32) -> Result<bool> {
    let mut others = false;
    for filter in host.netlink.bpf_filters(ifindex)?.iter().filter(|filter| filter.name == names::FROM_UPLINK) {
        if has_our_maps(filter.program)? {
            host.netlink.remove_filter(ifindex, filter)?;
        } else {
            others = true;
        }
    }
    Ok(others)
}

/// Where what comes in by an uplink is forwarded, and why there.
pub(crate) fn mode_of(host: &Host, uplink: &Uplink) -> Result<(Mode, String)> {
    let Some(link) = host.netlink.link_by_index(uplink.ifindex)? else {
        return Ok((Mode::Tc, "the interface is gone".to_owned()));
    };
    let is_on = xdp::uplink::is_on(host, uplink, &link)?;
    Ok(match (uplink.mode, is_on) {
        (Mode::Tc, _) | (Mode::Xdp, true) => (uplink.mode, "as asked for".to_owned()),
        (Mode::Auto, true) => match xdp::uplink::why_tc(host, uplink, &link)? {
            None => (Mode::Xdp, "its driver has native XDP".to_owned()),
            Some(why) => (Mode::Xdp, format!("the program is on it still; `nsnet apply` takes it off, since {why}")),
        },
        (Mode::Xdp, false) => (Mode::Tc, "the XDP program is gone; `nsnet apply` puts it back".to_owned()),
        (Mode::Auto, false) => {
            let tried =
                || "its driver refused the program when it was put on, with its offloads as they were".to_owned();
            (Mode::Tc, xdp::uplink::why_tc(host, uplink, &link)?.unwrap_or_else(tried))
        }
    })
}

/// What is wrong with an uplink.
pub(crate) fn differences(host: &Host, uplink: &Uplink) -> Result<Vec<Difference>> {
    let Some(link) = host.netlink.link_by_index(uplink.ifindex)? else {
        return Ok(vec![Difference::missing("the interface")]);
    };
    let mut found = Vec::new();
    if !host.dataplane.is_attached(&host.netlink, uplink.port(), &link.name, Hook::Uplink)? {
        found.push(Difference::missing(format_args!("program on {}", link.name)));
    }
    found.extend(xdp::uplink::differences(host, uplink, &link)?);
    let should = entry(host, uplink, &link)?;
    match host.maps().port(uplink.port())? {
        Some(is) => found.extend(port_differences(&compared(host, &is), &compared(host, &should))),
        None => found.push(Difference::missing("entry of the uplink")),
    }
    if host.maps().uplink(uplink.ifindex)? != Some(uplink.port()) {
        found.push(Difference::lacks("entry of index", uplink.ifindex));
    }
    Ok(found)
}

/// What the dataplane goes by. Where the FIB tells the source address of what leaves, the interface's own may have
/// changed since.
fn compared(host: &Host, port: &Port) -> Port {
    if host.features.fib_source { port.with_addresses(None, None) } else { *port }
}

/// The uplink's entry, as its interface is now.
fn entry(host: &Host, uplink: &Uplink, link: &Link) -> Result<Port> {
    let addresses = host.netlink.addresses(link.index)?;
    let v4 = addresses.iter().find_map(|net| match net.addr() {
        IpAddr::V4(ip) if !ip.is_link_local() => Some(ip.octets()),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    });
    let v6 = addresses.iter().find_map(|net| match net.addr() {
        IpAddr::V6(ip) if !ip.is_unicast_link_local() => Some(ip.octets()),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    });
    let mtu = u16::try_from(link.mtu).unwrap_or(u16::MAX);
    let port = Port::uplink(uplink.port(), link.index, Mac(link.mac.unwrap_or_default()), mtu, v4, v6);
    Ok(port.with(xdp::uplink::entry_flags(host, uplink, link)?))
}

impl Maps {
    pub(super) fn uplinks(&self) -> Result<HashMap<MapData, u32, PortId>> {
        self.open(names::UPLINKS, Map::HashMap)
    }

    /// The uplink with this interface index.
    pub fn uplink(&self, ifindex: u32) -> Result<Option<PortId>> {
        found(self.uplinks()?.get(&ifindex, 0), names::UPLINKS)
    }

    /// Makes an uplink known, or replaces what is known of it.
    pub(crate) fn set_uplink(&self, port: &Port) -> Result<()> {
        let is_known = self.port(port.id())?.is_some_and(|known| known.ifindex() == port.ifindex());
        if !is_known {
            self.reset_counters(port.id())?;
        }
        self.set_port(port)?;
        let entered = self.uplinks()?.insert(port.ifindex(), port.id(), 0);
        entered.map_err(|error| refused(format!("enter uplink {}", port.ifindex()), error))
    }

    /// Forgets an uplink. A port that has its number by now stays.
    pub(crate) fn remove_uplink(&self, id: PortId, ifindex: u32) -> Result<()> {
        if self.uplink(ifindex)? == Some(id) {
            gone(self.uplinks()?.remove(&ifindex), names::UPLINKS)?;
        }
        match self.port(id)? {
            Some(port) if port.is_uplink() && port.ifindex() == ifindex => self.clear_port(id),
            Some(_) | None => Ok(()),
        }
    }
}
