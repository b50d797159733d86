//! Probes and takeover: two binaries, one server-id.

use pyrycode_relay::config::Config;
use pyrycode_relay::time::TICK;

use crate::peer::{self, Seen};
use crate::wire;
use crate::world::{PeerId, World, closed, secs, text};

const CLAIMED: (u16, &str) = (4409, "server-id already claimed");
const RECLAIMED: (u16, &str) = (4404, "binary reclaimed server-id");
const DEAD: (u16, &str) = (1011, "heartbeat timeout");

#[test]
fn an_incumbent_that_answers_the_probe_stays() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    let pings = world.peer(binary).pings;
    let claimant = world.binary("home");
    assert_eq!(world.peer(binary).pings, pings + 1, "one extra ping");
    world.assert_closed(claimant, CLAIMED);
    assert!(world.is_holder(binary, phone));
    assert_eq!(world.heard(phone), []);
    world.finish();
}

#[test]
fn an_incumbent_that_does_not_answer_for_10_s_is_taken_over() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    world.peer_mut(binary).habits.answers_pings = false;
    // The first ordinary ping is out and not answered: the probe is one more.
    world.pass_until(secs(31), |world| world.peer(binary).pings == 1);
    let claimant = world.binary("home");
    assert_eq!(world.peer(binary).pings, 2);
    let took = world.pass_until(secs(11), |world| !world.peer(phone).seen.is_empty());
    assert!((secs(10)..secs(10) + 2 * TICK).contains(&took), "{took:?}");
    world.assert_closed(phone, RECLAIMED);
    world.assert_closed(binary, DEAD);
    assert_eq!(world.heard(claimant), []);
    assert_eq!(world.relay.live(), (1, 0));
    assert_eq!(world.relay.stats().takeovers, 1);
    let again = world.phone("home");
    assert!(world.is_holder(claimant, again));
    world.pass(secs(120));
    assert!(world.is_holder(claimant, again), "the new holder has a heartbeat");
    world.finish();
}

/// A slow binary gets its ten seconds from when the probe's ping has left the relay: behind the
/// rest of a frame of maximum size at 20 KB/s that takes longer than ten seconds by itself.
#[test]
fn a_slow_incumbent_that_is_probed_behind_a_large_frame_stays() {
    const A_SECOND: usize = 20_000;
    for is_alive in [true, false] {
        let mut world = World::new();
        let binary = world.binary("home");
        let phone = world.phone("home");
        world.stop_reading(binary, A_SECOND);
        world.text(phone, &format!("\"{}\"", "x".repeat(256 * 1024 - 2)));
        world.peer_mut(binary).habits.answers_pings = is_alive;
        let claimant = world.binary("home");
        let began = world.now;
        let mut seconds = 0;
        while world.peer(claimant).seen.is_empty() && world.relay.live() == (1, 1) {
            world.pass(secs(1));
            world.read(binary, A_SECOND);
            seconds += 1;
            assert!(seconds < 40, "no verdict");
        }
        if is_alive {
            assert!(seconds > 12, "{seconds} s: it was not probed behind the frame");
            world.assert_closed(claimant, CLAIMED);
            assert_eq!(world.relay.stats().takeovers, 0);
        } else {
            // 14 s for the frame, then ten.
            let took = world.now.since(began);
            assert!((secs(22)..secs(25)).contains(&took), "{took:?}");
            assert_eq!(world.relay.stats().takeovers, 1);
        }
    }
}

/// What never leaves is not waited for longer than an ordinary ping is.
#[test]
fn an_incumbent_that_takes_no_byte_is_taken_over_after_30_s_at_most() {
    let mut config = Config::default();
    // Out of the way.
    config.timeouts.write = secs(300);
    config.timeouts.ping_interval = secs(300);
    let mut world = World::with(config, 1_000, 1);
    let binary = world.binary("home");
    world.stop_reading(binary, 0);
    let claimant = world.binary("home");
    let took = world.pass_until(secs(31), |world| world.relay.stats().takeovers == 1);
    assert!((secs(30)..secs(30) + 2 * TICK).contains(&took), "{took:?}");
    assert_eq!(world.heard(claimant), []);
}

