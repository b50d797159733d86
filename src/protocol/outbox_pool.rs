//! Outbox pool: empty outboxes, kept for reuse by any connection.
//!
//! Owns the memory of outboxes between two messages; an outbox in it holds no bytes. Must not
//! know connections.
//!
//! A connection at rest owns no outbox. Without the pool each ping would allocate one, and
//! every burst would grow a queue from empty. For messages of 1 KiB that cost a tenth of the
//! CPU time: copies during growth, and pages that the allocator had returned to the kernel.
//!
//! 1. It holds at most [`OUTBOXES_MAX`] outboxes, with at most [`BYTES_MAX`] bytes for
//!    queues in all and [`OUTBOX_BYTES_MAX`] in one.

use super::outbox::Outbox;
use crate::time::Instant;

/// A tick of 50,000 connections sends about 110 pings, and a turn with 128 busy peers writes
/// to 128. Every response to an upgrade returns one outbox to the pool: a bound of 1024 costs
/// 10,000 connections 25 bytes each.
/// 128. Each answer to an upgrade puts one into the pool: with a bound of 1024 they cost
/// 10,000 connections 25 bytes each.
const OUTBOXES_MAX: usize = 128;
/// What one turn of the loop queues, unless its frames are tiny.
const BYTES_MAX: usize = 1024 * 1024;
/// What one read from a peer queues.
const OUTBOX_BYTES_MAX: usize = 256 * 1024;

/// Empty outboxes, ready for reuse.
#[derive(Debug, Default)]
pub struct OutboxPool {
    #[expect(
        clippy::vec_box,
        reason = "an outbox is boxed in its connection, and its box is reused as well"
    )]
    drained: Vec<Box<Outbox>>,
    /// Bytes of memory that their queues occupy.
    held: usize,
}

impl OutboxPool {
    /// An empty outbox, at `now`.
    pub(super) fn get(&mut self, now: Instant) -> Box<Outbox> {
        let Some(mut outbox) = self.drained.pop() else { return Box::new(Outbox::new(now)) };
        self.held -= outbox.capacity();
        outbox.restart(now);
        outbox
    }

    /// Keeps an empty outbox, unless a bound is reached.
    pub(super) fn put(&mut self, outbox: Box<Outbox>) {
        debug_assert!(outbox.is_empty(), "{outbox:?}");
        let capacity = outbox.capacity();
        if self.drained.len() < OUTBOXES_MAX
            && capacity <= OUTBOX_BYTES_MAX
            && self.held + capacity <= BYTES_MAX
        {
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
        outbox.push_message(Opcode::Text, &[&vec![b'x'; len]]);
        outbox.on_written(outbox.len(), NOW);
        outbox
    }

    #[test]
    fn a_reused_outbox_keeps_its_capacity_and_restarts_its_time() {
        let mut pool = OutboxPool::default();
        let outbox = drained(&mut pool, 1_000);
        let capacity = outbox.capacity();
        pool.put(outbox);
        let later = NOW + std::time::Duration::from_secs(60);
        let outbox = pool.get(later);
        assert_eq!((outbox.capacity(), outbox.progress()), (capacity, later));
        assert_eq!((pool.held, pool.drained.len()), (0, 0));
        assert_eq!(pool.get(NOW).capacity(), 0);
    }

    #[test]
    fn an_outbox_above_the_size_limit_is_not_kept() {
        let mut pool = OutboxPool::default();
        for len in [OUTBOX_BYTES_MAX / 2, OUTBOX_BYTES_MAX + 1] {
            let outbox = drained(&mut OutboxPool::default(), len);
            pool.put(outbox);
        }
        assert_eq!(pool.drained.len(), 1);
    }

    #[test]
    fn total_count_and_capacity_are_bounded() {
        for (len, expected) in [(100_000, 10), (1, OUTBOXES_MAX)] {
            let mut pool = OutboxPool::default();
            for _ in 0..2 * expected {
                let outbox = drained(&mut OutboxPool::default(), len);
                pool.put(outbox);
                let held: usize = pool.drained.iter().map(|outbox| outbox.capacity()).sum();
                assert_eq!(pool.held, held);
            }
            assert_eq!(pool.drained.len(), expected, "of {len} bytes");
        }
    }
}
