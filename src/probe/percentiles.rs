//! Latency percentiles.

use std::time::Duration;

/// Count, median, 99th percentile and maximum of measured latencies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) count: usize,
    pub(super) median: Duration,
    pub(super) p99: Duration,
    pub(super) max: Duration,
}

impl Figures {
    /// `None` if `times` is empty.
    pub(super) fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        let max = *times.last()?;
        // Nearest rank: always a measured time, without interpolation.
        let at = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1];
        Some(Self { count: times.len(), median: at(50), p99: at(99), max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_times() {
        let millis = Duration::from_millis;
        assert_eq!(Figures::of(vec![]), None);
        for (count, median, p99) in
            [(1, 1, 1), (2, 1, 2), (3, 2, 3), (10, 5, 10), (100, 50, 99), (200, 100, 198)]
        {
            let figures = Figures::of((1..=count).rev().map(millis).collect()).unwrap();
            let expected = Figures {
                count: count as usize,
                median: millis(median),
                p99: millis(p99),
                max: millis(count),
            };
            assert_eq!(figures, expected);
        }
    }
}
