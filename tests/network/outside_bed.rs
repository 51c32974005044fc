//! A bed with an outside: servers on the uplink's wire, a router behind which there is more, and raw ends everywhere.
//!
//! ```text
//!   c1 c2 (v-net-0)                        wan                        far
//!     \  /                    192.168.1.3 .10 .11 .12           203.0.113.2, fd02::2
//!     host ---- uplink ======= fd01::3 ::10 ::11 ------- link ---- uplink
//!     /       192.168.1.1                203.0.113.1
//!   c3 (v-net-1) fd01::1                  fd02::1       198.51.100.0/24 and fd03::/64 are behind far: nobody is there
//! ```
//!
//! What is sent to 198.51.100.0/24 can be seen and answered by hand: no kernel does it first. Inside, a *ghost* is such
//! a namespace: its addresses are the port's, but not its kernel's.
//!
//! In every test of this bed somebody listens on the uplink's wire: a packet with a source that is not the host's fails
//! it, so does a quoted one with an address from inside, and so does a host that forwards.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Deref;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::netns::NetNs;
use nsnet::kernel::route::Route;
use nsnet::kernel::sysctl;
use nsnet::kernel::veth::VethSpec;
use nsnet::lab::{Lab, RawSocket};
use nsnet_common::wire::Mac;
use serde_json::Value;

use super::bed::{Bed, DUAL, Station, growth, lab, text, until};
pub(crate) use super::end::End;
use super::leak::LeakGuard;
use super::packet::Packet;

/// The host's addresses on the uplink.
pub(crate) const HOST4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 1));
pub(crate) const HOST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 1));
/// The servers on the wire; the first of each is the router.
pub(crate) const WAN4: [&str; 4] = ["192.168.1.3", "192.168.1.10", "192.168.1.11", "192.168.1.12"];
pub(crate) const WAN6: [&str; 3] = ["fd01::3", "fd01::10", "fd01::11"];
/// The host behind the router.
pub(crate) const FAR4: &str = "203.0.113.2";
pub(crate) const FAR6: &str = "fd02::2";
/// Both families.
pub(crate) const FAMILIES: [bool; 2] = [false, true];

/// A bed with an outside. Derefs to the bed, for what both have.
#[derive(Debug)]
pub(crate) struct Outside {
    /// First, so that it is asked before the lab is taken down.
    guard: LeakGuard,
    bed: Bed,
    wan: Station,
    far: Station,
}

impl Deref for Outside {
    type Target = Bed;

    fn deref(&self) -> &Bed {
        &self.bed
    }
}

/// The host's address on the uplink.
pub(crate) fn host(v6: bool) -> IpAddr {
    if v6 { HOST6 } else { HOST4 }
}

/// The router's address on the wire.
pub(crate) fn wan(v6: bool) -> IpAddr {
    wan_server(v6, 0)
}

/// An address of a server on the wire.
pub(crate) fn wan_server(v6: bool, number: usize) -> IpAddr {
    let text = if v6 { WAN6[number] } else { WAN4[number] };
    text.parse().expect("an address")
}

/// The host behind the router.
pub(crate) fn far(v6: bool) -> IpAddr {
    let text = if v6 { FAR6 } else { FAR4 };
    text.parse().expect("an address")
}

/// An address behind far, where nobody is.
pub(crate) fn nobody(v6: bool, number: u8) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd03, 0, 0, 0, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(198, 51, 100, number).into()
    }
}

/// A port there.
pub(crate) fn remote(v6: bool, number: u8, port: u16) -> SocketAddr {
    SocketAddr::new(nobody(v6, number), port)
}

impl Outside {
    /// A masqueraded network with both families and the clients c1 and c2.
    pub(crate) fn new() -> Result<Self> {
        Self::with("", &["c1", "c2"], &[])
    }

    /// A masqueraded network with more options, these clients, and these ghosts.
    pub(crate) fn with(options: &str, clients: &[&str], ghosts: &[&str]) -> Result<Self> {
        Self::plain(&format!("--masquerade {options}"), clients, ghosts)
    }

    /// A network with both families and these options, masqueraded or not.
    pub(crate) fn plain(options: &str, clients: &[&str], ghosts: &[&str]) -> Result<Self> {
        let mut outside = Self::inside(lab()?, options, clients)?;
        for name in ghosts {
            outside.add_ghost("v-net-0", name)?;
        }
        Ok(outside)
    }

