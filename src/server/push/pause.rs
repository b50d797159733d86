//! Pause: the time during which FCM has asked not to be called.
//!
//! Owns its end. Must not know the network, nor what happens to wakes meanwhile.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest pause that is observed: a day. A longer request is taken for a mistake.
const PAUSE_MAX: Duration = Duration::from_secs(24 * 3600);

/// The current pause, if there is one.
#[derive(Default)]
pub(super) struct Pause(Mutex<Option<Instant>>);

impl Pause {
    /// Pauses calls for `wait`; an earlier pause that ends later stands.
    pub(super) fn extend(&self, now: Instant, wait: Duration) {
        let mut end = self.lock();
        *end = (*end).max(Some(now + wait.min(PAUSE_MAX)));
    }

    /// The rest of the pause; `None`: calls may be made.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        let left = self.lock().map(|end| end.saturating_duration_since(now));
        left.filter(|left| !left.is_zero())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_request_stands() {
        #[expect(clippy::disallowed_methods, reason = "an instant to count from")]
        let began = Instant::now();
        let second = Duration::from_secs(1);
        let pause = Pause::default();
        assert_eq!(pause.left(began), None);
        pause.extend(began, 60 * second);
        pause.extend(began + second, 5 * second);
        assert_eq!(pause.left(began + 59 * second), Some(second));
        assert_eq!(pause.left(began + 60 * second), None);
        pause.extend(began + 60 * second, Duration::ZERO);
        assert_eq!(pause.left(began + 60 * second), None);
        pause.extend(began, Duration::MAX);
        assert_eq!(pause.left(began), Some(PAUSE_MAX));
    }
}
