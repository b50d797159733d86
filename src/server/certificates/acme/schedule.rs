//! Schedule: when to order a certificate, and when to retry.
//!
//! Pure: takes times since 1970 and random numbers as arguments.
//!
//! 1. A certificate is renewed in the window that the authority names (RFC 9773), at the
//!    latest with a tenth of its lifetime left; without a window, with a third left.
//! 2. Each failure in a row lengthens the pause, which is never shorter than the authority
//!    asked for, up to a day.
//! 3. After a success nothing is ordered for a while, whatever clocks and windows say.

use std::time::Duration;

use super::renewal_info::Window;

/// The first pause after the authority could not be reached: the attempt cost it nothing.
const UNREACHABLE_FIRST: Duration = Duration::from_secs(5);
/// The first pause after a refusal. Let's Encrypt locks a name out for an hour after five
/// failed validations; with the pause doubled each time, five take half an hour.
const REFUSED_FIRST: Duration = Duration::from_secs(60);
/// The longest pause between two attempts.
const RETRY_MAX: Duration = Duration::from_secs(6 * 60 * 60);
/// The longest sleep: the wall clock may be set, or the machine suspended, meanwhile.
const SLEEP_MAX: Duration = Duration::from_secs(60 * 60);
/// The interval between requests for the window, unless the authority names one.
const ASK_INTERVAL: Duration = Duration::from_secs(6 * 60 * 60);
/// The bounds on an interval that the authority names (RFC 9773 §4.3.2).
const ASK_MIN: Duration = Duration::from_secs(60);
const ASK_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// No reply, or not a meaningful one.
    Unreachable,
    /// A refusal.
    Refused,
}

/// The next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask the authority for the window.
    Ask,
    /// Order a certificate.
    Order,
    /// Wait for this long.
    Wait(Duration),
}

/// When the certificate in use is due for renewal.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// The start and end of its validity; `None`: there is no certificate.
    validity: Option<(Duration, Duration)>,
    /// The authority's window, and the time chosen in it.
    window: Option<(Window, Duration)>,
    ask_at: Duration,
    /// No order is placed before this time.
    order_from: Duration,
    failures: u32,
}

impl Schedule {
    /// A schedule for a certificate that is valid from the first time until the second.
    pub(super) fn new(validity: Option<(Duration, Duration)>) -> Self {
        Self { validity, ..Self::default() }
    }

    /// The action due at `now`.
    pub(super) fn step(&self, now: Duration) -> Step {
        let due = self.due().max(self.order_from);
        // An expired certificate is renewed whatever the window says.
        let is_valid = self.validity.is_some_and(|(_, not_after)| now < not_after);
        if is_valid && self.ask_at <= now {
            return Step::Ask;
        }
        if due <= now {
            return Step::Order;
        }
        let next = if is_valid { due.min(self.ask_at) } else { due };
        Step::Wait((next - now).min(SLEEP_MAX))
    }

    /// Whether the certificate is due for renewal at `now`.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.due() <= now
    }

    fn due(&self) -> Duration {
        let Some((not_before, not_after)) = self.validity else { return Duration::ZERO };
        let lifetime = not_after.saturating_sub(not_before);
        match self.window {
            Some((_, chosen)) => chosen.min(not_after.saturating_sub(lifetime / 10)),
            None => not_after.saturating_sub(lifetime / 3),
        }
    }

    /// Ends the pauses: the authority is asked, and an order that is due placed, at once.
    pub(super) fn renew_now(&mut self) {
        (self.ask_at, self.order_from) = (Duration::ZERO, Duration::ZERO);
    }

    /// The authority named this window, if any, and the time after which to ask again.
    pub(super) fn on_window(
        &mut self,
        window: Option<Window>,
        retry_after: Option<Duration>,
        now: Duration,
        random: u64,
    ) {
        self.ask_at = now + retry_after.unwrap_or(ASK_INTERVAL).clamp(ASK_MIN, ASK_MAX);
        match window {
            // The choice stands as long as the window does.
            Some(window) if self.window.is_some_and(|(it, _)| it == window) => {}
            window => self.window = window.map(|window| (window, window.choose(random))),
        }
    }

    /// The authority has no windows: it is asked again after a day.
    pub(super) fn on_no_windows(&mut self, now: Duration) {
        self.window = None;
        self.ask_at = now + ASK_MAX;
    }

    /// The authority did not reply; the previous window stands.
    pub(super) fn on_unanswered(&mut self, retry_after: Option<Duration>, now: Duration) {
        self.ask_at = now + retry_after.unwrap_or(SLEEP_MAX).clamp(ASK_MIN, ASK_MAX);
    }

    /// Starts anew with another certificate, issued or found in the cache; returns whether
    /// it is already due for renewal, which it should not be.
    pub(super) fn on_certificate(&mut self, validity: (Duration, Duration), now: Duration) -> bool {
        *self = Self::new(Some(validity));
        let is_due = self.is_due(now);
        let (not_before, not_after) = validity;
        // If it is due, one of the clocks is wrong, and a second order would not help.
        let gap = if is_due { SLEEP_MAX } else { not_after.saturating_sub(not_before) / 6 };
        self.order_from = now + gap.min(SLEEP_MAX);
        is_due
    }

    /// An attempt failed; the authority may have named a time after which to retry. Returns
    /// the pause.
    pub(super) fn on_failure(
        &mut self,
        failure: Failure,
        retry_after: Option<Duration>,
        now: Duration,
        random: u64,
    ) -> Duration {
        self.failures += 1;
        let pause = pause(failure, retry_after, self.failures, random);
        self.order_from = now + pause;
        pause
    }
}

