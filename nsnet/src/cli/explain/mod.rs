//! `nsnet explain`: what would become of a packet, and why. Nothing is changed.

mod print;

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use nsnet_common::wire::Mac;

use super::Answer;
use super::output::{self, Format};
use crate::kernel::dataplane::Hook;
use crate::kernel::explain::{Confirmed, Departure, Explainer, Wish, from_host, from_namespace, from_outside};
use crate::kernel::host::Host;
use crate::model::explain::capture;
use crate::model::explain::compose::{Endpoint, Fragment, Packet, What, parse_flags};
use crate::model::explain::entries::Words;
use crate::model::explain::names::Names;
use crate::model::explain::story::Story;
use crate::model::explain::walk::{Arrival, Entrance};
use crate::model::name::Name;
use crate::model::state::{State, mac_text};
use crate::model::uplink::Uplink;

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// Who sends it: a namespace, `host`, or somebody outside by an uplink (ns:NAME for a namespace of such a name)
    #[arg(long, value_name = "NS|host|uplink[:IF]")]
    pub from: Sender,
    /// The network it is sent into, where the namespace is in several
    #[arg(long)]
    pub network: Option<Name>,
    /// tcp, udp, icmp, sctp or a protocol's number; arp or nd asks who has the address
    #[arg(value_name = "PROTOCOL", value_parser = What::parse, required_unless_present_any = ["pcap", "hex"], conflicts_with_all = ["pcap", "hex"])]
    pub what: Option<What>,
    /// From whom and to whom, IP or IP:PORT; the sender's own address, and a free port, when only one is said
    #[arg(value_name = "[SOURCE] DESTINATION", num_args = 1..=2, value_parser = Endpoint::parse)]
    pub ends: Vec<Endpoint>,
    /// TTL or hop limit
    #[arg(long, value_name = "HOPS", default_value_t = 64)]
    pub ttl: u8,
    /// Bytes of the packet, from its IP header on
    #[arg(long, value_name = "BYTES")]
    pub length: Option<u16>,
    /// The packet must not be cut (IPv4)
    #[arg(long)]
    pub df: bool,
    /// A fragment: where it begins in its packet, with + behind it when more follow
    #[arg(long, value_name = "BYTES[+]", value_parser = Fragment::parse)]
    pub fragment: Option<Fragment>,
    /// The number that fragments of one packet have in common
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub id: u16,
    /// TCP flags: fin, syn, rst, psh, ack, urg, with commas between
    #[arg(long, default_value = "syn", value_parser = parse_flags)]
    pub flags: u8,
    /// TCP sequence number
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seq: u32,
    /// TCP acknowledgement
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub ack: u32,
    /// MAC of the sender; its own when left out
    #[arg(long, value_name = "MAC", value_parser = mac_text::parse)]
    pub from_mac: Option<Mac>,
    /// MAC of the receiver; that of the next hop, as the sender's kernel would choose it, when left out
    #[arg(long, value_name = "MAC", value_parser = mac_text::parse)]
    pub to_mac: Option<Mac>,
    /// Take the frame from a pcap or pcapng file; - for stdin
    #[arg(long, value_name = "FILE", conflicts_with = "hex")]
    pub pcap: Option<PathBuf>,
    /// Which frame of the file, from 1
    #[arg(long, value_name = "N", requires = "pcap", conflicts_with = "what", value_parser = clap::value_parser!(u32).range(1..))]
    pub frame: Option<u32>,
    /// Read the frame from stdin as hexadecimal digits, from its destination MAC on
    #[arg(long)]
    pub hex: bool,
    /// The frame is longer than what goes over a wire, and will be cut into segments of so many bytes of payload
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true)]
    pub gso: u32,
    /// Show everything that was looked up, not only what decided
    #[arg(long)]
    pub lookups: bool,
}

/// Who sends.
#[derive(Clone, Debug)]
pub(super) enum Sender {
    Namespace(Name),
    Host,
    /// Somebody outside, by the uplink of this name, or the only one.
    Outside(Option<String>),
}

