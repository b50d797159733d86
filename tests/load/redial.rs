//! Twenty thousand clients dial at once: at first, after they all reset their connections,
//! and after the relay was killed and has restarted. Every time each of them is admitted,
//! every claim succeeds and every pair exchanges a frame.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use crate::crowd::{self, Tally};
use crate::percentiles::{self, mib, seconds};
use crate::support::{PATIENCE, Process, eventually, healthz, settled_descriptors};

const CLIENTS: usize = 20_000;
/// Processes for the clients: one has too few descriptors for all.
const CROWDS: usize = 2;

pub fn all_at_once() {
    let process = Process::start(&[]);
    let relay = process.relay;
    let room = process.listening.split_once(" connections=").unwrap().1;
    let room: usize = room.split(' ').next().unwrap().parse().unwrap();
    if room < CLIENTS {
        println!("  NOTE: the hard limit of RLIMIT_NOFILE leaves room for {room} of {CLIENTS}");
    }
    let pairs = room.min(CLIENTS) / 2 / CROWDS * CROWDS;
    percentiles::record("clients", 2 * pairs);
    let descriptors = settled_descriptors(&process);
    let (at_start, _) = process.memory();

    let mut began = Instant::now();
    let mut crowds: Vec<Crowd> =
        (0..CROWDS).map(|n| Crowd::start(relay, n, pairs / CROWDS)).collect();
    let first = let_in("first", &process, &mut crowds, pairs, began);
    let per_client = first.saturating_sub(at_start) / (2 * pairs as u64);
    percentiles::record("first: memory for each client", format!("{per_client} bytes"));

    began = Instant::now();
    crowds.iter_mut().for_each(|crowd| crowd.order(crowd::REDIAL));
    let again = let_in("reset", &process, &mut crowds, pairs, began);
    assert!(again < first + first / 4 + (8 << 20), "{again} bytes and before that {first}");

    drop(process);
    let process = Process::start_at(relay, &[]);
    began = Instant::now();
    let_in("killed", &process, &mut crowds, pairs, began);

    drop(crowds);
    eventually("every peer is gone", || healthz(relay) == (0, 0));
    let what = format!("{descriptors} descriptors as at the start");
    eventually(&what, || process.descriptors() == descriptors);
    percentiles::record("gone: memory", mib(process.memory().0));
}

/// Waits until every pair is done; returns the relay's memory at that time.
fn let_in(
    when: &str,
    process: &Process,
    crowds: &mut [Crowd],
    pairs: usize,
    began: Instant,
) -> u64 {
    // A restarted relay has used no CPU yet, while the clients' counts continue.
    let used = if when == "killed" { 0 } else { process.processor_time() };
    let earlier: Vec<Tally> = crowds.iter().map(|crowd| crowd.counted).collect();
    let mut tallies = Vec::new();
    eventually("every pair is done", || {
        tallies = crowds.iter_mut().map(Crowd::tally).collect();
        tallies.iter().map(|tally| tally.done).sum::<u64>() == pairs as u64
    });
    let took = began.elapsed();
    assert_eq!(healthz(process.relay), (pairs as u64, pairs as u64));
    for (crowd, tally) in crowds.iter_mut().zip(&tallies) {
        crowd.counted = *tally;
    }
    let count = |of: fn(&Tally) -> u64| {
        tallies.iter().map(of).sum::<u64>() - earlier.iter().map(of).sum::<u64>()
    };
    let (answered, full, absent) = (count(|t| t.answered), count(|t| t.full), count(|t| t.absent));
    let used = process.processor_time() - used;
    let each = used * 10_000 / answered;
    let (memory, _) = process.memory();
    percentiles::record(&format!("{when}: all in after"), seconds(took));
    percentiles::record(&format!("{when}: upgrades answered"), answered);
    percentiles::record(
        &format!("{when}: of these 503, and closed 4404"),
        format!("{full}, {absent}"),
    );
    percentiles::record(
        &format!("{when}: relay: processor"),
        format!("{}, {each} µs for each", seconds(Duration::from_millis(10 * used))),
    );
    percentiles::record(&format!("{when}: relay: memory"), mib(memory));
    // Only a client that dials before the relay has seen its disconnect may find no room.
    assert!(full == 0 || when == "reset", "{full} found no room");
    memory
}

/// A process of clients, killed when dropped.
struct Crowd {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
    /// Its outcomes when all its clients were last connected.
    counted: Tally,
}

impl Crowd {
    fn start(relay: SocketAddr, index: usize, pairs: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([crowd::WORD, &relay.to_string()])
            .args([index * pairs, pairs].map(|number| number.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, answers) = mpsc::channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, orders, answers, counted: Tally::default() }
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("the clients are gone");
    }

    fn tally(&mut self) -> Tally {
        self.order(crowd::TALLY);
        Tally::parse(&self.answers.recv_timeout(PATIENCE).expect("the clients are stuck or gone"))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
