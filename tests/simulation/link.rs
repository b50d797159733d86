//! Link: one direction of a TCP connection.
//!
//! Owns the bytes between their sending at one end and their reading at the other. Knows
//! neither end.
//!
//! 1. Bytes arrive in order, however latency and stalls change.
//! 2. Without latency and stall they arrive at once.

use std::collections::VecDeque;
use std::time::Duration;

use pyrycode_relay::time::Instant;

/// How a direction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Fin,
    /// Broken: nothing goes in or out.
    Reset,
}

#[derive(Debug)]
enum Cargo {
    Bytes(VecDeque<u8>),
    End(End),
}

#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) latency: Duration,
    /// Nothing arrives before this time; [`Instant::NEVER`]: half-open.
    stalled_until: Instant,
    flight: VecDeque<(Instant, Cargo)>,
    flight_len: usize,
    /// In the kernel of the end that reads.
    pub(crate) arrived: VecDeque<u8>,
    /// What stands behind `arrived`; the first one counts.
    pub(crate) end: Option<End>,
}

impl Pipe {
    pub(crate) fn new() -> Self {
        Self {
            latency: Duration::ZERO,
            stalled_until: Instant::START,
            flight: VecDeque::new(),
            flight_len: 0,
            arrived: VecDeque::new(),
            end: None,
        }
    }

    /// Bytes that were sent and are not read.
    pub(crate) fn len(&self) -> usize {
        self.flight_len + self.arrived.len()
    }

    /// Whether all bytes come out at once.
    pub(crate) fn is_short(&self) -> bool {
        self.latency.is_zero() && self.flight.is_empty() && self.stalled_until == Instant::START
    }

    /// Takes `bytes`. Returns when to call [`Self::arrive`].
    pub(crate) fn send(&mut self, bytes: VecDeque<u8>, now: Instant) -> Option<Instant> {
        self.flight_len += bytes.len();
        self.push(Cargo::Bytes(bytes), now)
    }

    /// Takes the end. Returns when to call [`Self::arrive`].
    pub(crate) fn end(&mut self, end: End, now: Instant) -> Option<Instant> {
        self.push(Cargo::End(end), now)
    }

    fn push(&mut self, cargo: Cargo, now: Instant) -> Option<Instant> {
        let last = self.flight.back().map_or(now, |(at, _)| *at);
        self.flight.push_back((last.max(now + self.latency), cargo));
        self.arrive(now)
    }

    /// What is due arrives. Returns when the next is.
    pub(crate) fn arrive(&mut self, now: Instant) -> Option<Instant> {
        while let Some((at, _)) = self.flight.front() {
            let due = self.stalled_until.max(*at);
            if due > now {
                return Some(due).filter(|due| *due < Instant::NEVER);
            }
            match self.flight.pop_front() {
                Some((_, Cargo::Bytes(bytes))) => {
                    self.flight_len -= bytes.len();
                    if self.arrived.is_empty() {
                        self.arrived = bytes;
                    } else {
                        self.arrived.extend(bytes);
                    }
                }
                Some((_, Cargo::End(end))) => {
                    self.end.get_or_insert(end);
                }
                None => {}
            }
        }
        None
    }

    /// Nothing comes out before `until`. Returns when to call [`Self::arrive`].
    pub(crate) fn stall(&mut self, until: Instant, now: Instant) -> Option<Instant> {
        self.stalled_until = until;
        self.arrive(now)
    }

    /// Ends a stall, unless the link is half-open for ever.
    pub(crate) fn heal(&mut self, now: Instant) -> Option<Instant> {
        if self.stalled_until < Instant::NEVER {
            self.stalled_until = Instant::START;
        }
        self.latency = Duration::ZERO;
        self.arrive(now)
    }
}
