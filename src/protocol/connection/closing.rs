//! Closing: a connection whose last bytes are queued or sent.
//!
//! Owns what is still awaited before the disconnect. The connection owns the outbox and the
//! input.

use crate::config::Timeouts;
use crate::protocol::websocket::{Codec, Incoming, Reassembly};
use crate::protocol::work::Work;
use crate::time::Instant;

/// What is awaited until the disconnect.
#[derive(Debug)]
pub(super) struct Closing {
    pub(super) deadline: Instant,
    /// Bytes discarded since the close.
    pub(super) drained: u32,
    /// Our last bytes are written and the writing half is shut down.
    pub(super) half_closed: bool,
    /// The peer has sent its last byte.
    pub(super) peer_ended: bool,
    /// The peer has sent its own close frame.
    pub(super) answered: bool,
    /// The boundaries of the peer's frames are still known.
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

    /// If both close frames are sent, only the peer's FIN is missing, and a client that waits
    /// for the server to close first (RFC 6455 §7.1.1) gets our FIN. Input is still
    /// drained for a tenth of the linger time, lest a reset destroys our close frame.
    pub(super) fn hasten(&mut self, now: Instant, timeouts: &Timeouts) {
        if self.half_closed && self.answered {
            self.deadline = self.deadline.min(now + timeouts.linger / 10);
        }
    }

    /// Whether the peer's own close frame is still expected.
    pub(super) fn awaits_answer(&self) -> bool {
        self.is_framed && !self.answered
    }

    /// Discards input but for the peer's own close frame, as far as `work` goes.
    pub(super) fn discard(
        &mut self,
        reassembly: &mut Reassembly,
        input: &mut &[u8],
        codec: &mut Codec,
        work: &mut Work,
    ) {
        let before = input.len();
        while self.awaits_answer() && !work.is_spent() {
            match codec.next(reassembly, input, work) {
                Ok(Some(Incoming::Close(_))) => self.answered = true,
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => self.is_framed = false,
            }
        }
        if !self.awaits_answer() {
            *input = &[];
        }
        let more = u32::try_from(before - input.len()).unwrap_or(u32::MAX);
        self.drained = self.drained.saturating_add(more);
    }
}
