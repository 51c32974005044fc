//! Which interfaces of the host are uplinks: those by which packets of a network may leave.

use std::net::IpAddr;

use ipnet::IpNet;
use nsnet_common::layout::{MAX_UPLINKS, PortId};
use serde::{Deserialize, Serialize};

use super::mode::Mode;
use super::policy::UplinkChoice;
use super::state::{Network, State};
use super::{Result, refuse};

/// An interface of the host's that our program sits on. It is not ours, and nothing else about it is changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uplink {
    /// Its name.
    pub interface: String,
    /// Its index, by which it is the same when it is renamed.
    pub ifindex: u32,
    /// Its number in the dataplane, out of the same numbers as ports.
    pub port: u16,
    /// Whether the clsact qdisc that carries our filter was made by us, and goes with it (kernels without tcx).
    #[serde(default)]
    pub made_qdisc: bool,
    /// Where its frames are forwarded.
    #[serde(default, skip_serializing_if = "is_tc")]
    pub mode: Mode,
}

fn is_tc(mode: &Mode) -> bool {
    *mode == Mode::Tc
}

impl Uplink {
    /// Its number in the dataplane.
    pub fn port(&self) -> PortId {
        PortId(self.port)
    }
}

/// An interface of the host's, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Whether it carries Ethernet frames, from a MAC of its own.
    pub is_ethernet: bool,
    /// Whether it was set up.
    pub is_up: bool,
    /// Whether it is a port of a bridge or bond: what comes in by it is for that.
    pub is_enslaved: bool,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// Destinations of the unicast routes by it.
    pub routes: Vec<IpNet>,
    /// Whether a qdisc is there that can carry our filter: one of somebody else's, then.
    pub has_qdisc: bool,
    /// Whether it stays an uplink, if it is one, though nothing leads out by it just now.
    pub stays: bool,
}

impl Candidate {
    /// Whether packets to the outside can leave by it, going by what it has.
    fn leads_out(&self) -> bool {
        // Every interface has a link-local address by itself: that is no sign that somebody uses it.
        let mut prefixes = self.addresses.iter().chain(&self.routes);
        self.is_up && !self.is_enslaved && prefixes.any(|net| !is_link_local(net))
    }
}

fn is_link_local(net: &IpNet) -> bool {
    match net.addr() {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_multicast(),
    }
}

impl State {
    /// Chooses the uplinks among `candidates`, all interfaces of the host. Those that stay keep their numbers.
    /// `needs_qdisc`: the kernel has no tcx.
    pub fn choose_uplinks(&mut self, candidates: &[Candidate], needs_qdisc: bool) -> Result<()> {
        let chosen: Vec<&Candidate> = candidates.iter().filter(|candidate| self.wants_uplink(candidate)).collect();
        if chosen.len() >= MAX_UPLINKS as usize {
            return refuse(format_args!(
                "{} interfaces of this host could be uplinks, of which there can be {}; choose one with --uplink",
                chosen.len(),
                MAX_UPLINKS - 1
            ));
        }
        self.uplinks.retain(|uplink| chosen.iter().any(|candidate| candidate.ifindex == uplink.ifindex));
        for candidate in chosen {
            let mode = self.wishes(candidate).map(|network| network.modes.uplinks).max();
            if let Some(known) = self.uplinks.iter_mut().find(|uplink| uplink.ifindex == candidate.ifindex) {
                known.interface.clone_from(&candidate.name);
                // One that only stays is as it was.
                known.mode = mode.unwrap_or(known.mode);
                continue;
            }
            let port = self.free_port()?;
            self.uplinks.push(Uplink {
                interface: candidate.name.clone(),
                ifindex: candidate.ifindex,
                port: port.0,
                made_qdisc: needs_qdisc && !candidate.has_qdisc,
                mode: mode.unwrap_or_default(),
            });
        }
        Ok(())
    }

    /// Whether some network may use the interface.
    fn wants_uplink(&self, candidate: &Candidate) -> bool {
        if !candidate.is_ethernet || self.is_ours(candidate) {
            return false;
        }
        if candidate.stays && self.uplinks.iter().any(|uplink| uplink.ifindex == candidate.ifindex) {
            return true;
        }
        self.wishes(candidate).next().is_some()
    }

    /// The networks that may use the interface.
    fn wishes<'a>(&'a self, candidate: &'a Candidate) -> impl Iterator<Item = &'a Network> {
        let networks = self.networks.values().filter(|network| !network.outside.internal);
        networks.filter(|network| match &network.outside.uplink {
            Some(UplinkChoice::Named(name)) => *name == candidate.name,
            Some(UplinkChoice::Auto) | None => candidate.leads_out(),
        })
    }

    /// Whether the interface is one that we made, or loopback.
    fn is_ours(&self, candidate: &Candidate) -> bool {
        let name = candidate.name.as_str();
        let is_port = PortId::from_ifindex(candidate.ifindex) != PortId::NONE;
        let is_end = |network: &super::name::Name| super::name::unused_end(network) == name;
        name == "lo" || is_port || self.networks.keys().any(|network| network.as_str() == name || is_end(network))
    }

