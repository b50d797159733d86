//! Chunks: a byte queue in pieces of bounded size.
//!
//! Owns the pieces of one queue, and the spare pieces that all queues share. Must not know
//! frames.
//!
//! 1. A piece has at most [`CHUNK`] bytes. One that is sent is given back at once, and nothing
//!    behind it moves: a byte is copied when it is queued and, where a short rest would keep
//!    much larger pieces, once more.
//! 2. A piece before the last has no unused capacity but what a frame header did not fit in.
//!    The last grows to twice its size, so that a short message takes a short piece.
//! 3. `held` is the sum of the pieces' capacities: what the queue costs, sent bytes included.

use std::collections::VecDeque;

use crate::state::v1;

/// Maximum size of a piece, in bytes. In one write of three pieces 48 KiB go out, three times
/// what the kernel takes beyond the congestion window (`NOTSENT_LOWAT`).
pub(crate) const CHUNK: usize = 16 * 1024;

/// The longest list of pieces that an empty queue keeps.
const LIST_MAX: usize = 16;

/// A byte queue.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    pieces: VecDeque<Vec<u8>>,
    /// Bytes of the first piece that are consumed.
    sent: usize,
    /// Bytes that are not consumed.
    len: usize,
    held: usize,
}

impl Chunks {
    /// The pieces, and the bytes of the first that are consumed.
    pub(super) fn save(&self) -> (Vec<v1::Buffer>, u16) {
        let capacities = self.pieces.iter().map(Vec::capacity);
        let start = |index| if index == 0 { self.sent } else { 0 };
        let pieces =
            self.pieces.iter().zip(capacities).enumerate().map(|(index, (piece, room))| {
                v1::Buffer::save(&piece[start(index)..], room - start(index))
            });
        (pieces.collect(), self.sent as u16)
    }

    /// The queue of which [`Self::save`] returned these; `None` if a piece is too long.
    pub(super) fn restore(saved: Vec<v1::Buffer>, sent: u16) -> Option<Self> {
        let mut queue = Self { sent: sent.into(), ..Self::default() };
        let mut before = queue.sent;
        for v1::Buffer { bytes, room } in saved {
            let len = before + bytes.len();
            if len > CHUNK {
                return None;
            }
            let mut piece = Vec::with_capacity(len.saturating_add(room as usize).min(CHUNK));
            piece.resize(before, 0);
            piece.extend_from_slice(&bytes);
            before = 0;
            queue.len += bytes.len();
            queue.held += piece.capacity();
            queue.pieces.push_back(piece);
        }
        // Nothing is consumed of nothing.
        (before == 0).then_some(queue)
    }

    /// An empty queue with this room.
    pub(super) fn with_room(room: u16) -> Self {
        let mut queue = Self::default();
        if room > 0 {
            let piece = Vec::with_capacity(usize::from(room).min(SHORT));
            queue.held = piece.capacity();
            queue.pieces.push_back(piece);
        }
        queue
    }

    /// Bytes that are not consumed.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of memory.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// What [`Self::held`] has to be.
    #[cfg(test)]
    pub(super) fn capacity_of_pieces(&self) -> usize {
        self.pieces.iter().map(Vec::capacity).sum()
    }

    /// The last piece with at least `min` bytes of room, and more for the `total` bytes that
    /// are about to follow.
    pub(super) fn room(
        &mut self,
        min: usize,
        total: usize,
        spare: &mut SpareChunks,
    ) -> &mut Vec<u8> {
        let room = self.pieces.back().map_or(0, |last| CHUNK - last.len());
        if room < min {
            let piece = spare.get(total);
            self.held += piece.capacity();
            self.pieces.push_back(piece);
        }
        let index = self.pieces.len() - 1;
        let last = &mut self.pieces[index];
        let wanted = total.min(CHUNK - last.len());
        if last.capacity() - last.len() < wanted {
            let capacity = (2 * last.capacity()).max(last.len() + wanted).min(CHUNK);
            self.held -= last.capacity();
            last.reserve_exact(capacity - last.len());
            self.held += last.capacity();
        }
        last
    }

    /// `count` bytes were appended to the piece that [`Self::room`] returned.
    pub(super) fn appended(&mut self, count: usize) {
        self.len += count;
    }

