//! Learning: stations behind a port that allows it, how they age and move, and what they can never be.

use crate::layout::{AGEING_NS, FOREIGN_PER_PORT, Station};
use crate::memory::MemoryTables;
use crate::verdict::DropReason;
use crate::wire::Mac;

use super::frame::Frame;
use super::world::{
    BLUE, CYAN, FREE_V4, GREEN, HOST, ORANGE, RED, STRANGER, others, put_learned, put_station, stranger,
};
use super::{Case, from};

const SECOND: u64 = 1_000_000_000;
const AGED: u64 = AGEING_NS + 100 * SECOND;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = fresh();
    cases.extend(places());
    cases.extend(not_learned());
    cases
}

/// A frame of the station `mac` to red.
fn to_red(mac: Mac) -> Frame {
    Frame::new(mac, RED.mac).ipv4(FREE_V4, RED.ipv4).udp(1, 2).payload(18)
}

fn fresh() -> Vec<Case> {
    let mac = stranger(1);
    let broadcast = Frame::new(mac, Mac::BROADCAST).ipv4(FREE_V4, [255; 4]).udp(1, 2).payload(18);
    let set_by_user = |tables: &mut MemoryTables| put_station(tables, &ORANGE, stranger(1), Station::fixed(ORANGE.id));
    vec![
        from(&ORANGE, "a new station", to_red(mac)).delivered(&RED).learned(&ORANGE, 0, mac),
        from(&ORANGE, "a new station's broadcast", broadcast).flooded(others(&ORANGE)).learned(&ORANGE, 0, mac),
        from(&ORANGE, "a second station", to_red(mac))
            .knowing(&ORANGE, 0, stranger(2), 10 * SECOND)
            .delivered(&RED)
            .learned(&ORANGE, 1, mac),
        from(&ORANGE, "a station heard half a second ago: nothing is written", to_red(mac))
            .knowing(&ORANGE, 0, mac, SECOND / 2)
            .delivered(&RED),
        from(&ORANGE, "a station heard two seconds ago", to_red(mac))
            .knowing(&ORANGE, 0, mac, 2 * SECOND)
            .delivered(&RED)
            .heard(&ORANGE, mac),
        from(&ORANGE, "a station that aged and comes back", to_red(mac))
            .knowing(&ORANGE, 0, mac, AGED)
            .delivered(&RED)
            .heard(&ORANGE, mac),
        from(&ORANGE, "a station that moves from green to orange", to_red(mac))
            .knowing(&GREEN, 3, mac, 10 * SECOND)
            .delivered(&RED)
            .learned(&ORANGE, 0, mac),
        from(&ORANGE, "a station that moved to green and back", to_red(mac))
            .knowing(&ORANGE, 0, mac, 20 * SECOND)
            .knowing(&GREEN, 0, mac, 10 * SECOND)
            .delivered(&RED)
            .learned(&ORANGE, 0, mac),
        from(&ORANGE, "a station that aged behind green", to_red(mac))
            .knowing(&GREEN, 0, mac, AGED)
            .delivered(&RED)
            .learned(&ORANGE, 0, mac),
        from(&ORANGE, "a station that the user has set behind orange", to_red(mac)).with(set_by_user).delivered(&RED),
        from(&GREEN, "a station that the user has set behind orange, from green", to_red(mac))
            .with(set_by_user)
            .dropped(DropReason::SpoofedMac),
        from(&ORANGE, "orange's own MAC is not learned", ORANGE.udp4(&RED)).delivered(&RED),
        from(&ORANGE, "a locally administered station with the number of no port", to_red(Mac([2, 0, 1, 0, 200, 0])))
            .delivered(&RED)
            .learned(&ORANGE, 0, Mac([2, 0, 1, 0, 200, 0])),
        from(&ORANGE, "a station whose MAC is red's but for the last byte", to_red(Mac([2, 0, 1, 0, 2, 9])))
            .delivered(&RED)
            .learned(&ORANGE, 0, Mac([2, 0, 1, 0, 2, 9])),
        from(&ORANGE, "a station to another behind the same port", Frame::new(mac, stranger(2)).ipv4(FREE_V4, [10; 4]))
            .knowing(&ORANGE, 0, stranger(2), 10 * SECOND)
            .dropped(DropReason::SamePort)
            .learned(&ORANGE, 1, mac),
    ]
}

