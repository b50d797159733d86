//! Seeds and settings of the random simulations, from the environment:
//!
//! - `PYRYCODE_SIM_SEED=n` runs seed n and no other;
//! - `PYRYCODE_SIM_SEEDS=n` runs so many seeds where a sweep is made;
//! - `PYRYCODE_SIM_MINUTES=n` is how much virtual time the long run takes.

/// Tells how to replay a run that fails, wherever in it that happens.
pub(crate) struct Replay(pub(crate) u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with PYRYCODE_SIM_SEED={}", self.0);
        }
    }
}

/// A number from the environment.
#[expect(clippy::disallowed_methods, reason = "settings of the test itself")]
pub(crate) fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
}

/// The seeds to run: the one that is asked for, or the first `count`.
pub(crate) fn seeds(count: u64) -> std::ops::Range<u64> {
    match setting("PYRYCODE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..setting("PYRYCODE_SIM_SEEDS").unwrap_or(count),
    }
}
