//! Summary: what is told of a connection when it ends.
//!
//! Owns the facts and the form in which an open connection stores its age. Must not know the
//! connection's state.

use std::time::Duration;

use crate::time::Instant;

/// Facts about an open connection, taken when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionSummary {
    /// Time since it was opened, to a hundredth of a second; wraps after 497 days.
    pub age: Duration,
    /// The last round-trip time of a ping, if one was measured.
    pub round_trip: Option<Duration>,
}

/// Hundredths of a second, truncated to 32 bits.
pub(super) fn hundredths(instant: Instant) -> u32 {
    (instant.as_micros() / 10_000) as u32
}