/// Fills orange's places with `stranger(0)`, `stranger(1)`, .., heard ten seconds ago.
fn fill(tables: &mut MemoryTables) {
    for place in 0..FOREIGN_PER_PORT {
        put_learned(tables, &ORANGE, place, stranger(place as u8), 10 * SECOND);
    }
}

fn places() -> Vec<Case> {
    let last = FOREIGN_PER_PORT - 1;
    let filled = |name: &str, mac: Mac| from(&ORANGE, name, to_red(mac)).with(fill);
    vec![
        filled("one station too many", STRANGER).dropped(DropReason::MacLimit),
        filled("a known station of a full port", stranger(20)).delivered(&RED).heard(&ORANGE, stranger(20)),
        from(&ORANGE, "orange itself, with all places taken", ORANGE.udp4(&RED)).with(fill).delivered(&RED),
        from(&GREEN, "a new station behind green, with orange's places taken", to_red(STRANGER))
            .with(fill)
            .delivered(&RED)
            .learned(&GREEN, 0, STRANGER),
        from(&RED, "unicast to a station of a full port", Frame::new(RED.mac, stranger(9)).ipv4(RED.ipv4, FREE_V4))
            .with(fill)
            .delivered(&ORANGE),
        filled("one station too many, but one has aged", STRANGER)
            .knowing(&ORANGE, 17, stranger(17), AGED)
            .delivered(&RED)
            .forgotten(&ORANGE, stranger(17))
            .learned(&ORANGE, 17, STRANGER),
        filled("one station too many, but the last has moved to green", STRANGER)
            .with(move |tables| put_learned(tables, &GREEN, 0, stranger(last as u8), 5 * SECOND))
            .delivered(&RED)
            .learned(&ORANGE, last, STRANGER),
        filled("one station too many, but one is in no table any more", STRANGER)
            .with(|tables| {
                let gone = crate::layout::StationKey { network: ORANGE.network, mac: stranger(40) };
                tables.stations.borrow_mut().remove(&gone);
            })
            .delivered(&RED)
            .learned(&ORANGE, 40, STRANGER),
        from(&ORANGE, "a new station, but the table is full", to_red(STRANGER))
            .with(|tables| tables.is_full.set(true))
            .dropped(DropReason::TableFull),
    ]
}

/// What can never be learned, or not by such frames.
fn not_learned() -> Vec<Case> {
    let tagged = Frame::new(STRANGER, RED.mac).tag(0x8100, 1).ipv4(FREE_V4, RED.ipv4);
    let mut cases = vec![
        from(&ORANGE, "a tagged frame of a new station", tagged).dropped(DropReason::Tagged),
        from(&ORANGE, "a new station's frame without a type", to_red(STRANGER).cut(13)).dropped(DropReason::Truncated),
        from(&RED, "a new station behind a port that does not learn", to_red(STRANGER)).dropped(DropReason::SpoofedMac),
    ];
    for (whose, mac) in [("red's", RED.mac), ("blue's", BLUE.mac), ("the gateway's", HOST.mac), ("cyan's", CYAN.mac)] {
        let gratuitous = Frame::new(mac, Mac::BROADCAST).arp(2, (mac, FREE_V4), (mac, FREE_V4));
        let case = from(&ORANGE, format!("a station behind orange with {whose} MAC"), gratuitous);
        cases.push(case.dropped(DropReason::SpoofedMac));
    }
    cases
}
