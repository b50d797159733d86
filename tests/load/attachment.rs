//! A photo for a phone whose link has a third of the speed of the uplink at home: 373 frames
//! of 80 KB, which its binary sends without a pause. All of it arrives, byte for byte, and
//! another phone of the same binary is not delayed.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use crate::percentiles::{self, Latencies, mib, seconds};
use crate::support::{
    Answer, Peer, Process, connect, connect_reading_little, eventually, noise, phone_head,
    round_trip,
};

/// 16 MiB with two layers of base64 around it.
const FRAMES: usize = 373;
const LEN: usize = 80_000;
/// Frames of it between two round trips of the sibling.
const BETWEEN: usize = 4;

pub fn at_a_third_of_the_speed() {
    let process = Process::start(&[]);
    let relay = process.relay;
    let (at_start, _) = process.memory();
    let mut binary = Peer::binary(relay, "home");
    let mut sibling = Peer::phone(relay, "home");
    let mut before = Latencies::default();
    for n in 0..FRAMES / BETWEEN {
        before.push(round_trip(&mut binary, &mut sibling, n));
    }
    let phone = Peer::upgrade(connect_reading_little(relay), &phone_head("home"));
    let (id, sent) = (phone.id.clone(), Arc::new(AtomicUsize::new(0)));
    let reader = thread::spawn({
        let sent = Arc::clone(&sent);
        move || read(phone, &sent)
    });

    let began = Instant::now();
    let mut during = Latencies::default();
    for n in 0..FRAMES {
        binary.send_to(&id, &noise(0, n, LEN));
        sent.store(n + 1, Ordering::Relaxed);
        if n % BETWEEN == 0 {
            during.push(round_trip(&mut binary, &mut sibling, n));
        }
    }
    percentiles::record("sent in", seconds(began.elapsed()));
    let mut phone = reader.join().unwrap();
    percentiles::record("read in", seconds(began.elapsed()));
    for peer in [&mut phone, &mut sibling, &mut binary] {
        peer.expect_alive();
    }
    percentiles::record("siblings' round trips before", &before);
    percentiles::record("siblings' round trips during", &during);
    during.expect_flat(&before);
    let grown = process.memory().1.saturating_sub(at_start);
    percentiles::record("relay: memory, highest above the start", mib(grown));
    // The allocator keeps the pages for the next queue.
    eventually("no byte is charged any more", || buffered(&process) == 0);
    let kept = process.memory().0.saturating_sub(at_start);
    percentiles::record("relay: memory, afterwards above the start", mib(kept));
}

/// Bytes that the relay charges to its budget.
fn buffered(process: &Process) -> u64 {
    let mut stream = connect(process.metrics);
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
    let text = Answer::read(&mut stream).body;
    let value = text.lines().find_map(|line| line.strip_prefix("pyrycode_relay_buffered_bytes "));
    value.and_then(|value| value.parse().ok()).expect("a gauge")
}

/// Reads one frame for every three that are sent, and the rest when all are.
fn read(mut phone: Peer, sent: &AtomicUsize) -> Peer {
    for n in 0..FRAMES {
        eventually("more is sent", || sent.load(Ordering::Relaxed) >= FRAMES.min(3 * n));
        let text = phone.receive_text();
        assert!(text == noise(0, n, LEN), "{n}: {text:.80}");
    }
    phone
}
