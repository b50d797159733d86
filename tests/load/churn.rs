//! An hour of connections that come and go, without the idle time in between.
//!
//! A thousand households; every five minutes each binary reconnects and two phones connect,
//! exchange a message and close: 36,000 connections. Some end with a close frame, some with a
//! FIN, some with a reset. Now and then a phone dials for an unknown server-id, and a second
//! binary for a claimed one. Afterwards the relay has returned to its initial state.

use std::net::SocketAddr;
use std::thread;
use std::time::Instant;

use crate::percentiles::{self, mib, seconds};
use crate::support::{
    Peer, Process, binary_head, connect_from, eventually, healthz, phone_head, round_trip,
    settled_descriptors, source,
};

const HOUSEHOLDS: usize = 1000;
/// Five minutes each.
const ROUNDS: usize = 12;
/// The round after which every table has reached its final size.
const WARM: usize = 3;
const THREADS: usize = 4;

pub fn an_hour() {
    let process = Process::start(&[]);
    let relay = process.relay;
    assert_eq!(healthz(relay), (0, 0));
    let descriptors = settled_descriptors(&process);
    let (at_start, _) = process.memory();
    let began = Instant::now();
    let memory: Vec<u64> = (1..=ROUNDS)
        .map(|round| {
            let threads: Vec<_> = (0..THREADS)
                .map(|thread| thread::spawn(move || look_in(relay, round, thread)))
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            eventually("every peer is gone", || healthz(relay) == (0, 0));
            process.memory().0
        })
        .collect();
    let (took, used) = (began.elapsed(), process.processor_time());
    percentiles::record("took", seconds(took));
    let each = used * 10_000 / (3 * HOUSEHOLDS * ROUNDS) as u64;
    percentiles::record("relay: processor for each connection", format!("{each} µs"));
    percentiles::record("relay: memory at the start", mib(at_start));
    let list: Vec<String> = memory.iter().map(|bytes| mib(*bytes)).collect();
    percentiles::record("relay: memory after each round", list.join(", ").replace(" MiB,", ""));
    let what = format!("{descriptors} descriptors as at the start");
    eventually(&what, || process.descriptors() == descriptors);
    percentiles::record("relay: descriptors at the start and now", descriptors);
    let (warm, last) = (memory[WARM - 1], memory[ROUNDS - 1]);
    assert!(last <= warm + warm / 10 + (1 << 20), "{last} bytes and before that {warm}");
}

/// One thread's share of the households in one round.
fn look_in(relay: SocketAddr, round: usize, thread: usize) {
    // An address of its own for every round, so that no port is used twice.
    let source = source(round * THREADS + thread);
    let dial = |head: &str| Peer::upgrade(connect_from(source, relay), head);
    for household in (thread..HOUSEHOLDS).step_by(THREADS) {
        let name = format!("household-{household}");
        let mut binary = dial(&binary_head(&name));
        for visit in 0..2 {
            let mut phone = dial(&phone_head(&name));
            round_trip(&mut binary, &mut phone, visit);
            leave(phone, household + visit);
        }
        if household.is_multiple_of(20) {
            dial(&phone_head("nobody")).expect_close(4404, "no server with that id");
        }
        if household.is_multiple_of(50) {
            let mut rival = dial(&binary_head(&name));
            // It answers the probe on the way.
            binary.expect_alive();
            rival.expect_close(4409, "server-id already claimed");
        }
        leave(binary, household + round);
    }
}

/// Ends the connection in one of the possible ways.
fn leave(mut peer: Peer, way: usize) {
    match way % 3 {
        0 => {
            peer.send_close(1000);
            peer.expect_close(1000, "");
        }
        1 => drop(peer),
        _ => peer.reset(),
    }
}
