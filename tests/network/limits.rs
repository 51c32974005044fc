//! The longest frame, and the most that may be flooded.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nsnet::lab::{RawSocket, UdpSink, gso};
use nsnet_common::cases::frame::Frame;
use nsnet_common::wire::Mac;

use super::bed::{Bed, Station, V4, growth, until};
use super::shot::{MARK, shoot};

const NOBODY: [u8; 4] = [192, 168, 15, 99];

/// A frame that carries a packet of `mtu` bytes.
fn packet(from: &Station, to: Mac, mtu: usize) -> Vec<u8> {
    Frame::new(from.mac, to).ipv4(from.v4.octets(), NOBODY).append(MARK).payload(mtu - 20 - MARK.len()).finish()
}

#[test]
fn what_is_longer_than_the_mtu_is_dropped() -> Result<()> {
    let bed = Bed::new(&format!("{V4} --mtu 1280"), &["red", "blue"])?;
    let (red, blue, host) = (bed.at("red"), bed.at("blue"), bed.at("host"));
    for station in [red, host] {
        station.set_mtu(9000)?;
    }
    let fits = packet(red, blue.mac, 1280);
    assert_eq!(shoot(&bed, "red", std::slice::from_ref(&fits))?.at("blue"), [fits]);
    // A veth lets through what a VLAN tag would add, as it cannot know that there is none.
    let frames: Vec<_> = (1281..=1284).map(|mtu| packet(red, blue.mac, mtu)).collect();
    shoot(&bed, "red", &frames)?.assert_dropped("a long frame", "too-long", frames.len());

    // Of a longer one our end of the pair says itself that it was dropped.
    let rx_dropped = || dropped_by_interface(host, &red.port);
    let before = (rx_dropped()?, bed.drops()?);
    let socket = red.run(|| RawSocket::open(&red.ifname))?;
    for mtu in [1285, 2000, 9000] {
        // The veth's driver may report the loss.
        drop(socket.send(&packet(red, blue.mac, mtu)));
    }
    until(Duration::from_secs(5), || Ok(rx_dropped()? == before.0 + 3)).context("3 frames of 1285 bytes and more")?;
    assert_eq!(bed.drops()?, before.1);

    // The host's frames meet no such pair.
    let frames: Vec<_> = [1281, 1500, 9000].map(|mtu| packet(host, blue.mac, mtu)).to_vec();
    shoot(&bed, "host", &frames)?.assert_dropped("a long frame of the host's", "too-long", frames.len());
    Ok(())
}

#[test]
fn segments_are_measured_not_the_packet() -> Result<()> {
    let bed = Bed::new(&format!("{V4} --mtu 1280"), &["red", "blue"])?;
    let (red, blue) = (bed.at("red"), bed.at("blue"));
    red.set_mtu(9000)?;
    let sink = blue.run(|| UdpSink::start(SocketAddr::new(IpAddr::V4(blue.v4), 0)))?;
    // One packet of 12 segments, each of which fits (1280 less the headers), goes in one piece.
    let datagrams = red.run(|| gso::send_gso(sink.addr(), 12 * 1252, 1252))? as u64;
    assert_eq!(sink.wait(datagrams, Duration::from_secs(5)).datagrams, datagrams);
    let before = bed.drops()?;
    red.run(|| gso::send_gso(sink.addr(), 12 * 1253, 1253))?;
    until(Duration::from_secs(5), || Ok(!growth(&before, &bed.drops()?).is_empty()))?;
    let dropped = growth(&before, &bed.drops()?);
    assert_eq!(dropped.into_iter().collect::<Vec<_>>(), [((red.port.clone(), "too-long".to_owned()), 1)]);
    assert_eq!(sink.received().datagrams, datagrams, "cut, or delivered all the same");
    Ok(())
}

#[test]
fn a_long_broadcast_is_counted_where_it_does_not_fit() -> Result<()> {
    let bed = Bed::new(&format!("{V4} --mtu 1280"), &["red", "blue"])?;
    let (red, blue, host) = (bed.at("red"), bed.at("blue"), bed.at("host"));
    red.set_mtu(9000)?;
    let before = bed.drops()?;
    let shot = shoot(&bed, "red", &[packet(red, Mac::BROADCAST, 1284)])?;
    assert_eq!(shot.receivers(), Vec::<&str>::new());
    let dropped = growth(&before, &bed.drops()?);
    let expected = [&blue.port, &host.port].map(|port| ((port.clone(), "too-long".to_owned()), 1));
    assert_eq!(dropped, expected.into());
    Ok(())
}

#[test]
fn flooding_has_a_limit() -> Result<()> {
    const SENDERS: u64 = 8;
    let bed = Bed::new(V4, &["red", "blue"])?;
    let (red, blue) = (bed.at("red"), bed.at("blue"));
    let frame = packet(red, Mac::BROADCAST, 64);
    let socket = red.run(|| RawSocket::open(&red.ifname))?;
    let port = red.port.clone();
    // Who gets no time to send so many a second is not limited: then again.
    let mut is_limited = false;
    for _ in 0..10 {
        let before = (bed.stats()?[&port], bed.drops()?);
        // More than a burst: 40,000 copies and 200,000 a second, of which each frame makes two.
        // By many threads, which on a busy machine get more of its time than one does.
        let sent = SENDERS * 20_000;
        std::thread::scope(|scope| -> Result<()> {
            let send = || (0..sent / SENDERS).try_for_each(|_| socket.send(&frame));
            let threads: Vec<_> = (0..SENDERS).map(|_| scope.spawn(send)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
        })?;
        until(Duration::from_secs(10), || Ok(bed.stats()?[&port].rx - before.0.rx >= sent))?;
        let grown = bed.stats()?[&port] - before.0;
        let dropped = growth(&before.1, &bed.drops()?);
        let limited = dropped.get(&(port.clone(), "flood-limit".to_owned())).copied().unwrap_or(0);
        assert_eq!((grown.rx, grown.flooded + limited), (sent, sent), "{dropped:?}");
        assert!(grown.flooded >= 20_000, "only {} were flooded", grown.flooded);
        is_limited = limited > 0;
        if is_limited {
            break;
        }
    }
    assert!(is_limited, "nothing was limited");
    // The port's other traffic is not limited, and other ports are not concerned.
    assert!(red.reaches(IpAddr::V4(blue.v4))? && blue.reaches(IpAddr::V4(red.v4))?);
    assert_eq!(shoot(&bed, "blue", &[packet(blue, Mac::BROADCAST, 64)])?.at("red").len(), 1);
    Ok(())
}

/// What an interface in a station's namespace dropped of what it received.
fn dropped_by_interface(station: &Station, interface: &str) -> Result<u64> {
    let table = station.run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?))?;
    let row = table.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
    // Bytes, packets, errors, dropped.
    let dropped = row.and_then(|row| row.split_whitespace().nth(3)).context("the interface has no counters")?;
    Ok(dropped.parse()?)
}
