//! Timer wheel: compared with a sorted map, then each edge case.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const SEEDS: [u64; 8] = [1, 2, 3, 5, 8, 13, 21, 0xC0FFEE];
const YEAR: Duration = Duration::from_secs(365 * 86_400);

fn at(micros: u64) -> Instant {
    Instant::from_micros(micros)
}

fn ticks(count: u64) -> Instant {
    at(count * TICK_MICROS)
}

fn pop_all(wheel: &mut Wheel, now: Instant) -> Vec<u32> {
    std::iter::from_fn(|| wheel.pop_expired(now)).collect()
}

/// The documented behaviour without slots: the tick at which each key fires, and the order of
/// arming within it.
#[derive(Default)]
struct Model {
    now: u64,
    armed_count: u64,
    queue: BTreeSet<(u64, u64, u32)>,
    keys: BTreeMap<u32, Armed>,
}

struct Armed {
    tick: u64,
    count: u64,
    at: Instant,
    /// Neither passed nor beyond the horizon when armed: it must fire within
    /// `at .. at + TICK`.
    on_time: bool,
}

impl Model {
    fn arm(&mut self, key: u32, at: Instant) {
        self.disarm(key);
        let boundary = at.as_micros().div_ceil(TICK_MICROS);
        let tick = boundary.max(self.now + 1).min(self.now + 1024);
        let now = ticks(self.now);
        let on_time = now <= at && at <= now + Wheel::HORIZON;
        self.armed_count += 1;
        self.queue.insert((tick, self.armed_count, key));
        self.keys.insert(key, Armed { tick, count: self.armed_count, at, on_time });
    }

    fn disarm(&mut self, key: u32) -> Option<Armed> {
        let armed = self.keys.remove(&key)?;
        self.queue.remove(&(armed.tick, armed.count, key));
        Some(armed)
    }

    fn advance(&mut self, now: Instant) {
        self.now = self.now.max(now.as_micros() / TICK_MICROS);
    }

    fn pop(&mut self) -> Option<(u32, Armed)> {
        let &(tick, _, key) = self.queue.first()?;
        if tick > self.now {
            return None;
        }
        Some((key, self.disarm(key)?))
    }

    /// When a key of this tick fires: now, if it is due and not yet popped.
    fn fires(&self, tick: u64) -> Instant {
        ticks(tick.max(self.now))
    }
}

/// One run of random operations. Replay a failure with the seed it names.
fn replay(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut now = at(rng.random_range(0..1 << 40));
    let mut wheel = Wheel::new(now);
    let mut model = Model::default();
    model.advance(now);

    for step in 0..20_000 {
        let context = format!("replay({seed:#x}) step {step}");
        let keys = if rng.random_ratio(1, 100) { 4_000 } else { 40 };
        let key = rng.random_range(0..keys);
        match rng.random_range(0..100) {
            // Deadlines from a second past to beyond the horizon, and never.
            0..50 => {
                let from = now - Duration::from_secs(1);
                let ahead = match rng.random_range(0..10) {
                    0 => Duration::from_secs(1),
                    1 => Duration::from_secs(rng.random_range(60..90)),
                    2 => TICK * rng.random_range(0..1100),
                    _ => Duration::from_micros(rng.random_range(0..68_000_000)),
                };
                let deadline = if rng.random_ratio(1, 200) { Instant::NEVER } else { from + ahead };
                wheel.arm(key, deadline);
                model.arm(key, deadline);
            }
            50..65 => {
                wheel.disarm(key);
                model.disarm(key);
            }
            65..70 => {
                now += Duration::from_micros(rng.random_range(0..5_000_000));
                wheel.advance(now);
                model.advance(now);
            }
            70 => {
                // An earlier `now` counts as the latest.
                wheel.advance(now - TICK * 3);
            }
            _ => {
                now = match rng.random_range(0..60) {
                    0 => now + Duration::from_secs(70),
                    1 => now + Duration::from_secs(86_400 * rng.random_range(1..1000)),
                    2 => now + TICK * 1024,
                    3..20 => wheel.next_expiry().unwrap_or(now).max(now),
                    _ => now + Duration::from_micros(rng.random_range(0..300_000)),
                };
                pop_round(&mut wheel, &mut model, now, &mut rng, &context);
            }
        }
        assert_eq!(wheel.len(), model.keys.len(), "{context}");
        assert_eq!(wheel.is_empty(), model.keys.is_empty(), "{context}");
        let first = model.queue.first().map(|&(tick, ..)| model.fires(tick));
        assert_eq!(wheel.next_expiry(), first, "{context}");
        let fires = model.keys.get(&key).map(|armed| model.fires(armed.tick));
        assert_eq!(wheel.armed(key), fires, "{context} key {key}");
    }
}

