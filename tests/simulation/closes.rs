//! Exactly one close frame, whichever way a WebSocket ends.
//!
//! The codec of every peer checks that there is never a second one, and nothing after the
//! first.

use pyrycode_relay::config::READ_SIZE;
use pyrycode_relay::time::TICK;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::peer::Seen;
use crate::wire;
use crate::world::{PeerId, World, closed, secs};

fn pair() -> (World, PeerId, PeerId) {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    (world, binary, phone)
}

#[test]
fn a_valid_close_is_echoed_and_an_empty_one_empty() {
    for (code, reason) in
        [(0, ""), (1000, ""), (1001, "gone"), (1014, ""), (3000, "ü"), (4999, "x")]
    {
        let (mut world, binary, phone) = pair();
        for peer in [binary, phone] {
            world.close(peer, code, reason);
            assert_eq!(world.heard(peer), closed(code, reason));
            assert!(world.is_gone(peer));
        }
        assert_eq!((world.relay.slots(), world.relay.live()), (1, (0, 0)));
        world.finish();
    }
}

/// The peer has sent its last frame, and everything that it sent is read: nothing is left to wait
/// for. TLS waits for the end of the peer's, and so does a relay that has more to read.
#[test]
fn a_peer_that_closes_first_is_not_waited_for() {
    for has_tls in [false, true] {
        for has_more in [false, true] {
            let mut world = World::new();
            world.tls_keys = has_tls.then(|| StdRng::seed_from_u64(1));
            let binary = world.binary("home");
            world.peer_mut(binary).habits.hangs_up = false;
            let mut bytes = wire::frame(wire::CLOSE, &1000_u16.to_be_bytes());
            if has_more {
                bytes.resize(READ_SIZE + 1, 0);
            }
            world.send(binary, &bytes);
            assert_eq!(world.heard(binary), closed(1000, ""));
            let is_gone = world.is_gone(binary);
            assert_eq!(is_gone, !has_tls && !has_more, "TLS {has_tls}, more {has_more}");
            world.pass(secs(1));
            assert!(world.is_gone(binary));
        }
    }
}

#[test]
fn a_close_that_may_not_be_sent_is_a_protocol_error() {
    let mut long = vec![0x03, 0xe8];
    long.extend([b'x'; 124]);
    let cases: [(&[u8], u16); 12] = [
        (&[0x03], 1002),
        (&999_u16.to_be_bytes(), 1002),
        (&0_u16.to_be_bytes(), 1002),
        (&1004_u16.to_be_bytes(), 1002),
        (&1005_u16.to_be_bytes(), 1002),
        (&1006_u16.to_be_bytes(), 1002),
        (&1015_u16.to_be_bytes(), 1002),
        (&2999_u16.to_be_bytes(), 1002),
        (&5000_u16.to_be_bytes(), 1002),
        (&u16::MAX.to_be_bytes(), 1002),
        (&long, 1002),
        (b"\x03\xe8\xff", 1007),
    ];
    for (payload, code) in cases {
        let (mut world, _, phone) = pair();
        world.send(phone, &wire::frame(wire::CLOSE, payload));
        let seen = world.heard(phone);
        assert!(matches!(&seen[..], [Seen::Close(c, _), Seen::End] if *c == code), "{seen:?}");
        world.finish();
    }
}

#[test]
fn violations_of_rfc_6455_are_protocol_errors() {
    let mut unmasked = wire::frame(wire::TEXT, b"1");
    unmasked[1] &= 0x7f;
    let cases = [
        ("unmasked", unmasked),
        ("rsv1", wire::raw_frame(0xc0 | wire::TEXT, b"1")),
        ("rsv2", wire::raw_frame(0xa0 | wire::TEXT, b"1")),
        ("rsv3", wire::raw_frame(0x90 | wire::TEXT, b"1")),
        ("opcode 3", wire::frame(3, b"1")),
        ("opcode 7", wire::frame(7, b"1")),
        ("opcode 11", wire::frame(11, b"1")),
        ("opcode 15", wire::frame(15, b"1")),
        ("a fragmented ping", wire::raw_frame(wire::PING, b"1")),
        ("a ping of 126 bytes", wire::frame(wire::PING, &[0; 126])),
        ("a continuation of nothing", wire::frame(0, b"1")),
        (
            "a message within a message",
            [wire::raw_frame(wire::TEXT, b"["), wire::frame(wire::TEXT, b"1")].concat(),
        ),
    ];
    for (what, bytes) in cases {
        let (mut world, binary, phone) = pair();
        for peer in [binary, phone] {
            world.send(peer, &bytes);
            assert_eq!(world.heard(peer), closed(1002, "protocol error"), "{what}");
        }
        world.finish();
    }
}

#[test]
fn a_text_that_is_not_utf_8_closes_either_peer() {
    let (mut world, binary, phone) = pair();
    for peer in [binary, phone] {
        world.send(peer, &wire::frame(wire::TEXT, b"\"\xff\""));
        let seen = world.heard(peer);
        assert!(matches!(&seen[..], [Seen::Close(1007, _), Seen::End]), "{seen:?}");
    }
    world.finish();
}