#[test]
fn a_half_open_incumbent_is_taken_over_too() {
    let mut world = World::new();
    let binary = world.binary("home");
    world.vanish(binary);
    let claimant = world.binary("home");
    world.pass(secs(10) + 2 * TICK);
    assert_eq!((world.relay.live(), world.heard(claimant)), ((1, 0), vec![]));
    world.pass(secs(5) + TICK);
    assert!(world.is_gone(binary), "the linger is over");
    world.finish();
}

#[test]
fn of_several_claimants_the_first_gets_the_slot() {
    let mut world = World::new();
    let binary = world.binary("home");
    world.vanish(binary);
    let claimants: Vec<PeerId> = (0..4)
        .map(|_| {
            world.pass(secs(2));
            world.binary("home")
        })
        .collect();
    // One probe for all: 10 s from the first.
    world.pass(secs(4) + 2 * TICK);
    assert_eq!(world.heard(claimants[0]), []);
    for late in &claimants[1..] {
        world.assert_closed(*late, CLAIMED);
    }
    let phone = world.phone("home");
    assert!(world.is_holder(claimants[0], phone));
    world.finish();
}

#[test]
fn all_claimants_are_refused_when_the_incumbent_answers_late() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    world.stop_reading(binary, 0);
    let claimants = [world.binary("home"), world.binary("home")];
    world.pass(secs(10) - TICK);
    world.read_on(binary);
    for claimant in claimants {
        world.assert_closed(claimant, CLAIMED);
    }
    assert!(world.is_holder(binary, phone));
    world.finish();
}

#[test]
fn only_a_pong_to_the_probe_or_a_later_ping_answers_it() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    world.peer_mut(binary).habits.answers_pings = false;
    let claimant = world.binary("home");
    for payload in [&b""[..], b"\0\0\0\0\0\0\0\x01", b"guessing"] {
        world.send(binary, &wire::frame(wire::PONG, payload));
    }
    world.send(binary, &wire::frame(wire::PING, b"hello"));
    world.deliver(binary, phone, "1");
    assert_eq!(world.heard(phone), [text("1")], "it is heard until deposed");
    world.pass(secs(10) + 2 * TICK);
    assert_eq!(world.heard(claimant), []);
    assert_eq!(world.heard(binary).last(), Some(&Seen::End));
    assert_eq!(world.relay.stats().takeovers, 1);
    world.finish();
}

#[test]
fn a_pong_to_an_earlier_ping_does_not_answer_the_probe() {
    let mut world = World::new();
    let binary = world.binary("home");
    world.peer_mut(binary).habits.answers_pings = false;
    world.pass_until(secs(31), |world| world.peer(binary).pings == 1);
    let earlier = world.peer(binary).last_ping.clone();
    let claimant = world.binary("home");
    world.send(binary, &wire::frame(wire::PONG, &earlier));
    assert_eq!(world.heard(claimant), []);
    world.pass(secs(10) + 2 * TICK);
    world.assert_closed(binary, DEAD);
    world.finish();
}

#[test]
fn a_pong_to_a_ping_after_the_probe_answers_it() {
    let mut world = World::new();
    let binary = world.binary("home");
    world.peer_mut(binary).habits.answers_pings = false;
    // An ordinary ping is less than 10 s away.
    world.pass_until(secs(31), |world| world.peer(binary).pings == 1);
    let pong = wire::frame(wire::PONG, &world.peer(binary).last_ping.clone());
    world.send(binary, &pong);
    world.pass(secs(25));
    let claimant = world.binary("home");
    world.pass_until(secs(6), |world| world.peer(binary).pings == 3);
    let pong = wire::frame(wire::PONG, &world.peer(binary).last_ping.clone());
    world.send(binary, &pong);
    world.assert_closed(claimant, CLAIMED);
    world.finish();
}

