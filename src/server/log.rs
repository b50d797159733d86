//! Log: the sink behind the `log` facade, one line per event on stderr.
//!
//! Owns the queue between the logging threads and the one thread that writes. Must not know
//! what is logged; `line` owns the format of a line.
//!
//! 1. Logging never blocks: a line that finds the queue full is lost and counted.
//! 2. Each lost line is reported once: `log_lines_dropped lost=N`, written as soon as the
//!    writer accepts bytes again.
//! 3. A line is written whole or not at all, unless the process ends in the middle of it.
//! 4. With nothing to log, the thread sleeps in `recv`, so that it never wakes an idle relay.
//! 5. Only the relay's own records are written: its dependencies log through the same
//!    facade, and tungstenite logs payloads.

mod line;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread;
use std::time::Duration;

use log::{Level, LevelFilter, Metadata, Record};

use crate::config::{Config, LogFormat};
use crate::server::os::clock::wall_time;

pub use line::{KEYS, VALUE_MAX};

/// The budget for queued lines, including their queue entries. A usual line of 200 bytes
/// costs 288, so about 3,600 of them fit; a line with the longest values that peers can
/// cause costs 1 KiB.
pub const QUEUE_BYTES: usize = 1024 * 1024;

/// A batch of this size is written without waiting for more lines.
const BATCH_BYTES: usize = 16 * 1024;

/// How long a first line waits for others. Waking the thread costs the event loop more than
/// a line does: in a burst of upgrades a third of all CPU time.
const GATHER: Duration = Duration::from_millis(10);

/// The time limit of [`log::Log::flush`].
pub const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// The crate whose records are written.
const TARGET: &str = "pyrycode_relay";

// The queue must hold several batches, or the writer would wait for the loop.
const _: () = assert!(QUEUE_BYTES >= 8 * BATCH_BYTES);

/// The time limit of [`Sink::finish`], in which no connection is served.
const FINISH_TIMEOUT: Duration = Duration::from_millis(50);

/// Makes stderr the destination of the `log` facade. An earlier program of this process has
/// lost and reported `lost` lines.
///
/// # Errors
///
/// If the thread cannot be started or the facade already has a destination.
pub fn install(config: &Config, lost: u64) -> io::Result<Sink> {
    let sink = Sink::start_after(lost, config.log_format, config.log_level, io::stderr())?;
    log::set_boxed_logger(Box::new(sink.clone())).map_err(io::Error::other)?;
    log::set_max_level(config.log_level);
    Ok(sink)
}

/// The destination of records. Clones share one queue and one thread, which ends after the
/// last clone is dropped.
#[derive(Clone, Debug)]
pub struct Sink {
    format: LogFormat,
    level: LevelFilter,
    queue: Sender<Entry>,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    /// The cost of the queued lines.
    queued_bytes: AtomicUsize,
    /// The number of lines that are queued or being written.
    lines_queued: AtomicU64,
    /// Lines lost since the start.
    lines_dropped: AtomicU64,
}

#[derive(Debug)]
enum Entry {
    /// One line with its line feed.
    Line(String),
    /// Answered when every entry before it has been written or lost.
    Flush(SyncSender<()>),
}

impl Sink {
    /// Starts the thread that writes lines of `level` and above to `writer`,
    /// which should be unbuffered and may block for as long as it likes.
    ///
    /// # Errors
    ///
    /// If the thread cannot be started.
    pub fn start(
        format: LogFormat,
        level: LevelFilter,
        writer: impl Write + Send + 'static,
    ) -> io::Result<Self> {
        Self::start_after(0, format, level, writer)
    }

    fn start_after(
        lost: u64,
        format: LogFormat,
        level: LevelFilter,
        writer: impl Write + Send + 'static,
    ) -> io::Result<Self> {
        // The channel has no bound of its own: `queued_bytes` bounds the lines,
        // and a flush must find room behind a full queue.
        let (queue, entries) = mpsc::channel();
        let counters = Counters { lines_dropped: AtomicU64::new(lost), ..Counters::default() };
        let counters = Arc::new(counters);
        let drain = Drain {
            entries,
            counters: Arc::clone(&counters),
            format,
            writer,
            batch: Vec::with_capacity(2 * BATCH_BYTES),
            is_mid_line: false,
            reported: lost,
        };
        thread::Builder::new().name("log".into()).spawn(|| drain.run())?;
        Ok(Self { format, level, queue, counters })
    }

    /// Lines lost since the start, to a full queue or a writer that failed.
    #[must_use]
    pub fn lines_dropped(&self) -> u64 {
        self.counters.lines_dropped.load(Ordering::Relaxed)
    }

    /// Writes every line out before another program takes over, and returns the number of lines
    /// lost so far. Those that are not accepted in a moment are lost.
    #[must_use]
    pub fn finish(&self) -> u64 {
        self.flush_within(FINISH_TIMEOUT);
        self.lines_dropped() + self.counters.lines_queued.load(Ordering::Relaxed)
    }

    /// Waits up to `timeout` until every line logged before has left the queue; returns
    /// whether it has.
    pub fn flush_within(&self, timeout: Duration) -> bool {
        let (done, flushed) = mpsc::sync_channel(1);
        self.queue.send(Entry::Flush(done)).is_ok() && flushed.recv_timeout(timeout).is_ok()
    }
}