#[test]
fn crossing_closes_are_one_from_each_end() {
    let (mut world, binary, phone) = pair();
    let conn_id = world.peer(phone).conn_id().to_owned();
    // The relay has both closes in one turn, either one first.
    let envelope = format!(r#"{{"conn_id":"{conn_id}","close_code":4001}}"#);
    world.freeze(secs(0), |world| {
        world.text(binary, &envelope);
        world.close(phone, 1000, "bye");
    });
    assert_eq!(world.heard(phone), closed(4001, ""));
    let phone = world.phone("home");
    let conn_id = world.peer(phone).conn_id().to_owned();
    let envelope = format!(r#"{{"conn_id":"{conn_id}","close_code":4001}}"#);
    world.freeze(secs(0), |world| {
        world.close(phone, 1000, "bye");
        world.text(binary, &envelope);
    });
    assert_eq!(world.heard(phone), closed(1000, "bye"));
    assert_eq!(world.heard(binary), [world.notice(phone, 1000)]);
    world.finish();
}

#[test]
fn a_close_waits_for_a_partly_written_frame() {
    let (mut world, binary, phone) = pair();
    world.stop_reading(phone, 7);
    world.deliver(binary, phone, "\"0123456789\"");
    world.deliver(binary, phone, "2");
    world.close(phone, 1000, "");
    assert_eq!(world.relay.live(), (1, 0));
    world.pass(secs(4));
    world.read_on(phone);
    let mut expected = vec![Seen::Text("\"0123456789\"".to_owned())];
    expected.extend(closed(1000, ""));
    assert_eq!(world.heard(phone), expected);
    world.finish();
}

#[test]
fn a_partly_written_close_is_completed_and_not_repeated() {
    for cut in 0..=4 {
        let (mut world, _, phone) = pair();
        world.stop_reading(phone, cut);
        world.close(phone, 1000, "");
        world.shut_down();
        world.pass(secs(1));
        for _ in 0..4 {
            world.read(phone, 1);
        }
        world.read_on(phone);
        assert_eq!(world.heard(phone), closed(1000, ""), "cut after {cut}");
        world.finish();
    }
}

#[test]
fn messages_queued_ahead_of_a_binarys_close_go_out_first() {
    let (mut world, binary, phone) = pair();
    world.stop_reading(phone, 3);
    let conn_id = world.peer(phone).conn_id().to_owned();
    for frame in ["1", "2"] {
        world.deliver(binary, phone, frame);
    }
    world.text(binary, &format!(r#"{{"conn_id":"{conn_id}","frame":3,"close_code":4001}}"#));
    // The phone reads slowly, but reads.
    for _ in 0..3 {
        world.pass(secs(8));
        world.read(phone, 1);
    }
    world.read_on(phone);
    let mut expected: Vec<Seen> = ["1", "2", "3"].map(|text| Seen::Text(text.to_owned())).into();
    expected.extend(closed(4001, ""));
    assert_eq!(world.heard(phone), expected);
    world.finish();
}

#[test]
fn a_fin_while_our_close_is_queued_does_not_keep_it_from_the_peer() {
    let (mut world, _, phone) = pair();
    world.stop_reading(phone, 0);
    world.text(phone, "not JSON");
    world.hang_up(phone);
    assert!(!world.is_gone(phone));
    world.read_on(phone);
    assert_eq!(world.heard(phone), closed(1007, "frame is not valid JSON"));
    assert!(world.is_gone(phone));
    world.finish();
}

#[test]
fn a_fin_or_a_reset_without_a_close_frees_the_place_at_once() {
    for leave in [World::hang_up, World::reset] {
        let (mut world, binary, phone) = pair();
        leave(&mut world, phone);
        assert_eq!((world.relay.live(), world.relay.len()), ((1, 0), 1));
        leave(&mut world, binary);
        assert_eq!((world.relay.live(), world.relay.len(), world.relay.slots()), ((0, 0), 0, 1));
        world.finish();
    }
}

#[test]
fn what_was_sent_before_the_fin_is_delivered() {
    let (mut world, binary, phone) = pair();
    world.freeze(secs(1), |world| {
        world.text(phone, "1");
        world.hang_up(phone);
    });
    let envelope = Seen::Text(world.envelope(phone, "1"));
    assert_eq!(world.heard(binary), [envelope, world.notice(phone, 1001)]);
    assert!(world.is_gone(phone));
    world.finish();
}

#[test]
fn a_peer_that_does_not_answer_our_close_lingers_5_s() {
    let (mut world, _, phone) = pair();
    let habits = &mut world.peer_mut(phone).habits;
    (habits.answers_close, habits.hangs_up) = (false, false);
    world.text(phone, "not JSON");
    assert_eq!(world.heard(phone), closed(1007, "frame is not valid JSON"));
    let took = world.pass_until(secs(6), |world| world.is_gone(phone));
    assert!((secs(5) - TICK..secs(5) + 2 * TICK).contains(&took), "{took:?}");
    world.finish();
}

#[test]
fn what_a_peer_still_sends_after_our_close_is_drained_but_not_without_end() {
    let (mut world, binary, phone) = pair();
    let habits = &mut world.peer_mut(phone).habits;
    (habits.answers_close, habits.hangs_up) = (false, false);
    world.text(phone, "not JSON");
    let mebibyte = vec![0; 1024 * 1024];
    for _ in 0..4 {
        world.send(phone, &mebibyte);
        assert!(world.is_reading(phone), "unread input makes the kernel send a reset");
        assert!(!world.is_gone(phone));
    }
    world.send(phone, &mebibyte);
    assert!(world.is_gone(phone), "5 MiB are enough");
    assert_eq!(world.heard(binary), [world.notice(phone, 1007)]);
    world.finish();
}

#[test]
fn nothing_is_read_as_a_frame_after_the_close() {
    let (mut world, binary, phone) = pair();
    let habits = &mut world.peer_mut(phone).habits;
    habits.hangs_up = false;
    let mut bytes = wire::frame(wire::CLOSE, &1000_u16.to_be_bytes());
    bytes.extend(wire::frame(wire::TEXT, b"1"));
    bytes.extend(wire::frame(wire::PING, b""));
    world.send(phone, &bytes);
    assert_eq!(world.heard(phone), closed(1000, ""));
    assert_eq!(world.heard(binary), [world.notice(phone, 1000)]);
    world.finish();
}