#[test]
fn a_claimant_is_not_pinged_and_not_read() {
    let mut world = World::new();
    let binary = world.binary("home");
    world.vanish(binary);
    let mut head = peer::claim("home").into_bytes();
    head.extend(wire::frame(wire::PING, b"early"));
    let claimant = world.dial_from(peer::HOME, &head);
    world.send(claimant, &wire::frame(wire::PING, b"late"));
    assert!(!world.is_reading(claimant));
    world.pass(secs(9));
    assert_eq!(world.heard(claimant), [Seen::Answer(101)]);
    assert_eq!(world.peer(claimant).pings, 0);
    // Both were kept.
    world.pass(secs(1) + 2 * TICK);
    assert_eq!(world.heard(claimant), [Seen::Pong(b"early".into()), Seen::Pong(b"late".into())]);
    world.finish();
}

#[test]
fn a_claimant_that_disconnects_is_forgotten() {
    for leave in [World::hang_up, World::reset] {
        let mut world = World::new();
        let binary = world.binary("home");
        world.vanish(binary);
        let first = world.binary("home");
        let second = world.binary("home");
        // Also if its FIN follows data that is unread.
        world.text(first, "{}");
        leave(&mut world, first);
        assert!(world.is_gone(first));
        world.pass(secs(10) + 2 * TICK);
        assert_eq!(world.heard(second), []);
        let phone = world.phone("home");
        assert!(world.is_holder(second, phone));
        world.finish();
    }
}

#[test]
fn when_every_claimant_has_disconnected_the_incumbent_stays() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    world.stop_reading(binary, 0);
    let claimant = world.binary("home");
    world.hang_up(claimant);
    world.pass(secs(9));
    // The next claim has its own 10 s.
    let next = world.binary("home");
    world.pass(secs(1) - TICK);
    world.read_on(binary);
    world.assert_closed(next, CLAIMED);
    assert!(world.is_holder(binary, phone));
    world.finish();
}

#[test]
fn an_incumbent_that_closes_meanwhile_is_replaced_at_once() {
    for leave in
        [World::hang_up, World::reset, |world: &mut World, peer| world.close(peer, 1001, "")]
    {
        let mut world = World::new();
        let binary = world.binary("home");
        let phone = world.phone("home");
        world.peer_mut(binary).habits.answers_pings = false;
        let claimants = [world.binary("home"), world.binary("home")];
        leave(&mut world, binary);
        world.assert_closed(phone, RECLAIMED);
        assert_eq!(world.heard(claimants[0]), []);
        world.assert_closed(claimants[1], CLAIMED);
        let again = world.phone("home");
        assert!(world.is_holder(claimants[0], again));
        world.finish();
    }
}

#[test]
fn a_displaced_binary_never_affects_the_new_holder() {
    for leave in
        [World::hang_up, World::reset, |world: &mut World, peer| world.close(peer, 1000, "")]
    {
        let mut world = World::new();
        let old = world.binary("home");
        let habits = &mut world.peer_mut(old).habits;
        (habits.answers_pings, habits.answers_close, habits.hangs_up) = (false, false, false);
        let new = world.binary("home");
        world.pass(secs(10) + 2 * TICK);
        let phone = world.phone("home");
        world.deliver(old, phone, "1");
        leave(&mut world, old);
        world.pass(secs(60));
        assert_eq!(world.heard(phone), []);
        assert!(world.is_holder(new, phone));
        assert_eq!((world.relay.slots(), world.relay.live()), (1, (1, 1)));
        world.finish();
    }
}

#[test]
fn a_claimant_whose_first_frame_is_bad_leaves_the_slot_in_grace() {
    let mut world = World::new();
    let binary = world.binary("home");
    world.vanish(binary);
    let mut head = peer::claim("home").into_bytes();
    head.extend(wire::raw_frame(0xf1, b""));
    let claimant = world.dial_from(peer::HOME, &head);
    let second = world.binary("home");
    world.pass(secs(10) + 2 * TICK);
    assert_eq!(world.heard(claimant)[1..], closed(1002, "protocol error"));
    world.assert_closed(second, CLAIMED);
    assert_eq!((world.relay.slots(), world.relay.live()), (1, (0, 0)));
    world.finish();
}
