//! Watch: a relay under attack, and what it does meanwhile for others.
//!
//! Owns a relay with a watchdog, a pair that exchanges frames, and the rows that say how both
//! fare. The bounds are wide enough for a machine with other work, and far below what an attack
//! achieved while a turn was not bounded: seconds to a minute.

use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::percentiles::{self, Latencies, mib, share};
use crate::support::{Peer, Process, metrics, pause, round_trip};

/// Flags with which the limits before the upgrade are on, and those after it out of the way. An
/// address of this machine is that of a client and not of a proxy.
pub const LIMITS: [&str; 3] =
    ["--rate-limit-per-minute=600000", "--rate-limit-burst=600000", "--trusted-proxies=192.0.2.1"];
/// The pace of a peer that a person uses.
pub const PACE: Duration = Duration::from_millis(50);
const MEDIAN_MAX: Duration = Duration::from_millis(50);
const LONGEST_MAX: Duration = Duration::from_secs(2);
/// The interval that the relay is asked for is half of it.
const WATCHDOG: Duration = Duration::from_secs(1);

/// A relay, and systemd's part of it.
pub struct Watched {
    pub process: Process,
    told: Arc<Mutex<Vec<Instant>>>,
    is_over: Arc<AtomicBool>,
    began: Instant,
    at_start: Numbers,
}

/// Numbers that grow.
struct Numbers {
    memory: u64,
    processor: u64,
    turns: [u64; 2],
    timers: [u64; 3],
    lost_lines: u64,
}

impl Numbers {
    fn of(process: &Process) -> Self {
        let turns = ["turn_seconds_count", "turn_seconds_bucket{le=\"0.032\"}"];
        let timers = ["0.128", "1.024"].map(|le| format!("loop_lag_seconds_bucket{{le=\"{le}\"}}"));
        let [soon, later] = timers.each_ref().map(String::as_str);
        let [lost_lines] = metrics(process, ["log_lines_dropped_total"]);
        Self {
            memory: process.memory().0,
            processor: process.processor_time(),
            turns: metrics(process, turns),
            timers: metrics(process, ["loop_lag_seconds_count", soon, later]),
            lost_lines,
        }
    }
}

impl Watched {
    pub fn start(flags: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pyrycode-relay-load-{}-{count}", std::process::id());
        let address = UnixAddress::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let micros = WATCHDOG.as_micros().to_string();
        let variables = [("NOTIFY_SOCKET", &*format!("@{name}")), ("WATCHDOG_USEC", &*micros)];
        let process = Process::start_with(flags, &variables);
        let (told, is_over) = (Arc::<Mutex<Vec<Instant>>>::default(), Arc::default());
        thread::spawn({
            let (told, is_over) = (Arc::clone(&told), Arc::<AtomicBool>::clone(&is_over));
            move || {
                while !is_over.load(Ordering::Relaxed) {
                    let mut word = [0; 64];
                    if socket.recv(&mut word).is_ok_and(|count| &word[..count] == b"WATCHDOG=1") {
                        told.lock().unwrap().push(Instant::now());
                    }
                }
            }
        });
        let (began, at_start) = (Instant::now(), Numbers::of(&process));
        Self { process, told, is_over, began, at_start }
    }

    /// From now on the rows count.
    pub fn begin(&mut self) {
        while self.process.next_line(Duration::ZERO).is_some() {}
        (self.began, self.at_start) = (Instant::now(), Numbers::of(&self.process));
        self.told.lock().unwrap().clear();
    }

    /// Prints how the relay and the pair fared, and compares that with the bounds. Returns the
    /// lines of the log.
    pub fn report(&mut self, what: &str, times: &Latencies) -> Vec<String> {
        let took = self.began.elapsed();
        // What lets the relay rest is over, and it may be late for the last time.
        let now = Numbers::of(&self.process);
        let lines: Vec<String> =
            std::iter::from_fn(|| self.process.next_line(Duration::ZERO)).collect();
        percentiles::record(&format!("round trips beside {what}"), times);
        let used = now.processor - self.at_start.processor;
        percentiles::record("  relay: processor meanwhile", share(used, took));
        let [all, short] = [0, 1].map(|at| now.turns[at] - self.at_start.turns[at]);
        percentiles::record("  turns, and those over 32 ms", format!("{all}, {}", all - short));
        let [all, soon, later] = [0, 1, 2].map(|at| now.timers[at] - self.at_start.timers[at]);
        let late = format!("{all}, {}, {}", all - soon, all - later);
        percentiles::record("  timers, over 128 ms late, over 1 s", late);
        let mut told = vec![self.began];
        told.append(&mut *self.told.lock().unwrap());
        told.push(Instant::now());
        let longest = told.windows(2).map(|two| two[1] - two[0]).max().unwrap();
        percentiles::record("  watchdog, longest of 500 ms", format!("{longest:.0?}"));
        let grown = now.memory.saturating_sub(self.at_start.memory);
        percentiles::record("  relay: memory above the start", mib(grown));
        let bytes: usize = lines.iter().map(|line| line.len() + 1).sum();
        let lost = now.lost_lines - self.at_start.lost_lines;
        percentiles::record(
            "  log: bytes, lines, lost",
            format!("{bytes}, {}, {lost}", lines.len()),
        );
        assert!(times.median() <= MEDIAN_MAX, "{:?} beside {what}", times.median());
        assert!(times.permille(1000) <= LONGEST_MAX, "{:?} beside {what}", times.permille(1000));
        assert!(longest <= LONGEST_MAX, "the watchdog was silent for {longest:?}");
        assert_eq!(all, later, "a timer was more than a second late");
        assert_eq!(lost, 0, "lines of the log were lost");
        lines
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// A pair that exchanges frames until it is stopped.
pub struct Exchange<S> {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<(Latencies, Peer<S>, Peer<S>)>,
}

impl<S: Read + Write + Send + 'static> Exchange<S> {
    pub fn start(mut binary: Peer<S>, mut phone: Peer<S>) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let is_over = Arc::clone(&is_over);
            move || {
                let mut times = Latencies::default();
                for n in 0.. {
                    times.push(round_trip(&mut binary, &mut phone, n));
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    pause(PACE);
                }
                (times, binary, phone)
            }
        });
        Self { is_over, thread }
    }

    /// Its round trips; both are alive.
    pub fn stop(self) -> Latencies {
        self.is_over.store(true, Ordering::Relaxed);
        let (times, mut binary, mut phone) = self.thread.join().unwrap();
        binary.expect_alive();
        phone.expect_alive();
        times
    }
}
