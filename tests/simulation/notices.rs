//! Close notice: what a binary receives when one of its phones has ended.

use std::time::Duration;

use pyrycode_relay::config::{BUFFER_MEMORY, Config, MESSAGE_MAX};
use pyrycode_relay::time::TICK;

use crate::peer::{HOME, LINK, Seen, join};
use crate::wire;
use crate::world::{PeerId, World, closed, secs, text};

/// More than any deadline of a connection.
const LONG: Duration = secs(70);

/// What one slow phone may hold: as much as then is free of the budget.
const PHONE_BACKLOG_MAX: usize = BUFFER_MEMORY / 2;

fn pair() -> (World, PeerId, PeerId) {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    (world, binary, phone)
}

fn ask_for_close(world: &mut World, binary: PeerId, phone: PeerId, frame: &str) {
    let conn_id = world.peer(phone).conn_id();
    let envelope = format!(r#"{{"conn_id":"{conn_id}",{frame}"close_code":4001}}"#);
    world.text(binary, &envelope);
}

fn told(world: &World) -> u64 {
    world.relay.stats().close_notices
}

/// A frame of `len` bytes.
fn blank(len: usize) -> String {
    format!("\"{}\"", " ".repeat(len - 2))
}

fn fill(world: &mut World, binary: PeerId, phone: PeerId, bytes: usize) {
    world.stop_reading(phone, 0);
    for _ in 0..bytes / 50_000 {
        world.deliver(binary, phone, &blank(50_000));
    }
}

/// How a phone ends, and what its binary is told.
type Way = (&'static str, fn(&mut World, PeerId, PeerId), u16);

const WAYS: [Way; 24] = [
    ("a close", |world, _, phone| world.close(phone, 1000, "bye"), 1000),
    ("a close that goes away", |world, _, phone| world.close(phone, 1001, ""), 1001),
    ("a close of its own kind", |world, _, phone| world.close(phone, 4321, "x"), 4321),
    ("a close without a code", |world, _, phone| world.close(phone, 0, ""), 1005),
    ("FIN", |world, _, phone| world.hang_up(phone), 1001),
    ("RST", |world, _, phone| world.reset(phone), 1001),
    (
        "FIN within a frame",
        |world, _, phone| {
            world.send_part(phone, &wire::frame(wire::TEXT, b"[1]")[..5]);
            world.hang_up(phone);
        },
        1001,
    ),
    ("no pong", |world, _, phone| world.vanish(phone), 1011),
    (
        "nothing drains",
        |world, binary, phone| {
            world.stop_reading(phone, 0);
            world.deliver(binary, phone, "1");
        },
        1011,
    ),
    (
        "backlog full",
        |world, binary, phone| fill(world, binary, phone, PHONE_BACKLOG_MAX + LINK),
        1011,
    ),
    (
        "backlog full, and the binary asks for a close with the frame that does not fit",
        |world, binary, phone| {
            fill(world, binary, phone, PHONE_BACKLOG_MAX);
            let frame = format!("\"frame\":{},", blank(MESSAGE_MAX - 200));
            ask_for_close(world, binary, phone, &frame);
        },
        1011,
    ),
    (
        "half a message",
        |world, _, phone| world.send_part(phone, &wire::frame(wire::TEXT, b"[1]")[..5]),
        1008,
    ),
    (
        "a message too long",
        |world, _, phone| {
            let frame = wire::frame(wire::TEXT, &vec![b' '; MESSAGE_MAX + 1]);
            world.send_part(phone, &frame[..14]);
        },
        1009,
    ),
    ("no JSON", |world, _, phone| world.text(phone, "hello"), 1007),
    ("a binary message of no UTF-8", send::<{ wire::BINARY }>, 1007),
    ("a text of no UTF-8", send::<{ wire::TEXT }>, 1007),
    (
        "a reason of no UTF-8",
        |world, _, phone| world.send(phone, &wire::frame(wire::CLOSE, b"\x03\xe8\xff")),
        1007,
    ),
    ("a code that may not be sent", |world, _, phone| world.close(phone, 1006, ""), 1002),
    ("half a code", |world, _, phone| world.send(phone, &wire::frame(wire::CLOSE, &[3])), 1002),
    (
        "no mask",
        |world, _, phone| {
            let mut frame = wire::frame(wire::TEXT, b"1");
            frame[1] &= 0x7f;
            world.send(phone, &frame);
        },
        1002,
    ),
    ("a reserved bit", |world, _, phone| world.send(phone, &wire::raw_frame(0xc1, b"1")), 1002),
    ("a reserved opcode", |world, _, phone| world.send(phone, &wire::frame(3, b"1")), 1002),
    ("a stray fragment", |world, _, phone| world.send(phone, &wire::frame(0, b"1")), 1002),
    (
        "a fragmented ping",
        |world, _, phone| world.send(phone, &wire::raw_frame(wire::PING, b"1")),
        1002,
    ),
];

fn send<const OPCODE: u8>(world: &mut World, _: PeerId, phone: PeerId) {
    world.send(phone, &wire::frame(OPCODE, b"\"\xff\""));
}

#[test]
fn each_end_of_a_phone_is_told_once_with_its_code() {
    for (way, end, code) in WAYS {
        let (mut world, binary, phone) = pair();
        let sibling = world.phone("home");
        world.text(phone, "1");
        end(&mut world, binary, phone);
        world.pass(LONG);
        let expected = [text(&world.envelope(phone, "1")), world.notice(phone, code)];
        assert_eq!(world.heard(binary), expected, "{way}");
        let stats = world.relay.stats();
        assert_eq!((stats.frames_to_binary, stats.close_notices), (1, 1), "{way}");
        // The sibling is not affected.
        assert_eq!((world.relay.live(), world.heard(sibling)), ((1, 1), vec![]), "{way}");
        world.finish();
    }
}

#[test]
fn a_phone_that_is_shed_for_memory_is_told_of() {
    let mut config = Config::default();
    config.limits.rate_per_minute = 0;
    config.limits.buffer_memory = 1024 * 1024;
    let mut world = World::with(config, 100, 1);
    let binary = world.binary("home");
    let (large, small) = (world.phone("home"), world.phone("home"));
    fill(&mut world, binary, small, 400_000);
    fill(&mut world, binary, large, 750_000);
    assert_eq!(world.heard(binary), [world.notice(large, 1011)]);
    assert_eq!(world.relay.live(), (1, 1));
    world.read_on(small);
    world.finish();
}

#[test]
fn the_last_frame_comes_before_the_notice() {
    let ways: [fn(&mut World, PeerId); 4] = [
        |world, phone| world.close(phone, 1000, ""),
        |world, phone| world.hang_up(phone),
        |world, phone| world.text(phone, "not JSON"),
        |world, phone| {
            world.close(phone, 1000, "");
            world.hang_up(phone);
        },
    ];
    for end in ways {
        let (mut world, binary, phone) = pair();
        // All of it is read in one turn.
        world.freeze(secs(1), |world| {
            for number in 0..20 {
                world.text(phone, &number.to_string());
            }
            end(world, phone);
            // None of this is forwarded.
            world.text(phone, "21");
        });
        let seen = world.heard(binary);
        let frames = (0..20).map(|number| text(&world.envelope(phone, &number.to_string())));
        assert!(frames.eq(seen[..20].iter().cloned()), "{seen:?}");
        assert!(matches!(&seen[20..], [Seen::Text(last)] if last.contains("\",\"close_code\":1")));
        world.finish();
    }
}

#[test]
fn frames_behind_the_head_come_before_the_notice() {
    let mut world = World::new();
    let binary = world.binary("home");
    let mut bytes = join("home").into_bytes();
    bytes.extend(wire::frame(wire::TEXT, b"1"));
    bytes.extend(wire::frame(wire::CLOSE, &1000_u16.to_be_bytes()));
    let phone = world.dial_from(HOME, &bytes);
    assert_eq!(world.heard(binary), [text(&world.envelope(phone, "1")), world.notice(phone, 1000)]);
    world.finish();
}

#[test]
fn a_close_that_the_binary_asked_for_is_not_told() {
    for frame in ["", "\"frame\":1,", "\"frame\":null,"] {
        let (mut world, binary, phone) = pair();
        ask_for_close(&mut world, binary, phone, frame);
        world.pass(LONG);
        assert_eq!((world.heard(binary), told(&world)), (vec![], 0));
        world.finish();
    }
    // If the relay or the phone closes first, a notice is sent.
    let (mut world, binary, phone) = pair();
    world.freeze(secs(0), |world| {
        world.close(phone, 1000, "bye");
        ask_for_close(world, binary, phone, "");
    });
    assert_eq!(world.heard(binary), [world.notice(phone, 1000)]);
    world.finish();
    // If the binary's request comes first there is no notice, even if the phone closes in the
    // same turn.
    let (mut world, binary, phone) = pair();
    world.freeze(secs(0), |world| {
        ask_for_close(world, binary, phone, "");
        world.close(phone, 1000, "bye");
    });
    assert_eq!(world.heard(phone), closed(4001, ""));
    assert_eq!((world.heard(binary), told(&world)), (vec![], 0));
    world.finish();
}

#[test]
fn a_frame_for_an_ended_phone_is_dropped_without_a_second_notice() {
    let (mut world, binary, phone) = pair();
    world.close(phone, 1000, "");
    assert_eq!(world.heard(binary), [world.notice(phone, 1000)]);
    world.deliver(binary, phone, "1");
    ask_for_close(&mut world, binary, phone, "");
    assert_eq!((world.heard(binary), told(&world)), (vec![], 1));
    world.finish();
}

#[test]
fn ends_within_grace_are_never_told() {
    let (mut world, binary, leaves) = pair();
    let phones: Vec<PeerId> = (0..4).map(|_| world.phone("home")).collect();
    world.hang_up(binary);
    world.close(leaves, 1000, "");
    world.reset(phones[0]);
    world.text(phones[1], "1");
    assert_eq!(world.heard(phones[1]), closed(4404, "binary disconnected"));
    world.text(phones[2], "not JSON");
    let late = world.phone("home");
    world.hang_up(late);
    // The next binary receives no notice of these phones.
    let next = world.binary("home");
    assert_eq!(world.heard(phones[3]), closed(4404, "binary reclaimed server-id"));
    world.pass(LONG);
    assert_eq!((world.heard(next), told(&world)), (vec![], 0));
    // The end of the grace sends no notice either.
    let last = world.phone("home");
    world.hang_up(next);
    world.pass(LONG);
    assert_eq!(world.heard(last), closed(1000, ""));
    assert_eq!(told(&world), 0);
    world.finish();
}

#[test]
fn a_reclaim_tells_the_new_binary_of_its_own_phones_only() {
    let (mut world, binary, before) = pair();
    world.hang_up(binary);
    let during = world.phone("home");
    let next = world.binary("home");
    for phone in [before, during] {
        assert_eq!(world.heard(phone), closed(4404, "binary reclaimed server-id"));
    }
    let after = world.phone("home");
    world.close(after, 1000, "");
    assert_eq!((world.heard(next), told(&world)), (vec![world.notice(after, 1000)], 1));
    world.finish();
}

#[test]
fn a_takeover_tells_neither_binary_of_the_phones_that_it_closes() {
    for leave in [World::vanish, World::hang_up] {
        let (mut world, old, phone) = pair();
        world.peer_mut(old).habits.answers_pings = false;
        let new = world.binary("home");
        leave(&mut world, old);
        world.pass(secs(11));
        assert_eq!(world.heard(phone), closed(4404, "binary reclaimed server-id"));
        assert_eq!((world.heard(new), told(&world)), (vec![], 0));
        let next = world.phone("home");
        world.hang_up(next);
        assert_eq!(world.heard(new), [world.notice(next, 1001)]);
        world.finish();
    }
}

#[test]
fn phones_that_are_refused_are_not_told_of() {
    let (mut world, binary, _) = pair();
    for _ in 1..16 {
        world.phone("home");
    }
    let extra = world.phone("home");
    world.assert_closed(extra, (4429, "too many phones for server-id"));
    let lost = world.phone("office");
    world.assert_closed(lost, (4404, "no server with that id"));
    world.dial("GET /v1/client HTTP/1.1\r\n\r\n");
    assert_eq!((world.heard(binary), told(&world)), (vec![], 0));
    world.finish();
}

#[test]
fn a_claimant_that_waits_is_told_nothing() {
    let (mut world, binary, phone) = pair();
    world.peer_mut(binary).habits.answers_pings = false;
    let claimant = world.binary("home");
    world.close(phone, 1000, "");
    assert_eq!(world.heard(binary), [world.notice(phone, 1000)]);
    assert_eq!(world.heard(claimant), []);
    world.finish();
}

#[test]
fn phones_that_a_shut_down_closes_are_not_told_of() {
    for drain in [0, 20] {
        let config = Config { drain: secs(drain), ..Config::default() };
        let mut world = World::with(config, 100, 1);
        let binary = world.binary("home");
        let (stays, leaves) = (world.phone("home"), world.phone("home"));
        world.shut_down();
        world.close(leaves, 1000, "");
        // Until its own close a binary receives notices as usual.
        let expected = if drain > 0 { vec![world.notice(leaves, 1000)] } else { vec![] };
        world.pass(secs(drain + 3));
        let mut seen = world.heard(binary);
        assert_eq!(seen.split_off(seen.len() - 2), closed(1001, "shutting down"));
        assert_eq!(seen, expected);
        assert_eq!(world.heard(stays), closed(1001, "shutting down"));
        world.finish();
    }
}

#[test]
fn a_notice_waits_behind_the_backlog_of_a_slow_binary() {
    const LEN: usize = 10_000;
    let (mut world, binary, talks) = pair();
    let (reset, closed_by, dead) = (world.phone("home"), world.phone("home"), world.phone("home"));
    world.stop_reading(binary, LINK);
    let mut sent = 0;
    while world.is_reading(talks) {
        world.text(talks, &blank(LEN));
        sent += 1;
    }
    // One that has delivered is not read, and ends all the same.
    world.text(reset, "1");
    assert!(!world.is_reading(reset) && world.is_reading(closed_by) && world.is_reading(dead));
    let (before, waits) = (world.relay.held(world.peer(binary).id), world.backlog(binary));
    world.reset(reset);
    let queued = world.notice(reset, 1001);
    let Seen::Text(json) = &queued else { unreachable!() };
    assert_eq!(world.backlog(binary), waits + 2 + json.len());
    assert!(world.relay.held(world.peer(binary).id) >= before, "it is charged");
    // Frames of the binary reach phones that are paused.
    fill(&mut world, binary, closed_by, PHONE_BACKLOG_MAX + LINK);
    world.stop_reading(dead, 0);
    world.deliver(binary, dead, "1");
    for _ in 0..4 {
        world.pass(secs(4));
        world.read(binary, 1);
    }
    assert_eq!(world.relay.live(), (1, 1));
    assert_eq!(world.heard(binary).len(), 0, "in the middle of the first frame");
    world.read_on(binary);
    let seen = world.heard(binary);
    assert_eq!(seen.len(), sent + 4);
    let expected = [queued, world.notice(closed_by, 1011), world.notice(dead, 1011)];
    assert_eq!(seen[sent + 1..], expected);
    assert!(world.is_reading(talks));
    world.finish();
}

#[test]
fn notices_alone_do_not_outgrow_the_budget() {
    let mut config = Config::default();
    config.limits.rate_per_minute = 0;
    config.limits.buffer_memory = 64 * 1024;
    let mut world = World::with(config, 100, 1);
    let binary = world.binary("home");
    world.stop_reading(binary, 0);
    let mut count = 0;
    while world.relay.live().0 == 1 {
        let phone = world.phone("home");
        world.hang_up(phone);
        count += 1;
        assert!(count < 2_000, "the binary holds more than there is");
    }
    assert!(count > 500, "closed after {count}");
    world.read_on(binary);
    let seen = world.heard(binary);
    assert_eq!(seen[seen.len() - 2..], closed(1011, "relay out of buffer memory"));
    world.finish();
}

#[test]
fn sixteen_thousand_ends_in_one_turn_are_each_told_to_the_right_binary() {
    const HOUSES: usize = 1_000;
    let mut config = Config::default();
    config.limits.rate_per_minute = 0;
    let mut world = World::with(config, 17 * HOUSES, 1);
    let houses: Vec<(PeerId, Vec<PeerId>)> = (0..HOUSES)
        .map(|number| {
            let server_id = format!("home{number}");
            let binary = world.binary(&server_id);
            (binary, (0..16).map(|_| world.phone(&server_id)).collect())
        })
        .collect();
    // By phone, so that neighbours end in neither the same way nor the same order.
    let end = |world: &mut World, phone: PeerId, way: usize| match way % 4 {
        0 => world.close(phone, 1000, ""),
        1 => world.hang_up(phone),
        2 => world.reset(phone),
        _ => world.text(phone, "not JSON"),
    };
    world.freeze(secs(0), |world| {
        for place in 0..16 {
            for (number, (_, phones)) in houses.iter().enumerate() {
                world.text(phones[place], &place.to_string());
                end(world, phones[place], place + number);
            }
        }
    });
    assert_eq!(world.relay.live(), (HOUSES, 0));
    assert_eq!(told(&world), 16 * HOUSES as u64);
    for (number, (binary, phones)) in houses.iter().enumerate() {
        let seen = world.heard(*binary);
        for (place, phone) in phones.iter().enumerate() {
            let way = (place + number) % 4;
            let last = world.notice(*phone, [1000, 1001, 1001, 1007][way]);
            let conn_id = world.peer(*phone).conn_id();
            let own: Vec<&Seen> = seen
                .iter()
                .filter(|seen| matches!(seen, Seen::Text(text) if text.contains(conn_id)))
                .collect();
            let frame = text(&world.envelope(*phone, &place.to_string()));
            // What arrived before a reset is read, too.
            assert_eq!(own, [&frame, &last], "phone {place} of {number}");
        }
        assert_eq!(seen.len(), 16 + 16);
    }
    world.pass(secs(6));
    assert_eq!(world.relay.buffered(), 0);
    world.finish();
}

#[test]
fn sixteen_phones_that_die_in_one_tick_are_told_of() {
    let (mut world, binary, first) = pair();
    let mut phones = vec![first];
    phones.extend((1..16).map(|_| world.phone("home")));
    for phone in &phones {
        world.stop_reading(*phone, 0);
        world.deliver(binary, *phone, "1");
    }
    world.pass(secs(10) + 2 * TICK);
    let mut seen = world.heard(binary);
    for phone in &phones {
        let place = seen.iter().position(|seen| *seen == world.notice(*phone, 1011));
        seen.remove(place.expect("each is told of"));
    }
    assert_eq!(seen, []);
    world.finish();
}
