//! Cost model: the virtual time that each call, frame and byte takes, and what follows from it
//! for turns.
//!
//! Owns the time that a turn has taken so far, and since when each connection waits. While
//! it is off, a turn takes no time. Decides nothing.
//!
//! The costs are rounded up from those measured on a machine with two slow cores, and those of
//! frames are the dearest ones: a bad envelope is dropped with a look at its JSON.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use pyrycode_relay::relay::{ConnId, Effect, Input};

/// A turn may take this long: the shares of accepting, of each queue of connections, of
/// expiries and of effects before and after them, each with the step that exceeds it.
pub(crate) const TURN_MAX: Duration = Duration::from_millis(20);

const CALL: Duration = Duration::from_nanos(500);
const ACCEPT: Duration = Duration::from_micros(20);
const READ: Duration = Duration::from_micros(3);
const WRITE: Duration = Duration::from_micros(8);
const DISCONNECT: Duration = Duration::from_micros(10);
/// A call for timers, and each that fires, if there are more than it should handle.
const TIMERS: Duration = Duration::from_millis(1);
const TIMER: Duration = Duration::from_micros(4);
/// A request with its answer and its log line, where nothing of it is in the cache.
const REQUEST: Duration = Duration::from_micros(100);
const FRAME: Duration = Duration::from_nanos(1_150);
const BYTE: Duration = Duration::from_nanos(2);

/// The time of the turn under way, and who waits.
#[derive(Default)]
pub(crate) struct Cost {
    pub(crate) is_on: bool,
    /// The machine is this many times as fast.
    pub(crate) speed: u32,
    spent: Duration,
    /// The time that all turns before took.
    before: Duration,
    /// What each connection has sent and the relay has not handled.
    unhandled: HashMap<u64, Unhandled>,
    /// Since when, by `before`, each connection waits to be served.
    waiting: HashMap<u64, Duration>,
    /// The longest turn, and the longest time of turns that a connection waited.
    pub(crate) longest: Duration,
    pub(crate) waited: Duration,
}

impl Cost {
    /// The time that the turn has taken.
    pub(crate) fn spent(&self) -> Duration {
        self.spent
    }

    fn spend(&mut self, time: Duration) {
        if self.is_on {
            self.spent += time / self.speed.max(1);
        }
    }

    pub(crate) fn on_accept(&mut self) {
        self.spend(ACCEPT);
    }

    pub(crate) fn on_read(&mut self, id: ConnId) {
        self.waiting.remove(&id.to_bits());
        self.spend(READ);
    }

    pub(crate) fn on_write(&mut self, bytes: usize) {
        self.spend(WRITE + BYTE * bytes as u32);
    }

    /// A connection has input, which its event or an effect says.
    pub(crate) fn on_ready(&mut self, id: ConnId) {
        if self.is_on {
            self.waiting.entry(id.to_bits()).or_insert(self.before);
        }
    }

    pub(crate) fn on_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Continue(id) => self.on_ready(id),
            Effect::Disconnect(id) => {
                self.unhandled.remove(&id.to_bits());
                self.waiting.remove(&id.to_bits());
                self.spend(DISCONNECT);
            }
            _ => {}
        }
    }

    /// The relay has handled an input, of which it left `kept` bytes of this connection over, and
    /// `timers` that were due.
    pub(crate) fn on_input(&mut self, input: Input<'_>, kept: usize, timers: u64) {
        if !self.is_on {
            return;
        }
        self.spend(CALL);
        match input {
            Input::Timeout => self.spend(TIMERS.max(TIMER * timers as u32)),
            Input::Bytes(id, bytes) => {
                self.unhandled.entry(id.to_bits()).or_default().bytes.extend(bytes);
                self.on_handled(id, kept);
            }
            Input::Continue(id) => {
                self.waiting.remove(&id.to_bits());
                self.on_handled(id, kept);
            }
            _ => {}
        }
    }

    /// Counts frames and bytes of what is handled.
    fn on_handled(&mut self, id: ConnId, kept: usize) {
        let Some(unhandled) = self.unhandled.get_mut(&id.to_bits()) else { return };
        let count = unhandled.bytes.len().saturating_sub(kept);
        let (requests, frames) = unhandled.take(count);
        self.spend(REQUEST * requests + FRAME * frames + BYTE * count as u32);
    }

    /// The turn is over; returns the time that it took.
    pub(crate) fn end_turn(&mut self) -> Duration {
        if !self.is_on {
            return Duration::ZERO;
        }
        let spent = std::mem::take(&mut self.spent);
        self.before += spent;
        self.longest = self.longest.max(spent);
        assert!(spent <= TURN_MAX, "a turn takes {spent:?}");
        let longest = self.waiting.values().map(|since| self.before - *since).max();
        self.waited = self.waited.max(longest.unwrap_or_default());
        spent
    }
}

/// A stream of frames, behind one request head.
#[derive(Default)]
struct Unhandled {
    bytes: VecDeque<u8>,
    /// The bytes left of a frame that is partly handled.
    within: usize,
    /// The header so far of the next frame.
    header: Vec<u8>,
}

impl Unhandled {
    /// Takes bytes out; returns how many requests ended and how many frames began in them.
    fn take(&mut self, mut count: usize) -> (u32, u32) {
        let (mut requests, mut frames) = (0, 0);
        while count > 0 {
            let skipped = count.min(self.within);
            self.bytes.drain(..skipped);
            (self.within, count) = (self.within - skipped, count - skipped);
            if count > 0 {
                self.header.extend(self.bytes.pop_front());
                count -= 1;
                if self.header.starts_with(b"G") {
                    // The head; no frame begins like that.
                    if self.header.ends_with(b"\r\n\r\n") {
                        self.header.clear();
                        requests += 1;
                    }
                } else if let Some(left) = self.left() {
                    self.header.clear();
                    self.within = left;
                    frames += 1;
                }
            }
        }
        (requests, frames)
    }

    /// The length of the rest of the frame, mask included, if the header says it.
    fn left(&self) -> Option<usize> {
        let (second, rest) = self.header.get(1..)?.split_first()?;
        let len = match second & 0x7f {
            126 => usize::from(u16::from_be_bytes(*rest.first_chunk()?)),
            127 => u64::from_be_bytes(*rest.first_chunk()?) as usize,
            len => usize::from(len),
        };
        Some(4 + len)
    }
}
