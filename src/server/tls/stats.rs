//! Plain counters of what TLS did, beside those of the core.
//!
//! Owns numbers only; knows no metrics format.

use std::time::SystemTime;

/// Everything counted since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Certificates taken into use after the first, fetched or read.
    pub reloads: u64,
    /// Certificates that were to be, and could not: the old one stayed in use.
    pub failed_reloads: u64,
    /// Handshakes that ended in an alert, or sessions that did after theirs.
    pub faults: u64,
    /// Streams that ended without close_notify.
    pub truncations: u64,
    /// When the certificate in use expires; `None`: there is none.
    pub not_after: Option<SystemTime>,
}

impl Stats {
    /// Whole days until the certificate in use expires, at `now`; negative once it has.
    #[must_use]
    pub fn days_left(&self, now: SystemTime) -> Option<i64> {
        self.not_after.map(|not_after| days_between(now, not_after))
    }
}

/// Whole days from `now` until `then`, rounded down.
pub(super) fn days_between(now: SystemTime, then: SystemTime) -> i64 {
    const DAY: u64 = 24 * 60 * 60;
    match then.duration_since(now) {
        Ok(left) => (left.as_secs() / DAY) as i64,
        Err(over) => -(over.duration().as_secs().div_ceil(DAY) as i64),
    }
}
