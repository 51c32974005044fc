//! How an entry of a table reads.

use std::net::IpAddr;

use nsnet_common::layout::{
    FLOOD_BURST_NS, Flow, FlowKey, FragmentKey, Mapping, MappingKey, Policy, Port, PortId, Publish, REFUSAL_BURST_NS,
    Station, flow_flags, mapping_kinds, names, policy_flags, whole_seconds,
};
use nsnet_common::tables::{Age, Hop, Route};
use nsnet_common::wire::{IpAddress, IpProtocol, Mac};

use super::event::Lookup;
use super::names::Names;
use crate::model::flow::{has_ports, protocol_name};

/// The tables that are the kernel's own.
pub const ROUTES: &str = "host's routes";
/// See [`ROUTES`].
pub const SOCKETS: &str = "host's sockets";

/// A look-up in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The table, by its name among the pins.
    pub table: &'static str,
    /// What was looked for.
    pub key: String,
    /// What was there.
    pub entry: String,
    /// Whether there was anything.
    pub is_found: bool,
}

/// What a reader of the tables has to know: names, and the time.
#[derive(Clone, Debug)]
pub struct Words<'a> {
    /// Names.
    pub names: &'a Names,
    /// The monotonic clock, nanoseconds.
    pub now: u64,
}

impl Words<'_> {
    /// The monotonic clock, seconds.
    pub fn seconds(&self) -> u32 {
        whole_seconds(self.now)
    }

    /// A look-up.
    pub fn lookup(&self, lookup: &Lookup) -> Entry {
        let names = self.names;
        match lookup {
            Lookup::Port(id, port) => {
                let port = port.filter(|port| port.id() != PortId::NONE);
                found(names::PORTS, format!("port {}", id.0), port, "no port", |port| self.port(&port))
            }
            Lookup::Network(id, network) => found(names::NETWORKS, names.network(*id), *network, "none", |network| {
                format!("{} ports, of which {} learn", network.ports(), network.learning())
            }),
            Lookup::Address(key, owner) => {
                let who = format!("{} in {}", ip(key.ip), names.network(key.network));
                found(names::ADDRESSES, who, *owner, "nobody's", |owner| names.port(owner))
            }
            Lookup::Subnet(address, network) => {
                found(names::SUBNETS, ip(*address), *network, "in no network", |network| names.network(network))
            }
            Lookup::Station(key, station) => {
                let who = format!("{} in {}", key.mac, names.network(key.network));
                found(names::STATIONS, who, *station, "unknown", |station| self.station(&station))
            }
            Lookup::Foreign(key, mac) => {
                let place = format!("{}, place {}", names.port(key.port), key.place);
                found(names::FOREIGN, place, *mac, "free", |mac| mac.to_string())
            }
            Lookup::FloodClock(port, clock) => self.allowance(names::FLOOD_CLOCKS, *port, *clock, FLOOD_BURST_NS),
            Lookup::RefusalClock(port, clock) => self.allowance(names::REFUSAL_CLOCKS, *port, *clock, REFUSAL_BURST_NS),
            Lookup::Policy(id, policy) => {
                found(names::POLICIES, names.network(*id), *policy, "none", |policy| self.policy(&policy))
            }
            Lookup::Flow(age, key, flow) => {
                found(flow_table(*age, key), tuple(key), *flow, "none", |flow| self.flow(key, &flow))
            }
            Lookup::Mapping(key, mapping) => {
                found(names::MAPPINGS, self.endpoint(key), *mapping, "none", |mapping| self.mapping(key, &mapping))
            }
            Lookup::Usage(owner, usage) => {
                let total = [
                    (PortId::NONE, "all of IPv4"),
                    (PortId(nsnet_common::layout::MAX_PORTS as u16 - 1), "all of IPv6"),
                ];
                let who = total.iter().find(|(id, _)| id == owner).map(|(_, who)| (*who).to_owned());
                let held =
                    format!("{} established flows, {} ports", usage.flows.cast_signed(), usage.ports.cast_signed());
                some(names::USAGE, who.unwrap_or_else(|| names.port(*owner)), held)
            }
            Lookup::Published(protocol, address, port, place) => {
                let key = format!("{} {}", protocol_name(*protocol), socket(*address, *port));
                found(names::PUBLISHED, key, *place, "not published", |place| names.published(place))
            }
            Lookup::Publish(place, entry) => {
                let entry = entry.filter(|entry| entry.owner != PortId::NONE);
                found(names::PUBLISHES, format!("place {place}"), entry, "free", |entry| self.publish(&entry))
            }
            Lookup::Route(from, key, route, hop) => {
                let question =
                    format!("{} from {}, come in by {}", ip(key.destination), ip(key.source), names.interface(*from));
                some(ROUTES, question, self.route(*route, hop))
            }
            Lookup::Socket(key, is_there) => {
                found(SOCKETS, tuple(key), is_there.then_some(()), "none", |()| "a socket of the host's".to_owned())
            }
            Lookup::Fragment(key, first) => {
                found(names::FRAGMENTS, packet(key), *first, "its first fragment has not come", |first| {
                    let age = self.seconds().saturating_sub(first.seen);
                    let ports = [first.source_port, first.destination_port].map(u16::from_be_bytes);
                    format!("its first fragment came {age} s ago, ports {} > {}", ports[0], ports[1])
                })
            }
            Lookup::Holding(port, holding) => {
                let age = self.seconds().saturating_sub(holding.seen);
                let last = (holding.count > 0)
                    .then(|| format!("{} have waited, the last one came {age} s ago", holding.count));
                found(names::HOLDING, names.port(*port), last, "none has waited", |last| last)
            }
            Lookup::Held(place, held) => {
                let key = format!("{}, place {}", names.port(place.port), place.place);
                found(names::HELD, key, *held, "free", |(key, seen)| {
                    format!("{}, for {} s", packet(&key), self.seconds().saturating_sub(seen))
                })
            }
            Lookup::Uplink(index, port) => {
                let key = names.interface(*index);
                found(names::UPLINKS, key, *port, "no uplink", |port| names.port(port))
            }
            Lookup::Local(address, is_local) => {
                found(names::LOCALS, ip(*address), is_local.then_some(()), "not the host's", |()| {
                    "the host's".to_owned()
                })
            }
            Lookup::Broadcast(address, is_broadcast) => {
                found(names::LOCALS, ip(*address), is_broadcast.then_some(()), "no broadcast address", |()| {
                    "a broadcast address".to_owned()
                })
            }
        }
    }

    fn port(&self, port: &Port) -> String {
        let mut text = format!("{}, MAC {}, MTU {}", self.names.port(port.id()), port.mac(), port.mtu());
        let words = [(port.learns(), ", learns"), (port.is_trusted(), ", trusted"), (port.is_isolated(), ", isolated")];
        for (is_set, word) in words {
            if is_set {
                text.push_str(word);
            }
        }
        text
    }

    fn station(&self, station: &Station) -> String {
        let port = self.names.port(station.port());
        let heard = station.age(self.now) / 1_000_000_000;
        match station {
            station if station.is_fixed() => format!("behind {port}, set by the user"),
            station if station.is_alive(self.now) => format!("behind {port}, learned, heard {heard} s ago"),
            _ => format!("was behind {port}, not heard for {heard} s"),
        }
    }

    fn allowance(&self, table: &'static str, port: PortId, clock: u64, burst: u64) -> Entry {
        let used = clock.saturating_sub(self.now);
        let percent = u128::from(used) * 100 / u128::from(burst);
        some(table, self.names.port(port), format!("{percent} % of its allowance is used up"))
    }

    fn policy(&self, policy: &Policy) -> String {
        const WORDS: [(u32, &str); 6] = [
            (policy_flags::MASQUERADE, "masqueraded"),
            (policy_flags::INTERNAL, "internal"),
            (policy_flags::PUNT, "punted to the host's stack"),
            (policy_flags::OPEN, "open to other open networks"),
            (policy_flags::FILTER_BY_ADDRESS, "filters by address"),
            (policy_flags::FILTER_NOTHING, "filters nothing"),
        ];
        let mut words: Vec<String> =
            WORDS.iter().filter(|(flag, _)| policy.has(*flag)).map(|(_, word)| (*word).to_owned()).collect();
        if policy.flags & (policy_flags::MASQUERADE | policy_flags::INTERNAL | policy_flags::PUNT) == 0 {
            words.insert(0, "routed".to_owned());
        }
        if policy.gateway != PortId::NONE {
            words.push(format!("gateway {}", self.names.port(policy.gateway)));
        }
        if policy.uplink != 0 {
            words.push(format!("by {} only", self.names.interface(policy.uplink)));
        }
        words.push(format!("pool {}-{}", policy.first_port, policy.last_port));
        words.join(", ")
    }

    /// A flow's entry: what a packet becomes, which way it leaves, and the state.
    pub fn flow(&self, key: &FlowKey, flow: &Flow) -> String {
        let Flow { about, source, destination } = flow;
        let now = self.seconds();
        let seen = now.saturating_sub(about.seen);
        let life = if about.is_alive(now) {
            format!("used {seen} s ago, lives {} s more", (about.seen + about.timeout).saturating_sub(now))
        } else {
            format!("over but for the other direction: used {seen} s ago, of at most {}", about.timeout)
        };
        let is_same = (key.source, key.destination, key.source_port, key.destination_port)
            == (*source, *destination, about.source_port, about.destination_port);
        let becomes = flow.other_key(key).turned(flow.about.other_side);
        let becomes = if is_same { "unchanged".to_owned() } else { format!("becomes {}", tuple(&becomes)) };
        let answers = if about.has(flow_flags::REPLY) { ", answers" } else { "" };
        let published = if about.publish != 0 {
            format!(", for {}", self.names.published(about.publish.into()))
        } else {
            String::new()
        };
        format!("{}{answers}, {life}, {becomes}, out by {}{published}", about.state.label(), self.names.port(about.out))
    }

    fn endpoint(&self, key: &MappingKey) -> String {
        let kind = if key.kind == mapping_kinds::SPOKEN_TO { "spoken to " } else { "" };
        let (protocol, port) = (protocol_name(IpProtocol(key.protocol)), u16::from_be_bytes(key.port));
        format!("{kind}{protocol} {} in {}", socket(key.ip, port), self.names.network(key.side))
            .replace(" in outside", " outside")
    }

    fn mapping(&self, key: &MappingKey, mapping: &Mapping) -> String {
        let now = self.seconds();
        let life = if mapping.is_alive(now) {
            format!("for {} s", mapping.until.wrapping_sub(now))
        } else {
            "over".to_owned()
        };
        if key.kind == mapping_kinds::SPOKEN_TO {
            return life;
        }
        let owner = self.names.port(mapping.owner);
        format!("{}, {life}, of {owner}", socket(mapping.ip, u16::from_be_bytes(mapping.port)))
    }

    fn publish(&self, entry: &Publish) -> String {
        let last = entry.target_first.wrapping_add(entry.last.wrapping_sub(entry.first));
        let range = |first: u16, last: u16| if first == last { first.to_string() } else { format!("{first}-{last}") };
        let (from, to) = (range(entry.first, entry.last), range(entry.target_first, last));
        let protocol = protocol_name(IpProtocol(entry.protocol));
        format!("{protocol} {from} to {} port {to}, {}", ip(entry.target), self.names.port(entry.owner))
    }

    /// What the host's routes said.
    pub fn route(&self, route: Route, hop: &Hop) -> String {
        match route {
            Route::Forward => {
                let mtu = if hop.mtu == 0 { String::new() } else { format!(", MTU {}", hop.mtu) };
                let source = if hop.source == IpAddress::UNSPECIFIED {
                    String::new()
                } else {
                    format!(", from {}", ip(hop.source))
                };
                let mac = if hop.to_mac == Mac::ZERO {
                    "whose MAC is to be asked for".to_owned()
                } else {
                    format!("at {}", hop.to_mac)
                };
                format!("by {}, next hop {}, {mac}{source}{mtu}", self.names.interface(hop.ifindex), ip(hop.next))
            }
            Route::Local => "the host's own, or no route (the kernel gives one answer for both)".to_owned(),
            Route::Unreachable => "unreachable".to_owned(),
            Route::Prohibited => "prohibited".to_owned(),
            Route::Blackhole => "a blackhole".to_owned(),
        }
    }
}

