//! Measurements of a run, as rows of a table.

use std::fmt::{self, Display};
use std::time::Duration;

/// Prints one row.
pub fn record(what: &str, value: impl Display) {
    println!("  {what:<46} {value}");
}

/// Times of one kind.
#[derive(Debug, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    pub fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// The time that this number out of a thousand do not exceed.
    pub fn permille(&self, rank: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted[(sorted.len() - 1) * rank / 1000]
    }

    pub fn median(&self) -> Duration {
        self.permille(500)
    }

    /// Fails unless the median is what it was `before`, generously: neither a
    /// busy machine nor a cold cache makes it many times as long, but waiting
    /// for another peer's timeout or buffer does.
    pub fn expect_flat(&self, before: &Self) {
        let (now, then) = (self.median(), before.median());
        assert!(now <= 5 * then + Duration::from_millis(1), "{now:?} and before that {then:?}");
    }
}

impl Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [median, p99, max] = [500, 990, 1000].map(|rank| micros(self.permille(rank)));
        write!(f, "median {median}, p99 {p99}, max {max} µs of {}", self.0.len())
    }
}

fn micros(time: Duration) -> u128 {
    time.as_micros()
}

/// Bytes in MiB.
pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// A time in seconds.
pub fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// Hundredths of a second of processor time as a share of `time`.
pub fn share(hundredths: u64, time: Duration) -> String {
    let of_time = hundredths as f64 / time.as_secs_f64();
    format!("{:.2} s, {of_time:.0} % of a core", hundredths as f64 / 100.0)
}
