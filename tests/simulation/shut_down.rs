//! Shut-down: every peer is told once, and newcomers see the relay leave.

use std::time::Duration;

use pyrycode_relay::config::Config;
use pyrycode_relay::relay::Input;
use pyrycode_relay::time::TICK;

use crate::peer::{HOME, LINK, Seen, claim, join};
use crate::wire;
use crate::world::{PeerId, World, closed, secs, text};

const LEAVING: (u16, &str) = (1001, "shutting down");
/// Phones are told by then, if their binary was told at once.
const PHONES_AFTER: Duration = Duration::from_millis(1_066);
const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
const READY: &str = "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n";

fn unlimited(mut config: Config) -> Config {
    config.limits.rate_per_minute = 0;
    config
}

fn status(world: &mut World, head: &str) -> Seen {
    let peer = world.dial(head);
    let seen = world.heard(peer);
    assert_eq!(seen[1..], [Seen::End]);
    seen[0].clone()
}

#[test]
fn every_websocket_is_told_once_and_the_relay_is_empty_when_all_have_answered() {
    let mut world = World::new();
    let mut told: Vec<PeerId> = Vec::new();
    for number in 0..5 {
        let server_id = format!("server{number}");
        told.push(world.binary(&server_id));
        for _ in 0..3 {
            told.push(world.phone(&server_id));
        }
    }
    // A claimant and a phone in grace are WebSockets too.
    let vanished = world.binary("home");
    world.vanish(vanished);
    told.push(world.binary("home"));
    let away = world.binary("office");
    let left = world.phone("office");
    told.push(left);
    world.hang_up(away);
    world.shut_down();
    world.pass(PHONES_AFTER);
    for peer in told {
        assert_eq!(world.heard(peer), closed(LEAVING.0, LEAVING.1));
        assert!(world.is_gone(peer));
    }
    assert_eq!(world.relay.live(), (0, 0));
    world.pass(secs(5) + TICK);
    assert!(world.relay.is_empty(), "no connection lingers longer");
    world.finish();
}

#[test]
fn a_closing_websocket_gets_nothing_more() {
    let mut world = World::new();
    world.binary("home");
    let phone = world.phone("home");
    let habits = &mut world.peer_mut(phone).habits;
    (habits.answers_close, habits.hangs_up) = (false, false);
    world.text(phone, "not JSON");
    world.shut_down();
    world.shut_down();
    world.pass(secs(10));
    assert_eq!(world.heard(phone), closed(1007, "frame is not valid JSON"));
    world.finish();
}

#[test]
fn queued_messages_go_out_first() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    world.stop_reading(phone, 2);
    world.stop_reading(binary, 2);
    world.deliver(binary, phone, "\"hello\"");
    world.text(phone, "1");
    world.shut_down();
    world.pass(secs(3));
    world.read_on(phone);
    world.read_on(binary);
    let mut expected = vec![text("\"hello\"")];
    expected.extend(closed(LEAVING.0, LEAVING.1));
    assert_eq!(world.heard(phone), expected);
    assert_eq!(world.heard(binary)[1..], closed(LEAVING.0, LEAVING.1));
    world.finish();
}

#[test]
fn the_binary_is_told_before_its_phones() {
    let mut world = World::new();
    let phones: Vec<PeerId>;
    let binary = {
        // Accepted in another order than they are closed in.
        let binary = world.binary("home");
        phones = (0..3).map(|_| world.phone("home")).collect();
        binary
    };
    for peer in phones.iter().chain([&binary]) {
        world.stop_reading(*peer, LINK);
    }
    world.relay.handle(Input::ShutDown, world.now);
    let first = world.relay.poll_effect();
    let id = world.peer(binary).id;
    assert_eq!(first, Some(pyrycode_relay::relay::Effect::Transmit(id)));
}

#[test]
fn phones_are_told_a_moment_after_their_binary() {
    let mut world = World::new();
    let (binary, phone) = (world.binary("home"), world.phone("home"));
    let away = world.binary("office");
    let left = world.phone("office");
    world.hang_up(away);
    world.shut_down();
    assert_eq!(world.heard(binary), closed(LEAVING.0, LEAVING.1));
    world.pass(secs(1) - TICK);
    for peer in [phone, left] {
        assert_eq!(world.heard(peer), []);
    }
    world.pass(2 * TICK);
    for peer in [phone, left] {
        assert_eq!(world.heard(peer), closed(LEAVING.0, LEAVING.1));
    }
    assert_eq!(world.relay.websockets(), 0);
    world.finish();
}

