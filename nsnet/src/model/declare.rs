//! A state as a file declares it: the verbs' own edits, begun with what is there.
//!
//! What is there and declared keeps what was chosen for it; the rest goes before anything new is chosen, so that what
//! becomes free can be had. Of each kind, all that is known is entered before what is new, whatever the file's order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;

use ipnet::IpNet;
use toml::Spanned;

use super::declaration::Declaration;
use super::edit::{Choice, default_route};
use super::name::Name;
use super::ports::PortRange;
use super::publish::{HostPorts, Publish, PublishRequest};
use super::request::{AttachRequest, CableRequest, RouteRequest};
use super::spec::Spec;
use super::state::{Attachment, Network, Route, State};
use super::{Refusal, Result, ipam, refuse};

/// The next hops of the default routes of one family (`true`: IPv4) in a namespace; none for those by an interface.
type NextHops<'a> = dyn Fn(&Name, bool) -> Result<Vec<Option<IpAddr>>> + 'a;

/// What a declaration has to know of the host.
pub struct Surroundings<'a> {
    /// The MTU of networks for which none is asked for.
    pub default_mtu: u16,
    /// Whether there is such a namespace; a refusal when it is the host's own.
    pub has_namespace: &'a dyn Fn(&Name) -> Result<bool>,
    /// The next hops of the default routes of one family (`true`: IPv4) that a namespace has.
    pub default_routes: &'a NextHops<'a>,
    /// What publishing has to know.
    pub ports: &'a HostPorts<'a>,
}

impl State {
    /// Makes the state what `wanted` says: nothing more, and nothing less.
    pub fn declare(&mut self, wanted: &Declaration, host: &Surroundings<'_>) -> Result<()> {
        refuse_duplicates(wanted)?;
        let old = self.clone();
        self.declare_namespaces(wanted, host)?;
        self.declare_networks(wanted, host)?;
        // One may get the prefix that a cable had until now.
        self.drop_cables(wanted);
        self.declare_attachments(wanted, &old)?;
        self.declare_cables(wanted)?;
        self.declare_routes(wanted, host, &old)?;
        self.declare_publishes(wanted, host, &old)
    }

    fn declare_namespaces(&mut self, wanted: &Declaration, host: &Surroundings<'_>) -> Result<()> {
        let declared: HashSet<&Name> = wanted.ns.iter().map(|ns| &ns.get_ref().name).collect();
        for ns in &wanted.ns {
            let name = &ns.get_ref().name;
            let is_there = (host.has_namespace)(name).at(wanted, ns)?;
            self.add_namespace(name, !is_there);
            // One of somebody else's that is gone is made by us.
            if let Some(known) = self.namespaces.get_mut(name).filter(|_| !is_there) {
                known.made = true;
            }
        }
        for (name, line) in users(wanted).filter(|(name, _)| !declared.contains(name)) {
            let is_made = self.namespaces.get(name).is_some_and(|ns| ns.made);
            if is_made || !(host.has_namespace)(name).map_err(|refusal| on_line(line, &refusal))? {
                let why = if is_made { "was made by nsnet and would be deleted" } else { "does not exist" };
                return refuse(format_args!(
                    "line {line}: namespace {name} {why}, as the file does not declare it; add [[ns]] name = \"{name}\""
                ));
            }
        }
        let gone: Vec<Name> = self.namespaces.keys().filter(|name| !declared.contains(name)).cloned().collect();
        let is_used = |name: &Name| users(wanted).any(|(user, _)| user == name);
        for name in gone {
            if is_used(&name) {
                // Somebody else's, that is used without being known by name.
                self.namespaces.remove(&name);
            } else {
                self.delete_namespace(&name, true)?;
            }
        }
        Ok(())
    }

