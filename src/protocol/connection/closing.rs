//! A connection whose last bytes are queued or sent.
//!
//! Owns what is still awaited of it. What is queued, and what it still sends, is
//! its connection's.

use crate::config::Timeouts;
use crate::time::Instant;

/// What is awaited until the socket goes.
#[derive(Debug)]
pub(super) struct Closing {
    pub(super) deadline: Instant,
    /// Bytes thrown away since.
    pub(super) drained: u32,
    /// Our last bytes are out and the writing half is shut down.
    pub(super) half_closed: bool,
    /// The peer has sent its last byte.
    pub(super) peer_ended: bool,
    /// The peer has sent its own close frame.
    pub(super) answered: bool,
    /// Its frames can still be told apart.
    pub(super) is_framed: bool,
}

impl Closing {
    pub(super) fn until(deadline: Instant) -> Self {
        Self {
            deadline,
            drained: 0,
            half_closed: false,
            peer_ended: false,
            answered: false,
            is_framed: false,
        }
    }

    /// Both close frames are out: the peer has only its FIN left to send, and
    /// who was told to wait for ours (RFC 6455 §7.1.1) has got it. What else it
    /// sends is still drained for a moment, lest a reset destroys our close.
    pub(super) fn hasten(&mut self, now: Instant, timeouts: &Timeouts) {
        if self.half_closed && self.answered {
            self.deadline = self.deadline.min(now + timeouts.linger / 10);
        }
    }
}
