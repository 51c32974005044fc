//! Packets in fragments, in order and out of it; and packets that are too long for their way, which are cut.

use crate::memory::MemoryTables;
use crate::verdict::DropReason;
use crate::wire::IpAddress;

use super::flows::holds;
use super::frame::{Frame, checksum};
use super::sequence::{Sequence, Step, from, outside};
use super::talk::{ACK, L4, SYN, Talk, put};
use super::world::{AFAR_V4, AFAR_V6, NARROW_V4, NARROW_V6, RED, UPLINK};

/// Where the IP header of a frame begins.
const IP: usize = 14;
/// Where what follows an IPv4 header without options begins.
const V4: usize = IP + 20;
/// The same of IPv6.
const V6: usize = IP + 40;
/// The number of every packet that is made here.
const NUMBER: u32 = 7;

pub(super) fn sequences() -> Vec<Sequence> {
    let mut all = Vec::new();
    for (is_v4, family) in [(true, "IPv4"), (false, "IPv6")] {
        all.extend(fragments(is_v4, family));
    }
    all.extend(too_long());
    all
}

/// The number that red's packets have outside: no other port's could have the same.
fn outer(number: u32) -> u32 {
    number ^ u32::from(RED.id.0).wrapping_mul(0x9e37_79b1)
}

/// A frame's packet in fragments that carry `step` bytes each.
fn cut(whole: Frame, step: usize, number: u32) -> Vec<Frame> {
    let whole = whole.finish();
    let is_v4 = whole[12] == 8;
    let payload = &whole[if is_v4 { V4 } else { V6 }..];
    let count = payload.len().div_ceil(step);
    let pieces = payload.chunks(step).enumerate();
    pieces.map(|(at, piece)| fragment(&whole, at * step, piece, at + 1 < count, number)).collect()
}

/// One fragment, with the addresses and hops of `whole`.
fn fragment(whole: &[u8], offset: usize, piece: &[u8], more: bool, number: u32) -> Frame {
    let field = offset as u16 / 8;
    let bytes = if whole[12] == 8 {
        let [.., high, low] = number.to_be_bytes();
        let length = (20 + piece.len() as u16).to_be_bytes();
        let flags = (field | u16::from(more) << 13).to_be_bytes();
        let mut header = whole[IP..V4].to_vec();
        header[2..8].copy_from_slice(&[length[0], length[1], high, low, flags[0], flags[1]]);
        header[10..12].fill(0);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        [&header, piece].concat()
    } else {
        let mut header = whole[IP..V6].to_vec();
        let flags = (field << 3 | u16::from(more)).to_be_bytes();
        let extension = [&[header[6], 0, flags[0], flags[1]], &number.to_be_bytes()[..]].concat();
        header[4..6].copy_from_slice(&(8 + piece.len() as u16).to_be_bytes());
        header[6] = 44;
        [&header, &extension[..], piece].concat()
    };
    let mac = |at: usize| crate::wire::Mac(whole[at..at + 6].try_into().unwrap());
    Frame::new(mac(6), mac(0)).ethertype(u16::from_be_bytes([whole[12], whole[13]])).append(&bytes)
}

/// A datagram of red's in four fragments: as they come in, and as they leave.
fn leaving(talk: &Talk) -> (Vec<Frame>, Vec<Frame>) {
    let before = put(talk.leaving(), L4::Udp, (talk.near.0, talk.far), talk.is_v4).payload(389);
    let after = put(talk.left(), L4::Udp, (talk.near.1, talk.far), talk.is_v4).payload(389).hops(63);
    (cut(before, 104, NUMBER), cut(after, 104, if talk.is_v4 { outer(NUMBER) & 0xffff } else { outer(NUMBER) }))
}

/// The same of a datagram to red, whose number stays.
fn entering(talk: &Talk) -> (Vec<Frame>, Vec<Frame>) {
    let before = put(talk.entering(), L4::Udp, (talk.far, talk.near.1), talk.is_v4).payload(389);
    let after = put(talk.entered(), L4::Udp, (talk.far, talk.near.0), talk.is_v4).payload(389).hops(63);
    (cut(before, 104, NUMBER), cut(after, 104, NUMBER))
}

