//! A lab with a network in it, and what tests ask of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::netns::NetNs;
use nsnet::lab::Lab;
use nsnet::model::state::mac_text;
use nsnet_common::wire::Mac;
use serde_json::Value;

/// The network of every bed.
pub(crate) const NETWORK: &str = "v-net-0";
/// IPv4 alone: such a network is silent when nobody speaks, so that frames can be counted.
pub(crate) const V4: &str = "--subnet 192.168.15.0/24";
/// Both families.
pub(crate) const DUAL: &str = "--subnet 192.168.15.0/24 fd15::/64";

/// The program under test.
pub(crate) fn binary() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/nsnet");
    std::env::var_os("NSNET_BIN").map_or_else(built, PathBuf::from)
}

/// A lab of its own.
pub(crate) fn lab() -> Result<Lab> {
    Lab::new(&binary()).context("a network test needs root and a built nsnet (cargo xtask test network)")
}

/// Somebody in a network: a namespace, or the host by its own interface there.
#[derive(Debug)]
pub(crate) struct Station {
    /// Short name in the lab.
    pub(crate) name: String,
    /// Its namespace.
    pub(crate) ns: NetNs,
    /// Its network.
    pub(crate) network: String,
    /// MAC of its interface.
    pub(crate) mac: Mac,
    /// First IPv4 address; 0.0.0.0 when it has none.
    pub(crate) v4: Ipv4Addr,
    /// First IPv6 address; :: when it has none.
    pub(crate) v6: Ipv6Addr,
    /// Its interface.
    pub(crate) ifname: String,
    /// The port, as `stats` and `drops` call it.
    pub(crate) port: String,
}

impl Station {
    fn new(name: &str, ns: NetNs, network: &str, ips: &Value, mac: &Value) -> Result<Self> {
        let ips: Vec<IpAddr> = serde_json::from_value(ips.clone())?;
        let v4 = ips.iter().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
        let v6 = ips.iter().find_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None });
        let mac = mac_text::parse(text(mac)?).map_err(anyhow::Error::msg)?;
        Ok(Self {
            name: name.to_owned(),
            ns,
            network: network.to_owned(),
            mac,
            v4: v4.unwrap_or(Ipv4Addr::UNSPECIFIED),
            v6: v6.unwrap_or(Ipv6Addr::UNSPECIFIED),
            ifname: network.to_owned(),
            port: network.to_owned(),
        })
    }

    /// Does `work` in its namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.ns.run(work)?.with_context(|| format!("in {}", self.name))
    }

    /// Its addresses.
    pub(crate) fn ips(&self) -> Vec<IpAddr> {
        [IpAddr::V4(self.v4), IpAddr::V6(self.v6)].into_iter().filter(|ip| !ip.is_unspecified()).collect()
    }

    /// The MACs in its neighbour table.
    pub(crate) fn neighbours(&self) -> Result<BTreeMap<IpAddr, Mac>> {
        let neighbours = Netlink::inside(&self.ns)?.neighbours()?;
        Ok(neighbours.into_iter().filter_map(|entry| Some((entry.ip, Mac(entry.mac?)))).collect())
    }

    /// Sets the MTU of its interface, as a namespace may.
    pub(crate) fn set_mtu(&self, mtu: u32) -> Result<()> {
        let netlink = Netlink::inside(&self.ns)?;
        let link = netlink.link(&self.ifname)?.context("the interface is gone")?;
        Ok(netlink.set_mtu(link.index, mtu)?)
    }

    /// Whether `to` answers a ping from here; one lost packet is forgiven to a busy machine.
    pub(crate) fn reaches(&self, to: IpAddr) -> Result<bool> {
        self.run(|| nsnet::lab::ping::answers(to, 2, Duration::from_millis(800)))
    }
}

/// A lab with networks and stations.
#[derive(Debug)]
pub(crate) struct Bed {
    pub(crate) lab: Lab,
    stations: Vec<Station>,
}

impl Bed {
    /// Network v-net-0, made with `options`, and a namespace for each of `names`.
    pub(crate) fn new(options: &str, names: &[&str]) -> Result<Self> {
        Self::inside(lab()?, options, names)
    }

    /// The same in a lab that is there.
    pub(crate) fn inside(lab: Lab, options: &str, names: &[&str]) -> Result<Self> {
        let mut bed = Self { lab, stations: Vec::new() };
        bed.add_network(NETWORK, options)?;
        for name in names {
            bed.attach(NETWORK, name, "")?;
        }
        Ok(bed)
    }

