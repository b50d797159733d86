//! Stats: counters of what the relay did.
//!
//! Owns numbers, and closed lists of what is counted; must not know a metrics format or a
//! connection. No label carries text from a peer.

use std::time::Duration;

use super::admission::EarlyClose;
use super::counts::{Counts, closed_list};
use super::envelope::Dropped;
use crate::protocol::close::CloseCause;

/// Everything counted since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Pings sent, probes included.
    pub pings: u64,
    /// Pongs that acknowledged a ping.
    pub pongs: u64,
    /// Time from ping to pong.
    pub round_trips: Histogram,
    /// How late timers fired.
    pub loop_lag: Histogram,
    /// Frames forwarded to a binary.
    pub frames_to_binary: u64,
    /// Frames delivered to a phone.
    pub frames_to_phone: u64,
    /// Bytes of the frames forwarded to a binary.
    pub bytes_to_binary: u64,
    /// Bytes of the frames delivered to a phone.
    pub bytes_to_phone: u64,
    /// Close notices queued to binaries.
    pub close_notices: u64,
    /// Dropped envelopes.
    pub dropped: Counts<Dropped, { Dropped::ALL.len() }>,
    /// Closes of binaries and of phones.
    pub closes: [Counts<CloseCause, { CloseCause::ALL.len() }>; 2],
    /// Slots whose grace expired.
    pub grace_expiries: u64,
    /// Slots taken over from a binary that did not answer a probe.
    pub takeovers: u64,
    /// Connections closed for lack of a valid PROXY header.
    pub proxy_refusals: Counts<ProxyRefusal, { ProxyRefusal::ALL.len() }>,
    /// Connections closed without an answer before their upgrade.
    pub early_closes: Counts<EarlyClose, { EarlyClose::ALL.len() }>,
    /// Upgrade attempts on `/v1/server` and `/v1/client`.
    pub upgrades: [Counts<Outcome, { Outcome::ALL.len() }>; 2],
    /// Push wakes.
    pub wakes: Counts<WakeOutcome, { WakeOutcome::ALL.len() }>,
}

closed_list! {
    /// How an upgrade attempt ended.
    pub enum Outcome {
        /// An open WebSocket.
        Accept => "accept",
        /// A required header was missing or invalid.
        RejectHeaders => "reject_headers",
        /// The server-id is claimed.
        Reject409 => "reject_409",
        /// The server-id has no slot.
        Reject404 => "reject_404",
        /// Too many phones.
        Reject429 => "reject_429",
        /// Too many attempts.
        RejectRateLimit => "reject_rate_limit",
        /// A connection cap is reached.
        RejectCap => "reject_cap",
        /// No WebSocket handshake.
        RejectHandshake => "reject_handshake",
    }
}

closed_list! {
    /// Why a connection that has to send a PROXY header was closed.
    pub enum ProxyRefusal {
        /// The peer is not a trusted proxy.
        Untrusted => "untrusted",
        /// What it sent is not a PROXY header, or one that names no TCP client.
        Malformed => "malformed",
        /// It did not arrive in time.
        Late => "late",
    }
}

closed_list! {
    /// How a push wake ended.
    pub enum WakeOutcome {
        /// FCM accepted it.
        Sent => "sent",
        /// FCM no longer knows the device.
        Unregistered => "unregistered",
        /// FCM refused it, or could not be reached.
        SendFailed => "send_failed",
        /// No access token could be fetched.
        TokenFetchFailed => "token_fetch_failed",
        /// Push wake is off, the request is malformed, or a limit is reached.
        Dropped => "dropped",
    }
}

impl Stats {
    /// Counts a dropped envelope.
    pub fn on_dropped(&mut self, cause: Dropped) {
        self.dropped.add(cause);
        if cause.is_push_wake() {
            self.on_wake(WakeOutcome::Dropped);
        }
    }

    /// Counts a push wake.
    pub fn on_wake(&mut self, outcome: WakeOutcome) {
        self.wakes.add(outcome);
    }

    /// Counts a close.
    pub fn on_close(&mut self, is_phone: bool, cause: CloseCause) {
        self.closes[usize::from(is_phone)].add(cause);
    }

    /// Closes for `cause`, of binaries and of phones.
    #[must_use]
    pub fn closes_by(&self, cause: CloseCause) -> [u64; 2] {
        self.closes.each_ref().map(|closes| closes[cause])
    }

    /// Counts an upgrade attempt.
    pub fn on_upgrade(&mut self, is_phone: bool, outcome: Outcome) {
        self.upgrades[usize::from(is_phone)].add(outcome);
    }
}

mod state;

/// Durations in buckets that double, from 1 ms to 65 s.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Observations of at most 2^i ms; the last bucket counts the rest.
    pub buckets: [u64; 18],
    /// Sum of all observations.
    pub sum: Duration,
}

impl Histogram {
    /// Counts one observation.
    pub fn observe(&mut self, value: Duration) {
        let millis = value.as_micros().div_ceil(1000).max(1);
        let bucket = millis.next_power_of_two().trailing_zeros() as usize;
        self.buckets[bucket.min(self.buckets.len() - 1)] += 1;
        self.sum += value;
    }

    /// Upper bound and count of each bucket but the last.
    pub fn bounded(&self) -> impl Iterator<Item = (Duration, u64)> {
        let (_, bounded) = self.buckets.split_last().expect("there are 18");
        bounded.iter().enumerate().map(|(i, count)| (Duration::from_millis(1 << i), *count))
    }

    /// Number of observations.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_at_most_their_bound() {
        let mut histogram = Histogram::default();
        for (micros, bucket) in [(0, 0), (1000, 0), (1001, 1), (2000, 1), (2001, 2), (u64::MAX, 17)]
        {
            let before = histogram.buckets[bucket];
            histogram.observe(Duration::from_micros(micros));
            assert_eq!(histogram.buckets[bucket], before + 1, "{micros} µs");
        }
        assert_eq!(histogram.count(), 6);
    }

    #[test]
    fn a_close_is_counted_under_its_role_and_cause() {
        let mut stats = Stats::default();
        stats.on_close(true, CloseCause::Shutdown);
        assert_eq!(stats.closes_by(CloseCause::Shutdown), [0, 1]);
        assert_eq!(stats.closes.each_ref().map(Counts::total), [0, 1]);
    }
}
