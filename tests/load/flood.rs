//! Flood: one peer sends as fast as it can, beside a hundred pairs that exchange a frame now
//! and then. Everything arrives; the latency is recorded with and without the flood.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::percentiles::{self, Latencies, share};
use crate::support::{
    Opcode, PATIENCE, Peer, Process, envelope, first_frame, frame, pause, round_trip,
};

const PAIRS: usize = 100;
const ROUNDS: usize = 20;
/// A flood ends before the relay, whose pings are not answered meanwhile, has waited
/// 30 s for a pong.
const FLOOD_MAX: Duration = Duration::from_secs(15);
/// Frames that the flooder writes in one call.
const BURST: u64 = 200;

pub fn of_frames() {
    flood(Opcode::Text);
}

pub fn of_pings() {
    flood(Opcode::Ping);
}

fn flood(kind: Opcode) {
    let process = Process::start(&[]);
    let mut pairs: Vec<(Peer, Peer)> = (0..PAIRS)
        .map(|n| {
            let binary = Peer::binary(process.relay, &format!("quiet-{n}"));
            (binary, Peer::phone(process.relay, &format!("quiet-{n}")))
        })
        .collect();
    percentiles::record("round trips alone", rounds(&mut pairs));

    let mut binary = Peer::binary(process.relay, "flooded");
    let mut phone = Peer::phone(process.relay, "flooded");
    let listener = if kind == Opcode::Text { &binary } else { &phone };
    let reader = hear_numbers(listener, kind, &phone.id);
    let is_over = Arc::new(AtomicBool::new(false));
    let writer = send_numbers(&phone, kind, &is_over);
    let (began, before) = (Instant::now(), process.processor_time());
    percentiles::record("round trips beside the flooder", rounds(&mut pairs));
    let (took, used) = (began.elapsed(), process.processor_time() - before);

    is_over.store(true, Ordering::Relaxed);
    let sent = writer.join().unwrap();
    let received = reader.join().unwrap();
    percentiles::record("flooder: frames a second", u128::from(sent) * 1000 / took.as_millis());
    percentiles::record("flooder: answers or deliveries", format!("{received} of {sent}"));
    percentiles::record("relay: processor meanwhile", share(used, took));
    // Of pongs only the latest is owed (RFC 6455 §5.5.3).
    assert!(received == sent || (kind == Opcode::Ping && received <= sent), "{received} of {sent}");
    binary.expect_alive();
    phone.expect_alive();
}

/// A round trip with each pair, a moment after the previous one, repeated until there are
/// enough or the time is over.
fn rounds(pairs: &mut [(Peer, Peer)]) -> Latencies {
    let (mut times, began) = (Latencies::default(), Instant::now());
    for n in 0..ROUNDS {
        for (binary, phone) in &mut *pairs {
            times.push(round_trip(binary, phone, n));
            pause(Duration::from_micros(500));
        }
        if began.elapsed() > FLOOD_MAX {
            break;
        }
    }
    times
}

/// Sends numbers until the flood is over, then the largest number, which ends the reader.
/// Returns their count.
fn send_numbers(phone: &Peer, kind: Opcode, is_over: &Arc<AtomicBool>) -> JoinHandle<u64> {
    let (mut stream, is_over) = (phone.stream.try_clone().unwrap(), Arc::clone(is_over));
    thread::spawn(move || {
        let (mut sent, deadline) = (0, Instant::now() + PATIENCE);
        while !is_over.load(Ordering::Relaxed) {
            assert!(Instant::now() < deadline, "the flood did not end");
            let burst = (sent..sent + BURST).flat_map(|n| frame(kind, true, &digits(n)));
            stream.write_all(&burst.collect::<Vec<u8>>()).unwrap();
            sent += BURST;
        }
        stream.write_all(&frame(kind, true, &digits(u64::MAX))).unwrap();
        sent + 1
    })
}

fn digits(n: u64) -> Vec<u8> {
    n.to_string().into_bytes()
}

/// Receives the numbers until the last: each follows the one before, or, if they are
/// pongs, a smaller one. Returns how many arrived.
fn hear_numbers(listener: &Peer, kind: Opcode, conn_id: &str) -> JoinHandle<u64> {
    let stream = listener.stream.try_clone().unwrap();
    let around = envelope(conn_id, "|");
    let (head, tail) = around.split_once('|').unwrap();
    let (head, tail) = if kind == Opcode::Text { (head, tail) } else { ("", "") };
    let (head, tail) = (head.to_owned(), tail.to_owned());
    thread::spawn(move || {
        let (mut received, mut next, is_complete) = (0, 0, kind == Opcode::Text);
        each_frame(stream, |opcode, payload| {
            if opcode == Opcode::Ping as u8 {
                // The relay's own.
                return true;
            }
            let text = str::from_utf8(payload).unwrap();
            let number = text.strip_prefix(&*head).and_then(|rest| rest.strip_suffix(&*tail));
            let number: u64 = number.and_then(|number| number.parse().ok()).expect(text);
            received += 1;
            let is_last = number == u64::MAX;
            assert!(is_last || number == next || (!is_complete && number > next), "{number}");
            next = number.wrapping_add(1);
            !is_last
        });
        received
    })
}

/// Reads frames as fast as they come until `on_frame` returns false.
fn each_frame(mut stream: TcpStream, mut on_frame: impl FnMut(u8, &[u8]) -> bool) {
    let (mut buffer, mut filled) = (vec![0; 256 * 1024], 0);
    loop {
        let count = stream.read(&mut buffer[filled..]).unwrap();
        assert_ne!(count, 0, "the relay hung up");
        filled += count;
        let mut start = 0;
        while let Some((opcode, payload)) = first_frame(&buffer[start..filled]) {
            let end = start + payload.end;
            if !on_frame(opcode, &buffer[start + payload.start..end]) {
                assert_eq!(end, filled, "more after the last");
                return;
            }
            start = end;
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
    }
}