/// Pops in lock-step, arming and disarming in between, sometimes giving up early.
fn pop_round(wheel: &mut Wheel, model: &mut Model, now: Instant, rng: &mut StdRng, context: &str) {
    model.advance(now);
    loop {
        let popped = wheel.pop_expired(now);
        let expected = model.pop();
        assert_eq!(popped, expected.as_ref().map(|(key, _)| *key), "{context}");
        let Some((key, armed)) = expected else { break };
        assert!(armed.at <= now || !armed.on_time, "{context} early: {key}");
        match rng.random_range(0..10) {
            0 => {
                let deadline = now - Duration::from_secs(rng.random_range(0..100));
                wheel.arm(key, deadline);
                model.arm(key, deadline);
            }
            1 => {
                let deadline = now + Duration::from_secs(rng.random_range(0..67));
                wheel.arm(key + 1, deadline);
                model.arm(key + 1, deadline);
            }
            2 => {
                wheel.disarm(key + 1);
                model.disarm(key + 1);
            }
            3 if rng.random_ratio(1, 10) => return,
            _ => {}
        }
    }
    for (key, armed) in &model.keys {
        assert!(now < armed.at + TICK || !armed.on_time, "{context} late: {key}");
    }
}

#[test]
fn agrees_with_a_sorted_map_over_random_operations() {
    for seed in SEEDS {
        replay(seed);
    }
}

#[test]
fn a_node_takes_twelve_bytes() {
    assert_eq!(size_of::<Node>(), 12);
}

#[test]
fn fires_at_the_first_tick_boundary_not_before_the_deadline() {
    const T: u64 = TICK_MICROS;
    // Now, deadline, the instant at which it fires.
    let cases = [
        (0, 0, T),                           // at == now, on a boundary: passed
        (0, 1, T),                           // the first microsecond of a tick
        (0, T - 1, T),                       // the last one
        (0, T, T),                           // on a boundary: no rounding
        (0, T + 1, 2 * T),                   // just after it
        (5, 5, T),                           // at == now within a tick
        (10 * T, 10 * T, 11 * T),            // at == now on a later boundary
        (10 * T + 7, 3 * T, 11 * T),         // long passed: the next boundary
        (1000 * T, 1030 * T, 1030 * T),      // slot 6: wrapped around
        (1023 * T, 1024 * T, 1024 * T),      // slot 0
        (0, 1023 * T, 1023 * T),             // the horizon
        (T - 1, T - 1 + 1023 * T, 1024 * T), // the horizon, late in the tick
        (0, 1024 * T, 1024 * T),             // the last slot, on time
        (0, 1024 * T + 1, 1024 * T),         // beyond it: early
        (7 * T, u64::MAX, 1031 * T),         // never: early
    ];
    for (now, deadline, fires) in cases {
        let context = format!("at {now}: {deadline}");
        let mut wheel = Wheel::new(at(now));
        wheel.arm(3, at(deadline));
        assert_eq!(wheel.armed(3), Some(at(fires)), "{context}");
        assert_eq!(wheel.next_expiry(), Some(at(fires)), "{context}");
        assert_eq!(wheel.pop_expired(at(fires - 1)), None, "{context}");
        assert_eq!(wheel.next_expiry(), Some(at(fires)), "{context}");
        assert_eq!(wheel.pop_expired(at(fires)), Some(3), "{context}");
        assert_eq!(wheel.pop_expired(at(fires)), None, "{context}");
        assert_eq!((wheel.armed(3), wheel.next_expiry()), (None, None), "{context}");
    }
}

