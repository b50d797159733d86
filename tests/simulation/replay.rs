//! Seeds and settings of the random simulations, from the environment:
//!
//! - `PYRYCODE_SIM_SEED=n` runs only seed n;
//! - `PYRYCODE_SIM_SEEDS=n` runs n seeds in each sweep, starting at
//!   `PYRYCODE_SIM_FIRST=n`, and reports how much was simulated;
//! - `PYRYCODE_SIM_HANDOVERS=n` hands the relay over before n of 1,000 turns, in every test;
//! - `PYRYCODE_SIM_PEERS=n` is the number of peers in the crowded chaos;
//! - `PYRYCODE_SIM_MINUTES=n` is the virtual time of the long run.

use std::fmt;

/// Prints how to replay a run, wherever it fails.
pub(crate) struct Replay {
    seed: u64,
    /// Name of the test.
    test: &'static str,
    step: usize,
    action: String,
}

impl Replay {
    pub(crate) fn new(seed: u64, test: &'static str) -> Self {
        Self { seed, test, step: 0, action: "none".to_owned() }
    }

    /// Records the next step.
    pub(crate) fn step(&mut self, action: &impl fmt::Debug) {
        self.step += 1;
        self.action = format!("{action:?}");
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { seed, test, step, action } = self;
            let peers = setting("PYRYCODE_SIM_PEERS").map(|n| format!("PYRYCODE_SIM_PEERS={n} "));
            eprintln!(
                "seed {seed}, step {step}, last action {action}; replay with\n\
                 {}PYRYCODE_SIM_SEED={seed} cargo test --test simulation {test}",
                peers.unwrap_or_default()
            );
        }
    }
}

/// A number from the environment.
#[expect(clippy::disallowed_methods, reason = "settings of the test itself")]
pub(crate) fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
}

/// The seeds to run: the requested one, or those that have found a fault and then the
/// first `count`.
pub(crate) fn seeds(count: u64, regressions: &[u64]) -> Vec<u64> {
    if let Some(seed) = setting("PYRYCODE_SIM_SEED") {
        return vec![seed];
    }
    let first = setting("PYRYCODE_SIM_FIRST").unwrap_or(0);
    let count = setting("PYRYCODE_SIM_SEEDS").unwrap_or(count);
    regressions.iter().copied().chain(first..first + count).collect()
}
