//! Idle connections: their cost to the relay, plain and over TLS.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use crate::percentiles::record;
use crate::support::{Pair, Peer, Process, binary_head, connect_from, source, through_tls};

const COUNT: usize = 10_000;
const DIALERS: usize = 4;
/// The relay's own memory for an idle TLS connection of a binary, whose server-id takes some 60
/// bytes that a phone does not.
const TLS_MAX: u64 = 520;

pub fn plain_and_tls() {
    let plain = Process::start(&[]);
    let bytes = cost(&plain, |n| connect_from(source(n), plain.relay));
    record("plain, bytes a connection", bytes);
    drop(plain);

    let pair = Pair::new();
    let [certificate, key] = pair.flags();
    for (name, client) in [("TLS 1.3", pair.client()), ("TLS 1.2", pair.client12())] {
        let tls = Process::start(&[&certificate, &key]);
        let bytes = cost(&tls, |n| through_tls(connect_from(source(n), tls.relay), &client));
        record(&format!("{name}, bytes a connection"), bytes);
        assert!(bytes <= TLS_MAX, "{name}: {bytes} bytes a connection");
    }
}

/// Resident memory per idle binary, at this number of binaries.
fn cost<S: Read + Write + Send>(process: &Process, dial: impl Fn(usize) -> S + Sync) -> u64 {
    // One-time allocations are done by now.
    drop(Peer::upgrade(dial(0), &binary_head("first")));
    let before = process.memory().0;
    // At once: a peer that answers no ping has half a minute.
    let dial_some = &|from: usize| {
        let own = (from..COUNT).step_by(DIALERS);
        own.map(|n| Peer::upgrade(dial(n), &binary_head(&n.to_string()))).collect::<Vec<_>>()
    };
    let peers: Vec<_> = thread::scope(|scope| {
        let dialers: Vec<_> = (0..DIALERS).map(|n| scope.spawn(move || dial_some(n))).collect();
        dialers.into_iter().map(|dialer| dialer.join().unwrap()).collect()
    });
    let bytes = process.memory().0.saturating_sub(before) / COUNT as u64;
    let lines = std::iter::from_fn(|| process.next_line(Duration::ZERO));
    assert_eq!(lines.filter(|line| line.contains("server_released")).count(), 1, "all are in");
    drop(peers);
    bytes
}