impl log::Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let is_ours = |rest: &str| rest.is_empty() || rest.starts_with("::");
        metadata.level() <= self.level
            && metadata.target().strip_prefix(TARGET).is_some_and(is_ours)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // Before the line is rendered, which costs most of it.
        let room = room(record.level());
        if self.counters.queued_bytes.load(Ordering::Relaxed) >= room {
            self.counters.lines_dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let line = line::render(self.format, wall_time(), record);
        let cost = cost(&line);
        let queued = self.counters.queued_bytes.fetch_add(cost, Ordering::Relaxed) + cost;
        self.counters.lines_queued.fetch_add(1, Ordering::Relaxed);
        if queued > room || self.queue.send(Entry::Line(line)).is_err() {
            self.counters.lines_queued.fetch_sub(1, Ordering::Relaxed);
            self.counters.queued_bytes.fetch_sub(cost, Ordering::Relaxed);
            self.counters.lines_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {
        self.flush_within(FLUSH_TIMEOUT);
    }
}

/// The part of the queue that lines of a level may fill. Peers can cause any number of lines at
/// debug; those that an operator needs, from info on, have the other half to themselves.
fn room(level: Level) -> usize {
    if level > Level::Info { QUEUE_BYTES / 2 } else { QUEUE_BYTES }
}

/// The memory that a queued line takes.
fn cost(line: &String) -> usize {
    size_of::<Entry>() + line.capacity()
}

/// The writer's end of the queue, on its thread.
struct Drain<W> {
    entries: Receiver<Entry>,
    counters: Arc<Counters>,
    format: LogFormat,
    writer: W,
    /// The bytes to write next.
    batch: Vec<u8>,
    /// The writer has accepted a part of the line whose rest `batch` starts with.
    is_mid_line: bool,
    /// The number of lost lines that `log_lines_dropped` has reported.
    reported: u64,
}

impl<W: Write> Drain<W> {
    fn run(mut self) {
        while let Some(first) = self.next() {
            let (mut flush, mut lines) = (None, 0);
            for entry in iter::once(first).chain(self.entries.try_iter()) {
                match entry {
                    Entry::Line(line) => {
                        self.counters.queued_bytes.fetch_sub(cost(&line), Ordering::Relaxed);
                        self.batch.extend_from_slice(line.as_bytes());
                        lines += 1;
                    }
                    Entry::Flush(done) => flush = Some(done),
                }
                if flush.is_some() || self.batch.len() >= BATCH_BYTES {
                    break;
                }
            }
            self.write_batch();
            self.counters.lines_queued.fetch_sub(lines, Ordering::Relaxed);
            if let Some(done) = flush {
                // The receiver may have timed out.
                let _ = done.try_send(());
            }
        }
    }

    /// The next entry. If the queue was empty, waits [`GATHER`] for more to follow.
    fn next(&self) -> Option<Entry> {
        self.entries.try_recv().ok().or_else(|| {
            let first = self.entries.recv().ok()?;
            // Nothing is behind a flush that something would not wait for.
            if matches!(first, Entry::Flush(_)) {
                return Some(first);
            }
            #[expect(clippy::disallowed_methods, reason = "no thread waits for this one")]
            thread::sleep(GATHER);
            Some(first)
        })
    }

    /// Writes the batch and, after it, the number of lost lines. Lines that the writer
    /// refuses are lost; the rest of a line that it accepted in part is kept for the next
    /// batch, so that no line follows an incomplete one.
    fn write_batch(&mut self) {
        let dropped = self.counters.lines_dropped.load(Ordering::Relaxed);
        let lines = self.batch.len();
        if dropped > self.reported {
            let notice = dropped_notice(self.format, dropped - self.reported);
            self.batch.extend_from_slice(notice.as_bytes());
        }

        let written = write_most(&mut self.writer, &self.batch);
        if let Some(&last) = self.batch[..written].last() {
            self.is_mid_line = last != b'\n';
        }
        let mut begun = written;
        if self.is_mid_line {
            begun += self.batch[written..].iter().take_while(|&&byte| byte != b'\n').count() + 1;
        }
        if begun > lines {
            self.reported = dropped;
        }
        let refused = &self.batch[begun.min(lines)..lines];
        let refused = refused.iter().filter(|&&byte| byte == b'\n').count();
        self.counters.lines_dropped.fetch_add(refused as u64, Ordering::Relaxed);

        self.batch.truncate(begun);
        self.batch.drain(..written);
    }
}

/// Writes until everything is written or the writer fails; returns the number of bytes
/// accepted. A full non-blocking stderr counts as a failure: retrying would be a busy loop.
fn write_most(writer: &mut impl Write, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match writer.write(&bytes[written..]) {
            Ok(taken) if taken > 0 => written += taken,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    written
}

/// The line that reports `lost` lines; written at every level.
fn dropped_notice(format: LogFormat, lost: u64) -> String {
    let lost = ("lost", lost);
    let record = Record::builder()
        .level(Level::Warn)
        .target(TARGET)
        .args(format_args!("log_lines_dropped"))
        .key_values(&lost)
        .build();
    line::render(format, wall_time(), &record)
}