fn some(table: &'static str, key: String, entry: String) -> Entry {
    Entry { table, key, entry, is_found: true }
}

fn found<V>(table: &'static str, key: String, value: Option<V>, none: &str, words: impl FnOnce(V) -> String) -> Entry {
    let is_found = value.is_some();
    Entry { table, key, entry: value.map_or_else(|| none.to_owned(), words), is_found }
}

/// The table that a flow of this age and family is in.
pub fn flow_table(age: Age, key: &FlowKey) -> &'static str {
    match (age, key.is_v4()) {
        (Age::Grown, true) => names::FLOWS4,
        (Age::Grown, false) => names::FLOWS6,
        (Age::Young, true) => names::YOUNG4,
        (Age::Young, false) => names::YOUNG6,
    }
}

/// An address.
pub fn ip(address: IpAddress) -> String {
    IpAddr::from(address).to_string()
}

fn socket(address: IpAddress, port: u16) -> String {
    std::net::SocketAddr::new(IpAddr::from(address), port).to_string()
}

/// A tuple: `udp 10.1.0.2:4000 > 192.0.2.7:53`.
pub fn tuple(key: &FlowKey) -> String {
    let protocol = key.protocol();
    let [source, destination] = [key.source_port, key.destination_port].map(u16::from_be_bytes);
    let is_query = matches!(protocol, IpProtocol::ICMP | IpProtocol::ICMPV6);
    match (has_ports(protocol), is_query) {
        (true, false) => format!(
            "{} {} > {}",
            protocol_name(protocol),
            socket(key.source, source),
            socket(key.destination, destination)
        ),
        (true, true) => format!(
            "{} {} > {} id {}",
            protocol_name(protocol),
            ip(key.source),
            ip(key.destination),
            source.max(destination)
        ),
        (false, _) => format!("{} {} > {}", protocol_name(protocol), ip(key.source), ip(key.destination)),
    }
}

/// The packet that fragments are of.
pub fn packet(key: &FragmentKey) -> String {
    let number = u32::from_be_bytes(key.identification);
    format!("packet {number:#x} {} > {}", ip(key.source), ip(key.destination))
}
