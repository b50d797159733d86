//! When to ask for a certificate, and when again.
//!
//! Pure: times since 1970 and a random number are handed in.

use std::time::Duration;

/// After the authority could not be reached: it has had no work with us.
const UNREACHABLE_FIRST: Duration = Duration::from_secs(5);
/// After it has said no. Let's Encrypt locks a name out for an hour after five failed
/// validations; doubled each time, five take half an hour.
const REFUSED_FIRST: Duration = Duration::from_secs(60);
/// The longest between two attempts.
const RETRY_MAX: Duration = Duration::from_secs(6 * 60 * 60);

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// No answer, or none that means anything.
    Unreachable,
    /// A no; and the authority may have said when to come back.
    Refused(Option<Duration>),
}

/// When to renew a certificate of this validity: with a third of it left.
pub(super) fn renew_at(not_before: Duration, not_after: Duration) -> Duration {
    not_after.saturating_sub(not_after.saturating_sub(not_before) / 3)
}

/// How long to wait after the `failures`th failure in a row; `random` spreads many
/// relays that one event made fail, by a quarter to both sides.
pub(super) fn pause(failure: Failure, failures: u32, random: u64) -> Duration {
    let (first, asked) = match failure {
        Failure::Unreachable => (UNREACHABLE_FIRST, None),
        Failure::Refused(asked) => (REFUSED_FIRST, asked),
    };
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(RETRY_MAX);
    let spread = doubled / 2;
    let pause = doubled - spread / 2 + spread.mul_f64(random as f64 / u64::MAX as f64);
    // A request to stay away longer than for ever is none.
    pause.max(asked.unwrap_or_default().min(4 * RETRY_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_third_of_the_lifetime_is_left() {
        assert_eq!(renew_at(seconds(1000), seconds(1090)), seconds(1060));
        assert_eq!(renew_at(seconds(1000), seconds(1000)), seconds(1000));
        // Nonsense is renewed at once.
        assert!(renew_at(seconds(1000), seconds(10)) <= seconds(10));
    }

    #[test]
    fn pauses_double_are_spread_and_end() {
        let middle = |failure, failures| pause(failure, failures, u64::MAX / 2).as_secs();
        assert_eq!([1, 2, 3, 4].map(|n| middle(Failure::Unreachable, n)), [5, 10, 20, 40]);
        assert_eq!([1, 2, 3, 4].map(|n| middle(Failure::Refused(None), n)), [60, 120, 240, 480]);
        assert_eq!(middle(Failure::Refused(None), u32::MAX), RETRY_MAX.as_secs());
        assert_eq!(pause(Failure::Refused(None), 1, 0), seconds(45));
        assert_eq!(pause(Failure::Refused(None), 1, u64::MAX), seconds(75));
    }

    #[test]
    fn an_authority_that_asks_for_time_gets_it() {
        let asked = |seconds| Failure::Refused(Some(Duration::from_secs(seconds)));
        assert_eq!(pause(asked(3600), 1, 0), seconds(3600));
        assert_eq!(pause(asked(1), 1, 0), seconds(45));
        assert_eq!(pause(asked(u64::MAX), 1, 0), 4 * RETRY_MAX);
    }

    #[test]
    fn five_refusals_take_more_than_twenty_minutes_however_they_fall() {
        let total: Duration = (1..=5).map(|n| pause(Failure::Refused(None), n, 0)).sum();
        assert!(total > seconds(20 * 60), "{total:?}");
    }
}
