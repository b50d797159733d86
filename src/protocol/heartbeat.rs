//! Heartbeat: when to ping, which pong counts, and when a peer is dead (RFC 6455 §5.5.2,
//! §5.5.3).
//!
//! Owns the sequence of pings of one open connection. Must not know sockets, the clock or
//! frames: the caller sends the pings it asks for and reports the pongs that arrive.
//!
//! 1. Pings are due at a fixed cadence that lateness does not shift.
//! 2. A pong counts only if it carries a sequence number that was sent and is
//!    newer than the last acknowledged; it acknowledges all earlier ones too.
//! 3. The pong timeout runs from when the oldest unanswered ping was *due*, plus the time in
//!    which the relay itself did not read (`credit`).
//! 4. A peer is declared dead only in [`Heartbeat::handle_timeout`], which the caller calls
//!    after everything that has arrived was handed in.

use std::time::Duration;

use crate::config::Timeouts;
use crate::state::{Unfit, v1};
use crate::time::Instant;

/// A ping that is late by more than this part of the pong timeout (1 s of 30 s) was delayed
/// by the relay itself (a stopped process): the cadence restarts from now, so that the peer
/// gets its full time to answer.
const HELD_UP_PART: u32 = 30;

/// What the heartbeat asks of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeartbeatAction {
    /// Send the ping with this sequence number.
    Ping(u32),
    /// The peer is dead.
    Dead,
}

/// Result of a matching pong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PongResult {
    /// Time from the newest ping to this pong, if this pong answers that ping.
    pub round_trip: Option<Duration>,
    /// A probe was outstanding, and this pong, which may be of a later ping, acknowledges it.
    pub answers_probe: bool,
}

/// The heartbeat of one open connection.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    /// When the next ordinary ping is due.
    next_due: Instant,
    /// When the newest ping, ordinary or probe, was requested: the lower 32 bits in
    /// microseconds. They wrap after 71 minutes, longer than any round trip.
    sent_at: u32,
    /// The last round-trip time in microseconds; 0 if none was measured.
    round_trip: u32,
    /// Sequence number of the newest ping; the first is 1.
    sent: u32,
    /// Highest sequence number acknowledged.
    acknowledged: u32,
    /// Sequence number of the unanswered probe; 0 without one.
    probe: u32,
    /// Milliseconds in which the relay did not read while a pong was awaited.
    credit: u32,
}

impl Heartbeat {
    /// A heartbeat whose first ping is due at `first_due`, which the caller spreads over one
    /// interval so that peers that connected together are not pinged together.
    #[must_use]
    pub fn new(first_due: Instant) -> Self {
        Self {
            next_due: first_due,
            sent_at: 0,
            round_trip: 0,
            sent: 0,
            acknowledged: 0,
            probe: 0,
            credit: 0,
        }
    }

    /// The payload of ping `sequence` on a connection whose random key is `key`:
    /// unpredictable, so that only a peer that has read the ping can answer it.
    #[must_use]
    pub fn payload(key: u64, sequence: u32) -> [u8; 8] {
        (key ^ u64::from(sequence)).to_be_bytes()
    }

    /// The sequence number in a pong's payload, if the payload decodes to one.
    #[must_use]
    pub fn sequence(key: u64, payload: &[u8]) -> Option<u32> {
        let payload = <[u8; 8]>::try_from(payload).ok()?;
        u32::try_from(u64::from_be_bytes(payload) ^ key).ok()
    }

    /// When [`Self::handle_timeout`] has to be called next. A connection that the relay does
    /// not read (`reading` false) is pinged but not timed out.
    #[must_use]
    pub fn deadline(&self, reading: bool, timeouts: &Timeouts) -> Instant {
        match self.verdict_at(timeouts) {
            Some(verdict) if reading => verdict.min(self.next_due),
            _ => self.next_due,
        }
    }

