//! Close notice, over real sockets: what a binary receives when a phone has ended.

use std::io::Write;

use pyrycode_relay::config::BINARY_HIGH_WATER;

use crate::support::{
    NEVER, Opcode, Peer, Received, Scrape, binary_head, connect_reading_little, envelope,
    eventually, frame, header, healthz, millis, phone_head, relay, settled, watched,
};

fn notice(conn_id: &str, code: u16) -> String {
    format!(r#"{{"conn_id":"{conn_id}","close_code":{code}}}"#)
}

#[test]
fn a_binary_is_told_of_each_end_behind_the_last_frame() {
    type End = fn(Peer) -> Option<Peer>;
    let ends: [(&str, End, u16); 7] = [
        ("close", |mut phone| (phone.send_close(1000), Some(phone)).1, 1000),
        ("empty close", |mut phone| (phone.send(Opcode::Close, b""), Some(phone)).1, 1005),
        ("FIN", |phone| (phone.finish(), Some(phone)).1, 1001),
        ("RST", |phone| (phone.reset(), None).1, 1001),
        ("unmasked", |mut phone| (phone.send_raw(b"\x81\x011"), Some(phone)).1, 1002),
        ("no JSON", |mut phone| (phone.send_text("{"), Some(phone)).1, 1007),
        ("too big", |mut phone| (phone.send_raw(&header(0x81, 1 << 32)), Some(phone)).1, 1009),
    ];
    let (relay, metrics) = watched(100, |config| config.timeouts.linger = NEVER);
    let mut binary = Peer::binary(relay, "home");
    for (what, end, code) in ends {
        let mut phone = Peer::phone(relay, "home");
        let id = phone.id.clone();
        phone.send_text("\"last\"");
        // A reset destroys what was not read yet.
        assert!(binary.receive_text().ends_with("\"last\"}"), "{what}");
        let _phone = end(phone);
        assert_eq!(binary.receive_text(), notice(&id, code), "{what}");
    }
    // No notice of a close that the binary requested, nor of phones of another slot.
    let mut phone = Peer::phone(relay, "home");
    binary.send_text(&notice(&phone.id, 4001));
    assert_eq!(phone.receive(), Received::Close(Some((4001, String::new()))));
    let _refused = Peer::phone(relay, "nowhere");
    binary.expect_alive();
    let scrape = Scrape::of(metrics);
    assert_eq!(scrape.value("close_notices_total"), 7.0);
    assert_eq!(scrape.value("frames_forwarded_total{direction=\"phone_to_binary\"}"), 7.0);
}

#[test]
fn a_binary_is_told_of_phones_whose_time_is_over() {
    let relay = relay(|config| {
        config.timeouts.message = millis(300);
        config.timeouts.write = millis(300);
    });
    let mut binary = Peer::binary(relay, "home");
    let mut half = Peer::phone(relay, "home");
    half.send_raw(&frame(Opcode::Text, true, b"[1]")[..7]);
    assert_eq!(binary.receive_text(), notice(&half.id, 1008));
    let stuck = Peer::upgrade(connect_reading_little(relay), &phone_head("home"));
    let large = format!("\"{}\"", "x".repeat(64_000));
    for _ in 0..30 {
        binary.send_to(&stuck.id, &large);
    }
    assert_eq!(binary.receive_text(), notice(&stuck.id, 1011));
}

#[test]
fn a_binary_is_told_of_a_phone_that_has_died() {
    let relay = relay(|config| {
        config.timeouts.ping_interval = millis(100);
        config.timeouts.pong = millis(300);
    });
    let mut binary = Peer::binary(relay, "home");
    let dead = Peer::phone(relay, "home");
    assert_eq!(binary.receive_text(), notice(&dead.id, 1011));
}

/// A phone is not read while its binary is slow. What it sent before it reset the
/// connection is still in the kernel, and comes before the notice.
#[test]
fn a_phone_that_resets_while_it_is_paused_is_told_of_behind_its_frames() {
    const COUNT: usize = 200;
    let (relay, metrics) = watched(100, |config| config.timeouts.write = NEVER);
    let mut binary = Peer::upgrade(connect_reading_little(relay), &binary_head("home"));
    let (mut talks, mut resets) = (Peer::phone(relay, "home"), Peer::phone(relay, "home"));
    let large = format!("\"{}\"", "x".repeat(60_000));
    let mut stream = talks.stream.try_clone().unwrap();
    let flood = std::thread::spawn(move || {
        let frame = frame(Opcode::Text, true, large.as_bytes());
        (0..COUNT).take_while(|_| stream.write_all(&frame).is_ok()).count()
    });
    // The binary's backlog does not shrink, so its phones are paused.
    let buffered = || Scrape::of(metrics).value("buffered_bytes");
    assert!(settled(buffered) > BINARY_HIGH_WATER as f64);
    let id = resets.id.clone();
    for number in 0..3 {
        resets.send_text(&number.to_string());
    }
    resets.reset();
    // The binary reads again: the frames of both phones arrive, each phone's in order.
    let (mut large, mut small) = (0, Vec::new());
    while large < COUNT || small.len() < 4 {
        let text = binary.receive_text();
        if text.contains(&id) {
            small.push(text);
        } else {
            assert!(text.starts_with(&format!("{{\"conn_id\":\"{}\",\"frame\":", talks.id)));
            large += 1;
        }
    }
    assert_eq!(flood.join().unwrap(), COUNT);
    let mut expected: Vec<String> = (0..3).map(|n| envelope(&id, &n.to_string())).collect();
    expected.push(notice(&id, 1001));
    assert_eq!(small, expected);
    eventually("its place is free", || healthz(relay) == (1, 1));
    talks.expect_alive();
}
