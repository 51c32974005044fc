//! What was looked up, put in order: which stage of the core asked, what it went by, and what it came to.
//!
//! The core does not say which of its parts is at work. It shows: by the program that runs, the table that is asked, and
//! whether it is about the frame's sender or its destination.

use nsnet_common::datagram::Kind;
use nsnet_common::layout::{FlowKey, PortId, Publish, names, port_of_mac};
use nsnet_common::open::Lead;
use nsnet_common::packet::Buffer;
use nsnet_common::tables::{Inserted, Route};
use nsnet_common::verdict::{DropReason, Egress, Outcome, Verdict};
use nsnet_common::wire::arp::Arp;
use nsnet_common::wire::icmpv6::{Neighbour, Type};
use nsnet_common::wire::ipv4::Ipv4;
use nsnet_common::wire::ipv6::Ipv6;
use nsnet_common::wire::{EtherType, Ethernet, IpAddress, IpProtocol};
use nsnet_common::packet::Packet as _;

use super::entries::{Entry, Words, tuple};
use super::event::{Change, Count, Event, Lookup};
use super::fields::changed;
use super::walk::{Pass, Step};

/// A part of the core that a frame went through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Its name.
    pub name: &'static str,
    /// What it came to.
    pub says: String,
    /// What it went by: the last entry that it found, or looked for.
    pub by: Option<Entry>,
    /// All that it looked up, each once.
    pub lookups: Vec<Entry>,
}

/// The stages, by their names.
mod stage {
    pub(super) const PORT: &str = "port";
    pub(super) const GUARD: &str = "guard";
    pub(super) const SWITCH: &str = "switch";
    pub(super) const ANSWER: &str = "answer";
    pub(super) const FLOOD: &str = "flood";
    pub(super) const PACKET: &str = "packet";
    pub(super) const CONNTRACK: &str = "conntrack";
    pub(super) const FRAGMENT: &str = "fragment";
    pub(super) const RELATED: &str = "icmp error";
    pub(super) const OPEN: &str = "open";
    pub(super) const PUBLISH: &str = "publish";
    pub(super) const ROUTE: &str = "route";
    pub(super) const NAT: &str = "nat";
    pub(super) const SEND: &str = "send";
    pub(super) const REWRITE: &str = "rewrite";
    pub(super) const CUT: &str = "cut";
    pub(super) const REFUSE: &str = "refuse";
}

/// The stages of one frame's way.
pub fn stages(pass: &Pass, words: &Words<'_>) -> Vec<Stage> {
    let sender = Sender::of(&pass.before);
    let mut all = Vec::new();
    let mut before = &pass.before;
    for (position, step) in pass.steps.iter().enumerate() {
        let mut sorter = Sorter { step, sender: &sender, is_first: position == 0, stages: Vec::new(), has_sent: false };
        sorter.sort(words);
        all.extend(sorter.finish(before, words));
        before = &step.frame;
    }
    all
}

/// What the frame says about who sent it, and to whom.
struct Sender {
    eth: Option<Ethernet>,
    ip: Option<IpAddress>,
    /// An address that it claims besides.
    claims: Option<IpAddress>,
}

impl Sender {
    fn of(frame: &[u8]) -> Self {
        let frame = Buffer::new(frame);
        let eth = frame.view::<Ethernet>(0).copied();
        let neighbour = || frame.view::<Neighbour>(Ethernet::LEN + Ipv6::LEN);
        let (ip, claims) = match eth.map(|eth| eth.ethertype()) {
            Some(EtherType::IPV4) => (frame.view::<Ipv4>(Ethernet::LEN).map(|ip| IpAddress::v4(ip.source())), None),
            Some(EtherType::ARP) => (frame.view::<Arp>(Ethernet::LEN).map(|arp| IpAddress::v4(arp.sender_ip)), None),
            Some(EtherType::IPV6) => {
                let ip = frame.view::<Ipv6>(Ethernet::LEN);
                let claims = neighbour().filter(|message| {
                    ip.is_some_and(|ip| ip.next_header() == IpProtocol::ICMPV6)
                        && message.head.kind == Type::NEIGHBOUR_ADVERTISEMENT
                });
                (ip.map(Ipv6::source), claims.map(|message| message.target))
            }
            _ => (None, None),
        };
        Self { eth, ip, claims }
    }

    fn has(&self, ip: IpAddress) -> bool {
        self.ip == Some(ip) || self.claims == Some(ip)
    }
}

/// Sorts what one program did.
struct Sorter<'a> {
    step: &'a Step,
    sender: &'a Sender,
    is_first: bool,
    stages: Vec<Stage>,
    has_sent: bool,
}

