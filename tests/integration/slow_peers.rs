//! Slow peers: a phone that does not read is shed, a binary that does not read slows down its
//! phones.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use crate::support::{
    NEVER, Opcode, Peer, Process, Received, binary_head, connect_reading_little,
    connect_writing_little, envelope, eventually, frame, header, healthz, millis, phone_head,
    relay, settled,
};

/// A JSON string that begins with `mark` and is `len` bytes long.
fn numbered(mark: &str, len: usize) -> String {
    format!("\"{mark}:{}\"", "x".repeat(len - mark.len() - 3))
}

/// The number that a message of [`numbered`] begins with.
fn number(json: &str) -> usize {
    json.trim_start_matches('"').split(':').next().unwrap().parse().unwrap()
}

/// Hears numbered messages without a gap, then this close, then the end.
/// Returns how many there were.
fn hear_gapless(phone: &mut Peer, code: u16, reason: &str) -> usize {
    let mut count = 0;
    loop {
        match phone.receive() {
            Received::Text(text) => {
                assert_eq!(number(&text), count);
                count += 1;
            }
            Received::Ping(_) => {}
            Received::Close(why) => {
                assert_eq!(why, Some((code, reason.into())), "after {count} messages");
                assert_eq!(phone.receive(), Received::End);
                return count;
            }
            received => panic!("{received:?} after {count} messages"),
        }
    }
}

