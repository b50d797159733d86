//! Instant: a point on the relay's own time line, in microseconds since its start.
//!
//! Owns the arithmetic between instants and durations. Must not know a clock: the shell makes
//! instants from `CLOCK_MONOTONIC`, tests make them up. It takes eight bytes where
//! `std::time::Instant` takes sixteen, because every connection stores several.

use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// Microseconds since the relay started; monotonic, never wall time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The start of the time line.
    pub const START: Self = Self(0);
    /// Later than any instant that can be reached (584,942 years).
    pub const NEVER: Self = Self(u64::MAX);

    /// The instant `micros` microseconds after the start.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the start.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`; zero if `earlier` lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// A duration in whole microseconds; every duration of the relay fits.
fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(micros(duration)))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(micros(duration)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_and_durations_add_up_to_the_microsecond() {
        let start = Instant::from_micros(7);
        for micros in [0, 1, 999, 1_000_001] {
            let duration = Duration::from_micros(micros);
            let later = start + duration;
            assert_eq!(later.as_micros(), 7 + micros);
            assert_eq!(later.since(start), duration);
            assert_eq!(later - duration, start);
            let mut moved = start;
            moved += duration;
            assert_eq!(moved, later);
        }
        // Fractions of a microsecond are dropped.
        assert_eq!(start + Duration::from_nanos(1_999), Instant::from_micros(8));
    }

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        // 2^60 s are a multiple of 2^64 µs: truncated to 64 bits they would be zero.
        for long in [Duration::MAX, Duration::from_secs(1 << 60)] {
            assert_eq!(Instant::from_micros(1) + long, Instant::NEVER);
            assert_eq!(Instant::from_micros(1) - long, Instant::START);
        }
        assert_eq!(Instant::NEVER + Duration::from_micros(1), Instant::NEVER);
        assert_eq!(Instant::START - Duration::from_micros(1), Instant::START);
        assert_eq!(Instant::START.since(Instant::NEVER), Duration::ZERO);
    }
}
