//! Messages: lengths, sizes and fragments.

use pyrycode_relay::config::MESSAGE_MAX;
use pyrycode_relay::time::TICK;

use crate::peer::Seen;
use crate::wire;
use crate::world::{World, closed, secs, text};

#[test]
fn control_frames_between_fragments_are_answered_and_the_message_is_whole() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    world.send(phone, &wire::raw_frame(wire::TEXT, b"[1,"));
    world.send(phone, &wire::frame(wire::PING, b"now"));
    assert_eq!(world.heard(phone), [Seen::Pong(b"now".into())]);
    world.send(phone, &wire::raw_frame(0, b"2"));
    assert_eq!(world.heard(binary), []);
    world.send(phone, &wire::raw_frame(wire::FIN, b"]"));
    let envelope = world.envelope(phone, "[1,2]");
    assert_eq!(world.heard(binary), [text(&envelope)]);
    world.finish();
}

#[test]
fn a_message_is_limited_to_256_kib() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    let largest = format!("\"{}\"", "x".repeat(MESSAGE_MAX - 2));
    world.text(phone, &largest);
    let envelope = world.envelope(phone, &largest);
    assert_eq!(world.heard(binary), [text(&envelope)]);
    assert!(envelope.len() <= MESSAGE_MAX + 64);
    // The length in the header decides, before any byte of the payload.
    let too_large = wire::frame(wire::TEXT, format!(" {largest}").as_bytes());
    world.send_part(phone, &too_large[..14]);
    assert_eq!(world.heard(phone)[0], Seen::Close(1009, "message too big".to_owned()));
    // Fragments count together.
    let phone = world.phone("home");
    world.send(phone, &wire::raw_frame(wire::TEXT, &largest.as_bytes()[..MESSAGE_MAX - 1]));
    assert_eq!(world.heard(phone), []);
    world.send(phone, &wire::raw_frame(0, b"x")[..6]);
    assert_eq!(world.heard(phone), []);
    let phone = world.phone("home");
    world.send(phone, &wire::raw_frame(wire::TEXT, &largest.as_bytes()[..MESSAGE_MAX - 1]));
    world.send(phone, &wire::raw_frame(0, b"xy")[..6]);
    assert_eq!(world.heard(phone)[0], Seen::Close(1009, "message too big".to_owned()));
    world.finish();
}

#[test]
fn a_declared_length_takes_no_memory_before_the_bytes_come() {
    let mut world = World::new();
    world.binary("home");
    let phone = world.phone("home");
    let frame = wire::frame(wire::TEXT, &[b' '; MESSAGE_MAX]);
    world.send_part(phone, &frame[..20]);
    assert!(world.relay.buffered() <= 64, "{}", world.relay.buffered());
    world.send_part(phone, &frame[20..1000]);
    assert!(world.relay.buffered() <= 1064, "{}", world.relay.buffered());
    world.finish();
}

#[test]
fn between_messages_a_phone_may_be_silent_for_ever() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    assert_eq!(world.relay.buffered(), 0);
    world.pass(secs(24 * 3600));
    world.text(phone, "1");
    assert_eq!(world.heard(binary).len(), 1);
    assert_eq!(world.heard(phone), []);
    world.finish();
}

#[test]
fn a_message_has_30_s_from_its_first_byte_to_its_last() {
    let frame = wire::frame(wire::TEXT, b"[1,2,3]");
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    for peer in [phone, binary] {
        // Single bytes do not extend the deadline.
        for byte in &frame[..frame.len() - 1] {
            world.send_part(peer, &[*byte]);
            world.pass(secs(2));
        }
        world.pass(secs(30 - 2 * (frame.len() as u64 - 1)) - TICK);
        assert_eq!(world.heard(peer), []);
        world.pass(3 * TICK);
        assert_eq!(world.heard(peer), closed(1008, "message timeout"));
        if peer == phone {
            assert_eq!(world.heard(binary), [world.notice(phone, 1008)]);
        }
    }
    world.finish();
}

#[test]
fn the_fragments_of_a_message_share_its_30_s_whatever_comes_between() {
    let mut world = World::new();
    world.binary("home");
    let phone = world.phone("home");
    world.send(phone, &wire::raw_frame(wire::TEXT, b"["));
    for _ in 0..14 {
        world.pass(secs(2));
        world.send(phone, &wire::frame(wire::PING, b""));
        world.send(phone, &wire::raw_frame(0, b"1"));
    }
    world.heard(phone);
    world.pass(secs(2) - TICK);
    assert_eq!(world.heard(phone), []);
    world.pass(3 * TICK);
    assert_eq!(world.heard(phone), closed(1008, "message timeout"));
    world.finish();
}

#[test]
fn each_message_has_its_own_30_s() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    let frame = wire::frame(wire::TEXT, b"[1,2,3]");
    let (begin, end) = frame.split_at(9);
    world.send_part(phone, begin);
    for _ in 0..10 {
        world.pass(secs(25));
        // One read ends a message and begins the next.
        world.freeze(secs(0), |world| {
            world.send(phone, end);
            world.send_part(phone, begin);
        });
    }
    assert_eq!((world.heard(phone), world.heard(binary).len()), (vec![], 10));
    world.finish();
}
