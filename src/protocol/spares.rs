//! Outboxes that have drained, for the next message to anybody.
//!
//! Owns memory between two messages, never a byte of them. Knows no connection.
//!
//! A connection at rest owns none, so without these every burst would grow a queue from
//! nothing: of a message of 1 KiB that was an eighth of the CPU time, for copies while
//! it grew and for pages that the allocator had given back to the kernel.
//!
//! Holds at most [`SPARES_MAX`] bytes, in outboxes of at most [`SPARE_MAX`].

use super::outbox::Outbox;
use crate::time::Instant;

/// What all spares hold at most: what a pass of the loop queues, if its frames are not
/// tiny.
const SPARES_MAX: usize = 1024 * 1024;
/// What one may hold: what a read of one peer queues.
const SPARE_MAX: usize = 256 * 1024;

/// Outboxes that have drained.
#[derive(Debug, Default)]
pub struct Spares {
    #[expect(clippy::vec_box, reason = "they come and go in their boxes")]
    drained: Vec<Box<Outbox>>,
    /// Bytes of memory that they hold.
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

    /// Keeps an outbox that has drained, if there is room for it and it is worth it: one
    /// that held nothing but control frames is not.
    pub(super) fn give(&mut self, outbox: Box<Outbox>) {
        debug_assert!(outbox.is_empty(), "{outbox:?}");
        let capacity = outbox.capacity();
        if (1..=SPARE_MAX).contains(&capacity) && self.held + capacity <= SPARES_MAX {
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

    fn actually_held(spares: &Spares) -> usize {
        spares.drained.iter().map(|outbox| outbox.capacity()).sum()
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
    fn who_held_no_message_or_too_large_ones_is_not_kept() {
        let mut spares = Spares::default();
        let small = spares.take(NOW);
        let large = drained(&mut spares, SPARE_MAX + 1);
        spares.give(small);
        spares.give(large);
        assert_eq!((spares.held, spares.drained.len()), (0, 0));
    }

    #[test]
    fn all_together_are_bounded() {
        let mut spares = Spares::default();
        let mut taken: Vec<_> = (0..50).map(|_| drained(&mut Spares::default(), 100_000)).collect();
        while let Some(outbox) = taken.pop() {
            spares.give(outbox);
            assert_eq!(spares.held, actually_held(&spares));
        }
        assert!((SPARES_MAX - 100_020..=SPARES_MAX).contains(&spares.held), "{}", spares.held);
    }
}
