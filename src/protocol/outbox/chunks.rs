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
//! 4. All but [`SHORT_PIECES`] full pieces of a queue, and the last one, return to the kernel
//!    when they are dropped.

use std::collections::VecDeque;

use super::piece::{CHUNK, Piece};
use crate::state::v1;

/// Full pieces of a queue that may be the allocator's memory: a queue of short messages is not
/// copied for the sake of pages until it is a long one.
const SHORT_PIECES: usize = 4;

/// The longest list of pieces that an empty queue keeps.
const LIST_MAX: usize = 16;

/// A byte queue.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are consumed.
    sent: usize,
    /// Bytes that are not consumed.
    len: usize,
    held: usize,
}

impl Chunks {
    /// The pieces, and the bytes of the first that are consumed.
    pub(super) fn save(&self) -> (Vec<v1::Piece>, u16) {
        let pieces = self.pieces.iter().enumerate().map(|(index, piece)| {
            let sent = if index == 0 { self.sent } else { 0 };
            v1::Piece {
                buffer: v1::Buffer::save(&piece[sent..], piece.capacity() - sent),
                is_whole: piece.is_mapped(),
            }
        });
        (pieces.collect(), self.sent as u16)
    }

    /// The queue of which [`Self::save`] returned these; `None` if a piece is too long.
    pub(super) fn restore(saved: Vec<v1::Piece>, sent: u16) -> Option<Self> {
        let mut queue = Self { sent: sent.into(), ..Self::default() };
        let mut before = queue.sent;
        for v1::Piece { buffer: v1::Buffer { bytes, room }, is_whole } in saved {
            let len = before + bytes.len();
            if len > CHUNK {
                return None;
            }
            let mut piece = match is_whole {
                true => Piece::whole(),
                false => Piece::short(len.saturating_add(room as usize).min(CHUNK)),
            };
            piece.append(&[0; CHUNK][..before]);
            piece.append(&bytes);
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
            let piece = Piece::short(usize::from(room).min(SHORT));
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
        self.pieces.iter().map(Piece::capacity).sum()
    }

    /// The last piece with at least `min` bytes of room, and more for the `total` bytes that
    /// are about to follow.
    fn room(&mut self, min: usize, total: usize, spare: &mut SpareChunks) -> &mut Piece {
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
            if capacity == CHUNK && index >= SHORT_PIECES {
                let mut whole = spare.whole();
                whole.append(last);
                *last = whole;
            } else {
                last.grow(capacity);
            }
            self.held += last.capacity();
        }
        last
    }

    /// Appends bytes to one piece; `total` with those that follow them.
    pub(super) fn append_undivided(&mut self, bytes: &[u8], total: usize, spare: &mut SpareChunks) {
        self.room(bytes.len(), total, spare).append(bytes);
        self.len += bytes.len();
    }

    /// Appends bytes; `total` with those that follow them.
    pub(super) fn append(&mut self, mut bytes: &[u8], total: usize, spare: &mut SpareChunks) {
        let mut total = total;
        while !bytes.is_empty() {
            let last = self.room(1, total, spare);
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - last.len()));
            last.append(now);
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
            self.pieces.pop_front().into_iter().for_each(|piece| spare.put(piece));
        }
        self.sent += count;
    }

    /// Removes everything. A short first piece is kept, for the next message.
    fn clear(&mut self, spare: &mut SpareChunks) {
        while self.pieces.len() > 1 {
            self.pieces.pop_back().into_iter().for_each(|piece| spare.put(piece));
        }
        self.sent = 0;
        self.held = self.pieces.front().map_or(0, Piece::capacity);
        if self.held > SHORT || self.pieces.capacity() > LIST_MAX {
            self.free(spare);
        } else if let Some(first) = self.pieces.front_mut() {
            first.truncate(0);
        }
    }

    /// Gives back all memory of an empty queue.
    fn free(&mut self, spare: &mut SpareChunks) {
        self.pieces.drain(..).for_each(|piece| spare.put(piece));
        if self.pieces.capacity() > LIST_MAX {
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
        while self.pieces.back().is_some_and(|last| last.is_empty()) {
            self.pieces.pop_back();
        }
        self.held = self.pieces.iter().map(Piece::capacity).sum();
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
            let mut rest = Piece::short(self.len);
            self.slices().for_each(|slice| rest.append(slice));
            self.free(spare);
            self.held = rest.capacity();
            self.pieces.push_back(rest);
        }
    }
}

/// A drained queue keeps a piece up to this size: a message of common length then needs no
/// allocation.
const SHORT: usize = 4 * 1024;

/// Empty whole pieces, for any queue. Without them every burst would have the kernel map and
/// zero pages.
#[derive(Debug)]
pub(crate) struct SpareChunks {
    pieces: Vec<Piece>,
    max: usize,
}

impl SpareChunks {
    /// Keeps at most `bytes` bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { pieces: Vec::new(), max: bytes / CHUNK }
    }

    /// A piece for `total` bytes.
    fn get(&mut self, total: usize) -> Piece {
        // A whole one would be charged with all of its bytes.
        match total {
            CHUNK.. => self.whole(),
            _ if total <= CHUNK / 2 => Piece::short(total),
            _ => self.pieces.pop().unwrap_or_else(|| Piece::short(total)),
        }
    }

    /// Number of pieces.
    pub(crate) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Adds `count` pieces, as far as its bound allows.
    pub(crate) fn fill(&mut self, count: usize) {
        (0..count.min(self.max)).for_each(|_| self.put(Piece::whole()));
    }

    fn whole(&mut self) -> Piece {
        self.pieces.pop().unwrap_or_else(Piece::whole)
    }

    fn put(&mut self, mut piece: Piece) {
        if piece.is_mapped() && self.pieces.len() < self.max {
            piece.truncate(0);
            self.pieces.push(piece);
        }
    }
}