    fn declare_networks(&mut self, wanted: &Declaration, host: &Surroundings<'_>) -> Result<()> {
        let declared: HashSet<&Name> = wanted.network.iter().map(|network| &network.get_ref().name).collect();
        let gone: Vec<Name> = self.networks.keys().filter(|name| !declared.contains(name)).cloned().collect();
        gone.iter().try_for_each(|name| self.delete_network(name, true))?;
        // One may get the subnet that another had until now.
        let mut before: BTreeMap<Name, Network> = std::mem::take(&mut self.networks);
        let (known, new): (Vec<_>, Vec<_>) =
            wanted.network.iter().partition(|network| before.contains_key(&network.get_ref().name));
        for network in known.into_iter().chain(new) {
            let request = network.get_ref();
            let had = before.remove(&request.name);
            let network = self.build_network(request, host.default_mtu, had.as_ref()).at(wanted, network)?;
            self.networks.insert(request.name.clone(), network);
        }
        Ok(())
    }

    fn declare_attachments(&mut self, wanted: &Declaration, old: &State) -> Result<()> {
        let declared: HashSet<_> = wanted.attach.iter().map(|port| pair(port.get_ref())).collect();
        let gone = self.attachments.iter().map(|port| (port.network.clone(), port.ns.clone()));
        let gone: Vec<_> = gone.filter(|(network, ns)| !declared.contains(&(network, ns))).collect();
        gone.iter().for_each(|(network, ns)| self.detach(network, ns));

        // One may get the address that another had until now.
        let mut before: HashMap<(Name, Name), Attachment> = std::mem::take(&mut self.attachments)
            .into_iter()
            .map(|port| ((port.network.clone(), port.ns.clone()), port))
            .collect();
        let mut avoided = given_addresses(wanted);
        let mut requests = Vec::new();
        for port in &wanted.attach {
            let request = port.get_ref();
            let network = self.network(&request.network).at(wanted, port)?;
            let had = before.remove(&(request.network.clone(), request.ns.clone()));
            let given = avoided.get(&request.network);
            let kept = had.as_ref().map(|had| kept_addresses(network, request, had, given)).unwrap_or_default();
            requests.push((port, had, kept));
        }
        // What is chosen anew is neither given nor kept elsewhere.
        for (port, _, kept) in &requests {
            avoided.entry(port.get_ref().network.clone()).or_default().extend(kept);
        }
        requests.sort_by_key(|(_, had, _)| had.is_none());
        for (port, had, kept) in &requests {
            let request = port.get_ref();
            let choice = Choice { kept, avoided: avoided.get(&request.network) };
            let attachment = self.build_attachment(request, had.as_ref(), &choice).at(wanted, port)?;
            self.attachments.push(attachment);
        }
        keep_order(&mut self.attachments, &old.attachments, |port| (port.network.clone(), port.ns.clone()));
        Ok(())
    }

    fn drop_cables(&mut self, wanted: &Declaration) {
        let is_declared = |one: &Name, other: &Name, had: [Option<IpNet>; 2]| {
            wanted.cable.iter().map(Spanned::get_ref).any(|cable| {
                let CableRequest { a, b, address_a, address_b } = cable;
                let is_same = |asked: [Option<IpNet>; 2]| had == asked;
                ((a, b) == (one, other) && is_same([*address_a, *address_b]))
                    || ((a, b) == (other, one) && is_same([*address_b, *address_a]))
            })
        };
        self.cables.retain(|cable| is_declared(&cable.a.ns, &cable.b.ns, [cable.a.address, cable.b.address]));
    }

    fn declare_cables(&mut self, wanted: &Declaration) -> Result<()> {
        for cable in &wanted.cable {
            self.add_cable(cable.get_ref()).at(wanted, cable)?;
        }
        Ok(())
    }

    /// Declared routes, and the default routes that attachments bring with them.
    fn declare_routes(&mut self, wanted: &Declaration, host: &Surroundings<'_>, old: &State) -> Result<()> {
        self.routes.clear();
        for route in &wanted.route {
            self.add_route(route.get_ref()).at(wanted, route)?;
        }
        for port in self.attachments.clone() {
            if !self.network(&port.network)?.outside.has_default_route() {
                continue;
            }
            let gateways = old.networks.get(&port.network).map(Network::gateways).unwrap_or_default();
            let mut has_other = [false; 2];
            for (v4, has_other) in [true, false].into_iter().zip(&mut has_other) {
                let is_it = |route: &&Route| route.ns == port.ns && route.dest == default_route(v4);
                let had: Vec<IpAddr> = old.routes.iter().filter(is_it).map(|route| route.via).collect();
                // What stands where ours was is drift, not the user's choice.
                let had_ours = had.iter().any(|via| gateways.contains(via));
                let is_other = |via: &Option<IpAddr>| via.is_none_or(|via| !had.contains(&via));
                *has_other = !had_ours && (host.default_routes)(&port.ns, v4)?.iter().any(is_other);
            }
            let [has_other_v4, has_other_v6] = has_other;
            self.add_default_routes(&port, |v4| if v4 { has_other_v4 } else { has_other_v6 });
        }
        Ok(())
    }

