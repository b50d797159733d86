//! Slow peers: backpressure, which peers are closed, and that nothing else is lost.

use std::time::Duration;

use pyrycode_relay::config::{
    BINARY_HIGH_WATER, BINARY_LOW_WATER, Config, MESSAGE_MAX, PHONE_BACKLOG_MIN,
};
use pyrycode_relay::time::TICK;

use crate::peer::{LINK, Seen};
use crate::wire;
use crate::world::{PeerId, World, closed, secs, text};

/// The most memory that an outbox holds beyond its bytes, if nothing of it is sent.
const CHUNK: usize = 16 * 1024;

/// A frame of exactly `len` bytes with a number in it.
fn numbered(number: usize, len: usize) -> String {
    let digits = number.to_string();
    format!("\"{digits}{}\"", " ".repeat(len - 2 - digits.len()))
}

/// The numbers of [`numbered`] frames, bare or in envelopes.
fn numbers(seen: &[Seen]) -> Vec<usize> {
    let number = |text: &String| {
        let frame = text.rsplit_once(":\"").map_or(&text[1..], |(_, frame)| frame);
        frame.split([' ', '"']).next().and_then(|digits| digits.parse().ok())
    };
    seen.iter()
        .filter_map(|seen| match seen {
            Seen::Text(text) => Some(number(text).expect("a number")),
            _ => None,
        })
        .collect()
}

fn is_gapless(numbers: &[usize]) -> bool {
    numbers.iter().copied().eq(0..numbers.len())
}

/// The last close frame seen, and nothing but FIN behind it.
fn assert_ends_with_close(seen: &[Seen], code: u16, reason: &str) {
    assert_eq!(seen[seen.len() - 2..], closed(code, reason));
}

/// A world with this budget in bytes for all queues.
fn with_memory(bytes: usize) -> World {
    let mut config = Config::default();
    config.limits.rate_per_minute = 0;
    config.limits.buffer_memory = bytes;
    World::with(config, 1_000, 1)
}

/// Queues frames to a phone that reads nothing until its backlog is exactly `bytes`.
fn fill(world: &mut World, binary: PeerId, phone: PeerId, bytes: usize) {
    const LEN: usize = 60_000;
    const HEADER: usize = 4;
    world.stop_reading(phone, 0);
    loop {
        let left = bytes - world.backlog(phone);
        match left {
            0 => return,
            // The last two are each as long as a frame with a header of four bytes.
            1..LEN => world.deliver(binary, phone, &numbered(0, left - HEADER)),
            LEN..120_000 => world.deliver(binary, phone, &numbered(0, left / 2 - HEADER)),
            _ => world.deliver(binary, phone, &numbered(0, LEN - HEADER)),
        }
    }
}

#[test]
fn a_phone_that_does_not_drain_has_half_the_budget_and_then_a_close() {
    const LEN: usize = 64 * 1024;
    let mut world = World::new();
    let half = world.config.limits.buffer_memory / 2;
    let binary = world.binary("home");
    let (slow, quick) = (world.phone("home"), world.phone("home"));
    world.stop_reading(slow, LINK);
    let mut sent = 0;
    while world.relay.live() == (1, 2) {
        world.deliver(binary, slow, &numbered(sent, LEN));
        world.deliver(binary, quick, &numbered(sent, LEN));
        sent += 1;
        assert!(world.relay.buffered() <= half + LEN);
    }
    // Frames with their headers of ten bytes: the last of them passes the half.
    assert_eq!(sent, (half + LINK) / (LEN + 10) + 1, "neither less nor more than half");
    // No other peer was affected.
    assert_eq!(numbers(&world.heard(quick)), (0..sent).collect::<Vec<_>>());
    assert_eq!(world.heard(binary), [world.notice(slow, 1011)]);
    assert!(world.relay.buffered() < 2 * LEN, "the backlog is given back at once");
    // The phone reads again within the linger.
    world.pass(secs(4));
    world.read_on(slow);
    let seen = world.heard(slow);
    assert_ends_with_close(&seen, 1011, "phone backlog full");
    assert!(is_gapless(&numbers(&seen)));
    assert!(numbers(&seen).len() < sent);
    world.finish();
}

