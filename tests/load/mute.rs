//! Unread stderr: log lines are lost and counted, and nothing else is lost.

use std::time::{Duration, Instant};

use crate::percentiles::{self, Latencies, share};
use crate::support::{Opcode, PATIENCE, Peer, Process, Received, envelope, frame, round_trip};

/// Envelopes to an unknown phone. Each is dropped with a line: together many times what the
/// pipe and the queue hold.
const DROPPED: usize = 50_000;
const BURST: usize = 100;
/// First pings are spread over 30 s: with this number of peers several receive one
/// every second.
const OTHERS: usize = 200;

pub fn stderr_is_not_read() {
    let mut process = Process::start_with_stuck_stderr("trace");
    let relay = process.relay;
    let mut binary = Peer::binary(relay, "home");
    let mut phone = Peer::phone(relay, "home");
    let mut others: Vec<Peer> =
        (0..OTHERS).map(|n| Peer::binary(relay, &format!("other-{n}"))).collect();
    let (mut before, mut during) = (Latencies::default(), Latencies::default());
    (0..500).for_each(|n| before.push(round_trip(&mut binary, &mut phone, n)));

    let (began, used) = (Instant::now(), process.processor_time());
    let burst = frame(Opcode::Text, true, envelope("nobody", "1").as_bytes()).repeat(BURST);
    (0..DROPPED / BURST).for_each(|_| binary.send_raw(&burst));
    binary.expect_alive();
    percentiles::record(
        "relay: processor for 50,000 lines",
        share(process.processor_time() - used, began.elapsed()),
    );
    (0..500).for_each(|n| during.push(round_trip(&mut binary, &mut phone, n)));
    percentiles::record("round trips before", &before);
    percentiles::record("round trips with stderr stuck", &during);
    during.expect_flat(&before);

    let (pinged, waited) = hear_pings(&mut others, 5);
    percentiles::record("pings heard", format!("{pinged} of {OTHERS} peers in {waited:.1?}"));
    // The peers answer the relay's pings, and the relay answers theirs.
    others.iter_mut().for_each(Peer::expect_alive);

    process.read_on();
    let (written, lost) = count_lines(&process, 1 + OTHERS + 1 + DROPPED);
    percentiles::record("lines written, and lost", format!("{written}, {lost}"));
    assert!(lost > DROPPED / 2, "stderr was not stuck");
}

/// Reads the log until it accounts for this number of lines: those written, and those
/// reported as lost. There are no others.
fn count_lines(process: &Process, all: usize) -> (usize, usize) {
    let (mut written, mut lost) = (0, 0);
    let deadline = Instant::now() + PATIENCE;
    while written + lost < all {
        let line = process.next_line(deadline.saturating_duration_since(Instant::now()));
        let line = line.unwrap_or_else(|| panic!("{written} lines and {lost} lost of {all}"));
        match line.split_once("msg=log_lines_dropped lost=") {
            Some((_, count)) => lost += count.parse::<usize>().unwrap(),
            None => written += 1,
        }
    }
    assert_eq!(written + lost, all);
    assert_eq!(process.next_line(Duration::from_millis(200)), None, "a line too many");
    (written, lost)
}

/// Waits until `enough` of the peers have been pinged, and answers; returns how many, and
/// how long that took.
fn hear_pings(peers: &mut [Peer], enough: usize) -> (usize, Duration) {
    let (mut pinged, began) = (0, Instant::now());
    while pinged < enough {
        assert!(began.elapsed() < PATIENCE, "{pinged} pings");
        for peer in &mut *peers {
            peer.stream.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
            if let Ok(Received::Ping(payload)) = peer.try_receive() {
                peer.send(Opcode::Pong, &payload);
                pinged += 1;
            }
        }
    }
    for peer in peers {
        peer.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    (pinged, began.elapsed())
}