    /// Fails when `candidates` lack the uplink that was asked for, or when it cannot be one.
    pub(crate) fn check_uplink(&self, network: &Network, candidates: &[Candidate]) -> Result<()> {
        let Some(UplinkChoice::Named(name)) = &network.outside.uplink else { return Ok(()) };
        let what = format!("network {}: uplink {name}", network.name);
        match candidates.iter().find(|candidate| candidate.name == *name) {
            None => {
                let fit = candidates.iter().filter(|candidate| candidate.is_ethernet && !self.is_ours(candidate));
                let fit: Vec<&str> = fit.map(|candidate| candidate.name.as_str()).collect();
                let fit = if fit.is_empty() { String::new() } else { format!(" ({})", fit.join(", ")) };
                refuse(format_args!("{what}: the host has no interface of this name; name one that it has{fit}"))
            }
            Some(candidate) if self.is_ours(candidate) => {
                refuse(format_args!("{what}: it leads to no outside; choose another interface"))
            }
            Some(candidate) if !candidate.is_ethernet => {
                refuse(format_args!("{what}: it is no Ethernet interface; choose another"))
            }
            Some(_) => Ok(()),
        }
    }

    /// The uplink with this number.
    pub fn uplink(&self, port: PortId) -> Option<&Uplink> {
        self.uplinks.iter().find(|uplink| uplink.port() == port)
    }

    /// The index of the interface that a network named as its uplink, if that is there.
    pub fn named_uplink(&self, choice: Option<&UplinkChoice>) -> Option<u32> {
        let name = choice?.name()?;
        self.uplinks.iter().find(|uplink| uplink.interface == name).map(|uplink| uplink.ifindex)
    }
}

#[cfg(test)]
mod tests {
    use nsnet_common::wire::Mac;

    use super::super::mode::Modes;
    use super::super::policy::Outside;
    use super::*;

    fn candidate(name: &str, ifindex: u32, prefixes: &[&str]) -> Candidate {
        Candidate {
            name: name.to_owned(),
            ifindex,
            is_ethernet: true,
            is_up: true,
            is_enslaved: false,
            addresses: prefixes.iter().map(|net| net.parse().unwrap()).collect(),
            routes: Vec::new(),
            has_qdisc: false,
            stays: false,
        }
    }

    fn network(name: &str, port: u16, outside: Outside) -> Network {
        let subnets = Vec::new();
        let (name, modes) = (name.parse().unwrap(), Modes::default());
        Network { name, id: port, port, mac: Mac::ZERO, subnets, mtu: 1500, outside, modes }
    }

    fn state(networks: &[(&str, Outside)]) -> State {
        let mut state = State::default();
        for (position, (name, outside)) in networks.iter().enumerate() {
            let network = network(name, position as u16 + 1, outside.clone());
            state.networks.insert(network.name.clone(), network);
        }
        state
    }

    fn chosen(state: &mut State, candidates: &[Candidate]) -> Vec<String> {
        state.choose_uplinks(candidates, false).unwrap();
        state.uplinks.iter().map(|uplink| uplink.interface.clone()).collect()
    }

    fn host() -> Vec<Candidate> {
        let ours = PortId(1).ifindex();
        vec![
            Candidate { is_ethernet: false, ..candidate("lo", 1, &["127.0.0.1/8"]) },
            candidate("eth0", 2, &["192.0.2.2/24", "fe80::1/64"]),
            candidate("eth1", 3, &["fe80::2/64"]),
            Candidate { routes: vec!["0.0.0.0/0".parse().unwrap()], ..candidate("eth2", 4, &[]) },
            Candidate { is_up: false, ..candidate("eth3", 5, &["198.51.100.1/24"]) },
            Candidate { is_ethernet: false, ..candidate("tun0", 6, &["10.8.0.1/24"]) },
            Candidate { is_enslaved: true, ..candidate("bond-port", 7, &["10.7.0.1/24"]) },
            candidate("v-net-0", ours, &["192.168.15.5/24"]),
            candidate("v-net-0-end", 8, &["10.6.0.1/24"]),
        ]
    }