impl std::str::FromStr for Sender {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = |text: &str| text.parse().map(Self::Namespace).map_err(|error| format!("{error}"));
        match (text, text.split_once(':')) {
            ("host", _) => Ok(Self::Host),
            ("uplink", _) => Ok(Self::Outside(None)),
            (_, Some(("uplink", interface))) => Ok(Self::Outside(Some(interface.to_owned()))),
            (_, Some(("ns", namespace))) | (namespace, _) => name(namespace),
        }
    }
}

pub(super) fn explain(host: &Host, format: Format, args: &ExplainArgs) -> Answer {
    let state = host.state()?;
    let mut explainer = Explainer::open(host)?;
    let arrival = arrival(host, &state, args)?;
    let explained = explainer.explain(&arrival)?;
    let links = host.netlink.links()?;
    let names = Names::of(&state, links.into_iter().map(|link| (link.index, link.name)));
    let words = Words { names: &names, now: explained.now };
    let stories: Vec<Story> = explained.passes.iter().map(|pass| Story::of(pass, &words)).collect();

    let notes = notes(host, &state, &explainer, &arrival)?;
    let is_same_build = explainer.is_same_build();
    let answer = print::Answer {
        arrival: &arrival,
        names: &names,
        stories: &stories,
        explained: &explained,
        is_same_build,
        lookups: args.lookups,
    };
    match format {
        Format::Table => answer.list()?,
        Format::Json => output::print_json(&answer.json())?,
    }
    notes.iter().for_each(|note| output::note(note));
    if let Confirmed::No(lines) = &explained.confirmed {
        output::note(
            "THE PROGRAMS IN THE KERNEL DO NOT AGREE with this explanation. That is a bug in nsnet; please report it with:",
        );
        lines.iter().for_each(|line| output::note(line));
    }
    Ok(ExitCode::SUCCESS)
}

/// What the answer does not hold for.
fn notes(host: &Host, state: &State, explainer: &Explainer, arrival: &Arrival) -> anyhow::Result<Vec<String>> {
    let mut notes = Vec::new();
    if !explainer.is_same_build() {
        notes.push(
            "the programs on the interfaces are of another build of nsnet: this is what this one's would do".to_owned(),
        );
    }
    let (id, hook) = match arrival.entrance {
        Entrance::Namespace(id) => (id, Hook::Namespace),
        Entrance::Host(id) => (id, Hook::Host),
        Entrance::Uplink { port, .. } => (port, Hook::Uplink),
    };
    let members = state.members();
    let member = members.iter().find(|member| member.port == id).map(|member| member.interface.to_owned());
    let interface = member.or_else(|| state.uplink(id).map(|uplink| uplink.interface.clone()));
    if let Some(interface) = interface
        && !host.dataplane.is_attached(&host.netlink, id, &interface, hook)?
    {
        notes.push(format!("no program is on {interface}, so none of this happens there; `nsnet status` tells more"));
    }
    Ok(notes)
}

/// The frame, and where it comes in.
fn arrival(host: &Host, state: &State, args: &ExplainArgs) -> anyhow::Result<Arrival> {
    let (frame, entrance) = match (&args.pcap, args.what) {
        (Some(path), _) => {
            let number = args.frame.unwrap_or(1) as usize;
            (capture::frame_of(&path.display().to_string(), number, &read(path)?)?, entrance(state, args)?)
        }
        (None, None) => {
            if std::io::stdin().is_terminal() {
                bail!("--hex reads the frame from stdin: `xxd -p FILE | nsnet explain --from NS --hex`");
            }
            let text = String::from_utf8(read(Path::new("-"))?).context("cannot read the frame: it is no text")?;
            (capture::from_hex(&text)?, entrance(state, args)?)
        }
        (None, Some(what)) => composed(host, state, args, what)?,
    };
    Ok(Arrival { entrance, frame, gso_size: args.gso })
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    /// More than any capture that somebody looks into frame by frame.
    const MOST: u64 = 1 << 30;
    let what = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        std::io::stdin().lock().take(MOST).read_to_end(&mut bytes).with_context(what)?;
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MOST).read_to_end(&mut bytes)).with_context(what)?;
    }
    Ok(bytes)
}

