//! Class: which connections are served first, and for how long.
//!
//! Owns what is known of a connection's use of time. Must not know queues, nor what takes the
//! time.

use std::time::Duration;

use crate::time::Instant;

/// The time for connections in one turn that used little time lately, and for expiries.
pub(super) const SERVE_TIME: Duration = Duration::from_millis(1);
/// The time for reading from busy connections in one turn, and that for writing to them: an
/// interactive peer waits for both.
pub(super) const BUSY_TIME: Duration = Duration::from_micros(250);
/// The time for handshakes in one turn.
const HANDSHAKE_TIME: Duration = Duration::from_micros(500);

/// What a connection needs, as far as it is known before it is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Little time, as it did lately.
    Light,
    /// A whole slice, probably.
    Busy,
    /// A TLS handshake.
    Handshake,
}

impl Class {
    /// The time of its queue in one turn.
    pub(super) const fn time(self) -> Duration {
        match self {
            Self::Light => SERVE_TIME,
            Self::Busy => BUSY_TIME,
            Self::Handshake => HANDSHAKE_TIME,
        }
    }
}

/// The time that a connection used lately, in units of 8 µs, halved every 1.05 s.
///
/// Short work, such as a small message, counts a thirty-second: it delays others little, and an
/// interactive peer does much of it. A peer that sends a hundred small messages a second is
/// interactive; one that does so with all the time that it gets is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    units: u8,
    epoch: u8,
}

impl Usage {
    /// Units from which on a connection is busy: one long slice, one that left input over, or
    /// some 2 ms of short work.
    const BUSY: u8 = 8;
    /// The most that one slice adds, lest a pause of the process counts for long.
    const SLICE_MAX: u8 = 32;
    /// The shortest slice that counts in full. That of a small message takes up to 20 µs beside
    /// busy connections, which leave it no cache.
    const LONG_MICROS: u64 = 64;
    /// A short slice counts, as one unit, if the clock came to a multiple of this in it: so no
    /// connection needs a count of what is less than a unit.
    const SAMPLE_MICROS: u64 = 256;
    /// What a write takes is reckoned from its bytes: to read the clock would cost a tenth of
    /// a short one.
    const WRITTEN_PER_UNIT: usize = 16 * 1024;

    /// The usage of which [`Self::save`] returned `saved`.
    pub(super) const fn restore([units, epoch]: [u8; 2]) -> Self {
        Self { units, epoch }
    }

    /// As plain values.
    pub(super) const fn save(self) -> [u8; 2] {
        [self.units, self.epoch]
    }

    /// It used `time` in one slice, which ended at `end`.
    pub(super) fn add(&mut self, time: Duration, end: Instant, now: Instant) {
        let micros = time.as_micros() as u64;
        if micros >= Self::LONG_MICROS {
            self.add_units(micros / 8, now);
        } else if end.as_micros() % Self::SAMPLE_MICROS < micros {
            self.add_units(1, now);
        }
    }

    /// Some of its input was left over: on a fast machine no other sign of a flood is as early.
    pub(super) fn add_rest(&mut self, now: Instant) {
        self.add_units(Self::BUSY.into(), now);
    }

    /// It was written `count` bytes. Short writes are not counted: those that cause them are.
    pub(super) fn add_write(&mut self, count: usize, now: Instant) {
        if count >= Self::WRITTEN_PER_UNIT {
            self.add_units((count / Self::WRITTEN_PER_UNIT) as u64, now);
        }
    }

    fn add_units(&mut self, units: u64, now: Instant) {
        self.cool(now);
        self.units = self.units.saturating_add(units.min(Self::SLICE_MAX.into()) as u8);
    }

    /// Whether it used little.
    pub(super) fn is_light(&mut self, now: Instant) -> bool {
        self.cool(now);
        self.units < Self::BUSY
    }

    fn cool(&mut self, now: Instant) {
        let epoch = (now.as_micros() >> 20) as u8;
        let passed = epoch.wrapping_sub(std::mem::replace(&mut self.epoch, epoch));
        self.units = self.units.checked_shr(passed.into()).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::START;

    /// The number of slices of `micros` until the connection is busy.
    fn slices(micros: u64) -> usize {
        let (time, mut end, mut usage) = (Duration::from_micros(micros), NOW, Usage::default());
        let slice = |_: &usize| {
            end += time;
            usage.add(time, end, NOW);
            // Others are served for as long as it takes to come to another part of the grid.
            end += Duration::from_micros(977 - micros);
            usage.is_light(NOW)
        };
        1 + (0..100_000).take_while(slice).count()
    }

    #[test]
    fn one_long_slice_makes_a_connection_busy_and_2_ms_of_short_ones() {
        assert_eq!([300, 64].map(slices), [1, 1]);
        for micros in [1, 3, 10, 20, 63] {
            let sum = slices(micros) as u64 * micros;
            assert!((1_500..2_500).contains(&sum), "{sum} µs in slices of {micros}");
        }
    }

    #[test]
    fn a_peer_that_reads_much_is_busy_as_well() {
        let writes = |count| {
            let mut usage = Usage::default();
            let write = |_: &usize| {
                usage.add_write(count, NOW);
                usage.is_light(NOW)
            };
            1 + (0..1_000).take_while(write).count()
        };
        assert_eq!(writes(87_500), 2);
        assert_eq!(writes(1_024), 1_001);
    }

    #[test]
    fn a_busy_connection_is_light_again_after_some_seconds_of_rest() {
        let mut busy = Usage::default();
        (0..1_000).for_each(|_| busy.add(Duration::from_millis(1), NOW, NOW));
        let is_light_after = |secs| {
            let mut usage = busy;
            usage.is_light(NOW + Duration::from_secs(secs))
        };
        assert!(!is_light_after(4) && is_light_after(7));
    }
}