#[test]
fn n_slow_phones_have_one_part_in_n_plus_1_of_the_budget_each() {
    const BUDGET: usize = 16 * 1024 * 1024;
    for count in [1, 2, 3, 7, 16] {
        let mut world = with_memory(BUDGET);
        let binary = world.binary("home");
        let phones: Vec<PeerId> = (0..count).map(|_| world.phone("home")).collect();
        let share = BUDGET / (count + 1);
        for phone in &phones {
            fill(&mut world, binary, *phone, share);
        }
        assert_eq!(world.relay.live(), (1, count), "of {share} bytes each");
        assert!(phones.iter().all(|phone| world.backlog(*phone) == share), "{count} phones");
        let used = world.relay.buffered() - count * share;
        assert!(used < count * CHUNK, "{count} phones hold {used} bytes beyond their backlogs");
        // One byte more, which with its header is three.
        world.deliver(binary, phones[0], "1");
        assert_eq!(world.relay.live(), (1, count - 1), "{count} phones");
        world.read_on(phones[0]);
        assert_ends_with_close(&world.heard(phones[0]), 1011, "phone backlog full");
        for phone in &phones[1..] {
            world.read_on(*phone);
            assert!(!world.is_gone(*phone));
        }
        world.finish();
    }
}

/// Where one phone holds half, the second may have a third all the same, the next a
/// quarter, and so on. What is then spent is made good by the one that holds most.
#[test]
fn a_phone_within_its_part_is_not_closed_for_what_others_hold() {
    const BUDGET: usize = 16 * 1024 * 1024;
    let mut world = with_memory(BUDGET);
    let binary = world.binary("home");
    let phones: Vec<PeerId> = (0..3).map(|_| world.phone("home")).collect();
    fill(&mut world, binary, phones[0], BUDGET / 2);
    fill(&mut world, binary, phones[1], BUDGET / 3);
    assert_eq!(world.relay.live(), (1, 3));
    fill(&mut world, binary, phones[2], BUDGET / 4);
    assert_eq!(world.relay.live(), (1, 2));
    world.read_on(phones[0]);
    assert_ends_with_close(&world.heard(phones[0]), 1011, "relay out of buffer memory");
    for phone in &phones[1..] {
        world.read_on(*phone);
        world.deliver(binary, *phone, "1");
        assert_eq!(world.heard(*phone).pop(), Some(text("1")));
    }
    world.finish();
}

#[test]
fn one_largest_message_may_wait_for_a_phone_however_little_is_free() {
    const BUDGET: usize = 4 * 1024 * 1024;
    let mut world = with_memory(BUDGET);
    let binary = world.binary("home");
    let phones: Vec<PeerId> = (0..14).map(|_| world.phone("home")).collect();
    let slow = world.phone("home");
    let most = MESSAGE_MAX - world.envelope(slow, "").len();
    // A sixteenth is less than that, and hardly more is free.
    for phone in &phones {
        fill(&mut world, binary, *phone, PHONE_BACKLOG_MIN);
    }
    assert!(BUDGET - world.relay.buffered() < PHONE_BACKLOG_MIN + MESSAGE_MAX);
    world.stop_reading(slow, 0);
    world.deliver(binary, slow, &numbered(0, most));
    assert_eq!(world.relay.live(), (1, 15));
    // A phone with a tenth more is closed.
    world.deliver(binary, slow, &numbered(0, most / 10));
    assert_eq!(world.relay.live(), (1, 14));
    world.read_on(slow);
    assert_ends_with_close(&world.heard(slow), 1011, "phone backlog full");
    world.finish();
}

/// A photo of 16 MiB: 373 frames without a pause, to a phone whose link has a third of
/// the speed of the uplink at home.
#[test]
fn an_attachment_reaches_a_phone_at_a_third_of_the_speed() {
    const FRAMES: usize = 373;
    const LEN: usize = 80_000;
    const STEP: Duration = Duration::from_millis(100);
    let mut world = World::new();
    let binary = world.binary("home");
    let (slow, sibling) = (world.phone("home"), world.phone("home"));
    world.stop_reading(slow, LEN);
    let (mut sent, mut most) = (0, 0);
    while sent < FRAMES || world.backlog(slow) > 0 {
        // 10 Mbit/s up, and whatever else is said at home arrives in the same turn.
        for _ in 0..3.min(FRAMES - sent) {
            world.deliver(binary, slow, &numbered(sent, LEN));
            sent += 1;
        }
        world.deliver(binary, sibling, "1");
        assert_eq!(world.heard(sibling), [text("1")]);
        assert!(world.is_reading(binary));
        most = most.max(world.backlog(slow));
        world.pass(STEP);
        world.read(slow, LEN);
    }
    assert!(most > FRAMES * LEN / 2 && most < FRAMES * LEN * 2 / 3, "{most} bytes waited");
    world.read_on(slow);
    let seen = world.heard(slow);
    assert_eq!(numbers(&seen), (0..FRAMES).collect::<Vec<_>>());
    for (number, seen) in seen.iter().enumerate() {
        assert_eq!(*seen, text(&numbered(number, LEN)));
    }
    world.finish();
}