/// A frame from words.
fn composed(host: &Host, state: &State, args: &ExplainArgs, what: What) -> anyhow::Result<(Vec<u8>, Entrance)> {
    let (source, destination) = match args.ends.as_slice() {
        [destination] => (None, *destination),
        [source, destination] => (Some(*source), *destination),
        _ => bail!("say to whom: `nsnet explain --from NS icmp 192.0.2.7`"),
    };
    let packet = Packet {
        what,
        ttl: args.ttl,
        length: args.length,
        whole: args.df,
        fragment: args.fragment,
        id: args.id,
        flags: args.flags,
        numbers: (args.seq, args.ack),
    };
    packet.check(source, destination)?;
    let wish = Wish { what, source, destination, from_mac: args.from_mac, to_mac: args.to_mac };
    let Departure { entrance, ends } = match &args.from {
        Sender::Namespace(name) => from_namespace(host, state, name, args.network.as_ref(), &wish)?,
        Sender::Host => from_host(host, state, &wish)?,
        Sender::Outside(name) => from_outside(host, uplink(state, name.as_deref())?, &wish)?,
    };
    Ok((packet.frame(&ends)?, entrance))
}

/// Where a whole frame comes in.
fn entrance(state: &State, args: &ExplainArgs) -> anyhow::Result<Entrance> {
    match &args.from {
        Sender::Outside(name) => {
            let uplink = uplink(state, name.as_deref())?;
            Ok(Entrance::Uplink { port: uplink.port(), ifindex: uplink.ifindex })
        }
        Sender::Host => {
            let is_it = |name: &Name| args.network.as_ref().is_none_or(|wanted| wanted == name);
            let networks: Vec<_> = state.networks.values().filter(|network| is_it(&network.name)).collect();
            match networks.as_slice() {
                [network] => Ok(Entrance::Host(network.port())),
                _ => bail!("{} networks are meant; --network NAME says by which the host sends it", networks.len()),
            }
        }
        Sender::Namespace(name) => {
            let is_it = |network: &Name| args.network.as_ref().is_none_or(|wanted| wanted == network);
            let ports: Vec<_> =
                state.attachments.iter().filter(|port| port.ns == *name && is_it(&port.network)).collect();
            match ports.as_slice() {
                [port] => Ok(Entrance::Namespace(port.port())),
                [] => bail!("namespace {name} is in no such network; `nsnet network list` shows who is where"),
                _ => {
                    bail!("namespace {name} is in {} networks; --network NAME says into which it is sent", ports.len())
                }
            }
        }
    }
}

fn uplink<'a>(state: &'a State, name: Option<&str>) -> anyhow::Result<&'a Uplink> {
    let known = || state.uplinks.iter().map(|uplink| uplink.interface.as_str()).collect::<Vec<_>>().join(", ");
    match (name, state.uplinks.as_slice()) {
        (_, []) => {
            bail!("this host has no uplink; a network with a way out makes one: `nsnet network add --masquerade`")
        }
        (None, [only]) => Ok(only),
        (None, _) => bail!("there are several uplinks; say --from uplink:IF, of {}", known()),
        (Some(name), all) => match all.iter().find(|uplink| uplink.interface == name) {
            Some(uplink) => Ok(uplink),
            None => bail!("{name} is no uplink; there are {}", known()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senders() {
        let parsed = |text: &str| text.parse::<Sender>().map(|sender| format!("{sender:?}"));
        assert_eq!(parsed("host").as_deref(), Ok("Host"));
        assert_eq!(parsed("uplink").as_deref(), Ok("Outside(None)"));
        assert_eq!(parsed("uplink:eth0").as_deref(), Ok("Outside(Some(\"eth0\"))"));
        assert_eq!(parsed("ns:host").as_deref(), Ok("Namespace(Name(\"host\"))"));
        assert_eq!(parsed("red").as_deref(), Ok("Namespace(Name(\"red\"))"));
        for bad in ["", "a/b", "ns:", "bridge:br0"] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }
}
