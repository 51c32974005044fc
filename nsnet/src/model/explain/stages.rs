//! Which part of the core a frame went through, what each went by, and what it came to.

use nsnet_common::datagram::{Datagram, Kind};
use nsnet_common::layout::{flow_flags, names};
use nsnet_common::open::Lead;
use nsnet_common::tables::{Inserted, Route, Stage};
use nsnet_common::verdict::{Egress, Verdict};

use super::entries::{Entry, ROUTES, SOCKETS, Words, tuple};
use super::event::{Change, Count, Event, Lookup};
use super::fields;
use super::walk::{Pass, Step};

/// A part of the core, and what it came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// What it came to.
    pub says: String,
    /// What it went by: the last entry that it found, or else the last that it looked for.
    pub by: Option<Entry>,
    /// All that it looked up, each once.
    pub lookups: Vec<Entry>,
    /// Whether it drops the packet.
    pub is_drop: bool,
}

/// The parts that a frame went through, in order.
pub fn parts(pass: &Pass, words: &Words<'_>) -> Vec<Part> {
    let mut all: Vec<Part> = Vec::new();
    for (position, step) in pass.steps.iter().enumerate() {
        let mut parts = Vec::new();
        let mut part = Draft::new(None);
        for event in &step.events {
            if let Event::Stage(stage) = event {
                if part.stage != Some(*stage) {
                    parts.push(std::mem::replace(&mut part, Draft::new(Some(*stage))));
                }
            } else {
                part.events.push(event);
            }
        }
        parts.push(part);
        // Each program asks first which port it is: the first one's answer is enough.
        let parts = parts.into_iter().filter(|part| position == 0 || part.stage.is_some());
        let parts: Vec<Draft<'_>> = parts.collect();
        let last = parts.len().saturating_sub(1);
        for (number, part) in parts.into_iter().enumerate() {
            all.push(part.finish(step, number == last, words));
        }
    }
    // The guard most often, and what drops a packet at times, ask for nothing: they go by what was read before.
    let mut last = None;
    for part in &mut all {
        if part.by.is_none() && (part.name == name(Stage::Guard) || part.is_drop) {
            part.by.clone_from(&last);
        }
        last = part.by.clone().or(last);
    }
    all
}

/// What a part did.
struct Draft<'a> {
    stage: Option<Stage>,
    events: Vec<&'a Event>,
}

