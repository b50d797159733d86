//! Tokens: the access token that all wakes share, renewed before it expires.
//!
//! Owns the token and the decision which wake requests the next one. Must not know how a
//! token is requested. Its lock is held for a look or a change, never during a call.
//!
//! 1. There is one exchange at a time: while it runs, other wakes use the old token or,
//!    without one, wait for the exchange.
//! 2. After a failed exchange the next one is delayed, twice as long each time up to 64 s;
//!    wakes without a token fail at once meanwhile. A fresh token that FCM refuses counts as
//!    a failure.
//! 3. A token is not used up to its last second, because the servers' clocks decide.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::report::Failure;

/// How long before its expiry a token is renewed; wakes use it meanwhile.
const RENEW_EARLY: Duration = Duration::from_secs(300);
/// How long before its expiry a token is no longer used: the time of a call, and the
/// difference between the clocks.
const SKEW: Duration = Duration::from_secs(60);
/// The longest lifetime that is accepted; Google's tokens live an hour.
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// The delay after the first failure.
const BACK_OFF: Duration = Duration::from_secs(1);
/// How often the delay doubles: after `1 + BACK_OFF_DOUBLINGS` failures in a row it is 64 s.
const BACK_OFF_DOUBLINGS: u32 = 6;
/// The size limit of an access token in bytes; Google says to expect 2048.
const TOKEN_MAX: usize = 2048;

const _: () = assert!(SKEW.as_secs() < RENEW_EARLY.as_secs());

/// The bearer token for FCM. Has no `Debug`, so that it cannot be logged.
pub(super) struct AccessToken(String);

impl AccessToken {
    /// The token itself, for the request that needs it.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

/// A token and its lifetime as the token endpoint states it.
pub(super) struct Grant {
    token: String,
    lifetime: Duration,
}

#[derive(Deserialize)]
struct TokenReply {
    access_token: String,
    expires_in: u64,
}

/// Parses the token endpoint's reply (RFC 6749 section 5.1).
///
/// # Errors
/// Describes what is wrong, without any of the reply's text.
pub(super) fn grant(status: u16, body: &[u8]) -> Result<Grant, &'static str> {
    if status != 200 {
        return Err("the token endpoint refused the request");
    }
    match serde_json::from_slice(body) {
        Ok(TokenReply { access_token, expires_in: expires_in @ 1.. })
            if (1..=TOKEN_MAX).contains(&access_token.len())
                // Valid in a header field (RFC 6750 section 2.1 allows less).
                && access_token.bytes().all(|byte| byte.is_ascii_graphic()) =>
        {
            Ok(Grant { token: access_token, lifetime: Duration::from_secs(expires_in) })
        }
        _ => Err("the token endpoint's reply is malformed"),
    }
}

/// The access token and its renewal.
#[derive(Default)]
pub(super) struct Tokens {
    state: Mutex<State>,
    exchanged: Condvar,
}

#[derive(Default)]
struct State {
    current: Option<Current>,
    is_exchanging: bool,
    /// Failures in a row.
    failures: u32,
    /// No exchange starts before this time.
    retry_at: Option<Instant>,
}

struct Current {
    token: Arc<AccessToken>,
    renew_at: Instant,
    expires_at: Instant,
}

enum Step {
    Use(Arc<AccessToken>),
    Exchange,
    Wait,
    GiveUp,
}

impl Tokens {
    /// The token to use. Calls `exchange` if a new token is due and no exchange runs; waits
    /// for a running one only if there is no usable token.
    ///
    /// # Errors
    /// That of `exchange`, or [`BACKING_OFF`] after an earlier failure.
    pub(super) fn obtain(
        &self,
        clock: &impl Fn() -> Instant,
        exchange: impl FnOnce() -> Result<Grant, Failure>,
    ) -> Result<Arc<AccessToken>, Failure> {
        let mut state = self.lock();
        loop {
            match state.step(clock()) {
                Step::Use(token) => return Ok(token),
                Step::GiveUp => return Err(BACKING_OFF),
                Step::Exchange => break,
                Step::Wait => {
                    state = self.exchanged.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
        state.is_exchanging = true;
        drop(state);
        let asked = clock();
        let result = exchange();
        let mut state = self.lock();
        state.is_exchanging = false;
        let obtained = match result {
            Ok(grant) => Ok(state.adopt(grant, asked)),
            Err(failure) => {
                let now = clock();
                state.fail(now);
                // Renewal starts early, so the old token may still be usable.
                state.usable(now).ok_or(failure)
            }
        };
        self.exchanged.notify_all();
        obtained
    }

    /// FCM refused the token, which is discarded. If it was fresh, the next exchange is
    /// delayed.
    pub(super) fn reject(&self, token: &Arc<AccessToken>, is_fresh: bool, now: Instant) {
        let mut state = self.lock();
        if state.current.as_ref().is_some_and(|current| Arc::ptr_eq(&current.token, token)) {
            state.current = None;
            if is_fresh {
                state.fail(now);
            }
        }
    }

    /// FCM accepted a token: resets the count of failures.
    pub(super) fn accept(&self) {
        self.lock().failures = 0;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const BACKING_OFF: Failure =
    Failure { status: None, cause: "no access token; the next request for one is delayed" };

impl State {
    fn step(&self, now: Instant) -> Step {
        let usable = self.usable(now);
        let is_due = self.current.as_ref().is_none_or(|current| current.renew_at <= now);
        let may_exchange = !self.is_exchanging && self.retry_at.is_none_or(|at| at <= now);
        match usable {
            Some(token) if !(is_due && may_exchange) => Step::Use(token),
            _ if may_exchange => Step::Exchange,
            _ if self.is_exchanging => Step::Wait,
            _ => Step::GiveUp,
        }
    }

    fn usable(&self, now: Instant) -> Option<Arc<AccessToken>> {
        let current = self.current.as_ref().filter(|current| now < current.expires_at)?;
        Some(Arc::clone(&current.token))
    }

    /// Takes a new token, whose lifetime is counted from when it was `asked` for.
    fn adopt(&mut self, grant: Grant, asked: Instant) -> Arc<AccessToken> {
        let lifetime = grant.lifetime.min(LIFETIME_MAX);
        let token = Arc::new(AccessToken(grant.token));
        self.retry_at = None;
        self.current = Some(Current {
            token: Arc::clone(&token),
            // For a short lifetime the margins are shares of it.
            renew_at: asked + lifetime.saturating_sub(RENEW_EARLY.min(lifetime / 2)),
            expires_at: asked + lifetime.saturating_sub(SKEW.min(lifetime / 4)),
        });
        token
    }

    fn fail(&mut self, now: Instant) {
        self.retry_at = Some(now + BACK_OFF * (1 << self.failures.min(BACK_OFF_DOUBLINGS)));
        self.failures = self.failures.saturating_add(1);
    }
}

#[cfg(test)]
mod tests;
