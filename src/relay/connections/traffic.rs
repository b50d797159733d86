//! Traffic counters of one connection, for the log line at its end.
//!
//! Owns frames and bytes in either direction, packed into 16 bytes.

/// Frames and their bytes in one direction, in one word: every connection has two. Both
/// numbers saturate, at 67 million frames and 256 GiB.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::relay) struct Flow(u64);

impl Flow {
    const BYTE_BITS: u32 = 38;
    const BYTES_MAX: u64 = (1 << Self::BYTE_BITS) - 1;
    const FRAMES_MAX: u64 = u64::MAX >> Self::BYTE_BITS;

    /// Counts a frame.
    pub(in crate::relay) fn add(&mut self, bytes: usize) {
        let frames = (self.frames() + 1).min(Self::FRAMES_MAX);
        let bytes = (self.bytes() + bytes as u64).min(Self::BYTES_MAX);
        self.0 = frames << Self::BYTE_BITS | bytes;
    }

    /// As one number.
    pub(in crate::relay) const fn to_bits(self) -> u64 {
        self.0
    }

    /// The inverse of [`Self::to_bits`].
    pub(in crate::relay) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(in crate::relay) fn frames(self) -> u64 {
        self.0 >> Self::BYTE_BITS
    }

    pub(in crate::relay) fn bytes(self) -> u64 {
        self.0 & Self::BYTES_MAX
    }
}

/// Frames forwarded from a connection and to it.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::relay) struct Traffic {
    pub(in crate::relay) received: Flow,
    pub(in crate::relay) sent: Flow,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_bytes_are_counted_separately_and_saturate() {
        let mut flow = Flow::default();
        for bytes in [0, 1, 256 * 1024] {
            flow.add(bytes);
        }
        assert_eq!((flow.frames(), flow.bytes()), (3, 1 + 256 * 1024));

        flow.add(usize::try_from(Flow::BYTES_MAX).unwrap());
        assert_eq!((flow.frames(), flow.bytes()), (4, (256 << 30) - 1));

        let mut flow = Flow(u64::MAX - Flow::BYTES_MAX);
        flow.add(7);
        assert_eq!((flow.frames(), flow.bytes()), ((64 << 20) - 1, 7));
    }
}