fn finished(frames: &[Frame]) -> Vec<Vec<u8>> {
    frames.iter().cloned().map(Frame::finish).collect()
}

fn waiting(count: usize) -> impl Fn(&MemoryTables) {
    move |tables| assert_eq!(tables.held.borrow().len(), count, "fragments that wait")
}

fn fragments(is_v4: bool, family: &str) -> Vec<Sequence> {
    // By another port outside: the later fragments have none that could tell.
    let talk = Talk::red(is_v4, 4001, 4000).pooled(L4::Udp, 1);
    let (before, after) = leaving(&talk);
    let (comes, enters) = entering(&talk);
    let leaves = |at: usize| from(&RED, before[at].clone()).leaves(after[at].clone());
    let waits = |at: usize| from(&RED, before[at].clone()).dropped(DropReason::FragmentUnknown);
    let enter = |at: usize| outside(comes[at].clone()).enters(&RED, enters[at].clone());
    let released =
        |frames: &[Frame], order: &[usize]| finished(&order.iter().map(|at| frames[*at].clone()).collect::<Vec<_>>());
    let begin = |name: &str| Sequence::new(format!("{family}, fragments, {name}"));
    let tiny = |protocol: u8, offset: usize| {
        let frame = talk.leaving().protocol(protocol, &[0; 8]).finish();
        from(&RED, fragment(&frame, offset, &[0xa5; 40], true, NUMBER)).dropped(DropReason::FragmentTiny)
    };
    vec![
        begin("in order").step(leaves(0)).step(leaves(1)).step(leaves(2)).step(leaves(3).then(holds(2, 0, 2))),
        begin("the last ones in disorder").step(leaves(0)).step(leaves(3)).step(leaves(1)).step(leaves(1)),
        begin("the first one comes late")
            .step(waits(2).then(waiting(1)))
            .step(waits(1).then(waiting(2)).then(holds(0, 0, 0)))
            .step(from(&RED, before[0].clone()).comes_again(released(&before, &[0, 2, 1])).then(waiting(0)))
            .step(leaves(0))
            .step(leaves(2))
            .step(leaves(1))
            .step(leaves(3).then(holds(2, 0, 2))),
        begin("the first one comes too late").step(waits(1)).step(leaves(0).after(31)).step(leaves(2)),
        begin("the first one is forgotten").step(leaves(0)).step(waits(1).after(31)),
        begin("answers in order")
            .step(talk.out(L4::Udp))
            .step(enter(0))
            .step(enter(1))
            .step(enter(2))
            .step(enter(3).then(holds(0, 2, 2))),
        begin("answers in disorder")
            .step(talk.out(L4::Udp))
            .step(outside(comes[1].clone()).dropped(DropReason::FragmentUnknown))
            .step(outside(comes[0].clone()).comes_again(released(&comes, &[0, 1])))
            .step(enter(0))
            .step(enter(1)),
        begin("one that overlaps TCP's header").step(tiny(6, 16)),
        begin("one that overlaps the header that came").step(leaves(0)).step(overlapping(&talk)),
        begin("to the host itself")
            .step(to_host(&talk, true).goes_to_host(talk.gateway()))
            .step(to_host(&talk, false).goes_to_host(talk.gateway())),
    ]
}

/// A later fragment of the packet that [`leaving`] makes, within its UDP header. (An offset of 0 would be a first one.)
fn overlapping(talk: &Talk) -> Step {
    let whole = put(talk.leaving(), L4::Sctp, (talk.near.0, talk.far), talk.is_v4).finish();
    from(&RED, fragment(&whole, 8, &[0xa5; 40], true, NUMBER)).dropped(DropReason::FragmentTiny)
}

/// Fragments for the host are for its own stack to put together.
fn to_host(talk: &Talk, is_first: bool) -> Step {
    let near = talk.with(UPLINK.ipv4, UPLINK.ipv6);
    let whole = put(near.leaving(), L4::Udp, (1, 2), talk.is_v4).payload(200);
    let mut pieces = cut(whole, 104, NUMBER);
    from(&RED, pieces.remove(if is_first { 0 } else { 1 }))
}