/// How long to wait after the `failures`th failure in a row; `random` spreads relays that
/// one event made fail, by a quarter in both directions.
fn pause(failure: Failure, asked: Option<Duration>, failures: u32, random: u64) -> Duration {
    let first = match failure {
        Failure::Unreachable => UNREACHABLE_FIRST,
        Failure::Refused => REFUSED_FIRST,
    };
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(RETRY_MAX);
    let spread = doubled / 2;
    let pause = doubled - spread / 2 + spread.mul_f64(random as f64 / u64::MAX as f64);
    // At most a day: a longer Retry-After would stop renewal for good.
    pause.max(asked.unwrap_or_default().min(4 * RETRY_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const DAY: u64 = 24 * 60 * 60;

    /// Valid for 90 days from day 100, with the authority asked at `now`.
    fn asked(window: Option<(u64, u64)>, now: u64) -> Schedule {
        let mut schedule = Schedule::new(Some((seconds(100 * DAY), seconds(190 * DAY))));
        let window = window
            .map(|(start, end)| Window { start: seconds(start * DAY), end: seconds(end * DAY) });
        schedule.on_window(window, None, seconds(now), 0);
        schedule
    }

    /// The day on which an order is placed, and whether the authority was asked meanwhile.
    fn ordered_on(mut schedule: Schedule, from: u64) -> u64 {
        let mut now = seconds(from * DAY);
        loop {
            match schedule.step(now) {
                Step::Order => return now.as_secs() / DAY,
                Step::Ask => schedule.on_window(schedule.window.map(|it| it.0), None, now, 0),
                Step::Wait(time) => now += time,
            }
        }
    }

    #[test]
    fn without_a_window_a_third_of_the_lifetime_is_left() {
        assert_eq!(ordered_on(asked(None, 100 * DAY), 100), 160);
        // Nonsense is renewed at once, as is nothing.
        for validity in [None, Some((seconds(1000), seconds(10)))] {
            assert_eq!(Schedule::new(validity).step(seconds(20)), Step::Order);
        }
    }

    #[test]
    fn a_window_is_kept_to_whether_early_late_or_past() {
        for (window, day) in [
            ((110, 112), 110),
            ((150, 152), 150),
            ((170, 175), 170),
            // Too late to be left to a single attempt.
            ((188, 189), 181),
            ((500, 600), 181),
            // The certificate was revoked, or will be.
            ((1, 2), 105),
        ] {
            assert_eq!(ordered_on(asked(Some(window), 105 * DAY), 105), day, "{window:?}");
        }
    }

    #[test]
    fn the_choice_in_a_window_stands_until_the_window_moves() {
        let mut schedule = asked(Some((150, 160)), 100 * DAY);
        let now = seconds(100 * DAY);
        let window = |start| Some(Window { start: seconds(start * DAY), end: seconds(160 * DAY) });
        schedule.on_window(window(150), None, now, u64::MAX);
        assert_eq!(schedule.due(), seconds(150 * DAY));
        schedule.on_window(window(140), None, now, u64::MAX);
        assert_eq!(schedule.due(), seconds(160 * DAY));
        schedule.on_no_windows(now);
        assert_eq!((schedule.due(), schedule.ask_at), (seconds(160 * DAY), now + ASK_MAX));
    }

    #[test]
    fn the_authority_is_asked_when_it_says_within_bounds_and_before_an_order() {
        let now = seconds(120 * DAY);
        for (retry_after, interval) in
            [(None, 6 * 3600), (Some(1), 60), (Some(7200), 7200), (Some(u64::MAX), DAY)]
        {
            let mut schedule = asked(None, 0);
            schedule.on_window(None, retry_after.map(seconds), now, 0);
            assert_eq!(schedule.ask_at, now + seconds(interval));
            let wait = seconds(interval).min(SLEEP_MAX);
            assert_eq!(schedule.step(now), Step::Wait(wait));
            assert_eq!(schedule.step(now + seconds(interval)), Step::Ask);
        }
        // Due by its lifetime, but the authority may know better; not once it expired.
        let schedule = asked(None, 0);
        assert_eq!(schedule.step(seconds(189 * DAY)), Step::Ask);
        assert_eq!(schedule.step(seconds(191 * DAY)), Step::Order);
    }

    #[test]
    fn renew_now_asks_and_orders_at_once() {
        let now = seconds(120 * DAY);
        let mut schedule = asked(Some((1, 2)), 120 * DAY);
        schedule.on_failure(Failure::Refused, None, now, 0);
        assert!(matches!(schedule.step(now), Step::Wait(_)));
        schedule.renew_now();
        assert_eq!(schedule.step(now), Step::Ask);
        schedule.on_no_windows(now);
        schedule.on_window(Some(Window { start: seconds(1), end: seconds(2) }), None, now, 0);
        assert_eq!(schedule.step(now), Step::Order);
    }

    #[test]
    fn what_was_issued_is_not_ordered_again_at_once() {
        let now = seconds(100 * DAY);
        let mut schedule = Schedule::default();
        assert!(!schedule.on_certificate((now, seconds(190 * DAY)), now));
        // A window that lies in the past for every certificate.
        schedule.on_window(Some(Window { start: seconds(1), end: seconds(2) }), None, now, 0);
        assert_eq!(schedule.step(now), Step::Wait(SLEEP_MAX));
        // A clock that is wrong.
        assert!(schedule.on_certificate((seconds(1), seconds(2)), now));
        assert_eq!(schedule.step(now), Step::Wait(SLEEP_MAX));
        // A lifetime of seconds leaves no hour.
        assert!(!schedule.on_certificate((now, now + seconds(24)), now));
        schedule.on_no_windows(now);
        assert_eq!(schedule.step(now), Step::Wait(seconds(16)));
    }

    #[test]
    fn pauses_double_are_spread_and_end() {
        let middle = |failure, failures| pause(failure, None, failures, u64::MAX / 2).as_secs();
        assert_eq!([1, 2, 3, 4].map(|n| middle(Failure::Unreachable, n)), [5, 10, 20, 40]);
        assert_eq!([1, 2, 3, 4].map(|n| middle(Failure::Refused, n)), [60, 120, 240, 480]);
        assert_eq!(middle(Failure::Refused, u32::MAX), RETRY_MAX.as_secs());
        assert_eq!(pause(Failure::Refused, None, 1, 0), seconds(45));
        assert_eq!(pause(Failure::Refused, None, 1, u64::MAX), seconds(75));
    }

    #[test]
    fn an_authority_that_asks_for_time_gets_it() {
        for failure in [Failure::Refused, Failure::Unreachable] {
            assert_eq!(pause(failure, Some(seconds(3600)), 1, 0), seconds(3600));
            assert_eq!(pause(failure, Some(seconds(u64::MAX)), 1, 0), 4 * RETRY_MAX);
        }
        assert_eq!(pause(Failure::Refused, Some(seconds(1)), 1, 0), seconds(45));
    }

    #[test]
    fn five_refusals_take_more_than_twenty_minutes_however_they_fall() {
        let total: Duration = (1..=5).map(|n| pause(Failure::Refused, None, n, 0)).sum();
        assert!(total > seconds(20 * 60), "{total:?}");
    }
}
