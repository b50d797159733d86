//! Sharing a slow binary: its phones get equal parts of what it reads, one that is dead is
//! found, and it keeps its server-id.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::percentiles::{self, Latencies, seconds};
use crate::support::{
    Opcode, PATIENCE, Peer, Process, Received, binary_head, buffered, connect_reading_little,
    connect_writing_little, content, eventually, frame, healthz, pause, phone_head,
};

const PHONES: usize = 8;
const LEN: usize = 31_000;
const TIME: Duration = Duration::from_secs(12);
/// What a slow binary reads in one step.
const STEP: usize = 40_000;
/// Two phones never differ by more than this and one message.
const QUANTUM: usize = 256 * 1024;

/// A phone that sends as fast as the relay reads. Its last message may be cut.
fn send_without_end(phone: &Peer, n: usize, is_over: &Arc<AtomicBool>) {
    let (mut stream, is_over) = (phone.stream.try_clone().unwrap(), Arc::clone(is_over));
    let message = frame(Opcode::Text, true, content(n, 0, LEN).as_bytes());
    thread::spawn(
        move || {
            while !is_over.load(Ordering::Relaxed) && stream.write_all(&message).is_ok() {}
        },
    );
}

/// Eight phones send to a binary that reads 400 KB a second.
pub fn eight_phones() {
    let process = Process::start(&[]);
    let relay = process.relay;
    let mut binary = Peer::upgrade(connect_reading_little(relay), &binary_head("home")).stream;
    let phones: Vec<Peer> = (0..PHONES)
        .map(|_| Peer::upgrade(connect_writing_little(relay), &phone_head("home")))
        .collect();
    let is_over = Arc::new(AtomicBool::new(false));
    (0..PHONES).for_each(|n| send_without_end(&phones[n], n, &is_over));
    let marks: Vec<String> = phones.iter().map(|phone| format!("\"{}\"", phone.id)).collect();

    let (mut counts, mut waits) = ([0_usize; PHONES], Latencies::default());
    let (began, mut last) = (Instant::now(), [Instant::now(); PHONES]);
    let mut bytes = vec![0; STEP];
    let (mut tail, mut spread) = (Vec::new(), 0);
    let mut is_measured = false;
    while began.elapsed() < TIME {
        if !is_measured && began.elapsed() > TIME / 4 {
            // By now all of them send; the first had the binary for itself.
            (counts, last, is_measured) = ([0; PHONES], [Instant::now(); PHONES], true);
            (waits, spread) = (Latencies::default(), 0);
        }
        let due = began.elapsed() + Duration::from_millis(100);
        let mut filled = 0;
        while filled < STEP {
            let count = binary.read(&mut bytes[filled..]).unwrap();
            assert_ne!(count, 0, "the relay hung up");
            filled += count;
        }
        tail.extend_from_slice(&bytes);
        // An envelope names its phone within its first hundred bytes.
        while let Some(at) = tail.windows(11).position(|window| window == b"{\"conn_id\":") {
            if tail.len() < at + 100 {
                break;
            }
            let head = String::from_utf8_lossy(&tail[at..at + 100]).into_owned();
            if let Some(n) = marks.iter().position(|mark| head.contains(mark.as_str())) {
                counts[n] += 1;
                waits.push(last[n].elapsed());
                last[n] = Instant::now();
            }
            tail.drain(..at + 100);
        }
        let keep = tail.len().min(100);
        tail.drain(..tail.len() - keep);
        spread = spread.max((counts.iter().max().unwrap() - counts.iter().min().unwrap()) * LEN);
        pause(due.saturating_sub(began.elapsed()));
    }
    is_over.store(true, Ordering::Relaxed);
    percentiles::record("messages of each phone", format!("{counts:?}"));
    percentiles::record("time between two of one phone", &waits);
    percentiles::record("largest difference", format!("{spread} bytes"));
    assert!(spread <= QUANTUM + LEN, "{counts:?}");
    assert!(waits.permille(1000) < Duration::from_secs(4), "a phone waited");
    drop(phones);
}

/// Three things that take a minute, at once: a phone that answers no ping is found beside a
/// hundred flooders, and beside a phone that keeps a slow binary busy; and a slow binary that
/// is probed behind a large frame keeps its server-id.
pub fn deaths_and_a_probe() {
    thread::scope(|scope| {
        let scenarios: [fn(); 3] = [a_death_beside_flooders, a_death_beside_a_busy_phone, a_probe];
        let threads = scenarios.map(|scenario| scope.spawn(scenario));
        // Each is waited for before the first that failed is reported.
        let ends = threads.map(thread::ScopedJoinHandle::join);
        ends.into_iter().for_each(|end| end.unwrap());
    });
}

/// From the last sign of life to the free slot, for a machine with other work.
const FOUND_MAX: Duration = Duration::from_secs(63);

/// Waits until the relay counts one phone less; returns how long that took since `died`.
fn found(relay: std::net::SocketAddr, phones: u64, died: Instant) -> Duration {
    while healthz(relay).1 >= phones {
        assert!(died.elapsed() < FOUND_MAX, "it is still there after {:?}", died.elapsed());
        pause(Duration::from_millis(20));
    }
    died.elapsed()
}