impl Draft<'_> {
    fn new(stage: Option<Stage>) -> Self {
        Self { stage, events: Vec::new() }
    }

    fn lookups(&self) -> impl Iterator<Item = &Lookup> {
        self.events.iter().filter_map(|event| match event {
            Event::Lookup(lookup) => Some(lookup),
            Event::Stage(_) | Event::Change(_) | Event::Count(_) => None,
        })
    }

    fn changes(&self) -> impl Iterator<Item = &Change> {
        self.events.iter().filter_map(|event| match event {
            Event::Change(change) => Some(change),
            Event::Stage(_) | Event::Lookup(_) | Event::Count(_) => None,
        })
    }

    fn counts(&self) -> impl Iterator<Item = &Count> {
        self.events.iter().filter_map(|event| match event {
            Event::Count(count) => Some(count),
            Event::Stage(_) | Event::Lookup(_) | Event::Change(_) => None,
        })
    }

    fn finish(self, step: &Step, is_last: bool, words: &Words<'_>) -> Part {
        let mut lookups = Vec::new();
        for entry in self.lookups().map(|lookup| words.lookup(lookup)) {
            if !lookups.contains(&entry) {
                lookups.push(entry);
            }
        }
        let reason = match step.outcome {
            Err(reason) | Ok(Verdict::Refuse(reason)) if is_last && self.stage != Some(Stage::Refuse) => Some(reason),
            Ok(_) | Err(_) => None,
        };
        let (says, by) = match reason {
            Some(reason) => (
                format!("dropped, {}: {}", reason.label(), reason.sentence()),
                lookups.iter().rfind(|it| it.table != names::HOLDING),
            ),
            None => {
                let tells = deciding(self.stage);
                let of_stage = |entry: &&Entry| tells.is_empty() || tells.contains(&entry.table);
                let by = lookups.iter().filter(of_stage).rfind(|entry| entry.is_found);
                (self.says(step, is_last, words), by.or(lookups.iter().rfind(of_stage)))
            }
        };
        Part { name: self.stage.map_or("port", name), says, by: by.cloned(), lookups, is_drop: reason.is_some() }
    }

    /// What the part came to, when that was no drop.
    fn says(&self, step: &Step, is_last: bool, words: &Words<'_>) -> String {
        let delivered = match step.outcome {
            Ok(Verdict::Deliver(egress)) if is_last => Some(way_out(egress, words)),
            Ok(_) | Err(_) => None,
        };
        match self.stage {
            None if is_last => "none of the dataplane's: left to the host".to_owned(),
            None => "the frame is counted as received".to_owned(),
            Some(Stage::Guard) => self.guard(),
            Some(Stage::Switch) => match delivered {
                Some(way) => format!("the destination is there: {way}"),
                None if step.outcome == Ok(Verdict::Route) => "the destination is the gateway: to be routed".to_owned(),
                None => "the destination is a group, or unknown".to_owned(),
            },
            Some(Stage::Answer) => {
                let is_answered = self.counts().any(|count| matches!(count, Count::Answered(_)));
                match delivered {
                    Some(_) if is_answered => "answered here: the address is known".to_owned(),
                    Some(way) => format!("the owner is to answer: {way}"),
                    None => "no question that is answered here".to_owned(),
                }
            }
            Some(Stage::Flood) => self.flood(words),
            Some(Stage::Packet) => read(&step.datagram),
            Some(Stage::Conntrack) => self.conntrack(step.is_known),
            Some(Stage::Fragment) => self.fragment(step),
            Some(Stage::Related) => match delivered {
                Some(way) => format!("about a packet of a flow, which is translated back: {way}"),
                None => "about a packet of no flow".to_owned(),
            },
            Some(Stage::Lead) => self.lead(step.lead, words),
            Some(Stage::Open) if step.lead == Lead::KeepOrPool => "it may open a flow, masqueraded".to_owned(),
            Some(Stage::Open) => "it may open a flow".to_owned(),
            Some(Stage::Publish) => {
                let place = self
                    .lookups()
                    .find_map(|lookup| if let Lookup::Published(.., place) = lookup { *place } else { None });
                let is_used = self.counts().any(|count| matches!(count, Count::PublishHit(_)));
                match place {
                    Some(place) if is_used => format!("to a published port: {}", words.names.published(place)),
                    Some(_) => "published, but at no address that this is".to_owned(),
                    None => "to no published port".to_owned(),
                }
            }
            Some(Stage::Route) => {
                let route = self.lookups().find_map(|lookup| {
                    if let Lookup::Route(_, _, route, hop) = lookup { Some((*route, hop)) } else { None }
                });
                route.map_or_else(
                    || "no route was asked for".to_owned(),
                    |(route, hop)| match route {
                        Route::Forward => format!("the routes lead out by {}", words.names.interface(hop.ifindex)),
                        Route::Local | Route::Unreachable | Route::Prohibited | Route::Blackhole => {
                            words.route(route, hop)
                        }
                    },
                )
            }
            Some(Stage::Nat) => self.nat(step, words),
            Some(Stage::Send) => match (delivered, step.outcome) {
                (Some(way), _) => way,
                (None, Ok(Verdict::Cut)) => "too long for the way out, and may be cut".to_owned(),
                (None, _) => format!(
                    "by {}",
                    self.lookups().next().map_or_else(String::new, |lookup| words.lookup(lookup).entry)
                ),
            },
            Some(Stage::Cut) => "cut into pieces for the way out, each of which comes in again".to_owned(),
            Some(Stage::Refuse) => match delivered {
                Some(way) => {
                    let error = fields::fields(&step.frame).into_iter().find(|field| field.name == "ICMP message");
                    let error = error.map_or_else(String::new, |field| format!(" ({})", field.value));
                    format!("the sender is told{error}: {way}")
                }
                None => self.silence().to_owned(),
            },
        }
    }

    fn guard(&self) -> String {
        let is_learned = self.changes().any(|change| matches!(change, Change::Station(..)));
        let is_behind = self.lookups().any(|lookup| matches!(lookup, Lookup::Station(..)));
        match (is_learned, is_behind) {
            (true, _) => "the sender is a station behind the port, learned now".to_owned(),
            (false, true) => "the sender is a station behind the port".to_owned(),
            (false, false) => "the sender is who it says it is".to_owned(),
        }
    }

    fn flood(&self, words: &Words<'_>) -> String {
        let to: Vec<String> = self
            .counts()
            .filter_map(|count| if let Count::Sent(port, _) = count { Some(words.names.port(*port)) } else { None })
            .collect();
        if to.is_empty() {
            "a copy to nobody: there is no other port".to_owned()
        } else {
            format!("a copy to {}", to.join(", "))
        }
    }

    fn lead(&self, lead: Lead, words: &Words<'_>) -> String {
        let subnets = self.lookups().filter_map(|lookup| {
            if let Lookup::Subnet(ip, Some(network)) = lookup { Some((*ip, *network)) } else { None }
        });
        let network = subnets.last().map(|(_, network)| words.names.network(network));
        match (lead, network) {
            (Lead::Through, Some(network)) => {
                format!("to a namespace of {network} by way of the gateway: nothing is translated, nor remembered")
            }
            (Lead::Pass, _) => "to no namespace's own address".to_owned(),
            (_, Some(network)) => format!("to an address of {network}"),
            (_, None) => "to an address of no network".to_owned(),
        }
    }

    fn conntrack(&self, is_known: bool) -> String {
        let flow = self.lookups().find_map(|lookup| if let Lookup::Flow(_, _, flow) = lookup { *flow } else { None });
        match flow {
            Some(flow) if is_known => format!("of a flow that is {}", flow.about.state.label()),
            Some(_) => "of no flow: the one that was is over".to_owned(),
            None => "of no flow".to_owned(),
        }
    }

    fn fragment(&self, step: &Step) -> String {
        let released = self.changes().filter(|change| matches!(change, Change::LetGo(_, true))).count();
        if step.outcome == Ok(Verdict::Again) {
            return format!("the first fragment, for which {released} have waited: all of them come in again");
        }
        if self.changes().any(|change| matches!(change, Change::Fragment(..))) {
            return "the first fragment: those that follow go its way".to_owned();
        }
        "a later fragment: it goes its first one's way".to_owned()
    }

    fn nat(&self, step: &Step, words: &Words<'_>) -> String {
        let made = self.changes().find_map(|change| {
            let Change::Flow(_, key, flow, Inserted::Yes) = change else { return None };
            (!flow.about.has(flow_flags::REPLY)).then_some((key, flow))
        });
        let Some((key, flow)) = made else {
            return match step.lead {
                Lead::Pass => "to no endpoint that is mapped: the host's".to_owned(),
                Lead::Host => "to no endpoint that is mapped".to_owned(),
                Lead::Through | Lead::Settled | Lead::KeepOrPool | Lead::Pool => {
                    "by the flow that another packet has made".to_owned()
                }
            };
        };
        let port = |port: [u8; 2]| u16::from_be_bytes(port);
        let (old, new) = (port(key.source_port), port(flow.about.source_port));
        let becomes = flow.other_key(key).turned(flow.about.other_side);
        let kept = match (key.source == flow.source, old == new) {
            (true, true) => "nothing hides the sender",
            (_, true) => "the sender keeps its port",
            (_, false) if flow.about.has(flow_flags::POOLED) => "the port is one of the pool",
            (_, false) => "the port is another",
        };
        format!(
            "a new flow, {kept}: {} becomes {}, answers come to {}",
            tuple(key),
            tuple(&becomes),
            words.names.port(flow.about.out)
        )
    }

    /// Why nobody is told.
    fn silence(&self) -> &'static str {
        if self.lookups().any(|lookup| matches!(lookup, Lookup::RefusalClock(..))) {
            "the sender is not told: there were too many errors just now"
        } else {
            "the sender is not told: no error may be about such a packet, or nobody could speak"
        }
    }
}

