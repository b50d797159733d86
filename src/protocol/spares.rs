//! Outboxes that have drained, for the next message to anybody.
//!
//! Owns memory between two messages, never a byte of them. Knows no connection.
//!
//! A connection at rest owns none, so without these each ping would make one, and every
//! burst would grow a queue from nothing: of a message of 1 KiB that was a tenth of the
//! CPU time, for copies while it grew and for pages that the allocator had given back to
//! the kernel.
//!
//! Holds at most [`SPARES_MAX`] outboxes, with at most [`BYTES_MAX`] bytes for queues in
//! all and [`SPARE_BYTES_MAX`] in one.

use super::outbox::Outbox;
use crate::time::Instant;

/// As many as a tick of 50,000 connections pings, or a pass with 128 busy peers writes to.
/// Every answer to an upgrade leaves one behind: with 1024 they cost 10,000 connections
/// 25 bytes each.
const SPARES_MAX: usize = 128;
/// What a pass of the loop queues, if its frames are not tiny.
const BYTES_MAX: usize = 1024 * 1024;
/// What a read of one peer queues.
const SPARE_BYTES_MAX: usize = 256 * 1024;

/// Outboxes that have drained.
#[derive(Debug, Default)]
pub struct Spares {
    #[expect(clippy::vec_box, reason = "they come and go in their boxes")]
    drained: Vec<Box<Outbox>>,
    /// Bytes of memory for their queues.
    held: usize,
}

impl Spares {
    /// An empty outbox, at `now`.
    pub(super) fn take(&mut self, now: Instant) -> Box<Outbox> {
        let Some(mut outbox) = self.drained.pop() else { return Box::new(Outbox::new(now)) };
        self.held -= outbox.capacity();
        outbox.restart(now);
        outbox
    }

    /// Keeps an outbox that has drained, if there is room for it.
    pub(super) fn give(&mut self, outbox: Box<Outbox>) {
        debug_assert!(outbox.is_empty(), "{outbox:?}");
        let capacity = outbox.capacity();
        if self.drained.len() < SPARES_MAX
            && capacity <= SPARE_BYTES_MAX
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

    /// An outbox that a message of so many bytes has gone through.
    fn drained(spares: &mut Spares, len: usize) -> Box<Outbox> {
        let mut outbox = spares.take(NOW);
        outbox.push_message(Opcode::Text, &[&vec![b'x'; len]]);
        outbox.on_written(outbox.len(), NOW);
        outbox
    }

    #[test]
    fn the_next_message_finds_the_memory_of_the_last_and_its_own_time() {
        let mut spares = Spares::default();
        let outbox = drained(&mut spares, 1_000);
        let capacity = outbox.capacity();
        spares.give(outbox);
        let later = NOW + std::time::Duration::from_secs(60);
        let outbox = spares.take(later);
        assert_eq!((outbox.capacity(), outbox.progress()), (capacity, later));
        assert_eq!((spares.held, spares.drained.len()), (0, 0));
        assert_eq!(spares.take(NOW).capacity(), 0);
    }

    #[test]
    fn too_large_a_one_is_not_kept() {
        let mut spares = Spares::default();
        for len in [SPARE_BYTES_MAX / 2, SPARE_BYTES_MAX + 1] {
            let outbox = drained(&mut Spares::default(), len);
            spares.give(outbox);
        }
        assert_eq!(spares.drained.len(), 1);
    }

    #[test]
    fn all_together_are_bounded() {
        for (len, expected) in [(100_000, 10), (1, SPARES_MAX)] {
            let mut spares = Spares::default();
            for _ in 0..2 * expected {
                let outbox = drained(&mut Spares::default(), len);
                spares.give(outbox);
                let held: usize = spares.drained.iter().map(|outbox| outbox.capacity()).sum();
                assert_eq!(spares.held, held);
            }
            assert_eq!(spares.drained.len(), expected, "of {len} bytes");
        }
    }
}