fn a_death_beside_flooders() {
    let process = Process::start(&[]);
    let relay = process.relay;
    let _home = Peer::binary(relay, "home");
    let _dead = Peer::phone(relay, "home");
    let died = Instant::now();
    let is_over = Arc::new(AtomicBool::new(false));
    let unit = frame(Opcode::Text, true, b"").repeat(4_000);
    let flooders: Vec<Peer> =
        (0..100).map(|n| Peer::binary(relay, &format!("flood-{n}"))).collect();
    let threads = flooders.len() / 10;
    for flooders in flooders.chunks(threads) {
        let mut streams: Vec<_> =
            flooders.iter().map(|peer| peer.stream.try_clone().unwrap()).collect();
        let (is_over, unit) = (Arc::clone(&is_over), unit.clone());
        thread::spawn(move || {
            streams.iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
            let mut offsets = vec![0; streams.len()];
            while !is_over.load(Ordering::Relaxed) {
                for (stream, offset) in streams.iter_mut().zip(&mut offsets) {
                    if let Ok(count) = stream.write(&unit[*offset..]) {
                        *offset = (*offset + count) % unit.len();
                    }
                }
                pause(Duration::from_micros(200));
            }
        });
    }
    let took = found(relay, 1, died);
    percentiles::record("a dead phone beside 100 flooders: gone after", seconds(took));
    // However busy the relay is, its time is the machine's.
    let end = process.expect_line("phone_unregistered");
    let age = end.split_once("age_ms=").and_then(|(_, rest)| rest.split(' ').next());
    let age = Duration::from_millis(age.unwrap().parse().unwrap());
    assert!(took < age + Duration::from_millis(500), "{took:?} after its death: {end}");
    is_over.store(true, Ordering::Relaxed);
}

fn a_death_beside_a_busy_phone() {
    let process = Process::start(&[]);
    let relay = process.relay;
    let mut binary = Peer::upgrade(connect_reading_little(relay), &binary_head("home"));
    let busy = Peer::upgrade(connect_writing_little(relay), &phone_head("home"));
    let is_over = Arc::new(AtomicBool::new(false));
    send_without_end(&busy, 0, &is_over);
    let (mut pings, id) = (busy.stream.try_clone().unwrap(), busy.id.clone());
    let _dead = Peer::phone(relay, "home");
    let died = Instant::now();
    let reader = thread::spawn({
        let is_over = Arc::clone(&is_over);
        move || {
            let mut heard = 0;
            while !is_over.load(Ordering::Relaxed) {
                // 400 KB a second; pings are answered.
                if let Received::Text(text) = binary.receive_answering() {
                    heard += usize::from(text.contains(&id));
                }
                pause(Duration::from_millis(75));
            }
            heard
        }
    });
    // The busy one hears its pings, but its answers queue up behind what it sends.
    thread::spawn(move || while pings.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {});
    let took = found(relay, 2, died);
    is_over.store(true, Ordering::Relaxed);
    percentiles::record("a dead phone beside a busy one: gone after", seconds(took));
    percentiles::record("messages of the busy one meanwhile", reader.join().unwrap());
    drop(busy);
}

/// 20 KB a second, and the ping of the probe waits behind a frame of maximum size.
fn a_probe() {
    const RATE: usize = 20_000;
    let process = Process::start(&[]);
    let relay = process.relay;
    let mut binary = Peer::upgrade(connect_reading_little(relay), &binary_head("home"));
    let mut phone = Peer::phone(relay, "home");
    phone.send_text(&content(0, 0, 256 * 1024));
    eventually("the frame is queued", || buffered(&process) > 128 * 1024);
    let mut rival = Peer::binary(relay, "home");
    let began = Instant::now();
    let verdict = thread::spawn(move || {
        rival.expect_close(4409, "server-id already claimed");
        began.elapsed()
    });
    let (mut inbox, mut bytes) = (Vec::new(), vec![0; RATE / 20]);
    while !verdict.is_finished() {
        assert!(began.elapsed() < PATIENCE, "no verdict");
        binary.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        if let Ok(count) = binary.stream.read(&mut bytes) {
            assert_ne!(count, 0, "it lost its server-id after {:?}", began.elapsed());
            inbox.extend_from_slice(&bytes[..count]);
        }
        // Behind its only message is the ping.
        let end = 10 + 256 * 1024 + 64;
        if let Some(ping) = inbox.iter().skip(end - 64).position(|byte| *byte == 0x89)
            && inbox.len() >= end - 64 + ping + 10
        {
            let payload = inbox[end - 64 + ping + 2..end - 64 + ping + 10].to_vec();
            binary.send(Opcode::Pong, &payload);
            inbox.truncate(end - 64);
        }
        pause(Duration::from_millis(50));
    }
    let took = verdict.join().unwrap();
    percentiles::record("a slow binary was probed and stayed, after", seconds(took));
    assert!(took > Duration::from_secs(10), "the ping did not wait: {took:?}");
}
