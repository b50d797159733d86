//! Log sink: with a writer that blocks, fails or is closed.

use std::sync::{Condvar, Mutex};

use log::Log;

use super::*;

/// Longer than any wait of a test that passes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A pipe whose reader can stop, close or accept limited writes. Clones share the pipe.
#[derive(Clone, Default)]
struct Pipe(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    is_stopped: bool,
    is_closed: bool,
    /// What each write takes at most before the pipe is as `is_closed` says;
    /// `None` interrupts it.
    portions: Vec<Option<usize>>,
    calls: usize,
    bytes: Vec<u8>,
}

impl Pipe {
    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    /// Returns when a write is stuck in the stopped pipe, the `calls`-th of all.
    fn wait_for_call(&self, calls: usize) {
        let state = self.0.0.lock().unwrap();
        let wait = self.0.1.wait_timeout_while(state, PATIENCE, |state| state.calls < calls);
        assert!(!wait.unwrap().1.timed_out(), "no write came");
    }

    fn calls(&self) -> usize {
        self.0.0.lock().unwrap().calls
    }

    /// What was written since the last look, in lines, without `time` and `level`.
    fn take_lines(&self) -> Vec<String> {
        let text = String::from_utf8(mem::take(&mut self.0.0.lock().unwrap().bytes)).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "a torn line: {text:?}");
        let event = |line: &str| {
            assert!(line.starts_with("time=2"), "{line}");
            line.split_once("msg=").unwrap().1.to_owned()
        };
        text.lines().map(event).collect()
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.0.lock().unwrap();
        state.calls += 1;
        self.0.1.notify_all();
        let mut state = self.0.1.wait_while(state, |state| state.is_stopped).unwrap();
        let portion = match state.portions.is_empty() {
            false => state.portions.remove(0),
            true if state.is_closed => return Err(io::ErrorKind::BrokenPipe.into()),
            true => Some(usize::MAX),
        };
        let taken = portion.ok_or(io::ErrorKind::Interrupted)?.min(bytes.len());
        state.bytes.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn start() -> (Sink, Pipe) {
    let pipe = Pipe::default();
    let sink = Sink::start(LogFormat::Logfmt, LevelFilter::Info, pipe.clone()).unwrap();
    (sink, pipe)
}

fn say_as(sink: &Sink, target: &str, level: Level, event: &str) {
    sink.log(&Record::builder().target(target).level(level).args(format_args!("{event}")).build());
}

fn say(sink: &Sink, event: &str) {
    say_as(sink, "pyrycode_relay::relay", Level::Info, event);
}

#[test]
fn only_our_own_records_of_the_level_are_written() {
    let (sink, pipe) = start();
    for target in ["tungstenite::protocol", "mio", "pyrycode_relays", "x::pyrycode_relay", ""] {
        say_as(&sink, target, Level::Error, "foreign");
    }
    say_as(&sink, "pyrycode_relay", Level::Error, "main");
    say_as(&sink, "pyrycode_relay::relay", Level::Info, "relay");
    say_as(&sink, "pyrycode_relay::relay", Level::Debug, "detail");
    assert!(sink.flush_within(PATIENCE));
    assert_eq!(pipe.take_lines(), ["main", "relay"]);
    assert_eq!(sink.lines_dropped(), 0);
}

#[test]
fn a_stuck_writer_delays_nobody_and_every_lost_line_is_counted() {
    const THREADS: usize = 4;
    const LINES: usize = 25_000;
    let (sink, pipe) = start();
    let mut reported = 0;
    for round in 1..=2 {
        pipe.set(|state| state.is_stopped = true);
        let calls = pipe.calls();
        say(&sink, "first");
        pipe.wait_for_call(calls + 1);

        let (finished, finish) = mpsc::channel();
        for _ in 0..THREADS {
            let (sink, finished) = (sink.clone(), finished.clone());
            let body = move || {
                (0..LINES).for_each(|_| say(&sink, "more"));
                finished.send(()).unwrap();
            };
            thread::Builder::new().spawn(body).unwrap();
        }
        for _ in 0..THREADS {
            finish.recv_timeout(PATIENCE).expect("logging waits for the writer");
        }
        assert_eq!(pipe.calls(), calls + 1);
        let queue = sink.shared.queue();
        assert!(
            queue.taken > 0 && queue.lines.len() + queue.taken <= QUEUE_BYTES,
            "{}",
            queue.taken
        );
        drop(queue);

        pipe.set(|state| state.is_stopped = false);
        assert!(sink.flush_within(PATIENCE));
        let lost = sink.lines_dropped() - reported;
        reported += lost;
        let mut lines = pipe.take_lines();
        let notice = format!("log_lines_dropped lost={lost}");
        assert_eq!(lines.iter().filter(|&line| *line == notice).count(), 1, "round {round}");
        lines.retain(|line| ["first", "more"].contains(&line.as_str()));
        assert_eq!(lines.len() + lost as usize, 1 + THREADS * LINES, "round {round}");
        assert!(lines.len() * 512 > QUEUE_BYTES, "round {round}: only {} lines fit", lines.len());
        assert!(sink.shared.queue().lines.is_empty());
    }
}

#[test]
fn what_waits_goes_out_in_one_write_and_in_order() {
    let (sink, pipe) = start();
    pipe.set(|state| state.is_stopped = true);
    say(&sink, "0");
    pipe.wait_for_call(1);
    (1..100).for_each(|number| say(&sink, &number.to_string()));
    pipe.set(|state| state.is_stopped = false);
    assert!(sink.flush_within(PATIENCE));
    assert_eq!(pipe.take_lines(), (0..100).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!(pipe.calls(), 2);
}

#[test]
fn a_closed_writer_loses_lines_without_a_spin_and_may_come_back() {
    let (sink, pipe) = start();
    pipe.set(|state| state.is_closed = true);
    for line in 1..=10 {
        say(&sink, "lost");
        assert!(sink.flush_within(PATIENCE));
        assert_eq!(sink.lines_dropped(), line);
    }
    // One try for each line, and at most one more for the notice when flushing.
    assert!(pipe.calls() <= 20, "{} tries", pipe.calls());

    pipe.set(|state| state.is_closed = false);
    say(&sink, "back");
    assert!(sink.flush_within(PATIENCE));
    assert_eq!(pipe.take_lines(), ["back", "log_lines_dropped lost=10"]);
    say(&sink, "again");
    assert!(sink.flush_within(PATIENCE));
    assert_eq!(pipe.take_lines(), ["again"]);
}

#[test]
fn a_writer_that_fails_within_a_line_never_tears_it() {
    // `time=2024-02-29T12:34:56.789Z level=INFO msg=one` and a line feed.
    const LINE: usize = 49;
    for taken in 0..=3 * LINE {
        let (sink, pipe) = start();
        pipe.set(|state| state.is_stopped = true);
        say(&sink, "zero");
        pipe.wait_for_call(1);
        ["one", "two", "six"].iter().for_each(|event| say(&sink, event));
        // All of `zero`, then a part of the rest, interrupted halfway.
        let half = taken / 2;
        let portions = [Some(LINE + 1), Some(half), None, Some(taken - half)];
        pipe.set(|state| {
            // A write of zero bytes counts as failed.
            state.portions = portions.into_iter().filter(|&portion| portion != Some(0)).collect();
            state.is_closed = true;
            state.is_stopped = false;
        });
        assert!(sink.flush_within(PATIENCE));
        assert!(sink.flush_within(PATIENCE));
        pipe.set(|state| state.is_closed = false);
        say(&sink, "end");
        assert!(sink.flush_within(PATIENCE));

        let begun = taken.div_ceil(LINE);
        let lost = 3 - begun;
        assert_eq!(sink.lines_dropped(), lost as u64, "{taken} bytes taken");
        let mut expected = vec!["zero"];
        expected.extend(&["one", "two", "six"][..begun]);
        expected.push("end");
        let notice = format!("log_lines_dropped lost={lost}");
        if lost > 0 {
            expected.push(&notice);
        }
        assert_eq!(pipe.take_lines(), expected, "{taken} bytes taken");
    }
}

#[test]
fn a_notice_that_was_cut_is_completed_and_not_repeated() {
    let (sink, pipe) = start();
    pipe.set(|state| state.is_closed = true);
    say(&sink, "lost");
    assert!(sink.flush_within(PATIENCE));
    pipe.set(|state| {
        state.is_closed = false;
        state.portions = vec![Some(60), Some(0)];
    });
    say(&sink, "next");
    assert!(sink.flush_within(PATIENCE));
    say(&sink, "end");
    assert!(sink.flush_within(PATIENCE));
    assert_eq!(pipe.take_lines(), ["next", "log_lines_dropped lost=1", "end"]);
    assert_eq!(sink.lines_dropped(), 1);
}

#[test]
fn a_flush_waits_for_the_writer_but_no_longer_than_it_may() {
    let (sink, pipe) = start();
    pipe.set(|state| state.is_stopped = true);
    say(&sink, "stuck");
    pipe.wait_for_call(1);
    (0..30_000).for_each(|_| say(&sink, "the queue is full"));
    assert!(sink.lines_dropped() > 0);

    let (result, flushed) = mpsc::channel();
    let asking = sink.clone();
    thread::Builder::new()
        .spawn(move || result.send(asking.flush_within(Duration::from_millis(20))))
        .unwrap();
    assert_eq!(flushed.recv_timeout(PATIENCE), Ok(false));

    pipe.set(|state| state.is_stopped = false);
    assert!(sink.flush_within(PATIENCE));
    assert!(pipe.take_lines().len() > 1);
}

#[test]
fn debug_lines_leave_room_for_those_that_an_operator_needs() {
    let pipe = Pipe::default();
    let sink = Sink::start(LogFormat::Logfmt, LevelFilter::Debug, pipe.clone()).unwrap();
    pipe.set(|state| state.is_stopped = true);
    say(&sink, "stuck");
    pipe.wait_for_call(1);
    (0..10_000).for_each(|_| say_as(&sink, TARGET, Level::Debug, "any number of these"));
    let lost = sink.lines_dropped();
    assert!(lost > 0);
    (0..100).for_each(|_| say(&sink, "server_claimed"));
    assert_eq!(sink.lines_dropped(), lost);
    pipe.set(|state| state.is_stopped = false);
    assert!(sink.flush_within(PATIENCE));
    let claims = pipe.take_lines().iter().filter(|line| *line == "server_claimed").count();
    assert_eq!(claims, 100);
}
