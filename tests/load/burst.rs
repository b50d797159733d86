//! Bursts as daemons and phones send them after connecting: hundreds of small frames in one
//! write, together with the request or right after the 101. No connection is closed for it
//! and nothing is lost.

use std::net::SocketAddr;
use std::thread;
use std::time::Instant;

use crate::percentiles::{self, seconds};
use crate::support::{
    Opcode, Peer, Process, binary_head, connect_from, envelope, frame, healthz, noise, phone_head,
    source,
};

const HOUSEHOLDS: usize = 200;
const THREADS: usize = 4;
const FRAMES: usize = 400;
const LEN: usize = 180;

pub fn at_connect() {
    let process = Process::start(&[]);
    let relay = process.relay;
    let began = Instant::now();
    let threads: Vec<_> = (0..THREADS)
        .map(|thread| {
            thread::spawn(move || {
                let own = (thread..HOUSEHOLDS).step_by(THREADS);
                own.flat_map(|number| household(relay, number)).collect::<Vec<Peer>>()
            })
        })
        .collect();
    let mut peers: Vec<Peer> =
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    let took = began.elapsed();
    peers.iter_mut().for_each(Peer::expect_alive);
    assert_eq!(healthz(relay), (HOUSEHOLDS as u64, HOUSEHOLDS as u64));
    percentiles::record("took", seconds(took));
    percentiles::record("frames", HOUSEHOLDS * FRAMES * 2);
}

/// The frames of one end as one buffer.
fn burst(text: impl Fn(usize) -> String) -> Vec<u8> {
    (0..FRAMES).flat_map(|n| frame(Opcode::Text, true, text(n).as_bytes())).collect()
}

fn household(relay: SocketAddr, number: usize) -> [Peer; 2] {
    let name = format!("household-{number}");
    let dial = |head: &str, bytes: &[u8]| {
        let mut stream = connect_from(source(number), relay);
        let request = [head.as_bytes(), bytes].concat();
        std::io::Write::write_all(&mut stream, &request).unwrap();
        Peer::upgraded(stream)
    };
    // To a phone from before the redial, which the relay no longer knows.
    let gone = burst(|n| envelope("gone", &noise(number, n, LEN)));
    let mut binary = dial(&binary_head(&name), &gone);
    binary.expect_alive();
    // The phone does the same, and its binary in one write on the phone's first frame.
    let mut phone = dial(&phone_head(&name), &burst(|n| noise(number, n, LEN)));
    for n in 0..FRAMES {
        let text = binary.receive_text();
        assert!(text == envelope(&phone.id, &noise(number, n, LEN)), "{n}: {text}");
    }
    binary.send_raw(&burst(|n| envelope(&phone.id, &noise(number, n, LEN))));
    for n in 0..FRAMES {
        let text = phone.receive_text();
        assert!(text == noise(number, n, LEN), "{n}: {text}");
    }
    [binary, phone]
}
