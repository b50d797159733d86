//! Refusals: the line that each refused request leaves for the operator.
//!
//! Owns what the log tells of a refusal and how often one of a kind is a warning. Why a
//! request is refused is `protocol/fault.rs`'s to say.
//!
//! 1. Every refusal leaves one line: a warning of its kind at most once a minute, which
//!    tells how many were left out, and all others at debug.
//! 2. A kind is a cause and a header, both of closed lists: what peers send makes no more.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::protocol::fault::{Cause, Fault};
use crate::time::{Instant, Throttle};

/// When each kind of refusal was warned of.
#[derive(Debug, Default)]
pub struct Refusals(BTreeMap<(Cause, Option<&'static str>), Throttle>);

impl Refusals {
    /// Leaves the line of a refusal.
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
