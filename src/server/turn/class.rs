//! Class: which connections are served first, and for how long.
//!
//! Owns what is known of a connection's use of time. Must not know queues, nor what takes the
//! time.

use std::time::Duration;

use crate::time::Instant;

/// The time for connections in one turn that used little time lately, and for expiries.
pub(super) const SERVE_TIME: Duration = Duration::from_millis(1);
/// The time for busy connections in one turn, and for handshakes: an interactive peer waits for
/// both, and for what they caused.
const BUSY_TIME: Duration = Duration::from_micros(500);

/// What a connection needs, as far as it is known before it is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Little time, as it did lately.
    Light,
    /// A whole slice, probably.
    Heavy,
    /// A TLS handshake.
    Handshake,
}

/// In the order in which they are served.
pub(super) const CLASSES: [Class; 3] = [Class::Light, Class::Heavy, Class::Handshake];

impl Class {
    /// The time of its queue in one turn.
    pub(super) const fn time(self) -> Duration {
        match self {
            Self::Light => SERVE_TIME,
            Self::Heavy | Self::Handshake => BUSY_TIME,
        }
    }
}

/// The time that a connection used lately, in units of 16 µs, halved every 1.05 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) units: u8,
    pub(super) epoch: u8,
}

impl Usage {
    /// Units from which on a connection is busy. The first slice of a flood takes at least this
    /// much. A short message takes less than a unit, which counts as none.
    const BUSY: u8 = 4;
    /// The most that one slice adds, lest a pause of the process counts for long.
    const SLICE_MAX: u8 = 16;

    /// It used `time` in one slice.
    pub(super) fn add(&mut self, time: Duration, now: Instant) {
        self.cool(now);
        let units = u8::try_from(time.as_micros() / 16).unwrap_or(u8::MAX);
        self.units = self.units.saturating_add(units.min(Self::SLICE_MAX));
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