/// When each of 200 binaries hears that the relay leaves, and its phone.
fn drain(seconds: u64, seed: u64) -> Vec<(PeerId, Duration, Duration)> {
    let config = Config { drain: secs(seconds), ..Config::default() };
    let mut world = World::with(unlimited(config), 1_000, seed);
    let mut tunnels = Vec::new();
    for number in 0..200 {
        let server_id = format!("server{number}");
        tunnels.push((world.binary(&server_id), world.phone(&server_id)));
    }
    world.shut_down();
    let start = world.now;
    let mut told: Vec<(PeerId, Duration)> = Vec::new();
    world.pass_until(secs(seconds) + PHONES_AFTER, |world| {
        for (binary, phone) in &tunnels {
            for peer in [binary, phone] {
                let heard = world.heard(*peer);
                if !heard.is_empty() {
                    assert_eq!(heard, closed(LEAVING.0, LEAVING.1));
                    told.push((*peer, world.now.since(start)));
                }
            }
        }
        told.len() == 2 * tunnels.len()
    });
    assert_eq!(world.relay.websockets(), 0, "nothing keeps the process");
    world.finish();
    let when = |peer: PeerId| told.iter().find(|(other, _)| *other == peer).expect("told").1;
    let mut drained: Vec<_> =
        tunnels.iter().map(|(binary, phone)| (*binary, when(*binary), when(*phone))).collect();
    drained.sort_by_key(|(_, binary, _)| *binary);
    drained
}

#[test]
fn a_drain_is_spread_over_its_time_in_random_order() {
    let drained = drain(8, 1);
    for (_, binary, phone) in &drained {
        let moment = *phone - *binary;
        assert!(moment >= secs(1) && moment <= PHONES_AFTER, "{moment:?}");
    }
    // Of 200 at random within 8 s each second has some 25.
    for second in 0..8 {
        let count = drained.iter().filter(|(_, at, _)| at.as_secs() == second).count();
        assert!((10..=45).contains(&count), "{count} in second {second}");
    }
    let order = |drained: &[(PeerId, _, _)]| drained.iter().map(|(peer, ..)| *peer).collect();
    let (first, again, other): (Vec<_>, Vec<_>, Vec<_>) =
        (order(&drained), order(&drain(8, 1)), order(&drain(8, 2)));
    assert!(!first.is_sorted() && first == again && first != other);
}

#[test]
fn with_no_drain_all_binaries_are_told_at_once() {
    assert!(drain(0, 1).iter().all(|(_, binary, _)| binary.is_zero()));
}

#[test]
fn until_its_close_a_tunnel_works_as_before() {
    let mut world = World::with(unlimited(Config { drain: secs(8), ..Config::default() }), 10, 3);
    let (binary, phone) = (world.binary("home"), world.phone("home"));
    world.shut_down();
    world.pass(TICK);
    assert!(world.is_holder(binary, phone));
    world.deliver(binary, phone, "1");
    assert_eq!(world.heard(phone), [text("1")]);
    world.pass_until(secs(8), |world| world.is_gone(binary));
    assert_eq!(world.heard(binary), closed(LEAVING.0, LEAVING.1));
    world.text(phone, "1");
    assert_eq!(world.heard(phone), closed(4404, "binary disconnected"));
    world.finish();
}

#[test]
fn newcomers_get_503_and_healthz_reports_draining() {
    let mut world = World::new();
    assert_eq!(status(&mut world, HEALTH), Seen::Answer(200));
    assert_eq!(status(&mut world, READY), Seen::Answer(200));
    let half = claim("home");
    let (begin, end) = half.as_bytes().split_at(50);
    let in_flight = world.dial_from(HOME, begin);
    world.shut_down();
    world.send(in_flight, end);
    assert_eq!(world.heard(in_flight), [Seen::Answer(503), Seen::End]);
    for head in [&claim("home"), &join("home"), "GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
        assert_eq!(status(&mut world, head), Seen::Answer(503));
    }
    assert_eq!(status(&mut world, READY), Seen::Answer(503));
    let peer = world.dial(HEALTH);
    assert_eq!(world.heard(peer), [Seen::Answer(503), Seen::End]);
    assert!(world.peer(peer).answer.contains(r#""status":"draining""#));
    // The deadline of a head is still 5 s.
    let silent = world.dial("");
    world.pass(secs(5) + 2 * TICK);
    assert_eq!(world.heard(silent), [Seen::Answer(408), Seen::End]);
    world.finish();
}

#[test]
fn frames_after_the_close_are_not_forwarded() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    for peer in [binary, phone] {
        let habits = &mut world.peer_mut(peer).habits;
        (habits.answers_close, habits.hangs_up) = (false, false);
    }
    world.shut_down();
    world.pass(PHONES_AFTER);
    world.text(phone, "1");
    world.deliver(binary, phone, "1");
    world.send(phone, &wire::frame(wire::PING, b""));
    for peer in [binary, phone] {
        assert_eq!(world.heard(peer), closed(LEAVING.0, LEAVING.1));
    }
    world.finish();
}