#[test]
fn a_phone_that_drains_slowly_but_steadily_stays_and_gets_everything() {
    const LEN: usize = 100_000;
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    world.stop_reading(phone, LINK);
    for number in 0..30 {
        world.deliver(binary, phone, &numbered(number, LEN));
    }
    // 3 MB in steps of 9 s. The heartbeat's pings overtake the backlog.
    while world.relay.buffered() > 0 {
        world.pass(secs(9));
        world.read(phone, LINK);
    }
    world.read_on(phone);
    let seen = world.heard(phone);
    assert_eq!((numbers(&seen).len(), seen.len()), (30, 30));
    assert!(is_gapless(&numbers(&seen)));
    world.finish();
}

#[test]
fn a_phone_that_drains_nothing_for_10_s_is_closed() {
    let mut world = World::new();
    let binary = world.binary("home");
    let (slow, sibling) = (world.phone("home"), world.phone("home"));
    world.stop_reading(slow, 10);
    world.deliver(binary, slow, &numbered(0, 100));
    world.deliver(binary, slow, &numbered(1, 100));
    // A byte starts the time anew.
    world.pass(secs(9));
    world.read(slow, 1);
    let took = world.pass_until(secs(11), |world| world.relay.live() == (1, 1));
    assert!((secs(10) - TICK..secs(10) + 2 * TICK).contains(&took), "{took:?}");
    // The sibling still receives frames.
    world.deliver(binary, sibling, "1");
    assert_eq!(world.heard(sibling), [text("1")]);
    world.pass(secs(4));
    assert!(!world.is_gone(slow), "it may read on within the linger");
    world.read_on(slow);
    let seen = world.heard(slow);
    assert_eq!(numbers(&seen), [0], "the frame that was begun");
    assert_ends_with_close(&seen, 1011, "write timeout");
    world.finish();
}

#[test]
fn a_phone_that_never_reads_on_is_dropped_after_the_linger() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    world.stop_reading(phone, 0);
    world.deliver(binary, phone, "1");
    world.pass(secs(10) + 2 * TICK);
    assert_eq!(world.relay.live(), (1, 0));
    let took = world.pass_until(secs(6), |world| world.is_gone(phone));
    assert!((secs(4)..secs(5) + TICK).contains(&took), "{took:?}");
    assert_eq!(world.relay.buffered(), 0);
    world.finish();
}

#[test]
fn a_ping_overtakes_queued_messages_at_the_next_frame_boundary() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    world.stop_reading(phone, 1000);
    world.deliver(binary, phone, &numbered(0, 5000));
    for number in 1..20 {
        world.deliver(binary, phone, &numbered(number, 50_000));
    }
    // A byte now and then, for an interval: one ping is queued.
    for _ in 0..6 {
        world.pass(secs(5));
        world.read(phone, 1);
    }
    while world.peer(phone).texts == 0 {
        world.read(phone, 50);
    }
    world.read(phone, 50);
    assert_eq!(world.peer(phone).pings, 1, "right behind the frame under way");
    world.read_on(phone);
    assert_eq!(numbers(&world.heard(phone)).len(), 20);
    world.finish();
}

