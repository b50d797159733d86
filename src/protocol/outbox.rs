//! Outbox: bytes queued to one peer.
//!
//! Owns queued messages, control frames and the position of the last write. Must not know the
//! socket, nor why anything is sent.
//!
//! 1. Frames are written whole: a control frame goes out at the next frame boundary, never
//!    inside a frame, ahead of every queued message.
//! 2. Control bytes are bounded by twice [`CONTROL_MAX`] and one latest pong.
//! 3. After a partial write, the capacity of a queue is at most twice its length.

use super::websocket::{self, Opcode};
use crate::time::Instant;

/// Bytes of queued control frames up to which every pong is queued; beyond it only the latest
/// is kept (RFC 6455 §5.5.3 allows answering only the most recent ping).
const CONTROL_MAX: usize = 4 * 1024;

/// Bytes queued to one peer.
#[derive(Debug)]
pub struct Outbox {
    /// Whole frames in order; the first `sent` bytes are written.
    queue: Vec<u8>,
    sent: usize,
    /// Remaining bytes of the frame that the last write cut.
    begun: usize,
    /// Control frames and HTTP responses: written next, after `begun`.
    control: Vec<u8>,
    /// The latest pong for which `control` had no room.
    late_pong: Option<Vec<u8>>,
    /// Written bytes that the transport below still buffers.
    below: usize,
    /// When bytes last drained, or the first was queued.
    progress: Instant,
}

impl Outbox {
    /// Empty, at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            queue: Vec::new(),
            sent: 0,
            begun: 0,
            control: Vec::new(),
            late_pong: None,
            below: 0,
            progress: now,
        }
    }

    /// Bytes queued, those in the transport included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len() - self.sent + self.control.len() + self.below
    }

    /// Whether nothing is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Capacity of the queues, in bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.queue.capacity() + self.control.capacity()
    }

    /// When bytes last drained, or the first was queued.
    #[must_use]
    pub fn progress(&self) -> Instant {
        self.progress
    }

    /// Restarts the time for write progress at `now`.
    pub fn restart(&mut self, now: Instant) {
        self.progress = now;
    }

    /// Queues one message made of `parts`, text or binary.
    pub fn push_message(&mut self, opcode: Opcode, parts: &[&[u8]]) {
        let len = parts.iter().map(|part| part.len()).sum();
        self.queue.reserve(len + websocket::HEADER_MAX);
        websocket::append_header(opcode, len, &mut self.queue);
        for part in parts {
            self.queue.extend_from_slice(part);
        }
    }

    /// Queues an HTTP response.
    pub fn push_answer(&mut self, answer: &[u8]) {
        self.control.extend_from_slice(answer);
    }

    /// Queues a ping. Pongs leave room for it: if the peer's own pings could crowd ours out,
    /// a live peer would not answer and count as dead.
    pub fn push_ping(&mut self, payload: &[u8]) {
        if self.control.len() < 2 * CONTROL_MAX {
            websocket::append_frame(Opcode::Ping, payload, &mut self.control);
        }
    }

    /// Queues the pong for a peer's ping.
    pub fn push_pong(&mut self, payload: &[u8]) {
        if self.control.len() < CONTROL_MAX && self.late_pong.is_none() {
            websocket::append_frame(Opcode::Pong, payload, &mut self.control);
        } else {
            self.late_pong = Some(payload.to_vec());
        }
    }

    /// Queues the close frame: behind the queued messages, or ahead of them, which drops each
    /// one whose first byte is not written. Nothing may be queued after it.
    pub fn push_close(&mut self, payload: &[u8], after_backlog: bool) {
        self.late_pong = None;
        if after_backlog {
            websocket::append_frame(Opcode::Close, payload, &mut self.queue);
        } else {
            self.queue.truncate(self.sent + self.begun);
            self.queue.shrink_to_fit();
            websocket::append_frame(Opcode::Close, payload, &mut self.control);
        }
    }

    /// Whether unbegun messages are queued, or the close frame behind them.
    #[must_use]
    pub fn has_unbegun(&self) -> bool {
        self.queue.len() > self.sent + self.begun
    }

    /// What to write next, in this order, in one call.
    #[must_use]
    pub fn slices(&self) -> [&[u8]; 3] {
        let (begun, rest) = self.queue[self.sent..].split_at(self.begun);
        [begun, &self.control, rest]
    }

    /// The first `count` bytes of [`Self::slices`] were written.
    ///
    /// # Panics
    /// If `count` is larger than [`Self::len`].
    pub fn on_written(&mut self, count: usize, now: Instant) {
        if count > 0 {
            self.progress = now;
            self.take_out(count);
        }
        if !self.is_empty() {
            // A queue may stay unwritten for long, and the byte budget is charged by length,
            // not by capacity.
            self.queue.shrink_to(2 * self.queue.len());
            self.control.shrink_to(2 * self.control.len());
        }
    }

    fn take_out(&mut self, count: usize) {
        let finishing = count.min(self.begun);
        self.begun -= finishing;
        self.sent += finishing;
        let control = (count - finishing).min(self.control.len());
        self.control.drain(..control);
        self.advance(count - finishing - control);
        if self.control.is_empty()
            && let Some(payload) = self.late_pong.take()
        {
            websocket::append_frame(Opcode::Pong, &payload, &mut self.control);
        }
    }

    /// The transport below buffers `bytes` of what was written. A decrease is write progress.
    pub fn keep_below(&mut self, bytes: usize, now: Instant) {
        if bytes < self.below {
            self.progress = now;
        }
        self.below = bytes;
    }

    /// `count` more bytes of the queue are written; the first of them begins a frame.
    fn advance(&mut self, count: usize) {
        let end = self.sent + count;
        if end == self.queue.len() {
            self.queue.clear();
            self.sent = 0;
            return;
        }
        if count > 0 {
            let mut boundary = self.sent;
            while boundary < end {
                boundary += websocket::frame_len(&self.queue[boundary..]);
            }
            self.begun = boundary - end;
            self.sent = end;
        }
        // Amortised: moves at most one byte for every byte written.
        if self.sent > self.queue.len() / 2 {
            self.queue.drain(..self.sent);
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests;
