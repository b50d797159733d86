//! Work: how much input one call handles before the rest has to wait.
//!
//! Owns the unit. Must not know what is done with a frame.

/// Units that one call may spend, so that one connection does not delay the others, whatever
/// it sends. Below half a millisecond at 1.15 µs for the dearest small frame, a bad envelope.
const UNITS: usize = 256;
/// Bytes of payload that are counted as one unit.
const BYTES_PER_UNIT: usize = 1024;
/// Units of a frame that was just read: 64 of them take 75 µs at most, so that the first call
/// about a connection, of which it is not known yet whether it is busy, is a short one.
const UNITS_OF_NEW_FRAME: usize = 4;

/// What is left for one call.
#[derive(Debug)]
pub struct Work {
    left: usize,
    per_frame: usize,
}

impl Work {
    /// The work of a call with input that was just read.
    #[must_use]
    pub fn of_new_input() -> Self {
        Self { left: UNITS, per_frame: UNITS_OF_NEW_FRAME }
    }

    /// The work of a call with input that an earlier call left over.
    #[must_use]
    pub fn of_kept_input() -> Self {
        Self { left: UNITS, per_frame: 1 }
    }

    /// No bound: no other connection waits.
    #[must_use]
    pub fn unbounded() -> Self {
        Self { left: usize::MAX, per_frame: 1 }
    }

    /// A frame of `len` bytes was handled.
    pub fn spend(&mut self, len: usize) {
        self.left = self.left.saturating_sub(self.per_frame + len / BYTES_PER_UNIT);
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

    fn handled(mut work: Work, len: usize) -> usize {
        let spend = || {
            let is_left = !work.is_spent();
            work.spend(len);
            is_left.then_some(())
        };
        std::iter::from_fn(spend).count()
    }

    #[test]
    fn small_frames_are_bounded_in_number_and_large_ones_in_bytes() {
        assert_eq!(handled(Work::of_kept_input(), 0), UNITS);
        assert_eq!(handled(Work::of_kept_input(), 125), UNITS);
        assert_eq!(handled(Work::of_kept_input(), 16 * 1024), UNITS.div_ceil(17));
        assert_eq!(handled(Work::of_kept_input(), 256 * 1024), 1, "one message is never too much");
        assert_eq!(handled(Work::of_new_input(), 0), UNITS / 4);
        assert_eq!(handled(Work::of_new_input(), 16 * 1024), UNITS.div_ceil(20));
    }
}
