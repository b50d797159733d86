//! Duration: in the format of Go's `time.Duration.String`: `152.3ms`, `1m2.5s`.
//!
//! Owns the rounding: to 0.1 ms, below 1 ms to 0.1 µs, below 1 µs to 1 ns. More digits are
//! noise for a call over a network.

use std::fmt::{self, Display};
use std::time::Duration;

const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;

/// The value of the log key `duration`.
#[derive(Clone, Copy, Debug)]
pub(super) struct GoDuration(pub(super) Duration);

impl Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        let tenth = match nanos {
            0..MICROSECOND => 1,
            MICROSECOND..MILLISECOND => MICROSECOND / 10,
            _ => MILLISECOND / 10,
        };
        let nanos = nanos.saturating_add(tenth / 2) / tenth * tenth;
        match nanos {
            0 => f.write_str("0s"),
            1..MICROSECOND => write!(f, "{nanos}ns"),
            MICROSECOND..MILLISECOND => decimal(f, nanos, MICROSECOND, "µs"),
            MILLISECOND..SECOND => decimal(f, nanos, MILLISECOND, "ms"),
            _ => {
                let minutes = nanos / (60 * SECOND);
                if minutes >= 60 {
                    write!(f, "{}h", minutes / 60)?;
                }
                if minutes > 0 {
                    write!(f, "{}m", minutes % 60)?;
                }
                decimal(f, nanos % (60 * SECOND), SECOND, "s")
            }
        }
    }
}

/// Writes `nanos` in a unit of `unit` nanoseconds, without trailing zeros.
fn decimal(f: &mut fmt::Formatter<'_>, nanos: u64, unit: u64, name: &str) -> fmt::Result {
    let digits = unit.ilog10() as usize;
    let fraction = format!("{:0digits$}", nanos % unit);
    match fraction.trim_end_matches('0') {
        "" => write!(f, "{}{name}", nanos / unit),
        fraction => write!(f, "{}.{fraction}{name}", nanos / unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (999, "999ns"),
            (1_000, "1µs"),
            (1_549, "1.5µs"),
            (999_999, "1ms"),
            (1_000_000, "1ms"),
            (152_345_678, "152.3ms"),
            (100_000_000, "100ms"),
            (999_960_000, "1s"),
            (1_000_000_000, "1s"),
            (10_020_000_000, "10.02s"),
            (10_000_340_000, "10.0003s"),
            (60_000_000_000, "1m0s"),
            (62_500_000_000, "1m2.5s"),
            (3_600_000_000_000, "1h0m0s"),
            (360_000_000_000_000, "100h0m0s"),
        ] {
            assert_eq!(GoDuration(Duration::from_nanos(nanos)).to_string(), text, "{nanos}");
        }
        // Durations above 584 years are written as 584 years, and nothing overflows.
        assert!(GoDuration(Duration::MAX).to_string().starts_with("5124095h"));
    }
}
