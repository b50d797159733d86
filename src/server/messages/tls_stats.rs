//! TLS statistics: plain counters, beside those of the core.
//!
//! Owns numbers only. Must not know a metrics format.

use std::time::Duration;

use crate::state::v1;

/// Everything counted since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Certificates read again or fetched while the loop runs, and taken into use.
    pub reloads: u64,
    /// Attempts to read again or fetch that failed: the previous certificate stayed in use.
    pub failed_reloads: u64,
    /// Connections that failed with a TLS error, in the handshake or after it.
    pub faults: u64,
    /// Streams that ended without close_notify.
    pub truncations: u64,
    /// When the validity of the certificate in use begins, since 1970.
    pub not_before: Option<Duration>,
    /// When the certificate in use expires, since 1970; `None`: no certificate yet.
    pub not_after: Option<Duration>,
}

impl Stats {
    /// What is counted, as plain values.
    #[must_use]
    pub fn save(&self) -> v1::TlsStats {
        let Self { reloads, failed_reloads, faults, truncations, .. } = *self;
        v1::TlsStats { reloads, failed_reloads, faults, truncations }
    }

    /// Continues with what [`Self::save`] returned.
    #[must_use]
    pub fn restore(saved: v1::TlsStats) -> Self {
        let v1::TlsStats { reloads, failed_reloads, faults, truncations } = saved;
        Self { reloads, failed_reloads, faults, truncations, ..Self::default() }
    }

    /// Whole days until the certificate in use expires, at `now` since 1970; negative
    /// once it has.
    #[must_use]
    pub fn days_left(&self, now: Duration) -> Option<i64> {
        self.not_after.map(|not_after| days_between(now, not_after))
    }
}

/// Whole days from `now` until `then`, rounded down.
fn days_between(now: Duration, then: Duration) -> i64 {
    const DAY: i64 = 24 * 60 * 60;
    (then.as_secs() as i64 - now.as_secs() as i64).div_euclid(DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_that_has_begun_does_not_count() {
        const DAY: u64 = 24 * 60 * 60;
        for (now, then, days) in [
            (0, 90 * DAY, 90),
            (1, 90 * DAY, 89),
            (DAY, DAY, 0),
            (DAY, DAY - 1, -1),
            (3 * DAY, DAY, -2),
        ] {
            let [now, then] = [now, then].map(Duration::from_secs);
            assert_eq!(days_between(now, then), days);
        }
    }
}
