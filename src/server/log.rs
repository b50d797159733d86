//! Log: the sink behind the `log` facade, one line per event on stderr.
//!
//! Owns the queue between the logging threads and the one thread that writes. Must not know
//! what is logged; `line` owns the format of a line.
//!
//! Lines are rendered into one buffer, which the writing thread exchanges for its own: a line
//! costs no allocation, and the memory of the last one is still in the cache.
//!
//! 1. Logging never waits for the writer: a line that finds the queue full is lost and counted.
//!    The buffer is locked while a line is rendered or the buffers are exchanged, and no longer.
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
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use log::{Level, LevelFilter, Metadata, Record};

use crate::config::{Config, LogFormat};
use crate::server::os::clock::wall_time;

pub use line::{KEYS, VALUE_MAX};

/// The bytes of lines that may be queued or on their way to the writer, in at most twice as
/// much memory. A usual line has 200, so 5,000 of them fit; a line with the longest values that
/// peers can cause has 1 KiB.
pub const QUEUE_BYTES: usize = 1024 * 1024;

/// A batch of this size is written without waiting for more lines.
const BATCH_BYTES: usize = 64 * 1024;

/// The capacity that an empty buffer keeps.
const KEPT_BYTES: usize = 16 * 1024;

/// How long a first line waits for others. Waking the thread costs the event loop more than
/// a line does: in a burst of upgrades a third of all CPU time.
const GATHER: Duration = Duration::from_millis(10);

/// The time limit of [`log::Log::flush`].
pub const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// The crate whose records are written.
const TARGET: &str = "pyrycode_relay";

// Lines at debug fill half of the queue, and have to wake the writer before that.
const _: () = assert!(QUEUE_BYTES / 2 >= 2 * BATCH_BYTES);

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
    signals: Sender<Signal>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Lines lost since the start.
    lines_dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    /// Whole lines.
    lines: String,
    /// Bytes that were taken out and are not written yet.
    taken: usize,
    /// The number of lines that are queued or not written yet.
    count: u64,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
enum Signal {
    /// There are lines where there were none, or a batch of them.
    Lines,
    /// Answered when every line before it has been written or lost.
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
        // Nothing is sent but flushes, and at most two signals for each exchange of buffers.
        let (signals, received) = mpsc::channel();
        let shared = Shared { lines_dropped: AtomicU64::new(lost), ..Shared::default() };
        let shared = Arc::new(shared);
        let drain = Drain {
            signals: received,
            shared: Arc::clone(&shared),
            format,
            writer,
            spare: String::new(),
            batch: Vec::new(),
            is_mid_line: false,
            reported: lost,
        };
        thread::Builder::new().name("log".into()).spawn(|| drain.run())?;
        Ok(Self { format, level, signals, shared })
    }

    /// Lines lost since the start, to a full queue or a writer that failed.
    #[must_use]
    pub fn lines_dropped(&self) -> u64 {
        self.shared.lines_dropped.load(Ordering::Relaxed)
    }

    /// Writes every line out before another program takes over, and returns the number of lines
    /// lost so far. Those that are not accepted in a moment are lost.
    #[must_use]
    pub fn finish(&self) -> u64 {
        self.flush_within(FINISH_TIMEOUT);
        let queued = self.shared.queue().count;
        self.lines_dropped() + queued
    }

    /// Waits up to `timeout` until every line logged before has left the queue; returns
    /// whether it has.
    pub fn flush_within(&self, timeout: Duration) -> bool {
        let (done, flushed) = mpsc::sync_channel(1);
        self.signals.send(Signal::Flush(done)).is_ok() && flushed.recv_timeout(timeout).is_ok()
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
        let mut queue = self.shared.queue();
        let before = queue.lines.len();
        // A line that has no room is rendered only if it might have some.
        let room = room(record.level()).saturating_sub(queue.taken);
        if before < room {
            line::render(self.format, wall_time(), record, &mut queue.lines);
        }
        let after = queue.lines.len();
        if before >= room || after > room {
            queue.lines.truncate(before);
            self.shared.lines_dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.count += 1;
        drop(queue);
        if before == 0 || before < BATCH_BYTES && after >= BATCH_BYTES {
            // The thread ends after the last sink only.
            let _ = self.signals.send(Signal::Lines);
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

/// The writer's end of the queue, on its thread.
struct Drain<W> {
    signals: Receiver<Signal>,
    shared: Arc<Shared>,
    format: LogFormat,
    writer: W,
    /// The buffer to exchange, empty.
    spare: String,
    /// The bytes to write next.
    batch: Vec<u8>,
    /// The writer has accepted a part of the line whose rest `batch` starts with.
    is_mid_line: bool,
    /// The number of lost lines that `log_lines_dropped` has reported.
    reported: u64,
}

impl<W: Write> Drain<W> {
    fn run(mut self) {
        while let Ok(signal) = self.signals.recv() {
            let signal = match signal {
                // Other lines will follow the first one.
                Signal::Lines => self.signals.recv_timeout(GATHER).unwrap_or(Signal::Lines),
                flush @ Signal::Flush(_) => flush,
            };
            let count = self.take();
            self.write_batch();
            let mut queue = self.shared.queue();
            queue.taken = 0;
            queue.count -= count;
            drop(queue);
            if let Signal::Flush(done) = signal {
                // The receiver may have timed out.
                let _ = done.try_send(());
            }
        }
    }

    /// Takes all lines over into the batch; returns their number.
    fn take(&mut self) -> u64 {
        let mut queue = self.shared.queue();
        mem::swap(&mut queue.lines, &mut self.spare);
        queue.taken = self.spare.len();
        let count = queue.count;
        drop(queue);
        self.batch.extend_from_slice(self.spare.as_bytes());
        self.spare.clear();
        self.spare.shrink_to(KEPT_BYTES);
        count
    }

    /// Writes the batch and, after it, the number of lost lines. Lines that the writer
    /// refuses are lost; the rest of a line that it accepted in part is kept for the next
    /// batch, so that no line follows an incomplete one.
    fn write_batch(&mut self) {
        let dropped = self.shared.lines_dropped.load(Ordering::Relaxed);
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
        self.shared.lines_dropped.fetch_add(refused as u64, Ordering::Relaxed);

        self.batch.truncate(begun);
        self.batch.drain(..written);
        self.batch.shrink_to(KEPT_BYTES);
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
    let mut line = String::new();
    line::render(format, wall_time(), &record, &mut line);
    line
}