    /// Appends bytes; `total` with those that follow them.
    pub(super) fn append(&mut self, mut bytes: &[u8], total: usize, spare: &mut SpareChunks) {
        let mut total = total;
        while !bytes.is_empty() {
            let last = self.room(1, total, spare);
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - last.len()));
            last.extend_from_slice(now);
            self.len += now.len();
            total -= now.len();
            bytes = later;
        }
    }

    /// The bytes that are not consumed, in order.
    pub(super) fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let start = |index| if index == 0 { self.sent } else { 0 };
        self.pieces.iter().enumerate().map(move |(index, piece)| &piece[start(index)..])
    }

    /// All bytes that are not consumed, unless they are in more than one piece.
    pub(super) fn only(&self) -> Option<&[u8]> {
        (self.pieces.len() <= 1).then(|| self.first())
    }

    /// The bytes of the first piece that are not consumed.
    pub(super) fn first(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| &piece[self.sent..])
    }

    /// Removes the first `count` bytes.
    pub(super) fn consume(&mut self, mut count: usize, spare: &mut SpareChunks) {
        self.len -= count;
        if self.len == 0 {
            return self.clear(spare);
        }
        while let Some(first) = self.pieces.front()
            && count >= first.len() - self.sent
        {
            count -= first.len() - self.sent;
            self.held -= first.capacity();
            self.sent = 0;
            spare.put(self.pieces.pop_front().unwrap_or_default());
        }
        self.sent += count;
    }

    /// Removes everything. A short first piece is kept, for the next message.
    fn clear(&mut self, spare: &mut SpareChunks) {
        while self.pieces.len() > 1 {
            spare.put(self.pieces.pop_back().unwrap_or_default());
        }
        self.sent = 0;
        self.held = self.pieces.front().map_or(0, Vec::capacity);
        if self.held > SHORT || self.pieces.capacity() > LIST_MAX {
            self.free(spare);
        } else if let Some(first) = self.pieces.front_mut() {
            first.clear();
        }
    }

    /// Gives back all memory of an empty queue.
    fn free(&mut self, spare: &mut SpareChunks) {
        self.pieces.drain(..).for_each(|piece| spare.put(piece));
        if self.pieces.capacity() > LIST_MAX {
            // The list of a large queue lies behind its pieces in the heap, and as long as it
            // does the allocator cannot return their memory to the system.
            self.pieces = VecDeque::new();
        }
        (self.sent, self.held) = (0, 0);
    }

    /// Removes all but the first `len` bytes.
    pub(super) fn truncate(&mut self, len: usize) {
        let mut left = self.sent + len;
        self.len = len;
        for piece in &mut self.pieces {
            piece.truncate(left);
            left -= piece.len();
        }
        while self.pieces.back().is_some_and(Vec::is_empty) {
            self.pieces.pop_back();
        }
        self.held = self.pieces.iter().map(Vec::capacity).sum();
        if len == 0 {
            *self = Self::default();
        }
    }

    /// The queue is going to wait: frees memory if it holds more than twice its bytes in two
    /// pieces or fewer. Where it holds more pieces, one between them is full.
    pub(super) fn shrink(&mut self, spare: &mut SpareChunks) {
        if self.len == 0 {
            self.free(spare);
        } else if self.pieces.len() <= 2 && self.held > 2 * self.len {
            let mut rest = Vec::with_capacity(self.len);
            self.slices().for_each(|slice| rest.extend_from_slice(slice));
            self.free(spare);
            self.held = rest.capacity();
            self.pieces.push_back(rest);
        }
    }
}

/// A drained queue keeps a piece up to this size: a message of common length then needs no
/// allocation.
const SHORT: usize = 4 * 1024;

/// Empty pieces of [`CHUNK`] bytes, for any queue. Without them the allocator would return
/// pages to the kernel between two bursts.
#[derive(Debug)]
pub(crate) struct SpareChunks {
    pieces: Vec<Vec<u8>>,
    max: usize,
}

impl SpareChunks {
    /// Keeps at most `bytes` bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { pieces: Vec::new(), max: bytes / CHUNK }
    }

    /// A piece for `total` bytes.
    fn get(&mut self, total: usize) -> Vec<u8> {
        // A spare one would be charged with all of its bytes.
        if total <= CHUNK / 2 {
            return Vec::with_capacity(total);
        }
        self.pieces.pop().unwrap_or_else(|| Vec::with_capacity(total.min(CHUNK)))
    }

    /// Number of pieces.
    pub(crate) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Adds `count` pieces, as far as its bound allows.
    pub(crate) fn fill(&mut self, count: usize) {
        (0..count.min(self.max)).for_each(|_| self.put(Vec::with_capacity(CHUNK)));
    }

    fn put(&mut self, mut piece: Vec<u8>) {
        if piece.capacity() == CHUNK && self.pieces.len() < self.max {
            piece.clear();
            self.pieces.push(piece);
        }
    }
}
