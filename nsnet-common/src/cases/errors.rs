//! ICMP errors about packets of flows, both ways: the packet that they quote is translated back.

use crate::verdict::DropReason;

use super::frame::{Frame, checksum};
use super::sequence::{Sequence, Step, from, outside};
use super::talk::{ACK, L4, SYN, Talk, put};
use super::world::{CYAN, GOLD, LIME, RED, ROUTER_V4, ROUTER_V6};

/// A port that a socket of the host's has, and no flow keeps.
const OF_SOCKET: u16 = 4001;
const FIRST_SYN: L4 = L4::Tcp(SYN, 100, 0, 0);

pub(super) fn sequences() -> Vec<Sequence> {
    let mut all = Vec::new();
    for (is_v4, family) in [(true, "IPv4"), (false, "IPv6")] {
        for (talk, how) in [
            (Talk::red(is_v4, 3000, 4000), "masqueraded"),
            (Talk::red(is_v4, OF_SOCKET, 4000), "by the pool"),
            (Talk::masqueraded(&LIME, is_v4, 3000, 4000), "masqueraded, open"),
            (Talk::routed(&CYAN, is_v4, 3000, 4000), "routed"),
            (Talk::routed(&GOLD, is_v4, 3000, 4000), "routed, open"),
        ] {
            for (l4, name) in [
                (L4::Udp, "UDP"),
                (L4::Ping, "echo"),
                (FIRST_SYN, "TCP"),
                (L4::Sctp, "SCTP"),
                (L4::Other, "protocol 253"),
            ] {
                let is_kept = talk.near.0 != OF_SOCKET;
                if !is_kept && matches!(l4, L4::Sctp | L4::Other | L4::Ping) {
                    continue;
                }
                let talk = if is_kept { talk } else { talk.pooled(l4, 1) };
                all.extend(about(&format!("{family}, {name}, {how}"), talk, l4));
            }
        }
        all.extend(damaged(is_v4, family));
    }
    all
}

/// The quotation of a packet, or of what of it routers must quote: TCP's is cut behind the numbers then, before its
/// checksum.
fn quote(frame: Frame, l4: L4, options: bool, whole: bool) -> Vec<u8> {
    let bytes = frame.finish();
    let header = if bytes[12] == 8 { 20 } else { 40 };
    let header = if options { header + 4 } else { header };
    match l4 {
        L4::Tcp(..) if !whole => bytes[14..14 + header + 8].to_vec(),
        L4::Tcp(..) | L4::Udp | L4::Ping | L4::Pong | L4::Sctp | L4::Other => bytes[14..].to_vec(),
    }
}

/// An error behind an IP header.
fn error(frame: Frame, is_v4: bool, kind: [u8; 2], quote: &[u8]) -> Frame {
    let rest = [&[0, 0, 5, 0xdc][..], quote].concat();
    if is_v4 { frame.icmp(kind[0], kind[1], &rest) } else { frame.icmpv6(kind[0], kind[1], &rest) }
}

/// Kinds of errors that are passed on.
fn kinds(is_v4: bool) -> &'static [[u8; 2]] {
    if is_v4 { &[[3, 1], [3, 3], [3, 4], [11, 0], [12, 0]] } else { &[[1, 4], [2, 0], [3, 0], [4, 1]] }
}

impl Talk {
    /// An error from afar about what the namespace has sent.
    fn error_back(&self, l4: L4, kind: [u8; 2], source: ([u8; 4], [u8; 16]), options: bool) -> Step {
        let ports = |near: u16| (near, self.far);
        let option = |frame: Frame| if options { frame.option_word([7, 4, 4, 0]) } else { frame };
        let sent = put(option(self.left()), l4, ports(self.near.1), self.is_v4).hops(63);
        let meant = put(option(self.leaving()), l4, ports(self.near.0), self.is_v4).hops(63);
        let speaker = self.with(source.0, source.1);
        // Routers quote less than hosts.
        let is_whole = source == self.afar;
        let comes = error(speaker.entering(), self.is_v4, kind, &quote(sent, l4, options, is_whole));
        let enters = error(speaker.entered(), self.is_v4, kind, &quote(meant, l4, options, is_whole)).hops(63);
        outside(comes).enters(self.end, enters)
    }

    /// An error of the namespace about what it got from afar.
    fn error_out(&self, l4: L4, kind: [u8; 2]) -> Step {
        let got = put(self.entered(), l4, (self.far, self.near.0), self.is_v4).hops(63);
        let meant = put(self.entering(), l4, (self.far, self.near.1), self.is_v4).hops(63);
        let leaves = error(self.leaving(), self.is_v4, kind, &quote(got, l4, false, true));
        let left = error(self.left(), self.is_v4, kind, &quote(meant, l4, false, true)).hops(63);
        from(self.end, leaves).leaves(left)
    }
}

fn about(name: &str, talk: Talk, l4: L4) -> Vec<Sequence> {
    let mut from_router = Sequence::new(format!("ICMP errors of a router, {name}")).step(talk.out(l4));
    let mut from_end = Sequence::new(format!("ICMP errors of the other end, {name}")).step(talk.out(l4));
    let mut from_near =
        Sequence::new(format!("ICMP errors of the namespace, {name}")).step(talk.out(l4)).step(talk.back(l4.answer()));
    for kind in kinds(talk.is_v4) {
        from_router = from_router.step(talk.error_back(l4, *kind, (ROUTER_V4, ROUTER_V6), false));
        from_end = from_end.step(talk.error_back(l4, *kind, talk.afar, false));
        from_near = from_near.step(talk.error_out(l4.answer(), *kind));
    }
    if talk.is_v4 {
        from_router = from_router.step(talk.error_back(l4, [3, 1], (ROUTER_V4, ROUTER_V6), true));
    }
    // The flow is as it was.
    let from_router = from_router.step(talk.back(l4.answer()));
    vec![from_router, from_end, from_near]
}

