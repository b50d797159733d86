//! Outcomes: what a deadline and a write mean for the caller of a connection.
//!
//! Owns their names. The connection decides which it is.

use crate::protocol::close::CloseCause;

/// The action that a connection's deadline asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// The request head did not arrive in time.
    Head,
    /// The slot's holder did not answer the probe that this claimant waits for.
    Claim,
    /// The ping with this sequence number is due.
    Ping(u32),
    /// Close the connection with this cause.
    Close(CloseCause),
    /// It is closed; drop the socket.
    Disconnect,
}

/// What a write has achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// All that was outgoing is written and more is queued: no writable event will follow,
    /// because the socket has accepted every byte.
    pub has_more: bool,
    /// The ping of a probe has left.
    pub has_sent_probe: bool,
}
