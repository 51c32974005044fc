//! The clsact qdisc and the eBPF filters in it: what carries a program where the kernel has no tcx (before Linux 6.6).
//!
//! On an interface that is not ours, what others put there stays: a filter is removed by the program in it, and the
//! qdisc only when it is empty.

#![expect(clippy::wildcard_enum_match_arm, reason = "netlink enums are open: what is not read here is skipped")]

use nix::errno::Errno;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};

use super::error::{Result, unless};
use super::netlink::Netlink;

/// Where filters for what comes in, and for what goes out, hang.
const INGRESS: TcHandle = TcHandle { major: u16::MAX, minor: TcHandle::MIN_INGRESS };
const EGRESS: TcHandle = TcHandle { major: u16::MAX, minor: TcHandle::MIN_EGRESS };

/// An eBPF filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BpfFilter {
    /// Its name, by default that of the program.
    pub name: String,
    /// The kernel's number of the program.
    pub program: u32,
    handle: TcHandle,
    /// Priority (16 bits) and protocol (16 bits, network byte order).
    info: u32,
}

impl BpfFilter {
    /// Its priority, and the numbers (major, minor) that it has among those of the same priority.
    pub(super) fn place(&self) -> (u16, (u16, u16)) {
        ((self.info >> 16) as u16, (self.handle.major, self.handle.minor))
    }
}

impl Netlink {
    /// The interfaces that have a qdisc which can carry filters for what comes in: clsact, or ingress.
    pub fn interfaces_with_clsact(&self) -> Result<Vec<u32>> {
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let messages = none_without_tc(self.dump(&request, format_args!("list the qdiscs")))?;
        Ok(messages
            .iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewQueueDiscipline(qdisc) if qdisc.header.parent == TcHandle::CLSACT => {
                    Some(qdisc.header.index.unsigned_abs())
                }
                _ => None,
            })
            .collect())
    }

    /// The eBPF filters for what comes in by an interface.
    pub fn bpf_filters(&self, index: u32) -> Result<Vec<BpfFilter>> {
        self.filters(index, INGRESS)
    }

    /// The same for what goes out.
    pub fn bpf_filters_at_egress(&self, index: u32) -> Result<Vec<BpfFilter>> {
        self.filters(index, EGRESS)
    }

    fn filters(&self, index: u32, side: TcHandle) -> Result<Vec<BpfFilter>> {
        let request = RouteNetlinkMessage::GetTrafficFilter(at(index, side));
        let what = format_args!("list the filters of interface {index}");
        Ok(none_without_tc(self.dump(&request, what))?.iter().filter_map(read_filter).collect())
    }

    /// Removes a filter for what comes in. `Ok(false)` when it is not there.
    pub fn remove_filter(&self, index: u32, filter: &BpfFilter) -> Result<bool> {
        let mut request = at(index, INGRESS);
        (request.header.handle, request.header.info) = (filter.handle, filter.info);
        request.attributes.push(TcAttribute::Kind("bpf".to_owned()));
        let what = format_args!("remove filter {} from interface {index}", filter.name);
        let gone = [Errno::ENOENT, Errno::ENODEV, Errno::EINVAL];
        unless(self.ask(RouteNetlinkMessage::DelTrafficFilter(request), 0, what), &gone)
    }

    /// Removes the clsact qdisc of an interface, unless something hangs in it. `Ok(false)` when it is still, or was not,
    /// there.
    pub fn remove_empty_clsact(&self, index: u32) -> Result<bool> {
        for side in [INGRESS, EGRESS] {
            // Chains and not filters: a filter of a kind that is not understood here has one, too.
            let request = RouteNetlinkMessage::GetTrafficChain(at(index, side));
            let what = format_args!("list the filters of interface {index}");
            if !none_without_tc(self.dump(&request, what))?.is_empty() {
                return Ok(false);
            }
        }
        let mut request = at(index, TcHandle::CLSACT);
        request.header.handle = TcHandle { major: u16::MAX, minor: 0 };
        request.attributes.push(TcAttribute::Kind("clsact".to_owned()));
        let what = format_args!("remove the clsact qdisc of interface {index}");
        let gone = [Errno::ENOENT, Errno::ENODEV, Errno::EINVAL];
        unless(self.ask(RouteNetlinkMessage::DelQueueDiscipline(request), 0, what), &gone)
    }
}

fn at(index: u32, parent: TcHandle) -> TcMessage {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent;
    message
}

/// A kernel without traffic control has nothing in it; nor has an interface that is gone.
fn none_without_tc(listed: Result<Vec<RouteNetlinkMessage>>) -> Result<Vec<RouteNetlinkMessage>> {
    match listed {
        Err(error) if matches!(error.errno(), Some(Errno::EOPNOTSUPP | Errno::ENODEV | Errno::EINVAL)) => {
            Ok(Vec::new())
        }
        listed => listed,
    }
}

fn read_filter(message: &RouteNetlinkMessage) -> Option<BpfFilter> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = message else { return None };
    let options = message.attributes.iter().flat_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.as_slice(),
        _ => &[],
    });
    let (mut name, mut program) = (String::new(), None);
    for option in options {
        match option {
            TcOption::Bpf(TcFilterBpfOption::ProgName(text)) => name.clone_from(text),
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program = Some(*id),
            _ => {}
        }
    }
    Some(BpfFilter { name, program: program?, handle: message.header.handle, info: message.header.info })
}
