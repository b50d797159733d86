//! Refusals: the log line of each refused request.
//!
//! Owns the form of the line and how often a kind of refusal is logged as a warning. Must not
//! know why a request is refused (`protocol/fault.rs` does).
//!
//! 1. Every refusal is logged as one line: at most once a minute and kind as a warning, with
//!    the number suppressed since the last one, else at debug.
//! 2. A kind is a cause and a header, both from closed lists, so peers cannot create kinds.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::protocol::fault::{Cause, Fault};
use crate::time::{Instant, Throttle};

/// A throttle for each kind of refusal.
#[derive(Debug, Default)]
pub struct Refusals(BTreeMap<(Cause, Option<&'static str>), Throttle>);

impl Refusals {
    /// Logs a refusal.
    pub fn log(&mut self, fault: Fault, remote: IpAddr, path: Option<&str>, now: Instant) {
        let Fault { refusal, cause, header } = fault;
        let admitted = self.0.entry((cause, header)).or_default().admit(now);
        let level = if admitted.is_some() { log::Level::Warn } else { log::Level::Debug };
        let dropped = admitted.filter(|dropped| *dropped > 0);
        let event = match cause {
            Cause::RateLimit => "rate_limited",
            Cause::Cap => "conn_cap_reached",
            _ => "request_refused",
        };
        log::log!(
            level, remote:% = remote, path, status = refusal.code(), cause = cause.label(),
            header, dropped;
            "{event}"
        );
    }
}
