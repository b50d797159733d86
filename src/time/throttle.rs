//! Throttle: admits at most one warning of a kind per [`WARN_INTERVAL`].
//!
//! Owns when the next one is due and how many were suppressed since the last. Must not know
//! the warnings' content or a log.

use std::time::Duration;

use super::Instant;

/// The shortest time between two warnings of one kind.
pub const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// One kind of warning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttle {
    /// When the next one is due.
    due: Instant,
    left_out: u64,
}

impl Throttle {
    /// Counts one occurrence. `Some`: log a warning, with the number suppressed since the
    /// last one; `None`: this one is suppressed.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if now < self.due {
            self.left_out += 1;
            return None;
        }
        self.due = now + WARN_INTERVAL;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_a_minute_is_admitted_with_the_count_of_suppressed_ones() {
        let at = |seconds| Instant::START + Duration::from_secs(seconds);
        let mut throttle = Throttle::default();
        assert_eq!(throttle.admit(at(5)), Some(0), "the first");
        assert_eq!(throttle.admit(at(5)), None);
        assert_eq!(throttle.admit(at(64)), None);
        assert_eq!(throttle.admit(at(65)), Some(2));
        assert_eq!(throttle.admit(at(1000)), Some(0));
    }
}
