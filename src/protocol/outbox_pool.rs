//! Outbox pool: empty outboxes, kept for reuse by any connection.
//!
//! Owns the memory of outboxes between two messages; an outbox in it holds no bytes. Must not
//! know connections.
//!
//! A connection at rest owns no outbox. Without the pool each ping would allocate one, and
//! every burst would grow a queue from empty. For messages of 1 KiB that cost a tenth of the
//! CPU time: copies during growth, and pages that the allocator had returned to the kernel.
//!
//! 1. It holds at most [`OUTBOXES_MAX`] outboxes with at most [`BYTES_MAX`] bytes in all, and
//!    the same again in spare chunks.
//! 2. An outbox in it holds a short chunk at most: a connection that takes it is charged with
//!    what it holds.

use super::outbox::Outbox;
use super::outbox::chunks::SpareChunks;
use crate::state::v1;
use crate::time::Instant;

/// A tick of 50,000 connections sends about 110 pings, and a turn with 128 busy peers writes
/// to 128. Every response to an upgrade returns one outbox to the pool: a bound of 1024 costs
/// 10,000 connections 25 bytes each.
const OUTBOXES_MAX: usize = 128;
/// What one turn of the loop queues, unless its frames are tiny.
const BYTES_MAX: usize = 1024 * 1024;
/// What an outbox in the pool keeps for control frames: several pings, or a close.
const CONTROL_BYTES_MAX: usize = 512;

/// Empty outboxes, ready for reuse.
#[derive(Debug)]
pub struct OutboxPool {
    #[expect(
        clippy::vec_box,
        reason = "an outbox is boxed in its connection, and its box is reused as well"
    )]
    drained: Vec<Box<Outbox>>,
    /// Bytes of memory that their queues occupy.
    held: usize,
    bytes_max: usize,
    pub(super) spare: SpareChunks,
}

impl Default for OutboxPool {
    fn default() -> Self {
        Self::new(BYTES_MAX)
    }
}

impl OutboxPool {
    /// An empty pool that keeps at most `bytes` of outboxes, and of chunks.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let bytes_max = bytes.min(BYTES_MAX);
        Self { drained: Vec::new(), held: 0, bytes_max, spare: SpareChunks::new(bytes_max) }
    }

    /// An empty outbox, at `now`.
    pub(super) fn get(&mut self, now: Instant) -> Box<Outbox> {
        let Some(mut outbox) = self.drained.pop() else { return Box::new(Outbox::new(now)) };
        self.held -= outbox.capacity();
        outbox.restart(now);
        outbox
    }

    /// What it holds, as sizes.
    #[must_use]
    pub fn save(&self) -> v1::Pool {
        let outboxes = self.drained.iter().map(|outbox| outbox.room()).collect();
        v1::Pool { outboxes, pieces: self.spare.len() as u32 }
    }

    /// Fills an empty pool with what [`Self::save`] returned, as far as its bounds allow.
    pub fn restore(&mut self, saved: &v1::Pool) {
        for room in &saved.outboxes {
            self.put(Box::new(Outbox::with_room(*room)));
        }
        self.spare.fill(saved.pieces as usize);
    }

    /// Keeps an empty outbox, unless a bound is reached.
    pub(super) fn put(&mut self, mut outbox: Box<Outbox>) {
        debug_assert!(outbox.is_empty(), "{outbox:?}");
        outbox.shrink_control(CONTROL_BYTES_MAX);
        let capacity = outbox.capacity();
        if self.drained.len() < OUTBOXES_MAX && self.held + capacity <= self.bytes_max {
            self.held += capacity;
            self.drained.push(outbox);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::websocket::Opcode;

    const NOW: Instant = Instant::START;

    /// An outbox that has sent a message of `len` bytes.
    fn drained(pool: &mut OutboxPool, len: usize) -> Box<Outbox> {
        let mut outbox = pool.get(NOW);
        outbox.push_message(Opcode::Text, &[&vec![b'x'; len]], &mut pool.spare);
        outbox.on_written(outbox.len(), NOW, &mut pool.spare);
        outbox
    }

    #[test]
    fn a_reused_outbox_keeps_its_capacity_and_restarts_its_time() {
        let mut pool = OutboxPool::default();
        let outbox = drained(&mut pool, 1_000);
        let capacity = outbox.capacity();
        assert!(capacity >= 1_000);
        pool.put(outbox);
        let later = NOW + std::time::Duration::from_secs(60);
        let outbox = pool.get(later);
        assert_eq!((outbox.capacity(), outbox.progress()), (capacity, later));
        assert_eq!((pool.held, pool.drained.len()), (0, 0));
        assert_eq!(pool.get(NOW).capacity(), 0);
    }

    #[test]
    fn an_outbox_in_the_pool_holds_a_short_chunk_at_most() {
        let mut pool = OutboxPool::default();
        let mut outbox = drained(&mut pool, 100_000);
        (0..20).for_each(|_| outbox.push_pong(&[0; 125]));
        outbox.on_written(outbox.len(), NOW, &mut pool.spare);
        assert!(outbox.capacity() > CONTROL_BYTES_MAX);
        pool.put(outbox);
        assert_eq!((pool.drained.len(), pool.held), (1, 0));
    }

    #[test]
    fn total_count_and_capacity_are_bounded() {
        for (len, expected) in [(4_000, BYTES_MAX / 16 / 4_004), (1, OUTBOXES_MAX)] {
            let mut pool = OutboxPool::new(BYTES_MAX / 16);
            for _ in 0..2 * OUTBOXES_MAX {
                let outbox = drained(&mut OutboxPool::default(), len);
                pool.put(outbox);
                let held: usize = pool.drained.iter().map(|outbox| outbox.capacity()).sum();
                assert_eq!(pool.held, held);
            }
            assert_eq!(pool.drained.len(), expected, "of {len} bytes");
        }
    }
}
