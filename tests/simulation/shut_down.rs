//! Shut-down: everybody is told once, newcomers see it leave.

use pyrycode_relay::time::TICK;

use crate::peer::{HOME, LINK, Seen, claim, join};
use crate::wire;
use crate::world::{PeerId, World, closed, secs, text};

const LEAVING: (u16, &str) = (1001, "shutting down");
const HEALTH: &str = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
const READY: &str = "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n";

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
    for peer in told {
        assert_eq!(world.heard(peer), closed(LEAVING.0, LEAVING.1));
        assert!(world.is_gone(peer));
    }
    assert_eq!(world.relay.live(), (0, 0));
    world.pass(secs(5) + TICK);
    assert!(world.relay.is_empty(), "nobody lingers longer");
    world.finish();
}

#[test]
fn one_that_is_closing_already_gets_nothing_more() {
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
    world.pass(secs(2));
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
    world.relay.shut_down(world.now);
    let first = world.relay.poll_effect();
    let id = world.peer(binary).id;
    assert_eq!(first, Some(pyrycode_relay::relay::Effect::Transmit(id)));
}

#[test]
fn newcomers_get_503_and_health_tells() {
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
    // A head that never comes is still over after 5 s.
    let silent = world.dial("");
    world.pass(secs(5) + 2 * TICK);
    assert_eq!(world.heard(silent), [Seen::Answer(408), Seen::End]);
    world.finish();
}

#[test]
fn frames_that_come_after_it_go_nowhere() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    for peer in [binary, phone] {
        let habits = &mut world.peer_mut(peer).habits;
        (habits.answers_close, habits.hangs_up) = (false, false);
    }
    world.shut_down();
    world.text(phone, "1");
    world.deliver(binary, phone, "1");
    world.send(phone, &wire::frame(wire::PING, b""));
    for peer in [binary, phone] {
        assert_eq!(world.heard(peer), closed(LEAVING.0, LEAVING.1));
    }
    world.finish();
}