#[test]
fn a_slow_binary_stops_the_reading_of_its_phones_and_loses_nothing() {
    const LEN: usize = 10_000;
    const COUNT: usize = 200;
    let mut world = World::new();
    let binary = world.binary("home");
    let bystander = world.binary("office");
    let phones: Vec<PeerId> = (0..4).map(|_| world.phone("home")).collect();
    let others = world.phone("office");
    world.stop_reading(binary, LINK);
    for number in 0..COUNT {
        for phone in &phones {
            world.text(*phone, &numbered(number, LEN));
        }
    }
    assert!(phones.iter().all(|phone| !world.is_reading(*phone)));
    // What one message of each phone can add.
    let most = BINARY_HIGH_WATER + phones.len() * (LEN + 64);
    assert!((BINARY_HIGH_WATER..most).contains(&world.relay.buffered()));
    // A phone that comes now waits as soon as it has delivered; strangers do not.
    let late = world.phone("home");
    assert!(world.is_reading(late) && world.is_reading(others));
    world.text(late, "1");
    assert!(!world.is_reading(late));
    world.text(others, "1");
    assert_eq!(world.heard(bystander).len(), 1);
    // Resumed at the low-water mark, not before.
    while world.relay.buffered() > BINARY_LOW_WATER + 5_000 {
        world.read(binary, 5_000);
        assert!(!world.is_reading(late), "{} bytes wait", world.relay.buffered());
    }
    world.read(binary, 10_000);
    assert!(world.relay.buffered() > BINARY_LOW_WATER, "there was more to read at once");
    world.read_on(binary);
    assert!(phones.iter().all(|phone| world.is_reading(*phone)) && world.is_reading(late));
    let seen = world.heard(binary);
    for phone in &phones {
        let own: Vec<Seen> = seen
            .iter()
            .filter(|seen| matches!(seen, Seen::Text(text) if text.contains(world.peer(*phone).conn_id())))
            .cloned()
            .collect();
        assert_eq!(numbers(&own), (0..COUNT).collect::<Vec<_>>());
        assert_eq!(world.heard(*phone), []);
    }
    assert_eq!(seen.len(), COUNT * phones.len() + 1);
    world.finish();
}

#[test]
fn a_binary_that_drains_nothing_for_10_s_is_closed_and_its_grace_starts() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    world.stop_reading(binary, 0);
    for number in 0..50 {
        world.text(phone, &numbered(number, 10_000));
    }
    assert!(!world.is_reading(phone));
    let took = world.pass_until(secs(11), |world| world.relay.live().0 == 0);
    assert!((secs(10)..secs(10) + 2 * TICK).contains(&took), "{took:?}");
    // The phone is read again, and what it sends has no receiver.
    assert_eq!(world.heard(phone), closed(4404, "binary disconnected"));
    let quiet = world.phone("home");
    assert_eq!((world.heard(quiet), world.relay.slots()), (vec![], 1));
    world.read_on(binary);
    assert_eq!(world.heard(binary), closed(1011, "write timeout"));
    world.pass(secs(31));
    assert_eq!(world.relay.slots(), 0);
    world.finish();
}

#[test]
fn a_takeover_from_a_slow_binary_lets_new_phones_be_read() {
    let mut world = World::new();
    let binary = world.binary("home");
    let phone = world.phone("home");
    world.stop_reading(binary, LINK);
    for number in 0..50 {
        world.text(phone, &numbered(number, 10_000));
    }
    let new = world.binary("home");
    world.pass(secs(10) + 2 * TICK);
    assert!(world.heard(phone).contains(&Seen::Close(4404, "binary reclaimed server-id".into())));
    let next = world.phone("home");
    assert!(world.is_reading(next));
    world.text(next, "1");
    assert_eq!(world.heard(new).len(), 1);
    world.finish();
}

#[test]
fn only_the_deadlines_of_a_phone_that_is_paused_pause() {
    let mut world = World::new();
    let binary = world.binary("home");
    let [busy, half, dead] = [(); 3].map(|()| world.phone("home"));
    world.stop_reading(binary, 2_000);
    for number in 0..100 {
        world.text(busy, &numbered(number, 5_000));
    }
    assert!(!world.is_reading(busy));
    // They deliver nothing, so they are read, and judged as ever.
    assert!(world.is_reading(half) && world.is_reading(dead));
    world.send_part(half, &wire::frame(wire::TEXT, b"[1]")[..5]);
    world.vanish(dead);
    world.heard(binary);
    // The binary goes on so slowly that the slot stays full.
    for step in 0..30 {
        world.pass(secs(9));
        world.read(binary, 2_000);
        world.read(binary, 2_000);
        let expected = [(27, (1, 3)), (63, (1, 1))];
        if let Some((_, live)) = expected.iter().find(|(at, _)| *at == 9 * (step + 1)) {
            assert_eq!(world.relay.live(), *live, "after {} s", 9 * (step + 1));
        }
    }
    assert_eq!(world.heard(half), closed(1008, "message timeout"));
    assert!(!world.is_reading(busy));
    assert!(world.peer(busy).pings > 5, "it is pinged none the less");
    world.read_on(binary);
    world.pass(TICK);
    assert_eq!(world.heard(busy), vec![], "its pongs were there");
    // And then the clock of its heartbeat runs again.
    world.vanish(busy);
    world.pass(secs(60) + 2 * TICK);
    assert_eq!(world.relay.live(), (1, 0));
    world.finish();
}