#[test]
fn up_to_the_horizon_nothing_fires_early_wherever_in_its_tick_now_stands() {
    for now in [0, 1, TICK_MICROS - 1, 7 * TICK_MICROS - 1] {
        let mut wheel = Wheel::new(at(now));
        let deadline = at(now) + Wheel::HORIZON;
        wheel.arm(0, deadline);
        assert_eq!(wheel.pop_expired(deadline - Duration::from_micros(1)), None, "at {now}");
        assert_eq!(wheel.pop_expired(deadline + TICK), Some(0), "at {now}");
    }
}

#[test]
fn a_jump_of_any_size_fires_everything_once_and_in_order() {
    for jump in [Duration::from_secs(70), YEAR, YEAR * 9, YEAR * 100_000, TICK * 1024] {
        let start = ticks(700);
        let now = start + jump;
        let mut wheel = Wheel::new(start);
        // One key in every slot, armed in reverse.
        for key in (0..1024).rev() {
            wheel.arm(key, start + TICK * (key + 1));
        }
        wheel.advance(now);
        assert_eq!(wheel.len(), 1024, "{jump:?}");
        assert!(wheel.armed(0).is_some_and(|fires| fires <= now), "{jump:?}");
        assert!(wheel.next_expiry().is_some_and(|fires| fires <= now), "{jump:?}");

        // A key armed before the round is over is alone in its slot.
        wheel.arm(5_000, now + Duration::from_secs(30));
        assert_eq!(wheel.pop_expired(now), Some(0), "{jump:?}");
        wheel.arm(0, now + Duration::from_secs(60));
        assert_eq!(pop_all(&mut wheel, now), Vec::from_iter(1..1024), "{jump:?}");

        assert_eq!(wheel.len(), 2, "{jump:?}");
        let next = wheel.next_expiry().unwrap();
        assert_eq!(wheel.armed(5_000), Some(next), "{jump:?}");
        assert!(next >= now + Duration::from_secs(30), "{jump:?}");
        assert!(next < now + Duration::from_secs(30) + TICK, "{jump:?}");
        assert_eq!(pop_all(&mut wheel, next), [5_000], "{jump:?}");
        assert_eq!(pop_all(&mut wheel, now + Duration::from_secs(61)), [0], "{jump:?}");
        assert_eq!(wheel.next_expiry(), None, "{jump:?}");
    }
}

#[test]
fn arming_a_passed_deadline_between_pops_does_not_prolong_the_round() {
    let mut wheel = Wheel::new(Instant::START);
    wheel.arm(1, ticks(5));
    wheel.arm(2, ticks(5));
    let mut now = ticks(5);
    for _ in 0..3 {
        for key in [1, 2] {
            assert_eq!(wheel.pop_expired(now), Some(key));
            wheel.arm(key, Instant::START);
        }
        assert_eq!(wheel.pop_expired(now), None);
        assert_eq!(wheel.next_expiry(), Some(now + TICK));
        now += TICK;
    }
}

#[test]
fn arming_again_moves_the_key() {
    let mut wheel = Wheel::new(Instant::START);
    for deadline in [ticks(900), ticks(20), ticks(20), ticks(40)] {
        wheel.arm(0, deadline);
        assert_eq!((wheel.len(), wheel.armed(0)), (1, Some(deadline)));
        assert_eq!(wheel.next_expiry(), Some(deadline));
    }
    assert_eq!(pop_all(&mut wheel, ticks(39)), [0_u32; 0]);
    assert_eq!(pop_all(&mut wheel, ticks(2_000)), [0]);
}

