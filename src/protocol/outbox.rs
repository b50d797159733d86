//! Outbox: bytes queued to one peer.
//!
//! Owns queued messages, control frames and the position of the last write. Must not know the
//! socket, nor why anything is sent.
//!
//! 1. Frames are written whole: a control frame goes out at the next frame boundary, never
//!    inside a frame, ahead of every queued message.
//! 2. Control bytes are bounded by twice [`CONTROL_MAX`] and one latest pong.
//! 3. Queued messages lie in [`chunks`], which are freed as they are sent. After a write that
//!    leaves bytes, an outbox holds at most twice its bytes and two chunks.

pub(super) mod chunks;
mod piece;

use self::chunks::{Chunks, SpareChunks};
use super::transport::Slices;
use super::websocket::{self, HEADER_MAX, Opcode};
use crate::time::Instant;

/// Bytes of queued control frames up to which every pong is queued; beyond it only the latest
/// is kept (RFC 6455 §5.5.3 allows answering only the most recent ping).
const CONTROL_MAX: usize = 4 * 1024;

/// Bytes queued to one peer.
#[derive(Debug)]
pub struct Outbox {
    /// Whole frames in order, but for the written bytes of the first. No frame header is in
    /// two chunks.
    queue: Chunks,
    /// Remaining bytes of the frame that the last write cut.
    begun: usize,
    /// Control frames and HTTP responses: written next, after `begun`.
    control: Vec<u8>,
    /// The latest pong for which `control` had no room.
    late_pong: Option<Vec<u8>>,
    /// Bytes of `control` up to the end of a probe's ping; 0: the transport below has it.
    /// `None`: no probe is on its way.
    probe_end: Option<usize>,
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
            queue: Chunks::default(),
            begun: 0,
            control: Vec::new(),
            late_pong: None,
            probe_end: None,
            below: 0,
            progress: now,
        }
    }

    /// Bytes queued, those in the transport included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.queue.len() + self.control.len() + self.below
    }

    /// Bytes of memory that it holds, in the transport included.
    #[must_use]
    pub fn held(&self) -> usize {
        self.capacity() + self.below
    }

    /// Whether nothing is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Capacity of the queues, in bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        let late_pong = self.late_pong.as_ref().map_or(0, Vec::capacity);
        self.queue.held() + self.control.capacity() + late_pong
    }

    /// Frees the memory of control frames that would be too much for one at rest.
    pub(super) fn shrink_control(&mut self, max: usize) {
        if self.control.capacity() > max {
            self.control = Vec::new();
        }
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
    pub(super) fn push_message(
        &mut self,
        opcode: Opcode,
        parts: &[&[u8]],
        spare: &mut SpareChunks,
    ) {
        let len = parts.iter().map(|part| part.len()).sum();
        let mut left = self.push_header(opcode, len, spare);
        for part in parts {
            self.queue.append(part, left, spare);
            left -= part.len();
        }
    }

    /// Queues the header of a frame of `len` bytes; returns `len`.
    fn push_header(&mut self, opcode: Opcode, len: usize, spare: &mut SpareChunks) -> usize {
        let mut header = [0; HEADER_MAX];
        websocket::append_header(opcode, len, &mut &mut header[..]);
        let header = &header[..websocket::header_len(len)];
        self.queue.append_undivided(header, header.len() + len, spare);
        len
    }

    /// Queues an HTTP response.
    pub fn push_answer(&mut self, answer: &[u8]) {
        self.control.extend_from_slice(answer);
    }

    /// Queues a ping. Pongs leave room for it: if the peer's own pings could crowd ours out,
    /// a live peer would not answer and count as dead. Returns whether there was room.
    pub fn push_ping(&mut self, payload: &[u8]) -> bool {
        let has_room = self.control.len() < 2 * CONTROL_MAX;
        if has_room {
            self.push_control(Opcode::Ping, payload);
        }
        has_room
    }

    /// Queues the ping of a probe. [`Self::on_written`] or [`Self::keep_below`] reports when the
    /// last one queued has left.
    pub fn push_probe(&mut self, payload: &[u8]) {
        if self.push_ping(payload) {
            self.probe_end = Some(self.control.len());
        }
    }

    /// Queues a control frame. Beyond the first few, memory grows by a frame or two at a time
    /// instead of to twice its size: a peer that pings and does not read fills it.
    fn push_control(&mut self, opcode: Opcode, payload: &[u8]) {
        const STEP: usize = 256;
        let frame = websocket::header_len(payload.len()) + payload.len();
        if self.control.len() > STEP && self.control.capacity() - self.control.len() < frame {
            self.control.reserve_exact(frame.max(STEP));
        }
        websocket::append_frame(opcode, payload, &mut self.control);
    }

    /// Queues the pong for a peer's ping.
    pub fn push_pong(&mut self, payload: &[u8]) {
        if self.control.len() < CONTROL_MAX && self.late_pong.is_none() {
            self.push_control(Opcode::Pong, payload);
        } else {
            self.late_pong = Some(payload.to_vec());
        }
    }

    /// Queues the close frame: behind the queued messages, or ahead of them, which drops each
    /// one whose first byte is not written. Nothing may be queued after it.
    pub fn push_close(&mut self, payload: &[u8], after_backlog: bool) {
        self.late_pong = None;
        // Once per connection: no spare chunk is worth a parameter.
        let spare = &mut SpareChunks::new(0);
        if after_backlog {
            self.push_message(Opcode::Close, &[payload], spare);
        } else {
            self.queue.truncate(self.begun);
            self.queue.shrink(spare);
            websocket::append_frame(Opcode::Close, payload, &mut self.control);
        }
    }

    /// Whether unbegun messages are queued, or the close frame behind them.
    #[must_use]
    pub fn has_unbegun(&self) -> bool {
        self.queue.len() > self.begun
    }

    /// What to write next, in this order, in one call: the rest of the begun frame, control
    /// frames, messages; the first bytes of them where they are in more chunks.
    #[must_use]
    pub fn slices(&self) -> Slices<'_> {
        if let Some(only) = self.queue.only() {
            let (begun, rest) = only.split_at(self.begun);
            return [begun, &self.control, rest, &[], &[], &[], &[], &[]];
        }
        let mut slices = Slices::default();
        for (slice, queued) in slices.iter_mut().zip(self.queued()) {
            *slice = queued;
        }
        slices
    }

    /// All that is queued, in the order in which it is written.
    pub fn queued(&self) -> impl Iterator<Item = &[u8]> {
        let mut begun = if self.control.is_empty() { 0 } else { self.begun };
        let mut control = Some(self.control.as_slice());
        let slices = self.queue.slices().chain(std::iter::once(&[][..]));
        let in_order = slices.flat_map(move |slice| {
            let (before, after) = slice.split_at(begun.min(slice.len()));
            begun -= before.len();
            let control = if begun == 0 { control.take() } else { None };
            [before, control.unwrap_or_default(), after]
        });
        in_order.filter(|slice| !slice.is_empty())
    }

    /// The first `count` bytes of [`Self::slices`] were written. Returns whether the ping of a
    /// probe has left.
    ///
    /// # Panics
    /// If `count` is larger than [`Self::len`].
    pub(super) fn on_written(
        &mut self,
        count: usize,
        now: Instant,
        spare: &mut SpareChunks,
    ) -> bool {
        let mut has_left = false;
        if count > 0 {
            self.progress = now;
            // The transport below accepts more only when all that it had has left.
            has_left = self.take_probe(true);
            self.take_out(count, spare);
            has_left |= self.take_probe(self.below == 0);
        }
        if !self.is_empty() {
            // They may stay unwritten for long.
            self.queue.shrink(spare);
            self.control.shrink_to(2 * self.control.len());
        }
        has_left
    }

    /// Whether a probe's ping has left, once: the transport below has it, and is empty.
    fn take_probe(&mut self, is_empty_below: bool) -> bool {
        self.probe_end.take_if(|end| *end == 0 && is_empty_below).is_some()
    }

    fn take_out(&mut self, count: usize, spare: &mut SpareChunks) {
        let finishing = count.min(self.begun);
        self.begun -= finishing;
        self.queue.consume(finishing, spare);
        let control = (count - finishing).min(self.control.len());
        self.control.drain(..control);
        if let Some(end) = &mut self.probe_end {
            *end = end.saturating_sub(control);
        }
        self.advance(count - finishing - control, spare);
        if self.control.is_empty()
            && let Some(payload) = self.late_pong.take()
        {
            websocket::append_frame(Opcode::Pong, &payload, &mut self.control);
        }
    }

    /// The transport below buffers `bytes` of what was written. A decrease is write progress.
    /// Returns whether the ping of a probe has left.
    pub fn keep_below(&mut self, bytes: usize, now: Instant) -> bool {
        if bytes < self.below {
            self.progress = now;
        }
        self.below = bytes;
        self.take_probe(bytes == 0)
    }

    /// `count` more bytes of the queue are written; the first of them begins a frame.
    fn advance(&mut self, mut count: usize, spare: &mut SpareChunks) {
        if count == self.queue.len() {
            return self.queue.consume(count, spare);
        }
        while count > 0 {
            let frame = websocket::frame_len(self.queue.first());
            let written = frame.min(count);
            self.queue.consume(written, spare);
            count -= written;
            self.begun = frame - written;
        }
    }
}

mod state;
#[cfg(test)]
mod tests;
