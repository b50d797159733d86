//! Dials: one client opens hundreds of sockets a second and asks for nothing, at a relay with
//! few descriptors. Others get in.

use std::collections::VecDeque;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use crate::percentiles::{self, Latencies};
use crate::support::{Peer, Process, binary_head, connect_from, pause, source};
use crate::watch::LIMITS;

const DESCRIPTORS: u32 = 1024;
const RATE: usize = 800;
const TIME: Duration = Duration::from_secs(12);
const HONEST: usize = 56;

pub fn of_one_client() {
    let process = Process::start_with_descriptors(DESCRIPTORS, &LIMITS);
    let relay = process.relay;
    let attacker = thread::spawn(move || {
        let (began, mut dialled, mut open) = (Instant::now(), 0, VecDeque::new());
        while began.elapsed() < TIME {
            let due = (began.elapsed().as_secs_f64() * RATE as f64) as usize;
            while dialled < due {
                let mut stream = connect_from(source(7), relay);
                let _ = stream.write_all(b"GET /v1/server HTTP");
                open.push_back(stream);
                dialled += 1;
            }
            while open.len() > 9_000 {
                open.pop_front();
            }
            pause(Duration::from_millis(1));
        }
        dialled
    });
    let mut times = Latencies::default();
    let mut peers = Vec::new();
    for n in 0..HONEST {
        pause(TIME / HONEST as u32);
        let began = Instant::now();
        let stream = connect_from(source(20 + n), relay);
        peers.push(Peer::upgrade(stream, &binary_head(&n.to_string())));
        times.push(began.elapsed());
    }
    percentiles::record("sockets of one client", attacker.join().unwrap());
    percentiles::record("upgrades of others", &times);
    peers.iter_mut().for_each(Peer::expect_alive);
    assert!(times.permille(1000) < Duration::from_secs(5), "a dialer waited");
}
