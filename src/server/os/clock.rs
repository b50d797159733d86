//! Clock: the relay's time.
//!
//! Owns the mapping from `CLOCK_MONOTONIC` to the relay's own time line, which stands still
//! while the process is stopped: a relay that was stopped for 70 s could not have read a
//! pong, so those seconds must not count as a peer's silence.

use std::time::{Duration, Instant as Monotonic, SystemTime};

use crate::time::Instant;

/// If a turn of the loop takes longer than its sleep plus this, the process was stopped, not
/// busy.
const TURN_MAX: Duration = Duration::from_secs(1);

/// The clock of the event loop.
#[derive(Debug)]
pub struct Clock {
    now: Instant,
    read_at: Monotonic,
}

impl Clock {
    /// A clock at [`Instant::START`].
    #[must_use]
    pub fn start() -> Self {
        Self { now: Instant::START, read_at: monotonic() }
    }

    /// The time as of the last [`Self::turn`].
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Reads the time after a turn of the loop that asked to sleep for `asked` (`None`:
    /// without limit). Returns how long the process was stopped.
    pub fn turn(&mut self, asked: Option<Duration>) -> Duration {
        let read_at = monotonic();
        let passed = read_at.saturating_duration_since(self.read_at);
        self.read_at = read_at;
        let counted = asked.map_or(passed, |asked| passed.min(asked + TURN_MAX));
        self.now += counted;
        passed - counted
    }
}

/// The kernel's monotonic clock, for threads beside the loop.
pub(in crate::server) fn monotonic() -> Monotonic {
    #[expect(clippy::disallowed_methods, reason = "the one place where time enters")]
    Monotonic::now()
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
        passed(&mut clock, Duration::from_secs(70));
        let stopped = clock.turn(Some(Duration::from_secs(2)));
        assert!(stopped >= Duration::from_secs(67));
        assert_eq!(clock.now().since(Instant::START), Duration::from_secs(3));
    }

    #[test]
    fn sleep_counts() {
        let mut clock = Clock::start();
        passed(&mut clock, Duration::from_secs(70));
        assert_eq!(clock.turn(None), Duration::ZERO);
        assert!(clock.now().since(Instant::START) >= Duration::from_secs(70));
    }
}