    #[test]
    fn what_leads_out() {
        let mut auto = state(&[("v-net-0", Outside::default())]);
        assert_eq!(chosen(&mut auto, &host()), ["eth0", "eth2"]);
        assert_eq!(auto.uplinks.iter().map(|uplink| uplink.port).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(auto.uplink(PortId(3)).unwrap().ifindex, 4);
        let internal = Outside { internal: true, ..Outside::default() };
        assert!(chosen(&mut state(&[("v-net-0", internal)]), &host()).is_empty());
        assert!(chosen(&mut State::default(), &host()).is_empty());
    }

    #[test]
    fn one_that_is_named() {
        let named = |name: &str| Outside { uplink: Some(name.parse().unwrap()), ..Outside::default() };
        let mut one = state(&[("v-net-0", named("eth3"))]);
        assert_eq!(chosen(&mut one, &host()), ["eth3"], "it may be down for now");
        assert_eq!(one.named_uplink(named("eth3").uplink.as_ref()), Some(5));
        assert_eq!(one.named_uplink(named("eth9").uplink.as_ref()), None);
        let check = |name: &str| one.check_uplink(&network("v-net-1", 2, named(name)), &host());
        for bad in ["eth9", "lo", "tun0", "v-net-0", "v-net-0-end"] {
            let refusal = check(bad).unwrap_err().to_string();
            assert!(refusal.starts_with(&format!("network v-net-1: uplink {bad}: ")), "{refusal}");
        }
        assert!(
            check("eth9")
                .unwrap_err()
                .to_string()
                .ends_with("name one that it has (eth0, eth1, eth2, eth3, bond-port)")
        );
        assert!(check("eth0").is_ok());
        let mut both = state(&[("v-net-0", named("eth3")), ("v-net-1", Outside::default())]);
        assert_eq!(chosen(&mut both, &host()), ["eth0", "eth2", "eth3"]);
    }

    #[test]
    fn of_several_modes_the_fastest_counts() {
        let named = |name: &str| Outside { uplink: Some(name.parse().unwrap()), ..Outside::default() };
        let mut state = state(&[("v-net-0", named("eth0")), ("v-net-1", named("eth0")), ("v-net-2", named("eth2"))]);
        let mut modes = |modes: [Mode; 3]| {
            for (network, uplinks) in state.networks.values_mut().zip(modes) {
                network.modes.uplinks = uplinks;
            }
            state.choose_uplinks(&host(), false).unwrap();
            state.uplinks.iter().map(|uplink| uplink.mode).collect::<Vec<_>>()
        };
        assert_eq!(modes([Mode::Tc, Mode::Tc, Mode::Xdp]), [Mode::Tc, Mode::Xdp]);
        assert_eq!(modes([Mode::Tc, Mode::Auto, Mode::Tc]), [Mode::Auto, Mode::Tc]);
        assert_eq!(modes([Mode::Xdp, Mode::Auto, Mode::Tc]), [Mode::Xdp, Mode::Tc]);
        assert_eq!(modes([Mode::Tc; 3]), [Mode::Tc, Mode::Tc]);
    }

    #[test]
    fn numbers_stay_with_the_interface() {
        let mut auto = state(&[("v-net-0", Outside::default())]);
        let first = [candidate("eth0", 2, &["192.0.2.2/24"]), candidate("eth1", 3, &["198.51.100.1/24"])];
        chosen(&mut auto, &first);
        let before = auto.uplinks.clone();
        // eth0 goes, eth1 gets another name, and a new eth0 comes.
        let later = [candidate("wan", 3, &["198.51.100.1/24"]), candidate("eth0", 9, &["192.0.2.2/24"])];
        assert_eq!(chosen(&mut auto, &later), ["wan", "eth0"]);
        assert_eq!(auto.uplinks[0].port, before[1].port);
        assert_eq!((auto.uplinks[1].ifindex, auto.uplinks[1].port), (9, before[0].port));
    }

    #[test]
    fn a_qdisc_is_made_only_where_there_is_none() {
        let mut auto = state(&[("v-net-0", Outside::default())]);
        let theirs = Candidate { has_qdisc: true, ..candidate("eth1", 3, &["198.51.100.1/24"]) };
        auto.choose_uplinks(&[candidate("eth0", 2, &["192.0.2.2/24"]), theirs], true).unwrap();
        assert_eq!(auto.uplinks.iter().map(|uplink| uplink.made_qdisc).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn too_many() {
        let mut auto = state(&[("v-net-0", Outside::default())]);
        let many: Vec<Candidate> = (2..2 + MAX_UPLINKS).map(|n| candidate("eth", n, &["192.0.2.2/24"])).collect();
        assert!(auto.choose_uplinks(&many, false).unwrap_err().to_string().contains("--uplink"));
        assert!(auto.uplinks.is_empty());
    }

    #[test]
    fn one_that_leads_nowhere_just_now_may_stay() {
        let mut state = state(&[("v-net-0", Outside::default())]);
        let (fit, unfit) = (candidate("eth0", 2, &["192.168.1.1/24"]), candidate("eth0", 2, &[]));
        let kept = Candidate { stays: true, ..unfit.clone() };
        state.choose_uplinks(std::slice::from_ref(&kept), false).unwrap();
        assert!(state.uplinks.is_empty(), "it does not become one");
        state.choose_uplinks(&[fit], false).unwrap();
        let known = state.uplinks.clone();
        state.choose_uplinks(&[kept], false).unwrap();
        assert_eq!(state.uplinks, known);
        state.choose_uplinks(&[unfit], false).unwrap();
        assert!(state.uplinks.is_empty());
    }
}
