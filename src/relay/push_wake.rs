//! Wake: push wakes and their limits.
//!
//! Owns the limits on wakes, per server-id and in flight, and the accepted wakes that are not
//! yet handed out. Must not know FCM, HTTP or a thread.
//!
//! 1. The queue is bounded: a wake beyond a limit is dropped at once, and a wake that is
//!    accepted but not yet handed out counts as in flight.
//! 2. A refused wake is not copied.
//! 3. A device token is stored here from the acceptance of its wake until it is handed out,
//!    and is not printed.

use std::collections::VecDeque;
use std::fmt;
use std::hash::BuildHasher;

use super::admission::RateLimiter;
use super::envelope::Dropped;
use super::keyed_hash::HashKeys;
use crate::state::{Unfit, v1};
use crate::time::Instant;

/// Maximum number of wakes in flight: from acceptance to outcome.
pub const IN_FLIGHT_MAX: usize = 32;
/// Burst of wakes of one server-id.
const BURST: u32 = 6;
/// Wakes of one server-id per minute after the burst: one every 10 s.
const PER_MINUTE: u32 = 6;

/// One device to wake.
#[derive(Debug)]
pub struct Wake {
    /// The device.
    pub device: DeviceToken,
    /// The server-id of the binary that asked, for the log.
    pub server_id: Box<str>,
}

/// FCM's registration token of a device. With it a device can be sent messages, so it is not
/// printed.
pub struct DeviceToken(Box<str>);

impl DeviceToken {
    /// Wraps a token.
    #[must_use]
    pub fn new(token: &str) -> Self {
        Self(token.into())
    }

    /// The token itself, for the FCM request.
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

/// Accepted wakes, and the limits on them.
#[derive(Debug)]
pub(super) struct Wakes {
    /// By the keyed hash of the server-id, which avoids a copy of it. Of 57,344 ids, the
    /// limiter's capacity, two share a bucket with probability 10^-10.
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

    /// Counts one wake for the server-id, if the limits allow it.
    fn admit(&mut self, server_id: &str, now: Instant) -> Result<(), Dropped> {
        // The common limit first: a wake that it refuses must not consume the server-id's own
        // tokens.
        let is_admitted =
            self.in_flight < IN_FLIGHT_MAX && self.rate.allow(self.keys.hash_one(server_id), now);
        if !is_admitted {
            return Err(Dropped::PushWakeLimit);
        }
        self.in_flight += 1;
        Ok(())
    }

    /// Accepts a wake for the server-id, if the limits allow it.
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

    /// Hands out the next wake.
    pub(super) fn next(&mut self) -> Option<Wake> {
        self.accepted.pop_front()
    }

    /// A wake that was handed out has ended.
    pub(super) fn on_done(&mut self) {
        debug_assert!(self.in_flight > self.accepted.len(), "done more often than begun");
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// As plain values.
    pub(super) fn save(&self) -> v1::Wakes {
        let wake = |wake: &Wake| (wake.device.reveal().to_owned(), (*wake.server_id).to_owned());
        v1::Wakes {
            rate: self.rate.save(|key| *key),
            keys: self.keys.reveal(),
            in_flight: self.in_flight as u32,
            accepted: self.accepted.iter().map(wake).collect(),
        }
    }

    /// The wakes of which [`Self::save`] returned `saved`.
    ///
    /// # Errors
    /// If more are in flight than may be, or fewer than wait to be handed out.
    pub(super) fn restore(saved: v1::Wakes) -> Result<Self, Unfit> {
        let v1::Wakes { rate, keys, in_flight, accepted } = saved;
        let in_flight = in_flight as usize;
        if in_flight > IN_FLIGHT_MAX || accepted.len() > in_flight {
            return Err(Unfit("push wakes"));
        }
        let wake = |(device, server_id): (String, String)| Wake {
            device: DeviceToken::new(&device),
            server_id: server_id.into(),
        };
        let mut wakes = Self::new(keys);
        wakes.rate.restore(&rate, |key| *key);
        wakes.in_flight = in_flight;
        wakes.accepted = accepted.into_iter().map(wake).collect();
        Ok(wakes)
    }

    /// Number in flight, and of these not yet handed out.
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
    fn a_wake_refused_by_the_common_limit_consumes_no_token() {
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
