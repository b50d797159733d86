//! Hand-over statistics: what metrics and `/healthz` tell of hand-overs.
//!
//! Owns the values, which a hand-over takes along.

use std::time::Duration;

/// Hand-overs since the relay was started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandoverStats {
    /// One is under way.
    pub is_running: bool,
    /// How many were done.
    pub done: u64,
    /// How many were refused.
    pub refused: u64,
    /// The last one that was done.
    pub last_done: Option<Done>,
    /// The last one that was refused.
    pub last_refusal: Option<Refusal>,
}

/// A hand-over that was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// The version before.
    pub from: String,
    /// The connections that were taken over.
    pub connections: u64,
    /// The connections that were dropped.
    pub dropped: u64,
    /// The time in which no connection was served.
    pub pause: Duration,
}

/// A hand-over that was refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// The cause, of a closed list.
    pub cause: String,
    /// What is said about it.
    pub said: String,
}
