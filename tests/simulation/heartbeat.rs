//! Heartbeat: a dead peer is detected in time, a live peer is never closed.

use pyrycode_relay::time::{Instant, TICK};

use crate::peer::{self, HOME, LINK, Seen};
use crate::wire;
use crate::world::{PeerId, World, closed, secs, text};

const DEAD: (u16, &str) = (1011, "heartbeat timeout");
/// From a peer's death to its free slot.
const PROMISE: std::time::Duration = std::time::Duration::from_millis(60_100);

/// Passes time until `peer` has seen one more ping; when that was.
fn next_ping(world: &mut World, peer: PeerId) -> Instant {
    let pings = world.peer(peer).pings;
    world.pass_until(secs(31), |world| world.peer(peer).pings > pings);
    world.now
}

#[test]
fn every_open_websocket_is_pinged_every_30_s() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    for peer in [phone, binary] {
        let first = next_ping(&mut world, peer);
        for count in 1..=10 {
            let due = first + secs(30 * count);
            let ping = next_ping(&mut world, peer);
            let off = ping.since(due).max(due.since(ping));
            assert!(off <= TICK, "the cadence does not drift: {off:?}");
        }
    }
    let before = [phone, binary].map(|peer| world.peer(peer).pings);
    world.pass(secs(3600));
    for (peer, before) in [phone, binary].into_iter().zip(before) {
        assert!((119..=121).contains(&(world.peer(peer).pings - before)));
        assert_eq!(world.heard(peer), []);
    }
    let stats = world.relay.stats();
    assert_eq!((stats.pings, stats.round_trips.count()), (stats.pongs, stats.pongs));
    world.finish();
}

#[test]
fn a_silent_peer_is_dead_within_60_s_of_its_death_and_30_s_of_a_ping() {
    for is_phone in [false, true] {
        for pongs in [0, 1, 7] {
            let mut world = World::new();
            let binary = world.binary("home");
            let peer = if is_phone { world.phone("home") } else { binary };
            let live = world.relay.live();
            for _ in 0..pongs {
                next_ping(&mut world, peer);
            }
            let habits = &mut world.peer_mut(peer).habits;
            (habits.answers_pings, habits.answers_close, habits.hangs_up) = (false, false, false);
            let died = world.now;
            let ping = next_ping(&mut world, peer);
            world.pass_until(secs(31), |world| world.relay.live() != live);
            assert!(world.now.since(died) <= PROMISE);
            let waited = world.now.since(ping);
            assert!((secs(30) - TICK..=secs(30) + TICK).contains(&waited), "{waited:?}");
            assert_eq!(world.heard(peer), closed(DEAD.0, DEAD.1));
            let lingered = world.pass_until(secs(6), |world| world.is_gone(peer));
            assert!(lingered <= secs(5) + TICK, "{lingered:?}");
            world.finish();
        }
    }
}

#[test]
fn a_dead_peer_that_answers_the_close_is_gone_at_once() {
    let mut world = World::new();
    let binary = world.binary("home");
    world.peer_mut(binary).habits.answers_pings = false;
    world.pass_until(secs(61), |world| !world.peer(binary).seen.is_empty());
    assert_eq!(world.heard(binary), closed(DEAD.0, DEAD.1));
    assert!(world.is_gone(binary));
    world.finish();
}

#[test]
fn a_peer_that_vanished_with_data_queued_is_found_as_fast() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    next_ping(&mut world, phone);
    world.vanish(phone);
    let died = world.now;
    // The link takes a little every now and then, as if the peer read: no sign
    // of life, but nothing is stuck either.
    while world.relay.live() == (1, 1) {
        world.deliver(binary, phone, "\"are you there?\"");
        world.peer_mut(phone).link += 20;
        world.pass(secs(1));
    }
    assert!(world.now.since(died) <= PROMISE + secs(1));
    world.finish();
}

#[test]
fn traffic_and_unsolicited_pongs_do_not_count_as_answers() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    world.peer_mut(phone).habits.answers_pings = false;
    let died = world.now;
    let stale = {
        world.pass_until(secs(31), |world| world.peer(phone).pings == 1);
        world.peer(phone).last_ping.clone()
    };
    let mut mutilated = stale.clone();
    mutilated[7] ^= 0x80;
    while world.relay.live() == (1, 1) {
        world.text(phone, "1");
        world.deliver(binary, phone, "1");
        world.send(phone, &wire::frame(wire::PING, b""));
        for payload in [&b""[..], &mutilated, &stale[..7], &[&stale[..], b"0"].concat()] {
            world.send(phone, &wire::frame(wire::PONG, payload));
        }
        world.pass(secs(1));
    }
    assert!(world.now.since(died) <= PROMISE + secs(1));
    world.finish();
}

#[test]
fn the_pong_to_an_older_ping_does_not_count_again() {
    let mut world = World::new();
    let binary = world.binary("home");
    next_ping(&mut world, binary);
    let stale = world.peer(binary).last_ping.clone();
    world.peer_mut(binary).habits.answers_pings = false;
    let died = world.now;
    while world.relay.live() == (1, 0) {
        world.send(binary, &wire::frame(wire::PONG, &stale));
        world.pass(secs(1));
    }
    assert!(world.now.since(died) <= PROMISE + secs(1));
    world.finish();
}