    /// The same in a lab that is there, without ghosts.
    pub(crate) fn inside(mut lab: Lab, options: &str, clients: &[&str]) -> Result<Self> {
        let [wan, far] = surroundings(&mut lab)?;
        let guard = LeakGuard::start(&wan, lab.ns("host")?)?;
        let bed = Bed::inside(lab, &format!("{DUAL} {options}"), clients)?;
        let outside = Self { guard, bed, wan, far };
        for name in clients {
            hurry(&outside.bed.at(name).ns)?;
        }
        Ok(outside)
    }

    /// A second network, v-net-1, with c3 in it.
    pub(crate) fn add_c3(&mut self, options: &str) -> Result<()> {
        self.bed.add_network("v-net-1", &format!("--subnet 10.9.0.0/24 fd09::/64 {options}"))?;
        self.bed.attach("v-net-1", "c3", "")?;
        hurry(&self.bed.at("c3").ns)
    }

    /// One more network.
    pub(crate) fn add_network(&mut self, name: &str, options: &str) -> Result<()> {
        self.bed.add_network(name, options)
    }

    /// One more client.
    pub(crate) fn attach(&mut self, network: &str, name: &str) -> Result<()> {
        self.bed.attach(network, name, "")?;
        hurry(&self.bed.at(name).ns)
    }

    /// A namespace whose kernel does not know that it has addresses.
    pub(crate) fn add_ghost(&mut self, network: &str, name: &str) -> Result<()> {
        self.bed.attach(network, name, "")?;
        let ghost = self.bed.at(name);
        let netlink = Netlink::inside(&ghost.ns)?;
        let link = netlink.existing_link(&ghost.ifname)?;
        for address in netlink.addresses(link.index)? {
            netlink.remove_address(link.index, address)?;
        }
        Ok(())
    }

    /// A station, here also "wan" and "far".
    pub(crate) fn at(&self, name: &str) -> &Station {
        match name {
            "wan" => &self.wan,
            "far" => &self.far,
            name => self.bed.at(name),
        }
    }

    /// A raw end: of a client or ghost, of the wire ("wan"), or of far.
    pub(crate) fn end(&self, name: &str) -> Result<End> {
        let station = self.at(name);
        let gateway = match name {
            "wan" => self.uplink_mac("host", "uplink")?,
            "far" => self.uplink_mac("wan", "link")?,
            _ => self.at(&station.network).mac,
        };
        let port = if name == "wan" { "uplink" } else { &station.port }.to_owned();
        let socket = station.run(|| RawSocket::open_promiscuous(&station.ifname))?;
        let (mac, v4, v6) = (station.mac, station.v4, station.v6);
        Ok(End { name: name.to_owned(), socket, mac, gateway, v4, v6, port })
    }

    fn uplink_mac(&self, ns: &str, interface: &str) -> Result<Mac> {
        let link = Netlink::inside(&self.lab.ns(ns)?)?.existing_link(interface)?;
        link.mac.map(Mac).context("an uplink without a MAC")
    }

    /// Lets packets with such a source onto the wire.
    pub(crate) fn allow(&self, sources: &[&str]) -> Result<()> {
        let sources = sources.iter().map(|text| Ok(text.parse::<IpNet>()?)).collect::<Result<Vec<_>>>()?;
        self.guard.allow(sources);
        Ok(())
    }

    /// From now on no packet may have this source.
    pub(crate) fn forbid(&self, source: &str) -> Result<()> {
        self.guard.forbid(source.parse()?);
        Ok(())
    }

    /// What the wire has seen so far that it must not; asked at the end too.
    pub(crate) fn check_no_leak(&self) -> Result<()> {
        self.guard.check()
    }

    /// Sends packets that must be dropped, each for this reason (or one of these, with spaces between), so that none of
    /// `to` gets any of them.
    pub(crate) fn drops_all(&self, from: &End, packets: &[Packet], to: &[&End], reason: &str) -> Result<()> {
        let frames: Vec<_> = packets.iter().map(|packet| packet.frame(from.mac, from.gateway)).collect();
        self.drops_frames(from, &frames, to, reason).with_context(|| format!("{packets:?}"))
    }

