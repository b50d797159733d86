//! Random faults of single effects.
//!
//! Owns their frequency. Each method stands for one system call of the event loop and decides
//! its outcome; by default all of them succeed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// How a write ends.
pub(crate) enum Write {
    /// A partial write of this number of bytes.
    Takes(usize),
    /// Nothing is taken now; there is room again after this time.
    WouldBlock(Duration),
    /// The connection is broken.
    Broken,
}

/// The random decisions of one run.
#[derive(Default)]
pub(crate) struct Faults(Option<Dice>);

struct Dice {
    rng: StdRng,
    /// Failures in addition to splits.
    fails: bool,
}

impl Faults {
    /// Splits reads and writes; with `fails`, effects fail as well.
    pub(crate) fn new(seed: u64, fails: bool) -> Self {
        Self(Some(Dice { rng: StdRng::seed_from_u64(seed), fails }))
    }

    /// The number of bytes that one read returns, at most `most`.
    pub(crate) fn read(&mut self, most: usize) -> usize {
        self.0.as_mut().map_or(most, |dice| dice.split(most))
    }

    pub(crate) fn write(&mut self, most: usize) -> Write {
        let Some(dice) = &mut self.0 else { return Write::Takes(most) };
        if dice.happens(0.02) {
            return Write::WouldBlock(Duration::from_millis(dice.rng.random_range(0..3_000)));
        }
        if dice.happens(0.0005) {
            return Write::Broken;
        }
        Write::Takes(dice.split(most))
    }

    /// Whether a new socket cannot be registered.
    pub(crate) fn register(&mut self) -> bool {
        self.happens(0.01)
    }

    /// Whether the peer turns out to be gone when its socket is shut down.
    pub(crate) fn half_close(&mut self) -> bool {
        self.happens(0.02)
    }

    /// Whether the read before a verdict finds a reset.
    pub(crate) fn read_to_end(&mut self) -> bool {
        self.happens(0.05)
    }

    fn happens(&mut self, of: f64) -> bool {
        self.0.as_mut().is_some_and(|dice| dice.happens(of))
    }
}

impl Dice {
    fn happens(&mut self, of: f64) -> bool {
        self.fails && self.rng.random_bool(of)
    }

    /// At least one byte, if there is one, and often not all.
    fn split(&mut self, most: usize) -> usize {
        match most {
            0 | 1 => most,
            _ if self.rng.random_bool(0.5) => most,
            _ if self.rng.random_bool(0.5) => self.rng.random_range(1..=most.min(20)),
            _ => self.rng.random_range(1..=most),
        }
    }
}