    /// What is due at `now`, one action per call; death takes precedence over a ping.
    pub fn handle_timeout(
        &mut self,
        now: Instant,
        reading: bool,
        timeouts: &Timeouts,
    ) -> Option<HeartbeatAction> {
        if reading && self.verdict_at(timeouts).is_some_and(|verdict| now >= verdict) {
            return Some(HeartbeatAction::Dead);
        }
        if now < self.next_due {
            return None;
        }
        if now.since(self.next_due) > timeouts.pong / HELD_UP_PART {
            self.next_due = now;
        }
        self.next_due += timeouts.ping_interval;
        Some(HeartbeatAction::Ping(self.next_sequence(now)))
    }

    /// An extra ping now, to learn early whether the peer is alive. At most one probe is
    /// outstanding: while it is unanswered, its number is returned again.
    pub fn probe(&mut self, now: Instant) -> u32 {
        if self.probe == 0 {
            self.probe = self.next_sequence(now);
        }
        self.probe
    }

    /// A pong with this sequence number has arrived. `None`: it matches no unanswered ping.
    pub fn on_pong(&mut self, sequence: u32, now: Instant) -> Option<PongResult> {
        if sequence <= self.acknowledged || sequence > self.sent {
            return None;
        }
        self.acknowledged = sequence;
        let answers_probe = self.probe != 0 && self.probe <= sequence;
        if answers_probe {
            self.probe = 0;
        }
        if sequence == self.sent {
            self.credit = 0;
        }
        let round_trip = (sequence == self.sent).then(|| {
            let micros = lower_micros(now).wrapping_sub(self.sent_at);
            self.round_trip = micros.max(1);
            Duration::from_micros(micros.into())
        });
        Some(PongResult { round_trip, answers_probe })
    }

    /// The last round-trip time that was measured.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        (self.round_trip > 0).then(|| Duration::from_micros(self.round_trip.into()))
    }

    /// The relay did not read this connection from `since` until `now`.
    pub fn on_unread(&mut self, since: Instant, now: Instant, timeouts: &Timeouts) {
        let Some(due) = self.oldest_due(timeouts) else { return };
        // On a grid of milliseconds, so that pauses shorter than one add up.
        let on_grid = |instant: Instant| instant.as_micros() / 1000;
        let unread = on_grid(now).saturating_sub(on_grid(since.max(due)));
        self.credit = self.credit.saturating_add(u32::try_from(unread).unwrap_or(u32::MAX));
    }

    /// As plain values.
    #[must_use]
    pub fn save(&self) -> v1::Heartbeat {
        let Self { next_due, sent_at, round_trip, sent, acknowledged, probe, credit } = *self;
        let next_due = next_due.as_micros();
        v1::Heartbeat { next_due, sent_at, round_trip, sent, acknowledged, probe, credit }
    }

    /// The heartbeat of which [`Self::save`] returned `saved`.
    ///
    /// # Errors
    /// If a ping is acknowledged that was not sent.
    pub fn restore(saved: &v1::Heartbeat) -> Result<Self, Unfit> {
        let v1::Heartbeat { next_due, sent_at, round_trip, sent, acknowledged, probe, credit } =
            *saved;
        // A probe is one of the pings that were sent.
        if acknowledged > sent || probe > sent {
            return Err(Unfit("heartbeat"));
        }
        let next_due = Instant::from_micros(next_due);
        Ok(Self { next_due, sent_at, round_trip, sent, acknowledged, probe, credit })
    }

    fn next_sequence(&mut self, now: Instant) -> u32 {
        self.sent += 1;
        self.sent_at = lower_micros(now);
        self.sent
    }

    /// When the oldest unanswered ordinary ping was due. No list is needed: the unanswered
    /// pings are the last ones of the cadence before `next_due`.
    fn oldest_due(&self, timeouts: &Timeouts) -> Option<Instant> {
        let probes = u32::from(self.probe > self.acknowledged);
        let unanswered = self.sent - self.acknowledged - probes;
        (unanswered > 0).then(|| self.next_due - timeouts.ping_interval * unanswered)
    }

    /// When the peer counts as dead unless it answers before.
    fn verdict_at(&self, timeouts: &Timeouts) -> Option<Instant> {
        let credit = Duration::from_millis(self.credit.into());
        self.oldest_due(timeouts).map(|due| due + timeouts.pong + credit)
    }
}

fn lower_micros(instant: Instant) -> u32 {
    instant.as_micros() as u32
}

#[cfg(test)]
mod tests;
