//! A phone that never reads is shed, and its fifteen siblings are not affected.
//!
//! The siblings' round trips are timed with the same messages going to the same phone in
//! three phases: it reads them, it does not read, it is gone.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::percentiles::{self, Latencies, seconds};
use crate::support::{
    Peer, Process, Received, connect_reading_little, content, eventually, healthz, pause,
    phone_head, round_trip,
};

const SIBLINGS: usize = 15;
/// Rounds of every phase whose length is not decided by the relay.
const ROUNDS: usize = 60;
const LEN: usize = 64_000;

/// The maximum number of phones of one server-id, and their progress.
struct Household {
    process: Process,
    binary: Peer,
    siblings: Vec<Peer>,
    /// The phone that will stop reading.
    stuck: String,
    round: usize,
    told: usize,
}

impl Household {
    fn start() -> (Self, Peer) {
        // Half of it is the phone's.
        let process = Process::start(&["--buffer-memory=8388608"]);
        let relay = process.relay;
        let binary = Peer::binary(relay, "home");
        let stuck = Peer::upgrade(connect_reading_little(relay), &phone_head("home"));
        let siblings = (0..SIBLINGS).map(|_| Peer::phone(relay, "home")).collect();
        let id = stuck.id.clone();
        (Self { process, binary, siblings, stuck: id, round: 0, told: 0 }, stuck)
    }

    /// Sends a large message to that phone.
    fn tell_stuck(&mut self) {
        self.binary.send_to(&self.stuck, &content(0, self.told, LEN));
        self.told += 1;
    }

    /// A round trip with each of the others.
    fn round(&mut self, times: &mut Latencies) {
        for sibling in &mut self.siblings {
            times.push(round_trip(&mut self.binary, sibling, self.round));
        }
        self.round += 1;
    }

    fn is_shed(&self) -> bool {
        let (binaries, phones) = healthz(self.process.relay);
        assert_eq!(binaries, 1);
        assert!(phones >= SIBLINGS as u64, "{phones} phones");
        phones == SIBLINGS as u64
    }

    /// One round, with a large message before it or a pause.
    fn step(&mut self, tells: bool, times: &mut Latencies) {
        if tells {
            self.tell_stuck();
        } else {
            pause(Duration::from_millis(20));
        }
        self.round(times);
    }

    /// A phase of [`ROUNDS`] rounds in which `is_shed` does not change.
    fn phase(&mut self, tells: bool, is_shed: bool) -> Latencies {
        let mut times = Latencies::default();
        for _ in 0..ROUNDS {
            self.step(tells, &mut times);
            assert_eq!(self.is_shed(), is_shed);
        }
        times
    }

    /// The phase that ends when the phone is shed.
    fn until_shed(&mut self, tells: bool) -> Latencies {
        let mut times = Latencies::default();
        eventually("the phone is shed", || {
            self.step(tells, &mut times);
            self.is_shed()
        });
        times
    }

    fn expect_alive(&mut self) {
        self.binary.expect_alive();
        self.siblings.iter_mut().for_each(Peer::expect_alive);
    }
}

pub fn beyond_the_backlog() {
    let (mut home, stuck) = Household::start();
    let reader = read_some(stuck, ROUNDS);
    let before = home.phase(true, false);
    let stuck = reader.join().unwrap();

    let during = home.until_shed(true);
    let (told, received) = (home.told, hear_the_rest(stuck, ROUNDS, "phone backlog full"));
    assert!(received < told - ROUNDS, "{received} of {told}");
    percentiles::record("unread when shed", format!("{} messages of {LEN} bytes", told - ROUNDS));
    percentiles::record("of these it found when it read on", received);
    let after = home.phase(true, true);
    record(home, [before, during, after]);
}

pub fn out_of_time() {
    let (mut home, stuck) = Household::start();
    let before = home.phase(false, false);
    // More than the kernel takes and less than the backlog may be.
    (0..30).for_each(|_| home.tell_stuck());
    let began = Instant::now();
    let during = home.until_shed(false);
    percentiles::record("shed after", seconds(began.elapsed()));
    let received = hear_the_rest(stuck, 0, "write timeout");
    assert!(received < home.told, "{received}");
    percentiles::record("of 30 it found when it read on", received);
    let after = home.phase(false, true);
    record(home, [before, during, after]);
}

fn record(mut home: Household, times: [Latencies; 3]) {
    for (phase, times) in ["before", "during", "after"].iter().zip(&times) {
        percentiles::record(&format!("siblings' round trips {phase}"), times);
    }
    home.expect_alive();
    let [before, during, after] = times;
    during.expect_flat(&before);
    after.expect_flat(&before);
}

/// Receives the first `count` messages on a separate thread.
fn read_some(mut phone: Peer, count: usize) -> JoinHandle<Peer> {
    thread::spawn(move || {
        for n in 0..count {
            assert!(phone.receive_text() == content(0, n, LEN), "{n}");
        }
        phone
    })
}

/// Receives messages from number `first` on without a gap, then this close, then the end.
/// Returns their count.
fn hear_the_rest(mut phone: Peer, first: usize, reason: &str) -> usize {
    let mut count = 0;
    loop {
        match phone.receive() {
            Received::Text(text) => {
                assert!(text == content(0, first + count, LEN), "{count}: {text:.80}");
                count += 1;
            }
            Received::Ping(_) => {}
            received => {
                assert_eq!(received, Received::Close(Some((1011, reason.into()))));
                assert_eq!(phone.receive(), Received::End);
                return count;
            }
        }
    }
}