impl Sorter<'_> {
    fn sort(&mut self, words: &Words<'_>) {
        let events = &self.step.events;
        for (position, event) in events.iter().enumerate() {
            let (before, after) = (&events[..position], &events[position + 1..]);
            if let Event::Lookup(lookup) = event
                && let Some(name) = self.stage_of(lookup, before, after)
            {
                let entry = words.lookup(lookup);
                let stage = self.at(name);
                if !stage.lookups.contains(&entry) {
                    stage.lookups.push(entry);
                }
            }
        }
    }

    fn at(&mut self, name: &'static str) -> &mut Stage {
        let position = self.stages.iter().position(|stage| stage.name == name);
        let position = position.unwrap_or_else(|| {
            self.stages.push(Stage { name, says: String::new(), by: None, lookups: Vec::new() });
            self.stages.len() - 1
        });
        &mut self.stages[position]
    }

    /// Who asks that, given what was done before it and after; `None` for what is asked anew by each program.
    fn stage_of(&self, lookup: &Lookup, before: &[Event], after: &[Event]) -> Option<&'static str> {
        let is_there = |events: &[Event], is_it: fn(&Lookup) -> bool| {
            events.iter().any(|event| matches!(event, Event::Lookup(lookup) if is_it(lookup)))
        };
        let is_new = !before.iter().any(|event| matches!(event, Event::Lookup(_)));
        Some(match self.step.program {
            names::FROM_NAMESPACE | names::FROM_HOST if is_new => stage::PORT,
            names::FROM_NAMESPACE | names::FROM_HOST => self.of_switch(lookup, before),
            names::FROM_UPLINK if matches!(lookup, Lookup::Uplink(..)) && is_new => stage::PORT,
            names::FROM_UPLINK if before.len() == 1 => stage::PORT,
            names::REFUSED => stage::REFUSE,
            _ if is_new => return None,
            names::CUT => stage::CUT,
            program => {
                let is_opened = program == names::OPENED;
                let is_nat = is_there(before, |lookup| matches!(lookup, Lookup::Mapping(..) | Lookup::Socket(..)));
                let is_made = before.iter().any(|event| matches!(event, Event::Change(Change::Flow(..))));
                let asks_routes = is_there(after, |lookup| matches!(lookup, Lookup::Route(..)));
                let gateway = before.iter().rev().find_map(|event| match event {
                    Event::Lookup(Lookup::Policy(_, Some(policy))) => Some(policy.gateway),
                    Event::Lookup(_) | Event::Change(_) | Event::Count(_) => None,
                });
                match lookup {
                    Lookup::Flow(..) if is_opened => stage::NAT,
                    Lookup::Flow(..) => stage::CONNTRACK,
                    Lookup::Mapping(..) | Lookup::Socket(..) => stage::NAT,
                    Lookup::Usage(..) if is_nat => stage::NAT,
                    Lookup::Published(..) if is_nat || is_made => stage::NAT,
                    Lookup::Published(..) | Lookup::Local(..) => stage::PUBLISH,
                    Lookup::Publish(..) if is_opened => stage::PUBLISH,
                    Lookup::Publish(..) => stage::CONNTRACK,
                    Lookup::Route(..) | Lookup::Uplink(..) => stage::ROUTE,
                    Lookup::Fragment(..) | Lookup::Holding(..) | Lookup::Held(..) => stage::FRAGMENT,
                    Lookup::Policy(..) if is_opened => stage::OPEN,
                    Lookup::Policy(..) if asks_routes => stage::ROUTE,
                    Lookup::Policy(..) => stage::CONNTRACK,
                    Lookup::Port(id, _) if !is_opened && asks_routes && gateway == Some(*id) => stage::ROUTE,
                    Lookup::Port(..) if !is_opened || is_made => stage::SEND,
                    Lookup::Port(..)
                    | Lookup::Network(..)
                    | Lookup::Address(..)
                    | Lookup::Subnet(..)
                    | Lookup::Station(..)
                    | Lookup::Foreign(..)
                    | Lookup::FloodClock(..)
                    | Lookup::RefusalClock(..)
                    | Lookup::Usage(..) => stage::OPEN,
                }
            }
        })
    }

    fn of_switch(&self, lookup: &Lookup, before: &[Event]) -> &'static str {
        let looked = |is_it: fn(&Lookup) -> bool| {
            before.iter().any(|event| matches!(event, Event::Lookup(lookup) if is_it(lookup)))
        };
        let eth = self.sender.eth;
        let is_group = eth.is_some_and(|eth| eth.destination.is_group());
        match lookup {
            Lookup::Address(key, _) if self.sender.has(key.ip) => stage::GUARD,
            Lookup::Address(..) => stage::ANSWER,
            Lookup::Subnet(ip, _) if self.sender.has(*ip) => stage::GUARD,
            Lookup::Station(key, _) if eth.is_none_or(|eth| eth.destination != key.mac) => stage::GUARD,
            Lookup::Foreign(..) => stage::GUARD,
            Lookup::Network(..) | Lookup::FloodClock(..) => stage::FLOOD,
            Lookup::Port(..) if looked(|lookup| matches!(lookup, Lookup::Network(..))) => stage::FLOOD,
            Lookup::Port(..) if is_group => stage::ANSWER,
            Lookup::Port(id, _)
                if self.is_learned_from() && eth.is_some_and(|eth| port_of_mac(eth.source) == *id) && before.len() <= 2 =>
            {
                stage::GUARD
            }
            Lookup::Port(..)
            | Lookup::Subnet(..)
            | Lookup::Station(..)
            | Lookup::RefusalClock(..)
            | Lookup::Policy(..)
            | Lookup::Flow(..)
            | Lookup::Mapping(..)
            | Lookup::Usage(..)
            | Lookup::Published(..)
            | Lookup::Publish(..)
            | Lookup::Route(..)
            | Lookup::Socket(..)
            | Lookup::Fragment(..)
            | Lookup::Holding(..)
            | Lookup::Held(..)
            | Lookup::Uplink(..)
            | Lookup::Local(..) => stage::SWITCH,
        }
    }

    /// Whether the frame is of a station behind a port that learns.
    fn is_learned_from(&self) -> bool {
        self.arrival().is_some_and(|port| port.learns() && self.sender.eth.is_some_and(|eth| eth.source != port.mac()))
    }

    fn arrival(&self) -> Option<nsnet_common::layout::Port> {
        self.step.events.iter().find_map(|event| match event {
            Event::Lookup(Lookup::Port(_, port)) => *port,
            Event::Lookup(_) | Event::Change(_) | Event::Count(_) => None,
        })
    }

    /// Adds the stages that asked nothing, and says what each came to.
    fn finish(mut self, frame: &[u8], words: &Words<'_>) -> Vec<Stage> {
        let reason = match self.step.outcome {
            Err(reason) | Ok(Verdict::Refuse(reason)) => Some(reason),
            Ok(_) => None,
        };
        // What a refusal says of the reason, the step before has said.
        let dropped_at = reason.filter(|_| self.step.program != names::REFUSED).map(|reason| stage_of_drop(self.step.program, reason));
        self.add_silent(dropped_at);
        if let Some(name) = dropped_at {
            self.at(name);
            let end = self.stages.iter().position(|stage| stage.name == name).unwrap_or_default();
            // What was asked before by later stages would be none of this packet's way.
            self.stages.swap_remove_to_end(end);
        }
        let is_sent = matches!(self.step.outcome, Ok(Verdict::Deliver(_)));
        self.has_sent = is_sent;
        if is_sent && frame != self.step.frame && self.step.program != names::REFUSED && self.step.program != names::FROM_NAMESPACE && self.step.program != names::FROM_HOST {
            self.at(stage::REWRITE);
        }
        let mut stages = std::mem::take(&mut self.stages);
        for stage in &mut stages {
            let is_end = dropped_at == Some(stage.name);
            stage.says = match reason.filter(|_| is_end) {
                Some(reason) => format!("dropped: {}", reason.sentence()),
                None => self.says(stage.name, frame, words),
            };
            stage.by = stage.lookups.iter().rfind(|entry| entry.is_found).or(stage.lookups.last()).cloned();
        }
        if let Some(name) = dropped_at
            && let Some(position) = stages.iter().position(|stage| stage.name == name)
            && stages[position].by.is_none()
        {
            // What was looked at last decided, whoever asked.
            stages[position].by = stages[..position].iter().rev().find_map(|stage| stage.by.clone());
        }
        stages
    }

    fn add_silent(&mut self, dropped_at: Option<&'static str>) {
        let is_past = |name| dropped_at != Some(name);
        let mut silent = Vec::new();
        match self.step.program {
            names::FROM_NAMESPACE if is_past(stage::PORT) => silent.push(stage::GUARD),
            names::ROUTED if is_past(stage::PACKET) => silent.push(stage::PACKET),
            names::FROM_UPLINK if is_past(stage::PACKET) && self.step.outcome != Ok(Verdict::Pass) => silent.push(stage::PACKET),
            names::RELATED => silent.push(stage::RELATED),
            names::FRAGMENTED => silent.push(stage::FRAGMENT),
            names::CUT => silent.push(stage::CUT),
            names::REFUSED => silent.push(stage::REFUSE),
            _ => {}
        }
        for name in silent {
            let is_there = self.stages.iter().any(|stage| stage.name == name);
            if !is_there {
                let place = self.stages.iter().take_while(|stage| stage.name == stage::PORT).count();
                self.stages.insert(place, Stage { name, says: String::new(), by: None, lookups: Vec::new() });
            }
        }
        // Where nothing was asked because the destination itself says it.
        if matches!(self.step.program, names::FROM_NAMESPACE | names::FROM_HOST)
            && dropped_at.is_none()
            && !self.stages.iter().any(|stage| matches!(stage.name, stage::SWITCH | stage::ANSWER | stage::FLOOD))
        {
            self.at(stage::SWITCH);
        }
    }
}
