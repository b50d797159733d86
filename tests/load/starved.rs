//! Out of file descriptors: with more dialers than descriptors the relay accepts as many as
//! it can and sleeps, serves its open connections, and in the end serves every dialer.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::percentiles::{self, Latencies, share};
use crate::support::{
    Answer, Peer, Process, connect, eventually, healthz, pause, round_trip, settled_descriptors,
};

const DIALERS: usize = 200;
/// Descriptors that are open, or reserved by the kernel for one of the four threads that
/// wait in accept(2) for requests for metrics: all but one, which a failed accept gave back.
const ALL_BUT: usize = 1 + 4;
/// Times that the descriptors run out.
const EPISODES: usize = 2;
/// The time between two rounds of the open connections.
const PACE: Duration = Duration::from_millis(50);
/// Shorter than the five seconds that a dialer has for its request.
const OBSERVED: Duration = Duration::from_millis(2500);

/// With 66 descriptors, of which 64 are reserved, the relay admits two WebSockets; one is
/// open, a binary.
pub fn to_two_connections() {
    let process = Process::start_with_descriptors(66, &[]);
    let mut binary = Peer::binary(process.relay, "home");
    starve(&process, 66, |times| {
        let began = Instant::now();
        binary.expect_alive();
        times.push(began.elapsed());
    });
    assert_eq!(healthz(process.relay), (1, 0));
}

/// With 96 there is room for pairs.
pub fn with_live_pairs() {
    let process = Process::start_with_descriptors(96, &[]);
    let mut pairs: Vec<(Peer, Peer)> = (0..8)
        .map(|n| {
            let binary = Peer::binary(process.relay, &n.to_string());
            (binary, Peer::phone(process.relay, &n.to_string()))
        })
        .collect();
    starve(&process, 96, |times| {
        for (n, (binary, phone)) in pairs.iter_mut().enumerate() {
            times.push(round_trip(binary, phone, n));
        }
    });
    assert_eq!(healthz(process.relay), (8, 8));
}

/// Dials until no descriptor is left, checks the relay and `live`, a round of its open
/// connections; then lets the dialers receive their responses.
fn starve(process: &Process, limit: usize, mut live: impl FnMut(&mut Latencies)) {
    let before = settled_descriptors(process);
    let (mut alone, mut beside) = (Latencies::default(), Latencies::default());
    let began = Instant::now();
    while began.elapsed() < OBSERVED {
        live(&mut alone);
        pause(PACE);
    }
    for _ in 0..EPISODES {
        let mut dialers: Vec<TcpStream> = (0..DIALERS).map(|_| connect(process.relay)).collect();
        process.expect_line("accept_paused");
        assert!(process.descriptors() >= limit - ALL_BUT, "it could have had more");

        let (began, used) = (Instant::now(), process.processor_time());
        while began.elapsed() < OBSERVED {
            live(&mut beside);
            pause(PACE);
        }
        let (time, used) = (began.elapsed(), process.processor_time() - used);
        percentiles::record("relay: processor while out of descriptors", share(used, time));
        assert!(u128::from(used) < time.as_millis() / 50, "{used} hundredths in {time:?}");

        for dialer in &mut dialers {
            // One that the relay has given up on may have been reset.
            let _ = dialer.write_all(b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n");
        }
        // Each disconnects after its response, which frees a descriptor.
        let answers = dialers.into_iter().map(|mut dialer| Answer::read(&mut dialer).status);
        let answers: Vec<u16> = answers.collect();
        let [served, late] = [200, 408].map(|code| answers.iter().filter(|&&c| c == code).count());
        percentiles::record("dialers served, and too late to ask", format!("{served}, {late}"));
        assert_eq!(served + late, DIALERS, "{answers:?}");
        assert!(served > 0, "no client");
        eventually("all that left are gone", || process.descriptors() == before);
        let more = std::iter::from_fn(|| process.next_line(Duration::ZERO));
        let more: Vec<String> = more.filter(|line| line.contains("accept_")).collect();
        assert!(more.is_empty(), "said again: {more:?}");
    }
    percentiles::record("live ones' round trips alone", &alone);
    percentiles::record("live ones' round trips meanwhile", &beside);
}