fn read(datagram: &Datagram) -> String {
    let what = match datagram.kind {
        Kind::LaterFragment => "a later fragment, without ports",
        _ if datagram.is_first_fragment => "a first fragment",
        Kind::IcmpError => "an ICMP error",
        Kind::Link => "for the link only",
        Kind::Tcp | Kind::Udp | Kind::Sctp | Kind::EchoRequest | Kind::EchoReply | Kind::Other => "",
    };
    if what.is_empty() { tuple(&datagram.key) } else { format!("{}, {what}", tuple(&datagram.key)) }
}

/// The way out.
pub fn way_out(egress: Egress, words: &Words<'_>) -> String {
    match egress {
        Egress::Namespace(port) => format!("out by {}", words.names.port(port)),
        Egress::Host(port) => format!("up to the host, as received on {}", words.names.interface(port.ifindex())),
        Egress::Uplink(index) => format!("out by {}", words.names.interface(index)),
        Egress::Neighbour(index) => {
            format!("out by {}, to the next hop, whose MAC the kernel finds", words.names.interface(index))
        }
    }
}

/// The tables whose entries decide in a part of the core; those of the others are read for what is in them. Empty for all.
fn deciding(stage: Option<Stage>) -> &'static [&'static str] {
    match stage {
        Some(Stage::Flood) => &[names::NETWORKS],
        Some(Stage::Answer) => &[names::ADDRESSES],
        Some(Stage::Conntrack | Stage::Related) => &[names::FLOWS4, names::FLOWS6, names::YOUNG4, names::YOUNG6],
        Some(Stage::Lead) => &[names::SUBNETS, names::ADDRESSES],
        Some(Stage::Open) => &[names::USAGE],
        Some(Stage::Publish) => &[names::PUBLISHED, names::PUBLISHES],
        Some(Stage::Route) => &[ROUTES],
        Some(Stage::Nat) => &[names::MAPPINGS, names::FLOWS4, names::FLOWS6, names::YOUNG4, names::YOUNG6, SOCKETS],
        Some(Stage::Fragment) => &[names::FRAGMENTS],
        Some(Stage::Refuse) => &[names::REFUSAL_CLOCKS],
        None | Some(Stage::Guard | Stage::Switch | Stage::Packet | Stage::Send | Stage::Cut) => &[],
    }
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Guard => "guard",
        Stage::Switch => "switch",
        Stage::Answer => "answer",
        Stage::Flood => "flood",
        Stage::Packet => "packet",
        Stage::Conntrack => "conntrack",
        Stage::Fragment => "fragment",
        Stage::Related => "icmp error",
        Stage::Lead => "lead",
        Stage::Open => "open",
        Stage::Publish => "publish",
        Stage::Route => "route",
        Stage::Nat => "nat",
        Stage::Send => "send",
        Stage::Cut => "cut",
        Stage::Refuse => "refuse",
    }
}