#[test]
fn a_phone_that_does_not_read_is_shed_and_delays_no_other() {
    let relay = relay(|config| {
        config.timeouts.linger = NEVER;
        // The phone's bound is half of the budget.
        config.limits.buffer_memory = 8 << 20;
    });
    let mut binary = Peer::binary(relay, "home");
    let mut stuck = Peer::upgrade(connect_reading_little(relay), &phone_head("home"));
    let mut sibling = Peer::phone(relay, "home");

    // 6 MB for the stuck phone; after each message a round trip with its sibling.
    let (mut round_trips, mut notices) = (0, 0);
    let notice = format!(r#"{{"conn_id":"{}","close_code":1011}}"#, stuck.id);
    for n in 0..100 {
        binary.send_to(&stuck.id, &numbered(&n.to_string(), 64_000));
        sibling.send_text(&n.to_string());
        let mut received = binary.receive_text();
        if received == notice {
            notices += 1;
            received = binary.receive_text();
        }
        assert_eq!(received, envelope(&sibling.id, &n.to_string()));
        binary.send_to(&sibling.id, &n.to_string());
        assert_eq!(sibling.receive_text(), n.to_string());
        round_trips += 1;
    }
    assert_eq!((round_trips, notices), (100, 1));
    assert_eq!(healthz(relay), (1, 1), "it was shed");
    let received = hear_gapless(&mut stuck, 1011, "phone backlog full");
    assert!(received < 100, "{received}");
}

#[test]
fn a_phone_that_drains_nothing_is_closed_and_can_read_what_was_sent() {
    let relay = relay(|config| {
        config.timeouts.write = millis(400);
        config.timeouts.linger = NEVER;
    });
    let mut binary = Peer::binary(relay, "home");
    let mut stuck = Peer::upgrade(connect_reading_little(relay), &phone_head("home"));
    for n in 0..30 {
        binary.send_to(&stuck.id, &numbered(&n.to_string(), 64_000));
    }
    eventually("it is closed", || healthz(relay) == (1, 0));
    let received = hear_gapless(&mut stuck, 1011, "write timeout");
    assert!(received < 30, "{received}");
    binary.expect_alive();
}

#[test]
fn a_phone_that_drains_slowly_stays_open() {
    let relay = relay(|config| config.timeouts.write = millis(500));
    let mut binary = Peer::binary(relay, "home");
    let mut slow = Peer::upgrade(connect_reading_little(relay), &phone_head("home"));
    for n in 0..40 {
        binary.send_to(&slow.id, &numbered(&n.to_string(), 64_000));
    }
    for n in 0..40 {
        assert_eq!(number(&slow.receive_text()), n);
        // Its pace, not a wait: 40 of these are four write timeouts.
        thread::park_timeout(millis(50));
    }
    slow.expect_alive();
}

/// Writes this number of numbered messages of 64,000 bytes, on a separate thread.
fn flood(phone: &Peer, count: usize) -> JoinHandle<io::Result<()>> {
    let mut stream = phone.stream.try_clone().unwrap();
    thread::spawn(move || {
        (0..count).try_for_each(|n| {
            let message = numbered(&n.to_string(), 64_000);
            stream.write_all(&frame(Opcode::Text, true, message.as_bytes()))
        })
    })
}

#[test]
fn a_binary_that_drains_nothing_is_closed_and_its_grace_begins() {
    let relay = relay(|config| {
        config.timeouts.write = millis(500);
        config.timeouts.linger = NEVER;
    });
    let mut stuck = Peer::upgrade(connect_reading_little(relay), &binary_head("home"));
    let mut quiet = Peer::phone(relay, "home");
    let mut phone = Peer::phone(relay, "home");
    let writer = flood(&phone, 40);
    eventually("the binary is closed", || healthz(relay).0 == 0);
    // The close tells the phone that messages are missing.
    phone.expect_close(4404, "binary disconnected");
    writer.join().unwrap().unwrap();
    quiet.expect_alive();

    let mut count = 0;
    let why = loop {
        match stuck.receive() {
            Received::Text(text) => {
                assert_eq!(text, envelope(&phone.id, &numbered(&count.to_string(), 64_000)));
                count += 1;
            }
            Received::Close(why) => break why,
            received => panic!("{received:?}"),
        }
    };
    assert_eq!(why, Some((1011, "write timeout".into())), "after {count} messages");
    assert!(count < 40);
    Peer::binary(relay, "home").expect_alive();
    quiet.expect_close(4404, "binary reclaimed server-id");
}

#[test]
fn a_phone_that_halts_is_found_while_its_sibling_waits_for_their_slow_binary() {
    // More than all buffers on the way hold.
    const COUNT: usize = 200;
    let relay = relay(|config| config.timeouts.message = millis(1000));
    let mut binary = Peer::upgrade(connect_reading_little(relay), &binary_head("home"));
    let flooding = Peer::upgrade(connect_writing_little(relay), &phone_head("home"));
    let mut halting = Peer::phone(relay, "home");
    let writer = flood(&flooding, COUNT);
    halting.send_raw(&frame(Opcode::Text, true, b"123")[..7]);
    halting.expect_close(1008, "message timeout");
    assert!(!writer.is_finished(), "the phone that floods is not read");
    let mut flooded = 0;
    while flooded < COUNT {
        let text = binary.receive_text();
        if text.contains(&flooding.id) {
            assert_eq!(text, envelope(&flooding.id, &numbered(&flooded.to_string(), 64_000)));
            flooded += 1;
        }
    }
    writer.join().unwrap().unwrap();
}

/// Sixty-four megabytes from four phones to a binary that reads nothing at
/// first: the phones are stopped, not shed; then everything arrives.
#[test]
fn a_binary_that_reads_slowly_loses_nothing_and_costs_little_memory() {
    const PHONES: usize = 4;
    const EACH: usize = 256;
    const LEN: usize = 64 * 1024;
    let process = Process::start(&[]);
    let relay = process.relay;
    let mut binary = Peer::upgrade(connect_reading_little(relay), &binary_head("home"));
    let phones: Vec<Peer> = (0..PHONES).map(|_| Peer::phone(relay, "home")).collect();
    let ids: Vec<String> = phones.iter().map(|phone| phone.id.clone()).collect();
    let (at_start, _) = process.memory();

    let written = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = phones
        .into_iter()
        .map(|mut phone| {
            let written = Arc::clone(&written);
            thread::spawn(move || {
                for n in 0..EACH {
                    let message = numbered(&n.to_string(), LEN);
                    phone.send_raw(&header(0x81, LEN as u64));
                    phone.send_raw(message.as_bytes());
                    written.fetch_add(1, Ordering::Relaxed);
                }
                phone
            })
        })
        .collect();
    let taken = settled(|| written.load(Ordering::Relaxed)) as usize;
    assert!(taken < PHONES * EACH / 2, "{taken} messages went in and none came out");

    let mut next = [0; PHONES];
    while next.iter().sum::<usize>() < PHONES * EACH {
        let text = binary.receive_text();
        let from = ids.iter().position(|id| text.contains(id.as_str())).unwrap();
        let expected = envelope(&ids[from], &numbered(&next[from].to_string(), LEN));
        assert!(text == expected, "{} from {from}: {:.80}", next[from], text);
        next[from] += 1;
    }
    for writer in writers {
        writer.join().unwrap().expect_alive();
    }
    binary.expect_alive();
    let (_, highest) = process.memory();
    let grown = highest.saturating_sub(at_start);
    assert!(grown < 40 << 20, "{grown} bytes more than at the start");
}
