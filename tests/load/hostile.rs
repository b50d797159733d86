//! Hostile floods: many connections send what costs the relay most for a byte, as fast as
//! they can, beside one pair that exchanges a frame twenty times a second.
//!
//! A flood may take the processor; it must not take the pair's time. The bound is wide
//! enough for a machine with other work, and far below what a loop without bounds gives: some
//! seconds beside twenty flooders.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::percentiles::{self, Latencies, share};
use crate::support::{Answer, Opcode, Peer, Process, connect, frame, pause, round_trip};

/// A relay without bounds on turns took 121 ms beside one flooder, and 2.4 s beside 20.
const MEDIAN_MAX: Duration = Duration::from_millis(50);
const FLOODERS: [usize; 3] = [1, 20, 100];
const ROUND_TRIPS: usize = 60;
/// The pace of a peer that a person uses.
const PACE: Duration = Duration::from_millis(50);

/// Empty texts of binaries: envelopes that have to be dropped.
pub fn bad_envelopes() {
    flood("empty texts", b"", &frame(Opcode::Text, true, b""));
}

/// Pings, which have to be answered.
pub fn pings() {
    flood("pings", b"", &frame(Opcode::Ping, true, b""));
}

/// Empty fragments of a message that never ends.
pub fn fragments() {
    let first = frame(Opcode::Text, false, b"");
    let mut next = first.clone();
    next[0] = 0;
    flood("fragments", &first, &next);
}

fn flood(what: &str, first: &[u8], next: &[u8]) {
    let process = Process::start(&[]);
    let mut binary = Peer::binary(process.relay, "quiet");
    let mut phone = Peer::phone(process.relay, "quiet");
    percentiles::record("round trips alone", round_trips(&mut binary, &mut phone));
    for count in FLOODERS {
        let flooders: Vec<Peer> =
            (0..count).map(|n| Peer::binary(process.relay, &format!("flood-{n}"))).collect();
        let streams = flooders.iter().map(|peer| peer.stream.try_clone().unwrap()).collect();
        let is_over = Arc::new(AtomicBool::new(false));
        let flood = send_all(streams, first.to_vec(), next.repeat(4_000), &is_over);
        let (began, used, before) = (Instant::now(), process.processor_time(), turns(&process));
        let times = round_trips(&mut binary, &mut phone);
        let (took, used) = (began.elapsed(), process.processor_time() - used);
        let after = turns(&process);
        is_over.store(true, Ordering::Relaxed);
        let sent = flood.join().unwrap();
        percentiles::record(&format!("round trips beside {count} with {what}"), &times);
        percentiles::record("  relay: processor meanwhile", share(used, took));
        percentiles::record("  flood: kB a second", sent * 1000 / took.as_micros());
        let [all, short] = [after[0] - before[0], after[1] - before[1]];
        percentiles::record("  turns, and those over 32 ms", format!("{all}, {}", all - short));
        assert!(times.median() <= MEDIAN_MAX, "{:?} beside {count}", times.median());
    }
    binary.expect_alive();
    phone.expect_alive();
}

fn round_trips(binary: &mut Peer, phone: &mut Peer) -> Latencies {
    let mut times = Latencies::default();
    for n in 0..ROUND_TRIPS {
        times.push(round_trip(binary, phone, n));
        pause(PACE);
    }
    times
}

/// Sends `first` and then `next` over and over on every stream, as far as each takes it, and
/// discards what comes. Returns how many bytes were taken.
fn send_all(
    mut streams: Vec<TcpStream>,
    first: Vec<u8>,
    next: Vec<u8>,
    is_over: &Arc<AtomicBool>,
) -> JoinHandle<u128> {
    let is_over = Arc::clone(is_over);
    thread::spawn(move || {
        for stream in &mut streams {
            stream.write_all(&first).unwrap();
            stream.set_nonblocking(true).unwrap();
        }
        let (mut sent, mut offsets, mut trash) = (0, vec![0; streams.len()], vec![0; 1 << 16]);
        while !is_over.load(Ordering::Relaxed) {
            let before = sent;
            for (stream, offset) in streams.iter_mut().zip(&mut offsets) {
                let _ = stream.read(&mut trash);
                match stream.write(&next[*offset..]) {
                    Ok(count) => {
                        sent += count as u128;
                        *offset = (*offset + count) % next.len();
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "closed"),
                }
            }
            if sent == before {
                // The relay takes no more now.
                pause(Duration::from_micros(200));
            }
        }
        sent
    })
}

/// Turns of the relay's loop so far, and those of at most 32 ms.
fn turns(process: &Process) -> [u64; 2] {
    let mut stream = connect(process.metrics);
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
    let text = Answer::read(&mut stream).body;
    ["count", "bucket{le=\"0.032\"}"].map(|name| {
        let name = format!("pyrycode_relay_turn_seconds_{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&*name)).expect(&name);
        value.parse().unwrap()
    })
}