#[test]
fn pings_differ_between_connections_and_from_each_other() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    world.peer_mut(phone).habits.answers_pings = false;
    next_ping(&mut world, binary);
    let of_binary = world.peer(binary).last_ping.clone();
    world.pass_until(secs(31), |world| world.peer(phone).pings > 0);
    assert_ne!(world.peer(phone).last_ping, of_binary);
    // A pong with another connection's payload does not count.
    world.send(phone, &wire::frame(wire::PONG, &of_binary));
    world.pass(secs(31));
    assert_eq!(world.heard(phone), closed(DEAD.0, DEAD.1));
    next_ping(&mut world, binary);
    assert_ne!(world.peer(binary).last_ping, of_binary);
    world.finish();
}

#[test]
fn a_pong_in_the_last_moment_counts() {
    let mut world = World::new();
    let phone = {
        world.binary("home");
        world.phone("home")
    };
    world.peer_mut(phone).habits.answers_pings = false;
    for _ in 0..20 {
        next_ping(&mut world, phone);
        let pong = wire::frame(wire::PONG, &world.peer(phone).last_ping.clone());
        world.pass(secs(30) - 2 * TICK);
        world.send(phone, &pong);
    }
    assert_eq!(world.heard(phone), []);
    world.finish();
}

#[test]
fn a_pong_received_while_the_relay_was_paused_is_read_before_the_verdict() {
    // Long before, at, and long after the moment of the verdict.
    for stood_still in [1, 29, 30, 31, 70, 3600] {
        let mut world = World::new();
        let binary = world.binary("home");
        let phone = world.phone("home");
        let half = world.phone("home");
        world.peer_mut(phone).habits.answers_pings = false;
        next_ping(&mut world, phone);
        let pong = wire::frame(wire::PONG, &world.peer(phone).last_ping.clone());
        world.send_part(half, &wire::frame(wire::TEXT, b"[1]")[..5]);
        world.freeze(secs(stood_still), |world| {
            world.peer_mut(phone).habits.answers_pings = true;
            world.send(phone, &pong);
            world.send(half, &wire::frame(wire::TEXT, b"[1]")[5..]);
        });
        world.pass(secs(100));
        for peer in [phone, half] {
            assert_eq!(world.heard(peer), [], "after {stood_still} s");
        }
        let envelope = world.envelope(half, "[1]");
        assert_eq!(world.heard(binary), [text(&envelope)]);
        world.finish();
    }
}

#[test]
fn after_a_pause_of_the_relay_a_peer_has_its_full_time_to_answer() {
    let mut world = World::new();
    world.binary("home");
    let phone = world.phone("home");
    next_ping(&mut world, phone);
    world.freeze(secs(70), |_| {});
    // The ping of the waking relay is answered late, but not too late.
    let habits = &mut world.peer_mut(phone).habits;
    habits.answers_pings = false;
    world.pass(secs(28));
    let pong = wire::frame(wire::PONG, &world.peer(phone).last_ping.clone());
    world.send(phone, &pong);
    assert_eq!(world.heard(phone), []);
    world.finish();
}

#[test]
fn a_ping_reaches_a_slow_peer_however_many_pongs_wait_for_it() {
    let mut world = World::new();
    let phone = {
        world.binary("home");
        world.phone("home")
    };
    // It pings a lot and reads nothing for a while, just when a ping is due.
    let due = next_ping(&mut world, phone) + secs(30);
    world.pass(due.since(world.now) - secs(5));
    world.stop_reading(phone, 0);
    for _ in 0..100 {
        world.send(phone, &wire::frame(wire::PING, &[b'x'; 125]));
    }
    world.pass(secs(8));
    world.read_on(phone);
    assert_eq!(world.peer(phone).pings, 2);
    world.heard(phone);
    world.pass(secs(120));
    assert_eq!(world.heard(phone), []);
    world.finish();
}

#[test]
fn of_many_peer_pings_the_latest_is_answered_and_memory_is_bounded() {
    let mut world = World::new();
    let phone = {
        world.binary("home");
        world.phone("home")
    };
    world.stop_reading(phone, 0);
    for number in 0..10_000 {
        world.send(phone, &wire::frame(wire::PING, format!("{number:0125}").as_bytes()));
        assert!(world.relay.buffered() < 5_000);
    }
    world.read_on(phone);
    assert_eq!(world.heard(phone).last(), Some(&Seen::Pong(format!("{:0125}", 9_999).into())));
    world.finish();
}

#[test]
fn a_closing_connection_gets_no_heartbeat_close() {
    let mut world = World::new();
    world.binary("home");
    let phone = world.phone("home");
    let habits = &mut world.peer_mut(phone).habits;
    (habits.answers_pings, habits.answers_close, habits.hangs_up) = (false, false, false);
    next_ping(&mut world, phone);
    world.pass(secs(28));
    world.text(phone, "not JSON");
    world.pass(secs(60));
    assert_eq!(world.heard(phone), closed(1007, "frame is not valid JSON"));
    world.finish();
}

#[test]
fn a_dead_binarys_slot_is_in_grace_and_its_phones_stay() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    world.vanish(binary);
    world.pass_until(PROMISE, |world| world.relay.live() == (0, 1));
    let new = world.binary("home");
    assert_eq!(world.heard(phone), closed(4404, "binary reclaimed server-id"));
    assert_eq!(world.heard(new), []);
    world.finish();
}

#[test]
fn a_head_that_is_not_complete_is_not_pinged() {
    let mut world = World::new();
    let peer = world.dial_from(HOME, &peer::claim("home").as_bytes()[..40]);
    world.stop_reading(peer, LINK);
    world.pass(secs(4));
    assert_eq!((world.relay.stats().pings, world.relay.live()), (0, (0, 0)));
    world.finish();
}
