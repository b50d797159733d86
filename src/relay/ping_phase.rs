//! Ping phase: when within the ping interval a connection is pinged.
//!
//! Depends on the connection's index and on nothing else. Pings are spread, so that peers that
//! connected together are not pinged together; neighbours in memory are pinged together, so that
//! a ping finds what it needs in the cache.
//!
//! 1. Whatever the indices up to some number, any part of the interval gets its share of their
//!    pings, give or take those of two groups.

use std::time::Duration;

use super::conn_id::ConnId;
use crate::time::Instant;

/// Neighbours that have one phase.
const GROUP: u64 = 8;

/// 2^64 divided by the golden ratio. Its multiples, modulo 2^64, divide the range evenly: each
/// next one falls into one of the largest gaps (the three-gap theorem).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// When the connection is pinged first, if it opens at `now`: within one `interval`.
pub(super) fn first_ping(id: ConnId, interval: Duration, now: Instant) -> Instant {
    let share = (id.index() as u64 / GROUP).wrapping_mul(GOLDEN);
    let interval = interval.as_micros() as u64;
    let phase = ((u128::from(share) * u128::from(interval)) >> 64) as u64;
    let until = (phase + interval - now.as_micros() % interval) % interval;
    now + Duration::from_micros(if until == 0 { interval } else { until })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    fn first_pings(count: u32, now: Instant) -> Vec<Duration> {
        let ids = (0..count).map(|index| ConnId::new(index, 1));
        ids.map(|id| first_ping(id, INTERVAL, now).since(now)).collect()
    }

    #[test]
    fn every_second_has_its_share_of_pings() {
        for count in [8, 200, 480, 1_000, 19_500, 100_000] {
            let now = Instant::START + Duration::from_millis(12_345);
            let mut seconds = [0; 30];
            for after in first_pings(count, now) {
                assert!(after > Duration::ZERO && after <= INTERVAL);
                seconds[(after - Duration::from_micros(1)).as_secs() as usize] += 1;
            }
            let mean = count / 30;
            for in_second in seconds {
                assert!(mean.abs_diff(in_second) <= 2 * GROUP as u32, "{count}: {seconds:?}");
            }
        }
    }

    #[test]
    fn neighbours_are_pinged_together_whenever_they_connected() {
        let early = Instant::START + Duration::from_secs(7);
        let late = early + INTERVAL * 5 + Duration::from_secs(1);
        let pings = first_pings(64, early);
        for (after, later) in pings.iter().zip(first_pings(64, late)) {
            let between = (late + later).since(early + *after);
            assert_eq!(between.as_micros() % INTERVAL.as_micros(), 0);
        }
        assert!(pings.chunks(GROUP as usize).all(|group| group.iter().all(|it| *it == group[0])));
    }

    #[test]
    fn at_its_very_phase_a_connection_is_pinged_an_interval_later() {
        let first = |now| first_ping(ConnId::new(0, 1), INTERVAL, now).since(now);
        assert_eq!(first(Instant::START + INTERVAL), INTERVAL);
    }
}