    fn declare_publishes(&mut self, wanted: &Declaration, host: &Surroundings<'_>, old: &State) -> Result<()> {
        self.publishes.clear();
        let all = || wanted.publish.iter().flat_map(|publish| publish.get_ref().requests().map(move |r| (publish, r)));
        // What is given is not chosen for others.
        let given = all().filter_map(|(_, request)| request.spec.host()).collect();
        let reserved = host.ports.reserved.with(&given);
        let mine: Vec<(Spec, IpAddr)> = old
            .publishes
            .iter()
            .flat_map(|publish| publish.entries.iter().map(|entry| (publish.spec.clone(), publish.host_ip(entry))))
            .collect();
        // Our own hooks refuse a bind of what is published: no socket has it.
        let first_busy = |protocol, ip, mut range: PortRange| loop {
            let Some(busy) = (host.ports.first_busy)(protocol, ip, range)? else { return Ok(None) };
            let is_mine = |(spec, at): &(Spec, IpAddr)| {
                let is_there =
                    at.is_ipv4() == ip.is_ipv4() && (*at == ip || at.is_unspecified() || ip.is_unspecified());
                is_there && spec.protocol() == protocol && spec.host().is_some_and(|host| host.contains(busy))
            };
            if !mine.iter().any(is_mine) {
                return Ok(Some(busy));
            }
            match busy.checked_add(1).and_then(|next| PortRange::new(next, range.last())) {
                Some(rest) => range = rest,
                None => return Ok(None),
            }
        };
        let ports = HostPorts { reserved: &reserved, first_busy: &first_busy, ..*host.ports };
        let had = |request: &PublishRequest| old.published(&request.ns, &request.spec);
        let (known, new): (Vec<_>, Vec<_>) = all().partition(|(_, request)| had(request).is_some());
        for (publish, request) in known {
            if let Some(had) = had(&request) {
                self.keep_publish(&request, had, &ports).at(wanted, publish)?;
            }
        }
        for (publish, request) in new {
            self.add_publish(&request, &ports).at(wanted, publish)?;
        }
        keep_order(&mut self.publishes, &old.publishes, |publish| (publish.ns.clone(), publish.spec.clone()));
        Ok(())
    }

    /// Publishes what was published, at the same ports of the host.
    fn keep_publish(&mut self, request: &PublishRequest, had: &Publish, ports: &HostPorts<'_>) -> Result<()> {
        if self.still_leads(request, had) {
            self.publishes.push(had.clone());
            return Ok(());
        }
        let again = PublishRequest { spec: had.spec.clone(), ..request.clone() };
        self.add_publish(&again, ports)?;
        if let Some(publish) = self.publishes.last_mut() {
            publish.asked = request.spec.clone();
        }
        Ok(())
    }
}

/// Puts what was there in the order in which it was, and the rest behind: a place in a list is no difference.
fn keep_order<T, K: Eq + Hash>(items: &mut [T], old: &[T], key: impl Fn(&T) -> K) {
    let places: HashMap<K, usize> = old.iter().enumerate().map(|(place, item)| (key(item), place)).collect();
    items.sort_by_key(|item| places.get(&key(item)).copied().unwrap_or(usize::MAX));
}

