//! What the dataplane tells who captures, as people see it: records with a comment, and the filters that choose among them.

pub mod interfaces;
pub mod join;
pub mod pcapng;

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;
use nsnet_common::capture::kinds;
use nsnet_common::layout::Event;
use nsnet_common::verdict::DropReason;
use nsnet_common::wire::{EtherType, Ethernet, IpProtocol};

use self::interfaces::Interfaces;
use super::flow::parse_protocol;
use super::headers::{Headers, Protocol};

/// A frame that was shown: what was said about it, and the part of it that was captured.
#[derive(Clone, Debug)]
pub struct Shown {
    /// What was said.
    pub event: Event,
    /// The frame's first bytes, with its VLAN tag in its place.
    pub bytes: Vec<u8>,
    /// Its headers. The length is that of the whole frame.
    pub headers: Headers,
}

impl Shown {
    /// The frame of an event; `bytes` are those behind it.
    pub fn new(event: Event, bytes: &[u8]) -> Self {
        let captured = bytes.get(..event.captured as usize).unwrap_or(bytes);
        let (bytes, length) = with_tag(captured, event.length, event.tag);
        let headers = Headers::read(&bytes, length);
        Self { event, bytes, headers }
    }
}

/// A frame as it was on the wire: the kernel takes the VLAN tag out of it.
pub fn with_tag(bytes: &[u8], length: u32, tag: [u8; 4]) -> (Vec<u8>, u32) {
    /// Behind the two MACs.
    const AT: usize = Ethernet::LEN - size_of::<EtherType>();
    match bytes.split_at_checked(AT) {
        Some((macs, rest)) if tag != [0; 4] => ([macs, &tag, rest].concat(), length + tag.len() as u32),
        _ => (bytes.to_vec(), length),
    }
}

/// One packet of a capture.
#[derive(Clone, Debug)]
pub struct Record {
    /// The packet's number in the capture: the same before and after it was changed.
    pub id: u64,
    /// Which side of a change it is, if it was changed.
    pub side: Side,
    /// Index of the interface that it was seen at.
    pub ifindex: u32,
    /// Whether it came in there; else it left.
    pub is_inbound: bool,
    /// What became of it.
    pub fate: Fate,
    /// What there is to say of it: the id and what became of it, a change, offloads.
    pub comment: String,
    /// The frame.
    pub shown: Shown,
}

impl Record {
    /// Whether it is the first record of its packet.
    pub fn is_new(&self) -> bool {
        self.side != Side::After && self.shown.event.kind != kinds::NOTICE
    }
}

/// Which side of a change a record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The frame was not changed.
    Only,
    /// It was changed after this.
    Before,
    /// It was changed before this.
    After,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was sent on.
    Forwarded,
    /// It was dropped.
    Dropped(Option<DropReason>),
    /// The host's own stack got it.
    Passed,
    /// It is not known.
    Unknown,
}

/// Which packets are wanted: those to which everything applies that is set. Of a packet that is changed it is enough
/// that one of its sides is meant.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// At one of these interfaces, by index.
    pub interfaces: Option<HashSet<u32>>,
    /// From or to one of these.
    pub host: Option<IpNet>,
    /// From or to this port.
    pub port: Option<u16>,
    /// Of this protocol.
    pub protocol: Option<Protocol>,
}

impl Filter {
    /// Whether a packet that was shown as these is wanted.
    pub fn wants(&self, sides: &[&Shown], interfaces: &Interfaces) -> bool {
        let is_at = |wanted: &HashSet<u32>| {
            let at = sides.iter().flat_map(|shown| {
                [Some(shown.event.ifindex), Some(shown.event.egress), interfaces.index_of(shown.event.port)]
            });
            at.flatten().any(|index| wanted.contains(&index))
        };
        self.interfaces.as_ref().is_none_or(is_at) && sides.iter().any(|shown| self.means(&shown.headers))
    }

    fn means(&self, headers: &Headers) -> bool {
        let is_host = |net: &IpNet| {
            let ends = headers.addresses.map(|(source, destination)| [source, destination].map(IpAddr::from));
            ends.is_some_and(|ends| ends.iter().any(|ip| net.contains(ip)))
        };
        self.host.as_ref().is_none_or(is_host)
            && self.port.is_none_or(|port| headers.ports.is_some_and(|(from, to)| from == port || to == port))
            && self.protocol.is_none_or(|protocol| headers.protocol == protocol)
    }
}

/// `arp`, or a protocol over IP.
pub fn parse_capture_protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "arp" => Ok(Protocol::Ethernet(EtherType::ARP)),
        "icmp6" => Ok(Protocol::Ip(IpProtocol::ICMPV6)),
        text => parse_protocol(text).map(Protocol::Ip).map_err(|why| format!("{why}, or arp")),
    }
}

#[cfg(test)]
mod tests {
    use nsnet_common::layout::PortId;

    use super::*;

    /// A UDP datagram of 10.0.0.1:4000 to 10.0.0.2:53, come in by interface 7.
    pub(super) fn shown(event: Event) -> Shown {
        let frame = [
            2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0,
            2, 0x0f, 0xa0, 0, 53, 0, 8, 0, 0,
        ];
        let length = frame.len() as u32;
        Shown::new(Event { ifindex: 7, length, captured: length, ..event }, &frame)
    }

    #[test]
    fn a_tag_is_put_back() {
        let tagged = shown(Event { tag: [0x81, 0, 0, 5], ..Event::default() });
        assert_eq!((tagged.bytes.len(), tagged.headers.length), (46, 46));
        assert_eq!(tagged.bytes[8..18], [0, 0, 0, 1, 0x81, 0, 0, 5, 8, 0]);
        assert_eq!(tagged.headers.protocol, Protocol::Ethernet(EtherType::VLAN));
        // What lies behind the captured part is no part of the frame.
        assert_eq!(Shown::new(Event { captured: 2, length: 99, ..Event::default() }, &[1, 2, 3]).bytes, [1, 2]);
    }

    #[test]
    fn all_that_is_set_must_apply() {
        let none = Interfaces::default();
        let one = shown(Event::default());
        let wants = |filter: &Filter| filter.wants(&[&one], &none);
        let host = |text: &str| Filter { host: Some(text.parse().unwrap()), ..Filter::default() };
        assert!(wants(&Filter::default()));
        assert!(wants(&host("10.0.0.1/32")) && wants(&host("10.0.0.2/31")) && !wants(&host("10.0.0.3/32")));
        let port = |port| Filter { port: Some(port), ..host("10.0.0.0/8") };
        assert!(wants(&port(53)) && wants(&port(4000)) && !wants(&port(54)));
        let protocol = |text| Filter { protocol: Some(parse_capture_protocol(text).unwrap()), ..Filter::default() };
        assert!(
            wants(&protocol("udp")) && wants(&protocol("17")) && !wants(&protocol("tcp")) && !wants(&protocol("arp"))
        );
        let at = |index| Filter { interfaces: Some([index].into()), ..Filter::default() };
        assert!(wants(&at(7)) && !wants(&at(8)));
        let both = [&one, &shown(Event { egress: 8, port: PortId(1), ..Event::default() })];
        assert!(at(8).wants(&both, &none), "one side is enough");
    }
}
