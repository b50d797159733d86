//! Push wakes and their limits.
//!
//! Owns which wakes are taken on: how many of a server-id, how many at a time; and those
//! that wait to be handed out. Must not know FCM, HTTP or a thread.
//!
//! 1. Nothing queues up: a wake beyond a limit is dropped at once, and what was
//!    accepted and not yet handed out counts as in flight.
//! 2. A refused wake is copied nowhere.
//! 3. A device token is in here from when its wake is accepted until it is handed
//!    out, and is not printed.

use std::collections::VecDeque;
use std::fmt;
use std::hash::BuildHasher;

use super::admission::RateLimiter;
use super::envelope::Dropped;
use super::keyed_hash::HashKeys;
use crate::time::Instant;

/// The most wakes between their acceptance and their outcome.
pub const IN_FLIGHT_MAX: usize = 32;
/// Wakes that one server-id may ask for at once …
const BURST: u32 = 6;
/// … and in every minute after: one every 10 s.
const PER_MINUTE: u32 = 6;

/// One device to wake.
#[derive(Debug)]
pub struct Wake {
    /// Who is woken.
    pub device: DeviceToken,
    /// Whose binary asked, for the log.
    pub server_id: Box<str>,
}

/// What FCM knows a device by. Whoever has it can be heard on that device, so it
/// is not printed.
pub struct DeviceToken(Box<str>);

impl DeviceToken {
    /// Wraps a token.
    #[must_use]
    pub fn new(token: &str) -> Self {
        Self(token.into())
    }

    /// The token itself, for the one request that needs it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for DeviceToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceToken(..)")
    }
}

/// The wakes that are accepted, and the limits on them.
#[derive(Debug)]
pub(super) struct Wakes {
    /// By the keyed hash of the server-id, which stands for it without a copy. Of
    /// 57,344 ids, as many as the limiter knows, two share a bucket once in 10^10.
    rate: RateLimiter<u64>,
    keys: HashKeys,
    in_flight: usize,
    /// Not yet handed out.
    accepted: VecDeque<Wake>,
}

impl Wakes {
    /// `keys` must be unpredictable to peers.
    pub(super) fn new(keys: [u64; 2]) -> Self {
        Self {
            rate: RateLimiter::new(PER_MINUTE, BURST, keys),
            keys: HashKeys::new(keys),
            in_flight: 0,
            accepted: VecDeque::new(),
        }
    }

    /// Counts one wake for the server-id in.
    fn admit(&mut self, server_id: &str, now: Instant) -> Result<(), Dropped> {
        // First what costs the server-id nothing: it is not its fault.
        let is_admitted =
            self.in_flight < IN_FLIGHT_MAX && self.rate.allow(self.keys.hash_one(server_id), now);
        if !is_admitted {
            return Err(Dropped::PushWakeLimit);
        }
        self.in_flight += 1;
        Ok(())
    }

    /// Takes a wake on for the server-id, if it may.
    pub(super) fn accept(
        &mut self,
        server_id: &str,
        wake: impl FnOnce() -> Wake,
        now: Instant,
    ) -> Result<(), Dropped> {
        self.admit(server_id, now)?;
        self.accepted.push_back(wake());
        Ok(())
    }

    /// Hands the next one out.
    pub(super) fn next(&mut self) -> Option<Wake> {
        self.accepted.pop_front()
    }

    /// One that was handed out has come to its end.
    pub(super) fn on_done(&mut self) {
        debug_assert!(self.in_flight > self.accepted.len(), "done more often than begun");
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// In flight, and of these not yet handed out.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.in_flight, self.accepted.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn after(seconds: u64) -> Instant {
        Instant::START + Duration::from_secs(seconds)
    }

    #[test]
    fn a_server_id_has_six_at_once_and_one_every_ten_seconds() {
        let mut wakes = Wakes::new([1, 2]);
        let mut count = |server_id, at| {
            let admitted = (0..20).filter(|_| wakes.admit(server_id, after(at)).is_ok()).count();
            wakes.in_flight = 0;
            admitted
        };
        assert_eq!(count("home", 0), 6);
        assert_eq!(count("home", 9), 0);
        assert_eq!(count("home", 10), 1);
        assert_eq!(count("office", 10), 6);
        assert_eq!(count("home", 39), 2);
        assert_eq!(count("home", 1000), 6);
    }

    #[test]
    fn a_full_house_costs_nobody_a_wake_of_his_bucket() {
        let mut wakes = Wakes::new([1, 2]);
        wakes.in_flight = IN_FLIGHT_MAX;
        for _ in 0..100 {
            assert_eq!(wakes.admit("home", after(0)), Err(Dropped::PushWakeLimit));
        }
        wakes.in_flight = 0;
        assert_eq!((0..20).filter(|_| wakes.admit("home", after(0)).is_ok()).count(), 6);
    }

    #[test]
    fn a_token_is_not_shown() {
        let device = DeviceToken::new("abc");
        let wake = Wake { device, server_id: "home".into() };
        assert!(format!("{wake:?}").contains("DeviceToken(..)"));
    }
}
