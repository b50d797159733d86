//! A photo for a phone whose link has a third of the speed of the uplink at home: 373 frames
//! of 80 KB, which its binary sends without a pause. All of it arrives, byte for byte, and
//! another phone of the same binary is not delayed.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::percentiles::{self, Latencies, mib, seconds};
use crate::support::{
    Opcode, Peer, Process, buffered, connect_reading_little, content, envelope, eventually, frame,
    healthz, noise, phone_head, round_trip,
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
    eventually("its memory is given back", || {
        process.memory().0 < at_start + (FRAMES * LEN / 4) as u64
    });
    let kept = process.memory().0.saturating_sub(at_start);
    percentiles::record("relay: memory, afterwards above the start", mib(kept));
}

const SLOW: usize = 112;
/// What is queued to a slow phone, and what is left of it.
const QUEUED: u64 = 4 << 20;
const LEFT: u64 = QUEUED / 8;

/// Phone after phone lets a large queue form and reads most of it: what the relay holds is what
/// it charges to its budget.
pub fn queues_that_drain_to_an_eighth() {
    let process = Process::start(&["--buffer-memory=83886080"]);
    let (at_start, _) = process.memory();
    let message = content(0, 0, 64 << 10);
    let (mut binaries, mut phones) = (Vec::new(), Vec::<Peer>::new());
    let mut kept_alive = Instant::now();
    for number in 0..SLOW {
        let name = format!("home-{}", number / 16);
        if number % 16 == 0 {
            binaries.push(Peer::binary(process.relay, &name));
        }
        let binary = binaries.last_mut().unwrap();
        let head = phone_head(&name);
        let phone = Peer::upgrade(connect_reading_little(process.relay), &head);
        let before = buffered(&process);
        let envelope = frame(Opcode::Text, true, envelope(&phone.id, &message).as_bytes());
        (0..QUEUED as usize / message.len()).for_each(|_| binary.send_raw(&envelope));
        binary.expect_alive();
        let queued = buffered(&process) - before;
        assert!(queued > QUEUED * 7 / 8, "{queued} bytes queued");
        let mut left = queued;
        while left > LEFT {
            take(&phone, left.saturating_sub(LEFT).max(16 << 10) as usize);
            left = buffered(&process) - before;
        }
        phones.push(phone);
        // One that takes nothing for ten seconds is closed.
        if kept_alive.elapsed() > Duration::from_secs(3) {
            phones.iter().for_each(|phone| take(phone, 16 << 10));
            kept_alive = Instant::now();
        }
    }
    let (charged, grown) = (buffered(&process), process.memory().0.saturating_sub(at_start));
    assert_eq!(healthz(process.relay), (binaries.len() as u64, SLOW as u64), "nobody was closed");
    percentiles::record("charged", mib(charged));
    percentiles::record("relay: memory above the start", mib(grown));
    assert!(grown <= charged * 13 / 10, "{grown} bytes of memory, {charged} charged");
}

/// Reads this many bytes.
fn take(phone: &Peer, count: usize) {
    (&phone.stream).read_exact(&mut vec![0; count]).unwrap();
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