/// Addresses of an attachment that is there, of families of which none is given: those that the network still has, and
/// that are given to nobody.
fn kept_addresses(
    network: &Network,
    request: &AttachRequest,
    had: &Attachment,
    given: Option<&HashSet<IpAddr>>,
) -> Vec<IpAddr> {
    let is_free = |ip: &IpAddr| {
        let subnet = network.subnet_of(*ip);
        let is_usable = subnet.is_some_and(|subnet| subnet.gateway != *ip && ipam::is_usable(&subnet.net, *ip));
        is_usable && !given.is_some_and(|given| given.contains(ip))
    };
    let is_open = |ip: &IpAddr| !request.ip.iter().any(|asked| asked.is_ipv4() == ip.is_ipv4());
    had.ips.iter().copied().filter(|ip| is_free(ip) && is_open(ip)).collect()
}

/// The addresses that the file gives, by network.
fn given_addresses(wanted: &Declaration) -> HashMap<Name, HashSet<IpAddr>> {
    let mut given: HashMap<Name, HashSet<IpAddr>> = HashMap::new();
    for port in wanted.attach.iter().map(Spanned::get_ref) {
        given.entry(port.network.clone()).or_default().extend(&port.ip);
    }
    given
}

/// What a table is known by may be there once.
fn refuse_duplicates(wanted: &Declaration) -> Result<()> {
    once(wanted, &wanted.ns, |ns| &ns.name, |ns| format!("namespace {}", ns.name))?;
    once(wanted, &wanted.network, |network| &network.name, |network| format!("network {}", network.name))?;
    once(wanted, &wanted.attach, pair, |port| format!("attachment {} to {}", port.ns, port.network))?;
    let ends = |cable: &CableRequest| (cable.a.clone().min(cable.b.clone()), cable.a.clone().max(cable.b.clone()));
    once(wanted, &wanted.cable, ends, |cable| format!("cable {}-{}", cable.a, cable.b))?;
    let dest = |route: &RouteRequest| (route.ns.clone(), route.dest().trunc());
    once(wanted, &wanted.route, dest, |route| format!("route {} in {}", route.dest(), route.ns))?;
    let mut specs = HashMap::new();
    for (publish, request) in wanted.publish.iter().flat_map(|p| p.get_ref().requests().map(move |r| (p, r))) {
        let line = wanted.line(publish);
        let what = format!("publish {} for {}", request.spec, request.ns);
        if let Some(first) = specs.insert((request.ns, request.spec), line) {
            return refuse(format_args!("line {line}: {what} is there already, from line {first}; delete one"));
        }
    }
    Ok(())
}

fn once<'a, T, K: Eq + Hash>(
    wanted: &Declaration,
    tables: &'a [Spanned<T>],
    key: impl Fn(&'a T) -> K,
    name: impl Fn(&T) -> String,
) -> Result<()> {
    let mut lines: HashMap<K, usize> = HashMap::new();
    for table in tables {
        let line = wanted.line(table);
        if let Some(first) = lines.insert(key(table.get_ref()), line) {
            let name = name(table.get_ref());
            return refuse(format_args!("line {line}: {name} is there already, from line {first}; delete one"));
        }
    }
    Ok(())
}

/// Every namespace that something is declared in, with the line.
fn users(wanted: &Declaration) -> impl Iterator<Item = (&Name, usize)> {
    let attach = wanted.attach.iter().map(|port| (&port.get_ref().ns, wanted.line(port)));
    let cables = wanted.cable.iter().flat_map(|cable| {
        let line = wanted.line(cable);
        [(&cable.get_ref().a, line), (&cable.get_ref().b, line)]
    });
    let routes = wanted.route.iter().map(|route| (&route.get_ref().ns, wanted.line(route)));
    let publishes = wanted.publish.iter().map(|publish| (&publish.get_ref().ns, wanted.line(publish)));
    attach.chain(cables).chain(routes).chain(publishes)
}

fn pair(port: &AttachRequest) -> (&Name, &Name) {
    (&port.network, &port.ns)
}

fn on_line(line: usize, refusal: &Refusal) -> Refusal {
    Refusal(format!("line {line}: {refusal}"))
}

/// `.at(file, table)` says in which line the refused table is.
trait At<T> {
    fn at<U>(self, wanted: &Declaration, table: &Spanned<U>) -> Result<T>;
}

impl<T> At<T> for Result<T> {
    fn at<U>(self, wanted: &Declaration, table: &Spanned<U>) -> Result<T> {
        self.map_err(|refusal| on_line(wanted.line(table), &refusal))
    }
}
