//! The rules of the peers, as text for the tools that load them.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::family::Family;

/// What rules are about.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) family: Family,
    /// The bridge, or a pattern of the interfaces of namespaces, as iptables takes it.
    pub(super) inside: &'static str,
    /// Namespaces' addresses, as a prefix.
    pub(super) subnet: IpNet,
    /// Where published ports lead.
    pub(super) to: IpAddr,
    /// They are the same on the host and in the namespace.
    pub(super) ports: RangeInclusive<u16>,
}

const PROTOCOLS: [&str; 2] = ["tcp", "udp"];

impl Rules {
    /// What Docker makes for a network with published ports when `userland-proxy` is off, in the form of
    /// iptables-restore(8): a rule each for DNAT, hairpin and filter, for each port and protocol.
    pub(super) fn docker(&self) -> String {
        let Self { inside, subnet, to, .. } = self;
        let mut nat = format!(
            "*nat\n:PREROUTING ACCEPT\n:INPUT ACCEPT\n:OUTPUT ACCEPT\n:POSTROUTING ACCEPT\n:DOCKER -\n\
             -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
             -A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER\n\
             -A POSTROUTING -s {subnet} ! -o {inside} -j MASQUERADE\n"
        );
        let mut filter = format!(
            "*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n:DOCKER -\n:DOCKER-ISOLATION-STAGE-1 -\n\
             :DOCKER-ISOLATION-STAGE-2 -\n:DOCKER-USER -\n\
             -A FORWARD -j DOCKER-USER\n\
             -A FORWARD -j DOCKER-ISOLATION-STAGE-1\n\
             -A FORWARD -o {inside} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A FORWARD -o {inside} -j DOCKER\n\
             -A FORWARD -i {inside} ! -o {inside} -j ACCEPT\n\
             -A FORWARD -i {inside} -o {inside} -j ACCEPT\n"
        );
        // With the length of its prefix, as iptables-save writes it.
        let host = IpNet::from(*to);
        for (port, protocol) in self.each() {
            let to = SocketAddr::new(*to, port);
            // Writing to a String cannot fail.
            let _ = writeln!(
                nat,
                "-A POSTROUTING -s {host} -d {host} -p {protocol} -m {protocol} --dport {port} -j MASQUERADE\n\
                 -A DOCKER -p {protocol} -m {protocol} --dport {port} -j DNAT --to-destination {to}"
            );
            let _ = writeln!(
                filter,
                "-A DOCKER -d {host} ! -i {inside} -o {inside} -p {protocol} -m {protocol} --dport {port} -j ACCEPT"
            );
        }
        filter += &format!(
            "-A DOCKER-ISOLATION-STAGE-1 -i {inside} ! -o {inside} -j DOCKER-ISOLATION-STAGE-2\n\
             -A DOCKER-ISOLATION-STAGE-1 -j RETURN\n\
             -A DOCKER-ISOLATION-STAGE-2 -o {inside} -j DROP\n\
             -A DOCKER-ISOLATION-STAGE-2 -j RETURN\n\
             -A DOCKER-USER -j RETURN\n"
        );
        format!("{nat}COMMIT\n{filter}COMMIT\n")
    }

    /// The least that does it: MASQUERADE, and DNAT for each port.
    pub(super) fn masquerade(&self) -> String {
        let Self { subnet, to, .. } = self;
        let mut nat = format!("*nat\n-A POSTROUTING -s {subnet} -o uplink -j MASQUERADE\n");
        for (port, protocol) in self.each() {
            let to = SocketAddr::new(*to, port);
            let _ = writeln!(
                nat,
                "-A PREROUTING -i uplink -p {protocol} -m {protocol} --dport {port} -j DNAT --to-destination {to}"
            );
        }
        nat + "COMMIT\n"
    }

    /// The same for nft(8), as one would write it for many ports: a lookup in a map, whatever their number.
    pub(super) fn nft(&self) -> String {
        let Self { family, inside, subnet, to, .. } = self;
        // Of its tables, fields and addresses.
        let (ip, address) = family.choose([("ip", "ipv4_addr"), ("ip6", "ipv6_addr")]);
        let elements: Vec<String> = self.ports.clone().map(|port| format!("{port} : {to} . {port}")).collect();
        let map = |protocol: &str| {
            let elements =
                if elements.is_empty() { String::new() } else { format!("elements = {{ {} }}", elements.join(", ")) };
            format!("map {protocol}_ports {{ type inet_service : {address} . inet_service; {elements} }}\n")
        };
        let look_up = format!(
            "fib daddr type local dnat {ip} addr . port to tcp dport map @tcp_ports\n\
             fib daddr type local dnat {ip} addr . port to udp dport map @udp_ports\n"
        );
        format!(
            "table {ip} lab {{\n{}{}\
             chain prerouting {{ type nat hook prerouting priority -100;\n{look_up}}}\n\
             chain output {{ type nat hook output priority -100;\n{look_up}}}\n\
             chain postrouting {{ type nat hook postrouting priority 100;\n\
             {ip} saddr {subnet} oifname != \"{inside}\" masquerade\n\
             {ip} saddr {subnet} oifname \"{inside}\" ct status dnat masquerade\n}}\n\
             chain forward {{ type filter hook forward priority 0; policy drop;\n\
             ct state vmap {{ established : accept, related : accept, invalid : drop }}\n\
             ct status dnat accept\n\
             iifname \"{inside}\" accept\n}}\n}}\n",
            map("tcp"),
            map("udp"),
        )
    }

    fn each(&self) -> impl Iterator<Item = (u16, &'static str)> {
        self.ports.clone().flat_map(|port| PROTOCOLS.into_iter().map(move |protocol| (port, protocol)))
    }
}