/// IPv4 without DF: cut for a way that takes 1500 or 1400 bytes. The pieces are the next frames.
fn too_long() -> Vec<Sequence> {
    let mut all = Vec::new();
    for (way, longest, afar) in
        [("the uplink", 1500, (AFAR_V4, AFAR_V6)), ("a narrow way", 1400, (NARROW_V4, NARROW_V6))]
    {
        let talk = Talk::red(true, 3000, 4000).with(afar.0, afar.1);
        let step = (longest - 20) & !7;
        // The number that all frames begin with.
        let number = 0x1234;
        for (l4, name) in [(L4::Udp, "UDP"), (L4::Tcp(ACK, 101, 9001, 0), "TCP")] {
            for exceeding in [1, 2000] {
                // put() has a datagram carry something.
                let header = if l4 == L4::Udp { 8 + 11 } else { 20 };
                let payload = longest - 20 - header + exceeding;
                let before = put(talk.leaving(), l4, (3000, 4000), true).payload(payload);
                let after = put(talk.left(), l4, (3000, 4000), true).payload(payload).hops(63);
                let pieces = cut(before.clone(), step, number);
                let left = cut(after, step, outer(number) & 0xffff);
                let name = format!("IPv4, {name}, {exceeding} bytes too long for {way}");
                let mut sequence = Sequence::new(name);
                if l4 != L4::Udp {
                    sequence = sequence
                        .step(talk.out(L4::Tcp(SYN, 100, 0, 0)))
                        .step(talk.back(L4::Tcp(SYN | ACK, 9000, 101, 0)))
                        .step(talk.out(L4::Tcp(ACK, 101, 9001, 0)));
                }
                sequence = sequence.step(from(&RED, before).comes_again(finished(&pieces)));
                for (piece, left) in pieces.into_iter().zip(left) {
                    sequence = sequence.step(from(&RED, piece).leaves(left));
                }
                all.push(sequence);
            }
        }
        let kind = [3, 4];
        let refused =
            |step: Step| step.told(DropReason::FragmentationNeeded, &super::world::HOST, kind, longest as u32);
        let options = talk.leaving().option_word([1, 1, 1, 0]);
        let options = put(options, L4::Udp, (3000, 4000), true).payload(longest);
        all.push(Sequence::new(format!("IPv4, with options, too long for {way}")).step(refused(from(&RED, options))));
    }
    let talk = Talk::red(true, 3000, 4000);
    let endless = put(talk.leaving(), L4::Udp, (3000, 4000), true).payload(17_000);
    let endless = from(&RED, endless).told(DropReason::FragmentationNeeded, &super::world::HOST, [3, 4], 1500);
    all.push(Sequence::new("IPv4, too long to be cut").step(endless));
    let shared = |tables: &MemoryTables| {
        let mut fragments = tables.fragments.borrow().keys().map(|key| key.source).collect::<Vec<IpAddress>>();
        fragments.sort();
        fragments.dedup();
        assert_eq!(fragments.len(), 2, "one packet for each sender");
    };
    // Two senders that have chosen one number are told apart, inside and outside.
    let blue = Talk::masqueraded(&super::world::BLUE, true, 3001, 4000);
    let whole = put(blue.leaving(), L4::Udp, (3001, 4000), true).payload(389);
    let after = put(blue.left(), L4::Udp, (3001, 4000), true).payload(389).hops(63);
    let number = (NUMBER ^ u32::from(super::world::BLUE.id.0).wrapping_mul(0x9e37_79b1)) & 0xffff;
    let (before, after) = (cut(whole, 104, NUMBER), cut(after, 104, number));
    let (reds, reds_left) = leaving(&talk);
    all.push(
        Sequence::new("IPv4, fragments, of two senders with one number")
            .step(from(&RED, reds[0].clone()).leaves(reds_left[0].clone()))
            .step(from(&super::world::BLUE, before[0].clone()).leaves(after[0].clone()).then(shared))
            .step(from(&RED, reds[1].clone()).leaves(reds_left[1].clone()))
            .step(from(&super::world::BLUE, before[1].clone()).leaves(after[1].clone())),
    );
    all
}
