//! State of a timer wheel: its keys in the order in which they fire, and back.

use super::{DUE, FIRST_KEY, SLOTS, TICK_MICROS, Wheel};
use crate::state::{Unfit, v1};
use crate::time::Instant;

const MALFORMED: Unfit = Unfit("timers");

impl Wheel {
    /// Its keys, those that are due first.
    #[must_use]
    pub fn save(&self) -> v1::Wheel {
        let slot = |ahead: u32| ((self.now + u64::from(ahead)) % u64::from(SLOTS)) as u32;
        let ahead = (1..=SLOTS).map(|ahead| (ahead as u16, self.ring(slot(ahead))));
        v1::Wheel {
            now: self.now,
            due: self.ring(DUE),
            ahead: ahead.filter(|(_, keys)| !keys.is_empty()).collect(),
        }
    }

    /// The wheel of which [`Self::save`] returned `saved`, with memory for `capacity` keys.
    ///
    /// # Errors
    /// If a key is armed twice or not below `keys`, or a time cannot be reached.
    pub fn restore(saved: &v1::Wheel, keys: usize, capacity: usize) -> Result<Self, Unfit> {
        if saved.now > u64::MAX / TICK_MICROS - u64::from(SLOTS) {
            return Err(MALFORMED);
        }
        let now = Instant::from_micros(saved.now * TICK_MICROS);
        let mut wheel = Self::with_capacity(capacity, now);
        let may_arm = |wheel: &Self, key: u32| (key as usize) < keys && !wheel.is_armed(key);
        for key in &saved.due {
            if !may_arm(&wheel, *key) {
                return Err(MALFORMED);
            }
            wheel.link(*key, DUE, saved.now);
        }
        for (ahead, keys) in &saved.ahead {
            if *ahead == 0 || u32::from(*ahead) > SLOTS {
                return Err(MALFORMED);
            }
            for key in keys {
                if !may_arm(&wheel, *key) {
                    return Err(MALFORMED);
                }
                let tick = saved.now + u64::from(*ahead);
                wheel.arm(*key, Instant::from_micros(tick * TICK_MICROS));
            }
        }
        Ok(wheel)
    }

    fn ring(&self, ring: u32) -> Vec<u32> {
        let next = |node: u32| self.nodes[node as usize].next;
        let nodes = std::iter::successors(Some(next(ring)), |node| Some(next(*node)));
        nodes.take_while(|node| *node != ring).map(|node| node - FIRST_KEY).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Random use; the wheel and its copies fire the same keys.
    #[test]
    fn a_restored_wheel_fires_as_the_saved_one() {
        let seed = 0xFACE;
        let mut rng = StdRng::seed_from_u64(seed);
        let mut now = Instant::from_micros(99_999_999);
        let mut wheel = Wheel::new(now);
        for step in 0..20_000 {
            let key = rng.random_range(0..200);
            match rng.random_range(0..10) {
                0..6 => {
                    let after = Duration::from_millis(rng.random_range(0..80_000));
                    wheel.arm(key, now - Duration::from_secs(1) + after);
                }
                6 => wheel.disarm(key),
                7..9 => now += Duration::from_millis(rng.random_range(0..500)),
                _ => {
                    let saved = wheel.save();
                    let mut copy = Wheel::restore(&saved, 200, 0).expect("it fits");
                    assert_eq!(copy.save(), saved, "seed {seed}, step {step}");
                    assert_eq!(copy.next_expiry(), wheel.next_expiry());
                    assert_eq!(copy.len(), wheel.len());
                    for key in 0..200 {
                        assert_eq!(copy.armed(key), wheel.armed(key), "seed {seed}, step {step}");
                    }
                    for _ in 0..rng.random_range(0..5) {
                        assert_eq!(copy.pop_expired(now), wheel.pop_expired(now));
                    }
                    wheel = copy;
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut wheel = Wheel::new(Instant::START);
        wheel.arm(3, Instant::START + Duration::from_secs(1));
        let saved = wheel.save();
        assert!(Wheel::restore(&saved, 4, 0).is_ok());
        assert!(Wheel::restore(&saved, 3, 0).is_err(), "a key without a meaning");
        let twice = v1::Wheel { due: vec![3], ..saved.clone() };
        assert!(Wheel::restore(&twice, 4, 0).is_err());
        let unreachable = v1::Wheel { now: u64::MAX / 2, ..saved.clone() };
        assert!(Wheel::restore(&unreachable, 4, 0).is_err());
        for ahead in [0, 1025] {
            let beyond = v1::Wheel { ahead: vec![(ahead, vec![1])], ..saved.clone() };
            assert!(Wheel::restore(&beyond, 4, 0).is_err());
        }
    }
}
