//! Sixty-four mebibytes through a peer that reads slowly, but never pauses for ten seconds:
//! all of it arrives, byte for byte and in order.
//!
//! The budget is a quarter of the traffic, so a relay that stored input instead of applying
//! backpressure would shed a peer. The relay's memory grows by less than the budget.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::percentiles::{self, mib, seconds, share};
use crate::support::{
    Opcode, Peer, Process, binary_head, connect_reading_little, content, envelope, eventually,
    frame, pause, phone_head,
};

const MESSAGES: usize = 1024;
/// 64 KiB on average; one is as long as a binary's may be, with its envelope.
const LENGTHS: [usize; 8] =
    [32 << 10, 64 << 10, 255 << 10, 2 << 10, 63 << 10, 32 << 10, 16 << 10, 48 << 10];
const PHONES: usize = 4;
const BUDGET: u64 = 16 << 20;
/// How far the sender may be ahead of the slow phone: short of half the budget, at which
/// it would be shed.
const WINDOW: usize = 3 << 20;

const _: () = {
    let [a, b, c, d, e, f, g, h] = LENGTHS;
    assert!((a + b + c + d + e + f + g + h) * MESSAGES / LENGTHS.len() == 64 << 20);
    assert!((MESSAGES / PHONES).is_multiple_of(LENGTHS.len()));
};

/// The pace of the slow end: a little after each message, and two stops.
fn dawdle(received: usize) {
    let is_stop = received == MESSAGES / 4 || received == MESSAGES / 2;
    pause(Duration::from_millis(if is_stop { 3000 } else { 4 }));
}

fn message(from: usize, n: usize) -> String {
    content(from, n, LENGTHS[n % LENGTHS.len()])
}

fn start() -> (Process, u64) {
    let process = Process::start(&[&format!("--buffer-memory={BUDGET}")]);
    let (at_start, _) = process.memory();
    (process, at_start)
}

pub fn to_a_slow_binary() {
    let (process, at_start) = start();
    let relay = process.relay;
    let mut binary = Peer::upgrade(connect_reading_little(relay), &binary_head("home"));
    let phones: Vec<Peer> = (0..PHONES).map(|_| Peer::phone(relay, "home")).collect();
    let ids: Vec<String> = phones.iter().map(|phone| phone.id.clone()).collect();
    let began = Instant::now();
    let writers: Vec<_> = phones
        .into_iter()
        .enumerate()
        .map(|(from, mut phone)| {
            thread::spawn(move || {
                (0..MESSAGES / PHONES).for_each(|n| phone.send_text(&message(from, n)));
                phone
            })
        })
        .collect();

    let mut next = [0; PHONES];
    for received in 0..MESSAGES {
        let text = binary.receive_text();
        let from = ids.iter().position(|id| text[..64].contains(id.as_str())).unwrap();
        let expected = envelope(&ids[from], &message(from, next[from]));
        assert!(text == expected, "{} from {from}: {text:.80}", next[from]);
        next[from] += 1;
        dawdle(received);
    }
    assert_eq!(next, [MESSAGES / PHONES; PHONES]);
    for writer in writers {
        writer.join().unwrap().expect_alive();
    }
    binary.expect_alive();
    record(&process, at_start, began);
}

pub fn to_a_slow_phone() {
    let (process, at_start) = start();
    let mut binary = Peer::binary(process.relay, "home");
    let mut phone = Peer::upgrade(connect_reading_little(process.relay), &phone_head("home"));
    let (id, read) = (phone.id.clone(), Arc::new(AtomicUsize::new(0)));
    let began = Instant::now();
    let writer = thread::spawn({
        let read = Arc::clone(&read);
        move || {
            let (mut written, mut ahead_most) = (0, 0);
            for n in 0..MESSAGES {
                let json = message(0, n);
                written += json.len();
                eventually("the phone reads", || written - read.load(Ordering::Relaxed) < WINDOW);
                ahead_most = ahead_most.max(written - read.load(Ordering::Relaxed));
                binary.send_raw(&frame(Opcode::Text, true, envelope(&id, &json).as_bytes()));
            }
            (binary, ahead_most)
        }
    });
    for n in 0..MESSAGES {
        let text = phone.receive_text();
        assert!(text == message(0, n), "{n}: {text:.80}");
        read.fetch_add(text.len(), Ordering::Relaxed);
        dawdle(n);
    }
    let (mut binary, ahead_most) = writer.join().unwrap();
    binary.expect_alive();
    phone.expect_alive();
    percentiles::record("sender ahead of the phone, at most", mib(ahead_most as u64));
    assert!(ahead_most > WINDOW / 2, "the phone was not slow: {ahead_most}");
    record(&process, at_start, began);
}

fn record(process: &Process, at_start: u64, began: Instant) {
    let took = began.elapsed();
    let grown = process.memory().1.saturating_sub(at_start);
    percentiles::record("took", seconds(took));
    percentiles::record("relay: processor", share(process.processor_time(), took));
    percentiles::record("relay: memory, highest above the start", mib(grown));
    assert!(grown < BUDGET, "{grown} bytes more than at the start");
}
