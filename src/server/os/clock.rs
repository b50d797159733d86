//! Clock: the relay's time.
//!
//! Owns the mapping from `CLOCK_MONOTONIC` to the relay's own time line, which stands still
//! while the process is stopped: a relay that was stopped for 70 s could not have read a
//! pong, so those seconds must not count as a peer's silence.

use std::time::{Duration, Instant as Monotonic, SystemTime};

use crate::time::Instant;

/// If more than this passes between two readings beyond the sleep in between, the process was
/// stopped. The loop reads the clock after every step of its work, of which the longest takes
/// some milliseconds.
const STEP_MAX: Duration = Duration::from_secs(1);

/// The clock of the event loop.
#[derive(Debug)]
pub struct Clock {
    now: Instant,
    /// When it was exactly `now`.
    read_at: Monotonic,
    stopped: Duration,
}

impl Clock {
    /// A clock at [`Instant::START`].
    #[must_use]
    pub fn start() -> Self {
        Self { now: Instant::START, read_at: monotonic(), stopped: Duration::ZERO }
    }

    /// A clock that continues at `now`: the time until this call does not count.
    #[must_use]
    pub fn resume(now: Instant) -> Self {
        Self { now, ..Self::start() }
    }

    /// The time as of the last reading.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Reads the time after work, which counts in full.
    pub fn read(&mut self) -> Instant {
        self.read_after(Some(Duration::ZERO))
    }

    /// Reads the time after a sleep of at most `asked` (`None`: without limit).
    pub fn read_after(&mut self, asked: Option<Duration>) -> Instant {
        self.advance(monotonic(), asked)
    }

    fn advance(&mut self, read_at: Monotonic, asked: Option<Duration>) -> Instant {
        let before = self.now;
        let passed = read_at.saturating_duration_since(self.read_at);
        let counted = asked.map_or(passed, |asked| passed.min(asked + STEP_MAX));
        self.now += counted;
        // The next reading counts the fraction of a microsecond. A busy loop reads the clock
        // every few microseconds, and lost a second of each minute without it.
        self.read_at = read_at - (counted - self.now.since(before));
        self.stopped += passed - counted;
        self.now
    }

    /// How long the process was stopped since the last call, as far as it did not count.
    pub fn take_stopped(&mut self) -> Duration {
        std::mem::take(&mut self.stopped)
    }
}

/// The kernel's monotonic clock, for threads beside the loop.
pub(in crate::server) fn monotonic() -> Monotonic {
    #[expect(clippy::disallowed_methods, reason = "the one place where time enters")]
    Monotonic::now()
}

/// The kernel's monotonic clock in microseconds, which all processes share.
pub(in crate::server) fn system_micros() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(now).map_or(0, |it| it.as_micros() as u64)
}

/// Wall time as the duration since 1970 without leap seconds; zero if the clock is set
/// before 1970.
#[expect(clippy::disallowed_methods, reason = "for log lines and signed requests, not to wait by")]
pub(in crate::server) fn wall_time() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(clock: &mut Clock, time: Duration) {
        clock.read_at -= time;
    }

    #[test]
    fn a_stop_does_not_count() {
        let mut clock = Clock::start();
        for asked in [Duration::from_secs(2), Duration::ZERO] {
            let before = clock.now();
            passed(&mut clock, Duration::from_secs(70));
            let now = clock.read_after(Some(asked));
            assert_eq!(now.since(before), asked + STEP_MAX);
            assert!(clock.take_stopped() >= Duration::from_secs(67));
            assert_eq!(clock.take_stopped(), Duration::ZERO);
        }
    }

    #[test]
    fn sleep_counts() {
        let mut clock = Clock::start();
        passed(&mut clock, Duration::from_secs(70));
        assert!(clock.read_after(None).since(Instant::START) >= Duration::from_secs(70));
        assert_eq!(clock.take_stopped(), Duration::ZERO);
    }

    #[test]
    fn fractions_of_a_microsecond_add_up() {
        let mut clock = Clock::start();
        let start = clock.read_at;
        let mut passed = Duration::ZERO;
        for nanos in (300..3_300).step_by(3) {
            passed += Duration::from_nanos(nanos);
            let now = clock.advance(start + passed, Some(Duration::ZERO));
            assert_eq!(now.since(Instant::START).as_micros(), passed.as_micros());
        }
        assert_eq!(clock.take_stopped(), Duration::ZERO);
    }

    #[test]
    fn work_counts_in_full() {
        let mut clock = Clock::start();
        for _ in 0..10 {
            passed(&mut clock, STEP_MAX - Duration::from_millis(100));
            clock.read();
        }
        assert!(clock.now().since(Instant::START) >= Duration::from_secs(9));
        assert_eq!(clock.take_stopped(), Duration::ZERO);
    }
}