fn damaged(is_v4: bool, family: &str) -> Vec<Sequence> {
    let talk = Talk::red(is_v4, 3000, 4000);
    let kind = kinds(is_v4)[0];
    let sent = put(talk.left(), L4::Udp, (3000, 4000), is_v4).hops(63).finish()[14..].to_vec();
    let got = put(talk.entered(), L4::Udp, (4000, 3000), is_v4).hops(63).finish()[14..].to_vec();
    let change = |bytes: &[u8], at: usize, to: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = to;
        bytes
    };
    let header = if is_v4 { 20 } else { 40 };
    let mut ruined = vec![
        ("of no flow", change(&sent, header + 1, 99), change(&got, header + 1, 99)),
        ("cut in the ports", sent[..header + 3].to_vec(), got[..header + 3].to_vec()),
        ("cut in the IP header", sent[..header - 1].to_vec(), got[..header - 1].to_vec()),
        (
            "of another protocol",
            change(&sent, if is_v4 { 9 } else { 6 }, 6),
            change(&got, if is_v4 { 9 } else { 6 }, 6),
        ),
        ("empty", Vec::new(), Vec::new()),
    ];
    if is_v4 {
        ruined.push(("with a wrong header checksum", change(&sent, 10, !sent[10]), change(&got, 10, !got[10])));
        ruined.push(("of another version", change(&sent, 0, 0x65), change(&got, 0, 0x65)));
        ruined.push(("with a short header", change(&sent, 0, 0x44), change(&got, 0, 0x44)));
        let later = |bytes: &[u8]| {
            let mut bytes = change(&change(bytes, 6, 0), 7, 3);
            bytes[10..12].fill(0);
            let sum = checksum(&bytes[..20]);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            bytes
        };
        ruined.push(("of a later fragment", later(&sent), later(&got)));
    }
    let mut all = Vec::new();
    for (what, sent, got) in ruined {
        let begin = Sequence::new(format!("{family}, ICMP errors about a packet {what}"));
        let begin = begin.step(talk.out(L4::Udp)).step(talk.back(L4::Udp));
        let comes = outside(error(talk.entering(), is_v4, kind, &sent));
        let leaves = from(&RED, error(talk.leaving(), is_v4, kind, &got)).dropped(DropReason::IcmpUnrelated);
        all.push(begin.step(comes).step(leaves));
    }
    // Where it is wrong: in the field, in what is quoted, and in its last byte, which has no other to make a word with.
    let at = 14 + header + 2;
    let is_damaged = |mut step: Step, at: usize| {
        step.frame[at] ^= 1;
        step.dropped(DropReason::IcmpChecksum)
    };
    let back = || talk.error_back(L4::Udp, kind, (ROUTER_V4, ROUTER_V6), false);
    let mut odd = put(talk.left(), L4::Udp, (3000, 4000), is_v4).hops(63).finish()[14..].to_vec();
    odd.push(7);
    let odd = outside(error(talk.with(ROUTER_V4, ROUTER_V6).entering(), is_v4, kind, &odd));
    let (last, odd_last) = (back().frame.len() - 1, odd.frame.len() - 1);
    all.push(
        Sequence::new(format!("{family}, ICMP errors with a wrong checksum"))
            .step(talk.out(L4::Udp))
            .step(talk.back(L4::Udp))
            .step(is_damaged(back(), at))
            .step(is_damaged(back(), last))
            .step(is_damaged(odd, odd_last))
            .step(is_damaged(talk.error_out(L4::Udp, kind), at))
            .step(back()),
    );
    // What is behind the packet in the frame is not summed.
    let mut longer = back();
    longer.trail(&[1, 2, 3, 4, 5]);
    all.push(
        Sequence::new(format!("{family}, ICMP errors with bytes behind them")).step(talk.out(L4::Udp)).step(longer),
    );
    let short = |step: Step| step.with_hops(is_v4, 1).dropped(DropReason::TtlExceeded);
    let in_short = short(talk.error_back(L4::Udp, kind, (ROUTER_V4, ROUTER_V6), false));
    let out_short = short(talk.error_out(L4::Udp, kind));
    let begin =
        Sequence::new(format!("{family}, ICMP errors one hop short")).step(talk.out(L4::Udp)).step(talk.back(L4::Udp));
    all.push(begin.step(in_short).step(out_short));
    // An echo of identifier 0 has the ports of an error, which are none.
    let zero = Talk::red(is_v4, 0, 0);
    all.push(
        Sequence::new(format!("{family}, ICMP errors about an echo of identifier 0"))
            .step(zero.out(L4::Ping))
            .step(zero.error_back(L4::Ping, kind, zero.afar, false))
            .step(zero.back(L4::Pong))
            .step(zero.error_out(L4::Pong, kind)),
    );
    // An error is no answer, nor does it keep the flow alive.
    let tcp = Talk::red(is_v4, 3000, 80);
    all.push(
        Sequence::new(format!("{family}, an ICMP error does not end a connection"))
            .step(tcp.out(FIRST_SYN))
            .step(tcp.back(L4::Tcp(SYN | ACK, 9000, 101, 0)))
            .step(tcp.out(L4::Tcp(ACK, 101, 9001, 0)))
            .step(tcp.error_back(L4::Tcp(ACK, 101, 9001, 0), kind, (ROUTER_V4, ROUTER_V6), false))
            .step(tcp.back(L4::Tcp(ACK, 9001, 101, 3))),
    );
    all
}
