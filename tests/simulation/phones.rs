//! Phones: where they may register, and the envelopes made of their frames.

use std::collections::{HashMap, HashSet};

use pyrycode_relay::time::TICK;
use serde_json::value::RawValue;

use crate::peer::Seen;
use crate::wire;
use crate::world::{PeerId, World, secs, text};

const NO_SERVER: (u16, &str) = (4404, "no server with that id");
const TOO_MANY: (u16, &str) = (4429, "too many phones for server-id");
const AWAY: (u16, &str) = (4404, "binary disconnected");
const NOT_JSON: (u16, &str) = (1007, "frame is not valid JSON");

#[test]
fn without_a_slot_a_phone_is_upgraded_and_closed() {
    let mut world = World::new();
    let phone = world.phone("home");
    world.assert_closed(phone, NO_SERVER);
    assert_eq!((world.relay.len(), world.relay.live()), (0, (0, 0)));
    world.finish();
}

#[test]
fn the_17th_phone_of_a_server_id_is_refused() {
    let mut world = World::new();
    let binary = world.binary("home");
    world.binary("office");
    let phones: Vec<PeerId> = (0..16).map(|_| world.phone("home")).collect();
    let extra = world.phone("home");
    world.assert_closed(extra, TOO_MANY);
    let elsewhere = world.phone("office");
    assert_eq!(world.heard(elsewhere), [], "the cap is per server-id");
    // In grace phones count as before.
    world.hang_up(binary);
    let extra = world.phone("home");
    world.assert_closed(extra, TOO_MANY);
    for phone in &phones {
        assert_eq!(world.heard(*phone), []);
    }
    world.hang_up(phones[3]);
    let next = world.phone("home");
    assert_eq!(world.heard(next), []);
    world.finish();
}

#[test]
fn a_phone_in_its_close_linger_counts_against_no_limit() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phones: Vec<PeerId> = (0..16).map(|_| world.phone("home")).collect();
    for phone in &phones {
        // It never answers the close.
        let habits = &mut world.peer_mut(*phone).habits;
        (habits.answers_close, habits.hangs_up) = (false, false);
        world.text(*phone, "not JSON");
    }
    assert_eq!((world.relay.len(), world.relay.live()), (17, (1, 0)));
    for _ in 0..16 {
        let phone = world.phone("home");
        assert_eq!(world.heard(phone), []);
    }
    // What the phone still sends is discarded, and the linger ends.
    world.text(phones[0], "1");
    world.pass(secs(5) + TICK);
    assert_eq!(world.heard(binary).len(), 16, "a close notice each");
    assert!(phones.iter().all(|phone| world.is_gone(*phone)));
    world.finish();
}

#[test]
fn no_server_is_checked_before_too_many() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phones: Vec<PeerId> = (0..16).map(|_| world.phone("home")).collect();
    world.hang_up(binary);
    world.pass(secs(31));
    assert!(phones.iter().all(|phone| world.is_gone(*phone)));
    let phone = world.phone("home");
    world.assert_closed(phone, NO_SERVER);
    world.finish();
}

#[test]
fn conn_ids_are_unique_short_and_not_sequential() {
    let mut world = World::new();
    world.binary("home");
    let mut seen = HashSet::new();
    for _ in 0..200 {
        let phone = world.phone("home");
        let id = world.peer(phone).conn_id().to_owned();
        assert!(id.len() <= 40 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
        let (random, _) = id.split_at(16);
        assert!(seen.insert(random.to_owned()), "{id}");
        world.hang_up(phone);
    }
    // 64 random bits: no bit is always the same.
    let bits = seen.iter().map(|id| u64::from_str_radix(id, 16).expect("hex digits"));
    let (ones, zeros) = bits.fold((0, 0), |(ones, zeros), id| (ones | id, zeros | !id));
    assert_eq!((ones, zeros), (u64::MAX, u64::MAX));
    world.finish();
}

#[test]
fn a_frame_is_embedded_byte_for_byte() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    for frame in [
        "{}",
        "null",
        "\"\"",
        "-0.0e-0",
        "123456789012345678901234567890.10",
        r#"{"b" : 1 ,"a":2,"b":3}"#,
        r#"["\ud800","\u0041\/",{"conn_id":"mine"}]"#,
        "\"\u{7f}\u{feff}ü\u{2028}\u{1f600}\"",
        "[1,\t2,\r\n3]",
    ] {
        world.text(phone, frame);
        let envelope = world.envelope(phone, frame);
        assert_eq!(world.heard(binary), [text(&envelope)]);
        // Binary messages may carry it too; what goes out is text.
        world.send(phone, &wire::frame(wire::BINARY, frame.as_bytes()));
        assert_eq!(world.heard(binary), [text(&envelope)]);
    }
    assert_eq!(world.heard(phone), []);
    world.finish();
}

#[test]
fn white_space_around_a_frame_is_not_part_of_it() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    world.text(phone, " \t\r\n{\"a\": 1} \n");
    let [Seen::Text(envelope)] = &world.heard(binary)[..] else { panic!("one envelope") };
    let fields: HashMap<&str, &RawValue> = serde_json::from_str(envelope).expect("JSON");
    assert_eq!(fields["frame"].get(), "{\"a\": 1}");
    world.finish();
}

#[test]
fn what_is_not_one_json_value_closes_the_phone_in_grace_too() {
    let bad: [&[u8]; 15] = [
        b"",
        b" ",
        b"hello",
        b"{",
        b"{}{}",
        b"[1,]",
        b"01",
        b"1.",
        b"'a'",
        b"nul",
        b"\xef\xbb\xbf{}",
        b"\"\n\"",
        b"\"\\x41\"",
        b"\xff",
        b"\"\xed\xa0\x80\"",
    ];
    for is_grace in [false, true] {
        let mut world = World::new();
        let binary = world.binary("home");
        if is_grace {
            world.hang_up(binary);
        }
        for payload in bad {
            let phone = world.phone("home");
            world.send(phone, &wire::frame(wire::BINARY, payload));
            world.assert_closed(phone, NOT_JSON);
        }
        let is_frame = |seen: &Seen| matches!(seen, Seen::Text(text) if text.contains("frame"));
        assert!(!world.heard(binary).iter().any(is_frame));
        world.finish();
    }
}

#[test]
fn a_frame_while_the_binary_is_away_closes_the_phone() {
    let mut world = World::new();
    let binary = world.binary("home");
    let (talks, waits) = (world.phone("home"), world.phone("home"));
    world.hang_up(binary);
    world.text(talks, "{}");
    world.assert_closed(talks, AWAY);
    assert_eq!(world.heard(waits), []);
    assert_eq!(world.relay.live(), (0, 1));
    world.finish();
}

#[test]
fn frames_behind_the_head_belong_to_the_websocket() {
    let mut world = World::new();
    let binary = world.binary("home");
    let mut bytes = crate::peer::join("home").into_bytes();
    bytes.extend(wire::frame(wire::TEXT, b"1"));
    bytes.extend(&wire::frame(wire::TEXT, b"22")[..4]);
    let phone = world.dial_from(crate::peer::HOME, &bytes);
    world.send(phone, &wire::frame(wire::TEXT, b"22")[4..]);
    let envelopes = [world.envelope(phone, "1"), world.envelope(phone, "22")];
    assert_eq!(world.heard(binary), envelopes.map(|envelope| text(&envelope)));
    world.finish();
}
