//! Work: how much input one call handles before the rest has to wait.
//!
//! Owns the unit. Must not know what is done with a frame.

/// Units that one call may spend, so that one connection does not delay the others, whatever
/// it sends. Below half a millisecond at 1.15 µs for the dearest small frame, a bad envelope.
const UNITS: usize = 256;
/// Bytes of payload that are counted as another frame.
const BYTES_PER_UNIT: usize = 1024;

/// What is left for one call.
#[derive(Debug)]
pub struct Work {
    left: usize,
}

impl Work {
    /// The work of one call.
    #[must_use]
    pub fn of_one_call() -> Self {
        Self { left: UNITS }
    }

    /// No bound: no other connection waits.
    #[must_use]
    pub fn unbounded() -> Self {
        Self { left: usize::MAX }
    }

    /// A frame of `len` bytes was handled.
    pub fn spend(&mut self, len: usize) {
        self.left = self.left.saturating_sub(1 + len / BYTES_PER_UNIT);
    }

    /// Whether nothing is left: the rest of the input has to wait.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handled(len: usize) -> usize {
        let mut work = Work::of_one_call();
        let spend = || {
            let is_left = !work.is_spent();
            work.spend(len);
            is_left.then_some(())
        };
        std::iter::from_fn(spend).count()
    }

    #[test]
    fn small_frames_are_bounded_in_number_and_large_ones_in_bytes() {
        assert_eq!(handled(0), UNITS);
        assert_eq!(handled(125), UNITS);
        assert_eq!(handled(16 * 1024), UNITS.div_ceil(17));
        assert_eq!(handled(256 * 1024), 1, "one message is never too much");
    }
}