    /// The same with whole frames.
    pub(crate) fn drops_frames(&self, from: &End, frames: &[Vec<u8>], to: &[&End], reason: &str) -> Result<()> {
        let before = self.drops()?;
        to.iter().try_for_each(|end| end.drain())?;
        for frame in frames {
            from.socket.send(frame)?;
        }
        let grown = || -> Result<BTreeMap<_, _>> {
            let grown = growth(&before, &self.drops()?).into_iter();
            Ok(grown.filter(|((port, _), _)| *port == from.port).map(|((_, reason), count)| (reason, count)).collect())
        };
        let all = frames.len() as u64;
        // What is not counted shows below, together with what happened to it.
        until(Duration::from_secs(5), || Ok(grown()?.values().sum::<u64>() >= all)).ok();
        for end in to {
            end.assert_silent("what was to be dropped")?;
        }
        // One reason, or any of several.
        let grown = grown()?;
        let is_expected = grown.keys().all(|name| reason.split(' ').any(|allowed| allowed == name));
        let (name, sum) = (&from.name, grown.values().sum::<u64>());
        ensure!(is_expected && sum == all, "from {name}: dropped as {grown:?}, not {all} as {reason}");
        Ok(())
    }

    /// One packet that must be dropped.
    pub(crate) fn drops_one(&self, from: &End, packet: &Packet, to: &[&End], reason: &str) -> Result<()> {
        self.drops_all(from, std::slice::from_ref(packet), to, reason)
    }

    /// How often `port` dropped something for `reason`.
    pub(crate) fn dropped(&self, port: &str, reason: &str) -> Result<u64> {
        Ok(self.drops()?.get(&(port.to_owned(), reason.to_owned())).copied().unwrap_or(0))
    }

    /// `ct list`.
    pub(crate) fn flows(&self) -> Result<Vec<FlowRow>> {
        let rows = self.lab.json("ct list")?;
        rows.as_array().context("`ct list` is no array")?.iter().map(FlowRow::read).collect()
    }

    /// The flow that a packet from inside opened.
    pub(crate) fn flow_of(&self, packet: &Packet) -> Result<Option<FlowRow>> {
        let flows = self.flows()?;
        Ok(flows.into_iter().find(|flow| flow.source == packet.from() && flow.destination.ip() == packet.destination))
    }

    /// The state of that flow: "none" when there is no such flow.
    pub(crate) fn state_of(&self, packet: &Packet) -> Result<String> {
        Ok(self.flow_of(packet)?.map_or_else(|| "none".to_owned(), |flow| flow.state))
    }

    /// Waits until the flow is in this state.
    pub(crate) fn wait_for_state(&self, packet: &Packet, state: &str) -> Result<()> {
        let mut last = String::new();
        let waited = until(Duration::from_secs(5), || {
            last = self.state_of(packet)?;
            Ok(last == state)
        });
        waited.map(|_| ()).with_context(|| format!("the flow of {packet:?} is {last}, not {state}"))
    }

    /// Runs `ip` in a namespace, for what nsnet never does itself.
    pub(crate) fn ip(&self, ns: &str, line: &str) -> Result<()> {
        let mut command = std::process::Command::new("ip");
        let status = command.args(["-n", &self.lab.name(ns)]).args(line.split_whitespace()).status();
        ensure!(status.context("run ip (iproute2)")?.success(), "`ip {line}` failed");
        Ok(())
    }
}

/// A row of `ct list`.
#[derive(Clone, Debug)]
pub(crate) struct FlowRow {
    pub(crate) protocol: String,
    pub(crate) state: String,
    /// Seconds.
    pub(crate) expires: u64,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) reply_source: SocketAddr,
    pub(crate) reply_destination: SocketAddr,
    pub(crate) ns: String,
}

impl FlowRow {
    fn read(row: &Value) -> Result<Self> {
        let endpoint = |ip: &str, port: &str| -> Result<SocketAddr> {
            // Protocols without ports have none.
            let number = row[port].as_u64().unwrap_or(0);
            Ok(SocketAddr::new(text(&row[ip])?.parse()?, u16::try_from(number)?))
        };
        Ok(Self {
            protocol: text(&row["protocol"])?.to_owned(),
            state: text(&row["state"])?.to_owned(),
            expires: row["expires_s"].as_u64().with_context(|| format!("no expires_s in {row}"))?,
            source: endpoint("source", "sport")?,
            destination: endpoint("destination", "dport")?,
            reply_source: endpoint("reply_source", "reply_sport")?,
            reply_destination: endpoint("reply_destination", "reply_dport")?,
            ns: row["ns"].as_str().unwrap_or_default().to_owned(),
        })
    }
}