    /// Makes a network; the host's station in it has the network's name, and that of v-net-0 is called "host" too.
    pub(crate) fn add_network(&mut self, network: &str, options: &str) -> Result<()> {
        let made = self.lab.json(&format!("network add {network} {options}"))?;
        let station = Station::new(network, self.lab.ns("host")?, network, &made["gateway"], &made["mac"])?;
        self.stations.push(station);
        Ok(())
    }

    /// Makes a namespace and attaches it.
    pub(crate) fn attach(&mut self, network: &str, name: &str, options: &str) -> Result<()> {
        self.lab.nsnet(&format!("ns add @{name}"))?;
        let made = self.lab.json(&format!("attach {network} @{name} {options}"))?;
        let mut station = Station::new(name, self.lab.ns(name)?, network, &made["ip"], &made["mac"])?;
        text(&made["ifname"])?.clone_into(&mut station.ifname);
        text(&made["host_ifname"])?.clone_into(&mut station.port);
        self.stations.retain(|other| other.name != name);
        self.stations.push(station);
        Ok(())
    }

    /// The station `name`.
    pub(crate) fn at(&self, name: &str) -> &Station {
        let name = if name == "host" { NETWORK } else { name };
        self.stations.iter().find(|station| station.name == name).expect("a station that the test made")
    }

    /// Everybody.
    pub(crate) fn stations(&self) -> &[Station] {
        &self.stations
    }

    /// What was dropped so far, by port and reason.
    pub(crate) fn drops(&self) -> Result<BTreeMap<(String, String), u64>> {
        let rows = self.lab.json("drops")?;
        let rows = rows.as_array().context("`drops` is no array")?;
        let row = |row: &Value| -> Result<_> {
            let port = row["port"].as_str().unwrap_or("none").to_owned();
            Ok(((port, text(&row["reason"])?.to_owned()), number(&row["packets"])?))
        };
        rows.iter().map(row).collect()
    }

    /// The counters of each port.
    pub(crate) fn stats(&self) -> Result<BTreeMap<String, Counters>> {
        let rows = self.lab.json("stats")?;
        let rows = rows.as_array().context("`stats` is no array")?;
        let row = |row: &Value| -> Result<_> {
            let counters = Counters {
                rx: number(&row["rx_packets"])?,
                tx: number(&row["tx_packets"])?,
                flooded: number(&row["flooded"])?,
                answered: number(&row["answered"])?,
                dropped: number(&row["dropped"])?,
            };
            Ok((text(&row["port"])?.to_owned(), counters))
        };
        rows.iter().map(row).collect()
    }

    /// Fails when the kernel is not as the state says.
    pub(crate) fn check_no_drift(&self) -> Result<()> {
        let status = self.lab.json("status")?;
        ensure!(status["drift"] == serde_json::json!([]), "there is drift: {}", status["drift"]);
        Ok(())
    }
}

/// A row of `stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) rx: u64,
    pub(crate) tx: u64,
    pub(crate) flooded: u64,
    pub(crate) answered: u64,
    pub(crate) dropped: u64,
}

impl std::ops::Sub for Counters {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            rx: self.rx - earlier.rx,
            tx: self.tx - earlier.tx,
            flooded: self.flooded - earlier.flooded,
            answered: self.answered - earlier.answered,
            dropped: self.dropped - earlier.dropped,
        }
    }
}

/// What a count grew by.
pub(crate) fn growth<K: Ord + Clone>(before: &BTreeMap<K, u64>, after: &BTreeMap<K, u64>) -> BTreeMap<K, u64> {
    let grown = after.iter().map(|(key, count)| (key.clone(), count - before.get(key).unwrap_or(&0)));
    grown.filter(|(_, count)| *count > 0).collect()
}

/// Tries until it is true or `limit` is over; how long that took.
pub(crate) fn until(limit: Duration, mut is_true: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let start = Instant::now();
    while !is_true()? {
        if start.elapsed() > limit {
            bail!("not within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(start.elapsed())
}

/// A file or folder outside of the lab, removed when dropped, after a panic too.
#[derive(Debug)]
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let folder = std::fs::remove_dir_all(&self.0);
        // Gone already is a test's finding, and reported by it.
        folder.or_else(|_no_folder| std::fs::remove_file(&self.0)).ok();
    }
}

/// A JSON string.
pub(crate) fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("{value} is no text"))
}

fn number(value: &Value) -> Result<u64> {
    value.as_u64().with_context(|| format!("{value} is no number"))
}