#[test]
fn a_due_key_can_be_moved_and_disarmed_before_it_is_popped() {
    let mut wheel = Wheel::new(Instant::START);
    for key in 0..4 {
        wheel.arm(key, ticks(1));
    }
    wheel.advance(ticks(2));
    wheel.disarm(1);
    wheel.arm(2, ticks(9));
    assert_eq!(pop_all(&mut wheel, ticks(2)), [0, 3]);
    assert_eq!(wheel.next_expiry(), Some(ticks(9)));
    assert_eq!(pop_all(&mut wheel, ticks(9)), [2]);
}

#[test]
fn disarming_an_unknown_key_does_nothing() {
    let mut wheel = Wheel::new(Instant::START);
    wheel.disarm(0);
    wheel.arm(7, ticks(1));
    wheel.disarm(6);
    wheel.disarm(1_000_000);
    assert_eq!((wheel.len(), wheel.armed(6), wheel.armed(8)), (1, None, None));
    wheel.disarm(7);
    wheel.disarm(7);
    assert!(wheel.is_empty());
    assert_eq!(wheel.next_expiry(), None);
    assert_eq!(pop_all(&mut wheel, ticks(5_000)), [0_u32; 0]);
}

#[test]
fn an_earlier_now_counts_as_the_latest_one() {
    let mut wheel = Wheel::new(ticks(100));
    wheel.arm(0, ticks(101));
    wheel.arm(1, ticks(101));
    assert_eq!(wheel.pop_expired(ticks(101)), Some(0));
    assert_eq!(wheel.pop_expired(ticks(3)), Some(1));
    wheel.arm(2, ticks(50));
    assert_eq!(wheel.armed(2), Some(ticks(102)));
}

#[test]
fn the_first_occupied_slot_is_found_from_every_position() {
    for start in 0..1024 {
        let mut wheel = Wheel::new(ticks(start));
        for ahead in [1, 2, 63, 64, 65, 511, 1023, 1024] {
            wheel.arm(0, ticks(start + ahead));
            assert_eq!(wheel.next_expiry(), Some(ticks(start + ahead)), "{start} + {ahead}");
        }
    }
}

#[test]
fn a_million_keys_fire_each_once() {
    const KEYS: u32 = 1_000_000;
    let mut rng = StdRng::seed_from_u64(1);
    let mut wheel = Wheel::new(Instant::START);
    let deadlines: Vec<_> = (0..KEYS).map(|_| at(rng.random_range(0..60_000_000))).collect();
    for (key, deadline) in (0..).zip(&deadlines) {
        wheel.arm(key, *deadline);
    }
    assert_eq!(wheel.len(), KEYS as usize);
    let mut fired = vec![false; KEYS as usize];
    while let Some(now) = wheel.next_expiry() {
        while let Some(key) = wheel.pop_expired(now) {
            assert!(!std::mem::replace(&mut fired[key as usize], true), "{key} fired twice");
            let deadline = deadlines[key as usize];
            assert!(deadline <= now && now <= deadline + TICK, "{key} {deadline:?} {now:?}");
        }
    }
    assert!(fired.iter().all(|&fired| fired));
    assert!(wheel.is_empty());
}

#[test]
fn a_key_that_fires_early_enough_is_left_alone() {
    let mut wheel = Wheel::new(ticks(100));
    let mut armed_by = |before: u64, by: u64| {
        wheel.arm(3, ticks(before));
        wheel.arm_by(3, ticks(by));
        wheel.armed(3)
    };
    assert_eq!(armed_by(105, 110), Some(ticks(105)));
    assert_eq!(armed_by(111, 110), Some(ticks(111)), "a tick later");
    assert_eq!(armed_by(112, 110), Some(ticks(110)));
    // At the next tick, as everything that is overdue.
    assert_eq!(armed_by(101, 50), Some(ticks(101)));
    assert_eq!(armed_by(102, 50), Some(ticks(101)));
    wheel.disarm(3);
    wheel.arm_by(3, ticks(110));
    assert_eq!(wheel.armed(3), Some(ticks(110)));
}