/// Everything outside of the host.
fn surroundings(lab: &mut Lab) -> Result<[Station; 2]> {
    let (host, wan, far) = (lab.ns("host")?, lab.ns("wan")?, lab.make("far")?);
    let (on_host, on_wan, on_far) = (Netlink::inside(&host)?, Netlink::inside(&wan)?, Netlink::inside(&far)?);
    let link = VethSpec { name: "link", ..VethSpec::default() };
    on_wan.create_veth(&link, &VethSpec { name: "uplink", ..VethSpec::default() }, Some(&far))?;
    let give = |netlink: &Netlink, interface: &str, addresses: &[&str]| -> Result<u32> {
        let link = netlink.existing_link(interface)?;
        for address in addresses {
            netlink.add_address(link.index, address.parse()?)?;
        }
        netlink.set_up(link.index)?;
        Ok(link.index)
    };
    for (ns, interface) in [(&host, "uplink"), (&wan, "uplink"), (&wan, "link"), (&far, "uplink")] {
        ns.run(|| without_dad(interface))??;
    }
    give(&on_host, "uplink", &["fd01::1/64"])?;
    let more = ["192.168.1.10/24", "192.168.1.11/24", "192.168.1.12/24", "fd01::11/64", "fd01::10/64", "fd01::3/64"];
    give(&on_wan, "uplink", &more)?;
    give(&on_wan, "link", &["203.0.113.1/24", "fd02::1/64"])?;
    give(&on_far, "uplink", &["203.0.113.2/24", "fd02::2/64"])?;
    for (netlink, dest, via) in [
        (&on_host, "0.0.0.0/0", WAN4[0]),
        (&on_host, "::/0", WAN6[0]),
        (&on_wan, "198.51.100.0/24", FAR4),
        (&on_wan, "fd03::/64", FAR6),
        (&on_far, "0.0.0.0/0", "203.0.113.1"),
        (&on_far, "::/0", "fd02::1"),
    ] {
        netlink.add_route(&Route { dest: dest.parse()?, via: Some(via.parse()?), index: None })?;
    }
    let forward = |ns: &NetNs, value: &'static str| -> Result<()> {
        ns.run(|| -> Result<()> {
            sysctl::write("net/ipv4/ip_forward", value)?;
            sysctl::write("net/ipv6/conf/all/forwarding", value)?;
            Ok(())
        })?
    };
    forward(&host, "0")?;
    forward(&wan, "1")?;
    forward(&far, "0")?;
    hurry(&wan)?;
    hurry(&far)?;
    let station = |name: &str, ns: NetNs, netlink: &Netlink, v4: &str, v6: &str| -> Result<Station> {
        let mac = netlink.existing_link("uplink")?.mac.context("an uplink without a MAC")?;
        Ok(Station {
            name: name.to_owned(),
            ns,
            network: name.to_owned(),
            mac: Mac(mac),
            v4: v4.parse()?,
            v6: v6.parse()?,
            ifname: "uplink".to_owned(),
            port: name.to_owned(),
        })
    };
    Ok([station("wan", wan, &on_wan, WAN4[0], WAN6[0])?, station("far", far, &on_far, FAR4, FAR6)?])
}

/// Gives an interface a link-local address that is of use at once: a router asks for its neighbours from it.
fn without_dad(interface: &str) -> Result<()> {
    for (setting, value) in [("accept_dad", "0"), ("disable_ipv6", "1"), ("disable_ipv6", "0")] {
        sysctl::write(&format!("net/ipv6/conf/{interface}/{setting}"), value)?;
    }
    Ok(())
}

/// Lets a namespace's kernel send as many ICMP errors as there is reason for.
fn hurry(ns: &NetNs) -> Result<()> {
    ns.run(|| -> Result<()> {
        sysctl::write("net/ipv4/icmp_ratelimit", "0")?;
        sysctl::write("net/ipv6/icmp/ratelimit", "0")?;
        Ok(())
    })?
}
